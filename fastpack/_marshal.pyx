# cython: language_level=3
"""What a ``.pyc`` says of its source, made independent of place and time. Contracts stand in ``_marshal_py.py``."""

from array import array

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcmp, memcpy

cdef enum:
    HEADER = 16
    FLAG_REF = 0x80
    DEEPEST = 2000
    MOST_NAMES = 64
    AFTER_LINE = 8
    MOST_PREFIXES = 256

cdef struct Prefix:
    const uint8_t *data
    int64_t length

cdef struct Replaced:
    int64_t offset
    int64_t length
    int64_t n_bytes  # of what is left of the string
    uint8_t code

cdef struct Found:
    Replaced *items
    int64_t count
    int64_t capacity

cdef struct Level:
    int64_t left
    uint8_t kind

cdef int64_t NOT_UNDERSTOOD = -1
cdef int64_t NO_MEMORY = -2

cdef uint8_t KNOWN[65536]  # by magic number: 0, or 1 + whether it is laid out as from 3.11 on


cdef int know_magics() except -1:
    from fastpack._marshal_py import MAGICS

    for magic, layout in MAGICS.items():
        KNOWN[magic] = 2 if layout else 1
    return 0


know_magics()


cdef inline int64_t unsigned_at(const uint8_t *data) noexcept nogil:
    cdef uint32_t value
    memcpy(&value, data, 4)
    return value


cdef int push(Found *found, Replaced item) noexcept nogil:
    cdef int64_t capacity
    cdef Replaced *items
    if found.count == found.capacity:
        capacity = found.capacity * 2 if found.capacity else 64
        items = <Replaced *>realloc(found.items, capacity * sizeof(Replaced))
        if items == NULL:
            return -1
        found.items = items
        found.capacity = capacity
    found.items[found.count] = item
    found.count += 1
    return 0


cdef int64_t walk(
    const uint8_t *data, int64_t size, const Prefix *prefixes, Py_ssize_t n_prefixes, Level *levels, Found *found
) noexcept nogil:
    """How many replacements a file has got, or what hinders."""
    cdef int64_t before = found.count
    cdef int64_t at = HEADER, begin, n_refs = 0, ref, n_bytes, text, target, cut
    cdef int64_t n_objects, file_name, n_numbers
    cdef int64_t names[MOST_NAMES]
    cdef bint replaced[MOST_NAMES]
    cdef Py_ssize_t n_names = 0, k
    cdef int depth = 0
    cdef int32_t n_digits
    cdef uint8_t code, flag, kind
    cdef int64_t index
    cdef bint is_name, interned, known
    cdef Replaced item
    if size < HEADER or data[2] != 13 or data[3] != 10:
        return NOT_UNDERSTOOD
    code = KNOWN[data[0] | data[1] << 8]
    if code == 0:
        return NOT_UNDERSTOOD
    if code == 2:
        n_objects, file_name, n_numbers = 10, 5, 20
    else:
        n_objects, file_name, n_numbers = 9, 6, 24
    levels[0].left, levels[0].kind = 1, 0
    while depth >= 0:
        if levels[depth].left == 0:
            depth -= 1
            continue
        kind = levels[depth].kind
        index = n_objects - levels[depth].left if kind == c"c" else -1
        levels[depth].left -= 1
        if index == AFTER_LINE:
            at += 4
        # Each branch may read five bytes behind `at` before the check at the end.
        if at >= size:
            return NOT_UNDERSTOOD
        begin = at
        code = data[at] & 0x7F
        flag = data[at] & FLAG_REF
        at += 1
        is_name = index == file_name
        ref = n_refs
        if flag:
            # These are no objects of their own: marshal counts no reference, and writes no flag.
            if code in (c"0", c"N", c"F", c"T", c"S", c".", c"r"):
                return NOT_UNDERSTOOD
            n_refs += 1
        if code == c"z" or code == c"Z" or code == c"s" or code == c"t" or code == c"u" or code == c"a" or code == c"A":
            if code == c"z" or code == c"Z":
                if at + 1 > size:
                    return NOT_UNDERSTOOD
                n_bytes, text = data[at], at + 1
            else:
                if at + 4 > size:
                    return NOT_UNDERSTOOD
                n_bytes, text = unsigned_at(data + at), at + 4
            at = text + n_bytes
            if at > size:
                return NOT_UNDERSTOOD
            if is_name:
                if code == c"s":
                    return NOT_UNDERSTOOD
                cut = 0
                for k in range(n_prefixes):
                    if (
                        n_bytes > prefixes[k].length + 1
                        and data[text + prefixes[k].length] == c"/"
                        and memcmp(data + text, prefixes[k].data, prefixes[k].length) == 0
                    ):
                        cut = prefixes[k].length + 1
                        break
                if flag:
                    if n_names == MOST_NAMES:
                        return NOT_UNDERSTOOD
                    names[n_names] = ref
                    replaced[n_names] = cut != 0
                    n_names += 1
                if cut:
                    n_bytes -= cut
                    text += cut
                    interned = code == c"t" or code == c"A" or code == c"Z"
                    code = c"t" if interned else c"u"
                    for k in range(n_bytes):
                        if data[text + k] >= 0x80:
                            break
                    else:
                        if n_bytes < 256:
                            code = c"Z" if interned else c"z"
                        else:
                            code = c"A" if interned else c"a"
                    item.offset, item.length, item.n_bytes, item.code = begin, text - begin, n_bytes, code | flag
                    if push(found, item) < 0:
                        return NO_MEMORY
        elif code == c"r":
            if at + 4 > size:
                return NOT_UNDERSTOOD
            if n_names or is_name:
                target = unsigned_at(data + at)
                known = False
                for k in range(n_names):
                    if names[k] == target:
                        known = True
                        if replaced[k] and not is_name:
                            return NOT_UNDERSTOOD
                        break
                if is_name and not known:
                    return NOT_UNDERSTOOD
            at += 4
        elif is_name:
            return NOT_UNDERSTOOD
        elif code == c"N" or code == c"F" or code == c"T" or code == c"S" or code == c".":
            pass
        elif code == c"i":
            at += 4
        elif code == c"I" or code == c"g":
            at += 8
        elif code == c"y":
            at += 16
        elif code == c"f":
            if at + 1 > size:
                return NOT_UNDERSTOOD
            at += 1 + data[at]
        elif code == c"x":
            if at + 1 > size:
                return NOT_UNDERSTOOD
            at += 1 + data[at]
            if at + 1 > size:
                return NOT_UNDERSTOOD
            at += 1 + data[at]
        elif code == c"l":
            if at + 4 > size:
                return NOT_UNDERSTOOD
            memcpy(&n_digits, data + at, 4)
            at += 4 + 2 * (<int64_t>n_digits if n_digits >= 0 else -<int64_t>n_digits)
        elif code == c"0":
            if kind != c"{":
                return NOT_UNDERSTOOD
            depth -= 1
        else:
            if code == c")":
                if at + 1 > size:
                    return NOT_UNDERSTOOD
                n_bytes = data[at]
                at += 1
            elif code == c"(" or code == c"[" or code == c"<" or code == c">":
                if at + 4 > size:
                    return NOT_UNDERSTOOD
                n_bytes = unsigned_at(data + at)
                at += 4
            elif code == c"{":
                n_bytes = size
            elif code == c":":
                n_bytes = 3
            elif code == c"c":
                at += n_numbers
                n_bytes = n_objects
            else:
                return NOT_UNDERSTOOD
            if n_bytes > size - at and code != c"{":
                return NOT_UNDERSTOOD
            depth += 1
            if depth >= DEEPEST:
                return NOT_UNDERSTOOD
            levels[depth].left, levels[depth].kind = n_bytes, code
        if at > size:
            return NOT_UNDERSTOOD
    if at != size:
        return NOT_UNDERSTOOD
    return found.count - before


def file_names(data, starts, lengths, prefixes):
    cdef const uint8_t[::1] view = memoryview(data).cast("B")
    cdef int64_t[::1] start_view = array("q", starts)
    cdef int64_t[::1] length_view = array("q", lengths)
    cdef Py_ssize_t n_files = start_view.shape[0], n_prefixes, k, j
    cdef Prefix needles[MOST_PREFIXES]
    cdef const uint8_t *bytes_
    cdef const uint8_t[::1] nothing = b"\0"
    if length_view.shape[0] != n_files:
        raise ValueError("starts and lengths differ in number")
    for k in range(n_files):
        if start_view[k] < 0 or length_view[k] < 0 or start_view[k] > view.shape[0] - length_view[k]:
            raise ValueError("a file lies outside of the data")
    kept = [bytes(prefix) for prefix in prefixes]
    n_prefixes = len(kept)
    if n_prefixes > MOST_PREFIXES:
        raise ValueError(f"at most {MOST_PREFIXES} prefixes")
    for k in range(n_prefixes):
        bytes_ = kept[k]
        needles[k].data = bytes_
        needles[k].length = len(kept[k])
    if not n_files:
        return []
    cdef const uint8_t *base = &view[0] if view.shape[0] else &nothing[0]
    cdef Found found = Found(NULL, 0, 0)
    cdef Level *levels = <Level *>malloc(DEEPEST * sizeof(Level))
    cdef int64_t *counts = <int64_t *>malloc(n_files * sizeof(int64_t))
    cdef int64_t at
    cdef Replaced *item
    try:
        if levels == NULL or counts == NULL:
            raise MemoryError
        with nogil:
            for k in range(n_files):
                at = found.count
                counts[k] = walk(base + start_view[k], length_view[k], needles, n_prefixes, levels, &found)
                if counts[k] == NO_MEMORY:
                    break
                if counts[k] < 0:
                    found.count = at
        result = []
        at = 0
        for k in range(n_files):
            if counts[k] == NO_MEMORY:
                raise MemoryError
            if counts[k] < 0:
                result.append(None)
                continue
            rows = []
            for j in range(counts[k]):
                item = &found.items[at + j]
                width = 1 if item.code & 0x7F in b"zZ" else 4
                head = bytes([item.code]) + int(item.n_bytes).to_bytes(width, "little")
                rows.append((item.offset, item.length, head))
            at += counts[k]
            result.append(tuple(rows))
        return result
    finally:
        free(levels)
        free(counts)
        free(found.items)


cdef inline uint64_t rotated(uint64_t value, int n_bits) noexcept nogil:
    return value << n_bits | value >> (64 - n_bits)


cdef inline void mix(uint64_t *v) noexcept nogil:
    v[0] += v[1]
    v[2] += v[3]
    v[1] = rotated(v[1], 13) ^ v[0]
    v[3] = rotated(v[3], 16) ^ v[2]
    v[0] = rotated(v[0], 32)
    v[2] += v[1]
    v[0] += v[3]
    v[1] = rotated(v[1], 17) ^ v[2]
    v[3] = rotated(v[3], 21) ^ v[0]
    v[2] = rotated(v[2], 32)


cdef uint64_t sip_hash(uint64_t key, const uint8_t *data, int64_t size, int rounds) noexcept nogil:
    cdef uint64_t[4] v
    cdef uint64_t word
    cdef int64_t at = 0
    cdef int _k
    v[0] = <uint64_t>0x736F6D6570736575 ^ key
    v[1] = <uint64_t>0x646F72616E646F6D
    v[2] = <uint64_t>0x6C7967656E657261 ^ key
    v[3] = <uint64_t>0x7465646279746573
    while True:
        word = 0
        if size - at >= 8:
            memcpy(&word, data + at, 8)
        else:
            memcpy(&word, data + at, size - at)
            word |= <uint64_t>(size & 0xFF) << 56
        v[3] ^= word
        for _k in range(rounds):
            mix(v)
        v[0] ^= word
        if size - at < 8:
            break
        at += 8
    v[2] ^= 0xFF
    for _k in range(rounds + 2):
        mix(v)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


def source_hashes(data, starts, lengths, magics):
    cdef const uint8_t[::1] view = memoryview(data).cast("B")
    cdef const int64_t[::1] start_view = array("q", starts)
    cdef const int64_t[::1] length_view = array("q", lengths)
    cdef const int64_t[::1] magic_view = array("q", magics)
    cdef Py_ssize_t n_files = start_view.shape[0], k
    cdef uint64_t value
    if length_view.shape[0] != n_files or magic_view.shape[0] != n_files:
        raise ValueError("starts, lengths and magics differ in number")
    for k in range(n_files):
        if start_view[k] < 0 or length_view[k] < 0 or start_view[k] > view.shape[0] - length_view[k]:
            raise ValueError("a file lies outside of the data")
        if not 0 <= magic_view[k] < 65536 or not KNOWN[magic_view[k]]:
            raise KeyError(magic_view[k])
    out = bytearray(8 * n_files)
    cdef uint8_t[::1] out_view = out
    cdef const uint8_t[::1] nothing = b"\0"
    cdef const uint8_t *base = &view[0] if view.shape[0] else &nothing[0]
    with nogil:
        for k in range(n_files):
            # Behind the magic number stands CR LF.
            value = sip_hash(
                <uint64_t>magic_view[k] | <uint64_t>0x0A0D << 16, base + start_view[k], length_view[k],
                1 if KNOWN[magic_view[k]] == 2 else 2,
            )
            memcpy(&out_view[8 * k], &value, 8)
    return bytes(out)

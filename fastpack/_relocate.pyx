# cython: language_level=3
"""The kernels of relocation: find, patch and un-patch over buffers. Contracts stand in ``_relocate_py.py``, the twin.

Validation happens in the `def` functions with the GIL, the loops run without it. No threads are started here.
"""

from cpython.bytearray cimport PyByteArray_AS_STRING
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memchr, memcmp, memcpy, memmove, memset

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <string.h>
    extern void *memmem(const void *, size_t, const void *, size_t);
    static const char RAREST[] = "zjQVkqwWJ7OvgKRUGxCyhFm536Y2PMB4TXsd98uNicpn1alrobSe";
    """
    const char RAREST[]
    void *memmem(const void *, size_t, const void *, size_t) noexcept nogil

cdef struct Needle:
    const uint8_t *data
    size_t length
    int64_t anchor  # where in it the one byte lies that is sought; -1: all of it is

cdef struct Hit:
    int64_t offset
    int64_t index

cdef struct Hits:
    Hit *items
    size_t count
    size_t capacity

cdef enum:
    MAX_NEEDLES = 256  # some twenty prefixes in five spellings, and room


cdef int hits_push(Hits *hits, int64_t offset, int64_t index) noexcept nogil:
    cdef size_t capacity
    cdef Hit *items
    if hits.count == hits.capacity:
        capacity = hits.capacity * 2 if hits.capacity else 16
        items = <Hit *>realloc(hits.items, capacity * sizeof(Hit))
        if items == NULL:
            return -1
        hits.items = items
        hits.capacity = capacity
    hits.items[hits.count].offset = offset
    hits.items[hits.count].index = index
    hits.count += 1
    return 0


cdef const uint8_t *search(const uint8_t *data, size_t size, const Needle *needle) noexcept nogil:
    """The first place of a needle, or NULL."""
    cdef const uint8_t *end = data + size
    cdef const uint8_t *found
    if needle.anchor < 0:
        return <const uint8_t *>memmem(data, size, needle.data, needle.length)
    while <size_t>(end - data) >= needle.length:
        found = <const uint8_t *>memchr(
            data + needle.anchor, needle.data[needle.anchor], <size_t>(end - data) - needle.length + 1)
        if found == NULL:
            return NULL
        found -= needle.anchor
        if memcmp(found, needle.data, needle.length) == 0:
            return found
        data = found + 1
    return NULL


cdef void choose_anchor(Needle *needle) noexcept nogil:
    """Of a needle with two NULs in a row (UTF-32) the rarest character is sought, by libraries of a GPU environment.

    glibc's `memmem` goes on by the distance of two bytes from the needle's end, if it has them: by one in a run of
    zeros, with such a needle. 1 GB of zeros took 8 s with two of these, where a search for one byte takes 0.3.
    """
    cdef size_t i
    cdef const uint8_t *rank
    cdef const uint8_t *best = NULL
    needle.anchor = -1
    if memmem(needle.data, needle.length, b"\0\0", 2) == NULL:
        return
    for i in range(needle.length):
        rank = <const uint8_t *>memchr(RAREST, needle.data[i], sizeof(RAREST) - 1)
        if rank != NULL and (best == NULL or rank < best):
            best = rank
            needle.anchor = <int64_t>i


cdef int find_all(const uint8_t *data, size_t size, const Needle *needles, size_t n_needles, Hits *hits) noexcept nogil:
    """All hits, leftmost first; at one place the needle of the lowest index. -1 when memory is out."""
    cdef const uint8_t *upcoming[MAX_NEEDLES]
    cdef const uint8_t *end = data + size
    cdef const uint8_t *position = data
    cdef const uint8_t *best
    cdef size_t i, chosen
    for i in range(n_needles):
        upcoming[i] = search(data, size, &needles[i])
    while True:
        best = NULL
        chosen = 0
        for i in range(n_needles):
            if upcoming[i] != NULL and upcoming[i] < position:
                upcoming[i] = search(position, <size_t>(end - position), &needles[i])
            if upcoming[i] != NULL and (best == NULL or upcoming[i] < best):
                best = upcoming[i]
                chosen = i
        if best == NULL:
            return 0
        if hits_push(hits, best - data, <int64_t>chosen) < 0:
            return -1
        position = best + needles[chosen].length


cdef size_t read_needles(object needles, Needle *out) except? 0:
    cdef const uint8_t[::1] view
    cdef size_t count = 0
    if len(needles) > MAX_NEEDLES:
        raise ValueError(f"more than {MAX_NEEDLES} needles")
    for needle in needles:
        view = needle
        if view.shape[0] == 0:
            raise ValueError("an empty needle")
        out[count].data = &view[0]
        out[count].length = <size_t>view.shape[0]
        choose_anchor(&out[count])
        count += 1
    return count


cdef list hits_as_list(const Hits *hits):
    cdef size_t i
    return [(hits.items[i].offset, hits.items[i].index) for i in range(hits.count)]


cdef inline bint is_letter(uint8_t c) noexcept nogil:
    return (c >= 97 and c <= 122) or (c >= 65 and c <= 90)


cdef inline bint is_component(uint8_t c) noexcept nogil:
    # _ - . + ~ %
    return (is_letter(c) or (c >= 48 and c <= 57) or c >= 128
            or c == 95 or c == 45 or c == 46 or c == 43 or c == 126 or c == 37)


cdef inline bint is_escape(uint8_t c) noexcept nogil:
    # a b f n r t v 0
    return c == 97 or c == 98 or c == 102 or c == 110 or c == 114 or c == 116 or c == 118 or c == 48


cdef bint is_mark(const uint8_t *data, int64_t size, int64_t start) noexcept nogil:
    cdef uint8_t first, second, third
    if start < 0 or start + 3 > size:
        return False
    first = data[start]
    second = data[start + 1]
    third = data[start + 2]
    if (second == 0x80 or second == 0x81) and (first == 0xE2 or first == 0xE3):
        return third >= 0x80 and third <= 0xBF and (first == 0xE2 or second == 0x80)
    if first == 0xEF and second == 0xBC:
        return (third >= 0x81 and third <= 0x8F) or (third >= 0x9A and third <= 0xA0)
    return first == 0xEF and second == 0xBB and third == 0xBF


cdef bint left_boundary(const uint8_t *data, int64_t start) noexcept nogil:
    cdef int64_t end = start
    cdef int64_t first
    cdef uint8_t before
    while end > 0 and data[end - 1] == 0x2F:
        end -= 1
    if end == 0:
        return True
    before = data[end - 1]
    if before >= 128 and is_mark(data, end, end - 3):
        return True
    if end >= 7 and memcmp(data + end - 7, b"DESTDIR", 7) == 0:
        return True
    if before == 125 or before == 41:
        return end >= 8 and memcmp(data + end - 8, b"DESTDIR", 7) == 0
    if not is_component(before):
        return True
    if not is_letter(before):
        return before == 0x30 and end >= 2 and data[end - 2] == 0x5C
    if end >= 2 and data[end - 2] == 0x5C and is_escape(before):
        return True
    first = end - 1
    while first >= 0 and is_letter(data[first]) and end - first <= 12:
        first -= 1
    return first >= 0 and data[first] == 0x2D and (first == 0 or not is_component(data[first - 1]))


cdef bint right_boundary(const uint8_t *data, int64_t size, int64_t stop) noexcept nogil:
    cdef uint8_t after, following
    if stop >= size:
        return True
    after = data[stop]
    if after == 0x2E:
        if stop + 1 >= size:
            return True
        following = data[stop + 1]
        return (following == 32 or following == 9 or following == 13 or following == 10
                or following == 34 or following == 39)
    if after >= 128:
        return is_mark(data, size, stop)
    return not is_component(after) and after != 0x24


def find(const uint8_t[::1] buffer, needles):
    cdef Needle table[MAX_NEEDLES]
    cdef size_t count = read_needles(needles, table)
    cdef Hits hits = Hits(NULL, 0, 0)
    cdef const uint8_t *data
    cdef size_t size = <size_t>buffer.shape[0]
    cdef int status
    if count == 0 or size == 0:
        return []
    data = &buffer[0]
    try:
        with nogil:
            status = find_all(data, size, table, count, &hits)
        if status < 0:
            raise MemoryError
        return hits_as_list(&hits)
    finally:
        free(hits.items)


def find_any(const uint8_t[::1] buffer, const int64_t[::1] starts, const int64_t[::1] lengths, needles):
    cdef Needle table[MAX_NEEDLES]
    cdef size_t count = read_needles(needles, table)
    cdef size_t n_pieces = <size_t>starts.shape[0]
    cdef size_t i, k
    cdef const uint8_t *data
    cdef uint8_t *flags
    if <size_t>lengths.shape[0] != n_pieces:
        raise ValueError("tables of different lengths")
    for i in range(n_pieces):
        if lengths[i] < 0 or starts[i] < 0 or lengths[i] > buffer.shape[0] or starts[i] > buffer.shape[0] - lengths[i]:
            raise ValueError("a piece lies outside of the buffer")
    found = bytearray(n_pieces)
    if count == 0 or n_pieces == 0 or buffer.shape[0] == 0:
        return found
    data = &buffer[0]
    flags = <uint8_t *>PyByteArray_AS_STRING(found)
    with nogil:
        for i in range(n_pieces):
            for k in range(count):
                if search(data + starts[i], <size_t>lengths[i], &table[k]) != NULL:
                    flags[i] = 1
                    break
    return found


def find_text(const uint8_t[::1] buffer, needles):
    cdef Needle table[MAX_NEEDLES]
    cdef size_t count = read_needles(needles, table)
    cdef Hits hits = Hits(NULL, 0, 0)
    cdef const uint8_t *data
    cdef size_t size = <size_t>buffer.shape[0]
    cdef size_t i, kept = 0
    cdef int status
    if count == 0 or size == 0:
        return []
    data = &buffer[0]
    try:
        with nogil:
            status = find_all(data, size, table, count, &hits)
            if status == 0:
                for i in range(hits.count):
                    if (left_boundary(data, hits.items[i].offset)
                            and right_boundary(data, <int64_t>size, hits.items[i].offset
                                               + <int64_t>table[hits.items[i].index].length)):
                        hits.items[kept] = hits.items[i]
                        kept += 1
                hits.count = kept
        if status < 0:
            raise MemoryError
        return hits_as_list(&hits)
    finally:
        free(hits.items)


def scan_strings(const uint8_t[::1] buffer, needles, int64_t slot, bint final):
    cdef Needle table[MAX_NEEDLES]
    cdef size_t count = read_needles(needles, table)
    cdef Hits hits = Hits(NULL, 0, 0)
    cdef const uint8_t *data
    cdef const void *nul
    cdef int64_t size = buffer.shape[0]
    cdef int64_t start, end, needed, padding, longest = 1, last = 0
    cdef size_t position = 0, first, i
    cdef int status
    cdef list strings = []
    if count == 0 or size == 0:
        return strings, size if final else 0
    data = &buffer[0]
    for i in range(count):
        longest = max(longest, <int64_t>table[i].length)
    try:
        with nogil:
            status = find_all(data, <size_t>size, table, count, &hits)
        if status < 0:
            raise MemoryError
        while position < hits.count:
            start = hits.items[position].offset
            nul = memchr(data + start, 0, <size_t>(size - start))
            end = size if nul == NULL else <const uint8_t *>nul - data
            if end == size and not final:
                return strings, start
            first = position
            needed = 0
            while position < hits.count and hits.items[position].offset < end:
                needed += max(<int64_t>0, slot - <int64_t>table[hits.items[position].index].length)
                position += 1
            padding = 0
            while padding < needed and end + padding < size and data[end + padding] == 0:
                padding += 1
            if padding < needed and end + padding == size and not final:
                return strings, start
            strings.append((start, end, padding,
                            [(hits.items[i].offset, hits.items[i].index) for i in range(first, position)]))
            last = end
    finally:
        free(hits.items)
    if final:
        return strings, size
    return strings, max(last, size - longest + 1, <int64_t>0)


cdef struct String:
    int64_t offset
    int64_t length
    size_t first   # index of its first hit
    size_t count


cdef bint lies_well(int64_t size, const String *string, const int64_t *hits, int64_t slot) noexcept nogil:
    cdef int64_t position = string.offset
    cdef size_t k
    if (string.count == 0 or hits[string.first] != string.offset or string.offset < 0 or string.length < 0
            or string.offset > size or string.length > size - string.offset):
        return False
    for k in range(string.first, string.first + string.count):
        if hits[k] < position or hits[k] > size:
            return False
        position = hits[k] + slot
    return position <= string.offset + string.length


cdef bint holds_nul(const uint8_t *data, int64_t length, int64_t width) noexcept nogil:
    cdef int64_t at = 0
    cdef uint32_t nul = 0
    if width == 1:
        return memchr(data, 0, <size_t>length) != NULL
    while at + width <= length:
        if memcmp(data + at, &nul, <size_t>width) == 0:
            return True
        at += width
    return False


cdef int64_t place_all(uint8_t *data, int64_t size, const String *strings, size_t count, const int64_t *hits,
                       const uint8_t *old, int64_t n_old, const uint8_t *new, int64_t n_new,
                       int64_t width) noexcept nogil:
    cdef size_t i, k
    cdef int64_t source, target, following
    for i in range(count):
        if not lies_well(size, &strings[i], hits, n_old):
            return strings[i].offset
        if holds_nul(data + strings[i].offset, strings[i].length, width):
            return strings[i].offset
        for k in range(strings[i].first, strings[i].first + strings[i].count):
            if memcmp(data + hits[k], old, <size_t>n_old) != 0:
                return strings[i].offset
    for i in range(count):
        target = strings[i].offset
        for k in range(strings[i].first, strings[i].first + strings[i].count):
            source = hits[k] + n_old
            following = strings[i].offset + strings[i].length
            if k + 1 < strings[i].first + strings[i].count:
                following = hits[k + 1]
            memcpy(data + target, new, <size_t>n_new)
            target += n_new
            memmove(data + target, data + source, <size_t>(following - source))
            target += following - source
        memset(data + target, 0, <size_t>(strings[i].offset + strings[i].length - target))
    return -1


cdef int64_t restore_all(uint8_t *data, int64_t size, const String *strings, size_t count, const int64_t *hits,
                         const uint8_t *old, int64_t n_old, const uint8_t *new, int64_t n_new,
                         int64_t width) noexcept nogil:
    cdef size_t i, k
    cdef int64_t gap = n_old - n_new
    cdef int64_t used, place, j, end, following
    for i in range(count):
        if not lies_well(size, &strings[i], hits, n_old):
            return strings[i].offset
        used = strings[i].length - gap * <int64_t>strings[i].count
        if used < 0 or holds_nul(data + strings[i].offset, used, width):
            return strings[i].offset
        for j in range(strings[i].offset + used, strings[i].offset + strings[i].length):
            if data[j] != 0:
                return strings[i].offset
        for k in range(strings[i].count):
            place = hits[strings[i].first + k] - gap * <int64_t>k
            if memcmp(data + place, new, <size_t>n_new) != 0:
                return strings[i].offset
    for i in range(count):
        # From the last hit back: what follows it moves right before anything is written there.
        end = strings[i].offset + strings[i].length
        k = strings[i].count
        while k > 0:
            k -= 1
            place = hits[strings[i].first + k] - gap * <int64_t>k
            following = hits[strings[i].first + k] + n_old
            memmove(data + following, data + place + n_new, <size_t>(end - following))
            memcpy(data + hits[strings[i].first + k], old, <size_t>n_old)
            end = hits[strings[i].first + k]
    return -1


cdef int64_t over_strings(uint8_t[::1] buffer, strings, const uint8_t[::1] old, const uint8_t[::1] new,
                          int64_t width, bint restore) except? -2:
    cdef size_t count = len(strings)
    cdef size_t n_hits = 0, i, filled = 0
    cdef String *table
    cdef int64_t *hits
    cdef int64_t size = buffer.shape[0]
    cdef int64_t n_old = old.shape[0], n_new = new.shape[0]
    cdef uint8_t *data
    cdef const uint8_t *old_data
    cdef const uint8_t *new_data
    cdef int64_t result
    cdef uint8_t nothing = 0
    if n_new > n_old:
        raise ValueError("the new prefix is longer than the slot")
    if width not in (1, 2, 4):
        raise ValueError(f"a character of {width} bytes")
    if count == 0:
        return -1
    for string in strings:
        n_hits += len(string[2])
    table = <String *>malloc(count * sizeof(String))
    hits = <int64_t *>malloc((n_hits + 1) * sizeof(int64_t))
    try:
        if table == NULL or hits == NULL:
            raise MemoryError
        for i in range(count):
            offset, length, places = strings[i]
            table[i].offset = offset
            table[i].length = length
            table[i].first = filled
            table[i].count = len(places)
            for place in places:
                hits[filled] = place
                filled += 1
        data = &buffer[0] if size else &nothing
        old_data = &old[0] if n_old else &nothing
        new_data = &new[0] if n_new else &nothing
        with nogil:
            if restore:
                result = restore_all(data, size, table, count, hits, old_data, n_old, new_data, n_new, width)
            else:
                result = place_all(data, size, table, count, hits, old_data, n_old, new_data, n_new, width)
        return result
    finally:
        free(hits)
        free(table)


def place_strings(uint8_t[::1] buffer, strings, const uint8_t[::1] old, const uint8_t[::1] new, int64_t width=1):
    return over_strings(buffer, strings, old, new, width, False)


def restore_strings(uint8_t[::1] buffer, strings, const uint8_t[::1] old, const uint8_t[::1] new, int64_t width=1):
    return over_strings(buffer, strings, old, new, width, True)

"""What a ``.pyc`` file says of its source, made independent of place and time: the stdlib twin of ``_marshal.pyx``.

A code object carries ``co_filename``, the path of its source when it was compiled. It is a length-prefixed string of
the marshal format, so its bytes may change length but never shift like a C string's. Python puts the true name back
when it imports the module (``_imp._fix_co_filename``), so a name below the prefix is cut down to the way from there.

The format is that of CPython's ``Python/marshal.c``, the layout of code objects that of ``w_object`` there.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

#: Magic numbers of CPython's releases -> whether code objects are laid out as from 3.11 on. Pre-releases are not known.
MAGICS = {3413: False, 3425: False, 3439: False, 3495: True, 3531: True, 3571: True, 3627: True}
#: Bytes of a header (PEP 552).
HEADER = 16
#: How deep objects may lie in one another: marshal's own limit.
_DEEPEST = 2000
#: Strings that a file may refer to as a file name more than once. One is usual.
_MOST_NAMES = 64
#: Objects of a code object, the one that is its file name, and the bytes of numbers before the first of them.
_OLD, _NEW = (9, 6, 24), (10, 5, 20)
#: The line number stands before this object.
_AFTER_LINE = 8

_FLAG_REF = 0x80
_SIZES = {ord(c): 0 for c in "0NFTS."} | {ord("i"): 4, ord("I"): 8, ord("g"): 8, ord("y"): 16, ord("r"): 4}
_LONG_STRINGS, _SHORT_STRINGS = frozenset(b"stuaA"), frozenset(b"zZ")
_TEXTS = frozenset(b"utaAzZ")
_INTERNED = frozenset(b"tAZ")
#: No objects of their own: marshal counts no reference to them, and writes no flag.
_NO_OBJECTS = frozenset(b"0NFTS.r")

#: Bytes at an offset of a file, how many of them are replaced, and by what.
Replacement = tuple[int, int, bytes]


def file_names(
    data: bytes | bytearray | memoryview, starts: Sequence[int], lengths: Sequence[int], prefixes: Sequence[bytes]
) -> list[tuple[Replacement, ...] | None]:
    """What has to be replaced in each of many ``.pyc`` files so that no ``co_filename`` lies below a prefix.

    Parameters
    ----------
    data : the files' bytes.
    starts, lengths : where each lies in `data`, in bytes.
    prefixes : without a slash at the end, longest first, as marshal writes text (UTF-8, lone surrogates passed).

    Returns
    -------
    For each file its replacements in order, by offset from its own start; None for one that was compiled by another
    Python than the releases from 3.8 to 3.14, or that is not understood.
    """
    if len(starts) != len(lengths):
        raise ValueError("starts and lengths differ in number")
    view = memoryview(data).cast("B")
    found: list[tuple[Replacement, ...] | None] = []
    for start, length in zip(starts, lengths, strict=True):
        if start < 0 or length < 0 or start + length > len(view):
            raise ValueError("a file lies outside of the data")
        try:
            found.append(_walk(bytes(view[start : start + length]), prefixes))
        except (_NotUnderstoodError, struct.error, IndexError):
            found.append(None)
    return found


def source_hashes(
    data: bytes | bytearray | memoryview, starts: Sequence[int], lengths: Sequence[int], magics: Sequence[int]
) -> bytes:
    """What hash-based ``.pyc`` files state of their sources (PEP 552): ``_imp.source_hash`` of each, 8 bytes.

    SipHash under the magic number (pyhash.c, ``_Py_KeyedHash``): SipHash-2-4 up to CPython 3.10, then SipHash-1-3.

    Parameters
    ----------
    data : the sources' bytes.
    starts, lengths : where each lies in `data`, in bytes.
    magics : the first two bytes of each source's ``.pyc``, as a number: one of `MAGICS`.
    """
    if not len(starts) == len(lengths) == len(magics):
        raise ValueError("starts, lengths and magics differ in number")
    view = memoryview(data).cast("B")
    out = []
    for start, length, magic in zip(starts, lengths, magics, strict=True):
        if start < 0 or length < 0 or start + length > len(view):
            raise ValueError("a file lies outside of the data")
        key = magic | int.from_bytes(b"\r\n", "little") << 16
        out.append(_sip_hash(key, bytes(view[start : start + length]), 1 if MAGICS[magic] else 2))
    return b"".join(out)


_MASK = (1 << 64) - 1


def _sip_hash(key: int, data: bytes, rounds: int) -> bytes:
    """SipHash-1-3 or SipHash-2-4 (Aumasson and Bernstein, 2012) under a key of 64 bits and 64 zeros."""
    v0, v1, v2, v3 = 0x736F6D6570736575 ^ key, 0x646F72616E646F6D, 0x6C7967656E657261 ^ key, 0x7465646279746573

    def mixed(v0: int, v1: int, v2: int, v3: int) -> tuple[int, int, int, int]:
        v0, v2 = v0 + v1 & _MASK, v2 + v3 & _MASK
        v1, v3 = (v1 << 13 | v1 >> 51) & _MASK ^ v0, (v3 << 16 | v3 >> 48) & _MASK ^ v2
        v0 = v0 << 32 & _MASK | v0 >> 32
        v2, v0 = v2 + v1 & _MASK, v0 + v3 & _MASK
        v1, v3 = (v1 << 17 | v1 >> 47) & _MASK ^ v2, (v3 << 21 | v3 >> 43) & _MASK ^ v0
        return v0, v1, v2 << 32 & _MASK | v2 >> 32, v3

    last = data[len(data) & ~7 :].ljust(7, b"\0") + bytes([len(data) & 0xFF])
    for (word,) in struct.iter_unpack("<Q", data[: len(data) & ~7] + last):
        v3 ^= word
        for _ in range(rounds):
            v0, v1, v2, v3 = mixed(v0, v1, v2, v3)
        v0 ^= word
    v2 ^= 0xFF
    for _ in range(rounds + 2):
        v0, v1, v2, v3 = mixed(v0, v1, v2, v3)
    return struct.pack("<Q", v0 ^ v1 ^ v2 ^ v3)


class _NotUnderstoodError(Exception):
    """The file is not what a known CPython writes."""


def _walk(data: bytes, prefixes: Sequence[bytes]) -> tuple[Replacement, ...]:
    if len(data) < HEADER or data[2:4] != b"\r\n":
        raise _NotUnderstoodError
    layout = MAGICS.get(int.from_bytes(data[:2], "little"))
    if layout is None:
        raise _NotUnderstoodError
    n_objects, file_name, n_numbers = _NEW if layout else _OLD
    replaced: list[Replacement] = []
    n_refs = 0
    names: dict[int, bool] = {}  # reference to a string that is a file name -> whether it is replaced
    at = HEADER
    # Objects still to come at each depth, and of what: a "c"ode object, a dict, or anything else.
    levels = [(1, 0)]
    while levels:
        left, kind = levels.pop()
        if not left:
            continue
        levels.append((left - 1, kind))
        index = n_objects - left if kind == ord("c") else -1
        if index == _AFTER_LINE:
            at += 4
        begin = at
        first = data[at]
        flag, code = first & _FLAG_REF, first & ~_FLAG_REF
        at += 1
        is_name = index == file_name
        if is_name and code not in _TEXTS and code != ord("r"):
            raise _NotUnderstoodError
        ref = n_refs
        if flag and code in _NO_OBJECTS:
            raise _NotUnderstoodError
        n_refs += bool(flag)
        opened = 0
        if code in _SIZES:
            if code == ord("r"):
                (target,) = struct.unpack_from("<I", data, at)
                if (names.get(target, False) and not is_name) or (is_name and target not in names):
                    raise _NotUnderstoodError
            elif code == ord("0"):
                if kind != ord("{"):
                    raise _NotUnderstoodError
                levels.pop()
            at += _SIZES[code]
        elif code == ord("f"):
            at += 1 + data[at]
        elif code == ord("x"):
            at += 1 + data[at]
            at += 1 + data[at]
        elif code == ord("l"):
            (n_digits,) = struct.unpack_from("<i", data, at)
            at += 4 + 2 * abs(n_digits)
        elif code in _LONG_STRINGS or code in _SHORT_STRINGS:
            n_bytes, text = (data[at], at + 1) if code in _SHORT_STRINGS else (_unsigned(data, at), at + 4)
            at = text + n_bytes
            if is_name:
                rest = _below(data[text:at], prefixes)
                if flag:
                    if len(names) == _MOST_NAMES:
                        raise _NotUnderstoodError
                    names[ref] = rest is not None
                if rest is not None:
                    replaced.append((begin, at - len(rest) - begin, _string_head(code, flag, rest)))
        elif code in b")([<>":
            opened, at = (data[at], at + 1) if code == ord(")") else (_unsigned(data, at), at + 4)
            if opened > len(data) - at:
                raise _NotUnderstoodError
            levels.append((opened, code))
        elif code == ord("{"):
            levels.append((len(data), code))
        elif code == ord(":"):
            levels.append((3, code))
        elif code == ord("c"):
            at += n_numbers
            levels.append((n_objects, code))
        else:
            raise _NotUnderstoodError
        if at > len(data) or len(levels) > _DEEPEST:
            raise _NotUnderstoodError
    if at != len(data):
        raise _NotUnderstoodError
    return tuple(replaced)


def _unsigned(data: bytes, at: int) -> int:
    (value,) = struct.unpack_from("<I", data, at)
    return int(value)


def _below(name: bytes, prefixes: Sequence[bytes]) -> bytes | None:
    """What follows a prefix and its slash in a name; None if it lies elsewhere, or nothing follows."""
    for prefix in prefixes:
        if name.startswith(prefix + b"/") and len(name) > len(prefix) + 1:
            return name[len(prefix) + 1 :]
    return None


def _string_head(code: int, flag: int, text: bytes) -> bytes:
    """Type and length of a string as marshal writes it: interned stays so, ASCII up to 255 bytes is short."""
    interned = code in _INTERNED
    if not text.isascii():
        return bytes([ord("t" if interned else "u") | flag]) + struct.pack("<I", len(text))
    if len(text) < 256:
        return bytes([ord("Z" if interned else "z") | flag, len(text)])
    return bytes([ord("A" if interned else "a") | flag]) + struct.pack("<I", len(text))

"""The kernels of relocation in plain Python: twin of ``_relocate.pyx``.

They know bytes and offsets, nothing of conda. They are the oracle of the native core in the tests, the fallback where
it is missing (``FASTPACK_PURE=1`` forces it), and part of the text of ``bin/conda-unpack``: so only the standard
library, and nothing newer than Python 3.8.
"""

from __future__ import annotations

import re
from typing import Any, Sequence

#: ASCII letters, digits and the marks that may continue a path's component. A byte from 128 on is part of a UTF-8 or
#: Latin-1 letter, so it continues one too.
_COMPONENT = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.+~%") | frozenset(
    range(128, 256)
)
_LETTER = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_ESCAPE = frozenset(b"abfnrtv0")
_OPTION_LENGTH = 12


def find(buffer: Any, needles: Sequence[bytes]) -> list[tuple[int, int]]:
    """Find all occurrences of several needles in a buffer.

    Parameters
    ----------
    buffer : bytes-like.
    needles : sequence of non-empty bytes. Where two begin at one place the earlier in the sequence wins, so pass the
        longest first.

    Returns
    -------
    list of (offset, index of the needle), leftmost first, not overlapping.
    """
    for needle in needles:
        if not needle:
            raise ValueError("an empty needle")
    if not needles:
        return []
    if len(needles) == 1:
        needle, position = needles[0], 0
        hits: list[tuple[int, int]] = []
        data = buffer if isinstance(buffer, (bytes, bytearray)) else bytes(buffer)
        while True:
            position = data.find(needle, position)
            if position < 0:
                return hits
            hits.append((position, 0))
            position += len(needle)
    groups = b"|".join(b"(" + re.escape(bytes(needle)) + b")" for needle in needles)
    return [(m.start(), (m.lastindex or 1) - 1) for m in re.finditer(groups, buffer)]


def find_any(buffer: Any, starts: Sequence[int], lengths: Sequence[int], needles: Sequence[bytes]) -> bytearray:
    """For each piece of a buffer, 1 if any needle occurs in it, else 0.

    Parameters
    ----------
    starts, lengths : of the pieces, in bytes; for the native kernel buffers of 64-bit integers.
    """
    view = memoryview(buffer)
    if len(starts) != len(lengths):
        raise ValueError("tables of different lengths")
    found = bytearray(len(starts))
    for index in range(len(starts)):
        start, length = starts[index], lengths[index]
        if not 0 <= start <= len(view) - length or length < 0:
            raise ValueError("a piece lies outside of the buffer")
        piece = bytes(view[start : start + length])
        found[index] = any(needle in piece for needle in needles)
    return found


def _left_boundary(data: Any, start: int) -> bool:
    """Whether a path may begin at `start`: see `find_text`."""
    end = start
    while end > 0 and data[end - 1] == 0x2F:  # slashes doubled, or those of file://
        end -= 1
    if end == 0:
        return True
    before = data[end - 1]
    if before >= 128 and _is_mark(data, end - 3):
        return True
    if bytes(data[max(0, end - 7) : end]) == b"DESTDIR":
        return True
    if before in b"})":
        return bytes(data[max(0, end - 8) : end - 1]) == b"DESTDIR"
    if before not in _COMPONENT:
        return True
    if before not in _LETTER:
        return before == 0x30 and end >= 2 and data[end - 2] == 0x5C  # \0
    if end >= 2 and data[end - 2] == 0x5C and before in _ESCAPE:
        return True
    first = end - 1
    while first >= 0 and data[first] in _LETTER and end - first <= _OPTION_LENGTH:
        first -= 1
    return first >= 0 and data[first] == 0x2D and (first == 0 or data[first - 1] not in _COMPONENT)


def _right_boundary(data: Any, stop: int) -> bool:
    """Whether a path's component may end at `stop`: see `find_text`."""
    if stop >= len(data):
        return True
    after = data[stop]
    if after == 0x2E:  # a full stop ends a sentence, or begins a suffix
        return stop + 1 >= len(data) or data[stop + 1] in b" \t\r\n\"'"
    if after >= 128:
        return _is_mark(data, stop)
    return after not in _COMPONENT and after != 0x24


def _is_mark(data: Any, start: int) -> bool:
    """Whether three bytes are a mark in UTF-8 that continues no name: general and CJK punctuation (quotation marks,
    ideographic comma and full stop), full-width marks up to ``／`` and from ``：`` to ``＠``, a byte order mark.
    """
    if start < 0 or start + 3 > len(data):
        return False
    first, second, third = data[start], data[start + 1], data[start + 2]
    if second in (0x80, 0x81) and first in (0xE2, 0xE3):
        return bool(0x80 <= third <= 0xBF and (first == 0xE2 or second == 0x80))
    if first == 0xEF and second == 0xBC:
        return bool(0x81 <= third <= 0x8F or 0x9A <= third <= 0xA0)
    return bool(first == 0xEF and second == 0xBB and third == 0xBF)


def find_text(buffer: Any, needles: Sequence[bytes]) -> list[tuple[int, int]]:
    """As `find`, but only where the needle is a path of its own (DESIGN section 5, row 8).

    ``/opt/env`` is found in ``"/opt/env/lib"``, ``file:///opt/env``, ``-I/opt/env/include``, ``$(DESTDIR)/opt/env``
    and behind an escape as in ``\\n/opt/env``; not in ``/opt/env2``, ``/opt/env.bak``, ``/mnt/opt/env`` nor
    ``${HOME}/opt/env``.
    """
    return [
        (offset, index)
        for offset, index in find(buffer, needles)
        if _left_boundary(buffer, offset) and _right_boundary(buffer, offset + len(needles[index]))
    ]


def scan_strings(
    buffer: Any, needles: Sequence[bytes], slot: int, final: bool
) -> tuple[list[tuple[int, int, int, list[tuple[int, int]]]], int]:
    """Find the C strings that hold a needle, in one window of a file.

    Parameters
    ----------
    buffer : the window.
    needles : as for `find`.
    slot : bytes that each needle's place had before it was shortened (the placeholder's length).
    final : whether the window's end is the end of the file, which ends a string as a NUL does.

    Returns
    -------
    strings : list of (start, end, padding, hits): the first hit's offset, the offset of the terminating NUL, how many
        NULs stand there, counted up to the number that was padded (the sum of slot - len(needle) over the hits), and
        the hits as `find` gives them.
    resume : where the next window must begin, so that nothing at the edge is lost.
    """
    size = len(buffer)
    hits = find(buffer, needles)
    data = buffer if isinstance(buffer, (bytes, bytearray)) else bytes(buffer)
    strings: list[tuple[int, int, int, list[tuple[int, int]]]] = []
    position = 0
    while position < len(hits):
        start = hits[position][0]
        end = data.find(b"\0", start)
        if end < 0:
            end = size
        if end == size and not final:
            return strings, start
        first = position
        while position < len(hits) and hits[position][0] < end:
            position += 1
        needed = sum(max(0, slot - len(needles[index])) for _, index in hits[first:position])
        padding = 0
        while padding < needed and end + padding < size and data[end + padding] == 0:
            padding += 1
        if padding < needed and end + padding == size and not final:
            return strings, start
        strings.append((start, end, padding, hits[first:position]))
    if final:
        return strings, size
    longest = max((len(needle) for needle in needles), default=1)
    last = strings[-1][1] if strings else 0
    return strings, max(last, size - longest + 1, 0)


def place_strings(
    buffer: Any, strings: Sequence[tuple[int, int, Sequence[int]]], old: Any, new: Any, width: int = 1
) -> int:
    """Replace, in place, `old` by `new` in C strings, and pad each with NULs to its old length.

    Parameters
    ----------
    buffer : writable bytes-like; changed only if every string passes its check.
    strings : list of (offset, length, offsets of the hits in it): a string reaches from its first hit to its end.
    old, new : `new` must not be longer than `old`.
    width : bytes of a character, 1, 2 or 4: a NUL is one that is 0.

    Returns
    -------
    -1, or the offset of the first string that does not lie in the buffer, holds a NUL, or has no `old` where a hit
    should be.
    """
    _check(old, new, width)
    view = memoryview(buffer)
    for offset, length, hits in strings:
        if not _lies_well(len(view), offset, length, hits, len(old)):
            return offset
        region = bytes(view[offset : offset + length])
        if _holds_nul(region, width) or any(region[h - offset : h - offset + len(old)] != old for h in hits):
            return offset
    for offset, length, hits in strings:
        region = bytes(view[offset : offset + length])
        parts, position = [], 0
        for hit in hits:
            parts += [region[position : hit - offset], new]
            position = hit - offset + len(old)
        parts.append(region[position:])
        view[offset : offset + length] = b"".join(parts).ljust(length, b"\0")
    return -1


def restore_strings(
    buffer: Any, strings: Sequence[tuple[int, int, Sequence[int]]], old: Any, new: Any, width: int = 1
) -> int:
    """Undo `place_strings`, in place: all arguments are the same as they were there.

    Returns
    -------
    -1, or the offset of the first string that is not what `place_strings` leaves.
    """
    _check(old, new, width)
    view = memoryview(buffer)
    gap = len(old) - len(new)
    restored = []
    for offset, length, hits in strings:
        if not _lies_well(len(view), offset, length, hits, len(old)):
            return offset
        region = bytes(view[offset : offset + length])
        used = length - gap * len(hits)
        if used < 0 or region[used:].strip(b"\0") or _holds_nul(region[:used], width):
            return offset
        parts, position = [], 0
        for k, hit in enumerate(hits):
            place = hit - offset - gap * k
            if region[place : place + len(new)] != new:
                return offset
            parts += [region[position:place], old]
            position = place + len(new)
        parts.append(region[position:used])
        restored.append((offset, length, b"".join(parts)))
    for offset, length, region in restored:
        view[offset : offset + length] = region
    return -1


def _check(old: Any, new: Any, width: int) -> None:
    if len(new) > len(old):
        raise ValueError("the new prefix is longer than the slot")
    if width not in (1, 2, 4):
        raise ValueError("a character of %d bytes" % width)


def _holds_nul(text: bytes, width: int) -> bool:
    nul = bytes(width)
    at = text.find(nul)
    while at >= 0 and at % width:
        at = text.find(nul, at + 1)
    return at >= 0


def _lies_well(size: int, offset: int, length: int, hits: Sequence[int], slot: int) -> bool:
    """Whether a string lies in the buffer, and its hits in order in it, the first at its start."""
    if not hits or hits[0] != offset or offset < 0 or length < 0 or offset + length > size:
        return False
    position = offset
    for hit in hits:
        if hit < position:
            return False
        position = hit + slot
    return position <= offset + length

"""The tar stream: headers in GNU format with raw names, and reading them back."""

from __future__ import annotations

import itertools
import os
import tarfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from fastpack._batch_py import BLOCK, NAME, OCTAL
from fastpack.errors import DamagedArchive
from fastpack.model import Kind
from fastpack.native import batch

#: ``pread(n_bytes, offset)`` of an archive.
PRead = Callable[[int, int], bytes]

#: GNU tar's magic and version in a header, and where they stand.
MAGIC, MAGIC_AT = b"ustar  \0", 257
#: Two blocks of zeros end a tar stream.
END = bytes(2 * BLOCK)
#: A name of Linux has at most 4096 bytes; more room than that is given to no header.
MAX_LONG_NAME = 1 << 20

TYPES = {
    Kind.FILE: tarfile.REGTYPE,
    Kind.DIRECTORY: tarfile.DIRTYPE,
    Kind.LINK: tarfile.SYMTYPE,
    Kind.HARDLINK: tarfile.LNKTYPE,
}


class Headers(NamedTuple):
    """What members' tar headers say, in columns; names and targets as `raw_names` gives them, mtimes in seconds."""

    kinds: Sequence[Kind]
    names: Sequence[str | bytes]
    targets: Sequence[str | bytes]
    modes: Sequence[int]
    sizes: Sequence[int]
    mtimes: Sequence[int]


def raw_names(
    kinds: Sequence[Kind], root: str, paths: Sequence[str], targets: Sequence[str]
) -> tuple[Sequence[str | bytes], Sequence[str | bytes]]:
    """(names, targets) as they stand in members' headers: text, which is ASCII, or bytes; so `len` is in bytes.

    Parameters
    ----------
    root : the arcroot with its slash, or empty.
    """
    names = [root + path for path in paths] if root else paths
    if Kind.DIRECTORY in kinds:
        names = [f"{name}/" if kind is Kind.DIRECTORY else name for name, kind in zip(names, kinds, strict=True)]
    if root and Kind.HARDLINK in kinds:
        targets = [root + text if kind is Kind.HARDLINK else text for text, kind in zip(targets, kinds, strict=True)]
    return _raw(names), _raw(targets)


def _raw(texts: Sequence[str]) -> Sequence[str | bytes]:
    if all(map(str.isascii, texts)):
        return texts
    return [text if text.isascii() else os.fsencode(text) for text in texts]


def header_bytes(name: str | bytes, target: str | bytes) -> int:
    """The length of a member's header, with the GNU long-name members before it that it needs."""
    total = BLOCK
    for length in (len(name), len(target)):
        if length > NAME:
            total += BLOCK + length + 1 + padding(length + 1)
    return total


def headers_bytes(names: Sequence[str | bytes], targets: Sequence[str | bytes]) -> list[int]:
    """`header_bytes` of each of many members."""
    if max(map(len, names), default=0) <= NAME >= max(map(len, targets), default=0):
        return [BLOCK] * len(names)
    return [
        BLOCK if len(name) <= NAME >= len(target) else header_bytes(name, target)
        for name, target in zip(names, targets, strict=True)
    ]


def write_headers(headers: Headers, places: Iterable[int], out: bytearray | memoryview) -> None:
    """Write members' headers into a buffer, each to its place, and `header_bytes` long.

    No PAX keywords (GNU tar warns of unknown ones for every entry), owner 0 without names, names as raw bytes.
    """
    kinds, names, targets, modes, numbers, mtimes = headers
    if not names:
        return
    types, sizes = tarfile.REGTYPE * len(kinds), numbers
    if kinds.count(Kind.FILE) < len(kinds):
        types = b"".join([TYPES[kind] for kind in kinds])
        sizes = [n_bytes if kind is Kind.FILE else 0 for kind, n_bytes in zip(kinds, numbers, strict=True)]
    rows = _Rows(list(names), list(targets), types, *map(_table, (modes, sizes, mtimes, places)))
    odd: list[tuple[int, bytes]] = []
    fits = max(sizes) < OCTAL and min(mtimes) >= 0 and max(mtimes) < OCTAL
    if not fits or max(map(len, names)) > NAME or max(map(len, targets)) > NAME:
        rows = rows._replace(types=bytearray(types))
        view = memoryview(out)
        for index, (name, target) in enumerate(zip(names, targets, strict=True)):
            if not fits and not (sizes[index] < OCTAL and 0 <= mtimes[index] < OCTAL):
                text = _odd_header(kinds[index], os.fsencode(name), os.fsencode(target), *(c[index] for c in rows[3:6]))
                odd.append((rows.places[index], text))
                rows.sizes[index] = rows.mtimes[index] = 0  # a header that is written over
            if len(name) > NAME or len(target) > NAME:
                _write_long_names(rows, index, view)
    batch.tar_headers(
        rows.names, rows.targets, bytes(rows.types), rows.modes, rows.sizes, rows.mtimes, rows.places, out
    )
    for place, text in odd:
        memoryview(out)[place : place + len(text)] = text


def _table(numbers: Iterable[int]) -> array[int]:
    return array("q", numbers)


class _Rows(NamedTuple):
    """What `tar_headers` takes."""

    names: list[str | bytes]
    targets: list[str | bytes]
    types: bytes | bytearray
    modes: array[int]
    sizes: array[int]
    mtimes: array[int]
    places: array[int]


def _write_long_names(rows: _Rows, index: int, view: memoryview) -> None:
    """A name or target that is too long stands, with a NUL, as the data of a member of its own before the member."""
    place = rows.places[index]
    for tar_type, long in (
        (tarfile.GNUTYPE_LONGLINK, rows.targets[index]),
        (tarfile.GNUTYPE_LONGNAME, rows.names[index]),
    ):
        if len(long) <= NAME:
            continue
        text = os.fsencode(long) + bytes(1 + padding(len(long) + 1))
        view[place + BLOCK : place + BLOCK + len(text)] = text
        row = (_LONG_LINK, b"", tar_type[0], 0, len(long) + 1, 0, place)
        for column, value in zip(rows, row, strict=True):
            column.append(value)  # type: ignore[union-attr,arg-type]
        place += BLOCK + len(text)
    rows.names[index], rows.targets[index] = rows.names[index][:NAME], rows.targets[index][:NAME]
    rows.places[index] = place


#: What GNU tar calls the members that hold a long name.
_LONG_LINK = b"././@LongLink"


def _odd_header(kind: Kind, name: bytes, target: bytes, mode: int, size: int, mtime: int) -> bytes:
    """A header with numbers that the octal fields do not hold."""
    info = tarfile.TarInfo(os.fsdecode(name.removesuffix(b"/") if kind is Kind.DIRECTORY else name))
    info.type = TYPES[kind]
    info.mode = mode
    info.mtime = mtime
    info.size = size
    info.linkname = os.fsdecode(target)
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


def headers_of(headers: Headers) -> bytes:
    """Members' headers, one behind the other: see `write_headers`."""
    lengths = headers_bytes(headers.names, headers.targets)
    *places, end = itertools.accumulate(lengths, initial=0)
    out = bytearray(end)
    write_headers(headers, places, out)
    return bytes(out)


def padding(n_bytes: int) -> int:
    """Zeros that follow a member's `n_bytes` bytes up to the next block."""
    return -n_bytes % BLOCK


class Walked(NamedTuple):
    """A member of an uncompressed tar: `offset` and `n_bytes` of its data."""

    name: str
    offset: int
    n_bytes: int
    mtime: int


def walk_headers(size: int, pread: PRead) -> Iterator[Walked]:
    """The members of an uncompressed tar, reading its headers alone.

    Raises
    ------
    DamagedArchive : a header that is none, or a member that reaches past the end.
    """
    offset = 0
    long_name: str | None = None
    while offset + BLOCK <= size:
        block = pread(BLOCK, offset)
        if block == bytes(BLOCK):
            if pread(len(END), offset) != END:
                break
            return
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise DamagedArchive(f"the tar stream is broken at byte {offset} ({error})") from None
        start = offset + BLOCK
        n_bytes = info.size if info.type not in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE) else 0
        if n_bytes < 0:
            raise DamagedArchive(f"the tar stream is broken at byte {offset} (a negative size)")
        if start + n_bytes > size:
            raise DamagedArchive("the archive is cut off", expected=f"{start + n_bytes} bytes", found=size)
        if info.type == tarfile.GNUTYPE_LONGNAME and n_bytes <= MAX_LONG_NAME:
            long_name = pread(n_bytes, start).rstrip(b"\0").decode("utf-8", "surrogateescape")
        elif info.type != tarfile.GNUTYPE_LONGLINK:
            yield Walked(long_name or info.name, start, n_bytes, int(info.mtime))
            long_name = None
        offset = start + n_bytes + padding(n_bytes)
    raise DamagedArchive("the archive is cut off: it has no end", found=f"{size} bytes")

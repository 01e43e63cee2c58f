"""The tar stream: headers in GNU format with raw names, and reading them back."""

from __future__ import annotations

import os
import tarfile
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from fastpack._batch_py import BLOCK, NAME, OCTAL
from fastpack.errors import DamagedArchive
from fastpack.model import Kind
from fastpack.native import batch

#: ``pread(n_bytes, offset)`` of an archive.
PRead = Callable[[int, int], bytes]

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


class Header(NamedTuple):
    """What a member's tar header says. Names as `raw_names` gives them; `n_bytes` of a file, `mtime` in seconds."""

    kind: Kind
    name: bytes
    target: bytes
    mode: int
    n_bytes: int
    mtime: int


def raw_names(kind: Kind, root: str, path: str, target: str) -> tuple[bytes, bytes]:
    """(name, target) as they stand in a member's header. `root` is the arcroot with its slash, or empty."""
    name = os.fsencode(root + path)
    if kind is Kind.DIRECTORY:
        name += b"/"
    if not target:
        return name, b""
    return name, os.fsencode(root + target if kind is Kind.HARDLINK else target)


def header_bytes(name: bytes, target: bytes) -> int:
    """The length of a member's header, with the GNU long-name members before it that it needs."""
    total = BLOCK
    for length in (len(name), len(target)):
        if length > NAME:
            total += BLOCK + length + 1 + padding(length + 1)
    return total


def write_headers(headers: Sequence[Header], places: Sequence[int], out: bytearray | memoryview) -> None:
    """Write members' headers into a buffer, each to its place, and `header_bytes` long.

    No PAX keywords (GNU tar warns of unknown ones for every entry), owner 0 without names, names as raw bytes.
    """
    view = memoryview(out)
    names: list[bytes] = []
    targets: list[bytes] = []
    types: list[bytes] = []
    tables = modes, sizes, mtimes, at = array("q"), array("q"), array("q"), array("q")

    def add(name: bytes, target: bytes, kind: bytes, mode: int, size: int, mtime: int, place: int) -> None:
        names.append(name)
        targets.append(target)
        types.append(kind)
        modes.append(mode)
        sizes.append(size)
        mtimes.append(mtime)
        at.append(place)

    for (kind, name, target, mode, n_bytes, mtime), start in zip(headers, places, strict=True):
        place = start
        if n_bytes >= OCTAL or not 0 <= mtime < OCTAL:
            text = _odd_header(Header(kind, name, target, mode, n_bytes, mtime))
            view[place : place + len(text)] = text
            continue
        # A name that is too long stands, with a NUL, as the data of a member of its own before the member.
        for tar_type, long in ((tarfile.GNUTYPE_LONGLINK, target), (tarfile.GNUTYPE_LONGNAME, name)):
            if len(long) > NAME:
                add(_LONG_LINK, b"", tar_type, 0, len(long) + 1, 0, place)
                text = long + bytes(1 + padding(len(long) + 1))
                view[place + BLOCK : place + BLOCK + len(text)] = text
                place += BLOCK + len(text)
        add(name[:NAME], target[:NAME], TYPES[kind], mode, n_bytes if kind is Kind.FILE else 0, mtime, place)
    batch.tar_headers(names, targets, b"".join(types), *tables, out)


#: What GNU tar calls the members that hold a long name.
_LONG_LINK = b"././@LongLink"


def _odd_header(header: Header) -> bytes:
    """A header with numbers that the octal fields do not hold."""
    name = header.name.removesuffix(b"/") if header.kind is Kind.DIRECTORY else header.name
    info = tarfile.TarInfo(os.fsdecode(name))
    info.type = TYPES[header.kind]
    info.mode = header.mode
    info.mtime = header.mtime
    info.size = header.n_bytes if header.kind is Kind.FILE else 0
    info.linkname = os.fsdecode(header.target)
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


def header(fields: Header) -> bytes:
    """One member's header: see `write_headers`."""
    out = bytearray(header_bytes(fields.name, fields.target))
    write_headers([fields], [0], out)
    return bytes(out)


def padding(n_bytes: int) -> int:
    """Zeros that follow a member's `n_bytes` bytes up to the next block."""
    return -n_bytes % BLOCK


def walk_headers(size: int, pread: PRead) -> Iterator[tuple[str, int, int, int]]:
    """(name, offset of the data, size, mtime) of each member of an uncompressed tar, reading its headers alone.

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
            yield long_name or info.name, start, n_bytes, int(info.mtime)
            long_name = None
        offset = start + n_bytes + padding(n_bytes)
    raise DamagedArchive("the archive is cut off: it has no end", found=f"{size} bytes")

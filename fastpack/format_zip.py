"""A zip file: frames are taken apart by where their members' data lie in them, and deflated side by side."""

from __future__ import annotations

import os
import stat
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple

from fastpack import pagecache
from fastpack.building import Data, PlainFrame
from fastpack.codec import CODECS, Codec
from fastpack.errors import UsageError
from fastpack.format import Encoded, Job, Tail, Writer, opened, own_member
from fastpack.manifest import MANIFEST, Manifest
from fastpack.members import Planned
from fastpack.model import Kind


class _Row(NamedTuple):
    """An entry of a zip file, or a piece of one. `at` is its place in the frame's data; sizes in bytes."""

    name: bytes
    mode: int  # with the file's type
    mtime: int
    method: int
    crc: int
    packed: int
    plain: int
    at: int
    begins: bool = True
    ends: bool = True


_STORED, _DEFLATED = 0, 8
#: General-purpose flags: sizes follow the data; names are UTF-8.
_DESCRIPTOR, _UTF8 = 1 << 3, 1 << 11
_MAX_32 = 0xFFFFFFFF


class Zip:
    """A zip file. Without `symbolic_links` a copy stands for what a link leads to, as in conda-pack's."""

    name = "zip"
    suffix = ".zip"
    default_level = 4
    levels = range(10)
    codec: Codec | None = None
    has_frames = False
    hard_links = False
    #: Python's own zipfile, for one, keeps no times.
    pyc = "checked-hash"

    def __init__(self, symbolic_links: bool = False) -> None:
        self.symbolic_links = symbolic_links

    def check(self) -> None:
        pass

    def versions(self) -> dict[str, str]:
        return CODECS["tar.gz"].versions()

    @contextmanager
    def open(self, job: Job) -> Iterator[Writer]:
        if not job.zip_64:
            _check_zip_32(job)
        with opened(job.output, job.force) as out:
            yield _ZipWriter(out, job)


def _is_large(n_bytes: int) -> bool:
    """Whether a file's size, or what becomes of it where nothing can be compressed, may not fit 32 bits."""
    return n_bytes + n_bytes // 1000 + 1024 >= _MAX_32


def _check_zip_32(job: Job) -> None:
    """What has no room in a zip file without ZIP64, known before anything is written."""
    members = job.plan.members
    largest = max(members, key=lambda m: m.n_bytes)
    if _is_large(largest.n_bytes):
        raise UsageError("a file is too large for a zip file without ZIP64 extensions", path=largest.path,
                         expected=f"less than {_MAX_32} bytes",
                         found=largest.n_bytes, hint="leave out --no-zip-64")  # fmt: skip
    if len(members) + 1 >= 0xFFFF:
        raise UsageError("too many files for a zip file without ZIP64 extensions", expected="less than 65535",
                         found=len(members) + 1, hint="leave out --no-zip-64")  # fmt: skip


class _ZipWriter:
    def __init__(self, out: BinaryIO, job: Job) -> None:
        self._out = out
        self._level = job.level
        self._zip_64 = job.zip_64
        self._root = job.plan.arcroot + "/" if job.plan.arcroot else ""
        self._offset = 0
        self._entries: list[bytes] = []
        self._descriptor = b""  # what follows the data of the last file that came in pieces
        self._open: tuple[int, _Row] | None = None  # the offset of the file that goes on, and all of it so far

    def encode(self, frame: PlainFrame) -> Encoded:
        out: list[bytes] = []
        rows: list[_Row] = []
        at = 0
        mtimes = frame.mtimes or [0] * len(frame.members)
        for member, mtime, start, stop in zip(frame.members, mtimes, frame.starts, frame.stops, strict=True):
            data = frame.plain[start:stop]
            piece = len(data) != member.n_bytes
            row, packed = self._entry(member, mtime, data, at, frame.at if piece else None)
            rows.append(row)
            head = _local_header(row, self._zip_64 and _is_large(member.n_bytes)) if row.begins else b""
            out += [head, packed]
            at += len(head) + len(packed)
        return Encoded(b"".join(out), rows)

    def _entry(self, member: Planned, mtime: int, data: memoryview, at: int, piece: int | None) -> tuple[_Row, bytes]:
        name = os.fsencode(self._root + member.path)
        if member.kind is Kind.DIRECTORY:
            return _Row(name + b"/", stat.S_IFDIR | member.mode, mtime, _STORED, 0, 0, 0, at), b""
        if member.kind is Kind.LINK:
            target = os.fsencode(member.target)
            crc = zlib.crc32(target)
            return _Row(name, stat.S_IFLNK | 0o777, mtime, _STORED, crc, len(target), len(target), at), target
        begins, ends = not piece, piece is None or piece + len(data) == member.n_bytes
        method = _STORED if self._level == 0 or not member.n_bytes else _DEFLATED
        packed = bytes(data) if method == _STORED else _deflated(data, self._level, ends)
        mode = stat.S_IFREG | member.mode
        return _Row(name, mode, mtime, method, _crc(data), len(packed), len(data), at, begins, ends), packed

    def write(self, data: Data, rows: Any) -> None:
        assert not isinstance(data, pagecache.Piece)  # this format has no base
        self._out.write(data)
        for row in rows:
            self._add(row)
        self._offset += len(data)
        last = rows[-1] if rows else None
        if last is not None and self._open is None and not last.begins:
            self._offset += self._out.write(self._descriptor)

    def _add(self, row: _Row) -> None:
        offset, whole = self._offset + row.at, row
        if not row.begins:
            assert self._open is not None
            offset, first = self._open
            whole = first._replace(
                crc=_combined(first.crc, row.crc, row.plain), packed=first.packed + row.packed,
                plain=first.plain + row.plain,
            )  # fmt: skip
        if not row.ends:
            self._open = offset, whole
            return
        self._open = None
        if not row.begins:
            layout = "<4sLQQ" if _is_large(whole.plain) else "<4sLLL"
            self._descriptor = struct.pack(layout, b"PK\x07\x08", whole.crc, whole.packed, whole.plain)
        if not self._zip_64 and offset >= _MAX_32:
            raise UsageError("the zip file gets too large without ZIP64 extensions", path=os.fsdecode(row.name),
                             expected=f"at most {_MAX_32} bytes", hint="leave out --no-zip-64")  # fmt: skip
        self._entries.append(_central_entry(whole, offset, not row.begins))

    def finish(self, manifest: Manifest, archive_id: bytes, sizes: list[tuple[int, int]]) -> Tail:
        before = self._offset
        own = own_member(manifest, archive_id)
        planned = Planned(Kind.FILE, MANIFEST, own.mode, manifest.groups[-1], own.n_bytes)
        row, packed = self._entry(planned, own.mtime, memoryview(manifest.raw), 0, None)
        head = _local_header(row, False)
        self.write(head + packed, [row])
        directory = b"".join(self._entries)
        end = _end_of_zip(len(self._entries), len(directory), self._offset, self._zip_64)
        self._out.write(directory)
        self._out.write(end)
        self._out.flush()
        total = self._offset + len(directory) + len(end)
        return Tail(total - before, total=total)


def _crc(data: memoryview) -> int:
    from isal import isal_zlib  # noqa: PLC0415 (this format alone)

    return int(isal_zlib.crc32(data))


def _combined(one: int, other: int, n_bytes: int) -> int:
    from isal import isal_zlib  # noqa: PLC0415

    return int(isal_zlib.crc32_combine(one, other, n_bytes))


def _deflated(data: memoryview, level: int, ends: bool) -> bytes:
    """Raw deflate data, by the libraries of `Gzip`; what does not end is flushed, so that pieces can stand in a row."""
    from isal import isal_zlib  # noqa: PLC0415
    from zlib_ng import zlib_ng  # noqa: PLC0415

    if level <= 4:
        library: Any = isal_zlib
        level = min(level, 3)
    else:
        library = zlib_ng
    deflate = library.compressobj(level, library.DEFLATED, -15)
    return bytes(deflate.compress(data) + deflate.flush(library.Z_FINISH if ends else library.Z_FULL_FLUSH))


def _zip_time(mtime: int) -> tuple[int, int]:
    """(time, date) in MS-DOS form: UTC, even seconds, from 1980 on."""
    year, month, day, hour, minute, second = time.gmtime(max(mtime, 315532800))[:6]
    return hour << 11 | minute << 5 | second // 2, (year - 1980) << 9 | month << 5 | day


def _utc_time(mtime: int) -> bytes:
    """The extended timestamp (0x5455): a time that means the same in every time zone."""
    return struct.pack("<HHBl", 0x5455, 5, 1, mtime) if -(1 << 31) <= mtime < 1 << 31 else b""


def _flags(row: _Row, streamed: bool) -> int:
    return (_DESCRIPTOR if streamed else 0) | (0 if row.name.isascii() or not _is_text(row.name) else _UTF8)


def _is_text(name: bytes) -> bool:
    """Whether a name is UTF-8; any other one stands as its bytes, without the flag."""
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


def _local_header(row: _Row, large: bool) -> bytes:
    """An entry's header; `large`: sizes that follow it have 64 bits."""
    streamed = not row.ends
    crc, packed, plain = (0, 0, 0) if streamed else (row.crc, row.packed, row.plain)
    extra = _utc_time(row.mtime)
    if large:
        packed = plain = _MAX_32
        extra += struct.pack("<HHQQ", 1, 16, 0, 0)
    return (
        struct.pack(
            "<4sHHHHHLLLHH", b"PK\x03\x04", 45 if large else 20, _flags(row, streamed), row.method,
            *_zip_time(row.mtime), crc, packed, plain, len(row.name), len(extra),
        )
        + row.name + extra
    )  # fmt: skip


def _central_entry(row: _Row, offset: int, streamed: bool) -> bytes:
    sizes = [row.plain, row.packed]
    # As its local header has it, whatever became of the size.
    large = sizes if streamed and _is_large(row.plain) else [value for value in sizes if value >= _MAX_32]
    plain, packed = (_MAX_32 if value in large else value for value in sizes)
    large = [*large, *([offset] if offset >= _MAX_32 else [])]
    extra = _utc_time(row.mtime)
    extra += struct.pack(f"<HH{len(large)}Q", 1, 8 * len(large), *large) if large else b""
    attributes = row.mode << 16 | (0x10 if stat.S_ISDIR(row.mode) else 0)
    version = 45 if large else 20
    return (
        struct.pack(
            "<4sBBHHHHHLLLHHHHHLL", b"PK\x01\x02", version, 3, version, _flags(row, streamed), row.method,
            *_zip_time(row.mtime), row.crc, packed, plain, len(row.name),
            len(extra), 0, 0, 0, attributes, min(offset, _MAX_32),
        )
        + row.name + extra
    )  # fmt: skip


def _end_of_zip(count: int, n_bytes: int, offset: int, zip_64: bool) -> bytes:
    end = b""
    if count >= 0xFFFF or n_bytes >= _MAX_32 or offset >= _MAX_32:
        if not zip_64:
            raise UsageError("the zip file gets too large without ZIP64 extensions", hint="leave out --no-zip-64")
        record = struct.pack("<4sQHHLLQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, n_bytes, offset)
        end = record + struct.pack("<4sLQL", b"PK\x06\x07", 0, offset + n_bytes, 1)
    small = min(count, 0xFFFF), min(count, 0xFFFF), min(n_bytes, _MAX_32), min(offset, _MAX_32)
    return end + struct.pack("<4sHHHHLLH", b"PK\x05\x06", 0, 0, *small, 0)


# --- a directory -----------------------------------------------------------------------------------------------------

"""What an archive is written as: a format is one class. All of them take the same frames of one tar stream.

Tar streams are compressed frame by frame, or piped to mksquashfs; a zip file and a directory take each frame apart
again, by where its members' data lie in it. `encode` runs in several threads, `write` in the frames' order.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import struct
import subprocess
import tempfile
import time
import zlib
from array import array
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import IO, Any, BinaryIO, NamedTuple, Protocol

from fastpack import container, pagecache
from fastpack._batch_py import CLONED
from fastpack._place_py import EPOCH_2000, SPAN, content_mtime
from fastpack.building import Data, PlainFrame
from fastpack.codec import CODECS, Codec
from fastpack.destination import Destination
from fastpack.errors import FastpackError, NoSpace, UsageError
from fastpack.extracting import finish_directories, make_directories, make_links, write_manifest
from fastpack.frames import Locator, trailer
from fastpack.fs import Output, explain_os_error, new_file
from fastpack.manifest import MANIFEST, Manifest
from fastpack.members import Planned
from fastpack.model import MANIFEST_FORMAT, Kind
from fastpack.native import CANNOT_SHARE, batch
from fastpack.plan import Plan
from fastpack.reading import changed
from fastpack.rows import Member

#: Files of a directory that are reflinked, where the file system can; for smaller ones a copy costs less.
_CLONED_FROM = 64 << 10


@dataclass(frozen=True, slots=True)
class Job:
    """What a format needs to know to write an archive. `output` is absolute, or ``-`` for standard output."""

    plan: Plan
    output: str
    force: bool
    level: int
    threads: int
    zip_64: bool = True
    has_frames: bool = True


class Encoded(NamedTuple):
    """A frame in the format's form, and what the format has to remember of it."""

    data: bytes | memoryview
    rows: Any = None


class Writer(Protocol):
    """Writes one archive."""

    def encode(self, frame: PlainFrame) -> Encoded:
        """A frame in the format's form. Called by several threads."""

    def write(self, data: Data, rows: Any) -> None:
        """Write a frame; in order. `rows` are those of `encode`."""

    def finish(self, manifest: Manifest, archive_id: bytes, sizes: list[tuple[int, int]]) -> int:
        """Write what stands behind the last frame.

        Parameters
        ----------
        manifest : with its bytes in `raw`.
        sizes : (written, plain) bytes of each frame.

        Returns
        -------
        Bytes behind the last frame.
        """


class Format(Protocol):
    """A format: `levels` are what ``--compress-level`` knows. `codec` is that of frames that may be used again.

    `has_frames`: whether what is written is a row of compressed frames.
    `hard_links` and `symbolic_links`: whether it can hold them; a copy stands for what it cannot.
    """

    name: str
    suffix: str
    default_level: int
    levels: range
    codec: Codec | None
    has_frames: bool
    hard_links: bool
    symbolic_links: bool
    pyc: str  # what ``--pyc`` is, where it is not given

    def check(self) -> None:
        """What is missing for it, before anything is read."""

    def versions(self) -> dict[str, str]:
        """The libraries the bytes depend on."""

    def open(self, job: Job) -> AbstractContextManager[Writer]:
        """The archive appears when the block ends well, and not at all otherwise."""


# --- tar streams -----------------------------------------------------------------------------------------------------


class Tar:
    """A tar stream, compressed by a codec."""

    pyc = "timestamp"
    has_frames = hard_links = symbolic_links = True

    def __init__(self, codec: Codec) -> None:
        self.name, self.suffix = codec.name, codec.suffix
        self.default_level, self.levels = codec.default_level, codec.levels
        self._frames = codec
        # What is not found again by a locator has no frames to offer.
        self.codec = codec if codec.name in _LOCATED else None

    def check(self) -> None:
        pass

    def versions(self) -> dict[str, str]:
        return self._frames.versions()

    @contextmanager
    def open(self, job: Job) -> Iterator[Writer]:
        with opened(job.output, job.force) as out:
            yield _TarWriter(out, self._frames, job.level, job.plan.arcroot)


#: Formats whose manifest is found from the end.
_LOCATED = ("tar.zst", "tar.gz", "tar")


class _TarWriter:
    def __init__(self, out: IO[bytes], codec: Codec, level: int, arcroot: str) -> None:
        self._out = out
        self._codec = codec
        self._level = level
        self._arcroot = arcroot

    def encode(self, frame: PlainFrame) -> Encoded:
        return Encoded(self._codec.compress(frame.plain, self._level))

    def write(self, data: Data, rows: Any) -> None:
        if not isinstance(data, pagecache.Piece):
            self._out.write(data)
        elif isinstance(self._out, Output):
            self._out.append(data)
        else:
            self._out.write(data.read())

    def finish(self, manifest: Manifest, archive_id: bytes, sizes: list[tuple[int, int]]) -> int:
        own = own_member(manifest, archive_id)
        offset = sum(packed for packed, _ in sizes)
        written = 0
        locator = None
        for plain in (own.header(self._arcroot), manifest.raw, bytes(container.padding(own.n_bytes)) + container.END):
            packed = self._codec.compress(plain, self._level)
            self._out.write(packed)
            if plain is manifest.raw:
                locator = Locator(MANIFEST_FORMAT, offset + written, len(packed), len(plain), archive_id)
            sizes.append((len(packed), len(plain)))
            written += len(packed)
        assert locator is not None
        end = trailer(self._codec, locator, sizes)
        self._out.write(end)
        self._out.flush()
        return written + len(end)


def own_member(manifest: Manifest, archive_id: bytes) -> Member:
    """The manifest as a member: its time is a function of its digest."""
    return Member(Kind.FILE, MANIFEST, 0o644, content_mtime(archive_id), len(manifest.raw))


@contextmanager
def opened(output: str, force: bool) -> Iterator[BinaryIO]:
    """A file that appears when it is whole, standard output, or the null device."""
    if output == os.devnull:
        with open(output, "wb") as nowhere:
            yield nowhere
        return
    if output == "-":
        try:
            stdout: BinaryIO = os.fdopen(os.dup(1), "wb")
        except OSError as error:
            raise explain_os_error(error, "standard output") from None
        try:
            yield stdout
        finally:
            try:
                stdout.close()
            except OSError:
                pass  # what could not be written was said when it was flushed
        return
    with new_file(output, force) as out:
        yield out


class Parcel(Tar):
    """Cloudera's parcel: a ``.tar.gz`` with its metadata, placed for where it will be activated (see parcel.py)."""

    def __init__(self) -> None:
        super().__init__(CODECS["tar.gz"])
        self.name, self.suffix = "parcel", ".parcel"
        self.codec = None


#: No time that follows from a member's bytes is later than this (2020).
_LATEST = EPOCH_2000 + 2 * SPAN


class Squashfs:
    """A file system to mount, made by squashfs-tools from the tar stream; nothing is staged on the disk.

    Levels are conda-pack's: 0 stores, 9 is xz, those between are a fifth of zstd's.
    """

    name = "squashfs"
    suffix = ".squashfs"
    default_level = 4
    levels = range(10)
    codec: Codec | None = None
    has_frames = False
    pyc = "timestamp"
    hard_links = symbolic_links = True

    def check(self) -> None:
        version = self.versions()["squashfs-tools"]
        if tuple(map(int, re.findall(r"\d+", version)[:2])) < (4, 5):
            raise UsageError(
                "squashfs files are made by mksquashfs", expected="squashfs-tools 4.5 or later on PATH",
                found=version or "none", hint="install it, or choose another format",
            )  # fmt: skip

    def versions(self) -> dict[str, str]:
        try:
            done = subprocess.run(["mksquashfs", "-version"], capture_output=True, text=True, check=False)
        except OSError:
            return {"squashfs-tools": ""}
        found = re.search(r"version (\S+)", done.stdout)
        return {"squashfs-tools": found[1] if found else ""}

    @contextmanager
    def open(self, job: Job) -> Iterator[Writer]:
        if job.output == "-":
            raise UsageError("a squashfs file is not written to a pipe", hint="give it a name with --output")
        compression = ["-b", "262144", "-comp", "zstd", "-Xcompression-level", str(max(1, job.level * 20 // 8))]
        if job.level == 0:
            compression = ["-noI", "-noD", "-noF", "-noX"]
        elif job.level == 9:
            compression = ["-b", "262144", "-comp", "xz"]
        with new_file(job.output, job.force) as out:
            command = [
                "mksquashfs", "-", out.name, "-tar", "-noappend", "-quiet", "-no-progress", "-processors",
                str(job.threads),
                "-root-mode", "755", *compression,
            ]  # fmt: skip
            # The time of the file system and of its root; no member has a later one, which would become this.
            latest = max(_LATEST, *(member.mtime or 0 for member in job.plan.members.others.values()))
            environment = {**os.environ, "SOURCE_DATE_EPOCH": str(latest)}
            broken = False
            with (
                tempfile.TemporaryFile() as messages,
                subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=messages, env=environment
                ) as process,
            ):
                assert process.stdin is not None
                try:
                    yield _TarWriter(process.stdin, CODECS["tar"], 0, job.plan.arcroot)
                    process.stdin.close()
                except BaseException as error:
                    if not isinstance(error, BrokenPipeError):
                        process.kill()
                        raise
                    # It ended before its input did; what it says follows.
                    broken = True
                    with contextlib.suppress(OSError):
                        process.stdin.close()
                code = process.wait()
                messages.seek(0)
                said = messages.read().decode(errors="replace").strip().splitlines()
                if any("No space left" in line or "Failed to write" in line for line in said):
                    raise NoSpace("no space left on the disk", path=job.output, found=said[-1])
                if code or broken:
                    raise FastpackError(
                        f"mksquashfs ended with {code}",
                        path=job.output,
                        found=said[-1] if said else "nothing said",
                    )


# --- zip -------------------------------------------------------------------------------------------------------------


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
_MAX_32, _MAX_63 = 0xFFFFFFFF, (1 << 63) - 1


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

    def finish(self, manifest: Manifest, archive_id: bytes, sizes: list[tuple[int, int]]) -> int:
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
        return self._offset - before + len(directory) + len(end)


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


class Directory:
    """No archive at all: the members as files. Nothing in it shares an inode with anything outside."""

    name = "no-archive"
    suffix = ".no-archive"
    default_level = 0
    levels = range(10)  # conda-pack takes any, and uses none
    codec: Codec | None = None
    has_frames = False
    pyc = "timestamp"
    hard_links = symbolic_links = True

    def check(self) -> None:
        pass

    def versions(self) -> dict[str, str]:
        return {}

    @contextmanager
    def open(self, job: Job) -> Iterator[Writer]:
        if job.output == "-":
            raise UsageError("a directory is not written to a pipe", hint="give it a name with --output")
        plan = job.plan
        root = plan.arcroot + "/" if plan.arcroot else ""
        names = [root + member.path for member in plan.members if member.kind is not Kind.DIRECTORY]
        n_bytes = sum(-(-member.n_bytes // 4096) * 4096 for member in plan.members) + 4096 * len(plan.members)
        try:
            with Destination(job.output, job.force, names, n_bytes) as where:
                inner = os.path.join(where.root, plan.arcroot)
                os.makedirs(inner, exist_ok=True)
                with _folders(plan.environment.prefix, inner) as (source, target):
                    make_directories(inner, [m.path for m in plan.members if m.kind is Kind.DIRECTORY], job.threads)
                    yield _DirectoryWriter(plan, inner, source, target)
                where.finish(False)
            if plan.arcroot:
                with contextlib.suppress(OSError):  # the marker's directory; the members' own lies deeper
                    os.rmdir(os.path.join(job.output, ".fastpack"))
        except OSError as error:
            raise explain_os_error(error, error.filename or job.output) from None


@contextmanager
def _folders(*paths: str) -> Iterator[list[int]]:
    descriptors: list[int] = []
    try:
        for path in paths:
            descriptors.append(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        yield descriptors
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


class _DirectoryWriter:
    def __init__(self, plan: Plan, root: str, source: int, target: int) -> None:
        self._plan = plan
        self._root = root
        self._source = source
        self._target = target
        self._reflinks = True  # until the file system says that it has none
        large = [plan.members[frame.first] for frame in plan.frames if frame.stop is not None and not frame.start]
        self._clones = {member.path for member in large if self._clone(member, 0)}

    def encode(self, frame: PlainFrame) -> Encoded:
        files = [
            (member, start, stop, mtime)
            for member, start, stop, mtime in zip(
                frame.members, frame.starts, frame.stops, frame.mtimes or [0] * len(frame.members), strict=True
            )
            if member.kind is Kind.FILE
        ]
        if frame.at or any(stop - start != member.n_bytes for member, start, stop, _ in files):
            self._piece(files[0][0], frame.at, frame.plain[files[0][1] : files[0][2]])
            return Encoded(b"")
        copied = [row for row in files if not self._cloned(*row, frame.plain)]
        failed = batch.write_files(
            self._target, [row[0].path for row in copied], frame.plain, array("q", [row[1] for row in copied]),
            array("q", [row[2] - row[1] for row in copied]), array("q", [row[0].mode for row in copied]),
            array("q", [row[3] for row in copied]),
        )  # fmt: skip
        for index, code in failed:
            raise OSError(code, os.strerror(code), os.path.join(self._root, copied[index][0].path))
        return Encoded(b"")

    def _cloned(self, member: Planned, start: int, stop: int, mtime: int, plain: memoryview) -> bool:
        """Whether a file could be reflinked; what was cloned has the bytes that were read."""
        if stop - start < _CLONED_FROM or not self._clone(member, mtime):
            return False
        self._compare(member, 0, plain[start:stop])
        return True

    def _clone(self, member: Planned, mtime: int) -> bool:
        source = member.source
        if not self._reflinks or source is None or not member.is_as_on_disk or source.path != member.path:
            return False
        modes, mtimes = array("q", [member.mode]), array("q", [mtime])
        # Changed or not: what was cloned is compared with what was read.
        failed = batch.share_files(self._source, self._target, [member.path], modes, mtimes, _MAX_63, CLONED)
        if failed and failed[0][1] in CANNOT_SHARE:
            self._reflinks = False
        return not failed

    def _compare(self, member: Planned, at: int, data: memoryview) -> None:
        descriptor = os.open(member.path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._target)
        try:
            if os.pread(descriptor, len(data), at) != data or os.fstat(descriptor).st_size != member.n_bytes:
                raise changed(os.path.join(self._plan.environment.prefix, member.path), "changed")
        finally:
            os.close(descriptor)

    def _piece(self, member: Planned, at: int, data: memoryview) -> None:
        if member.path in self._clones:
            self._compare(member, at, data)
            return
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(member.path, flags, 0o600, dir_fd=self._target)
        try:
            while data:
                n_bytes = os.pwrite(descriptor, data, at)
                data, at = data[n_bytes:], at + n_bytes
        finally:
            os.close(descriptor)

    def write(self, data: Data, rows: Any) -> None:
        pass

    def finish(self, manifest: Manifest, archive_id: bytes, sizes: list[tuple[int, int]]) -> int:
        large = {frame.first for frame in self._plan.frames if frame.stop is not None}
        for index in large:
            member = manifest.members[index]
            os.chmod(member.path, member.mode, dir_fd=self._target)
            os.utime(member.path, (member.mtime, member.mtime), dir_fd=self._target)
        write_manifest(self._root, manifest.raw, archive_id.hex())
        make_links(self._root, manifest.members)
        finish_directories(self._root, manifest.members)
        return len(manifest.raw)


# --- which one -------------------------------------------------------------------------------------------------------

_ALL: tuple[Format, ...] = (*map(Tar, CODECS.values()), Parcel(), Zip(), Squashfs(), Directory())
FORMATS = {format_.name: format_ for format_ in _ALL}
_ALIASES = {"tzst": "tar.zst", "tgz": "tar.gz", "tbz2": "tar.bz2", "txz": "tar.xz"}


def by_name(name: str) -> Format:
    """The format of a name such as ``tar.zst`` or ``tgz``; UsageError for one we do not know."""
    found = FORMATS.get(_ALIASES.get(name, name))
    if found is None:
        raise UsageError(
            f"unknown format {name!r}", expected=", ".join([*FORMATS, *_ALIASES]), hint="choose one with --format"
        )
    return found


def by_file_name(path: str) -> Format:
    """The format that a file's name asks for; UsageError if it ends in none we know."""
    for name in (*FORMATS, *_ALIASES):
        if path.endswith("." + name):
            return by_name(name)
    raise UsageError(
        "the output's name does not tell the format", path=path, expected=", ".join("." + name for name in FORMATS),
        hint="name it so, or choose with --format",
    )  # fmt: skip

"""Reading an archive as a stream: from a pipe, and archives that fastpack did not make.

Members are written as they come; links are kept for the end, so nothing is written through one. What our own archives
say of themselves is checked when their manifest has arrived.
"""

from __future__ import annotations

import errno
import io
import json
import lzma
import os
import stat
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import zstandard

from fastpack import digest
from fastpack._place_py import EPOCH_2000, RELOCATIONS, content_mtime
from fastpack.codec import by_magic, stream_reader
from fastpack.destination import Destination
from fastpack.errors import DamagedArchive, HostileArchive, NoSpace, UsageError
from fastpack.fs import check_relative, free_bytes
from fastpack.manifest import (
    BROKEN,
    MANIFEST,
    MAX_TARGET,
    PACK_JSON,
    RESERVED,
    Manifest,
    check_format,
    check_head,
    from_bytes,
    odd_target,
)
from fastpack.model import Kind, Progress, Warned

_MAX_OWN = 1 << 30
_MAX_HEAD = 64 << 20
#: Bytes of a long name or a PAX header: tarfile reads them with a pattern that takes its square.
_MAX_EXTENSION = 128 << 10
#: A member of at least so many bytes is begun only if there is room for all of it.
_LARGE = 64 << 20


@dataclass(slots=True)
class Streamed:
    """What came out of a stream."""

    manifest: Manifest | None = None
    manifest_bytes: bytes = b""
    relocations: bytes = b""
    n_files: int = 0
    written_bytes: int = 0
    links: dict[str, str] = field(default_factory=dict)
    replaced: list[tuple[str, str]] = field(default_factory=list)  # links of whose name a later member is
    hardlinks: dict[str, str] = field(default_factory=dict)
    directories: dict[str, int] = field(default_factory=dict)
    warnings: list[Warned] = field(default_factory=list)

    def make_links(self, root: str) -> None:
        """Symbolic links and the directories' modes, last of all."""
        for path, target in self.links.items():
            full = os.path.join(root, path)
            os.symlink(target, full)
            os.utime(full, (EPOCH_2000, EPOCH_2000), follow_symlinks=False)
        final = {m.path: m.final_mode for m in self.manifest.members} if self.manifest else {}
        for path in sorted(self.directories, key=lambda path: -path.count("/")):
            if path != ".fastpack":
                os.utime(os.path.join(root, path), (EPOCH_2000, EPOCH_2000))
            strict = final.get(path)
            os.chmod(os.path.join(root, path), self.directories[path] if strict is None else strict)


class _Tail(io.RawIOBase):
    """A stream that remembers whether it ended in zeros: tarfile takes a stream that was cut off for its end."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self._zeros = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._source.read(size)
        stripped = len(data.rstrip(b"\0"))
        self._zeros = len(data) - stripped + (self._zeros if stripped == 0 else 0)
        return data

    def drain(self) -> None:
        """Read to the end: what follows the tar's end are zeros or skippable frames."""
        while self.read(1 << 20):
            pass

    @property
    def ended(self) -> bool:
        return self._zeros >= 1024


class _Head(io.RawIOBase):
    """A raw descriptor whose first bytes can be looked at without losing them."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.head = b""
        while len(self.head) < 512:
            data = os.read(descriptor, 512 - len(self.head))
            if not data:
                break
            self.head += data
        self._pending = self.head
        self.n_read = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if self._pending:
            size = len(self._pending) if size < 0 else size
            data, self._pending = self._pending[:size], self._pending[size:]
        else:
            data = os.read(self._descriptor, 1 << 20 if size < 0 else min(size, 1 << 20))
        self.n_read += len(data)
        return data


def extract_stream(
    descriptor: int,
    archive: str,
    where: Destination,
    check_head: Callable[[dict[str, Any]], list[Warned]],
    progress: Progress,
) -> Streamed:
    """Write a stream's members below ``where.root``.

    Parameters
    ----------
    check_head : called with ``pack.json`` of one of our archives before anything else is written.

    Raises
    ------
    DamagedArchive, HostileArchive, NewerFormat : whatever was written is the caller's to remove.
    """
    raw = _Head(descriptor)
    if not raw.head:
        raise DamagedArchive("the archive is empty", path=archive)
    if raw.head.startswith(b"PK\x03\x04"):
        return _extract_zip(descriptor, archive, where, check_head, progress)
    codec = by_magic(raw.head)
    source: BinaryIO
    if codec is not None:
        source = stream_reader(codec, raw)  # type: ignore[arg-type]
    elif raw.head.startswith((b"BZh", b"\xfd7zXZ\x00")):
        import bz2  # noqa: PLC0415 (foreign archives alone)

        opener: Any = bz2.BZ2File if raw.head.startswith(b"BZh") else lzma.LZMAFile
        source = opener(raw)
    else:
        if raw.head.startswith(b"hsqs"):
            raise UsageError("a squashfs file is mounted, or unpacked by unsquashfs", path=archive,
                             hint="then run fastpack relocate on it")  # fmt: skip
        if raw.head.startswith(b"fpdelta"):
            raise UsageError("a delta is read from a file, not from a pipe", path=archive, hint="save it first")
        raise DamagedArchive(
            "this is no archive that fastpack knows", path=archive, expected="a tar, plain or by zstd, gzip, bzip2, xz",
            found=repr(raw.head[:8]),
        )  # fmt: skip
    tail = _Tail(source)
    try:
        with tarfile.open(
            fileobj=tail, mode="r|", encoding="utf-8", errors="surrogateescape", bufsize=1 << 20, tarinfo=_Info
        ) as tar:
            result = _extract(tar, archive, where, check_head, progress, raw)
        tail.drain()
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError, *BROKEN) as error:
        raise DamagedArchive(f"the archive cannot be read to its end ({error})", path=archive) from None
    except OSError as error:
        if error.errno is None:  # gzip and bz2 raise a bare OSError for bad data
            raise DamagedArchive(f"the archive cannot be read to its end ({error})", path=archive) from None
        raise
    if not tail.ended:
        raise DamagedArchive("the archive is cut off: its tar stream has no end", path=archive)
    return result


class _Info(tarfile.TarInfo):
    """A header whose extensions (long names, PAX) are given no more memory than a name needs."""

    _extensions = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE,
                   tarfile.SOLARIS_XHDTYPE)  # fmt: skip

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if self.size < 0 or (self.type in self._extensions and self.size > _MAX_EXTENSION):
            raise tarfile.ReadError(f"a header with a size of {self.size} bytes")
        if self.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.ReadError("a sparse member")
        return super()._proc_member(tar)  # type: ignore[misc,no-any-return]

    def _no_sparse(self, *arguments: object) -> None:
        raise tarfile.ReadError("a sparse member")

    _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10 = _no_sparse


class _Writer:
    """Writes members one after another, and refuses those that would leave the root."""

    def __init__(self, root: str, ours: bool) -> None:
        self._root = root
        self.ours = ours
        self.kinds: dict[str, Kind] = {}
        self.digests: dict[str, tuple[int, bytes, int, int]] = {}  # size, digest, mode, mtime
        self.result = Streamed()
        self.head: dict[str, Any] = {}

    def name(self, info: tarfile.TarInfo) -> str | None:
        """A member's path below the root; None for the root itself."""
        name = info.name
        if not self.ours:
            while name.startswith("./"):
                name = name[2:].lstrip("/")
            name = name.rstrip("/")
            if name in ("", "."):
                return None
        why = check_relative(name)
        if why:
            raise HostileArchive(f"a member has {why}", path=info.name)
        own = RESERVED[:1] if self.ours else (*RESERVED, ".fastpack/state.json", ".fastpack")
        if name in own and not (name == ".fastpack" and info.isdir()):
            raise HostileArchive("a member that only fastpack itself may write", path=name)
        return name

    def prepare(self, path: str, kind: Kind) -> None:
        """Check a member's place, and make its parents."""
        parent = ""
        for part in path.split("/")[:-1]:
            parent = f"{parent}/{part}" if parent else part
            known = self.kinds.get(parent)
            if known is None:
                self.make_directory(parent, 0o755)
            elif known is not Kind.DIRECTORY:
                raise HostileArchive(f"a member would be written through a {known}", path=path, found=parent)
        known = self.kinds.get(path)
        if known is None or (known is Kind.DIRECTORY and kind is Kind.DIRECTORY):
            return
        if self.ours:
            raise HostileArchive("two members have one name", path=path)
        if Kind.DIRECTORY in (known, kind):
            raise HostileArchive("a directory and something else have one name", path=path)
        self.result.warnings.append(Warned("duplicate", path, "two members have this name; the last one counts"))
        if path in self.result.links:
            self.result.replaced.append((path, self.result.links.pop(path)))
        if known is not Kind.LINK:
            os.unlink(os.path.join(self._root, path))

    def make_directory(self, path: str, mode: int) -> None:
        if path not in self.kinds:
            try:
                os.mkdir(os.path.join(self._root, path), 0o700)
            except FileExistsError:
                if path != ".fastpack":  # the marker's
                    raise
        self.kinds[path] = Kind.DIRECTORY
        self.result.directories[path] = mode & 0o777

    def add_link(self, path: str, target: str) -> None:
        """A symbolic link, made last of all."""
        if odd_target(target):
            raise HostileArchive("a symbolic link to nothing", path=path)
        self.prepare(path, Kind.LINK)
        self.kinds[path] = Kind.LINK
        self.result.links[path] = target

    def write_file(self, path: str, info: tarfile.TarInfo, source: Any) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        slices = b""
        left = info.size
        if left > _LARGE and left > (free := free_bytes(self._root)):
            raise NoSpace(
                "not enough space at the destination", path=path, expected=f"{left} bytes", found=f"{free} bytes"
            )
        with os.fdopen(os.open(os.path.join(self._root, path), flags, 0o600), "wb", buffering=0) as out:
            while left or not slices:
                data = source.read(min(left, digest.SLICE))
                if len(data) < min(left, digest.SLICE):
                    raise DamagedArchive("the archive is cut off in a file", path=path)
                slices += digest.slice_digests(data)
                view = memoryview(data)
                while view:
                    view = view[out.write(view) or 0 :]
                left -= len(data)
            mode = info.mode & 0o777
            os.fchmod(out.fileno(), mode)
            os.utime(out.fileno(), (info.mtime, info.mtime))
        self.kinds[path] = Kind.FILE
        self.digests[path] = (info.size, digest.file_digest(slices), mode, int(info.mtime))
        if path != MANIFEST:  # it does not list itself, and is not counted where it is read first
            self.result.n_files += 1
            self.result.written_bytes += info.size


def _extract(
    tar: tarfile.TarFile,
    archive: str,
    where: Destination,
    check_head: Callable[[dict[str, Any]], list[Warned]],
    progress: Progress,
    raw: _Head,
) -> Streamed:
    writer: _Writer | None = None
    arcroot = ""
    for info in tar:
        content: bytes | None = None
        if writer is None:
            ours = info.name == PACK_JSON or info.name.endswith("/" + PACK_JSON)
            if ours and archive != "-" and by_magic(raw.head) is not None:
                raise DamagedArchive(
                    "the archive is damaged at its end: fastpack made it, and its manifest is not to be found",
                    path=archive,
                )
            writer = _Writer(where.root, ours)
            if ours:
                arcroot = info.name[: -len(PACK_JSON)].rstrip("/")
                content, writer.head = _read_head(tar, info)
                writer.result.warnings += check_head(writer.head)
        elif not writer.ours and info.name.removeprefix("./") in (PACK_JSON, MANIFEST):
            raise DamagedArchive("an archive of fastpack whose members are out of order", path=info.name)
        if arcroot and writer is not None:
            if info.name == arcroot and info.isdir():
                continue
            if not info.name.startswith(arcroot + "/"):
                raise HostileArchive("a member lies outside of the archive's root", path=info.name, expected=arcroot)
            info.name = info.name[len(arcroot) + 1 :]
            if info.islnk():
                info.linkname = info.linkname.removeprefix(arcroot + "/")
        _extract_member(tar, info, writer, where.root, content)
        progress("unpack", raw.n_read, 0, info.name.split("/", 1)[0])
    if writer is None:
        raise DamagedArchive("the archive has no members", path=archive)
    if writer.ours:
        _check_against_manifest(writer, archive)
    return writer.result


def _extract_zip(
    descriptor: int,
    archive: str,
    where: Destination,
    check_head: Callable[[dict[str, Any]], list[Warned]],
    progress: Progress,
) -> Streamed:
    """A zip file, ours or conda-pack's. Links are kept for the end, as everywhere."""
    if archive == "-":
        raise DamagedArchive("a zip file cannot be read from a pipe", path=archive, hint="give it as a file")
    done = 0
    try:
        with os.fdopen(os.dup(descriptor), "rb") as file, zipfile.ZipFile(file) as archive_file:
            arcroot, mtimes, writer = _open_zip(archive_file, where.root, check_head)
            for member in archive_file.infolist():
                name = member.filename
                if writer.ours and not member.flag_bits & 0x800 and not name.isascii():
                    name = os.fsdecode(name.encode("cp437"))  # no UTF-8: its bytes, as zipfile read them
                if not name.startswith(arcroot):
                    raise HostileArchive("a member lies outside of the archive's root", path=name)
                info = tarfile.TarInfo(name[len(arcroot) :].rstrip("/" if writer.ours else ""))
                mode = member.external_attr >> 16
                info.size = member.file_size
                info.mode = mode & 0o777 if mode else 0o755 if member.is_dir() else 0o644
                # zip keeps local time, and of ours every second one of UTC
                known = mtimes.get(info.name)
                info.mtime = int(time.mktime((*member.date_time, 0, 0, -1))) if known is None else known
                if member.is_dir():
                    info.type = tarfile.DIRTYPE
                path = writer.name(info)
                if path is None:
                    continue
                if member.is_dir():
                    writer.prepare(path, Kind.DIRECTORY)
                    writer.make_directory(path, info.mode)
                elif stat.S_ISLNK(mode):
                    if member.file_size > MAX_TARGET:
                        raise HostileArchive("a symbolic link to nothing", path=path)
                    writer.add_link(path, os.fsdecode(archive_file.read(member)))
                elif stat.S_IFMT(mode) in (0, stat.S_IFREG):
                    writer.prepare(path, Kind.FILE)
                    with archive_file.open(member) as source:
                        writer.write_file(path, info, source)
                else:
                    raise HostileArchive("a member is neither file, directory nor link", path=path)
                done += member.compress_size
                progress("unpack", done, 0, path.split("/", 1)[0])
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, *BROKEN) as error:
        raise DamagedArchive(f"the zip file cannot be read to its end ({error})", path=archive) from None
    except OSError as error:
        # bz2 raises a bare OSError for bad data; nobody can seek to a negative offset
        if error.errno in (None, errno.EINVAL):
            raise DamagedArchive(f"the zip file cannot be read to its end ({error})", path=archive) from None
        raise
    if writer.ours:
        _check_against_manifest(writer, archive)
    return writer.result


def _open_zip(
    archive: zipfile.ZipFile, root: str, check_head: Callable[[dict[str, Any]], list[Warned]]
) -> tuple[str, dict[str, int], _Writer]:
    """(arcroot with its slash, mtimes by the manifest, what writes its members); of another's file nothing is known."""
    heads = [name for name in archive.namelist()[:1] if name == PACK_JSON or name.endswith("/" + PACK_JSON)]
    arcroot = heads[0][: -len(PACK_JSON)] if heads else ""
    if not heads:
        return "", {}, _Writer(root, False)
    if arcroot + MANIFEST not in archive.NameToInfo:
        raise DamagedArchive("fastpack made it, and its manifest is not to be found", path=arcroot + MANIFEST)
    writer = _Writer(root, True)
    own = []
    for name in (PACK_JSON, MANIFEST, RELOCATIONS):
        if archive.getinfo(arcroot + name).file_size > _MAX_OWN:
            raise DamagedArchive("the archive's own member is too large", path=name)
        own.append(archive.read(arcroot + name))
    writer.head = _parse_head(own[0], PACK_JSON)
    writer.result.warnings += check_head(writer.head)
    writer.result.manifest_bytes, writer.result.relocations = own[1:]
    mtimes = {member.path: member.mtime for member in from_bytes(own[1]).members}
    mtimes[MANIFEST] = content_mtime(digest.blake(own[1]))
    return arcroot, mtimes, writer


def _read_head(tar: tarfile.TarFile, info: tarfile.TarInfo) -> tuple[bytes, dict[str, Any]]:
    source = tar.extractfile(info)
    if source is None or info.size > _MAX_HEAD:
        raise DamagedArchive("the archive's first member is broken", path=info.name)
    data = source.read()
    return data, _parse_head(data, info.name)


def _parse_head(data: bytes, name: str) -> dict[str, Any]:
    try:
        head: dict[str, Any] = json.loads(data)
        check_format(head["format"])
        check_head(head)
    except BROKEN as error:
        raise DamagedArchive(f"the archive's first member is broken ({error})", path=name) from None
    return head


def _extract_member(
    tar: tarfile.TarFile, info: tarfile.TarInfo, writer: _Writer, root: str, content: bytes | None
) -> None:
    path = writer.name(info)
    if path is None:
        if not info.isdir():
            raise HostileArchive("the archive's root is no directory", path=info.name)
        return
    result = writer.result
    if info.isdir():
        writer.prepare(path, Kind.DIRECTORY)
        writer.make_directory(path, info.mode)
    elif info.issym():
        writer.add_link(path, info.linkname)
    elif info.islnk():
        target = info.linkname.removeprefix("./")
        if target == path or writer.kinds.get(target) not in (Kind.FILE, Kind.HARDLINK):
            raise HostileArchive("a hard link to no earlier file of the archive", path=path, found=info.linkname)
        writer.prepare(path, Kind.HARDLINK)
        os.link(os.path.join(root, target), os.path.join(root, path), follow_symlinks=False)
        writer.kinds[path] = Kind.HARDLINK
        result.hardlinks[path] = target
        result.n_files += 1
    elif info.isreg():
        writer.prepare(path, Kind.FILE)
        source = tar.extractfile(info) if content is None else io.BytesIO(content)
        writer.write_file(path, info, source)
        if path in (MANIFEST, RELOCATIONS) and writer.ours:
            if info.size > _MAX_OWN:
                raise DamagedArchive("the archive's own member is too large", path=path, found=info.size)
            with open(os.path.join(root, path), "rb") as file:
                data = file.read()
            if path == MANIFEST:
                if info.mtime != content_mtime(digest.blake(data)):
                    raise DamagedArchive("the manifest is not the one that was written", path=path)
                result.manifest_bytes = data
            else:
                result.relocations = data
    else:
        raise HostileArchive("a member is neither file, directory nor link", path=path)


def _check_against_manifest(writer: _Writer, archive: str) -> None:
    """Everything the manifest says has come, and nothing else."""
    result = writer.result
    if not result.manifest_bytes:
        raise DamagedArchive("the archive is cut off: its manifest is missing", path=archive)
    manifest = from_bytes(result.manifest_bytes)
    for key in ("arcroot", "dest_prefix", "requires", "longest_prefix", "ascii_only"):
        if manifest.header.get(key) != writer.head.get(key):
            raise DamagedArchive(f"the archive's first member and its manifest disagree in {key!r}", path=archive)
    seen = dict(writer.kinds)
    seen.pop(MANIFEST, None)
    for member in manifest.members:
        kind = seen.pop(member.path, None)
        if kind is not member.kind:
            raise DamagedArchive(
                "the tar stream and the manifest disagree", path=member.path, expected=member.kind, found=kind
            )
        found: object = None
        wanted: object = None
        if kind is Kind.FILE:
            found = writer.digests[member.path]
            wanted = (member.n_bytes, member.digest, member.mode, member.mtime)
        elif kind is Kind.LINK:
            found, wanted = result.links[member.path], member.target
        elif kind is Kind.HARDLINK:
            found, wanted = result.hardlinks[member.path], member.target
        if found != wanted:
            raise DamagedArchive("a member is not what the manifest says", path=member.path)
    if seen:
        raise DamagedArchive("a member that the manifest does not know", path=sorted(seen)[0])
    result.manifest = manifest

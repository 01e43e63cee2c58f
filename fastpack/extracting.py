"""Members onto disk: frames decoded, checked, placed and written by threads; directories before, links after them."""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from fastpack import digest, direct
from fastpack._place_py import (
    EPOCH_2000,
    SMALL_FILE,
    Mismatch,
    RelocatedFile,
    Stated,
    content_mtime,
    mtime_key,
    place,
    placed_growth,
    relocated_mtime,
)
from fastpack.errors import DamagedArchive
from fastpack.fs import file_below
from fastpack.layout import Layout, Segment
from fastpack.manifest import MANIFEST, Manifest
from fastpack.model import Kind, Progress
from fastpack.native import batch
from fastpack.parallel import side_by_side
from fastpack.reader import AT_ONCE, Content, FrameReader
from fastpack.relocation import KERNELS, sha256_of, unplacing_edits
from fastpack.rows import Member, Rows

#: Frames of small files that one thread writes one after the other: they lie in the same directories.
_RUN = 8
#: Directories that one thread makes at once.
_DIRECTORIES = 64


class _Part(NamedTuple):
    """What a frame held of a member that lies in several."""

    member: int
    start: int
    n_bytes: int
    slices: bytes


class _Written(NamedTuple):
    """What became of a frame: what records state of placed files, whole files, parts of larger ones, bytes in all."""

    frame: int
    placed: dict[str, Stated]
    n_files: int
    parts: list[_Part]
    n_bytes: int


class _Files(NamedTuple):
    """Files of a buffer: where each begins there and how long it is, in bytes, its mode, and its time in seconds."""

    names: list[str]
    starts: array[int]
    lengths: array[int]
    modes: array[int]
    mtimes: array[int]

    @classmethod
    def one(cls, name: str, n_bytes: int, mode: int, mtime: int) -> _Files:
        """A file that has the buffer for itself."""
        return cls([name], *(array("q", [number]) for number in (0, n_bytes, mode, mtime)))

    def some(self, run: slice) -> _Files:
        """A run of them."""
        return _Files(self.names[run], *(table[run] for table in self[1:]))

    def only(self, chosen: Sequence[int]) -> _Files:
        """Those in some places, in order."""
        if len(chosen) == len(self.names):
            return self
        return _Files([self.names[k] for k in chosen], *(array("q", [table[k] for k in chosen]) for table in self[1:]))


class Extractor:
    """Writes the files of an archive into a directory, placed for a prefix. `extractor` opens one.

    Parameters
    ----------
    folder : descriptor of `root`.
    prefix : None: write what the archive has.
    relocated : what does not fit stays in its archive form; what states hashes of others is placed after them.
    """

    def __init__(self, reader: FrameReader, manifest: Manifest, folder: int, root: str, prefix: bytes | None,
                 relocated: Sequence[RelocatedFile], threads: int) -> None:  # fmt: skip
        self._reader = reader
        self._manifest = manifest
        self._folder = folder
        self._root = root
        self._prefix = prefix
        self._threads = threads
        self._writer = direct.Writer()
        self._not_as_archived = frozenset(file.path for file in relocated)
        self._relocated = {
            file.path: file for file in relocated if prefix is not None and not file.second_phase and file.fits(prefix)
        }

    def run(self, progress: Progress) -> dict[str, Stated]:
        """Write all files; what records state of those that were placed.

        Raises
        ------
        DamagedArchive : a frame or a file is not what the manifest says.
        """
        manifest, rows, layout = self._manifest, self._reader.rows, self._reader.layout
        total = sum(rows.sizes)
        placed: dict[str, Stated] = {}
        open_parts: dict[int, list[_Part]] = {}
        done = n_files = 0
        self._reader.share_large(self._folder, self._not_as_archived)
        runs = _runs(layout)
        for written in side_by_side(self._write_frame, runs, self._threads, self._stop):
            placed.update(written.placed)
            n_files += written.n_files
            for part in written.parts:
                member = rows[part.member]
                parts = open_parts.setdefault(part.member, [])
                parts.append(part)
                if sum(part.n_bytes for part in parts) == member.n_bytes:
                    slices = b"".join(part.slices for part in sorted(open_parts.pop(part.member)))
                    stated = self._finish_large(member, slices)
                    n_files += 1
                    if stated is not None:
                        placed[member.path] = stated
            done += written.n_bytes
            group = rows.groups[layout.members(written.frame)[1] - 1]
            progress("unpack", done, total, str(manifest.groups[group]) if manifest.groups else "")
        if n_files != rows.n_files:
            raise DamagedArchive("not every member was written", expected=f"{rows.n_files} files", found=n_files)
        return placed

    def _stop(self) -> None:
        """No further file is begun."""
        self._reader.stopping = True

    def _write_frame(self, index: int) -> _Written:
        rows, layout = self._reader.rows, self._reader.layout
        first, last = layout.members(index)
        parts = [segment for segment in layout.parts.get(index, {}).values() if rows.kind(segment.member) is Kind.FILE]
        files = rows.files_in(first, last)
        n_files = len(files) - len(parts)
        n_bytes = sum(rows.sizes[first:last])
        n_bytes += sum(part.stop - part.start - rows.sizes[part.member] for part in parts)
        left = self._reader.put(index, self._folder, self._not_as_archived)
        if left is not None:
            put = [_Part(part.member, part.start, part.stop - part.start, b"") for part in parts]
            return _Written(index, self._write_left(left), n_files, put, n_bytes)
        content = self._reader.read(index)
        self._reader.share(index, self._folder, self._not_as_archived)
        found = [
            _Part(part.member, part.start, part.stop - part.start, content.slices[part.member - first])
            for part in parts
        ]
        for part in parts:
            if rows.paths[part.member] not in self._reader.there:
                self._write_part(rows[part.member], part, content.of(part.member))
        others = {part.member for part in parts}
        if self._reader.left_out:
            others.update(member for member in files if rows.paths[member] in self._reader.left_out)
        whole = [member - first for member in files if member not in others]
        return _Written(index, self._write_whole(content, whole), n_files, found, n_bytes)

    def _write_whole(self, content: Content, chosen: Sequence[int]) -> dict[str, Stated]:
        """Write the files that a frame holds whole, by their places in it.

        Returns
        -------
        What records state of those that were placed.
        """
        rows, first = self._reader.rows, content.first
        run = slice(first, first + len(content.starts))
        files = _Files(rows.paths[run], content.starts, content.lengths, rows.modes[run], rows.mtimes[run])
        paths = files.names
        self._check_digests(content, chosen)
        placed: dict[str, Stated] = {}
        there, relocated = self._reader.there, self._relocated
        if there or not relocated.keys().isdisjoint(paths):
            chosen = [k for k in chosen if paths[k] not in there]
            for k in chosen:
                if paths[k] in relocated:
                    placed[paths[k]] = self._write_placed(rows[first + k], content.of(first + k))
            chosen = [k for k in chosen if paths[k] not in relocated]
        self._write(files.only(chosen), content.plain)
        return placed

    def _write_left(self, files: Sequence[tuple[Member, memoryview]]) -> dict[str, Stated]:
        """Write the files that were left where the others of a frame were put; what records state of those placed."""
        placed: dict[str, Stated] = {}
        for member, data in files:
            if member.path in self._relocated:
                placed[member.path] = self._write_placed(member, data)
            else:
                self._write(_Files.one(member.path, len(data), member.mode, member.mtime), data)
        return placed

    def _check_digests(self, content: Content, chosen: Sequence[int]) -> None:
        """Hold whole files, by their places in a frame, against the manifest."""
        rows, first, step = self._reader.rows, content.first, digest.N_BYTES
        found = [digest.file_digest(content.slices[k]) for k in chosen]
        wanted = memoryview(rows.digests)[step * first : step * (first + len(content.starts))]
        if len(chosen) == len(content.starts) and b"".join(found) == wanted:
            return  # nearly always
        for k, one in zip(chosen, found, strict=True):
            if one != wanted[step * k : step * (k + 1)]:
                raise _other_digest(rows.paths[first + k])

    def _write(self, files: _Files, data: memoryview | bytearray) -> None:
        """See `batch.write_files`, which all go to but large ones where they are better written one by one; an OSError
        for the first file that could not be written."""
        alone = self._writer.alone(files.lengths)
        for name, start, length, mode, mtime in zip(*files.only(alone), strict=True):
            self._reader.stop_if_asked()
            with file_below(self._folder, name, mode, mtime) as descriptor:
                self._writer.write(descriptor, memoryview(data)[start : start + length], 0, direct.ALONE)
        files = files.only(sorted(set(range(len(files.names))).difference(alone)))
        for start in range(0, len(files.names), AT_ONCE):
            self._reader.stop_if_asked()
            names, *tables = files.some(slice(start, start + AT_ONCE))
            for index, code in batch.write_files(self._folder, names, data, *tables):
                raise OSError(code, os.strerror(code), os.path.join(self._root, names[index]))

    def _write_placed(self, member: Member, data: memoryview) -> Stated:
        file = self._relocated[member.path]
        if digest.sha256(data) != file.sha256:
            raise DamagedArchive("a file does not have the sha256 its relocations state", path=member.path)
        content = self._place(file, bytearray(data), 0, len(file.items), 0)
        self._write(_Files.one(member.path, len(content), member.mode, relocated_mtime(content)), content)
        return Stated(digest.sha256(content), len(content))

    def _write_part(self, member: Member, segment: Segment, data: memoryview) -> None:
        file = self._relocated.get(member.path)
        offset = segment.start
        content: memoryview | bytearray = data
        if file is not None:
            first = next((k for k, item in enumerate(file.items) if item.offset >= segment.start), len(file.items))
            last = next((k for k, item in enumerate(file.items) if item.offset >= segment.stop), len(file.items))
            offset += placed_growth(file.items[:first], file.placeholder, self._prefix or b"")
            content = self._place(file, bytearray(data), first, last, segment.start)
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(member.path, flags, 0o600, dir_fd=self._folder)
        try:
            self._writer.write(descriptor, content, offset)
        finally:
            os.close(descriptor)

    def _place(self, file: RelocatedFile, data: bytearray, first: int, last: int, start: int) -> bytearray:
        assert self._prefix is not None
        try:
            return place(data, file.items[first:last], file.placeholder, self._prefix, start, None, KERNELS.place)
        except (Mismatch, ValueError) as error:
            raise DamagedArchive(f"a relocation does not fit its file ({error})", path=file.path) from None

    def _finish_large(self, member: Member, slices: bytes) -> Stated | None:
        """Check a member that came in several frames, set mode and time; what records state of it, if placed."""
        if not self._reader.trusts(member) and digest.file_digest(slices) != member.digest:
            raise _other_digest(member.path)
        self._reader.check_unchanged(member, self._folder)
        if member.path in self._reader.there:
            return None
        path = os.path.join(self._root, member.path)
        file = self._relocated.get(member.path)
        mtime, stated = member.mtime, None
        if file is not None and self._prefix is not None:
            stated, mtime = _state_of(path)
            edits = unplacing_edits(file.items, file.placeholder, self._prefix)
            with open(path, "rb") as placed:
                found = sha256_of(lambda n, at: os.pread(placed.fileno(), n, at), stated.n_bytes, edits)
            if found != file.sha256:
                raise DamagedArchive("a file does not have the sha256 its relocations state", path=member.path)
        os.chmod(path, member.mode)
        os.utime(path, (mtime, mtime))
        return stated


@contextmanager
def extractor(
    reader: FrameReader, manifest: Manifest, root: str, prefix: bytes | None, relocated: Sequence[RelocatedFile],
    threads: int,
) -> Iterator[Extractor]:  # fmt: skip
    """An `Extractor` into a directory, which is made ready for it."""
    make_directories(root, [member.path for member in manifest.members.of_kind(Kind.DIRECTORY)], threads)
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield Extractor(reader, manifest, folder, root, prefix, relocated, threads)
    finally:
        os.close(folder)


def _runs(layout: Layout) -> list[list[int]]:
    """Frames in runs for `side_by_side`: those that one file spans, and a few of small files together."""
    runs: list[list[int]] = []
    spanned = False
    for index in range(len(layout)):
        parts = layout.parts.get(index, {}).values()
        goes_on = any(part.start > 0 for part in parts)
        begins = any(part.stop < layout.rows.sizes[part.member] for part in parts)
        if not goes_on and (spanned or begins or not runs or len(runs[-1]) >= _RUN):
            runs.append([])
        runs[-1].append(index)
        spanned = goes_on or begins
    return runs


def _other_digest(path: str) -> DamagedArchive:
    return DamagedArchive("a file does not have the digest the manifest states", path=path)


def _state_of(path: str) -> tuple[Stated, int]:
    """What records state of a large placed file, and the mtime that follows from its bytes."""
    whole = hashlib.sha256()
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        while data := file.read(digest.SLICE):
            whole.update(data)
        head = os.pread(file.fileno(), digest.SLICE, 0)
        tail = os.pread(file.fileno(), digest.SLICE, max(0, size - digest.SLICE))
    key = bytes.fromhex(digest.sha256(mtime_key(size, head, tail))) if size > SMALL_FILE else whole.digest()
    return Stated(whole.hexdigest(), size), content_mtime(key)


def write_manifest(root: str, data: bytes | bytearray, archive_id: str) -> None:
    """The manifest is the one member that it does not list itself."""
    path = os.path.join(root, MANIFEST)
    with open(path, "xb") as file:
        file.write(data)
    os.chmod(path, 0o644)
    mtime = content_mtime(bytes.fromhex(archive_id))
    os.utime(path, (mtime, mtime))


def make_directories(root: str, paths: Iterable[str], threads: int) -> None:
    """Those of one depth side by side: making 6,300 of them took 1.6 s of 24."""
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def make(some: list[str]) -> None:
        for path in some:
            try:
                os.mkdir(path, 0o700, dir_fd=folder)
            except OSError as error:
                if not isinstance(error, FileExistsError) or path != ".fastpack":  # the marker's
                    raise OSError(error.errno, error.strerror, os.path.join(root, path)) from None

    depths: dict[int, list[str]] = {}
    for path in paths:
        depths.setdefault(path.count("/"), []).append(path)
    try:
        for _, level in sorted(depths.items()):
            # The kernel lets one thread at a time make something in a directory, so neighbours stay together.
            runs = [[level[start : start + _DIRECTORIES]] for start in range(0, len(level), _DIRECTORIES)]
            for _ in side_by_side(make, runs, min(threads, len(runs))):
                pass
    finally:
        os.close(folder)


def make_links(root: str, members: Rows, left_out: Container[str] = ()) -> None:
    """Hard links, then symbolic ones, last of all: nothing is ever written through a link of the archive.

    Parameters
    ----------
    left_out : files that are not there, and have no further names either.
    """
    for member in members.of_kind(Kind.HARDLINK):
        if member.target in left_out:
            continue
        os.link(os.path.join(root, member.target), os.path.join(root, member.path), follow_symlinks=False)
    for member in members.of_kind(Kind.LINK):
        path = os.path.join(root, member.path)
        os.symlink(member.target, path)
        os.utime(path, (EPOCH_2000, EPOCH_2000), follow_symlinks=False)


def finish_directories(root: str, members: Rows) -> None:
    """Times and modes of directories, the deepest first: stricter modes come when nothing is written there any more."""
    for member in sorted(members.of_kind(Kind.DIRECTORY), key=lambda m: -m.path.count("/")):
        path = os.path.join(root, member.path)
        if member.path != ".fastpack":
            os.utime(path, (member.mtime, member.mtime))
        os.chmod(path, member.mode if member.final_mode is None else member.final_mode)

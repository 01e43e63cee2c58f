"""Frames of a new archive from a delta and an environment that was unpacked from the old one.

A frame that the delta does not ship is one that the old archive had, so its files lie in the environment, placed for
where that lies. They are brought back into archive form, and the frame is held against its digest as one from an
archive is: a file that was changed in between is found, not copied. Frames that nobody has touched since they were
unpacked (`SeenFrames`) are not read for that: their files are reflinked, linked or copied as they are.
"""

from __future__ import annotations

import errno
import filecmp
import os
import stat
from array import array
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager

from fastpack import digest, direct, pagecache
from fastpack._batch_py import LISTED, numbers_of, settle
from fastpack._place_py import RelocatedFile, Stated, unplace, with_pad
from fastpack.codec import Codec, by_name
from fastpack.deltafile import read_table, read_tail
from fastpack.errors import DamagedArchive, FastpackError, IncompleteEnvironment, Unreadable, UsageError, WrongBase
from fastpack.fs import is_compiled
from fastpack.installed import Installed, read_installed
from fastpack.layout import Segment
from fastpack.manifest import Manifest, files_and_links_beside
from fastpack.model import Kind
from fastpack.native import batch
from fastpack.parallel import Scratch
from fastpack.reader import Content, FrameReader
from fastpack.relocation import ArchiveForm, Edited, PRead, unplacing_edits
from fastpack.rows import Member
from fastpack.sharing import Links, Seen, Sharer
from fastpack.stat_table import SeenFrames


@contextmanager
def open_delta(
    descriptor: int, path: str, base: str, links: Links, verify_content: bool, on_modified: str
) -> Iterator[tuple[FrameReader, Manifest, bytes]]:
    """A delta and the environment it is put together with: (reader of the new archive's frames, its manifest, its id).

    Parameters
    ----------
    base : the environment's directory.
    links : which files that did not change get a further name where they cannot be reflinked.
    verify_content : read every file of the environment, also those that nobody has touched.
    on_modified : ``error``: refuse where a file of the environment was changed by hand and the new one has another one,
        or none, in its place; ``replace``: that counts.

    Raises
    ------
    WrongBase : the environment was unpacked from another archive than the delta was made against, or was changed.
    DamagedArchive, NewerFormat, HostileArchive, NotAnEnvironment, IncompleteEnvironment, UsageError
    """
    table, position = read_table(descriptor, path)
    _, tail_at, manifest = read_tail(descriptor, path, position, table)
    installed = read_installed(base, with_members=False)
    state = installed.state
    if installed.archive_id != table.old:
        raise WrongBase(
            "the delta was made against another archive than the environment was unpacked from", path=base,
            expected=table.old, found=installed.archive_id, hint="ship the whole archive",
        )  # fmt: skip
    if state is None or not state["complete"]:
        raise IncompleteEnvironment(
            "the base is not relocated to its end", path=base, hint="run its bin/conda-unpack and try again"
        )
    if installed.manifest.dest_prefix is not None or manifest.dest_prefix is not None:
        raise UsageError(
            "an archive that was packed for one prefix (--dest-prefix) cannot be put together from an environment",
            path=path, hint="put the archive together with fastpack apply, and unpack it",
        )  # fmt: skip
    offsets = {}
    for index in sorted(table.shipped):
        if index >= len(manifest.frames):
            raise DamagedArchive("the delta ships a frame that the archive does not have", path=path, found=index)
        offsets[index] = position
        position += manifest.frames[index].packed_bytes
    if position != tail_at:
        raise DamagedArchive("the delta's frames are not what it says", path=path, expected=position, found=tail_at)
    folder = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        seen = None if verify_content else SeenFrames(base, installed.archive_id)
        reader = _Rebuilder(descriptor, by_name(table.codec), manifest, offsets, base, folder, installed, links, seen)
        if on_modified == "error":
            reader.check_replaced()
        yield reader, manifest, table.new
    finally:
        os.close(folder)


class _Rebuilder(FrameReader):
    """Reads a delta's frames, and puts the others together from an environment."""

    def __init__(
        self, descriptor: int, codec: Codec, manifest: Manifest, offsets: Mapping[int, int], root: str, folder: int,
        installed: Installed, links: Links, seen: SeenFrames | None,
    ) -> None:  # fmt: skip
        super().__init__(descriptor, codec, manifest, offsets)
        assert installed.state is not None
        self._root = root
        self._folder = folder
        self._installed = installed
        self._target = os.fsencode(installed.state["prefix"])
        self._signed = installed.state.get("signed", {})
        files = [with_pad(file, installed.state.get("pad", [])) for file in installed.table[0]]
        self._files = {file.path: file for file in files}
        self._archived = {file.path: Stated(file.sha256, file.n_bytes) for file in files}
        self._writer = direct.Writer(copies=True)
        self._sharer = Sharer(self, folder, links, self._writer)
        self._scratch = Scratch()
        self._seen = seen
        self._old: dict[bytes, list[int]] = {}
        for index, frame in enumerate(installed.manifest.frames):
            self._old.setdefault(frame.digest, []).append(index)
        self._read: dict[int, Seen] = {}  # what was said of a frame's files when they were read
        # Of files in several frames: what was said of each at first, those that nobody has touched, and those of which
        # something else was said while they were read or copied.
        self._large: dict[str, array[int]] = {}
        self._trusted: set[str] = set()
        self._unsure: set[str] = set()

    def _untouched(self, index: int) -> array[int] | None:
        """What the system says of a frame's files, if that is what it said right after they were unpacked."""
        if self._seen is None or index in self._offsets:
            return None
        # Equal frames in the middle of files are told apart by their places.
        old, place = self._old.get(self._manifest.frames[index].digest, ()), self.place_of(index)
        rows = batch.stat_files(self._folder, list(place.paths))
        return rows if any(self._seen.untouched(each, place, rows) for each in old) else None

    def put(self, index: int, folder: int, relocated: Container[str]) -> list[tuple[Member, memoryview]] | None:
        rows = self.rows
        first, last = self.layout.members(index)
        parts = self.layout.parts.get(index, {}).values()
        if any(part.stop - part.start < rows.sizes[part.member] for part in parts):
            if last - first > 1:
                return None  # no frame that fastpack cuts: a part of a large file lies alone
            (part,) = parts
            path = rows.paths[first]
            if path in self._trusted and path not in self.there:
                self._copy_part(rows[first], part, folder)
            return [] if path in self._trusted else None
        found = self._untouched(index)
        if found is None:
            return None
        files, paths = rows.files_in(first, last), rows.paths
        seen = Seen(files, found)
        left = self._placed(seen, relocated)
        seen = seen.but(left)
        self._sharer.share(seen, folder)
        self._sharer.copy(seen, folder)
        if not all(paths[member] in self.there for member in seen.members):
            return None
        return [(rows[member], self._whole(rows[member])) for member in sorted(left)]

    def _whole(self, member: Member) -> memoryview:
        """A small file in archive form, held against its digest."""
        data = memoryview(bytearray(member.n_bytes))
        self._fill(member, 0, data)
        if digest.file_digest(digest.slice_digests(data)) != member.digest:
            raise _changed(self._root, member)
        return data

    def _copy_part(self, member: Member, segment: Segment, folder: int) -> None:
        """Copy a part of a large file, through a buffer that stays in the processor's cache."""
        flags = os.O_NOFOLLOW | os.O_CLOEXEC
        source = os.open(member.path, flags | os.O_RDONLY | os.O_NONBLOCK, dir_fd=self._folder)
        try:
            target = os.open(member.path, flags | os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=folder)
            try:
                piece = pagecache.Piece(source, segment.start, segment.stop - segment.start)
                try:
                    self._writer.move(target, piece, segment.start)
                except pagecache.BecameShorter:
                    raise _changed(self._root, member) from None
                if numbers_of(os.fstat(source)) != self._large[member.path].tolist():
                    self._unsure.add(member.path)
            finally:
                os.close(target)
        finally:
            os.close(source)

    def check_replaced(self) -> None:
        """Refuse where something was changed by hand that the delta replaces, or that the new environment has not.

        Contents of files and links count; not what Python compiles anew, nor what is gone. The other files are held
        against their frames' digests.
        """
        paths: tuple[set[str], set[str]] = (set(), set())  # kept, shipped
        for index in range(len(self.layout)):
            paths[index in self._offsets].update(self.place_of(index).paths)
        kept = paths[False] - paths[True]
        changed = []
        for member in files_and_links_beside(self._installed.manifest.raw, kept):
            # What codesign signed cannot be brought back.
            other = member.path.startswith(".fastpack/") or member.path.endswith(".pyc") or member.path in self._signed
            if not other and self._is_there(member) and self._is_other(member):
                changed.append(member)
        if changed:
            more = f" and {len(changed) - 1} more were" if len(changed) > 1 else " was"
            raise WrongBase(
                f"a file of the base{more} changed since it was unpacked, and the new environment would not have that",
                path=os.path.join(self._root, changed[0].path), hint="--on-modified replace lets the delta replace it",
            )  # fmt: skip

    def _is_there(self, member: Member) -> bool:
        return os.path.lexists(os.path.join(self._root, member.path))

    def _is_other(self, member: Member) -> bool:
        """Whether what is there is not what was unpacked."""
        path = os.path.join(self._root, member.path)
        if member.kind is Kind.LINK:
            return not os.path.islink(path) or os.readlink(path) != member.target
        if not stat.S_ISREG(os.lstat(path).st_mode):
            return True
        if member.kind is Kind.HARDLINK:
            other = os.path.join(self._root, member.target)
            if not os.path.isfile(other):
                return True
            return not (os.path.samefile(path, other) or filecmp.cmp(path, other, shallow=False))
        return self._is_changed(member)

    def share(self, index: int, folder: int, relocated: Container[str]) -> None:
        seen = self._read.pop(index, None)
        if seen is not None:
            in_parts = self.layout.parts.get(index, {}).keys()
            self._sharer.share(seen.but(in_parts | self._placed(seen, relocated)), folder)

    def _placed(self, seen: Seen, relocated: Container[str]) -> set[int]:
        """Those that are not the same at another prefix, here or there."""
        paths = self.rows.paths
        return {member for member in seen.members if paths[member] in relocated or paths[member] in self._files}

    def share_large(self, folder: int, relocated: Container[str]) -> None:
        folders = [member.path for member in self.rows.of_kind(Kind.DIRECTORY)]
        if not self._sharer.look_around(folders, folder):
            self._seen = None
        # Several threads write a file's parts: it is known before the first of them whether it is shared.
        paths = self.rows.paths
        parts: dict[int, list[int]] = {}
        for index in sorted(self.layout.parts):
            for member, part in self.layout.parts[index].items():
                if part.stop - part.start < self.rows.sizes[member]:
                    parts.setdefault(member, []).append(index)
        here = [member for member, frames in parts.items() if self._offsets.keys().isdisjoint(frames)]
        seen = Seen(here, batch.stat_files(self._folder, [paths[member] for member in here]))
        for k, member in enumerate(here):
            path = paths[member]
            self._large[path] = seen.row(k)
            if path in relocated or path in self._files:
                continue
            if all(self._untouched(frame) == seen.row(k) for frame in parts[member]):
                self._trusted.add(path)
        self._sharer.share(seen.but(self._placed(seen, relocated)), folder)
        # Linking a file changes what is said of it.
        shared = [paths[member] for member in here if paths[member] in self.shared]
        for path, info in zip(shared, (os.lstat(path, dir_fd=folder) for path in shared), strict=True):
            if info.st_nlink > 1:
                self._large[path] = array("q", numbers_of(info))

    def bytes_on_disk(self, parent: str) -> int:
        if not self._sharer.takes_no_room(parent):
            return super().bytes_on_disk(parent)
        made = [member for index in self._offsets for member in range(*self.layout.members(index))]
        made += [member for member, path in enumerate(self.rows.paths) if path in self._files]
        n_blocks = sum(-(-self.rows.sizes[member] // 4096) for member in set(made))
        return 4096 * (n_blocks + len(self.rows) // 8)  # 512 bytes for an inode

    def trusts(self, member: Member) -> bool:
        return member.path in self._trusted

    def check_unchanged(self, member: Member, folder: int) -> None:
        path = member.path
        if path not in self._trusted and path not in self.shared:
            return
        # Another name may be all that it got, or lost.
        is_sure = path not in self._unsure and batch.stat_files(self._folder, [path]) == self._large[path]
        if not is_sure and self._is_changed(member, folder):
            raise _changed(self._root, member)

    def read(self, index: int) -> Content:
        if index in self._offsets:
            return super().read(index)
        content, is_right = self._content(index)
        if is_right:
            return content
        # Which of its files it is: those that do not have their own digests.
        compiled: set[int] = set()
        for segment in self.layout[index]:
            member = self._manifest.members[segment.member]
            if member.kind is not Kind.FILE:
                continue
            if is_compiled(member.path) and segment.stop - segment.start == member.n_bytes:
                if digest.file_digest(content.slices[segment.member - content.first]) != member.digest:
                    compiled.add(segment.member)
            elif self._is_changed(member):
                raise _changed(self._root, member)
        if not compiled:
            raise WrongBase(f"the base does not have what frame {index} holds", path=self._root, hint=_HINT)
        # Python has made them anew, or they were removed: so it does in the new environment.
        self.left_out.update(self.rows.paths[member] for member in compiled)
        if index in self._read:
            self._read[index] = self._read[index].but(compiled)
        return content

    def _is_changed(self, member: Member, folder: int | None = None) -> bool:
        """Whether a file does not have its own digest: of the base, or of another directory that has it as it is."""
        slices = b""
        try:
            for start in range(0, max(1, member.n_bytes), _READ):
                data = memoryview(bytearray(min(_READ, member.n_bytes - start)))
                self._fill(member, start, data, folder)
                slices += digest.slice_digests(data)
        except WrongBase:
            return True
        return digest.file_digest(slices) != member.digest

    def _plain(self, index: int) -> memoryview:
        if index in self._offsets:
            return super()._plain(index)
        n_bytes = self._manifest.frames[index].plain_bytes
        plain = self._scratch.view(n_bytes)
        batch.fill_zeros(array("q", [0]), array("q", [n_bytes]), plain)
        headers = self._headers(index)
        position = 0
        as_archived: list[tuple[Member, Segment]] = []
        for segment in self.layout[index]:
            n_header = segment.header_bytes
            plain[segment.at - n_header : segment.at] = headers[position : position + n_header]
            position += n_header
            member = self._manifest.members[segment.member]
            if member.kind is not Kind.FILE:
                continue
            if member.path in self._files:
                self._fill(member, segment.start, segment.of(plain))
            else:
                as_archived.append((member, segment))
        for member, segment in self._read_many(index, as_archived, plain):
            try:
                self._fill(member, segment.start, segment.of(plain))
            except WrongBase:
                if not is_compiled(member.path):
                    raise
        return plain

    def _read_many(
        self, index: int, found: Sequence[tuple[Member, Segment]], plain: memoryview
    ) -> list[tuple[Member, Segment]]:
        """Fill a frame with files that are as the archive has them; those that have not its size and time are left."""
        seen = Seen([segment.member for _, segment in found], array("q", bytes(8 * len(LISTED) * len(found))))
        failed = batch.read_files(
            self._folder,
            [member.path for member, _ in found],
            array("q", [member.n_bytes for member, _ in found]),
            array("q", [member.mtime * 1_000_000_000 for member, _ in found]),
            array("q", [segment.start for _, segment in found]),
            array("q", [segment.at for _, segment in found]),
            array("q", [segment.stop - segment.start for _, segment in found]),
            plain,
            seen.rows,
        )
        left = [found[k] for k, _ in failed]
        self._read[index] = seen.but({segment.member for _, segment in left})
        for k, (member, _) in enumerate(found):
            if member.path in self._large and seen.row(k) != self._large[member.path]:
                self._unsure.add(member.path)
        return left

    def _fill(self, member: Member, start: int, out: memoryview, folder: int | None = None) -> None:
        """Fill a buffer with a part of a file in archive form."""
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
            descriptor = os.open(member.path, flags, dir_fd=self._folder if folder is None else folder)
        except OSError as error:
            raise self._unreadable(member, error) from None
        try:
            info = os.fstat(descriptor)
            if not stat.S_ISREG(info.st_mode):
                raise _changed(self._root, member)
            settle(descriptor)
            file = self._files.get(member.path)
            if file is None:
                n_read = os.preadv(descriptor, [out], start) if out else 0
                while 0 < n_read < len(out) and (more := os.preadv(descriptor, [out[n_read:]], start + n_read)):
                    n_read += more
                if n_read != len(out) or info.st_size != member.n_bytes:
                    raise _changed(self._root, member)
                return
            read, n_bytes = archived(descriptor, file, self._target, self._archived)
            if n_bytes != member.n_bytes or member.path in self._signed:
                raise _changed(self._root, member)
            out[:] = read(len(out), start)
        except OSError as error:
            raise self._unreadable(member, error) from None
        except (ValueError, ArithmeticError, LookupError):
            raise _changed(self._root, member) from None
        finally:
            os.close(descriptor)

    def _unreadable(self, member: Member, error: OSError) -> FastpackError:
        if error.errno in _GONE:
            return _changed(self._root, member)
        path = os.path.join(self._root, member.path)
        return Unreadable(f"a file of the base cannot be read ({error.strerror})", path=path)


#: Where a file was, there is something else, or nothing.
_GONE = frozenset([errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.EISDIR])
#: Bytes of a file that are looked at together: whole slices.
_READ = 8 * digest.SLICE
_HINT = "the delta does not have it: apply the delta to the old archive, or make it with --ship"


def _changed(root: str, member: Member) -> WrongBase:
    return WrongBase(
        "a file of the base was changed since it was unpacked", path=os.path.join(root, member.path), hint=_HINT
    )


def archived(descriptor: int, file: RelocatedFile, target: bytes, stated: Mapping[str, Stated]) -> tuple[PRead, int]:
    """A relocated file as the archive had it: (pread, bytes).

    Parameters
    ----------
    descriptor : the file as it lies in an environment.
    file : its relocations, with the padding it was placed with.
    target : the prefix that it names.
    stated : what the archive's records state of relocated files.
    """
    size = os.fstat(descriptor).st_size

    def pread(n_bytes: int, at: int) -> bytes:
        return os.pread(descriptor, n_bytes, at)

    if file.second_phase:
        data = bytes(unplace(bytearray(pread(size, 0)), file.items, file.placeholder, target, 0, stated))
        return (lambda n_bytes, at: data[at : at + n_bytes]), len(data)
    edits = unplacing_edits(file.items, file.placeholder, target) if file.fits(target) else ()
    return Edited(pread, edits).read, ArchiveForm(edits, ()).n_bytes(size)

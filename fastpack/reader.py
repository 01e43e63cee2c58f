"""Reading an archive by its manifest: that each frame is what that says."""

from __future__ import annotations

import itertools
import operator
import os
import stat
from array import array
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from fastpack import digest, pagecache
from fastpack._place_py import OPTIONAL, RELOCATIONS, RelocatedFile, read_relocations, width_of
from fastpack.codec import Codec
from fastpack.errors import DamagedArchive, UsageError
from fastpack.frames import Locator, open_descriptor, read_manifest
from fastpack.layout import lay_out
from fastpack.manifest import BROKEN, Manifest
from fastpack.model import Kind
from fastpack.native import batch
from fastpack.rows import Member, Rows
from fastpack.stat_table import FrameFiles

#: Up to this size of the list of relocations no ratio to its compressed bytes counts; beyond, more than that is a bomb.
MODEST_LIST, MAX_RATIO = 32 << 20, 1000


#: Files that are made at once: an interrupt waits for so many.
AT_ONCE = 256


class Content(NamedTuple):
    """A frame's bytes, and of each member in it, `first` and those that follow: where its data lie, and their slices'
    digests (nothing for what is no file)."""

    plain: memoryview
    first: int
    starts: array[int]
    lengths: array[int]
    slices: list[bytes]

    def of(self, member: int) -> memoryview:
        """The data of a member."""
        start = self.starts[member - self.first]
        return self.plain[start : start + self.lengths[member - self.first]]


class FrameReader:
    """Decodes frames and holds them against the manifest; may be used by several threads."""

    def __init__(
        self, descriptor: int, codec: Codec, manifest: Manifest, offsets: Mapping[int, int] | None = None
    ) -> None:
        """See the class.

        Parameters
        ----------
        offsets : frames that the file has, and where they begin; None: all, where the manifest says.
        """
        self._descriptor = descriptor
        self._codec = codec
        self._manifest = manifest
        self.layout = lay_out(manifest)
        self.rows = manifest.members
        size = os.fstat(descriptor).st_size
        self._offsets = {k: frame.offset for k, frame in enumerate(manifest.frames)} if offsets is None else offsets
        for index, offset in self._offsets.items():
            if offset + manifest.frames[index].packed_bytes > size:
                raise DamagedArchive(f"the archive is cut off in frame {index}", found=f"{size} bytes")
        #: Paths of files that are where they belong, and of those that share their bytes with another environment.
        self.there: set[str] = set()
        self.shared: set[str] = set()
        #: Paths of files that there are no bytes of any more, and that Python makes anew.
        self.left_out: set[str] = set()
        #: Set by whoever wants no more files.
        self.stopping = False

    def stop_if_asked(self) -> None:
        """Raise an InterruptedError if no more files are wanted."""
        if self.stopping:
            raise InterruptedError

    def place_of(self, index: int) -> FrameFiles:
        """The files that a frame holds, and where in the first one it begins."""
        first, last = self.layout.members(index)
        paths = [self.rows.paths[member] for member in self.rows.files_in(first, last)]
        parts = self.layout.parts.get(index, {})
        return FrameFiles(paths, parts[first].start if first in parts else 0)

    def put(self, index: int, folder: int, relocated: Container[str]) -> list[tuple[Member, memoryview]] | None:
        """Put the files of a frame where they belong without reading it, if that can be. Of an archive it cannot.

        Parameters
        ----------
        folder : descriptor of the environment to be.
        relocated : paths of files that are not as the archive has them.

        Returns
        -------
        The files that are left to be written, and their bytes; None if the frame must be read.
        """
        return None

    def share(self, index: int, folder: int, relocated: Container[str]) -> None:
        """Put whole files of a frame that was read where they belong, without copying them. An archive has none."""

    def share_large(self, folder: int, relocated: Container[str]) -> None:
        """The same for files that lie in several frames, before any of these is read."""

    def trusts(self, member: Member) -> bool:
        """Whether a file that lies in several frames is known to be right without its digest."""
        return False

    def check_unchanged(self, member: Member, folder: int) -> None:
        """Whether a file that lies in several frames, and was shared or trusted, is right: it may have changed."""

    def bytes_on_disk(self, parent: str) -> int:
        """What the environment's files will take of a file system, in blocks of 4 KiB.

        Parameters
        ----------
        parent : a directory of that file system.
        """
        return 4096 * (sum(-(-n_bytes // 4096) for n_bytes in self.rows.sizes) + len(self.rows))

    def shared_bytes(self) -> int:
        """Bytes of the files that share theirs with another environment."""
        if not self.shared:
            return 0
        return sum(
            n_bytes for path, n_bytes in zip(self.rows.paths, self.rows.sizes, strict=True) if path in self.shared
        )

    def packed(self, index: int) -> memoryview:
        """A frame's compressed bytes; DamagedArchive if the archive ends before they do."""
        frame = self._manifest.frames[index]
        try:
            packed = pagecache.read(self._descriptor, frame.packed_bytes, self._offsets[index])
        except OSError as error:
            raise DamagedArchive(f"the archive cannot be read ({error.strerror})") from None
        if len(packed) != frame.packed_bytes:
            raise DamagedArchive(f"the archive is cut off in frame {index}")
        return packed

    def read(self, index: int) -> Content:
        """A frame's bytes, and the digests of what it holds; they may only last until this thread reads the next one.

        Raises
        ------
        DamagedArchive : it is not what the manifest says; nothing of it was used.
        """
        content, is_right = self._content(index)
        if not is_right:
            path = self.rows.paths[content.first] if content.starts else None
            raise DamagedArchive(f"frame {index} does not have the digest the manifest states", path=path)
        return content

    def _content(self, index: int) -> tuple[Content, bool]:
        """What a frame holds, and whether it is what the manifest says; DamagedArchive where that cannot be told."""
        first, last = self.layout.members(index)
        plain = self._plain(index)
        headers = self._headers(index)
        starts, lengths = self.layout.at[first:last], self.rows.sizes[first:last]
        of_headers = self.layout.headers[first:last]
        for member, segment in self.layout.parts.get(index, {}).items():
            starts[member - first], lengths[member - first] = segment.at, segment.stop - segment.start
            of_headers[member - first] = segment.header_bytes
        odd = batch.odd_place(plain, headers, of_headers, starts, lengths)
        if 0 <= odd < len(starts):
            raise DamagedArchive(
                "the tar stream and the manifest disagree", path=self.rows.paths[first + odd], found=f"in frame {index}"
            )
        stops = list(map(operator.add, starts, lengths))
        slices = digest.slices_of_each(plain, starts, stops)
        for k in self.rows.others_in(first, last):
            if self.rows.kind(k) is not Kind.FILE:
                slices[k - first] = b""
        ends = itertools.accumulate(of_headers, initial=0)
        hashed = itertools.chain.from_iterable(
            (headers[start:stop], found) for (start, stop), found in zip(itertools.pairwise(ends), slices, strict=True)
        )
        is_right = odd < 0 and digest.frame_digest(hashed) == self._manifest.frames[index].digest
        return Content(plain, first, starts, lengths, slices), is_right

    def _plain(self, index: int) -> memoryview:
        """A frame's bytes, whatever they are."""
        return memoryview(self._codec.decompress(self.packed(index), self._manifest.frames[index].plain_bytes))

    def _begun(self, index: int) -> tuple[int, int]:
        """The first member that begins in a frame, and one more than the last."""
        first, last = self.layout.members(index)
        parts = self.layout.parts.get(index, {})
        return (first + 1 if first in parts and not parts[first].header_bytes else first), last

    def _headers(self, index: int) -> bytes:
        """The headers of the members that begin in a frame, one after the other, as the manifest has them."""
        return self.rows.headers(*self._begun(index), self._manifest.arcroot)


@dataclass(frozen=True, slots=True)
class Archive:
    """An archive of fastpack's, open for reading."""

    path: str
    descriptor: int
    codec: Codec
    locator: Locator
    manifest: Manifest
    reader: FrameReader

    @property
    def archive_id(self) -> str:
        return self.locator.archive_id.hex()

    def content(self, index: int) -> Iterator[memoryview]:
        """A file's bytes as they lie in the archive, frame by frame; the last piece only if its digest is right.

        A piece may only last until the next one is asked for.
        """
        member = self.manifest.members[index]
        slices = b""
        frames = self.reader.layout.frames_of(index)
        for frame in frames:
            content = self.reader.read(frame)
            slices += content.slices[index - content.first]
            if frame == frames[-1] and digest.file_digest(slices) != member.digest:
                raise DamagedArchive("a file does not have the digest the manifest states", path=member.path)
            yield content.of(index)


#: First bytes of formats that are only written and unpacked.
_WITHOUT_FRAMES = {b"PK\x03\x04": "zip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"hsqs": "squashfs"}


@contextmanager
def open_archive(path: str) -> Iterator[Archive]:
    """Open an archive of fastpack's, and read its manifest.

    Raises
    ------
    DamagedArchive, NewerFormat, HostileArchive : also for one that fastpack did not make.
    """
    descriptor = open_descriptor(path, os.O_NONBLOCK)  # a FIFO has no end to read from
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise DamagedArchive("that is no file that can be read from its end", path=path, hint="give it as a file")
        found = read_manifest(descriptor, path)
        if found is None:
            head = os.pread(descriptor, 8, 0)
            for magic, name in _WITHOUT_FRAMES.items():
                if head.startswith(magic):
                    raise UsageError(
                        f"parts of a {name} file are not found from its end", path=path,
                        expected="a tar.zst, tar.gz or tar", hint="unpack it, and verify the directory",
                    )  # fmt: skip
            raise DamagedArchive(
                "fastpack did not make this archive, or its end is missing",
                path=path,
                hint="fastpack unpack tells more",
            )
        codec, locator, manifest = found
        yield Archive(path, descriptor, codec, locator, manifest, FrameReader(descriptor, codec, manifest))
    except DamagedArchive as error:
        error.path = error.path or path
        raise
    finally:
        os.close(descriptor)


def read_relocated(reader: FrameReader, manifest: Manifest) -> list[RelocatedFile]:
    """The relocations, from their member near the archive's end, and every check that needs no file's bytes."""
    paths = manifest.members.paths
    wanted = paths.index(RELOCATIONS) if RELOCATIONS in paths else None
    if wanted is None:
        raise DamagedArchive("the archive has no relocations", path=RELOCATIONS)
    frames = reader.layout.frames_of(wanted)
    n_bytes = manifest.members.sizes[wanted]
    if n_bytes > max(MODEST_LIST, MAX_RATIO * sum(manifest.frames[index].packed_bytes for index in frames)):
        raise DamagedArchive("the relocations would not fit into memory", path=RELOCATIONS, found=f"{n_bytes} bytes")
    parts = [bytes(reader.read(index).of(wanted)) for index in frames]  # a view lasts until the next frame is read
    return check_relocated(b"".join(parts), manifest.members, manifest.dest_prefix is None)


def check_relocated(data: bytes, members: Rows, archive_form: bool) -> list[RelocatedFile]:
    """Read ``relocations.json`` and hold it against the members.

    Raises
    ------
    DamagedArchive
    """
    try:
        files = read_relocations(data)
    except BROKEN as error:
        raise DamagedArchive(
            f"the relocations are broken ({type(error).__name__}: {error})", path=RELOCATIONS
        ) from None
    wanted = {file.path for file in files}
    places = [index for index, path in enumerate(members.paths) if path in wanted and members.kind(index) is Kind.FILE]
    known = {members.paths[index]: members.sizes[index] for index in places}
    seen: set[str] = set()
    for file in files:
        n_bytes = known.get(file.path)
        if n_bytes is None or file.path in seen or file.path.startswith(".fastpack/"):
            raise DamagedArchive("relocations of a file that is not in the archive", path=file.path)
        seen.add(file.path)
        if archive_form and n_bytes != file.n_bytes:
            raise DamagedArchive(
                "the relocations are of a file of another size", path=file.path, expected=file.n_bytes,
                found=n_bytes,
            )  # fmt: skip
        reach = 0
        for item in file.items:
            length = item.value if item.fixed and isinstance(item.value, int) else None
            if length is not None:
                if item.offset < reach or item.offset + length > file.n_bytes:
                    raise DamagedArchive("a relocation reaches out of its file", path=file.path)
                reach = item.offset + length
            elif item.fixed and item.value is None and item.offset + item.slot > reach:
                raise DamagedArchive("a relocation reaches out of its string", path=file.path)
            if item.fixed and item.value != OPTIONAL and item.slot != len(file.placeholder) * width_of(item.kind):
                raise DamagedArchive("a relocation's slot is not its placeholder's length", path=file.path)
        if len({(item.fixed, item.padded) for item in file.items}) > 1:
            raise DamagedArchive("relocations of text and of a binary in one file", path=file.path)
    return files

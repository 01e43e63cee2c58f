"""Reading an archive by its manifest: which frame holds what, and that each frame is what the manifest says."""

from __future__ import annotations

import functools
import os
import stat
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from fastpack import container, digest, pagecache
from fastpack._batch_py import BLOCK, NAME
from fastpack._place_py import OPTIONAL, RELOCATIONS, RelocatedFile, read_relocations
from fastpack.codec import Codec
from fastpack.errors import DamagedArchive, UsageError
from fastpack.frames import Locator, open_descriptor, read_manifest
from fastpack.manifest import BROKEN, Manifest, Member, tar_headers
from fastpack.model import Kind
from fastpack.stat_table import FrameFiles

#: Up to this size of the list of relocations no ratio to its compressed bytes counts; beyond, more than that is a bomb.
MODEST_LIST, MAX_RATIO = 32 << 20, 1000


#: Files that are made at once: an interrupt waits for so many.
AT_ONCE = 256


class Segment(NamedTuple):
    """Part of a member in a frame. `at` is its data's place in the frame, [start, stop) its place in the member."""

    member: int
    at: int
    start: int
    stop: int
    header_bytes: int  # of the header right before the data, 0 if it lies in an earlier frame

    def of(self, plain: memoryview) -> memoryview:
        """Its data in the frame's bytes."""
        return plain[self.at : self.at + self.stop - self.start]


#: `Segment` of a row of all its fields, which takes a fifth of the time.
_AS_SEGMENT: Callable[[tuple[int, ...]], Segment] = functools.partial(tuple.__new__, Segment)


def lay_out(manifest: Manifest) -> list[list[Segment]]:
    """Which parts of which members each frame holds, from the sizes alone.

    Raises
    ------
    DamagedArchive : the members do not fill the frames exactly.
    """
    root = manifest.arcroot + "/" if manifest.arcroot else ""
    plain_name = NAME - len(root)
    sizes = [frame.plain_bytes for frame in manifest.frames]
    layout: list[list[Segment]] = [[] for _ in sizes]
    frame = position = 0
    for index, member in enumerate(manifest.members):
        while frame < len(sizes) and position == sizes[frame]:
            frame, position = frame + 1, 0
        path, n_bytes = member.path, member.n_bytes
        if len(path) < plain_name and path.isascii() and not member.target:
            header_bytes = BLOCK  # of nearly all of them
        else:
            header_bytes = _header_bytes(member, root)
        position += header_bytes
        if frame < len(sizes) and position + n_bytes + -n_bytes % BLOCK <= sizes[frame]:
            layout[frame].append(_AS_SEGMENT((index, position, 0, n_bytes, header_bytes)))
            position += n_bytes + -n_bytes % BLOCK
            continue
        done = 0
        first = True
        while True:
            if frame >= len(sizes) or position > sizes[frame]:
                raise DamagedArchive("the manifest's members do not fit its frames", path=member.path)
            take = min(sizes[frame] - position, member.n_bytes - done)
            layout[frame].append(Segment(index, position, done, done + take, header_bytes if first else 0))
            position += take
            done += take
            first = False
            if done == member.n_bytes:
                break
            frame, position = frame + 1, 0
        position += container.padding(member.n_bytes)
        if position > sizes[frame]:
            raise DamagedArchive("the manifest's members do not fit its frames", path=member.path)
    if frame != len(sizes) - 1 or position != sizes[frame]:
        raise DamagedArchive("the manifest's members do not fill its frames", found=f"frame {frame} of {len(sizes)}")
    return layout


def _header_bytes(member: Member, root: str) -> int:
    """The length of a member's tar header, with the GNU long-name members before it."""
    (name,), (text,) = container.raw_names([member.kind], root, [member.path], [member.target])
    return container.header_bytes(name, text)


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
        size = os.fstat(descriptor).st_size
        self._offsets = {k: frame.offset for k, frame in enumerate(manifest.frames)} if offsets is None else offsets
        for index, offset in self._offsets.items():
            if offset + manifest.frames[index].packed_bytes > size:
                raise DamagedArchive(f"the archive is cut off in frame {index}", found=f"{size} bytes")
        #: Paths of files that are where they belong, and of those that share their bytes with another environment.
        self.there: set[str] = set()
        self.shared: set[str] = set()
        #: Set by whoever wants no more files.
        self.stopping = False

    def files_of(self, index: int) -> list[Member]:
        """The files that a frame holds, whole or in part."""
        members = [self._manifest.members[segment.member] for segment in self.layout[index]]
        return [member for member in members if member.kind is Kind.FILE]

    def place_of(self, index: int) -> FrameFiles:
        """The files that a frame holds, and where in the first one it begins."""
        return FrameFiles([member.path for member in self.files_of(index)], self.layout[index][0].start)

    def put(self, index: int, folder: int, relocated: Container[str]) -> bool:
        """Put all files of a frame where they belong without reading it, if that can be. Of an archive it cannot.

        Parameters
        ----------
        folder : descriptor of the environment to be.
        relocated : paths of files that are not as the archive has them.
        """
        return False

    def share(self, index: int, folder: int, relocated: Container[str]) -> None:
        """Put whole files of a frame that was read where they belong, without copying them. An archive has none."""

    def share_large(self, folder: int, relocated: Container[str]) -> None:
        """The same for files that lie in several frames, before any of these is read."""

    def trusts(self, member: Member) -> bool:
        """Whether a file that lies in several frames is known to be right without its digest."""
        return False

    def check_unchanged(self, member: Member) -> None:
        """Whether a file that was shared or trusted has not changed since."""

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

    def frames_of(self, member: int) -> list[int]:
        """The frames that hold a member, in order."""
        return [index for index, segments in enumerate(self.layout) if any(s.member == member for s in segments)]

    def read(self, index: int) -> tuple[memoryview, list[tuple[Segment, bytes]]]:
        """A frame's bytes, and its segments with their slice digests.

        Raises
        ------
        DamagedArchive : it is not what the manifest says; nothing of it was used.
        """
        frame = self._manifest.frames[index]
        members = self._manifest.members
        plain = self._plain(index)
        found: list[tuple[Segment, bytes]] = []
        hashed: list[bytes] = []
        headers = self._headers(index)
        position = end = 0
        for segment in self.layout[index]:
            n_header = segment.header_bytes
            if n_header:
                header = headers[position : position + n_header]
                position += n_header
                # With what fills up the block before it.
                if plain[end : segment.at] != bytes(segment.at - n_header - end) + header:
                    raise DamagedArchive(
                        "the tar stream and the manifest disagree", path=members[segment.member].path,
                        found=f"in frame {index}",
                    )  # fmt: skip
                hashed.append(header)
            data = segment.of(plain)
            end = segment.at + len(data)
            slices = digest.slice_digests(data) if members[segment.member].kind is Kind.FILE else b""
            hashed.append(slices)
            found.append((segment, slices))
        if plain[end:] != bytes(len(plain) - end) or digest.frame_digest(hashed) != frame.digest:
            names = [members[segment.member].path for segment, _ in found[:1]]
            raise DamagedArchive(
                f"frame {index} does not have the digest the manifest states", path=names[0] if names else None
            )
        return plain, found

    def _plain(self, index: int) -> memoryview:
        """A frame's bytes, whatever they are."""
        return memoryview(self._codec.decompress(self.packed(index), self._manifest.frames[index].plain_bytes))

    def _headers(self, index: int) -> bytes:
        """The headers of the members that begin in a frame, one after the other, as the manifest has them."""
        begun = [self._manifest.members[segment.member] for segment in self.layout[index] if segment.header_bytes]
        return tar_headers(begun, self._manifest.arcroot) if begun else b""


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
        """A file's bytes as they lie in the archive, frame by frame; the last piece only if its digest is right."""
        member = self.manifest.members[index]
        slices = b""
        for frame in self.reader.frames_of(index):
            plain, segments = self.reader.read(frame)
            for segment, found in segments:
                if segment.member != index:
                    continue
                slices += found
                if segment.stop == member.n_bytes and digest.file_digest(slices) != member.digest:
                    raise DamagedArchive("a file does not have the digest the manifest states", path=member.path)
                yield segment.of(plain)


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
    wanted = next((i for i, member in enumerate(manifest.members) if member.path == RELOCATIONS), None)
    if wanted is None:
        raise DamagedArchive("the archive has no relocations", path=RELOCATIONS)
    frames = reader.frames_of(wanted)
    n_bytes = manifest.members[wanted].n_bytes
    if n_bytes > max(MODEST_LIST, MAX_RATIO * sum(manifest.frames[index].packed_bytes for index in frames)):
        raise DamagedArchive("the relocations would not fit into memory", path=RELOCATIONS, found=f"{n_bytes} bytes")
    parts: list[memoryview] = []
    for index in frames:
        plain, segments = reader.read(index)
        parts += [segment.of(plain) for segment, _ in segments if segment.member == wanted]
    return check_relocated(b"".join(parts), manifest.members, manifest.dest_prefix is None)


def check_relocated(data: bytes, members: Sequence[Member], archive_form: bool) -> list[RelocatedFile]:
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
    known = {member.path: member for member in members if member.kind is Kind.FILE}
    seen: set[str] = set()
    for file in files:
        member = known.get(file.path)
        if member is None or file.path in seen or file.path.startswith(".fastpack/"):
            raise DamagedArchive("relocations of a file that is not in the archive", path=file.path)
        seen.add(file.path)
        if archive_form and member.n_bytes != file.n_bytes:
            raise DamagedArchive(
                "the relocations are of a file of another size", path=file.path, expected=file.n_bytes,
                found=member.n_bytes,
            )  # fmt: skip
        reach = 0
        for item in file.items:
            length = item.value if item.kind in ("binary", "slash") and isinstance(item.value, int) else None
            if length is not None:
                if item.offset < reach or item.offset + length > file.n_bytes:
                    raise DamagedArchive("a relocation reaches out of its file", path=file.path)
                reach = item.offset + length
            elif item.fixed and item.value is None and item.offset + item.slot > reach:
                raise DamagedArchive("a relocation reaches out of its string", path=file.path)
            if item.fixed and item.value != OPTIONAL and item.slot != len(file.placeholder):
                raise DamagedArchive("a relocation's slot is not its placeholder's length", path=file.path)
        if len({(item.fixed, item.kind == "binary") for item in file.items}) > 1:
            raise DamagedArchive("relocations of text and of a binary in one file", path=file.path)
    return files

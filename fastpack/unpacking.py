"""manifest -> checks -> decode -> place -> rename -> report.

Everything is written into a partial directory beside the destination, or in it where that cannot be, and appears under
the destination's name when it is whole. Imports only the standard library, the native core, a zstd reader and blake3.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fastpack import container, digest
from fastpack._place_py import (
    EPOCH_2000,
    RELOCATIONS,
    Mismatch,
    RelocatedFile,
    Stated,
    content_mtime,
    longest_prefix,
    mtime_key,
    place,
    placed_growth,
    read_relocations,
    read_state,
    relocate_file,
    relocate_tree,
    write_state,
)
from fastpack.codec import Codec
from fastpack.destination import Destination, Mode
from fastpack.errors import DamagedArchive, FastpackError, PrefixTooLong, UsageError, WrongPlatform
from fastpack.frames import read_manifest
from fastpack.fs import explain_os_error
from fastpack.manifest import MANIFEST, Manifest, Member
from fastpack.model import Kind, UnpackReport, Warned
from fastpack.parallel import default_threads, ordered_map
from fastpack.relocation import KERNELS
from fastpack.stream import extract_stream

#: Called with what is being done, bytes done, bytes in all (0 while unknown), and the current group.
Progress = Callable[[str, int, int, str], None]


def _quiet(stage: str, done: int, total: int, group: str) -> None:
    """A progress callback that says nothing."""


@dataclass(frozen=True, slots=True)
class Options:
    """How to unpack. `dest_prefix`: place everything for that prefix, though it is written elsewhere (an image root)."""

    dest_prefix: str | None = None
    force: bool = False
    n_threads: int = 0  # 0, -1: all cores


def unpack(archive: str, destination: str, options: Options, progress: Progress = _quiet) -> UnpackReport:
    """Unpack an archive into a directory, relocated to it.

    Parameters
    ----------
    archive : a file, or ``-`` for standard input. One that conda-pack made is unpacked as it is.
    destination : the directory to be; as typed it is the prefix that files will name (links are not resolved).

    Raises
    ------
    FastpackError : see errors.py; no environment is left that looks whole and is not.
    """
    started = time.monotonic()
    destination = os.path.abspath(destination)
    prefix = destination if options.dest_prefix is None else options.dest_prefix
    if not prefix.startswith("/") or "\n" in prefix:
        raise UsageError("the target prefix must be an absolute path without a newline", found=repr(prefix))
    prefix = os.path.normpath(prefix)
    threads = options.n_threads if options.n_threads > 0 else default_threads()
    if archive == "-":
        return _from_stream(0, archive, destination, prefix, options, progress, started)
    try:
        descriptor = os.open(archive, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise DamagedArchive(
            f"the archive cannot be opened ({error.strerror})", path=archive, hint="give the path of an archive"
        ) from None
    try:
        try:
            found = read_manifest(descriptor, archive)
        except OSError as error:
            raise DamagedArchive(f"the archive cannot be read ({error.strerror})", path=archive) from None
        if found is None:
            return _from_stream(descriptor, archive, destination, prefix, options, progress, started)
        codec, locator, manifest = found
        return _from_file(
            descriptor, archive, codec, locator.archive_id.hex(), manifest, destination, prefix, options, threads,
            progress, started,
        )  # fmt: skip
    finally:
        os.close(descriptor)


# --- checks ----------------------------------------------------------------------------------------------------------


def check_requirements(requires: dict[str, Any], elsewhere: bool) -> list[Warned]:
    """Hold an archive's requirements against this machine; only a warning if it is unpacked for another place.

    Raises
    ------
    WrongPlatform
    """
    system = os.uname()
    wanted = f"{requires.get('platform')} {requires.get('arch')}"
    here = f"{system.sysname} {system.machine}"
    if wanted == here:
        return []
    if elsewhere:
        return [Warned("platform", None, f"the environment is for {wanted}, this machine is {here}")]
    raise WrongPlatform("the environment is for another platform", expected=wanted, found=here)


def check_length(prefix: str, limit: int | None, limited_by: str | None = None) -> None:
    """Row 3: refuse a prefix that does not fit, before anything is written.

    Raises
    ------
    PrefixTooLong
    """
    length = len(os.fsencode(prefix))
    if limit is not None and length > limit:
        raise PrefixTooLong(
            "the target prefix is too long for this environment's binaries" + (f" ({limited_by})" if limited_by else ""),
            path=prefix,
            expected=f"at most {limit} bytes",
            found=f"{length} bytes",
            hint="unpack it at a shorter path",
        )


# --- from a file: frames in parallel ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Segment:
    """Part of a member in a frame. `at` is its data's place in the frame, [start, stop) its place in the member."""

    member: int
    at: int
    start: int
    stop: int
    header_bytes: int  # of the header right before the data, 0 if it lies in an earlier frame


def lay_out(manifest: Manifest) -> list[list[Segment]]:
    """Which parts of which members each frame holds, from the sizes alone.

    Raises
    ------
    DamagedArchive : the members do not fill the frames exactly.
    """
    root_bytes = len(os.fsencode(manifest.arcroot)) + 1 if manifest.arcroot else 0
    sizes = [frame.plain_bytes for frame in manifest.frames]
    layout: list[list[Segment]] = [[] for _ in sizes]
    frame = position = 0
    for index, member in enumerate(manifest.members):
        while frame < len(sizes) and position == sizes[frame]:
            frame, position = frame + 1, 0
        header_bytes = _header_bytes(member, root_bytes)
        position += header_bytes
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


def _header_bytes(member: Member, root_bytes: int) -> int:
    """The length of a member's tar header, with the GNU long-name members before it."""
    name = root_bytes + len(os.fsencode(member.path)) + (member.kind is Kind.DIRECTORY)
    target = len(os.fsencode(member.target)) + (root_bytes if member.kind is Kind.HARDLINK else 0)
    total = container.BLOCK
    for length in (name, target):
        if length > 100:
            total += container.BLOCK + length + 1 + container.padding(length + 1)
    return total


class FrameReader:
    """Decodes frames and holds them against the manifest; may be used by several threads."""

    def __init__(self, descriptor: int, codec: Codec, manifest: Manifest) -> None:
        self._descriptor = descriptor
        self._codec = codec
        self._manifest = manifest
        self.layout = lay_out(manifest)

    def read(self, index: int) -> list[tuple[Segment, memoryview, list[bytes]]]:
        """A frame's segments with their data and slice digests.

        Raises
        ------
        DamagedArchive : it is not what the manifest says; nothing of it was used.
        """
        frame = self._manifest.frames[index]
        packed = os.pread(self._descriptor, frame.packed_bytes, frame.offset)
        if len(packed) != frame.packed_bytes:
            raise DamagedArchive(f"the archive is cut off in frame {index}")
        plain = memoryview(self._codec.decompress(packed, frame.plain_bytes))
        found: list[tuple[Segment, memoryview, list[bytes]]] = []
        hashed: list[bytes] = []
        end = 0
        for segment in self.layout[index]:
            member = self._manifest.members[segment.member]
            if segment.header_bytes:
                header = member.header(self._manifest.arcroot)
                start = segment.at - segment.header_bytes
                if any(plain[end:start]) or plain[start : segment.at] != header:
                    raise DamagedArchive(
                        "the tar stream and the manifest disagree", path=member.path, found=f"in frame {index}"
                    )
                hashed.append(header)
            end = segment.at + segment.stop - segment.start
            data = plain[segment.at : end]
            slices = digest.slice_digests(data) if member.kind is Kind.FILE else []
            hashed += slices
            found.append((segment, data, slices))
        if any(plain[end:]) or digest.frame_digest(hashed) != frame.digest:
            names = [self._manifest.members[s.member].path for s, _, _ in found[:1]]
            raise DamagedArchive(
                f"frame {index} does not have the digest the manifest states", path=names[0] if names else None
            )
        return found


class _Extractor:
    """Writes frames' members into a directory, placed for a prefix."""

    def __init__(self, reader: FrameReader, manifest: Manifest, root: str, prefix: bytes | None,
                 relocated: Sequence[RelocatedFile]) -> None:  # fmt: skip
        self._reader = reader
        self._manifest = manifest
        self._root = root
        self._prefix = prefix  # None: write what the archive has
        self._relocated = {file.path: file for file in relocated}

    def run(self, index: int) -> tuple[dict[str, Stated], dict[int, list[bytes]], int]:
        """Extract one frame: (what records state of placed files, slices of members over several frames, bytes)."""
        placed: dict[str, Stated] = {}
        partial: dict[int, list[bytes]] = {}
        n_bytes = 0
        for segment, data, slices in self._reader.read(index):
            member = self._manifest.members[segment.member]
            if member.kind is not Kind.FILE:
                continue
            n_bytes += len(data)
            if segment.start == 0 and segment.stop == member.n_bytes:
                if digest.file_digest(slices) != member.digest:
                    raise DamagedArchive("a file does not have the digest the manifest states", path=member.path)
                self._write_whole(member, data, placed)
            else:
                self._write_part(member, segment, data)
                partial[segment.member] = slices
        return placed, partial, n_bytes

    def _write_whole(self, member: Member, data: memoryview, placed: dict[str, Stated]) -> None:
        file = self._relocated.get(member.path)
        mtime = member.mtime
        content: memoryview | bytearray = data
        if file is not None and self._prefix is not None and not file.second_phase:
            content = self._place(file, bytearray(data), 0, len(file.items), 0)
            stated = placed[member.path] = Stated(digest.sha256(content), len(content))
            raw = bytes.fromhex(stated.sha256)
            if len(content) > digest.SLICE * 8:
                raw = bytes.fromhex(
                    digest.sha256(mtime_key(len(content), content[: digest.SLICE], content[-digest.SLICE :]))
                )
            mtime = content_mtime(raw)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(os.path.join(self._root, member.path), flags, 0o600)
        try:
            _write_all(descriptor, content)
            os.fchmod(descriptor, member.mode)
            os.utime(descriptor, (mtime, mtime))
        finally:
            os.close(descriptor)

    def _write_part(self, member: Member, segment: Segment, data: memoryview) -> None:
        file = self._relocated.get(member.path)
        offset = segment.start
        content: memoryview | bytearray = data
        if file is not None and self._prefix is not None and not file.second_phase:
            first = next((k for k, item in enumerate(file.items) if item.offset >= segment.start), len(file.items))
            last = next((k for k, item in enumerate(file.items) if item.offset >= segment.stop), len(file.items))
            offset += placed_growth(file.items[:first], file.placeholder, self._prefix)
            content = self._place(file, bytearray(data), first, last, segment.start)
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(os.path.join(self._root, member.path), flags, 0o600)
        try:
            view = memoryview(content)
            while view:
                n = os.pwrite(descriptor, view, offset)
                view, offset = view[n:], offset + n
        finally:
            os.close(descriptor)

    def _place(self, file: RelocatedFile, data: bytearray, first: int, last: int, start: int) -> bytearray:
        assert self._prefix is not None
        try:
            return place(data, file.items[first:last], file.placeholder, self._prefix, start, None, KERNELS.place)
        except (Mismatch, ValueError) as error:
            raise DamagedArchive(f"a relocation does not fit its file ({error})", path=file.path) from None

    def finish_large(self, member: Member, slices: list[bytes]) -> Stated | None:
        """Check, and set mode and time of, a member that came in several frames; what records state of it, if placed."""
        if digest.file_digest(slices) != member.digest:
            raise DamagedArchive("a file does not have the digest the manifest states", path=member.path)
        path = os.path.join(self._root, member.path)
        file = self._relocated.get(member.path)
        mtime, stated = member.mtime, None
        if file is not None and self._prefix is not None and not file.second_phase:
            stated, mtime = _state_of(path)
        os.chmod(path, member.mode)
        os.utime(path, (mtime, mtime))
        return stated


def _write_all(descriptor: int, content: memoryview | bytearray) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


def _state_of(path: str) -> tuple[Stated, int]:
    """What records state of a large placed file, and the mtime that follows from its bytes."""
    import hashlib  # noqa: PLC0415 (large relocated files alone)

    whole = hashlib.sha256()
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        while data := file.read(digest.SLICE):
            whole.update(data)
        head = os.pread(file.fileno(), digest.SLICE, 0)
        tail = os.pread(file.fileno(), digest.SLICE, max(0, size - digest.SLICE))
    key = bytes.fromhex(digest.sha256(mtime_key(size, head, tail))) if size > digest.SLICE * 8 else whole.digest()
    return Stated(whole.hexdigest(), size), content_mtime(key)


def _from_file(
    descriptor: int, archive: str, codec: Codec, archive_id: str, manifest: Manifest, destination: str, prefix: str,
    options: Options, threads: int, progress: Progress, started: float,
) -> UnpackReport:  # fmt: skip
    warnings = check_requirements(manifest.header["requires"], options.dest_prefix is not None)
    check_length(prefix, manifest.header.get("longest_prefix"), manifest.header.get("limited_by"))
    try:
        reader = FrameReader(descriptor, codec, manifest)
        relocated = _read_relocated(reader, manifest)
    except OSError as error:
        raise DamagedArchive(f"the archive cannot be read ({error.strerror})", path=archive) from None
    check_length(prefix, longest_prefix(relocated))
    total = sum(member.n_bytes for member in manifest.members)
    n_blocks = sum(-(-member.n_bytes // 4096) for member in manifest.members) + len(manifest.members)
    names = [member.path for member in manifest.members if member.kind is not Kind.DIRECTORY]
    with Destination(destination, options.force, names, n_blocks * 4096) as where:
        try:
            root = where.root
            _make_directories(root, manifest.members)
            # An archive placed for one prefix is written as it is, and moved to another one afterwards.
            at_once = manifest.dest_prefix is None
            if at_once:
                write_state(root, archive_id, None, prefix, False)
            extractor = _Extractor(reader, manifest, root, os.fsencode(prefix) if at_once else None, relocated)
            placed = _extract(extractor, reader, manifest, threads, total, progress)
            with open(os.path.join(root, MANIFEST), "xb") as file:
                file.write(manifest.to_bytes())
            if at_once:
                _second_phase(root, relocated, os.fsencode(prefix), placed)
                _check_all_written(root, relocated, manifest)
                write_state(root, archive_id, prefix, prefix, True)
            elif manifest.dest_prefix != prefix:
                state = read_state(root)
                write_state(root, archive_id, manifest.dest_prefix, prefix, False)
                result = relocate_tree(root, prefix, relocated, state, KERNELS)
                if result.left:
                    raise DamagedArchive("a relocation does not fit its file", path=result.left[0])
                write_state(root, archive_id, prefix, prefix, True)
            _make_links(root, manifest.members)
            _finish_directories(root, manifest.members)
            where.finish()
        except OSError as error:
            raise explain_os_error(error, error.filename or destination) from None
    return UnpackReport(
        archive=archive,
        destination=destination,
        prefix=prefix,
        archive_id=archive_id,
        foreign=False,
        n_files=sum(member.kind in (Kind.FILE, Kind.HARDLINK) for member in manifest.members),
        n_relocated_files=len(relocated),
        written_bytes=total,
        elapsed_seconds=time.monotonic() - started,
        warnings=tuple(warnings),
    )


def _extract(
    extractor: _Extractor, reader: FrameReader, manifest: Manifest, threads: int, total: int, progress: Progress
) -> dict[str, Stated]:
    placed: dict[str, Stated] = {}
    partial: dict[int, list[bytes]] = {}
    done = 0
    indices = range(len(manifest.frames))
    for index, (stated, parts, n_bytes) in zip(indices, ordered_map(extractor.run, indices, threads), strict=True):
        placed.update(stated)
        for number, slices in parts.items():
            partial.setdefault(number, []).extend(slices)
        last = reader.layout[index][-1]
        if last.member in partial and last.stop == manifest.members[last.member].n_bytes:
            member = manifest.members[last.member]
            large = extractor.finish_large(member, partial.pop(last.member))
            if large is not None:
                placed[member.path] = large
        done += n_bytes
        group = manifest.groups[manifest.members[last.member].group] if manifest.groups else ""
        progress("unpack", done, total, str(group))
    return placed


def _read_relocated(reader: FrameReader, manifest: Manifest) -> list[RelocatedFile]:
    """The relocations, from their member near the archive's end, and every check that needs no file's bytes."""
    wanted = next((i for i, member in enumerate(manifest.members) if member.path == RELOCATIONS), None)
    if wanted is None:
        raise DamagedArchive("the archive has no relocations", path=RELOCATIONS)
    parts: list[bytes] = []
    for index, segments in enumerate(reader.layout):
        if any(segment.member == wanted for segment in segments):
            parts += [bytes(data) for segment, data, _ in reader.read(index) if segment.member == wanted]
    return check_relocated(b"".join(parts), manifest.members, manifest.dest_prefix is None)


def check_relocated(data: bytes, members: Sequence[Member], archive_form: bool) -> list[RelocatedFile]:
    """Read ``relocations.json`` and hold it against the members.

    Raises
    ------
    DamagedArchive
    """
    try:
        files = read_relocations(data)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise DamagedArchive(f"the relocations are broken ({type(error).__name__}: {error})", path=RELOCATIONS) from None
    known = {member.path: member for member in members if member.kind is Kind.FILE}
    seen: set[str] = set()
    for file in files:
        member = known.get(file.path)
        if member is None or file.path in seen:
            raise DamagedArchive("relocations of a file that is not in the archive", path=file.path)
        seen.add(file.path)
        if archive_form and member.n_bytes != file.n_bytes:
            raise DamagedArchive(
                "the relocations are of a file of another size", path=file.path, expected=file.n_bytes,
                found=member.n_bytes,
            )  # fmt: skip
        reach = 0
        for item in file.items:
            if item.kind == "binary" and item.value is not None:
                length = item.value
                if not isinstance(length, int) or item.offset < reach or item.offset + length > file.n_bytes:
                    raise DamagedArchive("a relocation reaches out of its file", path=file.path)
                reach = item.offset + length
            elif item.kind == "binary" and item.offset + item.slot > reach:
                raise DamagedArchive("a relocation reaches out of its string", path=file.path)
            if item.kind == "binary" and item.slot != len(file.placeholder):
                raise DamagedArchive("a relocation's slot is not its placeholder's length", path=file.path)
        if len({item.kind == "binary" for item in file.items}) > 1:
            raise DamagedArchive("relocations of text and of a binary in one file", path=file.path)
    return files


def _second_phase(root: str, relocated: Sequence[RelocatedFile], prefix: bytes, placed: dict[str, Stated]) -> None:
    """Records and RECORDs: they state hashes of files that have just been placed."""
    archive = {file.path: Stated(file.sha256, file.n_bytes) for file in relocated}
    for file in relocated:
        if file.second_phase:
            path = os.path.join(root, file.path)
            if relocate_file(path, file, [None], prefix, archive, placed, KERNELS) == "left":
                raise DamagedArchive("a record is not what its relocations say", path=file.path)


def _check_all_written(root: str, relocated: Sequence[RelocatedFile], manifest: Manifest) -> None:
    """Every member is on disk: nothing can look whole that is not."""
    for member in manifest.members:
        if member.kind is Kind.FILE and not os.path.lexists(os.path.join(root, member.path)):
            raise DamagedArchive("a member was not in the archive", path=member.path)


def _make_directories(root: str, members: Sequence[Member]) -> None:
    for path in sorted((m.path for m in members if m.kind is Kind.DIRECTORY), key=lambda path: path.count("/")):
        try:
            os.mkdir(os.path.join(root, path), 0o700)
        except FileExistsError:
            if path != ".fastpack":  # the marker's
                raise


def _make_links(root: str, members: Sequence[Member]) -> None:
    """Hard links, then symbolic ones, last of all: nothing is ever written through a link of the archive."""
    for member in members:
        if member.kind is Kind.HARDLINK:
            os.link(os.path.join(root, member.target), os.path.join(root, member.path), follow_symlinks=False)
    for member in members:
        if member.kind is Kind.LINK:
            path = os.path.join(root, member.path)
            os.symlink(member.target, path)
            os.utime(path, (EPOCH_2000, EPOCH_2000), follow_symlinks=False)


def _finish_directories(root: str, members: Sequence[Member]) -> None:
    """Times and modes of directories, the deepest first: a stricter mode comes when nothing is written there any more."""
    for member in sorted((m for m in members if m.kind is Kind.DIRECTORY), key=lambda m: -m.path.count("/")):
        path = os.path.join(root, member.path)
        if member.path != ".fastpack":
            os.utime(path, (member.mtime, member.mtime))
        os.chmod(path, member.mode if member.final_mode is None else member.final_mode)


# --- from a stream: a pipe, or an archive that fastpack did not make -------------------------------------------------


def _from_stream(
    descriptor: int, archive: str, destination: str, prefix: str, options: Options, progress: Progress, started: float
) -> UnpackReport:
    def check_head(pack_json: dict[str, Any]) -> list[Warned]:
        warnings = check_requirements(pack_json.get("requires", {}), options.dest_prefix is not None)
        check_length(prefix, pack_json.get("longest_prefix"))
        return warnings

    with Destination(destination, options.force, None, 0) as where:
        try:
            done = extract_stream(descriptor, archive, where, check_head, progress)
            warnings = list(done.warnings)
            n_relocated = 0
            archive_id: str | None = None
            if done.manifest is not None:
                archive_id = digest.blake(done.manifest_bytes).hex()
                relocated = check_relocated(done.relocations, done.manifest.members, done.manifest.dest_prefix is None)
                check_length(prefix, longest_prefix(relocated))
                n_relocated = len(relocated)
                state = read_state(where.root)
                write_state(where.root, archive_id, done.manifest.dest_prefix, prefix, False)
                if done.manifest.dest_prefix != prefix:
                    result = relocate_tree(where.root, prefix, relocated, state, KERNELS)
                    if result.left:
                        raise DamagedArchive("a relocation does not fit its file", path=result.left[0])
                write_state(where.root, archive_id, prefix, prefix, True)
            else:
                if options.dest_prefix is not None:
                    raise UsageError("--dest-prefix needs an archive that fastpack made", path=archive)
                warnings.append(
                    Warned("foreign", None, "fastpack did not make this archive: it was unpacked as it is, so run its"
                                            " bin/conda-unpack if it has one")
                )  # fmt: skip
            done.make_links(where.root)
            where.finish()
        except OSError as error:
            raise explain_os_error(error, error.filename or destination) from None
    return UnpackReport(
        archive=archive,
        destination=destination,
        prefix=prefix,
        archive_id=archive_id,
        foreign=done.manifest is None,
        n_files=done.n_files,
        n_relocated_files=n_relocated,
        written_bytes=done.written_bytes,
        elapsed_seconds=time.monotonic() - started,
        warnings=tuple(warnings),
    )


__all__ = ["FastpackError", "FrameReader", "Iterator", "Mode", "Options", "unpack"]

"""manifest -> checks -> decode -> place -> rename -> report.

Everything is written into a partial directory beside the destination, or in it where that cannot be, and appears under
the destination's name when it is whole. Imports only the standard library, the native core, a zstd reader and blake3.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastpack import digest, requirements
from fastpack._place_py import (
    EPOCH_2000,
    SMALL_FILE,
    Mismatch,
    RelocatedFile,
    Stated,
    Tree,
    begin_state,
    check_pad,
    content_mtime,
    mach_o_files,
    mtime_key,
    place,
    placed_growth,
    read_state,
    relocate_file,
    relocate_tree,
    relocated_mtime,
    sign,
    with_pad,
    write_state,
)
from fastpack.destination import Destination
from fastpack.errors import DamagedArchive, HostileArchive, PrefixTooLong, UsageError
from fastpack.frames import open_descriptor, read_manifest
from fastpack.fs import explain_os_error, leads_out
from fastpack.manifest import MANIFEST, Manifest, Member
from fastpack.model import Kind, Progress, UnpackReport, Warned, silent
from fastpack.parallel import default_threads, keep_memory, ordered_map
from fastpack.reader import FrameReader, Segment, check_relocated, read_relocated
from fastpack.relocation import (
    KERNELS,
    check_ascii,
    check_prefix,
    check_target,
    sha256_of,
    unplacing_edits,
)
from fastpack.stream import extract_stream

#: Bytes of a path that Linux opens, without its NUL.
_PATH_MAX = 4095


@dataclass(frozen=True, slots=True)
class Options:
    """How to unpack.

    Parameters
    ----------
    dest_prefix : place files for that prefix, though they are written elsewhere (an image root).
    n_threads : 0 or -1 for all cores.
    pad : rules that override how managed binaries are padded (see `with_pad`); kept in ``state.json``.
    strict : refuse where a file would stay as it is because its slots are too short.
    external_links : ``warn``, ``keep`` or ``error``; None: ``warn`` for what the archive declares, else ``error``.
    ignore_requirements : only warn if platform, architecture or glibc are not what the environment needs.
    """

    dest_prefix: str | None = None
    force: bool = False
    n_threads: int = 0
    pad: tuple[str, ...] = ()
    strict: bool = False
    external_links: str | None = None
    ignore_requirements: bool = False


def unpack(archive: str, destination: str, options: Options, progress: Progress = silent) -> UnpackReport:
    """Unpack an archive into a directory, relocated to it.

    Parameters
    ----------
    archive : a file, or ``-`` for standard input. One that conda-pack made is unpacked as it is.
    destination : the directory to be; as typed it is the prefix that files will name (links are not resolved).

    Raises
    ------
    FastpackError : see errors.py; no environment is left that looks whole and is not.
    """
    if not destination:
        raise UsageError("the destination has no name", hint="give a directory with -p")
    destination = os.path.abspath(destination).replace("//", "/", 1)
    prefix = destination if options.dest_prefix is None else options.dest_prefix
    if not prefix.startswith("/") or "\n" in prefix or not prefix.strip("/"):
        raise UsageError("the target prefix must be an absolute path below /, without a newline", found=repr(prefix))
    prefix = os.path.normpath(prefix)
    if (rule := check_pad(options.pad)) is not None:
        raise UsageError("no such padding", expected="conda, slash, or GLOB=slash", found=rule)
    threads = options.n_threads if options.n_threads > 0 else default_threads()
    keep_memory()
    job = _Job(archive, destination, prefix, options, threads, progress, time.monotonic())
    if archive == "-":
        return _from_stream(job, 0)
    descriptor = open_descriptor(archive)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                raise DamagedArchive("that is a directory, not an archive", path=archive)
            return _from_stream(replace(job, archive="-"), descriptor)
        found = read_manifest(descriptor, archive)
        if found is None:
            return _from_stream(job, descriptor)
        codec, locator, manifest = found
        reader = FrameReader(descriptor, codec, manifest)
        return _from_file(job, reader, manifest, locator.archive_id.hex())
    except DamagedArchive as error:
        error.path = error.path or archive
        raise
    finally:
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class _Job:
    """What was asked for."""

    archive: str
    destination: str
    prefix: str
    options: Options
    threads: int
    progress: Progress
    started: float

    def check_requirements(self, requires: dict[str, Any]) -> list[Warned]:
        """See requirements.py."""
        return requirements.check(requires, self.elsewhere, self.options.ignore_requirements)

    @property
    def elsewhere(self) -> bool:
        """Whether the environment is placed for another path than it is written to."""
        return self.options.dest_prefix is not None


# --- checks ----------------------------------------------------------------------------------------------------------


def _check_links(job: _Job, links: Mapping[str, str], declared: frozenset[str] | None) -> list[Warned]:
    """Row 14 at the other end: links that lead out of the environment.

    Parameters
    ----------
    declared : those that the archive says it kept when it was made; None: nobody says anything.

    Raises
    ------
    HostileArchive
    """
    policy = job.options.external_links
    warnings: list[Warned] = []
    for path, target in links.items():
        if policy == "keep" or not leads_out(path, target, links):
            continue
        if policy == "error" or (policy is None and path not in (declared or ())):
            raise HostileArchive(
                "a link leads out of the environment", path=path, found=target,
                hint="--external-links keep unpacks it all the same",
            )  # fmt: skip
        warnings.append(Warned("external-link", path, f"a link out of the environment: {target}"))
    return warnings


def _check_lengths(job: _Job, members: Sequence[Member]) -> None:
    """No path that the system could not open (PATH_MAX, with the partial directory's name in it)."""
    longest = max(members, key=lambda member: len(os.fsencode(member.path)), default=None)
    room = _PATH_MAX - len(os.fsencode(job.destination)) - len(".fastpack-partial-01234567/.fastpack-new-1234567-/")
    if longest is not None and len(os.fsencode(longest.path)) > room:
        raise PrefixTooLong(
            "a file's path would be longer than the system allows", path=longest.path,
            expected=f"at most {room} bytes below {job.destination}", found=f"{len(os.fsencode(longest.path))} bytes",
            hint="choose a shorter destination",
        )  # fmt: skip


# --- from a file: frames in parallel ---------------------------------------------------------------------------------


class _Extractor:
    """Writes frames' members into a directory, placed for a prefix."""

    def __init__(self, reader: FrameReader, manifest: Manifest, root: str, prefix: bytes | None,
                 relocated: Sequence[RelocatedFile]) -> None:  # fmt: skip
        self._reader = reader
        self._manifest = manifest
        self._root = root
        self._prefix = prefix  # None: write what the archive has
        # What does not fit stays in its archive form; what states hashes of others is placed after them.
        self._relocated = {
            file.path: file for file in relocated if prefix is not None and not file.second_phase and file.fits(prefix)
        }

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
        if file is not None:
            if digest.sha256(data) != file.sha256:
                raise DamagedArchive("a file does not have the sha256 its relocations state", path=member.path)
            content = self._place(file, bytearray(data), 0, len(file.items), 0)
            placed[member.path] = Stated(digest.sha256(content), len(content))
            mtime = relocated_mtime(content)
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
        if file is not None:
            first = next((k for k, item in enumerate(file.items) if item.offset >= segment.start), len(file.items))
            last = next((k for k, item in enumerate(file.items) if item.offset >= segment.stop), len(file.items))
            offset += placed_growth(file.items[:first], file.placeholder, self._prefix or b"")
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
        """Check a member that came in several frames, set mode and time; what records state of it, if placed."""
        if digest.file_digest(slices) != member.digest:
            raise DamagedArchive("a file does not have the digest the manifest states", path=member.path)
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
    key = bytes.fromhex(digest.sha256(mtime_key(size, head, tail))) if size > SMALL_FILE else whole.digest()
    return Stated(whole.hexdigest(), size), content_mtime(key)


def _from_file(job: _Job, reader: FrameReader, manifest: Manifest, archive_id: str) -> UnpackReport:
    prefix = job.prefix
    warnings = job.check_requirements(manifest.header["requires"])
    check_prefix(prefix, manifest.header.get("longest_prefix"), manifest.header.get("limited_by"))
    try:
        relocated = read_relocated(reader, manifest)
    except OSError as error:
        raise DamagedArchive(f"the archive cannot be read ({error.strerror})", path=job.archive) from None
    warnings += check_target(prefix, relocated, job.options.strict or bool(manifest.header.get("strict")))
    warnings += _check_links(job, *manifest.links())
    _check_lengths(job, manifest.members)
    total = sum(member.n_bytes for member in manifest.members)
    n_blocks = sum(-(-member.n_bytes // 4096) for member in manifest.members) + len(manifest.members)
    names = [member.path for member in manifest.members if member.kind is not Kind.DIRECTORY]
    with Destination(job.destination, job.options.force, names, n_blocks * 4096) as where:
        try:
            root = where.root
            _make_directories(root, manifest.members)
            # An archive placed for one prefix is written as it is, and moved to another one afterwards.
            at_once = manifest.dest_prefix is None
            begun = begin_state(root, None, prefix, job.options.pad) if at_once else {}
            padded = [with_pad(file, job.options.pad) for file in relocated]
            extractor = _Extractor(reader, manifest, root, os.fsencode(prefix) if at_once else None, padded)
            placed = _extract(job, extractor, reader, manifest, total)
            _write_manifest(root, manifest.raw, archive_id)
            if at_once:
                signed, unsigned = _second_phase(root, padded, os.fsencode(prefix), placed)
                _check_all_written(root, manifest)
                write_state(root, archive_id, begun, signed, unsigned)
            else:
                unsigned = _move_to(job, root, archive_id, relocated)
            warnings += unsigned_warnings(unsigned)
            _make_links(root, manifest.members)
            _finish_directories(root, manifest.members)
            where.finish()
        except OSError as error:
            raise explain_os_error(error, error.filename or job.destination) from None
    return UnpackReport(
        archive=job.archive,
        destination=job.destination,
        prefix=prefix,
        archive_id=archive_id,
        foreign=False,
        n_files=sum(member.kind in (Kind.FILE, Kind.HARDLINK) for member in manifest.members),
        n_relocated_files=len(relocated),
        written_bytes=total,
        elapsed_seconds=time.monotonic() - job.started,
        warnings=tuple(warnings),
    )


def _extract(
    job: _Job, extractor: _Extractor, reader: FrameReader, manifest: Manifest, total: int
) -> dict[str, Stated]:
    placed: dict[str, Stated] = {}
    partial: dict[int, list[bytes]] = {}
    done = 0
    indices = range(len(manifest.frames))
    for index, (stated, parts, n_bytes) in zip(indices, ordered_map(extractor.run, indices, job.threads), strict=True):
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
        job.progress("unpack", done, total, str(group))
    return placed


def _second_phase(
    root: str, relocated: Sequence[RelocatedFile], prefix: bytes, placed: dict[str, Stated]
) -> tuple[dict[str, str], list[str]]:
    """Signatures (row 17), then records and RECORDs: they state hashes of all that is placed by now.

    Returns
    -------
    sha256 of the Mach-O files, and those that could not be signed.
    """
    paths = [file.path for file in relocated if file.items[0].fixed and file.path in placed]
    signed, unsigned = sign(root, mach_o_files(root, paths))
    for path, known in signed.items():
        placed[path] = Stated(known, os.stat(os.path.join(root, path)).st_size)
    archive = {file.path: Stated(file.sha256, file.n_bytes) for file in relocated}
    tree = Tree([None], prefix, archive, placed, {}, KERNELS)
    for file in relocated:
        if file.second_phase and relocate_file(os.path.join(root, file.path), file, tree) == "left":
            raise DamagedArchive("a record is not what its relocations say", path=file.path)
    return signed, unsigned


def unsigned_warnings(paths: Sequence[str]) -> list[Warned]:
    """What a report says of Mach-O files that codesign did not sign."""
    return [Warned("not-signed", path, "codesign could not sign it: macOS may refuse to start it") for path in paths]


def _check_all_written(root: str, manifest: Manifest) -> None:
    """Every member is on disk: nothing can look whole that is not."""
    for member in manifest.members:
        if member.kind is Kind.FILE and not os.path.lexists(os.path.join(root, member.path)):
            raise DamagedArchive("a member was not in the archive", path=member.path)


def _move_to(job: _Job, root: str, archive_id: str, relocated: Sequence[RelocatedFile]) -> list[str]:
    """Bring files that were written as the archive has them (archive form, or placed when packing) to the prefix.

    Returns
    -------
    Mach-O files that could not be signed.
    """
    try:
        state = read_state(root)
    except ValueError as error:
        raise DamagedArchive(f"the archive's own state is broken ({error})") from None
    begun = begin_state(root, state, job.prefix, job.options.pad or None)
    result = relocate_tree(root, job.prefix, relocated, begun, KERNELS)
    if result.left:
        raise DamagedArchive("a relocation does not fit its file", path=result.left[0])
    write_state(root, archive_id, {**begun, "earlier": []}, result.signed, result.unsigned)
    return result.unsigned


def _write_manifest(root: str, data: bytes, archive_id: str) -> None:
    """The manifest is the one member that it does not list itself."""
    path = os.path.join(root, MANIFEST)
    with open(path, "xb") as file:
        file.write(data)
    os.chmod(path, 0o644)
    mtime = content_mtime(bytes.fromhex(archive_id))
    os.utime(path, (mtime, mtime))


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
    """Times and modes of directories, the deepest first: stricter modes come when nothing is written there any more."""
    for member in sorted((m for m in members if m.kind is Kind.DIRECTORY), key=lambda m: -m.path.count("/")):
        path = os.path.join(root, member.path)
        if member.path != ".fastpack":
            os.utime(path, (member.mtime, member.mtime))
        os.chmod(path, member.mode if member.final_mode is None else member.final_mode)


# --- from a stream: a pipe, or an archive that fastpack did not make -------------------------------------------------


def _from_stream(job: _Job, descriptor: int) -> UnpackReport:
    prefix = job.prefix

    def check_head(pack_json: dict[str, Any]) -> list[Warned]:
        warnings = job.check_requirements(pack_json.get("requires", {}))
        check_prefix(prefix, pack_json.get("longest_prefix"))
        check_ascii(prefix, pack_json.get("ascii_only"))
        return warnings

    with Destination(job.destination, job.options.force, None, 0) as where:
        try:
            done = extract_stream(descriptor, job.archive, where, check_head, job.progress)
            warnings = list(done.warnings)
            n_relocated = 0
            archive_id: str | None = None
            if done.manifest is not None:
                archive_id = digest.blake(done.manifest_bytes).hex()
                relocated = check_relocated(done.relocations, done.manifest.members, done.manifest.dest_prefix is None)
                strict = job.options.strict or bool(done.manifest.header.get("strict"))
                warnings += check_target(prefix, relocated, strict)
                warnings += _check_links(job, *done.manifest.links())
                n_relocated = len(relocated)
                warnings += unsigned_warnings(_move_to(job, where.root, archive_id, relocated))
            else:
                if job.elsewhere or job.options.pad:
                    raise UsageError("--dest-prefix and --pad need an archive of fastpack's", path=job.archive)
                warnings += _check_links(job, done.links, None)
                for path, target in done.replaced:
                    _check_links(job, {**done.links, path: target}, None)
                warnings.append(
                    Warned("foreign", None, "fastpack did not make this archive: it was unpacked as it is, so run its"
                                            " bin/conda-unpack if it has one")
                )  # fmt: skip
            done.make_links(where.root)
            where.finish()
        except OSError as error:
            raise explain_os_error(error, error.filename or job.destination) from None
    return UnpackReport(
        archive=job.archive,
        destination=job.destination,
        prefix=prefix,
        archive_id=archive_id,
        foreign=done.manifest is None,
        n_files=done.n_files,
        n_relocated_files=n_relocated,
        written_bytes=done.written_bytes,
        elapsed_seconds=time.monotonic() - job.started,
        warnings=tuple(warnings),
    )

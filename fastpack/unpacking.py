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
    INCOMPLETE,
    STATE,
    RelocatedFile,
    Stated,
    Tree,
    begin_state,
    check_pad,
    mach_o_files,
    read_state,
    relocate_file,
    relocate_tree,
    sign,
    with_pad,
    write_state,
)
from fastpack.deltafile import is_delta, read_new_id
from fastpack.destination import Destination, behind_links
from fastpack.errors import DamagedArchive, HostileArchive, NotAnEnvironment, PrefixTooLong, UsageError
from fastpack.extracting import extractor, finish_directories, make_links, write_manifest
from fastpack.frames import open_descriptor, read_archive_id, read_manifest
from fastpack.fs import alone_in, existing_parent, explain_os_error, leads_out
from fastpack.manifest import Manifest
from fastpack.model import Kind, Progress, UnpackReport, Warned, silent
from fastpack.parallel import default_threads, keep_memory
from fastpack.reader import FrameReader, check_relocated, read_relocated
from fastpack.rebuilding import open_delta
from fastpack.relocation import KERNELS
from fastpack.sharing import Links
from fastpack.stat_table import remember_frames
from fastpack.stream import extract_stream
from fastpack.swapping import finish_swaps
from fastpack.targets import check_ascii, check_prefix, check_target

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
    durable : return when all is on the disk, and let nothing appear before: what a power cut leaves is whole.
    if_changed : do nothing where this very archive is already unpacked; wait for another process that is at it.
    base : with a delta, the environment that was unpacked from the old archive; None: the one at the destination.
    in_place : exchange the new environment for the one at the destination, which is fastpack's.
    hardlink : with a delta, give files that did not change a further name in the new environment where the file system
        has no reflinks: a program that writes into such a file changes it in both environments. An environment of
        which none is kept (`in_place`, `keep` 0) gives away like that in any case what has no other name.
    keep : with `in_place`, how many replaced ones to keep, as ``DESTINATION.old-1`` (the newest) and so on.
    verify_content : with a delta, read every file of the base, also those untouched since it was unpacked.
    on_modified : with a delta, what becomes of files of the base that were changed by hand: ``error``, or ``replace``
        them by what the delta has. What it has not is refused in any case.
    """

    dest_prefix: str | None = None
    force: bool = False
    n_threads: int = 0
    pad: tuple[str, ...] = ()
    strict: bool = False
    external_links: str | None = None
    ignore_requirements: bool = False
    durable: bool = False
    if_changed: bool = False
    base: str | None = None
    in_place: bool = False
    keep: int = 1
    hardlink: bool = False
    verify_content: bool = False
    on_modified: str = "error"


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
    if options.keep < 0:
        raise UsageError("no such number of environments to keep", expected="0 or more", found=options.keep)
    if options.on_modified not in ("error", "replace"):
        raise UsageError("no such way with modified files", expected="error or replace", found=options.on_modified)
    if (rule := check_pad(options.pad)) is not None:
        raise UsageError("no such padding", expected="conda, slash, or GLOB=slash", found=rule)
    threads = options.n_threads if options.n_threads > 0 else default_threads()
    keep_memory()
    job = _Job(archive, destination, prefix, options, threads, progress, time.monotonic())
    if options.if_changed:
        return _unpack_if_changed(job)
    return _unpack(job)


def _goes_at_once(job: _Job, base: str) -> bool:
    """Whether an environment is removed as soon as the new one has its place: till then they may share files."""
    options = job.options
    try:
        return options.in_place and not options.keep and os.path.samefile(base, job.destination)
    except OSError:
        return False


def _unpack(job: _Job) -> UnpackReport:
    archive = job.archive
    given = {
        "--base": job.options.base is not None, "--hardlink": job.options.hardlink,
        "--verify-content": job.options.verify_content, "--on-modified": job.options.on_modified != "error",
    }  # fmt: skip
    asked = next((name for name, is_given in given.items() if is_given), None)
    if archive == "-":
        if asked:
            raise _not_from_a_pipe(asked, archive)
        return _from_stream(job, 0)
    descriptor = open_descriptor(archive)
    try:
        if stat.S_ISREG(os.fstat(descriptor).st_mode) and is_delta(descriptor):
            if job.options.in_place:
                finish_swaps(behind_links(job.destination))  # or the base would be what a kill left in its place
            base = os.path.abspath(job.options.base or job.destination)
            links = Links.ALL if job.options.hardlink else Links.ALONE if _goes_at_once(job, base) else Links.NONE
            how = (links, job.options.verify_content, job.options.on_modified)
            with open_delta(descriptor, archive, base, *how) as (delta_reader, manifest, new):
                return _from_file(replace(job, is_delta=True), delta_reader, manifest, new.hex())
        if asked:
            if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
                raise _not_from_a_pipe(asked, archive)
            raise UsageError(f"{asked} is for a delta, and this is none", path=archive)
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


def _not_from_a_pipe(option: str, archive: str) -> UsageError:
    return UsageError(
        f"{option} is for a delta, which is read from a file, not from a pipe", path=archive, hint="save it first"
    )


def _unpack_if_changed(job: _Job) -> UnpackReport:
    """See `Options.if_changed`. Of an archive that is already there, only the end is read."""
    wanted = None if job.archive == "-" else (read_new_id(job.archive) or read_archive_id(job.archive))
    if wanted is None:
        raise UsageError("--if-changed needs an archive of fastpack's, as a file", path=job.archive)
    if (there := _already_there(job, wanted)) is not None:
        return there
    with alone_in(os.path.dirname(job.destination)):
        # Another process may have unpacked it while this one waited.
        return _already_there(job, wanted) or _unpack(job)


def _already_there(job: _Job, archive_id: str) -> UnpackReport | None:
    """The report of an archive that is already unpacked, whole, for the same prefix and with the same padding."""
    root = job.destination
    if os.path.lexists(os.path.join(root, INCOMPLETE)):
        return None
    try:
        state = read_state(root)
    except (OSError, ValueError):
        return None
    wanted = {"archive_id": archive_id, "prefix": job.prefix, "pad": list(job.options.pad), "complete": True}
    if state is None or any(state.get(name) != value for name, value in wanted.items()):
        return None
    return UnpackReport(
        archive=job.archive, destination=root, prefix=job.prefix, archive_id=archive_id, foreign=False, unchanged=True,
        n_files=0, n_relocated_files=0, written_bytes=0, elapsed_seconds=time.monotonic() - job.started,
    )  # fmt: skip


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
    is_delta: bool = False

    def check_requirements(self, requires: dict[str, Any]) -> list[Warned]:
        """See requirements.py."""
        return requirements.check(requires, self.elsewhere, self.options.ignore_requirements)

    def destination_for(self, names: list[str] | None, n_bytes: int) -> Destination:
        """Where it appears, with `Destination`'s parameters."""
        options = self.options
        keep = options.keep if options.in_place else 0
        if options.in_place and not os.path.exists(os.path.join(self.destination, STATE)):
            raise NotAnEnvironment(
                "there is no environment of fastpack's to be replaced", path=self.destination,
                hint="unpack it without --in-place",
            )  # fmt: skip
        changed = options.on_modified == "replace"
        force = options.force or options.in_place
        return Destination(self.destination, force, names, n_bytes, keep, changed, self.is_delta)

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


def _check_lengths(job: _Job, paths: Sequence[str]) -> None:
    """No path that the system could not open (PATH_MAX, with the partial directory's name in it)."""
    longest = max(paths, key=lambda path: len(path) if path.isascii() else len(os.fsencode(path)), default="")
    room = _PATH_MAX - len(os.fsencode(job.destination)) - len(".fastpack-partial-01234567/.fastpack-new-1234567-/")
    if len(os.fsencode(longest)) > room:
        raise PrefixTooLong(
            "a file's path would be longer than the system allows", path=longest,
            expected=f"at most {room} bytes below {job.destination}", found=f"{len(os.fsencode(longest))} bytes",
            hint="choose a shorter destination",
        )  # fmt: skip


# --- from a file: frames in parallel ---------------------------------------------------------------------------------


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
    members = manifest.members
    _check_lengths(job, members.paths)
    total = sum(members.sizes)
    directories = {member.path for member in members.of_kind(Kind.DIRECTORY)}
    names = [path for path in members.paths if path not in directories]
    with job.destination_for(names, reader.bytes_on_disk(existing_parent(job.destination))) as where:
        try:
            root = where.root
            # An archive placed for one prefix is written as it is, and moved to another one afterwards.
            at_once = manifest.dest_prefix is None
            begun = begin_state(root, None, prefix, job.options.pad) if at_once else {}
            padded = [with_pad(file, job.options.pad) for file in relocated]
            target = os.fsencode(prefix) if at_once else None
            with extractor(reader, manifest, root, target, padded, job.threads) as files:
                placed = files.run(job.progress)
            write_manifest(root, manifest.raw, archive_id)
            if at_once:
                signed, unsigned = _second_phase(root, padded, os.fsencode(prefix), placed)
                write_state(root, archive_id, begun, signed, unsigned)
            else:
                unsigned = _move_to(job, root, archive_id, relocated)
            warnings += unsigned_warnings(unsigned)
            make_links(root, members, reader.left_out)
            if reader.left_out:
                why = "the base has them no more as they were unpacked: Python makes them anew"
                warnings.append(Warned("left-out-pyc", None, f"{len(reader.left_out)} .pyc files are left out: {why}"))
            finish_directories(root, members)
            if at_once:
                frames = [reader.place_of(index) for index in range(len(manifest.frames))]
                remember_frames(root, job.destination, archive_id, frames, job.threads)
            where.finish(job.options.durable)
        except OSError as error:
            raise explain_os_error(error, error.filename or job.destination) from None
    return UnpackReport(
        archive=job.archive,
        destination=job.destination,
        prefix=prefix,
        archive_id=archive_id,
        foreign=False,
        unchanged=False,
        n_files=members.n_files + len(members.of_kind(Kind.HARDLINK)),
        n_relocated_files=len(relocated),
        written_bytes=total - reader.shared_bytes(),
        elapsed_seconds=time.monotonic() - job.started,
        n_shared_files=len(reader.shared),
        warnings=tuple(warnings),
    )


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


# --- from a stream: a pipe, or an archive that fastpack did not make -------------------------------------------------


def _from_stream(job: _Job, descriptor: int) -> UnpackReport:
    prefix = job.prefix

    def check_head(pack_json: dict[str, Any]) -> list[Warned]:
        warnings = job.check_requirements(pack_json.get("requires", {}))
        check_prefix(prefix, pack_json.get("longest_prefix"))
        check_ascii(prefix, pack_json.get("ascii_only"))
        return warnings

    with job.destination_for(None, 0) as where:
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
            where.finish(job.options.durable)
        except OSError as error:
            raise explain_os_error(error, error.filename or job.destination) from None
    return UnpackReport(
        archive=job.archive,
        destination=job.destination,
        prefix=prefix,
        archive_id=archive_id,
        foreign=done.manifest is None,
        unchanged=False,
        n_files=done.n_files,
        n_relocated_files=n_relocated,
        written_bytes=done.written_bytes,
        elapsed_seconds=time.monotonic() - job.started,
        warnings=tuple(warnings),
    )

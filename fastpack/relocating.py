"""Relocating an environment where it lies: after it was unpacked by plain tar, moved, or given new files by pip."""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

from fastpack import digest, requirements
from fastpack._place_py import (
    INCOMPLETE,
    RELOCATIONS,
    STATE,
    Mismatch,
    RelocatedFile,
    Relocation,
    Stated,
    begin_state,
    check_pad,
    lock_tree,
    place,
    relocate_tree,
    replace_file,
    set_directories,
    unplace,
    unplaced_lengths,
    unwritable,
    write_relocations,
    write_state,
)
from fastpack.environment import Environment
from fastpack.errors import AlreadyExists, Unreadable, UsageError
from fastpack.examine import examine
from fastpack.fs import explain_os_error, remove_tree
from fastpack.installed import read_installed
from fastpack.listing import Files, list_tree
from fastpack.markers import make_marker, remove_partials
from fastpack.model import DiskFile, Kind, Progress, RelocateReport, Warned, silent
from fastpack.parallel import default_threads
from fastpack.reading import open_source
from fastpack.relocation import KERNELS, Prefixes, link_targets, read_range
from fastpack.targets import check_target
from fastpack.unpacking import unsigned_warnings


def relocate(
    root: str,
    *,
    dest_prefix: str | None = None,
    n_threads: int = 0,
    pad: Sequence[str] | None = None,
    strict: bool = False,
    ignore_requirements: bool = False,
    overlay: str | None = None,
    progress: Progress = silent,
) -> RelocateReport:
    """Put an environment's own prefix into the files that name it, wherever it lies now; any number of times.

    Parameters
    ----------
    root : the environment; its absolute path as typed is the prefix, unless `dest_prefix` says otherwise.
    pad : rules for the padding of managed binaries (see `with_pad`) instead of those in its state; ``()`` takes these
        back, None keeps them.
    strict : refuse where a file would stay as it is because its slots are too short.
    ignore_requirements : only warn if platform, architecture or glibc are not what the environment needs.
    overlay : write what changes into this new directory, and nothing into the environment, which may be read-only
        (a mounted squashfs file): what an overlay file system takes as its upper directory.

    Files that came since it was unpacked are planned first as `pack` would, and recorded. A file that was changed
    since, so that it is in none of the forms we know, is reported and left.

    Raises
    ------
    NotAnEnvironment : fastpack did not make it.
    PrefixTooLong, WrongPlatform, IncompleteEnvironment : before anything is changed.
    """
    started = time.monotonic()
    root = os.path.abspath(root)
    target = root if dest_prefix is None else os.path.normpath(dest_prefix)
    if not target.startswith("/") or "\n" in target or not target.strip("/"):
        raise UsageError("the target prefix must be an absolute path below /, without a newline", found=repr(target))
    if pad is not None and (rule := check_pad(pad)) is not None:
        raise UsageError("no such padding", expected="conda, slash, or GLOB=slash", found=rule)
    if overlay is not None:
        return _overlay(root, os.path.abspath(overlay), target, pad, strict, ignore_requirements, started)
    asked = _Asked(root, target, pad, strict, ignore_requirements, dest_prefix is not None)
    with _alone_in(root):
        return _relocate(asked, n_threads if n_threads > 0 else default_threads(), progress, started)


def _relink(root: str, earlier: Sequence[str], known: Set[str]) -> int:
    """Let links that came after unpacking and name a path below an earlier prefix lead there relatively (row 14).

    Returns
    -------
    How many there were.
    """
    if not earlier:
        return 0
    links = {path: target for path, target in list_tree(root).targets.items() if path not in known}
    targets, _ = link_targets(links, Prefixes(map(os.fsencode, earlier)))
    changed = {path: target for path, target in targets.items() if target != links[path]}
    for path, target in changed.items():
        full = os.path.join(root, path)
        new = os.path.join(os.path.dirname(full), f".fastpack-new-{secrets.token_hex(4)}")
        os.symlink(target, new)
        os.replace(new, full)
    return len(changed)


class _Asked(NamedTuple):
    """What `relocate` was asked for; `elsewhere`: for another prefix than the environment's own path."""

    root: str
    target: str
    pad: Sequence[str] | None
    strict: bool
    ignore_requirements: bool
    elsewhere: bool


@contextmanager
def _alone_in(root: str) -> Iterator[None]:
    """Wait until nobody else relocates an environment; one that is not there is not locked."""
    try:
        lock = lock_tree(root)
    except OSError:
        yield  # and reading it says why
        return
    try:
        yield
    finally:
        os.close(lock)


def _relocate(asked: _Asked, threads: int, progress: Progress, started: float) -> RelocateReport:
    root, target, pad, strict, ignore_requirements, elsewhere = asked
    manifest, table, state, archive_id = read_installed(root)
    files = table.files
    warnings: list[Warned] = []
    warnings += requirements.check(manifest.header["requires"], elsewhere, ignore_requirements)
    strict = strict or table.strict
    check_target(target, files, strict)
    previous = None if state is None else state["prefix"]
    n_added = 0
    obstacle = unwritable(root, files)
    if obstacle is not None:
        raise Unreadable("not readable or not writable, so nothing was changed", path=obstacle)
    try:
        if state is not None and state["complete"]:
            known = {member.path: (member.n_bytes, member.mtime) for member in manifest.members}
            # What is in none of the forms we know was written anew since (by pip, say): looked at like a new file.
            strange = set(relocate_tree(root, target, files, state, KERNELS, dry_run=True).left)
            kept = [file for file in files if file.path not in strange]
            added, rewritten = _new_files(root, str(previous), known, kept, threads, warnings)
            anew = {file.path for file in added}
            kept = [file for file in kept if file.path not in anew]
            gone = {path for path in strange if not os.path.lexists(os.path.join(root, path))}
            kept += [file for file in files if file.path in strange - anew - gone]
            kept = [_without(root, file, anew | gone, files, str(previous)) for file in kept]
            kept = [file for file in kept if file.items]  # all that it stated is gone
            n_added = len(added)
            changed = sorted([*kept, *added], key=lambda file: os.fsencode(file.path))
            check_target(target, changed, strict)
            if added or kept != files:
                for path, (data, mode) in rewritten.items():
                    replace_file(os.path.join(root, path), [data], mode, None)
                files = changed
                again = write_relocations(files, table.directories, table.strict)
                replace_file(os.path.join(root, RELOCATIONS), [again], 0o644, None)
        total = sum(file.n_bytes for file in files)
        done = 0

        def one(file: RelocatedFile) -> None:
            nonlocal done
            done += file.n_bytes
            progress("relocate", done, total, file.path.split("/", 1)[0])

        warnings += check_target(target, files, strict)
        begun = begin_state(root, state, target, pad)
        result = relocate_tree(root, target, files, begun, KERNELS, one)
        warnings += unsigned_warnings(result.unsigned)
        relinked = _relink(root, begun["earlier"], set(manifest.members.paths))
        write_state(root, archive_id, begun, result.signed, result.unsigned)
        set_directories(root, table.directories)
    except OSError as error:
        raise explain_os_error(error, error.filename or root) from None
    return RelocateReport(
        root=root,
        prefix=target,
        previous=previous,
        n_written=len(result.written) + relinked,
        n_unchanged=len(result.unchanged),
        n_added=n_added,
        left=tuple(result.left),
        elapsed_seconds=time.monotonic() - started,
        warnings=tuple(warnings),
    )


def _overlay(
    root: str, overlay: str, target: str, pad: Sequence[str] | None, strict: bool, ignore_requirements: bool,
    started: float,
) -> RelocateReport:  # fmt: skip
    """See `relocate`. Files that came since the environment was unpacked are not looked at."""
    manifest, table, state, archive_id = read_installed(root)
    warnings = requirements.check(manifest.header["requires"], target != root, ignore_requirements)
    warnings += check_target(target, table.files, strict or table.strict)
    if os.path.lexists(overlay):
        raise AlreadyExists("the overlay is already there", path=overlay, hint="give the name of a new directory")
    if (os.path.realpath(overlay) + "/").startswith(os.path.realpath(root) + "/"):
        raise UsageError("the overlay would lie in the environment itself", path=overlay)
    partial = f"{overlay}.partial-{secrets.token_hex(4)}"
    remove_partials(overlay)
    try:
        os.makedirs(os.path.join(partial, ".fastpack"))
        marker = make_marker(partial, {"made": "whole"})
        try:
            for path in (*(file.path for file in table.files), STATE):
                _copy_below(root, partial, path)
            begun = begin_state(partial, state, target, pad)
            result = relocate_tree(partial, target, table.files, begun, KERNELS)
            warnings += unsigned_warnings(result.unsigned)
            write_state(partial, archive_id, begun, result.signed, result.unsigned)
            for path in (*result.unchanged, *result.left):
                if os.path.lexists(os.path.join(partial, path)):
                    os.unlink(os.path.join(partial, path))
            for folder, _, _ in os.walk(partial, topdown=False):
                below = os.path.relpath(folder, partial)
                if below != ".fastpack":
                    os.chmod(folder, _mode_of(os.path.join(root, below)))
            os.unlink(os.path.join(partial, INCOMPLETE))
            os.chmod(os.path.join(partial, ".fastpack"), _mode_of(os.path.join(root, ".fastpack")))
            os.rename(partial, overlay)
        except BaseException:
            remove_tree(partial)
            raise
        finally:
            marker.close()
    except OSError as error:
        raise explain_os_error(error, error.filename or overlay) from None
    return RelocateReport(
        root=root, prefix=target, previous=None if state is None else state["prefix"], n_written=len(result.written),
        n_unchanged=len(result.unchanged), n_added=0, left=tuple(result.left),
        elapsed_seconds=time.monotonic() - started, warnings=tuple(warnings),
    )  # fmt: skip


def _mode_of(path: str) -> int:
    return os.stat(path).st_mode & 0o7777


def _copy_below(root: str, other: str, path: str) -> None:
    """Copy a file to another root, with the directories that lead to it and their modes; what is not there is left."""
    parent = ""
    for part in path.split("/")[:-1]:
        parent = os.path.join(parent, part)
        place = os.path.join(other, parent)
        if not os.path.isdir(place):
            os.mkdir(place)
            os.chmod(place, _mode_of(os.path.join(root, parent)) | 0o700)
    source = os.path.join(root, path)
    if os.path.isfile(source) and not os.path.islink(source):
        shutil.copy2(source, os.path.join(other, path))


def _without(root: str, file: RelocatedFile, names: set[str], files: list[RelocatedFile], prefix: str) -> RelocatedFile:
    """A record or RECORD as it lies at `prefix`, its relocations without those that state files in `names`.

    What it says of these stays as it is from now on: they were written anew, or are gone.
    """
    stay = [item for item in file.items if not (set(_paths(item)) & names)]
    if len(stay) == len(file.items):
        return file
    try:
        with open(os.path.join(root, file.path), "rb") as stream:
            placed = bytearray(stream.read())
        known = {other.path: Stated(other.sha256, other.n_bytes) for other in files if other.path not in names}
        # An unknown file's field is left as found: so one after another tells where each item's new place is.
        archived = unplace(placed, file.items, file.placeholder, os.fsencode(prefix), 0, known)
    except (OSError, Mismatch):
        return file
    shift, items = 0, []
    found = unplaced_lengths(placed, file.items, file.placeholder, os.fsencode(prefix))
    for item, length in zip(file.items, found, strict=True):
        if item in stay:
            items.append(item._replace(offset=item.offset + shift))
        else:
            shift += length - item.slot
    return file._replace(sha256=digest.sha256(archived), n_bytes=len(archived), items=tuple(items))


def _paths(item: Relocation) -> list[str]:
    if item.kind == "pip-record":
        return [item.value]
    return [item.value[1]] if item.kind == "record" else []


def _new_files(
    root: str,
    prefix: str,
    known: dict[str, tuple[int, int]],
    files: list[RelocatedFile],
    threads: int,
    warnings: list[Warned],
) -> tuple[list[RelocatedFile], dict[str, tuple[bytes, int]]]:
    """Files that came after unpacking and name the prefix, and which of them are to be written (bytes, mode) in a form
    we know before they are relocated. Writes nothing itself.

    A file that the manifest knows counts as new when its size or time is not the manifest's.
    """
    recorded = {file.path for file in files}
    env = Environment.from_prefix(root)

    def is_new(file: DiskFile) -> bool:
        if file.kind is not Kind.FILE or file.path in recorded:
            return False
        return known.get(file.path) != (file.n_bytes, file.mtime_seconds)

    subset = {path: file for path, file in env.files.items() if is_new(file)}
    if not subset:
        return [], {}
    for distribution in env.distributions:
        # A new RECORD states files that may be recorded already, the same as before (another version, reinstalled).
        if f"{distribution.folder}/RECORD" in subset:
            subset.update((path, env.files[path]) for path in distribution.paths if path in recorded)
    some = replace(
        env,
        files=Files.of(subset.values()),
        entries={path: entry for path, entry in env.entries.items() if path in subset},
        distributions=tuple(d for d in env.distributions if f"{d.folder}/RECORD" in subset),
        earlier_prefixes=(prefix, *env.earlier_prefixes),
    )
    examination = examine(some, threads=threads)
    added: list[RelocatedFile] = []
    rewritten: dict[str, tuple[bytes, int]] = {}
    stated: dict[str, Stated] = {}
    # RECORDs last: they state hashes of the others.
    for path, found in sorted(examination.files.items(), key=lambda row: (row[0].endswith("/RECORD"), row[0])):
        if found.not_relocated:
            warnings.append(Warned("not-relocated", path, found.not_relocated))
        if found.archived is None:
            continue
        disk = subset[path]
        with open_source(root, disk) as (_, pread):
            archived = read_range(pread, found.form.edits, 0, found.archived.n_bytes)
            before = pread(disk.n_bytes, 0)
        mode = disk.mode & 0o7777
        file = RelocatedFile(
            path, found.archived.sha256, found.archived.n_bytes, mode, found.placeholder, found.form.relocations
        )
        placed = archived
        try:
            if file.fits(os.fsencode(prefix)):
                items = file.items
                raw = os.fsencode(prefix)
                placed = bytes(place(bytearray(archived), items, file.placeholder, raw, 0, stated, KERNELS.place))
        except Mismatch:
            pass  # wide characters and a prefix beyond ASCII: the archive form is one that we know too
        stated[path] = Stated(digest.sha256(placed), len(placed))
        if placed != before:
            # pip's two-line header, say: brought to the form that can be taken back.
            rewritten[path] = (placed, mode)
        if file.items:
            added.append(file)
    return added, rewritten

"""Holding an archive, or an unpacked environment, against its manifest. Imports no more than unpacking does."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastpack import container, digest
from fastpack._place_py import (
    INCOMPLETE,
    RELOCATIONS,
    STATE,
    Mismatch,
    RelocatedFile,
    Stated,
    Tree,
    content_mtime,
    read_relocations,
    read_state,
    relocate_file,
    unplace,
    with_pad,
)
from fastpack.errors import (
    BadRecord,
    DamagedArchive,
    EnvironmentNotFound,
    IncompleteEnvironment,
    NotAnEnvironment,
    Unreadable,
)
from fastpack.frames import trailer
from fastpack.fs import walk
from fastpack.manifest import BROKEN, MANIFEST, Manifest, Member, from_bytes
from fastpack.model import Kind, Progress, Verdict, VerifyReport, Warned, silent
from fastpack.parallel import default_threads, ordered_map
from fastpack.reader import Archive, open_archive, read_relocated
from fastpack.records import parse_records
from fastpack.relocation import KERNELS


def verify(target: str, *, deep: bool = False, n_threads: int = 0, progress: Progress = silent) -> VerifyReport:
    """Verify an archive (a file) or an unpacked environment (a directory); changes nothing.

    Parameters
    ----------
    deep : rebuild the packages' own files from an archive, and hold them against the sha256 that their records state.

    Raises
    ------
    FastpackError : it cannot be verified at all. What is found wrong stands in the report.
    """
    threads = n_threads if n_threads > 0 else default_threads()
    if os.path.isdir(target):
        return _verify_prefix(os.path.abspath(target), threads, progress)
    with open_archive(target) as archive:
        return _verify_archive(archive, deep, threads, progress)


# --- archives --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Deep:
    """What is needed to rebuild the packages' files: their sha256, and the relocations that lead there."""

    wanted: dict[str, str] = field(default_factory=dict)  # path -> the package's sha256
    relocated: dict[str, RelocatedFile] = field(default_factory=dict)
    dest_prefix: bytes | None = None

    def normal_form(self, path: str, data: bytearray) -> bytes:
        """A whole file's normal form from its bytes in the archive; Mismatch if its relocations do not fit."""
        file = self.relocated.get(path)
        if file is None:
            return bytes(data)
        if self.dest_prefix is not None and file.fits(self.dest_prefix):
            data = unplace(data, file.items, file.placeholder, self.dest_prefix, 0, None, KERNELS.restore)
        first = file.items[0]
        if first.kind == "shebang":
            if data[: first.slot] != os.fsencode(first.value[1]):
                raise Mismatch("another first line than recorded")
            data = bytearray(os.fsencode(first.value[0])) + data[first.slot :]
        return bytes(data)


def _verify_archive(archive: Archive, deep: bool, threads: int, progress: Progress) -> VerifyReport:
    started = time.monotonic()
    manifest, reader = archive.manifest, archive.reader
    problems: list[dict[str, str]] = []

    def problem(path: str, what: str) -> None:
        problems.append({"path": path, "what": what})

    wanted = _Deep()
    try:
        relocated = read_relocated(reader, manifest)
        if deep:
            wanted = _what_packages_say(archive, relocated)
    except (DamagedArchive, BadRecord) as error:
        problem(error.path or "", error.message)
    total = sum(frame.plain_bytes for frame in manifest.frames)

    def check(index: int) -> tuple[dict[int, list[bytes]], dict[int, bytes], str | None]:
        """One frame: (slices by member, bytes of those to be rebuilt, what is wrong with it)."""
        slices: dict[int, list[bytes]] = {}
        kept: dict[int, bytes] = {}
        try:
            if digest.blake(reader.packed(index)) != manifest.frames[index].packed_digest:
                return {}, {}, f"frame {index}: its compressed bytes do not have the digest the manifest states"
            for segment, data, found in reader.read(index):
                slices[segment.member] = found
                if manifest.members[segment.member].path in wanted.wanted:
                    kept[segment.member] = bytes(data)
        except DamagedArchive as error:
            return {}, {}, f"{'' if 'frame' in error.message else f'frame {index}: '}{error.message}"
        return slices, kept, None

    groups: dict[int, Counter[str]] = {}
    open_slices: dict[int, list[bytes]] = {}
    open_data: dict[int, bytearray] = {}
    n_proven = done = 0
    indices = range(len(manifest.frames))
    for index, (slices, kept, wrong) in zip(indices, ordered_map(check, indices, threads), strict=True):
        segments = reader.layout[index]
        if wrong is not None:
            problem(manifest.members[segments[0].member].path, wrong)
        for segment in segments:
            member = manifest.members[segment.member]
            open_slices.setdefault(segment.member, []).extend(slices.get(segment.member, []))
            if segment.member in kept:
                open_data.setdefault(segment.member, bytearray()).extend(kept[segment.member])
            if segment.stop != member.n_bytes:
                continue
            count = groups.setdefault(member.group, Counter())
            found = open_slices.pop(segment.member)
            data = open_data.pop(segment.member, bytearray())
            if member.kind is not Kind.FILE:
                continue
            if wrong is not None or not found or digest.file_digest(found) != member.digest:
                count["damaged"] += 1
                if wrong is None:
                    problem(member.path, "a file does not have the digest the manifest states")
                continue
            count["intact"] += 1
            if member.path in wanted.wanted:
                right = _is_package_file(wanted, member.path, data)
                n_proven += right
                if not right:
                    problem(member.path, "its normal form does not have the sha256 that its package states")
        done += manifest.frames[index].plain_bytes
        progress("verify", done, total, str(manifest.groups[manifest.members[segments[-1].member].group]))
    for what in _check_end(archive):
        problem("", what)
    return VerifyReport(
        target=archive.path,
        kind="archive",
        archive_id=archive.archive_id,
        deep=deep,
        n_files=sum(member.kind is Kind.FILE for member in manifest.members),
        n_frames=len(manifest.frames),
        n_bytes=total,
        n_proven=n_proven,
        prefix=manifest.dest_prefix,
        groups=_group_rows(manifest, groups),
        problems=tuple(problems),
        extra=(),
        elapsed_seconds=time.monotonic() - started,
        warnings=(),
    )


def _group_rows(manifest: Manifest, counts: dict[int, Counter[str]]) -> tuple[dict[str, object], ...]:
    return tuple(
        {"kind": str(group.kind), "name": group.name, "version": group.version, **dict(sorted(counts[index].items()))}
        for index, group in enumerate(manifest.groups)
        if counts.get(index)
    )


def _what_packages_say(archive: Archive, relocated: Sequence[RelocatedFile]) -> _Deep:
    """The sha256 of every proven file, from the records in the archive."""
    members = archive.manifest.members
    raw = {
        member.path: b"".join(archive.content(index))
        for index, member in enumerate(members)
        if member.kind is Kind.FILE and member.path.startswith("conda-meta/") and member.path.endswith(".json")
    }
    known = {member.path for member in members}
    proven = {m.path for m in members if m.verdict == Verdict.PROVEN and m.kind is Kind.FILE}
    destination = archive.manifest.dest_prefix
    wanted = _Deep(
        {}, {file.path: file for file in relocated}, None if destination is None else os.fsencode(destination)
    )
    # Of several packages that claim a path, the proven file is one's.
    for record in parse_records(raw, archive.path, known.__contains__):
        for entry in record.entries:
            if entry.path in proven and entry.sha256 is not None:
                wanted.wanted[entry.path] = f"{wanted.wanted.get(entry.path, '')} {entry.sha256}"
    return wanted


def _is_package_file(wanted: _Deep, path: str, data: bytearray) -> bool:
    try:
        normal = wanted.normal_form(path, data)
    except (Mismatch, ValueError):
        return False
    return digest.sha256(normal) in wanted.wanted[path].split()


def _check_end(archive: Archive) -> Iterator[str]:
    """What stands behind the manifest's frames: its own header, itself, the tar's end, the locator, the seek table."""
    manifest, codec, locator = archive.manifest, archive.codec, archive.locator
    data = manifest.to_bytes()
    own = Member(Kind.FILE, MANIFEST, 0o644, content_mtime(locator.archive_id), len(data))
    before = manifest.frames[-1].offset + manifest.frames[-1].packed_bytes if manifest.frames else 0
    size = os.fstat(archive.descriptor).st_size
    after = locator.offset + locator.packed_bytes
    sizes = [(frame.packed_bytes, frame.plain_bytes) for frame in manifest.frames]
    header = own.header(manifest.arcroot)
    tail = bytes(container.padding(len(data))) + container.END
    sizes += [(locator.offset - before, len(header)), (locator.packed_bytes, len(data))]
    stop = size - len(trailer(codec, locator, [*sizes, (0, len(tail))]))
    if locator.plain_bytes != len(data) or not before <= locator.offset <= after <= stop:
        yield "the manifest does not lie where the locator says"
        return
    expected = trailer(codec, locator, [*sizes, (stop - after, len(tail))])
    if os.pread(archive.descriptor, size - stop, stop) != expected:
        yield "the locator or the seek table is not what follows from the manifest"
    # These frames have no digest of their compressed bytes: the same library makes the same ones again.
    same_library = manifest.header.get("libraries") == codec.versions()
    for start, end, plain, what in (
        (before, locator.offset, header, "the manifest's header in the tar stream is not its own"),
        (locator.offset, after, data, "the manifest's frame is not the one that was written"),
        (after, stop, tail, "the tar stream does not end behind the manifest"),
    ):
        packed = os.pread(archive.descriptor, end - start, start)
        try:
            right = bytes(memoryview(codec.decompress(packed, len(plain)))) == plain
        except DamagedArchive:
            right = False
        if not right or (same_library and packed != codec.compress(plain, int(manifest.header["level"]))):
            yield what


# --- environments ----------------------------------------------------------------------------------------------------


def read_environment(root: str) -> tuple[Manifest, list[RelocatedFile], dict[str, Any] | None, str]:
    """What an unpacked environment says of itself: (manifest, relocations, state, archive id).

    Raises
    ------
    EnvironmentNotFound, NotAnEnvironment, IncompleteEnvironment, DamagedArchive
    """
    if not os.path.isdir(root):
        raise EnvironmentNotFound("no such directory", path=root, hint="give the directory of an environment")
    if os.path.lexists(os.path.join(root, INCOMPLETE)):
        raise IncompleteEnvironment(
            "this environment was never unpacked to its end", path=root, hint="remove it and unpack the archive again"
        )
    try:
        with open(os.path.join(root, MANIFEST), "rb") as file:
            data = file.read()
        with open(os.path.join(root, RELOCATIONS), "rb") as file:
            relocated = read_relocations(file.read())
        state = read_state(root)
    except FileNotFoundError as error:
        raise NotAnEnvironment(
            "fastpack did not unpack this environment, so nothing says what its files should be",
            path=error.filename or root, hint="pack it with fastpack pack, and verify what that unpacks to",
        ) from None  # fmt: skip
    except OSError as error:
        raise Unreadable(f"it cannot be read ({error.strerror})", path=error.filename or root) from None
    except BROKEN as error:
        raise IncompleteEnvironment(
            f"its relocations or its state are broken ({error})", path=root, hint="unpack the archive again"
        ) from None
    return from_bytes(data), relocated, state, digest.blake(data).hex()


def _verify_prefix(root: str, threads: int, progress: Progress) -> VerifyReport:
    started = time.monotonic()
    manifest, relocated, state, archive_id = read_environment(root)
    warnings: list[Warned] = []
    problems: list[dict[str, str]] = []
    if state is not None and state.get("archive_id") not in ("", archive_id):
        problems.append({"path": MANIFEST, "what": "the manifest is not the one that was unpacked"})
    prefix = None if state is None else str(state["prefix"])
    if state is None:
        warnings.append(Warned("archive-form", None, "not relocated yet: run its bin/conda-unpack"))
    elif not state["complete"]:
        warnings.append(Warned("interrupted", None, "a relocation was interrupted: run its bin/conda-unpack again"))
    elif prefix != root:
        warnings.append(Warned("elsewhere", None, f"its files name {prefix}, and it lies at {root}"))

    files = {file.path: file for file in relocated}
    known = {member.path: member for member in manifest.members}
    on_disk = {found.path: found for found in walk(root)}
    outcomes = _relocated_outcomes(root, prefix, relocated, state or {})
    groups: dict[int, Counter[str]] = {}
    total = sum(member.n_bytes for member in manifest.members)
    done = 0

    def condition(member: Member) -> str:
        found = on_disk.get(member.path)
        if found is None:
            return "missing"
        if member.kind is Kind.DIRECTORY:
            return "intact" if found.kind is Kind.DIRECTORY else "changed"
        if member.kind is Kind.LINK:
            return "intact" if found.kind is Kind.LINK and found.target == member.target else "changed"
        if found.kind is not Kind.FILE:
            return "changed"
        original = known[member.target] if member.kind is Kind.HARDLINK else member
        if original.path in files:
            return outcomes[original.path]
        if found.n_bytes != original.n_bytes:
            return "changed"
        return "intact" if _file_digest(os.path.join(root, member.path)) == original.digest else "changed"

    chosen = [member for member in manifest.members if member.path not in (RELOCATIONS, STATE)]
    for member, how in zip(chosen, ordered_map(condition, chosen, threads), strict=True):
        found = how
        done += member.n_bytes
        progress("verify", done, total, str(manifest.groups[member.group]))
        if found in ("changed", "missing") and member.path.endswith(".pyc") and "__pycache__/" in member.path:
            found = "recompiled"  # Python's own business
        if member.kind is Kind.DIRECTORY and found == "intact":
            continue
        groups.setdefault(member.group, Counter())[found] += 1
        if found not in ("intact", "relocated", "recompiled"):
            problems.append({"path": member.path, "what": _WHAT[found]})
    own = {MANIFEST, RELOCATIONS, STATE}
    extra = tuple(
        path
        for path, found in on_disk.items()
        if path not in known and path not in own and found.kind is not Kind.DIRECTORY
    )
    compiled = sum(path.endswith(".pyc") for path in extra)
    if compiled:
        warnings.append(Warned("compiled", None, f"{compiled} .pyc files that Python has written since"))
    return VerifyReport(
        target=root,
        kind="prefix",
        archive_id=archive_id,
        deep=False,
        n_files=sum(member.kind in (Kind.FILE, Kind.HARDLINK) for member in manifest.members),
        n_frames=0,
        n_bytes=total,
        n_proven=0,
        prefix=prefix,
        groups=_group_rows(manifest, groups),
        problems=tuple(problems),
        extra=tuple(path for path in extra if not path.endswith(".pyc")),
        elapsed_seconds=time.monotonic() - started,
        warnings=tuple(warnings),
    )


_WHAT = {
    "changed": "changed since it was unpacked",
    "missing": "missing",
    "elsewhere": "it does not name the prefix that the environment is relocated to",
}


def _relocated_outcomes(
    root: str, prefix: str | None, relocated: Iterable[RelocatedFile], state: Mapping[str, Any]
) -> dict[str, str]:
    """For each file with relocations: relocated (to the prefix that the state names), elsewhere, changed or missing."""
    files = [with_pad(file, state.get("pad", [])) for file in relocated]
    names = [prefix, state.get("target"), *state.get("earlier", [])]
    sources = [os.fsencode(name) for name in dict.fromkeys(names) if name is not None]
    archive = {file.path: Stated(file.sha256, file.n_bytes) for file in files}
    target = os.fsencode(prefix or root)
    tree = Tree([*sources, None], target, archive, {}, state.get("signed", {}), KERNELS)
    outcomes: dict[str, str] = {}
    for second in (False, True):
        for file in files:
            if file.second_phase != second:
                continue
            path = os.path.join(root, file.path)
            if not os.path.isfile(path) or os.path.islink(path):
                outcomes[file.path] = "missing" if not os.path.lexists(path) else "changed"
                continue
            try:
                found = relocate_file(path, file, tree, dry_run=True)
            except OSError as error:
                raise Unreadable(f"a file cannot be read ({error.strerror})", path=path) from None
            outcomes[file.path] = {"unchanged": "relocated", "written": "elsewhere", "left": "changed"}[found]
    return outcomes


def _file_digest(path: str) -> bytes:
    slices: list[bytes] = []
    try:
        with open(path, "rb") as file:
            while (data := file.read(digest.SLICE)) or not slices:
                slices.append(digest.blake(data))
    except OSError as error:
        raise Unreadable(f"a file cannot be read ({error.strerror})", path=path) from None
    return digest.file_digest(slices)

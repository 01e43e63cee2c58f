"""Holding an archive, or an unpacked environment, against its manifest. Imports no more than unpacking does."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from fastpack import container, digest
from fastpack._place_py import (
    RELOCATIONS,
    STATE,
    Mismatch,
    RelocatedFile,
    Stated,
    Tree,
    content_mtime,
    place,
    relocate_file,
    stated_files,
    unplace,
    with_pad,
)
from fastpack.errors import (
    BadRecord,
    DamagedArchive,
    Unreadable,
)
from fastpack.frames import trailer
from fastpack.fs import is_compiled, leads_out
from fastpack.installed import read_installed, same_place
from fastpack.listing import walk
from fastpack.manifest import MANIFEST, Manifest
from fastpack.model import Kind, Progress, Verdict, VerifyReport, Warned, silent
from fastpack.parallel import default_threads, ordered_map
from fastpack.reader import Archive, open_archive, read_relocated
from fastpack.rebuilding import archived
from fastpack.records import parse_records
from fastpack.relocation import KERNELS, ArchiveForm, Edited, placing_edits
from fastpack.rows import Member


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


#: Files with relocations are looked at as a whole up to this size, in bytes.
_WHOLE = 64 << 20


class _Content:
    """Looks at files' bytes as they come, frame after frame: the relocations fit them, and with `deep` the packages'
    own files come out of them.
    """

    def __init__(self, archive: Archive, relocated: Sequence[RelocatedFile], deep: bool) -> None:
        destination = archive.manifest.dest_prefix
        self._placed = None if destination is None else os.fsencode(destination)
        self._relocated = {file.path: file for file in relocated}
        self._packages = _what_packages_say(archive) if deep else {}
        self._whole: dict[str, bytearray] = {}
        self._hashes: dict[str, Any] = {}
        self.n_proven = 0

    def wants(self, member: Member) -> bool:
        """Whether a member's bytes are to be shown."""
        small = member.path in self._relocated and member.n_bytes <= _WHOLE
        return member.kind is Kind.FILE and (small or member.path in self._packages)

    def add(self, path: str, data: bytes) -> None:
        """The next bytes of a file."""
        if path in self._relocated:
            self._whole.setdefault(path, bytearray()).extend(data)
        else:
            self._hashes.setdefault(path, hashlib.sha256()).update(data)

    def finish(self, path: str) -> str | None:
        """What is wrong with a file that has come to its end; None if nothing is."""
        sha256 = self._packages.get(path, ())
        file = self._relocated.get(path)
        if file is None:
            found = self._hashes.pop(path, hashlib.sha256()).hexdigest()
        else:
            try:
                found = self._normal_form(file, self._whole.pop(path, bytearray()))
            except (Mismatch, ValueError) as error:
                return f"a relocation does not fit its file ({error})"
        if not sha256:
            return None
        self.n_proven += found in sha256
        return None if found in sha256 else "its normal form does not have the sha256 that its package states"

    def _normal_form(self, file: RelocatedFile, data: bytearray) -> str:
        """sha256 of a file's normal form."""
        if self._placed is not None and file.second_phase:
            return ""  # what it stated of other files is not in it any more
        if self._placed is not None and file.fits(self._placed):
            data = unplace(data, file.items, file.placeholder, self._placed, 0, None, KERNELS.restore)
        if digest.sha256(data) != file.sha256:
            raise Mismatch("it does not have the sha256 they state")
        # At a prefix that fits everywhere, every place is looked at.
        place(bytearray(data), file.items, file.placeholder, b"/", 0, None, KERNELS.place)
        first = file.items[0]
        if first.kind == "shebang":
            data = bytearray(os.fsencode(first.value[0])) + data[first.slot :]
        return digest.sha256(data)


def _verify_archive(archive: Archive, deep: bool, threads: int, progress: Progress) -> VerifyReport:
    started = time.monotonic()
    manifest, reader = archive.manifest, archive.reader
    problems: list[dict[str, str]] = []

    def problem(path: str, what: str) -> None:
        problems.append({"path": path, "what": what})

    content = _Content(archive, (), False)
    try:
        content = _Content(archive, read_relocated(reader, manifest), deep)
    except (DamagedArchive, BadRecord) as error:
        problem(error.path or "", error.message)
    total = sum(frame.plain_bytes for frame in manifest.frames)

    def check(index: int) -> tuple[dict[int, bytes], dict[int, bytes], str | None]:
        """One frame: (slices by member, bytes of those that are looked at, what is wrong with it)."""
        slices: dict[int, bytes] = {}
        shown: dict[int, bytes] = {}
        try:
            if digest.blake(reader.packed(index)) != manifest.frames[index].packed_digest:
                return {}, {}, f"frame {index}: its compressed bytes do not have the digest the manifest states"
            frame = reader.read(index)
            for member, found in enumerate(frame.slices, frame.first):
                slices[member] = found
                if content.wants(manifest.members[member]):
                    shown[member] = bytes(frame.of(member))
        except DamagedArchive as error:
            return {}, {}, f"{'' if 'frame' in error.message else f'frame {index}: '}{error.message}"
        return slices, shown, None

    groups: dict[int, Counter[str]] = {}
    open_slices: dict[int, bytes] = {}
    done = 0
    indices = range(len(manifest.frames))
    for index, (slices, shown, wrong) in zip(indices, ordered_map(check, indices, threads), strict=True):
        segments = reader.layout[index]
        if wrong is not None:
            problem(manifest.members[segments[0].member].path, wrong)
        for segment in segments:
            member = manifest.members[segment.member]
            open_slices[segment.member] = open_slices.get(segment.member, b"") + slices.get(segment.member, b"")
            if segment.member in shown:
                content.add(member.path, shown[segment.member])
            if segment.stop != member.n_bytes or member.kind is not Kind.FILE:
                continue
            found = open_slices.pop(segment.member)
            what = "damaged" if wrong is not None else None
            if what is None and digest.file_digest(found) != member.digest:
                what = "a file does not have the digest the manifest states"
            if what is None and content.wants(member):
                what = content.finish(member.path)
            if what is not None and wrong is None:
                problem(member.path, what)
            groups.setdefault(member.group, Counter())["damaged" if what else "intact"] += 1
        done += manifest.frames[index].plain_bytes
        progress("verify", done, total, str(manifest.groups[manifest.members[segments[-1].member].group]))
    links, declared = manifest.links()
    for path, target in links.items():
        if path not in declared and leads_out(path, target, links):
            problem(path, "a link leads out of the environment")
    for what in _check_end(archive):
        problem("", what)
    return VerifyReport(
        target=archive.path,
        kind="archive",
        archive_id=archive.archive_id,
        deep=deep,
        n_files=manifest.members.n_files,
        n_frames=len(manifest.frames),
        n_bytes=total,
        n_proven=content.n_proven,
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


#: No record of a package is larger: conda's own have some MB.
_MAX_RECORD = 256 << 20


def _what_packages_say(archive: Archive) -> dict[str, tuple[str, ...]]:
    """The sha256 of every proven file, from the records in the archive; of several packages that claim a path, each."""
    members = archive.manifest.members
    raw: dict[str, bytes] = {}
    for index, member in enumerate(members):
        if member.kind is Kind.FILE and member.path.startswith("conda-meta/") and member.path.endswith(".json"):
            if member.n_bytes > _MAX_RECORD:
                raise DamagedArchive("a record that would not fit into memory", path=member.path, found=member.n_bytes)
            raw[member.path] = b"".join(map(bytes, archive.content(index)))
    known = {member.path for member in members}
    proven = {m.path for m in members if m.verdict == Verdict.PROVEN and m.kind is Kind.FILE}
    wanted: dict[str, tuple[str, ...]] = {}
    for record in parse_records(raw, archive.path, known.__contains__):
        for entry in record.entries:
            if entry.path in proven and entry.sha256 is not None:
                wanted[entry.path] = (*wanted.get(entry.path, ()), entry.sha256)
    return wanted


def _check_end(archive: Archive) -> Iterator[str]:
    """What stands behind the manifest's frames: its own header, itself, the tar's end, the locator, the seek table."""
    manifest, codec, locator = archive.manifest, archive.codec, archive.locator
    data = manifest.to_bytes()
    if data != manifest.raw:
        yield "the manifest is not written as fastpack writes it"
        return
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


def _verify_prefix(root: str, threads: int, progress: Progress) -> VerifyReport:
    started = time.monotonic()
    manifest, (relocated, _, _), state, archive_id = read_installed(root)
    warnings: list[Warned] = []
    problems: list[dict[str, str]] = []
    if state is not None and state.get("archive_id") not in ("", archive_id):
        problems.append({"path": MANIFEST, "what": "the manifest is not the one that was unpacked"})
    prefix = None if state is None else state["prefix"]
    if state is None:
        warnings.append(Warned("archive-form", None, "not relocated yet: run its bin/conda-unpack"))
    elif not state["complete"]:
        warnings.append(Warned("interrupted", None, "a relocation was interrupted: run its bin/conda-unpack again"))
    elif prefix != root and not same_place(prefix, root):
        warnings.append(Warned("elsewhere", None, f"its files name {prefix}, and it lies at {root}"))

    files = {file.path: file for file in relocated}
    known = {member.path: member for member in manifest.members}
    on_disk = {found.path: found for found in walk(root)}
    outcomes = _relocated_outcomes(root, prefix, relocated, state or {}, manifest)
    groups: dict[int, Counter[str]] = {}
    total = sum(manifest.members.sizes)
    done = 0

    def condition(member: Member) -> str:
        found = on_disk.get(member.path)
        if found is None:
            return "missing"
        if member.kind is Kind.DIRECTORY:
            return "intact" if found.kind is Kind.DIRECTORY else "changed"
        if member.kind is Kind.LINK:
            return "intact" if found.kind is Kind.LINK and found.target == member.target else "changed"
        if found.kind is not Kind.FILE or not stat.S_ISREG(found.mode):
            return "changed"
        if (found.mode ^ member.mode) & 0o700:
            return "mode"
        original = known[member.target] if member.kind is Kind.HARDLINK else member
        if original.path in files and original.path in outcomes:
            return outcomes[original.path]
        if found.n_bytes != original.n_bytes:
            return "changed"
        return "intact" if _file_digest(os.path.join(root, member.path)) == original.digest else "changed"

    chosen = [member for member in manifest.members if member.path not in (RELOCATIONS, STATE)]
    caches = {os.path.dirname(member.path) for member in chosen if is_compiled(member.path)}
    for member, how in zip(chosen, ordered_map(condition, chosen, threads), strict=True):
        found = how
        done += member.n_bytes
        progress("verify", done, total, str(manifest.groups[member.group]))
        if found in ("changed", "missing") and is_compiled(member.path):
            found = "recompiled"  # Python's own business
        if found == "missing" and member.path in caches:
            continue  # and so is where it keeps that
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
    cached = set(filter(is_compiled, extra))
    compiled = len(cached)
    if compiled:
        warnings.append(Warned("compiled", None, f"{compiled} .pyc files that Python has written since"))
    return VerifyReport(
        target=root,
        kind="prefix",
        archive_id=archive_id,
        deep=False,
        n_files=manifest.members.n_files + len(manifest.members.of_kind(Kind.HARDLINK)),
        n_frames=0,
        n_bytes=total,
        n_proven=0,
        prefix=prefix,
        groups=_group_rows(manifest, groups),
        problems=tuple(problems),
        extra=tuple(path for path in extra if path not in cached),
        elapsed_seconds=time.monotonic() - started,
        warnings=tuple(warnings),
    )


_WHAT = {
    "mode": "its owner's mode is another one than it was unpacked with",
    "changed": "changed since it was unpacked",
    "missing": "missing",
    "elsewhere": "it does not name the prefix that the environment is relocated to",
}


def _relocated_outcomes(
    root: str, prefix: str | None, relocated: Iterable[RelocatedFile], state: Mapping[str, Any], manifest: Manifest
) -> dict[str, str]:
    """For each file with relocations: relocated (to the prefix that the state names), elsewhere, changed or missing."""
    as_packed = {file.path: file for file in relocated}
    files = [with_pad(file, state.get("pad", [])) for file in as_packed.values()]
    names = [prefix, state.get("target"), *state.get("earlier", [])]
    sources = [os.fsencode(name) for name in dict.fromkeys(names) if name is not None]
    archive = {file.path: Stated(file.sha256, file.n_bytes) for file in files}
    target = os.fsencode(prefix or root)
    tree = Tree([*sources, None], target, archive, {}, state.get("signed", {}), KERNELS)
    outcomes: dict[str, str] = {}
    members = {member.path: member.digest for member in manifest.members if member.kind is Kind.FILE}
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
            if found == "written" and not stated_files(file) <= tree.placed.keys():
                outcomes[file.path] = "relocated"  # it states what a file was that has been changed since
            if outcomes[file.path] == "relocated":
                archived = _archive_digest(path, file, as_packed[file.path], tree, manifest)
                if archived not in (None, members.get(file.path)):
                    outcomes[file.path] = "changed"  # and recorded since, by relocate
    return outcomes


def _archive_digest(
    path: str, file: RelocatedFile, as_packed: RelocatedFile, tree: Tree, manifest: Manifest
) -> bytes | None:
    """The digest of a relocated file as the archive had it; None where that does not follow from what is there."""
    destination = None if manifest.dest_prefix is None else os.fsencode(manifest.dest_prefix)
    if file.path in tree.signed or (file.second_phase and destination is not None):
        return None
    with open(path, "rb") as stream:
        read, size = archived(stream.fileno(), file, tree.target, tree.archive)
        if destination is not None and file.fits(destination):
            placing = placing_edits(as_packed.items, file.placeholder, destination, {})
            read, size = Edited(read, placing).read, ArchiveForm(placing, ()).n_bytes(size)
        starts = range(0, max(1, size), digest.SLICE)
        return digest.file_digest(b"".join(digest.blake(read(min(digest.SLICE, size - at), at)) for at in starts))


def _file_digest(path: str) -> bytes:
    slices = b""
    try:
        with open(path, "rb") as file:
            while (data := file.read(digest.SLICE)) or not slices:
                slices += digest.blake(data)
    except OSError as error:
        raise Unreadable(f"a file cannot be read ({error.strerror})", path=path) from None
    return digest.file_digest(slices)

"""From an environment to a Plan: which members an archive has, in which order, and where its frames are cut.

The plan is complete before a byte is written: every check of section 5 has passed, every archive form is known.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fastpack import activate, checks, digest, elf, requirements
from fastpack._place_py import (
    EPOCH_2000,
    MIB,
    RELOCATIONS,
    SMALL_FILE,
    RelocatedFile,
    Stated,
    ascii_only,
    complete_state,
    content_mtime,
    longest_prefix,
    mtime_key,
    windows,
    with_pad,
    write_relocations,
)
from fastpack._version import VERSION
from fastpack.environment import REST, Environment, source_of_pyc
from fastpack.errors import Unrelocatable
from fastpack.examination import UNTOUCHED, Examination, Examined
from fastpack.fs import archive_mode, parents, resolve
from fastpack.manifest import MAX_FRAME, PACK_JSON
from fastpack.members import Members, Planned, in_archive
from fastpack.model import MANIFEST_FORMAT, DiskFile, Group, GroupKind, Kind, Verdict, Warned
from fastpack.parallel import ordered_map
from fastpack.parcel import Parcel
from fastpack.pycs import PycAction
from fastpack.reading import open_source
from fastpack.relocation import AS_IT_IS, ArchiveForm, link_targets, placing_edits, sha256_of
from fastpack.targets import check_prefix, check_target

#: Bytes of tar stream in a frame, about. A larger file has frames of its own.
FRAME = 8 << 20
#: A file over this size may become a hard link to an identical one of its group.
LINKED_FROM = 4 << 10
FASTPACK = Group(GroupKind.FASTPACK, "")
DIRECTORIES = Group(GroupKind.REST, "directories")


class PlannedFrame(NamedTuple):
    """What one frame holds, all of one group: members whole, or bytes [start, stop) of a single large one."""

    first: int  # index into the plan's members
    last: int  # one more than that of its last member
    group: Group
    start: int = 0
    stop: int | None = None  # None: whole members


@dataclass(frozen=True, slots=True)
class Plan:
    """All that `pack` needs to know to write an archive."""

    environment: Environment
    members: Members
    frames: tuple[PlannedFrame, ...]
    relocated: tuple[RelocatedFile, ...]
    placed: Mapping[str, Stated]  # with a dest_prefix: what records state of the placed files
    packages: tuple[dict[str, str], ...]
    requires: dict[str, str]
    longest_prefix: int | None
    limited_by: str | None
    dest_prefix: str | None
    arcroot: str
    pad: tuple[str, ...]
    strict: bool
    left_out: tuple[tuple[str, str], ...]
    warnings: tuple[Warned, ...]

    @property
    def source_bytes(self) -> int:
        """Bytes to be read, for the progress bar."""
        return int(self.members.sizes.sum())


def make_plan(
    env: Environment,
    examination: Examination,
    *,
    threads: int,
    arcroot: str = "",
    dest_prefix: str | None = None,
    pad: Sequence[str] = (),
    strict: bool = False,
    external_links: str = "warn",
    on_missing: str = "error",
    on_modified: str = "warn",
    editable: str = "error",
    hard_links: bool = True,
    symbolic_links: bool = True,
    parcel: Parcel | None = None,
) -> Plan:
    """Decide everything about an archive. The options are those of `pack`.

    Parameters
    ----------
    hard_links, symbolic_links : whether the format can hold them; copies stand for what it cannot.
    parcel : carry its files in place of our scripts.

    Raises
    ------
    MissingFiles, EditablePackages, PrefixTooLong, Unrelocatable, Unreadable, ChangedWhileRead
    """
    excluded = examination.excluded
    warnings = list(env.warnings)
    checks.warn_slimmed(env, excluded, warnings)
    checks.check_missing(env, excluded, on_missing, warnings)
    in_place = checks.check_editable(env, editable, warnings)
    checks.check_modified(env, examination, excluded, on_modified, warnings)

    left_out = dict(env.left_out)
    special_bits = 0
    private = not any(env.files[path].mode & 0o077 for path in env.files.of_kind(Kind.DIRECTORY))
    on_disk = env.files.column("mode")
    modes = {mode: archive_mode(mode, False, private) for mode in set(on_disk)}
    reasons = {PycAction.DROP: "stale .pyc", PycAction.LEAVE_OUT: "--pyc drop"}
    dropped = {path: reasons[action] for path, action in examination.pyc.items() if action in reasons}
    gone = {**dropped, **dict.fromkeys(in_place, "of an editable package"), **excluded}
    left_out |= {path: why for path, why in gone.items() if path in env.files}
    links = {path: target for path, target in env.files.targets.items() if path not in excluded}
    targets, external = link_targets(links, examination.prefixes)
    checks.check_links(targets, external, external_links, warnings)
    members = _plan_files(env, examination, gone.keys(), modes, pad)
    members += [_plan_link(env, path, target, path in external) for path, target in targets.items() if path not in gone]
    if not symbolic_links:
        members = Members.of(env.files, _follow_links(list(members)))
    if any(mode & 0o7000 for mode in modes):
        sources = [on_disk[row] for row in members.rows.tolist() if row >= 0]
        sources += [m.source.mode for m in members.others.values() if m.source is not None]
        special_bits = sum(mode & 0o7000 != 0 for mode in sources)
    for record, entry in env.missing:
        left_out[entry.path] = excluded.get(entry.path, f"missing, of {record.name}")
    for path, why in env.left_out_before.items():
        left_out.setdefault(path, why)
    names = set(members.paths)
    alone = {k: m for k, m in members.others.items() if m.follows is not None and m.follows not in names}
    members = members.replaced({index: member._replace(follows=None) for index, member in alone.items()})
    checks.warn_prefixes(env, examination, warnings)
    if special_bits:
        warnings.append(Warned("special-modes", None, f"{special_bits} files lose their setuid, setgid or sticky bit"))

    checks.warn_collisions(names, warnings)
    relocated = _relocated_files(members.others.values())
    checks.warn_relocations(relocated, warnings)
    limit, limited_by = _longest_prefix(relocated, strict)
    placed: dict[str, Stated] = {}
    if dest_prefix is not None:
        check_prefix(dest_prefix, limit, limited_by)
        warnings += check_target(dest_prefix, relocated, strict)
        members, placed = _place_members(env, members, os.fsencode(dest_prefix), threads)

    requires = _requirements(env, members, threads)
    made = None if parcel is None else parcel.members(_packages(env))
    generated = _generated(env, dest_prefix, requires, names, made)
    members = (members + generated).in_order()
    if hard_links:
        members = _link_identical(env, members, threads)
    packages = _packages(env)
    pack_json = {
        "format": MANIFEST_FORMAT,
        "fastpack": VERSION,
        "placeholders": sorted({os.fsdecode(file.placeholder) for file in relocated}),
        "packages": packages,
        "longest_prefix": limit,
        "ascii_only": ascii_only(relocated),
        "requires": requires,
        "arcroot": arcroot,
        "dest_prefix": dest_prefix,
    }
    first = _content(PACK_JSON, json.dumps(pack_json, indent=1).encode("ascii") + b"\n", 0o644)
    directories = list(_directories(env, members, arcroot, private, excluded))
    _check_own_places([first, *generated], names, {member.path for member in directories})
    strict_modes = [(member.path, member.final_mode) for member in directories if member.final_mode is not None]
    last = _content(RELOCATIONS, write_relocations(relocated, strict_modes, strict), 0o644)
    everything = Members.of(env.files, [first, *directories]) + members + [last]
    names.update(member.path for member in generated)
    for path in left_out.keys() & names:
        del left_out[path]
    return Plan(
        environment=env,
        members=everything,
        frames=tuple(_cut(everything)),
        relocated=tuple(relocated),
        placed=placed,
        packages=packages,
        requires=requires,
        longest_prefix=limit,
        limited_by=limited_by,
        dest_prefix=dest_prefix,
        arcroot=arcroot,
        pad=tuple(pad),
        strict=strict,
        left_out=tuple(sorted(left_out.items())),
        warnings=tuple(warnings),
    )


# --- members ---------------------------------------------------------------------------------------------------------


def _plan_link(env: Environment, path: str, target: str, external: bool) -> Planned:
    return Planned(
        Kind.LINK, path, 0o777, env.groups.get(path, REST), target=target, mtime=EPOCH_2000,
        not_relocated="a link out of the environment" if external else "",
    )  # fmt: skip


def _plan_files(
    env: Environment, examination: Examination, gone: Set[str], modes: Mapping[int, int], pad: Sequence[str]
) -> Members:
    """The regular files."""
    files, examined = env.files, examination.files
    # What else is to be said of files than that they are as they lie on disk; records have a mode of their own.
    more = {*examination.forced_mtimes, *files.outside, *(path for path in files if path.startswith("conda-meta/"))}
    known = examined.keys() | more | gone
    chosen = [kind is Kind.FILE and path not in known for path, kind in zip(files.paths, files.kinds, strict=True)]
    rows = list(itertools.compress(range(len(chosen)), chosen))
    verdicts = [""] * len(rows)
    odd: list[tuple[int, Examined]] = []
    for row in sorted(map(files.row_of, known - gone)):
        path = files.paths[row]
        if files.kinds[row] is not Kind.FILE:
            continue
        found = examined.get(path, UNTOUCHED)
        if path not in more and not path.endswith(".pyc") and found[1:] == UNTOUCHED[1:]:
            rows.append(row)
            verdicts.append(_verdict(found))
        else:
            odd.append((row, found))
    others = [
        _plan_file(env, file, found, examination, modes[file.mode], pad)
        for file, (_, found) in zip(files.some([row for row, _ in odd]), odd, strict=True)
    ]
    groups = [env.groups.get(files.paths[row], REST) for row in rows]
    return Members.as_on_disk(files, rows, groups, verdicts, modes) + others


def _verdict(found: Examined) -> str:
    return "" if found.verdict is Verdict.UNMANAGED else found.verdict.value


def _plan_file(
    env: Environment, file: DiskFile, found: Examined, examination: Examination, mode: int, pad: Sequence[str]
) -> Planned:
    path = file.path
    is_pyc = path.endswith(".pyc")
    follows = source_of_pyc(path) if is_pyc and examination.pyc.get(path) == PycAction.FOLLOW else None
    form = found.form
    if pad and form.relocations:
        padded = with_pad(RelocatedFile(path, "", 0, 0, found.placeholder, form.relocations), pad)
        form = form._replace(relocations=padded.items)
    if path.startswith("conda-meta/") and path.endswith(".json"):
        mode = 0o644
    n_bytes = file.n_bytes if form is AS_IT_IS else form.n_bytes(file.n_bytes)
    return _AS_PLANNED(
        (
            Kind.FILE, path, mode, env.groups.get(path, REST), n_bytes, "", is_pyc, file, b"", form, found.placeholder,
            (), found.archived, examination.forced_mtimes.get(path), follows, None, _verdict(found),
            found.not_relocated,
        )
    )  # fmt: skip


#: `Planned` of a row of all its fields, which takes a fifth of the time.
_AS_PLANNED: Callable[[tuple[Any, ...]], Planned] = functools.partial(tuple.__new__, Planned)


def _follow_links(members: Sequence[Planned]) -> list[Planned]:
    """Copies in place of symbolic links, for a format without them: of a file, or of all that a directory holds.

    Raises
    ------
    Unrelocatable : a link that leads nowhere, out of the environment, or to a directory that holds it.
    """
    links = {member.path: member.target for member in members if member.kind is Kind.LINK}
    files = {member.path: member for member in members if member.kind is Kind.FILE}
    below: dict[str, list[str]] = {}
    for path in (*files, *links):
        parent = os.path.dirname(path)
        while parent:
            below.setdefault(parent, []).append(path)
            parent = os.path.dirname(parent)

    def copies(path: str, end: str | None, seen: tuple[str, ...]) -> Iterator[Planned]:
        if end in files:
            yield files[end]._replace(path=path)
            return
        inside = end is not None and (end in seen or f"{path}/".startswith(f"{end}/") or not end)
        if end is None or end not in below or inside:
            why = "leads out of the environment" if end is None else "leads to nothing that is packed"
            why = "leads to a directory that it lies in" if inside else why
            raise Unrelocatable(
                f"a link {why}, and this format holds no links",
                path=path, hint="--zip-symlinks stores links, or leave it out with --exclude",
            )  # fmt: skip
        for inner in below[end]:
            place = path + inner[len(end) :]
            if inner in links:
                yield from copies(place, resolve(inner, links[inner], links), (*seen, end))
            else:
                yield files[inner]._replace(path=place)

    followed: dict[str, Planned] = {}
    for member in members:
        if member.kind is not Kind.LINK:
            followed[member.path] = member
            continue
        for copy in copies(member.path, resolve(member.path, member.target, links), ()):
            followed.setdefault(copy.path, copy._replace(group=member.group))
    return list(followed.values())


def _longest_prefix(relocated: Sequence[RelocatedFile], strict: bool) -> tuple[int | None, str | None]:
    """The longest prefix that fits, in bytes, and the file that limits it; with `strict`, of unmanaged files too."""
    limits = []
    for file in relocated:
        rooms = [longest_prefix([file]), file.room if strict else None]
        limits += [(room, file.path) for room in rooms if room is not None]
    return min(limits) if limits else (None, None)


def _requirements(env: Environment, members: Members, threads: int) -> dict[str, str]:
    """What a machine must be to run these members: platform, architecture, glibc and which file asks for it."""
    requires = requirements.of_this_machine()
    likely = [
        index
        for index, (path, mode) in enumerate(zip(members.paths, members.modes.tolist(), strict=True))
        if (mode & 0o100 or (".so" in path and ".so" in path.rpartition("/")[2]))
        # What compilers link against is no program of this machine.
        and "/sysroot/" not in path
    ]
    found = (members[index].source for index in likely)
    candidates = sorted((file for file in found if file is not None), key=lambda file: env.files.row_of(file.path))

    def needed(file: DiskFile) -> str | None:
        with open_source(env.prefix, file) as (_, pread):
            return elf.glibc_needed(pread, requires["arch"])

    best: tuple[int, ...] = ()
    for file, version in zip(candidates, ordered_map(needed, candidates, threads), strict=True):
        if version is not None and requirements.version_key(version) > best:
            best = requirements.version_key(version)
            requires |= {"glibc": version, "glibc_file": file.path}
    return requires


def _content(path: str, content: bytes, mode: int) -> Planned:
    return Planned(Kind.FILE, path, mode, FASTPACK, n_bytes=len(content), content=content)


def _packages(env: Environment) -> tuple[dict[str, str], ...]:
    return tuple({"name": record.name, "version": record.version, "build": record.build} for record in env.records)


def _generated(
    env: Environment, dest_prefix: str | None, requires: dict[str, str], taken: set[str],
    instead: Mapping[str, bytes] | None,
) -> list[Planned]:  # fmt: skip
    """Our own scripts, or what stands `instead` of them; never in place of a managed file of that name."""
    scripts = activate.activation_scripts() if instead is None else instead
    made = [_content(path, text, 0o644) for path, text in scripts.items()]
    if dest_prefix is None:
        made.append(_content(activate.CONDA_UNPACK, activate.conda_unpack(requires), 0o755))
    else:
        state = complete_state("", dest_prefix)
        made.append(_content(".fastpack/state.json", os.fsencode(json.dumps(state, ensure_ascii=False)), 0o644))
    return [member for member in made if member.path not in taken and member.path not in env.entries]


def _check_own_places(own: Iterable[Planned], taken: Set[str], folders: Set[str]) -> None:
    """Refuse an environment where our own files have no place: theirs is a directory there, or lies in no directory.

    Parameters
    ----------
    taken, folders : the paths of the environment's files and links, and of the archive's directories.
    """
    for path in (member.path for member in own):
        in_the_way = path if path in folders else next((place for place in parents(path) if place in taken), None)
        if in_the_way is not None:
            raise Unrelocatable(
                f"the archive's own {path} would have no place", path=in_the_way,
                expected="nothing of that name" if in_the_way == path else "a directory",
                found="a directory" if in_the_way == path else "a file or a link",
                hint="rename it, or leave it out with --exclude",
            )  # fmt: skip


def _directories(
    env: Environment, members: Members, arcroot: str, private: bool, excluded: Collection[str]
) -> Iterator[Planned]:
    """The directories that hold a member, and those that are empty on disk, u+rwx: stricter modes are set last."""
    wanted = {".fastpack", *(path.rpartition("/")[0] for path in members.paths)}
    occupied = {path.rpartition("/")[0] for path in env.files}
    wanted |= {path for path in env.files.of_kind(Kind.DIRECTORY) if path not in occupied and path not in excluded}
    for path in list(wanted):
        parent = os.path.dirname(path)
        while parent and parent not in wanted:
            wanted.add(parent)
            parent = os.path.dirname(parent)
    wanted.discard("")
    for path in sorted(wanted, key=os.fsencode):
        file = env.files.get(path)
        mode = archive_mode(file.mode if file else 0o755, True, private)
        final = None if mode & 0o700 == 0o700 else mode
        yield Planned(Kind.DIRECTORY, path, mode | 0o700, DIRECTORIES, mtime=EPOCH_2000, final_mode=final)


def _relocated_files(members: Iterable[Planned]) -> list[RelocatedFile]:
    files = [
        RelocatedFile(
            member.path, member.archived.sha256, member.archived.n_bytes, member.mode, member.placeholder,
            member.form.relocations,
        )
        for member in members
        if member.form.relocations and member.archived is not None
    ]  # fmt: skip
    return sorted(files, key=lambda file: os.fsencode(file.path))


# --- placing at pack time (--dest-prefix) ----------------------------------------------------------------------------


def _place_members(
    env: Environment, members: Members, prefix: bytes, threads: int
) -> tuple[Members, dict[str, Stated]]:
    """The members at their sizes and mtimes at a prefix, and what records state of them."""
    placed: dict[str, Stated] = {}
    result: dict[int, Planned] = {}

    def run(member: Planned) -> tuple[Planned, Stated]:
        source = member.source
        assert source is not None and member.archived is not None
        fits = RelocatedFile(member.path, "", 0, 0, b"", member.form.relocations).fits(prefix)
        placing = placing_edits(member.form.relocations, member.placeholder, prefix, placed) if fits else ()
        n_bytes = ArchiveForm(placing, ()).n_bytes(member.archived.n_bytes)
        member = member._replace(placing=placing, n_bytes=n_bytes)
        with open_source(env.prefix, source) as (_, pread):
            read = in_archive(pread, member)
            whole = sha256_of(read, n_bytes)
            raw = bytes.fromhex(whole)
            if n_bytes > SMALL_FILE:
                key = mtime_key(n_bytes, read(MIB, 0), read(MIB, n_bytes - MIB))
                raw = bytes.fromhex(digest.sha256(key))
        return member._replace(mtime=content_mtime(raw)), Stated(whole, n_bytes)

    for second in (False, True):
        chosen = {
            index: member
            for index, member in members.others.items()
            if member.form.relocations
            and any(item.kind in ("record", "pip-record") for item in member.form.relocations) == second
        }
        for index, (done, stated) in zip(chosen, ordered_map(run, chosen.values(), threads), strict=True):
            placed[done.path] = stated
            result[index] = done
    return members.replaced(result), placed


# --- identical files -------------------------------------------------------------------------------------------------


def _link_identical(env: Environment, members: Members, threads: int) -> Members:
    """Replace identical files of a group by hard links to the first of them in archive order.

    Only where content, mode and mtime agree, and no relocation or edit is involved; compared byte for byte, the digest
    only finds candidates.
    """
    candidates = members.sizes > LINKED_FROM
    for index, member in members.others.items():
        as_on_disk = member.source is not None and not member.form.edits and not member.form.relocations
        candidates[index] &= as_on_disk and not member.is_pyc
    indexes = np.flatnonzero(candidates)
    _, inverse, counts = np.unique(members.sizes[indexes], return_inverse=True, return_counts=True)
    buckets: dict[tuple[Group, int, int, int | None], list[int]] = {}
    for index in indexes[counts[inverse] > 1].tolist():
        member = members[index]
        buckets.setdefault((member.group, member.n_bytes, member.mode, member.mtime), []).append(index)
    same_size = sorted(index for bucket in buckets.values() if len(bucket) > 1 for index in bucket)

    def fingerprint(member: Planned) -> bytes:
        assert member.source is not None
        with open_source(env.prefix, member.source) as (_, pread):
            parts = [digest.candidate(pread(FRAME, at)) for at in range(0, member.n_bytes, FRAME)]
        return parts[0] if len(parts) == 1 else digest.candidate(b"".join(parts))

    first: dict[tuple[Group, int, int, int | None, bytes], Planned] = {}
    links: dict[int, Planned] = {}
    same = [members[index] for index in same_size]
    for index, member, found in zip(same_size, same, ordered_map(fingerprint, same, threads), strict=True):
        key = (member.group, member.n_bytes, member.mode, member.mtime, found)
        original = first.setdefault(key, member)
        if original is not member and _same_bytes(env, original, member):
            links[index] = member._replace(kind=Kind.HARDLINK, target=original.path, n_bytes=0)
    return members.replaced(links)


def _same_bytes(env: Environment, one: Planned, two: Planned) -> bool:
    assert one.source is not None and two.source is not None
    if (one.source.device, one.source.inode) == (two.source.device, two.source.inode):
        return True
    with open_source(env.prefix, one.source) as (_, first), open_source(env.prefix, two.source) as (_, second):
        return all(first(FRAME, at) == second(FRAME, at) for at in range(0, one.n_bytes, FRAME))


# --- frames ----------------------------------------------------------------------------------------------------------


def _cut(members: Members) -> Iterator[PlannedFrame]:
    """Cut the members into frames: at group and class boundaries, at about `FRAME` bytes, large files on their own."""
    if not members:
        return
    first = 0
    size = 0  # of what stands from `first` on
    group_before, pyc_before = members.groups[0], False
    columns = zip(members.groups, members.is_pyc(), members.sizes.tolist(), strict=True)
    for index, (group, is_pyc, n_bytes) in enumerate(columns):
        begins = is_pyc != pyc_before or (group is not group_before and group != group_before)
        group_before, pyc_before = group, is_pyc
        if first < index and (begins or size + n_bytes + 1024 > FRAME):
            yield PlannedFrame(first, index, members.groups[first])
            first, size = index, 0
        size += n_bytes + 1024
        if n_bytes <= FRAME:
            continue
        member = members[index]
        # What is placed already is unpacked as it is: its strings may be cut anywhere.
        items = () if member.placing else member.form.relocations
        for start, stop, _, _ in windows(items, n_bytes, FRAME):
            if stop - start > MAX_FRAME - FRAME:
                raise Unrelocatable(
                    "strings that name the prefix are too long, or too close together, for the file to be cut",
                    path=member.path, expected=f"a cut within {MAX_FRAME - FRAME} bytes",
                    found=f"none in {stop - start} bytes",
                    hint="leave the file out with --exclude",
                )  # fmt: skip
            yield PlannedFrame(index, index + 1, group, start, stop)
        first, size = index + 1, 0
    if first < len(members):
        yield PlannedFrame(first, len(members), members.groups[first])

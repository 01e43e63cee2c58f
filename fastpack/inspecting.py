"""What an archive holds (inspect, ls, cat), and where an environment thinks it lies (status). Writes nothing."""

from __future__ import annotations

import base64
import fnmatch
import os
from collections import Counter
from collections.abc import Sequence
from typing import BinaryIO

from fastpack._place_py import INCOMPLETE, RELOCATIONS
from fastpack.errors import EnvironmentNotFound, FastpackError, NotAnEnvironment, UsageError
from fastpack.installed import read_installed, same_place
from fastpack.layout import Layout
from fastpack.manifest import Manifest
from fastpack.model import CatReport, InspectReport, Kind, ListReport, StatusReport, Warned
from fastpack.reader import open_archive, read_relocated
from fastpack.rows import Member


def inspect(path: str) -> InspectReport:
    """What an archive says of itself: packages, groups, relocations, requirements. Reads its manifest and relocations.

    Raises
    ------
    DamagedArchive, NewerFormat, HostileArchive : also for one that fastpack did not make.
    """
    with open_archive(path) as archive:
        manifest = archive.manifest
        relocated = read_relocated(archive.reader, manifest)
        header = manifest.header
        kinds = Counter(member.kind for member in manifest.members)
        return InspectReport(
            archive=path,
            archive_id=archive.archive_id,
            format=archive.codec.name,
            fastpack=str(header.get("fastpack")),
            level=int(header["level"]),
            libraries=dict(header.get("libraries", {})),
            arcroot=manifest.arcroot,
            dest_prefix=manifest.dest_prefix,
            requires=dict(header["requires"]),
            longest_prefix=header.get("longest_prefix"),
            limited_by=header.get("limited_by"),
            ascii_only=header.get("ascii_only"),
            strict=bool(header.get("strict")),
            pad=tuple(header.get("pad", [])),
            n_files=kinds[Kind.FILE],
            n_directories=kinds[Kind.DIRECTORY],
            n_links=kinds[Kind.LINK],
            n_hardlinks=kinds[Kind.HARDLINK],
            n_frames=len(manifest.frames),
            plain_bytes=sum(frame.plain_bytes for frame in manifest.frames),
            packed_bytes=sum(frame.packed_bytes for frame in manifest.frames),
            packages=manifest.packages,
            groups=_groups(manifest, archive.reader.layout),
            relocations=dict(sorted(Counter(item.kind for file in relocated for item in file.items).items())),
            n_relocated_files=len(relocated),
            verdicts=dict(sorted(Counter(m.verdict for m in manifest.members if m.verdict).items())),
            not_relocated=tuple({"path": m.path, "why": m.not_relocated} for m in manifest.members if m.not_relocated),
            limited=tuple({"path": f.path, "longest_prefix": f.room} for f in relocated if f.room is not None),
            left_out=dict(sorted(Counter(why.split(",")[0] for _, why in manifest.left_out).items())),
        )


def _groups(manifest: Manifest, layout: Layout) -> tuple[dict[str, object], ...]:
    """Each group's files and sizes; a frame never spans two groups."""
    rows: dict[int, Counter[str]] = {}
    for member in manifest.members:
        if member.kind is not Kind.DIRECTORY:
            row = rows.setdefault(member.group, Counter())
            row["n_files"] += 1
            row["plain_bytes"] += member.n_bytes
    for index, frame in enumerate(manifest.frames):
        group = manifest.members.groups[layout.members(index)[0]]
        rows.setdefault(group, Counter())["packed_bytes"] += frame.packed_bytes
    return tuple(
        {
            "kind": str(group.kind), "name": group.name, "version": group.version,
            **{key: rows[index][key] for key in ("n_files", "plain_bytes", "packed_bytes")},
        }
        for index, group in enumerate(manifest.groups)
        if index in rows
    )  # fmt: skip


def members(path: str, patterns: Sequence[str] = ()) -> ListReport:
    """An archive's members, in archive order; those that match one of the shell patterns, or lie below such a path.

    Raises
    ------
    UsageError : a pattern that nothing matches.
    """
    with open_archive(path) as archive:
        manifest = archive.manifest
        chosen = []
        matched: set[str] = set()
        for member in manifest.members:
            hits = [p for p in patterns if _matches(member.path, p)]
            matched.update(hits)
            if hits or not patterns:
                chosen.append(_row(manifest, member))
        for pattern in patterns:
            if pattern not in matched:
                raise UsageError("the archive has no such member", found=pattern, hint="fastpack ls lists them all")
        return ListReport(path, tuple(chosen))


def _matches(path: str, pattern: str) -> bool:
    pattern = pattern.strip("/")
    return path == pattern or path.startswith(pattern + "/") or fnmatch.fnmatchcase(path, pattern)


def _row(manifest: Manifest, member: Member) -> dict[str, object]:
    return {
        "path": member.path,
        "kind": str(member.kind),
        "mode": f"{member.mode if member.final_mode is None else member.final_mode:04o}",
        "size": member.n_bytes,
        "mtime": member.mtime,
        "target": member.target or None,
        "group": str(manifest.groups[member.group]),
    }


def cat(path: str, name: str, out: BinaryIO | None) -> CatReport:
    """One file of an archive, as it lies there (archive form), reading only the frames that hold it.

    Parameters
    ----------
    out : where its bytes go, each piece after its frame was checked; None: into the report, in base64.

    Raises
    ------
    UsageError : no such member, or one that is no file.
    DamagedArchive : it is not what the manifest says.
    """
    name = name.strip("/")
    with open_archive(path) as archive:
        index = {member.path: number for number, member in enumerate(archive.manifest.members)}
        if name not in index:
            raise UsageError("the archive has no such member", found=name, hint="fastpack ls lists them all")
        member = archive.manifest.members[index[name]]
        if member.kind is Kind.HARDLINK:
            member = archive.manifest.members[index[member.target]]
        if member.kind is not Kind.FILE:
            what = f"a link to {member.target}" if member.kind is Kind.LINK else "a directory"
            raise UsageError("that member is no file", expected="a file", found=what)
        parts: list[bytes] = []
        for data in archive.content(index[member.path]):
            if out is None:
                parts.append(bytes(data))
            else:
                out.write(data)
        content = base64.b64encode(b"".join(parts)).decode("ascii") if out is None else None
        return CatReport(path, name, member.n_bytes, member.digest.hex(), content)


# --- status ----------------------------------------------------------------------------------------------------------


def status(prefix: str) -> StatusReport:
    """Where an environment thinks it lies, whether that is true, and what to run if it is not. Reads no files but ours.

    Raises
    ------
    EnvironmentNotFound, NotAnEnvironment : no such directory, or nothing that any tool made an environment of.
    """
    root = os.path.abspath(prefix)
    if not os.path.isdir(root):
        raise EnvironmentNotFound("no such directory", path=root, hint="give the directory of an environment")
    if os.path.lexists(os.path.join(root, INCOMPLETE)):
        todo = "wait if a process is unpacking there; else remove it and unpack the archive again"
        return StatusReport(root, "incomplete", None, None, 0, (), todo)
    if not os.path.lexists(os.path.join(root, RELOCATIONS)):
        if not os.path.isdir(os.path.join(root, "conda-meta")):
            raise NotAnEnvironment("no environment: it has no conda-meta", path=root, hint="give its own directory")
        todo = f"fastpack did not make it; to move it, pack it: fastpack pack -p {root}"
        return StatusReport(root, "foreign", None, None, 0, (), todo)
    try:
        _, (relocated, _, _), state, archive_id = read_installed(root)
    except FastpackError as error:
        return StatusReport(root, "broken", None, None, 0, (), f"{error.message}; unpack the archive again")
    if state is None:
        return StatusReport(root, "archive form", None, archive_id, len(relocated), (), f"run {root}/bin/conda-unpack")
    place = state["prefix"]
    pad = tuple(state["pad"])
    condition = "right"
    advice: str | None = None
    if not state["complete"]:
        condition, advice = "interrupted", f"run fastpack relocate {root} (or its bin/conda-unpack) again"
    elif place != root and not same_place(place, root):
        condition, advice = "moved", f"run fastpack relocate {root} (or its bin/conda-unpack)"
    warnings = []
    if condition == "right" and place != root:
        warnings.append(Warned("through-link", None, f"{root} is another name of {place}, which its files name"))
    return StatusReport(root, condition, place, archive_id, len(relocated), pad, advice, tuple(warnings))

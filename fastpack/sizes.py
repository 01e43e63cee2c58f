"""What makes an environment, or an archive, so big: bytes per package and per kind of file. Writes nothing."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from fastpack import elf
from fastpack.environment import REST, Environment
from fastpack.kinds import KINDS, kinds_of
from fastpack.model import DiskUsageReport, Group, Kind
from fastpack.parallel import default_threads, ordered_map
from fastpack.reader import open_archive
from fastpack.reading import open_source


class _File(NamedTuple):
    path: str
    group: Group
    n_bytes: int


def disk_usage(target: str) -> DiskUsageReport:
    """Bytes of files, by package and by kind, of an environment's directory or of an archive.

    A file with several names counts once, by the first of them; of an environment, what `pack` leaves out by policy (a
    root prefix' ``pkgs`` and ``envs``) does not count.

    Raises
    ------
    FastpackError : as `Environment.from_prefix` or `open_archive`.
    """
    debug: int | None = None
    if os.path.isdir(target):
        env = Environment.from_prefix(target)
        files = list(_on_disk(env))
        debug = _debug_sections(env)
    else:
        with open_archive(target) as archive:
            manifest = archive.manifest
            files = [
                _File(m.path, manifest.groups[m.group], m.n_bytes) for m in manifest.members if m.kind is Kind.FILE
            ]
    packages: dict[Group, Counter[str]] = {}
    kinds = {kind: Counter[str]() for kind in (*KINDS, "other")}
    for path, group, n_bytes in files:
        kind = next(iter(kinds_of(path)), "other")
        for row in (packages.setdefault(group, Counter()), kinds[kind]):
            row["n_files"] += 1
            row["n_bytes"] += n_bytes
        packages[group][kind] += n_bytes
    rows = [
        {
            "kind": str(group.kind), "name": group.name, "version": group.version,
            "n_files": row["n_files"], "n_bytes": row["n_bytes"],
            "kinds": {kind: row[kind] for kind in kinds if row[kind]},
        }
        for group, row in sorted(packages.items(), key=lambda item: (-item[1]["n_bytes"], item[0]))
    ]  # fmt: skip
    return DiskUsageReport(
        target=target,
        n_files=len(files),
        n_bytes=sum(file.n_bytes for file in files),
        packages=tuple(rows),
        kinds={kind: {"n_files": row["n_files"], "n_bytes": row["n_bytes"]} for kind, row in kinds.items()},
        debug_section_bytes=debug,
    )


def _on_disk(env: Environment) -> Iterator[_File]:
    seen: set[tuple[int, int]] = set()
    for file in env:
        if file.kind is Kind.FILE and (file.device, file.inode) not in seen:
            seen.add((file.device, file.inode))
            yield _File(file.path, env.groups.get(file.path, REST), file.n_bytes)


def _debug_sections(env: Environment) -> int:
    """Bytes of debug sections inside of programs and libraries, which no preset takes out: strip(1) does."""
    programs = [
        file for file in env
        if file.kind is Kind.FILE and (file.mode & 0o100 or ".so" in file.path.rpartition("/")[2])
    ]  # fmt: skip

    def run(file: object) -> int:
        with open_source(env.prefix, file) as (_, pread):  # type: ignore[arg-type]
            return elf.debug_bytes(pread)

    return sum(ordered_map(run, programs, default_threads()))

"""The values that pass between the stages: frozen, without behaviour beyond what follows from their fields."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any, NamedTuple

from fastpack.errors import FastpackError, VerifyFailed

#: The format's own placeholder (255 bytes): stands in files that no package manager wrote with one.
PLACEHOLDER = b"/opt/fastpack/" + b"_placehold" * 24 + b"_"

MANIFEST_FORMAT = 0

#: Called with what is being done, bytes done, bytes in all (0 while unknown), and the current group.
Progress = Callable[[str, int, int, str], None]


def silent(stage: str, done: int, total: int, group: str) -> None:
    """A progress callback that says nothing."""


class Kind(StrEnum):
    """What a path is on disk."""

    FILE = "file"
    DIRECTORY = "directory"
    LINK = "link"
    HARDLINK = "hardlink"  # only in archives: a further name of an earlier file


class Verdict(StrEnum):
    """What is known of a managed file (DESIGN section 4)."""

    PROVEN = "proven"  # its normal form has the package's sha256
    PLACED = "placed"  # it has the sha256 that was recorded at installation; the normal form follows by structure
    STRUCTURAL = "structural"  # no digest to hold it against
    RECOMPILED = "recompiled"  # a .pyc that Python has written again
    MODIFIED = "modified"
    UNMANAGED = "unmanaged"


class GroupKind(StrEnum):
    CONDA = "conda"
    PIP = "pip"
    REST = "rest"
    FASTPACK = "fastpack"


#: The order of groups in an archive.
GROUP_ORDER = {kind: position for position, kind in enumerate(GroupKind)}


@dataclass(frozen=True, slots=True, order=True)
class Group:
    """The unit of change: one conda package, one pip distribution, or the rest."""

    kind: GroupKind
    name: str
    version: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.name}".rstrip()


class PathEntry(NamedTuple):
    """A line of ``paths_data`` in a record, or of ``files`` where there is no more."""

    path: str
    path_type: str = ""  # unknown
    sha256: str | None = None
    sha256_in_prefix: str | None = None
    n_bytes: int | None = None
    file_mode: str | None = None
    placeholder: str | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """A ``conda-meta/*.json`` file: one installed package."""

    path: str  # below the prefix
    name: str
    version: str
    build: str
    channel: str
    noarch: str | None
    site_packages_path: str | None
    entries: tuple[PathEntry, ...]

    @property
    def group(self) -> Group:
        return Group(GroupKind.CONDA, self.name, self.version)


class DiskFile(NamedTuple):
    """A path of the environment as it lies on disk. Times in nanoseconds, sizes in bytes."""

    path: str
    kind: Kind
    target: str  # of a symbolic link
    mode: int
    n_bytes: int
    mtime_ns: int
    ctime_ns: int
    inode: int  # as a signed number
    device: int
    n_links: int
    outside: str = ""  # where it is, from the prefix, if it is brought along from elsewhere

    @property
    def mtime_seconds(self) -> int:
        return self.mtime_ns // 1_000_000_000


@dataclass(frozen=True, slots=True)
class Warned:
    """Something a report says beside its result. `code` is stable, `message` is for people."""

    code: str
    path: str | None
    message: str

    def as_dict(self) -> dict[str, object]:
        return {"code": self.code, "path": self.path, "message": self.message}


class Report:
    """What a command did: its fields are what ``--json`` shows, but for the warnings, which stand beside it."""

    __slots__ = ()

    def as_dict(self) -> dict[str, object]:
        """The object that stands under ``result`` in ``--json`` output."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name != "warnings"}  # type: ignore[arg-type]

    def failure(self) -> FastpackError | None:
        """What a command that has done its work still ends with, if not with success (verify)."""
        return None


@dataclass(frozen=True, slots=True)
class PackReport(Report):
    """What `pack` did. Sizes in bytes, durations in seconds.

    `work` has bytes: read and hashed, compressed, reused (of frames that the base had), copied (these, compressed).
    `groups` are names: unchanged, changed, new and gone since the base. `unchanged`: the output was there already, byte
    for byte, so nothing was written.
    """

    prefix: str
    output: str
    format: str
    archive_id: str
    n_files: int
    n_directories: int
    n_links: int
    n_hardlinks: int
    n_relocated_files: int
    n_relocations: int
    n_frames: int
    n_packages: int
    source_bytes: int
    archive_bytes: int
    unchanged: bool
    base: str | None
    groups: dict[str, tuple[str, ...]]
    work: dict[str, int]
    longest_prefix: int | None
    prefixes: tuple[str, ...]
    verdicts: dict[str, int]
    pyc: dict[str, int]
    left_out: dict[str, int]
    not_relocated: tuple[dict[str, str], ...]
    limited: tuple[dict[str, object], ...]  # unmanaged binaries, and the longest prefix that each can name
    requires: dict[str, str]
    elapsed_seconds: float
    warnings: tuple[Warned, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class PackManyReport(Report):
    """What was packed into a directory, one report for each environment."""

    archives: tuple[PackReport, ...]

    @property
    def warnings(self) -> tuple[Warned, ...]:
        return tuple(warning for report in self.archives for warning in report.warnings)

    def as_dict(self) -> dict[str, object]:
        return {"archives": [report.as_dict() for report in self.archives]}


@dataclass(frozen=True, slots=True)
class UnpackReport(Report):
    """What `unpack` did. Sizes in bytes, durations in seconds. `unchanged`: nothing, as it was all there already.

    `n_shared_files` were reflinked, or hard-linked, from the base of a delta.
    """

    archive: str
    destination: str
    prefix: str
    archive_id: str | None
    foreign: bool
    unchanged: bool
    n_files: int
    n_relocated_files: int
    written_bytes: int
    elapsed_seconds: float
    n_shared_files: int = 0
    warnings: tuple[Warned, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class RelocateReport(Report):
    """What `relocate` did: files rewritten, right already, and left because they were changed since."""

    root: str
    prefix: str
    previous: str | None
    n_written: int
    n_unchanged: int
    n_added: int
    left: tuple[str, ...]
    elapsed_seconds: float
    warnings: tuple[Warned, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class VerifyReport(Report):
    """What `verify` found. `problems` are what is not as the manifest says: path (or "") and what is wrong.

    `groups` has, for each group of the archive, how many of its files are in which condition.
    """

    target: str
    kind: str  # archive or prefix
    archive_id: str
    deep: bool
    n_files: int
    n_frames: int
    n_bytes: int
    n_proven: int  # with `deep`: files whose normal form has the package's own sha256
    prefix: str | None  # the one that files name
    groups: tuple[dict[str, object], ...]
    problems: tuple[dict[str, str], ...]
    extra: tuple[str, ...]
    elapsed_seconds: float
    warnings: tuple[Warned, ...] = field(default=())

    def failure(self) -> FastpackError | None:
        if not self.problems:
            return None
        first = self.problems[0]
        more = f", and {len(self.problems) - 1} more" if len(self.problems) > 1 else ""
        return VerifyFailed(f"{first['what']}{more}", path=first["path"] or self.target)


@dataclass(frozen=True, slots=True)
class InspectReport(Report):
    """What an archive says of itself. Sizes in bytes; `packed_bytes` of a group are its frames'."""

    archive: str
    archive_id: str
    format: str
    fastpack: str
    level: int
    libraries: dict[str, str]
    arcroot: str
    dest_prefix: str | None
    requires: dict[str, str]
    longest_prefix: int | None
    limited_by: str | None
    ascii_only: str | None
    strict: bool
    pad: tuple[str, ...]
    n_files: int
    n_directories: int
    n_links: int
    n_hardlinks: int
    n_frames: int
    plain_bytes: int
    packed_bytes: int
    packages: tuple[dict[str, str], ...]
    groups: tuple[dict[str, object], ...]
    relocations: dict[str, int]  # by kind
    n_relocated_files: int
    verdicts: dict[str, int]
    not_relocated: tuple[dict[str, str], ...]
    limited: tuple[dict[str, object], ...]
    left_out: dict[str, int]
    warnings: tuple[Warned, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class ListReport(Report):
    """The members of an archive: path, kind, mode, size in bytes, mtime in seconds, group, target of a link."""

    archive: str
    members: tuple[dict[str, object], ...]
    warnings: tuple[Warned, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class CatReport(Report):
    """One file of an archive; `content` is its bytes in base64, or None if they were written out."""

    archive: str
    path: str
    n_bytes: int
    digest: str
    content: str | None
    warnings: tuple[Warned, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class StatusReport(Report):
    """Where an environment thinks it lies, and whether that is true.

    `condition` is ``right``, ``moved``, ``archive form`` (unpacked by tar alone), ``interrupted``, ``incomplete``,
    ``broken`` or ``foreign``; `advice` is what to run.
    """

    root: str
    condition: str
    prefix: str | None
    archive_id: str | None
    n_relocated_files: int
    pad: tuple[str, ...]
    advice: str | None
    warnings: tuple[Warned, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class DiffReport(Report):
    """What two archives differ in. Sizes in bytes; `shipped_bytes` is what a delta has beside its table.

    `packages` are those added, removed and changed, with kind, name, and `old` and `new` version; `groups` are names:
    unchanged, changed, new, gone; `files` are numbers of paths: added, removed, changed, unchanged.
    """

    old: str
    new: str
    old_archive_id: str
    new_archive_id: str
    same: bool
    packages: dict[str, tuple[dict[str, str], ...]]
    groups: dict[str, tuple[str, ...]]
    files: dict[str, int]
    n_frames: int
    n_shipped_frames: int
    shipped_bytes: int
    archive_bytes: int
    warnings: tuple[Warned, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class SharedReport(Report):
    """What archives have in common: row i, column j of `shared_bytes` are the bytes of i's frames that j has too."""

    archives: tuple[str, ...]
    archive_ids: tuple[str, ...]
    shared_bytes: tuple[tuple[int, ...], ...]
    warnings: tuple[Warned, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class DeltaReport(Report):
    """What `delta` wrote. Sizes in bytes, of the delta and of the new archive."""

    old: str
    new: str
    output: str
    old_archive_id: str
    new_archive_id: str
    n_frames: int
    n_shipped_frames: int
    delta_bytes: int
    archive_bytes: int
    elapsed_seconds: float
    warnings: tuple[Warned, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class ApplyReport(Report):
    """The archive that `apply` put together. Sizes in bytes."""

    delta: str
    base: str
    output: str
    archive_id: str
    archive_bytes: int
    n_frames: int
    n_shipped_frames: int
    elapsed_seconds: float
    warnings: tuple[Warned, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class CacheReport(Report):
    """What is in a cache of frames, and what was removed from it; `rotten` names frames that were damaged."""

    root: str
    n_frames: int
    n_bytes: int
    n_removed_frames: int
    removed_bytes: int
    rotten: tuple[str, ...]
    warnings: tuple[Warned, ...] = field(default=())

    def failure(self) -> FastpackError | None:
        if not self.rotten:
            return None
        return VerifyFailed(f"{len(self.rotten)} frames were damaged, and are removed", path=self.root)


@dataclass(frozen=True, slots=True)
class DiskUsageReport(Report):
    """What makes an environment or an archive so big. Sizes in bytes of files, not compressed.

    `packages` have kind, name, version, `n_files`, `n_bytes` and the bytes of each kind of file; `kinds` are those of
    kinds.py, and ``other``. `debug_section_bytes` lie inside of programs and libraries; None for an archive.
    """

    target: str
    n_files: int
    n_bytes: int
    packages: tuple[dict[str, Any], ...]
    kinds: dict[str, dict[str, int]]
    debug_section_bytes: int | None
    warnings: tuple[Warned, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class BenchReport(Report):
    """What `bench` measured. `tools` have name, version, commands, `archive_bytes`, samples and what was checked.

    A sample is wall, user and system seconds, and the bytes of memory of the command's largest process.
    """

    prefix: str
    fastpack: str
    n_files: int
    n_bytes: int
    n_threads: int
    rounds: int
    machine: dict[str, object]
    check: str
    tools: tuple[dict[str, Any], ...]
    warnings: tuple[Warned, ...] = field(default=())

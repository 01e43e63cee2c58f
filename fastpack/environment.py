"""From a prefix to an Environment: its records, groups and files, as they lie on disk. Nothing else is read or asked.

DESIGN section 3: the environment on disk is the truth; no package cache is needed or read.
"""

from __future__ import annotations

import csv
import fnmatch
import io
import json
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Self, TypeVar

from fastpack._place_py import INCOMPLETE, RELOCATIONS, RelocatedFile, read_regular, read_relocations, read_state
from fastpack.editable import Editable, find_editables, read_text
from fastpack.errors import EnvironmentNotFound, IncompleteEnvironment, NotAnEnvironment, Unreadable, UsageError
from fastpack.fs import parents, resolve
from fastpack.kinds import KINDS, kinds_of
from fastpack.listing import Files, list_tree
from fastpack.model import DiskFile, Group, GroupKind, Kind, PathEntry, Record, Warned
from fastpack.names import prefix_of_name
from fastpack.parallel import default_threads
from fastpack.records import read_records

#: Folders in a root prefix that belong to the installation of conda, not to the environment (conda-pack's list).
POLICY_FOLDERS = (
    "pkgs", "envs", "conda-bld", "users", "conda-recipes", ".index", ".unionfs", ".nonadmin", ".conda_lock",
    "python.app", "Launcher.app",
)  # fmt: skip
#: Unmanaged scripts that conda, conda-pack or we put into an environment; an archive has its own.
POLICY_SCRIPTS = frozenset(
    "bin/" + name
    for name in (
        "conda", "activate", "deactivate", "activate.fish", "deactivate.fish", "activate.csh", "deactivate.csh",
        "activate.nu", "activate.ps1",
        "conda-unpack",
        "conda_unpack_progress.py", "conda-unpack-script.py",
    )
)  # fmt: skip
#: What the installer writes into a dist-info folder: never part of the wheel (row 8a).
INSTALLER_FILES = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")
REST = Group(GroupKind.REST, "")


@dataclass(frozen=True, slots=True)
class Distribution:
    """A pip distribution that no conda package owns, by its RECORD."""

    group: Group
    folder: str  # the dist-info directory
    root: str  # what RECORD's paths are relative to
    paths: tuple[str, ...]  # files that exist and that no conda package claims, below the prefix
    stated: frozenset[str]  # all that RECORD names
    untouchable: frozenset[str]  # row 8a: files of a portable wheel, of the size RECORD says


@dataclass(frozen=True, slots=True)
class Environment:
    """A conda environment as it lies on disk.

    Make one with `from_prefix`, `from_name` or `from_default`. `exclude` and `include` give another with a filter more.
    """

    prefix: str
    records: tuple[Record, ...]
    files: Files
    entries: dict[str, tuple[Record, PathEntry]]
    other_claims: dict[str, tuple[tuple[Record, PathEntry], ...]]  # of paths that several packages have
    groups: dict[str, Group]
    distributions: tuple[Distribution, ...]
    site_packages: tuple[str, ...]
    missing: tuple[tuple[Record, PathEntry], ...]
    clobbered: tuple[tuple[str, tuple[str, ...]], ...]
    editable: tuple[Editable, ...]
    telling: dict[str, tuple[str, ...]]  # files that tell of them -> the paths outside that they name
    earlier_prefixes: tuple[str, ...]
    recorded: dict[str, RelocatedFile]  # by fastpack when it unpacked this environment
    left_out: dict[str, str]  # path -> why
    left_out_before: dict[str, str]  # path -> why, by the archive this environment came from: not missing
    brought: dict[str, str]  # files and directories outside that come along -> where below the prefix, see along.py
    filters: tuple[tuple[str, str], ...] = ()
    warnings: tuple[Warned, ...] = ()

    @classmethod
    def from_prefix(cls, prefix: str) -> Self:
        """Read the environment at a directory.

        Raises
        ------
        EnvironmentNotFound, NotAnEnvironment, BadRecord, Unreadable, IncompleteEnvironment
        """
        if not prefix:
            raise EnvironmentNotFound("the environment's directory has no name", hint="give one with -p PREFIX")
        return _read(cls, os.path.abspath(prefix))

    @classmethod
    def from_name(cls, name: str) -> Self:
        """Read the environment of a name: see `prefix_of_name`."""
        return cls.from_prefix(prefix_of_name(name))

    @classmethod
    def from_default(cls) -> Self:
        """Read the active environment (CONDA_PREFIX)."""
        prefix = os.environ.get("CONDA_PREFIX")
        if not prefix:
            raise EnvironmentNotFound(
                "no environment is active (CONDA_PREFIX is not set)", hint="give one with -p PREFIX or -n NAME"
            )
        return cls.from_prefix(prefix)

    @property
    def name(self) -> str:
        """The last part of the real prefix."""
        return os.path.basename(os.path.realpath(self.prefix))

    def exclude(self, pattern: str) -> Self:
        """The same environment without the files that match a shell pattern (``*`` also matches ``/``)."""
        return replace(self, filters=(*self.filters, ("exclude", pattern)))

    def include(self, pattern: str) -> Self:
        """The same environment with the files left out by then that match a shell pattern taken back."""
        return replace(self, filters=(*self.filters, ("include", pattern)))

    def slim(self, kind: str) -> Self:
        """The same environment without the files of a kind (see kinds.py), and without links to them.

        Raises
        ------
        UsageError : no such kind.
        """
        if kind not in KINDS:
            raise UsageError("no such kind of file", expected=", ".join(KINDS), found=kind)
        return replace(self, filters=(*self.filters, ("slim", kind)))

    def excluded(self) -> dict[str, str]:
        """What the filters leave out, in the order given, also what is missing: path -> why."""
        if not self.filters:
            return {}
        rows = zip(self.files.paths, self.files.kinds, strict=True)
        known = {path for path, kind in rows if kind is not Kind.DIRECTORY}
        known |= {entry.path for _, entry in self.missing}
        out: dict[str, str] = {}
        for kind, what in self.filters:
            if kind == "exclude":
                out |= {path: "excluded" for path in known if path not in out and fnmatch.fnmatchcase(path, what)}
            elif kind == "slim":
                out |= {path: f"slim: {what}" for path in known if path not in out and what in kinds_of(path)}
            else:
                out = {path: why for path, why in out.items() if not fnmatch.fnmatchcase(path, what)}
        if any(kind == "slim" for kind, _ in self.filters):
            links = self.files.targets
            for path in links.keys() - out.keys():
                why = out.get(resolve(path, links[path], links) or "", "")
                if why.startswith("slim"):
                    out[path] = why
        return out

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self) -> Iterator[DiskFile]:
        return self.files.all()


_E = TypeVar("_E", bound=Environment)


def _read(cls: type[_E], prefix: str) -> _E:
    if not os.path.isdir(prefix):
        what = "no such directory" if not os.path.lexists(prefix) else "not a directory"
        raise EnvironmentNotFound(what, path=prefix, hint="give the directory of an environment")
    if os.path.realpath(prefix) == "/":
        raise NotAnEnvironment(
            "an environment at / cannot be packed: every path there is would name it", path=prefix,
            hint="pack it where it has a directory of its own",
        )  # fmt: skip
    if "\n" in prefix:
        raise NotAnEnvironment("a prefix with a newline in its name cannot be packed", path=prefix)
    if not os.access(prefix, os.R_OK | os.X_OK):
        raise Unreadable("the environment's directory may not be read", path=prefix)
    if not os.path.isdir(os.path.join(prefix, "conda-meta")):
        raise NotAnEnvironment(
            "not a conda environment: it has no conda-meta", path=prefix, hint="give the environment's own directory"
        )
    if os.path.exists(os.path.join(prefix, INCOMPLETE)):
        raise IncompleteEnvironment(
            "this environment was never unpacked to its end", path=prefix, hint="remove it and unpack it again"
        )
    warnings: list[Warned] = []
    earlier = _recorded_prefixes(prefix)
    try:
        records = tuple(read_records(prefix))
    except OSError as error:
        raise Unreadable(f"conda-meta cannot be read ({error.strerror})", path=prefix) from None
    entries: dict[str, tuple[Record, PathEntry]] = {}
    claims: dict[str, list[tuple[Record, PathEntry]]] = {}
    for record in records:
        for entry in record.entries:
            claims.setdefault(entry.path, []).append((record, entry))
            entries[entry.path] = (record, entry)
    owned_tops = {path.split("/", 1)[0] for path in entries}
    left_out = {}
    skip = {".fastpack"}
    for folder in POLICY_FOLDERS:
        if folder not in owned_tops and os.path.lexists(os.path.join(prefix, folder)):
            skip.add(folder)
            left_out[folder] = "policy"
    files = list_tree(prefix, skip, default_threads())
    gone: set[str] = set()
    owned = owned_tops.intersection(POLICY_FOLDERS)
    if owned:  # a package has files in a folder of such a name: these alone stay
        kept = {path for path in entries if path.split("/", 1)[0] in owned}
        kept |= {parent for path in kept for parent in parents(path)}
        gone.update(path for path in files if path.split("/", 1)[0] in owned and path not in kept)
    gone |= (POLICY_SCRIPTS & files.keys()) - entries.keys()
    left_out |= dict.fromkeys(gone, "policy")
    modes = files.column("mode")
    odd = {mode for mode in set(modes) if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode))}
    special = [path for path, mode in zip(files.paths, modes, strict=True) if mode in odd and path not in gone]
    left_out |= dict.fromkeys(special, "special")
    warnings += [Warned("special-file", path, "a socket, FIFO or device is left out") for path in special]
    gone.update(special)
    if gone:
        files = files.without(gone)
    previously_left_out = _previously_left_out(prefix)
    missing = tuple(
        (record, entry)
        for path, (record, entry) in entries.items()
        if path not in files
        and left_out.get(path, "special") == "special"  # what stands in a file's place is not that file
        and path not in previously_left_out
        and entry.path_type != "directory"
    )
    site_packages = _site_packages(records, files)
    groups: dict[str, Group] = {record.path: record.group for record in records}
    groups |= {path: groups[record.path] for path, (record, _) in entries.items()}
    distributions = tuple(_distributions(prefix, site_packages, files, groups))
    for distribution in distributions:
        for path in distribution.paths:
            groups.setdefault(path, distribution.group)
    for path in [path for path in files.of_kind(Kind.FILE) if path.endswith(".pyc") and path not in groups]:
        owner = groups.get(source_of_pyc(path))
        if owner is not None:
            groups[path] = owner
    editable, telling = find_editables(prefix, site_packages, files, earlier)
    return cls(
        prefix=prefix,
        records=records,
        files=files,
        entries={path: value for path, value in entries.items() if path in files},
        groups=groups,
        distributions=distributions,
        site_packages=site_packages,
        missing=missing,
        other_claims={path: tuple(rows[:-1]) for path, rows in claims.items() if len(rows) > 1},
        clobbered=tuple((path, tuple(r.name for r, _ in rows)) for path, rows in claims.items() if len(rows) > 1),
        editable=editable,
        telling=telling,
        earlier_prefixes=earlier,
        recorded=_recorded_files(prefix),
        left_out=left_out,
        brought={},
        left_out_before={path: why for path, why in previously_left_out.items() if path not in files},
        warnings=tuple(warnings),
    )


def source_of_pyc(path: str) -> str:
    """The source that a ``.pyc`` was compiled from (PEP 3147 in ``__pycache__``, else beside it)."""
    folder, slash, name = path.rpartition("/")
    if folder == "__pycache__" or folder.endswith("/__pycache__"):
        return f"{folder[:-11]}{name.partition('.')[0]}.py"
    return f"{folder}{slash}{name[:-4]}.py"


def _recorded_prefixes(prefix: str) -> tuple[str, ...]:
    """Where our own state file says the environment lay; refuses one that is only half relocated."""
    try:
        state = read_state(prefix)
    except (OSError, ValueError) as error:
        raise IncompleteEnvironment(
            f"its state file is broken ({error})", path=prefix, hint="unpack the archive again"
        ) from None
    if state is None:
        if os.path.exists(os.path.join(prefix, RELOCATIONS)):
            raise IncompleteEnvironment(
                "this environment was unpacked but not relocated yet", path=prefix, hint="run its bin/conda-unpack"
            )
        return ()
    if not state["complete"]:
        raise IncompleteEnvironment(
            "a relocation of this environment was interrupted", path=prefix, hint="run its bin/conda-unpack again"
        )
    return tuple(path for path in (state.get("prefix"), *state.get("earlier", [])) if isinstance(path, str))


def _recorded_files(prefix: str) -> dict[str, RelocatedFile]:
    """What fastpack recorded of files that name the prefix; nothing where it did not make the environment."""
    try:
        table = read_regular(os.path.join(prefix, RELOCATIONS))
        return {found.path: found for found in read_relocations(table)}
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise Unreadable(f"its relocations cannot be read ({error.strerror})", path=prefix) from None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise IncompleteEnvironment(
            f"its list of relocations is broken ({error})", path=prefix, hint="unpack the archive again"
        ) from None


def _previously_left_out(prefix: str) -> dict[str, str]:
    """Paths that the archive this environment came from was made without (they are not missing)."""
    paths: dict[str, str] = {}
    try:
        data = read_regular(os.path.join(prefix, ".fastpack", "manifest"))
        start = data.find(b'\n{"left_out"')  # they stand at its end
        for line in data[start:].splitlines() if start >= 0 else ():
            if line.startswith(b'{"left_out"'):
                row = json.loads(line)
                paths[str(row["left_out"])] = str(row["why"])
    except (OSError, ValueError, KeyError):
        pass
    return paths


def _site_packages(records: Iterable[Record], files: Files) -> tuple[str, ...]:
    stated = [record.site_packages_path for record in records if record.site_packages_path]
    if stated:
        return tuple(path for path in stated if path in files)
    return tuple(
        path
        for path in files.of_kind(Kind.DIRECTORY)
        if fnmatch.fnmatchcase(path, "lib/python*/site-packages") and path.count("/") == 2
    )


def _distributions(
    prefix: str, site_packages: Iterable[str], files: Files, groups: dict[str, Group]
) -> Iterator[Distribution]:
    roots = set(site_packages)
    inside = (prefix + "/", os.path.realpath(prefix) + "/")
    folders = sorted(
        path for path in files.of_kind(Kind.DIRECTORY) if path.endswith(".dist-info") and os.path.dirname(path) in roots
    )
    for folder in folders:
        record_path = f"{folder}/RECORD"
        if record_path in groups or record_path not in files:
            continue
        root = os.path.dirname(folder)
        name, _, version = os.path.basename(folder)[: -len(".dist-info")].partition("-")
        wheel = read_text(prefix, f"{folder}/WHEEL")
        tags = [line.partition(":")[2] for line in wheel.splitlines() if line.startswith("Tag:")]
        portable = any("manylinux" in tag or "musllinux" in tag for tag in tags)
        paths: list[str] = []
        stated: set[str] = set()
        untouchable: set[str] = set()
        try:
            rows = list(csv.reader(io.StringIO(read_text(prefix, record_path))))
        except csv.Error:
            continue  # no RECORD that says anything: its files belong to the rest
        inner_root = root + "/"
        for row in rows:
            if not row or "\0" in row[0]:
                continue
            stated_name = row[0]
            path = inner_root + stated_name
            # What `normpath` would change: an absolute name, an empty or dotted part.
            if (
                "./" in stated_name
                or "//" in stated_name
                or stated_name.startswith("/")
                or stated_name.endswith(("/", "."))
            ):
                path = os.path.normpath(os.path.join(root, stated_name))
                path = path.removeprefix(next(filter(path.startswith, inside), ""))
            stated.add(path)
            file = files.get(path)
            if file is None or path in groups:
                continue
            paths.append(path)
            as_stated = portable and len(row) >= 3 and row[2] == str(file.n_bytes)
            if as_stated and path.startswith(inner_root) and not stated_name.startswith(("../", "/")):
                untouchable.add(path)
        untouchable -= {f"{folder}/{stated_name}" for stated_name in INSTALLER_FILES}
        yield Distribution(
            Group(GroupKind.PIP, name, version), folder, root, tuple(paths), frozenset(stated), frozenset(untouchable)
        )

"""What stands in the way of packing an environment, or has to be said of it: errors and warnings, nothing else."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping

from fastpack._place_py import RelocatedFile
from fastpack.along import brought_to
from fastpack.editable import also_inside
from fastpack.environment import Environment
from fastpack.errors import EditablePackages, MissingFiles, ModifiedFiles, Unrelocatable
from fastpack.examination import Examination
from fastpack.model import Kind, Record, Verdict, Warned


def warn_slimmed(env: Environment, excluded: Mapping[str, str], warnings: list[Warned]) -> None:
    """Say how much each ``--slim`` leaves out."""
    n_files: Counter[str] = Counter()
    n_bytes: Counter[str] = Counter()
    for path, why in excluded.items():
        if why.startswith("slim") and path in env.files:
            n_files[why] += 1
            n_bytes[why] += env.files[path].n_bytes if env.files[path].kind is Kind.FILE else 0
    warnings.extend(
        Warned("slim", None, f"left out by {why}: {number} files, {n_bytes[why] / 1e6:.1f} MB")
        for why, number in sorted(n_files.items())
    )


def check_missing(env: Environment, excluded: Collection[str], policy: str, warnings: list[Warned]) -> None:
    """Managed files that are not on disk, with their package and the likely cause: `policy` ``error``, ``warn`` or
    ``ignore``."""
    if policy == "ignore":
        return
    by_package: dict[str, list[str]] = {}
    n_pyc = 0
    for record, entry in env.missing:
        if entry.path.endswith(".pyc"):
            n_pyc += 1  # Python writes it again
        elif entry.path not in excluded:
            by_package.setdefault(f"{record.name} {record.version}", []).append(entry.path)
    if n_pyc:
        warnings.append(Warned("missing-pyc", None, f"{n_pyc} .pyc files of packages are not on disk"))
    if not by_package:
        return
    causes = {f"{r.name} {r.version}": _likely_cause(env, e.path, r) for r, e in env.missing}
    lines = []
    for package, paths in sorted(by_package.items()):
        shown = ", ".join(sorted(paths)[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
        lines.append(f"{package} ({causes[package]}): {shown}")
    if policy == "warn":
        warnings.extend(Warned("missing-files", None, line) for line in lines)
        return
    raise MissingFiles(
        "files of conda packages are missing: " + "; ".join(lines),
        path=env.prefix,
        expected="all files of its packages",
        found=f"{sum(map(len, by_package.values()))} missing",
        hint="reinstall these packages, or go on without the files with --on-missing warn",
    )


def check_editable(env: Environment, policy: str, warnings: list[Warned]) -> frozenset[str]:
    """Packages whose code lies outside of the environment: what has to be left out of the archive because of them.

    Parameters
    ----------
    policy : ``error``; ``ignore``, packed as they are; ``drop``, left out with their scripts and metadata; ``include``,
        packed with their code, which is brought along already.
    """
    if not env.editable:
        return frozenset()
    found = [f"{package.name} ({package.location or package.evidence})" for package in env.editable]
    if policy != "error":
        for package, line in zip(env.editable, found, strict=True):
            places = [brought_to(env.brought, place) for place in env.telling[package.evidence]]
            along = ", ".join(dict.fromkeys(place for place in places if place))
            done = {"drop": " is left out", "include": f" comes along as {along}"}
            warnings.append(Warned("editable", package.evidence, line + done.get(policy, "")))
        return _of_editable(env, warnings) if policy == "drop" else frozenset()
    raise EditablePackages(
        "editable packages, whose code lies outside of the environment: " + ", ".join(found),
        path=env.prefix,
        hint="install them for good (pip install PATH), go on with --ignore-editable-packages, or choose with "
             "fastpack pack --editable include|drop|ignore",
    )  # fmt: skip


def _of_editable(env: Environment, warnings: list[Warned]) -> frozenset[str]:
    """The files of packages that are installed in place: what Python finds them by, their scripts and metadata."""
    found: set[str] = set()
    for evidence in env.telling:
        folder, name = os.path.split(evidence)
        found.add(evidence)
        if name == "direct_url.json":
            found.update(path for path in env.files if path.startswith(folder + "/"))
            for distribution in env.distributions:
                if distribution.folder == folder:
                    found.update(distribution.paths)
        elif name.endswith(".egg-link"):
            found.add(f"{folder}/easy-install.pth")
    found &= env.files.keys()
    for path in sorted(path for path in found if path.endswith(".pth")):
        folder = os.path.dirname(path)
        lines = also_inside(env.prefix, env.earlier_prefixes, path)
        # A line that loads a finder goes with it.
        loads = (re.match(r"import\s+(\w+)", line) for line in lines)
        kept = [
            line
            for line, load in zip(lines, loads, strict=True)
            if load is None or os.path.join(folder, f"{load[1]}.py") not in found
        ]
        if kept:
            found.remove(path)
            text = f"kept, with lines that lead out of the environment, as it also has {kept[0]!r}"
            warnings.append(Warned("editable", path, text))
    return frozenset(found)


def check_modified(
    env: Environment, examination: Examination, excluded: Collection[str], policy: str, warnings: list[Warned]
) -> None:
    """Managed files that were changed since, by package, and paths that several packages claim.

    Parameters
    ----------
    policy : ``error``, ``warn`` or ``ignore``.
    """
    for path, names in env.clobbered:
        if path in env.files and path not in excluded:
            warnings.append(Warned("clobbered", path, f"packages {', '.join(names)} all claim this path"))
    if policy == "ignore":
        return
    by_package: dict[str, list[str]] = {}
    causes: dict[str, str] = {}
    changed = _modified(env, examination)
    for path, (record, entry) in env.entries.items():
        if entry.path_type == "hardlink" and env.files[path].kind is not Kind.FILE and not env.other_claims.get(path):
            changed[path] = record  # a file that is something else now
    for path, record in changed.items():
        if path not in excluded:
            by_package.setdefault(record.name, []).append(path)
            causes.setdefault(record.name, _likely_cause(env, path, record))
    lines = []
    for name, paths in sorted(by_package.items()):
        shown = ", ".join(sorted(paths)[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
        lines.append((sorted(paths)[0], f"package {name} was changed since ({causes[name]}): {shown}"))
    if lines and policy == "error":
        raise ModifiedFiles(
            "files of conda packages were changed since they were installed: " + "; ".join(line for _, line in lines),
            path=env.prefix, expected="the files that were installed",
            found=f"{sum(map(len, by_package.values()))} changed",
            hint="reinstall these packages, or pack them as they are with --on-modified warn",
        )  # fmt: skip
    warnings.extend(Warned("modified", path, line) for path, line in lines)


def warn_prefixes(env: Environment, examination: Examination, warnings: list[Warned]) -> None:
    """Say which prefixes are too common to be replaced."""
    for prefix in examination.prefixes.plain:
        if prefix not in examination.prefixes.unique:
            text = f"mentions of {os.fsdecode(prefix)} in unmanaged files are left: it may mean anything"
            warnings.append(Warned("common-prefix", None, f"{text}; --prefix-is-unique replaces them too"))


def check_links(targets: dict[str, str], external: frozenset[str], policy: str, warnings: list[Warned]) -> None:
    """Row 14: links that lead out of the environment, `policy` ``warn``, ``keep`` or ``error``."""
    for path in sorted(external):
        if policy == "error":
            raise Unrelocatable(
                "a link leads out of the environment", path=path, found=targets[path],
                hint="leave it out with --exclude, or keep it with --external-links keep",
            )  # fmt: skip
        if policy == "warn":
            warnings.append(Warned("external-link", path, f"a link out of the environment, kept: {targets[path]}"))


def warn_collisions(paths: Collection[str], warnings: list[Warned]) -> None:
    """Names that differ only in case or Unicode form: one of them is lost on a file system that does not tell them."""
    seen: dict[str, str] = {}
    pairs: list[tuple[str, str]] = []
    # Most are in lower case already, and stand for themselves.
    for path in sorted(path for path in paths if not (path.islower() and path.isascii())):
        key = path.lower() if path.isascii() else unicodedata.normalize("NFC", path).casefold()
        other = seen.setdefault(key, key if key in paths else path)
        if other != path:
            pairs.append((min(other, path), max(other, path)))
    if pairs:
        shown = ", ".join(f"{one!r} and {two!r}" for one, two in pairs[:3])
        more = f" and {len(pairs) - 3} more" if len(pairs) > 3 else ""
        text = f"names that differ only in case or Unicode form, which some file systems cannot hold: {shown}{more}"
        warnings.append(Warned("colliding-names", pairs[0][1], text))


def warn_relocations(relocated: Iterable[RelocatedFile], warnings: list[Warned]) -> None:
    """Rows 2 and 6: strings that end with their file, and binaries with no more room than this prefix takes."""
    limited = []
    for file in relocated:
        if any(isinstance(item.value, int) and item.offset + item.value == file.n_bytes for item in file.items):
            text = "a string that names the prefix ends with the file, without a NUL"
            warnings.append(Warned("string-at-end", file.path, text))
        if file.room is not None:
            limited.append((file.room, file.path))
    if limited:
        room, path = min(limited)
        text = (
            f"{len(limited)} binaries that no package manager wrote name the prefix: at a path of over {room} bytes"
            " not all of them can be relocated, and depend on the path they have now"
        )
        warnings.append(Warned("limited", path, text))


def _likely_cause(env: Environment, path: str, record: Record) -> str:
    """Why a managed file may be gone or changed, for people."""
    claims = [str(d.group) for d in env.distributions if path in d.paths or d.group.name.lower() == record.name.lower()]
    if claims:
        return f"pip installed {claims[0].removeprefix('pip ')} over it"
    others = [name for clobbered, names in env.clobbered if clobbered == path for name in names if name != record.name]
    if others:
        return f"package {others[0]} has the same path"
    return "changed by hand or by another tool"


def _modified(env: Environment, result: Examination) -> dict[str, Record]:
    """The managed files that are not what was installed, with the record that claims each."""
    return {
        path: env.entries[path][0]
        for path, found in result.files.items()
        if found.verdict is Verdict.MODIFIED and path in env.entries
    }

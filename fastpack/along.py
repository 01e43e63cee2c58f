"""``--editable include``: the code of packages that are installed in place comes along, below ``src/``."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import replace

from fastpack.environment import Environment
from fastpack.errors import EditablePackages
from fastpack.fs import walk
from fastpack.model import DiskFile, Group, GroupKind, Kind, Warned
from fastpack.parallel import default_threads

#: Where pip, too, keeps what it installs in place (``pip install --src``).
FOLDER = "src"
#: Directories of a source tree that are no part of the code: of version control, test runners and caches.
_LEFT_OUT = frozenset((".git", ".hg", ".svn", ".bzr", "__pycache__", ".tox", ".nox", ".pixi"))
#: What tells an environment or a cache of its own inside of a source tree.
_OF_ITS_OWN = ("pyvenv.cfg", "conda-meta", "CACHEDIR.TAG")


def bring_along(env: Environment) -> Environment:
    """The same environment with the source trees of its editable packages as ``src/NAME``.

    Left out of a tree: version control, ``__pycache__``, virtual and conda environments, caches (CACHEDIR.TAG).

    Raises
    ------
    EditablePackages : code that is not there, or a tree that cannot be meant.
    """
    brought: dict[str, str] = {}
    files: dict[str, DiskFile] = {}
    groups: dict[str, Group] = {}
    left_out: dict[str, str] = {}
    warnings: list[Warned] = []
    for root in _roots(env):
        place = _place(env, root, set(brought.values()))
        brought[root] = place
        group = Group(GroupKind.REST, place)
        for file in _tree(env.prefix, root, place):
            if file.kind is Kind.DIRECTORY and not _is_code(os.path.join(env.prefix, file.outside)):
                left_out[file.path] = "policy"
            elif file.kind is Kind.FILE and not stat.S_ISREG(file.mode):
                left_out[file.path] = "special"
                warnings.append(Warned("special-file", file.path, "a socket, FIFO or device is left out"))
            else:
                files[file.path] = file
                groups[file.path] = group
    return replace(
        env, files=env.files | files, groups=env.groups | groups, left_out=env.left_out | left_out, brought=brought,
        warnings=(*env.warnings, *warnings),
    )  # fmt: skip


def brought_to(brought: Mapping[str, str], path: str) -> str | None:
    """Where below the prefix a path outside of it comes to lie; None if it does not come along."""
    for root, place in brought.items():
        if path == root or path.startswith(root + "/"):
            return place + path[len(root) :]
    return None


def _roots(env: Environment) -> list[str]:
    """The trees that hold the code; none lies in another one."""
    found: set[str] = set()
    for package in env.editable:
        for path in package.roots:
            root = os.path.normpath(path)
            if not os.path.exists(root):
                raise EditablePackages(
                    f"the code of the editable package {package.name} is not there", path=root,
                    hint="install it again, or leave it out with --editable drop",
                )  # fmt: skip
            inside = os.path.realpath(env.prefix) + "/"
            home = os.path.expanduser("~")
            if root in ("/", home) or os.path.realpath(root) + "/" == inside:
                raise EditablePackages(
                    f"the code of the editable package {package.name} is said to lie in a directory that holds"
                    " everything", path=root, hint="install the package for good (pip install PATH)",
                )  # fmt: skip
            found.add(root)
    return [root for root in sorted(found) if not any(root.startswith(other + "/") for other in found)]


def _place(env: Environment, root: str, taken: set[str]) -> str:
    """Where a tree goes. A name without what a URL, JSON or a shell writes in another way."""
    stem, suffix = os.path.splitext(os.path.basename(root)) if os.path.isfile(root) else (os.path.basename(root), "")
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", stem)
    number = 1
    while True:
        name = plain if number == 1 else f"{plain}-{number}"
        place = f"{FOLDER}/{name}"
        if suffix:  # a single module keeps its name, in a folder of its own
            place = f"{place}/{plain}{suffix}"
        folder = f"{FOLDER}/{name}"
        if folder not in env.files and not any(other == folder or other.startswith(folder + "/") for other in taken):
            return place
        number += 1


def _is_code(folder: str) -> bool:
    return os.path.basename(folder) not in _LEFT_OUT and not any(
        os.path.lexists(os.path.join(folder, name)) for name in _OF_ITS_OWN
    )


def _tree(prefix: str, root: str, place: str) -> Iterator[DiskFile]:
    """A tree's files under the names they get. Links that lead out of it are told by their true target."""
    way = os.path.relpath(os.path.realpath(root), os.path.realpath(prefix))
    if os.path.isfile(root):
        folder, name = os.path.split(root)
        for file in walk(folder, into=lambda path: False):
            if file.path == name:
                yield file._replace(path=place, outside=way)
        return
    for file in walk(root, threads=default_threads(), into=lambda path: _is_code(os.path.join(root, path))):
        target = file.target
        if file.kind is Kind.LINK and not target.startswith("/"):
            end = os.path.normpath(os.path.join(os.path.dirname(file.path), target))
            if end == ".." or end.startswith("../"):
                target = os.path.normpath(os.path.join(root, end))
        yield file._replace(path=f"{place}/{file.path}", outside=f"{way}/{file.path}", target=target)

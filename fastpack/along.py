"""``--editable include``: the code of packages that are installed in place comes along, below ``src/``."""

from __future__ import annotations

import importlib.machinery
import itertools
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import replace

from fastpack.environment import Environment
from fastpack.errors import EditablePackages
from fastpack.fs import resolve
from fastpack.listing import list_tree
from fastpack.model import DiskFile, Group, GroupKind, Kind, Warned
from fastpack.parallel import default_threads

#: Where pip, too, keeps what it installs in place (``pip install --src``).
FOLDER = "src"
#: Directories of a source tree that are no part of the code: of version control, test runners and caches.
_LEFT_OUT = frozenset((".git", ".hg", ".svn", ".bzr", "__pycache__", ".tox", ".nox", ".pixi"))
#: What tells an environment or a cache of its own inside of a source tree.
_OF_ITS_OWN = ("pyvenv.cfg", "conda-meta", "CACHEDIR.TAG")


def bring_along(env: Environment, output: str | None = None) -> Environment:
    """The same environment with the source trees of its editable packages as ``src/NAME``.

    Left out of a tree: version control, ``__pycache__``, virtual and conda environments, caches (CACHEDIR.TAG), and
    what is about to be written there.

    Parameters
    ----------
    output : the archive to be.

    Raises
    ------
    EditablePackages : code that is not there, or a tree that cannot be meant.
    """
    roots, spelled = _roots(env)
    folder = next(name for name in _folders() if getattr(env.files.get(name), "kind", Kind.DIRECTORY) is Kind.DIRECTORY)
    places: dict[str, str] = {}
    for root in roots:
        places[root] = _place(env, folder, root, set(places.values()))
    trees = _Trees(env, places)
    for root in roots:
        trees.add(root, None if output is None else os.path.realpath(output))
    brought = dict(places)
    for path, (real, suffix) in spelled.items():
        brought[path] = (trees.inner(real) or "").removesuffix(suffix)
    links = {path: trees.led(env.files[path]) for path in env.files.targets}
    return replace(
        env, files=env.files.with_rows(links | trees.files), groups=env.groups | trees.groups,
        left_out=env.left_out | trees.left_out,
        brought={path: place for path, place in brought.items() if place}, warnings=(*env.warnings, *trees.warnings),
    )  # fmt: skip


def _folders() -> Iterator[str]:
    yield FOLDER
    yield from (f"{FOLDER}-{number}" for number in itertools.count(2))


class _Trees:
    """Source trees by their real paths, and what of them is packed."""

    def __init__(self, env: Environment, places: Mapping[str, str]) -> None:
        self._prefix = os.path.realpath(env.prefix)
        self._places = places
        self.files: dict[str, DiskFile] = {}
        self.groups: dict[str, Group] = {}
        self.left_out: dict[str, str] = {}
        self.warnings: list[Warned] = []

    def inner(self, real: str) -> str | None:
        """Where below the prefix a real path comes to lie; None if it does not come along."""
        if real.startswith(self._prefix + "/"):
            return real[len(self._prefix) + 1 :]
        return brought_to(self._places, real)

    def add(self, root: str, output: str | None) -> None:
        """Take a tree in."""
        place = self._places[root]
        group = Group(GroupKind.REST, place)
        found = list(_tree(self._prefix, root, place))
        links = {file.path: file.target for file in found if file.kind is Kind.LINK}
        for file in found:
            on_disk = os.path.join(root, file.path[len(place) + 1 :])
            if on_disk == output:
                continue  # and not a word of it, so that packing again gives the same
            if file.kind is Kind.DIRECTORY and not _is_code(on_disk):
                self.left_out[file.path] = "policy"
            elif file.kind is Kind.FILE and not stat.S_ISREG(file.mode):
                self.left_out[file.path] = "special"
                self.warnings.append(Warned("special-file", file.path, "a socket, FIFO or device is left out"))
            else:
                self.files[file.path] = self._retargeted(file, links) if file.kind is Kind.LINK else file
                self.groups[file.path] = group

    def _retargeted(self, file: DiskFile, links: Mapping[str, str]) -> DiskFile:
        """A link of a tree, leading where it did: in the tree, into the environment, or out by its true path."""
        place = next(place for place in self._places.values() if file.path.startswith(place + "/"))
        end = None if file.target.startswith("/") else resolve(file.path, file.target, links)
        real = os.path.realpath(os.path.join(self._prefix, os.path.dirname(file.outside), file.target))
        inner = self.inner(real)
        if end is not None and end.startswith(place + "/") and inner == end and not self._is_left_out(end):
            return file
        if inner is not None:
            if self._is_left_out(inner):
                self.warnings.append(Warned("external-link", file.path, f"a link to what is left out: {file.target}"))
            return file._replace(target=os.path.relpath(inner, os.path.dirname(file.path)))
        return file._replace(target=real)

    def _is_left_out(self, path: str) -> bool:
        return any(path == other or path.startswith(other + "/") for other in self.left_out)

    def led(self, file: DiskFile) -> DiskFile:
        """A link of the environment: into a tree, if that is where it leads."""
        end = os.path.join(self._prefix, os.path.dirname(file.path), file.target)
        inner = brought_to(self._places, os.path.realpath(end))
        if inner is None or (os.path.normpath(end) + "/").startswith(self._prefix + "/"):
            return file
        return file._replace(target=os.path.relpath(inner, os.path.dirname(file.path)))


def brought_to(brought: Mapping[str, str], path: str) -> str | None:
    """Where below the prefix a path outside of it comes to lie; None if it does not come along."""
    for root, place in brought.items():
        if path == root or path.startswith(root + "/"):
            return place + path[len(root) :]
    return None


def _roots(env: Environment) -> tuple[list[str], dict[str, tuple[str, str]]]:
    """The real paths of the trees that hold the code, none in another one; and where each path leads that is named.

    That is a real path, and what of its end is not named.
    """
    spelled: dict[str, tuple[str, str]] = {}
    found: set[str] = set()
    for evidence, paths in env.telling.items():
        for path in paths:
            existing = [path] if os.path.exists(path) else list(filter(os.path.exists, map(path.__add__, _SUFFIXES)))
            if not existing:
                raise EditablePackages(
                    f"the code that {evidence} leads to is not there", path=path,
                    hint="install the package again, or leave it out with --editable drop",
                )  # fmt: skip
            spelled[path] = os.path.realpath(existing[0]), existing[0][len(path) :]
            for one in existing:
                root = os.path.realpath(one)
                if root in ("/", os.path.realpath(os.path.expanduser("~")), os.path.realpath(env.prefix)):
                    raise EditablePackages(
                        f"the code that {evidence} leads to is said to lie in a directory that holds everything",
                        path=path, hint="install the package for good (pip install PATH)",
                    )  # fmt: skip
                if not root.startswith(os.path.realpath(env.prefix) + "/"):
                    found.add(root)
    return [root for root in sorted(found) if not any(root.startswith(other + "/") for other in found)], spelled


#: A finder names a module without its suffix.
_SUFFIXES = (".py", *importlib.machinery.EXTENSION_SUFFIXES)


def _place(env: Environment, folder: str, root: str, taken: set[str]) -> str:
    """Where a tree goes. A name without what a URL, JSON or a shell writes in another way."""
    base = os.path.basename(root)
    is_file = os.path.isfile(root)
    stem, dot, suffix = base.partition(".") if is_file else (base, "", "")
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", stem)
    for number in itertools.count(1):
        name = plain if number == 1 else f"{plain}-{number}"
        place = f"{folder}/{name}"
        if place not in env.files and not any(other == place or other.startswith(place + "/") for other in taken):
            # A single module keeps its name, in a folder of its own.
            return f"{place}/{plain}{dot}{suffix}" if is_file else place
    raise AssertionError


def _is_code(folder: str) -> bool:
    return os.path.basename(folder) not in _LEFT_OUT and not any(
        os.path.lexists(os.path.join(folder, name)) for name in _OF_ITS_OWN
    )


def _tree(prefix: str, root: str, place: str) -> Iterator[DiskFile]:
    """A tree's files under the names they get. `prefix` and `root` are real paths."""
    way = os.path.relpath(root, prefix)
    if os.path.isfile(root):
        folder, name = os.path.split(root)
        file = list_tree(folder, into=lambda path: False)[name]
        yield file._replace(path=place, outside=way)
        return
    for file in list_tree(root, threads=default_threads(), into=lambda path: _is_code(os.path.join(root, path))).all():
        yield file._replace(path=f"{place}/{file.path}", outside=f"{way}/{file.path}")

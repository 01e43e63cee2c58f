"""Where an environment appears: written beside its destination, and under its name only when it is whole.

DESIGN section 8. The marker ``.fastpack/incomplete`` stands, locked, in what is not finished; it goes last. Whatever
bears it and is not locked is debris of a killed run, and is removed by the next one.
"""

from __future__ import annotations

import fcntl
import glob
import json
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import Enum
from types import TracebackType
from typing import BinaryIO

from fastpack import fs
from fastpack._place_py import INCOMPLETE, STATE, read_state
from fastpack.errors import AlreadyExists, IncompleteEnvironment, NoSpace, UsageError
from fastpack.model import Kind


class Mode(Enum):
    """How the destination comes to be."""

    RENAME = "rename"  # nothing or an empty directory is there: the partial directory takes its name
    SWAP = "swap"  # an environment of ours is there: exchanged for the new one
    MOVE = "move"  # a mount point, or a directory whose parent is not writable: entries are moved in
    ADD = "add"  # a directory with other things in it, and --force: entries are moved in, nothing is replaced


class Destination:
    """A context in which an environment is written to `root` and, by `finish`, appears at `path`.

    Parameters
    ----------
    path : the destination, absolute.
    force : swap out an environment of ours that is there; add to any other directory.
    names : the paths of all members that are no directories, or None if they are not known yet (a pipe).
    n_bytes : what will be written, to check the space first; 0 if it is not known.

    Raises
    ------
    AlreadyExists, NoSpace, IncompleteEnvironment, UsageError
    """

    def __init__(self, path: str, force: bool, names: Iterable[str] | None, n_bytes: int) -> None:
        self.path = path
        self._names = None if names is None else set(names)
        self._lock: BinaryIO | None = None
        self._finished = False
        self.root = ""
        _remove_debris(path)
        self._mode = self._choose_mode(force)
        existing = path
        while not os.path.isdir(existing):
            existing = os.path.dirname(existing)
        if n_bytes > (free := fs.free_bytes(existing)):
            raise NoSpace(
                "not enough space at the destination", path=existing, expected=f"{n_bytes} bytes", found=f"{free} bytes"
            )

    def _choose_mode(self, force: bool) -> Mode:
        path = self.path
        if not os.path.lexists(path):
            return Mode.RENAME
        if not os.path.isdir(path):
            raise AlreadyExists("the destination is there and is no directory", path=path, hint="choose another one")
        if fs.is_empty_directory(path):
            if os.path.islink(path) or os.path.ismount(path):
                return Mode.MOVE
            return Mode.RENAME
        if not force:
            ours = os.path.exists(os.path.join(path, STATE))
            hint = "--force replaces it" if ours else "choose another one; --force adds to it, replacing nothing"
            raise AlreadyExists("the destination is a directory with something in it", path=path, hint=hint)
        if os.path.exists(os.path.join(path, STATE)):
            foreign = _files_not_ours(path)
            if foreign:
                raise AlreadyExists(
                    f"the environment there has {len(foreign)} files that fastpack did not make: "
                    + ", ".join(foreign[:5]) + (", …" if len(foreign) > 5 else ""),
                    path=path, hint="move them away, or remove the environment yourself",
                )  # fmt: skip
            return Mode.SWAP
        if self._names is not None:
            self._check_free(self._names)
        return Mode.ADD

    def _check_free(self, names: Iterable[str]) -> None:
        for name in names:
            if os.path.lexists(os.path.join(self.path, name)):
                raise AlreadyExists(
                    "a path of the archive is already there", path=os.path.join(self.path, name),
                    hint="choose another destination",
                )  # fmt: skip

    def __enter__(self) -> Destination:
        try:
            if self._mode in (Mode.RENAME, Mode.SWAP):
                os.makedirs(os.path.dirname(self.path), exist_ok=True)
                try:
                    self._begin(f"{_stem(self.path)}.partial-{secrets.token_hex(4)}")
                    return self
                except PermissionError:
                    if self._mode is Mode.SWAP or not os.path.isdir(self.path):
                        raise
                    self._mode = Mode.MOVE
            self._begin(os.path.join(self.path, f".fastpack-partial-{secrets.token_hex(4)}"))
        except OSError as error:
            raise fs.explain_os_error(error, error.filename or self.path) from None
        return self

    def _begin(self, root: str) -> None:
        os.mkdir(root, 0o755)
        self.root = root
        os.mkdir(os.path.join(root, ".fastpack"), 0o755)
        self._lock = _make_marker(os.path.join(root, INCOMPLETE), {"made": "whole"})

    def finish(self) -> None:
        """Let the environment appear under its name. The marker goes last."""
        if self._mode is Mode.RENAME:
            # Over an empty directory a rename is as atomic as over nothing.
            os.rename(self.root, self.path)
        elif self._mode is Mode.SWAP:
            self._swap()
            return
        else:
            self._move_in()
        self._end(self.path)

    def _swap(self) -> None:
        """Exchange the new environment for the old one; whatever a kill leaves is one of them, whole, in its place."""
        with _locked_directory(self.path), _locked_directory(self.root):
            self._end(self.root)
            old = self.root
            try:
                fs.exchange(self.root, self.path)
            except OSError:  # a file system without exchange: for a moment there is none
                old = f"{_stem(self.path)}.partial-{secrets.token_hex(4)}"
                os.rename(self.path, old)
                os.rename(self.root, self.path)
            fs.remove_tree(old)

    def _end(self, root: str) -> None:
        self._finished = True
        os.unlink(os.path.join(root, INCOMPLETE))
        if self._lock is not None:
            self._lock.close()

    def _move_in(self) -> None:
        """Move the partial directory's entries into the destination, ``bin`` last: nothing can be started before."""
        names = sorted(
            os.path.relpath(os.path.join(folder, name), self.root)
            for folder, folders, files in os.walk(self.root)
            for name in [*files, *(f for f in folders if os.path.islink(os.path.join(folder, f)))]
        )
        own = [name for name in names if name != INCOMPLETE]
        if self._mode is Mode.ADD:
            self._check_free(own)
        os.makedirs(os.path.join(self.path, ".fastpack"), exist_ok=True)
        added: dict[str, object] = {"made": "added", "names": own} if self._mode is Mode.ADD else {"made": "moved"}
        with _make_marker(os.path.join(self.path, INCOMPLETE), added):
            folders: list[tuple[str, int]] = []
            for folder, below, _ in os.walk(self.root):
                for name in below:
                    source = os.path.join(folder, name)
                    if os.path.islink(source):
                        continue
                    target = os.path.join(self.path, os.path.relpath(source, self.root))
                    if not os.path.isdir(target):
                        os.mkdir(target, 0o700)
                        folders.append((target, os.stat(source).st_mode & 0o777))
            for name in sorted(own, key=lambda name: (name.startswith("bin/"), name)):
                os.rename(os.path.join(self.root, name), os.path.join(self.path, name))
            for target, mode in reversed(folders):
                os.chmod(target, mode)
            partial, self.root = self.root, self.path
            fs.remove_tree(partial)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._finished:
            return
        if self._lock is not None:
            self._lock.close()
        if self.root and self.root != self.path and os.path.lexists(os.path.join(self.root, INCOMPLETE)):
            _remove_marked(self.root)
        if self.root:
            _remove_debris(self.path)


def _stem(path: str) -> str:
    """A destination's path, its last part short enough to take a suffix (names end at 255 bytes)."""
    folder, name = os.path.split(path)
    return os.path.join(folder, os.fsdecode(os.fsencode(name)[:220]))


def _make_marker(path: str, content: dict[str, object]) -> BinaryIO:
    marker = open(path, "xb")  # noqa: SIM115 (stays open as long as its lock is held)
    fcntl.flock(marker.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    marker.write(json.dumps(content).encode("ascii"))
    marker.flush()
    return marker


def _unlocked_marker(root: str) -> dict[str, object] | None:
    """The marker of a killed run; None if there is none, or a living process holds it."""
    try:
        with open(os.path.join(root, INCOMPLETE), "rb") as marker:
            if not fs.lock(marker):
                return None
            try:
                content = json.loads(marker.read() or b"{}")
            except ValueError:
                content = {}
            return content if isinstance(content, dict) else {}
    except OSError:
        return None


def _remove_debris(path: str) -> None:
    """Remove what killed runs left for this destination; refuse it while another process is writing there."""
    for root in [
        *glob.glob(glob.escape(_stem(path)) + ".partial-*"),
        *glob.glob(os.path.join(glob.escape(path), ".fastpack-partial-*")),
    ]:
        if _unlocked_marker(root) is not None:
            _remove_marked(root)
        elif not os.path.lexists(os.path.join(root, INCOMPLETE)):
            _remove_unmarked(root, path)
    if not os.path.lexists(os.path.join(path, INCOMPLETE)):
        return
    content = _unlocked_marker(path)
    if content is None:
        raise IncompleteEnvironment("another process is unpacking there", path=path, hint="wait for it to end")
    if content.get("made") == "whole":
        _remove_marked(path)
    elif content.get("made") == "moved":
        _remove_marked(path, keep_root=True)
    elif content.get("made") == "added" and isinstance(names := content.get("names"), list):
        for name in [*names, INCOMPLETE]:
            if isinstance(name, str) and fs.check_relative(name) is None:
                try:
                    os.unlink(os.path.join(path, name))
                except OSError:
                    pass
        _remove_empty(path)
    else:
        raise IncompleteEnvironment(
            "a marker of an unfinished run that cannot be read", path=os.path.join(path, INCOMPLETE),
            hint="remove the directory yourself",
        )  # fmt: skip


def _remove_unmarked(root: str, path: str) -> None:
    """Debris without a marker: nothing in it yet, or the environment that a swap took out of `path`."""
    try:
        with _locked_directory(root):
            try:
                state = read_state(root)
            except ValueError:
                state = None
            if state is not None and state.get("target") == path:
                fs.remove_tree(root)
                return
            for folder in (os.path.join(root, ".fastpack"), root):
                os.rmdir(folder)
    except OSError:
        pass


@contextmanager
def _locked_directory(path: str) -> Iterator[None]:
    """Hold a directory's lock; OSError if another process has it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _remove_marked(root: str, keep_root: bool = False) -> None:
    """Remove a directory that bears our marker, the marker last: a kill on the way leaves it to be recognised again."""
    own = os.path.join(root, ".fastpack")
    for folder in (root, own):
        for name in os.listdir(folder):
            if name != ".fastpack" and os.path.join(folder, name) != os.path.join(root, INCOMPLETE):
                fs.remove_tree(os.path.join(folder, name))
    os.unlink(os.path.join(root, INCOMPLETE))
    os.rmdir(own)
    if not keep_root:
        os.rmdir(root)


def _remove_empty(root: str) -> None:
    for folder, _, _ in os.walk(root, topdown=False):
        if folder != root:
            try:
                os.rmdir(folder)
            except OSError:
                pass


def _files_not_ours(root: str) -> list[str]:
    """Files of an unpacked environment that its manifest does not know; what Python compiled does not count."""
    known: set[str] = {INCOMPLETE, STATE, ".fastpack/manifest"}
    try:
        with open(os.path.join(root, ".fastpack", "manifest"), "rb") as file:
            for line in file:
                row = json.loads(line)
                if "path" in row:
                    known.add(row["path"])
    except (OSError, ValueError) as error:
        raise UsageError(f"the environment there has no manifest that can be read ({error})", path=root) from None
    return sorted(
        found.path
        for found in fs.walk(root)
        if found.kind is not Kind.DIRECTORY and found.path not in known and "__pycache__/" not in found.path
    )

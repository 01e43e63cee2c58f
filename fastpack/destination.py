"""Where an environment appears: written beside its destination, and under its name only when it is whole.

DESIGN section 8. The marker ``.fastpack/incomplete`` stands, locked, in what is not finished; it goes last. Whatever
bears it and is not locked is debris of a killed run, and is removed by the next one.
"""

from __future__ import annotations

import errno
import glob
import os
import secrets
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from types import TracebackType
from typing import BinaryIO

from fastpack import fs
from fastpack._place_py import INCOMPLETE, RELOCATIONS, read_state
from fastpack.errors import AlreadyExists, FastpackError, IncompleteEnvironment, NoSpace, UsageError, WrongBase
from fastpack.markers import (
    RANDOM,
    files_not_ours,
    locked_directory,
    make_marker,
    partial,
    remove_environment,
    remove_if_debris,
    remove_marked,
    stem,
    unlocked_marker,
)
from fastpack.parallel import detached
from fastpack.swapping import check_places, finish_swaps, swap

#: Seconds that whoever interrupts waits for what was written to be removed; the rest goes on in the background.
_PATIENCE = 0.2


class Mode(Enum):
    """How the destination comes to be."""

    RENAME = "rename"  # nothing or an empty directory is there: the partial directory takes its name
    SWAP = "swap"  # an environment of ours is there: exchanged for the new one
    MOVE = "move"  # a mount point, or a directory whose parent is not writable: entries are moved in
    ADD = "add"  # a directory with other things in it, and --force: entries are moved in, nothing is replaced


def behind_links(path: str) -> str:
    """A destination's own path: a link to a directory stays, what it leads to is filled or replaced."""
    return os.path.realpath(path) if os.path.islink(path) and os.path.isdir(path) else path


class Destination:
    """A context in which an environment is written to `root` and, by `finish`, appears at `path`.

    Parameters
    ----------
    path : the destination, absolute.
    force : swap out an environment of ours that is there; add to any other directory.
    names : the paths of all members that are no directories, or None if they are not known yet (a pipe).
    n_bytes : what will be written, to check the space first; 0 if it is not known.
    keep : how many environments that were swapped out stay beside it, as ``<path>.old-1`` (the newest) and so on.
    changed : swap out one of ours though files of it were changed since it was unpacked.
    for_delta : a delta is unpacked, of which is asked what becomes of such files.

    Raises
    ------
    AlreadyExists, NoSpace, IncompleteEnvironment, UsageError, WrongBase
    """

    def __init__(
        self, path: str, force: bool, names: Iterable[str] | None, n_bytes: int, keep: int = 0, changed: bool = False,
        for_delta: bool = False,
    ) -> None:  # fmt: skip
        self.path = path = behind_links(path)
        self._names = None if names is None else set(names)
        self._lock: BinaryIO | None = None
        self._finished = False
        self._keep = keep
        self._changed = changed
        self._for_delta = for_delta
        self._moving = False
        self._parents: list[str] = []  # made for this destination
        self.root = ""
        _remove_debris(path)
        self._mode = self._choose_mode(force)
        existing = fs.existing_parent(path)
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
            if os.path.ismount(path) or os.path.realpath(path) == os.path.realpath("."):
                return Mode.MOVE
            return Mode.RENAME
        if not force:
            ours = os.path.exists(os.path.join(path, RELOCATIONS))
            hint = "--force replaces it" if ours else "choose another one; --force adds to it, replacing nothing"
            raise AlreadyExists("the destination is a directory with something in it", path=path, hint=hint)
        # Unpacked and relocated, or in the form that the archive has (`no-archive`).
        if all(os.path.exists(os.path.join(path, name)) for name in (".fastpack/manifest", RELOCATIONS)):
            if foreign := files_not_ours(path, self._changed):
                raise self._refused(foreign)
            if os.path.ismount(path):
                raise AlreadyExists(
                    "the environment there is a mount point, which cannot be exchanged", path=path,
                    hint="remove what is in it first",
                )  # fmt: skip
            check_places(path, self._keep)
            return Mode.SWAP
        if self._names is not None:
            self._check_free(self._names)
        return Mode.ADD

    def _refused(self, foreign: Sequence[str]) -> FastpackError:
        """Why an environment of ours is not replaced that has files which are not what was unpacked."""
        unknown = files_not_ours(self.path, True)
        foreign = unknown or foreign
        listed = ", ".join(foreign[:5]) + (", …" if len(foreign) > 5 else "")
        if not unknown:
            message = (
                f"the environment there has {len(foreign)} files that were changed since it was unpacked: {listed}"
            )
            if self._for_delta:
                return WrongBase(
                    message, path=self.path, hint="--on-modified replace replaces those that the delta has"
                )
            return AlreadyExists(
                message, path=self.path, hint="put them back as they were, or remove the environment yourself"
            )
        return AlreadyExists(
            f"the environment there has {len(foreign)} files that fastpack did not make: {listed}",
            path=self.path, hint="move them away, or remove the environment yourself",
        )  # fmt: skip

    def _check_free(self, names: Iterable[str]) -> None:
        folders: set[str] = set()
        for name in names:
            folder = os.path.dirname(name)
            while folder and folder not in folders:
                folders.add(folder)
                folder = os.path.dirname(folder)
            if os.path.lexists(os.path.join(self.path, name)):
                raise AlreadyExists(
                    "a path of the archive is already there", path=os.path.join(self.path, name),
                    hint="choose another destination",
                )  # fmt: skip
        for folder in folders:
            full = os.path.join(self.path, folder)
            if os.path.lexists(full) and (os.path.islink(full) or not os.path.isdir(full)):
                raise AlreadyExists(
                    "a directory of the archive is there as something else", path=full,
                    hint="choose another destination",
                )  # fmt: skip

    def __enter__(self) -> Destination:
        try:
            if self._mode in (Mode.RENAME, Mode.SWAP):
                self._make_parents()
                try:
                    self._begin(partial(self.path))
                    return self
                except PermissionError:
                    if self._mode is Mode.SWAP or not os.path.isdir(self.path):
                        raise
                    self._mode = Mode.MOVE
            self._begin(os.path.join(self.path, f".fastpack-partial-{secrets.token_hex(4)}"))
        except BaseException as error:
            self._abandon()
            if isinstance(error, OSError):
                raise fs.explain_os_error(error, error.filename or self.path) from None
            raise
        return self

    def _make_parents(self) -> None:
        folder = os.path.dirname(self.path)
        missing: list[str] = []
        while not os.path.isdir(folder):
            missing.append(folder)
            folder = os.path.dirname(folder)
        for parent in reversed(missing):
            os.mkdir(parent)
            self._parents.append(parent)

    def _begin(self, root: str) -> None:
        os.mkdir(root, 0o755)
        self.root = root  # from here on it is ours to remove
        os.mkdir(os.path.join(root, ".fastpack"), 0o755)
        self._lock = make_marker(root, {"made": "whole"})

    def finish(self, durable: bool) -> None:
        """Let the environment appear under its name. The marker goes last.

        Parameters
        ----------
        durable : wait for the disk before and after.
        """
        if durable:
            fs.sync(self.root)
        self._appear()
        if durable:
            fs.sync(os.path.dirname(self.path))

    def _appear(self) -> None:
        if self._mode is Mode.RENAME:
            # Over an empty directory a rename is as atomic as over nothing.
            try:
                os.rename(self.root, self.path)
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                    raise
                raise AlreadyExists(
                    "another process has made something at the destination meanwhile", path=self.path,
                    hint="look what is there, and choose another destination",
                ) from None  # fmt: skip
        elif self._mode is Mode.SWAP:
            self._swap()
            return
        else:
            self._move_in()
        self._end(self.path)

    def _swap(self) -> None:
        """Exchange the new environment for the old one, and remove what is not kept."""
        if foreign := files_not_ours(self.path, self._changed):
            raise self._refused(foreign)  # made or changed while the new one was written
        try:
            gone = swap(self.root, self.path, self._keep, lambda: self._end(self.root))
        except BlockingIOError:
            raise IncompleteEnvironment(
                "another process is unpacking there", path=self.path, hint="wait for it to end"
            ) from None
        if gone is not None:
            with gone.marker:
                try:
                    remove_marked(gone.root)
                except KeyboardInterrupt as interrupt:
                    _in_background(lambda: remove_marked(gone.root), gone.root, interrupt)
                    raise

    def _end(self, root: str) -> None:
        self._finished = True
        os.unlink(os.path.join(root, INCOMPLETE))
        if self._lock is not None:
            self._lock.close()

    def _move_in(self) -> None:
        """Move the partial directory's entries into the destination, ``bin`` last: nothing can be started before."""
        self._moving = True
        names = sorted(
            os.path.relpath(os.path.join(folder, name), self.root)
            for folder, folders, files in os.walk(self.root)
            for name in [*files, *(f for f in folders if os.path.islink(os.path.join(folder, f)))]
        )
        own = [name for name in names if name != INCOMPLETE]
        if self._mode is Mode.ADD:
            self._check_free(own)
        folders: dict[str, os.stat_result] = {}  # those that are not there yet, parents first
        for folder, below, _ in os.walk(self.root):
            for name in sorted(below):
                source = os.path.join(folder, name)
                path = os.path.relpath(source, self.root)
                if not os.path.islink(source) and not os.path.isdir(os.path.join(self.path, path)):
                    folders[path] = os.stat(source)
        os.makedirs(os.path.join(self.path, ".fastpack"), exist_ok=True)
        inodes = [os.lstat(os.path.join(self.root, name)).st_ino for name in own]
        content = {"made": "added", "names": own, "inodes": inodes, "folders": list(folders)}
        with make_marker(self.path, content):
            for path, info in folders.items():
                os.chmod(os.path.join(self.root, path), info.st_mode & 0o777 | 0o700)
                if path != ".fastpack":
                    os.mkdir(os.path.join(self.path, path), 0o700)
            for name in sorted(own, key=lambda name: (name.startswith("bin/"), name)):
                try:
                    fs.rename_over_nothing(os.path.join(self.root, name), os.path.join(self.path, name))
                except FileExistsError:
                    raise AlreadyExists(
                        "a path of the archive is there since the archive was read", path=os.path.join(self.path, name),
                        hint="choose another destination",
                    ) from None  # fmt: skip
            for path, info in reversed(folders.items()):
                os.chmod(os.path.join(self.path, path), info.st_mode & 0o777)
                os.utime(os.path.join(self.path, path), ns=(info.st_mtime_ns, info.st_mtime_ns))
            emptied, self.root = self.root, self.path
            remove_marked(emptied)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._finished:
            return
        # What was moved in already is taken back before anybody can come and do the same.
        if not isinstance(value, KeyboardInterrupt) or self._moving:
            self._abandon()
            return
        _in_background(self._abandon, self.root, value)
        if self._lock is not None:
            self._lock.close()  # the other process still has it

    def _abandon(self) -> None:
        """Take back what was begun."""
        if self.root and self.root != self.path:
            if os.path.lexists(os.path.join(self.root, INCOMPLETE)):
                remove_marked(self.root)
            else:  # the disk was full before there was a marker
                fs.remove_tree(self.root)
        if self._lock is not None:
            self._lock.close()
        if self.root:
            _remove_debris(self.path)
        for parent in reversed(self._parents):
            try:
                os.rmdir(parent)
            except OSError:
                break


def _in_background(remove: Callable[[], None], root: str, interrupt: BaseException) -> None:
    """Removing gigabytes takes seconds, which nobody who pressed Ctrl-C wants to wait for."""
    try:
        if not detached(remove, _PATIENCE):
            interrupt.add_note(f"what was written is being removed in the background: {root}")
    except OSError:
        remove()


def _remove_debris(path: str) -> None:
    """Remove what killed runs left for this destination; refuse it while another process is writing there."""
    finish_swaps(path)
    for root in [
        *glob.glob(f"{glob.escape(stem(path))}.partial-{RANDOM}"),
        *glob.glob(os.path.join(glob.escape(path), f".fastpack-partial-{RANDOM}")),
    ]:
        if not remove_if_debris(root) and not os.path.lexists(os.path.join(root, INCOMPLETE)):
            _remove_unmarked(root, path)
    if not os.path.lexists(os.path.join(path, INCOMPLETE)):
        _remove_markers_to_be(path)
        return
    content = unlocked_marker(path)
    if content is None:
        raise IncompleteEnvironment("another process is unpacking there", path=path, hint="wait for it to end")
    if content.get("made") == "whole":
        remove_marked(path)
    elif content.get("made") == "added" and isinstance(names := content.get("names"), list):
        _remove_added(path, names, content.get("inodes"), content.get("folders"))
    else:
        raise IncompleteEnvironment(
            "a marker of an unfinished run that cannot be read", path=os.path.join(path, INCOMPLETE),
            hint="look what is in the directory, and remove it yourself",
        )  # fmt: skip


def _remove_unmarked(root: str, path: str) -> None:
    """Debris without a marker: nothing in it yet, or the environment that a swap took out of `path`."""
    try:
        with locked_directory(root):
            try:
                state = read_state(root)
            except ValueError:
                state = None
            if state is not None and state.get("target") == path:
                if not files_not_ours(root):
                    remove_environment(root)
                return
            _remove_markers_to_be(root)
            os.rmdir(root)
    except (OSError, UsageError):
        pass


def _remove_markers_to_be(root: str) -> None:
    """Markers that were killed before they had their name; the directory goes too if there is nothing else in it."""
    own = os.path.join(root, ".fastpack")
    for marker in glob.glob(os.path.join(glob.escape(own), "incomplete-" + RANDOM)):
        try:
            with open(marker, "rb") as file:
                if fs.lock(file):
                    os.unlink(marker)
        except OSError:
            pass
    try:
        os.rmdir(own)
    except OSError:
        pass


def _remove_added(root: str, names: list[object], inodes: object, folders: object) -> None:
    """Take back what a killed run had added to a directory: what it had named, and nothing else.

    Parameters
    ----------
    inodes : of the files named: what has another one was made by somebody else since.
    """
    numbers = inodes if isinstance(inodes, list) and len(inodes) == len(names) else [None] * len(names)
    made = [name for name in (folders if isinstance(folders, list) else []) if _is_path(name)]
    for name in made:
        full = os.path.join(root, name)
        if os.path.isdir(full) and not os.path.islink(full):
            os.chmod(full, 0o700)  # it may have had its strict mode already
    for name, number in zip(names, numbers, strict=True):
        if _is_path(name):
            full = os.path.join(root, str(name))
            try:
                if number is None or os.lstat(full).st_ino == number:
                    os.unlink(full)
            except (FileNotFoundError, NotADirectoryError):
                pass
    # The marker goes when all that it names is gone.
    os.unlink(os.path.join(root, INCOMPLETE))
    for name in reversed(made):
        try:
            os.rmdir(os.path.join(root, name))
        except OSError:
            pass


def _is_path(name: object) -> bool:
    return isinstance(name, str) and fs.check_relative(name) is None

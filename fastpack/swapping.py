"""Exchanging a new environment for the one in its place, and keeping those that were replaced.

Whatever a kill leaves is one of the two, whole, in its place; a note beside it says what was to become of the other.
"""

from __future__ import annotations

import contextlib
import glob
import itertools
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple

from fastpack import fs
from fastpack._place_py import INCOMPLETE, read_state
from fastpack.errors import AlreadyExists, IncompleteEnvironment
from fastpack.markers import (
    RANDOM,
    files_not_ours,
    inode,
    locked_directory,
    mark_as_debris,
    partial,
    remove_marked,
    stem,
    unlocked_marker,
)


def old_places(path: str, keep: int) -> list[str]:
    """Where environments that were swapped out are kept, the newest first."""
    return [f"{stem(path)}.old-{k}" for k in range(1, keep + 1)]


def check_places(path: str, keep: int) -> None:
    """Refuse what lies where replaced environments are kept and is none of these; and, in the one that would go, files
    that fastpack did not make.

    Raises
    ------
    AlreadyExists, IncompleteEnvironment, UsageError
    """
    places = old_places(path, keep)
    for place in filter(os.path.lexists, places):
        is_debris = not os.path.islink(place) and _is_debris(place)
        if not is_debris and not _was_kept(place, path):
            raise AlreadyExists(
                "where the replaced environment would be kept there is something else", path=place,
                hint="move it away, or keep none with --keep 0",
            )  # fmt: skip
        if os.path.ismount(place) or not os.access(os.path.join(place, ".fastpack"), os.W_OK | os.X_OK):
            raise AlreadyExists(
                "an environment that was kept is a mount point or may not be written, so it cannot be moved on",
                path=place, hint="move it away, or keep none with --keep 0",
            )  # fmt: skip
        if is_debris:
            continue
        if place == places[-1] and all(map(os.path.lexists, places)) and (foreign := files_not_ours(place, True)):
            raise AlreadyExists(
                f"the oldest environment that was kept would go, and has {len(foreign)} files that fastpack did not"
                f" make: {', '.join(foreign[:5])}{', …' if len(foreign) > 5 else ''}",
                path=place, hint="move them away, or keep more with --keep",
            )  # fmt: skip


def _was_kept(place: str, path: str) -> bool:
    """Whether an environment was once in the place of another one: it still says so."""
    if os.path.islink(place):
        return False
    try:
        state, now = read_state(place), read_state(path)
    except (OSError, ValueError):
        return False
    target = None if state is None else state.get("target")
    if target is None or now is None:
        return False
    return os.path.realpath(target) == os.path.realpath(path) or bool(target == now.get("target"))


def _is_debris(place: str) -> bool:
    """Whether an environment was being removed when that was killed; one that somebody is at, or that was added to
    other things, is refused."""
    if not os.path.lexists(os.path.join(place, INCOMPLETE)):
        return False
    marker = unlocked_marker(place)
    if marker is None or marker.get("made") != "whole":
        raise IncompleteEnvironment(
            "where the replaced environment would be kept another one is not finished", path=place,
            hint="wait for it to end, or look what is in it and move it away",
        )  # fmt: skip
    return True


class Gone(NamedTuple):
    """An environment that is to be removed: it is marked, and nobody else does it while the marker is open."""

    root: str
    marker: BinaryIO


def swap(new: str, path: str, keep: int, unmark: Callable[[], None]) -> Gone | None:
    """Exchange a new environment for the one at `path`; what is to be removed then.

    Parameters
    ----------
    keep : how many that were replaced stay.
    unmark : takes the marker out of the new one.

    Raises
    ------
    BlockingIOError : another process is at one of them.
    """
    with locked_directory(path), locked_directory(new), _note(new, path, keep):
        unmark()
        old = new
        try:
            fs.exchange(new, path)
        except OSError:  # a file system without exchange: for a moment there is none
            old = partial(path)
            os.rename(path, old)
            os.rename(new, path)
        return _set_aside(old, path, keep)


def _set_aside(old: str, path: str, keep: int) -> Gone | None:
    """Keep what was swapped out as the newest one; what is to be removed then."""
    if not keep:
        return Gone(old, mark_as_debris(old))
    places = old_places(path, keep)
    filled = list(itertools.takewhile(os.path.lexists, places))
    gone = None
    if len(filled) == keep:
        last = filled.pop()
        gone = Gone(partial(path), mark_as_debris(last))
        os.rename(last, gone.root)
    for place, following in reversed(list(zip(filled, places[1:], strict=False))):
        os.rename(place, following)
    os.rename(old, places[0])
    return gone


@contextmanager
def _note(new: str, old: str, keep: int) -> Iterator[None]:
    """Note, while two environments are exchanged, which is which and how many are kept: neither bears a marker."""
    path = f"{new}.swap"
    with open(path, "xb") as note:
        fs.lock(note)
        note.write(json.dumps({"inodes": [inode(new), inode(old)], "keep": keep}).encode("ascii"))
        note.flush()
        yield
    os.unlink(path)


def finish_swaps(path: str) -> None:
    """Bring to an end what a killed exchange left beside a destination, by what it had noted.

    Raises
    ------
    AlreadyExists, IncompleteEnvironment, UsageError : see `check_places`.
    Unreadable : it cannot be done.
    """
    for name in glob.glob(f"{glob.escape(stem(path))}.partial-{RANDOM}.swap"):
        try:
            with open(name, "rb", opener=_not_through_a_link) as note:
                # Another user's says nothing of what is to be removed here.
                if os.fstat(note.fileno()).st_uid == os.geteuid() and fs.lock(note):
                    beside = glob.glob(f"{glob.escape(stem(path))}.partial-{RANDOM}")
                    _finish(path, _read(note.read()), [root for root in beside if not os.path.islink(root)])
                    os.unlink(name)
        except FileNotFoundError:  # another process was faster
            pass
        except BlockingIOError:
            raise IncompleteEnvironment(
                "another process is at an environment that was replaced", path=path, hint="wait for it to end"
            ) from None
        except OSError as error:
            if _is_mine(name):  # what was replaced must not be lost
                raise fs.explain_os_error(error, error.filename or name) from None


def _is_mine(path: str) -> bool:
    try:
        return os.lstat(path).st_uid == os.geteuid()
    except OSError:
        return False


def _not_through_a_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _read(data: bytes) -> tuple[list[Any], int]:
    """What a note says: the inodes of the new environment and of the old one, if it was written, and how many stay."""
    try:
        table = json.loads(data)
        new, old = table["inodes"]
        return [new, old], int(table.get("keep", 0))
    except (AttributeError, LookupError, TypeError, ValueError):
        return [], 0


def _finish(path: str, noted: tuple[list[Any], int], beside: list[str]) -> None:
    inodes, keep = noted
    found = {tuple(inode(root)): root for root in beside if inode(root) in inodes}
    if not os.path.lexists(path) and found:  # the kill came between two renames
        back = next(found.pop(tuple(number)) for number in inodes if tuple(number) in found)
        os.rename(back, path)
    if not os.path.lexists(path) or inode(path) not in inodes:
        return
    for number, root in found.items():
        with locked_directory(root):
            is_old = list(number) == inodes[1]
            if is_old:
                check_places(path, keep)
            gone = _set_aside(root, path, keep if is_old else 0)
        if gone is not None:
            with gone.marker, contextlib.suppress(OSError):  # the next run tries again
                remove_marked(gone.root)

"""The marker of what is not finished, and what may be removed because of it.

``.fastpack/incomplete`` stands, locked, in an environment that is being written or removed. Whatever bears it and is
not locked is debris of a killed run.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import BinaryIO, NamedTuple

from fastpack import fs
from fastpack._place_py import EPOCH_2000, INCOMPLETE, RELOCATIONS, SPAN, STATE, read_regular, read_relocations
from fastpack.errors import UsageError
from fastpack.listing import walk
from fastpack.model import DiskFile, Kind


def stem(path: str) -> str:
    """A destination's path, its last part short enough to take a suffix (names end at 255 bytes)."""
    folder, name = os.path.split(path)
    return os.path.join(folder, os.fsdecode(os.fsencode(name)[:220]))


def partial(path: str) -> str:
    """A name beside a destination that is debris as soon as nobody is at it."""
    return f"{stem(path)}.partial-{secrets.token_hex(4)}"


#: What `token_hex(4)` gives, as a pattern.
RANDOM = "[0-9a-f]" * 8


def make_marker(root: str, content: Mapping[str, object]) -> BinaryIO:
    """Mark a directory as unfinished, at once and locked. The marker names the directory it was made for by its inode:
    one that came there in another way (in an archive, by a copy) allows nobody to remove anything."""
    path = os.path.join(root, INCOMPLETE)
    temporary = f"{path}-{secrets.token_hex(4)}"
    marker = open(temporary, "xb")  # noqa: SIM115 (stays open as long as its lock is held)
    try:
        fcntl.flock(marker.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        marker.write(json.dumps({**content, "inode": inode(root)}).encode("ascii"))
        marker.flush()
        os.rename(temporary, path)
    except BaseException:
        try:
            marker.close()  # which may find the disk full once more
        except OSError:
            pass
        os.unlink(temporary)
        raise
    return marker


def inode(path: str) -> list[int]:
    info = os.stat(path)
    return [info.st_dev, info.st_ino]


def unlocked_marker(root: str) -> dict[str, object] | None:
    """The marker of a killed run; None if there is none, or a living process holds it."""
    try:
        with open(os.path.join(root, INCOMPLETE), "rb") as marker:
            if not fs.lock(marker):
                return None
            try:
                content = json.loads(marker.read() or b"{}")
            except ValueError:
                content = {}
            if not isinstance(content, dict) or content.get("inode") != inode(root):
                content = {}
            return content
    except OSError:
        return None


@contextmanager
def locked_directory(path: str) -> Iterator[None]:
    """Hold a directory's lock; OSError if another process has it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def remove_environment(root: str) -> None:
    """Remove an environment that was taken out of its place; marked first, so that a kill leaves it recognisable."""
    with mark_as_debris(root):
        remove_marked(root)


def mark_as_debris(root: str) -> BinaryIO:
    """Whoever comes next removes it, as soon as the marker is closed."""
    return make_marker(root, {"made": "whole"})


def remove_marked(root: str) -> None:
    """Remove a directory that bears our marker, the marker last: a kill on the way leaves it to be recognised again."""
    if os.path.islink(root):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), root)
    own = os.path.join(root, ".fastpack")
    for folder in (root, own):
        for name in os.listdir(folder):
            if name != ".fastpack" and os.path.join(folder, name) != os.path.join(root, INCOMPLETE):
                fs.remove_tree(os.path.join(folder, name))
    os.unlink(os.path.join(root, INCOMPLETE))
    os.rmdir(own)
    os.rmdir(root)


def remove_partials(path: str) -> None:
    """Remove what killed runs left beside a destination, where it is marked."""
    for root in glob.glob(f"{glob.escape(stem(path))}.partial-{RANDOM}"):
        remove_if_debris(root)


def remove_if_debris(root: str) -> bool:
    """Remove a directory that a killed run marked, and whether it is one; another user's is let be."""
    marker = unlocked_marker(root)
    if marker is None or marker.get("made") != "whole":
        return False
    try:
        remove_marked(root)
    except OSError:  # another user's, or another process is removing it
        pass
    return True


def files_not_ours(root: str, changed: bool = False) -> list[str]:
    """Files of an unpacked environment that are not what was unpacked; what Python compiled does not count.

    Parameters
    ----------
    changed : what was unpacked and changed since does not count either.
    """
    known: dict[str, _Known] = {}
    others: dict[str, str] = {}  # further names
    try:
        for line in read_regular(os.path.join(root, ".fastpack", "manifest")).splitlines():
            row = json.loads(line)
            if "path" not in row or row["kind"] == Kind.DIRECTORY:
                continue
            path, kind = row["path"], row["kind"]
            if changed:
                known[path] = _Known()
            elif kind == Kind.LINK:
                known[path] = _Known(Kind.LINK, target=row["target"])
            elif kind == Kind.HARDLINK:
                others[path] = row["target"]
            else:
                known[path] = _Known(Kind.FILE, row["size"], row["mtime"])
        relocated = {file.path for file in read_relocations(read_regular(os.path.join(root, RELOCATIONS)))}
        if not changed:  # their size and time follow from the prefix
            known.update(dict.fromkeys(relocated, _Known(Kind.FILE)))
        known.update({path: known[target] for path, target in others.items()})
        known.update(dict.fromkeys((INCOMPLETE, STATE, RELOCATIONS, ".fastpack/manifest"), _Known()))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"the environment there has no manifest that can be read ({error})", path=root) from None
    return sorted(found.path for found in walk(root) if found.kind is not Kind.DIRECTORY and not _is_ours(found, known))


class _Known(NamedTuple):
    """What is known of a file that was unpacked: None is for what is not."""

    kind: Kind | None = None
    n_bytes: int | None = None
    mtime: int | None = None
    target: str = ""

    def is_like(self, file: DiskFile) -> bool:
        """Whether a file is as it was unpacked, by what the system says of it."""
        if self.kind is None:
            return True
        if self.kind is not file.kind or self.target != file.target:
            return False
        if self.kind is Kind.LINK:
            return True
        if self.mtime is None:  # of what was placed, a function of its bytes
            return file.mtime_ns % 2_000_000_000 == 0 and EPOCH_2000 <= file.mtime_seconds < EPOCH_2000 + 2 * SPAN
        return (self.n_bytes, self.mtime) == (file.n_bytes, file.mtime_seconds)


def _is_ours(file: DiskFile, known: dict[str, _Known]) -> bool:
    """Whether a file is one that was unpacked, as it was unpacked, or what Python compiled of one."""
    if file.path.startswith(INCOMPLETE + "-"):  # a marker that was killed before it had its name
        return True
    if file.path in known and known[file.path].is_like(file):
        return True
    return fs.is_compiled(file.path)

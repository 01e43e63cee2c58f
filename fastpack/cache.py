"""Compressed frames of all environments of a machine, in a directory: what any of them had is not compressed again.

A frame is a file of its own, named by its digest and by how it was compressed, with the BLAKE3 of its bytes before
them. Files appear by a rename and are never changed, so any number of packs may use one directory, and a kill leaves at
most a temporary file, which a later trim removes. What was used last stays longest.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from fastpack import digest, fs
from fastpack.codec import Codec
from fastpack.errors import Unreadable, UsageError
from fastpack.model import CacheReport, Warned

#: Bytes that a cache may have if nothing else is said.
DEFAULT_BYTES = 20_000_000_000
#: What is ours in the directory: everything below it, and nothing else.
_FOLDER = "fastpack-frames-0"
_NAME = re.compile(r"[0-9a-f]{64}-[0-9a-f]{16}")
_TEMPORARY = re.compile(r"tmp-[0-9a-f]{16}")
#: Seconds after which a temporary file is what a killed pack left: a frame is written in far less.
_ABANDONED = 3600


class Entry(NamedTuple):
    """A frame in the cache. `used` is when it was used last, in nanoseconds."""

    path: str
    n_bytes: int
    used: int


class Cache:
    """Frames for one way of compressing. May be used by several threads.

    Parameters
    ----------
    root : a directory; made if it is not there.
    limit : bytes that `trim` leaves.

    Raises
    ------
    Unreadable : it cannot be made or written.
    """

    def __init__(self, root: str, limit: int, codec: Codec, level: int) -> None:
        self.root = root
        self._folder = os.path.join(root, _FOLDER)
        self._limit = limit
        made_by = json.dumps([codec.name, level, codec.versions()], sort_keys=True).encode()
        self._suffix = digest.blake(made_by).hex()[:16]
        self._warnings: dict[str, Warned] = {}
        self._lock = threading.Lock()
        try:
            os.makedirs(self._folder, mode=0o700, exist_ok=True)
        except OSError as error:
            raise Unreadable(f"the cache cannot be made ({error.strerror})", path=root) from None

    def packed(self, frame_digest: bytes) -> tuple[memoryview, bytes] | None:
        """A frame's compressed bytes and their BLAKE3; None if they are not there, or not what was put in."""
        path = self._path(frame_digest)
        try:
            with open(path, "rb") as file:
                data = memoryview(file.read())
            if digest.blake(data[digest.N_BYTES :]) != data[: digest.N_BYTES]:
                text = f"a frame of the cache is damaged: {frame_digest.hex()[:16]} was compressed anew"
                self._warn(Warned("rotten-cache", self.root, text))
                os.unlink(path)
                return None
            os.utime(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._warn(Warned("cache-failed", self.root, f"the cache cannot be read ({error.strerror})"))
            return None
        return data[digest.N_BYTES :], bytes(data[: digest.N_BYTES])

    def keep(self, frame_digest: bytes, packed: bytes | memoryview, packed_digest: bytes) -> None:
        """Put a frame in, with the BLAKE3 of its compressed bytes. What hinders that is a warning: the pack goes on."""
        path = self._path(frame_digest)
        temporary = os.path.join(self._folder, f"tmp-{secrets.token_hex(8)}")
        try:
            fs.put(path, temporary, [packed_digest, packed])
        except OSError as error:
            what = "is full" if error.errno == errno.ENOSPC else f"cannot be written ({error.strerror})"
            self._warn(Warned("cache-failed", self.root, f"the cache {what}"))

    def trim(self) -> None:
        """Remove what was used longest ago until the rest fits the limit."""
        try:
            _trim(self._folder, self._limit)
        except OSError as error:
            self._warn(Warned("cache-failed", self.root, f"the cache cannot be trimmed ({error.strerror})"))

    def warnings(self) -> list[Warned]:
        """What is to be said of it after its use."""
        return list(self._warnings.values())

    def _warn(self, warned: Warned) -> None:
        with self._lock:
            self._warnings[warned.message] = warned

    def _path(self, frame_digest: bytes) -> str:
        name = frame_digest.hex()
        return os.path.join(self._folder, name[:2], f"{name}-{self._suffix}")


def entries(folder: str) -> Iterator[Entry]:
    """The frames below a cache's own folder, whatever compressed them."""
    for shelf in sorted(_listed(folder)):
        for name in sorted(_listed(os.path.join(folder, shelf))) if len(shelf) == 2 else ():
            path = os.path.join(folder, shelf, name)
            if _NAME.fullmatch(name):
                try:
                    info = os.lstat(path)
                except FileNotFoundError:
                    continue  # another process trims
                yield Entry(path, info.st_size, info.st_mtime_ns)


def _listed(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _trim(folder: str, limit: int) -> tuple[int, int]:
    """(frames, bytes) that were removed."""
    for name in _listed(folder):
        path = os.path.join(folder, name)
        try:
            if _TEMPORARY.fullmatch(name) and time.time() - os.lstat(path).st_mtime > _ABANDONED:
                os.unlink(path)
        except FileNotFoundError:
            pass
    found = sorted(entries(folder), key=lambda entry: entry.used)
    excess = sum(entry.n_bytes for entry in found) - limit
    n_frames = n_bytes = 0
    for entry in found:
        if n_bytes >= excess:
            break
        try:
            os.unlink(entry.path)
        except FileNotFoundError:
            continue
        n_frames, n_bytes = n_frames + 1, n_bytes + entry.n_bytes
    return n_frames, n_bytes


def info(root: str) -> CacheReport:
    """How much there is in a cache."""
    with _explained(root):
        return _report(root, 0, 0, ())


def clean(root: str, limit: int) -> CacheReport:
    """Remove frames, those that were used longest ago first, until at most `limit` bytes are left."""
    folder = _existing(root)
    with _explained(root):
        return _report(root, *_trim(folder, limit), ())


def verify(root: str) -> CacheReport:
    """Hold every frame against its own digest; those that are damaged are removed and reported."""
    rotten: list[str] = []
    n_bytes = 0
    with _explained(root):
        for entry in entries(_existing(root)):
            try:
                with open(entry.path, "rb") as file:
                    data = memoryview(file.read())
                if digest.blake(data[digest.N_BYTES :]) != data[: digest.N_BYTES]:
                    os.unlink(entry.path)
                    rotten.append(os.path.basename(entry.path))
                    n_bytes += entry.n_bytes
            except FileNotFoundError:
                continue
        return _report(root, len(rotten), n_bytes, tuple(rotten))


@contextmanager
def _explained(root: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise fs.explain_os_error(error, error.filename or root) from None


def _existing(root: str) -> str:
    if not os.path.isdir(root):
        raise UsageError("no such cache", path=root, hint="give the directory that --cache named")
    return os.path.join(root, _FOLDER)


def _report(root: str, n_removed: int, removed_bytes: int, rotten: tuple[str, ...]) -> CacheReport:
    found = list(entries(_existing(root)))
    return CacheReport(root, len(found), sum(entry.n_bytes for entry in found), n_removed, removed_bytes, rotten)


def parse_size(text: str) -> int:
    """Bytes from a number with k, M, G or T behind it (decimal).

    Raises
    ------
    UsageError
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kMGT]?)B?", text.strip())
    if match is None:
        raise UsageError("that is no size", expected="a number of bytes, with k, M, G or T", found=text)
    return int(float(match[1]) * {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}[match[2]])

"""What earlier packs learnt of an environment's files, by what the system says of these: so they are not read again.

A row counts while size, mtime, ctime and inode are what they were. ctime cannot be set by a program, so bytes that
changed under an unchanged size and a restored mtime are noticed. What had changed less than two seconds before it was
looked at is not kept: a later change may fall into the same tick of the file system's clock. (So does git's index.)

The table lies in the user's cache directory and never in an archive. If it is gone or broken, everything is read.
"""

from __future__ import annotations

import os
import secrets
import socket
import struct
import time
from typing import NamedTuple

from fastpack import digest
from fastpack.model import DiskFile

#: Nanoseconds for which a file must have been left alone.
SETTLED = 2_000_000_000
#: Tables that are kept, those used last: one for each environment.
_KEPT = 20
_MAGIC = b"fpstat1\n"
#: Bytes of what the system says of a file, and of a row's own numbers: mtime in the archive, whether it names a prefix,
#: bytes of its digests.
_STATED, _OWN = struct.Struct("<5q"), struct.Struct("<3q")
#: Bytes of the digest that stands for how a file is brought into archive form.
_KEY = 16
AS_ON_DISK = bytes(_KEY)


class Known(NamedTuple):
    """What the archive needs to know of a file that it has already."""

    mtime: int  # in the archive, in seconds
    naming: bool  # a .pyc that names the source prefix
    slices: bytes  # the digests of its slices in archive form, one behind the other


class _Row(NamedTuple):
    stated: bytes  # what the system said of the file
    key: bytes  # how it is brought into archive form
    known: Known


class StatTable:
    """See `open_table`. May be used by several threads."""

    def __init__(self, path: str | None, rows: dict[str, _Row]) -> None:
        self._path = path
        self._rows = rows
        self._learnt: dict[str, tuple[DiskFile, bytes, Known]] = {}
        self._settled_before = time.time_ns() - SETTLED

    def known(self, file: DiskFile, key: bytes) -> Known | None:
        """What is known of a file; None if it may have changed, or is brought into archive form in another way."""
        row = self._rows.get(file.path)
        if row is None or row.key != key or row.stated != _STATED.pack(*_stated(file)):
            return None
        self._learnt[file.path] = file, key, row.known
        return row.known

    def learn(self, file: DiskFile, key: bytes, known: Known) -> None:
        """Remember what a file had when it was read, if it has been left alone for long enough."""
        if file.mtime_ns < self._settled_before > file.ctime_ns:
            self._learnt[file.path] = file, key, known

    def save(self) -> None:
        """Keep what was learnt for the next pack. A directory that cannot be written is no reason to fail."""
        if self._path is None:
            return
        folder = os.path.dirname(self._path)
        temporary = os.path.join(folder, f"tmp-{secrets.token_hex(8)}")
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
            try:
                with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
                    file.write(_to_bytes(self._learnt))
                os.rename(temporary, self._path)
            except BaseException:
                if os.path.lexists(temporary):
                    os.unlink(temporary)
                raise
            _forget_others(folder)
        except OSError:
            pass


def open_table(prefix: str, trusted: bool = True) -> StatTable:
    """The table of the environment at a prefix on this host.

    Parameters
    ----------
    trusted : whether what it says counts; it is written anew in any case.
    """
    home = os.environ.get("XDG_CACHE_HOME", "")
    if not home.startswith("/"):
        home = os.path.join(os.path.expanduser("~"), ".cache")
    if not home.startswith("/"):
        return StatTable(None, {})
    name = digest.blake(os.fsencode(f"{socket.gethostname()}\0{os.path.realpath(prefix)}")).hex()[:32]
    path = os.path.join(home, "fastpack", "stat", name)
    rows: dict[str, _Row] = {}
    if trusted:
        try:
            with open(path, "rb") as file:
                rows = _from_bytes(file.read())
        except (OSError, ValueError, struct.error):
            pass  # none, or a broken one
    return StatTable(path, rows)


def _stated(file: DiskFile) -> tuple[int, int, int, int, int]:
    return file.n_bytes, file.mtime_ns, file.ctime_ns, file.inode, file.device


def _to_bytes(rows: dict[str, tuple[DiskFile, bytes, Known]]) -> bytes:
    """Magic, BLAKE3 of the rest, lengths; then columns: stated, keys, own numbers, paths (each with a NUL), digests."""
    found = rows.values()
    stated = [number for file, _, _ in found for number in _stated(file)]
    own = [number for _, _, known in found for number in (known.mtime, known.naming, len(known.slices))]
    columns = [
        struct.pack(f"<{len(stated)}q", *stated),
        b"".join([key for _, key, _ in found]),
        struct.pack(f"<{len(own)}q", *own),
        os.fsencode("\0".join([*rows, ""])),
        b"".join([known.slices for _, _, known in found]),
    ]
    rest = b"".join([struct.pack("<5Q", *map(len, columns)), *columns])
    return _MAGIC + digest.blake(rest) + rest


def _from_bytes(data: bytes) -> dict[str, _Row]:
    view = memoryview(data)
    start = len(_MAGIC) + digest.N_BYTES
    if data[: len(_MAGIC)] != _MAGIC or digest.blake(view[start:]) != data[len(_MAGIC) : start]:
        raise ValueError("no such table")
    columns = []
    lengths = struct.unpack_from("<5Q", data, start)
    start += 40
    for length in lengths:
        columns.append(data[start : start + length])
        start += length
    stated, keys, own, paths, slices = columns
    rows = {}
    at = 0
    numbers = zip(os.fsdecode(paths).split("\0"), _OWN.iter_unpack(own), strict=False)
    for k, (path, (mtime, naming, length)) in enumerate(numbers):
        known = Known(mtime, bool(naming), slices[at : at + length])
        rows[path] = _Row(stated[_STATED.size * k : _STATED.size * (k + 1)], keys[_KEY * k : _KEY * (k + 1)], known)
        at += length
    return rows


def _forget_others(folder: str) -> None:
    """Remove tables that were not used for longest, and what killed packs left."""
    found = []
    for entry in os.scandir(folder):
        try:
            found.append((entry.stat().st_mtime, entry.path))
        except FileNotFoundError:
            continue
    for _, path in sorted(found)[:-_KEPT]:
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass

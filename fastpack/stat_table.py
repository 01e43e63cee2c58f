"""What is known of an environment's files by what the system says of these: so they are not read again.

What was found out counts while size, mtime, ctime and inode are what they were. ctime cannot be set by a program, so
bytes that changed under an unchanged size and a restored mtime are noticed.

- Of a prefix that was packed: a row for each file. What had changed less than two seconds before it was looked at is
  not kept: a later change may fall into the same tick of the file system's clock. (So does git's index.)
- Of an environment that was unpacked: a digest for each frame of the archive, of what the system says of its files.

If such a table is gone or broken, everything is read.
"""

from __future__ import annotations

import itertools
import os
import struct
import sys
import time
from array import array
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from fastpack import digest, hostmemory
from fastpack._batch_py import LISTED, numbers_of
from fastpack._place_py import read_regular
from fastpack.native import batch
from fastpack.parallel import ordered_map

_MAGIC = b"fpstat2\n"
#: What a file has to have still.
STATED = ("n_bytes", "mtime_ns", "ctime_ns", "inode", "device")
#: Bytes of that.
_STATED = 8 * len(STATED)
#: Where the device stands in that.
_DEVICE = 8 * STATED.index("device")
#: Of each column.
_LENGTHS = struct.Struct("<7Q")
#: Bytes of the digest that stands for how a file is brought into archive form.
_KEY = 16
AS_ON_DISK = bytes(_KEY)


class Known(NamedTuple):
    """What the archive needs to know of a file that it has already."""

    mtime: int  # in the archive, in seconds
    naming: bool  # a .pyc that names the source prefix
    slices: bytes  # the digests of its slices in archive form, one behind the other


class _Learnt(NamedTuple):
    """What was learnt of some files: columns as they are kept."""

    stated: bytes  # what the system said of each
    keys: bytes
    mtimes: bytes
    naming: bytes
    lengths: bytes  # of `slices`, in bytes
    paths: bytes  # each with a NUL
    slices: bytes


class _Kept:
    """What an earlier pack learnt: rows are made when somebody asks for them."""

    def __init__(self, columns: _Learnt) -> None:
        self._columns = columns
        self._mtimes = array("q", columns.mtimes)
        self._ends = list(itertools.accumulate(array("q", columns.lengths), initial=0))
        self.paths = os.fsdecode(columns.paths).split("\0")[:-1]
        self.index = dict(zip(self.paths, itertools.count()))  # the last one of a path counts
        number = len(self.paths)
        lengths = (len(columns.stated), len(columns.keys), len(self._mtimes), len(columns.naming), len(self._ends) - 1)
        if lengths != (_STATED * number, _KEY * number, number, number, number) or self._ends[-1] != len(
            columns.slices
        ):
            raise ValueError("columns of different lengths")

    def stated(self, row: int) -> bytes:
        """What the system said of the file."""
        return self._columns.stated[_STATED * row : _STATED * (row + 1)]

    def key(self, row: int) -> bytes:
        """How it is brought into archive form."""
        return self._columns.keys[_KEY * row : _KEY * (row + 1)]

    def known(self, row: int) -> Known:
        """What was learnt of it."""
        slices = self._columns.slices[self._ends[row] : self._ends[row + 1]]
        return Known(self._mtimes[row], bool(self._columns.naming[row]), slices)


_NOTHING = _Learnt(*[b""] * len(_Learnt._fields))


class StatTable:
    """See `open_table`. May be used by several threads.

    Parameters
    ----------
    device : of the files that are known: as `stated` has it.
    """

    def __init__(self, path: str | None, kept: _Kept, device: bytes) -> None:
        self._path = path
        self._kept = kept
        self._device = device
        self._learnt: list[_Learnt] = []
        self._found: set[int] = set()
        self._settled_before = time.time_ns() - hostmemory.SETTLED

    def known(self, path: str, stated: bytes, key: bytes) -> Known | None:
        """What is known of a file; None if it may have changed, or is brought into archive form in another way.

        Parameters
        ----------
        stated : what the system says of it: numbers of 64 bits, see `STATED`.
        """
        row = self._kept.index.get(path)
        if (
            row is None
            or stated[_DEVICE:] != self._device
            or self._kept.stated(row) != stated
            or self._kept.key(row) != key
        ):
            return None
        self._found.add(row)
        return self._kept.known(row)

    def learn(
        self, paths: Sequence[str], stated: bytes, changed: Sequence[int], keys: Sequence[bytes | None],
        mtimes: Sequence[int], naming: Sequence[bool], slices: Sequence[bytes],
    ) -> None:  # fmt: skip
        """Remember what files had when they were read: those that have been left alone for long enough, and whose way
        into archive form is known.

        Parameters
        ----------
        stated : what the system says of each, see `known`.
        changed : when each was changed, in nanoseconds: the later one of mtime and ctime.
        """
        columns: list[Any] = [paths, keys, mtimes, naming, slices]
        elsewhere = set(array("q", stated)[STATED.index("device") :: len(STATED)]) - set(array("q", self._device))
        if elsewhere or None in keys or max(changed, default=0) >= self._settled_before:
            before, device, rows = self._settled_before, self._device, list(_pieces(stated, _STATED))
            kept = [
                key is not None and time < before and row[_DEVICE:] == device
                for key, time, row in zip(keys, changed, rows, strict=True)
            ]
            columns = [list(itertools.compress(column, kept)) for column in columns]
            stated = b"".join(itertools.compress(rows, kept))
        self._learnt.append(_as_learnt(stated, *columns))

    def save(self) -> None:
        """Keep what was learnt for the next pack. A directory that cannot be written is no reason to fail."""
        if self._path is None:
            return
        kept, rows = self._kept, sorted(self._found)
        if rows and len(rows) == len(kept.paths) and not self._learnt:
            hostmemory.touch(self._path)  # nothing was learnt, nothing is to be forgotten
            return
        known = zip(*map(kept.known, rows), strict=True) if rows else ((),) * 3
        paths = [kept.paths[row] for row in rows]
        found = _as_learnt(b"".join(map(kept.stated, rows)), paths, list(map(kept.key, rows)), *known)
        hostmemory.keep(self._path, _to_bytes([found, *self._learnt]))


def open_table(prefix: str, trusted: bool = True) -> StatTable:
    """The table of the environment at a prefix on this host.

    Parameters
    ----------
    trusted : whether what it says counts; it is written anew in any case.
    """
    path = hostmemory.place("stat", prefix)
    trusted = trusted and hostmemory.tells_changes(prefix)
    kept = _Kept(_NOTHING)
    if path is not None and trusted:
        try:
            kept = _Kept(_from_bytes(read_regular(path)))
        except (OSError, ValueError, struct.error):
            pass  # none, or a broken one
    return StatTable(path, kept, _device_of(prefix))


def _device_of(path: str) -> bytes:
    """The last column of `STATED` for a path: another file system inside of an environment may not tell of changes."""
    return array("q", numbers_of(os.stat(path)))[LISTED.index("device")].to_bytes(8, sys.byteorder, signed=True)


def _as_learnt(
    stated: bytes, paths: Sequence[str], keys: Sequence[bytes], mtimes: Sequence[int], naming: Sequence[bool],
    slices: Sequence[bytes],
) -> _Learnt:  # fmt: skip
    return _Learnt(
        stated, b"".join(keys), array("q", mtimes).tobytes(), bytes(naming), array("q", map(len, slices)).tobytes(),
        os.fsencode("\0".join([*paths, ""])), b"".join(slices),
    )  # fmt: skip


def _to_bytes(learnt: Sequence[_Learnt]) -> list[bytes]:
    """Magic, BLAKE3 of the rest, lengths of columns, and these. Where a path is there twice, the last one counts."""
    columns = list(zip(*learnt, strict=True))
    parts = [_LENGTHS.pack(*(sum(map(len, pieces)) for pieces in columns)), *itertools.chain.from_iterable(columns)]
    hasher = digest.hasher()
    for part in parts:
        hasher.update(part)
    return [_MAGIC, hasher.digest(), *parts]


def _pieces(data: bytes, n_bytes: int) -> Iterator[bytes]:
    return (data[at : at + n_bytes] for at in range(0, len(data), n_bytes))


def _from_bytes(data: bytes) -> _Learnt:
    view = memoryview(data)
    start = len(_MAGIC) + digest.N_BYTES
    if data[: len(_MAGIC)] != _MAGIC or digest.blake(view[start:]) != data[len(_MAGIC) : start]:
        raise ValueError("no such table")
    columns = []
    start += _LENGTHS.size
    for length in _LENGTHS.unpack_from(data, start - _LENGTHS.size):
        columns.append(data[start : start + length])
        start += length
    return _Learnt(*columns)


# --- an unpacked environment ------------------------------------------------------------------------------------------

_FRAMES_MAGIC = b"fpseen1\n"
#: Nanoseconds between a file's last change and its environment's appearance: more than a tick of the kernel's clock.
_TICK = 20_000_000


class FrameFiles(NamedTuple):
    """The files of a frame: their paths, and where in the first one it begins."""

    paths: Sequence[str]
    start: int


def remember_frames(root: str, destination: str, archive_id: str, frames: Sequence[FrameFiles], threads: int) -> None:
    """Remember what the system says of an environment's files right before it appears, frame by frame.

    Where the file system counts in whole seconds, or does not tell of every change, nothing is remembered.

    Parameters
    ----------
    root, destination : where the environment lies, and where it will.
    """
    path = hostmemory.place("unpacked", destination)
    if path is None or not hostmemory.tells_changes(root):
        return
    seen: list[bytes] = []
    newest, fraction = 0, False
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        stats = ordered_map(lambda frame: batch.stat_files(folder, list(frame.paths)), frames, threads)
        for frame, rows in zip(frames, stats, strict=True):
            if 0 in rows[_MODE :: len(LISTED)]:  # a file that was left out: nothing is known of the frame
                seen.append(bytes(_KEY))
                continue
            times = rows[_CTIME :: len(LISTED)]
            newest = max(newest, max(times, default=0))
            fraction = fraction or any(ctime % 1_000_000_000 for ctime in times)
            seen.append(_name_of(frame, rows))
    finally:
        os.close(folder)
    wait = newest + _TICK - time.time_ns()
    if not fraction or wait > hostmemory.SETTLED:
        return
    time.sleep(max(0, wait) / 1e9)
    rest = b"".join([bytes.fromhex(archive_id), *seen])
    hostmemory.keep(path, [_FRAMES_MAGIC, digest.blake(rest), rest])


class SeenFrames:
    """What `remember_frames` remembered of an environment, if it is there."""

    def __init__(self, root: str, archive_id: str) -> None:
        self._seen = b""
        path = hostmemory.place("unpacked", root)
        start = len(_FRAMES_MAGIC) + digest.N_BYTES
        try:
            data = b"" if path is None else read_regular(path)
        except OSError:
            return
        rest = data[start:]
        if data[:start] == _FRAMES_MAGIC + digest.blake(rest) and rest.startswith(bytes.fromhex(archive_id)):
            self._seen = rest[digest.N_BYTES :]

    def untouched(self, index: int, frame: FrameFiles, rows: array[int]) -> bool:
        """Whether nobody has touched a frame's files since.

        Parameters
        ----------
        rows : what the system says of them now (`batch.stat_files`).
        """
        name = self._seen[_KEY * index : _KEY * (index + 1)]
        return len(name) == _KEY and name == _name_of(frame, rows)


_MODE, _CTIME = LISTED.index("mode"), LISTED.index("ctime_ns")


def _name_of(frame: FrameFiles, rows: array[int]) -> bytes:
    parts = [struct.pack("<q", frame.start), rows.tobytes(), os.fsencode("\0".join(frame.paths))]
    return digest.blake(b"".join(parts))[:_KEY]

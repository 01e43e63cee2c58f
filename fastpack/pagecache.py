"""Large files past the page cache, where a page of it costs more than the disk.

A page that the system did not have in use is a fresh one, and on a virtual machine the host has to find it: 3 to 7 s
for a GB where this was measured, 0.3 s where pages come back. So what a large write leaves behind it is given back:
3 GB took 9.0 s to write with fresh pages and 1.0 s so (alternating, twice). Elsewhere, and for small files, the cache
is where whoever starts the environment next looks for it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastpack.native import batch

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

#: CPU seconds for a byte, above which pages are taken to be fresh ones: a write into pages in use takes a third of it.
SLOW = 1e-9
#: Smaller pieces say nothing, and nothing is done for them.
LARGE = 1 << 20
#: How far behind a write pages are given back: the disk must have them by then. It is not waited for.
BEHIND = 64 << 20

_WRITE = 2  # SYNC_FILE_RANGE_WRITE, linux/fs.h
_sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None)


#: What copies of parts of files are cut at, so that a file system may share their blocks.
BLOCK = 4096


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an open file, in bytes. `data` is what stands there, where it was read: else it is copied unread."""

    descriptor: int
    offset: int
    n_bytes: int
    data: memoryview | None = None

    def __len__(self) -> int:
        return self.n_bytes

    def read(self) -> memoryview:
        """The bytes themselves, for an output that they cannot be copied to."""
        data = read(self.descriptor, self.n_bytes, self.offset) if self.data is None else self.data
        if len(data) != self.n_bytes:
            raise OSError(errno.EIO, _SHORTER)
        return data


_SHORTER = "the file to copy from became shorter"


def _copy(source: int, target: int, n_bytes: int, source_at: int, target_at: int) -> int:
    try:
        return os.copy_file_range(source, target, n_bytes, source_at, target_at)
    except (AttributeError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_COPY:
            raise
    return os.pwrite(target, os.pread(source, min(n_bytes, LARGE), source_at), target_at)


#: Another file system, or a kernel that does not know it.
_NO_COPY = (errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM)


class Writer:
    """Writes pieces of large files, each file's in order; may be used by several threads."""

    def __init__(self) -> None:
        self._gives_back = False

    def write(self, descriptor: int, data: Buffer, offset: int) -> None:
        """Write all of `data` at an offset."""
        view = memoryview(data)
        start, stop = offset, offset + len(view)
        before = time.thread_time()
        while view:
            n_written = os.pwrite(descriptor, view, offset)
            view, offset = view[n_written:], offset + n_written
        self._written(descriptor, start, stop, time.thread_time() - before)

    def copy(self, descriptor: int, piece: Piece, offset: int) -> None:
        """Write what stands in another file, in the kernel; shared where the file system can (XFS, Btrfs).

        Blocks are shared only as wholes, and only where they lie alike in both files: the ends are copied.
        """
        head = tail = 0
        if (piece.offset - offset) % BLOCK == 0 and piece.n_bytes >= 2 * BLOCK:
            head = -offset % BLOCK
            tail = (offset + piece.n_bytes) % BLOCK
        for start, stop in ((0, head), (head, piece.n_bytes - tail), (piece.n_bytes - tail, piece.n_bytes)):
            at = start
            while at < stop:
                before = time.thread_time()
                done = _copy(piece.descriptor, descriptor, min(stop - at, BEHIND), piece.offset + at, offset + at)
                if not done:
                    raise OSError(errno.EIO, _SHORTER)
                self._written(descriptor, offset + at, offset + at + done, time.thread_time() - before)
                at += done

    def _written(self, descriptor: int, start: int, stop: int, seconds: float) -> None:
        """Give back what was written, if pages turn out to be fresh ones.

        Parameters
        ----------
        seconds : the thread's own time: a disk that is waited for, or the GIL, says nothing of the pages.
        """
        if stop - start < LARGE or _sync_file_range is None:
            return
        if seconds > SLOW * (stop - start):
            self._gives_back = True  # for good: pages that came back are fast
        if self._gives_back:
            off_t = ctypes.c_int64
            _sync_file_range(descriptor, off_t(start), off_t(stop - start), _WRITE)
            if start > BEHIND:
                os.posix_fadvise(descriptor, 0, start - BEHIND, os.POSIX_FADV_DONTNEED)


def read(descriptor: int, n_bytes: int, offset: int) -> memoryview:
    """Up to `n_bytes` bytes at an offset, for what is read once: pages that were not in the cache do not stay."""
    out = batch.unfilled(n_bytes)
    brought_in = True
    try:
        if os.preadv(descriptor, [out], offset, os.RWF_NOWAIT) == n_bytes:
            return memoryview(out)
    except BlockingIOError:
        pass
    except (OSError, AttributeError):  # a file system or a system that does not tell
        brought_in = False
    n_read = 0
    while n_read < n_bytes and (n := os.preadv(descriptor, [memoryview(out)[n_read:]], offset + n_read)):
        n_read += n
    if brought_in:
        os.posix_fadvise(descriptor, offset, n_bytes, os.POSIX_FADV_DONTNEED)
    return memoryview(out)[:n_read]


def forget(piece: Piece) -> None:
    """What was read will not be read again: its pages are free for others."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(piece.descriptor, piece.offset, piece.n_bytes, os.POSIX_FADV_DONTNEED)

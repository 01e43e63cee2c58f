"""Writing large pieces past the page cache, where a page of it costs more than the disk (see `pagecache`).

A direct write (O_DIRECT) takes no pages: 0.5 s for a GB, of which 0.02 of a processor, if the disk takes the bytes from
where they lie: a buffer of ours, or the cache's pages of another file (through a buffer 0.7 s, of which 0.25). Where
that cannot be, what a write leaves behind it is given back: 3 GB took 9.0 s to write with fresh pages and 1.0 s so
(alternating, twice).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from fastpack._batch_py import write_back
from fastpack.pagecache import BEHIND, BLOCK, LARGE, BecameShorter, Pages, Piece

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

#: Seconds of the disk for a byte that is in the cache already, up to which it is not copied in there: meanwhile the
#: processor has other things to do, and a copy of it takes 0.5 to 3 s of that for a GB.
COPIED = 2e-9
#: Whole files from this size on are written directly all the same: each waits for the disk for 0.1 ms, and fresh pages
#: for it take 0.3 ms of a processor.
ALONE = 128 << 10
#: Bytes of a direct write from a buffer: smaller ones wait for the disk more often.
DIRECT = 4 << 20
#: Bytes before that which are given back at a time: those before them were, and a file may have gigabytes that were
#: written while no page was fresh, which take 0.5 s for each.
GIVEN_BACK = 4 * BEHIND

#: Fills a buffer with what stands so many bytes behind the start of a piece.
_Fill = Callable[[memoryview, int], None]
#: Where a disk takes bytes from in memory, as nearly all want it. Others refuse, and get them by whole pages.
SECTOR = 512


class _Lying(NamedTuple):
    """A piece as it lies in memory: its bytes, None if they do not, and the address of the first as far as it counts.

    These may be pages of a file, which are gone when it becomes shorter: only the kernel looks at them.
    """

    view: memoryview | None
    address: int


_NOWHERE = _Lying(None, 0)


def _in_memory(view: memoryview) -> _Lying:
    """A buffer of ours."""
    try:
        return _Lying(view, ctypes.addressof(ctypes.c_char.from_buffer(view)))
    except (TypeError, ValueError):  # nobody may write to it; empty
        return _NOWHERE


def _in_cache(piece: Piece) -> _Lying:
    """A part of a file, in the page cache."""
    low = piece.offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    start = piece.offset - low
    try:
        pages = mmap.mmap(piece.descriptor, start + piece.n_bytes, mmap.MAP_SHARED, mmap.PROT_READ, offset=low)
    except (OSError, ValueError):  # a file system without; a file that became shorter
        return _NOWHERE
    return _Lying(memoryview(pages)[start:], start)


class Writer:
    """Writes pieces of large files, each file's in order; may be used by several threads.

    Parameters
    ----------
    pages_come_back : those of another file are given back meanwhile, so that none is fresh and the disk is not waited
        for.
    copies : what is written is in the cache already, as pages of another file: further ones for it are only taken
        where the disk is slow, fresh or not.
    """

    def __init__(self, pages_come_back: bool = False, copies: bool = False) -> None:
        self._pages = Pages(COPIED if copies else 0.0)
        if pages_come_back:
            self._pages.must_do()
        self._stage = _Stage()
        self._unit = SECTOR

    def alone(self, sizes: Sequence[int]) -> list[int]:
        """Which files of some sizes in bytes are better written one by one, each with `at_least` as `ALONE`."""
        if not self._pages.cost_more_than_the_disk:
            return []
        return [index for index, n_bytes in enumerate(sizes) if n_bytes >= ALONE]

    def write(self, descriptor: int, data: Buffer, offset: int, at_least: int = LARGE) -> None:
        """Write all of `data` at an offset; directly only if it has `at_least` bytes."""
        view = memoryview(data)

        def fill(out: memoryview, at: int) -> None:
            out[:] = view[at : at + len(out)]

        start, stop = self._directly(descriptor, offset, len(view), fill, lambda: _in_memory(view), at_least)
        for at, part in ((offset, view[:start]), (offset + stop, view[stop:])):
            self._through_cache(descriptor, part, at)

    def move(self, descriptor: int, piece: Piece, offset: int, at_least: int = LARGE) -> None:
        """Write what stands in another file, through a buffer that stays in the processor's cache, if at all."""
        start, stop = self._directly(descriptor, offset, piece.n_bytes, piece.fill, lambda: _in_cache(piece), at_least)
        for first, last in ((0, start), (stop, piece.n_bytes)):
            for at in range(first, last, LARGE):
                out = self._stage.view(min(LARGE, last - at))
                piece.fill(out, at)
                self._through_cache(descriptor, out, offset + at)

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
                part = piece.part(at, min(at + BEHIND, stop))
                first, last = self._directly(descriptor, offset + at, part.n_bytes, part.fill, lambda: _NOWHERE, LARGE)
                # So far the kernel; what is behind it comes next.
                self._in_kernel(descriptor, part.part(0, first) if last else part, offset + at)
                at += last or part.n_bytes

    def _in_kernel(self, descriptor: int, piece: Piece, offset: int) -> None:
        at = 0
        while at < piece.n_bytes:
            before = time.thread_time()
            done = _copy(piece.descriptor, descriptor, piece.n_bytes - at, piece.offset + at, offset + at)
            if not done:
                raise BecameShorter
            self._written(descriptor, offset + at, offset + at + done, time.thread_time() - before)
            at += done

    def _through_cache(self, descriptor: int, view: memoryview, offset: int) -> None:
        if not view:
            return
        start, stop = offset, offset + len(view)
        before = time.thread_time()
        while view:
            n_written = os.pwrite(descriptor, view, offset)
            view, offset = view[n_written:], offset + n_written
        self._written(descriptor, start, stop, time.thread_time() - before)

    def _written(self, descriptor: int, start: int, stop: int, seconds: float) -> None:
        """Give back what was written, if pages turn out to be fresh ones.

        Parameters
        ----------
        seconds : the thread's own time: a disk that is waited for, or the GIL, says nothing of the pages.
        """
        self._pages.took(seconds, stop - start)
        if self._pages.are_fresh and stop - start >= LARGE and write_back(descriptor, start, stop - start):
            done = start - BEHIND
            if done > 0:
                first = max(0, done - GIVEN_BACK)
                os.posix_fadvise(descriptor, first, done - first, os.POSIX_FADV_DONTNEED)

    def _directly(
        self, descriptor: int, offset: int, n_bytes: int, fill: _Fill, find: Callable[[], _Lying], at_least: int
    ) -> tuple[int, int]:
        """Write the whole blocks of a large piece without the cache, where pages are fresh.

        Parameters
        ----------
        find : where the piece lies. It is written from there if it can be, else from a buffer that `fill` fills.

        Returns
        -------
        What of the piece was written: (start, stop), both 0 for nothing.
        """
        if n_bytes < at_least or not self._pages.cost_more_than_the_disk:
            return 0, 0
        start = at = -offset % BLOCK
        last = start + (n_bytes - start) // BLOCK * BLOCK
        flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
        try:
            fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_DIRECT)
        except OSError:  # a file system without
            self._pages.must_do()
            return 0, 0
        try:
            lying, address = find()
            while at < last:
                if lying is not None and (address + at) % self._unit == 0:
                    out = lying[at:last]
                else:
                    lying, out = None, self._stage.view(min(DIRECT, last - at))
                    fill(out, at)
                before = time.perf_counter()
                try:
                    done = os.pwrite(descriptor, out, offset + at)
                except OSError as error:
                    # Pages that are gone, or cannot be read, are no address any more: reading the file says why.
                    if error.errno not in _NO_COPY and (lying is None or error.errno != errno.EFAULT):
                        raise
                    done = 0
                    if lying is not None and error.errno == errno.EINVAL:
                        self._unit = BLOCK
                at += done // BLOCK * BLOCK
                if done < len(out):
                    if lying is not None:
                        lying = None  # once more, from a buffer
                        continue
                    self._pages.must_do()
                    break
                self._pages.would_have_saved(time.perf_counter() - before, done)
        finally:
            fcntl.fcntl(descriptor, fcntl.F_SETFL, flags)
        return (start, at) if start < at else (0, 0)


class _Stage(threading.local):
    """A buffer for each thread, which begins with a page as direct writes need it."""

    def __init__(self) -> None:
        self._buffer: memoryview | None = None

    def view(self, n_bytes: int) -> memoryview:
        """`n_bytes` bytes of it."""
        if self._buffer is None:
            self._buffer = memoryview(mmap.mmap(-1, DIRECT))
        return self._buffer[:n_bytes]


def _copy(source: int, target: int, n_bytes: int, source_at: int, target_at: int) -> int:
    try:
        return os.copy_file_range(source, target, n_bytes, source_at, target_at)
    except (AttributeError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_COPY:
            raise
    return os.pwrite(target, os.pread(source, min(n_bytes, LARGE), source_at), target_at)


#: Another file system, or a kernel that does not know it.
_NO_COPY = (errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM)

"""Pages of the page cache: what they cost where this process runs, and reading without leaving any behind.

A page that the system did not have in use is a fresh one, and on a virtual machine the host has to find it: 3 to 7 s
for a GB where this was measured, 0.3 s where pages come back. There, large pieces are read and written directly
(O_DIRECT, see `direct`). Elsewhere, and for small files, the cache is where whoever starts the environment next looks
for it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import time
from dataclasses import dataclass

from fastpack.native import batch

#: CPU seconds for a byte, above which pages are taken to be fresh ones: a write into pages in use takes a third of it.
SLOW = 1e-9
#: Smaller pieces say nothing, and nothing is done for them.
LARGE = 1 << 20
#: Bytes after which it is judged what pages cost.
LATELY = 16 << 20
#: How far behind a write pages are given back: the disk must have them by then. It is not waited for.
BEHIND = 64 << 20
#: Seconds of waiting for a disk, after which it is judged how fast it is, however little it has got.
PATIENCE = 0.25
#: What copies of parts of files are cut at, so that a file system may share their blocks, and direct writes.
BLOCK = 4096


class BecameShorter(OSError):
    """A file has no more what was to be copied from it."""

    def __init__(self) -> None:
        super().__init__(errno.EIO, "the file to copy from became shorter")


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an open file, in bytes. `data` is what stands there, where it was read: else it is copied unread."""

    descriptor: int
    offset: int
    n_bytes: int
    data: memoryview | None = None

    def __len__(self) -> int:
        return self.n_bytes

    def part(self, start: int, stop: int) -> Piece:
        """Bytes [start, stop) of it, as they lie in the file."""
        return Piece(self.descriptor, self.offset + start, stop - start)

    def fill(self, out: memoryview, at: int) -> None:
        """Read what stands `at` bytes behind its start into a buffer."""
        while out:
            n_read = os.preadv(self.descriptor, [out], self.offset + at)
            if not n_read:
                raise BecameShorter
            out, at = out[n_read:], at + n_read

    def read(self) -> memoryview:
        """The bytes themselves, for an output that they cannot be copied to."""
        data = read(self.descriptor, self.n_bytes, self.offset) if self.data is None else self.data
        if len(data) != self.n_bytes:
            raise BecameShorter
        return data


class Pages:
    """What pages of the cache cost, and whether the disk alone is faster. Several threads may say so at once.

    Parameters
    ----------
    worth : seconds for a byte that a disk may take at least, whatever pages cost.
    """

    def __init__(self, worth: float = 0.0) -> None:
        self._worth = worth
        self._cost = 0.0  # seconds of a processor for a byte in fresh pages; 0: as far as is known, they are not fresh
        self._seconds, self._n_bytes = 0.0, 0  # of the cache, lately
        self._may_go_without = hasattr(os, "O_DIRECT")
        self._waited, self._n_direct = 0.0, 0  # for the disk

    @property
    def are_fresh(self) -> bool:
        """Whether they were fresh ones so far; for good, as pages that came back are fast."""
        return self._cost > 0

    def took(self, seconds: float, n_bytes: int) -> None:
        """So much of a thread's own time went into the cache for so many bytes. One slow piece may be an accident."""
        if n_bytes < LARGE:
            return
        self._seconds, self._n_bytes = self._seconds + seconds, self._n_bytes + n_bytes
        if self._n_bytes >= LATELY:
            if self._seconds > SLOW * self._n_bytes:
                self._cost = self._seconds / self._n_bytes
            self._seconds, self._n_bytes = self._seconds / 2, self._n_bytes // 2

    @property
    def cost_more_than_the_disk(self) -> bool:
        """Whether many bytes are better read or written directly."""
        return self._may_go_without and (self.are_fresh or self._worth > 0)

    def would_have_saved(self, seconds: float, n_bytes: int) -> None:
        """A disk was waited for so long."""
        self._waited, self._n_direct = self._waited + seconds, self._n_direct + n_bytes
        is_known = self._n_direct >= BEHIND or self._waited > PATIENCE
        if is_known and self._waited > max(self._worth, self._cost) * self._n_direct:
            self.must_do()

    def must_do(self) -> None:
        """There is no other way, or none that is faster."""
        self._may_go_without = False


def aligned(n_bytes: int) -> memoryview:
    """A new buffer that begins with a page, with whatever was in its memory before: for what is filled at once, and
    written from where it lies."""
    room = batch.unfilled(n_bytes + BLOCK)
    start = -ctypes.addressof(ctypes.c_char.from_buffer(room)) % BLOCK
    return memoryview(room)[start : start + n_bytes]


#: What is known of pages that something is read into.
_read_into = Pages()


def read(descriptor: int, n_bytes: int, offset: int) -> memoryview:
    """Up to `n_bytes` bytes at an offset, for what is read once: pages that were not in the cache do not stay."""
    out = aligned(n_bytes)
    brought_in = True
    try:
        if os.preadv(descriptor, [out], offset, os.RWF_NOWAIT) == n_bytes:
            return out
    except BlockingIOError:
        pass
    except (OSError, AttributeError):  # a file system or a system that does not tell
        brought_in = False
    if brought_in and n_bytes >= LARGE and _read_into.cost_more_than_the_disk:
        found = _read_directly(descriptor, n_bytes, offset)
        if found is not None:
            return found
    n_read = 0
    before = time.thread_time()
    while n_read < n_bytes and (n := os.preadv(descriptor, [out[n_read:]], offset + n_read)):
        n_read += n
    if brought_in:
        _read_into.took(time.thread_time() - before, n_read)
        os.posix_fadvise(descriptor, offset, n_bytes, os.POSIX_FADV_DONTNEED)
    return out[:n_read]


def _read_directly(descriptor: int, n_bytes: int, offset: int) -> memoryview | None:
    """The same without the cache, in whole blocks around it; None where that cannot be."""
    low, high = offset // BLOCK * BLOCK, -(-(offset + n_bytes) // BLOCK) * BLOCK
    out = aligned(high - low)
    n_read = 0
    before = time.perf_counter()
    try:
        direct = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        try:
            while n_read < len(out) and (n := os.preadv(direct, [out[n_read:]], low + n_read)):
                n_read += n
                if n % BLOCK:  # the file's end
                    break
        finally:
            os.close(direct)
    except OSError:
        _read_into.must_do()
        return None
    _read_into.would_have_saved(time.perf_counter() - before, n_read)
    return out[offset - low : min(offset - low + n_bytes, n_read)]


def forget(piece: Piece) -> None:
    """What was read will not be read again: its pages are free for others."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(piece.descriptor, piece.offset, piece.n_bytes, os.POSIX_FADV_DONTNEED)

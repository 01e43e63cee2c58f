"""A file of the environment, opened and held against what was listed. Reads, changes nothing."""

from __future__ import annotations

import errno
import io
import itertools
import os
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import BinaryIO

from fastpack._batch_py import CHANGED, settle
from fastpack.errors import ChangedWhileRead, Unreadable
from fastpack.model import DiskFile
from fastpack.native import batch
from fastpack.parallel import Scratch
from fastpack.relocation import WINDOW, PRead


def changed(path: str, what: str) -> ChangedWhileRead:
    """The error for a file that is not what it was when the environment was listed."""
    return ChangedWhileRead(
        f"a file {what} while the environment was read", path=path, hint="let nothing write to it and pack again"
    )


def _open(path: str) -> int:
    try:
        # What has become a FIFO meanwhile is not waited for.
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise changed(path, "vanished") from None
    except OSError as error:
        raise Unreadable(f"a file cannot be read ({error.strerror})", path=path) from None


@contextmanager
def open_source(prefix: str, file: DiskFile) -> Iterator[tuple[int, PRead]]:
    """An environment's file, open and settled: (descriptor, pread); checked before and after to be what was listed.

    Raises
    ------
    Unreadable, ChangedWhileRead
    """
    path = os.path.join(prefix, file.outside or file.path)
    descriptor = _open(path)

    def same() -> bool:
        info = os.fstat(descriptor)
        return info.st_size == file.n_bytes and info.st_mtime_ns == file.mtime_ns

    try:
        if not same():
            raise changed(path, "changed")
        settle(descriptor)

        def pread(n_bytes: int, offset: int) -> bytes:
            try:
                data = os.pread(descriptor, n_bytes, offset)
                while len(data) < n_bytes and offset + len(data) < file.n_bytes:
                    more = os.pread(descriptor, n_bytes - len(data), offset + len(data))
                    if not more:
                        raise changed(path, "became shorter")
                    data += more
            except OSError as error:
                raise Unreadable(f"a file cannot be read ({error.strerror})", path=path) from None
            return data

        yield descriptor, pread
        if not same():
            raise changed(path, "changed")
    finally:
        os.close(descriptor)


@contextmanager
def open_folder(prefix: str) -> Iterator[int]:
    """A descriptor of the environment's directory, for `read_many`."""
    try:
        descriptor = os.open(prefix, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise Unreadable(f"the directory cannot be read ({error.strerror})", path=prefix) from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def read_many(
    folder: int,
    prefix: str,
    names: list[str],
    sizes: Sequence[int],
    mtimes: Sequence[int],
    offsets: Sequence[int],
    lengths: Sequence[int],
    starts: Sequence[int],
    out: bytearray | memoryview,
) -> None:
    """Read many files, or parts of them, at once into a buffer; checked as `open_source` does.

    Parameters
    ----------
    folder : the prefix, opened.
    names : of the files, from there; what follows are tables as `batch.read_files` takes them.
    sizes, mtimes : what each was listed with.
    offsets, lengths : what of each file, in bytes.
    starts : where in `out` it goes.

    Raises
    ------
    Unreadable, ChangedWhileRead
    """
    failed = batch.read_files(folder, names, sizes, mtimes, offsets, starts, lengths, out)
    if failed:
        index, code = failed[0]
        path = os.path.join(prefix, names[index])
        if code in (CHANGED, errno.ELOOP):
            raise changed(path, "changed")
        if code in (errno.ENOENT, errno.ENOTDIR):
            raise changed(path, "vanished")
        raise Unreadable(f"a file cannot be read ({os.strerror(code)})", path=path)


#: Files, and bytes of them, that are read together.
_CHUNK, _CHUNK_BYTES = 512, 4 << 20


def runs_of(sizes: Sequence[int]) -> Iterator[slice]:
    """Runs of files of these sizes that are read together."""
    start = n_bytes = 0
    for index, size in enumerate(sizes):
        if index - start == _CHUNK or (index > start and n_bytes + size > _CHUNK_BYTES):
            yield slice(start, index)
            start, n_bytes = index, 0
        n_bytes += size
    if start < len(sizes):
        yield slice(start, len(sizes))


def read_whole(folder: int, prefix: str, files: Sequence[DiskFile]) -> tuple[memoryview, array[int]]:
    """Files one behind the other: (all their bytes, where each begins, and where the last one ends).

    The bytes lie in a buffer of the thread's, until it reads the next ones.
    """
    names = [file.outside or file.path for file in files]
    sizes, mtimes = array("q", [file.n_bytes for file in files]), array("q", [file.mtime_ns for file in files])
    return read_names(folder, prefix, names, sizes, mtimes)


def read_names(
    folder: int, prefix: str, names: list[str], sizes: array[int], mtimes: array[int]
) -> tuple[memoryview, array[int]]:
    """The same for files whose names, sizes and times are in columns."""
    starts = array("q", itertools.accumulate(sizes, initial=0))
    out = _scratch.view(starts[-1])
    offsets = array("q", bytes(8 * len(sizes)))
    read_many(folder, prefix, names, sizes, mtimes, offsets, sizes, starts[:-1], out)
    return out, starts


_scratch = Scratch()


def buffered(pread: PRead, n_bytes: int) -> tuple[PRead, bytes | None]:
    """A small file is read once and served from memory from then on: (pread, its bytes; None if it is large)."""
    if n_bytes > WINDOW:
        return pread, None
    data = pread(n_bytes, 0)
    return from_memory(data), data


def from_memory(data: bytes) -> PRead:
    """A buffer as a file."""
    return lambda n_bytes, offset: data[offset : offset + n_bytes]


def as_file(pread: PRead, n_bytes: int) -> BinaryIO:
    """A file of the environment as a file object, for libraries that want one."""
    return io.BufferedReader(_File(pread, n_bytes), 1 << 16)


class _File(io.RawIOBase):
    """What `as_file` buffers."""

    def __init__(self, pread: PRead, n_bytes: int) -> None:
        self._pread = pread
        self._n_bytes = n_bytes
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = max(0, offset + (0, self._position, self._n_bytes)[whence])
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        room = max(0, self._n_bytes - self._position)
        data = self._pread(min(len(buffer), room, WINDOW), self._position) if room else b""
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

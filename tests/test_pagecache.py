"""What goes past the page cache is the same bytes."""

from __future__ import annotations

import itertools
import os
import random
from pathlib import Path

import pytest

from fastpack import pagecache


@pytest.mark.parametrize("slow", [0.0, 1e9])
def test_pieces_are_written_where_they_belong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: float) -> None:
    """With hints from the first piece on, and without any."""
    monkeypatch.setattr(pagecache, "SLOW", slow)
    monkeypatch.setattr(pagecache, "BEHIND", 4 << 20)
    data = random.Random(3).randbytes(20 << 20)
    path = tmp_path / "file"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    writer = pagecache.Writer()
    try:
        places = [0, 1, 100, 3 << 20, 11 << 20, (11 << 20) + 5, len(data)]
        for start, stop in itertools.pairwise(places):
            writer.write(descriptor, memoryview(data)[start:stop], start)
        os.fsync(descriptor)
        writer.write(descriptor, data[: 2 << 20], 18 << 20)
    finally:
        os.close(descriptor)
    assert path.read_bytes() == data[: 18 << 20] + data[: 2 << 20]


def test_a_read_that_is_cached_and_one_that_is_not(tmp_path: Path) -> None:
    data = random.Random(4).randbytes(3 << 20)
    path = tmp_path / "file"
    path.write_bytes(data)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        for _ in range(2):
            assert bytes(pagecache.read(descriptor, 1 << 20, 17)) == data[17 : 17 + (1 << 20)]
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        assert bytes(pagecache.read(descriptor, 4 << 20, 1)) == data[1:]
        assert bytes(pagecache.read(descriptor, 10, len(data))) == b""
    finally:
        os.close(descriptor)


def test_a_write_that_finds_no_room_says_so() -> None:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    try:
        with pytest.raises(OSError, match="No space"):
            pagecache.Writer().write(descriptor, bytes(2 << 20), 0)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("error", [OSError(95, "Operation not supported"), BlockingIOError(), AttributeError()])
def test_a_read_where_the_cache_cannot_be_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Only what was not in the cache is taken out of it again."""
    path = tmp_path / "file"
    path.write_bytes(b"abc" * 1000)
    preadv, dropped = os.preadv, []

    def ask(descriptor: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        if flags:
            raise error
        return preadv(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", ask)
    monkeypatch.setattr(os, "posix_fadvise", lambda *arguments: dropped.append(arguments))
    with path.open("rb") as file:
        assert bytes(pagecache.read(file.fileno(), 2000, 3)) == b"abc" * 666 + b"ab"
    assert bool(dropped) is isinstance(error, BlockingIOError)

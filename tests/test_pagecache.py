"""What goes past the page cache is the same bytes."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import random
from pathlib import Path
from types import SimpleNamespace

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


@pytest.mark.parametrize("slow", [0.0, 1e9])
def test_parts_of_files_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: float) -> None:
    monkeypatch.setattr(pagecache, "SLOW", slow)
    data = random.Random(5).randbytes((9 << 20) + 1234)
    (tmp_path / "one").write_bytes(data)
    writer = pagecache.Writer()
    with (tmp_path / "one").open("rb") as one, (tmp_path / "two").open("w+b") as two:
        for start, stop in itertools.pairwise([0, 2 << 20, 5 << 20, (7 << 20) + 7, len(data)]):
            assert writer.copy(one.fileno(), two.fileno(), start, stop - start)
        assert not writer.copy(one.fileno(), two.fileno(), 0, len(data) + 1)
    assert (tmp_path / "two").read_bytes() == data


class Writes:
    """Stands in for the native writes past the cache: what they say."""

    def __init__(self, *answers: tuple[int | None, float, int]) -> None:
        self._answers = list(answers)
        self.n_calls = 0

    def write_pages(self, target: int, offset: int, data: memoryview, pages: memoryview) -> tuple[int, float, int]:
        self.n_calls += 1
        n_bytes, seconds, code = self._answers.pop(0)
        n_bytes = len(data) if n_bytes is None else n_bytes
        fcntl.fcntl(target, fcntl.F_SETFL, 0)  # any alignment will do
        assert os.pwrite(target, data[:n_bytes], offset) == n_bytes
        return n_bytes, seconds, code


@pytest.mark.parametrize(
    ("answers", "n_calls"),
    [
        ([(None, 1e-9, 0)] * 5, 5),
        ([(None, 1e9, 0)], 1),  # a disk that takes longer than the pages
        ([(0, 0.0, errno.EINVAL)], 1),  # a file system that wants another alignment
        ([(5000, 0.0, errno.ENOSPC)], 1),  # what is left is tried again, and says so
    ],
)
def test_it_is_judged_what_goes_past_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: list[tuple[int | None, float, int]], n_calls: int
) -> None:
    stand_in = Writes(*answers)
    monkeypatch.setattr(pagecache, "batch", stand_in)
    monkeypatch.setattr(pagecache, "SLOW", 0.0)
    monkeypatch.setattr(pagecache, "BEHIND", 1 << 20)
    data = random.Random(6).randbytes((12 << 20) + 100)
    writer = pagecache.Writer()
    with (tmp_path / "file").open("w+b") as file:
        for start in range(0, 12 << 20, 2 << 20):  # the first one shows what pages cost
            writer.write(file.fileno(), memoryview(data)[start : start + (2 << 20) + 100], start)
    assert (tmp_path / "file").read_bytes() == data and stand_in.n_calls == n_calls


def test_a_file_system_that_knows_no_way_past_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(descriptor: int, command: int, argument: int = 0) -> int:
        if argument & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return fcntl.fcntl(descriptor, command, argument)

    monkeypatch.setattr(
        pagecache, "fcntl", SimpleNamespace(fcntl=refused, F_GETFL=fcntl.F_GETFL, F_SETFL=fcntl.F_SETFL)
    )
    monkeypatch.setattr(pagecache, "SLOW", 0.0)
    writer, data = pagecache.Writer(), os.urandom(4 << 20)
    with (tmp_path / "file").open("w+b") as file:
        writer.write(file.fileno(), data[: 2 << 20], 0)
        writer.write(file.fileno(), data[2 << 20 :], 2 << 20)
    assert (tmp_path / "file").read_bytes() == data


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

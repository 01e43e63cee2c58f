"""What goes past the page cache is the same bytes."""

from __future__ import annotations

import ctypes
import fcntl
import itertools
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fastpack import direct, pagecache
from fastpack.direct import Writer
from fastpack.pagecache import LARGE, Piece

DATA = random.Random(3).randbytes(13 << 20)


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Pages are taken to be fresh, so that whatever is large goes past the cache: (bytes, offset) of each write."""
    written: list[tuple[int, int]] = []
    pwrite = os.pwrite

    def note(descriptor: int, data: memoryview, offset: int) -> int:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            written.append((len(data), offset))
        return pwrite(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", note)
    monkeypatch.setattr(pagecache.Pages, "are_fresh", True)
    monkeypatch.setattr(pagecache.Pages, "would_have_saved", lambda *arguments: None)
    monkeypatch.setattr(pagecache, "_read_into", pagecache.Pages())
    return written


@contextmanager
def on_disk(folder: Path) -> Iterator[int]:
    """A file that is written and read, where direct writes are."""
    path = folder / "direct"
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT))
    except OSError:
        pytest.skip("no direct writes in this file system")
    descriptor = os.open(path, os.O_RDWR)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def pieces(rng: random.Random) -> list[tuple[int, int]]:
    """(start, stop) of the data, in order, of any size and alignment."""
    sizes = [1, 511, 4095, 4096, 4097, LARGE - 1, LARGE, LARGE + 1, LARGE + 4095, 2 * LARGE, 5 * LARGE + 7]
    cuts, end = [0], 0
    while end < len(DATA):
        end = min(len(DATA), end + rng.choice(sizes))
        cuts.append(end)
    return list(itertools.pairwise(cuts))


def in_memory(lead: int) -> memoryview:
    """The data, so many bytes behind the begin of a page."""
    buffer = pagecache.aligned(lead + len(DATA))
    buffer[lead:] = DATA
    return buffer[lead:]


@pytest.mark.parametrize("lead", [0, 2, 512])
@pytest.mark.parametrize("how", ["write", "copy", "move"])
@pytest.mark.parametrize("seed", range(3))
def test_direct_writes_put_the_same_bytes_in_their_places(
    tmp_path: Path, fresh: list[tuple[int, int]], how: str, lead: int, seed: int
) -> None:
    rng = random.Random(seed)
    (tmp_path / "source").write_bytes(b"a" * lead + DATA)
    rows, writer, data = pieces(rng), Writer(), in_memory(lead)
    if how != "write":
        rng.shuffle(rows)  # parts of a large file come in any order
    with on_disk(tmp_path) as target, (tmp_path / "source").open("rb") as source:
        for start, stop in rows:
            if how == "write":
                writer.write(target, data[start:stop], start)
            else:
                write = writer.copy if how == "copy" else writer.move
                write(target, Piece(source.fileno(), start + lead, stop - start), start)
            assert not fcntl.fcntl(target, fcntl.F_GETFL) & os.O_DIRECT
        assert os.fstat(target).st_size == len(DATA)
        assert os.pread(target, len(DATA) + 1, 0) == DATA
    assert fresh and all(n_bytes % 4096 == 0 and offset % 4096 == 0 for n_bytes, offset in fresh)
    large = sum(stop - start for start, stop in rows if stop - start >= 2 * LARGE)
    assert sum(n_bytes for n_bytes, _ in fresh) >= large - 8192 * len(rows)


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("how", ["write", "move"])
@pytest.mark.parametrize("lead", [0, 512])
def test_what_the_disk_can_take_from_where_it_lies_is_not_copied_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, lead: int
) -> None:
    monkeypatch.setattr(direct._Stage, "view", lambda *arguments: pytest.fail("a copy"))
    monkeypatch.setattr(direct, "DIRECT", LARGE)  # no limit for what lies there
    (tmp_path / "source").write_bytes(bytes(lead) + DATA)
    data, n_bytes = in_memory(lead), 5 * LARGE
    with on_disk(tmp_path) as target, (tmp_path / "source").open("rb") as source:
        if how == "write":
            Writer().write(target, data[:n_bytes], 0)
        else:
            Writer().move(target, Piece(source.fileno(), lead, n_bytes), 0)
        assert os.pread(target, n_bytes + 1, 0) == DATA[:n_bytes]


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("how", ["write", "move"])
def test_a_disk_that_takes_whole_pages_gets_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    refused, taken, pwrite = 0, 0, os.pwrite

    def write(descriptor: int, data: memoryview, offset: int) -> int:
        nonlocal refused, taken
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            if data.readonly or ctypes.addressof(ctypes.c_char.from_buffer(data)) % 4096:
                refused += 1
                raise OSError(22, "no such address")
            taken += len(data)
        return pwrite(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", write)
    (tmp_path / "source").write_bytes(bytes(512) + DATA)
    data, writer = in_memory(512), Writer()
    with on_disk(tmp_path) as target, (tmp_path / "source").open("rb") as source:
        for start in range(0, 6 * LARGE, 2 * LARGE):
            if how == "write":
                writer.write(target, data[start : start + 2 * LARGE], start)
            else:
                writer.move(target, Piece(source.fileno(), 512 + start, 2 * LARGE), start)
        assert os.pread(target, len(DATA), 0) == DATA[: 6 * LARGE]
    assert refused == 1 and taken == 6 * LARGE


def refused(error: int) -> Callable[..., int]:
    pwrite = os.pwrite

    def write(descriptor: int, data: memoryview, offset: int) -> int:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(error, "no")
        return pwrite(descriptor, data, offset)

    return write


def short(descriptor: int, data: memoryview, offset: int, pwrite: Callable[..., int] = os.pwrite) -> int:
    if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
        data = data[:8192]
    return pwrite(descriptor, data, offset)


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("what", ["EINVAL", "EOPNOTSUPP", "short", "flag"])
def test_where_there_are_no_direct_writes_the_cache_takes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    if what == "flag":
        plain = fcntl.fcntl

        def no_flag(descriptor: int, command: int, argument: int = 0) -> int:
            if argument & os.O_DIRECT:
                raise OSError(22, "no")
            return plain(descriptor, command, argument)

        monkeypatch.setattr(fcntl, "fcntl", no_flag)
    else:
        errors = {"EINVAL": 22, "EOPNOTSUPP": 95}
        monkeypatch.setattr(os, "pwrite", refused(errors[what]) if what in errors else short)
    path, writer = tmp_path / "file", Writer()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        for start in (5, 3 * LARGE):
            writer.write(descriptor, memoryview(DATA)[start : start + 2 * LARGE], start)
    finally:
        os.close(descriptor)
    assert path.read_bytes()[5 : 5 + 2 * LARGE] == DATA[5 : 5 + 2 * LARGE]
    assert path.read_bytes()[3 * LARGE :] == DATA[3 * LARGE : 5 * LARGE]


@pytest.mark.usefixtures("fresh")
def test_a_direct_write_that_finds_no_room_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pwrite", refused(28))
    with on_disk(tmp_path) as target:
        with pytest.raises(OSError, match="no") as caught:
            Writer().write(target, DATA, 0)
        assert caught.value.errno == 28 and not fcntl.fcntl(target, fcntl.F_GETFL) & os.O_DIRECT


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("how", ["copy", "move"])
def test_a_source_that_became_shorter_is_told(tmp_path: Path, how: str) -> None:
    (tmp_path / "source").write_bytes(DATA[: 3 * LARGE])
    with on_disk(tmp_path) as target, (tmp_path / "source").open("rb") as source:
        write = getattr(Writer(), how)
        with pytest.raises(pagecache.BecameShorter):
            write(target, Piece(source.fileno(), LARGE, 3 * LARGE), 0)


@pytest.mark.usefixtures("fresh")
def test_a_source_that_becomes_shorter_while_it_is_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, pwrite = tmp_path / "source", os.pwrite
    path.write_bytes(DATA[: 3 * LARGE])

    def write(descriptor: int, data: memoryview, offset: int) -> int:
        os.truncate(path, LARGE)  # its pages are gone, which kills whoever looks at them
        return pwrite(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", write)
    with on_disk(tmp_path) as target, path.open("rb") as source, pytest.raises(pagecache.BecameShorter):
        Writer().move(target, Piece(source.fileno(), 0, 3 * LARGE), 0)


@pytest.mark.usefixtures("fresh")
def test_direct_reads_give_the_same_bytes(tmp_path: Path) -> None:
    with on_disk(tmp_path) as descriptor:
        os.write(descriptor, DATA)
        os.fsync(descriptor)
        number = 0
        for start, n_bytes in ((0, LARGE), (1, LARGE), (4095, 2 * LARGE + 1), (len(DATA) - LARGE - 5, 2 * LARGE),
                               (len(DATA), LARGE), (LARGE, 10)):  # fmt: skip
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            found = pagecache._read_directly(descriptor, n_bytes, start)
            assert found is not None and bytes(found) == DATA[start : start + n_bytes]
            assert bytes(pagecache.read(descriptor, n_bytes, start)) == DATA[start : start + n_bytes]
            number += n_bytes >= LARGE and pagecache._read_into.cost_more_than_the_disk
        assert number == 5


def test_one_slow_piece_is_an_accident() -> None:
    pages = pagecache.Pages()
    pages.took(1.0, 4096)
    pages.took(10 * pagecache.SLOW * LARGE, LARGE)
    for _ in range(20):
        pages.took(0.2 * pagecache.SLOW * LARGE, LARGE)
    assert not pages.are_fresh
    for _ in range(40):
        pages.took(2 * pagecache.SLOW * LARGE, LARGE)
    assert pages.are_fresh and pages.cost_more_than_the_disk
    pages.would_have_saved(3 * pagecache.SLOW * (pagecache.BEHIND // 2), pagecache.BEHIND // 2)
    assert pages.cost_more_than_the_disk
    pages.would_have_saved(100 * pagecache.SLOW * pagecache.BEHIND, pagecache.BEHIND)  # a slow disk
    assert pages.are_fresh and not pages.cost_more_than_the_disk


def test_copies_go_past_the_cache_until_the_disk_is_found_to_be_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "source").write_bytes(DATA)
    pwrite, number = os.pwrite, 0

    def write(descriptor: int, data: memoryview, offset: int) -> int:
        nonlocal number
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            number += 1
            time.sleep(0.03)  # a disk that turns
        return pwrite(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", write)
    writer, n_bytes = Writer(copies=True), direct.ALONE
    assert writer.alone([n_bytes - 1, n_bytes]) == [1] and not Writer().alone([n_bytes])
    with on_disk(tmp_path) as target, (tmp_path / "source").open("rb") as source:
        for start in range(0, 100 * n_bytes, n_bytes):
            writer.move(target, Piece(source.fileno(), start, n_bytes), start, n_bytes)
        assert os.pread(target, len(DATA), 0) == DATA[: 100 * n_bytes]
    assert 1 <= number < 20 and not writer.alone([n_bytes])


@pytest.mark.parametrize("slow", [0.0, 1e9])
def test_pieces_are_written_where_they_belong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: float) -> None:
    """With hints from the first piece on, and without any."""
    monkeypatch.setattr(pagecache, "SLOW", slow)
    monkeypatch.setattr(direct, "BEHIND", 4 << 20)
    monkeypatch.setattr(direct, "GIVEN_BACK", 3 << 20)
    data = random.Random(3).randbytes(20 << 20)
    path = tmp_path / "file"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    writer = Writer()
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
            Writer().write(descriptor, bytes(2 << 20), 0)
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

"""Files that appear when they are whole; and those that need not be written, since they are there already."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fastpack import fs, pagecache
from fastpack.errors import FastpackError

CONTENT = random.Random(11).randbytes(300_000)


@contextmanager
def opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@pytest.fixture
def there(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    os.utime(path, (1, 1))
    return path


def written_anew(path: Path, before: os.stat_result) -> bool:
    assert [entry.name for entry in path.parent.iterdir() if entry.name.startswith(".")] == []
    return path.stat().st_ino != before.st_ino


@pytest.mark.parametrize("how", ["bytes", "read", "unread", "all of them"])
def test_what_is_there_already_stays_and_is_as_new(there: Path, how: str) -> None:
    before = there.stat()
    with opened(there) as old, fs.new_file(str(there), True) as out:
        for number, start in enumerate(range(0, len(CONTENT), 70_000)):
            data = CONTENT[start : start + 70_000]
            kind = ["bytes", "read", "unread"][number % 3] if how == "all of them" else how
            if kind == "bytes":
                out.write(data)
            else:
                read = memoryview(data) if kind == "read" else None
                out.append(pagecache.Piece(old, start, len(data), read))
        out.flush()
        assert os.path.getsize(out.name) == 0
    assert not written_anew(there, before)
    assert there.read_bytes() == CONTENT
    assert there.stat().st_mtime > before.st_mtime


@pytest.mark.parametrize("seed", range(40))
def test_what_differs_is_written_anew(there: Path, tmp_path: Path, seed: int) -> None:
    """Whatever the new file has in common with the old one, and wherever its pieces come from."""
    rng = random.Random(seed)
    other = tmp_path / "other"
    other.write_bytes(CONTENT[::-1])
    before = there.stat()
    expected = b""
    common = rng.randrange(4)  # pieces at the start that are the same
    with opened(there) as old, opened(other) as second, fs.new_file(str(there), True) as out:
        for number in range(rng.randrange(common, 7)):
            n_bytes = rng.choice([1, 511, 4096, 65_536])
            source, file = rng.choice([(old, CONTENT), (second, CONTENT[::-1])])
            at = rng.choice([len(expected), rng.randrange(len(CONTENT) - n_bytes)])
            if number < common:
                source, file, at = old, CONTENT, len(expected)
            data = file[at : at + n_bytes]
            how = rng.randrange(3)
            if how == 0:
                assert out.write(data) == len(data)
            else:
                out.append(pagecache.Piece(source, at, len(data), memoryview(data) if how == 1 else None))
            expected += data
    assert there.read_bytes() == expected
    assert written_anew(there, before)


@pytest.mark.parametrize("change", [b"", CONTENT[:-1], CONTENT + b"x", b"x" + CONTENT[1:], CONTENT[:-1] + b"x"])
def test_one_byte_more_less_or_other_is_another_file(there: Path, change: bytes) -> None:
    before = there.stat()
    with fs.new_file(str(there), True) as out:
        for start in range(0, len(change), 100_000):
            out.write(change[start : start + 100_000])
    assert there.read_bytes() == change
    assert written_anew(there, before)


@pytest.mark.parametrize("gone", ["removed", "replaced", "not ours to touch"])
def test_a_file_that_cannot_stay_is_written(there: Path, gone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Removed or replaced by someone while it was held against what is written."""
    before = there.stat()
    kept = there.with_name("kept")
    with fs.new_file(str(there), True) as out:
        out.write(CONTENT)
        if gone == "not ours to touch":

            def refuse(*arguments: object) -> None:
                raise PermissionError(1, "Operation not permitted")

            monkeypatch.setattr(os, "utime", refuse)
        else:
            os.link(there, kept)  # so that its inode is not given to another file
            there.unlink()
            if gone == "replaced":
                there.write_bytes(b"another")
    assert there.read_bytes() == CONTENT
    assert written_anew(there, before)


def test_a_failure_leaves_the_old_file(there: Path) -> None:
    before = there.stat()
    with pytest.raises(FastpackError, match="no space"), fs.new_file(str(there), True) as out:
        out.write(CONTENT[:100])
        raise OSError(28, "No space left on device")
    assert not written_anew(there, before)
    assert there.stat().st_mtime == before.st_mtime
    assert there.read_bytes() == CONTENT


def test_what_another_process_writes_by_the_files_name_replaces_an_empty_one(tmp_path: Path) -> None:
    """As mksquashfs does."""
    path = tmp_path / "file"
    path.write_bytes(b"")
    with fs.new_file(str(path), True) as out:
        Path(str(out.name)).write_bytes(b"by its name")
    assert path.read_bytes() == b"by its name"

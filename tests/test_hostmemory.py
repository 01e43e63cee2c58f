"""What is remembered from one run to the next is bounded, and never a reason to fail."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fastpack import hostmemory


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "fastpack"


def table(kind: str, name: str, n_bytes: int, used: int) -> Path:
    """Keep one that was used at a time in seconds."""
    path = hostmemory.place(kind, f"/{name}")
    assert path is not None
    os.makedirs(os.path.dirname(path), exist_ok=True)
    hostmemory.keep(path, [bytes(n_bytes)])
    os.utime(path, (used, used))
    return Path(path)


def test_what_was_used_last_is_kept_up_to_a_size(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostmemory, "_KEPT_BYTES", 1000)
    old = [table("stat", f"old {number}", 300, number) for number in range(1, 4)]
    assert all(path.exists() for path in old)
    hostmemory.touch(str(old[0]))
    newest = table("stat", "new", 300, 2**31)
    assert [path.exists() for path in (*old, newest)] == [True, False, True, True]
    other = table("unpacked", "another kind", 900, 1)
    assert other.exists() and newest.exists()
    huge = table("stat", "huge", 5000, 2**31 + 1)
    assert [path.exists() for path in (*old, newest, huge)] == [False] * 4 + [True]
    assert sorted(os.listdir(home)) == ["stat", "unpacked"]


def test_not_more_than_so_many_are_kept(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostmemory, "_KEPT", 3)
    paths = [table("unpacked", str(number), 1, number) for number in range(1, 6)]
    # Each is the newest of all while it is written.
    assert [path.exists() for path in paths] == [False, False, True, True, True]
    assert len(os.listdir(home / "unpacked")) == 3


def test_small_ones_of_many_environments_are_all_kept(home: Path) -> None:
    paths = [table("unpacked", str(number), 17_000, number) for number in range(1, 101)]
    assert all(path.exists() for path in paths) and len(os.listdir(home / "unpacked")) == 100

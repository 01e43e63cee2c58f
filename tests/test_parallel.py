"""Threads: as many as the machine gives us; results in order."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import defaultdict
from pathlib import Path

import pytest

from fastpack.parallel import Buffers, Scratch, default_threads, detached, ordered_map, side_by_side
from tests.test_environment import write


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({}, 64),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "max 100000\n"}, 64),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "150000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "50000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/../x\n", "sys/fs/cgroup/cpu.max": "300000 100000\n"}, 3),
        ({"proc/self/cgroup": "4:cpu,cpuacct:/a\n1:memory:/b\n", "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": "400000",
          "sys/fs/cgroup/cpu/a/cpu.cfs_period_us": "100000"}, 4),
        ({"proc/self/cgroup": "4:cpu,cpuacct:/a\n", "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": "-1",
          "sys/fs/cgroup/cpu/a/cpu.cfs_period_us": "100000"}, 64),
        ({"proc/self/cgroup": "nonsense\n"}, 64),
    ],
)  # fmt: skip
def test_threads_follow_the_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], wanted: int
) -> None:
    for path, text in files.items():
        write(str(tmp_path), path, text)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    assert default_threads(str(tmp_path)) == wanted


def test_results_come_in_order_and_an_error_ends_it() -> None:
    assert list(ordered_map(lambda item: item * 2, range(100), 4)) == list(range(0, 200, 2))

    def fail(item: int) -> int:
        if item == 7:
            raise ValueError(item)
        return item

    found = []
    with pytest.raises(ValueError, match="7"):
        for result in ordered_map(fail, range(1000), 3):
            found.append(result)
    assert found == list(range(7)) and threading.active_count() == 1


def test_a_scratch_buffer_is_a_threads_own() -> None:
    scratch = Scratch()
    mine = scratch.view(100)
    mine[:] = b"x" * 100
    list(ordered_map(lambda _: scratch.view(50).__setitem__(slice(None), b"y" * 50), range(4), 2))
    assert bytes(scratch.view(100)) == b"x" * 100 and len(scratch.view(10)) == 10


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_runs_side_by_side_give_every_result_once(threads: int) -> None:
    runs = [range(3), range(3, 3), range(3, 40), range(40, 41)]
    assert sorted(side_by_side(lambda item: item * 2, runs, threads)) == list(range(0, 82, 2))
    assert list(side_by_side(lambda item: item, [], threads)) == []


def test_a_thread_keeps_to_its_run_until_there_are_no_others() -> None:
    """Two long runs and two threads: neither thread takes from the other's while it has one of its own. One of them
    begins with the shortest run."""
    seen: dict[str, list[str]] = defaultdict(list)
    both = threading.Barrier(2)

    def work(item: str) -> None:
        if not seen[threading.current_thread().name]:
            both.wait(30)  # both threads have begun
        seen[threading.current_thread().name].append(item)

    list(side_by_side(work, [[f"a{k}" for k in range(50)], [f"b{k}" for k in range(50)], ["c0"]], 2))
    assert sorted("".join(sorted({item[0] for item in items[:50]})) for items in seen.values()) == ["a", "bc"]
    assert sum(map(len, seen.values())) == 101


def test_a_thread_without_a_run_helps() -> None:
    names: set[str] = set()
    both = threading.Barrier(2)

    def work(item: int) -> None:
        if threading.current_thread().name not in names:
            names.add(threading.current_thread().name)
            both.wait(30)  # nobody gets past it alone: two threads work on one run

    list(side_by_side(work, [range(20)], 2))
    assert len(names) == 2


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_ends_what_runs_side_by_side(threads: int) -> None:
    begun: list[int] = []

    def fail(item: int) -> int:
        begun.append(item)
        if item == 7:
            raise ValueError(item)
        time.sleep(0.001)
        return item

    with pytest.raises(ValueError, match="7"):
        list(side_by_side(fail, [range(1000)], threads))
    assert len(begun) < 1000 and threading.active_count() == 1


def test_an_interrupt_does_not_wait_for_what_was_begun() -> None:
    release = threading.Event()

    def slow(item: int) -> int:
        if item > 0:
            release.wait(30)
        return item

    results = ordered_map(slow, range(10), 2)
    assert next(results) == 0
    with pytest.raises(KeyboardInterrupt):
        results.throw(KeyboardInterrupt)  # type: ignore[attr-defined]
    assert threading.active_count() > 1, "it has waited"
    release.set()
    deadline = time.monotonic() + 30
    while threading.active_count() > 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == 1


# --- work that outlives its process


def test_detached_work_goes_on_when_nobody_waits_any_more(tmp_path: Path) -> None:
    done = tmp_path / "done"

    def work() -> None:
        assert os.getsid(0) != parent_session
        while not (tmp_path / "go").exists():
            time.sleep(0.01)
        done.write_text(f"{os.getpid()} {os.getppid()} {os.readlink('/proc/self/fd/1')}")

    parent_session = os.getsid(0)
    assert not detached(work, 0.05)
    assert not done.exists()
    (tmp_path / "go").touch()
    deadline = time.monotonic() + 30
    while not (done.exists() and done.read_text()) and time.monotonic() < deadline:
        time.sleep(0.01)
    process, parent, output = done.read_text().split()
    # No child of ours, which we would have to wait for.
    assert os.getpid() not in (int(process), int(parent)) and output == os.devnull


def test_detached_work_that_is_quick_is_done_and_one_that_fails_is_not() -> None:
    assert detached(lambda: None, 30)
    with pytest.raises(OSError, match="failed"):
        detached(lambda: 1 / 0, 30)  # type: ignore[arg-type, return-value]
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # as some daemons leave it to their children
    try:
        assert detached(lambda: None, 30)
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_what_runs_side_by_side_is_told_to_stop() -> None:
    """Before it is waited for: so an item that takes long may end early."""
    told = threading.Event()
    ended: list[bool] = []

    def work(item: int) -> None:
        ended.append(told.wait(30))

    results = side_by_side(work, [[1], [2]], 2, told.set)
    # To the process, as a terminal does: a thread that sends it to itself wakes nobody.
    closer = threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell runs in the background
    try:
        closer.start()
        with pytest.raises(KeyboardInterrupt):
            next(results)
        closer.join()
    finally:
        signal.signal(signal.SIGINT, before)
    assert told.is_set() and ended == [True, True]
    assert list(side_by_side(lambda item: item, [[1], [2]], 2, lambda: pytest.fail("nothing was wrong"))) == [1, 2]


def test_buffers_are_used_again() -> None:
    buffers = Buffers()
    first, second = buffers.take(10), buffers.take(10)
    assert first.obj is not second.obj and len(first) == len(second) == 10
    buffers.give_back(first)
    shorter = buffers.take(4)
    assert shorter.obj is first.obj and len(shorter) == 4
    buffers.give_back(second)
    longer = buffers.take(11)  # none of those that are free is long enough
    assert longer.obj not in (first.obj, second.obj) and len(longer) == 11

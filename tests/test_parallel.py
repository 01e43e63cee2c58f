"""Threads: as many as the machine gives us; results in order."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from fastpack.parallel import Scratch, default_threads, ordered_map
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

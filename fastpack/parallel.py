"""A bounded, order-keeping map over threads. The only file that starts one."""

from __future__ import annotations

import ctypes
import gc
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Results that may wait for their turn, per thread: bounds memory, and keeps a slow item from idling the others.
AHEAD = 2


def default_threads(root: str = "/") -> int:
    """The cores this process may use: by its affinity, and by the quota of its control group where it has one.

    Parameters
    ----------
    root : where ``proc`` and ``sys`` lie.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *_quotas(root)]))


def _quotas(root: str) -> Iterator[int]:
    """Whole cores that control groups allow, version 2 (``cpu.max``) and 1 (``cpu.cfs_quota_us``)."""
    try:
        with open(os.path.join(root, "proc/self/cgroup"), encoding="utf-8") as file:
            groups = [line.rstrip("\n").split(":", 2) for line in file]
    except (OSError, ValueError):
        return
    for _, controllers, path in (row for row in groups if len(row) == 3):
        if controllers and "cpu" not in controllers.split(","):
            continue
        folder = os.path.join(root, "sys/fs/cgroup", *(["cpu"] if controllers else []))
        parts = [part for part in path.split("/") if part not in ("", "..")]
        # A group's parents bind it too.
        for depth in range(len(parts) + 1):
            here = os.path.join(folder, *parts[:depth])
            if controllers:
                row = [_word(here, "cpu.cfs_quota_us"), _word(here, "cpu.cfs_period_us")]
            else:
                row = (_word(here, "cpu.max") + " 0 0").split()[:2]
            if row[0].isdecimal() and row[1].isdecimal() and int(row[1]):
                yield -(-int(row[0]) // int(row[1]))


def _word(folder: str, name: str) -> str:
    try:
        with open(os.path.join(folder, name), encoding="utf-8") as file:
            return file.read().strip()
    except (OSError, ValueError):
        return ""


_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1  # glibc, malloc.h


def keep_memory() -> None:
    """Have glibc keep the memory of freed buffers for the next ones, instead of giving it back to the system.

    Fresh pages are what costs on virtual machines, 10 µs each where this was measured. Packing 6.5 GB took 8.3 s of
    system time with this and with one buffer per thread for the frames, 11.6 s before, and 50 MB more of memory (means
    of two alternating runs). Other C libraries are left as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    mallopt(_M_MMAP_THRESHOLD, 32 << 20)
    mallopt(_M_TRIM_THRESHOLD, 512 << 20)


@contextmanager
def no_collection() -> Iterator[None]:
    """Without Python's search for reference cycles: it walks the hundreds of thousands of rows that a large environment
    has again and again, and there are no cycles in them. It took 2 of 13 s of packing 57,000 files.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class Scratch(threading.local):
    """A buffer for each thread, kept from one frame to the next."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def view(self, n_bytes: int) -> memoryview:
        """`n_bytes` bytes of it, with whatever the last user left there."""
        if len(self._buffer) < n_bytes:
            self._buffer = bytearray(n_bytes)
        return memoryview(self._buffer)[:n_bytes]


def ordered_map(function: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """``map`` over threads: results in the items' order, at most ``threads * AHEAD`` items in flight.

    Items are begun in order, so one may wait for what an earlier one provides. The first exception, in the items'
    order, is raised here; no further item is begun, and those begun have ended before it leaves.
    """
    if threads <= 1:
        yield from map(function, items)
        return
    pending: deque[Future[Result]] = deque()
    executor = ThreadPoolExecutor(threads, thread_name_prefix="fastpack")
    try:
        for item in items:
            pending.append(executor.submit(function, item))
            if len(pending) >= threads * AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        executor.shutdown(wait=True, cancel_futures=True)

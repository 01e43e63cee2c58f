"""A bounded, order-keeping map over threads, runs of work side by side, and work that outlives this process.

The only file that starts a thread or forks.
"""

from __future__ import annotations

import ctypes
import gc
import os
import queue
import select
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Generic, TypeVar

from fastpack.native import batch

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Items in flight per thread: bounds memory, and keeps a slow item, or a slow use of results, from idling the others.
AHEAD = 4


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
            self._buffer = batch.unfilled(n_bytes)
        return memoryview(self._buffer)[:n_bytes]


class Buffers:
    """Buffers that go from thread to thread: one is filled here, written there, and then used again."""

    def __init__(self) -> None:
        self._free: deque[bytearray] = deque()

    def take(self, n_bytes: int) -> memoryview:
        """`n_bytes` bytes of one, with whatever its last user left there."""
        try:
            buffer = self._free.pop()
        except IndexError:
            buffer = batch.unfilled(n_bytes)
        if len(buffer) < n_bytes:
            buffer = batch.unfilled(n_bytes)
        return memoryview(buffer)[:n_bytes]

    def give_back(self, view: memoryview) -> None:
        """Its buffer is free again."""
        assert isinstance(view.obj, bytearray)
        self._free.append(view.obj)


def ordered_map(function: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """``map`` over threads: results in the items' order, at most ``threads * AHEAD`` items in flight.

    Items are begun in order, so one may wait for what an earlier one provides. The first exception, in the items'
    order, is raised here; no further item is begun, and those begun have ended before it leaves. An interrupt waits for
    none of them, as a frame at zstd's level 19 takes seconds: `function` may read and compute, but write nothing.
    """
    if threads <= 1:
        yield from map(function, items)
        return
    pending: deque[Future[Result]] = deque()
    executor = ThreadPoolExecutor(threads, thread_name_prefix="fastpack")
    wait = True
    try:
        for item in items:
            pending.append(executor.submit(function, item))
            if len(pending) >= threads * AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except KeyboardInterrupt:
        wait = False
        raise
    finally:
        executor.shutdown(wait=wait, cancel_futures=True)


class _Runs(Generic[Item]):
    """Items in runs, given out to threads: see `side_by_side`."""

    def __init__(self, runs: Iterable[Iterable[Item]]) -> None:
        self._lock = threading.Lock()
        self._waiting = deque(sorted(map(deque, runs), key=len, reverse=True))
        self._begun: list[deque[Item]] = []

    def take(self, mine: deque[Item] | None, shortest: bool) -> tuple[deque[Item], Item] | None:
        """The next item for a thread whose run is `mine`, and its run from now on; None: there is nothing left.

        Parameters
        ----------
        shortest : of the runs that wait, not the longest one.
        """
        with self._lock:
            if not mine:
                if self._waiting:
                    mine = self._waiting.pop() if shortest else self._waiting.popleft()
                    self._begun.append(mine)
                else:
                    mine = max(self._begun, key=len, default=deque())
            return (mine, mine.popleft()) if mine else None

    def stop(self) -> None:
        """Nothing is left from now on."""
        with self._lock:
            self._waiting.clear()
            for run in self._begun:
                run.clear()


def side_by_side(
    function: Callable[[Item], Result], runs: Iterable[Iterable[Item]], threads: int,
    stop: Callable[[], None] = lambda: None,
) -> Iterator[Result]:  # fmt: skip
    """Results as they come, for runs of items that stand in each other's way: the kernel lets one thread at a time
    write to a file, or make files in a directory.

    Each thread goes through a run of its own; when all are begun it helps with the one that has most left. One half of
    the threads begins with the longest runs, the other with the shortest: parts of large files wait for the disk, many
    small files for the processor, and both at once take less time than one after the other. After an exception no
    further item is begun, and those begun have ended before it leaves; `stop` is called then, so that they may end
    early.
    """
    work = _Runs(runs)
    results: queue.SimpleQueue[Future[Result] | None] = queue.SimpleQueue()

    def go(shortest: bool) -> None:
        taken = work.take(None, shortest)
        while taken is not None:
            mine, item = taken
            result: Future[Result] = Future()
            try:
                result.set_result(function(item))
            except BaseException as error:
                work.stop()
                result.set_exception(error)
            results.put(result)
            taken = work.take(mine, shortest)
        results.put(None)

    with ThreadPoolExecutor(threads, thread_name_prefix="fastpack") as executor:
        try:
            for k in range(threads):
                executor.submit(go, k % 2 == 1)
            left = threads
            while left:
                done = results.get()
                if done is None:
                    left -= 1
                else:
                    yield done.result()
        except BaseException:
            stop()
            raise
        finally:
            work.stop()


def detached(work: Callable[[], None], patience: float) -> bool:
    """Do some work in a process of its own, which nobody waits for but this one for `patience` seconds.

    It has no terminal and no open standard streams: neither a second Ctrl-C nor the end of a pipeline touches it.

    Returns
    -------
    Whether it is done already.

    Raises
    ------
    OSError : no process can be made, or it ended before its work did; nothing goes on.
    """
    reading, writing = os.pipe()  # gets a byte when the work is done, and its end in any case
    try:
        child = os.fork()
        if not child:
            try:
                os.setsid()
                if not os.fork():  # so that whoever called has no child to wait for
                    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                        signal.signal(number, signal.SIG_IGN)
                    nothing = os.open(os.devnull, os.O_RDWR)
                    for stream in range(3):
                        os.dup2(nothing, stream)
                    work()
                    os.write(writing, b"1")
            finally:
                os._exit(0)
        os.close(writing)
        writing = -1
        try:
            os.waitpid(child, 0)
        except ChildProcessError:  # where SIGCHLD is ignored, nobody is left to be waited for
            pass
        if not select.select([reading], [], [], patience)[0]:
            return False
        if not os.read(reading, 1):
            raise ChildProcessError("what was to be done in the background has failed")
        return True
    finally:
        os.close(reading)
        if writing >= 0:
            os.close(writing)

"""A bounded, order-keeping map over threads. The only file that starts one."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Results that may wait for their turn, per thread: bounds memory, and keeps a slow item from idling the others.
AHEAD = 2


def default_threads() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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

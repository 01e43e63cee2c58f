"""The kernels beside what one would write without them: `make bench` runs these with pytest-benchmark.

No assertion on time: what is asserted is that the rivals give the same answer.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any

import pytest

from fastpack import _relocate, _relocate_py

PREFIX = b"/opt/conda/envs/training-2026"
PLACEHOLDER = (b"/build/_h_env" + b"_placehold" * 30)[:255]


def library(adverse: bool) -> bytes:
    """64 MiB that look like a library: adverse, half prefixes all over."""
    rng = random.Random(1)
    block = rng.randbytes(1 << 16)
    if adverse:
        block = (PREFIX[:-1] + b"#") * (len(block) // len(PREFIX))
    data = bytearray(block * ((64 << 20) // len(block)))
    for k in range(100):
        place = k * 600_000
        string = PREFIX + b"/lib" + bytes(300)
        data[place : place + len(string)] = string
    return bytes(data)


@pytest.fixture(scope="module", params=["random", "adverse"])
def data(request: pytest.FixtureRequest) -> bytes:
    return library(request.param == "adverse")


def by_re(buffer: bytes) -> list[int]:
    return [match.start() for match in re.finditer(re.escape(PREFIX), buffer)]


FINDERS: dict[str, Callable[[bytes], Any]] = {
    "native": lambda buffer: [offset for offset, _ in _relocate.find(buffer, (PREFIX,))],
    "bytes.find": lambda buffer: [offset for offset, _ in _relocate_py.find(buffer, (PREFIX,))],
    "re": by_re,
}


@pytest.mark.parametrize("name", FINDERS)
def test_find(benchmark: Any, data: bytes, name: str) -> None:
    benchmark.extra_info["MB"] = len(data) / 1e6
    assert len(benchmark(FINDERS[name], data)) == 100


@pytest.mark.parametrize("kernel", [_relocate, _relocate_py], ids=["native", "twin"])
def test_place_and_restore(benchmark: Any, kernel: Any) -> None:
    strings = [(k * 1000, 300, [k * 1000]) for k in range(10_000)]
    original = bytearray(10_000 * 1000)
    for offset, _, _ in strings:
        original[offset : offset + 300] = PLACEHOLDER + b"x" * 45

    def both() -> bytearray:
        buffer = bytearray(original)
        assert kernel.place_strings(buffer, strings, PLACEHOLDER, PREFIX) == -1
        assert kernel.restore_strings(buffer, strings, PLACEHOLDER, PREFIX) == -1
        return buffer

    assert benchmark(both) == original

"""The kernels beside what one would write without them: `make bench` runs these with pytest-benchmark.

No assertion on time: what is asserted is that the rivals give the same answer.
"""

from __future__ import annotations

import ctypes
import os
import random
import re
import tarfile
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastpack import _batch, _batch_py, _relocate, _relocate_py

PREFIX = b"/opt/conda/envs/training-2026"
PLACEHOLDER = (b"/build/_h_env" + b"_placehold" * 30)[:255]
#: Small files, as many as a frame of Python modules holds.
N_FILES, FILE_BYTES = 1000, 8000


def library(adverse: bool) -> bytes:
    """64 MiB that look like a library: adverse, half prefixes all over."""
    rng = random.Random(1)
    block = rng.randbytes(1 << 16)
    if adverse:
        block = (PREFIX[:-1] + b"#") * (len(block) // len(PREFIX))
    data = bytearray((block * ((64 << 20) // len(block) + 1))[: 64 << 20])
    for k in range(100):
        place = k * 600_000
        string = PREFIX + b"/lib" + bytes(300)
        data[place : place + len(string)] = string
    return bytes(data)


@pytest.fixture(scope="module", params=["random", "adverse"])
def data(request: pytest.FixtureRequest) -> bytes:
    return library(request.param == "adverse")


def by_find(buffer: bytes) -> int:
    count, place = 0, buffer.find(PREFIX)
    while place >= 0:
        count, place = count + 1, buffer.find(PREFIX, place + 1)
    return count


def by_memmem(buffer: bytes) -> int:
    memmem = ctypes.CDLL(None).memmem
    memmem.restype = ctypes.c_void_p
    memmem.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t]
    start = ctypes.cast(ctypes.c_char_p(buffer), ctypes.c_void_p).value or 0
    count, place = 0, start
    while place := memmem(place, start + len(buffer) - place, PREFIX, len(PREFIX)):
        count, place = count + 1, place + 1
    return count


FINDERS: dict[str, Callable[[bytes], int]] = {
    "native": lambda buffer: len(_relocate.find(buffer, (PREFIX,))),
    "twin": lambda buffer: len(_relocate_py.find(buffer, (PREFIX,))),
    "bytes.find": by_find,
    "memmem": by_memmem,
    "re": lambda buffer: sum(1 for _ in re.finditer(re.escape(PREFIX), buffer)),
}


@pytest.mark.parametrize("name", FINDERS)
def test_find(benchmark: Any, data: bytes, name: str) -> None:
    benchmark.extra_info["bytes"] = len(data)
    assert benchmark(FINDERS[name], data) == 100


def test_touch(benchmark: Any, data: bytes) -> None:
    """What is held against `find`: a loop over one word of each cache line of 64 bytes."""
    words = np.frombuffer(data, np.uint64)[::8]
    benchmark.extra_info["bytes"] = len(data)
    assert benchmark(lambda: int(np.bitwise_or.reduce(words))) != 0


@pytest.mark.parametrize("name", ["native", "bytes.find"])
def test_find_wide_in_zeros(benchmark: Any, name: str) -> None:
    """A path in UTF-32, which has runs of zeros as the data has."""
    needle, data = os.fsdecode(PREFIX).encode("utf-32-le"), bytes(64 << 20)
    finders: dict[str, Callable[[], bool]] = {
        "native": lambda: not _relocate.find(data, (needle,)), "bytes.find": lambda: data.find(needle) < 0
    }  # fmt: skip
    benchmark.extra_info["bytes"] = len(data)
    assert benchmark(finders[name])


def strings() -> tuple[bytearray, list[tuple[int, int, list[int]]]]:
    rows = [(k * 1000, 300, [k * 1000]) for k in range(10_000)]
    original = bytearray(10_000 * 1000)
    for offset, _, _ in rows:
        original[offset : offset + 300] = PLACEHOLDER + b"x" * 45
    return original, rows


KERNELS = pytest.mark.parametrize("kernel", [_relocate, _relocate_py], ids=["native", "twin"])


@KERNELS
def test_patch(benchmark: Any, kernel: Any) -> None:
    original, rows = strings()

    def patch(buffer: bytearray) -> bytearray:
        assert kernel.place_strings(buffer, rows, PLACEHOLDER, PREFIX) == -1
        return buffer

    patched = benchmark.pedantic(patch, setup=lambda: ((bytearray(original),), {}), rounds=20)
    assert patched.count(PREFIX) == len(rows) and PLACEHOLDER not in patched


@KERNELS
def test_unpatch(benchmark: Any, kernel: Any) -> None:
    original, rows = strings()
    patched = bytearray(original)
    assert _relocate_py.place_strings(patched, rows, PLACEHOLDER, PREFIX) == -1

    def unpatch(buffer: bytearray) -> bytearray:
        assert kernel.restore_strings(buffer, rows, PLACEHOLDER, PREFIX) == -1
        return buffer

    assert benchmark.pedantic(unpatch, setup=lambda: ((bytearray(patched),), {}), rounds=20) == original


@pytest.fixture(scope="module")
def small_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    rng = random.Random(2)
    for k in range(N_FILES):
        (folder / f"module_{k:04}.py").write_bytes(rng.randbytes(FILE_BYTES))
    return folder


def batch_read(kernel: Any, folder: Path) -> Callable[[], bytearray]:
    names = sorted(os.listdir(folder))
    infos = [os.stat(folder / name) for name in names]
    out = bytearray(N_FILES * FILE_BYTES)
    starts = array("q", range(0, len(out), FILE_BYTES))
    lengths, zeros = array("q", [FILE_BYTES] * N_FILES), array("q", [0] * N_FILES)
    mtimes = array("q", [info.st_mtime_ns for info in infos])
    descriptor = os.open(folder, os.O_RDONLY)
    raw = [os.fsencode(name) for name in names]

    def read() -> bytearray:
        assert kernel.read_files(descriptor, raw, lengths, mtimes, zeros, starts, lengths, out) == []
        return out

    return read


def plain_read(folder: Path) -> Callable[[], bytes]:
    paths = [folder / name for name in sorted(os.listdir(folder))]
    return lambda: b"".join([path.read_bytes() for path in paths])


@pytest.mark.parametrize("name", ["native", "twin", "pathlib"])
def test_batch_read(benchmark: Any, small_files: Path, name: str) -> None:
    expected = plain_read(small_files)()
    kernels = {"native": _batch, "twin": _batch_py}
    read = batch_read(kernels[name], small_files) if name in kernels else plain_read(small_files)
    assert benchmark(read) == expected


def tar_framing(kernel: Any) -> Callable[[], bytes]:
    names = [f"lib/python3.11/site-packages/package/module_{k:04}.py".encode() for k in range(N_FILES)]
    out = bytearray(512 * N_FILES)
    rows = [array("q", [value] * N_FILES) for value in (0o644, FILE_BYTES, 946684800)]
    places = array("q", range(0, len(out), 512))
    targets, kinds = [b""] * N_FILES, tarfile.REGTYPE * N_FILES

    def frame() -> bytes:
        kernel.tar_headers(names, targets, kinds, *rows, places, out)
        return bytes(out)

    return frame


def by_tarfile() -> bytes:
    out = []
    for k in range(N_FILES):
        info = tarfile.TarInfo(f"lib/python3.11/site-packages/package/module_{k:04}.py")
        info.mode, info.size, info.mtime = 0o644, FILE_BYTES, 946684800
        out.append(info.tobuf(tarfile.GNU_FORMAT))
    return b"".join(out)


@pytest.mark.parametrize("name", ["native", "twin", "tarfile"])
def test_tar_framing(benchmark: Any, name: str) -> None:
    kernels = {"native": _batch, "twin": _batch_py}
    frame = tar_framing(kernels[name]) if name in kernels else by_tarfile
    assert benchmark(frame) == by_tarfile()

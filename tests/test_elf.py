"""What ELF files need: the reader by hand against pyelftools, on real files and on broken ones."""

from __future__ import annotations

import io
import os
import platform
import random
import signal
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection

from fastpack import elf
from fastpack.reading import from_memory
from fastpack.requirements import version_key


def by_pyelftools(data: bytes) -> str | None:
    found = ELFFile(io.BytesIO(data))
    best: str | None = None
    for section in found.iter_sections():
        if not isinstance(section, GNUVerNeedSection):
            continue
        for _, needs in section.iter_versions():
            for need in needs:
                name = need.name.removeprefix("GLIBC_")
                if need.name.startswith("GLIBC_") and not need["vna_flags"] & 2:
                    best = name if best is None or version_key(name) > version_key(best) else best
    return best if best is None or version_key(best) else None


def real_files() -> Iterator[bytes]:
    """Libraries of this machine: those of Python, and what it was linked with."""
    folders = [sysconfig.get_path("stdlib") + "/lib-dynload", sysconfig.get_path("platlib"), "/usr/lib", "/usr/bin"]
    seen = 0
    for folder in folders:
        for place, _, names in os.walk(folder):
            for name in sorted(names):
                path = Path(place, name)
                if not path.is_file() or path.is_symlink() or path.stat().st_size > 4 << 20:
                    continue
                data = path.read_bytes()
                if data.startswith(elf.MAGIC):
                    yield data
                    seen += 1
                    if seen % 60 == 0:
                        break
            if seen >= 300:
                return


def test_real_files_need_what_pyelftools_says() -> None:
    arch = platform.machine()
    needed = []
    for data in [Path(sys.executable).resolve().read_bytes(), *real_files()]:
        found = elf.glibc_needed(from_memory(data), arch)
        assert found == by_pyelftools(data)
        assert elf.glibc_needed(from_memory(data), "s390x" if arch != "s390x" else "x86_64") is None
        needed.append(found)
    assert len(needed) > 20 and any(needed)


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """TimeoutError in what takes longer."""

    def stop(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("seed", range(3))
def test_broken_files_break_nothing(seed: int) -> None:
    rng = random.Random(seed)
    original = min(real_files(), key=lambda data: (by_pyelftools(data) is None, len(data)))
    sections = int.from_bytes(original[40:48], "little")
    same = 0
    for _ in range(400):
        data = bytearray(original)
        for _ in range(rng.randint(1, 6)):
            place = rng.choice([rng.randrange(64), rng.randrange(len(data)), rng.randrange(sections, len(data))])
            data[place] = rng.choice([0, 1, 255, rng.randrange(256)])
        cut = bytes(data[: rng.choice([len(data), rng.randrange(len(data))])])
        found = elf.glibc_needed(from_memory(cut), platform.machine())
        try:
            with at_most(0.5):  # a broken count may have it go round millions of times
                wanted = by_pyelftools(cut)
        except (
            TimeoutError,
            ELFError,
            ArithmeticError,
            LookupError,
            ValueError,
            AttributeError,
            TypeError,
            AssertionError,
        ):
            continue
        same += found == wanted
    assert same > 50


def test_what_is_no_elf_file_needs_nothing() -> None:
    for data in (b"", b"\x7fELF", b"\x7fELF\x03", elf.MAGIC + b"\x02\x01" + bytes(58), b"#!/bin/sh\n" * 20):
        assert elf.glibc_needed(from_memory(data), "x86_64") is None


def test_a_ring_of_needs_ends() -> None:
    """Links that lead back: every need is looked at once at most as often as there is room for needs."""
    ring = bytearray(64)
    ring[0:16] = (1).to_bytes(2, "little") + (0xFFFF).to_bytes(2, "little") + bytes(4) + (16).to_bytes(4, "little") * 2
    ring[16:32] = bytes(12) + (0).to_bytes(4, "little")
    assert len(list(elf._versions(bytes(ring), "<"))) <= 8

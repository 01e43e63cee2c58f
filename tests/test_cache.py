"""The cache of frames: the same bytes as without it, bounded, checked when read, safe under several packs and kills."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import fastpack
from fastpack import cache, errors
from tests.test_cli import Run
from tests.test_environment import dist, write


@pytest.fixture
def env(made: str) -> str:
    for k in range(4):
        dist(made, f"tool{k}", {f"tool{k}.bin": random.Random(k).randbytes(1 << 18)})
    return made


def frames(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


def test_a_second_pack_compresses_nothing(env: str, tmp_path: Path) -> None:
    plain, one, two = (str(tmp_path / name) for name in ("plain.tar.zst", "one.tar.zst", "two.tar.zst"))
    fastpack.pack(prefix=env, output=plain)
    first = fastpack.pack(prefix=env, output=one, cache=str(tmp_path / "cache"))
    second = fastpack.pack(prefix=env, output=two, cache=str(tmp_path / "cache"))
    assert first.work["reused"] == 0 and second.work["compressed"] == 0 and not second.warnings
    assert Path(plain).read_bytes() == Path(one).read_bytes() == Path(two).read_bytes()


def test_frames_of_another_level_are_others(env: str, tmp_path: Path) -> None:
    root = str(tmp_path / "cache")
    for level in (3, 9, None):
        fresh, out = str(tmp_path / f"fresh{level}.tar.zst"), str(tmp_path / f"out{level}.tar.zst")
        report = fastpack.pack(prefix=env, output=out, compress_level=level, cache=root)
        fastpack.pack(prefix=env, output=fresh, compress_level=level)
        assert report.work["reused"] == 0 and Path(out).read_bytes() == Path(fresh).read_bytes()


def test_a_rotten_frame_is_compressed_anew_and_replaced(env: str, tmp_path: Path) -> None:
    root = tmp_path / "cache"
    out = fastpack.pack(prefix=env, output=str(tmp_path / "a.tar.zst"), cache=str(root)).output
    for damage in (lambda data: data[:-1] + bytes([data[-1] ^ 1]), lambda data: data[:20], lambda data: b""):
        victim = max(frames(root), key=lambda path: path.stat().st_size)
        victim.write_bytes(damage(victim.read_bytes()))
        for codes in (["rotten-cache"], []):  # found, and put in again
            again = fastpack.pack(prefix=env, output=str(tmp_path / "b.tar.zst"), cache=str(root))
            assert [warning.code for warning in again.warnings] == codes
            assert bool(again.work["compressed"]) == bool(codes)
            assert Path(again.output).read_bytes() == Path(out).read_bytes()
            os.unlink(again.output)


def test_what_was_used_longest_ago_goes_first(env: str, tmp_path: Path) -> None:
    root = tmp_path / "cache"
    fastpack.pack(prefix=env, output=str(tmp_path / "a.tar.zst"), cache=str(root))
    every = frames(root)
    for age, path in enumerate(every):
        os.utime(path, (time.time() - 1000 + age, time.time() - 1000 + age))
    used = every[0]
    os.utime(used)
    limit = sum(path.stat().st_size for path in (used, *every[-2:]))
    report = cache.clean(str(root), limit)
    assert set(frames(root)) == {used, *every[-2:]} and report.n_bytes == limit
    assert report.n_removed_frames == len(every) - 3
    fastpack.pack(prefix=env, output=str(tmp_path / "b.tar.zst"), cache=str(root), cache_bytes=1 << 18)
    assert sum(path.stat().st_size for path in frames(root)) <= 1 << 18


def test_only_what_is_ours_is_removed(env: str, tmp_path: Path) -> None:
    root = tmp_path / "cache"
    write(str(root), "mine", "mine")
    write(str(root), "fastpack-frames-0/aa/not-a-frame", "mine")
    fastpack.pack(prefix=env, output=str(tmp_path / "a.tar.zst"), cache=str(root))
    old = root / "fastpack-frames-0" / ("tmp-" + "0" * 16)
    young = root / "fastpack-frames-0" / ("tmp-" + "1" * 16)
    for path in (old, young):
        path.write_bytes(b"left by a kill, or being written")
    os.utime(old, (1, 1))
    cache.clean(str(root), 0)
    assert {path.name for path in frames(root)} == {"mine", "not-a-frame", young.name}


def test_a_cache_that_cannot_be_written_does_not_stop_a_pack(env: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(errors.Unreadable, match="cache"):
        fastpack.pack(prefix=env, output=str(tmp_path / "a.tar.zst"), cache=str(tmp_path / "file"))
    root = tmp_path / "cache"
    fastpack.pack(prefix=env, output=str(tmp_path / "a.tar.zst"), cache=str(root))
    cache.clean(str(root), 0)
    shelves = root / "fastpack-frames-0"
    for shelf in shelves.iterdir():
        shelf.rmdir()
        shelf.write_text("a file where a directory should be")
    report = fastpack.pack(prefix=env, output=str(tmp_path / "b.tar.zst"), cache=str(root))
    assert {warning.code for warning in report.warnings} == {"cache-failed"}
    assert (tmp_path / "a.tar.zst").read_bytes() == (tmp_path / "b.tar.zst").read_bytes()


def test_eight_packs_at_once_some_killed(env: str, tmp_path: Path) -> None:
    root = str(tmp_path / "cache")
    fresh = fastpack.pack(prefix=env, output=str(tmp_path / "fresh.tar.zst")).output
    command = [
        sys.executable,
        "-m",
        "fastpack.cli",
        "pack",
        "-p",
        env,
        "--cache",
        root,
        "--cache-size",
        "600k",
        "-q",
        "-o",
    ]
    rng = random.Random(8)
    for turn in range(2):
        outputs = [str(tmp_path / f"{turn}-{k}.tar.zst") for k in range(8)]
        running = [subprocess.Popen([*command, out]) for out in outputs]
        for process in running[:3]:
            time.sleep(rng.uniform(0.1, 0.4))
            process.send_signal(signal.SIGKILL)
        for process, out in zip(running, outputs, strict=True):
            assert process.wait(120) in (0, -signal.SIGKILL)
            if process.returncode == 0 or os.path.exists(out):  # the kill may come when all is done
                assert Path(out).read_bytes() == Path(fresh).read_bytes()
    assert cache.verify(root).rotten == ()


def test_the_command(fastpack: Run, env: str, tmp_path: Path) -> None:
    root = tmp_path / "cache"
    environ = {**os.environ, "FASTPACK_CACHE": str(root)}
    done = fastpack("pack", "-p", env, "-o", str(tmp_path / "a.tar.zst"), env=environ)
    assert done.code == 0 and frames(root)
    done = fastpack("cache", "info", str(root), "--json")
    assert done.json["result"]["n_frames"] == len(frames(root)) and done.code == 0
    victim = frames(root)[0]
    victim.write_bytes(b"x" * 100)
    done = fastpack("cache", "verify", str(root), "--json")
    assert done.code == 34 and done.json["result"]["rotten"] == [victim.name] and not victim.exists()
    assert fastpack("cache", "verify", str(root)).code == 0
    assert fastpack("cache", "clean", str(root)).code == 0 and not frames(root)
    assert fastpack("cache", "info", str(tmp_path / "nothing")).code == 2
    assert fastpack("pack", "-p", env, "-o", str(tmp_path / "c.tar.zst"), "--cache-size", "much").code == 2


@pytest.mark.parametrize(
    ("text", "n_bytes"), [("0", 0), ("12", 12), ("1.5k", 1500), ("20G", 20 * 10**9), ("3 MB", 3 * 10**6)]
)
def test_sizes(text: str, n_bytes: int) -> None:
    assert cache.parse_size(text) == n_bytes
    for bad in ("", "-1", "1X", "G", "1e5"):
        with pytest.raises(errors.UsageError):
            cache.parse_size(bad)

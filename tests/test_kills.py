"""SIGKILL at 50 random moments of each command: what was there stays whole, and the next run cleans up and succeeds."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import fastpack
from fastpack import errors
from fastpack.made_prefix import MadeFile, MadePackage, install
from tests.conftest import P, app_package, c_string
from tests.oracles.trees import snapshot
from tests.test_conda_unpack import conda_unpack, extract, tree

KILLS = 50
FASTPACK = [sys.executable, "-m", "fastpack.cli"]


@pytest.fixture
def source(tmp_path: Path) -> str:
    """An environment that takes a tenth of a second or so to pack, unpack and relocate."""
    prefix = str(tmp_path / "source")
    rng = random.Random(1)
    text = {
        f"etc/{k}": MadeFile(P + b"/%d\n" % k + rng.randbytes(2000).hex().encode(), file_mode="text")
        for k in range(150)
    }
    binary = {
        f"lib/{k}.so": MadeFile(c_string(b"", b"/lib") + rng.randbytes(20000), file_mode="binary") for k in range(60)
    }
    install([app_package(), MadePackage("many", files=text | binary)], prefix)
    return prefix


def kill_often(command: Callable[[], list[str]], seed: int, look: Callable[[], None]) -> None:
    """Run commands until KILLS of them were killed, at random moments; ``look`` is called after each.

    What a run takes is learnt from those that end by themselves, so that a busy or a quick machine gives as many kills.
    """
    rng = random.Random(seed)
    started = time.monotonic()
    subprocess.run(command(), check=True, capture_output=True)
    long = time.monotonic() - started
    look()
    n_killed = 0
    for _ in range(20 * KILLS):
        started = time.monotonic()
        process = subprocess.Popen(command(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(long * rng.uniform(0.3, 1.05))  # most of them where the work is, behind the start of Python
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        if process.wait() == -signal.SIGKILL:
            n_killed += 1
            long *= 1.01
        else:
            long = time.monotonic() - started
        look()
        if n_killed == KILLS:
            return
    raise AssertionError(f"only {n_killed} runs could be killed")


def test_a_killed_pack(source: str, tmp_path: Path) -> None:
    """The output is the archive of one state of the source or of the other, whole: each run finds a changed file."""
    output = tmp_path / "a.tar.zst"
    changing = Path(source, "etc/changing")
    contents = [random.Random(k).randbytes(500_000) for k in range(2)]
    turn = 0

    def change(k: int) -> None:
        changing.write_bytes(contents[k])
        os.utime(changing, (0, 0))

    def command() -> list[str]:
        nonlocal turn
        turn = 1 - turn
        change(turn)
        return [*FASTPACK, "pack", "-p", source, "-o", str(output), "--force", "-q"]

    change(0)
    wanted = [b"", b""]
    for k in range(2):
        change(k)
        fastpack.pack(prefix=source, output=str(tmp_path / "wanted"), format="tar.zst", force=True)
        wanted[k] = (tmp_path / "wanted").read_bytes()
    os.unlink(tmp_path / "wanted")
    before = snapshot(source)

    def look() -> None:
        assert output.read_bytes() in wanted

    kill_often(command, 1, look)
    change(1)
    assert snapshot(source) == before and wanted[0] != wanted[1]
    subprocess.run(command(), check=True)
    assert sorted(os.listdir(tmp_path)) == ["a.tar.zst", "source"]
    assert output.read_bytes() == wanted[turn]


@pytest.mark.parametrize("way", ["new", "piped", "force", "added"])
def test_a_killed_unpack(source: str, tmp_path: Path, way: str) -> None:
    archive = str(tmp_path / "a.tar.zst")
    fastpack.pack(prefix=source, output=archive)
    target = tmp_path / "target"
    command = [*FASTPACK, "unpack", archive, "-p", str(target), "-q"]
    if way == "piped":
        command = ["sh", "-c", 'exec "$@" < "$0"', archive, *FASTPACK, "unpack", "-", "-p", str(target), "-q"]
    if way in ("force", "added"):
        command.append("--force")

    def clean() -> None:
        shutil.rmtree(target, ignore_errors=True)
        if way == "added":
            target.mkdir()
            (target / "precious").write_text("mine")
            os.utime(target / "precious", (0, 0))

    def run() -> list[str]:
        if way != "force":
            clean()
        return command

    def look() -> None:
        if way == "force":
            assert fastpack.verify(str(target)).problems == () and snapshot(str(target)).keys() == wanted.keys()
            return
        if way == "added":
            assert (target / "precious").read_text() == "mine"
        finished = (target / ".fastpack" / "state.json").exists() and not (target / ".fastpack" / "incomplete").exists()
        if finished:
            assert snapshot(str(target)) == wanted
        elif target.exists() and way != "added":
            assert fastpack.status(str(target)).condition == "incomplete"
            with pytest.raises(errors.IncompleteEnvironment):
                fastpack.relocate(str(target))

    clean()
    subprocess.run(command, check=True)
    wanted = snapshot(str(target))
    kill_often(run, 2, look)
    subprocess.run(run(), check=True)
    assert snapshot(str(target)) == wanted
    assert sorted(os.listdir(tmp_path)) == ["a.tar.zst", "source", "target"]


@pytest.mark.parametrize("tool", ["relocate", "conda-unpack"])
def test_a_killed_relocation(source: str, tmp_path: Path, tool: str) -> None:
    archive = str(tmp_path / "a.tar.zst")
    fastpack.pack(prefix=source, output=archive)
    places = [str(tmp_path / name) for name in ("one", "the other place")]
    if tool == "relocate":
        fastpack.unpack(archive, places[0])
    else:
        extract(archive, places[0])
    os.rename(places[0], places[1])

    def command(place: str) -> list[str]:
        return [*FASTPACK, "relocate", place, "-q"] if tool == "relocate" else [f"{place}/bin/conda-unpack", "-q"]

    n_runs = 0

    def move() -> str:
        places.reverse()
        os.rename(places[1], places[0])
        return places[0]

    def look() -> None:
        nonlocal n_runs
        n_runs += 1
        if n_runs % 5 == 0:  # most times it is moved on half relocated
            subprocess.run(command(places[0]), check=True, capture_output=True)
            assert fastpack.verify(places[0]).problems == ()

    places.reverse()
    kill_often(lambda: command(move()), 3, look)
    here = move()
    done = conda_unpack(here)
    assert done.returncode == 0 and "left as it is" not in done.stderr
    found = tree(here)
    shutil.rmtree(here)
    fastpack.unpack(archive, here)
    assert found == tree(here)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount")
@pytest.mark.parametrize("tool", ["relocate", "conda-unpack"])
def test_a_full_disk_at_every_stage_of_a_relocation(source: str, tmp_path: Path, tool: str) -> None:
    """With more and more room: refused with one line and whole, until it fits."""
    archive = str(tmp_path / "a.tar.zst")
    fastpack.pack(prefix=source, output=archive)
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("this machine does not let us mount")
    try:
        fastpack.unpack(archive, f"{disk}/one")
        os.rename(f"{disk}/one", f"{disk}/another place")
        here = f"{disk}/another place"
        command = [*FASTPACK, "relocate", here, "-q"] if tool == "relocate" else [f"{here}/bin/conda-unpack", "-q"]
        codes = []
        for room in (0, 1, 2, 3, 5, 8, 400):
            with open(disk / "fill", "wb", buffering=0) as file:
                try:
                    while True:
                        file.write(bytes(4096))
                except OSError:
                    pass
                os.truncate(file.fileno(), max(0, os.fstat(file.fileno()).st_size - 4096 * room))
            done = subprocess.run(command, capture_output=True, text=True)
            codes.append(done.returncode)
            assert done.returncode in (0, 23) and len(done.stderr.splitlines()) <= 1, done.stderr
            os.unlink(disk / "fill")
        assert codes[0] == 23 and codes[-1] == 0
        assert conda_unpack(here).returncode == 0 and fastpack.verify(here).problems == ()
    finally:
        subprocess.run(["umount", str(disk)], check=True)

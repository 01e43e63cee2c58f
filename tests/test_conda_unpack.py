"""bin/conda-unpack after plain extraction: the same bytes as fastpack's own unpack, any number of times."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fastpack
from tests.conftest import need
from tests.oracles.trees import snapshot
from tests.test_environment import write

pytestmark = need("tar", "zstd")


def extract(archive: str, target: str) -> str:
    os.makedirs(target)
    subprocess.run(["tar", "--zstd", "-xf", archive], cwd=target, check=True)
    return target


def conda_unpack(prefix: str, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [f"{prefix}/bin/conda-unpack", *options], capture_output=True, text=True, env={**os.environ, **variables}
    )


def tree(prefix: str) -> dict[str, tuple[object, ...]]:
    """A tree without the state's archive id, which plain tar cannot know, and directories' times."""
    found = snapshot(prefix)
    state = json.loads(os.fsdecode(found[".fastpack/state.json"][2]))  # type: ignore[arg-type]
    found[".fastpack/state.json"] = (state["prefix"], state["complete"])
    return found


@pytest.fixture
def archive(made: str, tmp_path: Path) -> str:
    write(made, "bin/own", f"#!{made}/bin/python -u\nprint('{made}')\n", 0o755)
    write(made, "share/k.json", json.dumps({"x": made, "u": f"file://{made}/y"}))
    out = str(tmp_path / "a.tar.zst")
    fastpack.pack(prefix=made, output=out)
    return out


@pytest.mark.parametrize(
    "name", ["short", "with space", "环境", "q'u\"o\\te$x%y#", "x" * 120, os.fsdecode(b"raw-\xff")]
)
def test_row_18_the_same_as_unpack_and_again_and_after_a_move(archive: str, tmp_path: Path, name: str) -> None:
    target = str(tmp_path / name)
    fastpack.unpack(archive, target)
    wanted = tree(target)
    shutil.rmtree(target)
    extract(archive, target)
    done = conda_unpack(target)
    assert done.returncode == 0, done.stderr
    assert tree(target) == wanted
    done = conda_unpack(target)
    assert done.returncode == 0 and "nothing to do" in done.stderr and tree(target) == wanted
    moved = str(tmp_path / "moved elsewhere")
    os.rename(target, moved)
    assert conda_unpack(moved, "--quiet").stderr == ""
    fastpack.unpack(archive, str(tmp_path / "other"))
    os.rename(moved, target)
    assert conda_unpack(target).returncode == 0
    assert tree(target) == wanted, "N1 -> N2 -> N1 is identity"


def test_only_files_that_hold_the_prefix_are_touched(archive: str, tmp_path: Path) -> None:
    target = extract(archive, str(tmp_path / "target"))
    before = {path: os.lstat(os.path.join(target, path)).st_ino for path in snapshot(target)}
    listed = {row["path"] for row in json.loads(Path(target, ".fastpack/relocations.json").read_text())["files"]}
    assert conda_unpack(target).returncode == 0
    after = {path: os.lstat(os.path.join(target, path)).st_ino for path in snapshot(target)}
    assert {path for path in before if before[path] != after[path]} == listed
    assert set(after) - set(before) == {".fastpack/state.json"}


def test_a_prefix_that_is_too_long_changes_nothing(archive: str, tmp_path: Path) -> None:
    target = extract(archive, str(tmp_path / ("y" * 100) / ("z" * 150)))
    before = snapshot(target)
    done = conda_unpack(target)
    assert done.returncode == 20 and "at most 255" in done.stderr and snapshot(target) == before


def test_a_file_that_was_changed_since_is_left_and_reported(archive: str, tmp_path: Path) -> None:
    target = extract(archive, str(tmp_path / "target"))
    write(target, "share/app/app.conf", "mine now\n")
    os.unlink(os.path.join(target, "share/k.json"))
    done = conda_unpack(target)
    assert done.returncode == 0 and "share/app/app.conf" in done.stderr and "share/k.json" in done.stderr
    assert Path(target, "share/app/app.conf").read_text() == "mine now\n"


@pytest.mark.parametrize(
    ("path", "data"),
    [
        (".fastpack/relocations.json", "{"),
        (".fastpack/relocations.json", '{"format": 5}'),
        (".fastpack/state.json", "x"),
    ],
)
def test_a_broken_list_is_one_line(archive: str, tmp_path: Path, path: str, data: str) -> None:
    target = extract(archive, str(tmp_path / "target"))
    write(target, path, data)
    before = snapshot(target)
    done = conda_unpack(target)
    assert done.returncode == 25 and done.stderr.count("\n") == 1 and snapshot(target) == before
    os.unlink(os.path.join(target, ".fastpack/relocations.json"))
    assert conda_unpack(target).returncode == 25


def test_the_head_checks_the_machine_and_needs_a_python(archive: str, tmp_path: Path) -> None:
    target = extract(archive, str(tmp_path / "target"))
    tools = tmp_path / "tools"
    write(str(tools), "uname", "#!/bin/sh\ncase $1 in -m) echo m68k;; *) echo Linux;; esac\n", 0o755)
    done = conda_unpack(target, PATH=f"{tools}:/usr/bin:/bin")
    assert done.returncode == 24 and "m68k" in done.stderr
    (tools / "uname").unlink()
    for name in ("sh", "dirname", "uname"):
        os.symlink(str(shutil.which(name)), tools / name)
    done = conda_unpack(target, PATH=str(tools))
    assert done.returncode == 1 and "no Python 3.8 or newer" in done.stderr
    write(target, ".fastpack/incomplete", "")
    assert conda_unpack(target).returncode == 25


def test_options(archive: str, tmp_path: Path) -> None:
    target = extract(archive, str(tmp_path / "target"))
    assert conda_unpack(target, "--version").stdout.strip() == f"conda-unpack (fastpack {fastpack.__version__})"
    assert "not looked at" in conda_unpack(target, "--help").stdout
    assert conda_unpack(target, "--no-such-thing").returncode == 2
    for start in (["./conda-unpack"], ["sh", "conda-unpack"]):
        done = subprocess.run(start, cwd=f"{target}/bin", capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert json.loads(Path(target, ".fastpack/state.json").read_text())["prefix"] == target
    path = f"{target}/bin:{os.environ['PATH']}"
    assert subprocess.run(["conda-unpack"], env={**os.environ, "PATH": path}).returncode == 0


PYTHONS = [path for minor in range(8, 15) if (path := shutil.which(f"python3.{minor}"))]


@pytest.mark.parametrize("python", PYTHONS or [sys.executable])
def test_every_python_at_hand_runs_it(archive: str, tmp_path: Path, python: str) -> None:
    if subprocess.run([python, "-c", "import json"], capture_output=True).returncode:
        pytest.skip(f"{python} does not run")
    target = extract(archive, str(tmp_path / "target"))
    script = f"{target}/bin/conda-unpack"
    done = subprocess.run([python, "-I", "-W", "error", script, target], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

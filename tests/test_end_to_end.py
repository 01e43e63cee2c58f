"""The main job on real environments: made, packed, deleted, unpacked elsewhere, run, and held against an installation."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import fastpack
from fastpack.demo import make_environment
from tests.conftest import need, run_fastpack
from tests.oracles.trees import differences, snapshot

pytestmark = pytest.mark.usefixtures("tmp_path")


def output(*command: str, **variables: str) -> str:
    """A command's output, run from / and without the developer's PYTHON* variables; it must succeed."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, capture_output=True, text=True, env={**clean, **variables}, cwd="/")
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


# --- an environment made from the running Python: everywhere


def test_a_real_python_runs_where_it_was_unpacked(real_archive: str, tmp_path: Path) -> None:
    target = str(tmp_path / "a b 环境")
    fastpack.unpack(real_archive, target)
    assert output(f"{target}/bin/python", "-c", "import sys; print(sys.prefix)").strip() == target
    assert target in output(f"{target}/bin/pip", "--version")
    assert output(f"{target}/bin/hello").splitlines()[0] == f"compiled-in prefix: {target}"
    assert "No broken requirements" in output(f"{target}/bin/python", "-m", "pip", "check")


@need("tar", "zstd")
def test_it_starts_after_plain_tar_without_any_further_step(real_archive: str, tmp_path: Path) -> None:
    target = tmp_path / "plain 环境"
    target.mkdir()
    subprocess.run(["tar", "--zstd", "-xf", real_archive], cwd=target, check=True)
    assert str(target) in output(f"{target}/bin/pip", "--version")
    os.symlink(target / "bin" / "pip", tmp_path / "link")
    assert str(target) in output(str(tmp_path / "link"), "--version")
    text = '. "$1/bin/activate" 2>/dev/null && pip --version'
    assert str(target) in output("sh", "-c", text, "sh", str(target))


def test_pycs_stay_valid_and_are_not_written_again(real_source: str, tmp_path: Path) -> None:
    source = str(tmp_path / "source")
    shutil.copytree(real_source, source, symlinks=True)
    output(f"{source}/bin/python", "-m", "compileall", "-q", f"{source}/lib")
    pycs = {path for path in snapshot(source) if path.endswith(".pyc")}
    archive, target = str(tmp_path / "a.tar.zst"), str(tmp_path / "target")
    report = fastpack.pack(prefix=source, output=archive)
    stale = report.pyc.get("dropped: source names the prefix", 0)
    assert report.pyc["valid"] == len(pycs) - stale > 500
    fastpack.unpack(archive, target)
    before = snapshot(target)
    modules = "json, email, http.server, unittest, xml.dom, concurrent.futures, asyncio, pip._internal.cli.main"
    output(f"{target}/bin/python", "-c", f"import {modules}")
    after = snapshot(target)
    written = {path for path in after if after[path] != before.get(path) and after[path][0] == "file"}
    assert written == set()


def test_the_same_archive_from_two_places_made_by_pip(tmp_path: Path) -> None:
    """Point 5: what pip's scripts and the compiled modules state of the place makes no difference."""
    archives = []
    for name in ("one", "two with a longer name 环"):
        prefix = str(tmp_path / name)
        make_environment(prefix)
        output(f"{prefix}/bin/python", "-m", "compileall", "-q", f"{prefix}/lib")
        out = str(tmp_path / f"{len(archives)}.tar.zst")
        fastpack.pack(prefix=prefix, output=out, n_threads=1 + len(archives))
        archives.append(Path(out).read_bytes())
    assert archives[0] == archives[1]


@need("zstd")
def test_demo(tmp_path: Path) -> None:
    done = run_fastpack("demo", "--work", tmp_path / "work", "--json")
    assert done.code == 0, done.err
    result = done.json["result"]
    assert "环境" in result["destination"] and any("compiled-in prefix" in line for line in result["output"])


# --- an environment from a conda channel, where one is at hand

TARGETS = {"short": "/tmp/fp-{pid}", "200 bytes": "/tmp/fp-{pid}/" + "x" * 200, "spaces": "/tmp/fp-{pid} a/环 境"}


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> object:
    path = TARGETS[request.param].format(pid=os.getpid())
    if request.param == "200 bytes":
        path = path[:200]
    root = path.split("/")[2]
    yield path
    shutil.rmtree(f"/tmp/{root}", ignore_errors=True)


@pytest.mark.channel
@pytest.mark.parametrize("way", ["unpack", "pipe", "tar"])
def test_equals_a_fresh_installation_at_that_prefix(
    channel_archive: str, make_from_channel: Callable[[str], None], target: str, way: str, tmp_path: Path
) -> None:
    if way == "pipe" and " " not in target:
        pytest.skip("one target is enough for pipes: it is the placing that differs, and tar places by the same code")
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if way == "unpack":
        fastpack.unpack(channel_archive, target)
    elif way == "pipe":
        with open(channel_archive, "rb") as stream:
            assert run_fastpack("unpack", "-", "-p", target, stdin=stream).code == 0
    else:
        if shutil.which("zstd") is None:
            pytest.skip("not on this machine: zstd")
        os.makedirs(target)
        subprocess.run(["tar", "--zstd", "-xf", channel_archive], cwd=target, check=True)
        for script in (
            "edgecase-script",
            "edgecase-script-u",
            "edgecase-script-alias",
            "pip",
            "pip3.11",
            "pytest",
            "f2py",
        ):
            output(f"{target}/bin/{script}", "--version", **NO_PYC)
        output(f"{target}/bin/conda-unpack")
        output(f"{target}/bin/conda-unpack")
    assert_it_works(target)
    if way == "tar":
        moved = f"{target} moved"
        os.rename(target, moved)
        output(f"{moved}/bin/conda-unpack")
        assert_it_works(moved)
        os.rename(moved, target)
        output(f"{target}/bin/conda-unpack")
    kept = str(tmp_path / "kept")
    shutil.move(target, kept)
    make_from_channel(target)
    assert differences(kept, target) == []


#: The source of one .pyc names the prefix, so any Python would write it again: for the comparison, none does.
NO_PYC = {"PYTHONDONTWRITEBYTECODE": "1"}


def assert_it_works(target: str) -> None:
    output(f"{target}/bin/edgecase-binary", target, **NO_PYC)
    assert output(f"{target}/bin/openssl", "version", "-d").strip() == f'OPENSSLDIR: "{target}/ssl"'
    assert target in output(f"{target}/bin/python", "-m", "pip", "--version", **NO_PYC)
    assert "pytest" in output(f"{target}/bin/pytest", "--version", **NO_PYC)
    assert (
        output(f"{target}/bin/python", "-c", "import numpy, requests; print(numpy.arange(4).sum())", **NO_PYC).strip()
        == "6"
    )
    assert "No broken requirements" in output(f"{target}/bin/python", "-m", "pip", "check", **NO_PYC)
    assert output(f"{target}/bin/edgecase-script-u", **NO_PYC).split() == [*target.split(), "True"]


@pytest.mark.channel
def test_every_prefix_file_of_the_channel_is_proven(make_from_channel: Callable[[str], None], tmp_path: Path) -> None:
    archives = []
    for name in ("one", "the other one 环"):
        prefix = str(tmp_path / name)
        make_from_channel(prefix)
        out = str(tmp_path / f"{len(archives)}.tar.zst")
        report = fastpack.pack(prefix=prefix, output=out, n_threads=1 + len(archives))
        with_prefix = {key: n for key, n in report.verdicts.items() if key.endswith("with a prefix")}
        assert set(with_prefix) == {"proven with a prefix", "placed with a prefix"}
        # Placed: entry points, which no package holds.
        assert with_prefix["proven with a prefix"] > 150 > 20 > with_prefix["placed with a prefix"]
        assert not report.not_relocated
        archives.append(Path(out).read_bytes())
    assert archives[0] == archives[1], "the archive does not depend on where the environment lay"


@pytest.mark.channel
def test_pip_inside_conda(make_from_channel: Callable[[str], None], tmp_path: Path) -> None:
    """A wheel with a script, installed by the environment's own pip: RECORD's hashes hold wherever it is unpacked."""
    source, archive, target = str(tmp_path / "source"), str(tmp_path / "a.tar.zst"), str(tmp_path / "n 环")
    make_from_channel(source)
    project = tmp_path / "project"
    (project / "late_tool").mkdir(parents=True)
    (project / "late_tool/__init__.py").write_text("import sys\ndef main():\n    print('late', sys.prefix)\n")
    (project / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "late-tool"\nversion = "1.0"\nscripts = {late-tool = "late_tool:main"}\n'
        '[tool.setuptools]\npackages = ["late_tool"]\n'
    )
    output(f"{source}/bin/python", "-m", "pip", "install", "-q", "--no-build-isolation", "--no-index", str(project))
    report = fastpack.pack(prefix=source, output=archive)
    shutil.rmtree(source)
    assert report.pyc["valid"] >= 1
    fastpack.unpack(archive, target)
    assert output(f"{target}/bin/late-tool").split(maxsplit=1) == ["late", target + "\n"]
    check_record(target)
    plain = str(tmp_path / "plain")
    os.makedirs(plain)
    if shutil.which("zstd"):
        subprocess.run(["tar", "--zstd", "-xf", archive], cwd=plain, check=True)
        check_record(plain)
        output(f"{plain}/bin/conda-unpack", "-q")
        check_record(plain)
        output(f"{plain}/bin/python", "-m", "pip", "uninstall", "-q", "-y", "late-tool")
        assert not os.path.exists(f"{plain}/bin/late-tool")


def check_record(prefix: str) -> None:
    """What pip recorded of late-tool is what lies there."""
    code = (
        "import base64, hashlib, importlib.metadata as m\n"
        "for f in m.distribution('late-tool').files:\n"
        "    if f.hash:\n"
        "        data = f.read_binary()\n"
        "        value = base64.urlsafe_b64encode(hashlib.new(f.hash.mode, data).digest()).rstrip(b'=').decode()\n"
        "        print(f, value == f.hash.value, len(data) == f.size)\n"
    )
    lines = output(f"{prefix}/bin/python", "-c", code).splitlines()
    assert any("bin/late-tool" in line for line in lines) and any("direct_url.json" in line for line in lines)
    assert all(line.endswith("True True") for line in lines), lines
    assert re.search(r"file://", Path(prefix, next(iter(
        path for path in snapshot(prefix) if path.endswith("late_tool-1.0.dist-info/direct_url.json")
    ))).read_text())  # fmt: skip


@pytest.mark.channel
def test_demo_from_a_channel(make_from_channel: Callable[[str], None]) -> None:
    channel = os.environ["FASTPACK_TEST_CHANNEL"]
    done = run_fastpack("demo", "--channel", channel, "python 3.11.*", "pip")
    assert done.code == 0, done.err
    assert sys.executable

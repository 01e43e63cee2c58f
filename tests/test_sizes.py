"""du and --slim: what is counted, what is left out, and that it is said."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from fastpack import elf
from fastpack.kinds import KINDS, kinds_of
from fastpack.made_prefix import MadeFile, MadePackage, install
from tests.conftest import run_fastpack

SITE = "lib/python3.11/site-packages"


@pytest.mark.parametrize(
    ("path", "kinds"),
    [
        (f"{SITE}/pkg/tests/test_a.py", ("tests",)),
        (f"{SITE}/pkg/tests/__pycache__/test_a.cpython-311.pyc", ("tests", "pyc")),
        (f"{SITE}/pkg/tests/data/x.h", ("tests", "headers")),
        ("lib/python3.13t/test/support/__init__.py", ("tests",)),
        ("lib/python3.11/idlelib/idle_test/a.py", ("tests",)),
        (f"{SITE}/pkg/testing/a.py", ()),
        (f"{SITE}/pkg/tests.py", ()),
        ("share/app/tests/a", ()),
        ("include/python3.11/Python.h", ("headers",)),
        ("include/c++/v1/vector", ("headers",)),
        (f"{SITE}/torch/include/ATen/ATen.hpp", ("headers",)),
        ("lib/libz.a", ("static-libraries",)),
        ("lib/libz.so", ()),
        ("lib/python3.11/__pycache__/os.cpython-311.pyc", ("pyc",)),
        (f"{SITE}/sourceless.pyc", ()),
        ("share/doc/x/README", ("docs",)),
        ("share/man/man1/x.1", ("docs",)),
        ("share/docs.txt", ()),
        ("man/x.1", ("docs",)),
        ("lib/debug/libz.so", ("debug",)),
        ("bin/tool.debug", ("debug",)),
    ],
)
def test_kinds_of_paths(path: str, kinds: tuple[str, ...]) -> None:
    assert kinds_of(path) == kinds


@pytest.fixture
def env(tmp_path: Path) -> str:
    prefix = str(tmp_path / "env")
    os.makedirs(prefix)
    files = {
        f"{SITE}/pkg/__init__.py": MadeFile(b"VALUE = 1\n"),
        f"{SITE}/pkg/tests/__init__.py": MadeFile(b"#" * 1000),
        "include/app.h": MadeFile(b"/" * 500),
        "lib/libapp.a": MadeFile(b"a" * 300),
        "lib/libapp-1.a": MadeFile(link="libapp.a"),
        "share/doc/app/README": MadeFile(b"d" * 200),
        "lib/libapp.so": MadeFile(b"s" * 100),
    }
    install([MadePackage("app", files=files)], prefix)
    Path(prefix, "own.h").write_bytes(b"o" * 50)
    os.link(Path(prefix, "own.h"), Path(prefix, "again.h"))
    return prefix


def test_du_of_an_environment_and_of_its_archive(env: str, tmp_path: Path) -> None:
    done = run_fastpack("du", env, "--json")
    report = done.json["result"]
    assert report["kinds"]["tests"] == {"n_files": 1, "n_bytes": 1000}
    assert report["kinds"]["headers"] == {"n_files": 2, "n_bytes": 550}, "a file with two names counts once"
    assert report["kinds"]["static-libraries"]["n_bytes"] == 300 and report["kinds"]["docs"]["n_bytes"] == 200
    app = report["packages"][0]
    assert app["name"] == "app" and app["kinds"]["tests"] == 1000 and app["n_bytes"] >= 2110
    assert sum(package["n_bytes"] for package in report["packages"]) == report["n_bytes"]
    assert sum(kind["n_bytes"] for kind in report["kinds"].values()) == report["n_bytes"]
    run_fastpack("pack", "-p", env, "-o", tmp_path / "a.tar.zst")
    packed = run_fastpack("du", tmp_path / "a.tar.zst", "--json").json["result"]
    assert packed["kinds"]["tests"] == report["kinds"]["tests"] and packed["debug_section_bytes"] is None
    text = run_fastpack("du", env, "--top", "1")
    assert text.code == 0 and "conda app 1.0" in text.out and "1 more" in text.out, text.out
    missing = run_fastpack("du", tmp_path / "nothing")
    assert missing.code != 0 and "nothing" in missing.err


def names(archive: Path) -> set[str]:
    with tarfile.open(archive) as file:
        return set(file.getnames())


def test_slim_leaves_out_what_it_names_and_says_so(env: str, tmp_path: Path) -> None:
    done = run_fastpack("pack", "-p", env, "-o", tmp_path / "a.tar", "--slim", "tests", "--slim", "static-libraries")
    assert done.code == 0, done.err
    assert "slim: tests: 1 files" in done.err and "slim: static-libraries: 2 files" in done.err
    found = names(tmp_path / "a.tar")
    assert f"{SITE}/pkg/__init__.py" in found and "include/app.h" in found
    assert not found & {f"{SITE}/pkg/tests/__init__.py", "lib/libapp.a", "lib/libapp-1.a", f"{SITE}/pkg/tests"}
    # It is whole as it is: it verifies, and packs again without a word of missing files.
    target = tmp_path / "target"
    assert run_fastpack("unpack", tmp_path / "a.tar", "-p", target).code == 0
    assert run_fastpack("verify", target, "--deep").code == 0
    again = run_fastpack("pack", "-p", target, "-o", tmp_path / "b.tar", "--json")
    assert again.code == 0, again.err
    assert again.json["result"]["left_out"]["slim: tests"] == 1


def test_slim_counts_in_the_order_of_all_filters(env: str, tmp_path: Path) -> None:
    run_fastpack("pack", "-p", env, "-o", tmp_path / "a.tar", "--slim=headers", "--include", "include/*")
    assert "include/app.h" in names(tmp_path / "a.tar") and "own.h" not in names(tmp_path / "a.tar")
    run_fastpack("pack", "-p", env, "-o", tmp_path / "b.tar", "--include", "include/*", "--slim", "headers")
    assert "include/app.h" not in names(tmp_path / "b.tar")
    wrong = run_fastpack("pack", "-p", env, "-o", tmp_path / "c.tar", "--slim", "everything")
    assert wrong.code != 0 and "tests" in wrong.err and not os.path.exists(tmp_path / "c.tar")


def test_a_slimmed_real_environment_runs(real_source: str, tmp_path: Path) -> None:
    kinds = [word for kind in KINDS for word in ("--slim", kind)]
    done = run_fastpack("pack", "-p", real_source, "-o", tmp_path / "a.tar.zst", *kinds)
    assert done.code == 0, done.err
    assert run_fastpack("unpack", tmp_path / "a.tar.zst", "-p", tmp_path / "t").code == 0
    code = "import json, ssl, sqlite3, unittest, email; print(json.dumps([1]))"
    ran = subprocess.run([str(tmp_path / "t/bin/python"), "-c", code], capture_output=True, text=True)
    assert ran.stdout == "[1]\n", ran.stderr


def test_debug_sections_are_those_that_readelf_lists(tmp_path: Path) -> None:
    source = tmp_path / "a.c"
    source.write_text("int twice(int n) { return 2 * n; }\n")
    compiler = os.environ.get("CC", "cc")
    for flags in (["-g"], ["-g0"], ["-g", "-gz"]):
        subprocess.run([compiler, *flags, "-shared", "-fPIC", "-o", tmp_path / "a.so", source], check=True)
        listed = subprocess.run(
            ["readelf", "-SW", tmp_path / "a.so"], capture_output=True, text=True, check=True
        ).stdout
        rows = [line.split("]", 1)[1].split() for line in listed.splitlines() if "] .debug_" in line]
        library = (tmp_path / "a.so").read_bytes()
        found = elf.debug_bytes(lambda n, at, data=library: data[at : at + n])
        assert found == sum(int(row[4], 16) for row in rows)
        assert bool(found) == (flags != ["-g0"])
    with open(sys.executable, "rb") as file:
        whole = file.read()
    for cut in range(0, 400, 7):
        assert elf.debug_bytes(lambda n, at, cut=cut: whole[:cut][at : at + n]) >= 0

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from fastpack import pack as pack_prefix
from fastpack.demo import make_channel_environment, make_environment
from fastpack.made_prefix import BUILD_PLACEHOLDER, MadeFile, MadePackage, install

settings.register_profile("default", max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", parent=settings.get_profile("default"), max_examples=300)
settings.register_profile("expensive", parent=settings.get_profile("default"), max_examples=20000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

P = BUILD_PLACEHOLDER.encode()


@dataclass
class Done:
    """A finished command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        lines = self.out.splitlines()
        assert len(lines) == 1, self.out
        return json.loads(lines[0])


def run_fastpack(*arguments: object, cwd: object = None, env: dict[str, str] | None = None, stdin: Any = None) -> Done:
    """The command line, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "fastpack.cli", *map(str, arguments)],
        capture_output=True,
        cwd=None if cwd is None else str(cwd),
        env={**os.environ, **(env or {})},
        stdin=stdin,
    )
    return Done(done.returncode, os.fsdecode(done.stdout), os.fsdecode(done.stderr))


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The user's cache directory is not touched."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("user-cache")))
        yield


@pytest.fixture
def fastpack() -> Callable[..., Done]:
    return run_fastpack


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable of the developer's machine decides a test."""
    for name in list(os.environ):
        if name.startswith(("CONDA", "MAMBA", "_FASTPACK")) or name in (
            "PYTHONDONTWRITEBYTECODE",
            "PYTHONPYCACHEPREFIX",
            "PYTHONPATH",
        ):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def c_string(*parts: bytes, tail: bytes = b"") -> bytes:
    """A C string with the placeholder between its parts."""
    return P.join(parts) + b"\0" + tail


def app_package(**changes: Any) -> MadePackage:
    """A package with one file for each thing that a package may do with its prefix."""
    binary = b"\x7fELF\0\0" + c_string(b"", b"/share/app") + c_string(b"a=", b":", b"/b") + b"\0\0data\xff\0"
    files = {
        "bin/app": MadeFile(f"#!{BUILD_PLACEHOLDER}/bin/python -u\nprint('{BUILD_PLACEHOLDER}')\n".encode(), 0o755,
                            file_mode="text"),
        "lib/libapp.so": MadeFile(binary, 0o755, file_mode="binary"),
        "share/app/app.conf": MadeFile(b"home = " + P + b"\r\nlib=" + P + b"/lib", file_mode="text"),
        "share/app/plain.txt": MadeFile(b"nothing of interest\n"),
        "share/app/read-only.txt": MadeFile(b"at " + P + b"\n", 0o444, file_mode="text"),
        "share/app/private.txt": MadeFile(b"private\n", 0o600),
        "share/app/link": MadeFile(link="plain.txt"),
        "share/app/dangling": MadeFile(link="nowhere"),
        "share/app/empty": MadeFile(b""),
    }  # fmt: skip
    return MadePackage("app", files=files, **changes)


@pytest.fixture
def made(tmp_path: Path) -> str:
    """A small synthetic environment, without a Python of its own."""
    prefix = str(tmp_path / "made env")
    os.makedirs(prefix)
    install([app_package()], prefix)
    return prefix


@pytest.fixture
def archive(made: str, tmp_path: Path) -> str:
    """That environment packed, with a file of three slices beside it."""
    Path(made, "big").write_bytes(random.Random(1).randbytes(3 << 20))
    out = str(tmp_path / "a.tar.zst")
    pack_prefix(prefix=made, output=out)
    return out


@pytest.fixture(scope="session")
def real_source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A real environment made from the running Python (read only: copy or pack it)."""
    prefix = str(tmp_path_factory.mktemp("real") / "source")
    make_environment(prefix)
    return prefix


@pytest.fixture(scope="session")
def real_archive(real_source: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """That environment, packed."""
    output = str(tmp_path_factory.mktemp("archive") / "real.tar.zst")
    done = run_fastpack("pack", "-p", real_source, "-o", output)
    assert done.code == 0, done.err
    return output


def channel() -> str | None:
    """The conda channel for tests on real packages: FASTPACK_TEST_CHANNEL names one."""
    return os.environ.get("FASTPACK_TEST_CHANNEL")


CHANNEL_SPECS = ("python 3.11.*", "pip", "numpy", "pytest", "requests", "openssl", "ncurses", "edgecase-binary",
                 "edgecase-activate", "edgecase-links")  # fmt: skip


@pytest.fixture(scope="session")
def make_from_channel() -> Callable[[str], None]:
    """Makes the channel's environment at a prefix, package cache and all else gone afterwards."""
    if channel() is None:
        pytest.skip("no conda channel: set FASTPACK_TEST_CHANNEL to a directory or URL")
    pytest.importorskip("rattler", reason="py-rattler is not installed")

    def make(prefix: str) -> None:
        make_channel_environment([str(channel())], CHANNEL_SPECS, prefix)

    return make


@pytest.fixture(scope="session")
def channel_archive(
    make_from_channel: Callable[[str], None], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The channel's environment packed, its source deleted."""
    folder = tmp_path_factory.mktemp("channel")
    source, output = str(folder / "source env"), str(folder / "env.tar.zst")
    make_from_channel(source)
    done = run_fastpack("pack", "-p", source, "-o", output)
    assert done.code == 0, done.err
    shutil.rmtree(source)
    yield output


def need(*tools: str) -> pytest.MarkDecorator:
    """Skip where a system tool is missing, and say which."""
    missing = [tool for tool in tools if shutil.which(tool) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not on this machine: {', '.join(missing)}")


def ordinary_user() -> list[str]:
    """A command's beginning that runs Python code as an ordinary user; skips where that cannot be had."""
    if os.getuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("becoming an ordinary user needs root and setpriv")
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", sys.executable, "-c"]
    probe = subprocess.run(
        [*command, f"import sys; sys.path[:0] = {sys.path!r}; import fastpack.cli"], capture_output=True, cwd="/"
    )
    if probe.returncode:
        pytest.skip("an ordinary user may not read this Python")
    return command

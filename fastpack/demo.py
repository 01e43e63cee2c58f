"""``fastpack demo``: a small real environment, made from the running Python, packed, moved and run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from fastpack.api import pack, unpack
from fastpack.errors import EnvironmentNotFound, FastpackError, UsageError
from fastpack.made_prefix import BUILD_PLACEHOLDER, MadeFile, MadePackage, entry_point, install, read_tree
from fastpack.model import Report

_HELLO = r"""
#include <stdio.h>
/* volatile: the compiler must not know the string, nor its length */
static const char *volatile prefix = PLACEHOLDER;
static const char *volatile message = PLACEHOLDER "/share/hello/message.txt";
int main(void) {
    char line[4096];
    FILE *file = fopen(message, "r");
    if (file == NULL) { printf("no %s\n", message); return 1; }
    if (fgets(line, sizeof line, file) == NULL) return 1;
    printf("compiled-in prefix: %s\n%s", prefix, line);
    return fclose(file);
}
"""
_SKIPPED = ("__pycache__", "test", "tests", "idlelib", "turtledemo", "ensurepip", "site-packages", "dist-packages",
            "config", "lib2to3")  # fmt: skip


@dataclass(frozen=True, slots=True)
class DemoReport(Report):
    """What the demo did."""

    source_bytes: int
    archive_bytes: int
    pack_seconds: float
    unpack_seconds: float
    destination: str
    output: tuple[str, ...]
    warnings: tuple[Any, ...] = ()


def run(channel: str | None, specs: Sequence[str], work: str | None, say: Callable[[str], None]) -> DemoReport:
    """Make an environment, pack it, delete it, unpack it at a path with a space and a Chinese character, run it.

    Raises
    ------
    FastpackError : something that must work did not.
    """
    if work is None:
        with tempfile.TemporaryDirectory(prefix="fastpack-demo-") as folder:
            return _run(channel, specs, folder, say)
    os.makedirs(work, exist_ok=True)
    return _run(channel, specs, os.path.abspath(work), say)


def _run(channel: str | None, specs: Sequence[str], work: str, say: Callable[[str], None]) -> DemoReport:
    source = os.path.join(work, "source")
    archive = os.path.join(work, "demo.tar.zst")
    target = os.path.join(work, "unpacked here 环境", "demo")
    started = time.monotonic()
    if channel is None:
        if specs:
            raise UsageError("specs need a --channel to take them from", found=" ".join(specs))
        say("making a conda environment from this Python, pip and a C program")
        make_environment(source)
    else:
        say(f"making a conda environment from {channel}")
        make_channel_environment([channel], list(specs) or ["python", "pip"], source)
    say(f"  {source}  ({time.monotonic() - started:.1f} s)")
    packed = pack(prefix=source, output=archive, force=True)
    say(f"packed {packed.n_files} files of {packed.n_packages} packages: {packed.source_bytes / 1e6:.1f} MB to "
        f"{packed.archive_bytes / 1e6:.1f} MB in {packed.elapsed_seconds:.2f} s")  # fmt: skip
    shutil.rmtree(source)
    say("removed the source environment")
    if os.path.lexists(target):
        shutil.rmtree(target)
    unpacked = unpack(archive, target)
    say(f"unpacked to {target!r} in {unpacked.elapsed_seconds:.2f} s, {unpacked.n_relocated_files} files relocated")
    lines = _try_it(target, say)
    return DemoReport(packed.source_bytes, packed.archive_bytes, packed.elapsed_seconds, unpacked.elapsed_seconds,
                      target, tuple(lines))  # fmt: skip


def _try_it(target: str, say: Callable[[str], None]) -> list[str]:
    """Activate the environment in a plain sh and run what is in it; its output, line by line."""
    commands = [
        '. "$1/bin/activate"',
        "command -v python",
        "python -c 'import sys; print(sys.version); print(sys.prefix)'",
        "python -m pip --version",
        "pip --version",
    ]
    if os.path.exists(os.path.join(target, "bin", "hello")):
        commands.append("hello")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "CONDA"))}
    done = subprocess.run(
        ["sh", "-euc", "\n".join(commands), "sh", target],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    for line in lines:
        say(f"  | {line}")
    if done.returncode:
        raise FastpackError("the unpacked environment does not run: " + done.stderr.strip(), path=target)
    if sum(target in line for line in lines) < 3:
        raise FastpackError("what ran did not come from the unpacked environment", path=target, found=done.stdout)
    return lines


# --- the environment -------------------------------------------------------------------------------------------------


def make_environment(prefix: str) -> None:
    """A conda prefix with this machine's Python, pip and a C program in it, needing no channel and no conda."""
    python = python_package()
    install([python], prefix)  # its interpreter says where its packages belong
    site_packages = _site_packages(prefix)
    python.extra["python_site_packages_path"] = site_packages
    install([python, pip_package(site_packages), hello_package()], prefix)


def python_package() -> MadePackage:
    """The running Python as a conda package: interpreter, shared library if it has one, standard library."""
    executable = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    with open(executable, "rb") as file:
        files = {f"bin/python{version}": MadeFile(file.read(), 0o755)}
    for name in ("python", "python3"):
        files[f"bin/{name}"] = MadeFile(link=f"python{version}")
    base = sys.base_prefix
    stdlib = sysconfig.get_path("stdlib", vars={"installed_base": base, "base": base})
    skipped = [*_SKIPPED, f"config-{version}"]
    files |= read_tree(stdlib, f"lib/python{version}", [*skipped, *(_config_folders(stdlib))])
    library = sysconfig.get_config_var("LDLIBRARY") or ""
    if ".so" in library:
        folder = sysconfig.get_config_var("LIBDIR") or ""
        for name in {library, sysconfig.get_config_var("INSTSONAME") or library}:
            path = os.path.join(folder, name)
            if os.path.isfile(path):
                with open(path, "rb") as file:
                    files[f"lib/{name}"] = MadeFile(file.read(), 0o755)
    return MadePackage("python", ".".join(map(str, sys.version_info[:3])), "0_made", files)


def _config_folders(stdlib: str) -> list[str]:
    return [name for name in os.listdir(stdlib) if name.startswith("config-")]


def _site_packages(prefix: str) -> str:
    """Where the copied interpreter looks for packages: Debian's says dist-packages."""
    python = os.path.join(prefix, "bin", "python")
    code = "import site; print('\\n'.join(site.getsitepackages()))"
    answer = subprocess.run([python, "-I", "-B", "-c", code], capture_output=True, text=True, check=False)
    if answer.returncode:
        raise FastpackError(
            "the copied interpreter does not run: " + answer.stderr.strip().splitlines()[-1], path=python
        )
    for line in answer.stdout.splitlines():
        if line.startswith(prefix + "/"):
            return line[len(prefix) + 1 :]
    raise FastpackError("the copied interpreter looks for packages outside of its prefix", path=python,
                        found=answer.stdout.strip())  # fmt: skip


def pip_package(site_packages: str) -> MadePackage:
    """The pip that is installed beside fastpack, as a noarch package with its entry points."""
    try:
        distribution = metadata.distribution("pip")
    except metadata.PackageNotFoundError:
        raise EnvironmentNotFound("this Python has no pip to pack", path=sys.prefix, hint="install pip") from None
    files: dict[str, MadeFile] = {}
    for entry in distribution.files or []:
        path = str(entry)
        if path.startswith("..") or "__pycache__" in path:
            continue
        files[f"{site_packages}/{path}"] = MadeFile(entry.read_binary())
    for name in ("pip", "pip3"):
        script = entry_point("python", "pip._internal.cli.main", "main")
        files[f"bin/{name}"] = MadeFile(script, 0o755, entry_point=True)
    return MadePackage("pip", distribution.version, "pyh0_made", files, noarch="python")


def hello_package() -> MadePackage:
    """A C program, compiled here, with the 255-byte placeholder in it, and a text file that names it too."""
    with tempfile.TemporaryDirectory() as folder:
        source, program = os.path.join(folder, "hello.c"), os.path.join(folder, "hello")
        with open(source, "w", encoding="ascii") as file:
            file.write(_HELLO)
        compiler = os.environ.get("CC", "cc")
        done = subprocess.run(
            [compiler, "-O2", f'-DPLACEHOLDER="{BUILD_PLACEHOLDER}"', "-o", program, source],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise FastpackError("the C program cannot be compiled: " + done.stderr.strip(), path=source)
        with open(program, "rb") as binary:
            data = binary.read()
    message = f"a text file that names {BUILD_PLACEHOLDER}/share\n".encode()
    return MadePackage("hello", "1.0", "0_made", {
        "bin/hello": MadeFile(data, 0o755, file_mode="binary"),
        "share/hello/message.txt": MadeFile(message, file_mode="text"),
    })  # fmt: skip


def make_channel_environment(
    channels: Sequence[str], specs: Sequence[str], prefix: str, cache: str | None = None
) -> None:
    """An environment from conda channels (directories or URLs), made by py-rattler.

    Parameters
    ----------
    cache : where packages are kept; None: nowhere.

    Raises
    ------
    UsageError : py-rattler is not installed, or the channel does not have what is asked for.
    """
    import asyncio  # noqa: PLC0415 (this way of making one alone)

    try:
        import rattler  # noqa: PLC0415
    except ImportError:
        raise UsageError("--channel needs py-rattler", hint="pip install 'fastpack[channel]'") from None
    urls = ["file://" + os.path.abspath(channel) if os.path.isdir(channel) else channel for channel in channels]

    # Its name since py-rattler 0.27.
    subdir: Any = getattr(rattler, "Subdir", None) or rattler.Platform

    async def make() -> None:
        wanted = [rattler.MatchSpec(spec) for spec in specs]
        with tempfile.TemporaryDirectory() as temporary:
            records = await rattler.solve(
                sources=[rattler.Channel(url) for url in urls],
                specs=wanted,
                gateway=rattler.Gateway(cache_dir=Path(temporary)),
                platforms=[subdir.current(), subdir("noarch")],
                virtual_packages=rattler.VirtualPackage.detect(),
            )
            packages = Path(cache or temporary, "pkgs")
            await rattler.install(records, target_prefix=prefix, cache_dir=packages, show_progress=False)

    try:
        asyncio.run(make())
    except Exception as error:
        raise UsageError(f"no environment can be made from that channel: {error}", path=urls[0]) from None

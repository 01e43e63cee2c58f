"""fastpack beside other packers, on one environment: whole processes, alternating, what they unpack checked.

Each round runs every tool once, pack and unpack, so that a machine that changes its speed does so for all. Before a
command is timed its input is read once, and nothing is left to write to the disk.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from fastpack import fs
from fastpack._version import VERSION
from fastpack.errors import BenchFailed, NoSpace, Unreadable, UsageError
from fastpack.listing import walk
from fastpack.model import BenchReport, Kind, Progress, Warned, silent
from fastpack.parallel import default_threads
from fastpack.reader import open_archive

_TAR_X = 'mkdir "$TARGET" && tar -xf "$ARCHIVE" -C "$TARGET"'
_CONDA_UNPACK = ' && "$TARGET/bin/python" "$TARGET/bin/conda-unpack"'
_UNSQUASH = 'unsquashfs -quiet -no-progress -processors "$JOBS" -dest "$TARGET" "$ARCHIVE" >/dev/null'


@dataclass(frozen=True, slots=True)
class Tool:
    """A packer. Commands are sh text about ``$PREFIX``, ``$ARCHIVE``, ``$TARGET`` and ``$JOBS``.

    Parameters
    ----------
    needs : the programs it is made of.
    version : sh text that prints its version.
    rounds : it runs in at most so many.
    """

    name: str
    suffix: str
    pack: str
    unpack: str
    needs: tuple[str, ...]
    version: str
    rounds: int | None = None


def fastpack_tool(name: str, suffix: str, options: str = "") -> Tool:
    """fastpack with an archive format and options."""
    return Tool(
        name, suffix, f'fastpack pack -q -f -p "$PREFIX" -j "$JOBS"{options} -o "$ARCHIVE"',
        'fastpack unpack -q "$ARCHIVE" -p "$TARGET" -j "$JOBS"', ("fastpack",), "fastpack --version",
    )  # fmt: skip


def zstd_tool(level: int) -> Tool:
    """GNU tar into zstd: what one types without a packer. Nothing is relocated."""
    return Tool(
        f"tar | zstd -{level}", ".tar.zst",
        f'tar -cf - -C "$PREFIX" . | zstd -q -f -T"$JOBS" -{level} -o "$ARCHIVE"', _TAR_X, ("tar", "zstd"),
        "zstd --version",
    )  # fmt: skip


def _conda_pack(name: str, suffix: str, options: str, unpack: str, *needs: str) -> Tool:
    pack = f'conda-pack -q -f -p "$PREFIX"{options} -o "$ARCHIVE"'
    return Tool(name, suffix, pack, unpack + _CONDA_UNPACK, ("conda-pack", *needs), "conda-pack --version")


#: `cp -r`, which unpacking is held against; it packs nothing.
COPY = "cp -r"
#: What fastpack is compared with, by default and at its best. conda-pack's tar.zst takes neither level nor threads.
TOOLS = (
    fastpack_tool("fastpack", ".tar.zst"),
    fastpack_tool("fastpack tar.gz", ".tar.gz"),
    zstd_tool(3),
    Tool("tar | pigz", ".tar.gz", 'tar -cf - -C "$PREFIX" . | pigz -p "$JOBS" > "$ARCHIVE"', _TAR_X, ("tar", "pigz"),
         "pigz --version"),
    Tool("mksquashfs zstd", ".squashfs",
         'mksquashfs "$PREFIX" "$ARCHIVE" -comp zstd -processors "$JOBS" -noappend -quiet -no-progress >/dev/null',
         _UNSQUASH, ("mksquashfs", "unsquashfs"), "mksquashfs -version"),
    _conda_pack("conda-pack", ".tar.gz", "", _TAR_X, "tar"),
    _conda_pack("conda-pack -j", ".tar.gz", ' -j "$JOBS"', _TAR_X, "tar"),
    _conda_pack("conda-pack tar.zst", ".tar.zst", "", _TAR_X, "tar", "zstd"),
    _conda_pack("conda-pack squashfs -j", ".squashfs", ' -j "$JOBS"', _UNSQUASH, "mksquashfs", "unsquashfs"),
    Tool(COPY, "", "", 'cp -r "$PREFIX" "$TARGET"', ("cp",), "cp --version"),
)  # fmt: skip

#: What shows that an environment works; `$TARGET` is where it was unpacked.
CHECK = '"$TARGET/bin/python" -c "import json, sys; assert sys.prefix"'


@dataclass(frozen=True, slots=True)
class Options:
    """How to measure.

    Parameters
    ----------
    only : names of the tools to run; empty: all that are there.
    check : sh text that shows that what was unpacked to ``$TARGET`` works.
    work : a directory for archives and trees; None: one for temporary files.
    """

    rounds: int = 3
    n_threads: int = 0
    only: tuple[str, ...] = ()
    check: str = CHECK
    work: str | None = None


@dataclass(slots=True)
class _Measured:
    """What came of a tool. A sample is wall, user and system seconds, and the bytes of its largest process."""

    tool: Tool
    version: str
    pack: list[tuple[float, float, float, int]] = field(default_factory=list)
    unpack: list[tuple[float, float, float, int]] = field(default_factory=list)
    archive_bytes: int | None = None
    checked: dict[str, object] = field(default_factory=dict)
    failed: str | None = None  # why it could not do it

    def warnings(self) -> Iterator[Warned]:
        if self.failed is not None:
            yield Warned("does-not-work", None, f"{self.tool.name} failed: {self.failed}")
        if self.checked.get("works") is False:
            text = f"{self.tool.name}: what it unpacked does not work ({self.checked['error']})"
            yield Warned("does-not-work", None, text)

    def as_dict(self) -> dict[str, object]:
        return {
            "name": self.tool.name, "version": self.version, "pack_command": self.tool.pack,
            "unpack_command": self.tool.unpack, "archive_bytes": self.archive_bytes, "pack": self.pack,
            "unpack": self.unpack, "checked": self.checked, "failed": self.failed,
        }  # fmt: skip


def bench(prefix: str, options: Options, tools: Sequence[Tool] = TOOLS, progress: Progress = silent) -> BenchReport:
    """Pack and unpack an environment with every tool that is there.

    Raises
    ------
    UsageError : no such tool.
    NoSpace : two trees and an archive would not fit.
    BenchFailed : fastpack failed, or what it unpacked is not the environment or does not work. Where another tool
        fails, that is its result.
    """
    prefix = os.path.abspath(prefix)
    if not os.path.isdir(prefix):
        raise Unreadable("that is no directory", path=prefix, hint="give the directory of an environment")
    if options.rounds < 1:
        raise UsageError("no such number of rounds", expected="1 or more", found=options.rounds)
    threads = options.n_threads if options.n_threads > 0 else default_threads()
    chosen = _chosen(tools, options.only)
    source = _list(prefix)
    n_bytes = sum(size for _, size in source.values())
    with _work(options.work, 3 * n_bytes) as work:
        place = {"PREFIX": prefix, "TARGET": os.path.join(work, "unpacked"), "JOBS": str(threads)}
        places = {tool.name: {**place, "ARCHIVE": os.path.join(work, f"archive{tool.suffix}")} for tool in chosen}
        results = [_Measured(tool, _version(tool)) for tool in chosen]
        runs = [(k, row) for k in range(options.rounds) for row in results if k < (row.tool.rounds or options.rounds)]
        for done, (k, row) in enumerate(runs):
            progress("bench", done * n_bytes, len(runs) * n_bytes, row.tool.name)
            if row.failed is not None:
                continue
            try:
                _run_once(row, places[row.tool.name], source, options.check if k == 0 else None)
            except BenchFailed as error:
                if "fastpack" in row.tool.needs:
                    raise
                row.failed = str(error).replace(work, "")
    return BenchReport(
        prefix=prefix, fastpack=VERSION, n_files=len(source), n_bytes=n_bytes, n_threads=threads,
        rounds=options.rounds, machine=machine(), check=options.check, tools=tuple(row.as_dict() for row in results),
        warnings=tuple(warned for row in results for warned in row.warnings()),
    )  # fmt: skip


def median(samples: Sequence[Sequence[float]], column: int) -> float | None:
    """The median of a column of samples; None if there are none."""
    return statistics.median(sample[column] for sample in samples) if samples else None


def table(tools: Iterable[dict[str, Any]]) -> Iterator[str]:
    """The lines of a Markdown table: medians; memory of the largest process."""
    yield "| | pack s | CPU s | MB | archive MB | unpack s | CPU s | MB | files naming the source |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for tool in tools:
        cells = [tool["name"].replace("|", "\\|")]
        for name in ("pack", "unpack"):
            samples = [(wall, user + system, peak / 1e6) for wall, user, system, peak in tool[name]]
            cells += [f"{m:.{digits}f}" if (m := median(samples, k)) is not None else "" for k, digits in _COLUMNS]
            if name == "pack":
                cells.append(f"{tool['archive_bytes'] / 1e6:.0f}" if tool["archive_bytes"] else "")
        yield "| " + " | ".join([*cells, _last_cell(tool)]) + " |"


def _last_cell(tool: dict[str, Any]) -> str:
    return "failed" if tool["failed"] is not None else str(tool["checked"].get("naming_the_source", ""))


#: Columns of wall, CPU and MB, and the digits they are given with.
_COLUMNS = ((0, 2), (1, 2), (2, 0))


def machine() -> dict[str, object]:
    """What the figures hold for."""
    cpu = ""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            cpu = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "")
    except OSError:
        pass
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": cpu, "cores": default_threads(), "memory_bytes": memory, "system": platform.system(),
        "kernel": platform.release(), "architecture": platform.machine(), "python": platform.python_version(),
    }  # fmt: skip


def _path() -> str:
    """Programs of fastpack's own environment come first."""
    return os.path.dirname(sys.executable) + os.pathsep + os.environ.get("PATH", os.defpath)


def _chosen(tools: Sequence[Tool], only: Sequence[str]) -> list[Tool]:
    names = {tool.name for tool in tools}
    if unknown := [name for name in only if name not in names]:
        raise UsageError("no such tool", expected=", ".join(sorted(names)), found=unknown[0])
    found = [tool for tool in tools if not only or tool.name in only]
    missing = {tool.name: [name for name in tool.needs if shutil.which(name, path=_path()) is None] for tool in found}
    if only and (absent := next((name for name in only if missing[name]), None)) is not None:
        raise UsageError(f"{absent} cannot be run", found=f"no program {', '.join(missing[absent])}", hint="install it")
    return [tool for tool in found if not missing[tool.name]]


@contextmanager
def _work(given: str | None, n_bytes: int) -> Iterator[str]:
    try:
        with tempfile.TemporaryDirectory(prefix="fastpack-bench-", dir=given) as work:
            if n_bytes > (free := fs.free_bytes(work)):
                raise NoSpace("not enough space to measure", path=os.path.dirname(work), expected=f"{n_bytes} bytes",
                              found=f"{free} bytes", hint="name a larger place with --work")  # fmt: skip
            yield work
            fs.remove_tree(os.path.join(work, "unpacked"))  # whatever its modes
    except OSError as error:
        raise fs.explain_os_error(error, error.filename or given or tempfile.gettempdir()) from None


def _version(tool: Tool) -> str:
    done = subprocess.run(
        ["sh", "-c", tool.version], env={**os.environ, "PATH": _path()}, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, errors="replace", check=False,
    )  # fmt: skip
    found = re.search(r"\d+(\.\d+)+", done.stdout)
    return found.group() if found else ""


def _run_once(row: _Measured, place: dict[str, str], source: dict[str, tuple[Kind, int]], check: str | None) -> None:
    target, archive = place["TARGET"], place["ARCHIVE"]
    fs.remove_tree(target)
    forget_deleted()
    _warm([os.path.join(place["PREFIX"], path) for path, (kind, _) in source.items() if kind is Kind.FILE])
    if row.tool.pack:
        if os.path.lexists(archive):
            os.unlink(archive)
        row.pack.append(measure(row.tool.pack, place))
        row.archive_bytes = os.stat(archive).st_size
        _warm([archive])
    row.unpack.append(measure(row.tool.unpack, place))
    if check is not None:
        row.checked = _check(row.tool, place, source, check)


#: Runs a command and says what it took. A process of its own, as small as Python gets: the kernel counts what a parent
#: has in memory as the least that its child had.
_RUNNER = """
import os, sys, time
null = [(os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0)]
started = time.monotonic()
child = os.posix_spawnp("sh", ["sh", "-c", sys.argv[1]], os.environ, file_actions=null)
status, usage = os.wait4(child, 0)[1:]
print(time.monotonic() - started, usage.ru_utime, usage.ru_stime, usage.ru_maxrss, os.waitstatus_to_exitcode(status))
"""


def measure(command: str, place: dict[str, str]) -> tuple[float, float, float, int]:
    os.sync()
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", _RUNNER, command], env={**os.environ, **place, "PATH": _path()},
        capture_output=True, text=True, errors="replace", check=False,
    )  # fmt: skip
    wall, user, system, peak, code = done.stdout.split() or ["0", "0", "0", "0", str(done.returncode)]
    if code != "0":
        said = done.stderr.strip().splitlines()
        raise BenchFailed(f"a command ended with {code}: {command}", found=said[-1] if said else "nothing said")
    unit = 1 if sys.platform == "darwin" else 1024
    return float(wall), float(user), float(system), int(peak) * unit


def forget_deleted() -> None:
    """Let what was deleted not slow down what is made next, where this user may say so to the kernel.

    ext4 gives no inode again that was deleted in the last minutes, and looks for another one bit by bit, as long as it
    has the deleted ones in its cache (`recently_deleted` in fs/ext4/ialloc.c): making the 7,000 files of a small
    environment took 6 s right after as many had been deleted, 1.3 s otherwise, whatever the program.
    """
    os.sync()
    try:
        with open("/proc/sys/vm/drop_caches", "w") as file:
            file.write("3")
    except OSError:
        pass


def _warm(paths: Iterable[str]) -> None:
    """Read files once, so that the first tool does not wait for a disk that the second finds in the cache."""
    buffer = memoryview(bytearray(8 << 20))
    for path in paths:
        try:
            with open(path, "rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass
        except OSError:
            continue  # the tools will say what they make of it


def _list(root: str) -> dict[str, tuple[Kind, int]]:
    return {file.path: (file.kind, file.n_bytes) for file in walk(root) if file.kind is not Kind.DIRECTORY}


def _check(tool: Tool, place: dict[str, str], source: dict[str, tuple[Kind, int]], check: str) -> dict[str, object]:
    """What a tool unpacked, beside the source: paths, kinds, contents, old prefixes; and whether it works.

    Raises
    ------
    BenchFailed : fastpack's own lacks something that its manifest does not say it left out, or does not work.
    """
    target, prefix = place["TARGET"], place["PREFIX"]
    found = _list(target)
    shared = [path for path in source if path in found and found[path][0] is source[path][0]]
    changed = naming = 0
    for path in shared:
        if source[path][0] is Kind.FILE:
            differs, names = _compare(os.path.join(prefix, path), os.path.join(target, path), os.fsencode(prefix))
            changed, naming = changed + differs, naming + names
        elif source[path][0] is Kind.LINK:
            changed += os.readlink(os.path.join(prefix, path)) != os.readlink(os.path.join(target, path))
    missing = sorted(source.keys() - shared)
    done = subprocess.run(
        ["sh", "-c", check], env={**os.environ, **place}, capture_output=True, text=True, errors="replace", check=False
    )
    said = done.stderr.strip().splitlines()
    error = (
        (said[-1] if said else f"exit code {done.returncode}").replace(target, "$TARGET") if done.returncode else None
    )
    if tool.needs == ("fastpack",):
        with open_archive(place["ARCHIVE"]) as archive:
            lost = sorted(set(missing) - {path for path, _ in archive.manifest.left_out})
        if lost:
            raise BenchFailed("what fastpack unpacked lacks files of the environment", path=lost[0])
        if error is not None:
            raise BenchFailed("what fastpack unpacked does not work", expected=check, found=error)
    return {
        "missing": len(missing), "added": len(found.keys() - source.keys()), "changed": changed,
        "naming_the_source": naming, "works": error is None, "error": error,
    }  # fmt: skip


def _compare(one: str, other: str, prefix: bytes) -> tuple[bool, bool]:
    """Whether two files differ, and whether the second one names a prefix."""
    same = os.stat(one).st_size == os.stat(other).st_size
    names = False
    tail = b""
    with open(one, "rb") as a, open(other, "rb") as b:
        while piece := b.read(8 << 20):
            same = same and a.read(8 << 20) == piece
            names = names or prefix in tail + piece
            tail = piece[-len(prefix) :]
    return not same, names

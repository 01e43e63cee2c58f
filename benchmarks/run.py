"""Pack and unpack an environment with fastpack and with ordinary tools, alternating: wall time, CPU, memory, size.

    python benchmarks/run.py [PREFIX] [--runs N] [--threads N]

The tools (GNU tar with zstd, conda-pack) are run where they are installed. Prints a table; times are medians. What
fastpack unpacked is held against the source before a time is printed: same paths, same sizes but for relocated files.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def measure(command: list[str]) -> tuple[float, float, float]:
    """(wall seconds, CPU seconds, peak MB of the largest process) of one run; it must succeed."""
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.monotonic() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{shlex.join(command)} failed: {said.decode(errors='replace')[-500:]}")
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000


def shell(text: str) -> list[str]:
    return ["sh", "-c", text]


def packers(prefix: str, work: str, threads: int) -> dict[str, tuple[list[str], str]]:
    """name -> (command, the archive it writes)."""
    quoted, place = shlex.quote(prefix), shlex.quote(work)
    fastpack = [sys.executable, "-m", "fastpack.cli", "pack", "-p", prefix, "-j", str(threads), "--force", "-q", "-o"]
    found = {
        "fastpack": ([*fastpack, f"{work}/fastpack.tar.zst"], f"{work}/fastpack.tar.zst"),
        "fastpack tar.gz": ([*fastpack, f"{work}/fastpack.tar.gz"], f"{work}/fastpack.tar.gz"),
    }
    if shutil.which("zstd") and shutil.which("tar"):
        text = f"tar cf - -C {quoted} . | zstd -q -f -T{threads} -3 -o {place}/tar.tar.zst"
        found["tar | zstd -3"] = (shell(text), f"{work}/tar.tar.zst")
    beside = os.path.join(os.path.dirname(sys.executable), "conda-pack")
    conda_pack = beside if os.path.exists(beside) else shutil.which("conda-pack")
    if conda_pack:
        output = f"{work}/conda-pack.tar.gz"
        found["conda-pack"] = ([conda_pack, "-p", prefix, "-f", "-q", "-o", output], output)
    return found


def sizes(root: str) -> dict[str, int]:
    return {
        os.path.relpath(os.path.join(folder, name), root): os.lstat(os.path.join(folder, name)).st_size
        for folder, _, names in os.walk(root)
        for name in names
        if not name.endswith(".pyc")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("prefix", nargs="?", help="an environment (default: the demo's)")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fastpack-bench-") as work:
        prefix = arguments.prefix
        if prefix is None:
            prefix = f"{work}/environment"
            # In a process of its own: what this one uses would count as the least that any child used.
            code = f"from fastpack.demo import make_environment; make_environment({prefix!r})"
            subprocess.run([sys.executable, "-c", code], check=True)
        prefix = os.path.abspath(prefix)
        tools = packers(prefix, work, arguments.threads)
        samples: dict[str, list[tuple[float, float, float]]] = {name: [] for name in [*tools, "unpack", "cp -r"]}
        for _ in range(arguments.runs):
            for name, (command, _) in tools.items():
                samples[name].append(measure(command))
            for name, target in (("unpack", f"{work}/unpacked"), ("cp -r", f"{work}/copied")):
                shutil.rmtree(target, ignore_errors=True)
                unpack = [sys.executable, "-m", "fastpack.cli", "unpack", tools["fastpack"][1], "-p", target, "-q"]
                command = ["cp", "-r", prefix, target] if name == "cp -r" else [*unpack, "-j", str(arguments.threads)]
                samples[name].append(measure(command))
        was, now = sizes(prefix), sizes(f"{work}/unpacked")
        missing = sorted(set(was) - set(now) - {"bin/activate", "bin/deactivate"})
        if missing:
            sys.exit(f"unpacked, {len(missing)} files are missing: {missing[:5]}")
        print(f"{prefix}: {len(was)} files, {sum(was.values()) / 1e6:.0f} MB; {arguments.threads} threads")
        print(f"median of {arguments.runs} runs\n\n| | wall s | CPU s | peak MB | archive MB |\n|---|---|---|---|---|")
        for name, rows in samples.items():
            wall, cpu, peak = (statistics.median(row[k] for row in rows) for k in range(3))
            archive = Path(tools[name][1]).stat().st_size / 1e6 if name in tools else None
            print(f"| {name} | {wall:.2f} | {cpu:.2f} | {peak:.0f} | {'' if archive is None else f'{archive:.1f}'} |")


if __name__ == "__main__":
    main()

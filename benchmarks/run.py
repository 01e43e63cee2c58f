"""Measure fastpack and its rivals, and write down what came of it.

    python benchmarks/run.py [small] [gpu] [gpu-conda] [many] [--channel DIR] [--rounds N] [--keep DIR] [--prefix DIR]

Makes the environments it is told to measure (`environments.py` says how), runs every tool that is installed in
alternating rounds (`fastpack.benching`, which `fastpack bench` uses too), and writes runs/<date>-<machine>/ with the
commands, versions, raw samples, a summary and plots.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import functools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import incremental  # noqa: E402
from environments import CHECKS, MAKERS  # noqa: E402

from fastpack import benching  # noqa: E402
from fastpack.benching import TOOLS, Options, Tool, fastpack_tool, median, zstd_tool  # noqa: E402

#: Other levels, for size against time: one round each.
LEVELS = (
    fastpack_tool("fastpack -1", ".tar.zst", " --compress-level 1"),
    fastpack_tool("fastpack -9", ".tar.zst", " --compress-level 9"),
    zstd_tool(1),
    zstd_tool(9),
)
#: Without compression: what the files themselves cost.
PLAIN = (
    fastpack_tool("fastpack tar", ".tar"),
    Tool("tar", ".tar", 'tar -cf "$ARCHIVE" -C "$PREFIX" .', 'mkdir "$TARGET" && tar -xf "$ARCHIVE" -C "$TARGET"',
         ("tar",), "tar --version"),
)  # fmt: skip
#: What `--slow-rounds` is for: a round of these takes longer than one of all the others.
SLOW = ("conda-pack", "conda-pack -j")
#: What one round has to do for where `--slow-rounds` is given.
ONCE = ("tar | pigz", "mksquashfs zstd", "conda-pack tar.zst", "conda-pack squashfs -j")


def make(name: str, folder: str, channel: str | None) -> str:
    """An environment, unless an earlier run made it whole."""
    prefix, made = os.path.join(folder, name), os.path.join(folder, f"{name}.made")
    if not os.path.exists(made):
        print(f"making {name}", file=sys.stderr)
        for left in Path(folder).glob(f"{name}*"):
            subprocess.run(["rm", "-rf", left], check=True)
        make_at(name, prefix, channel)
        Path(made).touch()
    return prefix


def make_at(name: str, prefix: str, channel: str | None) -> None:
    """Make an environment, in a process of its own: what this one uses would count as the least that any child used."""
    code = f"import environments; environments.MAKERS[{name!r}]({prefix!r}, {channel!r})"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=HERE)


def measure(prefix: str, name: str, tools: Sequence[Tool], options: Options) -> dict[str, Any]:
    """What `fastpack.benching` gives, as plain data without this machine's paths."""
    print(f"measuring {name}, {options.n_threads} threads", file=sys.stderr)

    def progress(stage: str, done: int, total: int, tool: str) -> None:
        print(f"  {done / total:4.0%} {datetime.datetime.now():%H:%M:%S} {tool}", file=sys.stderr)

    report = json.loads(json.dumps(benching.bench(prefix, options, tools, progress).as_dict()))
    return {**report, "prefix": name}


def summary(
    results: dict[str, dict[str, Any]], scaling: dict[str, dict[int, dict[str, Any]]],
    again: dict[str, dict[str, list[dict[str, Any]]]], options: str,
) -> str:  # fmt: skip
    """README.md of a run."""
    first = next(iter(results.values()))
    machine = first["machine"]
    lines = [
        f"# fastpack {first['fastpack']}, {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['memory_bytes'] / 1e9:.0f} GB, {machine['system']} {machine['kernel']}",
        "",
        f"Made by `python benchmarks/run.py {' '.join(results)} {options}`. Medians; raw samples are in the JSON "
        "files. CPU is user and system time; MB is the memory of a command's largest process. Rounds alternate; "
        "before each command its input was read once and the disk was left with nothing to write; what was deleted "
        "before is out of the file system's caches.",
        "",
    ]
    for name, report in results.items():
        lines += [
            f"## {name}", "",
            f"{report['n_files']:,} files, {report['n_bytes'] / 1e9:.2f} GB; {report['n_threads']} threads.", "",
            *benching.table(report["tools"]), "",
            *(f"![{what}]({name}-{what}.png)" for what in ("wall", "size", "memory")), "",
            "Ratios of medians, below 1 is faster than:", "", "| | pack | archive | unpack |", "|---|---|---|---|",
            *_ratios(report), "",
        ]  # fmt: skip
        lines += [
            f"Failed: {tool['name']} ({tool['failed']})" for tool in report["tools"] if tool["failed"] is not None
        ]
        lines += [f"Does not work where it was unpacked: {tool['name']} ({tool['checked']['error']})"
                  for tool in report["tools"] if tool["checked"].get("works") is False]  # fmt: skip
    for name, reports in scaling.items():
        lines += [f"## Threads, {name}", "", f"![scaling]({name}-scaling.png)", "", "| | threads | pack s | unpack s |",
                  "|---|---|---|---|"]  # fmt: skip
        for threads, report in sorted(reports.items()):
            for tool in report["tools"]:
                walls = [median(tool[what], 0) for what in ("pack", "unpack")]
                cells = ["" if wall is None else f"{wall:.2f}" for wall in walls]
                lines.append(
                    f"| {tool['name']} | {threads} | {cells[0]} | {cells[1]} |".replace("tar | zstd", "tar \\| zstd")
                )
        lines.append("")
    for name, rows in again.items():
        lines += incremental.table(name, rows)
    lines += ["## Commands", "", "| | version | pack | unpack |", "|---|---|---|---|"]
    for tool in first["tools"]:
        cells = [tool["name"], tool["version"], f"`{tool['pack_command']}`", f"`{tool['unpack_command']}`"]
        lines.append("| " + " | ".join(map(_cell, cells)) + " |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _ratios(report: dict[str, Any]) -> list[str]:
    """fastpack's medians over everybody else's; its tar.gz for those whose archive is one."""
    ours = {tool["name"]: tool for tool in report["tools"] if tool["name"].startswith("fastpack")}
    rows = []
    for tool in report["tools"]:
        if tool["name"].startswith("fastpack"):
            continue
        for name, mine in ours.items():
            cells = []
            for one, other in (
                (median(mine["pack"], 0), median(tool["pack"], 0)),
                (mine["archive_bytes"], tool["archive_bytes"]),
                (median(mine["unpack"], 0), median(tool["unpack"], 0)),
            ):
                cells.append(f"{one / other:.3f}" if one and other else "")
            rows.append("| " + " | ".join([_cell(f"{name} / {tool['name']}"), *cells]) + " |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="what to measure (default: small)")
    parser.add_argument("--channel", help="a conda channel with python 3.11, numpy, pip (default: the demo's Python)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slow-rounds", type=int, default=None, help="of what takes minutes (default: as many)")
    parser.add_argument("--only", action="append", default=[], metavar="TOOL", help="only this tool; more than once")
    parser.add_argument("--once", action="store_true", help="leave out packing again")
    parser.add_argument("--threads", type=int, default=benching.default_threads())
    parser.add_argument("--keep", metavar="DIR", help="where environments are kept for the next run")
    parser.add_argument("--out", metavar="DIR", type=Path, help="default: benchmarks/runs/<date>-<machine>")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.names if name not in MAKERS]:
        parser.error(f"no environment {unknown[0]!r}: choose from {', '.join(MAKERS)}")
    cpu = re.sub(r"\(.*?\)|@.*|\b(CPU|Processor)\b", " ", str(benching.machine()["cpu"]))
    machine = "-".join(re.findall(r"[a-z0-9.]+", f"{benching.default_threads()}-cores {cpu}".lower()))
    out = arguments.out or HERE / "runs" / f"{datetime.date.today()}-{machine}"
    out.mkdir(parents=True, exist_ok=True)
    results: dict[str, dict[str, Any]] = {}
    curves: dict[str, dict[int, dict[str, Any]]] = {}
    again: dict[str, dict[str, list[dict[str, Any]]]] = {}
    with tempfile.TemporaryDirectory(prefix="fastpack-bench-") as temporary:
        folder = os.path.abspath(arguments.keep or temporary)
        for name in arguments.names or ["small"]:
            prefix = make(name, folder, arguments.channel)
            options = Options(arguments.rounds, arguments.threads, tuple(arguments.only), CHECKS[name], folder)
            tools = [_limited(tool, arguments.slow_rounds) for tool in (*TOOLS, *PLAIN)]
            if name == "gpu" and not arguments.only:
                tools += [dataclasses.replace(tool, rounds=1) for tool in LEVELS]
            results[name] = measure(prefix, name, tools, options)
            (out / f"{name}.json").write_text(json.dumps(results[name], indent=1) + "\n")
            if name != "many" and not arguments.once:
                with tempfile.TemporaryDirectory(prefix="fastpack-again-", dir=folder) as work:
                    again[name] = incremental.run(
                        prefix, work, min(3, arguments.rounds), arguments.threads,
                        functools.partial(make_at, name, channel=arguments.channel), results[name]["n_bytes"],
                    )  # fmt: skip
                (out / f"{name}-again.json").write_text(json.dumps(again[name], indent=1) + "\n")
            if name == "gpu" and not arguments.only:
                some = [tool for tool in TOOLS if tool.name in ("fastpack", "fastpack tar.gz", "tar | zstd -3")]
                counts = [n for n in (1, 2, 4, 8, 16) if n <= arguments.threads]
                curves[name] = {
                    n: measure(prefix, name, some, dataclasses.replace(options, n_threads=n, rounds=1)) for n in counts
                }
                (out / f"{name}-scaling.json").write_text(json.dumps(curves[name], indent=1) + "\n")
    _draw(results, curves, out)
    rounds = f"--rounds {arguments.rounds}" + (f" --slow-rounds {few}" if (few := arguments.slow_rounds) else "")
    (out / "README.md").write_text(summary(results, curves, again, f"{rounds} --threads {arguments.threads}"))
    print(out / "README.md")


def _limited(tool: Tool, slow_rounds: int | None) -> Tool:
    if slow_rounds is None or tool.name not in SLOW + ONCE:
        return tool
    return dataclasses.replace(tool, rounds=slow_rounds if tool.name in SLOW else 1)


def _draw(results: dict[str, dict[str, Any]], curves: dict[str, dict[int, dict[str, Any]]], out: Path) -> None:
    import plots  # noqa: PLC0415 (after the measuring: matplotlib takes memory, which children inherit)

    for name, report in results.items():
        plots.wall_and_memory(report, out, name)
        plots.size_against_time(report, out, name)
    for name, reports in curves.items():
        plots.scaling(reports, out, name)


if __name__ == "__main__":
    main()

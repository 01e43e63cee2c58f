"""Pictures of a run: wall time, size against time, memory, and what threads bring. PNG and SVG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
matplotlib.rcParams["svg.hashsalt"] = "fastpack"
from matplotlib import pyplot as plt  # noqa: E402

from fastpack.benching import median  # noqa: E402

OURS, OTHERS = "#1f77b4", "#999999"


def _color(name: str) -> str:
    return OURS if name.startswith("fastpack") else OTHERS


def _save(figure: Any, out: Path, name: str) -> None:
    figure.tight_layout()
    figure.savefig(out / f"{name}.png", dpi=110)
    figure.savefig(out / f"{name}.svg", metadata={"Date": None})
    plt.close(figure)


def _bars(report: dict[str, Any], out: Path, name: str, column: int, unit: float, label: str) -> None:
    """Two rows of bars, pack and unpack: medians, and each sample as a dot."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5))
    for axis, what in zip(axes, ("pack", "unpack"), strict=True):
        tools = [tool for tool in report["tools"] if tool[what]]
        for k, tool in enumerate(reversed(tools)):
            samples = [sample[column] / unit for sample in tool[what]]
            axis.barh(k, median([[s] for s in samples], 0), color=_color(tool["name"]), alpha=0.7)
            axis.plot(samples, [k] * len(samples), "k.", markersize=3)
        axis.set_yticks(range(len(tools)), [tool["name"] for tool in reversed(tools)])
        axis.set_xlabel(label)
        axis.set_title(what)
    figure.suptitle(f"{report['n_files']:,} files, {report['n_bytes'] / 1e9:.2f} GB; {report['n_threads']} threads")
    _save(figure, out, name)


def wall_and_memory(report: dict[str, Any], out: Path, name: str) -> None:
    """``NAME-wall`` and ``NAME-memory``."""
    _bars(report, out, f"{name}-wall", 0, 1, "wall time, s")
    _bars(report, out, f"{name}-memory", 3, 1e6, "memory of the largest process, MB")


def size_against_time(report: dict[str, Any], out: Path, name: str) -> None:
    """``NAME-size``: the archive's size against the time it took."""
    figure, axis = plt.subplots(figsize=(8, 5))
    for tool in report["tools"]:
        if not tool["pack"]:
            continue
        x, y = median(tool["pack"], 0), tool["archive_bytes"] / 1e9
        axis.plot(x, y, "o", color=_color(tool["name"]))
        axis.annotate(tool["name"], (x, y), textcoords="offset points", xytext=(5, 4), fontsize=8)
    axis.set_xscale("log")
    axis.set_xlabel("wall time of packing, s")
    axis.set_ylabel("archive, GB")
    _save(figure, out, f"{name}-size")


def scaling(reports: dict[int, dict[str, Any]], out: Path, name: str) -> None:
    """``NAME-scaling``: the speed-up that threads bring, pack and unpack."""
    figure, axis = plt.subplots(figsize=(7, 5))
    threads = sorted(reports)
    for what, style in (("pack", "o-"), ("unpack", "s--")):
        for tool in reports[threads[0]]["tools"]:
            rows = [next((t for t in reports[n]["tools"] if t["name"] == tool["name"]), None) for n in threads]
            walls = [median(row[what], 0) if row and row[what] else None for row in rows]
            if None not in walls and walls[0]:
                speed = [walls[0] / wall for wall in walls]
                axis.plot(threads, speed, style, color=_color(tool["name"]), label=f"{tool['name']}, {what}")
    axis.plot(threads, threads, ":", color="black", label="ideal")
    axis.set_xlabel("threads")
    axis.set_ylabel("speed-up over one thread")
    axis.legend(fontsize=8)
    _save(figure, out, f"{name}-scaling")

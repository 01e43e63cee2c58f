"""What packing again costs: nothing changed, one package more, a copy elsewhere; with the delta that ships the change.

The environment itself is not changed: it is packed once, and unpacked to where pip installs a package into it. Rounds
alternate; `cp` of the archive is what everything is held against. The stat table lies in a directory of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastpack import benching
from fastpack.benching import median

#: A small pure-Python package that nothing of the benchmark's environments needs.
PACKAGE = "colorama"
PIP = '"$OTHER/bin/python" -m pip --quiet --quiet --disable-pip-version-check'
PACK = 'fastpack pack -j "$JOBS" --json'

#: (name, what is done before it and not measured, what is measured)
SCENARIOS = (
    ("cp of the archive", "rm -f copy", "cp old.tar.zst copy"),
    ("first pack", "rm -f new.tar.zst", f'{PACK} -p "$PREFIX" -o new.tar.zst'),
    ("nothing changed", "cp old.tar.zst new.tar.zst", f'{PACK} -p "$PREFIX" -o new.tar.zst --force'),
    ("nothing changed, everything read", "cp old.tar.zst new.tar.zst",
     f'{PACK} -p "$PREFIX" -o new.tar.zst --force --verify-content'),
    ("a copy unpacked elsewhere, nothing known of it", "rm -rf fresh new.tar.zst",
     f'XDG_CACHE_HOME="$PWD/fresh" {PACK} -p "$OTHER" -o new.tar.zst --base old.tar.zst'),
    (f"pip install {PACKAGE}", f"{PIP} install {PACKAGE}; cp old.tar.zst new.tar.zst",
     f'{PACK} -p "$OTHER" -o new.tar.zst --force'),
    ("delta of that", "rm -f d.fpdelta", "fastpack delta old.tar.zst new.tar.zst -o d.fpdelta --json"),
    ("apply it", "rm -f applied", "fastpack apply d.fpdelta --base old.tar.zst -o applied --json"),
)  # fmt: skip
#: Puts the second environment back, and has a pack learn it as it is now.
RESTORE = (
    f'{PIP} uninstall --yes {PACKAGE}; rm -f learnt; {PACK} -p "$OTHER" -o learnt --format tar.zst --base old.tar.zst'
)


def run(prefix: str, work: str, rounds: int, threads: int) -> list[dict[str, Any]]:
    """Samples of every scenario: wall, user and system seconds, bytes of memory; and what the last run reported."""
    place = {
        "PREFIX": prefix, "OTHER": f"{work}/other", "JOBS": str(threads), "XDG_CACHE_HOME": f"{work}/cache",
        "PATH": os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"],
    }  # fmt: skip

    def shell(command: str) -> str:
        environment = {**os.environ, **place}
        done = subprocess.run(["sh", "-ec", command], cwd=work, env=environment, stdout=subprocess.PIPE, check=True)
        return done.stdout.decode()

    shell(f'{PACK} -p "$PREFIX" -o old.tar.zst; fastpack unpack old.tar.zst -p "$OTHER" --json; {RESTORE}')
    rows: list[dict[str, Any]] = [
        {"name": name, "command": command, "samples": [], "work": None} for name, _, command in SCENARIOS
    ]
    for k in range(rounds):
        for row, (name, before, command) in zip(rows, SCENARIOS, strict=True):
            print(f"  round {k + 1}: {name}", file=sys.stderr)
            shell(before)
            row["samples"].append(benching.measure(f'cd "{work}" && {{ {command}; }} > said', place))
            row["work"] = _work(Path(work, "said").read_text()) or row["work"]
        shell(f"cmp applied new.tar.zst; {RESTORE}")
    shell('chmod -R u+rwx "$OTHER"')  # whatever its modes
    return rows


def _work(said: str) -> dict[str, int] | None:
    try:
        result = json.loads(said.splitlines()[0])["result"]
    except (ValueError, IndexError):
        return None
    if "work" in result:
        return dict(result["work"])
    return {key: result[key] for key in ("delta_bytes", "archive_bytes", "n_shipped_frames") if key in result}


def table(name: str, rows: list[dict[str, Any]]) -> list[str]:
    """Markdown: medians, and the ratio to `cp`."""
    copy = median(rows[0]["samples"], 0) or 1
    lines = [f"## Packing again, {name}", "", "| | s | / cp | CPU s | MB | read MB | compressed MB | copied MB |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for row in rows:
        samples = [(wall, user + system, peak / 1e6) for wall, user, system, peak in row["samples"]]
        wall, cpu, peak = (median(samples, k) or 0 for k in range(3))
        work = row["work"] or {}
        if "delta_bytes" in work:
            cells = ["", "", f"{work['delta_bytes'] / 1e6:.1f} shipped"]
        else:
            cells = [f"{work[key] / 1e6:.0f}" if key in work else "" for key in ("read", "compressed", "copied")]
        lines.append(
            f"| {row['name']} | {wall:.2f} | {wall / copy:.2f} | {cpu:.1f} | {peak:.0f} | {' | '.join(cells)} |"
        )
    walls: Callable[[dict[str, Any]], str] = lambda row: ", ".join(f"{sample[0]:.1f}" for sample in row["samples"])  # noqa: E731
    return [*lines, "", "Samples (s): " + "; ".join(f"{row['name']} {walls(row)}" for row in rows) + ".", ""]

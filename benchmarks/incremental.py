"""What packing again costs: nothing changed, one package more or another version, made again; and what a delta saves.

The environment itself is not changed: it is packed once, and unpacked to where pip changes packages in it. Another one
is made from the same specs at another path under another umask. Rounds alternate; packing is held against `cp` of the
archive, unpacking a delta against unpacking the whole archive. Stat tables lie in a directory of their own.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from fastpack import benching
from fastpack.benching import median

#: A small pure-Python package that nothing of the benchmark's environments needs.
PACKAGE = "colorama"
#: One of 5 MB, in an older and a newer version; and the largest one, by another build.
REPLACED, OLDER, NEWER = "fonttools", "4.67.0", "4.68.0"
LARGEST, OTHER_BUILD = "torch", "2.14.0"
PIP = '"$OTHER/bin/python" -m pip --quiet --quiet --disable-pip-version-check'
PACK = 'fastpack pack -j "$JOBS" --json'
UNPACK = 'fastpack unpack -j "$JOBS" --json'
COPY = "cp -r --reflink=always"


class Scenario(NamedTuple):
    """What is done before and not measured, what is measured, and whether in the last round alone."""

    name: str
    before: str
    command: str
    once: bool = False


CP, FULL = "cp of the archive", "unpack the new archive"
SCENARIOS = (
    Scenario(CP, "rm -f copy", "cp old.tar.zst copy"),
    Scenario("first pack", "rm -f new.tar.zst", f'{PACK} -p "$PREFIX" -o new.tar.zst'),
    Scenario("nothing changed", "cp old.tar.zst new.tar.zst", f'{PACK} -p "$PREFIX" -o new.tar.zst --force'),
    Scenario("nothing changed, base trusted", "cp old.tar.zst new.tar.zst",
             f'{PACK} -p "$PREFIX" -o new.tar.zst --force --trust-base'),
    Scenario("nothing changed, everything read", "cp old.tar.zst new.tar.zst",
             f'{PACK} -p "$PREFIX" -o new.tar.zst --force --verify-content'),
    Scenario("made again elsewhere, nothing known of it", "rm -rf fresh new.tar.zst",
             f'XDG_CACHE_HOME="$PWD/fresh" {PACK} -p "$AGAIN" -o new.tar.zst --base old.tar.zst'),
    Scenario("the same, over the old archive", "rm -rf fresh; cp old.tar.zst new.tar.zst",
             f'XDG_CACHE_HOME="$PWD/fresh" {PACK} -p "$AGAIN" -o new.tar.zst --force'),
    Scenario(f"pip install {PACKAGE}", f"{PIP} install {PACKAGE}; cp before.tar.zst new.tar.zst",
             f'{PACK} -p "$OTHER" -o new.tar.zst --force'),
    Scenario(f"{REPLACED} {OLDER} by {NEWER}",
             f"{PIP} uninstall --yes {PACKAGE}; {PIP} install --no-deps {REPLACED}=={NEWER};"
             " cp before.tar.zst new.tar.zst",
             f'{PACK} -p "$OTHER" -o new.tar.zst --force'),
    Scenario("delta of that", "rm -f d.fpdelta", "fastpack delta before.tar.zst new.tar.zst -o d.fpdelta --json"),
    Scenario("apply it", "rm -f applied", "fastpack apply d.fpdelta --base before.tar.zst -o applied --json"),
    Scenario(FULL, 'rm -rf "$TARGET"', f'{UNPACK} new.tar.zst -p "$TARGET"'),
    Scenario("unpack the delta", 'cmp applied new.tar.zst; rm -rf "$TARGET"',
             f'{UNPACK} d.fpdelta --base "$BASE" -p "$TARGET"'),
    Scenario("unpack the delta, --hardlink", 'rm -rf "$TARGET"',
             f'{UNPACK} d.fpdelta --base "$BASE" -p "$TARGET" --hardlink'),
    Scenario("unpack the delta in place, the old one not kept",
             f'rm -rf "$TARGET"; {UNPACK} before.tar.zst -p "$TARGET"',
             f'{UNPACK} d.fpdelta -p "$TARGET" --in-place --keep 0'),
    Scenario(f"{LARGEST} by {OTHER_BUILD}",
             f"{PIP} install --no-deps {LARGEST}=={OTHER_BUILD}; cp before.tar.zst new.tar.zst",
             f'{PACK} -p "$OTHER" -o new.tar.zst --force', once=True),
    # Over the archive of the scenario before.
    Scenario("python by the benchmark's own, of the same minor version", 'python "$HERE/replace_python.py" "$OTHER"',
             f'{PACK} -p "$OTHER" -o new.tar.zst --force --on-missing warn', once=True),
)  # fmt: skip
#: Puts the second environment back, and has a pack learn it as it is then.
RESTORE = (
    f'rm -rf "$TARGET" learnt; {PIP} install --no-deps {REPLACED}=={OLDER};'
    f' {PACK} -p "$OTHER" -o learnt --format tar.zst --base old.tar.zst'
)
#: Reads what is unpacked and what it is put together from, once.
WARM = (
    "cat new.tar.zst d.fpdelta > /dev/null;"
    ' for d in "$BASE" "$DISK/base"; do test ! -d "$d" || tar cf - "$d" | cat > /dev/null; done'
)
#: The same for an environment that is packed, and for what may be its base.
WARM_PACK = "tar cf - {} | cat > /dev/null; cat *.tar.zst > /dev/null"
#: File systems with reflinks, and what makes them.
REFLINKS = {"XFS": "mkfs.xfs -q -m reflink=1", "Btrfs": "mkfs.btrfs -q"}
ON_DISK = (
    Scenario(FULL, 'rm -rf "$DISK/target"', f'{UNPACK} new.tar.zst -p "$DISK/target"'),
    Scenario("unpack the delta, reflinks", 'rm -rf "$DISK/target"',
             f'{UNPACK} d.fpdelta --base "$DISK/base" -p "$DISK/target"'),
    Scenario("cp -r --reflink of the environment", 'rm -rf "$DISK/target"',
             f'{COPY} "$DISK/base" "$DISK/target"'),
)  # fmt: skip


def run(
    prefix: str, work: str, rounds: int, threads: int, make: Callable[[str], None], n_bytes: int
) -> dict[str, list[dict[str, Any]]]:
    """Samples of every scenario: wall, user and system seconds, bytes of memory; and what the last run reported.

    Parameters
    ----------
    make : makes the same environment at another place.
    n_bytes : of the environment.
    """
    place = {
        "PREFIX": prefix, "OTHER": f"{work}/other", "AGAIN": f"{work}/made again", "BASE": f"{work}/base",
        "TARGET": f"{work}/target", "DISK": f"{work}/mounted", "JOBS": str(threads), "XDG_CACHE_HOME": f"{work}/cache",
        "HERE": os.path.dirname(os.path.abspath(__file__)),
        "PATH": os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"],
    }  # fmt: skip

    def shell(command: str) -> str:
        environment = {**os.environ, **place}
        done = subprocess.run(["sh", "-ec", command], cwd=work, env=environment, stdout=subprocess.PIPE, check=True)
        return done.stdout.decode()

    def measure(scenarios: tuple[Scenario, ...], rounds: int, after: str = ":") -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = [
            {"name": scenario.name, "command": scenario.command, "samples": [], "work": None} for scenario in scenarios
        ]
        for k in range(rounds):
            for row, scenario in zip(rows, scenarios, strict=True):
                if scenario.once and (k < rounds - 1 or LARGEST not in there):
                    continue
                print(f"  round {k + 1}: {scenario.name}", file=sys.stderr)
                try:
                    shell(scenario.before)
                except subprocess.CalledProcessError:
                    if not scenario.once:
                        raise
                    continue  # what hinders it is said
                if scenario.command.startswith((UNPACK, COPY)):
                    benching.forget_deleted()
                    shell(WARM)
                elif packed := re.search(r'pack .* -p ("[^"]+")', scenario.command):
                    shell(WARM_PACK.format(packed[1]))
                row["samples"].append(benching.measure(f'cd "{work}" && {{ {scenario.command}; }} > said', place))
                row["work"] = _work(Path(work, "said").read_text()) or row["work"]
                if "delta_bytes" in (row["work"] or {}):
                    row["work"]["package_bytes"] = _package_bytes(shell("fastpack inspect new.tar.zst --json"))
            shell(after)
        return [row for row in rows if row["samples"]]

    before = os.umask(0o077)
    try:
        make(place["AGAIN"])
    finally:
        os.umask(before)
    shell(f'{PACK} -p "$PREFIX" -o old.tar.zst; {UNPACK} old.tar.zst -p "$OTHER"; {RESTORE}')
    shell(f'cp learnt before.tar.zst; {UNPACK} before.tar.zst -p "$BASE"')
    there = shell('"$OTHER/bin/python" -m pip list --disable-pip-version-check')
    results = {"": measure(SCENARIOS, rounds, RESTORE)}
    replaced = next(scenario for scenario in SCENARIOS if scenario.name.startswith(REPLACED))
    shell(f'rm -rf "$AGAIN"; {replaced.before}; {replaced.command}')
    for name, mkfs in REFLINKS.items():
        with _disk(mkfs, work, 4 * n_bytes) as mounted:
            if mounted:
                shell(f'{UNPACK} before.tar.zst -p "$DISK/base"')
                results[f"on {name}"] = measure(ON_DISK, rounds)
    shell('chmod -R u+rwx "$OTHER" "$BASE"')  # whatever their modes
    return results


@contextmanager
def _disk(mkfs: str, work: str, n_bytes: int) -> Iterator[bool]:
    """A file system in a file, at `work`/mounted; false where none can be made or mounted."""
    command = mkfs.split()
    if shutil.which(command[0]) is None:
        yield False
        return
    disk, place = Path(work, "disk"), Path(work, "mounted")
    with disk.open("wb") as file:
        file.truncate(max(n_bytes, 1 << 30))
    subprocess.run([*command, disk], check=True, stdout=subprocess.DEVNULL)
    place.mkdir(exist_ok=True)
    mounted = subprocess.run(["mount", "-o", "loop", disk, place], check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", place], check=True)
        disk.unlink()


def _package_bytes(said: str) -> int:
    """The compressed bytes of the replaced package, by `inspect`."""
    groups = json.loads(said)["result"]["groups"]
    return sum(int(group["packed_bytes"]) for group in groups if group["name"] == REPLACED)


def _work(said: str) -> dict[str, int] | None:
    try:
        result = json.loads(said.splitlines()[0])["result"]
    except (ValueError, IndexError):
        return None
    if "work" in result:
        return dict(result["work"])
    return {key: result[key] for key in ("delta_bytes", "archive_bytes", "n_shipped_frames") if key in result}


def table(name: str, results: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Markdown: medians, and the ratios to `cp` and to unpacking everything."""
    lines = []
    for where, rows in results.items():
        measured = {row["name"]: median(row["samples"], 0) or 1 for row in rows}
        lines += [f"## Packing again, {name}{where and f', {where}'}", "",
                  "| | s | / cp | / full unpack | CPU s | MB | read MB | compressed MB | copied MB |",
                  "|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
        for row in rows:
            samples = [(wall, user + system, peak / 1e6) for wall, user, system, peak in row["samples"]]
            wall, cpu, peak = (median(samples, k) or 0 for k in range(3))
            unpacks = row["command"].startswith((UNPACK, COPY))
            ratios = [f"{wall / measured[CP]:.2f}" if CP in measured and not unpacks else "",
                      f"{wall / measured[FULL]:.2f}" if unpacks else ""]  # fmt: skip
            work = row["work"] or {}
            if "delta_bytes" in work:
                shipped, package = work["delta_bytes"] / 1e6, work["package_bytes"] / 1e6
                cells = ["", "", f"{shipped:.2f} shipped ({REPLACED}: {package:.2f})"]
            else:
                cells = [f"{work[key] / 1e6:.1f}" if key in work else "" for key in ("read", "compressed", "copied")]
            lines.append(f"| {row['name']} | {wall:.2f} | {' | '.join(ratios)} | {cpu:.1f} | {peak:.0f} |"
                         f" {' | '.join(cells)} |")  # fmt: skip
        walls = [f"{row['name']} {', '.join(f'{sample[0]:.1f}' for sample in row['samples'])}" for row in rows]
        lines += ["", "Samples (s): " + "; ".join(walls) + ".", ""]
    return lines

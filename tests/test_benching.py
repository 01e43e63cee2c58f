"""Measuring: every command runs, what comes of it is checked, and what fails is said."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
from pathlib import Path

import pytest

from fastpack import benching, errors
from fastpack.benching import COPY, Options, Tool, fastpack_tool, zstd_tool
from tests.test_cli import Run
from tests.test_environment import write

WORKS = 'test -s "$TARGET/bin/app"'
COPIES = Tool(COPY, "", "", 'cp -r "$PREFIX" "$TARGET"', ("cp",), "cp --version")


def test_tools_are_measured_and_what_they_unpack_is_checked(made: str, tmp_path: Path) -> None:
    tools = (fastpack_tool("fastpack", ".tar.zst"), dataclasses.replace(zstd_tool(3), rounds=1), COPIES)
    work = tmp_path / "work"
    work.mkdir()
    report = benching.bench(made, Options(2, 1, check=WORKS, work=str(work)), tools)
    fastpack, tar, copy = report.tools
    assert [len(tool["pack"]) for tool in report.tools] == [2, 1, 0]
    assert [len(tool["unpack"]) for tool in report.tools] == [2, 1, 2]
    for tool in report.tools:
        assert tool["checked"]["works"] and tool["checked"]["missing"] == 0 and tool["version"], tool
        for wall, user, system, peak in [*tool["pack"], *tool["unpack"]]:
            assert wall > 0 and user + system > 0 and peak > 1 << 19
    # fastpack changes what names the source, tar and cp leave it.
    assert fastpack["checked"]["changed"] >= 5 and fastpack["checked"]["naming_the_source"] == 0
    for tool in (tar, copy):
        assert tool["checked"]["naming_the_source"] >= 5 and tool["checked"]["changed"] == 0
    lines = list(benching.table(report.tools))
    assert len(lines) == 5 and all(line.replace("\\|", "").count("|") == 10 for line in lines)
    assert not os.listdir(work), "what was made to measure is removed"


@pytest.mark.parametrize(
    ("tool", "says"),
    [
        (Tool("x", ".x", "echo no such luck >&2; exit 3", "true", ("sh",), "echo 1.2"), "no such luck"),
        (Tool("x", ".x", 'echo > "$ARCHIVE"', "kill -9 $$", ("sh",), "echo 1.2"), "-9"),
    ],
)
def test_a_rival_that_fails_is_said_and_the_others_go_on(made: str, tmp_path: Path, tool: Tool, says: str) -> None:
    report = benching.bench(made, Options(2, check=WORKS, work=str(tmp_path)), (tool, COPIES))
    failed, copies = report.tools
    assert says in failed["failed"] and failed["unpack"] == [] and len(copies["unpack"]) == 2
    assert [warning.code for warning in report.warnings] == ["does-not-work"] and says in report.warnings[0].message
    assert list(benching.table(report.tools))[2].endswith("| failed |")


def test_fastpack_failing_ends_it(made: str, tmp_path: Path) -> None:
    tool = dataclasses.replace(fastpack_tool("fastpack", ".tar.zst"), pack="fastpack pack -p /nothing/here")
    with pytest.raises(errors.BenchFailed, match="ended with"):
        benching.bench(made, Options(1, check=WORKS, work=str(tmp_path)), (tool,))


def test_what_fastpack_loses_is_found(made: str, tmp_path: Path) -> None:
    loses = fastpack_tool("fastpack", ".tar.zst")
    loses = Tool(loses.name, loses.suffix, loses.pack, loses.unpack + ' && rm "$TARGET/bin/app"', loses.needs, "")
    with pytest.raises(errors.BenchFailed, match="lacks"):
        benching.bench(made, Options(1, check="true", work=str(tmp_path)), (loses,))
    with pytest.raises(errors.BenchFailed, match="does not work"):
        benching.bench(made, Options(1, check="false", work=str(tmp_path)), (fastpack_tool("fastpack", ".tar.zst"),))


def test_a_rival_that_does_not_work_is_a_warning(made: str, tmp_path: Path) -> None:
    report = benching.bench(made, Options(1, check="echo broken >&2; exit 1", work=str(tmp_path)), (COPIES,))
    assert report.tools[0]["checked"]["works"] is False and "broken" in report.warnings[0].message


def test_a_wrong_tool_a_wrong_prefix_and_no_room(made: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(errors.UsageError, match="no such tool"):
        benching.bench(made, Options(only=("winzip",)))
    with pytest.raises(errors.UsageError, match="cannot be run"):
        benching.bench(made, Options(only=("x",)), (Tool("x", ".x", "", "", ("no-such-program-here",), ""),))
    with pytest.raises(errors.UsageError, match="rounds"):
        benching.bench(made, Options(rounds=0))
    with pytest.raises(errors.Unreadable):
        benching.bench(str(tmp_path / "nothing"), Options())
    with pytest.raises(errors.FastpackError, match="No such file|not there|does not exist"):
        benching.bench(made, Options(work=str(tmp_path / "nothing")))
    monkeypatch.setattr("fastpack.fs.free_bytes", lambda path: 1)
    with pytest.raises(errors.NoSpace):
        benching.bench(made, Options(work=str(tmp_path)))


def test_the_command(fastpack: Run, made: str, tmp_path: Path) -> None:
    arguments = ["bench", made, "--rounds", "1", "--only", "fastpack", "--only", COPY, "--check", WORKS]
    done = fastpack(*arguments, "--work", str(tmp_path), "--json")
    result = done.json["result"]
    assert done.code == 0 and [tool["name"] for tool in result["tools"]] == ["fastpack", COPY]
    done = fastpack(*arguments, "--work", str(tmp_path))
    assert done.code == 0 and done.out.startswith("| | pack s |") and "1 rounds" in done.err


def test_the_memory_of_a_small_command_is_not_its_parents(tmp_path: Path) -> None:
    write(str(tmp_path), "x", "x")
    ballast = bytearray(300 << 20)
    ballast[:: 1 << 12] = b"x" * len(ballast[:: 1 << 12])
    *_, peak = benching.measure("true", {"TARGET": str(tmp_path)})
    assert peak < 40 << 20, "the parent's memory was counted"
    assert sys.executable and shutil.which("sh")

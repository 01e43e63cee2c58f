"""The command line: exit codes, one line of error, one object of JSON."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

import fastpack as package
from fastpack import errors
from fastpack.cli import size
from tests.conftest import Done, ordinary_user, run_fastpack
from tests.test_environment import write

Run = Callable[..., Done]


@pytest.mark.parametrize(
    "arguments",
    [
        ["pack", "--bad"], ["cache"], ["cache", "clean"], ["unpack"], ["frob"], ["pack", "-j", "-3"], ["pack", "-p", ""],
        ["unpack", "x", "-p", "y", "--keep", "3"], ["unpack", "x", "-p", ""], ["pack", "--format"],
    ],
)  # fmt: skip
def test_a_wrong_usage_is_one_line(arguments: list[str]) -> None:
    done = run_fastpack(*arguments)
    assert done.code != 0 and not done.out and len(done.err.splitlines()) == 1 and done.err.startswith("fastpack"), (
        done.err
    )


def test_every_error_has_an_exit_code_of_its_own() -> None:
    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.FastpackError)]
    codes = [c.exit_code for c in classes]
    assert len(codes) == len(set(codes)) and 0 not in codes and 130 not in codes
    assert {2, 10, 11, 12, 13, 14, 15, 16, 17, 20, 21, 22, 23, 24, 25, 30, 31, 32, 33, 34} <= set(codes)
    tree = errors.__doc__ or ""
    for c in classes:
        assert any(c.__name__ in line and str(c.exit_code) in line for line in tree.splitlines()), c


def test_pack_unpack_relocate_and_their_json(fastpack: Run, made: str, tmp_path: Path) -> None:
    out, target = str(tmp_path / "a.tar.zst"), str(tmp_path / "target")
    done = fastpack("pack", "-p", made, "-o", out, "--json")
    assert (done.code, done.err) == (0, "")
    answer = done.json
    assert set(answer) == {"schema", "command", "ok", "exit_code", "error", "warnings", "result"}
    assert (answer["command"], answer["ok"], answer["exit_code"], answer["error"]) == ("pack", True, 0, None)
    result = answer["result"]
    assert result["archive_bytes"] == os.path.getsize(out) and result["elapsed_seconds"] > 0
    assert result["verdicts"]["proven"] == 7 and result["output"] == out
    done = fastpack("unpack", out, "-p", target, "--json")
    assert done.json["result"]["archive_id"] == result["archive_id"]
    moved = str(tmp_path / "moved")
    os.rename(target, moved)
    assert fastpack("relocate", moved, "--json").json["result"]["n_written"] == 5


def test_people_read_standard_error_and_quiet_is_quiet(fastpack: Run, made: str, tmp_path: Path) -> None:
    done = fastpack("pack", "-p", made, "-o", tmp_path / "a.tar.zst")
    assert done.out == "" and "1 packages" in done.err and "255 bytes" in done.err
    assert "\r" not in done.err and "\x1b" not in done.err, "no progress bar where there is no terminal"
    done = fastpack("pack", "-p", made, "-o", tmp_path / "b.tar.zst", "-q")
    assert (done.code, done.out, done.err) == (0, "", "")
    done = fastpack("unpack", tmp_path / "a.tar.zst", "-p", tmp_path / "t", "--quiet")
    assert (done.code, done.out, done.err) == (0, "", "")


def test_standard_output(fastpack: Run, made: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fastpack.cli", "pack", "-p", made, "-o", "-", "--json"]
    done = subprocess.run(command, capture_output=True)
    assert json.loads(done.stderr)["ok"] is True
    fastpack("pack", "-p", made, "-o", tmp_path / "a.tar.zst")
    assert done.stdout == (tmp_path / "a.tar.zst").read_bytes()
    gz = subprocess.run([*command[:-1], "--format", "tgz", "-q"], capture_output=True)
    assert gz.stdout[:2] == b"\x1f\x8b" and gz.stderr == b""


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("pack", "-p", "{made}/nothing"), 10, "no such directory"),
        (("pack", "-n", "unheard-of"), 10, "no environment is named"),
        (("pack",), 10, "CONDA_PREFIX"),
        (("pack", "-p", "{made}", "-n", "x"), 2, "not both"),
        (("pack", "-p", "{tmp}"), 11, "no conda-meta"),
        (("pack", "-p", "{made}", "-o", "{tmp}/a.rar"), 2, "format"),
        (("pack", "-p", "{made}", "-o", "{tmp}/exists"), 2, "format"),
        (("pack", "-p", "{made}", "-o", "{tmp}/exists.tar"), 22, "already there"),
        (("pack", "-p", "{made}", "-o", "{made}/a.tar"), 2, "in the environment itself"),
        (("pack", "-p", "{made}", "--dest-prefix", "relative"), 2, "absolute"),
        (("pack", "-p", "{made}", "-o", "{tmp}/b.tar", "--dest-prefix", "/" + "x" * 300), 20, "at most 255 bytes"),
        (("unpack", "{tmp}/nothing", "-p", "{tmp}/t"), 30, "cannot be opened"),
        (("unpack", "{tmp}/exists.tar", "-p", "{tmp}/t"), 30, "empty"),
        (("relocate", "{made}"), 11, "did not unpack"),
        (("relocate", "{tmp}/nothing"), 10, "no such directory"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    fastpack: Run, made: str, tmp_path: Path, arguments: tuple[str, ...], code: int, says: str
) -> None:
    (tmp_path / "exists.tar").write_text("")
    before = sorted(os.listdir(tmp_path))
    filled = [argument.format(made=made, tmp=tmp_path) for argument in arguments]
    done = fastpack(*filled, cwd=tmp_path)
    assert done.code == code and says in done.err and done.out == "", done.err
    assert len(done.err.splitlines()) == 1
    done = fastpack(*filled, "--json", cwd=tmp_path)
    error = done.json["error"]
    assert done.code == done.json["exit_code"] == code and done.json["ok"] is False
    assert set(error) == {"class", "message", "path", "expected", "found", "hint"}
    assert sorted(os.listdir(tmp_path)) == before


def test_filters_are_taken_in_the_order_given(fastpack: Run, made: str, tmp_path: Path) -> None:
    arguments = ["--exclude", "share/*", "--include=*.conf", "--exclude=*app.conf"]
    done = fastpack("pack", "-p", made, "-o", tmp_path / "a.tar", *arguments, "--json")
    assert done.json["result"]["left_out"] == {"excluded": 7}
    done = fastpack("pack", "-p", made, "-o", tmp_path / "b.tar", *arguments[:-1], "--json")
    assert done.json["result"]["left_out"] == {"excluded": 6}


def test_a_record_that_is_cut_off(fastpack: Run, made: str, tmp_path: Path) -> None:
    path = os.path.join(made, "conda-meta", "app-1.0-0.json")
    data = Path(path).read_bytes()
    Path(path).write_bytes(data[: len(data) // 2])
    done = fastpack("pack", "-p", made, "-o", tmp_path / "a.tar")
    assert done.code == 12 and "app-1.0-0.json" in done.err


def test_an_unreadable_file(made: str) -> None:
    command = ordinary_user()
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        shutil.copytree(made, f"{folder}/env", symlinks=True)
        write(f"{folder}/env", "secret", "x", 0o600)
        os.chmod(f"{folder}/env/share/app/private.txt", 0o644)
        code = f"import sys; sys.path[:0] = {sys.path!r}; from fastpack.cli import main; main()"
        done = subprocess.run([*command, code, "pack", "-p", "env", "-o", "a.tar"], cwd=folder, capture_output=True,
                              text=True)  # fmt: skip
        assert done.returncode == 15 and "secret" in done.stderr, done.stderr
        assert not os.path.exists(f"{folder}/a.tar")


def test_version_help_and_usage(fastpack: Run) -> None:
    assert fastpack("--version").out.strip() == f"fastpack {package.__version__}"
    as_module = subprocess.run([sys.executable, "-m", "fastpack", "--version"], capture_output=True, text=True)
    assert as_module.stdout.strip() == f"fastpack {package.__version__}" and not as_module.returncode
    assert "pack" in fastpack("--help").out
    assert fastpack("pack", "--no-such-option").code == 2
    for arguments in (("pack", "--no-such-option"), ("unpack",), ("pack", "-j", "x"), ("no-such-command",)):
        done = fastpack(*arguments, "--json")
        assert done.code == 2 and done.json["exit_code"] == 2 and done.json["error"]["class"] == "UsageError"


def test_a_full_device_and_a_closed_output(made: str) -> None:
    command = [sys.executable, "-m", "fastpack.cli", "pack", "-p", made, "-o", "-"]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 23 and done.stderr.count(b"\n") == 1, done.stderr


def test_the_pure_python_kernels_give_the_same_archive(fastpack: Run, made: str, tmp_path: Path) -> None:
    assert fastpack("pack", "-p", made, "-o", tmp_path / "a.tar.zst").code == 0
    assert fastpack("pack", "-p", made, "-o", tmp_path / "b.tar.zst", env={"FASTPACK_PURE": "1"}).code == 0
    assert (tmp_path / "a.tar.zst").read_bytes() == (tmp_path / "b.tar.zst").read_bytes()


def test_demo_needs_a_channel_for_specs(fastpack: Run) -> None:
    assert fastpack("demo", "numpy").code == 2


def test_sizes() -> None:
    assert [size(n) for n in (0, 999, 1000, 123456, 5_000_000, 6_500_000_000)] == [
        "0 B", "999 B", "1.0 kB", "123 kB", "5.0 MB", "6.5 GB",
    ]  # fmt: skip

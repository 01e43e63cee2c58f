"""Each test names the bug it keeps away: closed streams, FIFOs, and what stands where something else is expected."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import fastpack
from fastpack import errors
from fastpack._place_py import placed_header
from fastpack.console import _names
from fastpack.deltafile import head
from fastpack.made_prefix import BUILD_PLACEHOLDER, MadeFile, MadePackage, install
from tests.conftest import need, run_fastpack
from tests.test_conda_unpack import conda_unpack, extract
from tests.test_environment import SITE, dist, write

COMMAND = [sys.executable, "-m", "fastpack.cli"]


def shell(line: str, *arguments: object, timeout: float = 60) -> subprocess.CompletedProcess[bytes]:
    """A line for sh, in which ``$@`` is the command with some arguments."""
    command = ["sh", "-c", line, "sh", *COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, timeout=timeout)


# --- closed streams --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [[], ["--json"], ["-q"]])
def test_messages_never_get_into_an_archive(made: str, tmp_path: Path, more: list[str]) -> None:
    """`print` to no standard error at all went to standard output, with exit code 0."""
    out = tmp_path / "a.tar.zst"
    done = shell(f'"$@" 2>&- > "{out}"', "pack", "-p", made, "-o", "-", *more)
    assert done.returncode == 0
    fastpack.pack(prefix=made, output=str(tmp_path / "b.tar.zst"))
    assert out.read_bytes() == (tmp_path / "b.tar.zst").read_bytes()
    done = shell(f'"$@" 2>&- > "{out}"', "pack", "-p", tmp_path / "nothing", "-o", "-", *more)
    assert done.returncode == errors.EnvironmentNotFound.exit_code and out.read_bytes() == b""


@pytest.mark.parametrize("closed", ["2>&-", "0>&- 2>&-", "0>&-", "0>&- 1>&- 2>&-", "1>&-"])
def test_closed_streams_are_no_reason_to_fail(made: str, tmp_path: Path, closed: str) -> None:
    archive, target = tmp_path / "a.tar.zst", tmp_path / "target"
    for arguments in (("pack", "-p", made, "-o", archive), ("unpack", archive, "-p", target), ("verify", target)):
        done = shell(f'"$@" {closed}', *arguments)
        assert done.returncode == 0, (arguments, done.stderr)
    fastpack.pack(prefix=made, output=str(tmp_path / "b.tar.zst"))
    assert archive.read_bytes() == (tmp_path / "b.tar.zst").read_bytes()


def test_what_is_asked_of_a_closed_stream_fails(made: str, archive: str, tmp_path: Path) -> None:
    for line, arguments in (
        ('"$@" >&-', ("pack", "-p", made, "-o", "-")),
        ('"$@" >&-', ("verify", archive, "--json")),
        ('"$@" <&-', ("unpack", "-", "-p", tmp_path / "target")),
    ):
        done = shell(line, *arguments)
        assert done.returncode != 0 and done.stderr.count(b"\n") == 1 and b"Traceback" not in done.stderr, done
    assert not (tmp_path / "target").exists()


def test_conda_fastpack_with_closed_streams(made: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from fastpack.conda_cli import main; main()"]
    out = tmp_path / "a.tar.gz"
    done = subprocess.run(["sh", "-c", '"$@" 2>&- >&-', "sh", *command, "-p", made, "-o", str(out)])
    assert done.returncode == 0 and not fastpack.verify(str(out)).problems


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["pack", "--help"]])
def test_a_full_standard_output_is_one_line(arguments: list[str]) -> None:
    done = shell('"$@" > /dev/full', *arguments)
    assert done.returncode == 1 and done.stderr.count(b"\n") == 1 and b"No space" in done.stderr, done.stderr


@pytest.mark.parametrize("ignored", [False, True])
def test_a_lost_terminal_ends_the_work_as_an_interrupt_does(made: str, tmp_path: Path, ignored: bool) -> None:
    """It left a partial directory; with nohup the work goes on."""
    write(made, "share/large", os.urandom(60 << 20))
    archive = str(tmp_path / "a.tar")
    fastpack.pack(prefix=made, output=archive)
    line = 'trap "" HUP; exec "$@"' if ignored else 'exec "$@"'
    target = tmp_path / "there" / "target"
    process = subprocess.Popen(["sh", "-c", line, "sh", *COMMAND, "unpack", archive, "-p", str(target), "-q"])
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if target.parent.exists() and any(target.parent.iterdir()):
            process.send_signal(signal.SIGHUP)
            break
    code = process.wait(60)
    if ignored:
        assert code == 0 and target.exists()
    else:
        assert code == 0 or not target.exists()
        while target.parent.exists() and not target.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert code in (0, 130) and (code == 0) == target.exists()
    assert not target.parent.exists() or os.listdir(target.parent) == ["target"]


def test_a_warning_names_its_path_once() -> None:
    assert _names("a and b", "a") and _names("share/a: odd", "share/a") and _names("odd: share/a", "share/a")
    assert not _names("two members have one name", "a") and not _names("share/a/b", "share/a")
    assert not _names("share/a", "a")


# --- what is no regular file -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("conda-meta/x-1-0.json", errors.Unreadable),
        (".fastpack/state.json", errors.FastpackError),
        (".fastpack/relocations.json", errors.FastpackError),
        (".fastpack/manifest", None),
    ],
)
def test_a_fifo_is_not_waited_for(
    made: str, tmp_path: Path, path: str, code: type[errors.FastpackError] | None
) -> None:
    os.makedirs(os.path.join(made, ".fastpack"), exist_ok=True)
    os.mkfifo(os.path.join(made, path))
    done = shell('"$@"', "pack", "-p", made, "-o", tmp_path / "a.tar.zst", timeout=30)
    assert b"Traceback" not in done.stderr
    if code is None:
        assert done.returncode == 0
    else:
        assert done.returncode not in (0, 1) and made.encode() in done.stderr
        assert code is errors.FastpackError or done.returncode == code.exit_code


@pytest.mark.parametrize("name", ["manifest", "relocations.json", "state.json"])
def test_a_fifo_in_the_base_of_a_delta_is_not_waited_for(made: str, tmp_path: Path, name: str) -> None:
    old, new, delta, base = (str(tmp_path / name) for name in ("old.tar.zst", "new.tar.zst", "d.fpdelta", "base"))
    fastpack.pack(prefix=made, output=old)
    write(made, "share/more", "more")
    fastpack.pack(prefix=made, output=new)
    fastpack.make_delta(old, new, delta)
    fastpack.unpack(old, base)
    place = Path(base, ".fastpack", name)
    place.unlink()
    os.mkfifo(place)
    done = shell('"$@"', "unpack", delta, "--base", base, "-p", tmp_path / "target", timeout=30)
    assert done.returncode not in (0, 1) and b"base" in done.stderr and b"Traceback" not in done.stderr


def test_a_fifo_among_what_is_remembered_is_not_waited_for(made: str, tmp_path: Path) -> None:
    out, home = tmp_path / "a.tar.zst", tmp_path / "home"
    env = {"XDG_CACHE_HOME": str(home)}
    old = time.time() - 60
    for folder, _, names in os.walk(made):
        for name in [folder, *(os.path.join(folder, name) for name in names)]:
            os.utime(name, (old, old), follow_symlinks=False)
    time.sleep(4.1)
    assert run_fastpack("pack", "-p", made, "-o", out, env=env).code == 0
    tables = [path for path in home.rglob("*") if path.is_file()]
    assert {path.parent.name for path in tables} == {"stat", "again"}
    for table in tables:
        table.unlink()
        os.mkfifo(table)
    done = subprocess.run(
        [*COMMAND, "pack", "-p", made, "-o", str(out), "--force"], env={**os.environ, **env}, timeout=30
    )
    assert done.returncode == 0


def test_what_stands_in_a_managed_files_place_is_not_that_file(made: str, tmp_path: Path) -> None:
    """A FIFO, socket or device was left out, and the package's file did not count as missing."""
    path = os.path.join(made, "share/app/plain.txt")
    os.unlink(path)
    os.mkfifo(path)
    with pytest.raises(errors.MissingFiles, match="share/app/plain.txt"):
        fastpack.pack(prefix=made, output=str(tmp_path / "a.tar.zst"))
    report = fastpack.pack(prefix=made, output=str(tmp_path / "a.tar.zst"), ignore_missing_files=True)
    assert {warning.code for warning in report.warnings} >= {"special-file"}


# --- metadata --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["file://[::1/x", "file:///a%00b", "file:///tmp/\0x", "file:"])
def test_an_odd_url_of_an_editable_package(made: str, tmp_path: Path, url: str) -> None:
    text = json.dumps({"url": url, "dir_info": {"editable": True}})
    dist(made, "odd", {"odd.py": b""}, **{"direct_url.json": text.encode()})
    assert run_fastpack("pack", "-p", made, "-o", tmp_path / "a.tar.zst", "--editable", "ignore").code == 0


def test_a_nul_in_a_pth_file(made: str, tmp_path: Path) -> None:
    write(made, f"{SITE}/odd.pth", b"/tmp/\0x\n")
    dist(made, "odd", {"odd.py": b""})
    assert run_fastpack("pack", "-p", made, "-o", tmp_path / "a.tar.zst").code == 0


@pytest.mark.parametrize("channel", [[1], 3, {"name": [1]}, {}, None, True])
def test_an_odd_channel_in_a_record(made: str, tmp_path: Path, channel: object) -> None:
    record = Path(made, "conda-meta/app-1.0-0.json")
    record.write_text(json.dumps({**json.loads(record.read_text()), "channel": channel}))
    assert run_fastpack("pack", "-p", made, "-o", tmp_path / "a.tar.zst").code == 0


def test_a_nul_in_a_record_is_refused(made: str, tmp_path: Path) -> None:
    record = Path(made, "conda-meta/app-1.0-0.json")
    table = json.loads(record.read_text())
    for key in ("_path", "prefix_placeholder"):
        changed = json.loads(json.dumps(table))
        changed["paths_data"]["paths"][0][key] = "a\0b"
        record.write_text(json.dumps(changed))
        with pytest.raises(errors.BadRecord):
            fastpack.pack(prefix=made, output=str(tmp_path / "a.tar.zst"))


WINDOWS = "C:/bld/pkg_1700000000000/_h_env" + "_placehold" * 8


@need("tar", "zstd")
@pytest.mark.parametrize("name", ["target", "target with a space", "t" * 150])
def test_a_package_that_was_built_on_windows(tmp_path: Path, name: str) -> None:
    """Its placeholder is no path of this system: packing was well, and unpacking refused the relocations as broken."""
    made, expected = str(tmp_path / "made"), str(tmp_path / "expected")
    files = {
        "share/win.conf": MadeFile(f"home = {WINDOWS}/share\n".encode(), file_mode="text", placeholder=WINDOWS),
        "bin/tool": MadeFile(f"#!{WINDOWS}/bin/python\n".encode(), 0o755, file_mode="text", placeholder=WINDOWS),
    }
    install([MadePackage("win", files=files, noarch="generic")], made)
    out = str(tmp_path / "a.tar.zst")
    report = fastpack.pack(prefix=made, output=out)
    assert report.verdicts["proven with a prefix"] == 2
    target = str(tmp_path / name)
    fastpack.unpack(out, target)
    install([MadePackage("win", files=files, noarch="generic")], expected)
    wanted = Path(expected, "share/win.conf").read_bytes().replace(expected.encode(), target.encode())
    assert Path(target, "share/win.conf").read_bytes() == wanted
    assert not fastpack.verify(target).problems
    by_tar = extract(out, str(tmp_path / "by tar"))
    assert conda_unpack(by_tar).returncode == 0
    assert Path(by_tar, "share/win.conf").read_text() == f"home = {by_tar}/share\n"


@pytest.fixture
def without_links(made: str) -> str:
    """As zip can hold it."""
    os.unlink(os.path.join(made, "share/app/dangling"))
    record = Path(made, "conda-meta/app-1.0-0.json")
    table = json.loads(record.read_text())
    table["paths_data"]["paths"] = [row for row in table["paths_data"]["paths"] if row["_path"] != "share/app/dangling"]
    table["files"].remove("share/app/dangling")
    record.write_text(json.dumps(table))
    return made


# --- our own files have no place -------------------------------------------------------------------------------------


def link_for_bin(made: str) -> None:
    os.rename(f"{made}/bin", f"{made}/b2")
    os.symlink("b2", f"{made}/bin")


def file_for_bin(made: str) -> None:
    shutil.rmtree(f"{made}/bin")
    write(made, "bin", "a file")


def folder_for_script(made: str) -> None:
    write(made, "bin/activate.fish/inner", "x")


def file_for_own_folder(made: str) -> None:
    write(made, ".fastpack", "x")


@pytest.mark.parametrize("change", [link_for_bin, file_for_bin, folder_for_script, file_for_own_folder])
@pytest.mark.parametrize("format_", ["tar.zst", "zip", "no-archive"])
def test_an_archive_has_no_member_below_a_file_nor_twice(
    without_links: str, tmp_path: Path, change: Callable[[str], None], format_: str
) -> None:
    """It was written with exit code 0, and refused by `unpack` and `tar`."""
    change(without_links)
    out = tmp_path / "out"
    try:
        fastpack.pack(prefix=without_links, output=str(out), format=format_, ignore_missing_files=True)
    except errors.Unrelocatable as error:
        assert "no place" in str(error) and error.path is not None and not out.exists()
    except errors.IncompleteEnvironment:
        assert change is file_for_own_folder and not out.exists()
    else:
        assert change is link_for_bin and format_ == "zip"  # which has what the link leads to
        assert not fastpack.unpack(str(out), str(tmp_path / "target")).warnings


@pytest.mark.parametrize("mode", [0o000, 0o111, 0o200])
def test_a_zip_keeps_modes_that_nobody_can_read(without_links: str, tmp_path: Path, mode: int) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can read them")
    write(without_links, "share/odd", "x")
    os.chmod(os.path.join(without_links, "share/odd"), mode)
    out, target = str(tmp_path / "a.zip"), tmp_path / "target"
    fastpack.pack(prefix=without_links, output=out)
    fastpack.unpack(out, str(target))
    straight = tmp_path / "straight"
    fastpack.pack(prefix=without_links, output=str(tmp_path / "a.tar"))
    fastpack.unpack(str(tmp_path / "a.tar"), str(straight))
    assert (target / "share/odd").stat().st_mode == (straight / "share/odd").stat().st_mode


def test_the_size_of_a_zip_that_goes_to_a_pipe(without_links: str, tmp_path: Path) -> None:
    write(without_links, "share/text", "text " * 100_000)
    with (tmp_path / "a.zip").open("wb") as out:
        done = subprocess.run(
            [*COMMAND, "pack", "-p", without_links, "--format", "zip", "-o", "-", "--json"],
            stdout=out,
            stderr=subprocess.PIPE,
        )
    assert json.loads(done.stderr)["result"]["archive_bytes"] == (tmp_path / "a.zip").stat().st_size


def test_a_zip_with_an_impossible_offset(without_links: str, tmp_path: Path) -> None:
    out = tmp_path / "a.zip"
    fastpack.pack(prefix=without_links, output=str(out))
    data = bytearray(out.read_bytes())
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        start = archive.start_dir
    data[start + 42 : start + 46] = b"\xff\xff\xff\xff"
    out.write_bytes(data)
    with pytest.raises(errors.DamagedArchive):
        fastpack.unpack(str(out), str(tmp_path / "target"))


# --- first lines -----------------------------------------------------------------------------------------------------


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory of a short name: a first line has at most 127 bytes."""
    with tempfile.TemporaryDirectory(prefix="fp-") as folder:
        yield Path(folder)


SCRIPTS = {
    "one": ("#!{c}/bin/python -X pycache_prefix={c}/pyc\nprint(1)\n", "#!{n}/bin/python -X pycache_prefix={n}/pyc\nprint(1)\n"),
    "two": ("#!{c}/bin/perl -I{c}/lib\nprint 1;\n", "#!{n}/bin/perl -I{n}/lib\nprint 1;\n"),
    "three": (
        "#!/bin/sh\n'''exec' \"{c}/bin/python\" -X pycache_prefix={c}/pyc \"$0\" \"$@\"\n' '''\nprint(1)\n",
        "#!{n}/bin/python -X pycache_prefix={n}/pyc\nprint(1)\n",
    ),
    "four": ("#!{c}/bin/python -I{c}2/lib\n", None),  # another environment
}  # fmt: skip


def test_row_12_options_of_a_first_line_name_the_prefix_too(tmp_path: Path, short: Path) -> None:
    made, target = str(tmp_path / "made"), str(short / "target")
    install([], made)
    for name, (text, _) in SCRIPTS.items():
        write(made, f"bin/{name}", text.format(c=made), 0o755)
    out = str(tmp_path / "a.tar.zst")
    report = fastpack.pack(prefix=made, output=out)
    listed = {row["path"] for row in report.not_relocated}
    assert listed >= {"bin/one", "bin/two", "bin/three"}
    fastpack.unpack(out, target)
    for name, (_, placed) in SCRIPTS.items():
        found = Path(target, "bin", name).read_text()
        assert made + "/" not in found and made.encode() + b"/" not in fastpack_cat(out, f"bin/{name}")
        if placed is not None:
            assert found == placed.format(n=target)
    assert not fastpack.verify(target).problems


def fastpack_cat(archive: str, path: str) -> bytes:
    done = subprocess.run([*COMMAND, "cat", archive, path], capture_output=True)
    assert done.returncode == 0
    return done.stdout


def test_row_12_an_encoding_stays_where_python_looks_for_it(tmp_path: Path) -> None:
    made, target = str(tmp_path / "made"), str(tmp_path / "target with a space")
    install([], made)
    text = f"#!{made}/bin/python\n# -*- coding: latin-1 -*-\nprint(len('caf\xe9'))\n"
    write(made, "bin/latin", text.encode("latin-1"), 0o755)
    out = str(tmp_path / "a.tar.zst")
    fastpack.pack(prefix=made, output=out)
    fastpack.unpack(out, target)
    done = subprocess.run([sys.executable, f"{target}/bin/latin"], capture_output=True, text=True)
    assert done.stdout == "4\n", done.stderr


# --- deltas and caches -----------------------------------------------------------------------------------------------


@pytest.fixture
def delta(made: str, tmp_path: Path) -> Path:
    """Beside ``old.tar.zst``, ``new.tar.zst`` and ``base``."""
    old, new = str(tmp_path / "old.tar.zst"), str(tmp_path / "new.tar.zst")
    fastpack.pack(prefix=made, output=old)
    write(made, "share/more", "more")
    fastpack.pack(prefix=made, output=new)
    fastpack.make_delta(old, new, str(tmp_path / "d.fpdelta"))
    fastpack.unpack(old, str(tmp_path / "base"))
    return tmp_path / "d.fpdelta"


def test_a_broken_base_is_not_the_deltas_fault(delta: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "base/.fastpack/manifest"
    for text in (manifest.read_bytes()[:100], b"nonsense", b""):
        manifest.write_bytes(text)
        with pytest.raises(errors.IncompleteEnvironment, match="manifest is broken") as raised:
            fastpack.unpack(str(delta), str(tmp_path / "target"), base=str(tmp_path / "base"))
        assert raised.value.path == str(tmp_path / "base")


@pytest.mark.parametrize("change", [{"codec": "zip"}, {"tail": [-1, "x"]}, {"manifest": [0, -1, 5]}, {"codec": 3}])
def test_a_forged_table_is_the_deltas_fault(delta: Path, tmp_path: Path, change: dict[str, object]) -> None:
    data = delta.read_bytes()
    start = len(head(b""))
    text, end = json.JSONDecoder().raw_decode(data[start:].decode("latin-1"))
    table = json.dumps({**text, **change}).encode()
    delta.write_bytes(head(table) + table + data[start + end :])
    for arguments in (
        ("unpack", delta, "--base", tmp_path / "base", "-p", tmp_path / "target"),
        ("apply", delta, "--base", tmp_path / "old.tar.zst", "-o", tmp_path / "x.tar.zst"),
    ):
        done = run_fastpack(*arguments)
        assert done.code == errors.DamagedArchive.exit_code and "d.fpdelta" in done.err, done.err


def test_a_delta_from_a_pipe_is_told_to_be_one(delta: Path, tmp_path: Path) -> None:
    for line in (f'cat "{delta}" | "$@" -', f'cat "{delta}" | "$@" - --base "{tmp_path}/base"',
                 f'cat "{delta}" | "$@" /dev/stdin --base "{tmp_path}/base"'):  # fmt: skip
        done = shell(line, "unpack", "-p", tmp_path / "target")
        assert done.returncode == 2 and b"read from a file, not from a pipe" in done.stderr, done.stderr


def test_a_delta_is_not_written_to_a_file_called_minus(delta: Path, tmp_path: Path) -> None:
    old, new = tmp_path / "old.tar.zst", tmp_path / "new.tar.zst"
    for arguments in (("delta", old, new, "-o", "-"), ("apply", delta, "--base", old, "-o", "-")):
        assert run_fastpack(*arguments, cwd=tmp_path).code == 2
    assert not (tmp_path / "-").exists()


def test_a_cache_in_the_environment_is_refused(made: str, tmp_path: Path) -> None:
    for output in (tmp_path / "a.tar.zst", "-"):
        done = run_fastpack("pack", "-p", made, "-o", output, "--cache", f"{made}/cache")
        assert done.code == 2 and not os.path.exists(f"{made}/cache")


def test_an_id_in_capitals_is_the_same(made: str, tmp_path: Path) -> None:
    base = fastpack.pack(prefix=made, output=str(tmp_path / "a.tar.zst"))
    out = str(tmp_path / "b.tar.zst")
    fastpack.pack(prefix=made, output=out, base=base.output, base_id=base.archive_id.upper())


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs another user")
def test_what_may_not_be_read_is_told_with_its_path(made: str, archive: str, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    fastpack.pack(prefix=made, output=str(tmp_path / "b.tar.zst"), cache=str(cache))
    os.chmod(archive, 0)
    os.chmod(cache, 0)
    for arguments, path in (
        (("verify", archive), archive),
        (("cache", "info", cache), cache),
        (("cache", "verify", cache), cache),
    ):
        command = ["setpriv", "--inh-caps=-all", "--bounding-set=-all", *COMMAND, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == errors.Unreadable.exit_code and str(path) in done.stderr, done.stderr


def test_the_second_of_two_unpacks_names_the_destination(
    archive: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"
    rename = os.rename

    def late(one: str, other: str) -> None:
        if other == str(target):
            (target / "mine").mkdir(parents=True)
        rename(one, other)

    monkeypatch.setattr(os, "rename", late)
    with pytest.raises(errors.AlreadyExists) as raised:
        fastpack.unpack(archive, str(target))
    assert raised.value.path == str(target) and os.listdir(target) == ["mine"]
    assert sorted(path.name for path in tmp_path.iterdir() if "partial" in path.name) == []


# --- packages that were built below the prefix -----------------------------------------------------------------------


def test_row_1_where_a_package_was_built_is_none_of_the_prefix(short: Path) -> None:
    """Images have conda in /opt/conda, and packages were built below /opt/conda/conda-bld."""
    made, target = f"{short}/opt/conda", f"{short}/target"
    build = f"{made}/conda-bld/samtools_1539066914295"
    placeholder = (f"{build}/_h_env_" + "placehold_" * 25)[:255]
    flags = f"-I{placeholder}/include -fdebug-prefix-map={build}/work=/usr/src -fdebug-prefix-map={placeholder}=/p"
    texts = "".join(f"{name}={flags}\n" for name in ("CFLAGS", "CPPFLAGS", "CXXFLAGS", "LDFLAGS", "OPT", "BASE"))
    code = f"\x7fELF\0compiler: {flags}\0".encode() + bytes(400) + f"table\0{placeholder}/share\0\1".encode()
    files = {
        "lib/Makefile": MadeFile(texts.encode(), file_mode="text", placeholder=placeholder),
        "lib/liby.so": MadeFile(
            code, 0o755, file_mode="binary", placeholder=placeholder
        ),
    }  # fmt: skip
    install([MadePackage("samtools", files=files)], made)
    out = f"{short}/a.tar.zst"
    report = fastpack.pack(prefix=made, output=out)
    assert report.verdicts["proven with a prefix"] == 2
    fastpack.unpack(out, target)
    wanted = texts.replace(placeholder, target)
    assert wanted.count(f"{made}/conda-bld") == 6
    assert Path(target, "lib/Makefile").read_text() == wanted
    found = Path(target, "lib/liby.so").read_bytes()
    assert len(found) == len(code) and found.count(target.encode()) == 3 and found.count(build.encode()) == 1
    assert not fastpack.verify(target).problems


@pytest.mark.parametrize("blanks", ["", " ", "  "])
@pytest.mark.parametrize("name", ["with a space", "long" * 40])
@pytest.mark.parametrize("interpreter", ["perl -w", "python -u", "bash"])
def test_row_12_blanks_before_an_interpreter(short: Path, name: str, interpreter: str, blanks: str) -> None:
    """An installer that rewrote the line drops them."""
    made, target = f"{short}/{name}", f"{short}/n"
    data = f"#!{blanks}{BUILD_PLACEHOLDER}/bin/{interpreter}\nprint(1)\n".encode()
    package = MadePackage("am", files={"bin/tool": MadeFile(data, 0o755, file_mode="text")}, style="rattler")
    install([package], made)
    placed = placed_header(data, BUILD_PLACEHOLDER.encode(), made.encode())
    assert b"#!" + blanks.encode() + made.encode() not in placed
    Path(made, "bin/tool").write_bytes(placed)
    record = Path(made, "conda-meta/am-1.0-0.json")
    table = json.loads(record.read_text())
    table["paths_data"]["paths"][0]["sha256_in_prefix"] = hashlib.sha256(placed).hexdigest()
    record.write_text(json.dumps(table))
    out = f"{short}/a.tar.zst"
    assert fastpack.pack(prefix=made, output=out).verdicts["proven with a prefix"] == 1
    fastpack.unpack(out, target)
    assert Path(target, "bin/tool").read_bytes() == data.replace(BUILD_PLACEHOLDER.encode(), target.encode())


@pytest.mark.parametrize("line", ["/bin/perl -w", "/bin/bash -e", "/bin/python -u", "/libexec/tool", "/bin/perl"])
@pytest.mark.parametrize("name", ["with a space", "n" * 140, "n"])
def test_what_was_unpacked_anywhere_is_packed_again_with_the_same_verdicts(short: Path, line: str, name: str) -> None:
    """A first line that was rewritten there was not proven any more, and was said to name an unknown prefix."""
    made, target = f"{short}/made", f"{short}/{name}"
    data = f"#!{BUILD_PLACEHOLDER}{line}\nprint('{BUILD_PLACEHOLDER}')\n".encode()
    install([MadePackage("am", files={"bin/tool": MadeFile(data, 0o755, file_mode="text")})], made)
    out, again = f"{short}/a.tar.zst", f"{short}/b.tar.zst"
    first = fastpack.pack(prefix=made, output=out)
    assert first.verdicts["proven with a prefix"] == 1
    fastpack.unpack(out, target)
    second = fastpack.pack(prefix=target, output=again)
    assert Path(out).read_bytes() == Path(again).read_bytes()
    assert (second.verdicts, second.not_relocated) == (first.verdicts, first.not_relocated)

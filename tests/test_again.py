"""Packing what has not changed at all reads the archive alone; whatever may have changed is packed as ever."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fastpack
from fastpack import again, digest, errors, hostmemory, packing
from fastpack.model import PackReport
from tests.conftest import run_fastpack
from tests.test_environment import dist, write

pytestmark = pytest.mark.skipif(not hostmemory.tells_changes(tempfile.gettempdir()), reason="nothing is trusted there")
SITE = "lib/python3.11/site-packages"


@pytest.fixture(autouse=True)
def own_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    # Files need not have been left alone: what changes after the next tick has another ctime all the same.
    monkeypatch.setattr(hostmemory, "SETTLED", -(10**10))
    return tmp_path / "home/fastpack/again"


@pytest.fixture
def packed(made: str, tmp_path: Path) -> tuple[str, str]:
    """An environment of all kinds of files, and its archive, packed twice so that the second one had a base."""
    dist(made, "tool", {"tool.py": b"x = 1\n" * 100})
    write(made, "share/large", os.urandom(9 << 20))
    write(made, "share/Name", b"1")
    write(made, "share/name", b"differs in case: a warning")
    write(made, "bin/run", f"#!{made}/bin/python\nprint()\n", 0o755)
    os.makedirs(os.path.join(made, "share/empty"))
    os.symlink("large", os.path.join(made, "share/link"))
    out = str(tmp_path / "out.tar.zst")
    fastpack.pack(prefix=made, output=out)
    time.sleep(0.03)
    return made, out


def pack_again(made: str, out: str, **options: Any) -> PackReport:
    return fastpack.pack(prefix=made, output=out, force=True, **options)


def fails(*arguments: object, **options: object) -> None:
    raise AssertionError("it was planned")


def test_nothing_is_read_but_the_archive(packed: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    made, out = packed
    first = fastpack.pack(prefix=made, output=out, force=True, verify_content=True)
    before = os.stat(out)
    os.utime(out, (1, 1))
    monkeypatch.setattr(packing, "examine", fails)
    report = pack_again(made, out)
    after = os.stat(out)
    assert (after.st_ino, after.st_size) == (before.st_ino, before.st_size) and after.st_mtime > 1
    assert report.unchanged and first.unchanged and report.warnings and report.warnings == first.warnings
    told_anew = {"elapsed_seconds": 0, "work": {}, "warnings": ()}
    assert dataclasses.replace(report, **told_anew) == dataclasses.replace(first, **told_anew)
    assert report.work == {**dict.fromkeys(report.work, 0), **{k: first.work[k] for k in ("reused", "copied")}}
    assert pack_again(made, out).work == report.work


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_other_formats(packed: tuple[str, str], tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    out = str(tmp_path / f"out.{suffix}")
    fastpack.pack(prefix=packed[0], output=out)
    monkeypatch.setattr(packing, "examine", fails)
    assert pack_again(packed[0], out).unchanged


def rewritten(path: str) -> None:
    """Other bytes of the same length under the old time."""
    info = os.stat(path)
    with open(path, "r+b") as file:
        file.write(b"y")
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))


def relinked(path: str) -> None:
    os.unlink(path)
    os.symlink("Name ", path)


CHANGES: dict[str, Callable[[str], object]] = {
    "other bytes": lambda made: rewritten(f"{made}/{SITE}/tool.py"),
    "other bytes of a large file": lambda made: rewritten(f"{made}/share/large"),
    "a file more": lambda made: write(made, "share/more", b""),
    "a file less": lambda made: os.unlink(f"{made}/share/large"),
    "another name": lambda made: os.rename(f"{made}/share/large", f"{made}/share/larger"),
    "a mode": lambda made: os.chmod(f"{made}/bin/run", 0o644),
    "a link": lambda made: relinked(f"{made}/share/link"),
    "a directory's mode": lambda made: os.chmod(f"{made}/share/empty", 0o500),
    "a directory more": lambda made: os.mkdir(f"{made}/share/empty/too"),
    "a directory less": lambda made: os.rmdir(f"{made}/share/empty"),
    "left out by name": lambda made: os.mkdir(f"{made}/pkgs"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changes_is_packed(packed: tuple[str, str], tmp_path: Path, change: str) -> None:
    made, out = packed
    CHANGES[change](made)
    report = pack_again(made, out)
    assert not report.unchanged
    assert ("policy" in report.left_out) == (change == "left out by name")
    fastpack.pack(prefix=made, output=str(tmp_path / "fresh.tar.zst"))
    assert Path(out).read_bytes() == (tmp_path / "fresh.tar.zst").read_bytes()
    time.sleep(0.03)
    assert pack_again(made, out).work["read"] == 0


OPTIONS: dict[str, dict[str, Any]] = {
    "level": {"compress_level": 5},
    "root": {"arcroot": "x"},
    "place": {"dest_prefix": "/opt/there"},
    "padding": {"pad": ["slash"]},
    "pyc": {"pyc": "drop"},
    "filter": {"filters": [("exclude", "share/large")]},
}


@pytest.mark.parametrize("option", OPTIONS)
def test_other_options_give_another_archive(packed: tuple[str, str], tmp_path: Path, option: str) -> None:
    made, out = packed
    options = OPTIONS[option]
    pack_again(made, out, **options)
    fastpack.pack(prefix=made, output=str(tmp_path / "fresh.tar.zst"), **options)
    assert Path(out).read_bytes() == (tmp_path / "fresh.tar.zst").read_bytes()


def test_what_the_environment_recorded_itself_counts(packed: tuple[str, str], tmp_path: Path) -> None:
    """``.fastpack`` is not packed, but it says what the archive was that the environment came from."""
    env = str(tmp_path / "unpacked")
    fastpack.unpack(packed[1], env)
    out = str(tmp_path / "second.tar.zst")
    fastpack.pack(prefix=env, output=out)
    time.sleep(0.03)
    shutil.rmtree(os.path.join(env, ".fastpack"))
    pack_again(env, out)
    fastpack.pack(prefix=env, output=str(tmp_path / "fresh.tar.zst"))
    assert Path(out).read_bytes() == (tmp_path / "fresh.tar.zst").read_bytes()


def damaged(out: str, how: str) -> None:
    data = bytearray(Path(out).read_bytes())
    if how == "cut off":
        del data[-1]
    elif how == "longer":
        data += b"\0"
    elif how == "gone":
        os.unlink(out)
        return
    elif how == "another archive":
        shutil.copy(out + ".other", out)
        return
    else:
        data[{"its first byte": 0, "its middle": len(data) // 2, "its last byte": -1, "its tail": -200}[how]] ^= 1
    Path(out).write_bytes(data)


@pytest.mark.parametrize(
    "how", ["its first byte", "its middle", "its tail", "its last byte", "cut off", "longer", "gone", "another archive"]
)
def test_a_damaged_archive_is_made_anew(packed: tuple[str, str], how: str) -> None:
    made, out = packed
    whole = Path(out).read_bytes()
    fastpack.pack(prefix=made, output=out + ".other", format="tar.zst", compress_level=1)
    damaged(out, how)
    report = pack_again(made, out)
    assert not report.unchanged
    assert Path(out).read_bytes() == whole
    # What was said of the damaged one is not said again.
    rotten = {warning.code for warning in report.warnings} & {"rotten-base", "base-unused"}
    assert bool(rotten) == (how in ("its middle", "another archive"))
    report = pack_again(made, out)
    assert report.unchanged
    assert not {warning.code for warning in report.warnings} & {"rotten-base", "base-unused"}


def test_a_memory_that_is_broken_or_gone_is_none(packed: tuple[str, str], own_memory: Path) -> None:
    made, out = packed
    (table,) = own_memory.iterdir()
    for data in (b"", b"x", table.read_bytes()[:-1], table.read_bytes().replace(b"app", b"axp"), None):
        if data is None:
            shutil.rmtree(own_memory)
        else:
            table.write_bytes(data)
        report = pack_again(made, out)
        assert report.unchanged and report.work["compressed"] == 0
        assert table.is_file()


def test_files_that_were_changed_just_now_are_not_believed(
    packed: tuple[str, str], own_memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, out = packed
    monkeypatch.setattr(hostmemory, "SETTLED", 2 * 10**9)
    shutil.rmtree(own_memory)
    pack_again(made, out)
    assert not own_memory.exists()


@pytest.mark.parametrize("option", [{"verify_content": True}, {"verify_source": True}, {"base": "OUT"}])
def test_what_asks_for_more_gets_it(packed: tuple[str, str], option: dict[str, Any]) -> None:
    made, out = packed
    report = pack_again(made, out, **{key: out if value == "OUT" else value for key, value in option.items()})
    assert report.unchanged
    assert (report.work["read"] > 9 << 20) == ("base" not in option)


def test_code_brought_along_is_looked_at(made: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It lies outside of what was listed."""
    code = tmp_path / "code"
    write(str(code), "own/__init__.py", b"x = 1\n")
    write(made, f"{SITE}/own.pth", f"{code}\n".encode())
    out = str(tmp_path / "out.tar.zst")
    fastpack.pack(prefix=made, output=out, editable="include")
    whole = Path(out).read_bytes()
    (code / "own/__init__.py").write_bytes(b"x = 2\n")
    pack_again(made, out, editable="include")
    assert Path(out).read_bytes() != whole


def test_another_users_file_is_replaced(packed: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose time cannot be set would look older than what it was made from."""

    def refuse(*arguments: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    made, out = packed
    before = os.stat(out).st_ino
    monkeypatch.setattr(os, "utime", refuse)
    assert not pack_again(made, out).unchanged
    assert os.stat(out).st_ino != before


def test_a_digest_of_the_source_is_another_one_for_other_code(
    packed: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    env = fastpack.Environment.from_prefix(packed[0])
    one = again.source_digest(env, (), packed[1])
    assert one is not None and one == again.source_digest(env, (), packed[1])
    assert one != again.source_digest(env, ("level", 3), packed[1])
    assert one != again.source_digest(env, (), packed[1] + "x")
    monkeypatch.setattr(again, "_this_code", lambda: [("again.py", 1, 1)])
    assert one != again.source_digest(env, (), packed[1])


def test_records_that_lie_elsewhere_are_read(packed: tuple[str, str], tmp_path: Path) -> None:
    """What the system says of a link says nothing of the record that it leads to."""
    made, out = packed
    (record,) = Path(made, "conda-meta").glob("*.json")
    record.rename(tmp_path / "elsewhere")
    record.symlink_to(tmp_path / "elsewhere")
    pack_again(made, out, external_links="ignore")
    text = (tmp_path / "elsewhere").read_text()
    (tmp_path / "elsewhere").write_text(text.replace('"app"', '"apq"'))
    pack_again(made, out, external_links="ignore")
    fastpack.pack(prefix=made, output=str(tmp_path / "fresh.tar.zst"), external_links="ignore")
    assert Path(out).read_bytes() == (tmp_path / "fresh.tar.zst").read_bytes()


def test_an_archive_that_another_pack_put_there_is_not_remembered(
    packed: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All its frames may be the same, and its manifest another one."""
    made, out = packed
    whole = Path(out).read_bytes()
    remember = packing._remember
    inside: list[int] = []

    def late(*arguments: Any) -> None:
        if not inside:
            inside.append(1)
            fastpack.pack(prefix=made, output=out, force=True, pad=["nothing/*=slash"])
        remember(*arguments)

    monkeypatch.setattr(packing, "_remember", late)
    pack_again(made, out, verify_content=True)
    assert Path(out).read_bytes() != whole
    report = pack_again(made, out)
    assert not report.unchanged and Path(out).read_bytes() == whole


def test_a_pipe_in_the_outputs_place_is_refused(packed: tuple[str, str]) -> None:
    made, out = packed
    os.unlink(out)
    os.mkfifo(out)
    with pytest.raises(errors.AlreadyExists, match="no regular file"):
        pack_again(made, out)


def test_only_a_file_that_stays_is_unchanged(packed: tuple[str, str], tmp_path: Path) -> None:
    made, _ = packed
    folder = tmp_path / "folder"
    (folder / "of others").mkdir(parents=True)
    assert not fastpack.pack(prefix=made, output=str(folder), format="no-archive", force=True).unchanged
    for force in (False, True):
        assert not fastpack.pack(prefix=made, output="/dev/null", format="tar.zst", force=force).unchanged
    (tmp_path / "-").write_text("a file of that name")
    done = run_fastpack("pack", "-p", made, "-o", "-", "--force", "--json", cwd=tmp_path)
    result = json.loads(done.err)["result"]
    assert not result["unchanged"] and result["archive_bytes"] == len(os.fsencode(done.out))


@pytest.mark.parametrize("part", ["a mode", "a further name", "another user"])
@pytest.mark.parametrize("planned", [False, True])
def test_an_archive_that_others_have_a_part_in_is_replaced(
    packed: tuple[str, str], tmp_path: Path, part: str, planned: bool
) -> None:
    made, out = packed
    other = tmp_path / "other name"
    if part == "a mode":
        os.chmod(out, 0o444)
    elif part == "a further name":
        os.link(out, other)
    elif os.geteuid() == 0:
        os.chown(out, 1000, 1000)
    else:
        pytest.skip("only root can give files away")
    before, data = os.stat(out), Path(out).read_bytes()
    time.sleep(0.01)
    report = pack_again(made, out, verify_content=planned)
    after = os.stat(out)
    assert not report.unchanged and after.st_ino != before.st_ino
    assert (after.st_uid, after.st_nlink, after.st_mode & 0o222) == (os.geteuid(), 1, 0o200)
    assert Path(out).read_bytes() == data
    if part == "a further name":
        assert other.stat().st_mtime_ns == before.st_mtime_ns and other.stat().st_nlink == 1


def test_another_umask_gives_another_mode(packed: tuple[str, str]) -> None:
    made, out = packed
    before = os.umask(0o077)
    try:
        pack_again(made, out)
        assert os.stat(out).st_mode & 0o777 == 0o600
        time.sleep(0.03)
        assert pack_again(made, out).unchanged
    finally:
        os.umask(before)


@pytest.mark.parametrize("text", [b"[]", b"1", b"{}", b"x", b'{"source": 1, "pieces": [1], "owner": 1, "report": 1}'])
def test_a_memory_of_another_version_is_none(packed: tuple[str, str], own_memory: Path, text: bytes) -> None:
    made, out = packed
    (table,) = own_memory.iterdir()
    table.write_bytes(digest.blake(text) + text)
    assert pack_again(made, out).work["compressed"] == 0


def test_a_cache_is_filled(packed: tuple[str, str], tmp_path: Path) -> None:
    made, out = packed
    os.unlink(out)
    pack_again(made, out, cache=str(tmp_path / "cache"))
    shutil.rmtree(tmp_path / "cache")
    pack_again(made, out, cache=str(tmp_path / "cache"))
    assert (tmp_path / "cache").is_dir()

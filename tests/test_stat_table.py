"""What an earlier pack learnt of files: not read again, unless they may have changed; and never other bytes."""

from __future__ import annotations

import mmap
import os
import py_compile
import shutil
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastpack
from fastpack import again as without_plan
from fastpack import hostmemory, stat_table
from fastpack.listing import walk
from fastpack.made_prefix import MadeFile, MadePackage, install
from fastpack.model import DiskFile
from fastpack.stat_table import AS_ON_DISK, STATED, Known, open_table
from tests.conftest import app_package
from tests.test_base import edit, edits
from tests.test_environment import dist, write
from tests.test_packing import manifest_of

SITE = "lib/python3.11/site-packages"
pytestmark = pytest.mark.skipif(
    not hostmemory.tells_changes(tempfile.gettempdir()), reason="nothing is trusted on a tmpfs"
)


@pytest.fixture(autouse=True)
def own_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """And always a plan: `test_again.py` has what needs none."""
    monkeypatch.setattr(without_plan, "proven", lambda *arguments: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home/fastpack/stat"


def settle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files need not have been left alone: what changes after this has another ctime all the same."""
    monkeypatch.setattr(hostmemory, "SETTLED", -(10**10))


def tick() -> None:
    """Past the present tick of the file system's clock."""
    time.sleep(0.03)


@pytest.fixture
def packed(made: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    settle(monkeypatch)
    dist(made, "tool", {"tool.py": b"x = 1\n" * 100})
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    py_compile.compile(os.path.join(made, SITE, "tool.py"), dfile="tool.py", doraise=True)
    write(made, "share/large", os.urandom(9 << 20))
    write(made, "share/twin a", b"twin" * 5000)
    write(made, "share/twin b", b"twin" * 5000)
    os.utime(os.path.join(made, "share/twin b"), (0, 0))
    write(made, "bin/run", f"#!{made}/bin/python\nprint()\n", 0o755)
    out = str(tmp_path / "a.tar.zst")
    fastpack.pack(prefix=made, output=out)
    tick()
    return made, out


def again(made: str, out: str, **options: Any) -> tuple[fastpack.PackReport, bytes, bytes]:
    """Packed over the archive that is there, and without any base."""
    report = fastpack.pack(prefix=made, output=out, force=True, **options)
    fresh = out + "-fresh.tar.zst"
    fastpack.pack(prefix=made, output=fresh, force=True, verify_content=True, **options)
    return report, Path(out).read_bytes(), Path(fresh).read_bytes()


def test_what_has_not_changed_is_not_read(packed: tuple[str, str]) -> None:
    before = Path(packed[1]).read_bytes()
    report = fastpack.pack(prefix=packed[0], output=packed[1], force=True)
    assert report.work["read"] == report.work["hashed"] == report.work["compressed"] == 0 < report.work["reused"]
    assert Path(packed[1]).read_bytes() == before
    report = fastpack.pack(prefix=packed[0], output=packed[1], force=True)
    assert report.work["read"] == 0, "what was looked up is still known"
    for everything in ({"verify_content": True}, {"verify_source": True}):
        report = fastpack.pack(prefix=packed[0], output=packed[1], force=True, **everything)
        assert report.work["read"] > 9 << 20 and report.work["compressed"] == 0
        assert Path(packed[1]).read_bytes() == before


def test_a_change_under_the_same_size_and_mtime_is_noticed(packed: tuple[str, str]) -> None:
    for path in ("share/large", f"{SITE}/tool.py", "share/twin a"):
        full = Path(packed[0], path)
        info = full.stat()
        content = bytearray(full.read_bytes())
        content[len(content) // 2] ^= 1
        full.write_bytes(content)
        os.utime(full, ns=(info.st_atime_ns, info.st_mtime_ns))
        assert full.stat().st_size == info.st_size and full.stat().st_mtime_ns == info.st_mtime_ns
        report, found, wanted = again(*packed)
        assert found == wanted and report.work["read"] >= info.st_size


@pytest.mark.parametrize("path", ["share/large", "share/twin a", f"{SITE}/tool.py", "bin/run"])
@pytest.mark.parametrize("how", ["as an output", "as a base"])
def test_what_a_program_writes_to_a_mapped_file_is_noticed(
    packed: tuple[str, str], tmp_path: Path, path: str, how: str
) -> None:
    """ctime tells of the first store alone, as long as the page is not written to the disk."""
    made, out = packed
    with open(os.path.join(made, path), "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[-2:-1] = b"1"
        tick()
        fastpack.pack(prefix=made, output=out, force=True)
        tick()
        mapped[-2:-1] = b"2"
        base = {}
        if how == "as a base":
            base, out = {"base": out}, str(tmp_path / "b.tar.zst")
        report, found, wanted = again(made, out, **base)
        assert found == wanted and report.work["read"] > 0
    assert Path(made, path).read_bytes()[-2:-1] == b"2"


@pytest.mark.parametrize("path", ["share/sub/db", "share/sub/large"])
def test_another_file_system_in_an_environment_is_not_trusted(packed: tuple[str, str], path: str) -> None:
    """A tmpfs tells nothing of a write to a mapped file."""
    made, out = packed
    (folder := Path(made, "share/sub")).mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        (folder / "db").write_bytes(b"x" * 5000)
        (folder / "large").write_bytes(os.urandom(9 << 20))
        with open(os.path.join(made, path), "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
            mapped[0:1] = b"1"
            tick()
            fastpack.pack(prefix=made, output=out, force=True)
            mapped[0:1] = b"2"
            report, found, wanted = again(made, out)
            assert found == wanted and report.work["read"] > 0
    finally:
        subprocess.run(["umount", folder], check=True)


def test_what_has_just_changed_is_not_trusted(made: str, tmp_path: Path) -> None:
    write(made, "share/new", b"new" * 1000)
    out = str(tmp_path / "a.tar.zst")
    fastpack.pack(prefix=made, output=out)
    report = fastpack.pack(prefix=made, output=out, force=True)
    assert report.work["read"] >= 3000


def test_a_time_that_followed_from_another_file_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A source has the time that its proven .pyc names; without that, the one of its bytes."""
    settle(monkeypatch)
    prefix, out = str(tmp_path / "env"), str(tmp_path / "a.tar.zst")
    text = b"x = 1\n"
    pyc = f"{SITE}/__pycache__/m.cpython-311.pyc"
    header = b"\xa7\x0d\x0d\x0a\0\0\0\0" + struct.pack("<II", 1_600_000_000, len(text))
    install([MadePackage("m", files={f"{SITE}/m.py": MadeFile(text), pyc: MadeFile(header + b"code")})], prefix)
    fastpack.pack(prefix=prefix, output=out)
    tick()
    os.rename(os.path.join(prefix, pyc), tmp_path / "aside")
    for _ in range(2):
        _, found, wanted = again(prefix, out)
        assert found == wanted
    os.rename(tmp_path / "aside", os.path.join(prefix, pyc))
    _, found, wanted = again(prefix, out)
    assert found == wanted


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data[:100] + bytes([data[100] ^ 1]) + data[101:],
        lambda data: b"other" + data,
        lambda data: data[:8],
        lambda data: b"".join(
            stat_table._to_bytes([stat_table._Learnt(*[b"x\0" if k == 5 else b"" for k in range(7)])])
        ),
    ],
)
def test_a_broken_table_is_as_none(packed: tuple[str, str], own_table: Path, damage: Callable[[bytes], bytes]) -> None:
    (table,) = own_table.iterdir()
    table.write_bytes(damage(table.read_bytes()))
    report, found, wanted = again(*packed)
    assert found == wanted and report.work["read"] > 9 << 20
    report, found, wanted = again(*packed)
    assert found == wanted and report.work["read"] == 0


def test_a_table_that_cannot_be_written_stops_nothing(
    made: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    for home in (str(tmp_path / "file"), "/proc/nowhere"):
        monkeypatch.setenv("XDG_CACHE_HOME", home)
        fastpack.pack(prefix=made, output=str(tmp_path / "a.tar.zst"), force=True)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "other"))
    fastpack.pack(prefix=made, output=str(tmp_path / "a.tar.zst"), force=True)
    assert len(list((tmp_path / "other/.cache/fastpack/stat").iterdir())) == 1


def test_tables_are_bounded_and_private(
    made: str, tmp_path: Path, own_table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hostmemory, "_KEPT", 20)
    own_table.mkdir(parents=True)
    for k in range(30):
        (own_table / f"old{k:02}").write_bytes(b"")
        os.utime(own_table / f"old{k:02}", (k, k))
    fastpack.pack(prefix=made, output=str(tmp_path / "a.tar.zst"))
    left = sorted(path.name for path in own_table.iterdir())
    assert len(left) == 20 and left[-1] == "old29" and left[1] == "old11"
    assert (own_table / left[0]).stat().st_mode & 0o777 == 0o600


def test_other_options_find_other_ways_into_the_archive(packed: tuple[str, str]) -> None:
    for options in ({"dest_prefix": "/opt/elsewhere"}, {}, {"arcroot": "inner"}, {"pad": ("slash",)}, {}):
        _, found, wanted = again(*packed, **options)
        assert found == wanted
        _, found, wanted = again(*packed, **options)
        assert found == wanted


def as_stated(file: DiskFile) -> bytes:
    return struct.pack("<5q", *(getattr(file, name) for name in STATED))


def test_rows_survive_being_written(made: str) -> None:
    write(made, os.fsdecode(b"share/\xff \xc3\xa9"), b"x")
    table = open_table(made)
    wanted = {}
    for k, file in enumerate(walk(made)):
        key = AS_ON_DISK if k % 2 else bytes([k % 256]) * 16
        wanted[file] = key, Known(k - 3, k % 3 == 0, bytes([k % 256]) * 32 * (k % 4))
    files = list(wanted)
    paths, stated = [file.path for file in files], b"".join(map(as_stated, files))
    keys, known = zip(*wanted.values(), strict=True)
    long_ago, just_now = [5] * len(files), [time.time_ns()] * len(files)
    more = list(zip(*known, strict=True))
    table.learn(paths, stated, long_ago, keys, *more)
    table.learn(paths, stated, just_now, [b"changed just now"] * len(files), *more)
    table.learn(paths, stated, long_ago, [None] * len(files), *more)
    half = [None, b"of every second "] * (len(files) // 2) + [None] * (len(files) % 2)
    table.learn([f"{path} too" for path in paths], stated, long_ago, half, *more)
    table.save()
    table = open_table(made)
    for k, (file, (key, found)) in enumerate(wanted.items()):
        assert table.known(file.path, as_stated(file), key) == found
        assert table.known(f"{file.path} too", as_stated(file), b"of every second ") == (found if k % 2 else None)
        assert table.known(file.path, as_stated(file), b"another way here") is None
        for field in STATED:
            assert table.known(file.path, as_stated(file._replace(**{field: 77})), key) is None
    table.save()  # what was asked for stays
    assert open_table(made).known(file.path, as_stated(file), key) == found
    assert open_table(made, trusted=False).known(file.path, as_stated(file), key) is None
    assert open_table(made + "/share").known(file.path, as_stated(file), key) is None


@settings(deadline=None, max_examples=25)
@given(st.lists(edits, min_size=1, max_size=3))
def test_it_never_changes_what_is_packed(
    tmp_path_factory: pytest.TempPathFactory, rounds: list[list[tuple[str, int]]]
) -> None:
    folder = tmp_path_factory.mktemp("table")
    made, out = str(folder / "made"), str(folder / "a.tar.zst")
    os.mkdir(made)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "home"))
        settle(patch)
        install([app_package()], made)
        dist(made, "tool", {"tool.py": b"x = 1\n"})
        write(made, "share/loose", bytes(1 << 16))
        fastpack.pack(prefix=made, output=out)
        for todo in rounds:
            tick()
            for what, number in todo:
                edit(made, what, number)
            _, found, wanted = again(made, out, ignore_missing_files=True, n_threads=1)
            assert found == wanted
        assert manifest_of(out).members
    shutil.rmtree(folder)

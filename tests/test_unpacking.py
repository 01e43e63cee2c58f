"""Unpacking: nothing half, nothing outside, nothing that is not what the archive says."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import pytest
import zstandard

import fastpack
from fastpack import destination, digest, errors, extracting, fs
from fastpack._place_py import INCOMPLETE, Relocation, read_relocations, write_relocations
from fastpack.manifest import Frame
from fastpack.markers import make_marker
from tests.conftest import need, ordinary_user
from tests.forging import DIR, LNK, REG, SYM, foreign, unpack_piped
from tests.oracles.trees import snapshot
from tests.test_environment import write
from tests.test_packing import manifest_of, read_member

# --- the main job


def test_a_file_and_a_pipe_give_the_same(archive: str, tmp_path: Path) -> None:
    target = str(tmp_path / "the place")
    report = fastpack.unpack(archive, target)
    assert report.n_relocated_files == 5 and not report.foreign
    first = snapshot(target)
    shutil.rmtree(target)
    assert unpack_piped(archive, target).code == 0
    assert snapshot(target) == first
    for path in ("share/app/app.conf", "bin/app", "lib/libapp.so"):
        assert target.encode() in first[path][2]  # type: ignore[operator]
    state = json.loads(Path(target, ".fastpack/state.json").read_text())
    assert state["prefix"] == target and state["complete"] is True and state["archive_id"] == report.archive_id
    assert not os.path.exists(f"{target}/.fastpack/incomplete")


def test_the_prefix_is_the_path_as_typed(archive: str, tmp_path: Path) -> None:
    os.mkdir(tmp_path / "real")
    os.symlink("real", tmp_path / "link")
    target = str(tmp_path / "link" / "env")
    fastpack.unpack(archive, target + "/")
    assert Path(target, "share/app/app.conf").read_bytes().startswith(b"home = " + target.encode() + b"\r")


def test_modes_of_relocated_files(archive: str, tmp_path: Path) -> None:
    target = str(tmp_path / "target")
    fastpack.unpack(archive, target)
    modes = {path: value[1] for path, value in snapshot(target).items() if value[0] == "file"}
    assert modes["share/app/read-only.txt"] == 0o444 and modes["share/app/private.txt"] == 0o600
    assert modes["bin/app"] == modes["bin/conda-unpack"] == 0o755 and modes["bin/activate"] == 0o644


# --- destinations


def test_what_a_destination_may_be(archive: str, tmp_path: Path) -> None:
    deep = str(tmp_path / "some" / "where" / "deep")
    fastpack.unpack(archive, deep)
    empty = tmp_path / "empty"
    empty.mkdir()
    fastpack.unpack(archive, str(empty))
    (tmp_path / "target of link").mkdir()
    os.symlink("target of link", tmp_path / "link")
    fastpack.unpack(archive, str(tmp_path / "link"))
    assert (tmp_path / "link").is_symlink()
    assert b"link\r" in (tmp_path / "link/share/app/app.conf").read_bytes()
    for path in (deep, str(empty), str(tmp_path / "target of link")):
        assert not [name for name in os.listdir(path) if "partial" in name]
        assert not os.path.exists(os.path.join(path, ".fastpack/incomplete"))
        assert os.path.exists(os.path.join(path, "bin/app"))
    (tmp_path / "file").write_text("x")
    for path in ("file", "empty"):
        with pytest.raises(errors.AlreadyExists) as caught:
            fastpack.unpack(archive, str(tmp_path / path))
        assert caught.value.exit_code == 22
    os.symlink("nowhere", tmp_path / "dangling")
    with pytest.raises(errors.AlreadyExists):
        fastpack.unpack(archive, str(tmp_path / "dangling"))


def test_force_swaps_an_environment_of_ours(archive: str, tmp_path: Path) -> None:
    target = str(tmp_path / "target")
    fastpack.unpack(archive, target)
    first = snapshot(target)
    inode = os.stat(target).st_ino
    fastpack.unpack(archive, target, force=True)
    assert snapshot(target) == first and os.stat(target).st_ino != inode
    assert sorted(os.listdir(tmp_path)) == ["a.tar.zst", "made env", "target"]
    write(target, "mine/notes.txt", "precious")
    write(target, "lib/__pycache__/x.cpython-311.pyc", "python's")
    with pytest.raises(errors.AlreadyExists, match="mine/notes.txt"):
        fastpack.unpack(archive, target, force=True)
    assert Path(target, "mine/notes.txt").read_text() == "precious"


def test_force_adds_to_another_directory_and_replaces_nothing(archive: str, tmp_path: Path) -> None:
    target = str(tmp_path / "target")
    write(target, "share/mine.txt", "precious")
    with pytest.raises(errors.AlreadyExists):
        fastpack.unpack(archive, target)
    fastpack.unpack(archive, target, force=True)
    assert Path(target, "share/mine.txt").read_text() == "precious" and os.path.exists(f"{target}/share/app/app.conf")
    other = str(tmp_path / "other")
    write(other, "share/app/plain.txt", "precious")
    before = snapshot(other)
    for attempt in (lambda: fastpack.unpack(archive, other, force=True),):
        with pytest.raises(errors.AlreadyExists, match="already there"):
            attempt()
    assert snapshot(other) == before
    assert unpack_piped(archive, other, "--force").code == 22
    assert snapshot(other) == before


def test_if_changed_does_nothing_where_the_archive_is_already(archive: str, made: str, tmp_path: Path) -> None:
    target = str(tmp_path / "target")
    assert not fastpack.unpack(archive, target, if_changed=True).unchanged
    before = snapshot(target)
    # Nothing but the archive's end is read: its frames may be rotten by now.
    data = bytearray(Path(archive).read_bytes())
    data[100] ^= 1
    Path(archive).write_bytes(data)
    assert fastpack.unpack(archive, target, if_changed=True).unchanged and snapshot(target) == before
    # Another padding or prefix is another environment, and so is one that was moved or left half.
    for options in ({"pad": ["slash"]}, {"dest_prefix": "/elsewhere"}):
        with pytest.raises(errors.AlreadyExists):
            fastpack.unpack(archive, target, if_changed=True, **options)  # type: ignore[arg-type]
    os.rename(target, tmp_path / "moved")
    with pytest.raises(errors.AlreadyExists):
        fastpack.unpack(archive, str(tmp_path / "moved"), if_changed=True)
    # A newer archive is unpacked where --force says so.
    write(made, "share/app/plain.txt", "another text")
    newer = str(tmp_path / "newer.tar.zst")
    fastpack.pack(prefix=made, output=newer, ignore_missing_files=True)
    fastpack.unpack(newer, target, if_changed=True)
    os.unlink(f"{target}/.fastpack/state.json")
    with pytest.raises(errors.FastpackError):
        fastpack.unpack(newer, target, if_changed=True)


def test_if_changed_needs_an_archive_that_says_which_one_it_is(archive: str, tmp_path: Path) -> None:
    target = str(tmp_path / "target")
    other = foreign(tmp_path / "other.tar", [("file", REG, "x")])
    for source in ("-", other):
        with pytest.raises(errors.UsageError, match="--if-changed"):
            fastpack.unpack(source, target, if_changed=True)
    assert not os.path.lexists(target)


def test_of_two_at_once_the_second_waits_and_finds_it_done(archive: str, tmp_path: Path) -> None:
    target = str(tmp_path / "new" / "target")
    command = [sys.executable, "-m", "fastpack.cli", "unpack", archive, "-p", target, "--if-changed", "--json"]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(4)]
    answers = [json.loads(process.communicate(timeout=120)[0]) for process in running]
    assert [process.returncode for process in running] == [0] * 4, answers
    assert sorted(answer["result"]["unchanged"] for answer in answers) == [False, True, True, True]
    # What fails leaves no directory that was made for it.
    shutil.copy(archive, tmp_path / "bad.tar.zst")
    with open(tmp_path / "bad.tar.zst", "r+b") as file:
        file.write(b"\0" * 100)
    bad = [sys.executable, "-m", "fastpack.cli", "unpack", str(tmp_path / "bad.tar.zst"), "-p", str(tmp_path / "a/b/c")]
    assert subprocess.run([*bad, "--if-changed"], capture_output=True).returncode != 0
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("piped", [False, True])
def test_durable_waits_for_the_disk_before_and_after_it_appears(
    archive: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piped: bool
) -> None:
    target = tmp_path / "target"
    synced: list[tuple[str, bool]] = []
    sync = fs.sync

    def watch(folder: str) -> None:
        sync(folder)
        whole = os.path.exists(os.path.join(folder, ".fastpack/state.json"))
        synced.append(("target" if target.exists() else "whole" if whole else "half", whole))

    monkeypatch.setattr(fs, "sync", watch)
    fifo = str(tmp_path / "fifo")
    os.mkfifo(fifo)
    for durable in (False, True):
        feeder = subprocess.Popen(["sh", "-c", 'cat "$0" > "$1"', archive, fifo]) if piped else None
        fastpack.unpack(fifo if piped else archive, str(target), durable=durable)
        assert feeder is None or feeder.wait(60) == 0
        if not durable:
            assert synced == []
            shutil.rmtree(target)
    assert [when for when, _ in synced] == ["whole", "target"]


@need("mount", "umount")
@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount")
def test_a_mount_point_and_a_full_disk(archive: str, made: str, tmp_path: Path) -> None:
    target = tmp_path / "mounted"
    target.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(target)], capture_output=True).returncode:
        pytest.skip("this machine does not let us mount")
    try:
        fastpack.unpack(archive, str(target))
        assert os.path.exists(target / "bin/app") and not os.path.exists(target / ".fastpack/incomplete")
        for name in os.listdir(target):
            shutil.rmtree(target / name) if (target / name).is_dir() else (target / name).unlink()
        subprocess.run(["mount", "-o", "remount,size=2m", str(target)], check=True)
        with pytest.raises(errors.NoSpace) as caught:
            fastpack.unpack(archive, str(target / "env"))
        assert caught.value.exit_code == 23 and os.listdir(target) == []
        # A pipe's size is not known before: the disk fills up on the way.
        done = unpack_piped(archive, str(target / "env"))
        assert done.code == 23 and os.listdir(target) == [], done.err
        with pytest.raises(errors.NoSpace):
            fastpack.pack(prefix=made, output=str(target / "b.tar.zst"))
        assert os.listdir(target) == []
    finally:
        subprocess.run(["umount", str(target)], check=True)


def test_a_parent_that_is_not_writable(made: str, tmp_path: Path) -> None:
    command = ordinary_user()
    write(made, "strict/file", "x")
    os.chmod(os.path.join(made, "strict"), 0o555)
    archive = str(tmp_path / "a.tar.zst")
    fastpack.pack(prefix=made, output=archive)
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        shutil.copy(archive, f"{folder}/a.tar.zst")
        os.mkdir(f"{folder}/env")
        os.chown(f"{folder}/env", 65534, 65534)
        code = f"import sys; sys.path[:0] = {sys.path!r}; import fastpack; fastpack.unpack('a.tar.zst', 'env')"
        done = subprocess.run([*command, code], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert os.path.exists(f"{folder}/env/bin/app") and sorted(os.listdir(folder)) == ["a.tar.zst", "env"]
        assert os.stat(f"{folder}/env/strict").st_mode & 0o777 == 0o555


def test_a_prefix_that_is_too_long_is_refused_before_anything_is_written(archive: str, tmp_path: Path) -> None:
    target = str(tmp_path / ("x" * 250))
    for run in (lambda: fastpack.unpack(archive, target),):
        with pytest.raises(errors.PrefixTooLong, match="at most 255") as caught:
            run()
        assert caught.value.exit_code == 20
    assert unpack_piped(archive, target).code == 20
    assert sorted(os.listdir(tmp_path)) == ["a.tar.zst", "made env"]
    exact = str(tmp_path) + "/" + "x" * (255 - len(str(tmp_path)) - 1)
    fastpack.unpack(archive, exact)
    assert Path(exact, "lib/libapp.so").read_bytes().count(exact.encode()) == 3


# --- archives that are not ours


def test_foreign_archives_unpack_as_they_are(tmp_path: Path) -> None:
    rows = [("./", DIR, ""), ("./a/f", REG, "first"), ("a/f", REG, "last"), ("a/l", SYM, "f"), ("a/h", LNK, "a/f")]
    path = foreign(tmp_path / "f.tar", rows)
    report = fastpack.unpack(path, str(tmp_path / "target"))
    assert report.foreign and {w.code for w in report.warnings} == {"duplicate", "foreign"}
    assert (tmp_path / "target/a/l").read_text() == (tmp_path / "target/a/h").read_text() == "last"
    cut = foreign(tmp_path / "cut.tar", rows, end=False)
    with pytest.raises(errors.DamagedArchive):
        fastpack.unpack(cut, str(tmp_path / "other"))


@pytest.mark.parametrize("suffix", ["tar.gz", "tar.zst", "tar.bz2", "tar.xz", "tar", "zip"])
def test_what_conda_pack_makes_unpacks(made: str, tmp_path: Path, suffix: str) -> None:
    conda_pack = pytest.importorskip("conda_pack")
    out = str(tmp_path / f"c.{suffix}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it misses the package cache
        conda_pack.pack(prefix=made, output=out, zip_symlinks=True)
    report = fastpack.unpack(out, str(tmp_path / "target"))
    assert report.foreign and os.path.exists(tmp_path / "target/bin/conda-unpack")
    assert os.access(tmp_path / "target/bin/conda-unpack", os.X_OK)
    assert (tmp_path / "target/share/app/plain.txt").read_bytes() == Path(made, "share/app/plain.txt").read_bytes()


# --- kills (see also test_kills.py)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_unpack_cleans_up(archive: str, tmp_path: Path, number: int) -> None:
    with open(archive, "rb") as file:
        data = file.read()
    process = subprocess.Popen(
        [sys.executable, "-m", "fastpack.cli", "unpack", "-", "-p", str(tmp_path / "target"), "--json"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(data[: len(data) // 2])
    process.stdin.flush()
    deadline = time.monotonic() + 20
    while not [name for name in os.listdir(tmp_path) if "partial" in name] and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    process.send_signal(number)
    out = process.stdout.read()
    process.stdin.close()
    process.stdout.close()
    assert process.wait(20) == 130
    assert json.loads(out)["exit_code"] == 130
    assert sorted(os.listdir(tmp_path)) == ["a.tar.zst", "made env"]


def test_what_takes_long_to_remove_is_removed_behind_an_interrupt(
    archive: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller waits no longer than `_PATIENCE`; until all is gone the marker is locked, and its parents go too."""
    go, folder = tmp_path / "go", tmp_path / "a/b"
    remove = destination.remove_marked

    def slowly(root: str) -> None:
        while not go.exists():
            time.sleep(0.01)
        remove(root)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(destination, "_PATIENCE", 0.05)
    monkeypatch.setattr(destination, "remove_marked", slowly)
    monkeypatch.setattr(extracting.Extractor, "run", interrupt)
    with pytest.raises(KeyboardInterrupt) as caught:
        fastpack.unpack(archive, str(folder / "target"))
    (partial,) = os.listdir(folder)
    assert caught.value.__notes__ == [f"what was written is being removed in the background: {folder / partial}"]
    with open(folder / partial / INCOMPLETE, "rb") as marker:
        assert not fs.lock(marker)
    go.touch()
    deadline = time.monotonic() + 30
    while (tmp_path / "a").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not (tmp_path / "a").exists()


def test_another_unpack_to_the_same_place_is_not_disturbed(archive: str, tmp_path: Path) -> None:
    partial = tmp_path / "target.partial-12345678"
    write(str(partial), "bin/half", "")
    write(str(partial), ".fastpack/x", "")
    with make_marker(str(partial), {"made": "whole"}):
        fastpack.unpack(archive, str(tmp_path / "target"))
        assert partial.exists()
    shutil.rmtree(tmp_path / "target")
    fastpack.unpack(archive, str(tmp_path / "target"))
    assert not partial.exists()
    write(str(tmp_path / "user.partial-1234abcd"), "mine", "not ours")
    fastpack.unpack(archive, str(tmp_path / "user"))
    assert (tmp_path / "user.partial-1234abcd/mine").exists()


def test_a_marker_that_was_not_made_here_allows_nobody_to_remove_anything(archive: str, tmp_path: Path) -> None:
    target = tmp_path / "target"
    for made in ("whole", "moved", "added"):
        content = {"made": made, "names": ["precious"], "folders": [], "inode": [1, 1]}
        write(str(target), ".fastpack/incomplete", json.dumps(content))
        write(str(target), "precious", "data")
        with pytest.raises(errors.IncompleteEnvironment):
            fastpack.unpack(archive, str(target), force=True)
        assert (target / "precious").read_text() == "data"


def test_a_swap_that_is_killed_leaves_one_of_the_two_whole(archive: str, tmp_path: Path) -> None:
    """At each system call of the exchange: what is at the destination is whole, and the next run removes the rest."""
    target = str(tmp_path / "target")
    fastpack.unpack(archive, target)
    code = f"""
import os, signal, sys
sys.path[:0] = {sys.path!r}
from fastpack import destination, fs
n = int(sys.argv[1])
real = {{name: getattr(os, name) for name in ("unlink", "rename", "rmdir")}}
calls = 0
def counted(name):
    def call(*a, **k):
        global calls
        if calls >= 0:
            calls += 1
            if calls == n:
                os.kill(os.getpid(), signal.SIGKILL)
        return real[name](*a, **k)
    return call
real_swap = destination.Destination._swap
def swap(self):
    for name in real:
        setattr(os, name, counted(name))
    real_swap(self)
destination.Destination._swap = swap
import fastpack
fastpack.unpack(sys.argv[2], sys.argv[3], force=True)
"""
    for n in (1, 2, 3, 5, 9, 20, 40):
        done = subprocess.run([sys.executable, "-c", code, str(n), archive, target], capture_output=True, text=True)
        assert done.returncode in (-signal.SIGKILL, 0), done.stderr
        assert fastpack.relocate(target).left == ()
        fastpack.unpack(archive, target, force=True)
        assert sorted(os.listdir(tmp_path)) == ["a.tar.zst", "made env", "target"], n


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make devices")
def test_an_output_that_is_no_file_is_not_replaced(made: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    os.symlink("fifo", tmp_path / "link")
    for name in ("fifo", "link"):
        with pytest.raises(errors.AlreadyExists, match="no regular file"):
            fastpack.pack(prefix=made, output=str(tmp_path / name), format="tar", force=True)
    (tmp_path / "real.tar").write_text("old")
    os.symlink("real.tar", tmp_path / "a.tar")
    fastpack.pack(prefix=made, output=str(tmp_path / "a.tar"), force=True)
    assert (tmp_path / "a.tar").is_symlink() and (tmp_path / "real.tar").read_bytes()[257:262] == b"ustar"


def test_the_structures_of_the_end(archive: str) -> None:
    data = Path(archive).read_bytes()
    count, flags, magic = struct.unpack("<IBI", data[-9:])
    assert magic == 0x8F92EAB1 and flags == 0
    locator = data[-(count * 8 + 17) - 76 : -(count * 8 + 17)]
    assert struct.unpack_from("<II", locator) == (0x184D2A5D, 68)
    name, version, offset, packed, plain, archive_id = struct.unpack("<8sIQQQ32s", locator[8:])
    manifest = zstandard.ZstdDecompressor().decompress(data[offset : offset + packed])
    assert (name, version, len(manifest)) == (b"fastpack", 0, plain) and digest.blake(manifest) == archive_id
    assert isinstance(manifest_of(archive).frames[0], Frame)
    files = read_relocations(read_member(archive, ".fastpack/relocations.json"))
    assert write_relocations(files) == read_member(archive, ".fastpack/relocations.json")
    assert all(isinstance(item, Relocation) for file in files for item in file.items)

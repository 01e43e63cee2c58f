"""Environments that are exchanged, and those that are kept: nothing that fastpack did not make goes with them."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import fastpack
from fastpack import destination, errors, extracting, fs, swapping
from fastpack._place_py import Stated
from fastpack.markers import make_marker
from fastpack.model import Progress
from tests.conftest import need, run_fastpack
from tests.test_conda_unpack import conda_unpack, extract
from tests.test_environment import write


@pytest.fixture
def three(made: str, tmp_path: Path) -> list[str]:
    """Archives of one environment at three times."""
    archives = []
    for number in range(3):
        write(made, "share/number", str(number))
        archives.append(str(tmp_path / f"{number}.tar.zst"))
        fastpack.pack(prefix=made, output=archives[-1])
    return archives


@pytest.fixture
def env(three: list[str], tmp_path: Path) -> Path:
    """The second one, unpacked over the first, which is kept."""
    path = tmp_path / "env"
    fastpack.unpack(three[0], str(path))
    fastpack.unpack(three[1], str(path), in_place=True)
    assert numbers(path) == ["1", "0"]
    return path


def numbers(env: Path) -> list[str]:
    """Which environments there are: the one in place, and those that are kept."""
    places = [env, *(Path(place) for place in swapping.old_places(str(env), 9))]
    return [(place / "share/number").read_text() for place in places if place.exists()]


def beside(env: Path) -> list[str]:
    return sorted(path.name for path in env.parent.iterdir() if path.name.startswith("env"))


def as_link(kept: Path) -> None:
    """To another environment, which is in use."""
    kept.rename(kept.with_name("other"))
    kept.symlink_to("other")


def with_a_file(kept: Path) -> None:
    (kept / "mine").write_text("mine")


def as_killed_addition(kept: Path) -> None:
    """A directory of somebody's, to which a killed run was adding an environment."""
    (kept / "mine").write_text("mine")
    make_marker(str(kept), {"made": "added", "names": ["share/number"], "folders": []}).close()


def with_a_copied_marker(kept: Path) -> None:
    make_marker(str(kept), {"made": "whole"}).close()
    shutil.copytree(kept, kept.with_name("copy"), symlinks=True)
    shutil.rmtree(kept)
    kept.with_name("copy").rename(kept)


def as_one_of_its_own(kept: Path) -> None:
    """An environment that was unpacked there, and never replaced."""
    shutil.rmtree(kept)
    fastpack.unpack(str(kept.with_name("0.tar.zst")), str(kept))


def with_a_link_replaced(kept: Path) -> None:
    (kept / "share/app/link").unlink()
    (kept / "share/app/link").write_text("mine")


@pytest.mark.parametrize("what", [as_link, with_a_file, as_killed_addition, with_a_copied_marker, as_one_of_its_own])
def test_what_fastpack_did_not_make_is_not_removed(
    env: Path, three: list[str], tmp_path: Path, what: Callable[[Path], None]
) -> None:
    kept = tmp_path / "env.old-1"
    what(kept)
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    done = run_fastpack("unpack", three[2], "-p", env, "--in-place")
    assert done.code in (errors.AlreadyExists.exit_code, errors.IncompleteEnvironment.exit_code), done.err
    assert "env.old-1" in done.err and done.err.count("\n") == 1
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before
    assert (env / "share/number").read_text() == "1"


def test_an_environment_that_somebody_is_at_is_not_removed(env: Path, three: list[str], tmp_path: Path) -> None:
    marker = make_marker(str(tmp_path / "env.old-1"), {"made": "whole"})
    with marker, pytest.raises(errors.IncompleteEnvironment, match="not finished"):
        fastpack.unpack(three[2], str(env), in_place=True)
    assert numbers(env) == ["1", "0"]


def test_a_file_of_ones_own_stays_while_its_environment_is_kept(env: Path, three: list[str], tmp_path: Path) -> None:
    with_a_file(tmp_path / "env.old-1")
    fastpack.unpack(three[2], str(env), in_place=True, keep=2)
    assert numbers(env) == ["2", "1", "0"] and (tmp_path / "env.old-2/mine").exists()


KILLED = """
import os, signal, sys
sys.path[:0] = {path!r}
from fastpack import destination, fs
n, no_exchange, number = map(int, sys.argv[1:4])
calls = 0
def counted(real):
    def call(*a, **k):
        global calls
        calls += 1
        if calls == n:
            os.kill(os.getpid(), number)
        return real(*a, **k)
    return call
real_swap = destination.Destination._swap
def swap(self):
    for name in ("unlink", "rename", "rmdir"):
        setattr(os, name, counted(getattr(os, name)))
    fs.exchange = counted(fs.exchange)
    if no_exchange:
        def exchange(one, two):
            raise OSError(22, "no")
        fs.exchange = exchange
    real_swap(self)
destination.Destination._swap = swap
from fastpack.cli import main
sys.argv[1:] = sys.argv[4:]
main()
"""


@pytest.mark.parametrize("no_exchange", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_whenever_it_is_killed_those_that_are_kept_are_kept(
    env: Path, three: list[str], tmp_path: Path, number: signal.Signals, no_exchange: int
) -> None:
    """At each of the first system calls of the exchange: the next run has the state that there would have been."""
    code = KILLED.format(path=sys.path)
    for n in range(1, 16):
        arguments = [str(n), str(no_exchange), str(int(number)), "unpack", three[2], "-p", str(env), "--in-place", "-q"]
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
        assert done.returncode in (-signal.SIGKILL, 130, 0), done.stderr
        at = numbers(env)
        if not no_exchange:
            assert at[0] in "12"
        # What is left is brought to an end by the next run, whatever that is for: this one is refused.
        with pytest.raises(errors.AlreadyExists):
            fastpack.unpack(three[2], str(env))
        assert numbers(env) in (["1", "0"], ["2", "1"]), (n, at)
        assert beside(env) == ["env", "env.old-1"]
        for place in (env, tmp_path / "env.old-1"):
            assert not fastpack.verify(str(place)).problems, n
            shutil.rmtree(place)
        fastpack.unpack(three[0], str(env))
        fastpack.unpack(three[1], str(env), in_place=True)


def test_a_note_that_cannot_be_read_removes_nothing(env: Path, three: list[str]) -> None:
    for text in (b"", b"[1]", b'{"inodes": 3}', b'{"inodes": [[1, 2], [3, 4]], "keep": "x"}'):
        note = env.with_name("env.partial-01234567.swap")
        note.write_bytes(text)
        fastpack.unpack(three[1], str(env), in_place=True)
        assert numbers(env) == ["1", "1"] and not note.exists()


def test_a_link_beside_a_destination_is_not_what_was_swapped_out(env: Path, three: list[str], tmp_path: Path) -> None:
    """A note with the inode of what the link leads to had that removed."""
    fastpack.unpack(three[0], str(tmp_path / "other"))
    (env.with_name("env.partial-01234567")).symlink_to("other")
    inodes = [[info.st_dev, info.st_ino] for info in (env.stat(), (tmp_path / "other").stat())]
    for keep in (0, 1):
        env.with_name("env.partial-01234567.swap").write_text(json.dumps({"inodes": inodes, "keep": keep}))
        fastpack.unpack(three[1], str(env), in_place=True)
        assert not fastpack.verify(str(tmp_path / "other")).problems
        assert not (tmp_path / "other/.fastpack/incomplete").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_another_users_note_is_not_believed(env: Path, three: list[str], tmp_path: Path) -> None:
    left = env.with_name("env.partial-01234567")
    fastpack.unpack(three[0], str(left))
    inodes = [[info.st_dev, info.st_ino] for info in (env.stat(), left.stat())]
    note = env.with_name("env.partial-01234567.swap")
    note.write_text(json.dumps({"inodes": inodes, "keep": 0}))
    os.chown(note, 1000, 1000)
    with pytest.raises(errors.AlreadyExists):
        fastpack.unpack(three[1], str(env))
    assert left.exists() and note.exists()


def test_another_process_at_it_is_told(
    env: Path, three: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    descriptor = os.open(env, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(errors.IncompleteEnvironment, match="another process"):
            fastpack.unpack(three[2], str(env), in_place=True)
    finally:
        os.close(descriptor)
    assert numbers(env) == ["1", "0"] and beside(env) == ["env", "env.old-1"]


def test_an_interrupt_does_not_wait_for_what_is_removed(
    env: Path, three: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    remove, calls = destination.remove_marked, []

    def interrupted(root: str) -> None:
        calls.append(root)
        if len(calls) == 1:
            raise KeyboardInterrupt
        remove(root)

    monkeypatch.setattr(destination, "remove_marked", interrupted)
    monkeypatch.setattr(destination, "detached", lambda work, patience: work() or True)
    with pytest.raises(KeyboardInterrupt):
        fastpack.unpack(three[2], str(env), in_place=True)
    assert len(calls) == 2 and numbers(env) == ["2", "1"] and beside(env) == ["env", "env.old-1"]


def test_files_changed_by_hand_are_told_from_those_of_ones_own(env: Path, three: list[str], tmp_path: Path) -> None:
    delta = str(tmp_path / "d.fpdelta")
    fastpack.make_delta(three[1], three[2], delta)
    (env / "share/app/plain.txt").write_text("changed by hand")
    for archive, code in ((delta, errors.WrongBase), (three[2], errors.AlreadyExists)):
        done = run_fastpack("unpack", archive, "-p", env, "--in-place")
        assert done.code == code.exit_code and "changed" in done.err and "share/app/plain.txt" in done.err, done.err
    (env / "notes").write_text("mine")
    done = run_fastpack("unpack", delta, "-p", env, "--in-place")
    assert done.code == errors.AlreadyExists.exit_code and "1 files that fastpack did not make: notes:" in done.err
    (env / "notes").unlink()
    (env / "share/app/plain.txt").write_text("nothing of interest\n")
    os.utime(env / "share/app/plain.txt", (1, 1))
    with pytest.raises(errors.WrongBase, match="changed"):
        fastpack.unpack(delta, str(env), in_place=True)
    (env / "share/number").write_text("changed by hand")
    fastpack.unpack(delta, str(env), in_place=True, on_modified="replace")
    assert numbers(env) == ["2", "changed by hand"]
    fastpack.unpack(three[1], str(env), in_place=True)  # what was replaced knowingly is no hindrance later
    assert numbers(env) == ["1", "2"]


@pytest.mark.parametrize("path", ["bin/app", "lib/libapp.so", "share/app/link", "conda-meta/history"])
def test_what_was_edited_by_hand_is_not_replaced(env: Path, three: list[str], path: str) -> None:
    """Also a file that names the prefix, whose size and time follow from that, and a link that is a file now."""
    if (env / path).is_symlink():
        (env / path).unlink()
    (env / path).write_bytes(b"mine")
    with pytest.raises(errors.AlreadyExists, match="were changed"):
        fastpack.unpack(three[2], str(env), force=True)
    assert (env / path).read_bytes() == b"mine"


def test_a_file_made_meanwhile_stays(env: Path, three: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    run = extracting.Extractor.run

    def and_write(self: extracting.Extractor, progress: Progress) -> dict[str, Stated]:
        (env / "mine").write_text("mine")
        return run(self, progress)

    monkeypatch.setattr(extracting.Extractor, "run", and_write)
    with pytest.raises(errors.AlreadyExists, match="did not make: mine"):
        fastpack.unpack(three[2], str(env), in_place=True)
    assert numbers(env) == ["1", "0"] and beside(env) == ["env", "env.old-1"]


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root without its powers")
def test_kept_environments_that_may_not_be_written_are_refused_first(env: Path, three: list[str]) -> None:
    """The exchange was made, the new one in its place, and each further run removed another one."""
    subprocess.run(["chmod", "-R", "a-w", f"{env}.old-1"], check=True)
    command = ["setpriv", "--inh-caps=-all", "--bounding-set=-all", sys.executable, "-m", "fastpack.cli"]
    for _ in range(2):
        done = subprocess.run([*command, "unpack", three[2], "-p", str(env), "--in-place"], capture_output=True)
        assert done.returncode == errors.AlreadyExists.exit_code and b"moved on" in done.stderr, done.stderr
        assert numbers(env) == ["1", "0"] and beside(env) == ["env", "env.old-1"]


def test_what_cannot_be_kept_is_not_lost(env: Path, three: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    rename = os.rename

    def refused(one: str, other: str) -> None:
        if ".old-" in f"{one}{other}":
            raise OSError(16, "Device or resource busy", one)
        rename(one, other)

    for _ in range(3):
        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", refused)
            with pytest.raises(errors.Unreadable, match="busy"):
                fastpack.unpack(three[2], str(env), in_place=True)
        assert len(beside(env)) == 4, "the new one, the replaced one with its note, and the kept one"
    with pytest.raises(errors.AlreadyExists):
        fastpack.unpack(three[2], str(env))
    assert numbers(env) == ["2", "1"] and beside(env) == ["env", "env.old-1"]


def test_a_delta_that_was_killed_after_the_exchange_runs_again(
    env: Path, three: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    delta = str(tmp_path / "d.fpdelta")
    fastpack.make_delta(three[1], three[2], delta)
    code = KILLED.format(path=sys.path)
    for n in range(1, 12):
        arguments = [str(n), "0", "9", "unpack", delta, "-p", str(env), "--in-place", "--keep", "0", "-q"]
        subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True)
        done = run_fastpack("unpack", delta, "-p", env, "--in-place", "--keep", "0", "--if-changed")
        assert done.code == 0, (n, done.err)
        assert [name for name in beside(env) if "partial" in name and n < 3] == []
        fastpack.unpack(three[1], str(env), in_place=True, keep=0)
        assert beside(env) == ["env", "env.old-1"], n


def test_names_that_are_cut_do_not_share_what_is_kept(three: list[str], tmp_path: Path) -> None:
    """Names of 240 bytes have no room for a suffix."""
    one, other = (tmp_path / f"{'e' * 239}{end}" for end in "xy")
    for path in (one, other):
        fastpack.unpack(three[0], str(path), dest_prefix=f"/opt/{path.name[-1]}")
    fastpack.unpack(three[1], str(one), in_place=True, dest_prefix="/opt/x")
    with pytest.raises(errors.AlreadyExists, match="something else"):
        fastpack.unpack(three[1], str(other), in_place=True, dest_prefix="/opt/y")


# --- added to a directory --------------------------------------------------------------------------------------------


def test_files_made_after_a_killed_addition_stay(three: list[str], tmp_path: Path) -> None:
    target = tmp_path / "target"
    write(str(target), "mine", "mine")
    code = f"""
import os, signal, sys
sys.path[:0] = {sys.path!r}
from fastpack import fs
real, n = fs.rename_over_nothing, 0
def rename(one, other):
    global n
    n += 1
    if n == 8:
        os.kill(os.getpid(), signal.SIGKILL)
    real(one, other)
fs.rename_over_nothing = rename
import fastpack
fastpack.unpack(sys.argv[1], sys.argv[2], force=True)
"""
    done = subprocess.run([sys.executable, "-c", code, three[0], str(target)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (target / "share/number").exists()
    write(str(target), "share/number", "mine")
    with pytest.raises(errors.AlreadyExists):
        fastpack.unpack(three[0], str(target))
    left = sorted(str(path.relative_to(target)) for path in target.rglob("*") if not path.is_dir())
    assert left == ["mine", "share/number"] and (target / "share/number").read_text() == "mine"


def test_a_file_made_while_it_is_added_is_not_overwritten(
    three: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"
    write(str(target), "mine", "mine")
    rename = fs.rename_over_nothing

    def and_write(one: str, other: str) -> None:
        if other.endswith("share/number"):
            Path(other).write_text("mine")
        rename(one, other)

    monkeypatch.setattr(fs, "rename_over_nothing", and_write)
    with pytest.raises(errors.AlreadyExists, match="is there since"):
        fastpack.unpack(three[0], str(target), force=True)
    left = sorted(str(path.relative_to(target)) for path in target.rglob("*") if not path.is_dir())
    assert left == ["mine", "share/number"] and (target / "share/number").read_text() == "mine"


def test_a_rename_over_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        (tmp_path / "one").write_text("1")
        fs.rename_over_nothing(str(tmp_path / "one"), str(tmp_path / "other"))
        (tmp_path / "one").write_text("2")
        with pytest.raises(FileExistsError):
            fs.rename_over_nothing(str(tmp_path / "one"), str(tmp_path / "other"))
        assert (tmp_path / "other").read_text() == "1"
        (tmp_path / "other").unlink()

        def no(*_: object) -> None:
            raise OSError(22, "no")

        monkeypatch.setattr(fs, "_renameat2", no)


# --- other outputs ---------------------------------------------------------------------------------------------------


def test_an_error_that_only_closing_tells_comes_before_the_rename(
    made: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "a.tar.zst"
    fastpack.pack(prefix=made, output=str(out))
    before = out.read_bytes()
    write(made, "share/more", "more")
    real = os.close

    def close(descriptor: int) -> None:
        written = ".fastpack-partial-" in os.readlink(f"/proc/self/fd/{descriptor}")
        real(descriptor)
        if written:
            raise OSError(122, "Disk quota exceeded")

    monkeypatch.setattr(os, "close", close)
    with pytest.raises(errors.NoSpace):
        fastpack.pack(prefix=made, output=str(out), force=True)
    assert out.read_bytes() == before and os.listdir(tmp_path).count("a.tar.zst") == 1


def test_a_file_of_ones_own_beside_an_output_is_no_debris(made: str, tmp_path: Path) -> None:
    mine = tmp_path / ".a.tar.zst.fastpack-partial-notes"
    mine.write_text("mine")
    debris = tmp_path / ".a.tar.zst.fastpack-partial-0123abcd"
    debris.write_text("debris")
    fastpack.pack(prefix=made, output=str(tmp_path / "a.tar.zst"))
    assert mine.exists() and not debris.exists()


def test_an_overlay_that_was_killed_is_removed_by_the_next_one(env: Path, tmp_path: Path) -> None:
    code = f"""
import os, signal, sys
sys.path[:0] = {sys.path!r}
from fastpack import relocating
relocating.write_state = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
import fastpack
fastpack.relocate(sys.argv[1], overlay=sys.argv[2], dest_prefix="/opt/x")
"""
    overlay = tmp_path / "overlay"
    done = subprocess.run([sys.executable, "-c", code, str(env), str(overlay)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert any(path.name.startswith("overlay.partial-") for path in tmp_path.iterdir())
    fastpack.relocate(str(env), overlay=str(overlay), dest_prefix="/opt/x")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("overlay")] == ["overlay"]
    assert not (overlay / ".fastpack/incomplete").exists()
    assert (overlay / ".fastpack").stat().st_mode == (env / ".fastpack").stat().st_mode


@need("tar", "zstd")
@pytest.mark.parametrize("how", ["relocate", "conda-unpack"])
def test_two_relocations_at_once_follow_one_another(env: Path, three: list[str], tmp_path: Path, how: str) -> None:
    """Each put its prefix into half of the files, and both said that all was well."""
    shared = tmp_path / "shared"
    extract(three[2], str(shared))
    for name in ("one", "two"):
        (tmp_path / name).symlink_to("shared")
    assert conda_unpack(str(shared)).returncode == 0
    for _ in range(6):
        processes = []
        for name in ("one", "two"):
            place = str(tmp_path / name)
            command = [sys.executable, "-m", "fastpack.cli", "relocate", place]
            if how == "conda-unpack":
                command = [sys.executable, f"{place}/bin/conda-unpack", place]
            processes.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))
        for process in processes:
            assert process.wait(60) == 0
        state = json.loads((shared / ".fastpack/state.json").read_text())
        assert state["complete"] and not fastpack.verify(state["prefix"]).problems

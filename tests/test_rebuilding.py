"""An environment from a delta and an older environment: what unpacking the new archive gives, or nothing."""

from __future__ import annotations

import errno
import mmap
import os
import py_compile
import shutil
import subprocess
import tempfile
import time
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import fastpack
from fastpack import direct, errors, hostmemory, native, pagecache, plan, rebuilding
from fastpack._place_py import RELOCATIONS, read_relocations
from fastpack.installed import read_installed
from fastpack.layout import Segment, lay_out
from fastpack.listing import walk
from fastpack.manifest import Member
from fastpack.markers import make_marker
from fastpack.reader import open_archive
from fastpack.stat_table import FrameFiles, SeenFrames
from tests.conftest import need, run_fastpack
from tests.test_environment import dist, write

SITE = "lib/python3.11/site-packages"
TOLD = pytest.mark.skipif(not hostmemory.tells_changes(tempfile.gettempdir()), reason="nothing is trusted on a tmpfs")


class Shipped(NamedTuple):
    old: str
    new: str
    delta: str
    base: str  # unpacked from old


@pytest.fixture
def shipped(made: str, tmp_path: Path) -> Shipped:
    dist(made, "tool", {"tool.py": b"x = 1\n" * 100, "data.bin": os.urandom(3 << 20)})
    dist(made, "steady", {"steady.py": b"y = 1\n"})
    write(made, "share/names", f"here: {made}/share\n" * 20)
    write(made, "share/large", os.urandom(20 << 20))
    write(made, "bin/run", f"#!{made}/bin/python\nprint(1)\n", 0o755)
    os.symlink("names", os.path.join(made, "share/link"))
    old, new = str(tmp_path / "old.tar.zst"), str(tmp_path / "new.tar.zst")
    fastpack.pack(prefix=made, output=old)
    write(made, f"{SITE}/tool.py", b"x = 2\n" * 50)
    fastpack.pack(prefix=made, output=new)
    delta = str(tmp_path / "d.fpdelta")
    fastpack.make_delta(old, new, delta)
    base = str(tmp_path / "base env")
    fastpack.unpack(old, base)
    return Shipped(old, new, delta, base)


def tree(root: str) -> dict[str, tuple[object, ...]]:
    """Everything that a program can see of a tree, but for what names the moment."""
    return {
        file.path: (file.kind, file.mode, file.mtime_ns, file.target,
                    Path(root, file.path).read_bytes() if file.kind == "file" else b"")
        for file in walk(root)
        if file.kind != "directory"
    }  # fmt: skip


def test_it_is_what_the_archive_gives(shipped: Shipped, tmp_path: Path) -> None:
    target, wanted = str(tmp_path / "target"), str(tmp_path / "wanted")
    report = fastpack.unpack(shipped.delta, target, base=shipped.base)
    fastpack.unpack(shipped.new, wanted)
    found = tree(target)
    shutil.move(target, str(tmp_path / "aside"))
    shutil.move(wanted, target)
    fastpack.relocate(target)
    there = tree(target)
    for own in (".fastpack/state.json",):
        found.pop(own), there.pop(own)
    assert found == there
    assert report.archive_id == fastpack.inspect(shipped.new).archive_id and not report.foreign
    shutil.rmtree(target)
    shutil.move(str(tmp_path / "aside"), target)
    assert not fastpack.verify(target).problems
    assert fastpack.verify(shipped.base).n_files, "and the old one is as it was"


def test_in_place_the_old_ones_are_kept(shipped: Shipped, tmp_path: Path) -> None:
    before = tree(shipped.base)
    done = run_fastpack("unpack", shipped.delta, "-p", shipped.base, "--in-place", "--json")
    assert done.code == 0, done.err
    assert not fastpack.verify(shipped.base).problems
    assert Path(shipped.base, SITE, "tool.py").read_bytes() == b"x = 2\n" * 50
    assert tree(shipped.base + ".old-1") == before
    # Back and forth with whole archives, two of them kept.
    for archive in (shipped.old, shipped.new, shipped.old):
        fastpack.unpack(archive, shipped.base, in_place=True, keep=2)
    there = sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("base env"))
    assert there == ["base env", "base env.old-1", "base env.old-2"]
    contents = [Path(tmp_path, name, SITE, "tool.py").read_bytes()[:5] for name in there]
    assert contents == [b"x = 1", b"x = 2", b"x = 1"]
    # One that was kept works again under its own name.
    shutil.rmtree(shipped.base)
    os.rename(shipped.base + ".old-1", shipped.base)
    assert fastpack.status(shipped.base).condition == "right" and not fastpack.verify(shipped.base).problems
    fastpack.unpack(shipped.old, shipped.base, in_place=True, keep=0)
    assert not os.path.lexists(shipped.base + ".old-1")


def test_one_that_is_half_removed_is_no_hindrance(shipped: Shipped) -> None:
    fastpack.unpack(shipped.new, shipped.base, in_place=True)
    kept = Path(shipped.base + ".old-1")
    make_marker(str(kept), {"made": "whole"}).close()
    shutil.rmtree(kept / "share")
    (kept / ".fastpack/state.json").unlink()
    fastpack.unpack(shipped.old, shipped.base, in_place=True)
    assert Path(kept, SITE, "tool.py").read_bytes()[:5] == b"x = 2"
    assert not (kept / ".fastpack/incomplete").exists() and not fastpack.verify(shipped.base).problems


@pytest.mark.parametrize("path", [f"{SITE}/steady.py", "share/large", "share/names", "bin/run", "conda-meta/history"])
def test_a_file_that_was_changed_in_between_is_found(shipped: Shipped, tmp_path: Path, path: str) -> None:
    full = Path(shipped.base, path)
    if not full.exists():
        pytest.skip("not in this environment")
    info = full.stat()
    content = bytearray(full.read_bytes())
    content[-2] ^= 1
    full.chmod(0o644)
    full.write_bytes(content)
    os.utime(full, ns=(info.st_atime_ns, info.st_mtime_ns))
    target = str(tmp_path / "target")
    with pytest.raises(errors.WrongBase) as raised:
        fastpack.unpack(shipped.delta, target, base=shipped.base)
    assert raised.value.path == str(full)
    assert not os.path.lexists(target)
    before = tree(shipped.base)
    with pytest.raises(errors.WrongBase):
        fastpack.unpack(shipped.delta, shipped.base, in_place=True)
    assert tree(shipped.base) == before


def test_what_is_missing_or_something_else_is_found(shipped: Shipped, tmp_path: Path) -> None:
    target = str(tmp_path / "target")
    full = Path(shipped.base, SITE, "steady.py")
    content = full.read_bytes()
    full.unlink()
    for spoil in (lambda: None, lambda: full.symlink_to("tool.py"), lambda: os.mkfifo(full), full.mkdir):
        spoil()
        with pytest.raises(errors.WrongBase, match="changed"):
            fastpack.unpack(shipped.delta, target, base=shipped.base)
        assert not os.path.lexists(target)
        if full.is_dir() and not full.is_symlink():
            full.rmdir()
        elif os.path.lexists(full):
            full.unlink()
    full.write_bytes(content + b"longer")
    with pytest.raises(errors.WrongBase, match="changed"):
        fastpack.unpack(shipped.delta, target, base=shipped.base)


def test_another_base_is_refused(shipped: Shipped, tmp_path: Path, made: str) -> None:
    other = str(tmp_path / "other")
    fastpack.unpack(shipped.new, other)
    done = run_fastpack("unpack", shipped.delta, "-p", tmp_path / "target", "--base", other)
    assert done.code == 33 and "another archive" in done.err and len(done.err.splitlines()) == 1
    done = run_fastpack("unpack", shipped.delta, "-p", tmp_path / "target")
    assert done.code != 0 and "no such directory" in done.err and not os.path.lexists(tmp_path / "target")
    done = run_fastpack("unpack", shipped.delta, "-p", tmp_path / "target", "--base", made)
    assert done.code != 0 and "did not unpack" in done.err
    done = run_fastpack("unpack", shipped.new, "-p", tmp_path / "target", "--base", shipped.base)
    assert done.code == 2 and "delta" in done.err
    done = run_fastpack("unpack", shipped.new, "-p", tmp_path / "target", "--in-place")
    assert done.code != 0 and "replaced" in done.err and not os.path.lexists(tmp_path / "target")
    done = run_fastpack("unpack", shipped.new, "-p", shipped.base, "--in-place", "--keep", "-1")
    assert done.code == 2
    os.mkdir(shipped.base + ".old-1")
    done = run_fastpack("unpack", shipped.new, "-p", shipped.base, "--in-place")
    assert done.code != 0 and ".old-1" in done.err and "x = 1" in Path(shipped.base, SITE, "tool.py").read_text()


def test_a_base_that_is_not_relocated_is_refused(shipped: Shipped, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    subprocess.run(["tar", "--zstd", "-xf", shipped.old, "-C", raw], check=True)
    with pytest.raises(errors.IncompleteEnvironment):
        fastpack.unpack(shipped.delta, str(tmp_path / "target"), base=str(raw))


@pytest.mark.parametrize("cut", [10, 60, 2000, -1, -200])
def test_a_delta_that_is_cut_off_or_changed_is_refused(shipped: Shipped, tmp_path: Path, cut: int) -> None:
    data = Path(shipped.delta).read_bytes()
    before = tree(shipped.base)
    for broken in (data[:cut], data[:cut] + bytes([data[cut] ^ 1]) + data[cut:][1:]):
        Path(shipped.delta).write_bytes(broken)
        with pytest.raises(errors.FastpackError):
            fastpack.unpack(shipped.delta, shipped.base, in_place=True)
        assert tree(shipped.base) == before
        assert not [name for name in os.listdir(tmp_path) if "partial" in name]


def test_if_changed_knows_a_delta(shipped: Shipped) -> None:
    assert not fastpack.unpack(shipped.delta, shipped.base, in_place=True, if_changed=True).unchanged
    assert fastpack.unpack(shipped.delta, shipped.base, in_place=True, if_changed=True).unchanged
    assert fastpack.unpack(shipped.new, shipped.base, in_place=True, if_changed=True).unchanged


# --- shared blocks


def unshared(root: str, base: str) -> set[str]:
    return {file.path for file in walk(root) if file.kind == "file"
            and not os.path.samefile(os.path.join(root, file.path), os.path.join(base, file.path))}  # fmt: skip


def assert_alike(
    found: dict[str, tuple[object, ...]], wanted: dict[str, tuple[object, ...]], large: bool = True
) -> None:  # fmt: skip
    """The same modes and, where no prefix made a difference, contents and times."""
    assert found.keys() == wanted.keys()
    same = [path for path in found if found[path][4] == wanted[path][4]]
    assert len(same) > 10 and (not large or "share/large" in same)
    assert all(found[path][1] == wanted[path][1] for path in found)
    assert not [(path, found[path][:4], wanted[path][:4]) for path in same if found[path] != wanted[path]]


def test_hardlink(shipped: Shipped, tmp_path: Path) -> None:
    target, wanted = str(tmp_path / "target"), str(tmp_path / "wanted")
    os.utime(os.path.join(shipped.base, SITE, "steady.py"))  # another time: it gets a copy
    before = tree(shipped.base)
    time.sleep(1.1)  # what was changed in the second before is not shared
    Path(shipped.base, "share/app/plain.txt").chmod(0o600)
    Path(shipped.base, "share/app/plain.txt").chmod(before["share/app/plain.txt"][1])
    done = run_fastpack("unpack", shipped.delta, "-p", target, "--base", shipped.base, "--hardlink", "--json")
    assert done.code == 0, done.err
    n_files = sum(file.kind == "file" for file in walk(target))
    alone = unshared(target, shipped.base)
    assert done.json["result"]["n_shared_files"] == n_files - len(alone) > 5
    assert {f"{SITE}/tool.py", f"{SITE}/steady.py", "share/app/plain.txt", "share/names", ".fastpack/manifest"} <= alone
    assert "share/large" not in alone
    assert tree(shipped.base) == before
    assert not fastpack.verify(target).problems
    fastpack.unpack(shipped.new, wanted)
    assert_alike(tree(target), tree(wanted))
    # Another prefix for the new one: nothing is written through a shared file.
    os.rename(target, target + "2")
    fastpack.relocate(target + "2")
    assert tree(shipped.base) == before
    done = run_fastpack("unpack", shipped.new, "-p", str(tmp_path / "x"), "--hardlink")
    assert done.code == 2 and "--hardlink is for a delta" in done.err


@pytest.mark.parametrize("keep", [0, 1])
def test_an_environment_that_is_not_kept_gives_its_files_away(shipped: Shipped, keep: int, tmp_path: Path) -> None:
    """Nobody is left who could have them in common; another environment's are never given away."""
    time.sleep(1.1)  # what was unpacked just now is copied
    expected = str(tmp_path / "expected")
    fastpack.unpack(shipped.new, expected, dest_prefix=shipped.base)
    paths = ("share/large", f"{SITE}/steady.py", f"{SITE}/tool.py", "bin/run")
    before = [os.stat(os.path.join(shipped.base, path)).st_ino for path in paths]
    backup, second = tmp_path / "backup", os.path.join(shipped.base, "share/app/plain.txt")
    os.link(second, backup)
    time.sleep(1.1)
    report = fastpack.unpack(shipped.delta, shipped.base, in_place=True, keep=keep)
    after = [os.stat(os.path.join(shipped.base, path)) for path in paths]
    assert not os.path.samefile(second, backup), "somebody else has that one too"
    if report.n_shared_files == 0 or keep == 0:  # no reflinks here
        assert [one == two.st_ino for one, two in zip(before, after, strict=True)] == [not keep, not keep, False, False]
    assert all(info.st_nlink == 1 for info in after)
    assert not fastpack.verify(shipped.base).problems
    shutil.rmtree(os.path.join(expected, ".fastpack"))
    own = {path: row for path, row in tree(shipped.base).items() if not path.startswith(".fastpack")}
    assert own == tree(expected)
    time.sleep(1.1)
    other = str(tmp_path / "other")
    fastpack.unpack(shipped.old, other)
    fastpack.unpack(shipped.delta, other, base=other, in_place=True, keep=0)
    assert not fastpack.verify(other).problems


@TOLD
def test_what_nobody_has_touched_is_linked_unread(
    shipped: Shipped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even the large ones, which a link changes the system's word of."""
    time.sleep(1.1)
    asked: list[bool] = []
    untouched = SeenFrames.untouched

    def spy(seen: SeenFrames, index: int, frame: FrameFiles, rows: array[int]) -> bool:
        asked.append(untouched(seen, index, frame, rows))
        return asked[-1]

    monkeypatch.setattr(SeenFrames, "untouched", spy)
    target = str(tmp_path / "target")
    fastpack.unpack(shipped.delta, target, base=shipped.base, hardlink=True)
    assert len(asked) > 5 and all(asked)
    assert "share/large" not in unshared(target, shipped.base)
    assert not fastpack.verify(target).problems


def test_hardlink_finds_what_was_changed(shipped: Shipped, tmp_path: Path) -> None:
    large = Path(shipped.base, "share/large")
    info = large.stat()
    with large.open("r+b") as file:
        file.seek(15 << 20)
        file.write(b"changed")
    os.utime(large, ns=(info.st_atime_ns, info.st_mtime_ns))
    with pytest.raises(errors.WrongBase, match="changed"):
        fastpack.unpack(shipped.delta, str(tmp_path / "target"), base=shipped.base, hardlink=True)
    assert not (tmp_path / "target").exists() and large.stat().st_nlink == 1


# --- what nobody has touched is not read


@pytest.fixture
def frames_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The frames that are put together from the base's files, to be held against their digests."""
    found: list[int] = []
    plain = rebuilding._Rebuilder._plain

    def noted(self: rebuilding._Rebuilder, index: int) -> memoryview:
        if index not in self._offsets:
            found.append(index)
        return plain(self, index)

    monkeypatch.setattr(rebuilding._Rebuilder, "_plain", noted)
    return found


@TOLD
def test_what_nobody_has_touched_is_copied_unread(shipped: Shipped, tmp_path: Path, frames_read: list[int]) -> None:
    time.sleep(1.1)  # what was changed in the second before is read
    wanted = fastpack.unpack(shipped.new, str(tmp_path / "wanted"))
    relocated = {file.path for file in read_relocations(Path(shipped.base, RELOCATIONS).read_bytes())}
    assert "share/names" in relocated
    target = str(tmp_path / "target")
    fastpack.unpack(shipped.delta, target, base=shipped.base)
    with open_archive(shipped.new) as archive:
        files = [list(archive.reader.place_of(k).paths) for k in range(len(archive.manifest.frames))]
    # But for the one that says which files name the prefix: these are read alone, as the new one lies elsewhere.
    assert frames_read and all(RELOCATIONS in files[index] for index in frames_read)
    assert os.fsencode(target) in Path(target, "share/names").read_bytes()
    assert_alike(tree(target), tree(str(tmp_path / "wanted")))
    assert not fastpack.verify(target).problems and wanted.archive_id == fastpack.verify(target).archive_id
    seen = len(frames_read)
    frames_read.clear()
    fastpack.unpack(shipped.delta, str(tmp_path / "another"), base=shipped.base, verify_content=True)
    assert len(frames_read) > seen and any("share/large" in files[index] for index in frames_read)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the files that are written one by one, as pages are taken to be fresh ones."""
    found: list[int] = []
    chosen = direct.Writer.alone

    def noted(self: direct.Writer, sizes: Sequence[int]) -> list[int]:
        indices = chosen(self, sizes)
        found.extend(sizes[index] for index in indices)
        return indices

    monkeypatch.setattr(pagecache.Pages, "are_fresh", True)
    monkeypatch.setattr(pagecache.Pages, "would_have_saved", lambda *arguments: None)
    monkeypatch.setattr(direct.Writer, "alone", noted)
    return found


@TOLD
def test_past_the_page_cache(made: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: list[int]) -> None:
    sizes = [direct.ALONE + more for more in (-1, 0, 1, 4095, 4096, 1 << 20)] + [3 << 20]
    dist(made, "steady", {f"{number}": os.urandom(size) for number, size in enumerate(sizes)})
    Path(made, SITE, "2").chmod(0o755)
    write(made, "share/text", f"here: {made}/share\n" * 20_000)
    delta, _ = update(made, tmp_path, lambda: dist(made, "tool", {"tool.py": b"x = 1\n"}))
    base = str(tmp_path / "untouched")
    fastpack.unpack(str(tmp_path / "1.tar.zst"), base)
    time.sleep(1.1)
    move: Callable[..., None] = direct.Writer.move
    moved: list[int] = []

    def noted(self: direct.Writer, descriptor: int, piece: pagecache.Piece, *rest: int) -> None:
        moved.append(piece.n_bytes)
        move(self, descriptor, piece, *rest)

    monkeypatch.setattr(direct.Writer, "move", noted)
    run_fastpack("unpack", str(tmp_path / "2.tar.zst"), "-p", str(tmp_path / "wanted"))  # through it
    for name, unpack in (("full", lambda to: fastpack.unpack(str(tmp_path / "2.tar.zst"), to)),
                         ("delta", lambda to: fastpack.unpack(delta, to, base=base))):  # fmt: skip
        alone.clear()
        moved.clear()
        unpack(str(tmp_path / name))
        assert set(sizes[1:]) < set(alone) and sizes[0] not in alone, "and what names the prefix"
        assert set(sizes[1:]) <= set(moved) if name == "delta" else not moved
        assert_alike(tree(str(tmp_path / name)), tree(str(tmp_path / "wanted")), large=False)
        assert not fastpack.verify(str(tmp_path / name)).problems


def test_a_list_of_relocations_that_lies_in_several_frames(
    made: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames that are put together share a buffer: the list was that of its last frame, twice."""
    monkeypatch.setattr(plan, "FRAME", 1 << 20)
    write(made, "share/text", f"{made}\n" * 60_000)
    old, new, delta, base, target = (str(tmp_path / name) for name in ("1.tar", "2.tar", "d.fpdelta", "base", "target"))
    fastpack.pack(prefix=made, output=old)
    fastpack.unpack(old, base)
    dist(made, "tool", {"tool.py": b"x = 1\n"})
    fastpack.pack(prefix=made, output=new)
    fastpack.make_delta(old, new, delta)
    with open_archive(new) as archive:
        index = archive.manifest.members.paths.index(RELOCATIONS)
        assert len(archive.reader.layout.frames_of(index)) == 2
    fastpack.unpack(delta, target, base=base)
    assert Path(target, "share/text").read_text() == f"{target}\n" * 60_000


@TOLD
def test_a_file_that_changes_while_it_is_copied_past_the_cache(
    made: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: list[int]
) -> None:
    dist(made, "steady", {"data.bin": os.urandom(3 << 20)})
    delta, _ = update(made, tmp_path, lambda: dist(made, "tool", {"tool.py": b"x = 1\n"}))
    base = str(tmp_path / "untouched")
    fastpack.unpack(str(tmp_path / "1.tar.zst"), base)
    time.sleep(1.1)
    move, path = direct.Writer.move, Path(base, SITE, "data.bin")

    def and_change(self: direct.Writer, descriptor: int, piece: pagecache.Piece, offset: int, *least: int) -> None:
        move(self, descriptor, piece, offset, *least)
        path.write_bytes(bytes(3 << 20))

    monkeypatch.setattr(direct.Writer, "move", and_change)
    alone.clear()
    with pytest.raises(errors.WrongBase, match="changed") as caught:
        fastpack.unpack(delta, str(tmp_path / "target"), base=base)
    assert caught.value.path == str(path) and 3 << 20 in alone
    assert not (tmp_path / "target").exists()


def _restore(path: Path, info: os.stat_result) -> None:
    os.chmod(path, info.st_mode)
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))


def _rewrite(path: Path) -> None:
    path.write_bytes(path.read_bytes()[::-1])


def _chmod(path: Path) -> None:
    path.chmod(0o600)


def _replace(path: Path) -> None:
    shutil.copy2(path, f"{path}~")
    os.rename(f"{path}~", path)


def _exchange(path: Path) -> None:
    os.rename(path, f"{path}~")
    os.rename(f"{path}~", path)


def _link(path: Path) -> None:
    os.link(path, f"{path}~")
    os.unlink(f"{path}~")


@TOLD
@pytest.mark.parametrize("touch", [_rewrite, _chmod, _replace, _exchange, _link])
def test_whatever_is_done_to_a_file_shows(shipped: Shipped, touch: Callable[[Path], None]) -> None:
    """Times and modes are put back: ctime and inode tell."""
    installed = read_installed(shipped.base)
    seen = SeenFrames(shipped.base, installed.archive_id)
    layout = lay_out(installed.manifest)
    members = installed.manifest.members
    frames = {members[row.member].path: index for index, rows in enumerate(layout) for row in rows}
    folder = os.open(shipped.base, os.O_RDONLY)

    def untouched(path: str) -> bool:
        rows = layout[frames[path]]
        paths = [members[row.member].path for row in rows if members[row.member].kind == "file"]
        numbers = native.batch.stat_files(folder, paths)
        assert not seen.untouched(frames[path], FrameFiles(paths, rows[0].start + 1), numbers)
        return seen.untouched(frames[path], FrameFiles(paths, rows[0].start), numbers)

    try:
        for path in (f"{SITE}/steady.py", "share/large"):
            assert untouched(path)
            info = os.stat(Path(shipped.base, path))
            touch(Path(shipped.base, path))
            _restore(Path(shipped.base, path), info)
            assert not untouched(path)
    finally:
        os.close(folder)


@TOLD
def test_without_what_was_remembered_everything_is_read(
    shipped: Shipped, tmp_path: Path, frames_read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    time.sleep(1.1)
    tables = Path(os.environ["XDG_CACHE_HOME"], "fastpack/unpacked")
    (mine,) = (path for path in tables.iterdir() if read_installed(shipped.base).archive_id in path.read_bytes().hex())
    content = mine.read_bytes()

    def n_read(name: str, base: str = shipped.base) -> int:
        frames_read.clear()
        fastpack.unpack(shipped.delta, str(tmp_path / name), base=base)
        return len(frames_read)

    few = n_read("with it")
    for number, broken in enumerate((b"", content[:-1], content[:-1] + bytes([content[-1] ^ 1]), b"x" + content)):
        mine.write_bytes(broken)
        everything = n_read(f"broken {number}")
        assert everything > few
    mine.write_bytes(content)
    assert n_read("again") == few
    assert n_read("a copy", shutil.copytree(shipped.base, tmp_path / "copy", symlinks=True)) == everything
    os.rename(shipped.base, tmp_path / "moved")
    fastpack.relocate(str(tmp_path / "moved"))
    assert n_read("of one moved", str(tmp_path / "moved")) == everything
    # A home that cannot be written to is no hindrance.
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/x")
    fastpack.unpack(shipped.old, shipped.base)
    assert n_read("without a home") == everything


@TOLD
@pytest.mark.parametrize("what", ["bytes", "mode", "a further name"])
def test_a_large_file_that_changes_while_it_is_copied(
    shipped: Shipped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Its digest decides: what does not touch its bytes is no hindrance."""
    copy = rebuilding._Rebuilder._copy_part
    begun: list[str] = []

    def and_change(self: rebuilding._Rebuilder, member: Member, segment: Segment, folder: int) -> None:
        path = Path(shipped.base, member.path)
        if what == "bytes" and segment.stop == member.n_bytes:
            with path.open("r+b") as file:
                file.seek(-1, os.SEEK_END)
                file.write(b"?" if path.read_bytes()[-1:] != b"?" else b"!")
        copy(self, member, segment, folder)
        if what == "mode":
            path.chmod(0o640)
        elif what == "a further name" and not begun:
            os.link(path, tmp_path / "backup")
        begun.append(member.path)

    monkeypatch.setattr(rebuilding._Rebuilder, "_copy_part", and_change)
    target = str(tmp_path / "target")
    if what == "bytes":
        with pytest.raises(errors.WrongBase, match="changed"):
            fastpack.unpack(shipped.delta, target, base=shipped.base)
        assert not os.path.lexists(target)
    else:
        fastpack.unpack(shipped.delta, target, base=shipped.base)
        assert not fastpack.verify(target).problems
    assert begun


@pytest.mark.parametrize("keep", [0, 1])
def test_a_folder_that_lies_elsewhere_is_not_given_away(shipped: Shipped, tmp_path: Path, keep: int) -> None:
    """Behind a link others may have the files; and in place of the environment the link is not ours to remove."""
    outside = tmp_path / "outside"
    os.rename(Path(shipped.base, "share/app"), outside)
    os.symlink(outside, Path(shipped.base, "share/app"))
    time.sleep(1.1)
    target = str(tmp_path / "target")
    report = fastpack.unpack(shipped.delta, target, base=shipped.base, hardlink=True)
    assert report.n_shared_files == 0 and not fastpack.verify(target).problems
    assert all(path.lstat().st_nlink == 1 for path in outside.iterdir())
    with pytest.raises(errors.AlreadyExists, match="share/app"):
        fastpack.unpack(shipped.delta, shipped.base, in_place=True, keep=keep)
    assert (outside / "plain.txt").exists() and Path(shipped.base, "share/app").is_symlink()


def test_a_file_of_the_base_that_may_not_be_read(
    shipped: Shipped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was not changed, and that is not said."""
    path = f"{SITE}/steady.py"
    os.utime(os.path.join(shipped.base, path))  # so it is read by itself
    opened = os.open

    def deny(name: str, *arguments: Any, **options: Any) -> int:
        if name == path:
            raise PermissionError(errno.EACCES, "Permission denied", name)
        return opened(name, *arguments, **options)

    monkeypatch.setattr(os, "open", deny)
    with pytest.raises(errors.Unreadable, match="cannot be read .Permission denied") as caught:
        fastpack.unpack(shipped.delta, str(tmp_path / "target"), base=shipped.base, on_modified="replace")
    assert caught.value.path == os.path.join(shipped.base, path) and not (tmp_path / "target").exists()


def update(made: str, tmp_path: Path, change: Callable[[], object]) -> tuple[str, str]:
    """Pack, unpack, change, pack: a delta, and the environment it is for; it gives what the new archive gives."""
    old, new, delta = (str(tmp_path / name) for name in ("1.tar.zst", "2.tar.zst", "1-2.fpdelta"))
    base = str(tmp_path / "unpacked")
    fastpack.pack(prefix=made, output=old)
    fastpack.unpack(old, base)
    change()
    fastpack.pack(prefix=made, output=new)
    fastpack.make_delta(old, new, delta)
    time.sleep(1.1)
    fastpack.unpack(new, str(tmp_path / "whole"))
    for number, more in enumerate(({}, {"verify_content": True}, {"hardlink": True})):
        fastpack.unpack(delta, str(tmp_path / f"rebuilt {number}"), base=base, **more)
        assert_alike(tree(str(tmp_path / f"rebuilt {number}")), tree(str(tmp_path / "whole")), large=False)
        shutil.rmtree(tmp_path / f"rebuilt {number}")
    return delta, base


def test_equal_parts_of_a_large_file_are_not_mistaken_for_each_other(made: str, tmp_path: Path) -> None:
    """The parts behind the first have no header: their digest says nothing of their place."""
    one, two, three, last = (os.urandom(8 << 20) for _ in range(4))
    zeros = bytes(8 << 20)
    write(made, "share/swapped", one + two + three + last)
    write(made, "share/zeros", one + two + zeros + last)
    write(made, "share/other", one + zeros + two)

    def change() -> None:
        write(made, "share/swapped", one + three + two + last)
        write(made, "share/zeros", one + zeros + zeros + last)
        write(made, "share/other", one + three + two)

    update(made, tmp_path, change)


def test_a_link_alone_between_large_files(made: str, tmp_path: Path) -> None:
    write(made, "lib/liba.so.1", os.urandom(9 << 20))
    os.symlink("libb.so.1", os.path.join(made, "lib/libb.so"))
    write(made, "lib/libb.so.1", os.urandom(9 << 20))
    update(made, tmp_path, lambda: write(made, "share/new", b"new"))


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="needs a tmpfs")
def test_a_file_system_that_does_not_tell_of_changes_is_not_trusted(shipped: Shipped, frames_read: list[int]) -> None:
    if hostmemory.tells_changes("/dev/shm"):
        pytest.skip("/dev/shm is no tmpfs")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        base = f"{folder}/base"
        fastpack.unpack(shipped.old, base)
        time.sleep(1.1)
        with open(f"{base}/share/large", "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
            assert mapped[5]
            mapped[5] ^= 1  # which changes none of the file's times
        with pytest.raises(errors.WrongBase, match="changed"):
            fastpack.unpack(shipped.delta, f"{folder}/target", base=base)


# --- what was changed by hand


def test_what_was_changed_by_hand_is_not_lost_without_being_asked_for(shipped: Shipped, tmp_path: Path) -> None:
    tool, steady = Path(shipped.base, SITE, "tool.py"), Path(shipped.base, SITE, "steady.py")
    target = str(tmp_path / "target")
    tool.write_bytes(b"mine\n")
    for more in ([], ["--in-place", "-p", shipped.base]):
        done = run_fastpack("unpack", shipped.delta, "--base", shipped.base, "-p", target, *more)
        assert done.code == errors.WrongBase.exit_code and str(tool) in done.err and "--on-modified replace" in done.err
    assert tool.read_bytes() == b"mine\n" and not os.path.lexists(target)
    arguments = ["unpack", shipped.delta, "--base", shipped.base, "-p", target, "--on-modified", "replace"]
    done = run_fastpack(*arguments)
    assert done.code == 0, done.err
    assert Path(target, SITE, "tool.py").read_bytes() == b"x = 2\n" * 50
    shutil.rmtree(target)
    # What the delta does not have it cannot replace; but one can be made that does.
    steady.write_bytes(b"mine too\n")
    done = run_fastpack(*arguments)
    assert done.code == errors.WrongBase.exit_code and str(steady) in done.err and "--ship" in done.err
    arguments[1] = str(tmp_path / "more.fpdelta")
    done = run_fastpack("delta", shipped.old, shipped.new, "-o", arguments[1], "--ship", "*/steady.py", "--json")
    assert done.code == 0 and os.stat(arguments[1]).st_size > os.stat(shipped.delta).st_size
    done = run_fastpack(*arguments)
    assert done.code == 0, done.err
    assert Path(target, SITE, "steady.py").read_bytes() == b"y = 1\n" and not fastpack.verify(target).problems
    fastpack.apply_delta(arguments[1], shipped.old, str(tmp_path / "applied"))
    assert (tmp_path / "applied").read_bytes() == Path(shipped.new).read_bytes()
    done = run_fastpack("delta", shipped.old, shipped.new, "-o", str(tmp_path / "z"), "--ship", "nothing*")
    assert done.code == 2 and "nothing*" in done.err and not (tmp_path / "z").exists()
    with pytest.raises(errors.UsageError):
        fastpack.unpack(shipped.delta, target, on_modified="keep")


def test_what_is_gone_or_compiled_anew_was_not_changed_by_hand(made: str, shipped: Shipped, tmp_path: Path) -> None:
    write(made, f"{SITE}/__pycache__/tool.cpython-311.pyc", b"compiled")
    Path(shipped.base, SITE, "tool.py").unlink()
    pyc = Path(shipped.base, SITE, "__pycache__/tool.cpython-311.pyc")
    pyc.parent.mkdir(exist_ok=True)
    pyc.write_bytes(b"anew")
    fastpack.unpack(shipped.delta, str(tmp_path / "target"), base=shipped.base)
    assert not fastpack.verify(str(tmp_path / "target")).problems


def test_what_the_new_environment_has_not_is_not_lost_either(made: str, shipped: Shipped, tmp_path: Path) -> None:
    os.unlink(os.path.join(made, SITE, "steady.py"))
    without, delta = str(tmp_path / "without.tar.zst"), str(tmp_path / "without.fpdelta")
    fastpack.pack(prefix=made, output=without)
    fastpack.make_delta(shipped.old, without, delta)
    Path(shipped.base, SITE, "steady.py").write_bytes(b"mine")
    with pytest.raises(errors.WrongBase, match="would not have that") as raised:
        fastpack.unpack(delta, str(tmp_path / "target"), base=shipped.base)
    assert raised.value.path == os.path.join(shipped.base, SITE, "steady.py")
    fastpack.unpack(delta, str(tmp_path / "target"), base=shipped.base, on_modified="replace")
    assert not (tmp_path / "target" / SITE / "steady.py").exists()


def test_a_change_by_hand_in_the_part_of_a_large_file_that_is_shipped(made: str, tmp_path: Path) -> None:
    parts = [os.urandom(8 << 20) for _ in range(3)]
    write(made, "share/big", b"".join(parts))
    delta, base = update(made, tmp_path, lambda: write(made, "share/big", b"".join([parts[0][::-1], *parts[1:]])))
    with open(f"{base}/share/big", "r+b") as file:
        file.write(b"by hand")
    with pytest.raises(errors.WrongBase, match="would not have that"):
        fastpack.unpack(delta, str(tmp_path / "target"), base=base)


def _to_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("elsewhere")


def _to_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "mine").write_text("mine")


def _append(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content + b"mine")


@pytest.mark.parametrize(
    ("path", "change"),
    [(f"{SITE}/tool.py", _to_link), (f"{SITE}/tool.py", _to_directory), ("share/link", _to_link),
     ("share/link", _append), ("share/same2", _append), ("share/same2", _to_link)],
)  # fmt: skip
def test_whatever_was_put_in_place_of_something_counts(
    shipped: Shipped, made: str, tmp_path: Path, path: str, change: Callable[[Path], None]
) -> None:
    same = os.urandom(5 << 10)
    write(made, "share/same1", same)
    write(made, "share/same2", same)
    os.remove(shipped.old), os.remove(shipped.delta), shutil.rmtree(shipped.base)
    write(made, f"{SITE}/tool.py", b"x = 1\n")
    fastpack.pack(prefix=made, output=shipped.old)
    fastpack.unpack(shipped.old, shipped.base)
    write(made, f"{SITE}/tool.py", b"x = 2\n")
    fastpack.pack(prefix=made, output=shipped.new, force=True)
    fastpack.make_delta(shipped.old, shipped.new, shipped.delta)
    assert os.stat(f"{shipped.base}/share/same2").st_nlink == 2
    change(Path(shipped.base, path))
    with pytest.raises(errors.WrongBase, match="changed") as raised:
        fastpack.unpack(shipped.delta, str(tmp_path / "target"), base=shipped.base)
    assert raised.value.path == f"{shipped.base}/{path}"


def test_in_place_what_was_changed_by_hand_is_replaced(shipped: Shipped) -> None:
    tool = Path(shipped.base, SITE, "tool.py")
    tool.write_bytes(b"mine\n")
    done = run_fastpack("unpack", shipped.delta, "-p", shipped.base, "--in-place", "--on-modified", "replace")
    assert done.code == 0, done.err
    assert tool.read_bytes() == b"x = 2\n" * 50
    assert Path(f"{shipped.base}.old-1", SITE, "tool.py").read_bytes() == b"mine\n"
    Path(shipped.base, "notes.txt").write_text("mine")
    done = run_fastpack("unpack", shipped.new, "-p", shipped.base, "--in-place")
    assert done.code == errors.AlreadyExists.exit_code and "notes.txt" in done.err


@pytest.mark.parametrize(
    "option", [["--verify-content"], ["--on-modified", "replace"], ["--hardlink"], ["--base", "x"]]
)
def test_options_for_deltas_are_refused_with_an_archive(shipped: Shipped, tmp_path: Path, option: list[str]) -> None:
    done = run_fastpack("unpack", shipped.new, "-p", tmp_path / "target", *option)
    assert done.code == 2 and f"{option[0]} is for a delta" in done.err and not (tmp_path / "target").exists()


@pytest.mark.parametrize(
    "make",
    [
        pytest.param("mkfs.xfs -q -m reflink=1", marks=need("mkfs.xfs", "mount")),
        pytest.param("mkfs.btrfs -q", marks=need("mkfs.btrfs", "mount")),
    ],
)
def test_reflinks(shipped: Shipped, tmp_path: Path, make: str) -> None:
    disk, mounted = tmp_path / "disk", tmp_path / "mounted"
    with disk.open("wb") as file:
        file.truncate(600 << 20)
    subprocess.run([*make.split(), disk], check=True)
    mounted.mkdir()
    if subprocess.run(["mount", "-o", "loop", disk, mounted], capture_output=True).returncode:
        pytest.skip("no loop device can be mounted here")
    try:
        base, target, wanted = (str(mounted / name) for name in ("base", "target", "wanted"))
        fastpack.unpack(shipped.old, base)
        before = tree(base)
        time.sleep(1.1)
        report = fastpack.unpack(shipped.delta, target, base=base)
        n_files = sum(file.kind == "file" for file in walk(target))
        changed = {path for path, row in tree(target).items() if row[4] != before.get(path, [None] * 5)[4]}
        assert f"{SITE}/tool.py" in changed and "share/large" not in changed
        assert n_files - report.n_shared_files < 2 * len(changed) and report.written_bytes < 4 << 20
        assert len(unshared(target, base)) == n_files, "no file is another one's name"
        assert not fastpack.verify(target).problems
        fastpack.unpack(shipped.new, wanted)
        assert_alike(tree(target), tree(wanted))
        Path(target, "share/large").write_bytes(b"other")
        assert tree(base) == before
        # Room for what is new is enough.
        os.sync()
        with open(mounted / "fill", "wb") as fill:
            os.posix_fallocate(fill.fileno(), 0, max(1, shutil.disk_usage(mounted).free - (16 << 20)))
        tight = str(mounted / "tight")
        assert fastpack.unpack(shipped.delta, tight, base=base).written_bytes < 4 << 20
        assert not fastpack.verify(tight).problems
        os.sync()  # what the file system gives back late is taken, too
        with open(mounted / "more", "wb") as fill:
            os.posix_fallocate(fill.fileno(), 0, max(1, shutil.disk_usage(mounted).free - (4 << 20)))
        with pytest.raises(errors.NoSpace):
            fastpack.unpack(shipped.new, str(mounted / "no room"))
        os.unlink(mounted / "fill")
        os.unlink(mounted / "more")
        # On another file system there is nothing to be shared: copied.
        copied = str(tmp_path / "copied")
        assert fastpack.unpack(shipped.delta, copied, base=base, hardlink=True).n_shared_files == 0
        assert not fastpack.verify(copied).problems
        large = Path(base, "share/large")
        whole = large.read_bytes()
        large.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        os.utime(large, (1, 1))
        with pytest.raises(errors.WrongBase, match="changed"):
            fastpack.unpack(shipped.delta, str(mounted / "x"), base=base)
        assert not (mounted / "x").exists()
    finally:
        subprocess.run(["umount", mounted], check=True)


# --- what Python compiles anew ---------------------------------------------------------------------------------------


def _with_more(made: str, tmp_path: Path) -> Shipped:
    """An environment, and the same with one file more."""
    old, new, delta, base = (str(tmp_path / name) for name in ("old.tar.zst", "new.tar.zst", "d.fpdelta", "base"))
    fastpack.pack(prefix=made, output=old)
    write(made, "share/more", "more")
    fastpack.pack(prefix=made, output=new)
    fastpack.make_delta(old, new, delta)
    fastpack.unpack(old, base)
    return Shipped(old, new, delta, base)


def _recompiled(cache: Path) -> None:
    for path in cache.glob("*.pyc"):
        path.write_bytes(path.read_bytes()[:-1] + b"?!")


def _same_size(cache: Path) -> None:
    for path in cache.glob("*.pyc"):
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def _one_removed(cache: Path) -> None:
    next(cache.glob("*.pyc")).unlink()


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("change", [_recompiled, _same_size, _one_removed, shutil.rmtree])
def test_what_python_compiled_anew_is_no_reason_to_refuse(
    made: str, tmp_path: Path, change: Callable[[Path], None], in_place: bool
) -> None:
    """A .pyc whose source names the prefix is stale everywhere: the first import writes it again."""
    names = ("one", "two", "three")
    dist(made, "steady", {f"{name}.py": f"x = {name!r}\n".encode() * 10 for name in names})
    for name in names:
        py_compile.compile(os.path.join(made, SITE, f"{name}.py"), dfile=f"{name}.py", doraise=True)
    _, new, delta, base = _with_more(made, tmp_path)
    cache = Path(base, SITE, "__pycache__")
    n_pycs = len(list(cache.iterdir()))
    change(cache)
    assert not fastpack.verify(base).problems
    target = base if in_place else str(tmp_path / "target")
    report = fastpack.unpack(delta, target, base=base, in_place=in_place)
    left = 1 if change is _one_removed else n_pycs
    assert [warning.message[:2] for warning in report.warnings if warning.code == "left-out-pyc"] == [f"{left} "]
    assert len(list(Path(target, SITE, "__pycache__").iterdir())) == n_pycs - left
    assert not fastpack.verify(target).problems and Path(target, "share/more").exists()
    # And the next delta.
    write(made, "share/more", "and more")
    newer, further = str(tmp_path / "newer.tar.zst"), str(tmp_path / "e.fpdelta")
    fastpack.pack(prefix=made, output=newer)
    fastpack.make_delta(new, newer, further)
    fastpack.unpack(further, str(tmp_path / "again"), base=target)
    assert Path(tmp_path, "again/share/more").read_text() == "and more"
    assert not fastpack.verify(str(tmp_path / "again")).problems


def test_another_file_among_those_is_one(made: str, tmp_path: Path) -> None:
    """Only what lies in __pycache__ is Python's own."""
    dist(made, "steady", {"alone.py": b"x = 1\n"})
    py_compile.compile(
        os.path.join(made, SITE, "alone.py"), cfile=os.path.join(made, SITE, "legacy.pyc"), dfile="alone.py"
    )
    shipped = _with_more(made, tmp_path)
    _recompiled(Path(shipped.base, SITE))
    with pytest.raises(errors.WrongBase, match="changed"):
        fastpack.unpack(shipped.delta, str(tmp_path / "target"), base=shipped.base)

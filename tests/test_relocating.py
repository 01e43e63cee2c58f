"""fastpack relocate: moved environments, files that came since, and what it refuses."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import fastpack
from fastpack import errors
from fastpack.made_prefix import install
from tests.conftest import app_package, ordinary_user
from tests.oracles.trees import snapshot
from tests.test_environment import SITE, dist, python_stub, write


@pytest.fixture
def unpacked(tmp_path: Path) -> str:
    source = str(tmp_path / "source")
    install([app_package(), python_stub()], source)
    out, target = str(tmp_path / "a.tar.zst"), str(tmp_path / "n1")
    fastpack.pack(prefix=source, output=out)
    shutil.rmtree(source)
    fastpack.unpack(out, target)
    return target


def without_state(tree: dict[str, tuple[object, ...]]) -> dict[str, tuple[object, ...]]:
    return {path: value for path, value in tree.items() if path != ".fastpack/state.json" and value[0] != "directory"}


def test_row_18_there_and_back_again(unpacked: str, tmp_path: Path) -> None:
    first = without_state(snapshot(unpacked))
    for name in ("n2 with space", "n" * 90, "环境"):
        moved = str(tmp_path / name)
        os.rename(unpacked, moved)
        report = fastpack.relocate(moved)
        assert report.n_written == 5 and not report.left and report.previous == unpacked
        assert moved.encode() in Path(moved, "lib/libapp.so").read_bytes()
        assert fastpack.relocate(moved).n_written == 0
        # Another archive of the same environment, unpacked right there, is the same.
        os.rename(moved, tmp_path / "aside")
        fastpack.unpack(str(tmp_path / "a.tar.zst"), moved)
        assert without_state(snapshot(moved)) == without_state(snapshot(str(tmp_path / "aside")))
        shutil.rmtree(moved)
        os.rename(tmp_path / "aside", unpacked)
        assert fastpack.relocate(unpacked).n_written == 5
        assert without_state(snapshot(unpacked)) == first


def test_row_18_files_that_came_since_are_recorded(unpacked: str, tmp_path: Path) -> None:
    write(unpacked, "own/notes.txt", f"{unpacked}/share and {unpacked}2\n")
    script = f"#!/bin/sh\n'''exec' \"{unpacked}/bin/python\" \"$0\" \"$@\"\n' '''\nimport sys\n".encode()
    import base64
    import hashlib

    dist(unpacked, "late", {"../../../bin/late": script})
    os.chmod(os.path.join(unpacked, "bin/late"), 0o755)
    record = Path(unpacked, SITE, "late-1.0.dist-info/RECORD")
    digest = base64.urlsafe_b64encode(hashlib.sha256(script).digest()).rstrip(b"=").decode()
    record.write_text(f"../../../bin/late,sha256={digest},{len(script)}\n")
    moved = str(tmp_path / "moved")
    os.rename(unpacked, moved)
    report = fastpack.relocate(moved)
    assert report.n_added == 3 and not report.left
    assert Path(moved, "own/notes.txt").read_text() == f"{moved}/share and {unpacked}2\n"
    placed = Path(moved, "bin/late").read_bytes()
    assert placed.startswith(b"#!" + moved.encode() + b"/bin/python\n")
    stated = base64.urlsafe_b64encode(hashlib.sha256(placed).digest()).rstrip(b"=").decode()
    assert (
        Path(moved, SITE, "late-1.0.dist-info/RECORD").read_text()
        == f"../../../bin/late,sha256={stated},{len(placed)}\n"
    )
    os.rename(moved, unpacked)
    assert fastpack.relocate(unpacked).n_added == 0
    assert Path(unpacked, "own/notes.txt").read_text() == f"{unpacked}/share and {unpacked}2\n"


def test_packed_again_after_all_that(unpacked: str, tmp_path: Path) -> None:
    write(unpacked, "own/notes.txt", f"{unpacked}/share\n")
    moved = str(tmp_path / "moved")
    os.rename(unpacked, moved)
    fastpack.relocate(moved)
    again = str(tmp_path / "again.tar.zst")
    report = fastpack.pack(prefix=moved, output=again)
    assert not report.not_relocated and report.verdicts["proven with a prefix"] == 4
    fastpack.unpack(again, unpacked)
    assert Path(unpacked, "own/notes.txt").read_text() == f"{unpacked}/share\n"
    # Packing what was unpacked gives the archive it came from, if nothing was changed.
    shutil.rmtree(unpacked)
    fastpack.unpack(str(tmp_path / "a.tar.zst"), unpacked)
    same = str(tmp_path / "same.tar.zst")
    fastpack.pack(prefix=unpacked, output=same)
    assert Path(same).read_bytes() == Path(tmp_path, "a.tar.zst").read_bytes()


def test_a_moved_environment_packs_without_relocating_it_first(unpacked: str, tmp_path: Path) -> None:
    moved = str(tmp_path / "moved")
    os.rename(unpacked, moved)
    fastpack.pack(prefix=moved, output=str(tmp_path / "same.tar.zst"))
    assert Path(tmp_path, "same.tar.zst").read_bytes() == Path(tmp_path, "a.tar.zst").read_bytes()


def test_for_an_image_root(unpacked: str) -> None:
    report = fastpack.relocate(unpacked, dest_prefix="/srv/env")
    assert report.prefix == "/srv/env"
    assert Path(unpacked, "share/app/app.conf").read_bytes() == b"home = /srv/env\r\nlib=/srv/env/lib"
    assert fastpack.relocate(unpacked).n_written == 5


def test_refusals_change_nothing(unpacked: str, tmp_path: Path) -> None:
    before = snapshot(unpacked)
    with pytest.raises(errors.PrefixTooLong):
        fastpack.relocate(unpacked, dest_prefix="/" + "x" * 255)
    with pytest.raises(errors.UsageError):
        fastpack.relocate(unpacked, dest_prefix="relative")
    assert snapshot(unpacked) == before
    other = str(tmp_path / "conda's own")
    install([app_package()], other)
    with pytest.raises(errors.NotAnEnvironment, match="pack it"):
        fastpack.relocate(other)
    with pytest.raises(errors.EnvironmentNotFound):
        fastpack.relocate(str(tmp_path / "nothing"))
    write(unpacked, ".fastpack/relocations.json", "{}")
    with pytest.raises(errors.IncompleteEnvironment):
        fastpack.relocate(unpacked)


def test_a_changed_file_is_left(unpacked: str, tmp_path: Path) -> None:
    write(unpacked, "share/app/app.conf", "mine")
    moved = str(tmp_path / "moved")
    os.rename(unpacked, moved)
    assert fastpack.relocate(moved).left == ("share/app/app.conf",)
    assert Path(moved, "share/app/app.conf").read_text() == "mine"


def test_read_only_files_and_shared_inodes(unpacked: str, tmp_path: Path) -> None:
    path = os.path.join(unpacked, "share/app/read-only.txt")
    os.link(path, tmp_path / "shared")
    moved = str(tmp_path / "moved")
    os.rename(unpacked, moved)
    fastpack.relocate(moved)
    assert (tmp_path / "shared").read_text() == f"at {unpacked}\n"
    assert Path(moved, "share/app/read-only.txt").read_text() == f"at {moved}\n"
    assert os.stat(os.path.join(moved, "share/app/read-only.txt")).st_mode & 0o777 == 0o444


def test_what_cannot_be_written_is_found_before_new_files_are_touched(unpacked: str) -> None:
    """The check came after pip's scripts had been rewritten and recorded, and said that nothing was changed."""
    command = ordinary_user()
    write(unpacked, "bin/late", f"#!/bin/sh\n'''exec' \"{unpacked}/bin/python\" \"$0\" \"$@\"\n' '''\n", 0o755)
    for folder, _, names in os.walk(unpacked):
        for name in names:
            path = os.path.join(folder, name)
            if not os.path.islink(path):
                os.chmod(path, os.stat(path).st_mode | 0o444)
    before = snapshot(unpacked)
    code = f"import sys; sys.path[:0] = {sys.path!r}; import fastpack; fastpack.relocate(sys.argv[1])"
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        place = f"{folder}/env"
        shutil.copytree(unpacked, place, symlinks=True)
        done = subprocess.run([*command, code, place], capture_output=True, text=True, cwd="/")
        assert "nothing was changed" in done.stderr, done.stderr
        assert without_state(snapshot(place)) == without_state(before)


def test_row_14_links_that_came_after_unpacking_follow(unpacked: str, tmp_path: Path) -> None:
    """They led to where the environment had been, without a word."""
    write(unpacked, "share/new/file", "new")
    os.symlink(f"{unpacked}/bin/app", f"{unpacked}/bin/absolute")
    os.symlink(f"{unpacked}/share/new/file", f"{unpacked}/share/new/beside")
    os.symlink("app", f"{unpacked}/bin/relative")
    os.symlink("/usr/bin/env", f"{unpacked}/bin/outside")
    os.symlink(f"{unpacked}2/bin/app", f"{unpacked}/bin/other")
    moved = str(tmp_path / "moved")
    os.rename(unpacked, moved)
    fastpack.relocate(moved)
    found = {name: os.readlink(f"{moved}/bin/{name}") for name in ("absolute", "relative", "outside", "other")}
    assert found == {
        "absolute": "app", "relative": "app", "outside": "/usr/bin/env", "other": f"{unpacked}2/bin/app",
    }  # fmt: skip
    assert Path(moved, "share/new/beside").read_text() == "new"
    assert os.readlink(f"{moved}/share/new/beside") == "file"
    again = str(tmp_path / "again")
    os.rename(moved, again)
    fastpack.relocate(again)
    assert os.readlink(f"{again}/bin/absolute") == "app" and not [n for n in os.listdir(f"{again}/bin") if "new-" in n]

"""Deltas: old + delta = new, byte for byte; whatever is wrong is one line, and nothing is written."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings

import fastpack
from fastpack import digest, errors
from fastpack.deltafile import _HEAD
from fastpack.made_prefix import install
from tests.conftest import app_package, run_fastpack
from tests.test_base import edit, edits
from tests.test_cli import Run
from tests.test_environment import dist, write


@pytest.fixture(params=[".tar.zst", ".tar.gz", ".tar"])
def pair(request: pytest.FixtureRequest, made: str, tmp_path: Path) -> tuple[str, str]:
    """An archive, and one after a package of pip's got another version; the rest is much larger."""
    dist(made, "large", {"large.bin": random.Random(5).randbytes(3 << 20)})
    dist(made, "tool", {"tool.py": b"x = 1\n" * 100})
    old, new = str(tmp_path / f"old{request.param}"), str(tmp_path / f"new{request.param}")
    fastpack.pack(prefix=made, output=old)
    write(made, "lib/python3.11/site-packages/tool.py", b"x = 2\n" * 100)
    info = next(Path(made).rglob("tool-*.dist-info"))
    record = (info / "RECORD").read_text()
    (info / "RECORD").write_text(record.replace("tool-1.0", "tool-2.0"))
    os.rename(info, info.with_name("tool-2.0.dist-info"))
    dist(made, "more", {"more.py": b"m = 1\n"})
    fastpack.pack(prefix=made, output=new)
    return old, new


def test_old_and_delta_make_new(pair: tuple[str, str], tmp_path: Path) -> None:
    old, new = pair
    delta, out = str(tmp_path / "d.fpdelta"), str(tmp_path / "out")
    made = fastpack.make_delta(old, new, delta)
    assert made.delta_bytes == os.stat(delta).st_size < 0.1 * os.stat(new).st_size
    assert 0 < made.n_shipped_frames < made.n_frames
    applied = fastpack.apply_delta(delta, old, out)
    assert Path(out).read_bytes() == Path(new).read_bytes()
    assert applied.archive_id == made.new_archive_id and applied.archive_bytes == os.stat(new).st_size
    fastpack.unpack(out, str(tmp_path / "target"))


def test_a_delta_to_itself_and_one_that_ships_all(pair: tuple[str, str], tmp_path: Path) -> None:
    old, new = pair
    delta, out = str(tmp_path / "d.fpdelta"), str(tmp_path / "out")
    assert fastpack.make_delta(old, old, delta).n_shipped_frames == 0
    fastpack.apply_delta(delta, old, out)
    assert Path(out).read_bytes() == Path(old).read_bytes()
    assert fastpack.diff(old, old).same
    other = str(tmp_path / "level9.tar.zst")
    if new.endswith(".zst"):
        fastpack.pack(prefix=str(tmp_path / "made env"), output=other, compress_level=9)
        fastpack.make_delta(old, other, delta, force=True)
        fastpack.apply_delta(delta, old, out, force=True)
        assert Path(out).read_bytes() == Path(other).read_bytes()


def test_diff_names_what_changed(pair: tuple[str, str], tmp_path: Path) -> None:
    old, new = pair
    report = fastpack.diff(old, new)
    assert report.packages == {
        "added": ({"kind": "pip", "name": "more", "new": "1.0"},), "removed": (),
        "changed": ({"kind": "pip", "name": "tool", "old": "1.0", "new": "2.0"},),
    }  # fmt: skip
    # tool.py; the folders of tool and more; nothing else but what fastpack says of them.
    assert report.files["changed"] >= 1 and report.files["added"] >= 5 and report.files["removed"] >= 2
    assert "conda app" in report.groups["unchanged"] and "pip more" in report.groups["new"] and not report.same
    back = fastpack.diff(new, old)
    assert [row["name"] for row in back.packages["removed"]] == ["more"] and back.files["removed"] >= 2
    delta = fastpack.make_delta(old, new, str(tmp_path / "d"))
    assert 0 <= delta.delta_bytes - report.shipped_bytes < 1000


def test_what_archives_share(fastpack: Run, pair: tuple[str, str]) -> None:
    old, new = pair
    done = fastpack("diff", "--shared", old, new, old, "--json")
    assert done.code == 0
    rows = done.json["result"]["shared_bytes"]
    assert rows[0] == rows[2] and rows[0][0] == rows[0][2] > rows[0][1] > 0.9 * rows[0][0]
    assert rows[0][1] == rows[1][0] and rows[1][1] > rows[1][0]
    assert len(fastpack("diff", "--shared", old, new).out.splitlines()) == 2
    assert fastpack("diff", old).code == 2 == fastpack("diff", old, new, old).code


@settings(deadline=None, max_examples=15)
@given(edits)
def test_any_edits_come_through_a_delta(tmp_path_factory: pytest.TempPathFactory, todo: list[tuple[str, int]]) -> None:
    folder = tmp_path_factory.mktemp("delta")
    made = str(folder / "made")
    os.mkdir(made)
    install([app_package()], made)
    dist(made, "tool", {"tool.py": b"x = 1\n"})
    old, new, delta, out = (str(folder / name) for name in ("old.tar.zst", "new.tar.zst", "delta", "out"))
    fastpack.pack(prefix=made, output=old, n_threads=1)
    for what, number in todo:
        edit(made, what, number)
    fastpack.pack(prefix=made, output=new, n_threads=1, ignore_missing_files=True)
    fastpack.make_delta(old, new, delta)
    fastpack.apply_delta(delta, old, out)
    assert Path(out).read_bytes() == Path(new).read_bytes()
    shutil.rmtree(folder)


def refused(delta: str, base: str, tmp_path: Path) -> errors.FastpackError:
    out = str(tmp_path / "refused")
    with pytest.raises(errors.FastpackError) as error:
        fastpack.apply_delta(delta, base, out)
    assert not os.path.lexists(out) and not [name for name in os.listdir(tmp_path) if "partial" in name]
    assert "\n" not in str(error.value)
    return error.value


def test_the_wrong_base_is_refused(pair: tuple[str, str], tmp_path: Path) -> None:
    old, new = pair
    delta = str(tmp_path / "d.fpdelta")
    fastpack.make_delta(old, new, delta)
    found = refused(delta, new, tmp_path)
    assert isinstance(found, errors.WrongBase) and found.exit_code == 33


def test_a_delta_that_is_damaged_anywhere_is_refused(pair: tuple[str, str], tmp_path: Path) -> None:
    """Every byte is held against something; a cut at any place is found."""
    old, new = pair
    delta, bad = tmp_path / "d.fpdelta", tmp_path / "bad.fpdelta"
    fastpack.make_delta(old, new, str(delta))
    good = delta.read_bytes()
    rng = random.Random(9)
    for place in {*range(0, _HEAD.size, 7), *(rng.randrange(len(good)) for _ in range(25)), len(good) - 1}:
        data = bytearray(good)
        data[place] ^= 1 << rng.randrange(8)
        bad.write_bytes(data)
        refused(str(bad), old, tmp_path)
    for length in {0, 1, _HEAD.size, len(good) // 2, len(good) - 1}:
        bad.write_bytes(good[:length])
        assert isinstance(refused(str(bad), old, tmp_path), errors.DamagedArchive)
    bad.write_bytes(good + b"x")
    refused(str(bad), old, tmp_path)
    refused(old, old, tmp_path)
    refused(str(tmp_path / "nothing"), old, tmp_path)


def test_a_base_that_was_tampered_with_is_refused(pair: tuple[str, str], tmp_path: Path) -> None:
    old, new = pair
    delta = str(tmp_path / "d.fpdelta")
    fastpack.make_delta(old, new, delta)
    data = bytearray(Path(old).read_bytes())
    data[1 << 20] ^= 1  # in the large file, which is the same in both
    Path(old).write_bytes(data)
    assert isinstance(refused(delta, old, tmp_path), errors.DamagedArchive)


def forged(delta: str, out: Path, **changes: object) -> str:
    """A delta with another table, whose digest is right."""
    data = Path(delta).read_bytes()
    magic, version, length, _ = _HEAD.unpack(data[: _HEAD.size])
    table = {**json.loads(data[_HEAD.size : _HEAD.size + length]), **changes}
    text = json.dumps(table).encode()
    out.write_bytes(_HEAD.pack(magic, version, len(text), digest.blake(text)) + text + data[_HEAD.size + length :])
    return str(out)


def test_a_table_that_lies_is_refused(pair: tuple[str, str], tmp_path: Path) -> None:
    old, new = pair
    delta, bad = str(tmp_path / "d.fpdelta"), tmp_path / "bad.fpdelta"
    fastpack.make_delta(old, new, delta)
    for changes in (
        {"new": "00" * 32}, {"codec": "tar.xz"}, {"shipped": []}, {"shipped": [0]}, {"shipped": ["x"]}, {"shipped": None},
        {"manifest": [0, 1, 2]}, {"manifest": [0, 1, 1 << 40]}, {"manifest": [-5, 10, 10]}, {"manifest": "x"},
        {"tail": [1, "00"]}, {"tail": [1 << 50, "00"]}, {"tail": [-1, "00"]}, {"tail": 7},
    ):  # fmt: skip
        refused(forged(delta, bad, **changes), old, tmp_path)
    with open(delta, "r+b") as file:
        file.seek(8)
        file.write(b"\x09")
    assert isinstance(refused(delta, old, tmp_path), errors.NewerFormat)


def test_an_output_that_is_there_is_kept(pair: tuple[str, str], tmp_path: Path) -> None:
    old, new = pair
    delta, out = tmp_path / "d.fpdelta", tmp_path / "out"
    delta.write_bytes(b"mine")
    with pytest.raises(errors.AlreadyExists):
        fastpack.make_delta(old, new, str(delta))
    assert delta.read_bytes() == b"mine"
    fastpack.make_delta(old, new, str(delta), force=True)
    out.write_bytes(b"mine")
    with pytest.raises(errors.AlreadyExists):
        fastpack.apply_delta(str(delta), old, str(out))
    assert out.read_bytes() == b"mine"


def test_the_commands(fastpack: Run, pair: tuple[str, str], tmp_path: Path) -> None:
    old, new = pair
    delta, out = str(tmp_path / "d.fpdelta"), str(tmp_path / "out")
    done = fastpack("diff", old, new)
    assert done.code == 0 and "~ pip tool 1.0 -> 2.0" in done.out and "+ pip more 1.0" in done.out
    assert fastpack("delta", old, new, "-o", delta, "--json").json["result"]["n_shipped_frames"] > 0
    assert fastpack("apply", delta, "--base", old, "-o", out).code == 0
    assert Path(out).read_bytes() == Path(new).read_bytes()
    done = fastpack("apply", delta, "--base", new, "-o", out, "--force", "--json")
    assert done.code == 33 and done.json["error"]["class"] == "WrongBase"
    assert Path(out).read_bytes() == Path(new).read_bytes(), "what was there is gone"


# --- an environment beside an archive


def test_diff_with_an_environment(made: str, tmp_path: Path) -> None:
    dist(made, "tool", {"tool.py": b"x = 1\n" * 100})
    old, new = str(tmp_path / "old.tar.zst"), str(tmp_path / "new.tar.zst")
    options = {"arcroot": "env", "compress_level": 7, "pad": ["*.so=slash"]}
    fastpack.pack(prefix=made, output=old, **options)
    same = fastpack.diff(old, made)
    assert same.same and same.n_shipped_frames == 0 and same.files["changed"] == 0
    write(made, "lib/python3.11/site-packages/tool.py", b"x = 2\n" * 100)
    dist(made, "more", {"more.py": b"m = 1\n"})
    there = sorted(os.listdir(tmp_path))
    found = fastpack.diff(old, made)
    assert sorted(os.listdir(tmp_path)) == there, "nothing is written"
    fastpack.pack(prefix=made, output=new, **options)
    wanted = fastpack.diff(old, new)
    assert {**found.as_dict(), "new": new} == wanted.as_dict() and not found.same
    assert [row["name"] for row in found.packages["added"]] == ["more"]
    back = fastpack.diff(made, old)
    assert {**back.as_dict(), "old": new} == fastpack.diff(new, old).as_dict()
    assert [row["name"] for row in back.packages["removed"]] == ["more"]
    done = run_fastpack("diff", old, made)
    assert done.code == 0 and "+ pip more" in done.out
    done = run_fastpack("diff", made, made)
    assert done.code == 2 and "neither is an archive" in done.err
    done = run_fastpack("diff", old, tmp_path)
    assert done.code == 11 and "conda-meta" in done.err

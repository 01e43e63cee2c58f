"""Packing over an earlier archive: the same bytes as without it, whatever the base is; what it saved is told."""

from __future__ import annotations

import dataclasses
import errno
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastpack
from fastpack import digest, direct, errors, pagecache
from fastpack.base import compare
from fastpack.made_prefix import install
from fastpack.manifest import Manifest
from fastpack.model import Group, GroupKind
from tests.conftest import app_package
from tests.forging import rebuilt
from tests.test_cli import Run
from tests.test_environment import dist, write
from tests.test_packing import manifest_of


def frames_of(archive: str) -> list[bytes]:
    return [frame.packed_digest for frame in manifest_of(archive).frames]


@pytest.fixture
def twice(made: str, tmp_path: Path) -> tuple[str, str]:
    """An environment with a conda package, two of pip's and loose files, and an archive of it."""
    dist(made, "tool", {"tool.py": b"x = 1\n" * 100})
    dist(made, "other", {"other.py": b"y = 2\n" * 100})
    write(made, "share/loose", random.Random(5).randbytes(3 << 20))
    out = str(tmp_path / "old.tar.zst")
    fastpack.pack(prefix=made, output=out)
    return made, out


def test_nothing_changed_and_nothing_is_compressed(twice: tuple[str, str], tmp_path: Path) -> None:
    made, old = twice
    out = str(tmp_path / "new.tar.zst")
    report = fastpack.pack(prefix=made, output=out, base=old)
    assert Path(out).read_bytes() == Path(old).read_bytes() and report.base == old
    assert report.work["compressed"] == 0 and report.work["reused"] >= report.work["hashed"] > 3 << 20
    assert report.work["copied"] == sum(frame.packed_bytes for frame in manifest_of(old).frames)
    assert not report.groups["changed"] and not report.groups["new"] and not report.groups["gone"]
    assert {"conda app", "pip tool", "pip other", "rest"} <= set(report.groups["unchanged"])


def test_a_change_in_one_group_leaves_the_others(twice: tuple[str, str], tmp_path: Path) -> None:
    made, old = twice
    write(made, "lib/python3.11/site-packages/tool.py", b"x = 3\n")
    shutil.rmtree(next(Path(made).rglob("other-*.dist-info")))
    dist(made, "third", {"third.py": b"z = 1\n"})
    out, fresh = str(tmp_path / "new.tar.zst"), str(tmp_path / "fresh.tar.zst")
    report = fastpack.pack(prefix=made, output=out, base=old)
    fastpack.pack(prefix=made, output=fresh)
    assert Path(out).read_bytes() == Path(fresh).read_bytes()
    assert "pip tool" in report.groups["changed"] and "conda app" in report.groups["unchanged"]
    assert report.groups["new"] == ("pip third",) and report.groups["gone"] == ("pip other",)
    assert 0 < report.work["compressed"] < report.work["hashed"]


#: Edits to an environment; the number says which file, or what is written.
edits = st.lists(
    st.tuples(st.sampled_from(["change", "add", "remove", "chmod", "touch", "rename", "link"]), st.integers(0, 40)),
    min_size=1, max_size=6,
)  # fmt: skip


def edit(prefix: str, what: str, number: int) -> None:
    files = sorted(
        os.path.join(folder, name)
        for folder, _, names in os.walk(prefix)
        for name in names
        if "conda-meta" not in folder and not os.path.islink(os.path.join(folder, name))
    )
    path = files[number % len(files)]
    if what == "change":
        with open(path, "ab") as file:
            file.write(b"%d" % number)
    elif what == "add":
        write(prefix, f"share/added-{number}", b"added %d" % number)
    elif what == "remove":
        os.unlink(path)
    elif what == "chmod":
        os.chmod(path, 0o755 if number % 2 else 0o600)
    elif what == "touch":
        os.utime(path, (number, number))
    elif what == "rename":
        os.rename(path, f"{path}.renamed")
    else:
        link = os.path.join(prefix, "share/app/link")
        if os.path.lexists(link):
            os.unlink(link)
        os.symlink(f"plain-{number}", link)


@settings(deadline=None, max_examples=25)
@given(edits, st.booleans())
def test_any_base_gives_what_none_gives(
    tmp_path_factory: pytest.TempPathFactory, todo: list[tuple[str, int]], over: bool
) -> None:
    folder = tmp_path_factory.mktemp("base")
    made = str(folder / "made")
    os.mkdir(made)
    install([app_package()], made)
    dist(made, "tool", {"tool.py": b"x = 1\n"})
    write(made, "share/loose", random.Random(6).randbytes(1 << 16))
    old, fresh = str(folder / "old.tar.zst"), str(folder / "fresh.tar.zst")
    fastpack.pack(prefix=made, output=old)
    for what, number in todo:
        edit(made, what, number)
    kept = {"ignore_missing_files": True, "n_threads": 1}
    fastpack.pack(prefix=made, output=fresh, **kept)
    out = old if over else str(folder / "new.tar.zst")
    report = fastpack.pack(prefix=made, output=out, force=over, base=None if over else old, **kept)
    assert Path(out).read_bytes() == Path(fresh).read_bytes() and report.base == old
    shutil.rmtree(folder)


def test_a_rotten_frame_is_found_and_compressed_anew(twice: tuple[str, str], tmp_path: Path) -> None:
    made, old = twice
    good = Path(old).read_bytes()
    frame = max(manifest_of(old).frames, key=lambda frame: frame.packed_bytes)
    data = bytearray(good)
    data[frame.offset + frame.packed_bytes // 2] ^= 1
    Path(old).write_bytes(data)
    out = str(tmp_path / "new.tar.zst")
    report = fastpack.pack(prefix=made, output=out, base=old)
    assert Path(out).read_bytes() == good
    assert [warning.code for warning in report.warnings] == ["rotten-base"]
    assert report.work["compressed"] == frame.plain_bytes


def test_a_forged_base_does_not_get_its_bytes_unpacked(twice: tuple[str, str], tmp_path: Path) -> None:
    """A frame that bears another one's digest is copied, as nothing of it is decompressed; unpacking refuses it."""
    made, old = twice
    forged = str(tmp_path / "forged.tar.zst")

    def change(manifest: Manifest, plains: list[bytes]) -> Manifest:
        index = max(range(len(plains)), key=lambda k: len(plains[k]))
        plains[index] = plains[index].replace(plains[index][-2000:-1000], bytes(1000))
        return manifest

    rebuilt(old, forged, change)
    data = bytearray(Path(forged).read_bytes())
    manifest = manifest_of(forged)
    found = [
        dataclasses.replace(frame, packed_digest=digest.blake(bytes(data[frame.offset :][: frame.packed_bytes])))
        for frame in manifest.frames
    ]
    rebuilt(old, forged, lambda m, plains: change(dataclasses.replace(m, frames=tuple(found)), plains))
    out = str(tmp_path / "new.tar.zst")
    report = fastpack.pack(prefix=made, output=out, base=forged)
    assert report.base == forged and report.work["compressed"] == 0
    with pytest.raises(errors.DamagedArchive):
        fastpack.unpack(out, str(tmp_path / "target"))
    assert not os.path.lexists(tmp_path / "target")


@pytest.mark.parametrize("changes", [{"compress_level": 9}, {"compress_level": 3}])
def test_a_base_of_another_level_is_not_mixed_in(
    twice: tuple[str, str], tmp_path: Path, changes: dict[str, int]
) -> None:
    made, old = twice
    out, fresh = str(tmp_path / "new.tar.zst"), str(tmp_path / "fresh.tar.zst")
    report = fastpack.pack(prefix=made, output=out, base=old, **changes)  # type: ignore[arg-type]
    fastpack.pack(prefix=made, output=fresh, **changes)  # type: ignore[arg-type]
    assert Path(out).read_bytes() == Path(fresh).read_bytes()
    assert [warning.code for warning in report.warnings] == ["base-unused"] and "level" in report.warnings[0].message
    assert report.base is None and report.work["reused"] == 0


def test_a_base_of_other_libraries_or_another_format_is_not_mixed_in(
    twice: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, old = twice
    report = fastpack.pack(prefix=made, output=str(tmp_path / "a.tar.gz"), base=old)
    assert report.work["reused"] == 0 and "format" in report.warnings[0].message
    monkeypatch.setattr("fastpack.codec.Zstd.versions", lambda self: {"zstd": "99.9"})
    report = fastpack.pack(prefix=made, output=str(tmp_path / "b.tar.zst"), base=old)
    assert report.work["reused"] == 0 and "libraries" in report.warnings[0].message


def test_reuse_any_mixes_and_says_so(twice: tuple[str, str], tmp_path: Path) -> None:
    made, old = twice
    report = fastpack.pack(prefix=made, output=str(tmp_path / "a.tar.zst"), base=old, compress_level=9, reuse_any=True)
    assert report.work["compressed"] == 0 and [warning.code for warning in report.warnings] == ["base-other"]
    fastpack.unpack(report.output, str(tmp_path / "target"))
    report = fastpack.pack(prefix=made, output=str(tmp_path / "a.tar.gz"), base=old, reuse_any=True)
    assert report.work["reused"] == 0, "frames of another format make no archive"


def test_a_base_id_refuses_any_other(twice: tuple[str, str], tmp_path: Path) -> None:
    made, old = twice
    known = fastpack.inspect(old).archive_id
    out = tmp_path / "new.tar.zst"
    assert fastpack.pack(prefix=made, output=str(out), base=old, base_id=known).work["compressed"] == 0
    before = out.read_bytes()
    for options in ({"base": old, "base_id": "00" * 32}, {"base_id": "00" * 32}):
        with pytest.raises(errors.WrongBase):
            fastpack.pack(prefix=made, output=str(out), force=True, **options)  # type: ignore[arg-type]
    assert out.read_bytes() == before
    with pytest.raises(errors.WrongBase):
        fastpack.pack(prefix=made, output=str(tmp_path / "other.tar.zst"), base_id=known)
    assert not (tmp_path / "other.tar.zst").exists()


@pytest.mark.parametrize("suffix", [".tar.gz", ".tar"])
def test_other_formats_have_bases_too(made: str, tmp_path: Path, suffix: str) -> None:
    out = str(tmp_path / f"a{suffix}")
    fastpack.pack(prefix=made, output=out)
    first = Path(out).read_bytes()
    report = fastpack.pack(prefix=made, output=out, force=True)
    assert Path(out).read_bytes() == first and report.work["compressed"] == 0


def test_what_is_replaced_need_not_be_an_archive_but_a_named_base_must(made: str, tmp_path: Path) -> None:
    out, fresh = tmp_path / "a.tar.zst", str(tmp_path / "fresh.tar.zst")
    fastpack.pack(prefix=made, output=fresh)
    good = Path(fresh).read_bytes()
    for there in (b"", b"something else", good[:-40], good[: len(good) // 2]):
        out.write_bytes(there)
        report = fastpack.pack(prefix=made, output=str(out), force=True)
        assert out.read_bytes() == good and report.base is None and not report.warnings
        out.write_bytes(there)
        with pytest.raises(errors.DamagedArchive):
            fastpack.pack(prefix=made, output=str(tmp_path / "new.tar.zst"), base=str(out))
        assert not (tmp_path / "new.tar.zst").exists()
    with pytest.raises(errors.DamagedArchive, match="cannot be opened"):
        fastpack.pack(prefix=made, output=str(tmp_path / "new.tar.zst"), base=str(tmp_path / "nothing"))


def test_the_command_tells_what_it_saved(fastpack: Run, made: str, tmp_path: Path) -> None:
    out = str(tmp_path / "a.tar.zst")
    assert fastpack("pack", "-p", made, "-o", out).code == 0
    done = fastpack("pack", "-p", made, "-o", out, "--force")
    assert done.code == 0 and "unchanged" in done.err
    done = fastpack("pack", "-p", made, "-o", str(tmp_path / "b.tar.zst"), "--base", out, "--json")
    assert done.json["result"]["base"] == out and done.json["result"]["work"]["compressed"] == 0


def test_groups_are_compared_by_kind_and_name() -> None:
    one, two = Group(GroupKind.CONDA, "one", "1"), Group(GroupKind.CONDA, "one", "2")
    pip = Group(GroupKind.PIP, "one", "1")
    assert compare({one: [b"a"]}, {two: [b"b"], pip: [b"a"]}) == {
        "unchanged": (), "changed": ("conda one",), "new": ("pip one",), "gone": (),
    }  # fmt: skip
    assert compare({one: [b"a", b"b"]}, {one: [b"b", b"a"]})["changed"] == ("conda one",)
    assert compare({one: [b"a"], pip: [b"x"]}, {one: [b"a"]})["gone"] == ("pip one",)


# --- --trust-base


def test_a_trusted_base_is_copied_unread(made: str, tmp_path: Path) -> None:
    """The same bytes, in one go; what is rotten is copied as it is, and found by verify."""
    Path(made, "big").write_bytes(random.Random(7).randbytes(30 << 20))
    out, again = tmp_path / "a.tar.zst", tmp_path / "b.tar.zst"
    fastpack.pack(prefix=made, output=str(out))
    report = fastpack.pack(prefix=made, output=str(again), base=str(out), trust_base=True)
    assert again.read_bytes() == out.read_bytes() and report.work["compressed"] < 1 << 20
    # A frame before the others changes: the rest lies at other offsets, of any alignment.
    for n_bytes in (1, 3000, 100_000):
        Path(made, "share/app/plain.txt").write_bytes(random.Random(n_bytes).randbytes(n_bytes))
        fastpack.pack(prefix=made, output=str(tmp_path / "c.tar.zst"), base=str(out), trust_base=True, force=True,
                      on_modified="ignore")  # fmt: skip
        fastpack.pack(prefix=made, output=str(tmp_path / "d.tar.zst"), force=True, on_modified="ignore")
        assert (tmp_path / "c.tar.zst").read_bytes() == (tmp_path / "d.tar.zst").read_bytes()
    # To a pipe, and over itself.
    done = subprocess.run(
        [sys.executable, "-m", "fastpack.cli", "pack", "-p", made, "-o", "-", "--base", str(tmp_path / "d.tar.zst"),
         "--trust-base", "--on-modified", "ignore", "-q"], capture_output=True,
    )  # fmt: skip
    assert done.stdout == (tmp_path / "d.tar.zst").read_bytes(), done.stderr
    fastpack.pack(prefix=made, output=str(tmp_path / "d.tar.zst"), force=True, trust_base=True, on_modified="ignore")
    assert done.stdout == (tmp_path / "d.tar.zst").read_bytes()
    data = bytearray(out.read_bytes())
    data[len(data) // 2] ^= 1
    out.write_bytes(data)
    rotten = fastpack.pack(prefix=made, output=str(again), base=str(out), trust_base=True, force=True,
                           on_modified="ignore")  # fmt: skip
    assert not [w for w in rotten.warnings if w.code == "rotten-base"]
    assert fastpack.verify(str(again)).problems
    careful = fastpack.pack(prefix=made, output=str(again), base=str(out), force=True, on_modified="ignore")
    assert [w for w in careful.warnings if w.code == "rotten-base"] and not fastpack.verify(str(again)).problems


@pytest.mark.parametrize("how", ["kernel", "no copy_file_range"])
def test_pieces_are_copied_whatever_their_alignment(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if how != "kernel":

        def refuse(*arguments: object) -> int:
            raise OSError(errno.EXDEV, "another file system")

        monkeypatch.setattr(os, "copy_file_range", refuse)
    content = random.Random(3).randbytes(5 << 20)
    (tmp_path / "source").write_bytes(content)
    with open(tmp_path / "source", "rb") as source, open(tmp_path / "target", "w+b") as target:
        for offset, n_bytes, at in ((0, 5 << 20, 0), (4096, 1 << 20, 8192), (5000, 3 << 20, 904), (7, 20000, 7),
                                    (1, 2, 4095), (8191, 1, 0), (0, 0, 0)):  # fmt: skip
            target.truncate(0)
            direct.Writer().copy(target.fileno(), pagecache.Piece(source.fileno(), offset, n_bytes), at)
            assert os.pread(target.fileno(), n_bytes + 1, at) == content[offset : offset + n_bytes]
        with pytest.raises(OSError, match="shorter"):
            direct.Writer().copy(target.fileno(), pagecache.Piece(source.fileno(), 5 << 20, 1), 0)

"""Archives: members, order, modes, times, frames, hard links, reproducibility, and refusals that leave nothing behind."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest
import zstandard

import fastpack
from fastpack import errors, frames
from fastpack._place_py import content_mtime
from fastpack.building import content_mtimes
from fastpack.frames import read_manifest, read_seek_table
from fastpack.made_prefix import MadeFile, MadePackage, install
from fastpack.manifest import Manifest
from fastpack.model import GROUP_ORDER, PLACEHOLDER, Kind
from tests.conftest import P, app_package, c_string, run_fastpack
from tests.oracles.trees import snapshot
from tests.test_environment import SITE, dist, python_stub, write


def manifest_of(archive: str) -> Manifest:
    with open(archive, "rb") as file:
        found = read_manifest(file.fileno(), archive)
    assert found is not None
    return found[2]


def members(archive: str) -> dict[str, tarfile.TarInfo]:
    with open(archive, "rb") as file:
        reader = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
        with tarfile.open(fileobj=reader, mode="r|", encoding="utf-8", errors="surrogateescape") as tar:
            return {info.name: info for info in tar}


def read_member(archive: str, path: str) -> bytes:
    with open(archive, "rb") as file:
        reader = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
        with tarfile.open(fileobj=reader, mode="r|") as tar:
            for info in tar:
                if info.name == path:
                    source = tar.extractfile(info)
                    assert source is not None
                    return source.read()
    raise KeyError(path)


def test_members_and_their_order(made: str, tmp_path: Path) -> None:
    dist(made, "tool", {"tool.py": b""})
    write(made, "loose/file", "x")
    out = str(tmp_path / "a.tar.zst")
    fastpack.pack(prefix=made, output=out)
    names = list(members(out))
    assert names[0] == ".fastpack/pack.json" and names[-2:] == [".fastpack/relocations.json", ".fastpack/manifest"]
    found = members(out)
    kinds = [found[name].isdir() for name in names[1:]]
    assert kinds == sorted(kinds, reverse=True), "all directories come first"
    manifest = manifest_of(out)
    rows = [m for m in manifest.members if m.kind is not Kind.DIRECTORY][1:-1]
    keys = [(GROUP_ORDER[manifest.groups[m.group].kind], manifest.groups[m.group].name, m.path.endswith(".pyc"),
             os.fsencode(m.path)) for m in rows]  # fmt: skip
    assert keys == sorted(keys)
    for info in found.values():
        assert (info.uid, info.gid, info.uname, info.gname) == (0, 0, "", "") and not info.pax_headers
        assert info.mtime % 2 == 0 and 946684800 <= info.mtime < 1577836800


def test_pack_json_comes_first_and_says_what_a_pipe_must_know(made: str, tmp_path: Path) -> None:
    out = str(tmp_path / "a.tar.zst")
    fastpack.pack(prefix=made, output=out)
    head = json.loads(read_member(out, ".fastpack/pack.json"))
    assert head["format"] == 0 and head["longest_prefix"] == 255
    assert head["requires"] == {"platform": os.uname().sysname, "arch": os.uname().machine}
    assert [p["name"] for p in head["packages"]] == ["app"]
    relocations = json.loads(read_member(out, ".fastpack/relocations.json"))
    assert {row["path"] for row in relocations["files"]} == {
        "bin/app", "lib/libapp.so", "share/app/app.conf", "share/app/read-only.txt", "conda-meta/app-1.0-0.json",
    }  # fmt: skip
    assert all(len(placeholder) == 255 for placeholder in relocations["placeholders"])


def test_no_byte_of_the_source_prefix_is_in_the_archive(made: str, tmp_path: Path) -> None:
    out = str(tmp_path / "a.tar")
    fastpack.pack(prefix=made, output=out)
    with open(out, "rb") as file:
        assert os.fsencode(made) not in file.read()


def test_modes_are_not_the_umasks(made: str, tmp_path: Path) -> None:
    for path, mode in {"a": 0o664, "b": 0o775, "c": 0o600, "d": 0o555, "e": 0o4755, "f": 0o644, "g": 0o700}.items():
        write(made, path, path, mode)
    os.chmod(os.path.join(made, "conda-meta/app-1.0-0.json"), 0o600)
    os.makedirs(os.path.join(made, "strict/below"))
    os.chmod(os.path.join(made, "strict"), 0o555)
    out = str(tmp_path / "a.tar.zst")
    report = fastpack.pack(prefix=made, output=out)
    os.chmod(os.path.join(made, "strict"), 0o755)
    modes = {name: info.mode for name, info in members(out).items()}
    assert [modes[name] for name in "abcdefg"] == [0o644, 0o755, 0o600, 0o555, 0o755, 0o644, 0o700]
    assert modes["conda-meta/app-1.0-0.json"] == 0o644
    assert modes["strict"] == 0o755 and {m.path: m.final_mode for m in manifest_of(out).members}["strict"] == 0o555
    assert "special-modes" in {warning.code for warning in report.warnings}


def test_a_private_umask_is_not_taken_for_private_files(tmp_path: Path) -> None:
    archives = []
    for name, umask in (("open", 0o022), ("closed", 0o077)):
        before = os.umask(umask)
        try:
            prefix = str(tmp_path / name)
            install([app_package()], prefix)
            write(prefix, "own", "x", 0o666 & ~umask)
            for folder, folders, files in os.walk(prefix):
                for entry in files:
                    full = os.path.join(folder, entry)
                    if not os.path.islink(full) and entry != "private.txt":
                        os.chmod(full, os.stat(full).st_mode & ~umask & 0o7777)
        finally:
            os.umask(before)
        os.unlink(os.path.join(prefix, "share/app/private.txt"))
        out = str(tmp_path / f"{name}.tar.zst")
        fastpack.pack(prefix=prefix, output=out, ignore_missing_files=True)
        archives.append(Path(out).read_bytes())
    assert archives[0] == archives[1]


def test_times_come_from_the_content(made: str, tmp_path: Path) -> None:
    write(made, "one", "same")
    write(made, "two", "same")
    write(made, "three", "other")
    times = []
    for k in range(2):
        out = str(tmp_path / f"{k}.tar.zst")
        fastpack.pack(prefix=made, output=out)
        times.append({name: info.mtime for name, info in members(out).items()})
        os.utime(os.path.join(made, "one"))
    assert times[0] == times[1]
    assert times[0]["one"] == times[0]["two"] != times[0]["three"]
    assert times[0]["share/app/link"] == times[0]["share"] == 946684800


def test_the_same_bytes_whatever_the_threads_the_day_and_the_place(tmp_path: Path) -> None:
    archives = set()
    for k, name in enumerate(("one", "the other place 环")):
        prefix = str(tmp_path / name)
        install(
            [app_package(), MadePackage("big", files={"lib/big": MadeFile(os.urandom(0) + bytes(range(256)) * 90000)})],
            prefix,
        )
        write(prefix, "own.txt", f"{prefix}/x\n")
        write(prefix, "bin/own", f"#!{prefix}/bin/python\n", 0o755)
        for threads in (1, 2, 5):
            out = str(tmp_path / f"{k}-{threads}.tar.zst")
            fastpack.pack(prefix=prefix, output=out, n_threads=threads)
            archives.add(Path(out).read_bytes())
        for folder, _, files in os.walk(prefix):
            for file in files:
                os.utime(os.path.join(folder, file), (k, k), follow_symlinks=False)
        out = str(tmp_path / f"{k}-later.tar.zst")
        fastpack.pack(prefix=prefix, output=out)
        archives.add(Path(out).read_bytes())
    assert len(archives) == 1


def test_frames_end_at_group_and_class_boundaries(made: str, tmp_path: Path) -> None:
    dist(made, "tool", {"tool.py": b"x = 1\n"})
    from tests.test_examine import compiled

    compiled(made, f"{SITE}/tool.py")
    out = str(tmp_path / "a.tar.zst")
    fastpack.pack(prefix=made, output=out)
    manifest = manifest_of(out)
    from fastpack.layout import lay_out

    for segments in lay_out(manifest):
        groups = {manifest.members[s.member].group for s in segments}
        classes = {manifest.members[s.member].path.endswith(".pyc") for s in segments}
        assert len(groups) == len(classes) == 1
    with open(out, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        table = read_seek_table(file.fileno(), size)
    assert table is not None
    assert [(f.packed_bytes, f.plain_bytes) for f in manifest.frames] == table[: len(manifest.frames)]
    assert sum(packed for packed, _ in table) == size - 8 * len(table) - 17
    assert table[-1][1] == 0, "the locator has an entry too"
    data = Path(out).read_bytes()
    assert struct.unpack_from("<I", data)[0] == zstandard.MAGIC_NUMBER != 0x184D2A5D, "never a skippable frame first"


def test_a_big_file_spans_frames_that_no_string_crosses(tmp_path: Path) -> None:
    frame = 8 << 20
    data = bytearray(os.urandom(64) * ((20 << 20) // 64)).replace(b"/", b"x").replace(b"\0", b"y")
    for boundary in (4 << 20, frame, 2 * frame):
        string = b"\0" + c_string(b"", b"/a:", b"/b") + b"\0"
        data[boundary - 300 : boundary - 300 + len(string)] = string
    data[frame + 5000 : frame + 5000 + (1 << 20)] = b"z" * (1 << 20)  # a region without a NUL
    source, wanted = str(tmp_path / "source"), str(tmp_path / "target")
    package = MadePackage("big", files={"lib/big.so": MadeFile(bytes(data), file_mode="binary")})
    install([package], source)
    install([package], wanted)
    reference = Path(wanted, "lib/big.so").read_bytes()
    shutil.rmtree(wanted)
    out = str(tmp_path / "a.tar.zst")
    report = fastpack.pack(prefix=source, output=out)
    assert report.verdicts["proven with a prefix"] == 1
    assert len(manifest_of(out).frames) >= 3
    fastpack.unpack(out, wanted)
    assert Path(wanted, "lib/big.so").read_bytes() == reference
    shutil.rmtree(wanted)
    with open(out, "rb") as stream:
        from tests.conftest import run_fastpack

        assert run_fastpack("unpack", "-", "-p", wanted, stdin=stream).code == 0
    assert Path(wanted, "lib/big.so").read_bytes() == reference


def test_identical_files_of_a_group_become_hard_links(tmp_path: Path) -> None:
    prefix = str(tmp_path / "env")
    same, small = bytes(range(256)) * 20, b"x" * 4096
    files = {
        "a/one": MadeFile(same), "b/two": MadeFile(same), "c/exec": MadeFile(same, 0o755), "d/small": MadeFile(small),
        "d/small2": MadeFile(small), "e/text": MadeFile(P + same, file_mode="text"),
        "e/text2": MadeFile(P + same, file_mode="text"),
    }  # fmt: skip
    install([MadePackage("one", files=files), MadePackage("two", files={"z/other": MadeFile(same)})], prefix)
    out, target = str(tmp_path / "a.tar.zst"), str(tmp_path / "unpacked")
    report = fastpack.pack(prefix=prefix, output=out)
    assert report.n_hardlinks == 1
    found = members(out)
    assert found["b/two"].islnk() and found["b/two"].linkname == "a/one"
    fastpack.unpack(out, target)
    assert os.path.samefile(f"{target}/a/one", f"{target}/b/two")
    assert Path(target, "z/other").read_bytes() == Path(target, "c/exec").read_bytes() == same


def test_row_15_a_hard_link_of_the_source_is_never_patched_through(made: str, tmp_path: Path) -> None:
    os.link(os.path.join(made, "share/app/app.conf"), tmp_path / "cache copy")
    before = snapshot(made)
    out, target = str(tmp_path / "a.tar.zst"), str(tmp_path / "unpacked")
    fastpack.pack(prefix=made, output=out)
    fastpack.unpack(out, target)
    assert snapshot(made) == before
    assert (
        Path(target, "share/app/app.conf").read_bytes()
        == b"home = " + target.encode() + b"\r\nlib=" + target.encode() + b"/lib"
    )


@pytest.mark.parametrize("suffix", ["tar.zst", "tar.gz", "tar", "tgz", "tzst"])
def test_every_format_unpacks_to_the_same(made: str, tmp_path: Path, suffix: str) -> None:
    out, target = str(tmp_path / f"a.{suffix}"), str(tmp_path / "target")
    fastpack.pack(prefix=made, output=out)
    fastpack.unpack(out, target)
    found = snapshot(target)
    for path in list(found):
        if path.startswith(".fastpack"):
            del found[path]
    reference_archive, reference = str(tmp_path / "ref.tar.zst"), str(tmp_path / "away")
    fastpack.pack(prefix=made, output=reference_archive)
    fastpack.unpack(reference_archive, reference)
    os.rename(target, str(tmp_path / "first"))
    shutil.rmtree(reference)
    fastpack.unpack(reference_archive, target)
    wanted = {path: value for path, value in snapshot(target).items() if not path.startswith(".fastpack")}
    assert found == wanted


def test_levels_and_formats_are_checked(made: str, tmp_path: Path) -> None:
    for output, level in (("a.tar.zst", 23), ("a.tar.zst", 0), ("a.tar.gz", 10), ("a.tar", 1)):
        with pytest.raises(errors.UsageError, match="no such compression level"):
            fastpack.pack(prefix=made, output=str(tmp_path / output), compress_level=level)
    with pytest.raises(errors.UsageError, match="does not tell the format"):
        fastpack.pack(prefix=made, output=str(tmp_path / "a.rar"))
    with pytest.raises(errors.UsageError, match="unknown format"):
        fastpack.pack(prefix=made, output=str(tmp_path / "a"), format="rar")
    assert (
        fastpack.pack(prefix=made, output=str(tmp_path / "named"), format="tar.gz", compress_level=9).format == "tar.gz"
    )
    assert sorted(os.listdir(tmp_path)) == ["made env", "named"]


def test_missing_files_are_listed_by_package(made: str, tmp_path: Path) -> None:
    os.unlink(os.path.join(made, "lib/libapp.so"))
    out = str(tmp_path / "a.tar.zst")
    with pytest.raises(errors.MissingFiles, match=r"app 1.0 .*lib/libapp.so") as caught:
        fastpack.pack(prefix=made, output=out)
    assert caught.value.exit_code == 13 and not os.path.exists(out)
    report = fastpack.pack(prefix=made, output=out, ignore_missing_files=True)
    assert "missing-files" in {warning.code for warning in report.warnings}
    # What was left out is not missing in what comes of it.
    target = str(tmp_path / "unpacked")
    fastpack.unpack(out, target)
    fastpack.pack(prefix=target, output=str(tmp_path / "again.tar.zst"))


def test_excluded_files_are_not_missing_later(made: str, tmp_path: Path) -> None:
    out, target = str(tmp_path / "a.tar.zst"), str(tmp_path / "unpacked")
    report = fastpack.pack(prefix=made, output=out, filters=[("exclude", "share/*"), ("include", "*.conf")])
    assert report.left_out["excluded"] == 6
    assert "share/app/app.conf" in members(out) and "share/app/plain.txt" not in members(out)
    fastpack.unpack(out, target)
    fastpack.pack(prefix=target, output=str(tmp_path / "again.tar.zst"))


def test_editable_packages_are_refused(tmp_path: Path) -> None:
    prefix = str(tmp_path / "env")
    install([python_stub()], prefix)
    write(prefix, f"{SITE}/two.egg-link", "/home/me/two\n.\n")
    out = str(tmp_path / "a.tar.zst")
    with pytest.raises(errors.EditablePackages, match=r"two \(/home/me/two\)") as caught:
        fastpack.pack(prefix=prefix, output=out)
    assert caught.value.exit_code == 14
    assert "editable" in {
        w.code for w in fastpack.pack(prefix=prefix, output=out, ignore_editable_packages=True).warnings
    }


def test_an_output_in_the_prefix_or_in_the_way_is_refused(made: str, tmp_path: Path) -> None:
    with pytest.raises(errors.UsageError, match="in the environment itself"):
        fastpack.pack(prefix=made, output=os.path.join(made, "a.tar.zst"))
    os.symlink(made, tmp_path / "link")
    with pytest.raises(errors.UsageError, match="in the environment itself"):
        fastpack.pack(prefix=made, output=str(tmp_path / "link" / "a.tar.zst"))
    out = tmp_path / "a.tar.zst"
    out.write_text("precious")
    with pytest.raises(errors.AlreadyExists):
        fastpack.pack(prefix=made, output=str(out))
    assert out.read_text() == "precious"
    with pytest.raises(errors.UsageError, match="directory is not there"):
        fastpack.pack(prefix=made, output=str(tmp_path / "no" / "a.tar.zst"))
    # A failure with --force keeps the old output.
    with pytest.raises(errors.FastpackError):
        fastpack.pack(prefix=made, output=str(out), force=True, dest_prefix="/" + "x" * 300)
    assert out.read_text() == "precious"
    fastpack.pack(prefix=made, output=str(out), force=True)
    assert sorted(os.listdir(tmp_path)) == ["a.tar.zst", "link", "made env"]


def test_the_default_output_is_named_after_the_real_prefix(
    made: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.symlink(made, tmp_path / "alias")
    monkeypatch.chdir(tmp_path)
    assert fastpack.pack(prefix="alias").output == str(tmp_path / "made env.tar.zst")


def test_debris_of_killed_runs_is_removed_and_living_ones_are_let_be(made: str, tmp_path: Path) -> None:
    import fcntl

    dead, alive = tmp_path / ".a.tar.zst.fastpack-partial-dead0123", tmp_path / ".a.tar.zst.fastpack-partial-a11fe000"
    dead.write_text("x")
    with open(alive, "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        fastpack.pack(prefix=made, output=str(tmp_path / "a.tar.zst"))
        assert not dead.exists() and alive.exists()


def test_dest_prefix_places_everything_and_can_be_relocated_again(made: str, tmp_path: Path) -> None:
    out, target = str(tmp_path / "a.tar.zst"), str(tmp_path / "image" / "root")
    fastpack.pack(prefix=made, output=out, dest_prefix="/srv/app env")
    assert "bin/conda-unpack" not in members(out)
    assert read_member(out, "share/app/app.conf") == b"home = /srv/app env\r\nlib=/srv/app env/lib"
    fastpack.unpack(out, target, dest_prefix="/srv/app env")
    plain = str(tmp_path / "plain.tar.zst")
    fastpack.pack(prefix=made, output=plain)
    other = str(tmp_path / "image" / "other")
    fastpack.unpack(plain, other, dest_prefix="/srv/app env")
    keep = lambda tree: {p: v for p, v in tree.items() if not p.startswith(".fastpack") and p != "bin/conda-unpack"}  # noqa: E731
    assert keep(snapshot(target)) == keep(snapshot(other))
    moved = str(tmp_path / "moved")
    fastpack.unpack(out, moved)
    assert Path(moved, "share/app/app.conf").read_bytes() == b"home = %s\r\nlib=%s/lib" % (
        moved.encode(),
        moved.encode(),
    )
    with pytest.raises(errors.PrefixTooLong):
        fastpack.pack(prefix=made, output=out, force=True, dest_prefix="/" + "x" * 255)


def test_arcroot_is_in_the_names_and_taken_off_again(made: str, tmp_path: Path) -> None:
    write(made, "same1", b"s" * 5000)
    write(made, "same2", b"s" * 5000)
    out, target = str(tmp_path / "a.tar.zst"), str(tmp_path / "target")
    fastpack.pack(prefix=made, output=out, arcroot="top/env")
    assert all(name.startswith("top/env/") for name in members(out))
    assert members(out)["top/env/same2"].linkname == "top/env/same1"
    fastpack.unpack(out, target)
    assert os.path.samefile(f"{target}/same1", f"{target}/same2")
    for bad in ("../x", "a//b"):
        with pytest.raises(errors.UsageError):
            fastpack.pack(prefix=made, output=out, force=True, arcroot=bad)


def test_strict_refuses_what_depends_on_the_source(made: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(os.path.join(made, "lib", "own.zip"), "w") as file:
        file.writestr("own.txt", f"at {made}/lib")
    out = str(tmp_path / "a.tar.zst")
    with pytest.raises(errors.Unrelocatable) as caught:
        fastpack.pack(prefix=made, output=out, strict=True)
    assert caught.value.exit_code == 21 and caught.value.path == "lib/own.zip"
    assert fastpack.pack(prefix=made, output=out).not_relocated == (
        {"path": "lib/own.zip", "why": "a zip file (zip, jar, whl, npz) that names the prefix; never changed"},
    )


def test_fluent_interface(made: str, tmp_path: Path) -> None:
    env = fastpack.Environment.from_prefix(made)
    report = env.exclude("*.conf").include("nothing").pack(output=str(tmp_path / "a.tar.gz"))
    assert report.format == "tar.gz" and "share/app/app.conf" not in manifest_of(report.output).header
    assert report.left_out == {"excluded": 1}


def test_odd_names_go_through(made: str, tmp_path: Path) -> None:
    names = [
        "new\nline",
        "x" * 255,
        "näme-名前",
        os.fsdecode(b"\xff\xfe"),
        "-dash",
        "a'b\"c",
        " space ",
        "d/" * 60 + "y" * 200,
    ]
    for name in names:
        write(made, f"odd/{name}", f"#{name}".encode("utf-8", "surrogateescape") + os.fsencode(made))
    out, target = str(tmp_path / "a.tar.zst"), str(tmp_path / "target")
    fastpack.pack(prefix=made, output=out)
    fastpack.unpack(out, target)
    for name in names:
        data = Path(target, f"odd/{name}").read_bytes()
        assert data == f"#{name}".encode("utf-8", "surrogateescape") + os.fsencode(made) or data.endswith(
            target.encode()
        )


def test_the_archive_form_of_unmanaged_text_has_our_own_placeholder(made: str, tmp_path: Path) -> None:
    write(made, "own.txt", f"{made}/x")
    out = str(tmp_path / "a.tar.zst")
    fastpack.pack(prefix=made, output=out)
    assert read_member(out, "own.txt") == PLACEHOLDER + b"/x"
    assert len(PLACEHOLDER) == 255


# --- several environments at once


def test_several_environments_share_frames(made: str, tmp_path: Path) -> None:
    second = str(tmp_path / "second")
    shutil.copytree(made, second, symlinks=True)
    for prefix in (made, second):
        write(prefix, "lib/large", random.Random(3).randbytes(12 << 20))
    write(second, "lib/own", "only here")
    folder = tmp_path / "out" / "archives"
    arguments = ["pack", "-p", made, "-p", second, "--exclude", "share/*", "-j", "2"]
    done = run_fastpack(*arguments, "-o", str(folder) + "/", "--json")
    assert done.code == 0, done.err
    reports = done.json["result"]["archives"]
    assert sorted(os.listdir(folder)) == sorted(f"{os.path.basename(p)}.tar.zst" for p in (made, second))
    assert reports[0]["work"]["copied"] == 0 and reports[1]["work"]["copied"] > 12 << 20
    for report, prefix in zip(reports, (made, second), strict=True):
        alone = str(tmp_path / "alone.tar.zst")
        fastpack.pack(prefix=prefix, output=alone, filters=[("exclude", "share/*")], force=True)
        assert Path(report["output"]).read_bytes() == Path(alone).read_bytes()
        assert report["output"] == str(folder / f"{os.path.basename(prefix)}.tar.zst")
    again = run_fastpack(*arguments, "-o", folder)
    assert again.code == 22 and "already there" in again.err
    assert run_fastpack(*arguments, "-o", folder, "--force", "--format", "tar.gz").code == 0
    assert len(os.listdir(folder)) == 4


def test_several_environments_need_a_directory_and_names_of_their_own(made: str, tmp_path: Path) -> None:
    done = run_fastpack("pack", "-p", made, "-p", made, "-o", tmp_path / "out")
    assert done.code == 2 and "2 environments would have the same archive" in done.err
    other = str(tmp_path / "other")
    shutil.copytree(made, other, symlinks=True)
    for output in ([], ["-o", "-"]):
        done = run_fastpack("pack", "-p", made, "-p", other, *output, cwd=tmp_path)
        assert done.code == 2 and "packed into a directory" in done.err
    Path(tmp_path, "file").write_text("")
    done = run_fastpack("pack", "-p", made, "-p", other, "-o", tmp_path / "file")
    assert done.code != 0 and len(done.err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_times_of_many_files_are_those_of_each() -> None:
    digests = [bytes(32), b"\xff" * 32, *(os.urandom(32) for _ in range(100))]
    assert content_mtimes(digests) == list(map(content_mtime, digests))


# --- a plain tar, whose manifest is found from its end


@pytest.mark.parametrize("arcroot", ["", "top", "r" * 120])
def test_the_manifest_of_a_tar_is_found_from_its_end(
    made: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arcroot: str
) -> None:
    """With headers of long names, it is walked to: the same is found."""
    out = str(tmp_path / "a.tar")
    fastpack.pack(prefix=made, output=out, arcroot=arcroot)
    size = os.stat(out).st_size
    with open(out, "rb") as file:
        found, walked = (way(file.fileno(), size) for way in (frames._written_last, frames._walked_last))
    assert walked is not None and found == (None if len(arcroot) > 100 else walked)
    monkeypatch.setattr(frames, "_PIECE", 512)  # it begins before the last piece, and before the one before that
    with open(out, "rb") as file:
        assert frames._written_last(file.fileno(), size) == found
    wanted = manifest_of(out)
    monkeypatch.setattr(frames, "_written_last", lambda descriptor, size: None)
    assert manifest_of(out) == wanted and wanted.arcroot == arcroot


def test_a_tar_in_a_tar_is_not_taken_for_it(made: str, tmp_path: Path) -> None:
    """Another's tar that ends as one of ours does, and one of ours that has one of ours in it."""
    inner, outer = tmp_path / "a.tar", tmp_path / "b.tar"
    fastpack.pack(prefix=made, output=str(inner))
    for first in ("x", ".fastpack/pack.json"):
        with tarfile.open(outer, "w", format=tarfile.GNU_FORMAT) as tar:
            info = tarfile.TarInfo(first)
            tar.addfile(info)
            tar.add(inner, "a.tar")
        with open(outer, "rb") as file:
            assert read_manifest(file.fileno(), str(outer)) is None
    write(made, "share/a.tar", inner.read_bytes())
    write(made, "zz/last.tar", inner.read_bytes())
    fastpack.pack(prefix=made, output=str(outer), force=True)
    assert {"share/a.tar", "zz/last.tar"} <= {member.path for member in manifest_of(str(outer)).members}
    assert fastpack.verify(str(outer)).problems == ()


def test_a_tar_of_a_long_name_alone(tmp_path: Path) -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 151
    (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + b"a" * 150 + bytes(362 + 1024))
    for command in (["ls"], ["inspect"], ["verify"], ["unpack", "-p", tmp_path / "target"]):
        done = run_fastpack(command[0], tmp_path / "a.tar", *command[1:])
        assert done.code == 30 and "Traceback" not in done.err


def test_a_tar_whose_end_is_not_ours_is_walked(made: str, tmp_path: Path) -> None:
    out = tmp_path / "a.tar"
    fastpack.pack(prefix=made, output=str(out))
    data = out.read_bytes()
    for changed, message in (
        (data + bytes(512), None), (data[:-512], "cut off"), (data + b"x", None), (data + b"x" * 512, None),
        (data[:-1024], "cut off"), (data[:-2000] + b"!" + data[-1999:], "not the one that was written"),
    ):  # fmt: skip
        out.write_bytes(changed)
        if message is None:  # behind a tar's end there may be anything
            assert len(manifest_of(str(out)).members) > 3
        else:
            with pytest.raises(errors.DamagedArchive, match=message):
                manifest_of(str(out))


@pytest.mark.parametrize("n_links", range(6))
@pytest.mark.parametrize("n_bytes", [1_500_000, 3_500_000])
def test_links_beside_a_file_of_several_slices(tmp_path: Path, n_links: int, n_bytes: int) -> None:
    """Links have no digest and such files several: however these numbers go together, the reader gets the same."""
    prefix, out = str(tmp_path / "e"), str(tmp_path / "a.tar.zst")
    write(prefix, "conda-meta/history", b"")
    write(prefix, "lib/libx.so.1", os.urandom(n_bytes))
    for k in range(n_links):
        os.symlink("libx.so.1", os.path.join(prefix, f"lib/libx-{k}.so"))
    fastpack.pack(prefix=prefix, output=out)
    assert fastpack.verify(out).problems == ()
    fastpack.unpack(out, str(tmp_path / "u"))
    assert Path(tmp_path, "u/lib/libx.so.1").read_bytes() == Path(prefix, "lib/libx.so.1").read_bytes()


@pytest.mark.parametrize("seed", range(60))
def test_whatever_lies_in_a_frame_the_reader_gets_it(tmp_path: Path, seed: int) -> None:
    """Files around every limit (slices, frames, links to equal ones), symbolic links and directories, in any mixture."""
    rng = random.Random(seed)
    mib = 1 << 20
    sizes = [0, 1, 511, 512, 4096, 4097, mib - 1, mib, mib + 1, 2 * mib, 3 * mib + 5, 8 * mib, 9 * mib + 1]
    prefix = str(tmp_path / "env")
    write(prefix, "conda-meta/history", b"")
    contents = [rng.randbytes(rng.choice(sizes)) for _ in range(6)]
    names: list[str] = []
    few = seed % 2 == 0  # in one frame or two
    folders = ["lib"] if few else ["lib", "share", "share/deep", SITE]
    for k in range(rng.randrange(1, 8 if few else 30)):
        name = f"{rng.choice(folders)}/{k}"
        if names and rng.random() < 0.4:
            os.makedirs(os.path.join(prefix, os.path.dirname(name)), exist_ok=True)
            target = os.path.join(prefix, rng.choice(names))
            os.symlink(os.path.relpath(target, os.path.dirname(os.path.join(prefix, name))), os.path.join(prefix, name))
        elif rng.random() < 0.1:
            os.makedirs(os.path.join(prefix, name))
        else:
            large = rng.random() < 0.3
            write(prefix, name, rng.choice(contents) if large else rng.randbytes(rng.choice(sizes[:6])))
        names.append(name)
    wanted = snapshot(prefix, mtimes=False)
    suffix = ("tar.zst", "tar.gz", "tar")[seed % 3]
    out = str(tmp_path / f"a.{suffix}")
    fastpack.pack(prefix=prefix, output=out)
    assert fastpack.verify(out, deep=True).problems == ()
    target = str(tmp_path / "target")
    fastpack.unpack(out, target)
    found = snapshot(target, mtimes=False)
    assert {path: found.get(path) for path in wanted if path != "conda-meta/history"} == {
        path: row for path, row in wanted.items() if path != "conda-meta/history"
    }
    fastpack.pack(prefix=prefix, output=str(tmp_path / f"b.{suffix}"), base=None if suffix == "tar" else out)
    assert Path(out).read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()

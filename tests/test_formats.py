"""Every format: the same tree from every one of them, by our unpacker and by the format's own tools."""

from __future__ import annotations

import json
import os
import random
import shutil
import stat
import struct
import subprocess
import tarfile
import types
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import fastpack
from fastpack import errors, format_zip, formats
from fastpack.made_prefix import MadeFile, MadePackage, install
from tests.conftest import app_package, need, run_fastpack
from tests.oracles.trees import snapshot
from tests.test_environment import dist, write

TARS = ["tar.zst", "tar.gz", "tar.bz2", "tar.xz", "tar"]
READ = [*TARS, "zip"]


@pytest.fixture
def env(tmp_path: Path) -> str:
    """With a large file, links to files and directories, odd names, identical files, and modes."""
    prefix = str(tmp_path / "my env")
    install([app_package(), MadePackage("more", files={"lib/empty": MadeFile(b"")})], prefix)
    rng = random.Random(2)
    write(prefix, "lib/large", rng.randbytes(1 << 20) * 9 + b"".join(b"line %d\n" % k for k in range(1 << 20)))
    for name in ("one", "two"):
        write(prefix, f"share/{name}", b"identical" * 1000)
    write(prefix, "share/über/\udcff name", "x")
    write(prefix, "bin/run", f"#!{prefix}/bin/python\n", 0o755)
    os.symlink("../über", os.path.join(prefix, "share/app/folder"))
    os.symlink("run", os.path.join(prefix, "bin/run-link"))
    os.makedirs(os.path.join(prefix, "share/nothing"))
    dist(prefix, "tool", {"tool.py": b"x = 1\n"})
    dangling = os.path.join(prefix, "share/app/dangling")
    if os.path.islink(dangling):
        os.unlink(dangling)
    return prefix


def pack(env: str, out: object, **options: object) -> fastpack.PackReport:
    return fastpack.pack(prefix=env, output=str(out), ignore_missing_files=True, **options)


def content(root: str | Path) -> dict[str, object]:
    """A tree, without what says in which format it came or when it was unpacked."""
    own = (".fastpack", ".fastpack/manifest", ".fastpack/state.json")
    return {path: row for path, row in snapshot(str(root)).items() if path not in own}


@pytest.fixture
def wanted(env: str, tmp_path: Path) -> dict[str, object]:
    pack(env, tmp_path / "wanted.tar.zst")
    fastpack.unpack(str(tmp_path / "wanted.tar.zst"), str(tmp_path / "n"))
    found = content(tmp_path / "n")
    shutil.rmtree(tmp_path / "n")
    return found


@pytest.mark.parametrize("suffix", READ)
def test_what_unpacks_is_the_same(suffix: str, env: str, wanted: dict[str, object], tmp_path: Path) -> None:
    out = tmp_path / f"e.{suffix}"
    report = pack(env, out, zip_symlinks=True)
    assert report.format == suffix and report.archive_bytes == out.stat().st_size
    unpacked = fastpack.unpack(str(out), str(tmp_path / "n"))
    assert not unpacked.foreign and unpacked.archive_id == report.archive_id
    assert content(tmp_path / "n") == wanted
    assert not fastpack.verify(str(tmp_path / "n")).problems


@pytest.mark.parametrize("suffix", [*READ, "parcel"])
def test_the_same_bytes_again_with_any_threads(suffix: str, env: str, tmp_path: Path) -> None:
    env_ = shutil.copytree(env, tmp_path / "another" / "my_env", symlinks=True)
    shutil.move(env, tmp_path / "aside")
    outs = []
    for k, prefix in enumerate((env_, env_)):
        out = tmp_path / f"{k}.{suffix}"
        pack(str(prefix), out, n_threads=1 + 3 * k)
        outs.append(out.read_bytes())
    assert outs[0] == outs[1]


@pytest.mark.parametrize(
    ("suffix", "command"),
    [
        ("tar.bz2", ["tar", "-xjf"]), ("tar.xz", ["tar", "-xJf"]), ("tar.bz2", ["bsdtar", "-xf"]),
        ("tar.xz", ["bsdtar", "-xf"]), ("zip", ["unzip", "-q"]), ("zip", ["bsdtar", "-xf"]),
        ("squashfs", ["unsquashfs", "-no-progress", "-quiet", "-d", "."]),
    ],
)  # fmt: skip
def test_the_formats_own_tools_read_it(suffix: str, command: list[str], env: str, tmp_path: Path) -> None:
    tools = ["mksquashfs"] if suffix == "squashfs" else []
    if missing := [tool for tool in (command[0], *tools) if shutil.which(tool) is None]:
        pytest.skip(f"{missing[0]} is not there")
    if suffix == "zip":
        os.unlink(os.path.join(os.fsencode(env), "share/über".encode(), b"\xff name"))  # unzip renames it
    out, plain = tmp_path / f"e.{suffix}", tmp_path / "plain"
    pack(env, out, zip_symlinks=True)
    pack(env, tmp_path / "e.tar")
    for archive, run in ((out, command), (tmp_path / "e.tar", ["tar", "-xf"])):
        plain.mkdir()
        options = [*run, str(archive)]
        if run[0] == "unsquashfs":
            plain.rmdir()
            options = ["unsquashfs", "-no-progress", "-quiet", "-d", str(plain), str(archive)]
        subprocess.run(
            options, cwd=plain if plain.exists() else tmp_path, check=True, env={**os.environ, "LC_ALL": "C.UTF-8"}
        )
        shutil.move(plain, tmp_path / f"by-{run[0]}-{archive.suffix}")
    one, other = (content(path) for path in sorted(tmp_path.glob("by-*")))
    without_times = [
        {path: row[:-1] if suffix == "zip" else row for path, row in tree.items()} for tree in (one, other)
    ]
    assert without_times[0] == without_times[1]
    target = next(path for path in tmp_path.glob(f"by-{command[0]}-*"))
    subprocess.run([target / "bin/conda-unpack", "-q"], check=True)
    assert not fastpack.verify(str(target)).problems


# --- zip


def test_zip_without_links_has_copies(env: str, tmp_path: Path) -> None:
    out = tmp_path / "e.zip"
    report = pack(env, out)
    assert report.n_links == 0 == report.n_hardlinks
    with zipfile.ZipFile(out) as archive:
        assert archive.testzip() is None
        assert not [info for info in archive.infolist() if stat.S_ISLNK(info.external_attr >> 16)]
        assert archive.read("bin/run-link") == archive.read("bin/run")
        large = archive.getinfo("lib/large")
        assert large.file_size == os.stat(f"{env}/lib/large").st_size and large.compress_size < large.file_size
        assert archive.read("lib/large") == Path(env, "lib/large").read_bytes()
        modes = {info.filename: info.external_attr >> 16 & 0o777 for info in archive.infolist()}
    assert modes["bin/run"] == 0o755 and modes["bin/run-link"] == 0o755 and modes["share/one"] == 0o644
    target = tmp_path / "n"
    fastpack.unpack(str(out), str(target))
    assert not [path for path in target.rglob("*") if path.is_symlink()]
    folder = os.path.join(os.fsencode(target), b"share/app/folder/\xff name")
    assert os.path.isfile(folder)
    assert Path(target, "bin/run-link").read_text().splitlines()[0] == f"#!{target}/bin/python"
    assert not fastpack.verify(str(target)).problems


def test_zip_refuses_links_that_it_cannot_follow(env: str, tmp_path: Path) -> None:
    for target, says in (("gone", "leads to nothing"), ("..", "directory that it lies in"), ("/etc", "out of the env")):
        link = os.path.join(env, "share/one-link")
        os.symlink(target, link)
        with pytest.raises(errors.Unrelocatable, match=says):
            pack(env, tmp_path / "e.zip")
        assert pack(env, tmp_path / "e.zip", zip_symlinks=True, force=True).n_links > 0
        os.unlink(link)
        os.unlink(tmp_path / "e.zip")


def test_no_zip_64(env: str, tmp_path: Path) -> None:
    done = run_fastpack("pack", "-p", env, "-o", tmp_path / "e.zip", "--no-zip-64", "--ignore-missing-files")
    assert done.code == 0, done.err
    with open(os.path.join(env, "lib/huge"), "wb") as file:
        file.truncate(5 << 30)
    done = run_fastpack("pack", "-p", env, "-o", tmp_path / "f.zip", "--no-zip-64", "--ignore-missing-files")
    assert done.code == 2 and "lib/huge" in done.err and "--no-zip-64" in done.err
    assert not (tmp_path / "f.zip").exists()


def test_zip_levels(env: str, tmp_path: Path) -> None:
    sizes = []
    for level in (0, 1, 4, 6, 9):
        out = tmp_path / f"{level}.zip"
        pack(env, out, compress_level=level)
        with zipfile.ZipFile(out) as archive:
            assert archive.testzip() is None
        sizes.append(out.stat().st_size)
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > sizes[-1]


# --- squashfs


@need("mksquashfs", "unsquashfs")
def test_squashfs_levels_and_the_same_bytes(env: str, tmp_path: Path) -> None:
    for level in (0, 4, 9):
        outs = []
        for k in range(2):
            out = tmp_path / f"{level}-{k}.squashfs"
            pack(env, out, compress_level=level, n_threads=1 + k)
            outs.append(out.read_bytes())
        assert outs[0] == outs[1]
        said = subprocess.run(["unsquashfs", "-s", out], capture_output=True, text=True, check=True).stdout
        assert ("xz" if level == 9 else "zstd" if level else "gzip") in said
    listed = subprocess.run(
        ["unsquashfs", "-ll", out], capture_output=True, text=True, errors="replace", check=True
    ).stdout
    assert "squashfs-root/bin/run-link -> run" in listed


def test_squashfs_without_its_tool(env: str, tmp_path: Path) -> None:
    there = sorted(os.listdir(tmp_path))
    done = run_fastpack("pack", "-p", env, "-o", tmp_path / "e.squashfs", env={"PATH": str(tmp_path)})
    assert done.code == 2 and "squashfs-tools 4.5" in done.err and len(done.err.splitlines()) == 1
    assert sorted(os.listdir(tmp_path)) == there


@need("mksquashfs")
def test_squashfs_that_cannot_be_written(env: str, tmp_path: Path) -> None:
    tool = tmp_path / "bin" / "mksquashfs"
    tool.parent.mkdir()
    tool.write_text(
        '#!/bin/sh\ncase "$1" in -version) echo "mksquashfs version 4.6" ;; *) echo "no room" >&2; exit 1 ;; esac\n'
    )
    tool.chmod(0o755)
    there = sorted(os.listdir(tmp_path))
    done = run_fastpack(
        "pack",
        "-p",
        env,
        "-o",
        tmp_path / "e.squashfs",
        "--ignore-missing-files",
        env={"PATH": f"{tool.parent}:/usr/bin:/bin"},
    )
    assert done.code == 1 and "no room" in done.err, done.err
    assert sorted(os.listdir(tmp_path)) == there


# --- a directory


def test_no_archive_is_a_directory(env: str, tmp_path: Path) -> None:
    out, plain = tmp_path / "e.no-archive", tmp_path / "plain"
    before = snapshot(env)
    report = pack(env, out)
    assert report.format == "no-archive" and snapshot(env) == before
    pack(env, tmp_path / "e.tar")
    plain.mkdir()
    subprocess.run(["tar", "-xf", tmp_path / "e.tar", "-C", plain], check=True)
    assert content(out) == content(plain)
    inodes = {os.lstat(path).st_ino for path in Path(env).rglob("*")}
    assert not [path for path in out.rglob("*") if os.lstat(path).st_ino in inodes]
    subprocess.run([out / "bin/conda-unpack", "-q"], check=True)
    assert not fastpack.verify(str(out)).problems and snapshot(env) == before
    assert sorted(os.listdir(tmp_path)) == sorted(["my env", "e.no-archive", "e.tar", "plain"])


def test_no_archive_is_not_written_over(env: str, tmp_path: Path) -> None:
    out = tmp_path / "e.no-archive"
    pack(env, out, arcroot="deep/er")
    assert (out / "deep/er/bin/run").exists()
    write(str(out), "deep/er/own", "mine")
    for options in ({}, {"force": True}):
        with pytest.raises(errors.AlreadyExists):
            pack(env, out, arcroot="deep/er", **options)
    assert (out / "deep/er/own").read_text() == "mine"
    done = run_fastpack("pack", "-p", env, "--format", "no-archive", "-o", "-", "--ignore-missing-files")
    assert done.code == 2 and "pipe" in done.err


# --- parcels


def test_parcel(env: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    options = ["--format", "parcel", "--parcel-name", "env", "--parcel-version", "1.2", "--ignore-missing-files"]
    done = run_fastpack("pack", "-p", env, *options, "--parcel-root", "/data/parcels", "--json", cwd=out)
    assert done.code == 0, done.err
    assert os.listdir(out) == ["env-1.2-el7.parcel"]
    with tarfile.open(out / "env-1.2-el7.parcel", "r:gz") as archive:
        names = archive.getnames()
        assert {name.split("/")[0] for name in names} == {"env-1.2"}
        about = json.load(archive.extractfile("env-1.2/meta/parcel.json"))  # type: ignore[arg-type]
        script = archive.extractfile("env-1.2/meta/conda_env.sh").read()  # type: ignore[union-attr]
        conf = archive.extractfile("env-1.2/share/app/app.conf").read()  # type: ignore[union-attr]
        assert archive.extractfile("env-1.2/bin/run").read().startswith(b"#!/data/parcels/env-1.2/bin/python\n")  # type: ignore[union-attr]
    assert b"/data/parcels/env-1.2" in conf
    assert not {"env-1.2/bin/activate", "env-1.2/bin/conda-unpack"} & set(names)
    # cm_ext, "The parcel.json file": what has to be there, and what has to agree with the names.
    assert about["schema_version"] == 1 and (about["name"], about["version"]) == ("env", "1.2")
    assert about["extraVersionInfo"]["fullVersion"] == "1.2-el7" and about["setActiveSymlink"] is True
    assert about["scripts"]["defines"] == "conda_env.sh" and about["users"] == {} and about["groups"] == []
    assert {"name": "app", "version": "1.0-0"} in about["packages"]
    assert about["components"] == [{"name": "env", "version": "1.2", "pkg_version": "1.2"}]
    checked = subprocess.run(["bash", "-n"], input=b"f() {\n" + script + b"}\n", capture_output=True)
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--parcel-name", "a-b"], "no dashes"), (["--parcel-name", "a", "--parcel-distro", "el-7"], "no dashes"),
        (["--parcel-name", "a", "--arcroot", "x"], "--arcroot"), (["--parcel-name", "a", "-d", "/x"], "--dest-prefix"),
        (["--parcel-name", "a", "--parcel-root", "x"], "absolute"), ([], "no dashes"),
        (["--parcel-name", "a", "-o", "x.zip", "--format", "zip"], "for parcels"),
        (["--parcel-name", "a", "-o", "x.parcel", "--format", "zip"], "tar.gz"),
    ],
)  # fmt: skip
def test_parcels_that_are_refused(options: list[str], says: str, env: str, tmp_path: Path) -> None:
    other = tmp_path / "with-dash"
    shutil.copytree(env, other, symlinks=True)
    format_ = [] if "--format" in options else ["--format", "parcel"]
    done = run_fastpack("pack", "-p", other, *format_, *options, "--ignore-missing-files", cwd=tmp_path)
    assert done.code == 2 and says in done.err, done.err
    assert not list(tmp_path.glob("*.parcel")) + list(tmp_path.glob("*.zip"))


# --- names and options


def test_names_tell_formats() -> None:
    for name, wanted in (("a.tgz", "tar.gz"), ("a.tbz2", "tar.bz2"), ("a.txz", "tar.xz"), ("a.tzst", "tar.zst"),
                         ("a.b.tar.gz", "tar.gz"), ("x.no-archive", "no-archive")):  # fmt: skip
        assert formats.by_file_name(name).name == wanted
    for name in ("a", "a.rar", "zip", "tar.gz"):
        with pytest.raises(errors.UsageError):
            formats.by_file_name(name)


def test_a_base_needs_a_format_with_frames(env: str, tmp_path: Path) -> None:
    pack(env, tmp_path / "e.tar.zst")
    for suffix in ("zip", "tar.xz", "squashfs"):
        with pytest.raises(errors.UsageError, match="used again"):
            pack(env, tmp_path / f"my_env.{suffix}", base=str(tmp_path / "e.tar.zst"))
    assert sorted(os.listdir(tmp_path)) == ["e.tar.zst", "my env"]


@pytest.mark.parametrize("suffix", ["tar.bz2", "zip"])
def test_a_damaged_archive_is_refused(suffix: str, env: str, tmp_path: Path) -> None:
    out = tmp_path / f"e.{suffix}"
    pack(env, out)
    data = out.read_bytes()
    for position in (len(data) // 4, len(data) // 3, len(data) // 2):
        out.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        with pytest.raises(errors.FastpackError):
            fastpack.unpack(str(out), str(tmp_path / "n"))
        assert not (tmp_path / "n").exists()
    out.write_bytes(data[: len(data) // 2])
    with pytest.raises(errors.FastpackError):
        fastpack.unpack(str(out), str(tmp_path / "n"))
    assert not (tmp_path / "n").exists()


# --- found by review


def test_an_environment_is_not_replaced_by_its_own_copy(env: str, tmp_path: Path) -> None:
    pack(env, tmp_path / "a.tar.zst")
    target = tmp_path / "place" / "v"
    fastpack.unpack(str(tmp_path / "a.tar.zst"), str(target))
    before = snapshot(str(target))
    for out in (target, tmp_path / "place"):
        done = run_fastpack("pack", "-p", target, "--format", "no-archive", "-o", out, "--force", "--exclude", "lib/*")
        assert done.code == 2 and len(done.err.splitlines()) == 1, done.err
    assert snapshot(str(target)) == before


def test_no_archive_again_with_force(env: str, tmp_path: Path) -> None:
    out = tmp_path / "e.no-archive"
    pack(env, out)
    write(env, "share/one", "another")
    pack(env, out, force=True)
    assert (out / "share/one").read_text() == "another"
    write(str(out), "share/mine", "mine")
    with pytest.raises(errors.AlreadyExists, match="1 files that fastpack did not make"):
        pack(env, out, force=True)
    deep = tmp_path / "deep"
    pack(env, deep, arcroot="a/b", format="no-archive")
    assert os.listdir(deep) == ["a"]


def test_a_file_that_grows_beyond_32_bits_in_a_zip(tmp_path: Path) -> None:
    """4 GiB that cannot be compressed: the size is below the limit, what is written of it is not."""

    class Nowhere:
        def write(self, data: bytes) -> int:
            return len(data)

    job = types.SimpleNamespace(plan=types.SimpleNamespace(arcroot=""), zip_64=True, level=4)
    writer = format_zip._ZipWriter(Nowhere(), job)  # type: ignore[arg-type]
    first = format_zip._Row(b"b", 0o100644, 10**9, 8, 1, 0xFFFFFFFE, 0xFFFFFFE6, 0, True, False)
    writer._open = 0, first
    writer._add(format_zip._Row(b"b", 0o100644, 10**9, 8, 1, 10, 10, 0, False, True))
    assert writer._descriptor == struct.pack(
        "<4sLQQ", b"PK\x07\x08", format_zip._combined(1, 1, 10), 0x100000008, 0xFFFFFFF0
    )
    (entry,) = writer._entries
    assert struct.unpack_from("<LL", entry, 20) == (0xFFFFFFFF, 0xFFFFFFFF)
    assert struct.unpack_from("<HHQQ", entry, 47 + 9) == (1, 16, 0xFFFFFFF0, 0x100000008)
    assert format_zip._is_large(0xFFFFFFE6) and not format_zip._is_large(4 << 29)


@pytest.mark.parametrize(
    ("script", "code", "says"),
    [
        ("exit 0", 1, "ended with 0"), ("cat > /dev/null; echo 'FATAL: No space left on device' >&2; exit 1", 23, "space"),
        ("head -c 300000 /dev/zero | tr '\\0' x >&2; cat > /dev/null; exit 3", 1, "ended with 3"),
    ],
)  # fmt: skip
def test_squashfs_whatever_its_tool_does(script: str, code: int, says: str, env: str, tmp_path: Path) -> None:
    tool = tmp_path / "bin" / "mksquashfs"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\ncase "$1" in -version) echo "mksquashfs version 4.6"; exit ;; esac\n{script}\n')
    tool.chmod(0o755)
    there = sorted(os.listdir(tmp_path))
    path = f"{tool.parent}:{os.environ['PATH']}"
    done = run_fastpack("pack", "-p", env, "-o", tmp_path / "e.squashfs", "--ignore-missing-files", env={"PATH": path})
    assert done.code == code and says in done.err, done.err
    assert sorted(os.listdir(tmp_path)) == there


def test_a_zip_of_ours_without_its_manifest_is_refused(env: str, tmp_path: Path) -> None:
    pack(env, tmp_path / "e.zip")
    with zipfile.ZipFile(tmp_path / "e.zip") as whole, zipfile.ZipFile(tmp_path / "f.zip", "w") as part:
        for info in whole.infolist():
            if info.filename != ".fastpack/manifest" and info.filename.isascii():
                part.writestr(info, whole.read(info.filename) if not info.is_dir() else b"")
    with pytest.raises(errors.DamagedArchive, match="manifest is not to be found"):
        fastpack.unpack(str(tmp_path / "f.zip"), str(tmp_path / "n"))
    assert not (tmp_path / "n").exists()


@pytest.mark.parametrize("suffix", ["zip", "tar.bz2", "tar.xz", "squashfs"])
def test_commands_that_need_frames_say_so(suffix: str, env: str, tmp_path: Path) -> None:
    if suffix == "squashfs" and shutil.which("mksquashfs") is None:
        pytest.skip("no squashfs-tools")
    out = tmp_path / f"e.{suffix}"
    pack(env, out)
    for command in (["verify"], ["inspect"], ["ls"], ["diff", env]):
        done = run_fastpack(*command, out)
        assert done.code == 2 and "not found from its end" in done.err and len(done.err.splitlines()) == 1, done.err
    if suffix == "squashfs":
        done = run_fastpack("unpack", out, "-p", tmp_path / "n")
        assert done.code == 2 and "unsquashfs" in done.err


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[[Path, Path], None]]:
    """Mounts squashfs files with squashfuse, and takes the mounts down again; skips where FUSE is not to be had."""
    mounted: list[Path] = []

    def at(image: Path, place: Path) -> None:
        place.mkdir(exist_ok=True)
        done = subprocess.run(["squashfuse", image, place], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"squashfuse cannot mount here: {done.stderr.strip()}")
        mounted.append(place)

    yield at
    for place in mounted:
        subprocess.run(["fusermount3", "-u", place], check=True)


@need("mksquashfs", "squashfuse", "fusermount3")
def test_squashfs_mounted_where_it_was_packed_for(
    real_source: str, tmp_path: Path, mount: Callable[[Path, Path], None]
) -> None:
    place, image = tmp_path / "mounted env", tmp_path / "e.squashfs"
    done = run_fastpack("pack", "-p", real_source, "-o", image, "--dest-prefix", place)
    assert done.code == 0, done.err
    mount(image, place)
    ran = subprocess.run(
        [place / "bin/python", "-c", "import sys, ssl; print(sys.prefix)"], capture_output=True, text=True
    )
    assert ran.stdout.strip() == str(place), ran.stderr
    assert run_fastpack("verify", place).code == 0
    assert run_fastpack("status", place, "--json").json["result"]["condition"] == "right"


@need("mksquashfs", "squashfuse", "fusermount3")
def test_squashfs_mounted_anywhere_and_relocated_through_an_overlay(
    real_source: str, tmp_path: Path, mount: Callable[[Path, Path], None]
) -> None:
    place, image, upper = tmp_path / "anywhere", tmp_path / "e.squashfs", tmp_path / "upper"
    assert run_fastpack("pack", "-p", real_source, "-o", image).code == 0
    mount(image, place)
    done = run_fastpack("relocate", place, "--overlay", upper)
    assert done.code == 0, done.err
    # What a kernel shows of an overlay: the upper directory's files over those of the mounted one.
    whole, direct = tmp_path / "whole", tmp_path / "e.tar.zst"
    shutil.copytree(place, whole, symlinks=True)
    shutil.copytree(upper, whole, symlinks=True, dirs_exist_ok=True)
    run_fastpack("pack", "-p", real_source, "-o", direct)
    assert run_fastpack("unpack", direct, "-p", tmp_path / "oracle", "--dest-prefix", place).code == 0
    assert content(whole) == content(tmp_path / "oracle")

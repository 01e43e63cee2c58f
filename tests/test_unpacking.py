"""Unpacking: nothing half, nothing outside, nothing that is not what the archive says."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

import fastpack
from fastpack import container, digest, errors
from fastpack._place_py import Relocation, content_mtime, read_relocations, write_relocations
from fastpack.codec import CODECS
from fastpack.destination import _make_marker
from fastpack.frames import Locator, trailer
from fastpack.manifest import Frame, Manifest, Member
from fastpack.model import Kind
from tests.conftest import Done, need, ordinary_user, run_fastpack
from tests.oracles.trees import snapshot
from tests.test_environment import write
from tests.test_packing import manifest_of, read_member


@pytest.fixture
def archive(made: str, tmp_path: Path) -> str:
    write(made, "big", random.Random(1).randbytes(3 << 20))
    out = str(tmp_path / "a.tar.zst")
    fastpack.pack(prefix=made, output=out)
    return out


def unpack_piped(archive: str, target: str, *options: str) -> Done:
    with open(archive, "rb") as stream:
        return run_fastpack("unpack", "-", "-p", target, *options, stdin=stream)


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


# --- broken archives: nothing visible, one line, the right code


def refused(path: str, target: str, piped: bool) -> Done:
    done = unpack_piped(path, target) if piped else run_fastpack("unpack", path, "-p", target)
    parent = os.path.dirname(target)
    assert not os.path.lexists(target), done.err
    assert not [name for name in os.listdir(parent) if "partial" in name]
    return done


@pytest.mark.parametrize("suffix", ["tar.zst", "tar.gz", "tar"])
def test_truncated_anywhere(made: str, tmp_path: Path, suffix: str) -> None:
    out = str(tmp_path / f"a.{suffix}")
    fastpack.pack(prefix=made, output=out)
    data = Path(out).read_bytes()
    manifest = manifest_of(out)
    rng = random.Random(3)
    cuts = {frame.offset for frame in manifest.frames} | {len(data) - k for k in (1, 9, 60, 600)}
    cuts |= {rng.randrange(len(data)) for _ in range(30)}
    cut = str(tmp_path / f"cut.{suffix}")
    for size in sorted(cuts):
        Path(cut).write_bytes(data[:size])
        with pytest.raises(errors.DamagedArchive):
            fastpack.unpack(cut, str(tmp_path / "target"))
        assert sorted(os.listdir(tmp_path)) == sorted([f"a.{suffix}", f"cut.{suffix}", "made env"])
    for size in (0, 100, len(data) // 2):
        Path(cut).write_bytes(data[:size])
        assert refused(cut, str(tmp_path / "target"), piped=True).code == 30


@pytest.mark.parametrize("suffix", ["tar.zst", "tar.gz", "tar"])
def test_flipped_bits_are_found(made: str, tmp_path: Path, suffix: str) -> None:
    """Refused, or without any effect (a bit that no byte of the environment depends on)."""
    out, bad, target = (str(tmp_path / name) for name in (f"a.{suffix}", f"bad.{suffix}", "target"))
    fastpack.pack(prefix=made, output=out)
    fastpack.unpack(out, target)
    wanted = {path: value for path, value in snapshot(target).items() if path != ".fastpack/state.json"}
    shutil.rmtree(target)
    data = Path(out).read_bytes()
    rng = random.Random(5)
    for _ in range(70):
        position = rng.randrange(len(data))
        flipped = bytearray(data)
        flipped[position] ^= 1 << rng.randrange(8)
        Path(bad).write_bytes(flipped)
        try:
            fastpack.unpack(bad, target)
        except errors.FastpackError as error:
            assert error.exit_code in (30, 31, 32), error
            assert not os.path.lexists(target)
        else:
            found = {path: value for path, value in snapshot(target).items() if path != ".fastpack/state.json"}
            assert found == wanted, position
            shutil.rmtree(target)


def test_what_is_no_archive(tmp_path: Path, made: str) -> None:
    for name, data in (("empty", b""), ("text", b"hello\n" * 400), ("zip", b"PK\x03\x04" + bytes(600))):
        (tmp_path / name).write_bytes(data)
        for piped in (False, True):
            done = refused(str(tmp_path / name), str(tmp_path / "target"), piped)
            assert done.code == 30 and len(done.err.strip().splitlines()) == 1, done.err
    for path in (str(tmp_path / "nothing"), made):
        with pytest.raises(errors.DamagedArchive):
            fastpack.unpack(path, str(tmp_path / "target"))


def rebuilt(archive: str, out: str, change: Callable[[Manifest, list[bytes]], Manifest]) -> str:
    """An archive of ours with other contents: `change` gets the manifest and the plain frames."""
    manifest = manifest_of(archive)
    data = Path(archive).read_bytes()
    codec = CODECS["tar.zst"]
    plains = [
        bytes(memoryview(codec.decompress(data[f.offset : f.offset + f.packed_bytes], f.plain_bytes)))
        for f in manifest.frames
    ]
    manifest = change(manifest, plains)
    blob, frames = b"", []
    for frame, plain in zip(manifest.frames, plains, strict=True):
        packed = codec.compress(plain, 3)
        frames.append(dataclasses.replace(frame, offset=len(blob), packed_bytes=len(packed), plain_bytes=len(plain)))
        blob += packed
    text = dataclasses.replace(manifest, frames=tuple(frames)).to_bytes()
    own = Member(Kind.FILE, ".fastpack/manifest", 0o644, content_mtime(digest.blake(text)), len(text))
    sizes = [(f.packed_bytes, f.plain_bytes) for f in frames]
    for part in (own.header(""), text, bytes(container.padding(len(text))) + container.END):
        packed = codec.compress(part, 3)
        if part is text:
            locator = Locator(int(manifest.header["format"]), len(blob), len(packed), len(text), digest.blake(text))
        blob += packed
        sizes.append((len(packed), len(part)))
    Path(out).write_bytes(blob + trailer(codec, locator, sizes))
    return out


def with_member(archive: str, out: str, which: str, **changes: object) -> str:
    def change(manifest: Manifest, plains: list[bytes]) -> Manifest:
        members = tuple(dataclasses.replace(m, **changes) if m.path == which else m for m in manifest.members)  # type: ignore[arg-type]
        return dataclasses.replace(manifest, members=members)

    return rebuilt(archive, out, change)


def test_a_rebuilt_archive_is_good(archive: str, tmp_path: Path) -> None:
    out = rebuilt(archive, str(tmp_path / "b.tar.zst"), lambda manifest, plains: manifest)
    fastpack.unpack(out, str(tmp_path / "target"))


@pytest.mark.parametrize(
    ("path", "changes", "code"),
    [
        ("share/app/plain.txt", {"path": "../escaped"}, 32),
        ("share/app/plain.txt", {"path": "/tmp/escaped"}, 32),
        ("share/app/plain.txt", {"path": "share/../x"}, 32),
        ("share/app/plain.txt", {"path": "bin/app"}, 32),
        ("share/app/plain.txt", {"path": "share/app/link/x"}, 32),
        ("share/app/plain.txt", {"path": ""}, 32),
        ("share/app/plain.txt", {"path": "a\0b"}, 32),
        ("share/app/plain.txt", {"mtime": 5}, 30),
        ("share/app/plain.txt", {"mode": 0o777}, 30),
        ("share/app/plain.txt", {"n_bytes": 19}, 30),
        ("share/app/plain.txt", {"n_bytes": 10**15}, 30),
        ("share/app/plain.txt", {"n_bytes": -1}, 30),
        ("share/app/plain.txt", {"digest": bytes(32)}, 30),
        ("share/app/plain.txt", {"kind": Kind.HARDLINK, "target": "../../etc/passwd"}, 32),
        ("share/app/link", {"target": "elsewhere"}, 30),
        ("share/app/link", {"target": ""}, 32),
    ],
)
def test_a_manifest_that_lies(archive: str, tmp_path: Path, path: str, changes: dict[str, object], code: int) -> None:
    out = with_member(archive, str(tmp_path / "b.tar.zst"), path, **changes)
    for piped in (False, True):
        assert refused(out, str(tmp_path / "target"), piped).code == code


def test_a_newer_format(archive: str, tmp_path: Path) -> None:
    def change(manifest: Manifest, plains: list[bytes]) -> Manifest:
        plains[0] = plains[0].replace(b'"format": 0', b'"format": 7')
        return dataclasses.replace(manifest, header={**manifest.header, "format": 7})

    out = rebuilt(archive, str(tmp_path / "b.tar.zst"), change)
    for piped in (False, True):
        assert refused(out, str(tmp_path / "target"), piped).code == 31


def test_another_platform(archive: str, tmp_path: Path) -> None:
    def change(manifest: Manifest, plains: list[bytes]) -> Manifest:
        plains[0] = plains[0].replace(os.uname().machine.encode(), b"m68k" + b" " * (len(os.uname().machine) - 4))
        return dataclasses.replace(
            manifest, header={**manifest.header, "requires": {"platform": "Linux", "arch": "m68k"}}
        )

    out = rebuilt(archive, str(tmp_path / "b.tar.zst"), change)
    for piped in (False, True):
        assert refused(out, str(tmp_path / "target"), piped).code == 24


@pytest.mark.parametrize(
    "items",
    [
        [(0, "text", 10**9)], [(10, "text", 255), (5, "text", 255)], [(-1, "text", 255)], [(0, "unheard-of", 5)],
        [(0, "text", 5)], [(0, "binary", 255, 10**6)], [(0, "binary", 255)], [(0, "binary", 3, 3)], [("x", "text", 1)],
        [(0, "record", 5, ["sha256", "x"])], [(0, "binary", 255, 255), (300, "text", 255)],
    ],
)  # fmt: skip
def test_relocations_that_lie(archive: str, tmp_path: Path, items: list[tuple[object, ...]]) -> None:
    def change(manifest: Manifest, plains: list[bytes]) -> Manifest:
        index = next(i for i, m in enumerate(manifest.members) if m.path.endswith("relocations.json"))
        table = json.loads(read_member(archive, ".fastpack/relocations.json"))
        for row in table["files"]:
            if row["path"] == "share/app/app.conf":
                row["items"] = items
        data = json.dumps(table).encode()
        member = dataclasses.replace(manifest.members[index], n_bytes=len(data),
                                     digest=digest.file_digest(digest.slice_digests(data)))  # fmt: skip
        header = member.header("")
        plains[-1] = header + data + bytes(container.padding(len(data)))
        hashed = digest.frame_digest([header, *digest.slice_digests(data)])
        frames = (*manifest.frames[:-1], dataclasses.replace(manifest.frames[-1], digest=hashed))
        members = (*manifest.members[:index], member, *manifest.members[index + 1 :])
        return dataclasses.replace(manifest, members=members, frames=frames)

    out = rebuilt(archive, str(tmp_path / "b.tar.zst"), change)
    for piped in (False, True):
        done = refused(out, str(tmp_path / "target"), piped)
        assert done.code == 30, done.err


def test_swapped_frames(archive: str, tmp_path: Path) -> None:
    manifest = manifest_of(archive)
    data = Path(archive).read_bytes()
    a, b = manifest.frames[-2], manifest.frames[-1]
    swapped = (
        data[: a.offset]
        + data[b.offset : b.offset + b.packed_bytes]
        + data[a.offset : b.offset]
        + data[b.offset + b.packed_bytes :]
    )
    out = tmp_path / "b.tar.zst"
    out.write_bytes(swapped)
    assert refused(str(out), str(tmp_path / "target"), piped=False).code == 30


def test_a_decompression_bomb_in_the_manifest(archive: str, tmp_path: Path) -> None:
    data = Path(archive).read_bytes()
    bomb = zstandard.ZstdCompressor().compress(bytes(50 << 20))
    locator = Locator(0, len(data), len(bomb), 1000, bytes(32))
    out = tmp_path / "b.tar.zst"
    out.write_bytes(data + bomb + trailer(CODECS["tar.zst"], locator, [(len(data), 5), (len(bomb), 1000)]))
    assert refused(str(out), str(tmp_path / "target"), piped=False).code == 30


# --- archives that are not ours


def foreign(path: Path, rows: list[tuple[str, bytes, str]], end: bool = True) -> str:
    """A tar of (name, type, link target or content)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, kind, content in rows:
            info = tarfile.TarInfo(name)
            info.type = kind
            info.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
            if kind == tarfile.REGTYPE:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content.encode()))
            else:
                info.linkname = content
                tar.addfile(info)
    data = buffer.getvalue()
    path.write_bytes(data if end else data.rstrip(b"\0"))
    return str(path)


REG, SYM, LNK, DIR = tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE


@pytest.mark.parametrize(
    "rows",
    [
        [("../x", REG, "x")], [("/abs", REG, "x")], [("a/../../x", REG, "x")], [("dev", tarfile.CHRTYPE, "")],
        [("fifo", tarfile.FIFOTYPE, "")], [("a", SYM, "/etc"), ("a/passwd", REG, "x")], [("a", LNK, "/etc/passwd")],
        [("a", LNK, "../x")], [("d", DIR, ""), ("d", REG, "x")], [("f", REG, "x"), ("f/x", REG, "x")],
        [("l", SYM, "x"), ("h", LNK, "l")], [(".fastpack/state.json", REG, "{}")],
    ],
)  # fmt: skip
def test_hostile_foreign_archives(tmp_path: Path, rows: list[tuple[str, bytes, str]]) -> None:
    path = foreign(tmp_path / "f.tar", [("ok", REG, "fine"), *rows])
    for piped in (False, True):
        assert refused(path, str(tmp_path / "target"), piped).code == 32


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


@pytest.mark.parametrize(
    ("rows", "code"),
    [([("../x", 0o100644, "x")], 32), ([("/abs", 0o100644, "x")], 32), ([("a", 0o120777, "/etc"), ("a/x", 0o100644, "x")], 32),
     ([("fifo", 0o010644, "")], 32), ([("cut", 0o100644, "x" * 5000)], 30)],
)  # fmt: skip
def test_hostile_zip_files(tmp_path: Path, rows: list[tuple[str, int, str]], code: int) -> None:
    with zipfile.ZipFile(tmp_path / "h.zip", "w") as file:
        for name, mode, content in [("ok", 0o100644, "fine"), *rows]:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            file.writestr(info, content)
    if code == 30:
        data = (tmp_path / "h.zip").read_bytes()
        (tmp_path / "h.zip").write_bytes(data.replace(b"x" * 100, b"y" * 100, 1))
    assert refused(str(tmp_path / "h.zip"), str(tmp_path / "target"), piped=False).code == code
    assert refused(str(tmp_path / "h.zip"), str(tmp_path / "target"), piped=True).code == 30


# --- kills


def test_a_killed_unpack_leaves_nothing_that_looks_whole(real_archive: str, tmp_path: Path) -> None:
    target = tmp_path / "target"
    rng = random.Random(11)
    n_killed = 0
    for _ in range(15):
        command = [sys.executable, "-m", "fastpack.cli", "unpack", real_archive, "-p", str(target), "-q", "-j1"]
        process = subprocess.Popen(command)
        while process.poll() is None and not list(tmp_path.glob("target.partial-*/.fastpack/incomplete")):
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.wait()
        if os.path.lexists(target) and not os.path.exists(target / ".fastpack/incomplete"):
            assert fastpack.relocate(str(target)).left == ()
            shutil.rmtree(target)
        else:
            n_killed += 1
    fastpack.unpack(real_archive, str(target))
    assert os.listdir(tmp_path) == ["target"]
    assert n_killed > 0


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


def test_another_unpack_to_the_same_place_is_not_disturbed(archive: str, tmp_path: Path) -> None:
    partial = tmp_path / "target.partial-12345678"
    write(str(partial), "bin/half", "")
    write(str(partial), ".fastpack/x", "")
    with _make_marker(str(partial), {"made": "whole"}):
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

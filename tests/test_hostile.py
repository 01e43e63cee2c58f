"""Archives nobody has to trust: each is refused with one line that names the first bad thing, nothing is left."""

from __future__ import annotations

import dataclasses
import errno
import os
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import fastpack
from fastpack import errors
from fastpack.codec import CODECS
from fastpack.frames import Locator, trailer
from fastpack.manifest import Manifest
from fastpack.model import Kind
from fastpack.rows import Rows
from tests.conftest import run_fastpack
from tests.forging import DIR, LNK, REG, SYM, foreign, forged_table, rebuilt, redigested, refused, rows_of, with_member
from tests.oracles.trees import snapshot
from tests.test_environment import write
from tests.test_packing import manifest_of


@pytest.mark.parametrize("suffix", ["tar.zst", "tar.gz", "tar"])
def test_truncated_at_every_frame_and_200_places(made: str, tmp_path: Path, suffix: str) -> None:
    out = str(tmp_path / f"a.{suffix}")
    fastpack.pack(prefix=made, output=out)
    data = Path(out).read_bytes()
    manifest = manifest_of(out)
    rng = random.Random(3)
    cuts = {frame.offset for frame in manifest.frames} | {
        frame.offset + frame.packed_bytes for frame in manifest.frames
    }
    cuts |= {len(data) - k for k in (1, 9, 60, 600)} | {rng.randrange(len(data)) for _ in range(200)}
    cut = str(tmp_path / f"cut.{suffix}")
    for size in sorted(cuts):
        Path(cut).write_bytes(data[:size])
        for command in (lambda: fastpack.unpack(cut, str(tmp_path / "target")), lambda: fastpack.verify(cut)):
            with pytest.raises(errors.DamagedArchive) as caught:
                command()
            assert "\n" not in str(caught.value)
        assert sorted(os.listdir(tmp_path)) == sorted([f"a.{suffix}", f"cut.{suffix}", "made env"])
    for size in (0, 1, 100, len(data) // 2, manifest.frames[-1].offset):
        Path(cut).write_bytes(data[:size])
        assert refused(cut, str(tmp_path / "target"), piped=True).code == 30


@pytest.mark.parametrize("suffix", ["tar.zst", "tar.gz", "tar"])
def test_200_flipped_bits_are_found(made: str, tmp_path: Path, suffix: str) -> None:
    """unpack: refused, or without any effect (a bit that no byte of the environment depends on). verify: always said."""
    out, bad, target = (str(tmp_path / name) for name in (f"a.{suffix}", f"bad.{suffix}", "target"))
    fastpack.pack(prefix=made, output=out)
    fastpack.unpack(out, target)
    wanted = {path: value for path, value in snapshot(target).items() if path != ".fastpack/state.json"}
    shutil.rmtree(target)
    data = Path(out).read_bytes()
    rng = random.Random(5)
    for _ in range(200):
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
        try:
            assert fastpack.verify(bad).problems, position
        except errors.FastpackError as error:
            assert error.exit_code in (30, 31, 32), error


def test_what_is_no_archive(tmp_path: Path, made: str) -> None:
    for name, data in (("empty", b""), ("text", b"hello\n" * 400), ("zip", b"PK\x03\x04" + bytes(600))):
        (tmp_path / name).write_bytes(data)
        for piped in (False, True):
            done = refused(str(tmp_path / name), str(tmp_path / "target"), piped)
            assert done.code == 30 and len(done.err.strip().splitlines()) == 1, done.err
    for path in (str(tmp_path / "nothing"), made):
        with pytest.raises(errors.DamagedArchive):
            fastpack.unpack(path, str(tmp_path / "target"))


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
    out = forged_table(archive, tmp_path / "b.tar.zst", lambda table: rows_of(table).update(items=items))
    for piped in (False, True):
        done = refused(out, str(tmp_path / "target"), piped)
        assert done.code == 30 and "fit its frames" not in done.err, done.err


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


def test_swapped_and_repeated_frames_of_equal_size(tmp_path: Path, made: str) -> None:
    """Frames that differ in content alone, so that only their digests can tell."""
    for k in range(4):
        write(made, f"own/{k}", bytes([65 + k]) * (9 << 20))
    out = str(tmp_path / "a.tar.zst")
    fastpack.pack(prefix=made, output=out)
    manifest, data = manifest_of(out), Path(out).read_bytes()
    by_size: dict[tuple[int, int], list[int]] = {}
    for index, frame in enumerate(manifest.frames):
        by_size.setdefault((frame.packed_bytes, frame.plain_bytes), []).append(index)
    same = next(rows for rows in by_size.values() if len(rows) >= 3)
    one, two = manifest.frames[same[0]], manifest.frames[same[1]]
    first, second = (data[f.offset : f.offset + f.packed_bytes] for f in (one, two))
    assert first != second
    swapped = bytearray(data)
    swapped[one.offset : one.offset + one.packed_bytes] = second
    repeated = bytes(swapped)
    swapped[two.offset : two.offset + two.packed_bytes] = first
    for bad in (repeated, bytes(swapped)):
        path = tmp_path / "b.tar.zst"
        path.write_bytes(bad)
        for piped in (False, True):
            assert refused(str(path), str(tmp_path / "target"), piped).code == 30
        done = run_fastpack("verify", path)
        assert done.code == 34 and f"frame {same[0]}" in done.err


def test_every_byte_of_an_archive_matters_to_verify(tmp_path: Path) -> None:
    """Exhaustively: whichever byte of a small archive is changed, verify says so."""
    prefix = str(tmp_path / "env")
    os.makedirs(f"{prefix}/conda-meta")
    write(prefix, "a", "x")
    for suffix in ("tar.zst", "tar.gz", "tar"):
        out = str(tmp_path / f"a.{suffix}")
        fastpack.pack(prefix=prefix, output=out)
        assert fastpack.verify(out).problems == ()
        data = Path(out).read_bytes()
        step = max(1, len(data) // 1500)
        bad = tmp_path / f"bad.{suffix}"
        for position in range(0, len(data), step):
            bad.write_bytes(data[:position] + bytes([data[position] ^ 0x21]) + data[position + 1 :])
            try:
                assert fastpack.verify(str(bad)).problems, (suffix, position)
            except errors.FastpackError as error:
                assert error.exit_code in (30, 31, 32), (suffix, position)


# --- Python's data filter is the yardstick

name = st.lists(st.sampled_from(["a", "b", "c", "..", ".", ""]), min_size=1, max_size=4).map("/".join)
row = st.tuples(name, st.sampled_from([REG, DIR, SYM, LNK, tarfile.FIFOTYPE, tarfile.CHRTYPE]), name)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(row, min_size=1, max_size=5))
@example(rows=[("a", SYM, "a/.."), ("a", SYM, "a/..")])
def test_what_the_data_filter_refuses_is_refused(rows: list[tuple[str, bytes, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        rows = [("d", DIR, ""), *[row for row in rows if row[0]]]
        path = foreign(Path(folder, "f.tar"), rows)
        refused_by_python = False
        os.mkdir(os.path.join(folder, "python"))
        with tarfile.open(path) as tar:
            for info in tar:
                try:
                    tar.extract(info, os.path.join(folder, "python"), filter="data")
                except tarfile.FilterError:
                    refused_by_python = True
                    break
                except (OSError, KeyError, RecursionError):
                    break
        target = os.path.join(folder, "target")
        try:
            fastpack.unpack(path, target)
        except errors.FastpackError as error:
            assert error.exit_code in (22, 30, 32), error
            assert sorted(os.listdir(folder)) == ["f.tar", "python"]
            return
        assert not refused_by_python, rows
        # Nothing that was unpacked leads out.
        for parent, folders, names in os.walk(target):
            for found in folders + names:
                full = os.path.join(parent, found)
                try:
                    os.stat(full)
                except OSError as error:
                    if error.errno == errno.ELOOP:
                        continue  # it leads nowhere, and realpath makes something up
                assert (os.path.realpath(full) + "/").startswith(os.path.realpath(target) + "/"), rows


@pytest.mark.parametrize(
    ("target", "in_ours"),
    [
        ("/etc/passwd", "/etc/passwd"), ("../../x", "../../../x"), ("a/../../../x", "a/../../../../x"),
        ("../way/../../x", "dangling/../../../../x"),
    ],
)  # fmt: skip
def test_links_that_lead_out(archive: str, tmp_path: Path, target: str, in_ours: str) -> None:
    """In archives of others, and in ours where the packer did not declare them."""
    rows = [("d", DIR, ""), ("way", SYM, "d"), ("d/l", SYM, target)]
    path = foreign(tmp_path / "f.tar", rows)
    for piped in (False, True):
        done = refused(path, str(tmp_path / "target"), piped)
        assert done.code == 32 and "d/l" in done.err
    assert run_fastpack("unpack", path, "-p", tmp_path / "kept", "--external-links", "keep").code == 0

    def change(manifest: Manifest, plains: list[bytes]) -> Manifest:
        index = next(k for k, m in enumerate(manifest.members) if m.path == "share/app/link")
        old = manifest.members[index]
        new = old._replace(target=in_ours)
        for k, plain in enumerate(plains):
            if old.header("") in plain:
                plains[k] = plain.replace(old.header(""), new.header(""))
        members = (*manifest.members[:index], new, *manifest.members[index + 1 :])
        return redigested(dataclasses.replace(manifest, members=Rows(members)), plains)

    out = rebuilt(archive, str(tmp_path / "b.tar.zst"), change)
    for piped in (False, True):
        done = refused(out, str(tmp_path / "target"), piped)
        assert done.code == 32 and "share/app/link" in done.err, done.err


# --- bombs, lies and crowds


def test_bombs(archive: str, tmp_path: Path) -> None:
    """A frame that holds more than it says, and a tar that holds more than the disk: nothing is left, little is used."""

    def change(manifest: Manifest, plains: list[bytes]) -> Manifest:
        plains[-1] = plains[-1] + bytes(60 << 20)
        return manifest

    out = rebuilt(archive, str(tmp_path / "b.tar.zst"), change)
    for piped in (False, True):
        assert refused(out, str(tmp_path / "target"), piped).code == 30
    header = tarfile.TarInfo("zeros")
    header.size = 1 << 50
    bomb = zstandard.ZstdCompressor().compress(header.tobuf(tarfile.GNU_FORMAT) + bytes(200 << 20))
    (tmp_path / "bomb.tar.zst").write_bytes(bomb)
    for piped in (False, True):
        done = refused(str(tmp_path / "bomb.tar.zst"), str(tmp_path / "target"), piped)
        assert done.code == 23 and len(done.err.splitlines()) == 1, done.err


MEMORY = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""


def peak_of(*arguments: object, stdin: object = None) -> int:
    """Peak memory in MB of a command that must succeed."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, sys.executable, "-m", "fastpack.cli", *map(str, arguments)],
        capture_output=True, text=True, stdin=stdin,  # type: ignore[call-overload]
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1]) // 1024


def test_100_000_tiny_members_in_bounded_memory(tmp_path: Path) -> None:
    prefix = str(tmp_path / "env")
    os.makedirs(f"{prefix}/conda-meta")
    for k in range(100):
        os.mkdir(f"{prefix}/{k}")
        for i in range(1000):
            with open(f"{prefix}/{k}/{i}", "w") as file:
                file.write(f"{i}\n")
    out = str(tmp_path / "a.tar.zst")
    peaks = [peak_of("pack", "-p", prefix, "-o", out), peak_of("unpack", out, "-p", tmp_path / "target")]
    assert sum(len(names) for _, _, names in os.walk(tmp_path / "target")) >= 100_000
    shutil.rmtree(tmp_path / "target")
    with open(out, "rb") as pipe:
        peaks.append(peak_of("unpack", "-", "-p", tmp_path / "target", stdin=pipe))
    assert max(peaks) < 600, peaks  # the names and their rows; 4 KB for each file


def test_headers_with_endless_names(tmp_path: Path) -> None:
    for kind in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE):
        info = tarfile.TarInfo("././@LongLink")
        info.type, info.size = kind, 1 << 40
        (tmp_path / "f.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 20))
        for piped in (False, True):
            assert refused(str(tmp_path / "f.tar"), str(tmp_path / "target"), piped).code == 30


@pytest.mark.parametrize("command", [["inspect"], ["ls"], ["cat"], ["verify"], ["unpack"]])
def test_every_reader_can_be_pointed_at_anything(tmp_path: Path, made: str, command: list[str]) -> None:
    things = {"empty": b"", "text": b"hello\n" * 400, "zeros": bytes(2000), "magic": b"\x28\xb5\x2f\xfd" + bytes(600),
              "gzip": b"\x1f\x8b\x08" + bytes(500), "noise": random.Random(2).randbytes(5000)}  # fmt: skip
    for thing, data in things.items():
        (tmp_path / thing).write_bytes(data)
    foreign(tmp_path / "tar", [("x", REG, "x")])
    more = {"unpack": ["-p", str(tmp_path / "target")], "cat": ["x"]}.get(command[0], [])
    for thing in [*things, "tar", "not there", "made env"]:
        if (command[0], thing) == ("unpack", "tar"):
            continue
        done = run_fastpack(*command, tmp_path / thing, *more)
        wanted = (11,) if (command[0], thing) == ("verify", "made env") else (30,)
        assert done.code in wanted and len(done.err.splitlines()) == 1, (thing, done.err)
        done = run_fastpack(*command, tmp_path / thing, *more, "--json")
        assert done.json["exit_code"] in wanted and done.json["error"]["message"]
    assert not (tmp_path / "target").exists()

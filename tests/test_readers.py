"""Other people's programs read our archives: GNU tar, bsdtar, zstd, pzstd, python-zstandard, pyzstd, gzip, tarfile."""

from __future__ import annotations

import gzip
import os
import subprocess
import tarfile
from pathlib import Path

import pytest
import zstandard

import fastpack
from tests.conftest import need
from tests.oracles.trees import snapshot
from tests.test_environment import write
from tests.test_packing import manifest_of


@pytest.fixture
def archives(made: str, tmp_path: Path) -> dict[str, str]:
    """The same environment in each format, with names and sizes that make a tar interesting."""
    for size in (0, 1, 511, 512, 513, 1 << 20, (8 << 20) + 1):
        write(made, f"sizes/{size}", os.urandom(size % 1000) + bytes(size - size % 1000))
    write(made, "deep/" + "n" * 120 + "/" + "m" * 200, "long")
    os.symlink("t" * 150, os.path.join(made, "deep/link"))
    write(made, os.fsdecode(b"raw-\xff\xfe"), "raw")
    write(made, "deep/strict", "x", 0o555)
    found = {}
    for suffix in ("tar.zst", "tar.gz", "tar"):
        found[suffix] = str(tmp_path / f"a.{suffix}")
        fastpack.pack(prefix=made, output=found[suffix])
    return found


def plain_of(archive: str) -> bytes:
    with open(archive, "rb") as file:
        return zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True).read()


def test_python_zstandard(archives: dict[str, str]) -> None:
    assert plain_of(archives["tar.zst"])[257:262] == b"ustar"


def test_all_formats_hold_the_same_stream_but_for_the_manifest(archives: dict[str, str]) -> None:
    with gzip.open(archives["tar.gz"]) as file:
        gz = file.read()
    tar = Path(archives["tar"]).read_bytes()
    zst = plain_of(archives["tar.zst"])
    end = zst.index(b".fastpack/manifest\0")
    assert zst[:end] == gz[:end] == tar[:end]


@pytest.mark.parametrize("tool", ["zstd", "pzstd"])
def test_zstd_and_pzstd(archives: dict[str, str], tool: str) -> None:
    need_tool(tool)
    done = subprocess.run([tool, "-d", "-q", "-c", archives["tar.zst"]], capture_output=True, check=True)
    assert done.stdout == plain_of(archives["tar.zst"]) and not done.stderr


def need_tool(tool: str) -> None:
    import shutil

    if shutil.which(tool) is None:
        pytest.skip(f"not on this machine: {tool}")


@pytest.mark.parametrize("suffix", ["tar.zst", "tar.gz", "tar"])
@pytest.mark.parametrize("tool", ["tar", "bsdtar"])
def test_tar_and_bsdtar_extract_what_was_packed(
    archives: dict[str, str], tmp_path: Path, tool: str, suffix: str
) -> None:
    need_tool(tool)
    if suffix == "tar.zst":
        need_tool("zstd")
    target = tmp_path / "target"
    target.mkdir()
    done = subprocess.run([tool, "-xf", archives[suffix], "-C", str(target)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    tree = snapshot(str(target))
    for member in manifest_of(archives[suffix]).members:
        kind, *rest = tree.pop(member.path)
        assert kind == ("file" if member.kind == "hardlink" else member.kind)
        if kind == "file" and member.kind == "file":
            assert rest[0] == member.mode and rest[2] == member.mtime and len(rest[1]) == member.n_bytes
    assert set(tree) == {".fastpack/manifest"}


def test_pyzstds_seekable_reader(archives: dict[str, str]) -> None:
    pyzstd = pytest.importorskip("pyzstd")
    plain = plain_of(archives["tar.zst"])
    with pyzstd.SeekableZstdFile(archives["tar.zst"], "r") as file:
        for offset in (0, 1000, 3 << 20, len(plain) - 2000):
            file.seek(offset)
            assert file.read(1000) == plain[offset : offset + 1000]


@pytest.mark.parametrize("suffix", ["tar.gz", "tar"])
def test_tarfile_and_its_data_filter(archives: dict[str, str], tmp_path: Path, suffix: str) -> None:
    with tarfile.open(archives[suffix], errors="surrogateescape") as tar:
        tar.extractall(tmp_path / "target", filter="data")
    assert (tmp_path / "target/share/app/link").is_symlink()


@need("gzip", "pigz")
def test_gzip_and_pigz(archives: dict[str, str]) -> None:
    for tool in ("gzip", "pigz"):
        done = subprocess.run([tool, "-t", archives["tar.gz"]], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")


@need("tar", "zstd", "setpriv")
@pytest.mark.skipif(os.getuid() != 0, reason="only root can become an ordinary user")
def test_an_ordinary_user_extracts_strict_directories(made: str, tmp_path: Path) -> None:
    write(made, "strict/below/file", "x", 0o444)
    os.chmod(os.path.join(made, "strict/below"), 0o555)
    out = str(tmp_path / "a.tar.zst")
    fastpack.pack(prefix=made, output=out)
    os.chmod(os.path.join(made, "strict/below"), 0o755)
    import shutil
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        shutil.copy(out, f"{folder}/a.tar.zst")
        os.chmod(f"{folder}/a.tar.zst", 0o644)
        command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "tar", "--zstd", "-xf", "a.tar.zst"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        assert os.path.exists(f"{folder}/strict/below/file")

"""Rows 1 and 7 in wide characters: what conda and rattler write into a package's file, undone and done again."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import pytest

import fastpack
from fastpack import _relocate_py, errors, made_prefix
from fastpack._place_py import Relocation, read_table, width_of, write_relocations
from fastpack.made_prefix import MadeFile
from fastpack.native import kernel as native
from tests.conftest import P, make_channel_environment
from tests.oracles import rattler_rules
from tests.oracles.conda_rules import binary_replace
from tests.test_rows import WIDE, made, read
from tests.trips import pack, relocations, trip

TEXT = P.decode()


def some_file(rng: random.Random, mode: str) -> bytes:
    """Narrow and wide strings of all kinds in any order, wide ones at whole characters as compilers place them."""
    ends = ["\0"] if mode == "binary" else ["\0", "\n"]  # a string in a binary reaches into no other one
    strings = [
        "{0}/x", "a{0}/ü:{0}", "{0}", "é {0}/Ā一a/q", "{0}{0}", "no prefix", "ü" * 40, "", "{0}\0\0\0", "%s/{0}2",
    ]  # fmt: skip
    data = b""
    for _ in range(rng.randrange(1, 12)):
        codec = rng.choice([*WIDE, *WIDE, "utf-8"])
        data += rng.choice([b"", b"\0", b"\0\0\0\0\0\0\0", b"\1", b"\1\2\3", b"\xff\0", b"x" * rng.randrange(9)])
        data += rng.choice([b"\0", b"\1"]) * (-len(data) % width_of(codec))
        data += (rng.choice(strings) + rng.choice(ends)).format(TEXT).encode(codec)
    last = rng.choice(WIDE)
    data += bytes(-len(data) % width_of(last))
    return data + rng.choice([b"", b"\0\0\0\0", P, (TEXT + "/end").encode(last)])


@pytest.mark.parametrize("name", ["target", "环境 ü"])
@pytest.mark.parametrize("seed", range(15))
def test_row_1_wide_characters_in_any_mixture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, name: str
) -> None:
    rng = random.Random(seed)
    monkeypatch.setattr(made_prefix, "replace_prefix", rattler_rules.replace_prefix)
    files = {
        f"share/{mode}{k}": MadeFile(some_file(rng, mode), file_mode=mode)
        for k in range(6)
        for mode in ("binary", "text")
    }
    prefix = made(tmp_path, files)
    target = trip(prefix, tmp_path, str(tmp_path / name))
    for path, file in files.items():
        assert file.file_mode is not None
        wanted = rattler_rules.replace_prefix(file.data, file.file_mode, P, os.fsencode(target))
        assert read(target, path) == wanted, path


def package(folder: Path, files: Mapping[str, MadeFile]) -> None:
    """A channel with one package, ``wide``, in the format of conda-build."""
    paths = [
        {"_path": path, "path_type": "hardlink", "sha256": hashlib.sha256(file.data).hexdigest(),
         "size_in_bytes": len(file.data), "file_mode": file.file_mode, "prefix_placeholder": TEXT}
        for path, file in files.items()
    ]  # fmt: skip
    index = {"name": "wide", "version": "1", "build": "0", "build_number": 0, "depends": [], "subdir": "noarch"}
    tables = {"info/index.json": index, "info/paths.json": {"paths": paths, "paths_version": 1}}
    contents = {path: file.data for path, file in files.items()}
    contents |= {path: json.dumps(table).encode() for path, table in tables.items()}
    contents["info/files"] = "\n".join(files).encode()
    place = folder / "noarch" / "wide-1-0.tar.bz2"
    place.parent.mkdir(parents=True)
    with tarfile.open(place, "w:bz2") as tar:
        for path, data in contents.items():
            member = tarfile.TarInfo(path)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    packed = place.read_bytes()
    row = {**index, "size": len(packed), "sha256": hashlib.sha256(packed).hexdigest()}
    (place.parent / "repodata.json").write_text(json.dumps({"packages": {place.name: row}, "packages.conda": {}}))


def test_row_1_wide_characters_as_rattler_itself_installs_them(tmp_path: Path) -> None:
    """The oracle above is what rattler was seen to do; here it is rattler."""
    pytest.importorskip("rattler", reason="py-rattler is not installed")
    rng = random.Random(7)
    files = {
        f"share/{mode}{k}": MadeFile(some_file(rng, mode), file_mode=mode)
        for k in range(60)
        for mode in ("binary", "text")
    }
    package(tmp_path / "channel", files)
    source = str(tmp_path / "source env")
    make_channel_environment([str(tmp_path / "channel")], ["wide"], source)
    archive = pack(source, tmp_path / "a.tar.zst")
    shutil.rmtree(source)
    for name in ("target", "环境 ü"):
        target, fresh = str(tmp_path / name), str(tmp_path / "unpacked")
        make_channel_environment([str(tmp_path / "channel")], ["wide"], target)
        wanted = {path: read(target, path) for path in files}
        shutil.rmtree(target)
        fastpack.unpack(archive, fresh, dest_prefix=target)
        differing = [path for path in files if read(fresh, path) != wanted[path]]
        assert not differing
        shutil.rmtree(fresh)


def test_row_7_a_text_with_many_hits_of_all_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(made_prefix, "replace_prefix", rattler_rules.replace_prefix)
    lines = [f"at {TEXT}/a\n".encode(), *(f"in {TEXT}/ü:{TEXT}\n".encode(codec) for codec in WIDE)]
    data = b"".join(line + bytes(-len(line) % 4) for line in lines) * 40
    prefix = made(tmp_path, {"share/it": MadeFile(data, file_mode="text")})
    target = trip(prefix, tmp_path, str(tmp_path / "环境"))
    assert read(target, "share/it") == rattler_rules.replace_prefix(data, "text", P, os.fsencode(target))


@pytest.mark.parametrize("codec", WIDE)
def test_row_5_pad_slash_fills_wide_characters_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str) -> None:
    monkeypatch.setattr(made_prefix, "replace_prefix", rattler_rules.replace_prefix)
    data = b"\x7fELF" + f"{TEXT}/a:{TEXT}\0".encode(codec) + P + b"/b\0end"
    prefix = made(tmp_path, {"lib/it.so": MadeFile(data, file_mode="binary")})
    target = trip(prefix, tmp_path, str(tmp_path / "环境"), pad=("slash",))
    filled = target + "/" * (len(TEXT) - len(target))
    narrow = os.fsencode(target).ljust(len(P), b"/")
    assert read(target, "lib/it.so") == data.replace(TEXT.encode(codec), filled.encode(codec)).replace(P, narrow)
    # Once more, from there: by hash, without what fastpack recorded.
    shutil.rmtree(Path(target, ".fastpack"))
    third = trip(target, tmp_path, str(tmp_path / "third"))
    assert read(third, "lib/it.so") == data.replace(
        TEXT.encode(codec), third.ljust(len(TEXT), "/").encode(codec)
    ).replace(P, os.fsencode(third).ljust(len(P), b"/"))


@pytest.mark.parametrize("codec", WIDE)
def test_row_7_wide_text_relocated_and_packed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str
) -> None:
    monkeypatch.setattr(made_prefix, "replace_prefix", rattler_rules.replace_prefix)
    data = {
        "binary": f"{TEXT}/a\0b\0".encode(codec) + P + b"\0",
        "text": f"in {TEXT}\n".encode(codec) + f"at {TEXT}/a\n".encode(),
    }
    prefix = made(tmp_path, {f"share/{mode}": MadeFile(content, file_mode=mode) for mode, content in data.items()})
    archive = pack(prefix, tmp_path / "a.tar.zst")
    kinds = {item.kind for file in relocations(archive).values() for item in file.items}
    assert {f"binary-{codec}", "binary", f"text-{codec}", "text"} <= kinds
    target = trip(prefix, tmp_path, str(tmp_path / "one"))
    for place in (str(tmp_path / "环境"), "/x"):
        assert fastpack.relocate(target, dest_prefix=place).left == ()
        for mode, content in data.items():
            assert read(target, f"share/{mode}") == rattler_rules.replace_prefix(content, mode, P, os.fsencode(place))
    again = str(tmp_path / "again.tar.zst")
    fastpack.relocate(target)
    pack(target, tmp_path / "again.tar.zst")
    assert relocations(again)["share/binary"] == relocations(archive)["share/binary"]
    assert relocations(again)["share/text"] == relocations(archive)["share/text"]


def test_a_prefix_that_no_wide_character_spells_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(made_prefix, "replace_prefix", rattler_rules.replace_prefix)
    prefix = made(tmp_path, {"lib/it.so": MadeFile(f"{TEXT}/a\0".encode("utf-16-le"), file_mode="binary")})
    archive = pack(prefix, tmp_path / "a.tar.zst")
    target = os.fsdecode(os.fsencode(tmp_path) + b"/not\xff")
    with pytest.raises(errors.Unrelocatable) as caught:
        fastpack.unpack(archive, target)
    assert caught.value.path == "lib/it.so" and not os.path.lexists(target)


def test_the_longest_prefix_is_counted_in_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(made_prefix, "replace_prefix", rattler_rules.replace_prefix)
    prefix = made(tmp_path, {"lib/it.so": MadeFile(f"{TEXT}/a\0".encode("utf-32-be"), file_mode="binary")})
    archive = pack(prefix, tmp_path / "a.tar.zst")
    assert fastpack.inspect(archive).longest_prefix == len(P)
    with pytest.raises(errors.PrefixTooLong):
        fastpack.unpack(archive, str(tmp_path / "t"), dest_prefix="/" + "n" * len(P))


def test_a_modified_binary_is_undone_in_all_its_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(made_prefix, "replace_prefix", rattler_rules.replace_prefix)
    data = b"\x7fELF\0" + P + b"/a\0" + f"{TEXT}/b\0".encode("utf-32-le") + b"\1end"
    prefix = made(tmp_path, {"lib/it.so": MadeFile(data, file_mode="binary")})
    path = Path(prefix, "lib/it.so")
    path.write_bytes(path.read_bytes() + b"!")
    target = trip(prefix, tmp_path, str(tmp_path / "n"))
    # The placeholder is our own there, of the same length.
    assert read(target, "lib/it.so") == rattler_rules.replace_prefix(data, "binary", P, os.fsencode(target)) + b"!"


@pytest.mark.parametrize("kernel", [native, _relocate_py])
@pytest.mark.parametrize("codec", WIDE)
@pytest.mark.parametrize("seed", range(10))
def test_the_kernels_do_in_wide_characters_what_they_do_in_narrow_ones(
    kernel: ModuleType, codec: str, seed: int
) -> None:
    rng = random.Random(seed)
    old, new = b"/old/prefix", b"/" + b"n" * rng.randrange(10)
    parts = [old, old + b"/lib", b"\0", b"\0\0\0", b"text", b":" + old, b"\0" * 40]
    data = b"".join(rng.choice(parts) for _ in range(rng.randrange(40))) + b"\0"
    strings: list[tuple[int, int, list[int]]] = []
    width = width_of(codec)
    for offset, _ in kernel.find(data, (old,)):
        if strings and offset < strings[-1][0] + strings[-1][1]:
            strings[-1][2].append(offset)
        else:
            strings.append((offset, data.index(b"\0", offset) - offset, [offset]))
    rows = [(start * width, length * width, [hit * width for hit in hits]) for start, length, hits in strings]
    buffer = bytearray(data.decode().encode(codec))
    before = bytes(buffer)
    in_wide = [text.decode().encode(codec) for text in (old, new)]
    assert kernel.place_strings(buffer, rows, *in_wide, width) == -1
    assert bytes(buffer) == binary_replace(data, old, new).decode().encode(codec)
    assert kernel.restore_strings(buffer, rows, *in_wide, width) == -1
    assert bytes(buffer) == before
    if rows:  # a NUL in a string
        start, length, _ = rows[0]
        spoiled = bytearray(buffer[: start + length] + bytes(width) + buffer[start + length :])
        assert kernel.place_strings(spoiled, [(start, length + width, [start])], *in_wide, width) == start
    with pytest.raises(ValueError, match="3 bytes"):
        kernel.place_strings(buffer, rows, *in_wide, 3)


@pytest.mark.parametrize(
    "item",
    [
        Relocation(0, "binary-utf-16-le", 510, "optional"), Relocation(0, "binary-utf-16-le", 510, -1),
        Relocation(0, "slash-utf-32-be", 1020, "optional"), Relocation(0, "text-utf-16-le", 510, 5),
        Relocation(0, "binary-utf-8", 255, 5), Relocation(0, "json-utf-16-le", 510), Relocation(0, "utf-16-le", 510, 7),
    ],
)  # fmt: skip
def test_a_relocation_that_means_nothing_is_refused(item: Relocation) -> None:
    file = fastpack._place_py.RelocatedFile("it", "0" * 64, 5000, 0o644, P, (item,))
    with pytest.raises(ValueError, match="with another value"):
        read_table(write_relocations([file]))

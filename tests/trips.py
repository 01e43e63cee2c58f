"""Packing an environment and unpacking it elsewhere in every way there is: what all of them must agree on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import fastpack
from fastpack._place_py import RelocatedFile, first_line, in_slot, read_relocations
from fastpack.reader import open_archive
from tests.oracles.trees import snapshot
from tests.test_conda_unpack import conda_unpack, extract, tree


def pack(prefix: str, out: Path, **options: object) -> str:
    fastpack.pack(prefix=prefix, output=str(out), force=True, **options)  # type: ignore[arg-type]
    return str(out)


def members(archive: str) -> dict[str, bytes]:
    """Every file of an archive as it lies there."""
    with open_archive(archive) as opened:
        return {
            member.path: b"".join(map(bytes, opened.content(index)))
            for index, member in enumerate(opened.manifest.members)
            if member.kind == "file"
        }


def relocations(archive: str) -> dict[str, RelocatedFile]:
    return {file.path: file for file in read_relocations(members(archive)[".fastpack/relocations.json"])}


def trip(prefix: str, tmp_path: Path, target: str | None = None, **options: object) -> str:
    """Pack; take the source away; unpack by fastpack and by tar and conda-unpack at one path: the same tree.

    Every byte of it that is not the archive's is explained by a relocation. Returns the unpacked environment.
    """
    unpack_options = {key[7:]: options.pop(key) for key in list(options) if key.startswith("unpack_")}
    archive = pack(prefix, tmp_path / "trip.tar.zst", **options)
    os.rename(prefix, prefix + ".away")
    try:
        target = str(tmp_path / "target") if target is None else target
        report = fastpack.unpack(archive, target, **unpack_options)
        first = tree(target)
        explained(archive, target)
        assert fastpack.verify(target).problems == () and fastpack.verify(archive, deep=True).problems == ()
        pads = json.loads(os.fsdecode(Path(target, ".fastpack/state.json").read_bytes()))["pad"]
        shutil.rmtree(target)
        if not pads:
            extract(archive, target)
            done = conda_unpack(target)
            assert done.returncode == 0, done.stderr
            assert tree(target) == first, [path for path in first if tree(target).get(path) != first[path]]
            shutil.rmtree(target)
        assert fastpack.unpack(archive, target, **unpack_options).warnings == report.warnings
    finally:
        os.rename(prefix + ".away", prefix)
    return target


def explained(archive: str, target: str) -> None:
    """Nothing outside of recorded slots differs between the archive's members and the tree."""
    archived, table = members(archive), relocations(archive)
    found = snapshot(target)
    prefix = os.fsencode(target)
    for path, data in archived.items():
        placed: bytes = found[path][2]  # type: ignore[assignment]
        if path not in table:
            assert placed == data or path == ".fastpack/state.json", path
            continue
        file = table[path]
        if not file.fits(prefix):
            assert placed == data
            continue
        position = shift = 0
        for item in file.items:
            string = item.fixed and isinstance(item.value, int)
            if item.fixed:
                # A string may shift in itself; it never leaves its place.
                assert len(placed) == len(data)
                if item.offset >= position:
                    assert placed[position : item.offset] == data[position : item.offset], path
                    position = item.offset + (item.value if string else item.slot)
                continue
            before = data[position : item.offset]
            assert placed[position + shift : item.offset + shift] == before
            if item.kind in ("record", "pip-record"):
                old, new = item.slot, _field_length(placed, item.offset + shift, item.kind)
            elif item.kind == "shebang":
                new_header = first_line(item, file.placeholder, prefix)
                old, new = item.slot, len(new_header)
                assert placed.startswith(new_header)
            else:
                spelled = in_slot(item, prefix)
                assert placed[item.offset + shift :].startswith(spelled)
                old, new = item.slot, len(spelled)
            position = item.offset + old
            shift += new - old
        assert placed[position + shift :] == data[position:] or file.items[0].fixed
        if file.items[0].fixed:
            assert placed[position:] == data[position:]


def _field_length(data: bytes, offset: int, kind: str) -> int:
    end = offset
    while end < len(data) and data[end : end + 1] not in (b'"', b",", b"\n", b"\r", b" ", b"}"):
        end += 1
    if kind == "pip-record":  # hash and size, one field for us
        end = data.index(b",", offset) + 1
        while end < len(data) and data[end : end + 1].isdigit():
            end += 1
    return end - offset


def compile_c(source: str, out: str, *flags: str) -> str:
    os.makedirs(os.path.dirname(out), exist_ok=True)
    subprocess.run(["gcc", "-x", "c", "-", "-o", out, *flags], input=source, text=True, check=True)
    return out

"""Placing: one policy for fastpack and conda-unpack, and its inverse."""

from __future__ import annotations

import hashlib
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastpack._place_py import (
    MIB,
    SMALL_FILE,
    Mismatch,
    RelocatedFile,
    Relocation,
    Stated,
    content_mtime,
    in_slot,
    longest_prefix,
    place,
    placed_growth,
    placed_header,
    read_relocations,
    relocate_tree,
    relocated_mtime,
    unplace,
    windows,
    write_relocations,
)
from fastpack.model import PLACEHOLDER
from tests.oracles.rattler_rules import entry_point_shebang, replace_shebang

P = PLACEHOLDER.decode()
PREFIXES = [
    "/",
    "/n",
    "/a b",
    "/" + "x" * 100,
    "/" + "x" * 124,
    "/" + "x" * 125,
    "/" + "x" * 240,
    "/环境/é",
    "/a b/" + "y" * 200,
]
HEADERS = [f"#!{P}/bin/python", f"#!{P}/bin/python3.11 -u", f"#! {P}/bin/python3.11", f"#!{P}/bin/perl -w", "#!/bin/sh",
           f"#!/bin/sh {P}/x", f"#!{P}/bin/Rscript --vanilla", f"#!{P}/bin/python\r"]  # fmt: skip


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("header", HEADERS)
def test_row_12_placed_headers_are_rattlers(header: str, prefix: str) -> None:
    assert placed_header(header.encode(), PLACEHOLDER, prefix.encode()).decode() == replace_shebang(header, P, prefix)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_row_12_entry_points_are_rattlers(prefix: str) -> None:
    found = placed_header(f"#!{P}/bin/python3.11".encode(), PLACEHOLDER, prefix.encode()).decode()
    assert found == entry_point_shebang(prefix, "bin/python3.11")


names = st.text(st.sampled_from('ab/ é"\\%$#x.'), min_size=1, max_size=30).map(lambda text: os.fsencode("/" + text))
kinds = st.lists(st.sampled_from(["text", "percent", "json", "direct-url"]), max_size=6)


@given(kinds, names, names)
def test_n1_n2_n1_is_identity_for_text(spelled: list[str], one: bytes, two: bytes) -> None:
    data, items = bytearray(b"begin "), []
    for kind in spelled:
        items.append(Relocation(len(data), kind, len(PLACEHOLDER)))
        data += PLACEHOLDER + b"/x; "
    original = bytes(data)
    at_one = place(bytearray(data), items, PLACEHOLDER, one)
    assert len(at_one) == len(data) + placed_growth(items, PLACEHOLDER, one)
    assert bytes(unplace(bytearray(at_one), items, PLACEHOLDER, one)) == original
    at_two = place(unplace(bytearray(at_one), items, PLACEHOLDER, one), items, PLACEHOLDER, two)
    assert place(unplace(bytearray(at_two), items, PLACEHOLDER, two), items, PLACEHOLDER, one) == at_one


def test_a_shebang_and_what_follows_come_back() -> None:
    archive = b"#!/bin/sh\n'''exec' \"x\" #'''"
    data = archive + b"\nhere " + PLACEHOLDER + b"\n"
    items = [
        Relocation(0, "shebang", len(archive), [f"#!{P}/bin/python -u", archive.decode()]),
        Relocation(len(archive) + 6, "text", len(PLACEHOLDER)),
    ]
    for prefix in PREFIXES:
        placed = place(bytearray(data), items, PLACEHOLDER, prefix.encode())
        assert bytes(placed).endswith(b"\nhere " + prefix.encode() + b"\n")
        assert bytes(unplace(placed, items, PLACEHOLDER, prefix.encode())) == data


def test_records_state_the_placed_files() -> None:
    archive = {"f": Stated("a" * 64, 1234)}
    placed = {"f": Stated("b" * 64, 7)}
    data = b'{"sha256": "' + b"a" * 64 + b'", "size": 1234}'
    items = [Relocation(12, "record", 64, ["sha256", "f"]), Relocation(87, "record", 4, ["size", "f"])]
    done = place(bytearray(data), items, PLACEHOLDER, b"/n", 0, placed)
    assert bytes(done) == b'{"sha256": "' + b"b" * 64 + b'", "size": 7}'
    assert bytes(unplace(done, items, PLACEHOLDER, b"/n", 0, archive)) == data
    # A file that was left as it is keeps what was stated of it.
    assert bytes(place(bytearray(data), items, PLACEHOLDER, b"/n", 0, {})) == data


@pytest.mark.parametrize("kind", ["text", "percent", "json", "direct-url"])
def test_other_bytes_than_recorded_are_never_replaced(kind: str) -> None:
    items = [Relocation(3, kind, len(PLACEHOLDER))]
    with pytest.raises(Mismatch):
        place(bytearray(b"xx" + PLACEHOLDER + b"yy"), items, PLACEHOLDER, b"/n")
    with pytest.raises(Mismatch):
        unplace(bytearray(b"xx /other"), items, PLACEHOLDER, b"/n")


def test_encodings() -> None:
    assert in_slot(Relocation(0, "percent", 9), "/a b/é".encode()) == b"/a%20b/%C3%A9"
    assert in_slot(Relocation(0, "json", 9), '/a"b\\é'.encode()) == '/a\\"b\\\\é'.encode()
    with pytest.raises(Mismatch):
        in_slot(Relocation(0, "unheard-of", 9), b"/n")


def test_windows_never_cut_a_string() -> None:
    items = [Relocation(0, "binary", 10, 50), Relocation(20, "binary", 10), Relocation(95, "binary", 10, 30),
             Relocation(199, "binary", 10, 100)]  # fmt: skip
    cuts = list(windows(items, 1000, 100))
    assert cuts[0] == (0, 200, 0, 3) or cuts[0][1] > 125
    assert [cut[0] for cut in cuts] == [0] + [cut[1] for cut in cuts[:-1]]
    assert cuts[-1][1] == 1000
    for start, stop, first, last in cuts:
        for item in items[first:last]:
            assert start <= item.offset and item.offset + (item.value or item.slot) + 1 <= stop
    assert list(windows([], 0, 100)) == [(0, 0, 0, 0)]


def test_mtimes_are_even_seconds_between_2000_and_2019() -> None:
    for k in range(200):
        mtime = content_mtime(hashlib.sha256(bytes([k])).digest())
        assert mtime % 2 == 0 and 946684800 <= mtime < 946684800 + 2 * 315576000
    assert content_mtime(bytes(7) + b"\x05" + bytes(24)) == 946684800 + 10
    large = bytes(SMALL_FILE + 5)
    changed = bytearray(large)
    changed[MIB + 1] = 1  # between first and last MiB: by design not seen
    assert relocated_mtime(large) == relocated_mtime(bytes(changed))
    changed[-1] = 1
    assert relocated_mtime(large) != relocated_mtime(bytes(changed))


def test_relocations_json_reads_back_and_refuses_nonsense() -> None:
    items = (Relocation(0, "binary", 255, 300), Relocation(255, "binary", 10))
    files = [RelocatedFile("lib/\udcff", "0" * 64, 1000, 0o755, PLACEHOLDER, items)]
    data = write_relocations(files)
    assert data.isascii()
    assert read_relocations(data) == files
    assert longest_prefix(files) == 10
    for broken in (b"{}", b"[]", data.replace(b'"format":0', b'"format":9'), data.replace(b"[255,", b"[254,"),
                   data.replace(b'"size":1000', b'"size":200'), data[:-3]):  # fmt: skip
        with pytest.raises((KeyError, TypeError, ValueError)):
            read_relocations(broken)


def test_a_tree_may_stop_anywhere_and_be_finished(tmp_path: os.PathLike[str]) -> None:
    root = os.fspath(tmp_path)
    os.mkdir(os.path.join(root, ".fastpack"))
    binary = b"\x7f\0" + PLACEHOLDER + b"/lib\0tail"
    files = []
    for k in range(4):
        text = b"at " + PLACEHOLDER + b"\n" + bytes([65 + k])
        for name, data, item in (
            (f"b{k}", binary, Relocation(2, "binary", 255, 259)),
            (f"t{k}", text, Relocation(3, "text", 255)),
        ):
            with open(os.path.join(root, name), "wb") as file:
                file.write(data)
            os.chmod(os.path.join(root, name), 0o640)
            files.append(RelocatedFile(name, hashlib.sha256(data).hexdigest(), len(data), 0o640, PLACEHOLDER, (item,)))
    relocate_tree(root, "/first", files, None)
    # Interrupted on the way from /first to /second: half of the files are there already.
    relocate_tree(root, "/second", files[:5], {"prefix": "/first", "target": "/second", "complete": False})
    done = relocate_tree(root, "/second", files, {"prefix": "/first", "target": "/second", "complete": False})
    assert len(done.unchanged) == 5 and len(done.written) == 3 and not done.left
    with open(os.path.join(root, "t3"), "rb") as file:
        assert file.read() == b"at /second\nD"
    with open(os.path.join(root, "t2"), "ab") as file:
        file.write(b"changed since")
    done = relocate_tree(root, "/third", files, {"prefix": "/second", "target": "/third", "complete": False})
    assert done.left == ["t2"] and len(done.written) == 7
    assert os.stat(os.path.join(root, "b0")).st_mode & 0o777 == 0o640

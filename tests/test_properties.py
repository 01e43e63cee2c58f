"""Properties of relocation on random files, prefixes and placeholders."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence

from hypothesis import assume, given
from hypothesis import strategies as st

from fastpack._place_py import (
    OPTIONAL,
    WIDE,
    Mismatch,
    RelocatedFile,
    Relocation,
    in_slot,
    place,
    placed_growth,
    read_relocations,
    unplace,
    windows,
    with_pad,
    write_relocations,
)
from fastpack.examine import _binary_normal_form
from fastpack.model import DiskFile, Kind
from fastpack.reading import from_memory
from fastpack.relocation import KERNELS, Prefixes, apply_edits, text_variants
from fastpack.unmanaged import unmanaged_form
from tests.oracles.conda_rules import binary_replace

component = st.binary(min_size=1, max_size=12).filter(
    lambda part: not set(part) & set(b"/\0\n") and part not in (b".", b"..")
)
paths = st.lists(component, min_size=2, max_size=4).map(lambda parts: b"/" + b"/".join(parts))
#: Of any length that a prefix of these still fits.
placeholders = st.integers(60, 255).map(lambda n: (b"/build/_h_env" + b"_placehold" * 25)[:n])
filler = st.one_of(
    st.sampled_from([b"\0", b"\0\0", b"/", b"/lib", b":", b"x", b"\xff\xfe", b"\n", b"//", b" ", b"2", b"\0" * 40]),
    st.binary(max_size=6),
)


def content(*marks: st.SearchStrategy[bytes]) -> st.SearchStrategy[list[bytes]]:
    """Pieces of a file: fillers and things of interest."""
    return st.lists(st.one_of(filler, *marks), max_size=14)


def on_disk(data: bytes) -> DiskFile:
    return DiskFile("lib/x", Kind.FILE, "", 0o100644, len(data), 0, 0, 1, 1, 1)


@given(st.data(), paths, paths, placeholders)
def test_a_binarys_normal_form_comes_back_or_is_not_called_proven(
    data: st.DataObject, source: bytes, target: bytes, placeholder: bytes
) -> None:
    pieces = data.draw(content(st.just(placeholder), st.just(placeholder + b"\0"), st.just(source)))
    original = b"".join(pieces)
    disk = binary_replace(original, placeholder, source)
    assert len(disk) == len(original)
    sha256 = hashlib.sha256(original).hexdigest()
    form, proven, _ = _binary_normal_form(on_disk(disk), sha256, [source], placeholder, from_memory(disk))
    normal = apply_edits(disk, form.edits)
    assert proven == (normal == original)
    if source not in original:
        assert proven  # nothing is ambiguous
    if not proven:
        return
    placed = bytes(place(bytearray(normal), form.relocations, placeholder, target, kernel=KERNELS.place))
    assert len(placed) == len(original)
    # Where conda finds no NUL behind a hit it leaves it; the end of the file is as good (row 2).
    assert placed == binary_replace(original + b"\0", placeholder, target)[: len(original)] or source in original
    back = unplace(bytearray(placed), form.relocations, placeholder, target, kernel=KERNELS.restore)
    assert bytes(back) == original


@given(st.data(), paths, paths, placeholders)
def test_a_slash_padded_binary_keeps_everything_in_its_place(
    data: st.DataObject, source: bytes, target: bytes, placeholder: bytes
) -> None:
    original = b"".join(data.draw(content(st.just(placeholder), st.just(placeholder + b"/share\0"))))
    disk = original.replace(placeholder, source.ljust(len(placeholder), b"/"))
    assume(source not in original)
    sha256 = hashlib.sha256(original).hexdigest()
    form, proven, _ = _binary_normal_form(on_disk(disk), sha256, [source], placeholder, from_memory(disk))
    assert proven and apply_edits(disk, form.edits) == original
    file = with_pad(RelocatedFile("x", "", len(original), 0, placeholder, form.relocations), ["slash"])
    placed = bytes(place(bytearray(original), file.items, placeholder, target, kernel=KERNELS.place))
    assert placed == original.replace(placeholder, target.ljust(len(placeholder), b"/"))


@given(st.data(), paths, placeholders)
def test_a_texts_normal_form_comes_back_or_is_not_called_proven(
    data: st.DataObject, source: bytes, placeholder: bytes
) -> None:
    pieces = data.draw(content(st.just(placeholder), st.just(source), st.just(b"#!" + placeholder + b"/bin/python\n")))
    original = b"".join(pieces).replace(b"\0", b"?")
    disk = original.replace(placeholder, source)
    forms = (apply_edits(disk, form.edits) for form, _ in text_variants(disk, Prefixes([source]), placeholder))
    found = original in forms
    assert found or source in original  # more than ten natural mentions, at most


@given(st.data(), paths, paths, paths)
def test_unmanaged_files_come_back_and_nothing_else_changes(
    data: st.DataObject, source: bytes, one: bytes, two: bytes
) -> None:
    assume(source.count(b"/") > 1)
    marks = [source, source + b"/lib", b" " + source + b"\0", source + b"//x"]
    if source.isascii():
        marks += [("\n" + source.decode() + "/y").encode(codec) for codec in WIDE]
    disk = b"".join(data.draw(content(*map(st.just, marks))))
    name = data.draw(st.sampled_from(["share/x.txt", "share/x.json", "lib/x.so"]))
    found = unmanaged_form(name, 0o100644, len(disk), Prefixes([source]), from_memory(disk), disk)
    archived = apply_edits(disk, found.form.edits)
    assert len(archived) == found.form.n_bytes(len(disk))
    file = RelocatedFile(
        name, hashlib.sha256(archived).hexdigest(), len(archived), 0o644, found.placeholder, found.form.relocations
    )
    assert not file.items or read_relocations(write_relocations([file])) == [file]
    for first, second in ((one, two), (source, one)):
        if not (file.fits(first) and file.fits(second)):
            continue
        try:
            at_first = place(bytearray(archived), file.items, file.placeholder, first)
            at_second = place(bytearray(archived), file.items, file.placeholder, second)
        except Mismatch:
            assert any(item.kind in WIDE for item in file.items) and not (first + second).isascii()
            continue
        assert len(at_first) == len(archived) + placed_growth(file.items, file.placeholder, first)
        if file.items and file.items[0].fixed:
            assert len(at_first) == len(disk)
        # N1 -> N2 -> N1, by way of the archive form.
        back = unplace(bytearray(at_first), file.items, file.placeholder, first)
        assert bytes(back) == archived
        assert place(back, file.items, file.placeholder, second) == at_second
        between(archived, bytes(at_first), file.items, first)
    if file.fits(source) and source.isascii() and not any(item.kind in ("percent", "json") for item in file.items):
        # Placed where it came from, it is what it was: slots that held a longer spelling are filled up.
        again = bytes(place(bytearray(archived), file.items, file.placeholder, source))
        assert again == disk


def between(archived: bytes, placed: bytes, items: Sequence[Relocation], prefix: bytes) -> None:
    """Outside of the slots every byte is the archive form's."""
    position = shift = 0
    for item in items:
        new = in_slot(item, prefix)
        assert placed[position + shift : item.offset + shift] == archived[position : item.offset]
        assert placed[item.offset + shift : item.offset + shift + len(new)] == new
        position = item.offset + item.slot
        shift += len(new) - item.slot
    assert placed[position + shift :] == archived[position:]


@given(
    st.lists(st.tuples(st.sampled_from(WIDE), st.integers(0, 7), st.booleans()), max_size=6),
    st.integers(20, 40),
)
def test_wide_slots_keep_their_length(rows: list[tuple[str, int, bool]], n_bytes: int) -> None:
    old = (b"/a/" + b"x" * 60)[:n_bytes]
    data, items = bytearray(), []
    for kind, gap, _ in rows:
        data += b"\xee" * gap
        item = Relocation(len(data), kind, n_bytes * (2 if "16" in kind else 4), OPTIONAL)
        data += in_slot(item, old)
        items.append(item)
    for new in (b"/n", old, old[:-1]):
        placed = place(bytearray(data), items, old, new)
        assert len(placed) == len(data)
        assert unplace(placed, items, old, new) == data


@given(st.data(), placeholders)
def test_a_file_placed_in_windows_is_the_file_placed_at_once(data: st.DataObject, placeholder: bytes) -> None:
    source, target = b"/s/x", b"/the/target"
    original = b"".join(data.draw(content(st.just(placeholder), st.just(placeholder + b"/x\0"))))
    form, _, _ = _binary_normal_form(on_disk(original), None, [source], placeholder, from_memory(original))
    whole = place(bytearray(original), form.relocations, placeholder, target)
    for step in (1, 7, 64):
        parts = [
            place(bytearray(original[start:stop]), form.relocations[first:last], placeholder, target, start)
            for start, stop, first, last in windows(form.relocations, len(original), step)
        ]
        assert b"".join(map(bytes, parts)) == bytes(whole)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=4) | st.floats(),
                    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4)))  # fmt: skip
def test_nonsense_is_no_list_of_relocations(value: object) -> None:
    row = {"path": "x", "sha256": "", "size": 9, "mode": 0, "placeholder": 0, "items": value}
    for table in (
        value,
        {"format": 0, "placeholders": ["/p"], "files": value},
        {"format": 0, "placeholders": ["/p"], "files": [row]},
    ):
        try:
            files = read_relocations(json.dumps(table).encode())
        except (AttributeError, LookupError, TypeError, ValueError, RecursionError):
            continue
        assert all(item.offset >= 0 and item.offset + item.slot <= 9 for file in files for item in file.items)


def test_names_survive(tmp_path: os.PathLike[str]) -> None:
    file = RelocatedFile(os.fsdecode(b"raw-\xff"), "0" * 64, 3, 0o644, b"/p", (Relocation(0, "text", 2),))
    assert read_relocations(write_relocations([file])) == [file]

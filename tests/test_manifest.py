"""What an archive says of itself, in columns: the same as row by row."""

from __future__ import annotations

import itertools
import json
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastpack import container, manifest
from fastpack.errors import DamagedArchive, HostileArchive
from fastpack.layout import Layout, Segment, lay_out
from fastpack.manifest import Frame, Manifest, check_members, from_bytes
from fastpack.model import Group, GroupKind, Kind
from fastpack.rows import Member, Rows

HEADER = {
    "format": 0, "fastpack": "0", "arcroot": "", "dest_prefix": None, "requires": {}, "level": 0, "codec": "tar",
}  # fmt: skip
paths = st.sampled_from(
    [".fastpack/pack.json", "a", "a/b", "a/b/c", "d", "d/e", "é/x", "a\udcff", "/a", "a/../b", "a//b", "a/", "", ".",
     "..", "x\ty", "a/" + "n" * 300, ".fastpack/state.json", ".fastpack/incomplete", "long/" + "p" * 120, "long"]
)  # fmt: skip


@st.composite
def member(draw: st.DrawFn) -> Member:
    kind = draw(st.sampled_from([*[Kind.FILE] * 4, Kind.DIRECTORY, Kind.LINK, Kind.HARDLINK]))
    is_file = kind is Kind.FILE
    return Member(
        kind, draw(paths), draw(st.sampled_from([0o644, 0o755])), draw(st.integers(0, 2**33 - 1)),
        draw(st.sampled_from([0, 1, 511, 512, 513, 5000])) if is_file else 0,
        draw(paths) if kind in (Kind.LINK, Kind.HARDLINK) else "",
        draw(st.binary(min_size=32, max_size=32)) if is_file else b"", draw(st.integers(0, 2)),
        draw(st.sampled_from([None, 0o555])) if kind is Kind.DIRECTORY else None,
        draw(st.sampled_from(["", "proven", "modified"])), draw(st.sampled_from(["", "", "why"])),
    )  # fmt: skip


members = st.lists(member(), max_size=12)


@given(members)
def test_rows_are_the_members(rows: list[Member]) -> None:
    columns = Rows(rows)
    assert list(columns) == rows and columns == rows and len(columns) == len(rows)
    assert columns[1:] == rows[1:] and all(columns[k] == row for k, row in enumerate(rows))
    assert [columns.kind(k) for k in range(len(rows))] == [row.kind for row in rows]
    assert columns.n_files == sum(row.kind is Kind.FILE for row in rows)
    for kind in (Kind.DIRECTORY, Kind.LINK, Kind.HARDLINK):
        assert columns.of_kind(kind) == [row for row in rows if row.kind is kind]
    for first in range(len(rows)):
        for last in range(first, len(rows)):
            assert columns.others_in(first, last) == [k for k in columns.others if first <= k < last]
    assert columns.headers(0, len(rows), "top") == b"".join(row.header("top") for row in rows)
    lengths = columns.header_lengths("top")
    assert list(lengths) == [len(row.header("top")) for row in rows]


def as_manifest(rows: list[Member], frames: tuple[Frame, ...] = ()) -> Manifest:
    groups = tuple(Group(GroupKind.CONDA, name, "1") for name in "abc")
    return Manifest(HEADER, (), groups, frames, Rows(rows), (("gone", "why"),))


@given(members)
def test_a_manifest_is_read_as_it_was_written(rows: list[Member]) -> None:
    written = as_manifest(rows)
    text = written.to_bytes()
    try:
        read = from_bytes(text)
    except HostileArchive:
        return
    assert read == written and read.raw == text


def test_most_members_are_read_as_columns() -> None:
    plain = [Member(Kind.FILE, f"f{k}", 0o644, k, k, digest=bytes(32)) for k in range(5)]
    rows = [Member(Kind.FILE, manifest.PACK_JSON, 0o644, 0, digest=bytes(32)), Member(Kind.DIRECTORY, "d", 0o755, 0)]
    rows += [*plain, Member(Kind.FILE, "é", 0o644, 0, digest=bytes(32)), Member(Kind.DIRECTORY, ".fastpack", 0o755, 0)]
    read = from_bytes(as_manifest(rows).to_bytes()).members
    assert list(read) == rows and list(read.others) == [1, 8]


@pytest.mark.parametrize(
    ("old", "new"),
    [('"mode":420', '"mode":-1'), ('"mode":420', '"mode":"x"'), ('"mtime":7', '"mtime":8589934592'), ('"size":3', '"size":-3'),
     ('"size":3', '"size":4611686018427387904'), ('"group":0', '"group":3'), ('"group":0', '"group":99999999999999999999'),
     ('"digest":"00', '"digest":"0'), ('"digest":"00', '"digest":"zz'), ('"kind":"file"', '"kind":"socket"'),
     ('}\n', '}}\n'), ('"mtime":7', '"mtime":07')],
)  # fmt: skip
def test_a_broken_line_is_refused(old: str, new: str) -> None:
    rows = [Member(Kind.FILE, manifest.PACK_JSON, 0o644, 7, 3, digest=bytes(32)), *FOLDER]
    text = as_manifest(rows).to_bytes().decode()
    line = next(line for line in text.splitlines(keepends=True) if '"path"' in line)
    changed = line.replace(old, new, 1)
    assert changed != line
    if '"mode":-1' in changed:  # as ever: the mode's lower bits count
        assert from_bytes(text.replace(line, changed).encode()).members[0].mode == 0o777
        return
    with pytest.raises(DamagedArchive, match="broken"):
        from_bytes(text.replace(line, changed).encode())


FOLDER = [Member(Kind.DIRECTORY, ".fastpack", 0o755, 0)]


def test_empty_lines_and_others_are_passed_over() -> None:
    rows = [Member(Kind.FILE, manifest.PACK_JSON, 0o644, 7, 3, digest=bytes(32)), *FOLDER]
    text = as_manifest(rows).to_bytes()
    padded = text.replace(b"\n", b"\n\n\n") + b'{"later":1}\n\n' + b"{}"
    assert from_bytes(padded).members == rows and from_bytes(b"\n" + text).members == rows


@pytest.mark.parametrize("kind", [Kind.FILE, Kind.DIRECTORY])
def test_a_target_of_what_is_no_link(kind: Kind) -> None:
    odd = Member(kind, "x", 0o644, 0, 0, "\ud800", bytes(32) if kind is Kind.FILE else b"")
    rows = [Member(Kind.FILE, manifest.PACK_JSON, 0o644, 7, 3, digest=bytes(32)), *FOLDER, odd]
    with pytest.raises(DamagedArchive, match="is no link"):
        from_bytes(as_manifest(rows).to_bytes())


def said_of(rows: list[Member]) -> str | None:
    try:
        check_members(Rows(rows))
    except HostileArchive as error:
        return error.message
    return None


@given(members, st.booleans())
def test_what_is_refused_quickly_is_refused_slowly(rows: list[Member], first: bool) -> None:
    """`check_members` takes a shorter way where nothing is odd: it finds the same."""
    if first:
        rows = [Member(Kind.FILE, manifest.PACK_JSON, 0o644, 0, digest=bytes(32)), *rows]
        rows += [Member(Kind.DIRECTORY, name, 0o755, 0) for name in (".fastpack", "a", "long")]
    said = said_of(rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest, "_nothing_odd", lambda members: False)
        assert said_of(rows) == said


def laid_row_by_row(rows: list[Member], sizes: list[int]) -> list[list[Segment]] | None:
    """The layout as it is defined; None: the members do not fill the frames."""
    layout: list[list[Segment]] = [[] for _ in sizes]
    frame = position = 0
    for index, row in enumerate(rows):
        while frame < len(sizes) and position == sizes[frame]:
            frame, position = frame + 1, 0
        header = len(row.header(""))
        position += header
        done, first = 0, True
        while True:
            if frame >= len(sizes) or position > sizes[frame]:
                return None
            take = min(sizes[frame] - position, row.n_bytes - done)
            if not take and row.n_bytes:
                return None
            layout[frame].append(Segment(index, position, done, done + take, header if first else 0))
            position, done, first = position + take, done + take, False
            if done == row.n_bytes:
                break
            frame, position = frame + 1, 0
        position += container.padding(row.n_bytes)
        if position > sizes[frame]:
            return None
    return layout if frame == len(sizes) - 1 and position == sizes[frame] else None


@given(members, st.lists(st.integers(0, 12_000), max_size=6), st.booleans())
def test_the_layout_is_what_goes_row_by_row(rows: list[Member], cuts: list[int], whole: bool) -> None:
    total = sum(len(row.header("")) + row.n_bytes + container.padding(row.n_bytes) for row in rows)
    if whole:
        ends, position = [0], 0
        for row in rows:
            position += len(row.header("")) + row.n_bytes + container.padding(row.n_bytes)
            ends.append(position)
        cuts = [ends[cut % len(ends)] for cut in cuts]
    places = sorted({0, total, *(cut for cut in cuts if cut < total)})
    sizes = [stop - start for start, stop in itertools.pairwise(places)]
    frames = tuple(Frame(0, 1, size, b"", b"") for size in sizes)
    wanted = laid_row_by_row(rows, sizes)
    try:
        layout: Layout | None = lay_out(as_manifest(rows, frames))
    except DamagedArchive:
        layout = None
    assert (layout is None) == (wanted is None)
    if layout is None or wanted is None:
        return
    assert list(layout) == wanted
    for index, segments in enumerate(wanted):
        held = [segment.member for segment in segments]
        assert list(range(*layout.members(index))) == held
        parts = {s.member: s for s in segments if s.stop - s.start < rows[s.member].n_bytes}
        assert layout.parts.get(index, {}).items() >= parts.items()
    for k in range(len(rows)):
        assert layout.frames_of(k) == [i for i, segments in enumerate(wanted) if any(s.member == k for s in segments)]


def test_columns_hold_whole_numbers() -> None:
    rows = Rows([Member(Kind.FILE, "a", 0o644, 2**33 - 1, 2**62 - 1, digest=bytes(32))])
    assert rows.sizes == array("q", [2**62 - 1]) and json.loads(manifest.member_line(rows[0]))["size"] == 2**62 - 1

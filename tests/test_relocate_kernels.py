"""The kernels: native = twin, place and restore are inverse, both are conda's rule."""

from __future__ import annotations

import itertools
import random
from array import array
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastpack import _relocate, _relocate_py
from fastpack._place_py import strings_of
from fastpack.made_prefix import binary_replace as installer_rule
from fastpack.relocation import Prefixes, read_range, restore_binary, scan_binary
from tests.oracles import conda_rules

BOTH = pytest.mark.parametrize("kernel", [_relocate, _relocate_py], ids=["native", "twin"])
OLD = b"/old" + b"_p" * 10

#: Bytes in which needles, NULs and half needles are frequent.
wide = [text.encode(kind) for text in ("/a", "/ab", "é/") for kind in ("utf-16-le", "utf-32-le", "utf-32-be")]
pieces = st.sampled_from(
    [b"/a", b"/ab", b"/a/b", b"a", b"/", b"\0", b"\0\0\0", b"x", b"/a/", b"\xc3\xa9", b"-I", b".", *wide]
)
buffers = st.lists(pieces, max_size=60).map(b"".join)
paths = [b"/a/b", b"/ab", b"/a", b"ab"]
needle_sets = st.lists(st.sampled_from(paths), min_size=1, max_size=4, unique=True)
#: With what paths are in wide characters, and more that has two NULs in a row.
wide_needle_sets = st.lists(
    st.sampled_from([*paths, *wide, b"\0\0", b"\0\0/", b"a\0\0"]), min_size=1, max_size=4, unique=True
)


@given(buffers, wide_needle_sets)
def test_find_is_the_twin(data: bytes, needles: list[bytes]) -> None:
    assert _relocate.find(data, needles) == _relocate_py.find(data, needles)
    assert _relocate.find_text(data, needles) == _relocate_py.find_text(data, needles)


@given(st.lists(buffers, max_size=8), wide_needle_sets)
def test_find_any_is_find_for_each_piece(datas: list[bytes], needles: list[bytes]) -> None:
    wanted = bytearray(bool(_relocate.find(data, needles)) for data in datas)
    lengths = array("q", map(len, datas))
    starts = array("q", itertools.accumulate(lengths, initial=0))[: len(datas)]
    for kernel in (_relocate, _relocate_py):
        assert kernel.find_any(b"".join(datas), starts, lengths, needles) == wanted


@BOTH
def test_find_any_stays_in_its_buffer(kernel: ModuleType) -> None:
    for start, length in ((-1, 1), (0, 5), (4, 1), (0, -1), (1 << 62, 1 << 62), (5, 0)):
        with pytest.raises(ValueError, match="outside"):
            kernel.find_any(b"abcd", array("q", [start]), array("q", [length]), [b"a"])
    with pytest.raises(ValueError, match="different lengths"):
        kernel.find_any(b"abcd", array("q", [0]), array("q"), [b"a"])


@given(buffers, needle_sets, st.integers(0, 12), st.booleans())
def test_scan_strings_is_the_twin(data: bytes, needles: list[bytes], slot: int, final: bool) -> None:
    native = _relocate.scan_strings(data, needles, slot, final)
    assert native == _relocate_py.scan_strings(data, needles, slot, final)


@BOTH
def test_find_on_a_grid_of_lengths_and_alignments(kernel: ModuleType) -> None:
    for length in (1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 254, 255, 256, 300):
        needle = bytes(1 + k % 250 for k in range(length))
        for before in (*range(20), 63, 64, 65):
            for after in (0, 1, 5):
                data = b"\xff" * before + needle + b"\xff" * after
                assert kernel.find(data, (needle,)) == [(before, 0)]
                assert kernel.find(data[: before + length - 1], (needle,)) == []


@BOTH
def test_the_longest_needle_wins_and_hits_do_not_overlap(kernel: ModuleType) -> None:
    assert kernel.find(b"/opt/env2/opt/env", (b"/opt/env2", b"/opt/env")) == [(0, 0), (9, 1)]
    assert kernel.find(b"aaaa", (b"aa",)) == [(0, 0), (2, 0)]


@BOTH
def test_an_empty_needle_is_refused(kernel: ModuleType) -> None:
    with pytest.raises(ValueError, match="empty needle"):
        kernel.find(b"abc", (b"a", b""))


def random_binary(rng: random.Random, old: bytes) -> bytes:
    parts = [old, old + b"/lib", b"\0", b"\0\0\0", b"text", bytes([rng.randrange(1, 256)]), b":" + old, b"\0" * 40]
    return b"".join(rng.choice(parts) for _ in range(rng.randrange(40))) + b"\0"


@BOTH
@pytest.mark.parametrize("seed", range(40))
def test_placing_is_condas_rule_and_restoring_undoes_it(kernel: ModuleType, seed: int) -> None:
    rng = random.Random(seed)
    for new in (b"/", b"/n", b"/new path", OLD[:-1], OLD):
        data = random_binary(rng, OLD)
        hits = kernel.find(data, (OLD,))
        strings = []
        for offset, _ in hits:
            if strings and offset < strings[-1][0] + strings[-1][1]:
                strings[-1][2].append(offset)
            else:
                strings.append((offset, data.index(b"\0", offset) - offset, [offset]))
        buffer = bytearray(data)
        assert kernel.place_strings(buffer, strings, OLD, new) == -1
        assert bytes(buffer) == conda_rules.binary_replace(data, OLD, new) == installer_rule(data, OLD, new)
        assert kernel.restore_strings(buffer, strings, OLD, new) == -1
        assert bytes(buffer) == data


@BOTH
def test_a_string_that_fails_its_check_changes_nothing(kernel: ModuleType) -> None:
    good, bad = OLD + b"/lib\0", b"/not" + OLD[4:] + b"/lib\0"
    buffer = bytearray(good + bad)
    strings = [(0, len(good) - 1, [0]), (len(good), len(bad) - 1, [len(good)])]
    assert kernel.place_strings(buffer, strings, OLD, b"/n") == len(good)
    assert bytes(buffer) == good + bad
    for offset, length, hits in [(0, 5, [0]), (0, 10_000, [0]), (3, 20, [0]), (0, len(OLD), [0, 2]), (0, 30, [])]:
        assert kernel.place_strings(buffer, [(offset, length, hits)], OLD, b"/n") == offset
        assert kernel.restore_strings(buffer, [(offset, length, hits)], OLD, b"/n") == offset
    with_nul = bytearray(OLD + b"\0/lib\0")
    assert kernel.place_strings(with_nul, [(0, len(with_nul) - 1, [0])], OLD, b"/n") == 0


@BOTH
def test_a_longer_prefix_is_refused(kernel: ModuleType) -> None:
    with pytest.raises(ValueError, match="longer than the slot"):
        kernel.place_strings(bytearray(OLD), [(0, len(OLD), [0])], OLD, OLD + b"x")


@given(
    st.lists(st.tuples(st.integers(0, 3), st.binary(max_size=5)), min_size=1, max_size=6),
    st.integers(1, len(OLD)),
)
def test_un_relocate_after_relocate_is_identity(rows: list[tuple[int, bytes]], length: int) -> None:
    new = (b"/" + b"n" * 200)[:length]
    data = b"".join(
        OLD.join([b"x"] * (count + 1)) + b"<" + tail.replace(b"\0", b"").replace(b"/", b"") + b"\0"
        for count, tail in rows
    )
    placed = conda_rules.binary_replace(data, OLD, new)
    strings = scan_binary(lambda n, at: placed[at : at + n], len(placed), (new,), len(OLD))
    form, natural = restore_binary(strings, (new,), OLD)
    if not natural and len(form.relocations) == data.count(OLD):
        assert read_range(lambda n, at: placed[at : at + n], form.edits, 0, len(data)) == data
        strings_again = strings_of(form.relocations).get("binary", [])
        for kernel in (_relocate, _relocate_py):
            buffer = bytearray(data)
            assert kernel.place_strings(buffer, strings_again, OLD, new) == -1
            assert bytes(buffer) == placed


def test_a_string_across_windows_is_found_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastpack import relocation

    monkeypatch.setattr(relocation, "WINDOW", 64)
    rng = random.Random(7)
    new = b"/target/prefix"
    for _ in range(300):
        blocks = [OLD + b"/x", OLD + b":" + OLD, b"y" * rng.randrange(1, 200), b"z"]
        data = b"".join(bytes(rng.randrange(60)) + rng.choice(blocks) + b"\0" for _ in range(rng.randrange(1, 8)))
        placed = conda_rules.binary_replace(data, OLD, new)

        def pread(n: int, at: int, placed: bytes = placed) -> bytes:
            return placed[at : at + n]

        strings = scan_binary(pread, len(placed), (new,), len(OLD))
        form, natural = restore_binary(strings, (new,), OLD)
        assert not natural
        assert read_range(pread, form.edits, 0, len(data)) == data
        # Any slice of the archive form is that slice of the whole.
        start = rng.randrange(len(data))
        stop = rng.randrange(start, len(data) + 1)
        assert read_range(pread, form.edits, start, stop) == data[start:stop]


BOUNDARIES = [
    (b'"/opt/env/lib"', True), (b"file:///opt/env/x", True), (b"-I/opt/env/include", True), (b"-L/opt/env", True),
    (b"x=/opt/env;", True), (b"$(DESTDIR)/opt/env/lib", True), (b"$DESTDIR/opt/env/lib", True), (b"/opt/env", True),
    (b"a\\n/opt/env/lib", True), (b"In /opt/env.", True), (b"PATH=/usr/bin:/opt/env/bin", True), (b"//opt/env/x", True),
    (b"/opt/env2/lib", False), (b"/opt/env.bak", False), (b"/opt/env-old", False), (b"/mnt/opt/env", False),
    (b"${HOME}/opt/env", False), (b"/opt/env_2", False), (b"sub/opt/env", False), (b"\xc3\xa9/opt/env", False),
    (b"/opt/env\xc3\xa9", False), (b"cross-I/opt/env", False), (b"/opt/env$suffix", False), (b"/opt/env%20x", False),
]  # fmt: skip


@BOTH
@pytest.mark.parametrize(("text", "found"), BOUNDARIES)
def test_row_8_boundaries(kernel: ModuleType, text: bytes, found: bool) -> None:
    assert bool(kernel.find_text(text, (b"/opt/env",))) is found


def test_prefixes_know_their_spellings() -> None:
    prefixes = Prefixes([b"/a b/\xc3\xa9", b"/a b"])
    assert prefixes.plain == (b"/a b/\xc3\xa9", b"/a b")
    kinds = dict(zip(prefixes.spelled, prefixes.kinds, strict=True))
    assert kinds[b"/a%20b/%C3%A9"] == "percent"
    assert kinds[b"/a b/\\u00e9"] == "json"
    mixed = Prefixes([b"/usr/local", b"/env", b"/opt/env"])
    assert mixed.unique == mixed.spelled == (b"/opt/env",)
    assert set(Prefixes([b"/usr/local", b"/env"], unique=True).unique) == {b"/usr/local", b"/env"}


@BOTH
def test_as_many_needles_as_a_much_moved_environment_has(kernel: ModuleType) -> None:
    needles = [b"/place/%03d" % k for k in range(200)]
    assert kernel.find(b"".join(reversed(needles)), needles) == [(10 * k, 199 - k) for k in range(200)]


def test_marks_beyond_ascii_are_the_same_to_both() -> None:
    """Every neighbour of three bytes that could be a mark in UTF-8, on both sides of a path."""
    needle = b"/opt/env"
    edges = (0x00, 0x7F, 0x80, 0x81, 0x8F, 0x90, 0x9A, 0xA0, 0xA1, 0xBB, 0xBC, 0xBF, 0xC0, 0xE2, 0xE3, 0xEF, 0xFF)
    for first in (0xE1, 0xE2, 0xE3, 0xE4, 0xEF):
        for second in edges:
            for third in edges:
                mark = bytes([first, second, third])
                for data in (mark + needle, needle + mark, mark[1:] + needle, needle + mark[:2], mark + b"/" + needle):
                    assert _relocate.find_text(data, [needle]) == _relocate_py.find_text(data, [needle]), data

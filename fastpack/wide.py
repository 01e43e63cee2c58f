"""Prefixes in wide characters in a package's file: conda and rattler write these as well (rows 1 and 7).

In a binary, row 1 holds with characters of two or four bytes: a string ends with a character that is 0, counted in
whole characters from its first hit, and as many bytes as it became shorter are 0 behind it. In a text all are replaced.

Between characters of ASCII, a path in one byte order is also the path in the other one, a byte further on (three in
UTF-32). Which one it is decides about what follows in its string, and about a prefix beyond ASCII: it is the one that
is aligned in the package's file (so does rattler; tests/oracles/rattler_rules.py).
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from fastpack._place_py import WIDE, Relocation, width_of
from fastpack.relocation import (
    WINDOW,
    ArchiveForm,
    CString,
    Edit,
    Header,
    PRead,
    big_hits,
    in_codec,
    is_binary,
    restore_binary,
)


class _Hit(NamedTuple):
    """Where a prefix stands, in which characters, and which needle it is."""

    offset: int
    codec: str
    needle: int
    n_bytes: int

    def is_aligned(self, shift: int = 0) -> bool:
        """Whether it lies at a whole character of a file, `shift` bytes further on."""
        return (self.offset + shift) % width_of(self.codec) == 0


class _Hits:
    """All of a file, those that are two readings of the same bytes too."""

    def __init__(self, pread: PRead, n_bytes: int, needles: Mapping[str, Sequence[bytes]]) -> None:
        self.all = sorted(
            _Hit(at + offset, codec, index, len(wide[index]))
            for codec, wide in needles.items()
            if wide
            for at, offset, index in big_hits(pread, n_bytes, wide)
        )
        self._offsets = [hit.offset for hit in self.all]

    def between(self, start: int, stop: int) -> Sequence[_Hit]:
        """Those that begin there."""
        return self.all[bisect.bisect_left(self._offsets, start) : bisect.bisect_left(self._offsets, stop)]

    def readings(self, hit: _Hit) -> Sequence[_Hit]:
        """A hit, and what else its bytes may be."""
        return self.between(hit.offset, hit.offset + hit.n_bytes)


def wide_forms(
    pread: PRead, n_bytes: int, prefixes: Sequence[bytes], placeholder: bytes, kind: str
) -> list[tuple[ArchiveForm, bool]]:
    """The normal forms that a binary's strings in wide characters may have had, most likely first.

    Of what is aligned, and, as another installer may have seen it, with either byte order first.

    Parameters
    ----------
    prefixes : those that the file may name, longest first.
    kind : ``binary`` or ``slash``, see `restore_binary`; in the latter they are filled with slashes.

    Returns
    -------
    Forms, each with whether all of it is undone; none where no wide character names a prefix.
    """
    if not placeholder.isascii():
        return []
    needles = {codec: [in_codec(prefix, codec) for prefix in prefixes] for codec in WIDE}
    if kind == "slash":
        needles = {codec: _filled(wide, codec, len(placeholder)) for codec, wide in needles.items()}
    hits = _Hits(pread, n_bytes, needles)
    forms: dict[ArchiveForm, bool] = {}
    for order in ("", "le", "be") if hits.all else ():
        whole = True
        edits: list[Edit] = []
        relocations: list[Relocation] = []
        for codec, strings in _strings(pread, n_bytes, hits, order, len(placeholder)).items():
            form, natural = restore_binary(strings, needles[codec], in_codec(placeholder, codec), f"{kind}-{codec}")
            whole = whole and not natural
            edits += form.edits
            relocations += form.relocations
        relocations.sort(key=lambda item: item.offset)
        forms.setdefault(ArchiveForm(tuple(sorted(edits)), tuple(relocations)), whole)
    return sorted(forms.items(), key=lambda row: not row[1])


def _filled(wide: Sequence[bytes], codec: str, slot: int) -> list[bytes]:
    width = width_of(codec)
    rooms = [slot - len(text) // width for text in wide]
    return [text + in_codec(b"/", codec) * room for text, room in zip(wide, rooms, strict=True) if room > 0]


def _strings(pread: PRead, n_bytes: int, hits: _Hits, order: str, slot: int) -> dict[str, list[CString]]:
    """The strings that hold hits, by codec. `order` is the byte order that is preferred, ``""``: of what is aligned."""
    strings: dict[str, list[CString]] = {}
    position = 0
    for hit in hits.all:
        if hit.offset < position:
            continue
        readings = []
        for one in hits.readings(hit):
            string, whole = _string(pread, n_bytes, hits, one, slot)
            preferred = one.codec.endswith(order) if order else one.is_aligned()
            readings.append((not whole, not preferred, one.codec, string))
        *_, codec, string = min(readings)
        strings.setdefault(codec, []).append(string)
        position = max(string.end, hit.offset + hit.n_bytes)
    return strings


def _string(pread: PRead, n_bytes: int, hits: _Hits, first: _Hit, slot: int) -> tuple[CString, bool]:
    """The string that begins with a hit, and whether it has the NULs that it was padded with, and its own or the end of
    the file behind them."""
    width = width_of(first.codec)
    end = _end(pread, n_bytes, first.offset, width)
    inside = [hit for hit in hits.between(first.offset, end) if hit.codec == first.codec]
    inside = [hit for hit in inside if hit.offset + hit.n_bytes <= end]
    needed = sum(max(0, slot * width - hit.n_bytes) for hit in inside)
    behind = pread(min(needed + width, n_bytes - end), end)
    whole = not any(behind) and len(behind) >= needed
    padding = needed if whole else 0
    return CString(first.offset, end, padding, [(hit.offset, hit.needle) for hit in inside]), whole


def _end(pread: PRead, n_bytes: int, start: int, width: int) -> int:
    """Where the string that begins at `start` has its NUL, or the file its end."""
    offset, step = start, 1 << 12
    while offset < n_bytes:
        data = pread(min(step, n_bytes - offset), offset)
        nul = data.find(bytes(width))
        while nul >= 0 and nul % width:
            nul = data.find(bytes(width), nul + 1)
        if nul >= 0:
            return offset + nul
        offset, step = offset + len(data), min(4 * step, WINDOW)
    return n_bytes


def both(one: ArchiveForm, two: ArchiveForm) -> ArchiveForm | None:
    """Two forms of one binary in one; None where a string of the one reaches into one of the other."""
    relocations = sorted((*one.relocations, *two.relocations), key=lambda item: item.offset)
    spans = [(item.offset, item.offset + item.value) for item in relocations if item.value is not None]
    if any(stop > start for (_, stop), (start, _) in itertools.pairwise(spans)):
        return None
    return ArchiveForm(tuple(sorted((*one.edits, *two.edits))), tuple(relocations))


def with_wide_text(
    variants: Iterable[tuple[ArchiveForm, Header | None]], pread: PRead, n_bytes: int, prefixes: Sequence[bytes],
    placeholder: bytes,
) -> Iterator[tuple[ArchiveForm, Header | None]]:  # fmt: skip
    """The forms that a package's text may have had (`text_variants`), those with wide characters taken out first."""
    wide = placeholder.isascii() and is_binary(pread, n_bytes)
    hits = _Hits(
        pread, n_bytes, {codec: [in_codec(prefix, codec) for prefix in prefixes] for codec in WIDE} if wide else {}
    )
    for form, header in variants:
        if hits.all:
            yield _wide_text(form, hits, placeholder), header
        yield form, header


def _wide_text(form: ArchiveForm, hits: _Hits, placeholder: bytes) -> ArchiveForm:
    edits: list[Edit] = []
    relocations: list[Relocation] = []
    others = iter(form.edits)
    edit = next(others, None)
    shift = grown = position = 0  # of all edits, of those here, where the last one ended
    places, growths = [0], [0]  # from where on in `form` alone, and how many bytes it is longer there
    for hit in hits.all:
        while edit is not None and edit.offset < hit.offset:
            shift += len(edit.new) - edit.length
            position = max(position, edit.offset + edit.length)
            edit = next(others, None)
        if hit.offset < position:
            continue
        first = min(hits.readings(hit), key=lambda one: not one.is_aligned(shift))
        new = in_codec(placeholder, first.codec)
        edits.append(Edit(first.offset, first.n_bytes, new))
        relocations.append(Relocation(first.offset + shift, f"text-{first.codec}", len(new)))
        places.append(first.offset + shift - grown)
        shift += len(new) - first.n_bytes
        grown += len(new) - first.n_bytes
        growths.append(grown)
        position = first.offset + first.n_bytes
    for item in form.relocations:
        before = growths[max(0, bisect.bisect_left(places, item.offset) - 1)]
        relocations.append(item._replace(offset=item.offset + before))
    return ArchiveForm(tuple(sorted((*form.edits, *edits))), tuple(sorted(relocations, key=lambda item: item.offset)))

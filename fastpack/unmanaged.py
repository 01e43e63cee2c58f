"""Files that no package manager wrote with a placeholder: rows 6, 6a, 8, 10, 11, 12 and 16 of docs/relocation.md."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import NamedTuple

from fastpack import elf
from fastpack._place_py import OPTIONAL, WIDE, Relocation, in_slot, width_of
from fastpack.model import PLACEHOLDER
from fastpack.native import kernel
from fastpack.reading import as_file
from fastpack.record_forms import direct_url_form, history_form
from fastpack.relocation import (
    AS_IT_IS,
    NEEDS_UNPACK,
    WINDOW,
    ArchiveForm,
    Edit,
    PRead,
    Prefixes,
    apply_edits,
    big_hits,
    has_docstring,
    relocatable_header,
    scan_unmanaged_text,
    script_header,
    spelling,
    text_form,
    with_header,
)


class Found(NamedTuple):
    """An unmanaged file's archive form, the placeholder in it, and why it is not relocated, if it names the prefix."""

    form: ArchiveForm = AS_IT_IS
    placeholder: bytes = PLACEHOLDER
    why: str = ""


def unmanaged_form(
    path: str, mode: int, n_bytes: int, prefixes: Prefixes, pread: PRead, data: bytes | None, linked: bool = False,
    lines: Sequence[Edit] = (),
) -> Found:  # fmt: skip
    """The archive form of an unmanaged file.

    Parameters
    ----------
    path : below the prefix.
    data : the whole file, or None where it is too large for that.
    linked : whether a symbolic link in another directory leads to it.
    lines : what is replaced anyhow, in a text.
    """
    if data is not None and path.endswith(".dist-info/direct_url.json"):
        return Found(direct_url_form(data, prefixes))
    if data is not None and path == "conda-meta/history":
        return Found(history_form(data))
    if data is None:
        hits = scan_unmanaged_text(pread, n_bytes, prefixes)
    else:
        hits = None if b"\0" in data else kernel.find_text(data, prefixes.spelled)
    if hits is None:
        return _binary_form(path, n_bytes, prefixes, pread, data, linked)
    # With lines to replace it is no script, whatever its mode.
    found = _text_form(path, 0 if lines else mode, prefixes, pread, data, _outside_of(lines, hits))
    return found._replace(form=_with_lines(found.form, lines)) if lines else found


def _outside_of(lines: Sequence[Edit], hits: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    return [hit for hit in hits if not any(line.offset <= hit[0] < line.offset + line.length for line in lines)]


def _with_lines(form: ArchiveForm, lines: Sequence[Edit]) -> ArchiveForm:
    """A text's form, each of whose edits is one relocation, with further edits between them."""
    rows = [*zip(form.edits, form.relocations, strict=True), *((line, None) for line in lines)]
    edits, relocations = [], []
    shift = 0
    for edit, item in sorted(rows, key=lambda row: row[0].offset):
        edits.append(edit)
        if item is not None:
            relocations.append(item._replace(offset=edit.offset + shift))
        shift += len(edit.new) - edit.length
    return ArchiveForm(tuple(edits), tuple(relocations))


# --- text (rows 8 and 12) --------------------------------------------------------------------------------------------


def _text_form(
    path: str, mode: int, prefixes: Prefixes, pread: PRead, data: bytes | None, hits: Sequence[tuple[int, int]]
) -> Found:
    head = data if data is not None else pread(1 << 16, 0)
    kind = opaque_kind(head)
    if kind is not None:
        return Found(why=f"{kind} that names the prefix; never changed") if hits else Found()
    header = script_header(head, prefixes, PLACEHOLDER) if mode & 0o111 else None
    if not hits and header is None:
        return Found()
    kinds = [
        spelling(pread(16, max(0, offset - 16)), path, min(offset, 16), prefixes.kinds[index]) for offset, index in hits
    ]
    form = text_form(hits, prefixes.spelled, kinds, PLACEHOLDER, prefixes.inner)
    why = ""
    if header is not None:
        # The body as it lies in the archive: a docstring may name the prefix too.
        inside = [edit for edit in form.edits if header.length <= edit.offset <= len(head) - edit.length]
        body = apply_edits(head, inside)[header.length :]
        archive_header = relocatable_header(header.true, PLACEHOLDER, path, body)
        if archive_header is None:
            why = NEEDS_UNPACK
        kept = archive_header is not None and has_docstring(header.true, body)
        form = with_header(form, header, archive_header or header.true, kept)
    return Found(form, why=why)


# --- opaque files (row 11) -------------------------------------------------------------------------------------------

#: First bytes -> what it is. Containers with checksums, offsets or lengths over their content: never changed.
_OPAQUE = (
    (b"PK\x03\x04", "a zip file (zip, jar, whl, npz)"),
    (b"PK\x05\x06", "a zip file (zip, jar, whl, npz)"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"\xfd7zXZ\0", "an xz file"),
    (b"\x1f\x8b", "a gzip file"),
    (b"BZh", "a bzip2 file"),
    (b"\x28\xb5\x2f\xfd", "a zstd file"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z file"),
    (b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"PAR1", "a Parquet file"),
    (b"ARROW1", "an Arrow file"),
    (b"%PDF-", "a PDF file"),
    (b"\xed\xab\xee\xdb", "an RPM package"),
    (b"DIRC\0", "a git index"),
    (b"hsqs", "a squashfs image"),
    (b"!<arch>\ndebian-binary", "a Debian package"),
)


def opaque_kind(head: bytes) -> str | None:
    """What kind of container a file is, of those that are never changed; None for any other file."""
    if head[257:262] == b"ustar":
        return "a tar file"
    return next((kind for magic, kind in _OPAQUE if head.startswith(magic)), None)


def _preamble(pread: PRead, n_bytes: int, head: bytes) -> int | None:
    """Where the first line of a zip file that has something before it ends (zipapp); None for what is no such file.

    A zip file is known by its end; checksums cover what is in it, not what stands before.
    """
    tail = pread(min(n_bytes, 22 + 0xFFFF), max(0, n_bytes - 22 - 0xFFFF))
    if b"PK\x05\x06" not in tail or b"PK\x03\x04" not in pread(min(n_bytes, WINDOW), 0):
        return None
    return head.find(b"\n") if head.startswith(b"#!") and b"\n" in head else 0


# --- binaries and wide text (rows 6, 6a, 10) -------------------------------------------------------------------------


class _Hit(NamedTuple):
    """A place that names a prefix: `kind` says in which characters, `prefix` which one; offsets in bytes."""

    offset: int
    stop: int
    kind: str
    prefix: bytes


def _binary_form(path: str, n_bytes: int, prefixes: Prefixes, pread: PRead, data: bytes | None, linked: bool) -> Found:
    head = data[:512] if data is not None else pread(512, 0)
    edits: list[Edit] = []
    rewritten: list[tuple[int, int]] = []
    # The loader takes $ORIGIN from the name that a library was opened by: not where another directory has one too.
    if head.startswith(elf.MAGIC) and not linked and _find(prefixes.plain, pread, n_bytes, data):
        for search in elf.search_paths(as_file(pread, n_bytes)):
            new = elf.origin_path(path, search.text, prefixes.plain)
            if new is not None:
                edits.append(Edit(search.offset, len(search.text), new.ljust(len(search.text), b"\0")))
                rewritten.append((search.offset, search.offset + len(search.text)))
    found = _find(prefixes.in_binaries, pread, n_bytes, data)
    if not found:
        return Found(ArchiveForm(tuple(sorted(edits)), ()))
    opaque = opaque_kind(head)
    if opaque is not None:
        return Found(why=f"{opaque} that names the prefix; never changed")
    line_end = _preamble(pread, n_bytes, head)
    hits: list[_Hit] = []
    unclear = 0
    for offset, index in found:
        needle = prefixes.in_binaries[index]
        characters, prefix = prefixes.wide.get(needle, ("slash", needle))
        if any(start <= offset < stop for start, stop in rewritten):
            continue
        if line_end is not None and offset >= line_end:
            unclear += 1
            continue
        readings = _readings(pread, n_bytes, _Hit(offset, offset + len(needle), characters, prefix))
        judged = [(*_boundaries(pread, n_bytes, reading), reading) for reading in readings]
        clear = next((reading for left, right, reading in judged if left and right), None)
        if clear is not None:
            hits.append(clear)
        unclear += clear is None
    why = "a binary that names the prefix where no path begins or ends" if unclear else ""
    if unclear and line_end is not None:
        why = "a zip file that names the prefix; only its first line is changed"
    if not hits:
        return Found(ArchiveForm(tuple(sorted(edits)), ()), why=why)
    if any(hit.kind in WIDE and not hit.prefix.isascii() for hit in hits):
        return Found(ArchiveForm(tuple(sorted(edits)), ()), why="wide characters name a prefix beyond ASCII")
    if data is not None and not edits and (kind := _wide_text(data, hits)) is not None:
        return Found(_wide_text_form(hits, kind), why=why)
    form, placeholder = _filled_form(pread, n_bytes, hits)
    return Found(ArchiveForm(tuple(sorted([*edits, *form.edits])), form.relocations), placeholder, why)


def _find(needles: Sequence[bytes], pread: PRead, n_bytes: int, data: bytes | None) -> list[tuple[int, int]]:
    if not needles:
        return []
    if data is not None:
        return kernel.find(data, needles)
    return [(at + hit, index) for at, hit, index in big_hits(pread, n_bytes, needles)]


def _characters(kind: str, data: bytes) -> bytes:
    """The characters of some bytes, one byte for each: a letter beyond ASCII as 0x80, which is one to the kernels too,
    any other character there as a space."""
    width = width_of(kind)
    if width == 1:
        return data
    order = "little" if kind.endswith("le") else "big"
    units = (int.from_bytes(data[k : k + width], order) for k in range(0, len(data) - width + 1, width))  # type: ignore[arg-type]
    return bytes(unit if unit < 128 else 128 if _is_letter(unit) else 32 for unit in units)


def _is_letter(unit: int) -> bool:
    # Half of a pair in UTF-16 may be one.
    return 0xD800 <= unit < 0xE000 or (unit < 0x110000 and chr(unit).isalnum())


#: Characters on either side of a hit that decide whether a path begins or ends there (see `find_text`).
_CONTEXT = 16


def _boundaries(pread: PRead, n_bytes: int, hit: _Hit) -> tuple[bool, bool]:
    """Whether a path begins where a hit does, and whether the prefix ends as a component of it."""
    width = width_of(hit.kind)
    reach = min(_CONTEXT, hit.offset // width) * width
    before = _characters(hit.kind, pread(reach, hit.offset - reach) if reach else b"")
    after = _characters(hit.kind, pread(min(_CONTEXT * width, n_bytes - hit.stop), hit.stop))
    # In a binary the neighbours may be anything: one side at a time, with nothing on the other.
    left = bool(kernel.find_text(before + hit.prefix, [hit.prefix])) and before[-1:] != b"\x7f"
    right = bool(kernel.find_text(hit.prefix + after, [hit.prefix]))
    return left, right


def _wide_text(data: bytes, hits: Sequence[_Hit]) -> str | None:
    """The encoding of a file that is text in wide characters from its beginning to its end; None if it is not."""
    kinds = {width_of(hit.kind) for hit in hits}
    for kind in WIDE:
        if kinds != {width_of(kind)} or len(data) % width_of(kind):
            continue
        if any(hit.kind != kind or hit.offset % width_of(kind) for hit in hits):
            continue
        try:
            text = data.decode(kind)
        except UnicodeDecodeError:
            continue
        if _PRINTABLE.sub("", text).isprintable():
            return kind
    return None


_PRINTABLE = re.compile("[\t\n\r\f\ufeff\u200b-\u200f\u2028\u2029\xa0\xad]")


def _readings(pread: PRead, n_bytes: int, hit: _Hit) -> list[_Hit]:
    """A hit, and what it is in the other byte order, if it is something: the one that is aligned in its file first.

    Between characters of ASCII, a path in one byte order is also the path in the other one, one byte further on (three
    in UTF-32); to put another path there writes the same bytes either way.
    """
    readings = [hit]
    if hit.kind in WIDE:
        other = hit.kind[:-2] + ("be" if hit.kind.endswith("le") else "le")
        shift = width_of(hit.kind) - 1
        offset = hit.offset + (shift if other.endswith("le") else -shift)
        text = os.fsdecode(hit.prefix).encode(other, "surrogatepass")
        if 0 <= offset <= n_bytes - len(text) and pread(len(text), offset) == text:
            readings.append(_Hit(offset, offset + len(text), other, hit.prefix))
    return sorted(readings, key=lambda reading: reading.offset % width_of(reading.kind) != 0)


def _wide_text_form(hits: Sequence[_Hit], kind: str) -> ArchiveForm:
    """Row 10 in text: the length may change."""
    slot = len(PLACEHOLDER) * width_of(kind)
    edits: list[Edit] = []
    relocations: list[Relocation] = []
    moved = 0
    for hit in hits:
        item = Relocation(hit.offset + moved, kind, slot)
        edits.append(Edit(hit.offset, hit.stop - hit.offset, in_slot(item, PLACEHOLDER)))
        relocations.append(item)
        moved += slot - (hit.stop - hit.offset)
    return ArchiveForm(tuple(edits), tuple(relocations))


def _filled_form(pread: PRead, n_bytes: int, hits: Sequence[_Hit]) -> tuple[ArchiveForm, bytes]:
    """Row 6, and row 10 in a binary: nothing is ever shifted, the slot is what the prefix had, filled with slashes.

    Several slashes behind the prefix, which an earlier filling left, belong to the slot, all but one. The placeholder
    is the shortest of the prefixes named: it fits every slot.
    """
    placeholder = min((hit.prefix for hit in hits), key=lambda prefix: (len(prefix), prefix))
    edits: list[Edit] = []
    relocations: list[Relocation] = []
    position = 0
    for hit in hits:
        if hit.offset < position:
            continue  # the same wide characters, found in the other byte order
        width = width_of(hit.kind)
        slot = hit.stop - hit.offset + max(0, _slashes(pread, n_bytes, hit) - 1) * width
        item = Relocation(hit.offset, hit.kind, slot, OPTIONAL)
        new = in_slot(item, placeholder)
        if pread(slot, hit.offset) != new:
            edits.append(Edit(hit.offset, slot, new))
        relocations.append(item)
        position = hit.offset + slot
    return ArchiveForm(tuple(edits), tuple(relocations)), placeholder


def _slashes(pread: PRead, n_bytes: int, hit: _Hit) -> int:
    """How many slashes stand behind a hit."""
    width = width_of(hit.kind)
    characters = _characters(hit.kind, pread(min(4096 * width, n_bytes - hit.stop), hit.stop))
    return len(characters) - len(characters.lstrip(b"/"))

"""The policy of relocation over the kernels: from a file on disk to its archive form (DESIGN section 5).

A file's archive form is its bytes on disk under a list of *edits*, and the places that name the prefix in it are its
*relocations*. Both are found in a planning pass that reads through bounded windows; nothing is changed on disk.
"""

from __future__ import annotations

import ast
import bisect
import hashlib
import json
import os
import re
import urllib.parse
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from fastpack._place_py import (
    KEPT,
    WIDE,
    Kernels,
    Relocation,
    Stated,
    first_line,
    in_slot,
    spelled,
    stated_field,
    strings_of,
)
from fastpack.fs import leads_out
from fastpack.native import kernel

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

KERNELS = Kernels(kernel.place_strings, kernel.restore_strings)

#: Bytes read at once while a file is scanned.
WINDOW = 8 << 20
#: Subsets of a text file's hits that are tried against its hash: 2 ** this many.
_MAX_AMBIGUOUS = 10
#: Hits or strings of which each is tried as the one that is natural, where there are too many for all subsets.
_MAX_LEFT_OUT = 100

_SHEBANG = re.compile(rb"^#![ \t]*(?P<path>/[^\n\r]*?)(?P<options>[ \t][^\n\r]*)?(?P<end>\r?)$")
_TWO_LINES_HEAD = rb"#!/bin/sh\n'''exec' (?P<quote>[\"']?)"
_TWO_LINES_TAIL = (
    rb"(?P<path>/[^\s\"']+)(?P=quote)(?P<options>(?: [^\n\"']+?)?) \"\$0\" \"\$@\"(?: #'''|\n' ''')(?=\n|\Z)"
)
_ENV_LINE = re.compile(rb"#!/usr/bin/env (?P<name>[^ \t\n\r/]+)(?P<options>[^\n\r]*)")
_PYTHON = re.compile(rb"^(?:python|pypy)[0-9.]*[a-z]?$")
#: A string as the first thing in a script, behind comments and empty lines.
_MAY_HAVE_DOCSTRING = re.compile(rb"(?:[ \t\f]*(?:#[^\n]*)?\r?\n)*[rRuU]?[\"']")
_UTF8 = re.compile(rb"^(?:utf-?8(?:-.*)?|(?:us-)?ascii)$")
_COOKIE = re.compile(rb"^[ \t\f]*#.*?coding[:=][ \t]*([-\w.]+)")


class Edit(NamedTuple):
    """Replace `length` bytes at `offset` of a file on disk by `new`; edits are in order and do not overlap."""

    offset: int
    length: int
    new: bytes


class ArchiveForm(NamedTuple):
    """How a file's archive form comes from its bytes on disk, and the relocations in it."""

    edits: tuple[Edit, ...]
    relocations: tuple[Relocation, ...]

    def n_bytes(self, source_bytes: int) -> int:
        """The archive form's size, from the size on disk."""
        return source_bytes + sum(len(edit.new) - edit.length for edit in self.edits)


AS_IT_IS = ArchiveForm((), ())


class Prefixes:
    """The source prefixes of an environment and the ways files spell them.

    Parameters
    ----------
    paths : absolute paths as bytes, in any order; longest first is what the kernels are given.
    unique : take a mention of any of them in an unmanaged file for this environment. Otherwise not of a path of one
        component, nor of ``/usr/local`` (row 8a).
    brought : what comes along from elsewhere, and where below the prefix it will lie; mentions in text follow.
    """

    def __init__(
        self, paths: Iterable[bytes], unique: bool | None = None, brought: Mapping[bytes, bytes] | None = None
    ) -> None:
        self.plain = tuple(sorted(set(paths), key=lambda path: (-len(path), path)))
        #: Those whose mention in any file means this environment.
        self.unique = tuple(path for path in self.plain if unique or is_unique(path))
        #: Wide characters (row 10) -> their encoding and the path.
        self.wide = {in_codec(path, codec): (codec, path) for path in self.unique for codec in WIDE}
        #: What names the environment in a binary: plainly, or in wide characters; longest first.
        self.in_binaries = tuple(sorted((*self.unique, *self.wide), key=lambda path: (-len(path), path)))
        self._brought = dict(sorted((brought or {}).items(), key=lambda item: -len(item[0])))
        named = (*self.unique, *self._brought)
        spelled: dict[bytes, str] = dict.fromkeys(named, "text")
        inner = dict.fromkeys(self.unique, b"") | {path: b"/" + place for path, place in self._brought.items()}
        for path in named:
            forms = {urllib.parse.quote(path).encode(): "percent"}
            for escaped in (True, False):
                forms.setdefault(os.fsencode(json.dumps(os.fsdecode(path), ensure_ascii=escaped)[1:-1]), "json")
            for form, kind in forms.items():
                spelled.setdefault(form, kind)
                inner.setdefault(form, inner[path])
        self.spelled = tuple(sorted(spelled, key=lambda path: (-len(path), path)))
        self.kinds = tuple(spelled[path] for path in self.spelled)
        #: What stands behind the prefix in place of each of them.
        self.inner = tuple(inner[path] for path in self.spelled)

    def strip(self, path: bytes) -> bytes | None:
        """What follows the prefix in a path below it (``bin/python``), or brought there; None if it lies elsewhere."""
        for prefix in self.plain:
            if path.startswith(prefix + b"/"):
                return path[len(prefix) + 1 :]
        for outer, place in self._brought.items():
            if path == outer or path.startswith(outer + b"/"):
                return place + path[len(outer) :]
        return None


def in_codec(path: bytes, codec: str) -> bytes:
    """A path in wide characters."""
    return os.fsdecode(path).encode(codec, "surrogatepass")


def is_unique(path: bytes) -> bool:
    """Whether a mention of a prefix anywhere means that environment: not of one component, nor ``/usr/local``."""
    return path.count(b"/") > 1 and path != b"/usr/local"


# --- reading ---------------------------------------------------------------------------------------------------------

#: ``pread(n_bytes, offset)`` of a file on disk, or of a buffer that holds all of it.
PRead = Callable[[int, int], bytes]


def read_windows(pread: PRead, n_bytes: int, overlap: int = 0) -> Iterator[tuple[int, bytes]]:
    """(offset, window) over a file, each window beginning `overlap` bytes before the end of the last."""
    offset = 0
    while True:
        data = pread(WINDOW, offset)
        yield offset, data
        if offset + len(data) >= n_bytes or not data:
            return
        offset += max(1, len(data) - overlap)


def apply_edits(data: Buffer, edits: Sequence[Edit]) -> bytes:
    """A whole file's archive form."""
    view = memoryview(data)
    parts: list[Buffer] = []
    position = 0
    for offset, length, new in edits:
        parts += [view[position:offset], new]
        position = offset + length
    parts.append(view[position:])
    return b"".join(parts)


class Edited:
    """A file under edits, read in parts: no more of the file is read than a part needs."""

    def __init__(self, pread: PRead, edits: Sequence[Edit]) -> None:
        self._pread = pread
        self._edits = edits
        self._places: list[int] = []  # of each edit in the edited file
        shift = 0
        for edit in edits:
            self._places.append(edit.offset + shift)
            shift += len(edit.new) - edit.length

    def read(self, n_bytes: int, offset: int) -> bytes:
        """`n_bytes` bytes at `offset` of the edited file."""
        if not self._edits:
            return self._pread(n_bytes, offset)
        stop = offset + n_bytes
        k = bisect.bisect_right(self._places, offset) - 1
        # Where the first run or edit that matters begins, on disk and in the edited file.
        source = place = offset
        if k >= 0:
            source, place = self._edits[k].offset, self._places[k]
        k = max(k, 0)
        pieces: list[tuple[int, int] | bytes] = []  # ranges on disk, and new bytes
        while place < stop:
            edit = self._edits[k] if k < len(self._edits) else Edit(source + stop - place, 0, b"")
            run = edit.offset - source
            low, high = max(offset, place), min(stop, place + run)
            if low < high:
                pieces.append((source + low - place, source + high - place))
            place += run
            low, high = max(offset, place), min(stop, place + len(edit.new))
            if low < high:
                pieces.append(edit.new[low - place : high - place])
            place += len(edit.new)
            source = edit.offset + edit.length
            k += 1
        ranges = [piece for piece in pieces if not isinstance(piece, bytes)]
        if not ranges:
            return b"".join(piece for piece in pieces if isinstance(piece, bytes))
        start = ranges[0][0]
        data = memoryview(self._pread(ranges[-1][1] - start, start))
        return b"".join(
            piece if isinstance(piece, bytes) else data[piece[0] - start : piece[1] - start] for piece in pieces
        )


def read_range(pread: PRead, edits: Sequence[Edit], start: int, stop: int) -> bytes:
    """Bytes [start, stop) of a file's archive form."""
    return Edited(pread, edits).read(stop - start, start)


def sha256_of(pread: PRead, n_bytes: int, edits: Sequence[Edit] = ()) -> str:
    """sha256 in hexadecimal of a file under edits, through windows."""
    digest = hashlib.sha256()
    size = ArchiveForm(tuple(edits), ()).n_bytes(n_bytes)
    edited = Edited(pread, edits)
    for start in range(0, size, WINDOW):
        digest.update(edited.read(min(WINDOW, size - start), start))
    return digest.hexdigest()


# --- binaries (rows 1 to 4) ------------------------------------------------------------------------------------------


class CString(NamedTuple):
    """A C string that names the prefix, on disk: see `scan_strings` in the kernels."""

    start: int
    end: int
    padding: int
    hits: list[tuple[int, int]]


def scan_binary(pread: PRead, n_bytes: int, needles: Sequence[bytes], slot: int) -> list[CString]:
    """All C strings of a file that hold a needle, whatever window's edge they cross."""
    strings: list[CString] = []
    offset, window = 0, WINDOW
    while True:
        data = pread(window, offset)
        final = offset + len(data) >= n_bytes or not data
        found, resume = kernel.scan_strings(data, needles, slot, final)
        for start, end, padding, hits in found:
            strings.append(
                CString(start + offset, end + offset, padding, [(hit + offset, index) for hit, index in hits])
            )
        if final:
            return strings
        # A string longer than the window: read more from its start.
        window = window * 2 if resume == 0 else WINDOW
        offset += resume


def _build_root(needles: Iterable[bytes], placeholder: bytes) -> bytes | None:
    """Where a package was built, if that lies below a prefix: what names that by nature is none of the prefix's.

    Images have conda in ``/opt/conda``, and many packages were built below ``/opt/conda/conda-bld``.
    """
    for needle in needles:
        if placeholder.startswith(needle + b"/"):
            return b"/".join([needle, placeholder[len(needle) + 1 :].split(b"/", 1)[0]])
    return None


def binary_variants(
    strings: Sequence[CString], needles: Sequence[bytes], placeholder: bytes, pread: PRead, n_bytes: int
) -> Iterator[Sequence[CString]]:
    """Which hits in strings of a binary may be what conda wrote, most likely first: others may name the prefix by
    nature.

    All but those of where the package was built; all; those where the prefix ends as a path's component does; all but
    one string.
    """
    build = _build_root(needles, placeholder)
    if build is not None:
        apart = [
            string._replace(start=hits[0][0], hits=hits)
            for string in strings
            if (
                hits := [
                    hit for hit in string.hits if needles[hit[1]] == placeholder or pread(len(build), hit[0]) != build
                ]
            )
        ]
        if apart != strings:
            yield apart
    yield strings
    at_boundary = [
        string
        for string in strings
        if all(
            kernel.find_text(pread(length + 2, offset)[: string.end - offset], [pread(length, offset)])
            for offset, length in ((offset, len(needles[index])) for offset, index in string.hits)
        )
    ]
    if len(at_boundary) != len(strings):
        yield at_boundary
    if 1 < len(strings) <= _MAX_LEFT_OUT and n_bytes * len(strings) <= 1 << 28:
        for k in range(len(strings)):
            yield [*strings[:k], *strings[k + 1 :]]


def restore_binary(
    strings: Sequence[CString], needles: Sequence[bytes], placeholder: bytes, kind: str = "binary"
) -> tuple[ArchiveForm, list[CString]]:
    """Undo what conda did to a managed binary: the placeholder back in, and the NULs it was paid with out.

    Returns
    -------
    The normal form, and the strings that are not relocations, since too few NULs stand behind them.
    """
    edits: list[Edit] = []
    relocations: list[Relocation] = []
    natural: list[CString] = []
    for string in strings:
        gap = sum(len(placeholder) - len(needles[index]) for _, index in string.hits)
        if string.padding < gap or any(len(needles[index]) > len(placeholder) for _, index in string.hits):
            natural.append(string)
            continue
        shift = 0
        length: int | None = string.end - string.start + gap
        for hit, index in string.hits:
            edits.append(Edit(hit, len(needles[index]), placeholder))
            relocations.append(Relocation(hit + shift, kind, len(placeholder), length))
            shift += len(placeholder) - len(needles[index])
            length = None
        if gap:
            edits.append(Edit(string.end, gap, b""))
    return ArchiveForm(tuple(edits), tuple(relocations)), natural


# --- text (rows 7, 8, 12) --------------------------------------------------------------------------------------------


def text_form(
    hits: Sequence[tuple[int, int]], needles: Sequence[bytes], kinds: Sequence[str], placeholder: bytes,
    inner: Sequence[bytes] = (),
) -> ArchiveForm:  # fmt: skip
    """The archive form of a text file whose hits all name the prefix.

    Parameters
    ----------
    kinds : how each hit spells it.
    inner : what stands behind the prefix in place of each needle; nothing, if not given.
    """
    edits: list[Edit] = []
    relocations: list[Relocation] = []
    shift = 0
    for (offset, index), kind in zip(hits, kinds, strict=True):
        new = placeholder + inner[index] if inner else placeholder
        edits.append(Edit(offset, len(needles[index]), new))
        relocations.append(Relocation(offset + shift, kind, len(placeholder)))
        shift += len(new) - len(needles[index])
    return ArchiveForm(tuple(edits), tuple(relocations))


def spelling(data: Buffer, path: str, offset: int, kind: str) -> str:
    """How a hit in an unmanaged text must be spelled at another prefix, from the format it stands in."""
    if kind != "text":
        return kind
    before = bytes(memoryview(data)[max(0, offset - 7) : offset])
    if before.endswith((b"file://", b"file:")):
        return "percent"
    if path.endswith((".json", ".ipynb", ".json5", ".webmanifest")) or path == "conda-meta/state":
        return "json"
    return "text"


class Header(NamedTuple):
    """A script's header: its true first line as the package or installer means it, and its length on disk."""

    true: bytes
    length: int


def _two_lines(data: bytes, prefixes: Sequence[bytes]) -> re.Match[bytes] | None:
    """The two-line form of pip, distlib, uv or rattler whose interpreter lies below a prefix; ``path`` follows it.

    pip wrote the path without quotes even where it has a space: so the prefix is matched as a whole.
    """
    if not data.startswith(b"#!/bin/sh\n'''exec' "):
        return None
    matches = (re.match(_TWO_LINES_HEAD + re.escape(prefix) + _TWO_LINES_TAIL, data) for prefix in prefixes)
    return next((match for match in matches if match), None)


def script_header(data: bytes, prefixes: Prefixes, placeholder: bytes) -> Header | None:
    """The header of a script whose interpreter lies in the environment; None for any other file.

    The two-line forms that pip, distlib, uv and rattler write for long paths and paths with spaces are taken for the
    one line they stand for.
    """
    if not data.startswith(b"#!"):
        return None
    match = _two_lines(data, prefixes.plain)
    if match is None:
        line = data.split(b"\n", 1)[0]
        # The path may hold spaces, which no kernel understands, but conda wrote them before 4.x: take the prefix first.
        for prefix in prefixes.plain:
            body = line[2:].lstrip(b" \t")
            if body.startswith(prefix + b"/"):
                rest = _replaced(body[len(prefix) :], prefixes, placeholder)
                return Header(line[: len(line) - len(body)] + placeholder + rest, len(line))
        return None
    options = _replaced(match["options"], prefixes, placeholder)
    return Header(b"#!" + placeholder + match["path"] + options, match.end())


def _replaced(text: bytes, prefixes: Prefixes, placeholder: bytes) -> bytes:
    """A text with the placeholder wherever it names a prefix."""
    hits = kernel.find_text(text, prefixes.plain)
    return apply_edits(text, [Edit(offset, len(prefixes.plain[index]), placeholder) for offset, index in hits])


def header_variants(data: bytes, prefixes: Prefixes, placeholder: bytes) -> Iterator[Header]:
    """What a managed script's first line may have been before its installer rewrote it, most likely first."""
    if not data.startswith(b"#!"):
        return
    header = script_header(data, prefixes, placeholder)
    if header is not None:
        yield header
    match = _ENV_LINE.match(data)
    if match:
        header = Header(b"#!" + placeholder + b"/bin/" + match["name"] + match["options"], match.end())
        yield header
    if header is not None and (match or _two_lines(data, prefixes.plain)):
        # rattler drops the blanks of the line that it rewrites: autotools write "#! /path/to/perl -w".
        for blanks in (b" ", b"  "):
            yield header._replace(true=b"#!" + blanks + header.true[2:])


def _python_header_end(body: bytes) -> bytes | None:
    """What follows our two-line header in a Python script, so that its docstring is still what it was.

    Our header is a string, so it takes the docstring's place. None if there is no way: a `from __future__` import may
    follow one string, not two, and no assignment.
    """
    if b"__doc__" not in body and not _MAY_HAVE_DOCSTRING.match(body):
        return b""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = ast.parse(body)
            docstring = ast.get_docstring(module, clean=False)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    future = any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in module.body)
    if future:
        return b"" if docstring is None and b"__doc__" not in body else None
    if docstring is None and b"__doc__" not in body:
        return b""
    return b"; __doc__ = " + ascii(docstring).encode("ascii")


def relocatable_header(true: bytes, placeholder: bytes, path: str, body: bytes) -> bytes | None:
    """Row 12: a header that starts the script wherever the environment lies, unrelocated and unactivated.

    Parameters
    ----------
    true : the true header, with the placeholder.
    path : the script's, below the prefix.
    body : the script's bytes after its header.

    Returns
    -------
    None where there is no such form: then the true header stays, and the script is listed.
    """
    match = _two_lines(true, (placeholder,))
    if match is not None:
        inner = match["path"]
    else:
        match = _SHEBANG.match(true.split(b"\n", 1)[0])
        if match is None or not match["path"].startswith(placeholder + b"/"):
            return None
        inner = match["path"][len(placeholder) :]
    if not inner.startswith(b"/bin/"):
        return None
    name = inner[len(b"/bin/") :]
    options = (match["options"] or b"").strip(b" \t")
    if placeholder in options:  # nothing stands there in the archive that a program could use
        return None
    if b"/" in name or b"\r" in true or not re.fullmatch(rb"[\w.+-]+", name):
        return None
    if not re.fullmatch(rb"[\w.+=:,/ \t-]*", options):
        return None
    folder = os.path.dirname(path)
    way = os.path.relpath("bin", folder or ".")
    here = b'$(dirname -- "$(realpath -- "$0")")'
    target = here + b"/" + (b"" if way == "." else os.fsencode(way) + b"/") + name
    spaced = b" " + options if options else b""
    if _PYTHON.match(name):
        end = _python_header_end(body)
        if end is not None and _is_utf8(body):
            return b"#!/bin/sh\n'''exec' \"" + target + b'"' + spaced + b' "$0" "$@" #\'\'\'' + end
    elif name.startswith(b"perl"):
        # -x makes perl begin at the line that names it: without it perl would hand the file back to /bin/sh for ever.
        # Some options perl takes from the command line alone (perldiag, "is on the #! line").
        early = spaced if re.search(rb"(?:^| )-\w*[tTC]", options) else b""
        return b'#!/bin/sh\nexec "' + target + b'"' + early + b' -x -- "$0" "$@"\n#!perl' + spaced
    return None if options else b"#!/usr/bin/env " + name


#: What is said of a script that has no such form.
NEEDS_UNPACK = "its first line needs bin/conda-unpack before it starts"


def has_docstring(true: bytes, body: bytes) -> bool:
    """Whether two lines in place of a Python script's first one would take its docstring's place, or break it: they
    would also move its coding cookie to a line where Python does not look for it."""
    match = _SHEBANG.match(true)
    name = match["path"].rpartition(b"/")[2] if match is not None else b""
    return _PYTHON.match(name) is not None and (not _is_utf8(body) or _python_header_end(body) != b"")


def _is_utf8(body: bytes) -> bool:
    """Whether a Python script without its first line says of no other encoding than UTF-8 that it is in that."""
    cookie = _COOKIE.match(body.lstrip(b"\r\n").split(b"\n", 1)[0])
    return cookie is None or _UTF8.match(cookie[1].lower().replace(b"_", b"-")) is not None


def with_header(form: ArchiveForm, header: Header, archive_header: bytes, kept: bool = False) -> ArchiveForm:
    """A text's archive form whose header is replaced as a whole, by one relocation of kind ``shebang``.

    Parameters
    ----------
    kept : see `first_line`.
    """
    edits = [edit for edit in form.edits if edit.offset >= header.length]
    inside = [edit for edit in form.edits if edit.offset < header.length]
    shift = len(archive_header) - header.length
    shift -= sum(len(edit.new) - edit.length for edit in inside)
    relocations = [item._replace(offset=item.offset + shift) for item in form.relocations[len(inside) :]]
    value = [os.fsdecode(header.true), os.fsdecode(archive_header), *([KEPT] if kept else [])]
    return ArchiveForm(
        (Edit(0, header.length, archive_header), *edits),
        (Relocation(0, "shebang", len(archive_header), value), *relocations),
    )


def text_variants(data: bytes, prefixes: Prefixes, placeholder: bytes) -> Iterator[tuple[ArchiveForm, Header | None]]:
    """The normal forms a managed text file may have had, most likely first: (edits that lead there, its header).

    The first replaces every hit. The others leave out hits that may be natural, or take back what an installer did to
    line 1; which one is right is for the package's sha256 to say.
    """
    hits = kernel.find(data, prefixes.plain)

    def form(chosen: Sequence[tuple[int, int]]) -> ArchiveForm:
        return text_form(chosen, prefixes.plain, ["text"] * len(chosen), placeholder)

    two = _two_lines(data, prefixes.plain)
    line_end = two.end() if two is not None else data.find(b"\n") if b"\n" in data else len(data)

    def variant(chosen: Sequence[tuple[int, int]]) -> tuple[ArchiveForm, Header | None]:
        found = form(chosen)
        inside = [edit for edit in found.edits if edit.offset < line_end] if data.startswith(b"#!") else []
        return found, Header(apply_edits(data[:line_end], inside), line_end) if inside else None

    build = _build_root(prefixes.plain, placeholder)
    likely = [hit for hit in hits if build is None or not data.startswith(build, hit[0])]
    everything, plain_header = variant(likely)
    yield everything, plain_header
    for header in header_variants(data, prefixes, placeholder):
        if plain_header is not None and header == plain_header:
            continue
        yield with_header(everything, header, header.true), header
    if likely != hits:
        yield variant(hits)
    at_boundary = kernel.find_text(data, prefixes.plain)
    if len(at_boundary) != len(hits):
        yield variant(at_boundary)
    if _MAX_AMBIGUOUS < len(hits) <= _MAX_LEFT_OUT and len(data) * len(hits) <= 1 << 28:
        for k in range(len(hits)):
            yield variant([*hits[:k], *hits[k + 1 :]])
    if 0 < len(hits) <= _MAX_AMBIGUOUS and len(data) << len(hits) <= 1 << 28:
        for mask in range((1 << len(hits)) - 1):
            yield variant([hit for k, hit in enumerate(hits) if mask >> k & 1])


def placing_edits(
    items: Sequence[Relocation], placeholder: bytes, prefix: bytes, stated: Mapping[str, Stated]
) -> tuple[Edit, ...]:
    """What `place` does to a file's archive form, as edits: for placing a file of any size while it is packed."""
    edits: list[Edit] = []
    if items and items[0].padded:
        for kind, strings in strings_of(items).items():
            old, new = spelled(kind, placeholder), spelled(kind, prefix)
            for offset, length, hits in strings:
                edits += [Edit(hit, len(old), new) for hit in hits]
                edits.append(Edit(offset + length, 0, bytes((len(old) - len(new)) * len(hits))))
        return tuple(sorted(edits))
    for item in items:
        if item.kind == "shebang":
            new = first_line(item, placeholder, prefix)
        elif item.kind in ("record", "pip-record"):
            known = stated.get(item.value if item.kind == "pip-record" else item.value[1])
            if known is None:
                continue
            new = stated_field(item.kind, item.value, known)
        else:
            new = in_slot(item, prefix)
        edits.append(Edit(item.offset, item.slot, new))
    return tuple(edits)


def unplacing_edits(items: Sequence[Relocation], placeholder: bytes, prefix: bytes) -> tuple[Edit, ...]:
    """What `unplace` does to a file at a prefix, as edits (not of records). `is_placed` checks what they replace."""
    return tuple(Edit(offset, len(found), new) for offset, found, new in _unplacings(items, placeholder, prefix))


def is_placed(pread: PRead, items: Sequence[Relocation], placeholder: bytes, prefix: bytes) -> bool:
    """Whether each place that `unplacing_edits` replaces holds just what placing wrote there."""
    return all(pread(len(found), offset) == found for offset, found, _ in _unplacings(items, placeholder, prefix))


def _unplacings(items: Sequence[Relocation], placeholder: bytes, prefix: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """(offset, what stands there in a file at a prefix, what the archive form has)."""
    if items and items[0].padded:
        rows: list[tuple[int, bytes, bytes]] = []
        for kind, strings in strings_of(items).items():
            old, new = spelled(kind, placeholder), spelled(kind, prefix)
            gap = len(old) - len(new)
            for offset, length, hits in strings:
                rows += [(hit - gap * k, new, old) for k, hit in enumerate(hits)]
                rows.append((offset + length - gap * len(hits), bytes(gap * len(hits)), b""))
        yield from sorted(rows)
        return
    shift = 0
    for item in items:
        if item.kind == "shebang":
            found, new = first_line(item, placeholder, prefix), os.fsencode(item.value[1])
        else:
            found, new = in_slot(item, prefix), in_slot(item, placeholder)
        yield item.offset + shift, found, new
        shift += len(found) - len(new)


# --- symbolic links (row 14) -----------------------------------------------------------------------------------------


def link_targets(links: Mapping[str, str], prefixes: Prefixes) -> tuple[dict[str, str], frozenset[str]]:
    """Symbolic links' targets in the archive, and which of them lead out of the environment.

    An absolute target in the environment is made relative to the link's directory.
    """
    targets = {path: _link_target(path, target, prefixes) for path, target in links.items()}
    return targets, frozenset(path for path, target in targets.items() if leads_out(path, target, targets))


def _link_target(path: str, target: str, prefixes: Prefixes) -> str:
    if not target.startswith("/"):
        return target
    # As the kernel reads it: // and /./ mean nothing. A way back over .. may lead through links: it is left alone.
    raw = os.fsencode("/" + "/".join(part for part in target.split("/") if part not in ("", ".")))
    inner = b"" if raw in prefixes.plain else prefixes.strip(raw)
    if inner is None or b".." in inner.split(b"/"):
        return target
    return os.path.relpath("/" + os.fsdecode(inner), "/" + os.path.dirname(path))


# --- classification --------------------------------------------------------------------------------------------------


def is_binary(pread: PRead, n_bytes: int) -> bool:
    """Row 9: a NUL byte means binary."""
    return any(b"\0" in data for _, data in read_windows(pread, n_bytes))


def scan_unmanaged_text(pread: PRead, n_bytes: int, prefixes: Prefixes) -> list[tuple[int, int]] | None:
    """Row 8's hits in a file of any size (indices into ``prefixes.spelled``); None if it is binary (row 9)."""
    margin = max((len(needle) for needle in prefixes.spelled), default=0) + 32
    hits: dict[int, int] = {}
    for offset, data in read_windows(pread, n_bytes, 2 * margin):
        if b"\0" in data:
            return None
        last = offset + len(data) >= n_bytes
        for position, index in kernel.find_text(data, prefixes.spelled):
            # Nearer to an edge than the boundaries reach, the neighbouring window judges.
            if (position >= margin or offset == 0) and (position + margin <= len(data) or last):
                hits.setdefault(offset + position, index)
    return sorted(hits.items())


def big_hits(pread: PRead, n_bytes: int, needles: Sequence[bytes]) -> Iterator[tuple[int, int, int]]:
    """Hits in a file larger than the window, which may cross windows' edges: (window, offset in it, needle)."""
    margin = max(len(needle) for needle in needles) - 1
    offset = 0
    while offset < n_bytes:
        data = pread(WINDOW, offset)
        final = offset + len(data) >= n_bytes
        resume = len(data) if final else len(data) - margin
        for hit, index in kernel.find(data, needles):
            if hit >= resume:
                break
            yield offset, hit, index
            resume = max(resume, hit + len(needles[index]))
        offset += resume

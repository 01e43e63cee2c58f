"""Archive forms of what tells of other files (row 16): conda's records, history, pip's RECORD and direct_url.json."""

from __future__ import annotations

import json
import os
import re
import urllib.parse
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from fastpack._place_py import Relocation, Stated, stated_field
from fastpack.model import PLACEHOLDER
from fastpack.relocation import AS_IT_IS, ArchiveForm, Edit, Prefixes

_SPACE = re.compile(r"[ \t\n\r]*")
_decode = json.JSONDecoder().raw_decode


def json_items(text: str, start: int = 0) -> Iterator[tuple[str | int, Any, int, int]]:
    """(key or index, value, start, stop) of what a well-formed JSON object or array directly holds.

    Parameters
    ----------
    start : where its bracket stands, or white space before it. Nothing for what is neither.
    """
    at = _skip(text, start)
    bracket = text[at]
    if bracket not in "{[":
        return
    at = _skip(text, at + 1)
    index = 0
    while text[at] not in "}]":
        key: str | int = index
        if bracket == "{":
            key, at = _decode(text, at)
            at = _skip(text, _skip(text, at) + 1)
        value, stop = _decode(text, at)
        yield key, value, at, stop
        index += 1
        at = _skip(text, stop)
        if text[at] == ",":
            at = _skip(text, at + 1)


def _skip(text: str, at: int) -> int:
    """Behind the white space that begins here."""
    found = _SPACE.match(text, at)
    return found.end() if found else at


_BLANKED = ("extracted_package_dir", "package_tarball_full_path")


def record_form(
    data: bytes, archived: dict[str, Stated], on_disk: dict[str, Stated], relocated: Collection[str]
) -> ArchiveForm:
    """Row 16: the archive form of a ``conda-meta/*.json`` record.

    Cache paths and the link's source become ``""`` and its type 1: they name a cache that is not on the target. Hashes
    and sizes that state a file's placed form state its archive form; a value that states something else (the package's
    own sha256) is kept. All other bytes are kept.

    Parameters
    ----------
    archived, on_disk : sha256 and size of the package's files whose archive form is another, by path.
    relocated : those of them that name the prefix, so that what is stated of them is placed with them.
    """
    text = data.decode("utf-8", "surrogateescape")
    encoded = len(text) != len(data)
    edits: list[Edit] = []
    relocations: list[Relocation] = []
    shift = 0
    for start, stop, new, item in _record_values(text, archived, on_disk):
        offset, length = start, stop - start
        if encoded:
            offset = len(text[:start].encode("utf-8", "surrogateescape"))
            length = len(text[start:stop].encode("utf-8", "surrogateescape"))
        if item is not None and item[1] in relocated:
            relocations.append(Relocation(offset + shift, "record", len(new), list(item)))
        if data[offset : offset + length] != new:
            edits.append(Edit(offset, length, new))
            shift += len(new) - length
    return ArchiveForm(tuple(edits), tuple(relocations))


def _record_values(
    text: str, archived: dict[str, Stated], on_disk: dict[str, Stated]
) -> Iterator[tuple[int, int, bytes, tuple[str, str] | None]]:
    """(start, stop, what stands there in the archive, which field of which file it is) of a record's values."""
    for key, value, start, stop in json_items(text):
        if key in _BLANKED and value is not None:
            yield start, stop, b'""', None
        elif key == "link":
            for name, inner, at, end in json_items(text, start):
                if name == "source" and inner is not None:
                    yield at, end, b'""', None
                elif name == "type":
                    yield at, end, b"1", None
        elif key == "paths_data":
            for name, _, at, _ in json_items(text, start):
                if name == "paths":
                    for _, entry, place, _ in json_items(text, at):
                        path = entry.get("_path") if isinstance(entry, dict) else None
                        if isinstance(path, str) and path in on_disk and path in archived:
                            yield from _entry_values(text, place, path, archived[path], on_disk[path])


def _entry_values(
    text: str, start: int, path: str, form: Stated, found: Stated
) -> Iterator[tuple[int, int, bytes, tuple[str, str]]]:
    """`_record_values` of one file's entry."""
    for field, _, at, end in json_items(text, start):
        if field in ("sha256", "sha256_in_prefix") and text[at + 1 : end - 1] == found.sha256:
            item = ("sha256", path)
            yield at + 1, end - 1, stated_field("record", item, form), item
        elif field == "size_in_bytes" and text[at:end] == str(found.n_bytes):
            item = ("size", path)
            yield at, end, stated_field("record", item, form), item


_HISTORY_DATE = re.compile(rb"^==> .* <==$")


def history_form(data: bytes) -> ArchiveForm:
    """Row 16: ``conda-meta/history`` with its dates fixed and its ``# cmd`` lines dropped; specs are kept."""
    edits: list[Edit] = []
    offset = 0
    for line in data.splitlines(keepends=True):
        body = line.rstrip(b"\r\n")
        if _HISTORY_DATE.match(body):
            edits.append(Edit(offset, len(body), b"==> 2000-01-01 00:00:00 <=="))
        elif body.startswith(b"# cmd"):
            edits.append(Edit(offset, len(line), b""))
        offset += len(line)
    return ArchiveForm(tuple(edits), ())


def direct_url_form(data: bytes, prefixes: Prefixes) -> ArchiveForm:
    """Row 16: pip's ``direct_url.json``: a URL into the environment is relocated, any other local one loses its folder.

    A local wheel's folder is an accident of the machine that installed it; its file name says what was installed.
    """
    text = data.decode("utf-8", "surrogateescape")
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return AS_IT_IS
    for key, url, start, stop in json_items(text):
        if key != "url" or not text[start:stop].startswith('"file://'):
            continue
        try:
            path = urllib.parse.unquote_to_bytes(urllib.parse.urlsplit(url).path)
        except ValueError:
            return AS_IT_IS
        offset = len(text[:start].encode("utf-8", "surrogateescape"))
        length = len(text[start:stop].encode("utf-8", "surrogateescape"))
        inner = prefixes.strip(path)
        if inner is not None:
            rest = urllib.parse.quote(inner).encode()
            new = b'"file://' + PLACEHOLDER + b"/" + rest + b'"'
            place = Relocation(offset + len(b'"file://'), "direct-url", len(PLACEHOLDER))
            return ArchiveForm((Edit(offset, length, new),), (place,))
        name = urllib.parse.quote(path.rstrip(b"/").rsplit(b"/", 1)[-1])
        return ArchiveForm((Edit(offset, length, f'"file:///{name}"'.encode()),), ())
    return AS_IT_IS


_RECORD_LINE = re.compile(
    rb"^(?P<path>\"(?:[^\"]|\"\")*\"|[^,\"]*),(?P<stated>\"?sha256=[A-Za-z0-9_-]+\"?,\"?[0-9]+\"?|[^\r\n]*)\r?$"
)


class RecordLine(NamedTuple):
    """A line of a wheel's RECORD. `name` makes an absolute name relative; `stated` is hash and size without quotes."""

    path: str  # below the prefix
    name: Edit | None
    offset: int  # of hash and size
    length: int
    stated: bytes


def record_lines(data: bytes, folder: str, names: frozenset[bytes], prefixes: Prefixes) -> Iterator[RecordLine]:
    """The lines that matter: of files whose last part is one of `names`, and those with an absolute name (PEP 376).

    `folder` is the directory that RECORD's paths are relative to. A path that leads out of the prefix is left out. Few
    lines of a long list speak of a file that matters.
    """
    offset = 0
    absolute = tuple(start + prefix + b"/" for prefix in prefixes.plain for start in (b"", b'"'))
    for line in data.split(b"\n"):
        quoted = line.startswith(b'"')
        match = None
        if quoted or line.startswith(absolute) or line[: max(0, line.find(b","))].rpartition(b"/")[2] in names:
            match = _RECORD_LINE.match(line)
        if match:
            raw = match["path"]
            if quoted:
                raw = raw[1:-1].replace(b'""', b'"')
            inner = prefixes.strip(raw)
            name = None
            if inner is not None:
                raw = os.fsencode(os.path.relpath("/" + os.fsdecode(inner), "/" + folder))
                new = b'"' + raw.replace(b'"', b'""') + b'"' if quoted else raw
                name = Edit(offset, len(match["path"]), new)
            path = os.path.normpath(os.path.join(folder, os.fsdecode(raw)))
            if not path.startswith(("/", "..")):
                stated = match["stated"]
                yield RecordLine(path, name, offset + match.start("stated"), len(stated), stated.replace(b'"', b""))
        offset += len(line) + 1


def pip_record_form(
    data: bytes, folder: str, archived: dict[str, Stated], on_disk: dict[str, Stated], relocated: frozenset[str],
    prefixes: Prefixes,
) -> ArchiveForm:  # fmt: skip
    """Row 16: a pip distribution's RECORD, stating hashes and sizes of the archive forms where it stated the disk's.

    Files that lie below the prefix are named by the way from RECORD's root, as pip does.
    """
    if not archived and not any(prefix + b"/" in data for prefix in prefixes.plain):
        return AS_IT_IS
    edits: list[Edit] = []
    relocations: list[Relocation] = []
    shift = 0
    names = frozenset(os.fsencode(path.rpartition("/")[2]) for path in archived)
    for path, name, offset, length, stated in record_lines(data, folder, names, prefixes):
        if name is not None:
            edits.append(name)
            shift += len(name.new) - name.length
        form, found = archived.get(path), on_disk.get(path)
        if form is None or found is None or stated_field("pip-record", path, found) != stated:
            continue
        new = stated_field("pip-record", path, form)
        if path in relocated:
            relocations.append(Relocation(offset + shift, "pip-record", len(new), path))
        edits.append(Edit(offset, length, new))
        shift += len(new) - length
    return ArchiveForm(tuple(edits), tuple(relocations)) if edits or relocations else AS_IT_IS

"""Placing: from a file's archive form to its form at a prefix, and back (docs/relocation.md).

One policy for ``fastpack`` and for ``bin/conda-unpack``, whose text this file is part of: so only the standard library,
and nothing newer than Python 3.8. Nothing is ever found by search: every place that changes was recorded when the
environment was packed, and what stands there is checked before it is replaced.
"""

from __future__ import annotations

import base64
import binascii
import errno
import fcntl
import fnmatch
import hashlib
import json
import os
import re
import stat
import subprocess
import urllib.parse
from typing import Any, Callable, Iterable, Iterator, Mapping, NamedTuple, Optional, Sequence

from fastpack._relocate_py import place_strings, restore_strings

MIB = 1 << 20
#: Up to this size a file's mtime is a function of all its bytes, beyond of its size, first and last MiB.
SMALL_FILE = 8 * MIB
#: 2000-01-01 00:00:00 UTC, the mtime of directories and links, and the earliest one of files.
EPOCH_2000 = 946684800
#: What members' times are spread over, in steps of two seconds: twenty years.
SPAN = 315576000
RELOCATIONS = ".fastpack/relocations.json"
STATE = ".fastpack/state.json"
INCOMPLETE = ".fastpack/incomplete"
RELOCATIONS_FORMAT = 0

#: The first line's longest length in bytes on Linux: what the kernel reads less the NUL (rattler's constant).
SHEBANG_MAX = 127
#: Wide characters, by Python's codec names. Kinds of relocation in them have that as their end; those of a package's
#: file have what they are in narrow ones before it (``binary-utf-16-le``, ``slash-…``, ``text-…``).
WIDE = ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")
#: The value of a relocation of which a prefix that does not fit its slot is no reason to refuse (row 6).
OPTIONAL = "optional"
#: The third value of a relocation of kind ``shebang``, see `first_line`.
KEPT = "kept"
_TEXTS = ("text", "percent", "json", "direct-url", *("text-" + codec for codec in WIDE))
#: Kinds in a C string of a package's file.
_STRINGS = ("binary", "slash", *(padding + codec for codec in WIDE for padding in ("binary-", "slash-")))
_SHEBANG = re.compile(rb"^#![ ]*(/(?:\\ |[^ \n\r\t])*)(.*)$", re.DOTALL)
_PYTHON_NAME = re.compile(rb"^python(?:\d+(?:\.\d+)?)?$")
_FIELD = {
    "sha256": re.compile(rb"[0-9a-f]{64}"),
    "size": re.compile(rb"[0-9]+"),
    "pip-record": re.compile(rb"sha256=[A-Za-z0-9_-]+,[0-9]+"),
}


class Mismatch(ValueError):
    """The bytes at a relocation are not what the archive or the recorded prefix says."""


class Relocation(NamedTuple):
    """One place in a file's archive form that names the prefix.

    `slot` is how many bytes of the archive form it replaces. `value` depends on the kind: for ``binary`` and ``slash``,
    also in wide characters, the length in bytes of the C string that begins here, or None for a further hit in that
    string; for a ``slash`` or wide one in an unmanaged binary, ``optional``; for ``shebang`` the true header and the
    header of the archive form; for ``record`` the field's name and the file whose hash or size is stated; for
    ``pip-record`` that file.
    """

    offset: int
    kind: str
    slot: int
    value: Any = None

    @property
    def padded(self) -> bool:
        """Whether it is in a C string that is padded with NULs (row 1)."""
        return self.kind.startswith("binary")

    @property
    def filled(self) -> bool:
        """Whether the prefix is filled up to the slot with slashes (rows 5, 6 and 10)."""
        return self.kind.startswith("slash") or (self.kind in WIDE and self.value == OPTIONAL)

    @property
    def fixed(self) -> bool:
        """Whether its file's length stays what it is."""
        return self.padded or self.filled


class Stated(NamedTuple):
    """What records state of a file: sha256 in hexadecimal, size in bytes."""

    sha256: str
    n_bytes: int


class RelocatedFile(NamedTuple):
    """A line of ``.fastpack/relocations.json``: a file to change, `sha256` and `n_bytes` of its archive form."""

    path: str
    sha256: str
    n_bytes: int
    mode: int
    placeholder: bytes
    items: tuple[Relocation, ...]

    @property
    def second_phase(self) -> bool:
        """Whether it states hashes of other files, which must be placed before it."""
        return any(item.kind in ("record", "pip-record") for item in self.items)

    @property
    def room(self) -> Optional[int]:
        """The longest prefix in bytes that fits every optional slot; None if there are none."""
        slots = [item.slot // width_of(item.kind) for item in self.items if item.value == OPTIONAL]
        return min(slots) if slots else None

    def fits(self, prefix: bytes) -> bool:
        """Whether a prefix fits every optional slot: where it does not, the whole file stays in its archive form."""
        if self.room is None:
            return True
        return len(prefix) <= self.room and (prefix.isascii() or not any(item.kind in WIDE for item in self.items))


def with_pad(file: RelocatedFile, rules: Sequence[str]) -> RelocatedFile:
    """A file with the padding that rules ask for: ``conda``, ``slash`` or ``GLOB=slash``, the last that matches counts.

    Only managed binaries have a choice; where no rule matches, the padding is what was recorded when packing.
    """
    kind = None
    for rule in rules:
        pattern, _, name = rule.rpartition("=")
        if not pattern or fnmatch.fnmatchcase(file.path, pattern):
            kind = {"conda": "binary", "slash": "slash"}[name]
    now = file.items[0].kind.partition("-")[0] if file.items else None
    if kind is None or now not in ("binary", "slash") or now == kind:
        return file
    if any(item.value == OPTIONAL for item in file.items):
        return file
    return file._replace(items=tuple(item._replace(kind=kind + item.kind[len(now) :]) for item in file.items))


def check_pad(rules: Sequence[str]) -> Optional[str]:
    """The first rule for `with_pad` that is none; None if all are."""
    return next((rule for rule in rules if rule.rpartition("=")[2] not in ("conda", "slash")), None)


class Table(NamedTuple):
    """``relocations.json``: files to change, directories stricter than u+rwx (the deepest first), packed strictly."""

    files: list[RelocatedFile]
    directories: list[tuple[str, int]]
    strict: bool


def read_relocations(data: bytes) -> list[RelocatedFile]:
    """The files of ``relocations.json``: see `read_table`."""
    return read_table(data).files


def read_table(data: bytes) -> Table:
    """Read ``relocations.json``; ValueError (or what nonsense raises) if it is not one, with what is wrong in it."""
    table = json.loads(data.decode("ascii"))
    if type(table["format"]) is not int or table["format"] != RELOCATIONS_FORMAT:
        raise ValueError("relocations of format %r, this program reads %d" % (table["format"], RELOCATIONS_FORMAT))
    placeholders = [os.fsencode(text) for text in table["placeholders"]]
    # Packages that were built on Windows have others than paths.
    if not all(placeholders) or any(b"\0" in placeholder for placeholder in placeholders):
        raise ValueError("a placeholder that is none")
    files = []
    for row in table["files"]:
        parts = str(row["path"]).split("/")
        if ".." in parts or "" in parts or "\0" in row["path"]:
            raise ValueError("a path that may lead out of the environment: %r" % row["path"])
        items = tuple(Relocation(*item) for item in row["items"])
        if not items or not all(_is_size(row[key]) for key in ("mode", "size", "placeholder")):
            raise ValueError("mode, size, placeholder or items of %r are none" % row["path"])
        if not isinstance(row["sha256"], str) or not _FIELD["sha256"].fullmatch(os.fsencode(row["sha256"])):
            raise ValueError("the sha256 of %r is none" % row["path"])
        before = Relocation(0, "", 0)
        for item in items:
            if not (_is_size(item.offset) and _is_size(item.slot)):
                raise ValueError("a relocation without offset or slot in %r" % row["path"])
            if not _has_its_value(item):
                raise ValueError("a relocation of kind %r with another value in %r" % (item.kind, row["path"]))
            if item.offset < before.offset + before.slot or item.offset + item.slot > row["size"]:
                raise ValueError("a relocation out of order or out of bounds in %r" % row["path"])
            before = item
        files.append(
            RelocatedFile(
                str(row["path"]),
                row["sha256"],
                row["size"],
                row["mode"] & 0o777,
                placeholders[row["placeholder"]],
                items,
            )
        )
    return Table(files, _directories(table.get("directories", [])), table.get("strict") is True)


def _is_size(value: Any) -> bool:
    return type(value) is int and value >= 0


def _has_its_value(item: Relocation) -> bool:
    """Whether a relocation's value is what its kind needs."""
    value = item.value
    if item.kind in _STRINGS:
        length = value is None or _is_size(value)
        return length or (item.kind == "slash" and value == OPTIONAL)
    if item.kind in WIDE:
        return value in (None, OPTIONAL)
    if item.kind == "pip-record":
        return isinstance(value, str)
    if item.kind in ("shebang", "record"):
        texts = isinstance(value, list) and all(isinstance(text, str) for text in value)
        texts = texts and (len(value) == 2 or (item.kind == "shebang" and value[2:] == [KEPT]))
        if texts:
            value[0].encode("utf-8", "surrogateescape"), value[1].encode("utf-8", "surrogateescape")
        return texts and (item.kind == "shebang" or value[0] in ("sha256", "size"))
    return value is None and item.kind in _TEXTS


def _directories(rows: Any) -> list[tuple[str, int]]:
    found = []
    for path, mode in rows:
        if not isinstance(path, str) or not isinstance(mode, int) or {"", ".", ".."} & set(path.split("/")):
            raise ValueError("a directory that may lead out of the environment: %r" % (path,))
        found.append((path, mode & 0o777))
    return sorted(found, key=lambda row: -row[0].count("/"))


def set_directories(root: str, directories: Iterable[tuple[str, int]]) -> None:
    """Give directories their modes, last of all: an archive has them u+rwx, or tar could not fill them."""
    for path, mode in directories:
        full = os.path.join(root, path)
        if os.path.isdir(full) and not os.path.islink(full):
            os.chmod(full, mode)


def write_relocations(
    files: Iterable[RelocatedFile], directories: Sequence[tuple[str, int]] = (), strict: bool = False
) -> bytes:
    """The bytes of ``relocations.json`` (ASCII, names by surrogateescape)."""
    placeholders: list[bytes] = []
    rows = []
    for file in files:
        if file.placeholder not in placeholders:
            placeholders.append(file.placeholder)
        items = [list(item) if item.value is not None else list(item[:3]) for item in file.items]
        rows.append(
            {
                "path": file.path,
                "sha256": file.sha256,
                "size": file.n_bytes,
                "mode": file.mode,
                "placeholder": placeholders.index(file.placeholder),
                "items": items,
            }
        )
    table = {
        "format": RELOCATIONS_FORMAT,
        "placeholders": [os.fsdecode(placeholder) for placeholder in placeholders],
        "files": rows,
    }
    if directories:
        table["directories"] = [list(row) for row in directories]
    if strict:
        table["strict"] = True
    return json.dumps(table, separators=(",", ":")).encode("ascii")


def longest_prefix(files: Iterable[RelocatedFile]) -> int | None:
    """The longest prefix in bytes that fits every slot that must be filled, or None if there is no limit."""
    items = (item for file in files for item in file.items if item.fixed and item.value != OPTIONAL)
    return min((item.slot // width_of(item.kind) for item in items), default=None)


def ascii_only(files: Iterable[RelocatedFile]) -> Optional[str]:
    """The first file that can only name a prefix of ASCII characters (row 10), or None."""
    return next((f.path for f in files if any(i.kind in WIDE and i.value is None for i in f.items)), None)


def content_mtime(digest: bytes) -> int:
    """The mtime of a file as a function of its bytes: an even second between 2000 and 2019.

    Even, so that zip keeps it; a function of the content, so that equal files have equal times and changed ones changed
    times: a fixed time makes rsync, make and PYTHONPYCACHEPREFIX use stale files.
    """
    return EPOCH_2000 + 2 * (int.from_bytes(digest[:8], "big") % SPAN)


def mtime_key(n_bytes: int, head: Any, tail: Any) -> bytes:
    """What is hashed for the mtime of a file over 8 MiB: its size, first and last MiB (one read is then enough)."""
    return n_bytes.to_bytes(8, "little") + bytes(head) + bytes(tail)


def relocated_mtime(data: Any) -> int:
    """`content_mtime` of a file that has relocations, whose digest is sha256: conda-unpack has no BLAKE3."""
    if len(data) > SMALL_FILE:
        data = mtime_key(len(data), data[:MIB], data[-MIB:])
    return content_mtime(hashlib.sha256(data).digest())


def _shebang_to_env(line: bytes) -> bytes:
    match = _SHEBANG.match(line)
    if not match:
        return line
    path, rest = match.groups()
    name = path.rsplit(b"/", 1)[-1]
    if _PYTHON_NAME.match(name):
        return b"#!/bin/sh\n'''exec' \"" + path + b'"' + rest + b' "$0" "$@" #\'\'\''
    return b"#!/usr/bin/env " + name + rest


def placed_header(header: bytes, placeholder: bytes, prefix: bytes) -> bytes:
    """A script's first line at a prefix, as rattler writes it (crates/rattler/src/install/link.rs, replace_shebang).

    `header` may have further lines (the two-line form of pip and others): there the prefix is simply replaced.
    """
    line, newline, rest = header.partition(b"\n")
    if b" " in prefix:
        if placeholder in line:
            line = _shebang_to_env(line).replace(placeholder, prefix)
    else:
        line = line.replace(placeholder, prefix)
        if len(line) > SHEBANG_MAX:
            line = _shebang_to_env(line)
    return line + newline + rest.replace(placeholder, prefix)


def first_line(item: Relocation, placeholder: bytes, prefix: bytes) -> bytes:
    """What stands at a relocation of kind ``shebang`` at a prefix.

    The two lines that rattler writes for some prefixes are a string, which takes the place of a script's docstring, and
    no ``from __future__`` may follow both. A script that nobody but pip installed, so that none has to write it as
    rattler does, has its archive form's header there (`KEPT`), which knows of the docstring.
    """
    true, archived = map(os.fsencode, item.value[:2])
    placed = placed_header(true, placeholder, prefix)
    kept = item.value[2:] and placed.startswith(b"#!/bin/sh\n") and not true.startswith(b"#!/bin/sh\n")
    return archived if kept else placed


def codec_of(kind: str) -> Optional[str]:
    """The codec of a kind of relocation in wide characters; None of any other."""
    return kind[-9:] if kind[-9:] in WIDE else None


def width_of(kind: str) -> int:
    """Bytes of a character in a relocation of this kind."""
    return {"utf-16": 2, "utf-32": 4}.get(kind[-9:-3], 1)


def spelled(kind: str, prefix: bytes) -> bytes:
    """A prefix in the characters of a relocation of this kind.

    Raises
    ------
    Mismatch : a prefix that wide characters cannot spell, or may not (row 10: beyond ASCII, in no package's file).
    """
    codec = codec_of(kind)
    if codec is None:
        return prefix
    if kind in WIDE and not prefix.isascii():
        raise Mismatch("a prefix beyond ASCII for wide characters")
    try:
        return prefix.decode("utf-8").encode(codec)
    except UnicodeDecodeError:
        raise Mismatch("a prefix that is not UTF-8, for wide characters") from None


def in_slot(item: Relocation, prefix: bytes) -> bytes:
    """How a relocation spells a prefix, or the placeholder.

    Raises
    ------
    Mismatch : it cannot: too long for its slot, or as `spelled` says.
    """
    if item.kind in ("percent", "direct-url"):
        return urllib.parse.quote(prefix).encode("ascii")
    if item.kind == "json":
        return os.fsencode(json.dumps(os.fsdecode(prefix), ensure_ascii=False)[1:-1])
    if not item.filled and item.kind not in WIDE and not item.kind.startswith("text"):
        raise Mismatch("a relocation of the unknown kind %r" % item.kind)
    text = spelled(item.kind, prefix)
    if item.filled:
        if len(text) > item.slot:
            raise Mismatch("the prefix does not fit the slot at offset %d" % item.offset)
        text += spelled(item.kind, b"/") * ((item.slot - len(text)) // width_of(item.kind))
    return text


def stated_field(kind: str, value: Any, stated: Stated) -> bytes:
    """The bytes that state a file's hash or size in a conda-meta record or in pip's RECORD."""
    if kind == "pip-record":
        digest = base64.urlsafe_b64encode(binascii.unhexlify(stated.sha256)).rstrip(b"=")
        return b"sha256=%s,%d" % (digest, stated.n_bytes)
    return stated.sha256.encode("ascii") if value[0] == "sha256" else b"%d" % stated.n_bytes


def _stated_path(item: Relocation) -> str:
    return item.value if item.kind == "pip-record" else item.value[1]  # type: ignore[no-any-return]


def stated_files(file: RelocatedFile) -> set[str]:
    """The files whose hashes or sizes a record states."""
    return {_stated_path(item) for item in file.items if item.kind in ("record", "pip-record")}


def strings_of(items: Sequence[Relocation], start: int = 0) -> dict[str, list[tuple[int, int, list[int]]]]:
    """The C strings of a binary's relocations by their kind, as the kernels take them, offsets counted from `start`."""
    strings: dict[str, list[tuple[int, int, list[int]]]] = {}
    kind = ""
    for item in items:
        if item.value is not None:
            kind = item.kind
            strings.setdefault(kind, []).append((item.offset - start, item.value, [item.offset - start]))
        elif item.kind == kind:
            strings[kind][-1][2].append(item.offset - start)
        else:
            raise Mismatch("a relocation that belongs to no string")
    return strings


def windows(items: Sequence[Relocation], n_bytes: int, step: int) -> Iterator[tuple[int, int, int, int]]:
    """Cut a file's archive form after about `step` bytes: at a whole MiB (or step, if that is smaller) that no
    relocation crosses, nor the C string it is in.

    Yields (start, stop, first, last): bytes [start, stop) hold items [first, last). A string's NUL lies with it.
    """
    start = first = 0
    while start < n_bytes or start == 0:
        stop = start + step
        last = first
        while last < len(items) and items[last].offset < stop:
            item = items[last]
            string = item.kind in _STRINGS and isinstance(item.value, int)
            reach = item.value + width_of(item.kind) if string else item.slot
            while item.offset + reach > stop:
                stop += min(step, MIB)
            last += 1
        stop = min(stop, n_bytes)
        yield start, stop, first, last
        start, first = stop, last
        if start >= n_bytes:
            return


def place(
    data: bytearray,
    items: Sequence[Relocation],
    placeholder: bytes,
    prefix: bytes,
    start: int = 0,
    stated: Mapping[str, Stated] | None = None,
    kernel: Callable[..., int] = place_strings,
) -> bytearray:
    """Place a file, or a window of it, at a prefix.

    Parameters
    ----------
    data : bytes [start, start + len(data)) of the archive form; changed in place where the length stays.
    items : the relocations in it, offsets counted from the file's start.
    stated : sha256 and size of the placed files that records speak of; a file not in it keeps what is stated now.

    Raises
    ------
    Mismatch : something else stands where the prefix should.
    """
    if not items:
        return data
    if items[0].padded:
        for kind, strings in strings_of(items, start).items():
            bad = kernel(data, strings, spelled(kind, placeholder), spelled(kind, prefix), width_of(kind))
            if bad != -1:
                raise Mismatch("no string with the placeholder at offset %d" % (bad + start))
        return data
    parts: list[bytes] = []
    position = 0
    for item in items:
        offset = item.offset - start
        old = bytes(data[offset : offset + item.slot])
        if item.kind == "shebang":
            if old != os.fsencode(item.value[1]):
                raise Mismatch("another first line than recorded")
            new = first_line(item, placeholder, prefix)
        elif item.kind in ("record", "pip-record"):
            field = _FIELD["pip-record" if item.kind == "pip-record" else item.value[0]]
            if not field.fullmatch(old):
                raise Mismatch("no hash or size at offset %d" % item.offset)
            known = (stated or {}).get(_stated_path(item))
            new = old if known is None else stated_field(item.kind, item.value, known)
        else:
            if old != in_slot(item, placeholder):
                raise Mismatch("no placeholder at offset %d" % item.offset)
            new = in_slot(item, prefix)
        parts += [bytes(data[position:offset]), new]
        position = offset + item.slot
    parts.append(bytes(data[position:]))
    return bytearray().join(parts)


def unplace(
    data: bytearray,
    items: Sequence[Relocation],
    placeholder: bytes,
    prefix: bytes,
    start: int = 0,
    stated: Mapping[str, Stated] | None = None,
    kernel: Callable[..., int] = restore_strings,
) -> bytearray:
    """Undo `place`: `stated` holds sha256 and size of the files' archive forms.

    Raises
    ------
    Mismatch : the data is not what `place` leaves at `prefix`. That no other byte differs is for the caller's sha256.
    """
    if not items:
        return data
    if items[0].padded:
        for kind, strings in strings_of(items, start).items():
            bad = kernel(data, strings, spelled(kind, placeholder), spelled(kind, prefix), width_of(kind))
            if bad != -1:
                raise Mismatch("no string with the prefix at offset %d" % (bad + start))
        return data
    parts: list[bytes] = []
    position = shift = 0
    for item in items:
        offset = item.offset - start + shift
        if item.kind == "shebang":
            found = first_line(item, placeholder, prefix)
            new = os.fsencode(item.value[1])
        elif item.kind in ("record", "pip-record"):
            field = _FIELD["pip-record" if item.kind == "pip-record" else item.value[0]]
            match = field.match(data, offset)
            known = (stated or {}).get(_stated_path(item))
            if not match:
                raise Mismatch("no hash or size at offset %d" % offset)
            found = match.group()
            new = found if known is None else stated_field(item.kind, item.value, known)
        else:
            found, new = in_slot(item, prefix), in_slot(item, placeholder)
        if data[offset : offset + len(found)] != found:
            raise Mismatch("no prefix at offset %d" % offset)
        parts += [bytes(data[position:offset]), new]
        position = offset + len(found)
        shift += len(found) - len(new)
    parts.append(bytes(data[position:]))
    return bytearray().join(parts)


def placed_growth(items: Iterable[Relocation], placeholder: bytes, prefix: bytes) -> int:
    """How many bytes longer than its archive form a text, or a part of one, is at a prefix (records apart)."""
    growth = 0
    for item in items:
        if item.kind == "shebang":
            growth += len(first_line(item, placeholder, prefix)) - item.slot
        elif not item.fixed and item.kind not in ("record", "pip-record"):
            growth += len(in_slot(item, prefix)) - item.slot
    return growth


def unplaced_lengths(data: bytearray, items: Sequence[Relocation], placeholder: bytes, prefix: bytes) -> list[int]:
    """How many bytes each relocation of a record takes up in its form at a prefix."""
    lengths: list[int] = []
    shift = 0
    for item in items:
        if item.kind in ("record", "pip-record"):
            field = _FIELD["pip-record" if item.kind == "pip-record" else item.value[0]]
            match = field.match(data, item.offset + shift)
            length = len(match.group()) if match else 0
        else:
            length = item.slot + placed_growth((item,), placeholder, prefix)
        lengths.append(length)
        shift += length - item.slot
    return lengths


class Kernels(NamedTuple):
    """The two kernels a tree is relocated with."""

    place: Callable[..., int] = place_strings
    restore: Callable[..., int] = restore_strings


class TreeResult(NamedTuple):
    """What `relocate_tree` did: paths of files written, right already, changed since and so left alone, and more."""

    written: list[str]
    unchanged: list[str]
    left: list[str]
    unfit: list[str]  # in archive form: their slots are too short for the prefix (row 6)
    signed: dict[str, str]  # sha256 of the Mach-O files, signatures included
    unsigned: list[str]  # those that could not be signed


def lock_tree(root: str) -> int:
    """Wait until no other process relocates a tree; a descriptor, which keeps others waiting until it is closed."""
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError:  # a file system that cannot lock a directory
        pass
    return descriptor


def read_regular(path: str) -> bytes:
    """A file's bytes; OSError for what is no regular file: a FIFO, say, which nobody would ever write to."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Not a regular file", path)
        return file.read()


def read_state(root: str) -> dict[str, Any] | None:
    """The state of an unpacked environment, or None where nothing was relocated yet; ValueError if it is broken."""
    try:
        state = json.loads(os.fsdecode(read_regular(os.path.join(root, STATE))))
    except FileNotFoundError:
        return None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(state, dict) or not isinstance(state.get("complete"), bool):
        raise ValueError("it does not say whether it is complete")
    for name in ("prefix", "target"):
        if not isinstance(state.setdefault(name, None), (str, type(None))) or (state["complete"] and not state[name]):
            raise ValueError("its %s is no path" % name)
    earlier = state.get("earlier", [])
    if not isinstance(earlier, list) or not all(isinstance(path, str) for path in earlier):
        raise ValueError("its earlier prefixes are no paths")
    for path in [state.get("prefix"), state.get("target"), *earlier]:
        if path is not None and b"\0" in os.fsencode(path):
            raise ValueError("a prefix with a NUL in it")
    pad, signed = state.setdefault("pad", []), state.setdefault("signed", {})
    unsigned = state.setdefault("unsigned", [])
    if not isinstance(pad, list) or not all(isinstance(rule, str) for rule in pad) or check_pad(pad) is not None:
        raise ValueError("its padding is none")
    if (
        not isinstance(signed, dict)
        or not isinstance(unsigned, list)
        or not all(isinstance(text, str) for text in [*signed.values(), *unsigned])
    ):
        raise ValueError("its signed files are no table")
    return state


def begin_state(
    root: str, state: Mapping[str, Any] | None, target: str, pad: Sequence[str] | None = None
) -> dict[str, Any]:
    """Write ``.fastpack/state.json`` before the first change, and return it.

    While it is not complete it names every prefix that a file may have: interrupted runs add up. `pad` are new rules
    for `with_pad`; None keeps those that are there.
    """
    known = [] if state is None else [*state.get("earlier", []), state.get("prefix"), state.get("target")]
    begun = {
        "format": 0,
        "archive_id": "" if state is None else state.get("archive_id", ""),
        "prefix": None if state is None else state.get("prefix"),
        "target": target,
        "earlier": [path for path in dict.fromkeys(known) if path is not None and path != target],
        "pad": list(pad) if pad is not None else [] if state is None else state.get("pad", []),
        "signed": {} if state is None else state.get("signed", {}),
        "unsigned": [] if state is None else state.get("unsigned", []),
        "complete": False,
    }
    _expect_signatures(root, begun, ())
    return begun


def _expect_signatures(root: str, begun: Mapping[str, Any], paths: Iterable[str]) -> None:
    """Write a begun state in which the signed files, and those that are about to be, may have any signature."""
    _replace_state(root, {**begun, "signed": dict.fromkeys([*begun["signed"], *paths], "")})


def write_state(
    root: str, archive_id: str, begun: Mapping[str, Any], signed: Mapping[str, str], unsigned: Sequence[str]
) -> None:
    """Write ``.fastpack/state.json`` after the last change: everything names the target of what `begin_state` wrote.

    The latest few of the earlier prefixes are kept: what other tools wrote in between may still name them.
    """
    state = complete_state(archive_id, begun["target"], begun["earlier"], begun["pad"], signed, unsigned)
    _replace_state(root, state)


def complete_state(
    archive_id: str,
    prefix: str,
    earlier: Sequence[str] = (),
    pad: Sequence[str] = (),
    signed: Mapping[str, str] = {},
    unsigned: Sequence[str] = (),
) -> dict[str, Any]:
    """The state of an environment whose files all name `prefix`.

    `signed` has the sha256 of every Mach-O file that was placed, ``""`` where an interrupted run may have signed it;
    `unsigned` those that could not be signed, which the next run tries again.
    """
    return {
        "format": 0,
        "archive_id": archive_id,
        "prefix": prefix,
        "target": prefix,
        "earlier": [path for path in earlier if path != prefix][-8:],
        "pad": list(pad),
        "signed": dict(signed),
        "unsigned": list(unsigned),
        "complete": True,
    }


def _replace_state(root: str, state: dict[str, Any]) -> None:
    data = os.fsencode(json.dumps(state, ensure_ascii=False))
    replace_file(os.path.join(root, STATE), [data], 0o644, relocated_mtime(data))


_NEW = ".fastpack-new-"


def _remove_debris(folder: str) -> None:
    """Remove what `replace_file` left in a directory when its process was killed."""
    try:
        names = os.listdir(folder)
    except OSError:
        return
    for name in names:
        if not name.startswith(_NEW):
            continue
        try:
            os.kill(int(name[len(_NEW) :].split("-", 1)[0]), 0)
        except ProcessLookupError:
            os.unlink(os.path.join(folder, name))
        except (OSError, ValueError):
            pass


def replace_file(path: str, chunks: Iterable[Any], mode: int, mtime: int | None) -> None:
    """Write a new file beside `path` and rename it over: never through an inode that something else may share."""
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, "%s%d-%s" % (_NEW, os.getpid(), name[-200:]))
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0)
    locked = None
    try:
        descriptor = os.open(temporary, flags, 0o600)
    except PermissionError:
        # A directory of our own that is read-only: opened for the moment.
        locked = stat.S_IMODE(os.stat(folder).st_mode)
        os.chmod(folder, locked | 0o300)
        descriptor = os.open(temporary, flags, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fchmod(file.fileno(), mode)
            if mtime is not None:
                os.utime(file.fileno(), (mtime, mtime))
        os.rename(temporary, path)
    except BaseException:
        try:
            os.unlink(temporary)
        except OSError:
            pass
        raise
    finally:
        if locked is not None:
            os.chmod(folder, locked)


def _is_regular(path: str) -> bool:
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False


class Tree(NamedTuple):
    """What is known of an environment while its files are brought to a prefix."""

    sources: Sequence[bytes | None]  # prefixes that a file may have now; None: archive form
    target: bytes
    archive: Mapping[str, Stated]  # of the archive forms
    placed: dict[str, Stated]  # of the files that lie right, filled on the way
    signed: Mapping[str, str]  # sha256 of files that a signature changed
    kernels: Kernels


def relocate_file(path: str, file: RelocatedFile, tree: Tree, dry_run: bool = False) -> str:
    """Bring one file to its prefix; 'written', 'unchanged', or 'left' when it is none of the forms we know.

    Read and written in windows, so memory does not grow with its size (records apart, which are small).
    """
    padded = bool(file.items) and file.items[0].fixed
    target = tree.target if file.fits(tree.target) else None
    with open(path, "rb") as stream:
        info = os.fstat(stream.fileno())
        n_bytes = info.st_size
        # A signature changes bytes, and maybe the length, of a file that is else what we wrote.
        known = tree.signed.get(file.path)
        signed = padded and known is not None and (known == "" or _sha256(stream) == known)
        # As it is padded by the rules that are to be, or as it may have been padded before.
        pads = [file] + [other for other in (with_pad(file, ["conda"]), with_pad(file, ["slash"])) if other is not file]
        sources = dict.fromkeys(name if name is not None and file.fits(name) else None for name in tree.sources)
        for source, pad in [(name, pad) for name in sources for pad in (pads if name is not None else pads[:1])]:
            try:
                growth = 0 if source is None else placed_growth(pad.items, file.placeholder, source)
            except Mismatch:
                continue
            if not file.second_phase and not signed and n_bytes != file.n_bytes + growth:
                continue
            # A record is small, and what it states has other lengths at every prefix.
            cuts = [(0, n_bytes, 0, len(file.items))]
            if not file.second_phase:
                cuts = list(windows(file.items, n_bytes if signed else file.n_bytes, SMALL_FILE))
            disk, check, result = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
            head = tail = b""

            def forms(
                cuts: Any = cuts,
                source: bytes | None = source, pad: RelocatedFile = pad,
                disk: Any = disk, check: Any = check, result: Any = result,
            ) -> Iterator[bytearray]:  # fmt: skip
                stream.seek(0)
                for start, stop, first, last in cuts:
                    items = pad.items[first:last]
                    growth = 0 if source is None else placed_growth(items, file.placeholder, source)
                    data = bytearray(stream.read(stop - start + growth))
                    disk.update(data)
                    kernels = tree.kernels
                    if source is not None:
                        data = unplace(data, items, file.placeholder, source, start, tree.archive, kernels.restore)
                    check.update(data)
                    if target is not None:
                        items = file.items[first:last]
                        data = place(data, items, file.placeholder, target, start, tree.placed, kernels.place)
                    result.update(data)
                    yield data
                if stream.read(1):
                    raise Mismatch("more bytes than the archive form has")

            # The first pass only checks: a file that is not what we know is never half-written.
            try:
                size = 0
                for done in forms():
                    size += len(done)
                    head = head if len(head) >= MIB else head + bytes(done[: MIB - len(head)])
                    tail = (tail + bytes(done[-MIB:]))[-MIB:]
            except Mismatch:
                continue
            if check.hexdigest() != file.sha256 and not signed:
                continue
            tree.placed[file.path] = Stated(result.hexdigest(), size)
            if result.digest() == disk.digest():
                return "unchanged"
            if dry_run:
                return "written"
            digest = result.digest()
            if size > SMALL_FILE:
                digest = hashlib.sha256(mtime_key(size, head, tail)).digest()
            replace_file(path, forms(), stat.S_IMODE(info.st_mode) & 0o777, content_mtime(digest))
            return "written"
    return "left"


def _sha256(stream: Any) -> str:
    stream.seek(0)
    digest = hashlib.sha256()
    while True:
        data = stream.read(MIB)
        if not data:
            return digest.hexdigest()
        digest.update(data)


#: The first bytes of Mach-O files: 64 and 32 bits, either byte order, and those for several architectures.
_MACH_O = tuple(map(bytes.fromhex, ("cffaedfe", "feedfacf", "cefaedfe", "feedface", "cafebabf", "cafebabe")))
_CODESIGN = ["codesign", "--sign", "-", "--force", "--preserve-metadata=entitlements"]


def _is_mach_o(path: str) -> bool:
    with open(path, "rb") as file:
        head = file.read(8)
    # A Java class begins as a Mach-O for several architectures does; its version stands where their number would.
    return head[:4] in _MACH_O and (head[:4] != _MACH_O[-1] or int.from_bytes(head[4:], "big") < 20)


def mach_o_files(root: str, paths: Iterable[str]) -> list[str]:
    """The Mach-O files among some."""
    return [path for path in paths if _is_regular(os.path.join(root, path)) and _is_mach_o(os.path.join(root, path))]


def sign(root: str, paths: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Row 17: sign Mach-O files ad hoc, all at once: (sha256 of each file as it is now, those that were not signed).

    A changed Mach-O file whose signature does not match is killed by macOS when it starts. The command is the one of
    rattler (crates/rattler/src/install/link.rs).
    """
    failed: list[str] = []
    for start in range(0, len(paths), 256):
        batch = paths[start : start + 256]
        if not _codesign(root, batch):
            # The one command does not say which.
            failed += [path for path in batch if not _codesign(root, [path])]
    hashes = {}
    for path in paths:
        with open(os.path.join(root, path), "rb") as file:
            hashes[path] = _sha256(file)
    return hashes, failed


def _codesign(root: str, paths: Sequence[str]) -> bool:
    command = _CODESIGN + [os.path.join(root, path) for path in paths]
    try:
        return (
            subprocess.run(command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0
        )
    except OSError:
        return False


def relocate_tree(
    root: str,
    target: str,
    files: Sequence[RelocatedFile],
    state: Mapping[str, Any] | None,
    kernels: Kernels = Kernels(),  # noqa: B008 (a tuple of functions)
    progress: Callable[[RelocatedFile], None] = lambda file: None,
    dry_run: bool = False,
) -> TreeResult:
    """Bring an unpacked environment's files to the prefix `target`.

    Parameters
    ----------
    root : where the environment lies.
    target : the prefix its files shall name (the same, except for an image root).
    files : from ``relocations.json``.
    state : from ``state.json``, or None if there is none. A file may be in the form of any prefix it names, or in
        archive form (extracted anew over it, say); its sha256 tells.

    Returns
    -------
    TreeResult. A file that is in none of the known forms was changed since, and is left as it is.
    """
    found = state or {}
    files = [with_pad(file, found.get("pad", [])) for file in files]
    names = [target, found.get("prefix"), found.get("target"), *found.get("earlier", [])]
    sources: list[bytes | None] = [os.fsencode(name) for name in dict.fromkeys(names) if name is not None]
    sources.append(None)
    for folder in sorted({os.path.dirname(file.path) for file in files} | {".fastpack"}):
        if not dry_run:
            _remove_debris(os.path.join(root, folder))
    archive = {file.path: Stated(file.sha256, file.n_bytes) for file in files}
    tree = Tree(sources, os.fsencode(target), archive, {}, found.get("signed", {}), kernels)
    result = TreeResult([], [], [], [], {}, [])
    for second_phase in (False, True):
        for file in files:
            if file.second_phase != second_phase:
                continue
            path = os.path.join(root, file.path)
            outcome = "left"
            if _is_regular(path):
                outcome = relocate_file(path, file, tree, dry_run)
            {"written": result.written, "unchanged": result.unchanged, "left": result.left}[outcome].append(file.path)
            if outcome != "left" and not file.fits(tree.target):
                result.unfit.append(file.path)
            progress(file)
        if not second_phase and not dry_run:
            # Records state what is on disk, signatures included.
            again = set(found.get("unsigned", ())) | {path for path, known in tree.signed.items() if known == ""}
            paths = mach_o_files(root, [*result.written, *(path for path in result.unchanged if path in again)])
            if paths:
                if state is not None:
                    _expect_signatures(root, state, paths)
                anew, unsigned = sign(root, paths)
                result.signed.update(anew)
                result.unsigned.extend(unsigned)
            for path in result.unchanged:
                if tree.signed.get(path):
                    result.signed.setdefault(path, tree.signed[path])
            for path, known in result.signed.items():
                tree.placed[path] = Stated(known, os.stat(os.path.join(root, path)).st_size)
    return result


def unwritable(root: str, files: Sequence[RelocatedFile]) -> str | None:
    """The first file or directory that stands in the way of `relocate_tree`; None if all can be read and replaced."""
    for folder in sorted({os.path.dirname(file.path) for file in files} | {".fastpack"}):
        path = os.path.join(root, folder)
        if os.path.isdir(path) and not os.access(path, os.W_OK | os.X_OK) and os.stat(path).st_uid != os.geteuid():
            return path
    for file in files:
        path = os.path.join(root, file.path)
        if _is_regular(path) and not os.access(path, os.R_OK):
            return path
    return None

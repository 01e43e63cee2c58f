"""Placing: from a file's archive form to its form at a prefix, and back (DESIGN section 5, rows 1, 7, 8, 12, 16).

One policy for ``fastpack`` and for ``bin/conda-unpack``, whose text this file is part of: so only the standard library,
and nothing newer than Python 3.8. Nothing is ever found by search: every place that changes was recorded when the
environment was packed, and what stands there is checked before it is replaced.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import re
import stat
import urllib.parse
from typing import Any, Callable, Iterable, Iterator, Mapping, NamedTuple, Sequence

from fastpack._relocate_py import place_strings, restore_strings

MIB = 1 << 20
#: Up to this size a file's mtime is a function of all its bytes, beyond of its size, first and last MiB.
SMALL_FILE = 8 * MIB
#: 2000-01-01 00:00:00 UTC, the mtime of directories and links, and the earliest one of files.
EPOCH_2000 = 946684800
RELOCATIONS = ".fastpack/relocations.json"
STATE = ".fastpack/state.json"
INCOMPLETE = ".fastpack/incomplete"
RELOCATIONS_FORMAT = 0

#: The first line's longest length in bytes on Linux: what the kernel reads less the NUL (rattler's constant).
SHEBANG_MAX = 127
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

    `slot` is how many bytes of the archive form it replaces. `value` depends on the kind: for ``binary``, the length of
    the C string that begins here, or None for a further hit in that string; for ``shebang`` the true header and the
    header of the archive form; for ``record`` the field's name and the file whose hash or size is stated; for
    ``pip-record`` that file.
    """

    offset: int
    kind: str
    slot: int
    value: Any = None


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


def read_relocations(data: bytes) -> list[RelocatedFile]:
    """Read ``relocations.json``; ValueError if it is not one, with what is wrong in it."""
    table = json.loads(data.decode("ascii"))
    if table["format"] != RELOCATIONS_FORMAT:
        raise ValueError("relocations of format %r, this program reads %d" % (table["format"], RELOCATIONS_FORMAT))
    placeholders = [os.fsencode(text) for text in table["placeholders"]]
    files = []
    for row in table["files"]:
        parts = str(row["path"]).split("/")
        if ".." in parts or "" in parts or "\0" in row["path"]:
            raise ValueError("a path that may lead out of the environment: %r" % row["path"])
        items = tuple(Relocation(*item) for item in row["items"])
        if not isinstance(row["mode"], int) or not isinstance(row["size"], int) or not isinstance(row["sha256"], str):
            raise ValueError("mode, size or sha256 of %r is none" % row["path"])
        before = Relocation(0, "", 0)
        for item in items:
            if not (isinstance(item.offset, int) and isinstance(item.slot, int)) or item.slot < 0:
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
    return files


def _has_its_value(item: Relocation) -> bool:
    """Whether a relocation's value is what its kind needs."""
    value = item.value
    if item.kind == "binary":
        return value is None or (isinstance(value, int) and value >= 0)
    if item.kind == "pip-record":
        return isinstance(value, str)
    if item.kind in ("shebang", "record"):
        texts = isinstance(value, list) and len(value) == 2 and all(isinstance(text, str) for text in value)
        return texts and (item.kind == "shebang" or value[0] in ("sha256", "size"))
    return value is None


def write_relocations(files: Iterable[RelocatedFile]) -> bytes:
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
    return json.dumps(table, separators=(",", ":")).encode("ascii")


def longest_prefix(files: Iterable[RelocatedFile]) -> int | None:
    """The longest prefix in bytes that fits every binary slot, or None if there is no limit."""
    slots = [item.slot for file in files for item in file.items if item.kind == "binary"]
    return min(slots) if slots else None


def content_mtime(digest: bytes) -> int:
    """The mtime of a file as a function of its bytes: an even second between 2000 and 2019.

    Even, so that zip keeps it; a function of the content, so that equal files have equal times and changed ones changed
    times: a fixed time makes rsync, make and PYTHONPYCACHEPREFIX use stale files.
    """
    return EPOCH_2000 + 2 * (int.from_bytes(digest[:8], "big") % 315576000)


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


def encoded_prefix(kind: str, prefix: bytes) -> bytes:
    """How a relocation of this kind spells the prefix."""
    if kind in ("percent", "direct-url"):
        return urllib.parse.quote(prefix).encode("ascii")
    if kind == "json":
        return os.fsencode(json.dumps(os.fsdecode(prefix), ensure_ascii=False)[1:-1])
    if kind == "text":
        return prefix
    raise Mismatch("a relocation of the unknown kind %r" % kind)


def stated_field(kind: str, value: Any, stated: Stated) -> bytes:
    """The bytes that state a file's hash or size in a conda-meta record or in pip's RECORD."""
    if kind == "pip-record":
        digest = base64.urlsafe_b64encode(binascii.unhexlify(stated.sha256)).rstrip(b"=")
        return b"sha256=%s,%d" % (digest, stated.n_bytes)
    return stated.sha256.encode("ascii") if value[0] == "sha256" else b"%d" % stated.n_bytes


def _stated_path(item: Relocation) -> str:
    return item.value if item.kind == "pip-record" else item.value[1]  # type: ignore[no-any-return]


def strings_of(items: Sequence[Relocation], start: int = 0) -> list[tuple[int, int, list[int]]]:
    """The C strings of a binary's relocations as the kernels take them, offsets counted from `start`."""
    strings: list[tuple[int, int, list[int]]] = []
    for item in items:
        if item.value is not None:
            strings.append((item.offset - start, item.value, [item.offset - start]))
        elif strings:
            strings[-1][2].append(item.offset - start)
        else:
            raise Mismatch("a relocation that belongs to no string")
    return strings


def windows(items: Sequence[Relocation], n_bytes: int, step: int) -> Iterator[tuple[int, int, int, int]]:
    """Cut a file's archive form at multiples of `step` bytes that no relocation crosses, nor the C string it is in.

    Yields (start, stop, first, last): bytes [start, stop) hold items [first, last). A string's NUL lies with it.
    """
    start = first = 0
    while start < n_bytes or start == 0:
        stop = start + step
        last = first
        while last < len(items) and items[last].offset < stop:
            item = items[last]
            reach = item.value + 1 if item.kind == "binary" and item.value is not None else item.slot
            while item.offset + reach > stop:
                stop += step
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
    if items[0].kind == "binary":
        bad = kernel(data, strings_of(items, start), placeholder, prefix)
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
            new = placed_header(os.fsencode(item.value[0]), placeholder, prefix)
        elif item.kind in ("record", "pip-record"):
            field = _FIELD["pip-record" if item.kind == "pip-record" else item.value[0]]
            if not field.fullmatch(old):
                raise Mismatch("no hash or size at offset %d" % item.offset)
            known = (stated or {}).get(_stated_path(item))
            new = old if known is None else stated_field(item.kind, item.value, known)
        else:
            if old != placeholder:
                raise Mismatch("no placeholder at offset %d" % item.offset)
            new = encoded_prefix(item.kind, prefix)
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
    if items[0].kind == "binary":
        bad = kernel(data, strings_of(items, start), placeholder, prefix)
        if bad != -1:
            raise Mismatch("no string with the prefix at offset %d" % (bad + start))
        return data
    parts: list[bytes] = []
    position = shift = 0
    for item in items:
        offset = item.offset - start + shift
        if item.kind == "shebang":
            found = placed_header(os.fsencode(item.value[0]), placeholder, prefix)
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
            found, new = encoded_prefix(item.kind, prefix), placeholder
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
            growth += len(placed_header(os.fsencode(item.value[0]), placeholder, prefix)) - item.slot
        elif item.kind not in ("binary", "record", "pip-record"):
            growth += len(encoded_prefix(item.kind, prefix)) - item.slot
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
    """What `relocate_tree` did: files written, files that lay right already, files changed since and left alone."""

    written: list[str]
    unchanged: list[str]
    left: list[str]


def read_state(root: str) -> dict[str, Any] | None:
    """The state of an unpacked environment, or None where nothing was relocated yet; ValueError if it is broken."""
    try:
        with open(os.path.join(root, STATE), "rb") as file:
            state = json.loads(os.fsdecode(file.read()))
    except FileNotFoundError:
        return None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(state, dict) or not isinstance(state.get("complete"), bool):
        raise ValueError("it does not say whether it is complete")
    for name in ("prefix", "target"):
        if not isinstance(state.get(name), (str, type(None))):
            raise ValueError("its %s is no path" % name)
    earlier = state.get("earlier", [])
    if not isinstance(earlier, list) or not all(isinstance(path, str) for path in earlier):
        raise ValueError("its earlier prefixes are no paths")
    for path in [state.get("prefix"), state.get("target"), *earlier]:
        if path is not None and b"\0" in os.fsencode(path):
            raise ValueError("a prefix with a NUL in it")
    return state


def begin_state(root: str, state: Mapping[str, Any] | None, target: str) -> dict[str, Any]:
    """Write ``.fastpack/state.json`` before the first change, and return it.

    While it is not complete it names every prefix that a file may have: interrupted runs add up.
    """
    known = [] if state is None else [*state.get("earlier", []), state.get("prefix"), state.get("target")]
    begun = {
        "format": 0,
        "archive_id": "" if state is None else state.get("archive_id", ""),
        "prefix": None if state is None else state.get("prefix"),
        "target": target,
        "earlier": [path for path in dict.fromkeys(known) if path is not None and path != target],
        "pad": "conda",
        "complete": False,
    }
    _replace_state(root, begun)
    return begun


def write_state(root: str, archive_id: str, prefix: str, earlier: Sequence[str] = ()) -> None:
    """Write ``.fastpack/state.json`` after the last change: everything names `prefix`.

    The latest few of the `earlier` prefixes are kept: what other tools wrote in between may still name them.
    """
    state = {
        "format": 0,
        "archive_id": archive_id,
        "prefix": prefix,
        "target": prefix,
        "earlier": [path for path in earlier if path != prefix][-8:],
        "pad": "conda",
        "complete": True,
    }
    _replace_state(root, state)


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


def relocate_file(
    path: str,
    file: RelocatedFile,
    sources: Sequence[bytes | None],
    target: bytes,
    archive: Mapping[str, Stated],
    placed: dict[str, Stated],
    kernels: Kernels,
    dry_run: bool = False,
) -> str:
    """Bring one file to `target`; 'written', 'unchanged', or 'left' when it is none of the forms we know.

    Read and written in windows, so memory does not grow with its size (records apart, which are small).
    """
    binary = bool(file.items) and file.items[0].kind == "binary"
    with open(path, "rb") as stream:
        info = os.fstat(stream.fileno())
        n_bytes = info.st_size
        cuts = list(windows(file.items, file.n_bytes, SMALL_FILE))
        if file.second_phase:
            cuts = [(0, n_bytes, 0, len(file.items))]
        elif binary and n_bytes != file.n_bytes:
            return "left"
        for source in sources:
            disk, check, result = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
            head = tail = b""

            def forms(
                source: bytes | None = source, disk: Any = disk, check: Any = check, result: Any = result
            ) -> Iterator[bytearray]:
                stream.seek(0)
                for start, stop, first, last in cuts:
                    items = file.items[first:last]
                    growth = 0 if source is None else placed_growth(items, file.placeholder, source)
                    data = bytearray(stream.read(stop - start + growth))
                    disk.update(data)
                    if source is not None:
                        data = unplace(data, items, file.placeholder, source, start, archive, kernels.restore)
                    check.update(data)
                    done = place(data, items, file.placeholder, target, start, placed, kernels.place)
                    result.update(done)
                    yield done
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
            if check.hexdigest() != file.sha256:
                continue
            placed[file.path] = Stated(result.hexdigest(), size)
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
    names = [target, found.get("prefix"), found.get("target"), *found.get("earlier", [])]
    sources: list[bytes | None] = [os.fsencode(name) for name in dict.fromkeys(names) if name is not None]
    sources.append(None)
    for folder in sorted({os.path.dirname(file.path) for file in files} | {".fastpack"}):
        if not dry_run:
            _remove_debris(os.path.join(root, folder))
    archive = {file.path: Stated(file.sha256, file.n_bytes) for file in files}
    placed: dict[str, Stated] = {}
    result = TreeResult([], [], [])
    for second_phase in (False, True):
        for file in files:
            if file.second_phase != second_phase:
                continue
            path = os.path.join(root, file.path)
            outcome = "left"
            if _is_regular(path):
                outcome = relocate_file(path, file, sources, os.fsencode(target), archive, placed, kernels, dry_run)
            {"written": result.written, "unchanged": result.unchanged, "left": result.left}[outcome].append(file.path)
            progress(file)
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

"""A delta as a file: what makes one archive of another.

It is a fixed head, a table in JSON, the compressed frames that NEW has and OLD has not, and NEW's tail: what stands
behind its last frame, its manifest among it. docs/design.md, "Deltas", has the fields.
"""

from __future__ import annotations

import json
import os
import stat
import struct
from dataclasses import dataclass
from typing import Any

from fastpack import digest
from fastpack.codec import by_name
from fastpack.errors import DamagedArchive, NewerFormat
from fastpack.frames import decode_manifest, open_descriptor
from fastpack.manifest import BROKEN, Manifest

#: A delta's head: magic, format version, bytes of the table, and its BLAKE3.
_HEAD = struct.Struct("<8sIQ32s")
_MAGIC = b"fpdelta\n"
_FORMAT = 0
#: A table has some hundred bytes for a frame.
_MAX_TABLE = 1 << 28


@dataclass(frozen=True, slots=True)
class Table:
    """A delta's table: archive ids, which frames of the new archive it ships, and the tail behind them.

    `manifest` is (place in the tail, compressed bytes, bytes), `tail` its bytes and their BLAKE3.
    """

    old: str
    new: bytes
    codec: str
    shipped: frozenset[int]
    manifest: tuple[int, int, int]
    tail: tuple[int, str]


def read_table(descriptor: int, path: str) -> tuple[Table, int]:
    """A delta's table, and where its frames begin.

    Raises
    ------
    DamagedArchive, NewerFormat
    """
    try:
        start = os.pread(descriptor, _HEAD.size, 0)
        if len(start) != _HEAD.size or not start.startswith(_MAGIC):
            raise DamagedArchive("that is no delta of fastpack's", path=path, hint="fastpack delta makes them")
        _, version, n_bytes, checksum = _HEAD.unpack(start)
        if version > _FORMAT:
            raise NewerFormat("the delta was written by a newer fastpack", path=path, expected=f"format {_FORMAT}",
                              found=f"format {version}", hint="install that version here")  # fmt: skip
        text = os.pread(descriptor, n_bytes, _HEAD.size) if n_bytes <= _MAX_TABLE else b""
    except OSError as error:
        raise DamagedArchive(f"the delta cannot be read ({error.strerror})", path=path) from None
    if len(text) != n_bytes or digest.blake(text) != checksum:
        raise DamagedArchive("the delta's table is damaged or cut off", path=path, hint="ship it again")
    try:
        row: dict[str, Any] = json.loads(text)
        at, packed, plain = map(int, row["manifest"])
        n_tail, tail_digest = row["tail"]
        shipped = frozenset(map(int, row["shipped"]))
        if min(at, packed, plain, int(n_tail)) < 0:
            raise ValueError("a negative number")
        table = Table(str(row["old"]), bytes.fromhex(row["new"]), str(row["codec"]), shipped,
                       (at, packed, plain), (int(n_tail), str(tail_digest)))  # fmt: skip
        by_name(table.codec)
    except BROKEN as error:
        raise DamagedArchive(f"the delta's table is broken ({error})", path=path) from None
    except DamagedArchive as error:
        error.path = path
        raise
    return table, _HEAD.size + n_bytes


def read_new_id(path: str) -> str | None:
    """The id of the archive that a delta makes; None for what is no delta.

    Raises
    ------
    DamagedArchive, NewerFormat
    """
    descriptor = open_descriptor(path, os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode) or not is_delta(descriptor):
            return None
        return read_table(descriptor, path)[0].new.hex()
    finally:
        os.close(descriptor)


def read_tail(descriptor: int, path: str, position: int, table: Table) -> tuple[bytes, int, Manifest]:
    """What stands behind a delta's frames, where it begins, and the new archive's manifest in it.

    Parameters
    ----------
    position : where the frames begin.

    Raises
    ------
    DamagedArchive, NewerFormat, HostileArchive
    """
    tail_at = os.fstat(descriptor).st_size - table.tail[0]
    tail = os.pread(descriptor, table.tail[0], tail_at) if tail_at >= position else b""
    if len(tail) != table.tail[0] or digest.blake(tail).hex() != table.tail[1]:
        raise DamagedArchive("the delta is damaged or cut off", path=path, hint="ship it again")
    at, n_packed, n_bytes = table.manifest
    packed_manifest = memoryview(tail)[max(0, at) : max(0, at + n_packed)]
    return tail, tail_at, decode_manifest(by_name(table.codec), packed_manifest, n_bytes, table.new, path)


def head(table: bytes) -> bytes:
    """What stands before a delta's table."""
    return _HEAD.pack(_MAGIC, _FORMAT, len(table), digest.blake(table))


def is_delta(descriptor: int) -> bool:
    """Whether an open file begins as a delta does."""
    return os.pread(descriptor, len(_MAGIC), 0) == _MAGIC

"""The end of an archive: the locator, from which the manifest is found, and the standard zstd seek table.

zstd: skippable frames, the locator (magic 0x184D2A5D) and last the seek table of the seekable format
(facebook/zstd, contrib/seekable_format). gzip: a last, empty member whose FEXTRA subfield ``FP`` holds the same
locator. Plain tar: the manifest is the last member.
"""

from __future__ import annotations

import os
import stat
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from fastpack import container, manifest
from fastpack._batch_py import BLOCK
from fastpack._place_py import content_mtime
from fastpack.codec import Codec, by_magic
from fastpack.digest import blake
from fastpack.errors import DamagedArchive, FastpackError, Unreadable

_LOCATOR_MAGIC = 0x184D2A5D
_SEEK_MAGIC = 0x184D2A5E
_SEEKABLE = 0x8F92EAB1
_LOCATOR = struct.Struct("<8sIQQQ32s")
_NAME = b"fastpack"
#: A manifest has a few hundred bytes per file: this is room for some millions.
MAX_MANIFEST = 1 << 30
#: Up to this size no ratio counts: rows of equal files and of links, which have no digest, compress very well.
MODEST_MANIFEST = 128 << 20
#: Bytes of a tar's end that are looked at together: whole blocks.
_PIECE = 8 << 20
#: More than this is a bomb.
MAX_MANIFEST_RATIO = 1000


@dataclass(frozen=True, slots=True)
class Locator:
    """Where the manifest's frame lies. `archive_id` is the BLAKE3 of the manifest."""

    format: int
    offset: int
    packed_bytes: int
    plain_bytes: int
    archive_id: bytes

    def to_bytes(self) -> bytes:
        return _LOCATOR.pack(_NAME, self.format, self.offset, self.packed_bytes, self.plain_bytes, self.archive_id)


def trailer(codec: Codec, locator: Locator, sizes: Sequence[tuple[int, int]]) -> bytes:
    """What follows the last frame: `sizes` are (compressed, plain) bytes of every frame before it."""
    body = locator.to_bytes()
    if codec.name == "tar.zst":
        frame = struct.pack("<II", _LOCATOR_MAGIC, len(body)) + body
        entries = [*sizes, (len(frame), 0)]
        table = b"".join(struct.pack("<II", packed, plain) for packed, plain in entries)
        table += struct.pack("<IBI", len(entries), 0, _SEEKABLE)
        return frame + struct.pack("<II", _SEEK_MAGIC, len(table)) + table
    if codec.name == "tar.gz":
        extra = b"FP" + struct.pack("<H", len(body)) + body
        head = b"\x1f\x8b\x08\x04" + bytes(5) + b"\x03" + struct.pack("<H", len(extra)) + extra
        return head + b"\x03\x00" + struct.pack("<II", zlib.crc32(b""), 0)
    return b""


def find_locator(descriptor: int, size: int, codec: Codec) -> Locator | None:
    """The locator of an archive; None if it has none (then fastpack did not write it, or it is cut off)."""
    if codec.name == "tar.zst":
        body = _zstd_locator(descriptor, size)
    elif codec.name == "tar.gz":
        total = 10 + 2 + 4 + _LOCATOR.size + 2 + 8
        tail = os.pread(descriptor, total, max(0, size - total))
        body = tail[16 : 16 + _LOCATOR.size] if tail[:4] == b"\x1f\x8b\x08\x04" and tail[12:14] == b"FP" else b""
    else:
        return _tar_locator(descriptor, size)
    if len(body) != _LOCATOR.size:
        return None
    name, version, offset, packed, plain, archive_id = _LOCATOR.unpack(body)
    if name != _NAME:
        return None
    return Locator(version, offset, packed, plain, archive_id)


def read_seek_table(descriptor: int, size: int) -> list[tuple[int, int]] | None:
    """(compressed, plain) bytes of every frame as the zstd seek table has them; None if there is no such table."""
    footer = os.pread(descriptor, 9, max(0, size - 9))
    if len(footer) != 9:
        return None
    count, flags, magic = struct.unpack("<IBI", footer)
    if magic != _SEEKABLE or flags & 0x7C:
        return None
    width = 12 if flags & 0x80 else 8
    length = count * width + 9
    head = os.pread(descriptor, 8 + count * width, size - length - 8) if size >= length + 8 else b""
    if len(head) != 8 + count * width or struct.unpack_from("<II", head) != (_SEEK_MAGIC, length):
        return None
    return [struct.unpack_from("<II", head, 8 + k * width) for k in range(count)]


def _zstd_locator(descriptor: int, size: int) -> bytes:
    table = read_seek_table(descriptor, size)
    if not table:
        return b""
    end = size - (len(table) * 8 + 17)
    frame = os.pread(descriptor, 8 + _LOCATOR.size, max(0, end - 8 - _LOCATOR.size))
    if frame[:8] != struct.pack("<II", _LOCATOR_MAGIC, _LOCATOR.size):
        return b""
    return frame[8:]


def _tar_locator(descriptor: int, size: int) -> Locator | None:
    last = _written_last(descriptor, size) or _walked_last(descriptor, size)
    if last is None or not _is_named(last.name, manifest.MANIFEST):
        return None
    # A plain tar has no locator: the manifest's time, a function of its digest, is what it is held against.
    archive_id = blake(os.pread(descriptor, last.n_bytes, last.offset))
    if last.mtime != content_mtime(archive_id):
        raise DamagedArchive("the manifest is not the one that was written", path=manifest.MANIFEST)
    return Locator(0, last.offset, last.n_bytes, last.n_bytes, archive_id)


def _is_named(name: str, wanted: str) -> bool:
    return name == wanted or name.endswith("/" + wanted)


def _walked_last(descriptor: int, size: int) -> container.Walked | None:
    """The last member of a tar that begins as one of ours."""
    last = None
    for member in container.walk_headers(size, lambda n, at: os.pread(descriptor, n, at)):
        if last is None and not _is_named(member.name, manifest.PACK_JSON):
            return None
        last = member
    return last


def _written_last(descriptor: int, size: int) -> container.Walked | None:
    """The manifest at the end of a tar of ours, if it is whole, and found without a walk: 300,000 headers took 3 s.

    No bytes of a manifest are those that a header has, so the last ones in the file are its own header's; and it says
    where that lies, which tells it from one in an archive that another's last member is.
    """
    try:
        first = next(container.walk_headers(size, lambda n, offset: os.pread(descriptor, n, offset)), None)
    except DamagedArchive:
        return None  # the walk tells what it is
    if size % BLOCK or first is None or not _is_named(first.name, manifest.PACK_JSON):
        return None
    stop = size
    found = -1
    while found < 0 < stop and size - stop < MAX_MANIFEST:
        start = max(0, stop - _PIECE)
        found = os.pread(descriptor, stop - start, start).rfind(container.MAGIC)
        stop = start
    at = stop + found - container.MAGIC_AT
    if found < 0 or at % BLOCK:
        return None
    try:
        *_, last = container.walk_headers(size - at, lambda n, offset: os.pread(descriptor, n, at + offset))
        last = last._replace(offset=at + last.offset)
        if not _is_named(last.name, manifest.MANIFEST):
            return None
        frame = manifest.from_bytes(os.pread(descriptor, last.n_bytes, last.offset), with_members=False).frames[-1]
    except (FastpackError, LookupError, ValueError):
        return None
    return last if frame.offset + frame.packed_bytes == at else None


def open_descriptor(path: str, flags: int = 0) -> int:
    """An archive's file, opened for reading; DamagedArchive if it cannot be."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    except PermissionError as error:
        raise Unreadable(f"the archive cannot be opened ({error.strerror})", path=path) from None
    except OSError as error:
        raise DamagedArchive(
            f"the archive cannot be opened ({error.strerror})", path=path, hint="give the path of an archive"
        ) from None


def read_archive_id(path: str) -> str | None:
    """An archive's id as its end has it, in hexadecimal; None if fastpack did not write it, or it is no file.

    Raises
    ------
    DamagedArchive : it cannot be read.
    """
    descriptor = open_descriptor(path, os.O_NONBLOCK)
    try:
        info = os.fstat(descriptor)
        codec = by_magic(os.pread(descriptor, 512, 0)) if stat.S_ISREG(info.st_mode) else None
        locator = None if codec is None else find_locator(descriptor, info.st_size, codec)
        return None if locator is None else locator.archive_id.hex()
    except OSError as error:
        raise DamagedArchive(f"the archive cannot be read ({error.strerror})", path=path) from None
    finally:
        os.close(descriptor)


def read_manifest(descriptor: int, path: str) -> tuple[Codec, Locator, manifest.Manifest] | None:
    """An archive's codec, locator and manifest; None if fastpack did not write it.

    Raises
    ------
    DamagedArchive, NewerFormat, HostileArchive
    """
    try:
        return _read_manifest(descriptor, path)
    except OSError as error:
        raise DamagedArchive(f"the archive cannot be read ({error.strerror})", path=path) from None


def _read_manifest(descriptor: int, path: str) -> tuple[Codec, Locator, manifest.Manifest] | None:
    size = os.fstat(descriptor).st_size
    codec = by_magic(os.pread(descriptor, 512, 0))
    if codec is None:
        return None
    locator = find_locator(descriptor, size, codec)
    if locator is None:
        return None
    manifest.check_format(locator.format, path)
    if locator.offset + locator.packed_bytes > size:
        raise DamagedArchive(
            "the manifest would lie outside of the archive", path=path, expected=f"within {size} bytes",
            found=f"{locator.packed_bytes} bytes at {locator.offset}",
        )  # fmt: skip
    packed = os.pread(descriptor, locator.packed_bytes, locator.offset)
    return codec, locator, decode_manifest(codec, packed, locator.plain_bytes, locator.archive_id, path)


def decode_manifest(
    codec: Codec, packed: bytes | memoryview, n_bytes: int, archive_id: bytes, path: str
) -> manifest.Manifest:
    """The manifest in its compressed bytes; it is the one whose BLAKE3 is the archive's id.

    Raises
    ------
    DamagedArchive, NewerFormat, HostileArchive
    """
    if not 0 <= n_bytes <= min(MAX_MANIFEST, max(MODEST_MANIFEST, len(packed) * MAX_MANIFEST_RATIO)):
        raise DamagedArchive("the manifest would not fit into memory", path=path, found=f"{n_bytes} bytes")
    plain = bytes(memoryview(codec.decompress(packed, n_bytes)))
    if blake(plain) != archive_id:
        raise DamagedArchive(
            "the manifest does not have the digest that names it", path=path, expected=archive_id.hex(),
            found=blake(plain).hex(),
        )  # fmt: skip
    return manifest.from_bytes(plain)

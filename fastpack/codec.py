"""One-shot compression and decompression of a frame, per format. A codec object may be used by several threads."""

from __future__ import annotations

import threading
import zlib
from typing import TYPE_CHECKING, BinaryIO, Protocol

import zstandard

from fastpack.errors import DamagedArchive, UsageError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer


class Codec(Protocol):
    """How frames are compressed. `default_level` and `levels` are what ``--compress-level`` knows."""

    name: str
    suffix: str
    default_level: int
    levels: range

    def compress(self, data: Buffer, level: int) -> bytes:
        """One independent frame."""

    def decompress(self, data: Buffer, n_bytes: int) -> Buffer:
        """The frame's `n_bytes` bytes; DamagedArchive if it does not hold exactly these."""

    def versions(self) -> dict[str, str]:
        """The libraries the compressed bytes depend on."""


class Zstd:
    name = "tar.zst"
    suffix = ".tar.zst"
    default_level = 3
    levels = range(1, 23)

    def __init__(self) -> None:
        self._local = threading.local()

    def compress(self, data: Buffer, level: int) -> bytes:
        key = f"compressor{level}"
        compressor = getattr(self._local, key, None)
        if compressor is None:
            compressor = zstandard.ZstdCompressor(level=level, write_checksum=True, write_content_size=True)
            setattr(self._local, key, compressor)
        return bytes(compressor.compress(memoryview(data)))

    def decompress(self, data: Buffer, n_bytes: int) -> Buffer:
        try:
            declared = zstandard.frame_content_size(bytes(memoryview(data)[:18]))
            if declared != n_bytes:
                raise DamagedArchive(
                    "a frame has another size than the manifest says", expected=n_bytes, found=declared
                )
            decompressor = getattr(self._local, "decompressor", None)
            if decompressor is None:
                decompressor = self._local.decompressor = zstandard.ZstdDecompressor()
            plain: bytes = decompressor.decompress(memoryview(data), max_output_size=n_bytes, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise DamagedArchive(f"a zstd frame cannot be decompressed: {error}") from None
        if len(plain) != n_bytes:
            raise DamagedArchive("a frame has another size than the manifest says", expected=n_bytes, found=len(plain))
        return plain

    def versions(self) -> dict[str, str]:
        return {"zstandard": zstandard.__version__, "zstd": ".".join(map(str, zstandard.ZSTD_VERSION))}


class Gzip:
    name = "tar.gz"
    suffix = ".tar.gz"
    default_level = 4
    levels = range(10)

    def compress(self, data: Buffer, level: int) -> bytes:
        return zlib.compress(data, level, wbits=31)

    def decompress(self, data: Buffer, n_bytes: int) -> Buffer:
        decompressor = zlib.decompressobj(wbits=31)
        try:
            plain = decompressor.decompress(data, n_bytes + 1)
        except zlib.error as error:
            raise DamagedArchive(f"a gzip member cannot be decompressed: {error}") from None
        if len(plain) != n_bytes or not decompressor.eof or decompressor.unused_data:
            raise DamagedArchive("a member has another size than the manifest says", expected=n_bytes, found=len(plain))
        return plain

    def versions(self) -> dict[str, str]:
        return {"zlib": zlib.ZLIB_RUNTIME_VERSION}


class Uncompressed:
    name = "tar"
    suffix = ".tar"
    default_level = 0
    levels = range(1)

    def compress(self, data: Buffer, level: int) -> bytes:
        return bytes(data)

    def decompress(self, data: Buffer, n_bytes: int) -> Buffer:
        if len(memoryview(data)) != n_bytes:
            raise DamagedArchive("the archive is shorter than the manifest says", expected=n_bytes)
        return data

    def versions(self) -> dict[str, str]:
        return {}


CODECS: dict[str, Codec] = {codec.name: codec for codec in (Zstd(), Gzip(), Uncompressed())}
_ALIASES = {"tzst": "tar.zst", "tgz": "tar.gz"}


def by_name(name: str) -> Codec:
    """The codec of a format's name, such as ``tar.zst`` or ``tgz``; UsageError for one we do not know."""
    codec = CODECS.get(_ALIASES.get(name, name))
    if codec is None:
        raise UsageError(
            f"unknown format {name!r}", expected=", ".join([*CODECS, *_ALIASES]), hint="choose one with --format"
        )
    return codec


def by_file_name(path: str) -> Codec:
    """The codec that a file's name asks for; UsageError if it ends in none we know."""
    for name in (*CODECS, *_ALIASES):
        if path.endswith("." + name):
            return by_name(name)
    raise UsageError(
        "the output's name does not tell the format",
        path=path,
        expected=", ".join("." + name for name in CODECS),
        hint="name it so, or choose with --format",
    )


def by_magic(head: bytes) -> Codec | None:
    """The codec of an archive's first bytes; None if they are none of ours."""
    if head.startswith((b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18")) or head[1:4] == b"\x2a\x4d\x18":
        return CODECS["tar.zst"]
    if head.startswith(b"\x1f\x8b"):
        return CODECS["tar.gz"]
    if head[257:262] == b"ustar":
        return CODECS["tar"]
    return None


def stream_reader(codec: Codec, source: BinaryIO) -> BinaryIO:
    """A plain stream over a compressed one, of any number of frames or members."""
    if isinstance(codec, Zstd):
        return zstandard.ZstdDecompressor().stream_reader(source, read_across_frames=True)
    if isinstance(codec, Gzip):
        import gzip  # noqa: PLC0415 (only pipes and foreign archives need it)

        return gzip.GzipFile(fileobj=source)  # type: ignore[return-value]
    return source

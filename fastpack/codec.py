"""One-shot compression and decompression of a frame, per format. A codec object may be used by several threads."""

from __future__ import annotations

import functools
import importlib
import platform
import threading
import zlib
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import zstandard

from fastpack import pagecache
from fastpack.errors import DamagedArchive

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer


#: The level of an archive whose frames each have what suits them: `Zstd.compress` says how.
ADAPTIVE = 0


class Codec(Protocol):
    """How frames are compressed. `levels` are what ``--compress-level`` knows, `default_level` is without it."""

    name: str
    suffix: str
    default_level: int
    levels: range

    def compress(self, data: Buffer, level: int) -> bytes | memoryview:
        """One independent frame; `data` itself where nothing is compressed."""

    def decompress(self, data: Buffer, n_bytes: int) -> Buffer:
        """The frame's `n_bytes` bytes; DamagedArchive if it does not hold exactly these."""

    def versions(self) -> dict[str, str]:
        """The libraries the compressed bytes depend on."""


#: Which library, strategy and window a level means. Raised with every change: frames of other rules are not mixed.
_RULES = "1"
#: A frame that a sample says shrinks to less than this gets two hash tables, any other one.
_WORTH_MORE = 0.4
#: The sample: so many bytes from each of so many places.
_SAMPLE, _SAMPLES = 16 << 10, 8


class Zstd:
    name = "tar.zst"
    suffix = ".tar.zst"
    default_level = ADAPTIVE
    levels = range(1, 23)

    def __init__(self) -> None:
        self._local = threading.local()

    def compress(self, data: Buffer, level: int) -> bytes:
        """A zstd frame. `ADAPTIVE`: the strategy of level 1, or of level 3 where a sample of the frame says that it
        shrinks well, both with the whole frame as the window; a function of the frame's bytes alone.

        On a GPU environment's frames that took 0.87 of level 3's time for 1.002 of its size; the window is what makes
        level 1's strategy good enough (0.470 of the plain bytes with 8 MiB, 0.485 with 1 MiB). Frames stored raw gained
        nothing beside it: what does not compress passes at 1.5 GB/s.
        """
        view = memoryview(data)
        name = str(level)
        if level == ADAPTIVE:
            name = "two tables" if self._shrinks_well(view) else "one table"
        return bytes(self._compressor(name).compress(view))

    def _shrinks_well(self, view: memoryview) -> bool:
        step = max(_SAMPLE, len(view) // _SAMPLES)
        sample = b"".join(view[start : start + _SAMPLE] for start in range(0, len(view), step))
        return len(self._compressor("1").compress(sample)) < _WORTH_MORE * len(sample)

    def _compressor(self, name: str) -> zstandard.ZstdCompressor:
        """This thread's compressor of a level, or of one of the two adaptive kinds."""
        made: dict[str, zstandard.ZstdCompressor] = self._local.__dict__
        if name not in made:
            if name.isdecimal():
                made[name] = zstandard.ZstdCompressor(level=int(name), write_checksum=True, write_content_size=True)
            else:
                strategy = zstandard.STRATEGY_DFAST if name == "two tables" else zstandard.STRATEGY_FAST
                parameters = zstandard.ZstdCompressionParameters(
                    window_log=23, hash_log=17, chain_log=17, search_log=1, min_match=5, target_length=0,
                    strategy=strategy, write_checksum=1, write_content_size=1,
                )  # fmt: skip
                made[name] = zstandard.ZstdCompressor(compression_params=parameters)
        return made[name]

    def decompress(self, data: Buffer, n_bytes: int) -> Buffer:
        view = memoryview(data)
        try:
            declared = zstandard.frame_content_size(bytes(view[:18]))
            if declared != n_bytes:
                raise DamagedArchive(
                    "a frame has another size than the manifest says", expected=n_bytes, found=declared
                )
            decompressor = getattr(self._local, "decompressor", None)
            if decompressor is None:
                decompressor = self._local.decompressor = zstandard.ZstdDecompressor()
            if _frame_length(view) != len(view):
                raise DamagedArchive("a zstd frame does not end where the manifest says")
            # Large files are written from where they lie then; and 0.95 of the time of `decompress`.
            plain = pagecache.aligned(n_bytes)
            found = decompressor.stream_reader(view).readinto(plain) if n_bytes else 0
        except zstandard.ZstdError as error:
            raise DamagedArchive(f"a zstd frame cannot be decompressed: {error}") from None
        if found != n_bytes:
            raise DamagedArchive("a frame has another size than the manifest says", expected=n_bytes, found=found)
        return plain

    def versions(self) -> dict[str, str]:
        version = ".".join(map(str, zstandard.ZSTD_VERSION))
        return {"rules": _RULES, "zstandard": zstandard.__version__, "zstd": version}


def _frame_length(data: memoryview) -> int:
    """Bytes of the zstd frame that some data begin with, by the heads of its blocks (RFC 8878, section 3.1.1); what
    stands there is more than the data have, if they end before it does."""
    at = int(zstandard.frame_header_size(data[:18]))
    last = False
    while not last and at + 3 <= len(data):
        head = int.from_bytes(data[at : at + 3], "little")
        last, kind = bool(head & 1), head >> 1 & 3
        at += 3 + (1 if kind == _RLE else head >> 3)
    return at + (_CHECKSUM if data[4] & 4 else 0) if last else len(data) + 1


#: The kind of a block that is one byte, repeated; bytes of a frame's checksum.
_RLE, _CHECKSUM = 1, 4


class Gzip:
    name = "tar.gz"
    suffix = ".tar.gz"
    default_level = 4
    levels = range(10)

    def compress(self, data: Buffer, level: int) -> bytes:
        """A gzip member: levels 1 to 4 by igzip (its 1 to 3), 5 to 9 by zlib-ng.

        igzip's level 3 took a seventh of the time of zlib's level 4, for 1.02 of its size.
        """
        from isal import isal_zlib  # noqa: PLC0415 (packing alone: zlib reads them)
        from zlib_ng import zlib_ng  # noqa: PLC0415

        if level == 0:
            return zlib.compress(data, 0, wbits=31)
        if level <= _IGZIP:
            return bytes(isal_zlib.compress(data, min(level, 3), wbits=31))
        return bytes(zlib_ng.compress(data, level, wbits=31))

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
        try:
            import isal  # noqa: PLC0415 (see above)
            import zlib_ng  # noqa: PLC0415
        except ImportError:
            return {}
        versions = {"isal": str(isal.__version__), "zlib-ng": str(zlib_ng.__version__)}
        return {"rules": _RULES, **versions, "vectors": _vectors()}


#: The highest level that igzip is used for.
_IGZIP = 4
#: What igzip and zlib-ng choose their code by, best first: the compressed bytes depend on it.
_VECTORS = ("avx512f", "avx2", "avx", "sse4_2")


@functools.cache
def _vectors() -> str:
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            flags = next((line.split() for line in file if line.startswith(("flags", "Features"))), [])
    except OSError:
        flags = []
    return next((name for name in _VECTORS if name in flags), platform.machine())


class _Streams:
    """Frames that are streams of their own, any number of which in a row are one file.

    They are not found again from the file's end: an archive of them is read as a stream.
    """

    name: str
    library: str

    def compress(self, data: Buffer, level: int) -> bytes:
        return bytes(self._module().compress(data, level))

    def decompress(self, data: Buffer, n_bytes: int) -> Buffer:
        module = self._module()
        try:
            plain: bytes = module.decompress(data)
        except (OSError, EOFError, ValueError, getattr(module, "LZMAError", OSError)) as error:
            raise DamagedArchive(f"a {self.library} stream cannot be decompressed: {error}") from None
        if len(plain) != n_bytes:
            raise DamagedArchive("a stream has another size than it should", expected=n_bytes, found=len(plain))
        return plain

    def versions(self) -> dict[str, str]:
        return {}

    def _module(self) -> Any:
        return importlib.import_module(self.library)  # these formats alone need it


class Bzip2(_Streams):
    name, suffix, library = "tar.bz2", ".tar.bz2", "bz2"
    default_level = 9
    levels = range(1, 10)


class Xz(_Streams):
    name, suffix, library = "tar.xz", ".tar.xz", "lzma"
    default_level = 6
    levels = range(10)

    def compress(self, data: Buffer, level: int) -> bytes:
        return bytes(self._module().compress(data, preset=level))


class Uncompressed:
    name = "tar"
    suffix = ".tar"
    default_level = 0
    levels = range(1)

    def compress(self, data: Buffer, level: int) -> bytes | memoryview:
        return data if isinstance(data, bytes | memoryview) else memoryview(data)

    def decompress(self, data: Buffer, n_bytes: int) -> Buffer:
        if len(memoryview(data)) != n_bytes:
            raise DamagedArchive("the archive is shorter than the manifest says", expected=n_bytes)
        return data

    def versions(self) -> dict[str, str]:
        return {}


CODECS: dict[str, Codec] = {codec.name: codec for codec in (Zstd(), Gzip(), Uncompressed(), Bzip2(), Xz())}


def by_name(name: str) -> Codec:
    """The codec that a delta names; DamagedArchive for one whose frames are not found again."""
    codec = CODECS.get(name)
    if codec is None or name not in ("tar.zst", "tar.gz", "tar"):
        raise DamagedArchive("made of an archive of an unknown format", found=repr(name))
    return codec


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

"""Frames: what each codec writes, other readers read; the default level is a function of a frame's bytes."""

from __future__ import annotations

import bz2
import gzip
import lzma
import random
import threading
import zlib

import pytest
import zstandard

from fastpack.codec import ADAPTIVE, CODECS, Codec
from fastpack.errors import DamagedArchive

ZSTD, GZIP = CODECS["tar.zst"], CODECS["tar.gz"]
BZIP2, XZ = CODECS["tar.bz2"], CODECS["tar.xz"]


def data_of(share: float, n_bytes: int = 1 << 20) -> bytes:
    """Bytes of which about a share is random, the rest repeats."""
    rng = random.Random(17)
    return b"".join(
        rng.randbytes(1024) if rng.random() < share else rng.randbytes(16) * 64 for _ in range(n_bytes // 1024)
    )


FRAMES = [b"", b"x", bytes(3 << 20), data_of(0.0), data_of(0.5), data_of(1.0), data_of(0.5, 8 << 20)]


@pytest.mark.parametrize("level", [ADAPTIVE, 1, 3, 9])
def test_a_zstd_frame_is_what_zstd_reads(level: int) -> None:
    for data in FRAMES:
        packed = ZSTD.compress(data, level)
        parameters = zstandard.get_frame_parameters(packed)
        assert parameters.has_checksum and parameters.content_size == len(data)
        assert zstandard.ZstdDecompressor().decompress(packed) == data
        assert bytes(memoryview(ZSTD.decompress(packed, len(data)))) == data


def test_the_default_level_follows_the_bytes_alone() -> None:
    """Neither the thread nor what it compressed before shows in a frame; both kinds of frame occur."""
    first = [ZSTD.compress(data, ADAPTIVE) for data in FRAMES]
    found: list[bytes] = []
    worker = threading.Thread(target=lambda: found.extend(ZSTD.compress(data, ADAPTIVE) for data in reversed(FRAMES)))
    worker.start()
    worker.join()
    assert found[::-1] == first
    windows = {zstandard.get_frame_parameters(packed).window_size for packed in first}
    assert max(windows) <= 8 << 20, "a reader with the default limits of memory must do"
    assert len(first[4]) < 0.6 * len(FRAMES[4]) and len(first[3]) < 0.1 * len(FRAMES[3])


@pytest.mark.parametrize("level", range(10))
def test_a_gzip_member_is_what_gzip_reads(level: int) -> None:
    for data in FRAMES[:6]:
        packed = GZIP.compress(data, level)
        assert gzip.decompress(packed) == data
        assert bytes(memoryview(GZIP.decompress(packed, len(data)))) == data
        # No time and no name: the bytes are the same tomorrow.
        assert packed[3:8] == bytes(5)


def test_gzip_levels_are_worth_their_size() -> None:
    sizes = {level: len(GZIP.compress(FRAMES[4], level)) for level in range(10)}
    assert sizes[0] > len(FRAMES[4]) > sizes[1] and sizes[9] <= 1.02 * sizes[1]
    # What gzip -4 of zlib takes is what conda-pack's default takes.
    assert sizes[4] < 1.05 * len(zlib.compress(FRAMES[4], 4))


@pytest.mark.parametrize("codec", [ZSTD, GZIP, BZIP2, XZ])
def test_a_frame_of_another_length_is_damaged(codec: object) -> None:
    packed = codec.compress(b"abc" * 1000, 1)  # type: ignore[attr-defined]
    for n_bytes in (2999, 3001):
        with pytest.raises(DamagedArchive):
            codec.decompress(packed, n_bytes)  # type: ignore[attr-defined]
    with pytest.raises(DamagedArchive):
        codec.decompress(packed[:-9], 3000)  # type: ignore[attr-defined]


def test_a_zstd_frame_that_does_not_end_where_it_should_is_damaged() -> None:
    for data in (b"", b"a", b"abc" * 1000, bytes(300_000), random.Random(5).randbytes(300_000)):
        packed = ZSTD.compress(data, 1)
        plain = zstandard.ZstdCompressor(write_checksum=False).compress(data)
        for frame in (packed, plain):
            assert bytes(memoryview(ZSTD.decompress(frame, len(data)))) == data
            for bad in (frame[:-1], frame[:-5], frame + b"x", frame + frame, frame + b"\x50\x2a\x4d\x18\0\0\0\0"):
                with pytest.raises(DamagedArchive):
                    ZSTD.decompress(bad, len(data))
        if data:
            with pytest.raises(DamagedArchive):
                ZSTD.decompress(packed[:-1] + bytes([packed[-1] ^ 1]), len(data))


def test_versions_name_what_the_bytes_depend_on() -> None:
    assert {"isal", "zlib-ng", "vectors"} <= set(GZIP.versions()) and ZSTD.versions()


@pytest.mark.parametrize("codec", [BZIP2, XZ])
def test_streams_in_a_row_are_one_file(codec: Codec) -> None:
    data = b"some text " * 1000
    for level in (codec.levels[0], codec.levels[-1]):
        packed = codec.compress(data, level)
        assert codec.decompress(packed, len(data)) == data
        assert (bz2 if codec is BZIP2 else lzma).decompress(packed + packed) == data + data
    for bad in (packed[:-5], b"", packed[:40] + b"?" + packed[41:]):
        with pytest.raises(DamagedArchive):
            codec.decompress(bad, len(data))

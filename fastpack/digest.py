"""Which digest protects what.

BLAKE3 (cryptographic) names a slice, a file, a frame and the archive: what is trusted from elsewhere. sha256 is what
conda's records and pip's RECORD state, and what conda-unpack can compute. xxh3 only finds candidates for hard links,
which are then compared byte for byte.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import blake3

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

#: A file's archive form is hashed in slices of this many bytes, counted from its start.
SLICE = 1 << 20
#: Bytes of a digest.
N_BYTES = 32


def blake(data: Buffer) -> bytes:
    """BLAKE3 of a buffer, 32 bytes."""
    return blake3.blake3(data).digest()


def hasher() -> blake3.blake3:
    """BLAKE3 of what comes in pieces: `update`, `digest`."""
    return blake3.blake3()


def slice_digests(data: Buffer) -> bytes:
    """BLAKE3 of each slice of a file, or of a run of slices that begins at a slice's start, one behind the other.

    One for an empty file.
    """
    view = memoryview(data)
    if len(view) <= SLICE:
        return blake(view)
    return b"".join(blake(view[start : start + SLICE]) for start in range(0, len(view), SLICE))


def slices_of_each(data: memoryview, starts: Sequence[int], stops: Sequence[int]) -> list[bytes]:
    """`slice_digests` of pieces of a buffer; one call each for small ones, of which there are hundreds of thousands."""
    hasher = blake3.blake3
    return [
        hasher(data[start:stop]).digest() if stop - start <= SLICE else slice_digests(data[start:stop])
        for start, stop in zip(starts, stops, strict=True)
    ]


def file_digest(slices: bytes) -> bytes:
    """A file's digest: of its bytes if it has one slice, else the BLAKE3 of its slices' digests."""
    return slices if len(slices) == N_BYTES else blake(slices)


def frame_digest(parts: Iterable[Buffer]) -> bytes:
    """A frame's digest: the BLAKE3 of its tar headers and slice digests in order."""
    return blake(b"".join(parts))


def sha256(data: Buffer) -> str:
    """sha256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def candidate(data: Buffer) -> bytes:
    """A fast digest for what is compared byte for byte afterwards: it protects nothing."""
    import xxhash  # noqa: PLC0415 (packing alone: unpacking needs only a zstd reader and blake3)

    return xxhash.xxh3_128_digest(memoryview(data))

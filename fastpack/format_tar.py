"""A tar stream, compressed frame by frame; a parcel is one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from fastpack import container, digest, pagecache
from fastpack.building import Data, PlainFrame
from fastpack.codec import CODECS, Codec
from fastpack.format import Encoded, Job, Tail, Writer, opened, own_member
from fastpack.frames import Locator, trailer
from fastpack.fs import Output
from fastpack.manifest import Manifest
from fastpack.model import MANIFEST_FORMAT


class Tar:
    """A tar stream, compressed by a codec."""

    pyc = "timestamp"
    has_frames = hard_links = symbolic_links = True

    def __init__(self, codec: Codec) -> None:
        self.name, self.suffix = codec.name, codec.suffix
        self.default_level, self.levels = codec.default_level, codec.levels
        self._frames = codec
        # What is not found again by a locator has no frames to offer.
        self.codec = codec if codec.name in _LOCATED else None

    def check(self) -> None:
        pass

    def versions(self) -> dict[str, str]:
        return self._frames.versions()

    @contextmanager
    def open(self, job: Job) -> Iterator[Writer]:
        with opened(job.output, job.force) as out:
            yield TarWriter(out, self._frames, job.level, job.plan.arcroot)


#: Formats whose manifest is found from the end.
_LOCATED = ("tar.zst", "tar.gz", "tar")


class TarWriter:
    def __init__(self, out: IO[bytes], codec: Codec, level: int, arcroot: str) -> None:
        self._out = out
        self._codec = codec
        self._level = level
        self._arcroot = arcroot

    def encode(self, frame: PlainFrame) -> Encoded:
        return Encoded(self._codec.compress(frame.plain, self._level))

    def write(self, data: Data, rows: Any) -> None:
        if not isinstance(data, pagecache.Piece):
            self._out.write(data)
        elif isinstance(self._out, Output):
            self._out.append(data)
        else:
            self._out.write(data.read())

    def finish(self, manifest: Manifest, archive_id: bytes, sizes: list[tuple[int, int]]) -> Tail:
        own = own_member(manifest, archive_id)
        offset = sum(packed for packed, _ in sizes)
        written = 0
        locator = None
        hasher = digest.hasher()
        for plain in (own.header(self._arcroot), manifest.raw, bytes(container.padding(own.n_bytes)) + container.END):
            packed = self._codec.compress(plain, self._level)
            self._out.write(packed)
            hasher.update(packed)
            if plain is manifest.raw:
                locator = Locator(MANIFEST_FORMAT, offset + written, len(packed), len(plain), archive_id)
            sizes.append((len(packed), len(plain)))
            written += len(packed)
        assert locator is not None
        end = trailer(self._codec, locator, sizes)
        self._out.write(end)
        self._out.flush()
        hasher.update(end)
        return Tail(written + len(end), hasher.digest())


class Parcel(Tar):
    """Cloudera's parcel: a ``.tar.gz`` with its metadata, placed for where it will be activated (see parcel.py)."""

    def __init__(self) -> None:
        super().__init__(CODECS["tar.gz"])
        self.name, self.suffix = "parcel", ".parcel"
        self.codec = None

"""Frames of an archive: read, brought into archive form, hashed and compressed, each in one buffer."""

from __future__ import annotations

import functools
import os
import struct
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from fastpack import container, digest
from fastpack._place_py import SMALL_FILE, content_mtime, mtime_key
from fastpack.base import Base
from fastpack.cache import Cache
from fastpack.codec import Codec
from fastpack.model import DiskFile, Kind
from fastpack.native import kernel
from fastpack.parallel import Scratch
from fastpack.plan import Piece, Plan, Planned, PlannedFrame, in_archive
from fastpack.reading import changed, open_folder, open_source, read_many


@dataclass(frozen=True, slots=True)
class Built:
    """A frame ready to be written, and what was learnt of the members in it, piece by piece."""

    packed: bytes | memoryview
    reused: bool  # whether base or cache had it
    plain_bytes: int
    digest: bytes
    packed_digest: bytes
    slices: list[list[bytes]]  # digests of each piece's slices
    mtimes: list[int | None]  # of the members that begin here
    source_bytes: int
    n_naming: int  # .pyc files that name the source prefix (until their co_filename is normalised)


class _Place(NamedTuple):
    """Where a piece lies in its frame: its header, its data, and the padding behind that."""

    piece: Piece
    member: Planned
    name: bytes  # with the arcroot
    target: bytes
    header: int
    start: int
    stop: int
    end: int


@contextmanager
def builder(
    plan: Plan, codec: Codec, level: int, prefixes: tuple[bytes, ...], base: Base, cache: Cache | None
) -> Iterator[Builder]:
    """What builds a plan's frames.

    Parameters
    ----------
    prefixes : those that a ``.pyc`` may name.
    base, cache : frames to use again.
    """
    with open_folder(plan.environment.prefix) as folder:
        yield Builder(plan, codec, level, prefixes, base, cache, folder)


class Builder:
    """Builds frames: may run in several threads, for frames in the plan's order.

    A ``.pyc`` that stays valid names its source's mtime, which follows from the source's bytes. The source comes
    earlier in the archive, as a rule, so its time is mostly known; where it is not yet, the source is read for it.
    """

    def __init__(
        self, plan: Plan, codec: Codec, level: int, prefixes: tuple[bytes, ...], base: Base, cache: Cache | None,
        folder: int,
    ) -> None:  # fmt: skip
        self._plan = plan
        self._codec = codec
        self._level = level
        self._prefixes = prefixes
        self._base = base
        self._cache = cache
        self._folder = folder
        self._root = plan.arcroot + "/" if plan.arcroot else ""
        self._mtimes: dict[str, int] = {}
        self._scratch = Scratch()
        self._followed = {member.follows for member in plan.members if member.follows is not None}

    @functools.cached_property
    def _index(self) -> dict[str, int]:
        """Where in the plan a path is: for the few members whose bytes or time another one needs."""
        return {member.path: index for index, member in enumerate(self._plan.members)}

    def build(self, frame: PlannedFrame) -> Built:
        """Read, bring into archive form, hash and compress one frame."""
        places = list(self._lay_out(frame))
        plain = self._scratch.view(places[-1].end)
        self._read(places, plain)
        slices: list[list[bytes]] = []
        mtimes: list[int | None] = []
        for place in places:
            data = plain[place.start : place.stop]
            found = digest.slice_digests(data) if place.member.kind is Kind.FILE else []
            slices.append(found)
            mtime = None
            if place.piece.start == 0:
                mtime = self._mtime(place.member, data, found)
                if place.member.path in self._followed:
                    self._mtimes[place.member.path] = mtime
            mtimes.append(mtime)
        self._write_headers(places, mtimes, plain)
        hashed: list[bytes | memoryview] = []
        for place, found in zip(places, slices, strict=True):
            hashed.append(plain[place.header : place.start])
            hashed += found
        name = digest.frame_digest(hashed)
        known = self._base.packed(name, len(plain))
        if known is None and self._cache is not None:
            known = self._cache.packed(name)
        packed = self._codec.compress(plain, self._level) if known is None else known
        if known is None and self._cache is not None:
            self._cache.keep(name, packed)
        return Built(
            packed, known is not None, len(plain), name, digest.blake(packed), slices, mtimes,
            sum(place.stop - place.start for place in places), self._count_naming(places, plain),
        )  # fmt: skip

    def _lay_out(self, frame: PlannedFrame) -> Iterator[_Place]:
        position = 0
        for piece in frame.pieces:
            member = self._plan.members[piece.member]
            name, target = container.raw_names(member.kind, self._root, member.path, member.target)
            header = position
            if piece.start == 0:
                position += container.header_bytes(name, target)
            start = position
            if member.kind is Kind.FILE:
                position += piece.stop - piece.start
            stop = position
            if member.kind is Kind.FILE and piece.stop == member.n_bytes:
                position += container.padding(member.n_bytes)
            yield _Place(piece, member, name, target, header, start, stop, position)

    def _read(self, places: list[_Place], plain: memoryview) -> None:
        """Fill a frame's buffer with its files' data and padding; what is as it is on disk in one batch."""
        pieces: list[tuple[DiskFile, int, int, int]] = []
        for place in places:
            member = place.member
            if member.kind is not Kind.FILE:
                continue
            if member.source is not None and member.is_as_on_disk:
                pieces.append((member.source, place.piece.start, place.stop - place.start, place.start))
            else:
                self._read_piece(member, place.piece, plain[place.start : place.stop])
            plain[place.stop : place.end] = bytes(place.end - place.stop)
        read_many(self._folder, self._plan.environment.prefix, pieces, plain)
        for place in places:
            if place.member.follows is not None and place.piece.start == 0:
                self._follow(place.member.follows, plain[place.start : place.stop])

    def _read_piece(self, member: Planned, piece: Piece, data: memoryview) -> None:
        """Fill a buffer with a piece of a file as it lies in the archive, but for the time that a ``.pyc`` states."""
        prefix = self._plan.environment.prefix
        if member.source is None:
            data[:] = memoryview(member.content)[piece.start : piece.stop]
            return
        with open_source(prefix, member.source) as (_, pread):
            data[:] = in_archive(pread, member)(len(data), piece.start)
        planned = self._plan.placed.get(member.path, member.archived)
        if planned is not None and len(data) == planned.n_bytes and digest.sha256(data) != planned.sha256:
            # What relocations.json says of it was found in the planning pass.
            raise changed(os.path.join(prefix, member.path), "changed")

    def _follow(self, source: str, data: memoryview) -> None:
        """Write the source's time into a ``.pyc``'s header."""
        known = self._mtimes.get(source)
        if known is None:
            member = self._plan.members[self._index[source]]
            small = self._whole(member) if member.kind is Kind.FILE else memoryview(b"")
            known = self._mtimes[source] = self._mtime(member, small, digest.slice_digests(small))
        struct.pack_into("<I", data, 8, known & 0xFFFFFFFF)

    def _whole(self, member: Planned) -> memoryview:
        """A small file's bytes as they lie in the archive; none of a large one, whose time needs its ends alone."""
        if member.n_bytes > SMALL_FILE:
            return memoryview(b"")
        data = memoryview(bytearray(member.n_bytes))
        self._read_piece(member, Piece(self._index[member.path], 0, member.n_bytes), data)
        return data

    def _mtime(self, member: Planned, data: memoryview, slices: list[bytes]) -> int:
        """A member's time (DESIGN section 6): `data` and `slices` are the whole file's, if that is small."""
        if member.mtime is not None:
            return member.mtime
        if member.kind is Kind.HARDLINK:
            original = self._plan.members[self._index[member.target]]
            again = self._whole(original)
            return self._mtime(original, again, digest.slice_digests(again))
        if member.n_bytes <= SMALL_FILE:
            if member.form.relocations and member.archived is not None:
                return content_mtime(bytes.fromhex(member.archived.sha256))
            return content_mtime(digest.file_digest(slices))
        if member.source is None:
            head, tail = member.content[: digest.SLICE], member.content[-digest.SLICE :]
        else:
            with open_source(self._plan.environment.prefix, member.source) as (_, pread):
                read = in_archive(pread, member)
                head, tail = read(digest.SLICE, 0), read(digest.SLICE, member.n_bytes - digest.SLICE)
        key = mtime_key(member.n_bytes, head, tail)
        return content_mtime(bytes.fromhex(digest.sha256(key)) if member.form.relocations else digest.blake(key))

    def _write_headers(self, places: list[_Place], mtimes: list[int | None], plain: memoryview) -> None:
        rows = [
            (container.Header(place.member.kind, place.name, place.target, place.member.mode, place.member.n_bytes,
                              mtime), place.header)
            for place, mtime in zip(places, mtimes, strict=True)
            if mtime is not None
        ]  # fmt: skip
        container.write_headers([header for header, _ in rows], [at for _, at in rows], plain)

    def _count_naming(self, places: list[_Place], plain: memoryview) -> int:
        chosen = [place for place in places if place.member.is_pyc]
        if not chosen:
            return 0
        starts = array("q", [place.start for place in chosen])
        lengths = array("q", [place.stop - place.start for place in chosen])
        return sum(kernel.find_any(plain, starts, lengths, self._prefixes))

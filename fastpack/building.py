"""Frames of an archive: read, brought into archive form, hashed and compressed, each in one buffer."""

from __future__ import annotations

import functools
import itertools
import operator
import os
import struct
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from fastpack import container, digest, pagecache
from fastpack._batch_py import BLOCK
from fastpack._place_py import SMALL_FILE, content_mtime, mtime_key
from fastpack.base import Base
from fastpack.cache import Cache
from fastpack.model import Kind
from fastpack.native import batch, kernel
from fastpack.parallel import Scratch
from fastpack.plan import Plan, Planned, PlannedFrame, in_archive
from fastpack.reading import changed, open_folder, open_source, read_many
from fastpack.relocation import AS_IT_IS
from fastpack.stat_table import AS_ON_DISK, Known, StatTable

#: A frame as it is written: its bytes, or where in another file they are.
Data = bytes | memoryview | pagecache.Piece


class PlainFrame(NamedTuple):
    """A frame of the tar stream, and where its members' data lie in it."""

    members: Sequence[Planned]
    mtimes: Sequence[int]  # of the members that begin here, in seconds
    starts: Sequence[int]
    stops: Sequence[int]
    at: int  # of its data in the one member, for a piece of a large file
    plain: memoryview


def _header_columns(members: Sequence[Planned], layout: _Layout, mtimes: Sequence[int]) -> container.Headers:
    return container.Headers(
        [member.kind for member in members], layout.names, layout.targets, [member.mode for member in members],
        [member.n_bytes for member in members], mtimes,
    )  # fmt: skip


#: A frame -> as it is written, and what the format has to remember of it.
Encode = Callable[[PlainFrame], tuple[bytes | memoryview, Any]]


@dataclass(frozen=True, slots=True)
class Built:
    """A frame ready to be written, and what was learnt of the members in it, in columns."""

    packed: Data
    rows: Any  # what the format has to remember of it
    packed_digest: bytes
    reused: bool  # whether base or cache had it
    plain_bytes: int
    digest: bytes
    n_bytes: int  # of files
    was_read: bool  # whether they were read, not only looked up
    slices: list[bytes]  # digests of each member's slices in this frame; nothing for what is no file
    mtimes: list[int]  # of the members that begin here
    naming: list[bool]  # .pyc files that name the source prefix (until their co_filename is normalised)


class _Layout(NamedTuple):
    """Where a frame's members lie in its buffer: each one's header, its data, and the padding behind that."""

    names: Sequence[str | bytes]  # with the arcroot
    targets: Sequence[str | bytes]
    headers: list[int]
    starts: list[int]
    stops: list[int]
    end: int

    @property
    def n_bytes(self) -> int:
        """Bytes of data."""
        return sum(self.stops) - sum(self.starts)


@contextmanager
def builder(
    plan: Plan, encode: Encode, prefixes: tuple[bytes, ...], base: Base, cache: Cache | None, table: StatTable
) -> Iterator[Builder]:
    """What builds a plan's frames.

    Parameters
    ----------
    encode : brings a frame into the archive's format; called by several threads.
    prefixes : those that a ``.pyc`` may name.
    base, cache : frames to use again.
    table : what is known of files without reading them.
    """
    with open_folder(plan.environment.prefix) as folder:
        yield Builder(plan, encode, prefixes, base, cache, table, folder)


class Builder:
    """Builds frames: may run in several threads, for frames in the plan's order.

    A ``.pyc`` that stays valid names its source's mtime, which follows from the source's bytes. The source comes
    earlier in the archive, as a rule, so its time is mostly known; where it is not yet, the source is read for it.
    """

    def __init__(
        self, plan: Plan, encode: Encode, prefixes: tuple[bytes, ...], base: Base, cache: Cache | None,
        table: StatTable, folder: int,
    ) -> None:  # fmt: skip
        self._plan = plan
        self._encode = encode
        self._prefixes = prefixes
        self._base = base
        self._cache = cache
        self._table = table
        self._folder = folder
        self._root = plan.arcroot + "/" if plan.arcroot else ""
        self._mtimes: dict[str, int] = {}
        self._scratch = Scratch()
        self._on_disk = Scratch()
        self._followed = {member.follows for member in plan.members if member.follows is not None}
        self._followed |= {member.target for member in plan.members if member.kind is Kind.HARDLINK}

    @functools.cached_property
    def _index(self) -> dict[str, int]:
        """Where in the plan a path is: for the few members whose bytes or time another one needs."""
        wanted = self._followed
        return {member.path: index for index, member in enumerate(self._plan.members) if member.path in wanted}

    def build(self, frame: PlannedFrame) -> Built:
        """Read, bring into archive form, hash and compress one frame; or find it where it was compressed before."""
        members = self._plan.members[frame.first : frame.last]
        layout = self._lay_out(frame, members)
        found = self._look_up(frame, members, layout)
        if found is not None:
            return found
        plain = self._scratch.view(layout.end)
        self._read(frame, members, layout, plain)
        slices = digest.slices_of_each(plain, layout.starts, layout.stops)
        if any(member.kind is not Kind.FILE for member in members):
            slices = [found if m.kind is Kind.FILE else b"" for m, found in zip(members, slices, strict=True)]
        mtimes: list[int] = []
        if not frame.start:
            mtimes = self._times(members, layout, plain, slices)
            container.write_headers(_header_columns(members, layout, mtimes), layout.headers, plain)
        headers = [plain[start:stop] for start, stop in zip(layout.headers, layout.starts, strict=True)]
        name = digest.frame_digest(itertools.chain.from_iterable(zip(headers, slices, strict=True)))
        stored = self._stored(name, len(plain))
        rows = None
        if stored is None:
            packed, rows = self._encode(PlainFrame(members, mtimes, layout.starts, layout.stops, frame.start, plain))
            packed_digest = digest.blake(packed)
            if self._cache is not None:
                self._cache.keep(name, packed, packed_digest)
            stored = packed, packed_digest
            reused = False
        else:
            reused = True
        return Built(
            stored[0], rows, stored[1], reused, len(plain), name, layout.n_bytes, True,
            slices, mtimes, self._naming(members, layout, plain),
        )  # fmt: skip

    def _stored(self, name: bytes, plain_bytes: int) -> tuple[Data, bytes] | None:
        """A frame's compressed bytes and their BLAKE3, where base or cache has them."""
        stored: tuple[Data, bytes] | None = self._base.packed(name, plain_bytes)
        if stored is None and self._cache is not None:
            stored = self._cache.packed(name)
        return stored

    def _look_up(self, frame: PlannedFrame, members: Sequence[Planned], layout: _Layout) -> Built | None:
        """A frame that base or cache has, by what is known of its files: none of them is read."""
        if self._base.is_empty and self._cache is None:
            return None
        rows = []
        for member in members:
            row = self._known(member)
            if row is None:
                return None
            rows.append(row)
        mtimes = [] if frame.start else [row.mtime for row in rows]
        slices = [row.slices for row in rows]
        if frame.stop is not None:
            first, last = frame.start // digest.SLICE, -(-frame.stop // digest.SLICE)
            slices = [slices[0][digest.N_BYTES * first : digest.N_BYTES * last]]
        headers = self._headers(frame, members, layout, mtimes)
        name = digest.frame_digest(itertools.chain.from_iterable(zip(headers, slices, strict=True)))
        stored = self._stored(name, layout.end)
        if stored is None:
            return None
        return Built(
            stored[0], None, stored[1], True, layout.end, name, layout.n_bytes, False, slices, mtimes,
            [row.naming for row in rows],
        )  # fmt: skip

    def _known(self, member: Planned) -> Known | None:
        """What the archive needs to know of a member, if that is known without reading it."""
        if member.kind is Kind.HARDLINK:
            mtime = self._time_of(member.target)
            return None if mtime is None else Known(mtime, False, b"")
        if member.kind is not Kind.FILE:
            assert member.mtime is not None
            return Known(member.mtime, False, b"")
        if member.source is None:
            slices = digest.slice_digests(member.content)
            return Known(self._mtime(member, memoryview(member.content), slices), False, slices)
        key = self.key(member)
        return None if key is None else self._table.known(member.source, key)

    def key(self, member: Planned) -> bytes | None:
        """What stands for the way from a file on disk to its archive form and time; None if that is not known yet."""
        if member.follows is None and member.mtime is None and member.form is AS_IT_IS and not member.placing:
            return AS_ON_DISK
        followed = None if member.follows is None else self._time_of(member.follows)
        if member.follows is not None and followed is None:
            return None
        way = (followed, member.mtime, member.form.edits, bool(member.form.relocations), member.placing)
        return digest.blake(repr(way).encode())[: len(AS_ON_DISK)]

    def _time_of(self, path: str) -> int | None:
        """The time of a file that others follow, if it is known without reading it."""
        if path not in self._mtimes:
            known = self._known(self._plan.members[self._index[path]])
            if known is None:
                return None
            self._mtimes[path] = known.mtime
        return self._mtimes[path]

    def _lay_out(self, frame: PlannedFrame, members: Sequence[Planned]) -> _Layout:
        kinds = [member.kind for member in members]
        paths, targets = [member.path for member in members], [member.target for member in members]
        names, targets_ = container.raw_names(kinds, self._root, paths, targets)
        if frame.stop is not None:
            (member,) = members
            header = 0 if frame.start else container.header_bytes(names[0], targets_[0])
            stop = header + frame.stop - frame.start
            end = stop + (container.padding(member.n_bytes) if frame.stop == member.n_bytes else 0)
            return _Layout(names, targets_, [0], [header], [stop], end)
        starts, stops, ends = [], [], [0]
        end = 0
        for member, header in zip(members, container.headers_bytes(names, targets_), strict=True):
            start = end + header
            stop = start + member.n_bytes
            end = stop + -stop % BLOCK
            starts.append(start)
            stops.append(stop)
            ends.append(end)
        return _Layout(names, targets_, ends[:-1], starts, stops, end)

    def _read(self, frame: PlannedFrame, members: Sequence[Planned], layout: _Layout, plain: memoryview) -> None:
        """Fill a frame's buffer with its files' data and padding; what is as it is on disk in one batch."""
        _, _, headers, starts, stops, end = layout
        ends = [*headers[1:], end]
        batch.fill_zeros(array("q", stops), array("q", map(operator.sub, ends, stops)), plain)
        if members[0].is_pyc and frame.stop is None:
            self._read_pycs(members, starts, stops, plain)
            return
        as_on_disk = [
            (member.source, stop - start, start)
            for member, start, stop in zip(members, starts, stops, strict=True)
            if member.form is AS_IT_IS and member.source is not None and not member.placing
        ]
        if as_on_disk:
            files, lengths, places = zip(*as_on_disk, strict=True)
            offsets = [frame.start] * len(files)
            read_many(self._folder, self._plan.environment.prefix, files, offsets, lengths, places, plain)
        if len(as_on_disk) < len(members):
            for member, start, stop in zip(members, starts, stops, strict=True):
                if member.kind is Kind.FILE and not member.is_as_on_disk:
                    self._read_piece(member, frame.start, plain[start:stop])
        if members[0].follows is not None and not frame.start:  # a large .pyc, in pieces
            self._follow(members[0].follows, plain[starts[0] : stops[0]])

    def _read_pycs(
        self, members: Sequence[Planned], starts: Sequence[int], stops: Sequence[int], plain: memoryview
    ) -> None:
        """Fill a frame's buffer with whole ``.pyc`` files: nearly all of them have edits, so these are made here."""
        files = [member.source for member in members if member.source is not None]
        lengths = [file.n_bytes for file in files]
        places = list(itertools.accumulate(lengths, initial=0))
        on_disk = self._on_disk.view(places[-1])
        read_many(self._folder, self._plan.environment.prefix, files, [0] * len(files), lengths, places[:-1], on_disk)
        rows = zip(members, starts, stops, places, itertools.islice(places, 1, None), strict=False)
        for member, start, stop, source, source_stop in rows:
            if member.placing or member.form.relocations:  # a package's own, with a placeholder
                self._read_piece(member, 0, plain[start:stop])
            else:
                data, at, place = on_disk[source:source_stop], 0, start
                for edit in member.form.edits:
                    run = place + edit.offset - at
                    plain[place:run] = data[at : edit.offset]
                    place = run + len(edit.new)
                    plain[run:place] = edit.new
                    at = edit.offset + edit.length
                plain[place:stop] = data[at:]
            if member.follows is not None:
                self._follow(member.follows, plain[start:stop])

    def _read_piece(self, member: Planned, start: int, data: memoryview) -> None:
        """Fill a buffer with a piece of a file as it lies in the archive, but for the time that a ``.pyc`` states."""
        prefix = self._plan.environment.prefix
        if member.source is None:
            data[:] = memoryview(member.content)[start : start + len(data)]
            return
        with open_source(prefix, member.source) as (_, pread):
            data[:] = in_archive(pread, member)(len(data), start)
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
        self._read_piece(member, 0, data)
        return data

    def _times(
        self, members: Sequence[Planned], layout: _Layout, plain: memoryview, slices: Sequence[bytes]
    ) -> list[int]:
        """Members' times; that of most follows from the digest that is there already."""
        times = [
            content_mtime(found)
            if member.mtime is None and found and member.n_bytes <= digest.SLICE and not member.form.relocations
            else self._mtime(member, plain[start:stop], found)
            for member, start, stop, found in zip(members, layout.starts, layout.stops, slices, strict=True)
        ]
        followed = self._followed
        self._mtimes.update((m.path, time) for m, time in zip(members, times, strict=True) if m.path in followed)
        return times

    def _mtime(self, member: Planned, data: memoryview, slices: bytes) -> int:
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

    def _headers(
        self, frame: PlannedFrame, members: Sequence[Planned], layout: _Layout, mtimes: list[int]
    ) -> list[bytes]:
        """Each member's header; nothing for one that began in an earlier frame."""
        if frame.start:
            return [b""]
        text = container.headers_of(_header_columns(members, layout, mtimes))
        lengths = map(operator.sub, layout.starts, layout.headers)
        ends = list(itertools.accumulate(lengths, initial=0))
        return [text[start:stop] for start, stop in itertools.pairwise(ends)]

    def _naming(self, members: Sequence[Planned], layout: _Layout, plain: memoryview) -> list[bool]:
        if not members[0].is_pyc:  # a frame has members of one class
            return [False] * len(members)
        lengths = array("q", map(operator.sub, layout.stops, layout.starts))
        return list(map(bool, kernel.find_any(plain, array("q", layout.starts), lengths, self._prefixes)))

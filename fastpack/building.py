"""Frames of an archive: read, brought into archive form, hashed and compressed, each in one buffer."""

from __future__ import annotations

import functools
import itertools
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fastpack import container, digest, pagecache
from fastpack._batch_py import BLOCK
from fastpack._place_py import EPOCH_2000, SMALL_FILE, SPAN, content_mtime, mtime_key
from fastpack.base import Base
from fastpack.cache import Cache
from fastpack.members import Members, Numbers, Planned, as_table, in_archive
from fastpack.model import Kind
from fastpack.native import batch, kernel
from fastpack.parallel import Buffers, Scratch
from fastpack.plan import Plan, PlannedFrame
from fastpack.reading import changed, open_folder, open_source, read_many
from fastpack.relocation import AS_IT_IS
from fastpack.stat_table import AS_ON_DISK, STATED, Known, StatTable

#: A frame as it is written: its bytes, or where in another file they are.
Data = bytes | memoryview | pagecache.Piece


class PlainFrame(NamedTuple):
    """A frame of the tar stream, and where its members' data lie in it."""

    members: Members
    mtimes: Sequence[int]  # of the members that begin here, in seconds
    starts: Sequence[int]
    stops: Sequence[int]
    at: int  # of its data in the one member, for a piece of a large file
    plain: memoryview


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
    buffer: memoryview | None = None  # that `packed` lies in, see `Builder.release`


class _Layout(NamedTuple):
    """Where a frame's members lie in its buffer: each one's header, its data, and the padding behind that."""

    names: Sequence[str | bytes]  # with the arcroot
    targets: Sequence[str | bytes]
    headers: Numbers
    starts: Numbers
    stops: Numbers
    end: int

    @property
    def n_bytes(self) -> int:
        """Bytes of data."""
        return int(self.stops.sum() - self.starts.sum())


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


_SIZE, _MTIME, _CTIME = map(STATED.index, ("n_bytes", "mtime_ns", "ctime_ns"))
#: Stands for the digest of what has none.
_NO_DIGEST = bytes(digest.N_BYTES)


def content_mtimes(digests: Sequence[bytes]) -> list[int]:
    """`content_mtime` of each of many files."""
    first = np.frombuffer(b"".join(digests), ">u8").reshape(-1, digest.N_BYTES // 8)[:, 0]
    times: list[int] = (EPOCH_2000 + 2 * (first % SPAN).astype(np.int64)).tolist()
    return times


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
        self._buffers = Buffers()
        self._on_disk = Scratch()
        others = plan.members.others.values()
        self._followed = {member.follows for member in others if member.follows is not None}
        self._followed |= {member.target for member in others if member.kind is Kind.HARDLINK}
        files = plan.environment.files
        self._stated = np.stack([np.frombuffer(files.column(name), np.int64) for name in STATED], axis=1)

    @functools.cached_property
    def _index(self) -> dict[str, int]:
        """Where in the plan a path is: for the few members whose bytes or time another one needs."""
        wanted = self._followed
        return {path: index for index, path in enumerate(self._plan.members.paths) if path in wanted}

    def build(self, frame: PlannedFrame) -> Built:
        """Read, bring into archive form, hash and compress one frame; or find it where it was compressed before."""
        members = self._plan.members[frame.first : frame.last]
        layout = self._lay_out(frame, members)
        found = self._look_up(frame, members, layout)
        if found is not None:
            return found
        plain = self._buffers.take(layout.end)
        self._read(frame, members, layout, plain)
        starts, stops = layout.starts.tolist(), layout.stops.tolist()
        slices = digest.slices_of_each(plain, starts, stops)
        for index, member in members.others.items():
            if member.kind is not Kind.FILE:
                slices[index] = b""
        mtimes: list[int] = []
        if not frame.start:
            mtimes = self._times(members, plain, starts, stops, slices)
            container.write_headers(self._columns(members, layout, mtimes), as_table(layout.headers), plain)
        name = _frame_digest(layout, plain, slices)
        stored = self._stored(name, len(plain))
        rows = None
        if stored is None:
            packed, rows = self._encode(PlainFrame(members, mtimes, starts, stops, frame.start, plain))
            packed_digest = digest.blake(packed)
            if self._cache is not None:
                self._cache.keep(name, packed, packed_digest)
            stored = packed, packed_digest
            reused = False
        else:
            reused = True
        naming = self._naming(members, layout, plain)
        buffer = plain if stored[0] is plain else None
        if buffer is None:
            self._buffers.give_back(plain)
        return Built(
            stored[0], rows, stored[1], reused, len(plain), name, layout.n_bytes, True, slices, mtimes, naming, buffer
        )

    def release(self, built: Built) -> None:
        """A frame has been written: its memory is used again."""
        if built.buffer is not None:
            self._buffers.give_back(built.buffer)

    def _stored(self, name: bytes, plain_bytes: int) -> tuple[Data, bytes] | None:
        """A frame's compressed bytes and their BLAKE3, where base or cache has them."""
        stored: tuple[Data, bytes] | None = self._base.packed(name, plain_bytes)
        if stored is None and self._cache is not None:
            stored = self._cache.packed(name)
        return stored

    def _look_up(self, frame: PlannedFrame, members: Members, layout: _Layout) -> Built | None:
        """A frame that base or cache has, by what is known of its files: none of them is read."""
        if self._base.is_empty and self._cache is None:
            return None
        rows = []
        for index, (path, stated) in enumerate(zip(members.paths, self._state(members.rows), strict=True)):
            member = members.others.get(index)
            row = self._table.known(path, stated, AS_ON_DISK) if member is None else self._known(member)
            if row is None:
                return None
            rows.append(row)
        mtimes = [] if frame.start else [row.mtime for row in rows]
        self._remember_times(members.paths, mtimes)
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

    def _state(self, rows: Numbers) -> list[bytes]:
        """What the system said of files, by their rows in the environment's table."""
        text = self._stated[rows].tobytes()
        step = 8 * len(STATED)
        return [text[at : at + step] for at in range(0, len(text), step)]

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
        key = self._key(member)
        (stated,) = self._state([self._row(member)])
        return None if key is None else self._table.known(member.source.path, stated, key)

    def _key(self, member: Planned) -> bytes | None:
        """What stands for the way from a file on disk to its archive form and time; None if that is not known yet."""
        if member.follows is None and member.mtime is None and member.form is AS_IT_IS and not member.placing:
            return AS_ON_DISK
        followed = None if member.follows is None else self._time_of(member.follows)
        if member.follows is not None and followed is None:
            return None
        way = (followed, member.mtime, member.form.edits, bool(member.form.relocations), member.placing)
        return digest.blake(repr(way).encode())[: len(AS_ON_DISK)]

    def learn(self, members: Members, mtimes: Sequence[int], naming: Sequence[bool], slices: Sequence[bytes]) -> None:
        """Remember whole files that were read, for the next pack."""
        rows = members.rows.copy()
        paths: list[str] = members.paths.copy()
        keys: list[bytes | None] = [AS_ON_DISK] * len(members)
        for index, member in members.others.items():
            keys[index] = None
            if member.source is not None and member.kind is Kind.FILE:
                paths[index], rows[index], keys[index] = member.source.path, self._row(member), self._key(member)
        changed = self._stated[rows, _MTIME : _CTIME + 1].max(axis=1).tolist()
        self._table.learn(paths, self._stated[rows].tobytes(), changed, keys, mtimes, naming, slices)

    def _time_of(self, path: str) -> int | None:
        """The time of a file that others follow, if it is known without reading it."""
        if path not in self._mtimes:
            known = self._known(self._plan.members[self._index[path]])
            if known is None:
                return None
            self._mtimes[path] = known.mtime
        return self._mtimes[path]

    def _lay_out(self, frame: PlannedFrame, members: Members) -> _Layout:
        paths, targets = members.paths, [""] * len(members)
        kinds = _kinds(members)
        for index, other in members.others.items():
            targets[index] = other.target
        names, targets_ = container.raw_names(kinds, self._root, paths, targets)
        if frame.stop is not None:
            (member,) = members
            header = 0 if frame.start else container.header_bytes(names[0], targets_[0])
            stop = header + frame.stop - frame.start
            end = stop + (container.padding(member.n_bytes) if frame.stop == member.n_bytes else 0)
            headers, starts, stops = np.array([[0], [header], [stop]], np.int64)
            return _Layout(names, targets_, headers, starts, stops, end)
        lengths = np.array(container.headers_bytes(names, targets_), np.int64)
        padded = members.sizes + -members.sizes % BLOCK
        ends = np.cumsum(lengths + padded)
        starts = ends - padded
        return _Layout(names, targets_, starts - lengths, starts, starts + members.sizes, int(ends[-1]))

    def _columns(self, members: Members, layout: _Layout, mtimes: Sequence[int]) -> container.Headers:
        return container.Headers(
            _kinds(members), layout.names, layout.targets, as_table(members.modes), as_table(members.sizes), mtimes
        )

    def _read(self, frame: PlannedFrame, members: Members, layout: _Layout, plain: memoryview) -> None:
        """Fill a frame's buffer with its files' data and padding; what is as it is on disk in one batch."""
        _, _, headers, starts, stops, end = layout
        batch.fill_zeros(stops, np.append(headers[1:], end) - stops, plain)
        first = members.others.get(0)
        if first is not None and first.is_pyc and frame.stop is None:
            self._read_pycs(members, starts.tolist(), stops.tolist(), plain)
            return
        rows, lengths = members.rows, stops - starts
        if members.others:
            rows = rows.copy()
            for index, member in members.others.items():
                if member.is_as_on_disk:
                    rows[index] = self._row(member)
                elif member.kind is Kind.FILE:
                    self._read_piece(member, frame.start, plain[starts[index] : stops[index]])
            kept = rows >= 0
            rows, lengths, starts = rows[kept], lengths[kept], starts[kept]
        self._read_rows(rows, frame.start, lengths, starts, plain)
        if first is not None and first.follows is not None and not frame.start:  # a large .pyc, in pieces
            self._follow(first.follows, plain[layout.starts[0] : stops[0]])

    def _row(self, member: Planned) -> int:
        """Where in the environment's table a member's file is."""
        assert member.source is not None
        return self._plan.environment.files.row_of(member.source.path)

    def _read_rows(self, rows: Numbers, offset: int, lengths: Numbers, starts: Numbers, out: memoryview) -> None:
        """Read files, or a piece of one, into a buffer: those in some rows of the environment's table."""
        files = self._plan.environment.files
        names = list(map(files.paths.__getitem__, rows.tolist()))
        if files.outside:
            names = [files.outside.get(name, name) for name in names]
        sizes, mtimes = self._stated[rows, _SIZE], self._stated[rows, _MTIME]
        offsets: Numbers = np.full(len(rows), offset)
        read_many(self._folder, self._plan.environment.prefix, names, sizes, mtimes, offsets, lengths, starts, out)

    def _read_pycs(
        self, members: Sequence[Planned], starts: Sequence[int], stops: Sequence[int], plain: memoryview
    ) -> None:
        """Fill a frame's buffer with whole ``.pyc`` files: nearly all of them have edits, so these are made here."""
        rows = np.array(list(map(self._row, members)), np.int64)
        lengths = self._stated[rows, _SIZE]
        ends = np.cumsum(lengths)
        on_disk = self._on_disk.view(int(ends[-1]))
        self._read_rows(rows, 0, lengths, ends - lengths, on_disk)
        places = [0, *ends.tolist()]
        columns = zip(members, starts, stops, places, places[1:], strict=False)
        for member, start, stop, source, source_stop in columns:
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
        self, members: Members, plain: memoryview, starts: Sequence[int], stops: Sequence[int], slices: Sequence[bytes]
    ) -> list[int]:
        """Members' times; that of most follows from the digest that is there already."""
        times = content_mtimes([found[: digest.N_BYTES] or _NO_DIGEST for found in slices])
        large = np.flatnonzero(members.sizes > digest.SLICE).tolist()
        for index in dict.fromkeys([*members.others, *large]):
            member = members[index]
            relocated = member.form is not AS_IT_IS and member.form.relocations
            if relocated or member.mtime is not None or member.n_bytes > digest.SLICE or member.kind is not Kind.FILE:
                times[index] = self._mtime(member, plain[starts[index] : stops[index]], slices[index])
        self._remember_times(members.paths, times)
        return times

    def _remember_times(self, paths: Sequence[str], times: Sequence[int]) -> None:
        """For the members that follow."""
        followed = self._followed
        self._mtimes.update((path, time) for path, time in zip(paths, times, strict=False) if path in followed)

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

    def _headers(self, frame: PlannedFrame, members: Members, layout: _Layout, mtimes: list[int]) -> list[bytes]:
        """Each member's header; nothing for one that began in an earlier frame."""
        if frame.start:
            return [b""]
        text = container.headers_of(self._columns(members, layout, mtimes))
        ends = itertools.accumulate((layout.starts - layout.headers).tolist(), initial=0)
        return [text[start:stop] for start, stop in itertools.pairwise(ends)]

    def _naming(self, members: Members, layout: _Layout, plain: memoryview) -> list[bool]:
        first = members.others.get(0)
        if first is None or not first.is_pyc:  # a frame has members of one class
            return [False] * len(members)
        lengths = layout.stops - layout.starts
        return list(map(bool, kernel.find_any(plain, layout.starts, lengths, self._prefixes)))


def _frame_digest(layout: _Layout, plain: memoryview, slices: Sequence[bytes]) -> bytes:
    """`digest.frame_digest` of a frame in its buffer."""
    # Each by itself: links have no digest, and large files several.
    if any(len(found) != digest.N_BYTES for found in slices) or (layout.starts - layout.headers != BLOCK).any():
        headers = [plain[start:stop] for start, stop in zip(layout.headers, layout.starts, strict=True)]
        return digest.frame_digest(itertools.chain.from_iterable(zip(headers, slices, strict=True)))
    # Nearly always: a block and a digest for each. A step of Python for each took 0.1 of packing many small files.
    blocks = np.frombuffer(plain[: len(plain) // BLOCK * BLOCK], np.uint8).reshape(-1, BLOCK)[layout.headers // BLOCK]
    digests = np.frombuffer(b"".join(slices), np.uint8).reshape(-1, digest.N_BYTES)
    return digest.frame_digest([np.hstack((blocks, digests)).data])


def _kinds(members: Members) -> list[Kind]:
    kinds = [Kind.FILE] * len(members)
    for index, member in members.others.items():
        kinds[index] = member.kind
    return kinds

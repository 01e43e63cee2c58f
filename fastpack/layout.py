"""Which frame of an archive holds what of which member, from the manifest's sizes alone."""

from __future__ import annotations

import functools
import itertools
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from typing import NamedTuple, overload

from fastpack import container
from fastpack.errors import DamagedArchive
from fastpack.manifest import Manifest
from fastpack.native import batch
from fastpack.rows import Rows


class Segment(NamedTuple):
    """Part of a member in a frame. `at` is its data's place in the frame, [start, stop) its place in the member."""

    member: int
    at: int
    start: int
    stop: int
    header_bytes: int  # of the header right before the data, 0 if it lies in an earlier frame

    def of(self, plain: memoryview) -> memoryview:
        """Its data in the frame's bytes."""
        return plain[self.at : self.at + self.stop - self.start]


#: `Segment` of a row of all its fields, which takes a fifth of the time.
_AS_SEGMENT: Callable[[tuple[int, ...]], Segment] = functools.partial(tuple.__new__, Segment)


class Layout(Sequence[list[Segment]]):
    """Which parts of which members each frame holds; a frame's segments are made when somebody asks for them.

    `at` (the place of its data in the frame where these begin), `owners` (that frame) and `headers` (bytes) are of each
    member; `parts` has, by frame and member, the segments that are parts of one.
    """

    def __init__(self, rows: Rows, n_frames: int, headers: array[int]) -> None:
        self.rows = rows
        self.headers = headers
        self.at, self.owners = array("q", bytes(8 * len(rows))), array("q", bytes(8 * len(rows)))
        self.parts: dict[int, dict[int, Segment]] = {}
        self._n_frames = n_frames

    def __len__(self) -> int:
        return self._n_frames

    @overload
    def __getitem__(self, index: int) -> list[Segment]: ...
    @overload
    def __getitem__(self, index: slice) -> list[list[Segment]]: ...
    def __getitem__(self, index: int | slice) -> list[Segment] | list[list[Segment]]:
        if isinstance(index, slice):
            return [self[k] for k in range(len(self))[index]]
        index = range(len(self))[index]
        parts, sizes = self.parts.get(index, {}), self.rows.sizes
        return [
            parts.get(member) or _AS_SEGMENT((member, self.at[member], 0, sizes[member], self.headers[member]))
            for member in range(*self.members(index))
        ]

    def members(self, index: int) -> tuple[int, int]:
        """The first member that a frame holds a part of, and one more than the last."""
        first, last = bisect_left(self.owners, index), bisect_right(self.owners, index)
        return (first - 1 if first - 1 in self.parts.get(index, ()) else first), last

    def frames_of(self, member: int) -> list[int]:
        """The frames that hold a member, in order."""
        first = self.owners[member]
        further = itertools.takewhile(lambda index: member in self.parts.get(index, ()), range(first + 1, len(self)))
        return [first, *further]


def lay_out(manifest: Manifest) -> Layout:
    """Which parts of which members each frame holds, from the sizes alone.

    Raises
    ------
    DamagedArchive : the members do not fill the frames exactly.
    """
    rows = manifest.members
    sizes = array("q", [frame.plain_bytes for frame in manifest.frames])
    layout = Layout(rows, len(sizes), rows.header_lengths(manifest.arcroot))
    member = frame = position = 0
    while True:
        member, frame, position = batch.lay_whole(
            layout.headers, rows.sizes, sizes, member, frame, position, layout.at, layout.owners
        )
        if member == len(rows):
            break
        frame, position = _lay_in_parts(layout, sizes, member, frame, position)
        member += 1
    if frame != len(sizes) - 1 or position != sizes[frame]:
        raise DamagedArchive("the manifest's members do not fill its frames", found=f"frame {frame} of {len(sizes)}")
    return layout


def _lay_in_parts(layout: Layout, sizes: array[int], member: int, frame: int, position: int) -> tuple[int, int]:
    """Lay a member that one frame does not hold whole: (frame, position) behind it."""
    n_bytes, header_bytes = layout.rows.sizes[member], layout.headers[member]
    misfit = DamagedArchive("the manifest's members do not fit its frames", path=layout.rows.paths[member])
    position += header_bytes
    layout.at[member], layout.owners[member] = position, frame
    done = 0
    while True:
        if frame >= len(sizes) or position > sizes[frame]:
            raise misfit
        take = min(sizes[frame] - position, n_bytes - done)
        if not take:  # a header alone at a frame's end: none of ours
            raise misfit
        segment = Segment(member, position, done, done + take, header_bytes)
        layout.parts.setdefault(frame, {})[member] = segment
        position += take
        done += take
        header_bytes = 0
        if done == n_bytes:
            break
        frame, position = frame + 1, 0
    position += container.padding(n_bytes)
    if position > sizes[frame]:
        raise misfit
    return frame, position

"""The members that an archive says it has, in columns: nearly all are files of which there is no more to say.

A tuple for each of hundreds of thousands of members costs more than decoding them, so there is one only for
directories, links and what has more to be said of it; the others get theirs when somebody asks for it.
"""

from __future__ import annotations

import functools
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, overload

from fastpack import container, digest
from fastpack.model import Kind


class Member(NamedTuple):
    """A member of the archive, below the arcroot."""

    kind: Kind
    path: str
    mode: int  # in the tar header
    mtime: int
    n_bytes: int = 0
    target: str = ""
    digest: bytes = b""
    group: int = 0  # index into the groups
    final_mode: int | None = None  # of a directory that is stricter than u+rwx
    verdict: str = ""
    not_relocated: str = ""

    def header(self, arcroot: str) -> bytes:
        """Its tar header."""
        return Rows([self]).headers(0, 1, arcroot)


#: `Member` of a row of all its fields, which takes a fifth of the time.
AS_MEMBER: Callable[[tuple[Any, ...]], Member] = functools.partial(tuple.__new__, Member)
#: Stands in the column of digests for the digest of what has none.
_NO_DIGEST = bytes(digest.N_BYTES)


class Rows(Sequence[Member]):
    """Members in archive order, which grow at their end.

    `paths`, `modes`, `mtimes` (seconds), `groups` (indices), `sizes` (bytes), `digests` (32 bytes for each) and
    `verdicts` have all members, `others` by their index those that are no files, or have more to be said of them.
    """

    def __init__(self, members: Iterable[Member] = ()) -> None:
        self.paths: list[str] = []
        self.modes, self.mtimes, self.groups, self.sizes = array("q"), array("q"), array("q"), array("q")
        self.digests = bytearray()
        self.verdicts: list[str] = []
        self.others: dict[int, Member] = {}
        self._indices: list[int] = []  # of the others, in order
        for member in members:
            self.add(member)

    def add(self, member: Member) -> None:
        """Add one."""
        more = member.target or member.not_relocated or member.final_mode is not None
        if member.kind is not Kind.FILE or more:
            self._indices.append(len(self))
            self.others[len(self)] = member
        self.paths.append(member.path)
        self.modes.append(member.mode)
        self.mtimes.append(member.mtime)
        self.groups.append(member.group)
        self.sizes.append(member.n_bytes if member.kind is Kind.FILE else 0)
        self.digests += member.digest if member.kind is Kind.FILE else _NO_DIGEST
        self.verdicts.append(member.verdict)

    def add_files(
        self, paths: Sequence[str], modes: array[int], mtimes: array[int], groups: array[int], sizes: array[int],
        digests: bytes, verdicts: Sequence[str],
    ) -> None:  # fmt: skip
        """Add files of which there is no more to say."""
        self.paths += paths
        self.modes += modes
        self.mtimes += mtimes
        self.groups += groups
        self.sizes += sizes
        self.digests += digests
        self.verdicts += verdicts

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, index: int) -> Member: ...
    @overload
    def __getitem__(self, index: slice) -> list[Member]: ...
    def __getitem__(self, index: int | slice) -> Member | list[Member]:
        if isinstance(index, slice):
            return [self[k] for k in range(len(self))[index]]
        index = range(len(self))[index]
        found = self.others.get(index)
        if found is not None:
            return found
        start = digest.N_BYTES * index
        return AS_MEMBER(
            (Kind.FILE, self.paths[index], self.modes[index], self.mtimes[index], self.sizes[index], "",
             bytes(self.digests[start : start + digest.N_BYTES]), self.groups[index], None, self.verdicts[index], "")
        )  # fmt: skip

    def __iter__(self) -> Iterator[Member]:
        return map(self.__getitem__, range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def others_in(self, first: int, last: int) -> list[int]:
        """Indices of the others among some members."""
        return self._indices[bisect_left(self._indices, first) : bisect_left(self._indices, last)]

    def files_in(self, first: int, last: int) -> Sequence[int]:
        """Indices of the regular files among some members."""
        odd = {index for index in self.others_in(first, last) if self.others[index].kind is not Kind.FILE}
        return [index for index in range(first, last) if index not in odd] if odd else range(first, last)

    def kind(self, index: int) -> Kind:
        """What a member is."""
        found = self.others.get(index)
        return Kind.FILE if found is None else found.kind

    def of_kind(self, kind: Kind) -> list[Member]:
        """The members of a kind other than files."""
        return [member for member in self.others.values() if member.kind is kind]

    @property
    def n_files(self) -> int:
        """The number of regular files, further names of one (hard links) not counted."""
        return len(self) - sum(member.kind is not Kind.FILE for member in self.others.values())

    def header_lengths(self, arcroot: str) -> array[int]:
        """Bytes of each member's tar header."""
        _, names, targets = self._named(0, len(self), arcroot)
        return array("q", container.headers_bytes(names, targets))

    def headers(self, first: int, last: int, arcroot: str) -> bytes:
        """Some members' tar headers, one behind the other (DESIGN section 6)."""
        if first == last:
            return b""
        some = slice(first, last)
        kinds, names, targets = self._named(first, last, arcroot)
        return container.headers_of(
            container.Headers(kinds, names, targets, self.modes[some], self.sizes[some], self.mtimes[some])
        )

    def _named(
        self, first: int, last: int, arcroot: str
    ) -> tuple[list[Kind], Sequence[str | bytes], Sequence[str | bytes]]:
        """Kinds of some members, and names and targets as they stand in tar headers."""
        kinds, targets = [Kind.FILE] * (last - first), [""] * (last - first)
        for index in self.others_in(first, last):
            kinds[index - first], targets[index - first] = self.others[index].kind, self.others[index].target
        return kinds, *container.raw_names(kinds, arcroot + "/" if arcroot else "", self.paths[first:last], targets)

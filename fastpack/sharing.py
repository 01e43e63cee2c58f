"""Files of one environment put into another one as they are: reflinked, linked or copied by the kernel.

What is shared is what was looked at: `batch.share_files` compares what the system says of a file afterwards.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from array import array
from collections.abc import Collection, Container, Iterator, Sequence
from contextlib import suppress
from enum import Enum, auto
from typing import NamedTuple

from fastpack import direct, pagecache
from fastpack._batch_py import CLONED, COPIED, FICLONE, GIVEN, LINKED, LISTED, numbers_of
from fastpack.fs import file_below
from fastpack.manifest import MANIFEST
from fastpack.native import CANNOT_SHARE, batch
from fastpack.reader import AT_ONCE, FrameReader
from fastpack.rows import Member


class Links(Enum):
    """Which files of the base that did not change get a further name in the new environment."""

    NONE = auto()
    ALONE = auto()  # those without another name: nobody but the base, which is about to go, has them
    ALL = auto()


class Seen(NamedTuple):
    """Members, and what the system said of each one's file when it was looked at (`LISTED`), one behind the other."""

    members: Sequence[int]
    rows: array[int]

    def but(self, others: Container[int]) -> Seen:
        """Without some of them."""
        kept = [k for k, member in enumerate(self.members) if member not in others]
        if len(kept) == len(self.members):
            return self
        rows = array("q")
        for k in kept:
            rows += self.row(k)
        return Seen([self.members[k] for k in kept], rows)

    def row(self, k: int) -> array[int]:
        """What was said of one file."""
        return self.rows[len(LISTED) * k : len(LISTED) * (k + 1)]

    def pieces(self) -> Iterator[Seen]:
        """So many at a time that an interrupt does not wait long."""
        for start in range(0, len(self.members), AT_ONCE):
            stop = start + AT_ONCE
            yield Seen(self.members[start:stop], self.rows[len(LISTED) * start : len(LISTED) * stop])


class Sharer:
    """Puts members' files where they belong, and tells the reader whose members they are: its `there` and `shared`.

    Parameters
    ----------
    source : descriptor of the directory that has the files.
    links : which of them get a further name where they cannot be reflinked.
    writer : copies large ones.
    """

    def __init__(self, reader: FrameReader, source: int, links: Links, writer: direct.Writer) -> None:
        self._reader = reader
        self._source = source
        self._links = links
        self._writer = writer
        self._reflink = True  # until the file system says that it has none
        # A second for the coarseness of the file system's clock.
        self._since = time.time_ns() - 1_000_000_000

    def look_around(self, folders: Collection[str], target: int) -> bool:
        """Share nothing where that would not be what it seems; whether the source is what it seems.

        A folder of it that is a link leads to files that others have. What lies below a directory with a default ACL
        has one itself, which a file of the source has not.

        Parameters
        ----------
        folders : all of the members that are directories.
        """
        is_whole = not any(map(stat.S_ISLNK, batch.stat_files(self._source, list(folders))[:: len(LISTED)]))
        if not is_whole:
            self._links, self._reflink = Links.NONE, False
        if self._links is Links.ALONE and _has_default_acl(target):
            self._links = Links.NONE
        return is_whole

    def takes_no_room(self, parent: str) -> bool:
        """Whether what is shared takes no room below a directory: links take none, nor reflinks.

        One of these is tried, with a file that never has a name.
        """
        if self._links is not Links.NONE:
            return os.stat(parent).st_dev == os.fstat(self._source).st_dev
        try:
            source = os.open(MANIFEST, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._source)
            try:
                target = os.open(parent, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
                try:
                    fcntl.ioctl(target, FICLONE, source)
                finally:
                    os.close(target)
            finally:
                os.close(source)
        except (AttributeError, OSError):
            return False
        return True

    def share(self, seen: Seen, folder: int) -> None:
        """Share those files that can be; the others are not there then.

        Parameters
        ----------
        folder : descriptor of the directory that gets them.
        """
        if not self._reflink and self._links is Links.NONE:
            return
        seen = self._missing(seen)
        if self._reflink and seen.members:
            self._share(Seen(seen.members[:1], seen.row(0)), folder, CLONED)  # enough to see that there are none
            if self._reflink:
                self._share(self._missing(seen), folder, CLONED)
        if self._links is not Links.NONE:
            self._share(self._missing(seen), folder, GIVEN if self._links is Links.ALONE else LINKED)

    def copy(self, seen: Seen, folder: int) -> None:
        """Copy those that could not be shared."""
        seen, rows = self._missing(seen), self._reader.rows
        for k in self._writer.alone([rows.sizes[member] for member in seen.members]):
            self._reader.stop_if_asked()
            with suppress(OSError):
                self._copy_alone(rows[seen.members[k]], seen.row(k), folder)
        self._share(self._missing(seen), folder, COPIED)

    def _copy_alone(self, member: Member, row: array[int], folder: int) -> None:
        """Copy one file; an OSError if it is not what was seen, or cannot be copied."""
        source = os.open(member.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=self._source)
        try:
            with file_below(folder, member.path, member.mode, member.mtime) as target:
                self._writer.move(target, pagecache.Piece(source, 0, member.n_bytes), 0, direct.ALONE)
                info = os.fstat(source)
                if info.st_ctime_ns >= self._since or numbers_of(info) != row.tolist():
                    raise OSError(errno.EIO, "it was changed")
        finally:
            os.close(source)
        self._reader.there.add(member.path)

    def _missing(self, seen: Seen) -> Seen:
        """Those that are not where they belong yet."""
        paths, there = self._reader.rows.paths, self._reader.there
        return seen.but({member for member in seen.members if paths[member] in there})

    def _share(self, seen: Seen, folder: int, how: int) -> None:
        reader, rows = self._reader, self._reader.rows
        for members, numbers in seen.pieces():
            reader.stop_if_asked()
            modes, mtimes = (array("q", [column[k] for k in members]) for column in (rows.modes, rows.mtimes))
            names = [rows.paths[k] for k in members]
            failed = dict(batch.share_files(self._source, folder, names, modes, mtimes, numbers, self._since, how))
            there = [name for k, name in enumerate(names) if k not in failed]
            reader.there.update(there)
            if how != COPIED:
                reader.shared.update(there)
            if how == CLONED and any(code in CANNOT_SHARE for code in failed.values()):
                self._reflink = False


def _has_default_acl(folder: int) -> bool:
    """Whether a new file below a directory gets an access control list."""
    try:
        return "system.posix_acl_default" in os.listxattr(folder)
    except (AttributeError, OSError):
        return False

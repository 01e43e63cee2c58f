"""Frames of an earlier archive, used again: what has the same bytes is not compressed anew."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from fastpack import digest, pagecache
from fastpack.codec import Codec
from fastpack.errors import FastpackError, WrongBase
from fastpack.layout import Layout
from fastpack.manifest import Frame, Manifest
from fastpack.model import Group, Warned
from fastpack.reader import Archive, open_archive

#: A group -> the digests of its frames, in order.
Groups = Mapping[Group, Sequence[bytes]]


class Opened(NamedTuple):
    """What is kept of an archive whose frames may be used: its table of members takes as much as a plan's."""

    path: str
    descriptor: int
    codec: str
    frames: Sequence[Frame]
    groups: Groups


class Base:
    """Frames of an earlier archive by their digests: see `open_base`. May be used by several threads.

    Parameters
    ----------
    archive : None: there is none, or its frames cannot be used.
    further : archives whose frames are used as well.
    trusted : frames are taken to be what the manifest says, and not read.
    """

    def __init__(
        self, archive: Opened | None, warnings: Sequence[Warned] = (), further: Sequence[Opened] = (),
        trusted: bool = False,
    ) -> None:  # fmt: skip
        self._archive = archive
        self._index: dict[bytes, tuple[Opened, int]] = {}
        for one in (*further, *([archive] if archive else [])):
            self._index.update((frame.digest, (one, index)) for index, frame in enumerate(one.frames))
        self._warnings = warnings
        self._trusted = trusted
        self._rotten: set[tuple[str, int]] = set()
        self._lock = threading.Lock()
        self.path = archive.path if archive else None

    @property
    def is_empty(self) -> bool:
        """Whether it has no frame to offer."""
        return not self._index

    def packed(self, frame_digest: bytes, plain_bytes: int) -> tuple[pagecache.Piece, bytes] | None:
        """The compressed bytes of a frame and their BLAKE3, if the base has it and it is what its manifest says.

        A frame's digest stands for all its bytes (headers and data; the rest is zeros), so these are the bytes that
        compressing it anew would give, with the same libraries.
        """
        found = self._index.get(frame_digest)
        if found is None:
            return None
        archive, index = found
        frame = archive.frames[index]
        if frame.plain_bytes != plain_bytes:
            return None
        if self._trusted:
            return pagecache.Piece(archive.descriptor, frame.offset, frame.packed_bytes), frame.packed_digest
        try:
            packed = pagecache.read(archive.descriptor, frame.packed_bytes, frame.offset)
        except OSError:
            packed = memoryview(b"")
        if digest.blake(packed) != frame.packed_digest:
            with self._lock:
                self._rotten.add((archive.path, index))
            return None
        return pagecache.Piece(archive.descriptor, frame.offset, frame.packed_bytes, packed), frame.packed_digest

    def groups(self) -> Groups:
        """The base's groups with their frames."""
        return {} if self._archive is None else self._archive.groups

    def warnings(self) -> list[Warned]:
        """What is to be said of the base after its use."""
        rotten = [
            Warned("rotten-base", path, f"frame {index} of the base is damaged: it was compressed anew")
            for path, index in sorted(self._rotten)
        ]
        return [*self._warnings, *rotten]


@contextmanager
def open_base(
    path: str | None, output: str | None, codec: Codec | None, level: int, archive_id: str | None = None,
    any_: bool = False, further: Sequence[str] = (), trusted: bool = False,
) -> Iterator[Base]:  # fmt: skip
    """The archive whose frames may be used.

    Parameters
    ----------
    path : what was asked for; None: `output`, where an archive of fastpack's is about to be replaced by a new one.
    archive_id : refuse any other one.
    any_ : use frames of another level or other libraries too; the archive is then another one than without a base.
    further : archives that this run has made, whose frames are used as well.
    trusted : do not read the frames that are used, so that what is rotten in the base is rotten in the new archive.

    Raises
    ------
    DamagedArchive, NewerFormat, HostileArchive : `path` is no archive of fastpack's.
    WrongBase : it does not have `archive_id`.
    """
    if codec is None:  # a format without frames to use again
        yield Base(None)
        return
    chosen = path or output
    with ExitStack() as stack:
        opened, found, warnings, why = None, None, [], None
        if chosen is not None and (path is not None or os.path.isfile(chosen)):
            try:
                opened, found, why = _open(chosen, codec, level, stack)
            except FastpackError:
                if path is not None:
                    raise  # but what is replaced need not be an archive, nor a whole one
        if archive_id is not None and found != archive_id.lower():
            raise WrongBase("the base is another archive", path=chosen, expected=archive_id, found=found or "none")
        if why is not None and opened is not None and any_ and opened.codec == codec.name:
            warnings = [Warned("base-other", chosen, f"frames of a base were used though {why}")]
        elif why is not None:
            opened, warnings = None, [Warned("base-unused", chosen, f"no frame of the base was used: {why}")]
        others = [_open(one, codec, level, stack)[0] for one in further]
        yield Base(opened, warnings, others, trusted)


def _open(path: str, codec: Codec, level: int, stack: ExitStack) -> tuple[Opened, str, str | None]:
    """What is kept of an archive, its id, and why its frames must not be used; the stack closes it."""
    with open_archive(path) as archive:
        descriptor = os.dup(archive.descriptor)
        stack.callback(os.close, descriptor)
        groups = groups_of(archive.manifest, archive.reader.layout)
        opened = Opened(path, descriptor, archive.codec.name, archive.manifest.frames, groups)
        return opened, archive.archive_id, _unlike(archive, codec, level)


def _unlike(archive: Archive, codec: Codec, level: int) -> str | None:
    """Why a new archive must not have frames of another one."""
    header = archive.manifest.header
    for what, found, wanted in (
        ("format", header["codec"], codec.name),
        ("level", header["level"], level),
        ("libraries", header.get("libraries", {}), codec.versions()),
    ):
        if found != wanted:
            return f"its {what} is {found}, not {wanted}"
    return None


def groups_of(manifest: Manifest, layout: Layout) -> Groups:
    """An archive's groups with their frames."""
    firsts = [layout.members(index)[0] for index in range(len(layout))]
    return by_group([manifest.groups[manifest.members.groups[first]] for first in firsts], manifest.frames)


def by_group(groups: Sequence[Group], frames: Sequence[Frame]) -> Groups:
    """Frames by the group that each begins with (a frame has members of one group alone)."""
    found: dict[Group, list[bytes]] = {}
    for group, frame in zip(groups, frames, strict=True):
        found.setdefault(group, []).append(frame.digest)
    return found


def compare(old: Groups, new: Groups) -> dict[str, tuple[str, ...]]:
    """Names of groups that are unchanged, changed (another version among them), new and gone."""
    before = {(group.kind, group.name): (group, frames) for group, frames in old.items()}
    after = {(group.kind, group.name): (group, frames) for group, frames in new.items()}
    shared = [key for key in after if key in before]
    rows = {
        "unchanged": [key for key in shared if list(after[key][1]) == list(before[key][1])],
        "changed": [key for key in shared if list(after[key][1]) != list(before[key][1])],
        "new": [key for key in after if key not in before],
        "gone": [key for key in before if key not in after],
    }
    return {what: tuple(str((after.get(key) or before[key])[0]) for key in keys) for what, keys in rows.items()}

"""What a format is: a class that opens a writer of an archive's frames.

All formats take the same frames of one tar stream. `encode` runs in several threads, `write` in the frames' order.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple, Protocol

from fastpack._place_py import content_mtime
from fastpack.building import Data, PlainFrame
from fastpack.codec import Codec
from fastpack.fs import explain_os_error, new_file
from fastpack.manifest import MANIFEST, Manifest
from fastpack.model import Kind
from fastpack.plan import Plan
from fastpack.rows import Member


@dataclass(frozen=True, slots=True)
class Job:
    """What a format needs to know to write an archive. `output` is absolute, or ``-`` for standard output."""

    plan: Plan
    output: str
    force: bool
    level: int
    threads: int
    zip_64: bool = True
    has_frames: bool = True


class Encoded(NamedTuple):
    """A frame in the format's form, and what the format has to remember of it."""

    data: bytes | memoryview
    rows: Any = None


class Tail(NamedTuple):
    """What stands behind an archive's last frame: its bytes, and their BLAKE3 (none where frames are not reused).

    `total` are the whole archive's, where frames are not written as they are.
    """

    n_bytes: int
    digest: bytes = b""
    total: int | None = None


class Writer(Protocol):
    """Writes one archive."""

    def encode(self, frame: PlainFrame) -> Encoded:
        """A frame in the format's form. Called by several threads."""

    def write(self, data: Data, rows: Any) -> None:
        """Write a frame; in order. `rows` are those of `encode`."""

    def finish(self, manifest: Manifest, archive_id: bytes, sizes: list[tuple[int, int]]) -> Tail:
        """Write what stands behind the last frame.

        Parameters
        ----------
        manifest : with its bytes in `raw`.
        sizes : (written, plain) bytes of each frame.
        """


class Format(Protocol):
    """A format: `levels` are what ``--compress-level`` knows. `codec` is that of frames that may be used again.

    `has_frames`: whether what is written is a row of compressed frames.
    `hard_links` and `symbolic_links`: whether it can hold them; a copy stands for what it cannot.
    """

    name: str
    suffix: str
    default_level: int
    levels: range
    codec: Codec | None
    has_frames: bool
    hard_links: bool
    symbolic_links: bool
    pyc: str  # what ``--pyc`` is, where it is not given

    def check(self) -> None:
        """What is missing for it, before anything is read."""

    def versions(self) -> dict[str, str]:
        """The libraries the bytes depend on."""

    def open(self, job: Job) -> AbstractContextManager[Writer]:
        """The archive appears when the block ends well, and not at all otherwise."""


@contextmanager
def opened(output: str, force: bool) -> Iterator[BinaryIO]:
    """A file that appears when it is whole, standard output, or the null device."""
    if output == os.devnull:
        with open(output, "wb") as nowhere:
            yield nowhere
        return
    if output == "-":
        try:
            stdout: BinaryIO = os.fdopen(os.dup(1), "wb")
        except OSError as error:
            raise explain_os_error(error, "standard output") from None
        try:
            yield stdout
        finally:
            try:
                stdout.close()
            except OSError:
                pass  # what could not be written was said when it was flushed
        return
    with new_file(output, force) as out:
        yield out


def own_member(manifest: Manifest, archive_id: bytes) -> Member:
    """The manifest as a member: its time is a function of its digest."""
    return Member(Kind.FILE, MANIFEST, 0o644, content_mtime(archive_id), len(manifest.raw))

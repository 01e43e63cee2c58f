"""A directory with an archive's members: frames are taken apart, and large files reflinked where that can be."""

from __future__ import annotations

import contextlib
import os
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastpack._batch_py import CLONED
from fastpack.building import Data, PlainFrame
from fastpack.codec import Codec
from fastpack.destination import Destination
from fastpack.errors import UsageError
from fastpack.extracting import finish_directories, make_directories, make_links, write_manifest
from fastpack.format import Encoded, Job, Tail, Writer
from fastpack.fs import explain_os_error
from fastpack.manifest import Manifest
from fastpack.members import Planned
from fastpack.model import Kind
from fastpack.native import CANNOT_SHARE, batch
from fastpack.plan import Plan
from fastpack.reading import changed

#: Files of a directory that are reflinked, where the file system can; for smaller ones a copy costs less.
_CLONED_FROM = 64 << 10
#: A time that no file has changed after.
_NEVER = (1 << 63) - 1


class Directory:
    """No archive at all: the members as files. Nothing in it shares an inode with anything outside."""

    name = "no-archive"
    suffix = ".no-archive"
    default_level = 0
    levels = range(10)  # conda-pack takes any, and uses none
    codec: Codec | None = None
    has_frames = False
    pyc = "timestamp"
    hard_links = symbolic_links = True

    def check(self) -> None:
        pass

    def versions(self) -> dict[str, str]:
        return {}

    @contextmanager
    def open(self, job: Job) -> Iterator[Writer]:
        if job.output == "-":
            raise UsageError("a directory is not written to a pipe", hint="give it a name with --output")
        plan = job.plan
        root = plan.arcroot + "/" if plan.arcroot else ""
        names = [root + member.path for member in plan.members if member.kind is not Kind.DIRECTORY]
        n_bytes = sum(-(-member.n_bytes // 4096) * 4096 for member in plan.members) + 4096 * len(plan.members)
        try:
            with Destination(job.output, job.force, names, n_bytes) as where:
                inner = os.path.join(where.root, plan.arcroot)
                os.makedirs(inner, exist_ok=True)
                with _folders(plan.environment.prefix, inner) as (source, target):
                    make_directories(inner, [m.path for m in plan.members if m.kind is Kind.DIRECTORY], job.threads)
                    yield _DirectoryWriter(plan, inner, source, target)
                where.finish(False)
            if plan.arcroot:
                with contextlib.suppress(OSError):  # the marker's directory; the members' own lies deeper
                    os.rmdir(os.path.join(job.output, ".fastpack"))
        except OSError as error:
            raise explain_os_error(error, error.filename or job.output) from None


@contextmanager
def _folders(*paths: str) -> Iterator[list[int]]:
    descriptors: list[int] = []
    try:
        for path in paths:
            descriptors.append(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        yield descriptors
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


class _DirectoryWriter:
    def __init__(self, plan: Plan, root: str, source: int, target: int) -> None:
        self._plan = plan
        self._root = root
        self._source = source
        self._target = target
        self._reflinks = True  # until the file system says that it has none
        large = [plan.members[frame.first] for frame in plan.frames if frame.stop is not None and not frame.start]
        self._clones = {member.path for member in large if self._clone(member, 0)}

    def encode(self, frame: PlainFrame) -> Encoded:
        files = [
            (member, start, stop, mtime)
            for member, start, stop, mtime in zip(
                frame.members, frame.starts, frame.stops, frame.mtimes or [0] * len(frame.members), strict=True
            )
            if member.kind is Kind.FILE
        ]
        if frame.at or any(stop - start != member.n_bytes for member, start, stop, _ in files):
            self._piece(files[0][0], frame.at, frame.plain[files[0][1] : files[0][2]])
            return Encoded(b"")
        copied = [row for row in files if not self._cloned(*row, frame.plain)]
        failed = batch.write_files(
            self._target, [row[0].path for row in copied], frame.plain, array("q", [row[1] for row in copied]),
            array("q", [row[2] - row[1] for row in copied]), array("q", [row[0].mode for row in copied]),
            array("q", [row[3] for row in copied]),
        )  # fmt: skip
        for index, code in failed:
            raise OSError(code, os.strerror(code), os.path.join(self._root, copied[index][0].path))
        return Encoded(b"")

    def _cloned(self, member: Planned, start: int, stop: int, mtime: int, plain: memoryview) -> bool:
        """Whether a file could be reflinked; what was cloned has the bytes that were read."""
        if stop - start < _CLONED_FROM or not self._clone(member, mtime):
            return False
        self._compare(member, 0, plain[start:stop])
        return True

    def _clone(self, member: Planned, mtime: int) -> bool:
        source = member.source
        if not self._reflinks or source is None or not member.is_as_on_disk or source.path != member.path:
            return False
        modes, mtimes = array("q", [member.mode]), array("q", [mtime])
        # Changed or not: what was cloned is compared with what was read.
        failed = batch.share_files(self._source, self._target, [member.path], modes, mtimes, None, _NEVER, CLONED)
        if failed and failed[0][1] in CANNOT_SHARE:
            self._reflinks = False
        return not failed

    def _compare(self, member: Planned, at: int, data: memoryview) -> None:
        descriptor = os.open(member.path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._target)
        try:
            if os.pread(descriptor, len(data), at) != data or os.fstat(descriptor).st_size != member.n_bytes:
                raise changed(os.path.join(self._plan.environment.prefix, member.path), "changed")
        finally:
            os.close(descriptor)

    def _piece(self, member: Planned, at: int, data: memoryview) -> None:
        if member.path in self._clones:
            self._compare(member, at, data)
            return
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(member.path, flags, 0o600, dir_fd=self._target)
        try:
            while data:
                n_bytes = os.pwrite(descriptor, data, at)
                data, at = data[n_bytes:], at + n_bytes
        finally:
            os.close(descriptor)

    def write(self, data: Data, rows: Any) -> None:
        pass

    def finish(self, manifest: Manifest, archive_id: bytes, sizes: list[tuple[int, int]]) -> Tail:
        large = {frame.first for frame in self._plan.frames if frame.stop is not None}
        for index in large:
            member = manifest.members[index]
            os.chmod(member.path, member.mode, dir_fd=self._target)
            os.utime(member.path, (member.mtime, member.mtime), dir_fd=self._target)
        write_manifest(self._root, manifest.raw, archive_id.hex())
        make_links(self._root, manifest.members)
        finish_directories(self._root, manifest.members)
        return Tail(len(manifest.raw))

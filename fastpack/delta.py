"""What two archives differ in, as a report (diff), as a file to ship (delta), and put together again (apply)."""

from __future__ import annotations

import fnmatch
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import BinaryIO, NamedTuple

from fastpack import digest, pagecache
from fastpack.base import Groups, compare, groups_of
from fastpack.deltafile import Table, head, read_table, read_tail
from fastpack.environment import Environment
from fastpack.errors import DamagedArchive, UsageError, WrongBase
from fastpack.frames import open_descriptor
from fastpack.fs import explain_os_error, new_file
from fastpack.layout import lay_out
from fastpack.manifest import Frame, Manifest
from fastpack.model import ApplyReport, DeltaReport, DiffReport, GroupKind, Kind, Progress, SharedReport, silent
from fastpack.packing import manifest_of
from fastpack.reader import Archive, open_archive
from fastpack.rows import Member


def diff(old: str, new: str, progress: Progress = silent) -> DiffReport:
    """What changed between two archives: packages, files, and the bytes that a delta would ship.

    One of them may be the directory of an environment: what an archive of it would hold, packed like the other one.

    Raises
    ------
    DamagedArchive, NewerFormat, HostileArchive
    UsageError : both are directories.
    """
    with ExitStack() as stack:
        sides = [None if os.path.isdir(path) else stack.enter_context(open_archive(path)) for path in (old, new)]
        archive = sides[0] or sides[1]
        if archive is None:
            raise UsageError("neither is an archive", path=old, hint="pack one of them first")
        before, after = (
            _as_environment(path, archive, progress) if side is None else _as_archive(side)
            for path, side in zip((old, new), sides, strict=True)
        )
    known = set(_places(before.manifest))
    frames = after.manifest.frames
    shipped = [frame for frame, place in zip(frames, _places(after.manifest), strict=True) if place not in known]
    return DiffReport(
        old=old, new=new, old_archive_id=before.archive_id, new_archive_id=after.archive_id,
        same=before.archive_id == after.archive_id, packages=_packages(before.manifest, after.manifest),
        groups=compare(before.groups, after.groups), files=_files(before.manifest, after.manifest),
        n_frames=len(frames), n_shipped_frames=len(shipped),
        shipped_bytes=sum(frame.packed_bytes for frame in shipped) + after.tail_bytes,
        archive_bytes=sum(frame.packed_bytes for frame in frames) + after.tail_bytes,
    )  # fmt: skip


class _Side(NamedTuple):
    """One of two archives that are compared; `tail_bytes` is what stands behind its last frame."""

    archive_id: str
    manifest: Manifest
    groups: Groups
    tail_bytes: int


def _as_archive(archive: Archive) -> _Side:
    groups = groups_of(archive.manifest, archive.reader.layout)
    return _Side(archive.archive_id, archive.manifest, groups, len(_tail(archive)))


def _as_environment(prefix: str, like: Archive, progress: Progress) -> _Side:
    manifest, archive_id, tail_bytes = manifest_of(Environment.from_prefix(prefix), like, progress)
    return _Side(archive_id, manifest, groups_of(manifest, lay_out(manifest)), tail_bytes)


def shared(paths: Sequence[str]) -> SharedReport:
    """How many of each archive's bytes every other one has too.

    Raises
    ------
    DamagedArchive, NewerFormat, HostileArchive
    """
    names: list[str] = []
    frames: list[dict[bytes, int]] = []
    for path in paths:
        with open_archive(path) as archive:
            names.append(archive.archive_id)
            frames.append({frame.packed_digest: frame.packed_bytes for frame in archive.manifest.frames})
    matrix = tuple(
        tuple(sum(n_bytes for name, n_bytes in mine.items() if name in other) for other in frames) for mine in frames
    )
    return SharedReport(archives=tuple(paths), archive_ids=tuple(names), shared_bytes=matrix)


def delta(
    old: str, new: str, output: str, force: bool = False, progress: Progress = silent, ship: Sequence[str] = ()
) -> DeltaReport:
    """Write what is needed to make the archive `new` from the archive `old`.

    Parameters
    ----------
    ship : globs of paths whose frames are shipped even if `old` has them.

    Raises
    ------
    UsageError : no file of `new` is meant by a glob.
    DamagedArchive : also for a frame of `new` that is not what its manifest says.
    AlreadyExists, NoSpace
    """
    started = time.monotonic()
    _check_output(output)
    with open_archive(old) as before, open_archive(new) as after:
        rows = list(_frames(before, after))
        wanted = _frames_with(after, ship)
        shipped = [index for index, (_, is_old) in enumerate(rows) if not is_old or index in wanted]
        tail = _tail(after)
        locator = after.locator
        table = json.dumps(
            {
                "old": before.archive_id, "new": after.archive_id, "codec": after.codec.name, "shipped": shipped,
                "manifest": [locator.offset - _end_of_frames(after), locator.packed_bytes, locator.plain_bytes],
                "tail": [len(tail), digest.blake(tail).hex()],
            }, separators=(",", ":"),
        ).encode("ascii")  # fmt: skip
        total = sum(rows[index][0].packed_bytes for index in shipped) + len(tail)
        done = 0
        with _writing(output, force) as out:
            out.write(head(table))
            out.write(table)
            for index in shipped:
                packed = after.reader.packed(index)
                if digest.blake(packed) != rows[index][0].packed_digest:
                    raise DamagedArchive(f"frame {index} is not what the manifest says", path=new)
                out.write(packed)
                done += len(packed)
                progress("delta", done, total, "")
            out.write(tail)
        return DeltaReport(
            old=old, new=new, output=output, old_archive_id=before.archive_id, new_archive_id=after.archive_id,
            n_frames=len(rows), n_shipped_frames=len(shipped), delta_bytes=len(head(table)) + len(table) + total,
            archive_bytes=os.fstat(after.descriptor).st_size, elapsed_seconds=time.monotonic() - started,
        )  # fmt: skip


def apply(path: str, base: str, output: str, force: bool = False, progress: Progress = silent) -> ApplyReport:
    """Put a new archive together from a delta and the archive it was made against, byte for byte.

    Raises
    ------
    WrongBase : `base` is another archive than the delta was made against.
    DamagedArchive : the delta or the base is not what it says; nothing is written.
    NewerFormat, AlreadyExists, NoSpace
    """
    started = time.monotonic()
    _check_output(output)
    descriptor = open_descriptor(path)
    try:
        table, position = read_table(descriptor, path)
        tail = read_tail(descriptor, path, position, table)
        with open_archive(base) as before:
            if before.archive_id != table.old:
                raise WrongBase(
                    "the delta was made against another archive", path=base, expected=table.old,
                    found=before.archive_id, hint="apply it to that one, or ship the whole archive",
                )  # fmt: skip
            with _writing(output, force) as out:
                n_frames, size = _put_together(descriptor, path, position, table, tail, before, out, progress)
    finally:
        os.close(descriptor)
    return ApplyReport(
        delta=path, base=base, output=output, archive_id=table.new.hex(), archive_bytes=size, n_frames=n_frames,
        n_shipped_frames=len(table.shipped), elapsed_seconds=time.monotonic() - started,
    )  # fmt: skip


# --- putting together ------------------------------------------------------------------------------------------------


def _put_together(
    descriptor: int, path: str, position: int, table: Table, end: tuple[bytes, int, Manifest], base: Archive,
    out: BinaryIO, progress: Progress,
) -> tuple[int, int]:  # fmt: skip
    """Write the new archive: (its frames, its bytes). Every frame is held against the new archive's manifest, which
    `end` has: see `read_tail`."""
    tail, tail_at, manifest = end
    frames = manifest.frames
    known = {frame.packed_digest: index for index, frame in enumerate(base.manifest.frames)}
    total = sum(frame.packed_bytes for frame in frames)
    done = 0
    for index, frame in enumerate(frames):
        if index in table.shipped:
            if position + frame.packed_bytes > tail_at:
                raise DamagedArchive(f"the delta ends in frame {index}", path=path)
            packed, source = pagecache.read(descriptor, frame.packed_bytes, position), path
            position += frame.packed_bytes
        elif frame.packed_digest in known:
            packed, source = base.reader.packed(known[frame.packed_digest]), base.path
        else:
            raise DamagedArchive(f"frame {index} is neither in the delta nor in its base", path=path)
        if digest.blake(packed) != frame.packed_digest:
            raise DamagedArchive(f"frame {index} is damaged", path=source, hint="ship it again")
        out.write(packed)
        done += len(packed)
        progress("apply", done, total, "")
    if position != tail_at:
        raise DamagedArchive("there is more in the delta than it says", path=path, expected=f"{position} bytes before "
                             "the tail", found=tail_at)  # fmt: skip
    out.write(tail)
    return len(frames), total + len(tail)


def _check_output(output: str) -> None:
    if output == "-":
        raise UsageError("it is written to a file, not to a pipe", found=output, hint="give the name of a file with -o")


@contextmanager
def _writing(output: str, force: bool) -> Iterator[BinaryIO]:
    """A new file, with what goes wrong in writing it explained."""
    with new_file(output, force) as out:
        try:
            yield out
            out.flush()
        except OSError as error:
            raise explain_os_error(error, output) from None


# --- two archives ----------------------------------------------------------------------------------------------------


def _frames(old: Archive, new: Archive) -> Iterator[tuple[Frame, bool]]:
    """The new archive's frames, and whether the old one has their very bytes at the same place of the same files."""
    known = set(_places(old.manifest))
    places = _places(new.manifest)
    return ((frame, place in known) for frame, place in zip(new.manifest.frames, places, strict=True))


def _places(manifest: Manifest) -> Iterator[tuple[bytes, str, int]]:
    """What each frame is, and where: an environment has its files, not its frames, so equal ones are told apart.

    One that begins with a header names its place itself; of one in the middle of a file, file and offset are given.
    """
    for frame, rows in zip(manifest.frames, lay_out(manifest), strict=True):
        path = manifest.members[rows[0].member].path if rows[0].start else ""
        yield frame.packed_digest, path, rows[0].start


def _frames_with(archive: Archive, globs: Sequence[str]) -> set[int]:
    """The frames that hold files meant by globs."""
    found: set[int] = set()
    for glob in globs:
        here = {
            index for index in range(len(archive.manifest.frames))
            if any(fnmatch.fnmatchcase(path, glob) for path in archive.reader.place_of(index).paths)
        }  # fmt: skip
        if not here:
            raise UsageError("--ship means no file of the archive", path=archive.path, found=glob)
        found |= here
    return found


def _end_of_frames(archive: Archive) -> int:
    last = archive.manifest.frames[-1]
    return last.offset + last.packed_bytes


def _tail(archive: Archive) -> bytes:
    """What stands behind an archive's last frame."""
    end = _end_of_frames(archive)
    size = os.fstat(archive.descriptor).st_size
    try:
        tail = os.pread(archive.descriptor, size - end, end)
    except OSError as error:
        raise DamagedArchive(f"the archive cannot be read ({error.strerror})", path=archive.path) from None
    if len(tail) != size - end:
        raise DamagedArchive("the archive is cut off", path=archive.path)
    return tail


def _packages(old: Manifest, new: Manifest) -> dict[str, tuple[dict[str, str], ...]]:
    """Packages of conda and pip that were added, removed, or have another version."""
    before, after = ({(g.kind, g.name): g.version for g in m.groups if g.kind in _PACKAGES} for m in (old, new))
    return {
        "added": tuple(_row(key, new=after[key]) for key in after if key not in before),
        "removed": tuple(_row(key, old=before[key]) for key in before if key not in after),
        "changed": tuple(
            _row(key, old=before[key], new=after[key]) for key in after if key in before and before[key] != after[key]
        ),
    }


_PACKAGES = (GroupKind.CONDA, GroupKind.PIP)


def _row(key: tuple[GroupKind, str], **versions: str) -> dict[str, str]:
    return {"kind": str(key[0]), "name": key[1], **versions}


def _files(old: Manifest, new: Manifest) -> dict[str, int]:
    """How many paths were added, removed, or are another thing now."""
    before, after = ({m.path: m for m in manifest.members if m.kind is not Kind.DIRECTORY} for manifest in (old, new))
    shared = before.keys() & after.keys()
    return {
        "added": len(after.keys() - shared),
        "removed": len(before.keys() - shared),
        "changed": sum(_what(before[path]) != _what(after[path]) for path in shared),
        "unchanged": sum(_what(before[path]) == _what(after[path]) for path in shared),
    }


def _what(member: Member) -> tuple[object, ...]:
    return (member.kind, member.mode, member.n_bytes, member.target, member.digest)

"""plan -> read -> archive form -> digest -> compress -> write -> report."""

from __future__ import annotations

import errno
import os
import struct
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from fastpack import container, digest
from fastpack._place_py import SMALL_FILE, ascii_only, check_pad, content_mtime, mtime_key
from fastpack._version import VERSION
from fastpack.codec import Codec, by_file_name, by_name
from fastpack.environment import Environment
from fastpack.errors import Unrelocatable, UsageError
from fastpack.examine import examine
from fastpack.frames import Locator, trailer
from fastpack.fs import check_relative, explain_os_error, new_file
from fastpack.manifest import MANIFEST, Frame, Manifest, Member
from fastpack.model import MANIFEST_FORMAT, Kind, PackReport, Progress, Warned, silent
from fastpack.parallel import Scratch, default_threads, keep_memory, ordered_map
from fastpack.plan import Piece, Plan, Planned, PlannedFrame, in_archive, make_plan
from fastpack.reading import changed, open_source, read_into
from fastpack.relocation import kernel


@dataclass(frozen=True, slots=True)
class Options:
    """How to pack. `output` None means ``NAME.<format>`` in the working directory, ``-`` standard output."""

    output: str | None = None
    format: str = "infer"
    compress_level: int | None = None
    n_threads: int = 0  # 0, -1: all cores
    arcroot: str = ""
    dest_prefix: str | None = None
    force: bool = False
    ignore_missing_files: bool = False
    ignore_editable_packages: bool = False
    verify_source: bool = False
    prefix_is_unique: bool = False
    strict: bool = False
    pad: tuple[str, ...] = ()  # rules, see with_pad
    external_links: str = "warn"


def pack(env: Environment, options: Options, progress: Progress = silent) -> PackReport:
    """Pack an environment into one archive.

    The output appears under its name when it is whole, and not at all otherwise. Packing the same environment again
    gives the same bytes, whatever the number of threads.

    Raises
    ------
    FastpackError : see errors.py; nothing is left behind.
    """
    started = time.monotonic()
    keep_memory()
    codec, output = _output(env, options)
    level = codec.default_level if options.compress_level is None else options.compress_level
    if level not in codec.levels:
        raise UsageError(
            f"no such compression level for {codec.name}",
            expected=f"{codec.levels.start} to {codec.levels.stop - 1}",
            found=level,
        )
    arcroot = options.arcroot.strip("/")
    if arcroot and (why := check_relative(arcroot)):
        raise UsageError(f"--arcroot has {why}", found=options.arcroot)
    dest_prefix = _check_destination(options.dest_prefix)
    if (rule := check_pad(options.pad)) is not None:
        raise UsageError("no such padding", expected="conda, slash, or GLOB=slash", found=rule)
    threads = options.n_threads if options.n_threads > 0 else default_threads()
    total = sum(file.n_bytes for file in env)
    seen = 0

    def scanned(n_bytes: int, group: str) -> None:
        nonlocal seen
        seen += n_bytes
        progress("scan", seen, total, group)

    examination = examine(
        env,
        threads=threads,
        verify_source=options.verify_source,
        prefix_is_unique=options.prefix_is_unique,
        progress=scanned,
    )
    plan = make_plan(
        env,
        examination,
        threads=threads,
        arcroot=arcroot,
        dest_prefix=dest_prefix,
        pad=options.pad,
        strict=options.strict,
        external_links=options.external_links,
        ignore_missing=options.ignore_missing_files,
        ignore_editable=options.ignore_editable_packages,
    )
    not_relocated = [member for member in plan.members if member.not_relocated]
    if options.strict and not_relocated:
        raise Unrelocatable(
            f"{len(not_relocated)} members depend on the source prefix; the first: {not_relocated[0].not_relocated}",
            path=not_relocated[0].path,
            hint="leave them out with --exclude, or pack without --strict",
        )
    builder = _Builder(plan, codec, level, examination.prefixes.plain)
    with _opened(output, options.force) as out:
        archive_id, archive_bytes, frames, members, n_naming = _write(
            plan, builder, codec, level, threads, out, progress
        )
    return _report(plan, codec, output, archive_id, archive_bytes, frames, members, examination.pyc_counts,
                   n_naming, tuple(os.fsdecode(p) for p in examination.prefixes.plain),
                   time.monotonic() - started)  # fmt: skip


# --- checks ----------------------------------------------------------------------------------------------------------


def _output(env: Environment, options: Options) -> tuple[Codec, str]:
    output = options.output
    if options.format not in ("infer", ""):
        codec = by_name(options.format)
    elif output is None or output == "-":
        codec = by_name("tar.zst")
    else:
        codec = by_file_name(output)
    if output is None:
        output = env.name + codec.suffix
    if output == "-":
        return codec, output
    output = os.path.abspath(output)
    inside = [os.path.realpath(env.prefix), env.prefix]
    if any((os.path.realpath(os.path.dirname(output)) + "/").startswith(prefix + "/") for prefix in inside):
        raise UsageError("the output would lie in the environment itself", path=output, hint="write it elsewhere")
    if not os.path.isdir(os.path.dirname(output)):
        raise UsageError("the output's directory is not there", path=os.path.dirname(output), hint="make it first")
    return codec, output


def _check_destination(dest_prefix: str | None) -> str | None:
    if dest_prefix is None:
        return None
    if not dest_prefix.startswith("/") or "\n" in dest_prefix or not dest_prefix.strip("/"):
        raise UsageError("--dest-prefix is no absolute path below /", found=dest_prefix)
    return os.path.normpath(dest_prefix)


@contextmanager
def _opened(output: str, force: bool) -> Iterator[BinaryIO]:
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


# --- frames ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Built:
    """A frame ready to be written, and what was learnt of the members in it."""

    packed: bytes
    plain_bytes: int
    digest: bytes
    packed_digest: bytes
    slices: dict[int, list[bytes]]  # member -> digests of the slices in this frame
    mtimes: dict[int, int]
    source_bytes: int
    n_naming: int  # .pyc files that name the source prefix (until their co_filename is normalised)


class _Builder:
    """Builds frames: may run in several threads, for frames in the plan's order.

    A ``.pyc`` that stays valid names its source's mtime, which follows from the source's bytes. The source comes
    earlier in the archive, as a rule, so its time is mostly known; where it is not yet, the source is read for it.
    """

    def __init__(self, plan: Plan, codec: Codec, level: int, prefixes: tuple[bytes, ...]) -> None:
        self._plan = plan
        self._codec = codec
        self._level = level
        self._prefixes = prefixes
        self._mtimes: dict[str, int] = {}
        self._scratch = Scratch()
        self._index = {member.path: index for index, member in enumerate(plan.members)}

    def build(self, frame: PlannedFrame) -> _Built:
        """Read, bring into archive form, hash and compress one frame, all in one buffer."""
        members = [self._plan.members[piece.member] for piece in frame.pieces]
        lengths = [self._lengths(member, piece) for member, piece in zip(members, frame.pieces, strict=True)]
        plain = self._scratch.view(sum(map(sum, lengths)))
        hashed: list[bytes] = []
        slices: dict[int, list[bytes]] = {}
        mtimes: dict[int, int] = {}
        position = source_bytes = n_naming = 0
        for member, piece, (n_header, n_data, n_padding) in zip(members, frame.pieces, lengths, strict=True):
            data = plain[position + n_header : position + n_header + n_data]
            self._read_into(member, piece, data)
            found = digest.slice_digests(data) if member.kind is Kind.FILE else []
            if n_header:
                mtime = mtimes[piece.member] = self._mtime(member, piece, data, found)
                self._mtimes[member.path] = mtime
                header = _archive_member(member, mtime, b"", 0).header(self._plan.arcroot)
                plain[position : position + n_header] = header
                hashed.append(header)
            hashed += found
            slices[piece.member] = found
            source_bytes += n_data
            n_naming += member.is_pyc and bool(kernel.find(data, self._prefixes))
            position += n_header + n_data + n_padding
            plain[position - n_padding : position] = bytes(n_padding)
        packed = self._codec.compress(plain, self._level)
        return _Built(
            packed,
            len(plain),
            digest.frame_digest(hashed),
            digest.blake(packed),
            slices,
            mtimes,
            source_bytes,
            n_naming,
        )

    def _lengths(self, member: Planned, piece: Piece) -> tuple[int, int, int]:
        """Bytes of header, data and padding that a piece has in its frame."""
        root = self._plan.arcroot + "/" if self._plan.arcroot else ""
        target = root + member.target if member.kind is Kind.HARDLINK else member.target
        n_header = container.header_bytes(member.kind, root + member.path, target) if piece.start == 0 else 0
        if member.kind is not Kind.FILE:
            return n_header, 0, 0
        ends = piece.stop == member.n_bytes
        return n_header, piece.stop - piece.start, container.padding(member.n_bytes) if ends else 0

    def _read_into(self, member: Planned, piece: Piece, data: memoryview) -> None:
        """Fill a buffer with a piece of a member as it lies in the archive."""
        if member.kind is not Kind.FILE:
            return
        prefix = self._plan.environment.prefix
        if member.source is None:
            data[:] = memoryview(member.content)[piece.start : piece.stop]
        elif not member.form.edits and not member.placing:
            read_into(prefix, member.source, data, piece.start)
        else:
            with open_source(prefix, member.source) as (_, pread):
                data[:] = in_archive(pread, member)(len(data), piece.start)
        planned = self._plan.placed.get(member.path, member.archived)
        if planned is not None and len(data) == planned.n_bytes and digest.sha256(data) != planned.sha256:
            # What relocations.json says of it was found in the planning pass.
            raise changed(os.path.join(prefix, member.path), "changed")
        if member.follows is not None:
            struct.pack_into("<I", data, 8, self._source_mtime(member.follows) & 0xFFFFFFFF)

    def _read(self, member: Planned, piece: Piece) -> memoryview:
        data = memoryview(bytearray(piece.stop - piece.start))
        self._read_into(member, piece, data)
        return data

    def _source_mtime(self, path: str) -> int:
        known = self._mtimes.get(path)
        if known is None:
            index = self._index[path]
            member = self._plan.members[index]
            piece = Piece(index, 0, min(member.n_bytes, SMALL_FILE))
            small = member.kind is Kind.FILE and member.n_bytes <= SMALL_FILE
            data = self._read(member, piece) if small else memoryview(b"")
            known = self._mtimes[path] = self._mtime(member, piece, data, digest.slice_digests(data))
        return known

    def _mtime(self, member: Planned, piece: Piece, data: memoryview, slices: list[bytes]) -> int:
        if member.mtime is not None:
            return member.mtime
        if member.kind is Kind.HARDLINK:
            original = self._plan.members[self._index[member.target]]
            first = Piece(piece.member, 0, original.n_bytes)
            again = self._read(original, first) if original.n_bytes <= SMALL_FILE else memoryview(b"")
            return self._mtime(original, first, again, digest.slice_digests(again) if again else [])
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


def _archive_member(member: Planned, mtime: int, file_digest: bytes, group: int) -> Member:
    return Member(
        member.kind, member.path, member.mode, mtime, member.n_bytes, member.target, file_digest, group,
        member.final_mode, member.verdict, member.not_relocated,
    )  # fmt: skip


# --- writing ---------------------------------------------------------------------------------------------------------


def _write(
    plan: Plan, builder: _Builder, codec: Codec, level: int, threads: int, out: BinaryIO, progress: Progress
) -> tuple[str, int, list[Frame], list[Member], int]:
    """Write the archive: frames in order, then the manifest and what leads to it."""
    frames: list[Frame] = []
    slices: dict[int, list[bytes]] = {}
    mtimes: dict[int, int] = {}
    offset = done = n_naming = 0
    total = plan.source_bytes
    try:
        for planned, built in zip(plan.frames, ordered_map(builder.build, plan.frames, threads), strict=True):
            out.write(built.packed)
            frames.append(Frame(offset, len(built.packed), built.plain_bytes, built.digest, built.packed_digest))
            offset += len(built.packed)
            for index, found in built.slices.items():
                slices.setdefault(index, []).extend(found)
            mtimes.update(built.mtimes)
            done += built.source_bytes
            n_naming += built.n_naming
            progress("pack", done, total, str(planned.group))
        groups = list(dict.fromkeys(member.group for member in plan.members))
        position = {group: index for index, group in enumerate(groups)}
        members = [
            _archive_member(
                member,
                mtimes[index],
                digest.file_digest(slices[index]) if member.kind is Kind.FILE else b"",
                position[member.group],
            )
            for index, member in enumerate(plan.members)
        ]
        manifest = Manifest(_header(plan, codec, level), plan.packages, tuple(groups), tuple(frames), tuple(members),
                            plan.left_out).to_bytes()  # fmt: skip
        archive_id = digest.blake(manifest)
        own = Member(Kind.FILE, MANIFEST, 0o644, content_mtime(archive_id), len(manifest))
        sizes = [(frame.packed_bytes, frame.plain_bytes) for frame in frames]
        locator = None
        for plain in (own.header(plan.arcroot), manifest, bytes(container.padding(len(manifest))) + container.END):
            packed = codec.compress(plain, level)
            out.write(packed)
            if plain is manifest:
                locator = Locator(MANIFEST_FORMAT, offset, len(packed), len(plain), archive_id)
            sizes.append((len(packed), len(plain)))
            offset += len(packed)
        assert locator is not None
        end = trailer(codec, locator, sizes)
        out.write(end)
        out.flush()
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise
        name = getattr(out, "name", None)
        raise explain_os_error(error, name if isinstance(name, str) else "standard output") from None
    return archive_id.hex(), offset + len(end), frames, members, n_naming


def _header(plan: Plan, codec: Codec, level: int) -> dict[str, object]:
    return {
        "format": MANIFEST_FORMAT,
        "fastpack": VERSION,
        "codec": codec.name,
        "level": level,
        "libraries": codec.versions(),
        "arcroot": plan.arcroot,
        "dest_prefix": plan.dest_prefix,
        "longest_prefix": plan.longest_prefix,
        "limited_by": plan.limited_by,
        "requires": plan.requires,
        "ascii_only": ascii_only(plan.relocated),
        "strict": plan.strict,
        "pad": list(plan.pad),
        "n_relocated_files": len(plan.relocated),
    }


def _report(
    plan: Plan, codec: Codec, output: str, archive_id: str, archive_bytes: int, frames: list[Frame],
    members: list[Member], pyc: Mapping[str, int], n_naming: int, prefixes: tuple[str, ...], elapsed: float,
) -> PackReport:  # fmt: skip
    kinds = Counter(member.kind for member in members)
    verdicts = Counter(member.verdict for member in members if member.verdict)
    relocated = {file.path for file in plan.relocated}
    verdicts.update(f"{m.verdict} with a prefix" for m in members if m.verdict and m.path in relocated)
    warnings = list(plan.warnings)
    if n_naming:
        warnings.append(
            Warned("pyc-prefix", None, f"{n_naming} .pyc files state the source prefix in their tracebacks' file names")
        )
    return PackReport(
        prefix=plan.environment.prefix,
        output=output,
        format=codec.name,
        archive_id=archive_id,
        n_files=kinds[Kind.FILE],
        n_directories=kinds[Kind.DIRECTORY],
        n_links=kinds[Kind.LINK],
        n_hardlinks=kinds[Kind.HARDLINK],
        n_relocated_files=len(plan.relocated),
        n_relocations=sum(len(file.items) for file in plan.relocated),
        n_frames=len(frames),
        n_packages=len(plan.packages),
        source_bytes=sum(file.n_bytes for file in plan.environment if file.kind is Kind.FILE),
        archive_bytes=archive_bytes,
        longest_prefix=plan.longest_prefix,
        prefixes=prefixes,
        verdicts=dict(sorted(verdicts.items())),
        pyc=dict(sorted({**pyc, "naming the source prefix": n_naming}.items())),
        left_out=dict(sorted(Counter(why.split(",")[0] for _, why in plan.left_out).items())),
        not_relocated=tuple(
            {"path": member.path, "why": member.not_relocated} for member in members if member.not_relocated
        ),
        limited=tuple({"path": f.path, "longest_prefix": f.room} for f in plan.relocated if f.room is not None),
        requires=plan.requires,
        elapsed_seconds=elapsed,
        warnings=tuple(warnings),
    )

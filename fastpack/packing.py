"""plan -> read -> archive form -> digest -> compress -> write -> report."""

from __future__ import annotations

import errno
import os
import stat
import time
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fastpack import again, digest
from fastpack import parcel as parcels
from fastpack._place_py import ascii_only, check_pad
from fastpack._version import VERSION
from fastpack.along import bring_along
from fastpack.base import Groups, by_group, compare, open_base
from fastpack.building import Builder, builder
from fastpack.cache import DEFAULT_BYTES, Cache
from fastpack.environment import Environment
from fastpack.errors import Unrelocatable, UsageError
from fastpack.examination import Examination
from fastpack.examine import examine
from fastpack.format import Format, Job, Tail, Writer
from fastpack.format_directory import Directory
from fastpack.format_tar import Parcel
from fastpack.format_zip import Zip
from fastpack.formats import by_file_name, by_name
from fastpack.fs import check_relative, explain_os_error
from fastpack.manifest import Frame, Manifest, file_lines, member_line
from fastpack.members import Members, as_table
from fastpack.model import MANIFEST_FORMAT, Group, Kind, PackManyReport, PackReport, Progress, Warned, silent
from fastpack.parallel import default_threads, keep_memory, ordered_map
from fastpack.plan import Plan, make_plan
from fastpack.pycs import PycPolicy
from fastpack.reader import Archive
from fastpack.rows import Member, Rows
from fastpack.stat_table import StatTable, open_table


@dataclass(frozen=True, slots=True)
class Options:
    """How to pack. `output` None means ``NAME.<format>`` in the working directory, ``-`` standard output.

    `verify_content` reads every file, also those that have not changed since an earlier pack read them; `verify_source`
    also holds managed ones against their sha256. `base` is an earlier archive whose frames are used again; None: the
    one that `force` replaces. `base_id`, `reuse_any` and `trust_base` are `open_base`'s. `cache` is a directory of
    frames, `cache_bytes` what it may have in the end. `further` are archives that this run made, see `pack_many`.
    """

    output: str | None = None
    format: str = "infer"
    compress_level: int | None = None
    n_threads: int = 0  # 0, -1: all cores
    arcroot: str = ""
    dest_prefix: str | None = None
    force: bool = False
    ignore_missing_files: bool = False  # conda-pack's word for on_missing=warn
    on_missing: str = "error"  # warn, ignore
    on_modified: str = "warn"  # error, ignore
    editable: str = "error"  # include, drop, ignore
    ignore_editable_packages: bool = False
    verify_source: bool = False
    verify_content: bool = False
    prefix_is_unique: bool = False
    strict: bool = False
    pad: tuple[str, ...] = ()  # rules, see with_pad
    external_links: str = "warn"
    pyc: str | None = None  # see PycPolicy; None: the format's
    base: str | None = None
    base_id: str | None = None
    reuse_any: bool = False
    trust_base: bool = False
    cache: str | None = None
    cache_bytes: int = DEFAULT_BYTES
    further: tuple[str, ...] = ()
    zip_symlinks: bool = False
    zip_64: bool = True
    parcel_name: str | None = None
    parcel_version: str | None = None
    parcel_distro: str | None = None
    parcel_root: str | None = None

    @property
    def missing(self) -> str:
        """What is done about missing files."""
        return "warn" if self.ignore_missing_files and self.on_missing == "error" else self.on_missing


def pack(env: Environment, options: Options, progress: Progress = silent) -> PackReport:
    """Pack an environment into one archive.

    The output appears under its name when it is whole, and not at all otherwise. Packing the same environment again
    gives the same bytes, whatever the number of threads.

    Raises
    ------
    FastpackError : see errors.py; nothing is left behind.
    """
    started = time.monotonic()
    format_, output = _output(env, options)
    source = _source(env, options, format_, output)
    if source is not None and options.force and not (options.verify_content or options.verify_source):
        keep_memory()
        report = again.proven(output, source, _threads(options), progress)
        if report is not None:
            return replace(report, elapsed_seconds=time.monotonic() - started)
    before = _stat_of(output) if options.force else None
    done = _pack(env, options, format_, output, output, progress)
    after = _stat_of(output)
    unchanged = before is not None and after is not None and os.path.samestat(before, after)
    report = _report(done, format_, output, unchanged, time.monotonic() - started)
    if source is not None and format_.codec is not None:
        _remember(output, source, done, report)
    return report


def _source(env: Environment, options: Options, format_: Format, output: str) -> str | None:
    """What decides about an archive that need not be made again where all of that is as it was; None: it is made."""
    named = options.base or options.base_id or options.reuse_any or options.cache
    outside = options.editable == "include" and not options.ignore_editable_packages
    if format_.codec is None or output == "-" or named or outside:
        return None
    level = _check_format(format_, options)
    asked = replace(
        options, output=None, n_threads=0, force=False, verify_content=False, trust_base=False, cache=None,
        cache_bytes=0, further=(),
    )  # fmt: skip
    return again.source_digest(env, (asked, format_.name, level, format_.versions()), output)


def _stat_of(output: str) -> os.stat_result | None:
    """What the system says of an output that is a regular file."""
    try:
        info = os.stat(output)
    except OSError:
        return None
    return info if output != "-" and stat.S_ISREG(info.st_mode) else None


def _remember(output: str, source: str, done: _Packed, report: PackReport) -> None:
    """Remember what an archive was made from; and, where nothing of it changes, what packing it again would report."""
    written, tail = done.written, done.written.tail
    info = _stat_of(output)
    if info is None or info.st_size != written.archive_bytes:  # another process has replaced it
        return
    frames = written.manifest.frames
    pieces = [again.Piece(frame.offset, frame.packed_bytes, frame.packed_digest.hex()) for frame in frames]
    packed_bytes = written.archive_bytes - tail.n_bytes
    pieces.append(again.Piece(packed_bytes, tail.n_bytes, tail.digest.hex()))
    groups = {"unchanged": tuple(str(group) for group in written.groups()), "changed": (), "new": (), "gone": ()}
    plain_bytes = sum(frame.plain_bytes for frame in frames)
    work = {**dict.fromkeys(written.work, 0), "reused": plain_bytes, "copied": packed_bytes}
    warnings = tuple(warning for warning in report.warnings if warning not in done.on_the_way)
    said = replace(report, unchanged=True, base=output, groups=groups, work=work, warnings=warnings)
    again.remember(output, info, source, pieces, said)


def pack_many(environments: Sequence[Environment], options: Options, progress: Progress = silent) -> PackManyReport:
    """Pack several environments into a directory, each as an archive of its own; what they share is compressed once.

    Parameters
    ----------
    options : those of each; `output` is the directory, which is made if it is not there.

    Raises
    ------
    FastpackError : the archives that were whole by then stay.
    """
    names = Counter(env.name for env in environments)
    for name, number in names.items():
        if number > 1:
            raise UsageError(f"{number} environments would have the same archive", found=name,
                             hint="pack them one by one, each with its own --output")  # fmt: skip
    folder = options.output
    if folder is None or folder == "-":
        raise UsageError("several environments are packed into a directory", found=folder, hint="give one with -o DIR/")
    format_ = by_name("tar.zst" if options.format in ("infer", "") else options.format)
    if isinstance(format_, Parcel):
        raise UsageError("parcels have names of their own", hint="pack them one by one")
    _check_format(format_, options)
    there = os.path.realpath(folder) + "/"
    if any(there.startswith(os.path.realpath(env.prefix) + "/") for env in environments):
        raise UsageError("the output would lie in the environment itself", path=folder, hint="write it elsewhere")
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise explain_os_error(error, folder) from None
    reports: list[PackReport] = []
    for env in environments:
        output = os.path.join(folder, env.name + format_.suffix)
        made = tuple(report.output for report in reports) if format_.codec is not None else ()
        one = replace(options, output=output, format=format_.name, further=made)
        reports.append(pack(env, one, progress))
    return PackManyReport(tuple(reports))


def manifest_of(env: Environment, like: Archive, progress: Progress = silent) -> tuple[Manifest, str, int]:
    """What an archive of an environment would say of itself, made as another one was.

    Frames that `like` does not have are compressed, and nothing is written.

    Returns
    -------
    The manifest, the archive's id, and the bytes that would stand behind the last frame.
    """
    header = like.manifest.header
    if header["codec"] != like.codec.name:
        raise UsageError("an environment is not compared with an archive of this format", path=like.path,
                         found=header["codec"], hint="compare it with a tar.zst")  # fmt: skip
    options = Options(
        compress_level=None if header["level"] == like.codec.default_level else header["level"],
        arcroot=header["arcroot"], dest_prefix=header["dest_prefix"], strict=header["strict"],
        pad=tuple(header["pad"]), ignore_missing_files=True, ignore_editable_packages=True, base=like.path,
    )  # fmt: skip
    written = _pack(env, options, by_name(like.codec.name), None, os.devnull, progress).written
    return written.manifest, written.archive_id, written.tail.n_bytes


@dataclass(frozen=True, slots=True)
class _Packed:
    """A pack that was made."""

    plan: Plan
    examination: Examination
    written: _Written
    base: str | None
    base_groups: Groups
    on_the_way: list[Warned]  # of base and cache


def _pack(
    env: Environment, options: Options, format_: Format, replaced: str | None, output: str, progress: Progress
) -> _Packed:
    """Everything but the report. `replaced` is what may be the base if none is named; `output` what is opened."""
    keep_memory()
    level = _check_format(format_, options)
    threads = _threads(options)
    replaced = replaced if options.force and replaced != "-" else None
    codec = format_.codec
    if codec is None and (options.base or options.base_id):
        raise UsageError("no frames are used again in this format", found=format_.name, hint="choose tar.zst or tar.gz")
    cache = None if options.cache is None or codec is None else Cache(options.cache, options.cache_bytes, codec, level)
    with open_base(
        options.base, replaced, codec, level, options.base_id, options.reuse_any, options.further, options.trust_base
    ) as base:
        examination, plan = _plan(env, options, format_, output, threads, progress)
        everything = options.verify_content or options.verify_source
        table = open_table(env.prefix, trusted=not everything and not (base.is_empty and cache is None))
        job = Job(plan, output, options.force, level, threads, options.zip_64, format_.has_frames)
        with (
            format_.open(job) as writer,
            builder(plan, writer.encode, examination.prefixes.plain, base, cache, table) as frames,
        ):
            written = _write(job, _header(plan, format_, level), frames, writer, table, progress)
        table.save()
        if cache is not None:
            cache.trim()
        on_the_way = [*base.warnings(), *(cache.warnings() if cache else [])]
        return _Packed(plan, examination, written, base.path, base.groups(), on_the_way)


def _threads(options: Options) -> int:
    return options.n_threads if options.n_threads > 0 else default_threads()


def _check_format(format_: Format, options: Options) -> int:
    """The level, if the format can be written and has it."""
    level = format_.default_level if options.compress_level is None else options.compress_level
    if options.compress_level is not None and level not in format_.levels:
        raise UsageError(
            f"no such compression level for {format_.name}",
            expected=f"{format_.levels.start} to {format_.levels.stop - 1}",
            found=level,
        )
    format_.check()
    return level


def _plan(
    env: Environment, options: Options, format_: Format, output: str, threads: int, progress: Progress
) -> tuple[Examination, Plan]:
    editable = "ignore" if options.ignore_editable_packages else options.editable
    if editable == "include":
        env = bring_along(env, None if output in ("-", os.devnull) else output)
    parcel = _parcel(env, options, format_)
    arcroot = options.arcroot.strip("/") if parcel is None else parcel.directory
    if arcroot and (why := check_relative(arcroot)):
        raise UsageError(f"--arcroot has {why}", found=options.arcroot)
    dest_prefix = _check_destination(options.dest_prefix if parcel is None else parcel.prefix)
    if options.pyc is not None and options.pyc not in PycPolicy.ALL:
        raise UsageError("no such kind of .pyc files", expected=", ".join(PycPolicy.ALL), found=options.pyc)
    if (rule := check_pad(options.pad)) is not None:
        raise UsageError("no such padding", expected="conda, slash, or GLOB=slash", found=rule)
    total = env.files.n_bytes
    seen = 0

    def scanned(n_bytes: int, group: str) -> None:
        nonlocal seen
        seen += n_bytes
        progress("scan", seen, total, group)

    examination = examine(
        env,
        threads=threads,
        verify_source=options.verify_source or options.on_modified == "error",
        prefix_is_unique=options.prefix_is_unique,
        pyc=options.pyc or format_.pyc,
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
        on_missing=options.missing,
        on_modified=options.on_modified,
        editable=editable,
        hard_links=format_.hard_links,
        symbolic_links=format_.symbolic_links,
        parcel=parcel,
    )
    not_relocated = [member for member in plan.members.others.values() if member.not_relocated]
    if options.strict and not_relocated:
        raise Unrelocatable(
            f"{len(not_relocated)} members depend on the source prefix; the first: {not_relocated[0].not_relocated}",
            path=not_relocated[0].path,
            hint="leave them out with --exclude, or pack without --strict",
        )
    return examination, plan


# --- checks ----------------------------------------------------------------------------------------------------------


def _output(env: Environment, options: Options) -> tuple[Format, str]:
    output = options.output
    if options.format not in ("infer", ""):
        format_ = by_name(options.format)
        # As conda-pack has it: what is called a parcel is one.
        if output is not None and output.endswith(".parcel") and format_.name != "parcel":
            if format_.name != "tar.gz":
                raise UsageError("a parcel is a tar.gz", path=output, found=format_.name, hint="--format parcel")
            format_ = by_name("parcel")
    elif output is None or output == "-":
        format_ = by_name("tar.zst")
    else:
        format_ = by_file_name(output)
    if output is None:
        parcel = _parcel(env, options, format_)
        output = env.name + format_.suffix if parcel is None else parcel.file_name
    if options.zip_symlinks and isinstance(format_, Zip):
        format_ = Zip(symbolic_links=True)
    inside = [os.path.realpath(env.prefix), env.prefix]
    cache = os.path.realpath(options.cache) if options.cache else ""
    if any((cache + "/").startswith(prefix + "/") for prefix in inside):
        raise UsageError("the cache would lie in the environment itself", path=options.cache, hint="keep it elsewhere")
    if output == "-":
        return format_, output
    output = os.path.abspath(output)
    places = (os.path.realpath(os.path.dirname(output)), os.path.realpath(output))
    if any((place + "/").startswith(prefix + "/") for place in places for prefix in inside):
        raise UsageError("the output would lie in the environment itself", path=output, hint="write it elsewhere")
    if isinstance(format_, Directory) and any((prefix + "/").startswith(places[1] + "/") for prefix in inside):
        raise UsageError("the environment lies in the directory to be made", path=output, hint="write it elsewhere")
    if not os.path.isdir(os.path.dirname(output)):
        raise UsageError("the output's directory is not there", path=os.path.dirname(output), hint="make it first")
    return format_, output


def _parcel(env: Environment, options: Options, format_: Format) -> parcels.Parcel | None:
    """What the environment is called as a parcel; None for another format."""
    given = (options.parcel_name, options.parcel_version, options.parcel_distro, options.parcel_root)
    if not isinstance(format_, Parcel):
        if any(given):
            raise UsageError("--parcel-name and the like are for parcels", found=format_.name, hint="--format parcel")
        return None
    if options.arcroot or options.dest_prefix:
        raise UsageError("a parcel's place follows from its name and version, not from --arcroot or --dest-prefix",
                         hint="choose it with --parcel-root, --parcel-name and --parcel-version")  # fmt: skip
    return parcels.make(env.name, *given)


def _check_destination(dest_prefix: str | None) -> str | None:
    if dest_prefix is None:
        return None
    if not dest_prefix.startswith("/") or "\n" in dest_prefix or not dest_prefix.strip("/"):
        raise UsageError("--dest-prefix is no absolute path below /", found=dest_prefix)
    return os.path.normpath(dest_prefix)


# --- writing ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Written:
    """What was written: the archive's id and size, its frames and members, and what it took. Sizes in bytes."""

    archive_id: str
    archive_bytes: int
    tail: Tail
    manifest: Manifest
    frame_groups: list[Group]
    n_naming: int  # .pyc files that name the source prefix
    work: dict[str, int]

    def groups(self) -> Groups:
        return by_group(self.frame_groups, self.manifest.frames)


def _write(
    job: Job, header: dict[str, object], builder: Builder, writer: Writer, table: StatTable, progress: Progress
) -> _Written:
    """Write the archive: frames in order, then the manifest and what leads to it."""
    plan = job.plan
    frames: list[Frame] = []
    rows, lines = Rows(), bytearray()
    groups = list(dict.fromkeys(frame.group for frame in plan.frames))
    position = {group: index for index, group in enumerate(groups)}
    slices = b""  # of the large member that is going on
    mtimes: list[int] = []
    offset = done = n_naming = 0
    work = dict.fromkeys(("read", "hashed", "compressed", "reused", "copied"), 0)
    total = plan.source_bytes
    try:
        for planned, built in zip(plan.frames, ordered_map(builder.build, plan.frames, job.threads), strict=True):
            writer.write(built.packed, built.rows)
            builder.release(built)
            frame = Frame(offset, len(built.packed), built.plain_bytes, built.digest, built.packed_digest)
            if not job.has_frames:  # the manifest then has those of the tar stream that there would be
                frame = Frame(offset, built.plain_bytes, built.plain_bytes, built.digest, built.digest)
            frames.append(frame)
            offset += frame.packed_bytes
            here = plan.members[planned.first : planned.last]
            if planned.start == 0:
                mtimes, slices = built.mtimes, b""
            found = built.slices
            if planned.stop is not None:
                slices += found[0]
                found = [slices]
            if planned.stop is None or planned.stop == here.sizes[0]:
                _add_rows(rows, lines, here, mtimes, found, position[planned.group])
                if built.was_read:
                    builder.learn(here, mtimes, built.naming, found)
            done += built.n_bytes
            if built.was_read:
                work["read"] += built.n_bytes
                work["hashed"] += built.plain_bytes
            work["reused" if built.reused else "compressed"] += built.plain_bytes
            work["copied"] += len(built.packed) if built.reused else 0
            n_naming += sum(built.naming)
            progress("pack", done, total, str(planned.group))
        stated = Manifest(header, plan.packages, tuple(groups), tuple(frames), rows, plan.left_out)
        stated = replace(stated, raw=stated.around(lines))
        archive_id = digest.blake(stated.raw)
        tail = writer.finish(stated, archive_id, [(frame.packed_bytes, frame.plain_bytes) for frame in frames])
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise
        raise explain_os_error(error, "standard output" if job.output == "-" else job.output) from None
    frame_groups = [planned.group for planned in plan.frames]
    total = offset + tail.n_bytes if tail.total is None else tail.total
    return _Written(archive_id.hex(), total, tail, stated, frame_groups, n_naming, work)


def _add_rows(
    rows: Rows, lines: bytearray, members: Members, mtimes: Sequence[int], slices: Sequence[bytes], group: int
) -> None:
    """Add the next members, all of one group, to the manifest's rows and lines: `slices` are their slices' digests."""
    digests = [found if len(found) <= digest.N_BYTES else digest.file_digest(found) for found in slices]
    # As they follow one another: files of which there is little to say, and others.
    start = 0
    for stop in [*members.others, len(members)]:
        if start < stop:
            run = slice(start, stop)
            paths, verdicts = members.paths[run], members.verdicts[run]
            modes, sizes, times = as_table(members.modes[run]), as_table(members.sizes[run]), array("q", mtimes[run])
            joined = b"".join(digests[run])
            rows.add_files(paths, modes, times, array("q", [group]) * len(paths), sizes, joined, verdicts)
            lines += file_lines(paths, modes, times, sizes, joined, verdicts, group)
        if stop < len(members):
            member = members[stop]
            row = Member(
                member.kind, member.path, member.mode, mtimes[stop], member.n_bytes, member.target, digests[stop],
                group, member.final_mode, member.verdict, member.not_relocated,
            )  # fmt: skip
            rows.add(row)
            lines += member_line(row).encode("ascii")
        start = stop + 1


def _header(plan: Plan, format_: Format, level: int) -> dict[str, object]:
    return {
        "format": MANIFEST_FORMAT,
        "fastpack": VERSION,
        "codec": format_.name,
        "level": level,
        "libraries": format_.versions(),
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


def _report(done: _Packed, format_: Format, output: str, unchanged: bool, elapsed: float) -> PackReport:
    plan, examination, written = done.plan, done.examination, done.written
    members, n_naming = plan.members, written.n_naming
    others = members.others.values()
    kinds = Counter(member.kind for member in others)
    kinds[Kind.FILE] += len(members) - len(others)
    verdicts = Counter(filter(None, members.verdicts))
    relocated = {file.path for file in plan.relocated}
    verdicts.update(f"{m.verdict} with a prefix" for m in others if m.verdict and m.path in relocated)
    warnings = [*plan.warnings, *done.on_the_way]
    if n_naming:
        why = "compiled by an unknown Python, or in the code's own text"
        warnings.append(Warned("pyc-prefix", None, f"{n_naming} .pyc files name the source prefix: {why}"))
    return PackReport(
        prefix=plan.environment.prefix,
        output=output,
        format=format_.name,
        archive_id=written.archive_id,
        n_files=kinds[Kind.FILE],
        n_directories=kinds[Kind.DIRECTORY],
        n_links=kinds[Kind.LINK],
        n_hardlinks=kinds[Kind.HARDLINK],
        n_relocated_files=len(plan.relocated),
        n_relocations=sum(len(file.items) for file in plan.relocated),
        n_frames=len(written.manifest.frames),
        n_packages=len(plan.packages),
        source_bytes=plan.environment.files.n_bytes,
        archive_bytes=written.archive_bytes if (info := _stat_of(output)) is None else info.st_size,
        unchanged=unchanged,
        base=done.base,
        groups=compare(done.base_groups, written.groups()),
        work=written.work,
        longest_prefix=plan.longest_prefix,
        prefixes=tuple(os.fsdecode(prefix) for prefix in examination.prefixes.plain),
        verdicts=dict(sorted(verdicts.items())),
        pyc=dict(sorted({**examination.pyc_counts, "naming the source prefix": n_naming}.items())),
        left_out=dict(sorted(Counter(why.split(",")[0] for _, why in plan.left_out).items())),
        not_relocated=tuple(
            {"path": member.path, "why": member.not_relocated} for member in others if member.not_relocated
        ),
        limited=tuple({"path": f.path, "longest_prefix": f.room} for f in plan.relocated if f.room is not None),
        requires=plan.requires,
        elapsed_seconds=elapsed,
        warnings=tuple(warnings),
    )

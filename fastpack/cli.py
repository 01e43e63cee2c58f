"""The command line: options -> calls, and what people read of the reports."""

from __future__ import annotations

import io
import os
import re
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from fastpack._version import VERSION
from fastpack.console import Console, begin, fail, run, size
from fastpack.kinds import KINDS

if TYPE_CHECKING:
    from fastpack.model import (
        ApplyReport,
        BenchReport,
        CacheReport,
        CatReport,
        DeltaReport,
        DiffReport,
        DiskUsageReport,
        InspectReport,
        ListReport,
        PackManyReport,
        PackReport,
        RelocateReport,
        SharedReport,
        StatusReport,
        UnpackReport,
        VerifyReport,
    )


class _Filters(click.Command):
    """Keeps --exclude, --include and --slim in the order in which they were given, across the options."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ordered: list[tuple[str, str]] = []
        for position, argument in enumerate(args):
            if argument == "--":
                break
            for kind in ("exclude", "include", "slim"):
                if argument == f"--{kind}" and position + 1 < len(args):
                    ordered.append((kind, args[position + 1]))
                elif argument.startswith(f"--{kind}="):
                    ordered.append((kind, argument.partition("=")[2]))
        ctx.obj = ordered
        return super().parse_args(ctx, args)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="fastpack", message="%(prog)s %(version)s")
def cli() -> None:
    """Pack a conda environment into one archive, and run it on a machine without conda, network or root."""


_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
_quiet = click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors.")
_threads = click.option(
    "--n-threads", "-j", type=click.IntRange(min=-1), default=0, metavar="N", help="Threads (default: all cores)."
)


_pad = click.option(
    "--pad", multiple=True, metavar="RULE",
    help="How managed binaries are padded: conda, slash, or GLOB=slash; the last that matches counts.",
)  # fmt: skip
_strict = click.option(
    "--strict", is_flag=True, help="Refuse if a file depends on the source prefix and cannot be relocated."
)
_links = click.option(
    "--external-links", type=click.Choice(["warn", "keep", "error"]),
    help="Links that lead out of the environment: said, kept in silence, or refused.",
)  # fmt: skip
_ignore_requirements = click.option(
    "--ignore-requirements", is_flag=True, help="Only warn if platform, architecture or glibc do not agree."
)


@cli.command(cls=_Filters)
@click.option(
    "--prefix", "-p", multiple=True, metavar="DIR", help="The environment's directory; several of them with -o DIR/."
)
@click.option("--name", "-n", metavar="NAME", help="The environment's name.")
@click.option("--output", "-o", metavar="FILE", help="The archive (default: NAME.tar.zst here); - for standard output.")
@click.option(
    "--format", "format_", default="infer", metavar="FORMAT",
    help="tar.zst, tar.gz, tar.bz2, tar.xz, tar, zip, parcel, squashfs or no-archive (a directory); else by the name.",
)  # fmt: skip
@click.option(
    "--compress-level", type=int, metavar="N",
    help="zstd 1-22 (default: by the data, about 3), gzip, zip, squashfs 0-9 (4), bzip2 1-9 (9), xz 0-9 (6).",
)  # fmt: skip
@_threads
@click.option("--arcroot", default="", metavar="DIR", help="A directory to put before every name in the archive.")
@click.option(
    "--dest-prefix", "-d", metavar="DIR", help="Place everything for this prefix; leaves out bin/conda-unpack."
)
@click.option("--parcel-root", metavar="DIR", help="Where parcels lie on the cluster (/opt/cloudera/parcels).")
@click.option("--parcel-name", metavar="NAME", help="The parcel's name, without dashes (default: the environment's).")
@click.option("--parcel-version", metavar="VERSION", help="The parcel's version (default: today, as YYYY.MM.DD).")
@click.option("--parcel-distro", metavar="DISTRO", help="The parcel's distribution, without dashes (el7).")
@click.option("--zip-symlinks", is_flag=True, help="Store links in a zip file, not copies of what they lead to.")
@click.option("--no-zip-64", is_flag=True, help="Refuse what needs ZIP64 extensions.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Leave out files that match; * matches / too.")
@click.option("--include", multiple=True, metavar="GLOB", help="Take back excluded files; in the order given.")
@click.option(
    "--slim", multiple=True, type=click.Choice(list(KINDS)), help="Leave out files of a kind; fastpack du counts them."
)
@click.option("--force", "-f", is_flag=True, help="Replace an output that is there; it is the base if none is named.")
@click.option("--base", metavar="ARCHIVE", help="Copy what did not change from an earlier archive.")
@click.option("--base-id", metavar="ID", help="Refuse any base but the archive with this id.")
@click.option("--reuse-any", is_flag=True, help="Copy from a base of another level or other libraries too.")
@click.option("--trust-base", is_flag=True, help="Copy frames of the base unread; shared where the file system can.")
@click.option("--cache", envvar="FASTPACK_CACHE", metavar="DIR", help="Keep compressed frames for later packs there.")
@click.option("--cache-size", default="20G", show_default=True, metavar="SIZE", help="How large the cache may be.")
@click.option(
    "--on-missing", type=click.Choice(["error", "warn", "ignore"]), default="error", show_default=True,
    help="Files of packages that are not there.",
)  # fmt: skip
@click.option("--ignore-missing-files", is_flag=True, help="The same as --on-missing warn.")
@click.option(
    "--on-modified", type=click.Choice(["error", "warn", "ignore"]), default="warn", show_default=True,
    help="Files of packages that were changed since they were installed; they are packed as they are.",
)  # fmt: skip
@click.option(
    "--editable", type=click.Choice(["error", "include", "drop", "ignore"]), default="error", show_default=True,
    help="Packages installed in place (pip install -e): with their code (include), left out (drop), as is (ignore).",
)  # fmt: skip
@click.option("--ignore-editable-packages", is_flag=True, help="The same as --editable ignore.")
@click.option("--verify-source", is_flag=True, help="Hold every managed file against its sha256, also large ones.")
@click.option("--verify-content", is_flag=True, help="Read every file, also those unchanged since an earlier pack.")
@click.option(
    "--pyc", type=click.Choice(["timestamp", "checked-hash", "drop"]),
    help="How .pyc files know their source: by its time (default), by its hash (default for zip); or none at all.",
)  # fmt: skip
@click.option("--prefix-is-unique", is_flag=True, help="Replace mentions of a prefix like /usr/local in any file.")
@_pad
@_links
@_strict
@_quiet
@_json
@click.pass_context
def pack(
    context: click.Context, prefix: tuple[str, ...], name: str | None, output: str | None, format_: str,
    compress_level: int | None, n_threads: int, arcroot: str, dest_prefix: str | None, exclude: tuple[str, ...],
    include: tuple[str, ...], slim: tuple[str, ...], force: bool, base: str | None, base_id: str | None,
    reuse_any: bool, trust_base: bool, cache: str | None, cache_size: str, ignore_missing_files: bool,
    ignore_editable_packages: bool,
    verify_source: bool, verify_content: bool, pyc: str | None, prefix_is_unique: bool, pad: tuple[str, ...],
    external_links: str | None, strict: bool, parcel_root: str | None, parcel_name: str | None,
    parcel_version: str | None, parcel_distro: str | None, zip_symlinks: bool, no_zip_64: bool, on_missing: str,
    on_modified: str, editable: str, quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Pack an environment into one archive."""
    console = Console("pack", quiet, as_json, json_to_stderr=output == "-")

    def work() -> PackReport | PackManyReport:
        from fastpack import packing  # noqa: PLC0415 (numpy and the rest are for this command alone)
        from fastpack.cache import parse_size  # noqa: PLC0415
        from fastpack.environment import Environment  # noqa: PLC0415
        from fastpack.errors import UsageError  # noqa: PLC0415

        if prefix and name:
            raise UsageError("give a name or a prefix, not both", found=f"{name} and {prefix[0]}")
        if prefix:
            environments = [Environment.from_prefix(one) for one in prefix]
        else:
            environments = [Environment.from_name(name) if name else Environment.from_default()]
        for kind, pattern in context.obj:
            environments = [getattr(e, kind)(pattern) for e in environments]
        options = packing.Options(
            output=output, format=format_, compress_level=compress_level, n_threads=n_threads, arcroot=arcroot,
            dest_prefix=dest_prefix, force=force, ignore_missing_files=ignore_missing_files,
            ignore_editable_packages=ignore_editable_packages, verify_source=verify_source,
            verify_content=verify_content,
            prefix_is_unique=prefix_is_unique, strict=strict, pad=pad, external_links=external_links or "warn",
            base=base, base_id=base_id, reuse_any=reuse_any, trust_base=trust_base, cache=cache or None,
            cache_bytes=parse_size(cache_size),
            zip_symlinks=zip_symlinks, zip_64=not no_zip_64, parcel_root=parcel_root, parcel_name=parcel_name,
            parcel_version=parcel_version, parcel_distro=parcel_distro, on_missing=on_missing, on_modified=on_modified,
            editable=editable, pyc=pyc,
        )  # fmt: skip
        if len(environments) > 1:
            return packing.pack_many(environments, options, console.progress)
        return packing.pack(environments[0], options, console.progress)

    def describe(report: Any) -> None:
        if (archives := getattr(report, "archives", None)) is not None:
            for one in archives:
                describe_one(one)
        else:
            describe_one(report)

    def describe_one(report: PackReport) -> None:
        ratio = report.archive_bytes / report.source_bytes if report.source_bytes else 1
        console.say(
            f"{report.output}: {size(report.archive_bytes)}, {ratio:.0%} of {size(report.source_bytes)}; "
            f"{report.n_files + report.n_hardlinks} files of {report.n_packages} packages, "
            f"{report.n_relocated_files} with the prefix; {report.elapsed_seconds:.1f} s"
        )
        if report.unchanged:
            console.say("unchanged: it was there already, byte for byte")
        elif report.base is not None:
            groups = ", ".join(f"{len(names)} {what}" for what, names in report.groups.items() if names)
            reused = report.work["reused"]
            console.say(
                f"from {report.base}: {size(reused)} of {size(reused + report.work['compressed'])}; groups: {groups}"
            )
        if report.longest_prefix is not None:
            console.say(f"it can be unpacked at any path of up to {report.longest_prefix} bytes")
        console.say_rows("not relocated", [f"{row['path']}: {row['why']}" for row in report.not_relocated])

    run(console, work, describe)


@cli.command()
@click.argument("archive")
@click.option("--prefix", "-p", required=True, metavar="DIR", help="The directory to unpack to; also the new prefix.")
@click.option("--dest-prefix", metavar="DIR", help="Place files for this prefix instead (an image's root).")
@click.option("--force", "-f", is_flag=True, help="Replace an environment of fastpack's, or add to another directory.")
@_pad
@_links
@_strict
@_ignore_requirements
@click.option("--durable", is_flag=True, help="Return when all is on the disk: a power cut leaves nothing half-way.")
@click.option("--if-changed", is_flag=True, help="Do nothing where this very archive is already unpacked.")
@click.option("--base", metavar="DIR", help="With a delta: the environment of the old archive (default: the target's).")
@click.option("--in-place", is_flag=True, help="Exchange it at once for the environment that is there.")
@click.option(
    "--hardlink", is_flag=True,
    help="With a delta, without reflinks: further names for files that did not change, instead of copies.",
)  # fmt: skip
@click.option(
    "--keep",
    type=int,
    default=1,
    show_default=True,
    metavar="N",
    help="With --in-place: keep the last N replaced ones, as PREFIX.old-1 (the newest) and so on.",
)
@click.option("--verify-content", is_flag=True, help="With a delta: read every file of the base, also untouched ones.")
@click.option(
    "--on-modified", type=click.Choice(["error", "replace"]), default="error", show_default=True,
    help="With a delta: files of the base that were changed by hand are refused, or replaced by what the delta has.",
)  # fmt: skip
@_threads
@_quiet
@_json
def unpack(
    archive: str, prefix: str, dest_prefix: str | None, force: bool, pad: tuple[str, ...], external_links: str | None,
    strict: bool, ignore_requirements: bool, durable: bool, if_changed: bool, base: str | None, in_place: bool,
    hardlink: bool, keep: int, verify_content: bool, on_modified: str, n_threads: int, quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Unpack ARCHIVE (- for standard input, or a delta) into a directory, relocated to it."""
    console = Console("unpack", quiet, as_json)

    def work() -> UnpackReport:
        from fastpack import unpacking  # noqa: PLC0415
        from fastpack.errors import UsageError  # noqa: PLC0415

        asked = click.get_current_context().get_parameter_source("keep")
        if asked is not click.core.ParameterSource.DEFAULT and not in_place:
            raise UsageError("--keep is for environments that --in-place replaces", found=f"--keep {keep}")
        options = unpacking.Options(
            dest_prefix, force, n_threads, pad, strict, external_links, ignore_requirements, durable, if_changed,
            base, in_place, keep, hardlink, verify_content, on_modified,
        )  # fmt: skip
        return unpacking.unpack(archive, prefix, options, console.progress)

    def describe(report: UnpackReport) -> None:
        if report.unchanged:
            console.say(f"{report.destination}: is this archive already")
            return
        console.say(
            f"{report.destination}: {report.n_files} files, {size(report.written_bytes)}, "
            f"{report.n_relocated_files} with the prefix; {report.elapsed_seconds:.1f} s"
        )
        if report.n_shared_files:
            console.say(f"{report.n_shared_files} files share their blocks with the base")

    run(console, work, describe)


@cli.command()
@click.argument("prefix")
@click.option("--dest-prefix", metavar="DIR", help="The prefix to put into the files, if not PREFIX itself.")
@click.option(
    "--overlay",
    metavar="DIR",
    help="Write what changes into this new directory; files that came since are not looked at.",
)
@_pad
@_strict
@_ignore_requirements
@_threads
@_quiet
@_json
def relocate(
    prefix: str, dest_prefix: str | None, overlay: str | None, pad: tuple[str, ...], strict: bool,
    ignore_requirements: bool, n_threads: int, quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Put an environment's own PREFIX into its files, after it was moved or unpacked by tar; any number of times."""
    console = Console("relocate", quiet, as_json)

    def work() -> RelocateReport:
        from fastpack import relocating  # noqa: PLC0415

        return relocating.relocate(
            prefix, dest_prefix=dest_prefix, n_threads=n_threads, pad=pad or None, strict=strict,
            ignore_requirements=ignore_requirements, overlay=overlay, progress=console.progress,
        )  # fmt: skip

    def describe(report: RelocateReport) -> None:
        console.say(
            f"{report.root}: {report.n_written} files relocated, {report.n_unchanged} right already, "
            f"{report.n_added} new ones recorded; {report.elapsed_seconds:.1f} s"
        )
        console.say_rows("left as it is, since it was changed or removed after unpacking", report.left)

    run(console, work, describe)


@cli.command()
@click.argument("target", metavar="ARCHIVE|PREFIX")
@click.option("--deep", is_flag=True, help="Rebuild the packages' files and hold them against their own sha256.")
@_threads
@_quiet
@_json
def verify(target: str, deep: bool, n_threads: int, quiet: bool, as_json: bool) -> None:
    """Hold an archive, or an unpacked environment, against what its manifest says."""
    console = Console("verify", quiet, as_json)

    def work() -> VerifyReport:
        from fastpack import verifying  # noqa: PLC0415

        return verifying.verify(target, deep=deep, n_threads=n_threads, progress=console.progress)

    def describe(report: VerifyReport) -> None:
        console.say(
            f"{report.target}: {report.n_files} files, {size(report.n_bytes)}, {len(report.problems)} problems"
            + (f", {report.n_proven} files rebuilt as their packages have them" if report.deep else "")
            + f"; {report.elapsed_seconds:.1f} s"
        )
        for group in report.groups:
            states = {key: value for key, value in group.items() if key not in ("kind", "name", "version")}
            if set(states) - {"intact", "relocated"}:
                counts = ", ".join(f"{value} {key}" for key, value in states.items())
                console.say(f"  {group['kind']} {group['name']} {group['version']}".rstrip() + f": {counts}")
        console.say_rows("problem", [f"{row['path'] or report.target}: {row['what']}" for row in report.problems])
        console.say_rows("extra", report.extra)

    run(console, work, describe)


@cli.command()
@click.argument("archive")
@_json
def inspect(archive: str, as_json: bool) -> None:
    """Say what ARCHIVE holds: packages, groups, relocations, requirements."""
    console = Console("inspect", False, as_json)

    def work() -> InspectReport:
        from fastpack import inspecting  # noqa: PLC0415

        return inspecting.inspect(archive)

    def describe(report: InspectReport) -> None:
        ratio = report.packed_bytes / report.plain_bytes if report.plain_bytes else 1
        needs = report.requires
        glibc = f", glibc {needs['glibc']} ({needs.get('glibc_file')})" if needs.get("glibc") else ""
        limit = "of any length" if report.longest_prefix is None else f"of up to {report.longest_prefix} bytes"
        level = "adaptive" if (report.format, report.level) == ("tar.zst", 0) else report.level
        console.show(f"{report.archive}: {report.format}, level {level}, by fastpack {report.fastpack}")
        console.show(f"archive id: {report.archive_id}")
        console.show(
            f"{report.n_files} files, {report.n_hardlinks} hard links, {report.n_links} symbolic links,"
            f" {report.n_directories} directories in {report.n_frames} frames;"
            f" {size(report.packed_bytes)}, {ratio:.0%} of {size(report.plain_bytes)}"
        )
        console.show(f"requires: {needs.get('platform')} {needs.get('arch')}{glibc}")
        if report.dest_prefix is not None:
            console.show(f"placed for {report.dest_prefix}")
        by = f" ({report.limited_by} limits it)" if report.limited_by else ""
        console.show(f"prefixes {limit}{by}" + (", of ASCII characters" if report.ascii_only else ""))
        kinds = ", ".join(f"{count} {kind}" for kind, count in report.relocations.items()) or "none"
        console.show(f"relocations in {report.n_relocated_files} files: {kinds}")
        verdicts = ", ".join(f"{count} {verdict}" for verdict, count in report.verdicts.items()) or "none"
        console.show(f"managed files: {verdicts}")
        if report.left_out:
            console.show("left out: " + ", ".join(f"{count} {why}" for why, count in report.left_out.items()))
        for row in report.not_relocated:
            console.show(f"not relocated: {row['path']}: {row['why']}")
        for limited in report.limited:
            console.show(f"relocated only to up to {limited['longest_prefix']} bytes: {limited['path']}")
        console.show(f"{'packed':>10} {'plain':>10} {'ratio':>6} {'files':>7}  group")
        for group in sorted(report.groups, key=lambda row: -int(str(row["packed_bytes"]))):
            packed, plain = int(str(group["packed_bytes"])), int(str(group["plain_bytes"]))
            share = f"{packed / plain:.0%}" if plain else ""
            name = f"{group['kind']} {group['name']} {group['version']}".strip()
            console.show(f"{size(packed):>10} {size(plain):>10} {share:>6} {group['n_files']!s:>7}  {name}")

    run(console, work, describe)


@cli.command()
@click.argument("target", metavar="PREFIX|ARCHIVE")
@click.option("--top", type=int, default=20, show_default=True, metavar="N", help="How many packages; 0 for all.")
@_json
def du(target: str, top: int, as_json: bool) -> None:
    """Say what makes an environment, or an archive, so big: per package, and per kind of file (see pack --slim)."""
    console = Console("du", False, as_json)

    def work() -> DiskUsageReport:
        from fastpack import sizes  # noqa: PLC0415

        return sizes.disk_usage(target)

    def describe(report: DiskUsageReport) -> None:
        console.show(f"{report.target}: {size(report.n_bytes)} in {report.n_files} files")
        for kind, row in report.kinds.items():
            console.show(f"{size(row['n_bytes']):>10} {row['n_files']:>7}  {kind}: {KINDS.get(kind, 'all else')}")
        if report.debug_section_bytes:
            console.show(f"{size(report.debug_section_bytes):>10}          debug sections inside of binaries, in these")
        console.show(f"{'size':>10} {'files':>7}  package")
        shown = report.packages[: top or None]
        for package in shown:
            name = f"{package['kind']} {package['name']} {package['version']}".rstrip()
            kinds = sorted(package["kinds"].items(), key=lambda item: -item[1])
            inside = ", ".join(f"{size(n_bytes)} {kind}" for kind, n_bytes in kinds if kind != "other")
            console.show(f"{size(package['n_bytes']):>10} {package['n_files']:>7}  {name}{inside and f' ({inside})'}")
        if len(shown) < len(report.packages):
            rest = sum(package["n_bytes"] for package in report.packages[len(shown) :])
            console.show(f"{size(rest):>10}          {len(report.packages) - len(shown)} more (--top 0 shows them)")

    run(console, work, describe)


@cli.command("ls")
@click.argument("archive")
@click.argument("patterns", nargs=-1, metavar="[PATTERN]...")
@_json
def list_(archive: str, patterns: tuple[str, ...], as_json: bool) -> None:
    """List ARCHIVE's members, or those that match or lie below a PATTERN."""
    console = Console("ls", False, as_json)

    def work() -> ListReport:
        from fastpack import inspecting  # noqa: PLC0415

        return inspecting.members(archive, patterns)

    def describe(report: ListReport) -> None:
        letters = {"file": "-", "directory": "d", "link": "l", "hardlink": "h"}
        for row in report.members:
            when = time.strftime("%Y-%m-%d %H:%M", time.gmtime(int(str(row["mtime"]))))
            arrow = f" -> {row['target']}" if row["target"] else ""
            console.show(f"{letters[str(row['kind'])]}{row['mode']} {row['size']!s:>12} {when} {row['path']}{arrow}")

    run(console, work, describe)


@cli.command()
@click.argument("archive")
@click.argument("path")
@_json
def cat(archive: str, path: str, as_json: bool) -> None:
    """Write one file of ARCHIVE to standard output, as it lies in the archive, reading only the frames that hold it."""
    console = Console("cat", False, as_json)

    def work() -> CatReport:
        from fastpack import inspecting  # noqa: PLC0415

        if as_json:
            return inspecting.cat(archive, path, None)
        report = inspecting.cat(archive, path, sys.stdout.buffer)
        sys.stdout.buffer.flush()
        return report

    run(console, work, lambda report: None)


@cli.command()
@click.argument("prefix")
@_json
def status(prefix: str, as_json: bool) -> None:
    """Say where the environment at PREFIX thinks it lies, whether that is true, and what to run."""
    console = Console("status", False, as_json)

    def work() -> StatusReport:
        from fastpack import inspecting  # noqa: PLC0415

        return inspecting.status(prefix)

    def describe(report: StatusReport) -> None:
        says = {
            "right": f"lies where its files say: {report.prefix}",
            "moved": f"was moved: its files name {report.prefix}",
            "archive form": "was unpacked by tar alone and names no prefix yet",
            "interrupted": "was left half relocated",
            "incomplete": "was not unpacked to its end",
            "broken": "cannot be understood",
            "foreign": "was not made by fastpack",
        }
        console.show(f"{report.root}: {says[report.condition]}")
        if report.advice:
            console.show(report.advice)

    run(console, work, describe)


@cli.command()
@click.option("--channel", metavar="DIR_OR_URL", help="Take the packages from a conda channel, with py-rattler.")
@click.option("--work", metavar="DIR", help="Where to do it (default: a temporary directory, removed at the end).")
@_json
@click.argument("specs", nargs=-1)
def demo(channel: str | None, work: str | None, as_json: bool, specs: tuple[str, ...]) -> None:
    """Make a small real environment, pack it, unpack it elsewhere and run it."""
    console = Console("demo", False, as_json)

    def do() -> Any:
        from fastpack import demo as demonstration  # noqa: PLC0415

        return demonstration.run(channel, specs, work, console.say)

    started = time.monotonic()
    run(console, do, lambda report: console.say(f"all of it in {time.monotonic() - started:.1f} s"))


@cli.command()
@click.argument("action", type=click.Choice(["info", "clean", "verify"]))
@click.argument("directory", envvar="FASTPACK_CACHE")
@click.option("--cache-size", default="0", metavar="SIZE", help="With clean: what may stay (default: nothing).")
@_json
def cache(action: str, directory: str, cache_size: str, as_json: bool) -> None:
    """Say what a cache of frames holds (info), empty it (clean), or find and remove what is damaged (verify)."""
    console = Console("cache", False, as_json)

    def work() -> CacheReport:
        from fastpack import cache as frames  # noqa: PLC0415

        if action == "clean":
            return frames.clean(directory, frames.parse_size(cache_size))
        return frames.verify(directory) if action == "verify" else frames.info(directory)

    def describe(report: CacheReport) -> None:
        console.show(f"{report.root}: {report.n_frames} frames, {size(report.n_bytes)}")
        if report.n_removed_frames:
            console.show(f"removed: {report.n_removed_frames} frames, {size(report.removed_bytes)}")

    run(console, work, describe)


@cli.command()
@click.argument("archives", nargs=-1, required=True, metavar="OLD NEW")
@click.option("--shared", is_flag=True, help="Of any number of archives: how many bytes each two have in common.")
@_json
def diff(archives: tuple[str, ...], shared: bool, as_json: bool) -> None:
    """Say what changed from the archive OLD to the archive NEW, and how much of it would have to be shipped.

    One of the two may be the directory of an environment.
    """
    console = Console("diff", False, as_json)

    def work() -> DiffReport | SharedReport:
        from fastpack import delta as deltas  # noqa: PLC0415
        from fastpack.errors import UsageError  # noqa: PLC0415

        if shared:
            return deltas.shared(archives)
        if len(archives) != 2:
            raise UsageError("two archives are compared", found=len(archives), hint="--shared takes any number")
        return deltas.diff(*archives, console.progress)

    def describe(report: Any) -> None:
        if shared:
            for path, row in zip(report.archives, report.shared_bytes, strict=True):
                console.show("  ".join([f"{size(n_bytes):>9}" for n_bytes in row] + [path]))
            return
        for what, sign in (("added", "+"), ("removed", "-"), ("changed", "~")):
            for package in report.packages[what]:
                versions = " -> ".join(package[side] for side in ("old", "new") if side in package)
                console.show(f"{sign} {package['kind']} {package['name']} {versions}".rstrip())
        files = ", ".join(f"{number} {what}" for what, number in report.files.items())
        console.show(f"files: {files}")
        console.show(
            f"to ship: {size(report.shipped_bytes)} of {size(report.archive_bytes)},"
            f" {report.n_shipped_frames} of {report.n_frames} frames"
        )

    run(console, work, describe)


@cli.command()
@click.argument("old")
@click.argument("new")
@click.option("--output", "-o", required=True, metavar="FILE", help="The delta to write.")
@click.option("--force", "-f", is_flag=True, help="Replace an output that is there.")
@click.option(
    "--ship", multiple=True, metavar="GLOB",
    help="Ship such files in any case: for unpack --on-modified replace, where they were changed by hand.",
)  # fmt: skip
@_quiet
@_json
def delta(
    old: str, new: str, output: str, force: bool, ship: tuple[str, ...], quiet: bool, as_json: bool
) -> None:  # fmt: skip
    """Write what makes the archive NEW of the archive OLD: the frames that OLD does not have."""
    console = Console("delta", quiet, as_json)

    def work() -> DeltaReport:
        from fastpack import delta as deltas  # noqa: PLC0415

        return deltas.delta(old, new, output, force, console.progress, ship)

    def describe(report: DeltaReport) -> None:
        console.say(
            f"{report.output}: {size(report.delta_bytes)} instead of {size(report.archive_bytes)};"
            f" {report.n_shipped_frames} of {report.n_frames} frames; {report.elapsed_seconds:.1f} s"
        )

    run(console, work, describe)


@cli.command()
@click.argument("delta")
@click.option("--base", required=True, metavar="OLD", help="The archive that the delta was made against.")
@click.option("--output", "-o", required=True, metavar="NEW", help="The archive to put together.")
@click.option("--force", "-f", is_flag=True, help="Replace an output that is there.")
@_quiet
@_json
def apply(delta: str, base: str, output: str, force: bool, quiet: bool, as_json: bool) -> None:
    """Put the new archive together from DELTA and the old archive, byte for byte."""
    console = Console("apply", quiet, as_json)

    def work() -> ApplyReport:
        from fastpack import delta as deltas  # noqa: PLC0415

        return deltas.apply(delta, base, output, force, console.progress)

    def describe(report: ApplyReport) -> None:
        console.say(f"{report.output}: {size(report.archive_bytes)}; {report.elapsed_seconds:.1f} s")

    run(console, work, describe)


@cli.command("run", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--prefix", "-p", required=True, metavar="DIR", help="The environment's directory.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run_(prefix: str, command: tuple[str, ...]) -> None:
    """Run COMMAND in the environment, as if it were activated; its exit code is the command's."""
    console = Console("run", False, False)

    def work() -> Any:
        from fastpack import running  # noqa: PLC0415

        running.run(prefix, command)

    run(console, work, console.show)


@cli.command()
@click.argument("prefix")
@click.option("--rounds", type=int, default=3, show_default=True, metavar="N", help="How often each tool is run.")
@click.option("--only", multiple=True, metavar="NAME", help="Run this tool only (repeatable; default: all there are).")
@click.option("--check", metavar="COMMAND", help="What shows that the environment at $TARGET works.")
@click.option("--work", metavar="DIR", help="Where to do it (default: a temporary directory, removed at the end).")
@_threads
@_quiet
@_json
def bench(
    prefix: str, rounds: int, only: tuple[str, ...], check: str | None, work: str | None, n_threads: int, quiet: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Pack and unpack the environment at PREFIX with fastpack and the other packers that are installed.

    As root, the kernel's caches are dropped before each command, and what it reads is read once.
    """
    console = Console("bench", quiet, as_json)

    def do() -> BenchReport:
        from fastpack import benching  # noqa: PLC0415

        options = benching.Options(rounds, n_threads, only, check or benching.CHECK, work)
        return benching.bench(prefix, options, progress=console.progress)

    def describe(report: BenchReport) -> None:
        from fastpack import benching  # noqa: PLC0415

        console.say(f"{report.prefix}: {report.n_files} files, {size(report.n_bytes)}; {report.n_threads} threads,")
        console.say(f"{report.machine['cpu']}; medians of {report.rounds} rounds")
        for line in benching.table(report.tools):
            console.show(line)

    run(console, do, describe)


def main() -> None:
    """The program: signals end in exit code 130, and a wrong usage answers in JSON too where that was asked for."""
    begin()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names on disk may be no text
    try:
        cli.main(standalone_mode=False)
    except click.ClickException as failure:
        command = sys.argv[1] if len(sys.argv) > 1 else ""
        text = " ".join(sys.argv[2:])
        to_stdout = command == "pack" and re.search(r"(?:-o ?|--output[ =])-(?: |$)", text) is not None
        console = Console(command, False, "--json" in sys.argv, to_stdout)
        message = " ".join(failure.format_message().split())
        if isinstance(failure, click.exceptions.NoArgsIsHelpError) and not console.as_json:
            failure.show()
        else:
            fail(console, f"{message} (see --help)")
        error = {"class": "UsageError", "message": message, "path": None, "expected": None,
                 "found": None, "hint": "see --help"}  # fmt: skip
        console.finish(failure.exit_code, None, (), error)
        sys.exit(failure.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except OSError as failure:  # of standard output, which --help and --version write to
        fail(Console("", False, False), f"the system says: {failure.strerror}")
        os._exit(1)  # a second try at flushing would only fail again


if __name__ == "__main__":
    main()

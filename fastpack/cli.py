"""The command line: options -> calls; reports and errors -> text, JSON, exit codes. The only file that prints."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from fastpack._version import VERSION
from fastpack.errors import FastpackError

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

    from fastpack.model import PackReport, RelocateReport, UnpackReport, Warned

SCHEMA = 1
_SHOWN = 10


class Console:
    """What a command says: people read stderr, programs one JSON object on stdout."""

    def __init__(self, command: str, quiet: bool, as_json: bool, json_to_stderr: bool = False) -> None:
        self.command = command
        self.quiet = quiet
        self.as_json = as_json
        self._json_to_stderr = json_to_stderr
        self._progress: RichProgress | None = None
        self._task: Any = None
        self._stage = ""

    def say(self, text: str) -> None:
        """A line for people."""
        if not self.quiet and not self.as_json:
            print(text, file=sys.stderr)

    def progress(self, stage: str, done: int, total: int, group: str) -> None:
        """A bar in bytes with rate and time left; nothing where stderr is no terminal."""
        if self.quiet or self.as_json or not sys.stderr.isatty():
            return
        if self._progress is None:
            from rich.console import Console as RichConsole  # noqa: PLC0415 (terminals alone)
            from rich.progress import (  # noqa: PLC0415
                BarColumn,
                DownloadColumn,
                Progress,
                TextColumn,
                TimeRemainingColumn,
                TransferSpeedColumn,
            )

            self._progress = Progress(
                TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
                TimeRemainingColumn(), TextColumn("{task.fields[group]}"),
                console=RichConsole(stderr=True), transient=True,
            )  # fmt: skip
            self._progress.start()
        if stage != self._stage:
            if self._task is not None:
                self._progress.remove_task(self._task)
            self._task = self._progress.add_task(stage, total=total or None, group=group)
            self._stage = stage
        self._progress.update(self._task, completed=done, total=total or None, group=group[:40])

    def stop(self) -> None:
        """Take the bar off the screen."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def finish(
        self, code: int, result: dict[str, Any] | None, warnings: tuple[Warned, ...], error: dict[str, Any] | None
    ) -> None:
        """The JSON object, if it was asked for."""
        if not self.as_json:
            return
        answer = {
            "schema": SCHEMA,
            "command": self.command,
            "ok": code == 0,
            "exit_code": code,
            "error": error,
            "warnings": [warning.as_dict() for warning in warnings],
            "result": result,
        }
        print(json.dumps(answer), file=sys.stderr if self._json_to_stderr else sys.stdout, flush=True)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    """The first signal ends the work; further ones do not disturb the cleaning up."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def run(console: Console, work: Callable[[], Any], describe: Callable[[Any], None]) -> None:
    """Do a command's work; print what came of it; exit with its code."""
    code = 0
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    warnings: tuple[Warned, ...] = ()
    try:
        report = work()
        console.stop()
        result, warnings = report.as_dict(), report.warnings
        describe(report)
        for warning in warnings[:_SHOWN]:
            place = f"{warning.path}: " if warning.path and warning.path not in warning.message else ""
            console.say(f"warning: {place}{warning.message}")
        if len(warnings) > _SHOWN:
            console.say(f"warning: and {len(warnings) - _SHOWN} more; --json lists them all")
    except FastpackError as failure:
        code, error = failure.exit_code, failure.as_dict()
        console.stop()
        _fail(console, str(failure))
    except KeyboardInterrupt:
        code = 130
        error = {"class": "Interrupted", "message": "interrupted", "path": None, "expected": None, "found": None,
                 "hint": None}  # fmt: skip
        console.stop()
        _fail(console, "interrupted")
    except BrokenPipeError:
        code = 1
        error = {"class": "BrokenPipeError", "message": "the reader of the output went away", "path": None,
                 "expected": None, "found": None, "hint": None}  # fmt: skip
        console.stop()
        _fail(console, "the reader of the output went away")
    except Exception as failure:
        code = 1
        error = {"class": type(failure).__name__, "message": str(failure), "path": None, "expected": None,
                 "found": None, "hint": "this is a bug: please report it with the traceback"}  # fmt: skip
        console.stop()
        traceback.print_exc()
    try:
        console.finish(code, result, warnings, error)
    except OSError as failure:
        print(f"fastpack {console.command}: the JSON cannot be written ({failure.strerror})", file=sys.stderr)
        os._exit(code or 1)  # a second try at flushing would only fail again
    sys.exit(code)


def _fail(console: Console, text: str) -> None:
    if not console.as_json:
        print(f"fastpack {console.command}: {text}", file=sys.stderr)


def size(n_bytes: float) -> str:
    """A size for people, in decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000 or unit == "GB":
            return f"{n_bytes:.0f} {unit}" if unit == "B" or n_bytes >= 100 else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    raise AssertionError


class _Filters(click.Command):
    """Keeps --exclude and --include in the order in which they were given, across the two options."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ordered: list[tuple[str, str]] = []
        for position, argument in enumerate(args):
            if argument == "--":
                break
            for kind in ("exclude", "include"):
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
_threads = click.option("--n-threads", "-j", type=int, default=0, metavar="N", help="Threads (default: all cores).")


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
@click.option("--prefix", "-p", metavar="DIR", help="The environment's directory.")
@click.option("--name", "-n", metavar="NAME", help="The environment's name.")
@click.option("--output", "-o", metavar="FILE", help="The archive (default: NAME.tar.zst here); - for standard output.")
@click.option(
    "--format", "format_", default="infer", metavar="FORMAT", help="tar.zst, tar.gz or tar; else by the name."
)
@click.option("--compress-level", type=int, metavar="N", help="zstd 1-22 (default 3), gzip 0-9 (default 4).")
@_threads
@click.option("--arcroot", default="", metavar="DIR", help="A directory to put before every name in the archive.")
@click.option("--dest-prefix", metavar="DIR", help="Place everything for this prefix; leaves out bin/conda-unpack.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Leave out files that match; * matches / too.")
@click.option("--include", multiple=True, metavar="GLOB", help="Take back excluded files; in the order given.")
@click.option("--force", "-f", is_flag=True, help="Replace an output that is there.")
@click.option("--ignore-missing-files", is_flag=True, help="Go on when files of packages are missing.")
@click.option("--ignore-editable-packages", is_flag=True, help="Go on when packages are installed in place.")
@click.option("--verify-source", is_flag=True, help="Hold every managed file against its sha256, also large ones.")
@click.option("--prefix-is-unique", is_flag=True, help="Replace mentions of a prefix like /usr/local in any file.")
@_pad
@_links
@_strict
@_quiet
@_json
@click.pass_context
def pack(
    context: click.Context, prefix: str | None, name: str | None, output: str | None, format_: str,
    compress_level: int | None, n_threads: int, arcroot: str, dest_prefix: str | None, exclude: tuple[str, ...],
    include: tuple[str, ...], force: bool, ignore_missing_files: bool, ignore_editable_packages: bool,
    verify_source: bool, prefix_is_unique: bool, pad: tuple[str, ...], external_links: str | None, strict: bool,
    quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Pack an environment into one archive."""
    console = Console("pack", quiet, as_json, json_to_stderr=output == "-")

    def work() -> PackReport:
        from fastpack import packing  # noqa: PLC0415 (numpy and the rest are for this command alone)
        from fastpack.environment import Environment  # noqa: PLC0415
        from fastpack.errors import UsageError  # noqa: PLC0415

        if prefix and name:
            raise UsageError("give a name or a prefix, not both", found=f"{name} and {prefix}")
        if prefix:
            env = Environment.from_prefix(prefix)
        else:
            env = Environment.from_name(name) if name else Environment.from_default()
        for kind, pattern in context.obj:
            env = env.exclude(pattern) if kind == "exclude" else env.include(pattern)
        options = packing.Options(
            output=output, format=format_, compress_level=compress_level, n_threads=n_threads, arcroot=arcroot,
            dest_prefix=dest_prefix, force=force, ignore_missing_files=ignore_missing_files,
            ignore_editable_packages=ignore_editable_packages, verify_source=verify_source,
            prefix_is_unique=prefix_is_unique, strict=strict, pad=pad, external_links=external_links or "warn",
        )  # fmt: skip
        return packing.pack(env, options, console.progress)

    def describe(report: PackReport) -> None:
        ratio = report.archive_bytes / report.source_bytes if report.source_bytes else 1
        console.say(
            f"{report.output}: {size(report.archive_bytes)}, {ratio:.0%} of {size(report.source_bytes)}; "
            f"{report.n_files + report.n_hardlinks} files of {report.n_packages} packages, "
            f"{report.n_relocated_files} with the prefix; {report.elapsed_seconds:.1f} s"
        )
        if report.longest_prefix is not None:
            console.say(f"it can be unpacked at any path of up to {report.longest_prefix} bytes")
        for row in report.not_relocated[:_SHOWN]:
            console.say(f"not relocated: {row['path']}: {row['why']}")
        if len(report.not_relocated) > _SHOWN:
            console.say(f"not relocated: and {len(report.not_relocated) - _SHOWN} more; --json lists them all")

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
@_threads
@_quiet
@_json
def unpack(
    archive: str, prefix: str, dest_prefix: str | None, force: bool, pad: tuple[str, ...], external_links: str | None,
    strict: bool, ignore_requirements: bool, n_threads: int, quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Unpack ARCHIVE (- for standard input) into a directory, relocated to it."""
    console = Console("unpack", quiet, as_json)

    def work() -> UnpackReport:
        from fastpack import unpacking  # noqa: PLC0415

        options = unpacking.Options(dest_prefix, force, n_threads, pad, strict, external_links, ignore_requirements)
        return unpacking.unpack(archive, prefix, options, console.progress)

    def describe(report: UnpackReport) -> None:
        console.say(
            f"{report.destination}: {report.n_files} files, {size(report.written_bytes)}, "
            f"{report.n_relocated_files} with the prefix; {report.elapsed_seconds:.1f} s"
        )

    run(console, work, describe)


@cli.command()
@click.argument("prefix")
@click.option("--dest-prefix", metavar="DIR", help="The prefix to put into the files, if not PREFIX itself.")
@_pad
@_strict
@_ignore_requirements
@_threads
@_quiet
@_json
def relocate(
    prefix: str, dest_prefix: str | None, pad: tuple[str, ...], strict: bool, ignore_requirements: bool,
    n_threads: int, quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Put an environment's own PREFIX into its files, after it was moved or unpacked by tar; any number of times."""
    console = Console("relocate", quiet, as_json)

    def work() -> RelocateReport:
        from fastpack import relocating  # noqa: PLC0415

        return relocating.relocate(
            prefix, dest_prefix=dest_prefix, n_threads=n_threads, pad=pad or None, strict=strict,
            ignore_requirements=ignore_requirements, progress=console.progress,
        )  # fmt: skip

    def describe(report: RelocateReport) -> None:
        console.say(
            f"{report.root}: {report.n_written} files relocated, {report.n_unchanged} right already, "
            f"{report.n_added} new ones recorded; {report.elapsed_seconds:.1f} s"
        )
        for path in report.left[:_SHOWN]:
            console.say(f"left as it is, since it was changed or removed after unpacking: {path}")

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


def main() -> None:
    """The program: signals end in exit code 130, and a wrong usage answers in JSON too where that was asked for."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        cli.main(standalone_mode=False)
    except click.ClickException as failure:
        command = sys.argv[1] if len(sys.argv) > 1 else ""
        text = " ".join(sys.argv[2:])
        to_stdout = command == "pack" and re.search(r"(?:-o ?|--output[ =])-(?: |$)", text) is not None
        console = Console(command, False, "--json" in sys.argv, to_stdout)
        if not console.as_json:
            failure.show()
        error = {"class": "UsageError", "message": failure.format_message(), "path": None, "expected": None,
                 "found": None, "hint": "see --help"}  # fmt: skip
        console.finish(failure.exit_code, None, (), error)
        sys.exit(failure.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)


if __name__ == "__main__":
    main()

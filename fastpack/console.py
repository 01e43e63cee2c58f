"""What a command says: text for people, one JSON object for programs, exit codes. The only file that prints."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

from fastpack.errors import FastpackError

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

    from fastpack.model import Warned

SCHEMA = 1
#: Rows of a list that people are shown; --json has them all.
_SHOWN = 10


def printable(text: str) -> str:
    """A line for a terminal: control characters, line ends among them, and bytes that are no text are escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in text)


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
            print(printable(text), file=sys.stderr)

    def say_rows(self, label: str, rows: Sequence[str]) -> None:
        """The first rows of a list, each behind its label, and how many more there are."""
        for row in rows[:_SHOWN]:
            self.say(f"{label}: {row}")
        if len(rows) > _SHOWN:
            self.say(f"{label}: and {len(rows) - _SHOWN} more; --json lists them all")

    def show(self, text: str) -> None:
        """A line of what was asked for, on standard output."""
        if not self.as_json:
            print(printable(text))

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


def _names(text: str, path: str) -> bool:
    """Whether a text has a path as a word."""
    return re.search(rf"(?<![^\s:]){re.escape(path)}(?![^\s:,;])", text) is not None


#: What ends a command's work: Ctrl-C, a request, a lost terminal.
_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def begin() -> None:
    """Before a command's work: signals end it in exit code 130, and the three standard streams are open.

    Where one was closed, the next file that is opened would get its number, and what is said be written into it. What
    reads or writes there fails, but for messages, which are lost.
    """
    for end in _ENDS:
        if end is not signal.SIGHUP or signal.getsignal(end) is not signal.SIG_IGN:  # nohup
            signal.signal(end, interrupt)
    for number, (name, flags, mode) in enumerate(_STREAMS):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, flags), True)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, closefd=False, errors="backslashreplace"))


#: As coreutils have it: nothing can be read from a closed input, nor written to a closed output.
_STREAMS = (("stdin", os.O_WRONLY, "r"), ("stdout", os.O_RDONLY, "w"), ("stderr", os.O_RDWR, "w"))


def interrupt(signum: int, frame: FrameType | None) -> None:
    """The first signal ends the work; further ones do not disturb the cleaning up."""
    for number in _ENDS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def run(console: Console, work: Callable[[], Any], describe: Callable[[Any], None]) -> None:
    """Do a command's work; print what came of it; exit with its code."""
    code = 0
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    warnings: tuple[Warned, ...] = ()
    interrupted = False
    try:
        from fastpack.parallel import no_collection  # noqa: PLC0415 (what --version and --help do without)

        with no_collection():
            report = work()
        console.stop()
        result, warnings = report.as_dict(), report.warnings
        describe(report)
        failure = report.failure()
        console.say_rows(
            "warning",
            [f"{w.path}: {w.message}" if w.path and not _names(w.message, w.path) else w.message for w in warnings],
        )
        if failure is not None:
            raise failure
    except FastpackError as failure:
        code, error = failure.exit_code, failure.as_dict()
        console.stop()
        fail(console, str(failure))
    except KeyboardInterrupt as interrupt:
        code = 130
        notes = getattr(interrupt, "__notes__", [])
        error = {"class": "Interrupted", "message": "interrupted", "path": None, "expected": None, "found": None,
                 "hint": notes[0] if notes else None}  # fmt: skip
        console.stop()
        fail(console, "; ".join(["interrupted", *notes]))
        interrupted = True
    except BrokenPipeError:
        code = 1
        error = {"class": "BrokenPipeError", "message": "the reader of the output went away", "path": None,
                 "expected": None, "found": None, "hint": None}  # fmt: skip
        console.stop()
        fail(console, "the reader of the output went away")
    except OSError as failure:  # of standard output: commands explain their own
        code = 1
        message = f"the system says: {failure.strerror}"
        error = {"class": type(failure).__name__, "message": message, "path": failure.filename, "expected": None,
                 "found": None, "hint": None}  # fmt: skip
        console.stop()
        fail(console, message)
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
    if interrupted:
        sys.stderr.flush()
        os._exit(code)  # without waiting for what threads have begun: see `ordered_map`
    sys.exit(code)


def fail(console: Console, text: str) -> None:
    """Say what went wrong, in one line; with ``--json`` the answer has it."""
    if not console.as_json:
        print(printable(f"{f'fastpack {console.command}'.rstrip()}: {text}"), file=sys.stderr)


def size(n_bytes: float) -> str:
    """A size for people, in decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000 or unit == "GB":
            return f"{n_bytes:.0f} {unit}" if unit == "B" or n_bytes >= 100 else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    raise AssertionError

"""What can go wrong, and the exit code of each.

    FastpackError                 1
    ├── UsageError                2   options that do not go together
    ├── EnvironmentNotFound      10   no such directory, name or active environment
    ├── NotAnEnvironment         11   no conda-meta in it
    ├── BadRecord                12   a conda-meta record that cannot be read
    ├── MissingFiles             13   managed files that are not on disk
    ├── EditablePackages         14   packages whose code lies outside the environment
    ├── Unreadable               15   a file or directory that may not be read
    ├── ChangedWhileRead         16   a file that changed or vanished under our eyes
    ├── ModifiedFiles            17   managed files that are not what was installed
    ├── PrefixTooLong            20   the target prefix does not fit the binaries' slots
    ├── Unrelocatable            21   a file or link that names the prefix and cannot be changed
    ├── AlreadyExists            22   output or destination is there
    ├── NoSpace                  23   the disk is full, or would be
    ├── WrongPlatform            24   platform, architecture or glibc
    ├── IncompleteEnvironment    25   half unpacked, half relocated, or another process is at it
    ├── DamagedArchive           30   not an archive, or not what it says it is
    ├── NewerFormat              31   written by a later fastpack
    ├── HostileArchive           32   members that would leave the destination
    ├── WrongBase                33   a base or delta that belongs elsewhere
    ├── VerifyFailed             34   verify found differences
    └── BenchFailed              35   a packer that was measured failed, or lost something

Exit code 130 stands for an interruption (Ctrl-C); it has no class of its own.
"""

from __future__ import annotations


class FastpackError(Exception):
    """Something fastpack can say in one line.

    Parameters
    ----------
    message : what is wrong, a sentence without a full stop at its end.
    path : the file or directory in question, if there is one.
    expected, found : the two sides of a comparison, if there was one.
    hint : what to do about it.
    """

    exit_code = 1

    def __init__(
        self,
        message: str,
        *,
        path: str | None = None,
        expected: object = None,
        found: object = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.path = path
        self.expected = expected
        self.found = found
        self.hint = hint

    def __str__(self) -> str:
        parts = [self.message]
        if self.path is not None:
            parts.append(f": {self.path}")
        both = (("expected", self.expected), ("found", self.found))
        sides = [f"{name} {value}" for name, value in both if value is not None]
        if sides:
            parts.append(f" ({', '.join(sides)})")
        if self.hint:
            parts.append(f"; {self.hint}")
        return "".join(parts)

    def as_dict(self) -> dict[str, object]:
        """The object that stands under ``error`` in ``--json`` output."""
        return {
            "class": type(self).__name__,
            "message": self.message,
            "path": self.path,
            "expected": None if self.expected is None else str(self.expected),
            "found": None if self.found is None else str(self.found),
            "hint": self.hint,
        }


class UsageError(FastpackError):
    exit_code = 2


class EnvironmentNotFound(FastpackError):
    exit_code = 10


class NotAnEnvironment(FastpackError):
    exit_code = 11


class BadRecord(FastpackError):
    exit_code = 12


class MissingFiles(FastpackError):
    exit_code = 13


class EditablePackages(FastpackError):
    exit_code = 14


class Unreadable(FastpackError):
    exit_code = 15


class ChangedWhileRead(FastpackError):
    exit_code = 16


class ModifiedFiles(FastpackError):
    exit_code = 17


class PrefixTooLong(FastpackError):
    exit_code = 20


class Unrelocatable(FastpackError):
    exit_code = 21


class AlreadyExists(FastpackError):
    exit_code = 22


class NoSpace(FastpackError):
    exit_code = 23


class WrongPlatform(FastpackError):
    exit_code = 24


class IncompleteEnvironment(FastpackError):
    exit_code = 25


class DamagedArchive(FastpackError):
    exit_code = 30


class NewerFormat(FastpackError):
    exit_code = 31


class HostileArchive(FastpackError):
    exit_code = 32


class WrongBase(FastpackError):
    exit_code = 33


class VerifyFailed(FastpackError):
    exit_code = 34


class BenchFailed(FastpackError):
    exit_code = 35

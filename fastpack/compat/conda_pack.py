"""What ``import conda_pack`` gives, made of fastpack: ``import fastpack.compat.conda_pack as conda_pack``.

Names, arguments, defaults and results are conda_pack 0.9's; what an archive holds is fastpack's (docs/migrating.md).
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from fastpack import api, checks, errors, fs
from fastpack._version import VERSION as __version__
from fastpack.formats import FORMATS, by_name
from fastpack.model import Kind, PackReport, Verdict
from fastpack.parallel import default_threads

__all__ = ("CondaEnv", "CondaPackException", "File", "__version__", "pack")


class CondaPackException(Exception):
    """What conda_pack raises for everything it can say in a sentence."""


class _Context:
    """Where warnings go: to Python's, or as lines to standard error."""

    def __init__(self) -> None:
        self.is_cli = False

    def warn(self, message: str) -> None:
        if self.is_cli:
            sys.stderr.write(message + "\n")
        else:
            warnings.warn(message, stacklevel=3)

    @contextmanager
    def set_cli(self) -> Iterator[None]:
        """Write lines as long as the block lasts."""
        before, self.is_cli = self.is_cli, True
        try:
            yield
        finally:
            self.is_cli = before


context = _Context()


class File:
    """A file of an environment: its path, its path below the prefix, and how its prefix is replaced."""

    __slots__ = ("file_mode", "is_conda", "prefix_placeholder", "source", "target")

    def __init__(
        self, source: str, target: str, is_conda: bool = True, file_mode: str | None = None,
        prefix_placeholder: str | None = None,
    ) -> None:  # fmt: skip
        self.source = source
        self.target = target
        self.is_conda = is_conda
        self.file_mode = file_mode
        self.prefix_placeholder = prefix_placeholder

    def __repr__(self) -> str:
        return f"File<{self.target!r}, is_conda={self.is_conda!r}>"


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except errors.FastpackError as error:
        raise CondaPackException(str(error)) from error


class CondaEnv:
    """conda_pack's environment: made by `from_prefix`, `from_name` or `from_default`."""

    def __init__(
        self, environment: api.Environment, ignore_editable_packages: bool, ignore_missing_files: bool
    ) -> None:
        self._environment = environment
        self._ignored = {
            "ignore_editable_packages": ignore_editable_packages, "ignore_missing_files": ignore_missing_files,
        }  # fmt: skip

    @classmethod
    def from_prefix(
        cls, prefix: str, *, ignore_editable_packages: bool = False, ignore_missing_files: bool = False,
        on_missing_cache: str = "warn",
    ) -> CondaEnv:  # fmt: skip
        """The environment at a path. `on_missing_cache` changes nothing: no package cache is needed."""
        with _translated():
            environment = api.Environment.from_prefix(os.fspath(prefix))
            checks.check_missing(environment, frozenset(), "ignore" if ignore_missing_files else "error", [])
            checks.check_editable(environment, "ignore" if ignore_editable_packages else "error", [])
        return cls(environment, ignore_editable_packages, ignore_missing_files)

    @classmethod
    def from_name(cls, name: str, **options: Any) -> CondaEnv:
        """The environment of a name."""
        with _translated():
            prefix = api.Environment.from_name(name).prefix
        return cls.from_prefix(prefix, **options)

    @classmethod
    def from_default(cls, **options: Any) -> CondaEnv:
        """The active environment."""
        with _translated():
            prefix = api.Environment.from_default().prefix
        return cls.from_prefix(prefix, **options)

    @property
    def prefix(self) -> str:
        return self._environment.prefix

    @property
    def name(self) -> str:
        return os.path.basename(self.prefix)

    @property
    def files(self) -> list[File]:
        """What would be packed, sorted by target, without what fastpack adds."""
        environment = self._environment
        excluded = environment.excluded()
        entries = {path: entry for path, (_, entry) in environment.entries.items()}
        managed = entries.keys() | {record.path for record in environment.records}

        def file_mode(path: str) -> str | None:
            entry = entries.get(path)
            if entry is None:
                return None if path in managed else "unknown"
            return "unknown" if "entry_point" in entry.path_type else entry.file_mode

        return [
            File(os.path.join(environment.prefix, path), path, path in managed, file_mode(path),
                 entries[path].placeholder if path in entries else None)
            for path, file in sorted(environment.files.items())
            if path not in excluded and file.kind is not Kind.DIRECTORY
        ]  # fmt: skip

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self) -> Iterator[File]:
        return iter(self.files)

    def __repr__(self) -> str:
        return f"CondaEnv<{self.prefix!r}, {len(self)} files>"

    def exclude(self, pattern: str) -> CondaEnv:
        """The same environment without the files that match a shell pattern."""
        return CondaEnv(self._environment.exclude(pattern), **self._ignored)

    def include(self, pattern: str) -> CondaEnv:
        """The same environment with the excluded files that match a shell pattern taken back."""
        return CondaEnv(self._environment.include(pattern), **self._ignored)

    def pack(
        self, output: str | None = None, format: str = "infer", arcroot: str = "", dest_prefix: str | None = None,
        parcel_root: str | None = None, parcel_name: str | None = None, parcel_version: str | None = None,
        parcel_distro: str | None = None, verbose: bool = False, force: bool = False, compress_level: int = 4,
        n_threads: int = 1, zip_symlinks: bool = False, zip_64: bool = True,
    ) -> str:  # fmt: skip
        """Pack the environment; the path of what was written. Without an output, ``NAME.tar.gz`` here."""
        if n_threads < 1 and n_threads != -1:
            raise CondaPackException("n-threads must be >= 1, or -1 for all cores")
        if output is None and format == "infer":
            format = "tar.gz"
        elif output is not None and format == "infer":
            format = _format_of(output)
        with _translated():
            parcel = {"parcel_root": parcel_root, "parcel_name": parcel_name, "parcel_version": parcel_version,
                      "parcel_distro": parcel_distro}  # fmt: skip
            is_parcel = format == "parcel" or (output is not None and output.endswith(".parcel"))
            if output is None and not is_parcel:
                # conda_pack's names keep the alias: my_env.tgz
                output = f"{self.name}.{format}"
            folder = os.path.dirname(output) if output is not None else ""
            if force and folder:
                try:
                    os.makedirs(folder, exist_ok=True)
                except OSError as error:
                    raise fs.explain_os_error(error, folder) from None
            if verbose:
                _say(f"Packing environment at {self.prefix!r} to {output!r}", output)
            report: PackReport = self._environment.pack(
                output, format=format, arcroot=arcroot or "", dest_prefix=dest_prefix, force=force,
                compress_level=_level(compress_level, format), zip_symlinks=zip_symlinks, zip_64=zip_64,
                n_threads=default_threads() if n_threads == -1 else n_threads,
                **(parcel if is_parcel else {}), **self._ignored,
            )  # fmt: skip
        for warning in report.warnings:
            context.warn(warning.message)
        modified = report.verdicts.get(Verdict.MODIFIED, 0)
        if modified and not any(warning.code == "modified" for warning in report.warnings):
            context.warn(f"{modified} files of packages were changed since they were installed: packed as they are")
        return output if output is not None else os.path.relpath(report.output)


def _say(text: str, output: str | None) -> None:
    """What conda_pack prints; not into an archive that goes to standard output."""
    (sys.stderr if output == "-" else sys.stdout).write(text + "\n")


def _format_of(output: str) -> str:
    """The format of a file's name, as `infer` has it."""
    for name in (*FORMATS, "tgz", "tbz2", "txz", "tzst"):
        if output.endswith("." + name):
            return name
    raise CondaPackException(f"Unknown file extension {output!r}")


def _level(level: int, name: str) -> int | None:
    """conda_pack's level where the format has it; any for ``.tar``, and 0 for zstd and bzip2, mean none."""
    if name in ("tar", "no-archive") or (level == 0 and level not in by_name(name).levels):
        return None
    return level


def pack(
    name: str | None = None, prefix: str | None = None, output: str | None = None, format: str = "infer",
    arcroot: str = "", dest_prefix: str | None = None, parcel_root: str | None = None, parcel_name: str | None = None,
    parcel_version: str | None = None, parcel_distro: str | None = None, verbose: bool = False, force: bool = False,
    compress_level: int = 4, n_threads: int = 1, zip_symlinks: bool = False, zip_64: bool = True,
    filters: Sequence[tuple[str, str]] | None = None, ignore_editable_packages: bool = False,
    ignore_missing_files: bool = False,
) -> str:  # fmt: skip
    """Pack an environment; the path of what was written.

    Raises
    ------
    CondaPackException
    """
    if name and prefix:
        raise CondaPackException("Cannot specify both 'name' and 'prefix'")
    if verbose:
        _say("Collecting packages...", output)
    ignored: dict[str, Any] = {
        "ignore_editable_packages": ignore_editable_packages, "ignore_missing_files": ignore_missing_files,
    }  # fmt: skip
    if prefix:
        environment = CondaEnv.from_prefix(prefix, **ignored)
    else:
        environment = CondaEnv.from_name(name, **ignored) if name else CondaEnv.from_default(**ignored)
    for kind, pattern in filters or ():
        if kind not in ("exclude", "include"):
            raise CondaPackException(f"Unknown filter of kind {kind!r}")
        environment = environment.exclude(pattern) if kind == "exclude" else environment.include(pattern)
    return environment.pack(
        output, format, arcroot, dest_prefix, parcel_root, parcel_name, parcel_version, parcel_distro, verbose, force,
        compress_level, n_threads, zip_symlinks, zip_64,
    )  # fmt: skip

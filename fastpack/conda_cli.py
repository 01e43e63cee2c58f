"""``conda fastpack`` and ``conda-fastpack``: conda-pack's command line, word for word, with fastpack behind it.

Defaults (``tar.gz``, level 4, one thread, names) and exit statuses (0, or 1 on errors) are conda-pack 0.9's, too.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from fastpack._version import VERSION
from fastpack.console import begin

_FORMATS = ("infer", "zip", "tar.gz", "tgz", "tar.bz2", "tar.zst", "tzst", "tbz2", "tar.xz", "txz", "tar", "parcel",
            "squashfs", "no-archive")  # fmt: skip


class _Filter(argparse.Action):
    """Keeps --exclude and --include in the order in which they were given."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        namespace.filters = [*(namespace.filters or []), ((option_string or "").strip("-"), values)]


def build_parser(prog: str = "conda-fastpack") -> argparse.ArgumentParser:
    """conda-pack's options; there are no abbreviations."""
    parser = argparse.ArgumentParser(
        prog=prog, description="Package an existing conda environment into an archive file.", add_help=False,
        allow_abbrev=False,
    )  # fmt: skip
    add = parser.add_argument
    add("--name", "-n", metavar="ENV", help="The environment's name. Default: the active one.")
    add("--prefix", "-p", metavar="PATH", help="The environment's path, instead of a name.")
    add("--output", "-o", metavar="PATH", help="The file to write. Default: the environment's name, with .tar.gz.")
    add("--arcroot", metavar="PATH", default="", help="A directory to put before every name in the archive.")
    add("--dest-prefix", "-d", metavar="PATH", help="Rewrite prefixes to this path; leaves out conda-unpack.")
    add("--parcel-root", help="(Parcels) Where parcels lie on the cluster (default: /opt/cloudera/parcels).")
    add("--parcel-name", help="(Parcels) The name, without dashes (default: the environment's).")
    add("--parcel-version", help="(Parcels) The version (default: today, as YYYY.MM.DD).")
    add("--parcel-distro", help="(Parcels) The distribution, without dashes (default: el7).")
    add("--format", choices=_FORMATS, default="infer", help="The archive's format. Default: by the output's name.")
    add("--compress-level", metavar="LEVEL", type=int, default=4, help="From 0 to 9, zstd to 22. Default is 4.")
    add("--n-threads", "-j", metavar="N", type=int, default=1, help="Threads; -1 for all cores. Default is 1.")
    add("--zip-symlinks", action="store_true", help="(zip) Store links, not copies of what they lead to.")
    add("--no-zip-64", action="store_true", help="(zip) Do without ZIP64 extensions.")
    add("--ignore-editable-packages", action="store_true", help="Do not look for editable packages.")
    add("--ignore-missing-files", action="store_true", help="Go on when files of packages are missing.")
    add("--exclude", action=_Filter, metavar="PATTERN", dest="filters", help="Leave out files that match.")
    add("--include", action=_Filter, metavar="PATTERN", dest="filters", help="Take back excluded files that match.")
    add("--force", "-f", action="store_true", help="Overwrite the output, or make its directory.")
    add("--quiet", "-q", action="store_true", help="Do not report progress.")
    add("--help", "-h", action="help", help="Show this and exit.")
    add("--version", action="store_true", help="Show the version and exit.")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    if sys.stdout is None:  # closed: what is said is lost, as conda-pack has it
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    begin()
    options = build_parser().parse_args(arguments)
    if options.version:
        sys.stdout.write(f"conda-fastpack {VERSION}\n")
        sys.exit(0)
    try:
        _pack(options)
    except KeyboardInterrupt:
        sys.exit("Interrupted")
    sys.exit(0)


def _pack(options: argparse.Namespace) -> None:
    from fastpack.compat import conda_pack  # noqa: PLC0415 (--help and --version do without)

    try:
        with conda_pack.context.set_cli():
            conda_pack.pack(
                name=options.name, prefix=options.prefix, output=options.output, format=options.format,
                force=options.force, compress_level=options.compress_level, n_threads=options.n_threads,
                zip_symlinks=options.zip_symlinks, zip_64=not options.no_zip_64, arcroot=options.arcroot,
                dest_prefix=options.dest_prefix, parcel_root=options.parcel_root, parcel_name=options.parcel_name,
                parcel_version=options.parcel_version, parcel_distro=options.parcel_distro, verbose=not options.quiet,
                filters=options.filters, ignore_editable_packages=options.ignore_editable_packages,
                ignore_missing_files=options.ignore_missing_files,
            )  # fmt: skip
    except conda_pack.CondaPackException as error:
        sys.exit(f"CondaPackError: {error}")

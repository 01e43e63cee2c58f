"""The formats there are, by their names and by the names of files."""

from __future__ import annotations

from fastpack.codec import CODECS
from fastpack.errors import UsageError
from fastpack.format import Format
from fastpack.format_directory import Directory
from fastpack.format_squashfs import Squashfs
from fastpack.format_tar import Parcel, Tar
from fastpack.format_zip import Zip

_ALL: tuple[Format, ...] = (*map(Tar, CODECS.values()), Parcel(), Zip(), Squashfs(), Directory())
FORMATS = {format_.name: format_ for format_ in _ALL}
_ALIASES = {"tzst": "tar.zst", "tgz": "tar.gz", "tbz2": "tar.bz2", "txz": "tar.xz"}


def by_name(name: str) -> Format:
    """The format of a name such as ``tar.zst`` or ``tgz``; UsageError for one we do not know."""
    found = FORMATS.get(_ALIASES.get(name, name))
    if found is None:
        raise UsageError(
            f"unknown format {name!r}", expected=", ".join([*FORMATS, *_ALIASES]), hint="choose one with --format"
        )
    return found


def by_file_name(path: str) -> Format:
    """The format that a file's name asks for; UsageError if it ends in none we know."""
    for name in (*FORMATS, *_ALIASES):
        if path.endswith("." + name):
            return by_name(name)
    raise UsageError(
        "the output's name does not tell the format", path=path, expected=", ".join("." + name for name in FORMATS),
        hint="name it so, or choose with --format",
    )  # fmt: skip

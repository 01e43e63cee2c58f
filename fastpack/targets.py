"""What the relocation table says of a target prefix, before anything is written for it."""

from __future__ import annotations

import os
from collections.abc import Sequence

from fastpack._place_py import RelocatedFile, ascii_only, codec_of, longest_prefix
from fastpack.errors import PrefixTooLong, Unrelocatable
from fastpack.model import Warned


def check_prefix(prefix: str, limit: int | None, limited_by: str | None = None) -> None:
    """Row 3: refuse a prefix that does not fit, before anything is written.

    Raises
    ------
    PrefixTooLong
    """
    length = len(os.fsencode(prefix))
    if limit is not None and length > limit:
        raise PrefixTooLong(
            "the prefix is too long for this environment's binaries" + (f" ({limited_by})" if limited_by else ""),
            path=prefix,
            expected=f"at most {limit} bytes",
            found=f"{length} bytes",
            hint="choose a shorter path",
        )


def check_ascii(prefix: str, path: object) -> None:
    """Row 10: refuse a prefix beyond ASCII where a file names it in wide characters.

    Raises
    ------
    Unrelocatable
    """
    if path is not None and not prefix.isascii():
        raise Unrelocatable(
            "a file names the prefix in UTF-16 or UTF-32, so it must be ASCII", path=str(path), found=prefix,
            hint="choose a path of ASCII characters",
        )  # fmt: skip


def check_target(prefix: str, relocated: Sequence[RelocatedFile], strict: bool) -> list[Warned]:
    """Every rule of the relocation table about a target prefix, before anything is written.

    Returns
    -------
    A warning for each file of row 6 that stays as it is because the prefix does not fit.

    Raises
    ------
    PrefixTooLong, Unrelocatable : the latter also, if `strict`, for the first of those files.
    """
    raw = os.fsencode(prefix)
    check_prefix(prefix, longest_prefix(relocated))
    check_ascii(prefix, ascii_only(relocated))
    wide = (file.path for file in relocated if any(codec_of(item.kind) for item in file.items))
    if not _is_utf8(raw) and (path := next(wide, None)) is not None:
        raise Unrelocatable(
            "a file names the prefix in UTF-16 or UTF-32, which cannot spell this one", path=path, found=prefix,
            hint="choose a path in UTF-8",
        )  # fmt: skip
    warnings = []
    for file in relocated:
        if file.fits(raw):
            continue
        why = f"a binary that no package manager wrote has room for {file.room} bytes; it keeps the packer's path"
        if strict:
            raise Unrelocatable(why, path=file.path, found=f"{len(raw)} bytes", hint="choose a shorter path")
        warnings.append(Warned("not-relocated", file.path, why))
    return warnings


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True

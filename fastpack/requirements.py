"""What an archive asks of a machine: platform, architecture and glibc, held against the one it is unpacked on."""

from __future__ import annotations

import os
from typing import Any

from fastpack.errors import WrongPlatform
from fastpack.model import Warned


def of_this_machine() -> dict[str, str]:
    """What a machine must be to run what was installed on this one, but for its glibc (see elf.py)."""
    system = os.uname()
    return {"platform": system.sysname, "arch": system.machine}


def glibc_here() -> str | None:
    """This machine's version of glibc; None where there is another C library."""
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
    except (OSError, ValueError):
        return None
    return version if name == "glibc" else None


def version_key(version: str) -> tuple[int, ...]:
    """``2.34`` -> (2, 34); () for what is no version."""
    parts = version.split(".")
    return tuple(map(int, parts)) if all(part.isdecimal() for part in parts) else ()


def check(requires: dict[str, Any], elsewhere: bool, ignore: bool = False) -> list[Warned]:
    """Hold an archive's requirements against this machine.

    Parameters
    ----------
    elsewhere : it is unpacked for another place (an image root): what does not agree is only warned of.
    ignore : the same, since the user says so.

    Raises
    ------
    WrongPlatform
    """
    here = of_this_machine()
    failures: list[tuple[str, str, str]] = []
    wanted = f"{requires.get('platform')} {requires.get('arch')}"
    if wanted != f"{here['platform']} {here['arch']}":
        failures.append(("the environment is for another platform", wanted, f"{here['platform']} {here['arch']}"))
    glibc = requires.get("glibc")
    if glibc is not None and not failures:
        found = glibc_here()
        if found is None or version_key(found) < version_key(glibc):
            what = f"the environment needs a newer glibc ({requires.get('glibc_file')} asks for it)"
            failures.append((what, f"glibc {glibc}", f"glibc {found}" if found else "another C library"))
    if elsewhere or ignore:
        return [Warned("requirements", None, f"{what}: expected {one}, found {two}") for what, one, two in failures]
    for what, expected, found in failures:
        raise WrongPlatform(
            what, expected=expected, found=found, hint="unpack it on such a machine, or add --ignore-requirements"
        )
    return []

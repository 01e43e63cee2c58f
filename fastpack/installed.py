"""What an environment that fastpack unpacked says of itself: manifest, relocations, state."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from fastpack import digest
from fastpack._place_py import INCOMPLETE, RELOCATIONS, Table, read_regular, read_state, read_table
from fastpack.errors import (
    DamagedArchive,
    EnvironmentNotFound,
    HostileArchive,
    IncompleteEnvironment,
    NewerFormat,
    NotAnEnvironment,
    Unreadable,
)
from fastpack.manifest import BROKEN, MANIFEST, Manifest, from_bytes


class Installed(NamedTuple):
    """What lies in ``.fastpack``. `state` is None where nothing was relocated yet."""

    manifest: Manifest
    table: Table
    state: dict[str, Any] | None
    archive_id: str


def read_installed(root: str, with_members: bool = True) -> Installed:
    """Read it; the manifest's members only if they are wanted.

    Raises
    ------
    EnvironmentNotFound, NotAnEnvironment, IncompleteEnvironment, Unreadable, DamagedArchive
    """
    if not os.path.isdir(root):
        raise EnvironmentNotFound("no such directory", path=root, hint="give the directory of an environment")
    if os.path.lexists(os.path.join(root, INCOMPLETE)):
        raise IncompleteEnvironment(
            "this environment was never unpacked to its end", path=root, hint="remove it and unpack the archive again"
        )
    if not os.path.lexists(os.path.join(root, RELOCATIONS)):
        raise NotAnEnvironment(
            "fastpack did not unpack this environment, so nothing says where its files name the prefix", path=root,
            hint="pack it with fastpack pack, and unpack that",
        )  # fmt: skip
    try:
        table = read_table(read_regular(os.path.join(root, RELOCATIONS)))
        state = read_state(root)
        data = read_regular(os.path.join(root, MANIFEST))
    except FileNotFoundError:
        raise IncompleteEnvironment("its manifest is missing", path=root, hint="unpack the archive again") from None
    except OSError as error:
        raise Unreadable(f"it cannot be read ({error.strerror})", path=error.filename or root) from None
    except BROKEN as error:
        raise IncompleteEnvironment(
            f"its relocations or its state are broken ({error})", path=root, hint="unpack the archive again"
        ) from None
    try:
        manifest = from_bytes(data, with_members)
    except (DamagedArchive, HostileArchive) as error:
        raise IncompleteEnvironment(
            f"its manifest is broken ({error.message})", path=root, hint="unpack the archive again"
        ) from None
    except NewerFormat as error:
        error.path = root
        raise
    return Installed(manifest, table, state, digest.blake(data).hex())


def same_place(one: str | None, two: str) -> bool:
    """Whether two paths name one directory."""
    try:
        return one is not None and os.path.samefile(one, two)
    except OSError:
        return False

"""Two environments side by side: byte for byte, mode for mode, with a closed list of what may differ."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator

#: What fastpack adds to an environment.
OWN = (
    ".fastpack/",
    "bin/activate",
    "bin/activate.fish",
    "bin/activate.csh",
    "bin/deactivate",
    "bin/deactivate.csh",
    "bin/conda-unpack",
)


def walk(root: str) -> Iterator[str]:
    """Every file and link below a directory."""
    for folder, folders, names in os.walk(root):
        for name in names + [f for f in folders if os.path.islink(os.path.join(folder, f))]:
            yield os.path.relpath(os.path.join(folder, name), root)


def snapshot(root: str, mtimes: bool = True) -> dict[str, tuple[object, ...]]:
    """Everything that matters of a tree: kind, mode, bytes or link target, and time."""
    found: dict[str, tuple[object, ...]] = {}
    for folder, folders, names in os.walk(root):
        for name in [*folders, *names]:
            full = os.path.join(folder, name)
            path = os.path.relpath(full, root)
            info = os.lstat(full)
            if stat.S_ISLNK(info.st_mode):
                found[path] = ("link", os.readlink(full))
            elif stat.S_ISDIR(info.st_mode):
                found[path] = ("directory", stat.S_IMODE(info.st_mode))
            else:
                with open(full, "rb") as file:
                    data = file.read()
                found[path] = ("file", stat.S_IMODE(info.st_mode), data, int(info.st_mtime) if mtimes else 0)
    return found


def _blank(record: dict[str, object]) -> dict[str, object]:
    """A record without link and cache paths: they name a package cache that is not on the target."""
    record = dict(record)
    for key in ("extracted_package_dir", "package_tarball_full_path", "link"):
        record.pop(key, None)
    return record


def differences(found: str, wanted: str) -> list[str]:
    """How an unpacked environment differs from a fresh installation at the same prefix. Closed list of exceptions:

    ``conda-meta/*.json`` may differ in link and cache paths; unmanaged ``.pyc`` files and fastpack's own members may be
    more. Anything else is a difference.
    """
    rows: list[str] = []
    one, two = set(walk(found)), set(walk(wanted))
    rows += [f"missing {path}" for path in sorted(two - one)]
    rows += [f"extra {path}" for path in sorted(one - two) if not path.startswith(OWN) and not path.endswith(".pyc")]
    for path in sorted(one & two):
        a, b = os.path.join(found, path), os.path.join(wanted, path)
        if os.path.islink(a) or os.path.islink(b):
            if not (os.path.islink(a) and os.path.islink(b) and os.readlink(a) == os.readlink(b)):
                rows.append(f"link {path}")
            continue
        with open(a, "rb") as first, open(b, "rb") as second:
            data, want = first.read(), second.read()
        is_record = path.startswith("conda-meta/")
        if data != want and not (
            path.endswith(".json") and is_record and _blank(json.loads(data)) == _blank(json.loads(want))
        ):
            rows.append(f"bytes {path}")
        # Group's and others' write bits follow the umask of the day; records are 0644 by design.
        if (os.stat(a).st_mode ^ os.stat(b).st_mode) & 0o755 and not is_record:
            rows.append(f"mode {path}")
    return rows

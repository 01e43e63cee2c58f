"""A real conda prefix without conda: packages made from files at hand, installed by conda's own rules.

Serves ``fastpack demo`` and the tests. The rules are written down here once more from conda's source, apart from the
kernels, so that they can serve as an oracle: conda/core/portability.py, ``binary_replace``, ``replace_prefix`` and
``update_prefix``; conda/core/link.py for the records.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

#: A build prefix of 255 bytes, as conda-build makes them.
BUILD_PLACEHOLDER = ("/home/builder/feedstock_root/build_artifacts/made_1700000000000/_h_env" + "_placehold" * 30)[:255]
CACHE = "/nowhere/pkgs"


def binary_replace(data: bytes, old: bytes, new: bytes) -> bytes:
    """conda's rule for binaries: in each C string that begins with a hit, replace every hit and pad with NULs."""

    def one(match: re.Match[bytes]) -> bytes:
        count = match.group().count(old)
        padding = (len(old) - len(new)) * count
        if padding < 0:
            raise ValueError("the prefix is longer than the placeholder")
        return match.group().replace(old, new) + b"\0" * padding

    return re.sub(re.escape(old) + b"(?:[^\0]*?)\0", one, data)


def replace_prefix(data: bytes, mode: str, old: bytes, new: bytes) -> bytes:
    """conda's rule for a package's file at installation, for prefixes whose first lines need no rewriting."""
    return data.replace(old, new) if mode == "text" else binary_replace(data, old, new)


@dataclass(slots=True)
class MadeFile:
    """A file of a package as the package holds it: `data` with the placeholder in it, or a link's target."""

    data: bytes = b""
    mode: int = 0o644
    link: str | None = None
    file_mode: str | None = None  # text or binary: it holds the placeholder
    placeholder: str = BUILD_PLACEHOLDER
    entry_point: bool = False  # written at installation, `data` with the placeholder
    mtime: int = 1_600_000_000
    with_digest: bool = True


@dataclass(slots=True)
class MadePackage:
    """A package to install; `style` is the client whose records are written: conda, rattler or micromamba."""

    name: str
    version: str = "1.0"
    build: str = "0"
    files: dict[str, MadeFile] = field(default_factory=dict)
    noarch: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    style: str = "conda"
    with_paths_data: bool = True


def install(packages: Sequence[MadePackage], prefix: str, history: bool = True) -> None:
    """Install packages into a prefix and write their ``conda-meta`` records, as a client of their style does."""
    os.makedirs(os.path.join(prefix, "conda-meta"), exist_ok=True)
    if history:
        with open(
            os.path.join(prefix, "conda-meta", "history"), "w", encoding="utf-8", errors="surrogateescape"
        ) as file:
            file.write("==> 2024-05-06 07:08:09 <==\n")
            file.write(f"# cmd: /opt/conda/bin/conda create -p {prefix} {' '.join(p.name for p in packages)}\n")
            file.write("# conda version: 24.5.0\n")
            file.writelines(f"+made::{p.name}-{p.version}-{p.build}\n" for p in packages)
            file.write(f"# update specs: {[p.name for p in packages]}\n")
    for package in packages:
        rows = [_install_file(prefix, path, made, package.style) for path, made in package.files.items()]
        record = _record(package, rows)
        name = f"{package.name}-{package.version}-{package.build}.json"
        with open(os.path.join(prefix, "conda-meta", name), "w", encoding="utf-8", errors="surrogateescape") as file:
            json.dump(record, file, indent=2, ensure_ascii=False)


def _install_file(prefix: str, path: str, made: MadeFile, style: str) -> dict[str, Any]:
    full = os.path.join(prefix, path)
    os.makedirs(os.path.dirname(full), exist_ok=True)
    row: dict[str, Any] = {"_path": path}
    if made.link is not None:
        if not os.path.lexists(full):
            os.symlink(made.link, full)
        row |= {"path_type": "softlink", "sha256": hashlib.sha256(b"").hexdigest(), "size_in_bytes": 0}
        return row
    old, new = os.fsencode(made.placeholder), os.fsencode(prefix)
    data = made.data
    if made.entry_point:
        data = data.replace(old, new)
    elif made.file_mode is not None:
        data = replace_prefix(data, made.file_mode, old, new)
    if os.path.lexists(full):  # clobbered by a later package, as conda does it
        os.unlink(full)
    with open(full, "wb") as file:
        file.write(data)
    os.chmod(full, made.mode)
    os.utime(full, (made.mtime, made.mtime))
    placed = hashlib.sha256(data).hexdigest()
    original = hashlib.sha256(made.data).hexdigest()
    if made.entry_point:
        row["path_type"] = "unix_python_entry_point"
        if style == "rattler":
            row |= {"sha256": placed, "size_in_bytes": len(data)}
        return row
    row["path_type"] = "hardlink"
    if not made.with_digest:
        return row
    row |= {"sha256": original, "size_in_bytes": len(made.data)}
    if style != "rattler" or made.file_mode is not None:
        row["sha256_in_prefix"] = placed
    if made.file_mode is not None and style != "micromamba":
        row |= {"prefix_placeholder": made.placeholder, "file_mode": made.file_mode}
    if style == "rattler" and made.file_mode is not None:
        row["size_in_bytes"] = len(data)
    return row


def _record(package: MadePackage, rows: list[dict[str, Any]]) -> dict[str, Any]:
    file_name = f"{package.name}-{package.version}-{package.build}"
    record: dict[str, Any] = {
        "build": package.build,
        "build_number": 0,
        "channel": "https://conda.example/made/linux-64",
        "depends": [],
        "extracted_package_dir": f"{CACHE}/{file_name}",
        "files": [row["_path"] for row in rows],
        "fn": f"{file_name}.conda",
        "link": {"source": f"{CACHE}/{file_name}", "type": 1},
        "name": package.name,
        "package_tarball_full_path": f"{CACHE}/{file_name}.conda",
        "paths_data": {"paths": rows, "paths_version": 1},
        "requested_spec": package.name,
        "subdir": "linux-64" if package.noarch is None else "noarch",
        "url": f"https://conda.example/made/linux-64/{file_name}.conda",
        "version": package.version,
    }
    if package.noarch is not None:
        record["noarch"] = package.noarch
    if not package.with_paths_data:
        del record["paths_data"]
    return record | package.extra


def entry_point(python: str, module: str, function: str) -> bytes:
    """The script that conda and rattler write for an entry point, with the placeholder in its first line."""
    return (
        f"#!{BUILD_PLACEHOLDER}/bin/{python}\n# -*- coding: utf-8 -*-\nimport re\nimport sys\n\n"
        f"from {module} import {function}\n\nif __name__ == '__main__':\n"
        "    sys.argv[0] = re.sub(r'(-script\\.pyw?|\\.exe)?$', '', sys.argv[0])\n"
        f"    sys.exit({function}())\n"
    ).encode()


def read_tree(folder: str, below: str, skip: Sequence[str] = ("__pycache__",)) -> dict[str, MadeFile]:
    """The files of a directory as a package's, under another path; links that lead out of it become files."""
    files: dict[str, MadeFile] = {}
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in skip)
        for name in sorted(names):
            full = os.path.join(parent, name)
            info = os.stat(full) if os.path.exists(full) else None
            if info is None or not stat.S_ISREG(info.st_mode):
                continue
            with open(full, "rb") as file:
                data = file.read()
            path = os.path.normpath(os.path.join(below, os.path.relpath(full, folder)))
            files[path] = MadeFile(data, 0o755 if info.st_mode & 0o100 else 0o644)
    return files

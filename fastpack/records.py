"""conda-meta records: what conda, mamba, micromamba, pixi and rattler say they installed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fastpack._place_py import read_regular
from fastpack.errors import BadRecord, Unreadable
from fastpack.model import PathEntry, Record


def read_records(prefix: str) -> list[Record]:
    """The records of an environment, in the order of their file names.

    Raises
    ------
    BadRecord : one that cannot be read, is cut off, or is not a record; it names the file.
    """
    folder = os.path.join(prefix, "conda-meta")
    names = sorted(name for name in os.listdir(folder) if name.endswith(".json") and not name.startswith("."))
    raw: dict[str, bytes] = {}
    for name in names:
        try:
            raw[f"conda-meta/{name}"] = read_regular(os.path.join(folder, name))
        except OSError as error:
            path = os.path.join(folder, name)
            raise Unreadable(f"a conda-meta record cannot be read ({error.strerror})", path=path) from None
    return parse_records(raw, prefix, lambda path: os.path.lexists(os.path.join(prefix, path)))


def parse_records(raw: Mapping[str, bytes], prefix: str, exists: Callable[[str], bool]) -> list[Record]:
    """Records from their bytes, by path below the prefix.

    Parameters
    ----------
    prefix : where they lie, for messages.
    exists : whether a path below the prefix is there.

    Raises
    ------
    BadRecord
    """
    tables = {path: _load(os.path.join(prefix, path), data) for path, data in raw.items()}
    site_packages = site_packages_path(tables.values())
    return [_record(path, table, prefix, site_packages, exists) for path, table in tables.items()]


def _load(path: str, data: bytes) -> dict[str, Any]:
    hint = "reinstall that package, or remove the file if it is no record"
    try:
        table = json.loads(data.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError) as error:
        raise BadRecord(f"a conda-meta record is not JSON ({error})", path=path, hint=hint) from None
    if not isinstance(table, dict) or not isinstance(table.get("name"), str):
        raise BadRecord("a conda-meta record has no package name", path=path, hint=hint)
    return table


def site_packages_path(tables: Iterable[dict[str, Any]]) -> str | None:
    """Where the environment's Python looks for packages, below the prefix; None without a Python.

    The record's own ``python_site_packages_path`` counts (a free-threaded Python has ``lib/python3.13t``); it follows
    from the version where an older client did not write it.
    """
    for table in tables:
        if table["name"] != "python":
            continue
        stated = table.get("python_site_packages_path")
        if isinstance(stated, str) and stated:
            return stated.strip("/")
        version = str(table.get("version", "")).split(".")
        if len(version) >= 2:
            threads = "t" if str(table.get("build", "")).endswith("_cp" + "".join(version[:2]) + "t") else ""
            return f"lib/python{version[0]}.{version[1]}{threads}/site-packages"
    return None


def _record(
    path: str, table: dict[str, Any], prefix: str, site_packages: str | None, exists: Callable[[str], bool]
) -> Record:
    noarch = table.get("noarch")
    if isinstance(noarch, dict):  # conda before 4.4 wrote an object here
        noarch = noarch.get("type")
    is_python = noarch == "python"
    full = os.path.join(prefix, path)
    data = table.get("paths_data")
    rows = data.get("paths") if isinstance(data, dict) else None
    entries: list[PathEntry] = []
    seen: set[str] = set()
    try:
        for row in rows or []:
            entry = PathEntry(
                path=_installed(str(row["_path"]), is_python, site_packages, exists),
                path_type=str(row.get("path_type") or ""),
                sha256=_text(row.get("sha256")),
                sha256_in_prefix=_text(row.get("sha256_in_prefix")),
                n_bytes=None if row.get("size_in_bytes") is None else int(row["size_in_bytes"]),
                file_mode=_text(row.get("file_mode")),
                placeholder=_text(row.get("prefix_placeholder")),
            )
            entries.append(entry)
            seen.add(entry.path)
        for name in table.get("files") or []:
            installed = _installed(str(name), is_python, site_packages, exists)
            if installed not in seen:
                entries.append(PathEntry(installed))
                seen.add(installed)
        for text in (table["name"], *(text for e in entries for text in (e.path, e.placeholder or ""))):
            if b"\0" in os.fsencode(text):
                raise ValueError("a NUL in a text")
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise BadRecord(
            f"a conda-meta record's list of files cannot be understood ({type(error).__name__}: {error})",
            path=full,
            hint="reinstall that package",
        ) from None
    channel = table.get("channel") or table.get("schannel") or ""
    if isinstance(channel, dict):
        channel = str(channel.get("name", ""))
    return Record(
        path=path,
        name=str(table["name"]),
        version=str(table.get("version", "")),
        build=str(table.get("build", table.get("build_string", ""))),
        channel=channel if isinstance(channel, str) else "",
        noarch=noarch if isinstance(noarch, str) else None,
        site_packages_path=site_packages if table["name"] == "python" else None,
        entries=tuple(entries),
    )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _installed(path: str, is_python: bool, site_packages: str | None, exists: Callable[[str], bool]) -> str:
    """Where a record's path lies: some clients record a noarch package's paths as the package has them."""
    if is_python and not exists(path):
        if site_packages is not None and path.startswith("site-packages/"):
            return site_packages + path[len("site-packages") :]
        if path.startswith("python-scripts/"):
            return "bin" + path[len("python-scripts") :]
    return path

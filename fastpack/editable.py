"""Packages that are installed in place (``pip install -e``): what tells of them, and where their code is."""

from __future__ import annotations

import json
import os
import re
import urllib.parse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from fastpack.model import DiskFile, Kind


@dataclass(frozen=True, slots=True)
class Editable:
    """A package whose code lies outside the environment: what tells so, and where the code is."""

    name: str
    evidence: str
    location: str
    roots: tuple[str, ...]  # directories, or single modules, that hold its code


def read_text(prefix: str, path: str) -> str:
    """A text of the environment, or nothing where it cannot be read."""
    try:
        with open(os.path.join(prefix, path), encoding="utf-8", errors="surrogateescape", newline="") as file:
            return file.read()
    except OSError:
        return ""


def editables(
    prefix: str, site_packages: Iterable[str], files: dict[str, DiskFile], earlier: tuple[str, ...]
) -> Iterator[Editable]:
    """Packages whose code lies outside: PEP 610, ``.egg-link``, ``.pth`` and ``__editable__`` finders.

    Code inside of the prefix comes along, and its path is relocated like any other.
    """
    seen: set[str] = set()
    places: set[str] = set()
    inside = tuple(path + "/" for path in (prefix, os.path.realpath(prefix), *earlier))
    telling = [
        path for path in files if path.endswith((".egg-link", ".pth", "_finder.py", ".dist-info/direct_url.json"))
    ]
    for root in site_packages:
        for path in telling:
            if not path.endswith("/direct_url.json") or os.path.dirname(os.path.dirname(path)) != root:
                continue
            try:
                table = json.loads(read_text(prefix, path))
                editable = table.get("dir_info", {}).get("editable") is True
                place = urllib.parse.unquote(urllib.parse.urlsplit(str(table.get("url", ""))).path)
            except (ValueError, AttributeError, RecursionError):
                continue
            if editable and not (place + "/").startswith(inside):
                places.add(place)
                name = os.path.basename(os.path.dirname(path)).split("-")[0]
                seen.add(name.lower().replace("-", "_"))
                yield Editable(name, path, str(table.get("url", "")), (place,))
        for path in telling:
            base = path.rpartition("/")[2]
            if os.path.dirname(path) != root or files[path].kind is Kind.DIRECTORY:
                continue
            if base.endswith(".egg-link"):
                name = base[: -len(".egg-link")]
                place = read_text(prefix, path).split("\n")[0].strip()
                if name.lower().replace("-", "_") not in seen and not (place + "/").startswith(inside):
                    seen.add(name.lower().replace("-", "_"))
                    places.add(place)
                    yield Editable(name, path, place, (place,))
            elif base.endswith(".pth") or (base.startswith("__editable__") and base.endswith("_finder.py")):
                name = base.removeprefix("__editable__").strip("_.").split("-")[0].removesuffix("_finder.py")
                if name.removesuffix(".pth").lower().split("_0")[0] in seen or any(
                    name.lower().replace(".", "_").startswith(known) for known in seen
                ):
                    continue
                full = os.path.join(prefix, root)
                for place in _outside_lines(read_text(prefix, path), base, full, inside):
                    if place not in places:
                        places.add(place)
                        yield Editable(name, path, place, tuple(_quoted_outside(prefix, path, inside, place)))


def _quoted_outside(prefix: str, path: str, inside: tuple[str, ...], place: str) -> Iterator[str]:
    """Where the code is that a ``.pth`` line or a finder leads to."""
    if place.startswith("/"):
        yield place
    else:
        yield from (found for found in _QUOTED.findall(read_text(prefix, path)) if not (found + "/").startswith(inside))


def _outside_lines(text: str, base: str, folder: str, inside: tuple[str, ...]) -> Iterator[str]:
    """Directories outside of the environment that a ``.pth`` file or a finder puts on Python's path."""
    if base.endswith(".pth"):
        for line in text.splitlines():
            if line.startswith(("import ", "import\t")):
                yield from (place for place in _QUOTED.findall(line) if not (place + "/").startswith(inside))
                continue
            place = os.path.normpath(os.path.join(folder, line.strip()))
            if line.strip() and not line.startswith("#") and not (place + "/").startswith(inside):
                yield place
    elif "MAPPING" in text and any(not (place + "/").startswith(inside) for place in _QUOTED.findall(text)):
        yield base


def also_inside(prefix: str, earlier: tuple[str, ...], path: str) -> list[str]:
    """The lines of a ``.pth`` file that do not lead out of the environment."""
    inside = tuple(place + "/" for place in (prefix, os.path.realpath(prefix), *earlier))
    folder, base = os.path.split(os.path.join(prefix, path))
    lines = [line for line in read_text(prefix, path).splitlines() if line.strip() and not line.startswith("#")]
    # setuptools' own lines around the list of what is installed in place
    lines = [line for line in lines if not line.startswith(("import sys; sys.__plen", "import sys; new=sys.path"))]
    return [line for line in lines if not list(_outside_lines(line, base, folder, inside))]


_QUOTED = re.compile(r"[\"'](/[^\"']+)[\"']")

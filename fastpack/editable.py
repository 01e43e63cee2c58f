"""Packages that are installed in place (``pip install -e``): what tells of them, and where their code is."""

from __future__ import annotations

import json
import os
import re
import urllib.parse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from fastpack.listing import Files
from fastpack.model import Kind


@dataclass(frozen=True, slots=True)
class Editable:
    """A package whose code lies outside the environment: what tells so, and where the code is."""

    name: str
    evidence: str
    location: str


def _at_once(path: str, flags: int) -> int:
    """What has become a FIFO meanwhile is not waited for."""
    return os.open(path, flags | os.O_NONBLOCK)


def read_text(prefix: str, path: str) -> str:
    """A text of the environment, or nothing where it cannot be read."""
    try:
        with open(
            os.path.join(prefix, path), encoding="utf-8", errors="surrogateescape", newline="", opener=_at_once
        ) as file:
            return file.read()
    except OSError:
        return ""


def find_editables(
    prefix: str, site_packages: Iterable[str], files: Files, earlier: tuple[str, ...]
) -> tuple[tuple[Editable, ...], dict[str, tuple[str, ...]]]:
    """Packages whose code lies outside, and the files that tell of them, each with the paths outside that it names.

    Told by ``direct_url.json`` (PEP 610), ``.egg-link``, ``.pth`` and ``__editable__`` finders. Code inside of the
    prefix comes along, and its path is relocated like any other.
    """
    inside = tuple(path + "/" for path in (prefix, os.path.realpath(prefix), *earlier))
    found: list[Editable] = []
    telling: dict[str, tuple[str, ...]] = {}
    roots = set(site_packages)
    names = (".egg-link", ".pth", "_finder.py", ".dist-info/direct_url.json")
    rows = zip(files.paths, files.kinds, strict=True)
    candidates = [path for path, kind in rows if path.endswith(names) and kind is not Kind.DIRECTORY]
    for path in candidates:
        folder, base = os.path.split(path)
        if base == "direct_url.json" and folder.endswith(".dist-info") and os.path.dirname(folder) in roots:
            url = _editable_url(read_text(prefix, path))
            place = _place_of(url)
            name = os.path.basename(folder).split("-")[0]
        elif base.endswith(".egg-link") and folder in roots:
            place = url = read_text(prefix, path).split("\n")[0].strip()
            name = base[: -len(".egg-link")]
        else:
            continue
        if place.startswith("/") and "\0" not in place and not (place + "/").startswith(inside):
            telling[path] = (place,)
            found.append(Editable(name, path, url))
    known = {os.path.realpath(place) for places in telling.values() for place in places}
    for path in candidates:
        folder, base = os.path.split(path)
        finder = base.startswith("__editable__") and base.endswith("_finder.py")
        if folder not in roots or not (finder or base.endswith(".pth")):
            continue
        outside = _outside(read_text(prefix, path), base, os.path.join(prefix, folder), inside)
        places = tuple(dict.fromkeys(place for place in outside if "\0" not in place))
        if not places:
            continue
        telling[path] = places
        name = base.removeprefix("__editable__").strip("_.").split("-")[0].removesuffix("_finder.py")
        for place in places:
            real = os.path.realpath(place)
            if not any(real == other or real.startswith(other + "/") for other in known):
                known.add(real)
                found.append(Editable(name, path, place))
    return tuple(found), telling


def _editable_url(text: str) -> str:
    """The URL in a ``direct_url.json`` of an editable package; nothing in any other one."""
    try:
        table = json.loads(text)
        return str(table.get("url", "")) if table.get("dir_info", {}).get("editable") is True else ""
    except (ValueError, AttributeError, RecursionError):
        return ""


def _place_of(url: str) -> str:
    """The path in a URL; nothing in what is none."""
    try:
        return urllib.parse.unquote(urllib.parse.urlsplit(url).path)
    except ValueError:
        return ""


def _outside(text: str, base: str, folder: str, inside: tuple[str, ...]) -> Iterator[str]:
    """Directories outside of the environment that a ``.pth`` file or a finder puts on Python's path."""
    if base.endswith(".pth"):
        for line in text.splitlines():
            if line.startswith(("import ", "import\t")):
                yield from (place for place in _QUOTED.findall(line) if not (place + "/").startswith(inside))
                continue
            place = os.path.normpath(os.path.join(folder, line.strip()))
            if line.strip() and not line.startswith("#") and not (place + "/").startswith(inside):
                yield place
    elif "MAPPING" in text:
        yield from (place for place in _QUOTED.findall(text) if not (place + "/").startswith(inside))


def also_inside(prefix: str, earlier: tuple[str, ...], path: str) -> list[str]:
    """The lines of a ``.pth`` file that do not lead out of the environment."""
    inside = tuple(place + "/" for place in (prefix, os.path.realpath(prefix), *earlier))
    folder, base = os.path.split(os.path.join(prefix, path))
    lines = [line for line in read_text(prefix, path).splitlines() if line.strip() and not line.startswith("#")]
    # setuptools' own lines around the list of what is installed in place
    lines = [line for line in lines if not line.startswith(("import sys; sys.__plen", "import sys; new=sys.path"))]
    return [line for line in lines if not list(_outside(line, base, folder, inside))]


_QUOTED = re.compile(r"[\"'](/[^\"']+)[\"']")

"""How rattler writes a script's first line, written down from crates/rattler/src/install/link.rs and entry_point.rs; and
what py-rattler 0.28 was seen to do with wide characters.
"""

from __future__ import annotations

import re

MAX_LINUX = 127


def _env(line: str) -> str:
    match = re.match(r"^(#![ ]*)(/(?:\\ |[^ \n\r\t])*)(.*)$", line)
    if match is None:
        return line
    path, rest = match.group(2), match.group(3)
    name = path.rsplit("/", 1)[-1]
    if re.match(r"^python(?:\d+(?:\.\d+)?)?$", name):
        return f"#!/bin/sh\n'''exec' \"{path}\"{rest} \"$0\" \"$@\" #'''"
    return f"#!/usr/bin/env {name}{rest}"


def replace_shebang(line: str, old: str, new: str) -> str:
    """``replace_shebang``: a prefix with a space, or a line over 127 bytes, needs another form."""
    if " " in new:
        return _env(line).replace(old, new) if old in line else line
    line = line.replace(old, new)
    return line if len(line.encode()) <= MAX_LINUX else _env(line)


def entry_point_shebang(prefix: str, python: str) -> str:
    """``PythonInfo::shebang``: the first line of an entry point's script."""
    path = f"{prefix}/{python}"
    if len(path.encode()) > MAX_LINUX - 2 or " " in path:
        return f"#!/bin/sh\n'''exec' \"{path}\" \"$0\" \"$@\" #'''"
    return f"#!{path}"


def replace_prefix(data: bytes, mode: str, old: bytes, new: bytes) -> bytes:
    """A package's file at a prefix, in narrow and wide characters. Where bytes may be either byte order, it is the one
    that lies at a whole character of the package's file, if its string holds no narrow one. The end of a file ends a
    string.
    """
    out = bytearray()
    position = 0
    while (found := _next(data, position, mode, old.decode())) is not None:
        offset, end, codec = found
        here, there = old.decode().encode(codec), new.decode().encode(codec)
        text = data[offset:end]
        out += data[position:offset] + text.replace(here, there)
        if mode == "binary":
            out += bytes(text.count(here) * (len(here) - len(there)))
        position = end
    return bytes(out + data[position:])


def _next(data: bytes, position: int, mode: str, text: str) -> tuple[int, int, str] | None:
    """The next string with a text in it, or in a text file the text alone: (its start, its end, its codec)."""
    widths = {"utf-8": 1, "utf-16-le": 2, "utf-16-be": 2, "utf-32-le": 4, "utf-32-be": 4}
    places = {codec: data.find(text.encode(codec), position) for codec in widths}
    first = min((place for place in places.values() if place >= 0), default=None)
    if first is None:
        return None
    rows = []
    for codec, width in widths.items():
        start, length = places[codec], len(text.encode(codec))
        if start < 0 or start - first >= width:  # not the same characters
            continue
        end = start + length
        if mode == "binary":
            units = range(start, len(data) - width + 1, width)
            end = next((at for at in units if not any(data[at : at + width])), len(data))
        holds = width > 1 and text.encode() in data[start:end]
        rows.append((holds, start % width != 0, start, end, codec))
    _, _, start, end, codec = min(rows)
    return start, end, codec

"""How rattler writes a script's first line, written down from crates/rattler/src/install/link.rs and entry_point.rs."""

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

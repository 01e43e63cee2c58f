"""What a file of an environment is there for, by its path: what a machine that only runs programs can do without."""

from __future__ import annotations

import re

_PYTHON = re.compile(r"lib/python[0-9][^/]*/")
_TESTS = frozenset(("test", "tests", "idle_test"))
_HEADERS = (".h", ".hh", ".hpp", ".hxx", ".cuh")
_DOCS = ("share/doc/", "share/man/", "share/info/", "share/gtk-doc/", "man/", "doc/", "docs/", "info/")
_DEBUG = (".debug", ".dwo", ".dwp", ".pdb")

#: The kinds, in the order in which `fastpack du` counts a file that is of several; each is a ``--slim`` preset.
KINDS = {
    "tests": "directories test, tests and idle_test in Python's packages and its standard library",
    "headers": "include/, and .h .hh .hpp .hxx .cuh anywhere",
    "static-libraries": ".a",
    "pyc": "compiled Python in __pycache__; Python makes it again where it may write",
    "docs": "share/doc, share/man, share/info, share/gtk-doc, and doc, docs, man, info at the top",
    "debug": "separate debug symbols: lib/debug, .debug, .dwo, .dwp, .pdb",
}


def kinds_of(path: str) -> tuple[str, ...]:
    """Which of `KINDS` a file is, in their order; nothing for what programs need.

    Parameters
    ----------
    path : the file's, below the prefix.
    """
    found = []
    folder, _, name = path.rpartition("/")
    python = _PYTHON.match(path)
    if python and not _TESTS.isdisjoint(folder[python.end() :].split("/")):
        found.append("tests")
    if path.startswith("include/") or name.endswith(_HEADERS):
        found.append("headers")
    if name.endswith(".a"):
        found.append("static-libraries")
    if name.endswith(".pyc") and folder.endswith("__pycache__"):
        found.append("pyc")
    if path.startswith(_DOCS):
        found.append("docs")
    if path.startswith("lib/debug/") or name.endswith(_DEBUG):
        found.append("debug")
    return tuple(found)

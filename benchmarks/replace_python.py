"""Replaces an environment's Python by the one that runs this: another patch release, or build, of the same version.

A channel with two of them is not always at hand. The files of the environment's ``python`` record go, those of the
running interpreter come with a record of their own; what pip installed stays.
"""

from __future__ import annotations

import glob
import json
import os
import sys

from fastpack.demo import python_package
from fastpack.made_prefix import install


def main(prefix: str) -> None:
    """Do it, or exit with a line that says why it cannot be done."""
    record = next((path for path in glob.glob(f"{prefix}/conda-meta/python-*.json") if _name(path) == "python"), None)
    if record is None:
        sys.exit(f"no package named python in {prefix}")
    with open(record, encoding="utf-8") as file:
        table = json.load(file)
    minor = f"{sys.version_info.major}.{sys.version_info.minor}"
    if table["version"].rsplit(".", 1)[0] != minor:
        sys.exit(f"the environment has Python {table['version']}, and this is {sys.version.split()[0]}")
    for path in table["files"]:
        full = os.path.join(prefix, path)
        if os.path.lexists(full):
            os.unlink(full)
    os.unlink(record)
    install([python_package()], prefix)
    print(f"{table['version']} by {sys.version.split()[0]}")


def _name(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return str(json.load(file)["name"])


if __name__ == "__main__":
    main(sys.argv[1])

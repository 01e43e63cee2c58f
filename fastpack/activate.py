"""The scripts an archive carries: activation, and conda-unpack put together from its parts."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from fastpack._version import VERSION

_FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "scripts")
_PACKAGE = os.path.dirname(_FOLDER)

#: Member name -> file in scripts/.
ACTIVATION = {
    "bin/activate": "activate",
    "bin/activate.fish": "activate.fish",
    "bin/activate.csh": "activate.csh",
    "bin/deactivate": "deactivate",
    "bin/deactivate.csh": "deactivate.csh",
    "bin/activate.nu": "activate.nu",
    "bin/activate.ps1": "activate.ps1",
}
CONDA_UNPACK = "bin/conda-unpack"
VARIABLES = ".fastpack/variables"

_OWN_IMPORT = re.compile(r"^from (?:__future__|fastpack\._relocate_py) import .*\n", re.MULTILINE)


def _read(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


def activation_scripts() -> dict[str, bytes]:
    """Member name -> content of the activation scripts (mode 0644)."""
    scripts = {member: _read(os.path.join(_FOLDER, name)).encode() for member, name in ACTIVATION.items()}
    return {**scripts, VARIABLES: _variables()}


def _variables() -> bytes:
    """What tells shells the variables that conda keeps: a sh head that finds a Python, over the Python text."""
    text = _read(os.path.join(_PACKAGE, "_variables_py.py"))
    return (_read(os.path.join(_FOLDER, "variables_head.sh")) + text[text.index("from __future__") :]).encode()


def conda_unpack(requires: Mapping[str, str]) -> bytes:
    """The text of ``bin/conda-unpack``: a POSIX-sh head over the kernels, the placing rules and a driver.

    Parameters
    ----------
    requires : see requirements.py.
    """
    head = _read(os.path.join(_FOLDER, "conda_unpack_head.sh"))
    parts = [
        _OWN_IMPORT.sub("", _read(os.path.join(_PACKAGE, "_relocate_py.py"))),
        _OWN_IMPORT.sub("", _read(os.path.join(_PACKAGE, "_place_py.py"))),
        _read(os.path.join(_FOLDER, "conda_unpack_driver.py")),
    ]
    text = head + "from __future__ import annotations\n\nimport errno\nimport sys\nimport time\n\n" + "\n\n".join(parts)
    values = {
        "VERSION": VERSION, "SYSTEM": requires["platform"], "MACHINE": requires["arch"],
        "GLIBC": requires.get("glibc", ""),
    }  # fmt: skip
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    return text.encode()

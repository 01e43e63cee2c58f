"""Cloudera parcels: what they are called, where they will lie, and the two files that make an archive one.

The rules are those of Cloudera's cm_ext ("The parcel format", "The parcel.json file", schema version 1): the name has
no dash, the directory in the archive is ``NAME-VERSION``, the file ``NAME-VERSION-DISTRO.parcel``;
``meta/parcel.json`` states name and version, the components and packages, and the script that a process sources.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fastpack.errors import UsageError

DEFAULT_ROOT, DEFAULT_DISTRO = "/opt/cloudera/parcels", "el7"

#: Sourced by the cluster's processes, inside a shell function: so `local` is allowed.
ENVIRONMENT_SCRIPT = b"""#!/bin/bash

local CDH_PREFIX="${PARCELS_ROOT}/${PARCEL_DIRNAME}"

if [ -z "${CDH_PYTHON}" ]; then
    export CDH_PYTHON="${CDH_PREFIX}/bin/python"
fi

# The packages' own activation.
local _script
for _script in "${CDH_PREFIX}"/etc/conda/activate.d/*.sh; do
    if [ -f "$_script" ]; then
        . "$_script"
    fi
done
"""


@dataclass(frozen=True, slots=True)
class Parcel:
    """What a parcel is called and where it will be activated."""

    name: str
    version: str
    distro: str
    root: str

    @property
    def directory(self) -> str:
        """The directory in the archive, and below `root`."""
        return f"{self.name}-{self.version}"

    @property
    def prefix(self) -> str:
        """Where the environment will lie."""
        return f"{self.root.rstrip('/')}/{self.directory}"

    @property
    def file_name(self) -> str:
        return f"{self.directory}-{self.distro}.parcel"

    def members(self, packages: Iterable[Mapping[str, str]]) -> dict[str, bytes]:
        """Paths and contents of the parcel's own files.

        Parameters
        ----------
        packages : with name, version and build.
        """
        about = {
            "schema_version": 1,
            "name": self.name,
            "version": self.version,
            "setActiveSymlink": True,
            "extraVersionInfo": {
                "fullVersion": f"{self.version}-{self.distro}", "baseVersion": self.version, "patchCount": "0",
            },
            "scripts": {"defines": "conda_env.sh"},
            "packages": [
                {"name": package["name"], "version": f"{package['version']}-{package['build']}"} for package in packages
            ],
            "components": [{"name": self.name, "version": self.version, "pkg_version": self.version}],
            "provides": ["spark-plugin"],
            "users": {},
            "groups": [],
        }  # fmt: skip
        return {
            "meta/conda_env.sh": ENVIRONMENT_SCRIPT,
            "meta/parcel.json": json.dumps(about, indent=2).encode("ascii") + b"\n",
        }


def make(environment: str, name: str | None, version: str | None, distro: str | None, root: str | None) -> Parcel:
    """A parcel of an environment's name, where nothing else is said.

    Raises
    ------
    UsageError : a name that cannot be told from a version.
    """
    parcel = Parcel(
        name or environment,
        version or datetime.date.today().strftime("%Y.%m.%d"),
        distro or DEFAULT_DISTRO,
        root or DEFAULT_ROOT,
    )
    for what, option, value in (
        ("name", "--parcel-name", parcel.name),
        ("distribution", "--parcel-distro", parcel.distro),
    ):
        if "-" in value or not re.fullmatch(r"[\w.+~]+", value):
            raise UsageError(
                f"a parcel's {what} has letters, digits, dots and underscores alone, and no dashes", found=value,
                hint=f"choose another one with {option}",
            )  # fmt: skip
    if not re.fullmatch(r"[\w.+~-]+", parcel.version):
        raise UsageError("a parcel's version has letters, digits, dots, dashes and underscores alone",
                         found=parcel.version, hint="choose another one with --parcel-version")  # fmt: skip
    if not parcel.root.startswith("/"):
        raise UsageError("--parcel-root is no absolute path", found=parcel.root)
    return parcel

"""From an environment's name to its prefix."""

from __future__ import annotations

import json
import os
import shutil
import subprocess

from fastpack.errors import EnvironmentNotFound


def prefix_of_name(name: str) -> str:
    """The prefix of a named environment.

    Looked up in ``~/.conda/environments.txt`` and the envs directories (CONDA_ENVS_PATH, CONDA_ENVS_DIRS, those of the
    installations that CONDA_EXE, MAMBA_EXE, CONDA_ROOT and MAMBA_ROOT_PREFIX name, ``~/.conda/envs``); only then is a
    conda, mamba or micromamba on PATH asked, never through a shell.

    Raises
    ------
    EnvironmentNotFound
    """
    if "/" in name or not name:
        raise EnvironmentNotFound("that is a path, not an environment's name", path=name, hint="give it with -p")
    known = _known_prefixes()
    found = [prefix for prefix in known if os.path.basename(prefix) == name and _is_environment(prefix)]
    if name == "base":
        found = [root for root in _roots() if _is_environment(root)] or found
    if not found:
        found = [prefix for prefix in _ask_clients() if os.path.basename(prefix) == name or name == "base"]
    distinct = list(dict.fromkeys(os.path.realpath(prefix) for prefix in found))
    if not distinct:
        names = sorted({os.path.basename(prefix) for prefix in known if _is_environment(prefix)})
        raise EnvironmentNotFound(
            f"no environment is named {name!r}",
            found=", ".join(names) or "no environments",
            hint="give its directory with -p",
        )
    if len(distinct) > 1 and name != "base":
        raise EnvironmentNotFound(
            f"several environments are named {name!r}", found=", ".join(distinct), hint="choose one with -p"
        )
    return found[0]


def _is_environment(prefix: str) -> bool:
    return os.path.isdir(os.path.join(prefix, "conda-meta"))


def _roots() -> list[str]:
    roots = [os.environ[name] for name in ("CONDA_ROOT", "MAMBA_ROOT_PREFIX") if os.environ.get(name)]
    for name in ("CONDA_EXE", "MAMBA_EXE"):
        exe = os.environ.get(name)
        if exe:
            roots.append(os.path.dirname(os.path.dirname(exe)))
    return list(dict.fromkeys(roots))


def _known_prefixes() -> list[str]:
    home = os.path.expanduser("~")
    prefixes: list[str] = []
    try:
        with open(os.path.join(home, ".conda", "environments.txt"), encoding="utf-8", errors="surrogateescape") as file:
            prefixes += [line.strip() for line in file if line.strip()]
    except OSError:
        pass
    folders = [
        folder
        for name in ("CONDA_ENVS_PATH", "CONDA_ENVS_DIRS")
        for folder in os.environ.get(name, "").split(os.pathsep)
        if folder
    ]
    folders += [os.path.join(root, "envs") for root in _roots()]
    folders.append(os.path.join(home, ".conda", "envs"))
    for folder in folders:
        try:
            prefixes += [os.path.join(folder, entry) for entry in sorted(os.listdir(os.path.expanduser(folder)))]
        except OSError:
            continue
    return list(dict.fromkeys(prefixes))


def _ask_clients() -> list[str]:
    for client in ("conda", "mamba", "micromamba"):
        exe = shutil.which(client)
        if exe is None:
            continue
        try:
            answer = subprocess.run([exe, "info", "--json"], capture_output=True, timeout=60, check=True)
            envs = json.loads(answer.stdout).get("envs", [])
        except (OSError, subprocess.SubprocessError, ValueError, AttributeError):
            continue
        return [env for env in envs if isinstance(env, str)]
    return []

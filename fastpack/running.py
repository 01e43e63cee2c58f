"""A command in an environment, without activating it in a shell: the variables that activation would set."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Mapping, Sequence

from fastpack import _variables_py
from fastpack._place_py import INCOMPLETE
from fastpack.errors import EnvironmentNotFound, FastpackError, IncompleteEnvironment, NotAnEnvironment, UsageError


def variables(prefix: str, before: Mapping[str, str]) -> dict[str, str]:
    """What an activated environment's variables are, made of those `before`.

    Raises
    ------
    EnvironmentNotFound, NotAnEnvironment, IncompleteEnvironment
    """
    if not os.path.isdir(prefix):
        raise EnvironmentNotFound("no such directory", path=prefix, hint="give the directory of an environment")
    if not os.path.isdir(os.path.join(prefix, "conda-meta")):
        raise NotAnEnvironment("no conda environment", path=prefix, expected="a directory conda-meta in it")
    if os.path.lexists(os.path.join(prefix, INCOMPLETE)):
        raise IncompleteEnvironment("it was not unpacked to its end", path=prefix, hint="unpack the archive again")
    name = os.path.basename(prefix)
    level = before.get("CONDA_SHLVL", "0")
    found = {
        **before,
        "CONDA_PREFIX": prefix,
        "CONDA_DEFAULT_ENV": name,
        "CONDA_SHLVL": str(int(level) + 1 if level.isdecimal() else 1),
        "CONDA_PROMPT_MODIFIER": f"({name}) ",
        "PATH": os.pathsep.join([os.path.join(prefix, "bin"), *filter(None, [before.get("PATH")])]),
    }
    try:
        found.update(_variables_py.read_variables(prefix))
    except ValueError as error:
        raise FastpackError(str(error), hint="mend that table, or remove it") from None
    return {name: value for name, value in found.items() if value != _variables_py.UNSET}


def _listed(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def run(prefix: str, command: Sequence[str]) -> None:
    """Become a command in an environment; the shell scripts of ``activate.d``, if there are any, are run before it.

    Raises
    ------
    UsageError : no command, or none of that name.
    FastpackError : see `variables`.
    """
    prefix = os.path.abspath(prefix)
    if not command:
        raise UsageError("no command is given", hint="fastpack run -p PREFIX -- COMMAND …")
    environment = variables(prefix, os.environ)
    activate = os.path.join(prefix, "bin/activate")
    scripts = os.path.join(prefix, "etc/conda/activate.d")
    if os.path.exists(activate) and any(name.endswith(".sh") for name in _listed(scripts)):
        # Written for a shell, so a shell it is; activation itself sets the rest.
        extra = {name: value for name, value in environment.items() if os.environ.get(name) != value}
        own = ("CONDA_PREFIX", "CONDA_DEFAULT_ENV", "CONDA_SHLVL", "CONDA_PROMPT_MODIFIER", "PATH")
        kept = {name: value for name, value in extra.items() if name not in own}
        text = '. "$1" || exit; shift; exec "$@"'
        _become("/bin/sh", ["sh", "-c", text, "sh", activate, *command], {**os.environ, **kept})
    program = shutil.which(command[0], path=environment["PATH"])
    if program is None:
        raise UsageError("no such command in the environment or on PATH", found=command[0])
    try:
        _become(program, list(command), environment)
    except OSError as error:
        if error.errno == errno.ENOEXEC:  # a script without a first line, which shells run themselves
            _become("/bin/sh", ["sh", program, *command[1:]], environment)
        raise FastpackError(f"the command cannot be started ({error.strerror})", path=program) from None


def _become(program: str, command: list[str], environment: dict[str, str]) -> None:
    # Python ignores these, and a program that is started would do so, too.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    os.execve(program, command, environment)

"""The variables that conda keeps for an environment, for a shell to set: part of every archive, standard library only.

Run as ``sh PREFIX/.fastpack/variables SHELL PREFIX``, it prints what sets them (for sh, fish or csh) and undoes that.
"""

from __future__ import annotations

import json
import os
import re
import sys

#: What ``conda env config vars unset`` writes.
UNSET = "***unset***"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
#: What shells will not have set, or what activation itself sets.
_OWN = frozenset(("UID", "EUID", "GID", "EGID", "PPID", "SHELLOPTS", "BASHOPTS", "status", "PATH"))
#: Bytes of a value that csh takes as a word of five characters each.
_MOST_IN_CSH = 1500


def read_variables(prefix: str) -> dict[str, str]:
    """As conda has it: those of ``etc/conda/env_vars.d`` in the order of names, then those of ``conda-meta/state``.

    Raises
    ------
    ValueError : a table that cannot be read; the message begins with its path.
    """
    folder = os.path.join(prefix, "etc", "conda", "env_vars.d")
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(".json"))
    except OSError:
        names = []
    found = {}
    for name in names:
        found.update(_table(os.path.join(folder, name), None))
    found.update(_table(os.path.join(prefix, "conda-meta", "state"), "env_vars"))
    return found


def _table(path: str, key: str | None) -> dict[str, str]:
    try:
        with open(path, encoding="utf-8") as file:
            table = json.load(file)
        if key is not None:
            table = table.get(key, {})
        for name, value in table.items():
            if not isinstance(value, str) or "\0" in value or not _NAME.fullmatch(name):
                raise ValueError(f"{name!r} is no variable's name and text")
            os.fsencode(value)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: a table of variables cannot be read ({error})") from None
    return dict(table)


def in_sh(variables: dict[str, str]) -> str:
    """For sh: what was set before is kept, and ``_FASTPACK_UNDO_VARIABLES`` brings it back."""
    sets, undo = [], []
    for name, value in variables.items():
        had, old = f"_FASTPACK_HAD_VAR_{name}", f"_FASTPACK_OLD_VAR_{name}"
        sets.append(f"{had}=${{{name}+x}}; {old}=${{{name}-}}")
        sets.append(f"\\unset {name}" if value == UNSET else f"{name}={_quoted(value)}; export {name}")
        # What was set and not exported is not handed on to this process.
        back = f"{name}=${old}; export {name}" if name in os.environ else f"\\unset {name}; {name}=${old}"
        undo.append(f'if [ -n "${had}" ]; then {back}; else \\unset {name}; fi; \\unset {had} {old}')
    return "\n".join([*sets, f"_FASTPACK_UNDO_VARIABLES={_quoted(chr(10).join(undo))}", ""])


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def in_fish(variables: dict[str, str]) -> str:
    """For fish: ``_FASTPACK_VARIABLES`` are the names, ``_FASTPACK_OLD_VAR_NAME`` what was set before."""
    lines = [f"set -g _FASTPACK_VARIABLES {' '.join(variables)}"]
    for name, value in variables.items():
        lines.append(f"set -q {name}; and set -g _FASTPACK_OLD_VAR_{name} ${name}")
        text = value.replace("\\", "\\\\").replace("'", "\\'")
        lines.append(f"set -e {name}" if value == UNSET else f"set -gx {name} '{text}'")
    return "\n".join([*lines, ""])


def in_csh(variables: dict[str, str]) -> str:
    """For csh: every byte by its number, as csh has no quotes that hold everything.

    ``_FASTPACK_VARIABLES`` are the names, ``_FASTPACK_HAD_VARIABLES`` those that were set before, to what
    ``_FASTPACK_OLD_VAR_NAME`` says.
    """
    lines = [f"set _FASTPACK_VARIABLES = ( {' '.join(variables)} )", "set _FASTPACK_HAD_VARIABLES = ( )"]
    for name, value in variables.items():
        lines.append(f"if ( $?{name} ) then")
        lines.append(f"set _FASTPACK_OLD_VAR_{name} = ${name}:q")
        lines.append(f"set _FASTPACK_HAD_VARIABLES = ( $_FASTPACK_HAD_VARIABLES {name} )")
        lines.append("endif")
        if value == UNSET:
            lines.append(f"unsetenv {name}")
        elif "\n" in value or len(os.fsencode(value)) > _MOST_IN_CSH:
            sys.stderr.write(f"activate: {name} is too long for csh, or has several lines; it is not set\n")
        else:
            text = "".join(f"\\0{byte:03o}" for byte in os.fsencode(value))
            lines.append(f"setenv {name} \"`printf %b '{text}'`\"")
    return "\n".join([*lines, ""])


def main(shell: str, prefix: str) -> None:
    """Print the code for a shell; nothing if there are no variables."""
    try:
        variables = read_variables(prefix)
    except ValueError as error:
        sys.exit(f"activate: {error}")
    for name in _OWN.intersection(variables):
        sys.stderr.write(f"activate: {name} is the shell's own; it is not set\n")
        del variables[name]
    if variables:
        code = {"sh": in_sh, "fish": in_fish, "csh": in_csh}[shell](variables)
        sys.stdout.buffer.write(os.fsencode(code))


if __name__ == "__main__":
    main(*sys.argv[1:])

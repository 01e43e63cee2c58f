"""bin/activate and deactivate in the real shells, after plain extraction and after unpacking."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import fastpack
from fastpack import activate
from fastpack.made_prefix import MadeFile, MadePackage, install
from tests.conftest import app_package
from tests.test_environment import write

SHELLS = ["bash", "zsh", "dash", "ksh", "sh"]


def require(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"not on this machine: {shell}")


@pytest.fixture
def env(tmp_path: Path) -> str:
    """An unpacked environment with activation scripts, one of which reads a variable that is not set."""
    source, target = str(tmp_path / "source"), str(tmp_path / 'it\'s an "env" 环境 $x')
    files = {
        "etc/conda/activate.d/a.sh": MadeFile(b'export APP_HOME="$CONDA_PREFIX/app"\n: $NOT_SET_ANYWHERE\n'),
        "etc/conda/activate.d/b.sh": MadeFile(b"export APP_ORDER=${APP_HOME##*/}\n"),
        "etc/conda/deactivate.d/a.sh": MadeFile(b"unset APP_HOME APP_ORDER\n"),
        "etc/conda/activate.d/a.fish": MadeFile(b'set -gx APP_HOME "$CONDA_PREFIX/app"\n'),
        "etc/conda/deactivate.d/a.fish": MadeFile(b"set -e APP_HOME\n"),
        "etc/conda/activate.d/a.csh": MadeFile(b'setenv APP_HOME "$CONDA_PREFIX/app"\n'),
        "etc/conda/activate.d/b.csh": MadeFile(b'setenv APP_ORDER "$APP_HOME:t"\n'),
        "etc/conda/deactivate.d/a.csh": MadeFile(b"unsetenv APP_HOME APP_ORDER\n"),
        "etc/conda/activate.d/other.txt": MadeFile(b"exit 3\n"),
    }
    install([app_package(), MadePackage("act", files=files)], source)
    out = str(tmp_path / "a.tar.zst")
    fastpack.pack(prefix=source, output=out)
    fastpack.unpack(out, target)
    return target


def run(shell: str, text: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG", "TMPDIR")}
    return subprocess.run(
        [shell, "-c", text, shell, *arguments], capture_output=True, text=True, env={**clean, **variables}, timeout=60
    )


@pytest.mark.parametrize("options", ["", "set -u; ", "set -eu; "])
@pytest.mark.parametrize("shell", SHELLS)
def test_activates_and_undoes_itself_exactly(env: str, tmp_path: Path, shell: str, options: str) -> None:
    require(shell)
    text = f"""{options}PS1='$ '; export PS1; cd /
set > "$2/before"
. "$1/bin/activate"
printf '%s\\n' "$CONDA_PREFIX" "$CONDA_DEFAULT_ENV" "$CONDA_SHLVL" "$PATH" "$PS1" "$APP_HOME" "$APP_ORDER"
. "$1/bin/activate"
printf '%s\\n' "$CONDA_SHLVL"
deactivate
set > "$2/after"
command -v deactivate || echo gone
"""
    done = run(shell, text, env, str(tmp_path), PATH="/usr/local/bin:/usr/bin:/bin")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    name = os.path.basename(env)
    assert done.stdout.splitlines() == [
        env, name, "1", f"{env}/bin:/usr/local/bin:/usr/bin:/bin", "(env) $ ", f"{env}/app", "app", "1", "gone",
    ]  # fmt: skip
    before, after = ((tmp_path / name).read_text().splitlines() for name in ("before", "after"))
    # What a shell itself changes from one `set` to the next.
    own = re.compile(
        r"^(_|BASH_\w+|LINENO|RANDOM|SRANDOM|SECONDS|EPOCH\w+|PIPESTATUS|TTYIDLE|status|\?|!|0|pipestatus)="
    )
    assert [line for line in after if not own.match(line)] == [line for line in before if not own.match(line)]


@pytest.mark.parametrize("shell", SHELLS)
def test_a_conda_environment_that_was_active_comes_back(env: str, shell: str) -> None:
    require(shell)
    text = """. "$1/bin/activate"; PATH=/mine:$PATH; echo "$CONDA_SHLVL"; deactivate
printf '%s\\n' "$CONDA_PREFIX" "$CONDA_DEFAULT_ENV" "$CONDA_SHLVL" "$PATH" """
    outer = {"CONDA_PREFIX": "/opt/conda", "CONDA_DEFAULT_ENV": "base", "CONDA_SHLVL": "2"}
    done = run(shell, text, env, **outer, PATH="/usr/bin:/bin")
    assert done.stdout.splitlines() == ["3", "/opt/conda", "base", "2", "/mine:/usr/bin:/bin"], done.stderr


@pytest.mark.parametrize("shell", SHELLS)
def test_one_after_another(env: str, tmp_path: Path, shell: str) -> None:
    require(shell)
    second = str(tmp_path / "second")
    fastpack.unpack(str(tmp_path / "a.tar.zst"), second)
    text = '. "$1/bin/activate"; . "$2/bin/activate"; echo "$CONDA_PREFIX:$CONDA_SHLVL:$PATH"; deactivate; echo "$PATH"'
    done = run(shell, text, env, second, PATH="/usr/bin:/bin")
    assert done.stdout.splitlines() == [f"{second}:1:{second}/bin:/usr/bin:/bin", "/usr/bin:/bin"], done.stderr


@pytest.mark.parametrize("shell", SHELLS)
def test_by_relative_path_and_in_a_script_and_a_subshell(env: str, tmp_path: Path, shell: str) -> None:
    require(shell)
    for text in ('cd "$1/bin"; . ./activate; echo "$CONDA_PREFIX"', 'cd "$1"; ( . bin/activate; echo "$CONDA_PREFIX" )',
                 'f() { . "$1/bin/activate"; }; f "$1"; echo "$CONDA_PREFIX"', '. "$1/bin/../bin/activate"; echo "$CONDA_PREFIX"'):  # fmt: skip
        done = run(shell, text, env)
        assert (done.stdout.strip(), done.stderr) == (env, ""), text
    script = tmp_path / "script"
    script.write_text('. "$1/bin/activate"\necho "$CONDA_PREFIX"\n')
    done = subprocess.run([shell, str(script), env], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == (env, "")


@pytest.mark.parametrize("shell", SHELLS)
def test_pending_relocations_are_said_in_one_line(env: str, tmp_path: Path, shell: str) -> None:
    require(shell)
    text = '. "$1/bin/activate"; echo "$CONDA_PREFIX"'
    raw = tmp_path / "raw"
    raw.mkdir()
    subprocess.run(["tar", "--zstd", "-xf", str(tmp_path / "a.tar.zst"), "-C", str(raw)], check=True)
    done = run(shell, text, str(raw))
    assert done.stdout.strip() == str(raw) and done.stderr.count("\n") == 1 and f"{raw}/bin/conda-unpack" in done.stderr
    moved = str(tmp_path / "moved 环")
    fastpack.unpack(str(tmp_path / "a.tar.zst"), str(tmp_path / "first"))
    os.rename(tmp_path / "first", moved)
    done = run(shell, text, moved)
    assert done.stdout.strip() == moved and "was moved" in done.stderr and done.stderr.count("\n") == 1
    assert run(shell, '"$1/bin/conda-unpack" -q', moved).returncode == 0
    assert run(shell, text, moved).stderr == ""


@pytest.mark.parametrize("shell", SHELLS)
def test_half_an_environment_is_not_activated(env: str, shell: str) -> None:
    require(shell)
    write(env, ".fastpack/incomplete", "")
    done = run(shell, '. "$1/bin/activate" || echo "refused $?"; echo "${CONDA_PREFIX-none}"', env)
    assert done.stdout.split() == ["refused", "1", "none"] and "not unpacked to its end" in done.stderr


@pytest.mark.parametrize("shell", SHELLS)
def test_deactivate_can_be_sourced_and_nothing_is_active(env: str, shell: str) -> None:
    require(shell)
    done = run(
        shell,
        'set -u; . "$1/bin/activate"; . "$1/bin/deactivate"; . "$1/bin/deactivate"; echo "${CONDA_PREFIX-none}"',
        env,
    )
    assert (done.stdout.strip(), done.stderr) == ("none", "")


def test_fish(env: str, tmp_path: Path) -> None:
    require("fish")
    text = """cd /
source "$argv[1]/bin/activate.fish"; or exit 1
printf '%s\\n' $CONDA_PREFIX $CONDA_DEFAULT_ENV $CONDA_SHLVL $PATH[1] $APP_HOME
source "$argv[1]/bin/activate.fish"
echo $CONDA_SHLVL
set -gx PATH /mine $PATH
deactivate
for name in CONDA_PREFIX CONDA_DEFAULT_ENV CONDA_SHLVL CONDA_PROMPT_MODIFIER APP_HOME _FASTPACK_PREFIX
    set -q $name; and echo "left $name"
end
string join : $PATH
functions -q deactivate; and echo "left deactivate"
"""
    done = subprocess.run(
        ["fish", "--no-config", "-c", text, env], capture_output=True, text=True, timeout=60,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.stderr == "", done.stderr
    assert done.stdout.splitlines() == [
        env, os.path.basename(env), "1", f"{env}/bin", f"{env}/app", "1", "/mine:/usr/bin:/bin",
    ]  # fmt: skip
    raw = tmp_path / "raw"
    raw.mkdir()
    subprocess.run(["tar", "--zstd", "-xf", str(tmp_path / "a.tar.zst"), "-C", str(raw)], check=True)
    done = subprocess.run(["fish", "--no-config", "-c", 'source "$argv[1]/bin/activate.fish"; echo $CONDA_PREFIX', str(raw)],
                          capture_output=True, text=True, env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)})  # fmt: skip
    assert done.stdout.strip() == str(raw) and f"{raw}/bin/conda-unpack" in done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_deactivate_of_another_tool_comes_back(env: str, shell: str) -> None:
    require(shell)
    done = run(shell, 'deactivate() { echo theirs; }; . "$1/bin/activate"; deactivate; deactivate', env)
    assert (done.stdout.strip(), done.stderr) == ("theirs", "")


# --- csh and tcsh


def run_csh(shell: str, folder: Path, text: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name in ("HOME", "LANG", "TMPDIR")}
    script = folder / "script.csh"
    script.write_text(text)
    path = {"PATH": "/usr/local/bin:/usr/bin:/bin"}
    return subprocess.run(
        [shell, "-f", str(script), *arguments],
        capture_output=True,
        text=True,
        env={**clean, **path, **variables},
        timeout=60,
    )


@pytest.mark.parametrize("shell", ["tcsh", "csh"])
@pytest.mark.parametrize(
    "before", [{}, {"CONDA_PREFIX": "/x y", "CONDA_SHLVL": "3", "CONDA_DEFAULT_ENV": "x"}], ids=["", "in another"]
)
def test_csh_activates_and_undoes_itself_exactly(env: str, tmp_path: Path, shell: str, before: dict[str, str]) -> None:
    require(shell)
    text = """set prompt = "% "
cd /
env | sort > "$2/before"
set > "$2/before-set"
source "$1/bin/activate.csh"
printf '%s\\n' "$CONDA_PREFIX" "$CONDA_DEFAULT_ENV" "$CONDA_SHLVL" "$PATH" "$prompt" "$APP_HOME" "$APP_ORDER"
source "$1/bin/activate.csh"
printf '%s\\n' "$CONDA_SHLVL"
setenv PATH "/mine:$PATH"
rehash
deactivate
printf '%s\\n' "$PATH"
setenv PATH "$PATH:s,/mine:,,"
env | sort > "$2/after"
set > "$2/after-set"
alias deactivate
"""
    done = run_csh(shell, tmp_path, text.replace("\\\\", "\\"), env, str(tmp_path), LANG="C.UTF-8", **before)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    usual = "/usr/local/bin:/usr/bin:/bin"
    level = str(int(before.get("CONDA_SHLVL", "0")) + 1)
    assert done.stdout.splitlines() == [
        env, os.path.basename(env), level, f"{env}/bin:{usual}", "(env) % ", f"{env}/app", "app", level, f"/mine:{usual}",
    ]  # fmt: skip
    for name in ("", "-set"):
        one, other = ((tmp_path / f"{when}{name}").read_text().splitlines() for when in ("before", "after"))
        own = ("_\t", "status\t", "_=")
        assert [x for x in other if not x.startswith(own)] == [x for x in one if not x.startswith(own)]


@pytest.mark.parametrize("shell", ["tcsh", "csh"])
def test_csh_goes_from_one_environment_to_another(env: str, tmp_path: Path, shell: str) -> None:
    require(shell)
    other = str(tmp_path / "other")
    fastpack.unpack(str(tmp_path / "a.tar.zst"), str(tmp_path / "first"))
    os.rename(tmp_path / "first", other)
    text = """source "$1/bin/activate.csh"
source "$2/bin/activate.csh"
printf '%s\\n' "$CONDA_PREFIX" "$CONDA_SHLVL" "$PATH"
deactivate
printf '%s\\n' $?CONDA_PREFIX "$PATH"
"""
    done = run_csh(shell, tmp_path, text.replace("\\\\", "\\"), env, other, LANG="C.UTF-8")
    assert done.stdout.splitlines() == [other, "1", f"{other}/bin:/usr/local/bin:/usr/bin:/bin", "0",
                                        "/usr/local/bin:/usr/bin:/bin"]  # fmt: skip
    assert "this environment was moved" in done.stderr and len(done.stderr.splitlines()) == 1
    (Path(other) / ".fastpack/incomplete").touch()
    done = run_csh(shell, tmp_path, 'source "$1/bin/activate.csh"\nprintf "%s" $?CONDA_PREFIX\n', other)
    assert done.stdout == "0" and "not unpacked to its end" in done.stderr


# --- variables that conda keeps (conda-meta/state, etc/conda/env_vars.d) ----------------------------------------------


@pytest.fixture
def with_variables(tmp_path: Path) -> str:
    """An environment with variables of every difficult kind; one names the environment, one takes another away."""
    source, target = str(tmp_path / "source"), str(tmp_path / "it's a target 环境")
    install([app_package()], source)
    write(source, "etc/conda/env_vars.d/app.json", json.dumps({"APP_A": "of the package", "APP_B": "b"}))
    own = {
        "APP_A": 'it\'s "all" $HOME `id` \\ ! % é ;',
        "APP_PATH": f"{source}/share",
        "GONE": "***unset***",
        "KEPT": "new",
    }
    write(source, "conda-meta/state", json.dumps({"env_vars": own, "version": 1}))
    out = str(tmp_path / "a.tar.zst")
    fastpack.pack(prefix=source, output=out)
    fastpack.unpack(out, target)
    return target


SAYS = 'printf "%s|" "$APP_A" "$APP_B" "$APP_PATH" "${GONE-not set}" "$KEPT"'
AFTER = 'printf "%s|" "${APP_A-not set}" "${APP_B-not set}" "${APP_PATH-not set}" "$GONE" "$KEPT"'


def expected(prefix: str) -> str:
    return f'it\'s "all" $HOME `id` \\ ! % é ;|b|{prefix}/share|not set|new|'


@pytest.mark.parametrize("options", ["", "set -eu; "])
@pytest.mark.parametrize("shell", SHELLS)
def test_variables_of_conda_are_set_and_undone(with_variables: str, shell: str, options: str) -> None:
    require(shell)
    text = f'{options}. "$1/bin/activate"; {SAYS}; echo; deactivate; {AFTER}; echo; set | grep -c ^_FASTPACK || :'
    done = run(shell, text, with_variables, GONE="was set", KEPT="old", LC_ALL="C.UTF-8")
    lines = [expected(with_variables), "not set|not set|not set|was set|old|", "0"]
    assert done.stdout.splitlines() == lines and not done.stderr, (done.stdout, done.stderr)


@pytest.mark.parametrize("shell", SHELLS)
def test_what_was_not_exported_is_not_afterwards(with_variables: str, shell: str) -> None:
    require(shell)
    text = (
        'KEPT=mine; . "$1/bin/activate"; sh -c \'echo "$KEPT"\'; deactivate; echo "$KEPT"; sh -c \'echo "${KEPT-no}"\''
    )
    assert run(shell, text, with_variables).stdout.splitlines() == ["new", "mine", "no"]


def test_variables_of_conda_in_fish(with_variables: str) -> None:
    require("fish")
    says = 'printf "%s|" "$APP_A" "$APP_B" "$APP_PATH" (set -q GONE; and echo "$GONE"; or echo "not set") "$KEPT"; echo'
    text = f"source $argv[1]/bin/activate.fish; {says}; deactivate; {says}; set -n | grep -c _FASTPACK"
    clean = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME")}
    done = subprocess.run(
        ["fish", "--no-config", "-c", text, with_variables], capture_output=True, text=True, timeout=60,
        env={**clean, "GONE": "was set", "KEPT": "old", "LC_ALL": "C.UTF-8"},
    )  # fmt: skip
    assert done.stdout.splitlines() == [expected(with_variables), "|||was set|old|", "0"], done.stderr


@pytest.mark.parametrize("shell", ["tcsh", "bsd-csh"])
def test_variables_of_conda_in_csh(with_variables: str, tmp_path: Path, shell: str) -> None:
    require(shell)
    script = tmp_path / "script.csh"
    show = f"sh -c '{SAYS}; echo'"
    after = f"sh -c '{AFTER}; echo'"
    script.write_text(
        f"source $1:q/bin/activate.csh\n{show}\ndeactivate\n{after}\nset | grep -c _FASTPACK\nalias | grep -c fastpack\n"
    )
    clean = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME")}
    done = subprocess.run(
        [shell, "-f", str(script), with_variables], capture_output=True, text=True, timeout=60,
        env={**clean, "GONE": "was set", "KEPT": "old", "LC_ALL": "C.UTF-8"},
    )  # fmt: skip
    lines = [expected(with_variables), "not set|not set|not set|was set|old|", "0", "0"]
    assert done.stdout.splitlines() == lines, (done.stdout, done.stderr)


def test_nushell_activates_and_undoes(with_variables: str, tmp_path: Path) -> None:
    require("nu")
    script = tmp_path / "script.nu"
    name = os.path.basename(with_variables)
    show = (
        'print ([($env.CONDA_PREFIX? | default "-") ($env.CONDA_DEFAULT_ENV? | default "-")'
        ' ($env.CONDA_SHLVL? | default "-") ($env.PATH | first) ($env.APP_A? | default "-") ($env.APP_B? | default "-")'
        ' ($env.APP_PATH? | default "-") ($env.GONE? | default "-") $env.KEPT] | str join "|")\n'
    )
    script.write_text(f"{show}overlay use `{with_variables}/bin/activate.nu`\n{show}deactivate\n{show}")
    clean = {name: value for name, value in os.environ.items() if name in ("HOME",)}
    done = subprocess.run(
        [str(shutil.which("nu")), "--no-config-file", str(script)], capture_output=True, text=True, timeout=60,
        env={**clean, "PATH": "/usr/bin:/bin", "GONE": "was set", "KEPT": "old", "LC_ALL": "C.UTF-8"},
    )  # fmt: skip
    before = "-|-|-|/usr/bin|-|-|-|was set|old"
    active = f"{with_variables}|{name}|1|{with_variables}/bin|{expected(with_variables)[:-1]}".replace("not set", "-")
    assert done.stdout.splitlines() == [before, active, before], (done.stdout, done.stderr)


def test_a_broken_table_of_variables_is_said_and_the_rest_works(with_variables: str) -> None:
    write(with_variables, "conda-meta/state", '{"env_vars": {"A B": "x"}}')
    done = run("sh", '. "$1/bin/activate"; echo "$CONDA_PREFIX"; deactivate; echo "${APP_B-not set}"', with_variables)
    assert done.stdout.splitlines() == [with_variables, "not set"]
    assert "conda-meta/state" in done.stderr and "'A B'" in done.stderr and len(done.stderr.splitlines()) == 1
    os.unlink(os.path.join(with_variables, "conda-meta/state"))
    empty = run("/bin/sh", 'PATH=/nowhere; . "$1/bin/activate"; :', with_variables)
    assert "no Python" in empty.stderr or "not found" in empty.stderr


def test_what_tells_variables_runs_on_old_pythons() -> None:
    """Of other minor versions that are at hand; the text itself asks for 3.8."""
    ast.parse(activate.activation_scripts()[activate.VARIABLES].decode(), feature_version=(3, 8))


def test_fish_says_that_it_went_well(with_variables: str) -> None:
    require("fish")
    done = subprocess.run(
        ["fish", "--no-config", "-c", "source $argv[1]/bin/activate.fish; echo $status", with_variables],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.strip() == "0"


@pytest.mark.parametrize("shell", [*SHELLS, "tcsh", "bsd-csh"])
def test_variables_that_a_shell_cannot_have_are_said(with_variables: str, shell: str) -> None:
    """Its own ones and, in csh, long ones; a Python that does not run is passed over."""
    require(shell)
    table = {"env_vars": {"UID": "1", "PATH": "/nowhere", "LONG": "x" * 5000, "FINE": "yes"}}
    write(with_variables, "conda-meta/state", json.dumps(table))
    write(with_variables, "bin/python", "\0nothing that runs", 0o755)
    csh = "csh" in shell
    text = f'source "{with_variables}/bin/activate.csh"' if csh else '. "$1/bin/activate"'
    script = Path(with_variables).parent / "script"
    script.write_text(f"{text}\nsh -c 'echo \"$FINE ${{#LONG}}\"'\n")
    command = [shell, "-f", str(script)] if csh else [shell, str(script), with_variables]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["yes 0" if csh else "yes 5000"], done.stderr
    assert "UID is the shell's own" in done.stderr and ("LONG is too long" in done.stderr) == csh


def test_nushell_keeps_its_path(with_variables: str, tmp_path: Path) -> None:
    require("nu")
    write(with_variables, "conda-meta/state", '{"env_vars": {"PATH": "/nowhere", "A": "1"}}')
    script = tmp_path / "script.nu"
    script.write_text(f"overlay use `{with_variables}/bin/activate.nu`\nprint ($env.PATH | first)\nprint $env.A\n")
    done = subprocess.run(
        [str(shutil.which("nu")), "--no-config-file", str(script)], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines() == [f"{with_variables}/bin", "1"], done.stderr


def test_nushell_refuses_a_table_as_other_shells_do(with_variables: str, tmp_path: Path) -> None:
    require("nu")
    script = tmp_path / "script.nu"
    for text in ('{"env_vars": {"A B": "x"}}', "{broken", '{"env_vars": {"A": 2}}'):
        write(with_variables, "conda-meta/state", text)
        script.write_text(
            f"overlay use `{with_variables}/bin/activate.nu`\nprint $env.CONDA_PREFIX\ncd /usr\ndeactivate\npwd\n"
        )
        done = subprocess.run(
            [str(shutil.which("nu")), "--no-config-file", str(script)], capture_output=True, text=True, timeout=60
        )
        assert done.stdout.splitlines() == [with_variables, "/usr"] and "cannot be read" in done.stderr, done

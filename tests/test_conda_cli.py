"""conda-pack's command line and API by another name, beside the real one where it is installed."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import types
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import fastpack
from fastpack import conda_cli
from fastpack.compat import conda_pack
from fastpack.demo import make_channel_environment
from fastpack.made_prefix import MadeFile, MadePackage, install
from tests.conftest import P, app_package, channel
from tests.oracles.trees import OWN, snapshot
from tests.test_environment import SITE, dist, write


@pytest.fixture
def env(tmp_path: Path) -> str:
    """An environment that both tools pack: nothing dangling, a package cache in place, no Python."""
    prefix = str(tmp_path / "envs" / "my_env")
    files = dict(app_package().files)
    del files["share/app/dangling"]
    files["bin/app"] = MadeFile(b"#!" + P + b"/bin/python\nprint(1)\n", 0o755, file_mode="text")
    packages = [MadePackage("app", files=files), MadePackage("more", files={"lib/more.txt": MadeFile(b"more\n")})]
    install(packages, prefix)
    for package in packages:
        keep_in_cache(package, prefix, tmp_path / "pkgs" / package.name)
    write(prefix, "share/own.txt", f"home {prefix}/share\n")
    write(prefix, "share/skip.pyx", "x")
    write(prefix, "share/keep.pyx", "x")
    return prefix


def keep_in_cache(package: MadePackage, prefix: str, folder: Path) -> None:
    """What conda-pack reads: the extracted package, as the record says where."""
    rows = []
    for path, made in package.files.items():
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        if made.link is not None:
            place.symlink_to(made.link)
        else:
            place.write_bytes(made.data)
            place.chmod(made.mode)
        row = {"_path": path, "path_type": "softlink" if made.link is not None else "hardlink"}
        if made.file_mode:
            row |= {"prefix_placeholder": P.decode(), "file_mode": made.file_mode}
        rows.append(row)
    (folder / "info").mkdir()
    (folder / "info/paths.json").write_text(json.dumps({"paths": rows}))
    (record,) = Path(prefix, "conda-meta").glob(f"{package.name}-*.json")
    table = json.loads(record.read_text())
    table["link"] = {"source": str(folder), "type": 1}
    table.setdefault("url", "")
    record.write_text(json.dumps(table))


def ours(*arguments: object, cwd: object = None, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **variables}
    code = "from fastpack.conda_cli import main; main()"
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, cwd=cwd,
                          env=environment)  # fmt: skip


# --- the command line


def test_the_options_are_conda_packs() -> None:
    """Names, short forms and defaults as in `conda-pack --help` of 0.9.2."""
    wanted = {
        "--name": None, "-n": None, "--prefix": None, "-p": None, "--output": None, "-o": None, "--arcroot": "",
        "--dest-prefix": None, "-d": None, "--parcel-root": None, "--parcel-name": None, "--parcel-version": None,
        "--parcel-distro": None, "--format": "infer", "--compress-level": 4, "--n-threads": 1, "-j": 1,
        "--zip-symlinks": False, "--no-zip-64": False, "--ignore-editable-packages": False,
        "--ignore-missing-files": False, "--exclude": None, "--include": None, "--force": False, "-f": False,
        "--quiet": False, "-q": False, "--help": "==SUPPRESS==", "-h": "==SUPPRESS==", "--version": False,
    }  # fmt: skip
    found = {name: action.default for action in conda_cli.build_parser()._actions for name in action.option_strings}
    assert found == wanted
    try:
        real = importlib.import_module("conda_pack.cli").PARSER
    except ImportError:
        return
    assert found == {name: action.default for action in real._actions for name in action.option_strings}
    choices = {tuple(a.choices or ()) for a in real._actions} - {()}
    assert {tuple(a.choices or ()) for a in conda_cli.build_parser()._actions} - {()} == choices


def test_names_defaults_and_exit_codes(env: str, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    done = ours("-p", env, cwd=work)
    assert done.returncode == 0, done.stderr
    assert os.listdir(work) == ["my_env.tar.gz"] and "Collecting packages..." in done.stdout
    done = ours("-p", env, cwd=work)
    assert done.returncode == 1 and done.stderr.startswith("CondaPackError: ") and "already" in done.stderr
    done = ours("-p", env, "-f", "-q", cwd=work)
    assert done.returncode == 0 and done.stdout == ""
    for arguments, says in (
        (["-p", env, "-n", "x"], "Cannot specify both"),
        (["-p", tmp_path / "gone"], "no such directory"),
        (["-p", tmp_path], "conda-meta"),
        (["-p", env, "-o", "x.rar"], "Unknown file extension"),
        (["-p", env, "-j", "0"], "n-threads"),
        (["-p", env, "-o", "no/such/dir/x.tar"], "directory"),
        (["-p", env, "--format", "parcel", "--parcel-name", "a-b"], "dashes"),
        (["-p", env, "--format", "parcel", "--arcroot", "x"], "parcel"),
    ):
        done = ours(*arguments, "-q", cwd=work)
        assert done.returncode == 1 and says in done.stderr, (arguments, done.stderr)
        assert done.stderr.startswith("CondaPackError: ")
    assert ours("-p", env, "--format", "rar").returncode == 2  # argparse's, as conda-pack's
    assert ours("-p", env, "-f", "-q", "-o", "new/dir/x.tgz", cwd=work).returncode == 0
    done = ours("--version")
    assert done.returncode == 0 and re.fullmatch(r"conda-fastpack \S+\n", done.stdout)
    assert os.listdir(work / "new/dir") == ["x.tgz"]


def test_the_documented_examples(env: str, tmp_path: Path) -> None:
    """conda-pack's own, from its README and manual, with the name changed."""
    fake = tmp_path / "bin" / "conda"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\necho \'{"envs": ["' + env + '"], "default_prefix": "' + env + "\"}'\n")
    fake.chmod(0o755)
    work = tmp_path / "work"
    work.mkdir()
    known = {"PATH": f"{fake.parent}:{os.environ['PATH']}", "CONDA_EXE": str(fake), "CONDA_PREFIX": env,
             "HOME": str(tmp_path)}  # fmt: skip
    (tmp_path / ".conda").mkdir()
    (tmp_path / ".conda/environments.txt").write_text(env + "\n")
    for arguments, out in (
        ("-n my_env", "my_env.tar.gz"),
        ("-n my_env -o out_name.tar.gz", "out_name.tar.gz"),
        (f"-p {env} -f", "my_env.tar.gz"),
        ("-f", "my_env.tar.gz"),
        ("-n my_env -o my_env.tar -d /opt/x", "my_env.tar"),
        ("-n my_env --format no-archive -o my_dir.no-archive", "my_dir.no-archive"),
        (
            "-n my_env --format parcel --parcel-name my_env --parcel-version 1 --parcel-distro el8",
            "my_env-1-el8.parcel",
        ),
    ):
        done = ours(*arguments.split(), cwd=work, **known)
        assert done.returncode == 0, (arguments, done.stderr)
        assert (work / out).exists(), arguments
    # "On the target machine": unpack, activate, clean up prefixes.
    target = work / "my_env"
    target.mkdir()
    text = "tar -xzf my_env.tar.gz -C my_env && . my_env/bin/activate && my_env/bin/conda-unpack && deactivate"
    done = subprocess.run(["bash", "-ec", text], cwd=work, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Path(target, "share/own.txt").read_text() == f"home {target}/share\n"


def test_filters_are_applied_in_order(env: str, tmp_path: Path) -> None:
    out = tmp_path / "x.tar"
    assert ours("-p", env, "-o", out, "--exclude", "*.pyx", "--include", "share/keep*", "-q").returncode == 0
    with tarfile.open(out) as archive:
        names = archive.getnames()
    assert "share/keep.pyx" in names and "share/skip.pyx" not in names


# --- the API


def test_the_names_of_the_module() -> None:
    assert {"CondaEnv", "CondaPackException", "File", "pack", "__version__", "context"} <= set(dir(conda_pack))


def test_the_api_returns_paths(env: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = conda_pack.CondaEnv.from_prefix(env)
    assert found.name == "my_env" and found.prefix == env and "my_env" in repr(found)
    targets = [file.target for file in found]
    assert targets == sorted(targets) and "share/keep.pyx" in targets and len(found) == len(targets)
    app = next(file for file in found.files if file.target == "bin/app")
    assert app.is_conda and app.file_mode == "text" and app.source == f"{env}/bin/app" and app.prefix_placeholder
    assert not next(file for file in found if file.target == "share/own.txt").is_conda
    record = next(file for file in found if file.target.startswith("conda-meta/app-"))
    assert record.is_conda and record.file_mode is None
    some = found.exclude("*.pyx").include("share/keep*")
    assert len(found) - len(some) == 1
    assert some.pack() == "my_env.tar.gz" and some.pack(format="zip") == "my_env.zip"
    assert some.pack(output="a.tar.zst", compress_level=9, n_threads=-1) == "a.tar.zst"
    assert conda_pack.pack(prefix=env, output="b.tbz2", filters=[("exclude", "*.pyx")], compress_level=0) == "b.tbz2"
    assert some.pack(format="parcel", parcel_version="1") == "my_env-1-el7.parcel"
    assert some.pack(format="tgz") == "my_env.tgz"
    with zipfile.ZipFile("my_env.zip") as archive:
        assert "share/keep.pyx" in archive.namelist() and "share/skip.pyx" not in archive.namelist()
    for call in (
        lambda: conda_pack.pack(prefix=env, name="x"), lambda: conda_pack.pack(prefix=str(tmp_path)),
        lambda: conda_pack.pack(prefix=env, filters=[("remove", "x")], output="c.tar"),
        lambda: conda_pack.pack(prefix=env, output="a.tar.zst"), lambda: some.pack(output="x"),
        lambda: some.pack(output="c.tar", n_threads=0),
    ):  # fmt: skip
        with pytest.raises(conda_pack.CondaPackException):
            call()
    os.unlink(os.path.join(env, "lib/more.txt"))
    with pytest.raises(conda_pack.CondaPackException, match=r"more 1\.0.*lib/more"):
        conda_pack.CondaEnv.from_prefix(env)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        conda_pack.pack(prefix=env, output="d.tar", ignore_missing_files=True)
    assert any("lib/more.txt" in str(warning.message) for warning in said)


# --- conda's plugin


def test_the_plugin_offers_a_subcommand(monkeypatch: pytest.MonkeyPatch) -> None:
    """No conda is at hand: a stand-in for ``conda.plugins`` asks as conda does, through the entry point."""

    class CondaSubcommand:
        def __init__(self, name: str, summary: str, action: Callable[[list[str]], object]) -> None:
            self.name, self.summary, self.action = name, summary, action

    plugins = types.ModuleType("conda.plugins")
    plugins.hookimpl = lambda function: function  # type: ignore[attr-defined]
    plugins.CondaSubcommand = CondaSubcommand  # type: ignore[attr-defined]
    conda = types.ModuleType("conda")
    conda.plugins = plugins  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "conda", conda)
    monkeypatch.setitem(sys.modules, "conda.plugins", plugins)
    monkeypatch.delitem(sys.modules, "fastpack.plugin", raising=False)
    (entry,) = [e for e in importlib.metadata.entry_points(group="conda") if e.name == "fastpack"]
    (command,) = entry.load().conda_subcommands()
    assert command.name == "fastpack"
    with pytest.raises(SystemExit) as ended:
        command.action(["--version"])
    assert ended.value.code == 0


# --- beside the real one

FORMATS = {"tar.gz": [], "tar.bz2": [], "tar.xz": [], "tar.zst": [], "tar": [], "zip": [], "zip links": ["--zip-symlinks"],
           "no-archive": [], "squashfs": []}  # fmt: skip
#: What conda-pack's archives have and ours do not, and what is written another way: docs/migrating.md.
THEIRS = re.compile(
    r"bin/conda_unpack_progress\.py|bin/__pycache__(/.*)?"  # of its conda-unpack
    r"|tmp[a-z0-9_]{8}"  # its no-archive moves its empty temporary file into the directory
)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    "options", [[], ["--arcroot", "a/b"], ["-d", "/opt/elsewhere/env"], ["--exclude", "*.pyx"]], ids=str
)
def test_what_unpacks_is_what_conda_packs_unpacks(name: str, options: list[str], env: str, tmp_path: Path) -> None:
    pytest.importorskip("conda_pack")
    format_ = name.split(maxsplit=1)[0]
    if format_ == "squashfs" and not (shutil.which("mksquashfs") and shutil.which("unsquashfs")):
        pytest.skip("no squashfs-tools")
    trees = []
    for tool in ("conda_pack.cli", "fastpack.conda_cli"):
        out = tmp_path / f"{tool}.{format_}"
        arguments = ["-p", env, "-o", str(out), "-q", *FORMATS[name], *options]
        code = f"from {tool} import main; main()"
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", code, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        target = tmp_path / "unpacked"  # the same place for both: what conda-unpack writes names it
        unpack(format_, out, target)
        inner = target / "a/b" if "--arcroot" in options else target
        if "-d" not in options:
            python = sys.executable
            subprocess.run([python, inner / "bin/conda-unpack"] if tool.startswith("conda") else [inner / "bin/conda-unpack", "-q"],
                           check=True, env={**os.environ, "PATH": f"{os.path.dirname(python)}:{os.environ['PATH']}"})  # fmt: skip
        trees.append(snapshot(str(inner), mtimes=False))
        shutil.rmtree(target)
    one, other = trees

    def ignored(path: str) -> bool:
        return path.startswith((*OWN, "conda-meta/")) or path == ".fastpack" or THEIRS.fullmatch(path) is not None

    one, other = ({path: row for path, row in tree.items() if not ignored(path)} for tree in trees)
    assert one.keys() == other.keys()
    different = {path for path in one if one[path] != other[path]}
    # Directories' and read-only files' group bits, and first lines: see docs/migrating.md.
    assert different <= {"bin/app", "share/app/private.txt", *(path for path in one if one[path][0] == "directory")}, (
        different
    )
    assert one["bin/app"][2].split(b"\n")[1:] == other["bin/app"][2].split(b"\n")[1:]


def unpack(format_: str, out: Path, target: Path) -> None:
    target.mkdir()
    if format_ == "zip":
        command = ["unzip", "-q", str(out), "-d", str(target)]
    elif format_ == "squashfs":
        target.rmdir()
        command = ["unsquashfs", "-quiet", "-no-progress", "-d", str(target), str(out)]
    elif format_ == "no-archive":
        target.rmdir()
        shutil.copytree(out, target, symlinks=True)
        return
    else:
        command = ["tar", "-xf", str(out), "-C", str(target)]
    subprocess.run(command, check=True)


# --- environments that conda-pack's users asked about


def test_on_missing_and_on_modified(env: str, tmp_path: Path) -> None:
    from tests.conftest import run_fastpack

    out = tmp_path / "x.tar.zst"
    write(env, "share/app/plain.txt", "changed\n")
    done = run_fastpack("pack", "-p", env, "-o", out, "--on-modified", "error")
    assert done.code == 17 and "share/app/plain.txt" in done.err and "app" in done.err and not out.exists()
    done = run_fastpack("pack", "-p", env, "-o", out)
    assert done.code == 0 and "changed since" in done.err
    assert "changed since" not in run_fastpack("pack", "-p", env, "-f", "-o", out, "--on-modified", "ignore").err
    os.unlink(os.path.join(env, "lib/more.txt"))
    assert run_fastpack("pack", "-p", env, "-f", "-o", out).code == 13
    for policy, says in (("warn", True), ("ignore", False)):
        done = run_fastpack("pack", "-p", env, "-f", "-o", out, "--on-missing", policy)
        assert done.code == 0 and ("lib/more.txt" in done.err) == says
    assert "lib/more.txt" in run_fastpack("pack", "-p", env, "-f", "-o", out, "--ignore-missing-files").err


def test_editable_packages_are_dropped(env: str, tmp_path: Path) -> None:
    from tests.conftest import run_fastpack

    source = tmp_path / "source"
    (source / "mine").mkdir(parents=True)
    dist(env, "mine", {"__editable__.mine-1.0.pth": f"{source}\n".encode(), "../../../bin/mine": b"#!/bin/sh\n"})
    info = next(Path(env, SITE).glob("mine-*.dist-info"))
    (info / "direct_url.json").write_text(f'{{"url": "file://{source}", "dir_info": {{"editable": true}}}}')
    dist(env, "other", {"other.py": b"x = 1\n"})
    out = tmp_path / "x.tar"
    done = run_fastpack("pack", "-p", env, "-o", out)
    assert done.code == 14 and "mine" in done.err and str(source) in done.err
    done = run_fastpack("pack", "-p", env, "-o", out, "--editable", "drop")
    assert done.code == 0 and "left out" in done.err
    with tarfile.open(out) as archive:
        names = archive.getnames()
    assert not [name for name in names if "mine" in name] and f"{SITE}/other.py" in names
    for option in (["--editable", "ignore"], ["--ignore-editable-packages"]):
        assert run_fastpack("pack", "-p", env, "-f", "-o", out, *option).code == 0
        with tarfile.open(out) as archive:
            assert f"{SITE}/__editable__.mine-1.0.pth" in archive.getnames()


def test_a_read_only_environment_is_relocated_into_an_overlay(env: str, tmp_path: Path) -> None:
    from tests.conftest import run_fastpack

    image, root, overlay = tmp_path / "x.tar", tmp_path / "mounted", tmp_path / "upper"
    fastpack.pack(prefix=env, output=str(image))
    root.mkdir()
    subprocess.run(["tar", "-xf", image, "-C", root], check=True)
    before = snapshot(str(root))
    done = run_fastpack("relocate", root, "--overlay", overlay, "--json")
    assert done.code == 0, done.err
    assert snapshot(str(root)) == before
    merged = tmp_path / "merged"
    shutil.copytree(root, merged, symlinks=True)
    shutil.copytree(overlay, merged, symlinks=True, dirs_exist_ok=True)
    shutil.rmtree(root)
    os.rename(merged, root)
    assert not fastpack.verify(str(root)).problems and fastpack.status(str(root)).condition == "right"
    found = {path for path, row in snapshot(str(overlay)).items() if row[0] == "file"}
    assert "lib/libapp.so" in found and "share/app/plain.txt" not in found and ".fastpack/state.json" in found
    assert done.json["result"]["n_written"] == len(found) - 1
    done = run_fastpack("relocate", root, "--overlay", overlay)
    assert done.code == 22 and "overlay" in done.err
    again = run_fastpack("relocate", root, "--overlay", tmp_path / "second", "--json")
    assert again.json["result"]["n_written"] == 0
    assert run_fastpack("relocate", root, "--overlay", root / "inside").code == 2


def test_run_sets_what_activation_sets(env: str, tmp_path: Path) -> None:
    from tests.conftest import run_fastpack

    target = str(tmp_path / "n")
    write(env, "etc/conda/env_vars.d/b.json", '{"ONE": "b", "TWO": "b"}')
    write(env, "etc/conda/env_vars.d/a.json", '{"ONE": "a"}')
    write(env, "conda-meta/state", '{"version": 1, "env_vars": {"TWO": "state"}}')
    write(
        env,
        "bin/tool",
        '#!/bin/sh\nprintf "%s\\n" "$CONDA_PREFIX" "$CONDA_DEFAULT_ENV" "$CONDA_SHLVL" "$ONE" "$TWO" "$@"\nexit 7\n',
        0o755,
    )
    fastpack.pack(prefix=env, output=str(tmp_path / "x.tar"))
    fastpack.unpack(str(tmp_path / "x.tar"), target)
    done = run_fastpack("run", "-p", target, "tool", "-p", "a b", "--json", env={"CONDA_SHLVL": "2"})
    assert done.code == 7 and done.out.splitlines() == [target, "n", "3", "b", "state", "-p", "a b", "--json"]
    write(target, "etc/conda/activate.d/x.sh", "export ONE=script\n")
    done = run_fastpack("run", "-p", target, "--", "tool")
    assert done.code == 7 and done.out.splitlines() == [target, "n", "1", "script", "state"]
    assert run_fastpack("run", "-p", target, "no-such-tool").code != 0
    assert run_fastpack("run", "-p", tmp_path / "gone", "tool").code == 10
    assert run_fastpack("run", "-p", tmp_path, "tool").code == 11
    os.unlink(os.path.join(target, "etc/conda/activate.d/x.sh"))
    done = run_fastpack("run", "-p", target, "no-such-tool")
    assert done.code == 2 and "no such command" in done.err


def test_an_environment_with_conda_itself(env: str, tmp_path: Path) -> None:
    """Conda is not to be had here: a package that owns its scripts stands in, in a base with a cache and environments."""
    from tests.conftest import run_fastpack

    own = {
        "bin/conda": MadeFile(b"#!" + P + b"/bin/python\nprint('conda')\n", 0o755, file_mode="text"),
        "bin/activate": MadeFile(b"#!/bin/sh\n_CONDA_ROOT='" + P + b"'\n", 0o755, file_mode="text"),
        "bin/deactivate": MadeFile(b"#!/bin/sh\n# conda's\n", 0o755),
        "etc/profile.d/conda.sh": MadeFile(b"export CONDA_EXE='" + P + b"/bin/conda'\n", file_mode="text"),
        "envs/.keep": MadeFile(b"conda's own\n"),
    }  # fmt: skip
    install([MadePackage("conda", files=own)], env)
    for path in ("pkgs/cache/big.tar.bz2", "pkgs/urls", "envs/other/conda-meta/history", "envs/other/bin/x", "conda-bld/x",
                 "bin/conda-unmanaged"):  # fmt: skip
        write(env, path, "x")
    out, target = tmp_path / "x.tar.gz", tmp_path / "n"
    done = run_fastpack("pack", "-p", env, "-o", out, "--json")
    assert done.code == 0, done.err
    fastpack.unpack(str(out), str(target))
    there = {path for path, row in snapshot(str(target)).items() if row[0] == "file"}
    assert own.keys() <= there and "bin/conda-unpack" in there and "bin/conda-unmanaged" in there
    assert not [path for path in there if path.startswith(("pkgs/", "conda-bld/", "envs/other"))]
    assert Path(target, "bin/activate").read_text() == f"#!/bin/sh\n_CONDA_ROOT='{target}'\n"
    assert Path(target, "bin/deactivate").read_text() == "#!/bin/sh\n# conda's\n"
    assert Path(target, "etc/profile.d/conda.sh").read_text() == f"export CONDA_EXE='{target}/bin/conda'\n"
    assert Path(target, "bin/conda").read_text().startswith(f"#!{target}/bin/python\n")
    assert not fastpack.verify(str(target)).problems
    (record,) = Path(env, "conda-meta").glob("conda-*.json")  # from here on, what conda once put into every environment
    record.unlink()
    done = run_fastpack("pack", "-p", env, "-f", "-o", out, "--json")
    assert done.code == 0, done.err
    with tarfile.open(out) as archive:
        names = archive.getnames()
    assert "bin/conda" not in names and "envs/.keep" not in names and b"fastpack" in read_member(out, "bin/activate")


def read_member(archive: Path, name: str) -> bytes:
    with tarfile.open(archive) as tar:
        file = tar.extractfile(name)
        assert file is not None
        return file.read()


# --- found by review


def test_an_archive_on_standard_output_has_nothing_else_in_it(env: str, tmp_path: Path) -> None:
    code = "from fastpack.conda_cli import main; main()"
    command = [sys.executable, "-c", code, "-p", env, "--format", "tar", "-o", "-"]
    done = subprocess.run(command, capture_output=True)
    assert done.returncode == 0 and b"Collecting" in done.stderr and done.stdout[257:262] == b"ustar"
    (tmp_path / "plain").write_text("")
    done_ = ours("-p", env, "-f", "-q", "-o", tmp_path / "plain/d/x.tar.gz")
    assert done_.returncode == 1 and done_.stderr.startswith("CondaPackError: ") and "Traceback" not in done_.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing(number: int, env: str, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    for k in range(3000):
        write(env, f"share/many/{k}", b"x" * 3000)
    write(env, "share/large", os.urandom(1 << 20) * 100)
    code = "from fastpack.conda_cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "-p", env, "-q", "-o", "x.tbz2"], cwd=work, stderr=subprocess.PIPE
    )
    for _ in range(1000):
        if os.listdir(work) or process.poll() is not None:
            break
        time.sleep(0.01)
    process.send_signal(number)
    said = process.communicate()[1]
    assert process.returncode == 1 and b"Interrupted" in said and b"Traceback" not in said
    assert os.listdir(work) == []


def test_on_modified_error_sees_everything(env: str, tmp_path: Path) -> None:
    from tests.conftest import run_fastpack

    install([MadePackage("large", files={"lib/big": MadeFile(bytes(3 << 20))})], env)
    arguments = ["pack", "-p", env, "-f", "-o", tmp_path / "x.tar.zst", "--on-modified", "error"]
    assert run_fastpack(*arguments).code == 0
    with open(os.path.join(env, "lib/big"), "r+b") as file:
        file.seek(1 << 20)
        file.write(b"changed")
    done = run_fastpack(*arguments)
    assert done.code == 17 and "lib/big" in done.err
    write(env, "lib/big", bytes(3 << 20))
    assert run_fastpack(*arguments).code == 0
    os.unlink(os.path.join(env, "lib/more.txt"))
    os.symlink("big", os.path.join(env, "lib/more.txt"))
    done = run_fastpack(*arguments)
    assert done.code == 17 and "lib/more.txt" in done.err


def test_a_pth_file_with_other_lines_is_kept(env: str, tmp_path: Path) -> None:
    from tests.conftest import run_fastpack

    source = tmp_path / "source"
    source.mkdir()
    write(env, f"{SITE}/mixed.pth", f"{source}\n./inside\n")
    write(env, f"{SITE}/alone.pth", f"# mine\n{source}/other\n\n")
    write(env, f"{SITE}/inside/x.py", "")
    done = run_fastpack("pack", "-p", env, "-o", tmp_path / "x.tar", "--editable", "drop")
    assert done.code == 0 and "./inside" in done.err
    with tarfile.open(tmp_path / "x.tar") as archive:
        names = archive.getnames()
    assert f"{SITE}/mixed.pth" in names and f"{SITE}/alone.pth" not in names


def test_run_and_what_it_hands_on(env: str, tmp_path: Path) -> None:
    from tests.conftest import run_fastpack

    write(env, "bin/plain", 'echo plain "$1" ${GONE-unset}\n', 0o755)
    write(env, "bin/bad", "#!/no/such/interpreter\n", 0o755)
    write(env, "conda-meta/state", '{"version": 1, "env_vars": {"GONE": "***unset***"}}')
    assert run_fastpack("run", "-p", env, "plain", "a").out == "plain a unset\n"
    done = run_fastpack("run", "-p", env, "sh", "-c", "grep SigIgn /proc/self/status")
    assert int(done.out.split()[1], 16) & (1 << 12 | 1 << 24) == 0, "SIGPIPE and SIGXFSZ are as a shell has them"
    done = run_fastpack("run", "-p", env, "bad")
    assert done.code == 1 and "bin/bad" in done.err and len(done.err.splitlines()) == 1
    for text in ('{"A=B": "x"}', '{"": "x"}', '{"A": null}', '{"A": "a\\u0000"}', "[]", "{", '{"A": "\\ud800"}'):
        write(env, "etc/conda/env_vars.d/a.json", text)
        done = run_fastpack("run", "-p", env, "plain")
        assert done.code == 1 and "a.json" in done.err and len(done.err.splitlines()) == 1, (text, done.err)


def test_an_overlay_keeps_modes_and_stays_outside(env: str, tmp_path: Path) -> None:
    from tests.conftest import run_fastpack

    fastpack.pack(prefix=env, output=str(tmp_path / "x.tar"))
    root = tmp_path / "n"
    root.mkdir()
    subprocess.run(["tar", "-xf", tmp_path / "x.tar", "-C", root], check=True)
    (root / "lib").chmod(0o555)
    (tmp_path / "link").symlink_to(root)
    assert run_fastpack("relocate", tmp_path / "link", "--overlay", root / "inside").code == 2
    assert run_fastpack("relocate", root, "--overlay", tmp_path / "upper").code == 0
    assert (tmp_path / "upper/lib").stat().st_mode & 0o7777 == 0o555
    (tmp_path / "upper/lib").chmod(0o755)
    (root / "lib").chmod(0o755)


def test_several_environments_are_checked_first(env: str, tmp_path: Path) -> None:
    from tests.conftest import run_fastpack

    other = tmp_path / "other"
    shutil.copytree(env, other, symlinks=True)
    for options, place in ((["--compress-level", "99"], tmp_path / "new"), ([], Path(env, "inside")),
                           (["--format", "parcel"], tmp_path / "new")):  # fmt: skip
        done = run_fastpack("pack", "-p", env, "-p", other, "-o", place, *options)
        assert done.code == 2 and not place.exists(), done.err


# --- beside the real one, on real packages


def without_first_line(data: bytes) -> bytes:
    """A script without its first line, which is written another way: in one line, or in two for a long path."""
    first, body = data.split(b"\n", 1)
    return body.split(b"\n", 1)[1] if first == b"#!/bin/sh" and body.startswith(b"'''exec' ") else body


@pytest.mark.parametrize("name", ["tar.gz", "zip links"])
def test_a_real_environment_unpacks_as_conda_packs_does(name: str, tmp_path: Path) -> None:
    """Its package cache in place, as conda-pack needs it; at the same place, conda-unpack run."""
    pytest.importorskip("conda_pack")
    pytest.importorskip("rattler", reason="py-rattler is not installed")
    if channel() is None:
        pytest.skip("no conda channel: set FASTPACK_TEST_CHANNEL to a directory or URL")
    source = str(tmp_path / "envs/real")
    specs = ["python 3.11.*", "pip", "openssl", "ncurses", "edgecase-binary", "edgecase-activate"]
    make_channel_environment([str(channel())], specs, source, cache=str(tmp_path / "cache"))
    format_ = name.split(maxsplit=1)[0]
    trees = []
    for tool in ("conda_pack.cli", "fastpack.conda_cli"):
        out, target = tmp_path / f"{tool}.{format_}", tmp_path / "unpacked"
        code = f"from {tool} import main; main()"
        arguments = ["-p", source, "-o", str(out), "-q", *FORMATS[name]]
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", code, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        unpack(format_, out, target)
        unpacked = subprocess.run([target / "bin/python", target / "bin/conda-unpack"] if tool.startswith("conda") else
                                  [target / "bin/conda-unpack", "-q"], capture_output=True, text=True)  # fmt: skip
        assert unpacked.returncode == 0, unpacked.stderr
        trees.append(snapshot(str(target), mtimes=False))
        shutil.rmtree(target)

    def ignored(path: str) -> bool:
        theirs = THEIRS.fullmatch(path) is not None or "__pycache__/" in path or path.endswith("__pycache__")
        return theirs or path.startswith((*OWN, "conda-meta/")) or path == ".fastpack"

    one, other = ({path: row for path, row in tree.items() if not ignored(path)} for tree in trees)
    assert one.keys() == other.keys()
    different = {path for path in one if one[path] != other[path] and one[path][0] != "directory"}
    for path in list(different):
        theirs, own = bytes(one[path][2]), bytes(other[path][2])  # type: ignore[call-overload]
        script = theirs.startswith(b"#!") and without_first_line(theirs) == without_first_line(own)
        # With rattler's cache, conda-pack leaves the build's prefix in files: docs/migrating.md.
        if script or (b"_placehold_placehold" in theirs and b"_placehold_placehold" not in own):
            different.remove(path)
    assert different == set()

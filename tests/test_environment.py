"""Reading environments: records of every client, names, groups, and what is wrong with them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from fastpack import errors
from fastpack.environment import Environment, source_of_pyc
from fastpack.made_prefix import MadeFile, MadePackage, install
from fastpack.model import GroupKind
from fastpack.names import prefix_of_name
from fastpack.records import site_packages_path
from tests.conftest import app_package

SITE = "lib/python3.11/site-packages"


def python_stub(**extra: object) -> MadePackage:
    files = {"bin/python": MadeFile(b"\x7fELF\0", 0o755), f"{SITE}/README.txt": MadeFile(b"x")}
    return MadePackage("python", "3.11.2", files=files, extra=dict(extra))


def write(prefix: str, path: str, data: bytes | str, mode: int = 0o644) -> None:
    full = os.path.join(prefix, path)
    os.makedirs(os.path.dirname(full), exist_ok=True)
    with open(full, "wb") as file:
        file.write(data.encode() if isinstance(data, str) else data)
    os.chmod(full, mode)


def dist(prefix: str, name: str, rows: dict[str, bytes], tag: str = "py3-none-any", **files: bytes) -> None:
    """A pip distribution of some files, with WHEEL and RECORD as pip writes them."""
    folder = f"{SITE}/{name}-1.0.dist-info"
    lines = [f"{path},sha256=x,{len(data)}" for path, data in rows.items()]
    for path, data in rows.items():
        write(prefix, os.path.normpath(f"{SITE}/{path}"), data)
    for file, data in files.items():
        write(prefix, f"{folder}/{file}", data)
        lines.append(f"{name}-1.0.dist-info/{file},sha256=x,{len(data)}")
    write(prefix, f"{folder}/WHEEL", f"Wheel-Version: 1.0\nTag: {tag}\n")
    write(prefix, f"{folder}/RECORD", "\n".join([*lines, f"{name}-1.0.dist-info/RECORD,,"]) + "\n")


@pytest.mark.parametrize("style", ["conda", "rattler", "micromamba"])
def test_records_of_every_client(tmp_path: Path, style: str) -> None:
    prefix = str(tmp_path / "env")
    install([app_package(style=style)], prefix)
    env = Environment.from_prefix(prefix)
    assert [record.name for record in env.records] == ["app"]
    assert env.groups["lib/libapp.so"].name == "app" and env.groups["conda-meta/app-1.0-0.json"].name == "app"
    assert env.groups.get("conda-meta/history") is None
    assert not env.missing and not env.editable
    _, entry = env.entries["lib/libapp.so"]
    assert (entry.placeholder is None) is (style == "micromamba")


def test_both_noarch_kinds_and_a_free_threaded_python(tmp_path: Path) -> None:
    prefix = str(tmp_path / "env")
    site = "lib/python3.13t/site-packages"
    stub = MadePackage("python", "3.13.0", files={f"{site}/x.txt": MadeFile(b"")},
                       extra={"python_site_packages_path": site})  # fmt: skip
    install([stub], prefix)
    # Some clients record the paths as the package has them.
    record = {
        "name": "pure", "version": "1", "build": "py_0", "noarch": "python",
        "files": ["site-packages/pure/__init__.py", "python-scripts/pure-cli"],
    }  # fmt: skip
    write(prefix, "conda-meta/pure-1-py_0.json", json.dumps(record))
    write(prefix, f"{site}/pure/__init__.py", "")
    write(prefix, "bin/pure-cli", "")
    old = {"name": "data", "version": "1", "build": "0", "noarch": {"type": "generic"}, "files": ["share/data"]}
    write(prefix, "conda-meta/data-1-0.json", json.dumps(old))
    write(prefix, "share/data", "")
    env = Environment.from_prefix(prefix)
    assert not env.missing
    assert env.groups[f"{site}/pure/__init__.py"].name == "pure" and env.groups["bin/pure-cli"].name == "pure"
    assert {record.noarch for record in env.records} == {None, "python", "generic"}
    assert env.site_packages == (site,)


def test_site_packages_follow_from_the_version_where_the_record_does_not_say() -> None:
    assert site_packages_path([{"name": "python", "version": "3.11.2"}]) == "lib/python3.11/site-packages"
    threads = {"name": "python", "version": "3.13.1", "build": "h1_1_cp313t"}
    assert site_packages_path([threads]) == "lib/python3.13t/site-packages"
    assert site_packages_path([{"name": "r-base", "version": "4"}]) is None


def test_pip_distributions_are_groups_and_conda_goes_before_pip(tmp_path: Path) -> None:
    prefix = str(tmp_path / "env")
    install([python_stub()], prefix)
    dist(prefix, "tool", {"tool/__init__.py": b"", "../../../bin/tool": b"#!x", "README.txt": b"conda's"})
    write(prefix, f"{SITE}/tool/__pycache__/__init__.cpython-311.pyc", b"x")
    write(prefix, "loose.txt", b"")
    env = Environment.from_prefix(prefix)
    assert str(env.groups["bin/tool"]) == "pip tool" == str(env.groups[f"{SITE}/tool/__init__.py"])
    assert env.groups[f"{SITE}/README.txt"].kind is GroupKind.CONDA
    assert env.groups[f"{SITE}/tool/__pycache__/__init__.cpython-311.pyc"].name == "tool"
    assert "loose.txt" not in env.groups


def test_row_8a_files_of_a_portable_wheel(tmp_path: Path) -> None:
    prefix = str(tmp_path / "env")
    install([python_stub()], prefix)
    rows = {"big/lib.so": b"x" * 10, "big/changed.py": b"1", "../../../bin/big": b"#!x"}
    dist(prefix, "big", rows, "cp311-cp311-manylinux_2_28_x86_64", METADATA=b"m", INSTALLER=b"pip\n")
    write(prefix, f"{SITE}/big/changed.py", b"of another size")
    dist(prefix, "pure", {"pure.py": b"x"})
    env = Environment.from_prefix(prefix)
    by_name = {d.group.name: d for d in env.distributions}
    assert by_name["big"].untouchable == {f"{SITE}/big/lib.so", f"{SITE}/big-1.0.dist-info/METADATA"}
    assert by_name["pure"].untouchable == frozenset()


def test_editable_installs_are_found_in_all_their_forms(tmp_path: Path) -> None:
    prefix = str(tmp_path / "env")
    install([python_stub()], prefix)
    direct = json.dumps({"url": "file:///home/me/one", "dir_info": {"editable": True}}).encode()
    dist(prefix, "one", {"__editable__.one-1.0.pth": b"/home/me/one/src\n"}, **{"direct_url.json": direct})
    write(prefix, f"{SITE}/two.egg-link", "/home/me/two\n.\n")
    write(prefix, f"{SITE}/easy-install.pth", "/home/me/two\n")
    write(prefix, f"{SITE}/__editable___three_0_1_finder.py", "MAPPING = {'three': '/home/me/three'}\n")
    write(prefix, f"{SITE}/inside.pth", f"{prefix}/src\n# a comment\nimport os\n")
    found = Environment.from_prefix(prefix).editable
    assert {"one", "two"} <= {package.name for package in found}
    assert any("three" in package.name for package in found)
    assert not any("inside" in package.name for package in found)


@pytest.mark.parametrize(
    ("data", "says"),
    [("{", "not JSON"), ("", "not JSON"), ("[]", "no package name"), ('{"name": 1}', "no package name"),
     ('{"name": "x", "paths_data": {"paths": [{"path": 1}]}}', "cannot be understood"),
     ('{"name": "x", "files": 7}', "cannot be understood")],
)  # fmt: skip
def test_a_bad_record_is_named(made: str, data: str, says: str) -> None:
    write(made, "conda-meta/broken-1-0.json", data)
    with pytest.raises(errors.BadRecord, match=says) as caught:
        Environment.from_prefix(made)
    assert caught.value.exit_code == 12 and str(caught.value.path).endswith("broken-1-0.json")


def test_what_is_no_environment(tmp_path: Path) -> None:
    with pytest.raises(errors.EnvironmentNotFound):
        Environment.from_prefix(str(tmp_path / "nothing"))
    with pytest.raises(errors.NotAnEnvironment):
        Environment.from_prefix(str(tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.EnvironmentNotFound, match="not a directory"):
        Environment.from_prefix(str(tmp_path / "file"))
    with pytest.raises(errors.EnvironmentNotFound, match="CONDA_PREFIX"):
        Environment.from_default()


def test_half_an_environment_is_refused(made: str) -> None:
    write(made, ".fastpack/incomplete", "")
    with pytest.raises(errors.IncompleteEnvironment):
        Environment.from_prefix(made)
    os.unlink(os.path.join(made, ".fastpack/incomplete"))
    write(made, ".fastpack/relocations.json", "{}")
    with pytest.raises(errors.IncompleteEnvironment, match="not relocated"):
        Environment.from_prefix(made)
    write(made, ".fastpack/state.json", '{"prefix": "/x", "target": "/y", "complete": false}')
    with pytest.raises(errors.IncompleteEnvironment, match="interrupted"):
        Environment.from_prefix(made)


def test_names_are_looked_up_without_asking_conda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, envs = tmp_path / "home", tmp_path / "more envs"
    for prefix in (home / "elsewhere" / "listed", envs / "found", tmp_path / "root" / "envs" / "rooted"):
        install([app_package()], str(prefix))
    (home / ".conda").mkdir()
    (home / ".conda" / "environments.txt").write_text(f"{home}/elsewhere/listed\n/gone/away\n")
    monkeypatch.setenv("CONDA_ENVS_PATH", f"/nowhere:{envs}")
    monkeypatch.setenv("MAMBA_ROOT_PREFIX", str(tmp_path / "root"))
    assert prefix_of_name("listed") == str(home / "elsewhere" / "listed")
    assert prefix_of_name("found") == str(envs / "found")
    assert Environment.from_name("rooted").name == "rooted"
    with pytest.raises(errors.EnvironmentNotFound, match="found, listed, rooted"):
        prefix_of_name("unheard-of")
    with pytest.raises(errors.EnvironmentNotFound, match="a path"):
        prefix_of_name("a/b")
    install([app_package()], str(tmp_path / "root" / "envs" / "found"))
    with pytest.raises(errors.EnvironmentNotFound, match="several"):
        prefix_of_name("found")


def test_only_then_a_client_is_asked_and_never_through_a_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prefix = tmp_path / "else where" / "odd"
    install([app_package()], str(prefix))
    tools = tmp_path / "tools"
    write(str(tools), "mamba", f"#!/bin/sh\nprintf '%s' '{json.dumps({'envs': [str(prefix)]})}'\n", 0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    assert prefix_of_name("odd") == str(prefix)
    with pytest.raises(errors.EnvironmentNotFound):
        prefix_of_name("x; touch owned")
    assert not os.path.exists("owned")


def test_the_installation_of_conda_itself_is_left_out(tmp_path: Path) -> None:
    prefix = str(tmp_path / "base")
    install([app_package(), MadePackage("owner", files={"users/file": MadeFile(b"x")})], prefix)
    write(prefix, "pkgs/x/info.json", "")
    write(prefix, "envs/other/conda-meta/history", "")
    write(prefix, "bin/activate", "old")
    env = Environment.from_prefix(prefix)
    assert not any(path.startswith(("pkgs", "envs")) for path in env.files)
    assert "users/file" in env.files
    assert env.left_out == {"pkgs": "policy", "envs": "policy", "bin/activate": "policy"}


def test_missing_and_clobbered(tmp_path: Path) -> None:
    prefix = str(tmp_path / "env")
    other = MadePackage("other", files={"share/app/plain.txt": MadeFile(b"other's\n")})
    install([app_package(), other], prefix)
    os.unlink(os.path.join(prefix, "lib/libapp.so"))
    env = Environment.from_prefix(prefix)
    assert [(record.name, entry.path) for record, entry in env.missing] == [("app", "lib/libapp.so")]
    assert env.clobbered == (("share/app/plain.txt", ("app", "other")),)


def test_filters_apply_in_order(made: str) -> None:
    env = Environment.from_prefix(made)
    assert set(env.exclude("share/*").include("*.conf").excluded()) == {
        path for path in env.files if path.startswith("share/app/") and not path.endswith(".conf")
    }
    assert env.exclude("share/*").include("*.conf").exclude("*app.conf").excluded()["share/app/app.conf"] == "excluded"


def test_sources_of_pycs() -> None:
    assert source_of_pyc("lib/a/__pycache__/m.cpython-311.opt-1.pyc") == "lib/a/m.py"
    assert source_of_pyc("lib/a/m.pyc") == "lib/a/m.py"
    assert source_of_pyc("__pycache__/m.cpython-311.pyc") == "m.py"

"""--editable include: the code of packages installed in place comes along, and is imported from where it lies then."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import fastpack
from fastpack import errors
from tests.conftest import run_fastpack


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


@pytest.fixture
def env(real_source: str, tmp_path: Path) -> Path:
    shutil.copytree(real_source, tmp_path / "env", symlinks=True)
    return tmp_path / "env"


def site_packages(prefix: Path) -> Path:
    code = "import site; print(site.getsitepackages()[0])"
    done = subprocess.run([prefix / "bin/python", "-I", "-c", code], capture_output=True, text=True, check=True)
    return Path(done.stdout.strip())


def install_in_place(prefix: Path, source: Path, tmp_path: Path) -> None:
    """By pip and setuptools, as they are; setuptools is the test's own."""
    found = importlib.util.find_spec("setuptools")
    assert found is not None and found.origin is not None
    tools = tmp_path / "tools"
    if not tools.exists():
        tools.mkdir()
        for path in Path(found.origin).parent.parent.iterdir():
            if path.name.startswith(("setuptools", "_distutils_hack", "wheel")):
                os.symlink(path, tools / path.name)
    command = [prefix / "bin/python", "-m", "pip", "install", "-q", "--no-build-isolation", "--no-deps", "-e", source]
    quiet = {"PYTHONPATH": str(tools), "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INDEX": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **quiet})
    assert done.returncode == 0, done.stdout + done.stderr


def project(root: Path, name: str, layout: str) -> Path:
    folder = root / name
    package = name.replace(" ", "_")
    write(folder, "pyproject.toml", (
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        f'[project]\nname = "{package}"\nversion = "1.0"\nscripts = {{ "run-{package}" = "{package}:main" }}\n'
        f"[tool.setuptools.packages.find]\nwhere = ['{layout}']\ninclude = ['{package}*']\n"
    ))  # fmt: skip
    write(folder, f"{layout}/{package}/__init__.py", (
        "from importlib import resources\n"
        "def main():\n    print(__file__, resources.files(__name__).joinpath('data.txt').read_text())\n"
    ))  # fmt: skip
    write(folder, f"{layout}/{package}/data.txt", f"data of {folder}/x")
    os.chmod(folder / layout / package / "data.txt", 0o444)
    write(folder, ".git/HEAD", "ref: refs/heads/main\n")
    write(folder, ".venv/pyvenv.cfg", "home = /usr\n")
    write(folder, "cache/CACHEDIR.TAG", "Signature: 8a477f597d28d172789f06886806bc55\n")
    write(folder, f"{layout}/{package}/__pycache__/x.pyc", "stale")
    os.symlink("data.txt", folder / layout / package / "link")
    os.symlink(f"{folder}/{layout}/{package}/data.txt", folder / layout / package / "absolute")
    os.symlink("../../../elsewhere", folder / layout / package / "out")
    return folder


@pytest.mark.parametrize("suffix", ["tar.zst", "zip"])
def test_the_code_comes_along_and_runs(env: Path, tmp_path: Path, suffix: str) -> None:
    projects = tmp_path / 'my "projects" é'
    one, two = project(projects, "one", "src"), project(projects, "two", "lib/deep")
    for source in (one, two):
        os.unlink(source / ("src/one/out" if source == one else "lib/deep/two/out")) if suffix == "zip" else None
        install_in_place(env, source, tmp_path)
    # As setuptools did before PEP 660; and a plain list of directories, one of them without a package.
    write(projects, "three/three.py", "import os\nprint('three from', os.path.dirname(__file__))\n")
    write(projects, "three/three.egg-info/PKG-INFO", "Metadata-Version: 2.1\nName: three\nVersion: 1.0\n")
    site = site_packages(env)
    (site / "three.egg-link").write_text(f"{projects}/three\n.")
    (site / "easy-install.pth").write_text(f"{projects}/three\n")
    refused = run_fastpack("pack", "-p", env, "-o", tmp_path / f"a.{suffix}")
    assert refused.code == 14 and "--editable include|drop" in refused.err

    done = run_fastpack("pack", "-p", env, "-o", tmp_path / f"a.{suffix}", "--editable", "include", "--json")
    assert done.code == 0, done.err
    says = [row["message"] for row in done.json["warnings"] if row["code"] == "editable"]
    assert any("comes along as src/one" in text for text in says), says
    assert any("comes along as src/three" in text for text in says), says
    target = tmp_path / "there" / "target env"
    target.parent.mkdir()
    shutil.move(env, tmp_path / "gone")
    shutil.move(projects, tmp_path / "gone projects")
    assert run_fastpack("unpack", tmp_path / f"a.{suffix}", "-p", target).code == 0
    for name, place in (("one", "src/one/src/one"), ("two", "src/two/lib/deep/two")):
        ran = subprocess.run([target / f"bin/run-{name}"], capture_output=True, text=True)
        assert ran.stdout == f"{target}/{place}/__init__.py data of {target}/src/{name}/x\n", ran.stderr
    ran = subprocess.run([target / "bin/python", "-c", "import three"], capture_output=True, text=True)
    assert ran.stdout == f"three from {target}/src/three\n", ran.stderr
    listed = subprocess.run(
        [target / "bin/python", "-m", "pip", "list", "-v", "--format", "json", "--disable-pip-version-check"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert f"{target}/src/one" in listed.stdout, "pip knows where it is"
    left = [path for path in (target / "src").rglob("*") if path.name in (".git", ".venv", "cache", "x.pyc")]
    assert not left
    named = subprocess.run(["grep", "-rl", str(projects), str(target / "src"), str(target / "lib")], text=True,
                           capture_output=True)  # fmt: skip
    assert not named.stdout
    if suffix == "tar.zst":
        assert os.readlink(target / "src/one/src/one/absolute") == "data.txt"
        assert os.readlink(target / "src/one/src/one/out") == f"{projects}/elsewhere", "still out, and said so"
        assert any(row["code"] == "external-link" for row in done.json["warnings"])
        assert run_fastpack("verify", target, "--deep").code == 0
        # It is an environment like any other now: packed again, moved again.
        again = run_fastpack("pack", "-p", target, "-o", tmp_path / "b.tar.zst")
        assert again.code == 0, again.err
        os.rename(target, tmp_path / "moved")
        assert run_fastpack("relocate", tmp_path / "moved").code == 0
        ran = subprocess.run([tmp_path / "moved/bin/run-two"], capture_output=True, text=True)
        assert ran.stdout.startswith(f"{tmp_path}/moved/src/two/"), ran.stderr


def test_same_bytes_from_anywhere(env: Path, tmp_path: Path) -> None:
    """The path of a source tree is an accident."""
    outputs = []
    for place in ("here", "quite somewhere else"):
        folder = project(tmp_path / place, "one", "src")
        os.unlink(folder / "src/one/out")
        write(folder, "src/one/data.txt.2", "x")
        (folder / "src/one/data.txt").chmod(0o644)
        write(folder, "src/one/data.txt", "the same")
        shutil.copytree(env, tmp_path / place / "env", symlinks=True)
        install_in_place(tmp_path / place / "env", folder, tmp_path)
        output = tmp_path / f"{len(outputs)}.tar.zst"
        fastpack.pack(prefix=str(tmp_path / place / "env"), output=str(output), editable="include")
        outputs.append(output)
    changed = fastpack.diff(*map(str, outputs))
    assert (changed.files["changed"], changed.files["added"], changed.files["removed"]) == (0, 0, 0)


def test_an_environment_inside_of_its_project(tmp_path: Path, real_source: str) -> None:
    """As pixi has it: the tree that comes along holds the environment."""
    folder = project(tmp_path, "one", "src")
    prefix = folder / "envs" / "default"
    shutil.copytree(real_source, prefix, symlinks=True)
    install_in_place(prefix, folder, tmp_path)
    done = run_fastpack("pack", "-p", prefix, "-o", tmp_path / "a.tar.zst", "--editable", "include", "--exclude",
                        "*/data.txt.not", cwd=tmp_path)  # fmt: skip
    assert done.code == 0, done.err
    assert run_fastpack("unpack", tmp_path / "a.tar.zst", "-p", tmp_path / "t").code == 0
    assert os.listdir(tmp_path / "t/src/one/envs") == [] or not (tmp_path / "t/src/one/envs").exists()
    ran = subprocess.run([tmp_path / "t/bin/run-one"], capture_output=True, text=True)
    assert ran.stdout.startswith(f"{tmp_path}/t/src/one/src/one/__init__.py"), ran.stderr


def test_code_that_is_gone_or_everything_is_refused(env: Path, tmp_path: Path) -> None:
    site = site_packages(env)
    (site / "far.pth").write_text(f"{tmp_path}/nowhere\n")
    with pytest.raises(errors.EditablePackages, match="not there") as caught:
        fastpack.pack(prefix=str(env), output=str(tmp_path / "a.tar"), editable="include")
    assert str(caught.value.path) == f"{tmp_path}/nowhere" and not os.path.exists(tmp_path / "a.tar")
    (site / "far.pth").write_text("/\n")
    with pytest.raises(errors.EditablePackages, match="everything"):
        fastpack.pack(prefix=str(env), output=str(tmp_path / "a.tar"), editable="include")


def test_two_trees_of_one_name_and_a_single_module(env: Path, tmp_path: Path) -> None:
    for place in ("a", "b"):
        write(tmp_path / place, f"code/of_{place}.py", f"print('{place}', __file__)\n")
    write(tmp_path, "loose/alone.py", "print('alone', __file__)\n")
    write(tmp_path, "loose/private.txt", "not to be packed\n")
    site = site_packages(env)
    (site / "two.pth").write_text(f"{tmp_path}/a/code\n{tmp_path}/b/code\n")
    (site / "__editable___alone_finder.py").write_text(
        f"MAPPING = {{'alone': '{tmp_path}/loose/alone.py'}}\nimport sys, importlib.util\n"
        "class Finder:\n    @staticmethod\n    def find_spec(name, path=None, target=None):\n"
        "        if name in MAPPING:\n"
        "            return importlib.util.spec_from_file_location(name, MAPPING[name])\n"
        "sys.meta_path.append(Finder)\n"
    )
    (site / "__editable__.alone.pth").write_text("import __editable___alone_finder\n")
    done = run_fastpack("pack", "-p", env, "-o", tmp_path / "a.tar", "--editable", "include")
    assert done.code == 0, done.err
    shutil.rmtree(tmp_path / "loose")
    assert run_fastpack("unpack", tmp_path / "a.tar", "-p", tmp_path / "t").code == 0
    ran = subprocess.run([tmp_path / "t/bin/python", "-c", "import of_a, of_b, alone"], capture_output=True, text=True)
    t = tmp_path / "t/src"
    assert ran.stdout.splitlines() == [
        f"a {t}/code/of_a.py", f"b {t}/code-2/of_b.py", f"alone {t}/alone/alone.py",
    ], ran.stderr  # fmt: skip
    assert not list(t.rglob("private.txt")), sys.path


# --- found by a hostile reader


def include(env: Path, tmp_path: Path, *arguments: str) -> Path:
    """Packed with its code, unpacked elsewhere, the sources out of the way."""
    done = run_fastpack("pack", "-p", env, "-o", tmp_path / "x.tar", "--editable", "include", "-q", *arguments)
    assert done.code == 0, done.err
    assert run_fastpack("unpack", tmp_path / "x.tar", "-p", tmp_path / "x", "-q").code == 0
    return tmp_path / "x"


def imports(prefix: Path, *names: str) -> list[str]:
    code = f"import {', '.join(names)}\nfor m in ({', '.join(names)},): print(m.__file__)"
    done = subprocess.run([prefix / "bin/python", "-c", code], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_project_reached_through_a_link(env: Path, tmp_path: Path) -> None:
    """pip writes the link, setuptools the true path."""
    folder = project(tmp_path / "store", "one", "src")
    os.symlink("store", tmp_path / "link")
    install_in_place(env, tmp_path / "link" / "one", tmp_path)
    target = include(env, tmp_path)
    shutil.rmtree(folder)
    assert imports(target, "one") == [f"{target}/src/one/src/one/__init__.py"]


def test_names_that_begin_alike_and_lines_of_every_spelling(env: Path, tmp_path: Path) -> None:
    for name in ("foobar", "relative", "crooked"):
        write(tmp_path / "code" / name, f"{name}.py", "")
    install_in_place(env, project(tmp_path, "foo", "src"), tmp_path)
    site = site_packages(env)
    (site / "foobar.pth").write_text(f"{tmp_path}/code/foobar\n")
    (site / "relative.pth").write_text(f"# a comment\n{os.path.relpath(tmp_path / 'code/relative', site)}\n./inside\n")
    (site / "crooked.pth").write_text(f"\n{tmp_path}/code/x/../crooked/ \n{env}/share/there\n")
    (tmp_path / "code/x").mkdir()
    write(site, "inside/within.py", "")
    write(env, "share/there/there.py", "")
    said = run_fastpack("pack", "-p", env, "-o", tmp_path / "y.tar")
    assert said.code == 14 and all(name in said.err for name in ("foo ", "foobar", "relative", "crooked"))
    target = include(env, tmp_path)
    shutil.rmtree(tmp_path / "code")
    found = imports(target, "foobar", "relative", "crooked", "within", "there")
    assert all(path.startswith(str(target)) for path in found), found
    run_fastpack("pack", "-p", env, "-o", tmp_path / "d.tar", "--editable", "drop")
    with tarfile.open(tmp_path / "d.tar") as archive:
        assert not [name for name in archive.getnames() if name.endswith("foobar.pth")]


def test_src_that_is_something_else(env: Path, tmp_path: Path) -> None:
    write(tmp_path / "code/mine", "mine.py", "")
    os.symlink("share", env / "src")
    (site_packages(env) / "mine.pth").write_text(f"{tmp_path}/code/mine\n")
    target = include(env, tmp_path)
    assert imports(target, "mine") == [f"{target}/src-2/mine/mine.py"] and os.readlink(target / "src") == "share"


def test_a_short_root_changes_only_what_tells_of_it(env: Path, tmp_path: Path) -> None:
    """/app, as in containers, may mean anything elsewhere."""
    root = Path(f"/fastpack-{os.getpid()}")
    try:
        root.mkdir()
    except OSError:
        pytest.skip("no directory can be made in /")
    try:
        write(root, "mine.py", "")
        site = site_packages(env)
        (site / "mine.pth").write_text(f"{root}\n")
        write(env, "share/routes.conf", f"location {root} {{ }}\n{root}/login\n")
        target = include(env, tmp_path)
        assert (target / "share/routes.conf").read_text() == f"location {root} {{ }}\n{root}/login\n"
        assert imports(target, "mine") == [f"{target}/src/{root.name}/mine.py"]
    finally:
        shutil.rmtree(root)


def test_an_archive_does_not_hold_itself(env: Path, tmp_path: Path) -> None:
    write(tmp_path / "code/mine", "mine.py", "")
    (site_packages(env) / "mine.pth").write_text(f"{tmp_path}/code/mine\n")
    sizes = []
    for _ in range(3):
        done = run_fastpack("pack", "-p", env, "--editable", "include", "-f", cwd=tmp_path / "code/mine")
        assert done.code == 0, done.err
        sizes.append(os.path.getsize(tmp_path / "code/mine/env.tar.zst"))
    assert len(set(sizes)) == 1


def test_links_lead_where_they_did(env: Path, tmp_path: Path) -> None:
    tree = tmp_path / "t"
    write(tree, "mine.py", "")
    write(tree, "sub/deep/x", "x")
    write(tree, ".git/HEAD", "ref")
    write(tmp_path, "outside/f", "f")
    (tmp_path / "else/where").mkdir(parents=True)
    os.symlink(tree, tmp_path / "else/where/t")
    for name, link in (("d", "sub/deep"), ("through", "d/../../mine.py"), ("out", "../outside/f"), ("head", ".git/HEAD"),
                       ("python", str(env / "bin/python")), ("up", os.path.relpath(env, tree) + "/share")):  # fmt: skip
        os.symlink(link, tree / name)
    os.symlink(os.path.relpath(tree / "mine.py", env / "share"), env / "share/into")
    (site_packages(env) / "mine.pth").write_text(f"{tmp_path}/else/where/t\n")
    done = run_fastpack("pack", "-p", env, "-o", tmp_path / "w.tar", "--editable", "include")
    assert "src/t/head" in done.err and "left out" in done.err and "src/t/out" in done.err
    target = include(env, tmp_path)
    assert os.readlink(target / "src/t/out") == f"{tmp_path}/outside/f"
    assert os.path.realpath(target / "src/t/through") == f"{target}/src/t/mine.py"
    assert os.path.realpath(target / "share/into") == f"{target}/src/t/mine.py"
    assert os.path.realpath(target / "src/t/python") == os.path.realpath(target / "bin/python")
    assert os.path.realpath(target / "src/t/up") == f"{target}/share"


def test_urls_without_a_path_and_modules_without_a_suffix(env: Path, tmp_path: Path) -> None:
    site = site_packages(env)
    write(site, "odd-1.0.dist-info/direct_url.json", '{"url": "", "dir_info": {"editable": true}}')
    write(site, "odd-1.0.dist-info/RECORD", "")
    write(tmp_path / "code", "single.py", "")
    (site / "__editable___single_finder.py").write_text(
        f"MAPPING = {{'single': '{tmp_path}/code/single'}}\nimport sys, importlib.util\n"
        "class F:\n    @staticmethod\n    def find_spec(name, path=None, target=None):\n        if name in MAPPING:\n"
        "            return importlib.util.spec_from_file_location(name, MAPPING[name] + '.py')\nsys.meta_path.append(F)\n"
    )
    (site / "__editable__.single.pth").write_text("import __editable___single_finder\n")
    target = include(env, tmp_path)
    assert imports(target, "single") == [f"{target}/src/single/single.py"]


@pytest.mark.parametrize("layout", ["src", "."])
def test_a_package_that_is_dropped_leaves_nothing_behind(env: Path, tmp_path: Path, layout: str) -> None:
    """setuptools writes a path or a finder that a .pth loads: Python starts without a word in any case."""
    install_in_place(env, project(tmp_path, "gone", layout), tmp_path)
    out, target = tmp_path / "a.tar.zst", tmp_path / "target"
    fastpack.pack(prefix=str(env), output=str(out), editable="drop")
    fastpack.unpack(str(out), str(target))
    done = subprocess.run([target / "bin/python", "-c", "import gone"], capture_output=True, text=True)
    assert "No module named 'gone'" in done.stderr and "Error processing" not in done.stderr
    assert not list(target.glob("lib/python*/site-packages/*gone*")) and not (target / "bin/run-gone").exists()

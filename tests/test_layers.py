"""The layer table of docs/design.md against the imports: a module imports only what stands before it in the table."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "fastpack"


def table() -> list[str]:
    """The modules in the order of docs/design.md's table."""
    text = (ROOT / "docs" / "design.md").read_text()
    block = text.split("<!-- layers -->")[1]
    return re.findall(r"^\s*`?(\w+)\.(?:py|pyx)`?", block, re.MULTILINE)


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "fastpack":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("fastpack."):
            found.add(node.module.split(".")[1])
    return found


def test_every_module_stands_in_the_table() -> None:
    modules = {path.stem for path in PACKAGE.glob("*.py")} | {path.stem for path in PACKAGE.glob("*.pyx")}
    assert modules - {"__init__"} == set(table())
    assert len(table()) == len(set(table()))


def test_imports_go_down() -> None:
    order = {name: position for position, name in enumerate(table())}
    for path in PACKAGE.glob("*.py"):
        if path.stem == "__init__":
            continue
        for name in imports(path) & order.keys():
            assert order[name] < order[path.stem], f"{path.stem} imports {name}, which stands after it"


def test_only_the_console_prints() -> None:
    for path in PACKAGE.glob("*.py"):
        calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        prints = [c for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"]
        assert not prints or path.stem == "console", path


def test_only_parallel_starts_threads() -> None:
    for path in PACKAGE.glob("*.py"):
        text = path.read_text()
        assert path.stem == "parallel" or not re.search(r"ThreadPool|Thread\(|ProcessPool", text), path


def test_unpacking_needs_only_the_standard_library_a_zstd_reader_and_blake3() -> None:
    import subprocess

    code = (
        "import fastpack.unpacking, sys; "
        "print(*sorted({name.split('.')[0] for name in sys.modules} - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    foreign = {name for name in done.stdout.split() if not name.startswith(("_", "sitecustomize", "distutils"))}
    assert foreign <= {"fastpack", "zstandard", "blake3", "cython_runtime"}, foreign


def test_conda_unpack_parts_import_only_the_standard_library() -> None:
    for name in ("_relocate_py.py", "_place_py.py", "scripts/conda_unpack_driver.py"):
        for node in ast.walk(ast.parse((PACKAGE / name).read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            for module in names:
                assert module.split(".")[0] in sys.stdlib_module_names or module == "fastpack._relocate_py", module

"""The file names in .pyc files: native = twin, code of every release, and what Python makes of it."""

from __future__ import annotations

import base64
import importlib.util
import json
import marshal
import os
import py_compile
import random
import shutil
import subprocess
import sys
from array import array
from collections.abc import Iterator, Sequence
from importlib._bootstrap_external import _code_to_timestamp_pyc  # type: ignore[import-not-found]
from pathlib import Path
from types import CodeType, ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastpack
from fastpack import _marshal, _marshal_py
from fastpack.made_prefix import MadeFile, MadePackage, install
from tests.conftest import P
from tests.test_regressions import compiled, write

BOTH = pytest.mark.parametrize("kernel", [_marshal, _marshal_py], ids=["native", "twin"])
GOLDEN = json.loads(Path(__file__).with_name("data").joinpath("compiled.json").read_text())
COMPILED = {version: base64.b64decode(text) for version, text in GOLDEN["compiled"].items()}
PREFIX = GOLDEN["prefix"].encode()
NAME = "lib/pkg/sample.py"


def in_code(prefix: str) -> bytes:
    return prefix.encode("utf-8", "surrogatepass")


def pyc_of(prefix: str, source: str = GOLDEN["source"]) -> bytes:
    code = compile(source, f"{prefix}/{NAME}", "exec", dont_inherit=True)
    return bytes(_code_to_timestamp_pyc(code, 1_700_000_000, len(source.encode())))


def archived(data: bytes, prefixes: Sequence[bytes], kernel: ModuleType = _marshal) -> bytes | None:
    (edits,) = kernel.file_names(data, [0], [len(data)], prefixes)
    if edits is None:
        return None
    out, at = b"", 0
    for offset, n_bytes, new in edits:
        out += data[at:offset] + new
        at = offset + n_bytes
    return out + data[at:]


def codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes(constant)


# --- every release


@BOTH
@pytest.mark.parametrize("version", COMPILED)
def test_code_of_every_release_is_understood(version: str, kernel: ModuleType) -> None:
    data = COMPILED[version]
    assert PREFIX in data
    form = archived(data, [PREFIX], kernel)
    assert form is not None and PREFIX not in form
    assert len(form) == len(data) - len(PREFIX) - 1
    assert archived(form, [PREFIX], kernel) == form
    assert NAME.encode() in form


def test_the_releases_magic_numbers_are_known() -> None:
    assert {int.from_bytes(data[:2], "little") for data in COMPILED.values()} <= _marshal_py.MAGICS.keys()
    assert int.from_bytes(importlib.util.MAGIC_NUMBER[:2], "little") in _marshal_py.MAGICS
    assert len(COMPILED) == 5


@BOTH
def test_other_pythons_are_left_alone(kernel: ModuleType) -> None:
    data = bytearray(next(iter(COMPILED.values())))
    for magic in (0, 3394, 3412, 3494, 3800, 65535):
        data[:2] = magic.to_bytes(2, "little")
        assert archived(bytes(data), [PREFIX], kernel) is None
    for data in (b"", b"\xa7\x0d\x0d\x0a", b"\xa7\x0d\x0d\x0a" + bytes(12)):
        assert archived(data, [PREFIX], kernel) is None


# --- this Python


PLACES = ["/opt/made/env", "/x", "/x/" + "y" * 300, "/opt/ünï cödé", "/a\udcff/b"]


@BOTH
def test_the_archive_form_does_not_depend_on_the_prefix(kernel: ModuleType) -> None:
    for place in PLACES:
        pyc_of(place)  # what the first compilation interns, later ones share
    forms = {archived(pyc_of(place), [in_code(place)], kernel) for place in PLACES}
    assert len(forms) == 1 and None not in forms


def test_the_code_is_the_same_but_for_its_file_name() -> None:
    for place in PLACES:
        data = pyc_of(place)
        form = archived(data, [in_code(place)])
        assert form is not None
        before, after = marshal.loads(data[16:]), marshal.loads(form[16:])
        assert {code.co_filename for code in codes(after)} == {NAME}
        for one, other in zip(codes(before), codes(after), strict=True):
            assert one == other and one.co_consts == other.co_consts  # a file name does not count in this comparison
        namespace: dict[str, object] = {}
        exec(after, namespace)
        assert namespace["sliced"]([1, 2, 3, 4]) == ([2, 3], [1, 3], [1, 2, 3, 4])  # type: ignore[operator]


@BOTH
def test_a_file_name_that_is_a_constant_too_is_left_alone(kernel: ModuleType) -> None:
    name = GOLDEN["prefix"] + "/m.py"
    code = compile("x = 1", name, "exec")
    inner = compile("y = 1", "m", "exec").replace(co_filename=name)
    for consts in ((inner, name), (name, inner)):
        # One object in both places: marshal writes a reference, and the constant would change with the file name.
        data = bytes(_code_to_timestamp_pyc(code.replace(co_filename=name, co_consts=consts), 0, 0))
        assert archived(data, [PREFIX], kernel) is None
    apart = "".join(list(name))
    data = bytes(_code_to_timestamp_pyc(code.replace(co_consts=(inner, apart)), 0, 0))
    form = archived(data, [PREFIX], kernel)
    assert form is not None and marshal.loads(form[16:]).co_consts[1] == name


@BOTH
def test_flags_that_marshal_never_writes(kernel: ModuleType) -> None:
    """A flagged None would shift all later references: the constant below is the inner code's file name."""
    name = GOLDEN["prefix"] + "/m.py"
    inner = compile("y = 1", name, "exec")
    for first in (None, True, False, ...):
        outer = compile("x = 1", "other.py", "exec").replace(co_consts=(first, inner, inner.co_filename))
        data = bytes(_code_to_timestamp_pyc(outer, 0, 0))
        assert archived(data, [PREFIX], kernel) is None
        at = data.index(b")\x03") + 2
        assert archived(data[:at] + bytes([data[at] | 0x80]) + data[at + 1 :], [PREFIX], kernel) is None


@BOTH
def test_names_elsewhere_stay(kernel: ModuleType) -> None:
    for name in (
        "/opt/made/env2/m.py",
        "/mnt/opt/made/env/m.py",
        "<frozen x>",
        "m.py",
        "/opt/made/env",
        "/opt/made/env/",
    ):
        data = bytes(_code_to_timestamp_pyc(compile("x = 1", name, "exec"), 0, 0))
        assert archived(data, [PREFIX], kernel) == data
    data = pyc_of("/opt/made/env/inner")
    assert archived(data, [b"/opt/made/env/inner", PREFIX], kernel) == archived(pyc_of("/x"), [b"/x"], kernel)


# --- native = twin


@given(st.sampled_from(sorted(COMPILED)), st.integers(0, 2**32), st.integers(1, 6), st.booleans())
def test_native_is_the_twin_on_damaged_code(version: str, seed: int, n_changes: int, cut: bool) -> None:
    rng = random.Random(seed)
    data = bytearray(COMPILED[version])
    for _ in range(n_changes):
        data[rng.randrange(16, len(data))] = rng.choice([rng.randrange(256), *b"racz{)0(l", 0xF2, 0xFA])
    if cut:
        del data[rng.randrange(len(data)) :]
    both = [kernel.file_names(bytes(data), [0], [len(data)], [PREFIX, b"/opt"]) for kernel in (_marshal, _marshal_py)]
    assert both[0] == both[1]


@BOTH
def test_many_files_in_one_buffer(kernel: ModuleType) -> None:
    datas = [*COMPILED.values(), b"broken", pyc_of("/other/place"), b""]
    starts = [sum(map(len, datas[:k])) for k in range(len(datas))]
    blob = b"".join(datas)
    found = kernel.file_names(blob, starts, [len(data) for data in datas], [PREFIX])
    assert [None if edits is None else len(edits) for edits in found] == [1, 1, 1, 1, 1, None, 0, None]
    assert kernel.file_names(memoryview(blob), array("q", starts), array("q", map(len, datas)), [PREFIX]) == found
    assert kernel.file_names(b"", [], [], [PREFIX]) == []


@BOTH
def test_it_stays_in_its_buffer(kernel: ModuleType) -> None:
    for start, length in ((-1, 1), (0, 5), (4, 1), (0, -1), (1 << 62, 1 << 62)):
        with pytest.raises(ValueError, match="outside"):
            kernel.file_names(b"abcd", [start], [length], [b"/a"])
    with pytest.raises(ValueError, match="differ in number"):
        kernel.file_names(b"abcd", [0], [], [b"/a"])


@BOTH
def test_depth_and_counts_are_bounded(kernel: ModuleType) -> None:
    head = bytes([0xA7, 0x0D, 0x0D, 0x0A]) + bytes(12)
    for deep in (1998, 1999, 2000, 5000):
        data = head + b")\x01" * deep + b"N"
        assert (archived(data, [PREFIX], kernel) is None) == (deep > 1999)
    assert archived(head + b"(\xff\xff\xff\x7fN", [PREFIX], kernel) is None
    assert archived(head + b"l\0\0\0\x80", [PREFIX], kernel) is None
    assert archived(head + b"{NN0", [PREFIX], kernel) == head + b"{NN0"


# --- environments


MODULE = "def fails():\n    raise ValueError('here')\n"


def test_row_13_packs_are_equal_and_tracebacks_right(made: str, tmp_path: Path) -> None:
    """An environment whose modules were compiled at its own prefix, at two prefixes, and moved to a third."""
    archives = []
    for name in ("one", "two-with-a-longer-name"):
        prefix = str(tmp_path / name)
        subprocess.run(["cp", "-a", made, prefix], check=True)
        write(prefix, "lib/pkg/mod.py", MODULE)
        write(prefix, "lib/pkg/hashed.py", MODULE)
        write(prefix, "lib/pkg/legacy.py", MODULE)
        # Each by an interpreter of its own: what one compiled before decides what marshal writes by reference.
        pyc, legacy = (f"lib/pkg/__pycache__/{name}.{sys.implementation.cache_tag}.pyc" for name in ("mod", "legacy"))
        for mode, module in (("timestamp", "mod"), ("timestamp", "legacy"), ("checked-hash", "hashed")):
            source = os.path.join(prefix, "lib/pkg", f"{module}.py")
            os.utime(source, (10**9 + len(archives), 10**9 + len(archives)))  # never in the same second
            subprocess.run([sys.executable, "-m", "compileall", "-q", "--invalidation-mode", mode, source], check=True)
        os.rename(os.path.join(prefix, legacy), os.path.join(prefix, "lib/pkg/legacy.pyc"))
        os.unlink(os.path.join(prefix, "lib/pkg/legacy.py"))
        assert prefix.encode() in Path(prefix, pyc).read_bytes()
        out = str(tmp_path / f"{name}.tar.zst")
        report = fastpack.pack(prefix=prefix, output=out)
        assert report.pyc["naming the source prefix"] == 0 and "compiled by an unknown Python" not in report.pyc
        assert not [w for w in report.warnings if w.code == "pyc-prefix"]
        archives.append(Path(out).read_bytes())
    assert archives[0] == archives[1]
    target = str(tmp_path / "n")
    fastpack.unpack(out, target)
    before = {path: path.read_bytes() for path in Path(target, "lib/pkg").rglob("*.pyc")}
    assert len(before) == 3
    text = "import traceback, mod, hashed, legacy\n"
    text += "for m in (mod, hashed, legacy):\n try: m.fails()\n except ValueError as e: print(traceback.extract_tb(e.__traceback__)[-1].filename)"
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=f"{target}/lib/pkg", capture_output=True, text=True, env=environ
    )
    # Python puts the name of a source that is there into what it imports; without one it takes what was compiled.
    assert done.stdout.splitlines() == [
        f"{target}/lib/pkg/mod.py",
        f"{target}/lib/pkg/hashed.py",
        "lib/pkg/legacy.py",
    ], done
    assert {path: path.read_bytes() for path in before} == before
    assert fastpack.pack(prefix=target, output=str(tmp_path / "again.tar.zst")).pyc["naming the source prefix"] == 0


def test_row_13_code_of_an_unknown_python_is_counted(made: str, tmp_path: Path) -> None:
    data = bytearray(pyc_of(made))
    data[:2] = (3394).to_bytes(2, "little")
    write(made, "lib/old.pyc", bytes(data))
    report = fastpack.pack(prefix=made, output=str(tmp_path / "a.tar.zst"))
    assert report.pyc["compiled by an unknown Python"] == 1 == report.pyc["naming the source prefix"]
    (warning,) = [w for w in report.warnings if w.code == "pyc-prefix"]
    assert "1 .pyc" in warning.message


@pytest.mark.parametrize("n_bytes", [2 << 20, 9 << 20])
def test_row_13_large_code(made: str, tmp_path: Path, n_bytes: int) -> None:
    """Over 1 MiB one is looked at by itself; over 8 MiB it is left alone, in frames of its own."""
    write(made, "lib/big.py", "x = '" + "é1234567" * (n_bytes // 9) + "'\n" + MODULE)
    pyc = compiled(made, "lib/big.py")
    out = str(tmp_path / "a.tar.zst")
    report = fastpack.pack(prefix=made, output=out)
    assert report.pyc["naming the source prefix"] == (n_bytes > 8 << 20)
    fastpack.unpack(out, str(tmp_path / "n"))
    code = marshal.loads(Path(tmp_path, "n", pyc).read_bytes()[16:])
    source = "lib/big.py" if n_bytes < 8 << 20 else f"{made}/lib/big.py"
    assert {c.co_filename for c in codes(code)} == {source}
    mtime = int(os.stat(tmp_path / "n/lib/big.py").st_mtime)
    assert int.from_bytes(Path(tmp_path, "n", pyc).read_bytes()[8:12], "little") == mtime


@pytest.mark.parametrize("mode", ["binary", "text"])
def test_row_13_a_packages_own_with_a_placeholder(mode: str, tmp_path: Path) -> None:
    """It is placed like any other file when packing for one prefix."""
    prefix, out = str(tmp_path / "env"), str(tmp_path / "a.tar.zst")
    data = b"\xa7\r\r\n" + bytes(12) + b"x=" + P + b"/lib\0\0tail"
    files = {name: MadeFile(data, file_mode=mode) for name in ("lib/x.pyc", "lib/x.txt")}
    install([MadePackage("app", files=files)], prefix)
    fastpack.pack(prefix=prefix, output=out, dest_prefix="/opt/target")
    assert not fastpack.verify(out).problems
    fastpack.unpack(out, str(tmp_path / "n"), dest_prefix="/opt/target")
    one, other = (Path(tmp_path, "n/lib", name).read_bytes() for name in ("x.pyc", "x.txt"))
    assert one == other and b"x=/opt/target/lib" in one


def test_row_13_what_another_tool_caches_is_dropped(made: str, tmp_path: Path) -> None:
    """pytest rewrites assertions, and loads what it cached without putting the true file name into it."""
    write(made, "lib/test_a.py", MODULE)
    pyc = compiled(made, "lib/test_a.py")
    names = [
        "test_a.cpython-311-pytest-8.3.5.pyc",
        "test_a.cpython-311.opt-1.pyc",
        "test_a.cpython-313t.pyc",
        "test_a.pypy310.pyc",
    ]
    for name in names:
        shutil.copy2(os.path.join(made, pyc), os.path.join(made, "lib/__pycache__", name))
    out = str(tmp_path / "a.tar.zst")
    report = fastpack.pack(prefix=made, output=out)
    assert report.pyc["dropped: of another tool"] == 1
    fastpack.unpack(out, str(tmp_path / "n"))
    assert sorted(os.listdir(tmp_path / "n/lib/__pycache__")) == sorted([*names[1:], os.path.basename(pyc)])


# --- hash-based .pyc files (PEP 552) ---------------------------------------------------------------------------------


@BOTH
def test_source_hashes_are_those_of_every_release(kernel: ModuleType) -> None:
    assert set(GOLDEN["source_hashes"]) == {"3439", "3495", "3531", "3571", "3627"}
    for magic, by_length in GOLDEN["source_hashes"].items():
        for n_bytes, expected in by_length.items():
            data = bytes((7 * k + int(n_bytes)) % 256 for k in range(int(n_bytes)))
            assert kernel.source_hashes(data, [0], [len(data)], [int(magic)]).hex() == expected


@given(st.lists(st.binary(max_size=40), max_size=4))
def test_source_hashes_native_as_twin_and_as_this_python(sources: list[bytes]) -> None:
    data, lengths = b"".join(sources), [len(source) for source in sources]
    starts = [sum(lengths[:k]) for k in range(len(lengths))]
    magic = int.from_bytes(importlib.util.MAGIC_NUMBER[:2], "little")
    for one in (magic, 3413):
        if one not in _marshal_py.MAGICS:
            continue
        magics = [one] * len(sources)
        found = _marshal.source_hashes(data, starts, lengths, magics)
        assert found == _marshal_py.source_hashes(data, starts, lengths, magics)
        if one == magic:
            assert found == b"".join(map(importlib.util.source_hash, sources))


@BOTH
def test_source_hashes_refuse_what_does_not_fit(kernel: ModuleType) -> None:
    for starts, lengths, magics in (([0], [9], [3495]), ([-1], [1], [3495]), ([0], [-1], [3495]), ([0], [1], [])):
        with pytest.raises(ValueError, match="data|number"):
            kernel.source_hashes(b"12345678", starts, lengths, magics)
    for magic in (-1, 70000, 3000):
        with pytest.raises(KeyError):
            kernel.source_hashes(b"12345678", [0], [1], [magic])
    assert kernel.source_hashes(b"", [], [], []) == b""


def invalid(prefix: Path) -> list[str]:
    """The modules of the package whose .pyc files Python would not use, as it says when it imports them."""
    code = (
        "import sys, importlib; sys.path.insert(0, sys.argv[1])\n"
        "for name in sys.argv[2:]: importlib.import_module(name)"
    )
    command = [sys.executable, "-I", "-v", "-B", "-c", code, str(prefix / "lib" / "code"), "own", "its", "stale"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    used = {
        line.split("code object from ")[1].strip("'\"")
        for line in done.stderr.splitlines()
        if "code object from" in line
    }
    return sorted(Path(path).name for path in used if path.startswith(str(prefix)) and path.endswith(".py"))


@pytest.fixture
def with_pycs(tmp_path: Path) -> str:
    """A managed module with the package's own .pyc, an unmanaged one with a valid and one with a stale .pyc."""
    prefix = str(tmp_path / "env")
    os.makedirs(prefix)
    tag = sys.implementation.cache_tag
    source = b"VALUE = 'its'\n"
    pyc = bytes(_code_to_timestamp_pyc(compile(source, "its.py", "exec"), 1_600_000_000, len(source)))
    files = {"lib/code/its.py": MadeFile(source), f"lib/code/__pycache__/its.{tag}.pyc": MadeFile(pyc)}
    install([MadePackage("its", files=files)], prefix)
    for name in ("own", "stale"):
        write(prefix, f"lib/code/{name}.py", f"VALUE = {name!r}\n")
        py_compile.compile(os.path.join(prefix, f"lib/code/{name}.py"), doraise=True)
    write(prefix, "lib/code/stale.py", "VALUE = 'changed since'\n")
    write(prefix, "lib/code/alone.pyc", "")
    Path(prefix, "lib/code/alone.pyc").write_bytes(pyc)
    return prefix


def pyc_flags(prefix: Path) -> dict[str, int]:
    folder = prefix / "lib/code/__pycache__"
    return {p.name.split(".")[0]: p.read_bytes()[4] for p in folder.iterdir()} if folder.exists() else {}


def test_pycs_by_hash_are_valid_whatever_became_of_the_times(with_pycs: str, tmp_path: Path) -> None:
    for suffix, how in (("tar.zst", "checked-hash"), ("zip", None)):
        output, target = tmp_path / f"a.{suffix}", tmp_path / f"t-{suffix}"
        report = fastpack.pack(prefix=with_pycs, output=str(output), pyc=how)
        assert report.pyc["stated by hash"] == 2
        fastpack.unpack(str(output), str(target))
        assert pyc_flags(target) == {"own": 3, "its": 3}
        for path in (target / "lib/code").glob("*.py"):
            os.utime(path, (1, 1))
        assert invalid(target) == ["stale.py"]
        (record,) = (target / "conda-meta").glob("its-*.json")
        (row,) = (r for r in json.loads(record.read_text())["paths_data"]["paths"] if r["_path"].endswith(".pyc"))
        import hashlib

        data = (target / row["_path"]).read_bytes()
        assert row["sha256"] == hashlib.sha256(data).hexdigest() and row["size_in_bytes"] == len(data)
        assert fastpack.verify(str(target), deep=True).problems == ()
        # Packed again they are the package's own, and stay as they are.
        again = fastpack.pack(prefix=str(target), output=str(tmp_path / f"b.{suffix}"), pyc="timestamp")
        assert again.verdicts.get("modified") is None and again.verdicts.get("recompiled") is None
        fastpack.unpack(str(tmp_path / f"b.{suffix}"), str(tmp_path / f"t2-{suffix}"))
        assert pyc_flags(tmp_path / f"t2-{suffix}") == {"own": 3, "its": 3}
        # And packed again as before, it is the same archive.
        same = tmp_path / f"c.{suffix}"
        shutil.rmtree(target)
        fastpack.unpack(str(output), str(target))
        fastpack.pack(prefix=str(target), output=str(same), pyc=how)
        assert same.read_bytes() == output.read_bytes()
        # A source that is changed is found out.
        (target / "lib/code/own.py").write_text("VALUE = 'new'\n")
        assert invalid(target) == ["own.py", "stale.py"]


def test_pycs_by_time_and_none_at_all(with_pycs: str, tmp_path: Path) -> None:
    for suffix in ("tar.gz", "zip"):
        fastpack.pack(prefix=with_pycs, output=str(tmp_path / f"a.{suffix}"), pyc="timestamp")
        fastpack.unpack(str(tmp_path / f"a.{suffix}"), str(tmp_path / suffix))
        assert pyc_flags(tmp_path / suffix) == {"own": 0, "its": 0} and invalid(tmp_path / suffix) == ["stale.py"]
    report = fastpack.pack(prefix=with_pycs, output=str(tmp_path / "c.tar"), pyc="drop")
    assert report.left_out["--pyc drop"] == 3
    fastpack.unpack(str(tmp_path / "c.tar"), str(tmp_path / "c"))
    assert pyc_flags(tmp_path / "c") == {} and (tmp_path / "c/lib/code/alone.pyc").exists()
    assert fastpack.verify(str(tmp_path / "c"), deep=True).problems == ()
    fastpack.pack(prefix=str(tmp_path / "c"), output=str(tmp_path / "d.tar"))  # nothing is missing
    with pytest.raises(fastpack.FastpackError, match=r"\.pyc"):
        fastpack.pack(prefix=with_pycs, output=str(tmp_path / "e.tar"), pyc="never")


@pytest.mark.skipif(shutil.which("unzip") is None, reason="not on this machine: unzip")
def test_unzip_in_another_time_zone_leaves_pycs_valid(with_pycs: str, tmp_path: Path) -> None:
    fastpack.pack(prefix=with_pycs, output=str(tmp_path / "a.zip"), pyc="timestamp")
    zone = {**os.environ, "TZ": "Asia/Kolkata"}
    subprocess.run(["unzip", "-q", tmp_path / "a.zip", "-d", tmp_path / "t"], check=True, env=zone)
    assert invalid(tmp_path / "t") == ["stale.py"]

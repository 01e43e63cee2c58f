"""Verdicts and archive forms, on environments that were installed by conda's rules and then lived a little."""

from __future__ import annotations

import os
import py_compile
import struct
from pathlib import Path

import pytest

import fastpack
from fastpack._place_py import OPTIONAL, Relocation
from fastpack.environment import Environment
from fastpack.errors import ChangedWhileRead
from fastpack.examination import Examination
from fastpack.examine import examine
from fastpack.made_prefix import BUILD_PLACEHOLDER, MadeFile, MadePackage, entry_point, install
from fastpack.model import PLACEHOLDER, Verdict
from fastpack.prefixes import source_prefixes
from fastpack.pycs import PycAction
from fastpack.reading import open_source
from fastpack.relocation import apply_edits
from tests.conftest import P, app_package, c_string
from tests.test_environment import SITE, dist, python_stub, write


def examined(prefix: str, **options: bool) -> Examination:
    return examine(Environment.from_prefix(prefix), threads=2, **options)


def archive_form(prefix: str, result: Examination, path: str) -> bytes:
    with open(os.path.join(prefix, path), "rb") as file:
        return apply_edits(file.read(), result.files[path].form.edits)


PREFIXES = ["e", "a b", "环境", "x" * 100, 'quote\'d "one"', "back\\slash", "per%cent$dollar#hash"]


@pytest.mark.parametrize("name", PREFIXES)
@pytest.mark.parametrize("style", ["conda", "rattler"])
def test_normal_forms_are_proven_at_any_prefix(tmp_path: Path, name: str, style: str) -> None:
    prefix = str(tmp_path / name)
    package = app_package(style=style)
    install([package], prefix)
    result = examined(prefix)
    for path, made in package.files.items():
        if made.link is None:
            assert result.files[path].verdict is Verdict.PROVEN, path
        if made.file_mode is not None and path != "bin/app":
            assert archive_form(prefix, result, path) == made.data
    assert not any(found.not_relocated for found in result.files.values())
    script = archive_form(prefix, result, "bin/app")
    assert script.startswith(b"#!/bin/sh\n'''exec' \"$(dirname") and script.endswith(b"\nprint('" + P + b"')\n")


def test_archive_forms_do_not_depend_on_the_prefix(tmp_path: Path) -> None:
    forms = []
    for name in ("one", "another place with spaces"):
        prefix = str(tmp_path / name)
        install([app_package()], prefix)
        result = examined(prefix)
        forms.append({path: archive_form(prefix, result, path) for path in result.files})
    assert forms[0] == forms[1]


def test_modified_recompiled_placed_structural(tmp_path: Path) -> None:
    prefix = str(tmp_path / "env")
    extra = MadePackage("more", files={
        "bin/tool": MadeFile(entry_point("python", "m", "f"), 0o755, entry_point=True),
        "bin/nodigest": MadeFile(b"a " + P, with_digest=False),
        "lib/big.bin": MadeFile(b"x" * (1 << 20) + b"y"),
        f"{SITE}/m.py": MadeFile(b"x = 1\n"),
        f"{SITE}/__pycache__/m.cpython-311.pyc": MadeFile(b"stale"),
    }, style="rattler")  # fmt: skip
    install([app_package(), extra], prefix)
    write(prefix, "share/app/plain.txt", f"changed, naming {prefix}/x and {prefix}2\n")
    write(prefix, "lib/libapp.so", b"\x7fELF\0" + os.fsencode(prefix) + b"/lib" + bytes(300))
    write(prefix, f"{SITE}/__pycache__/m.cpython-311.pyc", b"new")
    write(prefix, "lib/big.bin", b"z" * (1 << 20) + b"y")
    result = examined(prefix)
    verdicts = {path: found.verdict for path, found in result.files.items()}
    assert verdicts["share/app/plain.txt"] is Verdict.MODIFIED
    assert archive_form(prefix, result, "share/app/plain.txt") == (
        b"changed, naming " + PLACEHOLDER + b"/x and " + prefix.encode() + b"2\n"
    )
    assert verdicts["lib/libapp.so"] is Verdict.MODIFIED
    restored = archive_form(prefix, result, "lib/libapp.so")
    assert restored.startswith(b"\x7fELF\0" + PLACEHOLDER + b"/lib\0")
    assert verdicts[f"{SITE}/__pycache__/m.cpython-311.pyc"] is Verdict.RECOMPILED
    assert verdicts["bin/tool"] is Verdict.PLACED
    assert verdicts["bin/nodigest"] is Verdict.STRUCTURAL
    # Above 1 MiB the size decides, unless it is asked for.
    assert verdicts["lib/big.bin"] is Verdict.STRUCTURAL
    assert examined(prefix, verify_source=True).files["lib/big.bin"].verdict is Verdict.MODIFIED


def test_a_modified_binary_that_cannot_be_undone_is_treated_as_unmanaged(made: str) -> None:
    write(made, "lib/libapp.so", b"\x7fELF\0" + os.fsencode(made) + b"/lib\0\0DATA")
    found = examined(made).files["lib/libapp.so"]
    assert found.verdict is Verdict.MODIFIED and not found.form.edits
    assert found.form.relocations == (Relocation(5, "slash", len(os.fsencode(made)), OPTIONAL),)


def test_row_8a_a_portable_wheel_is_not_touched_but_its_script_is(tmp_path: Path) -> None:
    prefix = str(tmp_path / "env")
    install([python_stub()], prefix)
    naming = f"root = '{prefix}'\n".encode()
    script = f"#!{prefix}/bin/python\nprint()\n".encode()
    rows = {"w/conf.py": naming, "../../../bin/w": script}
    dist(prefix, "w", rows, "cp311-cp311-manylinux_2_17_x86_64")
    os.chmod(os.path.join(prefix, "bin/w"), 0o755)
    result = examined(prefix)
    assert not result.files[f"{SITE}/w/conf.py"].form.edits
    assert archive_form(prefix, result, "bin/w").startswith(b"#!/bin/sh\n'''exec'")


def test_row_8a_a_prefix_that_means_many_things(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastpack import relocation

    prefix = str(tmp_path / "env")
    install([app_package()], prefix)
    write(prefix, "note.txt", f"see {prefix}/share\n")
    write(prefix, "bin/own", f"#!{prefix}/bin/python\nx = '{prefix}'\n", 0o755)
    monkeypatch.setattr(relocation, "is_unique", lambda path: False)
    result = examined(prefix)
    assert not result.files["note.txt"].form.edits  # rows 6 and 8 wait for --prefix-is-unique
    assert archive_form(prefix, result, "bin/own").endswith(f"\nx = '{prefix}'\n".encode())  # row 12 applies
    assert archive_form(prefix, result, "bin/own").startswith(b"#!/bin/sh\n")
    assert examined(prefix, prefix_is_unique=True).files["note.txt"].form.edits


def test_an_environment_that_was_moved_is_proven_all_the_same(tmp_path: Path) -> None:
    old, new = str(tmp_path / "old place"), str(tmp_path / "new")
    install([app_package()], old)
    os.rename(old, new)
    env = Environment.from_prefix(new)
    assert old in source_prefixes(env)
    result = examine(env, threads=1)
    assert result.files["lib/libapp.so"].verdict is Verdict.PROVEN
    assert os.fsencode(old) in result.prefixes.plain


def test_a_prefix_through_a_symlink_is_known_by_both_names(tmp_path: Path) -> None:
    real, link = str(tmp_path / "real"), str(tmp_path / "link")
    install([app_package()], real)
    os.symlink(real, link)
    write(real, "a.txt", f"{real}/x {link}/y\n")
    result = examined(link)
    assert archive_form(link, result, "a.txt") == PLACEHOLDER + b"/x " + PLACEHOLDER + b"/y\n"
    assert result.files["lib/libapp.so"].verdict is Verdict.PROVEN


def test_large_text_is_relocated_through_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastpack import reading, relocation

    monkeypatch.setattr(relocation, "WINDOW", 1000)
    monkeypatch.setattr(reading, "WINDOW", 1000)
    prefix = str(tmp_path / "env")
    lines = b"".join(b"%d " % k + P + b"/x\n" for k in range(500))
    install([MadePackage("big", files={"share/big.txt": MadeFile(lines, file_mode="text")})], prefix)
    own = b"".join(b"%d %s/x %s2\n" % (k, os.fsencode(prefix), os.fsencode(prefix)) for k in range(500))
    write(prefix, "share/own.txt", own)
    result = examined(prefix)
    assert result.files["share/big.txt"].verdict is Verdict.PROVEN
    assert archive_form(prefix, result, "share/big.txt") == lines
    assert archive_form(prefix, result, "share/own.txt") == own.replace(os.fsencode(prefix) + b"/", PLACEHOLDER + b"/")


def test_a_10_000_hit_binary_and_one_of_one_byte(tmp_path: Path) -> None:
    prefix = str(tmp_path / "env")
    many = b"\0" + b"".join(c_string(b"%d" % k, b"/x") for k in range(10_000))
    files = {"lib/many": MadeFile(many, file_mode="binary"), "lib/one": MadeFile(b"x")}
    install([MadePackage("m", files=files)], prefix)
    result = examined(prefix)
    assert result.files["lib/many"].verdict is Verdict.PROVEN
    assert len(result.files["lib/many"].form.relocations) == 10_000
    assert result.files["lib/one"].verdict is Verdict.PROVEN


# --- .pyc


def compiled(prefix: str, path: str, invalidation: str = "TIMESTAMP") -> str:
    source = os.path.join(prefix, path)
    return os.path.relpath(
        py_compile.compile(source, doraise=True,
                           invalidation_mode=py_compile.PycInvalidationMode[invalidation]), prefix)  # fmt: skip


def test_row_13_unmanaged_pycs(made: str) -> None:
    for name, text in (("valid", "x = 1\n"), ("stale", "x = 1\n"), ("names", f"x = '{made}'\n"), ("hashed", "y = 1\n")):
        write(made, f"lib/{name}.py", text)
    pycs = {name: compiled(made, f"lib/{name}.py") for name in ("valid", "stale", "names")}
    pycs["hashed"] = compiled(made, "lib/hashed.py", "CHECKED_HASH")
    write(made, "lib/stale.py", "x = 22\n")
    write(made, "lib/gone.py", "")
    pycs["gone"] = compiled(made, "lib/gone.py")
    os.unlink(os.path.join(made, "lib/gone.py"))
    write(made, "lib/legacy.pyc", b"sourceless")
    result = examined(made)
    assert result.pyc[pycs["valid"]] == PycAction.FOLLOW
    assert result.pyc[pycs["stale"]] == result.pyc[pycs["names"]] == result.pyc[pycs["gone"]] == PycAction.DROP
    assert result.pyc[pycs["hashed"]] == PycAction.AS_IT_IS == result.pyc["lib/legacy.pyc"]


def test_row_13_a_managed_pyc_that_was_compiled_anew_from_a_rewritten_source_is_dropped(tmp_path: Path) -> None:
    """It is stale at every other prefix, and names this one."""
    prefix = str(tmp_path / "env")
    pyc = "lib/__pycache__/m.cpython-311.pyc"
    files = {
        "lib/m.py": MadeFile(b"x = '" + P + b"'\n", file_mode="text"),
        pyc: MadeFile(b"\xa7\r\r\n" + bytes(12) + b"the package's own"),
    }
    install([MadePackage("m", files=files)], prefix)
    out, target = str(tmp_path / "a.tar.zst"), tmp_path / "target"
    fastpack.pack(prefix=prefix, output=out)
    fastpack.unpack(out, str(target))
    assert (target / pyc).read_bytes().endswith(b"the package's own"), "as a fresh installation has it"
    os.unlink(os.path.join(prefix, pyc))
    py_compile.compile(f"{prefix}/lib/m.py", cfile=f"{prefix}/{pyc}", doraise=True)
    report = fastpack.pack(prefix=prefix, output=out, force=True)
    assert not report.warnings and report.left_out["stale .pyc"] == 1
    fastpack.unpack(out, str(tmp_path / "other"))
    assert not (tmp_path / "other" / pyc).exists() and not fastpack.verify(str(tmp_path / "other")).problems
    again = fastpack.pack(prefix=str(tmp_path / "other"), output=str(tmp_path / "b.tar.zst"))
    assert not again.warnings and (tmp_path / "b.tar.zst").read_bytes() == Path(out).read_bytes()


def test_row_13_a_proven_pyc_keeps_its_sources_time(tmp_path: Path) -> None:
    prefix = str(tmp_path / "env")
    text = b"x = 1\n"
    header = b"\xa7\x0d\x0d\x0a\0\0\0\0" + struct.pack("<II", 1_600_000_000, len(text))
    pyc = f"{SITE}/__pycache__/m.cpython-311.pyc"
    files = {f"{SITE}/m.py": MadeFile(text), pyc: MadeFile(header + b"code " + BUILD_PLACEHOLDER.encode())}
    install([MadePackage("m", files=files)], prefix)
    result = examined(prefix)
    assert result.forced_mtimes == {f"{SITE}/m.py": 1_600_000_000}
    assert result.pyc[pyc] == PycAction.AS_IT_IS and not result.files[pyc].form.edits


# --- files that will not keep still


def test_a_file_that_changes_or_vanishes_is_noticed(made: str) -> None:
    env = Environment.from_prefix(made)
    file = env.files["share/app/plain.txt"]
    path = os.path.join(made, file.path)
    with pytest.raises(ChangedWhileRead) as caught, open_source(made, file) as (_, pread):
        with open(path, "ab") as more:
            more.write(b"more")
        pread(5, 0)
    assert caught.value.exit_code == 16
    with pytest.raises(ChangedWhileRead, match="changed"), open_source(made, file):
        pass
    os.unlink(path)
    with pytest.raises(ChangedWhileRead, match="vanished"), open_source(made, file):
        pass
    os.mkfifo(os.path.join(made, file.path))  # nobody writes to it, and it is not waited for
    with pytest.raises(ChangedWhileRead, match="changed"), open_source(made, file):
        pass

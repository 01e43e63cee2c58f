"""The relocation table, row by row, on files made to be nasty: docs/relocation.md links each row to its tests here."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import os
import pickle
import random
import shutil
import sqlite3
import stat
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

import fastpack
from fastpack import errors
from fastpack._place_py import OPTIONAL, Relocation
from fastpack.environment import Environment
from fastpack.examine import examine
from fastpack.made_prefix import MadeFile, MadePackage, install
from fastpack.model import PLACEHOLDER, Verdict
from tests.conftest import P, app_package, c_string, need, run_fastpack
from tests.oracles.conda_rules import binary_replace
from tests.test_conda_unpack import conda_unpack, extract
from tests.test_environment import SITE, dist, python_stub, write
from tests.trips import compile_c, members, pack, relocations, trip

gcc = need("gcc")


def made(tmp_path: Path, files: dict[str, MadeFile], name: str = "env", **options: object) -> str:
    """An environment of one package."""
    prefix = str(tmp_path / name)
    install([MadePackage("it", files=files, **options)], prefix)  # type: ignore[arg-type]
    return prefix


def unmanaged(tmp_path: Path, name: str = "env") -> str:
    """An environment whose package is of no interest."""
    return made(tmp_path, {"share/it.txt": MadeFile(b"it\n")}, name)


def read(prefix: str, path: str) -> bytes:
    return Path(prefix, path).read_bytes()


def padded(folder: Path, length: int) -> str:
    """A path below a directory of exactly so many bytes."""
    path = str(folder)
    while len(path) < length:
        room = min(200, length - len(path) - 1)
        rest = length - len(path) - 1 - room
        if rest == 1:  # no room for a name behind a slash
            room -= 1
        path += "/" + "p" * room
    assert len(path) == length
    return path


# --- rows 1 and 2: managed binaries


def test_row_1_a_40_mb_library_across_every_boundary(tmp_path: Path) -> None:
    mib = 1 << 20
    data = bytearray(random.Random(1).randbytes(mib) * 40)
    wide = 3 * mib  # a region of 1 MiB without a NUL
    data[wide : wide + mib] = data[wide : wide + mib].replace(b"\0", b"\1")
    places = [4 * mib - 100, 8 * mib - 1, 16 * mib - 254, 32 * mib - 3, 100, wide + 5000, 39 * mib]
    for k, place in enumerate(places):
        string = c_string(b"", b"/lib:%d" % k, b"/x" * k)
        data[place - 1 : place - 1 + len(string) + 1] = b"\0" + string
    data[-40:] = b"\0" + b"no prefix in here\0".ljust(39, b"z")
    prefix = made(tmp_path, {"lib/libbig.so": MadeFile(bytes(data), 0o755, file_mode="binary")})
    report = fastpack.pack(prefix=prefix, output=str(tmp_path / "a.tar"), compress_level=0)
    assert report.verdicts["proven with a prefix"] == 1 and report.n_relocations >= 2 * len(places)
    target = str(tmp_path / "target")
    fastpack.unpack(report.output, target)
    assert read(target, "lib/libbig.so") == binary_replace(bytes(data), P, os.fsencode(target))
    fastpack.relocate(target, dest_prefix="/somewhere/else")
    assert read(target, "lib/libbig.so") == binary_replace(bytes(data), P, b"/somewhere/else")


def test_row_1_10_000_hits_and_a_file_of_one_byte(tmp_path: Path) -> None:
    many = b"\0" + b"".join(c_string(b"%d " % k, b"/x", b":") for k in range(5_000)) + b"\0"
    files = {"lib/many": MadeFile(many, file_mode="binary"), "lib/one": MadeFile(b"x"), "lib/nul": MadeFile(b"\0")}
    target = trip(made(tmp_path, files), tmp_path)
    assert read(target, "lib/many") == binary_replace(many, P, os.fsencode(target))
    assert read(target, "lib/one") == b"x" and read(target, "lib/nul") == b"\0"


def test_row_2_a_string_that_ends_with_the_file(tmp_path: Path) -> None:
    data = b"\x7fELF\0\0a=" + P + b"/lib"
    prefix = made(tmp_path, {"lib/end.so": MadeFile(data, file_mode="binary")})
    # conda leaves it; rattler takes the end of the file for the string's.
    placed = data.replace(P, os.fsencode(prefix)).ljust(len(data), b"\0")
    record = Path(prefix, "conda-meta/it-1.0-0.json")
    write(prefix, "lib/end.so", placed)
    report = fastpack.pack(prefix=prefix, output=str(tmp_path / "a.tar.zst"))
    assert report.verdicts["proven"] == 1
    assert [warning.path for warning in report.warnings if warning.code == "string-at-end"] == ["lib/end.so"]
    assert record.exists()
    target = trip(prefix, tmp_path)
    assert read(target, "lib/end.so") == data.replace(P, os.fsencode(target)).ljust(len(data), b"\0")


def test_row_3_the_longest_prefix_that_fits(tmp_path: Path) -> None:
    prefix = made(tmp_path, {"lib/a.so": MadeFile(b"\0" + c_string(b"", b"/x"), file_mode="binary")})
    archive = pack(prefix, tmp_path / "a.tar.zst")
    for length in (254, 255):
        target = padded(tmp_path, length)
        fastpack.unpack(archive, target)
        assert read(target, "lib/a.so") == binary_replace(b"\0" + c_string(b"", b"/x"), P, os.fsencode(target))
        # Packed from there, whatever is left of the padding, it is the same archive.
        assert Path(pack(target, tmp_path / "b.tar.zst")).read_bytes() == Path(archive).read_bytes()
        shutil.rmtree(target)
    target = padded(tmp_path, 256)
    with pytest.raises(errors.PrefixTooLong) as caught:
        fastpack.unpack(archive, target)
    assert "255" in str(caught.value) and "256" in str(caught.value) and not os.path.exists(target)
    with open(archive, "rb") as pipe:
        assert run_fastpack("unpack", "-", "-p", target, stdin=pipe).code == 20
    extract(archive, target)
    assert conda_unpack(target).returncode == 20 and not os.path.exists(f"{target}/.fastpack/state.json")


def test_row_4_without_a_hit_any_prefix_fits(tmp_path: Path) -> None:
    data = b"\x7fELF\0/opt/elsewhere\0" + bytes(50)
    prefix = made(tmp_path, {"lib/a.so": MadeFile(data), "etc/a": MadeFile(b"at " + P + b"\n", file_mode="text")})
    target = trip(prefix, tmp_path, padded(tmp_path, 700))
    assert read(target, "lib/a.so") == data and read(target, "etc/a") == b"at %s\n" % os.fsencode(target)


# --- row 5: data that is no lone C string

TAIL_MERGED = f"""
#include <stdio.h>
#include <string.h>
const char *whole = "{P.decode()}/share/tail-of-it";
const char *tail = "tail-of-it";
int main(void) {{ printf("%s|%s\\n", whole, tail); return strcmp(tail, "tail-of-it") != 0; }}
"""

FOLDED = f"""
#include <stdio.h>
#include <string.h>
#define PATH "{P.decode()}/share"
int main(void) {{
    char path[1024];
    memcpy(path, PATH, strlen(PATH));
    strcpy(path + strlen(PATH), "/it.txt");
    FILE *file = fopen(path, "r");
    return file == NULL || fgetc(file) != 'i';
}}
"""

SLICES = f"""
#include <stdio.h>
static const char text[] = "key={P.decode()}/one{P.decode()}/twothe end";
static const struct {{ int at, length; }} slices[] = {{
    {{4, {len(P) + 4}}}, {{{len(P) + 8}, {len(P) + 4}}}, {{{2 * len(P) + 12}, 7}}}};
int main(void) {{
    for (int k = 0; k < 3; k++) printf("%.*s\\n", slices[k].length, text + slices[k].at);
    return 0;
}}
"""


#: A format with lengths, and NULs behind the string, so that conda changes it.
PICKLE = pickle.dumps({"path": P.decode() + "/x", "n": 7}, protocol=2) + bytes(4)


@gcc
@pytest.mark.parametrize("pad", ["conda", "slash"])
def test_row_5_tail_merged_folded_and_sliced_strings(tmp_path: Path, pad: str) -> None:
    """Broken by conda's bytes, which is what the default writes; right with --pad slash."""
    files = {"share/it.txt": MadeFile(b"it\n")}
    for name, source in (("tail", TAIL_MERGED), ("folded", FOLDED), ("slices", SLICES)):
        path = compile_c(source, str(tmp_path / "built" / name), "-Os", "-fno-builtin-printf")
        files[f"bin/{name}"] = MadeFile(Path(path).read_bytes(), 0o755, file_mode="binary")
    files["share/it.pickle"] = MadeFile(PICKLE, file_mode="binary")
    target = trip(made(tmp_path, files), tmp_path, pad=[pad])

    def run(name: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run([f"{target}/bin/{name}"], capture_output=True)

    raw = os.fsencode(target)
    fill = b"/" * (len(P) - len(raw))
    if pad == "conda":
        for name in ("tail", "folded", "slices"):
            assert read(target, f"bin/{name}") == binary_replace(files[f"bin/{name}"].data, P, raw)
        assert run("tail").stdout == raw + b"/share/tail-of-it|\n" and run("folded").returncode == 1
        assert run("slices").stdout.splitlines()[2:3] != [b"the end"]
        try:
            assert pickle.loads(read(target, "share/it.pickle")) != {"path": target + fill.decode() + "/x", "n": 7}
        except Exception as error:
            assert not isinstance(error, AssertionError)
        return
    assert run("tail").stdout == raw + fill + b"/share/tail-of-it|tail-of-it\n" and run("tail").returncode == 0
    assert run("folded").returncode == 0
    assert run("slices").stdout.splitlines() == [raw + fill + b"/one", raw + fill + b"/two", b"the end"]
    assert pickle.loads(read(target, "share/it.pickle")) == {"path": target + fill.decode() + "/x", "n": 7}


def test_row_5_padding_is_chosen_per_file_recorded_and_overridden(tmp_path: Path) -> None:
    data = b"\0" + c_string(b"", b"/one:", b"/two") + bytes(8)
    files = {name: MadeFile(data, file_mode="binary") for name in ("lib/a.so", "lib/b.so", "share/c.bin")}
    prefix = made(tmp_path, files)
    archive = pack(prefix, tmp_path / "a.tar.zst", pad=["lib/*=slash", "lib/b.so=conda"])
    kinds = {path: {item.kind for item in file.items} for path, file in relocations(archive).items() if path in files}
    assert kinds == {"lib/a.so": {"slash"}, "lib/b.so": {"binary"}, "share/c.bin": {"binary"}}
    # The archive's own bytes are the packages': padding is a matter of placing.
    assert all(members(archive)[path] == data for path in files)
    n1, n2 = str(tmp_path / "n1"), str(tmp_path / "a longer n2")

    def conda(prefix: str) -> bytes:
        return binary_replace(data, P, os.fsencode(prefix))

    def slash(prefix: str) -> bytes:
        return data.replace(P, os.fsencode(prefix).ljust(len(P), b"/"))

    def state(prefix: str) -> list[str]:
        return json.loads(read(prefix, ".fastpack/state.json"))["pad"]  # type: ignore[no-any-return]

    def has(prefix: str, a: bytes, b: bytes, c: bytes) -> bool:
        return [read(prefix, path) for path in files] == [a, b, c]

    fastpack.unpack(archive, n1)
    assert has(n1, slash(n1), conda(n1), conda(n1)) and state(n1) == []
    shutil.rmtree(n1)
    extract(archive, n1)
    assert conda_unpack(n1).returncode == 0 and has(n1, slash(n1), conda(n1), conda(n1))
    os.rename(n1, n2)
    assert conda_unpack(n2).returncode == 0 and has(n2, slash(n2), conda(n2), conda(n2))
    # Overridden, kept in the state, obeyed by conda-unpack, taken back.
    fastpack.relocate(n2, pad=["slash", "lib/a.so=conda"])
    assert has(n2, conda(n2), slash(n2), slash(n2)) and state(n2) == ["slash", "lib/a.so=conda"]
    os.rename(n2, n1)
    assert conda_unpack(n1).returncode == 0 and has(n1, conda(n1), slash(n1), slash(n1))
    assert fastpack.verify(n1).problems == ()
    # Packed again, all is undone and proven; what lies slash-padded stays so.
    again = fastpack.pack(prefix=n1, output=str(tmp_path / "b.tar.zst"))
    assert again.verdicts["proven with a prefix"] == 3
    kinds = {path: {item.kind for item in file.items} for path, file in relocations(again.output).items()}
    assert kinds["lib/a.so"] == {"binary"} and kinds["lib/b.so"] == kinds["share/c.bin"] == {"slash"}
    fastpack.relocate(n1, pad=[])
    assert has(n1, slash(n1), conda(n1), conda(n1)) and state(n1) == []
    shutil.rmtree(n1)
    fastpack.unpack(archive, n1, pad=["slash"])
    assert has(n1, slash(n1), slash(n1), slash(n1)) and state(n1) == ["slash"]
    with open(archive, "rb") as pipe:
        assert run_fastpack("unpack", "-", "-p", n2, "--pad", "share/*=slash", stdin=pipe).code == 0
    assert has(n2, slash(n2), conda(n2), slash(n2)) and state(n2) == ["share/*=slash"]
    for bad in ("spaces", "lib/*=", "*"):
        with pytest.raises(errors.UsageError):
            fastpack.relocate(n1, pad=[bad])
    # Placed when packing, the padding is the one that was asked for; and too long is too long.
    placed = pack(prefix, tmp_path / "c.tar.zst", pad=["slash"], dest_prefix="/target/there")
    assert members(placed)["lib/a.so"] == slash("/target/there")
    with pytest.raises(errors.PrefixTooLong):
        fastpack.unpack(archive, padded(tmp_path, 256), pad=["slash"])


# --- rows 6 and 6a: unmanaged binaries


def test_row_6_an_unmanaged_binary_is_filled_where_it_fits(tmp_path: Path) -> None:
    prefix = unmanaged(tmp_path, "a rather long name of an environment")
    raw = os.fsencode(prefix)
    data = (
        b"\x7fELF\0\0"
        + raw
        + b"/lib\0"
        + b"x="
        + raw
        + b":"
        + raw
        + b"/y\0"
        + raw
        + b"2/other\0/mnt"
        + raw
        + b"/z\0end"
    )
    write(prefix, "lib/own.so", data, 0o755)
    archive = pack(prefix, tmp_path / "a.tar.zst")
    items = relocations(archive)["lib/own.so"].items
    assert all(item[1:] == ("slash", len(raw), OPTIONAL) for item in items) and len(items) == 3
    assert members(archive)["lib/own.so"] == data
    report = fastpack.pack(prefix=prefix, output=archive, force=True)
    assert report.limited == ({"path": "lib/own.so", "longest_prefix": len(raw)},)
    assert any(warning.code == "limited" for warning in report.warnings)
    # What lies behind another directory is no path of ours; it is listed, since nobody can know.
    assert report.not_relocated == (
        {"path": "lib/own.so", "why": "a binary that names the prefix where no path begins or ends"},
    )

    def filled(target: str) -> bytes:
        new = os.fsencode(target).ljust(len(raw), b"/")
        return (
            b"\x7fELF\0\0" + new + b"/lib\0x=" + new + b":" + new + b"/y\0" + raw + b"2/other\0/mnt" + raw + b"/z\0end"
        )

    target = trip(prefix, tmp_path, str(tmp_path / "n"))
    assert read(target, "lib/own.so") == filled(target)
    # Moved to where it does not fit, it depends on the packer's path, and says so; moved back, it is right again.
    longer = str(tmp_path / ("n" * 100))
    os.rename(target, longer)
    assert [w.path for w in fastpack.relocate(longer).warnings if w.code == "not-relocated"] == ["lib/own.so"]
    assert read(longer, "lib/own.so") == data
    done = conda_unpack(longer)
    assert done.returncode == 0 and "lib/own.so" in done.stderr
    os.rename(longer, target)
    assert conda_unpack(target).returncode == 0 and read(target, "lib/own.so") == filled(target)
    # Packed from its new place, the slashes that filled it still belong to the slot.
    again = relocations(pack(target, tmp_path / "b.tar.zst"))["lib/own.so"]
    assert again.items[0].slot >= len(raw)


def test_row_6_strict_refuses_what_does_not_fit(tmp_path: Path) -> None:
    prefix = unmanaged(tmp_path)
    write(prefix, "lib/own.so", b"\x7fELF\0\0" + os.fsencode(prefix) + b"/lib\0")
    longer = str(tmp_path / "a much longer prefix than that")
    archive = pack(prefix, tmp_path / "a.tar.zst")
    assert [w.path for w in fastpack.unpack(archive, longer).warnings] == ["lib/own.so"]
    shutil.rmtree(longer)
    with pytest.raises(errors.Unrelocatable) as caught:
        fastpack.unpack(archive, longer, strict=True)
    assert caught.value.path == "lib/own.so" and not os.path.exists(longer)
    with pytest.raises(errors.PrefixTooLong):
        fastpack.pack(prefix=prefix, output=archive, force=True, strict=True, dest_prefix=longer)
    # An archive that was packed strictly limits the prefix instead of breaking the file, by a pipe too.
    archive = pack(prefix, tmp_path / "b.tar.zst", strict=True)
    with pytest.raises(errors.PrefixTooLong):
        fastpack.unpack(archive, longer)
    with open(archive, "rb") as pipe:
        assert run_fastpack("unpack", "-", "-p", longer, stdin=pipe).code == 20
    fastpack.unpack(archive, str(tmp_path / "n"))
    # What can be relocated nowhere is refused when packing.
    write(prefix, "lib/own.so", b"\x7fELF\0\0/mnt" + os.fsencode(prefix) + b"/lib\0")
    with pytest.raises(errors.Unrelocatable):
        fastpack.pack(prefix=prefix, output=archive, force=True, strict=True)


def test_row_6_several_prefixes_in_one_file(tmp_path: Path) -> None:
    real = unmanaged(tmp_path, "the real place of it")
    link = str(tmp_path / "link")
    os.symlink(real, link)
    one, two = os.fsencode(real), os.fsencode(link)
    write(real, "lib/own.so", b"\0" + one + b"/a\0" + two + b"/b\0")
    target = trip(link, tmp_path, str(tmp_path / "n"))
    new = os.fsencode(target)
    wanted = b"\0" + new.ljust(len(one), b"/") + b"/a\0" + new.ljust(len(two), b"/") + b"/b\0"
    assert read(target, "lib/own.so") == wanted


LIBRARY = "int answer(void) { return 42; }"
PROGRAM = "int answer(void); int main(void) { return answer() != 42; }"


@gcc
@pytest.mark.parametrize("tag", ["--enable-new-dtags", "--disable-new-dtags"])
def test_row_6a_runpath_is_written_from_origin(tmp_path: Path, tag: str) -> None:
    prefix = unmanaged(tmp_path, "a name that is long enough for a way")
    compile_c(LIBRARY, f"{prefix}/lib/deep/libanswer.so", "-shared", "-fPIC")
    flags = [f"-L{prefix}/lib/deep", "-lanswer", f"-Wl,{tag},-rpath,{prefix}/lib/deep:/nowhere:{prefix}/lib"]
    compile_c(PROGRAM, f"{prefix}/bin/program", *flags)
    archive = pack(prefix, tmp_path / "a.tar.zst")
    assert os.fsencode(prefix) not in members(archive)["bin/program"]
    assert b"$ORIGIN/../lib/deep:/nowhere:$ORIGIN/../lib\0" in members(archive)["bin/program"]
    shutil.rmtree(prefix)
    target = extract(archive, str(tmp_path / "a longer place, as far as that goes, than it was built at"))
    assert subprocess.run([f"{target}/bin/program"]).returncode == 0  # by plain tar alone
    assert conda_unpack(target).returncode == 0
    assert subprocess.run([f"{target}/bin/program"]).returncode == 0


@gcc
def test_row_6a_a_path_that_something_else_uses_is_left_to_row_6(tmp_path: Path) -> None:
    prefix = unmanaged(tmp_path, "a name that is long enough for a way")
    compile_c(LIBRARY, f"{prefix}/lib/libanswer.so", "-shared", "-fPIC")
    # A symbol whose name is the end of the RUNPATH: linkers store it there.
    ending = os.path.basename(prefix).replace(" ", "_")
    folder = f"{prefix}/{ending}_symbol"
    os.makedirs(folder)
    source = f"int answer(void); int {ending}_symbol(void) {{ return answer(); }}"
    compile_c(
        source, f"{prefix}/lib/libmore.so", "-shared", "-fPIC", f"-L{prefix}/lib", "-lanswer", f"-Wl,-s,-rpath,{folder}"
    )
    data = read(prefix, "lib/libmore.so")
    archive = pack(prefix, tmp_path / "a.tar.zst")
    merged = data.count(ending.encode() + b"_symbol\0") == 1  # the linker let one be the end of the other
    file = relocations(archive).get("lib/libmore.so")
    if merged:
        assert file is not None and members(archive)["lib/libmore.so"] == data
    else:
        assert b"$ORIGIN" in members(archive)["lib/libmore.so"]


@gcc
def test_row_6a_no_room_means_row_6(tmp_path: Path) -> None:
    short = Path("/tmp") / f"f{os.getpid() % 1000}"
    if short.exists():
        pytest.skip("that short name is taken")
    try:
        install([MadePackage("it", files={"share/it.txt": MadeFile(b"it\n")})], str(short))
        compile_c(LIBRARY, f"{short}/lib/a/b/c/d/e/libanswer.so", "-shared", "-fPIC", f"-Wl,-rpath,{short}/lib")
        file = relocations(pack(str(short), tmp_path / "a.tar.zst"))["lib/a/b/c/d/e/libanswer.so"]
        assert [item.kind for item in file.items] == ["slash"]
    finally:
        shutil.rmtree(short)


# --- rows 8 and 8a: unmanaged text

FORMATS = {
    "share/jupyter/kernels/python3/kernel.json": '{{"argv": ["{json}/bin/python", "-m"], "env": {{"A": "{json}"}}}}',
    "lib/pkgconfig/it.pc": "prefix={plain}\nlibdir=${{prefix}}/lib\nLibs: -L{plain}/lib -Wl,-rpath,{plain}/lib\n",
    "lib/cmake/it/it-config.cmake": 'set(IT_ROOT "{plain}")\nset(X "{plain}/lib;{plain}/lib64")\n',
    "lib/libit.la": "libdir='{plain}/lib'\ndependency_libs=' -L{plain}/lib -R{plain}/lib'\n",
    "bin/qt.conf": "[Paths]\nPrefix = {plain}\n",
    "etc/fonts/fonts.conf": "<dir>{plain}/fonts</dir><cachedir>{plain}/var/cache</cachedir>\n",
    "share/url.txt": "see file://{percent}/share/doc and file:{percent}/x\n",
    "share/crlf.txt": "a = {plain}\r\nb = {plain}/x\r\n",
    "share/bom.txt": "\ufeffa = {plain}\n",
    "share/end.txt": "{plain}",
    "share/siblings.txt": "{plain}2 {plain}.bak {plain}-x /mnt{plain} x{plain}\n",
}


@pytest.mark.parametrize("name", ["env", "with space", "环境", "per%cent"])
def test_row_8_formats_that_name_the_prefix(tmp_path: Path, name: str) -> None:
    import urllib.parse

    def spelled(text: str, prefix: str) -> bytes:
        return text.format(
            plain=prefix, json=json.dumps(prefix, ensure_ascii=False)[1:-1], percent=urllib.parse.quote(prefix)
        ).encode()

    prefix = unmanaged(tmp_path, name)
    for path, text in FORMATS.items():
        write(prefix, path, spelled(text, prefix))
    latin = b"caf\xe9 at " + os.fsencode(prefix) + b"/x\n"
    write(prefix, "share/latin-1.txt", latin)
    target = trip(prefix, tmp_path, str(tmp_path / 'some "where" else'))
    for path, text in FORMATS.items():
        place = prefix if "siblings" in path else target
        assert read(target, path) == spelled(text, place), path
    assert read(target, "share/latin-1.txt") == b"caf\xe9 at " + os.fsencode(target) + b"/x\n"
    json.loads(read(target, "share/jupyter/kernels/python3/kernel.json"))


@pytest.mark.skipif(not os.access("/usr/local", os.W_OK), reason="/usr/local is not ours to write to")
def test_row_8a_a_manylinux_wheel_in_an_environment_below_usr_local(tmp_path: Path) -> None:
    prefix = f"/usr/local/fastpack test {os.getpid()}"
    try:
        install([python_stub()], prefix)
        text = f"installed at /usr/local or {prefix}/lib\n".encode()
        files = {"w/__init__.py": text, "w/data.bin": b"\0/usr/local/lib\0" + text, "../../../bin/w": text}
        dist(prefix, "w", files, tag="cp311-cp311-manylinux_2_17_x86_64")
        target = trip(prefix, tmp_path)
        assert read(target, f"{SITE}/w/__init__.py") == text
        assert read(target, f"{SITE}/w/data.bin") == b"\0/usr/local/lib\0" + text
        assert read(target, "bin/w") == text.replace(os.fsencode(prefix), os.fsencode(target))
    finally:
        shutil.rmtree(prefix)


def test_row_8a_at_usr_local_itself_mentions_are_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastpack import examine as module

    prefix = unmanaged(tmp_path)
    own = {"bin/own": b"#!/usr/local/bin/python\nprint('/usr/local/share')\n", "share/own.txt": b"/usr/local/x\n"}
    for path, data in own.items():
        write(prefix, path, data, 0o755 if path.startswith("bin") else 0o644)
    write(prefix, "lib/own.bin", b"\0/usr/local/x\0")
    monkeypatch.setattr(module, "source_prefixes", lambda env: ["/usr/local"])
    for unique in (False, True):
        files = examine(Environment.from_prefix(prefix), threads=1, prefix_is_unique=unique).files
        assert [item.kind for item in files["bin/own"].form.relocations] == ["shebang", "text"][: 1 + unique]
        assert len(files["share/own.txt"].form.relocations) == unique
        assert len(files["lib/own.bin"].form.relocations) == unique


# --- row 9: text or binary


@pytest.mark.parametrize("file_mode", [None, "other", "text"])
def test_row_9_a_record_that_does_not_say_what_a_binary_is(tmp_path: Path, file_mode: str | None) -> None:
    prefix = made(tmp_path, {"lib/it.so": MadeFile(c_string(b"", b"/lib") + bytes(300), file_mode="binary")})
    (record,) = Path(prefix, "conda-meta").glob("it-*.json")
    table = json.loads(record.read_text())
    for row in table["paths_data"]["paths"]:
        del row["file_mode"]
        row.update({} if file_mode is None else {"file_mode": file_mode})
    record.write_text(json.dumps(table))
    target = trip(prefix, tmp_path, str(tmp_path / "another, longer prefix"))
    assert read(target, "lib/it.so") == binary_replace(c_string(b"", b"/lib") + bytes(300), P, os.fsencode(target))


def test_row_9_records_that_list_paths_and_nothing_more(tmp_path: Path) -> None:
    """What conda wrote before 4.3: every hit in a binary can be undone, so it was one; links are none that changed."""
    content = c_string(b"", b"/lib") + bytes(300)
    prefix = made(tmp_path, {"lib/it.so": MadeFile(content, file_mode="binary"), "lib/link.so": MadeFile(b"", link="it.so")},
                  with_paths_data=False)  # fmt: skip
    out = str(tmp_path / "a.tar.zst")
    report = fastpack.pack(prefix=prefix, output=out, on_modified="error")
    assert not report.warnings and not report.not_relocated
    target = trip(prefix, tmp_path, str(tmp_path / "another, longer prefix"))
    assert read(target, "lib/it.so") == binary_replace(content, P, os.fsencode(target))


def test_row_9_a_nul_byte_means_binary(tmp_path: Path) -> None:
    prefix = unmanaged(tmp_path, "long enough to hold what comes")
    raw = os.fsencode(prefix)
    write(prefix, "share/nul.txt", b"name = " + raw + b"/x\nand a NUL\0\n")
    write(prefix, "share/odd.txt", b"\xff\xfe\x01 no text at all " + raw + b"/x\n")
    target = trip(prefix, tmp_path, str(tmp_path / "n"))
    new = os.fsencode(target)
    assert read(target, "share/nul.txt") == b"name = " + new.ljust(len(raw), b"/") + b"/x\nand a NUL\0\n"
    assert read(target, "share/odd.txt") == b"\xff\xfe\x01 no text at all " + new + b"/x\n"


# --- row 10: wide characters

WIDE = ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")


def test_row_1_wide_characters_without_their_padding_are_told(tmp_path: Path) -> None:
    """Where there are no NULs to give back, it was no installer that wrote them; what is not replaced is said."""
    prefix = made(tmp_path, {"share/wide": MadeFile(P + b"/x\0", file_mode="binary")})
    path = Path(prefix, "share/wide")
    path.write_bytes(path.read_bytes() + (prefix + "/y\0").encode("utf-16-le") + b"\1")
    (record,) = Path(prefix, "conda-meta").glob("it-*.json")
    table = json.loads(record.read_text())
    for row in table["paths_data"]["paths"]:
        row["sha256_in_prefix"] = hashlib.sha256(path.read_bytes()).hexdigest()
    record.write_text(json.dumps(table))
    report = fastpack.pack(prefix=prefix, output=str(tmp_path / "a.tar.zst"))
    assert [row["path"] for row in report.not_relocated] == ["share/wide"]
    assert "without room" in report.not_relocated[0]["why"]
    with pytest.raises(errors.Unrelocatable):
        fastpack.pack(prefix=prefix, output=str(tmp_path / "b.tar.zst"), strict=True)


@pytest.mark.parametrize("codec", WIDE)
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_row_10_wide_text_may_change_its_length(tmp_path: Path, codec: str, bom: str) -> None:
    prefix = unmanaged(tmp_path)
    text = bom + "näme = {0}/share\r\n“{0}”; {0}2 /mnt{0}\r\nend {0}"
    write(prefix, "share/wide.txt", text.format(prefix).encode(codec))
    write(prefix, "share/ascii.txt", f"at {prefix}\n".encode(codec))
    archive = pack(prefix, tmp_path / "a.tar.zst")
    file = relocations(archive)["share/wide.txt"]
    width = 4 if "32" in codec else 2
    assert {item.kind for item in file.items} == {codec} and all(item.offset % width == 0 for item in file.items)
    assert os.fsencode(prefix + "/") not in members(archive)["share/wide.txt"].replace(b"\0", b"")
    target = trip(prefix, tmp_path, str(tmp_path / "a much longer place for it"))
    wanted = bom + f"näme = {target}/share\r\n“{target}”; {prefix}2 /mnt{prefix}\r\nend {target}"
    assert read(target, "share/wide.txt") == wanted.encode(codec)
    assert read(target, "share/ascii.txt") == f"at {target}\n".encode(codec)
    assert fastpack.relocate(target, dest_prefix="/x").left == ()
    assert read(target, "share/ascii.txt") == "at /x\n".encode(codec)


def test_row_10_a_prefix_beyond_ascii_is_refused(tmp_path: Path) -> None:
    prefix = unmanaged(tmp_path)
    write(prefix, "share/wide.txt", f"at {prefix}\n".encode("utf-16"))
    archive = pack(prefix, tmp_path / "a.tar.zst")
    target = str(tmp_path / "环境")
    with pytest.raises(errors.Unrelocatable) as caught:
        fastpack.unpack(archive, target)
    assert caught.value.path == "share/wide.txt" and not os.path.exists(target)
    with open(archive, "rb") as pipe:
        assert run_fastpack("unpack", "-", "-p", target, stdin=pipe).code == 21 and not os.path.exists(target)
    extract(archive, target)
    assert conda_unpack(target).returncode == 21
    # Where the environment lies beyond ASCII already, such a file is listed.
    other = unmanaged(tmp_path, "ünvironment")
    write(other, "share/wide.txt", f"at {other}/x\n".encode("utf-16"))
    report = fastpack.pack(prefix=other, output=archive, force=True)
    assert [row["path"] for row in report.not_relocated] == ["share/wide.txt"]


@pytest.mark.parametrize("codec", WIDE)
@pytest.mark.parametrize("shift", [0, 1, 2, 3])
def test_row_10_wide_strings_in_a_binary_are_filled(tmp_path: Path, codec: str, shift: int) -> None:
    prefix = unmanaged(tmp_path, "a long name for a long slot")
    data = b"\x7fELF\x01\x02\x03\xff" + b"\xfe" * shift + f"\0{prefix}/lib\0".encode(codec) + b"\x01end"
    write(prefix, "lib/wide.so", data)
    target = trip(prefix, tmp_path, str(tmp_path / "n"))
    filled = target.ljust(len(prefix), "/") + "/lib\0"
    assert read(target, "lib/wide.so") == data.replace(f"{prefix}/lib\0".encode(codec), filled.encode(codec))


@gcc
def test_row_10_wchar_t_in_a_program(tmp_path: Path) -> None:
    prefix = unmanaged(tmp_path, "a long name for a long slot")
    source = f"""
    #include <wchar.h>
    #include <stdio.h>
    int main(void) {{ printf("%ls\\n", L"{prefix}/share"); return 0; }}
    """
    compile_c(source, f"{prefix}/bin/wide")
    target = trip(prefix, tmp_path, str(tmp_path / "n"))
    out = subprocess.run([f"{target}/bin/wide"], capture_output=True, text=True).stdout
    assert out == target.ljust(len(prefix), "/") + "/share\n"


# --- row 11: opaque files


def test_row_11_containers_are_never_changed_and_listed(tmp_path: Path) -> None:
    prefix = unmanaged(tmp_path, "a long name for a long slot")
    text = f"at {prefix}/lib\n"
    os.makedirs(f"{prefix}/own")
    Path(tmp_path, "inner.txt").write_text(text)
    with tarfile.open(f"{prefix}/own/a.tar", "w") as tar:
        tar.add(tmp_path / "inner.txt", "inner.txt")
    for name in ("a.zip", "a.jar", "a.whl"):
        with zipfile.ZipFile(f"{prefix}/own/{name}", "w") as archive:
            archive.writestr("inner.txt", text)
    np.savez(f"{prefix}/own/a.npz", where=np.array([text]), bytes=np.frombuffer(text.encode(), dtype=np.uint8))
    with sqlite3.connect(f"{prefix}/own/a.sqlite") as database:
        database.execute("create table t (x text)")
        database.execute("insert into t values (?)", (text,))
    database.close()
    write(prefix, "own/a.png", b"\x89PNG\r\n\x1a\n\0\0\0\rtEXt" + text.encode())
    write(prefix, "own/a.pdf", b"%PDF-1.4\n1 0 obj (" + text.encode() + b") endobj\n")
    before = {name: read(prefix, f"own/{name}") for name in os.listdir(f"{prefix}/own")}
    report = fastpack.pack(prefix=prefix, output=str(tmp_path / "a.tar.zst"))
    listed = {row["path"] for row in report.not_relocated if "never changed" in row["why"]}
    assert listed == {f"own/{name}" for name in before}
    target = trip(prefix, tmp_path, str(tmp_path / "n"))
    assert {name: read(target, f"own/{name}") for name in before} == before
    with pytest.raises(errors.Unrelocatable):
        fastpack.pack(prefix=prefix, output=str(tmp_path / "b.tar.zst"), strict=True)


# --- row 12: first lines


def script(prefix: str, path: str, text: bytes | str, mode: int = 0o755) -> None:
    write(prefix, path, text, mode)


def test_row_12_first_lines_in_the_source(tmp_path: Path) -> None:
    prefix = unmanaged(tmp_path)
    raw = prefix
    long = "/" + "x" * (127 - len("#!/bin/python"))
    lines = {
        "bin/no-newline": f"#!{raw}/bin/python",
        "bin/options": f"#!{raw}/bin/python -I -X utf8\nprint(1)\n",
        "bin/tab": f"#!{raw}/bin/python\t-I\nprint(1)\n",
        "bin/space-before": f"#! {raw}/bin/python\nprint(1)\n",
        "bin/tab-before": f"#!\t{raw}/bin/python\nprint(1)\n",
        "bin/crlf": f"#!{raw}/bin/python\r\nprint(1)\r\n",
        "bin/pip": f"#!/bin/sh\n'''exec' {raw}/bin/python \"$0\" \"$@\"\n' '''\nprint(1)\n",
        "bin/distlib": f"#!/bin/sh\n'''exec' \"{raw}/bin/python\" \"$0\" \"$@\"\n' '''\nprint(1)\n",
        "bin/rattler": f"#!/bin/sh\n'''exec' \"{raw}/bin/python\" \"$0\" \"$@\" #'''\nprint(1)\n",
        "bin/uv": f"#!/bin/sh\n'''exec' '{raw}/bin/python' \"$0\" \"$@\"\n' '''\nprint(1)\n",
        "bin/latin": f"#!{raw}/bin/python\n# -*- coding: latin-1 -*-\nprint('caf\xe9')\n".encode("latin-1"),
        "bin/perl": f"#!{raw}/bin/perl -w\nprint 1;\n",
        "bin/R": f"#!{raw}/bin/Rscript --vanilla\ncat(1)\n",
        "bin/sh": f"#!{raw}/bin/bash\necho 1\n",
        "bin/hash": f"#!{raw}/bin/python -c#\nprint(1)\n",
        "bin/long": f"#!{long}/bin/python\nprint('{raw}')\n",
    }
    for path, text in lines.items():
        script(prefix, path, text)
    script(prefix, "share/not-executable", f"#!{raw}/bin/python\nprint(1)\n", 0o644)
    archive = pack(prefix, tmp_path / "a.tar.zst")
    archived = members(archive)
    assert all(os.fsencode(prefix) not in archived[path] for path in lines)
    for path in ("bin/pip", "bin/distlib", "bin/rattler", "bin/uv", "bin/options", "bin/tab", "bin/space-before"):
        assert archived[path].startswith(b"#!/bin/sh\n'''exec' \"$(dirname -- \"$(realpath --"), path
    assert archived["bin/latin"].startswith(b"#!/usr/bin/env python\n# -*- coding: latin-1")
    assert archived["bin/perl"].startswith(b"#!/bin/sh\nexec ") and b'perl" -x' in archived["bin/perl"]
    assert archived["bin/R"].startswith(b"#!" + PLACEHOLDER)  # options, and not Python: it waits for conda-unpack
    assert archived["bin/sh"].startswith(b"#!/usr/bin/env bash\n")
    assert archived["share/not-executable"] == b"#!" + PLACEHOLDER + b"/bin/python\nprint(1)\n"
    target = trip(prefix, tmp_path, str(tmp_path / "n"))
    new = target
    assert read(target, "bin/no-newline") == f"#!{new}/bin/python".encode()
    assert read(target, "bin/pip") == read(target, "bin/uv") == f"#!{new}/bin/python\nprint(1)\n".encode()
    assert read(target, "bin/options") == f"#!{new}/bin/python -I -X utf8\nprint(1)\n".encode()
    assert read(target, "bin/perl") == f"#!{new}/bin/perl -w\nprint 1;\n".encode()
    assert read(target, "bin/sh") == f"#!{new}/bin/bash\necho 1\n".encode()
    assert read(target, "bin/crlf").endswith(b"print(1)\r\n")
    assert read(target, "share/not-executable") == f"#!{new}/bin/python\nprint(1)\n".encode()


@pytest.mark.parametrize("length", [126, 127, 128])
def test_row_12_127_bytes_are_the_kernels_limit(tmp_path: Path, length: int) -> None:
    """A real interpreter at a path that makes the first line exactly so long, run through it."""
    prefix = unmanaged(tmp_path)
    script(prefix, "bin/run", f"#!{prefix}/bin/python\nimport sys; print(sys.argv[1])\n")
    os.symlink(sys.executable, f"{prefix}/bin/python")
    target = padded(tmp_path, length - len("#!/bin/python"))
    archive = pack(prefix, tmp_path / "a.tar.zst", external_links="keep")
    fastpack.unpack(archive, target, external_links="keep")
    line = read(target, "bin/run").split(b"\n")[0]
    assert (len(line) == length) == (length <= 127) and len(line) <= 127
    assert subprocess.run([f"{target}/bin/run", "it runs"], capture_output=True, text=True).stdout == "it runs\n"


# --- row 13: see test_examine.py; row 14: symbolic links


def test_row_14_links_of_every_kind(tmp_path: Path) -> None:
    prefix = unmanaged(tmp_path)
    links = {
        "lib/abs": (f"{prefix}/share/it.txt", "../share/it.txt"),
        "lib/abs-dir": (f"{prefix}/share", "../share"),
        "root": (prefix, "."),
        "lib/deep/up": (f"{prefix}/lib", ".."),
        "lib/relative": ("../share/it.txt", "../share/it.txt"),
        "lib/dangling": ("nowhere/at-all", "nowhere/at-all"),
        "lib/loop": ("loop", "loop"),
        "lib/ping": ("pong", "pong"),
        "lib/pong": ("ping", "ping"),
        "lib/doubled": (f"{prefix}//share/./it.txt", "../share/it.txt"),
        "lib/out": ("/etc/hostname", "/etc/hostname"),
        "lib/out-relative": ("../../elsewhere", "../../elsewhere"),
        "lib/sibling": (f"{prefix}2/x", f"{prefix}2/x"),
        "lib/through": ("root/../../x", "root/../../x"),
    }
    os.makedirs(f"{prefix}/lib/deep")
    os.symlink("..", f"{prefix}/lib/root")
    for path, (target, _) in links.items():
        os.symlink(target, f"{prefix}/{path}")
    outside = {"lib/out", "lib/out-relative", "lib/sibling", "lib/through"}
    report = fastpack.pack(prefix=prefix, output=str(tmp_path / "a.tar.zst"))
    assert {row["path"] for row in report.not_relocated} == outside
    assert {warning.path for warning in report.warnings if warning.code == "external-link"} == outside
    unpacked = trip(prefix, tmp_path)
    for path, (_, wanted) in links.items():
        assert os.readlink(f"{unpacked}/{path}") == wanted, path
    kept = fastpack.pack(prefix=prefix, output=str(tmp_path / "a.tar.zst"), force=True, external_links="keep")
    assert not kept.warnings
    with pytest.raises(errors.Unrelocatable):
        fastpack.pack(prefix=prefix, output=str(tmp_path / "b.tar.zst"), external_links="error")
    with pytest.raises(errors.HostileArchive):
        fastpack.unpack(kept.output, str(tmp_path / "no"), external_links="error")
    assert not os.path.exists(tmp_path / "no") and not os.path.exists(tmp_path / "b.tar.zst")


# --- row 17: Mach-O

CODESIGN = """#!/bin/sh
# Stands in for macOS's: refuses what is not there, appends a signature, or fails for names with 'bad' in them.
[ "$1 $2 $3 $4" = "--sign - --force --preserve-metadata=entitlements" ] || exit 9
shift 4
echo "$#" >> "$LOG"
for file; do case "$file" in *bad*) exit 1 ;; esac; done
for file; do printf signature >> "$file"; done
"""


def test_row_17_mach_o_files_are_signed_in_one_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytes.fromhex("cffaedfe0c000001") + b"\0" + c_string(b"", b"/lib") + bytes(20)
    java = bytes.fromhex("cafebabe00000034") + b"\0" + c_string(b"", b"/lib") + bytes(20)
    fat = bytes.fromhex("cafebabe00000002") + b"\0" + c_string(b"", b"/lib") + bytes(20)
    files = {
        name: MadeFile(data, 0o755, file_mode="binary") for name in ("lib/a.dylib", "lib/b.dylib", "lib/bad.dylib")
    }
    files |= {"lib/J.class": MadeFile(java, file_mode="binary"), "lib/fat": MadeFile(fat, file_mode="binary")}
    archive = pack(made(tmp_path, files), tmp_path / "a.tar.zst")
    log = tmp_path / "log"
    script(str(tmp_path), "tools/codesign", CODESIGN)
    monkeypatch.setenv("PATH", f"{tmp_path}/tools:{os.environ['PATH']}")
    monkeypatch.setenv("LOG", str(log))
    n1, n2 = str(tmp_path / "n1"), str(tmp_path / "n2 is longer")
    report = fastpack.unpack(archive, n1)
    # One batch; one of it fails, so each is tried to find which.
    assert log.read_text().split() == ["4", "1", "1", "1", "1"]
    assert [warning.path for warning in report.warnings if warning.code == "not-signed"] == ["lib/bad.dylib"]
    placed = binary_replace(data, P, os.fsencode(n1))
    assert read(n1, "lib/a.dylib") == placed + b"signature" and read(n1, "lib/bad.dylib") == placed
    assert read(n1, "lib/J.class") == binary_replace(java, P, os.fsencode(n1))
    stated = {row["_path"]: row["sha256_in_prefix"] for row in json.loads(
        read(n1, "conda-meta/it-1.0-0.json"))["paths_data"]["paths"]}  # fmt: skip
    import hashlib

    assert stated["lib/a.dylib"] == hashlib.sha256(read(n1, "lib/a.dylib")).hexdigest()
    assert fastpack.verify(n1).problems == ()
    # A signed file is still known, moves, and is signed again; one changed by hand is planned anew, as a new file is.
    os.rename(n1, n2)
    write(n2, "lib/b.dylib", read(n2, "lib/b.dylib") + b"!", 0o755)
    log.unlink()
    report_2 = fastpack.relocate(n2)
    assert report_2.left == () and report_2.n_added == 1 and log.read_text().split()[0] == "4"
    assert os.fsencode(n2) in read(n2, "lib/b.dylib") and b"signature!" in read(n2, "lib/b.dylib")
    placed = binary_replace(data, P, os.fsencode(n2))
    assert read(n2, "lib/a.dylib").startswith(placed) and read(n2, "lib/a.dylib").endswith(b"signature")
    # conda-unpack signs too, and says what it could not.
    extract(archive, str(tmp_path / "n3"))
    done = conda_unpack(str(tmp_path / "n3"))
    assert done.returncode == 0 and "lib/bad.dylib" in done.stderr and "lib/a.dylib" not in done.stderr
    assert read(str(tmp_path / "n3"), "lib/fat").endswith(b"signature")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    unsigned = [w.path for w in fastpack.unpack(archive, str(tmp_path / "n4")).warnings if w.code == "not-signed"]
    assert unsigned == ["lib/a.dylib", "lib/b.dylib", "lib/bad.dylib", "lib/fat"]


# --- row 18: see test_relocating.py and test_conda_unpack.py


# --- prefixes


@pytest.mark.parametrize("name", [
    "with space", "it's", 'dou"ble', "back\\slash", "per%cent", "dol$lar", "ha#sh", "环境-ü", "semi;colon", "tab\there",
    os.fsdecode(b"raw-\xff\xfe"), "-dash", "a'b\"c\\d%e$f#g",
])  # fmt: skip
def test_prefixes_of_all_characters(tmp_path: Path, name: str) -> None:
    """Source and target: a managed binary, a managed text, a script, JSON, a URL and unmanaged text."""
    source = str(tmp_path / name / "source")
    install([app_package()], source)
    text = json.dumps({"x": source, "y": f"file://{source}/z"}, ensure_ascii=True)
    write(source, "share/own.json", text)
    write(source, "share/own.txt", f"at {source}/x".encode("utf-8", "surrogateescape"))
    target = trip(source, tmp_path, str(tmp_path / name / "target place"))
    raw = os.fsencode(target)
    assert read(target, "lib/libapp.so") == binary_replace(app_package().files["lib/libapp.so"].data, P, raw)
    assert read(target, "share/app/app.conf") == b"home = " + raw + b"\r\nlib=" + raw + b"/lib"
    assert read(target, "share/own.txt") == b"at " + raw + b"/x"
    assert (
        os.fsdecode(json.loads(read(target, "share/own.json").decode("utf-8", "surrogateescape"))["x"]) == target
        if (False)
        else json.loads(os.fsdecode(read(target, "share/own.json")))["x"] == target
    )


def test_prefixes_that_are_refused(tmp_path: Path) -> None:
    prefix = unmanaged(tmp_path)
    archive = pack(prefix, tmp_path / "a.tar.zst")
    for bad in ("new\nline", "/"):
        target = bad if bad == "/" else str(tmp_path / bad)
        done = run_fastpack("unpack", archive, "-p", target)
        assert done.code in (2, 22) and len(done.err.splitlines()) == 1, done.err
    for bad in ("new\nline",):
        os.rename(prefix, tmp_path / bad)
        done = run_fastpack("pack", "-p", tmp_path / bad, "-o", tmp_path / "b.tar.zst")
        assert done.code == 11 and len(done.err.splitlines()) == 1
        os.rename(tmp_path / bad, prefix)
    os.symlink("/", tmp_path / "root")
    for root in ("/", tmp_path / "root"):
        done = run_fastpack("pack", "-p", root, "-o", tmp_path / "b.tar.zst")
        assert done.code == 11 and len(done.err.splitlines()) == 1 and "at /" in done.err
        assert not os.path.exists(tmp_path / "b.tar.zst")


def test_prefixes_relative_with_a_slash_and_through_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = str(tmp_path / "source")
    install([app_package()], source)
    os.symlink("source", tmp_path / "link")
    write(source, "share/own.txt", f"{source}/x {tmp_path}/link/y\n")
    monkeypatch.chdir(tmp_path)
    wanted = Path(pack("source", tmp_path / "a.tar.zst")).read_bytes()
    for given in ("source/", "./source", "../" + tmp_path.name + "/source", source + "//"):
        assert Path(pack(given, tmp_path / "b.tar.zst")).read_bytes() == wanted
    # Through a link both names are known, so more is relocated.
    linked = pack("link", tmp_path / "c.tar.zst")
    assert members(linked)["share/own.txt"] == PLACEHOLDER + b"/x " + PLACEHOLDER + b"/y\n"
    fastpack.unpack("a.tar.zst", "relative/target/")
    assert read("relative/target", "share/app/app.conf").startswith(b"home = " + os.fsencode(tmp_path) + b"/relative/t")


def test_a_sibling_whose_name_begins_the_same_is_not_touched(tmp_path: Path) -> None:
    source = str(tmp_path / "env")
    text = P + b"/x and the sibling " + os.fsencode(source) + b"2/x\n"
    binary = b"\0" + c_string(b"", b"/x") + os.fsencode(source) + b"2/y\0" + bytes(300)
    files = {"etc/a": MadeFile(text, file_mode="text"), "lib/a.so": MadeFile(binary, file_mode="binary")}
    install([MadePackage("it", files=files)], source)
    assert fastpack.pack(prefix=source, output=str(tmp_path / "a.tar.zst")).verdicts["proven with a prefix"] == 2
    target = trip(source, tmp_path)
    assert read(target, "etc/a") == text.replace(P, os.fsencode(target))
    assert read(target, "lib/a.so") == binary_replace(binary, P, os.fsencode(target))


def test_the_target_in_the_source_and_the_other_way_round(tmp_path: Path) -> None:
    outer = str(tmp_path / "env")
    inner = str(tmp_path / "env" / "inner" / "env")
    for source, target in ((outer, inner), (inner, outer)):
        shutil.rmtree(tmp_path / "env", ignore_errors=True)
        install([app_package()], source)
        archive = pack(source, tmp_path / "a.tar.zst")
        shutil.rmtree(tmp_path / "env")
        fastpack.unpack(archive, target)
        raw = os.fsencode(target)
        assert read(target, "lib/libapp.so") == binary_replace(app_package().files["lib/libapp.so"].data, P, raw)
        assert read(target, "share/app/app.conf") == b"home = " + raw + b"\r\nlib=" + raw + b"/lib"
        fastpack.relocate(target, dest_prefix=source)
        fastpack.relocate(target)
        assert read(target, "share/app/app.conf") == b"home = " + raw + b"\r\nlib=" + raw + b"/lib"


def test_moved_before_packing_unpacked_changed_by_pip_moved_and_packed_again(tmp_path: Path) -> None:
    built, moved = str(tmp_path / "built"), str(tmp_path / "moved to here")
    install([python_stub(), app_package()], built)
    os.rename(built, moved)
    first = fastpack.pack(prefix=moved, output=str(tmp_path / "a.tar.zst"))
    assert built in first.prefixes and first.verdicts["proven with a prefix"] == 4
    n1, n2, n3 = (str(tmp_path / name) for name in ("n1", "second place", "the third place of all"))
    fastpack.unpack(first.output, n1)
    dist(
        n1,
        "new",
        {"new/__init__.py": f"HOME = '{n1}/share'\n".encode(), "../../../bin/new": f"#!{n1}/bin/python\n1\n".encode()},
    )
    os.chmod(f"{n1}/bin/new", 0o755)
    os.rename(n1, n2)
    assert fastpack.status(n2).condition == "moved"
    fastpack.relocate(n2)
    assert fastpack.status(n2).condition == "right"
    second = fastpack.pack(prefix=n2, output=str(tmp_path / "b.tar.zst"))
    assert second.verdicts["proven with a prefix"] == 4 and second.not_relocated == ()
    for path, data in members(second.output).items():
        assert not any(os.fsencode(place) in data for place in (built, moved, n1, n2)), path
    fastpack.unpack(second.output, n3)
    assert read(n3, f"{SITE}/new/__init__.py") == f"HOME = '{n3}/share'\n".encode()
    assert read(n3, "bin/new").startswith(f"#!{n3}/bin/python".encode() if " " not in n3 else b"#!/bin/sh")


# --- records of every client


def micromamba(tmp_path: Path, files: dict[str, MadeFile], name: str) -> str:
    return made(tmp_path, files, name, style="micromamba")


def test_micromamba_records_without_placeholder_and_mode(tmp_path: Path) -> None:
    binary = b"\x7fELF\0" + c_string(b"", b"/lib") + c_string(b"a=", b":", b"/b") + b"\0\0data\xff\0"
    files = {
        "lib/a.so": MadeFile(binary, 0o755, file_mode="binary"),
        "lib/plain.so": MadeFile(b"\x7fELF\0\0nothing"),
        "etc/a.conf": MadeFile(b"home=" + P + b" and" + P + b"x\n", file_mode="text"),
        "bin/tool": MadeFile(b"#!" + P + b"/bin/python\nprint(1)\n", 0o755, file_mode="text"),
    }
    prefix = micromamba(tmp_path, files, "env")
    report = fastpack.pack(prefix=prefix, output=str(tmp_path / "a.tar.zst"))
    assert report.verdicts == {"placed": 3, "placed with a prefix": 3, "proven": 1} and report.not_relocated == ()
    assert report.longest_prefix == 255
    table = relocations(report.output)
    assert table["lib/a.so"].items[0][1:] == ("binary", 255, 255 + 4)
    other = micromamba(tmp_path, files, "at another prefix")
    assert Path(pack(other, tmp_path / "b.tar.zst")).read_bytes() == Path(report.output).read_bytes()
    target = trip(prefix, tmp_path, padded(tmp_path, 255))
    assert read(target, "lib/a.so") == binary_replace(binary, P, os.fsencode(target))
    assert read(target, "etc/a.conf") == files["etc/a.conf"].data.replace(P, os.fsencode(target))


def test_micromamba_the_slot_is_the_smallest_gap_of_the_package(tmp_path: Path) -> None:
    short = "/home/builder/short" + "_placehold" * 6  # 79 bytes, as old packages have
    old = os.fsencode(short)
    one = b"\0" + old + b"/lib\0" + bytes(400)  # NULs that are the file's own
    two = b"\0" + old + b"/lib\0next"
    files = {
        "lib/one.so": MadeFile(one, file_mode="binary", placeholder=short),
        "lib/two.so": MadeFile(two, file_mode="binary", placeholder=short),
    }
    prefix = micromamba(tmp_path, files, "env")
    report = fastpack.pack(prefix=prefix, output=str(tmp_path / "a.tar.zst"))
    assert report.longest_prefix == len(short)
    target = trip(prefix, tmp_path, str(tmp_path / "n"))
    assert read(target, "lib/one.so") == binary_replace(one, old, os.fsencode(target))
    assert read(target, "lib/two.so") == binary_replace(two, old, os.fsencode(target))
    write(prefix, "lib/two.so", read(prefix, "lib/two.so") + b"changed")
    report = fastpack.pack(prefix=prefix, output=str(tmp_path / "a.tar.zst"), force=True)
    assert report.verdicts["modified"] == 1


def test_records_without_paths_data_two_claims_no_history_and_a_free_threaded_python(tmp_path: Path) -> None:
    prefix = str(tmp_path / "env")
    text = MadeFile(b"at " + P + b"\n", file_mode="text")
    packages = [
        python_stub(python_site_packages_path="lib/python3.11t/site-packages"),
        MadePackage("old", files={"etc/old": text}, with_paths_data=False),
        MadePackage("one", files={"etc/both": MadeFile(b"one " + P, file_mode="text")}),
        MadePackage("two", files={"etc/both": MadeFile(b"two " + P, file_mode="text")}),
        MadePackage("pure", noarch="python", files={"lib/python3.11t/site-packages/pure.py": MadeFile(b"x = 1\n")}),
    ]
    install(packages, prefix, history=False)
    target = trip(prefix, tmp_path)
    raw = os.fsencode(target)
    assert read(target, "etc/old") == b"at %s\n" % raw and read(target, "etc/both") == b"two " + raw
    report = fastpack.pack(prefix=prefix, output=str(tmp_path / "b.tar.zst"))
    assert any(warning.code == "clobbered" and warning.path == "etc/both" for warning in report.warnings)
    env = Environment.from_prefix(prefix)
    assert env.site_packages == ("lib/python3.11t/site-packages",)
    found = examine(env, threads=1).files
    assert found["etc/both"].verdict is Verdict.PROVEN and found["etc/old"].form.relocations == (
        Relocation(3, "text", 255),
    )


# --- names and modes


def test_names_of_all_kinds(tmp_path: Path) -> None:
    prefix = unmanaged(tmp_path)
    raw = os.fsencode(prefix)
    deep = b"/".join([b"d" * 240] * 17)
    room = 3900 - len(raw)
    deep = deep[:room].rstrip(b"/")
    names = [b"new\nline", b"tab\there", b"raw-\xff\xfe", "ü-composed".encode(), b"x" * 255, b"-rf", b"$(id)", b"'\""]
    os.makedirs(raw + b"/names")
    for name in names:
        Path(os.fsdecode(raw + b"/names/" + name)).write_bytes(b"at " + raw + b"\n")
    folder = os.open(prefix, os.O_RDONLY)
    try:
        os.makedirs(raw + b"/" + deep)
        Path(os.fsdecode(raw + b"/" + deep + b"/f")).write_bytes(b"deep " + raw + b"\n")
    finally:
        os.close(folder)
    target = trip(prefix, tmp_path, str(tmp_path / "n"))
    new = os.fsencode(target)
    for name in names:
        assert Path(os.fsdecode(new + b"/names/" + name)).read_bytes() == b"at " + new + b"\n"
    assert Path(os.fsdecode(new + b"/" + deep + b"/f")).read_bytes() == b"deep " + new + b"\n"
    # Where the whole path would be longer than the system opens, that is said before anything is written.
    archive = str(tmp_path / "trip.tar.zst")
    with pytest.raises(errors.PrefixTooLong):
        fastpack.unpack(archive, padded(tmp_path, 250))
    assert not os.path.exists(padded(tmp_path, 250))


def test_names_that_differ_only_in_case_or_unicode_form_are_reported(tmp_path: Path) -> None:
    prefix = unmanaged(tmp_path)
    for name in ("Case", "case", "\u00fcber", "u\u0308ber", "straße", "STRASSE", "other"):
        write(prefix, f"share/{name}", name)
    report = fastpack.pack(prefix=prefix, output=str(tmp_path / "a.tar.zst"))
    (warning,) = [warning for warning in report.warnings if warning.code == "colliding-names"]
    assert warning.message.count("share/") == 6 and "other" not in warning.message
    target = trip(prefix, tmp_path)
    assert len(os.listdir(f"{target}/share")) == 8


def test_read_only_directories_by_plain_tar_as_an_ordinary_user(tmp_path: Path) -> None:
    from tests.conftest import ordinary_user

    command = ordinary_user()[:-2]
    prefix = unmanaged(tmp_path)
    write(prefix, "locked/deep/own.txt", f"at {prefix}\n")
    os.chmod(f"{prefix}/locked/deep", 0o555)
    os.chmod(f"{prefix}/locked", 0o555)
    archive = pack(prefix, tmp_path / "a.tar.zst")
    target = tmp_path / "target"
    target.mkdir()
    for folder in (tmp_path, *tmp_path.parents):
        if str(folder) != "/tmp" and folder != Path("/"):
            os.chmod(folder, 0o755)
    os.chown(target, 65534, 65534)
    subprocess.run([*command[:4], "tar", "--zstd", "-xf", archive], cwd=target, check=True)
    done = subprocess.run([*command[:4], f"{target}/bin/conda-unpack"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert read(str(target), "locked/deep/own.txt") == f"at {target}\n".encode()
    unpacked = trip(prefix, tmp_path, str(tmp_path / "other"))
    assert stat.S_IMODE(os.stat(f"{unpacked}/locked/deep").st_mode) == 0o555


# --- what the machine must be


@gcc
def test_requires_glibc_and_says_which_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastpack import requirements

    prefix = unmanaged(tmp_path)
    compile_c('#include <stdio.h>\nint main(void) { puts("x"); return 0; }', f"{prefix}/bin/program")
    write(prefix, "lib/broken.so", b"\x7fELF" + bytes(range(256)), 0o755)
    archive = pack(prefix, tmp_path / "a.tar.zst")
    requires = fastpack.inspect(archive).requires
    here = requirements.glibc_here()
    assert requires["glibc_file"] == "bin/program"
    readelf = subprocess.run(["objdump", "-T", f"{prefix}/bin/program"], capture_output=True, text=True).stdout
    wanted = max(
        requirements.version_key(part.rstrip(")")) for part in readelf.split("GLIBC_")[1:] for part in [part.split()[0]]
    )
    assert requirements.version_key(requires["glibc"]) == wanted
    assert json.loads(members(archive)[".fastpack/pack.json"])["requires"] == requires
    target = str(tmp_path / "target")
    for found in ("2.1", None):
        monkeypatch.setattr(requirements, "glibc_here", lambda found=found: found)
        with pytest.raises(errors.WrongPlatform) as caught:
            fastpack.unpack(archive, target)
        assert requires["glibc"] in str(caught.value) and "bin/program" in str(caught.value)
        assert not os.path.exists(target)
    assert [w.code for w in fastpack.unpack(archive, target, ignore_requirements=True).warnings] == ["requirements"]
    assert [w.code for w in fastpack.unpack(archive, target + "2", dest_prefix="/x").warnings] == ["requirements"]
    monkeypatch.undo()
    assert here is not None
    # The head of conda-unpack asks before it starts any Python.
    plain = extract(archive, str(tmp_path / "plain"))
    for version, code in ((f"glibc {requires['glibc']}", 0), ("glibc 2.1", 24), ("glibc 3.0", 0)):
        script(str(tmp_path), "tools/getconf", f"#!/bin/sh\necho '{version}'\n")
        done = conda_unpack(plain, PATH=f"{tmp_path}/tools:{os.environ['PATH']}")
        assert done.returncode == code, (version, done.stderr)
        assert code == 0 or requires["glibc"] in done.stderr


def test_row_16_a_record_with_absolute_and_quoted_fields(tmp_path: Path) -> None:
    """PEP 376 allows the former, the csv module writes the latter: both tell the truth at the target."""
    prefix = unmanaged(tmp_path)
    files = {"one.txt": f"{prefix}/share\n".encode(), "two.txt": f"{prefix}/lib\n".encode(), "x.py": b"x = 1\n"}
    dist(prefix, "odd", files)

    def stated(data: bytes) -> list[str]:
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        return [f"sha256={digest}", str(len(data))]

    record = f"{SITE}/odd-1.0.dist-info/RECORD"
    two = ",".join(f'"{field}"' for field in ("two.txt", *stated(files["two.txt"])))
    lines = [",".join([f"{prefix}/{SITE}/{name}", *stated(files[name])]) for name in ("one.txt", "x.py")]
    write(prefix, record, "\n".join([*lines, two, "odd-1.0.dist-info/RECORD,,"]) + "\n")
    target = trip(prefix, tmp_path)
    placed = read(target, record).decode()
    rows = {row[0]: row[1:] for row in csv.reader(placed.splitlines())}
    assert os.fsencode(target) in read(target, f"{SITE}/one.txt") and prefix not in placed
    assert list(rows) == ["one.txt", "x.py", "two.txt", "odd-1.0.dist-info/RECORD"]
    assert all(rows[name] == stated(read(target, f"{SITE}/{name}")) for name in files)


def test_row_12_docstrings_of_pips_scripts_survive_everywhere(tmp_path: Path) -> None:
    """Two lines as rattler writes them would take their place; the last has nothing that they could hurt."""
    prefix = unmanaged(tmp_path)
    os.makedirs(os.path.join(prefix, "bin"))
    os.symlink(sys.executable, os.path.join(prefix, "bin/python"))
    bodies = {
        "doc": '"""Usage: doc"""\nprint(__doc__)\n',
        "future": '"""Usage: future"""\nfrom __future__ import annotations\nprint(__doc__)\n',
        "none": "print('Usage: none')\n",
    }
    for name, body in bodies.items():
        write(prefix, f"bin/{name}", f"#!{prefix}/bin/python\n{body}", 0o755)
    archive = str(tmp_path / "a.tar.zst")
    fastpack.pack(prefix=prefix, output=archive, external_links="keep")
    for folder in ("with space", "n" * 130, "plain"):
        target = str(tmp_path / folder)
        fastpack.unpack(archive, target, external_links="keep")
        path = {**os.environ, "PATH": f"{target}/bin:{os.environ['PATH']}"}  # as if activated
        for name in bodies:
            done = subprocess.run([f"{target}/bin/{name}"], capture_output=True, text=True, env=path)
            assert (done.stdout, done.stderr) == (f"Usage: {name}\n", ""), (folder, name)
        assert read(target, "bin/none").startswith(b"#!/bin/sh\n") == (folder != "plain")
        assert not fastpack.verify(target).problems
        again = fastpack.pack(prefix=target, output=str(tmp_path / "again.tar.zst"), external_links="keep", force=True)
        assert again.n_relocated_files == 3
        shutil.move(target, target + "2")
        fastpack.relocate(target + "2")
        assert subprocess.run([f"{target}2/bin/doc"], capture_output=True, text=True).stdout == "Usage: doc\n"

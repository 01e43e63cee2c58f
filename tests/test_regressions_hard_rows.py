"""Faults that two hostile reviews of the hard rows and of the readers found; each test names its own."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import zipapp
import zipfile
from pathlib import Path

import pytest

import fastpack
from fastpack import errors
from fastpack.made_prefix import MadeFile, install
from fastpack.model import PLACEHOLDER
from tests.conftest import P, app_package, c_string, need, run_fastpack
from tests.forging import DIR, SYM, foreign, forged_table, refused, rows_of
from tests.oracles.conda_rules import binary_replace
from tests.test_conda_unpack import conda_unpack, extract
from tests.test_environment import write
from tests.test_rows import CODESIGN, LIBRARY, made, read, script, unmanaged
from tests.trips import compile_c, members, pack, relocations, trip

gcc = need("gcc")


# --- rows


def test_identical_binaries_with_relocations_are_no_hard_links(tmp_path: Path) -> None:
    prefix = unmanaged(tmp_path, "a long name of an environment")
    data = b"\x7fELF\0\0" + os.fsencode(prefix) + b"/lib\0" + b"\1\2\3\0" * 3000
    write(prefix, "lib/a.bin", data)
    write(prefix, "lib/b.bin", data)
    target = trip(prefix, tmp_path, str(tmp_path / "n"))
    assert read(target, "lib/a.bin") == read(target, "lib/b.bin") and os.fsencode(target) in read(target, "lib/b.bin")


def test_relocate_records_new_binaries_even_where_the_old_prefix_did_not_fit(tmp_path: Path) -> None:
    prefix = unmanaged(tmp_path)
    archive = pack(prefix, tmp_path / "a.tar.zst")
    first, second, third = (str(tmp_path / name) for name in ("a long first place for it", "second place", "third"))
    fastpack.unpack(archive, first)
    os.rename(first, second)
    both = b"\0\1" + os.fsencode(second) + b"/lib/x\0" + os.fsencode(first) + b"/y\0"
    write(second, "lib/new.bin", both)
    write(second, "share/wide.txt", f"at {second}/x\n".encode("utf-16"))
    assert fastpack.relocate(second).n_added == 2
    os.rename(second, third)
    fastpack.relocate(third)
    new = os.fsencode(third)
    assert (
        read(third, "lib/new.bin")
        == b"\0\1" + new.ljust(len(second), b"/") + b"/lib/x\0" + new.ljust(len(first), b"/") + b"/y\0"
    )
    assert read(third, "share/wide.txt") == f"at {third}/x\n".encode("utf-16")


@gcc
def test_runpaths_that_overlap_other_strings_are_left_alone(tmp_path: Path) -> None:
    prefix = unmanaged(tmp_path, "a name that is long enough for a way")
    path = compile_c(LIBRARY, f"{prefix}/lib/libx.so", "-shared", "-fPIC", f"-Wl,-rpath,/usr/libx:{prefix}/libx")
    from elftools.elf.elffile import ELFFile

    with open(path, "rb") as file:
        elf = ELFFile(file)
        dynamic = elf.get_section_by_name(".dynamic")
        assert dynamic is not None
        tags = list(dynamic.iter_tags())
        offset = dynamic["sh_offset"]
    run = next(tag.entry.d_val for tag in tags if tag.entry.d_tag == "DT_RUNPATH")
    null = next(k for k, tag in enumerate(tags) if tag.entry.d_tag == "DT_NULL")
    data = bytearray(read(prefix, "lib/libx.so"))
    struct.pack_into("<QQ", data, offset + 16 * null, 15, run + len("/usr/libx:"))  # DT_RPATH in the middle of it
    write(prefix, "lib/libx.so", bytes(data), 0o755)
    audit = compile_c(
        LIBRARY, f"{prefix}/lib/liby.so", "-shared", "-fPIC", f"-Wl,-rpath,{prefix}/libx", "-Wl,--audit=ibx"
    )
    archive = pack(prefix, tmp_path / "a.tar.zst")
    assert members(archive)["lib/libx.so"] == bytes(data) and "lib/libx.so" in relocations(archive)
    subprocess.run(["tar", "--zstd", "-tf", archive], check=True, capture_output=True)
    kept = members(archive)["lib/liby.so"]
    assert kept == Path(audit).read_bytes() or b"ibx\0" in kept


@gcc
def test_origin_is_not_used_where_a_link_in_another_directory_leads_to_the_library(tmp_path: Path) -> None:
    prefix = unmanaged(tmp_path, "a name that is long enough for a way")
    compile_c(LIBRARY, f"{prefix}/opt/foo/deps/libanswer.so", "-shared", "-fPIC")
    flags = ["-shared", "-fPIC", f"-L{prefix}/opt/foo/deps", "-lanswer", f"-Wl,-rpath,{prefix}/opt/foo/deps"]
    source = "int answer(void); int fn(void) { return answer(); }"
    compile_c(source, f"{prefix}/opt/foo/libx.so.1", *flags)
    compile_c(source, f"{prefix}/opt/foo/liby.so.1", *flags)
    os.symlink("../opt/foo/libx.so.1", f"{prefix}/lib-x.so")
    os.makedirs(f"{prefix}/lib")
    os.rename(f"{prefix}/lib-x.so", f"{prefix}/lib/libx.so")
    table = relocations(pack(prefix, tmp_path / "a.tar.zst"))
    assert "opt/foo/libx.so.1" in table and "opt/foo/liby.so.1" not in table
    target = trip(prefix, tmp_path, str(tmp_path / "n"))
    code = f"import ctypes; print(ctypes.CDLL('{target}/lib/libx.so').fn())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "42\n"


@gcc
def test_a_way_back_in_a_runpath_is_not_resolved(tmp_path: Path) -> None:
    prefix = unmanaged(tmp_path, "a name that is long enough for a way")
    compile_c(LIBRARY, f"{prefix}/lib/libx.so", "-shared", "-fPIC", f"-Wl,-rpath,{prefix}/lib/link/../bar")
    assert [item.kind for item in relocations(pack(prefix, tmp_path / "a.tar.zst"))["lib/libx.so"].items] == ["slash"]


@pytest.mark.parametrize("style", ["conda", "rattler", "micromamba"])
def test_packing_again_keeps_slots_and_paddings(tmp_path: Path, style: str) -> None:
    prefix = str(tmp_path / "source")
    install([app_package(style=style)], prefix)
    first = pack(prefix, tmp_path / "a.tar.zst", pad=["slash"])
    target = str(tmp_path / "n")
    fastpack.unpack(first, target)
    second = pack(target, tmp_path / "b.tar.zst")
    assert relocations(second)["lib/libapp.so"] == relocations(first)["lib/libapp.so"]
    assert fastpack.inspect(second).longest_prefix == 255


def test_a_name_that_goes_on_is_listed_in_binaries(tmp_path: Path) -> None:
    prefix = unmanaged(tmp_path, "a long name for a long slot")
    write(prefix, "share/x.pickle", pickle.dumps({"a": prefix + "/lib", "b": prefix}, protocol=4))
    report = fastpack.pack(prefix=prefix, output=str(tmp_path / "a.tar.zst"))
    assert [row["path"] for row in report.not_relocated] == ["share/x.pickle"]
    with pytest.raises(errors.Unrelocatable):
        fastpack.pack(prefix=prefix, output=str(tmp_path / "b.tar.zst"), strict=True)


def test_a_zipapp_is_changed_in_its_first_line_alone(tmp_path: Path) -> None:
    prefix = unmanaged(tmp_path, "a long name for a long slot")
    os.makedirs(tmp_path / "app")
    Path(tmp_path, "app/__main__.py").write_text(f'HOME = "{prefix}/lib"\n')
    os.makedirs(f"{prefix}/bin")
    zipapp.create_archive(tmp_path / "app", f"{prefix}/bin/tool.pyz", interpreter=f"{prefix}/bin/python")
    target = trip(prefix, tmp_path, str(tmp_path / "n"))
    assert zipfile.ZipFile(f"{target}/bin/tool.pyz").testzip() is None
    assert read(target, "bin/tool.pyz").startswith(
        b"#!" + os.fsencode(target).ljust(len(prefix), b"/") + b"/bin/python\n"
    )
    report = fastpack.pack(prefix=prefix, output=str(tmp_path / "a.tar.zst"))
    assert [row["path"] for row in report.not_relocated] == ["bin/tool.pyz"]


@pytest.mark.parametrize("codec", ["utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_marks_beyond_ascii_end_a_path(tmp_path: Path, codec: str) -> None:
    prefix = unmanaged(tmp_path)
    texts = ["\ufeff{0}/lib", "路径 {0}", "“{0}”", "x={0}、中", "路径：{0}/x", "…{0} 中"]
    for k, text in enumerate(texts):
        write(prefix, f"share/{k}.txt", text.format(prefix).encode(codec))
    target = trip(prefix, tmp_path)
    for k, text in enumerate(texts):
        assert read(target, f"share/{k}.txt") == text.format(target).encode(codec), text


def test_a_file_that_did_not_fit_is_not_forgotten(tmp_path: Path) -> None:
    prefix = unmanaged(tmp_path, "source")
    write(prefix, "lib/u.bin", b"\0\1" + os.fsencode(prefix) + b"/lib\0zz")
    longer = str(tmp_path / "a place much longer than the source")
    fastpack.unpack(pack(prefix, tmp_path / "a.tar.zst"), longer)
    again = fastpack.pack(prefix=longer, output=str(tmp_path / "b.tar.zst"))
    assert [row["path"] for row in again.limited] == ["lib/u.bin"]
    fastpack.unpack(again.output, str(tmp_path / "n"))
    assert os.fsencode(tmp_path / "n") in read(str(tmp_path / "n"), "lib/u.bin")


def test_conda_unpack_obeys_strict(tmp_path: Path) -> None:
    prefix = unmanaged(tmp_path)
    write(prefix, "lib/u.bin", b"\0\1" + os.fsencode(prefix) + b"/lib\0zz")
    target = extract(
        pack(prefix, tmp_path / "a.tar.zst", strict=True), str(tmp_path / "a place much longer than the source")
    )
    done = conda_unpack(target)
    assert done.returncode == 20 and "lib/u.bin" in done.stderr and not os.path.exists(f"{target}/.fastpack/state.json")


def test_a_docstring_that_names_the_prefix_does_not_leak_it(tmp_path: Path) -> None:
    archives = []
    for name in ("env", "another environment"):
        prefix = unmanaged(tmp_path, name)
        write(prefix, "bin/tool", f'#!{prefix}/bin/python\n"""see {prefix}/x"""\nprint(__doc__)\n', 0o755)
        archives.append(members(pack(prefix, tmp_path / "a.tar.zst"))["bin/tool"])
    assert archives[0] == archives[1] and PLACEHOLDER + b"/x" in archives[0].split(b"\n")[1]


def test_first_lines_survive_a_place_with_a_space(tmp_path: Path) -> None:
    prefix = unmanaged(tmp_path)
    write(prefix, "bin/tool", f"#!{prefix}/bin/perl -w\nprint 1;\n", 0o755)
    spaced, third = str(tmp_path / "with space"), str(tmp_path / "n")
    fastpack.unpack(pack(prefix, tmp_path / "a.tar.zst"), spaced)
    assert read(spaced, "bin/tool").startswith(b"#!/usr/bin/env perl -w")
    fastpack.unpack(pack(spaced, tmp_path / "b.tar.zst"), third)
    assert read(third, "bin/tool") == f"#!{third}/bin/perl -w\nprint 1;\n".encode()


@need("perl")
def test_perl_options_that_the_command_line_must_have(tmp_path: Path) -> None:
    prefix = unmanaged(tmp_path)
    write(prefix, "bin/tool", f"#!{prefix}/bin/perl -w -T\nprint 'it runs';\n", 0o755)
    os.symlink(shutil.which("perl") or "", f"{prefix}/bin/perl")
    target = extract(pack(prefix, tmp_path / "a.tar.zst"), str(tmp_path / "n"))
    done = subprocess.run([f"{target}/bin/tool"], capture_output=True, text=True)
    assert done.stdout == "it runs", done.stderr


def test_signatures_survive_failures_and_kills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytes.fromhex("cffaedfe0c000001") + b"\0" + c_string(b"", b"/lib") + bytes(20)
    archive = pack(made(tmp_path, {"lib/a.dylib": MadeFile(data, 0o755, file_mode="binary")}), tmp_path / "a.tar.zst")
    monkeypatch.setenv("PATH", f"{tmp_path}/tools:{os.environ['PATH']}")
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    kills = CODESIGN + "kill -9 $PPID\n"
    fails = CODESIGN + "exit 1\n"
    never = "#!/bin/sh\nexit 1\n"
    places = [str(tmp_path / f"place {k}") for k in range(7)]
    extract(archive, places[0])
    for here, after, tool in zip(
        places, [*places[1:], ""], [kills, CODESIGN, kills, never, fails, never, CODESIGN], strict=True
    ):
        script(str(tmp_path), "tools/codesign", tool)
        done = conda_unpack(here)
        assert "left as it is" not in done.stderr, (here, done.stderr)
        assert done.returncode == (-signal.SIGKILL if tool is kills else 0)
        if tool is kills:
            script(str(tmp_path), "tools/codesign", never)
            done = conda_unpack(here)
            assert done.returncode == 0 and "left as it is" not in done.stderr
        assert read(here, "lib/a.dylib").startswith(binary_replace(data, P, os.fsencode(here)))
        assert fastpack.verify(here).problems == ()
        if after:
            os.rename(here, after)
    # What could not be signed is tried again where it lies.
    script(str(tmp_path), "tools/codesign", never)
    os.rename(places[6], places[0])
    assert [w.path for w in fastpack.relocate(places[0]).warnings] == ["lib/a.dylib"]
    script(str(tmp_path), "tools/codesign", CODESIGN)
    before = read(places[0], "lib/a.dylib")
    assert conda_unpack(places[0]).returncode == 0 and read(places[0], "lib/a.dylib") == before + b"signature"


@gcc
@pytest.mark.parametrize("answer", ["glibc 2.1-0ubuntu9", "glibc 2.1.3"])
def test_odd_answers_of_getconf(tmp_path: Path, answer: str) -> None:
    prefix = unmanaged(tmp_path)
    compile_c('#include <stdio.h>\nint main(void) { puts("x"); return 0; }', f"{prefix}/bin/program")
    target = extract(pack(prefix, tmp_path / "a.tar.zst"), str(tmp_path / "n"))
    script(str(tmp_path), "tools/getconf", f"#!/bin/sh\necho '{answer}'\n")
    done = conda_unpack(target, PATH=f"{tmp_path}/tools:{os.environ['PATH']}")
    assert done.returncode == 24 and len(done.stderr.splitlines()) == 1


# --- readers


@pytest.mark.parametrize("change", [
    {"size": 10**18}, {"sha256": "0" * 64}, {"sha256": "x"}, {"items": []}, {"items": [[0, "shebang", 3, ["\ud800", "x"]]]},
    {"items": [[True, "text", 5]]}, {"placeholder": -1}, {"placeholder": True}, {"mode": "x"},
    {"path": ".fastpack/relocations.json"}, {"items": [[7, "utf-16-le", 510]]}, {"items": [[7, "slash", 300, "optional"]]},
])  # fmt: skip
@pytest.mark.parametrize("dest_prefix", [None, "/placed/there"])
def test_forged_relocations_are_refused_by_every_reader(
    made: str, tmp_path: Path, change: dict[str, object], dest_prefix: str | None
) -> None:
    archive = pack(made, tmp_path / "a.tar.zst", dest_prefix=dest_prefix)
    bad = forged_table(archive, tmp_path / "b.tar.zst", lambda table: rows_of(table).update(change))
    for piped in (False, True):
        done = refused(bad, str(tmp_path / "target"), piped)
        assert done.code == 30 and len(done.err.splitlines()) == 1, done.err
        assert "fit its frames" not in done.err
    assert run_fastpack("verify", bad).code in (30, 34)


def test_a_list_of_relocations_that_is_a_bomb(made: str, tmp_path: Path) -> None:
    archive = pack(made, tmp_path / "a.tar.zst")
    bad = forged_table(archive, tmp_path / "b.tar.zst", lambda table: table.update(x=" " * (60 << 20)))
    for command in (["unpack", bad, "-p", tmp_path / "target"], ["inspect", bad], ["verify", bad]):
        done = run_fastpack(*command)
        assert done.code in (30, 34) and "Traceback" not in done.err


def test_trailing_bytes_in_a_frame_are_refused(made: str, tmp_path: Path) -> None:
    from fastpack.codec import CODECS

    packed = CODECS["tar.zst"].compress(b"data" * 100, 3)
    assert bytes(memoryview(CODECS["tar.zst"].decompress(packed, 400))) == b"data" * 100
    with pytest.raises(errors.DamagedArchive):
        CODECS["tar.zst"].decompress(packed + b"more", 400)


@pytest.mark.parametrize("kind", ["old", "pax"])
def test_sparse_members_are_refused(tmp_path: Path, kind: str) -> None:
    info = tarfile.TarInfo("sparse")
    if kind == "old":
        info.type, info.size = tarfile.GNUTYPE_SPARSE, 0
        header = info.tobuf(tarfile.GNU_FORMAT)
    else:
        info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(1 << 60)}
        info.size = 512
        header = info.tobuf(tarfile.PAX_FORMAT)
    (tmp_path / "f.tar").write_bytes(header + b"999999999999\n" + bytes(20000))
    for piped in (False, True):
        assert refused(str(tmp_path / "f.tar"), str(tmp_path / "target"), piped).code == 30


def test_links_of_nonsense_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "f.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("l")
        info.type, info.pax_headers = tarfile.SYMTYPE, {"linkpath": "a\0b"}
        info.linkname = "x"
        tar.addfile(info)
    foreign(tmp_path / "long.tar", [("d", DIR, ""), ("l", SYM, "x/" * 3000)])
    for name in ("f.tar", "long.tar"):
        for piped in (False, True):
            assert refused(str(tmp_path / name), str(tmp_path / "target"), piped).code == 32
    with zipfile.ZipFile(tmp_path / "f.zip", "w", zipfile.ZIP_LZMA) as file:
        file.writestr("x", b"content" * 500)
    data = bytearray((tmp_path / "f.zip").read_bytes())
    data[60:70] = bytes(10)
    (tmp_path / "f.zip").write_bytes(data)
    assert refused(str(tmp_path / "f.zip"), str(tmp_path / "target"), False).code == 30


def test_verify_is_not_deceived_by_relocate(made: str, tmp_path: Path) -> None:
    target = str(tmp_path / "target")
    fastpack.unpack(pack(made, tmp_path / "a.tar.zst"), target)
    write(target, "share/app/plain.txt", f"tampered {target}/x\n")
    write(target, "share/app/app.conf", f"tampered {target}/y\n")
    assert {row["path"] for row in fastpack.verify(target).problems} == {"share/app/plain.txt", "share/app/app.conf"}
    fastpack.relocate(target)
    assert {"share/app/plain.txt", "share/app/app.conf"} <= {row["path"] for row in fastpack.verify(target).problems}


def test_verify_of_a_prefix_looks_at_kinds_and_modes(made: str, tmp_path: Path) -> None:
    target = str(tmp_path / "target")
    fastpack.unpack(pack(made, tmp_path / "a.tar.zst"), target)
    os.unlink(f"{target}/share/app/empty")
    os.mkfifo(f"{target}/share/app/empty")
    os.chmod(f"{target}/bin/app", 0o400)
    write(target, "evil.pyc", "x")
    write(target, "new\nline\x1b[2J", "x")
    report = fastpack.verify(target)
    assert {row["path"] for row in report.problems} == {"share/app/empty", "bin/app"}
    assert set(report.extra) == {"evil.pyc", "new\nline\x1b[2J"}
    done = run_fastpack("verify", target)
    assert done.code == 34 and "\x1b" not in done.err and "new\\nline" in done.err


@pytest.mark.parametrize(
    "state", [{"complete": True}, {"complete": True, "prefix": "/x", "target": "/x", "signed": {"a": 5}}, 5, {}]
)
def test_states_of_nonsense(made: str, tmp_path: Path, state: object) -> None:
    target = str(tmp_path / "target")
    fastpack.unpack(pack(made, tmp_path / "a.tar.zst"), target)
    write(target, ".fastpack/state.json", json.dumps(state))
    assert run_fastpack("status", target).code == 0 and fastpack.status(target).condition == "broken"
    for command in ("verify", "relocate"):
        done = run_fastpack(command, target)
        assert done.code == 25 and len(done.err.splitlines()) == 1


def test_readers_do_not_wait_for_a_pipe_and_say_who_is_full(made: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    archive = pack(made, tmp_path / "a.tar.zst")
    for command in ("verify", "inspect", "ls"):
        assert run_fastpack(command, tmp_path / "fifo").code == 30
    for command in (["ls", archive], ["cat", archive, "bin/app"], ["inspect", archive]):
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                [sys.executable, "-m", "fastpack.cli", *command], stdout=full, stderr=subprocess.PIPE, text=True
            )
        assert done.returncode == 1 and "Traceback" not in done.stderr and "No space left" in done.stderr


@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount")
def test_a_disk_that_is_full_at_once_keeps_nothing(made: str, tmp_path: Path) -> None:
    archive = pack(made, tmp_path / "a.tar.zst")
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        with open(disk / "fill", "wb") as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass
            try:
                file.close()
            except OSError:
                pass
        for target in (disk / "env", disk / "a" / "b" / "env"):
            with open(archive, "rb") as pipe:
                assert run_fastpack("unpack", "-", "-p", target, stdin=pipe).code == 23
            assert run_fastpack("unpack", archive, "-p", target).code == 23
            assert os.listdir(disk) == ["fill"]
    finally:
        subprocess.run(["umount", disk], check=True)


def test_what_a_killed_swap_leaves_is_removed_whatever_prefix_it_names(made: str, tmp_path: Path) -> None:
    archive = pack(made, tmp_path / "a.tar.zst")
    target = str(tmp_path / "target")
    fastpack.unpack(archive, target, dest_prefix="/opt/o")
    code = f"""
import os, signal, sys
sys.path[:0] = {sys.path!r}
from fastpack import destination, fs
when = sys.argv[1]
real = fs.exchange
def exchange(one, two):
    if when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    real(one, two)
    os.kill(os.getpid(), signal.SIGKILL)
fs.exchange = exchange
import fastpack
fastpack.unpack(sys.argv[2], sys.argv[3], force=True, dest_prefix="/opt/o")
"""
    for when in ("before", "after"):
        done = subprocess.run([sys.executable, "-c", code, when, archive, target], capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert fastpack.verify(target).problems == ()
        fastpack.unpack(archive, target, force=True, dest_prefix="/opt/o")
        assert sorted(os.listdir(tmp_path)) == ["a.tar.zst", "made env", "target"], when


def test_an_archive_is_not_decompressed_for_one_file(made: str, tmp_path: Path) -> None:
    for k in range(5):
        write(made, f"own/{k}", os.urandom(9 << 20))
    archive = pack(made, tmp_path / "a.tar.zst", compress_level=1)
    data = bytearray(Path(archive).read_bytes())
    from tests.test_packing import manifest_of

    manifest = manifest_of(archive)
    wanted = next(k for k, m in enumerate(manifest.members) if m.path == "own/3")
    from fastpack.layout import lay_out

    for frame, segments in zip(manifest.frames, lay_out(manifest), strict=True):
        if all(segment.member != wanted for segment in segments):
            data[frame.offset + 8 : frame.offset + 12] = b"\xff" * 4
    Path(archive).write_bytes(data)
    done = subprocess.run([sys.executable, "-m", "fastpack.cli", "cat", archive, "own/3"], capture_output=True)
    assert done.returncode == 0 and done.stdout == read(made, "own/3")
    assert run_fastpack("cat", archive, "own/2").code == 30


# --- the third review


@pytest.mark.parametrize("how", ["delete", "edit"])
def test_relocate_after_the_only_file_that_a_record_states_is_gone(tmp_path: Path, how: str) -> None:
    prefix = made(tmp_path, {"share/app.conf": MadeFile(b"home=" + P + b"/x\n", file_mode="text")})
    target = str(tmp_path / "t")
    fastpack.unpack(pack(prefix, tmp_path / "a.tar.zst"), target)
    if how == "delete":
        os.unlink(f"{target}/share/app.conf")
    else:
        write(target, "share/app.conf", f"mine: {target}/changed\n")
    for _ in range(2):
        fastpack.relocate(target)
        assert fastpack.status(target).condition == "right" and conda_unpack(target).returncode == 0
    fastpack.pack(prefix=target, output=str(tmp_path / "b.tar.zst"), ignore_missing_files=True)


def test_edits_in_slots_survive_a_second_pack(tmp_path: Path) -> None:
    binary = b"\x7fELF" + bytes(60) + P + b"/lib\0after"
    files = {
        "share/app.conf": MadeFile(b"home=" + P + b"/x\n", file_mode="text"),
        "lib/l.so": MadeFile(binary, file_mode="binary"),
    }
    prefix = made(tmp_path, files)
    write(prefix, "etc/k.json", json.dumps({"argv": [f"{prefix}/bin/python"]}))
    target, other = str(tmp_path / "envs/py311"), str(tmp_path / "envs/py312")
    fastpack.unpack(pack(prefix, tmp_path / "a.tar.zst"), target)
    for path in ("etc/k.json", "share/app.conf"):
        write(target, path, read(target, path).replace(os.fsencode(target), os.fsencode(other)))
    # Without this, taking the sibling's path out would give the package's file: it would be a prefix it was moved from.
    write(target, "share/app.conf", read(target, "share/app.conf") + b"changed\n")
    lib = read(target, "lib/l.so")
    write(target, "lib/l.so", lib.replace(os.fsencode(target) + b"/lib\0\0\0\0", os.fsencode(target) + b"/lib\0XYZ"))
    archive = pack(target, tmp_path / "b.tar.zst")
    assert (
        os.fsencode(other) in members(archive)["etc/k.json"]
        and os.fsencode(other) in members(archive)["share/app.conf"]
    )
    fastpack.unpack(archive, str(tmp_path / "u"))
    assert b"XYZ" in read(str(tmp_path / "u"), "lib/l.so")


def test_a_list_of_relocations_over_8_mib(tmp_path: Path) -> None:
    files = {f"share/f{k}.txt": MadeFile((P + b"\n") * 300, file_mode="text") for k in range(1700)}
    prefix = made(tmp_path, files)
    archive = pack(prefix, tmp_path / "a.tar.zst", compress_level=1)
    assert len(members(archive)[".fastpack/relocations.json"]) > 8 << 20
    target = str(tmp_path / "t")
    with open(archive, "rb") as pipe:
        assert run_fastpack("unpack", "-", "-p", target, stdin=pipe).code == 0
    assert read(target, "share/f7.txt") == (os.fsencode(target) + b"\n") * 300


def test_a_manifest_that_compresses_well_is_no_bomb(tmp_path: Path) -> None:
    prefix = unmanaged(tmp_path)
    os.mkdir(f"{prefix}/l")
    for k in range(10_000):
        Path(prefix, "l", str(k)).touch()
    archive = pack(prefix, tmp_path / "a.tar.zst", compress_level=19)
    assert fastpack.unpack(archive, str(tmp_path / "t")).n_files > 10_000 and fastpack.verify(archive).problems == ()


def test_a_long_listing_is_cut_between_its_mentions(tmp_path: Path) -> None:
    import random

    prefix = unmanaged(tmp_path)
    rng = random.Random(1)
    text = "".join(f"{prefix}/{'d' * rng.randrange(10, 40)}\n" for _ in range(250_000))
    write(prefix, "share/files.lst", text)
    archive = pack(prefix, tmp_path / "a.tar.zst", compress_level=1)
    target = str(tmp_path / "t")
    fastpack.unpack(archive, target)
    assert read(target, "share/files.lst") == text.replace(prefix, target).encode()


@pytest.mark.parametrize(("pad", "unpacked"), [("conda", "slash"), ("slash", "conda")])
def test_verify_of_a_placed_archive_with_another_padding(tmp_path: Path, pad: str, unpacked: str) -> None:
    prefix = made(tmp_path, {"lib/l.so": MadeFile(b"\0" + P + b"/lib\0", file_mode="binary")})
    archive = pack(prefix, tmp_path / "a.tar.zst", dest_prefix="/opt/q", pad=[pad])
    target = str(tmp_path / "t")
    fastpack.unpack(archive, target, pad=[unpacked])
    assert fastpack.verify(target).problems == ()
    fastpack.relocate(target, pad=[pad])
    assert fastpack.verify(target).problems == ()


def test_a_second_generation_after_missing_files_is_the_same(tmp_path: Path) -> None:
    files = {"share/app.conf": MadeFile(P, file_mode="text"), "share/b": MadeFile(b"b")}
    prefix = made(tmp_path, files)
    os.unlink(f"{prefix}/share/b")
    first = pack(prefix, tmp_path / "a.tar.zst", ignore_missing_files=True)
    fastpack.unpack(first, str(tmp_path / "t"))
    second = pack(str(tmp_path / "t"), tmp_path / "b.tar.zst", ignore_missing_files=True)
    assert Path(first).read_bytes() == Path(second).read_bytes()

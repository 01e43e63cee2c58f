"""Each test names the bug it keeps away. All but the first few were found by reviewers who meant harm."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

import fastpack
from fastpack import _batch_py, errors, listing
from fastpack.environment import Environment
from fastpack.examine import examine
from fastpack.made_prefix import MadeFile, MadePackage, install
from fastpack.model import PLACEHOLDER, Verdict
from fastpack.prefixes import source_prefixes
from fastpack.relocation import Prefixes, apply_edits, link_targets
from tests.conftest import P, app_package, c_string, need
from tests.test_conda_unpack import conda_unpack, extract
from tests.test_environment import SITE, dist, python_stub, write
from tests.test_examine import compiled


def packed(prefix: str, out: Path, **options: object) -> str:
    fastpack.pack(prefix=prefix, output=str(out), **options)  # type: ignore[arg-type]
    return str(out)


def stated(prefix: str, record: str = "conda-meta/app-1.0-0.json") -> dict[str, str]:
    rows = json.loads(Path(prefix, record).read_text())["paths_data"]["paths"]
    return {row["_path"]: row["sha256_in_prefix"] for row in rows if row.get("prefix_placeholder")}


def real(prefix: str) -> dict[str, str]:
    import hashlib

    return {path: hashlib.sha256(Path(prefix, path).read_bytes()).hexdigest() for path in stated(prefix)}


@need("tar", "zstd")
def test_conda_unpack_updates_the_hashes_in_records(made: str, tmp_path: Path) -> None:
    """A record's hashes match by pattern at any prefix, so it was taken for placed already."""
    target = extract(packed(made, tmp_path / "a.tar.zst"), str(tmp_path / "n1"))
    assert stated(target) == real(target), "the archive form states the archive form"
    for name in ("n1", "n2 with space"):
        os.rename(target, tmp_path / name)
        target = str(tmp_path / name)
        assert conda_unpack(target).returncode == 0
        assert stated(target) == real(target)


@need("tar", "zstd")
def test_an_interruption_and_a_move_lose_no_file(made: str, tmp_path: Path) -> None:
    """state.json knew one old prefix only: files that an interrupted run had placed at another were left for ever."""
    target = str(tmp_path / "n1")
    fastpack.unpack(packed(made, tmp_path / "a.tar.zst"), target)
    for k in (2, 3, 4):  # each time only some files arrive, and the environment is moved on
        moved = str(tmp_path / f"n{k}")
        os.rename(target, moved)
        target = moved
        locked = os.path.join(target, "share/app/app.conf" if k % 2 else "lib/libapp.so")
        data = Path(locked).read_bytes()
        assert conda_unpack(target).returncode == 0
        Path(locked).write_bytes(data)  # this one was not reached
        state = json.loads(Path(target, ".fastpack/state.json").read_text())
        Path(target, ".fastpack/state.json").write_text(
            json.dumps({**state, "complete": False, "earlier": state["earlier"]})
        )
    os.rename(target, tmp_path / "n5")
    done = conda_unpack(str(tmp_path / "n5"))
    assert done.returncode == 0 and "left" not in done.stderr.replace("0 left", ""), done.stderr
    assert stated(str(tmp_path / "n5")) == real(str(tmp_path / "n5"))


@need("tar", "zstd")
def test_tar_over_a_finished_environment_is_noticed(made: str, tmp_path: Path) -> None:
    out = packed(made, tmp_path / "a.tar.zst")
    target = extract(out, str(tmp_path / "n1"))
    assert conda_unpack(target).returncode == 0
    wanted = Path(target, "lib/libapp.so").read_bytes()
    subprocess.run(["tar", "--zstd", "-xf", out], cwd=target, check=True)
    assert conda_unpack(target).returncode == 0
    assert Path(target, "lib/libapp.so").read_bytes() == wanted


@need("tar", "zstd")
def test_debris_of_a_killed_conda_unpack_goes_away(made: str, tmp_path: Path) -> None:
    target = extract(packed(made, tmp_path / "a.tar.zst"), str(tmp_path / "n1"))
    gone = subprocess.Popen(["true"])
    gone.wait()
    write(target, f"lib/.fastpack-new-{gone.pid}-libapp.so", "half")
    write(target, f"lib/.fastpack-new-{os.getpid()}-libapp.so", "someone's")
    assert conda_unpack(target).returncode == 0
    left = [name for name in os.listdir(f"{target}/lib") if name.startswith(".fastpack-new-")]
    assert left == [f".fastpack-new-{os.getpid()}-libapp.so"]


def test_an_excluded_source_does_not_hang_the_pack(made: str, tmp_path: Path) -> None:
    """Its .pyc waited for ever for the time of a source that was not packed."""
    write(made, "q/m.py", "x = 1\n")
    pyc = compiled(made, "q/m.py")
    out = packed(made, tmp_path / "a.tar.zst", filters=[("exclude", "*.py")])
    fastpack.unpack(out, str(tmp_path / "n"))
    assert not Path(tmp_path, "n", pyc).exists(), "without its source, Python would never look at it"


def test_a_source_that_comes_after_its_pyc_does_not_hang_the_pack(tmp_path: Path) -> None:
    """A conda package's recompiled .pyc of a source that belongs to the rest: with one thread, it came too early."""
    prefix = str(tmp_path / "env")
    pyc = f"{SITE}/__pycache__/m.cpython-311.pyc"
    install([MadePackage("m", files={pyc: MadeFile(b"old")})], prefix)
    write(prefix, f"{SITE}/m.py", "x = 1\n")
    os.utime(os.path.join(prefix, f"{SITE}/m.py"), (1_600_000_000, 1_600_000_000))
    header = b"\xa7\x0d\x0d\x0a\0\0\0\0" + struct.pack("<II", 1_600_000_000, 6)
    write(prefix, pyc, header + b"code")
    for threads in (1, 2):
        out = packed(prefix, tmp_path / f"{threads}.tar.zst", n_threads=threads)
        fastpack.unpack(out, str(tmp_path / f"n{threads}"))
        data = Path(tmp_path, f"n{threads}", pyc).read_bytes()
        mtime = int(os.stat(tmp_path / f"n{threads}" / SITE / "m.py").st_mtime)
        assert data == header[:8] + struct.pack("<II", mtime, 6) + b"code"


@pytest.mark.parametrize("name", ["plain", "with space", "quote'd", 'dou"ble', "co:lon"])
def test_a_moved_environment_without_scripts_gives_its_old_prefix_away(tmp_path: Path, name: str) -> None:
    """Without a script in bin that named it, the old prefix stayed in 166 files, silently."""
    old, new = str(tmp_path / name / "env"), str(tmp_path / "new")
    package = app_package()
    del package.files["bin/app"]
    install([package], old, history=False)
    os.rename(old, new)
    result = examine(Environment.from_prefix(new), threads=1)
    assert os.fsencode(old) in result.prefixes.plain
    assert result.files["lib/libapp.so"].verdict is result.files["share/app/app.conf"].verdict is Verdict.PROVEN


def test_a_prefix_that_cannot_be_found_is_said(tmp_path: Path) -> None:
    prefix = str(tmp_path / "env")
    install([app_package()], prefix)
    env = Environment.from_prefix(prefix)
    path = os.path.join(prefix, "lib/libapp.so")
    data = Path(path).read_bytes().replace(os.fsencode(prefix), b"\xff" * len(os.fsencode(prefix)))
    import hashlib

    record = os.path.join(prefix, "conda-meta/app-1.0-0.json")
    table = json.loads(Path(record).read_text())
    for row in table["paths_data"]["paths"]:
        if row["_path"] == "lib/libapp.so":
            row["sha256_in_prefix"] = hashlib.sha256(data).hexdigest()
    Path(record).write_text(json.dumps(table))
    Path(path).write_bytes(data)
    env = Environment.from_prefix(prefix)
    assert "not known" in examine(env, threads=1).files["lib/libapp.so"].not_relocated


def test_history_names_an_old_prefix(tmp_path: Path) -> None:
    old, new = str(tmp_path / "old"), str(tmp_path / "new")
    install([MadePackage("x", files={"lib/x": MadeFile(c_string(b"", b"/x"), file_mode="binary")})], old)
    os.rename(old, new)
    assert old in source_prefixes(Environment.from_prefix(new))


def test_what_pip_rewrote_after_unpacking_is_relocated(tmp_path: Path) -> None:
    """`pip install --force-reinstall` wrote bin/pip in another form than ours: it was left with a dead first line."""
    source, n1, n2 = str(tmp_path / "source"), str(tmp_path / "n1"), str(tmp_path / "n2")
    install([app_package(), python_stub()], source)
    write(source, "bin/tool", f"#!{source}/bin/python\nold\n", 0o755)
    write(source, "bin/gone", f"#!{source}/bin/python\nold\n", 0o755)
    fastpack.unpack(packed(source, tmp_path / "a.tar.zst"), n1)
    write(n1, "bin/tool", f"#!{n1}/bin/python\nnew\n", 0o755)
    os.unlink(f"{n1}/bin/gone")
    os.rename(n1, n2)
    report = fastpack.relocate(n2)
    assert report.left == () and report.n_added == 1
    assert Path(n2, "bin/tool").read_text() == f"#!{n2}/bin/python\nnew\n"
    os.rename(n2, n1)
    assert fastpack.relocate(n1).left == ()
    assert Path(n1, "bin/tool").read_text() == f"#!{n1}/bin/python\nnew\n"


def test_the_claim_counts_whose_file_is_on_disk(tmp_path: Path) -> None:
    prefix = str(tmp_path / "env")
    mine = MadePackage("aa", files={"lib/x.so": MadeFile(b"\x7f\0" + c_string(b"", b"/x"), file_mode="binary")})
    install([MadePackage("zz", files={"lib/x.so": MadeFile(b"another")}), mine], prefix)
    found = examine(Environment.from_prefix(prefix), threads=1).files["lib/x.so"]
    assert found.verdict is Verdict.PROVEN and len(found.form.relocations) == 1


def test_natural_mentions_among_many(tmp_path: Path) -> None:
    prefix = str(tmp_path / "e9")
    natural = os.fsencode(prefix) + b"x/static"
    binary = b"\x7fELF\0" + c_string(b"", b"/share") + b"tail\0" + natural + bytes(600)
    text = b"\n".join([b"a " + P] * 14) + b"\nsee " + os.fsencode(prefix) + b"/natural\n"
    files = {"lib/b": MadeFile(binary, file_mode="binary"), "share/t": MadeFile(text, file_mode="text")}
    install([MadePackage("n", files=files)], prefix)
    result = examine(Environment.from_prefix(prefix), threads=1)
    for path, made_file in files.items():
        assert result.files[path].verdict is Verdict.PROVEN, path
        assert apply_edits(Path(prefix, path).read_bytes(), result.files[path].form.edits) == made_file.data


@pytest.mark.parametrize(
    ("path", "target", "wanted", "external"),
    [
        ("bin/l", "/c/env//bin/python", "python", False),
        ("bin/l", "/c/env/./bin/python", "python", False),
        ("bin/l", "//c/env/bin/python", "python", False),
        ("bin/l", "/c/env/../other", "/c/env/../other", True),
        ("sub/l", "../..x", "../..x", False),
        ("sub/l", "../..", "../..", True),
    ],
)
def test_links_are_read_as_the_kernel_reads_them(path: str, target: str, wanted: str, external: bool) -> None:
    targets, outside = link_targets({path: target}, Prefixes([b"/c/env"]))
    assert (targets[path], path in outside) == (wanted, external)


def test_excluding_a_relocated_file_does_not_spoil_its_record(tmp_path: Path) -> None:
    prefix, n1, n2 = (str(tmp_path / name) for name in ("env", "n1", "n2"))
    files = {name: MadeFile(name.encode() + P, file_mode="text") for name in ("etc/a", "etc/b")}
    install([MadePackage("app", files=files)], prefix)
    fastpack.unpack(packed(prefix, tmp_path / "a.tar.zst", filters=[("exclude", "etc/a")]), n1)
    os.rename(n1, n2)
    assert fastpack.relocate(n2).left == ()
    assert stated(n2)["etc/b"] == __import__("hashlib").sha256(Path(n2, "etc/b").read_bytes()).hexdigest()
    # Nor are they missing in any later generation.
    for k in range(3):
        out = packed(n2, tmp_path / f"{k}.tar.zst")
        shutil.rmtree(n2)
        fastpack.unpack(out, n2)


def test_an_excluded_file_is_not_read(made: str, tmp_path: Path) -> None:
    env = Environment.from_prefix(made).exclude("share/*")
    assert not any(path.startswith("share/") for path in examine(env, threads=1).files)


@pytest.mark.parametrize(
    "data",
    ["[" * 100_000, '{"name": "x", "paths_data": {"paths": [{"_path": "a", "size_in_bytes": 1e999}]}}',
     '{"name": "\\ud800"}', '{"name": "x", "files": ["\\ud800"]}'],
)  # fmt: skip
def test_records_of_nonsense_are_one_line(made: str, data: str) -> None:
    write(made, "conda-meta/broken-1-0.json", data)
    with pytest.raises(errors.BadRecord):
        Environment.from_prefix(made)


def test_wheels_of_nonsense_are_packed_as_they_are(tmp_path: Path) -> None:
    prefix = str(tmp_path / "env")
    install([python_stub()], prefix)
    for k, (name, text) in enumerate(
        {"RECORD": 'a,"' + "x" * 200_000, "direct_url.json": '{"url": "file://[x/foo"}'}.items()
    ):
        dist(prefix, f"w{k}", {})
        write(prefix, f"{SITE}/w{k}-1.0.dist-info/{name}", text)
    dist(prefix, "deep", {})
    write(prefix, f"{SITE}/deep-1.0.dist-info/direct_url.json", "[" * 100_000)
    deep = "from __future__ import annotations\nx = " + "(" * 5000 + ")" * 5000
    write(prefix, "bin/deep", f"#!{prefix}/bin/python\n{deep}\n", 0o755)
    fastpack.unpack(packed(prefix, tmp_path / "a.tar.zst"), str(tmp_path / "n"))


def test_a_vanishing_file_has_its_exit_code(made: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write(made, "share/app/gone", "x")
    listdir = os.listdir

    def vanishing(folder: int) -> list[str]:
        names = listdir(folder)
        if "gone" in names:
            Path(made, "share/app/gone").unlink()
        return names

    monkeypatch.setattr(listing, "batch", _batch_py)  # the native one cannot be stopped between listing and asking
    monkeypatch.setattr(os, "listdir", vanishing)
    with pytest.raises(errors.ChangedWhileRead):
        Environment.from_prefix(made)


def test_editables_inside_the_prefix_come_along(tmp_path: Path) -> None:
    prefix = str(tmp_path / "env")
    install([python_stub()], prefix)
    direct = json.dumps({"url": f"file://{prefix}/src/p", "dir_info": {"editable": True}}).encode()
    dist(prefix, "p", {"__editable__.p-1.0.pth": f"{prefix}/src/p\n".encode()}, **{"direct_url.json": direct})
    write(prefix, "src/p/p.py", "")
    assert Environment.from_prefix(prefix).editable == ()
    fastpack.unpack(packed(prefix, tmp_path / "a.tar.zst"), str(tmp_path / "n"))
    assert Path(tmp_path, "n", SITE, "__editable__.p-1.0.pth").read_text() == f"{tmp_path}/n/src/p\n"
    write(prefix, f"{SITE}/rel.pth", "../../../../outside\n")
    write(prefix, f"{SITE}/code.pth", "import sys; sys.path.append('/far/away')\n")
    assert {package.location for package in Environment.from_prefix(prefix).editable} == {
        f"{tmp_path}/outside",
        "/far/away",
    }


def test_a_managed_script_of_two_lines_starts_after_plain_tar(tmp_path: Path) -> None:
    """numpy's bin/f2py comes in pip's two-line form: line 2 named the placeholder until bin/conda-unpack ran."""
    prefix = str(tmp_path / "a b")
    script = b"#!/bin/sh\n'''exec' " + P + b"/bin/python \"$0\" \"$@\"\n' '''\nprint('ran')\n"
    install([MadePackage("x", files={"bin/x": MadeFile(script, 0o755, file_mode="text")})], prefix)
    found = examine(Environment.from_prefix(prefix), threads=1).files["bin/x"]
    archived = apply_edits(Path(prefix, "bin/x").read_bytes(), found.form.edits)
    assert found.verdict is Verdict.PROVEN and archived.startswith(b"#!/bin/sh\n'''exec' \"$(dirname")
    n = str(tmp_path / "n")
    fastpack.unpack(packed(prefix, tmp_path / "a.tar.zst"), n)
    assert Path(n, "bin/x").read_bytes() == script.replace(P, n.encode()), "placed, it is what the package has"


def test_no_setuid_from_an_archive(made: str, tmp_path: Path) -> None:
    out = packed(made, tmp_path / "a.tar")
    data = Path(out).read_bytes()
    start = data.index(b'"path":"lib/libapp.so","sha256"')
    mode = data.index(b'"mode":493', start)
    changed = data[:mode] + b'"mode":3565' + data[mode + 10 :]
    relocations = changed[: changed.index(b"\n", start) if b"\n" in changed[start : start + 10] else None]
    assert relocations  # the size differs by one byte: what counts is that no mode of it is ever applied
    target = str(tmp_path / "n")
    fastpack.unpack(out, target)
    table = json.loads(Path(target, ".fastpack/relocations.json").read_text())
    for row in table["files"]:
        row["mode"] = 0o6777
    Path(target, ".fastpack/relocations.json").write_text(json.dumps(table))
    os.rename(target, tmp_path / "m")
    fastpack.relocate(str(tmp_path / "m"))
    assert os.stat(tmp_path / "m/lib/libapp.so").st_mode & 0o7777 == 0o755


def test_large_placed_text_is_cut_and_can_be_unpacked(tmp_path: Path) -> None:
    """--dest-prefix put a large text into one frame, which unpack refused from 256 MiB on."""
    prefix, n = str(tmp_path / "env"), str(tmp_path / "n")
    text = b"".join(b"%d " % k + P + b"/x\n" for k in range(40_000))
    install([MadePackage("big", files={"share/big.txt": MadeFile(text, file_mode="text")})], prefix)
    out = packed(prefix, tmp_path / "a.tar.zst", dest_prefix="/srv/place of mine")
    fastpack.unpack(out, n, dest_prefix="/srv/place of mine")
    assert Path(n, "share/big.txt").read_bytes() == text.replace(P, b"/srv/place of mine")
    fastpack.unpack(out, n, force=True)
    assert Path(n, "share/big.txt").read_bytes() == text.replace(P, n.encode())
    plain = packed(prefix, tmp_path / "b.tar.zst")
    shutil.rmtree(n)
    fastpack.unpack(plain, n)
    assert Path(n, "share/big.txt").read_bytes() == text.replace(P, n.encode())
    os.rename(n, tmp_path / "m")
    fastpack.relocate(str(tmp_path / "m"))
    assert Path(tmp_path, "m/share/big.txt").read_bytes() == text.replace(P, os.fsencode(tmp_path / "m"))


def test_a_tar_header_of_negative_size_ends(tmp_path: Path) -> None:
    block = bytearray(512)
    block[:19] = b".fastpack/pack.json"
    block[124:136] = (-512).to_bytes(12, "big", signed=True)
    block[156:157] = b"0"
    block[257:265] = b"ustar  \0"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    (tmp_path / "loop.tar").write_bytes(bytes(block) + bytes(2048))
    with pytest.raises(errors.DamagedArchive):
        fastpack.unpack(str(tmp_path / "loop.tar"), str(tmp_path / "n"))


def test_our_placeholder_has_255_bytes() -> None:
    assert len(PLACEHOLDER) == 255 and PLACEHOLDER.startswith(b"/opt/fastpack/_placehold_")


def test_an_env_line_says_nothing_of_usr(tmp_path: Path) -> None:
    """`#!/usr/bin/env perl`, which rattler writes for long prefixes, "proved" that /usr was the source prefix."""
    prefix = str(tmp_path / "a b")
    script = b"#!" + P + b"/bin/perl\nprint 1;\n"
    package = MadePackage("x", files={"bin/tool": MadeFile(script, 0o755, file_mode="text")})
    install([package], prefix)
    data = b"#!/usr/bin/env perl\nprint 1;\n"
    Path(prefix, "bin/tool").write_bytes(data)
    record = Path(prefix, "conda-meta/x-1.0-0.json")
    table = json.loads(record.read_text())
    table["paths_data"]["paths"][0]["sha256_in_prefix"] = hashlib.sha256(data).hexdigest()
    record.write_text(json.dumps(table))
    os.symlink("/usr/lib/os-release", os.path.join(prefix, "ext"))
    write(prefix, "bin/un", "#!/usr/bin/perl\n", 0o755)
    env = Environment.from_prefix(prefix)
    assert source_prefixes(env) == [prefix]
    assert examine(env, threads=1).files["bin/tool"].verdict is Verdict.PROVEN
    report = fastpack.pack(prefix=prefix, output=str(tmp_path / "a.tar.zst"))
    assert [w.path for w in report.warnings if w.code == "external-link"] == ["ext"]


def test_a_file_that_names_no_prefix_proves_none(tmp_path: Path) -> None:
    prefix = str(tmp_path / "env")
    plain = MadeFile(b"see /usr/lib and /opt/tools/bin\n", file_mode="text")
    install([MadePackage("x", files={"share/x": plain, "bin/y": MadeFile(b"#!/opt/tools/bin/bash\n", 0o755)})], prefix)
    assert source_prefixes(Environment.from_prefix(prefix)) == [prefix]


def test_an_image_roots_prefix_is_not_kept_as_a_source(tmp_path: Path) -> None:
    """state.json of an environment once placed for /usr made every mention of /usr a mention of the environment."""
    prefix, root = str(tmp_path / "env"), str(tmp_path / "root")
    install([app_package()], prefix)
    os.symlink("/usr/share/zoneinfo", os.path.join(prefix, "zi"))
    out = packed(prefix, tmp_path / "a.tar.zst")
    fastpack.unpack(out, root, dest_prefix="/usr/local")
    fastpack.relocate(root)
    assert source_prefixes(Environment.from_prefix(root)) == [root]
    for call in (
        lambda: fastpack.unpack(out, str(tmp_path / "n"), dest_prefix="/"),
        lambda: fastpack.relocate(root, dest_prefix="/"),
    ):
        with pytest.raises(errors.UsageError):
            call()


def test_a_copy_of_an_environment_is_not_debris(made: str, tmp_path: Path) -> None:
    out, target = packed(made, tmp_path / "a.tar.zst"), str(tmp_path / "n")
    fastpack.unpack(out, target)
    for name in ("n.partial-backup", "n.partial-0123abcd"):
        shutil.copytree(target, tmp_path / name, symlinks=True)
        write(str(tmp_path / name), "mydata", "precious")
    fastpack.unpack(out, target, force=True)
    for name in ("n.partial-backup", "n.partial-0123abcd"):
        assert (tmp_path / name / "mydata").read_text() == "precious"


def test_a_record_survives_that_one_of_its_files_was_edited(tmp_path: Path) -> None:
    """The edited file was recorded anew, so the record's own relocations no longer led back to its archive form."""
    source, n1, n2 = str(tmp_path / "source"), str(tmp_path / "n1"), str(tmp_path / "n2 longer name")
    install([app_package(style="rattler")], source)
    fastpack.unpack(packed(source, tmp_path / "a.tar.zst"), n1)
    with open(f"{n1}/share/app/app.conf", "ab") as file:
        file.write(b" # edited\n")
    before = stated(n1)["share/app/app.conf"]
    assert fastpack.relocate(n1).left == ()
    place = n1
    for following in (n2, n1, n2):
        os.rename(place, following)
        place = following
        assert fastpack.relocate(place).left == ()
        says, truth = stated(place), real(place)
        assert says.pop("share/app/app.conf") == before, "what the package installed, which is no longer there"
        truth.pop("share/app/app.conf")
        assert says == truth
        assert place.encode() in Path(place, "share/app/app.conf").read_bytes()


def test_a_reinstalled_distribution_keeps_a_true_record(tmp_path: Path) -> None:
    """Its scripts were the same as before, so only RECORD was new, and had no relocations."""

    def line(prefix: str, path: str) -> str:
        data = Path(prefix, SITE, path).read_bytes()
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        return f"{path},sha256={digest},{len(data)}\n"

    def check(prefix: str, version: str) -> None:
        text = Path(prefix, SITE, f"toy-{version}.dist-info/RECORD").read_text()
        for path in ("../../../bin/toy", f"toy-{version}.dist-info/direct_url.json"):
            assert line(prefix, path) in text, path

    def give(prefix: str, version: str) -> None:
        folder = f"{SITE}/toy-{version}.dist-info"
        write(prefix, "bin/toy", f"#!{prefix}/bin/python\n", 0o755)
        write(prefix, f"{folder}/direct_url.json", '{"url": "file:///home/me/toy.whl", "archive_info": {}}')
        paths = ("../../../bin/toy", f"toy-{version}.dist-info/direct_url.json")
        write(prefix, f"{folder}/RECORD", "".join(line(prefix, path) for path in paths))

    source, n1, n2 = (str(tmp_path / name) for name in ("source", "n1", "n2"))
    install([app_package(), python_stub()], source)
    give(source, "1")
    fastpack.unpack(packed(source, tmp_path / "a.tar.zst"), n1)
    check(n1, "1")
    shutil.rmtree(f"{n1}/{SITE}/toy-1.dist-info")
    give(n1, "2")
    for place, following in ((n1, n2), (n2, n1)):
        fastpack.relocate(place)
        check(place, "2")
        os.rename(place, following)
        assert fastpack.relocate(following).left == ()
        check(following, "2")


def test_missing_files_can_be_excluded(made: str, tmp_path: Path) -> None:
    os.unlink(os.path.join(made, "share/app/plain.txt"))
    out = packed(made, tmp_path / "a.tar.zst", filters=[("exclude", "share/app/pl*")])
    fastpack.unpack(out, str(tmp_path / "n"))
    packed(str(tmp_path / "n"), tmp_path / "b.tar.zst")


def test_a_failed_unpack_takes_its_parent_directories_along(made: str, tmp_path: Path) -> None:
    out = packed(made, tmp_path / "a.tar.zst")
    data = bytearray(Path(out).read_bytes())
    data[300] ^= 4
    Path(out).write_bytes(data)
    with pytest.raises(errors.DamagedArchive) as caught:
        fastpack.unpack(out, str(tmp_path / "some/where/n"))
    assert caught.value.path and not (tmp_path / "some").exists()


def test_errors_print_only_the_sides_they_have() -> None:
    assert str(errors.UsageError("wrong", found=3)) == "wrong (found 3)"
    assert str(errors.UsageError("wrong", expected=0, found=3)) == "wrong (expected 0, found 3)"

"""The policy of section 5: archive forms of text, scripts, links, records and what pip writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastpack._place_py import Stated, place, unplace
from fastpack.digest import sha256
from fastpack.model import PLACEHOLDER
from fastpack.record_forms import direct_url_form, history_form, json_items, pip_record_form, record_form
from fastpack.relocation import (
    Edit,
    Header,
    Prefixes,
    apply_edits,
    link_targets,
    placing_edits,
    read_range,
    relocatable_header,
    script_header,
    spelling,
    text_form,
    text_variants,
    with_header,
)

C = b"/opt/my env"
PREFIXES = Prefixes([C])
P = PLACEHOLDER


@given(
    st.binary(max_size=60), st.lists(st.tuples(st.integers(0, 8), st.integers(0, 5), st.binary(max_size=6)), max_size=8)
)
def test_reading_a_range_is_slicing_the_whole(data: bytes, rows: list[tuple[int, int, bytes]]) -> None:
    edits, position = [], 0
    for gap, length, new in rows:
        offset = position + gap
        if offset + length > len(data):
            break
        edits.append(Edit(offset, length, new))
        position = offset + length
    whole = apply_edits(data, edits)
    for start in range(0, len(whole) + 1, 3):
        for stop in range(start, len(whole) + 1, 4):
            assert read_range(lambda n, at: data[at : at + n], edits, start, stop) == whole[start:stop]


# --- row 7: managed text


def test_row_7_all_hits_of_a_managed_text() -> None:
    data = b"a " + C + b"/x\nb " + C + b"2\n"
    form, header = next(text_variants(data, PREFIXES, P))
    assert apply_edits(data, form.edits) == b"a " + P + b"/x\nb " + P + b"2\n"
    assert header is None and len(form.relocations) == 2


def test_a_natural_mention_of_the_prefix_is_settled_by_the_hash() -> None:
    normal = b"natural " + C + b" and " + P + b"\n"
    disk = normal.replace(P, C)
    matching = [form for form, _ in text_variants(disk, PREFIXES, P) if apply_edits(disk, form.edits) == normal]
    assert len(matching) == 1 and len(matching[0].relocations) == 1


# --- row 12: shebangs

TWO_LINES = [
    (b"#!/bin/sh\n'''exec' \"" + C + b'/bin/python3.11" "$0" "$@" #\'\'\'\n', b"/bin/python3.11"),  # rattler
    (b"#!/bin/sh\n'''exec' \"" + C + b'/bin/python" -u "$0" "$@" #\'\'\'\n', b"/bin/python -u"),
    (b"#!/bin/sh\n'''exec' " + C + b"/bin/python \"$0\" \"$@\"\n' '''\n", b"/bin/python"),  # pip, unquoted
    (b"#!/bin/sh\n'''exec' \"" + C + b'/bin/python" "$0" "$@"\n\' \'\'\'\n', b"/bin/python"),  # distlib
    (b"#!/bin/sh\n'''exec' '" + C + b"/bin/python3' \"$0\" \"$@\"\n' '''\n", b"/bin/python3"),  # uv
]


@pytest.mark.parametrize(("head", "true"), TWO_LINES)
def test_row_12_two_line_forms_are_recognised(head: bytes, true: bytes) -> None:
    header = script_header(head + b"import sys\n", PREFIXES, P)
    assert header is not None and header.true == b"#!" + P + true
    assert head[header.length :] == b"\n"


def test_row_12_other_first_lines_are_none_of_ours() -> None:
    for data in (
        b"#!/bin/sh\necho\n",
        b"#!/usr/bin/env python\n",
        b"import sys\n",
        b"#!/opt/my env2/bin/python\n",
        b"",
    ):
        assert script_header(data, PREFIXES, P) is None


@pytest.mark.parametrize(
    ("true", "path", "wanted"),
    [
        (b"/bin/python3.11", "bin/x", b"#!/bin/sh\n'''exec' \"$(dirname -- \"$(realpath -- \"$0\")\")/python3.11\" \"$0\" \"$@\" #'''"),
        (b"/bin/python -u -E", "bin/x", b"#!/bin/sh\n'''exec' \"$(dirname -- \"$(realpath -- \"$0\")\")/python\" -u -E \"$0\" \"$@\" #'''"),
        (b"/bin/python", "lib/a/b/x", b"#!/bin/sh\n'''exec' \"$(dirname -- \"$(realpath -- \"$0\")\")/../../../bin/python\" \"$0\" \"$@\" #'''"),
        (b"/bin/perl -w", "bin/x", b"#!/bin/sh\nexec \"$(dirname -- \"$(realpath -- \"$0\")\")/perl\" -x -- \"$0\" \"$@\"\n#!perl -w"),
        (b"/bin/Rscript", "bin/x", b"#!/usr/bin/env Rscript"),
        (b"/bin/Rscript --vanilla", "bin/x", None),
        (b"/libexec/tool", "bin/x", None),
        (b"/bin/python\r", "bin/x", None),
    ],
)  # fmt: skip
def test_row_12_archive_form(true: bytes, path: str, wanted: bytes | None) -> None:
    assert relocatable_header(b"#!" + P + true, P, path, b"#!x\nimport sys\n") == wanted


def test_row_12_not_over_another_coding_cookie_nor_a_docstring_before_a_future_import() -> None:
    true = b"#!" + P + b"/bin/python"
    env = b"#!/usr/bin/env python"
    assert relocatable_header(true, P, "bin/x", b"\n# -*- coding: latin-1 -*-\n") == env
    assert relocatable_header(true, P, "bin/x", b'\n"""Doc"""\nfrom __future__ import annotations\n') == env
    for body in (b"\n# coding: utf-8\n", b"\n# -*- coding: ascii -*-\n", b"\n# vim: set fileencoding=utf-8-unix :\n",
                 b"\nfrom __future__ import annotations\n"):  # fmt: skip
        assert (relocatable_header(true, P, "bin/x", body) or b"").startswith(b"#!/bin/sh"), body


def test_row_12_a_script_keeps_its_docstring(tmp_path: object) -> None:
    for body, wanted in ((b'\n"""Usage: \xc3\xa9 \\n \'x\' """\nprint(ascii(__doc__))\n', "Usage: \xe9 \n 'x' "),
                         (b"\nprint(__doc__)\n", None)):  # fmt: skip
        head = relocatable_header(b"#!" + P + b"/bin/python", P, "bin/x", body)
        assert head is not None and head.startswith(b"#!/bin/sh")
        path = os.path.join(str(tmp_path), "bin", "x")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if not os.path.lexists(os.path.join(str(tmp_path), "bin", "python")):
            os.symlink(sys.executable, os.path.join(str(tmp_path), "bin", "python"))
        with open(path, "wb") as file:
            file.write(head + body)
        os.chmod(path, 0o755)
        done = subprocess.run([path], capture_output=True, text=True)
        assert done.stdout.strip() == (ascii(wanted) if wanted else "None"), done.stderr


def test_row_12_python_and_perl_run_by_the_archive_form(tmp_path: object) -> None:
    folder = os.path.join(str(tmp_path), "a b 环", "bin")
    os.makedirs(folder)
    for name, target in (("python", sys.executable), ("perl", "/usr/bin/perl")):
        if os.path.exists(target):
            os.symlink(target, os.path.join(folder, name))
    scripts = {
        "py": (
            b"/bin/python -u",
            b"\nimport sys\nprint('ran', sys.argv[1], sys.stdout.write_through)\n",
            "ran x y True",
        )
    }
    if os.path.exists("/usr/bin/perl"):
        scripts["pl"] = (b"/bin/perl -w", b'\nprint "ran $ARGV[0] $^W\\n";\n', "ran x y 1")
    for name, (true, body, wanted) in scripts.items():
        path = os.path.join(folder, name)
        head = relocatable_header(b"#!" + P + true, P, f"bin/{name}", body)
        assert head is not None
        with open(path, "wb") as file:
            file.write(head + body)
        os.chmod(path, 0o755)
        link = os.path.join(str(tmp_path), f"link-{name}")
        os.symlink(path, link)
        for start in (path, link):
            done = subprocess.run([start, "x y"], capture_output=True, text=True, cwd="/", timeout=20)
            assert (done.returncode, done.stdout.strip()) == (0, wanted), done.stderr


def test_a_header_takes_the_place_of_the_hits_in_it() -> None:
    data = b"#!" + C + b"/bin/python\nx = '" + C + b"/share'\n"
    hits = [(2, 0), (data.index(C, 10), 0)]
    plain = text_form(hits, PREFIXES.plain, ["text", "text"], P)
    form = with_header(plain, Header(b"#!" + P + b"/bin/python", data.index(b"\n")), b"#!/bin/sh\nHEAD")
    archived = apply_edits(data, form.edits)
    assert archived == b"#!/bin/sh\nHEAD\nx = '" + P + b"/share'\n"
    assert [item.kind for item in form.relocations] == ["shebang", "text"]
    placed = place(bytearray(archived), form.relocations, P, b"/n")
    assert bytes(placed) == b"#!/n/bin/python\nx = '/n/share'\n"
    assert bytes(unplace(placed, form.relocations, P, b"/n")) == archived


# --- row 8: spellings


@pytest.mark.parametrize(
    ("data", "path", "kind"),
    [
        (b"url=file://", "a.txt", "percent"),
        (b'{"x": "', "share/jupyter/kernels/k/kernel.json", "json"),
        (b"x = ", "a.txt", "text"),
        (b'{"env_vars": "', "conda-meta/state", "json"),
    ],
)
def test_row_8_the_format_decides_the_spelling(data: bytes, path: str, kind: str) -> None:
    assert spelling(data + C, path, len(data), "text") == kind
    assert spelling(data + C, path, len(data), "percent") == "percent"


# --- row 14: links


@pytest.mark.parametrize(
    ("path", "target", "wanted", "external"),
    [
        ("lib/a", "/opt/my env/lib/b", "b", False),
        ("bin/x", "/opt/my env/lib/b/c", "../lib/b/c", False),
        ("top", "/opt/my env", ".", False),
        ("a/b", "/opt/my env", "..", False),
        ("a", "/opt/my env2/x", "/opt/my env2/x", True),
        ("a", "/etc/passwd", "/etc/passwd", True),
        ("a/b", "../../x", "../../x", True),
        ("a/b", "../x", "../x", False),
        ("a", "nowhere", "nowhere", False),
    ],
)
def test_row_14_links(path: str, target: str, wanted: str, external: bool) -> None:
    targets, outside = link_targets({path: target}, PREFIXES)
    assert (targets[path], path in outside) == (wanted, external)


# --- row 16: records and what pip writes


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    )
)
def test_json_items_are_where_json_says(value: object) -> None:
    def check(text: str, start: int, found: object) -> None:
        items = list(json_items(text, start))
        if isinstance(found, dict):
            assert [key for key, _, _, _ in items] == list(found)
        else:
            assert len(items) == (len(found) if isinstance(found, list) else 0)
        for key, inner, at, stop in items:
            assert inner == found[key]  # type: ignore[index]
            assert json.loads(text[at:stop]) == inner
            check(text, at, inner)

    for text in (json.dumps(value), " " + json.dumps(value, indent=2, ensure_ascii=False)):
        check(text, 0, value)


def test_row_16_a_record_states_the_archive_form() -> None:
    record = {
        "extracted_package_dir": "/cache/pkgs/x é",
        "link": {"source": "/cache/pkgs/x", "type": 2},
        "name": "x",
        "package_tarball_full_path": "/cache/x.conda",
        "paths_data": {
            "paths": [
                {"_path": "a", "sha256": "1" * 64, "sha256_in_prefix": "2" * 64, "size_in_bytes": 100},
                {"_path": "b", "sha256": "2" * 64, "size_in_bytes": 999},
                {"_path": "entry", "sha256": "5" * 64, "size_in_bytes": 50},
            ]
        },
    }
    data = json.dumps(record, indent=1, ensure_ascii=False).encode()
    archived = {"a": Stated("3" * 64, 7777), "entry": Stated("6" * 64, 400)}
    form = record_form(data, archived, {"a": Stated("2" * 64, 90), "entry": Stated("5" * 64, 50)}, {"a", "entry"})
    done = apply_edits(data, form.edits)
    found = json.loads(done)
    assert found["extracted_package_dir"] == "" and found["link"] == {"source": "", "type": 1}
    assert found["package_tarball_full_path"] == ""
    rows = found["paths_data"]["paths"]
    assert rows[0] == {"_path": "a", "sha256": "1" * 64, "sha256_in_prefix": "3" * 64, "size_in_bytes": 100}
    assert rows[1] == record["paths_data"]["paths"][1]  # type: ignore[index]
    assert rows[2] == {"_path": "entry", "sha256": "6" * 64, "size_in_bytes": 400}
    placed = {"a": Stated("8" * 64, 1), "entry": Stated("9" * 64, 12345)}
    there = place(bytearray(done), form.relocations, P, b"/n", 0, placed)
    rows = json.loads(bytes(there))["paths_data"]["paths"]
    assert rows[0]["sha256_in_prefix"] == "8" * 64 and rows[2]["size_in_bytes"] == 12345
    assert bytes(unplace(there, form.relocations, P, b"/n", 0, archived)) == done


def test_row_16_history_loses_dates_and_commands() -> None:
    data = b"==> 2024-05-06 07:08:09 <==\n# cmd: conda create -p /opt/my env\n+x::y-1-0\n# update specs: ['y']\n"
    done = apply_edits(data, history_form(data).edits)
    assert done == b"==> 2000-01-01 00:00:00 <==\n+x::y-1-0\n# update specs: ['y']\n"


def test_row_16_direct_url() -> None:
    inside = json.dumps({"url": "file:///opt/my%20env/src/p", "dir_info": {}}).encode()
    form = direct_url_form(inside, PREFIXES)
    archived = apply_edits(inside, form.edits)
    assert json.loads(archived)["url"] == "file://" + P.decode() + "/src/p"
    placed = place(bytearray(archived), form.relocations, P, "/n é".encode())
    assert json.loads(bytes(placed))["url"] == "file:///n%20%C3%A9/src/p"
    local = json.dumps({"archive_info": {}, "url": "file:///home/me/wheels/p-1-py3-none-any.whl"}).encode()
    done = apply_edits(local, direct_url_form(local, PREFIXES).edits)
    assert json.loads(done) == {"archive_info": {}, "url": "file:///p-1-py3-none-any.whl"}
    remote = b'{"url": "https://example.org/x.whl"}'
    assert direct_url_form(remote, PREFIXES).edits == ()


def test_row_16_pip_record() -> None:
    script_disk, script_archive = b"#!/opt/my env/bin/python\n", b"#!/bin/sh\nlonger\n"
    import base64
    import hashlib

    def line(path: str, data: bytes) -> bytes:
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=")
        return b"%s,sha256=%s,%d" % (path.encode(), digest, len(data))

    data = (
        b"\n".join([line("../../../bin/tool", script_disk), line("p/__init__.py", b"x"), b"p/x.pyc,,", b'"p/a,b.py",,'])
        + b"\n"
    )
    archived = {"bin/tool": Stated(sha256(script_archive), len(script_archive))}
    on_disk = {"bin/tool": Stated(sha256(script_disk), len(script_disk))}
    form = pip_record_form(data, "lib/python3.11/site-packages", archived, on_disk, frozenset({"bin/tool"}), PREFIXES)
    done = apply_edits(data, form.edits)
    assert done == data.replace(line("../../../bin/tool", script_disk), line("../../../bin/tool", script_archive))
    placed = place(bytearray(done), form.relocations, P, b"/n", 0, on_disk)
    assert bytes(placed) == data
    # A line that states something else than what is on disk is not ours to mend.
    wrong = {"bin/tool": Stated(sha256(b"other"), 5)}
    assert (
        pip_record_form(data, "lib/python3.11/site-packages", archived, wrong, frozenset({"bin/tool"}), PREFIXES).edits
        == ()
    )


@pytest.mark.parametrize(
    "true",
    [
        b"#!/usr/bin/env perl\nuse lib '%s/lib';\n",
        b"#!/usr/bin/env -S %s/bin/python -u\nprint('/usr/bin/env')\n",
        b"#!%s/bin/python\n# not /usr/bin/env\n",
        b"#!/usr/bin/env perl\n" + b"x = '%s/lib', '/usr/bin/env'\n" * 8,
    ],
)
def test_a_natural_prefix_in_the_first_line_stays(true: bytes) -> None:
    """At ``/env``, which stands in ``/usr/bin/env``: the form that the hash proves, and the line at another prefix."""
    wanted = true.replace(b"%s", PLACEHOLDER)
    data = true.replace(b"%s", b"/env")
    for form, header in text_variants(data, Prefixes([b"/env"]), PLACEHOLDER):
        if apply_edits(data, form.edits) == wanted:
            break
    else:
        pytest.fail("no variant gives what the package had")
    line = wanted.partition(b"\n")[0]
    assert header == (Header(line, len(data.partition(b"\n")[0])) if PLACEHOLDER in line else None)
    if header is not None:
        form = with_header(form, header, header.true)
    archived = apply_edits(data, form.edits)
    edits = placing_edits(form.relocations, PLACEHOLDER, b"/opt/other", {})
    assert archived == wanted and apply_edits(archived, edits) == true.replace(b"%s", b"/opt/other")

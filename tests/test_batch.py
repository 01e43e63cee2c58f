"""Many files at once: native = twin, and both are what the ordinary calls do."""

from __future__ import annotations

import errno
import json
import os
import stat
import tarfile
from array import array
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastpack import _batch, _batch_py, container, manifest
from fastpack._batch_py import CLONED, COPIED, GIVEN, LINKED
from fastpack.model import Kind

BOTH = pytest.mark.parametrize("batch", [_batch, _batch_py], ids=["native", "twin"])


def table(*values: int) -> array[int]:
    return array("q", values)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


@BOTH
def test_files_are_read_to_their_places(batch: ModuleType, tmp_path: Path, folder: int) -> None:
    contents = [b"", b"one", bytes(range(256)) * 300, b"last"]
    names = [b"a", b"b c", os.fsencode("\xe9\udcff"), b"d/e"]
    Path(tmp_path, "d").mkdir()
    for name, content in zip(names, contents, strict=True):
        Path(tmp_path, os.fsdecode(name)).write_bytes(content)
    infos = [os.stat(tmp_path / os.fsdecode(name)) for name in names]
    sizes, mtimes = table(*(i.st_size for i in infos)), table(*(i.st_mtime_ns for i in infos))
    starts = table(0, 7, 20, 100_000)
    out = bytearray(b"\xaa" * 100_004)
    assert batch.read_files(folder, names, sizes, mtimes, table(0, 0, 0, 0), starts, sizes, out) == []
    wanted = bytearray(b"\xaa" * 100_004)
    for start, content in zip(starts, contents, strict=True):
        wanted[start : start + len(content)] = content
    assert out == wanted
    parts = bytearray(12)
    offsets = table(0, 1, 255, 2)
    assert batch.read_files(folder, names, sizes, mtimes, offsets, table(0, 0, 2, 8), table(0, 2, 6, 2), parts) == []
    assert parts == b"ne\xff" + bytes(range(5)) + b"st\0\0"
    assert batch.read_files(folder, names[:1], sizes[:1], mtimes[:1], table(1), table(0), table(1), parts) == [(0, -1)]


@BOTH
def test_what_is_not_as_expected_is_told(batch: ModuleType, tmp_path: Path, folder: int) -> None:
    Path(tmp_path, "file").write_bytes(b"12345")
    Path(tmp_path, "folder").mkdir()
    Path(tmp_path, "link").symlink_to("file")
    os.mkfifo(tmp_path / "fifo")
    mtime = os.stat(tmp_path / "file").st_mtime_ns
    names = [b"file", b"file", b"file", b"gone", b"link", b"folder", b"fifo", b"file/x"]
    sizes = table(5, 6, 5, 5, 5, 5, 5, 5)
    mtimes = table(mtime, mtime, mtime + 1, *[mtime] * 5)
    out = bytearray(6)
    lengths = table(5, 6, 5, 5, 5, 5, 5, 5)
    found = dict(batch.read_files(folder, names, sizes, mtimes, table(*[0] * 8), table(*[0] * 8), lengths, out))
    assert found.pop(6) in (_batch_py.CHANGED, errno.EAGAIN, errno.ESPIPE)
    assert found == {
        1: _batch_py.CHANGED, 2: _batch_py.CHANGED, 3: errno.ENOENT, 4: errno.ELOOP, 5: errno.EISDIR, 7: errno.ENOTDIR,
    }  # fmt: skip


@BOTH
def test_files_are_written(batch: ModuleType, tmp_path: Path, folder: int) -> None:
    Path(tmp_path, "there").write_bytes(b"old")
    Path(tmp_path, "link").symlink_to("new")
    names = [b"a", os.fsencode("\udcff"), b"there", b"link", b"no/where", b"empty"]
    data = b"0123456789"
    found = batch.write_files(
        folder, names, data, table(0, 3, 0, 0, 0, 10), table(3, 7, 1, 1, 1, 0),
        table(0o644, 0o555, 0o644, 0o644, 0o644, 0o600), table(946684800, 2, 3, 4, 5, 1 << 32),
    )  # fmt: skip
    assert found == [(2, errno.EEXIST), (3, errno.EEXIST), (4, errno.ENOENT)]
    rows = {}
    for name in ("a", "\udcff", "empty"):
        info = os.stat(tmp_path / name)
        rows[name] = (Path(tmp_path, name).read_bytes(), info.st_mode & 0o7777, info.st_mtime_ns)
    assert rows == {
        "a": (b"012", 0o644, 946684800 * 10**9),
        "\udcff": (b"3456789", 0o555, 2 * 10**9),
        "empty": (b"", 0o600, (1 << 32) * 10**9),
    }
    assert Path(tmp_path, "there").read_bytes() == b"old"
    assert not Path(tmp_path, "new").exists()


@BOTH
def test_nothing_that_is_there_is_opened_for_writing(batch: ModuleType, tmp_path: Path, folder: int) -> None:
    os.mkfifo(tmp_path / "fifo")  # to open it would wait for a reader
    assert batch.write_files(folder, [b"fifo"], b"x", table(0), table(1), table(0o644), table(0)) == [(0, errno.EEXIST)]


@BOTH
def test_tables_are_checked(batch: ModuleType, folder: int) -> None:
    one, out = table(0), bytearray(8)
    for start, length in ((-1, 1), (0, 9), (9, 0), (0, -1), (1 << 62, 1 << 62)):
        with pytest.raises(ValueError, match="outside"):
            batch.read_files(folder, [b"a"], one, one, one, table(start), table(length), out)
        with pytest.raises(ValueError, match="outside"):
            batch.write_files(folder, [b"a"], out, table(start), table(length), one, one)
    with pytest.raises(ValueError, match="different lengths"):
        batch.read_files(folder, [b"a"], table(), one, one, one, one, out)
    with pytest.raises(ValueError, match="negative"):
        batch.read_files(folder, [b"a"], one, one, table(-1), one, one, out)
    with pytest.raises(ValueError, match="different lengths"):
        batch.write_files(folder, [b"a", b"b"], out, one, one, one, one)
    for name, error in ((b"a\0b", ValueError), ("\xe9\0", ValueError), (1, TypeError)):
        with pytest.raises(error):
            batch.read_files(folder, [name], one, one, one, one, one, out)
        with pytest.raises(error):
            batch.tar_headers([name], [b""], b"0", one, one, one, one, bytearray(512))
    for row in ((1 << 33, 0, 0), (0, 1 << 33, 0), (-1, 0, 0), (0, -1, 0), (0, 0, 1 << 21)):
        size, mtime, mode = map(table, row)
        with pytest.raises(ValueError, match="too large"):
            batch.tar_headers([b"a"], [b""], b"0", mode, size, mtime, one, bytearray(512))
    for place, room in ((1, 512), (-1, 1024), (0, 511)):
        with pytest.raises(ValueError, match="outside"):
            batch.tar_headers([b"a"], [b""], b"0", one, one, one, table(place), bytearray(room))
    with pytest.raises(ValueError, match="100"):
        batch.tar_headers([b"a" * 101], [b""], b"0", one, one, one, one, bytearray(512))


names = st.binary(min_size=1, max_size=100).filter(lambda name: b"\0" not in name)
rows = st.tuples(
    names, st.just(b"") | names, st.sampled_from(b"0125"), st.integers(0, 0o7777), st.integers(0, (1 << 33) - 1),
    st.integers(0, (1 << 33) - 1),
)  # fmt: skip


@given(st.lists(rows, max_size=5))
def test_headers_are_the_twins_and_tarfiles(members: list[tuple[bytes, bytes, int, int, int, int]]) -> None:
    columns = list(zip(*members, strict=True)) or [()] * 6
    places = table(*range(0, 512 * len(members), 512))
    written = []
    for batch in (_batch, _batch_py):
        out = bytearray(512 * len(members))
        batch.tar_headers(
            list(columns[0]), list(columns[1]), bytes(columns[2]), *(table(*column) for column in columns[3:6]), places,
            out,
        )  # fmt: skip
        written.append(bytes(out))
    assert written[0] == written[1]
    for index, (name, target, kind, mode, size, mtime) in enumerate(members):
        block = written[0][512 * index : 512 * index + 512]
        info = tarfile.TarInfo(os.fsdecode(name))
        info.type, info.mode, info.size, info.mtime = bytes([kind]), mode, size, mtime
        info.linkname = os.fsdecode(target)
        if not name.endswith(b"/") and kind != ord("5"):
            assert block == info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


def test_containers_headers_are_these() -> None:
    block = bytearray(512)
    _batch.tar_headers([b"d/"], [b""], b"5", table(0o755), table(0), table(946684800), table(0), block)
    assert container.headers_of(container.Headers([Kind.DIRECTORY], ["d/"], [""], [0o755], [0], [946684800])) == block


@BOTH
def test_a_directory_is_listed(batch: ModuleType, tmp_path: Path, folder: int) -> None:
    assert batch.list_folder(folder) == ([], table())
    for name in ("b", "a", os.fsdecode(b"\xff"), "\xe9", "x" * 255, "a b"):
        Path(tmp_path, name).write_bytes(name.encode("utf-8", "surrogateescape"))
    Path(tmp_path, "folder").mkdir()
    Path(tmp_path, "link").symlink_to("nowhere")
    os.mkfifo(tmp_path / "fifo")
    os.utime(tmp_path / "a", ns=(0, -1_500_000_001))
    os.chmod(tmp_path / "b", 0o4751)
    names, numbers = batch.list_folder(folder)
    assert names == sorted(os.listdir(tmp_path), key=os.fsencode)
    for name, start in zip(names, range(0, len(numbers), len(_batch_py.LISTED)), strict=True):
        info = os.lstat(tmp_path / name)
        wanted = [info.st_mode, info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino, info.st_dev]
        assert list(numbers[start : start + len(_batch_py.LISTED)]) == [*wanted, info.st_nlink]
    assert _batch.list_folder(folder) == _batch_py.list_folder(folder)
    closed = os.dup(folder)
    os.close(closed)
    for descriptor in (closed, os.open(tmp_path / "a", os.O_RDONLY)):
        with pytest.raises(OSError):
            batch.list_folder(descriptor)


@BOTH
def test_zeros_are_filled_in(batch: ModuleType) -> None:
    out = bytearray(b"\xaa" * 10)
    batch.fill_zeros(table(0, 4, 10, 9), table(2, 0, 0, 1), out)
    assert out == b"\0\0" + b"\xaa" * 7 + b"\0"
    with pytest.raises(ValueError, match="outside"):
        batch.fill_zeros(table(9), table(2), out)
    with pytest.raises(ValueError, match="different lengths"):
        batch.fill_zeros(table(9), table(), out)


@BOTH
def test_a_buffer_to_be_filled_has_its_size(batch: ModuleType) -> None:
    for n_bytes in (0, 1, 1 << 20):
        buffer = batch.unfilled(n_bytes)
        assert type(buffer) is bytearray and len(buffer) == n_bytes
        buffer[:] = b"x" * n_bytes
        assert buffer == b"x" * n_bytes
    with pytest.raises(ValueError, match="negative"):
        batch.unfilled(-1)


@BOTH
def test_names_may_be_text(batch: ModuleType, tmp_path: Path, folder: int) -> None:
    names = ["a", "\xe9", os.fsdecode(b"\xff"), "\u20ac"]
    assert batch.write_files(folder, names, b"wxyz", table(0, 1, 2, 3), table(1, 1, 1, 1), table(*[0o644] * 4),
                             table(0, 0, 0, 0)) == []  # fmt: skip
    assert sorted(os.listdir(os.fsencode(tmp_path))) == sorted(map(os.fsencode, names))
    out = bytearray(4)
    ones = table(1, 1, 1, 1)
    zeros = table(0, 0, 0, 0)
    assert batch.read_files(folder, names, ones, zeros, zeros, table(3, 2, 1, 0), ones, out) == []
    assert out == b"zyxw"
    blocks = bytearray(4 * 512), bytearray(4 * 512)
    rows = table(*range(0, 2048, 512))
    batch.tar_headers(names, names, b"0000", zeros, zeros, zeros, rows, blocks[0])
    raw = [os.fsencode(name) for name in names]
    batch.tar_headers(raw, raw, b"0000", zeros, zeros, zeros, rows, blocks[1])
    assert blocks[0] == blocks[1]


@BOTH
def test_names_in_many_folders(batch: ModuleType, tmp_path: Path, folder: int) -> None:
    """The native one looks a folder up once for names that follow one another."""
    os.makedirs(tmp_path / "a/b/c")
    os.makedirs(tmp_path / "ab")
    os.symlink("ab", tmp_path / "link")
    names = ["a/b/x", "a/b/y", "a/b/c/x", "a/b/z", "top", "ab/x", "link/x", "a/gone/x", "a/b/gone", "a/b/c/x", "ab/x"]
    for name in set(names) - {"link/x", "a/gone/x", "a/b/gone"}:
        (tmp_path / name).write_text(f"{name:8}")
        os.utime(tmp_path / name, ns=(1, 1))
    one, count = table(*[8] * len(names)), len(names)
    starts, out = table(*range(0, 8 * count, 8)), bytearray(8 * count)
    failed = batch.read_files(folder, names, one, table(*[1] * count), table(*[0] * count), starts, one, out)
    assert failed == [(names.index("a/gone/x"), errno.ENOENT), (names.index("a/b/gone"), errno.ENOENT)]
    for k, name in enumerate(names):
        if k not in dict(failed):
            assert out[8 * k : 8 * k + 8].decode().rstrip() == name.replace("link", "ab")


@BOTH
@pytest.mark.parametrize("umask", [0, 0o022, 0o077, 0o777])
def test_modes_are_what_was_asked_for(batch: ModuleType, tmp_path: Path, folder: int, umask: int) -> None:
    """Whatever the umask takes; in many folders, as they are read from there."""
    os.makedirs(tmp_path / "a/b")
    names = ["top", "a/one", "a/b/two", "a/b/three", "a/four", "gone/five", "a/one", "a/b/"]
    modes, count = table(0o644, 0o755, 0o600, 0o444, 0, 0o644, 0o644, 0o644), len(names)
    before = os.umask(umask)
    try:
        failed = batch.write_files(
            folder, names, b"x", table(*[0] * count), table(*[1] * count), modes, table(*range(count))
        )
    finally:
        os.umask(before)
    assert failed == [(5, errno.ENOENT), (6, errno.EEXIST), (7, errno.EISDIR)]
    stats = batch.stat_files(folder, names)
    for k, name in enumerate(names[:5]):
        info = os.stat(tmp_path / name)
        assert (stat.S_IMODE(info.st_mode), info.st_mtime, info.st_size) == (modes[k], k, 1)
        assert list(stats[7 * k : 7 * k + 3]) == [info.st_mode, 1, k * 10**9]
    assert not any(stats[7 * 5 : 7 * 6]) and stats[7 * 6 : 7 * 7] == stats[7:14] and stat.S_ISDIR(stats[7 * 7])


numbers = st.integers(0, 2**63 - 1)
quoted = st.text(st.characters(codec="ascii", exclude_characters="\0"))


@given(st.lists(st.tuples(quoted, numbers, numbers, numbers, st.binary(min_size=32, max_size=32), quoted)), numbers)
def test_lines_of_a_manifest(rows: list[tuple[str, int, int, int, bytes, str]], group: int) -> None:
    names, modes, mtimes, sizes, digests, ends = map(list, zip(*rows, strict=True)) if rows else ([],) * 6
    columns = (names, table(*modes), table(*mtimes), group % 2**31, table(*sizes), b"".join(digests), ends)
    assert _batch.file_lines(*columns) == _batch_py.file_lines(*columns)


@BOTH
def test_lines_of_a_manifest_are_checked(batch: ModuleType) -> None:
    one = table(1)
    for columns in (
        (["a"], one, one, 0, one, bytes(31), [""]), (["a"], one, one, 0, one, bytes(32), []),
        (["a"], table(), one, 0, one, bytes(32), [""]), (["a"], one, table(), 0, one, bytes(32), [""]),
        (["a"], one, one, 0, table(), bytes(32), [""]), (["a"], table(-1), one, 0, one, bytes(32), [""]),
        (["a"], one, table(-1), 0, one, bytes(32), [""]), (["a"], one, one, 0, table(-1), bytes(32), [""]),
        (["a"], one, one, -1, one, bytes(32), [""]),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="different lengths|negative"):
            batch.file_lines(*columns)


small = st.integers(0, 600)
#: Numbers as a manifest may have them, and as none of ours has.
as_text = st.one_of(
    st.integers(0, 0o777).map(str),
    st.sampled_from(["0", "00", "-1", "1.0", "", "8589934591", "8589934592", "9" * 18, "9" * 19]),
)


@given(
    st.lists(
        st.tuples(as_text, as_text, as_text, as_text, quoted, st.booleans(), st.sampled_from(["", "x", " ", "\n"]))
    )
)
def test_lines_of_a_manifest_are_read(rows: list[tuple[str, str, str, str, str, bool, str]]) -> None:
    """By both the same, from any place on; what JSON makes of them is the same."""
    text = b""
    for mode, mtime, group, size, path, verdict, between in rows:
        line = f'{{"path":{json.dumps(path)},"kind":"file","mode":{mode},"mtime":{mtime},"group":{group},"size":{size}'
        line += ',"digest":"' + "0a" * 32 + '"' + (f',"verdict":{json.dumps(path[::-1])}' if verdict else "")
        text += f"{line}}}\n{between}".encode()
    for start in {0, len(text), len(text) // 2, *(k + 1 for k, byte in enumerate(text) if byte == 10)}:
        read = _batch.read_lines(text, start)
        assert read == _batch_py.read_lines(text, start)
        parsed = [json.loads(line) for line in text[start : read.stop].splitlines()]
        assert [(row["path"], row["mode"], row["mtime"], row["group"], row["size"]) for row in parsed] == list(
            zip(read.paths, read.modes, read.mtimes, read.groups, read.sizes, strict=True)
        )
        assert [row.get("verdict", "") for row in parsed] == read.verdicts
        assert read.digests == b"\x0a" * 32 * len(parsed)
        assert all(row["mode"] <= 0o777 and row["mtime"] < 1 << 33 for row in parsed)


@BOTH
def test_lines_are_read_up_to_the_first_other_one(batch: ModuleType) -> None:
    columns = (["a", "b/c"], table(0o644, 0o755), table(1, 2), table(4, 5), b"\1" * 32 + b"\xfe" * 32, ["", "proven"])
    text = manifest.file_lines(*columns, 7)
    read = batch.read_lines(text, 0)
    assert read == (len(text), *columns[:3], table(7, 7), *columns[3:])
    for at in range(len(text)):  # a byte more, less or another
        for other in (text[:at] + text[at + 1 :], text[:at] + b"\0" + text[at + 1 :], text[:at]):
            assert batch.read_lines(other, 0).stop in (0, text.index(b"\n") + 1, len(other))
    assert batch.read_lines(text + b'{"left_out":"x"}', 0).stop == len(text)
    for start in (-1, len(text) + 1):
        with pytest.raises(ValueError, match="outside"):
            batch.read_lines(text, start)


@given(
    st.lists(st.tuples(st.sampled_from([512, 1536]), small)), st.lists(st.integers(1, 4).map(lambda k: 512 * k)), small
)
def test_members_are_laid_into_frames(members: list[tuple[int, int]], frames: list[int], position: int) -> None:
    columns = [table(*column) for column in zip(*members, strict=True)] if members else [table(), table()]
    laid = []
    for batch in (_batch, _batch_py):
        at, owners = table(*[-1] * len(members)), table(*[-1] * len(members))
        laid.append((batch.lay_whole(*columns, table(*frames), 0, 0, position, at, owners), at, owners))
    assert laid[0] == laid[1]


@BOTH
def test_laying_is_checked(batch: ModuleType) -> None:
    one = table(1)
    for columns in (
        (one, table(), one, 0, 0, 0, one, one), (table(), one, one, 0, 0, 0, one, one), (one, one, one, 0, 0, 0, table(), one),
        (one, one, one, 0, 0, 0, one, table()), (one, one, one, -1, 0, 0, one, one), (one, one, one, 0, -1, 0, one, one),
        (one, one, one, 0, 0, -1, one, one),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="different lengths|negative"):
            batch.lay_whole(*columns)
    huge = table((1 << 62) - 1)
    assert batch.lay_whole(table(512), huge, table(1 << 26), 0, 0, 0, table(0), table(0)) == (0, 0, 0)


@given(st.lists(st.tuples(st.sampled_from([0, 2, 5]), st.integers(0, 4), st.integers(0, 3)), max_size=5), st.data())
def test_what_is_beside_the_data(members: list[tuple[int, int, int]], data: st.DataObject) -> None:
    plain, headers, columns = bytearray(), b"", (table(), table(), table())
    for length, size, gap in members:
        header = bytes(range(1, length + 1))
        plain += bytes(gap) + header
        for column, number in zip(columns, (length, len(plain), size), strict=True):
            column.append(number)
        headers += header
        plain += b"\0d\0d"[:size]
    plain += bytes(2)
    assert _batch.odd_place(plain, headers, *columns) == _batch_py.odd_place(plain, headers, *columns) == -1
    at = data.draw(st.integers(0, len(plain) - 1))
    plain[at] ^= 0x40
    found = _batch.odd_place(plain, headers, *columns)
    assert found == _batch_py.odd_place(plain, headers, *columns)
    inside = any(start <= at < start + size for start, size in zip(*columns[1:], strict=True))
    assert found == (-1 if inside else next((k for k, start in enumerate(columns[1]) if at < start), len(members)))


@BOTH
def test_places_beside_the_data_are_checked(batch: ModuleType) -> None:
    plain, header = bytes(10), bytes(4)
    for columns in (
        (table(4), table(3), table(1)), (table(5), table(5), table(1)), (table(-1), table(4), table(1)),
        (table(2, 2), table(4, 5), table(1, 1)), (table(4), table(4), table(7)), (table(4), table(4, 5), table(1)),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="outside|different lengths"):
            batch.odd_place(plain, header, *columns)


# --- files shared by two directories

LATER = (1 << 63) - 1


@pytest.fixture
def two_folders(tmp_path: Path) -> Iterator[tuple[int, int]]:
    descriptors = []
    for name in ("source", "target"):
        os.makedirs(tmp_path / name / "d")
        descriptors.append(os.open(tmp_path / name, os.O_RDONLY | os.O_DIRECTORY))
    yield descriptors[0], descriptors[1]
    for descriptor in descriptors:
        os.close(descriptor)


@BOTH
def test_files_get_a_further_name(batch: ModuleType, tmp_path: Path, two_folders: tuple[int, int]) -> None:
    for name, mode, mtime in (
        ("one", 0o644, 1000),
        ("d/two", 0o755, 2000),
        ("mode", 0o600, 1000),
        ("time", 0o644, 1001),
    ):
        path = tmp_path / "source" / name
        path.write_bytes(name.encode())
        path.chmod(mode)
        os.utime(path, (mtime, mtime))
    os.symlink("one", tmp_path / "source/link")
    Path(tmp_path, "source/there").write_bytes(b"new")
    os.utime(tmp_path / "source/there", (1000, 1000))
    Path(tmp_path, "target/there").write_bytes(b"old")
    names = [b"one", "d/two", "mode", "time", "link", "there", "gone"]
    modes, mtimes = table(0o644, 0o755, *[0o644] * 5), table(1000, 2000, *[1000] * 5)
    failed = batch.share_files(*two_folders, names, modes, mtimes, None, LATER, LINKED)
    changed = _batch_py.CHANGED
    assert failed == [(2, changed), (3, changed), (4, changed), (5, errno.EEXIST), (6, errno.ENOENT)]
    assert sorted(os.listdir(tmp_path / "target")) == ["d", "one", "there"]
    for name in ("one", "d/two"):
        assert os.path.samefile(tmp_path / "source" / name, tmp_path / "target" / name)
    assert Path(tmp_path, "target/there").read_bytes() == b"old"
    os.unlink(tmp_path / "target/one")
    since = os.stat(tmp_path / "source/one").st_ctime_ns
    assert batch.share_files(*two_folders, ["one"], modes[:1], mtimes[:1], None, since, LINKED) == [(0, changed)]
    assert batch.share_files(*two_folders, ["one"], modes[:1], mtimes[:1], None, since + 1, LINKED) == []
    assert batch.share_files(*two_folders, [], table(), table(), None, LATER, LINKED) == []
    with pytest.raises(ValueError, match="different lengths"):
        batch.share_files(*two_folders, ["a"], table(), table(1), None, LATER, LINKED)
    with pytest.raises(ValueError, match="NUL"):
        batch.share_files(*two_folders, ["a\0"], table(1), table(1), None, LATER, CLONED)
    with pytest.raises(ValueError, match="no such way"):
        batch.share_files(*two_folders, ["a"], table(1), table(1), None, LATER, 4)


@BOTH
def test_files_are_copied(batch: ModuleType, tmp_path: Path, two_folders: tuple[int, int]) -> None:
    """Also one that is larger than the copy's buffer, and never one that changed."""
    contents = {"empty": b"", "small": b"abc", "large": os.urandom(700_001)}
    for name, content in contents.items():
        Path(tmp_path, "source", name).write_bytes(content)
    os.symlink("small", tmp_path / "source/link")
    Path(tmp_path, "target/there").write_bytes(b"old")
    Path(tmp_path, "source/there").write_bytes(b"new")
    names = [*contents, "link", "d", "gone", "there"]
    before = os.umask(0o777)
    try:
        failed = batch.share_files(*two_folders, names, table(*[0o640] * 7), table(*[5] * 7), None, LATER, COPIED)
    finally:
        os.umask(before)
    assert failed == [(3, errno.ELOOP), (4, _batch_py.CHANGED), (5, errno.ENOENT), (6, errno.EEXIST)]
    assert sorted(os.listdir(tmp_path / "target")) == ["d", *sorted(contents), "there"]
    for name, content in contents.items():
        target = tmp_path / "target" / name
        assert target.read_bytes() == content and not os.path.samefile(target, tmp_path / "source" / name)
        assert target.stat().st_mode & 0o7777 == 0o640 and target.stat().st_mtime_ns == 5_000_000_000
        target.unlink()
    assert Path(tmp_path, "target/there").read_bytes() == b"old"
    since = os.stat(tmp_path / "source/small").st_ctime_ns
    changed = [(0, _batch_py.CHANGED)]
    assert batch.share_files(*two_folders, ["small"], table(0o640), table(5), None, since, COPIED) == changed
    assert not (tmp_path / "target/small").exists()


@BOTH
@pytest.mark.parametrize("how", [LINKED, GIVEN, COPIED])
def test_only_what_was_looked_at_is_shared(
    batch: ModuleType, tmp_path: Path, two_folders: tuple[int, int], how: int
) -> None:
    """Not what lies in its folder's place by then: equal in size, mode and time, and as old."""
    for folder in ("source/here", "source/aside", "target/here"):
        Path(tmp_path, folder).mkdir()
    for folder, content in (("here", b"right"), ("aside", b"wrong")):
        path = tmp_path / "source" / folder / "file"
        path.write_bytes(content)
        path.chmod(0o644)
        os.utime(path, (1000, 1000))
    rows = batch.stat_files(two_folders[0], ["here/file"])
    read = table(*[1] * len(rows))
    out = bytearray(5)
    zeros, sizes, times = table(0), table(5), table(1000 * 10**9)
    assert batch.read_files(two_folders[0], ["here/file"], sizes, times, zeros, zeros, sizes, out, read) == []
    assert read == rows and out == b"right"
    for turn in range(2):
        failed = batch.share_files(*two_folders, ["here/file"], table(0o644), table(1000), rows, LATER, how)
        assert failed == ([(0, _batch_py.CHANGED)] if turn else [])
        target = tmp_path / "target/here/file"
        assert target.exists() == (not turn)
        if not turn:
            assert target.read_bytes() == b"right"
            target.unlink()
            if how != COPIED:  # its ctime is another one by now
                rows = batch.stat_files(two_folders[0], ["here/file"])
            for one, two in (("here", "x"), ("aside", "here"), ("x", "aside")):
                os.rename(tmp_path / "source" / one, tmp_path / "source" / two)
    with pytest.raises(ValueError, match="different lengths"):
        batch.share_files(*two_folders, ["a"], table(1), table(1), table(1), LATER, how)
    with pytest.raises(ValueError, match="different lengths"):
        batch.read_files(two_folders[0], ["a"], sizes, times, zeros, zeros, sizes, out, table(1))


@BOTH
def test_what_others_have_a_part_in_is_not_given_away(
    batch: ModuleType, tmp_path: Path, two_folders: tuple[int, int]
) -> None:
    names = ["mine", "linked", "labelled", *(["theirs"] if os.getuid() == 0 else [])]
    for name in names:
        path = tmp_path / "source" / name
        path.write_bytes(b"x")
        path.chmod(0o644)
        os.utime(path, (1000, 1000))
    os.link(tmp_path / "source/linked", tmp_path / "backup")
    try:
        os.setxattr(tmp_path / "source/labelled", "user.note", b"mine")
    except OSError:
        os.link(tmp_path / "source/labelled", tmp_path / "another")  # no attributes here
    if "theirs" in names:
        os.chown(tmp_path / "source/theirs", 65534, 65534)
    ones = (table(*[0o644] * len(names)), table(*[1000] * len(names)))
    failed = batch.share_files(*two_folders, names, *ones, None, LATER, GIVEN)
    assert [index for index, _ in failed] == list(range(1, len(names)))
    assert sorted(os.listdir(tmp_path / "target")) == ["d", "mine"]
    assert os.path.samefile(tmp_path / "source/mine", tmp_path / "target/mine")


@BOTH
def test_what_the_system_says_of_files(batch: ModuleType, tmp_path: Path) -> None:
    Path(tmp_path, "file").write_bytes(b"abc")
    os.symlink("nowhere", tmp_path / "link")
    os.mkdir(tmp_path / "d")
    Path(tmp_path, "d/ü").write_bytes(b"")
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        found = batch.stat_files(folder, ["file", "gone", "link", "d/ü"])
        assert batch.stat_files(folder, []) == array("q")
        with pytest.raises(ValueError, match="NUL"):
            batch.stat_files(folder, ["a\0"])
        names, numbers = batch.list_folder(folder)
        listed = {name: numbers[7 * k : 7 * k + 7] for k, name in enumerate(names)}
    finally:
        os.close(folder)
    assert found[:7] == listed["file"] and found[14:21] == listed["link"]
    assert found[7:14] == table(*[0] * 7) and found[22] == 0 and found[26] == os.stat(tmp_path / "d").st_dev


@BOTH
def test_what_cannot_be_cloned_leaves_nothing(batch: ModuleType, tmp_path: Path, two_folders: tuple[int, int]) -> None:
    """Whether this file system has reflinks or not: a clone is whole, with mode and time, or there is none."""
    Path(tmp_path, "source/file").write_bytes(b"content")
    os.symlink("file", tmp_path / "source/link")
    failed = dict(
        batch.share_files(*two_folders, ["file", "link", "d"], table(0o640, 1, 1), table(5, 5, 5), None, LATER, CLONED)
    )
    assert failed[1] == errno.ELOOP and failed[2] == _batch_py.CHANGED
    target = tmp_path / "target/file"
    assert target.exists() == (0 not in failed)
    if 0 in failed:
        assert failed[0] in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EXDEV)
    else:
        assert target.read_bytes() == b"content" and not os.path.samefile(target, tmp_path / "source/file")
        assert target.stat().st_mode & 0o7777 == 0o640 and target.stat().st_mtime == 5

"""Tar headers: those that are written fast are the ones that tarfile writes."""

from __future__ import annotations

import os
import tarfile

from hypothesis import given
from hypothesis import strategies as st

from fastpack import container
from fastpack.model import Kind

lengths = st.sampled_from([1, 2, 50, 98, 99, 100, 101, 102, 255, 300])
names = st.tuples(st.sampled_from([b"x", b"\xff", "é".encode()]), lengths).map(
    lambda row: os.fsdecode((row[0] * row[1])[: row[1]])
)


members = st.tuples(
    st.sampled_from(list(Kind)), names, names, st.integers(0, 0o777), st.integers(0, 2**34),
    st.one_of(st.integers(0, 2**20), st.sampled_from([8**11 - 1, 8**11, 2**40])),
)  # fmt: skip


@given(st.lists(members, min_size=1, max_size=4))
def test_headers_are_tarfiles(rows: list[tuple[Kind, str, str, int, int, int]]) -> None:
    wanted = []
    for kind, path, target, mode, mtime, n_bytes in rows:
        info = tarfile.TarInfo(path)
        info.type = container.TYPES[kind]
        info.mode, info.mtime = mode, mtime
        info.linkname = target if kind in (Kind.LINK, Kind.HARDLINK) else ""
        info.size = n_bytes if kind is Kind.FILE else 0
        wanted.append(info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"))
    kinds, paths, targets, modes, mtimes, sizes = zip(*rows, strict=True)
    targets = tuple(
        target if kind in (Kind.LINK, Kind.HARDLINK) else "" for kind, target in zip(kinds, targets, strict=True)
    )
    names, texts = container.raw_names(kinds, "", paths, targets)
    assert container.headers_of(container.Headers(kinds, names, texts, modes, sizes, mtimes)) == b"".join(wanted)
    assert list(map(container.header_bytes, names, texts)) == list(map(len, wanted))

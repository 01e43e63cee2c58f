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


@given(
    st.sampled_from(list(Kind)), names, names, st.integers(0, 0o777), st.integers(0, 2**34),
    st.one_of(st.integers(0, 2**20), st.sampled_from([8**11 - 1, 8**11, 2**40])),
)  # fmt: skip
def test_a_header_is_tarfiles(kind: Kind, path: str, target: str, mode: int, mtime: int, n_bytes: int) -> None:
    target = target if kind in (Kind.LINK, Kind.HARDLINK) else ""
    info = tarfile.TarInfo(path)
    info.type = container.TYPES[kind]
    info.mode, info.mtime, info.linkname = mode, mtime, target
    info.size = n_bytes if kind is Kind.FILE else 0
    name, link = container.raw_names(kind, "", path, target)
    header = container.header(container.Header(kind, name, link, mode, n_bytes, mtime))
    assert header == info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
    assert len(header) == container.header_bytes(name, link)

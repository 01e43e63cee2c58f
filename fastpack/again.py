"""Packing what has not changed at all: the archive that is there is proven, and nothing else is read.

What an archive was made from is remembered under its own path: a digest of all that decides about its bytes, with the
rules of the stat table (`stat_table`), and digests of the pieces of the file. Where the first is the same again, and
the file still has every piece, packing would give the same file.
"""

from __future__ import annotations

import functools
import json
import os
import stat
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastpack import digest, hostmemory, pagecache, requirements
from fastpack._batch_py import LISTED
from fastpack.environment import Environment
from fastpack.model import PackReport, Progress, Warned
from fastpack.parallel import ordered_map

_KIND = "again"
#: The bits of a mode that tell a file from a directory (S_IFMT).
_KIND_OF_FILE = 0o170000


class Piece(NamedTuple):
    """A piece of an archive: where it lies, in bytes, and its BLAKE3 in hexadecimal."""

    offset: int
    n_bytes: int
    digest: str


def source_digest(env: Environment, asked: Iterable[object], output: str) -> str | None:
    """A digest of all that decides about an archive: another one as soon as anything may have changed.

    That is what the system says of each file (a directory's times decide about nothing), what was asked for, this code,
    the machine, and what of an environment lies outside of what was listed.

    Parameters
    ----------
    asked : the options, and whatever else decides, each of a type whose `repr` tells its value.
    output : the archive's path.

    Returns
    -------
    None where the system does not tell of every change, or a file was changed just now.
    """
    if env.brought or not hostmemory.tells_changes(env.prefix):
        return None
    columns = np.stack([np.frombuffer(env.files.column(name), np.int64) for name in LISTED])
    is_folder = columns[LISTED.index("mode")] & _KIND_OF_FILE == stat.S_IFDIR
    for row, name in enumerate(LISTED):
        if name != "mode":
            columns[row, is_folder] = 0
    # Of the file system's clock and of when it was listed: a while before now.
    newest = columns[[LISTED.index("mtime_ns"), LISTED.index("ctime_ns")]].max(initial=0)
    if newest >= time.time_ns() - 2 * hostmemory.SETTLED:
        return None
    rest = (
        _this_code(), requirements.of_this_machine(), env.prefix, os.path.realpath(env.prefix), output, env.filters,
        env.editable, env.telling, env.earlier_prefixes, env.recorded, env.left_out, env.left_out_before, env.warnings,
        *asked,
    )  # fmt: skip
    hasher = digest.hasher()
    for data in (columns.tobytes(), os.fsencode("\0".join(env.files.paths)), ascii((env.files.targets, rest)).encode()):
        hasher.update(len(data).to_bytes(8, "little"))
        hasher.update(data)
    return hasher.hexdigest()


@functools.cache
def _this_code() -> list[tuple[str, int, int]]:
    """What the system says of this package's own files: another version need not have another number."""
    with os.scandir(os.path.dirname(__file__)) as entries:
        files = [entry for entry in entries if entry.is_file()]
    return sorted((entry.name, entry.stat().st_size, entry.stat().st_mtime_ns) for entry in files)


def remember(output: str, source: str, pieces: Sequence[Piece], report: PackReport) -> None:
    """Remember what an archive was made from.

    Parameters
    ----------
    source : its `source_digest`.
    pieces : of the whole file, in order.
    report : what is said if it need not be made again.
    """
    path = hostmemory.place(_KIND, output)
    if path is None:
        return
    said = {**report.as_dict(), "warnings": [warning.as_dict() for warning in report.warnings]}
    data = json.dumps({"source": source, "pieces": pieces, "report": said}).encode("ascii")
    hostmemory.keep(path, [digest.blake(data), data])


def proven(output: str, source: str, threads: int, progress: Progress) -> PackReport | None:
    """The report on the archive that packing would give, if that lies there already, with every byte it should have.

    Its time is then now, for make and its like.

    Parameters
    ----------
    source : the `source_digest` of what is to be packed.
    """
    known = _remembered(output)
    if known is None or known["source"] != source:
        return None
    pieces = [Piece(*row) for row in known["pieces"]]
    total = sum(piece.n_bytes for piece in pieces)
    try:
        with open(output, "rb", buffering=0) as file:

            def is_whole(piece: Piece) -> bool:
                return digest.blake(pagecache.read(file.fileno(), piece.n_bytes, piece.offset)).hex() == piece.digest

            if os.fstat(file.fileno()).st_size != total:
                return None
            done = 0
            for piece, whole in zip(pieces, ordered_map(is_whole, pieces, threads), strict=True):
                if not whole:
                    return None
                done += piece.n_bytes
                progress("verify", done, total, "")
            os.utime(file.fileno())
    except OSError:  # it is not there, or another user's
        return None
    said = known["report"]
    lists = {name: tuple(said[name]) for name in ("prefixes", "not_relocated", "limited")}
    groups = {what: tuple(names) for what, names in said["groups"].items()}
    warnings = tuple(Warned(**row) for row in said["warnings"])
    return PackReport(**{**said, **lists, "groups": groups, "warnings": warnings})


def _remembered(output: str) -> dict[str, Any] | None:
    path = hostmemory.place(_KIND, output)
    if path is None:
        return None
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError:
        return None
    hostmemory.touch(path)
    data, digest_ = data[digest.N_BYTES :], data[: digest.N_BYTES]
    return json.loads(data) if digest.blake(data) == digest_ else None

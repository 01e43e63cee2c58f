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
from fastpack._place_py import read_regular
from fastpack.environment import Environment
from fastpack.fs import opened_if_regular, ownership
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
    umask = _umask()
    if env.brought or umask is None or not hostmemory.tells_changes(env.prefix):
        return None
    columns = np.stack([np.frombuffer(env.files.column(name), np.int64) for name in LISTED])
    is_folder = columns[LISTED.index("mode")] & _KIND_OF_FILE == stat.S_IFDIR
    for row, name in enumerate(LISTED):
        if name != "mode":
            columns[row, is_folder] = 0
    # Of the file system's clock and of when it was listed: a while before now.
    devices = set(columns[LISTED.index("device"), ~is_folder].tolist())
    newest = columns[[LISTED.index("mtime_ns"), LISTED.index("ctime_ns")]].max(initial=0)
    if newest >= time.time_ns() - 2 * hostmemory.SETTLED or len(devices) > 1:  # a file system inside of it
        return None
    rest = (
        _this_code(), requirements.of_this_machine(), env.prefix, os.path.realpath(env.prefix), output, env.filters,
        env.editable, env.telling, env.earlier_prefixes, env.recorded, env.left_out, env.left_out_before, env.warnings,
        env.records, umask, *asked,
    )  # fmt: skip
    hasher = digest.hasher()
    for data in (columns.tobytes(), os.fsencode("\0".join(env.files.paths)), ascii((env.files.targets, rest)).encode()):
        hasher.update(len(data).to_bytes(8, "little"))
        hasher.update(data)
    return hasher.hexdigest()


def _umask() -> str | None:
    """This process's umask, without changing it for other threads; None where the system does not tell."""
    try:
        with open("/proc/self/status", encoding="utf-8", errors="surrogateescape") as file:
            return next((line for line in file if line.startswith("Umask:")), None)
    except OSError:
        return None


@functools.cache
def _this_code() -> list[tuple[str, int, int]]:
    """What the system says of this package's own files: another version need not have another number."""
    with os.scandir(os.path.dirname(__file__)) as entries:
        files = [entry for entry in entries if entry.is_file()]
    return sorted((entry.name, entry.stat().st_size, entry.stat().st_mtime_ns) for entry in files)


def remember(output: str, info: os.stat_result, source: str, pieces: Sequence[Piece], report: PackReport) -> None:
    """Remember what an archive was made from.

    Parameters
    ----------
    info : what the system says of it.
    source : its `source_digest`.
    pieces : of the whole file, in order.
    report : what is said if it need not be made again.
    """
    path = hostmemory.place(_KIND, output)
    if path is None:
        return
    said = {**report.as_dict(), "warnings": [warning.as_dict() for warning in report.warnings]}
    known = {"source": source, "owner": ownership(info), "pieces": pieces, "report": said}
    data = json.dumps(known).encode("ascii")
    hostmemory.keep(path, [digest.blake(data), data])


def proven(output: str, source: str, threads: int, progress: Progress) -> PackReport | None:
    """The report on the archive that packing would give, if that lies there already, with every byte it should have.

    Its time is then now, for make and its like. It is not used if others have a part in it: another user's, one with
    further names or another mode.

    Parameters
    ----------
    source : the `source_digest` of what is to be packed.
    """
    known = _remembered(output)
    if known is None or known.source != source:
        return None
    total = sum(piece.n_bytes for piece in known.pieces)
    descriptor = opened_if_regular(output)
    if descriptor is None:
        return None

    def is_whole(piece: Piece) -> bool:
        return digest.blake(pagecache.read(descriptor, piece.n_bytes, piece.offset)).hex() == piece.digest

    try:
        info = os.fstat(descriptor)
        if info.st_size != total or info.st_uid != os.geteuid() or ownership(info) != known.owner:
            return None
        done = 0
        for piece, whole in zip(known.pieces, ordered_map(is_whole, known.pieces, threads), strict=True):
            if not whole:
                return None
            done += piece.n_bytes
            progress("verify", done, total, "")
        os.utime(descriptor)
    except OSError:  # it cannot be read
        return None
    finally:
        os.close(descriptor)
    return known.report


class _Known(NamedTuple):
    source: str
    owner: list[int]
    pieces: list[Piece]
    report: PackReport


def _remembered(output: str) -> _Known | None:
    path = hostmemory.place(_KIND, output)
    if path is None:
        return None
    try:
        data = read_regular(path)
    except OSError:
        return None
    data, digest_ = data[digest.N_BYTES :], data[: digest.N_BYTES]
    if digest.blake(data) != digest_:
        return None
    hostmemory.touch(path)
    try:
        table = json.loads(data)
        pieces = [Piece(*row) for row in table["pieces"]]
        return _Known(table["source"], table["owner"], pieces, _as_report(table["report"]))
    except (ValueError, TypeError, LookupError):  # another version's
        return None


def _as_report(said: dict[str, Any]) -> PackReport:
    lists = {name: tuple(said[name]) for name in ("prefixes", "not_relocated", "limited")}
    groups = {what: tuple(names) for what, names in said["groups"].items()}
    warnings = tuple(Warned(**row) for row in said["warnings"])
    return PackReport(**{**said, **lists, "groups": groups, "warnings": warnings})

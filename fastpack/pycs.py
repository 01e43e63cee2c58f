"""What becomes of each ``.pyc`` (row 13 of the relocation table), and how it says which source it was compiled from."""

from __future__ import annotations

import re
import struct

from fastpack import digest
from fastpack._marshal_py import MAGICS
from fastpack._place_py import Stated
from fastpack.environment import Environment, source_of_pyc
from fastpack.examination import Examination, Examined
from fastpack.model import Verdict
from fastpack.native import marshal
from fastpack.parallel import ordered_map
from fastpack.reading import open_source, read_whole, runs_of
from fastpack.relocation import ArchiveForm, Edit, apply_edits

#: Bytes of a ``.pyc``'s header.
PYC_HEADER = 16


class PycAction:
    """What becomes of a ``.pyc`` that is not the package's own any more."""

    AS_IT_IS = "as-it-is"
    FOLLOW = "follow"  # its header gets the source's new mtime
    DROP = "drop"
    LEAVE_OUT = "leave-out"  # since that was asked for


class PycPolicy:
    """``--pyc``: how ``.pyc`` files say which source they were compiled from (PEP 552)."""

    TIMESTAMP = "timestamp"
    CHECKED_HASH = "checked-hash"
    DROP = "drop"
    ALL = (TIMESTAMP, CHECKED_HASH, DROP)


_STATED = struct.Struct("<II")
_WITHOUT_SOURCE = "without source"
#: How Python names what it caches (PEP 3147, PEP 488): ``cpython-313t``, ``pypy310``, ``.opt-1``.
_OF_PYTHON = re.compile(r"\.[a-z]+-?[0-9]+[a-z]*(?:\.opt-[a-z0-9]+)?\.pyc$")


def _timestamp(header: bytes) -> tuple[int, int] | None:
    """(source mtime, source size) of a timestamp-based ``.pyc`` (PEP 552); None for a hash-based or broken one."""
    if len(header) < PYC_HEADER or header[2:8] != b"\r\n\0\0\0\0":
        return None
    mtime, size = _STATED.unpack_from(header, 8)
    return mtime, size


def decide_pycs(env: Environment, result: Examination, leave_out: bool) -> None:
    """What becomes of each ``.pyc``, and which sources must keep the mtime that their proven ``.pyc`` names.

    Parameters
    ----------
    leave_out : all of them, but for those that are modules by themselves.
    """
    unchanged = (Verdict.PROVEN, Verdict.STRUCTURAL, Verdict.PLACED)
    files = result.files
    pycs = [(path, found, source_of_pyc(path)) for path, found in files.items() if path.endswith(".pyc")]
    for _, examined, source in pycs:
        stated = _timestamp(examined.pyc_header) if examined.verdict is Verdict.PROVEN else None
        found = None if stated is None else result.of(source)
        if stated is None or found is None:
            continue
        if found.verdict in unchanged and not found.form.relocations and not found.form.edits:
            result.forced_mtimes.setdefault(source, stated[0])
    if leave_out:
        result.forced_mtimes.clear()
    counts: list[str] = []
    for path, examined, source in pycs:
        found = result.of(source)
        if leave_out and ("__pycache__/" in path or found is not None):
            result.pyc[path] = PycAction.LEAVE_OUT
            continue
        result.pyc[path], count = _decide_pyc(env, path, examined, source, found)
        counts.append(count)
        if count == _WITHOUT_SOURCE and examined.verdict is Verdict.UNMANAGED and _timestamp(examined.pyc_header):
            # Nobody will ask when its source was changed: that is an accident.
            edits = (Edit(8, 4, bytes(4)), *examined.form.edits)
            files[path] = examined._replace(form=examined.form._replace(edits=edits))
        if not examined.understood and result.pyc[path] != PycAction.DROP:
            counts.append("compiled by an unknown Python")
    result.pyc_counts.update(counts)


def _decide_pyc(
    env: Environment, path: str, examined: Examined, source: str, found: Examined | None
) -> tuple[str, str]:
    """What becomes of a ``.pyc``, and why; `found` is its source, if that is there."""
    if examined.verdict is Verdict.PROVEN:
        return PycAction.AS_IT_IS, "proven"
    managed = examined.verdict is not Verdict.UNMANAGED
    if not managed and "__pycache__/" in path and not _OF_PYTHON.search(path):
        # pytest's, say: it loads these itself, and makes them anew.
        return PycAction.DROP, "dropped: of another tool"
    if found is None:
        if managed or "__pycache__/" not in path:
            return PycAction.AS_IT_IS, _WITHOUT_SOURCE
        return PycAction.DROP, "dropped: no source"
    if found.form.edits or found.form.relocations:
        if managed and examined.verdict is not Verdict.RECOMPILED:
            return PycAction.AS_IT_IS, "kept stale: source names the prefix"
        # Of no use at any other prefix, and it names this one.
        return PycAction.DROP, "dropped: source names the prefix"
    header = examined.pyc_header
    if not header:
        file = env.files[path]
        with open_source(env.prefix, file) as (_, pread):
            header = pread(min(PYC_HEADER, file.n_bytes), 0)
    disk = env.files[source]
    if _timestamp(header) == (disk.mtime_ns // 1_000_000_000 & 0xFFFFFFFF, disk.n_bytes & 0xFFFFFFFF):
        return PycAction.FOLLOW, "valid"
    if len(header) == PYC_HEADER and header[2:4] == b"\r\n" and header[4] & 1:
        return PycAction.AS_IT_IS, "hash-based"
    if managed:
        return PycAction.AS_IT_IS, "kept stale"
    return PycAction.DROP, "dropped: out of date"


def hash_pycs(env: Environment, result: Examination, folder: int, threads: int) -> None:
    """Let every valid ``.pyc`` of a known Python state its source's hash in place of the source's time."""
    found: list[tuple[str, int]] = []
    for path, action in result.pyc.items():
        header = result.files[path].pyc_header
        stated = _timestamp(header)
        source = env.files.get(source_of_pyc(path))
        magic = int.from_bytes(header[:2], "little")
        if stated is None or source is None or magic not in MAGICS:
            continue
        # As it will be: _decide_pyc has looked at the others.
        proven = stated[0] == result.forced_mtimes.get(source.path) and stated[1] == source.n_bytes & 0xFFFFFFFF
        if action == PycAction.FOLLOW or (result.files[path].verdict is Verdict.PROVEN and proven):
            found.append((path, magic))
    sources = [env.files[source_of_pyc(path)] for path, _ in found]
    sizes = [file.n_bytes for file in sources]

    def run(chosen: slice) -> list[Examined]:
        data, starts = read_whole(folder, env.prefix, sources[chosen])
        hashes = marshal.source_hashes(data, starts[:-1], sizes[chosen], [magic for _, magic in found[chosen]])
        return [
            _with_hash(env, path, result.files[path], hashes[8 * k : 8 * k + 8])
            for k, (path, _) in enumerate(found[chosen])
        ]

    runs = list(runs_of(sizes))
    for chosen, examined in zip(runs, ordered_map(run, runs, threads), strict=True):
        result.files.update(zip((path for path, _ in found[chosen]), examined, strict=True))
    for path, _ in found:
        result.pyc[path] = PycAction.AS_IT_IS
    # Only a time that is still stated must be kept: so packing what was unpacked gives the same again.
    stated_still = {
        source_of_pyc(path)
        for path in result.pyc
        if result.files[path].verdict is Verdict.PROVEN and _timestamp(result.files[path].pyc_header) is not None
    }
    result.forced_mtimes = {path: time for path, time in result.forced_mtimes.items() if path in stated_still}
    result.pyc_counts["stated by hash"] = len(found)


def _with_hash(env: Environment, path: str, found: Examined, source_hash: bytes) -> Examined:
    """A ``.pyc`` whose header says: a hash, to be checked (flags 3), and the hash; with what records state of it."""
    edit = Edit(4, 12, (3).to_bytes(4, "little") + source_hash)
    form = ArchiveForm((edit, *found.form.edits), found.form.relocations)
    found = found._replace(form=form, pyc_header=b"")
    if path not in env.entries:
        return found
    file = env.files[path]
    with open_source(env.prefix, file) as (_, pread):
        data = pread(file.n_bytes, 0)
    return found._replace(
        archived=Stated(digest.sha256(apply_edits(data, form.edits)), form.n_bytes(file.n_bytes)),
        on_disk=Stated(digest.sha256(data), file.n_bytes),
    )

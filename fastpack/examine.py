"""The planning pass: every file's verdict and archive form (DESIGN sections 4 and 5). Reads, changes nothing."""

from __future__ import annotations

import itertools
import os
import re
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from fastpack import digest
from fastpack._place_py import Stated
from fastpack.environment import Environment, source_of_pyc
from fastpack.errors import ChangedWhileRead, Unreadable
from fastpack.model import PLACEHOLDER, DiskFile, Kind, PathEntry, Record, Verdict
from fastpack.parallel import ordered_map
from fastpack.relocation import (
    AS_IT_IS,
    WINDOW,
    ArchiveForm,
    Header,
    PRead,
    Prefixes,
    apply_edits,
    binary_variants,
    direct_url_form,
    history_form,
    is_binary,
    is_unique,
    kernel,
    pip_record_form,
    record_form,
    record_paths,
    relocatable_header,
    restore_binary,
    scan_binary,
    scan_unmanaged_text,
    script_header,
    sha256_of,
    spelling,
    text_form,
    text_variants,
    with_header,
)

#: Managed files without a placeholder are held against their sha256 up to this size, larger ones against their size.
CHECKED_BY_DIGEST = 1 << 20
#: Files handed to a thread at once: one round trip through the executor for many small files.
_CHUNK = 64


@dataclass(frozen=True, slots=True)
class Examined:
    """What the planning pass found out about a regular file."""

    verdict: Verdict
    form: ArchiveForm = AS_IT_IS
    placeholder: bytes = PLACEHOLDER
    archived: Stated | None = None  # sha256 and size of the archive form, where the form is not the disk's
    on_disk: Stated | None = None
    not_relocated: str = ""  # why, if it names the prefix and stays as it is
    pyc_source_mtime: int | None = None  # of a proven .pyc with a timestamp: what its header says


class PycAction:
    """What becomes of a ``.pyc`` that is not the package's own any more."""

    AS_IT_IS = "as-it-is"
    FOLLOW = "follow"  # its header gets the source's new mtime
    DROP = "drop"


@dataclass(slots=True)
class Examination:
    """The planning pass's results, by path."""

    prefixes: Prefixes
    files: dict[str, Examined] = field(default_factory=dict)
    pyc: dict[str, str] = field(default_factory=dict)  # path -> PycAction
    forced_mtimes: dict[str, int] = field(default_factory=dict)  # source -> what its proven .pyc says
    pyc_counts: Counter[str] = field(default_factory=Counter)


# --- reading ---------------------------------------------------------------------------------------------------------


def changed(path: str, what: str) -> ChangedWhileRead:
    """The error for a file that is not what it was when the environment was listed."""
    return ChangedWhileRead(
        f"a file {what} while the environment was read", path=path, hint="let nothing write to it and pack again"
    )


@contextmanager
def open_source(prefix: str, file: DiskFile) -> Iterator[tuple[int, PRead]]:
    """An environment's file, opened for reading: (descriptor, pread); checked before and after to be what was listed.

    Raises
    ------
    Unreadable, ChangedWhileRead
    """
    path = os.path.join(prefix, file.path)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise changed(path, "vanished") from None
    except OSError as error:
        raise Unreadable(f"a file cannot be read ({error.strerror})", path=path) from None

    def same() -> bool:
        info = os.fstat(descriptor)
        return info.st_size == file.n_bytes and info.st_mtime_ns == file.mtime_ns

    try:
        if not same():
            raise changed(path, "changed")

        def pread(n_bytes: int, offset: int) -> bytes:
            try:
                data = os.pread(descriptor, n_bytes, offset)
                while len(data) < n_bytes and offset + len(data) < file.n_bytes:
                    more = os.pread(descriptor, n_bytes - len(data), offset + len(data))
                    if not more:
                        raise changed(path, "became shorter")
                    data += more
            except OSError as error:
                raise Unreadable(f"a file cannot be read ({error.strerror})", path=path) from None
            return data

        yield descriptor, pread
        if not same():
            raise changed(path, "changed")
    finally:
        os.close(descriptor)


def _buffered(pread: PRead, n_bytes: int) -> tuple[PRead, bytes | None]:
    """A small file is read once, and served from memory from then on."""
    if n_bytes > WINDOW:
        return pread, None
    data = pread(n_bytes, 0)
    return _from_memory(data), data


def _from_memory(data: bytes) -> PRead:
    return lambda n_bytes, offset: data[offset : offset + n_bytes]


# --- verdicts --------------------------------------------------------------------------------------------------------


def examine(
    env: Environment,
    *,
    threads: int,
    verify_source: bool = False,
    prefix_is_unique: bool | None = None,
    progress: Callable[[int, str], None] = lambda n_bytes, group: None,
) -> Examination:
    """Read what has to be read to know every file's archive form; see DESIGN section 4 for the verdicts.

    Parameters
    ----------
    verify_source : hold every managed file against its sha256, however large.
    prefix_is_unique : apply rows 6 and 8 even to a prefix like ``/usr/local``.
    progress : called with bytes read and the group's name.
    """
    prefixes = Prefixes((os.fsencode(path) for path in source_prefixes(env)), prefix_is_unique or None)
    result = Examination(prefixes)
    excluded = env.excluded()
    untouchable = frozenset().union(*(distribution.untouchable for distribution in env.distributions))
    record_files = {record.path for record in env.records}
    pip_records = {f"{distribution.folder}/RECORD" for distribution in env.distributions}
    todo = [
        file
        for file in env.files.values()
        if file.kind is Kind.FILE
        and file.path not in record_files
        and file.path not in pip_records
        and file.path not in excluded
    ]

    def run(chunk: Sequence[DiskFile]) -> list[tuple[str, Examined]]:
        return [(file.path, _examine_file(env, file, prefixes, untouchable, verify_source)) for file in chunk]

    chunks = [todo[start : start + _CHUNK] for start in range(0, len(todo), _CHUNK)]
    for chunk, found in zip(chunks, ordered_map(run, chunks, threads), strict=True):
        result.files.update(found)
        progress(sum(file.n_bytes for file in chunk), "")
    _decide_pycs(env, result)
    _examine_records(env, result)
    return result


def source_prefixes(env: Environment) -> list[str]:
    """C as a set (DESIGN section 4): the given path, its real path, and earlier ones that its own files prove.

    An environment that was moved still names its old place. Candidates are what first lines and history name, and the
    paths in files that a known prefix does not explain. One counts if taking it out of a managed file gives the
    package's own sha256, or if our own state file says it.
    """
    known = list(dict.fromkeys([env.prefix, os.path.realpath(env.prefix)]))
    # What our state says counts, unless it is a place that means many things (an image root's /usr).
    known += [path for path in env.earlier_prefixes if path not in known and is_unique(os.fsencode(path))]
    for candidate in [*env.earlier_prefixes, *_named_prefixes(env)]:
        if candidate not in known and _proves(env, candidate):
            known.append(candidate)
    for _ in range(8):
        guessed = _guess_prefix(env, known)
        if guessed is None:
            break
        known.append(guessed)
    return known


def _named_prefixes(env: Environment) -> list[str]:
    """Prefixes that scripts' first lines and history name, the most frequent first."""
    candidates: Counter[str] = Counter()
    for path, file in env.files.items():
        if path == "conda-meta/history" and file.kind is Kind.FILE:
            with open_source(env.prefix, file) as (_, pread):
                text = pread(file.n_bytes, 0)
            for match in re.finditer(rb"^# cmd:.* (?:-p|--prefix)[ =](/[^\n]*?)(?= -|\n| \S+$)", text, re.MULTILINE):
                candidates[os.fsdecode(match[1])] += 1
        if not path.startswith("bin/") or file.kind is not Kind.FILE or not file.mode & 0o111:
            continue
        with open_source(env.prefix, file) as (_, pread):
            head = pread(min(4096, file.n_bytes), 0)
        if not head.startswith(b"#!"):
            continue
        for match in re.finditer(rb"(/[^\n]*?)/bin/[\w.+-]+(?=[\"'\s]|\Z)", b"\n".join(head.split(b"\n", 2)[:2])):
            candidates[os.fsdecode(match[1])] += 1
    return [place for place, _ in candidates.most_common(16) if len(place) > 1]


def _guess_prefix(env: Environment, known: Sequence[str]) -> str | None:
    """A prefix that the bytes of some managed file give away, where none that is known stands in it."""
    needles = [os.fsencode(path) for path in known]
    files = [
        (env.files[path], entry)
        for path, (_, entry) in env.entries.items()
        if entry.placeholder and entry.sha256 and entry.sha256 != entry.sha256_in_prefix
        and env.files[path].kind is Kind.FILE and env.files[path].n_bytes <= 1 << 16
    ]  # fmt: skip
    tried = 0
    for file, entry in sorted(files, key=lambda row: row[0].n_bytes):
        with open_source(env.prefix, file) as (_, pread):
            data = pread(file.n_bytes, 0)
        if os.fsencode(entry.placeholder or "") in data or kernel.find(data, needles):
            continue
        pattern = rb"/[^\0]+" if entry.file_mode == "binary" else rb"/[^\0\n\r]+"
        places: dict[bytes, None] = {}
        for match in list(re.finditer(pattern, data))[:20]:
            text = match[0]
            ends = [k for k in range(1, len(text)) if text[k] in b"/\"':;, <>)"] + [len(text)]
            places.update((text[:end], None) for end in ends[:40] if end <= len(entry.placeholder or ""))
        for place in list(places)[:400]:
            if place[-1:] != b"/" and place not in needles:
                prefixes = Prefixes([place])
                if _takes_out(file, entry, prefixes, data):
                    return os.fsdecode(place)
        tried += 1
        if tried >= 10:
            return None
    return None


def _takes_out(file: DiskFile, entry: PathEntry, prefixes: Prefixes, data: bytes) -> bool:
    """Whether taking a prefix out of a file gives the package's hash; not a file that is in normal form anyway, nor one
    whose first line an installer rewrote to ``#!/usr/bin/env``, which says nothing of ``/usr``."""
    placeholder, pread = os.fsencode(entry.placeholder or ""), _from_memory(data)
    forms: Iterator[ArchiveForm]
    if entry.file_mode == "binary":
        strings = scan_binary(pread, len(data), prefixes.plain, len(placeholder))
        variants = binary_variants(strings, prefixes.plain, pread, len(data))
        forms = (restore_binary(chosen, prefixes.plain, placeholder)[0] for chosen in variants)
    else:
        forms = (form for form, _ in text_variants(data, prefixes, placeholder))
    # The likely ones alone: a guess is made for many candidates.
    for form in itertools.islice(forms, 4):
        replaced = [data[edit.offset : edit.offset + edit.length] for edit in form.edits]
        named = any(prefixes.plain[0] in old and not old.startswith(b"#!/usr/bin/env ") for old in replaced)
        if named and digest.sha256(apply_edits(data, form.edits)) == entry.sha256:
            return True
    return False


def _proves(env: Environment, candidate: str) -> bool:
    """Whether an earlier prefix explains the bytes of some managed file."""
    prefixes = Prefixes([os.fsencode(candidate)])
    tried = 0
    for path, (_, entry) in env.entries.items():
        file = env.files[path]
        if not entry.placeholder or not entry.sha256 or file.kind is not Kind.FILE or file.n_bytes > 1 << 16:
            continue
        with open_source(env.prefix, file) as (_, pread):
            data = pread(file.n_bytes, 0)
        if os.fsencode(candidate) not in data:
            continue
        if _takes_out(file, entry, prefixes, data):
            return True
        tried += 1
        if tried > 50:
            break
    return False


def _examine_file(
    env: Environment, file: DiskFile, prefixes: Prefixes, untouchable: frozenset[str], verify_source: bool
) -> Examined:
    claim = env.entries.get(file.path)
    is_pyc = file.path.endswith(".pyc")
    with open_source(env.prefix, file) as (_, read):
        if claim is not None:
            found = _examine_managed(file, claim[1], prefixes, read, is_pyc, verify_source)
            # Of several packages that have this path, the one counts whose file it is.
            for _, entry in env.other_claims.get(file.path, ()):
                if found.verdict not in (Verdict.MODIFIED, Verdict.RECOMPILED):
                    break
                other = _examine_managed(file, entry, prefixes, read, is_pyc, verify_source)
                found = other if other.verdict not in (Verdict.MODIFIED, Verdict.RECOMPILED) else found
            return found
        if is_pyc or file.path in untouchable:
            return Examined(Verdict.UNMANAGED)
        pread, data = _buffered(read, file.n_bytes)
        return _examine_unmanaged(file, prefixes, pread, data, Verdict.UNMANAGED)


def _examine_managed(
    file: DiskFile, entry: PathEntry, prefixes: Prefixes, pread: PRead, is_pyc: bool, verify_source: bool
) -> Examined:
    if is_pyc and entry.placeholder is None:
        pread, data = _buffered(pread, file.n_bytes)
        if entry.sha256 is None:
            return Examined(Verdict.STRUCTURAL)
        if sha256_of(pread, file.n_bytes) != entry.sha256:
            return Examined(Verdict.RECOMPILED)
        header = _timestamp(pread(16, 0))
        return Examined(Verdict.PROVEN, pyc_source_mtime=None if header is None else header[0])
    entry_point = "entry_point" in entry.path_type
    if entry.placeholder is None and not entry_point:
        if entry.sha256 is not None and (file.n_bytes <= CHECKED_BY_DIGEST or verify_source):
            pread, data = _buffered(pread, file.n_bytes)
            found = sha256_of(pread, file.n_bytes)
            if found == entry.sha256:
                return Examined(Verdict.PROVEN)
            verdict = Verdict.PLACED if found == entry.sha256_in_prefix else Verdict.MODIFIED
            return _examine_unmanaged(file, prefixes, pread, data, verdict)
        if entry.n_bytes is not None:
            if file.n_bytes == entry.n_bytes:
                return Examined(Verdict.STRUCTURAL)
            pread, data = _buffered(pread, file.n_bytes)
            return _examine_unmanaged(file, prefixes, pread, data, Verdict.MODIFIED)
        pread, data = _buffered(pread, file.n_bytes)
        return _examine_unmanaged(file, prefixes, pread, data, Verdict.STRUCTURAL)
    pread, data = _buffered(pread, file.n_bytes)
    if entry_point:
        found = sha256_of(pread, file.n_bytes)
        known = {digest_ for digest_ in (entry.sha256, entry.sha256_in_prefix) if digest_}
        verdict = Verdict.STRUCTURAL if not known else Verdict.PLACED if found in known else Verdict.MODIFIED
        return _examine_unmanaged(file, prefixes, pread, data, verdict)
    examined, _ = _managed_with_placeholder(file, entry, prefixes, pread, data)
    return examined


def _finish(
    file: DiskFile, form: ArchiveForm, pread: PRead, verdict: Verdict, placeholder: bytes, why: str = ""
) -> Examined:
    """Add the hashes that records and relocations.json state, where the archive form is not the disk's."""
    if not form.edits and not form.relocations:
        return Examined(verdict, placeholder=placeholder, not_relocated=why)
    return Examined(
        verdict,
        form,
        placeholder,
        Stated(sha256_of(pread, file.n_bytes, form.edits), form.n_bytes(file.n_bytes)),
        Stated(sha256_of(pread, file.n_bytes), file.n_bytes),
        why,
    )


def _managed_with_placeholder(
    file: DiskFile, entry: PathEntry, prefixes: Prefixes, pread: PRead, data: bytes | None
) -> tuple[Examined, bool]:
    """A managed file with a placeholder: (what is known, whether its normal form was proven)."""
    placeholder = os.fsencode(entry.placeholder or "")
    binary = entry.file_mode == "binary"
    header: Header | None = None
    why = ""
    proven = False
    if binary:
        strings = scan_binary(pread, file.n_bytes, prefixes.plain, len(placeholder))
        form, natural = restore_binary(strings, prefixes.plain, placeholder)
        for chosen in binary_variants(strings, prefixes.plain, pread, file.n_bytes):
            variant, _ = restore_binary(chosen, prefixes.plain, placeholder)
            if entry.sha256 is not None and sha256_of(pread, file.n_bytes, variant.edits) == entry.sha256:
                form, proven = variant, True
                break
        if natural and not proven:
            why = "a string names the prefix without room for a longer one"
    elif data is not None:
        variants = text_variants(data, prefixes, placeholder)
        form, header = first = next(variants)
        while True:
            if entry.sha256 is not None and digest.sha256(apply_edits(data, form.edits)) == entry.sha256:
                proven = True
                break
            following = next(variants, None) if entry.sha256 is not None else None
            if following is None:
                form, header = first
                break
            form, header = following
    else:
        hits = [(at + hit, index) for at, hit, index in _big_hits(pread, file.n_bytes, prefixes.plain)]
        form = text_form(hits, prefixes.plain, ["text"] * len(hits), placeholder)
        proven = entry.sha256 is not None and sha256_of(pread, file.n_bytes, form.edits) == entry.sha256
    verdict = Verdict.PROVEN
    if not proven:
        on_disk = sha256_of(pread, file.n_bytes)
        if entry.sha256_in_prefix is not None and on_disk == entry.sha256_in_prefix:
            verdict = Verdict.PLACED
            if not form.relocations and entry.sha256 not in (None, on_disk):
                why = "it names a prefix that this environment does not have, and that is not known"
        elif entry.sha256 is None:
            verdict = Verdict.STRUCTURAL
        else:
            return _examine_modified(file, prefixes, pread, data), False
    if header is not None:
        archive_header = None
        if file.mode & 0o111 and data is not None:
            normal = apply_edits(data, form.edits)
            body = normal[len(header.true) :]
            archive_header = relocatable_header(header.true, placeholder, file.path, body)
            if archive_header is None:
                why = "its first line needs bin/conda-unpack before it starts"
        form = with_header(form, header, archive_header or header.true)
    return _finish(file, form, pread, verdict, placeholder, why), proven


def _big_hits(pread: PRead, n_bytes: int, needles: Sequence[bytes]) -> Iterator[tuple[int, int, int]]:
    """Hits in a file larger than the window, which may cross windows' edges: (window, offset in it, needle)."""
    margin = max(len(needle) for needle in needles) - 1
    offset = 0
    while offset < n_bytes:
        data = pread(WINDOW, offset)
        final = offset + len(data) >= n_bytes
        resume = len(data) if final else len(data) - margin
        for hit, index in kernel.find(data, needles):
            if hit >= resume:
                break
            yield offset, hit, index
            resume = max(resume, hit + len(needles[index]))
        offset += resume


def _examine_modified(file: DiskFile, prefixes: Prefixes, pread: PRead, data: bytes | None) -> Examined:
    """A managed file with a placeholder, changed since: by structure where that can be undone, else as found."""
    if not is_binary(pread, file.n_bytes):
        return _examine_unmanaged(file, prefixes, pread, data, Verdict.MODIFIED)
    strings = scan_binary(pread, file.n_bytes, prefixes.plain, len(PLACEHOLDER))
    form, natural = restore_binary(strings, prefixes.plain, PLACEHOLDER)
    if natural:
        return Examined(Verdict.MODIFIED, not_relocated="a changed binary names the prefix outside of padded strings")
    return _finish(file, form, pread, Verdict.MODIFIED, PLACEHOLDER)


def _examine_unmanaged(
    file: DiskFile, prefixes: Prefixes, pread: PRead, data: bytes | None, verdict: Verdict
) -> Examined:
    """Rows 8, 12 and 16 for a file that no package manager wrote with a placeholder."""
    if data is not None and file.path.endswith(".dist-info/direct_url.json"):
        return _finish(file, direct_url_form(data, prefixes), pread, verdict, PLACEHOLDER)
    if data is not None and file.path == "conda-meta/history":
        history = history_form(data)
        return _finish(file, history, pread, verdict, PLACEHOLDER)
    if data is not None:
        if b"\0" in data:
            hits = None
            named = bool(kernel.find(data, prefixes.in_binaries))
        else:
            hits = kernel.find_text(data, prefixes.spelled)
            named = False
    else:
        hits = scan_unmanaged_text(pread, file.n_bytes, prefixes)
        named = hits is None and _names(pread, file.n_bytes, prefixes.in_binaries)
    if hits is None:
        why = "an unmanaged binary that names the prefix" if named else ""
        return Examined(verdict, not_relocated=why)
    head = data if data is not None else pread(1 << 16, 0)
    header = script_header(head, prefixes, PLACEHOLDER) if file.mode & 0o111 else None
    if not hits and header is None:
        return Examined(verdict)
    kinds = [
        spelling(pread(16, max(0, offset - 16)), file.path, min(offset, 16), prefixes.kinds[index])
        for offset, index in hits
    ]
    form = text_form(hits, prefixes.spelled, kinds, PLACEHOLDER)
    why = ""
    if header is not None:
        archive_header = relocatable_header(header.true, PLACEHOLDER, file.path, head[header.length :])
        if archive_header is None:
            why = "its first line needs bin/conda-unpack before it starts"
        form = with_header(form, header, archive_header or header.true)
    return _finish(file, form, pread, verdict, PLACEHOLDER, why)


def _names(pread: PRead, n_bytes: int, needles: Sequence[bytes]) -> bool:
    return bool(needles) and next(_big_hits(pread, n_bytes, needles), None) is not None


# --- .pyc (row 13) ---------------------------------------------------------------------------------------------------


def _timestamp(header: bytes) -> tuple[int, int] | None:
    """(source mtime, source size) of a timestamp-based ``.pyc`` (PEP 552); None for a hash-based or broken one."""
    if len(header) < 16 or header[2:4] != b"\r\n" or header[4:8] != b"\0\0\0\0":
        return None
    mtime, size = struct.unpack_from("<II", header, 8)
    return mtime, size


def _decide_pycs(env: Environment, result: Examination) -> None:
    """What becomes of each ``.pyc``, and which sources must keep the mtime that their proven ``.pyc`` names."""
    unchanged = (Verdict.PROVEN, Verdict.STRUCTURAL, Verdict.PLACED)
    pycs = [path for path in result.files if path.endswith(".pyc")]
    for path in pycs:
        examined = result.files[path]
        source = source_of_pyc(path)
        found = result.files.get(source or "")
        if examined.pyc_source_mtime is None or source is None or found is None:
            continue
        if found.verdict in unchanged and not found.form.relocations and not found.form.edits:
            result.forced_mtimes.setdefault(source, examined.pyc_source_mtime)
    for path in pycs:
        examined = result.files[path]
        if examined.verdict is Verdict.PROVEN:
            result.pyc[path] = PycAction.AS_IT_IS
            result.pyc_counts["proven"] += 1
            continue
        managed = examined.verdict is not Verdict.UNMANAGED
        action, count = _decide_pyc(env, result, path, managed)
        result.pyc[path] = action
        result.pyc_counts[count] += 1


def _decide_pyc(env: Environment, result: Examination, path: str, managed: bool) -> tuple[str, str]:
    source = source_of_pyc(path) or ""
    in_cache = "__pycache__/" in path
    found = result.files.get(source)
    if found is None:
        if managed or not in_cache:
            return PycAction.AS_IT_IS, "without source"
        return PycAction.DROP, "dropped: no source"
    rewritten = bool(found.form.edits or found.form.relocations)
    file, disk = env.files[path], env.files[source]
    with open_source(env.prefix, file) as (_, pread):
        header = pread(min(16, file.n_bytes), 0)
    if rewritten:
        if managed:
            return PycAction.AS_IT_IS, "kept stale: source names the prefix"
        return PycAction.DROP, "dropped: source names the prefix"
    if len(header) == 16 and header[2:4] == b"\r\n" and header[4] & 1:
        return PycAction.AS_IT_IS, "hash-based"
    stated = _timestamp(header)
    valid = stated == (disk.mtime_seconds & 0xFFFFFFFF, disk.n_bytes & 0xFFFFFFFF)
    if valid:
        return PycAction.FOLLOW, "valid"
    if managed:
        return PycAction.AS_IT_IS, "kept stale"
    return PycAction.DROP, "dropped: out of date"


# --- records and RECORD (row 16) -------------------------------------------------------------------------------------


def _examine_records(env: Environment, result: Examination) -> None:
    archived = {path: found.archived for path, found in result.files.items() if found.archived is not None}
    on_disk = {path: found.on_disk for path, found in result.files.items() if found.on_disk is not None}
    # Excluded files are not in these tables: what is stated of them stays.
    relocated = frozenset(path for path, found in result.files.items() if found.form.relocations)
    for record in env.records:
        file = env.files.get(record.path)
        if file is None or file.kind is not Kind.FILE:
            continue
        own = {entry.path for entry in record.entries} & relocated
        with open_source(env.prefix, file) as (_, pread):
            data = pread(file.n_bytes, 0)
        form = record_form(data, {p: archived[p] for p in own}, {p: on_disk[p] for p in own})
        result.files[record.path] = _finish(file, form, _from_memory(data), Verdict.UNMANAGED, PLACEHOLDER)
    for distribution in env.distributions:
        path = f"{distribution.folder}/RECORD"
        file = env.files[path]
        with open_source(env.prefix, file) as (_, pread):
            data = pread(file.n_bytes, 0)
        own = {name for name, _, _ in record_paths(data, distribution.root)} & archived.keys()
        form = pip_record_form(
            data, distribution.root, {p: archived[p] for p in own}, {p: on_disk[p] for p in own}, relocated
        )
        result.files[path] = _finish(file, form, _from_memory(data), Verdict.UNMANAGED, PLACEHOLDER)


def likely_cause(env: Environment, path: str, record: Record) -> str:
    """Why a managed file may be gone or changed, for people."""
    claims = [str(d.group) for d in env.distributions if path in d.paths or d.group.name.lower() == record.name.lower()]
    if claims:
        return f"pip installed {claims[0].removeprefix('pip ')} over it"
    others = [name for clobbered, names in env.clobbered if clobbered == path for name in names if name != record.name]
    if others:
        return f"package {others[0]} has the same path"
    return "changed by hand or by another tool"


def modified(env: Environment, result: Examination) -> Mapping[str, Record]:
    """The managed files that are not what was installed, with the record that claims each."""
    return {
        path: env.entries[path][0]
        for path, found in result.files.items()
        if found.verdict is Verdict.MODIFIED and path in env.entries
    }

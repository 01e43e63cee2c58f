"""The planning pass: every file's verdict and archive form (DESIGN sections 4 and 5). Reads, changes nothing."""

from __future__ import annotations

import functools
import itertools
import os
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import NamedTuple

from fastpack import digest
from fastpack._place_py import Mismatch, Stated, with_pad
from fastpack.along import brought_to
from fastpack.environment import Environment
from fastpack.examination import UNTOUCHED, Examination, Examined
from fastpack.fs import resolve
from fastpack.model import PLACEHOLDER, DiskFile, Kind, PathEntry, Record, Verdict
from fastpack.native import kernel, marshal
from fastpack.parallel import ordered_map
from fastpack.prefixes import source_prefixes
from fastpack.pycs import PYC_HEADER, PycPolicy, decide_pycs, hash_pycs
from fastpack.reading import buffered, from_memory, open_folder, open_source, read_names, read_whole, runs_of
from fastpack.record_forms import pip_record_form, record_form
from fastpack.relocation import (
    AS_IT_IS,
    NEEDS_UNPACK,
    WINDOW,
    ArchiveForm,
    Edit,
    Header,
    PRead,
    Prefixes,
    apply_edits,
    big_hits,
    binary_variants,
    is_binary,
    is_placed,
    is_unique,
    link_targets,
    relocatable_header,
    restore_binary,
    scan_binary,
    sha256_of,
    text_form,
    text_variants,
    unplacing_edits,
    with_header,
)
from fastpack.unmanaged import unmanaged_form
from fastpack.wide import both, wide_forms, with_wide_text

#: Managed files without a placeholder are held against their sha256 up to this size, larger ones against their size.
CHECKED_BY_DIGEST = 1 << 20
#: Files up to this size are read whole, many at once.
_SMALL = 1 << 20


def examine(
    env: Environment,
    *,
    threads: int,
    verify_source: bool = False,
    prefix_is_unique: bool | None = None,
    pyc: str = PycPolicy.TIMESTAMP,
    progress: Callable[[int, str], None] = lambda n_bytes, group: None,
) -> Examination:
    """Read what has to be read to know every file's archive form; see DESIGN section 4 for the verdicts.

    Parameters
    ----------
    verify_source : hold every managed file against its sha256, however large.
    prefix_is_unique : apply rows 6 and 8 even to a prefix like ``/usr/local``.
    pyc : ``timestamp`` as they are; ``checked-hash``, which outlives a tool that keeps no times; ``drop`` them.
    progress : called with bytes read and the group's name.
    """
    brought = {os.fsencode(path): os.fsencode(place) for path, place in env.brought.items()}
    paths = [os.fsencode(path) for path in source_prefixes(env)]
    unique = {path: place for path, place in brought.items() if prefix_is_unique or is_unique(path)}
    prefixes = Prefixes(paths, prefix_is_unique or None, unique)
    telling = Prefixes(paths, prefix_is_unique or None, brought)
    excluded = env.excluded()
    result = Examination(prefixes, env.files, excluded)
    untouchable = frozenset().union(*(distribution.untouchable for distribution in env.distributions))
    linked = _linked_elsewhere(env, prefixes)
    record_files = {record.path for record in env.records}
    pip_records = {f"{distribution.folder}/RECORD" for distribution in env.distributions}
    others = excluded.keys() | record_files | pip_records
    plain, todo = _split(env, others, untouchable)

    with open_folder(env.prefix) as folder:
        facts = _Facts(env, prefixes, telling, untouchable, _slots(env, prefixes), linked, verify_source, folder)
        # Most files of an environment name no prefix, and need no closer look.
        runs = [plain.part(run) for run in runs_of(plain.sizes)]
        for part, odd in zip(runs, ordered_map(functools.partial(_naming, facts), runs, threads), strict=True):
            todo += [env.files[path] for path in odd]
            progress(sum(part.sizes), "")
        # Large ones are not read whole.
        chunks = [todo[run] for run in runs_of([file.n_bytes if file.n_bytes <= _SMALL else 0 for file in todo])]
        run = functools.partial(_examine_many, facts)
        for chunk, found in zip(chunks, ordered_map(run, chunks, threads), strict=True):
            result.files.update(found)
            progress(sum(file.n_bytes for file in chunk), "")
        decide_pycs(env, result, pyc == PycPolicy.DROP)
        if pyc == PycPolicy.CHECKED_HASH:
            hash_pycs(env, result, folder, threads)
    _examine_records(env, result)
    return result


class _Unknown(NamedTuple):
    """Small files that nobody knows anything of, in columns: it is enough to see whether they name the prefix."""

    paths: list[str]
    modes: array[int]
    sizes: array[int]
    mtimes: array[int]

    def part(self, run: slice) -> _Unknown:
        """Some of them."""
        return _Unknown(self.paths[run], self.modes[run], self.sizes[run], self.mtimes[run])


def _split(env: Environment, others: Set[str], untouchable: frozenset[str]) -> tuple[_Unknown, list[DiskFile]]:
    """The regular files but for `others`: those that nobody knows anything of, and the rest."""
    files = env.files
    known = env.entries.keys() | env.recorded.keys() | untouchable
    known.update(env.telling if env.brought else ())
    known |= others
    sizes = files.column("n_bytes")
    chosen = [
        kind is Kind.FILE and n_bytes <= _SMALL and path not in known and not path.endswith(_WITH_FORM)
        for path, kind, n_bytes in zip(files.paths, files.kinds, sizes, strict=True)
    ]
    rest = [
        row
        for row, (path, kind, is_chosen) in enumerate(zip(files.paths, files.kinds, chosen, strict=True))
        if kind is Kind.FILE and not is_chosen and path not in others
    ]
    columns = (files.column("mode"), sizes, files.column("mtime_ns"))
    arrays = (array("q", itertools.compress(column, chosen)) for column in columns)
    return _Unknown(list(itertools.compress(files.paths, chosen)), *arrays), list(files.some(rest))


#: Files that have an archive form whatever they name.
_WITH_FORM = (".pyc", "conda-meta/history", "direct_url.json")


def _as_recorded(env: Environment, file: DiskFile, pread: PRead, found: Examined) -> Examined:
    """What fastpack itself recorded of a file is exact, where taking it out gives the sha256 of the archive form.

    So slots, paddings and first lines survive a form at a prefix that does not show them any more.
    """
    recorded = env.recorded.get(file.path)
    if recorded is None or recorded.second_phase or not recorded.items:
        return found
    names = [os.fsencode(name) for name in (*env.earlier_prefixes, env.prefix)]
    for source in dict.fromkeys([*names, None]):
        for pad in ([], ["conda"], ["slash"]):
            padded = with_pad(recorded, pad)
            edits: tuple[Edit, ...] = ()
            if source is not None and recorded.fits(source):
                try:
                    edits = unplacing_edits(padded.items, recorded.placeholder, source)
                    # The digest below says nothing of the bytes that are replaced.
                    if not is_placed(pread, padded.items, recorded.placeholder, source):
                        continue
                except Mismatch:
                    continue
            form = ArchiveForm(edits, padded.items)
            if form.n_bytes(file.n_bytes) != recorded.n_bytes:
                continue
            if sha256_of(pread, file.n_bytes, edits) == recorded.sha256:
                verdict, why = _as_installed(env, file, form, pread) or (found.verdict, found.not_relocated)
                finished = _finish(file, form, pread, verdict, recorded.placeholder, why)
                return finished._replace(pyc_header=found.pyc_header)
    return found


def _as_installed(env: Environment, file: DiskFile, form: ArchiveForm, pread: PRead) -> tuple[Verdict, str] | None:
    """The verdict, and what stays as it is, of a managed file whose archive form was recorded, if that proves it too:
    what the search says of a form at this prefix need not be what it said of the first one."""
    claim = env.entries.get(file.path)
    if claim is None or claim[1].sha256 is None:
        return None
    edits, why = form.edits, ""
    first = form.relocations[0]
    if first.kind == "shebang":
        true, archived = map(os.fsencode, first.value[:2])
        length = edits[0].length if edits else first.slot
        edits = (Edit(0, length, true), *edits[1:])
        why = NEEDS_UNPACK if true == archived and file.mode & 0o111 else ""
    return (Verdict.PROVEN, why) if sha256_of(pread, file.n_bytes, edits) == claim[1].sha256 else None


def _patched(entry: PathEntry) -> bool:
    """Whether a record without placeholders (micromamba's) says that its installer put the prefix into a file."""
    return (
        entry.placeholder is None
        and None not in (entry.sha256, entry.sha256_in_prefix)
        and entry.sha256 != entry.sha256_in_prefix
        and not entry.path.endswith(".pyc")
    )


def _slots(env: Environment, prefixes: Prefixes) -> dict[str, int]:
    """Record -> the slot's length in bytes where its placeholder is not recorded (DESIGN section 4).

    A string of k hits has k·(slot − len C) NULs more than its own one behind it. They may stand before other NULs, so
    the smallest gap per hit in the whole package counts, and no slot is over 255 bytes.
    """
    slots: dict[str, int] = {}
    for path, (record, entry) in env.entries.items():
        file = env.files[path]
        if file.kind is not Kind.FILE or "entry_point" in entry.path_type or not _patched(entry):
            continue
        slot = slots.setdefault(record.path, len(PLACEHOLDER))
        with open_source(env.prefix, file) as (_, pread):
            if not is_binary(pread, file.n_bytes):
                continue
            for string in scan_binary(pread, file.n_bytes, prefixes.plain, len(PLACEHOLDER) + 1):
                shortest = min(len(prefixes.plain[index]) for _, index in string.hits)
                gap = max(0, string.padding - 1) // len(string.hits)
                slot = min(slot, shortest + gap)
        slots[record.path] = slot
    return slots


@dataclass(frozen=True)
class _Facts:
    """What the planning pass knows of the whole environment before it looks at a file."""

    env: Environment
    prefixes: Prefixes
    telling: Prefixes  # for the files that tell of packages installed in place
    untouchable: frozenset[str]  # row 8a
    slots: Mapping[str, int]  # record -> slot, see _slots
    linked: frozenset[str]  # files that a link in another directory leads to
    verify_source: bool
    folder: int  # the prefix, opened

    @functools.cached_property
    def needles(self) -> tuple[bytes, ...]:
        """Everything that names the environment in any file."""
        return tuple(dict.fromkeys((*self.prefixes.plain, *self.prefixes.spelled, *self.prefixes.in_binaries)))

    @functools.cached_property
    def in_code(self) -> tuple[bytes, ...]:
        """The prefixes as marshal writes them."""
        return tuple(os.fsdecode(path).encode("utf-8", "surrogatepass") for path in self.prefixes.plain)


def _linked_elsewhere(env: Environment, prefixes: Prefixes) -> frozenset[str]:
    targets, _ = link_targets(env.files.targets, prefixes)
    found = ((path, resolve(path, target, targets)) for path, target in targets.items())
    return frozenset(end for path, end in found if end and os.path.dirname(end) != os.path.dirname(path))


_PROVEN = Examined(Verdict.PROVEN)


def _examine_many(facts: _Facts, files: Sequence[DiskFile]) -> Iterable[tuple[str, Examined]]:
    """Most files of packages are as they were installed: these are read and judged in one batch."""
    env = facts.env
    found: dict[str, Examined] = {}
    named: list[tuple[DiskFile, str]] = []  # managed, and the sha256 that proves them
    pycs: list[tuple[DiskFile, Verdict]] = []
    for file in files:
        path = file.path
        claim = env.entries.get(path)
        if claim is not None:
            record, entry = claim
            proof = entry.sha256
            if (
                proof is not None and entry.placeholder is None and "entry_point" not in entry.path_type
                and file.n_bytes <= _SMALL and not (record.path in facts.slots and _patched(entry))
            ):  # fmt: skip
                named.append((file, proof))
            elif proof is None and path.endswith(".pyc") and entry.placeholder is None and file.n_bytes <= _SMALL:
                pycs.append((file, Verdict.STRUCTURAL))
        elif path in env.recorded or (env.brought and path in env.telling):
            continue
        elif path.endswith(".pyc"):
            if file.n_bytes <= _SMALL:
                pycs.append((file, Verdict.UNMANAGED))
        elif path in facts.untouchable:
            found[path] = UNTOUCHED  # not even opened: most files of a GPU environment
    _judge_pycs(facts, pycs, found)
    _judge_named(facts, named, found)
    return [(file.path, found.get(file.path) or _examine_file(facts, file)) for file in files]


def _judge_named(facts: _Facts, named: Sequence[tuple[DiskFile, str]], found: dict[str, Examined]) -> None:
    """Managed files without a placeholder that have the package's own sha256."""
    data, starts = read_whole(facts.folder, facts.env.prefix, [file for file, _ in named])
    for (file, proof), start, stop in zip(named, starts, starts[1:], strict=False):
        if digest.sha256(data[start:stop]) == proof:
            is_pyc = file.path.endswith(".pyc")
            header = bytes(data[start : min(stop, start + PYC_HEADER)]) if is_pyc else b""
            found[file.path] = Examined(Verdict.PROVEN, pyc_header=header) if is_pyc else _PROVEN


def _judge_pycs(facts: _Facts, pycs: Sequence[tuple[DiskFile, Verdict]], found: dict[str, Examined]) -> None:
    """``.pyc`` files that are not the package's own: their file names are cut down to the way from the prefix."""
    data, starts = read_whole(facts.folder, facts.env.prefix, [file for file, _ in pycs])
    lengths = [file.n_bytes for file, _ in pycs]
    replaced = marshal.file_names(data, starts[:-1], lengths, facts.in_code)
    for (file, verdict), start, length, edits in zip(pycs, starts, lengths, replaced, strict=False):
        header = bytes(data[start : start + min(length, PYC_HEADER)])
        found[file.path] = _examined_pyc(verdict, header, edits)


def _examine_pyc(facts: _Facts, file: DiskFile, verdict: Verdict, pread: PRead) -> Examined:
    """The same for one that is large, or that was thought to be the package's."""
    header = pread(PYC_HEADER, 0)
    if file.n_bytes > WINDOW:
        return _examined_pyc(verdict, header, None)
    data = pread(file.n_bytes, 0)
    (edits,) = marshal.file_names(data, [0], [len(data)], facts.in_code)
    return _examined_pyc(verdict, header, edits)


def _examined_pyc(verdict: Verdict, header: bytes, replaced: Iterable[tuple[int, int, bytes]] | None) -> Examined:
    edits = tuple(itertools.starmap(Edit, replaced or ()))
    form = ArchiveForm(edits, ()) if edits else AS_IT_IS
    return Examined(verdict, form, pyc_header=header, understood=replaced is not None)


def _naming(facts: _Facts, files: _Unknown) -> list[str]:
    """Those of some files that name a prefix in any way, and scripts."""
    names, outside = files.paths, facts.env.files.outside
    if outside:
        names = [outside.get(name, name) for name in names]
    data, starts = read_names(facts.folder, facts.env.prefix, names, files.sizes, files.mtimes)
    naming = kernel.find_any(data, starts[:-1], files.sizes, facts.needles)
    for index, mode in enumerate(files.modes):
        if mode & 0o111 and data[starts[index] : starts[index] + 2].tobytes() == b"#!":
            naming[index] = True
    return list(itertools.compress(files.paths, naming))


def _examine_file(facts: _Facts, file: DiskFile) -> Examined:
    with open_source(facts.env.prefix, file) as (_, read):
        found = _examine_open(facts, file, read)
        return found if found.verdict is Verdict.PROVEN else _as_recorded(facts.env, file, read, found)


def _examine_open(facts: _Facts, file: DiskFile, read: PRead) -> Examined:
    claim = facts.env.entries.get(file.path)
    if claim is not None:
        found = _examine_managed(facts, file, *claim, read)
        # Of several packages that have this path, the one counts whose file it is.
        for record, entry in facts.env.other_claims.get(file.path, ()):
            if found.verdict not in (Verdict.MODIFIED, Verdict.RECOMPILED):
                break
            other = _examine_managed(facts, file, record, entry, read)
            found = other if other.verdict not in (Verdict.MODIFIED, Verdict.RECOMPILED) else found
        return found
    if file.path.endswith(".pyc"):
        return _examine_pyc(facts, file, Verdict.UNMANAGED, read)
    if file.path in facts.untouchable and not (facts.env.brought and file.path in facts.env.telling):
        return UNTOUCHED
    pread, data = buffered(read, file.n_bytes)
    return _examine_unmanaged(facts, file, pread, data, Verdict.UNMANAGED)


def _examine_managed(facts: _Facts, file: DiskFile, record: Record, entry: PathEntry, pread: PRead) -> Examined:
    slot = facts.slots.get(record.path)
    if file.path.endswith(".pyc") and entry.placeholder is None:
        pread, data = buffered(pread, file.n_bytes)
        if entry.sha256 is None:
            return _examine_pyc(facts, file, Verdict.STRUCTURAL, pread)
        if sha256_of(pread, file.n_bytes) != entry.sha256:
            return _examine_pyc(facts, file, Verdict.RECOMPILED, pread)
        return Examined(Verdict.PROVEN, pyc_header=pread(PYC_HEADER, 0))
    entry_point = "entry_point" in entry.path_type
    if slot is not None and not entry_point and _patched(entry):
        if sha256_of(pread, file.n_bytes) != entry.sha256_in_prefix:
            pread, data = buffered(pread, file.n_bytes)
            return _examine_by_structure(facts, file, pread, data, Verdict.MODIFIED)
        binary = is_binary(pread, file.n_bytes)
        stand_in = PLACEHOLDER[:slot] if binary else PLACEHOLDER
        entry = entry._replace(sha256=None, placeholder=os.fsdecode(stand_in), file_mode="binary" if binary else "text")
    if entry.placeholder is None and not entry_point:
        if entry.sha256 is not None and (file.n_bytes <= CHECKED_BY_DIGEST or facts.verify_source):
            pread, data = buffered(pread, file.n_bytes)
            found = sha256_of(pread, file.n_bytes)
            if found == entry.sha256:
                return Examined(Verdict.PROVEN)
            verdict = Verdict.PLACED if found == entry.sha256_in_prefix else Verdict.MODIFIED
            return _examine_unmanaged(facts, file, pread, data, verdict)
        if entry.n_bytes is not None:
            if file.n_bytes == entry.n_bytes:
                return Examined(Verdict.STRUCTURAL)
            pread, data = buffered(pread, file.n_bytes)
            return _examine_unmanaged(facts, file, pread, data, Verdict.MODIFIED)
        # A record that lists paths and nothing more (conda's of old): whether it had a placeholder is not known.
        pread, data = buffered(pread, file.n_bytes)
        return _examine_by_structure(facts, file, pread, data, Verdict.STRUCTURAL)
    pread, data = buffered(pread, file.n_bytes)
    if entry_point:
        found = sha256_of(pread, file.n_bytes)
        known = {digest_ for digest_ in (entry.sha256, entry.sha256_in_prefix) if digest_}
        verdict = Verdict.STRUCTURAL if not known else Verdict.PLACED if found in known else Verdict.MODIFIED
        return _examine_unmanaged(facts, file, pread, data, verdict)
    examined, _ = _managed_with_placeholder(facts, file, entry, pread, data)
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
    facts: _Facts, file: DiskFile, entry: PathEntry, pread: PRead, data: bytes | None
) -> tuple[Examined, bool]:
    """A managed file with a placeholder: (what is known, whether its normal form was proven)."""
    placeholder = os.fsencode(entry.placeholder or "")
    # Row 9, where the record does not say.
    binary = entry.file_mode == "binary" or (entry.file_mode != "text" and is_binary(pread, file.n_bytes))
    header: Header | None = None
    why = ""
    proven = False
    if binary:
        form, proven, why = _binary_normal_form(file, entry.sha256, facts.prefixes.plain, placeholder, pread)
    else:
        form, header, proven = _text_normal_form(facts, file, entry.sha256, placeholder, pread, data)
    if not proven and not binary and entry.sha256 is not None and is_binary(pread, file.n_bytes):
        # A record may say text of a binary, which no installer took for one.
        as_binary, proven, _ = _binary_normal_form(file, entry.sha256, facts.prefixes.plain, placeholder, pread)
        form, header = (as_binary, None) if proven else (form, header)
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
            return _examine_by_structure(facts, file, pread, data, Verdict.MODIFIED), False
    if header is not None:
        archive_header = None
        if file.mode & 0o111 and data is not None:
            normal = apply_edits(data, form.edits)
            body = normal[len(header.true) :]
            archive_header = relocatable_header(header.true, placeholder, file.path, body)
            if archive_header is None:
                why = NEEDS_UNPACK
        form = with_header(form, header, archive_header or header.true)
    return _finish(file, form, pread, verdict, placeholder, why), proven


def _text_normal_form(
    facts: _Facts, file: DiskFile, sha256: str | None, placeholder: bytes, pread: PRead, data: bytes | None
) -> tuple[ArchiveForm, Header | None, bool]:
    """A managed text's (normal form, header, whether it is proven): rows 7 and 12."""
    prefixes = facts.prefixes
    variants: Iterable[tuple[ArchiveForm, Header | None]]
    if data is not None:
        variants = text_variants(data, prefixes, placeholder)
    else:
        hits = [(at + hit, index) for at, hit, index in big_hits(pread, file.n_bytes, prefixes.plain)]
        variants = [(text_form(hits, prefixes.plain, ["text"] * len(hits), placeholder), None)]
    variants = with_wide_text(variants, pread, file.n_bytes, prefixes.plain, placeholder)
    form, header = first = next(variants)
    while sha256 is not None:
        found = digest.sha256(apply_edits(data, form.edits)) if data is not None else None
        if (found or sha256_of(pread, file.n_bytes, form.edits)) == sha256:
            return form, header, True
        following = next(variants, None)
        if following is None:
            break
        form, header = following
    return *first, False


def _binary_normal_form(
    file: DiskFile, sha256: str | None, needles: Sequence[bytes], placeholder: bytes, pread: PRead
) -> tuple[ArchiveForm, bool, str]:
    """A managed binary's (normal form, whether it is proven, why not all of it is relocated): rows 1, 2 and 5.

    Tried as conda pads, and as ``--pad slash`` does: there the prefix stands with slashes up to the slot's length.
    """
    filled = [needle.ljust(len(placeholder), b"/") for needle in needles if len(needle) < len(placeholder)]
    # conda leaves the placeholder where no NUL follows it in the file (row 2).
    needles = sorted({*needles, placeholder}, key=lambda needle: (-len(needle), needle))
    results: list[tuple[ArchiveForm, str]] = []

    def is_proven(form: ArchiveForm) -> bool:
        return sha256 is not None and sha256_of(pread, file.n_bytes, form.edits) == sha256

    for kind, named in (("binary", needles), ("slash", filled)):
        strings = scan_binary(pread, file.n_bytes, named, len(placeholder)) if named else []
        wide: list[tuple[ArchiveForm, bool]] | None = None
        for position, chosen in enumerate(binary_variants(strings, named, placeholder, pread, file.n_bytes)):
            form, natural = restore_binary(chosen, named, placeholder, kind)
            if is_proven(form):
                return form, True, ""
            if wide is None:  # hardly any file has these: they are looked for where something is left to be explained
                wide = wide_forms(pread, file.n_bytes, needles, placeholder, kind)
            more = [(found, whole) for wide_form, whole in wide if (found := both(form, wide_form)) is not None]
            for found, _ in more:
                if is_proven(found):
                    return found, True, ""
            if position == 0 and (chosen or wide or not results):
                form, whole = more[0] if more else (form, not wide)
                why = "a string names the prefix without room for a longer one" if natural or not whole else ""
                results.append((form, why))
    # Nothing proves either: a prefix with just so many slashes behind it is no accident.
    form, why = results[-1]
    return form, False, why


def _examine_by_structure(
    facts: _Facts, file: DiskFile, pread: PRead, data: bytes | None, verdict: Verdict
) -> Examined:  # fmt: skip
    """A managed file that no hash tells of: as a binary with a placeholder where that can be undone, else as found."""
    if is_binary(pread, file.n_bytes):
        strings = scan_binary(pread, file.n_bytes, facts.prefixes.plain, len(PLACEHOLDER))
        form, natural = restore_binary(strings, facts.prefixes.plain, PLACEHOLDER)
        wide = wide_forms(pread, file.n_bytes, facts.prefixes.plain, PLACEHOLDER, "binary")
        forms = [both(form, wide_form) for wide_form, whole in wide if whole] if wide else [form]
        found = next((one for one in forms if one is not None), None)
        if (strings or wide) and not natural and found is not None:
            return _finish(file, found, pread, verdict, PLACEHOLDER)
    return _examine_unmanaged(facts, file, pread, data, verdict)


def _examine_unmanaged(facts: _Facts, file: DiskFile, pread: PRead, data: bytes | None, verdict: Verdict) -> Examined:
    """A file that no package manager wrote with a placeholder."""
    prefixes, lines = facts.prefixes, tuple[Edit, ...]()
    if facts.env.brought and file.path in facts.env.telling:
        prefixes = facts.telling
        lines = _brought_lines(facts.env, file.path, data) if file.path.endswith(".pth") and data is not None else ()
    linked = file.path in facts.linked
    found = unmanaged_form(file.path, file.mode, file.n_bytes, prefixes, pread, data, linked, lines)
    return _finish(file, found.form, pread, verdict, found.placeholder, found.why)


def _brought_lines(env: Environment, path: str, data: bytes) -> tuple[Edit, ...]:
    """The lines of a ``.pth`` file that name what comes along, however they spell it: the way there from its folder."""
    folder = os.path.dirname(path)
    edits = []
    offset = 0
    for line in data.splitlines(keepends=True):
        text = line.strip()
        if text and not text.startswith((b"#", b"import ", b"import\t")):
            place = os.path.normpath(os.path.join(env.prefix, folder, os.fsdecode(text)))
            inner = brought_to(env.brought, place)
            if inner is not None:
                way = os.fsencode(os.path.relpath(inner, folder))
                edits.append(Edit(offset + line.index(text), len(text), way))
        offset += len(line)
    return tuple(edits)


# --- records and RECORD (row 16) -------------------------------------------------------------------------------------


def _examine_records(env: Environment, result: Examination) -> None:
    archived = {path: found.archived for path, found in result.files.items() if found.archived is not None}
    on_disk = {path: found.on_disk for path, found in result.files.items() if found.on_disk is not None}
    hashed = {path for path in result.pyc if path in archived}
    # Excluded files are not in these tables: what is stated of them stays.
    relocated = frozenset(path for path, found in result.files.items() if found.form.relocations)
    for record in env.records:
        file = env.files.get(record.path)
        if file is None or file.kind is not Kind.FILE:
            continue
        own = {entry.path for entry in record.entries} & (relocated | hashed)
        with open_source(env.prefix, file) as (_, pread):
            data = pread(file.n_bytes, 0)
        form = record_form(data, {p: archived[p] for p in own}, {p: on_disk[p] for p in own}, relocated)
        result.files[record.path] = _finish(file, form, from_memory(data), Verdict.UNMANAGED, PLACEHOLDER)
    for distribution in env.distributions:
        path = f"{distribution.folder}/RECORD"
        file = env.files[path]
        with open_source(env.prefix, file) as (_, pread):
            data = pread(file.n_bytes, 0)
        own = archived.keys() & distribution.stated
        form = pip_record_form(
            data,
            distribution.root,
            {p: archived[p] for p in own},
            {p: on_disk[p] for p in own},
            relocated,
            result.prefixes,
        )
        result.files[path] = _finish(file, form, from_memory(data), Verdict.UNMANAGED, PLACEHOLDER)

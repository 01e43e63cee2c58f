"""C as a set (DESIGN section 4): every prefix that an environment's files may name, found and proven."""

from __future__ import annotations

import itertools
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence

from fastpack import digest
from fastpack.environment import Environment
from fastpack.model import DiskFile, Kind, PathEntry
from fastpack.native import kernel
from fastpack.reading import from_memory, open_source
from fastpack.relocation import (
    ArchiveForm,
    Prefixes,
    apply_edits,
    binary_variants,
    is_unique,
    restore_binary,
    scan_binary,
    text_variants,
)


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
    for path in [path for path in env.files if path.startswith(("bin/", "conda-meta/"))]:
        file = env.files[path]
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
    placeholder, pread = os.fsencode(entry.placeholder or ""), from_memory(data)
    forms: Iterator[ArchiveForm]
    if entry.file_mode == "binary":
        strings = scan_binary(pread, len(data), prefixes.plain, len(placeholder))
        variants = binary_variants(strings, prefixes.plain, placeholder, pread, len(data))
        forms = (restore_binary(chosen, prefixes.plain, placeholder)[0] for chosen in variants)
    else:
        forms = (form for form, _ in text_variants(data, prefixes, placeholder))
    # The likely ones alone: a guess is made for many candidates.
    for form in itertools.islice(forms, 6):
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

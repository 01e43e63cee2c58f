"""What ELF files say of themselves: the glibc they need, and where they look for libraries. Read with pyelftools."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from elftools.common.exceptions import ELFError
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection
from elftools.elf.sections import SymbolTableSection

from fastpack.requirements import version_key

MAGIC = b"\x7fELF"
#: What reading a broken file with pyelftools may raise.
_BROKEN = (ELFError, ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, OSError, TypeError,
           UnicodeDecodeError, ValueError, RecursionError, struct.error)  # fmt: skip
_MACHINES = {"x86_64": "EM_X86_64", "aarch64": "EM_AARCH64", "ppc64le": "EM_PPC64", "s390x": "EM_S390",
             "riscv64": "EM_RISCV", "i686": "EM_386", "armv7l": "EM_ARM"}  # fmt: skip
#: A version that is needed weakly is done without (elf.h, VER_FLG_WEAK).
_WEAK = 0x2


#: Dynamic tags whose value is a string.
_NAMES = ("DT_NEEDED", "DT_SONAME", "DT_AUXILIARY", "DT_FILTER", "DT_AUDIT", "DT_DEPAUDIT", "DT_CONFIG")


_SHT_GNU_VERNEED = 0x6FFFFFFE


def _sections(file: BinaryIO, elf: Any, kind: int) -> list[int]:
    """The sections of a type, from their headers' second word alone: pyelftools makes an object of each, and a hundred
    of them in each of some hundred libraries took two seconds.
    """
    size, count = elf["e_shentsize"], elf.num_sections()
    file.seek(elf["e_shoff"])
    table = file.read(size * count)
    word = struct.Struct("<I" if elf.little_endian else ">I")
    return [k for k in range(len(table) // size) if word.unpack_from(table, k * size + 4)[0] == kind]


class SearchPath(NamedTuple):
    """An RPATH or RUNPATH: the C string's place in the file, in bytes, and the string."""

    offset: int
    text: bytes


def glibc_needed(file: BinaryIO, arch: str) -> str | None:
    """The highest ``GLIBC_x.y`` among a file's version needs; None if it has none, or is for another architecture."""
    best: tuple[int, ...] = ()
    name = None
    try:
        elf = ELFFile(file)
        if arch in _MACHINES and elf["e_machine"] != _MACHINES[arch]:
            return None
        for index in _sections(file, elf, _SHT_GNU_VERNEED):
            section = elf.get_section(index)
            if not isinstance(section, GNUVerNeedSection):
                continue
            for _, needs in section.iter_versions():
                for need in needs:
                    if not need.name.startswith("GLIBC_") or need["vna_flags"] & _WEAK:
                        continue
                    key = version_key(need.name[len("GLIBC_") :])
                    if key > best:
                        best, name = key, need.name[len("GLIBC_") :]
    except _BROKEN:
        return None
    return name


def search_paths(file: BinaryIO) -> list[SearchPath]:
    """The RPATH and RUNPATH strings that nothing else in the file uses.

    Linkers let a string be the end of another one: a path on which a symbol's name, a needed library or a version
    depends is not given, since it cannot be rewritten.
    """
    try:
        elf = ELFFile(file)
        dynamic = next((s for s in elf.iter_sections() if isinstance(s, DynamicSection)), None)
        if dynamic is None:
            return []
        table = elf.get_section(dynamic["sh_link"])
        base, size = table["sh_offset"], table["sh_size"]
        file.seek(base)
        strings = file.read(size)
        wanted: list[int] = []
        used: set[int] = set()
        for tag in dynamic.iter_tags():
            if tag.entry.d_tag in ("DT_RPATH", "DT_RUNPATH"):
                wanted.append(tag.entry.d_val)
            elif tag.entry.d_tag in _NAMES:
                used.add(tag.entry.d_val)
        used.update(_names_used(elf, dynamic["sh_link"]), wanted)
        found = []
        for start in dict.fromkeys(wanted):
            end = strings.index(b"\0", start)
            # Strings that overlap end at the same NUL.
            if not any(place != start and strings.find(b"\0", place) == end for place in used):
                found.append(SearchPath(base + start, strings[start:end]))
    except _BROKEN:
        return []
    return found


def _names_used(elf: Any, table: int) -> Iterator[int]:
    """Offsets in the dynamic string table at which the names of symbols and versions begin."""
    for section in elf.iter_sections():
        if section["sh_link"] != table:
            continue
        if isinstance(section, SymbolTableSection):
            yield from (symbol["st_name"] for symbol in section.iter_symbols() if symbol["st_name"])
        elif section["sh_type"] in ("SHT_GNU_verneed", "SHT_GNU_verdef"):
            for version, more in section.iter_versions():
                if "vn_file" in version.entry:
                    yield version["vn_file"]
                for one in more:
                    yield one.entry["vna_name" if "vna_name" in one.entry else "vda_name"]


def origin_path(path: str, text: bytes, prefixes: tuple[bytes, ...]) -> bytes | None:
    """A search path whose parts below a prefix are written from ``$ORIGIN``, the folder of the file that has it.

    Parameters
    ----------
    path : the file's, below the prefix.

    Returns
    -------
    None if it is longer than `text`, names no prefix as a part of its own, or goes back over ``..``, which may lead
    through links.
    """
    folder = os.path.dirname(path) or "."
    parts = []
    for part in text.split(b":"):
        prefix = next((p for p in prefixes if part == p or part.startswith(p + b"/")), None)
        if prefix is None:
            parts.append(part)
            continue
        if b".." in part.split(b"/"):
            return None
        inner = os.fsdecode(part[len(prefix) :].strip(b"/")) or "."
        way = os.path.relpath(os.path.normpath(inner), folder)
        parts.append(b"$ORIGIN" if way == "." else b"$ORIGIN/" + os.fsencode(way))
    new = b":".join(parts)
    return new if new != text and len(new) <= len(text) else None

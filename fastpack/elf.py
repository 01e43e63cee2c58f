"""What ELF files say of themselves: the glibc they need, and where they look for libraries."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

from elftools.common.exceptions import ELFError
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from fastpack.requirements import version_key

#: ``pread(n_bytes, offset)`` of a file.
PRead = Callable[[int, int], bytes]

MAGIC = b"\x7fELF"
#: What reading a broken file with pyelftools may raise.
_BROKEN = (ELFError, ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, OSError, TypeError,
           UnicodeDecodeError, ValueError, RecursionError, struct.error)  # fmt: skip
#: e_machine (elf.h)
_MACHINES = {"x86_64": 62, "aarch64": 183, "ppc64le": 21, "s390x": 22, "riscv64": 243, "i686": 3, "armv7l": 40}
#: A version that is needed weakly is done without (elf.h, VER_FLG_WEAK).
_WEAK = 0x2


#: Dynamic tags whose value is a string.
_NAMES = ("DT_NEEDED", "DT_SONAME", "DT_AUXILIARY", "DT_FILTER", "DT_AUDIT", "DT_DEPAUDIT", "DT_CONFIG")


class SearchPath(NamedTuple):
    """An RPATH or RUNPATH: the C string's place in the file, in bytes, and the string."""

    offset: int
    text: bytes


class _Layout(NamedTuple):
    """Where the ELF header and the section headers of a class (32 or 64 bits) have their fields (elf.h)."""

    e_shoff: tuple[str, int]
    e_shentsize: int
    sh_offset: tuple[str, int]
    sh_size: tuple[str, int]
    sh_link: int


_LAYOUTS = {
    1: _Layout(("I", 32), 46, ("I", 16), ("I", 20), 24),
    2: _Layout(("Q", 40), 58, ("Q", 24), ("Q", 32), 40),
}
_SHT_GNU_VERNEED, _SHT_NOBITS = 0x6FFFFFFE, 8
#: More than any library has: what a broken header claims beyond is not read.
_MAX_SECTIONS, _MAX_TABLE = 1 << 16, 64 << 20


def glibc_needed(pread: PRead, arch: str) -> str | None:
    """The highest ``GLIBC_x.y`` among a file's version needs; None if it has none, or is for another architecture.

    Read by hand, as elf.h lays it out (Verneed and Vernaux): pyelftools makes an object of each field, and took half of
    the 1.5 s in which 1,100 libraries were planned. The tests hold this against it.
    """
    try:
        return _glibc_needed(pread, arch)
    except (struct.error, ArithmeticError, LookupError, ValueError):
        return None


class _Sections:
    """The section headers of a file, read by hand as elf.h lays them out."""

    def __init__(self, pread: PRead, head: bytes) -> None:
        self._pread = pread
        self._layout = _LAYOUTS[head[4]]
        self.order = "<" if head[5] == 1 else ">"
        layout = self._layout
        start, self._width = self._word(layout.e_shoff[0], head, layout.e_shoff[1]), self._half(head, 0)
        count = self._half(head, 2)
        if not count and start:  # more sections than the field holds: the first one's size says how many
            count = self._word(layout.sh_size[0], pread(self._width, start), layout.sh_size[1])
        self._table = pread(self._width * min(count, _MAX_SECTIONS), start)
        self.names_index = self._half(head, 4)

    def _word(self, kind: str, data: bytes, offset: int) -> int:
        value: int = struct.unpack_from(self.order + kind, data, offset)[0]
        return value

    def _half(self, head: bytes, offset: int) -> int:
        return self._word("H", head, self._layout.e_shentsize + offset)

    def __len__(self) -> int:
        return len(self._table) // self._width if self._width else 0

    def name(self, index: int) -> int:
        """The offset of its name in the section of names."""
        return self._word("I", self._table, index * self._width)

    def kind(self, index: int) -> int:
        return self._word("I", self._table, index * self._width + 4)

    def link(self, index: int) -> int:
        return self._word("I", self._table, index * self._width + self._layout.sh_link)

    def size(self, index: int) -> int:
        kind, offset = self._layout.sh_size
        return self._word(kind, self._table, index * self._width + offset)

    def data(self, index: int) -> bytes:
        kind, offset = self._layout.sh_offset
        start = self._word(kind, self._table, index * self._width + offset)
        return self._pread(min(self.size(index), _MAX_TABLE), start)


def _is_elf(head: bytes) -> bool:
    return head[:4] == MAGIC and head[4] in _LAYOUTS and head[5] in (1, 2)


def _glibc_needed(pread: PRead, arch: str) -> str | None:
    head = pread(64, 0)
    if not _is_elf(head):
        return None
    if arch in _MACHINES and struct.unpack_from("<H" if head[5] == 1 else ">H", head, 18)[0] != _MACHINES[arch]:
        return None
    sections = _Sections(pread, head)
    best: tuple[int, ...] = ()
    name = None
    for index in range(len(sections)):
        if sections.kind(index) != _SHT_GNU_VERNEED:
            continue
        needs, names = sections.data(index), sections.data(sections.link(index))
        for flags, at in _versions(needs, sections.order):
            text = names[at : names.index(b"\0", at)]
            if flags & _WEAK or not text.startswith(b"GLIBC_"):
                continue
            version = text[len(b"GLIBC_") :].decode("ascii")
            key = version_key(version)
            if key > best:
                best, name = key, version
    return name


def debug_bytes(pread: PRead) -> int:
    """Bytes of a file's debug sections, as they lie there (perhaps compressed); 0 if it is no ELF file."""
    try:
        head = pread(64, 0)
        if not _is_elf(head):
            return 0
        sections = _Sections(pread, head)
        names = sections.data(sections.names_index)
        return sum(
            sections.size(index)
            for index in range(len(sections))
            if sections.kind(index) != _SHT_NOBITS and names.startswith((b".debug_", b".zdebug_"), sections.name(index))
        )
    except (struct.error, ArithmeticError, LookupError, ValueError):
        return 0


def _versions(needs: bytes, order: str) -> Iterator[tuple[int, int]]:
    """(flags, offset of the name) of each version that a ``SHT_GNU_verneed`` section asks for."""
    at = 0
    left = len(needs) // 16  # no more of them than there is room for, whatever their links say
    while left > 0:
        _, count, _, first, following = struct.unpack_from(order + "HHIII", needs, at)
        inner = at + first
        for _ in range(count):
            _, flags, _, name, step = struct.unpack_from(order + "IHHII", needs, inner)
            yield flags, name
            left -= 1
            if not step or left < 0:
                break
            inner += step
        left -= 1
        if not following:
            break
        at += following


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

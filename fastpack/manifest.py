"""What an archive says of itself: Manifest <-> bytes, and ``pack.json``.

ASCII JSON lines: a header, then packages, groups, frames, files in archive order, and what was left out; names by
surrogateescape. docs/design.md, "The manifest", describes every field.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastpack._place_py import STATE
from fastpack.digest import N_BYTES
from fastpack.errors import DamagedArchive, HostileArchive, NewerFormat
from fastpack.fs import check_relative
from fastpack.model import MANIFEST_FORMAT, Group, GroupKind, Kind
from fastpack.native import batch
from fastpack.rows import AS_MEMBER, Member, Rows

PACK_JSON = ".fastpack/pack.json"
MANIFEST = ".fastpack/manifest"
#: No frame is larger when decompressed: pack refuses what it cannot cut below it, unpack gives no more memory to one.
MAX_FRAME = 64 << 20
#: What only fastpack itself writes at the destination.
RESERVED = (".fastpack/incomplete", MANIFEST)


@dataclass(frozen=True, slots=True)
class Frame:
    """An independently compressed piece of the tar stream. `offset` and `packed_bytes` in the archive file."""

    offset: int
    packed_bytes: int
    plain_bytes: int
    digest: bytes  # of headers and slice digests, see digest.py
    packed_digest: bytes  # BLAKE3 of the compressed bytes


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything an archive says of itself, but for the relocations, which are a member of their own."""

    header: dict[str, Any]
    packages: tuple[dict[str, str], ...]
    groups: tuple[Group, ...]
    frames: tuple[Frame, ...]
    members: Rows
    left_out: tuple[tuple[str, str], ...]
    raw: bytes | bytearray = field(default=b"", repr=False, compare=False)  # what it was read from

    @property
    def arcroot(self) -> str:
        return str(self.header["arcroot"])

    @property
    def dest_prefix(self) -> str | None:
        value = self.header["dest_prefix"]
        return None if value is None else str(value)

    def links(self) -> tuple[dict[str, str], frozenset[str]]:
        """The symbolic links' targets, and which of them the packer says lead out of the environment."""
        links = self.members.of_kind(Kind.LINK)
        return {m.path: m.target for m in links}, frozenset(m.path for m in links if m.not_relocated)

    def to_bytes(self) -> bytes:
        """The manifest's member."""
        return bytes(self.around(bytearray("".join(map(member_line, self.members)), "ascii")))

    def around(self, lines: bytearray) -> bytearray:
        """The manifest's member, where its members' lines are made already: 200 bytes for each file, which are not
        copied."""
        lines[:0] = b"".join(map(_line, self._head()))
        lines += b"".join(map(_line, self._tail()))
        return lines

    def _head(self) -> Iterator[dict[str, Any]]:
        yield {"fastpack": self.header}
        for package in self.packages:
            yield {"package": package}
        for group in self.groups:
            yield {"group": [group.kind, group.name, group.version]}
        for frame in self.frames:
            digests = [frame.digest.hex(), frame.packed_digest.hex()]
            yield {"frame": [frame.offset, frame.packed_bytes, frame.plain_bytes, *digests]}

    def _tail(self) -> Iterator[dict[str, Any]]:
        for path, why in self.left_out:
            yield {"left_out": path, "why": why}


def _line(row: dict[str, Any]) -> bytes:
    return json.dumps(row, separators=(",", ":")).encode("ascii") + b"\n"


def member_line(member: Member) -> str:
    """As `_line`, put together by hand: of hundreds of thousands of members, each took 8 µs, and takes 1."""
    kind, path, mode, mtime, n_bytes, target, digest, group, final_mode, verdict, not_relocated = member
    line = f'{{"path":{_quoted(path)},"kind":"{kind}","mode":{mode},"mtime":{mtime},"group":{group}'
    if kind is Kind.FILE:
        line += f',"size":{n_bytes},"digest":"{digest.hex()}"'
    if target:
        line += f',"target":{_quoted(target)}'
    if final_mode is not None:
        line += f',"final_mode":{final_mode}'
    if verdict:
        line += f',"verdict":{_quoted(verdict)}'
    if not_relocated:
        line += f',"not_relocated":{_quoted(not_relocated)}'
    return line + "}\n"


def file_lines(
    paths: Sequence[str], modes: Sequence[int], mtimes: Sequence[int], sizes: Sequence[int], digests: bytes,
    verdicts: Sequence[str], group: int,
) -> bytes:  # fmt: skip
    """`member_line` of files of one group, of which there is no more to say than a verdict: tables of 64-bit integers,
    and 32 bytes of `digests` for each."""
    ends = {verdict: f',"verdict":{_quoted(verdict)}}}\n' if verdict else "}\n" for verdict in set(verdicts)}
    quoted = list(map(_quoted, paths))
    return batch.file_lines(quoted, modes, mtimes, group, sizes, digests, [ends[verdict] for verdict in verdicts])


_quoted = json.encoder.encode_basestring_ascii


#: What reading nonsense may raise.
BROKEN = (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError)


def check_head(head: Any) -> None:
    """Check the types of what ``pack.json`` and the manifest's header both say; ValueError if one is wrong."""
    requires = head["requires"]
    if not isinstance(requires, dict) or not all(isinstance(value, str) for value in requires.values()):
        raise ValueError("requires is no table of texts")
    limit = head.get("longest_prefix")
    if limit is not None and not (isinstance(limit, int) and limit >= 0):
        raise ValueError("longest_prefix is no length")
    for name in ("arcroot", "dest_prefix", "ascii_only", "limited_by"):
        value = head.get(name)
        if value is not None:
            os.fsencode(value)
    glibc = requires.get("glibc")
    if glibc is not None and not (glibc.isascii() and re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,4}){1,3}", glibc)):
        raise ValueError("requires.glibc is no version")
    destination = head.get("dest_prefix")
    if destination is not None and (not destination.startswith("/") or "\n" in destination or "\0" in destination):
        raise ValueError("dest_prefix is no absolute path")


def _check_rest(header: Any) -> None:
    """Check the types of what only the manifest's header says; ValueError if one is wrong."""
    if type(header["level"]) is not int or not isinstance(header.get("fastpack"), str):
        raise ValueError("level or version are none")
    libraries, pad = header.get("libraries", {}), header.get("pad", [])
    if not isinstance(libraries, dict) or not isinstance(pad, list):
        raise ValueError("libraries or pad are none")
    if not all(isinstance(text, str) for text in [*libraries.values(), *pad]):
        raise ValueError("libraries or pad are none")


def check_format(found: object, path: str | None = None) -> None:
    """Refuse a format of a later fastpack, and what is no format number at all."""
    if type(found) is not int or found < 0:
        raise DamagedArchive("the archive states no format version", path=path, found=repr(found))
    if found > MANIFEST_FORMAT:
        raise NewerFormat(
            "the archive was written by a newer fastpack",
            path=path,
            expected=f"format {MANIFEST_FORMAT}",
            found=f"format {found}",
            hint="install that version here",
        )


_EMPTY_LINES = re.compile(rb"\n*")
#: What a line that `read_lines` reads has.
_FILE = b'","kind":"file",'


def from_bytes(data: bytes, with_members: bool = True) -> Manifest:
    """Read a manifest, and check all that can be checked without the archive.

    Parameters
    ----------
    with_members : False: what stands before the members is enough, which takes a hundredth of the time.

    Raises
    ------
    DamagedArchive, NewerFormat, HostileArchive : it names the first bad thing.
    """
    header: dict[str, Any] | None = None
    packages: list[dict[str, str]] = []
    groups: list[Group] = []
    frames: list[Frame] = []
    members = Rows()
    left_out: list[tuple[str, str]] = []
    decode = json.JSONDecoder().raw_decode  # `json.loads` takes as long for a line again
    position = 0
    try:
        while position < len(data):
            stop = data.find(b"\n", position)
            line = data[position : stop if stop >= 0 else len(data)]
            if not line:
                position = _EMPTY_LINES.match(data, position).end()  # type: ignore[union-attr]
                continue
            if header is not None and with_members and _FILE in line:
                # Nearly all lines are read here, in a tenth of the time.
                lines = batch.read_lines(data, position)
                if lines.paths:
                    members.add_files(*lines[1:])
                    position = lines.stop
                    continue
            position += len(line) + 1
            row, end = decode(line.decode("ascii"))
            if end != len(line):
                raise ValueError("more than one thing in a line")
            if header is None:
                header = row["fastpack"]
                check_format(header["format"])
            elif "path" in row:
                if not with_members:
                    break
                members.add(_member(row))
            elif "frame" in row:
                offset, packed, plain, digest, packed_digest = row["frame"]
                frames.append(Frame(int(offset), int(packed), int(plain), *map(bytes.fromhex, (digest, packed_digest))))
            elif "group" in row:
                kind, name, version = row["group"]
                groups.append(Group(GroupKind(kind), str(name), str(version)))
            elif "package" in row:
                package = {str(key): str(value) for key, value in row["package"].items()}
                packages.append(package)
            elif "left_out" in row:
                left_out.append((str(row["left_out"]), str(row["why"])))
        if header is None:
            raise DamagedArchive("the manifest is empty")
        for key in ("arcroot", "dest_prefix", "requires", "level", "codec"):
            if key not in header:
                raise DamagedArchive(f"the manifest's header has no {key!r}")
        if header["arcroot"] and (why := check_relative(str(header["arcroot"]))):
            raise HostileArchive(f"the archive's root has {why}", path=str(header["arcroot"]))
        check_head(header)
        _check_rest(header)
        if min(members.groups, default=0) < 0 or max(members.groups, default=-1) >= len(groups):
            raise ValueError("a member of a group that is not there")
    except BROKEN as error:
        raise DamagedArchive(f"the manifest is broken ({type(error).__name__}: {error})") from None
    if with_members:
        check_members(members)
    if header["dest_prefix"] is None and STATE in members.paths:
        raise HostileArchive("a member that only fastpack itself may write", path=STATE)
    _check_frames(frames)
    return Manifest(header, tuple(packages), tuple(groups), tuple(frames), members, tuple(left_out), data)


def files_and_links_beside(data: bytes | bytearray, paths: Iterable[str]) -> list[Member]:
    """The files and links of one of our manifests but for those with some paths, whose lines are not even read."""
    begin, end, directory = '{"path":', ',"kind":', ',"kind":"directory"'
    others = set(map(_quoted, paths))
    lines = (line for line in data.decode("ascii").split("\n") if line.startswith(begin))
    places = ((line, line.find(end)) for line in lines)
    chosen = [line for line, at in places if line[len(begin) : at] not in others and not line.startswith(directory, at)]
    return [_member(json.loads(line)) for line in chosen]


_KINDS: dict[str, Kind] = {str(kind): kind for kind in Kind}


def _member(row: dict[str, Any]) -> Member:
    get = row.get
    path, kind, mode, mtime, group = row["path"], _KINDS[row["kind"]], row["mode"], row["mtime"], row["group"]
    n_bytes = row["size"] if kind is Kind.FILE else 0
    final_mode = get("final_mode")
    if not (type(n_bytes) is type(mtime) is type(mode) is type(group) is type(final_mode or 0) is int):
        raise ValueError(f"a number of {path!r} is none")
    texts = target, verdict, not_relocated = get("target", ""), get("verdict", ""), get("not_relocated", "")
    if not (type(path) is str and (texts == ("", "", "") or all(type(text) is str for text in texts))):
        raise ValueError(f"a text of {path!r} is none")
    if not 0 <= n_bytes < 1 << 62 or not 0 <= mtime < 1 << 33:
        raise ValueError(f"an impossible size or time of {path!r}")
    digest = bytes.fromhex(row["digest"]) if kind is Kind.FILE else b""
    final_mode = None if final_mode is None else final_mode & 0o777
    if target and kind not in (Kind.LINK, Kind.HARDLINK):
        raise ValueError(f"{path!r} has a target, and is no link")
    if kind is Kind.FILE and len(digest) != N_BYTES:
        raise ValueError(f"the digest of {path!r} is none")
    return AS_MEMBER(
        (kind, path, mode & 0o777, mtime, n_bytes, target, digest, group, final_mode, verdict, not_relocated)
    )


#: What needs no closer look: names of letters, digits and signs, of a length that every file system has.
_PLAIN_NAME = re.compile(r"(?!\.\.?\Z)[!-.0-~][ -.0-~]{0,199}")
_PLAIN_PATH = 4096


def _nothing_odd(members: Rows) -> bool:
    """Whether `check_members` would find nothing: it makes a row of each member only where that is not sure."""
    paths, others = members.paths, members.others
    if not paths or paths[0] != PACK_JSON or len(set(paths)) < len(paths) or not set(paths).isdisjoint(RESERVED):
        return False
    directories = {member.path for member in members.of_kind(Kind.DIRECTORY)}
    matches = _PLAIN_NAME.fullmatch
    for path in paths:
        parent, slash, name = path.rpartition("/")
        # A name in a directory that is a member itself, which is looked at in its turn, brings only its last part.
        if (slash and parent not in directories) or len(path) >= _PLAIN_PATH or matches(name) is None:
            return False
    places = {path: index for index, path in enumerate(paths)} if members.of_kind(Kind.HARDLINK) else {}
    for index, member in others.items():
        if member.kind is Kind.LINK and odd_target(member.target):
            return False
        if member.kind is Kind.HARDLINK:
            place = places.get(member.target, len(paths))
            if place >= index or members.kind(place) is not Kind.FILE:
                return False
    return True


def check_members(members: Rows) -> None:
    """Refuse members that would be written outside of the destination, twice, or through a link.

    Raises
    ------
    HostileArchive : it names the first one.
    """
    if _nothing_odd(members):
        return
    if not members or members[0].path != PACK_JSON:
        raise HostileArchive("an archive of fastpack whose members are out of order", path=PACK_JSON)
    directories = {member.path for member in members.of_kind(Kind.DIRECTORY)}
    kinds: dict[str, Kind] = {}
    for member in members:
        parent, _, name = member.path.rpartition("/")
        plain = parent in directories and len(member.path) < _PLAIN_PATH and _PLAIN_NAME.fullmatch(name) is not None
        if not plain and (why := check_relative(member.path)) is not None:
            raise HostileArchive(f"a member has {why}", path=member.path)
        if member.path in RESERVED:
            raise HostileArchive("a member that only fastpack itself may write", path=member.path)
        if member.path in kinds:
            raise HostileArchive("two members have one name", path=member.path)
        if parent and parent not in directories:
            found = kinds.get(parent)
            raise HostileArchive(
                "a member lies in no directory of the archive",
                path=member.path,
                expected=f"{parent} to be a directory",
                found=f"a {found}" if found else "nothing",
            )
        if member.kind is Kind.HARDLINK and kinds.get(member.target) is not Kind.FILE:
            raise HostileArchive("a hard link to no earlier file of the archive", path=member.path, found=member.target)
        if member.kind is Kind.LINK and odd_target(member.target):
            raise HostileArchive("a symbolic link to nothing", path=member.path)
        kinds[member.path] = member.kind


#: Bytes of a symbolic link's target on Linux (PATH_MAX without its NUL).
MAX_TARGET = 4095


def odd_target(target: str) -> bool:
    """Whether no symbolic link can have that target."""
    try:
        return not target or "\0" in target or len(os.fsencode(target)) > MAX_TARGET
    except UnicodeEncodeError:
        return True


def _check_frames(frames: Iterable[Frame]) -> None:
    position = 0
    for frame in frames:
        if frame.offset != position or frame.packed_bytes <= 0 or frame.plain_bytes <= 0:
            raise DamagedArchive("the manifest's frames do not follow one another", found=f"one at byte {frame.offset}")
        if frame.plain_bytes > MAX_FRAME:
            raise DamagedArchive("a frame is too large", expected=f"at most {MAX_FRAME} bytes", found=frame.plain_bytes)
        position += frame.packed_bytes

"""Archives made to be wrong: cut, flipped, forged with right digests, and what other tools would make."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastpack import container, digest
from fastpack._place_py import RELOCATIONS, content_mtime
from fastpack.codec import CODECS
from fastpack.frames import Locator, trailer
from fastpack.layout import lay_out
from fastpack.manifest import Manifest, Member
from fastpack.model import Kind
from fastpack.rows import Rows
from tests.conftest import Done, run_fastpack
from tests.test_packing import manifest_of, read_member

REG, SYM, LNK, DIR = tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE


def unpack_piped(archive: str, target: str, *options: str) -> Done:
    with open(archive, "rb") as stream:
        return run_fastpack("unpack", "-", "-p", target, *options, stdin=stream)


def refused(path: str, target: str, piped: bool) -> Done:
    done = unpack_piped(path, target) if piped else run_fastpack("unpack", path, "-p", target)
    parent = os.path.dirname(target)
    assert not os.path.lexists(target), done.err
    assert not [name for name in os.listdir(parent) if "partial" in name]
    return done


def rebuilt(archive: str, out: str, change: Callable[[Manifest, list[bytes]], Manifest]) -> str:
    """An archive of ours with other contents: `change` gets the manifest and the plain frames."""
    manifest = manifest_of(archive)
    data = Path(archive).read_bytes()
    codec = CODECS["tar.zst"]
    plains = [
        bytes(memoryview(codec.decompress(data[f.offset : f.offset + f.packed_bytes], f.plain_bytes)))
        for f in manifest.frames
    ]
    manifest = change(manifest, plains)
    blob, frames = b"", []
    for frame, plain in zip(manifest.frames, plains, strict=True):
        packed = codec.compress(plain, 3)
        frames.append(dataclasses.replace(frame, offset=len(blob), packed_bytes=len(packed), plain_bytes=len(plain)))
        blob += packed
    text = dataclasses.replace(manifest, frames=tuple(frames)).to_bytes()
    own = Member(Kind.FILE, ".fastpack/manifest", 0o644, content_mtime(digest.blake(text)), len(text))
    sizes = [(f.packed_bytes, f.plain_bytes) for f in frames]
    for part in (own.header(""), text, bytes(container.padding(len(text))) + container.END):
        packed = codec.compress(part, 3)
        if part is text:
            locator = Locator(int(manifest.header["format"]), len(blob), len(packed), len(text), digest.blake(text))
        blob += packed
        sizes.append((len(packed), len(part)))
    Path(out).write_bytes(blob + trailer(codec, locator, sizes))
    return out


def with_member(archive: str, out: str, which: str, **changes: object) -> str:
    def change(manifest: Manifest, plains: list[bytes]) -> Manifest:
        members = tuple(m._replace(**changes) if m.path == which else m for m in manifest.members)  # type: ignore[arg-type]
        return dataclasses.replace(manifest, members=Rows(members))

    return rebuilt(archive, out, change)


def foreign(path: Path, rows: list[tuple[str, bytes, str]], end: bool = True) -> str:
    """A tar of (name, type, link target or content)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, kind, content in rows:
            info = tarfile.TarInfo(name)
            info.type = kind
            info.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
            if kind == tarfile.REGTYPE:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content.encode()))
            else:
                info.linkname = content
                tar.addfile(info)
    data = buffer.getvalue()
    path.write_bytes(data if end else data.rstrip(b"\0"))
    return str(path)


def redigested(manifest: Manifest, plains: list[bytes]) -> Manifest:
    """A forged manifest whose frames have the digests of what is in them."""
    sized = tuple(dataclasses.replace(f, plain_bytes=len(p)) for f, p in zip(manifest.frames, plains, strict=True))
    manifest = dataclasses.replace(manifest, frames=sized)
    frames = []
    for frame, plain, segments in zip(manifest.frames, plains, lay_out(manifest), strict=True):
        hashed: list[bytes] = []
        for segment in segments:
            member = manifest.members[segment.member]
            if segment.header_bytes:
                hashed.append(member.header(manifest.arcroot))
            if member.kind is Kind.FILE:
                hashed.append(digest.slice_digests(plain[segment.at : segment.at + segment.stop - segment.start]))
        frames.append(dataclasses.replace(frame, digest=digest.frame_digest(hashed)))
    return dataclasses.replace(manifest, frames=tuple(frames))


def forged_table(archive: str, out: Path, change: Callable[[dict[str, Any]], object]) -> str:
    """An archive whose relocations.json is another one, with right digests."""
    table = json.loads(read_member(archive, RELOCATIONS))
    change(table)
    data = json.dumps(table).encode()

    def forge(manifest: Manifest, plains: list[bytes]) -> Manifest:
        index = next(k for k, member in enumerate(manifest.members) if member.path == RELOCATIONS)
        old = manifest.members[index]
        new = old._replace(n_bytes=len(data), digest=digest.file_digest(digest.slice_digests(data)))
        start = plains[-1].index(old.header(manifest.arcroot))
        plains[-1] = plains[-1][:start] + new.header(manifest.arcroot) + data + bytes(container.padding(len(data)))
        members = (*manifest.members[:index], new, *manifest.members[index + 1 :])
        return redigested(dataclasses.replace(manifest, members=Rows(members)), plains)

    return rebuilt(archive, str(out), forge)


def rows_of(table: dict[str, Any], path: str = "share/app/app.conf") -> dict[str, Any]:
    """A file's row in a relocations.json."""
    return next(row for row in table["files"] if row["path"] == path)

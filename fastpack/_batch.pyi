from array import array
from typing import Any

from typing_extensions import Buffer

from fastpack._batch_py import Lines, Names

__test__: dict[str, Any]

def list_folder(folder: int) -> tuple[list[str], array[int]]: ...
def stat_files(folder: int, names: Names) -> array[int]: ...
def read_files(
    folder: int,
    names: Names,
    sizes: Buffer,
    mtimes: Buffer,
    offsets: Buffer,
    starts: Buffer,
    lengths: Buffer,
    out: Buffer,
    rows: Buffer | None = None,
) -> list[tuple[int, int]]: ...
def write_files(
    folder: int,
    names: Names,
    data: Buffer,
    starts: Buffer,
    lengths: Buffer,
    modes: Buffer,
    mtimes: Buffer,
) -> list[tuple[int, int]]: ...
def share_files(
    source: int, target: int, names: Names, modes: Buffer, mtimes: Buffer, rows: Buffer | None, since: int, how: int
) -> list[tuple[int, int]]: ...
def unfilled(n_bytes: int) -> bytearray: ...
def fill_zeros(starts: Buffer, lengths: Buffer, out: Buffer) -> None: ...
def tar_headers(
    names: Names,
    targets: Names,
    kinds: Buffer,
    modes: Buffer,
    sizes: Buffer,
    mtimes: Buffer,
    places: Buffer,
    out: Buffer,
) -> None: ...
def file_lines(
    quoted: list[str], modes: Buffer, mtimes: Buffer, group: int, sizes: Buffer, digests: Buffer, ends: list[str]
) -> bytes: ...
def read_lines(data: bytes, start: int) -> Lines: ...
def lay_whole(
    headers: Buffer,
    sizes: Buffer,
    frames: Buffer,
    member: int,
    frame: int,
    position: int,
    at: Buffer,
    owner: Buffer,
) -> tuple[int, int, int]: ...
def odd_place(plain: Buffer, headers: bytes, lengths: Buffer, starts: Buffer, sizes: Buffer) -> int: ...

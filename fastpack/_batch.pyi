from typing import Any

from typing_extensions import Buffer

__test__: dict[str, Any]

def read_files(
    folder: int,
    names: list[bytes],
    sizes: Buffer,
    mtimes: Buffer,
    offsets: Buffer,
    starts: Buffer,
    lengths: Buffer,
    out: Buffer,
) -> list[tuple[int, int]]: ...
def write_files(
    folder: int, names: list[bytes], data: Buffer, starts: Buffer, lengths: Buffer, modes: Buffer, mtimes: Buffer
) -> list[tuple[int, int]]: ...
def tar_headers(
    names: list[bytes],
    targets: list[bytes],
    kinds: Buffer,
    modes: Buffer,
    sizes: Buffer,
    mtimes: Buffer,
    places: Buffer,
    out: Buffer,
) -> None: ...

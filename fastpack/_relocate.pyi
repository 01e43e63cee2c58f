from collections.abc import Sequence

from typing import Any

from typing_extensions import Buffer

__test__: dict[str, Any]

def find(buffer: Buffer, needles: Sequence[bytes]) -> list[tuple[int, int]]: ...
def find_batch(buffers: Sequence[Buffer], needles: Sequence[bytes]) -> list[list[tuple[int, int]]]: ...
def find_text(buffer: Buffer, needles: Sequence[bytes]) -> list[tuple[int, int]]: ...
def scan_strings(
    buffer: Buffer, needles: Sequence[bytes], slot: int, final: bool
) -> tuple[list[tuple[int, int, int, list[tuple[int, int]]]], int]: ...
def place_strings(
    buffer: Buffer, strings: Sequence[tuple[int, int, Sequence[int]]], old: Buffer, new: Buffer
) -> int: ...
def restore_strings(
    buffer: Buffer, strings: Sequence[tuple[int, int, Sequence[int]]], old: Buffer, new: Buffer
) -> int: ...

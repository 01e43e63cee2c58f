from collections.abc import Sequence
from typing import Any

from typing_extensions import Buffer

from fastpack._marshal_py import Replacement

__test__: dict[str, Any]

def source_hashes(data: Buffer, starts: Sequence[int], lengths: Sequence[int], magics: Sequence[int]) -> bytes: ...
def file_names(
    data: Buffer, starts: Sequence[int], lengths: Sequence[int], prefixes: Sequence[bytes]
) -> list[tuple[Replacement, ...] | None]: ...

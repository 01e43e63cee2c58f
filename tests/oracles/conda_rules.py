"""How conda puts a prefix into a file, written down from conda/core/portability.py (conda 24): no code of ours.

conda itself is not to be had where these tests run, so its rules stand here, byte by byte, for the kernels to be held
against.
"""

from __future__ import annotations


def binary_replace(data: bytes, old: bytes, new: bytes) -> bytes:
    """``binary_replace``: the regular expression ``old + b"([^\\0]*?)\\0"``, each match replaced and padded.

    A match begins at a hit and ends at the next NUL; every hit in it is replaced; NULs make up for the length. A hit
    with no NUL after it is not a match.
    """
    if len(new) > len(old):
        raise ValueError("PaddingError: the prefix is longer than the placeholder")
    out = bytearray()
    position = 0
    while True:
        start = data.find(old, position)
        end = data.find(b"\0", start) if start >= 0 else -1
        if start < 0 or end < 0:
            return bytes(out + data[position:])
        body = data[start:end]
        count = body.count(old)
        out += data[position:start] + body.replace(old, new) + bytes((len(old) - len(new)) * count + 1)
        position = end + 1


def replace_prefix(data: bytes, mode: str, old: bytes, new: bytes) -> bytes:
    """``replace_prefix`` on unix: text files by plain replacement, binary files as above."""
    return data.replace(old, new) if mode == "text" else binary_replace(data, old, new)

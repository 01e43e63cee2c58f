"""What is remembered on this host from one run to the next: tables in the user's cache directory, never in an archive.

One for each kind and place; those that were not used for longest are forgotten. Nothing depends on one being there.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterable

from fastpack import digest, fs

#: Nanoseconds for which a file must have been left alone, for what the system says of it to be believed later.
SETTLED = 2_000_000_000
#: Bytes of the tables of a kind that are kept, those used last, and how many at most: a home that many hosts share has
#: many small ones.
_KEPT_BYTES, _KEPT = 256 << 20, 1000


def place(kind: str, path: str) -> str | None:
    """Where the table of a path on this host lies; None without a home."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    if not home.startswith("/"):
        home = os.path.join(os.path.expanduser("~"), ".cache")
    if not home.startswith("/"):
        return None
    name = digest.blake(os.fsencode(f"{socket.gethostname()}\0{os.path.realpath(path)}")).hex()[:32]
    return os.path.join(home, "fastpack", kind, name)


def keep(path: str, parts: Iterable[bytes]) -> None:
    """Write a table. A directory that cannot be written is no reason to fail."""
    folder = os.path.dirname(path)
    temporary = os.path.join(folder, f"tmp-{secrets.token_hex(8)}")
    try:
        fs.put(path, temporary, parts, 0o600)
        _forget_others(path)
    except OSError:
        pass


def touch(path: str) -> None:
    """A table was used: those that were not used for longest are forgotten first."""
    try:
        os.utime(path)
    except OSError:
        pass


def _forget_others(new: str) -> None:
    """Remove tables beside a new one that were not used for longest, and what killed packs left."""
    found = []
    for entry in os.scandir(os.path.dirname(new)):
        try:
            info = entry.stat()
        except FileNotFoundError:
            continue
        found.append((entry.path == new, info.st_mtime_ns, info.st_size, entry.path))
    n_bytes = 0
    for number, (is_new, _, size, path) in enumerate(sorted(found, reverse=True)):
        n_bytes += size
        if not is_new and (number >= _KEPT or n_bytes > _KEPT_BYTES):
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass


#: File systems where a program that writes to a mapped file changes none of its times.
_SILENT = {"tmpfs", "ramfs", "devtmpfs"}


def tells_changes(path: str) -> bool:
    """Whether the file system of a path says of a file that it was changed, however that was done."""
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            rows = [line.split() for line in file]
    except OSError:
        return True  # not Linux
    return not any(row[2] == wanted and row[row.index("-") + 1] in _SILENT for row in rows if "-" in row)

"""Many small files at once, in plain Python: the contracts of ``_batch.pyx``, its oracle, and what stands in for it.

Tables are buffers of 64-bit integers (``array('q')``, numpy's int64), one entry for each name; names, below an open
directory, are str by surrogateescape or bytes. A failure is (index, code): an errno, or `CHANGED`.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import stat
from array import array
from collections.abc import Sequence
from typing import NamedTuple

#: Names, or other texts.
Names = list[str] | list[bytes] | list[str | bytes]

#: Linux's request to share a file's blocks (linux/fs.h).
FICLONE = 0x40049409

#: What `share_files` does.
CLONED, LINKED, COPIED, GIVEN = 0, 1, 2, 3

#: Not a regular file of the size and time that were expected.
CHANGED = -1

BLOCK = 512
#: Bytes of a name, and what the octal fields of a header hold; beyond them GNU tar's extensions begin.
NAME, OCTAL, OCTAL_MODE = 100, 8**11, 8**7
#: Owner and group 0.
_OWNER = b"0000000\0" * 2
#: Magic and version, no names of owner and group, no device, no prefix.
_REST = b"ustar  \0" + bytes(BLOCK - 265)


def _check(count: int, size: int, starts: Sequence[int], lengths: Sequence[int], *others: Sequence[int]) -> None:
    if any(len(table) != count for table in (starts, lengths, *others)):
        raise ValueError("tables of different lengths")
    if any(not 0 <= start <= size - length or length < 0 for start, length in zip(starts, lengths, strict=True)):
        raise ValueError("a piece lies outside of the buffer")


def _check_name(name: str | bytes) -> bytes:
    if not isinstance(name, str | bytes):
        raise TypeError("a name is neither str nor bytes")
    raw = os.fsencode(name)
    if b"\0" in raw:
        raise ValueError("a NUL in a name")
    return raw


#: The numbers that `list_folder` gives for each entry, in this order.
LISTED = ("mode", "n_bytes", "mtime_ns", "ctime_ns", "inode", "device", "n_links")


def list_folder(folder: int) -> tuple[list[str], array[int]]:
    """What is in a directory, sorted by name's bytes, links not followed.

    Returns
    -------
    Names, and one behind the other the numbers of each (`LISTED`), signed.

    Raises
    ------
    OSError : with the entry's name, or without one if it is about the directory.
    """
    rows = array("q")
    names = sorted(os.listdir(folder), key=os.fsencode)
    for name in names:
        rows.extend(numbers_of(os.stat(name, dir_fd=folder, follow_symlinks=False)))
    return names, rows


def numbers_of(info: os.stat_result) -> list[int]:
    """What the system says of a file (`LISTED`)."""
    numbers = (
        info.st_mode, info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino, info.st_dev, info.st_nlink,
    )  # fmt: skip
    return [(number + (1 << 63)) % (1 << 64) - (1 << 63) for number in numbers]


#: linux/fs.h
_WAIT_BEFORE, _WRITE = 1, 2
_sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None)


def write_back(descriptor: int, offset: int = 0, n_bytes: int = 0, wait: bool = False) -> bool:
    """Have the kernel write a part of a file to the disk, without waiting for that; False where it cannot be told so.

    Parameters
    ----------
    n_bytes : 0 means up to the end.
    wait : for what it is writing already.
    """
    if _sync_file_range is None:
        return False
    flags = _WRITE | (_WAIT_BEFORE if wait else 0)
    _sync_file_range(descriptor, ctypes.c_int64(offset), ctypes.c_int64(n_bytes), flags)
    return True


def settle(descriptor: int) -> None:
    """Let no program write to a file unnoticed from now on.

    Who has mapped it changes its pages without a word until they are on their way to the disk: ctime tells of the first
    store alone. The next store after that is a first one again.
    """
    write_back(descriptor, wait=True)


def stat_files(folder: int, names: Names) -> array[int]:
    """What the system says of files, links not followed: each one's numbers (`LISTED`), zeros where it says nothing."""
    rows = array("q")
    for name in map(_check_name, names):
        try:
            rows.extend(numbers_of(os.stat(name, dir_fd=folder, follow_symlinks=False)))
        except OSError:
            rows.extend([0] * len(LISTED))
    return rows


def read_files(
    folder: int, names: Names, sizes: Sequence[int], mtimes: Sequence[int], offsets: Sequence[int],
    starts: Sequence[int], lengths: Sequence[int], out: bytearray | memoryview, rows: array[int] | None = None,
) -> list[tuple[int, int]]:  # fmt: skip
    """Read `lengths` bytes from `offsets` of each file, settled, to `starts` in `out`; hold it against size and mtime.

    Parameters
    ----------
    folder : descriptor of the directory that the names are relative to; links are not followed.
    sizes, mtimes : what each file is expected to have, in bytes and nanoseconds; looked at after the read.
    rows : gets what the system said of each file after the read (`LISTED`); zeros for those that failed.

    Returns
    -------
    The failures; what `out` has for these is undefined.
    """
    view = memoryview(out).cast("B")
    _check(len(names), len(view), starts, lengths, sizes, mtimes, offsets)
    if any(offset < 0 for offset in offsets):
        raise ValueError("a negative offset")
    if rows is not None:
        if len(rows) != len(LISTED) * len(names):
            raise ValueError("tables of different lengths")
        rows[:] = array("q", bytes(8 * len(rows)))
    found = []
    for index, name in enumerate(map(_check_name, names)):
        try:
            descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=folder)
            try:
                settle(descriptor)
                done = 0
                while done < lengths[index]:
                    piece = view[starts[index] + done : starts[index] + lengths[index]]
                    n_read = os.preadv(descriptor, [piece], offsets[index] + done)
                    if not n_read:
                        break
                    done += n_read
                info = os.fstat(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            found.append((index, error.errno or CHANGED))
            continue
        same = stat.S_ISREG(info.st_mode) and (info.st_size, info.st_mtime_ns) == (sizes[index], mtimes[index])
        if done < lengths[index] or not same:
            found.append((index, CHANGED))
        elif rows is not None:
            rows[len(LISTED) * index : len(LISTED) * (index + 1)] = array("q", numbers_of(info))
    return found


def write_files(
    folder: int, names: Names, data: bytes | bytearray | memoryview, starts: Sequence[int],
    lengths: Sequence[int], modes: Sequence[int], mtimes: Sequence[int],
) -> list[tuple[int, int]]:  # fmt: skip
    """Make new files from pieces of a buffer, with their modes and their times in seconds.

    Returns
    -------
    The failures (EEXIST where there is something of that name); such a file may be there in part.
    """
    view = memoryview(data).cast("B")
    _check(len(names), len(view), starts, lengths, modes, mtimes)
    found = []
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    for index, name in enumerate(map(_check_name, names)):
        try:
            descriptor = os.open(name, flags, 0o600, dir_fd=folder)
            try:
                piece = view[starts[index] : starts[index] + lengths[index]]
                while piece:
                    piece = piece[os.write(descriptor, piece) :]
                os.fchmod(descriptor, modes[index])
                os.utime(descriptor, (mtimes[index], mtimes[index]))
            finally:
                os.close(descriptor)
        except OSError as error:
            found.append((index, error.errno or CHANGED))
    return found


def share_files(
    source: int, target: int, names: Names, modes: Sequence[int], mtimes: Sequence[int], rows: Sequence[int] | None,
    since: int, how: int,
) -> list[tuple[int, int]]:  # fmt: skip
    """Let files of one directory appear under the same names in another one.

    Parameters
    ----------
    source, target : descriptors of the directories.
    modes, mtimes : what each file has in `target`; times in seconds.
    rows : what the system said of each file (`LISTED`) when it was looked at; one of which it says something else now
        is left: `CHANGED`. So what is shared is what was looked at, whatever became of its folder.
    since : a file that was changed from this time on (its ctime, in nanoseconds) is left, too.
    how : `CLONED`: a file of its own that shares the blocks for as long as neither changes (a reflink: Linux, XFS and
        Btrfs among others). `LINKED`: a further name of the same file, if that has this mode and time (else `CHANGED`).
        `GIVEN`: the same, if it has no other name, the owner and group of `target`, and no attributes of its own.
        `COPIED`: a file of its own.

    Returns
    -------
    The failures; where the file system cannot do it at all, EOPNOTSUPP, EXDEV or the like. Nothing is left of these.
    """
    if any(len(table) != len(names) for table in (modes, mtimes)):
        raise ValueError("tables of different lengths")
    if rows is not None and len(rows) != len(LISTED) * len(names):
        raise ValueError("tables of different lengths")
    if how not in (CLONED, LINKED, COPIED, GIVEN):
        raise ValueError("no such way to share files")
    found = []
    for index, name in enumerate(map(_check_name, names)):
        row = None if rows is None else list(rows[len(LISTED) * index : len(LISTED) * (index + 1)])
        try:
            if how in (LINKED, GIVEN):
                code = _link_one(source, target, name, modes[index], mtimes[index], row, since, how == GIVEN)
            else:
                code = _double_one(source, target, name, modes[index], mtimes[index], row, since, how == CLONED)
        except OSError as error:
            code = error.errno or CHANGED
        if code:
            found.append((index, code))
    return found


def _is_other(info: os.stat_result, row: list[int] | None, since: int) -> bool:
    """Whether a file is not, or not any more, what the row says (where there is one), or was changed from then on."""
    return info.st_ctime_ns >= since or (row is not None and numbers_of(info) != row)


def _double_one(
    source: int, target: int, name: bytes, mode: int, mtime: int, row: list[int] | None, since: int, cloned: bool
) -> int:
    file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=source)
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            return CHANGED
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        clone = os.open(name, flags, 0o600, dir_fd=target)
        try:
            if cloned:
                fcntl.ioctl(clone, FICLONE, file)
            while not cloned and (data := os.read(file, 1 << 18)):
                while data:
                    data = data[os.write(clone, data) :]
            os.fchmod(clone, mode)
            os.utime(clone, (mtime, mtime))
            changed = _is_other(os.fstat(file), row, since)
        except BaseException:
            os.unlink(name, dir_fd=target)
            raise
        finally:
            os.close(clone)
        if changed:
            os.unlink(name, dir_fd=target)
            return CHANGED
    finally:
        os.close(file)
    return 0


def _link_one(
    source: int, target: int, name: bytes, mode: int, mtime: int, row: list[int] | None, since: int, given: bool
) -> int:
    info = os.stat(name, dir_fd=source, follow_symlinks=False)
    if (stat.S_IFMT(info.st_mode), stat.S_IMODE(info.st_mode), info.st_mtime_ns) != (
        stat.S_IFREG, mode, mtime * 1_000_000_000,
    ) or _is_other(info, row, since) or (given and _is_shared(source, name, info, os.fstat(target))):  # fmt: skip
        return CHANGED
    os.link(name, name, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
    if os.path.samestat(os.stat(name, dir_fd=target, follow_symlinks=False), info):
        return 0
    os.unlink(name, dir_fd=target)
    return CHANGED


def _is_shared(source: int, name: bytes, info: os.stat_result, owner: os.stat_result) -> bool:
    """Whether others have a part in a file, or a new one would have another owner, group or attributes.

    A label of SELinux follows from the place, as a new one's would.
    """
    if (info.st_nlink, info.st_uid, info.st_gid) != (1, owner.st_uid, owner.st_gid):
        return True
    if not hasattr(os, "listxattr"):
        return False
    file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=source)
    try:
        return os.listxattr(file) not in ([], ["security.selinux"])
    except OSError as error:
        return error.errno != errno.ENOTSUP
    finally:
        os.close(file)


def unfilled(n_bytes: int) -> bytearray:
    """A buffer with whatever was in its memory before: for what is filled at once. Zeros cost 0.2 s for a GB."""
    return bytearray(n_bytes)


def fill_zeros(starts: Sequence[int], lengths: Sequence[int], out: bytearray | memoryview) -> None:
    """Fill pieces of a buffer with zeros."""
    view = memoryview(out).cast("B")
    _check(len(starts), len(view), starts, lengths)
    for start, length in zip(starts, lengths, strict=True):
        view[start : start + length] = bytes(length)


def tar_headers(
    names: Names, targets: Names, kinds: bytes, modes: Sequence[int], sizes: Sequence[int], mtimes: Sequence[int],
    places: Sequence[int], out: bytearray | memoryview,
) -> None:  # fmt: skip
    """Write header blocks in GNU format: owner 0 without names; names as they are.

    Parameters
    ----------
    kinds : tar's type of each member.
    places : where in `out` each block of 512 bytes goes.
    """
    view = memoryview(out).cast("B")
    if any(len(table) != len(names) for table in (targets, kinds, modes, sizes, mtimes, places)):
        raise ValueError("tables of different lengths")
    rows = zip(map(_check_name, names), map(_check_name, targets), kinds, modes, sizes, mtimes, places, strict=True)
    for name, target, kind, mode, size, mtime, place in rows:
        if len(name) > NAME or len(target) > NAME:
            raise ValueError("a name of over 100 bytes")
        if not 0 <= place <= len(view) - BLOCK:
            raise ValueError("a header lies outside of the buffer")
        if not (0 <= size < OCTAL and 0 <= mtime < OCTAL and 0 <= mode < OCTAL_MODE):
            raise ValueError("a number is too large for its field")
        start = b"%s%07o\0%s%011o\0%011o\0" % (name.ljust(NAME, b"\0"), mode, _OWNER, size, mtime)
        end = bytes([kind]) + target.ljust(NAME, b"\0") + _REST
        view[place : place + BLOCK] = b"%s%06o\0 %s" % (start, sum(start) + sum(end) + 8 * 32, end)


def file_lines(
    quoted: list[str], modes: Sequence[int], mtimes: Sequence[int], group: int, sizes: Sequence[int], digests: bytes,
    ends: list[str],
) -> bytes:  # fmt: skip
    """The lines that a manifest has for files of one group.

    Parameters
    ----------
    quoted : paths as JSON, in ASCII.
    digests : 32 bytes for each.
    ends : what stands in each line behind the digest.
    """
    if any(len(table) != len(quoted) for table in (modes, mtimes, sizes, ends)) or len(digests) != 32 * len(quoted):
        raise ValueError("tables of different lengths")
    if min([group, *modes, *mtimes, *sizes]) < 0:
        raise ValueError("a negative number")
    lines = [
        f'{{"path":{path},"kind":"file","mode":{mode},"mtime":{mtime},"group":{group},"size":{size},"digest":'
        f'"{digests[32 * k : 32 * k + 32].hex()}"{end}'
        for k, (path, mode, mtime, size, end) in enumerate(zip(quoted, modes, mtimes, sizes, ends, strict=True))
    ]
    return "".join(lines).encode("ascii")


class Lines(NamedTuple):
    """What `read_lines` read, in columns, and where it ended."""

    stop: int
    paths: list[str]
    modes: array[int]
    mtimes: array[int]
    groups: array[int]
    sizes: array[int]
    digests: bytes
    verdicts: list[str]


_NUMBER = rb"(0|[1-9][0-9]{0,17})"
#: Texts that JSON has as they are.
_TEXT = rb"([ !#-\[\]-~]*)"
_FILE_LINE = re.compile(
    rb'\{"path":"%s","kind":"file","mode":%s,"mtime":%s,"group":%s,"size":%s,"digest":"([0-9a-f]{64})"'
    rb'(?:,"verdict":"%s")?\}\n' % (_TEXT, _NUMBER, _NUMBER, _NUMBER, _NUMBER, _TEXT)
)
#: The largest mode, and what no time reaches.
_MODES, _TIMES = 0o777, 1 << 33


def read_lines(data: bytes, start: int) -> Lines:
    """Read the lines of a manifest that are just as `file_lines` writes them, from one place up to the first other one.

    Other are those whose path or verdict has an escape, whose mode has more than nine bits, or whose time more than 33.
    """
    if not 0 <= start <= len(data):
        raise ValueError("a place outside of the text")
    lines = Lines(start, [], array("q"), array("q"), array("q"), array("q"), b"", [])
    digests: list[bytes] = []
    stop = start
    while found := _FILE_LINE.match(data, stop):
        path, mode, mtime, group, size, digest, verdict = found.groups()
        if int(mode) > _MODES or int(mtime) >= _TIMES:
            break
        lines.paths.append(path.decode("ascii"))
        for column, number in zip(lines[2:6], (mode, mtime, group, size), strict=True):
            column.append(int(number))
        digests.append(bytes.fromhex(digest.decode("ascii")))
        lines.verdicts.append((verdict or b"").decode("ascii"))
        stop = found.end()
    return lines._replace(stop=stop, digests=b"".join(digests))


def lay_whole(
    headers: Sequence[int], sizes: Sequence[int], frames: Sequence[int], member: int, frame: int, position: int,
    at: array[int], owner: array[int],
) -> tuple[int, int, int]:  # fmt: skip
    """Lay members of a tar stream into its frames, one behind the other, up to the first that does not fit whole.

    Parameters
    ----------
    headers, sizes : bytes of each member's header, and of its data.
    frames : bytes of each frame.
    member, frame, position : the first member to be laid, and where.
    at, owner : are filled: the place of each member's data in its frame, and that frame.

    Returns
    -------
    The same three, of the first member that was not laid.
    """
    if len({len(headers), len(sizes), len(at), len(owner)}) != 1:
        raise ValueError("tables of different lengths")
    if member < 0 or frame < 0 or position < 0:
        raise ValueError("a negative number")
    while member < len(sizes):
        while frame < len(frames) and position == frames[frame]:
            frame, position = frame + 1, 0
        data = position + headers[member]
        stop = data + sizes[member] + -sizes[member] % BLOCK
        if frame >= len(frames) or stop > frames[frame]:
            break
        at[member], owner[member] = data, frame
        member, position = member + 1, stop
    return member, frame, position


def odd_place(
    plain: bytes | bytearray | memoryview, headers: bytes, lengths: Sequence[int], starts: Sequence[int],
    sizes: Sequence[int],
) -> int:  # fmt: skip
    """Hold what a frame has beside its members' data against what it should be.

    Parameters
    ----------
    headers : of the members, one behind the other.
    lengths, starts, sizes : bytes of each one's header, which ends where its data start; that place; bytes of these.

    Returns
    -------
    -1: each header is there, and all else is zeros. Or the index of the first member whose header, or a byte before it,
    is not; or the number of members.
    """
    view = memoryview(plain).cast("B")
    _check(len(lengths), len(view), starts, sizes)
    position = end = 0
    rows = list(zip(lengths, starts, sizes, strict=True))
    for length, start, size in rows:
        if length < 0 or start - length < end or position + length > len(headers):
            raise ValueError("a header lies outside of its place")
        position, end = position + length, start + size
    position = end = 0
    for index, (length, start, size) in enumerate(rows):
        between = start - length - end
        header = headers[position : position + length]
        if view[end : end + between] != bytes(between) or view[start - length : start] != header:
            return index
        position, end = position + length, start + size
    return -1 if view[end:] == bytes(len(view) - end) else len(rows)

"""The file system: modes, safe names, atomic replacement, exchange of directories, locks."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import io
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

from fastpack import direct, pagecache
from fastpack.errors import AlreadyExists, FastpackError, NoSpace, PrefixTooLong, Unreadable
from fastpack.parallel import default_threads, side_by_side

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

_PARTIAL = ".fastpack-partial-"
#: What `token_hex(4)` gives.
_RANDOM = re.compile("[0-9a-f]{8}")


def archive_mode(mode: int, is_directory: bool, private_umask: bool) -> int:
    """A member's mode: what the umask of the day decides is not taken from the disk (DESIGN section 6).

    Owner bits as on disk; group and others get the owner's r and x, never w. A file with no bit for group and others
    keeps that, unless no directory of the environment has any (`private_umask`: it was made under umask 077).
    """
    owner = mode & 0o700
    if not is_directory and not mode & 0o077 and not private_umask:
        return owner
    readable = owner & 0o500
    return owner | readable >> 3 | readable >> 6


def check_relative(path: str) -> str | None:
    """Why a member's name may not be written below a destination; None if it may."""
    if not path:
        return "an empty name"
    if "\0" in path:
        return "a NUL in the name"
    try:
        raw = os.fsencode(path)
    except UnicodeEncodeError:
        return "characters that no file name has"
    if len(raw) > 1 << 16 or any(len(part) > 255 for part in raw.split(b"/")):
        return "a part of over 255 bytes"
    if path.startswith("/"):
        return "an absolute name"
    parts = path.split("/")
    if ".." in parts:
        return "'..' in the name"
    if "" in parts or "." in parts:
        return "an empty or '.' component in the name"
    return None


def lock(file: BinaryIO) -> bool:
    """Take an exclusive lock on an open file, or say that someone else has it."""
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def explain_os_error(error: OSError, path: str) -> FastpackError:
    """The error of our tree that an operating system's error means."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return NoSpace(f"no space left ({error.strerror})", path=path, hint="free some and run it again")
    if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
        return AlreadyExists(f"something is in the way ({error.strerror})", path=path, hint="choose another place")
    if error.errno == errno.ENAMETOOLONG:
        return PrefixTooLong("a path is longer than the system allows", path=path, hint="choose a shorter place")
    return Unreadable(f"the system says: {error.strerror}", path=path)


#: Links that the kernel follows in one path (MAXSYMLINKS).
_MAX_LINKS = 40


def leads_out(path: str, target: str, links: Mapping[str, str]) -> bool:
    """Whether a symbolic link leads out of the tree it lies in; one into a loop leads nowhere (see `resolve`)."""
    return resolve(path, target, links) is None


def resolve(path: str, target: str, links: Mapping[str, str]) -> str | None:
    """Where a symbolic link leads, below the root of its tree; None: out of it.

    Parameters
    ----------
    path, target : the link, below the root.
    links : all symbolic links of the tree: a way through another one goes where that one leads.
    """
    place = path.split("/")[:-1]
    todo = target.split("/")[::-1]
    followed = 0
    if target.startswith("/"):
        return None
    while todo:
        part = todo.pop()
        if part in ("", "."):
            continue
        if part == "..":
            if not place:
                return None
            place.pop()
            continue
        place.append(part)
        inner = links.get("/".join(place))
        if inner is not None:
            followed += 1
            if followed > _MAX_LINKS:
                # A loop that goes up as well leads out for those who take the rest of it by its text (Python does).
                return None if ".." in todo else ""
            if inner.startswith("/"):
                return None
            place.pop()
            todo += inner.split("/")[::-1]
    return "/".join(place)


def is_compiled(path: str) -> bool:
    """Whether a file is what Python keeps of a source it has compiled, and makes anew where it is gone or stale."""
    return path.endswith(".pyc") and os.path.basename(os.path.dirname(path)) == "__pycache__"


def parents(path: str) -> Iterator[str]:
    """The directories above a relative path, the nearest first."""
    parent = os.path.dirname(path)
    while parent:
        yield parent
        parent = os.path.dirname(parent)


def _remove_debris(path: str) -> None:
    """Remove a killed run's file; another user's, or a living process's, is let be."""
    try:
        with open(path, "rb+") as file:
            if lock(file):
                os.unlink(path)
    except OSError:
        pass


class Output(io.FileIO):
    """A new file that is written once, from its start to its end.

    Parameters
    ----------
    replaced : descriptor of the file that it will replace. As long as the same stands there, nothing is written.
    """

    def __init__(self, path: str, replaced: int | None = None) -> None:
        super().__init__(path, "xb")
        # What is replaced is read and given back: packing again took a second more with direct writes, of 6.
        self._writer = direct.Writer(pages_come_back=replaced is not None)
        self._pending: tuple[pagecache.Piece, int] | None = None  # and where it goes
        self._replaced = replaced
        self._same = replaced  # None as soon as something else is written

    def append(self, piece: pagecache.Piece) -> None:
        """Write a part of another file; parts that follow each other there are copied in one go."""
        offset = self.tell()
        of_replaced = self._replaced is not None and os.path.sameopenfile(piece.descriptor, self._replaced)
        if self._same is not None and of_replaced and piece.offset == offset:
            self.seek(offset + piece.n_bytes)
            return
        if piece.data is not None:
            if of_replaced:  # and so not read again: the new file's pages may take the place of its ones
                pagecache.forget(piece)
            self.write(piece.data)
            return
        self._begin()
        if self._pending is not None:
            before, start = self._pending
            end = before.offset + before.n_bytes
            if (before.descriptor, end) == (piece.descriptor, piece.offset):
                piece = pagecache.Piece(piece.descriptor, before.offset, before.n_bytes + piece.n_bytes)
                self._pending = piece, start
                self.seek(start + piece.n_bytes)
                return
        self._copy_pending()
        self._pending = piece, offset
        self.seek(offset + piece.n_bytes)

    def _begin(self) -> None:
        """From here on it is another file: what has been the same so far is copied."""
        if self._same is not None:
            same, self._same = self._same, None
            self._writer.copy(self.fileno(), pagecache.Piece(same, 0, self.tell()), 0)

    def _copy_pending(self) -> None:
        if self._pending is not None:
            (piece, start), self._pending = self._pending, None
            self._writer.copy(self.fileno(), piece, start)

    def forget(self) -> None:
        """Nothing comes of it: what was still to be copied is not."""
        self._pending = None

    def flush(self) -> None:
        self._copy_pending()
        super().flush()

    def write(self, data: Buffer) -> int:
        """Write all of `data`."""
        n_bytes = memoryview(data).nbytes
        offset = self.tell()
        if self._same is not None:
            if bytes(data) == bytes(pagecache.read(self._same, n_bytes, offset)):
                self.seek(offset + n_bytes)
                return n_bytes
            self._begin()
        self._copy_pending()
        self._writer.write(self.fileno(), data, offset)
        self.seek(offset + n_bytes)
        return n_bytes

    def finish(self, path: str) -> bool:
        """Whether the file to be replaced has every byte of this one and still lies at `path`; else this one is whole.

        The time of its last change is then now, for make and its like. It does not stay if others have a part in it
        (another user's, one with further names or another mode). What another process has written, by this one's name,
        is never the same.
        """
        if self._same is not None and self.tell():
            there, own = os.fstat(self._same), os.fstat(self.fileno())
            alike = ownership(there) == ownership(own) and self.tell() == there.st_size
            try:
                if alike and os.path.samestat(os.lstat(path), there):
                    os.utime(path)
                    return True
            except OSError:  # removed meanwhile, or another user's
                pass
        self._begin()
        self.flush()
        return False


def ownership(info: os.stat_result) -> list[int]:
    """Who has a part in a file: its mode, user, group, and number of names."""
    return [info.st_mode, info.st_uid, info.st_gid, info.st_nlink]


def put(path: str, temporary: str, parts: Iterable[Buffer], mode: int = 0o666) -> None:
    """Write a small file under another name, and give it its own when it is whole; its directory is made if need be.

    Raises
    ------
    OSError : nothing is left of it.
    """
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "wb") as file:
            file.writelines(parts)
        os.rename(temporary, path)
    except BaseException:
        if os.path.lexists(temporary):
            os.unlink(temporary)
        raise


@contextmanager
def new_file(path: str, force: bool) -> Iterator[Output]:
    """A file that appears under its name when the block ends well, and not at all otherwise.

    Written beside the target with the mode the umask gives, locked while it is written, renamed at the end; what it
    would replace stays if it has the same bytes, and is as new. Debris of killed runs (our name, and a lock that can be
    taken) is removed first.

    Raises
    ------
    AlreadyExists : the target is there and `force` is not.
    NoSpace, Unreadable : it cannot be written.
    """
    if os.path.lexists(path) and not force:
        raise AlreadyExists("the output is already there", path=path, hint="use --force to replace it")
    if os.path.islink(path):
        path = os.path.realpath(path)  # the link stays, what it leads to is replaced
    if os.path.lexists(path) and not os.path.isfile(path):
        raise AlreadyExists("the output is no regular file", path=path, hint="give the name of a file, or - for a pipe")
    folder, name = os.path.split(path)
    folder = folder or "."
    stem = "." + os.fsdecode(os.fsencode(name)[:150]) + _PARTIAL
    temporary = os.path.join(folder, stem + secrets.token_hex(4))
    replaced = None
    try:  # an interrupt may come at any moment
        try:
            for entry in os.listdir(folder):
                if entry.startswith(stem) and _RANDOM.fullmatch(entry[len(stem) :]):
                    _remove_debris(os.path.join(folder, entry))
            replaced = opened_if_regular(path)
            out = Output(temporary, replaced)
        except OSError as error:
            raise explain_os_error(error, folder) from None
        with out:
            lock(out)
            try:
                yield out
            except BaseException:
                out.forget()
                raise
            # link, not rename: another process may have made the file since, and is not asked about.
            if out.finish(path):
                return
            # NFS, FUSE and quotas tell some errors only when a file is closed; the lock stays.
            os.close(os.dup(out.fileno()))
            if force:
                os.rename(temporary, path)
            else:
                try:
                    os.link(temporary, path)
                    os.unlink(temporary)
                except FileExistsError:
                    raise AlreadyExists("the output is already there", path=path, hint="use --force") from None
                except OSError:  # a file system without hard links
                    os.rename(temporary, path)
    except OSError as error:
        raise explain_os_error(error, path) from None
    finally:
        if replaced is not None:
            os.close(replaced)
        try:
            os.unlink(temporary)
        except OSError:
            pass


@contextmanager
def file_below(folder: int, path: str, mode: int, mtime: int) -> Iterator[int]:
    """A new file, open to be written, which gets its mode and its time in seconds at the end; none, if there is another
    end.

    Parameters
    ----------
    folder : descriptor of the directory that `path` begins at.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600, dir_fd=folder)
    try:
        yield descriptor
        os.fchmod(descriptor, mode)
        os.utime(descriptor, (mtime, mtime))
    except BaseException:
        os.unlink(path, dir_fd=folder)
        raise
    finally:
        os.close(descriptor)


def opened_if_regular(path: str) -> int | None:
    """A regular file's descriptor; None if there is none that can be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        return None
    return descriptor


def exchange(first: str, second: str) -> None:
    """Swap two directory entries at once; OSError where the kernel or the file system cannot."""
    _renameat2(first, second, _RENAME_EXCHANGE)


def rename_over_nothing(source: str, target: str) -> None:
    """Rename; FileExistsError if there is something of the new name (where the kernel cannot tell, if there was)."""
    try:
        _renameat2(source, target, _RENAME_NOREPLACE)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EINVAL):
            raise
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target) from None
        os.rename(source, target)


#: linux/fs.h
_RENAME_NOREPLACE, _RENAME_EXCHANGE, _AT_FDCWD = 1, 2, -100


def _renameat2(first: str, second: str, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), first)
    if libc.renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), flags) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), first)


def existing_parent(path: str) -> str:
    """A directory that is there: a path, or the nearest one above it."""
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path


def free_bytes(folder: str) -> int:
    """Bytes that may still be written to the file system a directory lies on."""
    info = os.statvfs(folder)
    return info.f_bavail * info.f_frsize


#: Directories that a thread empties at once.
_RUN = 64


def remove_tree(path: str) -> None:
    """Remove a directory and all below it, whatever its modes; quiet if it is not there.

    Directories are emptied side by side: what it costs is the kernel's, which gives back a large file's pages.
    """
    if not os.path.isdir(path) or os.path.islink(path):
        if os.path.lexists(path):
            os.unlink(path)
        return
    levels = [[path]]
    while levels[-1]:
        runs = [levels[-1][start : start + _RUN] for start in range(0, len(levels[-1]), _RUN)]
        levels.append([])
        for inner in side_by_side(_empty, runs, default_threads()):
            levels[-1] += inner
    for folder in (folder for level in reversed(levels) for folder in level):
        try:
            os.rmdir(folder)
        except FileNotFoundError:
            pass


def _empty(folder: str) -> list[str]:
    """Remove what is in a directory, but for the directories in it: these are given."""
    inner: list[str] = []
    try:
        # Without rights to it, nothing in it can be removed.
        os.chmod(folder, 0o700)
        with os.scandir(folder) as entries:
            for entry in list(entries):
                if entry.is_dir(follow_symlinks=False):
                    inner.append(entry.path)
                else:
                    os.unlink(entry.path)
    except FileNotFoundError:
        pass
    return inner


@contextmanager
def alone_in(folder: str) -> Iterator[None]:
    """Wait until no other process holds a directory in this way, and hold it. It is made if it is not there.

    The lock is the directory's own (`flock`): no file is left, no right to write is needed. A file system without
    locks is no reason not to go on.
    """
    made: list[str] = []
    while True:
        try:
            made += _make_folders(folder)
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise explain_os_error(error, folder) from None
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            except OSError:
                pass
            if not os.path.isdir(folder) or not os.path.samestat(os.stat(folder), os.fstat(descriptor)):
                continue  # whoever had it has removed it
            try:
                yield
            finally:
                for path in reversed(made):
                    try:
                        os.rmdir(path)  # nothing came of it
                    except OSError:
                        break
            return
        finally:
            os.close(descriptor)


def _make_folders(folder: str) -> list[str]:
    """Make a directory and its parents; those that were not there, parents first."""
    missing = []
    while not os.path.isdir(folder):
        missing.append(folder)
        folder = os.path.dirname(folder)
    made = []
    for path in reversed(missing):
        try:
            os.mkdir(path)
            made.append(path)
        except FileExistsError:
            if not os.path.isdir(path):
                raise
    return made


def sync(folder: str) -> None:
    """Wait until all that was written to a directory's file system is on the disk (`syncfs`, else `sync`)."""
    syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
    if syncfs is None:
        os.sync()
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if syncfs(descriptor) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), folder)
    finally:
        os.close(descriptor)


def is_empty_directory(path: str) -> bool:
    """Whether a path is a directory with nothing in it."""
    try:
        with os.scandir(path) as entries:
            return next(entries, None) is None
    except NotADirectoryError:
        return False

# cython: language_level=3
"""Many files at once: listed, read, written, and their tar headers. Contracts stand in ``_batch_py.py``, the twin.

Validation happens with the GIL, the loops run without it: what a file costs is what the kernel takes for it.
"""

import os
from array import array

from fastpack._batch_py import Lines

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int32_t, int64_t, uint8_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memchr, memcmp, memcpy, memset

cdef extern from "Python.h":
    bytearray PyByteArray_FromStringAndSize(const char *data, Py_ssize_t size)
    bint PyUnicode_IS_COMPACT_ASCII(object text)
    void *PyUnicode_DATA(object text)
    Py_ssize_t PyUnicode_GET_LENGTH(object text)
    bytes PyUnicode_EncodeFSDefault(object text)
    str PyUnicode_DecodeFSDefault(const char *text)
    str PyUnicode_DecodeASCII(const char *text, Py_ssize_t size, const char *errors)

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <dirent.h>
    #include <fcntl.h>
    #include <stdlib.h>
    #include <string.h>
    #include <sys/stat.h>
    #include <sys/types.h>
    #include <unistd.h>
    #include <errno.h>
    #include <stdint.h>
    #include <time.h>
    #if defined(__linux__)
    #include <linux/fs.h>
    #include <sys/ioctl.h>
    #include <sys/xattr.h>
    #endif

    typedef struct {
        char *names;          /* one behind the other, each with its NUL */
        int64_t n_bytes;      /* of them */
        const char **sorted;  /* by bytes */
        int64_t count;
        int64_t *rows;        /* count * 7 */
    } fp_listing;

    static void fp_forget(fp_listing *listing) {
        free(listing->names);
        free(listing->sorted);
        free(listing->rows);
    }

    static int fp_by_bytes(const void *one, const void *two) {
        return strcmp(*(const char *const *)one, *(const char *const *)two);
    }

    #if defined(__APPLE__)
    #define FP_MTIME st_mtimespec
    #define FP_CTIME st_ctimespec
    #else
    #define FP_MTIME st_mtim
    #define FP_CTIME st_ctim
    #endif

    /* `row` gets what LISTED says in the twin */
    static void fp_tell(const struct stat *info, int64_t *row) {
        row[0] = (int64_t)info->st_mode;
        row[1] = (int64_t)info->st_size;
        row[2] = (int64_t)info->FP_MTIME.tv_sec * 1000000000 + info->FP_MTIME.tv_nsec;
        row[3] = (int64_t)info->FP_CTIME.tv_sec * 1000000000 + info->FP_CTIME.tv_nsec;
        row[4] = (int64_t)info->st_ino;
        row[5] = (int64_t)info->st_dev;
        row[6] = (int64_t)info->st_nlink;
    }

    /* 0, or an errno */
    static int fp_stat(int folder, const char *name, int64_t *row) {
        struct stat info;
        if (fstatat(folder, name, &info, AT_SYMLINK_NOFOLLOW) != 0)
            return errno;
        fp_tell(&info, row);
        return 0;
    }

    /* 0, or an errno, with the index of the name it is about in *where, or -1 for the directory */
    static int fp_list(int folder, fp_listing *listing, int64_t *where) {
        int64_t room = 0, k;
        int code = 0;
        char *name;
        DIR *entries;
        int descriptor = openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        memset(listing, 0, sizeof *listing);
        *where = -1;
        if (descriptor < 0)
            return errno;
        entries = fdopendir(descriptor);
        if (entries == NULL) {
            code = errno;
            close(descriptor);
            return code;
        }
        for (;;) {
            struct dirent *entry;
            int64_t length;
            errno = 0;
            entry = readdir(entries);
            if (entry == NULL) {
                code = errno;
                break;
            }
            if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
                continue;
            length = (int64_t)strlen(entry->d_name) + 1;
            if (listing->n_bytes + length > room) {
                char *more;
                room = 2 * (room + length) + 4096;
                more = realloc(listing->names, (size_t)room);
                if (more == NULL) {
                    code = ENOMEM;
                    break;
                }
                listing->names = more;
            }
            memcpy(listing->names + listing->n_bytes, entry->d_name, (size_t)length);
            listing->n_bytes += length;
            listing->count++;
        }
        if (code == 0 && listing->count) {
            listing->sorted = malloc((size_t)listing->count * sizeof(char *));
            listing->rows = malloc((size_t)listing->count * 7 * sizeof(int64_t));
            if (listing->sorted == NULL || listing->rows == NULL)
                code = ENOMEM;
        }
        if (code == 0 && listing->count) {
            name = listing->names;
            for (k = 0; k < listing->count; k++, name += strlen(name) + 1)
                listing->sorted[k] = name;
            qsort(listing->sorted, (size_t)listing->count, sizeof(char *), fp_by_bytes);
            for (k = 0; k < listing->count; k++) {
                code = fp_stat(descriptor, listing->sorted[k], listing->rows + 7 * k);
                if (code != 0) {
                    *where = k;
                    break;
                }
            }
        }
        closedir(entries);
        return code;
    }

    typedef struct {
        int root;
        int folder;         /* -1: none is open */
        const char *name;   /* that it belongs to */
        size_t length;      /* of the part of it that names the folder */
    } fp_place;

    static void fp_leave(fp_place *place) {
        if (place->folder >= 0)
            close(place->folder);
        place->folder = -1;
    }

    /* What openat and the like take for a name: a directory, and the name from there. Many in a row lie in one folder,
       which is looked up once. */
    static int fp_at(fp_place *place, const char *name, const char **last) {
    #if defined(O_PATH)
        const char *slash = strrchr(name, '/');
        if (slash != NULL && slash != name && slash[1] != 0) {
            size_t length = (size_t)(slash - name);
            if (place->folder < 0 || length != place->length || memcmp(name, place->name, length) != 0) {
                char folder[4096];
                fp_leave(place);
                if (length < sizeof folder) {
                    memcpy(folder, name, length);
                    folder[length] = 0;
                    place->folder = openat(place->root, folder, O_PATH | O_DIRECTORY | O_CLOEXEC);
                    place->name = name;
                    place->length = length;
                }
            }
            if (place->folder >= 0) {
                *last = slash + 1;
                return place->folder;
            }
        }
    #endif
        *last = name;
        return place->root;
    }

    /* See `settle` of the twin: nobody writes to the file unnoticed from now on. */
    static void fp_settle(int descriptor) {
    #if defined(SYNC_FILE_RANGE_WRITE)
        (void)!sync_file_range(descriptor, 0, 0, SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE);
    #endif
    }

    /* 0; an errno; or -1 for a file that is not a regular one of that size and time (mtime in nanoseconds). `row`, if
       there is one, gets what the system said of it after it was read. */
    static int fp_read_one(fp_place *place, const char *name, int64_t size, int64_t mtime, int64_t offset,
                           int64_t length, uint8_t *out, int64_t *row) {
        struct stat info;
        int64_t done = 0;
        int status = 0;
        const char *last;
        int folder = fp_at(place, name, &last);
        int descriptor = openat(folder, last, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
        if (descriptor < 0)
            return errno;
        fp_settle(descriptor);
        while (done < length) {
            ssize_t n = pread(descriptor, out + done, (size_t)(length - done), offset + done);
            if (n < 0 && errno == EINTR)
                continue;
            if (n < 0) {
                status = errno;
                break;
            }
            if (n == 0) {
                status = -1;
                break;
            }
            done += n;
        }
        /* after the read: what changed meanwhile shows */
        if (status == 0) {
            if (fstat(descriptor, &info) != 0)
                status = errno;
            else if (!S_ISREG(info.st_mode) || info.st_size != size
                     || (int64_t)info.FP_MTIME.tv_sec * 1000000000 + info.FP_MTIME.tv_nsec != mtime)
                status = -1;
            else if (row != NULL)
                fp_tell(&info, row);
        }
        close(descriptor);
        return status;
    }

    /* Of a file that was made with that mode: as a rule the umask, or the directory's ACL, took nothing from it, and
       looking costs less than setting it. */
    static int fp_set_mode(int descriptor, int mode) {
        struct stat info;
        if (fstat(descriptor, &info) != 0)
            return -1;
        return (int)(info.st_mode & 07777) == mode ? 0 : fchmod(descriptor, (mode_t)mode);
    }

    static int fp_write_one(fp_place *place, const char *name, const uint8_t *data, int64_t length, int mode,
                            int64_t mtime) {
        struct timespec times[2];
        int64_t done = 0;
        int status = 0;
        const char *last;
        int folder = fp_at(place, name, &last);
        int descriptor = openat(folder, last, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, (mode_t)mode);
        if (descriptor < 0)
            return errno;
        while (done < length) {
            ssize_t n = write(descriptor, data + done, (size_t)(length - done));
            if (n < 0 && errno == EINTR)
                continue;
            if (n < 0) {
                status = errno;
                break;
            }
            done += n;
        }
        times[0].tv_sec = times[1].tv_sec = (time_t)mtime;
        times[0].tv_nsec = times[1].tv_nsec = 0;
        if (status == 0 && (fp_set_mode(descriptor, mode) != 0 || futimens(descriptor, times) != 0))
            status = errno;
        /* some file systems say only here that there was no room */
        if (close(descriptor) != 0 && status == 0 && errno != EINTR)
            status = errno;
        return status;
    }

    /* Whether a file is not, or not any more, what the row says (where there is one), or was changed from then on. */
    static int fp_is_other(const struct stat *info, const int64_t *row, int64_t since) {
        int64_t found[7];
        fp_tell(info, found);
        return found[3] >= since || (row != NULL && memcmp(found, row, sizeof found) != 0);
    }

    /* A file of its own: sharing the blocks of the other one without a buffer, else with its bytes, which pass through
       the buffer and with it stay in the processor's cache. */
    static int fp_double_one(fp_place *source, fp_place *target, const char *name, int mode, int64_t mtime,
                             const int64_t *row, int64_t since, uint8_t *buffer, size_t room) {
        struct timespec times[2];
        struct stat info;
        int64_t done = 0;
        int status = 0, out;
        const char *last;
        int from = fp_at(source, name, &last), to = fp_at(target, name, &last);
        int in = openat(from, last, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
        if (in < 0)
            return errno;
        if (fstat(in, &info) != 0)
            status = errno;
        else if (!S_ISREG(info.st_mode))
            status = -1;
        if (status != 0) {
            close(in);
            return status;
        }
        out = openat(to, last, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, (mode_t)mode);
        if (out < 0) {
            status = errno;
            close(in);
            return status;
        }
        if (buffer == NULL) {
    #if defined(FICLONE)
            if (ioctl(out, FICLONE, in) != 0)
                status = errno;
    #else
            status = ENOTSUP;
    #endif
            done = (int64_t)info.st_size;
        }
        while (status == 0 && done < (int64_t)info.st_size) {
            ssize_t n = read(in, buffer, room), written = 0;
            if (n < 0 && errno == EINTR)
                continue;
            if (n < 0)
                status = errno;
            else if (n == 0)
                status = -1;
            while (status == 0 && written < n) {
                ssize_t m = write(out, buffer + written, (size_t)(n - written));
                if (m >= 0)
                    written += m;
                else if (errno != EINTR)
                    status = errno;
            }
            done += written;
        }
        times[0].tv_sec = times[1].tv_sec = (time_t)mtime;
        times[0].tv_nsec = times[1].tv_nsec = 0;
        if (status == 0 && (fp_set_mode(out, mode) != 0 || futimens(out, times) != 0 || fstat(in, &info) != 0))
            status = errno;
        if (status == 0 && (info.st_size != done || fp_is_other(&info, row, since)))
            status = -1; /* looked at last: what was taken is what the file has had all the time */
        close(in);
        if (close(out) != 0 && status == 0 && errno != EINTR)
            status = errno;
        if (status != 0)
            unlinkat(to, last, 0);
        return status;
    }

    /* 0 if nobody but its one name has a part in a file, and its owner, group and attributes are what a new one would
       have; an errno; or -1. `owner` is what the system says of the directory that a new one would lie below. A label
       of SELinux follows from the place, as a new one's would. */
    static int fp_is_shared(int folder, const char *name, const struct stat *info, const struct stat *owner) {
        int status = 0;
    #if defined(__linux__)
        char names[256];
        ssize_t length;
        int descriptor;
    #endif
        if (info->st_nlink != 1 || info->st_uid != owner->st_uid || info->st_gid != owner->st_gid)
            return -1;
    #if defined(__linux__)
        descriptor = openat(folder, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
        if (descriptor < 0)
            return errno;
        length = flistxattr(descriptor, names, sizeof names);
        if (length < 0 ? errno != ENOTSUP : length != 0 && (length != 17 || memcmp(names, "security.selinux", 17) != 0))
            status = -1;
        close(descriptor);
    #else
        (void)folder;
        (void)name;
    #endif
        return status;
    }

    static int fp_link_one(fp_place *source, fp_place *target, const char *name, int mode, int64_t mtime,
                           const int64_t *row, int64_t since, const struct stat *owner) {
        struct stat info, linked;
        int status;
        const char *last;
        int from = fp_at(source, name, &last), to = fp_at(target, name, &last);
        if (fstatat(from, last, &info, AT_SYMLINK_NOFOLLOW) != 0)
            return errno;
        if (!S_ISREG(info.st_mode) || (int)(info.st_mode & 07777) != mode || (int64_t)info.FP_MTIME.tv_sec != mtime
            || info.FP_MTIME.tv_nsec != 0 || fp_is_other(&info, row, since))
            return -1;
        if (owner != NULL && (status = fp_is_shared(from, last, &info, owner)) != 0)
            return status;
        if (linkat(from, last, to, last, 0) != 0)
            return errno;
        /* whether it was that file which got the name */
        if (fstatat(to, last, &linked, AT_SYMLINK_NOFOLLOW) != 0)
            status = errno;
        else
            status = linked.st_ino == info.st_ino && linked.st_dev == info.st_dev ? 0 : -1;
        if (status != 0)
            unlinkat(to, last, 0);
        return status;
    }

    /* share_files for one file: what `how` says in the twin */
    static int fp_share_one(fp_place *source, fp_place *target, const char *name, int mode, int64_t mtime,
                            const int64_t *row, int64_t since, int how, uint8_t *buffer, size_t room) {
        struct stat owner;
        if (how == 0 || how == 2)
            return fp_double_one(source, target, name, mode, mtime, row, since, buffer, room);
        if (how == 3 && fstat(target->root, &owner) != 0)
            return errno;
        return fp_link_one(source, target, name, mode, mtime, row, since, how == 3 ? &owner : NULL);
    }
    """
    ctypedef struct fp_listing:
        const char **sorted
        int64_t count
        int64_t *rows

    int fp_list(int folder, fp_listing *listing, int64_t *where) noexcept nogil
    void fp_forget(fp_listing *listing) noexcept nogil
    ctypedef struct fp_place:
        int root
        int folder

    void fp_leave(fp_place *place) noexcept nogil
    int fp_at(fp_place *place, const char *name, const char **last) noexcept nogil
    int fp_read_one(fp_place *place, const char *name, int64_t size, int64_t mtime, int64_t offset, int64_t length,
                    uint8_t *out, int64_t *row) noexcept nogil
    int fp_write_one(fp_place *place, const char *name, const uint8_t *data, int64_t length, int mode,
                     int64_t mtime) noexcept nogil
    int fp_share_one(fp_place *source, fp_place *target, const char *name, int mode, int64_t mtime,
                     const int64_t *row, int64_t since, int how, uint8_t *buffer, size_t room) noexcept nogil
    int fp_stat(int folder, const char *name, int64_t *row) noexcept nogil

cdef enum:
    BLOCK = 512
    NAME_BYTES = 100
    CLONED = 0
    LINKED = 1
    COPIED = 2
    GIVEN = 3
    COPY_BYTES = 1 << 18
    DIGEST = 32
    LISTED = 7


cdef struct Name:
    const char *text
    size_t length


cdef Name *name_table(list names, list encoded) except? NULL:
    """The names as C strings, which live as long as both lists do."""
    cdef size_t count = len(names)
    cdef size_t i
    cdef Name *table = <Name *>malloc((count + 1) * sizeof(Name))
    if table == NULL:
        raise MemoryError
    try:
        for i in range(count):
            name = names[i]
            if type(name) is str:
                if PyUnicode_IS_COMPACT_ASCII(name):
                    table[i].text = <const char *>PyUnicode_DATA(name)
                    table[i].length = <size_t>PyUnicode_GET_LENGTH(name)
                else:
                    name = PyUnicode_EncodeFSDefault(name)
                    encoded.append(name)
            elif type(name) is not bytes:
                raise TypeError("a name is neither str nor bytes")
            if type(name) is bytes:
                table[i].text = PyBytes_AS_STRING(name)
                table[i].length = <size_t>PyBytes_GET_SIZE(name)
            if memchr(table[i].text, 0, table[i].length) != NULL:
                raise ValueError("a NUL in a name")
    except BaseException:
        free(table)
        raise
    return table


cdef int check_pieces(size_t count, const int64_t[::1] starts, const int64_t[::1] lengths, int64_t size) except -1:
    cdef size_t i
    if <size_t>starts.shape[0] != count or <size_t>lengths.shape[0] != count:
        raise ValueError("tables of different lengths")
    for i in range(count):
        if lengths[i] < 0 or starts[i] < 0 or starts[i] > size or lengths[i] > size - starts[i]:
            raise ValueError("a piece lies outside of the buffer")
    return 0


cdef list failures(const int32_t *status, size_t count):
    cdef size_t i
    cdef list found = []
    for i in range(count):
        if status[i] != 0:
            found.append((i, status[i]))
    return found


def list_folder(int folder):
    cdef fp_listing listing
    cdef int64_t where, i
    cdef int code
    with nogil:
        code = fp_list(folder, &listing, &where)
    try:
        if code != 0:
            if where >= 0:
                raise OSError(code, os.strerror(code), PyUnicode_DecodeFSDefault(listing.sorted[where]))
            raise OSError(code, os.strerror(code))
        names = [PyUnicode_DecodeFSDefault(listing.sorted[i]) for i in range(listing.count)]
        rows = array("q")
        if listing.count:
            rows.frombytes((<const uint8_t[:listing.count * 56]><const uint8_t *>listing.rows))
        return names, rows
    finally:
        fp_forget(&listing)


def stat_files(int folder, list names):
    cdef size_t count = len(names)
    cdef size_t i
    cdef list encoded = []
    cdef Name *table = name_table(names, encoded)
    cdef int64_t[::1] out
    cdef fp_place place
    cdef const char *last
    cdef int there
    place.root = folder
    place.folder = -1
    try:
        rows = array("q", bytes(56 * count))
        if count:
            out = rows
            with nogil:
                for i in range(count):
                    there = fp_at(&place, table[i].text, &last)
                    fp_stat(there, last, &out[LISTED * i])
                fp_leave(&place)
        return rows
    finally:
        free(table)


def read_files(int folder, list names, const int64_t[::1] sizes, const int64_t[::1] mtimes,
               const int64_t[::1] offsets, const int64_t[::1] starts, const int64_t[::1] lengths, uint8_t[::1] out,
               int64_t[::1] rows=None):
    cdef size_t count = len(names)
    cdef size_t i
    cdef uint8_t nothing = 0
    cdef uint8_t *data = &out[0] if out.shape[0] else &nothing
    cdef Name *table
    cdef list encoded = []
    cdef int32_t *status
    cdef int64_t *row = NULL
    cdef fp_place place
    place.root = folder
    place.folder = -1
    check_pieces(count, starts, lengths, out.shape[0])
    if not (<size_t>sizes.shape[0] == <size_t>mtimes.shape[0] == <size_t>offsets.shape[0] == count):
        raise ValueError("tables of different lengths")
    if rows is not None and <size_t>rows.shape[0] != LISTED * count:
        raise ValueError("tables of different lengths")
    for i in range(count):
        if offsets[i] < 0:
            raise ValueError("a negative offset")
    if count == 0:
        return []
    if rows is not None:
        row = &rows[0]
        memset(row, 0, LISTED * count * sizeof(int64_t))
    table = name_table(names, encoded)
    status = <int32_t *>malloc(count * sizeof(int32_t))
    try:
        if status == NULL:
            raise MemoryError
        with nogil:
            for i in range(count):
                status[i] = fp_read_one(&place, table[i].text, sizes[i], mtimes[i], offsets[i], lengths[i],
                                        data + starts[i], NULL if row == NULL else row + LISTED * i)
            fp_leave(&place)
        return failures(status, count)
    finally:
        free(status)
        free(table)


def write_files(int folder, list names, const uint8_t[::1] data, const int64_t[::1] starts,
                const int64_t[::1] lengths, const int64_t[::1] modes, const int64_t[::1] mtimes):
    cdef size_t count = len(names)
    cdef size_t i
    cdef uint8_t nothing = 0
    cdef const uint8_t *source = &data[0] if data.shape[0] else &nothing
    cdef Name *table
    cdef list encoded = []
    cdef int32_t *status
    cdef fp_place place
    place.root = folder
    place.folder = -1
    check_pieces(count, starts, lengths, data.shape[0])
    if <size_t>modes.shape[0] != count or <size_t>mtimes.shape[0] != count:
        raise ValueError("tables of different lengths")
    if count == 0:
        return []
    table = name_table(names, encoded)
    status = <int32_t *>malloc(count * sizeof(int32_t))
    try:
        if status == NULL:
            raise MemoryError
        with nogil:
            for i in range(count):
                status[i] = fp_write_one(&place, table[i].text, source + starts[i], lengths[i],
                                         <int>modes[i], mtimes[i])
            fp_leave(&place)
        return failures(status, count)
    finally:
        free(status)
        free(table)


def share_files(int source, int target, list names, const int64_t[::1] modes, const int64_t[::1] mtimes,
                const int64_t[::1] rows, int64_t since, int how):
    cdef size_t count = len(names)
    cdef size_t i
    cdef Name *table
    cdef list encoded = []
    cdef int32_t *status = NULL
    cdef uint8_t *buffer = NULL
    cdef const int64_t *row = NULL
    cdef fp_place origin
    cdef fp_place place
    origin.root = source
    place.root = target
    origin.folder = place.folder = -1
    if how not in (CLONED, LINKED, COPIED, GIVEN):
        raise ValueError("no such way to share files")
    if <size_t>modes.shape[0] != count or <size_t>mtimes.shape[0] != count:
        raise ValueError("tables of different lengths")
    if rows is not None and <size_t>rows.shape[0] != LISTED * count:
        raise ValueError("tables of different lengths")
    if count == 0:
        return []
    if rows is not None:
        row = <const int64_t *>&rows[0]
    table = name_table(names, encoded)
    status = <int32_t *>malloc(count * sizeof(int32_t))
    try:
        if how == COPIED:
            buffer = <uint8_t *>malloc(COPY_BYTES)
        if status == NULL or (how == COPIED and buffer == NULL):
            raise MemoryError
        with nogil:
            for i in range(count):
                status[i] = fp_share_one(&origin, &place, table[i].text, <int>modes[i], mtimes[i],
                                         NULL if row == NULL else row + LISTED * i, since, how, buffer, COPY_BYTES)
            fp_leave(&origin)
            fp_leave(&place)
        return failures(status, count)
    finally:
        free(buffer)
        free(status)
        free(table)


def unfilled(Py_ssize_t n_bytes):
    if n_bytes < 0:
        raise ValueError("a negative size")
    return PyByteArray_FromStringAndSize(NULL, n_bytes)


def fill_zeros(const int64_t[::1] starts, const int64_t[::1] lengths, uint8_t[::1] out):
    cdef size_t count = <size_t>starts.shape[0]
    cdef size_t i
    check_pieces(count, starts, lengths, out.shape[0])
    with nogil:
        for i in range(count):
            if lengths[i]:
                memset(&out[starts[i]], 0, <size_t>lengths[i])


cdef void octal(uint8_t *field, int digits, int64_t value) noexcept nogil:
    cdef int k = digits
    while k > 0:
        k -= 1
        field[k] = <uint8_t>(48 + (value & 7))
        value >>= 3


cdef void write_header(uint8_t *block, const char *name, size_t n_name, const char *target, size_t n_target,
                       uint8_t kind, int64_t mode, int64_t size, int64_t mtime) noexcept nogil:
    cdef int64_t total = 0
    cdef int k
    memset(block, 0, BLOCK)
    memcpy(block, name, n_name)
    octal(block + 100, 7, mode)
    octal(block + 108, 7, 0)
    octal(block + 116, 7, 0)
    octal(block + 124, 11, size)
    octal(block + 136, 11, mtime)
    memset(block + 148, 32, 8)
    block[156] = kind
    memcpy(block + 157, target, n_target)
    memcpy(block + 257, b"ustar  ", 7)
    for k in range(BLOCK):
        total += block[k]
    octal(block + 148, 6, total)
    block[154] = 0


def tar_headers(list names, list targets, const uint8_t[::1] kinds, const int64_t[::1] modes,
                const int64_t[::1] sizes, const int64_t[::1] mtimes, const int64_t[::1] places, uint8_t[::1] out):
    cdef size_t count = len(names)
    cdef size_t i
    cdef Name *name_of = NULL
    cdef Name *target_of = NULL
    cdef list encoded = []
    if not (<size_t>len(targets) == <size_t>kinds.shape[0] == <size_t>modes.shape[0] == <size_t>sizes.shape[0]
            == <size_t>mtimes.shape[0] == <size_t>places.shape[0] == count):
        raise ValueError("tables of different lengths")
    if count == 0:
        return
    try:
        name_of = name_table(names, encoded)
        target_of = name_table(targets, encoded)
        for i in range(count):
            if name_of[i].length > NAME_BYTES or target_of[i].length > NAME_BYTES:
                raise ValueError("a name of over 100 bytes")
            if places[i] < 0 or out.shape[0] < BLOCK or places[i] > out.shape[0] - BLOCK:
                raise ValueError("a header lies outside of the buffer")
            if not (0 <= sizes[i] < 1 << 33 and 0 <= mtimes[i] < 1 << 33 and 0 <= modes[i] < 1 << 21):
                raise ValueError("a number is too large for its field")
        with nogil:
            for i in range(count):
                write_header(&out[places[i]], name_of[i].text, name_of[i].length, target_of[i].text,
                             target_of[i].length, kinds[i], modes[i], sizes[i], mtimes[i])
    finally:
        free(name_of)
        free(target_of)


cdef size_t put_text(char *out, size_t at, const char *text, size_t length) noexcept nogil:
    memcpy(out + at, text, length)
    return at + length


cdef size_t put_number(char *out, size_t at, int64_t value) noexcept nogil:
    cdef char digits[20]
    cdef int k = 20
    while True:
        k -= 1
        digits[k] = <char>(48 + value % 10)
        value //= 10
        if value == 0:
            break
    return put_text(out, at, digits + k, <size_t>(20 - k))


cdef size_t put_hex(char *out, size_t at, const uint8_t *data, size_t length) noexcept nogil:
    cdef size_t k
    for k in range(length):
        out[at + 2 * k] = HEX[data[k] >> 4]
        out[at + 2 * k + 1] = HEX[data[k] & 15]
    return at + 2 * length


cdef const char *HEX = b"0123456789abcdef"


def file_lines(list quoted, const int64_t[::1] modes, const int64_t[::1] mtimes, int group, const int64_t[::1] sizes,
               const uint8_t[::1] digests, list ends):
    cdef size_t count = len(quoted)
    cdef size_t i
    cdef size_t at = 0
    cdef size_t total = 0
    cdef Name *name = NULL
    cdef Name *end = NULL
    cdef char *out = NULL
    cdef list encoded = []
    if not (<size_t>modes.shape[0] == <size_t>mtimes.shape[0] == <size_t>sizes.shape[0] == <size_t>len(ends) == count
            and <size_t>digests.shape[0] == DIGEST * count):
        raise ValueError("tables of different lengths")
    if group < 0:
        raise ValueError("a negative number")
    try:
        name = name_table(quoted, encoded)
        end = name_table(ends, encoded)
        for i in range(count):
            if modes[i] < 0 or mtimes[i] < 0 or sizes[i] < 0:
                raise ValueError("a negative number")
            # The literals below, four numbers, and the digest.
            total += name[i].length + end[i].length + 69 + 4 * 20 + 2 * DIGEST
        out = <char *>malloc(total + 1)
        if out == NULL:
            raise MemoryError
        with nogil:
            for i in range(count):
                at = put_text(out, at, b'{"path":', 8)
                at = put_text(out, at, name[i].text, name[i].length)
                at = put_text(out, at, b',"kind":"file","mode":', 22)
                at = put_number(out, at, modes[i])
                at = put_text(out, at, b',"mtime":', 9)
                at = put_number(out, at, mtimes[i])
                at = put_text(out, at, b',"group":', 9)
                at = put_number(out, at, group)
                at = put_text(out, at, b',"size":', 8)
                at = put_number(out, at, sizes[i])
                at = put_text(out, at, b',"digest":"', 11)
                at = put_hex(out, at, &digests[DIGEST * i], DIGEST)
                at = put_text(out, at, b'"', 1)
                at = put_text(out, at, end[i].text, end[i].length)
        return out[:at]
    finally:
        free(out)
        free(name)
        free(end)


cdef struct Line:
    int64_t path    # where it begins
    int64_t n_path  # its bytes
    int64_t verdict
    int64_t n_verdict
    int64_t numbers[4]  # mode, mtime, group, size
    int64_t digest  # where it begins, in hexadecimal

cdef enum:
    MODES = 0o777

#: What no time reaches.
cdef int64_t TIMES = <int64_t>1 << 33


cdef int64_t skip(const char *data, int64_t at, int64_t end, const char *text, int64_t length) noexcept nogil:
    """The place behind a text, or -1 if that does not stand here."""
    if at < 0 or length > end - at or memcmp(data + at, text, <size_t>length) != 0:
        return -1
    return at + length


cdef int64_t skip_text(const char *data, int64_t at, int64_t end) noexcept nogil:
    """The place of the quote behind a text that JSON has as it is, or -1."""
    if at < 0:
        return -1
    while at < end and 32 <= data[at] < 127 and data[at] != 34 and data[at] != 92:
        at += 1
    return at if at < end and data[at] == 34 else -1


cdef int64_t skip_number(const char *data, int64_t at, int64_t end, int64_t *value) noexcept nogil:
    """The place behind a number as JSON has it, of at most 18 digits, or -1."""
    cdef int64_t start = at
    value[0] = 0
    if at < 0:
        return -1
    while at < end and 48 <= data[at] <= 57 and at - start < 19:
        value[0] = 10 * value[0] + (data[at] - 48)
        at += 1
    if at == start or at - start > 18 or (data[start] == 48 and at - start > 1):
        return -1
    return at


cdef int64_t read_line(const char *data, int64_t at, int64_t end, Line *line) noexcept nogil:
    """The place behind a line that is as `file_lines` writes it, or -1."""
    cdef int64_t k
    line.path = at = skip(data, at, end, b'{"path":"', 9)
    at = skip_text(data, at, end)
    line.n_path = at - line.path
    at = skip(data, at, end, b'","kind":"file","mode":', 23)
    at = skip_number(data, at, end, &line.numbers[0])
    at = skip(data, at, end, b',"mtime":', 9)
    at = skip_number(data, at, end, &line.numbers[1])
    at = skip(data, at, end, b',"group":', 9)
    at = skip_number(data, at, end, &line.numbers[2])
    at = skip(data, at, end, b',"size":', 8)
    at = skip_number(data, at, end, &line.numbers[3])
    line.digest = at = skip(data, at, end, b',"digest":"', 11)
    if at < 0 or 2 * DIGEST > end - at:
        return -1
    for k in range(2 * DIGEST):
        if not (48 <= data[at + k] <= 57 or 97 <= data[at + k] <= 102):
            return -1
    at = skip(data, at + 2 * DIGEST, end, b'"', 1)
    line.verdict = line.n_verdict = 0
    if at >= 0 and at < end and data[at] == 44:
        line.verdict = at = skip(data, at, end, b',"verdict":"', 12)
        at = skip_text(data, at, end)
        line.n_verdict = at - line.verdict
        at = skip(data, at, end, b'"', 1)
    at = skip(data, at, end, b"}\n", 2)
    return -1 if line.numbers[0] > MODES or line.numbers[1] >= TIMES else at


cdef uint8_t hex_digit(char digit) noexcept nogil:
    return <uint8_t>(digit - 48 if digit <= 57 else digit - 87)


cdef object column(const Line *lines, int64_t count, int k):
    cdef int64_t i
    cdef int64_t[::1] out
    numbers = array("q", bytes(8 * count))
    if count:
        out = numbers
        for i in range(count):
            out[i] = lines[i].numbers[k]
    return numbers


def read_lines(bytes data, int64_t start):
    cdef const char *text = PyBytes_AS_STRING(data)
    cdef int64_t end = PyBytes_GET_SIZE(data)
    cdef int64_t stop = start
    cdef int64_t following, i, k
    cdef int64_t count = 0
    cdef int64_t room = 0
    cdef Line *lines = NULL
    cdef Line *more
    cdef Line line
    cdef Line *last = NULL
    cdef const char *digest
    cdef uint8_t *out
    if not 0 <= start <= end:
        raise ValueError("a place outside of the text")
    try:
        with nogil:
            while True:
                following = read_line(text, stop, end, &line)
                if following < 0:
                    break
                if count == room:
                    room = 2 * room + 64
                    more = <Line *>realloc(lines, <size_t>room * sizeof(Line))
                    if more == NULL:
                        with gil:
                            raise MemoryError
                    lines = more
                lines[count] = line
                count += 1
                stop = following
        paths = []
        verdicts = []
        digests = bytes(DIGEST * count)
        out = <uint8_t *>PyBytes_AS_STRING(digests)
        verdict = ""
        for i in range(count):
            paths.append(PyUnicode_DecodeASCII(text + lines[i].path, lines[i].n_path, NULL))
            if (last == NULL or last.n_verdict != lines[i].n_verdict
                    or memcmp(text + last.verdict, text + lines[i].verdict, <size_t>last.n_verdict) != 0):
                last = &lines[i]
                verdict = PyUnicode_DecodeASCII(text + last.verdict, last.n_verdict, NULL)
            verdicts.append(verdict)
            digest = text + lines[i].digest
            for k in range(DIGEST):
                out[DIGEST * i + k] = <uint8_t>(16 * hex_digit(digest[2 * k]) + hex_digit(digest[2 * k + 1]))
        return Lines(stop, paths, *[column(lines, count, k) for k in range(4)], digests, verdicts)
    finally:
        free(lines)


def lay_whole(const int64_t[::1] headers, const int64_t[::1] sizes, const int64_t[::1] frames, int64_t member,
              int64_t frame, int64_t position, int64_t[::1] at, int64_t[::1] owner):
    cdef int64_t count = sizes.shape[0]
    cdef int64_t n_frames = frames.shape[0]
    cdef int64_t data, room
    if not (headers.shape[0] == at.shape[0] == owner.shape[0] == count):
        raise ValueError("tables of different lengths")
    if member < 0 or frame < 0 or position < 0:
        raise ValueError("a negative number")
    with nogil:
        while member < count:
            while frame < n_frames and position == frames[frame]:
                frame += 1
                position = 0
            if frame >= n_frames:
                break
            # No sum of what may be very large.
            room = frames[frame] - position - headers[member]
            if sizes[member] > room or sizes[member] + ((-sizes[member]) & (BLOCK - 1)) > room:
                break
            data = position + headers[member]
            at[member] = data
            owner[member] = frame
            position = data + sizes[member] + ((-sizes[member]) & (BLOCK - 1))
            member += 1
    return member, frame, position


cdef bint is_zero(const uint8_t *data, int64_t length) noexcept nogil:
    return length <= 0 or (data[0] == 0 and memcmp(data, data + 1, <size_t>(length - 1)) == 0)


def odd_place(const uint8_t[::1] plain, bytes headers, const int64_t[::1] lengths, const int64_t[::1] starts,
              const int64_t[::1] sizes):
    cdef int64_t count = lengths.shape[0]
    cdef int64_t n_headers = PyBytes_GET_SIZE(headers)
    cdef int64_t n_bytes = plain.shape[0]
    cdef int64_t position = 0
    cdef int64_t end = 0
    cdef int64_t i
    cdef int64_t found = -1
    cdef const uint8_t *header = <const uint8_t *>PyBytes_AS_STRING(headers)
    cdef uint8_t nothing = 0
    cdef const uint8_t *data = &plain[0] if n_bytes else &nothing
    check_pieces(<size_t>count, starts, sizes, n_bytes)
    for i in range(count):
        if lengths[i] < 0 or lengths[i] > n_headers - position or starts[i] - lengths[i] < end:
            raise ValueError("a header lies outside of its place")
        position += lengths[i]
        end = starts[i] + sizes[i]
    with nogil:
        position = end = 0
        for i in range(count):
            if (not is_zero(data + end, starts[i] - lengths[i] - end)
                    or memcmp(data + starts[i] - lengths[i], header + position, <size_t>lengths[i]) != 0):
                found = i
                break
            position += lengths[i]
            end = starts[i] + sizes[i]
        if found < 0 and not is_zero(data + end, n_bytes - end):
            found = count
    return found

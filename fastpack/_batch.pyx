# cython: language_level=3
"""Many small files at once: read, written, and their tar headers. Contracts stand in ``_batch_py.py``, the twin.

Validation happens with the GIL, the loops run without it: what a file costs is what the kernel takes for it.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int32_t, int64_t, uint8_t
from libc.stdlib cimport free, malloc
from libc.string cimport memchr, memcpy, memset

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <fcntl.h>
    #include <sys/stat.h>
    #include <sys/types.h>
    #include <unistd.h>
    #include <errno.h>
    #include <stdint.h>
    #include <time.h>

    /* 0; an errno; or -1 for a file that is not a regular one of that size and time (mtime in nanoseconds) */
    static int fp_read_one(int folder, const char *name, int64_t size, int64_t mtime, int64_t offset, int64_t length,
                           uint8_t *out) {
        struct stat info;
        int64_t done = 0;
        int status = 0;
        int descriptor = openat(folder, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
        if (descriptor < 0)
            return errno;
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
                     || (int64_t)info.st_mtim.tv_sec * 1000000000 + info.st_mtim.tv_nsec != mtime)
                status = -1;
        }
        close(descriptor);
        return status;
    }

    static int fp_write_one(int folder, const char *name, const uint8_t *data, int64_t length, int mode,
                            int64_t mtime) {
        struct timespec times[2];
        int64_t done = 0;
        int status = 0;
        int descriptor = openat(folder, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
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
        if (status == 0 && fchmod(descriptor, (mode_t)mode) != 0)
            status = errno;
        if (status == 0 && futimens(descriptor, times) != 0)
            status = errno;
        /* some file systems say only here that there was no room */
        if (close(descriptor) != 0 && status == 0 && errno != EINTR)
            status = errno;
        return status;
    }
    """
    int fp_read_one(int folder, const char *name, int64_t size, int64_t mtime, int64_t offset, int64_t length,
                    uint8_t *out) noexcept nogil
    int fp_write_one(int folder, const char *name, const uint8_t *data, int64_t length, int mode,
                     int64_t mtime) noexcept nogil

cdef enum:
    BLOCK = 512
    NAME = 100


cdef const char **name_table(list names) except? NULL:
    """The names as C strings, which live as long as the list does."""
    cdef size_t count = len(names)
    cdef size_t i
    cdef const char **table = <const char **>malloc((count + 1) * sizeof(char *))
    if table == NULL:
        raise MemoryError
    for i in range(count):
        name = names[i]
        if type(name) is not bytes:
            free(table)
            raise TypeError("a name is not bytes")
        table[i] = PyBytes_AS_STRING(name)
        if memchr(table[i], 0, <size_t>PyBytes_GET_SIZE(name)) != NULL:
            free(table)
            raise ValueError("a NUL in a name")
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


def read_files(int folder, list names, const int64_t[::1] sizes, const int64_t[::1] mtimes,
               const int64_t[::1] offsets, const int64_t[::1] starts, const int64_t[::1] lengths, uint8_t[::1] out):
    cdef size_t count = len(names)
    cdef size_t i
    cdef uint8_t nothing = 0
    cdef uint8_t *data = &out[0] if out.shape[0] else &nothing
    cdef const char **table
    cdef int32_t *status
    check_pieces(count, starts, lengths, out.shape[0])
    if not (<size_t>sizes.shape[0] == <size_t>mtimes.shape[0] == <size_t>offsets.shape[0] == count):
        raise ValueError("tables of different lengths")
    for i in range(count):
        if offsets[i] < 0:
            raise ValueError("a negative offset")
    if count == 0:
        return []
    table = name_table(names)
    status = <int32_t *>malloc(count * sizeof(int32_t))
    try:
        if status == NULL:
            raise MemoryError
        with nogil:
            for i in range(count):
                status[i] = fp_read_one(folder, table[i], sizes[i], mtimes[i], offsets[i], lengths[i],
                                        data + starts[i])
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
    cdef const char **table
    cdef int32_t *status
    check_pieces(count, starts, lengths, data.shape[0])
    if <size_t>modes.shape[0] != count or <size_t>mtimes.shape[0] != count:
        raise ValueError("tables of different lengths")
    if count == 0:
        return []
    table = name_table(names)
    status = <int32_t *>malloc(count * sizeof(int32_t))
    try:
        if status == NULL:
            raise MemoryError
        with nogil:
            for i in range(count):
                status[i] = fp_write_one(folder, table[i], source + starts[i], lengths[i], <int>modes[i], mtimes[i])
        return failures(status, count)
    finally:
        free(status)
        free(table)


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
    cdef const char **name_of = NULL
    cdef const char **target_of = NULL
    cdef size_t *lengths = NULL
    if not (<size_t>len(targets) == <size_t>kinds.shape[0] == <size_t>modes.shape[0] == <size_t>sizes.shape[0]
            == <size_t>mtimes.shape[0] == <size_t>places.shape[0] == count):
        raise ValueError("tables of different lengths")
    if count == 0:
        return
    try:
        name_of = name_table(names)
        target_of = name_table(targets)
        lengths = <size_t *>malloc(2 * count * sizeof(size_t))
        if lengths == NULL:
            raise MemoryError
        for i in range(count):
            lengths[2 * i] = <size_t>PyBytes_GET_SIZE(names[i])
            lengths[2 * i + 1] = <size_t>PyBytes_GET_SIZE(targets[i])
            if lengths[2 * i] > NAME or lengths[2 * i + 1] > NAME:
                raise ValueError("a name of over 100 bytes")
            if places[i] < 0 or out.shape[0] < BLOCK or places[i] > out.shape[0] - BLOCK:
                raise ValueError("a header lies outside of the buffer")
            if not (0 <= sizes[i] < 1 << 33 and 0 <= mtimes[i] < 1 << 33 and 0 <= modes[i] < 1 << 21):
                raise ValueError("a number is too large for its field")
        with nogil:
            for i in range(count):
                write_header(&out[places[i]], name_of[i], lengths[2 * i], target_of[i], lengths[2 * i + 1],
                             kinds[i], modes[i], sizes[i], mtimes[i])
    finally:
        free(name_of)
        free(target_of)
        free(lengths)

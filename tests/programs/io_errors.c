/* Makes chosen calls of the C library fail, for tests of what an error of a disk does.
 *
 *     cc -shared -fPIC -o io_errors.so io_errors.c -ldl
 *     LD_PRELOAD=./io_errors.so python ...
 *
 * In that process, ctypes.CDLL(None).shim_set(b"write,5,*.tmp-*,3,0") makes the third call that writes to a file whose path
 * matches the pattern fail with errno 5 (EIO), and shim_seen() returns how many such calls there were since. The last number
 * is a step: 2 fails the third, fifth, seventh call, and so on; 0 only the third. The calls are open, read, write, fsync,
 * close and rename; each stands for all functions of its kind. Three errors are no errno: -1 transfers one byte only, -2 loses
 * what is written and says that all is well, -3 makes a flush take a fifth of a second. An empty text lets everything pass.
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

enum { SHORT = -1, LOST = -2, SLOW = -3 };

static struct {
    char call[16];
    int error;
    char pattern[256];
    long first, step; /* the calls that fail, from 1 */
    long seen;
} fault;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* Chooses the calls that fail: "CALL,ERRNO,PATTERN,FIRST,STEP". Returns 0, or -1 for a text that is none. */
int shim_set(const char *text)
{
    pthread_mutex_lock(&lock);
    memset(&fault, 0, sizeof fault);
    int fields = sscanf(text, "%15[^,],%d,%255[^,],%ld,%ld", fault.call, &fault.error, fault.pattern, &fault.first, &fault.step);
    if (fields != 5)
        memset(&fault, 0, sizeof fault);
    pthread_mutex_unlock(&lock);
    return *text && fields != 5 ? -1 : 0;
}

/* Returns how many calls of the chosen kind there were on matching files since shim_set. */
long shim_seen(void)
{
    return fault.seen;
}

/* Returns the error for this call: an errno, SHORT, LOST, SLOW, or 0 for none. */
static int error_of(const char *call, const char *path)
{
    int error = 0;
    pthread_mutex_lock(&lock);
    if (!strcmp(fault.call, call) && fnmatch(fault.pattern, path, 0) == 0) {
        fault.seen++;
        long since = fault.seen - fault.first;
        if (since == 0 || (since > 0 && fault.step && since % fault.step == 0))
            error = fault.error;
    }
    pthread_mutex_unlock(&lock);
    return error;
}

static int error_of_descriptor(const char *call, int descriptor)
{
    if (strcmp(fault.call, call))
        return 0;
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0)
        return 0;
    path[size] = 0;
    return error_of(call, path);
}

/* Makes `real` the function that this one stands before. */
#define FIND_REAL(name)                                                                                                          \
    static __typeof__(&name) real;                                                                                               \
    if (!real)                                                                                                                   \
        real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

#define FAIL_IF(error)                                                                                                           \
    if ((error) > 0) {                                                                                                           \
        errno = (error);                                                                                                         \
        return -1;                                                                                                               \
    }

/* A function that transfers `size` bytes to or from one buffer. */
#define TRANSFER(name, call, parameters, arguments)                                                                              \
    ssize_t name parameters                                                                                                      \
    {                                                                                                                            \
        FIND_REAL(name);                                                                                                         \
        int error = error_of_descriptor(call, descriptor);                                                                       \
        FAIL_IF(error);                                                                                                          \
        if (error == SHORT && size > 1)                                                                                          \
            size = 1;                                                                                                            \
        if (error == LOST) /* as far as the file goes, and no further: the disk has zeros there */                               \
            return lseek(descriptor, size, SEEK_CUR) < 0 ? -1 : (ssize_t)size;                                                   \
        return real arguments;                                                                                                   \
    }

TRANSFER(write, "write", (int descriptor, const void *data, size_t size), (descriptor, data, size))
TRANSFER(pwrite, "write", (int descriptor, const void *data, size_t size, off_t at), (descriptor, data, size, at))
TRANSFER(pwrite64, "write", (int descriptor, const void *data, size_t size, off64_t at), (descriptor, data, size, at))
TRANSFER(read, "read", (int descriptor, void *data, size_t size), (descriptor, data, size))
TRANSFER(pread, "read", (int descriptor, void *data, size_t size, off_t at), (descriptor, data, size, at))
TRANSFER(pread64, "read", (int descriptor, void *data, size_t size, off64_t at), (descriptor, data, size, at))

/* A function that transfers to or from several buffers. */
#define TRANSFER_PARTS(name, call, parameters, arguments)                                                                        \
    ssize_t name parameters                                                                                                      \
    {                                                                                                                            \
        FIND_REAL(name);                                                                                                         \
        int error = error_of_descriptor(call, descriptor);                                                                       \
        FAIL_IF(error);                                                                                                          \
        struct iovec first = {parts->iov_base, 1};                                                                               \
        if (error == SHORT && parts->iov_len > 1) {                                                                              \
            parts = &first;                                                                                                      \
            count = 1;                                                                                                           \
        }                                                                                                                        \
        return real arguments;                                                                                                   \
    }

TRANSFER_PARTS(writev, "write", (int descriptor, const struct iovec *parts, int count), (descriptor, parts, count))
TRANSFER_PARTS(readv, "read", (int descriptor, const struct iovec *parts, int count), (descriptor, parts, count))
TRANSFER_PARTS(preadv, "read", (int descriptor, const struct iovec *parts, int count, off_t at), (descriptor, parts, count, at))
TRANSFER_PARTS(preadv64, "read", (int descriptor, const struct iovec *parts, int count, off64_t at), (descriptor, parts, count, at))
TRANSFER_PARTS(preadv2, "read", (int descriptor, const struct iovec *parts, int count, off_t at, int flags),
               (descriptor, parts, count, at, flags))
TRANSFER_PARTS(preadv64v2, "read", (int descriptor, const struct iovec *parts, int count, off64_t at, int flags),
               (descriptor, parts, count, at, flags))

#define SYNC(name)                                                                                                               \
    int name(int descriptor)                                                                                                     \
    {                                                                                                                            \
        FIND_REAL(name);                                                                                                         \
        int error = error_of_descriptor("fsync", descriptor);                                                                    \
        FAIL_IF(error);                                                                                                          \
        if (error == SLOW)                                                                                                       \
            usleep(200000);                                                                                                      \
        return real(descriptor);                                                                                                 \
    }

SYNC(fsync)
SYNC(fdatasync)

/* The descriptor is gone after a close that fails, as on Linux. */
int close(int descriptor)
{
    FIND_REAL(close);
    int error = error_of_descriptor("close", descriptor);
    int result = real(descriptor);
    FAIL_IF(error);
    return result;
}

int rename(const char *from, const char *to)
{
    FIND_REAL(rename);
    int error = error_of("rename", to);
    FAIL_IF(error);
    return real(from, to);
}

int renameat(int from_directory, const char *from, int to_directory, const char *to)
{
    FIND_REAL(renameat);
    int error = error_of("rename", to);
    FAIL_IF(error);
    return real(from_directory, from, to_directory, to);
}

/* A function that opens a path; the mode is there for new files only. */
#define OPEN(name, parameters, arguments)                                                                                        \
    int name parameters                                                                                                          \
    {                                                                                                                            \
        FIND_REAL(name);                                                                                                         \
        va_list rest;                                                                                                            \
        va_start(rest, flags);                                                                                                   \
        int mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, int) : 0;                                                        \
        va_end(rest);                                                                                                            \
        int error = error_of("open", path);                                                                                      \
        FAIL_IF(error);                                                                                                          \
        return real arguments;                                                                                                   \
    }

OPEN(open, (const char *path, int flags, ...), (path, flags, mode))
OPEN(open64, (const char *path, int flags, ...), (path, flags, mode))
OPEN(openat, (int directory, const char *path, int flags, ...), (directory, path, flags, mode))
OPEN(openat64, (int directory, const char *path, int flags, ...), (directory, path, flags, mode))

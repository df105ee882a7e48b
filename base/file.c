#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define READ_BYTES ((size_t)64 * 1024)

static status_t open_error(const char *path, int error)
{
    int code = STATUS_UNAVAILABLE;
    switch (error) {
    case ENOENT:
    case ENOTDIR:
        code = STATUS_NOT_FOUND;
        break;
    case EACCES:
    case EPERM:
        code = STATUS_PERMISSION_DENIED;
        break;
    case ELOOP:
    case ENAMETOOLONG:
    case EIO:
    case ENXIO:
        code = STATUS_DATA_LOSS;
        break;
    default:
        break;
    }
    return status_errorf(code, "%s: %s", path, strerror(error));
}

static const char *kind_name(mode_t mode)
{
    switch (mode & S_IFMT) {
    case S_IFDIR:
        return "a directory";
    case S_IFIFO:
        return "a FIFO";
    case S_IFSOCK:
        return "a socket";
    default:
        return "a device";
    }
}

static status_t check_regular(const char *path, const struct stat *st, size_t max_bytes)
{
    if (!S_ISREG(st->st_mode)) {
        return status_errorf(STATUS_DATA_LOSS, "%s: is %s, not a file", path,
                             kind_name(st->st_mode));
    }
    if ((uint64_t)st->st_size > max_bytes) {
        return status_errorf(STATUS_DATA_LOSS, "%s: %lld bytes, limit %zu", path,
                             (long long)st->st_size, max_bytes);
    }
    return status_ok();
}

/* Reads to the end of the file, which may grow or shrink meanwhile. */
static status_t read_all(int fd, const char *path, size_t max_bytes, struct bytes *out)
{
    const size_t start = out->size;
    for (;;) {
        const size_t so_far = out->size - start;
        // One byte more than allowed is asked for, to see that there is more.
        const size_t room = max_bytes - so_far;
        const size_t want = room < READ_BYTES ? room + 1 : READ_BYTES;
        uint8_t *tail;
        status_t s = bytes_reserve(out, want, &tail);
        if (!status_is_ok(&s)) {
            return status_wrapf(s, "%s", path);
        }
        const ssize_t n = read(fd, tail, want);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return open_error(path, errno);
        }
        if (n == 0) {
            return status_ok();
        }
        if ((size_t)n > room) {
            return status_errorf(STATUS_DATA_LOSS, "%s: more than %zu bytes", path, max_bytes);
        }
        out->size += (size_t)n;
    }
}

status_t file_read(const char *path, size_t max_bytes, struct bytes *out)
{
    // O_NONBLOCK: opening a FIFO nobody writes to must not wait.
    const int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
    if (fd < 0) {
        return open_error(path, errno);
    }
    const size_t start = out->size;
    status_t s;
    struct stat st;
    if (fstat(fd, &st) != 0) {
        s = open_error(path, errno);
        goto undo;
    }
    TRY_GOTO(s, check_regular(path, &st, max_bytes), undo);
    TRY_GOTO(s, read_all(fd, path, max_bytes, out), undo);
    if (out->size - start < (size_t)st.st_size) {
        s = status_errorf(STATUS_DATA_LOSS, "%s: shrank from %lld to %zu bytes while it was read",
                          path, (long long)st.st_size, out->size - start);
        goto undo;
    }
    close(fd);
    return status_ok();

undo:
    out->size = start;
    close(fd);
    return s;
}

status_t file_join(char *buf, size_t buf_bytes, const char *dir, const char *name)
{
    const size_t length = strlen(dir);
    const char *separator = length > 0 && dir[length - 1] == '/' ? "" : "/";
    const int n = snprintf(buf, buf_bytes, "%s%s%s", dir, separator, name);
    if (n < 0 || (size_t)n >= buf_bytes) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "path of %d bytes, limit %zu: %s/%s", n,
                             buf_bytes - 1, dir, name);
    }
    return status_ok();
}

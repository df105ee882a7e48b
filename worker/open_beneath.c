#include "worker/open_beneath.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdbool.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MAX_NAME_BYTES 255

/* O_NONBLOCK: opening a FIFO nobody writes to must not wait. */
#define OPEN_FLAGS (O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY)

static status_t check_name(const char *name)
{
    const size_t length = strnlen(name, MAX_NAME_BYTES + 1);
    if (length == 0 || length > MAX_NAME_BYTES) {
        return status_errorf(STATUS_DATA_LOSS, "a file name is empty or longer than %d bytes",
                             MAX_NAME_BYTES);
    }
    for (size_t i = 0; i < length; i++) {
        const unsigned char c = (unsigned char)name[i];
        if (c < 0x20 || c == 0x7f) {
            return status_errorf(STATUS_DATA_LOSS, "a file name has control characters");
        }
    }
    if (strpbrk(name, "/\\") != NULL || strcmp(name, ".") == 0 || strcmp(name, "..") == 0) {
        return status_errorf(STATUS_DATA_LOSS, "file name \"%s\" leads out of the model directory",
                             name);
    }
    return status_ok();
}

/* -1 and errno on failure. */
static int open_in_dir(int dir_fd, const char *name)
{
    const struct open_how how = {
        .flags = OPEN_FLAGS,
        .resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS,
    };
    const long fd = syscall(SYS_openat2, dir_fd, name, &how, sizeof how);
    if (fd >= 0 || (errno != ENOSYS && errno != EPERM)) {
        return (int)fd;
    }
    // An old kernel, or a container that filters the call: no symbolic links at all.
    return openat(dir_fd, name, OPEN_FLAGS | O_NOFOLLOW);
}

static bool is_blob_link(const char *target, size_t length)
{
    static const char prefix[] = "../../blobs/";
    const size_t n = sizeof prefix - 1;
    if (length < n + 40 || length > n + 64 || memcmp(target, prefix, n) != 0) {
        return false;
    }
    return strspn(target + n, "0123456789abcdef") == length - n;
}

/* Follows name when it is a link into a Hugging Face cache; -1 otherwise. */
static int open_blob(int dir_fd, const char *name)
{
    char target[128];
    const ssize_t n = readlinkat(dir_fd, name, target, sizeof target - 1);
    if (n < 0) {
        return -1;
    }
    target[n] = '\0';
    return is_blob_link(target, (size_t)n) ? openat(dir_fd, target, OPEN_FLAGS | O_NOFOLLOW) : -1;
}

static status_t open_error(const char *dir, const char *name, int error)
{
    switch (error) {
    case ENOENT:
    case ENOTDIR:
        return status_errorf(STATUS_NOT_FOUND, "%s/%s: %s", dir, name, strerror(error));
    case EACCES:
    case EPERM:
        return status_errorf(STATUS_PERMISSION_DENIED, "%s/%s: %s", dir, name, strerror(error));
    case EXDEV:
    case ELOOP:
        return status_errorf(STATUS_DATA_LOSS,
                             "%s/%s: is a symbolic link that leads out of the directory" STATUS_FIX
                             "put the file itself there, for example with cp -L",
                             dir, name);
    case EMFILE:
    case ENFILE:
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "%s/%s: %s" STATUS_FIX "raise `ulimit -n`",
                             dir, name, strerror(error));
    default:
        return status_errorf(STATUS_DATA_LOSS, "%s/%s: %s", dir, name, strerror(error));
    }
}

static status_t open_named(const char *dir, const char *name, int *fd_out)
{
    const int dir_fd = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (dir_fd < 0) {
        return open_error(dir, name, errno);
    }
    int fd = open_in_dir(dir_fd, name);
    const int error = errno;
    if (fd < 0 && (error == EXDEV || error == ELOOP)) {
        fd = open_blob(dir_fd, name);
    }
    close(dir_fd);
    if (fd < 0) {
        return open_error(dir, name, error);
    }
    *fd_out = fd;
    return status_ok();
}

status_t open_beneath(const char *dir, const char *name, int *fd_out, uint64_t *file_bytes_out)
{
    status_t s = check_name(name);
    if (!status_is_ok(&s)) {
        return status_wrapf(s, "%s", dir);
    }
    int fd;
    TRY(open_named(dir, name, &fd));
    struct stat st;
    if (fstat(fd, &st) != 0) {
        s = open_error(dir, name, errno);
        goto undo_fd;
    }
    if (!S_ISREG(st.st_mode)) {
        s = status_errorf(STATUS_DATA_LOSS, "%s/%s: is not a regular file", dir, name);
        goto undo_fd;
    }
    *fd_out = fd;
    *file_bytes_out = (uint64_t)st.st_size;
    return status_ok();

undo_fd:
    close(fd);
    return s;
}

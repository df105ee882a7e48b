#include "base/program.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"

status_t program_dir(char *buf, size_t buf_bytes)
{
    const char *prefix = getenv("KVASIR_PREFIX");
    if (prefix != NULL && prefix[0] != '\0') {
        return file_join(buf, buf_bytes, prefix, "bin");
    }
    char self[PATH_MAX];
    const ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n <= 0) {
        return status_errorf(STATUS_UNAVAILABLE,
                             "cannot read /proc/self/exe to find this program's directory: %s",
                             strerror(errno));
    }
    self[n] = '\0';
    char *slash = strrchr(self, '/');
    if (slash == NULL || (size_t)(slash - self) >= buf_bytes) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "the path of this program is too long");
    }
    *slash = '\0';
    memcpy(buf, self, (size_t)(slash - self) + 1);
    return status_ok();
}

status_t program_path(const char *name, char *buf, size_t buf_bytes)
{
    char dir[PATH_MAX];
    TRY(program_dir(dir, sizeof dir));
    return file_join(buf, buf_bytes, dir, name);
}

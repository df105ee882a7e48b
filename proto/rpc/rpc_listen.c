#include <errno.h>
#include <netdb.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "proto/rpc/rpc_internal.h"

static const char *fix_for(int error)
{
    switch (error) {
    case EADDRINUSE:
        return STATUS_FIX "stop what listens there, or choose another address";
    case EACCES:
        return STATUS_FIX "choose a port above 1023 or a directory you may write to";
    case EADDRNOTAVAIL:
        return STATUS_FIX "use an address of this machine";
    default:
        return "";
    }
}

static status_t cannot_listen(const char *address, int error)
{
    const char *what = error == EADDRINUSE ? "address already in use" : strerror(error);
    return status_errorf(STATUS_UNAVAILABLE, "cannot listen on %s: %s%s", address, what,
                         fix_for(error));
}

static status_t malformed(const char *address)
{
    return status_errorf(STATUS_INVALID_ARGUMENT,
                         "address '%s' is neither HOST:PORT nor unix:PATH" STATUS_FIX
                         "write 127.0.0.1:50051, [::1]:50051 or unix:/run/kvasir.sock",
                         address);
}

// ---- unix:PATH ----

/* Somebody accepts there: in use. Nobody does: stale, and removed. */
static status_t clear_socket_file(const char *address, const struct sockaddr_un *name)
{
    struct stat st;
    if (lstat(name->sun_path, &st) != 0) {
        return errno == ENOENT ? status_ok() : cannot_listen(address, errno);
    }
    if (!S_ISSOCK(st.st_mode)) {
        return status_errorf(STATUS_UNAVAILABLE,
                             "cannot listen on %s: the file exists and is no socket" STATUS_FIX
                             "choose another path",
                             address);
    }
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        return cannot_listen(address, errno);
    }
    const int error =
        connect(fd, (const struct sockaddr *)name, sizeof *name) == 0 ? EADDRINUSE : errno;
    close(fd);
    if (error != ECONNREFUSED) {
        return cannot_listen(address, error);
    }
    return unlink(name->sun_path) == 0 ? status_ok() : cannot_listen(address, errno);
}

static status_t check_unix(const char *address)
{
    const char *path = address + strlen("unix:");
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    const size_t size = strlen(path);
    if (size == 0) {
        return malformed(address);
    }
    if (size >= sizeof name.sun_path) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "socket path of %zu bytes is longer than %zu: %s", size,
                             sizeof name.sun_path - 1, path);
    }
    memcpy(name.sun_path, path, size + 1);
    TRY(clear_socket_file(address, &name));

    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        return cannot_listen(address, errno);
    }
    const int error = bind(fd, (const struct sockaddr *)&name, sizeof name) == 0 ? 0 : errno;
    close(fd);
    if (error != 0) {
        return cannot_listen(address, error);
    }
    unlink(name.sun_path);
    return status_ok();
}

// ---- HOST:PORT ----

static int try_bind(const struct addrinfo *info)
{
    const int fd = socket(info->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        return errno;
    }
    // As the library does: connections of a server that just ended do not block its successor.
    const int one = 1;
    int error = 0;
    if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) != 0 ||
        bind(fd, info->ai_addr, info->ai_addrlen) != 0 || listen(fd, 1) != 0) {
        error = errno;
    }
    close(fd);
    return error;
}

/* "host", "[::1]" -> host without brackets; false when the address has not this form. */
static bool split_host_port(const char *address, char *host, size_t host_bytes,
                            const char **port_out)
{
    const char *colon = strrchr(address, ':');
    if (colon == NULL || colon == address) {
        return false;
    }
    const char *begin = address;
    const char *end = colon;
    if (*begin == '[') {
        begin++;
        end--;
        if (*end != ']') {
            return false;
        }
    } else if (memchr(begin, ':', (size_t)(end - begin)) != NULL) {
        return false; // IPv6 without brackets
    }
    const size_t size = (size_t)(end - begin);
    if (size == 0 || size >= host_bytes) {
        return false;
    }
    memcpy(host, begin, size);
    host[size] = '\0';
    char *rest;
    const unsigned long port = strtoul(colon + 1, &rest, 10);
    *port_out = colon + 1;
    return colon[1] >= '0' && colon[1] <= '9' && *rest == '\0' && port <= 65535;
}

static status_t check_tcp(const char *address)
{
    char host[256];
    const char *port;
    if (!split_host_port(address, host, sizeof host, &port)) {
        return malformed(address);
    }
    const struct addrinfo hints = {
        .ai_family = AF_UNSPEC,
        .ai_socktype = SOCK_STREAM,
        .ai_flags = AI_PASSIVE | AI_NUMERICSERV,
    };
    struct addrinfo *list;
    const int found = getaddrinfo(host, port, &hints, &list);
    if (found != 0) {
        return status_errorf(STATUS_UNAVAILABLE, "cannot listen on %s: %s", address,
                             gai_strerror(found));
    }
    // The library listens on every address of the name that works; one is enough.
    int error = EADDRNOTAVAIL;
    for (const struct addrinfo *info = list; info != NULL && error != 0; info = info->ai_next) {
        error = try_bind(info);
        if (error == EADDRINUSE) {
            break;
        }
    }
    freeaddrinfo(list);
    return error == 0 ? status_ok() : cannot_listen(address, error);
}

status_t rpc_listen_check(const char *address)
{
    if (address == NULL) {
        return malformed("");
    }
    return strncmp(address, "unix:", 5) == 0 ? check_unix(address) : check_tcp(address);
}

#include "coordinator/http.h"

#include <errno.h>
#include <microhttpd.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define MAX_PAGE_BYTES     ((size_t)4 * 1024 * 1024)
#define MAX_CONNECTIONS    64
#define CONNECTION_TIMEOUT 10 /* seconds */
#define MAX_SILENCE_NS     (5 * NS_PER_S)

struct http {
    struct http_options options;
    struct MHD_Daemon *daemon;
    char address[300];
};

// ---- pages ----

struct page {
    unsigned status;
    const char *type;
    struct bytes body;
};

static status_t metrics_page(const struct http *http, struct page *page)
{
    page->type = "text/plain; version=0.0.4; charset=utf-8";
    return metrics_render(http->options.metrics, clock_now_ns(clock_system()), &page->body);
}

static status_t live_page(const struct http *http, struct page *page)
{
    const uint64_t silence_ns = core_silence_ns(http->options.core);
    if (silence_ns > MAX_SILENCE_NS) {
        page->status = MHD_HTTP_SERVICE_UNAVAILABLE;
    }
    return bytes_printf(&page->body, "{\"live\":%s,\"silence_seconds\":%.3f}\n",
                        silence_ns > MAX_SILENCE_NS ? "false" : "true", (double)silence_ns * 1e-9);
}

static status_t ready_page(const struct http *http, struct page *page)
{
    const int mode = atomic_load(&http->options.gate->mode);
    if (mode == GATE_OPEN) {
        return bytes_append_str(&page->body, "{\"ready\":true,\"reasons\":[]}\n");
    }
    page->status = MHD_HTTP_SERVICE_UNAVAILABLE;
    return bytes_printf(&page->body, "{\"ready\":false,\"reasons\":[\"%s\"]}\n", gate_reason(mode));
}

struct page_row {
    const char *path;
    status_t (*make)(const struct http *http, struct page *page);
};

static const struct page_row pages[] = {
    {"/metrics", metrics_page},
    {"/livez", live_page},
    {"/readyz", ready_page},
};

static status_t make_page(const struct http *http, const char *path, struct page *page)
{
    for (size_t i = 0; i < sizeof pages / sizeof pages[0]; i++) {
        if (strcmp(path, pages[i].path) == 0) {
            return pages[i].make(http, page);
        }
    }
    page->status = MHD_HTTP_NOT_FOUND;
    page->type = "text/plain";
    return bytes_append_str(&page->body, "there are /metrics, /livez and /readyz\n");
}

// ---- microhttpd ----

static enum MHD_Result send_page(struct MHD_Connection *connection, struct page *page)
{
    struct MHD_Response *response =
        MHD_create_response_from_buffer(page->body.size, page->body.data, MHD_RESPMEM_MUST_COPY);
    if (response == NULL) {
        return MHD_NO;
    }
    MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, page->type);
    MHD_add_response_header(response, MHD_HTTP_HEADER_CACHE_CONTROL, "no-store");
    const enum MHD_Result result = MHD_queue_response(connection, page->status, response);
    MHD_destroy_response(response);
    return result;
}

// NOLINTNEXTLINE(readability-function-size): the parameters are microhttpd's.
static enum MHD_Result on_request(void *user, struct MHD_Connection *connection, const char *url,
                                  const char *method, const char *version, const char *upload_data,
                                  size_t *upload_data_size, void **request_context)
{
    (void)version;
    (void)upload_data;
    (void)upload_data_size;
    (void)request_context;
    const struct http *http = user;
    struct page page = {.status = MHD_HTTP_OK, .type = "application/json"};
    bytes_init(&page.body, MAX_PAGE_BYTES);
    status_t s = status_ok();
    if (strcmp(method, MHD_HTTP_METHOD_GET) != 0 && strcmp(method, MHD_HTTP_METHOD_HEAD) != 0) {
        page.status = MHD_HTTP_METHOD_NOT_ALLOWED;
        s = bytes_append_str(&page.body, "{}\n");
    } else {
        s = make_page(http, url, &page);
    }
    const enum MHD_Result result = status_is_ok(&s) ? send_page(connection, &page) : MHD_NO;
    bytes_destroy(&page.body);
    return result;
}

// ---- the socket: bound here, so that a failure can be explained ----

static status_t split_address(const char *address, char host[256], char port[8])
{
    const char *colon = strrchr(address, ':');
    const size_t host_bytes = colon != NULL ? (size_t)(colon - address) : 0;
    if (colon == NULL || host_bytes >= 256 || strlen(colon + 1) >= 8 || colon[1] == '\0') {
        return status_errorf(STATUS_INVALID_ARGUMENT, "--http: %s is not HOST:PORT or off",
                             address);
    }
    const bool bracketed = host_bytes >= 2 && address[0] == '[' && colon[-1] == ']';
    snprintf(host, 256, "%.*s", (int)(bracketed ? host_bytes - 2 : host_bytes),
             bracketed ? address + 1 : address);
    snprintf(port, 8, "%s", colon + 1);
    return status_ok();
}

static int bind_one(const struct addrinfo *info)
{
    const int fd = socket(info->ai_family, info->ai_socktype | SOCK_CLOEXEC, info->ai_protocol);
    if (fd < 0) {
        return -1;
    }
    const int on = 1;
    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, info->ai_addr, info->ai_addrlen) == 0 && listen(fd, 64) == 0) {
        return fd;
    }
    const int error = errno;
    close(fd);
    errno = error;
    return -1;
}

static status_t bind_address(const char *address, int *fd_out)
{
    char host[256], port[8];
    TRY(split_address(address, host, port));
    const struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE};
    struct addrinfo *found = NULL;
    const int rc = getaddrinfo(host[0] != '\0' ? host : NULL, port, &hints, &found);
    if (rc != 0) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "--http: %s: %s", address, gai_strerror(rc));
    }
    int fd = -1;
    for (const struct addrinfo *info = found; info != NULL && fd < 0; info = info->ai_next) {
        fd = bind_one(info);
    }
    const int error = errno;
    freeaddrinfo(found);
    if (fd < 0) {
        return status_errorf(STATUS_UNAVAILABLE,
                             "--http: cannot listen on %s: %s" STATUS_FIX
                             "choose another address, or port 0 for any",
                             address, strerror(error));
    }
    *fd_out = fd;
    return status_ok();
}

static void read_address(int fd, char *out, size_t out_bytes)
{
    struct sockaddr_storage address;
    socklen_t size = sizeof address;
    char host[256] = "?", port[8] = "?";
    if (getsockname(fd, (struct sockaddr *)&address, &size) == 0) {
        (void)getnameinfo((struct sockaddr *)&address, size, host, sizeof host, port, sizeof port,
                          NI_NUMERICHOST | NI_NUMERICSERV);
    }
    snprintf(out, out_bytes, strchr(host, ':') != NULL ? "[%s]:%s" : "%s:%s", host, port);
}

status_t http_new(const struct http_options *options, struct http **http_out)
{
    int fd = -1;
    TRY(bind_address(options->address, &fd));
    struct http *http = calloc(1, sizeof *http);
    if (http == NULL) {
        close(fd);
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory for the HTTP server");
    }
    http->options = *options;
    read_address(fd, http->address, sizeof http->address);
    http->daemon = MHD_start_daemon(
        MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_AUTO, 0, NULL, NULL, on_request, http,
        MHD_OPTION_LISTEN_SOCKET, fd, MHD_OPTION_CONNECTION_LIMIT, (unsigned)MAX_CONNECTIONS,
        MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)CONNECTION_TIMEOUT, MHD_OPTION_END);
    if (http->daemon == NULL) {
        close(fd);
        free(http);
        return status_errorf(STATUS_INTERNAL, "the HTTP server does not start");
    }
    *http_out = http;
    return status_ok();
}

void http_free(struct http *http)
{
    if (http == NULL) {
        return;
    }
    MHD_stop_daemon(http->daemon);
    free(http);
}

const char *http_address(const struct http *http)
{
    return http->address;
}

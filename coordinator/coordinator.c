#include "coordinator/coordinator.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/version.h"
#include "coordinator/bystander.h"
#include "coordinator/core.h"
#include "coordinator/http.h"
#include "coordinator/ingress.h"
#include "coordinator/service.h"

/* Requests that wait to be read, all together. */
#define MAX_UNREAD_BYTES ((uint64_t)256 * 1024 * 1024)

/* The last answers of calls that have ended get this long to leave. */
#define LAST_ANSWERS_NS NS_PER_S

#define MAX_TOKEN_BYTES 1024

struct coordinator {
    struct gate gate;
    struct metrics metrics;
    struct rpc_server *server;
    struct core *core;
    struct ingress *ingress;
    struct service service;
    struct http *http;
    struct bytes join_token;
    char worker[4096];
};

static status_t read_join_token(const char *path, struct bytes *out)
{
    struct stat info;
    if (stat(path, &info) == 0 && (info.st_mode & (S_IRGRP | S_IROTH)) != 0) {
        return status_errorf(STATUS_PERMISSION_DENIED,
                             "--join-token-file %s: others may read it" STATUS_FIX "chmod 600 %s",
                             path, path);
    }
    TRY(file_read(path, MAX_TOKEN_BYTES, out));
    while (out->size > 0 && strchr(" \t\r\n", out->data[out->size - 1]) != NULL) {
        out->size--;
    }
    if (out->size == 0) {
        return status_errorf(STATUS_DATA_LOSS, "--join-token-file %s: is empty", path);
    }
    return bytes_append(out, "", 1); // the NUL
}

static status_t find_worker(const struct coordinator_config *config, char buf[4096])
{
    if (config->launcher != CONFIG_TABLE_LAUNCHER_MPIRUN) {
        buf[0] = '\0';
        return status_ok();
    }
    if (config->worker == NULL) {
        TRY(bystander_worker_path(buf, 4096));
    } else if (snprintf(buf, 4096, "%s", config->worker) >= 4096) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "--worker: the path is too long");
    }
    if (access(buf, X_OK) != 0) {
        return status_errorf(STATUS_FAILED_PRECONDITION,
                             "%s: no such program" STATUS_FIX "name the worker with --worker", buf);
    }
    return status_ok();
}

static status_t new_core(struct coordinator *c, const struct coordinator_options *options)
{
    const struct coordinator_config *config = options->config;
    if (config->join_token_file != NULL) {
        TRY(read_join_token(config->join_token_file, &c->join_token));
    }
    const struct core_options core = {
        .config = config,
        .model = options->model,
        .worker = c->worker,
        .join_token = (const char *)c->join_token.data,
        .server = c->server,
        .metrics = &c->metrics,
        .gate = &c->gate,
        .log = options->log,
        .on_ready = options->on_ready,
        .on_stopped = options->on_stopped,
        .user = options->user,
    };
    return core_new(&core, &c->core);
}

static status_t new_http(struct coordinator *c, const char *address)
{
    if (strcmp(address, "off") == 0 || address[0] == '\0') {
        return status_ok();
    }
    const struct http_options http = {
        .address = address, .core = c->core, .gate = &c->gate, .metrics = &c->metrics};
    return http_new(&http, &c->http);
}

/* The traffic is not encrypted and nobody is asked who he is. */
static void warn_of_strangers(const struct coordinator_config *config, const log_t *log)
{
    static const char *const own[] = {"unix:", "127.", "localhost:", "[::1]:"};
    for (size_t i = 0; i < sizeof own / sizeof own[0]; i++) {
        if (strncmp(config->listen, own[i], strlen(own[i])) == 0) {
            return;
        }
    }
    log_write(log, LOG_WARN, "other hosts can reach this address, without encryption or login",
              "listen=%s join_token=%s", config->listen,
              config->join_token_file != NULL ? "yes" : "no");
}

static status_t assemble(struct coordinator *c, const struct coordinator_options *options)
{
    const struct coordinator_config *config = options->config;
    TRY(find_worker(config, c->worker));
    const struct rpc_server_options server = {.address = config->listen,
                                              .log = log_module(&options->log, "rpc")};
    TRY(rpc_server_new(&server, &c->server));
    warn_of_strangers(config, &options->log);
    TRY(new_core(c, options));
    const struct ingress_options ingress = {.model = options->model,
                                            .gate = &c->gate,
                                            .metrics = &c->metrics,
                                            .core = c->core,
                                            .max_completion_tokens =
                                                (uint64_t)options->config->max_completion_tokens,
                                            .log = options->log};
    TRY(ingress_new(&ingress, &c->ingress));
    c->service = (struct service){.model = options->model,
                                  .core = c->core,
                                  .ingress = c->ingress,
                                  .gate = &c->gate,
                                  .metrics = &c->metrics};
    TRY(service_add(&c->service, c->server));
    TRY(new_http(c, config->http));
    TRY(rpc_server_start(c->server));
    return core_start(c->core);
}

status_t coordinator_new(const struct coordinator_options *options,
                         struct coordinator **coordinator_out)
{
    struct coordinator *c = calloc(1, sizeof *c);
    if (c == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory for the coordinator");
    }
    gate_init(&c->gate, MAX_UNREAD_BYTES);
    metrics_init(&c->metrics, options->model->name, version_string());
    bytes_init(&c->join_token, MAX_TOKEN_BYTES + 1);
    const status_t s = assemble(c, options);
    if (!status_is_ok(&s)) {
        coordinator_free(c);
        return s;
    }
    *coordinator_out = c;
    return status_ok();
}

void coordinator_drain(struct coordinator *c)
{
    core_end(c->core, CORE_DRAIN);
}

void coordinator_stop(struct coordinator *c)
{
    core_end(c->core, CORE_STOP);
}

status_t coordinator_result(const struct coordinator *c)
{
    return core_result(c->core);
}

/* The core's thread ends first, for it may still send; its struct last, for calls that end tell it so. */
void coordinator_free(struct coordinator *c)
{
    if (c == NULL) {
        return;
    }
    http_free(c->http);
    if (c->core != NULL) {
        core_join(c->core);
    }
    if (c->server != NULL) {
        rpc_server_drain(c->server, LAST_ANSWERS_NS);
    }
    ingress_free(c->ingress);
    core_free(c->core);
    rpc_server_free(c->server);
    bytes_destroy(&c->join_token);
    free(c);
}

const char *coordinator_address(const struct coordinator *c)
{
    return rpc_server_address(c->server);
}

const char *coordinator_http_address(const struct coordinator *c)
{
    return c->http != NULL ? http_address(c->http) : NULL;
}

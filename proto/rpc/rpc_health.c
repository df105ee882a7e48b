/*
 * rpc_health.c - grpc.health.v1.Health
 *
 * What:      its two messages are one field each, so they are read and written by hand:
 *            HealthCheckRequest{string service = 1}, HealthCheckResponse{ServingStatus status = 1}.
 * Thread:    any; watchers are told under the mutex, so that they see changes in order.
 */
#include <stdlib.h>
#include <string.h>

#include "proto/rpc/rpc_internal.h"
#include "proto/wire/wire_reader.h"

#define MAX_NAME_BYTES 256

enum serving_status { UNKNOWN = 0, SERVING = 1, NOT_SERVING = 2, SERVICE_UNKNOWN = 3 };

struct entry {
    struct entry *next;
    bool serving;
    char name[MAX_NAME_BYTES];
};

struct watcher {
    struct watcher *prev, *next;
    struct rpc_call *call; /* one reference */
    int told;              /* enum serving_status that was sent last */
    char name[MAX_NAME_BYTES];
};

struct rpc_health {
    pthread_mutex_t mutex;
    struct entry *entries;
    struct watcher *watchers;
    bool draining;
};

struct rpc_health *rpc_health_new(void)
{
    struct rpc_health *health = calloc(1, sizeof *health);
    if (health != NULL) {
        pthread_mutex_init(&health->mutex, NULL);
    }
    return health;
}

void rpc_health_free(struct rpc_health *health)
{
    while (health->entries != NULL) {
        struct entry *entry = health->entries;
        health->entries = entry->next;
        free(entry);
    }
    pthread_mutex_destroy(&health->mutex);
    free(health);
}

static struct entry *find_entry(const struct rpc_health *health, const char *name)
{
    for (struct entry *entry = health->entries; entry != NULL; entry = entry->next) {
        if (strcmp(entry->name, name) == 0) {
            return entry;
        }
    }
    return NULL;
}

static int status_of(const struct rpc_health *health, const char *name)
{
    const struct entry *entry = find_entry(health, name);
    if (entry == NULL) {
        return SERVICE_UNKNOWN;
    }
    return entry->serving && !health->draining ? SERVING : NOT_SERVING;
}

static void tell(const struct rpc_health *health, struct watcher *watcher)
{
    const int status = status_of(health, watcher->name);
    if (status == watcher->told) {
        return;
    }
    const uint8_t message[] = {1 << 3 | WIRE_VARINT, (uint8_t)status};
    const status_t s = rpc_send(watcher->call, message, sizeof message);
    if (status_is_ok(&s)) {
        watcher->told = status;
    } else if (s.code == STATUS_RESOURCE_EXHAUSTED) {
        // Told nothing for so long that its queue is full: better no news than old news.
        rpc_cancel(watcher->call);
    }
}

static void tell_all(struct rpc_health *health)
{
    for (struct watcher *watcher = health->watchers; watcher != NULL; watcher = watcher->next) {
        tell(health, watcher);
    }
}

void rpc_health_set(struct rpc_health *health, const char *service, bool serving)
{
    pthread_mutex_lock(&health->mutex);
    struct entry *entry = find_entry(health, service);
    if (entry == NULL) {
        entry = calloc(1, sizeof *entry);
        if (entry != NULL) {
            (void)snprintf(entry->name, sizeof entry->name, "%s", service);
            entry->next = health->entries;
            health->entries = entry;
        }
    }
    if (entry != NULL) {
        entry->serving = serving;
    }
    tell_all(health);
    pthread_mutex_unlock(&health->mutex);
}

void rpc_health_drain(struct rpc_health *health)
{
    pthread_mutex_lock(&health->mutex);
    health->draining = true;
    tell_all(health);
    pthread_mutex_unlock(&health->mutex);
}

// ---- the two methods ----

static status_t read_name(const uint8_t *data, size_t size, char name[MAX_NAME_BYTES])
{
    struct wire_reader r = wire_reader_of(data, size);
    struct wire_field field;
    name[0] = '\0';
    while (wire_reader_next(&r, &field)) {
        if (field.id != 1 || field.type != WIRE_BYTES) {
            continue;
        }
        if (field.size >= MAX_NAME_BYTES || memchr(field.data, 0, field.size) != NULL) {
            return status_errorf(STATUS_INVALID_ARGUMENT, "service: longer than %d bytes, or NUL",
                                 MAX_NAME_BYTES - 1);
        }
        memcpy(name, field.data, field.size);
        name[field.size] = '\0';
    }
    if (r.malformed) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "HealthCheckRequest: malformed protobuf");
    }
    return status_ok();
}

static status_t check(struct rpc_health *health, const uint8_t *data, size_t size,
                      uint8_t answer[2])
{
    char name[MAX_NAME_BYTES];
    TRY(read_name(data, size, name));
    pthread_mutex_lock(&health->mutex);
    const int status = status_of(health, name);
    pthread_mutex_unlock(&health->mutex);
    if (status == SERVICE_UNKNOWN) {
        return status_errorf(STATUS_NOT_FOUND, "unknown service '%s'", name);
    }
    answer[0] = 1 << 3 | WIRE_VARINT;
    answer[1] = (uint8_t)status;
    return status_ok();
}

static void check_message(struct rpc_call *call, const uint8_t *data, size_t size)
{
    uint8_t answer[2];
    const status_t s = check(rpc_call_context(call), data, size, answer);
    if (status_is_ok(&s)) {
        const struct bytes reply = {.data = answer, .size = sizeof answer};
        rpc_reply(call, &reply);
    } else {
        rpc_finish(call, &s, NULL, 0);
    }
}

static void check_closed(struct rpc_call *call, const status_t *status)
{
    (void)call;
    (void)status;
}

static status_t watch(struct rpc_call *call, const uint8_t *data, size_t size)
{
    struct rpc_health *health = rpc_call_context(call);
    char name[MAX_NAME_BYTES];
    TRY(read_name(data, size, name));
    struct watcher *watcher = calloc(1, sizeof *watcher);
    if (watcher == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory for another watcher");
    }
    memcpy(watcher->name, name, sizeof name);

    pthread_mutex_lock(&health->mutex);
    watcher->call = rpc_call_acquire(call);
    rpc_call_set_user(call, watcher);
    watcher->next = health->watchers;
    if (health->watchers != NULL) {
        health->watchers->prev = watcher;
    }
    health->watchers = watcher;
    tell(health, watcher);
    pthread_mutex_unlock(&health->mutex);
    return status_ok();
}

static void watch_message(struct rpc_call *call, const uint8_t *data, size_t size)
{
    const status_t s = watch(call, data, size);
    if (!status_is_ok(&s)) {
        rpc_finish(call, &s, NULL, 0);
    }
}

static void watch_closed(struct rpc_call *call, const status_t *status)
{
    (void)status;
    struct rpc_health *health = rpc_call_context(call);
    struct watcher *watcher = rpc_call_user(call);
    if (watcher == NULL) {
        return;
    }
    pthread_mutex_lock(&health->mutex);
    if (watcher->prev != NULL) {
        watcher->prev->next = watcher->next;
    } else {
        health->watchers = watcher->next;
    }
    if (watcher->next != NULL) {
        watcher->next->prev = watcher->prev;
    }
    pthread_mutex_unlock(&health->mutex);
    rpc_call_release(watcher->call);
    free(watcher);
}

const struct rpc_handlers rpc_health_check_handlers = {
    .on_message = check_message,
    .on_closed = check_closed,
};

const struct rpc_handlers rpc_health_watch_handlers = {
    .on_message = watch_message,
    .on_closed = watch_closed,
};

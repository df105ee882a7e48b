#include "coordinator/link.h"

#include <stdlib.h>
#include <string.h>

#include "coordinator/core.h"

/* An assignment carries the plan; everything else is small. */
#define MAX_MESSAGE_BYTES ((size_t)64 * 1024 * 1024)

void link_acquire(struct link *link)
{
    atomic_fetch_add(&link->refs, 1);
}

void link_release(struct link *link)
{
    if (atomic_fetch_sub(&link->refs, 1) == 1) {
        rpc_call_release(link->call);
        free(link);
    }
}

bool link_is_backlogged(const struct link *link)
{
    return rpc_queued_bytes(link->call) > LINK_MAX_BACKLOG_BYTES;
}

status_t link_send(struct link *link, const struct wire_coordinator_message *message)
{
    struct bytes packed;
    bytes_init(&packed, MAX_MESSAGE_BYTES);
    status_t s = wire_coordinator_message_pack(message, &packed);
    if (status_is_ok(&s)) {
        s = rpc_send(link->call, packed.data, packed.size);
    }
    bytes_destroy(&packed);
    return s;
}

void link_end(struct link *link, const status_t *status)
{
    link->refused = true;
    rpc_finish(link->call, status, NULL, 0);
}

// ---- callbacks ----

static struct link *link_of(struct rpc_call *call)
{
    struct link *link = rpc_call_user(call);
    if (link != NULL) {
        return link;
    }
    link = calloc(1, sizeof *link);
    if (link == NULL) {
        return NULL;
    }
    link->call = rpc_call_acquire(call);
    link->core = rpc_call_context(call);
    link->group = LINK_NO_GROUP;
    atomic_init(&link->refs, 1);
    atomic_init(&link->closed, 0);
    rpc_call_set_user(call, link);
    return link;
}

static void on_message(struct rpc_call *call, const uint8_t *data, size_t size)
{
    struct link *link = link_of(call);
    struct core_message *message = calloc(1, sizeof *message);
    uint8_t *copy = malloc(size > 0 ? size : 1);
    if (link == NULL || message == NULL || copy == NULL) {
        free(message);
        free(copy);
        rpc_cancel(call);
        return;
    }
    if (size > 0) {
        memcpy(copy, data, size);
    }
    link_acquire(link);
    *message = (struct core_message){
        .kind = CORE_LINK_MESSAGE, .owned = true, .link = link, .data = copy, .size = size};
    const status_t s = core_post(link->core, message);
    if (!status_is_ok(&s)) {
        // A group that missed a message is as good as lost.
        link_release(link);
        free(copy);
        free(message);
        rpc_cancel(call);
    }
}

static void on_half_close(struct rpc_call *call)
{
    const status_t ok = status_ok();
    rpc_finish(call, &ok, NULL, 0);
}

static void on_closed(struct rpc_call *call, const status_t *status)
{
    (void)status;
    struct link *link = rpc_call_user(call);
    if (link == NULL) {
        return;
    }
    atomic_store(&link->closed, 1);
    link->gone = (struct core_message){.kind = CORE_LINK_GONE, .link = link};
    const status_t s = core_post(link->core, &link->gone);
    if (!status_is_ok(&s)) {
        core_sweep(link->core);
        link_release(link);
    }
}

const struct rpc_handlers link_handlers = {
    .on_message = on_message,
    .on_half_close = on_half_close,
    .on_closed = on_closed,
};

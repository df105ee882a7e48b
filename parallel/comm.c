#include "parallel/comm.h"

#include <stdio.h>

void comm_label_text(uint32_t label, char *buf, size_t size)
{
    static const char *const parts[] = {
        [COMM_PART_OTHER] = "a collective",
        [COMM_PART_EMBEDDING] = "sum of the embedding",
        [COMM_PART_ATTENTION] = "sum after attention",
        [COMM_PART_QUERIES] = "exchange of queries",
        [COMM_PART_OUTPUTS] = "exchange of attention's outputs",
        [COMM_PART_FFN] = "sum after the feed-forward block",
        [COMM_PART_LOGITS] = "gather of the logits",
        [COMM_PART_TOKENS] = "broadcast of the tokens",
    };
    const uint32_t part = label & 0xffu;
    const int layer = (int)(label >> 8 & 0x7fffffu) - 1;
    const char *const text = part < sizeof parts / sizeof parts[0] ? parts[part] : parts[0];
    if (layer < 0) {
        (void)snprintf(buf, size, "%s", text);
    } else {
        (void)snprintf(buf, size, "layer %d: %s", layer, text);
    }
}

uint32_t comm_label_after(const struct comm *comm, uint32_t label)
{
    const uint32_t n = atomic_load_explicit(&comm->n_labels, memory_order_acquire);
    const uint32_t n_kept = n < COMM_LABELS ? n : COMM_LABELS;
    uint32_t after = 0;
    for (uint32_t i = 0; i < n_kept; i++) {
        const uint32_t at = (n - 1 - i) % COMM_LABELS;
        const uint32_t here = atomic_load_explicit(&comm->labels[at], memory_order_relaxed);
        if (here == label && after != 0) {
            return after;
        }
        after = here;
    }
    return 0;
}

status_t comm_agree(struct comm *host, status_t mine)
{
    for (int32_t rank = 0; rank < host->size; rank++) {
        status_t theirs = mine;
        TRY(host->ops->broadcast(host, &theirs, sizeof theirs, rank));
        theirs.msg[sizeof theirs.msg - 1] = '\0';
        if (theirs.code != STATUS_OK) {
            return host->size == 1 ? theirs : status_wrapf(theirs, "rank %d", rank);
        }
    }
    return status_ok();
}

status_t comm_no_all_reduce_add_norm(struct comm *comm, const void *partial,
                                     const struct add_norm_args *args)
{
    (void)partial;
    (void)args;
    return status_errorf(STATUS_UNIMPLEMENTED, "all_reduce_add_norm over %s", comm->ops->name);
}

void *comm_no_buffer(struct comm *comm, int32_t which)
{
    (void)comm;
    (void)which;
    return NULL;
}

status_t comm_always_fine(struct comm *comm)
{
    (void)comm;
    return status_ok();
}

void comm_init(struct comm *comm, const struct comm_ops *ops, struct comm *host)
{
    comm->ops = ops;
    comm->host = host;
    comm->rank = host->rank;
    comm->size = host->size;
}

status_t comm_host_broadcast(struct comm *comm, void *data, size_t size_bytes, int32_t root)
{
    return comm->host->ops->broadcast(comm->host, data, size_bytes, root);
}

status_t comm_host_barrier(struct comm *comm, double timeout_s)
{
    return comm->host->ops->barrier(comm->host, timeout_s);
}

status_t comm_host_send(struct comm *comm, const void *data, size_t size_bytes, int32_t to,
                        int32_t tag)
{
    return comm->host->ops->send(comm->host, data, size_bytes, to, tag);
}

status_t comm_host_recv(struct comm *comm, void *data, size_t size_bytes, int32_t from, int32_t tag)
{
    return comm->host->ops->recv(comm->host, data, size_bytes, from, tag);
}

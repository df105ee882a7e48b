/*
 * all_reduce.h - a peer set on CUDA: what its memory and its kernels share
 *
 * What:      the set is made by peers.c, its kernels are in all_reduce.cu.
 * Layout:    see kernels/peers.h; a flag has a line of 128 bytes to itself, which no other rank's store touches.
 */
#pragma once

#include "kernels/cuda/cuda.h"
#include "kernels/peers.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { PEERS_FLAG_BYTES = 128, PEERS_FLAGS_BYTES = PEERS_MAX_RANKS * PEERS_FLAG_BYTES };

/* What a kernel is handed. */
struct peers_view {
    unsigned char *memory[PEERS_MAX_RANKS]; /* of each rank, as this process sees it */
    int32_t rank, n_ranks;
    int64_t sums_at, copies_at, room; /* bytes: where the buffers begin, and of each */
    uint32_t *n_sums;                 /* own: sums that are done */
    uint32_t *n_ended;                /* own: blocks of the running sum that are done */
    struct peers_words *words;        /* host */
};

struct peers {
    struct backend_stream *stream;
    struct peers_view view;
    int64_t max_bytes;
    int32_t n_mapped; /* the first of the ranks whose memory is mapped here, this one's too */
    uint32_t *counters;
};

status_t cuda_peers_make(struct backend_stream *stream, const struct peers_options *options,
                         struct peers **peers_out, struct peers_handle *handle_out);
status_t cuda_peers_join(struct peers *peers, const struct peers_handle *handles);
void cuda_peers_leave(struct peers *peers);
void cuda_peers_free(struct peers *peers);
void *cuda_peers_buffer(const struct peers *peers, int32_t which);
status_t cuda_all_reduce(struct peers *peers, const struct peers_sum_args *a);
status_t cuda_all_reduce_add_norm(struct peers *peers, const struct peers_norm_args *a);

#ifdef __cplusplus
}
#endif

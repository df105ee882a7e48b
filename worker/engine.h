/*
 * engine.h - one rank's share of a model: weights, KV pools, and the step
 *
 * What:      engine_new loads the slices of the weights the plan gives this rank and allocates everything a step
 *            needs; engine_submit computes one step plan together with the other ranks.
 * Ownership: the engine owns weights, pools and buffers; spec and plan are borrowed and must outlive it.
 * Thread:    owner:the rank's main thread (the backend's own team computes inside).
 * Collective: engine_new, engine_submit and engine_step: yes.
 * Errors:    engine_new agrees: every rank returns the same status. After a failed step the group is finished.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/log.h"
#include "base/status.h"
#include "kernels/backend.h"
#include "parallel/comm_device.h"
#include "parallel/group.h"
#include "parallel/plan.h"
#include "parallel/spec.h"
#include "worker/host_cores.h"
#include "worker/step_plan.h"

struct engine;
struct step_times; /* worker/step_queue.h */

enum engine_load { ENGINE_LOAD_CHECKPOINT, ENGINE_LOAD_DUMMY };

/*
 * DEFAULT: the fastest ways there are; equal steps give equal bits. BATCH: what a request gets does not depend on the others
 * beside it: one order of summing for any number of rows. The CPU computes so always, but not under placement token, where the
 * blocks that a sequence got decide which rank adds up what.
 */
enum engine_determinism { ENGINE_DETERMINISM_DEFAULT, ENGINE_DETERMINISM_BATCH };

struct engine_options {
    const char *model_dir;
    int load;              /* enum engine_load: dummy weights are made up, see weight_source.h */
    uint64_t weights_seed; /* of dummy weights */
    const struct backend *backend;
    int device;       /* index in backend->devices */
    int dtype;        /* weights on the device: DTYPE_F32 or DTYPE_BF16 */
    int quantization; /* enum quantization: of the layers' weights */
    int kv_dtype;     /* DTYPE_F32, DTYPE_BF16 or DTYPE_I8 */
    int32_t max_num_seqs, max_num_batched_tokens, max_model_len;
    int32_t max_steps; /* under way at once; 0: 1 */
    uint64_t
        kv_cache_bytes; /* per rank; 0: what max_num_seqs sequences of max_model_len need, but at most 40 % of the
                              * host's available memory / ranks on the host, or what a device has left */
    uint64_t swap_bytes; /* of host memory, per rank: KV blocks wait there in slots; 0: none */
    double
        device_memory_share; /* of a device with memory of its own, what its ranks may use together */
    bool tune;               /* true: measure the ways to multiply, where the backend has several */
    const char *cache_dir;   /* what was measured is kept there; NULL: nowhere */
    int determinism;         /* enum engine_determinism */
    int comm_choice;         /* enum comm_choice: between devices */
    int comm_peers;          /* enum comm_peers */
    double collective_timeout_s; /* between devices; 0: 30 */
    int32_t threads;             /* 0: cores this process may use / ranks on the host, at least 1 */
    const struct host_cores
        *cores; /* of the CPU's threads, in the place of `threads`; NULL: these run anywhere */
    log_t log;
    void (*progress)(void *user, uint64_t bytes_done,
                     uint64_t bytes_total); /* rank 0; may be NULL */
    /* Takes the stream and returns what ops are given instead, which backend->stream_free frees; NULL for want of memory. May
     * be NULL. */
    struct backend_stream *(*wrap_stream)(void *user, struct backend_stream *stream);
    void *user;
};

MUST_USE status_t engine_new(struct group *group, const struct model_spec *spec,
                             const struct plan *plan, const struct engine_options *options,
                             struct engine **engine_out);
void engine_free(struct engine *engine); /* accepts NULL */

const struct step_limits *engine_limits(const struct engine *engine);

/* The rank that has the logits, and draws: the first of the last stage. With one stage that is rank 0. */
bool engine_draws(const struct engine *engine);

/* Ranks of a stage. */
int32_t engine_stage_size(const struct engine *engine);

/* Of this rank: bytes of packed weights, of KV pools actually allocated, and of slots in host memory. */
uint64_t engine_weight_bytes(const struct engine *engine);
uint64_t engine_kv_bytes(const struct engine *engine);
uint64_t engine_swap_bytes(const struct engine *engine);

/* Bytes of tensors this rank read from the checkpoint; over all ranks of a stage each byte is read once. */
uint64_t engine_bytes_read(const struct engine *engine);

/*
 * Steps are computed strictly in the order of submit. submit puts one behind those under way, of which there are less than
 * options.max_steps, at least one a stage; plan and sampling may change on return. sampling: what to draw from the step's logits,
 * on the rank that draws and on rank 0; NULL elsewhere, and where nothing is drawn. The ids stay on the device as what
 * placeholders of later steps stand for; with P > 1 stages, of steps that are P or more behind it.
 */
MUST_USE status_t engine_submit(struct engine *engine, const struct step_plan *plan,
                                const struct step_sampling *sampling);

/* Waits for the oldest step under way, and no longer; results_out [n_logits]: what it drew, on rank 0. May be NULL. Not
 * collective. */
MUST_USE status_t engine_collect(struct engine *engine, struct sample_result *results_out);

bool engine_full(const struct engine *engine);  /* max_steps are under way: collect first */
bool engine_ready(const struct engine *engine); /* engine_collect would not wait */

/* There is no work: the time until the next step is no gap between steps. */
void engine_rest(struct engine *engine);
const struct step_times *engine_times(const struct engine *engine);

/* Submit without drawing, and collect. On the rank that draws *logits_out is device memory [n_logits, n_vocab] in the order of
 * the sequences that want them, valid until the next step; NULL elsewhere. */
MUST_USE status_t engine_step(struct engine *engine, const struct step_plan *plan,
                              const float **logits_out);

/* The rank that draws, after a step that had logits, not collective: brings n_logits rows to the host. */
MUST_USE status_t engine_read_logits(struct engine *engine, int32_t n_logits, float *logits_out);

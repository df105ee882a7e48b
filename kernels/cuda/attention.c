/*
 * attention.c - attention's plans, and what is launched for them
 *
 * What:      a plan holds the splitter of attention_split.h, the step's units in device memory, and room for the partial
 *            results of splits. One launch a kind of work, with a fixed grid of blocks that take their units from the plan.
 * Graphs:    the decode kernel is always launched where the shape has one (group <= 32); the prefill kernel where the plan
 *            has work for it when the op is called. So a graph recorded with a plan of decode sequences only is right for
 *            all such plans, and for no others: a sequence is one of decode while n_queries * group is at most 16, or 32
 *            for groups above 16. attention_plan_set itself is never recorded.
 * Ownership: the plan owns its memory; the stream outlives it.
 * Thread:    that of the stream.
 * Invariant: for shape.batch_invariant nothing is split, and a row's bits depend on its own sequence's n_queries and
 *            kv_tokens alone. Otherwise they also depend on how the step was split, which all of its sequences decide;
 *            equal steps give equal bits in any case.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/attention.h"

enum { N_UPLOADS = 2, ALIGNMENT = 256 };

static const float log2_e = 1.44269504f;

/* A copy of the step's work on its way to the device. */
struct upload {
    void *host; /* pinned */
    cudaEvent_t done;
};

struct attention_plan {
    struct backend_stream *stream;
    struct attention_shape shape;
    struct cuda_attention_split *split;
    const struct cuda_attention_kernel *kernels[CUDA_ATTENTION_KINDS]; /* decode may be NULL */
    int32_t grids[CUDA_ATTENTION_KINDS];
    struct cuda_attention_work work; /* of the last plan_set */
    struct upload uploads[N_UPLOADS];
    int next_upload;
    size_t plan_bytes;
    void *memory; /* all that follows lies in it */
    void *device_plan;
    float *partial, *stats;
    uint32_t *counters;
};

// ---- the device ----

/* Lets a kernel use its shared memory, and says how many of its blocks run at once. */
static status_t prepare_kernel(const struct backend_stream *stream,
                               const struct cuda_attention_kernel *kernel, int32_t *grid_out)
{
    const int device = stream->device;
    int n_blocks = 0;
    TRY(cuda_status(cudaFuncSetAttribute(kernel->entry, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                         (int)kernel->shared_bytes),
                    "attention: shared memory", device));
    TRY(cuda_status(cudaFuncSetAttribute(kernel->entry,
                                         cudaFuncAttributePreferredSharedMemoryCarveout,
                                         cudaSharedmemCarveoutMaxShared),
                    "attention: shared memory", device));
    TRY(cuda_status(cudaOccupancyMaxActiveBlocksPerMultiprocessor(
                        &n_blocks, kernel->entry, kernel->n_threads, kernel->shared_bytes),
                    "attention: occupancy", device));
    if (n_blocks < 1) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "attention: head dim %d needs %zu bytes of shared memory, the device "
                             "has %zu",
                             kernel->head_dim, kernel->shared_bytes, stream->shared_bytes);
    }
    *grid_out = n_blocks * stream->n_processors;
    return status_ok();
}

static int32_t decode_rows(int32_t group)
{
    if (group > 32) {
        return 0;
    }
    return group > 16 ? 32 : 16;
}

static status_t check_shape(const struct attention_shape *s)
{
    if (cuda_attention_prefill_kernel(s->kv_dtype, s->head_dim) == NULL ||
        s->block_tokens < CUDA_ATTENTION_PAGE || s->block_tokens % CUDA_ATTENTION_PAGE != 0 ||
        !(s->scale > 0.0f) || !isfinite(s->scale)) {
        return status_errorf(
            STATUS_INVALID_ARGUMENT,
            "cuda: attention: head dim %d (32, 64, 80, 96 and 128 are supported), "
            "blocks of %d tokens (multiples of %d), kv dtype %s (bfloat16 or int8), "
            "scale %g",
            s->head_dim, s->block_tokens, CUDA_ATTENTION_PAGE, dtype_name(s->kv_dtype),
            (double)s->scale);
    }
    return status_ok();
}

/*
 * Costs in eighths of the time a block takes for a tile of 64 keys. Estimates, not measured: a decode unit starts and ends in
 * about the time of a tile, and merging reads 8 KB a part. A prefill part writes and reads again 128 rows of float32, 64 KB,
 * which is about a tile's time each way.
 */
static struct cuda_attention_split_options split_options(const struct attention_plan *plan)
{
    const int32_t *grids = plan->grids;
    return (struct cuda_attention_split_options){
        .shape = plan->shape,
        .kinds =
            {
                [CUDA_ATTENTION_DECODE] = {.rows = decode_rows(plan->shape.group),
                                           .grid = grids[CUDA_ATTENTION_DECODE],
                                           .overhead = 8,
                                           .merge = 1,
                                           .max_split_units = 4 * grids[CUDA_ATTENTION_DECODE]},
                [CUDA_ATTENTION_PREFILL] = {.rows = CUDA_ATTENTION_PREFILL_ROWS,
                                            .grid = grids[CUDA_ATTENTION_PREFILL],
                                            .overhead = 12,
                                            .merge = 8,
                                            .max_split_units = grids[CUDA_ATTENTION_PREFILL]},
            },
    };
}

// ---- memory ----

static size_t aligned(size_t size)
{
    return (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

static status_t alloc_uploads(struct attention_plan *plan)
{
    const int device = plan->stream->device;
    for (int i = 0; i < N_UPLOADS; i++) {
        struct upload *upload = &plan->uploads[i];
        TRY(cuda_status(cudaMallocHost(&upload->host, plan->plan_bytes),
                        "attention: pinned memory for its plan", device));
        TRY(cuda_status(cudaEventCreateWithFlags(&upload->done, cudaEventDisableTiming),
                        "attention: event", device));
    }
    return status_ok();
}

/* An empty plan, and counters at 0, so that the op may be called from the start. */
static status_t alloc_memory(struct attention_plan *plan)
{
    const struct cuda_attention_split_maxima most = cuda_attention_split_maxima(plan->split);
    const int device = plan->stream->device;
    plan->plan_bytes = sizeof(struct cuda_attention_header) +
                       (size_t)plan->shape.max_seqs * sizeof(struct attention_seq) + 16 +
                       (size_t)most.n_units * sizeof(struct cuda_attention_unit) +
                       (plan->shape.partial ? (size_t)plan->shape.max_rows * sizeof(int32_t) : 0);
    const size_t row_bytes = (size_t)plan->shape.head_dim * sizeof(float);
    const size_t counters_at = aligned(plan->plan_bytes);
    const size_t stats_at = counters_at + aligned((size_t)most.n_counters * sizeof(uint32_t));
    const size_t partial_at = stats_at + aligned((size_t)most.n_partial_rows * 2 * sizeof(float));
    const size_t bytes = partial_at + (size_t)most.n_partial_rows * row_bytes;

    TRY(cuda_status(cudaMalloc(&plan->memory, bytes), "attention: memory for its plan", device));
    char *const memory = plan->memory;
    plan->device_plan = memory;
    plan->counters = (void *)(memory + counters_at);
    plan->stats = (void *)(memory + stats_at);
    plan->partial = (void *)(memory + partial_at);
    TRY(alloc_uploads(plan));
    TRY(cuda_status(cudaMemsetAsync(plan->memory, 0, stats_at, plan->stream->stream),
                    "attention: plan", device));
    return cuda_status(cudaStreamSynchronize(plan->stream->stream), "attention: plan", device);
}

static status_t fill_plan(struct attention_plan *plan)
{
    const struct attention_shape *shape = &plan->shape;
    const int32_t rows = decode_rows(shape->group);
    plan->kernels[CUDA_ATTENTION_PREFILL] =
        cuda_attention_prefill_kernel(shape->kv_dtype, shape->head_dim);
    plan->kernels[CUDA_ATTENTION_DECODE] =
        rows > 0 ? cuda_attention_decode_kernel(shape->kv_dtype, shape->head_dim, rows) : NULL;
    TRY(cuda_status(cudaSetDevice(plan->stream->device), "set device", plan->stream->device));
    for (int kind = 0; kind < CUDA_ATTENTION_KINDS; kind++) {
        plan->grids[kind] = 1;
        if (plan->kernels[kind] != NULL) {
            TRY(prepare_kernel(plan->stream, plan->kernels[kind], &plan->grids[kind]));
        }
    }
    const struct cuda_attention_split_options options = split_options(plan);
    TRY(cuda_attention_split_new(&options, &plan->split));
    return alloc_memory(plan);
}

status_t cuda_attention_plan_new(struct backend_stream *stream, const struct attention_shape *shape,
                                 struct attention_plan **plan_out)
{
    TRY(check_shape(shape));
    struct attention_plan *plan = calloc(1, sizeof *plan);
    if (plan == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "attention: no memory for its plan");
    }
    plan->stream = stream;
    plan->shape = *shape;
    const status_t s = fill_plan(plan);
    if (!status_is_ok(&s)) {
        cuda_attention_plan_free(plan);
        return s;
    }
    *plan_out = plan;
    return status_ok();
}

/* Freeing waits for what is under way. */
void cuda_attention_plan_free(struct attention_plan *plan)
{
    if (plan == NULL) {
        return;
    }
    (void)cudaStreamSynchronize(plan->stream->stream);
    for (int i = 0; i < N_UPLOADS; i++) {
        if (plan->uploads[i].done != NULL) {
            (void)cudaEventDestroy(plan->uploads[i].done);
        }
        (void)cudaFreeHost(plan->uploads[i].host);
    }
    (void)cudaFree(plan->memory);
    cuda_attention_split_free(plan->split);
    free(plan);
}

// ---- a step ----

/* Rows are read and written 16 bytes at a time, and must not overlap. Rows of out of a part may be those of other heads too. */
static status_t check_rows(const struct attention_shape *shape, const struct attention_seq *seqs,
                           int32_t n_seqs)
{
    for (int32_t i = 0; i < n_seqs; i++) {
        const int64_t row = (int64_t)seqs[i].n_kv_heads * shape->group * shape->head_dim;
        if (row > 0 && (seqs[i].ld < row || seqs[i].ld % 8 != 0 || seqs[i].q_offset % 8 != 0)) {
            return status_errorf(STATUS_INVALID_ARGUMENT,
                                 "attention: sequence %d: stride %lld of rows of %lld, offset %lld "
                                 "(multiples of 8)",
                                 i, (long long)seqs[i].ld, (long long)row,
                                 (long long)seqs[i].q_offset);
        }
        if (shape->partial && (seqs[i].ld_out % 4 != 0 || seqs[i].out_offset % 4 != 0)) {
            return status_errorf(STATUS_INVALID_ARGUMENT,
                                 "attention: sequence %d: partial rows %lld floats apart, from "
                                 "%lld on (multiples of 4)",
                                 i, (long long)seqs[i].ld_out, (long long)seqs[i].out_offset);
        }
    }
    return status_ok();
}

static size_t units_offset(int32_t n_seqs)
{
    const size_t end =
        sizeof(struct cuda_attention_header) + (size_t)n_seqs * sizeof(struct attention_seq);
    return (end + 15) / 16 * 16;
}

/* The rows' ends behind the units, and where they are into the copies of the sequences; returns the bytes of the whole plan. */
static size_t copy_row_ends(const struct attention_plan *plan, char *host, int32_t n_seqs,
                            size_t ends_at)
{
    struct attention_seq *copies = (void *)(host + sizeof(struct cuda_attention_header));
    for (int32_t i = 0; i < n_seqs; i++) {
        const size_t bytes = (size_t)copies[i].n_queries * sizeof(int32_t);
        if (bytes > 0) {
            memcpy(host + ends_at, copies[i].row_ends, bytes);
        }
        copies[i].row_ends = (const void *)((const char *)plan->device_plan + ends_at);
        ends_at += bytes;
    }
    return ends_at;
}

status_t cuda_attention_plan_set(struct backend_stream *stream, struct attention_plan *plan,
                                 const struct attention_seq *seqs, int32_t n_seqs)
{
    struct upload *upload = &plan->uploads[plan->next_upload];
    const int device = stream->device;
    TRY(cuda_status(cudaSetDevice(device), "set device", device));
    // The buffer's last copy is two steps old: this does not wait unless the host is far ahead.
    TRY(cuda_status(cudaEventSynchronize(upload->done), "attention: plan", device));

    char *const host = upload->host;
    const size_t units_at = units_offset(n_seqs > 0 ? n_seqs : 0);
    struct cuda_attention_work work;
    TRY(cuda_attention_split_run(plan->split, seqs, n_seqs, (void *)(host + units_at), &work));
    TRY(check_rows(&plan->shape, seqs, n_seqs));
    const struct cuda_attention_header header = {.work = work, .units_at = (int64_t)units_at};
    memcpy(host, &header, sizeof header);
    if (n_seqs > 0) {
        memcpy(host + sizeof header, seqs, (size_t)n_seqs * sizeof *seqs);
    }
    const int32_t n_units =
        work.n_units[CUDA_ATTENTION_DECODE] + work.n_units[CUDA_ATTENTION_PREFILL];
    size_t bytes = units_at + (size_t)n_units * sizeof(struct cuda_attention_unit);
    if (plan->shape.partial && n_seqs > 0) {
        bytes = copy_row_ends(plan, host, n_seqs, bytes);
    }
    TRY(cuda_status(
        cudaMemcpyAsync(plan->device_plan, host, bytes, cudaMemcpyHostToDevice, stream->stream),
        "attention: plan", device));
    TRY(cuda_status(cudaEventRecord(upload->done, stream->stream), "attention: plan", device));
    plan->work = work;
    plan->next_upload = (plan->next_upload + 1) % N_UPLOADS;
    return status_ok();
}

static status_t launch_kind(struct backend_stream *stream, const struct attention_plan *plan,
                            int kind, const struct cuda_attention_view *view)
{
    const struct cuda_attention_kernel *kernel = plan->kernels[kind];
    if (kernel == NULL || (kind == CUDA_ATTENTION_PREFILL && plan->work.n_units[kind] == 0 &&
                           plan->kernels[CUDA_ATTENTION_DECODE] != NULL)) {
        return status_ok();
    }
    kernel->launch(view, plan->grids[kind], stream->stream);
    return cuda_launched(stream, "attention");
}

status_t cuda_attention(struct backend_stream *stream, struct attention_plan *plan,
                        const struct attention_args *a)
{
    const struct cuda_attention_view view = {
        .plan = plan->device_plan,
        .q = a->q,
        .out = a->out,
        .k_plane = a->k_plane,
        .v_plane = a->v_plane,
        .k_scales = a->k_scales,
        .v_scales = a->v_scales,
        .blocks = a->blocks,
        .partial = plan->partial,
        .stats = plan->stats,
        .counters = plan->counters,
        .scale_log2 = plan->shape.scale * log2_e,
        .group = plan->shape.group,
        .window = plan->shape.window,
        .block_tokens = plan->shape.block_tokens,
        .leaves_parts = plan->shape.partial,
    };
    TRY(launch_kind(stream, plan, CUDA_ATTENTION_PREFILL, &view));
    return launch_kind(stream, plan, CUDA_ATTENTION_DECODE, &view);
}

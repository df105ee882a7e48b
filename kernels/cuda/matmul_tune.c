/*
 * matmul_tune.c - measures which way to multiply is the fastest, shape by shape
 *
 * What:    for each shape of weights and each bucket of rows: the small kernel where it can, and the library's eight best
 *          guesses, each a few times over the layers that have the shape, in turn, so that weights come from memory and not from
 *          the second-level cache. The least time of three rounds counts.
 * Units:   microseconds a call.
 * Thread:  init.
 */
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/matmul.h"

enum { MAX_CANDIDATES = 9, GUESSES = 8, CALLS = 6, ROUNDS = 3, PATH_BYTES = 4096 };

struct tuner {
    struct backend_stream *stream;
    struct cuda_matmul *matmul;
    const struct matmul_tune_args *args;
    void *x, *out;
    cudaEvent_t begin, end;
};

static status_t checked(const struct tuner *t, cudaError_t error)
{
    return cuda_status(error, "matmul tune", t->stream->device);
}

static bool is_same(const struct matmul_use *a, const struct matmul_use *b)
{
    return a->weight->n_out == b->weight->n_out && a->weight->n_in == b->weight->n_in &&
           a->weight->dtype == b->weight->dtype && a->out_dtype == b->out_dtype;
}

/* Int8 weights leave nothing to choose, and a shape of the table is one of bfloat16. */
static bool is_tuned(const struct matmul_use *use)
{
    return use->weight->dtype == DTYPE_BF16;
}

// ---- one candidate ----

/* The next use, after number `from`, of the shape of use `first`. */
static int32_t next_alike(const struct tuner *t, int32_t first, int32_t from)
{
    const struct matmul_use *const uses = t->args->uses;
    int32_t i = from;
    do {
        i = (i + 1) % t->args->n_uses;
    } while (!is_same(&uses[i], &uses[first]));
    return i;
}

static int64_t ld_x(const struct matrix *w)
{
    return w->n_in;
}

/* CALLS calls; *use goes on from layer to layer. */
static status_t run_round(const struct tuner *t, int32_t first,
                          const struct cuda_matmul_choice *choice, int32_t *use)
{
    for (int i = 0; i < CALLS; i++) {
        const struct matmul_use *const here = &t->args->uses[*use];
        const struct matmul_args call = {
            .weight = here->weight,
            .x = t->x,
            .ld_x = ld_x(here->weight),
            .n_rows = choice->shape.n_rows,
            .out = t->out,
            .ld_out = here->weight->n_out,
            .out_dtype = here->out_dtype,
        };
        TRY(cuda_matmul_run(t->stream, &call, choice));
        *use = next_alike(t, first, *use);
    }
    return status_ok();
}

static status_t measure(const struct tuner *t, int32_t first, struct cuda_matmul_choice *choice)
{
    int32_t use = first;
    float best_ms = 0.0f;
    TRY(run_round(t, first, choice, &use)); // loads code, wakes the clocks
    for (int round = 0; round < ROUNDS; round++) {
        float ms = 0.0f;
        TRY(checked(t, cudaEventRecord(t->begin, t->stream->stream)));
        TRY(run_round(t, first, choice, &use));
        TRY(checked(t, cudaEventRecord(t->end, t->stream->stream)));
        TRY(checked(t, cudaEventSynchronize(t->end)));
        TRY(checked(t, cudaEventElapsedTime(&ms, t->begin, t->end)));
        best_ms = round == 0 || ms < best_ms ? ms : best_ms;
    }
    choice->time_us = best_ms * 1000.0f / (float)CALLS;
    return status_ok();
}

// ---- one shape ----

static int32_t alignment_of(const struct matmul_use *use)
{
    const uint64_t x = (uint64_t)ld_x(use->weight) * sizeof(uint16_t);
    const uint64_t out = (uint64_t)use->weight->n_out * dtype_bytes(use->out_dtype);
    const uint64_t bits = x | out | 16u;
    return (int32_t)(bits & (~bits + 1));
}

/* Puts the fastest way of use `first` for a bucket of rows into the table. */
static status_t tune_shape(const struct tuner *t, int32_t first, int32_t n_rows)
{
    const struct matmul_use *const use = &t->args->uses[first];
    const struct cuda_matmul_shape shape = {
        .n_out = use->weight->n_out,
        .n_in = use->weight->n_in,
        .n_rows = n_rows,
        .out_dtype = use->out_dtype,
        .alignment = alignment_of(use),
    };
    const struct cuda_matmul_choice *known = cuda_matmul_table_find(&t->matmul->table, &shape);
    if (known != NULL && known->time_us > 0.0f) {
        return status_ok();
    }
    struct cuda_matmul_algorithm guesses[GUESSES];
    struct cuda_matmul_choice candidates[MAX_CANDIDATES] = {0};
    int n_guesses = 0, n = 0;
    if (n_rows <= CUDA_MATMUL_SMALL_ROWS) {
        candidates[n++] = (struct cuda_matmul_choice){.shape = shape, .way = CUDA_MATMUL_SMALL};
    }
    status_t s = cuda_matmul_lt_guess(t->matmul->lt, &shape, GUESSES, guesses, &n_guesses);
    if (s.code != STATUS_NOT_FOUND) {
        TRY(s);
    }
    for (int i = 0; i < n_guesses; i++) {
        candidates[n++] = (struct cuda_matmul_choice){
            .shape = shape, .way = CUDA_MATMUL_LIBRARY, .algorithm = guesses[i]};
    }
    const struct cuda_matmul_choice *best = NULL;
    s = status_ok();
    for (int i = 0; i < n; i++) {
        s = measure(t, first, &candidates[i]);
        if (!status_is_ok(&s)) {
            continue; // a guess that cannot run after all
        }
        best = best == NULL || candidates[i].time_us < best->time_us ? &candidates[i] : best;
    }
    if (best == NULL) {
        return s; // OK where there was nothing to choose from
    }
    cuda_matmul_table_put(&t->matmul->table, best);
    return status_ok();
}

static bool is_first_of_shape(const struct matmul_tune_args *a, int32_t use)
{
    for (int32_t i = 0; i < use; i++) {
        if (is_same(&a->uses[i], &a->uses[use])) {
            return false;
        }
    }
    return true;
}

static status_t tune_all(const struct tuner *t)
{
    const int32_t largest = cuda_matmul_table_bucket(t->args->max_rows);
    for (int32_t i = 0; i < t->args->n_uses; i++) {
        if (!is_tuned(&t->args->uses[i]) || !is_first_of_shape(t->args, i)) {
            continue;
        }
        for (int32_t n_rows = 1; n_rows <= largest; n_rows *= 2) {
            TRY(tune_shape(t, i, n_rows));
        }
    }
    return status_ok();
}

// ---- what is multiplied ----

/* Rows of values between -1 and 1: zeros would draw less power, and run faster, than a model does. */
static status_t fill_x(const struct tuner *t, size_t n)
{
    uint16_t *const values = malloc(n * sizeof *values);
    if (values == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "matmul tune: out of memory");
    }
    uint32_t state = 1;
    for (size_t i = 0; i < n; i++) {
        state = state * 1664525u + 1013904223u; // a linear congruential generator
        const uint32_t sign = state >> 16 & 0x8000u, mantissa = state >> 20 & 0x7fu;
        values[i] = (uint16_t)(sign | (0x3e80u + (state >> 29) * 0x20u) | mantissa);
    }
    const cudaError_t error = cudaMemcpyAsync(t->x, values, n * sizeof *values,
                                              cudaMemcpyHostToDevice, t->stream->stream);
    status_t s = checked(t, error);
    if (status_is_ok(&s)) {
        s = checked(t, cudaStreamSynchronize(t->stream->stream));
    }
    free(values);
    return s;
}

static void release(struct tuner *t)
{
    (void)cudaFree(t->x);
    (void)cudaFree(t->out);
    if (t->begin != NULL) {
        (void)cudaEventDestroy(t->begin);
    }
    if (t->end != NULL) {
        (void)cudaEventDestroy(t->end);
    }
}

static status_t acquire(struct tuner *t)
{
    size_t max_in = 1, max_out_bytes = 1;
    for (int32_t i = 0; i < t->args->n_uses; i++) {
        const struct matmul_use *const use = &t->args->uses[i];
        const size_t n_in = (size_t)use->weight->n_in;
        const size_t out_bytes = (size_t)use->weight->n_out * dtype_bytes(use->out_dtype);
        max_in = n_in > max_in ? n_in : max_in;
        max_out_bytes = out_bytes > max_out_bytes ? out_bytes : max_out_bytes;
    }
    const size_t n_rows = (size_t)cuda_matmul_table_bucket(t->args->max_rows);
    TRY(checked(t, cudaMalloc(&t->x, n_rows * max_in * sizeof(uint16_t))));
    TRY(checked(t, cudaMalloc(&t->out, n_rows * max_out_bytes)));
    TRY(checked(t, cudaEventCreateWithFlags(&t->begin, cudaEventDefault)));
    TRY(checked(t, cudaEventCreateWithFlags(&t->end, cudaEventDefault)));
    return fill_x(t, n_rows * max_in);
}

// ---- the cache ----

static status_t key_of(const struct backend_stream *stream, struct cuda_matmul_key *key)
{
    struct cudaDeviceProp properties;
    int driver = 0;
    TRY(cuda_status(cudaGetDeviceProperties(&properties, stream->device), "device properties",
                    stream->device));
    TRY(cuda_status(cudaDriverGetVersion(&driver), "driver version", stream->device));
    *key = (struct cuda_matmul_key){.library_version = cuda_matmul_lt_version(),
                                    .driver_version = (uint64_t)driver};
    (void)snprintf(key->device, sizeof key->device, "%.*s", (int)sizeof key->device - 1,
                   properties.name);
    return status_ok();
}

status_t cuda_matmul_tune(struct backend_stream *stream, const struct matmul_tune_args *args,
                          status_t *cache_out)
{
    struct tuner t = {.stream = stream, .args = args};
    struct cuda_matmul_key key;
    char path[PATH_BYTES] = "";
    status_t cache = status_ok();
    TRY(cuda_matmul_get(stream, &t.matmul));
    TRY(key_of(stream, &key));
    if (args->cache_dir != NULL) {
        TRY(cuda_matmul_table_path(args->cache_dir, &key, path));
        cache = cuda_matmul_table_read(path, &key, &t.matmul->table);
    }
    const int32_t n_known = t.matmul->table.n;
    status_t s = acquire(&t);
    if (status_is_ok(&s)) {
        s = tune_all(&t);
    }
    release(&t);
    TRY(s);
    const bool is_news = !status_is_ok(&cache) || t.matmul->table.n != n_known;
    if (args->cache_dir != NULL && is_news) {
        const status_t written = cuda_matmul_table_write(path, &key, &t.matmul->table);
        if (cache.code == STATUS_NOT_FOUND || !status_is_ok(&written)) {
            cache = written; // a first run is no reason to warn
        }
    }
    *cache_out = cache;
    return status_ok();
}

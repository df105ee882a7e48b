/*
 * bench_ops.c - speed of a backend's ops beside what its device can do
 *
 * What:  `bench_ops [--device cpu|cuda] [--quick] [SUITE...]` prints one line of JSON for each case: its sizes, the seconds
 *        of one call, and the bytes and flops that cannot be avoided. Suites: base (a copy, and a matmul of 8192^3), gemm,
 *        decode, prefill, elementwise, sampling. Not a test: nothing fails but the ops themselves.
 * Units: seconds are the median of several rounds of back-to-back calls, each round over at least 20 ms; a recorded graph
 *        where the backend has them, so that the host's time does not count. Weights are read from several copies in
 *        turn, more than the last cache holds. --quick: one small case of each, one call.
 */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/stats.h"
#include "kernels/kv_format.h"
#include "tests/reference/engine_backend.h"

enum {
    HIDDEN = 4096,
    FFN = 14336,
    HEADS = 32,
    BLOCK_TOKENS = 16,
    PIECE_BYTES = 4 << 20,
    CACHE_BYTES = 256 << 20, /* more than any last cache */
    MAX_COPIES = 64,
    ROUNDS = 5,
    MAX_CALLS = 1024, /* in a round */
};

#define ROUND_S 0.02

struct bench {
    const struct backend *backend;
    struct backend_stream *stream;
    bool quick;
    int elem; /* bytes of an activation */
    uint64_t random;
    uint16_t *piece; /* PIECE_BYTES of random bfloat16, normal with deviation 0.02 */
    float *piece_f32;
};

static void require(status_t s)
{
    if (!status_is_ok(&s)) {
        status_print(stderr, &s);
        exit(status_exit_code(&s));
    }
}

static void *must_calloc(size_t n, size_t size)
{
    void *const memory = calloc(n > 0 ? n : 1, size);
    if (memory == NULL) {
        require(status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory"));
    }
    return memory;
}

// ---- data ----

static uint64_t draw(struct bench *b)
{
    b->random += 0x9e3779b97f4a7c15u;
    uint64_t z = b->random;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* Nearly normal: a sum of four uniform values. */
static float draw_normal(struct bench *b, double deviation)
{
    const uint64_t z = draw(b);
    double sum = 0;
    for (int i = 0; i < 4; i++) {
        sum += (double)((z >> (16 * i)) & 0xffff) / 65536.0 - 0.5;
    }
    return (float)(sum * sqrt(3.0) * deviation);
}

static void make_pieces(struct bench *b)
{
    const size_t n = PIECE_BYTES / 2;
    b->piece = must_calloc(n, sizeof *b->piece);
    b->piece_f32 = must_calloc(n, sizeof *b->piece_f32);
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        const float value = draw_normal(b, 0.02);
        memcpy(&bits, &value, sizeof bits);
        b->piece[i] = (uint16_t)(bits >> 16);
        bits &= 0xffff0000u;
        memcpy(&b->piece_f32[i], &bits, sizeof bits);
    }
}

static void *device_new(struct bench *b, size_t size)
{
    void *memory = NULL;
    require(b->backend->mem_alloc(b->stream, size, &memory));
    return memory;
}

/* Device memory of random values of elem bytes each: 4 or 2. */
static void *device_random(struct bench *b, size_t n, int elem)
{
    const size_t size = n * (size_t)elem;
    char *const memory = device_new(b, size);
    const void *const from = elem == 2 ? (const void *)b->piece : (const void *)b->piece_f32;
    for (size_t at = 0; at < size; at += PIECE_BYTES) {
        const size_t part = size - at < PIECE_BYTES ? size - at : PIECE_BYTES;
        require(b->backend->upload(b->stream, memory + at, from, part));
    }
    require(b->backend->stream_sync(b->stream));
    return memory;
}

static void *device_copy(struct bench *b, const void *host, size_t size)
{
    void *const memory = device_new(b, size);
    require(b->backend->upload(b->stream, memory, host, size));
    require(b->backend->stream_sync(b->stream));
    return memory;
}

static void device_free(struct bench *b, void *memory)
{
    b->backend->mem_free(b->stream, memory);
}

// ---- timing ----

/* One call; `i` counts them, for what goes round. */
typedef status_t op_fn(struct bench *b, void *user, int i);

static void sync(struct bench *b)
{
    require(b->backend->stream_sync(b->stream));
}

static double time_calls(struct bench *b, op_fn *op, void *user, int n)
{
    const double begin = clock_now_s(clock_system());
    for (int i = 0; i < n; i++) {
        require(op(b, user, i));
    }
    sync(b);
    return (clock_now_s(clock_system()) - begin) / n;
}

static double time_graph(struct bench *b, struct backend_graph *graph, int n)
{
    const double begin = clock_now_s(clock_system());
    require(b->backend->graph_run(b->stream, graph));
    sync(b);
    return (clock_now_s(clock_system()) - begin) / n;
}

enum recording { RECORD, CALL };

/* Seconds of one call. */
static double time_op(struct bench *b, op_fn *op, void *user, enum recording recording)
{
    (void)time_calls(b, op, user, 1); // brings in code, chooses algorithms
    const double wanted = b->quick ? 1 : ROUND_S / time_calls(b, op, user, 3);
    const int n = wanted > MAX_CALLS ? MAX_CALLS : wanted < 1 ? 1 : (int)wanted;
    const int n_rounds = b->quick ? 1 : ROUNDS;
    struct backend_graph *graph = NULL;
    if (recording == RECORD && b->backend->graph_begin != NULL) {
        require(b->backend->graph_begin(b->stream));
        for (int i = 0; i < n; i++) {
            require(op(b, user, i));
        }
        require(b->backend->graph_end(b->stream, &graph));
        (void)time_graph(b, graph, n);
    }
    double rounds[ROUNDS];
    for (int i = 0; i < n_rounds; i++) {
        rounds[i] = graph != NULL ? time_graph(b, graph, n) : time_calls(b, op, user, n);
    }
    if (graph != NULL) {
        b->backend->graph_free(graph);
    }
    stats_sort(rounds, (size_t)n_rounds);
    return rounds[n_rounds / 2];
}

struct cost {
    double seconds, bytes, flops;
};

/* format: the sizes of the case, as members of a JSON object. */
__attribute__((format(printf, 3, 4))) static void say(const char *suite, const struct cost *cost,
                                                      const char *format, ...)
{
    char sizes[256];
    va_list args;
    va_start(args, format);
    // NOLINTNEXTLINE(clang-analyzer-valist.Uninitialized): it is begun right above
    vsnprintf(sizes, sizeof sizes, format, args);
    va_end(args);
    printf("{\"suite\": \"%s\", %s, \"seconds\": %.4g, \"bytes\": %.6g, \"flops\": %.6g}\n", suite,
           sizes, cost->seconds, cost->bytes, cost->flops);
    fflush(stdout);
}

// ---- matmul, and what the device can do ----

struct matmul_case {
    struct matrix *weights[MAX_COPIES];
    int n_copies;
    struct matmul_args args;
};

static status_t run_matmul(struct bench *b, void *user, int i)
{
    struct matmul_case *c = user;
    c->args.weight = c->weights[i % c->n_copies];
    return b->backend->matmul(b->stream, &c->args);
}

static struct matrix *random_matrix(struct bench *b, int32_t n_out, int32_t n_in)
{
    struct matrix *matrix = NULL;
    require(b->backend->matrix_new(b->stream, DTYPE_BF16, n_out, n_in, &matrix));
    const int32_t rows = PIECE_BYTES / 2 / n_in;
    for (int32_t row = 0; row < n_out; row += rows) {
        const struct matrix_write_args write = {.matrix = matrix,
                                                .row_begin = row,
                                                .n_rows = n_out - row < rows ? n_out - row : rows,
                                                .src = b->piece,
                                                .src_dtype = DTYPE_BF16,
                                                .ld_src = n_in};
        require(b->backend->matrix_write(b->stream, &write));
    }
    return matrix;
}

/* As an engine does when it starts. */
static void tune(struct bench *b, const struct matmul_case *c, int32_t max_rows)
{
    struct matmul_use uses[MAX_COPIES];
    if (b->backend->matmul_tune == NULL) {
        return;
    }
    for (int i = 0; i < c->n_copies; i++) {
        uses[i] = (struct matmul_use){.weight = c->weights[i], .out_dtype = b->backend->activation};
    }
    const struct matmul_tune_args args = {
        .uses = uses, .n_uses = c->n_copies, .max_rows = max_rows};
    status_t cache = status_ok();
    require(b->backend->matmul_tune(b->stream, &args, &cache));
    require(cache);
}

static void bench_matmul(struct bench *b, const char *suite, const int32_t shape[2],
                         const int32_t *rows, int n_rows)
{
    const int32_t n_out = shape[0], n_in = shape[1];
    const double weight_bytes = 2.0 * n_out * n_in;
    struct matmul_case c = {.n_copies = (int)ceil(CACHE_BYTES / weight_bytes)};
    c.n_copies = b->quick ? 1 : c.n_copies > MAX_COPIES ? MAX_COPIES : c.n_copies;
    for (int i = 0; i < c.n_copies; i++) {
        c.weights[i] = random_matrix(b, n_out, n_in);
    }
    tune(b, &c, rows[n_rows - 1]);
    for (int i = 0; i < n_rows; i++) {
        const size_t m = (size_t)rows[i];
        void *x = device_random(b, m * (size_t)n_in, b->elem);
        void *out = device_new(b, m * (size_t)n_out * (size_t)b->elem);
        c.args = (struct matmul_args){.x = x,
                                      .ld_x = n_in,
                                      .n_rows = rows[i],
                                      .out = out,
                                      .ld_out = n_out,
                                      .out_dtype = b->backend->activation};
        const struct cost cost = {
            .seconds = time_op(b, run_matmul, &c, RECORD),
            .bytes = weight_bytes + (double)m * (n_in + n_out) * b->elem,
            .flops = 2.0 * (double)m * n_out * n_in,
        };
        say(suite, &cost, "\"m\": %d, \"n\": %d, \"k\": %d", rows[i], n_out, n_in);
        device_free(b, x);
        device_free(b, out);
    }
    for (int i = 0; i < c.n_copies; i++) {
        b->backend->matrix_free(c.weights[i]);
    }
}

static status_t run_copy(struct bench *b, void *user, int i)
{
    (void)i;
    return b->backend->copy_strips(b->stream, user, 1);
}

static void suite_base(struct bench *b)
{
    const size_t size = (size_t)1 << (b->quick ? 20 : 30);
    void *from = device_random(b, size / 2, 2), *to = device_new(b, size);
    struct strip strip = {.from = from,
                          .to = to,
                          .from_stride_bytes = 1 << 20,
                          .to_stride_bytes = 1 << 20,
                          .row_bytes = 1 << 20,
                          .n_rows = (int32_t)(size >> 20)};
    const struct cost cost = {.seconds = time_op(b, run_copy, &strip, CALL),
                              .bytes = 2.0 * (double)size};
    say("base", &cost, "\"what\": \"copy\"");
    device_free(b, from);
    device_free(b, to);
    const int32_t n = b->quick ? 128 : 8192;
    bench_matmul(b, "base", (const int32_t[]){n, n}, &n, 1);
}

static void suite_gemm(struct bench *b)
{
    static const int32_t rows[] = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 8192};
    static const int32_t shapes[][2] = {
        {HIDDEN + 256 * 4, HIDDEN}, {HIDDEN + 256 * 2, HIDDEN}, {HIDDEN + 256, HIDDEN},
        {HIDDEN, HIDDEN},           {2 * FFN, HIDDEN},          {HIDDEN, FFN},
    };
    if (b->quick) {
        bench_matmul(b, "gemm", (const int32_t[]){256, 128}, rows, 3);
        return;
    }
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        bench_matmul(b, "gemm", shapes[i], rows, sizeof rows / sizeof rows[0]);
    }
}

// ---- attention ----

struct heads {
    int32_t kv_heads, group, head_dim;
};

/* n_seqs sequences, n_queries each, kv_tokens[i] in the cache; blocks in scattered order. */
struct attention_case {
    struct heads heads;
    int32_t n_seqs, n_queries, n_blocks;
    const int32_t *kv_tokens;
    int kv_dtype;
    struct attention_plan *plan;
    struct attention_args args;
};

static status_t run_attention(struct bench *b, void *user, int i)
{
    (void)i;
    const struct attention_case *c = user;
    return b->backend->attention(b->stream, c->plan, &c->args);
}

static int32_t blocks_of(int32_t tokens)
{
    return (tokens + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
}

static void set_plan(struct bench *b, struct attention_case *c)
{
    int32_t max_tokens = 0;
    struct attention_seq *seqs = must_calloc((size_t)c->n_seqs, sizeof *seqs);
    const int64_t ld = (int64_t)c->heads.kv_heads * c->heads.group * c->heads.head_dim;
    c->n_blocks = 0;
    for (int32_t i = 0; i < c->n_seqs; i++) {
        seqs[i] = (struct attention_seq){.n_queries = c->n_queries,
                                         .kv_tokens = c->kv_tokens[i],
                                         .first_block = c->n_blocks,
                                         .n_kv_heads = c->heads.kv_heads,
                                         .q_offset = ld * i * c->n_queries,
                                         .ld = ld};
        max_tokens = c->kv_tokens[i] > max_tokens ? c->kv_tokens[i] : max_tokens;
        c->n_blocks += blocks_of(c->kv_tokens[i]);
    }
    const struct attention_shape shape = {
        .head_dim = c->heads.head_dim,
        .group = c->heads.group,
        .block_tokens = BLOCK_TOKENS,
        .kv_dtype = c->kv_dtype,
        .scale = 1.0f / sqrtf((float)c->heads.head_dim),
        .max_seqs = c->n_seqs,
        .max_rows = c->n_seqs * c->n_queries,
        .max_kv_heads = c->heads.kv_heads,
        .max_tokens = max_tokens,
    };
    require(b->backend->attention_plan_new(b->stream, &shape, &c->plan));
    require(b->backend->attention_plan_set(b->stream, c->plan, seqs, c->n_seqs));
    sync(b);
    free(seqs);
}

static int32_t *scattered_blocks(struct bench *b, int32_t n)
{
    int32_t *const blocks = must_calloc((size_t)n, sizeof *blocks);
    for (int32_t i = 0; i < n; i++) {
        const int32_t j = (int32_t)(draw(b) % (uint64_t)(i + 1));
        blocks[i] = blocks[j];
        blocks[j] = i;
    }
    return blocks;
}

static struct cost time_attention(struct bench *b, struct attention_case *c)
{
    set_plan(b, c);
    const size_t row = (size_t)c->heads.kv_heads * (size_t)c->heads.head_dim;
    const size_t n_q = (size_t)c->n_seqs * (size_t)c->n_queries * row * (size_t)c->heads.group;
    const size_t n_kv = (size_t)c->n_blocks * BLOCK_TOKENS * row;
    int32_t *const host_blocks = scattered_blocks(b, c->n_blocks);
    void *q = device_random(b, n_q, b->elem), *out = device_new(b, n_q * (size_t)b->elem);
    // The pieces' bytes are as good as int8.
    const size_t n_halves = n_kv * dtype_bytes(c->kv_dtype) / 2;
    const size_t n_rows = n_kv / (size_t)c->heads.head_dim;
    void *k = device_random(b, n_halves, 2), *v = device_random(b, n_halves, 2);
    void *k_scales = device_random(b, n_rows, 2), *v_scales = device_random(b, n_rows, 2);
    void *blocks = device_copy(b, host_blocks, (size_t)c->n_blocks * sizeof *host_blocks);
    c->args = (struct attention_args){.q = q,
                                      .out = out,
                                      .k_plane = k,
                                      .v_plane = v,
                                      .k_scales = k_scales,
                                      .v_scales = v_scales,
                                      .blocks = blocks};
    struct cost cost = {.seconds = time_op(b, run_attention, c, RECORD)};
    cost.bytes = 2.0 * (double)n_q * b->elem;
    for (int32_t i = 0; i < c->n_seqs; i++) {
        const double tokens = c->kv_tokens[i], queries = c->n_queries;
        cost.bytes +=
            2.0 * tokens * c->heads.kv_heads * (double)kv_row_bytes(c->heads.head_dim, c->kv_dtype);
        const double pairs = queries * tokens - queries * (queries - 1) / 2;
        cost.flops += 4.0 * pairs * (double)row * c->heads.group;
    }
    free(host_blocks);
    device_free(b, q);
    device_free(b, out);
    device_free(b, k);
    device_free(b, v);
    device_free(b, k_scales);
    device_free(b, v_scales);
    device_free(b, blocks);
    b->backend->attention_plan_free(c->plan);
    return cost;
}

/* Around `context`, at most twice as long; with a deviation of 0 all of that length. */
static int32_t *draw_lengths(struct bench *b, int32_t n, int32_t context, double deviation)
{
    int32_t *const lengths = must_calloc((size_t)n, sizeof *lengths);
    for (int32_t i = 0; i < n; i++) {
        const double wanted = context * exp((double)draw_normal(b, deviation));
        lengths[i] = wanted > 2.0 * context ? 2 * context : wanted < 16 ? 16 : (int32_t)wanted;
    }
    return lengths;
}

static void bench_decode(struct bench *b, struct heads heads, int32_t batch, int32_t context)
{
    static const struct {
        const char *name;
        double deviation;
    } kinds[] = {{"uniform", 0}, {"lognormal", 0.5}};

    if (4.0 * batch * context * heads.kv_heads * heads.head_dim > 8e9) {
        return; // would take longer to fill than to time
    }
    for (size_t kind = 0; kind < sizeof kinds / sizeof kinds[0]; kind++) {
        int32_t *const lengths = draw_lengths(b, batch, context, kinds[kind].deviation);
        static const int dtypes[] = {DTYPE_BF16, DTYPE_I8};
        double first_seconds = 0;
        for (size_t i = 0; i < sizeof dtypes / sizeof dtypes[0]; i++) {
            struct attention_case c = {.heads = heads,
                                       .n_seqs = batch,
                                       .n_queries = 1,
                                       .kv_tokens = lengths,
                                       .kv_dtype = dtypes[i]};
            const struct cost cost = time_attention(b, &c);
            first_seconds = i == 0 ? cost.seconds : first_seconds;
            say("decode", &cost,
                "\"kv_heads\": %d, \"group\": %d, \"head_dim\": %d, \"batch\": %d, \"context\": %d, "
                "\"lengths\": \"%s\", \"kv_dtype\": \"%s\", \"times_bfloat16\": %.3f",
                heads.kv_heads, heads.group, heads.head_dim, batch, context, kinds[kind].name,
                dtype_name(dtypes[i]), first_seconds / cost.seconds);
        }
        free(lengths);
    }
}

static void suite_decode(struct bench *b)
{
    static const struct heads heads[] = {
        {1, 32, 128}, {2, 16, 128}, {4, 8, 128}, {4, 8, 64}, {32, 1, 80},
    };
    static const int32_t batches[] = {1, 16, 64, 256}, contexts[] = {512, 2048, 8192};
    for (size_t h = 0; h < sizeof heads / sizeof heads[0]; h++) {
        if (b->quick) {
            bench_decode(b, heads[h], 2, 64);
            continue;
        }
        for (size_t i = 0; i < sizeof batches / sizeof batches[0]; i++) {
            for (size_t j = 0; j < sizeof contexts / sizeof contexts[0]; j++) {
                bench_decode(b, heads[h], batches[i], contexts[j]);
            }
        }
    }
}

static void bench_prefill(struct bench *b, struct heads heads, const int32_t sizes[2], int kv_dtype)
{
    struct attention_case c = {.heads = heads,
                               .n_seqs = 1,
                               .n_queries = sizes[0],
                               .kv_tokens = &sizes[1],
                               .kv_dtype = kv_dtype};
    const struct cost cost = time_attention(b, &c);
    say("prefill", &cost,
        "\"kv_heads\": %d, \"group\": %d, \"head_dim\": %d, \"queries\": %d, \"tokens\": %d, "
        "\"kv_dtype\": \"%s\"",
        heads.kv_heads, heads.group, heads.head_dim, sizes[0], sizes[1], dtype_name(kv_dtype));
}

static void suite_prefill(struct bench *b)
{
    static const struct heads heads[] = {{4, 8, 128}, {1, 32, 128}};
    static const int32_t cases[][2] = {{512, 512}, {2048, 2048}, {8192, 8192}, {512, 8704}};
    static const int32_t small[][2] = {{32, 48}};
    const int32_t(*const list)[2] = b->quick ? small : cases;
    const size_t n = b->quick ? 1 : sizeof cases / sizeof cases[0];
    for (size_t h = 0; h < sizeof heads / sizeof heads[0]; h++) {
        for (size_t i = 0; i < n; i++) {
            bench_prefill(b, heads[h], list[i], DTYPE_BF16);
            bench_prefill(b, heads[h], list[i], DTYPE_I8);
        }
    }
}

// ---- elementwise ----

static status_t run_add_norm(struct bench *b, void *user, int i)
{
    (void)i;
    return b->backend->add_norm(b->stream, user);
}

static status_t run_swiglu(struct bench *b, void *user, int i)
{
    (void)i;
    return b->backend->swiglu(b->stream, user);
}

static status_t run_rope_append(struct bench *b, void *user, int i)
{
    (void)i;
    return b->backend->rope_append(b->stream, user);
}

static void bench_add_norm(struct bench *b, int32_t m)
{
    const size_t n = (size_t)m * HIDDEN;
    void *x = device_random(b, n, 4), *delta = device_random(b, n, b->elem);
    void *weight = device_random(b, HIDDEN, 4), *out = device_new(b, n * (size_t)b->elem);
    struct add_norm_args args = {.x = x,
                                 .delta = delta,
                                 .n_rows = m,
                                 .n_columns = HIDDEN,
                                 .kind = NORM_RMS,
                                 .weight = weight,
                                 .eps = 1e-5f,
                                 .out = out};
    const struct cost cost = {.seconds = time_op(b, run_add_norm, &args, RECORD),
                              .bytes = (double)n * (8 + 2 * b->elem)};
    say("elementwise", &cost, "\"op\": \"add_norm\", \"m\": %d", m);
    device_free(b, x);
    device_free(b, delta);
    device_free(b, weight);
    device_free(b, out);
}

static void bench_swiglu(struct bench *b, int32_t m)
{
    const size_t n = (size_t)m * FFN;
    void *gate_up = device_random(b, 2 * n, b->elem), *out = device_new(b, n * (size_t)b->elem);
    struct swiglu_args args = {.gate_up = gate_up,
                               .ld_in = (int64_t)2 * FFN,
                               .n_rows = m,
                               .n_columns = FFN,
                               .out = out,
                               .ld_out = FFN};
    const struct cost cost = {.seconds = time_op(b, run_swiglu, &args, RECORD),
                              .bytes = (double)n * 3 * b->elem};
    say("elementwise", &cost, "\"op\": \"swiglu\", \"m\": %d", m);
    device_free(b, gate_up);
    device_free(b, out);
}

/* Rows are the last tokens of sequences of their own. */
static void bench_rope_append(struct bench *b, int32_t m)
{
    enum { KV_HEADS = 4, HEAD_DIM = 128, ROW = (HEADS + 2 * KV_HEADS) * HEAD_DIM, POSITIONS = 64 };

    int32_t *const positions = must_calloc((size_t)m, sizeof *positions);
    int32_t *const offsets = must_calloc((size_t)m, sizeof *offsets);
    int64_t *const units = must_calloc((size_t)m, sizeof *units);
    for (int32_t i = 0; i < m; i++) {
        positions[i] = i % POSITIONS;
        offsets[i] = i % BLOCK_TOKENS;
        units[i] = (int64_t)i * KV_HEADS;
    }
    const size_t n_plane = (size_t)m * KV_HEADS * BLOCK_TOKENS * HEAD_DIM;
    const size_t n_table = (size_t)POSITIONS * HEAD_DIM / 2;
    char *qkv = device_random(b, (size_t)m * ROW, b->elem);
    void *k_plane = device_new(b, n_plane * 2), *v_plane = device_new(b, n_plane * 2);
    void *cosines = device_random(b, n_table, 4), *sines = device_random(b, n_table, 4);
    void *d_positions = device_copy(b, positions, (size_t)m * sizeof *positions);
    void *d_offsets = device_copy(b, offsets, (size_t)m * sizeof *offsets);
    void *d_units = device_copy(b, units, (size_t)m * sizeof *units);
    struct rope_append_args args = {.q = qkv,
                                    .ld_q = ROW,
                                    .k = qkv + (size_t)HEADS * HEAD_DIM * (size_t)b->elem,
                                    .v = qkv +
                                         (size_t)(HEADS + KV_HEADS) * HEAD_DIM * (size_t)b->elem,
                                    .ld_kv = ROW,
                                    .n_rows = m,
                                    .n_q_heads = HEADS,
                                    .n_kv_heads = KV_HEADS,
                                    .head_dim = HEAD_DIM,
                                    .rotary_dim = HEAD_DIM,
                                    .block_tokens = BLOCK_TOKENS,
                                    .positions = d_positions,
                                    .cos = cosines,
                                    .sin = sines,
                                    .max_positions = POSITIONS,
                                    .units = d_units,
                                    .head_units = 1,
                                    .offsets = d_offsets,
                                    .k_plane = k_plane,
                                    .v_plane = v_plane,
                                    .kv_dtype = DTYPE_BF16};
    // q and k are read and written in place, v is read, k and v are stored.
    const double per_row = (2.0 * (HEADS + KV_HEADS) + KV_HEADS) * b->elem + 2.0 * KV_HEADS * 2;
    const struct cost cost = {.seconds = time_op(b, run_rope_append, &args, RECORD),
                              .bytes = (double)m * HEAD_DIM * per_row};
    say("elementwise", &cost, "\"op\": \"rope_append\", \"m\": %d", m);
    void *const all[] = {qkv, k_plane, v_plane, cosines, sines, d_positions, d_offsets, d_units};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        device_free(b, all[i]);
    }
    free(positions);
    free(offsets);
    free(units);
}

static void suite_elementwise(struct bench *b)
{
    static const int32_t rows[] = {1, 16, 64, 256, 1024, 8192};
    const size_t n = b->quick ? 2 : sizeof rows / sizeof rows[0];
    for (size_t i = 0; i < n; i++) {
        bench_add_norm(b, rows[i]);
        bench_rope_append(b, rows[i]);
        bench_swiglu(b, rows[i]);
    }
}

// ---- sampling ----

static const struct filter {
    const char *name;
    float temperature;
    int32_t top_k;
    float top_p;
} filters[] = {
    {"greedy", 0, 0, 1},
    {"top_k", 1, 50, 1},
    {"top_p", 1, 0, 0.95f},
    {"top_k_top_p", 1, 50, 0.95f},
};

static status_t run_sample(struct bench *b, void *user, int i)
{
    (void)i;
    return b->backend->sample(b->stream, user);
}

static void bench_sampling(struct bench *b, int32_t n_vocab, int32_t batch,
                           const struct filter *filter)
{
    // As spread as the logits of a model: the values of the pieces have deviation 0.02.
    enum { SPREAD = 100 };

    const size_t n = (size_t)batch * (size_t)n_vocab;
    float *const host = must_calloc(n, sizeof *host);
    for (size_t i = 0; i < n; i++) {
        host[i] = SPREAD * b->piece_f32[(i * 7919) % (PIECE_BYTES / 2)];
    }
    struct sample_row *const rows = must_calloc((size_t)batch, sizeof *rows);
    for (int32_t i = 0; i < batch; i++) {
        rows[i] = (struct sample_row){.logits = (int64_t)i * n_vocab,
                                      .seed = (uint64_t)i,
                                      .temperature = filter->temperature,
                                      .top_k = filter->top_k,
                                      .top_p = filter->top_p,
                                      .repetition = 1};
    }
    void *const d_rows = device_copy(b, rows, (size_t)batch * sizeof *rows);
    struct sample_args args = {.logits = device_copy(b, host, n * sizeof *host),
                               .rows = d_rows,
                               .results =
                                   device_new(b, (size_t)batch * sizeof(struct sample_result)),
                               .n_rows = batch,
                               .n_vocab = n_vocab};
    const struct cost cost = {.seconds = time_op(b, run_sample, &args, CALL),
                              .bytes = 4.0 * (double)n};
    say("sampling", &cost, "\"filter\": \"%s\", \"vocab\": %d, \"batch\": %d", filter->name,
        n_vocab, batch);
    device_free(b, args.logits);
    device_free(b, args.results);
    device_free(b, d_rows);
    free(rows);
    free(host);
}

static void suite_sampling(struct bench *b)
{
    static const int32_t vocabs[] = {32000, 49152}, batches[] = {1, 64, 256, 1024};
    const size_t n_vocabs = b->quick ? 1 : 2, n_batches = b->quick ? 1 : 4;
    for (size_t i = 0; i < n_vocabs; i++) {
        for (size_t j = 0; j < n_batches; j++) {
            for (size_t f = 0; f < sizeof filters / sizeof filters[0]; f++) {
                bench_sampling(b, vocabs[i], batches[j], &filters[f]);
            }
        }
    }
}

static const struct {
    const char *name;
    void (*run)(struct bench *b);
} suites[] = {
    {"base", suite_base},
    {"gemm", suite_gemm},
    {"decode", suite_decode},
    {"prefill", suite_prefill},
    {"elementwise", suite_elementwise},
    {"sampling", suite_sampling},
};

static bool is_wanted(const char *name, char **names, int n)
{
    bool wanted = n == 0;
    for (int i = 0; i < n; i++) {
        wanted = wanted || strcmp(names[i], name) == 0;
    }
    return wanted;
}

int main(int argc, char **argv)
{
    struct bench b = {.backend = backend_cpu(), .random = 1};
    int at = 1;
    if (at + 1 < argc && strcmp(argv[at], "--device") == 0) {
        require(engine_backend(argv[at + 1], &b.backend));
        at += 2;
    }
    if (at < argc && strcmp(argv[at], "--quick") == 0) {
        b.quick = true;
        at++;
    }
    const struct stream_options options = {.n_threads = 1};
    require(b.backend->stream_new(&options, &b.stream));
    b.elem = (int)dtype_bytes(b.backend->activation);
    make_pieces(&b);
    struct device_info device;
    int n_devices = 0;
    require(b.backend->devices(&device, 1, &n_devices));
    printf("{\"suite\": \"device\", \"name\": \"%s\", \"backend\": \"%s\", \"quick\": %s}\n",
           device.name, b.backend->name, b.quick ? "true" : "false");
    for (size_t i = 0; i < sizeof suites / sizeof suites[0]; i++) {
        if (is_wanted(suites[i].name, argv + at, argc - at)) {
            suites[i].run(&b);
        }
    }
    free(b.piece);
    free(b.piece_f32);
    b.backend->stream_free(b.stream);
    return 0;
}

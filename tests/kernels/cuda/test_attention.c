#include <math.h>

#include "kernels/cuda/attention_split.h"
#include "tests/kernels/cuda/cuda_check.h"
#include "tests/kernels/quantized_row.h"

/*
 * A cache with sequences in it: blocks handed out at random, known keys and values, NaN in everything no query sees: blocks
 * of nobody, the rest of a last block, tokens the window has left, so that a wrong unit or a token too far shows. Of int8 the
 * scales are NaN there.
 */
enum { MAX_SEQS = 256, N_MIXED = 8, GAP = 8 };

struct sequence {
    int32_t n_queries, kv_tokens, n_kv_heads;
};

struct batch {
    struct backend_stream *stream;
    struct attention_shape shape;
    struct attention_seq seqs[MAX_SEQS];
    int32_t n_seqs;
    float *q, *k[MAX_SEQS], *v[MAX_SEQS]; /* k, v: [kv_tokens, n_kv_heads, head_dim], as cached */
    float *exact_k[MAX_SEQS], *exact_v[MAX_SEQS]; /* before they were */
    size_t n_q;                                   /* elements of q and out, gaps included */
    void *device_q, *device_k, *device_v, *device_k_scales, *device_v_scales;
    void *device_blocks, *device_out;
};

static int32_t blocks_of(const struct batch *b, const struct sequence *s)
{
    return (s->kv_tokens + b->shape.block_tokens - 1) / b->shape.block_tokens;
}

/* Every other block is nobody's; the others come in random order. */
static void random_blocks(int32_t *blocks, int32_t n)
{
    for (int32_t i = 0; i < n; i++) {
        blocks[i] = 2 * i + 1;
    }
    for (int32_t i = n; i > 1; i--) {
        const int32_t other = (int32_t)test_random_below((uint64_t)i);
        const int32_t kept = blocks[i - 1];
        blocks[i - 1] = blocks[other];
        blocks[other] = kept;
    }
}

/* The first token that the window of a query still holds. */
static int64_t first_seen(const struct batch *b, const struct attention_seq *seq, int64_t query)
{
    const int64_t position = seq->kv_tokens - seq->n_queries + query, window = b->shape.window;
    return window > 0 && position >= window ? position - window + 1 : 0;
}

/* One of the planes, K or V, on the host. */
struct plane {
    void *rows;
    uint16_t *scales;
    size_t bytes, scale_bytes;
};

static struct plane plane_new(const struct attention_shape *shape, int64_t n_units)
{
    const size_t n_rows = (size_t)n_units * (size_t)shape->block_tokens;
    struct plane plane = {.bytes = n_rows * (size_t)shape->head_dim * dtype_bytes(shape->kv_dtype),
                          .scale_bytes = n_rows * sizeof(uint16_t)};
    plane.rows = must_alloc(plane.bytes);
    plane.scales = must_alloc(plane.scale_bytes);
    memset(plane.rows, 0xff, plane.bytes);
    memset(plane.scales, 0xff, plane.scale_bytes);
    return plane;
}

static void plane_free(struct plane *plane)
{
    free(plane->rows);
    free(plane->scales);
}

/* The values become what the plane holds of them. */
static void fill_plane(const struct batch *b, const struct plane *plane, float *values,
                       const struct attention_seq *seq, const int32_t *blocks)
{
    const int64_t dim = b->shape.head_dim, tokens = b->shape.block_tokens;
    for (int64_t t = first_seen(b, seq, 0); t < seq->kv_tokens; t++) {
        for (int64_t h = 0; h < seq->n_kv_heads; h++) {
            const int64_t block = blocks[seq->first_block + t / tokens];
            const int64_t unit = seq->unit_base + block * seq->n_kv_heads + h;
            const int64_t row = unit * tokens + t % tokens;
            float *const from = values + (t * seq->n_kv_heads + h) * dim;
            if (b->shape.kv_dtype == DTYPE_I8) {
                plane->scales[row] =
                    quantized_row(from, (int32_t)dim, (int8_t *)plane->rows + row * dim);
                continue;
            }
            for (int64_t d = 0; d < dim; d++) {
                ((uint16_t *)plane->rows)[row * dim + d] = bf16_bits(from[d]);
            }
        }
    }
}

static void lay_out(struct batch *b, const struct sequence *sizes, int32_t n_seqs,
                    int64_t *n_units_out, int32_t *n_blocks_out)
{
    int64_t n_units = 0;
    int32_t n_blocks = 3; // the step's list begins somewhere
    b->n_q = 0;
    b->n_seqs = n_seqs;
    for (int32_t i = 0; i < n_seqs; i++) {
        const struct sequence *s = &sizes[i];
        const int64_t row = (int64_t)s->n_kv_heads * b->shape.group * b->shape.head_dim;
        b->seqs[i] = (struct attention_seq){
            .n_queries = s->n_queries,
            .kv_tokens = s->kv_tokens,
            .first_block = n_blocks,
            .n_kv_heads = s->n_kv_heads,
            .unit_base = n_units + 3,
            .q_offset = (int64_t)b->n_q + GAP,
            .ld = row + GAP,
        };
        n_units += 3 + (2 * (int64_t)blocks_of(b, s) + 1) * s->n_kv_heads;
        n_blocks += blocks_of(b, s);
        b->n_q += GAP + (size_t)(s->n_queries * (row + GAP));
    }
    *n_units_out = n_units + 1;
    *n_blocks_out = n_blocks;
}

static float *copy_of(const float *values, size_t n)
{
    float *const copy = must_alloc(n * sizeof *copy);
    memcpy(copy, values, n * sizeof *copy);
    return copy;
}

static struct batch batch_new(struct backend_stream *stream, struct attention_shape shape,
                              const struct sequence *sizes, int32_t n_seqs)
{
    struct batch b = {.stream = stream, .shape = shape};
    int64_t n_units = 0;
    int32_t n_blocks = 0;
    lay_out(&b, sizes, n_seqs, &n_units, &n_blocks);
    struct plane k = plane_new(&shape, n_units), v = plane_new(&shape, n_units);
    int32_t *blocks = must_alloc((size_t)n_blocks * sizeof *blocks);
    memset(blocks, 0x7f, (size_t)n_blocks * sizeof *blocks);
    for (int32_t i = 0; i < n_seqs; i++) {
        const size_t n =
            (size_t)sizes[i].kv_tokens * (size_t)sizes[i].n_kv_heads * (size_t)shape.head_dim;
        b.k[i] = random_bf16_values(n, 1.0);
        b.v[i] = random_bf16_values(n, 1.0);
        b.exact_k[i] = copy_of(b.k[i], n);
        b.exact_v[i] = copy_of(b.v[i], n);
        random_blocks(blocks + b.seqs[i].first_block, blocks_of(&b, &sizes[i]));
        fill_plane(&b, &k, b.k[i], &b.seqs[i], blocks);
        fill_plane(&b, &v, b.v[i], &b.seqs[i], blocks);
    }
    b.q = random_bf16_values(b.n_q, 2.0);
    b.device_q = device_bf16(stream, b.q, b.n_q);
    b.device_k = device_copy(stream, k.rows, k.bytes);
    b.device_v = device_copy(stream, v.rows, v.bytes);
    b.device_k_scales = device_copy(stream, k.scales, k.scale_bytes);
    b.device_v_scales = device_copy(stream, v.scales, v.scale_bytes);
    b.device_blocks = device_copy(stream, blocks, (size_t)n_blocks * sizeof *blocks);
    b.device_out = device_new(stream, b.n_q * sizeof(uint16_t));
    plane_free(&k);
    plane_free(&v);
    free(blocks);
    return b;
}

static void batch_free(struct batch *b)
{
    void *const arrays[] = {b->device_q,        b->device_k,      b->device_v,  b->device_k_scales,
                            b->device_v_scales, b->device_blocks, b->device_out};
    for (size_t i = 0; i < sizeof arrays / sizeof arrays[0]; i++) {
        device_free(b->stream, arrays[i]);
    }
    for (int32_t i = 0; i < b->n_seqs; i++) {
        free(b->k[i]);
        free(b->v[i]);
        free(b->exact_k[i]);
        free(b->exact_v[i]);
    }
    free(b->q);
}

// ---- the reference ----

/* One (query, head) in float64, from the definition. */
static void reference_row(const struct batch *b, int32_t seq, int64_t query, int64_t head,
                          double *out)
{
    static double weights[4096];
    const struct attention_seq *s = &b->seqs[seq];
    const int64_t dim = b->shape.head_dim, kv_head = head / b->shape.group;
    const int64_t position = s->kv_tokens - s->n_queries + query, first = first_seen(b, s, query);
    const float *q = b->q + s->q_offset + query * s->ld + head * dim;
    double most = -INFINITY, sum = 0.0;
    assert_true(position < 4096);
    for (int64_t t = first; t <= position; t++) {
        const float *k = b->k[seq] + (t * s->n_kv_heads + kv_head) * dim;
        double dot = 0.0;
        for (int64_t d = 0; d < dim; d++) {
            dot += (double)q[d] * (double)k[d];
        }
        weights[t] = dot * (double)b->shape.scale;
        most = fmax(most, weights[t]);
    }
    memset(out, 0, (size_t)dim * sizeof *out);
    for (int64_t t = first; t <= position; t++) {
        const float *v = b->v[seq] + (t * s->n_kv_heads + kv_head) * dim;
        const double weight = exp(weights[t] - most);
        sum += weight;
        for (int64_t d = 0; d < dim; d++) {
            out[d] += weight * (double)v[d];
        }
    }
    for (int64_t d = 0; d < dim; d++) {
        out[d] /= sum;
    }
}

/* Probabilities are rounded to bfloat16 (2^-9 of |v| <= 1 at most), and so is the result. */
static const struct tolerance attention_result = {.atol = 0x1p-8, .rtol = 0x1p-8};

/* All rows; what lies between rows is still NaN. */
static void check_rows(const struct batch *b, const float *out, struct tolerance tolerance,
                       const char *what)
{
    double want[256];
    int64_t gap = 0;
    for (int32_t i = 0; i < b->n_seqs; i++) {
        const struct attention_seq *s = &b->seqs[i];
        const int64_t dim = b->shape.head_dim, n_heads = (int64_t)s->n_kv_heads * b->shape.group;
        for (; gap < s->q_offset; gap++) {
            assert_true(isnan(out[gap]));
        }
        for (int64_t t = 0; t < s->n_queries; t++) {
            const float *row = out + s->q_offset + t * s->ld;
            for (int64_t h = 0; h < n_heads; h++) {
                reference_row(b, i, t, h, want);
                assert_all_close(row + h * dim, want, (size_t)dim, tolerance, what);
            }
            for (gap = n_heads * dim; gap < s->ld; gap++) {
                assert_true(isnan(row[gap]));
            }
        }
        gap = s->q_offset + s->n_queries * s->ld;
    }
}

/*
 * Against what the cache holds; and of int8 against what it stands for: a value is off by at most 0.502 / 127 of the largest, and
 * a score by about 0.003 in the mean square where queries are at most 2, which moves weights by as much.
 */
static void check_out(const struct batch *b, const float *out, const char *what)
{
    check_rows(b, out, attention_result, what);
    if (b->shape.kv_dtype == DTYPE_I8 && b->shape.scale < 1.0f) {
        struct batch exact = *b;
        memcpy(exact.k, b->exact_k, sizeof exact.k);
        memcpy(exact.v, b->exact_v, sizeof exact.v);
        check_rows(&exact, out, (struct tolerance){.atol = 0.03, .rtol = 0x1p-8}, what);
    }
}

// ---- running ----

static struct attention_shape shape_of(int32_t head_dim, int32_t group, int32_t window)
{
    return (struct attention_shape){
        .head_dim = head_dim,
        .group = group,
        .block_tokens = 16,
        .window = window,
        .kv_dtype = DTYPE_BF16,
        .scale = 1.0f / sqrtf((float)head_dim),
        .max_seqs = MAX_SEQS,
        .max_rows = 700,
        .max_kv_heads = 4,
        .max_tokens = 4096,
    };
}

static struct attention_shape of_int8(struct attention_shape shape)
{
    shape.kv_dtype = DTYPE_I8;
    return shape;
}

static struct attention_plan *plan_new(struct backend_stream *stream,
                                       const struct attention_shape *shape)
{
    struct attention_plan *plan = NULL;
    assert_status_ok(check_backend()->attention_plan_new(stream, shape, &plan));
    return plan;
}

static void attend(const struct batch *b, struct attention_plan *plan)
{
    const struct attention_args args = {
        .q = b->device_q,
        .out = b->device_out,
        .k_plane = b->device_k,
        .v_plane = b->device_v,
        .k_scales = b->device_k_scales,
        .v_scales = b->device_v_scales,
        .blocks = b->device_blocks,
    };
    assert_status_ok(check_backend()->attention(b->stream, plan, &args));
}

static void poison_out(const struct batch *b)
{
    const size_t size = b->n_q * sizeof(uint16_t);
    void *poison = must_alloc(size);
    memset(poison, 0xff, size);
    assert_status_ok(check_backend()->upload(b->stream, b->device_out, poison, size));
    assert_status_ok(check_backend()->stream_sync(b->stream));
    free(poison);
}

/* The output as float32; freed with free. */
static float *result_of(const struct batch *b)
{
    struct attention_plan *plan = plan_new(b->stream, &b->shape);
    assert_status_ok(check_backend()->attention_plan_set(b->stream, plan, b->seqs, b->n_seqs));
    attend(b, plan);
    float *out = device_read_bf16(b->stream, b->device_out, b->n_q);
    check_backend()->attention_plan_free(plan);
    return out;
}

static void check_batch(struct backend_stream *stream, struct attention_shape shape,
                        const struct sequence *sizes, int32_t n_seqs)
{
    char what[64];
    (void)snprintf(what, sizeof what, "head dim %d, group %d, window %d", shape.head_dim,
                   shape.group, shape.window);
    struct batch b = batch_new(stream, shape, sizes, n_seqs);
    float *out = result_of(&b);
    check_out(&b, out, what);
    free(out);
    batch_free(&b);
}

// ---- tests ----

/* One token each; lengths at the borders of pages, tiles and rounds of the warps. */
static void test_attention_decodes_like_float64(void **state)
{
    (void)state;
    static const int32_t shapes[][3] = {
        // head dim, group, window
        {64, 8, 0},  {80, 1, 0},   {128, 16, 0}, {128, 32, 0}, {128, 4, 0},  {64, 7, 0},
        {80, 3, 33}, {128, 2, 64}, {96, 8, 100}, {96, 20, 0},  {64, 32, 17}, {80, 32, 1},
    };
    static const struct sequence sizes[] = {{1, 1, 1},  {1, 16, 2}, {1, 17, 1},  {0, 5, 1},
                                            {1, 64, 1}, {1, 9, 0},  {1, 303, 2}, {1, 65, 1}};
    struct backend_stream *stream = check_stream();
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        const struct attention_shape shape = shape_of(shapes[i][0], shapes[i][1], shapes[i][2]);
        check_batch(stream, shape, sizes, N_MIXED);
        check_batch(stream, of_int8(shape), sizes, N_MIXED);
    }
    check_stream_done(stream);
}

/* Prompts, chunks behind a prefix, some tokens at once, and decode beside them. */
static void test_attention_mixes_prompts_and_decode(void **state)
{
    (void)state;
    static const int32_t shapes[][3] = {{64, 8, 0},  {128, 4, 0}, {80, 1, 0},  {128, 16, 40},
                                        {64, 3, 17}, {96, 2, 0},  {80, 7, 64}, {128, 40, 0}};
    static const struct sequence sizes[] = {{37, 37, 1}, {1, 90, 1},   {19, 200, 1}, {3, 130, 2},
                                            {2, 2, 0},   {65, 129, 1}, {1, 1, 1},    {16, 16, 1}};
    struct backend_stream *stream = check_stream();
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        const struct attention_shape shape = shape_of(shapes[i][0], shapes[i][1], shapes[i][2]);
        check_batch(stream, shape, sizes, N_MIXED);
        check_batch(stream, of_int8(shape), sizes, N_MIXED);
    }
    check_stream_done(stream);
}

static void test_attention_takes_random_batches(void **state)
{
    (void)state;
    static const int32_t dims[] = {32, 64, 80, 96, 128}, groups[] = {1, 2, 3, 4, 7, 8, 16, 32, 71};
    struct backend_stream *stream = check_stream();
    for (int i = 0; i < 12; i++) {
        struct attention_shape shape =
            shape_of(dims[test_random_below(5)], groups[test_random_below(9)],
                     test_random_below(2) == 0 ? 0 : 1 + (int32_t)test_random_below(150));
        shape.block_tokens = 16 * (1 + (int32_t)test_random_below(3));
        struct sequence sizes[4];
        for (int k = 0; k < 4; k++) {
            const int32_t n = 1 + (int32_t)test_random_below(12);
            sizes[k] = (struct sequence){n, n + (int32_t)test_random_below(160),
                                         (int32_t)test_random_below(3)};
        }
        check_batch(stream, i % 2 == 0 ? shape : of_int8(shape), sizes, 4);
    }
    check_stream_done(stream);
}

/* Sharp distributions: maxima that move at any time, parts of splits that weigh nothing. */
static void test_attention_keeps_its_maximum_when_scores_jump(void **state)
{
    (void)state;
    static const struct sequence sizes[] = {{1, 600, 1}, {40, 600, 1}};
    struct backend_stream *stream = check_stream();
    struct attention_shape shape = shape_of(64, 4, 0);
    shape.scale = 4.0f; // scores of some tens up and down
    check_batch(stream, shape, sizes, 2);
    check_batch(stream, of_int8(shape), sizes, 2);
    check_stream_done(stream);
}

/* More units of either kind than blocks run at once: a block takes several, one after the other. */
static void test_attention_gives_blocks_several_units(void **state)
{
    (void)state;
    struct sequence sizes[MAX_SEQS];
    for (int32_t i = 0; i < MAX_SEQS; i++) {
        const int32_t n = 1 + i % 2; // 16 rows: decode; 32: not
        sizes[i] = (struct sequence){n, n + (int32_t)test_random_below(40), 4};
    }
    struct backend_stream *stream = check_stream();
    check_batch(stream, shape_of(64, 16, 0), sizes, MAX_SEQS);
    check_batch(stream, of_int8(shape_of(32, 16, 0)), sizes, MAX_SEQS);
    check_stream_done(stream);
}

/* Few sequences and many processors: parts of splits. Blocks come in another order each time on the simulator. */
static void test_attention_merges_to_the_same_bits(void **state)
{
    (void)state;
    static const int32_t shapes[][3] = {{128, 16, 0}, {64, 32, 700}, {80, 1, 0}, {128, 8, 0}};
    static const struct sequence sizes[] = {{1, 1500, 1}, {1, 777, 1}, {20, 1111, 1}};
    struct backend_stream *stream = check_stream();
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        struct attention_shape shape = shape_of(shapes[i][0], shapes[i][1], shapes[i][2]);
        shape.kv_dtype = i % 2 == 0 ? DTYPE_I8 : DTYPE_BF16;
        struct batch b = batch_new(stream, shape, sizes, 3);
        float *first = result_of(&b);
        check_out(&b, first, "split");
        struct attention_plan *plan = plan_new(stream, &b.shape);
        assert_status_ok(check_backend()->attention_plan_set(stream, plan, b.seqs, b.n_seqs));
        for (int again = 0; again < 3; again++) { // also: counters are as they were
            poison_out(&b);
            attend(&b, plan);
            float *out = device_read_bf16(stream, b.device_out, b.n_q);
            assert_same_bytes(out, first, b.n_q * sizeof *out, "again");
            free(out);
        }
        check_backend()->attention_plan_free(plan);
        free(first);
        batch_free(&b);
    }
    check_stream_done(stream);
}

/* With the flag, a sequence alone gets the bits it gets in company. */
static void test_attention_batch_invariant_does_not_see_others(void **state)
{
    (void)state;
    static const struct sequence sizes[] = {{1, 400, 1}, {30, 260, 1}, {1, 700, 1}};
    struct backend_stream *stream = check_stream();
    struct attention_shape shape = shape_of(64, 8, 0);
    shape.batch_invariant = 1;
    struct batch b = batch_new(stream, shape, sizes, 3);
    float *together = result_of(&b);
    check_out(&b, together, "invariant");
    struct batch alone = b;
    alone.n_seqs = 1;
    for (int32_t i = 0; i < 3; i++) {
        alone.seqs[0] = b.seqs[i];
        float *out = result_of(&alone);
        const size_t at = (size_t)b.seqs[i].q_offset;
        assert_same_bytes(out + at, together + at,
                          (size_t)(b.seqs[i].n_queries * b.seqs[i].ld) * sizeof *out, "alone");
        free(out);
    }
    free(together);
    batch_free(&b);
    check_stream_done(stream);
}

/* A graph recorded with one decode step runs others. */
static void test_attention_graph_stays_valid_for_other_lengths(void **state)
{
    (void)state;
    static const struct sequence sizes[] = {{1, 700, 1}, {1, 33, 2}, {1, 900, 1}};
    const struct backend *const backend = check_backend();
    struct backend_stream *stream = check_stream();
    const struct attention_shape shape = shape_of(128, 8, 0);
    struct batch b = batch_new(stream, shape, sizes, 3);
    struct attention_plan *plan = plan_new(stream, &shape);
    struct backend_graph *graph = NULL;
    const int32_t n_seqs = b.n_seqs;
    assert_status_ok(backend->attention_plan_set(stream, plan, b.seqs, 1));
    assert_status_ok(backend->graph_begin(stream));
    attend(&b, plan);
    assert_status_ok(backend->graph_end(stream, &graph));
    // Plans of one sequence each, set one after the other without waiting: each run sees its own.
    for (int32_t i = 0; i < n_seqs; i++) {
        assert_status_ok(backend->attention_plan_set(stream, plan, &b.seqs[i], 1));
        assert_status_ok(backend->graph_run(stream, graph));
    }
    float *out = device_read_bf16(stream, b.device_out, b.n_q);
    check_out(&b, out, "graph");
    free(out);
    backend->graph_free(graph);
    backend->attention_plan_free(plan);
    batch_free(&b);
    check_stream_done(stream);
}

static void test_attention_refuses_what_it_cannot_do(void **state)
{
    (void)state;
    const struct backend *const backend = check_backend();
    struct backend_stream *stream = check_stream();
    struct attention_plan *plan = NULL;
    struct attention_shape shape = shape_of(72, 1, 0);
    assert_status_says(backend->attention_plan_new(stream, &shape, &plan), STATUS_INVALID_ARGUMENT,
                       "head dim 72 (32, 64, 80, 96 and 128");
    shape = shape_of(64, 1, 0);
    shape.kv_dtype = DTYPE_F32;
    assert_status_says(backend->attention_plan_new(stream, &shape, &plan), STATUS_INVALID_ARGUMENT,
                       "dtype float32");
    shape.kv_dtype = DTYPE_BF16;
    shape.block_tokens = 8;
    assert_status_says(backend->attention_plan_new(stream, &shape, &plan), STATUS_INVALID_ARGUMENT,
                       "blocks of 8");
    shape.block_tokens = 16;
    plan = plan_new(stream, &shape);

    const struct attention_args args = {.q = NULL};
    assert_status_ok(backend->attention(stream, plan, &args)); // a plan that was never set
    assert_status_ok(backend->attention_plan_set(stream, plan, NULL, 0));
    assert_status_ok(backend->attention(stream, plan, &args));
    assert_status_ok(backend->stream_sync(stream));
    struct attention_seq seq = {.n_queries = 1, .kv_tokens = 4097, .n_kv_heads = 1, .ld = 64};
    assert_status_says(backend->attention_plan_set(stream, plan, &seq, 1), STATUS_INVALID_ARGUMENT,
                       "4097 tokens (at most 4096)");
    seq.kv_tokens = 7;
    seq.ld = 63;
    assert_status_says(backend->attention_plan_set(stream, plan, &seq, 1), STATUS_INVALID_ARGUMENT,
                       "stride 63");
    seq.ld = 64;
    seq.q_offset = 4;
    assert_status_says(backend->attention_plan_set(stream, plan, &seq, 1), STATUS_INVALID_ARGUMENT,
                       "offset 4");
    backend->attention_plan_free(plan);
    backend->attention_plan_free(NULL);
    check_stream_done(stream);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_attention_decodes_like_float64),
        cmocka_unit_test(test_attention_mixes_prompts_and_decode),
        cmocka_unit_test(test_attention_takes_random_batches),
        cmocka_unit_test(test_attention_keeps_its_maximum_when_scores_jump),
        cmocka_unit_test(test_attention_gives_blocks_several_units),
        cmocka_unit_test(test_attention_merges_to_the_same_bits),
        cmocka_unit_test(test_attention_batch_invariant_does_not_see_others),
        cmocka_unit_test(test_attention_graph_stays_valid_for_other_lengths),
        cmocka_unit_test(test_attention_refuses_what_it_cannot_do),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

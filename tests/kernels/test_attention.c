#include <math.h>

#include "tests/kernels/kernel_check.h"
#include "tests/kernels/quantized_row.h"

/*
 * A cache with sequences in it: random blocks handed to sequences, known keys and values, NaN in everything that
 * no sequence owns (of int8, in the scales), so that a wrong unit or a token too far shows.
 */
struct shape {
    int32_t head_dim, group, block_tokens, window;
    int kv_dtype;
};

enum { MAX_SEQS = 6 };

struct sequence {
    int32_t n_tokens, n_kv_heads;
    int32_t *blocks;
    int64_t unit_base;
    float *q;                 /* [n_tokens, n_kv_heads * group, head_dim] */
    float *k, *v;             /* [n_tokens, n_kv_heads, head_dim], as the cache holds them */
    float *exact_k, *exact_v; /* the same before they were rounded or quantised */
};

struct cache {
    struct shape shape;
    void *k_plane, *v_plane;
    uint16_t *k_scales, *v_scales; /* of int8 */
    struct sequence seqs[MAX_SEQS];
    int n_seqs;
};

static size_t ceil_div(int64_t a, int64_t b)
{
    return (size_t)((a + b - 1) / b);
}

/* A row to the index-th of the plane; the row becomes what the cache holds. */
static void put(const struct cache *c, void *plane, uint16_t *scales, int64_t index, float *row)
{
    const int32_t dim = c->shape.head_dim;
    const int64_t at = index * dim;
    if (c->shape.kv_dtype == DTYPE_I8) {
        scales[index] = quantized_row(row, dim, (int8_t *)plane + at);
        return;
    }
    for (int32_t d = 0; d < dim; d++) {
        if (c->shape.kv_dtype == DTYPE_F32) {
            ((float *)plane)[at + d] = row[d];
        } else {
            row[d] = rounded_bf16(row[d]);
            ((uint16_t *)plane)[at + d] = bits_bf16(row[d]);
        }
    }
}

static void fill_sequence(struct cache *c, struct sequence *s)
{
    const struct shape *shape = &c->shape;
    const int64_t dim = shape->head_dim;
    for (int64_t t = 0; t < s->n_tokens; t++) {
        const int64_t block = s->blocks[t / shape->block_tokens];
        for (int64_t h = 0; h < s->n_kv_heads; h++) {
            const int64_t unit = s->unit_base + block * s->n_kv_heads + h;
            const int64_t to = unit * shape->block_tokens + t % shape->block_tokens;
            const int64_t from = (t * s->n_kv_heads + h) * dim;
            put(c, c->k_plane, c->k_scales, to, s->k + from);
            put(c, c->v_plane, c->v_scales, to, s->v + from);
        }
    }
}

/* Sequences of the given tokens and heads, each with a region of units of its own and its blocks shuffled in it. */
static struct cache cache_new(struct shape shape, const int32_t (*sizes)[2], int n_seqs)
{
    struct cache c = {.shape = shape, .n_seqs = n_seqs};
    int64_t n_units = 0;
    for (int i = 0; i < n_seqs; i++) {
        struct sequence *s = &c.seqs[i];
        s->n_tokens = sizes[i][0];
        s->n_kv_heads = sizes[i][1];
        const size_t n_blocks = ceil_div(s->n_tokens, shape.block_tokens);
        s->blocks = must_alloc((n_blocks + 1) * sizeof *s->blocks);
        for (size_t b = 0; b < n_blocks; b++) {
            s->blocks[b] = (int32_t)(2 * b + 1); // every other block is nobody's
        }
        for (size_t b = n_blocks; b > 1; b--) {
            const size_t other = (size_t)test_random_below(b);
            const int32_t kept = s->blocks[b - 1];
            s->blocks[b - 1] = s->blocks[other];
            s->blocks[other] = kept;
        }
        s->unit_base = n_units + 3;
        n_units += 3 + ((int64_t)n_blocks * 2 + 1) * s->n_kv_heads;
        const size_t n = (size_t)s->n_tokens * (size_t)s->n_kv_heads * (size_t)shape.head_dim;
        s->q = random_new(n * (size_t)shape.group, 2.0);
        s->k = random_new(n, 1.0);
        s->v = random_new(n, 1.0);
        s->exact_k = guarded_new(n);
        s->exact_v = guarded_new(n);
        memcpy(s->exact_k, s->k, n * sizeof *s->k);
        memcpy(s->exact_v, s->v, n * sizeof *s->v);
    }
    const size_t n_rows = (size_t)n_units * (size_t)shape.block_tokens;
    c.k_scales = must_alloc(n_rows * sizeof *c.k_scales);
    c.v_scales = must_alloc(n_rows * sizeof *c.v_scales);
    memset(c.k_scales, 0xFF, n_rows * sizeof *c.k_scales);
    memset(c.v_scales, 0xFF, n_rows * sizeof *c.v_scales);
    const size_t unit = (size_t)shape.block_tokens * (size_t)shape.head_dim;
    const size_t bytes = (size_t)n_units * unit * dtype_bytes(shape.kv_dtype);
    c.k_plane = must_alloc(bytes);
    c.v_plane = must_alloc(bytes);
    memset(c.k_plane, 0xFF, bytes); // NaN where the dtype has one
    memset(c.v_plane, 0xFF, bytes);
    for (int i = 0; i < n_seqs; i++) {
        fill_sequence(&c, &c.seqs[i]);
    }
    return c;
}

static void cache_free(struct cache *c)
{
    for (int i = 0; i < c->n_seqs; i++) {
        free(c->seqs[i].blocks);
        guarded_free(c->seqs[i].q);
        guarded_free(c->seqs[i].k);
        guarded_free(c->seqs[i].v);
        guarded_free(c->seqs[i].exact_k);
        guarded_free(c->seqs[i].exact_v);
    }
    free(c->k_scales);
    free(c->v_scales);
    free(c->k_plane);
    free(c->v_plane);
}

static size_t row_size(const struct cache *c, const struct sequence *s)
{
    return (size_t)s->n_kv_heads * (size_t)c->shape.group * (size_t)c->shape.head_dim;
}

static float scale_of(const struct cache *c)
{
    return 1.0f / sqrtf((float)c->shape.head_dim);
}

// ---- the reference ----

/* One (token, head), in float64, written from the definition. */
static void reference_row(const struct cache *c, const struct sequence *s, int64_t token,
                          int64_t head, double *out)
{
    const int64_t dim = c->shape.head_dim, kv_head = head / c->shape.group;
    const int64_t window = c->shape.window;
    const int64_t first = window > 0 && token - window + 1 > 0 ? token - window + 1 : 0;
    const float *q = s->q + (token * s->n_kv_heads * c->shape.group + head) * dim;
    double weights[2048];
    double largest = -INFINITY, sum = 0.0;
    for (int64_t t = first; t <= token; t++) {
        const float *k = s->k + (t * s->n_kv_heads + kv_head) * dim;
        double dot = 0.0;
        for (int64_t d = 0; d < dim; d++) {
            dot += (double)q[d] * (double)k[d];
        }
        weights[t] = dot * (double)scale_of(c);
        largest = weights[t] > largest ? weights[t] : largest;
    }
    for (int64_t d = 0; d < dim; d++) {
        out[d] = 0.0;
    }
    for (int64_t t = first; t <= token; t++) {
        const float *v = s->v + (t * s->n_kv_heads + kv_head) * dim;
        const double weight = exp(weights[t] - largest);
        sum += weight;
        for (int64_t d = 0; d < dim; d++) {
            out[d] += weight * (double)v[d];
        }
    }
    for (int64_t d = 0; d < dim; d++) {
        out[d] /= sum;
    }
}

static void check_rows(const struct cache *c, const struct sequence *s, const float *out,
                       struct tolerance tolerance)
{
    const int64_t dim = c->shape.head_dim, n_heads = (int64_t)s->n_kv_heads * c->shape.group;
    double want[CPU_MAX_HEAD_DIM];
    for (int64_t t = 0; t < s->n_tokens; t++) {
        for (int64_t h = 0; h < n_heads; h++) {
            reference_row(c, s, t, h, want);
            assert_all_close(out + (t * n_heads + h) * dim, want, (size_t)dim, tolerance,
                             "attention");
        }
    }
}

/*
 * Against what the cache holds; and of int8 against what it stands for. There a value is off by at most 0.502/127 = 0.004,
 * and a score by about 0.003 in the mean square (|q| <= 2, |k| <= 1), which moves weights by as much: 0.03 is far out.
 */
static void check_reference(const struct cache *c, const struct sequence *s, const float *out)
{
    check_rows(c, s, out, kernel_tolerance(TOLERANCE_ATTENTION));
    if (c->shape.kv_dtype == DTYPE_I8) {
        struct sequence exact = *s;
        exact.k = s->exact_k;
        exact.v = s->exact_v;
        check_rows(c, &exact, out, (struct tolerance){.atol = 0.03, .rtol = 0.0});
    }
}

// ---- running ----

/* What a run of tokens [begin, end) of every sequence (clipped to what it has) needs. */
struct batch {
    struct attention_seq seqs[MAX_SEQS];
    int32_t *blocks;
    size_t n_q;
};

enum { GAP = 5 }; /* elements between rows and between sequences, which stay untouched */

static struct batch batch_new(const struct cache *c, const int32_t range[2])
{
    struct batch batch = {.n_q = 0};
    int32_t n_blocks = 0;
    for (int i = 0; i < c->n_seqs; i++) {
        n_blocks += (int32_t)ceil_div(c->seqs[i].n_tokens, c->shape.block_tokens);
    }
    batch.blocks = must_alloc(((size_t)n_blocks + 1) * sizeof *batch.blocks);
    n_blocks = 0;
    for (int i = 0; i < c->n_seqs; i++) {
        const struct sequence *s = &c->seqs[i];
        const int32_t end = range[1] < s->n_tokens ? range[1] : s->n_tokens;
        const int32_t begin = range[0] < end ? range[0] : end;
        const size_t n = ceil_div(end, c->shape.block_tokens);
        batch.seqs[i] = (struct attention_seq){
            .n_queries = end - begin,
            .kv_tokens = end,
            .first_block = n_blocks,
            .unit_base = s->unit_base,
            .n_kv_heads = s->n_kv_heads,
            .q_offset = (int64_t)batch.n_q + GAP,
            .ld = (int64_t)row_size(c, s) + GAP,
        };
        memcpy(batch.blocks + n_blocks, s->blocks, n * sizeof *batch.blocks);
        n_blocks += (int32_t)n;
        batch.n_q += GAP + (size_t)(end - begin) * (row_size(c, s) + GAP);
    }
    return batch;
}

static struct attention_shape shape_of(const struct cache *c)
{
    return (struct attention_shape){
        .head_dim = c->shape.head_dim,
        .group = c->shape.group,
        .block_tokens = c->shape.block_tokens,
        .window = c->shape.window,
        .kv_dtype = c->shape.kv_dtype,
        .scale = scale_of(c),
        .max_seqs = MAX_SEQS,
    };
}

/* Rows of a sequence between the test's whole rows and the batch's, which has gaps. */
static void move_rows(const struct cache *c, int seq, const struct attention_seq *in_batch,
                      float *whole, float *batch, bool into_batch)
{
    const size_t row = row_size(c, &c->seqs[seq]);
    for (int64_t i = 0; i < in_batch->n_queries; i++) {
        const int64_t token = in_batch->kv_tokens - in_batch->n_queries + i;
        float *const mine = whole + (size_t)token * row;
        float *const its = batch + in_batch->q_offset + i * in_batch->ld;
        memcpy(into_batch ? its : mine, into_batch ? mine : its, row * sizeof *mine);
        for (int gap = 0; gap < GAP && !into_batch; gap++) {
            assert_true(isnan(its[row + (size_t)gap]));
        }
    }
}

/* Results into out[i] as laid out in q. */
static void run(struct backend_stream *stream, const struct cache *c, const int32_t range[2],
                float *const *out)
{
    struct batch batch = batch_new(c, range);
    float *q = guarded_new(batch.n_q), *packed = guarded_new(batch.n_q);
    for (int i = 0; i < c->n_seqs; i++) {
        move_rows(c, i, &batch.seqs[i], c->seqs[i].q, q, true);
    }
    const struct attention_shape shape = shape_of(c);
    struct attention_plan *plan = NULL;
    assert_status_ok(cpu_attention_plan_new(stream, &shape, &plan));
    assert_status_ok(cpu_attention_plan_set(stream, plan, batch.seqs, c->n_seqs));
    const struct attention_args args = {
        .q = q,
        .out = packed,
        .k_plane = c->k_plane,
        .v_plane = c->v_plane,
        .k_scales = c->k_scales,
        .v_scales = c->v_scales,
        .blocks = batch.blocks,
    };
    assert_status_ok(cpu_attention(stream, plan, &args));
    for (int i = 0; i < c->n_seqs; i++) {
        move_rows(c, i, &batch.seqs[i], out[i], packed, false);
        for (int64_t gap = batch.seqs[i].q_offset - GAP; gap < batch.seqs[i].q_offset; gap++) {
            assert_true(isnan(packed[gap]));
        }
    }
    cpu_attention_plan_free(plan);
    guarded_free(q);
    guarded_free(packed);
    free(batch.blocks);
}

static void outputs_new(const struct cache *c, float **out)
{
    for (int i = 0; i < c->n_seqs; i++) {
        out[i] = guarded_new((size_t)c->seqs[i].n_tokens * row_size(c, &c->seqs[i]));
    }
}

static void outputs_free(const struct cache *c, float **out)
{
    for (int i = 0; i < c->n_seqs; i++) {
        guarded_free(out[i]);
    }
}

// ---- tests ----

static const struct shape shapes[] = {
    {.head_dim = 8, .group = 1, .block_tokens = 16, .kv_dtype = DTYPE_F32},
    {.head_dim = 64, .group = 4, .block_tokens = 16, .kv_dtype = DTYPE_BF16},
    {.head_dim = 128, .group = 3, .block_tokens = 16, .kv_dtype = DTYPE_F32},
    {.head_dim = 80, .group = 8, .block_tokens = 32, .kv_dtype = DTYPE_BF16},
    {.head_dim = 37, .group = 1, .block_tokens = 8, .kv_dtype = DTYPE_F32},
    {.head_dim = 5, .group = 16, .block_tokens = 5, .kv_dtype = DTYPE_BF16},
    {.head_dim = 24, .group = 4, .block_tokens = 23, .window = 1, .kv_dtype = DTYPE_F32},
    {.head_dim = 24, .group = 3, .block_tokens = 16, .window = 7, .kv_dtype = DTYPE_BF16},
    {.head_dim = 40, .group = 1, .block_tokens = 16, .window = 20, .kv_dtype = DTYPE_F32},
    {.head_dim = 16, .group = 40, .block_tokens = 16, .window = 33, .kv_dtype = DTYPE_F32},
    {.head_dim = 128, .group = 4, .block_tokens = 16, .kv_dtype = DTYPE_I8},
    {.head_dim = 37, .group = 3, .block_tokens = 8, .window = 9, .kv_dtype = DTYPE_I8},
    {.head_dim = 80, .group = 1, .block_tokens = 23, .kv_dtype = DTYPE_I8},
};

static const int32_t sizes[][2] = {{1, 1}, {16, 2}, {47, 1}, {9, 0}, {70, 3}};

enum { N_SEQS = 5, LONGEST = 70 };

static void check_shapes(struct backend_stream *stream)
{
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        struct cache c = cache_new(shapes[i], sizes, N_SEQS);
        float *out[MAX_SEQS];
        outputs_new(&c, out);
        const int32_t all[2] = {0, LONGEST};
        run(stream, &c, all, out);
        for (int s = 0; s < c.n_seqs; s++) {
            check_reference(&c, &c.seqs[s], out[s]);
        }
        outputs_free(&c, out);
        cache_free(&c);
    }
}

static void test_attention_matches_float64(void **state)
{
    (void)state;
    each_stream(check_shapes);
}

/* Prompts in chunks, and token by token as in decode, against the whole. */
static void check_chunks(struct backend_stream *stream)
{
    static const int32_t chunks[] = {1, 3, 16, 17, 33};
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        struct cache c = cache_new(shapes[i], sizes, N_SEQS);
        float *want[MAX_SEQS], *got[MAX_SEQS];
        outputs_new(&c, want);
        const int32_t all[2] = {0, LONGEST};
        run(stream, &c, all, want);
        for (size_t n = 0; n < sizeof chunks / sizeof chunks[0]; n++) {
            outputs_new(&c, got);
            for (int32_t begin = 0; begin < LONGEST; begin += chunks[n]) {
                const int32_t range[2] = {begin, begin + chunks[n]};
                run(stream, &c, range, got);
            }
            for (int s = 0; s < c.n_seqs; s++) {
                assert_same_bits(got[s], want[s],
                                 (size_t)c.seqs[s].n_tokens * row_size(&c, &c.seqs[s]), "chunked");
            }
            outputs_free(&c, got);
        }
        outputs_free(&c, want);
        cache_free(&c);
    }
}

static void test_attention_bits_do_not_depend_on_chunks(void **state)
{
    (void)state;
    each_stream(check_chunks);
}

/* One thread against two, and each sequence alone against all together. */
static void check_company(const char *isa)
{
    struct backend_stream *one = stream_of(isa, 1), *two = stream_of(isa, 2);
    const int32_t all[2] = {0, LONGEST};
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        struct cache c = cache_new(shapes[i], sizes, N_SEQS);
        float *want[MAX_SEQS], *got[MAX_SEQS];
        outputs_new(&c, want);
        outputs_new(&c, got);
        run(one, &c, all, want);
        run(two, &c, all, got);
        for (int s = 0; s < c.n_seqs; s++) {
            const size_t n = (size_t)c.seqs[s].n_tokens * row_size(&c, &c.seqs[s]);
            assert_same_bits(got[s], want[s], n, "threads");
            struct cache alone = c;
            alone.n_seqs = 1;
            alone.seqs[0] = c.seqs[s];
            run(one, &alone, all, &got[s]);
            assert_same_bits(got[s], want[s], n, "alone");
        }
        outputs_free(&c, want);
        outputs_free(&c, got);
        cache_free(&c);
    }
    stream_done(one);
    stream_done(two);
}

static void test_attention_bits_do_not_depend_on_other_work(void **state)
{
    (void)state;
    each_isa(check_company);
}

/* A score far above the rest, at the start, in the middle, at the end: the running maximum moves late. */
static void check_extremes(struct backend_stream *stream)
{
    static const int32_t one[][2] = {{40, 1}};
    const struct shape shape = {
        .head_dim = 16, .group = 2, .block_tokens = 16, .kv_dtype = DTYPE_F32};
    static const int spikes[] = {0, 20, 39};
    for (size_t i = 0; i < sizeof spikes / sizeof spikes[0]; i++) {
        struct cache c = cache_new(shape, one, 1);
        for (int d = 0; d < shape.head_dim; d++) {
            c.seqs[0].k[spikes[i] * shape.head_dim + d] *= 400.0f;
        }
        fill_sequence(&c, &c.seqs[0]);
        float *out[MAX_SEQS];
        outputs_new(&c, out);
        const int32_t all[2] = {0, 40};
        run(stream, &c, all, out);
        // Scores of some hundreds carry an error of some 1e-5 in float32, which the softmax hands on.
        double want[CPU_MAX_HEAD_DIM];
        for (int64_t row = 0; row < 80; row++) {
            reference_row(&c, &c.seqs[0], row / 2, row % 2, want);
            assert_all_close(out[0] + row * shape.head_dim, want, (size_t)shape.head_dim,
                             (struct tolerance){.atol = 2e-4, .rtol = 0.0}, "spike");
        }
        outputs_free(&c, out);
        cache_free(&c);
    }
}

static void test_attention_keeps_its_maximum_when_scores_jump(void **state)
{
    (void)state;
    each_stream(check_extremes);
}

/* A key or a value that was no number has a NaN as its scale: who sees it becomes NaN in every column, nobody else. */
static void check_not_a_number(struct backend_stream *stream)
{
    enum { N_TOKENS = 40, BAD = 21, GROUP = 2, DIM = 20 };

    static const int32_t one[][2] = {{N_TOKENS, 1}};
    const struct shape shape = {
        .head_dim = DIM, .group = GROUP, .block_tokens = 16, .kv_dtype = DTYPE_I8};
    for (int plane = 0; plane < 2; plane++) {
        struct cache c = cache_new(shape, one, 1);
        const struct sequence *s = &c.seqs[0];
        uint16_t *const scales = plane == 0 ? c.k_scales : c.v_scales;
        const int64_t unit = s->unit_base + s->blocks[BAD / 16];
        scales[unit * 16 + BAD % 16] = bits_bf16(NAN);
        float *out[MAX_SEQS];
        outputs_new(&c, out);
        for (int32_t t = 0; t < N_TOKENS; t += 10) {
            const int32_t chunk[2] = {t, t + 10};
            run(stream, &c, chunk, out);
        }
        double want[CPU_MAX_HEAD_DIM];
        for (int64_t row = 0; row < (int64_t)N_TOKENS * GROUP; row++) {
            const float *const got = out[0] + row * DIM;
            if (row / GROUP < BAD) {
                reference_row(&c, s, row / GROUP, row % GROUP, want);
                assert_all_close(got, want, DIM, kernel_tolerance(TOLERANCE_ATTENTION), "before");
                continue;
            }
            for (int d = 0; d < DIM; d++) {
                assert_true(isnan(got[d]));
            }
        }
        outputs_free(&c, out);
        cache_free(&c);
    }
}

static void test_attention_hands_on_what_is_no_number(void **state)
{
    (void)state;
    each_stream(check_not_a_number);
}

static void test_attention_refuses_what_it_cannot_do(void **state)
{
    (void)state;
    struct backend_stream *stream = stream_of("auto", 1);
    struct attention_shape shape = {.kv_dtype = DTYPE_F32,
                                    .head_dim = CPU_MAX_HEAD_DIM + 1,
                                    .group = 1,
                                    .block_tokens = 16,
                                    .scale = 1.0f,
                                    .max_seqs = 1};
    struct attention_plan *plan = NULL;
    assert_status_says(cpu_attention_plan_new(stream, &shape, &plan), STATUS_INVALID_ARGUMENT,
                       "513");
    shape.head_dim = 64;
    shape.kv_dtype = DTYPE_F16;
    assert_status_code(cpu_attention_plan_new(stream, &shape, &plan), STATUS_INVALID_ARGUMENT);
    shape.kv_dtype = DTYPE_F32;
    assert_status_ok(cpu_attention_plan_new(stream, &shape, &plan));

    const struct attention_args args = {.q = NULL};
    assert_status_ok(cpu_attention_plan_set(stream, plan, NULL, 0));
    assert_status_ok(cpu_attention(stream, plan, &args)); // no sequences
    const struct attention_seq seqs[2] = {{.n_queries = 2, .kv_tokens = 1, .n_kv_heads = 1}};
    assert_status_says(cpu_attention_plan_set(stream, plan, seqs, 1), STATUS_INVALID_ARGUMENT,
                       "2 queries, 1 tokens");
    assert_status_says(cpu_attention_plan_set(stream, plan, seqs, 2), STATUS_INVALID_ARGUMENT,
                       "2 sequences");
    const struct attention_seq narrow = {.n_queries = 2, .kv_tokens = 2, .n_kv_heads = 1, .ld = 63};
    assert_status_says(cpu_attention_plan_set(stream, plan, &narrow, 1), STATUS_INVALID_ARGUMENT,
                       "stride 63");
    cpu_attention_plan_free(plan);
    stream_done(stream);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_attention_matches_float64),
        cmocka_unit_test(test_attention_bits_do_not_depend_on_chunks),
        cmocka_unit_test(test_attention_bits_do_not_depend_on_other_work),
        cmocka_unit_test(test_attention_keeps_its_maximum_when_scores_jump),
        cmocka_unit_test(test_attention_hands_on_what_is_no_number),
        cmocka_unit_test(test_attention_refuses_what_it_cannot_do),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

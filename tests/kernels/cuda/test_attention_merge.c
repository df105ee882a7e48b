#include <math.h>

#include "tests/kernels/cuda/cuda_check.h"
#include "tests/kernels/part_case.h"

/* Attention over parts of the cache and their merge, against float64 over all of it. */

enum { MAX_PARTS = 8, GAP = 8 };

/* Decode and prefill of any group; long enough to be split further on the device. */
static const int32_t sizes[][2] = {{1, 1}, {16, 16}, {97, 1}, {150, 20}, {15, 4}, {400, 1}};

enum { N_SEQS = 6 };

/* Probabilities are rounded to bfloat16 (2^-9 of |v| <= 1 at most), and so is the result. */
static const double bf16_rounding = 0x1p-8;

/* Partial rows of one part in device memory, NaN before. */
static void *attend(struct backend_stream *stream, const struct part_case *c, int32_t part,
                    int32_t batch_invariant)
{
    struct part_case_list list;
    part_case_list(c, part, &list);
    const size_t n_heads = (size_t)part_case_heads(c), n_rows = (size_t)c->n_rows;
    const size_t n_plane = (size_t)c->n_units * PART_CASE_BLOCK * (size_t)c->head_dim;
    const size_t width = n_heads * (size_t)(c->head_dim + ATTENTION_STATS);
    void *q = device_bf16(stream, c->q, n_rows * n_heads * (size_t)c->head_dim);
    const bool int8 = c->k_int8 != NULL;
    const size_t n_scales = (size_t)c->n_units * PART_CASE_BLOCK * sizeof(uint16_t);
    void *k =
        int8 ? device_copy(stream, c->k_int8, n_plane) : device_bf16(stream, c->k_plane, n_plane);
    void *v =
        int8 ? device_copy(stream, c->v_int8, n_plane) : device_bf16(stream, c->v_plane, n_plane);
    void *k_scales = int8 ? device_copy(stream, c->k_scales, n_scales) : device_new(stream, 16);
    void *v_scales = int8 ? device_copy(stream, c->v_scales, n_scales) : device_new(stream, 16);
    void *blocks = device_copy(stream, list.blocks, ((size_t)c->n_blocks + 1) * sizeof(int32_t));
    void *rows = device_new(stream, n_rows * width * sizeof(float));
    const struct attention_shape shape = {
        .head_dim = c->head_dim,
        .group = c->group,
        .block_tokens = PART_CASE_BLOCK,
        .kv_dtype = int8 ? DTYPE_I8 : DTYPE_BF16,
        .scale = 1.0f / sqrtf((float)c->head_dim),
        .max_seqs = PART_CASE_SEQS,
        .max_rows = c->n_rows,
        .max_kv_heads = c->n_kv_heads,
        .max_tokens = 600,
        .batch_invariant = batch_invariant,
        .partial = 1,
    };
    const struct attention_args args = {.q = q,
                                        .out = rows,
                                        .k_plane = k,
                                        .v_plane = v,
                                        .k_scales = k_scales,
                                        .v_scales = v_scales,
                                        .blocks = blocks};
    const struct backend *backend = check_backend();
    struct attention_plan *plan = NULL;
    assert_status_ok(backend->attention_plan_new(stream, &shape, &plan));
    assert_status_ok(backend->attention_plan_set(stream, plan, list.seqs, c->n_seqs));
    memset(list.row_ends, 0x7f, n_rows * sizeof *list.row_ends); // copied by now
    assert_status_ok(backend->attention(stream, plan, &args));
    assert_status_ok(backend->stream_sync(stream));
    backend->attention_plan_free(plan);
    void *const arrays[] = {q, k, v, k_scales, v_scales, blocks};
    for (size_t i = 0; i < sizeof arrays / sizeof arrays[0]; i++) {
        device_free(stream, arrays[i]);
    }
    part_case_list_free(&list);
    return rows;
}

static void check_merged(struct backend_stream *stream, const struct part_case *c,
                         const struct attention_source *sources)
{
    const int32_t n_heads = part_case_heads(c);
    const int64_t ld = (int64_t)n_heads * c->head_dim + GAP;
    const size_t n = (size_t)(c->n_rows * ld);
    void *out = device_new(stream, n * sizeof(uint16_t));
    const struct attention_merge_args args = {.sources = sources,
                                              .n_sources = c->n_parts,
                                              .n_rows = c->n_rows,
                                              .n_heads = n_heads,
                                              .head_dim = c->head_dim,
                                              .out = out,
                                              .ld = ld};
    assert_status_ok(check_backend()->attention_merge(stream, &args));
    float *got = device_read_bf16(stream, out, n);
    part_case_check_merged(c, got, ld, bf16_rounding, bf16_rounding);
    free(got);
    device_free(stream, out);
}

static void check_part(struct backend_stream *stream, const struct part_case *c, int32_t part,
                       const void *rows)
{
    const size_t n =
        (size_t)c->n_rows * (size_t)part_case_heads(c) * (size_t)(c->head_dim + ATTENTION_STATS);
    float *got = must_alloc(n * sizeof *got);
    device_read(stream, got, rows, n * sizeof *got);
    part_case_check_part(c, part, got);
    free(got);
}

static void check_case(struct backend_stream *stream, const struct part_case_shape *shape,
                       int kv_dtype, int32_t batch_invariant)
{
    struct part_case c;
    void *rows[MAX_PARTS];
    struct attention_source sources[MAX_PARTS];
    part_case_new(shape, sizes, N_SEQS, &c);
    if (kv_dtype == DTYPE_I8) {
        part_case_round_to_int8(&c);
    }
    const int32_t n_heads = part_case_heads(&c);
    for (int32_t p = 0; p < c.n_parts; p++) {
        rows[p] = attend(stream, &c, p, batch_invariant);
        check_part(stream, &c, p, rows[p]);
        sources[p] = (struct attention_source){
            rows[p], (int64_t)n_heads * (c.head_dim + ATTENTION_STATS), 0, n_heads};
    }
    check_merged(stream, &c, sources);
    for (int32_t p = 0; p < c.n_parts; p++) {
        device_free(stream, rows[p]);
    }
    part_case_free(&c);
}

static void test_cuda_attention_merge_of_parts_is_the_whole(void **state)
{
    (void)state;
    static const struct part_case_shape shapes[] = {
        {32, 1, 1, 2, PART_CASE_IN_TURN},   {64, 4, 2, 3, PART_CASE_AT_RANDOM},
        {128, 20, 1, 2, PART_CASE_IN_TURN}, {80, 2, 1, 3, PART_CASE_TO_ONE},
        {96, 40, 1, 2, PART_CASE_IN_TURN},  {32, 3, 2, 8, PART_CASE_AT_RANDOM},
    };
    struct backend_stream *stream = check_stream();
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        check_case(stream, &shapes[i], DTYPE_BF16, (int32_t)(i % 2));
        if (i == 1) {
            check_case(stream, &shapes[i], DTYPE_I8, 0);
        }
    }
    check_stream_done(stream);
}

/* Heads lie in some sources and not in others; sources are added in their order; no source: zero. */
static void test_cuda_attention_merge_takes_heads_from_where_they_are(void **state)
{
    (void)state;

    enum { DIM = 8, HEADS = 4, WIDTH = DIM + ATTENTION_STATS };

    // Heads 0, 1; heads 1, 2, of which 1 saw nothing; nobody has head 3.
    static const float low[2 * WIDTH] = {2, 4, 0, 0, 0, 0, 0, 1, 1, 2, 0, 0,
                                         6, 9, 0, 0, 0, 0, 0, 3, 5, 3, 0, 0};
    static const float high[2 * WIDTH] = {0, 0, 0, 0, 0, 0, 0, 0, -INFINITY, 0,    0, 0,
                                          1, 0, 0, 0, 0, 0, 0, 2, -700,      0.5f, 0, 0};
    static const float want[HEADS * DIM] = {1, 2, 0, 0, 0, 0, 0, 0.5f, 2, 3, 0, 0,
                                            0, 0, 0, 1, 2, 0, 0, 0,    0, 0, 0, 4};
    struct backend_stream *stream = check_stream();
    const struct backend *backend = check_backend();
    void *first = device_copy(stream, low, sizeof low);
    void *second = device_copy(stream, high, sizeof high);
    void *out = device_new(stream, (size_t)HEADS * DIM * sizeof(uint16_t));
    const struct attention_source sources[] = {{first, (int64_t)2 * WIDTH, 0, 2},
                                               {second, (int64_t)2 * WIDTH, 1, 3}};
    struct attention_merge_args args = {.sources = sources,
                                        .n_sources = 2,
                                        .n_rows = 1,
                                        .n_heads = HEADS,
                                        .head_dim = DIM,
                                        .out = out,
                                        .ld = (int64_t)HEADS * DIM};
    assert_status_ok(backend->attention_merge(stream, &args));
    float *got = device_read_bf16(stream, out, (size_t)HEADS * DIM);
    for (int i = 0; i < HEADS * DIM; i++) {
        assert_close(got[i], want[i], 1e-6, 0);
    }
    args.n_rows = 0;
    assert_status_ok(backend->attention_merge(stream, &args));
    args.head_dim = 12;
    assert_status_says(backend->attention_merge(stream, &args), STATUS_INVALID_ARGUMENT,
                       "heads of 12");
    free(got);
    device_free(stream, first);
    device_free(stream, second);
    device_free(stream, out);
    check_stream_done(stream);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cuda_attention_merge_of_parts_is_the_whole),
        cmocka_unit_test(test_cuda_attention_merge_takes_heads_from_where_they_are),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

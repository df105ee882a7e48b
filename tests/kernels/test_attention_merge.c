#include <math.h>

#include "tests/kernels/kernel_check.h"
#include "tests/kernels/part_case.h"

/* Attention over parts of the cache and their merge, against float64 over all of it. */

static const int32_t sizes[][2] = {{1, 1}, {16, 16}, {97, 1}, {300, 33}, {15, 4}, {64, 64}};

enum { N_SEQS = 6 };

/* |v| <= 1: some roundings of float32, of scores up to about ten. */
static const double float32_rounding = 3e-6;

static void *plane_of(const struct part_case *c, const float *values, int kv_dtype)
{
    if (kv_dtype == DTYPE_I8) {
        return NULL; // the case has it
    }
    const size_t n = (size_t)c->n_units * PART_CASE_BLOCK * (size_t)c->head_dim;
    char *plane = must_alloc(n * dtype_bytes(kv_dtype));
    for (size_t i = 0; i < n; i++) {
        if (kv_dtype == DTYPE_F32) {
            ((float *)(void *)plane)[i] = values[i];
        } else {
            ((uint16_t *)(void *)plane)[i] = bits_bf16(values[i]);
        }
    }
    return plane;
}

/* Partial rows of one part, poisoned before. */
static float *attend(struct backend_stream *stream, const struct part_case *c, int32_t part,
                     int kv_dtype)
{
    struct part_case_list list;
    part_case_list(c, part, &list);
    void *k = plane_of(c, c->k_plane, kv_dtype), *v = plane_of(c, c->v_plane, kv_dtype);
    const size_t width = (size_t)part_case_heads(c) * (size_t)(c->head_dim + ATTENTION_STATS);
    float *rows = guarded_new((size_t)c->n_rows * width);
    const struct attention_shape shape = {
        .head_dim = c->head_dim,
        .group = c->group,
        .block_tokens = PART_CASE_BLOCK,
        .kv_dtype = kv_dtype,
        .scale = 1.0f / sqrtf((float)c->head_dim),
        .max_seqs = PART_CASE_SEQS,
        .max_rows = c->n_rows,
        .partial = 1,
    };
    const bool int8 = kv_dtype == DTYPE_I8;
    const struct attention_args args = {.q = c->q,
                                        .out = rows,
                                        .k_plane = int8 ? c->k_int8 : k,
                                        .v_plane = int8 ? c->v_int8 : v,
                                        .k_scales = c->k_scales,
                                        .v_scales = c->v_scales,
                                        .blocks = list.blocks};
    struct attention_plan *plan = NULL;
    assert_status_ok(cpu_attention_plan_new(stream, &shape, &plan));
    assert_status_ok(cpu_attention_plan_set(stream, plan, list.seqs, c->n_seqs));
    memset(list.row_ends, 0x7f, (size_t)c->n_rows * sizeof *list.row_ends); // copied by now
    assert_status_ok(cpu_attention(stream, plan, &args));
    cpu_attention_plan_free(plan);
    part_case_list_free(&list);
    free(k);
    free(v);
    return rows;
}

static void check_case(struct backend_stream *stream, const struct part_case *c, int kv_dtype)
{
    enum { GAP = 3 };

    float *parts[ATTENTION_MAX_SOURCES];
    struct attention_source sources[ATTENTION_MAX_SOURCES];
    const int32_t n_heads = part_case_heads(c);
    const int64_t width = c->head_dim + ATTENTION_STATS;
    for (int32_t p = 0; p < c->n_parts; p++) {
        parts[p] = attend(stream, c, p, kv_dtype);
        part_case_check_part(c, p, parts[p]);
        sources[p] = (struct attention_source){parts[p], n_heads * width, 0, n_heads};
    }
    const int64_t ld = (int64_t)n_heads * c->head_dim + GAP;
    float *out = guarded_new((size_t)(c->n_rows * ld));
    const struct attention_merge_args args = {.sources = sources,
                                              .n_sources = c->n_parts,
                                              .n_rows = c->n_rows,
                                              .n_heads = n_heads,
                                              .head_dim = c->head_dim,
                                              .out = out,
                                              .ld = ld};
    assert_status_ok(cpu_attention_merge(stream, &args));
    part_case_check_merged(c, out, ld, float32_rounding, 0);
    for (int32_t p = 0; p < c->n_parts; p++) {
        guarded_free(parts[p]);
    }
    guarded_free(out);
}

static void check_cases(struct backend_stream *stream)
{
    static const struct part_case_shape shapes[] = {
        {8, 1, 1, 2, PART_CASE_IN_TURN},     {64, 4, 2, 3, PART_CASE_IN_TURN},
        {128, 3, 1, 4, PART_CASE_AT_RANDOM}, {37, 5, 2, 8, PART_CASE_AT_RANDOM},
        {80, 2, 1, 3, PART_CASE_TO_ONE},     {20, 2, 1, 1, PART_CASE_IN_TURN},
        {8, 1, 1, 40, PART_CASE_IN_TURN},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        struct part_case c;
        part_case_new(&shapes[i], sizes, N_SEQS, &c);
        check_case(stream, &c, DTYPE_F32);
        check_case(stream, &c, DTYPE_BF16);
        part_case_round_to_int8(&c);
        check_case(stream, &c, DTYPE_I8);
        part_case_free(&c);
    }
}

static void test_attention_merge_of_parts_is_the_whole(void **state)
{
    (void)state;
    each_stream(check_cases);
}

/* The bits of a part do not depend on how its rows come: in one chunk, or token by token. */
static void check_chunks(struct backend_stream *stream)
{
    enum { TOKENS = 70, DIM = 24, GROUP = 2 };

    const struct part_case_shape shape = {DIM, GROUP, 1, 3, PART_CASE_IN_TURN};
    const int32_t whole[][2] = {{TOKENS, TOKENS}};
    struct part_case c;
    part_case_new(&shape, whole, 1, &c);
    const size_t width = (size_t)GROUP * (DIM + ATTENTION_STATS);
    for (int32_t p = 0; p < c.n_parts; p++) {
        float *want = attend(stream, &c, p, DTYPE_F32);
        for (int32_t t = 0; t < TOKENS; t++) {
            struct part_case one = c;
            one.n_rows = 1;
            one.q = c.q + (size_t)t * GROUP * DIM;
            one.seqs[0].n_tokens = t + 1;
            one.seqs[0].n_queries = 1;
            float *got = attend(stream, &one, p, DTYPE_F32);
            assert_same_bits(got, want + (size_t)t * width, width, "one token");
            guarded_free(got);
        }
        guarded_free(want);
    }
    part_case_free(&c);
}

static void test_attention_bits_of_a_part_do_not_depend_on_chunks(void **state)
{
    (void)state;
    each_stream(check_chunks);
}

/* Heads lie in some sources and not in others; sources are added in their order; no source: zero. */
static void check_sources(struct backend_stream *stream)
{
    enum { DIM = 2, HEADS = 4, WIDTH = DIM + ATTENTION_STATS };

    // Heads 0, 1; heads 1, 2, of which 1 saw nothing; nobody has head 3.
    const float low[2 * WIDTH] = {2, 4, 1, 2, 0, 0, 6, 9, 5, 3, 0, 0};
    const float high[2 * WIDTH] = {0, 0, -INFINITY, 0, 0, 0, 1, 0, -700, 0.5f, 0, 0};
    const struct attention_source sources[] = {{low, (int64_t)2 * WIDTH, 0, 2},
                                               {high, (int64_t)2 * WIDTH, 1, 3}};
    const float want[HEADS * DIM] = {1, 2, 2, 3, 2, 0, 0, 0};
    float out[HEADS * DIM];
    memset(out, 0xff, sizeof out);
    struct attention_merge_args args = {.sources = sources,
                                        .n_sources = 2,
                                        .n_rows = 1,
                                        .n_heads = HEADS,
                                        .head_dim = DIM,
                                        .out = out,
                                        .ld = (int64_t)HEADS * DIM};
    assert_status_ok(cpu_attention_merge(stream, &args));
    for (int i = 0; i < HEADS * DIM; i++) {
        assert_close(out[i], want[i], 1e-6, 0);
    }
    args.n_rows = 0;
    assert_status_ok(cpu_attention_merge(stream, &args));
    args.n_sources = ATTENTION_MAX_SOURCES + 1;
    assert_status_says(cpu_attention_merge(stream, &args), STATUS_INVALID_ARGUMENT, "65 sources");
}

static void test_attention_merge_takes_heads_from_where_they_are(void **state)
{
    (void)state;
    each_stream(check_sources);
}

static void test_attention_of_a_part_refuses_what_it_cannot_do(void **state)
{
    (void)state;
    struct backend_stream *stream = stream_of("auto", 1);
    struct attention_shape shape = {.head_dim = 8,
                                    .group = 1,
                                    .block_tokens = 16,
                                    .window = 4,
                                    .kv_dtype = DTYPE_F32,
                                    .scale = 1.0f,
                                    .max_seqs = 2,
                                    .max_rows = 2,
                                    .partial = 1};
    struct attention_plan *plan = NULL;
    assert_status_says(cpu_attention_plan_new(stream, &shape, &plan), STATUS_INVALID_ARGUMENT,
                       "window 4");
    shape.window = 0;
    assert_status_ok(cpu_attention_plan_new(stream, &shape, &plan));
    const int32_t ends[][3] = {{2, 1, 0}, {1, 4, 0}, {-1, 0, 0}, {1, 2, 3}};
    static const char *const says[] = {"sees 1 tokens of 3", "sees 4 tokens of 3",
                                       "sees -1 tokens of 3", "more than 2 rows"};
    for (size_t i = 0; i < sizeof ends / sizeof ends[0]; i++) {
        const struct attention_seq seq = {.n_queries = i == 3 ? 3 : 2,
                                          .kv_tokens = 3,
                                          .n_kv_heads = 1,
                                          .ld = 8,
                                          .row_ends = ends[i]};
        assert_status_says(cpu_attention_plan_set(stream, plan, &seq, 1), STATUS_INVALID_ARGUMENT,
                           says[i]);
    }
    const struct attention_seq without = {.n_queries = 1, .kv_tokens = 3, .n_kv_heads = 1, .ld = 8};
    assert_status_code(cpu_attention_plan_set(stream, plan, &without, 1), STATUS_INVALID_ARGUMENT);
    cpu_attention_plan_free(plan);
    stream_done(stream);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_attention_merge_of_parts_is_the_whole),
        cmocka_unit_test(test_attention_bits_of_a_part_do_not_depend_on_chunks),
        cmocka_unit_test(test_attention_merge_takes_heads_from_where_they_are),
        cmocka_unit_test(test_attention_of_a_part_refuses_what_it_cannot_do),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

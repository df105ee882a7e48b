/*
 * test_cost.c - predictions against figures computed elsewhere, by hand or from published ones
 *
 * The oracle is the roofline table of the project's performance goals, made with another program: bounds are what data
 * sheets allow when matmuls, attention and all-reduces follow each other without a gap.
 */
#include "tests/support/test.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "parallel/cost.h"
#include "parallel/cost_place.h"
#include "parallel/cost_search.h"
#include "tests/parallel/models.h"

// ---- models ----

struct sizes {
    const char *name;
    int32_t n_layers, n_hidden, n_heads, head_dim, n_ff, n_vocab;
    int32_t kv[32];
};

static const struct sizes deci_6b = {.name = "deci-6b",
                                     .n_layers = 32,
                                     .n_hidden = 4096,
                                     .n_heads = 32,
                                     .head_dim = 128,
                                     .n_ff = 11008,
                                     .n_vocab = 32000,
                                     .kv = {4, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1,
                                            1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 4, 4}};
static const struct sizes decicoder_1b = {
    .name = "decicoder-1b",
    .n_layers = 20,
    .n_hidden = 2048,
    .n_heads = 32,
    .head_dim = 64,
    .n_ff = 5888,
    .n_vocab = 49152,
    .kv = {4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4}};
static const struct sizes stablelm_3b = {.name = "stablelm-3b",
                                         .n_layers = 32,
                                         .n_hidden = 2560,
                                         .n_heads = 32,
                                         .head_dim = 80,
                                         .n_ff = 6912,
                                         .n_vocab = 50304,
                                         .kv = {32, 32, 32, 32, 32, 32, 32, 32, 32, 32, 32,
                                                32, 32, 32, 32, 32, 32, 32, 32, 32, 32, 32,
                                                32, 32, 32, 32, 32, 32, 32, 32, 32, 32}};

static struct model_spec make_spec(const struct sizes *sizes)
{
    struct model_spec spec = {.n_layers = sizes->n_layers,
                              .n_hidden = sizes->n_hidden,
                              .n_heads = sizes->n_heads,
                              .head_dim = sizes->head_dim,
                              .n_vocab = sizes->n_vocab,
                              .max_positions = 16384};
    snprintf(spec.name, sizeof spec.name, "%s", sizes->name);
    spec.layers = calloc((size_t)spec.n_layers, sizeof *spec.layers);
    assert_non_null(spec.layers);
    for (int32_t i = 0; i < spec.n_layers; i++) {
        spec.layers[i].n_kv_heads = sizes->kv[i];
        spec.layers[i].n_ff = sizes->n_ff;
    }
    return spec;
}

struct subject {
    struct model_spec spec;
    struct plan plan;
    struct cost_rates rates;
    struct cost_model model;
};

enum level { BOUND, CEILING, EXPECTED };

/* What copies and large products reach on the device, and attention of many queries .40. */
static void set_ceiling(struct cost_rates *rates, double read, double flops)
{
    cost_rates_bound(rates, rates);
    rates->efficiency.matmul_read = read;
    rates->efficiency.kv_read = read;
    rates->efficiency.matmul_flops = flops;
    rates->efficiency.attention_flops = .4;
}

static void open_subject(struct subject *s, const struct sizes *sizes, int gpu, enum level level)
{
    static const double read[] = {.85, .88, .88, .90, .896}, flops[] = {.60, .83, .83, .76, .79};
    memset(s, 0, sizeof *s);
    s->spec = sizes != NULL ? make_spec(sizes) : models_deci_7b();
    s->plan = models_plan(&s->spec, 1, PLAN_SHARE);
    cost_rates_of_gpu(gpu, COST_COMM_OWN, &s->rates);
    if (level == BOUND) {
        cost_rates_bound(&s->rates, &s->rates);
    } else if (level == CEILING) {
        set_ceiling(&s->rates, read[gpu], flops[gpu]);
    }
    s->model = (struct cost_model){.plan = &s->plan,
                                   .spec = &s->spec,
                                   .rates = &s->rates,
                                   .dtype = DTYPE_BF16,
                                   .kv_dtype = DTYPE_BF16};
}

static void close_subject(struct subject *s)
{
    plan_destroy(&s->plan);
    spec_destroy(&s->spec);
}

static void assert_near(const char *what, double got, double want, double share)
{
    if (!(fabs(got - want) <= share * want)) {
        fail_msg("%s: %g, the table has %g (%+.2f %%)", what, got, want, (got / want - 1) * 100);
    }
}

// ---- one device ----

/* tokens/s of P/G with B sequences, prompts included. */
static void test_cost_reaches_the_published_workloads(void **state)
{
    (void)state;

    static const struct {
        const struct sizes *model; /* NULL: DeciLM-7B */
        int gpu, p, g, b;
        double bound, ceiling;
    } rows[] = {
        {NULL, COST_A100_80G, 512, 512, 1024, 9888, 8229},
        {NULL, COST_A100_80G, 2048, 2048, 512, 7083, 5924},
        {NULL, COST_A100_80G, 2048, 2048, 72, 5234, 0},
        {NULL, COST_A10, 512, 512, 128, 2999, 0},
        {NULL, COST_A10, 2048, 2048, 32, 992, 0},
        {NULL, COST_H100, 512, 512, 1024, 28017, 21971},
        {NULL, COST_H200, 512, 512, 1024, 30015, 24086},
        {NULL, COST_H200, 2048, 2048, 512, 19925, 16417},
        {&deci_6b, COST_A100_80G, 512, 512, 1024, 12369, 10277},
        {&deci_6b, COST_A10, 512, 512, 128, 3751, 0},
        {&deci_6b, COST_H200, 512, 512, 1024, 37652, 30145},
        {&decicoder_1b, COST_A100_80G, 512, 512, 512, 49528, 41714},
        {&decicoder_1b, COST_H200, 512, 512, 512, 138641, 115049},
        {&stablelm_3b, COST_A100_80G, 512, 512, 251, 6367, 5521},
        {&stablelm_3b, COST_H200, 512, 512, 256, 15863, 13880},
    };

    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        for (enum level level = BOUND; level <= CEILING; level++) {
            const double want = level == BOUND ? rows[i].bound : rows[i].ceiling;
            struct subject s;
            struct cost_prediction got;
            open_subject(&s, rows[i].model, rows[i].gpu, level);
            const struct cost_workload w = {rows[i].p, rows[i].g, rows[i].b, 65536};
            cost_predict(&s.model, &w, &got);
            if (want > 0) {
                char what[64];
                snprintf(what, sizeof what, "workload %zu level %d", i, (int)level);
                assert_near(what, got.tokens_per_s, want, level == BOUND ? .002 : .006);
            }
            close_subject(&s);
        }
    }
}

static double decode_tokens_per_s(const struct subject *s, double b, double context)
{
    const struct cost_rows rows = {.n_seqs = b, .n_new = 1, .n_past = context - 1, .n_logits = b};
    struct cost_time time;
    cost_of_step(&s->model, &rows, &time);
    return b / (time.total_s - time.seconds[COST_EDGES]);
}

static void test_cost_reaches_the_decode_bounds(void **state)
{
    (void)state;
    static const int batches[] = {1, 16, 64, 256, 1024, 256};

    static const struct {
        const struct sizes *model;
        int gpu;
        enum level level;
        double want[6]; /* context 1024; the last 4096; 0: not in the table */
    } rows[] = {
        {NULL, COST_A100_80G, BOUND, {147, 2268, 8119, 16250, 16250, 8832}},
        {NULL, COST_A100_80G, CEILING, {129, 1996, 7145, 13706, 13706, 7593}},
        {NULL, COST_H200, BOUND, {346, 5338, 19113, 46956, 46956, 23121}},
        {NULL, COST_H200, CEILING, {310, 4783, 17126, 38667, 38667, 19855}},
        {&decicoder_1b, COST_A100_80G, BOUND, {996, 13800, 38700, 59600, 59600, 0}},
        {&decicoder_1b, COST_H200, BOUND, {2345, 32500, 91200, 156000, 156000, 0}},
        {&stablelm_3b, COST_A100_80G, BOUND, {360, 3000, 4900, 0, 0, 0}},
        {&stablelm_3b, COST_H200, BOUND, {847, 7200, 11500, 13300, 0, 0}},
    };

    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct subject s;
        open_subject(&s, rows[i].model, rows[i].gpu, rows[i].level);
        for (size_t b = 0; b < 6; b++) {
            char what[64];
            snprintf(what, sizeof what, "decode row %zu batch %d", i, batches[b]);
            const double want = rows[i].want[b];
            const double got = decode_tokens_per_s(&s, batches[b], b == 5 ? 4096 : 1024);
            // Figures of the table have two to five digits.
            assert_near(what, want > 0 ? got : 1, want > 0 ? want : 1,
                        rows[i].model == &stablelm_3b ? .02 : .006);
        }
        close_subject(&s);
    }
}

static void test_cost_reaches_the_first_token_bounds(void **state)
{
    (void)state;
    static const int prompts[] = {128, 512, 2048, 4096, 8192};

    static const struct {
        const struct sizes *model;
        int gpu;
        enum level level;
        double want_ms[5];
    } rows[] = {
        {NULL, COST_A10, BOUND, {23.0, 56, 231, 480, 1030}},
        {NULL, COST_A10, CEILING, {27, 94, 392, 829, 1833}},
        {NULL, COST_A100_80G, BOUND, {6.8, 22.5, 92.6, 192, 413}},
        {NULL, COST_A100_80G, CEILING, {7.7, 27.4, 116, 250, 570}},
        {NULL, COST_H200, BOUND, {2.9, 7.1, 29.2, 60.6, 130}},
        {NULL, COST_H200, CEILING, {3.2, 9.1, 38.3, 82, 187}},
        {&decicoder_1b, COST_A100_80G, BOUND, {1.0, 3.1, 13.1, 0, 0}},
        {&stablelm_3b, COST_A100_80G, BOUND, {2.6, 8.5, 35.5, 75, 0}},
        {&stablelm_3b, COST_H200, BOUND, {1.1, 2.7, 11.2, 24, 0}},
    };

    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct subject s;
        open_subject(&s, rows[i].model, rows[i].gpu, rows[i].level);
        for (size_t p = 0; p < 5; p++) {
            char what[64];
            struct cost_prediction got;
            const struct cost_workload w = {prompts[p], 1, 1, 65536};
            cost_predict(&s.model, &w, &got);
            snprintf(what, sizeof what, "first token row %zu prompt %d", i, prompts[p]);
            const double want = rows[i].want_ms[p];
            // Half of the last digit printed, and the head, which the table adds to the flops of all rows.
            const double rounding =
                want > 0 ? (want < 100 && want != floor(want) ? .05 : .5) / want : 0;
            assert_near(what, want > 0 ? got.first_token_s * 1e3 : 1, want > 0 ? want : 1,
                        rounding + .02);
        }
        close_subject(&s);
    }
}

/* Kernels as good as the best published, in milliseconds of a step. */
static void test_cost_expects_what_good_kernels_reach(void **state)
{
    (void)state;

    static const struct {
        int gpu, b, context;
        double step_ms, matmul_ms, attention_ms;
    } rows[] = {
        {COST_A100_80G, 1, 1024, 8.07, 7.79, .03},    {COST_A100_80G, 256, 1024, 22.0, 15.3, 5.5},
        {COST_A100_80G, 1024, 768, 75.7, 55.3, 16.5}, {COST_H200, 1, 1024, 3.57, 3.31, .01},
        {COST_H200, 64, 1024, 4.24, 3.31, .59},       {COST_H200, 256, 1024, 8.5, 5.5, 2.3},
        {COST_H200, 1024, 768, 27.7, 18.8, 7.0},
    };

    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct subject s;
        struct cost_time time;
        open_subject(&s, NULL, rows[i].gpu, EXPECTED);
        const double b = rows[i].b;
        const struct cost_rows at = {
            .n_seqs = b, .n_new = 1, .n_past = rows[i].context - 1, .n_logits = b};
        cost_of_step(&s.model, &at, &time);
        const double *seconds = time.seconds;
        const double matmul_s = seconds[COST_PROJECT] + seconds[COST_FFN] + seconds[COST_HEAD];
        char what[64];
        snprintf(what, sizeof what, "expected step %zu", i);
        assert_near(what, time.total_s * 1e3, rows[i].step_ms, .04);
        assert_near(what, matmul_s * 1e3, rows[i].matmul_ms, .012);
        assert_true(fabs(seconds[COST_ATTENTION] * 1e3 - rows[i].attention_ms) <
                    .02 * rows[i].attention_ms + .01);
        close_subject(&s);
    }
}

// ---- several ranks ----

static void test_cost_all_reduce_fits_the_published_times(void **state)
{
    (void)state;
    static const double bytes[] = {8 << 10, 512 << 10, 8 << 20};
    static const int32_t ranks[] = {2, 4, 8};

    static const struct {
        int gpu, comm;
        double us[3][3]; /* [ranks][bytes] */
    } rows[] = {
        {COST_A100_80G, COST_COMM_NCCL, {{11, 14, 62}, {14, 19, 91}, {21, 27, 110}}},
        {COST_H100, COST_COMM_NCCL, {{11, 13, 45}, {14, 17, 65}, {21, 25, 80}}},
        {COST_A100_80G, COST_COMM_OWN, {{5, 8, 52}, {6, 14, 80}, {8, 17, 94}}},
        {COST_H100, COST_COMM_OWN, {{4, 6, 35}, {5, 11, 54}, {6, 13, 64}}},
    };

    for (size_t i = 0; i < 4; i++) {
        struct cost_rates rates;
        cost_rates_of_gpu(rows[i].gpu, rows[i].comm, &rates);
        for (size_t r = 0; r < 3; r++) {
            for (size_t b = 0; b < 3; b++) {
                const double got = cost_link_all_reduce_s(&rates.all_reduce, ranks[r], bytes[b]);
                const double want = rows[i].us[r][b];
                if (fabs(got * 1e6 - want) > fmax(.75, .03 * want)) {
                    fail_msg("link %zu, %d ranks, %g bytes: %g us, not %g", i, ranks[r], bytes[b],
                             got * 1e6, want);
                }
            }
        }
    }
}

static void set_layout(struct subject *s, int32_t tp, int comm)
{
    plan_destroy(&s->plan);
    s->plan = models_plan(&s->spec, tp, PLAN_REPLICATE); // what the table assumes
    cost_rates_of_gpu(COST_A100_80G, comm, &s->rates);
    cost_rates_bound(&s->rates, &s->rates);
}

/* DeciLM-7B on the ranks of one node, KV heads copied, with NCCL and with kernels of our own. The table leaves out that the
 * matrices of copied heads are read on each rank, 2 % of a step of one sequence on 8. */
static void test_cost_reaches_the_tensor_parallel_bounds(void **state)
{
    (void)state;
    static const int32_t ranks[] = {2, 4, 8};

    static const struct {
        int b;
        double nccl[3], own[3];
    } rows[] = {
        {1, {244, 381, 453}, {269, 477, 737}},
        {16, {3721, 5680, 6633}, {4085, 6807, 8962}},
        {64, {12971, 18602, 20820}, {14102, 20542, 25929}},
        {256, {26300, 36200, 40700}, {27500, 38400, 45700}},
        {1024, {27700, 40100, 48500}, {28200, 41200, 51000}},
    };
    struct subject s;
    open_subject(&s, NULL, COST_A100_80G, BOUND);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        for (size_t r = 0; r < 3; r++) {
            char what[64];
            snprintf(what, sizeof what, "batch %d on %d ranks", rows[i].b, ranks[r]);
            set_layout(&s, ranks[r], COST_COMM_NCCL);
            assert_near(what, decode_tokens_per_s(&s, rows[i].b, 1024), rows[i].nccl[r], .025);
            set_layout(&s, ranks[r], COST_COMM_OWN);
            assert_near(what, decode_tokens_per_s(&s, rows[i].b, 1024), rows[i].own[r], .025);
        }
    }
    close_subject(&s);
}

/* End to end on 8 GPUs, KV heads copied, as many sequences a GPU everywhere. */
static void test_cost_reaches_the_bounds_of_groups(void **state)
{
    (void)state;

    static const struct {
        int32_t tp, p, g, per_gpu;
        double want;
    } rows[] = {
        {1, 512, 512, 1024, 79100},  {2, 512, 512, 1024, 68700},  {4, 512, 512, 1024, 52700},
        {8, 512, 512, 1024, 35000},  {1, 2048, 2048, 512, 56700}, {2, 2048, 2048, 512, 49000},
        {4, 2048, 2048, 512, 35100}, {8, 2048, 2048, 512, 21100},
    };
    struct subject s;
    open_subject(&s, NULL, COST_A100_80G, BOUND);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char what[64];
        struct cost_prediction got;
        set_layout(&s, rows[i].tp, COST_COMM_OWN);
        const struct cost_workload w = {rows[i].p, rows[i].g, rows[i].per_gpu * rows[i].tp, 65536};
        cost_predict(&s.model, &w, &got);
        // Without what the table leaves out: the sum of the embedding, and gathering logits.
        const double decode = got.decode.total_s - got.decode.seconds[COST_EDGES];
        const double prefill = got.prefill.total_s - got.prefill.seconds[COST_EDGES];
        const double tokens_per_s = (double)w.concurrency * w.n_generate /
                                    (w.n_generate * decode + w.concurrency * prefill);
        snprintf(what, sizeof what, "%d ranks a group, %d/%d", rows[i].tp, w.n_prompt,
                 w.n_generate);
        assert_near(what, tokens_per_s * 8 / rows[i].tp, rows[i].want, .025);
    }
    close_subject(&s);
}

// ---- what sharing costs and saves ----

/* DeciLM-7B on 8 ranks: sharing reads every key once over all ranks, copying reads 3.82 times as much; and a single
 * sequence's keys of a head are one rank's to read. */
static void test_cost_counts_shared_keys_once(void **state)
{
    (void)state;
    struct subject s;
    open_subject(&s, NULL, COST_A100_80G, BOUND);
    plan_destroy(&s.plan);
    s.plan = models_plan(&s.spec, 8, PLAN_SHARE);
    struct cost_time time;
    const struct cost_rows many = {.n_seqs = 64, .n_new = 1, .n_past = 1023, .n_logits = 64};
    cost_of_step(&s.model, &many, &time);
    assert_near("bytes of 64", time.kv_bytes, 64.0 * 1024 * 34304 / 8, 1e-9);
    // Half of the rows of a rank's 4 query heads leave it: 2 lanes of 4 hold the head elsewhere, or more where KV heads are fewer.
    assert_true(time.seconds[COST_EXCHANGE] > 0);
    const struct cost_rows one = {.n_seqs = 1, .n_new = 1, .n_past = 1023, .n_logits = 1};
    cost_of_step(&s.model, &one, &time);
    assert_near("bytes of one", time.kv_bytes, 1024.0 * 32 * 2 * 128 * 2, 1e-9);
    const double one_exchange = time.seconds[COST_EXCHANGE];
    plan_destroy(&s.plan);
    // By token: of one as of many, an eighth each; the outputs of all ranks come back, in float32.
    s.plan = models_plan(&s.spec, 8, PLAN_TOKEN);
    cost_of_step(&s.model, &many, &time);
    assert_near("bytes of 64, by token", time.kv_bytes, 64.0 * 1024 * 34304 / 8, 1e-9);
    cost_of_step(&s.model, &one, &time);
    assert_near("bytes of one, by token", time.kv_bytes, 1024.0 * 34304 / 8, 1e-9);
    assert_true(time.seconds[COST_EXCHANGE] >= one_exchange);
    // A layer of 1 KV head: 4 query heads of 128 go to 7 ranks, and from each come 4 of 132 float32.
    cost_of_layer(&s.model, &one, 25, &time);
    const double reduced = 2 * 4096 * 2.0; // bytes handed to two sums over ranks
    assert_near("messages", time.collective_bytes - reduced, 7 * 4 * (128 * 2 + 132 * 4.0), 1e-9);
    plan_destroy(&s.plan);
    s.plan = models_plan(&s.spec, 8, PLAN_REPLICATE);
    cost_of_step(&s.model, &many, &time);
    assert_near("bytes of 64, copied", time.kv_bytes, 64.0 * 1024 * 32 * 2 * 128 * 2, 1e-9);
    assert_true(time.seconds[COST_EXCHANGE] == 0);
    close_subject(&s);
}

/* A layer's weights and flops by hand: q, k, v, o and the feed-forward, on one rank. */
static void test_cost_counts_a_layer(void **state)
{
    (void)state;
    struct subject s;
    open_subject(&s, NULL, COST_H100, BOUND);
    struct cost_time time;
    const struct cost_rows rows = {.n_seqs = 3, .n_new = 5, .n_past = 10, .n_logits = 3};
    cost_of_layer(&s.model, &rows, 0, &time);
    const double weights = (32 + 2 * 4 + 32) * 128.0 * 4096 + 3 * 14336.0 * 4096;
    const double keys_seen = 3 * (5 * 10 + 12.5);
    assert_near("weights", time.weight_bytes, 2 * weights, 1e-9);
    assert_near("flops", time.flops, 2 * 15 * weights + 4 * 128.0 * 32 * keys_seen, 1e-9);
    assert_near("keys", time.kv_bytes, 3 * 15 * 4 * 2 * 128 * 2.0, 1e-9);
    assert_true(time.collective_bytes == 0);
    close_subject(&s);
}

/* Stages: twice the ranks halve the time of a step where as many sequences a stage are left, and a prompt passes all. */
static void test_cost_of_stages(void **state)
{
    (void)state;
    struct subject s;
    struct cost_prediction whole, cut;
    open_subject(&s, NULL, COST_A100_80G, BOUND);
    const struct cost_workload w = {512, 512, 1024, 512};
    cost_predict(&s.model, &w, &whole);
    plan_destroy(&s.plan);
    const struct plan_request request = {.tp = 1, .pp = 2, .placement = PLAN_SHARE};
    assert_status_ok(plan_make(&s.spec, &request, &s.plan));
    cost_predict(&s.model, &w, &cut);
    assert_near("two stages", cut.tokens_per_s, 2 * whole.tokens_per_s,
                .1); // stages are not quite equal
    assert_true(cut.tokens_per_s < 2 * whole.tokens_per_s);
    assert_near("one prompt", cut.first_token_s, whole.first_token_s, .03);
    close_subject(&s);
}

// ---- placement and search ----

static struct plan_memory_request limits_of(const struct subject *s)
{
    return (struct plan_memory_request){.spec = &s->spec,
                                        .dtype = DTYPE_BF16,
                                        .kv_dtype = DTYPE_BF16,
                                        .max_seqs = 64,
                                        .max_rows = 512,
                                        .max_model_len = 1024};
}

static int32_t count_placed(const struct plan *plan, int placement)
{
    int32_t n = 0;
    for (int32_t i = 0; i < plan->n_layers; i++) {
        n += plan->classes[plan->layers[i].class_index].placement == placement;
    }
    return n;
}

static int32_t count_copied(const struct plan *plan)
{
    return count_placed(plan, PLAN_REPLICATE);
}

/* Keys of one sequence of 128 K tokens take longer to read than any message: split by token, not copied; short ones are not. */
static void test_cost_place_splits_long_sequences_by_token(void **state)
{
    (void)state;
    struct subject s;
    open_subject(&s, NULL, COST_A100_80G, EXPECTED);
    struct plan_memory_request memory = limits_of(&s);
    memory.max_seqs = 1;
    memory.max_model_len = 1 << 17;

    static const struct {
        int32_t n_prompt, concurrency;
        bool split;
    } rows[] = {{130000, 1, true}, {130000, 4, true}, {512, 1, false}, {2048, 1024, false}};

    for (size_t i = 0; i < 4; i++) {
        struct plan_request request = {.tp = 8, .pp = 1};
        const struct cost_workload w = {rows[i].n_prompt, 512, rows[i].concurrency, 512};
        plan_destroy(&s.plan);
        assert_status_ok(cost_place(&s.model, &w, &memory, .9, &request, &s.plan));
        assert_status_ok(plan_check(&s.plan, &s.spec));
        assert_int_equal(count_placed(&s.plan, PLAN_TOKEN), rows[i].split ? s.spec.n_layers : 0);
        assert_int_equal(s.plan.stripe, rows[i].split ? 8 : 1);
    }
    s.spec.sliding_window = 4096;
    struct plan_request request = {.tp = 8, .pp = 1};
    const struct cost_workload w = {130000, 512, 1, 512};
    plan_destroy(&s.plan);
    assert_status_ok(cost_place(&s.model, &w, &memory, .9, &request, &s.plan));
    assert_int_equal(s.plan.stripe, 1);
    close_subject(&s);
}

/* Few sequences: messages cost more than keys. Many: the other way around. No room for copies: none. */
static void test_cost_place_goes_by_the_rates(void **state)
{
    (void)state;
    struct subject s;
    open_subject(&s, NULL, COST_A100_80G, EXPECTED);
    const struct plan_memory_request memory = limits_of(&s);

    const struct plan share = models_plan(&s.spec, 8, PLAN_SHARE);
    struct plan_memory_request whole = memory;
    struct cost_memory fit;
    s.model.plan = whole.plan = &share;
    cost_fit(&s.model, &whole, 1, &fit);
    const double barely =
        (fit.fixed_bytes + 4e8) / s.rates.memory_bytes; // 64 need 0.28 GB of KV, copied 1.07 GB
    struct plan made = share;
    plan_destroy(&made);
    s.model.plan = &s.plan;

    const struct {
        double utilization;
        int32_t concurrency;
        bool copies;
    } rows[] = {{.9, 1, true}, {.9, 2048, false}, {.9, 64, true}, {barely, 64, false}};

    for (size_t i = 0; i < 4; i++) {
        struct plan_request request = {.tp = 8, .pp = 1};
        const struct cost_workload w = {512, 512, rows[i].concurrency, 512};
        plan_destroy(&s.plan);
        assert_status_ok(cost_place(&s.model, &w, &memory, rows[i].utilization, &request, &s.plan));
        assert_status_ok(plan_check(&s.plan, &s.spec));
        if ((count_copied(&s.plan) > 0) != rows[i].copies) {
            fail_msg("%d sequences, %g of the memory: %d layers copy", rows[i].concurrency,
                     rows[i].utilization, count_copied(&s.plan));
        }
    }
    close_subject(&s);
}

/* A plan whose layers are placed one by one is a whole plan: it is exact, and survives the wire. */
static int every_other(const void *user, int32_t layer)
{
    (void)user;
    static const int placements[] = {PLAN_SHARE, PLAN_REPLICATE, PLAN_TOKEN};
    return placements[layer % 3];
}

static void test_cost_plans_mix_placements(void **state)
{
    (void)state;
    for (int i = 0; i < 100; i++) {
        struct model_spec spec = models_random(false);
        const struct plan_request request = {
            .tp = models_between(1, spec.n_heads), .pp = 1, .placer = {.place = every_other}};
        struct plan plan, again;
        struct bytes packed;
        assert_status_ok(plan_make(&spec, &request, &plan));
        assert_status_ok(plan_check(&plan, &spec));
        for (int32_t layer = 0; layer < plan.n_layers; layer++) {
            const int32_t c = plan.layers[layer].class_index;
            const bool whole = spec.layers[layer].n_kv_heads % request.tp == 0 || request.tp > 64;
            const int wanted = every_other(NULL, layer);
            assert_true(c < 0 || plan.classes[c].placement ==
                                     (wanted == PLAN_TOKEN && whole ? PLAN_SHARE : wanted));
        }
        bytes_init(&packed, 64 << 20);
        assert_status_ok(plan_pack(&plan, &packed));
        assert_status_ok(plan_unpack(packed.data, packed.size, &spec, &again));
        bytes_destroy(&packed);
        plan_destroy(&again);
        plan_destroy(&plan);
        spec_destroy(&spec);
    }
}

static struct cost_search_request search_of(const struct subject *s, int objective)
{
    return (struct cost_search_request){.spec = &s->spec,
                                        .rates = &s->rates,
                                        .dtype = DTYPE_BF16,
                                        .kv_dtype = DTYPE_BF16,
                                        .objective = objective,
                                        .n_gpus = 8,
                                        .gpus_per_node = 8,
                                        .workload = {512, 512, 0, 2048},
                                        .max_seqs = 1024,
                                        .utilization = .9};
}

/* Rules of thumb that hold for a model which fits on one device: replicas for throughput, all ranks for one sequence. */
static void test_cost_search_finds_what_is_known(void **state)
{
    (void)state;
    struct subject s;
    struct cost_search found;
    open_subject(&s, NULL, COST_A100_80G, EXPECTED);
    struct cost_search_request request = search_of(&s, COST_THROUGHPUT);
    assert_status_ok(cost_search_run(&request, &found));
    assert_int_equal(found.candidates[0].tp * found.candidates[0].pp, 1);
    assert_int_equal(found.candidates[0].replicas, 8);
    for (int32_t i = 0; i < found.n_fitting; i++) {
        const struct cost_candidate *c = &found.candidates[i];
        assert_true(c->tp * c->pp * c->replicas <= 8 && c->concurrency > 0);
        assert_true(i == 0 || c->tokens_per_s <= found.candidates[i - 1].tokens_per_s);
    }
    cost_search_destroy(&found);

    request = search_of(&s, COST_LATENCY);
    request.workload.concurrency = 1;
    assert_status_ok(cost_search_run(&request, &found));
    assert_int_equal(found.candidates[0].tp, 8);
    assert_int_equal(found.candidates[0].placement, PLAN_REPLICATE);
    cost_search_destroy(&found);
    close_subject(&s);
}

/* 14.1 GB of weights do not fit in 24 GB * 0.5; on two ranks they do. */
static void test_cost_search_refuses_with_numbers(void **state)
{
    (void)state;
    struct subject s;
    struct cost_search found;
    open_subject(&s, NULL, COST_A10, EXPECTED);
    struct cost_search_request request = search_of(&s, COST_THROUGHPUT);
    request.utilization = .5;
    assert_status_ok(cost_search_run(&request, &found));
    assert_true(found.n_fitting > 0 && found.n_fitting < found.n);
    bool refused = false;
    for (int32_t i = 0; i < found.n; i++) {
        const struct cost_candidate *c = &found.candidates[i];
        const bool alone = c->tp * c->pp == 1;
        assert_int_equal(i<found.n_fitting, c->concurrency> 0);
        refused = refused || (alone && strstr(c->refusal, "12.0 GB are usable") != NULL);
    }
    assert_true(refused);
    cost_search_destroy(&found);
    close_subject(&s);
}

// ---- rates in files ----

static void test_cost_rates_survive_a_file(void **state)
{
    (void)state;
    struct cost_rates rates, again;
    struct bytes text;
    cost_rates_of_gpu(COST_H100, COST_COMM_OWN, &rates);
    rates.n_matmuls = 1;
    rates.matmuls[0] = (struct cost_matmul_rate){
        .n_out = 64, .n_in = 128, .n_points = 2, .rows = {1, 8}, .seconds = {1e-5, 3e-5}};
    rates.n_attentions = 1;
    rates.attentions[0] =
        (struct cost_attention_rate){.group = 4, .kv_bytes_per_s = 2e9, .flops_per_s = 3e9};
    bytes_init(&text, 1 << 20);
    assert_status_ok(cost_rates_print(&rates, &text));
    assert_status_ok(cost_rates_parse((const char *)text.data, text.size, &again));
    for (int rows = 1; rows < 20; rows++) {
        assert_near("seconds", cost_rates_matmul_s(&again, DTYPE_BF16, rows, 64, 128),
                    1e-5 + (rows - 1) * (2e-5 / 7), 1e-4);
    }
    assert_near("exchange", cost_link_exchange_s(&again.exchange, 4, 1e6),
                cost_link_exchange_s(&rates.exchange, 4, 1e6), 1e-4);
    assert_string_equal(again.name, "h100");

    static const char *const broken[] = {"", "[]", "{}", "{\"name\": 3}", "{\"name\": \"x\"}"};
    for (size_t i = 0; i < sizeof broken / sizeof broken[0]; i++) {
        const status_t s = cost_rates_parse(broken[i], strlen(broken[i]), &again);
        assert_int_equal(s.code, STATUS_DATA_LOSS);
    }
    // Any field that is left out is named.
    for (size_t cut = 1; cut < text.size; cut += 37) {
        const status_t s = cost_rates_parse((const char *)text.data, cut, &again);
        assert_int_equal(s.code, STATUS_DATA_LOSS);
    }
    bytes_destroy(&text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cost_reaches_the_published_workloads),
        cmocka_unit_test(test_cost_reaches_the_decode_bounds),
        cmocka_unit_test(test_cost_reaches_the_first_token_bounds),
        cmocka_unit_test(test_cost_expects_what_good_kernels_reach),
        cmocka_unit_test(test_cost_all_reduce_fits_the_published_times),
        cmocka_unit_test(test_cost_reaches_the_tensor_parallel_bounds),
        cmocka_unit_test(test_cost_reaches_the_bounds_of_groups),
        cmocka_unit_test(test_cost_counts_shared_keys_once),
        cmocka_unit_test(test_cost_counts_a_layer),
        cmocka_unit_test(test_cost_of_stages),
        cmocka_unit_test(test_cost_place_goes_by_the_rates),
        cmocka_unit_test(test_cost_place_splits_long_sequences_by_token),
        cmocka_unit_test(test_cost_plans_mix_placements),
        cmocka_unit_test(test_cost_search_finds_what_is_known),
        cmocka_unit_test(test_cost_search_refuses_with_numbers),
        cmocka_unit_test(test_cost_rates_survive_a_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

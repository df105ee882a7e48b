#include "tests/kernels/kernel_check.h"

#include <math.h>
#include <stdio.h>

#include "base/philox.h"

static const struct sample_row defaults = {.temperature = 1.0f, .top_p = 1.0f};

static struct sample_result run_one(struct backend_stream *stream, const struct sample_row *row,
                                    int32_t n_vocab)
{
    struct sample_result result = {.id = -7, .nan = -7};
    const struct sample_args args = {
        .rows = row, .results = &result, .n_rows = 1, .n_vocab = n_vocab};
    assert_status_ok(cpu_sample(stream, &args));
    return result;
}

// ---- the reference: sort everything, in float64 ----

enum { MAX_VOCAB = 1200 };

struct reference {
    int32_t order[MAX_VOCAB]; /* kept ids, most likely first */
    double p[MAX_VOCAB];      /* by id; 0: not kept */
    int32_t n_kept;
};

static bool comes_before(const float *logits, int32_t a, int32_t b)
{
    return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
}

static void sort_ids(const float *logits, int32_t *ids, int32_t n)
{
    for (int32_t i = 1; i < n; i++) {
        const int32_t id = ids[i];
        int32_t at = i;
        for (; at > 0 && comes_before(logits, id, ids[at - 1]); at--) {
            ids[at] = ids[at - 1];
        }
        ids[at] = id;
    }
}

static bool is_banned(const struct sample_row *row, int32_t id)
{
    for (int32_t i = 0; i < row->n_banned; i++) {
        if (row->banned[i] == id) {
            return true;
        }
    }
    return false;
}

/* banned, temperature, min_p, top_k, top_p, in that order, each over what the one before kept. */
static void reference_distribution(const struct sample_row *row, int32_t n_vocab,
                                   struct reference *ref)
{
    int32_t n = 0;
    for (int32_t id = 0; id < n_vocab; id++) {
        ref->p[id] = 0.0;
        if (!is_banned(row, id) && row->logits[id] > -INFINITY) {
            ref->order[n++] = id;
        }
    }
    sort_ids(row->logits, ref->order, n);
    const double largest = (double)row->logits[ref->order[0]];
    double weights[MAX_VOCAB];
    for (int32_t i = 0; i < n; i++) {
        weights[i] = exp(((double)row->logits[ref->order[i]] - largest) / (double)row->temperature);
    }
    while (n > 1 && weights[n - 1] < (double)row->min_p) {
        n--;
    }
    n = row->top_k > 0 && row->top_k < n ? row->top_k : n;
    double sum = 0.0, prefix = 0.0;
    for (int32_t i = 0; i < n; i++) {
        sum += weights[i];
    }
    int32_t kept = 0;
    while (kept < n && (kept == 0 || prefix < (double)row->top_p * sum)) {
        prefix += weights[kept++];
    }
    ref->n_kept = row->top_p < 1.0f ? kept : n;
    prefix = row->top_p < 1.0f ? prefix : sum;
    for (int32_t i = 0; i < ref->n_kept; i++) {
        ref->p[ref->order[i]] = weights[i] / prefix;
    }
}

/* The id the documented draw gives: ascending ids until their probabilities pass u. False when u is too close to a
 * boundary for float32 weights to agree. */
static bool reference_draw(const struct sample_row *row, const struct reference *ref,
                           int32_t n_vocab, int32_t *id_out)
{
    const uint32_t counter[4] = {row->position, row->sample, 0, 0};
    const uint32_t key[2] = {(uint32_t)(row->seed & 0xFFFFFFFFu), (uint32_t)(row->seed >> 32)};
    uint32_t bits[4];
    philox_4x32(counter, key, bits);
    const double u = (double)philox_uniform(bits[0]);
    double sum = 0.0;
    for (int32_t id = 0; id < n_vocab; id++) {
        sum += ref->p[id];
        if (fabs(sum - u) < 1e-6 && ref->p[id] > 0.0) {
            return false;
        }
        if (sum > u) {
            *id_out = id;
            return true;
        }
    }
    return false;
}

static float *random_logits(int32_t n_vocab)
{
    float *logits = random_new((size_t)n_vocab, 6.0);
    for (int32_t i = 0; i < n_vocab; i += 5) {
        logits[i] = roundf(logits[i]); // ties
    }
    return logits;
}

static struct sample_row random_row(const float *logits)
{
    struct sample_row row = defaults;
    row.logits = logits;
    row.temperature = (float)test_random_double(0.2, 2.0);
    row.top_k = test_random_below(2) ? (int32_t)test_random_below(60) : 0;
    row.top_p = test_random_below(2) ? (float)test_random_double(0.05, 1.0) : 1.0f;
    row.min_p = test_random_below(2) ? (float)test_random_double(0.0, 0.3) : 0.0f;
    row.seed = test_random_u64();
    row.sample = (uint32_t)test_random_below(5);
    row.position = (uint32_t)test_random_below(5000);
    return row;
}

/* Every draw of random rows under random settings is the one the reference makes. */
static void check_draws(struct backend_stream *stream)
{
    static const int32_t vocabs[] = {1, 2, 63, 64, 65, 500, MAX_VOCAB};
    static struct reference ref;
    int n_compared = 0;
    for (size_t v = 0; v < sizeof vocabs / sizeof vocabs[0]; v++) {
        float *logits = random_logits(vocabs[v]);
        for (int i = 0; i < 20; i++) {
            struct sample_row row = random_row(logits);
            const int32_t banned[] = {vocabs[v] - 1, 0, vocabs[v] / 2, 0};
            row.banned = banned;
            row.n_banned = vocabs[v] > 3 && i % 2 == 0 ? 4 : 0;
            reference_distribution(&row, vocabs[v], &ref);
            const struct sample_result got = run_one(stream, &row, vocabs[v]);
            assert_int_equal(got.nan, 0);
            int32_t want = -1;
            if (reference_draw(&row, &ref, vocabs[v], &want)) {
                assert_int_equal(got.id, want);
                n_compared++;
            }
        }
        guarded_free(logits);
    }
    assert_true(n_compared > 120);
}

static void test_sample_draws_what_the_reference_draws(void **state)
{
    (void)state;
    each_stream(check_draws);
}

// ---- distributions ----

enum { SMALL = 12, DRAWS_A_CALL = 1000 };

/* Chi-square of many draws against the exact distribution; the limit is passed by chance once in 10^6. */
static void check_distribution(struct backend_stream *stream, struct sample_row row)
{
    static struct reference ref;
    reference_distribution(&row, SMALL, &ref);
    // The thread sanitizer is too slow for many.
    const char *few = getenv("KVASIR_TEST_DRAWS");
    const int draws = few != NULL ? (int)strtol(few, NULL, 10) : 100000;
    int counts[SMALL] = {0};
    static struct sample_row rows[DRAWS_A_CALL];
    static struct sample_result results[DRAWS_A_CALL];
    for (int i = 0; i < draws; i += DRAWS_A_CALL) {
        for (int j = 0; j < DRAWS_A_CALL; j++) {
            rows[j] = row;
            rows[j].position = (uint32_t)(i + j);
        }
        const struct sample_args args = {
            .rows = rows, .results = results, .n_rows = DRAWS_A_CALL, .n_vocab = SMALL};
        assert_status_ok(cpu_sample(stream, &args));
        for (int j = 0; j < DRAWS_A_CALL; j++) {
            assert_in_range(results[j].id, 0, SMALL - 1);
            counts[results[j].id]++;
        }
    }
    double chi = 0.0;
    for (int id = 0; id < SMALL; id++) {
        const double expected = ref.p[id] * draws;
        if (expected <= 0.0) {
            assert_int_equal(counts[id], 0);
            continue;
        }
        chi += ((double)counts[id] - expected) * ((double)counts[id] - expected) / expected;
    }
    if (chi > 50.0) { // 11 degrees of freedom: P(chi > 50) = 6e-7
        fail_msg("chi-square %.1f over %d ids", chi, ref.n_kept);
    }
}

static void test_sample_follows_the_distribution(void **state)
{
    (void)state;
    const float logits[SMALL] = {0.1f,  2.0f, -1.0f, 1.5f,      1.5f, 0.0f,
                                 -3.0f, 2.2f, 0.7f,  -INFINITY, 1.5f, -0.5f};

    static const struct {
        float temperature, top_p, min_p;
        int32_t top_k;
    } cases[] = {
        {1.0f, 1.0f, 0.0f, 0}, {0.5f, 1.0f, 0.0f, 0}, {2.0f, 1.0f, 0.0f, 0}, {1.0f, 1.0f, 0.0f, 4},
        {1.0f, 0.7f, 0.0f, 0}, {1.0f, 1.0f, 0.2f, 0}, {1.3f, 0.8f, 0.1f, 6},
    };
    struct backend_stream *stream = stream_of("auto", 1);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct sample_row row = defaults;
        row.logits = logits;
        row.temperature = cases[i].temperature;
        row.top_p = cases[i].top_p;
        row.min_p = cases[i].min_p;
        row.top_k = cases[i].top_k;
        row.seed = 1234567 + i;
        check_distribution(stream, row);
    }
    stream_done(stream);
}

/* The set a filter keeps, seen by drawing often. */
static void assert_kept(struct backend_stream *stream, struct sample_row row, int32_t n_vocab,
                        uint32_t want)
{
    uint32_t seen = 0;
    for (uint32_t i = 0; i < 600; i++) {
        row.position = i;
        seen |= 1u << run_one(stream, &row, n_vocab).id;
    }
    assert_int_equal(seen, want);
}

static void check_filters(struct backend_stream *stream)
{
    const float even[8] = {1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f};
    struct sample_row row = defaults;
    row.logits = even;
    assert_kept(stream, row, 8, 0xFF);
    row.top_k = 3;
    assert_kept(stream, row, 8, 0x07); // ties: the lower ids
    row.top_k = 0;
    row.top_p = 0.5f;
    assert_kept(stream, row, 8, 0x0F); // exactly half is reached by four
    row.top_p = 0.51f;
    assert_kept(stream, row, 8, 0x1F);
    row.top_k = 6;
    row.top_p = 0.5f;
    assert_kept(stream, row, 8, 0x07); // half of what top_k kept
    row.top_p = 1e-6f;
    assert_kept(stream, row, 8, 0x01); // one at least

    const float zeros[3] = {-0.0f, 0.0f, -1.0f};
    row = defaults;
    row.logits = zeros;
    row.top_k = 1;
    assert_kept(stream, row, 3, 0x1); // -0 and 0 tie

    const float steps[6] = {0.0f, 3.0f, 2.0f, -INFINITY, 3.0f, 1.0f};
    row = defaults;
    row.logits = steps;
    assert_kept(stream, row, 6, 0x37);
    row.min_p = 0.36787945f; // e^-1, rounded up: 2.0 is just out
    assert_kept(stream, row, 6, 0x12);
    row.min_p = 0.36787940f; // rounded down: in
    assert_kept(stream, row, 6, 0x16);
    row.temperature = 0.5f;
    assert_kept(stream, row, 6, 0x12);
    row = defaults;
    row.logits = steps;
    row.top_k = 100;
    assert_kept(stream, row, 6, 0x37);
    const int32_t banned[2] = {1, 4};
    row.banned = banned;
    row.n_banned = 2;
    row.top_k = 1;
    assert_kept(stream, row, 6, 0x04);
}

static void test_sample_filters_keep_the_documented_sets(void **state)
{
    (void)state;
    each_stream(check_filters);
}

// ---- greedy, logprobs, alternatives ----

static void check_greedy(struct backend_stream *stream)
{
    const float logits[7] = {1.0f, -0.0f, 5.0f, 0.0f, 5.0f, -INFINITY, 4.0f};
    struct sample_row row = defaults;
    row.logits = logits;
    row.temperature = 0.0f;
    row.n_top = 4;
    struct sample_result got = run_one(stream, &row, 7);
    assert_int_equal(got.id, 2);
    assert_int_equal(got.rank, 1);
    static const int32_t top[4] = {2, 4, 6, 0};
    const double sum = 2.0 * exp(5.0) + exp(4.0) + exp(1.0) + 2.0;
    for (int i = 0; i < 4; i++) {
        const double want = (double)logits[top[i]] - log(sum);
        assert_int_equal(got.top_ids[i], top[i]);
        assert_all_close(&got.top_logprobs[i], &want, 1, kernel_tolerance(TOLERANCE_LOGPROB),
                         "logprob");
    }
    row.n_top = 1;
    assert_int_equal(run_one(stream, &row, 7).top_ids[0], 2); // 4 is as likely, and later
    row.n_top = 4;
    const int32_t banned[2] = {2, 4};
    row.banned = banned;
    row.n_banned = 1;
    got = run_one(stream, &row, 7);
    assert_int_equal(got.id, 4);
    assert_int_equal(got.rank, 2); // ties rank by id, and banning does not change the raw ranks
    assert_int_equal(got.top_ids[0], 2);
    row.n_banned = 2;
    got = run_one(stream, &row, 7);
    assert_int_equal(got.id, 6);
    assert_int_equal(got.rank, 3);
    const double want = 4.0 - log(sum);
    assert_all_close(&got.logprob, &want, 1, kernel_tolerance(TOLERANCE_LOGPROB), "logprob");
}

static void test_sample_greedy_and_its_alternatives(void **state)
{
    (void)state;
    each_stream(check_greedy);
}

/* Over a large row, against a full sort. */
static void check_logprobs(struct backend_stream *stream)
{
    enum { N = 1500 };

    static int32_t order[N];
    float *logits = random_logits(N);
    struct sample_row row = random_row(logits);
    row.n_top = SAMPLE_MAX_TOP;
    double sum = 0.0;
    for (int32_t i = 0; i < N; i++) {
        order[i] = i;
        sum += exp((double)logits[i]);
    }
    sort_ids(logits, order, N);
    const struct sample_result got = run_one(stream, &row, N);
    assert_int_equal(order[got.rank - 1], got.id);
    const double want = (double)logits[got.id] - log(sum);
    assert_all_close(&got.logprob, &want, 1, kernel_tolerance(TOLERANCE_LOGPROB), "logprob");
    for (int32_t i = 0; i < row.n_top; i++) {
        const double each = (double)logits[order[i]] - log(sum);
        assert_int_equal(got.top_ids[i], order[i]);
        assert_all_close(&got.top_logprobs[i], &each, 1, kernel_tolerance(TOLERANCE_LOGPROB),
                         "top");
    }
    guarded_free(logits);
}

static void test_sample_logprobs_match_a_full_sort(void **state)
{
    (void)state;
    each_stream(check_logprobs);
}

// ---- rows that cannot be sampled ----

static void check_broken_rows(struct backend_stream *stream)
{
    static const float nan_row[3] = {1.0f, NAN, 2.0f},
                       dead_row[3] = {-INFINITY, -INFINITY, -INFINITY};
    static const float inf_row[3] = {1.0f, INFINITY, 2.0f}, good_row[3] = {1.0f, -INFINITY, 2.0f};
    static const int32_t banned[2] = {0, 2};
    struct sample_row rows[5] = {defaults, defaults, defaults, defaults, defaults};
    rows[0].logits = nan_row;
    rows[1].logits = dead_row;
    rows[2].logits = inf_row;
    rows[3].logits = good_row; // all that is finite is banned
    rows[3].banned = banned;
    rows[3].n_banned = 2;
    rows[4].logits = good_row;
    struct sample_result results[5];
    for (int greedy = 0; greedy < 2; greedy++) {
        for (int i = 0; i < 5; i++) {
            rows[i].temperature = greedy ? 0.0f : 1.0f;
        }
        const struct sample_args args = {
            .rows = rows, .results = results, .n_rows = 5, .n_vocab = 3};
        assert_status_ok(cpu_sample(stream, &args));
        for (int i = 0; i < 4; i++) {
            assert_int_equal(results[i].nan, 1);
            assert_int_equal(results[i].id, -1);
        }
        assert_int_equal(results[4].nan, 0);
        assert_true(results[4].id == 0 || results[4].id == 2);
    }
}

static void test_sample_reports_rows_without_a_distribution(void **state)
{
    (void)state;
    each_stream(check_broken_rows);
}

/* The coldest and the hottest temperatures a float can say. */
static void check_temperatures(struct backend_stream *stream)
{
    const float logits[4] = {-3.0f, 9.0f, 8.99f, 1.0f};
    struct sample_row row = defaults;
    row.logits = logits;
    row.temperature = 1e-45f;
    row.top_p = 0.9f;
    row.top_k = 3;
    assert_int_equal(run_one(stream, &row, 4).id, 1);
    row.top_p = 1.0f;
    row.top_k = 0;
    row.temperature = 3e38f;
    uint32_t seen = 0;
    for (uint32_t i = 0; i < 100; i++) {
        row.position = i;
        seen |= 1u << run_one(stream, &row, 4).id;
    }
    assert_int_equal(seen, 0xF);
}

static void test_sample_takes_extreme_temperatures(void **state)
{
    (void)state;
    each_stream(check_temperatures);
}

// ---- determinism ----

static void check_determinism(const char *isa)
{
    enum { ROWS = 40, N = 700 };
    struct backend_stream *one = stream_of(isa, 1), *two = stream_of(isa, 2);
    struct sample_row rows[ROWS];
    struct sample_result want[ROWS], got[ROWS];
    float *logits = random_logits(ROWS * N);
    for (int i = 0; i < ROWS; i++) {
        rows[i] = random_row(logits + (ptrdiff_t)i * N);
        rows[i].n_top = i % 5;
    }
    struct sample_args args = {.rows = rows, .results = want, .n_rows = ROWS, .n_vocab = N};
    assert_status_ok(cpu_sample(one, &args));
    args.results = got;
    assert_status_ok(cpu_sample(two, &args));
    for (int i = 0; i < ROWS; i++) {
        const struct sample_result alone = run_one(one, &rows[i], N);
        assert_int_equal(got[i].id, want[i].id);
        assert_int_equal(alone.id, want[i].id);
        assert_same_bits(&got[i].logprob, &want[i].logprob, 1, "logprob");
        assert_same_bits(&alone.logprob, &want[i].logprob, 1, "logprob");
        assert_memory_equal(got[i].top_ids, want[i].top_ids, sizeof want[i].top_ids);
    }
    guarded_free(logits);
    stream_done(one);
    stream_done(two);
}

static void test_sample_is_deterministic(void **state)
{
    (void)state;
    each_isa(check_determinism);
}

static void test_sample_refuses_bad_settings(void **state)
{
    (void)state;
    struct backend_stream *stream = stream_of("auto", 1);
    const float logits[4] = {0};
    const int32_t banned = 4;
    struct sample_row good = defaults;
    good.logits = logits;
    struct sample_row rows[11];
    for (int i = 0; i < 11; i++) {
        rows[i] = good;
    }
    rows[0].temperature = -1.0f;
    rows[1].temperature = NAN;
    rows[2].temperature = INFINITY;
    rows[3].top_p = 0.0f;
    rows[4].top_p = 1.5f;
    rows[5].min_p = 1.0f;
    rows[6].min_p = NAN;
    rows[7].top_k = -1;
    rows[8].n_top = 5; // of 4 ids
    rows[9].n_top = -1;
    rows[10].banned = &banned;
    rows[10].n_banned = 1;
    struct sample_result result;
    for (int i = 0; i < 11; i++) {
        const struct sample_args args = {
            .rows = &rows[i], .results = &result, .n_rows = 1, .n_vocab = 4};
        assert_status_code(cpu_sample(stream, &args), STATUS_INVALID_ARGUMENT);
    }
    const struct sample_args huge = {.n_rows = 0, .n_vocab = CPU_MAX_VOCAB + 1};
    assert_status_code(cpu_sample(stream, &huge), STATUS_INVALID_ARGUMENT);
    const struct sample_args none = {.n_rows = 0, .n_vocab = 4};
    assert_status_ok(cpu_sample(stream, &none));
    stream_done(stream);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sample_draws_what_the_reference_draws),
        cmocka_unit_test(test_sample_follows_the_distribution),
        cmocka_unit_test(test_sample_filters_keep_the_documented_sets),
        cmocka_unit_test(test_sample_greedy_and_its_alternatives),
        cmocka_unit_test(test_sample_logprobs_match_a_full_sort),
        cmocka_unit_test(test_sample_reports_rows_without_a_distribution),
        cmocka_unit_test(test_sample_takes_extreme_temperatures),
        cmocka_unit_test(test_sample_is_deterministic),
        cmocka_unit_test(test_sample_refuses_bad_settings),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

#include "tests/kernels/kernel_check.h"

#include <math.h>
#include <stdio.h>

#include "base/philox.h"

/* A row of logits and what is asked of it. */
struct test_row {
    const float *logits;
    const struct sample_token *tokens;
    int32_t n_tokens;
    struct sample_row set; /* without the places of logits and tokens */
};

static const struct test_row defaults = {
    .set = {.temperature = 1.0f, .top_p = 1.0f, .repetition = 1.0f}};

/* All rows in one call. The logits must be as before. */
static status_t try_rows(struct backend_stream *stream, const struct test_row *rows, int32_t n_rows,
                         int32_t n_vocab, struct sample_result *results)
{
    const size_t n = (size_t)n_rows * (size_t)n_vocab;
    float *logits = guarded_new(n), *before = guarded_new(n);
    struct sample_row *sets = must_alloc(((size_t)n_rows + 1) * sizeof *sets);
    int32_t n_tokens = 0;
    for (int32_t i = 0; i < n_rows; i++) {
        n_tokens += rows[i].n_tokens;
    }
    struct sample_token *tokens = must_alloc(((size_t)n_tokens + 1) * sizeof *tokens);
    n_tokens = 0;
    for (int32_t i = 0; i < n_rows; i++) {
        const struct test_row *row = &rows[i];
        sets[i] = row->set;
        sets[i].logits = (int64_t)i * n_vocab;
        sets[i].first_token = n_tokens;
        sets[i].n_tokens = row->n_tokens;
        memcpy(logits + sets[i].logits, row->logits, (size_t)n_vocab * sizeof *logits);
        if (row->n_tokens > 0) {
            memcpy(tokens + n_tokens, row->tokens, (size_t)row->n_tokens * sizeof *tokens);
        }
        n_tokens += row->n_tokens;
    }
    memcpy(before, logits, n * sizeof *logits);
    const struct sample_args args = {.logits = logits,
                                     .rows = sets,
                                     .tokens = tokens,
                                     .n_tokens = n_tokens,
                                     .results = results,
                                     .n_rows = n_rows,
                                     .n_vocab = n_vocab};
    const status_t s = cpu_sample(stream, &args);
    assert_same_bits(logits, before, n, "logits");
    guarded_free(logits);
    guarded_free(before);
    free(sets);
    free(tokens);
    return s;
}

static struct sample_result run_one(struct backend_stream *stream, const struct test_row *row,
                                    int32_t n_vocab)
{
    struct sample_result result = {.id = -7, .nan = -7};
    assert_status_ok(try_rows(stream, row, 1, n_vocab, &result));
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

/* bias, then penalties, each step rounded to float32. */
static float adjusted(const struct test_row *row, int32_t id)
{
    for (int32_t i = 0; i < row->n_tokens; i++) {
        const struct sample_token *token = &row->tokens[i];
        if (token->id != id) {
            continue;
        }
        float x = (float)((double)row->logits[id] + (double)token->bias);
        const double repetition = (double)row->set.repetition;
        if (token->in_prompt != 0 || token->n_generated != 0) {
            x = (float)(x > 0.0f ? (double)x / repetition : (double)x * repetition);
        }
        x = (float)((double)x - (double)row->set.frequency * token->n_generated);
        return token->n_generated != 0 ? (float)((double)x - (double)row->set.presence) : x;
    }
    return row->set.only_listed ? -INFINITY : row->logits[id];
}

/* Adjustments, temperature, min_p, top_k, top_p, in that order, each over what the one before kept. */
static void reference_distribution(const struct test_row *row, int32_t n_vocab,
                                   struct reference *ref)
{
    static float logits[MAX_VOCAB];
    int32_t n = 0;
    for (int32_t id = 0; id < n_vocab; id++) {
        ref->p[id] = 0.0;
        logits[id] = adjusted(row, id);
        if (logits[id] > -INFINITY) {
            ref->order[n++] = id;
        }
    }
    sort_ids(logits, ref->order, n);
    const double largest = (double)logits[ref->order[0]];
    double weights[MAX_VOCAB];
    for (int32_t i = 0; i < n; i++) {
        weights[i] = exp(((double)logits[ref->order[i]] - largest) / (double)row->set.temperature);
    }
    while (n > 1 && weights[n - 1] < (double)row->set.min_p) {
        n--;
    }
    n = row->set.top_k > 0 && row->set.top_k < n ? row->set.top_k : n;
    double sum = 0.0, prefix = 0.0;
    for (int32_t i = 0; i < n; i++) {
        sum += weights[i];
    }
    int32_t kept = 0;
    while (kept < n && (kept == 0 || prefix < (double)row->set.top_p * sum)) {
        prefix += weights[kept++];
    }
    ref->n_kept = row->set.top_p < 1.0f ? kept : n;
    prefix = row->set.top_p < 1.0f ? prefix : sum;
    for (int32_t i = 0; i < ref->n_kept; i++) {
        ref->p[ref->order[i]] = weights[i] / prefix;
    }
}

/* The id the documented draw gives: ascending ids until their probabilities pass u. False when u is too close to a
 * boundary for float32 weights to agree. */
static bool reference_draw(const struct test_row *row, const struct reference *ref, int32_t n_vocab,
                           int32_t *id_out)
{
    const uint32_t counter[4] = {row->set.position, row->set.sample, 0, 0};
    const uint32_t key[2] = {(uint32_t)(row->set.seed & 0xFFFFFFFFu),
                             (uint32_t)(row->set.seed >> 32)};
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

static struct test_row random_row(const float *logits)
{
    struct test_row row = defaults;
    row.logits = logits;
    row.set.temperature = (float)test_random_double(0.2, 2.0);
    row.set.top_k = test_random_below(2) ? (int32_t)test_random_below(60) : 0;
    row.set.top_p = test_random_below(2) ? (float)test_random_double(0.05, 1.0) : 1.0f;
    row.set.min_p = test_random_below(2) ? (float)test_random_double(0.0, 0.3) : 0.0f;
    row.set.seed = test_random_u64();
    row.set.sample = (uint32_t)test_random_below(5);
    row.set.position = (uint32_t)test_random_below(5000);
    row.set.repetition = test_random_below(2) ? (float)test_random_double(0.5, 2.0) : 1.0f;
    row.set.presence = test_random_below(2) ? (float)test_random_double(-2.0, 2.0) : 0.0f;
    row.set.frequency = test_random_below(2) ? (float)test_random_double(-1.0, 1.0) : 0.0f;
    return row;
}

enum { MAX_TOKENS = 40 };

/* Distinct ids, each with some of what can be said of one; one of several is out altogether. */
static int32_t random_tokens(int32_t n_vocab, struct sample_token tokens[MAX_TOKENS])
{
    const int32_t most = n_vocab < MAX_TOKENS ? n_vocab : MAX_TOKENS;
    const int32_t n = (int32_t)test_random_below((uint64_t)most + 1);
    const int32_t step = n > 0 ? n_vocab / n : 1;
    for (int32_t i = 0; i < n; i++) {
        tokens[i] = (struct sample_token){
            .id = n_vocab - 1 - i * step,
            .n_generated = test_random_below(2) ? (int32_t)test_random_below(5) : 0,
            .in_prompt = (int32_t)test_random_below(2),
            .bias = test_random_below(3) ? 0.0f : (float)test_random_double(-4.0, 4.0),
        };
    }
    if (n > 2) {
        tokens[1].bias = -INFINITY;
    }
    return n;
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
            struct test_row row = random_row(logits);
            struct sample_token tokens[MAX_TOKENS];
            row.tokens = tokens;
            row.n_tokens = i % 2 == 0 ? random_tokens(vocabs[v], tokens) : 0;
            row.set.only_listed = row.n_tokens > 1 && i % 6 == 0;
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
static void check_distribution(struct backend_stream *stream, struct test_row row)
{
    static struct reference ref;
    reference_distribution(&row, SMALL, &ref);
    // The thread sanitizer is too slow for many.
    const char *few = getenv("KVASIR_TEST_DRAWS");
    const int draws = few != NULL ? (int)strtol(few, NULL, 10) : 100000;
    int counts[SMALL] = {0};
    static struct test_row rows[DRAWS_A_CALL];
    static struct sample_result results[DRAWS_A_CALL];
    for (int i = 0; i < draws; i += DRAWS_A_CALL) {
        for (int j = 0; j < DRAWS_A_CALL; j++) {
            rows[j] = row;
            rows[j].set.position = (uint32_t)(i + j);
        }
        assert_status_ok(try_rows(stream, rows, DRAWS_A_CALL, SMALL, results));
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

    /* A bias each way and one id out; counts of the prompt and of the completion. */
    static const struct sample_token biased[] = {
        {.id = 0, .bias = 2.5f}, {.id = 7, .bias = -1.5f}, {.id = 1, .bias = -INFINITY}};
    static const struct sample_token seen[] = {{.id = 1, .n_generated = 3},
                                               {.id = 2, .in_prompt = 1},
                                               {.id = 7, .in_prompt = 1, .n_generated = 1},
                                               {.id = 8, .n_generated = 1}};
    static const struct sample_token both[] = {{.id = 1, .n_generated = 2, .bias = 1.0f},
                                               {.id = 3, .bias = -2.0f},
                                               {.id = 6, .in_prompt = 1, .bias = 4.0f},
                                               {.id = 10, .n_generated = 1}};
#define WITH(list_) .tokens = (list_), .n_tokens = (int32_t)(sizeof(list_) / sizeof((list_)[0]))

    static const struct {
        float temperature, top_p, min_p, repetition, presence, frequency;
        int32_t top_k, only_listed;
        const struct sample_token *tokens;
        int32_t n_tokens;
    } cases[] = {
        {1.0f, 1.0f, 0.0f, 1.0f, 0.0f, 0.0f, 0, 0, NULL, 0},
        {0.5f, 1.0f, 0.0f, 1.0f, 0.0f, 0.0f, 0, 0, NULL, 0},
        {2.0f, 1.0f, 0.0f, 1.0f, 0.0f, 0.0f, 0, 0, NULL, 0},
        {1.0f, 1.0f, 0.0f, 1.0f, 0.0f, 0.0f, 4, 0, NULL, 0},
        {1.0f, 0.7f, 0.0f, 1.0f, 0.0f, 0.0f, 0, 0, NULL, 0},
        {1.0f, 1.0f, 0.2f, 1.0f, 0.0f, 0.0f, 0, 0, NULL, 0},
        {1.3f, 0.8f, 0.1f, 1.0f, 0.0f, 0.0f, 6, 0, NULL, 0},
        {1.0f, 1.0f, 0.0f, 1.0f, 0.0f, 0.0f, 0, 0, WITH(biased)},
        {1.0f, 1.0f, 0.0f, 1.7f, 0.0f, 0.0f, 0, 0, WITH(seen)},
        {1.0f, 1.0f, 0.0f, 1.0f, 0.9f, 0.0f, 0, 0, WITH(seen)},
        {1.0f, 1.0f, 0.0f, 1.0f, 0.0f, 0.6f, 0, 0, WITH(seen)},
        {1.0f, 1.0f, 0.0f, 0.6f, -0.8f, -0.4f, 0, 0, WITH(seen)},
        {1.0f, 1.0f, 0.0f, 1.0f, 0.0f, 0.0f, 0, 1, WITH(both)},
        {0.8f, 0.9f, 0.05f, 1.4f, 0.5f, 0.3f, 7, 0, WITH(both)},
        {1.2f, 0.85f, 0.02f, 1.2f, -0.5f, 0.7f, 3, 1, WITH(both)},
    };

#undef WITH
    struct backend_stream *stream = stream_of("auto", 1);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct test_row row = defaults;
        row.logits = logits;
        row.tokens = cases[i].tokens;
        row.n_tokens = cases[i].n_tokens;
        row.set.temperature = cases[i].temperature;
        row.set.top_p = cases[i].top_p;
        row.set.min_p = cases[i].min_p;
        row.set.top_k = cases[i].top_k;
        row.set.repetition = cases[i].repetition;
        row.set.presence = cases[i].presence;
        row.set.frequency = cases[i].frequency;
        row.set.only_listed = cases[i].only_listed;
        row.set.seed = 1234567 + i;
        check_distribution(stream, row);
    }
    stream_done(stream);
}

/* The set a filter keeps, seen by drawing often. */
static void assert_kept(struct backend_stream *stream, struct test_row row, int32_t n_vocab,
                        uint32_t want)
{
    uint32_t seen = 0;
    for (uint32_t i = 0; i < 600; i++) {
        row.set.position = i;
        seen |= 1u << run_one(stream, &row, n_vocab).id;
    }
    assert_int_equal(seen, want);
}

static void check_filters(struct backend_stream *stream)
{
    const float even[8] = {1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f};
    struct test_row row = defaults;
    row.logits = even;
    assert_kept(stream, row, 8, 0xFF);
    row.set.top_k = 3;
    assert_kept(stream, row, 8, 0x07); // ties: the lower ids
    row.set.top_k = 0;
    row.set.top_p = 0.5f;
    assert_kept(stream, row, 8, 0x0F); // exactly half is reached by four
    row.set.top_p = 0.51f;
    assert_kept(stream, row, 8, 0x1F);
    row.set.top_k = 6;
    row.set.top_p = 0.5f;
    assert_kept(stream, row, 8, 0x07); // half of what top_k kept
    row.set.top_p = 1e-6f;
    assert_kept(stream, row, 8, 0x01); // one at least

    const float zeros[3] = {-0.0f, 0.0f, -1.0f};
    row = defaults;
    row.logits = zeros;
    row.set.top_k = 1;
    assert_kept(stream, row, 3, 0x1); // -0 and 0 tie

    const float steps[6] = {0.0f, 3.0f, 2.0f, -INFINITY, 3.0f, 1.0f};
    row = defaults;
    row.logits = steps;
    assert_kept(stream, row, 6, 0x37);
    row.set.min_p = 0.36787945f; // e^-1, rounded up: 2.0 is just out
    assert_kept(stream, row, 6, 0x12);
    row.set.min_p = 0.36787940f; // rounded down: in
    assert_kept(stream, row, 6, 0x16);
    row.set.temperature = 0.5f;
    assert_kept(stream, row, 6, 0x12);
    row.set.min_p = 1.0f; // what is as likely as the likeliest
    assert_kept(stream, row, 6, 0x12);
    row = defaults;
    row.logits = steps;
    row.set.top_k = 100;
    assert_kept(stream, row, 6, 0x37);
    static const struct sample_token out[2] = {{.id = 1, .bias = -INFINITY},
                                               {.id = 4, .bias = -INFINITY}};
    row.tokens = out;
    row.n_tokens = 2;
    row.set.top_k = 1;
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
    struct test_row row = defaults;
    row.logits = logits;
    row.set.temperature = 0.0f;
    row.set.n_top = 4;
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
    row.set.n_top = 1;
    assert_int_equal(run_one(stream, &row, 7).top_ids[0], 2); // 4 is as likely, and later
    row.set.n_top = 4;
    static const struct sample_token out[2] = {{.id = 2, .bias = -INFINITY},
                                               {.id = 4, .bias = -INFINITY}};
    row.tokens = out;
    row.n_tokens = 1;
    got = run_one(stream, &row, 7);
    assert_int_equal(got.id, 4);
    assert_int_equal(got.rank, 2); // ties rank by id, and banning does not change the raw ranks
    assert_int_equal(got.top_ids[0], 2);
    row.n_tokens = 2;
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
    struct test_row row = random_row(logits);
    row.set.n_top = SAMPLE_MAX_TOP;
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
    for (int32_t i = 0; i < row.set.n_top; i++) {
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

/* Log probabilities with what the request changes of them, in place of the logits. */
static void check_of_logprobs(struct backend_stream *stream)
{
    enum { N = 700 };

    float *logits = random_logits(N), *logprobs = random_logits(N);
    struct sample_token tokens[MAX_TOKENS];
    struct test_row row = random_row(logits), changed = row;
    row.tokens = tokens;
    row.n_tokens = random_tokens(N, tokens);
    row.set.only_listed = row.n_tokens > 0 && test_random_below(4) == 0;
    row.set.of_logprobs = 1;
    row.set.temperature = 0.0f;
    row.set.n_top = SAMPLE_MAX_TOP;
    double sum = 0.0;
    for (int32_t i = 0; i < N; i++) {
        sum += exp((double)logits[i]);
    }
    for (int32_t i = 0; i < N; i++) {
        logprobs[i] = (float)((double)logits[i] - log(sum));
    }
    changed = row;
    changed.logits = logprobs;
    const struct sample_result got = run_one(stream, &row, N);
    bool is_listed[N] = {false};
    for (int32_t i = 0; i < SAMPLE_MAX_TOP; i++) {
        const int32_t id = got.top_ids[i];
        const double want = (double)adjusted(&changed, id);
        assert_in_range(id, 0, N - 1);
        assert_false(is_listed[id]);
        is_listed[id] = true;
        assert_true(i == 0 || got.top_logprobs[i] <= got.top_logprobs[i - 1]);
        assert_true((isinf(want) && isinf(got.top_logprobs[i])) ||
                    fabs((double)got.top_logprobs[i] - want) < 1e-5);
    }
    for (int32_t id = 0; id < N; id++) {
        assert_true(is_listed[id] || (double)adjusted(&changed, id) <=
                                         (double)got.top_logprobs[SAMPLE_MAX_TOP - 1] + 1e-5);
    }
    assert_true(got.nan == 0 && got.id == got.top_ids[0]);
    guarded_free(logits);
    guarded_free(logprobs);
}

static void test_sample_changes_log_probabilities(void **state)
{
    (void)state;
    for (int round = 0; round < 20; round++) {
        each_stream(check_of_logprobs);
    }
}

// ---- slots ----

/*
 * An id that lies in drawn counts like one more generated token of the list, listed or not, and what is drawn goes to the row's
 * slot alone. Row 0 has the id pending, row 1 has it in the list.
 */
static void check_pending(struct backend_stream *stream, int round)
{
    enum { N = 90, SLOTS = 5 };

    float *logits = random_logits(N);
    struct sample_token listed[MAX_TOKENS + 1];
    struct test_row base = random_row(logits);
    const int32_t n = round % 3 == 0 ? 0 : random_tokens(N, listed) % MAX_TOKENS;
    int32_t drawn[SLOTS] = {11, 12, (int32_t)test_random_below(N), 13, 14};
    if (round % 3 == 1 && n > 0) {
        drawn[2] = listed[n / 2].id;
    }
    struct sample_row row = base.set;
    row.slot = row.pending_slot = 2;
    row.n_tokens = n;
    row.only_listed = n > 0 && round % 5 == 0;
    struct sample_result got = {.id = -7}, want = {.id = -7};
    struct sample_args args = {.logits = logits,
                               .rows = &row,
                               .tokens = listed,
                               .n_tokens = MAX_TOKENS,
                               .results = &got,
                               .n_rows = 1,
                               .n_vocab = N,
                               .drawn = drawn,
                               .n_drawn = SLOTS};
    const int32_t pending = drawn[2];
    assert_status_ok(cpu_sample(stream, &args));
    const int32_t after[SLOTS] = {11, 12, got.id, 13, 14};
    assert_memory_equal(drawn, after, sizeof after);
    bool found = row.only_listed;
    for (int32_t i = 0; i < n; i++) {
        listed[i].n_generated += listed[i].id == pending;
        found = found || listed[i].id == pending;
    }
    if (!found) {
        listed[row.n_tokens++] = (struct sample_token){.id = pending, .n_generated = 1};
    }
    row.slot = row.pending_slot = -1;
    args.results = &want;
    assert_status_ok(cpu_sample(stream, &args));
    assert_memory_equal(&got, &want, sizeof want);
    assert_memory_equal(drawn, after, sizeof after); // slot -1: nowhere
    row.logits = -1;
    want.id = 77;
    assert_status_ok(cpu_sample(stream, &args));
    assert_int_equal(want.id, 77); // nothing is drawn
    row.logits = 0;
    row.slot = SLOTS;
    assert_status_says(cpu_sample(stream, &args), STATUS_INVALID_ARGUMENT, "slot 5 of 5");
    row.slot = 1;
    row.pending_slot = 2;
    assert_status_says(cpu_sample(stream, &args), STATUS_INVALID_ARGUMENT, "pending in slot 2");
    guarded_free(logits);
}

static void check_slots(struct backend_stream *stream)
{
    for (int round = 0; round < 60; round++) {
        check_pending(stream, round);
    }
}

static void test_sample_counts_pending_ids_and_fills_slots(void **state)
{
    (void)state;
    each_stream(check_slots);
}

/* The token that is given: the raw row's logprob and rank, whatever else the row says. */
static void check_forced(struct backend_stream *stream)
{
    enum { N = 1001, TRIES = 60 };

    static int32_t order[N];
    float *logits = random_logits(N);
    logits[17] = -INFINITY;
    double sum = 0.0;
    for (int32_t i = 0; i < N; i++) {
        order[i] = i;
        sum += exp((double)logits[i]);
    }
    sort_ids(logits, order, N);
    struct sample_token tokens[MAX_TOKENS];
    for (int i = 0; i < TRIES; i++) {
        struct test_row row = random_row(logits);
        row.tokens = tokens;
        row.n_tokens = random_tokens(N, tokens);
        row.set.only_listed = i % 3 == 0;
        row.set.temperature = i % 2 == 0 ? 0.0f : row.set.temperature;
        row.set.n_top = i % 4;
        row.set.forced = 1;
        row.set.forced_id = i == 0 ? 17 : i == 1 ? 0 : (int32_t)test_random_below(N);
        const struct sample_result got = run_one(stream, &row, N);
        assert_int_equal(got.nan, 0);
        assert_int_equal(got.id, row.set.forced_id);
        assert_int_equal(order[got.rank - 1], got.id);
        const double want = (double)logits[got.id] - log(sum);
        if (got.id == 17) {
            assert_true(isinf(got.logprob) && got.logprob < 0.0f);
        } else {
            assert_all_close(&got.logprob, &want, 1, kernel_tolerance(TOLERANCE_LOGPROB),
                             "logprob");
        }
        for (int32_t t = 0; t < row.set.n_top; t++) {
            assert_int_equal(got.top_ids[t], order[t]);
        }
    }
    guarded_free(logits);
}

static void test_sample_reports_a_forced_token(void **state)
{
    (void)state;
    each_stream(check_forced);
}

// ---- rows that cannot be sampled ----

static void check_broken_rows(struct backend_stream *stream)
{
    static const float nan_row[3] = {1.0f, NAN, 2.0f},
                       dead_row[3] = {-INFINITY, -INFINITY, -INFINITY};
    static const float inf_row[3] = {1.0f, INFINITY, 2.0f}, good_row[3] = {1.0f, -INFINITY, 2.0f};
    static const struct sample_token out[2] = {{.id = 0, .bias = -INFINITY},
                                               {.id = 2, .bias = -INFINITY}};
    static const struct sample_token in = {.id = 0, .bias = INFINITY};
    struct test_row rows[7] = {defaults, defaults, defaults, defaults,
                               defaults, defaults, defaults};
    rows[0].logits = nan_row;
    rows[1].logits = dead_row;
    rows[2].logits = inf_row;
    rows[3].logits = good_row; // all that is finite is out
    rows[3].tokens = out;
    rows[3].n_tokens = 2;
    rows[4].logits = good_row; // nothing is listed
    rows[4].set.only_listed = 1;
    rows[5].logits = good_row;
    rows[5].tokens = &in;
    rows[5].n_tokens = 1;
    rows[6].logits = good_row;
    struct sample_result results[7];
    for (int greedy = 0; greedy < 2; greedy++) {
        for (int i = 0; i < 7; i++) {
            rows[i].set.temperature = greedy ? 0.0f : 1.0f;
        }
        assert_status_ok(try_rows(stream, rows, 7, 3, results));
        for (int i = 0; i < 6; i++) {
            assert_int_equal(results[i].nan, 1);
            assert_int_equal(results[i].id, -1);
        }
        assert_int_equal(results[6].nan, 0);
        assert_true(results[6].id == 0 || results[6].id == 2);
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
    struct test_row row = defaults;
    row.logits = logits;
    row.set.temperature = 1e-45f;
    row.set.top_p = 0.9f;
    row.set.top_k = 3;
    assert_int_equal(run_one(stream, &row, 4).id, 1);
    row.set.top_p = 1.0f;
    row.set.top_k = 0;
    row.set.temperature = 3e38f;
    uint32_t seen = 0;
    for (uint32_t i = 0; i < 100; i++) {
        row.set.position = i;
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
    struct test_row rows[ROWS];
    struct sample_result want[ROWS], got[ROWS];
    float *logits = random_logits(ROWS * N);
    for (int i = 0; i < ROWS; i++) {
        rows[i] = random_row(logits + (ptrdiff_t)i * N);
        rows[i].set.n_top = i % 5;
    }
    assert_status_ok(try_rows(one, rows, ROWS, N, want));
    assert_status_ok(try_rows(two, rows, ROWS, N, got));
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
    float zeros[4] = {0};
    static const struct sample_token beyond = {.id = 4};
    struct test_row good = defaults;
    good.logits = zeros;
    struct test_row rows[17];
    for (int i = 0; i < 17; i++) {
        rows[i] = good;
    }
    rows[0].set.temperature = -1.0f;
    rows[1].set.temperature = NAN;
    rows[2].set.temperature = INFINITY;
    rows[3].set.top_p = 0.0f;
    rows[4].set.top_p = 1.5f;
    rows[5].set.min_p = nextafterf(1.0f, 2.0f);
    rows[6].set.min_p = NAN;
    rows[7].set.top_k = -1;
    rows[8].set.n_top = 5; // of 4 ids
    rows[9].set.n_top = -1;
    rows[10].tokens = &beyond;
    rows[10].n_tokens = 1;
    rows[11].set.repetition = 0.0f;
    rows[12].set.presence = NAN;
    rows[13].set.frequency = INFINITY;
    rows[14].set.forced = rows[15].set.forced = 1;
    rows[14].set.forced_id = 4;
    rows[15].set.forced_id = -1;
    rows[16].set.forced = rows[16].set.of_logprobs = 1;
    struct sample_result result;
    for (int i = 0; i < 17; i++) {
        assert_status_code(try_rows(stream, &rows[i], 1, 4, &result), STATUS_INVALID_ARGUMENT);
    }
    struct sample_row outside = good.set;
    outside.n_tokens = 1;
    struct sample_args args = {.logits = zeros,
                               .rows = &outside,
                               .tokens = &beyond,
                               .results = &result,
                               .n_rows = 1,
                               .n_vocab = 4};
    assert_status_says(cpu_sample(stream, &args), STATUS_INVALID_ARGUMENT, "tokens [0, +1) of 0");
    const struct sample_args huge = {.n_rows = 0, .n_vocab = CPU_MAX_VOCAB + 1};
    assert_status_code(cpu_sample(stream, &huge), STATUS_INVALID_ARGUMENT);
    const struct sample_args none = {.n_rows = 0, .n_vocab = 4};
    assert_status_ok(cpu_sample(stream, &none));
    stream_done(stream);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sample_counts_pending_ids_and_fills_slots),
        cmocka_unit_test(test_sample_draws_what_the_reference_draws),
        cmocka_unit_test(test_sample_follows_the_distribution),
        cmocka_unit_test(test_sample_filters_keep_the_documented_sets),
        cmocka_unit_test(test_sample_greedy_and_its_alternatives),
        cmocka_unit_test(test_sample_logprobs_match_a_full_sort),
        cmocka_unit_test(test_sample_changes_log_probabilities),
        cmocka_unit_test(test_sample_reports_a_forced_token),
        cmocka_unit_test(test_sample_reports_rows_without_a_distribution),
        cmocka_unit_test(test_sample_takes_extreme_temperatures),
        cmocka_unit_test(test_sample_is_deterministic),
        cmocka_unit_test(test_sample_refuses_bad_settings),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

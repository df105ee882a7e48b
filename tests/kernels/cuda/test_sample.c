#include <float.h>
#include <math.h>

#include "base/philox.h"
#include "kernels/sample_check.h"
#include "tests/kernels/cuda/cuda_check.h"

static const struct sample_row defaults = {.temperature = 1.0f, .top_p = 1.0f, .repetition = 1.0f};

static const struct tolerance logprob_result = {.atol = 2e-6, .rtol = 1e-6};

/* Samples from logits, rows and tokens in host memory, n_logits logits in all. Results are poisoned first. */
static void run(struct backend_stream *stream, const float *logits, size_t n_logits,
                const struct sample_args *a)
{
    struct sample_args args = *a;
    const size_t results_bytes = (size_t)a->n_rows * sizeof *a->results;
    assert_status_ok(sample_check(a, a->n_vocab));
    args.logits = device_copy(stream, logits, n_logits * sizeof *logits);
    void *rows = device_copy(stream, a->rows, (size_t)a->n_rows * sizeof *a->rows);
    void *tokens = device_copy(stream, a->tokens, (size_t)a->n_tokens * sizeof *a->tokens);
    void *drawn = device_copy(stream, a->drawn, (size_t)a->n_drawn * sizeof *a->drawn);
    memset(a->results, 0x7f, results_bytes);
    args.rows = rows;
    args.tokens = tokens;
    args.drawn = drawn;
    args.results = device_copy(stream, a->results, results_bytes);
    assert_status_ok(check_backend()->sample(stream, &args));
    device_read(stream, a->results, args.results, results_bytes);
    device_read(stream, a->drawn, drawn, (size_t)a->n_drawn * sizeof *a->drawn);
    device_free(stream, args.logits);
    device_free(stream, args.results);
    device_free(stream, rows);
    device_free(stream, tokens);
    device_free(stream, drawn);
}

/* One row at the beginning of the logits. */
static struct sample_result run_one(struct backend_stream *stream, const float *logits,
                                    int32_t n_vocab, const struct sample_row *row,
                                    const struct sample_token *tokens)
{
    struct sample_result result;
    const struct sample_args args = {.rows = row,
                                     .tokens = tokens,
                                     .n_tokens = row->n_tokens,
                                     .results = &result,
                                     .n_rows = 1,
                                     .n_vocab = n_vocab};
    run(stream, logits, (size_t)n_vocab, &args);
    return result;
}

// ---- the reference: sort everything, in float64 ----

struct entry {
    float logit;
    int32_t id;
    double weight;
};

struct reference {
    int32_t n_vocab;
    struct entry *raw;  /* [n_vocab], most likely first */
    struct entry *kept; /* [n_kept], most likely first */
    int32_t n_kept;
    double *p;      /* by id; 0: not kept */
    double log_sum; /* of the raw row */
    bool
        is_ambiguous; /* a filter's edge is too near a boundary for float32 weights to agree on it */
};

static int compare_entries(const void *a, const void *b)
{
    const struct entry *const x = a, *const y = b;
    if (x->logit > y->logit || x->logit < y->logit) {
        return x->logit > y->logit ? -1 : 1;
    }
    return x->id < y->id ? -1 : 1;
}

/* What the request makes of one logit; -inf where it takes the id out. */
static float adjusted(const struct sample_row *row, const struct sample_token *tokens, int32_t id,
                      float logit)
{
    for (int32_t i = 0; i < row->n_tokens; i++) {
        const struct sample_token *const t = &tokens[row->first_token + i];
        if (t->id != id) {
            continue;
        }
        float x = logit + t->bias;
        if (t->in_prompt != 0 || t->n_generated > 0) {
            x = x > 0.0f ? x / row->repetition : x * row->repetition;
        }
        x -= row->frequency * (float)t->n_generated;
        return t->n_generated > 0 ? x - row->presence : x;
    }
    return row->only_listed ? -INFINITY : logit;
}

static void keep_min_p(struct reference *ref, double min_p)
{
    int32_t n = ref->n_kept;
    for (; n > 1 && ref->kept[n - 1].weight < min_p; n--) {
        ref->is_ambiguous |= ref->kept[n - 1].weight > min_p * (1.0 - 1e-9);
    }
    ref->is_ambiguous |= ref->kept[n - 1].weight < min_p * (1.0 + 1e-9);
    ref->n_kept = n;
}

static void keep_top_p(struct reference *ref, double top_p)
{
    double whole = 0.0, prefix = 0.0;
    for (int32_t i = 0; i < ref->n_kept; i++) {
        whole += ref->kept[i].weight;
    }
    int32_t n = 0;
    while (n < ref->n_kept && (n == 0 || prefix < top_p * whole)) {
        prefix += ref->kept[n++].weight;
        ref->is_ambiguous |= fabs(prefix - top_p * whole) < 2e-6 * whole;
    }
    ref->n_kept = n;
}

static void reference_init(struct reference *ref, const float *logits, int32_t n_vocab,
                           const struct sample_row *row, const struct sample_token *tokens)
{
    const size_t n = (size_t)n_vocab;
    *ref = (struct reference){.n_vocab = n_vocab,
                              .raw = must_alloc(n * sizeof *ref->raw),
                              .kept = must_alloc(n * sizeof *ref->kept),
                              .p = must_alloc(n * sizeof *ref->p)};
    double sum = 0.0;
    for (int32_t id = 0; id < n_vocab; id++) {
        const float logit = adjusted(row, tokens, id, logits[id]);
        ref->raw[id] = (struct entry){.logit = logits[id], .id = id};
        if (logit > -INFINITY) {
            ref->kept[ref->n_kept++] = (struct entry){.logit = logit, .id = id};
        }
        ref->p[id] = 0.0;
    }
    qsort(ref->raw, n, sizeof *ref->raw, compare_entries);
    qsort(ref->kept, (size_t)ref->n_kept, sizeof *ref->kept, compare_entries);
    for (int32_t i = 0; i < n_vocab; i++) {
        sum += exp((double)ref->raw[i].logit - (double)ref->raw[0].logit);
    }
    ref->log_sum = (double)ref->raw[0].logit + log(sum);
    if (row->temperature <= 0.0f) {
        ref->n_kept = ref->n_kept > 0 ? 1 : 0;
    }
    for (int32_t i = 0; i < ref->n_kept; i++) {
        const double below = (double)ref->kept[i].logit - (double)ref->kept[0].logit;
        ref->kept[i].weight = i == 0 ? 1.0 : exp(below / (double)row->temperature);
    }
    if (row->min_p > 0.0f && ref->n_kept > 0) {
        keep_min_p(ref, (double)row->min_p);
    }
    if (row->top_k > 0 && row->top_k < ref->n_kept) {
        ref->n_kept = row->top_k;
    }
    if (row->top_p < 1.0f) {
        keep_top_p(ref, (double)row->top_p);
    }
    double whole = 0.0;
    for (int32_t i = 0; i < ref->n_kept; i++) {
        whole += ref->kept[i].weight;
    }
    for (int32_t i = 0; i < ref->n_kept; i++) {
        ref->p[ref->kept[i].id] = ref->kept[i].weight / whole;
    }
}

static void reference_destroy(struct reference *ref)
{
    free(ref->raw);
    free(ref->kept);
    free(ref->p);
}

/* The id the documented draw gives: ascending ids until their probabilities pass u. -1 when u is too close to a boundary. */
static int32_t reference_draw(const struct reference *ref, const struct sample_row *row)
{
    const uint32_t counter[4] = {row->position, row->sample, 0, 0};
    const uint32_t key[2] = {(uint32_t)(row->seed & 0xFFFFFFFFu), (uint32_t)(row->seed >> 32)};
    uint32_t bits[4];
    philox_4x32(counter, key, bits);
    const double u = (double)philox_uniform(bits[0]);
    double sum = 0.0;
    for (int32_t id = 0; id < ref->n_vocab; id++) {
        if (!(ref->p[id] > 0.0)) {
            continue;
        }
        sum += ref->p[id];
        if (fabs(sum - u) < 2e-6) {
            return -1;
        }
        if (sum > u) {
            return id;
        }
    }
    return -1;
}

static void assert_logprob(float got, double want)
{
    if (want > -INFINITY) {
        assert_all_close(&got, &want, 1, logprob_result, "logprob");
    } else {
        assert_true(isinf(got) && got < 0.0f);
    }
}

/* Everything about a result but which of the kept ids it is; returns 1 when that could be compared as well. */
static int check_result(const struct reference *ref, const struct sample_row *row,
                        const struct sample_result *got)
{
    assert_int_equal(got->nan, 0);
    assert_in_range(got->id, 0, ref->n_vocab - 1);
    assert_in_range(got->rank, 1, ref->n_vocab);
    const struct entry *const entry = &ref->raw[got->rank - 1];
    assert_int_equal(entry->id, got->id);
    const double logprob = (double)entry->logit - ref->log_sum;
    assert_logprob(got->logprob, logprob);
    for (int32_t i = 0; i < row->n_top; i++) {
        const double each = (double)ref->raw[i].logit - ref->log_sum;
        assert_int_equal(got->top_ids[i], ref->raw[i].id);
        assert_logprob(got->top_logprobs[i], each);
    }
    if (row->forced != 0) {
        assert_int_equal(got->id, row->forced_id);
        return 1;
    }
    const int32_t want = ref->is_ambiguous ? -1 : reference_draw(ref, row);
    if (want >= 0) {
        assert_int_equal(got->id, want);
    }
    return want >= 0;
}

// ---- random rows ----

static float *random_logits(size_t n)
{
    float *logits = random_values(n, 6.0);
    for (size_t i = 0; i < n; i += 5) {
        logits[i] = roundf(logits[i]); // ties
    }
    for (size_t i = 3; i < n; i += 11) {
        logits[i] = -INFINITY;
    }
    return logits;
}

static struct sample_row random_row(int32_t n_vocab)
{
    struct sample_row row = defaults;
    row.temperature = test_random_below(8) ? (float)test_random_double(0.2, 2.0) : 0.0f;
    row.top_k = test_random_below(2) ? (int32_t)test_random_below(60) : 0;
    row.top_p = test_random_below(2) ? (float)test_random_double(0.05, 1.0) : 1.0f;
    row.min_p = test_random_below(2) ? (float)test_random_double(0.0, 0.3) : 0.0f;
    row.seed = test_random_u64();
    row.sample = (uint32_t)test_random_below(5);
    row.position = (uint32_t)test_random_below(5000);
    row.n_top = (int32_t)test_random_below(
        (uint64_t)(n_vocab < SAMPLE_MAX_TOP ? n_vocab : SAMPLE_MAX_TOP) + 1);
    return row;
}

/* Up to n tokens from random ids, each once, in no order; returns how many. */
static int32_t random_tokens(struct sample_row *row, int32_t n_vocab, int32_t n,
                             struct sample_token *tokens)
{
    const int32_t stride = 7; // no vocabulary of the tests is a multiple of it
    int32_t id = (int32_t)test_random_below((uint64_t)n_vocab);
    n = n < n_vocab / 2 ? n : n_vocab / 2;
    for (int32_t i = 0; i < n; i++) {
        id = (id + stride) % n_vocab;
        tokens[i] = (struct sample_token){
            .id = id,
            .n_generated = (int32_t)test_random_below(3),
            .in_prompt = (int32_t)test_random_below(2),
            .bias = test_random_below(3) ? 0.0f : (float)test_random_double(-3.0, 3.0)};
        if (test_random_below(10) == 0) {
            tokens[i].bias = -INFINITY;
        }
    }
    row->n_tokens = n;
    row->repetition = (float)test_random_double(0.7, 1.6);
    row->presence = (float)test_random_double(-1.0, 1.0);
    row->frequency = (float)test_random_double(-0.5, 0.5);
    return n;
}

/* n_rows random rows of one call, one in two with changed logits; returns how many draws could be compared. */
static int check_rows(struct backend_stream *stream, int32_t n_vocab, int32_t n_rows)
{
    enum { MAX_ROWS = 40, MAX_TOKENS = 60 };

    struct sample_row rows[MAX_ROWS];
    struct sample_result results[MAX_ROWS];
    struct sample_token tokens[MAX_ROWS * MAX_TOKENS];
    int32_t n_tokens = 0;
    const int64_t ld = n_vocab + 3; // rows at any alignment
    float *logits = random_logits((size_t)(n_rows * ld));
    assert_true(n_rows <= MAX_ROWS);
    for (int32_t i = 0; i < n_rows; i++) {
        rows[i] = random_row(n_vocab);
        rows[i].logits = i / 2 * ld; // two rows look at the same logits
        rows[i].first_token = n_tokens;
        if (i % 2 == 0) {
            n_tokens += random_tokens(&rows[i], n_vocab, MAX_TOKENS, tokens + n_tokens);
            rows[i].only_listed = i % 8 == 4 && n_vocab > 30;
        }
        rows[i].forced = i % 4 == 3;
        rows[i].forced_id = (int32_t)test_random_below((uint64_t)n_vocab);
    }
    const struct sample_args args = {.rows = rows,
                                     .tokens = tokens,
                                     .n_tokens = n_tokens,
                                     .results = results,
                                     .n_rows = n_rows,
                                     .n_vocab = n_vocab};
    run(stream, logits, (size_t)(n_rows * ld), &args);
    int n_compared = 0;
    for (int32_t i = 0; i < n_rows; i++) {
        struct reference ref;
        reference_init(&ref, logits + rows[i].logits, n_vocab, &rows[i], tokens);
        if (rows[i].forced ? ref.raw[0].logit < -FLT_MAX : ref.n_kept == 0) {
            assert_int_equal(results[i].nan, 1);
        } else {
            n_compared += check_result(&ref, &rows[i], &results[i]);
        }
        reference_destroy(&ref);
    }
    free(logits);
    return n_compared;
}

static void test_sample_draws_what_the_reference_draws(void **state)
{
    (void)state;
    static const int32_t vocabs[] = {1, 2, 31, 32, 33, 127, 128, 129, 500, 1024, 1201};
    struct backend_stream *stream = check_stream();
    int n_compared = 0;
    for (size_t v = 0; v < sizeof vocabs / sizeof vocabs[0]; v++) {
        n_compared += check_rows(stream, vocabs[v], 24);
    }
    assert_true(n_compared > 200);
    check_stream_done(stream);
}

/* Blocks of 1024 threads; the last two rows are too long for any device's shared memory. */
static void test_sample_draws_from_long_rows(void **state)
{
    (void)state;
    struct backend_stream *stream = check_stream();
    int n_compared = check_rows(stream, 4097, 8);
    n_compared += check_rows(stream, 32000, 6);
    n_compared += check_rows(stream, 60001, 4);
    n_compared += check_rows(stream, 128256, 2);
    assert_true(n_compared >= 12);
    check_stream_done(stream);
}

/* All equal, in steps of one unit in the last place, around zero: what a digit at a time has most to do with. */
static void test_sample_cuts_rows_that_are_nearly_flat(void **state)
{
    (void)state;

    enum { N = 1003 };

    struct backend_stream *stream = check_stream();
    float logits[N];
    for (int kind = 0; kind < 3; kind++) {
        for (int32_t i = 0; i < N; i++) {
            const float steps = (float)test_random_below(40) * 0x1p-22f;
            logits[i] = kind == 0 ? 3.0f : kind == 1 ? 3.0f + steps : (steps - 20 * 0x1p-22f);
        }
        struct reference ref;
        for (int32_t top_k = 1; top_k < N; top_k += 150) {
            struct sample_row row = defaults;
            row.top_k = top_k;
            row.top_p = 0.7f;
            row.seed = test_random_u64();
            reference_init(&ref, logits, N, &row, NULL);
            const struct sample_result got = run_one(stream, logits, N, &row, NULL);
            (void)check_result(&ref, &row, &got);
            reference_destroy(&ref);
        }
    }
    check_stream_done(stream);
}

/* A position at which u is above 1 - 2^-13: the draw takes the last id that is kept, if that has so much. */
static uint32_t position_of_last(const struct sample_row *row)
{
    const uint32_t key[2] = {(uint32_t)(row->seed & 0xFFFFFFFFu), (uint32_t)(row->seed >> 32)};
    for (uint32_t position = 0;; position++) {
        const uint32_t counter[4] = {position, row->sample, 0, 0};
        uint32_t bits[4];
        philox_4x32(counter, key, bits);
        if (philox_uniform(bits[0]) > 1.0f - 0x1p-13f) {
            return position;
        }
    }
}

/* Logits that fall as ids rise, hundreds of nearly the same weight: the last kept id shows where the cut is. */
static void test_sample_cuts_where_the_reference_cuts(void **state)
{
    (void)state;

    enum { N = 600, ROWS = 60 };

    struct backend_stream *stream = check_stream();
    struct sample_row rows[ROWS];
    struct sample_result results[ROWS];
    float logits[N];
    for (int32_t i = 0; i < N; i++) {
        const bool same = i > 0 && test_random_below(4) == 0;
        logits[i] = same    ? logits[i - 1]
                    : i > 0 ? logits[i - 1] - (float)test_random_double(0.0, 0.006)
                            : 1.0f;
    }
    for (int i = 0; i < ROWS; i++) {
        rows[i] = defaults;
        rows[i].temperature = (float)test_random_double(0.7, 2.0);
        rows[i].top_p = i % 3 != 0 ? (float)test_random_double(0.1, 1.0) : 1.0f;
        rows[i].top_k = i % 3 != 1 ? 1 + (int32_t)test_random_below(N) : 0;
        rows[i].min_p = i % 4 == 0 ? (float)test_random_double(0.3, 0.9) : 0.0f;
        rows[i].seed = test_random_u64();
        rows[i].position = position_of_last(&rows[i]);
    }
    const struct sample_args args = {
        .rows = rows, .results = results, .n_rows = ROWS, .n_vocab = N};
    run(stream, logits, N, &args);
    int n_compared = 0;
    for (int i = 0; i < ROWS; i++) {
        struct reference ref;
        reference_init(&ref, logits, N, &rows[i], NULL);
        n_compared += check_result(&ref, &rows[i], &results[i]);
        reference_destroy(&ref);
    }
    assert_true(n_compared > ROWS / 2);
    check_stream_done(stream);
}

// ---- distributions ----

enum { SMALL = 12, DRAWS_A_CALL = 1000, DRAWS = 2000 };

/* Chi-square of many draws against the exact distribution; the limit is passed by chance once in 10^6. */
static void check_distribution(struct backend_stream *stream, const float *logits,
                               struct sample_row row)
{
    static struct sample_row rows[DRAWS_A_CALL];
    static struct sample_result results[DRAWS_A_CALL];
    int counts[SMALL] = {0};
    struct reference ref;
    reference_init(&ref, logits, SMALL, &row, NULL);
    for (int i = 0; i < DRAWS; i += DRAWS_A_CALL) {
        for (int j = 0; j < DRAWS_A_CALL; j++) {
            rows[j] = row;
            rows[j].position = (uint32_t)(i + j);
        }
        const struct sample_args args = {
            .rows = rows, .results = results, .n_rows = DRAWS_A_CALL, .n_vocab = SMALL};
        run(stream, logits, SMALL, &args);
        for (int j = 0; j < DRAWS_A_CALL; j++) {
            assert_in_range(results[j].id, 0, SMALL - 1);
            counts[results[j].id]++;
        }
    }
    double chi = 0.0;
    for (int id = 0; id < SMALL; id++) {
        const double expected = ref.p[id] * DRAWS, got = (double)counts[id];
        if (expected <= 0.0) {
            assert_int_equal(counts[id], 0);
            continue;
        }
        chi += (got - expected) * (got - expected) / expected;
    }
    if (chi > 50.0) { // 11 degrees of freedom: P(chi > 50) = 6e-7
        fail_msg("chi-square %.1f over %d ids", chi, ref.n_kept);
    }
    reference_destroy(&ref);
}

static void test_sample_follows_the_distribution(void **state)
{
    (void)state;
    static const float logits[SMALL] = {0.1f,  2.0f, -1.0f, 1.5f,      1.5f, 0.0f,
                                        -3.0f, 2.2f, 0.7f,  -INFINITY, 1.5f, -0.5f};

    static const struct {
        float temperature, top_p, min_p;
        int32_t top_k;
    } cases[] = {{1.0f, 1.0f, 0.0f, 0}, {2.0f, 1.0f, 0.0f, 4}, {1.3f, 0.8f, 0.1f, 6}};
    struct backend_stream *stream = check_stream();
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct sample_row row = defaults;
        row.temperature = cases[i].temperature;
        row.top_p = cases[i].top_p;
        row.min_p = cases[i].min_p;
        row.top_k = cases[i].top_k;
        row.seed = 1234567 + i;
        check_distribution(stream, logits, row);
    }
    check_stream_done(stream);
}

// ---- what filters keep ----

/* The set a filter keeps, seen by drawing often. */
static void assert_kept(struct backend_stream *stream, const float *logits, int32_t n_vocab,
                        struct sample_row row, uint32_t want)
{
    enum { N = 150 };

    static struct sample_row rows[N];
    static struct sample_result results[N];
    for (uint32_t i = 0; i < N; i++) {
        rows[i] = row;
        rows[i].position = i;
    }
    const struct sample_args args = {
        .rows = rows, .results = results, .n_rows = N, .n_vocab = n_vocab};
    run(stream, logits, (size_t)n_vocab, &args);
    uint32_t seen = 0;
    for (uint32_t i = 0; i < N; i++) {
        assert_in_range(results[i].id, 0, n_vocab - 1);
        seen |= 1u << results[i].id;
    }
    assert_int_equal(seen, want);
}

static void test_sample_filters_keep_the_documented_sets(void **state)
{
    (void)state;
    static const float even[8] = {1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f};
    static const float zeros[3] = {-0.0f, 0.0f, -1.0f};
    static const float steps[6] = {0.0f, 3.0f, 2.0f, -INFINITY, 3.0f, 1.0f};

    static const struct {
        const float *logits;
        int32_t n_vocab, top_k;
        float top_p, min_p, temperature;
        uint32_t want;
    } cases[] = {
        {even, 8, 0, 1.0f, 0.0f, 1.0f, 0xFF},
        {even, 8, 3, 1.0f, 0.0f, 1.0f, 0x07}, // ties: the lower ids
        {even, 8, 0, 0.5f, 0.0f, 1.0f, 0x0F}, // exactly half is reached by four
        {even, 8, 0, 0.51f, 0.0f, 1.0f, 0x1F},
        {even, 8, 6, 0.5f, 0.0f, 1.0f, 0x07},  // half of what top_k kept
        {even, 8, 6, 1e-6f, 0.0f, 1.0f, 0x01}, // one at least
        {zeros, 3, 1, 1.0f, 0.0f, 1.0f, 0x01}, // -0 and 0 tie
        {steps, 6, 0, 1.0f, 0.0f, 1.0f, 0x37},
        {steps, 6, 100, 1.0f, 0.0f, 1.0f, 0x37},
        {steps, 6, 0, 1.0f, 0.36787945f, 1.0f, 0x12}, // e^-1, rounded up: 2.0 is just out
        {steps, 6, 0, 1.0f, 0.36787940f, 1.0f, 0x16}, // rounded down: in
        {steps, 6, 0, 1.0f, 0.36787940f, 0.5f, 0x12},
        {steps, 6, 3, 0.9f, 0.0f, 1e-45f, 0x12}, // the coldest a float can say
        {steps, 6, 0, 1.0f, 0.0f, 3e38f, 0x37},  // the hottest
    };
    struct backend_stream *stream = check_stream();
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct sample_row row = defaults;
        row.top_k = cases[i].top_k;
        row.top_p = cases[i].top_p;
        row.min_p = cases[i].min_p;
        row.temperature = cases[i].temperature;
        assert_kept(stream, cases[i].logits, cases[i].n_vocab, row, cases[i].want);
    }
    check_stream_done(stream);
}

// ---- what a request changes ----

static void test_sample_greedy_takes_the_largest_that_is_left(void **state)
{
    (void)state;
    static const float logits[7] = {1.0f, -0.0f, 5.0f, 0.0f, 5.0f, -INFINITY, 4.0f};
    static const int32_t top[4] = {2, 4, 6, 0};
    struct backend_stream *stream = check_stream();
    struct sample_row row = defaults;
    row.temperature = 0.0f;
    row.n_top = 4;
    struct sample_result got = run_one(stream, logits, 7, &row, NULL);
    assert_int_equal(got.id, 2);
    assert_int_equal(got.rank, 1);
    assert_memory_equal(got.top_ids, top, sizeof top);
    const struct sample_token banned[2] = {{.id = 4, .bias = -INFINITY},
                                           {.id = 2, .bias = -INFINITY}};
    row.n_tokens = 2;
    got = run_one(stream, logits, 7, &row, banned);
    assert_int_equal(got.id, 6);
    assert_int_equal(got.rank, 3);                     // of the raw row
    assert_memory_equal(got.top_ids, top, sizeof top); // too
    const double want = 4.0 - log(2.0 * exp(5.0) + exp(4.0) + exp(1.0) + 2.0);
    assert_all_close(&got.logprob, &want, 1, logprob_result, "logprob");
    check_stream_done(stream);
}

/* Greedy shows which logit became the largest. */
static void test_sample_penalties_do_what_they_say(void **state)
{
    (void)state;
    static const float logits[4] = {2.0f, 1.9f, -1.0f, -1.1f};

    static const struct {
        float repetition, presence, frequency;
        struct sample_token token;
        int32_t want;
    } cases[] = {
        {1.0f, 0.0f, 0.0f, {.id = 0, .n_generated = 3, .in_prompt = 1}, 0},
        {1.1f, 0.0f, 0.0f, {.id = 0, .in_prompt = 1}, 1},
        {1.1f, 0.0f, 0.0f, {.id = 0, .n_generated = 1}, 1},
        {1.1f, 0.0f, 0.0f, {.id = 0}, 0},                 // not seen
        {1.0f, 0.2f, 0.0f, {.id = 0, .in_prompt = 1}, 0}, // presence: generated ids
        {1.0f, 0.2f, 0.0f, {.id = 0, .n_generated = 1}, 1},
        {1.0f, 0.0f, 0.04f, {.id = 0, .n_generated = 2}, 0},
        {1.0f, 0.0f, 0.04f, {.id = 0, .n_generated = 3}, 1},
        {0.5f, 0.0f, 0.0f, {.id = 1, .n_generated = 1}, 1},
        {1.0f, 0.0f, 0.0f, {.id = 3, .bias = 3.2f}, 3},
        {1.0f, 0.0f, 0.0f, {.id = 3, .bias = 3.0f}, 0},
        {2.0f,
         0.0f,
         0.0f,
         {.id = 3, .n_generated = 1, .bias = 4.0f},
         0}, // bias comes before: 2.9 / 2
    };
    struct backend_stream *stream = check_stream();
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct sample_row row = defaults;
        row.temperature = 0.0f;
        row.repetition = cases[i].repetition;
        row.presence = cases[i].presence;
        row.frequency = cases[i].frequency;
        row.n_tokens = 1;
        const struct sample_result got = run_one(stream, logits, 4, &row, &cases[i].token);
        if (got.id != cases[i].want) {
            fail_msg("case %zu: got %d, want %d", i, got.id, cases[i].want);
        }
    }
    check_stream_done(stream);
}

// ---- slots ----

/*
 * An id that lies in drawn counts like one more generated token of the list, listed or not; rows write what they draw to their
 * slots and nowhere else; rows that fill up a recording write nothing.
 */
static void check_slots(struct backend_stream *stream, int32_t n_vocab)
{
    enum { ROWS = 24, SLOTS = 30, MAX_TOKENS = 12 };

    struct sample_row rows[ROWS];
    struct sample_result got[ROWS], want[ROWS];
    struct sample_token tokens[ROWS * (MAX_TOKENS + 1)];
    int32_t drawn[SLOTS], before[SLOTS], n_tokens = 0;
    float *logits = random_logits((size_t)ROWS * (size_t)n_vocab);
    for (int32_t i = 0; i < SLOTS; i++) {
        before[i] = drawn[i] = (int32_t)test_random_below((uint64_t)n_vocab);
    }
    drawn[SLOTS - 1 - 3] = before[SLOTS - 1 - 3] = -1; // a row without a distribution left this
    for (int32_t i = 0; i < ROWS; i++) {
        rows[i] = random_row(n_vocab);
        rows[i].logits = (int64_t)i * n_vocab;
        rows[i].repetition = i % 3 != 0 ? 1.5f : 1.0f;
        rows[i].presence = i % 3 == 1 ? 0.7f : 0.0f;
        rows[i].frequency = i % 3 == 2 ? 0.9f : 0.0f;
        rows[i].slot = SLOTS - 1 - i;
        rows[i].pending_slot = i % 8 == 7 ? -1 : rows[i].slot;
        rows[i].first_token = n_tokens;
        rows[i].n_tokens = 0;
        if (i % 4 != 0) {
            n_tokens += random_tokens(&rows[i], n_vocab, MAX_TOKENS, tokens + n_tokens);
        }
        rows[i].only_listed = i % 6 == 5 && rows[i].n_tokens > 0;
        if (i % 4 == 2 && rows[i].n_tokens > 0) { // pending and listed
            before[rows[i].slot] = drawn[rows[i].slot] = tokens[rows[i].first_token].id;
        }
    }
    rows[ROWS - 1].logits = -1;
    struct sample_args args = {.rows = rows,
                               .tokens = tokens,
                               .n_tokens = n_tokens,
                               .results = got,
                               .n_rows = ROWS,
                               .n_vocab = n_vocab,
                               .drawn = drawn,
                               .n_drawn = SLOTS};
    const size_t n_logits = (size_t)ROWS * (size_t)n_vocab;
    run(stream, logits, n_logits, &args);
    for (int32_t i = 0; i < SLOTS; i++) {
        const int32_t row = SLOTS - 1 - i;
        assert_int_equal(drawn[i], row < ROWS - 1 ? got[row].id : before[i]);
    }
    // The same, with the pending id in the list.
    for (int32_t i = 0; i < ROWS - 1; i++) {
        struct sample_row row = rows[i];
        struct sample_token listed[MAX_TOKENS + 1];
        const int32_t pending = row.pending_slot >= 0 ? before[row.pending_slot] : -1;
        bool found = pending < 0 || row.only_listed;
        memcpy(listed, tokens + row.first_token, (size_t)row.n_tokens * sizeof *listed);
        for (int32_t t = 0; t < row.n_tokens; t++) {
            listed[t].n_generated += listed[t].id == pending;
            found = found || listed[t].id == pending;
        }
        if (!found) {
            listed[row.n_tokens++] = (struct sample_token){.id = pending, .n_generated = 1};
        }
        row.first_token = 0;
        row.pending_slot = -1;
        want[i] = run_one(stream, logits + row.logits, n_vocab,
                          &(struct sample_row){.seed = row.seed,
                                               .sample = row.sample,
                                               .position = row.position,
                                               .temperature = row.temperature,
                                               .top_k = row.top_k,
                                               .top_p = row.top_p,
                                               .min_p = row.min_p,
                                               .repetition = row.repetition,
                                               .presence = row.presence,
                                               .frequency = row.frequency,
                                               .n_tokens = row.n_tokens,
                                               .only_listed = row.only_listed,
                                               .n_top = row.n_top},
                          listed);
        assert_same_bytes(&got[i], &want[i], sizeof want[i], "result");
    }
    free(logits);
}

// ---- log probabilities in place of logits ----

static void check_of_logprobs(struct backend_stream *stream, int32_t n_vocab)
{
    enum { MAX_TOKENS = 60 };

    struct sample_token tokens[MAX_TOKENS];
    struct sample_row row = random_row(n_vocab);
    float *logits = random_logits((size_t)n_vocab);
    bool *is_listed = calloc((size_t)n_vocab, sizeof *is_listed);
    assert_non_null(is_listed);
    row.temperature = 0.0f;
    row.of_logprobs = 1;
    row.n_top = SAMPLE_MAX_TOP;
    if (test_random_below(4) > 0) {
        (void)random_tokens(&row, n_vocab, MAX_TOKENS, tokens);
        row.only_listed = row.n_tokens > SAMPLE_MAX_TOP && test_random_below(4) == 0;
    }
    double sum = 0.0;
    for (int32_t id = 0; id < n_vocab; id++) {
        sum += exp((double)logits[id]);
    }
    const struct sample_result got = run_one(stream, logits, n_vocab, &row, tokens);
    for (int32_t i = 0; i < SAMPLE_MAX_TOP; i++) {
        const int32_t id = got.top_ids[i];
        assert_in_range(id, 0, n_vocab - 1);
        assert_false(is_listed[id]);
        is_listed[id] = true;
        const float logprob = (float)((double)logits[id] - log(sum));
        const double want = (double)adjusted(&row, tokens, id, logprob);
        assert_true((isinf(want) && isinf(got.top_logprobs[i])) ||
                    fabs((double)got.top_logprobs[i] - want) < 1e-5);
        assert_true(i == 0 || got.top_logprobs[i] <= got.top_logprobs[i - 1]);
    }
    for (int32_t id = 0; id < n_vocab; id++) {
        const float logprob = (float)((double)logits[id] - log(sum));
        assert_true(is_listed[id] || (double)adjusted(&row, tokens, id, logprob) <=
                                         (double)got.top_logprobs[SAMPLE_MAX_TOP - 1] + 1e-5);
    }
    assert_true(got.nan == 0 && got.id == got.top_ids[0]);
    free(is_listed);
    free(logits);
}

static void test_sample_changes_log_probabilities(void **state)
{
    (void)state;
    struct backend_stream *stream = check_stream();
    for (int round = 0; round < 6; round++) {
        check_of_logprobs(stream, 41);
        check_of_logprobs(stream, 500);
        check_of_logprobs(stream, 1201);
    }
    check_stream_done(stream);
}

static void test_sample_counts_pending_ids_and_fills_slots(void **state)
{
    (void)state;
    struct backend_stream *stream = check_stream();
    check_slots(stream, 41);
    check_slots(stream, 500);
    check_slots(stream, 1201);
    check_stream_done(stream);
}

// ---- rows that cannot be sampled ----

static void test_sample_reports_rows_without_a_distribution(void **state)
{
    (void)state;
    static const float logits[12] = {1.0f, NAN,      2.0f, -INFINITY, -INFINITY, -INFINITY,
                                     1.0f, INFINITY, 2.0f, 1.0f,      -INFINITY, 2.0f};
    static const struct sample_token tokens[3] = {
        {.id = 0, .bias = -INFINITY}, {.id = 2, .bias = -INFINITY}, {.id = 0, .bias = INFINITY}};
    struct backend_stream *stream = check_stream();
    struct sample_row rows[7];
    struct sample_result results[7];
    static const int64_t begins[7] = {0, 3, 6, 9, 9, 9, 9};
    for (int greedy = 0; greedy < 2; greedy++) {
        for (int i = 0; i < 7; i++) {
            rows[i] = defaults;
            rows[i].logits = begins[i];
            rows[i].temperature = greedy ? 0.0f : 1.0f;
            rows[i].n_top = 2;
        }
        rows[3].n_tokens = 2; // all that is finite is out
        rows[4].first_token = 2;
        rows[4].n_tokens = 1;    // +inf
        rows[5].only_listed = 1; // and none is
        const struct sample_args args = {.rows = rows,
                                         .tokens = tokens,
                                         .n_tokens = 3,
                                         .results = results,
                                         .n_rows = 7,
                                         .n_vocab = 3};
        run(stream, logits, 12, &args);
        for (int i = 0; i < 6; i++) {
            assert_int_equal(results[i].nan, 1);
            assert_int_equal(results[i].id, -1);
            assert_int_equal(results[i].top_ids[0], 0);
        }
        assert_int_equal(results[6].nan, 0);
        assert_true(results[6].id == 0 || results[6].id == 2);
        assert_int_equal(results[6].top_ids[0], 2);
    }
    check_stream_done(stream);
}

// ---- the call ----

/* A row alone gives what it gives among others, and the call grows and shrinks. */
static void test_sample_does_not_depend_on_other_rows(void **state)
{
    (void)state;

    enum { ROWS = 30, N = 700 };

    struct backend_stream *stream = check_stream();
    struct sample_row rows[ROWS];
    struct sample_result want[ROWS];
    float *logits = random_logits((size_t)ROWS * N);
    for (int i = 0; i < ROWS; i++) {
        rows[i] = random_row(N);
        rows[i].logits = (int64_t)i * N;
    }
    const struct sample_args args = {.rows = rows, .results = want, .n_rows = ROWS, .n_vocab = N};
    run(stream, logits, (size_t)ROWS * N, &args);
    for (int i = 0; i < ROWS; i += 7) {
        rows[i].logits = 0;
        const struct sample_result alone =
            run_one(stream, logits + (ptrdiff_t)i * N, N, &rows[i], NULL);
        assert_same_bytes(&alone, &want[i], sizeof alone, "result");
    }
    free(logits);
    check_stream_done(stream);
}

static void test_sample_refuses_bad_settings(void **state)
{
    (void)state;
    struct backend_stream *stream = check_stream();
    static const struct sample_token token = {.id = 4};
    struct sample_row rows[16];
    for (int i = 0; i < 16; i++) {
        rows[i] = defaults;
    }
    rows[0].temperature = -1.0f;
    rows[1].temperature = NAN;
    rows[2].temperature = INFINITY;
    rows[3].top_p = 0.0f;
    rows[4].top_p = 1.5f;
    rows[5].min_p = nextafterf(1.0f, 2.0f);
    rows[6].min_p = NAN;
    rows[7].top_k = -1;
    rows[8].n_top = 5; // of 4 ids
    rows[9].n_top = -1;
    rows[10].n_tokens = 1; // id 4 of 4
    rows[11].n_tokens = 2; // of 1
    rows[12].repetition = 0.0f;
    rows[13].presence = INFINITY;
    rows[14].frequency = NAN;
    rows[15].logits = -2;
    struct sample_result result;
    for (int i = 0; i < 16; i++) {
        const struct sample_args args = {.rows = &rows[i],
                                         .tokens = &token,
                                         .n_tokens = 1,
                                         .results = &result,
                                         .n_rows = 1,
                                         .n_vocab = 4};
        assert_status_code(sample_check(&args, 4), STATUS_INVALID_ARGUMENT);
    }
    const struct sample_args huge = {.n_rows = 0, .n_vocab = (1 << 18) + 1};
    assert_status_code(check_backend()->sample(stream, &huge), STATUS_INVALID_ARGUMENT);
    const struct sample_args fewer = {.n_rows = -1, .n_vocab = 4};
    assert_status_code(check_backend()->sample(stream, &fewer), STATUS_INVALID_ARGUMENT);
    const struct sample_args none = {.n_rows = 0, .n_vocab = 4};
    assert_status_ok(check_backend()->sample(stream, &none));
    check_stream_done(stream);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sample_draws_what_the_reference_draws),
        cmocka_unit_test(test_sample_draws_from_long_rows),
        cmocka_unit_test(test_sample_cuts_where_the_reference_cuts),
        cmocka_unit_test(test_sample_cuts_rows_that_are_nearly_flat),
        cmocka_unit_test(test_sample_follows_the_distribution),
        cmocka_unit_test(test_sample_filters_keep_the_documented_sets),
        cmocka_unit_test(test_sample_greedy_takes_the_largest_that_is_left),
        cmocka_unit_test(test_sample_penalties_do_what_they_say),
        cmocka_unit_test(test_sample_changes_log_probabilities),
        cmocka_unit_test(test_sample_counts_pending_ids_and_fills_slots),
        cmocka_unit_test(test_sample_reports_rows_without_a_distribution),
        cmocka_unit_test(test_sample_does_not_depend_on_other_rows),
        cmocka_unit_test(test_sample_refuses_bad_settings),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

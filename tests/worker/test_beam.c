/*
 * test_beam.c - the choice of beams against two others: the search written out on whole sequences and whole rows, as the paper
 * and transformers have it, and the best of all sequences that there are
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/philox.h"
#include "tests/support/test.h"
#include "worker/beam.h"

enum { MAX_VOCAB = 40, MAX_TOKENS = 12, MAX_CANDIDATES = BEAM_MAX_WIDTH * MAX_VOCAB };

/* The model: log probabilities that depend on all tokens before. */
struct model {
    uint64_t seed;
    int32_t n_vocab;
    float sharpness;
    bool has_holes; /* some tokens cannot be drawn */
};

static void logprobs_of(const struct model *m, const int32_t *tokens, int32_t n, float *out)
{
    uint64_t h = m->seed;
    double sum = 0.0;
    double logits[MAX_VOCAB];
    for (int32_t i = 0; i < n; i++) {
        h = (h ^ ((uint64_t)tokens[i] + 1)) * 0x9e3779b97f4a7c15u;
        h ^= h >> 29;
    }
    for (int32_t id = 0; id < m->n_vocab; id++) {
        const uint32_t counter[4] = {(uint32_t)id, 0, 0, 0};
        const uint32_t key[2] = {(uint32_t)h, (uint32_t)(h >> 32)};
        uint32_t bits[4];
        philox_4x32(counter, key, bits);
        const bool hole = m->has_holes && bits[1] % 3 == 0 && id > 1;
        logits[id] = hole ? -INFINITY : (double)m->sharpness * (double)philox_uniform(bits[0]);
        sum += exp(logits[id]);
    }
    for (int32_t id = 0; id < m->n_vocab; id++) {
        out[id] = (float)(logits[id] - log(sum));
    }
}

// ---- the search written out ----

struct sequence {
    int32_t tokens[MAX_TOKENS];
    int32_t n;
    double sum, score;
    bool ends;
};

struct reference {
    struct sequence running[BEAM_MAX_WIDTH], ended[BEAM_MAX_WIDTH];
    int32_t n_running, n_ended;
};

static int by_sum(const void *a, const void *b)
{
    const double x = ((const struct sequence *)a)->sum, y = ((const struct sequence *)b)->sum;
    return x < y ? 1 : x > y ? -1 : 0;
}

static int by_score(const void *a, const void *b)
{
    const double x = ((const struct sequence *)a)->score, y = ((const struct sequence *)b)->score;
    return x < y ? 1 : x > y ? -1 : 0;
}

static bool names(const struct beam_params *p, int32_t id)
{
    bool found = false;
    for (int32_t i = 0; i < p->n_stop_ids; i++) {
        found = found || p->stop_ids[i] == id;
    }
    return found;
}

/* All continuations of all beams, best first. */
static int32_t continue_all(const struct model *m, const struct beam_params *p,
                            const struct reference *r, struct sequence *out)
{
    int32_t n = 0;
    for (int32_t b = 0; b < r->n_running; b++) {
        float logprobs[MAX_VOCAB];
        logprobs_of(m, r->running[b].tokens, r->running[b].n, logprobs);
        for (int32_t id = 0; id < m->n_vocab; id++) {
            if (logprobs[id] == -INFINITY) {
                continue;
            }
            out[n] = r->running[b];
            out[n].tokens[out[n].n++] = id;
            out[n].sum += (double)logprobs[id];
            out[n].ends = names(p, id) || out[n].n == p->max_tokens;
            out[n].score = out[n].sum / pow((double)out[n].n, (double)p->length_penalty);
            n++;
        }
    }
    qsort(out, (size_t)n, sizeof *out, by_sum);
    return n;
}

/* Keeps the best `width` of what was kept and what has just ended. */
static void keep(struct reference *r, const struct beam_params *p, const struct sequence *ended,
                 int32_t n)
{
    struct sequence all[2 * BEAM_MAX_WIDTH];
    memcpy(all, r->ended, (size_t)r->n_ended * sizeof all[0]);
    memcpy(all + r->n_ended, ended, (size_t)n * sizeof all[0]);
    const size_t n_all = (size_t)r->n_ended + (size_t)n;
    qsort(all, n_all, sizeof all[0], by_score);
    r->n_ended = r->n_ended + n < p->width ? r->n_ended + n : p->width;
    memcpy(r->ended, all, (size_t)r->n_ended * sizeof all[0]);
}

static bool improves(const struct reference *r, const struct beam_params *p)
{
    if (r->n_ended < p->width) {
        return true;
    }
    if (p->early_stopping == BEAM_STOP_FIRST) {
        return false;
    }
    int32_t length = r->running[0].n;
    if (p->early_stopping == BEAM_STOP_NEVER && p->length_penalty > 0) {
        length = p->max_tokens;
    }
    return r->running[0].sum / pow((double)length, (double)p->length_penalty) >
           r->ended[p->width - 1].score;
}

static void search_written_out(const struct model *m, const struct beam_params *p,
                               struct reference *r)
{
    struct sequence *all = calloc(MAX_CANDIDATES, sizeof *all);
    assert_non_null(all);
    *r = (struct reference){.n_running = 1};
    while (r->n_running > 0) {
        struct sequence ended[BEAM_MAX_WIDTH];
        int32_t n_ended = 0;
        const int32_t n = continue_all(m, p, r, all);
        r->n_running = 0;
        for (int32_t i = 0; i < n; i++) {
            if (all[i].ends && i < p->width) {
                ended[n_ended++] = all[i];
            } else if (!all[i].ends && r->n_running < p->width) {
                r->running[r->n_running++] = all[i];
            }
        }
        keep(r, p, ended, n_ended);
        if (r->n_running > 0 && !improves(r, p)) {
            r->n_running = 0;
        }
    }
    free(all);
}

// ---- the search that is tested, fed with no more than it asks for ----

static void fill_row(const struct model *m, const int32_t *tokens, int32_t n, int32_t n_top,
                     struct sample_result *row)
{
    float logprobs[MAX_VOCAB];
    bool taken[MAX_VOCAB] = {false};
    logprobs_of(m, tokens, n, logprobs);
    memset(row, 0x7f, sizeof *row);
    for (int32_t i = 0; i < n_top; i++) {
        int32_t best = -1;
        for (int32_t id = 0; id < m->n_vocab; id++) {
            if (!taken[id] && (best < 0 || logprobs[id] > logprobs[best])) {
                best = id;
            }
        }
        taken[best] = true;
        row->top_ids[i] = best;
        row->top_logprobs[i] = logprobs[best];
    }
}

static void search(const struct model *m, const struct beam_params *p, struct beam_search *s)
{
    int32_t tokens[BEAM_MAX_WIDTH][MAX_TOKENS], before[BEAM_MAX_WIDTH][MAX_TOKENS];
    struct sample_result rows[BEAM_MAX_WIDTH];
    struct beam_next next[BEAM_MAX_WIDTH];
    const int32_t n_candidates = beam_candidates(p);
    const int32_t n_top = n_candidates > p->n_top ? n_candidates : p->n_top;
    assert_status_ok(beam_search_init(s, p));
    int32_t n = 1;
    for (int32_t length = 0; n > 0; length++) {
        assert_int_equal(n, s->n_beams);
        for (int32_t b = 0; b < n; b++) {
            fill_row(m, tokens[b], length, n_top, &rows[b]);
        }
        n = beam_search_step(s, rows, next);
        memcpy(before, tokens, sizeof before);
        for (int32_t b = 0; b < n; b++) {
            memcpy(tokens[b], before[next[b].parent], sizeof tokens[b]);
            tokens[b][length] = next[b].id;
        }
    }
}

static void check_tokens(const struct model *m, const struct beam_search *s, int32_t index,
                         const struct sequence *want)
{
    struct beam_token tokens[MAX_TOKENS];
    struct sample_result row;
    const struct beam_ended *ended = &s->ended[index];
    assert_int_equal(ended->length, want->n);
    beam_search_read(s, index, tokens);
    double sum = 0.0;
    for (int32_t i = 0; i < want->n; i++) {
        assert_int_equal(tokens[i].id, want->tokens[i]);
        fill_row(m, want->tokens, i, m->n_vocab < SAMPLE_MAX_TOP ? m->n_vocab : SAMPLE_MAX_TOP,
                 &row);
        assert_int_equal(row.top_ids[tokens[i].rank - 1], tokens[i].id);
        assert_true(row.top_logprobs[tokens[i].rank - 1] == tokens[i].logprob);
        for (int32_t t = 0; t < s->params.n_top; t++) {
            assert_int_equal(tokens[i].top[t].id, row.top_ids[t]);
            assert_true(tokens[i].top[t].logprob == row.top_logprobs[t]);
        }
        sum += (double)tokens[i].logprob;
    }
    assert_true(fabs(sum - ended->sum) < 1e-9 && fabs(sum - want->sum) < 1e-9);
    assert_true(fabs(ended->score - want->score) < 1e-9 * (1.0 + fabs(want->score)));
    assert_int_equal(ended->by_stop_id, names(&s->params, want->tokens[want->n - 1]));
}

static int32_t between(int32_t low, int32_t high)
{
    return low + (int32_t)test_random_below((uint64_t)((int64_t)high - low + 1));
}

static void test_beam_equals_the_search_written_out(void **state)
{
    (void)state;
    int32_t n_stopped = 0, n_early = 0;
    for (int32_t round = 0; round < 1000; round++) {
        int32_t stop_ids[6];
        const struct model m = {.seed = test_random_u64(),
                                .n_vocab = between(2, MAX_VOCAB),
                                .sharpness = (float)between(1, 12),
                                .has_holes = between(0, 3) == 0};
        for (int32_t i = 0; i < 6; i++) { // twice the same, and some that the model has not
            stop_ids[i] = between(0, m.n_vocab);
        }
        const struct beam_params params = {
            .width = between(1, 14),
            .max_tokens = between(1, MAX_TOKENS),
            .length_penalty = (float)between(-4, 4) * 0.5f,
            .early_stopping = between(0, 2),
            .n_vocab = m.n_vocab,
            .stop_ids = stop_ids,
            .n_stop_ids = between(0, 6),
            .n_top = between(0, m.n_vocab < 20 ? m.n_vocab : 20),
        };
        struct reference want;
        struct beam_search s;
        search_written_out(&m, &params, &want);
        search(&m, &params, &s);
        assert_int_equal(s.n_ended, want.n_ended);
        for (int32_t i = 0; i < s.n_ended; i++) {
            check_tokens(&m, &s, i, &want.ended[i]);
            n_stopped += s.ended[i].by_stop_id;
        }
        n_early += s.length < params.max_tokens;
        beam_search_destroy(&s);
    }
    assert_true(n_stopped > 300 && n_early > 100);
}

/* A width that keeps every sequence finds the best there is. */
static void test_beam_finds_the_best_of_all(void **state)
{
    (void)state;

    enum { VOCAB = 3, LENGTH = 3, ALL = VOCAB * VOCAB * VOCAB };

    for (int32_t round = 0; round < 300; round++) {
        const struct model m = {.seed = test_random_u64(), .n_vocab = VOCAB, .sharpness = 4};
        const struct beam_params params = {
            .width = VOCAB * VOCAB, .max_tokens = LENGTH, .n_vocab = VOCAB};
        double best = -INFINITY;
        int32_t best_tokens[LENGTH] = {0};
        for (int32_t code = 0; code < ALL; code++) {
            const int32_t tokens[LENGTH] = {code / 9, code / 3 % 3, code % 3};
            double sum = 0.0;
            for (int32_t i = 0; i < LENGTH; i++) {
                float logprobs[MAX_VOCAB];
                logprobs_of(&m, tokens, i, logprobs);
                sum += (double)logprobs[tokens[i]];
            }
            if (sum > best) {
                best = sum;
                memcpy(best_tokens, tokens, sizeof best_tokens);
            }
        }
        struct beam_search s;
        struct beam_token tokens[LENGTH];
        search(&m, &params, &s);
        beam_search_read(&s, 0, tokens);
        for (int32_t i = 0; i < LENGTH; i++) {
            assert_int_equal(tokens[i].id, best_tokens[i]);
        }
        assert_true(fabs(s.ended[0].sum - best) < 1e-9);
        beam_search_destroy(&s);
    }
}

static void test_beam_refuses(void **state)
{
    (void)state;
    int32_t stop_ids[8] = {0, 1, 2, 3, 4, 4, 4, 99};
    const struct beam_params good = {.width = BEAM_MAX_WIDTH,
                                     .max_tokens = 1,
                                     .n_vocab = 50,
                                     .stop_ids = stop_ids,
                                     .n_stop_ids = 4};
    struct beam_search s;
    assert_int_equal(beam_candidates(&good), SAMPLE_MAX_TOP);
    assert_status_ok(beam_search_init(&s, &good));
    beam_search_destroy(&s);
    struct beam_params bad = good;
    bad.n_stop_ids = 8; // five of them
    assert_status_says(beam_search_init(&s, &bad), STATUS_INVALID_ARGUMENT, "16 with 5 stop ids");
    bad = good;
    bad.width = BEAM_MAX_WIDTH + 1;
    assert_status_says(beam_search_init(&s, &bad), STATUS_INVALID_ARGUMENT, "17 is not in [1, 16]");
    bad = good;
    bad.length_penalty = NAN;
    assert_status_says(beam_search_init(&s, &bad), STATUS_INVALID_ARGUMENT, "length_penalty");
    bad = good;
    bad.early_stopping = 3;
    assert_status_says(beam_search_init(&s, &bad), STATUS_INVALID_ARGUMENT, "early_stopping 3");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_beam_equals_the_search_written_out),
        cmocka_unit_test(test_beam_finds_the_best_of_all),
        cmocka_unit_test(test_beam_refuses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

#include "worker/sample_list.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/support/test.h"

enum { N_VOCAB = 50, MAX_TOKENS = 200, MAX_LIST = 40 };

/* A request, and what it says computed anew from all tokens each time. */
struct shadow {
    struct sample_list_request request;
    struct sample_bias bias[MAX_LIST];
    int32_t allowed[MAX_LIST], held[2][MAX_LIST], tokens[MAX_TOKENS];
    int32_t n_tokens;
    bool is_allowed[N_VOCAB];
};

static bool counts(const struct sample_list_request *r)
{
    return r->repetition != 1.0f || r->presence != 0.0f || r->frequency != 0.0f;
}

static int32_t random_ids(int32_t *ids, int32_t most)
{
    const int32_t n = (int32_t)test_random_below((uint64_t)most + 1);
    for (int32_t i = 0; i < n; i++) {
        ids[i] = (int32_t)test_random_below(N_VOCAB);
    }
    return n;
}

static void shadow_init(struct shadow *s)
{
    memset(s, 0, sizeof *s);
    struct sample_list_request *r = &s->request;
    r->n_vocab = N_VOCAB;
    r->repetition = test_random_below(2) ? 1.3f : 1.0f;
    r->presence = test_random_below(2) ? 0.5f : 0.0f;
    r->frequency = test_random_below(2) ? -0.25f : 0.0f;
    if (test_random_below(2)) {
        for (int32_t id = (int32_t)test_random_below(5); id < N_VOCAB; id += 7) {
            s->bias[r->n_bias++] =
                (struct sample_bias){id, (float)test_random_double(-100.0, 100.0)};
        }
    }
    r->n_allowed = test_random_below(3) == 0 ? random_ids(s->allowed, MAX_LIST) : 0;
    for (int32_t i = 0; i < r->n_allowed; i++) {
        s->is_allowed[s->allowed[i]] = true;
    }
    for (int which = 0; which < 2; which++) {
        r->n_held[which] = test_random_below(2) ? random_ids(s->held[which], 9) : 0;
        r->held[which] = s->held[which];
    }
    r->bias = s->bias;
    r->allowed = s->allowed;
    r->tokens = s->tokens;
    r->n_tokens = s->n_tokens = 1 + random_ids(s->tokens, 60);
    r->n_prompt = 1 + (int32_t)test_random_below((uint64_t)r->n_tokens);
    r->max_generated = r->n_tokens - r->n_prompt + 1 + (int32_t)test_random_below(60);
}

/* What is to be said of an id; false where it need not be listed. */
static bool wanted(const struct shadow *s, int32_t id, enum sample_list_phase phase,
                   struct sample_token *want)
{
    const struct sample_list_request *r = &s->request;
    *want = (struct sample_token){.id = id};
    bool listed = false;
    for (int32_t i = 0; i < r->n_bias; i++) {
        if (r->bias[i].id == id) {
            want->bias = r->bias[i].bias;
            listed = true;
        }
    }
    for (int32_t i = 0; i < s->n_tokens; i++) {
        if (s->tokens[i] != id) {
            continue;
        }
        if (i < r->n_prompt) {
            want->in_prompt = r->repetition != 1.0f;
            listed |= r->repetition != 1.0f;
        } else if (counts(r)) {
            want->n_generated++;
            listed = true;
        }
    }
    for (int which = 0; which < 2; which++) {
        for (int32_t i = 0; phase == SAMPLE_LIST_HELD && i < r->n_held[which]; i++) {
            if (r->held[which][i] == id) {
                want->bias = -INFINITY;
                listed = true;
            }
        }
    }
    return r->n_allowed > 0 ? s->is_allowed[id] : listed;
}

static bool changes_nothing(const struct sample_token *token)
{
    return token->n_generated == 0 && token->in_prompt == 0 && token->bias == 0.0f;
}

static void check_list(const struct shadow *s, const struct sample_list *list,
                       enum sample_list_phase phase)
{
    struct sample_token got[N_VOCAB];
    const struct sample_token *of_id[N_VOCAB] = {NULL};
    assert_true(list->max <= N_VOCAB);
    const int32_t n = sample_list_write(list, phase, got);
    assert_true(n <= list->max);
    for (int32_t i = 0; i < n; i++) {
        assert_null(of_id[got[i].id]); // an id once
        of_id[got[i].id] = &got[i];
    }
    assert_int_equal(list->only_listed, s->request.n_allowed > 0);
    for (int32_t id = 0; id < N_VOCAB; id++) {
        struct sample_token want;
        const struct sample_token *have = of_id[id];
        if (!wanted(s, id, phase, &want)) {
            // A held id may stay listed after it has been let go.
            assert_true(have == NULL || (s->request.n_allowed == 0 && changes_nothing(have)));
            continue;
        }
        if (have == NULL) {
            fail_msg("id %d is not listed", id);
            return;
        }
        assert_int_equal(have->n_generated, want.n_generated);
        assert_int_equal(have->in_prompt, want.in_prompt);
        assert_true(have->bias == want.bias);
    }
}

static void test_sample_list_says_what_the_tokens_say(void **state)
{
    (void)state;
    for (int round = 0; round < 600; round++) {
        struct shadow s;
        struct sample_list list;
        shadow_init(&s);
        assert_status_ok(sample_list_init(&list, &s.request));
        const int32_t end = s.request.n_prompt + s.request.max_generated;
        for (;;) {
            check_list(&s, &list, SAMPLE_LIST_HELD);
            check_list(&s, &list, SAMPLE_LIST_FREE);
            if (s.n_tokens == end) {
                break;
            }
            const int32_t id = (int32_t)test_random_below(N_VOCAB);
            s.tokens[s.n_tokens++] = id;
            sample_list_add(&list, id);
        }
        sample_list_destroy(&list);
    }
}

/* A request that changes nothing costs nothing, and one that only waits for min_tokens nothing after that. */
static void test_sample_list_is_empty_where_nothing_changes(void **state)
{
    (void)state;
    static const int32_t tokens[] = {1, 2, 3}, stops[] = {7, 7};
    struct sample_list_request r = {.n_vocab = N_VOCAB,
                                    .repetition = 1.0f,
                                    .tokens = tokens,
                                    .n_prompt = 2,
                                    .n_tokens = 3,
                                    .max_generated = 9};
    struct sample_list list;
    struct sample_token got[N_VOCAB];
    assert_status_ok(sample_list_init(&list, &r));
    assert_int_equal(list.max, 0);
    sample_list_add(&list, 5);
    assert_int_equal(sample_list_write(&list, SAMPLE_LIST_HELD, got), 0);
    sample_list_destroy(&list);
    r.held[0] = stops;
    r.n_held[0] = 2;
    assert_status_ok(sample_list_init(&list, &r));
    assert_int_equal(list.max, 1);
    assert_int_equal(sample_list_write(&list, SAMPLE_LIST_FREE, got), 0);
    assert_int_equal(sample_list_write(&list, SAMPLE_LIST_HELD, got), 1);
    assert_int_equal(got[0].id, 7);
    sample_list_destroy(&list);
}

/* 8192 tokens of a vocabulary of 128k, every step of the completion: what valgrind --tool=callgrind counts. */
static void test_sample_list_keeps_up_with_long_sequences(void **state)
{
    (void)state;

    enum { LONG = 8192, VOCAB = 128256, STEPS = 200 };

    int32_t *tokens = calloc(LONG + STEPS, sizeof *tokens);
    struct sample_token *got = calloc(VOCAB, sizeof *got);
    int32_t *count = calloc(VOCAB, sizeof *count);
    assert_true(tokens != NULL && got != NULL && count != NULL);
    for (int32_t i = 0; i < LONG; i++) {
        const double x = test_random_double(0.0, 1.0);
        tokens[i] = (int32_t)(x * x * x * x * VOCAB); // few are many, as in texts
    }
    const struct sample_list_request r = {.n_vocab = VOCAB,
                                          .repetition = 1.1f,
                                          .frequency = 0.2f,
                                          .tokens = tokens,
                                          .n_prompt = LONG,
                                          .n_tokens = LONG,
                                          .max_generated = STEPS};
    struct sample_list list;
    assert_status_ok(sample_list_init(&list, &r));
    for (int32_t step = 0; step < STEPS; step++) {
        const int32_t id = (int32_t)test_random_below(300) * 7;
        count[id]++;
        sample_list_add(&list, id);
        const int32_t n = sample_list_write(&list, SAMPLE_LIST_FREE, got);
        assert_true(n <= list.max && n > 1000);
    }
    for (int32_t i = 0; i < list.n; i++) {
        assert_int_equal(got[i].n_generated, count[got[i].id]);
    }
    sample_list_destroy(&list);
    free(tokens);
    free(got);
    free(count);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sample_list_says_what_the_tokens_say),
        cmocka_unit_test(test_sample_list_is_empty_where_nothing_changes),
        cmocka_unit_test(test_sample_list_keeps_up_with_long_sequences),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

#include "tests/support/test.h"

#include <stdlib.h>
#include <string.h>

#include "coordinator/tokenizer/tokenizer_parts.h"
#include "tests/coordinator/tokenizer/tokenizer_fixture.h"

#define MAX_TOKENS 48
#define MAX_MERGES 160
#define MAX_LENGTH 9
#define N_LETTERS  3

/* A random list of merges over the letters a, b, c, in an order that no training would give. */
struct model {
    char tokens[MAX_TOKENS][MAX_LENGTH + 1];
    size_t n_tokens;
    int merges[MAX_MERGES][3]; /* left, right, result */
    size_t n_merges;
    int rank[MAX_TOKENS][MAX_TOKENS]; /* -1: no merge */
};

static int find_token(struct model *model, const char *text)
{
    for (size_t i = 0; i < model->n_tokens; i++) {
        if (strcmp(model->tokens[i], text) == 0) {
            return (int)i;
        }
    }
    if (model->n_tokens == MAX_TOKENS) {
        return -1;
    }
    snprintf(model->tokens[model->n_tokens], MAX_LENGTH + 1, "%s", text);
    return (int)model->n_tokens++;
}

static void add_random_merge(struct model *model)
{
    const size_t left = test_random_below(model->n_tokens);
    const size_t right = test_random_below(model->n_tokens);
    char joined[2 * MAX_LENGTH + 1];
    snprintf(joined, sizeof joined, "%s%s", model->tokens[left], model->tokens[right]);
    if (strlen(joined) > MAX_LENGTH || model->rank[left][right] >= 0) {
        return;
    }
    const int result = find_token(model, joined);
    if (result >= 0) {
        model->rank[left][right] = 0;
        memcpy(model->merges[model->n_merges++], (int[]){(int)left, (int)right, result},
               3 * sizeof(int));
    }
}

static void random_model(struct model *model)
{
    memset(model, 0, sizeof *model);
    memset(model->rank, -1, sizeof model->rank);
    for (int i = 0; i < N_LETTERS; i++) {
        model->tokens[model->n_tokens++][0] = (char)('a' + i);
    }
    const uint64_t tries = 1 + test_random_below(MAX_MERGES);
    for (uint64_t i = 0; i < tries; i++) {
        add_random_merge(model);
    }
    for (size_t i = model->n_merges; i > 1; i--) {
        int swap[3];
        const size_t k = test_random_below(i);
        memcpy(swap, model->merges[k], sizeof swap);
        memcpy(model->merges[k], model->merges[i - 1], sizeof swap);
        memcpy(model->merges[i - 1], swap, sizeof swap);
    }
    for (size_t i = 0; i < model->n_merges; i++) {
        model->rank[model->merges[i][0]][model->merges[i][1]] = (int)i;
    }
}

static struct tokenizer *build(const struct model *model)
{
    char json[16 * 1024];
    size_t at = (size_t)snprintf(json, sizeof json, "{\"vocab\": {");
    for (size_t i = 0; i < model->n_tokens; i++) {
        at += (size_t)snprintf(json + at, sizeof json - at, "%s\"%s\": %zu", i > 0 ? ", " : "",
                               model->tokens[i], i);
    }
    at += (size_t)snprintf(json + at, sizeof json - at, "}, \"merges\": [");
    for (size_t i = 0; i < model->n_merges; i++) {
        at += (size_t)snprintf(json + at, sizeof json - at, "%s\"%s %s\"", i > 0 ? ", " : "",
                               model->tokens[model->merges[i][0]],
                               model->tokens[model->merges[i][1]]);
    }
    at += (size_t)snprintf(json + at, sizeof json - at, "]}");
    assert_true(at < sizeof json);
    return fixture_parse(&(const struct fixture_parts){.model = json});
}

/* The definition: again and again the lowest rank, leftmost first. */
static size_t merge_slowly(const struct model *model, int32_t *ids, size_t n)
{
    for (;;) {
        size_t best = n;
        for (size_t i = 0; i + 1 < n; i++) {
            const int rank = model->rank[ids[i]][ids[i + 1]];
            if (rank >= 0 && (best == n || rank < model->rank[ids[best]][ids[best + 1]])) {
                best = i;
            }
        }
        if (best == n) {
            return n;
        }
        ids[best] = model->merges[model->rank[ids[best]][ids[best + 1]]][2];
        memmove(ids + best + 1, ids + best + 2, (n - best - 2) * sizeof *ids);
        n--;
    }
}

static void random_word(char *word, size_t size)
{
    // Runs of one letter are where the order from the left matters.
    char letter = 'a';
    for (size_t i = 0; i < size; i++) {
        if (test_random_below(3) == 0) {
            letter = "abc"[test_random_below(N_LETTERS)];
        }
        word[i] = letter;
    }
}

static void compare(const struct model *model, const struct tokenizer *tokenizer, size_t size)
{
    char *word = test_malloc(size + 1);
    int32_t *want = test_malloc((size + 1) * sizeof *want);
    random_word(word, size);
    for (size_t i = 0; i < size; i++) {
        want[i] = word[i] - 'a';
    }
    const size_t n = merge_slowly(model, want, size);
    struct token_list got = {0};
    assert_status_ok(tokenizer_encode(tokenizer, word, size, 0, &got));
    if (got.n != n || (n > 0 && memcmp(got.ids, want, n * sizeof *want) != 0)) {
        fail_msg("a word of %zu letters: %zu tokens, want %zu", size, got.n, n);
    }
    token_list_destroy(&got);
    test_free(want);
    test_free(word);
}

static void test_bpe_agrees_with_its_definition(void **state)
{
    (void)state;
    for (int i = 0; i < 300; i++) {
        struct model model;
        random_model(&model);
        struct tokenizer *tokenizer = build(&model);
        for (int k = 0; k < 10; k++) {
            compare(&model, tokenizer, test_random_below(40)); // around the limit of short words
        }
        compare(&model, tokenizer, 40 + test_random_below(400));
        tokenizer_free(tokenizer);
    }
}

/* Words that are too long for the heap alone. */
static void test_bpe_agrees_with_its_definition_on_long_words(void **state)
{
    (void)state;
    for (int i = 0; i < 60; i++) {
        struct model model;
        random_model(&model);
        struct tokenizer *tokenizer = build(&model);
        compare(&model, tokenizer, 2040 + test_random_below(20));
        tokenizer_free(tokenizer);
    }
}

/* A merge that makes a pair of a lower rank than its own: that one goes first, though the sweep has passed it. */
static void test_bpe_late_pairs_go_first(void **state)
{
    (void)state;
    const struct fixture_parts parts = {
        .model = "{\"vocab\": {\"a\": 0, \"b\": 1, \"ab\": 2, \"aba\": 3},"
                 " \"merges\": [\"ab a\", \"a b\"]}"};
    struct tokenizer *tokenizer = fixture_parse(&parts);
    static char word[10000];
    for (size_t i = 0; i < sizeof word; i++) {
        word[i] = i % 2 == 0 ? 'a' : 'b';
    }
    for (size_t size = 4; size <= sizeof word; size = size < 100 ? size + 4 : size * 10) {
        struct token_list list = {0};
        size -= size % 4;
        assert_status_ok(tokenizer_encode(tokenizer, word, size, 0, &list));
        assert_int_equal(list.n, size / 2);
        for (size_t i = 0; i < list.n; i++) {
            assert_int_equal(list.ids[i], i % 2 == 0 ? 3 : 1);
        }
        token_list_destroy(&list);
    }
    tokenizer_free(tokenizer);
}

/* A long word costs a fixed number of steps a symbol, whatever merges there are. */
static void test_bpe_takes_linear_steps(void **state)
{
    (void)state;

    const size_t size = 20000;

    char *word = test_malloc(size);
    for (int i = 0; i < 60; i++) {
        struct model model;
        struct bpe_scratch scratch = {0};
        struct token_list out = {0};
        random_model(&model);
        struct tokenizer *tokenizer = build(&model);
        if (i % 2 == 0) {
            random_word(word, size);
        } else {
            memset(word, 'a', size);
        }
        assert_status_ok(bpe_encode(&tokenizer->bpe, &scratch, (const uint8_t *)word, size, &out));
        // Every symbol has a pair, and every merge makes two.
        assert_true(scratch.queue.n_pushed <= 3 * size);
        assert_true(scratch.queue.n_sorted <= size);
        token_list_destroy(&out);
        bpe_scratch_destroy(&scratch);
        tokenizer_free(tokenizer);
    }
    test_free(word);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bpe_takes_linear_steps),
        cmocka_unit_test(test_bpe_agrees_with_its_definition),
        cmocka_unit_test(test_bpe_agrees_with_its_definition_on_long_words),
        cmocka_unit_test(test_bpe_late_pairs_go_first),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

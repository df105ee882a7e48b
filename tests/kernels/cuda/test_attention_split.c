#include "kernels/cuda/attention_split.h"

#include <stdlib.h>
#include <string.h>

#include "tests/support/test.h"

/* Random limits, random steps within them, and what must hold of every split. No device. */

static int32_t below(int32_t n)
{
    return (int32_t)test_random_below((uint64_t)n);
}

static int32_t one_of(const int32_t *values, size_t n)
{
    return values[test_random_below(n)];
}

#define ONE_OF(...) \
    one_of((const int32_t[]){__VA_ARGS__}, sizeof((const int32_t[]){__VA_ARGS__}) / sizeof(int32_t))

static struct cuda_attention_split_options random_options(void)
{
    const int32_t group = ONE_OF(1, 2, 3, 4, 7, 8, 16, 32, 40, 71);
    const int32_t grids[2] = {1 + below(400), 1 + below(300)};
    return (struct cuda_attention_split_options){
        .shape =
            {
                .group = group,
                .window = ONE_OF(0, 0, 1, 17, 64, 500),
                .max_seqs = 1 + below(60),
                .max_rows = 60 + below(600),
                .max_kv_heads = 1 + below(8),
                .max_tokens = 700 + below(20000),
                .batch_invariant = below(4) == 0,
            },
        .kinds =
            {
                [CUDA_ATTENTION_DECODE] = {.rows = group > 32   ? 0
                                                   : group > 16 ? 32
                                                                : 16,
                                           .grid = grids[0],
                                           .overhead = below(20),
                                           .merge = below(10),
                                           .max_split_units = grids[0] * (1 + below(2))},
                [CUDA_ATTENTION_PREFILL] = {.rows = CUDA_ATTENTION_PREFILL_ROWS,
                                            .grid = grids[1],
                                            .overhead = below(20),
                                            .merge = below(10),
                                            .max_split_units = grids[1]},
            },
    };
}

/* Mostly decode, some prompts, some with nothing to do; at most what the limits allow. */
static int32_t random_step(const struct attention_shape *s, struct attention_seq *seqs)
{
    const int32_t n = below(s->max_seqs + 1);
    const int32_t longest = 1 + below(s->max_tokens);
    int32_t rows_left = s->max_rows;
    for (int32_t i = 0; i < n; i++) {
        const int32_t kv_tokens = 1 + below(below(4) == 0 ? s->max_tokens : longest);
        int32_t n_queries = below(10) == 0 ? 1 + below(kv_tokens) : below(5) > 0;
        n_queries = n_queries < rows_left ? n_queries : rows_left;
        rows_left -= n_queries;
        seqs[i] = (struct attention_seq){
            .n_queries = n_queries,
            .kv_tokens = kv_tokens,
            .n_kv_heads = below(s->max_kv_heads + 1),
        };
    }
    return n;
}

struct run {
    struct cuda_attention_split_options options;
    struct cuda_attention_split *split;
    struct cuda_attention_split_maxima maxima;
    struct cuda_attention_unit *units;
    struct cuda_attention_work work;
};

static struct run run_new(const struct cuda_attention_split_options *options)
{
    struct run run = {.options = *options};
    assert_status_ok(cuda_attention_split_new(options, &run.split));
    run.maxima = cuda_attention_split_maxima(run.split);
    run.units = calloc((size_t)run.maxima.n_units, sizeof *run.units);
    assert_non_null(run.units);
    return run;
}

static void run_free(struct run *run)
{
    cuda_attention_split_free(run->split);
    free(run->units);
}

static int32_t n_units(const struct run *run)
{
    return run->work.n_units[0] + run->work.n_units[1];
}

// ---- what must hold ----

/* First key that the row of a sequence sees. */
static int32_t first_seen(const struct attention_shape *s, const struct attention_seq *seq,
                          int32_t row)
{
    const int32_t position = seq->kv_tokens - seq->n_queries + row / s->group;
    return s->window > 0 && position >= s->window ? position - s->window + 1 : 0;
}

static void check_unit(const struct run *run, const struct attention_seq *seqs,
                       const struct cuda_attention_unit *unit, int kind)
{
    const struct attention_seq *seq = &seqs[unit->seq];
    const struct cuda_attention_kind_options *k = &run->options.kinds[kind];
    const int32_t n_rows = seq->n_queries * run->options.shape.group;
    assert_in_range(unit->head, 0, seq->n_kv_heads - 1);
    assert_in_range(unit->n_rows, 1, k->rows);
    assert_true(unit->row >= 0 && unit->row + unit->n_rows <= n_rows);
    assert_int_equal(unit->key_begin % CUDA_ATTENTION_PAGE, 0);
    assert_true(unit->key_begin < unit->key_end && unit->key_end <= seq->kv_tokens);
    assert_in_range(unit->split, 0, unit->n_splits - 1);
    assert_int_equal(kind == CUDA_ATTENTION_DECODE,
                     n_rows <= run->options.kinds[CUDA_ATTENTION_DECODE].rows);
    if (unit->n_splits > 1) {
        assert_true(unit->partial >= 0 &&
                    unit->partial + unit->n_splits * unit->n_rows <= run->maxima.n_partial_rows);
        assert_in_range(unit->counter, 0, run->maxima.n_counters - 1);
    }
}

/* By sequence, head, row, split. */
static int compare_units(const void *a, const void *b)
{
    const struct cuda_attention_unit *x = a, *y = b;
    const int32_t keys[4][2] = {
        {x->seq, y->seq}, {x->head, y->head}, {x->row, y->row}, {x->split, y->split}};
    for (int i = 0; i < 4; i++) {
        if (keys[i][0] != keys[i][1]) {
            return keys[i][0] < keys[i][1] ? -1 : 1;
        }
    }
    return 0;
}

/* The parts of one split, sorted, cover what their rows see, end to end, and share their places. Returns how many. */
static int32_t check_parts(const struct run *run, const struct attention_seq *seqs,
                           const struct cuda_attention_unit *parts)
{
    const struct attention_shape *s = &run->options.shape;
    const struct attention_seq *seq = &seqs[parts->seq];
    const int32_t last = parts->row + parts->n_rows - 1;
    const int32_t first = first_seen(s, seq, parts->row);
    assert_true(parts->key_begin <= first && first < parts->key_begin + CUDA_ATTENTION_PAGE);
    for (int32_t i = 0; i < parts->n_splits; i++) {
        const struct cuda_attention_unit *part = &parts[i];
        assert_int_equal(part->split, i);
        assert_int_equal(part->n_splits, parts->n_splits);
        assert_int_equal(part->n_rows, parts->n_rows);
        assert_int_equal(part->partial, parts->partial);
        assert_int_equal(part->counter, parts->counter);
        assert_int_equal(compare_units(part, &parts[0]) > 0, i > 0);
        if (i > 0) {
            assert_int_equal(part->key_begin, part[-1].key_end);
            assert_int_equal((part->key_begin - parts->key_begin) % CUDA_ATTENTION_TILE, 0);
        }
    }
    assert_int_equal(parts[parts->n_splits - 1].key_end,
                     seq->kv_tokens - seq->n_queries + last / s->group + 1);
    return parts->n_splits;
}

/* Every row of every head once. Sorts the units. */
static void check_cover(struct run *run, const struct attention_seq *seqs, int32_t n_seqs)
{
    const int32_t n = n_units(run);
    qsort(run->units, (size_t)n, sizeof *run->units, compare_units);
    int32_t at = 0;
    for (int32_t i = 0; i < n_seqs; i++) {
        const int32_t n_rows = seqs[i].n_queries * run->options.shape.group;
        for (int32_t head = 0; head < seqs[i].n_kv_heads; head++) {
            for (int32_t row = 0; row < n_rows;) {
                assert_true(at < n);
                const struct cuda_attention_unit *unit = &run->units[at];
                assert_int_equal(unit->seq, i);
                assert_int_equal(unit->head, head);
                assert_int_equal(unit->row, row);
                row += unit->n_rows;
                at += check_parts(run, seqs, unit);
            }
        }
    }
    assert_int_equal(at, n);
}

/* No two splits share a counter or a row of the partial results. */
static void check_places(const struct run *run)
{
    char *rows = calloc((size_t)run->maxima.n_partial_rows + 1, 1);
    char *counters = calloc((size_t)run->maxima.n_counters + 1, 1);
    if (rows == NULL || counters == NULL) {
        fail_msg("out of memory");
        abort(); // not reached, which cmocka does not say
    }
    for (int32_t i = 0; i < n_units(run); i++) {
        const struct cuda_attention_unit *unit = &run->units[i];
        if (unit->n_splits == 1) {
            continue;
        }
        assert_int_equal(counters[unit->counter], unit->split > 0); // sorted: part 0 comes first
        counters[unit->counter] = 1;
        for (int32_t row = 0; row < unit->n_rows; row++) {
            const int32_t place = unit->partial + unit->split * unit->n_rows + row;
            assert_int_equal(rows[place], 0);
            rows[place] = 1;
        }
    }
    free(rows);
    free(counters);
}

static int32_t tiles_of(const struct cuda_attention_unit *unit)
{
    return (unit->key_end - unit->key_begin + CUDA_ATTENTION_TILE - 1) / CUDA_ATTENTION_TILE;
}

static void check_order(const struct run *run)
{
    assert_int_equal(run->work.first_unit[0], 0);
    assert_int_equal(run->work.first_unit[1], run->work.n_units[0]);
    for (int kind = 0; kind < CUDA_ATTENTION_KINDS; kind++) {
        const struct cuda_attention_unit *units = run->units + run->work.first_unit[kind];
        for (int32_t i = 1; i < run->work.n_units[kind]; i++) {
            assert_true(tiles_of(&units[i]) <= tiles_of(&units[i - 1]));
        }
    }
}

static void check_run(struct run *run, const struct attention_seq *seqs, int32_t n_seqs)
{
    assert_true(n_units(run) <= run->maxima.n_units);
    for (int kind = 0; kind < CUDA_ATTENTION_KINDS; kind++) {
        for (int32_t i = 0; i < run->work.n_units[kind]; i++) {
            check_unit(run, seqs, &run->units[run->work.first_unit[kind] + i], kind);
        }
    }
    check_order(run);
    check_cover(run, seqs, n_seqs);
    check_places(run);
}

static void test_attention_split_covers_each_row_and_key_once(void **state)
{
    (void)state;
    struct attention_seq seqs[60];
    int n_split = 0;
    for (int i = 0; i < 400; i++) {
        const struct cuda_attention_split_options options = random_options();
        struct run run = run_new(&options);
        for (int step = 0; step < 8; step++) {
            const int32_t n_seqs = random_step(&options.shape, seqs);
            assert_status_ok(
                cuda_attention_split_run(run.split, seqs, n_seqs, run.units, &run.work));
            check_run(&run, seqs, n_seqs);
            for (int32_t k = 0; k < n_units(&run); k++) {
                n_split += run.units[k].n_splits > 1;
                assert_true(run.units[k].n_splits == 1 || !options.shape.batch_invariant);
            }
        }
        run_free(&run);
    }
    assert_true(n_split > 1000); // or the test shows nothing
}

// ---- balance ----

static struct cuda_attention_split_options a100(int32_t group, int32_t max_kv_heads)
{
    return (struct cuda_attention_split_options){
        .shape = {.group = group,
                  .max_seqs = 1024,
                  .max_rows = 8192,
                  .max_kv_heads = max_kv_heads,
                  .max_tokens = 1 << 17},
        .kinds = {[CUDA_ATTENTION_DECODE] =
                      {.rows = 16, .grid = 216, .overhead = 8, .merge = 1, .max_split_units = 864},
                  [CUDA_ATTENTION_PREFILL] = {.rows = 128,
                                              .grid = 216,
                                              .overhead = 12,
                                              .merge = 8,
                                              .max_split_units = 216}},
    };
}

/* Tiles of the busiest block over tiles of the average one, as the kernels hand out units. */
static double imbalance(const struct run *run, int kind)
{
    const int32_t grid = run->options.kinds[kind].grid;
    const struct cuda_attention_unit *units = run->units + run->work.first_unit[kind];
    int64_t total = 0, most = 0;
    for (int32_t block = 0; block < grid; block++) {
        int64_t sum = 0;
        for (int32_t round = 0; round * grid < run->work.n_units[kind]; round++) {
            const int32_t index = round * grid + (round % 2 == 0 ? block : grid - 1 - block);
            sum += index < run->work.n_units[kind] ? tiles_of(&units[index]) : 0;
        }
        total += sum;
        most = sum > most ? sum : most;
    }
    return (double)most * grid / (double)total;
}

static double imbalance_of(struct run *run, const struct attention_seq *seqs, int32_t n_seqs,
                           int kind)
{
    assert_status_ok(cuda_attention_split_run(run->split, seqs, n_seqs, run->units, &run->work));
    return imbalance(run, kind);
}

static void test_attention_split_balances_decode(void **state)
{
    (void)state;
    // Sequences, tokens, KV heads, and the imbalance allowed in hundredths: a sequence alone is not worth more merging.
    static const int32_t batches[][4] = {
        {1, 8192, 1, 800},    {1, 32768, 4, 200},  {16, 2048, 1, 130},  {64, 2048, 1, 130},
        {64, 2048, 4, 130},   {217, 2048, 1, 140}, {256, 512, 1, 170},  {256, 8192, 2, 130},
        {1024, 1024, 1, 120}, {1000, 768, 4, 110}, {216, 1000, 1, 101},
    };
    static struct attention_seq seqs[1024];
    const struct cuda_attention_split_options options = a100(16, 4);
    struct run run = run_new(&options);
    for (size_t i = 0; i < sizeof batches / sizeof batches[0]; i++) {
        for (int32_t k = 0; k < batches[i][0]; k++) {
            seqs[k] = (struct attention_seq){
                .n_queries = 1, .kv_tokens = batches[i][1], .n_kv_heads = batches[i][2]};
        }
        const double found = imbalance_of(&run, seqs, batches[i][0], CUDA_ATTENTION_DECODE);
        if (100.0 * found > batches[i][3]) {
            fail_msg("%d sequences of %d tokens with %d heads: imbalance %.2f", batches[i][0],
                     batches[i][1], batches[i][2], found);
        }
    }
    run_free(&run);
}

/* One sequence as long as all the others together is cut, and the others are not. */
static void test_attention_split_cuts_the_long_one_among_short_ones(void **state)
{
    (void)state;
    static struct attention_seq seqs[1001];
    const struct cuda_attention_split_options options = a100(16, 1);
    struct run run = run_new(&options);
    for (int32_t i = 0; i < 1001; i++) {
        seqs[i] = (struct attention_seq){
            .n_queries = 1, .kv_tokens = i == 500 ? 100000 : 100, .n_kv_heads = 1};
    }
    assert_true(imbalance_of(&run, seqs, 1001, CUDA_ATTENTION_DECODE) < 1.8); // 31 uncut
    for (int32_t i = 0; i < n_units(&run); i++) {
        assert_int_equal(run.units[i].n_splits > 1, run.units[i].seq == 500);
    }
    run_free(&run);
}

static void test_attention_split_spreads_prompts(void **state)
{
    (void)state;
    const struct cuda_attention_split_options options = a100(32, 4);
    struct run run = run_new(&options);
    // A prompt alone; a short chunk far behind a long prefix, which has too few tiles of rows for the blocks.
    const struct attention_seq prompt = {.n_queries = 2048, .kv_tokens = 2048, .n_kv_heads = 1};
    const struct attention_seq chunk = {.n_queries = 64, .kv_tokens = 65536, .n_kv_heads = 1};
    assert_true(imbalance_of(&run, &prompt, 1, CUDA_ATTENTION_PREFILL) < 1.25);
    assert_true(imbalance_of(&run, &chunk, 1, CUDA_ATTENTION_PREFILL) < 1.25);
    assert_true(run.units[0].n_splits > 4);
    run_free(&run);
}

// ---- limits ----

static void test_attention_split_refuses_more_than_its_limits(void **state)
{
    (void)state;
    struct cuda_attention_split_options options = a100(8, 2);
    struct run run = run_new(&options);
    struct attention_seq seqs[2] = {{.n_queries = 2, .kv_tokens = 1, .n_kv_heads = 1}};
    struct cuda_attention_split *const s = run.split;
    assert_status_says(cuda_attention_split_run(s, seqs, 1, run.units, &run.work),
                       STATUS_INVALID_ARGUMENT, "2 queries, 1 tokens");
    seqs[0] = (struct attention_seq){.n_queries = 1, .kv_tokens = 1, .n_kv_heads = 3};
    assert_status_says(cuda_attention_split_run(s, seqs, 1, run.units, &run.work),
                       STATUS_INVALID_ARGUMENT, "3 heads (at most 2)");
    seqs[0] = (struct attention_seq){.n_queries = 1, .kv_tokens = (1 << 17) + 1, .n_kv_heads = 1};
    assert_status_says(cuda_attention_split_run(s, seqs, 1, run.units, &run.work),
                       STATUS_INVALID_ARGUMENT, "131073 tokens");
    seqs[0] = (struct attention_seq){.n_queries = 5000, .kv_tokens = 5000, .n_kv_heads = 1};
    seqs[1] = seqs[0];
    assert_status_says(cuda_attention_split_run(s, seqs, 2, run.units, &run.work),
                       STATUS_INVALID_ARGUMENT, "10000 rows");
    assert_status_says(cuda_attention_split_run(s, seqs, 1025, run.units, &run.work),
                       STATUS_INVALID_ARGUMENT, "1025 sequences");
    run_free(&run);

    struct cuda_attention_split *none = NULL;
    options.shape.max_rows = 0;
    assert_status_says(cuda_attention_split_new(&options, &none), STATUS_INVALID_ARGUMENT,
                       "0 rows");
    options.shape.max_rows = INT32_MAX / 2;
    assert_status_says(cuda_attention_split_new(&options, &none), STATUS_INVALID_ARGUMENT,
                       "too many");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_attention_split_covers_each_row_and_key_once),
        cmocka_unit_test(test_attention_split_balances_decode),
        cmocka_unit_test(test_attention_split_cuts_the_long_one_among_short_ones),
        cmocka_unit_test(test_attention_split_spreads_prompts),
        cmocka_unit_test(test_attention_split_refuses_more_than_its_limits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

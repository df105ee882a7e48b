/*
 * sample.c - one token from one row of logits
 *
 * What:     banned ids leave; e^((logit - max) / temperature) are the weights w, the largest of which is exactly 1; min_p
 *           keeps w >= min_p; top_k keeps the k largest of those; top_p keeps the smallest number of the largest of those whose
 *           weights reach top_p of theirs together. Equal logits rank by ascending id, everywhere. The draw
 *           takes u in [0, 1) from Philox and walks the kept ids in ascending order until their weights pass u of
 *           the kept whole.
 * Mapping:  a task is a row. No sort: what is kept is always "every logit above a cut, and of those equal to it the ids up
 *           to one", and the cut is found digit by digit (11, 11 and 10 bits of the logit as an ordered
 *           integer) from histograms of counts or weights.
 * Numerics: weights are float32, all sums of them double, in ascending order of ids: the same row gives the same token on
 *           any number of threads.
 * Cost:     up to eight passes over the row; those that only look for a digit skip most of it.
 * Source:   Holtzman et al. 2020, arXiv:1904.09751 (top-p); Nguyen et al. 2024, arXiv:2407.01082 (min-p).
 */
#include <math.h>
#include <string.h>

#include "base/philox.h"
#include "kernels/cpu/convert.h"
#include "kernels/cpu/cpu.h"

enum { BLOCK = 64 }; /* ids looked at together: a word of the banned set */

/* A row without its banned ids. */
struct view {
    const float *logits;
    int32_t n_vocab;
    const uint64_t *banned; /* one bit an id; NULL: none */
};

/* What is kept: keys above `key`, and those equal to it up to id last_id. */
struct cut {
    uint32_t key;
    int32_t last_id;
};

/* A float as an integer of the same order; -0 as 0. */
static uint32_t order_key(float x)
{
    const uint32_t bits = f32_bits(x + 0.0f);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

static bool is_kept(const struct cut *cut, uint32_t key, int32_t id)
{
    return key > cut->key || (key == cut->key && id <= cut->last_id);
}

static int32_t block_size(const struct view *view, int32_t first)
{
    return view->n_vocab - first < BLOCK ? view->n_vocab - first : BLOCK;
}

/* The logits of ids first .. first + block_size - 1, -inf where banned; in place or in buffer. */
static const float *block_logits(const struct view *view, int32_t first, float buffer[BLOCK])
{
    const float *const logits = view->logits + first;
    const uint64_t banned = view->banned != NULL ? view->banned[first / BLOCK] : 0;
    if (banned == 0) {
        return logits;
    }
    for (int32_t i = 0; i < block_size(view, first); i++) {
        buffer[i] = banned >> i & 1u ? -INFINITY : logits[i];
    }
    return buffer;
}

// ---- the row as it is ----

/* Largest element and its lowest id. */
static int32_t find_largest(const struct view *view, float *largest_out)
{
    float buffer[BLOCK] = {0};
    float largest = -INFINITY;
    int32_t id = -1;
    for (int32_t first = 0; first < view->n_vocab; first += BLOCK) {
        const float *logits = block_logits(view, first, buffer);
        for (int32_t i = 0; i < block_size(view, first); i++) {
            if (logits[i] > largest) {
                largest = logits[i];
                id = first + i;
            }
        }
    }
    *largest_out = largest;
    return id;
}

/* Neither NaN nor +inf, of which no softmax can be taken. */
static bool is_usable(const float *logits, int32_t n)
{
    int32_t n_bad = 0;
    for (int32_t i = 0; i < n; i++) {
        n_bad += !(logits[i] < INFINITY);
    }
    return n_bad == 0;
}

/* log of the sum of e^logit, in double. */
static double log_sum_exp(const struct cpu_isa *isa, const struct view *view, float largest)
{
    float weights[BLOCK];
    double sum = 0.0;
    for (int32_t first = 0; first < view->n_vocab; first += BLOCK) {
        const int32_t n = block_size(view, first);
        isa->exp_scaled(view->logits + first, largest, 1.0f, n, weights);
        for (int32_t i = 0; i < n; i++) {
            sum += (double)weights[i];
        }
    }
    return (double)largest + log(sum);
}

/* 1 + how many come before id. */
static int32_t rank_of(const struct view *view, int32_t id)
{
    const float *const logits = view->logits;
    const float mine = logits[id];
    int32_t n_before = 0;
    for (int32_t i = 0; i < view->n_vocab; i++) {
        n_before += logits[i] > mine;
    }
    for (int32_t i = 0; i < id; i++) {
        n_before += logits[i] == mine;
    }
    return 1 + n_before;
}

/* The n_top most likely of the raw row, by insertion: most ids fail the first comparison. */
static void find_top(const struct view *view, int32_t n_top, double log_sum,
                     struct sample_result *result)
{
    int32_t n = 0;
    const float *const logits = view->logits;
    for (int32_t id = 0; n_top > 0 && id < view->n_vocab; id++) {
        if (n == n_top && logits[id] <= logits[result->top_ids[n - 1]]) {
            continue;
        }
        int32_t at = n < n_top ? n++ : n - 1;
        for (; at > 0 && logits[id] > logits[result->top_ids[at - 1]]; at--) {
            result->top_ids[at] = result->top_ids[at - 1];
        }
        result->top_ids[at] = id;
    }
    for (int32_t i = 0; i < n; i++) {
        result->top_logprobs[i] = (float)((double)logits[result->top_ids[i]] - log_sum);
    }
}

// ---- filters ----

/* What a selection adds up. */
enum measure { BY_COUNT, BY_WEIGHT };

struct selection {
    const struct cpu_isa *isa;
    const struct view *view;
    float largest, temperature;
    double *histogram; /* [2048] */
    struct cut cut;    /* kept so far; narrowed by each filter */
};

/* Weights of the kept ids of a block, 0 for the others, into weights; false when none is kept. */
static bool block_weights(const struct selection *s, int32_t first, enum measure measure,
                          uint32_t keys[BLOCK], float weights[BLOCK])
{
    float buffer[BLOCK] = {0};
    const float *const logits = block_logits(s->view, first, buffer);
    const int32_t n = block_size(s->view, first);
    int32_t n_kept = 0;
    for (int32_t i = 0; i < n; i++) {
        keys[i] = order_key(logits[i]);
        n_kept += is_kept(&s->cut, keys[i], first + i);
    }
    if (n_kept == 0) {
        return false;
    }
    if (measure == BY_WEIGHT) {
        s->isa->exp_scaled(logits, s->largest, s->temperature, n, weights);
    }
    for (int32_t i = 0; i < n; i++) {
        const float weight = measure == BY_WEIGHT ? weights[i] : 1.0f;
        weights[i] = is_kept(&s->cut, keys[i], first + i) ? weight : 0.0f;
    }
    return true;
}

static double total(const struct selection *s, enum measure measure)
{
    uint32_t keys[BLOCK] = {0};
    float weights[BLOCK] = {0};
    double sum = 0.0;
    for (int32_t first = 0; first < s->view->n_vocab; first += BLOCK) {
        if (block_weights(s, first, measure, keys, weights)) {
            for (int32_t i = 0; i < block_size(s->view, first); i++) {
                sum += (double)weights[i];
            }
        }
    }
    return sum;
}

/* One digit of a key: `bits` bits from `shift` up; the digits above it are already known. */
struct digit {
    int shift, bits;
};

/*
 * Adds up what is kept by this digit, among the keys that agree with `prefix` above it, and finds the digit at
 * which the sum from the top, begun at *above, reaches the goal. *above becomes the sum of the digits over it.
 */
static uint32_t find_digit(const struct selection *s, struct digit digit, uint32_t prefix,
                           enum measure measure, double goal, double *above)
{
    uint32_t keys[BLOCK] = {0};
    float weights[BLOCK] = {0};
    const uint32_t n_digits = 1u << digit.bits;
    memset(s->histogram, 0, n_digits * sizeof *s->histogram);
    for (int32_t first = 0; first < s->view->n_vocab; first += BLOCK) {
        if (!block_weights(s, first, measure, keys, weights)) {
            continue;
        }
        for (int32_t i = 0; i < block_size(s->view, first); i++) {
            const uint32_t upper = (uint32_t)((uint64_t)keys[i] >> (digit.shift + digit.bits));
            if (upper == prefix) {
                s->histogram[keys[i] >> digit.shift & (n_digits - 1)] += (double)weights[i];
            }
        }
    }
    // Should rounding keep the sum from the goal, the lowest digit that has anything is the answer.
    double sum = *above;
    uint32_t found = 0;
    for (uint32_t d = n_digits; d-- > 0;) {
        if (s->histogram[d] > 0.0) {
            found = d;
            *above = sum;
            sum += s->histogram[d];
            if (sum >= goal) {
                break;
            }
        }
    }
    return found;
}

/* The id of the n-th kept key equal to `key`, by ascending id. */
static int32_t nth_equal(const struct selection *s, uint32_t key, int32_t n)
{
    float buffer[BLOCK] = {0};
    int32_t last = -1;
    for (int32_t first = 0; first < s->view->n_vocab; first += BLOCK) {
        const float *const logits = block_logits(s->view, first, buffer);
        for (int32_t i = 0; i < block_size(s->view, first); i++) {
            if (order_key(logits[i]) == key && is_kept(&s->cut, key, first + i)) {
                last = first + i;
                if (--n == 0) {
                    return last;
                }
            }
        }
    }
    return last;
}

/* Narrows the cut to the smallest number of largest logits whose measures reach the goal together. */
static void keep_until(struct selection *s, enum measure measure, double goal)
{
    static const struct digit digits[] = {
        {.shift = 21, .bits = 11}, {.shift = 10, .bits = 11}, {.shift = 0, .bits = 10}};
    uint32_t key = 0;
    double above = 0.0;
    for (size_t i = 0; i < sizeof digits / sizeof digits[0]; i++) {
        key = key << digits[i].bits | find_digit(s, digits[i], key, measure, goal, &above);
    }
    // Equal logits have equal weights: take as many as the rest of the goal needs, one at least.
    double each = 1.0;
    if (measure == BY_WEIGHT) {
        const float logit = f32_from_bits(key & 0x80000000u ? key & 0x7FFFFFFFu : ~key);
        float weight = 0.0f;
        s->isa->exp_scaled(&logit, s->largest, s->temperature, 1, &weight);
        each = (double)weight;
    }
    int32_t n_equal = 1;
    while (above + n_equal * each < goal && n_equal < s->view->n_vocab) {
        n_equal++;
    }
    s->cut.last_id = nth_equal(s, key, n_equal);
    s->cut.key = key;
}

/* w >= min_p is logit >= max + temperature * log(min_p): the smallest float that is. */
static void keep_min_p(struct selection *s, float min_p)
{
    const double limit = (double)s->largest + (double)s->temperature * log((double)min_p);
    float lowest = (float)limit;
    if ((double)lowest < limit) {
        lowest = nextafterf(lowest, INFINITY);
    }
    s->cut.key = order_key(lowest);
}

// ---- the draw ----

static int32_t draw(const struct selection *s, const struct sample_row *row)
{
    const uint32_t counter[4] = {row->position, row->sample, 0, 0};
    const uint32_t key[2] = {(uint32_t)row->seed, (uint32_t)(row->seed >> 32)};
    uint32_t bits[4];
    philox_4x32(counter, key, bits);
    const double target = (double)philox_uniform(bits[0]) * total(s, BY_WEIGHT);

    // The sums of total, in its order: the last one is the whole and passes any target.
    uint32_t keys[BLOCK] = {0};
    float weights[BLOCK] = {0};
    double sum = 0.0;
    for (int32_t first = 0; first < s->view->n_vocab; first += BLOCK) {
        if (!block_weights(s, first, BY_WEIGHT, keys, weights)) {
            continue;
        }
        for (int32_t i = 0; i < block_size(s->view, first); i++) {
            sum += (double)weights[i];
            if (sum > target) {
                return first + i;
            }
        }
    }
    return -1; // not reached: the largest logit weighs 1
}

static int32_t choose(const struct cpu_isa *isa, const struct view *view,
                      const struct sample_row *row, double *histogram)
{
    float largest = 0.0f;
    const int32_t best = find_largest(view, &largest);
    if (best < 0 || row->temperature == 0.0f) {
        return best;
    }
    struct selection s = {
        .isa = isa,
        .view = view,
        .largest = largest,
        .temperature = row->temperature,
        .histogram = histogram,
        .cut = {.key = 0, .last_id = INT32_MAX},
    };
    if (row->min_p > 0.0f) {
        keep_min_p(&s, row->min_p);
    }
    if (row->top_k > 0 && row->top_k < view->n_vocab && total(&s, BY_COUNT) > (double)row->top_k) {
        keep_until(&s, BY_COUNT, (double)row->top_k);
    }
    if (row->top_p < 1.0f) {
        keep_until(&s, BY_WEIGHT, (double)row->top_p * total(&s, BY_WEIGHT));
    }
    return draw(&s, row);
}

// ---- rows ----

struct plan {
    const struct sample_args *args;
    const struct backend_stream *stream;
};

static void sample_row(const struct plan *plan, int64_t index, struct cpu_scratch *scratch)
{
    const struct sample_row *row = &plan->args->rows[index];
    struct sample_result *result = &plan->args->results[index];
    struct view view = {.logits = row->logits, .n_vocab = plan->args->n_vocab};
    *result = (struct sample_result){.id = -1, .nan = 1};

    float largest = 0.0f;
    if (!is_usable(view.logits, view.n_vocab) || find_largest(&view, &largest) < 0) {
        return;
    }
    if (row->n_banned > 0) {
        memset(scratch->banned, 0, ((size_t)view.n_vocab + 63) / 64 * sizeof scratch->banned[0]);
        for (int32_t i = 0; i < row->n_banned; i++) {
            scratch->banned[row->banned[i] / 64] |= UINT64_C(1) << row->banned[i] % 64;
        }
        view.banned = scratch->banned;
    }
    const int32_t id = choose(plan->stream->isa, &view, row, scratch->histogram);
    if (id < 0) {
        return; // everything finite is banned
    }
    const double log_sum = log_sum_exp(plan->stream->isa, &view, largest);
    result->nan = 0;
    result->id = id;
    result->logprob = (float)((double)row->logits[id] - log_sum);
    result->rank = rank_of(&view, id);
    find_top(&view, row->n_top, log_sum, result);
}

static void run_task(void *context, int64_t task, int thread)
{
    const struct plan *plan = context;
    sample_row(plan, task, &plan->stream->scratch[thread]);
}

static status_t check_row(const struct sample_row *row, int32_t index, int32_t n_vocab)
{
    const bool finite = row->temperature >= 0.0f && row->temperature < INFINITY;
    if (!finite || !(row->top_p > 0.0f && row->top_p <= 1.0f) || row->top_k < 0 ||
        !(row->min_p >= 0.0f && row->min_p < 1.0f)) {
        return status_errorf(
            STATUS_INVALID_ARGUMENT, "sample: row %d: temperature %g, top_k %d, top_p %g, min_p %g",
            index, (double)row->temperature, row->top_k, (double)row->top_p, (double)row->min_p);
    }
    if (row->n_top < 0 || row->n_top > SAMPLE_MAX_TOP || row->n_top > n_vocab ||
        row->n_banned < 0) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "sample: row %d: %d alternatives, %d banned ids", index, row->n_top,
                             row->n_banned);
    }
    for (int32_t i = 0; i < row->n_banned; i++) {
        if (row->banned[i] < 0 || row->banned[i] >= n_vocab) {
            return status_errorf(STATUS_INVALID_ARGUMENT,
                                 "sample: row %d: banned id %d, the vocabulary has %d", index,
                                 row->banned[i], n_vocab);
        }
    }
    return status_ok();
}

status_t cpu_sample(struct backend_stream *stream, const struct sample_args *a)
{
    if (a->n_rows < 0 || a->n_vocab < 1 || a->n_vocab > CPU_MAX_VOCAB) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "sample: %d rows of %d ids, at most %d",
                             a->n_rows, a->n_vocab, CPU_MAX_VOCAB);
    }
    for (int32_t i = 0; i < a->n_rows; i++) {
        TRY(check_row(&a->rows[i], i, a->n_vocab));
    }
    struct plan plan = {.args = a, .stream = stream};
    cpu_team_run(stream->n_threads, a->n_rows, run_task, &plan);
    return status_ok();
}

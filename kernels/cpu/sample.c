/*
 * sample.c - one token from one row of logits
 *
 * What:     a request's bias and penalties change logits; e^((logit - max) / temperature) are the weights w, the largest of
 *           which is exactly 1; min_p keeps w >= min_p; top_k keeps the k largest of those; top_p keeps the smallest
 *           number of the largest of those whose weights reach top_p of theirs together. Equal logits rank by ascending
 *           id, everywhere. The draw takes u in [0, 1) from Philox and walks the kept ids in ascending order until
 *           their weights pass u of the kept whole.
 * Mapping:  a task is a row. No sort: what is kept is always "every logit above a cut, and of those equal to it the ids up
 *           to one", and the cut is found digit by digit (11, 11 and 10 bits of the logit as an ordered
 *           integer) from histograms of counts or weights. Ids are looked at in blocks of 64, and blocks whose
 *           largest logit is under the cut are passed over; cheap bounds put the cut near its place first.
 * Numerics: weights are float32, all sums of them double, in an order fixed by the row alone: the same row gives the same
 *           token on any number of threads.
 * Cost:     three passes over the row for the greedy token and its logprob, two more for a draw from all of it, one more for
 *           top_p; what is left of the row after a cut is little.
 * Source:   Holtzman et al. 2020, arXiv:1904.09751 (top-p); Nguyen et al. 2024, arXiv:2407.01082 (min-p);
 *           Keskar et al. 2019, arXiv:1909.05858 (repetition penalty).
 */
#include <float.h>
#include <math.h>
#include <string.h>

#include "base/philox.h"
#include "kernels/cpu/convert.h"
#include "kernels/cpu/cpu.h"
#include "kernels/sample_check.h"

enum { BLOCK = CPU_SAMPLE_BLOCK };

struct view {
    const float *logits;
    int32_t n_vocab;
    const float *maxima; /* the largest logit of each block; NULL: not known */
};

/* What is kept: logits above `logit`, and those equal to it up to id last_id. */
struct cut {
    float logit;
    int32_t last_id;
};

/* No branches: loops over it become vectors. */
static int is_kept(struct cut cut, float logit, int32_t id)
{
    return (logit > cut.logit) | ((logit == cut.logit) & (id <= cut.last_id));
}

/* A float as an integer of the same order; -0 as 0. */
static uint32_t order_key(float x)
{
    const uint32_t bits = f32_bits(x + 0.0f);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

static float float_of_key(uint32_t key)
{
    return f32_from_bits(key & 0x80000000u ? key & 0x7FFFFFFFu : ~key);
}

static int32_t block_size(const struct view *view, int32_t first)
{
    return view->n_vocab - first < BLOCK ? view->n_vocab - first : BLOCK;
}

// ---- the row as it is ----

/* Largest element and its lowest id. */
static int32_t find_largest(const struct view *view, float *largest_out)
{
    float largest = -INFINITY;
    int32_t best = -1;
    for (int32_t first = 0; first < view->n_vocab; first += BLOCK) {
        if (view->maxima[first / BLOCK] > largest) {
            largest = view->maxima[first / BLOCK];
            best = first;
        }
    }
    *largest_out = largest;
    if (best < 0) {
        return -1;
    }
    const float *const logits = view->logits + best;
    for (int32_t i = 0; i < block_size(view, best); i++) {
        if (logits[i] == largest) {
            return best + i;
        }
    }
    return -1; // not reached
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

/* In four chains: one addition would wait for the one before. */
static double sum_block(const float weights[BLOCK])
{
    double sum[4] = {0.0, 0.0, 0.0, 0.0};
    for (int32_t i = 0; i < BLOCK; i += 4) {
        for (int32_t j = 0; j < 4; j++) {
            sum[j] += (double)weights[i + j];
        }
    }
    return (sum[0] + sum[2]) + (sum[1] + sum[3]);
}

/* log of the sum of e^logit, in double. */
static double log_sum_exp(const struct cpu_isa *isa, const struct view *view, float largest)
{
    float weights[BLOCK];
    double sum = 0.0;
    for (int32_t first = 0; first < view->n_vocab; first += BLOCK) {
        const int32_t n = block_size(view, first);
        isa->exp_scaled(view->logits + first, largest, 1.0f, n, weights);
        for (int32_t i = n; i < BLOCK; i++) {
            weights[i] = 0.0f;
        }
        sum += sum_block(weights);
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

/* Puts id into the list of the n_top most likely, when it is one of them; returns how many there are. */
static int32_t offer_top(const float *logits, int32_t id, int32_t n, int32_t n_top, int32_t *ids)
{
    if (n == n_top && logits[id] <= logits[ids[n - 1]]) {
        return n;
    }
    int32_t at = n < n_top ? n++ : n - 1;
    for (; at > 0 && logits[id] > logits[ids[at - 1]]; at--) {
        ids[at] = ids[at - 1];
    }
    ids[at] = id;
    return n;
}

/* The n_top most likely of the row. */
static void find_top(const struct view *view, int32_t n_top, double log_sum,
                     struct sample_result *result)
{
    int32_t n = 0;
    const float *const logits = view->logits;
    int32_t *const ids = result->top_ids;
    for (int32_t first = 0; n_top > 0 && first < view->n_vocab; first += BLOCK) {
        if (n == n_top && view->maxima[first / BLOCK] <= logits[ids[n - 1]]) {
            continue;
        }
        for (int32_t i = 0; i < block_size(view, first); i++) {
            n = offer_top(logits, first + i, n, n_top, ids);
        }
    }
    for (int32_t i = 0; i < n; i++) {
        result->top_logprobs[i] = (float)((double)logits[ids[i]] - log_sum);
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

/* The weights of a block's ids, 0 where they are not kept and past the end; false when none is kept. */
static bool block_weights(const struct selection *s, int32_t first, enum measure measure,
                          float weights[BLOCK])
{
    const struct cut cut = s->cut;
    const float *const maxima = s->view->maxima;
    if (maxima != NULL && maxima[first / BLOCK] < cut.logit) {
        return false;
    }
    const float *const logits = s->view->logits + first;
    const int32_t n = block_size(s->view, first);
    int32_t n_kept = 0;
    for (int32_t i = 0; i < n; i++) {
        n_kept += is_kept(cut, logits[i], first + i);
    }
    if (n_kept == 0) {
        return false;
    }
    float all[BLOCK] = {0};
    if (measure == BY_WEIGHT) {
        s->isa->exp_scaled(logits, s->largest, s->temperature, n, all);
    }
    for (int32_t i = 0; i < n; i++) {
        const float weight = measure == BY_WEIGHT ? all[i] : 1.0f;
        weights[i] = is_kept(cut, logits[i], first + i) ? weight : 0.0f;
    }
    for (int32_t i = n; i < BLOCK; i++) {
        weights[i] = 0.0f;
    }
    return true;
}

static double total(const struct selection *s, enum measure measure)
{
    float weights[BLOCK] = {0};
    double sum = 0.0;
    for (int32_t first = 0; first < s->view->n_vocab; first += BLOCK) {
        if (block_weights(s, first, measure, weights)) {
            sum += sum_block(weights);
        }
    }
    return sum;
}

/* One digit of a key: `bits` bits from `shift` up. */
struct digit {
    int shift, bits;
};

/* How many of a block lie in [lowest, highest]. */
static int32_t count_between(const float *logits, int32_t n, float lowest, float highest)
{
    int32_t count = 0;
    for (int32_t i = 0; i < n; i++) {
        count += (logits[i] >= lowest) & (logits[i] <= highest);
    }
    return count;
}

/*
 * Adds up what is kept by one digit, over the logits in [lowest, highest], which are those that agree with the digits
 * above it; finds the digit at which the sum from the top, begun at *above, reaches the goal. *above becomes the
 * sum of what is over that digit.
 */
static uint32_t find_digit(const struct selection *s, struct digit digit, const float range[2],
                           enum measure measure, double goal, double *above)
{
    float weights[BLOCK] = {0};
    const uint32_t n_digits = 1u << digit.bits;
    memset(s->histogram, 0, n_digits * sizeof *s->histogram);
    for (int32_t first = 0; first < s->view->n_vocab; first += BLOCK) {
        const float *const logits = s->view->logits + first;
        const int32_t n = block_size(s->view, first);
        if (count_between(logits, n, range[0], range[1]) == 0 ||
            !block_weights(s, first, measure, weights)) {
            continue;
        }
        for (int32_t i = 0; i < n; i++) {
            if (logits[i] >= range[0] && logits[i] <= range[1]) {
                const uint32_t d = order_key(logits[i]) >> digit.shift & (n_digits - 1);
                s->histogram[d] += (double)weights[i];
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

/* The id of the n-th kept logit equal to `logit`, by ascending id. */
static int32_t nth_equal(const struct selection *s, float logit, int32_t n)
{
    int32_t last = -1;
    for (int32_t first = 0; first < s->view->n_vocab; first += BLOCK) {
        const float *const logits = s->view->logits + first;
        const int32_t n_block = block_size(s->view, first);
        if (count_between(logits, n_block, logit, logit) == 0) {
            continue;
        }
        for (int32_t i = 0; i < n_block; i++) {
            if (logits[i] == logit && is_kept(s->cut, logit, first + i)) {
                last = first + i;
                if (--n == 0) {
                    return last;
                }
            }
        }
    }
    return last;
}

/* Moves the cut up to a logit that is known not to be above where it will end. */
static void raise_cut(struct selection *s, float logit)
{
    if (logit > s->cut.logit) {
        s->cut = (struct cut){.logit = logit, .last_id = INT32_MAX};
    }
}

/* Narrows the cut to the smallest number of largest logits whose measures reach the goal together. */
static void keep_until(struct selection *s, enum measure measure, double goal)
{
    static const struct digit digits[] = {
        {.shift = 21, .bits = 11}, {.shift = 10, .bits = 11}, {.shift = 0, .bits = 10}};
    float range[2] = {-FLT_MAX, FLT_MAX};
    uint32_t key = 0;
    double above = 0.0;
    for (size_t i = 0; i < sizeof digits / sizeof digits[0]; i++) {
        const int shift = digits[i].shift;
        key |= find_digit(s, digits[i], range, measure, goal, &above) << shift;
        range[0] = float_of_key(key);
        range[1] = float_of_key(key | ((1u << shift) - 1));
        raise_cut(s, range[0]); // the digits to come only add to it
    }
    const float logit = range[0];
    // Equal logits have equal weights: take as many as the rest of the goal needs, one at least.
    double each = 1.0;
    if (measure == BY_WEIGHT) {
        float weight = 0.0f;
        s->isa->exp_scaled(&logit, s->largest, s->temperature, 1, &weight);
        each = (double)weight;
    }
    int32_t n_equal = 1;
    while (above + n_equal * each < goal && n_equal < s->view->n_vocab) {
        n_equal++;
    }
    s->cut.last_id = nth_equal(s, logit, n_equal);
    s->cut.logit = logit;
}

/* The smallest float whose weight is at least `weight`: logit >= max + temperature * log(weight). */
static float logit_of_weight(const struct selection *s, double weight)
{
    const double limit = (double)s->largest + (double)s->temperature * log(weight);
    const float nearest = (float)limit;
    return (double)nearest < limit ? nextafterf(nearest, INFINITY) : nearest;
}

static void keep_top_k(struct selection *s, int32_t k)
{
    // Of the k largest maxima each has a logit in its own block: the cut is not below the last of them.
    const struct view maxima = {.logits = s->view->maxima,
                                .n_vocab = (s->view->n_vocab + BLOCK - 1) / BLOCK};
    struct selection coarse = *s;
    coarse.view = &maxima;
    coarse.cut.last_id = INT32_MAX;
    if (total(&coarse, BY_COUNT) >= (double)k) {
        keep_until(&coarse, BY_COUNT, (double)k);
        raise_cut(s, coarse.cut.logit);
    }
    if (total(s, BY_COUNT) > (double)k) {
        keep_until(s, BY_COUNT, (double)k);
    }
}

static void keep_top_p(struct selection *s, double top_p)
{
    const double whole = total(s, BY_WEIGHT);
    // All ids of less than this weight cannot make up 1 - top_p together (a little less, for rounding).
    const double spare = 0.999 * (1.0 - top_p) * whole / (double)s->view->n_vocab;
    if (spare > 0.0) {
        raise_cut(s, logit_of_weight(s, spare));
    }
    keep_until(s, BY_WEIGHT, top_p * whole);
}

// ---- the draw ----

/* Where the weights pass the target; the last that has any, should rounding keep them from it. */
static int32_t draw_in_block(const float weights[BLOCK], double target)
{
    double sum = 0.0;
    int32_t last = 0;
    for (int32_t i = 0; i < BLOCK; i++) {
        sum += (double)weights[i];
        last = weights[i] > 0.0f ? i : last;
        if (sum > target) {
            break;
        }
    }
    return last;
}

static int32_t draw(const struct selection *s, const struct sample_row *row)
{
    const uint32_t counter[4] = {row->position, row->sample, 0, 0};
    const uint32_t key[2] = {(uint32_t)row->seed, (uint32_t)(row->seed >> 32)};
    uint32_t bits[4];
    philox_4x32(counter, key, bits);
    const double target = (double)philox_uniform(bits[0]) * total(s, BY_WEIGHT);

    // The sums of total, in its order: the last one is the whole and passes any target.
    float weights[BLOCK] = {0};
    double sum = 0.0;
    for (int32_t first = 0; first < s->view->n_vocab; first += BLOCK) {
        if (!block_weights(s, first, BY_WEIGHT, weights)) {
            continue;
        }
        const double next = sum + sum_block(weights);
        if (next > target) {
            return first + draw_in_block(weights, target - sum);
        }
        sum = next;
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
        .cut = {.logit = -FLT_MAX, .last_id = INT32_MAX}, // -inf weighs nothing
    };
    if (row->min_p > 0.0f) {
        raise_cut(&s, logit_of_weight(&s, (double)row->min_p));
    }
    if (row->top_k > 0 && row->top_k < view->n_vocab) {
        keep_top_k(&s, row->top_k);
    }
    if (row->top_p < 1.0f) {
        keep_top_p(&s, (double)row->top_p);
    }
    return draw(&s, row);
}

static void find_maxima(const struct cpu_isa *isa, const float *logits, int32_t n_vocab,
                        float *maxima)
{
    for (int32_t first = 0; first < n_vocab; first += BLOCK) {
        const int32_t n = n_vocab - first < BLOCK ? n_vocab - first : BLOCK;
        maxima[first / BLOCK] = isa->largest(logits + first, n);
    }
}

// ---- what the request changes ----

static float adjust(const struct sample_row *row, const struct sample_token *token, float logit)
{
    float x = logit + token->bias;
    if (token->in_prompt || token->n_generated > 0) {
        x = x > 0.0f ? x / row->repetition : x * row->repetition;
    }
    x -= row->frequency * (float)token->n_generated;
    return token->n_generated > 0 ? x - row->presence : x;
}

static float shifted(float logit, double log_sum)
{
    return (float)((double)logit - log_sum);
}

/* The id that counts as generated once more; -1: none. */
static int32_t pending_id(const struct sample_args *args, const struct sample_row *row)
{
    const bool counts = row->repetition != 1.0f || row->presence != 0.0f || row->frequency != 0.0f;
    if (!counts || row->pending_slot < 0 || row->pending_slot >= args->n_drawn) {
        return -1;
    }
    const int32_t id = args->drawn[row->pending_slot];
    return id < args->n_vocab ? id : -1;
}

/* The row as it is drawn from: the raw one where the request changes nothing, a copy with the changes elsewhere, of which
 * log_sum was subtracted. */
static struct view adjusted_view(const struct cpu_isa *isa, const struct sample_args *args,
                                 const struct sample_row *row, const struct view *raw,
                                 double log_sum, struct cpu_scratch *scratch)
{
    const int32_t pending = pending_id(args, row);
    if (row->n_tokens == 0 && !row->only_listed && pending < 0) {
        return *raw;
    }
    const struct sample_token *tokens = args->tokens + row->first_token;
    float *const logits = scratch->adjusted;
    for (int32_t i = 0; i < raw->n_vocab; i++) {
        logits[i] = row->only_listed ? -INFINITY : shifted(raw->logits[i], log_sum);
    }
    if (pending >= 0 && !row->only_listed) { // a listed one is written again below
        const struct sample_token alone = {.id = pending, .n_generated = 1};
        logits[pending] = adjust(row, &alone, shifted(raw->logits[pending], log_sum));
    }
    for (int32_t i = 0; i < row->n_tokens; i++) {
        struct sample_token token = tokens[i];
        token.n_generated += token.id == pending;
        logits[token.id] = adjust(row, &token, shifted(raw->logits[token.id], log_sum));
    }
    find_maxima(isa, logits, raw->n_vocab, scratch->maxima);
    return (struct view){.logits = logits, .n_vocab = raw->n_vocab, .maxima = scratch->maxima};
}

// ---- rows ----

struct plan {
    const struct sample_args *args;
    const struct backend_stream *stream;
};

static void sample_row(const struct plan *plan, int64_t index, struct cpu_scratch *scratch)
{
    const struct cpu_isa *const isa = plan->stream->isa;
    const struct sample_row *row = &plan->args->rows[index];
    struct sample_result *result = &plan->args->results[index];
    if (row->logits < 0) {
        return;
    }
    const struct view raw = {.logits = plan->args->logits + row->logits,
                             .n_vocab = plan->args->n_vocab,
                             .maxima = scratch->maxima};
    *result = (struct sample_result){.id = -1, .nan = 1};
    if (!is_usable(raw.logits, raw.n_vocab)) {
        return;
    }
    find_maxima(isa, raw.logits, raw.n_vocab, scratch->maxima);
    float largest = 0.0f;
    if (find_largest(&raw, &largest) < 0) {
        return;
    }
    struct sample_result found = {.id = -1};
    const double log_sum = log_sum_exp(isa, &raw, largest);
    if (!row->of_logprobs) {
        find_top(&raw, row->n_top, log_sum, &found);
    }
    if (row->forced) {
        found.id = row->forced_id;
    } else {
        const double shift = row->of_logprobs ? log_sum : 0.0;
        const struct view view = adjusted_view(isa, plan->args, row, &raw, shift, scratch);
        if (!is_usable(view.logits, view.n_vocab)) {
            return; // a bias of +inf, say
        }
        if (row->of_logprobs) {
            find_top(&view, row->n_top, view.logits == raw.logits ? log_sum : 0.0, &found);
        }
        found.id = choose(isa, &view, row, scratch->histogram);
        if (found.id < 0) {
            return; // everything finite is out
        }
    }
    found.logprob = (float)((double)raw.logits[found.id] - log_sum);
    found.rank = rank_of(&raw, found.id);
    *result = found;
}

static void run_task(void *context, int64_t task, int thread)
{
    const struct plan *plan = context;
    const struct sample_args *args = plan->args;
    const int32_t slot = args->rows[task].slot;
    sample_row(plan, task, &plan->stream->scratch[thread]);
    if (slot >= 0 && slot < args->n_drawn) {
        args->drawn[slot] = args->results[task].id;
    }
}

status_t cpu_sample(struct backend_stream *stream, const struct sample_args *a)
{
    TRY(sample_check(a, CPU_MAX_VOCAB));
    struct plan plan = {.args = a, .stream = stream};
    cpu_team_run(stream->team, a->n_rows, run_task, &plan);
    return status_ok();
}

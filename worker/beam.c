#include "worker/beam.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

struct beam_node {
    int32_t before;
    int32_t id;
    float logprob;
    int32_t rank;
};

static bool is_stop_id(const struct beam_params *params, int32_t id)
{
    for (int32_t i = 0; i < params->n_stop_ids; i++) {
        if (params->stop_ids[i] == id) {
            return true;
        }
    }
    return false;
}

/* Each of them once, and only those that the model has. */
static int32_t count_stop_ids(const struct beam_params *params)
{
    int32_t n = 0;
    for (int32_t i = 0; i < params->n_stop_ids; i++) {
        const int32_t id = params->stop_ids[i];
        const struct beam_params before = {.stop_ids = params->stop_ids, .n_stop_ids = i};
        n += id >= 0 && id < params->n_vocab && !is_stop_id(&before, id);
    }
    return n;
}

int32_t beam_candidates(const struct beam_params *params)
{
    const int32_t n = params->width + count_stop_ids(params);
    return n < params->n_vocab ? n : params->n_vocab;
}

// ---- life ----

static status_t check(const struct beam_params *p)
{
    if (p->width < 1 || p->width > BEAM_MAX_WIDTH) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "beam_width: %d is not in [1, %d]", p->width,
                             BEAM_MAX_WIDTH);
    }
    if (beam_candidates(p) > SAMPLE_MAX_TOP) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "beam_width: %d with %d stop ids, together at most %d" STATUS_FIX
                             "lower it, or name fewer stop_token_ids",
                             p->width, count_stop_ids(p), SAMPLE_MAX_TOP);
    }
    if (p->max_tokens < 1 || p->max_tokens > INT32_MAX / BEAM_MAX_WIDTH - 1 ||
        !(fabsf(p->length_penalty) <= BEAM_MAX_LENGTH_PENALTY) ||
        p->early_stopping < BEAM_STOP_HEURISTIC || p->early_stopping > BEAM_STOP_NEVER ||
        p->n_top < 0 || p->n_top > SAMPLE_MAX_TOP) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "beam search: max_tokens %d, length_penalty %g, early_stopping %d, "
                             "%d alternatives",
                             p->max_tokens, (double)p->length_penalty, p->early_stopping, p->n_top);
    }
    return status_ok();
}

status_t beam_search_init(struct beam_search *search, const struct beam_params *params)
{
    TRY(check(params));
    const size_t n_nodes = (size_t)params->width * ((size_t)params->max_tokens + 1);
    const size_t n_top = (size_t)params->n_top;
    struct beam_search made = {.params = *params, .n_beams = 1, .last = {-1}};
    made.n_nodes = params->width;
    made.nodes = calloc(n_nodes, sizeof *made.nodes);
    made.tops = n_top > 0 ? calloc(n_nodes * n_top, sizeof *made.tops) : NULL;
    if (made.nodes == NULL || (made.tops == NULL && n_top > 0)) {
        beam_search_destroy(&made);
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory for %d beams of %d tokens",
                             params->width, params->max_tokens);
    }
    *search = made;
    return status_ok();
}

void beam_search_destroy(struct beam_search *search)
{
    free(search->nodes);
    free(search->tops);
    memset(search, 0, sizeof *search);
}

// ---- a step ----

/* A token behind a beam. */
struct candidate {
    int32_t parent;
    int32_t at; /* in its row */
    double sum;
};

struct best {
    struct candidate list[BEAM_MAX_WIDTH];
    int32_t n;
};

/* Keeps the best `most`; of equal ones those that were offered first. */
static void offer(struct best *best, int32_t most, const struct candidate *candidate)
{
    int32_t at = best->n;
    while (at > 0 && candidate->sum > best->list[at - 1].sum) {
        at--;
    }
    if (at == most) {
        return;
    }
    best->n += best->n < most;
    memmove(&best->list[at + 1], &best->list[at],
            (size_t)(best->n - at - 1) * sizeof best->list[0]);
    best->list[at] = *candidate;
}

static void write_node(struct beam_search *s, int32_t place, const struct sample_result *rows,
                       const struct candidate *from)
{
    const struct sample_result *row = &rows[from->parent];
    s->nodes[place] = (struct beam_node){.before = s->last[from->parent],
                                         .id = row->top_ids[from->at],
                                         .logprob = row->top_logprobs[from->at],
                                         .rank = from->at + 1};
    for (int32_t i = 0; i < s->params.n_top; i++) {
        s->tops[(ptrdiff_t)place * s->params.n_top + i] =
            (struct beam_top){.id = row->top_ids[i], .logprob = row->top_logprobs[i]};
    }
}

static double score_of(const struct beam_search *s, double sum, int32_t length)
{
    return sum / pow((double)length, (double)s->params.length_penalty);
}

/* The candidate is at an end: it is kept when it is one of the best. */
static void end(struct beam_search *s, const struct sample_result *rows,
                const struct candidate *candidate, bool by_stop_id)
{
    const int32_t width = s->params.width;
    struct beam_ended ended = {
        .score = score_of(s, candidate->sum, s->length + 1),
        .sum = candidate->sum,
        .length = s->length + 1,
        .by_stop_id = by_stop_id,
    };
    int32_t at = s->n_ended;
    while (at > 0 && ended.score > s->ended[at - 1].score) {
        at--;
    }
    if (at == width) {
        return;
    }
    ended.place = s->n_ended < width ? s->n_ended : s->ended[width - 1].place;
    s->n_ended += s->n_ended < width;
    memmove(&s->ended[at + 1], &s->ended[at], (size_t)(s->n_ended - at - 1) * sizeof s->ended[0]);
    s->ended[at] = ended;
    write_node(s, ended.place, rows, candidate);
}

/* Whether running beams may still come before the worst that is kept. */
static bool goes_on(const struct beam_search *s)
{
    const struct beam_params *p = &s->params;
    if (s->n_beams == 0) {
        return false;
    }
    if (s->n_ended < p->width) {
        return true;
    }
    const bool at_its_longest = p->early_stopping == BEAM_STOP_NEVER && p->length_penalty > 0.0f;
    const double hope = score_of(s, s->sums[0], at_its_longest ? p->max_tokens : s->length);
    return p->early_stopping != BEAM_STOP_FIRST && hope > s->ended[p->width - 1].score;
}

int32_t beam_search_step(struct beam_search *s, const struct sample_result *rows,
                         struct beam_next *next_out)
{
    const struct beam_params *p = &s->params;
    const bool at_length = s->length + 1 == p->max_tokens;
    const int32_t n_candidates = beam_candidates(p);
    struct best all = {.n = 0}, running = {.n = 0};
    for (int32_t b = 0; b < s->n_beams; b++) {
        for (int32_t i = 0; i < n_candidates && rows[b].top_logprobs[i] > -INFINITY; i++) {
            const struct candidate candidate = {b, i, s->sums[b] + (double)rows[b].top_logprobs[i]};
            offer(&all, p->width, &candidate);
            if (!at_length && !is_stop_id(p, rows[b].top_ids[i])) {
                offer(&running, p->width, &candidate);
            }
        }
    }
    for (int32_t i = 0; i < all.n; i++) {
        const struct candidate *candidate = &all.list[i];
        const bool by_stop_id = is_stop_id(p, rows[candidate->parent].top_ids[candidate->at]);
        if (at_length || by_stop_id) {
            end(s, rows, candidate, by_stop_id);
        }
    }
    int32_t last[BEAM_MAX_WIDTH];
    for (int32_t i = 0; i < running.n; i++) {
        const struct candidate *candidate = &running.list[i];
        last[i] = s->n_nodes++;
        write_node(s, last[i], rows, candidate);
        s->sums[i] = candidate->sum;
        next_out[i] = (struct beam_next){.parent = candidate->parent,
                                         .id = rows[candidate->parent].top_ids[candidate->at]};
    }
    memcpy(s->last, last, (size_t)running.n * sizeof last[0]);
    s->n_beams = running.n;
    s->length++;
    if (!goes_on(s)) {
        s->n_beams = 0;
    }
    return s->n_beams;
}

// ---- what came of it ----

void beam_search_read(const struct beam_search *s, int32_t index, struct beam_token *tokens_out)
{
    const struct beam_ended *ended = &s->ended[index];
    int32_t at = ended->place;
    for (int32_t i = ended->length - 1; i >= 0; i--) {
        const struct beam_node *node = &s->nodes[at];
        const ptrdiff_t first = (ptrdiff_t)at * s->params.n_top;
        tokens_out[i] = (struct beam_token){.id = node->id,
                                            .logprob = node->logprob,
                                            .rank = node->rank,
                                            .top = s->tops != NULL ? s->tops + first : NULL};
        at = node->before;
    }
    assert(at == -1);
}

/*
 * beam.h - which sequences a beam search goes on with, and which it ends with
 *
 * What:      the choice alone, on log probabilities that are given: a step takes the likeliest next tokens of each beam, ends
 *            those of the best `width` continuations of all beams that are at an end, and goes on with the best `width` that are
 *            not. What has ended is ranked by sum / length^length_penalty, and the best `width` are kept, until running beams
 *            are not expected to come before them:
 *
 *              BEAM_STOP_HEURISTIC   the best running beam, at its present length, is no better than the worst that is kept
 *              BEAM_STOP_FIRST       as many have ended as are kept
 *              BEAM_STOP_NEVER       as the heuristic, but with a length_penalty above 0 at the length it may come to
 *
 * Layout:    a tree of tokens; a running beam is its last node. What has ended keeps its last token in a place of its own.
 *
 *              prompt -+- 0 -+- 3 ---- 6      node: a token and the node before it, -1 for the prompt
 *                      |     `- 4 ---- 7
 *                      `- 1 --- 5 ---- 8
 *
 * Ownership: init allocates all that a search of max_tokens can need; a step allocates nothing.
 * Thread:    one owner. Equal rows give equal searches; of equal sums the better beam's, then the likelier token's comes first.
 * Source:    Graves 2012, arXiv:1211.3711; what ends when is as in Hugging Face transformers' generate(num_beams=...).
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "kernels/backend.h"

#define BEAM_MAX_WIDTH          16
#define BEAM_MAX_LENGTH_PENALTY 10.0f /* beyond it, lengths to that power are of no use */

enum beam_stop { BEAM_STOP_HEURISTIC, BEAM_STOP_FIRST, BEAM_STOP_NEVER };

struct beam_params {
    int32_t width;      /* at most BEAM_MAX_WIDTH */
    int32_t max_tokens; /* of a sequence without the prompt */
    float length_penalty;
    int early_stopping; /* enum beam_stop */
    int32_t n_vocab;
    const int32_t *stop_ids; /* an end each; borrowed */
    int32_t n_stop_ids;
    int32_t n_top; /* alternatives to keep of each token */
};

struct beam_top {
    int32_t id;
    float logprob;
};

struct beam_token {
    int32_t id;
    float logprob;              /* as it is added up */
    int32_t rank;               /* 1: the likeliest of its row */
    const struct beam_top *top; /* [params.n_top], borrowed */
};

struct beam_node; /* a token, and the node before it */

struct beam_ended {
    double score;    /* sum / length^length_penalty */
    double sum;      /* of log probabilities */
    int32_t length;  /* in tokens, the last one included */
    int32_t place;   /* in nodes, of its last token */
    bool by_stop_id; /* else by length */
};

struct beam_search {
    struct beam_params params;
    int32_t length;  /* tokens of each running beam */
    int32_t n_beams; /* running, best first */
    double sums[BEAM_MAX_WIDTH];
    int32_t last[BEAM_MAX_WIDTH];            /* nodes; -1: the prompt */
    struct beam_ended ended[BEAM_MAX_WIDTH]; /* best first */
    int32_t n_ended;
    struct beam_node
        *nodes; /* [width]: last tokens of what has ended; [width * max_tokens]: the tree */
    struct beam_top *tops; /* [nodes][n_top]; NULL where none are kept */
    int32_t n_nodes;
};

/*
 * Alternatives that the row of a beam must list, so that the best `width` of all and the best `width` that are no end are among
 * them: each stop id takes one place at most.
 */
int32_t beam_candidates(const struct beam_params *params);

/* Begins with one beam, the prompt. INVALID_ARGUMENT for a width over BEAM_MAX_WIDTH or for more candidates than SAMPLE_MAX_TOP,
 * RESOURCE_EXHAUSTED for memory. */
MUST_USE status_t beam_search_init(struct beam_search *search, const struct beam_params *params);
void beam_search_destroy(struct beam_search *search); /* accepts a zeroed one */

/* A beam that goes on: behind which one, with which token. */
struct beam_next {
    int32_t parent;
    int32_t id;
};

/*
 * rows [n_beams], in the order of the beams: of each the top candidates (beam_candidates) and at least params.n_top; what cannot
 * be drawn is -inf. Fills next_out [width] and returns how many beams go on; 0: the search is over.
 */
int32_t beam_search_step(struct beam_search *search, const struct sample_result *rows,
                         struct beam_next *next_out);

/* The tokens of ended[index], in order: tokens_out [length]. */
void beam_search_read(const struct beam_search *search, int32_t index,
                      struct beam_token *tokens_out);

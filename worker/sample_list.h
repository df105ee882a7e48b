/*
 * sample_list.h - the tokens whose logits one sequence's request changes
 *
 * What:      ids with how often they were generated, whether the prompt has them, and their bias, in the form the sample op
 *            takes: a step copies the list and computes nothing. It is kept token by token, with one look-up each.
 *
 *              allowed tokens           these and no others, whatever else names more
 *              logit bias               ids with a bias
 *              any penalty              ids that were generated; with a repetition penalty, also the prompt's
 *              held until min_tokens    stop ids and ignored end tokens, out as long as the list is asked for so
 *
 * Layout:    tokens [n]; index: open addressing by id, 1 + place in tokens, 0 where free, at most half full.
 * Ownership: copies what it is given; all memory is allocated by init.
 * Thread:    owner:leader.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "kernels/backend.h"

struct sample_bias {
    int32_t id;
    float bias;
};

/* Ids are in the vocabulary; held ones that are not are left out. */
struct sample_list_request {
    int32_t n_vocab;
    float repetition, presence, frequency; /* 1, 0, 0: off */
    const struct sample_bias *bias;        /* an id once */
    int32_t n_bias;
    const int32_t *allowed; /* none: all */
    int32_t n_allowed;
    const int32_t *held[2]; /* two lists of ids that are out until min_tokens */
    int32_t n_held[2];
    const int32_t *tokens; /* the prompt, then what was generated before */
    int32_t n_prompt, n_tokens;
    int32_t max_generated; /* what was generated before included */
};

struct sample_list {
    struct sample_token *tokens;
    int32_t n, capacity;
    int32_t max; /* n never grows beyond it */
    int32_t *index;
    uint32_t index_mask;
    int32_t *held; /* [n_held]: places of the held ids */
    int32_t n_held;
    bool counts;      /* generated tokens matter */
    bool only_listed; /* as in sample_row */
    bool only_held;   /* nothing but held ids is in it */
};

/* RESOURCE_EXHAUSTED for memory. */
MUST_USE status_t sample_list_init(struct sample_list *list,
                                   const struct sample_list_request *request);
void sample_list_destroy(struct sample_list *list); /* accepts a zeroed list */

/* The id has been generated. */
void sample_list_add(struct sample_list *list, int32_t id);

/* Makes `to` what `from` is: two lists of the same request. */
void sample_list_copy(struct sample_list *to, const struct sample_list *from);

enum sample_list_phase {
    SAMPLE_LIST_HELD, /* min_tokens are not there yet */
    SAMPLE_LIST_FREE,
};

/* The list as it is now, at most list->max tokens; returns how many. */
int32_t sample_list_write(const struct sample_list *list, enum sample_list_phase phase,
                          struct sample_token *tokens_out);

/*
 * pace.h - how fast the worker groups are, as measured, and how long a request would take
 *
 * What:      three rates: time for a token of a prompt, time between two tokens of a sequence by how many sequences
 *            run beside it, and time from the first token of a sequence to its end, for which it takes a place. From them and from what is
 *            ahead, a request's time is
 *
 *              wait     the longer of: prompt tokens ahead x time for one, sequences without a place x time of one / places
 *              prefill  its own prompt tokens x time for one
 *              decode   tokens that are sure to be computed x time between two
 *
 * Units:     nanoseconds, tokens, sequences. Tokens found in the prefix cache count as computed, so that the rate is that of prompts
 *            as they come.
 * Thread:    one owner. No clock inside: time is an input.
 * Invariant: what was not measured within PACE_MAX_AGE_NS counts as 0: nothing is guessed, and a rate by which everything was
 *            refused is measured anew.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/clock.h"

#define PACE_MAX_AGE_NS (30 * NS_PER_S)
#define PACE_N_BATCHES  17 /* 1, 2, 3-4, 5-8, ... sequences side by side */

/* Time and what was done in it, both fading by a sixteenth with each later moment that something is measured at. */
struct pace_rate {
    double ns, n;
    uint64_t at_ns; /* of the last measurement; 0: there is none */
};

struct pace {
    struct pace_rate prompt_token;
    struct pace_rate step[PACE_N_BATCHES]; /* between two tokens of a sequence */
    struct pace_rate stay;                 /* from the first token to the end */
};

/* What a request asks for, and what is before it. */
struct pace_work {
    uint64_t prompt_tokens, tokens; /* its own; tokens: those that are computed whatever they are */
    uint64_t tokens_ahead;          /* of prompts, in one group's share */
    uint64_t without_place,
        places;     /* sequences, its own included, beyond those that are computed at once */
    uint32_t batch; /* sequences beside it in its group, its own included */
};

struct pace_estimate {
    uint64_t wait_ns, prefill_ns, decode_ns;
};

static inline uint64_t pace_total_ns(const struct pace_estimate *e)
{
    return e->wait_ns + e->prefill_ns + e->decode_ns;
}

/* A group took so long for steps with so many prompt tokens. */
void pace_prompt(struct pace *p, uint64_t n_tokens, uint64_t ns, uint64_t now_ns);

/* So long after its last token a sequence got one, with `batch` sequences in its group. */
void pace_step(struct pace *p, uint32_t batch, uint64_t ns, uint64_t now_ns);

/* A sequence ended so long after its first token. */
void pace_stay(struct pace *p, uint64_t ns, uint64_t now_ns);

struct pace_estimate pace_estimate(const struct pace *p, const struct pace_work *work,
                                   uint64_t now_ns);

/*
 * bench_workload.h - what a load test asks for, and when
 *
 * What:      prompts with the tokens wanted of each and the time it is sent. Made up (token ids from the model's
 *            vocabulary, so that lengths are exact) or read from a file of JSON lines {"prompt", "output_len"}, where a
 *            prompt is text or a list of ids. Everything is a function of the seed: prompt i, its lengths and its
 *            arrival do not depend on how many there are.
 * Units:     arrivals are seconds from the start.
 * Ownership: the workload owns its prompts.
 * Thread:    owner:main
 * Errors:    INVALID_ARGUMENT for lengths that the model's context cannot hold, DATA_LOSS with the line for a file.
 */
#pragma once

#include <stdint.h>

#include "base/bytes.h"
#include "base/status.h"

enum bench_lengths { BENCH_LENGTHS_FIXED, BENCH_LENGTHS_LOGNORMAL };

struct bench_workload_options {
    size_t n_prompts;    /* of a file: its first ones; 0: all of them */
    uint32_t input_len;  /* mean length of what follows the shared prefix */
    uint32_t output_len; /* mean */
    int lengths;         /* enum bench_lengths */
    double sigma;        /* of the logarithm */
    uint32_t shared_prefix_len;
    double request_rate; /* a second, Poisson; 0: all at once */
    uint64_t seed;
    const char *dataset; /* NULL: made up */
    uint32_t vocab_size, context_length;
    const uint32_t *eos_ids; /* not drawn */
    size_t n_eos_ids;
};

struct bench_prompt {
    const char *text; /* NULL: ids */
    const uint32_t *ids;
    size_t n; /* bytes, or ids */
    uint32_t output_len;
    double arrival_s;
};

struct bench_workload {
    struct bench_prompt *prompts;
    size_t n;
    void **owned; /* [n]: texts and ids */
};

MUST_USE status_t bench_workload_make(const struct bench_workload_options *options,
                                      struct bench_workload *workload_out);
void bench_workload_destroy(struct bench_workload *workload); /* accepts a zeroed one */

/*
 * completion.h - what a server says to one Generate, gathered and printed
 *
 * What:      a text that is alone is printed as it comes; several samples would come mixed, and are printed at the end, each
 *            behind a line with its number. As JSON it is one object
 *
 *              {text, token_ids, finish_reason, [cumulative_logprob], [logprobs], [top_logprobs], usage, [prompt_logprobs]}
 *
 *            or, for several samples, {choices: [{index, text, token_ids, ...}], usage, ...}. A log probability of zero
 *            probability, and that of the prompt's first token, is null.
 * Thread:    owner:main
 * Errors:    DATA_LOSS when events do not come in their order.
 */
#pragma once

#include <jansson.h>
#include <stdio.h>

#include "base/bytes.h"
#include "base/status.h"
#include "proto/wire/inference.h"

enum completion_print { COMPLETION_PRINT_NOTHING, COMPLETION_PRINT_TEXT };

struct completion_choice {
    struct bytes text;
    json_t *ids, *logprobs, *tops;
    int reason; /* enum wire_finish_reason */
    bool has_cumulative_logprob;
    double cumulative_logprob;
    uint32_t next_seq;
};

struct completion {
    int print; /* enum completion_print */
    uint32_t n;
    struct completion_choice *choices; /* [n] */
    json_t *prompt_logprobs;           /* NULL: not asked for */
    struct wire_usage usage;
    uint64_t first_ns, last_ns; /* of tokens */
    uint32_t n_tokens;
};

MUST_USE status_t completion_init(struct completion *c, const struct wire_generate_request *request,
                                  enum completion_print print);
void completion_destroy(struct completion *c);

/* A client_generate_args.on_response whose user is a struct completion. */
MUST_USE status_t completion_take(void *user, const struct wire_generate_response *response);

/* Prints what was not printed as it came, and ends the line. */
void completion_end_text(const struct completion *c);
void completion_print_json(const struct completion *c, FILE *out);
void completion_print_stats(const struct completion *c, uint64_t begin_ns, FILE *out);

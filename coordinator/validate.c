#include "coordinator/validate.h"

#include "base/log.h"

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// ---- numbers: one row each ----

enum number_kind { NUMBER_FLOAT, NUMBER_I32, NUMBER_U32 };

struct number_row {
    const char *field;
    size_t offset;
    double min, max;   /* the range, ends included ... */
    int kind;          /* enum number_kind */
    bool min_excluded; /* ... but for this one */
};

#define AT(field) offsetof(struct wire_generate_request, field)

static const struct number_row number_rows[] = {
    {"sampling.temperature", AT(sampling.temperature), 0, 100, NUMBER_FLOAT, false},
    {"sampling.top_p", AT(sampling.top_p), 0, 1, NUMBER_FLOAT, true},
    {"sampling.top_k", AT(sampling.top_k), -1, INT32_MAX, NUMBER_I32, false},
    {"sampling.min_p", AT(sampling.min_p), 0, 1, NUMBER_FLOAT, false},
    {"sampling.repetition_penalty", AT(sampling.repetition_penalty), 0, 100, NUMBER_FLOAT, true},
    {"sampling.presence_penalty", AT(sampling.presence_penalty), -2, 2, NUMBER_FLOAT, false},
    {"sampling.frequency_penalty", AT(sampling.frequency_penalty), -2, 2, NUMBER_FLOAT, false},
    {"sampling.n", AT(sampling.n), 1, VALIDATE_MAX_N, NUMBER_U32, false},
    {"sampling.beam_width", AT(sampling.beam_width), 0, VALIDATE_MAX_BEAM_WIDTH, NUMBER_U32, false},
    {"sampling.length_penalty", AT(sampling.length_penalty), -10, 10, NUMBER_FLOAT, false},
    {"stopping.max_tokens", AT(stopping.max_tokens), 1, UINT32_MAX, NUMBER_U32, false},
    {"output.logprobs", AT(output.logprobs), 0, VALIDATE_MAX_LOGPROBS, NUMBER_U32, false},
    {"output.prompt_logprobs", AT(output.prompt_logprobs), 0, VALIDATE_MAX_LOGPROBS, NUMBER_U32,
     false},
};

static double number_value(const struct wire_generate_request *m, const struct number_row *row)
{
    const char *at = (const char *)m + row->offset;
    float f;
    int32_t i;
    uint32_t u;
    switch (row->kind) {
    case NUMBER_FLOAT:
        memcpy(&f, at, sizeof f);
        return (double)f;
    case NUMBER_I32:
        memcpy(&i, at, sizeof i);
        return (double)i;
    default:
        memcpy(&u, at, sizeof u);
        return (double)u;
    }
}

#define NUMBER_TEXT_BYTES 32

/* As few digits as still say this very number: 0.1f is "0.1", and what is just over 100 does not print as 100. */
static const char *number_text(double value, int kind, char buf[NUMBER_TEXT_BYTES])
{
    if (isnan(value)) {
        return "nan"; // printf adds the sign that some have
    }
    for (int digits = 6; digits <= 17; digits++) {
        snprintf(buf, NUMBER_TEXT_BYTES, "%.*g", digits, value);
        const double back = strtod(buf, NULL);
        if (kind == NUMBER_FLOAT ? (float)back == (float)value : back == value) {
            break;
        }
    }
    return buf;
}

static status_t check_number(const struct wire_generate_request *m, const struct number_row *row)
{
    const double value = number_value(m, row);
    const bool above = row->min_excluded ? value > row->min : value >= row->min;
    if (above && value <= row->max) { // false for a NaN
        return status_ok();
    }
    char got[NUMBER_TEXT_BYTES], min[NUMBER_TEXT_BYTES], max[NUMBER_TEXT_BYTES];
    return status_errorf(STATUS_INVALID_ARGUMENT, "%s: %s is not in %c%s, %s]", row->field,
                         number_text(value, row->kind, got), row->min_excluded ? '(' : '[',
                         number_text(row->min, NUMBER_I32, min),
                         number_text(row->max, NUMBER_I32, max));
}

// ---- what this version does not have: one row each ----

struct missing_row {
    const char *field;
    bool (*is_used)(const struct wire_generate_request *m);
};

static bool uses_resume_from(const struct wire_generate_request *m)
{
    return m->has_resume_from;
}

static const struct missing_row missing_rows[] = {
    {"resume_from", uses_resume_from},
};

static status_t check_missing(const struct wire_generate_request *m)
{
    for (size_t i = 0; i < sizeof missing_rows / sizeof missing_rows[0]; i++) {
        if (missing_rows[i].is_used(m)) {
            return status_errorf(STATUS_UNIMPLEMENTED, "%s is not built in this version",
                                 missing_rows[i].field);
        }
    }
    return status_ok();
}

// ---- beam search: one row for each thing that does not go with it, or without it ----

struct beam_row {
    const char *field;
    bool (*is_used)(const struct wire_generate_request *m);
    const char *why;
};

static bool uses_temperature(const struct wire_generate_request *m)
{
    return m->sampling.temperature != 0.0F && m->sampling.temperature != 1.0F; // 1 if not given
}

static bool uses_top_p(const struct wire_generate_request *m)
{
    return m->sampling.top_p != 1.0F;
}

static bool uses_top_k(const struct wire_generate_request *m)
{
    return m->sampling.top_k > 0;
}

static bool uses_min_p(const struct wire_generate_request *m)
{
    return m->sampling.min_p > 0.0F;
}

static bool uses_seed(const struct wire_generate_request *m)
{
    return m->sampling.has_seed;
}

static bool uses_stop_strings(const struct wire_generate_request *m)
{
    return m->stopping.n_stop > 0;
}

static bool uses_length_penalty(const struct wire_generate_request *m)
{
    return m->sampling.length_penalty != 1.0F;
}

static bool uses_early_stopping(const struct wire_generate_request *m)
{
    return m->sampling.early_stopping != WIRE_EARLY_STOPPING_HEURISTIC;
}

static const struct beam_row not_with_beams[] = {
    {"sampling.temperature", uses_temperature, "a beam search draws nothing"},
    {"sampling.top_p", uses_top_p, "a beam search draws nothing"},
    {"sampling.top_k", uses_top_k, "a beam search draws nothing"},
    {"sampling.min_p", uses_min_p, "a beam search draws nothing"},
    {"sampling.seed", uses_seed, "a beam search draws nothing"},
    {"stopping.stop", uses_stop_strings, "a beam search ends at stopping.stop_token_ids alone"},
};

static const struct beam_row only_with_beams[] = {
    {"sampling.length_penalty", uses_length_penalty, "it is of a beam search alone"},
    {"sampling.early_stopping", uses_early_stopping, "it is of a beam search alone"},
};

static status_t check_beam_rows(const struct wire_generate_request *m, const struct beam_row *rows,
                                size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (rows[i].is_used(m)) {
            return status_errorf(STATUS_INVALID_ARGUMENT, "%s: with sampling.beam_width %u: %s",
                                 rows[i].field, m->sampling.beam_width, rows[i].why);
        }
    }
    return status_ok();
}

static status_t check_beams(const struct wire_generate_request *m)
{
    if (m->sampling.beam_width == 0) {
        return check_beam_rows(m, only_with_beams,
                               sizeof only_with_beams / sizeof only_with_beams[0]);
    }
    if (m->sampling.n > m->sampling.beam_width) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "sampling.n: %u is more than sampling.beam_width %u", m->sampling.n,
                             m->sampling.beam_width);
    }
    return check_beam_rows(m, not_with_beams, sizeof not_with_beams / sizeof not_with_beams[0]);
}

// ---- lists and texts ----

static status_t check_count(const char *field, size_t n, size_t max)
{
    if (n > max) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "%s: %zu entries, at most %zu", field, n,
                             max);
    }
    return status_ok();
}

status_t validate_token_ids(const char *field, const struct wire_token_ids *ids, uint32_t n_vocab)
{
    for (size_t i = 0; i < ids->n; i++) {
        if (ids->ids[i] >= n_vocab) {
            return status_errorf(STATUS_INVALID_ARGUMENT,
                                 "%s[%zu]: %u is not below %u, the vocabulary", field, i,
                                 ids->ids[i], n_vocab);
        }
    }
    return status_ok();
}

status_t validate_text(const char *field, size_t size, const struct validate_limits *limits)
{
    if (size > limits->prompt_bytes) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "%s: %zu bytes, at most %zu", field, size,
                             limits->prompt_bytes);
    }
    return status_ok();
}

static status_t check_stop_strings(const struct wire_stopping *stopping)
{
    TRY(check_count("stopping.stop", stopping->n_stop, VALIDATE_MAX_STOP_STRINGS));
    for (size_t i = 0; i < stopping->n_stop; i++) {
        const size_t size = strlen(stopping->stop[i]);
        if (size < 1 || size > VALIDATE_MAX_STOP_BYTES) {
            return status_errorf(STATUS_INVALID_ARGUMENT,
                                 "stopping.stop[%zu]: %zu bytes is not in [1, %d]", i, size,
                                 VALIDATE_MAX_STOP_BYTES);
        }
    }
    return status_ok();
}

static status_t check_stopping(const struct wire_stopping *stopping,
                               const struct validate_limits *limits)
{
    if (stopping->min_tokens > stopping->max_tokens) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "stopping.min_tokens: %u is more than stopping.max_tokens %u",
                             stopping->min_tokens, stopping->max_tokens);
    }
    TRY(check_stop_strings(stopping));
    TRY(check_count("stopping.stop_token_ids", stopping->stop_token_ids.n,
                    VALIDATE_MAX_STOP_TOKENS));
    return validate_token_ids("stopping.stop_token_ids", &stopping->stop_token_ids,
                              limits->n_vocab);
}

static status_t check_logit_bias(const struct wire_sampling *sampling,
                                 const struct validate_limits *limits)
{
    TRY(check_count("sampling.logit_bias", sampling->n_logit_bias, VALIDATE_MAX_LOGIT_BIAS));
    for (size_t i = 0; i < sampling->n_logit_bias; i++) {
        const struct wire_logit_bias *entry = &sampling->logit_bias[i];
        if (entry->token_id >= limits->n_vocab) {
            return status_errorf(STATUS_INVALID_ARGUMENT,
                                 "sampling.logit_bias[%zu].token_id: %u is not below %u, the "
                                 "vocabulary",
                                 i, entry->token_id, limits->n_vocab);
        }
        if (!(entry->bias >= -100.0F && entry->bias <= 100.0F)) {
            char got[NUMBER_TEXT_BYTES];
            return status_errorf(STATUS_INVALID_ARGUMENT,
                                 "sampling.logit_bias[%zu].bias: %s is not in [-100, 100]", i,
                                 number_text((double)entry->bias, NUMBER_FLOAT, got));
        }
        for (size_t j = 0; j < i; j++) {
            if (sampling->logit_bias[j].token_id == entry->token_id) {
                return status_errorf(
                    STATUS_INVALID_ARGUMENT,
                    "sampling.logit_bias[%zu].token_id: %u is also that of entry %zu", i,
                    entry->token_id, j);
            }
        }
    }
    return status_ok();
}

static status_t check_sampling(const struct wire_generate_request *m,
                               const struct validate_limits *limits)
{
    const struct wire_token_ids *allowed = &m->sampling.allowed_token_ids;
    TRY(check_logit_bias(&m->sampling, limits));
    TRY(check_count("sampling.allowed_token_ids", allowed->n, limits->n_vocab));
    TRY(validate_token_ids("sampling.allowed_token_ids", allowed, limits->n_vocab));
    const bool beams = m->sampling.beam_width > 0;
    const uint32_t n = beams ? m->sampling.beam_width : m->sampling.n;
    const uint64_t tokens = (uint64_t)n * m->stopping.max_tokens;
    if (n > 1 && tokens > limits->completion_tokens) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "sampling.%s: %u %s of stopping.max_tokens %u = %llu tokens, at "
                             "most %llu (--max-completion-tokens)",
                             beams ? "beam_width" : "n", n, beams ? "beams" : "samples",
                             m->stopping.max_tokens, (unsigned long long)tokens,
                             (unsigned long long)limits->completion_tokens);
    }
    return status_ok();
}

static status_t check_messages(const struct wire_generate_request *m,
                               const struct validate_limits *limits)
{
    static const char *const roles[] = {"system", "user", "assistant", "tool"};
    if (m->n_messages < 1) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "messages: is empty");
    }
    TRY(check_count("messages", m->n_messages, VALIDATE_MAX_MESSAGES));
    size_t total = 0;
    for (size_t i = 0; i < m->n_messages; i++) {
        bool known = false;
        for (size_t r = 0; r < sizeof roles / sizeof roles[0]; r++) {
            known = known || strcmp(m->messages[i].role, roles[r]) == 0;
        }
        if (!known) {
            char role[64];
            return status_errorf(STATUS_INVALID_ARGUMENT,
                                 "messages[%zu].role: %s is not system, user, assistant or tool", i,
                                 log_quote(m->messages[i].role, role, sizeof role));
        }
        total += strlen(m->messages[i].content);
    }
    return validate_text("messages", total, limits);
}

static status_t check_prompt(const struct wire_generate_request *m,
                             const struct validate_limits *limits)
{
    switch (m->prompt_kind) {
    case WIRE_PROMPT_TEXT:
        if (m->prompt_bytes == 0) {
            return status_errorf(STATUS_INVALID_ARGUMENT, "prompt: is empty");
        }
        return validate_text("prompt", m->prompt_bytes, limits);
    case WIRE_PROMPT_TOKENS:
        if (m->prompt_token_ids.n == 0) {
            return status_errorf(STATUS_INVALID_ARGUMENT, "prompt_token_ids: is empty");
        }
        return validate_token_ids("prompt_token_ids", &m->prompt_token_ids, limits->n_vocab);
    case WIRE_PROMPT_MESSAGES:
        return check_messages(m, limits);
    default:
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "prompt: none of prompt, prompt_token_ids and messages is set");
    }
}

/* Ids go into logs and file names of those who call: only characters that need no quoting anywhere. */
static status_t check_request_id(const char *id)
{
    const size_t size = strlen(id);
    if (size > VALIDATE_MAX_REQUEST_ID) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "request_id: %zu bytes, at most %d", size,
                             VALIDATE_MAX_REQUEST_ID);
    }
    const size_t good = strspn(id, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
                                   "._-");
    if (good != size) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "request_id: byte 0x%02x at %zu is not one of A-Z a-z 0-9 . _ -",
                             (unsigned)(unsigned char)id[good], good);
    }
    return status_ok();
}

static status_t check_cache_salt(const char *salt)
{
    if (strlen(salt) > VALIDATE_MAX_CACHE_SALT) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "cache_salt: %zu bytes, at most %d",
                             strlen(salt), VALIDATE_MAX_CACHE_SALT);
    }
    return status_ok();
}

static status_t check_model(const char *model, const struct validate_limits *limits)
{
    if (model[0] == '\0' || strcmp(model, limits->model) == 0) {
        return status_ok();
    }
    char quoted[128];
    return status_errorf(STATUS_NOT_FOUND, "model: %s is not served here, %s is",
                         log_quote(model, quoted, sizeof quoted), limits->model);
}

status_t validate_request(const struct wire_generate_request *m,
                          const struct validate_limits *limits)
{
    TRY(check_request_id(m->request_id));
    TRY(check_cache_salt(m->cache_salt));
    TRY(check_model(m->model, limits));
    for (size_t i = 0; i < sizeof number_rows / sizeof number_rows[0]; i++) {
        TRY(check_number(m, &number_rows[i]));
    }
    TRY(check_stopping(&m->stopping, limits));
    TRY(check_sampling(m, limits));
    TRY(check_beams(m));
    TRY(check_prompt(m, limits));
    return check_missing(m);
}

status_t validate_length(size_t n_prompt_tokens, uint32_t max_tokens,
                         const struct validate_limits *limits)
{
    if (n_prompt_tokens == 0) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "prompt: has no tokens");
    }
    if (n_prompt_tokens + max_tokens > limits->context_tokens) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "prompt of %zu tokens + stopping.max_tokens %u is over the context of "
                             "%u tokens",
                             n_prompt_tokens, max_tokens, limits->context_tokens);
    }
    return status_ok();
}

status_t validate_interval(uint32_t interval_ms)
{
    if (interval_ms != 0 && (interval_ms < 100 || interval_ms > 60000)) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "interval_ms: %u is not in [100, 60000]",
                             interval_ms);
    }
    return status_ok();
}

status_t validate_grace(double grace_seconds)
{
    if (!(grace_seconds >= 0 && grace_seconds <= 86400)) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "grace_seconds: %g is not in [0, 86400]",
                             grace_seconds);
    }
    return status_ok();
}

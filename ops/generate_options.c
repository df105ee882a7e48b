#include "ops/generate_options.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "proto/rpc/rpc.h"

// ---- lists ----

static size_t count_items(const char *text)
{
    size_t n = text[0] != '\0' ? 1 : 0;
    for (const char *at = text; *at != '\0'; at++) {
        n += *at == ',' ? 1 : 0;
    }
    return n;
}

static status_t alloc_list(const char *flag, struct arena *arena, size_t n, size_t size,
                           void **list_out)
{
    *list_out = arena_calloc(arena, n, size);
    return *list_out != NULL
               ? status_ok()
               : status_errorf(STATUS_RESOURCE_EXHAUSTED, "%s: no memory for %zu entries", flag, n);
}

/* The number at *at, which ends it; false when there is none. */
static bool take_id(const char **at, uint32_t *id_out)
{
    char *end;
    if (**at < '0' || **at > '9') {
        return false; // strtoull would take spaces and signs
    }
    errno = 0;
    const unsigned long long id = strtoull(*at, &end, 10);
    *at = end;
    *id_out = (uint32_t)id;
    return errno == 0 && id <= UINT32_MAX;
}

/* What stands between two items, or ends the list. */
static bool take_comma(const char **at)
{
    if (**at == ',' && (*at)[1] != '\0') {
        (*at)++;
        return true;
    }
    return **at == '\0';
}

status_t generate_parse_ids(const char *flag, const char *text, struct arena *arena,
                            struct wire_token_ids *ids_out)
{
    const size_t n = count_items(text);
    void *list;
    TRY(alloc_list(flag, arena, n, sizeof(uint32_t), &list));
    uint32_t *ids = list;
    const char *at = text;
    for (size_t i = 0; i < n; i++) {
        if (!take_id(&at, &ids[i]) || !take_comma(&at)) {
            return status_errorf(STATUS_INVALID_ARGUMENT, "%s %.80s: ids separated by commas", flag,
                                 text);
        }
    }
    *ids_out = (struct wire_token_ids){.ids = ids, .n = n};
    return status_ok();
}

static status_t parse_bias(const char *text, struct arena *arena, struct wire_sampling *sampling)
{
    const size_t n = count_items(text);
    void *list;
    TRY(alloc_list("--logit-bias", arena, n, sizeof(struct wire_logit_bias), &list));
    struct wire_logit_bias *bias = list;
    const char *at = text;
    for (size_t i = 0; i < n; i++) {
        bool good = take_id(&at, &bias[i].token_id) && *at == ':';
        char *end = NULL;
        if (good) {
            bias[i].bias = strtof(at + 1, &end);
            good = end != at + 1;
            at = end;
        }
        if (!good || !take_comma(&at)) {
            return status_errorf(STATUS_INVALID_ARGUMENT,
                                 "--logit-bias %.80s: ID:BIAS separated by commas", text);
        }
    }
    sampling->logit_bias = bias;
    sampling->n_logit_bias = n;
    return status_ok();
}

/* A list of strings in JSON; they are copied, for the parsed list goes. */
static status_t copy_stop_list(const json_t *list, struct arena *arena,
                               struct wire_stopping *stopping)
{
    const size_t n = json_array_size(list);
    void *array;
    TRY(alloc_list("--stop-list", arena, n, sizeof(char *), &array));
    const char **stop = array;
    for (size_t i = 0; i < n; i++) {
        const char *text = json_string_value(json_array_get(list, i));
        stop[i] = text != NULL ? arena_strndup(arena, text, strlen(text)) : NULL;
        if (stop[i] == NULL) {
            return status_errorf(STATUS_INVALID_ARGUMENT, "--stop-list: entry %zu is no string", i);
        }
    }
    stopping->stop = stop;
    stopping->n_stop = n;
    return status_ok();
}

static status_t parse_stop(const struct generate_common *options, struct arena *arena,
                           struct wire_stopping *stopping)
{
    if (options->stop != NULL && options->stop_list != NULL) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "--stop besides --stop-list" STATUS_FIX
                                                      "put all of them into the list");
    }
    if (options->stop != NULL) {
        void *array;
        TRY(alloc_list("--stop", arena, 1, sizeof(char *), &array));
        const char **stop = array;
        stop[0] = options->stop;
        stopping->stop = stop;
        stopping->n_stop = 1;
    }
    if (options->stop_list == NULL) {
        return status_ok();
    }
    json_error_t error;
    json_t *list = json_loads(options->stop_list, 0, &error);
    const status_t s =
        json_is_array(list)
            ? copy_stop_list(list, arena, stopping)
            : status_errorf(STATUS_INVALID_ARGUMENT, "--stop-list %.80s: no JSON list: %.80s",
                            options->stop_list, list == NULL ? error.text : "something else");
    json_decref(list);
    return s;
}

static status_t parse_seed(const char *text, uint64_t *seed_out)
{
    char *end;
    errno = 0;
    *seed_out = strtoull(text, &end, 0);
    if (errno != 0 || end == text || *end != '\0' || *text == '-') {
        return status_errorf(STATUS_INVALID_ARGUMENT, "--seed %s: not a number from 0 to 2^64-1",
                             text);
    }
    return status_ok();
}

// ---- the request ----

static status_t fill_sampling(const struct generate_common *options, struct arena *arena,
                              struct wire_sampling *sampling)
{
    sampling->temperature = (float)options->temperature;
    sampling->top_p = (float)options->top_p;
    sampling->top_k = (int32_t)options->top_k;
    sampling->min_p = (float)options->min_p;
    sampling->repetition_penalty = (float)options->repetition_penalty;
    sampling->presence_penalty = (float)options->presence_penalty;
    sampling->frequency_penalty = (float)options->frequency_penalty;
    if (options->seed != NULL) {
        sampling->has_seed = true;
        TRY(parse_seed(options->seed, &sampling->seed));
    }
    if (options->allowed_token_ids != NULL) {
        TRY(generate_parse_ids("--allowed-token-ids", options->allowed_token_ids, arena,
                               &sampling->allowed_token_ids));
    }
    return options->logit_bias != NULL ? parse_bias(options->logit_bias, arena, sampling)
                                       : status_ok();
}

static status_t fill_stopping(const struct generate_common *options, struct arena *arena,
                              struct wire_stopping *stopping)
{
    stopping->max_tokens = (uint32_t)options->max_tokens;
    stopping->min_tokens = (uint32_t)options->min_tokens;
    stopping->ignore_eos = options->ignore_eos;
    stopping->include_stop_str_in_output = options->include_stop_str_in_output;
    if (options->stop_token_ids != NULL) {
        TRY(generate_parse_ids("--stop-token-ids", options->stop_token_ids, arena,
                               &stopping->stop_token_ids));
    }
    return parse_stop(options, arena, stopping);
}

status_t generate_common_request(const struct generate_common *options, struct arena *arena,
                                 struct wire_generate_request *request_out)
{
    struct wire_generate_request request;
    wire_generate_request_init(&request);
    request.request_id = options->request_id != NULL ? options->request_id : "";
    request.model = options->model_name != NULL ? options->model_name : "";
    request.priority = (int32_t)options->priority;
    request.cache_salt = options->cache_salt != NULL ? options->cache_salt : "";
    request.output.has_logprobs = options->logprobs >= 0;
    request.output.logprobs = options->logprobs > 0 ? (uint32_t)options->logprobs : 0;
    request.output.skip_special_tokens = options->skip_special_tokens;
    TRY(fill_sampling(options, arena, &request.sampling));
    TRY(fill_stopping(options, arena, &request.stopping));
    *request_out = request;
    return status_ok();
}

uint64_t generate_common_timeout(const struct generate_common *options)
{
    return options->timeout_s > 0 ? (uint64_t)(options->timeout_s * 1e9) : RPC_NO_DEADLINE;
}

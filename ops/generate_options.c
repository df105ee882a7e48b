#include "ops/generate_options.h"

#include <errno.h>
#include <stdlib.h>

#include "proto/rpc/rpc.h"

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

static status_t parse_ids(const char *text, uint32_t *ids, size_t *n_out)
{
    size_t n = 0;
    for (const char *at = text; *at != '\0'; n++) {
        char *end;
        errno = 0;
        const unsigned long id = strtoul(at, &end, 10);
        if (errno != 0 || end == at || id > UINT32_MAX || (*end != '\0' && *end != ',')) {
            return status_errorf(STATUS_INVALID_ARGUMENT,
                                 "--stop-token-ids %s: ids separated by commas", text);
        }
        if (n == GENERATE_MAX_STOP_IDS) {
            return status_errorf(STATUS_INVALID_ARGUMENT, "--stop-token-ids: at most %d ids",
                                 GENERATE_MAX_STOP_IDS);
        }
        ids[n] = (uint32_t)id;
        at = *end == ',' ? end + 1 : end;
    }
    *n_out = n;
    return status_ok();
}

status_t generate_common_request(const struct generate_common *options,
                                 struct generate_lists *lists,
                                 struct wire_generate_request *request_out)
{
    struct wire_generate_request request;
    wire_generate_request_init(&request);
    request.request_id = options->request_id != NULL ? options->request_id : "";
    request.model = options->model_name != NULL ? options->model_name : "";
    request.sampling.temperature = (float)options->temperature;
    request.sampling.top_p = (float)options->top_p;
    request.sampling.top_k = (int32_t)options->top_k;
    request.sampling.min_p = (float)options->min_p;
    request.stopping.max_tokens = (uint32_t)options->max_tokens;
    request.stopping.min_tokens = (uint32_t)options->min_tokens;
    request.stopping.ignore_eos = options->ignore_eos;
    request.output.has_logprobs = options->logprobs >= 0;
    request.output.logprobs = options->logprobs > 0 ? (uint32_t)options->logprobs : 0;
    if (options->seed != NULL) {
        request.sampling.has_seed = true;
        TRY(parse_seed(options->seed, &request.sampling.seed));
    }
    if (options->stop != NULL) {
        lists->stop[0] = options->stop;
        request.stopping.stop = lists->stop;
        request.stopping.n_stop = 1;
    }
    if (options->stop_token_ids != NULL) {
        request.stopping.stop_token_ids.ids = lists->stop_ids;
        TRY(parse_ids(options->stop_token_ids, lists->stop_ids,
                      &request.stopping.stop_token_ids.n));
    }
    *request_out = request;
    return status_ok();
}

uint64_t generate_common_timeout(const struct generate_common *options)
{
    return options->timeout_s > 0 ? (uint64_t)(options->timeout_s * 1e9) : RPC_NO_DEADLINE;
}

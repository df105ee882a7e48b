/*
 * generate_options.h - the options that generate and chat share, and the request made of them
 *
 * Thread: owner:main
 */
#pragma once

#include "base/config.h"
#include "ops/private_server.h"
#include "proto/wire/inference.h"

struct generate_common {
    const char *address;
    struct private_server_options server;
    int64_t max_tokens, min_tokens, top_k, logprobs, priority;
    double temperature, top_p, min_p, timeout_s;
    double repetition_penalty, presence_penalty, frequency_penalty;
    const char *seed, *stop, *stop_token_ids, *request_id, *model_name, *cache_salt;
    const char *stop_list, *logit_bias, *allowed_token_ids;
    bool ignore_eos, include_stop_str_in_output, skip_special_tokens;
};

/* What lists on a command line may take in memory. */
#define GENERATE_MAX_LIST_BYTES ((size_t)64 << 20)

/* INVALID_ARGUMENT for a seed, an id or a bias that is no number; ranges are the server's to check. The arena gets what
 * the request borrows beside the options. */
MUST_USE status_t generate_common_request(const struct generate_common *options,
                                          struct arena *arena,
                                          struct wire_generate_request *request_out);

/* "1,2,13" as ids in the arena; `flag` names it in the failure. */
MUST_USE status_t generate_parse_ids(const char *flag, const char *text, struct arena *arena,
                                     struct wire_token_ids *ids_out);

uint64_t generate_common_timeout(const struct generate_common *options);

#define GENERATE_NUMBER_ROW(name_, offset_, default_, help_)                                    \
    {                                                                                           \
        .name = (name_), .type = CONFIG_FLOAT, .offset = (offset_), .default_text = (default_), \
        .help = (help_)                                                                         \
    }

#define GENERATE_BOOL_ROW(name_, offset_, default_, help_)                                     \
    {                                                                                          \
        .name = (name_), .type = CONFIG_BOOL, .offset = (offset_), .default_text = (default_), \
        .help = (help_)                                                                        \
    }

#define GENERATE_STRING_ROW(name_, offset_, help_)                                   \
    {                                                                                \
        .name = (name_), .type = CONFIG_STRING, .offset = (offset_), .help = (help_) \
    }

/* Rows for a struct whose member `common` is a struct generate_common. */
#define GENERATE_COMMON_ROWS(type_)                                                              \
    {.name = "address",                                                                          \
     .type = CONFIG_STRING,                                                                      \
     .offset = offsetof(type_, common.address),                                                  \
     .default_text = "127.0.0.1:50051",                                                          \
     .help = "server to ask, HOST:PORT or unix:PATH"},                                           \
        GENERATE_STRING_ROW("model", offsetof(type_, common.server.model),                       \
                            "directory: start a private server for this call"),                  \
        {.name = "tensor-parallel-size",                                                         \
         .alias = "-tp",                                                                         \
         .type = CONFIG_STRING,                                                                  \
         .offset = offsetof(type_, common.server.tensor_parallel_size),                          \
         .help = "with --model: as for serve"},                                                  \
        {.name = "pipeline-parallel-size",                                                       \
         .alias = "-pp",                                                                         \
         .type = CONFIG_STRING,                                                                  \
         .offset = offsetof(type_, common.server.pipeline_parallel_size),                        \
         .help = "with --model: as for serve"},                                                  \
        GENERATE_STRING_ROW("kv-placement", offsetof(type_, common.server.kv_placement),         \
                            "with --model: as for serve"),                                       \
        GENERATE_STRING_ROW("dtype", offsetof(type_, common.server.dtype),                       \
                            "with --model: as for serve"),                                       \
        GENERATE_STRING_ROW("quantization", offsetof(type_, common.server.quantization),         \
                            "with --model: as for serve"),                                       \
        GENERATE_STRING_ROW("kv-cache-dtype", offsetof(type_, common.server.kv_cache_dtype),     \
                            "with --model: as for serve"),                                       \
        GENERATE_STRING_ROW("max-model-len", offsetof(type_, common.server.max_model_len),       \
                            "with --model: as for serve"),                                       \
        GENERATE_STRING_ROW("max-num-seqs", offsetof(type_, common.server.max_num_seqs),         \
                            "with --model: as for serve"),                                       \
        GENERATE_STRING_ROW("max-num-batched-tokens",                                            \
                            offsetof(type_, common.server.max_num_batched_tokens),               \
                            "with --model: as for serve"),                                       \
        GENERATE_STRING_ROW("load-format", offsetof(type_, common.server.load_format),           \
                            "with --model: as for serve"),                                       \
        GENERATE_STRING_ROW("threads", offsetof(type_, common.server.threads),                   \
                            "with --model: as for serve"),                                       \
        GENERATE_STRING_ROW("device", offsetof(type_, common.server.device),                     \
                            "with --model: as for serve"),                                       \
        GENERATE_STRING_ROW("log-level", offsetof(type_, common.server.log_level),               \
                            "with --model: as for serve"),                                       \
        {.name = "max-tokens",                                                                   \
         .alias = "-n",                                                                          \
         .type = CONFIG_INT,                                                                     \
         .offset = offsetof(type_, common.max_tokens),                                           \
         .default_text = "256",                                                                  \
         .min = 1,                                                                               \
         .max = 1e9,                                                                             \
         .help = "tokens to generate at most"},                                                  \
        {.name = "min-tokens",                                                                   \
         .type = CONFIG_INT,                                                                     \
         .offset = offsetof(type_, common.min_tokens),                                           \
         .default_text = "0",                                                                    \
         .min = 0,                                                                               \
         .max = 1e9,                                                                             \
         .help = "tokens before an end is allowed"},                                             \
        GENERATE_NUMBER_ROW("temperature", offsetof(type_, common.temperature), "1.0",           \
                            "0 is greedy"),                                                      \
        GENERATE_NUMBER_ROW("top-p", offsetof(type_, common.top_p), "1.0",                       \
                            "keep the likeliest tokens that make this mass"),                    \
        {.name = "top-k",                                                                        \
         .type = CONFIG_INT,                                                                     \
         .offset = offsetof(type_, common.top_k),                                                \
         .default_text = "0",                                                                    \
         .min = -1,                                                                              \
         .max = 2147483647.0,                                                                    \
         .help = "keep this many likeliest tokens; 0: all"},                                     \
        GENERATE_NUMBER_ROW("min-p", offsetof(type_, common.min_p), "0",                         \
                            "keep tokens at least this likely relative to the likeliest"),       \
        GENERATE_NUMBER_ROW("repetition-penalty", offsetof(type_, common.repetition_penalty),    \
                            "1.0", "divide the logits of tokens seen in prompt or text"),        \
        GENERATE_NUMBER_ROW("presence-penalty", offsetof(type_, common.presence_penalty), "0",   \
                            "subtract from the logits of tokens seen in the text"),              \
        GENERATE_NUMBER_ROW("frequency-penalty", offsetof(type_, common.frequency_penalty), "0", \
                            "subtract for each time a token was seen in the text"),              \
        GENERATE_STRING_ROW("logit-bias", offsetof(type_, common.logit_bias),                    \
                            "add to logits: ID:BIAS,ID:BIAS"),                                   \
        GENERATE_STRING_ROW("allowed-token-ids", offsetof(type_, common.allowed_token_ids),      \
                            "draw only these ids: 5,17"),                                        \
        GENERATE_STRING_ROW("seed", offsetof(type_, common.seed), "same seed, same text"),       \
        GENERATE_STRING_ROW("stop", offsetof(type_, common.stop), "end before this text"),       \
        GENERATE_STRING_ROW("stop-list", offsetof(type_, common.stop_list),                      \
                            "end before any of these: '[\"a\", \"b\"]'"),                        \
        GENERATE_BOOL_ROW("include-stop-str-in-output",                                          \
                          offsetof(type_, common.include_stop_str_in_output), "false",           \
                          "leave the text that ended it in"),                                    \
        GENERATE_BOOL_ROW("skip-special-tokens", offsetof(type_, common.skip_special_tokens),    \
                          "true", "leave special tokens out of the text"),                       \
        GENERATE_STRING_ROW("stop-token-ids", offsetof(type_, common.stop_token_ids),            \
                            "end at these ids: 2,13"),                                           \
        GENERATE_STRING_ROW("request-id", offsetof(type_, common.request_id),                    \
                            "name of the request"),                                              \
        GENERATE_STRING_ROW("cache-salt", offsetof(type_, common.cache_salt),                    \
                            "share cached prefixes with requests of this salt alone"),           \
        GENERATE_STRING_ROW("served-model-name", offsetof(type_, common.model_name),             \
                            "model to ask for"),                                                 \
        {.name = "logprobs",                                                                     \
         .type = CONFIG_INT,                                                                     \
         .offset = offsetof(type_, common.logprobs),                                             \
         .default_text = "-1",                                                                   \
         .min = -1,                                                                              \
         .max = 20,                                                                              \
         .help = "report log probabilities and this many alternatives; -1: none"},               \
        {.name = "priority",                                                                     \
         .type = CONFIG_INT,                                                                     \
         .offset = offsetof(type_, common.priority),                                             \
         .default_text = "0",                                                                    \
         .min = -2147483648.0,                                                                   \
         .max = 2147483647.0,                                                                    \
         .help = "smaller is served first"},                                                     \
        {.name = "timeout",                                                                      \
         .type = CONFIG_FLOAT,                                                                   \
         .offset = offsetof(type_, common.timeout_s),                                            \
         .default_text = "0",                                                                    \
         .min = 0,                                                                               \
         .max = 1e7,                                                                             \
         .help = "deadline of a completion in seconds; 0: none"},                                \
        GENERATE_BOOL_ROW("ignore-eos", offsetof(type_, common.ignore_eos), "false",             \
                          "go on after the end-of-text token")

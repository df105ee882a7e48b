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
    int64_t max_tokens, min_tokens, top_k, logprobs;
    double temperature, top_p, min_p, timeout_s;
    const char *seed, *stop, *stop_token_ids, *request_id, *model_name;
    bool ignore_eos;
};

#define GENERATE_MAX_STOP_IDS 64

/* Memory the request borrows. */
struct generate_lists {
    const char *stop[1];
    uint32_t stop_ids[GENERATE_MAX_STOP_IDS];
};

/* INVALID_ARGUMENT for a seed or id that is no number; ranges are the server's to check. */
MUST_USE status_t generate_common_request(const struct generate_common *options,
                                          struct generate_lists *lists,
                                          struct wire_generate_request *request_out);

uint64_t generate_common_timeout(const struct generate_common *options);

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
        GENERATE_STRING_ROW("kv-placement", offsetof(type_, common.server.kv_placement),         \
                            "with --model: as for serve"),                                       \
        GENERATE_STRING_ROW("dtype", offsetof(type_, common.server.dtype),                       \
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
        {.name = "temperature",                                                                  \
         .type = CONFIG_FLOAT,                                                                   \
         .offset = offsetof(type_, common.temperature),                                          \
         .default_text = "1.0",                                                                  \
         .help = "0 is greedy"},                                                                 \
        {.name = "top-p",                                                                        \
         .type = CONFIG_FLOAT,                                                                   \
         .offset = offsetof(type_, common.top_p),                                                \
         .default_text = "1.0",                                                                  \
         .help = "keep the likeliest tokens that make this mass"},                               \
        {.name = "top-k",                                                                        \
         .type = CONFIG_INT,                                                                     \
         .offset = offsetof(type_, common.top_k),                                                \
         .default_text = "0",                                                                    \
         .min = -1,                                                                              \
         .max = 2147483647.0,                                                                    \
         .help = "keep this many likeliest tokens; 0: all"},                                     \
        {.name = "min-p",                                                                        \
         .type = CONFIG_FLOAT,                                                                   \
         .offset = offsetof(type_, common.min_p),                                                \
         .default_text = "0",                                                                    \
         .help = "keep tokens at least this likely relative to the likeliest"},                  \
        GENERATE_STRING_ROW("seed", offsetof(type_, common.seed), "same seed, same text"),       \
        GENERATE_STRING_ROW("stop", offsetof(type_, common.stop), "end before this text"),       \
        GENERATE_STRING_ROW("stop-token-ids", offsetof(type_, common.stop_token_ids),            \
                            "end at these ids: 2,13"),                                           \
        GENERATE_STRING_ROW("request-id", offsetof(type_, common.request_id),                    \
                            "name of the request"),                                              \
        GENERATE_STRING_ROW("served-model-name", offsetof(type_, common.model_name),             \
                            "model to ask for"),                                                 \
        {.name = "logprobs",                                                                     \
         .type = CONFIG_INT,                                                                     \
         .offset = offsetof(type_, common.logprobs),                                             \
         .default_text = "-1",                                                                   \
         .min = -1,                                                                              \
         .max = 20,                                                                              \
         .help = "report log probabilities and this many alternatives; -1: none"},               \
        {.name = "timeout",                                                                      \
         .type = CONFIG_FLOAT,                                                                   \
         .offset = offsetof(type_, common.timeout_s),                                            \
         .default_text = "0",                                                                    \
         .min = 0,                                                                               \
         .max = 1e7,                                                                             \
         .help = "deadline of a completion in seconds; 0: none"},                                \
    {                                                                                            \
        .name = "ignore-eos", .type = CONFIG_BOOL, .offset = offsetof(type_, common.ignore_eos), \
        .default_text = "false", .help = "go on after the end-of-text token"                     \
    }

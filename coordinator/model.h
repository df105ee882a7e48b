/*
 * model.h - the served model, as the coordinator knows it
 *
 * What:      configuration, plan and tokenizer, read and checked before anything is started, and the answers about
 *            them (GetModelInfo, GetPlan), packed once.
 * Ownership: owns everything in it; free with model_destroy after all who borrow it have ended.
 * Thread:    any, once loaded: immutable.
 * Errors:    as spec_load, plan_make and tokenizer_load give them.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/status.h"
#include "coordinator/config_table.h"
#include "coordinator/tokenizer/chat_template.h"
#include "coordinator/tokenizer/tokenizer.h"
#include "parallel/plan.h"
#include "parallel/spec.h"

struct model {
    char dir[4096]; /* absolute: workers may run elsewhere */
    char name[256]; /* the served name */
    struct model_spec spec;
    struct plan plan;
    struct tokenizer *tokenizer;
    struct chat_template chat;
    int dtype, kv_dtype;     /* enum dtype */
    int quantization;        /* enum quantization */
    uint32_t context_tokens; /* prompt + completion */
    size_t prompt_bytes;     /* bound of a text prompt */
    double kv_replication, kv_bytes_per_token;
    struct bytes packed_plan;
    struct bytes info_response; /* GetModelInfoResponse */
    struct bytes plan_response; /* GetPlanResponse */
};

MUST_USE status_t model_load(const struct coordinator_config *config, struct model *model_out);
void model_destroy(struct model *model); /* accepts a zeroed model */

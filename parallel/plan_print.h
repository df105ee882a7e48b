/*
 * plan_print.h - the plan for people and for programs
 *
 * Layout:    JSON: the object of `kvasir plan --json` and Cluster.GetPlan,
 *
 *              {"model", "architecture", "parameters", "tensor_parallel", "pipeline_parallel",
 *               "kv_bytes_per_token", "kv_bytes_per_token_stored", "kv_replication_factor",
 *               "weight_dtype", "quantization": "none" | "int8" | "w8a8", "kv_dtype", "lanes": D,
 *               "stages": [{"stage", "first_layer", "last_layer", "bytes_share", "time_share"}],
 *               "ranks":  [{"rank", "stage", "tp_rank", "first_layer", "last_layer", "weight_bytes",
 *                           "kv_bytes_per_token",
 *                           "memory_bytes": {"weights", "kv", "buffers", "comm", "workspace", "runtime", "total"}}],
 *               "layers": [{"layer", "stage", "attention_kind", "ffn_kind", "q_heads", "kv_heads", "ffn", "kv_placement",
 *                           "ranks": [{"rank", "q_heads": [begin, end],
 *                                      "kv_heads": [{"head", "lanes": [..]}], "ffn": [begin, end],
 *                                      "attention_rows": [begin, end], "ffn_rows": [begin, end]}]}]}
 *
 *            and "prediction", as in cost_report.h, where rates are known.
 *            kv_bytes_per_token is what one copy needs, kv_bytes_per_token_stored what all ranks hold;
 *            a rank's is averaged over lanes. Shares of the stages sum to 1 (plan_stage_load). A kind is "full", "linear" or "none"; the rows are of the matrix of a
 *            linear block. Counts are 0, intervals empty and kv_placement null where a block has none.
 *            Text: at most 80 columns; layers down, ranks across, runs of equal layers on one line: every cut in numbers, or
 *            the picture of plan_draw.h.
 * Thread:    any
 * Errors:    RESOURCE_EXHAUSTED for memory.
 */
#pragma once

#include "base/bytes.h"
#include "parallel/plan.h"
#include "parallel/plan_memory.h"

/* Text: what follows the ranks' numbers. */
enum plan_print_view { PLAN_PRINT_TABLE, PLAN_PRINT_ASCII, PLAN_PRINT_UTF8 };

struct plan_print_args {
    const struct plan *plan;
    const struct model_spec *spec;
    int dtype;                                /* of weights on the device */
    int quantization;                         /* enum quantization: of weights */
    int kv_dtype;                             /* of keys and values */
    const struct plan_memory_request *memory; /* NULL: memory is left out */
    int view;                       /* enum plan_print_view: a table, or plan_draw.h's picture */
    const struct cost_report *cost; /* JSON: what is predicted; NULL: left out */
};

MUST_USE status_t plan_print_json(const struct plan_print_args *args, struct bytes *out);
MUST_USE status_t plan_print_text(const struct plan_print_args *args, struct bytes *out);

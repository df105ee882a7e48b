#include <jansson.h>

#include <math.h>

#include "parallel/cost_report.h"
#include "parallel/plan_print.h"

static json_t *interval_json(plan_interval_t interval)
{
    return json_pack("[ii]", interval.begin, interval.end);
}

/* The lanes, or under token the blocks of a stripe, for which the rank holds the head. */
static json_t *lanes_json(const struct plan *plan, int32_t class_index, int32_t rank, int32_t head)
{
    json_t *lanes = json_array();
    for (int32_t lane = 0; lane < plan_columns(plan, class_index); lane++) {
        const int32_t *heads;
        const int32_t n = plan_held(plan, class_index, rank, lane, &heads);
        for (int32_t i = 0; i < n; i++) {
            if (heads[i] == head) {
                json_array_append_new(lanes, json_integer(lane));
            }
        }
    }
    return lanes;
}

static json_t *kv_heads_json(const struct plan *plan, int32_t class_index, int32_t rank)
{
    json_t *list = json_array();
    if (class_index < 0) {
        return list;
    }
    const plan_interval_t heads = plan_kv_weight_heads(plan, class_index, rank);
    const char *of = plan->classes[class_index].placement == PLAN_TOKEN ? "blocks" : "lanes";
    for (int32_t head = heads.begin; head < heads.end; head++) {
        json_array_append_new(
            list, json_pack("{siso}", "head", head, of, lanes_json(plan, class_index, rank, head)));
    }
    return list;
}

static json_t *layer_json(const struct plan_print_args *a, int32_t layer)
{
    const struct plan *plan = a->plan;
    const struct spec_layer *of = &a->spec->layers[layer];
    const int32_t class_index = plan->layers[layer].class_index;
    const bool keeps = class_index >= 0;
    const int32_t stage = plan_stage_of_layer(plan, layer);
    json_t *ranks = json_array();
    for (int32_t r = 0; r < plan->tp; r++) {
        json_array_append_new(
            ranks, json_pack("{sisososososo}", "rank", stage * plan->tp + r, "q_heads",
                             interval_json(plan_q_heads(plan, layer, r)), "kv_heads",
                             kv_heads_json(plan, class_index, r), "ffn",
                             interval_json(plan_ffn_columns(plan, layer, r)), "attention_rows",
                             interval_json(plan_attention_rows(plan, layer, r)), "ffn_rows",
                             interval_json(plan_ffn_rows(plan, layer, r))));
    }
    return json_pack(
        "{sisisssssisisiss?so}", "layer", layer, "stage", stage, "attention_kind",
        spec_block_name(of->attention), "ffn_kind", spec_block_name(of->ffn), "q_heads",
        keeps ? plan->n_heads : 0, "kv_heads", of->n_kv_heads, "ffn", of->n_ff, "kv_placement",
        keeps ? plan_placement_name(plan->classes[class_index].placement) : NULL, "ranks", ranks);
}

static json_t *memory_json(const struct plan_memory_request *request, int32_t rank)
{
    struct plan_memory m;
    plan_memory_of(request, rank, &m);
    return json_pack("{sIsIsIsIsIsIsIsI}", "weights", (json_int_t)m.weights, "kv", (json_int_t)m.kv,
                     "buffers", (json_int_t)m.buffers, "comm", (json_int_t)m.comm, "workspace",
                     (json_int_t)m.workspace, "runtime", (json_int_t)m.runtime, "swap",
                     (json_int_t)m.swap, "total", (json_int_t)m.total);
}

static json_t *rank_json(const struct plan_print_args *a, int32_t rank)
{
    const struct weight_formats formats = {a->dtype, a->quantization};
    const int32_t stage = plan_stage(a->plan, rank);
    const plan_interval_t layers = plan_stage_layers(a->plan, stage);
    json_t *json = json_pack(
        "{sisisisisisIsf}", "rank", rank, "stage", stage, "tp_rank", plan_tp_rank(a->plan, rank),
        "first_layer", layers.begin, "last_layer", layers.end - 1, "weight_bytes",
        (json_int_t)plan_weight_bytes(a->plan, a->spec, rank, &formats), "kv_bytes_per_token",
        plan_kv_bytes_per_token(a->plan, rank, a->kv_dtype));
    if (a->memory != NULL) {
        json_object_set_new(json, "memory_bytes", memory_json(a->memory, rank));
    }
    return json;
}

static json_t *stages_json(const struct plan_print_args *a)
{
    json_t *stages = json_array();
    for (int32_t stage = 0; stage < a->plan->pp; stage++) {
        const plan_interval_t layers = plan_stage_layers(a->plan, stage);
        const plan_load_t load = plan_stage_load(a->plan, a->spec, stage);
        json_array_append_new(stages,
                              json_pack("{sisisisfsf}", "stage", stage, "first_layer", layers.begin,
                                        "last_layer", layers.end - 1, "bytes_share", load.bytes,
                                        "time_share", load.time));
    }
    return stages;
}

// ---- what is predicted ----

static json_t *ops_json(const struct cost_time *time)
{
    json_t *object = json_object();
    for (int op = 0; op < COST_N_OPS; op++) {
        json_object_set_new(object, cost_op_name(op), json_real(time->seconds[op]));
    }
    json_object_set_new(object, "total", json_real(time->total_s));
    return object;
}

static json_t *prediction_json(const struct cost_prediction *p)
{
    return json_pack("{sfsfsfsfsfsoso}", "tokens_per_s", p->tokens_per_s, "decode_tokens_per_s",
                     p->decode_tokens_per_s, "prefill_tokens_per_s", p->prefill_tokens_per_s,
                     "first_token_s", p->first_token_s, "inter_token_s", p->inter_token_s,
                     "decode_step_s", ops_json(&p->decode), "prefill_step_s",
                     ops_json(&p->prefill));
}

static json_t *cost_layer_json(const struct cost_report *r, int32_t layer)
{
    struct cost_time bound, expected;
    cost_report_layer(r, layer, &bound, &expected);
    const double collective_s = expected.seconds[COST_ALL_REDUCE] + expected.seconds[COST_EXCHANGE];
    return json_pack("{sisfsfsfsfsfsfsf}", "layer", layer, "weight_bytes", expected.weight_bytes,
                     "kv_bytes", expected.kv_bytes, "flops", expected.flops, "collective_bytes",
                     expected.collective_bytes, "collective_s", collective_s, "bound_s",
                     bound.total_s, "expected_s", expected.total_s);
}

static json_t *efficiency_json(const struct cost_efficiency *e)
{
    return json_pack("{sfsfsfsfsfsfsfsfsfsf}", "matmul_read", e->matmul_read, "matmul_flops",
                     e->matmul_flops, "matmul_half_rows", e->matmul_half_rows, "kv_read",
                     e->kv_read, "attention_flops", e->attention_flops, "elementwise",
                     e->elementwise, "sampling", e->sampling, "op_s", e->op_s, "step_s", e->step_s,
                     "row_s", e->row_s);
}

/* Infinite where a model keeps no keys and values: JSON has no such number. */
static json_t *finite_json(double number)
{
    return isfinite(number) ? json_real(floor(number)) : json_null();
}

static json_t *cost_json(const struct cost_report *r)
{
    json_t *layers = json_array();
    for (int32_t layer = 0; layer < r->model.plan->n_layers; layer++) {
        json_array_append_new(layers, cost_layer_json(r, layer));
    }
    return json_pack(
        "{sssssisisissso so so so so sf sf so}", "device", r->model.rates->name, "rates",
        r->model.rates->n_matmuls > 0 ? "measured" : "table", "prompt_tokens", r->workload.n_prompt,
        "generated_tokens", r->workload.n_generate, "concurrency", r->workload.concurrency, "binds",
        cost_binds(&r->model, &r->expected.decode), "bound", prediction_json(&r->bound), "expected",
        prediction_json(&r->expected), "efficiency", efficiency_json(&r->model.rates->efficiency),
        "kv_capacity_tokens", finite_json(r->memory.kv_tokens), "max_concurrency",
        finite_json(r->max_concurrency), "usable_bytes", r->memory.usable_bytes, "fixed_bytes",
        r->memory.fixed_bytes, "layers", layers);
}

static json_t *plan_json(const struct plan_print_args *a)
{
    const struct plan *plan = a->plan;
    const int64_t once = spec_kv_bytes_per_token(a->spec, a->kv_dtype);
    const double replication = plan_kv_replication(plan, a->spec);
    json_t *ranks = json_array();
    json_t *layers = json_array();
    for (int32_t rank = 0; rank < plan_n_ranks(plan); rank++) {
        json_array_append_new(ranks, rank_json(a, rank));
    }
    for (int32_t layer = 0; layer < plan->n_layers; layer++) {
        json_array_append_new(layers, layer_json(a, layer));
    }
    json_t *json =
        json_pack("{sssssIsisisIsIsfsssssssisisososo}", "model", a->spec->name, "architecture",
                  a->spec->architecture, "parameters", (json_int_t)spec_parameters(a->spec),
                  "tensor_parallel", plan->tp, "pipeline_parallel", plan->pp, "kv_bytes_per_token",
                  (json_int_t)once, "kv_bytes_per_token_stored",
                  (json_int_t)((double)once * replication + 0.5), "kv_replication_factor",
                  replication, "weight_dtype", dtype_name(a->dtype), "quantization",
                  dtype_quantization_name(a->quantization), "kv_dtype", dtype_name(a->kv_dtype),
                  "lanes", plan->n_lanes, "stripe_blocks", plan->stripe, "stages", stages_json(a),
                  "ranks", ranks, "layers", layers);
    if (a->cost != NULL) {
        json_object_set_new(json, "prediction", cost_json(a->cost));
    }
    return json;
}

static int append(const char *data, size_t size, void *out)
{
    return bytes_append(out, data, size).code == STATUS_OK ? 0 : -1;
}

status_t plan_print_json(const struct plan_print_args *args, struct bytes *out)
{
    json_t *json = plan_json(args);
    if (json == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "plan: no memory to print it");
    }
    const int failed =
        json_dump_callback(json, append, out, JSON_COMPACT | JSON_REAL_PRECISION(12));
    json_decref(json);
    return failed ? status_errorf(STATUS_RESOURCE_EXHAUSTED, "plan: longer than %zu bytes as JSON",
                                  out->max_bytes)
                  : status_ok();
}

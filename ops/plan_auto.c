#include "ops/plan_auto.h"

#include <jansson.h>
#include <math.h>
#include <string.h>

#include "parallel/plan.h"

enum { MAX_LINES = 20, MAX_REFUSED = 6 };

static status_t candidate_line(const struct cost_candidate *c, int32_t place, struct bytes *out)
{
    const char *placement = plan_placement_name(c->placement);
    return bytes_printf(out, "%3d %4d %4d %4d %-9s %6d %11.4g %9.3f %9.2f  %s\n", place, c->tp,
                        c->pp, c->replicas, placement, c->concurrency * c->replicas,
                        c->tokens_per_s, c->inter_token_s * 1e3, c->first_token_s * 1e3, c->binds);
}

/* Why the first is better than the second way to use the GPUs. */
static status_t reason(const struct cost_search_request *r, const struct cost_search *search,
                       struct bytes *out)
{
    const struct cost_candidate *best = &search->candidates[0];
    TRY(bytes_printf(out,
                     "\nbest: -tp %d -pp %d --replicas %d --kv-placement %s --max-num-seqs %d\n"
                     "its steps wait for %s",
                     best->tp, best->pp, best->replicas, plan_placement_name(best->placement),
                     best->concurrency, best->binds));
    if (search->n_fitting > 1) {
        const struct cost_candidate *next = &search->candidates[1];
        const bool latency = r->objective == COST_LATENCY;
        const double gain = latency ? next->inter_token_s / best->inter_token_s
                                    : best->tokens_per_s / next->tokens_per_s;
        TRY(bytes_printf(out,
                         ",\n%.1f %% %s than -tp %d -pp %d --replicas %d %s, which waits for %s",
                         (gain - 1) * 100, latency ? "quicker" : "more", next->tp, next->pp,
                         next->replicas, plan_placement_name(next->placement), next->binds));
    }
    return bytes_append_str(out, "\n");
}

static status_t refused_lines(const struct cost_search *search, struct bytes *out)
{
    const int32_t n = search->n - search->n_fitting;
    for (int32_t i = 0; i < n && i < MAX_REFUSED; i++) {
        const struct cost_candidate *c = &search->candidates[search->n_fitting + i];
        TRY(bytes_printf(out, "%s -tp %d -pp %d: %s\n", i == 0 ? "\ndoes not fit:\n " : " ", c->tp,
                         c->pp, c->refusal));
    }
    return n > MAX_REFUSED ? bytes_printf(out, "  and %d more\n", n - MAX_REFUSED) : status_ok();
}

status_t plan_auto_print(const struct cost_search_request *r, const struct cost_search *search,
                         struct bytes *out)
{
    TRY(bytes_printf(
        out,
        "%s on %d %s, %d a node\n%d tokens in, %d out, %s\n"
        "expected, %s; nothing of it is measured\n\n"
        "     -tp  -pp reps placement   seqs    tokens/s  ms/token   TTFT ms  waits for\n",
        r->spec->name, r->n_gpus, r->rates->name, r->gpus_per_node, r->workload.n_prompt,
        r->workload.n_generate,
        r->workload.concurrency > 0 ? "as many at once as asked for" : "as many at once as fit",
        r->objective == COST_LATENCY ? "quickest token first" : "most tokens/s first"));
    for (int32_t i = 0; i < search->n_fitting && i < MAX_LINES; i++) {
        TRY(candidate_line(&search->candidates[i], i + 1, out));
    }
    if (search->n_fitting > MAX_LINES) {
        TRY(bytes_printf(out, "    and %d more\n", search->n_fitting - MAX_LINES));
    }
    TRY(reason(r, search, out));
    return refused_lines(search, out);
}

static json_t *candidate_json(const struct cost_candidate *c)
{
    const double tokens = isfinite(c->kv_tokens) ? floor(c->kv_tokens) : 0;
    return json_pack("{sisisisssisisbsisfsfsfsfsssfsfss}", "tensor_parallel", c->tp,
                     "pipeline_parallel", c->pp, "replicas", c->replicas, "kv_placement",
                     plan_placement_name(c->placement), "replicated_layers", c->n_replicated,
                     "token_layers", c->n_token, "fits", c->concurrency > 0, "concurrency",
                     c->concurrency * c->replicas, "kv_capacity_tokens", tokens, "tokens_per_s",
                     c->tokens_per_s, "inter_token_s", c->inter_token_s, "first_token_s",
                     c->first_token_s, "binds", c->binds != NULL ? c->binds : "", "needed_bytes",
                     c->needed_bytes, "usable_bytes", c->usable_bytes, "refusal", c->refusal);
}

static int append(const char *data, size_t size, void *out)
{
    return bytes_append(out, data, size).code == STATUS_OK ? 0 : -1;
}

status_t plan_auto_print_json(const struct cost_search_request *r, const struct cost_search *search,
                              struct bytes *out)
{
    json_t *candidates = json_array();
    for (int32_t i = 0; i < search->n; i++) {
        json_array_append_new(candidates, candidate_json(&search->candidates[i]));
    }
    json_t *json = json_pack("{sssssssisisiso}", "model", r->spec->name, "device", r->rates->name,
                             "objective", r->objective == COST_LATENCY ? "latency" : "throughput",
                             "gpus", r->n_gpus, "prompt_tokens", r->workload.n_prompt,
                             "generated_tokens", r->workload.n_generate, "candidates", candidates);
    const int failed =
        json == NULL ||
        json_dump_callback(json, append, out, JSON_COMPACT | JSON_REAL_PRECISION(9)) != 0;
    json_decref(json);
    return failed ? status_errorf(STATUS_RESOURCE_EXHAUSTED, "plan: no memory to print layouts")
                  : status_ok();
}

status_t plan_auto_check(const struct cost_search_request *r, const struct cost_search *search)
{
    const struct cost_candidate *least = NULL;
    for (int32_t i = 0; i < search->n; i++) {
        const struct cost_candidate *c = &search->candidates[i];
        if (c->needed_bytes > 0 && (least == NULL || c->needed_bytes < least->needed_bytes)) {
            least = c;
        }
    }
    if (search->n_fitting > 0) {
        return status_ok();
    }
    if (least == NULL) {
        return status_errorf(STATUS_FAILED_PRECONDITION, "no layout of %s on %d GPUs is possible",
                             r->spec->name, r->n_gpus);
    }
    return status_errorf(
        STATUS_FAILED_PRECONDITION,
        "%s does not fit on %d %s: -tp %d -pp %d needs %.1f GB of a rank for weights, "
        "buffers and one sequence of %d tokens, %.1f GB are usable" STATUS_FIX
        "--gpus %d, or a larger --gpu",
        r->spec->name, r->n_gpus, r->rates->name, least->tp, least->pp, least->needed_bytes / 1e9,
        r->workload.n_prompt + r->workload.n_generate, least->usable_bytes / 1e9, 2 * r->n_gpus);
}

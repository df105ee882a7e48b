#include "parallel/cost_report.h"

#include <math.h>
#include <stdio.h>

void cost_report_make(const struct cost_model *model, const struct cost_workload *workload,
                      const struct plan_memory_request *request, double utilization,
                      struct cost_report *report_out)
{
    const double tokens = (double)workload->n_prompt + workload->n_generate;
    struct cost_report *r = report_out;
    r->model = *model;
    r->workload = *workload;
    cost_rates_bound(model->rates, &r->bound_rates);
    struct cost_model bound = *model;
    bound.rates = &r->bound_rates;
    cost_predict(&bound, workload, &r->bound);
    cost_predict(model, workload, &r->expected);
    cost_fit(model, request, utilization, &r->memory);
    r->max_concurrency = floor(r->memory.kv_tokens / tokens);
}

void cost_report_layer(const struct cost_report *report, int32_t layer, struct cost_time *bound_out,
                       struct cost_time *expected_out)
{
    const struct cost_workload *w = &report->workload;
    const struct cost_rows rows = {.n_seqs = w->concurrency,
                                   .n_new = 1,
                                   .n_past = w->n_prompt + w->n_generate / 2.0 - 1,
                                   .n_logits = w->concurrency};
    struct cost_model bound = report->model;
    bound.rates = &report->bound_rates;
    cost_of_layer(&bound, &rows, layer, bound_out);
    cost_of_layer(&report->model, &rows, layer, expected_out);
}

// ---- text ----

static status_t line(struct bytes *out, const char *name, double bound, double expected)
{
    return bytes_printf(out, "%-26s %12.4g %12.4g\n", name, bound, expected);
}

static status_t ops_table(const struct cost_report *r, struct bytes *out)
{
    TRY(line(out, "decode step, ms", r->bound.decode.total_s * 1e3,
             r->expected.decode.total_s * 1e3));
    for (int op = 0; op < COST_N_OPS; op++) {
        const double bound = r->bound.decode.seconds[op];
        const double expected = r->expected.decode.seconds[op];
        char name[32];
        snprintf(name, sizeof name, "  %s", cost_op_name(op));
        if (expected > 0) {
            TRY(line(out, name, bound * 1e3, expected * 1e3));
        }
    }
    return status_ok();
}

static status_t efficiency_lines(const struct cost_report *r, struct bytes *out)
{
    const struct cost_rates *rates = r->model.rates;
    const struct cost_efficiency *e = &rates->efficiency;
    if (rates->n_matmuls > 0) {
        return bytes_printf(
            out,
            "expected from seconds of %d matmul shapes and %d kinds of attention, measured\n"
            "with %d %s; an op takes %.3g us, a step %.3g us besides\n",
            rates->n_matmuls, rates->n_attentions, rates->n_ranks,
            rates->n_ranks == 1 ? "rank" : "ranks", e->op_s * 1e6, e->step_s * 1e6);
    }
    return bytes_printf(
        out,
        "expected reaches, of bandwidth: matmul %.2f, KV %.2f, elementwise %.2f, sampling\n"
        "%.2f; of flops: matmul %.2f * rows/(rows + %.0f), attention %.2f; an op takes\n"
        "%.3g us, a step %.3g us besides\n",
        e->matmul_read, e->kv_read, e->elementwise, e->sampling, e->matmul_flops,
        e->matmul_half_rows, e->attention_flops, e->op_s * 1e6, e->step_s * 1e6);
}

static status_t memory_lines(const struct cost_report *r, struct bytes *out)
{
    const struct cost_memory *m = &r->memory;
    if (!(m->kv_tokens > 0)) {
        return bytes_printf(
            out, "does not fit: a rank needs %.2f GB before any KV, %.2f GB are usable\n",
            m->fixed_bytes / 1e9, m->usable_bytes / 1e9);
    }
    return bytes_printf(
        out,
        "memory: %.2f GB of a rank usable, %.2f GB without KV; KV for %.0f tokens:\n"
        "%.0f sequences of %d tokens%s\n",
        m->usable_bytes / 1e9, m->fixed_bytes / 1e9, m->kv_tokens, r->max_concurrency,
        r->workload.n_prompt + r->workload.n_generate,
        r->max_concurrency < r->workload.concurrency ? " (fewer than asked for)" : "");
}

static double collective_s(const struct cost_time *time)
{
    return time->seconds[COST_ALL_REDUCE] + time->seconds[COST_EXCHANGE];
}

/* Of layers of equal shape, which are computed from the same numbers. */
static bool is_same(const struct cost_time *a, const struct cost_time *b)
{
    bool same = a->weight_bytes == b->weight_bytes && a->kv_bytes == b->kv_bytes &&
                a->flops == b->flops && a->collective_bytes == b->collective_bytes;
    for (int op = 0; op < COST_N_OPS; op++) {
        same = same && a->seconds[op] == b->seconds[op];
    }
    return same;
}

static status_t layer_lines(const struct cost_report *r, struct bytes *out)
{
    const int32_t n_layers = r->model.plan->n_layers;
    TRY(bytes_append_str(out,
                         "\n layers  weights MB    KV MB   GFLOP  sent KB  sending us  bound us"
                         "  expected us\n"));
    for (int32_t layer = 0; layer < n_layers;) {
        struct cost_time bound, expected, next_bound, next;
        cost_report_layer(r, layer, &bound, &expected);
        int32_t end = layer + 1;
        for (; end < n_layers; end++) {
            cost_report_layer(r, end, &next_bound, &next);
            if (!is_same(&next, &expected)) {
                break;
            }
        }
        char range[24];
        snprintf(range, sizeof range, end == layer + 1 ? "%d" : "%d-%d", layer, end - 1);
        TRY(bytes_printf(out, "%7s  %10.2f %8.2f %7.2f %8.1f  %10.1f %9.1f %12.1f\n", range,
                         expected.weight_bytes / 1e6, expected.kv_bytes / 1e6, expected.flops / 1e9,
                         expected.collective_bytes / 1e3, collective_s(&expected) * 1e6,
                         bound.total_s * 1e6, expected.total_s * 1e6));
        layer = end;
    }
    return bytes_append_str(
        out, "A layer of one decode step, on the rank that has most; sending: its collectives.\n");
}

status_t cost_report_print(const struct cost_report *r, struct bytes *out)
{
    const struct cost_workload *w = &r->workload;
    TRY(bytes_printf(out,
                     "\nprediction for %s, %s rates: %d tokens in, %d out, %d at once\n%-26s "
                     "%12s %12s\n",
                     r->model.rates->name,
                     r->model.rates->n_matmuls > 0 ? "measured" : "data-sheet", w->n_prompt,
                     w->n_generate, w->concurrency, "", "bound", "expected"));
    TRY(line(out, "tokens/s", r->bound.tokens_per_s, r->expected.tokens_per_s));
    TRY(line(out, "decode tokens/s", r->bound.decode_tokens_per_s,
             r->expected.decode_tokens_per_s));
    TRY(line(out, "prefill tokens/s", r->bound.prefill_tokens_per_s,
             r->expected.prefill_tokens_per_s));
    TRY(line(out, "first token alone, ms", r->bound.first_token_s * 1e3,
             r->expected.first_token_s * 1e3));
    TRY(ops_table(r, out));
    TRY(bytes_printf(out, "a decode step waits for %s most\n",
                     cost_binds(&r->model, &r->expected.decode)));
    TRY(efficiency_lines(r, out));
    TRY(memory_lines(r, out));
    return layer_lines(r, out);
}

#include "parallel/cost_search.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "parallel/cost_place.h"

// ---- one layout ----

/* Sequences of a replica: its part of those asked for, or what may be at most. */
static int32_t wanted_seqs(const struct cost_search_request *r, int32_t replicas)
{
    const int32_t asked = r->workload.concurrency;
    const int32_t part = asked > 0 ? (asked + replicas - 1) / replicas : r->max_seqs;
    return part < r->max_seqs ? part : r->max_seqs;
}

static struct plan_memory_request memory_request(const struct cost_search_request *r,
                                                 const struct plan *plan, int32_t max_seqs)
{
    return (struct plan_memory_request){
        .plan = plan,
        .spec = r->spec,
        .device = r->device,
        .dtype = r->dtype,
        .quantization = r->quantization,
        .kv_dtype = r->kv_dtype,
        .embedding_dtype = r->spec->dtype,
        .max_seqs = max_seqs,
        .max_rows = r->workload.chunk_rows,
        .max_model_len = r->workload.n_prompt + r->workload.n_generate,
    };
}

static status_t make_plan(const struct cost_search_request *r, const struct cost_candidate *c,
                          struct cost_model *model, struct plan *plan_out)
{
    struct plan_request request = {.tp = c->tp, .pp = c->pp, .placement = c->placement};
    struct cost_workload workload = r->workload;
    workload.concurrency = wanted_seqs(r, c->replicas);
    if (c->placement != PLAN_AUTO) {
        return plan_make(r->spec, &request, plan_out);
    }
    const struct plan_memory_request memory = memory_request(r, NULL, workload.concurrency);
    return cost_place(model, &workload, &memory, r->utilization, &request, plan_out);
}

/* Layers of which a KV head is copied somewhere. */
static int32_t count_replicated(const struct plan *plan)
{
    int32_t n = 0;
    for (int32_t layer = 0; layer < plan->n_layers; layer++) {
        const int32_t c = plan->layers[layer].class_index;
        int64_t held = 0;
        for (int32_t rank = 0; c >= 0 && rank < plan->tp; rank++) {
            const int32_t *heads;
            held += plan_held(plan, c, rank, 0, &heads);
        }
        n += c >= 0 && held > plan->classes[c].n_kv_heads;
    }
    return n;
}

/* Layers whose KV heads are split by token, and those that send queries under share. */
static int32_t count_exchanging(const struct plan *plan, int placement)
{
    int32_t n = 0;
    for (int32_t layer = 0; layer < plan->n_layers; layer++) {
        const int32_t c = plan->layers[layer].class_index;
        n += c >= 0 && plan->classes[c].placement == placement &&
             !plan_attention_is_local(plan, layer);
    }
    return n;
}

/* As many sequences as fit, and no more than are wanted. */
static void fit(const struct cost_search_request *r, const struct cost_model *model,
                struct cost_candidate *c)
{
    const int32_t wanted = wanted_seqs(r, c->replicas);
    const double tokens = (double)r->workload.n_prompt + r->workload.n_generate;
    const struct plan_memory_request memory = memory_request(r, model->plan, wanted);
    struct cost_memory found;
    double per_seq = 0;
    cost_fit(model, &memory, r->utilization, &found);
    for (int32_t rank = 0; rank < plan_n_ranks(model->plan); rank++) {
        per_seq = fmax(per_seq, tokens * plan_kv_bytes_per_token(model->plan, rank, r->kv_dtype));
    }
    c->needed_bytes = found.fixed_bytes + per_seq;
    c->usable_bytes = found.usable_bytes;
    c->kv_tokens = found.kv_tokens * c->replicas;
    c->concurrency = (int32_t)fmin(wanted, floor(found.kv_tokens / tokens));
    if (c->concurrency < 1) {
        snprintf(c->refusal, sizeof c->refusal,
                 "one sequence of %.0f tokens needs %.1f GB of a rank, %.1f GB are usable", tokens,
                 c->needed_bytes / 1e9, c->usable_bytes / 1e9);
    }
}

static void predict(const struct cost_search_request *r, const struct cost_model *model,
                    struct cost_candidate *c)
{
    struct cost_workload workload = r->workload;
    struct cost_prediction prediction;
    workload.concurrency = c->concurrency;
    cost_predict(model, &workload, &prediction);
    c->tokens_per_s = prediction.tokens_per_s * c->replicas;
    c->inter_token_s = prediction.inter_token_s;
    c->first_token_s = prediction.first_token_s;
    c->binds = cost_binds(model, &prediction.decode);
}

/* False: the layout is the same as another one that is tried, or a mixture that cannot be. */
static bool evaluate(const struct cost_search_request *r, struct cost_candidate *c)
{
    struct plan plan = {0};
    struct cost_model model = {.plan = &plan,
                               .spec = r->spec,
                               .rates = r->rates,
                               .dtype = r->dtype,
                               .quantization = r->quantization,
                               .kv_dtype = r->kv_dtype,
                               .ranks_per_node = r->gpus_per_node};
    const status_t s = make_plan(r, c, &model, &plan);
    if (s.code != STATUS_OK) {
        snprintf(c->refusal, sizeof c->refusal, "%.*s", (int)strcspn(s.msg, "\n"), s.msg);
        return c->placement != PLAN_AUTO &&
               (c->placement != PLAN_TOKEN || r->placement == PLAN_TOKEN);
    }
    c->n_replicated = count_replicated(&plan);
    c->n_token = count_exchanging(&plan, PLAN_TOKEN);
    const int n_kinds =
        (c->n_replicated > 0) + (c->n_token > 0) + (count_exchanging(&plan, PLAN_SHARE) > 0);
    const bool differs = c->placement == PLAN_REPLICATE ? c->n_replicated > 0
                         : c->placement == PLAN_TOKEN   ? c->n_token > 0
                                                        : n_kinds > 1;
    const bool is_only = c->placement == r->placement && c->placement != PLAN_AUTO;
    const bool is_new = c->placement == PLAN_SHARE || is_only || differs;
    if (is_new) {
        fit(r, &model, c);
    }
    if (is_new && c->concurrency > 0) {
        predict(r, &model, c);
    }
    plan_destroy(&plan);
    return is_new;
}

// ---- all ----

static int compare_numbers(double a, double b)
{
    return (a > b) - (a < b);
}

/* What fits before what does not; of equals the one on fewer GPUs, and simpler ones: share before mixtures and copies. */
static int compare_rest(const struct cost_candidate *a, const struct cost_candidate *b)
{
    const int32_t gpus[2] = {a->tp * a->pp * a->replicas, b->tp * b->pp * b->replicas};
    const int by_gpus = (gpus[0] > gpus[1]) - (gpus[0] < gpus[1]);
    return by_gpus != 0 ? by_gpus : (a->placement != PLAN_SHARE) - (b->placement != PLAN_SHARE);
}

static int compare_fit(const struct cost_candidate *a, const struct cost_candidate *b)
{
    return (b->concurrency > 0) - (a->concurrency > 0);
}

static int by_throughput(const void *a, const void *b)
{
    const struct cost_candidate *x = a, *y = b;
    const int fits = compare_fit(x, y);
    const int order = fits != 0 ? fits : compare_numbers(y->tokens_per_s, x->tokens_per_s);
    return order != 0 ? order : compare_rest(x, y);
}

static int by_latency(const void *a, const void *b)
{
    const struct cost_candidate *x = a, *y = b;
    const int fits = compare_fit(x, y);
    const int order = fits != 0 ? fits : compare_numbers(x->inter_token_s, y->inter_token_s);
    return order != 0 ? order : by_throughput(a, b);
}

static status_t add(struct cost_search *search, const struct cost_candidate *candidate)
{
    const size_t n = (size_t)search->n + 1;
    struct cost_candidate *list = realloc(search->candidates, n * sizeof *list);
    if (list == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory for %zu layouts", n);
    }
    list[search->n++] = *candidate;
    search->candidates = list;
    search->n_fitting += candidate->concurrency > 0;
    return status_ok();
}

/* Share, replicate, token and mixtures of one T and P. */
static status_t add_placements(const struct cost_search_request *r, int32_t tp, int32_t pp,
                               struct cost_search *search)
{
    static const int order[] = {PLAN_SHARE, PLAN_REPLICATE, PLAN_TOKEN, PLAN_AUTO};
    int32_t n_replicable = 0;
    for (size_t i = 0; i < sizeof order / sizeof order[0]; i++) {
        struct cost_candidate c = {
            .tp = tp, .pp = pp, .replicas = r->n_gpus / (tp * pp), .placement = order[i]};
        const bool wanted = r->placement == PLAN_AUTO || r->placement == order[i];
        if (!wanted || (order[i] == PLAN_AUTO && n_replicable == 0) || !evaluate(r, &c)) {
            continue;
        }
        n_replicable = order[i] == PLAN_REPLICATE ? c.n_replicated : n_replicable;
        TRY(add(search, &c));
        if (c.concurrency == 0 && c.placement == PLAN_SHARE) {
            break; // copies need more
        }
    }
    return status_ok();
}

status_t cost_search_run(const struct cost_search_request *request, struct cost_search *search_out)
{
    struct cost_search search = {.n = 0};
    if (request->n_gpus < 1) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "%d GPUs" STATUS_FIX "--gpus 8",
                             request->n_gpus);
    }
    for (int32_t tp = 1; tp <= request->n_gpus && tp <= request->spec->n_heads; tp++) {
        for (int32_t pp = 1; tp * pp <= request->n_gpus && pp <= request->spec->n_layers; pp++) {
            const status_t s = add_placements(request, tp, pp, &search);
            if (s.code != STATUS_OK) {
                cost_search_destroy(&search);
                return s;
            }
        }
    }
    if (search.n == 0) {
        return status_errorf(STATUS_INTERNAL, "%s has no layers or heads", request->spec->name);
    }
    qsort(search.candidates, (size_t)search.n, sizeof *search.candidates,
          request->objective == COST_LATENCY ? by_latency : by_throughput);
    *search_out = search;
    return status_ok();
}

void cost_search_destroy(struct cost_search *search)
{
    free(search->candidates);
    memset(search, 0, sizeof *search);
}

#include "parallel/cost_place.h"

#include <string.h>

struct choices {
    unsigned char replicate[SPEC_MAX_LAYERS];
};

static int place(const void *user, int32_t layer)
{
    const struct choices *choices = user;
    return choices->replicate[layer] ? PLAN_REPLICATE : PLAN_SHARE;
}

static struct cost_rows decode_rows(const struct cost_workload *w)
{
    return (struct cost_rows){.n_seqs = w->concurrency,
                              .n_new = 1,
                              .n_past = w->n_prompt + w->n_generate / 2.0 - 1,
                              .n_logits = w->concurrency};
}

/* Layers that are faster copied; a layer that is local either way is shared. Returns how many. */
static int32_t choose(const struct cost_model *share, const struct cost_model *replicate,
                      const struct cost_workload *workload, struct choices *choices)
{
    const struct cost_rows rows = decode_rows(workload);
    int32_t n = 0;
    for (int32_t layer = 0; layer < share->plan->n_layers; layer++) {
        struct cost_time shared, copied;
        if (plan_attention_is_local(share->plan, layer)) {
            continue;
        }
        cost_of_layer(share, &rows, layer, &shared);
        cost_of_layer(replicate, &rows, layer, &copied);
        choices->replicate[layer] = copied.total_s < shared.total_s;
        n += choices->replicate[layer];
    }
    return n;
}

static bool fits(const struct cost_model *model, const struct cost_workload *workload,
                 const struct plan_memory_request *memory, double utilization)
{
    struct cost_memory fit;
    struct plan_memory_request request = *memory;
    request.plan = model->plan;
    cost_fit(model, &request, utilization, &fit);
    return fit.kv_tokens >=
           (double)workload->concurrency * ((double)workload->n_prompt + workload->n_generate);
}

static status_t make(const struct cost_model *model, struct plan_request *request, int placement,
                     struct plan *plan_out)
{
    request->placement = placement;
    return plan_make(model->spec, request, plan_out);
}

status_t cost_place(const struct cost_model *model, const struct cost_workload *workload,
                    const struct plan_memory_request *memory, double utilization,
                    struct plan_request *request, struct plan *plan_out)
{
    struct choices choices = {{0}};
    struct plan share = {0};
    struct plan replicate = {0};
    struct plan mixed = {0};
    struct cost_model models[] = {*model, *model, *model};
    models[0].plan = &share;
    models[1].plan = &replicate;
    models[2].plan = &mixed;
    request->placer = (plan_placer_t){.place = place, .user = &choices};
    status_t s;
    TRY_GOTO(s, make(model, request, PLAN_SHARE, &share), done);
    TRY_GOTO(s, make(model, request, PLAN_REPLICATE, &replicate), done);
    int32_t n_replicated = choose(&models[0], &models[1], workload, &choices);
    TRY_GOTO(s, make(model, request, PLAN_AUTO, &mixed), done);
    if (n_replicated > 0 && !fits(&models[2], workload, memory, utilization)) {
        n_replicated = 0;
    }
    *plan_out = n_replicated > 0 ? mixed : share;
    memset(n_replicated > 0 ? &mixed : &share, 0, sizeof mixed);
done:
    plan_destroy(&share);
    plan_destroy(&replicate);
    plan_destroy(&mixed);
    request->placer = (plan_placer_t){.place = NULL};
    return s;
}

#include "parallel/cost_place.h"

#include <string.h>

enum { N_CHOICES = 3 };

/* In the order of preference where they cost the same. */
static const int placements[N_CHOICES] = {PLAN_SHARE, PLAN_REPLICATE, PLAN_TOKEN};

struct choices {
    unsigned char placement[SPEC_MAX_LAYERS];
};

static int place(const void *user, int32_t layer)
{
    const struct choices *choices = user;
    return choices->placement[layer];
}

static struct cost_rows decode_rows(const struct cost_workload *w)
{
    return (struct cost_rows){.n_seqs = w->concurrency,
                              .n_new = 1,
                              .n_past = w->n_prompt + w->n_generate / 2.0 - 1,
                              .n_logits = w->concurrency};
}

enum copies { COPIES_ALLOWED, NO_COPIES };

/* The fastest of the placements that there are plans of; a layer that is local either way is shared. Returns how many are not. */
static int32_t choose(const struct cost_model models[N_CHOICES],
                      const struct cost_workload *workload, enum copies copies,
                      struct choices *choices)
{
    const struct cost_rows rows = decode_rows(workload);
    const struct plan *share = models[0].plan;
    int32_t n = 0;
    for (int32_t layer = 0; layer < share->n_layers; layer++) {
        choices->placement[layer] = PLAN_SHARE;
        if (plan_attention_is_local(share, layer)) {
            continue;
        }
        struct cost_time best, other;
        cost_of_layer(&models[0], &rows, layer, &best);
        for (int i = 1; i < N_CHOICES; i++) {
            if (models[i].plan->n_layers == 0 ||
                (placements[i] == PLAN_REPLICATE && copies == NO_COPIES)) {
                continue;
            }
            cost_of_layer(&models[i], &rows, layer, &other);
            if (other.total_s < best.total_s) {
                best = other;
                choices->placement[layer] = (unsigned char)placements[i];
            }
        }
        n += choices->placement[layer] != PLAN_SHARE;
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

/* Of every placement that can be: a window is not split by token. */
static status_t make_all(const struct cost_model *model, struct plan_request *request,
                         struct plan plans[N_CHOICES])
{
    for (int i = 0; i < N_CHOICES; i++) {
        const status_t s = make(model, request, placements[i], &plans[i]);
        if (!status_is_ok(&s) &&
            !(placements[i] == PLAN_TOKEN && s.code == STATUS_FAILED_PRECONDITION)) {
            return s;
        }
    }
    return status_ok();
}

status_t cost_place(const struct cost_model *model, const struct cost_workload *workload,
                    const struct plan_memory_request *memory, double utilization,
                    struct plan_request *request, struct plan *plan_out)
{
    struct choices choices;
    struct plan plans[N_CHOICES] = {0};
    struct plan mixed = {0};
    struct cost_model models[N_CHOICES];
    struct cost_model mixture = *model;
    for (int i = 0; i < N_CHOICES; i++) {
        models[i] = *model;
        models[i].plan = &plans[i];
    }
    mixture.plan = &mixed;
    request->placer = (plan_placer_t){.place = place, .user = &choices};
    status_t s;
    TRY_GOTO(s, make_all(model, request, plans), done);
    int32_t n_other = choose(models, workload, COPIES_ALLOWED, &choices);
    TRY_GOTO(s, make(model, request, PLAN_AUTO, &mixed), done);
    if (n_other > 0 && !fits(&mixture, workload, memory, utilization)) {
        plan_destroy(&mixed);
        n_other = choose(models, workload, NO_COPIES, &choices);
        TRY_GOTO(s, make(model, request, PLAN_AUTO, &mixed), done);
    }
    *plan_out = n_other > 0 ? mixed : plans[0];
    memset(n_other > 0 ? &mixed : &plans[0], 0, sizeof mixed);
done:
    for (int i = 0; i < N_CHOICES; i++) {
        plan_destroy(&plans[i]);
    }
    plan_destroy(&mixed);
    request->placer = (plan_placer_t){.place = NULL};
    return s;
}

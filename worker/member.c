#include "worker/member.h"

#include <string.h>

static const char *model_dir(const struct wire_assign *assign, const struct worker_config *config)
{
    return config->model != NULL ? config->model : assign->model_dir;
}

/* Everything that can go wrong on one rank alone, before the first collective. */
static status_t open_local(struct group *group, const struct wire_assign *assign,
                           const struct member_options *options, struct member *m)
{
    TRY(*options->device_status);
    if (assign->determinism < ENGINE_DETERMINISM_DEFAULT ||
        assign->determinism > ENGINE_DETERMINISM_BATCH || assign->comm < COMM_AUTO ||
        assign->comm > COMM_STAGED) {
        return status_errorf(STATUS_UNIMPLEMENTED,
                             "determinism %d and comm %d: this worker does not have them",
                             assign->determinism, assign->comm);
    }
    TRY(spec_load(model_dir(assign, options->config), &m->spec));
    TRY(plan_unpack(assign->plan, assign->plan_bytes, &m->spec, &m->plan));
    if (m->plan.tp * m->plan.pp != group_size(group)) {
        return status_errorf(STATUS_FAILED_PRECONDITION,
                             "the plan is for %d ranks, the MPI job has %d" STATUS_FIX
                             "mpirun -n %d kvasir-worker ...",
                             m->plan.tp * m->plan.pp, group_size(group), m->plan.tp * m->plan.pp);
    }
    return status_ok();
}

/* Steps made and not applied: those asked for, and with stages at least one for each of them and one to come. */
int32_t member_max_steps(const struct plan *plan, const struct worker_config *config)
{
    const int32_t wanted = 1 + (int32_t)config->steps_ahead;
    const int32_t needed = plan->pp > 1 ? plan->pp + 1 : 1;
    return wanted > needed ? wanted : needed;
}

static status_t open_steps(struct group *group, struct member *m)
{
    TRY(step_plan_init(&m->step, engine_limits(m->engine)));
    return engine_draws(m->engine) && group_rank(group) != 0
               ? step_draw_init(&m->draw, engine_limits(m->engine))
               : status_ok();
}

status_t member_open(struct group *group, const struct wire_assign *assign,
                     const struct member_options *options, struct member *m)
{
    memset(m, 0, sizeof *m);
    status_t s;
    TRY_GOTO(s, group_agree(group, open_local(group, assign, options, m)), undo);
    const int32_t threads =
        options->config->threads > 0 ? (int32_t)options->config->threads : (int32_t)assign->threads;
    rank_cores_choose(group, threads, options->config->pin_threads, &m->cores);
    host_cores_log(&m->cores, &options->log);
    const struct engine_options engine_options = {
        .model_dir = model_dir(assign, options->config),
        .load = assign->dummy_weights ? ENGINE_LOAD_DUMMY : ENGINE_LOAD_CHECKPOINT,
        .weights_seed = assign->weights_seed,
        .backend = options->device->backend,
        .device = options->device->index,
        .tune = true,
        .cache_dir = options->config->cache_dir,
        .dtype = assign->dtype,
        .quantization = assign->quantization,
        .kv_dtype = assign->kv_dtype,
        .max_num_seqs = (int32_t)assign->max_num_seqs,
        .max_num_batched_tokens = (int32_t)assign->max_num_batched_tokens,
        .max_model_len = (int32_t)assign->max_model_len,
        .max_steps = member_max_steps(&m->plan, options->config),
        .kv_cache_bytes = assign->kv_cache_bytes,
        .swap_bytes = options->config->swap_space_bytes >= 0
                          ? (uint64_t)options->config->swap_space_bytes
                          : assign->swap_space_bytes,
        .device_memory_share = assign->gpu_memory_utilization,
        .determinism = assign->determinism,
        .comm_choice = assign->comm,
        .collective_timeout_s = options->config->collective_timeout_s > 0.0
                                    ? options->config->collective_timeout_s
                                    : assign->collective_timeout_s,
        .cores = &m->cores,
        .log = log_module(&options->log, "engine"),
        .progress = options->progress,
        .user = options->user,
    };
    TRY_GOTO(s, engine_new(group, &m->spec, &m->plan, &engine_options, &m->engine), undo);
    TRY_GOTO(s, group_agree(group, open_steps(group, m)), undo);
    if (engine_limits(m->engine)->host_blocks_per_lane > 0) {
        const int32_t max_model_len = (int32_t)assign->max_model_len;
        TRY_GOTO(s, swap_cost_measure(group, m->engine, max_model_len, &m->swap_cost), undo);
    }
    return status_ok();

undo:
    member_close(m);
    return s;
}

void member_close(struct member *member)
{
    engine_free(member->engine);
    step_plan_destroy(&member->step);
    step_draw_destroy(&member->draw);
    plan_destroy(&member->plan);
    spec_destroy(&member->spec);
    memset(member, 0, sizeof *member);
}

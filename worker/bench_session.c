#include "worker/bench_session.h"

#include <string.h>

#include "worker/worker_config.h"

static status_t init_local(struct bench_session *s, const char *model_dir)
{
    const struct plan_request request = {
        .tp = group_size(s->group), .pp = 1, .placement = s->config->placement};
    TRY(spec_load(model_dir, &s->spec));
    TRY(plan_make(&s->spec, &request, &s->plan));
    s->dtype = dtype_resolve(s->config->dtype, s->spec.dtype);
    const int activation = s->device.backend->activation;
    if (s->config->dtype == DTYPE_WANTED_AUTO && activation != DTYPE_F32) {
        s->dtype = activation; // the only one there
    }
    s->kv_dtype = dtype_resolve(s->config->kv_dtype, s->dtype);
    return s->config->trace ? bench_trace_new(s->device.backend, &s->trace) : status_ok();
}

status_t bench_session_init(const struct bench_session_request *request,
                            struct bench_session *session)
{
    memset(session, 0, sizeof *session);
    session->group = request->group;
    session->config = request->config;
    session->log = request->log;
    session->device = (struct device_choice){.backend = request->backend, .n_devices = 1};
    if (request->backend == NULL) {
        TRY(device_choose(request->group, request->config->device, request->log, &session->device));
    }
    rank_cores_choose(request->group, (int32_t)request->config->threads,
                      request->config->pin_threads, &session->cores);
    host_cores_log(&session->cores, &session->log);
    const status_t s = group_agree(request->group, init_local(session, request->model_dir));
    if (s.code != STATUS_OK) {
        bench_session_destroy(session);
    }
    return s;
}

static struct backend_stream *wrap_stream(void *user, struct backend_stream *stream)
{
    struct bench_session *session = user;
    return bench_trace_wrap(session->trace, stream);
}

status_t bench_session_open_engine(struct bench_session *s, const char *model_dir,
                                   const struct bench_session_limits *limits)
{
    const struct bench_config *config = s->config;
    const struct engine_options options = {
        .model_dir = model_dir,
        .load = config->load == BENCH_LOAD_DUMMY ? ENGINE_LOAD_DUMMY : ENGINE_LOAD_CHECKPOINT,
        .weights_seed = (uint64_t)config->seed,
        .backend = s->trace != NULL ? bench_trace_backend(s->trace) : s->device.backend,
        .device = s->device.index,
        .dtype = s->dtype,
        .quantization = s->config->quantization,
        .kv_dtype = s->kv_dtype,
        .max_num_seqs = limits->max_num_seqs,
        .max_num_batched_tokens = limits->max_rows,
        .max_model_len = limits->max_model_len,
        .max_steps = limits->max_steps,
        .kv_cache_bytes = limits->kv_cache_bytes,
        .device_memory_share = config->gpu_memory_utilization,
        .tune = true,
        .cache_dir = config->cache_dir,
        .cores = &s->cores,
        .log = log_module(&s->log, "engine"),
        .wrap_stream = s->trace != NULL ? wrap_stream : NULL,
        .user = s,
    };
    TRY(engine_new(s->group, &s->spec, &s->plan, &options, &s->engine));
    return group_agree(s->group, step_plan_init(&s->step, engine_limits(s->engine)));
}

void bench_session_destroy(struct bench_session *s)
{
    engine_free(s->engine);
    step_plan_destroy(&s->step);
    bench_trace_free(s->trace);
    plan_destroy(&s->plan);
    spec_destroy(&s->spec);
    memset(s, 0, sizeof *s);
}

status_t bench_session_most(struct bench_session *s, double *value)
{
    struct comm *comm = group_comm(s->group);
    double most = *value;
    for (int32_t rank = 0; rank < comm->size; rank++) {
        double theirs = *value;
        TRY(comm->ops->broadcast(comm, &theirs, sizeof theirs, rank));
        most = theirs > most ? theirs : most;
    }
    *value = most;
    return status_ok();
}

status_t bench_session_sum(struct bench_session *s, double *value)
{
    struct comm *comm = group_comm(s->group);
    double sum = 0;
    for (int32_t rank = 0; rank < comm->size; rank++) {
        double theirs = *value;
        TRY(comm->ops->broadcast(comm, &theirs, sizeof theirs, rank));
        sum += theirs;
    }
    *value = sum;
    return status_ok();
}

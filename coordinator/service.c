#include "coordinator/service.h"

#include <stdlib.h>

#include "coordinator/link.h"
#include "coordinator/validate.h"
#include "proto/wire/cluster.h"

/* Requests of a few numbers. */
#define MAX_SMALL_BYTES ((size_t)64 * 1024)

static struct service *service_of(struct rpc_call *call)
{
    return rpc_call_context(call);
}

// ---- Inference: Generate and Complete ----

static void refuse(struct rpc_call *call, struct gate *gate, const status_t *s)
{
    char text[16];
    snprintf(text, sizeof text, "%u", atomic_load(&gate->retry_ms));
    const struct rpc_trailer retry = {.key = "retry-after-ms", .value = text};
    rpc_finish(call, s, &retry, s->code == STATUS_RESOURCE_EXHAUSTED ? 1 : 0);
}

static void count_refusal(const struct service *service, int code)
{
    const bool draining = atomic_load(&service->gate->mode) == GATE_DRAINING;
    metrics_reject(service->metrics, code == STATUS_RESOURCE_EXHAUSTED ? METRICS_REJECTED_OVERLOAD
                                     : draining                        ? METRICS_REJECTED_DRAINING
                                                : METRICS_REJECTED_NOT_READY);
}

static void begin(struct rpc_call *call, const uint8_t *data, size_t size, int shape)
{
    struct service *service = service_of(call);
    metrics_add(service->metrics, METRICS_REQUESTS, 1);
    status_t s = gate_enter(service->gate);
    if (!status_is_ok(&s)) {
        count_refusal(service, s.code);
        refuse(call, service->gate, &s);
        return;
    }
    struct request *request = NULL;
    s = request_new(call, service->gate, data, size, &request);
    if (!status_is_ok(&s)) {
        gate_leave(service->gate);
        count_refusal(service, s.code);
        refuse(call, service->gate, &s);
        return;
    }
    request->shape = shape;
    request->received_ns = clock_now_ns(clock_system());
    rpc_call_set_user(call, request); // with the call's reference
    s = ingress_request(service->ingress, request);
    if (!status_is_ok(&s)) {
        count_refusal(service, s.code);
        request_refuse(request, &s);
        request_release(request);
    }
}

static void on_generate(struct rpc_call *call, const uint8_t *data, size_t size)
{
    begin(call, data, size, ANSWER_STREAM);
}

static void on_complete(struct rpc_call *call, const uint8_t *data, size_t size)
{
    begin(call, data, size, ANSWER_WHOLE);
}

static void on_request_closed(struct rpc_call *call, const status_t *status)
{
    struct request *request = rpc_call_user(call);
    if (request == NULL) {
        return;
    }
    struct core *core = service_of(call)->core;
    atomic_store(&request->closed, 1 + status->code);
    request->gone = (struct core_message){.kind = CORE_REQUEST_GONE, .request = request};
    const status_t s = core_post(core, &request->gone);
    if (!status_is_ok(&s)) {
        core_sweep(core);
        request_release(request);
    }
}

static const struct rpc_handlers generate_handlers = {.on_message = on_generate,
                                                      .on_closed = on_request_closed};
static const struct rpc_handlers complete_handlers = {.on_message = on_complete,
                                                      .on_closed = on_request_closed};

// ---- Inference: the rest ----

static void on_nothing(struct rpc_call *call, const status_t *status)
{
    (void)call;
    (void)status;
}

static void begin_text(struct rpc_call *call, enum ingress_text what, const uint8_t *data,
                       size_t size)
{
    struct service *service = service_of(call);
    const status_t s = ingress_text(service->ingress, what, call, data, size);
    if (!status_is_ok(&s)) {
        refuse(call, service->gate, &s);
    }
}

static void on_tokenize(struct rpc_call *call, const uint8_t *data, size_t size)
{
    begin_text(call, INGRESS_TOKENIZE, data, size);
}

static void on_detokenize(struct rpc_call *call, const uint8_t *data, size_t size)
{
    begin_text(call, INGRESS_DETOKENIZE, data, size);
}

static void on_model_info(struct rpc_call *call, const uint8_t *data, size_t size)
{
    (void)data;
    (void)size;
    rpc_reply(call, &service_of(call)->model->info_response);
}

static const struct rpc_handlers tokenize_handlers = {.on_message = on_tokenize,
                                                      .on_closed = on_nothing};
static const struct rpc_handlers detokenize_handlers = {.on_message = on_detokenize,
                                                        .on_closed = on_nothing};
static const struct rpc_handlers model_info_handlers = {.on_message = on_model_info,
                                                        .on_closed = on_nothing};

// ---- Cluster ----

static void ask_core(struct rpc_call *call, int what, uint64_t patience_ns)
{
    struct core *core = service_of(call)->core;
    struct core_message *message = calloc(1, sizeof *message);
    if (message == NULL) {
        const status_t s = status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory");
        rpc_finish(call, &s, NULL, 0);
        return;
    }
    *message = (struct core_message){.kind = CORE_CALL,
                                     .owned = true,
                                     .call = rpc_call_acquire(call),
                                     .what = what,
                                     .patience_ns = patience_ns};
    const status_t s = core_post(core, message);
    if (!status_is_ok(&s)) {
        free(message);
        rpc_finish(call, &s, NULL, 0);
        rpc_call_release(call);
    }
}

static void on_get_status(struct rpc_call *call, const uint8_t *data, size_t size)
{
    (void)data;
    (void)size;
    ask_core(call, CORE_CALL_STATUS, 0);
}

static void on_watch_status(struct rpc_call *call, const uint8_t *data, size_t size)
{
    struct arena arena;
    uint32_t interval_ms = 0;
    arena_init(&arena, MAX_SMALL_BYTES);
    status_t s = wire_watch_request_unpack(data, size, &arena, &interval_ms);
    arena_destroy(&arena);
    if (status_is_ok(&s)) {
        s = validate_interval(interval_ms);
    }
    if (!status_is_ok(&s)) {
        rpc_finish(call, &s, NULL, 0);
        return;
    }
    ask_core(call, CORE_CALL_WATCH, interval_ms * NS_PER_MS);
}

static void on_drain(struct rpc_call *call, const uint8_t *data, size_t size)
{
    struct arena arena;
    double grace_seconds = 0;
    arena_init(&arena, MAX_SMALL_BYTES);
    status_t s = wire_drain_request_unpack(data, size, &arena, &grace_seconds);
    arena_destroy(&arena);
    if (status_is_ok(&s)) {
        s = validate_grace(grace_seconds);
    }
    if (!status_is_ok(&s)) {
        rpc_finish(call, &s, NULL, 0);
        return;
    }
    ask_core(call, CORE_CALL_DRAIN, (uint64_t)(grace_seconds * (double)NS_PER_S));
}

static void on_get_plan(struct rpc_call *call, const uint8_t *data, size_t size)
{
    (void)data;
    (void)size;
    rpc_reply(call, &service_of(call)->model->plan_response);
}

static const struct rpc_handlers get_status_handlers = {.on_message = on_get_status,
                                                        .on_closed = on_nothing};
static const struct rpc_handlers watch_status_handlers = {.on_message = on_watch_status,
                                                          .on_closed = on_nothing};
static const struct rpc_handlers drain_handlers = {.on_message = on_drain, .on_closed = on_nothing};
static const struct rpc_handlers get_plan_handlers = {.on_message = on_get_plan,
                                                      .on_closed = on_nothing};

// ---- the table ----

struct method_row {
    const char *path;
    int shape; /* enum rpc_shape */
    const struct rpc_handlers *handlers;
};

static const struct method_row methods[] = {
    {"/kvasir.v1.Inference/Generate", RPC_SERVER_STREAM, &generate_handlers},
    {"/kvasir.v1.Inference/Complete", RPC_UNARY, &complete_handlers},
    {"/kvasir.v1.Inference/Tokenize", RPC_UNARY, &tokenize_handlers},
    {"/kvasir.v1.Inference/Detokenize", RPC_UNARY, &detokenize_handlers},
    {"/kvasir.v1.Inference/GetModelInfo", RPC_UNARY, &model_info_handlers},
    {"/kvasir.v1.Cluster/GetStatus", RPC_UNARY, &get_status_handlers},
    {"/kvasir.v1.Cluster/GetPlan", RPC_UNARY, &get_plan_handlers},
    {"/kvasir.v1.Cluster/WatchStatus", RPC_SERVER_STREAM, &watch_status_handlers},
    {"/kvasir.v1.Cluster/Drain", RPC_UNARY, &drain_handlers},
};

/* Described, not built yet. */
static const struct method_row missing_methods[] = {
    {"/kvasir.v1.Batch/CreateBatch", RPC_CLIENT_STREAM, NULL},
    {"/kvasir.v1.Batch/GetBatch", RPC_UNARY, NULL},
    {"/kvasir.v1.Batch/ListBatches", RPC_UNARY, NULL},
    {"/kvasir.v1.Batch/CancelBatch", RPC_UNARY, NULL},
    {"/kvasir.v1.Batch/DeleteBatch", RPC_UNARY, NULL},
    {"/kvasir.v1.Batch/StreamResults", RPC_SERVER_STREAM, NULL},
};

status_t service_add(struct service *service, struct rpc_server *server)
{
    for (size_t i = 0; i < sizeof methods / sizeof methods[0]; i++) {
        const struct rpc_method method = {.path = methods[i].path,
                                          .shape = methods[i].shape,
                                          .handlers = methods[i].handlers,
                                          .context = service};
        TRY(rpc_server_add(server, &method));
    }
    for (size_t i = 0; i < sizeof missing_methods / sizeof missing_methods[0]; i++) {
        TRY(rpc_server_add_unimplemented(server, missing_methods[i].path, missing_methods[i].shape,
                                         "batch jobs are not built in this version"));
    }
    const struct rpc_method attach = {.path = "/kvasir.v1.WorkerLink/Attach",
                                      .shape = RPC_BIDI,
                                      .handlers = &link_handlers,
                                      .context = service->core};
    TRY(rpc_server_add(server, &attach));
    TRY(rpc_server_add_health(server));
    return rpc_server_add_reflection(server);
}

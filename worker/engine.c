#include "worker/engine_parts.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "parallel/comm_device.h"
#include "worker/checkpoint.h"
#include "worker/host.h"
#include "worker/weights_check.h"

/* More than a stage has tensors: places of a later stage's come after. */
#define PLACES_OF_STAGE (1 << 20)

#define COLLECTIVE_TIMEOUT_S 30.0

/* Needed while loading only. */
struct loading {
    struct backend_stream *host_stream; /* NULL: the engine's own is the host's */
    struct checkpoint *checkpoint;      /* NULL: dummy weights */
    struct weight_source source;
    struct weight_loader loader;
    uint64_t bytes_total;
};

// ---- options ----

static status_t check_dtypes(const struct engine_options *o)
{
    if ((o->dtype != DTYPE_F32 && o->dtype != DTYPE_BF16) ||
        (o->kv_dtype != DTYPE_F32 && o->kv_dtype != DTYPE_BF16 && o->kv_dtype != DTYPE_I8)) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "weights in %s and KV in %s; both are float32 or bfloat16, or KV int8",
                             dtype_name(o->dtype), dtype_name(o->kv_dtype));
    }
    if (o->quantization < QUANTIZATION_NONE || o->quantization > QUANTIZATION_W8A8) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "quantization %d; none is 0, int8 1, w8a8 2",
                             o->quantization);
    }
    const int activation = o->backend->activation;
    if (activation != DTYPE_F32 &&
        (o->dtype != activation || (o->kv_dtype != activation && o->kv_dtype != DTYPE_I8))) {
        return status_errorf(STATUS_FAILED_PRECONDITION,
                             "weights in %s and KV in %s: on %s both are %s, or KV int8" STATUS_FIX
                             "--dtype bfloat16 --kv-cache-dtype auto or int8, or --device cpu",
                             dtype_name(o->dtype), dtype_name(o->kv_dtype), o->backend->name,
                             dtype_name(activation));
    }
    return status_ok();
}

static status_t check_options(const struct engine *e)
{
    const struct engine_options *o = &e->options;
    TRY(check_dtypes(o));
    if (o->max_num_seqs < 1 || o->max_num_batched_tokens < 1 || o->max_model_len < 1) {
        return status_errorf(
            STATUS_INVALID_ARGUMENT,
            "--max-num-seqs %d, --max-num-batched-tokens %d, --max-model-len %d: at least 1 each",
            o->max_num_seqs, o->max_num_batched_tokens, o->max_model_len);
    }
    if (o->max_model_len > e->spec->max_positions) {
        return status_errorf(STATUS_FAILED_PRECONDITION,
                             "--max-model-len %d is more than the model's %d positions" STATUS_FIX
                             "--max-model-len %d",
                             o->max_model_len, e->spec->max_positions, e->spec->max_positions);
    }
    const bool batch = o->determinism == ENGINE_DETERMINISM_BATCH;
    if (e->plan->stripe > 1 && (batch || o->swap_bytes > 0)) {
        return status_errorf(STATUS_FAILED_PRECONDITION,
                             "%s with --kv-placement token" STATUS_FIX "--kv-placement share",
                             batch ? "--determinism batch" : "--swap-space");
    }
    if (plan_n_ranks(e->plan) != group_size(e->group)) {
        return status_errorf(STATUS_INTERNAL, "plan for %d ranks, the group has %d",
                             plan_n_ranks(e->plan), group_size(e->group));
    }
    if (o->max_num_seqs > INT32_MAX / engine_blocks_per_seq(e)) {
        return status_errorf(
            STATUS_INVALID_ARGUMENT,
            "--max-num-seqs %d of --max-model-len %d: more KV blocks than can be counted",
            o->max_num_seqs, o->max_model_len);
    }
    return status_ok();
}

// ---- checkpoint and weights ----

static int embedding_dtype(const struct checkpoint *checkpoint)
{
    checkpoint_tensor_t tensor;
    if (checkpoint == NULL) {
        return DTYPE_F32;
    }
    const status_t s = checkpoint_find(checkpoint, "model.embed_tokens.weight", &tensor);
    return status_is_ok(&s) ? tensor.tensor->dtype : DTYPE_F32;
}

static status_t open_source(const struct engine *e, struct loading *l)
{
    if (e->options.load == ENGINE_LOAD_CHECKPOINT) {
        TRY(checkpoint_open(e->options.model_dir, &l->checkpoint));
    }
    l->source = (struct weight_source){
        .checkpoint = l->checkpoint,
        .seed = e->options.weights_seed,
        .imitated_dtype = e->spec->dtype,
        .n_found = plan_stage(e->plan, e->rank) * PLACES_OF_STAGE,
        // Values are made up on the host, the same for every device.
        .backend = l->host_stream != NULL ? backend_cpu() : e->options.backend,
        .stream = l->host_stream != NULL ? l->host_stream : e->stream,
    };
    return weight_source_check(&l->source, e->spec, &l->bytes_total);
}

/* stream_new makes one of the backend behind a wrapped one: it is not used before it is wrapped. */
static status_t open_stream(struct engine *e, const struct stream_options *options)
{
    struct backend_stream *stream = NULL;
    TRY(e->options.backend->stream_new(options, &stream));
    e->stream = stream;
    if (e->options.wrap_stream != NULL) {
        e->stream = e->options.wrap_stream(e->options.user, stream);
    }
    return e->stream != NULL
               ? status_ok()
               : status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory to wrap a stream");
}

static status_t open_streams(struct engine *e, struct loading *l)
{
    const struct host_cores *cores = e->options.cores;
    const int32_t share = host_cores() / group_host_size(e->group);
    const int32_t threads = cores != NULL            ? cores->n_threads
                            : e->options.threads > 0 ? e->options.threads
                            : share > 0              ? share
                                                     : 1;
    const struct stream_options stream = {
        .device = e->options.device,
        .n_threads = threads,
        .cores = cores != NULL && cores->pinned ? cores->cores : NULL,
        .batch_invariant = e->options.determinism == ENGINE_DETERMINISM_BATCH,
    };
    TRY(open_stream(e, &stream));
    if (!e->options.backend->host_memory) {
        TRY(backend_cpu()->stream_new(&stream, &l->host_stream));
    }
    return status_ok();
}

static int32_t max_logits(const struct engine *e)
{
    return plan_memory_logit_rows(e->options.max_num_seqs, e->options.max_num_batched_tokens);
}

static status_t make_stages(struct engine *e)
{
    if (e->plan->pp == 1) {
        return status_ok();
    }
    const size_t max_seqs = (size_t)e->options.max_num_seqs;
    const size_t max_rows = (size_t)e->options.max_num_batched_tokens;
    const struct stages_options options = {
        .tp = e->plan->tp,
        .pp = e->plan->pp,
        .backend = e->options.backend,
        .stream = e->stream,
        .n_steps = e->options.max_steps,
        .x_bytes = max_rows * (size_t)e->spec->n_hidden * sizeof(float),
        .drawn_bytes = max_seqs * sizeof(int32_t),
        .results_bytes = (size_t)max_logits(e) * sizeof(struct sample_result),
    };
    return stages_new(e->group, &options, &e->stages);
}

/* Everything that one rank can find out alone: what is on disk, and its own memory. */
static status_t prepare(struct engine *e, struct loading *l)
{
    TRY(open_streams(e, l));
    TRY(make_stages(e));
    TRY(open_source(e, l));
    const struct weights_request request = {
        .backend = e->options.backend,
        .stream = e->stream,
        .spec = e->spec,
        .plan = e->plan,
        .rank = e->rank,
        .formats = {.dtype = e->options.dtype, .quantization = e->options.quantization},
        .checkpoint_dtype = embedding_dtype(l->checkpoint),
    };
    TRY(weights_alloc(&request, &e->weights));
    const struct weight_loader_parts parts = {
        .source = &l->source,
        .comm = e->stage_comm,
        .backend = e->options.backend,
        .stream = e->stream,
    };
    return weight_loader_init(&parts, weights_max_row_bytes(e->spec), &l->loader);
}

static status_t load(struct engine *e, struct loading *l)
{
    const struct weights_progress progress = {
        .report = e->rank == 0 ? e->options.progress : NULL,
        .user = e->options.user,
        .bytes_total = l->bytes_total,
    };
    const uint64_t start = clock_now_ns(clock_system());
    TRY(weights_load(&e->weights, &l->loader, &progress));
    e->bytes_read = l->checkpoint != NULL ? checkpoint_bytes_read(l->checkpoint) : 0;
    const uint64_t elapsed_ms = (clock_now_ns(clock_system()) - start) / NS_PER_MS;
    log_write(&e->options.log, LOG_INFO, "weights loaded",
              "bytes_read=%" PRIu64 " bytes_packed=%" PRIu64 " ms=%" PRIu64, e->bytes_read,
              e->weights.bytes, elapsed_ms);
    return status_ok();
}

/* Every rank's, put together: the first tensor with defects, in the order of loading, and the sum over all. */
static void add_defects(struct weight_defects *sum, const struct weight_defects *more)
{
    if (more->n_all == 0) {
        return;
    }
    const uint64_t n_all = sum->n_all + more->n_all;
    if (sum->n_all == 0 || more->first < sum->first) {
        *sum = *more;
    } else if (more->first == sum->first) {
        sum->n_first += more->n_first;
    }
    sum->n_all = n_all;
}

/* Weights that are NaN or infinite are served as they are: whoever made them may know why. One line says so. */
static status_t warn_of_defects(const struct engine *e, const struct loading *l)
{
    const struct comm *comm = group_comm(e->group);
    struct weight_defects sum = {0};
    for (int32_t rank = 0; rank < comm->size; rank++) {
        struct weight_defects theirs = l->source.defects;
        TRY(comm->ops->broadcast(group_comm(e->group), &theirs, sizeof theirs, rank));
        add_defects(&sum, &theirs);
    }
    if (sum.n_all > 0 && e->rank == 0) {
        log_write(&e->options.log, LOG_WARN, "weights that are NaN or infinite",
                  "tensor=%s values=%" PRIu64 " in_all_tensors=%" PRIu64, sum.name, sum.n_first,
                  sum.n_all);
    }
    return status_ok();
}

static void loading_end(struct loading *l)
{
    weight_loader_destroy(&l->loader);
    checkpoint_close(l->checkpoint);
    backend_cpu()->stream_free(l->host_stream);
}

static status_t load_weights(struct engine *e)
{
    struct loading l = {0};
    status_t s;
    TRY_GOTO(s, group_agree(e->group, check_options(e)), done);
    TRY_GOTO(s, group_agree(e->group, group_stage_comm(e->group, e->plan->tp, &e->stage_comm)),
             done);
    TRY_GOTO(s, group_agree(e->group, prepare(e, &l)), done);
    TRY_GOTO(s, group_agree(e->group, load(e, &l)), done);
    TRY_GOTO(s, group_agree(e->group, warn_of_defects(e, &l)), done);
done:
    loading_end(&l);
    return s;
}

// ---- between ranks ----

/* The group's comm where the device's memory is the host's, one between devices elsewhere. */
static status_t make_comm(struct engine *e)
{
    struct comm *host = e->stage_comm;
    const struct backend *backend = e->options.backend;
    if (backend->host_memory) {
        e->comm = host;
        return status_ok();
    }
    const int64_t exchanged = exchange_max_bytes(
        e->plan, e->rank, e->options.max_num_batched_tokens, backend->activation);
    const int64_t logits = (int64_t)max_logits(e) * e->spec->n_vocab * (int64_t)sizeof(float);
    const double timeout_s = e->options.collective_timeout_s;
    const struct comm_device_parts parts = {
        .host = host,
        .backend = backend,
        .stream = e->stream,
        .device = e->options.device,
        .choice = e->options.comm_choice,
        .peers = e->options.comm_peers,
        .order = e->options.determinism == ENGINE_DETERMINISM_BATCH ? COMM_ORDERED : COMM_FAST,
        .max_bytes = exchanged > logits ? exchanged : logits,
        .timeout_s = timeout_s > 0.0 ? timeout_s : COLLECTIVE_TIMEOUT_S,
        .log = e->options.log,
    };
    return comm_device_new(&parts, &e->comm);
}

// ---- tuning ----

/* Before KV pools take what memory is left. Where one way is pinned there is nothing to choose from. */
static status_t tune(const struct engine *e)
{
    const struct backend *backend = e->options.backend;
    const bool pinned = e->options.determinism == ENGINE_DETERMINISM_BATCH;
    if (!e->options.tune || pinned || backend->matmul_tune == NULL) {
        return status_ok();
    }
    const size_t most = (size_t)e->spec->n_layers * WEIGHTS_MATRICES_OF_LAYER + 1;
    struct matmul_use *uses = calloc(most, sizeof *uses);
    if (uses == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory for a list of %zu matrices",
                             most);
    }
    const struct matmul_tune_args args = {
        .uses = uses,
        .n_uses = weights_uses(&e->weights, uses),
        .max_rows = e->options.max_num_batched_tokens,
        .cache_dir = e->options.cache_dir,
    };
    status_t cache = status_ok();
    const status_t s = backend->matmul_tune(e->stream, &args, &cache);
    if (!status_is_ok(&cache)) {
        log_status(&e->options.log, LOG_WARN, "cache of measured matmuls", &cache);
    }
    free(uses);
    return s;
}

// ---- buffers ----

static status_t alloc_rest(struct engine *e, int64_t blocks_per_lane)
{
    const struct kv_pool_request request = {
        .backend = e->options.backend,
        .stream = e->stream,
        .plan = e->plan,
        .rank = e->rank,
        .kv_dtype = e->options.kv_dtype,
        .blocks_per_lane = blocks_per_lane,
        .max_seqs = e->options.max_num_seqs,
        .max_rows = e->options.max_num_batched_tokens,
        .max_blocks = (int32_t)(e->options.max_num_seqs * engine_blocks_per_seq(e)),
        .max_steps = e->options.max_steps,
    };
    TRY(kv_pool_init(&e->pool, &request));
    TRY(kv_moves_init(&e->moves, &e->pool, e->limits.host_blocks_per_lane));
    const struct forward_parts parts = {
        .spec = e->spec,
        .plan = e->plan,
        .backend = e->options.backend,
        .stream = e->stream,
        .comm = e->comm,
        .stages = e->stages,
        .rank = e->rank,
        .weights = &e->weights,
        .pool = &e->pool,
        .moves = &e->moves,
        .batch_invariant = e->options.determinism == ENGINE_DETERMINISM_BATCH,
    };
    const struct forward_limits limits = {
        .max_seqs = e->options.max_num_seqs,
        .max_rows = e->options.max_num_batched_tokens,
        .max_model_len = e->options.max_model_len,
        .max_blocks = (int32_t)(e->options.max_num_seqs * engine_blocks_per_seq(e)),
        .max_logits = max_logits(e),
        .max_sample_tokens = step_max_sample_tokens(e->options.max_num_seqs, e->spec->n_vocab),
        .max_steps = e->options.max_steps,
    };
    TRY(forward_init(&e->forward, &parts, &limits));
    return step_queue_init(&e->steps, &e->forward);
}

/* Each sequence may copy a block, and whatever slots hold may go there and come back in one step. */
static int32_t max_moves(const struct engine *e, int64_t slots_per_lane)
{
    const int64_t in_use = e->options.max_num_seqs * engine_blocks_per_seq(e);
    const int64_t slots = e->plan->n_lanes * slots_per_lane;
    const int64_t n = e->options.max_num_seqs + 2 * (slots < in_use ? slots : in_use);
    return (int32_t)(n < INT32_MAX ? n : INT32_MAX);
}

static void set_limits(struct engine *e, int64_t blocks_per_lane, int64_t slots_per_lane)
{
    e->limits = (struct step_limits){
        .max_seqs = e->options.max_num_seqs,
        .max_rows = e->options.max_num_batched_tokens,
        .max_blocks = (int32_t)(e->options.max_num_seqs * engine_blocks_per_seq(e)),
        .max_moves = max_moves(e, slots_per_lane),
        .n_lanes = e->plan->n_lanes,
        .n_vocab = e->spec->n_vocab,
        .blocks_per_lane = blocks_per_lane,
        .host_blocks_per_lane = slots_per_lane,
        .max_logits = max_logits(e),
        .max_sample_tokens = step_max_sample_tokens(e->options.max_num_seqs, e->spec->n_vocab),
    };
}

// ---- the engine ----

static status_t build(struct engine *e)
{
    TRY(load_weights(e));
    int64_t blocks_per_lane, slots_per_lane;
    TRY(make_comm(e)); // libraries between devices take memory of their own
    TRY(group_agree(e->group, tune(e)));
    TRY(engine_size_pool(e, &blocks_per_lane));
    TRY(engine_size_slots(e, blocks_per_lane, &slots_per_lane));
    set_limits(e, blocks_per_lane, slots_per_lane);
    TRY(group_agree(e->group, alloc_rest(e, blocks_per_lane)));
    log_write(&e->options.log, LOG_INFO, "kv pool ready",
              "lanes=%d blocks_per_lane=%lld bytes=%" PRIu64 " host_blocks_per_lane=%lld",
              e->plan->n_lanes, (long long)blocks_per_lane, e->pool.bytes,
              (long long)slots_per_lane);
    engine_log_memory(e, blocks_per_lane);
    return status_ok();
}

status_t engine_new(struct group *group, const struct model_spec *spec, const struct plan *plan,
                    const struct engine_options *options, struct engine **engine_out)
{
    struct engine *e = calloc(1, sizeof *e);
    const bool made = e != NULL;
    status_t s = group_agree(
        group,
        made ? status_ok() : status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory for an engine"));
    if (!made || !status_is_ok(&s)) {
        free(e);
        return s;
    }
    e->group = group;
    e->spec = spec;
    e->plan = plan;
    e->options = *options;
    e->options.max_steps = options->max_steps > 0 ? options->max_steps : 1;
    if (plan->pp > 1 && e->options.max_steps < plan->pp) {
        e->options.max_steps = plan->pp; // as the stages are always that far apart
    }
    e->rank = group_rank(group);
    s = build(e);
    if (!status_is_ok(&s)) {
        engine_free(e);
        return s;
    }
    *engine_out = e;
    return status_ok();
}

void engine_free(struct engine *e)
{
    if (e == NULL) {
        return;
    }
    step_queue_destroy(&e->steps);
    forward_destroy(&e->forward);
    kv_moves_destroy(&e->moves);
    kv_pool_destroy(&e->pool);
    weights_free(&e->weights);
    if (e->comm != NULL && e->comm != e->stage_comm) {
        e->comm->ops->free(e->comm);
    }
    stages_free(e->stages);
    e->options.backend->stream_free(e->stream);
    free(e);
}

const struct step_limits *engine_limits(const struct engine *e)
{
    return &e->limits;
}

uint64_t engine_weight_bytes(const struct engine *e)
{
    return e->weights.bytes;
}

uint64_t engine_kv_bytes(const struct engine *e)
{
    return e->pool.bytes;
}

uint64_t engine_swap_bytes(const struct engine *e)
{
    return e->moves.host_bytes;
}

uint64_t engine_bytes_read(const struct engine *e)
{
    return e->bytes_read;
}

/* What a plan's own limits cannot say: no position beyond the rope table. */
static status_t check_step(const struct engine *e, const struct step_plan *plan)
{
    for (int32_t i = 0; i < plan->n_seqs; i++) {
        const struct step_seq *seq = &plan->seqs[i];
        if (seq->n_tokens > e->options.max_model_len - seq->n_computed) {
            return status_errorf(
                STATUS_INTERNAL,
                "step %" PRIu64 ", sequence %" PRIu64 ": %d tokens after %d, --max-model-len is %d",
                plan->step, seq->seq_id, seq->n_tokens, seq->n_computed, e->options.max_model_len);
        }
    }
    return status_ok();
}

status_t engine_submit(struct engine *e, const struct step_plan *plan,
                       const struct step_sampling *sampling)
{
    TRY(check_step(e, plan));
    comm_step_begin(e->comm);
    const status_t s = step_queue_submit(&e->steps, plan, sampling);
    return status_is_ok(&s) ? s : status_wrapf(s, "step %" PRIu64, plan->step);
}

status_t engine_collect(struct engine *e, struct sample_result *results_out)
{
    const status_t s = step_queue_collect(&e->steps, results_out);
    comm_step_end(e->comm);
    TRY(e->comm->ops->check(e->comm)); // it knows more of what went wrong
    return s;
}

bool engine_draws(const struct engine *e)
{
    return forward_draws(&e->forward);
}

int32_t engine_stage_size(const struct engine *e)
{
    return e->plan->tp;
}

bool engine_full(const struct engine *e)
{
    return e->steps.n_under_way == e->steps.max_steps;
}

bool engine_ready(const struct engine *e)
{
    return step_queue_ready(&e->steps);
}

void engine_rest(struct engine *e)
{
    step_queue_rest(&e->steps);
}

const struct step_times *engine_times(const struct engine *e)
{
    return &e->steps.times;
}

status_t engine_step(struct engine *e, const struct step_plan *plan, const float **logits_out)
{
    TRY(engine_submit(e, plan, NULL));
    TRY(engine_collect(e, NULL));
    *logits_out = engine_draws(e) ? e->forward.logits : NULL;
    return status_ok();
}

status_t engine_read_logits(struct engine *e, int32_t n_logits, float *logits_out)
{
    const size_t size = (size_t)n_logits * (size_t)e->spec->n_vocab * sizeof(float);
    TRY(e->options.backend->download(e->stream, logits_out, e->forward.logits, size));
    return e->options.backend->stream_sync(e->stream);
}

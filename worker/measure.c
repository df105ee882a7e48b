#include "worker/measure.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/stats.h"
#include "parallel/comm_staged.h"
#include "worker/host.h"
#include "worker/measure_parts.h"

// ---- time ----

enum { N_ROUNDS = 7, N_LONG_ROUNDS = 3, MAX_CALLS = 4096 };

#define ROUND_S      0.003
#define LONG_ROUND_S 0.05

static status_t time_calls(const struct measure_bench *bench, measure_fn call, void *user,
                           int32_t n_calls, double *seconds_out)
{
    const double begin = clock_now_s(clock_system());
    for (int32_t i = 0; i < n_calls; i++) {
        TRY(call(user, i));
    }
    TRY(bench->options.backend->stream_sync(bench->stream));
    *seconds_out = (clock_now_s(clock_system()) - begin) / n_calls;
    return status_ok();
}

struct effort {
    int32_t n_calls, n_rounds;
};

/* Every rank makes as many calls: one of them may be a collective. */
static status_t agree_on_effort(const struct measure_bench *bench, double seconds,
                                struct effort *effort_out)
{
    struct comm *comm = group_comm(bench->group);
    const double wanted = ROUND_S / (seconds > 1e-9 ? seconds : 1e-9);
    struct effort effort = {
        .n_calls = wanted < 1           ? 1
                   : wanted > MAX_CALLS ? MAX_CALLS
                                        : (int32_t)wanted,
        .n_rounds = seconds > LONG_ROUND_S ? N_LONG_ROUNDS : N_ROUNDS,
    };
    if (comm->size > 1) {
        TRY(comm->ops->broadcast(comm, &effort, sizeof effort, 0));
    }
    *effort_out = effort;
    return status_ok();
}

status_t measure_seconds(const struct measure_bench *bench, measure_fn call, void *user,
                         double *seconds_out)
{
    double seconds[N_ROUNDS];
    double first;
    struct effort effort;
    TRY(time_calls(bench, call, user, 1, &first)); // brings in code and pages
    TRY(time_calls(bench, call, user, 1, &first));
    TRY(agree_on_effort(bench, first, &effort));
    for (int i = 0; i < effort.n_rounds; i++) {
        TRY(time_calls(bench, call, user, effort.n_calls, &seconds[i]));
    }
    stats_sort(seconds, (size_t)effort.n_rounds);
    *seconds_out = seconds[effort.n_rounds / 2];
    return status_ok();
}

status_t measure_alloc(const struct measure_bench *bench, size_t size, void **ptr_out)
{
    TRY(bench->options.backend->mem_alloc(bench->stream, size, ptr_out));
    const status_t s = bench->options.backend->zero(bench->stream, *ptr_out, size);
    if (!status_is_ok(&s)) {
        bench->options.backend->mem_free(bench->stream, *ptr_out);
        *ptr_out = NULL;
    }
    return s;
}

// ---- copies ----

struct copy {
    const struct measure_bench *bench;
    struct strip strip;
};

static status_t copy_once(void *user, int32_t i)
{
    const struct copy *copy = user;
    (void)i;
    return copy->bench->options.backend->copy_strips(copy->bench->stream, &copy->strip, 1);
}

/* Bytes read and written. What matmuls of one row read comes later, and counts where it is more. */
static status_t measure_copy(const struct measure_bench *bench)
{
    const int64_t half = MEASURE_COLD_BYTES / 2;
    void *memory = NULL;
    double seconds = 1;
    TRY(measure_alloc(bench, MEASURE_COLD_BYTES, &memory));
    struct copy copy = {
        .bench = bench,
        .strip = {.from = memory,
                  .to = (char *)memory + half,
                  .from_stride_bytes = 1 << 16,
                  .to_stride_bytes = 1 << 16,
                  .row_bytes = 1 << 16,
                  .n_rows = (int32_t)(half >> 16)},
    };
    const status_t s = measure_seconds(bench, copy_once, &copy, &seconds);
    bench->options.backend->mem_free(bench->stream, memory);
    bench->rates->read_bytes_per_s = (double)MEASURE_COLD_BYTES / seconds;
    return s;
}

// ---- collectives ----

struct collective {
    struct comm *comm;
    void *send, *recv;
    int64_t n; /* elements */
    int dtype;
    int64_t *counts, *displs;
};

static status_t reduce_once(void *user, int32_t i)
{
    struct collective *c = user;
    (void)i;
    return c->comm->ops->all_reduce(c->comm, c->send, c->n, c->dtype);
}

static status_t exchange_once(void *user, int32_t i)
{
    struct collective *c = user;
    (void)i;
    return c->comm->ops->all_to_all_v(c->comm, c->send, c->counts, c->displs, c->recv, c->counts,
                                      c->displs);
}

/* Two sizes give latency and bandwidth. */
static void fit_link(const double bytes[2], const double seconds[2], int32_t n_ranks,
                     struct cost_link *link)
{
    const double slope = (seconds[1] - seconds[0]) / (bytes[1] - bytes[0]);
    const double share = slope > 1e-15 ? slope : 1e-15;
    const double latency = seconds[0] - bytes[0] * share;
    *link = (struct cost_link){.algorithm = COST_RING,
                               .per_rank_s = (latency > 0 ? latency : 0) / (n_ranks - 1),
                               .bytes_per_s = 1 / share};
}

enum { SMALL_BYTES = 8 << 10, LARGE_BYTES = 2 << 20 };

static status_t time_collectives(const struct measure_bench *bench, struct collective *c)
{
    const double n = c->comm->size;
    const double sizes[2] = {SMALL_BYTES, LARGE_BYTES};
    double volumes[2], reduce_s[2], exchange_s[2], sent[2];
    for (int i = 0; i < 2; i++) {
        c->n = (int64_t)(sizes[i] / (double)dtype_bytes(c->dtype));
        volumes[i] = 2 * (n - 1) / n * sizes[i];
        TRY(measure_seconds(bench, reduce_once, c, &reduce_s[i]));
        const int64_t part = (int64_t)(sizes[i] / n);
        for (int32_t rank = 0; rank < c->comm->size; rank++) {
            c->counts[rank] = part;
            c->displs[rank] = rank * part;
        }
        sent[i] = (n - 1) * (double)part;
        TRY(measure_seconds(bench, exchange_once, c, &exchange_s[i]));
    }
    fit_link(volumes, reduce_s, c->comm->size, &bench->rates->all_reduce);
    fit_link(sent, exchange_s, c->comm->size, &bench->rates->exchange);
    bench->rates->stage = bench->rates->exchange;
    return status_ok();
}

static status_t open_comm(const struct measure_bench *bench, struct comm **comm_out)
{
    const struct comm_staged_parts parts = {.host = group_comm(bench->group),
                                            .backend = bench->options.backend,
                                            .stream = bench->stream,
                                            .max_bytes = LARGE_BYTES};
    *comm_out = parts.host;
    return bench->options.backend->host_memory ? status_ok() : comm_staged_new(&parts, comm_out);
}

status_t measure_collectives(const struct measure_bench *bench)
{
    const size_t n = (size_t)group_size(bench->group);
    struct collective c = {.dtype = bench->options.backend->activation};
    status_t s = status_ok();
    // One rank alone hands nothing over; a link without cost keeps the file whole.
    const struct cost_link none = {.algorithm = COST_RING, .bytes_per_s = 1e15};
    bench->rates->all_reduce = bench->rates->exchange = bench->rates->stage = none;
    if (n == 1) {
        return s;
    }
    c.counts = calloc(n, sizeof *c.counts);
    c.displs = calloc(n, sizeof *c.displs);
    if (c.counts == NULL || c.displs == NULL) {
        s = status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory for %zu ranks", n);
    }
    if (status_is_ok(&s)) {
        s = open_comm(bench, &c.comm);
    }
    if (status_is_ok(&s)) {
        s = measure_alloc(bench, LARGE_BYTES, &c.send);
    }
    if (status_is_ok(&s)) {
        s = measure_alloc(bench, LARGE_BYTES, &c.recv);
    }
    s = group_agree(bench->group, s);
    if (status_is_ok(&s) && c.comm != NULL) {
        s = time_collectives(bench, &c);
    }
    bench->options.backend->mem_free(bench->stream, c.send);
    bench->options.backend->mem_free(bench->stream, c.recv);
    if (c.comm != NULL && c.comm != group_comm(bench->group)) {
        c.comm->ops->free(c.comm);
    }
    free(c.counts);
    free(c.displs);
    return s;
}

// ---- all ----

static status_t describe_device(const struct measure_bench *bench)
{
    enum { MAX_DEVICES = 64 };
    struct device_info devices[MAX_DEVICES];
    int n = 0;
    const struct backend *backend = bench->options.backend;
    TRY(backend->devices(devices, MAX_DEVICES, &n));
    const struct device_info *device = &devices[bench->options.device];
    const double host = (double)host_memory_available() / group_host_size(bench->group);
    struct cost_rates *rates = bench->rates;
    snprintf(rates->name, sizeof rates->name, "%.48s", device->name);
    rates->memory_bytes = backend->host_memory ? host : (double)device->memory_bytes;
    rates->activation_bytes = (int32_t)dtype_bytes(backend->activation);
    rates->n_ranks = group_size(bench->group);
    rates->efficiency = (struct cost_efficiency){
        .matmul_read = 1, .matmul_flops = 1, .kv_read = 1, .attention_flops = 1};
    return status_ok();
}

static status_t measure_all(const struct measure_bench *bench)
{
    TRY(group_agree(bench->group, describe_device(bench)));
    TRY(measure_copy(bench));
    TRY(measure_matmuls(bench));
    TRY(measure_attention(bench));
    TRY(measure_elementwise(bench));
    TRY(measure_sampling(bench));
    TRY(measure_collectives(bench));
    return measure_step(bench);
}

status_t measure_run(struct group *group, const struct model_spec *spec, const struct plan *plan,
                     const struct measure_options *options, struct cost_rates *rates_out)
{
    struct cost_rates rates = {.n_matmuls = 0};
    struct measure_bench bench = {
        .group = group, .spec = spec, .plan = plan, .options = *options, .rates = &rates};
    const struct weight_formats formats = {.dtype = options->dtype};
    const int64_t weights = plan_weight_bytes(plan, spec, group_rank(group), &formats);
    bench.cold_bytes = weights < (int64_t)MEASURE_COLD_BYTES ? (size_t)weights : MEASURE_COLD_BYTES;
    const struct stream_options stream = {.device = options->device,
                                          .n_threads = options->cores->n_threads,
                                          .cores = options->cores->pinned ? options->cores->cores
                                                                          : NULL};
    TRY(group_agree(group, options->backend->stream_new(&stream, &bench.stream)));
    const status_t s = measure_all(&bench);
    options->backend->stream_free(bench.stream);
    if (status_is_ok(&s)) {
        *rates_out = rates;
    }
    return s;
}

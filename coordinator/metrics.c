#include "coordinator/metrics.h"

#include <math.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"

// ---- the table ----

struct name_row {
    const char *name; /* without the prefix */
    const char *help;
};

/* Counters of one name stand one after the other. */
struct counter_row {
    const char *name;
    const char *help;
    const char *label; /* behind the model's; NULL: none */
};

static const struct counter_row counter_rows[METRICS_N_COUNTERS] = {
    [METRICS_PROMPT_TOKENS] = {"prompt_tokens_total", "Prompt tokens of admitted requests"},
    [METRICS_GENERATION_TOKENS] = {"generation_tokens_total", "Tokens generated"},
    [METRICS_PREFIX_CACHE_QUERIES] = {"prefix_cache_queries_total",
                                      "Prompt tokens looked up in the prefix cache"},
    [METRICS_PREFIX_CACHE_HITS] = {"prefix_cache_hits_total",
                                   "Prompt tokens found in the prefix cache"},
    [METRICS_PREEMPTIONS] = {"num_preemptions_total",
                             "Sequences put back because KV blocks ran out"},
    [METRICS_RECOMPUTE_TOKENS] = {"recompute_tokens_total",
                                  "Tokens computed again after a preemption"},
    [METRICS_SWAPPED_OUT_BLOCKS] = {"swapped_blocks_total",
                                    "KV blocks moved to host memory by preemptions, and back",
                                    ",direction=\"out\""},
    [METRICS_SWAPPED_IN_BLOCKS] = {"swapped_blocks_total", NULL, ",direction=\"in\""},
    [METRICS_REQUESTS] = {"requests_total", "Requests that arrived"},
    [METRICS_SLOW_READERS] = {"slow_readers_total",
                              "Streams ended because the client did not read"},
};

static const struct name_row gauge_rows[METRICS_N_GAUGES] = {
    [METRICS_REQUESTS_RUNNING] = {"num_requests_running", "Requests in the workers' batches"},
    [METRICS_REQUESTS_WAITING] = {"num_requests_waiting", "Requests admitted and not yet computed"},
    [METRICS_KV_REPLICATION] = {"kv_replication_factor",
                                "KV bytes on all ranks / KV bytes stored once"},
    [METRICS_KV_BYTES_PER_TOKEN] = {"kv_bytes_per_token", "KV bytes of one token, all ranks"},
    [METRICS_SERVING] = {"serving", "1 when a request would be served"},
};

struct histogram_row {
    const char *name;
    const char *help;
    double unit; /* of one observed unit in shown units */
    double bounds[METRICS_MAX_BUCKETS];
    size_t n_bounds;
};

// Bucket bounds are vLLM's, so that its dashboards fit.
#define N_OF(...)   (sizeof((const double[]){__VA_ARGS__}) / sizeof(double))
#define BOUNDS(...) .bounds = {__VA_ARGS__}, .n_bounds = N_OF(__VA_ARGS__)
#define LATENCY_BOUNDS                                                                             \
    BOUNDS(0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, \
           7680)
#define TOKEN_BOUNDS \
    BOUNDS(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)

static const struct histogram_row histogram_rows[METRICS_N_HISTOGRAMS] = {
    [METRICS_TIME_TO_FIRST_TOKEN] = {"time_to_first_token_seconds", "Arrival to first token sent",
                                     1e-9,
                                     BOUNDS(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25,
                                            0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640,
                                            2560)},
    [METRICS_INTER_TOKEN_LATENCY] = {"inter_token_latency_seconds",
                                     "Time between tokens of one request", 1e-9,
                                     BOUNDS(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5,
                                            0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)},
    [METRICS_E2E_LATENCY] = {"e2e_request_latency_seconds", "Arrival to last token sent", 1e-9,
                             LATENCY_BOUNDS},
    [METRICS_QUEUE_TIME] = {"request_queue_time_seconds", "Arrival to submission to a worker group",
                            1e-9, LATENCY_BOUNDS},
    [METRICS_REQUEST_PROMPT_TOKENS] = {"request_prompt_tokens", "Prompt tokens per request", 1,
                                       TOKEN_BOUNDS},
    [METRICS_REQUEST_GENERATION_TOKENS] = {"request_generation_tokens",
                                           "Tokens generated per request", 1, TOKEN_BOUNDS},
};

static const char *const rejection_names[METRICS_N_REJECTIONS] = {
    [METRICS_REJECTED_INVALID] = "invalid",     [METRICS_REJECTED_OVERLOAD] = "overload",
    [METRICS_REJECTED_NOT_READY] = "not_ready", [METRICS_REJECTED_DRAINING] = "draining",
    [METRICS_REJECTED_DEADLINE] = "deadline",   [METRICS_REJECTED_OTHER] = "other",
};

static const char *const restart_names[METRICS_N_RESTARTS] = {
    [METRICS_RESTART_EXIT] = "exit",
    [METRICS_RESTART_HANG] = "hang",
    [METRICS_RESTART_LOST] = "lost",
};

// ---- changing ----

void metrics_init(struct metrics *m, const char *model, const char *version)
{
    memset(m, 0, sizeof *m);
    m->model = model;
    m->version = version;
}

void metrics_set(struct metrics *m, int gauge, double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    atomic_store_explicit(&m->gauges[gauge], bits, memory_order_relaxed);
}

void metrics_observe(struct metrics *m, int histogram, uint64_t value)
{
    const struct histogram_row *row = &histogram_rows[histogram];
    struct metrics_series *series = &m->histograms[histogram];
    const double shown = (double)value * row->unit;
    size_t bucket = 0;
    while (bucket < row->n_bounds && shown > row->bounds[bucket]) {
        bucket++;
    }
    atomic_fetch_add_explicit(&series->buckets[bucket], 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&series->sum, value, memory_order_relaxed);
}

uint64_t metrics_counter_value(const struct metrics *m, int counter)
{
    return atomic_load_explicit(&m->counters[counter], memory_order_relaxed);
}

// ---- showing ----

static uint64_t load(const _Atomic uint64_t *at)
{
    return atomic_load_explicit(at, memory_order_relaxed);
}

/* Text that a whole page keeps at hand: where it goes and the model label, quoted once. */
struct page {
    const struct metrics *m;
    uint64_t now_ns;
    char model[300]; /* with its quotes */
    struct bytes *out;
};

static status_t head(struct page *page, const char *name, const char *help, const char *type)
{
    return bytes_printf(page->out, "# HELP kvasir_%s %s\n# TYPE kvasir_%s %s\n", name, help, name,
                        type);
}

static status_t render_counters(struct page *page)
{
    for (size_t i = 0; i < METRICS_N_COUNTERS; i++) {
        const struct counter_row *row = &counter_rows[i];
        if (row->help != NULL) { // the first of its name
            TRY(head(page, row->name, row->help, "counter"));
        }
        TRY(bytes_printf(page->out, "kvasir_%s{model_name=%s%s} %llu\n", row->name, page->model,
                         row->label != NULL ? row->label : "",
                         (unsigned long long)load(&page->m->counters[i])));
    }
    return status_ok();
}

static status_t render_gauges(struct page *page)
{
    for (size_t i = 0; i < METRICS_N_GAUGES; i++) {
        const struct name_row *row = &gauge_rows[i];
        const uint64_t bits = load(&page->m->gauges[i]);
        double value;
        memcpy(&value, &bits, sizeof value);
        TRY(head(page, row->name, row->help, "gauge"));
        TRY(bytes_printf(page->out, "kvasir_%s{model_name=%s} %.10g\n", row->name, page->model,
                         value));
    }
    return status_ok();
}

static status_t render_reasons(struct page *page)
{
    TRY(head(page, "request_success_total", "Requests that ended with an answer", "counter"));
    for (int i = WIRE_FINISH_STOP; i < METRICS_N_REASONS; i++) {
        TRY(bytes_printf(
            page->out, "kvasir_request_success_total{model_name=%s,finished_reason=\"%s\"} %llu\n",
            page->model, wire_finish_reason_name(i),
            (unsigned long long)load(&page->m->finished[i])));
    }
    TRY(head(page, "requests_rejected_total", "Requests that were not admitted", "counter"));
    for (int i = 0; i < METRICS_N_REJECTIONS; i++) {
        TRY(bytes_printf(
            page->out, "kvasir_requests_rejected_total{model_name=%s,reason=\"%s\"} %llu\n",
            page->model, rejection_names[i], (unsigned long long)load(&page->m->rejected[i])));
    }
    return status_ok();
}

static status_t render_histogram(struct page *page, size_t i)
{
    const struct histogram_row *row = &histogram_rows[i];
    const struct metrics_series *series = &page->m->histograms[i];
    TRY(head(page, row->name, row->help, "histogram"));
    uint64_t count = 0;
    for (size_t b = 0; b < row->n_bounds; b++) {
        count += load(&series->buckets[b]);
        TRY(bytes_printf(page->out, "kvasir_%s_bucket{model_name=%s,le=\"%g\"} %llu\n", row->name,
                         page->model, row->bounds[b], (unsigned long long)count));
    }
    count += load(&series->buckets[row->n_bounds]);
    return bytes_printf(page->out,
                        "kvasir_%s_bucket{model_name=%s,le=\"+Inf\"} %llu\n"
                        "kvasir_%s_sum{model_name=%s} %.9g\n"
                        "kvasir_%s_count{model_name=%s} %llu\n",
                        row->name, page->model, (unsigned long long)count, row->name, page->model,
                        (double)load(&series->sum) * row->unit, row->name, page->model,
                        (unsigned long long)count);
}

// ---- groups: one line per group and family ----

static double group_kv_usage(const struct page *page, const struct metrics_group *group)
{
    (void)page;
    const uint64_t total = load(&group->kv_blocks_total);
    return total > 0 ? (double)load(&group->kv_blocks_used) / (double)total : 0;
}

static double group_generation(const struct page *page, const struct metrics_group *group)
{
    (void)page;
    return (double)load(&group->generation);
}

static double group_silence(const struct page *page, const struct metrics_group *group)
{
    const uint64_t heard = load(&group->heard_ns);
    return page->now_ns > heard ? (double)(page->now_ns - heard) * 1e-9 : 0;
}

struct group_row {
    const char *name;
    const char *help;
    double (*value)(const struct page *page, const struct metrics_group *group);
};

static const struct group_row group_rows[] = {
    {"kv_cache_usage_perc", "Share of the KV blocks in use, 0 to 1", group_kv_usage},
    {"group_generation", "How often the group was started, from 1", group_generation},
    {"group_heartbeat_age_seconds", "Since the group was last heard", group_silence},
};

static status_t render_restarts(struct page *page)
{
    TRY(head(page, "group_restarts_total", "Worker groups that were lost", "counter"));
    for (int g = 0; g < METRICS_MAX_GROUPS; g++) {
        const struct metrics_group *group = &page->m->groups[g];
        for (int r = 0; r < METRICS_N_RESTARTS && atomic_load(&group->present); r++) {
            TRY(bytes_printf(
                page->out,
                "kvasir_group_restarts_total{model_name=%s,group=\"%d\",reason=\"%s\"} %llu\n",
                page->model, g, restart_names[r], (unsigned long long)load(&group->restarts[r])));
        }
    }
    return status_ok();
}

static status_t render_groups(struct page *page)
{
    for (size_t i = 0; i < sizeof group_rows / sizeof group_rows[0]; i++) {
        const struct group_row *row = &group_rows[i];
        TRY(head(page, row->name, row->help, "gauge"));
        for (int g = 0; g < METRICS_MAX_GROUPS; g++) {
            const struct metrics_group *group = &page->m->groups[g];
            if (atomic_load(&group->present)) {
                TRY(bytes_printf(page->out, "kvasir_%s{model_name=%s,group=\"%d\"} %.6g\n",
                                 row->name, page->model, g, row->value(page, group)));
            }
        }
    }
    return render_restarts(page);
}

/* A label value with its quotes: backslash, quote and newline are escaped, as the format says. */
static void quote_label(const char *text, char *buf, size_t buf_bytes)
{
    size_t at = 0;
    buf[at++] = '"';
    for (const char *c = text; *c != '\0' && at + 4 < buf_bytes; c++) {
        if (*c == '\n') {
            buf[at++] = '\\';
            buf[at++] = 'n';
            continue;
        }
        if (*c == '\\' || *c == '"') {
            buf[at++] = '\\';
        }
        buf[at++] = *c;
    }
    buf[at++] = '"';
    buf[at] = '\0';
}

status_t metrics_render(const struct metrics *m, uint64_t now_ns, struct bytes *out)
{
    struct page page = {.m = m, .now_ns = now_ns, .out = out};
    quote_label(m->model, page.model, sizeof page.model);
    TRY(head(&page, "build_info", "Which build this is", "gauge"));
    TRY(bytes_printf(out, "kvasir_build_info{version=\"%s\"} 1\n", m->version));
    TRY(render_counters(&page));
    TRY(render_gauges(&page));
    TRY(render_reasons(&page));
    for (size_t i = 0; i < METRICS_N_HISTOGRAMS; i++) {
        TRY(render_histogram(&page, i));
    }
    return render_groups(&page);
}

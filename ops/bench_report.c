#include "ops/bench_report.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/stats.h"

enum metric { TTFT, TPOT, ITL, E2EL, REJECTION, RATE, N_METRICS };

static const struct {
    const char *key, *name, *title;
} metrics[] = {
    [TTFT] = {"ttft", "TTFT", "Time to First Token"},
    [TPOT] = {"tpot", "TPOT", "Time per Output Token (excl. 1st token)"},
    [ITL] = {"itl", "ITL", "Inter-token Latency"},
    [E2EL] = {"e2el", "E2EL", "End-to-end Latency"},
    [REJECTION] = {"rejection", "rejection", "Time to Rejection"},
};

/* Values of the requests that succeeded, and how long the refused ones waited to hear it. */
struct values {
    double *of[N_METRICS]; /* [n[metric]]; ITL's are the record's */
    size_t n[N_METRICS];
    uint64_t input_tokens, output_tokens, cached_tokens;
    size_t completed, cancelled, rejected, good;
    size_t untold; /* refused, and not told when to come back */
    double late_s; /* the most that a request was sent after it was due */
};

static double seconds(uint64_t from_ns, uint64_t to_ns)
{
    return (double)(to_ns - from_ns) * 1e-9;
}

// ---- from requests to values ----

static bool is_within(double bound_ms, double seconds_)
{
    return bound_ms <= 0 || seconds_ * 1e3 <= bound_ms;
}

static void take_request(const struct bench_report_options *o, const struct bench_request *r,
                         struct values *v)
{
    const double ttft = seconds(r->start_ns, r->first_ns), e2el = seconds(r->start_ns, r->end_ns);
    double tpot = 0; // of one token, for goodput
    v->of[TTFT][v->n[TTFT]++] = ttft;
    v->of[E2EL][v->n[E2EL]++] = e2el;
    if (r->output_tokens > 1) {
        tpot = (e2el - ttft) / (double)(r->output_tokens - 1);
        v->of[TPOT][v->n[TPOT]++] = tpot;
    }
    if (r->last_ns > r->first_ns) {
        v->of[RATE][v->n[RATE]++] =
            (double)(r->output_tokens - 1) / seconds(r->first_ns, r->last_ns);
    }
    v->completed++;
    v->input_tokens += r->input_tokens;
    v->output_tokens += r->output_tokens;
    v->cached_tokens += r->cached_tokens;
    v->good += is_within(o->goodput_ttft_ms, ttft) && is_within(o->goodput_tpot_ms, tpot) &&
               is_within(o->goodput_e2el_ms, e2el);
}

static void values_free(struct values *v)
{
    for (int metric = 0; metric < N_METRICS; metric++) {
        if (metric != ITL) {
            free(v->of[metric]);
        }
    }
}

static bool values_make(const struct bench_report_options *o, const struct bench_record *record,
                        struct values *v)
{
    *v = (struct values){.of = {[ITL] = record->gaps_s}, .n = {[ITL] = record->n_gaps}};
    bool made = true;
    for (int metric = 0; metric < N_METRICS; metric++) {
        if (metric != ITL) {
            v->of[metric] = calloc(record->n + 1, sizeof *v->of[metric]);
            made = made && v->of[metric] != NULL;
        }
    }
    for (size_t i = 0; made && i < record->n; i++) {
        const struct bench_request *r = &record->requests[i];
        if (r->status.code == STATUS_OK) {
            take_request(o, r, v);
        }
        v->cancelled += r->cancelled ? 1 : 0;
        if (r->status.code == STATUS_RESOURCE_EXHAUSTED) {
            v->of[REJECTION][v->n[REJECTION]++] = seconds(r->start_ns, r->end_ns);
            v->rejected++;
            v->untold += r->told_to_retry ? 0 : 1;
        }
        const double late = seconds(r->due_ns, r->start_ns);
        v->late_s = late > v->late_s ? late : v->late_s;
    }
    return made;
}

// ---- the object ----

static void set_number(json_t *object, const char *key, double value)
{
    json_object_set_new(object, key, json_real(value));
}

static void set_count(json_t *object, const char *key, uint64_t value)
{
    json_object_set_new(object, key, json_integer((json_int_t)value));
}

/* "99" or "99.9", as in p99_ttft_ms. */
static void percent_name(double percent, char *buf, size_t buf_bytes)
{
    snprintf(buf, buf_bytes, "%g", percent);
}

static void add_metric(json_t *object, const struct bench_report_options *o, int metric,
                       const struct values *v)
{
    struct stats stats;
    char key[64], percent[32];
    stats_of(v->of[metric], v->n[metric], &stats);

    const struct {
        const char *prefix;
        double value;
    } parts[] = {{"mean", stats.mean}, {"median", stats.median}, {"std", stats.deviation}};

    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        snprintf(key, sizeof key, "%s_%s_ms", parts[i].prefix, metrics[metric].key);
        set_number(object, key, parts[i].value * 1e3);
    }
    for (size_t i = 0; i < o->n_percentiles; i++) {
        percent_name(o->percentiles[i], percent, sizeof percent);
        snprintf(key, sizeof key, "p%s_%s_ms", percent, metrics[metric].key);
        set_number(object, key,
                   stats_percentile(v->of[metric], v->n[metric], o->percentiles[i]) * 1e3);
    }
}

static json_t *errors_of(const struct bench_record *record)
{
    json_t *errors = json_object();
    for (size_t i = 0; i < record->n; i++) {
        const status_t *s = &record->requests[i].status;
        if (s->code != STATUS_OK && !record->requests[i].cancelled) {
            const char *name = status_code_name(s->code);
            const json_int_t n = json_integer_value(json_object_get(errors, name));
            json_object_set_new(errors, name, json_integer(n + 1));
        }
    }
    return errors;
}

static json_t *today(void)
{
    char text[32] = "";
    const time_t now = time(NULL);
    struct tm utc;
    if (gmtime_r(&now, &utc) != NULL) {
        strftime(text, sizeof text, "%Y%m%d-%H%M%S", &utc);
    }
    return json_string(text);
}

static bool wants_goodput(const struct bench_report_options *o)
{
    return o->goodput_ttft_ms > 0 || o->goodput_tpot_ms > 0 || o->goodput_e2el_ms > 0;
}

static void add_totals(json_t *object, const struct bench_report_options *o,
                       const struct bench_record *record, const struct values *v)
{
    const double duration = seconds(record->begin_ns, record->end_ns);
    uint64_t peak = 0;
    for (size_t i = 0; i < record->n_seconds; i++) {
        peak = record->second_tokens[i] > peak ? record->second_tokens[i] : peak;
    }
    set_number(object, "duration", duration);
    set_count(object, "completed", v->completed);
    set_count(object, "failed", record->n - v->completed - v->cancelled);
    set_count(object, "cancelled", v->cancelled);
    set_count(object, "rejected", v->rejected);
    set_count(object, "rejected_without_retry_after", v->untold);
    set_count(object, "retries", record->n_retries);
    json_object_set_new(object, "errors_by_status", errors_of(record));
    set_count(object, "total_input_tokens", v->input_tokens);
    set_count(object, "total_cached_tokens", v->cached_tokens);
    set_count(object, "total_output_tokens", v->output_tokens);
    set_number(object, "request_throughput", (double)v->completed / duration);
    json_object_set_new(object, "request_goodput",
                        wants_goodput(o) ? json_real((double)v->good / duration) : json_null());
    set_number(object, "output_throughput", (double)v->output_tokens / duration);
    set_number(object, "total_token_throughput",
               (double)(v->input_tokens + v->output_tokens) / duration);
    set_number(object, "max_output_tokens_per_s", (double)peak);
    set_count(object, "max_concurrent_requests", record->max_concurrent);
    if (o->request_rate > 0 &&
        o->max_concurrency == 0) { // else requests wait for others, not for this program
        set_number(object, "max_send_delay_ms", v->late_s * 1e3);
    }
}

static void add_stream_rates(json_t *object, struct values *v)
{
    struct stats rates;
    stats_of(v->of[RATE], v->n[RATE], &rates);
    set_number(object, "min_stream_tok_s", rates.min);
    set_number(object, "max_stream_tok_s", rates.max);
    set_number(object, "stream_rate_ratio", rates.min > 0 ? rates.max / rates.min : 0);
}

json_t *bench_report_make(const struct bench_report_options *options,
                          const struct bench_record *record)
{
    struct values values;
    json_t *object = json_object();
    if (object == NULL || !values_make(options, record, &values)) {
        json_decref(object);
        return NULL;
    }
    json_object_set_new(object, "date", today());
    json_object_set_new(object, "backend", json_string("kvasir"));
    json_object_set_new(object, "model_id", json_string(options->model));
    set_count(object, "num_prompts", record->n);
    json_object_set_new(object, "request_rate",
                        options->request_rate > 0 ? json_real(options->request_rate)
                                                  : json_string("inf"));
    json_object_set_new(object, "max_concurrency",
                        options->max_concurrency > 0 ? json_integer(options->max_concurrency)
                                                     : json_null());
    add_totals(object, options, record, &values);
    for (int metric = TTFT; metric <= (values.rejected > 0 ? REJECTION : E2EL); metric++) {
        add_metric(object, options, metric, &values);
    }
    add_stream_rates(object, &values);
    values_free(&values);
    return object;
}

// ---- text ----

/* One row of the listing; key NULL: a title. */
struct row {
    const char *label, *key;
    int decimals;
};

enum { WIDTH = 50 };

static void print_title(FILE *out, const char *title, char fill)
{
    const int n = (int)strlen(title), left = (WIDTH - n) / 2;
    for (int i = 0; i < left; i++) {
        fputc(fill, out);
    }
    fputs(title, out);
    for (int i = left + n; i < WIDTH; i++) {
        fputc(fill, out);
    }
    fputc('\n', out);
}

static void print_row(FILE *out, const json_t *report, const struct row *row)
{
    const json_t *value = json_object_get(report, row->key);
    if (json_is_number(value)) {
        fprintf(out, "%-40s %-10.*f\n", row->label, row->decimals, json_number_value(value));
    }
}

static void print_metric(FILE *out, const json_t *report, const struct bench_report_options *o,
                         int metric)
{
    char label[64], key[64], percent[32];
    print_title(out, metrics[metric].title, '-');
    const char *const names[][2] = {{"Mean", "mean"}, {"Median", "median"}};
    for (size_t i = 0; i < 2; i++) {
        snprintf(label, sizeof label, "%s %s (ms):", names[i][0], metrics[metric].name);
        snprintf(key, sizeof key, "%s_%s_ms", names[i][1], metrics[metric].key);
        print_row(out, report, &(struct row){label, key, 2});
    }
    for (size_t i = 0; i < o->n_percentiles; i++) {
        percent_name(o->percentiles[i], percent, sizeof percent);
        snprintf(label, sizeof label, "P%s %s (ms):", percent, metrics[metric].name);
        snprintf(key, sizeof key, "p%s_%s_ms", percent, metrics[metric].key);
        print_row(out, report, &(struct row){label, key, 2});
    }
}

void bench_report_print(const json_t *report, const struct bench_report_options *options, FILE *out)
{
    static const struct row head[] = {
        {"Successful requests:", "completed", 0},
        {"Failed requests:", "failed", 0},
        {"Maximum request concurrency:", "max_concurrency", 0},
        {"Request rate configured (RPS):", "request_rate", 2},
        {"Benchmark duration (s):", "duration", 2},
        {"Total input tokens:", "total_input_tokens", 0},
        {"Total generated tokens:", "total_output_tokens", 0},
        {"Request throughput (req/s):", "request_throughput", 2},
        {"Request goodput (req/s):", "request_goodput", 2},
        {"Output token throughput (tok/s):", "output_throughput", 2},
        {"Peak output token throughput (tok/s):", "max_output_tokens_per_s", 2},
        {"Peak concurrent requests:", "max_concurrent_requests", 2},
        {"Total token throughput (tok/s):", "total_token_throughput", 2},
    };
    static const struct row tail[] = {
        {"Input tokens from the cache:", "total_cached_tokens", 0},
        {"Cancelled requests:", "cancelled", 0},
        {"Rejected requests:", "rejected", 0},
        {"Retries:", "retries", 0},
        {"Slowest stream (tok/s):", "min_stream_tok_s", 2},
        {"Fastest stream (tok/s):", "max_stream_tok_s", 2},
        {"Fastest / slowest stream:", "stream_rate_ratio", 3},
        {"Latest send after its time (ms):", "max_send_delay_ms", 2},
    };
    print_title(out, " Serving Benchmark Result ", '=');
    for (size_t i = 0; i < sizeof head / sizeof head[0]; i++) {
        print_row(out, report, &head[i]);
    }
    const bool rejects = json_integer_value(json_object_get(report, "rejected")) > 0;
    for (int metric = TTFT; metric <= (rejects ? REJECTION : E2EL); metric++) {
        print_metric(out, report, options, metric);
    }
    print_title(out, "Streams", '-');
    for (size_t i = 0; i < sizeof tail / sizeof tail[0]; i++) {
        print_row(out, report, &tail[i]);
    }
    print_title(out, "", '=');
}

void bench_report_compare(const json_t *report, const json_t *old, FILE *out)
{
    const char *key;
    json_t *value;
    fprintf(out, "%-28s %14s %14s %9s\n", "", "before", "now", "now/before");
    json_object_foreach((json_t *)report, key, value) // only read; the macro is older than const
    {
        const json_t *before = json_object_get(old, key);
        if (json_is_number(value) && json_is_number(before)) {
            const double a = json_number_value(before), b = json_number_value(value);
            fprintf(out, "%-28s %14.2f %14.2f %9.3f\n", key, a, b, a > 0 ? b / a : NAN);
        }
    }
}

// ---- the verdict ----

enum { N_CODES = 17 };

status_t bench_report_verdict(const struct bench_record *record, FILE *out)
{
    size_t counts[N_CODES] = {0}, n_failed = 0;
    const char *first[N_CODES] = {NULL};
    for (size_t i = 0; i < record->n; i++) {
        const status_t *s = &record->requests[i].status;
        const int known = s->code >= 0 && s->code < N_CODES ? s->code : STATUS_UNKNOWN;
        const int code = record->requests[i].cancelled ? STATUS_OK : known;
        n_failed += code != STATUS_OK;
        counts[code]++;
        first[code] = first[code] != NULL ? first[code] : s->msg;
    }
    int most = STATUS_OK;
    for (int code = 1; code < N_CODES; code++) {
        if (counts[code] > 0) {
            fprintf(out, "%zu x %s: %s\n", counts[code], status_code_name(code), first[code]);
            most = most == STATUS_OK || counts[code] > counts[most] ? code : most;
        }
    }
    if (n_failed == 0) {
        return status_ok();
    }
    return status_errorf(most, "%zu of %zu requests failed, most with %s: no good run", n_failed,
                         record->n, status_code_name(most));
}

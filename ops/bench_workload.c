#include "ops/bench_workload.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/philox.h"

#define MAX_FILE_BYTES ((size_t)1 << 30)

/* Whose random numbers these are: what is drawn for one purpose changes nothing of another. */
enum purpose { FOR_ARRIVAL, FOR_INPUT_LEN, FOR_OUTPUT_LEN, FOR_TOKENS, FOR_PREFIX };

struct random {
    uint32_t key[2];
    uint32_t purpose;
    uint64_t prompt;
};

/* The 128 bits number `at` of this prompt and purpose. */
static void draw(const struct random *r, uint32_t at, uint32_t out[4])
{
    const uint32_t counter[4] = {at, (uint32_t)r->prompt, (uint32_t)(r->prompt >> 32), r->purpose};
    philox_4x32(counter, r->key, out);
}

static struct random random_for(uint64_t seed, int purpose, uint64_t prompt)
{
    return (struct random){.key = {(uint32_t)seed, (uint32_t)(seed >> 32)},
                           .purpose = (uint32_t)purpose,
                           .prompt = prompt};
}

/* In (0, 1]: its logarithm is finite. */
static double uniform(uint32_t high, uint32_t low)
{
    const uint64_t bits = ((uint64_t)high << 32 | low) >> 11;
    return ((double)bits + 1) * 0x1p-53;
}

static double normal(const struct random *r)
{
    uint32_t bits[4];
    draw(r, 0, bits);
    const double two_pi = 6.283185307179586;
    return sqrt(-2 * log(uniform(bits[0], bits[1]))) * cos(two_pi * uniform(bits[2], bits[3]));
}

static double exponential(const struct random *r)
{
    uint32_t bits[4];
    draw(r, 0, bits);
    return -log(uniform(bits[0], bits[1]));
}

// ---- lengths ----

/* The mean of a lognormal is exp(mu + sigma^2 / 2): mu is chosen so that it is the one asked for. */
static uint32_t draw_length(const struct bench_workload_options *o, int purpose, uint64_t prompt,
                            uint32_t mean, uint32_t most)
{
    if (o->lengths == BENCH_LENGTHS_FIXED) {
        return mean < most ? mean : most;
    }
    const struct random r = random_for(o->seed, purpose, prompt);
    const double length = exp(log((double)mean) - o->sigma * o->sigma / 2 + o->sigma * normal(&r));
    if (length < 1) {
        return 1;
    }
    return length < (double)most ? (uint32_t)lround(length) : most;
}

static status_t check_lengths(const struct bench_workload_options *o)
{
    const uint64_t all = (uint64_t)o->shared_prefix_len + o->input_len + o->output_len;
    if (all > o->context_length) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "--shared-prefix-len %u, --input-len %u and --output-len %u are %llu "
                             "tokens, the model's context is %u",
                             o->shared_prefix_len, o->input_len, o->output_len,
                             (unsigned long long)all, o->context_length);
    }
    return status_ok();
}

// ---- made-up prompts ----

static bool is_eos(const struct bench_workload_options *o, uint32_t id)
{
    for (size_t i = 0; i < o->n_eos_ids; i++) {
        if (o->eos_ids[i] == id) {
            return true;
        }
    }
    return false;
}

static void draw_ids(const struct bench_workload_options *o, const struct random *r, uint32_t *ids,
                     uint32_t n)
{
    uint32_t bits[4] = {0};
    for (uint32_t i = 0; i < n; i++) {
        if (i % 4 == 0) {
            draw(r, i / 4, bits);
        }
        uint32_t id = (uint32_t)(((uint64_t)bits[i % 4] * o->vocab_size) >> 32);
        for (uint32_t turns = 0; is_eos(o, id) && turns < o->vocab_size; turns++) {
            id = (id + 1) % o->vocab_size;
        }
        ids[i] = id;
    }
}

static status_t make_prompt(const struct bench_workload_options *o, struct bench_workload *w,
                            size_t i)
{
    const uint32_t room = o->context_length - o->shared_prefix_len;
    const uint32_t n_own = draw_length(o, FOR_INPUT_LEN, i, o->input_len, room - 1);
    const uint32_t n = o->shared_prefix_len + n_own;
    uint32_t *ids = calloc(n, sizeof *ids);
    if (ids == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory for a prompt of %u ids", n);
    }
    const struct random prefix = random_for(o->seed, FOR_PREFIX, 0);
    const struct random own = random_for(o->seed, FOR_TOKENS, i);
    draw_ids(o, &prefix, ids, o->shared_prefix_len);
    draw_ids(o, &own, ids + o->shared_prefix_len, n_own);
    w->owned[i] = ids;
    w->prompts[i] = (struct bench_prompt){
        .ids = ids,
        .n = n,
        .output_len = draw_length(o, FOR_OUTPUT_LEN, i, o->output_len, room - n_own),
    };
    return status_ok();
}

// ---- a file ----

static status_t take_ids(const json_t *list, struct bench_workload *w, size_t i)
{
    const size_t n = json_array_size(list);
    uint32_t *ids = calloc(n + 1, sizeof *ids);
    if (ids == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory for a prompt of %zu ids", n);
    }
    w->owned[i] = ids;
    for (size_t at = 0; at < n; at++) {
        const json_t *id = json_array_get(list, at);
        if (!json_is_integer(id) || json_integer_value(id) < 0 ||
            json_integer_value(id) > UINT32_MAX) {
            return status_errorf(STATUS_DATA_LOSS, "prompt: element %zu is no token id", at);
        }
        ids[at] = (uint32_t)json_integer_value(id);
    }
    w->prompts[i].ids = ids;
    w->prompts[i].n = n;
    return status_ok();
}

static status_t take_line(const struct bench_workload_options *o, const json_t *line,
                          struct bench_workload *w, size_t i)
{
    const json_t *prompt = json_object_get(line, "prompt");
    const json_t *output_len = json_object_get(line, "output_len");
    w->prompts[i] = (struct bench_prompt){.output_len = o->output_len};
    if (output_len != NULL) {
        const json_int_t n = json_is_integer(output_len) ? json_integer_value(output_len) : 0;
        if (n < 1 || n > INT32_MAX) {
            return status_errorf(STATUS_DATA_LOSS, "output_len: not a number of tokens");
        }
        w->prompts[i].output_len = (uint32_t)n;
    }
    if (json_is_array(prompt)) {
        return take_ids(prompt, w, i);
    }
    if (!json_is_string(prompt)) {
        return status_errorf(STATUS_DATA_LOSS, "prompt: neither text nor a list of token ids");
    }
    w->owned[i] = strdup(json_string_value(prompt));
    if (w->owned[i] == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory for a prompt");
    }
    w->prompts[i].text = w->owned[i];
    w->prompts[i].n = json_string_length(prompt);
    return status_ok();
}

static status_t read_line(const struct bench_workload_options *o, const char *text, size_t size,
                          struct bench_workload *w)
{
    json_error_t error;
    json_t *line = json_loadb(text, size, JSON_REJECT_DUPLICATES, &error);
    if (line == NULL) {
        return status_errorf(STATUS_DATA_LOSS, "%s", error.text);
    }
    const status_t s = take_line(o, line, w, w->n);
    json_decref(line);
    w->n++; // what it owns by now is freed with the rest
    return s;
}

static status_t alloc_prompts(struct bench_workload *w, size_t n)
{
    w->prompts = calloc(n + 1, sizeof *w->prompts);
    w->owned = calloc(n + 1, sizeof *w->owned);
    if (w->prompts == NULL || w->owned == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory for %zu prompts", n);
    }
    return status_ok();
}

static status_t read_lines(const struct bench_workload_options *o, const struct bytes *file,
                           struct bench_workload *w)
{
    const char *at = (const char *)file->data, *const end = at + file->size;
    size_t most = 1;
    for (const char *c = at; c < end; c++) {
        most += *c == '\n';
    }
    TRY(alloc_prompts(w, most));
    for (size_t number = 1; at < end && (o->n_prompts == 0 || w->n < o->n_prompts); number++) {
        const char *newline = memchr(at, '\n', (size_t)(end - at));
        const char *stop = newline != NULL ? newline : end;
        if (strspn(at, " \t\r") < (size_t)(stop - at)) {
            const status_t s = read_line(o, at, (size_t)(stop - at), w);
            if (s.code != STATUS_OK) {
                return status_wrapf(s, "%s:%zu", o->dataset, number);
            }
        }
        at = stop + 1;
    }
    return w->n > 0 ? status_ok() : status_errorf(STATUS_DATA_LOSS, "%s: no prompt", o->dataset);
}

static status_t read_prompts(const struct bench_workload_options *o, struct bench_workload *w)
{
    struct bytes file;
    bytes_init(&file, MAX_FILE_BYTES);
    status_t s = file_read(o->dataset, MAX_FILE_BYTES, &file);
    if (s.code == STATUS_OK) {
        s = bytes_append(&file, "", 1); // strspn ends there
    }
    if (s.code == STATUS_OK) {
        file.size--;
        s = read_lines(o, &file, w);
    }
    bytes_destroy(&file);
    return s;
}

// ---- the workload ----

static status_t make_prompts(const struct bench_workload_options *o, struct bench_workload *w)
{
    TRY(check_lengths(o));
    TRY(alloc_prompts(w, o->n_prompts));
    for (; w->n < o->n_prompts; w->n++) {
        TRY(make_prompt(o, w, w->n));
    }
    return status_ok();
}

static void set_arrivals(const struct bench_workload_options *o, struct bench_workload *w)
{
    double at = 0;
    for (size_t i = 0; o->request_rate > 0 && i < w->n; i++) {
        const struct random r = random_for(o->seed, FOR_ARRIVAL, i);
        w->prompts[i].arrival_s = at;
        at += exponential(&r) / o->request_rate;
    }
}

status_t bench_workload_make(const struct bench_workload_options *options,
                             struct bench_workload *workload_out)
{
    struct bench_workload w = {0};
    const status_t s =
        options->dataset != NULL ? read_prompts(options, &w) : make_prompts(options, &w);
    if (s.code != STATUS_OK) {
        bench_workload_destroy(&w);
        return s;
    }
    set_arrivals(options, &w);
    *workload_out = w;
    return status_ok();
}

void bench_workload_destroy(struct bench_workload *w)
{
    for (size_t i = 0; w->owned != NULL && i < w->n; i++) {
        free(w->owned[i]);
    }
    free(w->owned);
    free(w->prompts);
    *w = (struct bench_workload){0};
}

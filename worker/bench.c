#include "worker/bench.h"

#include <ctype.h>
#include <inttypes.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "parallel/group.h"
#include "worker/bench_perplexity.h"
#include "worker/bench_speed.h"

#define MAX_TOKENS_BYTES ((size_t)1 << 30)

/* Text of ours or a model's directory in JSON: what would end the string is left out. */
static void print_string(const char *key, const char *value)
{
    printf("\"%s\": \"", key);
    for (const char *c = value; *c != '\0'; c++) {
        if (*c != '"' && *c != '\\' && (unsigned char)*c >= ' ') {
            putchar(*c);
        }
    }
    fputs("\", ", stdout);
}

static void print_head(const char *suite, const struct bench_session *session)
{
    putchar('{');
    print_string("suite", suite);
    print_string("model", session->spec.name);
    print_string("device", session->device.backend->name);
    print_string("dtype", dtype_name(session->dtype));
    print_string("quantization", dtype_quantization_name(session->config->quantization));
    print_string("kv_dtype", dtype_name(session->kv_dtype));
    print_string("load_format", session->config->load == BENCH_LOAD_DUMMY ? "dummy" : "auto");
    printf("\"ranks\": %d", group_size(session->group));
}

// ---- engine ----

static void print_ops(const struct bench_speed_result *r)
{
    fputs(", \"ops\": [", stdout);
    for (int32_t i = 0; i < r->n_ops; i++) {
        const struct bench_trace_op *op = &r->ops[i];
        printf("%s{\"op\": \"%s\", \"calls\": %" PRIu64 ", \"seconds\": %.9g, \"bytes\": %.17g, "
               "\"flops\": %.17g}",
               i > 0 ? ", " : "", op->name, op->n_calls, (double)op->ns * 1e-9, op->bytes,
               op->flops);
    }
    putchar(']');
}

static void print_speed(void *user, const struct bench_session *session,
                        const struct bench_speed_result *r)
{
    (void)user;
    const double prompts = (double)r->batch * r->prompt;
    const double generated = (double)r->batch * r->generate;
    print_head("engine", session);
    printf(
        ", \"batch\": %d, \"prompt\": %d, \"generate\": %d, \"prefill_tok_s\": %.6g, "
        "\"decode_tok_s\": %.6g, \"prefill_s\": %.6g, \"decode_s\": %.6g, "
        "\"median_step_s\": %.6g, \"p99_step_s\": %.6g, \"gap_share\": %.4g, \"peak_bytes\": %.0f, "
        "\"weight_bytes\": %.0f, \"kv_bytes\": %.0f",
        r->batch, r->prompt, r->generate, prompts / r->prefill_s, generated / r->decode_s,
        r->prefill_s, r->decode_s, r->median_step_s, r->p99_step_s, r->gap_share, r->peak_bytes,
        r->weight_bytes, r->kv_bytes);
    if (r->floor.copy_bytes_s > 0) {
        printf(", \"copy_bytes_s\": %.6g, \"matmul_flops_s\": %.6g", r->floor.copy_bytes_s,
               r->floor.matmul_flops_s);
    }
    if (r->ops != NULL) {
        print_ops(r);
    }
    puts("}");
    fflush(stdout);
}

static status_t run_engine(const struct bench_session_request *request)
{
    return bench_speed_run(request, print_speed, NULL);
}

// ---- perplexity ----

static status_t parse_ids(const char *text, int32_t *ids, int64_t *n_out)
{
    int64_t n = 0;
    for (const char *at = text;;) {
        at += strspn(at, " \t\r\n");
        if (*at == '\0') {
            *n_out = n;
            return status_ok();
        }
        char *end;
        const long id = strtol(at, &end, 10);
        if (end == at || id < 0 || id > INT32_MAX ||
            (*end != '\0' && !isspace((unsigned char)*end))) {
            return status_errorf(STATUS_DATA_LOSS, "number %lld is no token id", (long long)n);
        }
        ids[n++] = (int32_t)id;
        at = end;
    }
}

/* Every rank reads the file: it lies where the model does. */
static status_t read_ids(const char *path, struct bytes *text, int32_t **ids_out, int64_t *n_out)
{
    if (path == NULL) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "--tokens FILE is needed");
    }
    TRY(file_read(path, MAX_TOKENS_BYTES - 1, text));
    TRY(bytes_append(text, "", 1));
    int32_t *ids = calloc(text->size / 2 + 1, sizeof *ids); // a digit and a blank each
    if (ids == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory for the ids of %s", path);
    }
    const status_t s = parse_ids((const char *)text->data, ids, n_out);
    if (s.code != STATUS_OK) {
        free(ids);
        return status_wrapf(s, "--tokens %s", path);
    }
    *ids_out = ids;
    return status_ok();
}

static void print_perplexity(const struct bench_session_request *request,
                             const struct bench_perplexity_result *r)
{
    const double mean = r->nll / (double)r->n_scored;
    printf("{\"suite\": \"perplexity\", \"ranks\": %d, \"context\": %d, \"stride\": %d, "
           "\"windows\": %" PRId64 ", \"tokens\": %" PRId64 ", \"scored\": %" PRId64
           ", \"nll\": %.17g, \"perplexity\": %.17g}\n",
           group_size(request->group), r->context, r->stride, r->n_windows, r->n_tokens,
           r->n_scored, r->nll, exp(mean));
}

static status_t run_perplexity(const struct bench_session_request *request)
{
    struct bytes text;
    struct bench_perplexity_result result;
    int32_t *ids = NULL;
    int64_t n = 0;
    bytes_init(&text, MAX_TOKENS_BYTES);
    status_t s =
        group_agree(request->group, read_ids(request->config->tokens_file, &text, &ids, &n));
    bytes_destroy(&text);
    if (s.code == STATUS_OK) {
        s = bench_perplexity_run(request, ids, n, &result);
    }
    if (s.code == STATUS_OK && group_rank(request->group) == 0) {
        print_perplexity(request, &result);
    }
    free(ids);
    return s;
}

// ---- the parts ----

static const struct part {
    const char *name, *help;
    status_t (*run)(const struct bench_session_request *request);
} parts[] = {
    {"engine", "tokens a second of prompts and of decoding", run_engine},
    {"perplexity", "how well the model predicts the tokens of a file", run_perplexity},
};

static const struct part *find_part(const char *name)
{
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        if (strcmp(parts[i].name, name) == 0) {
            return &parts[i];
        }
    }
    return NULL;
}

static int report(const status_t *s)
{
    if (s->code != STATUS_OK) {
        status_print(stderr, s);
    }
    return status_exit_code(s);
}

static int run(const struct part *part, const struct config_set *set, const struct backend *backend)
{
    struct group *group = NULL;
    bool broken = false;
    signal(SIGPIPE, SIG_IGN);
    status_t s = group_open("bench", &group);
    if (s.code != STATUS_OK) {
        return report(&s);
    }
    struct bench_session_request request = {
        .group = group,
        .config = set->target,
        .model_dir = set->positional[0],
        .backend = backend,
        .log = {.fd = 2, .rank = group_rank(group), .module = "bench"},
        .broken = &broken,
    };
    s = log_level_parse(request.config->log_level, &request.log.level);
    if (s.code == STATUS_OK) {
        s = part->run(&request);
    }
    const int code = status_exit_code(&s);
    const bool leads = group_rank(group) == 0;
    if (leads || broken) {
        (void)report(&s);
    }
    if (broken) {
        group_abort(group, code);
    }
    group_close(group);
    return leads ? code : 0;
}

int bench_main(int argc, char **argv, const struct backend *backend)
{
    struct bench_config config;
    struct config_set set;
    const struct part *part = argc > 1 ? find_part(argv[1]) : NULL;
    if (part == NULL) {
        const status_t s =
            status_errorf(STATUS_INVALID_ARGUMENT, "--bench is engine or perplexity" STATUS_FIX
                                                   "kvasir-worker --bench engine MODEL");
        return report(&s);
    }
    status_t s =
        config_load(&set, bench_config_rows, bench_config_n_rows, &config, argc - 1, argv + 1);
    if (s.code != STATUS_OK) {
        return report(&s);
    }
    int code = 0;
    if (set.help_wanted) {
        printf("usage: [mpirun -n N] kvasir-worker --bench %s MODEL [options]\n\nPrints %s.\n\n",
               part->name, part->help);
        config_print_help(&set, stdout);
    } else if (set.n_positional != 1) {
        s = status_errorf(STATUS_INVALID_ARGUMENT, "one MODEL directory is needed, %zu given",
                          set.n_positional);
        code = report(&s);
    } else {
        code = run(part, &set, backend);
    }
    config_destroy(&set);
    return code;
}

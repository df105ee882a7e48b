#include "ops/doctor_model.h"

#include <dirent.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <jansson.h>

#include "base/bytes.h"
#include "base/file.h"
#include "coordinator/tokenizer/chat_template.h"
#include "coordinator/tokenizer/tokenizer.h"
#include "ops/doctor_scan.h"
#include "parallel/plan.h"
#include "parallel/spec.h"
#include "worker/checkpoint.h"
#include "worker/host.h"
#include "worker/weights_check.h"

#define PATH_BYTES       4096
#define MAX_CONFIG_BYTES ((size_t)4 << 20)

/* A look at one directory. */
struct look {
    const struct doctor_model_options *options;
    struct doctor_findings *list;
    struct model_spec spec; /* zeroed where config.json is not understood */
    bool has_spec;
    struct checkpoint *checkpoint; /* NULL: the weights cannot be opened */
    uint64_t weight_bytes;
};

static struct doctor_finding *add(struct look *look, const char *name)
{
    return doctor_finding_add(look->list, name, DOCTOR_MODEL);
}

static double gigabytes(uint64_t bytes)
{
    return (double)bytes / 1e9;
}

// ---- config.json ----

/* "4", or "1 to 4" where layers differ. */
static const char *kv_heads_text(const struct model_spec *spec, char *buf, size_t size)
{
    int32_t least = INT32_MAX;
    int32_t most = 0;
    for (int32_t i = 0; i < spec->n_layers; i++) {
        const int32_t n = spec->layers[i].n_kv_heads;
        least = n < least ? n : least;
        most = n > most ? n : most;
    }
    snprintf(buf, size, least == most ? "%d" : "%d to %d", least, most);
    return buf;
}

static void check_config(struct look *look)
{
    struct doctor_finding *f = add(look, "model");
    const status_t s = spec_load(look->options->dir, &look->spec);
    if (!status_is_ok(&s)) {
        doctor_finding_fail(f, &s);
        return;
    }
    look->has_spec = true;
    const struct model_spec *spec = &look->spec;
    char kv[32];
    doctor_finding_set(f, DOCTOR_OK,
                       "%s (%s): %.1f M parameters, %d layers, hidden size %d, %d heads, %s KV "
                       "heads, vocabulary %d, %d positions",
                       spec->name, spec->architecture, (double)spec_parameters(spec) / 1e6,
                       spec->n_layers, spec->n_hidden, spec->n_heads,
                       kv_heads_text(spec, kv, sizeof kv), spec->n_vocab, spec->max_positions);
}

/* Code that the repository ships for transformers: said, because it is not run. */
static void check_code(struct look *look)
{
    char path[PATH_BYTES];
    struct bytes text;
    bytes_init(&text, MAX_CONFIG_BYTES);
    status_t s = file_join(path, sizeof path, look->options->dir, "config.json");
    if (status_is_ok(&s)) {
        s = file_read(path, MAX_CONFIG_BYTES, &text);
    }
    // spec_load has judged the text: here it is small and good.
    json_t *root =
        status_is_ok(&s) ? json_loadb((const char *)text.data, text.size, 0, NULL) : NULL;
    if (json_object_get(root, "auto_map") != NULL) {
        doctor_finding_set(add(look, "code"), DOCTOR_OK,
                           "config.json names Python code of its own (auto_map): it is never run");
    }
    json_decref(root);
    bytes_destroy(&text);
}

static void check_end_tokens(struct look *look)
{
    struct doctor_finding *f = add(look, "end tokens");
    const struct model_spec *spec = &look->spec;
    if (spec->n_eos == 0) {
        doctor_finding_set(f, DOCTOR_WARN,
                           "neither config.json nor generation_config.json has eos_token_id");
        doctor_finding_advise(f, "without one, only --max-tokens and stop texts end an answer");
        return;
    }
    char ids[128] = "";
    size_t at = 0;
    for (int32_t i = 0; i < spec->n_eos && at < sizeof ids; i++) {
        at += (size_t)snprintf(ids + at, sizeof ids - at, "%s%d", i > 0 ? ", " : "",
                               spec->eos_ids[i]);
    }
    doctor_finding_set(f, DOCTOR_OK, "an answer ends at %s, within the vocabulary", ids);
}

// ---- weights ----

static void check_files(struct look *look)
{
    struct doctor_finding *f = add(look, "weights");
    const status_t s = checkpoint_open(look->options->dir, &look->checkpoint);
    if (!status_is_ok(&s)) {
        doctor_finding_fail(f, &s);
        return;
    }
    const size_t n = checkpoint_n_tensors(look->checkpoint);
    uint64_t bytes = 0;
    for (size_t i = 0; i < n; i++) {
        bytes += checkpoint_tensor_at(look->checkpoint, i).tensor->size_bytes;
    }
    doctor_finding_set(f, DOCTOR_OK, "%zu tensors, %.3f GB of safetensors, complete", n,
                       gigabytes(bytes));
}

static void check_tensors(struct look *look)
{
    struct doctor_finding *f = add(look, "tensors");
    struct weights_report report;
    const status_t s = weights_check_report(look->checkpoint, &look->spec, &report);
    if (!status_is_ok(&s)) {
        doctor_finding_fail(f, &s);
        return;
    }
    if (report.n_wrong > 0) {
        doctor_finding_fail(f, &report.first_wrong);
        if (report.n_wrong > 1) {
            const size_t at = strlen(f->fact);
            snprintf(f->fact + at, sizeof f->fact - at, " (and %zu more of %zu tensors)",
                     report.n_wrong - 1, report.n_wanted);
        }
        return;
    }
    look->weight_bytes = report.bytes;
    doctor_finding_set(f, DOCTOR_OK, "all %zu that the model needs, shapes and types fit",
                       report.n_wanted);
    if (report.n_unused > 0) {
        doctor_finding_set(add(look, "unused"), DOCTOR_OK,
                           "%zu tensors that the model does not need, %.1f MB (%.200s%s)",
                           report.n_unused, (double)report.unused_bytes / 1e6, report.first_unused,
                           report.n_unused > 1 ? " ..." : "");
    }
}

static void check_values(struct look *look)
{
    struct doctor_finding *f = add(look, "values");
    struct doctor_scan scan;
    const status_t s = doctor_scan_run(look->checkpoint, &scan);
    if (!status_is_ok(&s)) {
        doctor_finding_fail(f, &s);
        return;
    }
    if (scan.n_bad > 0) {
        doctor_finding_set(f, DOCTOR_WARN,
                           "%" PRIu64 " of %" PRIu64
                           " weights are NaN or infinite, the first in %.200s",
                           scan.n_bad, scan.n_values, scan.first_bad);
        doctor_finding_advise(f, "download the checkpoint again, or ask its makers");
        return;
    }
    doctor_finding_set(f, DOCTOR_OK, "%" PRIu64 " weights, all finite", scan.n_values);
}

/* Weights as they are served (16 bits unless the checkpoint has 32), and the keys and values of one context. */
static void check_memory(struct look *look)
{
    struct doctor_finding *f = add(look, "model memory");
    const struct model_spec *spec = &look->spec;
    const int dtype = dtype_resolve(DTYPE_WANTED_AUTO, spec->dtype);
    const uint64_t weights = (uint64_t)spec_parameters(spec) * dtype_bytes(dtype);
    const uint64_t kv =
        (uint64_t)spec_kv_bytes_per_token(spec, dtype) * (uint64_t)spec->max_positions;
    const uint64_t there = host_memory_available();
    const bool fits = there == 0 || weights + kv <= there;
    doctor_finding_set(f, fits ? DOCTOR_OK : DOCTOR_WARN,
                       "%.2f GB of weights and %.2f GB of KV cache for one sequence of %d tokens; "
                       "%.1f GB are available here",
                       gigabytes(weights), gigabytes(kv), spec->max_positions, gigabytes(there));
    if (!fits) {
        doctor_finding_advise(f, "use a smaller --max-model-len, or more hosts");
    }
}

// ---- text ----

/* The file that tokenizer_load takes: the first of these that is there. */
static const char *tokenizer_form(const char *dir)
{
    static const char *const forms[] = {"tokenizer.json", "tokenizer.model", "vocab.json"};
    char path[PATH_BYTES];
    for (size_t i = 0; i < sizeof forms / sizeof forms[0]; i++) {
        const status_t s = file_join(path, sizeof path, dir, forms[i]);
        if (status_is_ok(&s) && access(path, F_OK) == 0) {
            return forms[i];
        }
    }
    return "tokenizer";
}

/* False when it cannot be read. */
static bool check_tokenizer(struct look *look)
{
    struct doctor_finding *f = add(look, "tokenizer");
    struct tokenizer *tokenizer = NULL;
    const status_t s = tokenizer_load(look->options->dir, &tokenizer);
    if (!status_is_ok(&s)) {
        doctor_finding_fail(f, &s);
        return false;
    }
    const int32_t n = tokenizer_vocab_size(tokenizer);
    tokenizer_free(tokenizer);
    if (look->has_spec && n > look->spec.n_vocab) {
        doctor_finding_set(
            f, DOCTOR_FAIL, "%s/%s: the tokenizer has %d ids, config.json: vocab_size is %d",
            look->options->dir, tokenizer_form(look->options->dir), n, look->spec.n_vocab);
        doctor_finding_advise(f, "take tokenizer and model from the same repository");
        return true;
    }
    doctor_finding_set(f, DOCTOR_OK, "%s: %d ids, of %d that the model knows",
                       tokenizer_form(look->options->dir), n,
                       look->has_spec ? look->spec.n_vocab : n);
    return true;
}

static void check_chat_template(struct look *look)
{
    struct doctor_finding *f = add(look, "chat template");
    struct chat_template chat = {0};
    const status_t s = chat_template_load(look->options->dir, &chat);
    if (!status_is_ok(&s)) {
        doctor_finding_fail(f, &s);
        return;
    }
    switch (chat.kind) {
    case CHAT_TEMPLATE_NONE:
        doctor_finding_set(f, DOCTOR_OK, "none: a base model, prompts are plain text");
        break;
    case CHAT_TEMPLATE_UNKNOWN:
        doctor_finding_set(f, DOCTOR_WARN,
                           "not one of the known ones: requests with messages are refused");
        doctor_finding_advise(f, "send prompts in which the roles are written out");
        break;
    default:
        doctor_finding_set(f, DOCTOR_OK, "known: messages are rendered as the model's makers do");
        break;
    }
}

// ---- the whole ----

/* Without a directory every check would say the same. */
static bool is_directory(const char *dir)
{
    DIR *stream = opendir(dir);
    if (stream == NULL) {
        return false;
    }
    closedir(stream);
    return true;
}

static void check_model_files(struct look *look)
{
    check_files(look);
    if (look->checkpoint != NULL && look->has_spec) {
        check_tensors(look);
    }
    if (look->checkpoint != NULL && look->options->scan_weights) {
        check_values(look);
    }
    checkpoint_close(look->checkpoint);
}

void doctor_model_run(const struct doctor_model_options *options, struct doctor_findings *list)
{
    struct look look = {.options = options, .list = list};
    check_config(&look);
    if (!look.has_spec && !is_directory(options->dir)) {
        return;
    }
    if (look.has_spec) {
        check_code(&look);
        check_end_tokens(&look);
        check_memory(&look);
    }
    check_model_files(&look);
    if (check_tokenizer(&look)) { // they share a file, whose fault is said once
        check_chat_template(&look);
    }
    spec_destroy(&look.spec);
}

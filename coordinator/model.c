#include "coordinator/model.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "parallel/plan_print.h"
#include "proto/wire/cluster.h"
#include "proto/wire/inference.h"

#define MAX_PLAN_BYTES ((size_t)256 * 1024 * 1024)

/* A token stands for four bytes or so, in any script for far less than this. */
#define PROMPT_BYTES_PER_TOKEN ((size_t)16)
#define MIN_PROMPT_BYTES       ((size_t)1024 * 1024)

static status_t resolve_dir(const char *dir, char out[4096])
{
    char *absolute = realpath(dir, NULL);
    if (absolute == NULL && errno != ENOENT) {
        return status_errorf(STATUS_PERMISSION_DENIED, "model %s: %s", dir, strerror(errno));
    }
    // What is missing is spec_load's to say: it knows how a model directory looks.
    const int n = snprintf(out, 4096, "%s", absolute != NULL ? absolute : dir);
    free(absolute);
    return n < 4096 ? status_ok()
                    : status_errorf(STATUS_INVALID_ARGUMENT, "model: path of %d bytes", n);
}

/* The last part of the path as it was given: behind a link there may be a name that says nothing. */
static status_t resolve_name(const struct coordinator_config *config, struct model *model)
{
    const char *name = config->served_model_name;
    size_t size;
    if (name != NULL) {
        size = strlen(name);
    } else {
        const char *path = config->model;
        size_t end = strlen(path);
        while (end > 0 && path[end - 1] == '/') {
            end--;
        }
        size_t begin = end;
        while (begin > 0 && path[begin - 1] != '/') {
            begin--;
        }
        name = path + begin;
        size = end - begin;
        if (size == 0 || strncmp(name, ".", size) == 0 || strncmp(name, "..", size) == 0) {
            name = model->spec.name;
            size = strlen(name);
        }
    }
    if (size >= sizeof model->name) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "--served-model-name: %zu bytes, at most %zu",
                             size, sizeof model->name - 1);
    }
    snprintf(model->name, sizeof model->name, "%.*s", (int)size, name);
    return status_ok();
}

static status_t resolve_context(const struct coordinator_config *config, struct model *model)
{
    const int64_t wanted = config->max_model_len;
    TRY(spec_check_context(&model->spec, wanted));
    model->context_tokens = (uint32_t)(wanted > 0 ? wanted : model->spec.max_positions);
    const size_t bytes = PROMPT_BYTES_PER_TOKEN * model->context_tokens;
    model->prompt_bytes = bytes > MIN_PROMPT_BYTES ? bytes : MIN_PROMPT_BYTES;
    return status_ok();
}

static status_t make_plan(const struct coordinator_config *config, struct model *model)
{
    TRY(plan_options_make(&config->plan, &model->spec, &model->plan));
    model->kv_replication = plan_kv_replication(&model->plan, &model->spec);
    model->kv_bytes_per_token = (double)spec_kv_bytes_per_token(&model->spec, model->kv_dtype);
    return plan_pack(&model->plan, &model->packed_plan);
}

/* As `kvasir plan` counts it with the same settings: a group may take fewer KV blocks where its host has less. */
static struct plan_memory_request memory_request(const struct model *model,
                                                 const struct coordinator_config *config)
{
    struct plan_memory_request request = {
        .plan = &model->plan,
        .spec = &model->spec,
        .dtype = model->dtype,
        .quantization = model->quantization,
        .kv_dtype = model->kv_dtype,
        .max_seqs = (int32_t)config->max_num_seqs,
        .max_rows = (int32_t)config->max_num_batched_tokens,
        .max_model_len = (int32_t)model->context_tokens,
    };
    plan_memory_set_kv(&request, (uint64_t)config->kv_cache_memory_bytes);
    plan_memory_set_swap(&request, (uint64_t)config->swap_space_bytes);
    return request;
}

static status_t pack_plan_response(struct model *model, const struct coordinator_config *config)
{
    const struct plan_memory_request memory = memory_request(model, config);
    struct bytes json;
    bytes_init(&json, MAX_PLAN_BYTES);
    const struct plan_print_args args = {.plan = &model->plan,
                                         .spec = &model->spec,
                                         .dtype = model->dtype,
                                         .quantization = model->quantization,
                                         .kv_dtype = model->kv_dtype,
                                         .memory = &memory};
    status_t s;
    TRY_GOTO(s, plan_print_json(&args, &json), done);
    TRY_GOTO(s, bytes_append(&json, "", 1), done); // the NUL
    s = wire_plan_response_pack((const char *)json.data, &model->plan_response);
done:
    bytes_destroy(&json);
    return s;
}

static status_t pack_info_response(struct model *model)
{
    const struct model_spec *spec = &model->spec;
    uint32_t *kv_heads = calloc((size_t)spec->n_layers, sizeof *kv_heads);
    if (kv_heads == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory for %d layers",
                             spec->n_layers);
    }
    for (int32_t i = 0; i < spec->n_layers; i++) {
        kv_heads[i] = (uint32_t)spec->layers[i].n_kv_heads;
    }
    const struct wire_model_info info = {
        .name = model->name,
        .architecture = spec->architecture,
        .context_length = model->context_tokens,
        .vocab_size = (uint32_t)spec->n_vocab,
        .n_layers = (uint32_t)spec->n_layers,
        .n_heads = (uint32_t)spec->n_heads,
        .kv_heads = kv_heads,
        .n_kv_heads = (size_t)spec->n_layers,
        .eos_token_ids = {.ids = (const uint32_t *)spec->eos_ids, .n = (size_t)spec->n_eos},
        .has_chat_template = model->chat.kind != CHAT_TEMPLATE_NONE,
        .parameters = (uint64_t)spec_parameters(spec),
        .quantization = dtype_quantization_name(model->quantization),
    };
    const status_t s = wire_model_info_pack(&info, &model->info_response);
    free(kv_heads);
    return s;
}

static status_t load_tokenizer(struct model *model)
{
    const status_t s = tokenizer_load(model->dir, &model->tokenizer);
    if (s.code == STATUS_NOT_FOUND && strstr(s.msg, STATUS_FIX) == NULL) {
        return status_errorf(
            s.code, "%s" STATUS_FIX "put the model's tokenizer.json beside its config.json", s.msg);
    }
    return s;
}

/* Ids that the model has no rows for: tokenizer and model are of different makes. */
static status_t check_vocabulary(const struct model *model)
{
    const int32_t n = tokenizer_vocab_size(model->tokenizer);
    if (n <= model->spec.n_vocab) {
        return status_ok();
    }
    return status_errorf(STATUS_DATA_LOSS,
                         "%s: the tokenizer has %d ids, config.json: vocab_size is %d" STATUS_FIX
                         "take tokenizer and model from the same repository",
                         model->dir, n, model->spec.n_vocab);
}

static status_t load(const struct coordinator_config *config, struct model *model)
{
    TRY(resolve_dir(config->model, model->dir));
    TRY(spec_load(model->dir, &model->spec));
    TRY(resolve_name(config, model));
    model->dtype = dtype_resolve(config->plan.dtype, model->spec.dtype);
    model->quantization = config->plan.quantization;
    model->kv_dtype = dtype_resolve(config->plan.kv_dtype, model->dtype);
    TRY(resolve_context(config, model));
    TRY(make_plan(config, model));
    TRY(load_tokenizer(model));
    TRY(check_vocabulary(model));
    TRY(chat_template_load(model->dir, &model->chat));
    TRY(pack_info_response(model));
    return pack_plan_response(model, config);
}

status_t model_load(const struct coordinator_config *config, struct model *model_out)
{
    memset(model_out, 0, sizeof *model_out);
    bytes_init(&model_out->packed_plan, MAX_PLAN_BYTES);
    bytes_init(&model_out->info_response, MAX_PLAN_BYTES);
    bytes_init(&model_out->plan_response, MAX_PLAN_BYTES);
    const status_t s = load(config, model_out);
    if (!status_is_ok(&s)) {
        model_destroy(model_out);
    }
    return s;
}

void model_destroy(struct model *model)
{
    tokenizer_free(model->tokenizer);
    plan_destroy(&model->plan);
    spec_destroy(&model->spec);
    bytes_destroy(&model->packed_plan);
    bytes_destroy(&model->info_response);
    bytes_destroy(&model->plan_response);
    memset(model, 0, sizeof *model);
}

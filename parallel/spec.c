#include "parallel/spec.h"

#include <assert.h>
#include <jansson.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/json_limits.h"
#include "parallel/spec_blocks.h"
#include "parallel/spec_field.h"

#define MAX_CONFIG_BYTES ((size_t)4 << 20)
#define MAX_PATH_BYTES   4096
#define MAX_HIDDEN       (1 << 20)
#define MAX_HEAD_DIM     1024
#define MAX_VOCAB        (1 << 24)
#define MAX_POSITIONS    (1 << 24)

static const char model_directory[] =
    "a model directory holds config.json, tokenizer.json and model.safetensors (or its shards and "
    "their index)";

// ---- the families ----

enum {
    ARCH_LLAMA,
    ARCH_MISTRAL,
    ARCH_DECILM,
    ARCH_DECICODER,
    ARCH_STABLELM,
    ARCH_STABLELM_EPOCH, /* the same model, as first published */
    N_ARCHS
};

static const char *const names[N_ARCHS + 1] = {
    [ARCH_LLAMA] = "LlamaForCausalLM",
    [ARCH_MISTRAL] = "MistralForCausalLM",
    [ARCH_DECILM] = "DeciLMForCausalLM",
    [ARCH_DECICODER] = "DeciCoderForCausalLM",
    [ARCH_STABLELM] = "StableLmForCausalLM",
    [ARCH_STABLELM_EPOCH] = "StableLMEpochForCausalLM",
    [N_ARCHS] = NULL,
};

/* Where num_key_value_heads is missing. */
enum kv_rule {
    KV_DEFAULT_HEADS, /* every query head has its own */
    KV_REQUIRED,      /* the file must say it */
    KV_LIST_ONLY,     /* re-saved files carry a meaningless default in it: only the list counts */
};

struct architecture_row {
    const char *model_type;       /* identifies the family in files without "architectures" */
    int kv_rule;                  /* enum kv_rule */
    const char *other_model_type; /* a later name of it; NULL: none */
    bool has_sliding_window;
    bool has_blocks; /* layers may be listed one by one, in block_configs */
    int norm;        /* enum spec_norm */
    double rotary;   /* part of a head that is turned, where the file is silent; 0: all */
};

static const struct architecture_row rows[N_ARCHS] = {
    [ARCH_LLAMA] = {.model_type = "llama", .kv_rule = KV_DEFAULT_HEADS},
    [ARCH_MISTRAL] = {.model_type = "mistral", .kv_rule = KV_REQUIRED, .has_sliding_window = true},
    [ARCH_DECILM] = {.model_type = "deci",
                     .other_model_type = "nemotron-nas",
                     .kv_rule = KV_LIST_ONLY,
                     .has_blocks = true},
    [ARCH_DECICODER] = {.model_type = "decicoder", .kv_rule = KV_REQUIRED},
    [ARCH_STABLELM] = {.model_type = "stablelm", .norm = SPEC_NORM_LAYER, .rotary = 0.25},
    [ARCH_STABLELM_EPOCH] = {.model_type = "stablelm_epoch",
                             .norm = SPEC_NORM_LAYER,
                             .rotary = 0.25},
};

const char *const *spec_architectures(void)
{
    return names;
}

/* "LlamaForCausalLM, MistralForCausalLM, ..." */
static const char *supported_list(char *buf, size_t buf_bytes)
{
    size_t at = 0;
    buf[0] = '\0';
    for (int i = 0; i < N_ARCHS && at < buf_bytes; i++) {
        const int n = snprintf(buf + at, buf_bytes - at, "%s%s", i > 0 ? ", " : "", names[i]);
        at += n > 0 ? (size_t)n : 0;
    }
    return buf;
}

// ---- architecture ----

static status_t unsupported(const struct spec_source *src, const char *what)
{
    char list[256];
    return status_errorf(STATUS_DATA_LOSS, "%s: %s is not supported" STATUS_FIX "serve one of %s",
                         src->name, what, supported_list(list, sizeof list));
}

static int find_by_name(const char *name)
{
    for (int i = 0; i < N_ARCHS; i++) {
        if (strcmp(name, names[i]) == 0) {
            return i;
        }
    }
    return -1;
}

static int find_by_model_type(const char *model_type)
{
    for (int i = 0; i < N_ARCHS; i++) {
        const char *other = rows[i].other_model_type;
        if (strcmp(model_type, rows[i].model_type) == 0 ||
            (other != NULL && strcmp(model_type, other) == 0)) {
            return i;
        }
    }
    return -1;
}

/* Which family; fills architecture and model_type. */
static status_t read_architecture(const struct spec_source *src, struct model_spec *spec,
                                  int *architecture_out)
{
    TRY(spec_field_string(src, "model_type", spec->model_type, sizeof spec->model_type));
    const json_t *list = spec_field_get(src, "architectures");
    const char *name = json_string_value(json_array_get(list, 0));
    if (list != NULL && name == NULL) {
        return spec_field_error(src, "architectures", list, "must be a list of names");
    }
    if (list == NULL && spec->model_type[0] == '\0') {
        return spec_field_error(src, "architectures", NULL, "and so is model_type");
    }

    const int found = name != NULL ? find_by_name(name) : find_by_model_type(spec->model_type);
    if (found < 0) {
        char what[128];
        snprintf(what, sizeof what, "%s %.80s", name != NULL ? "architecture" : "model_type",
                 name != NULL ? name : spec->model_type);
        return unsupported(src, what);
    }
    snprintf(spec->architecture, sizeof spec->architecture, "%s", names[found]);
    *architecture_out = found;
    return status_ok();
}

// ---- sizes ----

static const struct size_row {
    const char *field;
    const char *alias; /* NULL: none */
    size_t offset;
    int32_t max;
} sizes[] = {
    {"num_hidden_layers", NULL, offsetof(struct model_spec, n_layers), SPEC_MAX_LAYERS},
    {"hidden_size", NULL, offsetof(struct model_spec, n_hidden), MAX_HIDDEN},
    {"num_attention_heads", "num_heads", offsetof(struct model_spec, n_heads), SPEC_MAX_HEADS},
    {"vocab_size", NULL, offsetof(struct model_spec, n_vocab), MAX_VOCAB},
    {"max_position_embeddings", NULL, offsetof(struct model_spec, max_positions), MAX_POSITIONS},
};

static status_t read_head_dim(const struct spec_source *src, struct model_spec *spec)
{
    if (spec_field_get(src, "head_dim") != NULL) {
        TRY(spec_field_int(src, "head_dim", 2, MAX_HEAD_DIM, &spec->head_dim));
    } else if (spec->n_hidden % spec->n_heads != 0) {
        return status_errorf(STATUS_DATA_LOSS,
                             "%s: hidden_size %d is not a multiple of num_attention_heads %d, and "
                             "head_dim is not given",
                             src->name, spec->n_hidden, spec->n_heads);
    } else {
        spec->head_dim = spec->n_hidden / spec->n_heads;
    }
    if (spec->head_dim % 2 != 0 || spec->head_dim > MAX_HEAD_DIM) {
        return status_errorf(STATUS_DATA_LOSS,
                             "%s: head_dim is %d, must be even (rotary embedding turns pairs) and "
                             "at most %d",
                             src->name, spec->head_dim, MAX_HEAD_DIM);
    }
    return status_ok();
}

static status_t read_sizes(const struct spec_source *src, struct model_spec *spec)
{
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        int32_t value = 0;
        const char *field = sizes[i].field;
        if (sizes[i].alias != NULL) {
            TRY(spec_field_spelling(src, field, sizes[i].alias, &field));
        }
        TRY(spec_field_int(src, field, 1, sizes[i].max, &value));
        memcpy((char *)spec + sizes[i].offset, &value, sizeof value);
    }
    return read_head_dim(src, spec);
}

// ---- layers ----

/* KV heads must divide the query heads: every KV head serves an equal group. */
static status_t check_kv_heads(const struct spec_source *src, const struct model_spec *spec,
                               int32_t layer, const json_t *value)
{
    const json_int_t n = json_integer_value(value);
    if (!json_is_integer(value) || n < 1 || n > spec->n_heads || spec->n_heads % n != 0) {
        char field[64];
        char rule[96];
        snprintf(field, sizeof field, "number of key/value heads of layer %d", layer);
        snprintf(rule, sizeof rule, "must be a divisor of num_attention_heads %d", spec->n_heads);
        return spec_field_error(src, field, value, rule);
    }
    return status_ok();
}

static status_t read_kv_list(const struct spec_source *src, struct model_spec *spec,
                             const json_t *list)
{
    static const char field[] = "num_key_value_heads_per_layer";
    if (!json_is_array(list)) {
        return spec_field_error(src, field, list, "must be a list");
    }
    if (json_array_size(list) != (size_t)spec->n_layers) {
        return status_errorf(STATUS_DATA_LOSS,
                             "%s: %s has %zu entries, num_hidden_layers is %d; they must be equal",
                             src->name, field, json_array_size(list), spec->n_layers);
    }
    for (int32_t i = 0; i < spec->n_layers; i++) {
        const json_t *value = json_array_get(list, (size_t)i);
        TRY(check_kv_heads(src, spec, i, value));
        spec->layers[i].n_kv_heads = (int32_t)json_integer_value(value);
    }
    return status_ok();
}

static status_t read_kv_heads(const struct spec_source *src, struct model_spec *spec, int kv_rule)
{
    const json_t *list = spec_field_get(src, "num_key_value_heads_per_layer");
    if (list != NULL) {
        return read_kv_list(src, spec, list);
    }
    if (kv_rule == KV_LIST_ONLY) {
        return spec_field_error(src, "num_key_value_heads_per_layer", NULL,
                                "must list the key/value heads of every layer");
    }
    int32_t n = spec->n_heads;
    const json_t *value = spec_field_get(src, "num_key_value_heads");
    if (value != NULL || kv_rule == KV_REQUIRED) {
        TRY(spec_field_int(src, "num_key_value_heads", 1, spec->n_heads, &n));
        TRY(check_kv_heads(src, spec, 0, value));
    }
    for (int32_t i = 0; i < spec->n_layers; i++) {
        spec->layers[i].n_kv_heads = n;
    }
    return status_ok();
}

static status_t read_layers(const struct spec_source *src, struct model_spec *spec,
                            const struct architecture_row *row)
{
    spec->layers = calloc((size_t)spec->n_layers, sizeof *spec->layers);
    if (spec->layers == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "%s: no memory for %d layers", src->name,
                             spec->n_layers);
    }
    const json_t *blocks = spec_field_get(src, "block_configs");
    if (blocks != NULL && row->has_blocks) {
        return spec_blocks_read(src, blocks, spec);
    }
    if (blocks != NULL) {
        return unsupported(src, "block_configs with another architecture than DeciLMForCausalLM");
    }
    int32_t n_ff = 0;
    TRY(spec_field_int(src, "intermediate_size", 1, SPEC_MAX_FF, &n_ff));
    for (int32_t i = 0; i < spec->n_layers; i++) {
        spec->layers[i].n_ff = n_ff;
    }
    return read_kv_heads(src, spec, row->kv_rule);
}

// ---- what the layers compute ----

static status_t read_dtype(const struct spec_source *src, struct model_spec *spec)
{
    static const char *const fields[] = {"dtype", "torch_dtype"};
    spec->dtype = DTYPE_F32; // what transformers takes a silent file for
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++) {
        char text[32] = "";
        TRY(spec_field_string(src, fields[i], text, sizeof text));
        if (text[0] != '\0') {
            const status_t s = dtype_parse(text, &spec->dtype);
            return s.code == STATUS_OK
                       ? s
                       : status_errorf(STATUS_DATA_LOSS,
                                       "%s: %s %s is not supported; supported: float32, float16, "
                                       "bfloat16",
                                       src->name, fields[i], text);
        }
    }
    return status_ok();
}

static status_t read_norm(const struct spec_source *src, struct model_spec *spec, int norm)
{
    spec->norm = norm;
    if (norm == SPEC_NORM_RMS) {
        return spec_field_positive(src, "rms_norm_eps", 1e-6, &spec->norm_eps);
    }
    const char *field = NULL;
    TRY(spec_field_spelling(src, "layer_norm_eps", "norm_eps", &field));
    return spec_field_positive(src, field, 1e-5, &spec->norm_eps);
}

/* Fields whose other values would change the arithmetic: wrong text without any error. */
static status_t read_semantics(const struct spec_source *src, struct model_spec *spec)
{
    static const char *const must_be_false[] = {
        "attention_bias", "mlp_bias", "use_qkv_bias", "use_parallel_residual", "qk_layernorm",
    };
    for (size_t i = 0; i < sizeof must_be_false / sizeof must_be_false[0]; i++) {
        bool set = false;
        TRY(spec_field_bool(src, must_be_false[i], &set));
        if (set) {
            return status_errorf(STATUS_DATA_LOSS, "%s: %s true is not supported; supported: false",
                                 src->name, must_be_false[i]);
        }
    }
    if (spec_field_get(src, "quantization_config") != NULL) {
        return status_errorf(STATUS_DATA_LOSS,
                             "%s: quantization_config is set, quantized checkpoints are not "
                             "supported; supported: float32, float16, bfloat16",
                             src->name);
    }
    char act[64] = "";
    TRY(spec_field_string(src, "hidden_act", act, sizeof act));
    if (act[0] != '\0' && strcmp(act, "silu") != 0) {
        return status_errorf(STATUS_DATA_LOSS,
                             "%s: hidden_act %s is not supported; supported: silu", src->name, act);
    }
    TRY(spec_field_bool(src, "tie_word_embeddings", &spec->tied_head));
    return read_dtype(src, spec);
}

/* The four numbers of type llama3; none has a default. */
static status_t read_llama3(const struct spec_source *object, struct spec_rope_scaling *scaling)
{
    const struct {
        const char *field;
        double *value;
    } numbers[] = {
        {"factor", &scaling->factor},
        {"low_freq_factor", &scaling->low_freq_factor},
        {"high_freq_factor", &scaling->high_freq_factor},
    };

    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        TRY(spec_field_positive(object, numbers[i].field, 0.0, numbers[i].value));
        if (*numbers[i].value < 1e-6) {
            return spec_field_error(object, numbers[i].field,
                                    spec_field_get(object, numbers[i].field),
                                    "must be a number above 0");
        }
    }
    if (scaling->high_freq_factor <= scaling->low_freq_factor) {
        return spec_field_error(object, "high_freq_factor",
                                spec_field_get(object, "high_freq_factor"),
                                "must be above low_freq_factor");
    }
    return spec_field_int(object, "original_max_position_embeddings", 1, MAX_POSITIONS,
                          &scaling->original_positions);
}

/*
 * "dynamic" only changes positions at and beyond max_position_embeddings, which are never served
 * (the published implementations disagree there). The other types change every position.
 */
static status_t read_rope_type(const struct spec_source *src, struct model_spec *spec,
                               const char *object_name, const struct spec_source *object)
{
    const json_t *value = spec_field_get(object, "rope_type");
    value = value != NULL ? value : spec_field_get(object, "type");
    const char *type = json_string_value(value);
    if (type == NULL) {
        return spec_field_error(object, "rope_type", value, "must be a text");
    }
    if (strcmp(type, "default") == 0) {
        return status_ok();
    }
    if (strcmp(type, "llama3") == 0) {
        return read_llama3(object, &spec->rope_scaling);
    }
    if (strcmp(type, "dynamic") != 0) {
        return status_errorf(
            STATUS_DATA_LOSS,
            "%s: %s type %.40s is not supported; supported: dynamic, llama3, default", src->name,
            object_name, type);
    }
    int32_t original = spec->max_positions;
    if (spec_field_get(object, "original_max_position_embeddings") != NULL) {
        TRY(spec_field_int(object, "original_max_position_embeddings", 1, MAX_POSITIONS,
                           &original));
    }
    if (original < spec->max_positions) {
        return status_errorf(STATUS_DATA_LOSS,
                             "%s: %s type dynamic from position %d on is not supported; supported: "
                             "from max_position_embeddings %d on",
                             src->name, object_name, original, spec->max_positions);
    }
    TRY(spec_field_positive(object, "factor", 0, &spec->dynamic_factor));
    return spec->dynamic_factor > 0
               ? status_ok()
               : spec_field_error(object, "factor", NULL, "must be a number above 0");
}

/* The object rope_scaling, or rope_parameters of newer files, which also holds the two numbers. */
static status_t read_rope_object(const struct spec_source *src, struct model_spec *spec,
                                 const char *object_name, double *rotary)
{
    const json_t *value = spec_field_get(src, object_name);
    if (value == NULL) {
        return status_ok();
    }
    if (!json_is_object(value)) {
        return spec_field_error(src, object_name, value, "must be null or an object");
    }
    char name[MAX_PATH_BYTES];
    snprintf(name, sizeof name, "%.*s: %s", MAX_PATH_BYTES - 32, src->name, object_name);
    const struct spec_source object = {.root = value, .name = name};
    TRY(read_rope_type(src, spec, object_name, &object));
    TRY(spec_field_positive(&object, "rope_theta", spec->rope_theta, &spec->rope_theta));
    return spec_field_positive(&object, "partial_rotary_factor", *rotary, rotary);
}

static status_t read_rope(const struct spec_source *src, struct model_spec *spec,
                          const struct architecture_row *row)
{
    double rotary = row->rotary > 0 ? row->rotary : 1.0;
    double scaling = 1.0;
    const char *field = NULL;
    TRY(spec_field_positive(src, "rope_theta", 10000.0, &spec->rope_theta));
    TRY(spec_field_spelling(src, "partial_rotary_factor", "rope_pct", &field));
    TRY(spec_field_positive(src, field, rotary, &rotary));
    TRY(spec_field_positive(src, "rotary_scaling_factor", 1.0, &scaling));
    if (scaling != 1.0) {
        return status_errorf(STATUS_DATA_LOSS,
                             "%s: rotary_scaling_factor %g is not supported; supported: 1",
                             src->name, scaling);
    }
    TRY(read_rope_object(src, spec, "rope_scaling", &rotary));
    TRY(read_rope_object(src, spec, "rope_parameters", &rotary));
    spec->rotary_dim = rotary <= 1.0 ? (int32_t)(rotary * spec->head_dim) : 0;
    if (spec->rotary_dim < 2 || spec->rotary_dim % 2 != 0) {
        return status_errorf(STATUS_DATA_LOSS,
                             "%s: partial_rotary_factor is %g, must give an even number of the %d "
                             "dimensions of a head",
                             src->name, rotary, spec->head_dim);
    }
    return status_ok();
}

static status_t read_window(const struct spec_source *src, struct model_spec *spec,
                            const struct architecture_row *row)
{
    spec->sliding_window = 0;
    if (row->has_sliding_window && spec_field_get(src, "sliding_window") != NULL) {
        TRY(spec_field_int(src, "sliding_window", 1, INT32_MAX, &spec->sliding_window));
    }
    return status_ok();
}

// ---- special tokens ----

/* A token id, or a list of them. */
static status_t read_eos(const struct spec_source *src, struct model_spec *spec)
{
    const json_t *value = spec_field_get(src, "eos_token_id");
    if (value == NULL) {
        return status_ok();
    }
    const size_t n = json_is_array(value) ? json_array_size(value) : 1;
    if (n > SPEC_MAX_EOS) {
        char rule[64];
        snprintf(rule, sizeof rule, "must be at most %d ids", SPEC_MAX_EOS);
        return spec_field_error(src, "eos_token_id", value, rule);
    }
    for (size_t i = 0; i < n; i++) {
        const json_t *item = json_is_array(value) ? json_array_get(value, i) : value;
        const json_int_t id = json_integer_value(item);
        if (!json_is_integer(item) || id < 0 || id >= spec->n_vocab) {
            char rule[64];
            snprintf(rule, sizeof rule, "must be ids from 0 to %d", spec->n_vocab - 1);
            return spec_field_error(src, "eos_token_id", value, rule);
        }
        spec->eos_ids[i] = (int32_t)id;
    }
    spec->n_eos = (int32_t)n;
    return status_ok();
}

static status_t read_special_tokens(const struct spec_source *src, struct model_spec *spec)
{
    spec->bos_id = -1;
    if (spec_field_get(src, "bos_token_id") != NULL) {
        TRY(spec_field_int(src, "bos_token_id", 0, spec->n_vocab - 1, &spec->bos_id));
    }
    return read_eos(src, spec);
}

// ---- the whole file ----

/* Fills a zeroed spec; on failure the caller destroys it. */
static status_t read_config(const struct spec_source *src, struct model_spec *spec)
{
    int architecture = 0;
    TRY(read_architecture(src, spec, &architecture));
    TRY(read_sizes(src, spec));
    TRY(read_semantics(src, spec));
    TRY(read_norm(src, spec, rows[architecture].norm));
    TRY(read_rope(src, spec, &rows[architecture]));
    TRY(read_window(src, spec, &rows[architecture]));
    TRY(read_special_tokens(src, spec));
    return read_layers(src, spec, &rows[architecture]);
}

/* A list of 162 blocks has some thousands of values. */
static const struct json_limits config_limits = {
    .max_depth = 32,
    .max_containers = 50000,
    .max_values = 200000,
};

/* The caller drops *root_out with json_decref. */
static status_t parse_object(const char *text, size_t size, const char *name, json_t **root_out)
{
    TRY(status_wrapf(json_limits_check(text, size, &config_limits), "%s", name));
    json_error_t error;
    json_t *root = json_loadb(text, size, JSON_REJECT_DUPLICATES, &error);
    if (root == NULL) {
        return status_errorf(STATUS_DATA_LOSS, "%s: not valid JSON: %s (line %d, column %d)", name,
                             error.text, error.line, error.column);
    }
    if (!json_is_object(root)) {
        json_decref(root);
        return status_errorf(STATUS_DATA_LOSS, "%s: the JSON text is not an object", name);
    }
    *root_out = root;
    return status_ok();
}

static status_t parse_config(const char *text, size_t size, const char *name,
                             struct model_spec *spec_out)
{
    json_t *root = NULL;
    TRY(parse_object(text, size, name, &root));
    struct model_spec spec = {0};
    const struct spec_source src = {.root = root, .name = name};
    const status_t s = read_config(&src, &spec);
    json_decref(root);
    if (s.code != STATUS_OK) {
        spec_destroy(&spec);
        return s;
    }
    *spec_out = spec;
    return s;
}

status_t spec_parse(const char *text, size_t size, const char *name, struct model_spec *spec_out)
{
    TRY(parse_config(text, size, name, spec_out));
    snprintf(spec_out->name, sizeof spec_out->name, "%s", name);
    return status_ok();
}

void spec_destroy(struct model_spec *spec)
{
    free(spec->layers);
    memset(spec, 0, sizeof *spec);
}

// ---- the directory ----

static bool has_suffix(const char *text, const char *suffix)
{
    const size_t n = strlen(text);
    const size_t m = strlen(suffix);
    return n >= m && strcmp(text + n - m, suffix) == 0;
}

/* Why a path that is a file is not a model, and what to do. */
static status_t not_a_directory(const char *path)
{
    if (has_suffix(path, ".json") || has_suffix(path, ".safetensors")) {
        return status_errorf(STATUS_DATA_LOSS,
                             "%s is a file, not a model directory" STATUS_FIX
                             "give the directory that holds it",
                             path);
    }
    if (has_suffix(path, ".gguf") || has_suffix(path, ".bin") || has_suffix(path, ".pt")) {
        return status_errorf(STATUS_DATA_LOSS,
                             "%s is a file in another format, not a model directory" STATUS_FIX
                             "get the Hugging Face safetensors form of the model; %s",
                             path, model_directory);
    }
    return status_errorf(STATUS_DATA_LOSS, "%s is a file, not a model directory" STATUS_FIX "%s",
                         path, model_directory);
}

static status_t check_directory(const char *dir)
{
    struct stat st;
    if (stat(dir, &st) == 0) {
        return S_ISDIR(st.st_mode) ? status_ok() : not_a_directory(dir);
    }
    // "Deci/DeciLM-7B" with no such path here is most likely a name on the model hub.
    const char *slash = strchr(dir, '/');
    const bool hub_name = slash != NULL && slash != dir && dir[0] != '.' &&
                          strchr(slash + 1, '/') == NULL && slash[1] != '\0';
    return status_errorf(STATUS_NOT_FOUND, "no model directory %s" STATUS_FIX "%s%s", dir,
                         hub_name ? "nothing is downloaded: give the path of a directory on this "
                                    "machine; "
                                  : "check the path; ",
                         model_directory);
}

/* Reads dir/file as one JSON text; *path is for messages. */
static status_t read_text(const char *dir, const char *file, char path[MAX_PATH_BYTES],
                          struct bytes *text)
{
    TRY(file_join(path, MAX_PATH_BYTES, dir, file));
    return file_read(path, MAX_CONFIG_BYTES, text);
}

/* generation_config.json is what generation follows where both files name end tokens. */
static status_t read_generation_config(const char *dir, struct model_spec *spec)
{
    char path[MAX_PATH_BYTES];
    struct bytes text;
    bytes_init(&text, MAX_CONFIG_BYTES);
    status_t s = read_text(dir, "generation_config.json", path, &text);
    if (s.code == STATUS_OK) {
        json_t *root = NULL;
        s = parse_object((const char *)text.data, text.size, path, &root);
        if (s.code == STATUS_OK) {
            const struct spec_source src = {.root = root, .name = path};
            s = read_eos(&src, spec);
        }
        json_decref(root);
    } else if (s.code == STATUS_NOT_FOUND) {
        s = status_ok();
    }
    bytes_destroy(&text);
    return s;
}

/* The last component of the path, also for "." and "models/". */
static void set_name(struct model_spec *spec, const char *dir)
{
    char *resolved = realpath(dir, NULL);
    const char *path = resolved != NULL ? resolved : dir;
    const char *slash = strrchr(path, '/');
    const char *last = slash != NULL && slash[1] != '\0' ? slash + 1 : path;
    snprintf(spec->name, sizeof spec->name, "%s", last);
    free(resolved);
}

status_t spec_load(const char *dir, struct model_spec *spec_out)
{
    TRY(check_directory(dir));
    char path[MAX_PATH_BYTES];
    struct bytes text;
    bytes_init(&text, MAX_CONFIG_BYTES);
    struct model_spec spec = {0};

    status_t s = read_text(dir, "config.json", path, &text);
    if (s.code == STATUS_NOT_FOUND) {
        s = status_errorf(STATUS_NOT_FOUND, "no config.json in %s" STATUS_FIX "%s", dir,
                          model_directory);
    }
    if (s.code == STATUS_OK) {
        s = parse_config((const char *)text.data, text.size, path, &spec);
    }
    bytes_destroy(&text);
    if (s.code == STATUS_OK) {
        s = read_generation_config(dir, &spec);
    }
    if (s.code != STATUS_OK) {
        spec_destroy(&spec);
        return s;
    }
    set_name(&spec, dir);
    *spec_out = spec;
    return s;
}

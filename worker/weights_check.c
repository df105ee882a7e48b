#include "worker/weights_check.h"

#include <assert.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define FIRST_OF_LAYER WEIGHT_ATTENTION_NORM

// ---- names and shapes ----

static const char *const names[N_WEIGHTS] = {
    [WEIGHT_EMBEDDING] = "model.embed_tokens.weight",
    [WEIGHT_FINAL_NORM] = "model.norm.weight",
    [WEIGHT_FINAL_NORM_BIAS] = "model.norm.bias",
    [WEIGHT_HEAD] = "lm_head.weight",
    [WEIGHT_ATTENTION_NORM] = "input_layernorm.weight",
    [WEIGHT_ATTENTION_NORM_BIAS] = "input_layernorm.bias",
    [WEIGHT_Q_PROJ] = "self_attn.q_proj.weight",
    [WEIGHT_K_PROJ] = "self_attn.k_proj.weight",
    [WEIGHT_V_PROJ] = "self_attn.v_proj.weight",
    [WEIGHT_O_PROJ] = "self_attn.o_proj.weight",
    [WEIGHT_LINEAR_ATTENTION] = "self_attn.linear_attn.weight",
    [WEIGHT_FFN_NORM] = "post_attention_layernorm.weight",
    [WEIGHT_FFN_NORM_BIAS] = "post_attention_layernorm.bias",
    [WEIGHT_GATE_PROJ] = "mlp.gate_proj.weight",
    [WEIGHT_UP_PROJ] = "mlp.up_proj.weight",
    [WEIGHT_DOWN_PROJ] = "mlp.down_proj.weight",
    [WEIGHT_LINEAR_FFN] = "mlp.linear_mlp.weight",
};

static struct weight_wanted want_whole(const struct model_spec *spec, enum weight which)
{
    const bool norm = which == WEIGHT_FINAL_NORM || which == WEIGHT_FINAL_NORM_BIAS;
    struct weight_wanted wanted = {.n_rows = norm ? spec->n_hidden : spec->n_vocab,
                                   .n_columns = norm ? 0 : spec->n_hidden};
    snprintf(wanted.name, sizeof wanted.name, "%s", names[which]);
    return wanted;
}

struct weight_wanted weights_check_wanted(const struct model_spec *spec, enum weight which,
                                          int32_t layer)
{
    if (which < FIRST_OF_LAYER) {
        return want_whole(spec, which);
    }
    const int32_t q_rows = spec->n_heads * spec->head_dim;
    const int32_t kv_rows = spec->layers[layer].n_kv_heads * spec->head_dim;
    const int32_t n_ff = spec->layers[layer].n_ff;
    const int32_t n_hidden = spec->n_hidden;
    const int32_t shapes[N_WEIGHTS][2] = {
        [WEIGHT_ATTENTION_NORM] = {n_hidden, 0},
        [WEIGHT_ATTENTION_NORM_BIAS] = {n_hidden, 0},
        [WEIGHT_Q_PROJ] = {q_rows, n_hidden},
        [WEIGHT_K_PROJ] = {kv_rows, n_hidden},
        [WEIGHT_V_PROJ] = {kv_rows, n_hidden},
        [WEIGHT_O_PROJ] = {n_hidden, q_rows},
        [WEIGHT_FFN_NORM] = {n_hidden, 0},
        [WEIGHT_FFN_NORM_BIAS] = {n_hidden, 0},
        [WEIGHT_GATE_PROJ] = {n_ff, n_hidden},
        [WEIGHT_UP_PROJ] = {n_ff, n_hidden},
        [WEIGHT_DOWN_PROJ] = {n_hidden, n_ff},
        [WEIGHT_LINEAR_ATTENTION] = {n_hidden, n_hidden},
        [WEIGHT_LINEAR_FFN] = {n_hidden, n_hidden},
    };
    struct weight_wanted wanted = {.n_rows = shapes[which][0], .n_columns = shapes[which][1]};
    snprintf(wanted.name, sizeof wanted.name, "model.layers.%d.%s", layer, names[which]);
    return wanted;
}

bool weights_check_norm_bias(const struct model_spec *spec)
{
    return spec->norm == SPEC_NORM_LAYER;
}

/* False for a tensor that this model is built without, */
static bool model_has(const struct model_spec *spec, enum weight which)
{
    switch (which) {
    case WEIGHT_FINAL_NORM_BIAS:
    case WEIGHT_ATTENTION_NORM_BIAS:
    case WEIGHT_FFN_NORM_BIAS:
        return weights_check_norm_bias(spec);
    case WEIGHT_HEAD:
        return !spec->tied_head;
    default:
        return true;
    }
}

/* or this layer: a block that is not there has no norm either. */
static bool layer_has(const struct spec_layer *layer, enum weight which)
{
    switch (which) {
    case WEIGHT_ATTENTION_NORM:
    case WEIGHT_ATTENTION_NORM_BIAS:
        return layer->attention != SPEC_BLOCK_NONE;
    case WEIGHT_LINEAR_ATTENTION:
        return layer->attention == SPEC_BLOCK_LINEAR;
    case WEIGHT_FFN_NORM:
    case WEIGHT_FFN_NORM_BIAS:
        return layer->ffn != SPEC_BLOCK_NONE;
    case WEIGHT_LINEAR_FFN:
        return layer->ffn == SPEC_BLOCK_LINEAR;
    case WEIGHT_GATE_PROJ:
    case WEIGHT_UP_PROJ:
    case WEIGHT_DOWN_PROJ:
        return layer->ffn == SPEC_BLOCK_FULL;
    default: // q, k, v and o
        return layer->attention == SPEC_BLOCK_FULL;
    }
}

// ---- one tensor ----

static void print_shape(const struct safetensors_tensor *tensor, char *buf, size_t size)
{
    size_t at = (size_t)snprintf(buf, size, "[");
    for (int32_t i = 0; i < tensor->n_dims && at < size; i++) {
        at += (size_t)snprintf(buf + at, size - at, "%s%" PRId64, i > 0 ? ", " : "",
                               tensor->shape[i]);
    }
    if (at < size) {
        snprintf(buf + at, size - at, "]");
    }
}

static status_t check_shape(const struct weight_wanted *wanted, checkpoint_tensor_t found)
{
    const struct safetensors_tensor *t = found.tensor;
    const int32_t n_dims = wanted->n_columns > 0 ? 2 : 1;
    if (t->n_dims == n_dims && t->shape[0] == wanted->n_rows &&
        (n_dims == 1 || t->shape[1] == wanted->n_columns)) {
        return status_ok();
    }
    char text[160];
    char need[32];
    print_shape(t, text, sizeof text);
    snprintf(need, sizeof need, n_dims == 2 ? "[%d, %d]" : "[%d]", wanted->n_rows,
             wanted->n_columns);
    return status_errorf(STATUS_DATA_LOSS, "%s: tensor %s is %s, config.json needs %s",
                         found.file->path, wanted->name, text, need);
}

status_t weights_check_find(const struct checkpoint *checkpoint, const struct weight_wanted *wanted,
                            checkpoint_tensor_t *tensor_out)
{
    checkpoint_tensor_t found;
    status_t s = checkpoint_find(checkpoint, wanted->name, &found);
    if (!status_is_ok(&s)) {
        s.code = STATUS_DATA_LOSS; // the directory is there; what is in it is incomplete
        return status_wrapf(s, "weights do not fit config.json");
    }
    TRY(check_shape(wanted, found));
    if (found.tensor->dtype == SAFETENSORS_OTHER_DTYPE) {
        return status_errorf(
            STATUS_DATA_LOSS,
            "%s: tensor %s is %s, only F32, F16 and BF16 weights can be loaded" STATUS_FIX
            "use an unquantised checkpoint of the model",
            found.file->path, wanted->name, found.tensor->dtype_name);
    }
    *tensor_out = found;
    return status_ok();
}

static bool has_suffix(const char *text, const char *suffix)
{
    const size_t n = strlen(text);
    const size_t m = strlen(suffix);
    return n >= m && strcmp(text + n - m, suffix) == 0;
}

/* model.layers.N.X.bias with an X that has none here: left out, it would give wrong text, silently. */
static bool is_foreign_bias(const struct model_spec *spec, const char *name)
{
    static const char prefix[] = "model.layers.";
    if (strncmp(name, prefix, sizeof prefix - 1) != 0 || !has_suffix(name, ".bias")) {
        return false;
    }
    const char *rest = name + sizeof prefix - 1;
    rest += strspn(rest, "0123456789");
    const bool norm = strcmp(rest, ".input_layernorm.bias") == 0 ||
                      strcmp(rest, ".post_attention_layernorm.bias") == 0;
    return !(norm && weights_check_norm_bias(spec));
}

// ---- all of them ----

struct check {
    const struct checkpoint *checkpoint;
    const struct model_spec *spec;
    struct weight_wanted *wanted; /* [report.n_wanted] */
    struct weights_report report;
};

static void add_wanted(struct check *check, enum weight which, int32_t layer)
{
    const bool of_layer = which >= FIRST_OF_LAYER;
    if (model_has(check->spec, which) &&
        (!of_layer || layer_has(&check->spec->layers[layer], which))) {
        check->wanted[check->report.n_wanted++] = weights_check_wanted(check->spec, which, layer);
    }
}

static void list_wanted(struct check *check)
{
    for (int which = 0; which < FIRST_OF_LAYER; which++) {
        add_wanted(check, (enum weight)which, -1);
    }
    for (int32_t layer = 0; layer < check->spec->n_layers; layer++) {
        for (int which = FIRST_OF_LAYER; which < N_WEIGHTS; which++) {
            add_wanted(check, (enum weight)which, layer);
        }
    }
}

static void note_wrong(struct check *check, const status_t *s)
{
    if (check->report.n_wrong++ == 0) {
        check->report.first_wrong = *s;
    }
}

static void check_wanted(struct check *check)
{
    for (size_t i = 0; i < check->report.n_wanted; i++) {
        checkpoint_tensor_t tensor = {0};
        const status_t s = weights_check_find(check->checkpoint, &check->wanted[i], &tensor);
        if (status_is_ok(&s)) {
            assert(tensor.tensor != NULL);
            check->report.bytes += tensor.tensor->size_bytes;
        } else {
            note_wrong(check, &s);
        }
    }
}

static int by_name(const void *a, const void *b)
{
    const struct weight_wanted *x = a;
    const struct weight_wanted *y = b;
    return strcmp(x->name, y->name);
}

static int name_against_wanted(const void *key, const void *element)
{
    const struct weight_wanted *wanted = element;
    return strcmp(key, wanted->name);
}

/* Old re-saves carry tensors that nobody reads (rotary_emb.inv_freq): counted, and no fault. */
static void check_unused(struct check *check)
{
    const size_t n = checkpoint_n_tensors(check->checkpoint);
    for (size_t i = 0; i < n; i++) {
        const checkpoint_tensor_t tensor = checkpoint_tensor_at(check->checkpoint, i);
        const char *name = tensor.tensor->name;
        if (bsearch(name, check->wanted, check->report.n_wanted, sizeof *check->wanted,
                    name_against_wanted) != NULL) {
            continue;
        }
        if (is_foreign_bias(check->spec, name)) {
            const status_t s = status_errorf(
                STATUS_DATA_LOSS, "%s: tensor %.200s: this architecture is built without it",
                tensor.file->path, name);
            note_wrong(check, &s);
            continue;
        }
        if (check->report.n_unused++ == 0) {
            check->report.first_unused = name;
        }
        check->report.unused_bytes += tensor.tensor->size_bytes;
    }
}

status_t weights_check_report(const struct checkpoint *checkpoint, const struct model_spec *spec,
                              struct weights_report *report_out)
{
    const size_t most = FIRST_OF_LAYER + (size_t)spec->n_layers * (N_WEIGHTS - FIRST_OF_LAYER);
    struct check check = {.checkpoint = checkpoint,
                          .spec = spec,
                          .wanted = calloc(most, sizeof *check.wanted),
                          .report = {.first_wrong = status_ok()}};
    if (check.wanted == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory for a list of %zu tensors",
                             most);
    }
    list_wanted(&check);
    check_wanted(&check);
    qsort(check.wanted, check.report.n_wanted, sizeof *check.wanted, by_name);
    check_unused(&check);
    free(check.wanted);
    *report_out = check.report;
    return status_ok();
}

status_t weights_check(const struct checkpoint *checkpoint, const struct model_spec *spec,
                       uint64_t *bytes_out)
{
    struct weights_report report;
    TRY(weights_check_report(checkpoint, spec, &report));
    TRY(report.first_wrong);
    *bytes_out = report.bytes;
    return status_ok();
}

#include "tests/worker/model_writer.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "tests/support/test.h"

// ---- values ----

static double next_uniform(uint64_t *state)
{
    *state += 0x9e3779b97f4a7c15u;
    uint64_t z = *state;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (double)((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

/* To the nearest value of the dtype; float16 by way of multiples of 2^-10 below 2, all exact in it. */
static float round_to(double value, int dtype)
{
    if (dtype == DTYPE_F16) {
        const double bounded = fmax(-1.9, fmin(1.9, value));
        return (float)(round(bounded * 0x1p10) * 0x1p-10);
    }
    const float single = (float)value;
    if (dtype == DTYPE_F32) {
        return single;
    }
    uint32_t bits;
    memcpy(&bits, &single, sizeof bits);
    bits = (bits + 0x7fffu + (bits >> 16 & 1u)) & 0xffff0000u;
    float rounded;
    memcpy(&rounded, &bits, sizeof rounded);
    return rounded;
}

/* n values around `mean`, uniform with the given standard deviation. */
static float *random_array(int64_t n, double mean, double deviation, int dtype, uint64_t *state)
{
    float *values = malloc((size_t)n * sizeof *values);
    assert_non_null(values);
    for (int64_t i = 0; i < n; i++) {
        const double u = 2.0 * next_uniform(state) - 1.0;
        values[i] = round_to(mean + u * sqrt(3.0) * deviation, dtype);
    }
    return values;
}

static float *random_matrix(int64_t n_out, int64_t n_in, int dtype, uint64_t *state)
{
    return random_array(n_out * n_in, 0.0, 1.0 / sqrt((double)n_in), dtype, state);
}

/* What a block does not have stays NULL. */
static void make_attention(const struct test_model_shape *shape, int32_t i,
                           struct test_layer *layer, uint64_t *state)
{
    const int dtype = shape->dtype;
    const int64_t n_hidden = shape->n_hidden;
    const int64_t n_q = (int64_t)shape->n_heads * shape->head_dim;
    const int64_t n_kv = (int64_t)shape->kv_heads[i] * shape->head_dim;
    if (shape->attention[i] == SPEC_BLOCK_NONE) {
        return;
    }
    layer->attention_norm = random_array(n_hidden, 1.0, 0.2, dtype, state);
    if (shape->attention[i] == SPEC_BLOCK_LINEAR) {
        layer->linear_attention = random_matrix(n_hidden, n_hidden, dtype, state);
        return;
    }
    layer->q = random_array(n_q * n_hidden, 0.0, 2.0 / sqrt((double)n_hidden), dtype, state);
    layer->k = random_array(n_kv * n_hidden, 0.0, 2.0 / sqrt((double)n_hidden), dtype, state);
    layer->v = random_matrix(n_kv, n_hidden, dtype, state);
    layer->o = random_matrix(n_hidden, n_q, dtype, state);
}

static void make_ffn(const struct test_model_shape *shape, int32_t i, struct test_layer *layer,
                     uint64_t *state)
{
    const int dtype = shape->dtype;
    const int64_t n_hidden = shape->n_hidden;
    const int64_t n_ff = shape->n_ff[i];
    if (shape->ffn[i] == SPEC_BLOCK_NONE) {
        return;
    }
    layer->ffn_norm = random_array(n_hidden, 1.0, 0.2, dtype, state);
    if (shape->ffn[i] == SPEC_BLOCK_LINEAR) {
        layer->linear_ffn = random_matrix(n_hidden, n_hidden, dtype, state);
        return;
    }
    layer->gate = random_matrix(n_ff, n_hidden, dtype, state);
    layer->up = random_matrix(n_ff, n_hidden, dtype, state);
    layer->down = random_matrix(n_hidden, n_ff, dtype, state);
}

void model_writer_make(const struct test_model_shape *shape, struct test_model *model)
{
    memset(model, 0, sizeof *model);
    model->shape = *shape;
    assert_true(shape->n_layers <= TEST_MODEL_MAX_LAYERS);
    uint64_t state = shape->seed;
    const int dtype = shape->dtype;
    const int64_t n_hidden = shape->n_hidden;
    model->embedding = random_array(shape->n_vocab * n_hidden, 0.0, 0.7, dtype, &state);
    model->final_norm = random_array(n_hidden, 1.0, 0.2, dtype, &state);
    model->head = shape->tied_head ? model->embedding
                                   : random_matrix(shape->n_vocab, n_hidden, dtype, &state);
    const bool bias = shape->rotary_dim > 0;
    if (bias) {
        model->final_norm_bias = random_array(n_hidden, 0.0, 0.3, dtype, &state);
    }
    for (int32_t i = 0; i < shape->n_layers; i++) {
        make_attention(shape, i, &model->layers[i], &state);
        make_ffn(shape, i, &model->layers[i], &state);
        if (bias) {
            model->layers[i].attention_norm_bias = random_array(n_hidden, 0.0, 0.3, dtype, &state);
            model->layers[i].ffn_norm_bias = random_array(n_hidden, 0.0, 0.3, dtype, &state);
        }
    }
}

void model_writer_free(struct test_model *model)
{
    if (model->head != model->embedding) {
        free(model->head);
    }
    free(model->embedding);
    free(model->final_norm);
    free(model->final_norm_bias);
    for (int32_t i = 0; i < model->shape.n_layers; i++) {
        const struct test_layer *layer = &model->layers[i];
        float *const arrays[] = {layer->attention_norm,
                                 layer->q,
                                 layer->k,
                                 layer->v,
                                 layer->o,
                                 layer->ffn_norm,
                                 layer->gate,
                                 layer->up,
                                 layer->down,
                                 layer->attention_norm_bias,
                                 layer->ffn_norm_bias,
                                 layer->linear_attention,
                                 layer->linear_ffn};
        for (size_t j = 0; j < sizeof arrays / sizeof arrays[0]; j++) {
            free(arrays[j]);
        }
    }
    memset(model, 0, sizeof *model);
}

// ---- the list of tensors ----

struct named_tensor {
    char name[128];
    int64_t n_rows, n_columns; /* n_columns 0: one dimension */
    const float *values;
};

struct tensor_list {
    struct named_tensor tensors[13 * TEST_MODEL_MAX_LAYERS + 8];
    int32_t n;
};

static void add_tensor(struct tensor_list *list, const float *values, int64_t n_rows,
                       int64_t n_columns, const char *name)
{
    struct named_tensor *t = &list->tensors[list->n++];
    snprintf(t->name, sizeof t->name, "%s", name);
    t->n_rows = n_rows;
    t->n_columns = n_columns;
    t->values = values;
}

static void add_layer(struct tensor_list *list, const struct test_model *model, int32_t i)
{
    const struct test_model_shape *s = &model->shape;
    const struct test_layer *layer = &model->layers[i];
    const int64_t n_q = (int64_t)s->n_heads * s->head_dim;
    const int64_t n_kv = (int64_t)s->kv_heads[i] * s->head_dim;
    const struct named_tensor tensors[] = {
        {"input_layernorm", s->n_hidden, 0, layer->attention_norm},
        {"self_attn.q_proj", n_q, s->n_hidden, layer->q},
        {"self_attn.k_proj", n_kv, s->n_hidden, layer->k},
        {"self_attn.v_proj", n_kv, s->n_hidden, layer->v},
        {"self_attn.o_proj", s->n_hidden, n_q, layer->o},
        {"self_attn.linear_attn", s->n_hidden, s->n_hidden, layer->linear_attention},
        {"post_attention_layernorm", s->n_hidden, 0, layer->ffn_norm},
        {"mlp.gate_proj", s->n_ff[i], s->n_hidden, layer->gate},
        {"mlp.up_proj", s->n_ff[i], s->n_hidden, layer->up},
        {"mlp.down_proj", s->n_hidden, s->n_ff[i], layer->down},
        {"mlp.linear_mlp", s->n_hidden, s->n_hidden, layer->linear_ffn},
    };
    for (size_t j = 0; j < sizeof tensors / sizeof tensors[0]; j++) {
        if (tensors[j].values == NULL) {
            continue;
        }
        char name[192];
        snprintf(name, sizeof name, "model.layers.%d.%s.weight", i, tensors[j].name);
        add_tensor(list, tensors[j].values, tensors[j].n_rows, tensors[j].n_columns, name);
    }
    if (layer->ffn_norm_bias != NULL) {
        char name[128];
        snprintf(name, sizeof name, "model.layers.%d.input_layernorm.bias", i);
        add_tensor(list, layer->attention_norm_bias, s->n_hidden, 0, name);
        snprintf(name, sizeof name, "model.layers.%d.post_attention_layernorm.bias", i);
        add_tensor(list, layer->ffn_norm_bias, s->n_hidden, 0, name);
    }
}

static void list_tensors(const struct test_model *model, struct tensor_list *list)
{
    const struct test_model_shape *s = &model->shape;
    list->n = 0;
    add_tensor(list, model->embedding, s->n_vocab, s->n_hidden, "model.embed_tokens.weight");
    for (int32_t i = 0; i < s->n_layers; i++) {
        add_layer(list, model, i);
    }
    add_tensor(list, model->final_norm, s->n_hidden, 0, "model.norm.weight");
    if (model->final_norm_bias != NULL) {
        add_tensor(list, model->final_norm_bias, s->n_hidden, 0, "model.norm.bias");
    }
    if (!s->tied_head) {
        add_tensor(list, model->head, s->n_vocab, s->n_hidden, "lm_head.weight");
    }
}

static int64_t n_values(const struct named_tensor *t)
{
    return t->n_rows * (t->n_columns > 0 ? t->n_columns : 1);
}

uint64_t model_writer_bytes(const struct test_model *model)
{
    struct tensor_list *list = malloc(sizeof *list);
    assert_non_null(list);
    list_tensors(model, list);
    uint64_t bytes = 0;
    for (int32_t i = 0; i < list->n; i++) {
        bytes += (uint64_t)n_values(&list->tensors[i]) * dtype_bytes(model->shape.dtype);
    }
    free(list);
    return bytes;
}

// ---- files ----

static const char *format_name(int dtype)
{
    switch (dtype) {
    case DTYPE_F16:
        return "F16";
    case DTYPE_BF16:
        return "BF16";
    default:
        return "F32";
    }
}

/* A float16 from a float32 that is one: zero, normal, infinite or NaN. */
static uint16_t half_bits(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if (value == 0.0f) {
        return 0;
    }
    if (!isfinite(value)) {
        return (uint16_t)((bits >> 16 & 0x8000u) | 0x7C00u | (isnan(value) ? 0x200u : 0));
    }
    return (uint16_t)(bits >> 16 & 0x8000u) | (uint16_t)(((bits >> 13) & 0x3ffffu) - (112u << 10));
}

static void append_values(struct bytes *out, const struct named_tensor *t, int dtype)
{
    for (int64_t i = 0; i < n_values(t); i++) {
        uint32_t bits;
        memcpy(&bits, &t->values[i], sizeof bits);
        if (dtype == DTYPE_F32) {
            assert_status_ok(bytes_append_u32(out, bits));
            continue;
        }
        const uint16_t half =
            dtype == DTYPE_BF16 ? (uint16_t)(bits >> 16) : half_bits(t->values[i]);
        const uint8_t le[2] = {(uint8_t)half, (uint8_t)(half >> 8)};
        assert_status_ok(bytes_append(out, le, sizeof le));
    }
}

static bool is_named(const struct named_tensor *t, const char *name)
{
    return name != NULL && strcmp(t->name, name) == 0;
}

static void append_entry(struct bytes *header, const struct named_tensor *t, int dtype,
                         uint64_t *offset)
{
    const uint64_t end = *offset + (uint64_t)n_values(t) * dtype_bytes(dtype);
    char shape[64];
    snprintf(shape, sizeof shape, "%lld", (long long)t->n_rows);
    if (t->n_columns > 0) {
        snprintf(shape, sizeof shape, "%lld,%lld", (long long)t->n_rows, (long long)t->n_columns);
    }
    assert_status_ok(bytes_printf(
        header, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%llu,%llu]}",
        header->size > 1 ? "," : "", t->name, format_name(dtype), shape,
        (unsigned long long)*offset, (unsigned long long)end));
    *offset = end;
}

/* Tensors first, first + step, .. of the list as one file. */
static void write_shard(const struct tensor_list *list, int32_t first, int32_t step,
                        const struct test_model *model, const char *path)
{
    const int dtype = model->shape.dtype;
    struct bytes header;
    struct bytes file;
    bytes_init(&header, 1 << 20);
    bytes_init(&file, (size_t)1 << 30);
    assert_status_ok(bytes_append_str(&header, "{"));
    uint64_t offset = 0;
    for (int32_t i = first; i < list->n; i += step) {
        append_entry(&header, &list->tensors[i], dtype, &offset);
    }
    assert_status_ok(bytes_append_str(&header, "}"));
    while (header.size % 8 != 0) {
        assert_status_ok(bytes_append_str(&header, " "));
    }
    assert_status_ok(bytes_append_u64(&file, header.size));
    assert_status_ok(bytes_append(&file, header.data, header.size));
    for (int32_t i = first; i < list->n; i += step) {
        append_values(&file, &list->tensors[i], dtype);
    }
    test_write_file(path, file.data, file.size);
    bytes_destroy(&header);
    bytes_destroy(&file);
}

static void write_index(const struct tensor_list *list, int32_t n_shards, const char *path)
{
    struct bytes text;
    bytes_init(&text, 1 << 20);
    assert_status_ok(bytes_append_str(&text, "{\"metadata\":{},\"weight_map\":{"));
    for (int32_t i = 0; i < list->n; i++) {
        assert_status_ok(bytes_printf(&text, "%s\"%s\":\"model-%05d-of-%05d.safetensors\"",
                                      i > 0 ? "," : "", list->tensors[i].name, i % n_shards + 1,
                                      n_shards));
    }
    assert_status_ok(bytes_append_str(&text, "}}"));
    test_write_file(path, text.data, text.size);
    bytes_destroy(&text);
}

/* {"attention": .., "ffn": ..} of every layer; an FFN's width is set after reading, see model_writer_spec. */
static void append_blocks(struct bytes *text, const struct test_model_shape *s)
{
    static const char *const kinds[] = {
        [SPEC_BLOCK_FULL] = "\"no_op\":false,\"replace_with_linear\":false",
        [SPEC_BLOCK_LINEAR] = "\"no_op\":false,\"replace_with_linear\":true",
        [SPEC_BLOCK_NONE] = "\"no_op\":true,\"replace_with_linear\":false",
    };
    assert_status_ok(bytes_append_str(text, "\"block_configs\":["));
    for (int32_t i = 0; i < s->n_layers; i++) {
        const bool full = s->attention[i] == SPEC_BLOCK_FULL;
        assert_status_ok(bytes_printf(
            text, "%s{\"attention\":{%s,\"n_heads_in_group\":%d},\"ffn\":{%s,\"ffn_mult\":1.0}}",
            i > 0 ? "," : "", kinds[s->attention[i]], full ? s->n_heads / s->kv_heads[i] : 1,
            kinds[s->ffn[i]]));
    }
    assert_status_ok(bytes_append_str(text, "]}"));
}

static void write_config(const struct test_model *model, const char *path)
{
    const struct test_model_shape *s = &model->shape;
    struct bytes text;
    bytes_init(&text, 1 << 16);
    const bool window = s->sliding_window > 0;
    const bool stable = s->rotary_dim > 0;
    const char *name = window ? "MistralForCausalLM" : "DeciLMForCausalLM";
    const char *type = window ? "mistral" : "deci";
    if (stable) {
        name = "StableLmForCausalLM";
        type = "stablelm";
    }
    assert_status_ok(bytes_printf(
        &text,
        "{\"architectures\":[\"%s\"],\"model_type\":\"%s\",\"hidden_size\":%d,"
        "\"num_attention_heads\":%d,\"head_dim\":%d,\"num_hidden_layers\":%d,"
        "\"intermediate_size\":%d,\"vocab_size\":%d,\"max_position_embeddings\":%d,"
        "\"%s\":1e-5,\"partial_rotary_factor\":%.17g,\"rope_theta\":%.1f,\"tie_word_embeddings\":%s,\"torch_dtype\":\"%s\","
        "\"hidden_act\":\"silu\",\"bos_token_id\":0,\"eos_token_id\":1,",
        name, type, s->n_hidden, s->n_heads, s->head_dim, s->n_layers, s->n_ff[0], s->n_vocab,
        s->max_positions, stable ? "layer_norm_eps" : "rms_norm_eps",
        stable ? (double)s->rotary_dim / (double)s->head_dim : 1.0,
        s->rope_theta > 0.0 ? s->rope_theta : 10000.0, s->tied_head ? "true" : "false",
        dtype_name(s->dtype)));
    if (s->nas) {
        append_blocks(&text, s);
    } else if (window) {
        assert_status_ok(bytes_printf(&text, "\"num_key_value_heads\":%d,\"sliding_window\":%d}",
                                      s->kv_heads[0], s->sliding_window));
    } else {
        assert_status_ok(bytes_append_str(&text, "\"num_key_value_heads_per_layer\":["));
        for (int32_t i = 0; i < s->n_layers; i++) {
            assert_status_ok(bytes_printf(&text, "%s%d", i > 0 ? "," : "", s->kv_heads[i]));
        }
        assert_status_ok(bytes_append_str(&text, "]}"));
    }
    test_write_file(path, text.data, text.size);
    bytes_destroy(&text);
}

static void apply_flaws(struct tensor_list *list, const struct model_writer_flaws *flaws)
{
    static const float zeros[64];
    int32_t n = 0;
    for (int32_t i = 0; i < list->n; i++) {
        struct named_tensor t = list->tensors[i];
        if (is_named(&t, flaws->transpose)) {
            t.n_rows = list->tensors[i].n_columns;
            t.n_columns = list->tensors[i].n_rows;
        }
        if (!is_named(&t, flaws->leave_out)) {
            list->tensors[n++] = t;
        }
    }
    list->n = n;
    if (flaws->extra != NULL) {
        add_tensor(list, zeros, 16, 0, flaws->extra);
    }
}

void model_writer_write(const struct test_model *model, const char *dir,
                        const struct model_writer_flaws *flaws)
{
    static const struct model_writer_flaws none;
    const struct model_writer_flaws *wanted = flaws != NULL ? flaws : &none;
    struct tensor_list *list = malloc(sizeof *list);
    assert_non_null(list);
    list_tensors(model, list);
    apply_flaws(list, wanted);
    char path[TEST_PATH_BYTES + 64];
    snprintf(path, sizeof path, "%s/config.json", dir);
    write_config(model, path);
    const int32_t n_shards = model->shape.n_shards > 1 ? model->shape.n_shards : 1;
    for (int32_t i = 0; i < n_shards; i++) {
        if (n_shards == 1) {
            snprintf(path, sizeof path, "%s/model.safetensors", dir);
        } else {
            snprintf(path, sizeof path, "%s/model-%05d-of-%05d.safetensors", dir, i + 1, n_shards);
        }
        write_shard(list, i, n_shards, model, path);
    }
    if (wanted->truncate_bytes > 0) {
        FILE *file = fopen(path, "rb");
        assert_non_null(file);
        assert_int_equal(fseek(file, 0, SEEK_END), 0);
        const long size = ftell(file);
        assert_int_equal(fclose(file), 0);
        assert_int_equal(truncate(path, size - (long)wanted->truncate_bytes), 0);
    }
    if (n_shards > 1) {
        snprintf(path, sizeof path, "%s/model.safetensors.index.json", dir);
        write_index(list, n_shards, path);
    }
    free(list);
}

void model_writer_spec(const struct test_model *model, const char *dir, struct model_spec *spec)
{
    assert_status_ok(spec_load(dir, spec));
    for (int32_t i = 0; i < spec->n_layers; i++) {
        spec->layers[i].n_ff = model->shape.n_ff[i];
    }
}

// ---- int8 ----

/* What int8 with a scale for each row makes of a matrix: rows as a whole, however ranks cut them. */
static void round_to_int8(float *rows, int32_t n_rows, int32_t n_columns)
{
    for (int32_t r = 0; rows != NULL && r < n_rows; r++) {
        float *const row = rows + (size_t)r * (size_t)n_columns;
        float largest = 0.0f;
        for (int32_t k = 0; k < n_columns; k++) {
            largest = fmaxf(largest, fabsf(row[k]));
        }
        for (int32_t k = 0; k < n_columns && largest > 0.0f; k++) {
            row[k] = nearbyintf(row[k] * (127.0f / largest)) * (largest / 127.0f);
        }
    }
}

void model_writer_round(struct test_model *model)
{
    const struct test_model_shape *s = &model->shape;
    for (int32_t i = 0; i < s->n_layers; i++) {
        struct test_layer *layer = &model->layers[i];
        const int32_t n_q = s->n_heads * s->head_dim, n_kv = s->kv_heads[i] * s->head_dim;
        round_to_int8(layer->q, n_q, s->n_hidden);
        round_to_int8(layer->k, n_kv, s->n_hidden);
        round_to_int8(layer->v, n_kv, s->n_hidden);
        round_to_int8(layer->o, s->n_hidden, n_q);
        round_to_int8(layer->gate, s->n_ff[i], s->n_hidden);
        round_to_int8(layer->up, s->n_ff[i], s->n_hidden);
        round_to_int8(layer->down, s->n_hidden, s->n_ff[i]);
        round_to_int8(layer->linear_attention, s->n_hidden, s->n_hidden);
        round_to_int8(layer->linear_ffn, s->n_hidden, s->n_hidden);
    }
}

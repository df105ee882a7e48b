/*
 * test_spec_blocks.c - configs whose layers are listed one by one
 */
#include "tests/support/test.h"

#include <stdio.h>
#include <string.h>

#include "base/file.h"
#include "parallel/spec.h"

/* Pieces of block_configs. */
#define ATTENTION "{\"n_heads_in_group\": 2, \"no_op\": false, \"replace_with_linear\": false}"
#define FFN       "{\"ffn_mult\": 1.5, \"no_op\": false, \"replace_with_linear\": false}"
#define BLOCK     "{\"attention\": " ATTENTION ", \"ffn\": " FFN "}"

static const char fields[] = "\"hidden_size\": 96, \"num_hidden_layers\": 4,"
                             " \"num_attention_heads\": 6, \"intermediate_size\": null,"
                             " \"num_key_value_heads\": null, \"vocab_size\": 300,"
                             " \"max_position_embeddings\": 128, \"hidden_act\": \"silu\","
                             " \"torch_dtype\": \"bfloat16\"";

static const char blocks[] =
    "[" BLOCK ","
    " {\"attention\": {\"n_heads_in_group\": null, \"no_op\": true,"
    "   \"replace_with_linear\": false, \"unshifted_sink\": false, \"window_length\": null},"
    "  \"ffn\": {\"ffn_mult\": null, \"no_op\": false, \"replace_with_linear\": true}},"
    " {\"attention\": {\"no_op\": false, \"replace_with_linear\": true},"
    "  \"ffn\": {\"no_op\": true, \"sparsify\": null}},"
    " {\"attention\": {\"n_heads_in_group\": 1}, \"ffn\": {\"ffn_mult\": 8}}]";

static status_t parse_model(const char *architecture, const char *block_list,
                            struct model_spec *spec)
{
    char text[4096];
    snprintf(text, sizeof text, "{%s, %s, \"block_configs\": %s}", architecture, fields,
             block_list);
    return spec_parse(text, strlen(text), "nas", spec);
}

static status_t parse(const char *block_list, struct model_spec *spec)
{
    return parse_model("\"architectures\": [\"DeciLMForCausalLM\"]", block_list, spec);
}

static void test_spec_blocks_reads_every_kind_of_layer(void **state)
{
    (void)state;
    struct model_spec spec;
    assert_status_ok(parse(blocks, &spec));
    static const struct spec_layer want[] = {
        {SPEC_BLOCK_FULL, SPEC_BLOCK_FULL, 3, 256}, // 1.5 * 2/3 * 96 = 96, up to a multiple of 256
        {SPEC_BLOCK_NONE, SPEC_BLOCK_LINEAR, 0, 0},
        {SPEC_BLOCK_LINEAR, SPEC_BLOCK_NONE, 0, 0},
        {SPEC_BLOCK_FULL, SPEC_BLOCK_FULL, 6, 512}, // 8 * 2/3 * 96 = 512, which is one already
    };
    for (int i = 0; i < 4; i++) {
        assert_memory_equal(&spec.layers[i], &want[i], sizeof want[i]);
    }
    const int rows_of_heads = 2 * (6 + 3) * 16 + 2 * (6 + 6) * 16;
    const int matrices = rows_of_heads + 3 * 256 + 96 + 96 + 3 * 512;
    const int64_t rows = 600 + matrices + 7; // of 96: embedding and head, the layers, the norms
    assert_int_equal(spec_parameters(&spec), 96 * rows);
    assert_int_equal(spec_kv_bytes_per_token(&spec, DTYPE_BF16), 2 * 9 * 16 * 2);
    spec_destroy(&spec);

    assert_status_ok(parse_model("\"model_type\": \"nemotron-nas\"", blocks, &spec));
    assert_string_equal(spec.architecture, "DeciLMForCausalLM");
    spec_destroy(&spec);

    assert_string_equal(spec_block_name(SPEC_BLOCK_FULL), "full");
    assert_string_equal(spec_block_name(SPEC_BLOCK_LINEAR), "linear");
    assert_string_equal(spec_block_name(SPEC_BLOCK_NONE), "none");
    assert_string_equal(spec_block_name(7), "unknown");
}

// ---- published files ----

static void read_published(const char *file, struct model_spec *spec)
{
    char name[80];
    char path[TEST_PATH_BYTES];
    snprintf(name, sizeof name, "configs/%s.config.json", file);
    struct bytes text;
    bytes_init(&text, 1 << 20);
    assert_status_ok(file_read(test_data_path(name, path), 1 << 20, &text));
    assert_status_ok(spec_parse((const char *)text.data, text.size, file, spec));
    bytes_destroy(&text);
}

static void test_spec_blocks_reads_super_49b(void **state)
{
    (void)state;

    // Which layers have no attention, and how wide the others' feed-forward is, as published tables of it say.
    static const struct {
        int32_t first, last;
    } without[] = {{6, 7}, {11, 11}, {42, 51}, {53, 70}};

    static const int32_t narrow[] = {7168, 14336, 14336, 7168, 28672, 7168, 14336, 7168,
                                     7168, 7168,  28672, 7168, 5632,  5632, 7168,  5632,
                                     5632, 5632,  7168,  7168, 2816,  2816, 5632,  5632,
                                     2816, 2816,  5632,  2816, 2816};
    struct model_spec spec;
    read_published("Llama-3_3-Nemotron-Super-49B-v1", &spec);
    assert_int_equal(spec_parameters(&spec), 49867145216);
    assert_int_equal(spec_kv_bytes_per_token(&spec, DTYPE_BF16), 200704);
    assert_close(spec.rope_scaling.factor, 8.0, 0, 0);
    assert_int_equal(spec.eos_ids[2], 128009);
    bool none[80] = {false};
    for (size_t i = 0; i < sizeof without / sizeof without[0]; i++) {
        for (int32_t layer = without[i].first; layer <= without[i].last; layer++) {
            none[layer] = true;
        }
    }
    for (int32_t layer = 0; layer < 80; layer++) {
        assert_int_equal(spec.layers[layer].attention,
                         none[layer] ? SPEC_BLOCK_NONE : SPEC_BLOCK_FULL);
        assert_int_equal(spec.layers[layer].n_kv_heads, none[layer] ? 0 : 8);
        assert_int_equal(spec.layers[layer].ffn, SPEC_BLOCK_FULL);
    }
    for (int32_t i = 0; i < 29; i++) {
        assert_int_equal(spec.layers[42 + i].n_ff, narrow[i]);
    }
    assert_int_equal(spec.layers[0].n_ff, 14336);
    assert_int_equal(spec.layers[11].n_ff, 17920);
    assert_int_equal(spec.layers[79].n_ff, 28672);
    spec_destroy(&spec);
}

static void test_spec_blocks_reads_the_mini_model(void **state)
{
    (void)state;
    struct model_spec spec;
    read_published("nemotron-nas-mini", &spec);
    assert_int_equal(spec_parameters(&spec), 416860160);
    assert_int_equal(spec_kv_bytes_per_token(&spec, DTYPE_BF16), 11264);
    static const int32_t kv[14] = {4, 2, 0, 0, 4, 8, 4, 4, 2, 0, 0, 4, 8, 4};
    for (int32_t i = 0; i < 14; i++) {
        const int32_t of_seven = i % 7;
        assert_int_equal(spec.layers[i].n_kv_heads, kv[i]);
        assert_int_equal(spec.layers[i].attention, of_seven == 2   ? SPEC_BLOCK_LINEAR
                                                   : of_seven == 3 ? SPEC_BLOCK_NONE
                                                                   : SPEC_BLOCK_FULL);
        assert_int_equal(spec.layers[i].ffn, of_seven == 4   ? SPEC_BLOCK_LINEAR
                                             : of_seven == 5 ? SPEC_BLOCK_NONE
                                                             : SPEC_BLOCK_FULL);
        assert_int_equal(spec.layers[i].n_ff, of_seven == 4 || of_seven == 5 ? 0 : 2816);
    }
    spec_destroy(&spec);
}

// ---- refusals ----

static void test_spec_blocks_names_the_layer_the_field_and_the_rule(void **state)
{
    (void)state;

    /* What stands for the last of four layers. */
    static const struct {
        const char *block, *says;
    } rows[] = {
        {"{\"attention\": {\"n_heads_in_group\": 4}, \"ffn\": " FFN "}",
         "nas: block_configs of layer 3 attention: n_heads_in_group is 4, must be a divisor of "
         "num_attention_heads 6"},
        {"{\"attention\": {\"n_heads_in_group\": 0}, \"ffn\": " FFN "}", "must be an integer from"},
        {"{\"attention\": {\"n_heads_in_group\": 7}, \"ffn\": " FFN "}", "n_heads_in_group is 7"},
        {"{\"attention\": {\"n_heads_in_group\": \"2\"}, \"ffn\": " FFN "}", "is \"2\", must be"},
        {"{\"attention\": {\"n_heads_in_group\": null}, \"ffn\": " FFN "}", "group is missing"},
        {"{\"attention\": {\"no_op\": true, \"replace_with_linear\": true}, \"ffn\": " FFN "}",
         "no_op and replace_with_linear are both true"},
        {"{\"attention\": " ATTENTION
         ", \"ffn\": {\"no_op\": true, \"replace_with_linear\": true}}",
         "layer 3 ffn: no_op and replace_with_linear are both true"},
        {"{\"attention\": {\"no_op\": 1}, \"ffn\": " FFN "}", "must be true or false"},
        {"{\"attention\": {\"n_heads_in_group\": 2, \"sparsify\": {}}, \"ffn\": " FFN "}",
         "attention: sparsify is {}, is not supported; must be null or false"},
        {"{\"attention\": {\"n_heads_in_group\": 2, \"window_length\": 512}, \"ffn\": " FFN "}",
         "window_length is 512"},
        {"{\"attention\": {\"n_heads_in_group\": 2, \"num_sink_tokens\": 4}, \"ffn\": " FFN "}",
         "num_sink_tokens is 4"},
        {"{\"attention\": {\"n_heads_in_group\": 2, \"unshifted_sink\": true}, \"ffn\": " FFN "}",
         "unshifted_sink is true"},
        {"{\"attention\": {\"n_heads_in_group\": 2,"
         " \"use_prefill_window_in_sink_attention\": true}, \"ffn\": " FFN "}",
         "use_prefill_window_in_sink_attention is true"},
        {"{\"attention\": {\"n_heads_in_group\": 2, \"mamba\": {}}, \"ffn\": " FFN "}",
         "mamba is {}"},
        {"{\"attention\": " ATTENTION ", \"ffn\": {\"ffn_mult\": 1, \"sparsify\": []}}",
         "layer 3 ffn: sparsify is [], is not supported"},
        {"{\"attention\": " ATTENTION ", \"ffn\": {}}", "ffn: ffn_mult is missing, must give"},
        {"{\"attention\": " ATTENTION ", \"ffn\": {\"ffn_mult\": 0}}", "ffn_mult is 0, must be a"},
        {"{\"attention\": " ATTENTION ", \"ffn\": {\"ffn_mult\": -1}}", "ffn_mult is -1"},
        {"{\"attention\": " ATTENTION ", \"ffn\": {\"ffn_mult\": \"1\"}}", "ffn_mult is \"1\""},
        {"{\"attention\": " ATTENTION ", \"ffn\": {\"ffn_mult\": 0.01}}", "must give a width of 1"},
        {"{\"attention\": " ATTENTION ", \"ffn\": {\"ffn_mult\": 300000}}", "must give a width"},
        {"{\"attention\": " ATTENTION ", \"ffn\": {\"ffn_mult\": 1e308}}", "must give a width"},
        {"{\"attention\": " ATTENTION "}", "layer 3: ffn is missing, must be an object"},
        {"{\"attention\": 2, \"ffn\": " FFN "}", "attention is 2, must be an object"},
        {"null", "layer 3: must be an object"},
        {BLOCK ", " BLOCK, "has 5 entries, num_hidden_layers is 4"},
    };

    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char list[2048];
        snprintf(list, sizeof list, "[" BLOCK "," BLOCK "," BLOCK ",%s]", rows[i].block);
        struct model_spec spec;
        assert_status_says(parse(list, &spec), STATUS_DATA_LOSS, rows[i].says);
    }
}

static void test_spec_blocks_refuses_other_places(void **state)
{
    (void)state;
    struct model_spec spec;
    assert_status_says(parse("[" BLOCK "]", &spec), STATUS_DATA_LOSS, "has 1 entries");
    assert_status_says(parse("{}", &spec), STATUS_DATA_LOSS, "block_configs is {}, must be a list");
    assert_status_says(parse_model("\"architectures\": [\"LlamaForCausalLM\"]", blocks, &spec),
                       STATUS_DATA_LOSS, "block_configs with another architecture");
    assert_status_says(parse_model("\"architectures\": [\"DeciLMForCausalLM\"],"
                                   " \"num_key_value_heads_per_layer\": [6, 6, 6, 6]",
                                   blocks, &spec),
                       STATUS_DATA_LOSS, "must be left out where block_configs says it");
    assert_status_says(parse_model("\"architectures\": [\"DeciLMForCausalLM\"],"
                                   " \"attention_bias\": true",
                                   blocks, &spec),
                       STATUS_DATA_LOSS, "attention_bias true is not supported");
    assert_status_says(parse_model("\"architectures\": [\"DeciLMForCausalLM\"],"
                                   " \"mlp_bias\": true",
                                   blocks, &spec),
                       STATUS_DATA_LOSS, "mlp_bias true is not supported");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_spec_blocks_reads_every_kind_of_layer),
        cmocka_unit_test(test_spec_blocks_reads_super_49b),
        cmocka_unit_test(test_spec_blocks_reads_the_mini_model),
        cmocka_unit_test(test_spec_blocks_names_the_layer_the_field_and_the_rule),
        cmocka_unit_test(test_spec_blocks_refuses_other_places),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

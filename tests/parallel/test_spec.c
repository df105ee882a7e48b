#include "tests/support/test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "parallel/spec.h"

/* A small model of the DeciLM family; {} marks where tests put further fields. */
static const char small[] = "{\"architectures\": [\"DeciLMForCausalLM\"], \"model_type\": \"deci\","
                            " \"hidden_size\": 64, \"num_hidden_layers\": 3,"
                            " \"num_attention_heads\": 4,"
                            " \"num_key_value_heads_per_layer\": [4, 2, 1],"
                            " \"intermediate_size\": 160, \"vocab_size\": 300,"
                            " \"max_position_embeddings\": 128, \"hidden_act\": \"silu\","
                            " \"rms_norm_eps\": 1e-05, \"rope_theta\": 10000.0,"
                            " \"rope_scaling\": {\"type\": \"dynamic\", \"factor\": 2.0},"
                            " \"bos_token_id\": 1, \"eos_token_id\": 2,"
                            " \"tie_word_embeddings\": false, \"torch_dtype\": \"bfloat16\"}";

/* small with one piece of text replaced; fails the test when `from` is not in it. */
static char *mutated(const char *from, const char *to)
{
    const char *at = strstr(small, from);
    assert_non_null(at);
    const size_t room = sizeof small + strlen(to);
    char *text = malloc(room);
    assert_non_null(text);
    snprintf(text, room, "%.*s%s%s", (int)(at - small), small, to, at + strlen(from));
    return text;
}

static status_t parse_mutated(const char *from, const char *to, struct model_spec *spec)
{
    char *text = mutated(from, to);
    const status_t s = spec_parse(text, strlen(text), "small", spec);
    free(text);
    return s;
}

// ---- good files ----

static void test_spec_reads_per_layer_heads(void **state)
{
    (void)state;
    struct model_spec spec;
    assert_status_ok(spec_parse(small, strlen(small), "small", &spec));
    assert_string_equal(spec.name, "small");
    assert_string_equal(spec.architecture, "DeciLMForCausalLM");
    assert_string_equal(spec.model_type, "deci");
    assert_int_equal(spec.n_layers, 3);
    assert_int_equal(spec.n_hidden, 64);
    assert_int_equal(spec.n_heads, 4);
    assert_int_equal(spec.head_dim, 16);
    assert_int_equal(spec.rotary_dim, 16);
    assert_int_equal(spec.n_vocab, 300);
    assert_int_equal(spec.max_positions, 128);
    assert_int_equal(spec.sliding_window, 0);
    assert_close(spec.norm_eps, 1e-5, 0, 1e-15);
    assert_close(spec.rope_theta, 10000, 0, 0);
    assert_false(spec.tied_head);
    assert_int_equal(spec.dtype, DTYPE_BF16);
    assert_int_equal(spec.bos_id, 1);
    assert_int_equal(spec.n_eos, 1);
    assert_int_equal(spec.eos_ids[0], 2);
    static const int32_t kv[] = {4, 2, 1};
    for (int i = 0; i < 3; i++) {
        assert_int_equal(spec.layers[i].n_kv_heads, kv[i]);
        assert_int_equal(spec.layers[i].n_ff, 160);
    }
    // 2 * V * H + final norm, then per layer two norms, q and o, k and v, three FFN matrices.
    const int64_t want =
        2 * 300 * 64 + 64 + 3 * (2 * 64 + 2 * 64 * 64 + 3 * 160 * 64) + 2 * 7 * 16 * 64;
    assert_int_equal(spec_parameters(&spec), want);
    assert_int_equal(spec_kv_bytes_per_token(&spec, DTYPE_F32), 2 * 7 * 16 * 4);
    spec_destroy(&spec);
    assert_null(spec.layers);
    spec_destroy(&spec); // a zeroed spec
}

/* What published files look like: sizes, KV bytes and parameter counts computed by hand from them. */
static void test_spec_reads_published_files(void **state)
{
    (void)state;

    static const struct {
        const char *file;
        const char *architecture;
        int64_t parameters;
        int64_t kv_bytes;
        int32_t window, first_kv, last_kv, eos;
        int dtype;
    } rows[] = {
        {"DeciLM-7B", "DeciLMForCausalLM", 7043551232, 34304, 0, 4, 4, 2, DTYPE_BF16},
        {"DeciLM-6b", "DeciLMForCausalLM", 5717102592, 25600, 0, 4, 4, 2, DTYPE_BF16},
        {"DeciCoder-6B", "DeciLMForCausalLM", 5866000384, 21504, 0, 4, 4, 50256, DTYPE_F32},
        {"DeciCoder-1b", "DeciCoderForCausalLM", 1113671680, 20480, 0, 4, 4, 0, DTYPE_BF16},
        {"Llama-2-7b-hf", "LlamaForCausalLM", 6738415616, 524288, 0, 32, 32, 2, DTYPE_F16},
        {"Mistral-7B-v0.1", "MistralForCausalLM", 7241732096, 131072, 4096, 8, 8, 2, DTYPE_BF16},
        {"stablelm-3b-4e1t", "StableLmForCausalLM", 2795443200, 327680, 0, 32, 32, 0, DTYPE_BF16},
        {"stablelm-3b-4e1t.original-2023", "StableLMEpochForCausalLM", 2795443200, 327680, 0, 32,
         32, 0, DTYPE_BF16},
    };

    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char name[64];
        char path[TEST_PATH_BYTES];
        snprintf(name, sizeof name, "configs/%s.config.json", rows[i].file);
        struct bytes text;
        bytes_init(&text, 1 << 20);
        assert_status_ok(file_read(test_data_path(name, path), 1 << 20, &text));
        struct model_spec spec;
        assert_status_ok(spec_parse((const char *)text.data, text.size, rows[i].file, &spec));
        assert_string_equal(spec.architecture, rows[i].architecture);
        assert_int_equal(spec_parameters(&spec), rows[i].parameters);
        assert_int_equal(spec_kv_bytes_per_token(&spec, DTYPE_BF16), rows[i].kv_bytes);
        assert_int_equal(spec.sliding_window, rows[i].window);
        assert_int_equal(spec.layers[0].n_kv_heads, rows[i].first_kv);
        assert_int_equal(spec.layers[spec.n_layers - 1].n_kv_heads, rows[i].last_kv);
        assert_int_equal(spec.eos_ids[0], rows[i].eos);
        assert_int_equal(spec.dtype, rows[i].dtype);
        const bool stable = strncmp(rows[i].file, "stablelm", 8) == 0;
        assert_int_equal(spec.norm, stable ? SPEC_NORM_LAYER : SPEC_NORM_RMS);
        assert_int_equal(spec.rotary_dim, stable ? 20 : spec.head_dim);
        assert_close(spec.norm_eps, 1e-5, 0, 0);
        spec_destroy(&spec);
        bytes_destroy(&text);
    }
}

static void test_spec_lists_its_architectures(void **state)
{
    (void)state;
    const char *const *list = spec_architectures();
    int n = 0;
    while (list[n] != NULL) {
        n++;
    }
    assert_int_equal(n, 6);
    assert_ptr_equal(spec_architectures(), list);
}

static void test_spec_accepts_variants(void **state)
{
    (void)state;
    struct model_spec spec;
    // The first upload of DeciLM-6b-instruct has no model_type; other tools drop "architectures".
    assert_status_ok(parse_mutated("\"model_type\": \"deci\",", "", &spec));
    assert_string_equal(spec.model_type, "");
    spec_destroy(&spec);
    assert_status_ok(parse_mutated("\"architectures\": [\"DeciLMForCausalLM\"], ", "", &spec));
    assert_string_equal(spec.architecture, "DeciLMForCausalLM");
    spec_destroy(&spec);

    // Re-saved files carry the default of another class beside the list.
    assert_status_ok(
        parse_mutated("\"hidden_size\"", "\"num_key_value_heads\": 3, \"hidden_size\"", &spec));
    assert_int_equal(spec.layers[2].n_kv_heads, 1);
    spec_destroy(&spec);

    assert_status_ok(parse_mutated("\"torch_dtype\"", "\"dtype\"", &spec));
    assert_int_equal(spec.dtype, DTYPE_BF16);
    spec_destroy(&spec);

    assert_status_ok(parse_mutated("\"eos_token_id\": 2", "\"eos_token_id\": [7, 9, 299]", &spec));
    assert_int_equal(spec.n_eos, 3);
    assert_int_equal(spec.eos_ids[2], 299);
    spec_destroy(&spec);

    assert_status_ok(
        parse_mutated("\"bos_token_id\": 1, \"eos_token_id\": 2", "\"bos_token_id\": null", &spec));
    assert_int_equal(spec.bos_id, -1);
    assert_int_equal(spec.n_eos, 0);
    spec_destroy(&spec);

    assert_status_ok(parse_mutated("\"hidden_size\"", "\"head_dim\": 24, \"hidden_size\"", &spec));
    assert_int_equal(spec.head_dim, 24);
    spec_destroy(&spec);

    assert_status_ok(
        parse_mutated("\"tie_word_embeddings\": false", "\"tie_word_embeddings\": true", &spec));
    assert_true(spec.tied_head);
    spec_destroy(&spec);

    assert_status_ok(parse_mutated("\"rope_theta\": 10000.0,",
                                   "\"partial_rotary_factor\": 0.25, \"rope_theta\": 500000,",
                                   &spec));
    assert_int_equal(spec.rotary_dim, 4);
    assert_close(spec.rope_theta, 500000, 0, 0);
    spec_destroy(&spec);

    // Newer files put everything about positions into one object.
    assert_status_ok(parse_mutated("\"rope_scaling\": {\"type\": \"dynamic\", \"factor\": 2.0}",
                                   "\"rope_parameters\": {\"rope_type\": \"default\","
                                   " \"rope_theta\": 20000.0}",
                                   &spec));
    assert_close(spec.rope_theta, 20000, 0, 0);
    spec_destroy(&spec);

    assert_status_ok(parse_mutated("{\"type\": \"dynamic\", \"factor\": 2.0}", "null", &spec));
    spec_destroy(&spec);
}

static void test_spec_reads_llama3_scaling(void **state)
{
    (void)state;
    struct model_spec spec;
    assert_status_ok(
        parse_mutated("{\"type\": \"dynamic\", \"factor\": 2.0}",
                      "{\"rope_type\": \"llama3\", \"factor\": 8.0, \"low_freq_factor\": 1,"
                      " \"high_freq_factor\": 4.5, \"original_max_position_embeddings\": 64}",
                      &spec));
    assert_close(spec.rope_scaling.factor, 8.0, 0, 0);
    assert_close(spec.rope_scaling.low_freq_factor, 1.0, 0, 0);
    assert_close(spec.rope_scaling.high_freq_factor, 4.5, 0, 0);
    assert_int_equal(spec.rope_scaling.original_positions, 64);
    spec_destroy(&spec);
    assert_status_ok(spec_parse(small, strlen(small), "small", &spec));
    assert_close(spec.rope_scaling.factor, 0.0, 0, 0);
    spec_destroy(&spec);
}

static void test_spec_checks_the_context(void **state)
{
    (void)state;
    struct model_spec spec;
    assert_status_ok(spec_parse(small, strlen(small), "small", &spec));
    assert_close(spec.dynamic_factor, 2.0, 0, 0);
    assert_status_ok(spec_check_context(&spec, 0));
    assert_status_ok(spec_check_context(&spec, 128));
    const status_t s = spec_check_context(&spec, 129);
    assert_status_says(s, STATUS_INVALID_ARGUMENT,
                       "--max-model-len 129 is more than the model's 128");
    assert_status_says(s, STATUS_INVALID_ARGUMENT,
                       "rope_scaling dynamic (factor 2) would change the angles of keys");
    assert_status_says(s, STATUS_INVALID_ARGUMENT, STATUS_FIX "leave it out, or use at most 128");
    // The longest message there can be is whole.
    spec.max_positions = 16777216;
    spec.dynamic_factor = 1.23456e-100;
    assert_status_says(spec_check_context(&spec, INT64_MAX), STATUS_INVALID_ARGUMENT,
                       "use at most 16777216");
    spec_destroy(&spec);

    assert_status_ok(parse_mutated("{\"type\": \"dynamic\", \"factor\": 2.0}", "null", &spec));
    const status_t plain = spec_check_context(&spec, 129);
    assert_status_says(plain, STATUS_INVALID_ARGUMENT, "max_position_embeddings); fix: leave");
    spec_destroy(&spec);
}

static void test_spec_llama_and_mistral_rows(void **state)
{
    (void)state;
    struct model_spec spec;
    // Llama: no number of KV heads means one for each query head, and a list counts here too.
    const char from[] = "[\"DeciLMForCausalLM\"], \"model_type\": \"deci\"";
    assert_status_ok(
        parse_mutated(from, "[\"LlamaForCausalLM\"], \"model_type\": \"llama\"", &spec));
    assert_int_equal(spec.layers[1].n_kv_heads, 2);
    spec_destroy(&spec);

    const char llama[] = "{\"architectures\": [\"LlamaForCausalLM\"], \"hidden_size\": 64,"
                         " \"num_hidden_layers\": 2, \"num_attention_heads\": 4,"
                         " \"intermediate_size\": 65, \"vocab_size\": 30,"
                         " \"max_position_embeddings\": 128}";
    assert_status_ok(spec_parse(llama, strlen(llama), "llama", &spec));
    assert_int_equal(spec.layers[1].n_kv_heads, 4);
    assert_int_equal(spec.dtype, DTYPE_F32);
    assert_close(spec.rope_theta, 10000, 0, 0);
    spec_destroy(&spec);

    const char mistral[] = "{\"architectures\": [\"MistralForCausalLM\"], \"hidden_size\": 64,"
                           " \"num_hidden_layers\": 2, \"num_attention_heads\": 4,"
                           " \"intermediate_size\": 65, \"vocab_size\": 30,"
                           " \"sliding_window\": null, \"num_key_value_heads\": 2,"
                           " \"max_position_embeddings\": 128}";
    assert_status_ok(spec_parse(mistral, strlen(mistral), "mistral", &spec));
    assert_int_equal(spec.sliding_window, 0);
    assert_int_equal(spec.layers[1].n_kv_heads, 2);
    spec_destroy(&spec);
}

/* The same model in the fields of its first upload and of transformers. */
static void test_spec_reads_both_spellings_of_stablelm(void **state)
{
    (void)state;
    static const char common[] = " \"hidden_size\": 64, \"num_hidden_layers\": 2,"
                                 " \"intermediate_size\": 65, \"vocab_size\": 30,"
                                 " \"max_position_embeddings\": 128}";

    static const struct {
        const char *fields;
        int32_t rotary_dim;
        double norm_eps;
    } good[] = {
        {"\"architectures\": [\"StableLmForCausalLM\"], \"num_attention_heads\": 4,"
         " \"layer_norm_eps\": 0.001, \"partial_rotary_factor\": 0.5, \"use_qkv_bias\": false,",
         8, 1e-3},
        {"\"model_type\": \"stablelm_epoch\", \"num_heads\": 4, \"norm_eps\": 0.002,"
         " \"rope_pct\": 0.5, \"rotary_scaling_factor\": 1.0,",
         8, 2e-3},
        {"\"model_type\": \"stablelm\", \"num_heads\": 4, \"num_attention_heads\": 4,", 4, 1e-5},
    };

    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        char text[512];
        snprintf(text, sizeof text, "{%s%s", good[i].fields, common);
        struct model_spec spec;
        assert_status_ok(spec_parse(text, strlen(text), "stable", &spec));
        assert_int_equal(spec.norm, SPEC_NORM_LAYER);
        assert_int_equal(spec.n_heads, 4);
        assert_int_equal(spec.layers[1].n_kv_heads, 4);
        assert_int_equal(spec.rotary_dim, good[i].rotary_dim);
        assert_close(spec.norm_eps, good[i].norm_eps, 0, 0);
        spec_destroy(&spec);
    }

    static const struct {
        const char *fields, *says;
    } bad[] = {
        {"\"num_heads\": 4, \"num_attention_heads\": 8", "num_attention_heads is 8, and num_heads"},
        {"\"num_heads\": 4, \"norm_eps\": 1e-5, \"layer_norm_eps\": 1e-6",
         "layer_norm_eps is 9.99"},
        {"\"num_heads\": 4, \"rope_pct\": 2.0", "partial_rotary_factor is 2"},
        {"\"num_heads\": 4, \"rotary_scaling_factor\": 2.0", "rotary_scaling_factor 2 is not"},
        {"\"num_heads\": 4, \"use_qkv_bias\": true", "use_qkv_bias true is not supported"},
        {"\"num_heads\": 4, \"use_parallel_residual\": true", "use_parallel_residual true is not"},
        {"\"num_heads\": 4, \"qk_layernorm\": true", "qk_layernorm true is not supported"},
        {"\"use_cache\": true", "num_attention_heads is missing"},
    };

    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        char text[512];
        snprintf(text, sizeof text, "{\"model_type\": \"stablelm\", %s,%s", bad[i].fields, common);
        struct model_spec spec;
        assert_status_says(spec_parse(text, strlen(text), "stable", &spec), STATUS_DATA_LOSS,
                           bad[i].says);
    }
}

// ---- bad files ----

static void test_spec_names_the_field_the_value_and_the_rule(void **state)
{
    (void)state;

    static const struct {
        const char *from, *to, *says;
    } rows[] = {
        {"\"num_attention_heads\": 4", "\"num_attention_heads\": 0",
         "small: num_attention_heads is 0, must be an integer from 1 to 1024"},
        {"\"num_attention_heads\": 4", "\"num_attention_heads\": 4.0",
         "num_attention_heads is 4.0, must be an integer"},
        {"\"num_attention_heads\": 4", "\"num_attention_heads\": \"4\"", "is \"4\", must be"},
        {"\"num_attention_heads\": 4,", "", "num_attention_heads is missing"},
        {"\"num_attention_heads\": 4,", "\"num_attention_heads\": null,", "is missing"},
        {"\"num_attention_heads\": 4", "\"num_attention_heads\": 12",
         "hidden_size 64 is not a multiple of num_attention_heads 12"},
        {"[4, 2, 1]", "[4, 3, 1]",
         "number of key/value heads of layer 1 is 3, must be a divisor of num_attention_heads 4"},
        {"[4, 2, 1]", "[4, 2, 0]", "of layer 2 is 0"},
        {"[4, 2, 1]", "[4, 2, 8]", "of layer 2 is 8"},
        {"[4, 2, 1]", "[4, 2, 1.0]", "of layer 2 is 1.0"},
        {"[4, 2, 1]", "[4, 2]", "has 2 entries, num_hidden_layers is 3"},
        {"[4, 2, 1]", "[4, 2, 1, 1]", "has 4 entries"},
        {"[4, 2, 1]", "4", "must be a list"},
        {" \"num_key_value_heads_per_layer\": [4, 2, 1],", "",
         "num_key_value_heads_per_layer is missing"},
        {"\"num_hidden_layers\": 3", "\"num_hidden_layers\": 0", "num_hidden_layers is 0"},
        {"\"num_hidden_layers\": 3", "\"num_hidden_layers\": 1000000000",
         "num_hidden_layers is 1000000000, must be an integer from 1 to 1024"},
        {"\"vocab_size\": 300", "\"vocab_size\": 0", "vocab_size is 0"},
        {"\"vocab_size\": 300", "\"vocab_size\": 2147483648", "from 1 to 16777216"},
        {"\"vocab_size\": 300", "\"vocab_size\": -1", "vocab_size is -1"},
        {"\"hidden_size\": 64", "\"hidden_size\": 4", "head_dim is 1, must be even"},
        {"\"hidden_size\"", "\"head_dim\": 5, \"hidden_size\"", "head_dim is 5, must be even"},
        {"\"intermediate_size\": 160", "\"intermediate_size\": 0", "intermediate_size is 0"},
        {"\"intermediate_size\": 160", "\"intermediate_size\": null",
         "intermediate_size is missing"},
        {"1e-05", "0", "rms_norm_eps is 0, must be a finite number above 0"},
        {"1e-05", "-1e-5", "rms_norm_eps is"},
        {"1e-05", "NaN", "not valid JSON"},
        {"1e-05", "1e400", "not valid JSON"},
        {"10000.0", "0.0", "rope_theta is 0.0"},
        {"10000.0", "\"10000\"", "rope_theta is \"10000\""},
        {"\"hidden_act\": \"silu\"", "\"hidden_act\": \"gelu\"",
         "hidden_act gelu is not supported; supported: silu"},
        {"\"hidden_size\"", "\"attention_bias\": true, \"hidden_size\"",
         "attention_bias true is not supported"},
        {"\"hidden_size\"", "\"mlp_bias\": true, \"hidden_size\"",
         "mlp_bias true is not supported"},
        {"\"hidden_size\"", "\"mlp_bias\": 1, \"hidden_size\"", "must be true or false"},
        {"\"hidden_size\"", "\"quantization_config\": {}, \"hidden_size\"",
         "quantized checkpoints are not supported"},
        {"{\"type\": \"dynamic\", \"factor\": 2.0}", "{\"type\": \"linear\", \"factor\": 2.0}",
         "rope_scaling type linear is not supported; supported: dynamic, llama3, default"},
        {"{\"type\": \"dynamic\", \"factor\": 2.0}", "{\"rope_type\": \"llama3\"}",
         "rope_scaling: factor is missing"},
        {"{\"type\": \"dynamic\", \"factor\": 2.0}",
         "{\"rope_type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 4,"
         " \"high_freq_factor\": 4, \"original_max_position_embeddings\": 64}",
         "high_freq_factor is 4, must be above low_freq_factor"},
        {"{\"type\": \"dynamic\", \"factor\": 2.0}",
         "{\"rope_type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 1,"
         " \"high_freq_factor\": 4}",
         "original_max_position_embeddings is missing"},
        {"{\"type\": \"dynamic\", \"factor\": 2.0}",
         "{\"type\": \"dynamic\", \"original_max_position_embeddings\": 64}",
         "from position 64 on is not supported"},
        {"{\"type\": \"dynamic\", \"factor\": 2.0}", "{\"type\": \"dynamic\"}",
         "rope_scaling: factor is missing, must be a number above 0"},
        {"{\"type\": \"dynamic\", \"factor\": 2.0}", "{}", "rope_type is missing"},
        {"{\"type\": \"dynamic\", \"factor\": 2.0}", "2.0", "must be null or an object"},
        {"\"rope_theta\"", "\"partial_rotary_factor\": 1.5, \"rope_theta\"",
         "partial_rotary_factor is 1.5"},
        {"\"rope_theta\"", "\"partial_rotary_factor\": 0.2, \"rope_theta\"",
         "partial_rotary_factor is 0.2"},
        {"\"bfloat16\"", "\"float8_e4m3fn\"", "torch_dtype float8_e4m3fn is not supported"},
        {"\"bos_token_id\": 1", "\"bos_token_id\": 300", "bos_token_id is 300"},
        {"\"eos_token_id\": 2", "\"eos_token_id\": 300", "must be ids from 0 to 299"},
        {"\"eos_token_id\": 2", "\"eos_token_id\": [1, -1]", "must be ids"},
        {"\"eos_token_id\": 2", "\"eos_token_id\": [1,1,1,1,1,1,1,1,1]", "at most 8 ids"},
        {"[\"DeciLMForCausalLM\"]", "[\"GPT2LMHeadModel\"]",
         "architecture GPT2LMHeadModel is not supported; fix: serve one of LlamaForCausalLM, "
         "MistralForCausalLM, DeciLMForCausalLM, DeciCoderForCausalLM, StableLmForCausalLM, "
         "StableLMEpochForCausalLM"},
        {"[\"DeciLMForCausalLM\"]", "\"DeciLMForCausalLM\"", "must be a list of names"},
        {"[\"DeciLMForCausalLM\"]", "[]", "must be a list of names"},
        {"\"architectures\": [\"DeciLMForCausalLM\"], \"model_type\": \"deci\",", "",
         "architectures is missing, and so is model_type"},
        {"\"architectures\": [\"DeciLMForCausalLM\"], \"model_type\": \"deci\",",
         "\"model_type\": \"gpt2\",", "model_type gpt2 is not supported"},
        {"\"hidden_size\": 64,", "\"hidden_size\": 64, \"hidden_size\": 64,",
         "duplicate object key"},
        {"\"hidden_size\": 64,", "\"hidden_size\": 64", "not valid JSON"},
    };

    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct model_spec spec;
        assert_status_says(parse_mutated(rows[i].from, rows[i].to, &spec), STATUS_DATA_LOSS,
                           rows[i].says);
    }
}

static void test_spec_refuses_text_that_is_no_object(void **state)
{
    (void)state;
    static const char *const texts[] = {"", " ", "[]", "3", "null", "{", "{}x", "\xEF\xBB\xBF{}"};
    struct model_spec spec;
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        assert_status_code(spec_parse(texts[i], strlen(texts[i]), "m", &spec), STATUS_DATA_LOSS);
    }
    char *deep = malloc(100000);
    assert_non_null(deep);
    memset(deep, '[', 100000);
    assert_status_says(spec_parse(deep, 100000, "m", &spec), STATUS_DATA_LOSS, "nested deeper");
    free(deep);
}

/* Flips bytes of a good file. Whatever is accepted must be a model that keeps the rules. */
static void test_spec_survives_flipped_bytes(void **state)
{
    (void)state;
    const size_t size = strlen(small);
    uint8_t text[sizeof small];
    int accepted = 0;
    for (int i = 0; i < 2000; i++) {
        memcpy(text, small, sizeof small);
        const int flips = 1 + (int)test_random_below(3);
        for (int j = 0; j < flips; j++) {
            text[test_random_below(size)] ^= (uint8_t)(1u << test_random_below(8));
        }
        struct model_spec spec;
        const status_t s = spec_parse((const char *)text, size, "m", &spec);
        if (s.code != STATUS_OK) {
            assert_int_equal(s.code, STATUS_DATA_LOSS);
            assert_true(s.msg[0] != '\0');
            continue;
        }
        accepted++;
        assert_true(spec.n_heads >= 1 && spec.n_heads <= SPEC_MAX_HEADS);
        assert_true(spec.n_layers >= 1 && spec.n_layers <= SPEC_MAX_LAYERS);
        assert_true(spec.head_dim >= 2 && spec.head_dim % 2 == 0);
        assert_true(spec.norm_eps > 0 && spec.rope_theta > 0);
        for (int32_t l = 0; l < spec.n_layers; l++) {
            assert_true(spec.layers[l].n_kv_heads >= 1);
            assert_int_equal(spec.n_heads % spec.layers[l].n_kv_heads, 0);
            assert_true(spec.layers[l].n_ff >= 1);
        }
        spec_destroy(&spec);
    }
    assert_true(accepted > 20 && accepted < 1500); // both ways were tried
}

// ---- directories ----

static void put_file(const char *dir, const char *name, const char *text)
{
    char path[TEST_PATH_BYTES];
    assert_status_ok(file_join(path, sizeof path, dir, name));
    test_write_file(path, text, strlen(text));
}

static void test_spec_loads_a_directory(void **state)
{
    (void)state;
    char dir[TEST_PATH_BYTES];
    test_tmpdir(dir);
    put_file(dir, "config.json", small);
    struct model_spec spec;
    assert_status_ok(spec_load(dir, &spec));
    assert_string_equal(spec.name, strrchr(dir, '/') + 1);
    assert_int_equal(spec.eos_ids[0], 2);
    spec_destroy(&spec);

    // A slash at the end does not change the name; generation_config.json decides the end tokens.
    put_file(dir, "generation_config.json", "{\"eos_token_id\": [5, 6]}");
    char slashed[TEST_PATH_BYTES + 1];
    snprintf(slashed, sizeof slashed, "%s/", dir);
    assert_status_ok(spec_load(slashed, &spec));
    assert_string_equal(spec.name, strrchr(dir, '/') + 1);
    assert_int_equal(spec.n_eos, 2);
    assert_int_equal(spec.eos_ids[1], 6);
    spec_destroy(&spec);

    put_file(dir, "generation_config.json", "{\"eos_token_id\": [5, 6000]}");
    assert_status_says(spec_load(dir, &spec), STATUS_DATA_LOSS,
                       "generation_config.json: eos_token_id is [5,6000], must be ids");
    test_tmpdir_remove(dir);
}

static void test_spec_says_how_a_model_directory_looks(void **state)
{
    (void)state;
    char dir[TEST_PATH_BYTES];
    char path[TEST_PATH_BYTES];
    struct model_spec spec;
    test_tmpdir(dir);
    assert_status_says(spec_load(dir, &spec), STATUS_NOT_FOUND, "no config.json in ");
    assert_status_says(spec_load(dir, &spec), STATUS_NOT_FOUND,
                       STATUS_FIX "a model directory holds config.json");

    assert_status_ok(file_join(path, sizeof path, dir, "absent"));
    assert_status_says(spec_load(path, &spec), STATUS_NOT_FOUND, "no model directory ");
    assert_status_says(spec_load("Deci/DeciLM-7B-nowhere", &spec), STATUS_NOT_FOUND,
                       STATUS_FIX "nothing is downloaded");

    static const struct {
        const char *file, *says;
    } files[] = {
        {"model.gguf", STATUS_FIX "get the Hugging Face safetensors form"},
        {"pytorch_model.bin", STATUS_FIX "get the Hugging Face safetensors form"},
        {"config.json", STATUS_FIX "give the directory that holds it"},
        {"model.safetensors", STATUS_FIX "give the directory that holds it"},
        {"notes", "is a file, not a model directory"},
    };

    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        put_file(dir, files[i].file, "x");
        assert_status_ok(file_join(path, sizeof path, dir, files[i].file));
        assert_status_says(spec_load(path, &spec), STATUS_DATA_LOSS, files[i].says);
    }
    // The message leads to the file, not only to the directory.
    assert_status_says(spec_load(dir, &spec), STATUS_DATA_LOSS, "/config.json: not valid JSON");
    test_tmpdir_remove(dir);

    test_tmpdir(dir);
    assert_status_ok(file_join(path, sizeof path, dir, "config.json"));
    assert_int_equal(mkdir(path, 0700), 0);
    assert_status_says(spec_load(dir, &spec), STATUS_DATA_LOSS, "config.json");
    test_tmpdir_remove(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_spec_reads_per_layer_heads),
        cmocka_unit_test(test_spec_reads_published_files),
        cmocka_unit_test(test_spec_lists_its_architectures),
        cmocka_unit_test(test_spec_accepts_variants),
        cmocka_unit_test(test_spec_reads_llama3_scaling),
        cmocka_unit_test(test_spec_checks_the_context),
        cmocka_unit_test(test_spec_llama_and_mistral_rows),
        cmocka_unit_test(test_spec_reads_both_spellings_of_stablelm),
        cmocka_unit_test(test_spec_names_the_field_the_value_and_the_rule),
        cmocka_unit_test(test_spec_refuses_text_that_is_no_object),
        cmocka_unit_test(test_spec_survives_flipped_bytes),
        cmocka_unit_test(test_spec_loads_a_directory),
        cmocka_unit_test(test_spec_says_how_a_model_directory_looks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

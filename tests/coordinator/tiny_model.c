#include "tests/coordinator/tiny_model.h"

#include <stdio.h>
#include <string.h>

#include "tests/support/test.h"

static const char config_json[] =
    "{\"architectures\":[\"DeciLMForCausalLM\"],\"model_type\":\"deci\",\"hidden_size\":64,"
    "\"intermediate_size\":128,\"num_hidden_layers\":2,\"num_attention_heads\":4,"
    "\"num_key_value_heads_per_layer\":[4,2],\"max_position_embeddings\":2048,"
    "\"vocab_size\":320,\"rms_norm_eps\":1e-5,\"rope_theta\":10000.0,\"torch_dtype\":\"float32\","
    "\"tie_word_embeddings\":false,\"hidden_act\":\"silu\",\"bos_token_id\":null,\"eos_token_id\":256}";

static const char head[] =
    "{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,"
    "\"added_tokens\":[{\"id\":256,\"content\":\"<eos>\",\"single_word\":false,\"lstrip\":false,"
    "\"rstrip\":false,\"normalized\":false,\"special\":true}],"
    "\"normalizer\":null,"
    "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true,"
    "\"use_regex\":true},"
    "\"post_processor\":null,"
    "\"decoder\":{\"type\":\"ByteLevel\",\"add_prefix_space\":true,\"trim_offsets\":true,"
    "\"use_regex\":true},"
    "\"model\":{\"type\":\"BPE\",\"dropout\":null,\"unk_token\":null,"
    "\"continuing_subword_prefix\":null,\"end_of_word_suffix\":null,\"fuse_unk\":false,"
    "\"byte_fallback\":false,\"vocab\":{";

static const char tail[] = "},\"merges\":[]}}";

static int prints_as_itself(int byte)
{
    return (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
}

void tiny_model_write(const char *dir)
{
    char path[TEST_PATH_BYTES];
    snprintf(path, sizeof path, "%.4000s/config.json", dir);
    test_write_file(path, config_json, strlen(config_json));

    static char json[16384];
    size_t at = (size_t)snprintf(json, sizeof json, "%s", head);
    int n_shifted = 0;
    for (int byte = 0; byte < 256; byte++) { // GPT-2's alphabet of bytes
        const int code = prints_as_itself(byte) ? byte : 256 + n_shifted++;
        at += (size_t)snprintf(json + at, sizeof json - at, "%s\"\\u%04x\":%d", byte > 0 ? "," : "",
                               (unsigned)code, byte);
    }
    at += (size_t)snprintf(json + at, sizeof json - at, "%s", tail);
    assert_true(at < sizeof json);
    snprintf(path, sizeof path, "%.4000s/tokenizer.json", dir);
    test_write_file(path, json, at);
}

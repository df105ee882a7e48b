#include "tests/coordinator/tokenizer/tokenizer_fixture.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "coordinator/tokenizer/byte_map.h"
#include "coordinator/tokenizer/tokenizer_json.h"
#include "tests/support/test.h"

#define BYTE_LEVEL "{\"type\": \"ByteLevel\", \"add_prefix_space\": false}"

static const char *or_default(const char *text, const char *otherwise)
{
    return text != NULL ? text : otherwise;
}

char *fixture_json(const struct fixture_parts *parts)
{
    static const char model[] =
        "{\"type\": \"BPE\", \"vocab\": {\"a\": 0, \"b\": 1, \"c\": 2, \"d\": 3, \"ab\": 4,"
        " \"abc\": 5}, \"merges\": [\"a b\", \"ab c\"]}";
    char *json = NULL;
    const int n = asprintf(
        &json,
        "{\"version\": %s, \"truncation\": null, \"added_tokens\": %s, \"normalizer\": %s,"
        " \"pre_tokenizer\": %s, \"post_processor\": %s, \"decoder\": %s, \"model\": %s}",
        or_default(parts->version, "\"1.0\""), or_default(parts->added_tokens, "[]"),
        or_default(parts->normalizer, "null"), or_default(parts->pre_tokenizer, BYTE_LEVEL),
        or_default(parts->post_processor, "null"), or_default(parts->decoder, BYTE_LEVEL),
        or_default(parts->model, model));
    assert_true(n > 0);
    return json;
}

status_t fixture_try(const struct fixture_parts *parts, struct tokenizer **out)
{
    char *json = fixture_json(parts);
    const status_t s = tokenizer_json_parse(json, strlen(json), out);
    free(json);
    return s;
}

struct tokenizer *fixture_parse(const struct fixture_parts *parts)
{
    struct tokenizer *tokenizer = NULL;
    assert_status_ok(fixture_try(parts, &tokenizer));
    return tokenizer;
}

struct tokenizer *fixture_bytes_with(const char *added_tokens)
{
    char model[16 * 1024];
    size_t at = (size_t)snprintf(model, sizeof model, "{\"merges\": [], \"vocab\": {");
    for (int byte = 0; byte < 256; byte++) {
        char spelled[5] = {0};
        utf8_encode(byte_map_code_point((uint8_t)byte), (uint8_t *)spelled);
        const char *escape = spelled[0] == '"' || spelled[0] == '\\' ? "\\" : "";
        at += (size_t)snprintf(model + at, sizeof model - at, "%s\"%s%s\": %d",
                               byte > 0 ? ", " : "", escape, spelled, byte);
    }
    at += (size_t)snprintf(model + at, sizeof model - at, "}}");
    assert_true(at < sizeof model);
    const struct fixture_parts parts = {
        .model = model,
        .added_tokens = added_tokens,
    };
    return fixture_parse(&parts);
}

struct tokenizer *fixture_bytes(void)
{
    return fixture_bytes_with("[{\"id\": 256, \"content\": \"<|end|>\", \"special\": true}]");
}

const struct fixture_parts fixture_sentencepiece = {
    .normalizer = "{\"type\": \"Sequence\", \"normalizers\": ["
                  "{\"type\": \"Prepend\", \"prepend\": \"\u2581\"},"
                  "{\"type\": \"Replace\", \"pattern\": {\"String\": \" \"},"
                  " \"content\": \"\u2581\"}]}",
    .pre_tokenizer = "null",
    .decoder = "{\"type\": \"Sequence\", \"decoders\": ["
               "{\"type\": \"Replace\", \"pattern\": {\"String\": \"\u2581\"}, \"content\": \" \"},"
               "{\"type\": \"ByteFallback\"}, {\"type\": \"Fuse\"},"
               "{\"type\": \"Strip\", \"content\": \" \", \"start\": 1, \"stop\": 0}]}",
};

const char *const fixture_published[FIXTURE_N_PUBLISHED] = {
    "decilm-7b", "decilm-6b", "decicoder-1b", "stablelm-3b", "llama-3", "gpt-2",
};

struct tokenizer *fixture_load_published(const char *name)
{
    char file[256];
    char path[TEST_PATH_BYTES];
    snprintf(file, sizeof file, "tokenizers/%s", name);
    struct tokenizer *tokenizer = NULL;
    assert_status_ok(tokenizer_load(test_data_path(file, path), &tokenizer));
    return tokenizer;
}

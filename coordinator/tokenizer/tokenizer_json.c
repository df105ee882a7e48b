#include "coordinator/tokenizer/tokenizer_json.h"

#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "base/log.h"
#include "coordinator/tokenizer/json_field.h"
#include "coordinator/tokenizer/model_json.h"
#include "coordinator/tokenizer/pipeline_json.h"
#include "coordinator/tokenizer/tokenizer_parts.h"

/* Llama-3: 128,000 tokens and 280,000 merges, each of these an array of two in newer files. */
static const struct json_limits file_limits = {
    .max_depth = 16,
    .max_containers = 700000,
    .max_values = 2500000,
};

static status_t check_version(const json_t *root)
{
    const char *version = "1.0";
    if (json_field_get(root, "version") != NULL) {
        TRY(json_field_string(root, "version", &version));
    }
    if (strcmp(version, "1.0") != 0) {
        char quoted[32];
        return status_errorf(STATUS_DATA_LOSS, "version: %s, known is \"1.0\"",
                             log_quote(version, quoted, sizeof quoted));
    }
    return status_ok();
}

static status_t read_all(const json_t *root, struct tokenizer *tokenizer)
{
    if (!json_is_object(root)) {
        return status_errorf(STATUS_DATA_LOSS, "is %s, not an object", json_field_kind(root));
    }
    TRY(check_version(root));
    // `truncation` and `padding` are what somebody once asked of the library, not a part of the tokenizer.
    status_t s =
        pipeline_json_normalizer(json_object_get(root, "normalizer"), &tokenizer->normalizer);
    TRY(status_wrapf(s, "normalizer"));
    s = pipeline_json_pretokenizer(json_object_get(root, "pre_tokenizer"),
                                   &tokenizer->pretokenizer);
    TRY(status_wrapf(s, "pre_tokenizer"));
    s = pipeline_json_decoder(json_object_get(root, "decoder"), &tokenizer->decoder);
    TRY(status_wrapf(s, "decoder"));
    TRY(model_json_read(root, tokenizer));
    s = pipeline_json_template(json_object_get(root, "post_processor"), tokenizer->decoded.n,
                               &tokenizer->template_ids);
    return status_wrapf(s, "post_processor");
}

status_t tokenizer_json_read(const json_t *root, struct tokenizer **tokenizer_out)
{
    struct tokenizer *tokenizer = calloc(1, sizeof *tokenizer);
    if (tokenizer == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory");
    }
    const status_t s = read_all(root, tokenizer);
    if (!status_is_ok(&s)) {
        tokenizer_free(tokenizer);
        return s;
    }
    *tokenizer_out = tokenizer;
    return status_ok();
}

status_t tokenizer_json_parse(const void *json, size_t size, struct tokenizer **tokenizer_out)
{
    json_t *root;
    TRY(json_field_parse(json, size, JSON_REJECT_DUPLICATES, &file_limits, &root));
    const status_t s = tokenizer_json_read(root, tokenizer_out);
    json_decref(root);
    return s;
}

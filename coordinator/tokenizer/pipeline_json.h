/*
 * pipeline_json.h - the steps around the model in tokenizer.json
 *
 * What:   normalizer, pre_tokenizer, post_processor and decoder as the structs that this tokenizer runs. Each takes
 *         the field's value, NULL or null where the file has none.
 * Thread: any
 * Errors: DATA_LOSS naming the step that is not known, or the field that is wrong. Nothing is skipped.
 */
#pragma once

#include <jansson.h>

#include "base/status.h"
#include "coordinator/tokenizer/tokenizer_parts.h"

MUST_USE status_t pipeline_json_normalizer(const json_t *json, struct normalizer *out);
MUST_USE status_t pipeline_json_pretokenizer(const json_t *json, struct pretokenizer *out);
MUST_USE status_t pipeline_json_decoder(const json_t *json, struct decoder *out);

/* n_ids: ids in the vocabulary. */
MUST_USE status_t pipeline_json_template(const json_t *json, size_t n_ids,
                                         struct template_ids *out);

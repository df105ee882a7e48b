/*
 * spec_blocks.h - the layers of a Nemotron-NAS model, listed one by one in block_configs
 *
 * What:      [{"attention": {"n_heads_in_group", "no_op", "replace_with_linear"},
 *              "ffn": {"ffn_mult", "no_op", "replace_with_linear"}}, ...], one entry a layer. Any other field must be
 *            null or false: one that is set asks for arithmetic that is not built (sinks, windows, sparsity).
 * Thread:    any
 * Errors:    DATA_LOSS naming the layer, the field, its value and the rule.
 * Source:    field names and the rule for the FFN width as published with the Llama-Nemotron models.
 */
#pragma once

#include "parallel/spec.h"
#include "parallel/spec_field.h"

/* Fills spec->layers, which are allocated and zero, from the value of block_configs. */
MUST_USE status_t spec_blocks_read(const struct spec_source *src, const json_t *blocks,
                                   struct model_spec *spec);

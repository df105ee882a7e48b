/*
 * weight_formats.h - in which format each matrix of a model is kept
 *
 * What:      the one place that answers, by layer and kind of matrix, whether weights are plain or quantised: loading, the count
 *            of bytes and the forward pass all ask here, so that a choice for each layer is a change of this file alone. Today
 *            --quantization sets every matrix of the layers.
 *            Never quantised: the head, embeddings and norms. An error of the head's goes straight into the logits, with no layer after
 *            it to even it out, and in a model of 7 billion weights it is 2 % of the bytes.
 * Units:     bytes without padding, as the plan counts: a backend rounds rows and panels of odd shapes up.
 * Thread:    any. Pure.
 */
#pragma once

#include <stdint.h>

#include "base/dtype.h"

enum weight_kind {
    WEIGHT_KIND_QKV, /* q, k, v, together or apart */
    WEIGHT_KIND_O,
    WEIGHT_KIND_GATE_UP,
    WEIGHT_KIND_DOWN,
    WEIGHT_KIND_LINEAR_ATTENTION,
    WEIGHT_KIND_LINEAR_FFN,
    WEIGHT_KIND_HEAD, /* of no layer: -1 */
};

struct weight_formats {
    int dtype;        /* of what is not quantised: DTYPE_F32 or DTYPE_BF16 */
    int quantization; /* enum quantization */
};

/* enum matrix_format. */
int weight_formats_of(const struct weight_formats *formats, int32_t layer, enum weight_kind kind);

/* A matrix in a format: its values, and int8's scales of 4 bytes an output. */
int64_t weight_formats_bytes(int format, int64_t n_out, int64_t n_in);

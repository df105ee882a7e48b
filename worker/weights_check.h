/*
 * weights_check.h - which tensors a model is made of, and whether a checkpoint has them
 *
 * What:      name and shape of every tensor that the spec asks for; the checks that need nothing but the headers of the
 *            checkpoint's files, so that a command without MPI can make them.
 * Ownership: borrows the checkpoint and the spec.
 * Thread:    any
 * Errors:    DATA_LOSS naming the file, the tensor, the shape wanted and the shape found.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "parallel/spec.h"
#include "worker/checkpoint.h"

#define WEIGHTS_CHECK_NAME_BYTES 128

enum weight {
    WEIGHT_EMBEDDING,
    WEIGHT_FINAL_NORM,
    WEIGHT_FINAL_NORM_BIAS,
    WEIGHT_HEAD,
    /* of each layer: */
    WEIGHT_ATTENTION_NORM,
    WEIGHT_ATTENTION_NORM_BIAS,
    WEIGHT_Q_PROJ,
    WEIGHT_K_PROJ,
    WEIGHT_V_PROJ,
    WEIGHT_O_PROJ,
    WEIGHT_LINEAR_ATTENTION,
    WEIGHT_FFN_NORM,
    WEIGHT_FFN_NORM_BIAS,
    WEIGHT_GATE_PROJ,
    WEIGHT_UP_PROJ,
    WEIGHT_DOWN_PROJ,
    WEIGHT_LINEAR_FFN,
    N_WEIGHTS,
};

/* A name and the shape the spec wants; n_columns 0: one dimension. */
struct weight_wanted {
    char name[WEIGHTS_CHECK_NAME_BYTES];
    int32_t n_rows, n_columns;
};

/* layer means nothing for the weights that belong to none. */
struct weight_wanted weights_check_wanted(const struct model_spec *spec, enum weight which,
                                          int32_t layer);

/* Whether norms have a bias. */
bool weights_check_norm_bias(const struct model_spec *spec);

/* The tensor, when it is what the spec needs and of a dtype that can be loaded. */
MUST_USE status_t weights_check_find(const struct checkpoint *checkpoint,
                                     const struct weight_wanted *wanted,
                                     checkpoint_tensor_t *tensor_out);

/* Every tensor the model needs is there, with the right shape and a dtype that can be loaded; their bytes. */
MUST_USE status_t weights_check(const struct checkpoint *checkpoint, const struct model_spec *spec,
                                uint64_t *bytes_out);

struct weights_report {
    size_t n_wanted, n_wrong; /* tensors the spec asks for; those missing or unfit */
    status_t first_wrong;     /* why, of the first; OK when there is none */
    size_t n_unused;          /* tensors of the checkpoint that the spec does not ask for */
    const char *first_unused; /* borrowed from the checkpoint; NULL: none */
    uint64_t bytes, unused_bytes;
};

/* The same, to the end: counts what is wrong and what is left over. RESOURCE_EXHAUSTED without memory for the list. */
MUST_USE status_t weights_check_report(const struct checkpoint *checkpoint,
                                       const struct model_spec *spec,
                                       struct weights_report *report_out);

/*
 * weight_source.h - where the values of a model's tensors come from
 *
 * What:      a checkpoint, or nothing but config.json: then values are made up, the same for a seed on any number of
 *            ranks. Norms are 1 and biases 0; other values are nearly normal with a deviation of 0.02, each a function
 *            of (seed, name of the tensor, row, column). A rank makes its own slices: nothing is sent.
 * Ownership: borrows checkpoint, backend and stream.
 * Thread:    owner:the rank's main thread.
 * Errors:    as weights_check_find and checkpoint_read give them.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "kernels/backend.h"
#include "parallel/plan.h"
#include "worker/checkpoint.h"
#include "worker/weights_check.h"

/* Values read that are NaN or infinite: how many of the first tensor that has some, and of all. */
struct weight_defects {
    int32_t first; /* place of that tensor in the order of loading */
    uint64_t n_first, n_all;
    char name[WEIGHTS_CHECK_NAME_BYTES];
};

struct weight_source {
    struct checkpoint *checkpoint; /* NULL: values are made up, from */
    uint64_t seed;
    int imitated_dtype; /* of the checkpoint that would hold them */
    const struct backend *backend;
    struct backend_stream *stream;

    int32_t n_found; /* tensors asked for so far */
    struct weight_defects defects;
};

/* A tensor as rows; one dimension counts as rows of one column. */
struct weight_tensor {
    const struct weight_wanted *wanted; /* borrowed */
    int32_t n_rows, n_columns;
    int dtype;      /* of the rows that the source gives */
    uint64_t bytes; /* in its file, or in the one that is imitated */
    int32_t place;  /* in the order of loading */
    checkpoint_tensor_t stored;
};

bool weight_source_makes_up(const struct weight_source *source);

/* Bytes of all tensors of the model, when each is there and fits. */
MUST_USE status_t weight_source_check(const struct weight_source *source,
                                      const struct model_spec *spec, uint64_t *bytes_out);

MUST_USE status_t weight_source_find(struct weight_source *source,
                                     const struct weight_wanted *wanted,
                                     struct weight_tensor *tensor_out);

/* Whole rows out of the checkpoint; counts what is not finite. */
MUST_USE status_t weight_source_read(struct weight_source *source,
                                     const struct weight_tensor *tensor, plan_interval_t rows,
                                     void *out);

/* A rectangle of made-up values [rows, columns]. */
MUST_USE status_t weight_source_make_up(const struct weight_source *source,
                                        const struct weight_tensor *tensor, plan_interval_t rows,
                                        plan_interval_t columns, float *out);

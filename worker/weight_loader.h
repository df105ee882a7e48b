/*
 * weight_loader.h - hands the bytes of a tensor to the ranks that need them, reading each byte once
 *
 * What:      rows: a range of rows that one rank needs is read by that rank; a row that several need is read by the
 *            lowest of them and sent to the others.
 *            columns: each rank needs its columns of every row. Chunks of whole rows are dealt to the ranks in turn;
 *            in a round every rank reads its chunk, then each in rank order sends the others their columns. So reads
 *            are long, in parallel and once, whatever the width of a slice.
 *            Values that are made up are made where they are needed.
 * Ownership: borrows everything but its buffers.
 * Thread:    owner:the rank's main thread.
 * Collective: yes for both, with the same arguments but the sinks.
 * Errors:    UNAVAILABLE from sending. A read that fails does not stop the exchange, or the other ranks would wait
 *            for ever: zeros travel instead, and the failure stays in `failure` until the ranks agree.
 */
#pragma once

#include <stdint.h>

#include "kernels/backend.h"
#include "parallel/comm.h"
#include "parallel/plan.h"
#include "worker/weight_source.h"

/* Where some rows of a tensor go on this rank: into a matrix, or converted into an array. */
struct weight_sink {
    plan_interval_t rows;  /* of the tensor */
    struct matrix *matrix; /* NULL: array */
    int32_t matrix_row;    /* row of the matrix that rows.begin becomes */
    void *array;           /* [rows, n_columns] */
    int array_dtype;       /* DTYPE_F32, DTYPE_BF16 or the tensor's own */
};

struct weight_loader_parts {
    struct weight_source *source;
    struct comm *comm;
    const struct backend *backend;
    struct backend_stream *stream;
};

struct weight_loader {
    struct weight_source *source;
    struct comm *comm;
    const struct backend *backend;
    struct backend_stream *stream;
    size_t chunk_bytes;
    uint8_t *chunk; /* rows as they are in the file */
    uint8_t *slice; /* columns of those rows on their way, or rows converted for the device */
    float *largest; /* magnitudes of the chunk's rows, in the upper half of slice */
    status_t failure;
    /* Room for the caller's cuts: loading itself must not fail on one rank alone. */
    plan_interval_t *wanted; /* [ranks] */
    int32_t *cuts;           /* [ranks + 1] */
};

/* Not collective. max_row_bytes: of any tensor that will be loaded. */
MUST_USE status_t weight_loader_init(const struct weight_loader_parts *parts, size_t max_row_bytes,
                                     struct weight_loader *loader_out);
void weight_loader_destroy(struct weight_loader *loader); /* accepts a zeroed one */

struct weight_rows {
    const struct weight_tensor *tensor;
    const plan_interval_t
        *wanted; /* [ranks]: rows each rank needs; begins and ends ascend with the rank */
    const struct weight_sink *sinks; /* of this rank */
    int32_t n_sinks;
};

MUST_USE status_t weight_loader_rows(struct weight_loader *loader, const struct weight_rows *job);

struct weight_columns {
    const int32_t *cuts;   /* [ranks + 1], in columns */
    struct matrix *matrix; /* [rows of the tensor, own columns]; NULL: there are none */
    int format;            /* enum matrix_format, the same on every rank */
};

/* The scales of int8 are those of whole rows: with the columns of a rank travel the rows' largest magnitudes. */
MUST_USE status_t weight_loader_columns(struct weight_loader *loader,
                                        const struct weight_tensor *tensor,
                                        const struct weight_columns *columns);

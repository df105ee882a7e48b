/*
 * matmul.h - what the files of the matmul share
 *
 * What:      two ways to multiply, and the table of which is faster where. matmul_small.cu streams the weights for up to 8
 *            rows; matmul_lt.c calls cuBLASLt; matmul_table.c holds the choices, on disk between runs; matmul_tune.c
 *            measures; matmul.c takes each call to the one chosen for its shape.
 *            Int8 weights have two kernels of their own, matmul_i8_small.cu and matmul_i8_tile.cu, chosen by the number of rows
 *            alone: nothing about them is measured or in the table.
 * Layout:    cuBLASLt counts columns first, so that a row-major [rows, columns] is its [columns, rows]: it computes
 *            out [n_out, n_rows] = W^T (stored [n_in, n_out]) x (stored [n_in, n_rows]).
 * Ownership: a stream owns its cuda_matmul, made by its first matmul.
 * Thread:    the stream's.
 */
#pragma once

#include "kernels/cuda/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    CUDA_MATMUL_SMALL_ROWS = 8,
    CUDA_MATMUL_I8_SMALL_ROWS = 32,
    CUDA_MATMUL_ALGORITHM_WORDS = 8,
    CUDA_MATMUL_MAX_CHOICES = 2048,
    CUDA_MATMUL_PINNED_ROWS =
        256, /* the rows for which a pinned algorithm is the library's first choice */
};

/* ---- the table: matmul_table.c --------------------------------------------------------------------- */

/* Calls of one shape are done alike. */
struct cuda_matmul_shape {
    int32_t n_out, n_in;
    int32_t n_rows;    /* a bucket; 0 where one algorithm is pinned for all */
    int32_t out_dtype; /* enum dtype */
    int32_t alignment; /* bytes, 2 to 16: of every row of x and out */
};

/* cublasLtMatmulAlgo_t, which its maker calls plain data that the same version can take up again. */
struct cuda_matmul_algorithm {
    uint64_t words[CUDA_MATMUL_ALGORITHM_WORDS];
};

enum cuda_matmul_way { CUDA_MATMUL_SMALL, CUDA_MATMUL_LIBRARY };

struct cuda_matmul_choice {
    struct cuda_matmul_shape shape;
    int way;       /* enum cuda_matmul_way */
    float time_us; /* measured; 0: not measured, and not kept on disk */
    struct cuda_matmul_algorithm algorithm;
};

/* Ascending by shape, each once. */
struct cuda_matmul_table {
    int32_t n;
    struct cuda_matmul_choice choices[CUDA_MATMUL_MAX_CHOICES];
};

/* What a measurement holds for. */
struct cuda_matmul_key {
    char device[64]; /* its name */
    uint64_t library_version, driver_version;
};

/* The smallest of 1, 2, 4, .. 8192 that is not under n_rows; 8192 above. */
int32_t cuda_matmul_table_bucket(int32_t n_rows);

/* NULL where there is none. */
const struct cuda_matmul_choice *cuda_matmul_table_find(const struct cuda_matmul_table *table,
                                                        const struct cuda_matmul_shape *shape);

/* Adds or replaces; a full table stays as it is. */
void cuda_matmul_table_put(struct cuda_matmul_table *table,
                           const struct cuda_matmul_choice *choice);

/* DIR/matmul-DEVICE.txt, with what is no letter or digit in the device's name as '-'. buf holds 4096 bytes. */
status_t cuda_matmul_table_path(const char *dir, const struct cuda_matmul_key *key, char *buf);

/* NOT_FOUND where there is no file or one of another key; DATA_LOSS where it is not such a file. table_out is written on
 * success. */
status_t cuda_matmul_table_read(const char *path, const struct cuda_matmul_key *key,
                                struct cuda_matmul_table *table_out);

/* The measured choices. Another process sees the old file or the new one, never a part. Makes the directory. */
status_t cuda_matmul_table_write(const char *path, const struct cuda_matmul_key *key,
                                 const struct cuda_matmul_table *table);

/* ---- the ways -------------------------------------------------------------------------------------- */

status_t cuda_matmul_small(struct backend_stream *stream, const struct matmul_args *a);

/* Int8 weights: the same bits of a row from both. The rows of W8A8 are in the scratch. */
status_t cuda_matmul_i8_small(struct backend_stream *stream, const struct matmul_args *call);
status_t cuda_matmul_i8_tile(struct backend_stream *stream, const struct matmul_args *call);

/* W8A8: the call's rows of x into its scratch. */
status_t cuda_int8_rows(struct backend_stream *stream, const struct matmul_args *call);

/* cuBLASLt's handle, and its workspace on the device. */
struct cuda_matmul_lt;

status_t cuda_matmul_lt_new(struct backend_stream *stream, struct cuda_matmul_lt **lt_out);
void cuda_matmul_lt_free(struct cuda_matmul_lt *lt); /* accepts NULL */
uint64_t cuda_matmul_lt_version(void);

/* The library's best guesses, at most max of them, the best first; n_rows 0 asks for one that does not split sums. NOT_FOUND
 * where it has none. */
status_t cuda_matmul_lt_guess(struct cuda_matmul_lt *lt, const struct cuda_matmul_shape *shape,
                              int max, struct cuda_matmul_algorithm *algorithms_out, int *n_out);

status_t cuda_matmul_lt_run(struct cuda_matmul_lt *lt, struct backend_stream *stream,
                            const struct matmul_args *a,
                            const struct cuda_matmul_algorithm *algorithm);

/* ---- the stream's: matmul.c, matmul_tune.c ---------------------------------------------------------- */

/*
 * CUDA_MATMUL_FASTEST: the way measured or guessed to be the fastest for the number of rows. Up to 8 rows on the small
 * kernel a row's bits do not depend on the others; else they may change with the number of rows.
 * CUDA_MATMUL_SAME_BITS: one algorithm of cuBLASLt for a matrix whatever the number of rows, one that does not split sums. Each
 * output is then summed over the same tiles in the same order. That is how its kernels work; its manual promises equal bits for
 * equal calls only.
 */
enum cuda_matmul_order { CUDA_MATMUL_FASTEST, CUDA_MATMUL_SAME_BITS };

struct cuda_matmul {
    int order; /* enum cuda_matmul_order */
    struct cuda_matmul_lt *lt;
    struct cuda_matmul_table table;
};

/* The stream's, made when there is none; not while a graph is recorded. */
status_t cuda_matmul_get(struct backend_stream *stream, struct cuda_matmul **matmul_out);

/* Before the first matmul, or between steps; not while a graph is recorded. */
status_t cuda_matmul_set_order(struct backend_stream *stream, enum cuda_matmul_order order);

/* One way of one call, as it stands. */
status_t cuda_matmul_run(struct backend_stream *stream, const struct matmul_args *a,
                         const struct cuda_matmul_choice *choice);

#ifdef __cplusplus
}
#endif

/*
 * matmul.c - y = x W^T: takes each call to the way chosen for its shape
 *
 * Mapping: up to 8 rows the small kernel, unless a measurement found the library faster; above, the library with the
 *          algorithm measured for the next larger bucket of rows, or with its own first guess where nothing was measured. Such
 *          a guess is kept, so that the library is asked once a shape. Where the library has no algorithm, as for rows at odd
 *          addresses, the small kernel does 8 rows at a time. Int8 weights stream past up to 32 rows and are cut into tiles above.
 */
#include <stdlib.h>

#include "kernels/cuda/matmul.h"

status_t cuda_matmul_get(struct backend_stream *stream, struct cuda_matmul **matmul_out)
{
    if (stream->matmul != NULL) {
        *matmul_out = stream->matmul;
        return status_ok();
    }
    struct cuda_matmul *matmul = calloc(1, sizeof *matmul);
    if (matmul == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "matmul: out of memory");
    }
    const status_t s = cuda_matmul_lt_new(stream, &matmul->lt);
    if (!status_is_ok(&s)) {
        free(matmul);
        return s;
    }
    matmul->order = stream->batch_invariant ? CUDA_MATMUL_SAME_BITS : CUDA_MATMUL_FASTEST;
    stream->matmul = matmul;
    *matmul_out = matmul;
    return status_ok();
}

void cuda_matmul_free(struct cuda_matmul *matmul)
{
    if (matmul != NULL) {
        cuda_matmul_lt_free(matmul->lt);
        free(matmul);
    }
}

status_t cuda_matmul_set_order(struct backend_stream *stream, enum cuda_matmul_order order)
{
    struct cuda_matmul *matmul = NULL;
    TRY(cuda_matmul_get(stream, &matmul));
    matmul->order = (int)order;
    return status_ok();
}

// ---- shapes ----

/* The largest power of two, at most 16, that divides the address and the bytes from one row to the next. */
static int32_t alignment_of(const void *data, int64_t ld, size_t element_bytes)
{
    const uint64_t bits = (uint64_t)(uintptr_t)data | (uint64_t)ld * element_bytes | 16u;
    return (int32_t)(bits & (~bits + 1));
}

static struct cuda_matmul_shape shape_of(const struct cuda_matmul *matmul,
                                         const struct matmul_args *a)
{
    const int32_t x = alignment_of(a->x, a->ld_x, sizeof(uint16_t));
    const int32_t out = alignment_of(a->out, a->ld_out, dtype_bytes(a->out_dtype));
    const bool pinned = matmul->order == CUDA_MATMUL_SAME_BITS;
    return (struct cuda_matmul_shape){
        .n_out = a->weight->n_out,
        .n_in = a->weight->n_in,
        .n_rows = pinned ? 0 : cuda_matmul_table_bucket(a->n_rows),
        .out_dtype = a->out_dtype,
        .alignment = x < out ? x : out,
    };
}

static status_t check(const struct matmul_args *a)
{
    const struct matrix *w = a->weight;
    if (a->n_rows < 0 || a->ld_x < w->n_in || a->ld_out < w->n_out) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "matmul: %d rows, ld_x %lld, ld_out %lld, weight [%d, %d]", a->n_rows,
                             (long long)a->ld_x, (long long)a->ld_out, w->n_out, w->n_in);
    }
    if (a->out_dtype != DTYPE_F32 && a->out_dtype != DTYPE_BF16) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "matmul: output of dtype %d", a->out_dtype);
    }
    if (w->format == MATRIX_W8A8 && (a->scratch == NULL || (uintptr_t)a->scratch % 16 != 0)) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "matmul [%d, %d]: no room for int8 rows",
                             w->n_out, w->n_in);
    }
    return status_ok();
}

// ---- the choice ----

static status_t choose(struct cuda_matmul *matmul, const struct matmul_args *a,
                       struct cuda_matmul_choice *choice_out)
{
    const struct cuda_matmul_shape shape = shape_of(matmul, a);
    const struct cuda_matmul_choice *known = cuda_matmul_table_find(&matmul->table, &shape);
    if (known != NULL) {
        *choice_out = *known;
        return status_ok();
    }
    struct cuda_matmul_choice choice = {.shape = shape, .way = CUDA_MATMUL_SMALL};
    if (matmul->order == CUDA_MATMUL_SAME_BITS || a->n_rows > CUDA_MATMUL_SMALL_ROWS) {
        int n = 0;
        const status_t s = cuda_matmul_lt_guess(matmul->lt, &shape, 1, &choice.algorithm, &n);
        if (s.code != STATUS_NOT_FOUND) {
            TRY(s);
            choice.way = CUDA_MATMUL_LIBRARY;
        }
    }
    cuda_matmul_table_put(&matmul->table, &choice);
    *choice_out = choice;
    return status_ok();
}

/* Any number of rows, 8 at a time. */
static status_t run_small(struct backend_stream *stream, const struct matmul_args *a)
{
    for (int32_t row = 0; row < a->n_rows; row += CUDA_MATMUL_SMALL_ROWS) {
        const size_t out_bytes = dtype_bytes(a->out_dtype);
        const int32_t left = a->n_rows - row;
        struct matmul_args piece = *a;
        piece.x = (const uint16_t *)a->x + row * a->ld_x;
        piece.out = (char *)a->out + (size_t)(row * a->ld_out) * out_bytes;
        piece.n_rows = left < CUDA_MATMUL_SMALL_ROWS ? left : CUDA_MATMUL_SMALL_ROWS;
        TRY(cuda_matmul_small(stream, &piece));
    }
    return status_ok();
}

status_t cuda_matmul_run(struct backend_stream *stream, const struct matmul_args *a,
                         const struct cuda_matmul_choice *choice)
{
    if (choice->way == CUDA_MATMUL_SMALL) {
        return run_small(stream, a);
    }
    return cuda_matmul_lt_run(stream->matmul->lt, stream, a, &choice->algorithm);
}

/* One order of sums whatever the rows, so nothing to choose. */
static status_t run_i8(struct backend_stream *stream, const struct matmul_args *a)
{
    TRY(cuda_status(cudaSetDevice(stream->device), "set device", stream->device));
    if (a->weight->format == MATRIX_W8A8) {
        TRY(cuda_int8_rows(stream, a));
    }
    return a->n_rows <= CUDA_MATMUL_I8_SMALL_ROWS ? cuda_matmul_i8_small(stream, a)
                                                  : cuda_matmul_i8_tile(stream, a);
}

status_t cuda_matmul(struct backend_stream *stream, const struct matmul_args *a)
{
    TRY(check(a));
    if (a->n_rows == 0) {
        return status_ok(); // an empty grid is a launch error, an empty step is not
    }
    if (a->weight->dtype == DTYPE_I8) {
        return run_i8(stream, a);
    }
    struct cuda_matmul *matmul = NULL;
    struct cuda_matmul_choice choice;
    TRY(cuda_matmul_get(stream, &matmul));
    TRY(choose(matmul, a, &choice));
    return cuda_matmul_run(stream, a, &choice);
}

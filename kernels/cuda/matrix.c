/*
 * matrix.c - weights on the device: row-major bfloat16, see struct matrix
 *
 * Shapes:    src [n_rows, n_in] (ld_src) -> data [n_out, ld], ld = n_in rounded up to 8; the columns between stay zero.
 * Mapping:   pieces of rows are converted on the host into one of two pinned buffers while the other is on its way.
 * Numerics:  round to nearest even.
 */
#include <stdlib.h>

#include "kernels/cpu/convert.h"
#include "kernels/cuda/cuda.h"

enum { ROW_ALIGNMENT = 8 /* elements: 16 bytes */ };

static int64_t padded(int32_t n_in)
{
    return ((int64_t)n_in + ROW_ALIGNMENT - 1) / ROW_ALIGNMENT * ROW_ALIGNMENT;
}

size_t cuda_matrix_bytes(int dtype, int32_t n_out, int32_t n_in)
{
    (void)dtype;
    return (size_t)n_out * (size_t)padded(n_in) * sizeof(uint16_t);
}

status_t cuda_matrix_new(struct backend_stream *stream, int dtype, int32_t n_out, int32_t n_in,
                         struct matrix **matrix_out)
{
    if (dtype != DTYPE_BF16 || n_out < 1 || n_in < 1) {
        return status_errorf(
            STATUS_INVALID_ARGUMENT,
            "cuda: matrix [%d, %d] of dtype %d: weights are bfloat16 on the device", n_out, n_in,
            dtype);
    }
    struct matrix *matrix = calloc(1, sizeof *matrix);
    if (matrix == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory for a matrix");
    }
    *matrix = (struct matrix){
        .stream = stream, .dtype = dtype, .n_out = n_out, .n_in = n_in, .ld = padded(n_in)};
    const size_t size = cuda_matrix_bytes(dtype, n_out, n_in);
    status_t s;
    TRY_GOTO(s, cuda_mem_alloc(stream, size, &matrix->data), free_matrix);
    if (matrix->ld != n_in) {
        TRY_GOTO(s, cuda_mem_zero(stream, matrix->data, size), free_data);
    }
    *matrix_out = matrix;
    return status_ok();

free_data:
    cuda_mem_free(stream, matrix->data);
free_matrix:
    free(matrix);
    return status_wrapf(s, "matrix [%d, %d]", n_out, n_in);
}

void cuda_matrix_free(struct matrix *matrix)
{
    if (matrix != NULL) {
        cuda_mem_free(matrix->stream, matrix->data);
        free(matrix);
    }
}

// ---- writing ----

void cuda_matrix_staging_free(struct cuda_staging *staging)
{
    if (staging == NULL) {
        return;
    }
    for (int i = 0; i < CUDA_STAGING_BUFFERS; i++) {
        if (staging->copied[i] != NULL) {
            (void)cudaEventDestroy(staging->copied[i]);
        }
        if (staging->buffers[i] != NULL) {
            (void)cudaFreeHost(staging->buffers[i]);
        }
    }
    free(staging);
}

static status_t staging_new(struct backend_stream *stream, struct cuda_staging **staging_out)
{
    struct cuda_staging *staging = calloc(1, sizeof *staging);
    if (staging == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory for staging");
    }
    status_t s;
    for (int i = 0; i < CUDA_STAGING_BUFFERS; i++) {
        TRY_GOTO(s, cuda_mem_host_alloc(stream, CUDA_STAGING_BYTES, &staging->buffers[i]), undo);
        TRY_GOTO(s,
                 cuda_status(cudaEventCreateWithFlags(&staging->copied[i], cudaEventDisableTiming),
                             "event", stream->device),
                 undo);
    }
    *staging_out = staging;
    return status_ok();

undo:
    cuda_matrix_staging_free(staging);
    return s;
}

/* A rectangle of a matrix that fits a buffer. */
struct piece {
    int32_t row, n_rows, column, n_columns;
};

static status_t write_piece(struct backend_stream *stream, const struct matrix_write_args *a,
                            const struct piece *p)
{
    struct cuda_staging *staging = stream->staging;
    const int i = staging->next;
    staging->next = (i + 1) % CUDA_STAGING_BUFFERS;
    TRY(cuda_status(cudaEventSynchronize(staging->copied[i]), "staging", stream->device));
    uint16_t *const buffer = staging->buffers[i];
    for (int32_t r = 0; r < p->n_rows; r++) {
        const int64_t at = (int64_t)(p->row + r) * a->ld_src + p->column;
        cpu_convert((const char *)a->src + (size_t)at * dtype_bytes(a->src_dtype), a->src_dtype,
                    p->n_columns, buffer + (size_t)r * (size_t)p->n_columns, DTYPE_BF16);
    }
    const struct matrix *matrix = a->matrix;
    uint16_t *const to =
        (uint16_t *)matrix->data + (int64_t)(a->row_begin + p->row) * matrix->ld + p->column;
    const size_t width = (size_t)p->n_columns * sizeof *to;
    TRY(cuda_status(cudaMemcpy2DAsync(to, (size_t)matrix->ld * sizeof *to, buffer, width, width,
                                      (size_t)p->n_rows, cudaMemcpyHostToDevice, stream->stream),
                    "matrix write", stream->device));
    return cuda_status(cudaEventRecord(staging->copied[i], stream->stream), "staging",
                       stream->device);
}

static int32_t at_most(int32_t n, int32_t limit)
{
    return n < limit ? n : limit;
}

status_t cuda_matrix_write(struct backend_stream *stream, const struct matrix_write_args *a)
{
    const struct matrix *matrix = a->matrix;
    if (a->src_dtype != DTYPE_F32 && a->src_dtype != DTYPE_F16 && a->src_dtype != DTYPE_BF16) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "cuda: matrix: rows of dtype %d",
                             a->src_dtype);
    }
    if (a->row_begin < 0 || a->n_rows < 0 || a->row_begin > matrix->n_out - a->n_rows ||
        a->ld_src < matrix->n_in) {
        return status_errorf(
            STATUS_INVALID_ARGUMENT, "cuda: matrix [%d, %d]: rows [%d, +%d) with a stride of %lld",
            matrix->n_out, matrix->n_in, a->row_begin, a->n_rows, (long long)a->ld_src);
    }
    TRY(cuda_status(cudaSetDevice(stream->device), "set device", stream->device));
    if (stream->staging == NULL) {
        TRY(staging_new(stream, &stream->staging));
    }
    const int32_t max_elements = CUDA_STAGING_BYTES / (int32_t)sizeof(uint16_t);
    const int32_t columns = at_most(matrix->n_in, max_elements);
    const int32_t rows = max_elements / columns;
    for (int32_t row = 0; row < a->n_rows; row += rows) {
        for (int32_t column = 0; column < matrix->n_in; column += columns) {
            const struct piece piece = {.row = row,
                                        .n_rows = at_most(a->n_rows - row, rows),
                                        .column = column,
                                        .n_columns = at_most(matrix->n_in - column, columns)};
            TRY(write_piece(stream, a, &piece));
        }
    }
    return cuda_stream_sync(stream);
}

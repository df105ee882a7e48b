/*
 * matrix.c - weights on the device: row-major bfloat16 or int8 with scales, see struct matrix
 *
 * Shapes:    src [n_rows, n_in] (ld_src) -> data [n_out, ld], ld = n_in rounded up to 16 bytes; the columns between stay zero.
 * Mapping:   pieces of rows are converted on the host into one of two pinned buffers while the other is on its way.
 * Numerics:  round to nearest even; to int8 as int8_rows.h says.
 */
#include <stdlib.h>

#include "kernels/cpu/convert.h"
#include "kernels/cuda/cuda.h"
#include "kernels/int8_rows.h"

enum { ROW_ALIGNMENT = 16 /* bytes */, MAX_PIECE_ROWS = 4096, ROUND_BLOCK = 256 };

static int64_t padded(int dtype, int32_t n_in)
{
    const int64_t step = ROW_ALIGNMENT / (int64_t)dtype_bytes(dtype);
    return ((int64_t)n_in + step - 1) / step * step;
}

static size_t data_bytes(int dtype, int32_t n_out, int32_t n_in)
{
    return (size_t)n_out * (size_t)padded(dtype, n_in) * dtype_bytes(dtype);
}

static size_t scale_bytes(int dtype, int32_t n_out)
{
    return dtype == DTYPE_I8 ? (size_t)n_out * sizeof(float) : 0;
}

size_t cuda_matrix_bytes(int format, int32_t n_out, int32_t n_in)
{
    const int dtype = dtype_of_format(format);
    return data_bytes(dtype, n_out, n_in) + scale_bytes(dtype, n_out);
}

static status_t check_shape(int format, int32_t n_out, int32_t n_in)
{
    if ((format != MATRIX_BF16 && format != MATRIX_I8 && format != MATRIX_W8A8) || n_out < 1 ||
        n_in < 1 || (format == MATRIX_W8A8 && n_in > INT8_MAX_INPUTS)) {
        return status_errorf(
            STATUS_INVALID_ARGUMENT,
            "cuda: matrix [%d, %d] of format %d: weights are bfloat16 or int8 on the device", n_out,
            n_in, format);
    }
    return status_ok();
}

status_t cuda_matrix_new(struct backend_stream *stream, int format, int32_t n_out, int32_t n_in,
                         struct matrix **matrix_out)
{
    TRY(check_shape(format, n_out, n_in));
    struct matrix *matrix = calloc(1, sizeof *matrix);
    if (matrix == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory for a matrix");
    }
    const int dtype = dtype_of_format(format);
    *matrix = (struct matrix){.stream = stream,
                              .dtype = dtype,
                              .format = format,
                              .n_out = n_out,
                              .n_in = n_in,
                              .ld = padded(dtype, n_in)};
    const size_t size = cuda_matrix_bytes(format, n_out, n_in);
    status_t s;
    TRY_GOTO(s, cuda_mem_alloc(stream, size, &matrix->data), free_matrix);
    if (matrix->ld != n_in) {
        TRY_GOTO(s, cuda_mem_zero(stream, matrix->data, size), free_data);
    }
    if (dtype == DTYPE_I8) {
        matrix->scales = (float *)((char *)matrix->data + data_bytes(dtype, n_out, n_in));
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

/* A rectangle of a matrix that fits a buffer, and the largest magnitudes of its rows, for int8. */
struct piece {
    int32_t row, n_rows, column, n_columns;
    const float *largest;
};

/* n values of a row to int8, by way of small blocks of float32. */
static void round_row(const char *from, int dtype, int32_t n, float largest, int8_t *to)
{
    float values[ROUND_BLOCK];
    for (int32_t i = 0; i < n; i += ROUND_BLOCK) {
        const int32_t n_block = n - i < ROUND_BLOCK ? n - i : ROUND_BLOCK;
        f32_from_any(from + (size_t)i * dtype_bytes(dtype), dtype, n_block, values);
        int8_rows_round(values, n_block, largest, to + i);
    }
}

static void convert_piece(const struct matrix_write_args *a, const struct piece *p, char *buffer)
{
    const int dtype = a->matrix->dtype;
    for (int32_t r = 0; r < p->n_rows; r++) {
        const int64_t at = (int64_t)(p->row + r) * a->ld_src + p->column;
        const char *const from = (const char *)a->src + (size_t)at * dtype_bytes(a->src_dtype);
        char *const to = buffer + (size_t)r * (size_t)p->n_columns * dtype_bytes(dtype);
        if (dtype == DTYPE_I8) {
            round_row(from, a->src_dtype, p->n_columns, p->largest[r], (int8_t *)to);
        } else {
            cpu_convert(from, a->src_dtype, p->n_columns, to, dtype);
        }
    }
}

/* The next staging buffer, once its last copy is over. */
static status_t take_buffer(struct backend_stream *stream, int *index_out)
{
    struct cuda_staging *staging = stream->staging;
    const int i = staging->next;
    staging->next = (i + 1) % CUDA_STAGING_BUFFERS;
    *index_out = i;
    return cuda_status(cudaEventSynchronize(staging->copied[i]), "staging", stream->device);
}

static status_t buffer_copied(struct backend_stream *stream, int index)
{
    return cuda_status(cudaEventRecord(stream->staging->copied[index], stream->stream), "staging",
                       stream->device);
}

static status_t write_piece(struct backend_stream *stream, const struct matrix_write_args *a,
                            const struct piece *p)
{
    int i;
    TRY(take_buffer(stream, &i));
    void *const buffer = stream->staging->buffers[i];
    convert_piece(a, p, buffer);
    const struct matrix *matrix = a->matrix;
    const size_t element_bytes = dtype_bytes(matrix->dtype);
    const int64_t at = (int64_t)(a->row_begin + p->row) * matrix->ld + p->column;
    char *const to = (char *)matrix->data + (size_t)at * element_bytes;
    const size_t width = (size_t)p->n_columns * element_bytes;
    TRY(cuda_status(cudaMemcpy2DAsync(to, (size_t)matrix->ld * element_bytes, buffer, width, width,
                                      (size_t)p->n_rows, cudaMemcpyHostToDevice, stream->stream),
                    "matrix write", stream->device));
    return buffer_copied(stream, i);
}

/* Rows [row, row + n_rows) of the call: their largest magnitudes, which a piece needs, and their scales, which go to the device. */
static status_t write_scales(struct backend_stream *stream, const struct matrix_write_args *a,
                             int32_t row, int32_t n_rows, float *largest)
{
    const struct matrix *matrix = a->matrix;
    int i;
    TRY(take_buffer(stream, &i));
    float *const scales = stream->staging->buffers[i];
    for (int32_t r = 0; r < n_rows; r++) {
        const size_t at = (size_t)(row + r) * (size_t)a->ld_src * dtype_bytes(a->src_dtype);
        if (a->largest != NULL) {
            largest[r] = a->largest[row + r];
        } else {
            int8_rows_find_largest((const char *)a->src + at, a->src_dtype, 1, matrix->n_in,
                                   &largest[r]);
        }
        scales[r] = int8_rows_scale(largest[r]);
    }
    TRY(cuda_status(cudaMemcpyAsync(matrix->scales + a->row_begin + row, scales,
                                    (size_t)n_rows * sizeof *scales, cudaMemcpyHostToDevice,
                                    stream->stream),
                    "matrix write", stream->device));
    return buffer_copied(stream, i);
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
    const int32_t max_elements = CUDA_STAGING_BYTES / (int32_t)dtype_bytes(matrix->dtype);
    const int32_t columns = at_most(matrix->n_in, max_elements);
    const int32_t rows = at_most(max_elements / columns, MAX_PIECE_ROWS);
    float largest[MAX_PIECE_ROWS];
    for (int32_t row = 0; row < a->n_rows; row += rows) {
        const int32_t n_rows = at_most(a->n_rows - row, rows);
        if (matrix->dtype == DTYPE_I8) {
            TRY(write_scales(stream, a, row, n_rows, largest));
        }
        for (int32_t column = 0; column < matrix->n_in; column += columns) {
            const struct piece piece = {.row = row,
                                        .n_rows = n_rows,
                                        .column = column,
                                        .n_columns = at_most(matrix->n_in - column, columns),
                                        .largest = largest};
            TRY(write_piece(stream, a, &piece));
        }
    }
    return cuda_stream_sync(stream);
}

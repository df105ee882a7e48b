/*
 * matrix.c - weights packed for matmul, see struct matrix
 *
 * Shapes:   src [n_rows, n_in] (ld_src) -> panels [n_words][16] of 32-bit words.
 * Mapping:  a stretch of up to 16 rows is converted into a small buffer of words and written transposed, so that
 *           source rows are read and panels written front to back.
 * Numerics: to the matrix's dtype with round to nearest even.
 */
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/convert.h"
#include "kernels/cpu/cpu.h"

enum { WORDS = 64 }; /* of a row, converted at a time */

static int32_t row_words(int dtype, int32_t n_in)
{
    return dtype == DTYPE_BF16 ? n_in / 2 + n_in % 2 : n_in;
}

static size_t data_bytes(int dtype, int32_t n_out, int32_t n_in)
{
    const size_t n_panels = ((size_t)n_out + CPU_PANEL - 1) / CPU_PANEL;
    return n_panels * (size_t)row_words(dtype, n_in) * CPU_PANEL * sizeof(uint32_t);
}

size_t cpu_matrix_bytes(int dtype, int32_t n_out, int32_t n_in)
{
    return sizeof(struct matrix) + data_bytes(dtype, n_out, n_in);
}

status_t cpu_matrix_new(int dtype, int32_t n_out, int32_t n_in, struct matrix **matrix_out)
{
    if (dtype != DTYPE_F32 && dtype != DTYPE_BF16) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "matrix: packed weights are float32 or bfloat16, not dtype %d", dtype);
    }
    if (n_out < 1 || n_in < 1) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "matrix: shape [%d, %d]", n_out, n_in);
    }
    struct matrix *matrix = calloc(1, sizeof *matrix);
    if (matrix == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory for a matrix");
    }
    matrix->dtype = dtype;
    matrix->n_out = n_out;
    matrix->n_in = n_in;
    matrix->n_panels = (n_out - 1) / CPU_PANEL + 1;
    matrix->n_words = row_words(dtype, n_in);
    matrix->data_bytes = data_bytes(dtype, n_out, n_in);
    void *data = NULL;
    const status_t s = cpu_mem_alloc(matrix->data_bytes, &data);
    if (!status_is_ok(&s)) {
        free(matrix);
        return status_wrapf(s, "matrix [%d, %d]", n_out, n_in);
    }
    matrix->data = data;
    // The outputs that pad the last panel are computed with the others and dropped: give them a value.
    const size_t panel_bytes = matrix->data_bytes / (size_t)matrix->n_panels;
    memset((char *)matrix->data + matrix->data_bytes - panel_bytes, 0, panel_bytes);
    *matrix_out = matrix;
    return status_ok();
}

void cpu_matrix_free(struct matrix *matrix)
{
    if (matrix != NULL) {
        cpu_mem_free(matrix->data);
        free(matrix);
    }
}

/* n elements of a source row as words of the matrix; an odd n of bfloat16 leaves a zero upper half. */
static void convert_words(int dtype, const void *src, int src_dtype, int32_t n,
                          uint32_t words[WORDS])
{
    if (dtype == DTYPE_F32) {
        float values[WORDS];
        f32_from_any(src, src_dtype, n, values);
        memcpy(words, values, (size_t)n * sizeof values[0]);
        return;
    }
    uint16_t halves[2 * WORDS];
    halves[n - 1 + n % 2] = 0;
    if (src_dtype == DTYPE_BF16) {
        memcpy(halves, src, (size_t)n * sizeof halves[0]);
    } else {
        float values[2 * WORDS];
        f32_from_any(src, src_dtype, n, values);
        for (int32_t i = 0; i < n; i++) {
            halves[i] = bf16_from_f32(values[i]);
        }
    }
    memcpy(words, halves, ((size_t)n + 1) / 2 * sizeof words[0]);
}

/* Rows to be packed, [.., n_in] with a stride. */
struct source {
    const char *rows; /* at any alignment */
    int dtype;
    size_t row_bytes;
};

/* The first n_rows of src become the outputs of one panel from `column` on. */
static void write_panel(const struct matrix *matrix, uint32_t *panel, int32_t column,
                        int32_t n_rows, const struct source *src)
{
    const size_t element_bytes = dtype_bytes(src->dtype);
    const int32_t word_elements = matrix->dtype == DTYPE_BF16 ? 2 : 1;
    uint32_t words[CPU_PANEL][WORDS];
    for (int32_t word = 0; word < matrix->n_words; word += WORDS) {
        const int32_t n_words = matrix->n_words - word < WORDS ? matrix->n_words - word : WORDS;
        const int32_t k = word * word_elements;
        const int32_t n =
            matrix->n_in - k < n_words * word_elements ? matrix->n_in - k : n_words * word_elements;
        for (int32_t r = 0; r < n_rows; r++) {
            const char *const from =
                src->rows + (size_t)r * src->row_bytes + (size_t)k * element_bytes;
            convert_words(matrix->dtype, from, src->dtype, n, words[r]);
        }
        for (int32_t i = 0; i < n_words; i++) {
            uint32_t *const dst = panel + (size_t)(word + i) * CPU_PANEL + column;
            for (int32_t r = 0; r < n_rows; r++) {
                dst[r] = words[r][i];
            }
        }
    }
}

status_t cpu_matrix_write(struct matrix *matrix, int32_t row_begin, int32_t n_rows, const void *src,
                          int src_dtype, int64_t ld_src)
{
    if (src_dtype != DTYPE_F32 && src_dtype != DTYPE_F16 && src_dtype != DTYPE_BF16) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "matrix: rows of dtype %d", src_dtype);
    }
    if (row_begin < 0 || n_rows < 0 || row_begin > matrix->n_out - n_rows ||
        ld_src < matrix->n_in) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "matrix [%d, %d]: rows [%d, +%d) with a stride of %lld", matrix->n_out,
                             matrix->n_in, row_begin, n_rows, (long long)ld_src);
    }
    struct source from = {
        .rows = src, .dtype = src_dtype, .row_bytes = (size_t)ld_src * dtype_bytes(src_dtype)};
    const size_t panel_words = (size_t)matrix->n_words * CPU_PANEL;
    for (int32_t row = row_begin, end = row_begin + n_rows; row < end;) {
        const int32_t column = row % CPU_PANEL;
        const int32_t n = end - row < CPU_PANEL - column ? end - row : CPU_PANEL - column;
        uint32_t *const panel = matrix->data + (size_t)(row / CPU_PANEL) * panel_words;
        write_panel(matrix, panel, column, n, &from);
        from.rows += (size_t)n * from.row_bytes;
        row += n;
    }
    return status_ok();
}

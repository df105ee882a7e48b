/*
 * matrix.c - weights packed for matmul, see struct matrix
 *
 * Shapes:   src [n_rows, n_in] (ld_src) -> panels [n_words][16] of 32-bit words.
 * Mapping:  a task is a few panels. A stretch of up to 16 rows, converted into a small buffer of words where it is not
 *           words already, is written transposed, so that source rows are read and panels written front to back.
 * Numerics: to the matrix's dtype with round to nearest even; to int8 by way of the row's largest magnitude, which is found first.
 */
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/convert.h"
#include "kernels/cpu/cpu.h"
#include "kernels/int8_rows.h"

enum { WORDS = 64 }; /* of a row, converted at a time */

static int32_t row_words(int dtype, int32_t n_in)
{
    const int32_t elements = cpu_matrix_word(dtype);
    return n_in / elements + (n_in % elements != 0 ? 1 : 0);
}

static size_t count_panels(int32_t n_out)
{
    return ((size_t)n_out + CPU_PANEL - 1) / CPU_PANEL;
}

static size_t data_bytes(int dtype, int32_t n_out, int32_t n_in)
{
    return count_panels(n_out) * (size_t)row_words(dtype, n_in) * CPU_PANEL * sizeof(uint32_t);
}

static size_t scale_bytes(int dtype, int32_t n_out)
{
    return dtype == DTYPE_I8 ? count_panels(n_out) * CPU_PANEL * sizeof(float) : 0;
}

size_t cpu_matrix_bytes(int format, int32_t n_out, int32_t n_in)
{
    const int dtype = dtype_of_format(format);
    return sizeof(struct matrix) + data_bytes(dtype, n_out, n_in) + scale_bytes(dtype, n_out);
}

static status_t check_shape(int format, int32_t n_out, int32_t n_in)
{
    if (format != MATRIX_F32 && format != MATRIX_BF16 && format != MATRIX_I8 &&
        format != MATRIX_W8A8) {
        return status_errorf(
            STATUS_INVALID_ARGUMENT,
            "matrix: packed weights are float32, bfloat16 or int8, not of format %d", format);
    }
    if (n_out < 1 || n_in < 1 || (format == MATRIX_W8A8 && n_in > INT8_MAX_INPUTS)) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "matrix: shape [%d, %d]", n_out, n_in);
    }
    return status_ok();
}

status_t cpu_matrix_new(int format, int32_t n_out, int32_t n_in, struct matrix **matrix_out)
{
    TRY(check_shape(format, n_out, n_in));
    struct matrix *matrix = calloc(1, sizeof *matrix);
    if (matrix == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory for a matrix");
    }
    const int dtype = dtype_of_format(format);
    const size_t n_scale_bytes = scale_bytes(dtype, n_out);
    matrix->dtype = dtype;
    matrix->format = format;
    matrix->n_out = n_out;
    matrix->n_in = n_in;
    matrix->n_panels = (int32_t)count_panels(n_out);
    matrix->n_words = row_words(dtype, n_in);
    matrix->data_bytes = data_bytes(dtype, n_out, n_in);
    void *data = NULL;
    const status_t s = cpu_mem_reserve(matrix->data_bytes + n_scale_bytes, &data);
    if (!status_is_ok(&s)) {
        free(matrix);
        return status_wrapf(s, "matrix [%d, %d]", n_out, n_in);
    }
    matrix->data = data;
    // The outputs that pad the last panel are computed with the others and dropped: give them a value.
    const size_t panel_bytes = matrix->data_bytes / (size_t)matrix->n_panels;
    memset((char *)matrix->data + matrix->data_bytes - panel_bytes, 0, panel_bytes);
    if (n_scale_bytes > 0) {
        matrix->scales = (float *)(matrix->data + matrix->data_bytes / sizeof *matrix->data);
        memset(matrix->scales, 0, n_scale_bytes);
    }
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

// ---- packing ----

/* Rows to be packed, [.., n_in] with a stride. */
struct source {
    const char *rows; /* at any alignment */
    int dtype;
    size_t row_bytes;
    const float *largest; /* of each row, to be rounded to int8; NULL: to be found */
};

/* A part of a panel: columns [column, column + n_rows) of words [word, word + n_words). */
struct patch {
    const char *words[CPU_PANEL]; /* of each row, at any alignment */
    int32_t column, n_rows;
    int32_t word, n_words;
};

typedef uint32_t quad __attribute__((vector_size(16)));

static inline quad load_quad(const char *src)
{
    quad q;
    memcpy(&q, src, sizeof q);
    return q;
}

/* Four words of four rows become four rows of four words, CPU_PANEL apart. */
static inline void transpose_quads(const char *const rows[4], size_t offset, uint32_t *dst)
{
    const quad a = load_quad(rows[0] + offset), b = load_quad(rows[1] + offset);
    const quad c = load_quad(rows[2] + offset), d = load_quad(rows[3] + offset);
    const quad ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5);
    const quad ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
    const quad cd_low = __builtin_shufflevector(c, d, 0, 4, 1, 5);
    const quad cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
    const quad out[4] = {
        __builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5),
        __builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7),
        __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5),
        __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7),
    };
    for (int i = 0; i < 4; i++) {
        memcpy(dst + (size_t)i * CPU_PANEL, &out[i], sizeof out[i]);
    }
}

static void write_words(const struct patch *p, int32_t begin, int32_t end, uint32_t *panel)
{
    for (int32_t i = begin; i < end; i++) {
        uint32_t *const dst = panel + (size_t)(p->word + i) * CPU_PANEL + p->column;
        for (int32_t r = 0; r < p->n_rows; r++) {
            memcpy(&dst[r], p->words[r] + (size_t)i * sizeof *dst, sizeof *dst);
        }
    }
}

static void write_patch(const struct patch *p, uint32_t *panel)
{
    if (p->n_rows < CPU_PANEL) {
        write_words(p, 0, p->n_words, panel);
        return;
    }
    const int32_t n_whole = p->n_words / 4 * 4;
    for (int32_t i = 0; i < n_whole; i += 4) {
        uint32_t *const dst = panel + (size_t)(p->word + i) * CPU_PANEL;
        for (int32_t r = 0; r < CPU_PANEL; r += 4) {
            transpose_quads(p->words + r, (size_t)i * sizeof *dst, dst + r);
        }
    }
    write_words(p, n_whole, p->n_words, panel);
}

/* n values of a row with this largest magnitude, in at most WORDS words, the last one filled up with zeros. */
static void round_to_words(const struct source *src, const char *from, int32_t n, float largest,
                           uint32_t buffer[WORDS])
{
    float values[WORDS * 4];
    int8_t *const rounded = (int8_t *)buffer;
    buffer[(n - 1) / 4] = 0;
    f32_from_any(from, src->dtype, n, values);
    int8_rows_round(values, n, largest, rounded);
}

/*
 * n elements of a source row as words of the matrix: where they are, when they are that already, or converted into
 * `buffer`; an odd n of bfloat16 gets a zero upper half. largest: of the row, for int8.
 */
static const char *row_as_words(const struct matrix *matrix, const struct source *src,
                                const char *from, int32_t n, float largest, uint32_t buffer[WORDS])
{
    const bool odd = matrix->dtype == DTYPE_BF16 && n % 2 != 0;
    if (src->dtype == matrix->dtype && !odd) {
        return from;
    }
    if (matrix->dtype == DTYPE_I8) {
        round_to_words(src, from, n, largest, buffer);
        return (const char *)buffer;
    }
    if (odd) {
        buffer[n / 2] = 0;
    }
    cpu_convert(from, src->dtype, n, buffer, matrix->dtype);
    return (const char *)buffer;
}

/* Of the n_rows rows, for int8; else nothing is looked at. */
static void find_largest(const struct matrix *matrix, const struct source *src, int32_t n_rows,
                         float largest[CPU_PANEL])
{
    for (int32_t r = 0; r < n_rows; r++) {
        largest[r] = src->largest != NULL ? src->largest[r] : 0.0f;
        if (matrix->dtype == DTYPE_I8 && src->largest == NULL) {
            int8_rows_find_largest(src->rows + (size_t)r * src->row_bytes, src->dtype, 1,
                                   matrix->n_in, &largest[r]);
        }
    }
}

/* The first n_rows of src become the outputs of one panel from `column` on. */
static void write_panel(const struct matrix *matrix, uint32_t *panel, int32_t column,
                        int32_t n_rows, const struct source *src)
{
    const size_t element_bytes = dtype_bytes(src->dtype);
    const int32_t word_elements = cpu_matrix_word(matrix->dtype);
    uint32_t buffers[CPU_PANEL][WORDS];
    float largest[CPU_PANEL];
    struct patch patch = {.column = column, .n_rows = n_rows};
    find_largest(matrix, src, n_rows, largest);
    for (; patch.word < matrix->n_words; patch.word += WORDS) {
        const int32_t words_left = matrix->n_words - patch.word;
        const int32_t k = patch.word * word_elements;
        const int32_t k_left = matrix->n_in - k;
        patch.n_words = words_left < WORDS ? words_left : WORDS;
        const int32_t n = k_left < WORDS * word_elements ? k_left : WORDS * word_elements;
        for (int32_t r = 0; r < n_rows; r++) {
            const char *const from =
                src->rows + (size_t)r * src->row_bytes + (size_t)k * element_bytes;
            patch.words[r] = row_as_words(matrix, src, from, n, largest[r], buffers[r]);
        }
        write_patch(&patch, panel);
    }
    for (int32_t r = 0; matrix->scales != NULL && r < n_rows; r++) {
        const size_t output = (size_t)(panel - matrix->data) / (size_t)matrix->n_words;
        matrix->scales[output + (size_t)(column + r)] = int8_rows_scale(largest[r]);
    }
}

struct write_plan {
    const struct matrix_write_args *args;
    int32_t first_panel, n_panels;
    int32_t panels_per_task;
};

/* The rows of the call that fall into one panel. */
static void write_rows_of_panel(const struct matrix_write_args *a, int32_t panel)
{
    const struct matrix *matrix = a->matrix;
    const int32_t end = a->row_begin + a->n_rows;
    int32_t first = panel * CPU_PANEL;
    const int32_t last = end - first < CPU_PANEL ? end : first + CPU_PANEL;
    first = first > a->row_begin ? first : a->row_begin;
    const size_t row_bytes = (size_t)a->ld_src * dtype_bytes(a->src_dtype);
    const struct source src = {
        .rows = (const char *)a->src + (size_t)(first - a->row_begin) * row_bytes,
        .dtype = a->src_dtype,
        .row_bytes = row_bytes,
        .largest = a->largest != NULL ? a->largest + (first - a->row_begin) : NULL,
    };
    const size_t panel_words = (size_t)matrix->n_words * CPU_PANEL;
    write_panel(matrix, matrix->data + (size_t)panel * panel_words, first % CPU_PANEL, last - first,
                &src);
}

static void run_task(void *context, int64_t task, int thread)
{
    (void)thread;
    const struct write_plan *plan = context;
    const int32_t begin = (int32_t)task * plan->panels_per_task;
    const int32_t left = plan->n_panels - begin;
    const int32_t n = left < plan->panels_per_task ? left : plan->panels_per_task;
    for (int32_t i = begin; i < begin + n; i++) {
        write_rows_of_panel(plan->args, plan->first_panel + i);
    }
}

status_t cpu_matrix_write(struct backend_stream *stream, const struct matrix_write_args *a)
{
    const struct matrix *matrix = a->matrix;
    if (a->src_dtype != DTYPE_F32 && a->src_dtype != DTYPE_F16 && a->src_dtype != DTYPE_BF16) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "matrix: rows of dtype %d", a->src_dtype);
    }
    if (a->row_begin < 0 || a->n_rows < 0 || a->row_begin > matrix->n_out - a->n_rows ||
        a->ld_src < matrix->n_in) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "matrix [%d, %d]: rows [%d, +%d) with a stride of %lld", matrix->n_out,
                             matrix->n_in, a->row_begin, a->n_rows, (long long)a->ld_src);
    }
    if (a->n_rows == 0) {
        return status_ok();
    }
    struct write_plan plan = {.args = a, .first_panel = a->row_begin / CPU_PANEL};
    plan.n_panels = (a->row_begin + a->n_rows - 1) / CPU_PANEL - plan.first_panel + 1;
    plan.panels_per_task = (int32_t)cpu_items_per_task(plan.n_panels, matrix->n_words);
    cpu_team_run(stream->team, (plan.n_panels - 1) / plan.panels_per_task + 1, run_task, &plan);
    return status_ok();
}

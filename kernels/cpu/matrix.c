/*
 * matrix.c - weights packed for matmul, see struct matrix
 *
 * Shapes:   src [n_rows, n_in] (ld_src) -> panels [n_words][16] of 32-bit words.
 * Mapping:  a task is a few panels. A stretch of up to 16 rows, converted into a small buffer of words where it is not
 *           words already, is written transposed, so that source rows are read and panels written front to back.
 * Numerics: to the matrix's dtype with round to nearest even.
 */
#include <stdbool.h>
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
    const status_t s = cpu_mem_reserve(matrix->data_bytes, &data);
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

// ---- packing ----

/* Rows to be packed, [.., n_in] with a stride. */
struct source {
    const char *rows; /* at any alignment */
    int dtype;
    size_t row_bytes;
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

/*
 * n elements of a source row as words of the matrix: where they are, when they are that already, or converted into
 * `buffer`; an odd n of bfloat16 gets a zero upper half.
 */
static const char *row_as_words(const struct matrix *matrix, const struct source *src,
                                const char *from, int32_t n, uint32_t buffer[WORDS])
{
    const bool odd = matrix->dtype == DTYPE_BF16 && n % 2 != 0;
    if (src->dtype == matrix->dtype && !odd) {
        return from;
    }
    if (odd) {
        buffer[n / 2] = 0;
    }
    cpu_convert(from, src->dtype, n, buffer, matrix->dtype);
    return (const char *)buffer;
}

/* The first n_rows of src become the outputs of one panel from `column` on. */
static void write_panel(const struct matrix *matrix, uint32_t *panel, int32_t column,
                        int32_t n_rows, const struct source *src)
{
    const size_t element_bytes = dtype_bytes(src->dtype);
    const int32_t word_elements = matrix->dtype == DTYPE_BF16 ? 2 : 1;
    uint32_t buffers[CPU_PANEL][WORDS];
    struct patch patch = {.column = column, .n_rows = n_rows};
    for (; patch.word < matrix->n_words; patch.word += WORDS) {
        const int32_t words_left = matrix->n_words - patch.word;
        const int32_t k = patch.word * word_elements;
        const int32_t k_left = matrix->n_in - k;
        patch.n_words = words_left < WORDS ? words_left : WORDS;
        const int32_t n = k_left < WORDS * word_elements ? k_left : WORDS * word_elements;
        for (int32_t r = 0; r < n_rows; r++) {
            const char *const from =
                src->rows + (size_t)r * src->row_bytes + (size_t)k * element_bytes;
            patch.words[r] = row_as_words(matrix, src, from, n, buffers[r]);
        }
        write_patch(&patch, panel);
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

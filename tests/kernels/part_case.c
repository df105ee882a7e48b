#include "tests/kernels/part_case.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/kernels/quantized_row.h"
#include "tests/support/test.h"

static void *make(size_t n, size_t size)
{
    void *memory = calloc(n + 1, size);
    assert_non_null(memory);
    return memory;
}

/* Values of 8 significant bits. */
static float *random_values(int64_t n)
{
    float *values = make((size_t)n, sizeof *values);
    for (int64_t i = 0; i < n; i++) {
        values[i] = (float)(int)(test_random_below(257) - 128) / 128.0f;
    }
    return values;
}

int32_t part_case_heads(const struct part_case *c)
{
    return c->n_kv_heads * c->group;
}

static int32_t deal(const struct part_case_shape *shape, int32_t block)
{
    switch (shape->deal) {
    case PART_CASE_IN_TURN:
        return block % shape->n_parts;
    case PART_CASE_AT_RANDOM:
        return (int32_t)test_random_below((uint64_t)shape->n_parts);
    default:
        return 0;
    }
}

static void lay_out(struct part_case *c, const struct part_case_shape *shape,
                    const int32_t (*sizes)[2])
{
    for (int32_t i = 0; i < c->n_seqs; i++) {
        c->seqs[i] =
            (struct part_case_seq){sizes[i][0], sizes[i][1], c->n_rows, c->n_tokens, c->n_blocks};
        c->n_tokens += sizes[i][0];
        c->n_rows += sizes[i][1];
        c->n_blocks += (sizes[i][0] + PART_CASE_BLOCK - 1) / PART_CASE_BLOCK;
    }
    c->part_of = make((size_t)c->n_blocks, sizeof *c->part_of);
    c->id_of = make((size_t)c->n_blocks, sizeof *c->id_of);
    for (int32_t b = 0; b < c->n_blocks; b++) {
        c->id_of[b] = 2 * b + 1; // every other block is nobody's
    }
    for (int32_t i = 0; i < c->n_seqs; i++) {
        const int32_t n = (sizes[i][0] + PART_CASE_BLOCK - 1) / PART_CASE_BLOCK;
        for (int32_t b = 0; b < n; b++) {
            c->part_of[c->seqs[i].first_block + b] = deal(shape, b);
        }
    }
    for (int32_t b = c->n_blocks; b > 1; b--) {
        const int32_t other = (int32_t)test_random_below((uint64_t)b);
        const int32_t kept = c->id_of[b - 1];
        c->id_of[b - 1] = c->id_of[other];
        c->id_of[other] = kept;
    }
}

static float *make_plane(const struct part_case *c, const float *values)
{
    const int64_t dim = c->head_dim;
    const int64_t n = c->n_units * PART_CASE_BLOCK * dim;
    float *plane = make((size_t)n, sizeof *plane);
    memset(plane, 0xff, (size_t)n * sizeof *plane);
    for (int32_t i = 0; i < c->n_seqs; i++) {
        const struct part_case_seq *s = &c->seqs[i];
        for (int32_t t = 0; t < s->n_tokens; t++) {
            const int64_t id = c->id_of[s->first_block + t / PART_CASE_BLOCK];
            for (int32_t h = 0; h < c->n_kv_heads; h++) {
                const int64_t unit = id * c->n_kv_heads + h;
                memcpy(plane + (unit * PART_CASE_BLOCK + t % PART_CASE_BLOCK) * dim,
                       values + ((int64_t)(s->first_token + t) * c->n_kv_heads + h) * dim,
                       (size_t)dim * sizeof *plane);
            }
        }
    }
    return plane;
}

void part_case_new(const struct part_case_shape *shape, const int32_t (*sizes)[2], int32_t n_seqs,
                   struct part_case *out)
{
    struct part_case c = {.head_dim = shape->head_dim,
                          .group = shape->group,
                          .n_kv_heads = shape->n_kv_heads,
                          .n_parts = shape->n_parts,
                          .n_seqs = n_seqs};
    assert_true(n_seqs <= PART_CASE_SEQS);
    lay_out(&c, shape, sizes);
    const int64_t n_kv = (int64_t)c.n_tokens * c.n_kv_heads * c.head_dim;
    c.q = random_values((int64_t)c.n_rows * part_case_heads(&c) * c.head_dim);
    c.k = random_values(n_kv);
    c.v = random_values(n_kv);
    c.n_units = (2 * (int64_t)c.n_blocks + 1) * c.n_kv_heads;
    c.k_plane = make_plane(&c, c.k);
    c.v_plane = make_plane(&c, c.v);
    *out = c;
}

static void round_to_int8(const struct part_case *c, float *values, int8_t *plane, uint16_t *scales)
{
    const int64_t dim = c->head_dim;
    memset(scales, 0xff, (size_t)c->n_units * PART_CASE_BLOCK * sizeof *scales);
    for (int32_t i = 0; i < c->n_seqs; i++) {
        const struct part_case_seq *s = &c->seqs[i];
        for (int32_t at = 0; at < s->n_tokens * c->n_kv_heads; at++) {
            const int32_t t = at / c->n_kv_heads, h = at % c->n_kv_heads;
            const int64_t id = c->id_of[s->first_block + t / PART_CASE_BLOCK];
            const int64_t row = (id * c->n_kv_heads + h) * PART_CASE_BLOCK + t % PART_CASE_BLOCK;
            float *const from = values + ((int64_t)s->first_token * c->n_kv_heads + at) * dim;
            scales[row] = quantized_row(from, c->head_dim, plane + row * dim);
        }
    }
}

void part_case_round_to_int8(struct part_case *c)
{
    const size_t n_rows = (size_t)c->n_units * PART_CASE_BLOCK;
    c->k_int8 = make(n_rows * (size_t)c->head_dim, sizeof *c->k_int8);
    c->v_int8 = make(n_rows * (size_t)c->head_dim, sizeof *c->v_int8);
    c->k_scales = make(n_rows, sizeof *c->k_scales);
    c->v_scales = make(n_rows, sizeof *c->v_scales);
    round_to_int8(c, c->k, c->k_int8, c->k_scales);
    round_to_int8(c, c->v, c->v_int8, c->v_scales);
}

void part_case_free(struct part_case *c)
{
    void *const arrays[] = {c->part_of, c->id_of,  c->q,      c->k,        c->v,       c->k_plane,
                            c->v_plane, c->k_int8, c->v_int8, c->k_scales, c->v_scales};
    for (size_t i = 0; i < sizeof arrays / sizeof arrays[0]; i++) {
        free(arrays[i]);
    }
}

static bool is_of_part(const struct part_case *c, const struct part_case_seq *s, int32_t token,
                       int32_t part)
{
    return c->part_of[s->first_block + token / PART_CASE_BLOCK] == part;
}

void part_case_list(const struct part_case *c, int32_t part, struct part_case_list *out)
{
    struct part_case_list list = {.blocks = make((size_t)c->n_blocks, sizeof *list.blocks),
                                  .row_ends = make((size_t)c->n_rows, sizeof *list.row_ends)};
    const int64_t n_heads = part_case_heads(c);
    int32_t n_blocks = 0;
    for (int32_t i = 0; i < c->n_seqs; i++) {
        const struct part_case_seq *s = &c->seqs[i];
        struct attention_seq *to = &list.seqs[i];
        *to = (struct attention_seq){
            .n_queries = s->n_queries,
            .first_block = n_blocks,
            .n_kv_heads = c->n_kv_heads,
            .q_offset = s->first_row * n_heads * c->head_dim,
            .ld = n_heads * c->head_dim,
            .row_ends = list.row_ends + s->first_row,
            .out_offset = s->first_row * n_heads * (c->head_dim + ATTENTION_STATS),
            .ld_out = n_heads * (c->head_dim + ATTENTION_STATS),
        };
        for (int32_t t = 0; t < s->n_tokens; t++) {
            const bool mine = is_of_part(c, s, t, part);
            const int32_t query = t - (s->n_tokens - s->n_queries);
            if (mine && t % PART_CASE_BLOCK == 0) {
                list.blocks[n_blocks++] = c->id_of[s->first_block + t / PART_CASE_BLOCK];
            }
            to->kv_tokens += mine;
            if (query >= 0) {
                list.row_ends[s->first_row + query] = to->kv_tokens;
            }
        }
    }
    *out = list;
}

void part_case_list_free(struct part_case_list *list)
{
    free(list->blocks);
    free(list->row_ends);
}

/* One row and head over all keys, from the definition. */
static void reference_row(const struct part_case *c, int32_t row, int32_t head, double *out)
{
    double weights[2048];
    int32_t i = 0;
    while (i + 1 < c->n_seqs && c->seqs[i + 1].first_row <= row) {
        i++;
    }
    const struct part_case_seq *s = &c->seqs[i];
    const int32_t position = s->n_tokens - s->n_queries + row - s->first_row;
    const int64_t dim = c->head_dim;
    const float *q = c->q + ((int64_t)row * part_case_heads(c) + head) * dim;
    const int64_t kv = ((int64_t)s->first_token * c->n_kv_heads + head / c->group) * dim;
    double largest = -INFINITY, sum = 0.0;
    assert_true(position < 2048);
    for (int64_t t = 0; t <= position; t++) {
        double dot = 0.0;
        for (int64_t d = 0; d < dim; d++) {
            dot += (double)q[d] * (double)c->k[kv + t * c->n_kv_heads * dim + d];
        }
        weights[t] = dot / sqrt((double)dim);
        largest = fmax(largest, weights[t]);
    }
    memset(out, 0, (size_t)dim * sizeof *out);
    for (int64_t t = 0; t <= position; t++) {
        const double weight = exp(weights[t] - largest);
        sum += weight;
        for (int64_t d = 0; d < dim; d++) {
            out[d] += weight * (double)c->v[kv + t * c->n_kv_heads * dim + d];
        }
    }
    for (int64_t d = 0; d < dim; d++) {
        out[d] /= sum;
    }
}

void part_case_check_part(const struct part_case *c, int32_t part, const float *rows)
{
    struct part_case_list list;
    part_case_list(c, part, &list);
    const int64_t n_heads = part_case_heads(c), width = c->head_dim + ATTENTION_STATS;
    for (int64_t i = 0; i < c->n_rows * n_heads; i++) {
        const float *row = rows + i * width;
        const bool empty = list.row_ends[i / n_heads] == 0;
        assert_true((row[c->head_dim] == -INFINITY) == empty);
        assert_true((row[c->head_dim + 1] > 0.0f) != empty);
        for (int64_t d = 0; d < width; d++) {
            assert_true(row[d] == row[d]); // no NaN
            assert_true(!empty || d == c->head_dim || row[d] == 0.0f);
        }
    }
    part_case_list_free(&list);
}

void part_case_check_merged(const struct part_case *c, const float *out, int64_t ld, double atol,
                            double rtol)
{
    enum { MAX_DIM = 256 };

    double want[MAX_DIM];
    assert_true(c->head_dim <= MAX_DIM);
    const int64_t n_columns = (int64_t)part_case_heads(c) * c->head_dim;
    for (int32_t row = 0; row < c->n_rows; row++) {
        for (int64_t i = 0; i < n_columns; i++) {
            if (i % c->head_dim == 0) {
                reference_row(c, row, (int32_t)(i / c->head_dim), want);
            }
            assert_close(out[row * ld + i], want[i % c->head_dim], atol, rtol);
        }
        for (int64_t i = n_columns; i < ld; i++) {
            assert_true(isnan(out[row * ld + i]));
        }
    }
}

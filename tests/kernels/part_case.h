/*
 * part_case.h - sequences whose blocks are dealt to several parts, for tests of partial attention and its merging
 *
 * What:      random queries, keys and values, exact in bfloat16, in one paged cache; each block of each sequence belongs to a
 *            part. Of int8 the scales are NaN there. What each part has of a sequence, and what its rows see of that, is worked out token by token. Blocks of
 *            nobody and tokens behind the last one are NaN in the planes.
 * Layout:    q [rows, n_heads, head_dim] in rows of ld_q; planes [unit][16][head_dim], a unit one KV head of one block.
 * Ownership: part_case_free.
 */
#pragma once

#include "kernels/attention_args.h"

enum { PART_CASE_SEQS = 8, PART_CASE_BLOCK = 16 };

struct part_case_seq {
    int32_t n_tokens, n_queries; /* the last n_queries of the tokens are computed */
    int32_t first_row, first_token, first_block;
};

struct part_case {
    int32_t head_dim, group, n_kv_heads, n_parts;
    int32_t n_seqs, n_rows, n_tokens, n_blocks;
    struct part_case_seq seqs[PART_CASE_SEQS];
    int32_t *part_of;         /* [n_blocks], of the sequences' blocks in order */
    int32_t *id_of;           /* [n_blocks] */
    float *q;                 /* [n_rows, n_heads, head_dim] */
    float *k, *v;             /* [n_tokens, n_kv_heads, head_dim] */
    float *k_plane, *v_plane; /* [n_units, 16, head_dim] */
    int8_t *k_int8, *v_int8;  /* part_case_round_to_int8: the same, and a scale for each row */
    uint16_t *k_scales, *v_scales;
    int64_t n_units;
};

/* How blocks are dealt: in turn, at random, or all to part 0, so that the others are empty. */
enum part_case_deal { PART_CASE_IN_TURN, PART_CASE_AT_RANDOM, PART_CASE_TO_ONE };

/* sizes: tokens and queries of each sequence. */
struct part_case_shape {
    int32_t head_dim, group, n_kv_heads, n_parts;
    enum part_case_deal deal;
};

void part_case_new(const struct part_case_shape *shape, const int32_t (*sizes)[2], int32_t n_seqs,
                   struct part_case *out);
void part_case_free(struct part_case *c);

/* Keys and values become what int8 holds of them (kernels/kv_format.h). */
void part_case_round_to_int8(struct part_case *c);

int32_t part_case_heads(const struct part_case *c); /* query heads */

/* What one part attends to: q and out dense, [rows, heads, ..]. */
struct part_case_list {
    struct attention_seq seqs[PART_CASE_SEQS];
    int32_t *blocks;   /* [n_blocks + 1] */
    int32_t *row_ends; /* [n_rows] */
};

void part_case_list(const struct part_case *c, int32_t part, struct part_case_list *out);
void part_case_list_free(struct part_case_list *list);

/* What the part left, [rows, heads, head_dim + ATTENTION_STATS]: no NaN, and nothing where it has no key of the row. */
void part_case_check_part(const struct part_case *c, int32_t part, const float *rows);

/* Merged rows, ld apart, against float64 over all keys; what lies between rows is still NaN. */
void part_case_check_merged(const struct part_case *c, const float *out, int64_t ld, double atol,
                            double rtol);

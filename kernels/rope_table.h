/*
 * rope_table.h - cos and sin of every position
 *
 * Layout:    cos, sin [max_positions, rotary_dim/2], float32.
 * Units:     angles are position * theta^(-2i/rotary_dim), rounded to float32 as the reference does
 *            (inverse frequency in float32, product in float32), so that far positions agree with it.
 * Ownership: the caller frees with rope_table_destroy.
 * Source:    Su et al. 2021, arXiv:2104.09864; Llama 3.1's scaling as transformers computes it.
 */
#pragma once

#include <stdint.h>

#include "base/status.h"

/* Llama 3: a pair that turns less than low times within original_positions turns `factor` times slower, one that turns
 * more than high times stays, one between gets a mean of both. */
struct rope_scaling {
    double factor; /* 0: none */
    double low, high;
    int32_t original_positions;
};

struct rope_table {
    float *cos;
    float *sin;
    int32_t max_positions;
    int32_t rotary_dim;
};

MUST_USE status_t rope_table_init(struct rope_table *table, int32_t max_positions,
                                  int32_t rotary_dim, double theta);
MUST_USE status_t rope_table_init_scaled(struct rope_table *table, int32_t max_positions,
                                         int32_t rotary_dim, double theta,
                                         const struct rope_scaling *scaling);
void rope_table_destroy(struct rope_table *table); /* accepts a zeroed table */

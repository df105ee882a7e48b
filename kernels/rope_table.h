/*
 * rope_table.h - cos and sin of every position
 *
 * Layout:    cos, sin [max_positions, rotary_dim/2], float32.
 * Units:     angles are position * theta^(-2i/rotary_dim), rounded to float32 as the reference does
 *            (inverse frequency in float32, product in float32), so that far positions agree with it.
 * Ownership: the caller frees with rope_table_destroy.
 * Source:    Su et al. 2021, arXiv:2104.09864.
 */
#pragma once

#include <stdint.h>

#include "base/status.h"

struct rope_table {
    float *cos;
    float *sin;
    int32_t max_positions;
    int32_t rotary_dim;
};

MUST_USE status_t rope_table_init(struct rope_table *table, int32_t max_positions,
                                  int32_t rotary_dim, double theta);
void rope_table_destroy(struct rope_table *table); /* accepts a zeroed table */

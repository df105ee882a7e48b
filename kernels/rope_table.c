#include "kernels/rope_table.h"

#include <math.h>
#include <stdlib.h>

/*
 * The roundings are the reference's: the exponent, the power, its reciprocal and the angle are float32 each. Only
 * then is precision free, and double makes cos and sin correctly rounded.
 */
static void fill_position(struct rope_table *table, int32_t position,
                          const float *inverse_frequency)
{
    const int32_t half = table->rotary_dim / 2;
    float *const cos_row = table->cos + (int64_t)position * half;
    float *const sin_row = table->sin + (int64_t)position * half;
    for (int32_t i = 0; i < half; i++) {
        const float angle = (float)position * inverse_frequency[i];
        double sine, cosine;
        sincos((double)angle, &sine, &cosine);
        cos_row[i] = (float)cosine;
        sin_row[i] = (float)sine;
    }
}

/* In float32 too, in the reference's order. */
static float scaled_frequency(float frequency, const struct rope_scaling *s)
{
    const double pi = 3.14159265358979323846;
    const float wavelength = (float)(2.0 * pi) / frequency;
    const float slow = frequency / (float)s->factor;
    if (wavelength > (float)(s->original_positions / s->low)) {
        return slow;
    }
    if (wavelength < (float)(s->original_positions / s->high)) {
        return frequency;
    }
    const float turns = (float)s->original_positions / wavelength;
    const float smooth = (turns - (float)s->low) / (float)(s->high - s->low);
    return (1.0f - smooth) * frequency / (float)s->factor + smooth * frequency;
}

static void fill_frequencies(float *inverse_frequency, int32_t rotary_dim, double theta,
                             const struct rope_scaling *scaling)
{
    for (int32_t i = 0; i < rotary_dim / 2; i++) {
        const float exponent = (float)(2 * i) / (float)rotary_dim;
        const float frequency = 1.0f / (float)pow((double)(float)theta, (double)exponent);
        inverse_frequency[i] =
            scaling->factor > 0.0 ? scaled_frequency(frequency, scaling) : frequency;
    }
}

status_t rope_table_init(struct rope_table *table, int32_t max_positions, int32_t rotary_dim,
                         double theta)
{
    const struct rope_scaling none = {0};
    return rope_table_init_scaled(table, max_positions, rotary_dim, theta, &none);
}

status_t rope_table_init_scaled(struct rope_table *table, int32_t max_positions, int32_t rotary_dim,
                                double theta, const struct rope_scaling *scaling)
{
    if (max_positions < 1 || rotary_dim < 2 || rotary_dim % 2 != 0 || !(theta > 0.0)) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "rope table: %d positions, rotary dim %d, theta %g", max_positions,
                             rotary_dim, theta);
    }
    const size_t half = (size_t)rotary_dim / 2;
    const size_t n = (size_t)max_positions * half;
    struct rope_table made = {.max_positions = max_positions, .rotary_dim = rotary_dim};
    float *const inverse_frequency = malloc(half * sizeof *inverse_frequency);
    made.cos = malloc(n * sizeof *made.cos);
    made.sin = malloc(n * sizeof *made.sin);
    if (inverse_frequency == NULL || made.cos == NULL || made.sin == NULL) {
        free(inverse_frequency);
        rope_table_destroy(&made);
        return status_errorf(STATUS_RESOURCE_EXHAUSTED,
                             "out of memory: need %zu bytes for a rope table",
                             2 * n * sizeof *made.cos);
    }
    fill_frequencies(inverse_frequency, rotary_dim, theta, scaling);
    for (int32_t position = 0; position < max_positions; position++) {
        fill_position(&made, position, inverse_frequency);
    }
    free(inverse_frequency);
    *table = made;
    return status_ok();
}

void rope_table_destroy(struct rope_table *table)
{
    free(table->cos);
    free(table->sin);
    *table = (struct rope_table){0};
}

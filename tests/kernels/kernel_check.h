/*
 * kernel_check.h - what the tests of kernels share
 *
 * What:      streams of every instruction set this machine has, arrays that notice what is written around them, and the one
 *            table of tolerances.
 * Ownership: guarded arrays are freed with guarded_free, which also checks them.
 * Errors:    every helper fails the running test.
 */
#pragma once

#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/cpu.h"
#include "tests/support/test.h"

/* |got - want| <= atol + rtol * |want|, want computed in float64 from the same (already rounded) inputs. */
struct tolerance {
    double atol, rtol;
};

enum tolerance_of {
    TOLERANCE_MATMUL,    /* |x|, |w| <= 1, K <= 3000 */
    TOLERANCE_ATTENTION, /* |v| <= 1 */
    TOLERANCE_RMSNORM,
    TOLERANCE_LAYERNORM, /* the mean at most 10 deviations from zero */
    TOLERANCE_ROPE,
    TOLERANCE_SWIGLU,
    TOLERANCE_EXP, /* relative only: 2 ulp */
    TOLERANCE_LOGPROB,
    N_TOLERANCES,
};

struct tolerance kernel_tolerance(enum tolerance_of what);

/* ---- streams ------------------------------------------------------------------------------------- */

/* Runs check on a stream of each instruction set of this machine, with one thread and with two. */
void each_stream(void (*check)(struct backend_stream *stream));

/* Runs check with the name of each instruction set of this machine. */
void each_isa(void (*check)(const char *isa));

struct backend_stream *stream_of(const char *isa, int n_threads);
void stream_done(struct backend_stream *stream);

/* ---- matrices ------------------------------------------------------------------------------------ */

/* Packs n rows of src (float32, n_in elements each) from row_begin on, with one thread. */
status_t write_rows(struct matrix *matrix, int32_t row_begin, int32_t n_rows, const float *src);

/* ---- arrays -------------------------------------------------------------------------------------- */

/* Never NULL; freed with free. */
void *must_alloc(size_t size);

/* n floats, all NaN, between guards. */
float *guarded_new(size_t n);
void guarded_free(float *data); /* fails when something was written outside */

/* n floats uniform in [-scale, scale), guarded. */
float *random_new(size_t n, double scale);

/* As bfloat16 and back: what the kernels see of x. Independent of kernels/cpu/convert.h. */
float rounded_bf16(float x);
uint16_t bits_bf16(float x);

void assert_all_close(const float *got, const double *want, size_t n, struct tolerance tolerance,
                      const char *what);
void assert_same_bits(const float *got, const float *want, size_t n, const char *what);

/*
 * cuda_check.h - what the tests of CUDA ops share
 *
 * What:      the backend and a stream, arrays on the device, bfloat16 on the host. A test reaches the device through the
 *            backend's table alone, so that the same program runs on the simulator (cuda_check_sim.c) and on a GPU
 *            (cuda_check_gpu.c).
 * Ownership: device arrays are freed with device_free, which checks the memory around them.
 * Errors:    every helper fails the running test; without a GPU check_start skips it.
 */
#pragma once

#include <stdlib.h>
#include <string.h>

#include "kernels/backend.h"
#include "tests/support/test.h"

/* |got - want| <= atol + rtol * |want|, want computed in float64 from the same (already rounded) inputs. */
struct tolerance {
    double atol, rtol;
};

/* A result that is rounded to bfloat16, of arithmetic in float32. */
static const struct tolerance bf16_result = {.atol = 1e-5, .rtol = 0x1p-8};

/* Arithmetic in float32 of a few operations. */
static const struct tolerance f32_result = {.atol = 1e-5, .rtol = 1e-5};

/* The backend's table: the simulator's or the plugin's. Skips the test when there is no device. */
const struct backend *check_backend(void);

/* A stream on device 0. */
struct backend_stream *check_stream(void);
void check_stream_done(struct backend_stream *stream);

/* ---- host ---------------------------------------------------------------------------------------- */

/* Never NULL; freed with free. */
void *must_alloc(size_t size);

/* n floats uniform in [-scale, scale), exact in bfloat16. Freed with free. */
float *random_bf16_values(size_t n, double scale);
/* n floats uniform in [-scale, scale). Freed with free. */
float *random_values(size_t n, double scale);

/* Nearest even; independent of the backend's own conversions. */
uint16_t bf16_bits(float x);
float bf16_value(uint16_t bits);

void assert_all_close(const float *got, const double *want, size_t n, struct tolerance tolerance,
                      const char *what);
/* size bytes; the message names the first that differs. */
void assert_same_bytes(const void *got, const void *want, size_t size, const char *what);

/* ---- device --------------------------------------------------------------------------------------- */

/*
 * size bytes of device memory of 0xff, which is NaN in every format, between guards. The data begins `skew` bytes behind a
 * multiple of 256, for tests of alignment.
 */
void *device_new_skewed(struct backend_stream *stream, size_t size, size_t skew);
void *device_new(struct backend_stream *stream, size_t size);
void device_free(struct backend_stream *stream, void *data);

/* The same, filled from the host. */
void *device_copy(struct backend_stream *stream, const void *host, size_t size);
/* n values as bfloat16. */
void *device_bf16(struct backend_stream *stream, const float *values, size_t n);

/* To the host, after all that is in the stream. */
void device_read(struct backend_stream *stream, void *host, const void *data, size_t size);
/* n bfloat16 as float32; freed with free. */
float *device_read_bf16(struct backend_stream *stream, const void *data, size_t n);

#include "tests/kernels/kernel_check.h"

#include <math.h>
#include <stdio.h>

static const struct tolerance tolerances[N_TOLERANCES] = {
    [TOLERANCE_MATMUL] = {.atol = 1e-4, .rtol = 1e-6},
    [TOLERANCE_ATTENTION] = {.atol = 2e-6, .rtol = 2e-6},
    [TOLERANCE_RMSNORM] = {.atol = 1e-7, .rtol = 1e-6},
    [TOLERANCE_LAYERNORM] = {.atol = 4e-6, .rtol = 2e-6},
    [TOLERANCE_ROPE] = {.atol = 3e-7, .rtol = 3e-7},
    [TOLERANCE_SWIGLU] = {.atol = 1e-37, .rtol = 6e-7},
    [TOLERANCE_EXP] = {.atol = 0.0, .rtol = 2.0 * 0x1p-23},
    [TOLERANCE_LOGPROB] = {.atol = 1e-6, .rtol = 1e-6},
};

struct tolerance kernel_tolerance(enum tolerance_of what)
{
    return tolerances[what];
}

// ---- streams ----

static const char *const isas[] = {"portable", "avx2", "avx512", "avx512-vnni"};

struct backend_stream *stream_of(const char *isa, int n_threads)
{
    struct backend_stream *stream = NULL;
    assert_status_ok(cpu_stream_new_isa(n_threads, isa, &stream));
    return stream;
}

void stream_done(struct backend_stream *stream)
{
    backend_cpu()->stream_free(stream);
}

status_t write_rows(struct matrix *matrix, int32_t row_begin, int32_t n_rows, const float *src)
{
    struct backend_stream *stream = stream_of("portable", 1);
    const struct matrix_write_args args = {
        .matrix = matrix,
        .row_begin = row_begin,
        .n_rows = n_rows,
        .src = src,
        .src_dtype = DTYPE_F32,
        .ld_src = matrix->n_in,
    };
    const status_t s = cpu_matrix_write(stream, &args);
    stream_done(stream);
    return s;
}

void each_isa(void (*check)(const char *isa))
{
    int n_checked = 0;
    for (size_t i = 0; i < sizeof isas / sizeof isas[0]; i++) {
        struct backend_stream *stream = NULL;
        const status_t s = cpu_stream_new_isa(1, isas[i], &stream);
        if (s.code == STATUS_UNIMPLEMENTED) {
            continue; // not on this machine
        }
        assert_status_ok(s);
        stream_done(stream);
        check(isas[i]);
        n_checked++;
    }
    assert_true(n_checked > 0);
}

static void (*stream_check)(struct backend_stream *stream);

static void check_threads(const char *isa)
{
    for (int n_threads = 1; n_threads <= 2; n_threads++) {
        struct backend_stream *stream = stream_of(isa, n_threads);
        stream_check(stream);
        stream_done(stream);
    }
}

void each_stream(void (*check)(struct backend_stream *stream))
{
    stream_check = check;
    each_isa(check_threads);
}

// ---- arrays ----

#define GUARD ((size_t)32) /* floats on either side; the first also hold the length */

#define POISON_BITS 0x7FC0DEADu

static void fill_poison(float *data, size_t n)
{
    const uint32_t poison = POISON_BITS;
    for (size_t i = 0; i < n; i++) {
        memcpy(data + i, &poison, sizeof poison);
    }
}

void *must_alloc(size_t size)
{
    void *ptr = malloc(size > 0 ? size : 1);
    if (ptr == NULL) {
        fail_msg("out of memory: need %zu bytes", size);
        abort(); // not reached, which cmocka does not say
    }
    return ptr;
}

float *guarded_new(size_t n)
{
    float *block = must_alloc((n + 2 * GUARD) * sizeof *block);
    fill_poison(block, n + 2 * GUARD);
    memcpy(block, &n, sizeof n);
    return block + GUARD;
}

void guarded_free(float *data)
{
    float *const block = data - GUARD;
    size_t n = 0;
    memcpy(&n, block, sizeof n);
    for (size_t i = sizeof n / sizeof *block; i < GUARD; i++) {
        uint32_t before = 0, after = 0;
        memcpy(&before, block + i, sizeof before);
        memcpy(&after, data + n + i, sizeof after);
        assert_int_equal(before, POISON_BITS);
        assert_int_equal(after, POISON_BITS);
    }
    free(block);
}

float *random_new(size_t n, double scale)
{
    float *data = guarded_new(n);
    for (size_t i = 0; i < n; i++) {
        data[i] = (float)test_random_double(-scale, scale);
    }
    return data;
}

/* Of the two bfloat16 around x the nearer, by comparing distances; the even one when they tie. */
uint16_t bits_bf16(float x)
{
    uint32_t bits = 0;
    memcpy(&bits, &x, sizeof bits);
    const uint32_t below = bits & 0xFFFF0000u, above = below + 0x10000u;
    float lower = 0.0f, upper = 0.0f;
    memcpy(&lower, &below, sizeof lower);
    memcpy(&upper, &above, sizeof upper);
    const double to_lower = fabs((double)x - (double)lower),
                 to_upper = fabs((double)upper - (double)x);
    const bool even = (below & 0x10000u) == 0;
    const bool down = to_lower < to_upper || (to_lower <= to_upper && even);
    return (uint16_t)((down ? below : above) >> 16);
}

float rounded_bf16(float x)
{
    const uint32_t bits = (uint32_t)bits_bf16(x) << 16;
    float y = 0.0f;
    memcpy(&y, &bits, sizeof y);
    return y;
}

void assert_all_close(const float *got, const double *want, size_t n, struct tolerance tolerance,
                      const char *what)
{
    for (size_t i = 0; i < n; i++) {
        const double error = fabs((double)got[i] - want[i]);
        const bool same = (double)got[i] == want[i]; // infinities differ by NaN
        if (!same && !(error <= tolerance.atol + tolerance.rtol * fabs(want[i]))) {
            fail_msg("%s [%zu]: got %.9g, want %.9g, off by %.3g", what, i, (double)got[i], want[i],
                     error);
        }
    }
}

void assert_same_bits(const float *got, const float *want, size_t n, const char *what)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t got_bits = 0, want_bits = 0;
        memcpy(&got_bits, got + i, sizeof got_bits);
        memcpy(&want_bits, want + i, sizeof want_bits);
        if (got_bits != want_bits) {
            fail_msg("%s [%zu]: %a is not %a", what, i, (double)got[i], (double)want[i]);
        }
    }
}

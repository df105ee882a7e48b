#include "tests/kernels/cuda/cuda_check.h"

#include <math.h>

struct backend_stream *check_stream(void)
{
    const struct stream_options options = {.device = 0};
    struct backend_stream *stream = NULL;
    assert_status_ok(check_backend()->stream_new(&options, &stream));
    return stream;
}

void check_stream_done(struct backend_stream *stream)
{
    assert_status_ok(check_backend()->stream_sync(stream));
    check_backend()->stream_free(stream);
}

// ---- host ----

void *must_alloc(size_t size)
{
    void *ptr = malloc(size > 0 ? size : 1);
    if (ptr == NULL) {
        fail_msg("out of memory: need %zu bytes", size);
        abort(); // not reached, which cmocka does not say
    }
    return ptr;
}

float *random_values(size_t n, double scale)
{
    float *values = must_alloc(n * sizeof *values);
    for (size_t i = 0; i < n; i++) {
        values[i] = (float)test_random_double(-scale, scale);
    }
    return values;
}

float *random_bf16_values(size_t n, double scale)
{
    float *values = random_values(n, scale);
    for (size_t i = 0; i < n; i++) {
        values[i] = bf16_value(bf16_bits(values[i]));
    }
    return values;
}

float bf16_value(uint16_t bits)
{
    const uint32_t wide = (uint32_t)bits << 16;
    float x = 0.0f;
    memcpy(&x, &wide, sizeof x);
    return x;
}

/* Of the two bfloat16 around x the nearer, by comparing distances; the even one when they tie. */
uint16_t bf16_bits(float x)
{
    uint32_t bits = 0;
    memcpy(&bits, &x, sizeof bits);
    const uint16_t below = (uint16_t)(bits >> 16), above = (uint16_t)(below + 1);
    const double to_below = fabs((double)x - (double)bf16_value(below));
    const double to_above = fabs((double)bf16_value(above) - (double)x);
    const bool even = (below & 1u) == 0;
    const bool down = to_below < to_above || (to_below <= to_above && even);
    return down ? below : above;
}

void assert_all_close(const float *got, const double *want, size_t n, struct tolerance tolerance,
                      const char *what)
{
    for (size_t i = 0; i < n; i++) {
        const double error = fabs((double)got[i] - want[i]);
        // Written so that a NaN fails.
        if (!(error <= tolerance.atol + tolerance.rtol * fabs(want[i]))) {
            fail_msg("%s [%zu]: got %.9g, want %.9g, off by %.3g", what, i, (double)got[i], want[i],
                     error);
        }
    }
}

void assert_same_bytes(const void *got, const void *want, size_t size, const char *what)
{
    const unsigned char *const a = got, *const b = want;
    for (size_t i = 0; i < size; i++) {
        if (a[i] != b[i]) {
            fail_msg("%s: byte %zu of %zu is %02x, want %02x", what, i, size, a[i], b[i]);
        }
    }
}

// ---- device ----

enum { GUARD_BYTES = 512, POISON = 0xff, GUARD = 0x5a };

/* What lies on the device before an array: which allocation it is in. Also the first guard. */
struct array_head {
    void *block;
    size_t size, block_bytes;
};

static void sync_stream(struct backend_stream *stream)
{
    assert_status_ok(check_backend()->stream_sync(stream));
}

void *device_new_skewed(struct backend_stream *stream, size_t size, size_t skew)
{
    assert_true(skew < GUARD_BYTES / 2);
    const size_t block_bytes = size + skew + 2 * (size_t)GUARD_BYTES;
    struct array_head head = {.size = size, .block_bytes = block_bytes};
    assert_status_ok(check_backend()->mem_alloc(stream, block_bytes, &head.block));
    unsigned char *image = must_alloc(block_bytes);
    memset(image, GUARD, block_bytes);
    memset(image + GUARD_BYTES + skew, POISON, size);
    memcpy(image + GUARD_BYTES + skew - sizeof head, &head, sizeof head);
    assert_status_ok(check_backend()->upload(stream, head.block, image, block_bytes));
    sync_stream(stream);
    free(image);
    return (char *)head.block + GUARD_BYTES + skew;
}

void *device_new(struct backend_stream *stream, size_t size)
{
    return device_new_skewed(stream, size, 0);
}

void device_free(struct backend_stream *stream, void *data)
{
    struct array_head head;
    device_read(stream, &head, (char *)data - sizeof head, sizeof head);
    unsigned char *image = must_alloc(head.block_bytes);
    device_read(stream, image, head.block, head.block_bytes);
    const size_t begin = (size_t)((char *)data - (char *)head.block);
    for (size_t i = 0; i < head.block_bytes; i++) {
        const bool guard = i < begin - sizeof head || i >= begin + head.size;
        if (guard && image[i] != GUARD) {
            fail_msg("written outside an array of %zu bytes, at %td", head.size,
                     (ptrdiff_t)i - (ptrdiff_t)begin);
        }
    }
    free(image);
    check_backend()->mem_free(stream, head.block);
}

void *device_copy(struct backend_stream *stream, const void *host, size_t size)
{
    void *data = device_new(stream, size);
    assert_status_ok(check_backend()->upload(stream, data, host, size));
    sync_stream(stream);
    return data;
}

void *device_bf16(struct backend_stream *stream, const float *values, size_t n)
{
    uint16_t *bits = must_alloc(n * sizeof *bits);
    for (size_t i = 0; i < n; i++) {
        bits[i] = bf16_bits(values[i]);
    }
    void *data = device_copy(stream, bits, n * sizeof *bits);
    free(bits);
    return data;
}

void device_read(struct backend_stream *stream, void *host, const void *data, size_t size)
{
    assert_status_ok(check_backend()->download(stream, host, data, size));
    sync_stream(stream);
}

float *device_read_bf16(struct backend_stream *stream, const void *data, size_t n)
{
    uint16_t *bits = must_alloc(n * sizeof *bits);
    device_read(stream, bits, data, n * sizeof *bits);
    float *values = must_alloc(n * sizeof *values);
    for (size_t i = 0; i < n; i++) {
        values[i] = bf16_value(bits[i]);
    }
    free(bits);
    return values;
}

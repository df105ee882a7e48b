#include "tests/kernels/cuda/cuda_check.h"

enum { AREA_BYTES = 6 << 20 };

/* Strips of random shape, side by side in both areas. Returns how many fit. */
static int32_t draw_strips(struct strip *strips, int32_t n, char *from, char *to, size_t unit)
{
    size_t at_from = 0, at_to = 0;
    for (int32_t i = 0; i < n; i++) {
        struct strip *s = &strips[i];
        s->n_rows = (int32_t)test_random_below(9);
        s->row_bytes = (int64_t)(unit * test_random_below(70));
        s->from_stride_bytes = s->row_bytes + (int64_t)(unit * test_random_below(3));
        s->to_stride_bytes = s->row_bytes + (int64_t)(unit * test_random_below(3));
        s->from = from + at_from;
        s->to = to + at_to;
        at_from += (size_t)s->from_stride_bytes * (size_t)s->n_rows;
        at_to += (size_t)s->to_stride_bytes * (size_t)s->n_rows;
        if (at_from > AREA_BYTES || at_to > AREA_BYTES) {
            return i;
        }
    }
    return n;
}

static void check_strips(struct backend_stream *stream, int32_t n, size_t unit)
{
    unsigned char *from = must_alloc(AREA_BYTES), *want = must_alloc(AREA_BYTES);
    unsigned char *got = must_alloc(AREA_BYTES);
    for (size_t i = 0; i < AREA_BYTES; i++) {
        from[i] = (unsigned char)test_random_u64();
    }
    memset(want, 0xff, AREA_BYTES);
    char *d_from = device_copy(stream, from, AREA_BYTES), *d_to = device_new(stream, AREA_BYTES);
    struct strip *strips = must_alloc((size_t)n * sizeof *strips);
    n = draw_strips(strips, n, d_from, d_to, unit);
    for (int32_t i = 0; i < n; i++) {
        for (int32_t row = 0; row < strips[i].n_rows; row++) {
            memcpy(want + ((char *)strips[i].to - d_to) + row * strips[i].to_stride_bytes,
                   from + ((const char *)strips[i].from - d_from) +
                       row * strips[i].from_stride_bytes,
                   (size_t)strips[i].row_bytes);
        }
    }
    assert_status_ok(check_backend()->copy_strips(stream, strips, n));
    device_read(stream, got, d_to, AREA_BYTES);
    assert_same_bytes(got, want, AREA_BYTES, "strips");
    device_free(stream, d_from);
    device_free(stream, d_to);
    free(from);
    free(want);
    free(got);
    free(strips);
}

static void test_cuda_copy_strips_copies_what_it_says(void **state)
{
    (void)state;
    static const size_t units[] = {1, 2, 4, 16, 48};
    static const int32_t counts[] = {1, 5, 64, 65, 130};
    struct backend_stream *stream = check_stream();
    for (size_t i = 0; i < sizeof units / sizeof units[0]; i++) {
        check_strips(stream, counts[i], units[i]);
        check_strips(stream, counts[sizeof counts / sizeof counts[0] - 1 - i], units[i]);
    }
    check_stream_done(stream);
}

/* Pinned memory to the device, and back to another place in it. */
static void test_cuda_copy_strips_reach_pinned_memory(void **state)
{
    (void)state;

    enum { ROWS = 70, ROW_BYTES = 4 * 48, SIZE = ROWS * ROW_BYTES };

    struct backend_stream *stream = check_stream();
    void *memory = NULL;
    assert_status_ok(check_backend()->host_alloc(stream, (size_t)2 * SIZE, &memory));
    unsigned char *from = memory, *to = from + SIZE;
    char *device = device_new(stream, SIZE);
    struct strip out[ROWS], in[ROWS];
    for (size_t i = 0; i < ROWS; i++) { // backwards, so that the order is another one
        void *const at = device + (ROWS - 1 - i) * ROW_BYTES;
        out[i] = (struct strip){
            .from = from + i * ROW_BYTES, .to = at, .row_bytes = ROW_BYTES, .n_rows = 1};
        in[i] = (struct strip){
            .from = at, .to = to + i * ROW_BYTES, .row_bytes = ROW_BYTES, .n_rows = 1};
    }
    for (size_t i = 0; i < SIZE; i++) {
        from[i] = (unsigned char)test_random_u64();
    }
    memset(to, 0xee, SIZE);
    assert_status_ok(check_backend()->copy_strips(stream, out, ROWS));
    assert_status_ok(check_backend()->copy_strips(stream, in, ROWS));
    assert_status_ok(check_backend()->stream_sync(stream));
    assert_same_bytes(to, from, SIZE, "pinned memory");
    device_free(stream, device);
    check_backend()->host_free(stream, memory);
    check_stream_done(stream);
}

static void test_cuda_copy_strips_of_nothing_and_of_nonsense(void **state)
{
    (void)state;
    struct backend_stream *stream = check_stream();
    assert_status_ok(check_backend()->copy_strips(stream, NULL, 0));
    struct strip strip = {.n_rows = 0, .row_bytes = 8};
    assert_status_ok(check_backend()->copy_strips(stream, &strip, 1));
    strip.n_rows = -1;
    assert_status_code(check_backend()->copy_strips(stream, &strip, 1), STATUS_INVALID_ARGUMENT);
    strip = (struct strip){.n_rows = 3, .row_bytes = 1 << 30};
    assert_status_code(check_backend()->copy_strips(stream, &strip, 1), STATUS_INVALID_ARGUMENT);
    check_stream_done(stream);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cuda_copy_strips_copies_what_it_says),
        cmocka_unit_test(test_cuda_copy_strips_reach_pinned_memory),
        cmocka_unit_test(test_cuda_copy_strips_of_nothing_and_of_nonsense),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

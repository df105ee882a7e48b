#include "tests/kernels/kernel_check.h"

/* Random strips of one buffer into another: what they name arrives, the rest stays. */
static void check_random(struct backend_stream *stream)
{
    enum { BYTES = 4096, STRIPS = 7 };

    unsigned char from[BYTES], to[BYTES], want[BYTES];
    struct strip strips[STRIPS];
    for (size_t i = 0; i < BYTES; i++) {
        from[i] = (unsigned char)test_random_below(256);
    }
    memset(to, 0xEE, BYTES);
    memset(want, 0xEE, BYTES);
    for (size_t i = 0; i < STRIPS; i++) {
        const size_t place = i * (BYTES / STRIPS); // each strip writes to its own part
        const int64_t bytes = (int64_t)test_random_below(40);
        strips[i] = (struct strip){
            .from = from + test_random_below(1000),
            .to = to + place,
            .from_stride_bytes = bytes + (int64_t)test_random_below(20),
            .to_stride_bytes = bytes + (int64_t)test_random_below(9),
            .row_bytes = bytes,
            .n_rows = (int32_t)test_random_below(11),
        };
        for (int64_t row = 0; row < strips[i].n_rows; row++) {
            memcpy(want + place + row * strips[i].to_stride_bytes,
                   (const unsigned char *)strips[i].from + row * strips[i].from_stride_bytes,
                   (size_t)bytes);
        }
    }
    assert_status_ok(backend_cpu()->copy_strips(stream, strips, STRIPS));
    assert_memory_equal(to, want, BYTES);
}

static void test_copy_strips_moves_rows_and_nothing_else(void **state)
{
    (void)state;
    for (int i = 0; i < 50; i++) {
        each_stream(check_random);
    }
}

static void test_copy_strips_refuses_negative_sizes(void **state)
{
    (void)state;
    struct backend_stream *stream = stream_of("auto", 1);
    struct strip strip = {.row_bytes = -1, .n_rows = 1};
    assert_status_code(backend_cpu()->copy_strips(stream, &strip, 1), STATUS_INVALID_ARGUMENT);
    assert_status_ok(backend_cpu()->copy_strips(stream, NULL, 0));
    stream_done(stream);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_copy_strips_moves_rows_and_nothing_else),
        cmocka_unit_test(test_copy_strips_refuses_negative_sizes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

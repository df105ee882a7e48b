#include "tests/support/test.h"

#include <math.h>
#include <string.h>

#include "base/bytes.h"

static void test_bytes_append_grows_and_keeps(void **state)
{
    (void)state;
    struct bytes b;
    bytes_init(&b, 100000);
    for (uint32_t i = 0; i < 20000; i++) {
        assert_status_ok(bytes_append_u32(&b, i));
    }
    assert_int_equal(b.size, 80000);
    struct bytes_reader r;
    bytes_reader_init(&r, b.data, b.size);
    for (uint32_t i = 0; i < 20000; i++) {
        assert_int_equal(bytes_read_u32(&r), i);
    }
    assert_status_ok(bytes_reader_end(&r, "numbers"));
    bytes_destroy(&b);
}

static void test_bytes_append_stops_at_the_limit_unchanged(void **state)
{
    (void)state;
    struct bytes b;
    bytes_init(&b, 10);
    assert_status_ok(bytes_append(&b, "12345678", 8));
    assert_status_says(bytes_append(&b, "abc", 3), STATUS_RESOURCE_EXHAUSTED,
                       "need 3 bytes after 8, limit 10");
    assert_status_code(bytes_append_u64(&b, 1), STATUS_RESOURCE_EXHAUSTED);
    assert_status_code(bytes_append(&b, "", SIZE_MAX), STATUS_RESOURCE_EXHAUSTED);
    assert_int_equal(b.size, 8);
    assert_memory_equal(b.data, "12345678", 8);
    assert_status_ok(bytes_append(&b, "ab", 2));
    assert_status_ok(bytes_append(&b, NULL, 0));
    assert_int_equal(b.size, 10);
    bytes_destroy(&b);
}

static void test_bytes_blob_is_whole_or_absent(void **state)
{
    (void)state;
    struct bytes b;
    bytes_init(&b, 10);
    assert_status_code(bytes_append_blob(&b, "1234567", 7), STATUS_RESOURCE_EXHAUSTED);
    assert_int_equal(b.size, 0);
    assert_status_ok(bytes_append_blob(&b, "123456", 6));
    static const uint8_t want[] = {6, 0, 0, 0, '1', '2', '3', '4', '5', '6'};
    assert_int_equal(b.size, sizeof want);
    assert_memory_equal(b.data, want, sizeof want);
    bytes_destroy(&b);
}

static void test_bytes_printf_appends_text(void **state)
{
    (void)state;
    struct bytes b;
    bytes_init(&b, 64);
    assert_status_ok(bytes_append_str(&b, "a="));
    assert_status_ok(bytes_printf(&b, "%d, %s", 17, "x"));
    assert_int_equal(b.size, 7);
    assert_memory_equal(b.data, "a=17, x", 7);
    assert_status_code(bytes_printf(&b, "%0100d", 1), STATUS_RESOURCE_EXHAUSTED);
    assert_int_equal(b.size, 7);
    bytes_destroy(&b);
}

static void test_bytes_reserve_does_not_change_size(void **state)
{
    (void)state;
    struct bytes b;
    bytes_init(&b, 1000);
    uint8_t *tail = NULL;
    assert_status_ok(bytes_reserve(&b, 500, &tail));
    memset(tail, 7, 500);
    assert_int_equal(b.size, 0);
    assert_true(b.capacity >= 500 && b.capacity <= 1000);
    bytes_destroy(&b);
}

static void test_bytes_integers_are_little_endian(void **state)
{
    (void)state;
    struct bytes b;
    bytes_init(&b, 64);
    assert_status_ok(bytes_append_u32(&b, 0x01020304));
    assert_status_ok(bytes_append_u64(&b, 0x1112131415161718));
    assert_status_ok(bytes_append_f32(&b, 1.0f));
    static const uint8_t want[] = {4,    3,    2,    1,    0x18, 0x17, 0x16, 0x15,
                                   0x14, 0x13, 0x12, 0x11, 0,    0,    0x80, 0x3F};
    assert_int_equal(b.size, sizeof want);
    assert_memory_equal(b.data, want, sizeof want);

    struct bytes_reader r;
    bytes_reader_init(&r, want, sizeof want);
    assert_int_equal(bytes_read_u32(&r), 0x01020304);
    assert_true(bytes_read_u64(&r) == 0x1112131415161718);
    assert_true(bytes_read_f32(&r) == 1.0f);
    bytes_destroy(&b);
}

static void test_bytes_f32_keeps_every_bit(void **state)
{
    (void)state;
    static const uint32_t patterns[] = {0x80000000, 0x7F800000, 0x7FC00001, 0x00000001, 0xFF7FFFFF};
    for (size_t i = 0; i < sizeof patterns / sizeof patterns[0]; i++) {
        float value;
        memcpy(&value, &patterns[i], sizeof value);
        struct bytes b;
        bytes_init(&b, 4);
        assert_status_ok(bytes_append_f32(&b, value));
        struct bytes_reader r;
        bytes_reader_init(&r, b.data, b.size);
        const float back = bytes_read_f32(&r);
        assert_memory_equal(&back, &value, sizeof back);
        bytes_destroy(&b);
    }
}

static void test_bytes_reader_fails_at_every_truncation(void **state)
{
    (void)state;
    struct bytes b;
    bytes_init(&b, 256);
    assert_status_ok(bytes_append_u32(&b, 7));
    assert_status_ok(bytes_append_blob(&b, "hello", 5));
    assert_status_ok(bytes_append_u64(&b, 9));
    for (size_t size = 0; size < b.size; size++) {
        struct bytes_reader r;
        bytes_reader_init(&r, b.data, size);
        size_t blob_size = 99;
        (void)bytes_read_u32(&r);
        (void)bytes_read_blob(&r, &blob_size);
        const uint64_t last = bytes_read_u64(&r);
        assert_true(r.failed);
        assert_true(last == 0);
        assert_true(blob_size == 0 || blob_size == 5);
        assert_status_says(bytes_reader_end(&r, "message"), STATUS_DATA_LOSS, "ends too early");
    }
    bytes_destroy(&b);
}

static void test_bytes_reader_stays_failed(void **state)
{
    (void)state;
    struct bytes_reader r;
    bytes_reader_init(&r, "\1\0\0\0\2\0\0\0", 8);
    assert_null(bytes_read(&r, 9));
    assert_int_equal(bytes_read_u32(&r), 0); // would have been 1
    assert_true(r.failed);
}

static void test_bytes_reader_blob_that_lies(void **state)
{
    (void)state;
    struct bytes_reader r;
    bytes_reader_init(&r, "\xFF\xFF\xFF\xFFxyz", 7);
    size_t size = 1;
    assert_null(bytes_read_blob(&r, &size));
    assert_int_equal(size, 0);
    assert_true(r.failed);
}

static void test_bytes_reader_end_wants_everything_read(void **state)
{
    (void)state;
    struct bytes_reader r;
    bytes_reader_init(&r, "abcd", 4);
    assert_memory_equal(bytes_read(&r, 3), "abc", 3);
    assert_status_says(bytes_reader_end(&r, "plan"), STATUS_DATA_LOSS, "plan: 1 of 4 bytes left");
}

static void test_bytes_reader_empty_is_no_failure(void **state)
{
    (void)state;
    struct bytes_reader r;
    bytes_reader_init(&r, NULL, 0);
    assert_non_null(bytes_read(&r, 0));
    assert_status_ok(bytes_reader_end(&r, "nothing"));
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bytes_append_grows_and_keeps),
        cmocka_unit_test(test_bytes_append_stops_at_the_limit_unchanged),
        cmocka_unit_test(test_bytes_blob_is_whole_or_absent),
        cmocka_unit_test(test_bytes_printf_appends_text),
        cmocka_unit_test(test_bytes_reserve_does_not_change_size),
        cmocka_unit_test(test_bytes_integers_are_little_endian),
        cmocka_unit_test(test_bytes_f32_keeps_every_bit),
        cmocka_unit_test(test_bytes_reader_fails_at_every_truncation),
        cmocka_unit_test(test_bytes_reader_stays_failed),
        cmocka_unit_test(test_bytes_reader_blob_that_lies),
        cmocka_unit_test(test_bytes_reader_end_wants_everything_read),
        cmocka_unit_test(test_bytes_reader_empty_is_no_failure),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

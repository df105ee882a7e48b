#include "tests/support/test.h"

#include <string.h>

#include "coordinator/tokenizer/pb_reader.h"

static status_t next(const char *data, size_t size, struct pb_field *field, bool *more)
{
    struct pb_reader reader = {.data = (const uint8_t *)data, .size = size};
    return pb_reader_next(&reader, field, more);
}

static void test_pb_reader_reads_every_wire_type(void **state)
{
    (void)state;
    static const uint8_t data[] = {
        0x08, 0x96, 0x01,                        // 1: 150
        0x11, 1,    2,    3,   4,    5, 6, 7, 8, // 2: fixed64
        0x9A, 0x01, 0x02, 'h', 'i',              // 19: "hi"
        0x25, 0xFF, 0,    0,   0x80,             // 4: fixed32
        0x2A, 0x00,                              // 5: ""
    };
    struct pb_reader reader = {.data = data, .size = sizeof data};
    struct pb_field field;
    bool more;
    assert_status_ok(pb_reader_next(&reader, &field, &more));
    assert_true(more && field.number == 1 && field.type == PB_VARINT && field.value == 150);
    assert_status_ok(pb_reader_next(&reader, &field, &more));
    assert_true(field.number == 2 && field.type == PB_FIXED64);
    assert_true(field.value == 0x0807060504030201u);
    assert_status_ok(pb_reader_next(&reader, &field, &more));
    assert_true(field.number == 19 && field.type == PB_BYTES && field.bytes.size == 2);
    assert_memory_equal(field.bytes.data, "hi", 2);
    assert_status_ok(pb_reader_next(&reader, &field, &more));
    assert_true(field.number == 4 && field.type == PB_FIXED32 && field.value == 0x800000FFu);
    assert_status_ok(pb_reader_expect(&field, PB_FIXED32));
    assert_status_says(pb_reader_expect(&field, PB_BYTES), STATUS_DATA_LOSS,
                       "field 4 at byte 17 has wire type 5, not 2");
    assert_status_ok(pb_reader_next(&reader, &field, &more));
    assert_true(more && field.number == 5 && field.bytes.size == 0);
    assert_status_ok(pb_reader_next(&reader, &field, &more));
    assert_false(more);
}

static void test_pb_reader_takes_the_largest_varint(void **state)
{
    (void)state;
    struct pb_field field;
    bool more;
    assert_status_ok(next("\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 11, &field, &more));
    assert_true(field.value == UINT64_MAX);
}

static void test_pb_reader_refuses_what_is_cut_off(void **state)
{
    (void)state;

    static const struct {
        const char *data;
        size_t size;
        const char *says;
    } rows[] = {
        {"\x80", 1, "the field at byte 0 is cut off"},
        {"\x08", 1, "the field at byte 1 is cut off"},
        {"\x08\x80", 2, "the field at byte 1 is cut off"},
        {"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 12, "the field at byte 1 is cut off"},
        {"\x09\x01\x02", 3, "the field at byte 1 is cut off"},
        {"\x0d\x01\x02\x03", 4, "the field at byte 1 is cut off"},
        {"\x0a\x03zz", 4, "the field at byte 2 is cut off"},
        {"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01zz", 13, "the field at byte 11 is cut off"},
        {"\x00\x01", 2, "no field begins at byte 0"},
        {"\x80\x80\x80\x80\x80\x01", 6, "no field begins at byte 0"},
        {"\x0b", 1, "wire type 3 at byte 0"},
        {"\x0c", 1, "wire type 4 at byte 0"},
        {"\x0f", 1, "wire type 7 at byte 0"},
    };

    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct pb_field field;
        bool more;
        assert_status_says(next(rows[i].data, rows[i].size, &field, &more), STATUS_DATA_LOSS,
                           rows[i].says);
    }
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pb_reader_reads_every_wire_type),
        cmocka_unit_test(test_pb_reader_takes_the_largest_varint),
        cmocka_unit_test(test_pb_reader_refuses_what_is_cut_off),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

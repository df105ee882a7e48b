/*
 * What is on the wire never changes: each field, enum value and method of kvasir.v1 is a line of wire_fields.golden.
 * A line that is gone breaks peers of an older release; a new one is appended there together with its .proto.
 *
 * usage: test_wire_fields GOLDEN, or with KVASIR_UPDATE_GOLDEN=1 to write it anew
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "proto/descriptors.h"
#include "proto/wire/wire_reader.h"
#include "tests/support/test.h"

#define MAX_BYTES (1u << 20)

struct piece {
    const uint8_t *data;
    size_t size;
};

static struct piece text_field(struct piece message, uint32_t id)
{
    struct wire_reader r = wire_reader_of(message.data, message.size);
    struct wire_field field;
    while (wire_reader_next(&r, &field)) {
        if (field.id == id && field.type == WIRE_BYTES) {
            return (struct piece){field.data, field.size};
        }
    }
    return (struct piece){(const uint8_t *)"", 0};
}

static unsigned number_field(struct piece message, uint32_t id)
{
    struct wire_reader r = wire_reader_of(message.data, message.size);
    struct wire_field field;
    unsigned value = 0;
    while (wire_reader_next(&r, &field)) {
        if (field.id == id && field.type == WIRE_VARINT) {
            value = (unsigned)field.value;
        }
    }
    return value;
}

static void for_each(struct piece message, uint32_t id,
                     void (*fn)(struct bytes *out, const char *scope, struct piece child),
                     struct bytes *out, const char *scope)
{
    struct wire_reader r = wire_reader_of(message.data, message.size);
    struct wire_field field;
    while (wire_reader_next(&r, &field)) {
        if (field.id == id && field.type == WIRE_BYTES) {
            fn(out, scope, (struct piece){field.data, field.size});
        }
    }
}

static void put_field_line(struct bytes *out, const char *scope, struct piece field)
{
    static const char *const types[] = {"?",        "double",   "float",   "int64",  "uint64",
                                        "int32",    "fixed64",  "fixed32", "bool",   "string",
                                        "group",    "message",  "bytes",   "uint32", "enum",
                                        "sfixed32", "sfixed64", "sint32",  "sint64"};
    const struct piece name = text_field(field, 1), type_name = text_field(field, 6);
    const unsigned type = number_field(field, 5);
    assert_true(type < sizeof types / sizeof types[0]);
    assert_status_ok(bytes_printf(
        out, "%s.%.*s = %u %s%s%s%.*s\n", scope, (int)name.size, name.data, number_field(field, 3),
        number_field(field, 4) == 3 ? "repeated " : "", types[type], type_name.size > 0 ? " " : "",
        (int)type_name.size, type_name.data));
}

static void put_value_line(struct bytes *out, const char *scope, struct piece value)
{
    const struct piece name = text_field(value, 1);
    assert_status_ok(bytes_printf(out, "%s.%.*s = %u\n", scope, (int)name.size, name.data,
                                  number_field(value, 2)));
}

static void join(char buf[256], const char *scope, struct piece description)
{
    const struct piece name = text_field(description, 1);
    const int n = snprintf(buf, 256, "%s.%.*s", scope, (int)name.size, name.data);
    assert_true(n > 0 && n < 256);
}

static void put_enum(struct bytes *out, const char *scope, struct piece description)
{
    char name[256];
    join(name, scope, description);
    for_each(description, 2, put_value_line, out, name);
}

static void put_message(struct bytes *out, const char *scope, struct piece description)
{
    char name[256];
    join(name, scope, description);
    for_each(description, 2, put_field_line, out, name);
    for_each(description, 4, put_enum, out, name);
    for_each(description, 3, put_message, out, name);
}

static void put_method_line(struct bytes *out, const char *scope, struct piece method)
{
    const struct piece name = text_field(method, 1), in = text_field(method, 2),
                       answer = text_field(method, 3);
    assert_status_ok(bytes_printf(
        out, "rpc %s/%.*s (%s%.*s) returns (%s%.*s)\n", scope, (int)name.size, name.data,
        number_field(method, 5) != 0 ? "stream " : "", (int)in.size, in.data,
        number_field(method, 6) != 0 ? "stream " : "", (int)answer.size, answer.data));
}

static void put_service(struct bytes *out, const char *scope, struct piece description)
{
    char name[256];
    join(name, scope, description);
    for_each(description, 2, put_method_line, out, name);
}

static void put_file(struct bytes *out, const char *scope, struct piece file)
{
    const struct piece package = text_field(file, 2);
    if (package.size != strlen(scope) || memcmp(package.data, scope, package.size) != 0) {
        return;
    }
    for_each(file, 6, put_service, out, scope);
    for_each(file, 4, put_message, out, scope);
    for_each(file, 5, put_enum, out, scope);
}

static void list_fields(struct bytes *out)
{
    const struct piece set = {proto_descriptors, proto_descriptors_bytes};
    for_each(set, 1, put_file, out, "kvasir.v1");
    assert_status_ok(bytes_append(out, "", 1));
}

static bool has_line(const char *text, const char *line, size_t size)
{
    for (const char *at = text; (at = strstr(at, "\n")) != NULL; at++) {
        if (strncmp(at + 1, line, size) == 0 && at[1 + size] == '\n') {
            return true;
        }
    }
    return strncmp(text, line, size) == 0 && text[size] == '\n';
}

static size_t count_missing(const char *what, const char *from, const char *in)
{
    size_t n = 0;
    for (const char *line = from; *line != '\0';) {
        const size_t size = strcspn(line, "\n");
        if (size > 0 && !has_line(in, line, size)) {
            print_error("%s: %.*s\n", what, (int)size, line);
            n++;
        }
        line += size + (line[size] == '\n');
    }
    return n;
}

static void test_wire_fields_are_append_only(void **state)
{
    const char *path = *state;
    struct bytes now, golden;
    bytes_init(&now, MAX_BYTES);
    bytes_init(&golden, MAX_BYTES);
    list_fields(&now);
    if (getenv("KVASIR_UPDATE_GOLDEN") != NULL) {
        test_write_file(path, now.data, now.size - 1);
    }
    assert_status_ok(file_read(path, MAX_BYTES, &golden));
    assert_status_ok(bytes_append(&golden, "", 1));
    assert_int_equal(count_missing("on the wire before, now gone or changed", (char *)golden.data,
                                   (char *)now.data),
                     0);
    assert_int_equal(count_missing("new, to be appended to wire_fields.golden", (char *)now.data,
                                   (char *)golden.data),
                     0);
    // The check itself can fail.
    assert_int_equal(count_missing("(expected)", "kvasir.v1.TokenIds.ids = 2 repeated uint32\n",
                                   (char *)now.data),
                     1);
    bytes_destroy(&golden);
    bytes_destroy(&now);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_prestate(test_wire_fields_are_append_only, argc > 1 ? argv[1] : NULL),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

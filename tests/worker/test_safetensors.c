#include "tests/support/test.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "worker/safetensors.h"

// ---- headers alone ----

static status_t parse(const char *text, size_t size, uint64_t data_bytes)
{
    struct safetensors file;
    const status_t s = safetensors_parse(text, size, data_bytes, "x.safetensors", &file);
    if (status_is_ok(&s)) {
        safetensors_close(&file);
    }
    return s;
}

static void test_safetensors_reads_a_header(void **state)
{
    (void)state;
    static const char text[] =
        "{\"__metadata__\":{\"format\":\"pt\"},"
        "\"b\":{\"dtype\":\"BF16\",\"shape\":[2,3],\"data_offsets\":[4,16]},"
        "\"a\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]},"
        "\"empty\":{\"dtype\":\"I64\",\"shape\":[0,7],\"data_offsets\":[4,4]}}   ";
    struct safetensors file;
    assert_status_ok(safetensors_parse(text, strlen(text), 16, "x.safetensors", &file));
    assert_int_equal(file.n_tensors, 3);

    const struct safetensors_tensor *b = safetensors_find(&file, "b");
    assert_non_null(b);
    assert_int_equal(b->dtype, DTYPE_BF16);
    assert_int_equal(b->n_dims, 2);
    assert_int_equal(b->shape[0], 2);
    assert_int_equal(b->shape[1], 3);
    assert_int_equal(b->size_bytes, 12);
    assert_int_equal(b->offset_bytes, 8 + strlen(text) + 4);

    const struct safetensors_tensor *a = safetensors_find(&file, "a");
    assert_non_null(a);
    assert_int_equal(a->n_dims, 0);
    assert_int_equal(a->size_bytes, 4);
    assert_int_equal(safetensors_find(&file, "empty")->dtype, SAFETENSORS_OTHER_DTYPE);
    assert_null(safetensors_find(&file, "__metadata__"));
    assert_null(safetensors_find(&file, "c"));
    safetensors_close(&file);
    safetensors_close(&file); // a closed one is a zeroed one
}

struct bad_header {
    const char *text;
    uint64_t data_bytes;
    const char *says;
};

#define ONE(type, shape, offsets) \
    "{\"t\":{\"dtype\":" type ",\"shape\":" shape ",\"data_offsets\":" offsets "}}"

static const struct bad_header bad_headers[] = {
    {"", 0, "begin with '{'"},
    {" {}", 0, "begin with '{'"},
    {"\xef\xbb\xbf{}", 0, "begin with '{'"},
    {"[]", 0, "begin with '{'"},
    {"{", 0, "JSON"},
    {"{}x", 0, "JSON"},
    {"{}{}", 0, "JSON"},
    {"{\"\xff\":1}", 0, "JSON"},
    {"{\"a\\u0000b\":{}}", 0, "JSON"},
    {"{\"\\ud800\":{}}", 0, "JSON"},
    {"{\"t\":1}", 0, "must be an object"},
    {"{\"t\":{}}", 0, "dtype, shape and data_offsets"},
    {"{\"t\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
     "\"t\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}",
     1, "duplicate"},
    {"{\"t\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1,
     "duplicate"},
    {"{\"t\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1],\"x\":1}}", 1, "nothing else"},
    {"{\"\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "tensor name"},
    {"{\"a\\nb\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "tensor name"},
    {"{\"\\u001b[31m\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "tensor name"},
    {"{\"__metadata__\":[]}", 0, "__metadata__"},
    {"{\"__metadata__\":{\"a\":1}}", 0, "__metadata__"},
    {"{\"__metadata__\":{\"a\":{\"b\":[1]}}}", 0, "deeper"},
    {ONE("\"F128\"", "[1]", "[0,16]"), 16, "tensor t: dtype"},
    {ONE("7", "[1]", "[0,4]"), 4, "tensor t: dtype must be a string"},
    {ONE("\"U8\"", "7", "[0,7]"), 7, "tensor t: shape must be an array"},
    {ONE("\"U8\"", "[-1]", "[0,1]"), 1, "none negative"},
    {ONE("\"U8\"", "[1e3]", "[0,1000]"), 1000, "integers"},
    {ONE("\"U8\"", "[1.0]", "[0,1]"), 1, "integers"},
    {ONE("\"U8\"", "[true]", "[0,1]"), 1, "integers"},
    {ONE("\"U8\"", "[18446744073709551616]", "[0,1]"), 1, "JSON"},
    {ONE("\"U8\"", "[4294967296,4294967296]", "[0,0]"), 0, "64 bits"},
    {ONE("\"F64\"", "[9223372036854775807]", "[0,8]"), 8, "64 bits"},
    {ONE("\"F4\"", "[3]", "[0,1]"), 1, "whole byte"},
    {ONE("\"U8\"", "[1,1,1,1,1,1,1,1,1]", "[0,1]"), 1, "9 dimensions"},
    {ONE("\"U8\"", "[1]", "[0]"), 1, "two integers"},
    {ONE("\"U8\"", "[1]", "[0,1,2]"), 1, "two integers"},
    {ONE("\"U8\"", "[1]", "[0,1.5]"), 1, "two integers"},
    {ONE("\"U8\"", "[1]", "{}"), 1, "two integers"},
    {ONE("\"U8\"", "[1]", "[-1,0]"), 1, "negative or reversed"},
    {ONE("\"U8\"", "[1]", "[1,0]"), 1, "negative or reversed"},
    {ONE("\"U8\"", "[1]", "[0,2]"), 2, "hold 2 bytes, dtype and shape need 1"},
    {ONE("\"U8\"", "[1]", "[0,0]"), 0, "hold 0 bytes, dtype and shape need 1"},
    {ONE("\"U8\"", "[4]", "[0,4]"), 3, "truncated"},
    {ONE("\"U8\"", "[4]", "[1,5]"), 5, "hole"},
    {ONE("\"U8\"", "[4]", "[0,4]"), 5, "trailing"},
    {"{}", 1, "trailing"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},"
     "\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[2,6]}}",
     6, "tensor b: begins at data byte 2"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},"
     "\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[5,9]}}",
     9, "tensor b: begins at data byte 5"},
};

static void test_safetensors_refuses_bad_headers(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof bad_headers / sizeof bad_headers[0]; i++) {
        const struct bad_header *bad = &bad_headers[i];
        const status_t s = parse(bad->text, strlen(bad->text), bad->data_bytes);
        if (s.code != STATUS_DATA_LOSS) {
            print_error("header %zu: %s\n", i, bad->text);
        }
        assert_status_says(s, STATUS_DATA_LOSS, bad->says);
        assert_status_says(s, STATUS_DATA_LOSS, "x.safetensors: ");
    }
}

/* Text into the middle of a buffer, without its NUL. */
static void put(char *to, const char *text)
{
    while (*text != '\0') {
        *to++ = *text++;
    }
}

static void test_safetensors_bounds_what_the_parser_sees(void **state)
{
    (void)state;
    const size_t size = (size_t)8 * 1024 * 1024;
    char *text = malloc(size);
    assert_non_null(text);

    memset(text, '[', size);
    text[0] = '{';
    assert_status_says(parse(text, size, 0), STATUS_DATA_LOSS, "nested deeper");

    // "{"m":[[],[],[] ...": shallow, but a container every three bytes.
    put(text, "{\"m\":[");
    for (size_t i = 6; i < size; i++) {
        text[i] = "[],"[(i - 6) % 3];
    }
    assert_status_code(parse(text, size, 0), STATUS_DATA_LOSS);

    // Whitespace is legal, however much.
    memset(text, ' ', size);
    text[0] = '{';
    text[size - 1] = '}';
    assert_status_ok(parse(text, size, 0));

    // A name of megabytes.
    memset(text, 'a', size);
    put(text, "{\"");
    put(text + size - 5, "\":{}}");
    assert_status_says(parse(text, size, 0), STATUS_DATA_LOSS, "tensor name");
    free(text);
}

static void test_safetensors_takes_many_tensors(void **state)
{
    (void)state;

    enum { N = 16000 };

    char *text = malloc((size_t)96 * N);
    assert_non_null(text);
    size_t at = 0;
    for (int i = 0; i < N; i++) {
        at += (size_t)sprintf(text + at,
                              "%c\"n%d\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[%d,%d]}",
                              i == 0 ? '{' : ',', (i * 7919) % N, 2 * i, 2 * i + 2);
    }
    text[at++] = '}';
    struct safetensors file;
    assert_status_ok(safetensors_parse(text, at, (uint64_t)2 * N, "x", &file));
    assert_int_equal(file.n_tensors, N);
    for (int i = 0; i < N; i += 97) {
        char name[16];
        sprintf(name, "n%d", (i * 7919) % N);
        assert_int_equal(safetensors_find(&file, name)->offset_bytes, 8 + at + 2 * (size_t)i);
    }
    safetensors_close(&file);
    free(text);
}

/* Every flipped byte and every cut of a good header is either refused or still a consistent table. */
static void test_safetensors_survives_mutations(void **state)
{
    (void)state;
    static const char good[] = "{\"__metadata__\":{\"format\":\"pt\"},"
                               "\"a\":{\"dtype\":\"F32\",\"shape\":[1,3],\"data_offsets\":[0,12]},"
                               "\"b\":{\"dtype\":\"F16\",\"shape\":[2],\"data_offsets\":[12,16]}}";
    const size_t size = sizeof good - 1;
    char text[sizeof good];
    for (int round = 0; round < 20000; round++) {
        memcpy(text, good, sizeof good);
        const uint64_t n_changes = 1 + test_random_below(3);
        for (uint64_t i = 0; i < n_changes; i++) {
            text[test_random_below(size)] = (char)test_random_below(256);
        }
        struct safetensors file;
        const status_t s =
            safetensors_parse(text, size - (size_t)test_random_below(3), 16, "x", &file);
        if (status_is_ok(&s)) {
            uint64_t bytes = 0;
            for (size_t i = 0; i < file.n_tensors; i++) {
                bytes += file.tensors[i].size_bytes;
            }
            assert_int_equal(bytes, 16);
            safetensors_close(&file);
        } else {
            assert_true(s.code == STATUS_DATA_LOSS);
        }
    }
}

// ---- files ----

struct files {
    char dir[TEST_PATH_BYTES];
};

static int make_dir(void **state)
{
    struct files *files = malloc(sizeof *files);
    test_tmpdir(files->dir);
    *state = files;
    return 0;
}

static int remove_dir(void **state)
{
    struct files *files = *state;
    test_tmpdir_remove(files->dir);
    free(files);
    return 0;
}

/* N, then the header text, then n_data bytes 0, 1, 2, .. */
static void write_with(const struct files *files, uint64_t n, const char *header, size_t n_data)
{
    char path[TEST_PATH_BYTES + 32];
    snprintf(path, sizeof path, "%s/m.safetensors", files->dir);
    uint8_t content[4096];
    for (int i = 0; i < 8; i++) {
        content[i] = (uint8_t)(n >> (8 * i));
    }
    const size_t length = strlen(header);
    assert_true(8 + length + n_data <= sizeof content);
    put((char *)content + 8, header);
    for (size_t i = 0; i < n_data; i++) {
        content[8 + length + i] = (uint8_t)i;
    }
    test_write_file(path, content, 8 + length + n_data);
}

static status_t open_m(const struct files *files)
{
    struct safetensors file;
    const status_t s = safetensors_open(files->dir, "m.safetensors", &file);
    if (status_is_ok(&s)) {
        safetensors_close(&file);
    }
    return s;
}

static const char small_header[] = "{\"a\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[2,5]},"
                                   "\"b\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}";

static void test_safetensors_reads_ranges(void **state)
{
    const struct files *files = *state;
    write_with(files, strlen(small_header), small_header, 5);
    struct safetensors file;
    assert_status_ok(safetensors_open(files->dir, "m.safetensors", &file));
    const struct safetensors_tensor *a = safetensors_find(&file, "a");
    uint8_t got[4] = {99, 99, 99, 99};
    assert_status_ok(safetensors_read(&file, a, 1, 2, got));
    assert_int_equal(got[0], 3);
    assert_int_equal(got[1], 4);
    assert_int_equal(got[2], 99);
    assert_status_ok(safetensors_read(&file, a, 3, 0, got));
    assert_status_code(safetensors_read(&file, a, 2, 2, got), STATUS_INTERNAL);
    assert_status_code(safetensors_read(&file, a, UINT64_MAX, 2, got), STATUS_INTERNAL);

    // The file shrinks under the reader: an error, no signal.
    char path[TEST_PATH_BYTES + 32];
    snprintf(path, sizeof path, "%s/m.safetensors", files->dir);
    assert_int_equal(truncate(path, (off_t)(8 + strlen(small_header) + 3)), 0);
    assert_status_says(safetensors_read(&file, a, 0, 3, got), STATUS_DATA_LOSS, "shrank");
    assert_status_says(safetensors_read(&file, a, 0, 3, got), STATUS_DATA_LOSS, "tensor a");
    safetensors_close(&file);
}

static void test_safetensors_bounds_the_header_size(void **state)
{
    const struct files *files = *state;
    const uint64_t length = strlen(small_header);
    write_with(files, length, small_header, 5);
    assert_status_ok(open_m(files));
    static const uint64_t sizes[] = {
        0, 1, 7, (uint64_t)1 << 31, 1000, (uint64_t)1 << 63, 100000001, UINT64_MAX};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        write_with(files, sizes[i], small_header, 5);
        assert_status_code(open_m(files), STATUS_DATA_LOSS);
    }
    write_with(files, length + 6, small_header, 5); // one byte more than there is
    assert_status_says(open_m(files), STATUS_DATA_LOSS, "truncated");
    write_with(files, length, small_header, 4);
    assert_status_says(open_m(files), STATUS_DATA_LOSS, "truncated");
    write_with(files, length, small_header, 6);
    assert_status_says(open_m(files), STATUS_DATA_LOSS, "trailing");
}

static void test_safetensors_refuses_tiny_files(void **state)
{
    const struct files *files = *state;
    char path[TEST_PATH_BYTES + 32];
    snprintf(path, sizeof path, "%s/m.safetensors", files->dir);
    static const uint8_t zeros[16];
    for (size_t size = 0; size < sizeof zeros; size++) {
        test_write_file(path, zeros, size);
        assert_status_says(open_m(files), STATUS_DATA_LOSS, "m.safetensors");
    }
    // Two bytes of header, no tensor: legal.
    test_write_file(path, "\2\0\0\0\0\0\0\0{}", 10);
    assert_status_ok(open_m(files));
}

static void test_safetensors_knows_a_git_lfs_pointer(void **state)
{
    const struct files *files = *state;
    char path[TEST_PATH_BYTES + 32];
    snprintf(path, sizeof path, "%s/m.safetensors", files->dir);
    static const char pointer[] =
        "version https://git-lfs.github.com/spec/v1\n"
        "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
        "size 12345\n";
    test_write_file(path, pointer, sizeof pointer - 1);
    assert_status_says(open_m(files), STATUS_DATA_LOSS, "git-lfs pointer");
    assert_status_says(open_m(files), STATUS_DATA_LOSS, STATUS_FIX);
}

static void test_safetensors_refuses_what_is_not_a_file(void **state)
{
    const struct files *files = *state;
    char path[TEST_PATH_BYTES + 32];
    snprintf(path, sizeof path, "%s/m.safetensors", files->dir);
    assert_status_code(open_m(files), STATUS_NOT_FOUND);

    assert_int_equal(mkdir(path, 0700), 0);
    assert_status_says(open_m(files), STATUS_DATA_LOSS, "not a regular file");
    assert_int_equal(rmdir(path), 0);

    assert_int_equal(mkfifo(path, 0600), 0); // must not wait for a writer
    assert_status_says(open_m(files), STATUS_DATA_LOSS, "not a regular file");
    assert_int_equal(unlink(path), 0);

    assert_int_equal(symlink("m.safetensors", path), 0);
    assert_status_code(open_m(files), STATUS_DATA_LOSS);
    assert_int_equal(unlink(path), 0);

    assert_int_equal(symlink("/etc/passwd", path), 0);
    assert_status_says(open_m(files), STATUS_DATA_LOSS, "leads out of the directory");
    assert_int_equal(unlink(path), 0);
}

static void test_safetensors_refuses_names_that_lead_out(void **state)
{
    const struct files *files = *state;
    static const char *const names[] = {"",    ".",      "..",       "../m.safetensors",
                                        "a/b", "/etc/x", "a\\b.saf", "a\nb"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        struct safetensors file;
        assert_status_code(safetensors_open(files->dir, names[i], &file), STATUS_DATA_LOSS);
    }
    char name[400];
    memset(name, 'a', sizeof name);
    name[sizeof name - 1] = '\0';
    struct safetensors file;
    assert_status_code(safetensors_open(files->dir, name, &file), STATUS_DATA_LOSS);
}

static void test_safetensors_follows_a_cache_blob_only(void **state)
{
    const struct files *files = *state;
    char snapshot[TEST_PATH_BYTES + 64];
    char blob[TEST_PATH_BYTES + 128];
    char link[TEST_PATH_BYTES + 128];
    snprintf(snapshot, sizeof snapshot, "%s/snapshots", files->dir);
    assert_int_equal(mkdir(snapshot, 0700), 0);
    snprintf(snapshot, sizeof snapshot, "%s/snapshots/c0ffee", files->dir);
    assert_int_equal(mkdir(snapshot, 0700), 0);
    snprintf(blob, sizeof blob, "%s/blobs", files->dir);
    assert_int_equal(mkdir(blob, 0700), 0);
    static const char hash[] = "0123456789abcdef0123456789abcdef01234567";
    snprintf(blob, sizeof blob, "%s/blobs/%s", files->dir, hash);
    test_write_file(blob, "\2\0\0\0\0\0\0\0{}", 10);

    snprintf(link, sizeof link, "%s/m.safetensors", snapshot);
    char target[128];
    snprintf(target, sizeof target, "../../blobs/%s", hash);
    assert_int_equal(symlink(target, link), 0);
    struct safetensors file;
    assert_status_ok(safetensors_open(snapshot, "m.safetensors", &file));
    safetensors_close(&file);

    assert_int_equal(unlink(link), 0);
    assert_int_equal(symlink("../../blobs/../blobs/0123456789abcdef0123456789abcdef01234567", link),
                     0);
    assert_status_says(safetensors_open(snapshot, "m.safetensors", &file), STATUS_DATA_LOSS,
                       "leads out");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_safetensors_reads_a_header),
        cmocka_unit_test(test_safetensors_refuses_bad_headers),
        cmocka_unit_test(test_safetensors_bounds_what_the_parser_sees),
        cmocka_unit_test(test_safetensors_takes_many_tensors),
        cmocka_unit_test(test_safetensors_survives_mutations),
        cmocka_unit_test_setup_teardown(test_safetensors_reads_ranges, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(test_safetensors_bounds_the_header_size, make_dir,
                                        remove_dir),
        cmocka_unit_test_setup_teardown(test_safetensors_refuses_tiny_files, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(test_safetensors_knows_a_git_lfs_pointer, make_dir,
                                        remove_dir),
        cmocka_unit_test_setup_teardown(test_safetensors_refuses_what_is_not_a_file, make_dir,
                                        remove_dir),
        cmocka_unit_test_setup_teardown(test_safetensors_refuses_names_that_lead_out, make_dir,
                                        remove_dir),
        cmocka_unit_test_setup_teardown(test_safetensors_follows_a_cache_blob_only, make_dir,
                                        remove_dir),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

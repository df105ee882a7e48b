#include "tests/support/test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "worker/checkpoint.h"

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

static void write_text(const struct files *files, const char *name, const char *text)
{
    char path[TEST_PATH_BYTES + 64];
    snprintf(path, sizeof path, "%s/%s", files->dir, name);
    test_write_file(path, text, strlen(text));
}

/* A file with one U8 tensor of n bytes, each `fill`. */
static void write_shard(const struct files *files, const char *name, const char *tensor, size_t n,
                        uint8_t fill)
{
    uint8_t content[1024] = {0};
    const int length = snprintf(
        (char *)content + 8, 512,
        "{\"%s\":{\"dtype\":\"U8\",\"shape\":[%zu],\"data_offsets\":[0,%zu]}}", tensor, n, n);
    content[0] = (uint8_t)length;
    memset(content + 8 + length, fill, n);
    char path[TEST_PATH_BYTES + 64];
    snprintf(path, sizeof path, "%s/%s", files->dir, name);
    test_write_file(path, content, 8 + (size_t)length + n);
}

static status_t open_dir(const struct files *files)
{
    struct checkpoint *checkpoint;
    const status_t s = checkpoint_open(files->dir, &checkpoint);
    if (status_is_ok(&s)) {
        checkpoint_close(checkpoint);
    }
    return s;
}

#define INDEX "model.safetensors.index.json"

static void test_checkpoint_reads_a_single_file(void **state)
{
    const struct files *files = *state;
    write_shard(files, "model.safetensors", "a.weight", 10, 7);
    struct checkpoint *checkpoint;
    assert_status_ok(checkpoint_open(files->dir, &checkpoint));
    assert_int_equal(checkpoint_n_tensors(checkpoint), 1);
    checkpoint_tensor_t tensor;
    assert_status_ok(checkpoint_find(checkpoint, "a.weight", &tensor));
    assert_int_equal(tensor.tensor->size_bytes, 10);
    uint8_t got[10];
    assert_status_ok(checkpoint_read(checkpoint, tensor, 4, 6, got));
    assert_int_equal(got[5], 7);
    assert_int_equal(checkpoint_bytes_read(checkpoint), 6);
    assert_status_says(checkpoint_find(checkpoint, "b.weight", &tensor), STATUS_NOT_FOUND,
                       "no tensor b.weight");
    checkpoint_close(checkpoint);
    checkpoint_close(NULL);
}

static void test_checkpoint_reads_shards(void **state)
{
    const struct files *files = *state;
    write_shard(files, "s-2.safetensors", "b", 3, 2);
    write_shard(files, "s-1.safetensors", "c", 4, 1);
    write_text(files, INDEX,
               "{\"metadata\":{\"total_size\":7},"
               "\"weight_map\":{\"c\":\"s-1.safetensors\",\"b\":\"s-2.safetensors\"}}");
    struct checkpoint *checkpoint;
    assert_status_ok(checkpoint_open(files->dir, &checkpoint));
    assert_int_equal(checkpoint_n_tensors(checkpoint), 2);
    assert_string_equal(checkpoint_tensor_at(checkpoint, 0).tensor->name, "b");
    checkpoint_tensor_t tensor;
    uint8_t got[4];
    assert_status_ok(checkpoint_find(checkpoint, "b", &tensor));
    assert_status_ok(checkpoint_read(checkpoint, tensor, 0, 3, got));
    assert_int_equal(got[2], 2);
    assert_status_ok(checkpoint_find(checkpoint, "c", &tensor));
    assert_status_ok(checkpoint_read(checkpoint, tensor, 0, 4, got));
    assert_int_equal(got[3], 1);
    checkpoint_close(checkpoint);
}

static void test_checkpoint_refuses_bad_indexes(void **state)
{
    const struct files *files = *state;
    write_shard(files, "s-1.safetensors", "c", 4, 1);

    static const struct {
        const char *text;
        int code;
        const char *says;
    } bad[] = {
        {"", STATUS_DATA_LOSS, INDEX},
        {"[]", STATUS_DATA_LOSS, "weight_map"},
        {"{}", STATUS_DATA_LOSS, "weight_map"},
        {"{\"weight_map\":{}}", STATUS_DATA_LOSS, "weight_map"},
        {"{\"weight_map\":[]}", STATUS_DATA_LOSS, "weight_map"},
        {"{\"weight_map\":{\"c\":1}}", STATUS_DATA_LOSS, "weight_map"},
        {"{\"weight_map\":{\"c\":\"s-1.safetensors\",\"c\":\"s-1.safetensors\"}}", STATUS_DATA_LOSS,
         INDEX},
        {"{\"weight_map\":{\"c\":\"s-9.safetensors\"}}", STATUS_NOT_FOUND, "s-9.safetensors"},
        {"{\"weight_map\":{\"d\":\"s-1.safetensors\"}}", STATUS_DATA_LOSS, "tensor d"},
        {"{\"weight_map\":{\"d\\u001b\":\"s-1.safetensors\"}}", STATUS_DATA_LOSS, "weight_map"},
        {"{\"weight_map\":{\"c\":\"../s-1.safetensors\"}}", STATUS_DATA_LOSS, "leads out"},
        {"{\"weight_map\":{\"c\":\"/etc/passwd\"}}", STATUS_DATA_LOSS, "leads out"},
        {"{\"weight_map\":{\"c\":\"..\\\\x\"}}", STATUS_DATA_LOSS, "leads out"},
        {"{\"weight_map\":{\"c\":\"s\\u0000-1\"}}", STATUS_DATA_LOSS, INDEX},
        {"{\"weight_map\":{\"c\":\"\"}}", STATUS_DATA_LOSS, "empty"},
        {"{\"weight_map\":{\"c\":\"" INDEX "\"}}", STATUS_DATA_LOSS, INDEX},
    };

    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        write_text(files, INDEX, bad[i].text);
        const status_t s = open_dir(files);
        if (s.code != bad[i].code) {
            print_error("index %zu: %s\n", i, bad[i].text);
        }
        assert_status_says(s, bad[i].code, bad[i].says);
    }
}

static void test_checkpoint_bounds_the_number_of_shards(void **state)
{
    const struct files *files = *state;
    const size_t n = CHECKPOINT_MAX_SHARDS + 1;
    char *text = malloc(64 * n + 64);
    assert_non_null(text);
    size_t at = (size_t)sprintf(text, "{\"weight_map\":{");
    for (size_t i = 0; i < n; i++) {
        char name[32];
        sprintf(name, "s%04zu", i);
        // One file under many names would be one shard: make hard links of one.
        if (i == 0) {
            write_shard(files, name, "t", 1, 0);
        } else {
            char from[TEST_PATH_BYTES + 64];
            char to[TEST_PATH_BYTES + 64];
            snprintf(from, sizeof from, "%s/s0000", files->dir);
            snprintf(to, sizeof to, "%s/%s", files->dir, name);
            assert_int_equal(link(from, to), 0);
        }
        at += (size_t)sprintf(text + at, "%s\"t%zu\":\"%s\"", i > 0 ? "," : "", i, name);
    }
    sprintf(text + at, "}}");
    write_text(files, INDEX, text);
    const status_t s = open_dir(files);
    // With a low limit on open files that limit is met first.
    assert_true(s.code == STATUS_DATA_LOSS || s.code == STATUS_RESOURCE_EXHAUSTED);
    free(text);
}

static void test_checkpoint_says_what_it_found_instead(void **state)
{
    const struct files *files = *state;
    assert_status_says(open_dir(files), STATUS_NOT_FOUND, "has neither");
    write_text(files, "pytorch_model.bin", "x");
    assert_status_says(open_dir(files), STATUS_NOT_FOUND, ".bin files");
    assert_status_says(open_dir(files), STATUS_NOT_FOUND, STATUS_FIX);

    struct checkpoint *checkpoint;
    assert_status_says(checkpoint_open("/nonexistent/model", &checkpoint), STATUS_NOT_FOUND,
                       "/nonexistent/model");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_checkpoint_reads_a_single_file, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(test_checkpoint_reads_shards, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(test_checkpoint_refuses_bad_indexes, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(test_checkpoint_bounds_the_number_of_shards, make_dir,
                                        remove_dir),
        cmocka_unit_test_setup_teardown(test_checkpoint_says_what_it_found_instead, make_dir,
                                        remove_dir),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

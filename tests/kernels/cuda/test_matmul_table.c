#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "kernels/cuda/matmul.h"
#include "tests/support/test.h"

static const struct cuda_matmul_key key = {.device = "NVIDIA A100-SXM4-80GB",
                                           .library_version = 130100,
                                           .driver_version = 13000};

static struct cuda_matmul_choice random_choice(void)
{
    struct cuda_matmul_choice choice = {
        .shape = {.n_out = 1 + (int32_t)test_random_below(40000),
                  .n_in = 1 + (int32_t)test_random_below(16),
                  .n_rows = 1 << test_random_below(14),
                  .out_dtype = test_random_below(2) ? DTYPE_F32 : DTYPE_BF16,
                  .alignment = 2 << test_random_below(4)},
        .time_us = (float)(1 + test_random_below(100000)) / 8.0f};
    choice.way = choice.shape.n_rows <= CUDA_MATMUL_SMALL_ROWS && test_random_below(2)
                     ? CUDA_MATMUL_SMALL
                     : CUDA_MATMUL_LIBRARY;
    for (int i = 0; choice.way == CUDA_MATMUL_LIBRARY && i < CUDA_MATMUL_ALGORITHM_WORDS; i++) {
        choice.algorithm.words[i] = test_random_u64() >> test_random_below(64);
    }
    return choice;
}

static struct cuda_matmul_table *table_new(void)
{
    struct cuda_matmul_table *table = calloc(1, sizeof *table);
    assert_non_null(table);
    return table;
}

static void assert_same_choice(const struct cuda_matmul_choice *got,
                               const struct cuda_matmul_choice *want)
{
    assert_non_null(got);
    assert_memory_equal(&got->shape, &want->shape, sizeof got->shape);
    assert_int_equal(got->way, want->way);
    assert_memory_equal(&got->algorithm, &want->algorithm, sizeof got->algorithm);
    assert_close(got->time_us, want->time_us, 1e-3, 0.0);
}

static void test_matmul_table_buckets_round_up(void **state)
{
    (void)state;
    static const int32_t rows[][2] = {{1, 1},       {2, 2},         {3, 4},           {8, 8},
                                      {9, 16},      {100, 128},     {4097, 8192},     {8192, 8192},
                                      {8193, 8192}, {100000, 8192}, {INT32_MAX, 8192}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        assert_int_equal(cuda_matmul_table_bucket(rows[i][0]), rows[i][1]);
    }
}

static void test_matmul_table_finds_what_was_put(void **state)
{
    (void)state;

    enum { N = 300 };

    static struct cuda_matmul_choice choices[N];
    struct cuda_matmul_table *table = table_new();
    assert_null(cuda_matmul_table_find(table, &choices[0].shape));
    for (int i = 0; i < N; i++) {
        choices[i] = random_choice();
        choices[i].shape.n_out = i; // each once
        cuda_matmul_table_put(table, &choices[i]);
    }
    for (int i = 0; i < N; i++) {
        assert_same_choice(cuda_matmul_table_find(table, &choices[i].shape), &choices[i]);
        struct cuda_matmul_shape other = choices[i].shape;
        other.n_in += 100;
        assert_null(cuda_matmul_table_find(table, &other));
    }
    choices[7].time_us *= 2.0f;
    cuda_matmul_table_put(table, &choices[7]); // replaces
    assert_int_equal(table->n, N);
    assert_same_choice(cuda_matmul_table_find(table, &choices[7].shape), &choices[7]);
    free(table);
}

static void test_matmul_table_stops_when_full(void **state)
{
    (void)state;
    struct cuda_matmul_table *table = table_new();
    struct cuda_matmul_choice choice = random_choice();
    for (int i = 0; i < CUDA_MATMUL_MAX_CHOICES + 5; i++) {
        choice.shape.n_out = CUDA_MATMUL_MAX_CHOICES + 5 - i;
        cuda_matmul_table_put(table, &choice);
    }
    assert_int_equal(table->n, CUDA_MATMUL_MAX_CHOICES);
    assert_null(cuda_matmul_table_find(table, &choice.shape));
    free(table);
}

// ---- on disk ----

static void test_matmul_table_path_names_the_device(void **state)
{
    (void)state;
    char path[TEST_PATH_BYTES];
    assert_status_ok(cuda_matmul_table_path("/var/cache", &key, path));
    assert_string_equal(path, "/var/cache/matmul-NVIDIA-A100-SXM4-80GB.txt");
    struct cuda_matmul_key strange = key;
    (void)snprintf(strange.device, sizeof strange.device, "../a b.txt");
    assert_status_ok(cuda_matmul_table_path("x", &strange, path));
    assert_string_equal(path, "x/matmul----a-b-txt.txt");
}

static int files_in(const char *dir)
{
    DIR *const d = opendir(dir);
    assert_non_null(d);
    int n = 0;
    for (const struct dirent *e = readdir(d); e != NULL; e = readdir(d)) {
        n += e->d_name[0] != '.';
    }
    (void)closedir(d);
    return n;
}

static void test_matmul_table_comes_back_from_disk(void **state)
{
    (void)state;
    char dir[TEST_PATH_BYTES], deep[TEST_PATH_BYTES + 32], path[TEST_PATH_BYTES];
    test_tmpdir(dir);
    (void)snprintf(deep, sizeof deep, "%s/not/there", dir);
    assert_status_ok(cuda_matmul_table_path(deep, &key, path));
    struct cuda_matmul_table *want = table_new(), *got = table_new();
    assert_status_code(cuda_matmul_table_read(path, &key, got), STATUS_NOT_FOUND);
    for (int i = 0; i < 100; i++) {
        const struct cuda_matmul_choice choice = random_choice();
        cuda_matmul_table_put(want, &choice);
    }
    struct cuda_matmul_choice guess = random_choice();
    guess.shape.n_in = 99999;
    guess.time_us = 0.0f; // not measured: not kept
    cuda_matmul_table_put(want, &guess);
    assert_status_ok(cuda_matmul_table_write(path, &key, want));
    assert_status_ok(cuda_matmul_table_write(path, &key, want)); // over the old one
    assert_int_equal(files_in(deep), 1);
    assert_status_ok(cuda_matmul_table_read(path, &key, got));
    assert_int_equal(got->n, want->n - 1);
    assert_null(cuda_matmul_table_find(got, &guess.shape));
    for (int32_t i = 0; i < got->n; i++) {
        assert_same_choice(&got->choices[i], cuda_matmul_table_find(want, &got->choices[i].shape));
    }
    free(want);
    free(got);
    test_tmpdir_remove(dir);
}

static void test_matmul_table_of_another_key_is_not_found(void **state)
{
    (void)state;
    char dir[TEST_PATH_BYTES], path[TEST_PATH_BYTES];
    test_tmpdir(dir);
    assert_status_ok(cuda_matmul_table_path(dir, &key, path));
    struct cuda_matmul_table *table = table_new();
    assert_status_ok(cuda_matmul_table_write(path, &key, table));
    assert_status_ok(cuda_matmul_table_read(path, &key, table));
    struct cuda_matmul_key others[3] = {key, key, key};
    others[0].library_version++;
    others[1].driver_version++;
    (void)snprintf(others[2].device, sizeof others[2].device, "NVIDIA A100-SXM4-80GB 2");
    for (size_t i = 0; i < 3; i++) {
        assert_status_code(cuda_matmul_table_read(path, &others[i], table), STATUS_NOT_FOUND);
    }
    free(table);
    test_tmpdir_remove(dir);
}

#define KEY_LINES                                     \
    "kvasir matmul 1\ndevice NVIDIA A100-SXM4-80GB\n" \
    "cublaslt 130100 driver 13000\n"
#define SMALL_LINE   "4096 4096 8 2 16 small 9.5\n"
#define LIBRARY_LINE "4096 4096 16 2 16 library 9.5 1 2 3 4 5 6 7 ffffffffffffffff\n"

static void test_matmul_table_takes_no_damaged_file(void **state)
{
    (void)state;
    static const char *const good = KEY_LINES SMALL_LINE LIBRARY_LINE "end 2\n";
    static const char *const bad[] = {
        "",
        "something else\n",
        KEY_LINES SMALL_LINE,                  // no end
        KEY_LINES SMALL_LINE "end 2\n",        // a line is missing
        KEY_LINES SMALL_LINE "end 1\nend 1\n", // more behind the end
        KEY_LINES SMALL_LINE "end 1",          // cut
        KEY_LINES "4096 4096 8 2 16 small\nend 1\n",
        KEY_LINES "4096 4096 16 2 16 small 9.5\nend 1\n", // too many rows for the kernel
        KEY_LINES "4096 4096 7 2 16 small 9.5\nend 1\n",  // no bucket
        KEY_LINES "4096 4096 8 1 16 small 9.5\nend 1\n",  // float16
        KEY_LINES "4096 4096 8 2 3 small 9.5\nend 1\n",   // alignment
        KEY_LINES "-1 4096 8 2 16 small 9.5\nend 1\n",
        KEY_LINES "4096 4096 8 2 16 small nan\nend 1\n",
        KEY_LINES "4096 4096 8 2 16 smaller 9.5\nend 1\n",
        KEY_LINES "4096 4096 8 2 16 small 9.5 1\nend 1\n", // too much in the line
        KEY_LINES "4096 4096 16 2 16 library 9.5 1 2 3 4 5 6 7\nend 1\n",
        KEY_LINES "4096 4096 16 2 16 library 9.5 1 2 3 4 5 6 7 x\nend 1\n",
    };
    char dir[TEST_PATH_BYTES], path[TEST_PATH_BYTES];
    test_tmpdir(dir);
    assert_status_ok(cuda_matmul_table_path(dir, &key, path));
    struct cuda_matmul_table *table = table_new();
    test_write_file(path, good, strlen(good));
    assert_status_ok(cuda_matmul_table_read(path, &key, table));
    assert_int_equal(table->n, 2);
    assert_int_equal(table->choices[1].algorithm.words[7], UINT64_MAX);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        test_write_file(path, bad[i], strlen(bad[i]));
        assert_status_code(cuda_matmul_table_read(path, &key, table), STATUS_DATA_LOSS);
        assert_int_equal(table->n, 2); // as it was
    }
    free(table);
    test_tmpdir_remove(dir);
}

static void test_matmul_table_write_says_where_it_cannot(void **state)
{
    (void)state;
    char dir[TEST_PATH_BYTES], path[TEST_PATH_BYTES + 32];
    test_tmpdir(dir);
    (void)snprintf(path, sizeof path, "%s/file", dir);
    test_write_file(path, "x", 1);
    (void)snprintf(path, sizeof path, "%s/file/matmul.txt", dir);
    struct cuda_matmul_table *table = table_new();
    assert_status_says(cuda_matmul_table_write(path, &key, table), STATUS_PERMISSION_DENIED,
                       "file/matmul.txt");
    free(table);
    test_tmpdir_remove(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_matmul_table_buckets_round_up),
        cmocka_unit_test(test_matmul_table_finds_what_was_put),
        cmocka_unit_test(test_matmul_table_stops_when_full),
        cmocka_unit_test(test_matmul_table_path_names_the_device),
        cmocka_unit_test(test_matmul_table_comes_back_from_disk),
        cmocka_unit_test(test_matmul_table_of_another_key_is_not_found),
        cmocka_unit_test(test_matmul_table_takes_no_damaged_file),
        cmocka_unit_test(test_matmul_table_write_says_where_it_cannot),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* What is measured and what is kept: on the simulator alone, where every call takes as long as any other. */
#include "kernels/cuda/matmul.h"
#include "tests/kernels/cuda/cuda_check.h"

enum { N_LAYERS = 3, N_SHAPES = 2, N_BUCKETS = 6 /* 1 .. 32 */, MAX_ROWS = 20 };

struct setting {
    struct backend_stream *stream;
    struct matrix *weights[N_LAYERS];
    struct matmul_use uses[N_LAYERS];
};

/* Two layers of one shape, and a head of another. */
static struct setting setting_new(void)
{
    static const int32_t sizes[N_LAYERS][2] = {{24, 40}, {24, 40}, {33, 42}};
    struct setting s = {.stream = check_stream()};
    for (int i = 0; i < N_LAYERS; i++) {
        const int32_t n_out = sizes[i][0], n_in = sizes[i][1];
        float *w = random_bf16_values((size_t)n_out * (size_t)n_in, 1.0);
        assert_status_ok(cuda_matrix_new(s.stream, DTYPE_BF16, n_out, n_in, &s.weights[i]));
        const struct matrix_write_args write = {.matrix = s.weights[i],
                                                .n_rows = n_out,
                                                .src = w,
                                                .src_dtype = DTYPE_F32,
                                                .ld_src = n_in};
        assert_status_ok(cuda_matrix_write(s.stream, &write));
        s.uses[i] = (struct matmul_use){.weight = s.weights[i],
                                        .out_dtype = i == 2 ? DTYPE_F32 : DTYPE_BF16};
        free(w);
    }
    return s;
}

static void setting_free(struct setting *s)
{
    for (int i = 0; i < N_LAYERS; i++) {
        cuda_matrix_free(s->weights[i]);
    }
    check_stream_done(s->stream);
}

/* Tunes; returns the status of the cache. */
static status_t tune(struct setting *s, const char *cache_dir)
{
    const struct matmul_tune_args args = {
        .uses = s->uses, .n_uses = N_LAYERS, .max_rows = MAX_ROWS, .cache_dir = cache_dir};
    status_t cache = status_ok();
    assert_status_ok(cuda_matmul_tune(s->stream, &args, &cache));
    return cache;
}

static const struct cuda_matmul_table *table_of(const struct setting *s)
{
    struct cuda_matmul *matmul = NULL;
    assert_status_ok(cuda_matmul_get(s->stream, &matmul));
    return &matmul->table;
}

static void test_matmul_tune_measures_every_bucket(void **state)
{
    (void)state;
    struct setting s = setting_new();
    assert_status_ok(tune(&s, NULL));
    const struct cuda_matmul_table *table = table_of(&s);
    assert_int_equal(table->n, N_SHAPES * N_BUCKETS);
    for (int32_t i = 0; i < table->n; i++) {
        const struct cuda_matmul_choice *choice = &table->choices[i];
        const bool is_small = choice->shape.n_rows <= CUDA_MATMUL_SMALL_ROWS;
        assert_true(choice->time_us > 0.0f);
        assert_int_equal(choice->way, is_small ? CUDA_MATMUL_SMALL : CUDA_MATMUL_LIBRARY);
        assert_int_equal(choice->shape.alignment, choice->shape.n_in == 40 ? 16 : 4);
    }
    setting_free(&s);
}

/* The calls of a step find what was measured: nothing is added. */
static void test_matmul_tune_measures_what_is_called(void **state)
{
    (void)state;
    struct setting s = setting_new();
    assert_status_ok(tune(&s, NULL));
    for (int i = 0; i < N_LAYERS; i++) {
        const struct matrix *w = s.weights[i];
        void *x = device_new(s.stream, (size_t)MAX_ROWS * (size_t)w->n_in * sizeof(uint16_t));
        void *out = device_new(s.stream, (size_t)MAX_ROWS * (size_t)w->n_out * sizeof(float));
        for (int32_t n_rows = 1; n_rows <= MAX_ROWS; n_rows++) {
            const struct matmul_args call = {.weight = w,
                                             .x = x,
                                             .ld_x = w->n_in,
                                             .n_rows = n_rows,
                                             .out = out,
                                             .ld_out = w->n_out,
                                             .out_dtype = s.uses[i].out_dtype};
            assert_status_ok(cuda_matmul(s.stream, &call));
        }
        device_free(s.stream, x);
        device_free(s.stream, out);
    }
    assert_int_equal(table_of(&s)->n, N_SHAPES * N_BUCKETS);
    setting_free(&s);
}

/* An int8 matrix of a tuned shape leaves the table as it is, and its calls do not look into it. */
static void test_matmul_tune_leaves_int8_alone(void **state)
{
    (void)state;
    struct setting s = setting_new();
    struct matrix *const plain = s.weights[1];
    const int32_t n_out = plain->n_out, n_in = plain->n_in;
    float *w = random_bf16_values((size_t)n_out * (size_t)n_in, 1.0);
    assert_status_ok(cuda_matrix_new(s.stream, MATRIX_I8, n_out, n_in, &s.weights[1]));
    const struct matrix_write_args write = {
        .matrix = s.weights[1], .n_rows = n_out, .src = w, .src_dtype = DTYPE_F32, .ld_src = n_in};
    assert_status_ok(cuda_matrix_write(s.stream, &write));
    s.uses[1].weight = s.weights[1];
    assert_status_ok(tune(&s, NULL));
    assert_int_equal(table_of(&s)->n, N_SHAPES * N_BUCKETS);
    void *x = device_bf16(s.stream, w, (size_t)n_in);
    void *out = device_new(s.stream, (size_t)n_out * sizeof(float));
    const struct matmul_args call = {.weight = s.weights[1],
                                     .x = x,
                                     .ld_x = n_in,
                                     .n_rows = 1,
                                     .out = out,
                                     .ld_out = n_out,
                                     .out_dtype = DTYPE_F32};
    assert_status_ok(cuda_matmul(s.stream, &call));
    assert_int_equal(table_of(&s)->n, N_SHAPES * N_BUCKETS);
    device_free(s.stream, x);
    device_free(s.stream, out);
    cuda_matrix_free(plain);
    free(w);
    setting_free(&s);
}

/* Where the simulator's device has its choices. */
static void key_and_path(const char *dir, struct cuda_matmul_key *key, char path[TEST_PATH_BYTES])
{
    struct cudaDeviceProp properties;
    int driver = 0;
    assert_int_equal(cudaGetDeviceProperties(&properties, 0), cudaSuccess);
    assert_int_equal(cudaDriverGetVersion(&driver), cudaSuccess);
    *key = (struct cuda_matmul_key){.library_version = cuda_matmul_lt_version(),
                                    .driver_version = (uint64_t)driver};
    (void)snprintf(key->device, sizeof key->device, "%.63s", properties.name);
    assert_status_ok(cuda_matmul_table_path(dir, key, path));
}

static void test_matmul_tune_keeps_what_it_measured(void **state)
{
    (void)state;
    char dir[TEST_PATH_BYTES], path[TEST_PATH_BYTES];
    struct cuda_matmul_key key;
    struct cuda_matmul_table *table = must_alloc(sizeof *table);
    test_tmpdir(dir);
    key_and_path(dir, &key, path);
    struct setting first = setting_new();
    assert_status_ok(tune(&first, dir)); // a first run finds no file, and says nothing of it
    setting_free(&first);
    assert_status_ok(cuda_matmul_table_read(path, &key, table));
    assert_int_equal(table->n, N_SHAPES * N_BUCKETS);

    // A second run takes the file's word, and measures what it lacks.
    table->n--;
    table->choices[0].time_us = 123.0f;
    assert_status_ok(cuda_matmul_table_write(path, &key, table));
    struct setting second = setting_new();
    assert_status_ok(tune(&second, dir));
    assert_int_equal(table_of(&second)->n, N_SHAPES * N_BUCKETS);
    assert_close(table_of(&second)->choices[0].time_us, 123.0, 1e-6, 0.0);
    setting_free(&second);
    assert_status_ok(cuda_matmul_table_read(path, &key, table));
    assert_int_equal(table->n, N_SHAPES * N_BUCKETS);
    free(table);
    test_tmpdir_remove(dir);
}

static void test_matmul_tune_survives_a_bad_cache(void **state)
{
    (void)state;
    char dir[TEST_PATH_BYTES], path[TEST_PATH_BYTES];
    struct cuda_matmul_key key;
    struct cuda_matmul_table *table = must_alloc(sizeof *table);
    test_tmpdir(dir);
    key_and_path(dir, &key, path);
    test_write_file(path, "kvasir", 6);
    struct setting s = setting_new();
    assert_status_code(tune(&s, dir), STATUS_DATA_LOSS);
    assert_status_ok(cuda_matmul_table_read(path, &key, table)); // written anew
    setting_free(&s);

    s = setting_new();
    assert_status_code(tune(&s, path), STATUS_PERMISSION_DENIED); // a file is no directory
    assert_int_equal(table_of(&s)->n, N_SHAPES * N_BUCKETS);
    setting_free(&s);
    free(table);
    test_tmpdir_remove(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_matmul_tune_measures_every_bucket),
        cmocka_unit_test(test_matmul_tune_measures_what_is_called),
        cmocka_unit_test(test_matmul_tune_leaves_int8_alone),
        cmocka_unit_test(test_matmul_tune_keeps_what_it_measured),
        cmocka_unit_test(test_matmul_tune_survives_a_bad_cache),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

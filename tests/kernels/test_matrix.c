#include "tests/kernels/kernel_check.h"

#include <math.h>

#include "kernels/cpu/convert.h"

/* Element k of output n, out of its word: int8 without its scale. */
static float element(const struct matrix *m, int32_t n, int32_t k)
{
    const int32_t of_word = (int32_t)(4 / dtype_bytes(m->dtype));
    const size_t at =
        ((size_t)(n / 16) * (size_t)m->n_words + (size_t)(k / of_word)) * 16 + (size_t)(n % 16);
    uint32_t bits = m->data[at];
    if (m->dtype == DTYPE_I8) {
        return (float)(int8_t)(uint8_t)(bits >> k % 4 * 8);
    }
    if (m->dtype == DTYPE_BF16) {
        bits = k % 2 == 0 ? bits << 16 : bits & 0xFFFF0000u;
    }
    float x = 0.0f;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Two threads, so that a call's panels are dealt out. */
static status_t matrix_write(struct matrix *m, int32_t row_begin, int32_t n_rows, const void *src,
                             int src_dtype, int64_t ld_src)
{
    struct backend_stream *stream = stream_of("auto", 2);
    const struct matrix_write_args args = {
        .matrix = m,
        .row_begin = row_begin,
        .n_rows = n_rows,
        .src = src,
        .src_dtype = src_dtype,
        .ld_src = ld_src,
    };
    const status_t s = cpu_matrix_write(stream, &args);
    stream_done(stream);
    return s;
}

static void assert_holds(const struct matrix *m, const float *want)
{
    for (int32_t n = 0; n < m->n_out; n++) {
        for (int32_t k = 0; k < m->n_in; k++) {
            const float got = element(m, n, k);
            assert_same_bits(&got, &want[(int64_t)n * m->n_in + k], 1, "packed");
        }
    }
}

static void test_matrix_packs_rows_written_in_pieces(void **state)
{
    (void)state;
    static const int32_t ins[] = {1, 2, 37, 64, 129, 300};

    enum { N = 53 };

    for (size_t i = 0; i < sizeof ins / sizeof ins[0]; i++) {
        for (int dtype = DTYPE_F32; dtype <= DTYPE_BF16; dtype += DTYPE_BF16 - DTYPE_F32) {
            const int32_t n_in = ins[i], ld = n_in + 3;
            float *src = random_new((size_t)N * (size_t)ld, 1.0);
            float *want = guarded_new((size_t)N * (size_t)n_in);
            for (int32_t n = 0; n < N; n++) {
                for (int32_t k = 0; k < n_in; k++) {
                    const float x = src[n * ld + k];
                    want[n * n_in + k] = dtype == DTYPE_BF16 ? rounded_bf16(x) : x;
                }
            }
            struct matrix *m = NULL;
            assert_status_ok(cpu_matrix_new(dtype, N, n_in, &m));
            for (int32_t row = 0, n = 0; row < N; row += n) {
                n = 1 + (int32_t)test_random_below(20);
                n = n < N - row ? n : N - row;
                assert_status_ok(matrix_write(m, row, n, src + (int64_t)row * ld, DTYPE_F32, ld));
            }
            assert_holds(m, want);
            cpu_matrix_free(m);
            guarded_free(src);
            guarded_free(want);
        }
    }
}

/* Checkpoints map their tensors at any byte. */
static void test_matrix_reads_half_precision_at_any_alignment(void **state)
{
    (void)state;

    enum { N = 19, K = 33 };

    static const struct {
        int src_dtype;
        uint16_t bits[4];
        float values[4];
    } cases[] = {
        {DTYPE_BF16, {0x3F80, 0xC000, 0x0001, 0x7F7F}, {1.0f, -2.0f, 0x1p-133f, 0x1.FEp127f}},
        {DTYPE_F16, {0x3C00, 0xC000, 0x0001, 0x7BFF}, {1.0f, -2.0f, 0x1p-24f, 65504.0f}},
    };

    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        char bytes[N * K * 2 + 1];
        float want[N * K];
        for (int i = 0; i < N * K; i++) {
            memcpy(bytes + 1 + (ptrdiff_t)2 * i, &cases[c].bits[i % 4], 2);
            want[i] = cases[c].values[i % 4];
        }
        struct matrix *m = NULL;
        assert_status_ok(cpu_matrix_new(DTYPE_F32, N, K, &m));
        assert_status_ok(matrix_write(m, 0, N, bytes + 1, cases[c].src_dtype, K));
        assert_holds(m, want);
        cpu_matrix_free(m);
    }
}

static void test_matrix_keeps_bfloat16_as_it_is(void **state)
{
    (void)state;

    enum { N = 2, K = 5 };

    const uint16_t src[N * K] = {0x3F81, 0x0001, 0x8000, 0xFF80, 0x7F80, 1, 2, 3, 4, 0x4049};
    struct matrix *m = NULL;
    assert_status_ok(cpu_matrix_new(DTYPE_BF16, N, K, &m));
    assert_status_ok(matrix_write(m, 0, N, src, DTYPE_BF16, K));
    for (int i = 0; i < N * K; i++) {
        const float got = element(m, i / K, i % K);
        uint32_t bits = 0;
        memcpy(&bits, &got, sizeof bits);
        assert_int_equal(bits, (uint32_t)src[i] << 16);
    }
    assert_true(element(m, 0, K) == 0.0f); // the k that is not there
    cpu_matrix_free(m);
}

/* Every pair of dtypes, large enough for several tasks, against one element at a time; infinities and NaN too. */
static void test_matrix_converts_as_one_element_does(void **state)
{
    (void)state;

    enum { N = 200, K = 333 };

    static const int from[] = {DTYPE_F32, DTYPE_F16, DTYPE_BF16};
    static const int to[] = {DTYPE_F32, DTYPE_BF16};
    uint32_t *src = must_alloc((size_t)N * K * sizeof *src);
    float *want = guarded_new((size_t)N * K);
    for (size_t c = 0; c < 6; c++) {
        const int src_dtype = from[c / 2], dtype = to[c % 2];
        for (size_t i = 0; i < (size_t)N * K; i++) {
            const uint32_t bits =
                (uint32_t)test_random_below(0x10000) << 16 | (uint32_t)test_random_below(0x10000);
            memcpy((char *)src + i * dtype_bytes(src_dtype), &bits, dtype_bytes(src_dtype));
            f32_from_any((char *)src + i * dtype_bytes(src_dtype), src_dtype, 1, &want[i]);
            if (dtype == DTYPE_BF16) {
                want[i] = f32_from_bf16(bf16_from_f32(want[i]));
            }
        }
        struct matrix *m = NULL;
        assert_status_ok(cpu_matrix_new(dtype, N, K, &m));
        memset(m->data, 0xEE, m->data_bytes / (size_t)m->n_panels * (size_t)(m->n_panels - 1));
        assert_status_ok(matrix_write(m, 0, N, src, src_dtype, K));
        for (int32_t i = 0; i < N * K; i++) {
            const float got = element(m, i / K, i % K);
            assert_true(f32_bits(got) == f32_bits(want[i]) || (isnan(got) && isnan(want[i])));
        }
        cpu_matrix_free(m);
    }
    free(src);
    guarded_free(want);
}

// ---- int8 ----

/* The nearest multiple of a 127th of the row's largest magnitude. */
static void assert_rounded(const struct matrix *m, const float *rows, int64_t ld)
{
    for (int32_t n = 0; n < m->n_out; n++) {
        double largest = 0.0;
        for (int32_t k = 0; k < m->n_in; k++) {
            largest = fmax(largest, fabs((double)rows[n * ld + k]));
        }
        assert_close((double)m->scales[n], largest / 127.0, 0.0, 1e-7);
        bool reaches = false;
        for (int32_t k = 0; k < m->n_in; k++) {
            const double got = (double)element(m, n, k);
            const double exact = (double)rows[n * ld + k] / (largest / 127.0);
            assert_close(got, exact, 0.5 + 1e-5, 0.0);
            reaches = reaches || fabs(got) == 127.0;
        }
        assert_true(reaches);
    }
}

static void test_matrix_rounds_to_int8(void **state)
{
    (void)state;
    static const int32_t ins[] = {1, 3, 64, 261, 700};

    enum { N = 37, GAP = 5 };

    for (size_t i = 0; i < sizeof ins / sizeof ins[0]; i++) {
        const int32_t n_in = ins[i], ld = n_in + GAP;
        float *src = random_new((size_t)N * (size_t)ld, 0.1);
        for (int32_t n = 0; n < N; n++) {
            src[n * ld + n_in] = 1e9f; // beyond the row: not its largest
        }
        struct matrix *m = NULL;
        assert_status_ok(cpu_matrix_new(i % 2 == 0 ? MATRIX_I8 : MATRIX_W8A8, N, n_in, &m));
        for (int32_t row = 0, n = 0; row < N; row += n) {
            n = 1 + (int32_t)test_random_below(20);
            n = n < N - row ? n : N - row;
            assert_status_ok(matrix_write(m, row, n, src + (int64_t)row * ld, DTYPE_F32, ld));
        }
        assert_rounded(m, src, ld);
        for (int32_t k = n_in; k % 4 != 0; k++) {
            assert_true(element(m, N - 1, k) == 0.0f); // the k that are not there
        }
        cpu_matrix_free(m);
        guarded_free(src);
    }
}

/* Ties go to the even neighbour; half precision is rounded as the float32 it is. */
static void test_matrix_rounds_ties_to_even(void **state)
{
    (void)state;
    static const float rows[] = {127.0f, 0.5f, 1.5f, -2.5f, -0.5f, 126.5f, 3.5f};
    static const float want[] = {127.0f, 0.0f, 2.0f, -2.0f, 0.0f, 126.0f, 4.0f};

    enum { K = sizeof rows / sizeof rows[0] };

    uint16_t halves[K];
    for (int k = 0; k < K; k++) {
        halves[k] = bits_bf16(rows[k]);
    }
    struct matrix *m = NULL;
    assert_status_ok(cpu_matrix_new(MATRIX_I8, 2, K, &m));
    assert_status_ok(matrix_write(m, 0, 1, rows, DTYPE_F32, K));
    assert_status_ok(matrix_write(m, 1, 1, halves, DTYPE_BF16, K));
    for (int k = 0; k < K; k++) {
        assert_true(element(m, 0, k) == want[k]);
        // 126.5 is no bfloat16: it became 126 or 127 before.
        assert_true(element(m, 1, k) == want[k] || k == 5);
    }
    cpu_matrix_free(m);
}

/* The slices of a row, rounded with the whole row's largest magnitude, are the slices of the rounded row. */
static void test_matrix_rounds_slices_as_the_row(void **state)
{
    (void)state;

    enum { N = 21, K = 90, CUT = 33 };

    float *src = random_new((size_t)N * K, 1.0);
    float largest[N];
    int8_rows_find_largest(src, DTYPE_F32, N, K, largest);
    struct matrix *whole = NULL, *left = NULL, *right = NULL;
    struct backend_stream *stream = stream_of("auto", 2);
    assert_status_ok(cpu_matrix_new(MATRIX_I8, N, K, &whole));
    assert_status_ok(cpu_matrix_new(MATRIX_I8, N, CUT, &left));
    assert_status_ok(cpu_matrix_new(MATRIX_I8, N, K - CUT, &right));
    assert_status_ok(matrix_write(whole, 0, N, src, DTYPE_F32, K));
    struct matrix_write_args args = {.matrix = left,
                                     .n_rows = N,
                                     .src = src,
                                     .src_dtype = DTYPE_F32,
                                     .ld_src = K,
                                     .largest = largest};
    assert_status_ok(cpu_matrix_write(stream, &args));
    for (int32_t row = 0; row < N; row += 7) { // in pieces
        args = (struct matrix_write_args){.matrix = right,
                                          .row_begin = row,
                                          .n_rows = 7,
                                          .src = src + (ptrdiff_t)row * K + CUT,
                                          .src_dtype = DTYPE_F32,
                                          .ld_src = K,
                                          .largest = largest + row};
        assert_status_ok(cpu_matrix_write(stream, &args));
    }
    for (int n = 0; n < N; n++) {
        assert_same_bits(&left->scales[n], &whole->scales[n], 1, "left");
        assert_same_bits(&right->scales[n], &whole->scales[n], 1, "right");
        for (int k = 0; k < K; k++) {
            const float got = k < CUT ? element(left, n, k) : element(right, n, k - CUT);
            assert_true(got == element(whole, n, k));
        }
    }
    stream_done(stream);
    cpu_matrix_free(whole);
    cpu_matrix_free(left);
    cpu_matrix_free(right);
    guarded_free(src);
}

static void test_matrix_of_int8_keeps_what_is_no_number(void **state)
{
    (void)state;
    const float rows[3][4] = {
        {0.0f, -0.0f, 0.0f, 0.0f}, {1.0f, NAN, 2.0f, 3.0f}, {1.0f, -INFINITY, 2.0f, 3.0f}};
    struct matrix *m = NULL;
    assert_status_ok(cpu_matrix_new(MATRIX_I8, 3, 4, &m));
    assert_status_ok(matrix_write(m, 0, 3, rows, DTYPE_F32, 4));
    assert_true(m->scales[0] == 0.0f);
    assert_true(isnan(m->scales[1]) && isnan(m->scales[2]));
    for (int k = 0; k < 4; k++) {
        assert_true(element(m, 0, k) == 0.0f && element(m, 1, k) == 0.0f);
    }
    cpu_matrix_free(m);
}

static void test_matrix_bytes_counts_panels(void **state)
{
    (void)state;
    const size_t head = cpu_matrix_bytes(DTYPE_F32, 16, 1) - (size_t)16 * 4;
    assert_int_equal(cpu_matrix_bytes(DTYPE_F32, 17, 10) - head, 2 * 16 * 10 * 4);
    assert_int_equal(cpu_matrix_bytes(DTYPE_BF16, 16, 10) - head, 16 * 10 * 2);
    assert_int_equal(cpu_matrix_bytes(DTYPE_BF16, 16, 11) - head, 16 * 12 * 2);
    // Beyond 32 bits: no overflow on the way.
    assert_true(cpu_matrix_bytes(DTYPE_BF16, 262144, 16384) > (size_t)262144 * 16384 * 2);
}

static void test_matrix_refuses_what_it_cannot_hold(void **state)
{
    (void)state;
    struct matrix *m = NULL;
    assert_status_says(cpu_matrix_new(DTYPE_F16, 4, 4, &m), STATUS_INVALID_ARGUMENT,
                       "float32, bfloat16 or int8");
    assert_status_code(cpu_matrix_new(DTYPE_F32, 0, 4, &m), STATUS_INVALID_ARGUMENT);
    assert_status_code(cpu_matrix_new(DTYPE_F32, 4, 0, &m), STATUS_INVALID_ARGUMENT);
    assert_null(m);
    assert_status_ok(cpu_matrix_new(DTYPE_F32, 4, 4, &m));
    const float row[8] = {0};
    assert_status_code(matrix_write(m, 3, 2, row, DTYPE_F32, 4), STATUS_INVALID_ARGUMENT);
    assert_status_code(matrix_write(m, -1, 1, row, DTYPE_F32, 4), STATUS_INVALID_ARGUMENT);
    assert_status_code(matrix_write(m, 0, 1, row, DTYPE_F32, 3), STATUS_INVALID_ARGUMENT);
    assert_status_code(matrix_write(m, 0, 1, row, 7, 4), STATUS_INVALID_ARGUMENT);
    assert_status_ok(matrix_write(m, 4, 0, row, DTYPE_F32, 4));
    cpu_matrix_free(m);
    cpu_matrix_free(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_matrix_packs_rows_written_in_pieces),
        cmocka_unit_test(test_matrix_reads_half_precision_at_any_alignment),
        cmocka_unit_test(test_matrix_keeps_bfloat16_as_it_is),
        cmocka_unit_test(test_matrix_converts_as_one_element_does),
        cmocka_unit_test(test_matrix_rounds_to_int8),
        cmocka_unit_test(test_matrix_rounds_ties_to_even),
        cmocka_unit_test(test_matrix_rounds_slices_as_the_row),
        cmocka_unit_test(test_matrix_of_int8_keeps_what_is_no_number),
        cmocka_unit_test(test_matrix_bytes_counts_panels),
        cmocka_unit_test(test_matrix_refuses_what_it_cannot_hold),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

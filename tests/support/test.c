#include "tests/support/test.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void test_assert_status(status_t s, int code, const char *expr, const char *file, int line)
{
    if (s.code != code) {
        print_error("%s: got %s (%s), want %s\n", expr, status_code_name(s.code), s.msg,
                    status_code_name(code));
        _fail(file, line);
    }
    if (s.code == STATUS_OK && s.msg[0] != '\0') {
        print_error("%s: OK with a message: %s\n", expr, s.msg);
        _fail(file, line);
    }
}

void test_assert_status_says(status_t s, int code, const char *text, const char *expr,
                             const char *file, int line)
{
    test_assert_status(s, code, expr, file, line);
    if (strstr(s.msg, text) == NULL) {
        print_error("%s: message \"%s\" lacks \"%s\"\n", expr, s.msg, text);
        _fail(file, line);
    }
}

void test_assert_close(struct test_close v, const char *expr, const char *file, int line)
{
    // Written so that a NaN fails.
    if (!(fabs(v.got - v.want) <= v.atol + v.rtol * fabs(v.want))) {
        print_error("%s: got %.17g, want %.17g (atol %g, rtol %g)\n", expr, v.got, v.want, v.atol,
                    v.rtol);
        _fail(file, line);
    }
}

// ---- random numbers ----
// Mutable state at file scope, which only tests may have: a test program has one stream.

static struct {
    bool started;
    uint64_t seed;
    uint64_t state;
} random_stream;

uint64_t test_seed(void)
{
    if (!random_stream.started) {
        const char *text = getenv("KVASIR_TEST_SEED");
        random_stream.seed = text != NULL ? strtoull(text, NULL, 0) : 1;
        random_stream.state = random_stream.seed;
        random_stream.started = true;
        print_message("KVASIR_TEST_SEED=%llu\n", (unsigned long long)random_stream.seed);
    }
    return random_stream.seed;
}

/* SplitMix64 (Steele, Lea, Flood 2014). */
uint64_t test_random_u64(void)
{
    (void)test_seed();
    random_stream.state += 0x9e3779b97f4a7c15u;
    uint64_t z = random_stream.state;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

uint64_t test_random_below(uint64_t n)
{
    assert_true(n > 0);
    return n > 0 ? test_random_u64() % n : 0; // the bias is below n / 2^64
}

double test_random_double(double lo, double hi)
{
    return lo + (hi - lo) * ((double)(test_random_u64() >> 11) * 0x1p-53);
}

// ---- files ----

void test_tmpdir(char *buf)
{
    const char *root = getenv("TMPDIR");
    const int n = snprintf(buf, TEST_PATH_BYTES, "%s/kvasir-test-XXXXXX",
                           root != NULL && root[0] != '\0' ? root : "/tmp");
    assert_true(n > 0 && n < TEST_PATH_BYTES);
    if (mkdtemp(buf) == NULL) {
        fail_msg("mkdtemp %s: %s", buf, strerror(errno));
    }
}

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st;
    (void)type;
    (void)ftw;
    return remove(path);
}

void test_tmpdir_remove(const char *dir)
{
    // Only what test_tmpdir made: a wrong pointer must not remove somebody's files.
    assert_non_null(strstr(dir, "/kvasir-test-"));
    if (nftw(dir, remove_entry, 16, FTW_DEPTH | FTW_PHYS) != 0) {
        fail_msg("remove %s: %s", dir, strerror(errno));
    }
}

void test_write_file(const char *path, const void *data, size_t size)
{
    FILE *file = fopen(path, "wb");
    if (file == NULL) {
        fail_msg("open %s: %s", path, strerror(errno));
        return;
    }
    const size_t written = size > 0 ? fwrite(data, 1, size, file) : 0;
    assert_int_equal(fclose(file), 0);
    assert_int_equal(written, size);
}

const char *test_data_path(const char *name, char *buf)
{
    const char *root = getenv("KVASIR_TEST_DATA");
    const int n = snprintf(buf, TEST_PATH_BYTES, "%s/%s", root != NULL ? root : "", name);
    assert_true(n > 0 && n < TEST_PATH_BYTES);
    if (root == NULL || access(buf, R_OK) != 0) {
        print_message("skipped: no %s (KVASIR_TEST_DATA)\n", buf);
        skip();
    }
    return buf;
}

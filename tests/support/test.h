/*
 * test.h - what every test program includes: cmocka, and a few helpers of our own
 *
 * What:      status assertions that print the message, one reproducible random source, a directory of
 *            its own for a test that writes files, and the folder of published test data.
 * Thread:    the test's main thread. Assertions in another thread do not end the test: pass the result
 *            back and assert it there.
 * Errors:    every helper fails the running test; none returns an error.
 */
#pragma once

// cmocka.h needs these four before it, in this order.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/status.h"

/* Both evaluate the status expression once. */
#define assert_status_ok(expr)         test_assert_status((expr), STATUS_OK, #expr, __FILE__, __LINE__)
#define assert_status_code(expr, code) test_assert_status((expr), (code), #expr, __FILE__, __LINE__)

/* The status has this code and its message contains text: messages are part of what users see. */
#define assert_status_says(expr, code, text) \
    test_assert_status_says((expr), (code), (text), #expr, __FILE__, __LINE__)

/* |got - want| <= atol + rtol * |want|; a NaN on either side fails. */
#define assert_close(got, want, atol, rtol)                                                     \
    test_assert_close((struct test_close){(double)(got), (double)(want), (atol), (rtol)}, #got, \
                      __FILE__, __LINE__)

struct test_close {
    double got, want, atol, rtol;
};

void test_assert_status(status_t s, int code, const char *expr, const char *file, int line);
void test_assert_status_says(status_t s, int code, const char *text, const char *expr,
                             const char *file, int line);
void test_assert_close(struct test_close values, const char *expr, const char *file, int line);

/* The seed of this run: KVASIR_TEST_SEED, else 1. Printed at the first use. */
uint64_t test_seed(void);

/* The next number of the run's stream; equal seeds give equal streams. */
uint64_t test_random_u64(void);

/* Uniform in [0, n), n > 0. */
uint64_t test_random_below(uint64_t n);

/* Uniform in [lo, hi). */
double test_random_double(double lo, double hi);

#define TEST_PATH_BYTES 4096

/* Makes a new empty directory and writes its path into buf[TEST_PATH_BYTES]. */
void test_tmpdir(char *buf);

/* Removes a directory that test_tmpdir made, with everything in it. */
void test_tmpdir_remove(const char *dir);

/* Writes a whole file, for tests of readers. */
void test_write_file(const char *path, const void *data, size_t size);

/*
 * Path of a published test file, "configs/DeciLM-7B.config.json", under KVASIR_TEST_DATA, in
 * buf[TEST_PATH_BYTES]. Skips the running test when that data is not on this machine.
 */
const char *test_data_path(const char *name, char *buf);

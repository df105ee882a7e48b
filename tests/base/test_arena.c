#include "tests/support/test.h"

#include <string.h>

#include "base/arena.h"

static void test_arena_gives_aligned_separate_memory(void **state)
{
    (void)state;
    struct arena arena;
    arena_init(&arena, 1 << 20);
    unsigned char *given[300];
    size_t sizes[300];
    for (size_t i = 0; i < 300; i++) {
        sizes[i] = 1 + test_random_below(700);
        given[i] = arena_alloc(&arena, sizes[i]);
        assert_non_null(given[i]);
        assert_int_equal((uintptr_t)given[i] % ARENA_ALIGNMENT, 0);
        memset(given[i], (int)(i % 251), sizes[i]);
    }
    // Had two of them overlapped, the later one would have painted over the earlier.
    for (size_t i = 0; i < 300; i++) {
        for (size_t at = 0; at < sizes[i]; at++) {
            assert_int_equal(given[i][at], i % 251);
        }
    }
    arena_destroy(&arena);
}

static void test_arena_size_zero_is_unique(void **state)
{
    (void)state;
    struct arena arena;
    arena_init(&arena, 1024);
    const void *a = arena_alloc(&arena, 0);
    const void *b = arena_alloc(&arena, 0);
    assert_non_null(a);
    assert_non_null(b);
    assert_ptr_not_equal(a, b);
    arena_destroy(&arena);
}

static void test_arena_stops_at_its_limit(void **state)
{
    (void)state;
    struct arena arena;
    arena_init(&arena, 64);
    assert_non_null(arena_alloc(&arena, 48));
    assert_null(arena_alloc(&arena, 17));
    assert_non_null(arena_alloc(&arena, 16));
    assert_null(arena_alloc(&arena, 1));
    assert_int_equal(arena.used_bytes, 64);
    arena_destroy(&arena);
}

static void test_arena_counts_tiny_allocations_in_full(void **state)
{
    (void)state;
    struct arena arena;
    arena_init(&arena, 160);
    int n = 0;
    while (arena_alloc(&arena, n % 2 == 0 ? 0 : 1) != NULL) {
        n++;
    }
    assert_int_equal(n, 10);
    arena_destroy(&arena);
}

static void test_arena_refuses_sizes_that_wrap(void **state)
{
    (void)state;
    struct arena arena;
    arena_init(&arena, SIZE_MAX);
    assert_null(arena_alloc(&arena, SIZE_MAX));
    assert_null(arena_alloc(&arena, SIZE_MAX - 15));
    assert_null(arena_calloc(&arena, SIZE_MAX / 2, 3));
    assert_null(arena_strndup(&arena, "x", SIZE_MAX));
    assert_int_equal(arena.used_bytes, 0);
    arena_destroy(&arena);
}

static void test_arena_calloc_zeroes_reused_memory(void **state)
{
    (void)state;
    struct arena arena;
    arena_init(&arena, 4096);
    unsigned char *first = arena_alloc(&arena, 256);
    assert_non_null(first);
    memset(first, 0xFF, 256);
    arena_reset(&arena);
    const unsigned char *again = arena_calloc(&arena, 16, 16);
    assert_non_null(again);
    for (size_t i = 0; i < 256; i++) {
        assert_int_equal(again[i], 0);
    }
    arena_destroy(&arena);
}

static void test_arena_strndup_copies_and_ends(void **state)
{
    (void)state;
    struct arena arena;
    arena_init(&arena, 4096);
    const char *copy = arena_strndup(&arena, "abcdef", 3);
    assert_string_equal(copy, "abc");
    assert_string_equal(arena_strndup(&arena, "", 0), "");
    arena_destroy(&arena);
}

static void test_arena_reset_gives_the_limit_back(void **state)
{
    (void)state;
    struct arena arena;
    arena_init(&arena, 1 << 20);
    for (int round = 0; round < 5; round++) {
        // Larger than a chunk, then many small ones.
        assert_non_null(arena_alloc(&arena, 200000));
        for (int i = 0; i < 1000; i++) {
            assert_non_null(arena_alloc(&arena, 500));
        }
        assert_null(arena_alloc(&arena, 500000));
        arena_reset(&arena);
        assert_int_equal(arena.used_bytes, 0);
    }
    arena_destroy(&arena);
}

static void test_arena_destroy_accepts_zeroed(void **state)
{
    (void)state;
    struct arena arena = {0};
    arena_destroy(&arena);
    arena_destroy(&arena);
    assert_null(arena.chunks);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_arena_gives_aligned_separate_memory),
        cmocka_unit_test(test_arena_size_zero_is_unique),
        cmocka_unit_test(test_arena_stops_at_its_limit),
        cmocka_unit_test(test_arena_counts_tiny_allocations_in_full),
        cmocka_unit_test(test_arena_refuses_sizes_that_wrap),
        cmocka_unit_test(test_arena_calloc_zeroes_reused_memory),
        cmocka_unit_test(test_arena_strndup_copies_and_ends),
        cmocka_unit_test(test_arena_reset_gives_the_limit_back),
        cmocka_unit_test(test_arena_destroy_accepts_zeroed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

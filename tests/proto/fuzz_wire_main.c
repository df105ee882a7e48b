/*
 * usage: fuzz_wire N           N damaged messages, from the seed of the tests
 *        fuzz_wire FILE...     each file once
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "tests/proto/wire_samples.h"

#define MAX_BYTES (64u << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A copy of exactly this size, so that the address sanitizer sees one byte too far. */
static void run_copy(const uint8_t *data, size_t size)
{
    uint8_t *copy = malloc(size > 0 ? size : 1);
    if (copy != NULL) {
        memcpy(copy, data, size);
        (void)LLVMFuzzerTestOneInput(copy, size);
    }
    free(copy);
}

/* The library's own generator of messages, then bytes changed, repeated, cut or spliced. */
static void damage(struct bytes *b)
{
    for (uint64_t i = test_random_below(6); i > 0 && b->size > 1; i--) {
        const size_t at = 1 + (size_t)test_random_below(b->size - 1);
        const size_t from = 1 + (size_t)test_random_below(b->size - 1);
        const size_t rest = b->size - (at > from ? at : from);
        switch (test_random_below(5)) {
        case 0:
            b->data[at] = (uint8_t)test_random_u64();
            break;
        case 1:
            b->data[at] ^= (uint8_t)(1u << test_random_below(8));
            break;
        case 2:
            b->size = at;
            break;
        case 3:
            memmove(b->data + at, b->data + from, (size_t)test_random_below(rest + 1));
            break;
        default:
            b->data[0] = (uint8_t)test_random_u64(); // another message's bytes
            break;
        }
    }
}

static void run_random(void)
{
    struct arena arena;
    struct bytes packed;
    union wire_any m;
    arena_init(&arena, MAX_BYTES);
    bytes_init(&packed, MAX_BYTES);
    memset(&m, 0, sizeof m);
    const uint8_t choice = (uint8_t)test_random_u64();
    const struct wire_kind *kind = &wire_kinds[choice % N_WIRE_KINDS];
    kind->fill(&arena, &m);
    status_t s = bytes_append(&packed, &choice, 1);
    if (status_is_ok(&s)) {
        s = kind->pack(&m, &packed);
    }
    if (!status_is_ok(&s)) {
        abort();
    }
    damage(&packed);
    run_copy(packed.data, packed.size);
    bytes_destroy(&packed);
    arena_destroy(&arena);
}

static int run_file(const char *path)
{
    struct bytes input;
    bytes_init(&input, MAX_BYTES);
    const status_t s = file_read(path, MAX_BYTES, &input);
    if (status_is_ok(&s)) {
        run_copy(input.data != NULL ? input.data : (const uint8_t *)"", input.size);
    } else {
        status_print(stderr, &s);
    }
    bytes_destroy(&input);
    return status_exit_code(&s);
}

int main(int argc, char **argv)
{
    char *end = NULL;
    const unsigned long n = argc == 2 ? strtoul(argv[1], &end, 10) : 0;
    if (end != NULL && *end == '\0') {
        for (unsigned long i = 0; i < n; i++) {
            run_random();
        }
        return 0;
    }
    int code = 0;
    for (int i = 1; i < argc; i++) {
        const int failed = run_file(argv[i]);
        code = failed != 0 ? failed : code;
    }
    return code;
}

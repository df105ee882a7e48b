/*
 * fuzz_wire.c - any bytes as any message of proto/wire: no crash, no leak, and what is accepted is stable
 *
 * What:      the first byte of the input chooses the message. A message that unpacks must pack, and what was packed
 *            must unpack and pack to the same bytes.
 *            fuzz_wire_samples.c makes the messages that are damaged.
 */
#include <stdlib.h>
#include <string.h>

#include "tests/fuzz/fuzz_driver.h"
#include "tests/proto/wire_samples.h"

#define MAX_BYTES (64u << 20)

static void check(bool holds)
{
    if (!holds) {
        abort(); // what a fuzzer reports
    }
}

static void pack_again(const struct wire_kind *kind, const struct bytes *first)
{
    struct arena arena;
    struct bytes second;
    union wire_any m;
    arena_init(&arena, MAX_BYTES);
    bytes_init(&second, MAX_BYTES);
    status_t s = kind->unpack(first->data, first->size, &arena, &m);
    // Written out, an absent default takes a few bytes more than it came in; so memory may just not do.
    if (s.code != STATUS_RESOURCE_EXHAUSTED) {
        check(status_is_ok(&s));
        s = kind->pack(&m, &second);
        check(status_is_ok(&s) && second.size == first->size);
        check(first->size == 0 || memcmp(first->data, second.data, first->size) == 0);
    }
    bytes_destroy(&second);
    arena_destroy(&arena);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0) {
        return 0;
    }
    const struct wire_kind *kind = &wire_kinds[data[0] % N_WIRE_KINDS];
    struct arena arena;
    struct bytes packed;
    union wire_any m;
    arena_init(&arena, MAX_BYTES);
    bytes_init(&packed, MAX_BYTES);
    status_t s = kind->unpack(data + 1, size - 1, &arena, &m);
    if (status_is_ok(&s)) {
        s = kind->pack(&m, &packed);
        check(status_is_ok(&s));
        pack_again(kind, &packed);
    } else {
        check(s.code == STATUS_INVALID_ARGUMENT || s.code == STATUS_RESOURCE_EXHAUSTED);
    }
    bytes_destroy(&packed);
    arena_destroy(&arena);
    return 0;
}

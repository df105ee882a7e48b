/* fuzz_wire_samples.c - valid messages of every kind, for the fuzz driver to damage */
#include <stdlib.h>
#include <string.h>

#include "tests/fuzz/fuzz_driver.h"
#include "tests/proto/wire_samples.h"

#define MAX_BYTES (64u << 20)

bool fuzz_generate(struct bytes *out)
{
    struct arena arena;
    union wire_any m;
    arena_init(&arena, MAX_BYTES);
    memset(&m, 0, sizeof m);
    const uint8_t choice = (uint8_t)test_random_u64();
    const struct wire_kind *kind = &wire_kinds[choice % N_WIRE_KINDS];
    kind->fill(&arena, &m);
    status_t s = bytes_append(out, &choice, 1);
    if (status_is_ok(&s)) {
        s = kind->pack(&m, out);
    }
    arena_destroy(&arena);
    if (!status_is_ok(&s)) {
        abort();
    }
    return true;
}

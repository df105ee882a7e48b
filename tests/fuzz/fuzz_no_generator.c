#include "tests/fuzz/fuzz_driver.h"

bool fuzz_generate(struct bytes *out)
{
    (void)out;
    return false;
}

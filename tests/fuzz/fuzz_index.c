/*
 * fuzz_index.c - any model.safetensors.index.json beside two shards, "a" in one and "b" in the other
 */
#include <stdlib.h>
#include <string.h>

#include "tests/fuzz/fuzz_directory.h"
#include "tests/fuzz/fuzz_driver.h"
#include "worker/checkpoint.h"

static void require(bool holds)
{
    if (!holds) {
        abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_directory_write("model.safetensors.index.json", data, size);
    struct checkpoint *checkpoint = NULL;
    const status_t s = checkpoint_open(fuzz_directory(), &checkpoint);
    if (!status_is_ok(&s)) {
        require(s.msg[0] != '\0' && (s.code == STATUS_DATA_LOSS || s.code == STATUS_NOT_FOUND));
        return 0;
    }
    const size_t n = checkpoint_n_tensors(checkpoint);
    require(n == 1 || n == 2);
    for (size_t i = 0; i < n; i++) {
        uint8_t value[2];
        const checkpoint_tensor_t tensor = checkpoint_tensor_at(checkpoint, i);
        const status_t read = checkpoint_read(checkpoint, tensor, 0, sizeof value, value);
        require(status_is_ok(&read));
    }
    checkpoint_close(checkpoint);
    return 0;
}

/*
 * fuzz_safetensors.c - any header of any file: refused with a reason, or a table whose tensors fill the data
 *
 * What:   input = two bytes, little endian: how many bytes of data follow the header; then the header.
 */
#include <stdlib.h>
#include <string.h>

#include "tests/fuzz/fuzz_driver.h"
#include "worker/safetensors.h"

static void require(bool holds)
{
    if (!holds) {
        abort();
    }
}

static void check_table(const struct safetensors *file, uint64_t data_bytes)
{
    uint64_t bytes = 0;
    for (size_t i = 0; i < file->n_tensors; i++) {
        const struct safetensors_tensor *t = &file->tensors[i];
        bytes += t->size_bytes;
        require(t->n_dims >= 0 && t->n_dims <= SAFETENSORS_MAX_DIMS);
        require(safetensors_name_is_sane(t->name));
        require(safetensors_find(file, t->name) == t);
        require(i == 0 || strcmp(file->tensors[i - 1].name, t->name) < 0);
    }
    require(bytes == data_bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2) {
        return 0;
    }
    const uint64_t data_bytes = (uint64_t)(data[0] | data[1] << 8);
    struct safetensors file;
    const status_t s =
        safetensors_parse((const char *)data + 2, size - 2, data_bytes, "x.safetensors", &file);
    if (status_is_ok(&s)) {
        check_table(&file, data_bytes);
        safetensors_close(&file);
        return 0;
    }
    require(s.code == STATUS_DATA_LOSS && strstr(s.msg, "x.safetensors") != NULL);
    return 0;
}

/*
 * safetensors_tool.c - what our reader makes of safetensors files, for safetensors_vs_hf.py
 *
 * What:   one line of answer for each path on stdin: `refused REASON`, or `read` and for each tensor, in the order of
 *         names, NAME DTYPE SHAPE HASH (FNV-1a of its bytes), separated by tabs.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/safetensors.h"

#define MAX_PATH_BYTES 4096

/* Fowler, Noll, Vo: FNV-1a, 64 bits. */
static uint64_t hash_bytes(const uint8_t *bytes, size_t size)
{
    uint64_t hash = 0xcbf29ce484222325;
    for (size_t i = 0; i < size; i++) {
        hash = (hash ^ bytes[i]) * 0x100000001b3;
    }
    return hash;
}

static status_t print_tensor(const struct safetensors *file, const struct safetensors_tensor *t)
{
    const size_t size = (size_t)t->size_bytes;
    uint8_t *bytes = malloc(size + 1);
    if (bytes == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory for %zu bytes", size);
    }
    const status_t s = safetensors_read(file, t, 0, size, bytes);
    if (status_is_ok(&s)) {
        printf("\t%s\t%s\t[", t->name, t->dtype_name);
        for (int32_t i = 0; i < t->n_dims; i++) {
            printf("%s%" PRId64, i > 0 ? ", " : "", t->shape[i]);
        }
        printf("]\t%016" PRIx64, hash_bytes(bytes, size));
    }
    free(bytes);
    return s;
}

static status_t print_tensors(const struct safetensors *file)
{
    fputs("read", stdout);
    for (size_t i = 0; i < file->n_tensors; i++) {
        TRY(print_tensor(file, &file->tensors[i]));
    }
    return status_ok();
}

static status_t try_file(char *path)
{
    char *slash = strrchr(path, '/');
    if (slash == NULL) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "%s: not an absolute path", path);
    }
    *slash = '\0';
    struct safetensors file;
    TRY(safetensors_open(path, slash + 1, &file));
    const status_t s = print_tensors(&file);
    safetensors_close(&file);
    return s;
}

int main(void)
{
    char path[MAX_PATH_BYTES];
    while (fgets(path, sizeof path, stdin) != NULL) {
        path[strcspn(path, "\n")] = '\0';
        const status_t s = try_file(path);
        if (!status_is_ok(&s)) {
            printf("refused %s", s.msg);
        }
        putchar('\n');
    }
    return 0;
}

/*
 * safetensors.h - one .safetensors file: its table of tensors, and reads from it
 *
 * What:      opens a file beneath a model directory, checks every claim of its header, and reads byte ranges of tensors
 *            with pread. Nothing is mapped: a file that shrinks while it is read gives an error, not a signal.
 * Layout:    u64 N, little endian | N bytes of JSON, beginning with '{' | data
 *              {"name": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [begin, end]}, "__metadata__": {..}}
 *            Offsets count from the first data byte. Sorted by offset the tensors lie end to end and fill the data.
 * Ownership: struct safetensors owns the descriptor and its tables; tensor pointers are borrowed from it.
 * Thread:    init for open and close; reads from any thread.
 * Errors:    NOT_FOUND and PERMISSION_DENIED from opening; DATA_LOSS naming the file, the tensor and the rule.
 * Source:    https://github.com/huggingface/safetensors, "Format".
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/arena.h"
#include "base/dtype.h"
#include "base/status.h"

/* Stricter than the format, whose headers may have 100 MB: a model of a thousand tensors takes 0.1 MB, and reading a
 * header must not take memory out of all proportion to the model. */
#define SAFETENSORS_MAX_HEADER_BYTES ((uint64_t)8 * 1000 * 1000)
#define SAFETENSORS_MAX_TENSORS      16384
#define SAFETENSORS_MAX_NAME_BYTES   1024
#define SAFETENSORS_MAX_DIMS         8

/* The types that the format knows and weights never have. */
#define SAFETENSORS_OTHER_DTYPE (-1)

struct safetensors_tensor {
    const char *name;       /* printable: no control characters */
    const char *dtype_name; /* as the format spells it: "BF16"; static */
    int dtype;              /* enum dtype, or SAFETENSORS_OTHER_DTYPE */
    int32_t n_dims;
    int64_t shape[SAFETENSORS_MAX_DIMS];
    uint64_t offset_bytes; /* of the tensor's first byte in the file */
    uint64_t size_bytes;
};

struct safetensors {
    char *path;
    int fd; /* -1: none (parsed from memory) */
    uint64_t data_bytes;
    size_t n_tensors;
    struct safetensors_tensor *tensors; /* ascending by name */
    struct arena strings;
};

/* Opens dir/name; name has no slash, and a symbolic link may not lead out of dir, except into the blobs of a Hugging
 * Face cache (../../blobs/<hash>). */
MUST_USE status_t safetensors_open(const char *dir, const char *name, struct safetensors *file_out);
void safetensors_close(struct safetensors *file); /* accepts a zeroed file */

/* Checks a header alone, of a file with data_bytes of data after it. For tests and fuzzing. */
MUST_USE status_t safetensors_parse(const char *header, size_t header_bytes, uint64_t data_bytes,
                                    const char *path, struct safetensors *file_out);

/* True for a tensor name that may appear in messages: 1 to 1024 bytes, no control characters. */
bool safetensors_name_is_sane(const char *name);

/* NULL when there is no such tensor. */
const struct safetensors_tensor *safetensors_find(const struct safetensors *file, const char *name);

/* size bytes of the tensor from its byte `offset` on. */
MUST_USE status_t safetensors_read(const struct safetensors *file,
                                   const struct safetensors_tensor *tensor, uint64_t offset,
                                   size_t size, void *out);

/*
 * checkpoint.h - the tensors of a model directory
 *
 * What:      one model.safetensors, or the shards that model.safetensors.index.json lists, as one table from name to
 *            tensor; and reads that are counted.
 * Ownership: the checkpoint owns its files; tensor pointers are borrowed from it.
 * Thread:    owner:the rank's main thread.
 * Errors:    NOT_FOUND when the directory has no safetensors (the message says what it has instead); DATA_LOSS naming
 *            the file, the tensor and the rule.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "worker/safetensors.h"

#define CHECKPOINT_MAX_SHARDS  1000
#define CHECKPOINT_MAX_TENSORS 65536 /* of all shards together */

struct checkpoint;

/* A tensor and the file that holds it. */
typedef struct checkpoint_tensor {
    const struct safetensors *file;
    const struct safetensors_tensor *tensor;
} checkpoint_tensor_t;

MUST_USE status_t checkpoint_open(const char *dir, struct checkpoint **checkpoint_out);
void checkpoint_close(struct checkpoint *checkpoint); /* accepts NULL */

/* NOT_FOUND names the tensor. */
MUST_USE status_t checkpoint_find(const struct checkpoint *checkpoint, const char *name,
                                  checkpoint_tensor_t *tensor_out);

/* The i-th tensor in the order of names. */
size_t checkpoint_n_tensors(const struct checkpoint *checkpoint);
checkpoint_tensor_t checkpoint_tensor_at(const struct checkpoint *checkpoint, size_t index);

/* size bytes of the tensor from its byte `offset` on. */
MUST_USE status_t checkpoint_read(struct checkpoint *checkpoint, checkpoint_tensor_t tensor,
                                  uint64_t offset, size_t size, void *out);

/* Bytes of tensor data that checkpoint_read has read; headers are not counted. */
uint64_t checkpoint_bytes_read(const struct checkpoint *checkpoint);

#include "ops/doctor_scan.h"

#include "base/dtype.h"

#include <stdlib.h>

#define PIECE_BYTES ((size_t)4 << 20)

static status_t scan_tensor(struct checkpoint *checkpoint, checkpoint_tensor_t tensor,
                            uint8_t *piece, struct doctor_scan *scan)
{
    const uint64_t total = tensor.tensor->size_bytes;
    const int dtype = tensor.tensor->dtype;
    if (dtype == SAFETENSORS_OTHER_DTYPE) {
        return status_ok();
    }
    for (uint64_t at = 0; at < total; at += PIECE_BYTES) {
        const size_t size = total - at < PIECE_BYTES ? (size_t)(total - at) : PIECE_BYTES;
        TRY(checkpoint_read(checkpoint, tensor, at, size, piece));
        const uint64_t n_bad = dtype_count_not_finite(piece, dtype, size / dtype_bytes(dtype));
        if (n_bad > 0 && scan->n_bad == 0) {
            scan->first_bad = tensor.tensor->name;
        }
        scan->n_bad += n_bad;
        scan->n_values += size / dtype_bytes(dtype);
    }
    return status_ok();
}

status_t doctor_scan_run(struct checkpoint *checkpoint, struct doctor_scan *scan_out)
{
    struct doctor_scan scan = {0};
    uint8_t *piece = malloc(PIECE_BYTES);
    if (piece == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory for %zu bytes", PIECE_BYTES);
    }
    status_t s = status_ok();
    const size_t n = checkpoint_n_tensors(checkpoint);
    for (size_t i = 0; i < n && status_is_ok(&s); i++) {
        s = scan_tensor(checkpoint, checkpoint_tensor_at(checkpoint, i), piece, &scan);
    }
    free(piece);
    if (status_is_ok(&s)) {
        *scan_out = scan;
    }
    return s;
}

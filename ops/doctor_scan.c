#include "ops/doctor_scan.h"

#include <stdlib.h>
#include <string.h>

#define PIECE_BYTES ((size_t)4 << 20)

/* A number is NaN or infinite where all bits of its exponent are set. */
static uint64_t count_bad16(const uint8_t *bytes, size_t size, uint16_t exponent)
{
    uint64_t n_bad = 0;
    for (size_t at = 0; at + 2 <= size; at += 2) {
        uint16_t value;
        memcpy(&value, bytes + at, sizeof value);
        n_bad += (value & exponent) == exponent;
    }
    return n_bad;
}

static uint64_t count_bad32(const uint8_t *bytes, size_t size)
{
    static const uint32_t exponent = 0x7f800000;
    uint64_t n_bad = 0;
    for (size_t at = 0; at + 4 <= size; at += 4) {
        uint32_t value;
        memcpy(&value, bytes + at, sizeof value);
        n_bad += (value & exponent) == exponent;
    }
    return n_bad;
}

static uint64_t count_bad(int dtype, const uint8_t *bytes, size_t size)
{
    switch (dtype) {
    case DTYPE_F32:
        return count_bad32(bytes, size);
    case DTYPE_F16:
        return count_bad16(bytes, size, 0x7c00);
    default:
        return count_bad16(bytes, size, 0x7f80);
    }
}

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
        const uint64_t n_bad = count_bad(dtype, piece, size);
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

/*
 * pb_reader.h - the fields of a serialized protobuf message, one after another
 *
 * What:      enough of the wire format to read a file whose schema the caller knows. Fields that the caller does not
 *            ask for are passed over, as the format wants it.
 * Layout:    key = field number << 3 | wire type, a varint; then a varint (type 0), 8 bytes (1), a varint size and
 *            that many bytes (2), or 4 bytes (5). Fixed sizes are little endian.
 * Ownership: borrows the data; so do the views it gives.
 * Thread:    one owner at a time.
 * Errors:    DATA_LOSS naming the offset, for a field that is cut off or of another wire type.
 * Source:    protobuf.dev, "Encoding".
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "coordinator/tokenizer/vocab.h"

struct pb_reader {
    const uint8_t *data;
    size_t size;
    size_t at;
};

enum pb_type { PB_VARINT = 0, PB_FIXED64 = 1, PB_BYTES = 2, PB_FIXED32 = 5 };

struct pb_field {
    uint32_t number;
    int type;               /* enum pb_type */
    uint64_t value;         /* of the numbers */
    struct text_view bytes; /* of PB_BYTES */
    size_t at;              /* offset of the field, for messages */
};

/* *more_out is false at the end of the message, and then there is no field. */
MUST_USE status_t pb_reader_next(struct pb_reader *reader, struct pb_field *out, bool *more_out);

/* DATA_LOSS unless the field has this wire type. */
MUST_USE status_t pb_reader_expect(const struct pb_field *field, int type);

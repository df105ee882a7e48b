/*
 * rpc_view.c - a received message as one piece of memory
 *
 * What:      the library would inflate a compressed message without a bound: 4 MiB of zeros, compressed, become
 *            4 GiB. Its decompression is switched off, and done here with one.
 */
#include <string.h>
#include <zlib.h>

#include "proto/rpc/rpc_internal.h"

#define INFLATE_CHUNK_BYTES ((size_t)64 * 1024)

/* One step of inflate into the tail of out; *ended_out: the stream is complete. */
static status_t inflate_chunk(z_stream *z, struct bytes *out, bool *ended_out)
{
    const size_t left = out->max_bytes - out->size;
    const size_t room = left < INFLATE_CHUNK_BYTES ? left : INFLATE_CHUNK_BYTES;
    uint8_t *tail;
    TRY(bytes_reserve(out, room, &tail));
    z->next_out = tail;
    z->avail_out = (uInt)room;
    const int code = inflate(z, Z_NO_FLUSH);
    out->size += room - z->avail_out;
    *ended_out = code == Z_STREAM_END;
    if (out->size == out->max_bytes) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED,
                             "message is larger than %zu bytes when decompressed",
                             out->max_bytes - 1);
    }
    // Z_BUF_ERROR: this slice is used up, the next one goes on.
    if (code != Z_OK && code != Z_STREAM_END && code != Z_BUF_ERROR) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "compressed message is damaged (zlib %d)",
                             code);
    }
    return status_ok();
}

static status_t inflate_slices(z_stream *z, const grpc_slice_buffer *slices, struct bytes *out)
{
    bool ended = false;
    for (size_t i = 0; i < slices->count && !ended; i++) {
        z->next_in = GRPC_SLICE_START_PTR(slices->slices[i]);
        z->avail_in = (uInt)GRPC_SLICE_LENGTH(slices->slices[i]);
        do {
            TRY(inflate_chunk(z, out, &ended));
        } while (!ended && (z->avail_in > 0 || z->avail_out == 0));
    }
    if (!ended) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "compressed message is cut short");
    }
    return status_ok();
}

static status_t inflate_message(const grpc_byte_buffer *buffer, struct bytes *out)
{
    // Window bits as the gRPC wire protocol has them: gzip framing, or zlib framing for "deflate".
    const bool is_gzip = buffer->data.raw.compression == GRPC_COMPRESS_GZIP;
    z_stream z = {0};
    if (inflateInit2(&z, is_gzip ? 15 | 16 : 15) != Z_OK) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory to decompress a message");
    }
    const status_t s = inflate_slices(&z, &buffer->data.raw.slice_buffer, out);
    inflateEnd(&z);
    return s;
}

status_t rpc_view_init(struct rpc_view *view, const grpc_byte_buffer *buffer, size_t max_bytes)
{
    *view = (struct rpc_view){.owns_slice = false};
    if (buffer->data.raw.compression != GRPC_COMPRESS_NONE) {
        bytes_init(&view->inflated, max_bytes + 1); // one too many tells "exactly" from "more"
        const status_t s = inflate_message(buffer, &view->inflated);
        if (!status_is_ok(&s)) {
            bytes_destroy(&view->inflated);
            return s;
        }
        view->data = view->inflated.data;
        view->size = view->inflated.size;
        return status_ok();
    }
    const grpc_slice_buffer *slices = &buffer->data.raw.slice_buffer;
    if (slices->count == 1) {
        view->data = GRPC_SLICE_START_PTR(slices->slices[0]);
        view->size = GRPC_SLICE_LENGTH(slices->slices[0]);
        return status_ok();
    }
    // Slices in the middle of a buffer cannot be lent as one piece.
    size_t at = 0;
    view->slice = grpc_slice_malloc(slices->length);
    view->owns_slice = true;
    for (size_t i = 0; i < slices->count; i++) {
        const size_t size = GRPC_SLICE_LENGTH(slices->slices[i]);
        memcpy(GRPC_SLICE_START_PTR(view->slice) + at, GRPC_SLICE_START_PTR(slices->slices[i]),
               size);
        at += size;
    }
    view->data = GRPC_SLICE_START_PTR(view->slice);
    view->size = slices->length;
    return status_ok();
}

void rpc_view_destroy(struct rpc_view *view)
{
    if (view->owns_slice) {
        grpc_slice_unref(view->slice);
    }
    bytes_destroy(&view->inflated);
}

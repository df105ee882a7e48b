#include "tests/coordinator/tokenizer/model_fixture.h"

#include <stdio.h>
#include <string.h>

#include "tests/support/test.h"

// ---- protobuf ----

static void append(struct bytes *out, const void *data, size_t size)
{
    assert_status_ok(bytes_append(out, data, size));
}

static void append_number(struct bytes *out, uint64_t value)
{
    do {
        const uint8_t byte = (uint8_t)((value & 0x7F) | (value > 0x7F ? 0x80 : 0));
        append(out, &byte, 1);
        value >>= 7;
    } while (value > 0);
}

void model_fixture_varint(struct bytes *out, uint32_t field, uint64_t value)
{
    append_number(out, (uint64_t)field << 3);
    append_number(out, value);
}

void model_fixture_bytes(struct bytes *out, uint32_t field, const void *data, size_t size)
{
    append_number(out, (uint64_t)field << 3 | 2);
    append_number(out, size);
    append(out, data, size);
}

static void append_piece(struct bytes *out, const struct model_piece *row)
{
    static const uint8_t score_key = 2 << 3 | 5;
    struct bytes piece;
    bytes_init(&piece, SIZE_MAX);
    model_fixture_bytes(&piece, 1, row->text, strlen(row->text));
    append(&piece, &score_key, 1);
    assert_status_ok(bytes_append_f32(&piece, row->score));
    if (row->type != 0) {
        model_fixture_varint(&piece, 3, (uint64_t)row->type);
    }
    model_fixture_bytes(out, 1, piece.data, piece.size);
    bytes_destroy(&piece);
}

static void append_byte_pieces(struct bytes *out)
{
    for (unsigned byte = 0; byte < 256; byte++) {
        char text[8];
        snprintf(text, sizeof text, "<0x%02X>", byte);
        append_piece(out, &(const struct model_piece){.text = text, .type = SENTENCEPIECE_BYTE});
    }
}

void model_fixture_sentencepiece(const struct model_piece *pieces, size_t n, int model_type,
                                 int flags, struct bytes *out)
{
    for (size_t i = 0; i < n; i++) {
        append_piece(out, &pieces[i]);
    }
    if ((flags & MODEL_BYTES) != 0) {
        append_byte_pieces(out);
    }
    struct bytes spec;
    bytes_init(&spec, SIZE_MAX);
    if (model_type != 0) {
        model_fixture_varint(&spec, 3, (uint64_t)model_type);
    }
    model_fixture_varint(&spec, 35, (flags & MODEL_BYTES) != 0);
    model_fixture_varint(&spec, 24, (flags & MODEL_SUFFIX) != 0);
    model_fixture_bytes(out, 2, spec.data, spec.size);
    bytes_clear(&spec);
    model_fixture_bytes(&spec, 1, "identity", 8);
    if ((flags & MODEL_CHARSMAP) != 0) {
        model_fixture_bytes(&spec, 2, "rules", 5);
    }
    model_fixture_varint(&spec, 3, (flags & MODEL_NO_PREFIX) == 0);
    if ((flags & MODEL_STRIP) == 0) {
        model_fixture_varint(&spec, 4, 0);
    }
    model_fixture_varint(&spec, 5, (flags & MODEL_NO_ESCAPE) == 0);
    model_fixture_bytes(out, 3, spec.data, spec.size);
    bytes_clear(&spec);
    if ((flags & MODEL_DENORMALIZER) != 0) {
        model_fixture_bytes(&spec, 2, "rules", 5);
    }
    model_fixture_bytes(out, 5, spec.data, spec.size);
    bytes_destroy(&spec);
}

// ---- tiktoken ----

size_t model_fixture_rank(size_t rank, uint8_t out[3])
{
    if (rank < 256) {
        out[0] = (uint8_t)rank;
        return 1;
    }
    rank -= 256;
    const bool is_pair = rank < 65536;
    rank -= is_pair ? 0 : 65536;
    out[0] = (uint8_t)('a' + rank);
    out[1] = (uint8_t)(MODEL_SECOND_BYTE + (rank >> 8));
    out[2] = 'a';
    return is_pair ? 2 : 3;
}

void model_fixture_ranks(size_t n_ranks, struct bytes *out)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

    for (size_t rank = 0; rank < n_ranks; rank++) {
        uint8_t bytes[3] = {0};
        char line[32];
        const size_t n = model_fixture_rank(rank, bytes);
        const uint32_t bits = (uint32_t)bytes[0] << 16 | (uint32_t)bytes[1] << 8 | bytes[2];
        const int length = snprintf(line, sizeof line, "%c%c%c%c %zu\n", digits[bits >> 18],
                                    digits[bits >> 12 & 63], n > 1 ? digits[bits >> 6 & 63] : '=',
                                    n > 2 ? digits[bits & 63] : '=', rank);
        append(out, line, (size_t)length);
    }
}

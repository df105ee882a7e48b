#include "coordinator/tokenizer/sentencepiece_file.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/tokenizer/pb_reader.h"

#define MAX_PIECES ((size_t)512 * 1024) /* the largest known vocabulary has 262,144 */

static struct pb_reader open_message(struct text_view bytes)
{
    return (struct pb_reader){.data = bytes.data, .size = bytes.size};
}

// ---- numbers ----

static status_t read_bool(const struct pb_field *field, bool *out)
{
    TRY(pb_reader_expect(field, PB_VARINT));
    *out = field->value != 0;
    return status_ok();
}

static status_t read_enum(const struct pb_field *field, int *out)
{
    TRY(pb_reader_expect(field, PB_VARINT));
    *out = field->value <= INT16_MAX ? (int)field->value : -1; // no known value is as large
    return status_ok();
}

static status_t read_float(const struct pb_field *field, float *out)
{
    TRY(pb_reader_expect(field, PB_FIXED32));
    const uint32_t bits = (uint32_t)field->value;
    memcpy(out, &bits, sizeof bits);
    return status_ok();
}

// ---- messages ----

/* SentencePiece { piece = 1, score = 2, type = 3 } */
static status_t read_piece(struct text_view bytes, struct sentencepiece_piece *out)
{
    *out = (struct sentencepiece_piece){.type = SENTENCEPIECE_NORMAL};
    struct pb_reader reader = open_message(bytes);
    struct pb_field field;
    bool more;
    TRY(pb_reader_next(&reader, &field, &more));
    while (more) {
        if (field.number == 1) {
            TRY(pb_reader_expect(&field, PB_BYTES));
            out->text = field.bytes;
        } else if (field.number == 2) {
            TRY(read_float(&field, &out->score));
        } else if (field.number == 3) {
            TRY(read_enum(&field, &out->type));
        }
        TRY(pb_reader_next(&reader, &field, &more));
    }
    if (isnan(out->score)) {
        return status_errorf(STATUS_DATA_LOSS, "the score is not a number");
    }
    if (out->type < SENTENCEPIECE_NORMAL || out->type > SENTENCEPIECE_BYTE ||
        out->type == SENTENCEPIECE_UNUSED) {
        return status_errorf(STATUS_DATA_LOSS, "type %d is not supported", out->type);
    }
    return status_ok();
}

static status_t add_piece(struct sentencepiece_file *file, const struct pb_field *field)
{
    TRY(pb_reader_expect(field, PB_BYTES));
    if (file->n == MAX_PIECES) {
        return status_errorf(STATUS_DATA_LOSS, "more than %zu pieces", MAX_PIECES);
    }
    if (file->n == file->capacity) {
        const size_t capacity = 2 * file->capacity + 1024;
        struct sentencepiece_piece *pieces = realloc(file->pieces, capacity * sizeof *pieces);
        if (pieces == NULL) {
            return status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory for %zu pieces",
                                 capacity);
        }
        file->pieces = pieces;
        file->capacity = capacity;
    }
    const status_t s = read_piece(field->bytes, &file->pieces[file->n]);
    file->n++;
    return status_wrapf(s, "pieces[%zu]", file->n - 1);
}

static status_t read_trainer(struct text_view bytes, struct sentencepiece_file *file)
{
    struct pb_reader reader = open_message(bytes);
    struct pb_field field;
    bool more;
    TRY(pb_reader_next(&reader, &field, &more));
    while (more) {
        switch (field.number) {
        case 3:
            TRY(read_enum(&field, &file->model_type));
            break;
        case 24:
            TRY(read_bool(&field, &file->whitespace_as_suffix));
            break;
        case 35:
            TRY(read_bool(&field, &file->byte_fallback));
            break;
        case 46:
            TRY(pb_reader_expect(&field, PB_BYTES));
            file->bos_piece = field.bytes;
            break;
        default:
            break;
        }
        TRY(pb_reader_next(&reader, &field, &more));
    }
    return status_ok();
}

/* Of the denormalizer only the rules matter: precompiled_charsmap = 2. */
static status_t read_normalizer(struct text_view bytes, bool is_denormalizer,
                                struct sentencepiece_file *file)
{
    struct pb_reader reader = open_message(bytes);
    struct pb_field field;
    bool more;
    TRY(pb_reader_next(&reader, &field, &more));
    while (more) {
        if (field.number == 2) {
            TRY(pb_reader_expect(&field, PB_BYTES));
            file->n_charsmap_bytes += field.bytes.size;
        } else if (field.number >= 3 && field.number <= 5 && !is_denormalizer) {
            bool *const flags[] = {&file->add_dummy_prefix, &file->remove_extra_whitespaces,
                                   &file->escape_whitespaces};
            TRY(read_bool(&field, flags[field.number - 3]));
        }
        TRY(pb_reader_next(&reader, &field, &more));
    }
    return status_ok();
}

static status_t read_model(const void *data, size_t size, struct sentencepiece_file *file)
{
    struct pb_reader reader = {.data = data, .size = size};
    struct pb_field field;
    bool more;
    TRY(pb_reader_next(&reader, &field, &more));
    while (more) {
        switch (field.number) {
        case 1:
            TRY(add_piece(file, &field));
            break;
        case 2:
            TRY(pb_reader_expect(&field, PB_BYTES));
            TRY(status_wrapf(read_trainer(field.bytes, file), "trainer_spec"));
            break;
        case 3:
        case 5:
            TRY(pb_reader_expect(&field, PB_BYTES));
            TRY(status_wrapf(read_normalizer(field.bytes, field.number == 5, file),
                             "normalizer_spec"));
            break;
        default:
            break; // self_test_data, extensions
        }
        TRY(pb_reader_next(&reader, &field, &more));
    }
    return status_ok();
}

status_t sentencepiece_file_parse(const void *data, size_t size, struct sentencepiece_file *out)
{
    // What the schema says of absent fields.
    struct sentencepiece_file file = {.model_type = SENTENCEPIECE_UNIGRAM,
                                      .add_dummy_prefix = true,
                                      .remove_extra_whitespaces = true,
                                      .escape_whitespaces = true};
    const status_t s = read_model(data, size, &file);
    if (!status_is_ok(&s)) {
        sentencepiece_file_destroy(&file);
        return s;
    }
    *out = file;
    return status_ok();
}

void sentencepiece_file_destroy(struct sentencepiece_file *file)
{
    free(file->pieces);
    *file = (struct sentencepiece_file){0};
}

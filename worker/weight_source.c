#include "worker/weight_source.h"

#include <assert.h>
#include <string.h>

#define DEVIATION 0.02

bool weight_source_makes_up(const struct weight_source *source)
{
    return source->checkpoint == NULL;
}

status_t weight_source_check(const struct weight_source *source, const struct model_spec *spec,
                             uint64_t *bytes_out)
{
    if (weight_source_makes_up(source)) {
        *bytes_out = (uint64_t)spec_parameters(spec) * dtype_bytes(source->imitated_dtype);
        return status_ok();
    }
    return weights_check(source->checkpoint, spec, bytes_out);
}

status_t weight_source_find(struct weight_source *source, const struct weight_wanted *wanted,
                            struct weight_tensor *tensor_out)
{
    struct weight_tensor tensor = {
        .wanted = wanted,
        .n_rows = wanted->n_rows,
        .n_columns = wanted->n_columns > 0 ? wanted->n_columns : 1,
        .dtype = DTYPE_F32,
        .place = source->n_found,
    };
    if (weight_source_makes_up(source)) {
        tensor.bytes = (uint64_t)tensor.n_rows * (uint64_t)tensor.n_columns *
                       dtype_bytes(source->imitated_dtype);
    } else {
        TRY(weights_check_find(source->checkpoint, wanted, &tensor.stored));
        assert(tensor.stored.tensor != NULL);
        tensor.dtype = tensor.stored.tensor->dtype;
        tensor.bytes = tensor.stored.tensor->size_bytes;
    }
    source->n_found++;
    *tensor_out = tensor;
    return status_ok();
}

// ---- read ----

static void note_defects(struct weight_defects *defects, const struct weight_tensor *tensor,
                         uint64_t n)
{
    if (defects->n_all == 0) {
        defects->first = tensor->place;
        snprintf(defects->name, sizeof defects->name, "%s", tensor->wanted->name);
    }
    if (defects->first == tensor->place) {
        defects->n_first += n;
    }
    defects->n_all += n;
}

status_t weight_source_read(struct weight_source *source, const struct weight_tensor *tensor,
                            plan_interval_t rows, void *out)
{
    const size_t n = (size_t)(rows.end - rows.begin) * (size_t)tensor->n_columns;
    const size_t element_bytes = dtype_bytes(tensor->dtype);
    const uint64_t offset =
        (uint64_t)rows.begin * (uint64_t)tensor->n_columns * (uint64_t)element_bytes;
    TRY(checkpoint_read(source->checkpoint, tensor->stored, offset, n * element_bytes, out));
    const uint64_t n_bad = dtype_count_not_finite(out, tensor->dtype, n);
    if (n_bad > 0) {
        note_defects(&source->defects, tensor, n_bad);
    }
    return status_ok();
}

// ---- make up ----

/* FNV-1a, 64 bits. */
static uint64_t hash_of(const char *name)
{
    uint64_t hash = 0xCBF29CE484222325u;
    for (const char *c = name; *c != '\0'; c++) {
        hash = (hash ^ (uint8_t)*c) * 0x100000001B3u;
    }
    return hash;
}

static bool is_bias(const char *name)
{
    const size_t n = strlen(name);
    return n >= 5 && strcmp(name + n - 5, ".bias") == 0;
}

status_t weight_source_make_up(const struct weight_source *source,
                               const struct weight_tensor *tensor, plan_interval_t rows,
                               plan_interval_t columns, float *out)
{
    const int32_t n_rows = rows.end - rows.begin;
    const int32_t n_columns = columns.end - columns.begin;
    if (tensor->wanted->n_columns == 0) { // of a norm
        const float value = is_bias(tensor->wanted->name) ? 0.0f : 1.0f;
        for (int32_t i = 0; i < n_rows; i++) {
            out[i] = value;
        }
        return status_ok();
    }
    const struct random_args args = {
        .seed = source->seed,
        .tensor = hash_of(tensor->wanted->name),
        .row_begin = rows.begin,
        .n_rows = n_rows,
        .column_begin = columns.begin,
        .n_columns = n_columns,
        .deviation = DEVIATION,
        .out = out,
    };
    return source->backend->random(source->stream, &args);
}

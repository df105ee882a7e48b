#include "worker/weight_loader.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/convert.h"
#include "kernels/int8_rows.h"

/* Small enough to be packed while it is in the last cache, large enough to be worth waking the team for. */
#define CHUNK_BYTES ((size_t)8 * 1024 * 1024)
#define SEND_TAG    1

enum { ROW_UNIT = 16 };

static size_t row_bytes_of(const struct weight_tensor *tensor)
{
    return (size_t)tensor->n_columns * dtype_bytes(tensor->dtype);
}

static int32_t length(plan_interval_t interval)
{
    return interval.end - interval.begin;
}

static plan_interval_t overlap(plan_interval_t a, plan_interval_t b)
{
    const plan_interval_t both = {
        .begin = a.begin > b.begin ? a.begin : b.begin,
        .end = a.end < b.end ? a.end : b.end,
    };
    return both;
}

status_t weight_loader_init(const struct weight_loader_parts *parts, size_t max_row_bytes,
                            struct weight_loader *loader_out)
{
    const size_t wanted = max_row_bytes > CHUNK_BYTES ? max_row_bytes : CHUNK_BYTES;
    const size_t size = (wanted + sizeof(float) - 1) / sizeof(float) * sizeof(float);
    struct comm *comm = parts->comm;
    struct weight_loader made = {
        .source = parts->source,
        .comm = comm,
        .backend = parts->backend,
        .stream = parts->stream,
        .chunk_bytes = size,
        .chunk = malloc(size),
        .slice = malloc(2 * size), // a chunk of float16 as float32 fits too
        .failure = status_ok(),
        .wanted = calloc((size_t)comm->size, sizeof *made.wanted),
        .cuts = calloc((size_t)comm->size + 1, sizeof *made.cuts),
    };
    if (made.chunk == NULL || made.slice == NULL || made.wanted == NULL || made.cuts == NULL) {
        weight_loader_destroy(&made);
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory for two buffers of %zu bytes",
                             size);
    }
    made.largest = (float *)(made.slice + size);
    *loader_out = made;
    return status_ok();
}

void weight_loader_destroy(struct weight_loader *loader)
{
    free(loader->chunk);
    free(loader->slice);
    free(loader->wanted);
    free(loader->cuts);
    memset(loader, 0, sizeof *loader);
}

/* Keeps the first failure; the exchange goes on. */
static void keep(struct weight_loader *loader, status_t s)
{
    if (!status_is_ok(&s) && status_is_ok(&loader->failure)) {
        loader->failure = s;
    }
}

/* Whole rows into the chunk buffer. */
static void read_rows(struct weight_loader *loader, const struct weight_tensor *tensor,
                      plan_interval_t rows)
{
    const status_t s = weight_source_read(loader->source, tensor, rows, loader->chunk);
    if (!status_is_ok(&s)) {
        memset(loader->chunk, 0, (size_t)length(rows) * row_bytes_of(tensor));
    }
    keep(loader, s);
}

static void write_matrix(struct weight_loader *loader, const struct matrix_write_args *args)
{
    keep(loader, loader->backend->matrix_write(loader->stream, args));
}

// ---- rows ----

/* Rows of an array that is plain memory of the device. */
static void write_array(struct weight_loader *loader, const struct weight_tensor *tensor,
                        const struct weight_sink *sink, plan_interval_t rows, const uint8_t *from)
{
    const struct backend *backend = loader->backend;
    const int64_t n = (int64_t)length(rows) * tensor->n_columns;
    const size_t row_bytes = (size_t)tensor->n_columns * dtype_bytes(sink->array_dtype);
    uint8_t *const to =
        (uint8_t *)sink->array + (size_t)(rows.begin - sink->rows.begin) * row_bytes;
    uint8_t *const converted = backend->host_memory ? to : loader->slice;
    cpu_convert(from, tensor->dtype, n, converted, sink->array_dtype);
    keep(loader, backend->upload(loader->stream, to, converted, (size_t)length(rows) * row_bytes));
    keep(loader, backend->stream_sync(loader->stream));
}

/* data: the rows [rows.begin, rows.end) of the tensor. */
static void deliver(struct weight_loader *loader, const struct weight_rows *job,
                    plan_interval_t rows, const uint8_t *data)
{
    const struct weight_tensor *tensor = job->tensor;
    for (int32_t i = 0; i < job->n_sinks; i++) {
        const struct weight_sink *sink = &job->sinks[i];
        const plan_interval_t part = overlap(rows, sink->rows);
        if (part.end <= part.begin) {
            continue;
        }
        const int32_t at = part.begin - sink->rows.begin;
        const uint8_t *from = data + (size_t)(part.begin - rows.begin) * row_bytes_of(tensor);
        if (sink->matrix != NULL) {
            const struct matrix_write_args args = {
                .matrix = sink->matrix,
                .row_begin = sink->matrix_row + at,
                .n_rows = length(part),
                .src = from,
                .src_dtype = tensor->dtype,
                .ld_src = tensor->n_columns,
            };
            write_matrix(loader, &args);
        } else {
            write_array(loader, tensor, sink, part, from);
        }
    }
}

/* One chunk, on the rank that reads it: what it needs itself, and what others need of it. */
static status_t read_and_send(struct weight_loader *loader, const struct weight_rows *job,
                              plan_interval_t rows)
{
    const size_t row_bytes = row_bytes_of(job->tensor);
    struct comm *comm = loader->comm;
    read_rows(loader, job->tensor, rows);
    for (int32_t peer = 0; peer < comm->size; peer++) {
        const plan_interval_t part = overlap(rows, job->wanted[peer]);
        if (peer != comm->rank && part.end > part.begin) {
            TRY(comm->ops->send(comm, loader->chunk + (size_t)(part.begin - rows.begin) * row_bytes,
                                (size_t)length(part) * row_bytes, peer, SEND_TAG));
        }
    }
    deliver(loader, job, rows, loader->chunk);
    return status_ok();
}

/* The same chunk on another rank. */
static status_t receive_rows(struct weight_loader *loader, const struct weight_rows *job,
                             int32_t reader, plan_interval_t rows)
{
    struct comm *comm = loader->comm;
    const plan_interval_t part = overlap(rows, job->wanted[comm->rank]);
    if (part.end <= part.begin) {
        return status_ok();
    }
    const size_t size = (size_t)length(part) * row_bytes_of(job->tensor);
    TRY(comm->ops->recv(comm, loader->chunk, size, reader, SEND_TAG));
    deliver(loader, job, part, loader->chunk);
    return status_ok();
}

/* Whole panels of a matrix where they fit: a panel written at once is written fastest. */
static int32_t rows_that_fit(const struct weight_loader *loader, size_t row_bytes)
{
    const size_t longest = row_bytes > sizeof(float) ? row_bytes : sizeof(float); // see `largest`
    const int32_t fit = (int32_t)(loader->chunk_bytes / longest);
    return fit > ROW_UNIT ? fit / ROW_UNIT * ROW_UNIT : fit;
}

/* Each rank for itself. */
static status_t make_up_rows(struct weight_loader *loader, const struct weight_rows *job)
{
    const struct weight_tensor *tensor = job->tensor;
    const plan_interval_t all = {0, tensor->n_columns};
    const plan_interval_t own =
        job->n_sinks > 0 ? job->wanted[loader->comm->rank] : (plan_interval_t){0};
    const int32_t per_chunk = rows_that_fit(loader, row_bytes_of(tensor));
    for (int32_t row = own.begin; row < own.end; row += per_chunk) {
        const plan_interval_t rows = {row, own.end - row < per_chunk ? own.end : row + per_chunk};
        keep(loader,
             weight_source_make_up(loader->source, tensor, rows, all, (float *)loader->chunk));
        deliver(loader, job, rows, loader->chunk);
    }
    return status_ok();
}

status_t weight_loader_rows(struct weight_loader *loader, const struct weight_rows *job)
{
    if (weight_source_makes_up(loader->source)) {
        return make_up_rows(loader, job);
    }
    const int32_t per_chunk = rows_that_fit(loader, row_bytes_of(job->tensor));
    const struct comm *comm = loader->comm;
    int32_t covered = 0; // rows that lower ranks read
    for (int32_t reader = 0; reader < comm->size; reader++) {
        const int32_t end = job->wanted[reader].end;
        int32_t begin = job->wanted[reader].begin;
        begin = begin > covered ? begin : covered;
        for (int32_t row = begin; row < end; row += per_chunk) {
            const plan_interval_t rows = {row, end - row < per_chunk ? end : row + per_chunk};
            TRY(reader == comm->rank ? read_and_send(loader, job, rows)
                                     : receive_rows(loader, job, reader, rows));
        }
        covered = end > covered ? end : covered;
    }
    return status_ok();
}

// ---- columns ----

struct column_job {
    const struct weight_tensor *tensor;
    struct weight_columns columns;
};

static plan_interval_t columns_of(const struct column_job *job, int32_t rank)
{
    return (plan_interval_t){job->columns.cuts[rank], job->columns.cuts[rank + 1]};
}

static bool is_rounded(const struct column_job *job)
{
    return dtype_of_format(job->columns.format) == DTYPE_I8;
}

static size_t largest_bytes(plan_interval_t rows)
{
    return (size_t)length(rows) * sizeof(float);
}

/* Of the whole rows in the chunk buffer, where they will be needed. */
static void find_largest(struct weight_loader *loader, const struct column_job *job,
                         plan_interval_t rows)
{
    if (is_rounded(job)) {
        int8_rows_find_largest(loader->chunk, job->tensor->dtype, length(rows),
                               job->tensor->n_columns, loader->largest);
    }
}

/* Rows of this rank's columns into its matrix. */
static void write_columns(struct weight_loader *loader, const struct column_job *job,
                          plan_interval_t rows, const void *src, int32_t ld_src)
{
    const struct matrix_write_args args = {
        .matrix = job->columns.matrix,
        .row_begin = rows.begin,
        .n_rows = length(rows),
        .src = src,
        .src_dtype = job->tensor->dtype,
        .ld_src = ld_src,
        .largest = is_rounded(job) ? loader->largest : NULL,
    };
    write_matrix(loader, &args);
}

/* The columns of a rank out of the chunk's rows, packed into the slice buffer; returns their bytes. */
static size_t cut_columns(struct weight_loader *loader, const struct column_job *job,
                          int32_t n_rows, int32_t rank)
{
    const size_t element_bytes = dtype_bytes(job->tensor->dtype);
    const plan_interval_t columns = columns_of(job, rank);
    const size_t offset = (size_t)columns.begin * element_bytes;
    const size_t width = (size_t)length(columns) * element_bytes;
    const size_t row_bytes = row_bytes_of(job->tensor);
    for (int32_t i = 0; i < n_rows; i++) {
        memcpy(loader->slice + (size_t)i * width, loader->chunk + (size_t)i * row_bytes + offset,
               width);
    }
    return (size_t)n_rows * width;
}

static status_t send_columns(struct weight_loader *loader, const struct column_job *job,
                             plan_interval_t rows)
{
    struct comm *comm = loader->comm;
    find_largest(loader, job, rows);
    for (int32_t peer = 0; peer < comm->size; peer++) {
        if (peer != comm->rank && length(columns_of(job, peer)) > 0) {
            const size_t size = cut_columns(loader, job, length(rows), peer);
            TRY(comm->ops->send(comm, loader->slice, size, peer, SEND_TAG));
            if (is_rounded(job)) {
                TRY(comm->ops->send(comm, loader->largest, largest_bytes(rows), peer, SEND_TAG));
            }
        }
    }
    if (job->columns.matrix != NULL) {
        const size_t offset =
            (size_t)job->columns.cuts[comm->rank] * dtype_bytes(job->tensor->dtype);
        write_columns(loader, job, rows, loader->chunk + offset, job->tensor->n_columns);
    }
    return status_ok();
}

static status_t receive_columns(struct weight_loader *loader, const struct column_job *job,
                                int32_t reader, plan_interval_t rows)
{
    if (job->columns.matrix == NULL) {
        return status_ok();
    }
    struct comm *comm = loader->comm;
    const int32_t n_columns = length(columns_of(job, comm->rank));
    const size_t size = (size_t)length(rows) * (size_t)n_columns * dtype_bytes(job->tensor->dtype);
    TRY(comm->ops->recv(comm, loader->slice, size, reader, SEND_TAG));
    if (is_rounded(job)) {
        TRY(comm->ops->recv(comm, loader->largest, largest_bytes(rows), reader, SEND_TAG));
    }
    write_columns(loader, job, rows, loader->slice, n_columns);
    return status_ok();
}

/* Chunks are equal and small enough that every rank has one to read. */
static int32_t rows_per_chunk(const struct weight_loader *loader,
                              const struct weight_tensor *tensor)
{
    const int32_t fit = rows_that_fit(loader, row_bytes_of(tensor));
    const int32_t share = (tensor->n_rows - 1) / loader->comm->size + 1;
    return fit < share ? fit : share;
}

static plan_interval_t chunk_at(const struct weight_tensor *tensor, int32_t per_chunk,
                                int64_t index)
{
    const int64_t begin = index * per_chunk;
    const int64_t end = begin + per_chunk;
    const plan_interval_t rows = {
        .begin = (int32_t)(begin < tensor->n_rows ? begin : tensor->n_rows),
        .end = (int32_t)(end < tensor->n_rows ? end : tensor->n_rows),
    };
    return rows;
}

/* Each rank for itself: its columns, or whole rows, whose largest magnitudes are needed. */
static status_t make_up_columns(struct weight_loader *loader, const struct column_job *job)
{
    const plan_interval_t own = columns_of(job, loader->comm->rank);
    const plan_interval_t whole = {0, job->tensor->n_columns};
    const plan_interval_t made = is_rounded(job) ? whole : own;
    if (job->columns.matrix == NULL) {
        return status_ok();
    }
    const int32_t per_chunk = rows_that_fit(loader, (size_t)length(made) * sizeof(float));
    const int32_t n_rows = job->tensor->n_rows;
    const float *const values = (const float *)loader->chunk;
    for (int32_t row = 0; row < n_rows; row += per_chunk) {
        const plan_interval_t rows = {row, n_rows - row < per_chunk ? n_rows : row + per_chunk};
        keep(loader, weight_source_make_up(loader->source, job->tensor, rows, made,
                                           (float *)loader->chunk));
        find_largest(loader, job, rows);
        write_columns(loader, job, rows, values + (own.begin - made.begin), length(made));
    }
    return status_ok();
}

status_t weight_loader_columns(struct weight_loader *loader, const struct weight_tensor *tensor,
                               const struct weight_columns *columns)
{
    const struct column_job job = {tensor, *columns};
    if (weight_source_makes_up(loader->source)) {
        return make_up_columns(loader, &job);
    }
    const struct comm *comm = loader->comm;
    const int32_t per_chunk = rows_per_chunk(loader, tensor);
    const int64_t n_chunks = (tensor->n_rows + per_chunk - 1) / per_chunk;
    for (int64_t round = 0; round < n_chunks; round += comm->size) {
        const plan_interval_t mine = chunk_at(tensor, per_chunk, round + comm->rank);
        if (mine.end > mine.begin) {
            read_rows(loader, tensor, mine);
        }
        for (int32_t reader = 0; reader < comm->size; reader++) {
            const plan_interval_t rows = chunk_at(tensor, per_chunk, round + reader);
            if (rows.end > rows.begin) {
                TRY(reader == comm->rank ? send_columns(loader, &job, rows)
                                         : receive_columns(loader, &job, reader, rows));
            }
        }
    }
    return status_ok();
}

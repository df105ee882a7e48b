#include "worker/weight_loader.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/convert.h"

#define CHUNK_BYTES ((size_t)8 * 1024 * 1024)
#define SEND_TAG    1

/* A tensor as rows. */
struct shape {
    int32_t n_rows, n_columns;
    size_t element_bytes, row_bytes;
};

static struct shape shape_of(checkpoint_tensor_t tensor)
{
    const struct safetensors_tensor *t = tensor.tensor;
    struct shape shape = {
        .n_rows = (int32_t)t->shape[0],
        .n_columns = t->n_dims > 1 ? (int32_t)t->shape[1] : 1,
        .element_bytes = dtype_bytes(t->dtype),
    };
    shape.row_bytes = (size_t)shape.n_columns * shape.element_bytes;
    return shape;
}

static plan_interval_t overlap(plan_interval_t a, plan_interval_t b)
{
    const plan_interval_t both = {
        .begin = a.begin > b.begin ? a.begin : b.begin,
        .end = a.end < b.end ? a.end : b.end,
    };
    return both;
}

status_t weight_loader_init(struct weight_loader *loader, struct checkpoint *checkpoint,
                            struct comm *comm, const struct backend *backend, size_t max_row_bytes)
{
    const size_t size = max_row_bytes > CHUNK_BYTES ? max_row_bytes : CHUNK_BYTES;
    struct weight_loader made = {
        .checkpoint = checkpoint,
        .comm = comm,
        .backend = backend,
        .chunk_bytes = size,
        .chunk = malloc(size),
        .slice = malloc(size),
        .failure = status_ok(),
        .wanted = calloc((size_t)comm->size, sizeof *made.wanted),
        .cuts = calloc((size_t)comm->size + 1, sizeof *made.cuts),
    };
    if (made.chunk == NULL || made.slice == NULL || made.wanted == NULL || made.cuts == NULL) {
        weight_loader_destroy(&made);
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory for two buffers of %zu bytes",
                             size);
    }
    *loader = made;
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
static void read_rows(struct weight_loader *loader, checkpoint_tensor_t tensor,
                      const struct shape *shape, plan_interval_t rows)
{
    const size_t size = (size_t)(rows.end - rows.begin) * shape->row_bytes;
    const uint64_t offset = (uint64_t)rows.begin * shape->row_bytes;
    const status_t s = checkpoint_read(loader->checkpoint, tensor, offset, size, loader->chunk);
    if (!status_is_ok(&s)) {
        memset(loader->chunk, 0, size);
    }
    keep(loader, s);
}

// ---- rows ----

static void convert(const uint8_t *src, int src_dtype, int64_t n, uint8_t *dst, int dst_dtype)
{
    if (src_dtype == dst_dtype) {
        memcpy(dst, src, (size_t)n * dtype_bytes(src_dtype));
        return;
    }
    const size_t src_bytes = dtype_bytes(src_dtype);
    const size_t dst_bytes = dtype_bytes(dst_dtype);
    for (int64_t i = 0; i < n; i++) {
        float value;
        f32_from_any(src + (size_t)i * src_bytes, src_dtype, 1, &value);
        if (dst_dtype == DTYPE_F32) {
            memcpy(dst + (size_t)i * dst_bytes, &value, sizeof value);
        } else {
            const uint16_t half = bf16_from_f32(value);
            memcpy(dst + (size_t)i * dst_bytes, &half, sizeof half);
        }
    }
}

/* data: the rows [rows.begin, rows.end) of the tensor. */
static void deliver(struct weight_loader *loader, const struct weight_rows *job,
                    plan_interval_t rows, const uint8_t *data)
{
    const int dtype = job->tensor.tensor->dtype;
    const struct shape shape = shape_of(job->tensor);
    for (int32_t i = 0; i < job->n_sinks; i++) {
        const struct weight_sink *sink = &job->sinks[i];
        const plan_interval_t part = overlap(rows, sink->rows);
        if (part.end <= part.begin) {
            continue;
        }
        const int32_t n_rows = part.end - part.begin;
        const int32_t at = part.begin - sink->rows.begin;
        const uint8_t *from = data + (size_t)(part.begin - rows.begin) * shape.row_bytes;
        if (sink->matrix != NULL) {
            keep(loader, loader->backend->matrix_write(sink->matrix, sink->matrix_row + at, n_rows,
                                                       from, dtype, shape.n_columns));
        } else {
            const size_t row_bytes = (size_t)shape.n_columns * dtype_bytes(sink->array_dtype);
            convert(from, dtype, (int64_t)n_rows * shape.n_columns,
                    (uint8_t *)sink->array + (size_t)at * row_bytes, sink->array_dtype);
        }
    }
}

/* One chunk, on the rank that reads it: what it needs itself, and what others need of it. */
static status_t read_and_send(struct weight_loader *loader, const struct weight_rows *job,
                              plan_interval_t rows)
{
    const struct shape shape = shape_of(job->tensor);
    struct comm *comm = loader->comm;
    read_rows(loader, job->tensor, &shape, rows);
    for (int32_t peer = 0; peer < comm->size; peer++) {
        const plan_interval_t part = overlap(rows, job->wanted[peer]);
        if (peer != comm->rank && part.end > part.begin) {
            TRY(comm->ops->send(comm,
                                loader->chunk + (size_t)(part.begin - rows.begin) * shape.row_bytes,
                                (size_t)(part.end - part.begin) * shape.row_bytes, peer, SEND_TAG));
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
    const size_t size = (size_t)(part.end - part.begin) * shape_of(job->tensor).row_bytes;
    TRY(comm->ops->recv(comm, loader->chunk, size, reader, SEND_TAG));
    deliver(loader, job, part, loader->chunk);
    return status_ok();
}

status_t weight_loader_rows(struct weight_loader *loader, const struct weight_rows *job)
{
    const struct shape shape = shape_of(job->tensor);
    const int32_t per_chunk = (int32_t)(loader->chunk_bytes / shape.row_bytes);
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
    checkpoint_tensor_t tensor;
    struct shape shape;
    const int32_t *cuts;
    struct matrix *matrix;
};

/* The columns of a rank out of the chunk's rows, packed into the slice buffer; returns their bytes. */
static size_t cut_columns(struct weight_loader *loader, const struct column_job *job,
                          int32_t n_rows, int32_t rank)
{
    const size_t offset = (size_t)job->cuts[rank] * job->shape.element_bytes;
    const size_t width = (size_t)(job->cuts[rank + 1] - job->cuts[rank]) * job->shape.element_bytes;
    for (int32_t i = 0; i < n_rows; i++) {
        memcpy(loader->slice + (size_t)i * width,
               loader->chunk + (size_t)i * job->shape.row_bytes + offset, width);
    }
    return (size_t)n_rows * width;
}

static status_t send_columns(struct weight_loader *loader, const struct column_job *job,
                             plan_interval_t rows)
{
    struct comm *comm = loader->comm;
    const int32_t n_rows = rows.end - rows.begin;
    for (int32_t peer = 0; peer < comm->size; peer++) {
        if (peer != comm->rank && job->cuts[peer + 1] > job->cuts[peer]) {
            const size_t size = cut_columns(loader, job, n_rows, peer);
            TRY(comm->ops->send(comm, loader->slice, size, peer, SEND_TAG));
        }
    }
    if (job->matrix != NULL) {
        const uint8_t *own =
            loader->chunk + (size_t)job->cuts[comm->rank] * job->shape.element_bytes;
        keep(loader,
             loader->backend->matrix_write(job->matrix, rows.begin, n_rows, own,
                                           job->tensor.tensor->dtype, job->shape.n_columns));
    }
    return status_ok();
}

static status_t receive_columns(struct weight_loader *loader, const struct column_job *job,
                                int32_t reader, plan_interval_t rows)
{
    if (job->matrix == NULL) {
        return status_ok();
    }
    struct comm *comm = loader->comm;
    const int32_t n_columns = job->cuts[comm->rank + 1] - job->cuts[comm->rank];
    const int32_t n_rows = rows.end - rows.begin;
    const size_t size = (size_t)n_rows * (size_t)n_columns * job->shape.element_bytes;
    TRY(comm->ops->recv(comm, loader->slice, size, reader, SEND_TAG));
    keep(loader, loader->backend->matrix_write(job->matrix, rows.begin, n_rows, loader->slice,
                                               job->tensor.tensor->dtype, n_columns));
    return status_ok();
}

/* Chunks are equal and small enough that every rank has one to read. */
static int32_t rows_per_chunk(const struct weight_loader *loader, const struct shape *shape)
{
    const int32_t fit = (int32_t)(loader->chunk_bytes / shape->row_bytes);
    const int32_t share = (shape->n_rows - 1) / loader->comm->size + 1;
    return fit < share ? fit : share;
}

static plan_interval_t chunk_at(const struct shape *shape, int32_t per_chunk, int64_t index)
{
    const int64_t begin = index * per_chunk;
    const int64_t end = begin + per_chunk;
    const plan_interval_t rows = {
        .begin = (int32_t)(begin < shape->n_rows ? begin : shape->n_rows),
        .end = (int32_t)(end < shape->n_rows ? end : shape->n_rows),
    };
    return rows;
}

status_t weight_loader_columns(struct weight_loader *loader, checkpoint_tensor_t tensor,
                               const int32_t *cuts, struct matrix *matrix)
{
    const struct column_job job = {tensor, shape_of(tensor), cuts, matrix};
    const struct comm *comm = loader->comm;
    const int32_t per_chunk = rows_per_chunk(loader, &job.shape);
    const int64_t n_chunks = (job.shape.n_rows + per_chunk - 1) / per_chunk;
    for (int64_t round = 0; round < n_chunks; round += comm->size) {
        const plan_interval_t mine = chunk_at(&job.shape, per_chunk, round + comm->rank);
        if (mine.end > mine.begin) {
            read_rows(loader, tensor, &job.shape, mine);
        }
        for (int32_t reader = 0; reader < comm->size; reader++) {
            const plan_interval_t rows = chunk_at(&job.shape, per_chunk, round + reader);
            if (rows.end > rows.begin) {
                TRY(reader == comm->rank ? send_columns(loader, &job, rows)
                                         : receive_columns(loader, &job, reader, rows));
            }
        }
    }
    return status_ok();
}

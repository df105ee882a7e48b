/*
 * attention_merge.cu - rows of attention from the partial rows of several sources
 *
 * Shapes:   sources [M, heads of the source, D_h + ATTENTION_STATS] float32 (ld), out [M, H, D_h] bfloat16 (ld); D_h a multiple
 *           of 8, rows on 16 bytes.
 * Mapping:  a thread takes 8 columns of a row's head through all sources; blocks of 128 threads. Sources travel in the
 *           kernel's parameters (2 KB at most), so that nothing has to be uploaded or kept.
 * Numerics: float32, in the order of the sources, rounded to bfloat16 once. Bases are in powers of two.
 * Cost:     memory bound: every partial row is read once. (computed)
 */
#include "kernels/cuda/attention_merge.cuh"

enum { MERGE_THREADS = 128, MERGE_COLUMNS = 8 };

struct merge_view {
    attention_merge_args args;
    attention_source sources[ATTENTION_MAX_SOURCES];
};

// ---- device helpers ----

/* NULL: the source does not have the head. */
static __device__ __forceinline__ const float *row_of(const attention_source &source, int64_t row,
                                                      int32_t head, int32_t head_dim)
{
    if (head < source.head_begin || head >= source.head_end) {
        return nullptr;
    }
    return source.rows + row * source.ld +
           (int64_t)(head - source.head_begin) * (head_dim + ATTENTION_STATS);
}

// ---- kernels ----

static __global__ void __launch_bounds__(MERGE_THREADS)
    attention_merge(const __grid_constant__ merge_view view)
{
    const attention_merge_args &a = view.args;
    const int64_t pieces = a.head_dim / MERGE_COLUMNS;
    const int64_t index = (int64_t)blockIdx.x * MERGE_THREADS + threadIdx.x;
    const int64_t row = index / (pieces * a.n_heads);
    const int32_t head = (int32_t)(index / pieces % a.n_heads);
    const int32_t column = (int32_t)(index % pieces) * MERGE_COLUMNS;
    if (row >= a.n_rows) {
        return;
    }
    float largest = -INFINITY;
    for (int32_t s = 0; s < a.n_sources; s++) {
        const float *const part = row_of(view.sources[s], row, head, a.head_dim);
        largest = part != nullptr ? fmaxf(largest, part[a.head_dim]) : largest;
    }
    float sum = 0.0f, x[MERGE_COLUMNS] = {};
    for (int32_t s = 0; s < a.n_sources; s++) {
        const float *const part = row_of(view.sources[s], row, head, a.head_dim);
        if (part != nullptr) {
            const float weight = part_weight(part[a.head_dim], largest);
            sum += weight * part[a.head_dim + 1];
            add_8(x, part + column, weight);
        }
    }
    for (int d = 0; d < MERGE_COLUMNS; d++) {
        x[d] = sum > 0.0f ? x[d] / sum : 0.0f;
    }
    store_8(static_cast<bf16 *>(a.out) + row * a.ld + (int64_t)head * a.head_dim + column, x);
}

// ---- launchers ----

static bool is_aligned(const attention_merge_args *a)
{
    bool aligned = (uintptr_t)a->out % 16 == 0 && a->ld % 8 == 0;
    for (int32_t s = 0; s < a->n_sources; s++) {
        aligned = aligned && (uintptr_t)a->sources[s].rows % 16 == 0 && a->sources[s].ld % 4 == 0;
    }
    return aligned;
}

extern "C" status_t cuda_attention_merge(struct backend_stream *stream,
                                         const struct attention_merge_args *a)
{
    if (a->n_sources < 0 || a->n_sources > ATTENTION_MAX_SOURCES || a->n_rows < 0 ||
        a->n_heads < 0 || a->head_dim < 1 || a->head_dim % MERGE_COLUMNS != 0 ||
        a->ld < (int64_t)a->n_heads * a->head_dim || !is_aligned(a)) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "attention_merge: %d sources (at most %d), %d rows of %d heads of %d "
                             "(multiples of %d), stride %lld; rows on 16 bytes",
                             a->n_sources, ATTENTION_MAX_SOURCES, a->n_rows, a->n_heads,
                             a->head_dim, MERGE_COLUMNS, (long long)a->ld);
    }
    const int64_t n = (int64_t)a->n_rows * a->n_heads * (a->head_dim / MERGE_COLUMNS);
    if (n == 0) {
        return status_ok();
    }
    merge_view view = {};
    view.args = *a;
    for (int32_t s = 0; s < a->n_sources; s++) {
        view.sources[s] = a->sources[s];
    }
    const unsigned grid = (unsigned)((n + MERGE_THREADS - 1) / MERGE_THREADS);
    KVASIR_LAUNCH(attention_merge, grid, MERGE_THREADS, 0, stream->stream, view);
    return cuda_launched(stream, "attention_merge");
}

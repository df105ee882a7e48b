/*
 * add_norm.cu - x[r] += delta[r]; out[i] = norm(x[r]) * weight (+ bias)
 *
 * Shapes:   x [.., D] float32, delta [.., D] and out [M, D] bfloat16, weight and bias [D] float32; any D.
 * Mapping:  a block a row. A thread keeps up to `kept` eights of columns, `blockDim` eights apart, in registers with their
 *           weights, so that x and delta are read once and weights come while the sums are taken. Rows of more than 16384
 *           columns (kept = 0) are read again instead, each column by the thread that wrote it.
 * Numerics: float32. Sums: a thread's columns in order, then lanes by halving, then warps by halving: the order is that of D
 *           alone. The variance is that of differences from the mean (two passes over registers).
 * Cost:     memory bound: 10 D bytes read and written for x and delta, 2 D for out; 48 KB a row at D = 4096. Bytes under
 *           way: 48 a thread, 96 KB a multiprocessor of 2048 threads, against some 24-48 KB that hide memory's latency. The
 *           weights come from the second-level cache. Expected: 85-90 % of copy bandwidth from 1024 rows on. (computed)
 * Source:   Zhang & Sennrich 2019, arXiv:1910.07467; Ba et al. 2016, arXiv:1607.06450.
 */
#include "kernels/cuda/add_norm_row.cuh"

// ---- kernels ----

template <bool whole, int kept, int kind>
static __global__ void __launch_bounds__(ADD_NORM_MAX_THREADS) add_norm(add_norm_args a)
{
    const own_delta delta = {static_cast<const bf16 *>(a.delta)};
    add_norm_row<whole, kept, kind>(a, delta);
}

// ---- launchers ----

struct add_norm_launcher {
    struct backend_stream *stream;
    const add_norm_args *a;

    template <bool whole, int kept> void run(int n_threads) const
    {
        if (a->kind == NORM_RMS) {
            KVASIR_LAUNCH((add_norm<whole, kept, NORM_RMS>), (unsigned)a->n_rows,
                          (unsigned)n_threads, 0, stream->stream, *a);
        } else {
            KVASIR_LAUNCH((add_norm<whole, kept, NORM_LAYER>), (unsigned)a->n_rows,
                          (unsigned)n_threads, 0, stream->stream, *a);
        }
    }
};

extern "C" status_t cuda_add_norm(struct backend_stream *stream, const struct add_norm_args *a)
{
    TRY(add_norm_check(a, "add_norm"));
    if (a->n_rows == 0 || (a->delta == nullptr && a->out == nullptr)) {
        return status_ok();
    }
    const add_norm_launcher launcher = {stream, a};
    add_norm_launch(a, add_norm_aligned(a) && columns_aligned(a->delta, a->n_columns), launcher);
    return cuda_launched(stream, "add_norm");
}

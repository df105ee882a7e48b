/*
 * all_reduce.cu - sums over the ranks of a peer set; alone, or as the delta of add_norm
 *
 * Shapes:   buf [n] float32 or bfloat16; or as add_norm.cu, with delta [.., D] bfloat16 in the memory of every rank.
 * Mapping:  one shot. Every rank says that its part is there, waits until all have said so, and reads all parts:
 *
 *               rank 0   part 0 ... say -> ranks 1, 2    wait for 1, 2    x += part 0 + part 1 + part 2, norm
 *               rank 1   part 1 ... say -> ranks 0, 2    wait for 0, 2    the same
 *
 *           All blocks say it, as the first of them may; a part was written by kernels before this one, so that any of them can.
 *           A block therefore waits for no other block of its rank, whatever the order they run in. Saying is a store into
 *           the other rank's memory, waiting looks at the own: nothing is asked for across the link.
 * Order:    Sum e of a rank begins when all its earlier sums are done, as they are kernels of one stream. Thus, when sum e + 1
 *           has met the others (all ranks said e + 1), all ranks are done with reading for sum e, and the memory that was read
 *           then may be written again. Two buffers by turns are enough: what writes the buffer of sum e again comes behind
 *           sum e + 1 in the stream. `copy` takes turns by the count on the device. For sum_add_norm the caller does, whose
 *           matmul writes the buffer; the same one twice in a row would let a fast rank write what a slow one reads. Any
 *           sum in between will do.
 * Flags:    the count of sums, compared by their difference: they may wrap. It lives on the device, so that recordings count on.
 * Numerics: float32 from rank 0 up, rounded to the parts' dtype; then as add_norm.cu, to the bit.
 * Hangs:    who waits looks at words->abort from time to time and gives up for good: the set is finished then.
 * Cost:     n_ranks * bytes read, over NVLink all but one; 8 KB: 4-6 us on H100, of which 2 are the launch. (fitted)
 *           On a device that ranks share they run one after the other, in slices of milliseconds.
 */
#include "kernels/cuda/add_norm_row.cuh"
#include "kernels/cuda/all_reduce.h"

enum { THREADS = 256, MAX_BLOCKS = 64, SPINS_A_LOOK = 64 };

// ---- device helpers ----

static __device__ __forceinline__ uint32_t *flag_of(const peers_view &v, int at_rank, int of_rank)
{
    return reinterpret_cast<uint32_t *>(v.memory[at_rank] + of_rank * PEERS_FLAG_BYTES);
}

/* Until the rank has begun sum number `sum`; false where the wait was ended. */
static __device__ __forceinline__ bool wait_for(const peers_view &v, int rank, uint32_t sum)
{
    const uint32_t *const flag = flag_of(v, v.rank, rank);
    for (uint32_t n_spins = 1; (int32_t)(load_acquire_system(flag) - sum) < 0; n_spins++) {
        if (n_spins % SPINS_A_LOOK == 0 && load_acquire_system(&v.words->abort) != 0) {
            return false;
        }
        spin_pause();
    }
    return true;
}

/* The number of this sum, before its end: blocks count it up when all are done. */
static __device__ __forceinline__ uint32_t number_of_sum(const peers_view &v)
{
    return *v.n_sums + 1;
}

/* All threads of a block. Behind it the parts of all ranks are there; false: the wait was ended. */
static __device__ __forceinline__ bool meet(const peers_view &v, uint32_t sum, uint32_t label)
{
    const int rank = (int)threadIdx.x;
    bool here = true;
    if (rank < v.n_ranks) {
        store_release_system(flag_of(v, rank, v.rank), sum);
    }
    if (threadIdx.x == 0) {
        store_release_system(&v.words->mark, (uint64_t)sum << 32 | label);
    }
    __syncthreads(); // all have been told before anybody waits
    if (rank < v.n_ranks) {
        here = wait_for(v, rank, sum);
    }
    return __syncthreads_and(here);
}

/* All threads of a block, at its end. The last block counts the sum. */
static __device__ __forceinline__ void part(const peers_view &v, uint32_t sum)
{
    __syncthreads();
    if (threadIdx.x == 0 && atomic_add_acq_rel(v.n_ended, 1) + 1 == gridDim.x) {
        *v.n_ended = 0;
        *v.n_sums = sum;
    }
}

/* Eight columns, added up from rank 0 on and rounded to T. at: bytes of the buffer in every rank's memory. */
template <bool whole, typename T>
static __device__ __forceinline__ columns sum_of_ranks(const peers_view &v, int64_t at_bytes,
                                                       int64_t i, int n)
{
    columns sum = columns_get<whole>(reinterpret_cast<const T *>(v.memory[0] + at_bytes) + i, n);
#pragma unroll 2
    for (int r = 1; r < v.n_ranks; r++) {
        const columns more =
            columns_get<whole>(reinterpret_cast<const T *>(v.memory[r] + at_bytes) + i, n);
#pragma unroll
        for (int j = 0; j < COLUMNS; j++) {
            sum.x[j] += more.x[j];
        }
    }
#pragma unroll
    for (int j = 0; j < COLUMNS; j++) {
        sum.x[j] = static_cast<float>(static_cast<T>(sum.x[j]));
    }
    return sum;
}

struct ranks_delta {
    const peers_view &view;
    int64_t at_bytes;

    __device__ __forceinline__ bool is_there() const
    {
        return true;
    }

    template <bool whole> __device__ __forceinline__ columns get(int64_t at, int n) const
    {
        return sum_of_ranks<whole, bf16>(view, at_bytes, at, n);
    }
};

/* Where the copies of a sum lie: sums take turns. */
static __device__ __forceinline__ int64_t copies_at(const peers_view &v, uint32_t sum)
{
    return v.copies_at + (sum % 2) * v.room;
}

// ---- kernels ----

/* buf into the memory the other ranks read, for the sum that comes next in the stream. */
template <bool whole, typename T>
static __global__ void __launch_bounds__(THREADS) copy(peers_view v, const T *buf, int64_t n)
{
    T *const to = reinterpret_cast<T *>(v.memory[v.rank] + copies_at(v, number_of_sum(v)));
    const int64_t step = (int64_t)gridDim.x * THREADS * COLUMNS;
    for (int64_t at = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * COLUMNS; at < n; at += step) {
        const int left = n - at < COLUMNS ? (int)(n - at) : (int)COLUMNS;
        columns_put<whole>(to + at, columns_get<whole>(buf + at, left), left);
    }
}

template <bool whole, typename T>
static __global__ void __launch_bounds__(THREADS)
    sum_copies(peers_view v, T *buf, int64_t n, uint32_t label)
{
    const uint32_t sum = number_of_sum(v);
    if (!meet(v, sum, label)) {
        return;
    }
    const int64_t step = (int64_t)gridDim.x * THREADS * COLUMNS;
    for (int64_t at = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * COLUMNS; at < n; at += step) {
        const int left = n - at < COLUMNS ? (int)(n - at) : (int)COLUMNS;
        columns_put<whole>(buf + at, sum_of_ranks<whole, T>(v, copies_at(v, sum), at, left), left);
    }
    part(v, sum);
}

template <bool whole, int kept, int kind>
static __global__ void __launch_bounds__(ADD_NORM_MAX_THREADS)
    sum_add_norm(peers_view v, peers_norm_args a)
{
    const uint32_t sum = number_of_sum(v);
    if (!meet(v, sum, a.label)) {
        return;
    }
    const ranks_delta delta = {v, v.sums_at + a.which * v.room};
    add_norm_row<whole, kept, kind>(a.norm, delta);
    part(v, sum);
}

// ---- launchers ----

template <bool whole, typename T>
static void launch_sum(const struct peers *p, const peers_sum_args *a)
{
    const int64_t n_blocks = (a->n + THREADS * COLUMNS - 1) / (THREADS * COLUMNS);
    const unsigned grid = n_blocks < MAX_BLOCKS ? (unsigned)n_blocks : (unsigned)MAX_BLOCKS;
    T *const buf = static_cast<T *>(a->buf);
    KVASIR_LAUNCH((copy<whole, T>), grid, THREADS, 0, p->stream->stream, p->view, buf, a->n);
    KVASIR_LAUNCH((sum_copies<whole, T>), grid, THREADS, 0, p->stream->stream, p->view, buf, a->n,
                  a->label);
}

extern "C" status_t cuda_all_reduce(struct peers *p, const struct peers_sum_args *a)
{
    const int64_t n_bytes = a->n * (int64_t)dtype_bytes(a->dtype);
    if (a->n < 0 || n_bytes > p->max_bytes || (a->dtype != DTYPE_F32 && a->dtype != DTYPE_BF16)) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "all_reduce: %lld elements of dtype %d, at most %lld bytes",
                             (long long)a->n, a->dtype, (long long)p->max_bytes);
    }
    if (a->n == 0) {
        return status_ok();
    }
    const bool aligned = columns_aligned(a->buf, a->n);
    if (a->dtype == DTYPE_F32) {
        aligned ? launch_sum<true, float>(p, a) : launch_sum<false, float>(p, a);
    } else {
        aligned ? launch_sum<true, bf16>(p, a) : launch_sum<false, bf16>(p, a);
    }
    return cuda_launched(p->stream, "all_reduce");
}

struct sum_launcher {
    const struct peers *p;
    const peers_norm_args *a;

    template <bool whole, int kept> void run(int n_threads) const
    {
        const unsigned grid = (unsigned)a->norm.n_rows;
        if (a->norm.kind == NORM_RMS) {
            KVASIR_LAUNCH((sum_add_norm<whole, kept, NORM_RMS>), grid, (unsigned)n_threads, 0,
                          p->stream->stream, p->view, *a);
        } else {
            KVASIR_LAUNCH((sum_add_norm<whole, kept, NORM_LAYER>), grid, (unsigned)n_threads, 0,
                          p->stream->stream, p->view, *a);
        }
    }
};

/* How far into the buffer rows of a list reach is the caller's to know: they are on the device. */
extern "C" status_t cuda_all_reduce_add_norm(struct peers *p, const struct peers_norm_args *a)
{
    const add_norm_args *const norm = &a->norm;
    TRY(add_norm_check(norm, "all_reduce_add_norm"));
    const int64_t n_bytes = (int64_t)norm->n_rows * norm->n_columns * (int64_t)sizeof(bf16);
    if (n_bytes > p->max_bytes || a->which < 0 || a->which > 1) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "all_reduce_add_norm: %lld bytes in buffer %d, at most %lld",
                             (long long)n_bytes, a->which, (long long)p->max_bytes);
    }
    if (norm->n_rows == 0) {
        return status_ok();
    }
    const sum_launcher launcher = {p, a};
    add_norm_launch(norm, add_norm_aligned(norm) && norm->n_columns % COLUMNS == 0, launcher);
    return cuda_launched(p->stream, "all_reduce_add_norm");
}

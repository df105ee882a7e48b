/*
 * rope_append.cu - turns queries and keys in place, then stores keys and values into the cache
 *
 * Shapes:   q [M, H, D_h] (ld_q); k, v [M, H_kv, D_h] (ld_kv); cos, sin [.., R/2] float32; planes [unit][token][D_h];
 *           all but cos and sin bfloat16. R even, at most D_h.
 * Mapping:  a block a row. The row's work is cut into items of `width` columns: a pair of pieces that turn together (i and
 *           i + R/2), or a piece that is only copied. Threads take items front to back: queries, keys, values.
 *           width is 8 where R/2, D_h and all addresses allow 16 bytes an access, else 2 (D_h = 80, R = 20), else 1.
 * Numerics: float32 in between, rounded to bfloat16 once.
 * Cost:     memory bound: 4 H R + 6 H_kv D_h + 2 H_kv R bytes a row and the row of cos and sin; 22 KB at H = 32, H_kv = 4,
 *           D_h = R = 128, of which the latter come from the second-level cache when rows share positions. An eighth of a
 *           head is 16 bytes: 8 threads read 128 bytes in a row. Expected: 80-90 % of copy bandwidth from 1024 rows on, a
 *           launch's latency below. (computed)
 * Source:   Su et al. 2021, arXiv:2104.09864; pairs are halves, as in GPT-NeoX and Llama.
 */
#include "kernels/cuda/columns.cuh"
#include "kernels/cuda/cuda.h"

enum { THREADS = 256 };

// ---- device helpers ----

/* `width` columns in registers: bfloat16 as in memory. */
template <int width> struct piece;

template <> struct piece<8> {
    uint4 bits;
};

template <> struct piece<2> {
    uint32_t bits;
};

template <> struct piece<1> {
    uint16_t bits;
};

template <int width> static __device__ __forceinline__ piece<width> piece_load(const bf16 *from)
{
    return *reinterpret_cast<const piece<width> *>(from);
}

template <int width>
static __device__ __forceinline__ void piece_store(bf16 *to, const piece<width> &p)
{
    *reinterpret_cast<piece<width> *>(to) = p;
}

template <int width>
static __device__ __forceinline__ void angles_load(const float *__restrict__ from, float to[width])
{
    if constexpr (width == COLUMNS) {
        const columns c = columns_load(from);
        memcpy(to, c.x, sizeof c.x);
    } else {
#pragma unroll
        for (int i = 0; i < width; i++) {
            to[i] = from[i];
        }
    }
}

/* (low, high) turned by the angles of columns column .. column + width - 1. */
template <int width>
static __device__ __forceinline__ void turn(piece<width> *low, piece<width> *high,
                                            const float *__restrict__ cos,
                                            const float *__restrict__ sin)
{
    bf16 a[width], b[width];
    float c[width], d[width];
    memcpy(a, low, sizeof a);
    memcpy(b, high, sizeof b);
    angles_load<width>(cos, c);
    angles_load<width>(sin, d);
#pragma unroll
    for (int i = 0; i < width; i++) {
        const float x = __bfloat162float(a[i]), y = __bfloat162float(b[i]);
        a[i] = __float2bfloat16_rn(x * c[i] - y * d[i]);
        b[i] = __float2bfloat16_rn(y * c[i] + x * d[i]);
    }
    memcpy(low, a, sizeof a);
    memcpy(high, b, sizeof b);
}

/* What the items of a row need; counts are of items. */
struct row_items {
    int turning, still; // of a head: pairs of pieces that turn, pieces that do not
    int queries, keys, values;
};

template <int width>
static __device__ __forceinline__ row_items count_items(const rope_append_args &a)
{
    row_items n;
    n.turning = a.rotary_dim / 2 / width;
    n.still = (a.head_dim - a.rotary_dim) / width;
    n.queries = a.n_q_heads * n.turning;
    n.keys = a.n_kv_heads * (n.turning + n.still);
    n.values = a.n_kv_heads * (a.head_dim / width);
    return n;
}

/* Where the head's columns of the row's token lie in a plane. */
static __device__ __forceinline__ bf16 *in_plane(void *plane, const rope_append_args &a, int row,
                                                 int head)
{
    const int64_t unit = a.units[row] + head * a.head_units;
    return static_cast<bf16 *>(plane) + (unit * a.block_tokens + a.offsets[row]) * a.head_dim;
}

template <int width>
static __device__ __forceinline__ void turn_query(const rope_append_args &a, int row, int item,
                                                  const row_items &n, const float *cos,
                                                  const float *sin)
{
    const int column = item % n.turning * width, half = a.rotary_dim / 2;
    bf16 *const head =
        static_cast<bf16 *>(a.q) + row * a.ld_q + (int64_t)(item / n.turning) * a.head_dim;
    piece<width> low = piece_load<width>(head + column);
    piece<width> high = piece_load<width>(head + column + half);
    turn<width>(&low, &high, cos + column, sin + column);
    piece_store<width>(head + column, low);
    piece_store<width>(head + column + half, high);
}

template <int width>
static __device__ __forceinline__ void turn_key(const rope_append_args &a, int row, int item,
                                                const row_items &n, const float *cos,
                                                const float *sin)
{
    const int per_head = n.turning + n.still, part = item % per_head, half = a.rotary_dim / 2;
    bf16 *const head =
        static_cast<bf16 *>(a.k) + row * a.ld_kv + (int64_t)(item / per_head) * a.head_dim;
    bf16 *const kept = in_plane(a.k_plane, a, row, item / per_head);
    if (part >= n.turning) {
        const int column = a.rotary_dim + (part - n.turning) * width;
        piece_store<width>(kept + column, piece_load<width>(head + column));
        return;
    }
    const int column = part * width;
    piece<width> low = piece_load<width>(head + column);
    piece<width> high = piece_load<width>(head + column + half);
    turn<width>(&low, &high, cos + column, sin + column);
    piece_store<width>(head + column, low);
    piece_store<width>(head + column + half, high);
    piece_store<width>(kept + column, low);
    piece_store<width>(kept + column + half, high);
}

template <int width>
static __device__ __forceinline__ void keep_value(const rope_append_args &a, int row, int item)
{
    const int per_head = a.head_dim / width, column = item % per_head * width;
    const bf16 *const head =
        static_cast<const bf16 *>(a.v) + row * a.ld_kv + (int64_t)(item / per_head) * a.head_dim;
    piece_store<width>(in_plane(a.v_plane, a, row, item / per_head) + column,
                       piece_load<width>(head + column));
}

// ---- kernels ----

template <int width>
static __global__ void __launch_bounds__(THREADS) rope_append(rope_append_args a)
{
    const int row = (int)blockIdx.x;
    const row_items n = count_items<width>(a);
    const int64_t at = (int64_t)a.positions[row] * (a.rotary_dim / 2);
    const float *const cos = a.cos + at, *const sin = a.sin + at;
    for (int i = (int)threadIdx.x; i < n.queries + n.keys + n.values; i += THREADS) {
        if (i < n.queries) {
            turn_query<width>(a, row, i, n, cos, sin);
        } else if (i < n.queries + n.keys) {
            turn_key<width>(a, row, i - n.queries, n, cos, sin);
        } else {
            keep_value<width>(a, row, i - n.queries - n.keys);
        }
    }
}

// ---- launchers ----

static bool is_multiple(const struct rope_append_args *a, int width)
{
    const uintptr_t addresses = (uintptr_t)a->q | (uintptr_t)a->k | (uintptr_t)a->v |
                                (uintptr_t)a->k_plane | (uintptr_t)a->v_plane;
    const uintptr_t tables = (uintptr_t)a->cos | (uintptr_t)a->sin;
    return addresses % (2 * (size_t)width) == 0 && (width < COLUMNS || tables % 16 == 0) &&
           a->rotary_dim / 2 % width == 0 && a->head_dim % width == 0 && a->ld_q % width == 0 &&
           a->ld_kv % width == 0;
}

extern "C" status_t cuda_rope_append(struct backend_stream *stream,
                                     const struct rope_append_args *a)
{
    if (a->n_rows < 0 || a->n_q_heads < 0 || a->n_kv_heads < 0 || a->head_dim < 1 ||
        a->rotary_dim < 0 || a->rotary_dim % 2 != 0 || a->rotary_dim > a->head_dim) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "rope_append: %d rows of %d and %d heads of %d columns, %d turn",
                             a->n_rows, a->n_q_heads, a->n_kv_heads, a->head_dim, a->rotary_dim);
    }
    if (a->n_kv_heads > 0 && (a->kv_dtype != DTYPE_BF16 || a->block_tokens < 1)) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "rope_append: cache of dtype %d, %d tokens a block", a->kv_dtype,
                             a->block_tokens);
    }
    if (a->n_rows == 0 || (a->n_q_heads == 0 && a->n_kv_heads == 0)) {
        return status_ok();
    }
    if (is_multiple(a, 8)) {
        KVASIR_LAUNCH((rope_append<8>), (unsigned)a->n_rows, THREADS, 0, stream->stream, *a);
    } else if (is_multiple(a, 2)) {
        KVASIR_LAUNCH((rope_append<2>), (unsigned)a->n_rows, THREADS, 0, stream->stream, *a);
    } else {
        KVASIR_LAUNCH((rope_append<1>), (unsigned)a->n_rows, THREADS, 0, stream->stream, *a);
    }
    return cuda_launched(stream, "rope_append");
}

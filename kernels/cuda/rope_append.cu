/*
 * rope_append.cu - turns queries and keys in place, then stores keys and values into the cache
 *
 * Shapes:   q [M, H, D_h] (ld_q); k, v [M, H_kv, D_h] (ld_kv); cos, sin [.., R/2] float32; planes [unit][token][D_h];
 *           all but cos and sin bfloat16; or planes of int8, D_h at most 128, and scales [unit][token] (kv_format.h). R even,
 *           at most D_h.
 * Mapping:  a block a row. The row's work is cut into items of `width` columns: a pair of pieces that turn together (i and
 *           i + R/2), or a piece that is only copied. Threads take items front to back: queries, keys, values.
 *           width is 8 where R/2, D_h and all addresses allow 16 bytes an access, else 2 (D_h = 80, R = 20), else 1.
 *           Of an int8 cache a warp takes a head's key or value whole, because its scale needs all columns: up to four a lane.
 * Numerics: float32 in between, rounded to bfloat16 once; int8 is what the bfloat16 rounds to.
 * Cost:     memory bound: 4 H R + 6 H_kv D_h + 2 H_kv R bytes a row and the row of cos and sin; 22 KB at H = 32, H_kv = 4,
 *           D_h = R = 128, of which the latter come from the second-level cache when rows share positions. An eighth of a
 *           head is 16 bytes: 8 threads read 128 bytes in a row. Expected: 80-90 % of copy bandwidth from 1024 rows on, a
 *           launch's latency below. (computed)
 * Source:   Su et al. 2021, arXiv:2104.09864; pairs are halves, as in GPT-NeoX and Llama.
 */
#include <float.h>

#include "kernels/cuda/columns.cuh"
#include "kernels/cuda/cuda.h"
#include "kernels/kv_format.h"

enum { THREADS = 256 };

// ---- device helpers ----

/* `width` columns in registers: bfloat16 as in memory. */
template <int width> struct piece;

template <> struct piece<8> {
    uint4 bits;
};

template <> struct piece<4> {
    uint2 bits;
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

template <int width>
static __device__ __forceinline__ void store_bytes(int8_t *to, const int8_t (&values)[width])
{
    if constexpr (width == 4) {
        memcpy(__builtin_assume_aligned(to, 4), values, 4);
    } else if constexpr (width == 2) {
        memcpy(__builtin_assume_aligned(to, 2), values, 2);
    } else {
        to[0] = values[0];
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

/* False where another rank keeps the row's keys and values. */
static __device__ __forceinline__ bool keeps_row(const rope_append_args &a, int row)
{
    return a.n_kv_heads > 0 && a.units[row] >= 0;
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

// ---- int8 ----

enum { INT8_MAX_DIM = 128, LANE_COLUMNS = INT8_MAX_DIM / KVASIR_WARP };

/* The lane's columns of a head: pieces KVASIR_WARP apart. */
template <int width> struct lane_columns {
    enum { PIECES = LANE_COLUMNS / width };

    float x[PIECES][width];
};

template <int width> static __device__ __forceinline__ int lane_column(int index)
{
    return (index * KVASIR_WARP + (int)threadIdx.x % KVASIR_WARP) * width;
}

template <int width>
static __device__ __forceinline__ void load_piece(const bf16 *from, float (&to)[width])
{
    bf16 values[width];
    const piece<width> p = piece_load<width>(from);
    memcpy(values, &p, sizeof values);
#pragma unroll
    for (int i = 0; i < width; i++) {
        to[i] = __bfloat162float(values[i]);
    }
}

/* A piece of the head that turns, from the two it is made of: x cos - y sin in its first half, y cos + x sin in its second. */
template <int width>
static __device__ __forceinline__ void turn_piece(const bf16 *head, int column, int half,
                                                  const float *cos, const float *sin,
                                                  float (&x)[width])
{
    const bool is_low = column < half;
    const int angle = is_low ? column : column - half;
    float other[width], c[width], d[width];
    load_piece<width>(head + (is_low ? column + half : angle), other);
    angles_load<width>(cos + angle, c);
    angles_load<width>(sin + angle, d);
#pragma unroll
    for (int i = 0; i < width; i++) {
        const float turned = is_low ? x[i] * c[i] - other[i] * d[i] : x[i] * c[i] + other[i] * d[i];
        x[i] = __bfloat162float(__float2bfloat16_rn(turned));
    }
}

/* A warp: the head's columns, turned where cos is given, and then in the place of what they were. */
template <int width>
static __device__ __forceinline__ lane_columns<width>
take_head(const rope_append_args &a, bf16 *head, const float *cos, const float *sin)
{
    lane_columns<width> lane = {};
#pragma unroll
    for (int i = 0; i < lane_columns<width>::PIECES; i++) {
        const int column = lane_column<width>(i);
        if (column < a.head_dim) {
            load_piece<width>(head + column, lane.x[i]);
        }
        if (cos != nullptr && column < a.rotary_dim) {
            turn_piece<width>(head, column, a.rotary_dim / 2, cos, sin, lane.x[i]);
        }
    }
    __syncwarp(); // all have read
#pragma unroll
    for (int i = 0; i < lane_columns<width>::PIECES; i++) {
        const int column = lane_column<width>(i);
        if (cos != nullptr && column < a.rotary_dim) {
            bf16 values[width];
#pragma unroll
            for (int k = 0; k < width; k++) {
                values[k] = __float2bfloat16_rn(lane.x[i][k]);
            }
            piece<width> p;
            memcpy(&p, values, sizeof p);
            piece_store<width>(head + column, p);
        }
    }
    return lane;
}

/* A warp: its columns as int8 and their scale, the index-th row of the plane. */
template <int width>
static __device__ __forceinline__ void keep_int8(const lane_columns<width> &lane, int head_dim,
                                                 void *plane, void *scales, int64_t index)
{
    uint32_t most_bits =
        0; // magnitudes are in the order of their bits, infinities and NaN behind all others
#pragma unroll
    for (int i = 0; i < LANE_COLUMNS; i++) {
        const float x = lane.x[i / width][i % width];
        most_bits = max(most_bits, __float_as_uint(x) & 0x7fffffffu);
    }
    const float most = __uint_as_float(__reduce_max_sync(KVASIR_ALL, most_bits));
    const bool is_finite = most < INFINITY;
    bf16 rounded = __float2bfloat16_rn(is_finite ? most / KV_INT8_MAX : NAN);
    const float scale = __bfloat162float(rounded);
    const bool is_zero = scale < FLT_MIN;
    const float inverse = is_finite && !is_zero ? 1.0f / scale : 0.0f;
    if (is_zero) {
        rounded = __float2bfloat16_rn(0.0f);
    }
    int8_t *const to = static_cast<int8_t *>(plane) + index * head_dim;
#pragma unroll
    for (int i = 0; i < lane_columns<width>::PIECES; i++) {
        int8_t values[width];
#pragma unroll
        for (int k = 0; k < width; k++) {
            const float value = is_finite ? rintf(lane.x[i][k] * inverse) : 0.0f;
            const float limit = KV_INT8_MAX;
            values[k] = (int8_t)(int)fminf(fmaxf(value, -limit), limit);
        }
        const int column = lane_column<width>(i);
        if (column < head_dim) {
            store_bytes<width>(to + column, values);
        }
    }
    if (threadIdx.x % KVASIR_WARP == 0) {
        static_cast<bf16 *>(scales)[index] = rounded;
    }
}

/* All threads: the row's keys and values, a warp a head's. */
template <int width>
static __device__ __forceinline__ void keep_heads_int8(const rope_append_args &a, int row,
                                                       const float *cos, const float *sin)
{
    for (int i = (int)threadIdx.x / KVASIR_WARP; i < 2 * a.n_kv_heads; i += THREADS / KVASIR_WARP) {
        const bool is_key = i < a.n_kv_heads;
        const int head = is_key ? i : i - a.n_kv_heads;
        const int64_t unit = a.units[row] + head * a.head_units;
        bf16 *const from = static_cast<bf16 *>(is_key ? a.k : const_cast<void *>(a.v)) +
                           row * a.ld_kv + (int64_t)head * a.head_dim;
        const lane_columns<width> lane =
            take_head<width>(a, from, is_key ? cos : nullptr, is_key ? sin : nullptr);
        keep_int8<width>(lane, a.head_dim, is_key ? a.k_plane : a.v_plane,
                         is_key ? a.k_scales : a.v_scales, unit * a.block_tokens + a.offsets[row]);
    }
}

// ---- kernels ----

template <int width>
static __global__ void __launch_bounds__(THREADS) rope_append_int8(rope_append_args a)
{
    const int row = (int)blockIdx.x;
    const row_items n = count_items<width>(a);
    const int64_t at = (int64_t)a.positions[row] * (a.rotary_dim / 2);
    const float *const cos = a.cos + at, *const sin = a.sin + at;
    if (keeps_row(a, row)) {
        keep_heads_int8<(width > 4 ? 4 : width)>(a, row, cos, sin);
    }
    for (int i = (int)threadIdx.x; i < n.queries; i += THREADS) {
        turn_query<width>(a, row, i, n, cos, sin);
    }
}

template <int width>
static __global__ void __launch_bounds__(THREADS) rope_append(rope_append_args a)
{
    const int row = (int)blockIdx.x;
    const row_items n = count_items<width>(a);
    const int64_t at = (int64_t)a.positions[row] * (a.rotary_dim / 2);
    const float *const cos = a.cos + at, *const sin = a.sin + at;
    const int n_items = n.queries + (keeps_row(a, row) ? n.keys + n.values : 0);
    for (int i = (int)threadIdx.x; i < n_items; i += THREADS) {
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

template <int width>
static void launch(struct backend_stream *stream, const struct rope_append_args *a)
{
    if (a->n_kv_heads > 0 && a->kv_dtype == DTYPE_I8) {
        KVASIR_LAUNCH((rope_append_int8<width>), (unsigned)a->n_rows, THREADS, 0, stream->stream,
                      *a);
    } else {
        KVASIR_LAUNCH((rope_append<width>), (unsigned)a->n_rows, THREADS, 0, stream->stream, *a);
    }
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
    const bool is_known =
        a->kv_dtype == DTYPE_BF16 || (a->kv_dtype == DTYPE_I8 && a->head_dim <= INT8_MAX_DIM);
    if (a->n_kv_heads > 0 && (!is_known || a->block_tokens < 1)) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "rope_append: cache of dtype %s, heads of %d columns (at most %d of "
                             "int8), %d tokens a block",
                             dtype_name(a->kv_dtype), a->head_dim, INT8_MAX_DIM, a->block_tokens);
    }
    if (a->n_rows == 0 || (a->n_q_heads == 0 && a->n_kv_heads == 0)) {
        return status_ok();
    }
    if (is_multiple(a, 8)) {
        launch<8>(stream, a);
    } else if (is_multiple(a, 2)) {
        launch<2>(stream, a);
    } else {
        launch<1>(stream, a);
    }
    return cuda_launched(stream, "rope_append");
}

/*
 * warp.cc - what the lanes of a warp do together
 *
 * Layout:    the fragments of mma.m16n8k16, of mma.m16n8k32 with int8 and of ldmatrix, with lane = 4*g + t: see kernels/cuda/device.cuh.
 * Numerics:  mma multiplies exactly and adds in float64, rounding once: hardware adds in another order and truncates, so
 *            that tests compare with a tolerance.
 */
#include "tests/kernels/cuda_sim/warp.h"

enum { LANES = 32 };

static const uint32_t all_lanes = 0xffffffffu;

// ---- shuffles and votes ----

static void run_shuffle(struct sim_collective *lanes[32])
{
    for (int lane = 0; lane < LANES; lane++) {
        struct sim_shuffle *const to = reinterpret_cast<struct sim_shuffle *>(lanes[lane]);
        if (to == nullptr) {
            continue;
        }
        const bool in_warp = to->source >= 0 && to->source < LANES;
        const struct sim_shuffle *const from =
            in_warp ? reinterpret_cast<struct sim_shuffle *>(lanes[to->source]) : nullptr;
        if (from == nullptr) {
            sim_fail("%s: lane %d reads lane %d, which is not in the mask %08x", to->base.name,
                     lane, to->source, to->base.mask);
        }
        memcpy(to->result, from->value, sizeof to->result);
    }
}

void sim_shuffle(struct sim_shuffle *shuffle)
{
    shuffle->base.run = run_shuffle;
    sim_warp(&shuffle->base);
}

struct vote {
    struct sim_collective base;
    uint64_t value;
    unsigned result;
};

static void run_ballot(struct sim_collective *lanes[32])
{
    unsigned bits = 0;
    for (int lane = 0; lane < LANES; lane++) {
        if (lanes[lane] != nullptr && reinterpret_cast<struct vote *>(lanes[lane])->value != 0) {
            bits |= 1u << lane;
        }
    }
    for (int lane = 0; lane < LANES; lane++) {
        if (lanes[lane] != nullptr) {
            reinterpret_cast<struct vote *>(lanes[lane])->result = bits;
        }
    }
}

unsigned sim_ballot(const char *name, unsigned mask, int predicate)
{
    struct vote vote = {{name, mask, run_ballot}, predicate != 0, 0};
    sim_warp(&vote.base);
    return vote.result;
}

static void run_match(struct sim_collective *lanes[32])
{
    for (int lane = 0; lane < LANES; lane++) {
        struct vote *const vote = reinterpret_cast<struct vote *>(lanes[lane]);
        for (int other = 0; vote != nullptr && other < LANES; other++) {
            const struct vote *const with = reinterpret_cast<struct vote *>(lanes[other]);
            if (with != nullptr && with->value == vote->value) {
                vote->result |= 1u << other;
            }
        }
    }
}

unsigned sim_match(unsigned mask, uint64_t value)
{
    struct vote vote = {{"__match_any_sync", mask, run_match}, value, 0};
    sim_warp(&vote.base);
    return vote.result;
}

// ---- tensor cores ----

struct load_matrix {
    struct sim_collective base;
    const uint16_t *row; /* 8 elements */
    uint32_t *r;
};

static const uint16_t *matrix_row(struct sim_collective *lanes[32], int matrix, int row)
{
    return reinterpret_cast<struct load_matrix *>(lanes[8 * matrix + row])->row;
}

static void run_load_matrix(struct sim_collective *lanes[32])
{
    for (int lane = 0; lane < LANES; lane++) {
        const int g = lane / 4, t = lane % 4;
        for (int matrix = 0; matrix < 4; matrix++) {
            const uint16_t *const row = matrix_row(lanes, matrix, g);
            reinterpret_cast<struct load_matrix *>(lanes[lane])->r[matrix] =
                (uint32_t)row[2 * t] | (uint32_t)row[2 * t + 1] << 16;
        }
    }
}

static void run_load_matrix_transposed(struct sim_collective *lanes[32])
{
    for (int lane = 0; lane < LANES; lane++) {
        const int g = lane / 4, t = lane % 4;
        for (int matrix = 0; matrix < 4; matrix++) {
            const uint16_t low = matrix_row(lanes, matrix, 2 * t)[g];
            const uint16_t high = matrix_row(lanes, matrix, 2 * t + 1)[g];
            reinterpret_cast<struct load_matrix *>(lanes[lane])->r[matrix] =
                (uint32_t)low | (uint32_t)high << 16;
        }
    }
}

void sim_load_matrix_4(uint32_t r[4], const void *shared_row)
{
    sim_check_shared(shared_row, 16, "load_matrix_4");
    struct load_matrix load = {{"load_matrix_4", all_lanes, run_load_matrix},
                               static_cast<const uint16_t *>(shared_row),
                               r};
    sim_warp(&load.base);
}

void sim_load_matrix_4_transposed(uint32_t r[4], const void *shared_row)
{
    sim_check_shared(shared_row, 16, "load_matrix_4_transposed");
    struct load_matrix load = {{"load_matrix_4_transposed", all_lanes, run_load_matrix_transposed},
                               static_cast<const uint16_t *>(shared_row),
                               r};
    sim_warp(&load.base);
}

struct mma {
    struct sim_collective base;
    float *c;
    const uint32_t *a, *b;
};

static float half_of(uint32_t pair, int which)
{
    return sim_bits<float>(which == 0 ? pair << 16 : pair & 0xffff0000u);
}

static void run_mma(struct sim_collective *lanes[32])
{
    enum { M = 16, N = 8, K = 16 };

    float a[M][K], b[N][K];
    for (int lane = 0; lane < LANES; lane++) {
        const struct mma *const mma = reinterpret_cast<struct mma *>(lanes[lane]);
        const int g = lane / 4, t = lane % 4;
        for (int half = 0; half < 2; half++) {
            for (int i = 0; i < 4; i++) {
                a[g + 8 * (i % 2)][2 * t + 8 * (i / 2) + half] = half_of(mma->a[i], half);
            }
            for (int i = 0; i < 2; i++) {
                b[g][2 * t + 8 * i + half] = half_of(mma->b[i], half);
            }
        }
    }
    for (int lane = 0; lane < LANES; lane++) {
        const struct mma *const mma = reinterpret_cast<struct mma *>(lanes[lane]);
        const int g = lane / 4, t = lane % 4;
        for (int i = 0; i < 4; i++) {
            const float *const row = a[g + 8 * (i / 2)], *const column = b[2 * t + i % 2];
            double sum = (double)mma->c[i];
            for (int k = 0; k < K; k++) {
                sum += (double)row[k] * (double)column[k];
            }
            mma->c[i] = (float)sum;
        }
    }
}

void sim_mma_bf16(float c[4], const uint32_t a[4], const uint32_t b[2])
{
    struct mma mma = {{"mma_bf16", all_lanes, run_mma}, c, a, b};
    sim_warp(&mma.base);
}

struct mma_i8 {
    struct sim_collective base;
    int32_t *c;
    const uint32_t *a, *b;
};

static int32_t byte_of(uint32_t word, int which)
{
    return (int32_t)(word << (24 - 8 * which)) >> 24;
}

static void run_mma_i8(struct sim_collective *lanes[32])
{
    enum { M = 16, N = 8, K = 32 };

    int32_t a[M][K], b[N][K];
    for (int lane = 0; lane < LANES; lane++) {
        const struct mma_i8 *const mma = reinterpret_cast<struct mma_i8 *>(lanes[lane]);
        const int g = lane / 4, t = lane % 4;
        for (int byte = 0; byte < 4; byte++) {
            for (int i = 0; i < 4; i++) {
                a[g + 8 * (i % 2)][4 * t + 16 * (i / 2) + byte] = byte_of(mma->a[i], byte);
            }
            for (int i = 0; i < 2; i++) {
                b[g][4 * t + 16 * i + byte] = byte_of(mma->b[i], byte);
            }
        }
    }
    for (int lane = 0; lane < LANES; lane++) {
        const struct mma_i8 *const mma = reinterpret_cast<struct mma_i8 *>(lanes[lane]);
        const int g = lane / 4, t = lane % 4;
        for (int i = 0; i < 4; i++) {
            const int32_t *const row = a[g + 8 * (i / 2)], *const column = b[2 * t + i % 2];
            for (int k = 0; k < K; k++) {
                mma->c[i] += row[k] * column[k];
            }
        }
    }
}

void sim_mma_i8(int32_t c[4], const uint32_t a[4], const uint32_t b[2])
{
    struct mma_i8 mma = {{"mma_i8", all_lanes, run_mma_i8}, c, a, b};
    sim_warp(&mma.base);
}

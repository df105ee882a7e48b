#include "parallel/cost_rates.h"

#include <math.h>
#include <string.h>

#include "base/dtype.h"

/*
 * Data sheets: dense bf16 and int8 peaks, bandwidth of the memory. Reached parts: matmuls that wait for weights .87 of
 * the bandwidth; for many rows .85 (A100) and .805 (Hopper) of the peak, half of that at 38 and 61 rows, which is .74 to
 * .82 and .65 to .76 for 256 to 1024 rows; attention .80 of the bandwidth, .40 of the peak (mma.sync); 1 us an op.
 */
#define SXM_EFFICIENCY(flops_, half_)                                                             \
    {                                                                                             \
        .matmul_read = .87, .matmul_flops = (flops_), .matmul_half_rows = (half_), .kv_read = .8, \
        .attention_flops = .4, .elementwise = .85, .sampling = .8, .op_s = 1e-6, .step_s = 20e-6, \
        .row_s = .05e-6                                                                           \
    }

/*
 * All-reduce, fitted to published times of 8 KB, 512 KB and 8 MB on 2, 4 and 8 ranks: NCCL on A100 11/14/62 us, 14/19/91,
 * 21/27/110, on H100 11/13/45, 14/17/65, 21/25/80; one- and two-shot kernels on A100 5/8/52, 6/14/80, 8/17/94, on H100
 * 4/6/35, 5/11/54, 6/13/64. The fit is within 8 % of each, or within the rounding to 1 us.
 */
#define NCCL_LINK(bytes_per_s_)                                           \
    {                                                                     \
        .algorithm = COST_RING, .base_s = 9.33e-6, .per_rank_s = 1.67e-6, \
        .bytes_per_s = (bytes_per_s_)                                     \
    }

static const struct cost_link nccl_nvlink3 = NCCL_LINK(165e9);
static const struct cost_link nccl_nvlink4 = NCCL_LINK(247e9);
static const struct cost_link own_nvlink3 = {.algorithm = COST_SHOTS,
                                             .base_s = 4.5e-6,
                                             .per_rank_s = .45e-6,
                                             .second_s = 3.7e-6,
                                             .bytes_per_s = 178e9};
static const struct cost_link own_nvlink4 = {.algorithm = COST_SHOTS,
                                             .base_s = 3.6e-6,
                                             .per_rank_s = .33e-6,
                                             .second_s = 3.3e-6,
                                             .bytes_per_s = 270e9};
/* PCIe 4 x16, through the host bridge: an estimate. No peer kernels there: both are NCCL's ring. */
static const struct cost_link pcie4 = {.algorithm = COST_RING,
                                       .base_s = 15e-6,
                                       .per_rank_s = 4e-6,
                                       .bytes_per_s = 18e9};

/* One port a GPU: 200 Gb/s beside A100, 400 Gb/s beside Hopper, 100 Gb/s beside A10, nine tenths of it reached. */
#define NETWORK(bytes_per_s_)                                          \
    {                                                                  \
        .algorithm = COST_RING, .base_s = 10e-6, .per_rank_s = 2.5e-6, \
        .bytes_per_s = (bytes_per_s_)                                  \
    }

static const struct cost_rates gpus[COST_N_GPUS] = {
    [COST_A10] = {.name = "a10",
                  .memory_bytes = 24e9,
                  .read_bytes_per_s = 600e9,
                  .flops_per_s = 125e12,
                  .int8_flops_per_s = 250e12,
                  .activation_bytes = 2,
                  .efficiency = SXM_EFFICIENCY(.62, 20),
                  .stage = NETWORK(11e9)},
    [COST_A100_40G] = {.name = "a100-40g",
                       .memory_bytes = 40e9,
                       .read_bytes_per_s = 1555e9,
                       .flops_per_s = 312e12,
                       .int8_flops_per_s = 624e12,
                       .activation_bytes = 2,
                       .efficiency = SXM_EFFICIENCY(.85, 38),
                       .stage = NETWORK(22e9)},
    [COST_A100_80G] = {.name = "a100-80g",
                       .memory_bytes = 80e9,
                       .read_bytes_per_s = 2039e9,
                       .flops_per_s = 312e12,
                       .int8_flops_per_s = 624e12,
                       .activation_bytes = 2,
                       .efficiency = SXM_EFFICIENCY(.85, 38),
                       .stage = NETWORK(22e9)},
    [COST_H100] = {.name = "h100",
                   .memory_bytes = 80e9,
                   .read_bytes_per_s = 3350e9,
                   .flops_per_s = 989e12,
                   .int8_flops_per_s = 1979e12,
                   .activation_bytes = 2,
                   .efficiency = SXM_EFFICIENCY(.805, 61),
                   .stage = NETWORK(45e9)},
    [COST_H200] = {.name = "h200",
                   .memory_bytes = 141e9,
                   .read_bytes_per_s = 4800e9,
                   .flops_per_s = 989e12,
                   .int8_flops_per_s = 1979e12,
                   .activation_bytes = 2,
                   .efficiency = SXM_EFFICIENCY(.805, 61),
                   .stage = NETWORK(45e9)},
};

void cost_rates_of_gpu(int gpu, int comm, struct cost_rates *rates_out)
{
    static const struct cost_link *const links[COST_N_GPUS][2] = {
        [COST_A10] = {&pcie4, &pcie4},
        [COST_A100_40G] = {&own_nvlink3, &nccl_nvlink3},
        [COST_A100_80G] = {&own_nvlink3, &nccl_nvlink3},
        [COST_H100] = {&own_nvlink4, &nccl_nvlink4},
        [COST_H200] = {&own_nvlink4, &nccl_nvlink4},
    };
    *rates_out = gpus[gpu];
    rates_out->all_reduce = *links[gpu][comm];
    rates_out->exchange = *links[gpu][comm];
}

void cost_rates_bound(const struct cost_rates *rates, struct cost_rates *bound_out)
{
    *bound_out = *rates;
    bound_out->efficiency = (struct cost_efficiency){
        .matmul_read = 1, .matmul_flops = 1, .kv_read = 1, .attention_flops = 1};
    bound_out->n_matmuls = 0;
    bound_out->n_attentions = 0;
}

// ---- collectives ----

double cost_link_exchange_s(const struct cost_link *link, int32_t n_ranks, double bytes)
{
    return n_ranks < 2
               ? 0
               : link->base_s + link->per_rank_s * (n_ranks - 1) + bytes / link->bytes_per_s;
}

double cost_link_all_reduce_s(const struct cost_link *link, int32_t n_ranks, double bytes)
{
    const double n = n_ranks;
    const double two_shots =
        link->second_s + cost_link_exchange_s(link, n_ranks, 2 * (n - 1) / n * bytes);
    if (n_ranks < 2) {
        return 0;
    }
    if (link->algorithm == COST_RING) {
        return two_shots - link->second_s;
    }
    return fmin(cost_link_exchange_s(link, n_ranks, (n - 1) * bytes), two_shots);
}

// ---- matmuls ----

/* Seconds between two measured numbers of rows lie on the line through them; below the first is the first. */
static double interpolate(const struct cost_matmul_rate *rate, double rows)
{
    int32_t i = 1;
    if (rows <= rate->rows[0] || rate->n_points == 1) {
        return rate->seconds[0] * fmax(1, rows / rate->rows[0]);
    }
    while (i < rate->n_points - 1 && rows > rate->rows[i]) {
        i++;
    }
    const double share = (rows - rate->rows[i - 1]) / (rate->rows[i] - rate->rows[i - 1]);
    return rate->seconds[i - 1] + share * (rate->seconds[i] - rate->seconds[i - 1]);
}

/* The measured shape that is nearest in both sides; its seconds scaled by the size. */
static double measured_s(const struct cost_rates *rates, double rows, int32_t n_out, int32_t n_in)
{
    const struct cost_matmul_rate *best = &rates->matmuls[0];
    double least = HUGE_VAL;
    for (int32_t i = 0; i < rates->n_matmuls; i++) {
        const struct cost_matmul_rate *at = &rates->matmuls[i];
        const double distance =
            fabs(log((double)at->n_out / n_out)) + fabs(log((double)at->n_in / n_in));
        best = distance < least ? at : best;
        least = fmin(least, distance);
    }
    const double scale = (double)n_out * n_in / ((double)best->n_out * best->n_in);
    return scale * interpolate(best, rows);
}

double cost_rates_matmul_s(const struct cost_rates *rates, int format, double rows, int32_t n_out,
                           int32_t n_in)
{
    const struct cost_efficiency *e = &rates->efficiency;
    const double size = (double)n_out * n_in;
    if (rows <= 0 || size <= 0) {
        return 0;
    }
    if (rates->n_matmuls > 0) {
        return measured_s(rates, rows, n_out, n_in);
    }
    const size_t bytes = dtype_bytes(dtype_of_format(format));
    const double peak = format == MATRIX_W8A8 ? rates->int8_flops_per_s : rates->flops_per_s;
    const double reached = e->matmul_flops * rows / (rows + e->matmul_half_rows);
    return fmax(size * (double)bytes / (rates->read_bytes_per_s * e->matmul_read),
                2 * rows * size / (peak * reached));
}

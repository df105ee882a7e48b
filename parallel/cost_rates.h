/*
 * cost_rates.h - how fast a device is, as numbers a prediction can be made from
 *
 * What:      what data sheets say of a device, and what part of that programs reach. The parts are fields of their own,
 *            so that a prediction can show them: with all of them 1 and nothing fixed, it is the bound no program can
 *            beat by better kernels; with those of the device, what to expect. Rates of a machine that was measured
 *            carry seconds for its shapes instead.
 * Layout:    JSON, for --rates:
 *
 *              {"name", "memory_bytes", "read_bytes_per_s", "flops_per_s", "int8_flops_per_s", "activation_bytes",
 *               "efficiency": {...}, "all_reduce": {...}, "exchange": {...}, "stage": {...}, "n_ranks",
 *               "matmuls": [{"n_out", "n_in", "rows": [..], "seconds": [..]}],
 *               "attentions": [{"group", "kv_bytes_per_s", "flops_per_s"}]}
 *
 * Units:     seconds, bytes, floating-point operations (a multiply and an add are two).
 * Thread:    any. Plain data.
 * Source:    vendors' data sheets; all-reduce fitted to published figures of NCCL and of one- and two-shot kernels on
 *            NVLink; the reached parts of a10 and a100 are assumptions until they are measured there.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/status.h"

#define COST_MAX_POINTS     12
#define COST_MAX_SHAPES     48
#define COST_MAX_ATTENTIONS 8

/*
 * Seconds of a collective over n ranks with V bytes on each:
 *   ring:  base + per_rank (n - 1) + 2 (n - 1)/n V / bandwidth
 *   shots: the lesser of  base + per_rank (n - 1) +           (n - 1) V / bandwidth     every rank reads all others
 *                    and  base + per_rank (n - 1) + second + 2 (n - 1)/n V / bandwidth  a slice each, then all slices
 * An exchange (all-to-all) costs base + per_rank (n - 1) + what one rank sends / bandwidth.
 */
enum cost_algorithm { COST_RING, COST_SHOTS };

struct cost_link {
    int algorithm; /* enum cost_algorithm */
    double base_s, per_rank_s, second_s, bytes_per_s;
};

/* Parts of the device's rates that are reached, and what is there whatever the work. */
struct cost_efficiency {
    double matmul_read;      /* of read_bytes_per_s, where a matmul waits for weights */
    double matmul_flops;     /* of flops_per_s, for many rows ... */
    double matmul_half_rows; /* ... times rows / (rows + this) */
    double kv_read;          /* of read_bytes_per_s, in attention of one query */
    double attention_flops;  /* of flops_per_s, in attention of many queries */
    double elementwise; /* of read_bytes_per_s: norms, rotation, SwiGLU; 0: they cost nothing */
    double sampling;    /* the same, for reading logits twice */
    double op_s;   /* each op: launch, or waking the threads; measured matmuls have it in them */
    double step_s; /* each step */
    double row_s;  /* each sequence of a step */
};

struct cost_matmul_rate {
    int32_t n_out, n_in;
    int32_t n_points;
    double rows[COST_MAX_POINTS], seconds[COST_MAX_POINTS]; /* ascending */
};

struct cost_attention_rate {
    int32_t group; /* query heads a KV head */
    double kv_bytes_per_s, flops_per_s;
};

struct cost_rates {
    double memory_bytes;
    double read_bytes_per_s;
    double flops_per_s, int8_flops_per_s;
    struct cost_link all_reduce, exchange;
    struct cost_link stage; /* between nodes: pipeline stages, and collectives that leave a node */
    struct cost_efficiency efficiency;
    struct cost_attention_rate attentions[COST_MAX_ATTENTIONS]; /* [n_attentions] */
    struct cost_matmul_rate matmuls[COST_MAX_SHAPES];           /* [n_matmuls] */
    int32_t activation_bytes; /* of what ranks add up and exchange */
    int32_t n_matmuls;        /* 0: not measured */
    int32_t n_attentions;
    int32_t n_ranks; /* measured: ranks at work beside each other; 0: not measured */
    char name[64];
};

enum cost_gpu { COST_A10, COST_A100_40G, COST_A100_80G, COST_H100, COST_H200, COST_N_GPUS };

#define COST_GPU_CHOICES "a10|a100-40g|a100-80g|h100|h200"

/* How ranks of a node add up: NCCL, or kernels of our own. */
enum cost_comm { COST_COMM_OWN, COST_COMM_NCCL };

#define COST_COMM_CHOICES "own|nccl"

void cost_rates_of_gpu(int gpu, int comm, struct cost_rates *rates_out);

/* The same device with everything reached and nothing fixed: data-sheet bounds. Attention and matmuls by formula. */
void cost_rates_bound(const struct cost_rates *rates, struct cost_rates *bound_out);

double cost_link_all_reduce_s(const struct cost_link *link, int32_t n_ranks, double bytes);
double cost_link_exchange_s(const struct cost_link *link, int32_t n_ranks, double bytes);

/* Of y = x W^T with W [n_out, n_in] in an enum matrix_format and x of so many rows (an average may be no whole number). */
double cost_rates_matmul_s(const struct cost_rates *rates, int format, double rows, int32_t n_out,
                           int32_t n_in);

MUST_USE status_t cost_rates_print(const struct cost_rates *rates, struct bytes *out);

/* DATA_LOSS naming the field that is missing or no rate. */
MUST_USE status_t cost_rates_parse(const char *text, size_t size, struct cost_rates *rates_out);

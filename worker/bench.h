/*
 * bench.h - kvasir-worker --bench: measures a model on ranks without a coordinator
 *
 * What:      argv[0] is "--bench", argv[1] the part: engine or perplexity; then MODEL and the settings of bench_config.h.
 *            Under mpirun for more than one rank. Rank 0 prints a line of JSON on stdout for each result.
 *
 *              mpirun -n 2 kvasir-worker --bench engine MODEL --batch 1,16 --prompt 512 --generate 64
 *
 * Thread:    owner:main
 * Errors:    printed by rank 0; the exit code is the status's.
 */
#pragma once

#include "kernels/backend.h"

/* backend: instead of what --device names; NULL: that. */
int bench_main(int argc, char **argv, const struct backend *backend);

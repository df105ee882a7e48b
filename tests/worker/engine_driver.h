/*
 * engine_driver.h - feeds sequences to an engine, the same way on every rank, for tests
 *
 * What:      stands in for the scheduler: gives each sequence a lane and scattered KV blocks, cuts it into chunks and
 *            packs chunks of several sequences into steps. What it does depends on its arguments alone, so that every
 *            rank makes the same steps without a word.
 * Ownership: owns the engine, spec and plan, and the logits it keeps.
 * Collective: all but the last.
 */
#pragma once

#include <stddef.h>

#include "parallel/group.h"
#include "tests/worker/model_writer.h"
#include "worker/engine.h"

struct engine_driver {
    struct group *group;
    struct model_spec spec;
    struct plan plan;
    struct engine *engine;
    struct step_plan step;
    int32_t next_block; /* of every lane */
    float *moved;       /* rank 0, where another rank draws: the logits of a step */
    bool all_logits;
};

struct driver_seq {
    const int32_t *tokens;
    int32_t n_tokens;
    int32_t lane;
    float *logits;  /* rank 0: [n_tokens, n_vocab]; rows that were computed are filled */
    int32_t n_done; /* owner: the driver */
    int32_t blocks[64];
};

struct driver_options {
    int placement; /* auto: share, replicate and token, one layer after the other */
    int dtype, kv_dtype;
    int quantization; /* enum quantization */
    int32_t max_rows;
    int32_t max_steps;   /* under way at once; 0: 1 */
    uint64_t swap_bytes; /* a rank */
    int32_t pp;          /* stages, which divide the ranks; 0: 1 */
    bool
        all_logits; /* every step of a sequence wants those of its last row; else two of three do, of
                        * some rows, and the last */
    int load;       /* enum engine_load */
    uint64_t weights_seed;
    int log_fd;                    /* of warnings; 0: nowhere */
    const struct backend *backend; /* NULL: the CPU's */
    int determinism, comm_choice, comm_peers;
};

/* model is written in dir already. */
void engine_driver_open(struct engine_driver *driver, struct group *group,
                        const struct test_model *model, const char *dir,
                        const struct driver_options *options);
void engine_driver_close(struct engine_driver *driver);

/* Runs the sequences, which must be in lane order, together; chunk: tokens of each in a step at most. */
void engine_driver_run(struct engine_driver *driver, struct driver_seq *seqs, int32_t n_seqs,
                       int32_t chunk);

struct CMUnitTest;

/* main of a test of ranks: their group is each test's state. The first failure on any rank ends all of them, which would
 * otherwise wait for each other in a collective until ctest loses patience. */
int engine_driver_main(const struct CMUnitTest *tests, size_t n_tests);
struct group *engine_driver_group(void **state);

/* The directory rank 0 made for all ranks; *_end removes it. Both collective. */
void engine_driver_dir(struct group *group, char *dir);
void engine_driver_dir_end(struct group *group, const char *dir);

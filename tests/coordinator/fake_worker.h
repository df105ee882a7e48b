/*
 * fake_worker.h - a worker group without a model: a thread that speaks WorkerLink
 *
 * What:      token i of a sequence is a function of (prompt, seed, i) that tests know. Each step gives every sequence
 *            one token.
 *
 *              seed FAKE_ECHO   the prompt's tokens, again and again
 *              any other        a letter a..z, by fake_token; sample i of a request speaks as seed + i
 *
 *            Log probabilities of the prompt, where they are asked for, are minus the token's place; they come in two
 *            steps, the second of which gives the first token.
 *            A stop token ends a sequence with STOP, max_tokens ends it with LENGTH.
 * Thread:    the test's main thread, but for what the worker's own does.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

#define FAKE_ECHO 7777

struct fake_worker;

/* Zero means the default given. */
struct fake_worker_options {
    const char *address;
    const char *join_token;
    uint32_t world_size;   /* 1 */
    uint32_t link_version; /* WIRE_LINK_VERSION */
    bool has_group;        /* then: */
    uint32_t group_id, generation;
    uint64_t step_ns;            /* 0.2 ms */
    uint64_t kv_blocks_per_lane; /* 4096 */
    bool stay_loading;           /* never says ready */
    bool stay_silent;            /* ready, then neither heartbeats nor results */
    bool hold;                   /* takes work and gives no token */
    bool skip_position;          /* the second token says it is the third */
    uint64_t prompt_token_ns;    /* said of prompts; 0: nothing is said of them */
    uint32_t
        late_after; /* tokens after which a sequence with a deadline is said to be too late; 0: never */
    status_t fail; /* when not OK: says failed instead of ready */
};

struct fake_worker *fake_worker_new(const struct fake_worker_options *options);
void fake_worker_free(struct fake_worker *worker); /* ends the stream politely; accepts NULL */

/* Breaks the stream at once, as a killed process would. */
void fake_worker_kill(struct fake_worker *worker);

/* Waits for the end of the stream, at most 10 s, and gives its status. */
status_t fake_worker_wait_end(struct fake_worker *worker);

/* Counts so far. */
size_t fake_worker_n_submits(struct fake_worker *worker);
size_t fake_worker_n_cancels(struct fake_worker *worker);
size_t fake_worker_n_active(struct fake_worker *worker);

/* What the last submitted sequence had left, in nanoseconds; 0: it has no deadline. */
uint64_t fake_worker_time_left_ns(struct fake_worker *worker);

/* A sequence with this seed is here. */
bool fake_worker_computes(struct fake_worker *worker, uint64_t seed);

/* Waits at most 10 s until the counter is at least n (active: until it is exactly n). */
void fake_worker_wait_submits(struct fake_worker *worker, size_t n);
void fake_worker_wait_cancels(struct fake_worker *worker, size_t n);
void fake_worker_wait_active(struct fake_worker *worker, size_t n);

uint32_t fake_token(uint64_t seed, uint32_t index);

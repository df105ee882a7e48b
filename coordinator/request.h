/*
 * request.h - one Generate or Complete, from the call to its end
 *
 * What:      moves through the threads with the messages that carry it:
 *
 *              poller           ingress thread            core thread
 *              ------           --------------            -----------
 *              new, gate  --->  read, check, tokenize --->  QUEUED --> RUNNING --> ENDED
 *                 |                    | bad: answer           |          |           ^
 *                 |                    v                       +----------+-----------+
 *                 +--- call over: `closed` set, told to the core -----> cancelled at the worker
 *
 *            A request for n samples is n sequences to the workers, of one group; each ends by itself, and the request ends
 *            with the last of them. A beam search is submitted once, under the first of n ids, and answered under all of them at
 *            its end; until then nothing has been said of it, so that it can start again when its group is lost.
 * Ownership: counted references: one is the call's (dropped when on_closed has run), one is the pipeline's (whoever
 *            holds the request in the drawing). The pipeline answers the call, exactly once.
 * Thread:    as the groups of fields say.
 */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/arena.h"
#include "coordinator/answer.h"
#include "coordinator/core_message.h"
#include "coordinator/router.h"
#include "coordinator/tokenizer/tokenizer.h"
#include "proto/rpc/rpc.h"
#include "proto/wire/inference.h"

#define REQUEST_ID_BYTES 40 /* of an id that we make up */

/* REQUEST_ENDED: answered, but the client has not read everything yet; REQUEST_DONE: nobody knows of it any more. */
enum request_state {
    REQUEST_NEW,
    REQUEST_QUEUED,
    REQUEST_RUNNING,
    REQUEST_ENDED,
    REQUEST_DONE,
};

struct gate;
struct request;

/* A sequence of a worker group. Thread: owner:core */
struct request_sample {
    struct request *request;
    uint64_t seq_id;
    uint64_t first_token_ns, last_token_ns;
    bool ended;
    struct request_sample *next_by_seq; /* hash chain */
};

struct request {
    /* fixed when it is made */
    struct rpc_call *call; /* a reference */
    struct gate *gate;
    int shape; /* enum answer_shape */
    uint64_t received_ns;
    uint64_t deadline_ns; /* RPC_NO_DEADLINE */

    /* any thread */
    atomic_int refs;
    atomic_int closed; /* 0, or 1 + the code the call ended with */
    struct core_message arrived, gone;

    /* owner: the pipeline */
    uint8_t *raw; /* the message as it came, until it is read */
    size_t raw_bytes;
    struct arena arena; /* wire borrows from it */
    struct wire_generate_request wire;
    char made_up_id[REQUEST_ID_BYTES];
    struct token_list prompt;
    struct answer answer;
    bool entered;      /* through the gate */
    uint32_t retry_ms; /* what the client is told when it is refused; 0: as the gate says */

    /* owner: core */
    int state; /* enum request_state */
    struct router_item queue;
    int group;
    struct request_sample *samples; /* [wire.sampling.n] in the arena */
    uint32_t n_submitted;           /* the first of them; of a beam search one stands for all */
    uint32_t n_unended;             /* of them */
    uint32_t n_restarts;            /* after a group was lost */
    bool prompt_sent;
    uint64_t submitted_ns;
    struct request *next_by_id;                 /* hash chain */
    struct request *next_live, **previous_live; /* in the core's list `live` or `ended` */
    uint64_t ended_ns;
};

/* Copies the message. The caller gets both references. */
MUST_USE status_t request_new(struct rpc_call *call, struct gate *gate, const uint8_t *data,
                              size_t size, struct request **request_out);
void request_acquire(struct request *request);
void request_release(struct request *request);

/* Whether the call is over: work on the request is for nothing. */
static inline bool request_is_closed(const struct request *request)
{
    return atomic_load(&request->closed) != 0;
}

static inline bool request_is_beam_search(const struct request *request)
{
    return request->wire.sampling.beam_width > 0;
}

/* Sequences of its group that have not ended; of a beam search none ends before the others. */
static inline uint32_t request_n_seqs(const struct request *request)
{
    return request_is_beam_search(request) ? request->wire.sampling.beam_width : request->n_unended;
}

/* Ends the call with a failure and lets go of the gate. */
void request_refuse(struct request *request, const status_t *status);

/* Ends the call well; the answer has been sent. */
void request_complete(struct request *request);

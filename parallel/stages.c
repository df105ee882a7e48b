#include "parallel/stages.h"

#include <assert.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "parallel/group_parts.h"

#define SENDS_AHEAD  2
#define LAST_WAIT_NS NS_PER_S
#define PAUSE_US     200

enum tag { TAG_X = 1, TAG_DRAWN, TAG_RESULTS };

/* Copies on their way, used in turn; each goes to n_peers ranks. */
struct outbox {
    const char *what;
    int tag;
    int32_t first_peer, n_peers;
    int32_t n_slots, next;
    size_t slot_bytes;
    char *slots;           /* [n_slots][slot_bytes], host memory of the backend */
    MPI_Request *requests; /* [n_slots][n_peers] */
};

/* Messages from one rank, each asked for before it comes, taken in order. */
struct inbox {
    const char *what;
    int tag, peer;
    int32_t n_slots, first, n; /* n: asked for and not taken */
    size_t slot_bytes;
    char *slots;
    MPI_Request *requests; /* [n_slots] */
};

struct stages {
    struct group *group;
    struct stages_options options;
    int32_t stage;
    struct outbox x_out, drawn_out, results_out;
    struct inbox drawn_in, results_in;
    char *x_in[2]; /* where the device has memory of its own: pinned, used in turn */
    struct backend_mark *x_marks[2];
    int32_t x_turn;
    bool *draws;      /* [pp]: of the last steps */
    uint64_t n_begun; /* steps */
};

bool stages_is_first(const struct stages *s)
{
    return s->stage == 0;
}

bool stages_is_last(const struct stages *s)
{
    return s->stage == s->options.pp - 1;
}

static status_t check(const struct stages *s, int rc, const char *what)
{
    return comm_mpi_status(rc, what, s->group->rank);
}

// ---- memory ----

static status_t alloc_host(const struct stages *s, size_t size, char **out)
{
    void *memory = NULL;
    TRY(s->options.backend->host_alloc(s->options.stream, size, &memory));
    *out = memory;
    return status_ok();
}

static status_t make_requests(int32_t n, MPI_Request **out)
{
    MPI_Request *requests = malloc((size_t)n * sizeof(MPI_Request));
    if (requests == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "stages: no memory for %d messages", n);
    }
    for (int32_t i = 0; i < n; i++) {
        requests[i] = MPI_REQUEST_NULL;
    }
    *out = requests;
    return status_ok();
}

static status_t outbox_init(const struct stages *s, struct outbox *box)
{
    TRY(make_requests(box->n_slots * box->n_peers, &box->requests));
    return alloc_host(s, (size_t)box->n_slots * box->slot_bytes, &box->slots);
}

static status_t inbox_init(const struct stages *s, struct inbox *box)
{
    TRY(make_requests(box->n_slots, &box->requests));
    return alloc_host(s, (size_t)box->n_slots * box->slot_bytes, &box->slots);
}

// ---- out ----

static MPI_Request *requests_of(const struct outbox *box, int32_t slot)
{
    return box->requests + (ptrdiff_t)slot * box->n_peers;
}

/* The slot whose turn it is, when what it carried has been taken. */
static status_t outbox_slot(const struct stages *s, const struct outbox *box, char **slot_out)
{
    TRY(check(s, MPI_Waitall(box->n_peers, requests_of(box, box->next), MPI_STATUSES_IGNORE),
              box->what));
    *slot_out = box->slots + (size_t)box->next * box->slot_bytes;
    return status_ok();
}

static status_t outbox_send(const struct stages *s, struct outbox *box, size_t size)
{
    const char *slot = box->slots + (size_t)box->next * box->slot_bytes;
    MPI_Request *requests = requests_of(box, box->next);
    assert(size <= box->slot_bytes);
    for (int32_t i = 0; i < box->n_peers; i++) {
        TRY(check(s,
                  MPI_Isend(slot, (int)size, MPI_BYTE, box->first_peer + i, box->tag,
                            s->group->stages, &requests[i]),
                  box->what));
    }
    box->next = (box->next + 1) % box->n_slots;
    return status_ok();
}

// ---- in ----

static status_t inbox_ask(const struct stages *s, struct inbox *box)
{
    const int32_t slot = (box->first + box->n) % box->n_slots;
    if (box->n == box->n_slots) {
        return status_errorf(STATUS_INTERNAL, "%s: %d are to come already", box->what, box->n);
    }
    box->n++;
    return check(s,
                 MPI_Irecv(box->slots + (size_t)slot * box->slot_bytes, (int)box->slot_bytes,
                           MPI_BYTE, box->peer, box->tag, s->group->stages, &box->requests[slot]),
                 box->what);
}

static bool inbox_has(const struct inbox *box)
{
    int here = 0;
    const int rc = MPI_Test(&box->requests[box->first], &here, MPI_STATUS_IGNORE);
    return rc != MPI_SUCCESS || here; // a failure is found out by taking
}

/* Waits for the oldest; what it says stays until its slot is asked for again. */
static status_t inbox_take(const struct stages *s, struct inbox *box, const char **slot_out)
{
    if (box->n == 0) {
        return status_errorf(STATUS_INTERNAL, "%s: none is to come", box->what);
    }
    TRY(check(s, MPI_Wait(&box->requests[box->first], MPI_STATUS_IGNORE), box->what));
    *slot_out = box->slots + (size_t)box->first * box->slot_bytes;
    box->first = (box->first + 1) % box->n_slots;
    box->n--;
    return status_ok();
}

// ---- a step ----

/* Ids in stream order: the host's copy stays until the slot comes round, by when the stream has been waited for. */
static status_t take_drawn(struct stages *s, void *drawn)
{
    const char *slot;
    TRY(inbox_take(s, &s->drawn_in, &slot));
    return s->options.backend->upload(s->options.stream, drawn, slot, s->options.drawn_bytes);
}

status_t stages_begin(struct stages *s, bool draws, void *drawn)
{
    bool *const at = &s->draws[s->n_begun % (uint64_t)s->options.pp];
    if (stages_is_first(s) && *at) { // the step that is pp steps back
        TRY(take_drawn(s, drawn));
    }
    *at = draws;
    s->n_begun++;
    if (!draws) {
        return status_ok();
    }
    if (stages_is_first(s)) {
        TRY(inbox_ask(s, &s->drawn_in));
    }
    return s->group->rank == 0 ? inbox_ask(s, &s->results_in) : status_ok();
}

status_t stages_recv_x(struct stages *s, void *x, size_t size)
{
    const struct backend *backend = s->options.backend;
    const int32_t turn = s->x_turn;
    char *to = x;
    MPI_Status received;
    int got = 0;
    if (!backend->host_memory) {
        s->x_turn = 1 - turn;
        to = s->x_in[turn];
        TRY(backend->mark_wait(s->x_marks[turn]));
    }
    TRY(check(s,
              MPI_Recv(to, (int)size, MPI_BYTE, s->group->rank - s->options.tp, TAG_X,
                       s->group->stages, &received),
              "hand-over between stages"));
    TRY(check(s, MPI_Get_count(&received, MPI_BYTE, &got), "hand-over between stages"));
    if ((size_t)got != size) {
        return status_errorf(STATUS_INTERNAL, "rank %d got %d bytes from the stage before, not %zu",
                             s->group->rank, got, size);
    }
    TRY(backend->upload(s->options.stream, x, to, size));
    return backend->host_memory ? status_ok()
                                : backend->mark_set(s->options.stream, s->x_marks[turn]);
}

status_t stages_send_x(struct stages *s, const void *x, size_t size)
{
    const struct backend *backend = s->options.backend;
    char *slot;
    TRY(outbox_slot(s, &s->x_out, &slot));
    TRY(backend->download(s->options.stream, slot, x, size));
    TRY(backend->stream_sync(s->options.stream));
    return outbox_send(s, &s->x_out, size);
}

void stages_progress(struct stages *s)
{
    int done = 0; // a failure shows where the slot is used again
    (void)MPI_Testall(s->x_out.n_slots, s->x_out.requests, &done, MPI_STATUSES_IGNORE);
}

status_t stages_send_drawn(struct stages *s, const void *drawn, const void *results,
                           size_t results_size)
{
    const struct backend *backend = s->options.backend;
    char *ids;
    char *slot;
    TRY(outbox_slot(s, &s->drawn_out, &ids));
    TRY(outbox_slot(s, &s->results_out, &slot));
    TRY(backend->download(s->options.stream, ids, drawn, s->options.drawn_bytes));
    if (results_size > 0) {
        TRY(backend->download(s->options.stream, slot, results, results_size));
    }
    TRY(backend->stream_sync(s->options.stream));
    TRY(outbox_send(s, &s->drawn_out, s->options.drawn_bytes));
    return outbox_send(s, &s->results_out, results_size);
}

bool stages_results_are_here(struct stages *s)
{
    return s->results_in.n > 0 && inbox_has(&s->results_in);
}

status_t stages_take_results(struct stages *s, void *results_out, size_t size)
{
    const char *slot;
    TRY(inbox_take(s, &s->results_in, &slot));
    memcpy(results_out, slot, size);
    return status_ok();
}

// ---- life ----

static status_t check_sizes(const struct stages_options *o)
{
    if (o->x_bytes > INT_MAX || o->drawn_bytes > INT_MAX || o->results_bytes > INT_MAX) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "a stage hands over up to %zu bytes at once, at most %d" STATUS_FIX
                             "lower --max-num-batched-tokens",
                             o->x_bytes, INT_MAX);
    }
    return status_ok();
}

static void address_boxes(struct stages *s)
{
    const struct stages_options *o = &s->options;
    const int32_t rank = s->group->rank;
    const int32_t sampler = (o->pp - 1) * o->tp;
    s->x_out = (struct outbox){.what = "hand-over between stages",
                               .tag = TAG_X,
                               .first_peer = rank + o->tp,
                               .n_peers = 1,
                               .n_slots = SENDS_AHEAD,
                               .slot_bytes = o->x_bytes};
    s->drawn_out = (struct outbox){.what = "drawn ids",
                                   .tag = TAG_DRAWN,
                                   .n_peers = o->tp,
                                   .n_slots = o->n_steps,
                                   .slot_bytes = o->drawn_bytes};
    s->results_out = (struct outbox){.what = "results of drawing",
                                     .tag = TAG_RESULTS,
                                     .n_peers = 1,
                                     .n_slots = o->n_steps,
                                     .slot_bytes = o->results_bytes};
    s->drawn_in = (struct inbox){.what = "drawn ids",
                                 .tag = TAG_DRAWN,
                                 .peer = sampler,
                                 .n_slots = o->n_steps + 1,
                                 .slot_bytes = o->drawn_bytes};
    s->results_in = (struct inbox){.what = "results of drawing",
                                   .tag = TAG_RESULTS,
                                   .peer = sampler,
                                   .n_slots = o->n_steps,
                                   .slot_bytes = o->results_bytes};
}

/* Only what this rank says and hears. */
static status_t init(struct stages *s)
{
    const struct stages_options *o = &s->options;
    const int32_t rank = s->group->rank;
    TRY(check_sizes(o));
    address_boxes(s);
    s->draws = calloc((size_t)o->pp, sizeof *s->draws);
    if (s->draws == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "stages: no memory");
    }
    if (!stages_is_last(s)) {
        TRY(outbox_init(s, &s->x_out));
    }
    for (int i = 0; i < 2 && !stages_is_first(s) && !o->backend->host_memory; i++) {
        TRY(alloc_host(s, o->x_bytes, &s->x_in[i]));
        TRY(o->backend->mark_new(o->stream, &s->x_marks[i]));
    }
    if (rank == (o->pp - 1) * o->tp) {
        TRY(outbox_init(s, &s->drawn_out));
        TRY(outbox_init(s, &s->results_out));
    }
    if (stages_is_first(s)) {
        TRY(inbox_init(s, &s->drawn_in));
    }
    return rank == 0 ? inbox_init(s, &s->results_in) : status_ok();
}

status_t stages_new(struct group *group, const struct stages_options *options,
                    struct stages **stages_out)
{
    assert(options->pp >= 2 && options->tp * options->pp == group->size);
    struct stages *s = calloc(1, sizeof *s);
    if (s == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "stages: no memory");
    }
    s->group = group;
    s->options = *options;
    s->stage = group->rank / options->tp;
    const status_t made = init(s);
    if (!status_is_ok(&made)) {
        stages_free(s);
        return made;
    }
    *stages_out = s;
    return made;
}

/* True when all of them have gone, or come. One that never does belongs to a group that is at its end. */
static bool settle(int32_t n, MPI_Request *requests)
{
    const uint64_t begin_ns = clock_now_ns(clock_system());
    struct patience patience = patience_new(PAUSE_US);
    int done = requests == NULL;
    while (!done && clock_now_ns(clock_system()) - begin_ns < LAST_WAIT_NS &&
           MPI_Testall(n, requests, &done, MPI_STATUSES_IGNORE) == MPI_SUCCESS) {
        patience_pause(&patience);
    }
    return done;
}

/* MPI may still look at what has not gone: then it is left where it is. */
static void free_box(const struct stages *s, bool settled, char *slots, MPI_Request *requests)
{
    if (settled) {
        s->options.backend->host_free(s->options.stream, slots);
        free(requests);
    }
}

void stages_free(struct stages *s)
{
    if (s == NULL) {
        return;
    }
    const struct backend *backend = s->options.backend;
    struct outbox *const out[] = {&s->x_out, &s->drawn_out, &s->results_out};
    struct inbox *const in[] = {&s->drawn_in, &s->results_in};
    for (size_t i = 0; i < sizeof in / sizeof in[0]; i++) {
        free_box(s, settle(in[i]->n_slots, in[i]->requests), in[i]->slots, in[i]->requests);
    }
    for (size_t i = 0; i < sizeof out / sizeof out[0]; i++) {
        free_box(s, settle(out[i]->n_slots * out[i]->n_peers, out[i]->requests), out[i]->slots,
                 out[i]->requests);
    }
    for (int i = 0; i < 2; i++) {
        backend->host_free(s->options.stream, s->x_in[i]);
        backend->mark_free(s->x_marks[i]);
    }
    free(s->draws);
    free(s);
}

/*
 * Each rank has a segment of the window, which it writes and the others read:
 *
 *     header                         how far the rank is
 *     slot 0 | slot 1                what it says in even and in odd steps
 *     sums 0 | sums 1                its piece of a long sum, likewise
 *
 * A collective is one or several steps, and a step is the same for all: write the slot, say so (`said` = number of
 * the step), wait until everybody has said so, read the others' slots. A rank that has said step s has read all of step s - 1.
 * Whoever writes a slot in step s + 1 has waited for step s to be said by all, so that nobody reads step s - 1 any more,
 * which lay in the same slot: two slots are enough, and no step waits twice.
 *
 *     short sums:  everybody adds everything                              1 wait
 *     long sums:   rank r adds piece r; the others read it (`summed`)     2 waits, 2/T of the reading
 *
 * Both add in rank order, and so does comm_mpi.c: the same bits.
 *
 * Cost: 2 ranks on 2 cores with AVX2, medians of 100, beside MPI_Allreduce and MPI_Alltoallv of the same run:
 * sums of 8 KB 1.6 us (5.0), 64 KB 10 us (17), 1 MB 220 us (253); exchanges of 8 KB 0.9 us (3.9), 64 KB 7.4 us (10), 1 MB 159 us
 * (162). 3 ranks on these cores: sums of 8 KB 8 us (28), 1 MB 267 us (454). tests/parallel/bench_comm prints the table.
 */
#include "parallel/comm_shm.h"

#include <assert.h>
#include <limits.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "parallel/comm_mpi.h"

#define LINE_BYTES 64

/* Of both slots of all ranks together, and of one: enough for any message of a decode step, little enough for /dev/shm. */
#define WINDOW_BYTES ((int64_t)32 << 20)
#define MOST_BYTES   ((int64_t)1 << 20)

/* Floats that a rank would read in a short sum; above this a second wait costs less (measured). */
#define SHORT_FLOATS 8192

/* Looks at another rank's progress before the core is given up. */
#define N_SPINS 2000

/* How often the core is given up between two looks after messages of MPI. */
#define YIELDS_A_LOOK 16

struct segment {
    _Alignas(LINE_BYTES) _Atomic uint64_t said;
    _Alignas(LINE_BYTES) _Atomic uint64_t summed;
    /* Of the step, by its parity: the most bytes this rank sends to one other in the whole collective. */
    _Alignas(LINE_BYTES) int64_t most[2];
};

struct comm_shm {
    struct comm base;
    MPI_Comm ranks;
    MPI_Win window;
    uint64_t step;       /* the last one begun */
    int64_t slot_bytes;  /* a multiple of LINE_BYTES */
    int n_spins;         /* 0: there are more ranks than cores */
    char **segments;     /* [size] */
    const float **parts; /* [size]: of the sum being made */
};

static struct comm_shm *self_of(struct comm *comm)
{
    return (struct comm_shm *)comm;
}

// ---- the window ----

static struct segment *segment_of(const struct comm_shm *c, int32_t rank)
{
    return (struct segment *)c->segments[rank];
}

static char *slot_of(const struct comm_shm *c, int32_t rank)
{
    return c->segments[rank] + sizeof(struct segment) + (int64_t)(c->step % 2) * c->slot_bytes;
}

static char *sums_of(const struct comm_shm *c, int32_t rank)
{
    return slot_of(c, rank) + 2 * c->slot_bytes;
}

/* MPI's parts of a window begin anywhere: room to move to a line's beginning. */
static int64_t segment_bytes(int64_t slot_bytes)
{
    return (int64_t)sizeof(struct segment) + 4 * slot_bytes + LINE_BYTES;
}

/* The same place for every rank: windows are mapped by pages. */
static char *first_line(char *part)
{
    return part + (LINE_BYTES - (uintptr_t)part % LINE_BYTES) % LINE_BYTES;
}

// ---- steps ----

/* A rank that waits here still owes others the messages it has begun to send: MPI moves them when it is called, and who waits for
 * one of them may be who is waited for. */
static void let_messages_go(const struct comm_shm *c)
{
    int here = 0;
    (void)MPI_Iprobe(MPI_ANY_SOURCE, MPI_ANY_TAG, c->ranks, &here, MPI_STATUS_IGNORE);
}

static void wait_for(const struct comm_shm *c, const _Atomic uint64_t *progress)
{
    int n = 0;
    while (atomic_load_explicit(progress, memory_order_acquire) < c->step) {
        n++;
        if (n > c->n_spins) {
            (void)sched_yield();
        }
        if (n > c->n_spins && n % YIELDS_A_LOOK == 0) {
            let_messages_go(c);
        }
    }
}

static void begin(struct comm_shm *c)
{
    c->step++;
}

/* The slot is written: tells the others, and waits until theirs are. */
static void say(struct comm_shm *c)
{
    atomic_store_explicit(&segment_of(c, c->base.rank)->said, c->step, memory_order_release);
    for (int32_t r = 0; r < c->base.size; r++) {
        wait_for(c, &segment_of(c, r)->said);
    }
}

// ---- all_reduce ----

/* out[i] += part[i]. Without aliasing the compiler adds whole vectors. */
static void add(const float *restrict part, int64_t n, float *restrict out)
{
    for (int64_t i = 0; i < n; i++) {
        out[i] += part[i];
    }
}

/* out[i] = parts[0][i] + parts[1][i] + ..., from the left; out is none of them. */
static void add_in_rank_order(const float *const *parts, int32_t n_parts, int64_t n, float *out)
{
    enum { BLOCK = 1024 }; // the running sums stay in the first-level cache

    for (int64_t at = 0; at < n; at += BLOCK) {
        const int64_t now = n - at < BLOCK ? n - at : BLOCK;
        memcpy(out + at, parts[0] + at, (size_t)now * sizeof *out);
        for (int32_t r = 1; r < n_parts; r++) {
            add(parts[r] + at, now, out + at);
        }
    }
}

static void point_at_slots(struct comm_shm *c, int64_t first)
{
    for (int32_t r = 0; r < c->base.size; r++) {
        c->parts[r] = (const float *)slot_of(c, r) + first;
    }
}

static void sum_whole(struct comm_shm *c, float *buf, int64_t n)
{
    memcpy(slot_of(c, c->base.rank), buf, (size_t)n * sizeof *buf);
    say(c);
    point_at_slots(c, 0);
    add_in_rank_order(c->parts, c->base.size, n, buf);
}

static int64_t piece_begin(const struct comm_shm *c, int64_t n, int32_t rank)
{
    return n * rank / c->base.size;
}

/* Hands out the others' pieces, adds its own, and takes their sums. */
static void sum_by_pieces(struct comm_shm *c, float *buf, int64_t n)
{
    const int32_t rank = c->base.rank;
    const int64_t begin_of_own = piece_begin(c, n, rank);
    const int64_t end_of_own = piece_begin(c, n, rank + 1);
    float *const slot = (float *)slot_of(c, rank);
    memcpy(slot, buf, (size_t)begin_of_own * sizeof *buf);
    memcpy(slot + end_of_own, buf + end_of_own, (size_t)(n - end_of_own) * sizeof *buf);
    say(c);
    point_at_slots(c, begin_of_own);
    c->parts[rank] = buf + begin_of_own;
    add_in_rank_order(c->parts, c->base.size, end_of_own - begin_of_own, (float *)sums_of(c, rank));
    atomic_store_explicit(&segment_of(c, rank)->summed, c->step, memory_order_release);
    for (int32_t i = 0; i < c->base.size; i++) {
        const int32_t r = (rank + i) % c->base.size; // not all at the same rank at once
        const int64_t at = piece_begin(c, n, r);
        wait_for(c, &segment_of(c, r)->summed);
        memcpy(buf + at, sums_of(c, r), (size_t)(piece_begin(c, n, r + 1) - at) * sizeof *buf);
    }
}

static status_t shm_all_reduce(struct comm *comm, void *data, int64_t n, int dtype)
{
    struct comm_shm *c = self_of(comm);
    float *const buf = data;
    assert(n >= 0);
    if (dtype != DTYPE_F32) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "all_reduce of %s over shm: float32 only",
                             dtype_name(dtype));
    }
    const int64_t most = c->slot_bytes / (int64_t)sizeof *buf;
    for (int64_t at = 0; at < n; at += most) {
        const int64_t now = n - at < most ? n - at : most;
        begin(c);
        if (now * (comm->size - 1) <= SHORT_FLOATS) {
            sum_whole(c, buf + at, now);
        } else {
            sum_by_pieces(c, buf + at, now);
        }
    }
    return status_ok();
}

// ---- exchanges ----

/* Bytes of a slot for one receiver: a message of more goes in several steps. */
static int64_t share_bytes(const struct comm_shm *c, int32_t n_receivers)
{
    return c->slot_bytes / n_receivers / LINE_BYTES * LINE_BYTES;
}

/* The part of a message of n_bytes that goes in this round. */
static int64_t part_bytes(int64_t n_bytes, int64_t at, int64_t share)
{
    const int64_t left = n_bytes > at ? n_bytes - at : 0;
    return left < share ? left : share;
}

/* n bytes out of a message and into one; a message may be NULL where there are none. */
static void put(char *slot, const void *message, int64_t offset, int64_t n)
{
    if (n > 0) {
        memcpy(slot, (const char *)message + offset, (size_t)n);
    }
}

static void take(void *message, int64_t offset, const char *slot, int64_t n)
{
    if (n > 0) {
        memcpy((char *)message + offset, slot, (size_t)n);
    }
}

static void announce(struct comm_shm *c, int64_t most)
{
    segment_of(c, c->base.rank)->most[c->step % 2] = most;
}

/* What the largest message of all ranks is, once everybody has said the step. */
static int64_t largest(const struct comm_shm *c)
{
    int64_t most = 0;
    for (int32_t r = 0; r < c->base.size; r++) {
        const int64_t theirs = segment_of(c, r)->most[c->step % 2];
        most = theirs > most ? theirs : most;
    }
    return most;
}

/* Counts and displacements within what MPI can say, so that the table has one contract. */
static status_t check_numbers(const struct comm_shm *c, const char *what, const int64_t *values)
{
    for (int32_t r = 0; r < c->base.size; r++) {
        if (values[r] < 0 || values[r] > INT_MAX) {
            return status_errorf(STATUS_INVALID_ARGUMENT,
                                 "%s: count or displacement %lld for rank %d, must be 0 to %d",
                                 what, (long long)values[r], r, INT_MAX);
        }
    }
    return status_ok();
}

// NOLINTBEGIN(readability-function-size): the parameters are those of comm.h.

static status_t shm_gather_v(struct comm *comm, const void *send, int64_t n_send, void *recv,
                             const int64_t *counts, const int64_t *displs, int32_t root)
{
    struct comm_shm *c = self_of(comm);
    if (n_send < 0 || n_send > INT_MAX) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "gather_v: count %lld, must be 0 to %d",
                             (long long)n_send, INT_MAX);
    }
    if (comm->rank == root) {
        TRY(check_numbers(c, "gather_v", counts));
        TRY(check_numbers(c, "gather_v", displs));
    }
    const int64_t share = share_bytes(c, 1);
    int64_t at = 0;
    do {
        begin(c);
        announce(c, n_send);
        put(slot_of(c, comm->rank), send, at, part_bytes(n_send, at, share));
        say(c);
        for (int32_t r = 0; comm->rank == root && r < comm->size; r++) {
            take(recv, displs[r] + at, slot_of(c, r), part_bytes(counts[r], at, share));
        }
        at += share;
    } while (at < largest(c));
    return status_ok();
}

static status_t shm_all_to_all_v(struct comm *comm, const void *send, const int64_t *send_counts,
                                 const int64_t *send_displs, void *recv, const int64_t *recv_counts,
                                 const int64_t *recv_displs)
{
    struct comm_shm *c = self_of(comm);
    const int64_t *const numbers[] = {send_counts, send_displs, recv_counts, recv_displs};
    int64_t most = 0;
    for (int i = 0; i < 4; i++) {
        TRY(check_numbers(c, "all_to_all_v", numbers[i]));
    }
    for (int32_t r = 0; r < comm->size; r++) {
        most = send_counts[r] > most ? send_counts[r] : most;
    }
    const int64_t share = share_bytes(c, comm->size);
    int64_t at = 0;
    do {
        begin(c);
        announce(c, most);
        for (int32_t r = 0; r < comm->size; r++) {
            put(slot_of(c, comm->rank) + r * share, send, send_displs[r] + at,
                part_bytes(send_counts[r], at, share));
        }
        say(c);
        for (int32_t i = 0; i < comm->size; i++) {
            const int32_t r = (comm->rank + i) % comm->size;
            take(recv, recv_displs[r] + at, slot_of(c, r) + comm->rank * share,
                 part_bytes(recv_counts[r], at, share));
        }
        at += share;
    } while (at < largest(c));
    return status_ok();
}

// NOLINTEND(readability-function-size)

static status_t shm_broadcast_device(struct comm *comm, void *buf, int64_t n_bytes, int32_t root)
{
    struct comm_shm *c = self_of(comm);
    for (int64_t at = 0; at < n_bytes; at += c->slot_bytes) {
        const int64_t now = part_bytes(n_bytes, at, c->slot_bytes);
        begin(c);
        if (comm->rank == root) {
            put(slot_of(c, root), buf, at, now);
        }
        say(c);
        if (comm->rank != root) {
            take(buf, at, slot_of(c, root), now);
        }
    }
    return status_ok();
}

// ---- life ----

/* Everything but the comm it was made from. */
static void free_own(struct comm_shm *c)
{
    if (c->window != MPI_WIN_NULL) {
        (void)MPI_Win_free(&c->window);
    }
    free(c->segments);
    free(c->parts);
    free(c);
}

static void shm_free(struct comm *comm)
{
    struct comm *mpi = comm->host;
    free_own(self_of(comm));
    mpi->ops->free(mpi);
}

/* All entries block. */
static const struct comm_ops table = {
    .name = "shm",
    .all_reduce = shm_all_reduce,
    .gather_v = shm_gather_v,
    .all_to_all_v = shm_all_to_all_v,
    .broadcast_device = shm_broadcast_device,
    .all_reduce_add_norm = comm_no_all_reduce_add_norm,
    .buffer = comm_no_buffer,
    .check = comm_always_fine,
    .broadcast = comm_host_broadcast,
    .barrier = comm_host_barrier,
    .send = comm_host_send,
    .recv = comm_host_recv,
    .free = shm_free,
};

static int n_cores(void)
{
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
}

static status_t map_window(struct comm_shm *c, MPI_Comm ranks)
{
    void *mine = NULL;
    TRY(comm_mpi_status(MPI_Win_allocate_shared((MPI_Aint)segment_bytes(c->slot_bytes), LINE_BYTES,
                                                MPI_INFO_NULL, ranks, &mine, &c->window),
                        "shared window", c->base.rank));
    for (int32_t r = 0; r < c->base.size; r++) {
        MPI_Aint size = 0;
        int unit = 0;
        char *part = NULL;
        TRY(comm_mpi_status(MPI_Win_shared_query(c->window, r, &size, &unit, &part),
                            "shared window", c->base.rank));
        c->segments[r] = first_line(part);
    }
    memset(segment_of(c, c->base.rank), 0, sizeof(struct segment));
    // Nobody waits on a header before it is zeroed.
    return comm_mpi_status(MPI_Barrier(ranks), "shared window", c->base.rank);
}

status_t comm_shm_new(MPI_Comm ranks, struct comm *mpi, struct comm **comm_out)
{
    struct comm_shm *c = calloc(1, sizeof *c);
    if (c == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "collectives: no memory");
    }
    comm_init(&c->base, &table, mpi);
    c->ranks = ranks;
    c->window = MPI_WIN_NULL;
    c->n_spins = n_cores() >= mpi->size ? N_SPINS : 0;
    const int64_t part = WINDOW_BYTES / 4 / mpi->size / LINE_BYTES * LINE_BYTES;
    c->slot_bytes = part < MOST_BYTES ? part : MOST_BYTES;
    c->segments = calloc((size_t)mpi->size, sizeof *c->segments);
    c->parts = calloc((size_t)mpi->size, sizeof *c->parts);
    status_t s =
        status_errorf(STATUS_RESOURCE_EXHAUSTED, "collectives: no memory for %d ranks", mpi->size);
    if (c->segments != NULL && c->parts != NULL) {
        s = map_window(c, ranks);
    }
    if (!status_is_ok(&s)) {
        free_own(c);
        return s;
    }
    *comm_out = &c->base;
    return status_ok();
}

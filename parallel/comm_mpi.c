/*
 * The sum in rank order. MPI_Allreduce may add in any order it likes, so the numbers are brought together
 * by calls that only move bytes, and every rank adds what it got as ((x0 + x1) + x2) + ...
 *
 *     short:  all-gather; everybody adds everything                    1 exchange
 *     long:   rank r gets piece r of everybody (all-to-all), adds it,
 *             and the sums are gathered (all-gather)                   2 exchanges, 2/T of the bytes
 *
 * Both give the same bits: each element is one sum in the same order. The cost is that of MPI_Allreduce:
 * 2 ranks, shared memory, medians of 400, 4096 floats 25 us (MPI_Allreduce 30-37), 65536 floats 121 us
 * (121-151); 3 ranks on 2 cores 41 us (67-74) and 183 us (235-316).
 */
#include "parallel/comm_mpi.h"

#include <assert.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "kernels/cpu/ordered_sum.h"

/* Floats that a rank receives from the others; above this they cost more than a second exchange (measured). */
#define GATHER_FLOATS 32768

/* MPI counts are int: longer messages go in pieces. */
#define PIECE_BYTES ((size_t)1 << 30)

struct comm_mpi {
    struct comm base;
    MPI_Comm mpi;
    int owned;      /* 1: mpi ends with this */
    float *scratch; /* [COMM_MPI_SCRATCH_FLOATS] */
    int *ints;      /* [4 * size]: counts and displacements for MPI */
};

static struct comm_mpi *self_of(struct comm *comm)
{
    return (struct comm_mpi *)comm;
}

status_t comm_mpi_status(int rc, const char *what, int32_t rank)
{
    if (rc == MPI_SUCCESS) {
        return status_ok();
    }
    char text[MPI_MAX_ERROR_STRING];
    int length = 0;
    if (MPI_Error_string(rc, text, &length) != MPI_SUCCESS) {
        length = 0;
    }
    return status_errorf(STATUS_UNAVAILABLE, "%s failed on rank %d: %.*s", what, rank, length,
                         text);
}

static status_t check(const struct comm_mpi *c, int rc, const char *what)
{
    return comm_mpi_status(rc, what, c->base.rank);
}

/* One value for each rank as ints; the error names the first that does not fit. */
static status_t narrow(const struct comm_mpi *c, const char *what, const int64_t *values, int *ints)
{
    for (int32_t r = 0; r < c->base.size; r++) {
        if (values[r] < 0 || values[r] > INT_MAX) {
            return status_errorf(STATUS_INVALID_ARGUMENT,
                                 "%s: count or displacement %lld for rank %d, must be 0 to %d",
                                 what, (long long)values[r], r, INT_MAX);
        }
        ints[r] = (int)values[r];
    }
    return status_ok();
}

// ---- all_reduce ----

static status_t reduce_by_gather(struct comm_mpi *c, float *buf, int n)
{
    TRY(check(c, MPI_Allgather(buf, n, MPI_FLOAT, c->scratch, n, MPI_FLOAT, c->mpi), "all_reduce"));
    cpu_ordered_sum_f32(c->scratch, n, c->base.size, n, buf);
    return status_ok();
}

static status_t reduce_by_pieces(struct comm_mpi *c, float *buf, int n)
{
    const int32_t size = c->base.size;
    int *const counts = c->ints; // of the pieces
    int *const displs = c->ints + size;
    int *const own = c->ints + 2 * (ptrdiff_t)size; // this rank's piece, from everybody
    int *const own_displs = c->ints + 3 * (ptrdiff_t)size;
    for (int32_t r = 0; r < size; r++) {
        displs[r] = (int)((int64_t)n * r / size);
        counts[r] = (int)((int64_t)n * (r + 1) / size) - displs[r];
    }
    const int mine = counts[c->base.rank];
    for (int32_t r = 0; r < size; r++) {
        own[r] = mine;
        own_displs[r] = r * mine;
    }
    TRY(check(c,
              MPI_Alltoallv(buf, counts, displs, MPI_FLOAT, c->scratch, own, own_displs, MPI_FLOAT,
                            c->mpi),
              "all_reduce"));
    cpu_ordered_sum_f32(c->scratch, mine, size, mine, buf + displs[c->base.rank]);
    return check(
        c,
        MPI_Allgatherv(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, buf, counts, displs, MPI_FLOAT, c->mpi),
        "all_reduce");
}

static status_t mpi_all_reduce(struct comm *comm, void *data, int64_t n, int dtype)
{
    struct comm_mpi *c = self_of(comm);
    const int32_t size = comm->size;
    float *const buf = data;
    assert(n >= 0);
    if (dtype != DTYPE_F32) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "all_reduce of %s over mpi: float32 only",
                             dtype_name(dtype));
    }
    if (size == 1) {
        return status_ok();
    }
    const bool gather = n <= GATHER_FLOATS / (size - 1);
    // Gathering needs size * n floats of scratch, pieces at most n + size.
    const int64_t most = gather ? COMM_MPI_SCRATCH_FLOATS / size : COMM_MPI_SCRATCH_FLOATS - size;
    for (int64_t at = 0; at < n; at += most) {
        const int now = (int)(n - at < most ? n - at : most);
        TRY(gather ? reduce_by_gather(c, buf + at, now) : reduce_by_pieces(c, buf + at, now));
    }
    return status_ok();
}

// ---- the others ----
// NOLINTBEGIN(readability-function-size): the parameters are those of comm.h.

static status_t mpi_gather_v(struct comm *comm, const void *send, int64_t n_send, void *recv,
                             const int64_t *counts, const int64_t *displs, int32_t root)
{
    struct comm_mpi *c = self_of(comm);
    int *const n = c->ints;
    int *const at = c->ints + comm->size;
    if (n_send < 0 || n_send > INT_MAX) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "gather_v: count %lld, must be 0 to %d",
                             (long long)n_send, INT_MAX);
    }
    if (comm->rank == root) {
        TRY(narrow(c, "gather_v", counts, n));
        TRY(narrow(c, "gather_v", displs, at));
    }
    return check(c, MPI_Gatherv(send, (int)n_send, MPI_BYTE, recv, n, at, MPI_BYTE, root, c->mpi),
                 "gather_v");
}

static status_t mpi_all_to_all_v(struct comm *comm, const void *send, const int64_t *send_counts,
                                 const int64_t *send_displs, void *recv, const int64_t *recv_counts,
                                 const int64_t *recv_displs)
{
    struct comm_mpi *c = self_of(comm);
    const ptrdiff_t size = comm->size;
    int *const ints = c->ints;
    TRY(narrow(c, "all_to_all_v", send_counts, ints));
    TRY(narrow(c, "all_to_all_v", send_displs, ints + size));
    TRY(narrow(c, "all_to_all_v", recv_counts, ints + 2 * size));
    TRY(narrow(c, "all_to_all_v", recv_displs, ints + 3 * size));
    return check(c,
                 MPI_Alltoallv(send, ints, ints + size, MPI_BYTE, recv, ints + 2 * size,
                               ints + 3 * size, MPI_BYTE, c->mpi),
                 "all_to_all_v");
}

// NOLINTEND(readability-function-size)

static int piece(size_t size_bytes, size_t at)
{
    return (int)(size_bytes - at < PIECE_BYTES ? size_bytes - at : PIECE_BYTES);
}

static status_t mpi_broadcast(struct comm *comm, void *data, size_t size_bytes, int32_t root)
{
    struct comm_mpi *c = self_of(comm);
    for (size_t at = 0; at < size_bytes; at += PIECE_BYTES) {
        TRY(check(c, MPI_Bcast((char *)data + at, piece(size_bytes, at), MPI_BYTE, root, c->mpi),
                  "broadcast"));
    }
    return status_ok();
}

/* Device memory is the host's. */
static status_t mpi_broadcast_device(struct comm *comm, void *buf, int64_t n_bytes, int32_t root)
{
    assert(n_bytes >= 0);
    return mpi_broadcast(comm, buf, (size_t)n_bytes, root);
}

static status_t mpi_barrier(struct comm *comm, double timeout_s)
{
    struct comm_mpi *c = self_of(comm);
    const uint64_t start = clock_now_ns(clock_system());
    MPI_Request request;
    int done = 0;
    TRY(check(c, MPI_Ibarrier(c->mpi, &request), "barrier"));
    for (;;) {
        TRY(check(c, MPI_Test(&request, &done, MPI_STATUS_IGNORE), "barrier"));
        if (done) {
            return status_ok();
        }
        const double waited_s = (double)(clock_now_ns(clock_system()) - start) / NS_PER_S;
        if (waited_s > timeout_s) {
            return status_errorf(STATUS_DEADLINE_EXCEEDED,
                                 "barrier on rank %d: not all ranks came within %.1f s", comm->rank,
                                 timeout_s);
        }
        const struct timespec pause = {.tv_nsec = 100000};
        (void)nanosleep(&pause, NULL);
    }
}

static status_t mpi_send(struct comm *comm, const void *data, size_t size_bytes, int32_t to,
                         int32_t tag)
{
    struct comm_mpi *c = self_of(comm);
    size_t at = 0;
    do { // an empty message is a message
        TRY(check(
            c, MPI_Send((const char *)data + at, piece(size_bytes, at), MPI_BYTE, to, tag, c->mpi),
            "send"));
        at += PIECE_BYTES;
    } while (at < size_bytes);
    return status_ok();
}

static status_t mpi_recv(struct comm *comm, void *data, size_t size_bytes, int32_t from,
                         int32_t tag)
{
    struct comm_mpi *c = self_of(comm);
    size_t at = 0;
    do {
        const int want = piece(size_bytes, at);
        int got = 0;
        MPI_Status received;
        TRY(check(c, MPI_Recv((char *)data + at, want, MPI_BYTE, from, tag, c->mpi, &received),
                  "recv"));
        TRY(check(c, MPI_Get_count(&received, MPI_BYTE, &got), "recv"));
        if (got != want) {
            return status_errorf(STATUS_UNAVAILABLE,
                                 "recv on rank %d: %d bytes from rank %d, want %d", comm->rank, got,
                                 from, want);
        }
        at += PIECE_BYTES;
    } while (at < size_bytes);
    return status_ok();
}

// ---- life ----

static void mpi_free(struct comm *comm)
{
    struct comm_mpi *c = self_of(comm);
    if (c->owned) {
        (void)MPI_Comm_free(&c->mpi); // without remedy
    }
    free(c->ints);
    free(c->scratch);
    free(c);
}

/* All entries block. */
static const struct comm_ops table = {
    .name = "mpi",
    .all_reduce = mpi_all_reduce,
    .gather_v = mpi_gather_v,
    .all_to_all_v = mpi_all_to_all_v,
    .broadcast_device = mpi_broadcast_device,
    .all_reduce_add_norm = comm_no_all_reduce_add_norm,
    .buffer = comm_no_buffer,
    .check = comm_always_fine,
    .broadcast = mpi_broadcast,
    .barrier = mpi_barrier,
    .send = mpi_send,
    .recv = mpi_recv,
    .free = mpi_free,
};

status_t comm_mpi_new(MPI_Comm mpi, struct comm **comm_out)
{
    int rank = 0;
    int size = 0;
    TRY(comm_mpi_status(MPI_Comm_rank(mpi, &rank), "MPI_Comm_rank", -1));
    TRY(comm_mpi_status(MPI_Comm_size(mpi, &size), "MPI_Comm_size", rank));
    struct comm_mpi *c = calloc(1, sizeof *c);
    if (c == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "collectives: no memory");
    }
    c->base.ops = &table;
    c->base.rank = rank;
    c->base.size = size;
    c->mpi = mpi;
    c->ints = calloc(4 * (size_t)size, sizeof *c->ints);
    c->scratch = malloc(COMM_MPI_SCRATCH_FLOATS * sizeof *c->scratch);
    if (c->ints == NULL || c->scratch == NULL) {
        mpi_free(&c->base);
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "collectives: no memory for %d ranks",
                             size);
    }
    *comm_out = &c->base;
    return status_ok();
}

status_t comm_mpi_adopt(MPI_Comm mpi, struct comm **comm_out)
{
    struct comm *comm = NULL;
    const status_t s = comm_mpi_new(mpi, &comm);
    if (!status_is_ok(&s)) {
        (void)MPI_Comm_free(&mpi);
        return s;
    }
    self_of(comm)->owned = 1;
    *comm_out = comm;
    return s;
}

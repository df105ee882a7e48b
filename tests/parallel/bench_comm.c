/*
 * bench_comm.c - how long sums and exchanges between ranks of one host take, beside MPI's own
 *
 *     mpirun -n 2 --bind-to none bench_comm [ROUNDS]
 *
 * Prints medians over rounds, microseconds, in turns: MPI_Allreduce, which adds in any order, our sum in rank order over MPI,
 * and over shared memory; MPI_Alltoallv and ours. Sizes are bytes of a rank's message.
 */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/stats.h"
#include "parallel/comm.h"
#include "parallel/comm_mpi.h"
#include "parallel/group.h"

enum { MAX_BYTES = 1 << 20, MAX_RANKS = 64, N_WAYS = 5 };

struct bench {
    struct comm *shm, *mpi;
    float *x, *y;
    int n_bytes;
    int ints[4][MAX_RANKS];
    int64_t longs[4][MAX_RANKS];
};

/* The message cut in equal parts for all ranks. */
static void cut(struct bench *b)
{
    const int size = b->shm->size;
    const int part = b->n_bytes / size / (int)sizeof(float) * (int)sizeof(float);
    for (int r = 0; r < size; r++) {
        for (int i = 0; i < 4; i++) {
            b->ints[i][r] = i % 2 == 0 ? part : r * part;
            b->longs[i][r] = b->ints[i][r];
        }
    }
}

static status_t run(struct bench *b, int way)
{
    const int n = b->n_bytes / (int)sizeof(float);
    struct comm *const comm = way == 2 || way == 4 ? b->shm : b->mpi;
    switch (way) {
    case 0:
        return comm_mpi_status(
            MPI_Allreduce(MPI_IN_PLACE, b->x, n, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD),
            "MPI_Allreduce", comm->rank);
    case 1:
    case 2:
        return comm->ops->all_reduce(comm, b->x, n, DTYPE_F32);
    case 3:
        return comm_mpi_status(MPI_Alltoallv(b->x, b->ints[0], b->ints[1], MPI_BYTE, b->y,
                                             b->ints[2], b->ints[3], MPI_BYTE, MPI_COMM_WORLD),
                               "MPI_Alltoallv", comm->rank);
    default:
        return comm->ops->all_to_all_v(comm, b->x, b->longs[0], b->longs[1], b->y, b->longs[2],
                                       b->longs[3]);
    }
}

static status_t measure(struct bench *b, int rounds, double *times, double medians[N_WAYS])
{
    enum { INNER = 8 };

    memset(b->x, 0, MAX_BYTES); // sums stay finite
    cut(b);
    for (int round = 0; round < rounds; round++) {
        for (int way = 0; way < N_WAYS; way++) {
            (void)MPI_Barrier(MPI_COMM_WORLD);
            const uint64_t start = clock_now_ns(clock_system());
            for (int i = 0; i < INNER; i++) {
                TRY(run(b, way));
            }
            times[way * rounds + round] =
                (double)(clock_now_ns(clock_system()) - start) / INNER / 1e3;
        }
    }
    for (int way = 0; way < N_WAYS; way++) {
        stats_sort(times + (ptrdiff_t)way * rounds, (size_t)rounds);
        medians[way] = times[way * rounds + rounds / 2];
    }
    return status_ok();
}

static status_t measure_all(struct bench *b, int rounds, double *times)
{
    if (b->shm->rank == 0) {
        printf(
            "%d ranks, %s; medians of %d rounds, microseconds\n"
            "    bytes  MPI_Allreduce   in order, mpi   in order, %s  MPI_Alltoallv     ours, %s\n",
            b->shm->size, b->shm->ops->name, rounds, b->shm->ops->name, b->shm->ops->name);
    }
    for (b->n_bytes = 64; b->n_bytes <= MAX_BYTES; b->n_bytes *= b->n_bytes < 8192 ? 128 : 2) {
        double us[N_WAYS];
        TRY(measure(b, rounds, times, us));
        if (b->shm->rank == 0) {
            printf("%9d  %13.1f  %14.1f  %14.1f  %13.1f  %13.1f\n", b->n_bytes, us[0], us[1], us[2],
                   us[3], us[4]);
        }
    }
    return status_ok();
}

int main(int argc, char **argv)
{
    const int rounds = argc > 1 ? atoi(argv[1]) : 200;
    struct group *group = NULL;
    struct bench b = {.x = calloc(MAX_BYTES, 1), .y = calloc(MAX_BYTES, 1)};
    double *times = calloc((size_t)(rounds > 0 ? rounds : 1) * N_WAYS, sizeof *times);
    status_t s = group_open("bench", &group);
    if (status_is_ok(&s) && rounds > 0 && b.x != NULL && b.y != NULL && times != NULL) {
        b.shm = group_comm(group);
        s = comm_mpi_new(MPI_COMM_WORLD, &b.mpi);
    }
    if (status_is_ok(&s) && b.mpi != NULL) {
        s = measure_all(&b, rounds, times);
        b.mpi->ops->free(b.mpi);
    }
    if (!status_is_ok(&s)) {
        status_print(stderr, &s);
    }
    group_close(group);
    free(b.x);
    free(b.y);
    free(times);
    return status_exit_code(&s);
}

/*
 * Waiting. A blocking MPI call burns its core until it returns. Inside a step that is right: the others are
 * microseconds away. Between steps, at the start and at the end it is not: there the group tests, spins for
 * a short while, and then sleeps longer and longer (struct patience).
 *
 *     world    every process of the job              roles, end of the job
 *     ranks    the processes of this role            collectives of comm.h
 *     control  the same, apart                       group_agree, group_broadcast
 *     stages   the same, apart                       messages of stages.c
 *     splits   tp ranks of a stage                   its collectives
 */
#include "parallel/group.h"

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <mpi.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "parallel/comm_shm.h"
#include "parallel/group_parts.h"

#define ROLE_BYTES 32

/* How long agreement and the end of the job sleep at most between two looks. */
#define AGREE_SLEEP_US 2000
#define CLOSE_SLEEP_US 20000

// ---- start ----

/*
 * Settings of Open MPI that suit every rank here, unless somebody set them: ranks give up the processor while
 * they wait (their neighbours compute with several threads), and crashes stay with the system's handlers.
 */
static void set_defaults(void)
{
    (void)setenv("OMPI_MCA_mpi_yield_when_idle", "1", 0);
    (void)setenv("OMPI_MCA_opal_signal", "", 0);
}

static status_t start_mpi(void)
{
    int started = 0;
    TRY(comm_mpi_status(MPI_Initialized(&started), "MPI_Initialized", -1));
    if (started) {
        return status_errorf(STATUS_FAILED_PRECONDITION, "MPI is already started in this process");
    }
    set_defaults();
    int provided = MPI_THREAD_SINGLE;
    TRY(comm_mpi_status(MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &provided),
                        "MPI_Init_thread", -1));
    if (provided < MPI_THREAD_FUNNELED) {
        return status_errorf(STATUS_UNAVAILABLE,
                             "MPI cannot be used beside other threads (level %d)", provided);
    }
    return comm_mpi_status(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN),
                           "MPI_Comm_set_errhandler", -1);
}

/* The lowest rank of the job with this role: the same number in all its processes, and in no others. */
static status_t role_color(const char *role, int *color_out)
{
    int size = 0;
    char mine[ROLE_BYTES] = "";
    assert(strlen(role) < ROLE_BYTES);
    memcpy(mine, role, strlen(role));
    TRY(comm_mpi_status(MPI_Comm_size(MPI_COMM_WORLD, &size), "MPI_Comm_size", -1));
    char *all = calloc((size_t)size, ROLE_BYTES);
    if (all == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory for the roles of %d ranks",
                             size);
    }
    const int rc =
        MPI_Allgather(mine, ROLE_BYTES, MPI_CHAR, all, ROLE_BYTES, MPI_CHAR, MPI_COMM_WORLD);
    int color = 0;
    while (rc == MPI_SUCCESS && memcmp(all + (size_t)color * ROLE_BYTES, mine, ROLE_BYTES) != 0) {
        color++;
    }
    free(all);
    *color_out = color;
    return comm_mpi_status(rc, "exchange of roles", -1);
}

/* New communicators inherit MPI_ERRORS_RETURN from the world. */
static status_t split(struct group *group, const char *role)
{
    int color = 0;
    int world_rank = 0;
    TRY(role_color(role, &color));
    TRY(comm_mpi_status(MPI_Comm_rank(MPI_COMM_WORLD, &world_rank), "MPI_Comm_rank", -1));
    TRY(comm_mpi_status(MPI_Comm_split(MPI_COMM_WORLD, color, world_rank, &group->ranks),
                        "MPI_Comm_split", world_rank));
    TRY(comm_mpi_status(MPI_Comm_dup(group->ranks, &group->control), "MPI_Comm_dup", world_rank));
    TRY(comm_mpi_status(MPI_Comm_dup(group->ranks, &group->stages), "MPI_Comm_dup", world_rank));
    TRY(comm_mpi_status(MPI_Comm_rank(group->ranks, &group->rank), "MPI_Comm_rank", world_rank));
    return comm_mpi_status(MPI_Comm_size(group->ranks, &group->size), "MPI_Comm_size", world_rank);
}

/* Who else may run where this rank may. */
static void compare_cores(struct group *group, const cpu_set_t *sets)
{
    const cpu_set_t *mine = &sets[group->host_rank];
    bool overlapping = false;
    for (int i = 0; i < group->host_size; i++) {
        cpu_set_t both;
        CPU_AND(&both, mine, &sets[i]);
        const bool same = CPU_EQUAL(mine, &sets[i]);
        group->core_size += same;
        group->core_rank += same && i < group->host_rank;
        overlapping = overlapping || (!same && CPU_COUNT(&both) > 0);
    }
    if (overlapping) {
        group->core_size = 0;
        group->core_rank = 0;
    }
}

/* An empty set is that of a machine with more processors than it holds: equal to the others'. */
static status_t find_cores(struct group *group, MPI_Comm host)
{
    cpu_set_t *sets = calloc((size_t)group->host_size, sizeof *sets);
    if (sets == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory for %d ranks", group->host_size);
    }
    cpu_set_t mine;
    CPU_ZERO(&mine);
    (void)sched_getaffinity(0, sizeof mine, &mine);
    const status_t s = comm_mpi_status(
        MPI_Allgather(&mine, sizeof mine, MPI_BYTE, sets, sizeof mine, MPI_BYTE, host),
        "MPI_Allgather", group->rank);
    if (status_is_ok(&s)) {
        compare_cores(group, sets);
    }
    free(sets);
    return s;
}

static status_t find_host(struct group *group)
{
    MPI_Comm host = MPI_COMM_NULL;
    TRY(comm_mpi_status(
        MPI_Comm_split_type(group->ranks, MPI_COMM_TYPE_SHARED, group->rank, MPI_INFO_NULL, &host),
        "MPI_Comm_split_type", group->rank));
    TRY(comm_mpi_status(MPI_Comm_rank(host, &group->host_rank), "MPI_Comm_rank", group->rank));
    TRY(comm_mpi_status(MPI_Comm_size(host, &group->host_size), "MPI_Comm_size", group->rank));
    TRY(find_cores(group, host));
    return comm_mpi_status(MPI_Comm_free(&host), "MPI_Comm_free", group->rank);
}

/* Ranks of one host speak through memory they share. */
static status_t open_comm(const struct group *group, MPI_Comm ranks, struct comm **comm_out)
{
    struct comm *mpi = NULL;
    TRY(comm_mpi_new(ranks, &mpi));
    *comm_out = mpi;
    return mpi->size > 1 && group->host_size == group->size ? comm_shm_new(ranks, mpi, comm_out)
                                                            : status_ok();
}

static status_t open_parts(struct group *group, const char *role)
{
    TRY(start_mpi());
    TRY(split(group, role));
    TRY(find_host(group));
    group->requests = calloc((size_t)group->size, sizeof(MPI_Request));
    if (group->requests == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory for %d ranks", group->size);
    }
    TRY(group_posts_init(group));
    return open_comm(group, group->ranks, &group->comm);
}

status_t group_open(const char *role, struct group **group_out)
{
    struct group *group = calloc(1, sizeof *group);
    if (group == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory for the group");
    }
    group->ranks = MPI_COMM_NULL;
    group->control = MPI_COMM_NULL;
    group->stages = MPI_COMM_NULL;
    const status_t s = open_parts(group, role);
    if (s.code != STATUS_OK) {
        // Without MPI_Finalize: it would wait for ranks that did start. The process ends soon, and mpirun
        // then ends the job.
        free(group->requests);
        free(group->posts);
        free(group);
        return s;
    }
    *group_out = group;
    return s;
}

// ---- end ----

void group_close(struct group *group)
{
    if (group == NULL) {
        return;
    }
    // MPI_Finalize waits for the whole job, and not patiently. Failures here have no remedy: mpirun ends
    // the job when a process leaves without it.
    if (MPI_Ibarrier(MPI_COMM_WORLD, group->requests) == MPI_SUCCESS) {
        (void)patience_wait_all(1, group->requests, CLOSE_SLEEP_US);
    }
    group_posts_destroy(group);
    for (int32_t i = 0; i < group->n_splits; i++) {
        group->splits[i].comm->ops->free(group->splits[i].comm);
        (void)MPI_Comm_free(&group->splits[i].ranks);
    }
    group->comm->ops->free(group->comm);
    (void)MPI_Comm_free(&group->stages);
    (void)MPI_Comm_free(&group->control);
    (void)MPI_Comm_free(&group->ranks);
    (void)MPI_Finalize();
    free(group->requests);
    free(group);
}

_Noreturn void group_abort(struct group *group, int exit_code)
{
    (void)group;
    (void)MPI_Abort(MPI_COMM_WORLD, exit_code);
    _exit(exit_code);
}

// ---- who is in it ----

int32_t group_rank(const struct group *group)
{
    return group->rank;
}

int32_t group_size(const struct group *group)
{
    return group->size;
}

int32_t group_host_size(const struct group *group)
{
    return group->host_size;
}

int32_t group_host_rank(const struct group *group)
{
    return group->host_rank;
}

int32_t group_core_size(const struct group *group)
{
    return group->core_size;
}

int32_t group_core_rank(const struct group *group)
{
    return group->core_rank;
}

struct comm *group_comm(struct group *group)
{
    return group->comm;
}

status_t group_comm_new(struct group *group, const int32_t *ranks, int32_t n_ranks,
                        struct comm **comm_out)
{
    MPI_Group all = MPI_GROUP_NULL;
    MPI_Group some = MPI_GROUP_NULL;
    MPI_Comm mpi = MPI_COMM_NULL;
    int rc = MPI_Comm_group(group->ranks, &all);
    if (rc == MPI_SUCCESS) {
        rc = MPI_Group_incl(all, n_ranks, ranks, &some);
        (void)MPI_Group_free(&all);
    }
    if (rc == MPI_SUCCESS) {
        // The tag tells apart lists that are made at once; those that begin with one rank are made one after the other.
        rc = MPI_Comm_create_group(group->ranks, some, ranks[0], &mpi);
        (void)MPI_Group_free(&some);
    }
    TRY(comm_mpi_status(rc, "communicator of some ranks", group->rank));
    if (mpi == MPI_COMM_NULL) {
        return status_errorf(STATUS_INTERNAL, "rank %d is not in its own list of %d ranks",
                             group->rank, n_ranks);
    }
    return comm_mpi_adopt(mpi, comm_out);
}

// ---- stages ----

status_t group_stage_comm(struct group *group, int32_t tp, struct comm **comm_out)
{
    assert(tp >= 1 && group->size % tp == 0);
    if (tp == group->size) {
        *comm_out = group->comm;
        return status_ok();
    }
    for (int32_t i = 0; i < group->n_splits; i++) {
        if (group->splits[i].tp == tp) {
            *comm_out = group->splits[i].comm;
            return status_ok();
        }
    }
    if (group->n_splits == GROUP_MAX_SPLITS) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "a group was split in %d ways already",
                             GROUP_MAX_SPLITS);
    }
    struct group_split split = {.tp = tp};
    TRY(comm_mpi_status(MPI_Comm_split(group->ranks, group->rank / tp, group->rank, &split.ranks),
                        "MPI_Comm_split", group->rank));
    const status_t s = open_comm(group, split.ranks, &split.comm);
    if (!status_is_ok(&s)) {
        (void)MPI_Comm_free(&split.ranks);
        return s;
    }
    group->splits[group->n_splits++] = split;
    *comm_out = split.comm;
    return s;
}

// ---- agreement ----

status_t group_agree(struct group *group, status_t mine)
{
    if (group->size == 1) {
        return mine;
    }
    // Ranks may arrive minutes apart, when one of them reads a checkpoint for the others.
    const int failed = mine.code == STATUS_OK ? group->size : group->rank;
    int first = 0;
    int rc = MPI_Iallreduce(&failed, &first, 1, MPI_INT, MPI_MIN, group->control, group->requests);
    if (rc == MPI_SUCCESS) {
        rc = patience_wait_all(1, group->requests, AGREE_SLEEP_US);
    }
    TRY(comm_mpi_status(rc, "agreement", group->rank));
    if (first == group->size) {
        return status_ok();
    }
    rc = MPI_Bcast(&mine, (int)sizeof mine, MPI_BYTE, first, group->control);
    TRY(comm_mpi_status(rc, "agreement", group->rank));
    mine.msg[sizeof mine.msg - 1] = '\0';
    return status_wrapf(mine, "rank %d", first);
}

// ---- taking a place ----

/* Returns when the other end of standard input is closed. */
static void wait_for_end_of_input(void)
{
    struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
    char buf[256];
    for (;;) {
        const int ready = poll(&input, 1, -1);
        if (ready < 0 && errno != EINTR) {
            return;
        }
        if (ready > 0 && read(STDIN_FILENO, buf, sizeof buf) <= 0 && errno != EINTR) {
            return;
        }
    }
}

status_t group_bystander_run(void)
{
    // The process that started this one decides when the place is given up, also when mpirun hands a
    // signal to both.
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, NULL);
    struct group *group = NULL;
    TRY(group_open("bystander", &group));
    wait_for_end_of_input();
    group_close(group);
    return status_ok();
}

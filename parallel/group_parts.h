/*
 * group_parts.h - what the files of a group share: its communicators
 *
 * What:      private to group.c, group_message.c and stages.c.
 * Ownership: the group owns its communicators.
 * Thread:    owner:main
 */
#pragma once

#include "parallel/comm_mpi.h"
#include "parallel/group.h"
#include "parallel/patience.h"

#define GROUP_MAX_SPLITS 16

/* The group in stages of tp consecutive ranks: this rank's. */
struct group_split {
    int32_t tp;
    MPI_Comm ranks;
    struct comm *comm;
};

/* A message of the leader on its way. */
struct group_post {
    struct bytes data;
    MPI_Request *requests; /* [size - 1] */
};

struct group {
    MPI_Comm ranks;
    MPI_Comm control;
    MPI_Comm stages; /* messages between stages */
    struct comm *comm;
    struct group_split splits[GROUP_MAX_SPLITS];
    int32_t n_splits;
    MPI_Request *requests;    /* [size] */
    struct group_post *posts; /* leader: [GROUP_POSTS], used in turn */
    int32_t next_post;
    int rank, size;
    int host_rank, host_size;
    int core_rank, core_size; /* among those of the host with the same cores; 0, 0: overlapping */
};

/* Messages that may be on their way to ranks that have not taken them. */
#define GROUP_POSTS 80

// ---- the leader's messages ----

MUST_USE status_t group_posts_init(struct group *group);
void group_posts_destroy(struct group *group); /* every rank has taken what was sent */

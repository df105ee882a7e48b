/*
 * group_message.c - what the leader says to the others
 *
 * A message goes to every follower directly, at its real size, and a follower asks for its size before it takes it
 * (MPI_Improbe). A tree would be shorter for many ranks, but a sleeping rank in its middle would add its sleep to everybody
 * below it.
 */
#include <assert.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "parallel/group_parts.h"

#define MESSAGE_TAG      1
#define MAX_MESSAGE_SIZE ((size_t)INT_MAX)

// ---- messages on their way ----

status_t group_posts_init(struct group *group)
{
    const size_t n_others = group->size > 1 ? (size_t)group->size - 1 : 1;
    group->posts = calloc(GROUP_POSTS, sizeof *group->posts);
    bool made = group->posts != NULL;
    for (int i = 0; made && i < GROUP_POSTS; i++) {
        bytes_init(&group->posts[i].data, MAX_MESSAGE_SIZE);
        group->posts[i].requests = malloc(n_others * sizeof(MPI_Request));
        made = group->posts[i].requests != NULL;
        for (size_t r = 0; made && r < n_others; r++) {
            group->posts[i].requests[r] = MPI_REQUEST_NULL;
        }
    }
    return made ? status_ok()
                : status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory for messages to %d ranks",
                                group->size);
}

void group_posts_destroy(struct group *group)
{
    for (int i = 0; group->posts != NULL && i < GROUP_POSTS; i++) {
        struct group_post *post = &group->posts[i];
        if (post->data.size > 0) {
            (void)MPI_Waitall(group->size - 1, post->requests, MPI_STATUSES_IGNORE);
        }
        bytes_destroy(&post->data);
        free(post->requests);
    }
    free(group->posts);
    group->posts = NULL;
}

/* The oldest post, once every rank has taken what it carried. */
static status_t next_post(struct group *group, uint32_t max_sleep_us, struct group_post **post_out)
{
    struct group_post *post = &group->posts[group->next_post];
    group->next_post = (group->next_post + 1) % GROUP_POSTS;
    const int rc = patience_wait_all(group->size - 1, post->requests, max_sleep_us);
    bytes_clear(&post->data);
    *post_out = post;
    return comm_mpi_status(rc, "group message", group->rank);
}

/* To all; returns when the first n_now ranks have it. */
static status_t send_to_all(struct group *group, const struct bytes *data, int n_now,
                            uint32_t max_sleep_us)
{
    struct group_post *post;
    if (data->size > MAX_MESSAGE_SIZE) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "group message of %zu bytes, at most %d",
                             data->size, INT_MAX);
    }
    TRY(next_post(group, max_sleep_us, &post));
    TRY(bytes_append(&post->data, data->data, data->size));
    for (int r = 1; r < group->size; r++) {
        const int rc = MPI_Isend(post->data.data, (int)post->data.size, MPI_BYTE, r, MESSAGE_TAG,
                                 group->control, &post->requests[r - 1]);
        TRY(comm_mpi_status(rc, "group message", group->rank));
    }
    const int rc = patience_wait_all(n_now - 1, post->requests, max_sleep_us);
    return comm_mpi_status(rc, "group message", group->rank);
}

static status_t wait_for_message(struct group *group, uint32_t max_sleep_us,
                                 MPI_Message *message_out, int *size_out)
{
    struct patience patience = patience_new(max_sleep_us);
    for (;;) {
        int here = 0;
        MPI_Status status;
        const int rc = MPI_Improbe(0, MESSAGE_TAG, group->control, &here, message_out, &status);
        TRY(comm_mpi_status(rc, "group message", group->rank));
        if (here) {
            return comm_mpi_status(MPI_Get_count(&status, MPI_BYTE, size_out), "group message",
                                   group->rank);
        }
        patience_pause(&patience);
    }
}

static status_t receive(struct group *group, struct bytes *data, uint32_t max_sleep_us)
{
    MPI_Message message = MPI_MESSAGE_NULL;
    int size = 0;
    uint8_t *tail = NULL;
    TRY(wait_for_message(group, max_sleep_us, &message, &size));
    bytes_clear(data);
    TRY(status_wrapf(bytes_reserve(data, (size_t)size, &tail), "group message on rank %d",
                     group->rank));
    TRY(comm_mpi_status(MPI_Mrecv(tail, size, MPI_BYTE, &message, MPI_STATUS_IGNORE),
                        "group message", group->rank));
    data->size = (size_t)size;
    return status_ok();
}

status_t group_post(struct group *group, struct bytes *data, int32_t n_now, uint32_t max_sleep_us)
{
    assert(n_now >= 1 && n_now <= group->size);
    if (group->size == 1) {
        return status_ok();
    }
    return group->rank == 0 ? send_to_all(group, data, n_now, max_sleep_us)
                            : receive(group, data, max_sleep_us);
}

status_t group_broadcast(struct group *group, struct bytes *data, uint32_t max_sleep_us)
{
    return group_post(group, data, group->size, max_sleep_us);
}

/*
 * What becomes of collectives between devices that hang, fail, or cannot be had. The argument names the fault; every one is a
 * run of its own, as after it the group is finished. See nccl_sim.c for those that the environment sets.
 */
#include "tests/support/test.h"

#include <string.h>
#include <unistd.h>

#include "parallel/comm_device.h"
#include "parallel/group.h"
#include "tests/kernels/cuda/cuda_check.h"

enum { N = 64 };

struct fixture {
    struct group *group;
    struct backend_stream *stream;
    struct comm *comm;
    float *data;
};

static status_t open_comm(struct fixture *f, int choice, int peers, int log_fd)
{
    const struct comm_device_parts parts = {
        .host = group_comm(f->group),
        .backend = check_backend(),
        .stream = f->stream,
        .choice = choice,
        .peers = peers,
        .max_bytes = 1 << 20,
        .timeout_s = 0.5,
        .log = {.fd = log_fd, .level = LOG_INFO, .rank = group_rank(f->group), .module = "comm"},
    };
    return comm_device_new(&parts, &f->comm);
}

static void close_comm(struct fixture *f)
{
    f->comm->ops->free(f->comm);
    f->comm = NULL;
}

static status_t sum(struct fixture *f, int32_t layer)
{
    comm_label(f->comm, layer, COMM_PART_ATTENTION);
    return f->comm->ops->all_reduce(f->comm, f->data, N, DTYPE_F32);
}

/* Sums of layers 0 and 1 with everybody, then of 2 without the last rank. What the others are told. */
static status_t sum_without_last(struct fixture *f)
{
    struct comm *host = group_comm(f->group);
    status_t s = status_ok();
    comm_step_begin(f->comm);
    assert_status_ok(sum(f, 0));
    assert_status_ok(sum(f, 1));
    if (host->rank != host->size - 1) {
        assert_status_ok(sum(f, 2));
        assert_status_ok(check_backend()->stream_sync(f->stream)); // it does come back
        s = f->comm->ops->check(f->comm);
        assert_status_code(sum(f, 3), f->comm->recordable ? STATUS_UNAVAILABLE : STATUS_OK);
    } else {
        assert_status_ok(check_backend()->stream_sync(f->stream));
    }
    comm_step_end(f->comm);
    assert_status_ok(host->ops->barrier(host, 30.0));
    return s;
}

static void check_told(const struct fixture *f, const status_t *s, const char *what)
{
    char text[128];
    snprintf(text, sizeof text, "rank %d: %s", group_rank(f->group), what);
    if (group_rank(f->group) != group_size(f->group) - 1) {
        assert_status_says(*s, STATUS_UNAVAILABLE, text);
    }
}

static void fault_hang_peer(struct fixture *f)
{
    assert_status_ok(open_comm(f, COMM_STAGED, COMM_PEERS_AUTO, -1));
    const status_t s = sum_without_last(f);
    check_told(f, &s, "layer 2: sum after attention: no end within 0.5 s");
    close_comm(f);
}

static void fault_hang_nccl(struct fixture *f)
{
    assert_status_ok(open_comm(f, COMM_NCCL, COMM_PEERS_OFF, -1));
    const status_t s = sum_without_last(f);
    check_told(f, &s, "layer 2: sum after attention: no end within 0.5 s");
    close_comm(f);
}

/* With NCCL_SIM_FAIL_AFTER=2: the third collective hangs on all ranks, and the library says why before the time is over. */
static void fault_error_nccl(struct fixture *f)
{
    assert_status_ok(open_comm(f, COMM_NCCL, COMM_PEERS_OFF, -1));
    comm_step_begin(f->comm);
    for (int32_t layer = 0; layer < 3; layer++) {
        assert_status_ok(sum(f, layer));
    }
    assert_status_ok(check_backend()->stream_sync(f->stream));
    assert_status_says(f->comm->ops->check(f->comm), STATUS_UNAVAILABLE,
                       "layer 2: sum after attention");
    assert_status_says(f->comm->ops->check(f->comm), STATUS_UNAVAILABLE, "remote process exited");
    assert_status_says(sum(f, 3), STATUS_UNAVAILABLE, "remote process exited");
    comm_step_end(f->comm);
    close_comm(f);
}

/* With NCCL_SIM_NO_START=1. */
static void fault_start_nccl(struct fixture *f)
{
    assert_status_says(open_comm(f, COMM_NCCL, COMM_PEERS_OFF, -1), STATUS_UNAVAILABLE,
                       "NCCL start of a communicator: no end within 0.5 s");
}

/* With a libnccl.so.2 that is none. */
static void fault_missing_nccl(struct fixture *f)
{
    assert_status_says(open_comm(f, COMM_NCCL, COMM_PEERS_OFF, -1), STATUS_FAILED_PRECONDITION,
                       "--comm nccl: rank 0: no NCCL: ");
    assert_status_ok(open_comm(f, COMM_AUTO, COMM_PEERS_OFF, -1));
    assert_false(f->comm->recordable); // staged
    assert_status_ok(sum(f, 0));
    close_comm(f);
}

/* Without KVASIR_SIM_OWN_DEVICE. */
static void fault_shared_device(struct fixture *f)
{
    assert_status_says(open_comm(f, COMM_NCCL, COMM_PEERS_OFF, -1), STATUS_FAILED_PRECONDITION,
                       "ranks 0 and 1 share a device, which NCCL does not take");
    char line[2048] = "";
    int pipe_fds[2];
    assert_int_equal(pipe(pipe_fds), 0);
    assert_status_ok(open_comm(f, COMM_AUTO, COMM_PEERS_AUTO, pipe_fds[1]));
    assert_true(read(pipe_fds[0], line, sizeof line - 1) > 0);
    assert_non_null(strstr(line, "comm=staged why=\"ranks 0 and 1 share a device"));
    assert_non_null(strstr(line, "own_sums_bytes=524288"));
    close(pipe_fds[0]);
    close(pipe_fds[1]);
    close_comm(f);
}

/* With KVASIR_SIM_NO_IPC=1. */
static void fault_no_peers(struct fixture *f)
{
    assert_status_ok(open_comm(f, COMM_AUTO, COMM_PEERS_AUTO, -1));
    assert_int_equal(f->comm->fused_bytes, 0);
    assert_status_ok(sum(f, 0));
    close_comm(f);
}

static const struct fault {
    const char *name;
    void (*run)(struct fixture *f);
} faults[] = {
    {"hang-peer", fault_hang_peer},       {"hang-nccl", fault_hang_nccl},
    {"error-nccl", fault_error_nccl},     {"start-nccl", fault_start_nccl},
    {"missing-nccl", fault_missing_nccl}, {"shared-device", fault_shared_device},
    {"no-peers", fault_no_peers},
};

struct state {
    struct fixture f;
    const struct fault *fault;
};

static void test_comm_fault(void **state)
{
    struct state *st = *state;
    struct fixture *f = &st->f;
    const struct stream_options options = {.device = 0};
    assert_status_ok(group_open("test", &f->group));
    assert_status_ok(check_backend()->stream_new(&options, &f->stream));
    const float zeros[N] = {0};
    f->data = device_copy(f->stream, zeros, sizeof zeros);
    st->fault->run(f);
    device_free(f->stream, f->data);
    check_backend()->stream_free(f->stream);
}

int main(int argc, char **argv)
{
    struct state state = {.fault = NULL};
    for (size_t i = 0; i < sizeof faults / sizeof faults[0]; i++) {
        state.fault = argc > 1 && strcmp(argv[1], faults[i].name) == 0 ? &faults[i] : state.fault;
    }
    if (state.fault == NULL) {
        fprintf(stderr, "usage: mpirun -n T %s FAULT\n", argv[0]);
        return 64;
    }
    struct CMUnitTest test = cmocka_unit_test(test_comm_fault);
    test.initial_state = &state;
    const int n_failed = _cmocka_run_group_tests(state.fault->name, &test, 1, NULL, NULL);
    if (state.f.group != NULL && n_failed != 0) {
        group_abort(state.f.group, 1);
    }
    group_close(state.f.group);
    return n_failed;
}

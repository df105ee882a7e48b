/*
 * Runs under mpirun with several rank counts, over what the group chose (shared memory, as all ranks are here), with the
 * argument "mpi" over MPI, and with "staged" by way of host memory for a device that is the CPU. Every rank draws
 * the same random numbers, so each knows what all of them do, and computes what it must get without asking.
 */
#include "tests/support/test.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/backend.h"
#include "parallel/comm.h"
#include "parallel/comm_mpi.h"
#include "parallel/comm_staged.h"
#include "parallel/group.h"

#define GUARD  64
#define POISON (-12345.0f)

struct fixture {
    const char *kind; /* "group", "mpi", "staged" */
    struct group *group;
    struct backend_stream *stream;
    struct comm *comm;
};

static struct comm *comm_of(void **state)
{
    const struct fixture *fixture = *state;
    return fixture->comm;
}

/* Element i of what rank r says in round k: any size and sign, so that the order of a sum shows. */
static float element(int32_t r, int64_t i, int32_t k)
{
    uint64_t z = (uint64_t)i * 0x9e3779b97f4a7c15u + (uint64_t)(r + 1) * 0xbf58476d1ce4e5b9u +
                 (uint64_t)k * 0x94d049bb133111ebu;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    z ^= z >> 31;
    const float mantissa = (float)(int32_t)(z & 0xffffffu) - 8388608.0f;
    const float scale[4] = {1e-6f, 1e-3f, 1.0f, 1e3f};
    return mantissa * scale[(z >> 32) & 3];
}

static uint32_t bits(float x)
{
    uint32_t b;
    memcpy(&b, &x, sizeof b);
    return b;
}

/* n floats between two guards, all poison. */
static float *new_guarded(int64_t n)
{
    const int64_t room = n + 2 * (int64_t)GUARD;
    float *block = malloc((size_t)room * sizeof *block);
    assert_non_null(block);
    for (int64_t i = 0; i < room; i++) {
        block[i] = POISON;
    }
    return block + GUARD;
}

static void free_guarded(float *data, int64_t n)
{
    for (int64_t i = 0; i < GUARD; i++) {
        assert_true(data[-1 - i] == POISON);
        assert_true(data[n + i] == POISON);
    }
    free(data - GUARD);
}

// ---- all_reduce ----

static void check_all_reduce(struct comm *comm, int64_t n, int32_t round)
{
    float *buf = new_guarded(n);
    for (int64_t i = 0; i < n; i++) {
        buf[i] = element(comm->rank, i, round);
    }
    assert_status_ok(comm->ops->all_reduce(comm, buf, n, DTYPE_F32));
    for (int64_t i = 0; i < n; i++) {
        float want = element(0, i, round);
        for (int32_t r = 1; r < comm->size; r++) {
            want += element(r, i, round);
        }
        if (bits(buf[i]) != bits(want)) {
            fail_msg("n %lld, element %lld: %.9g, want %.9g", (long long)n, (long long)i,
                     (double)buf[i], (double)want);
        }
    }
    free_guarded(buf, n);
}

static void test_comm_all_reduce_adds_in_rank_order(void **state)
{
    struct comm *comm = comm_of(state);
    // Around the change of method for 2, 3 and 4 ranks, and beyond what the scratch or a slot holds.
    static const int64_t sizes[] = {
        0,     1,     2,     3,     5,     100,   4096,  4097,   8192,          8193,         10922,
        10923, 16384, 16385, 32768, 32769, 65537, 99991, 262145, (1 << 20) - 3, (1 << 20) + 1};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        check_all_reduce(comm, sizes[i], (int32_t)i);
    }
    for (int32_t i = 0; i < 50; i++) {
        check_all_reduce(comm, (int64_t)test_random_below(3000), 100 + i);
    }
}

/* The value of the upper half of a float32, and the nearest such half, ties to even. */
static float widened(uint16_t x)
{
    const uint32_t b = (uint32_t)x << 16;
    float value;
    memcpy(&value, &b, sizeof value);
    return value;
}

static uint16_t nearest(float x)
{
    const uint16_t below = (uint16_t)(bits(x) >> 16);
    const double under = fabs((double)x - (double)widened(below));
    const double over = fabs((double)x - (double)widened((uint16_t)(below + 1)));
    return under < over || (under == over && below % 2 == 0) ? below : (uint16_t)(below + 1);
}

/* bfloat16 sums in float32, rounded once: between devices alone. */
static void test_comm_all_reduce_of_bfloat16(void **state)
{
    enum { N = 5000 };

    struct comm *comm = comm_of(state);
    static uint16_t x[N];
    for (int64_t i = 0; i < N; i++) {
        x[i] = nearest(element(comm->rank, i, 7));
    }
    if (strcmp(comm->ops->name, "staged") != 0) {
        assert_status_says(comm->ops->all_reduce(comm, x, N, DTYPE_BF16), STATUS_INVALID_ARGUMENT,
                           "bfloat16");
        return;
    }
    assert_status_ok(comm->ops->all_reduce(comm, x, N, DTYPE_BF16));
    for (int64_t i = 0; i < N; i++) {
        float sum = widened(nearest(element(0, i, 7)));
        for (int32_t r = 1; r < comm->size; r++) {
            sum += widened(nearest(element(r, i, 7)));
        }
        assert_int_equal(x[i], nearest(sum));
    }
    assert_status_code(comm->ops->all_reduce(comm, x, N, DTYPE_F16), STATUS_INVALID_ARGUMENT);
}

/* x0 is where the sum starts: 0 + -0 would be another number. */
static void test_comm_all_reduce_keeps_the_sign_of_zero(void **state)
{
    struct comm *comm = comm_of(state);
    float x[3] = {-0.0f, -0.0f, -0.0f};
    const float want[3] = {-0.0f, -0.0f, -0.0f};
    assert_status_ok(comm->ops->all_reduce(comm, x, 3, DTYPE_F32));
    assert_memory_equal(x, want, sizeof x);
}

// ---- gathers ----

/* Random counts, a third of them zero, laid out with gaps; returns the room they take. */
static int64_t random_layout(int32_t n, int64_t *counts, int64_t *displs)
{
    int64_t at = 0;
    for (int32_t r = 0; r < n; r++) {
        counts[r] = test_random_below(3) == 0 ? 0 : (int64_t)test_random_below(2000);
        at += (int64_t)test_random_below(5);
        displs[r] = at;
        at += counts[r];
    }
    return at + 3;
}

/* recv holds rank r's elements where the layout says, and poison everywhere else. */
static void check_layout(const float *recv, int64_t room, const int64_t *counts,
                         const int64_t *displs, int32_t n, int32_t round)
{
    int64_t next = 0;
    for (int32_t r = 0; r < n; r++) {
        for (; next < displs[r]; next++) {
            assert_true(recv[next] == POISON);
        }
        for (int64_t i = 0; i < counts[r]; i++) {
            assert_true(recv[next++] == element(r, i, round));
        }
    }
    for (; next < room; next++) {
        assert_true(recv[next] == POISON);
    }
}

static float *new_message(int32_t rank, int64_t n, int32_t round)
{
    float *message = malloc((size_t)(n + 1) * sizeof *message);
    assert_non_null(message);
    for (int64_t i = 0; i < n; i++) {
        message[i] = element(rank, i, round);
    }
    return message;
}

/* The same in bytes. */
static void in_bytes(const int64_t *values, int32_t n, int64_t *bytes_out)
{
    for (int32_t i = 0; i < n; i++) {
        bytes_out[i] = values[i] * (int64_t)sizeof(float);
    }
}

static void test_comm_gather_v(void **state)
{
    struct comm *comm = comm_of(state);
    int64_t counts[16] = {0};
    int64_t displs[16] = {0};
    for (int32_t k = 0; k < 60; k++) {
        const int64_t room = random_layout(comm->size, counts, displs);
        const int32_t root = (int32_t)test_random_below((uint64_t)comm->size);
        const bool is_root = comm->rank == root;
        float *send = new_message(comm->rank, counts[comm->rank], k);
        float *recv = new_guarded(room);
        int64_t count_bytes[16];
        int64_t displ_bytes[16];
        in_bytes(counts, comm->size, count_bytes);
        in_bytes(displs, comm->size, displ_bytes);
        // What is read at the root only may be missing elsewhere.
        assert_status_ok(comm->ops->gather_v(comm, send, count_bytes[comm->rank],
                                             is_root ? recv : NULL, is_root ? count_bytes : NULL,
                                             is_root ? displ_bytes : NULL, root));
        if (is_root) {
            check_layout(recv, room, counts, displs, comm->size, k);
        }
        free_guarded(recv, room);
        free(send);
    }
}

// ---- all to all ----

/* Rank s sends table[s][r] elements to rank r: element(s * 16 + r, ...). */
static void check_all_to_all(struct comm *comm, int64_t table[16][16], int32_t round)
{
    int64_t send_counts[16] = {0}, send_displs[16] = {0};
    int64_t recv_counts[16] = {0}, recv_displs[16] = {0};
    int64_t n_send = 0;
    int64_t n_recv = 0;
    const int32_t me = comm->rank;
    for (int32_t r = 0; r < comm->size; r++) {
        send_counts[r] = table[me][r];
        send_displs[r] = n_send;
        n_send += table[me][r];
        recv_counts[r] = table[r][me];
        recv_displs[r] = n_recv;
        n_recv += table[r][me];
    }
    float *send = new_guarded(n_send);
    float *recv = new_guarded(n_recv);
    for (int32_t r = 0; r < comm->size; r++) {
        for (int64_t i = 0; i < send_counts[r]; i++) {
            send[send_displs[r] + i] = element(me * 16 + r, i, round);
        }
    }
    int64_t bytes[4][16];
    in_bytes(send_counts, comm->size, bytes[0]);
    in_bytes(send_displs, comm->size, bytes[1]);
    in_bytes(recv_counts, comm->size, bytes[2]);
    in_bytes(recv_displs, comm->size, bytes[3]);
    assert_status_ok(
        comm->ops->all_to_all_v(comm, send, bytes[0], bytes[1], recv, bytes[2], bytes[3]));
    for (int32_t r = 0; r < comm->size; r++) {
        for (int64_t i = 0; i < recv_counts[r]; i++) {
            assert_true(recv[recv_displs[r] + i] == element(r * 16 + me, i, round));
        }
    }
    free_guarded(send, n_send);
    free_guarded(recv, n_recv);
}

static void test_comm_all_to_all_v(void **state)
{
    struct comm *comm = comm_of(state);
    int64_t table[16][16];
    for (int32_t k = 0; k < 60; k++) {
        for (int32_t s = 0; s < comm->size; s++) {
            for (int32_t r = 0; r < comm->size; r++) {
                table[s][r] = test_random_below(3) == 0 ? 0 : (int64_t)test_random_below(1500);
            }
        }
        check_all_to_all(comm, table, k);
    }
    memset(table, 0, sizeof table);
    check_all_to_all(comm, table, 1000); // nobody says anything
}

// ---- bytes ----

/* More than a window of shared memory holds too, and several in a row. */
static void test_comm_broadcast_device(void **state)
{
    struct comm *comm = comm_of(state);
    static const int64_t sizes[] = {0, 1, 4, 1024, 1023, 65537, 3000001};
    for (int32_t k = 0; k < 7; k++) {
        const int32_t root = (int32_t)test_random_below((uint64_t)comm->size);
        uint8_t *data = malloc((size_t)sizes[k] + 1);
        assert_non_null(data);
        for (int64_t i = 0; i < sizes[k]; i++) {
            data[i] = comm->rank == root ? (uint8_t)(i * 37 + k) : 0xEE;
        }
        data[sizes[k]] = 0x5A;
        assert_status_ok(comm->ops->broadcast_device(comm, data, sizes[k], root));
        for (int64_t i = 0; i < sizes[k]; i++) {
            assert_int_equal(data[i], (uint8_t)(i * 37 + k));
        }
        assert_int_equal(data[sizes[k]], 0x5A);
        free(data);
    }
}

static void test_comm_broadcast(void **state)
{
    struct comm *comm = comm_of(state);
    static const size_t sizes[] = {0, 1, 7, 4096, 65537, 3000001};
    for (size_t k = 0; k < sizeof sizes / sizeof sizes[0]; k++) {
        const int32_t root = (int32_t)test_random_below((uint64_t)comm->size);
        uint8_t *data = malloc(sizes[k] + 1);
        assert_non_null(data);
        for (size_t i = 0; i < sizes[k]; i++) {
            data[i] = comm->rank == root ? (uint8_t)(i * 31 + k) : 0xEE;
        }
        data[sizes[k]] = 0x5A;
        assert_status_ok(comm->ops->broadcast(comm, data, sizes[k], root));
        for (size_t i = 0; i < sizes[k]; i++) {
            assert_int_equal(data[i], (uint8_t)(i * 31 + k));
        }
        assert_int_equal(data[sizes[k]], 0x5A);
        free(data);
    }
}

/* A chain from rank 0 up, each adding one to what it got. */
static void test_comm_send_and_recv(void **state)
{
    struct comm *comm = comm_of(state);
    static const size_t sizes[] = {0, 1, 100, 200000};
    for (size_t k = 0; k < sizeof sizes / sizeof sizes[0]; k++) {
        uint8_t *data = calloc(sizes[k] + 1, 1);
        assert_non_null(data);
        if (comm->rank > 0) {
            assert_status_ok(comm->ops->recv(comm, data, sizes[k], comm->rank - 1, (int32_t)k));
        }
        for (size_t i = 0; i < sizes[k]; i++) {
            assert_int_equal(data[i], comm->rank);
            data[i]++;
        }
        if (comm->rank + 1 < comm->size) {
            assert_status_ok(comm->ops->send(comm, data, sizes[k], comm->rank + 1, (int32_t)k));
        }
        assert_int_equal(data[sizes[k]], 0);
        free(data);
    }
}

// ---- errors ----

static void test_comm_recv_of_another_size_is_an_error(void **state)
{
    struct comm *comm = comm_of(state);
    if (comm->size < 2) {
        skip();
    }
    char buf[8] = "1234567";
    if (comm->rank == 0) {
        assert_status_ok(comm->ops->send(comm, buf, 4, 1, 0));
        assert_status_ok(comm->ops->send(comm, buf, 8, 1, 0));
    } else if (comm->rank == 1) {
        assert_status_says(comm->ops->recv(comm, buf, 8, 0, 0), STATUS_UNAVAILABLE,
                           "recv on rank 1: 4 bytes from rank 0, want 8");
        assert_status_says(comm->ops->recv(comm, buf, 4, 0, 0), STATUS_UNAVAILABLE,
                           "recv failed on rank 1: MPI_ERR_TRUNCATE");
    }
}

/* Errors of MPI come back as statuses; without that the whole job would end here. */
static void test_comm_mpi_errors_are_statuses(void **state)
{
    struct comm *comm = comm_of(state);
    char byte = 0;
    assert_status_says(comm->ops->send(comm, &byte, 1, comm->size, 0), STATUS_UNAVAILABLE,
                       "send failed on rank");
    assert_status_says(comm->ops->broadcast(comm, &byte, 1, -7), STATUS_UNAVAILABLE,
                       "broadcast failed on rank");
}

static void test_comm_refuses_counts_that_mpi_cannot_say(void **state)
{
    struct comm *comm = comm_of(state);
    float x[2] = {1, 2};
    int64_t good[16] = {0};
    int64_t bad[16] = {0};
    bad[comm->size - 1] = (int64_t)1 << 31;
    assert_status_code(comm->ops->all_to_all_v(comm, x, good, good, x, good, bad),
                       STATUS_INVALID_ARGUMENT);
    assert_status_code(comm->ops->gather_v(comm, x, bad[comm->size - 1], x, good, good, 0),
                       STATUS_INVALID_ARGUMENT);
    bad[comm->size - 1] = -1;
    assert_status_code(comm->ops->all_to_all_v(comm, x, bad, good, x, good, good),
                       STATUS_INVALID_ARGUMENT);
}

static void test_comm_is_the_table_asked_for(void **state)
{
    const struct fixture *fixture = *state;
    const bool shares = strcmp(fixture->kind, "group") == 0 && fixture->comm->size > 1;
    const char *alone = strcmp(fixture->kind, "group") == 0 ? "mpi" : fixture->kind;
    assert_string_equal(fixture->comm->ops->name, shares ? "shm" : alone);
    assert_int_equal(fixture->comm->size, group_size(fixture->group));
    assert_int_equal(fixture->comm->rank, group_rank(fixture->group));
}

static status_t make_staged(struct fixture *fixture)
{
    const struct stream_options options = {.n_threads = 1};
    TRY(backend_cpu()->stream_new(&options, &fixture->stream));
    const struct comm_staged_parts parts = {
        .host = group_comm(fixture->group),
        .backend = backend_cpu(),
        .stream = fixture->stream,
        .max_bytes = 1 << 20,
    };
    return comm_staged_new(&parts, &fixture->comm);
}

static status_t set_up(struct fixture *fixture)
{
    TRY(group_open("test", &fixture->group));
    fixture->comm = group_comm(fixture->group);
    if (strcmp(fixture->kind, "mpi") == 0) {
        return comm_mpi_new(MPI_COMM_WORLD, &fixture->comm);
    }
    return strcmp(fixture->kind, "staged") == 0 ? make_staged(fixture) : status_ok();
}

static void tear_down(struct fixture *fixture)
{
    if (fixture->comm != group_comm(fixture->group)) {
        fixture->comm->ops->free(fixture->comm);
    }
    backend_cpu()->stream_free(fixture->stream);
    group_close(fixture->group);
}

int main(int argc, char **argv)
{
    struct fixture fixture = {.kind = argc > 1 ? argv[1] : "group"};
    const status_t s = set_up(&fixture);
    if (!status_is_ok(&s)) {
        fprintf(stderr, "%s\n", s.msg);
        return 1;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_prestate(test_comm_is_the_table_asked_for, &fixture),
        cmocka_unit_test_prestate(test_comm_all_reduce_adds_in_rank_order, &fixture),
        cmocka_unit_test_prestate(test_comm_all_reduce_keeps_the_sign_of_zero, &fixture),
        cmocka_unit_test_prestate(test_comm_all_reduce_of_bfloat16, &fixture),
        cmocka_unit_test_prestate(test_comm_gather_v, &fixture),
        cmocka_unit_test_prestate(test_comm_all_to_all_v, &fixture),
        cmocka_unit_test_prestate(test_comm_broadcast, &fixture),
        cmocka_unit_test_prestate(test_comm_broadcast_device, &fixture),
        cmocka_unit_test_prestate(test_comm_send_and_recv, &fixture),
        cmocka_unit_test_prestate(test_comm_recv_of_another_size_is_an_error, &fixture),
        cmocka_unit_test_prestate(test_comm_mpi_errors_are_statuses, &fixture),
        cmocka_unit_test_prestate(test_comm_refuses_counts_that_mpi_cannot_say, &fixture),
    };
    const int n_failed = cmocka_run_group_tests(tests, NULL, NULL);
    tear_down(&fixture);
    return n_failed;
}

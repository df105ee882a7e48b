/*
 * Collectives on the memory of devices, under mpirun with several rank counts; on the simulator, and as a program for a GPU.
 * The argument says which: staged, peer (staged with sums of our own), nccl, nccl-fast, all (nccl with sums of our own).
 * Every rank draws the same random numbers, so each knows what all of them do, and computes what it must get without asking.
 */
#include "tests/support/test.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "parallel/comm_device.h"
#include "parallel/group.h"
#include "tests/kernels/cuda/cuda_check.h"

static const struct way {
    const char *name;
    int choice, peers, order;
} ways[] = {
    {"staged", COMM_STAGED, COMM_PEERS_OFF, COMM_ORDERED},
    {"peer", COMM_STAGED, COMM_PEERS_AUTO, COMM_ORDERED},
    {"nccl", COMM_NCCL, COMM_PEERS_OFF, COMM_ORDERED},
    {"nccl-fast", COMM_NCCL, COMM_PEERS_OFF, COMM_FAST},
    {"all", COMM_AUTO, COMM_PEERS_AUTO, COMM_ORDERED},
};

enum { N_WAYS = sizeof ways / sizeof ways[0], MAX_BYTES = 1 << 20 };

struct fixture {
    const struct way *way;
    struct group *group;
    struct backend_stream *stream;
    struct comm *comm;
};

/* Element i of what rank r says in round k: any size and sign, so that the order of a sum shows; exact in bfloat16. */
static float element(int32_t r, int64_t i, int32_t k)
{
    uint64_t z = (uint64_t)i * 0x9e3779b97f4a7c15u + (uint64_t)(r + 1) * 0xbf58476d1ce4e5b9u +
                 (uint64_t)k * 0x94d049bb133111ebu;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    z ^= z >> 31;
    const float mantissa = (float)(int32_t)(z & 0xffu) - 127.5f;
    const float scale[4] = {0.0625f, 1.0f, 16.0f, 256.0f};
    return bf16_value(bf16_bits(mantissa * scale[(z >> 32) & 3]));
}

/* Up to about a quarter of a millisecond, different on every rank. */
static void delay(const struct comm *comm, int32_t round)
{
    const uint64_t z = (uint64_t)(round + 1) * 0x9e3779b97f4a7c15u * (uint64_t)(comm->rank + 3);
    const struct timespec pause = {.tv_nsec = (long)(z >> 46)};
    (void)nanosleep(&pause, NULL);
}

// ---- arrays ----

static void *new_elements(struct fixture *f, int64_t n, int dtype, int32_t round)
{
    float *values = must_alloc((size_t)n * sizeof *values);
    for (int64_t i = 0; i < n; i++) {
        values[i] = element(f->comm->rank, i, round);
    }
    void *data = dtype == DTYPE_F32 ? device_copy(f->stream, values, (size_t)n * sizeof *values)
                                    : device_bf16(f->stream, values, (size_t)n);
    free(values);
    return data;
}

static float want_sum(const struct comm *comm, int64_t i, int dtype, int32_t round)
{
    float sum = element(0, i, round);
    for (int32_t r = 1; r < comm->size; r++) {
        sum += element(r, i, round);
    }
    return dtype == DTYPE_F32 ? sum : bf16_value(bf16_bits(sum));
}

static float *read_floats(struct fixture *f, const void *data, int64_t n, int dtype)
{
    if (dtype == DTYPE_BF16) {
        return device_read_bf16(f->stream, data, (size_t)n);
    }
    float *values = must_alloc((size_t)n * sizeof *values);
    device_read(f->stream, values, data, (size_t)n * sizeof *values);
    return values;
}

static void check_sums(struct fixture *f, const void *data, int64_t n, int dtype, int32_t round)
{
    float *got = read_floats(f, data, n, dtype);
    for (int64_t i = 0; i < n; i++) {
        const float want = want_sum(f->comm, i, dtype, round);
        // A library's own order may differ in the last bits; bfloat16 is rounded more than once there.
        const float room =
            f->way->order == COMM_FAST ? (dtype == DTYPE_F32 ? 0.01f : 600.0f) : 0.0f;
        if (!(got[i] - want <= room && want - got[i] <= room)) {
            fail_msg("n %lld, dtype %d, element %lld: %.9g, want %.9g", (long long)n, dtype,
                     (long long)i, (double)got[i], (double)want);
        }
    }
    free(got);
}

// ---- all_reduce ----

static void check_all_reduce(struct fixture *f, int64_t n, int dtype, int32_t round)
{
    void *data = new_elements(f, n, dtype, round);
    delay(f->comm, round);
    comm_label(f->comm, round, COMM_PART_FFN);
    assert_status_ok(f->comm->ops->all_reduce(f->comm, data, n, dtype));
    check_sums(f, data, n, dtype, round);
    device_free(f->stream, data);
}

static void test_comm_device_all_reduce(void **state)
{
    struct fixture *f = *state;
    // Around eights, the end of short sums of our own, and of one exchange of NCCL's.
    static const int64_t sizes[] = {0, 1, 7, 8, 4099, 131072, 131073, 262144, 262145};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        check_all_reduce(f, sizes[i], i % 2 == 0 ? DTYPE_F32 : DTYPE_BF16, (int32_t)i);
        check_all_reduce(f, 1 + sizes[i] % 5000, i % 2 == 0 ? DTYPE_BF16 : DTYPE_F32,
                         100 + (int32_t)i);
    }
    check_all_reduce(f, 700001, DTYPE_F32, 200);
    struct comm *comm = f->comm;
    assert_status_code(comm->ops->all_reduce(comm, NULL, 1, DTYPE_F16), STATUS_INVALID_ARGUMENT);
}

/* Nothing is synchronised between the sums of a round: each takes up where the one before left off. */
static void test_comm_device_sums_follow_each_other(void **state)
{
    struct fixture *f = *state;

    enum { N_ROUNDS = 12, N_SUMS = 20, N = 300 };

    for (int32_t round = 0; round < N_ROUNDS; round++) {
        void *data[N_SUMS];
        for (int32_t i = 0; i < N_SUMS; i++) {
            data[i] = new_elements(f, N, DTYPE_BF16, 1000 * round + i);
        }
        delay(f->comm, round);
        for (int32_t i = 0; i < N_SUMS; i++) {
            assert_status_ok(f->comm->ops->all_reduce(f->comm, data[i], N, DTYPE_BF16));
            if (test_random_below(4) == 0) {
                delay(f->comm, i);
                assert_status_ok(check_backend()->stream_sync(f->stream));
            }
        }
        for (int32_t i = 0; i < N_SUMS; i++) {
            check_sums(f, data[i], N, DTYPE_BF16, 1000 * round + i);
            device_free(f->stream, data[i]);
        }
    }
}

// ---- all_reduce_add_norm ----

struct norm_arrays {
    float *x, *weight, *bias;
    int32_t *rows;
    void *out;
};

static struct norm_arrays new_norm_arrays(struct fixture *f, const struct add_norm_args *a)
{
    const size_t n = (size_t)a->n_rows * (size_t)a->n_columns, d = (size_t)a->n_columns;
    float *x = must_alloc(n * sizeof *x), *weight = must_alloc(d * sizeof *weight);
    int32_t *rows = must_alloc((size_t)a->n_rows * sizeof *rows);
    for (size_t i = 0; i < n; i++) {
        x[i] = element(20, (int64_t)i, 3);
    }
    for (size_t i = 0; i < d; i++) {
        weight[i] = element(21, (int64_t)i, 4);
    }
    for (int32_t i = 0; i < a->n_rows; i++) {
        rows[i] = a->n_rows - 1 - i;
    }
    const struct norm_arrays arrays = {
        .x = device_copy(f->stream, x, n * sizeof *x),
        .weight = device_copy(f->stream, weight, d * sizeof *weight),
        .bias = device_copy(f->stream, weight, d * sizeof *weight),
        .rows = device_copy(f->stream, rows, (size_t)a->n_rows * sizeof *rows),
        .out = device_new(f->stream, n * sizeof(uint16_t)),
    };
    free(x);
    free(weight);
    free(rows);
    return arrays;
}

static void free_norm_arrays(struct fixture *f, const struct norm_arrays *arrays)
{
    void *const all[] = {arrays->x, arrays->weight, arrays->bias, arrays->rows, arrays->out};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        device_free(f->stream, all[i]);
    }
}

static struct add_norm_args norm_args(const struct norm_arrays *arrays, struct add_norm_args a,
                                      const void *delta)
{
    a.x = arrays->x;
    a.delta = delta;
    a.weight = arrays->weight;
    a.bias = a.kind == NORM_LAYER ? arrays->bias : NULL;
    a.rows = a.n_rows % 2 == 0 ? arrays->rows : NULL;
    a.out = arrays->out;
    return a;
}

static void compare(struct fixture *f, const void *got, const void *want, size_t size,
                    const char *what)
{
    unsigned char *a = must_alloc(size), *b = must_alloc(size);
    device_read(f->stream, a, got, size);
    device_read(f->stream, b, want, size);
    assert_same_bytes(a, b, size, what);
    free(a);
    free(b);
}

/* The bits of the sum over ranks followed by add_norm. */
static void check_norm(struct fixture *f, struct add_norm_args shape, int32_t round)
{
    struct comm *comm = f->comm;
    const struct backend *backend = check_backend();
    const int64_t n = (int64_t)shape.n_rows * shape.n_columns;
    const struct norm_arrays apart = new_norm_arrays(f, &shape), fused = new_norm_arrays(f, &shape);
    void *delta = new_elements(f, n, DTYPE_BF16, round);
    void *const buffer = comm->ops->buffer(comm, round % 2);
    const struct strip strip = {.from = delta, .to = buffer, .row_bytes = 2 * n, .n_rows = 1};
    assert_status_ok(backend->copy_strips(f->stream, &strip, 1));
    const struct add_norm_args together = norm_args(&fused, shape, NULL);
    delay(comm, round);
    assert_status_ok(comm->ops->all_reduce_add_norm(comm, buffer, &together));
    assert_status_ok(comm->ops->all_reduce(comm, delta, n, DTYPE_BF16));
    const struct add_norm_args second = norm_args(&apart, shape, delta);
    assert_status_ok(backend->add_norm(f->stream, &second));
    compare(f, fused.x, apart.x, (size_t)n * sizeof(float), "x");
    compare(f, fused.out, apart.out, (size_t)n * sizeof(uint16_t), "norm");
    check_sums(f, delta, n, DTYPE_BF16, round);
    free_norm_arrays(f, &apart);
    free_norm_arrays(f, &fused);
    device_free(f->stream, delta);
}

static void test_comm_device_all_reduce_add_norm(void **state)
{
    struct fixture *f = *state;
    struct comm *comm = f->comm;
    const bool has = f->way->peers == COMM_PEERS_AUTO && comm->size > 1;
    assert_int_equal(comm->fused_bytes, has ? 512 << 10 : 0);
    if (!has) {
        assert_status_code(comm->ops->all_reduce_add_norm(comm, NULL, NULL), STATUS_UNIMPLEMENTED);
        assert_null(comm->ops->buffer(comm, 0));
        return;
    }
    static const int32_t columns[] = {8, 100, 1000, 4096, 20000};
    int32_t round = 0;
    for (size_t i = 0; i < sizeof columns / sizeof columns[0]; i++) {
        for (int32_t n_rows = 1; n_rows <= 3; n_rows++) {
            const struct add_norm_args shape = {
                .n_rows = n_rows,
                .n_columns = columns[i],
                .kind = n_rows != 2 ? NORM_RMS : NORM_LAYER,
                .eps = 1e-5f,
            };
            check_norm(f, shape, round++);
        }
    }
    struct add_norm_args wrong = {.n_rows = 1, .n_columns = 8, .kind = NORM_RMS};
    assert_status_code(comm->ops->all_reduce_add_norm(comm, &wrong, &wrong),
                       STATUS_INVALID_ARGUMENT);
}

/*
 * Two buffers by turns, as a step uses them: what is added to x is known for thousands of rounds, while ranks are delayed at
 * random. A rank that overwrote what another still reads would spoil that one's x.
 */
static void test_comm_device_buffers_by_turns(void **state)
{
    struct fixture *f = *state;
    struct comm *comm = f->comm;

    enum { N = 64 };

    const int32_t n_rounds = comm->size == 2 ? 2000 : 300;
    if (comm->fused_bytes == 0 || comm->recordable) {
        skip(); // nothing to be done by turns; or another way of the same kernel
    }
    float want[N] = {0};
    float *x = device_copy(f->stream, want, sizeof want);
    uint16_t parts[2][N];
    for (int32_t round = 0; round < n_rounds; round++) {
        void *const buffer = comm->ops->buffer(comm, round % 2);
        uint16_t *const part = parts[round % 2];
        for (int32_t i = 0; i < N; i++) {
            const float mine = (float)((round * 7 + i + comm->rank * 3) % 5);
            part[i] = bf16_bits(mine);
            for (int32_t r = 0; r < comm->size; r++) {
                want[i] += (float)((round * 7 + i + r * 3) % 5);
            }
        }
        assert_status_ok(check_backend()->upload(f->stream, buffer, part, sizeof parts[0]));
        const struct add_norm_args args = {
            .x = x, .n_rows = 1, .n_columns = N, .kind = NORM_RMS, .eps = 1e-5f};
        assert_status_ok(comm->ops->all_reduce_add_norm(comm, buffer, &args));
        if (test_random_below(3) == 0) {
            assert_status_ok(check_backend()->stream_sync(f->stream));
            if ((round * 31 + comm->rank * 17) % 7 == 0) {
                delay(comm, round);
            }
        } else if (round % 2 == 1) {
            assert_status_ok(check_backend()->stream_sync(f->stream)); // parts are used again
        }
    }
    float got[N];
    device_read(f->stream, got, x, sizeof got);
    assert_same_bytes(got, want, sizeof want, "x");
    device_free(f->stream, x);
}

// ---- bytes ----

static unsigned char byte_of(int32_t from, int32_t to, int64_t i)
{
    return (unsigned char)(i * 31 + (int64_t)from * 7 + (int64_t)to * 101);
}

static void test_comm_device_gather_v(void **state)
{
    struct fixture *f = *state;
    struct comm *comm = f->comm;
    for (int32_t k = 0; k < 8; k++) {
        int64_t counts[8] = {0}, displs[8] = {0}, at = 3;
        const int32_t root = k % comm->size;
        for (int32_t r = 0; r < comm->size; r++) {
            counts[r] = test_random_below(4) == 0 ? 0 : (int64_t)test_random_below(150000);
            displs[r] = at;
            at += counts[r] + 5;
        }
        const int64_t n = counts[comm->rank];
        unsigned char *bytes = must_alloc((size_t)at);
        for (int64_t i = 0; i < n; i++) {
            bytes[i] = byte_of(comm->rank, root, i);
        }
        void *send = device_copy(f->stream, bytes, (size_t)n);
        void *recv = device_new(f->stream, (size_t)at);
        assert_status_ok(comm->ops->gather_v(comm, send, n, recv, counts, displs, root));
        device_read(f->stream, bytes, recv, (size_t)at);
        for (int32_t r = 0; r < comm->size && comm->rank == root; r++) {
            for (int64_t i = 0; i < counts[r]; i++) {
                assert_int_equal(bytes[displs[r] + i], byte_of(r, root, i));
            }
            assert_int_equal(bytes[displs[r] + counts[r]],
                             0xff); // between the parts nothing is written
        }
        device_free(f->stream, send);
        device_free(f->stream, recv);
        free(bytes);
    }
}

static void check_all_to_all(struct fixture *f, int64_t table[8][8])
{
    struct comm *comm = f->comm;
    int64_t n[4][8] = {{0}}, sent = 0, got = 0;
    for (int32_t r = 0; r < comm->size; r++) {
        n[0][r] = table[comm->rank][r];
        n[1][r] = sent;
        n[2][r] = table[r][comm->rank];
        n[3][r] = got;
        sent += n[0][r];
        got += n[2][r];
    }
    unsigned char *bytes = must_alloc((size_t)(sent > got ? sent : got));
    for (int32_t r = 0; r < comm->size; r++) {
        for (int64_t i = 0; i < n[0][r]; i++) {
            bytes[n[1][r] + i] = byte_of(comm->rank, r, i);
        }
    }
    void *send = device_copy(f->stream, bytes, (size_t)sent);
    void *recv = device_new(f->stream, (size_t)got);
    assert_status_ok(comm->ops->all_to_all_v(comm, send, n[0], n[1], recv, n[2], n[3]));
    device_read(f->stream, bytes, recv, (size_t)got);
    for (int32_t r = 0; r < comm->size; r++) {
        for (int64_t i = 0; i < n[2][r]; i++) {
            assert_int_equal(bytes[n[3][r] + i], byte_of(r, comm->rank, i));
        }
    }
    device_free(f->stream, send);
    device_free(f->stream, recv);
    free(bytes);
}

static void test_comm_device_all_to_all_v(void **state)
{
    struct fixture *f = *state;
    int64_t table[8][8];
    for (int32_t k = 0; k < 8; k++) {
        for (int32_t s = 0; s < 8; s++) {
            for (int32_t r = 0; r < 8; r++) {
                table[s][r] = test_random_below(3) == 0 ? 0 : (int64_t)test_random_below(90000);
            }
        }
        check_all_to_all(f, table);
    }
    memset(table, 0, sizeof table);
    check_all_to_all(f, table); // nobody says anything
}

static void test_comm_device_broadcast_device(void **state)
{
    struct fixture *f = *state;
    struct comm *comm = f->comm;
    static const int64_t sizes[] = {0, 1, 260, 65536, 200001};
    for (size_t k = 0; k < sizeof sizes / sizeof sizes[0]; k++) {
        const int32_t root = (int32_t)k % comm->size;
        unsigned char *bytes = must_alloc((size_t)sizes[k]);
        for (int64_t i = 0; i < sizes[k]; i++) {
            bytes[i] = comm->rank == root ? byte_of(root, 9, i) : 0xee;
        }
        void *data = device_copy(f->stream, bytes, (size_t)sizes[k]);
        assert_status_ok(comm->ops->broadcast_device(comm, data, sizes[k], root));
        device_read(f->stream, bytes, data, (size_t)sizes[k]);
        for (int64_t i = 0; i < sizes[k]; i++) {
            assert_int_equal(bytes[i], byte_of(root, 9, i));
        }
        device_free(f->stream, data);
        free(bytes);
    }
}

// ---- recordings ----

/* What is in the buffer doubles, or more, with every run: sums of sums, of all that a recording may hold. */
static void test_comm_device_recordings(void **state)
{
    struct fixture *f = *state;
    struct comm *comm = f->comm;
    const struct backend *backend = check_backend();

    enum { N = 500, N_RUNS = 5 };

    const bool nccl = f->way->choice != COMM_STAGED;
    assert_int_equal(comm->recordable, nccl);
    if (!nccl) {
        skip();
    }
    float ones[N];
    for (int32_t i = 0; i < N; i++) {
        ones[i] = (float)(i % 7);
    }
    float *data = device_copy(f->stream, ones, sizeof ones);
    struct backend_graph *graph = NULL;
    assert_status_ok(backend->graph_begin(f->stream));
    assert_status_ok(comm->ops->all_reduce(comm, data, N, DTYPE_F32));
    assert_status_ok(comm->ops->broadcast_device(comm, data, sizeof ones, 0));
    assert_status_ok(comm->ops->all_reduce(comm, data, N, DTYPE_F32));
    assert_status_ok(backend->graph_end(f->stream, &graph));
    float factor = 1.0f;
    for (int32_t run = 0; run < N_RUNS; run++) {
        delay(comm, run);
        assert_status_ok(backend->graph_run(f->stream, graph));
        factor *= (float)(comm->size * comm->size);
        if (run == 2) { // something else in between
            check_all_reduce(f, 77, DTYPE_BF16, run);
        }
    }
    float got[N];
    device_read(f->stream, got, data, sizeof got);
    for (int32_t i = 0; i < N; i++) {
        assert_true(got[i] == factor * (float)(i % 7));
    }
    backend->graph_free(graph);
    device_free(f->stream, data);
}

static void test_comm_device_is_fine(void **state)
{
    struct fixture *f = *state;
    assert_status_ok(f->comm->ops->check(f->comm));
    assert_status_ok(f->comm->ops->barrier(f->comm, 30.0));
}

// ---- main ----

static status_t open_comm(struct fixture *f)
{
    struct device_info devices[64];
    int n_devices = 0;
    TRY(check_backend()->devices(devices, 64, &n_devices));
    const struct stream_options options = {.device = group_host_rank(f->group) % n_devices};
    TRY(check_backend()->stream_new(&options, &f->stream));
    const struct comm_device_parts parts = {
        .host = group_comm(f->group),
        .backend = check_backend(),
        .stream = f->stream,
        .device = options.device,
        .choice = f->way->choice,
        .peers = f->way->peers,
        .order = f->way->order,
        .max_bytes = MAX_BYTES,
        .timeout_s = 60.0,
        .log = {.fd = 2, .level = LOG_WARN, .rank = group_rank(f->group), .module = "comm"},
    };
    return comm_device_new(&parts, &f->comm);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_comm_device_all_reduce),
    cmocka_unit_test(test_comm_device_sums_follow_each_other),
    cmocka_unit_test(test_comm_device_all_reduce_add_norm),
    cmocka_unit_test(test_comm_device_buffers_by_turns),
    cmocka_unit_test(test_comm_device_gather_v),
    cmocka_unit_test(test_comm_device_all_to_all_v),
    cmocka_unit_test(test_comm_device_broadcast_device),
    cmocka_unit_test(test_comm_device_recordings),
    cmocka_unit_test(test_comm_device_is_fine),
};

int main(int argc, char **argv)
{
    struct fixture f = {.way = NULL};
    for (size_t i = 0; i < N_WAYS; i++) {
        f.way = argc > 1 && strcmp(argv[1], ways[i].name) == 0 ? &ways[i] : f.way;
    }
    if (f.way == NULL) {
        fprintf(stderr, "usage: mpirun -n T %s staged|peer|nccl|nccl-fast|all\n", argv[0]);
        return 64;
    }
    status_t s = group_open("test", &f.group);
    if (status_is_ok(&s)) {
        s = open_comm(&f);
    }
    if (!status_is_ok(&s)) {
        status_print(stderr, &s);
        return 1;
    }
    // The first failure on any rank ends all of them, which would otherwise wait for each other.
    for (size_t i = 0; i < sizeof tests / sizeof tests[0]; i++) {
        struct CMUnitTest test = tests[i];
        test.initial_state = &f;
        if (_cmocka_run_group_tests(test.name, &test, 1, NULL, NULL) != 0) {
            group_abort(f.group, 1);
        }
    }
    f.comm->ops->free(f.comm);
    check_backend()->stream_free(f.stream);
    group_close(f.group);
    return 0;
}

/* Many threads start, cancel, answer and forget calls at the same time; meant for the sanitizers. */
#include "tests/proto/loopback.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"

#define N_THREADS 4
#define BATCH     32
#define RUN_NS    (1500 * NS_PER_MS)

struct tracked {
    atomic_int n_closed;
    atomic_int inside; /* callbacks */
    atomic_int n_overlaps;
    atomic_int n_after_closed;
    struct rpc_call *call;
};

struct stress {
    struct rpc_channel *channel;
    const char *address;
    uint64_t until_ns;
    unsigned seed;
    size_t n_calls, n_not_once;
    struct tracked tracked[BATCH];
    pthread_t thread;
};

static void enter(struct tracked *tracked)
{
    if (atomic_fetch_add(&tracked->inside, 1) != 0) {
        atomic_fetch_add(&tracked->n_overlaps, 1);
    }
    if (atomic_load(&tracked->n_closed) != 0) {
        atomic_fetch_add(&tracked->n_after_closed, 1);
    }
}

static void tracked_message(struct rpc_call *call, const uint8_t *data, size_t size)
{
    struct tracked *tracked = rpc_call_user(call);
    enter(tracked);
    if (size > 0 && data[0] % 7 == 0) {
        rpc_cancel(call);
    }
    atomic_fetch_sub(&tracked->inside, 1);
}

static void tracked_closed(struct rpc_call *call, const status_t *status)
{
    (void)status;
    struct tracked *tracked = rpc_call_user(call);
    enter(tracked);
    atomic_fetch_sub(&tracked->inside, 1);
    atomic_fetch_add(&tracked->n_closed, 1);
}

static const struct rpc_handlers tracked_handlers = {
    .on_message = tracked_message,
    .on_closed = tracked_closed,
};

/* One call of a random kind that is ended in a random way. */
static void one_call(struct stress *stress, struct tracked *tracked)
{
    static const char *const paths[] = {"/test.Loop/Echo", "/test.Loop/Count", "/test.Loop/Chat",
                                        "/test.Loop/Hold", "/test.Loop/Never", "/test.Loop/None"};
    const unsigned kind = (unsigned)rand_r(&stress->seed);
    const struct rpc_start_args args = {
        .path = paths[kind % 6],
        .handlers = &tracked_handlers,
        .user = tracked,
        .timeout_ns = kind % 5 == 0 ? 3 * NS_PER_MS : RPC_NO_DEADLINE,
    };
    status_t s = rpc_start(stress->channel, &args, &tracked->call);
    if (!status_is_ok(&s)) {
        return;
    }
    const uint32_t request[2] = {kind % 100, 8};
    s = rpc_send(tracked->call, request, sizeof request);
    if (kind % 3 == 0) {
        rpc_half_close(tracked->call);
    }
    if (kind % 4 == 0) {
        s = rpc_send(tracked->call, "again", 5);
    }
    if (kind % 8 < 6) {
        rpc_cancel(tracked->call);
    } else {
        rpc_half_close(tracked->call);
    }
    // Hold and Never are ended by nobody else.
    if (kind % 6 == 3 || kind % 6 == 4) {
        rpc_cancel(tracked->call);
    }
}

static void *run(void *arg)
{
    struct stress *stress = arg;
    struct tracked *tracked = stress->tracked;
    while (clock_now_ns(clock_system()) < stress->until_ns) {
        memset(tracked, 0, sizeof stress->tracked);
        for (size_t i = 0; i < BATCH; i++) {
            one_call(stress, &tracked[i]);
        }
        for (size_t i = 0; i < BATCH; i++) {
            while (atomic_load(&tracked[i].n_closed) == 0) {
                usleep(100);
            }
            rpc_call_release(tracked[i].call);
            stress->n_calls++;
            stress->n_not_once += atomic_load(&tracked[i].n_closed) != 1 ||
                                  atomic_load(&tracked[i].n_overlaps) != 0 ||
                                  atomic_load(&tracked[i].n_after_closed) != 0;
        }
    }
    return NULL;
}

/* Channels that come and go with calls under way. */
static void *run_channels(void *arg)
{
    struct stress *stress = arg;
    while (clock_now_ns(clock_system()) < stress->until_ns) {
        const struct rpc_channel_options options = {
            .log = {.fd = 2, .level = LOG_WARN, .rank = -1, .module = "rpc"},
        };
        struct tracked tracked[8];
        memset(tracked, 0, sizeof tracked);
        const status_t s = rpc_channel_new(stress->address, &options, &stress->channel);
        if (!status_is_ok(&s)) {
            stress->n_not_once++;
            break;
        }
        for (size_t i = 0; i < 8; i++) {
            one_call(stress, &tracked[i]);
        }
        rpc_channel_free(stress->channel);
        for (size_t i = 0; i < 8; i++) {
            rpc_call_release(tracked[i].call);
            stress->n_calls++;
            stress->n_not_once += atomic_load(&tracked[i].n_closed) != 1;
        }
    }
    return NULL;
}

/* Answers, ends and cancels held calls from a thread that is no poller. */
static void *run_server(void *arg)
{
    struct loop_server *loop = arg;
    for (unsigned i = 0;; i++) {
        pthread_mutex_lock(&loop->mutex);
        struct rpc_call *call = loop->held;
        loop->held = NULL;
        const bool stop = loop->n_writable == SIZE_MAX;
        pthread_mutex_unlock(&loop->mutex);
        if (call == NULL && stop) {
            return NULL;
        }
        if (call == NULL) {
            usleep(200);
            continue;
        }
        status_t s = rpc_send(call, "abcd", 4);
        if (i % 3 == 0) {
            rpc_cancel(call);
        } else if (i % 3 == 1) {
            s = status_ok();
            rpc_finish(call, &s, NULL, 0);
        }
        rpc_call_release(call);
    }
}

static void test_stress_every_call_is_closed_exactly_once_and_last(void **state)
{
    (void)state;
    struct loop_server loop;
    loop_server_start(&loop, NULL);
    const uint64_t until = clock_now_ns(clock_system()) + RUN_NS;
    struct stress threads[N_THREADS];
    pthread_t server_thread;
    assert_int_equal(pthread_create(&server_thread, NULL, run_server, &loop), 0);
    struct rpc_channel *shared = loop_channel(rpc_server_address(loop.server));
    for (size_t i = 0; i < N_THREADS; i++) {
        threads[i] = (struct stress){
            .channel = shared,
            .address = rpc_server_address(loop.server),
            .until_ns = until,
            .seed = (unsigned)test_random_u64(),
        };
        void *(*fn)(void *) = i == N_THREADS - 1 ? run_channels : run;
        assert_int_equal(pthread_create(&threads[i].thread, NULL, fn, &threads[i]), 0);
    }
    size_t n_calls = 0, n_not_once = 0;
    for (size_t i = 0; i < N_THREADS; i++) {
        pthread_join(threads[i].thread, NULL);
        n_calls += threads[i].n_calls;
        n_not_once += threads[i].n_not_once;
    }
    rpc_channel_free(shared);
    pthread_mutex_lock(&loop.mutex);
    loop.n_writable = SIZE_MAX;
    pthread_mutex_unlock(&loop.mutex);
    pthread_join(server_thread, NULL);
    assert_true(n_calls > 100);
    assert_int_equal(n_not_once, 0);
    print_message("%zu calls\n", n_calls);
    loop_server_stop(&loop);
}

/* The server goes away while clients are at it. */
static void test_stress_server_ends_under_load(void **state)
{
    (void)state;
    for (int round = 0; round < 5; round++) {
        struct loop_server loop;
        loop_server_start(&loop, NULL);
        struct rpc_channel *channel = loop_channel(rpc_server_address(loop.server));
        struct stress stress = {
            .channel = channel,
            .until_ns = clock_now_ns(clock_system()) + 200 * NS_PER_MS,
            .seed = (unsigned)test_random_u64(),
        };
        assert_int_equal(pthread_create(&stress.thread, NULL, run, &stress), 0);
        usleep(60000);
        rpc_server_drain(loop.server, round % 2 == 0 ? 0 : 20 * NS_PER_MS);
        pthread_join(stress.thread, NULL);
        assert_int_equal(stress.n_not_once, 0);
        rpc_channel_free(channel);
        loop_server_stop(&loop);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stress_every_call_is_closed_exactly_once_and_last),
        cmocka_unit_test(test_stress_server_ends_under_load),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

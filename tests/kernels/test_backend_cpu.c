#include "tests/kernels/kernel_check.h"

#include <sched.h>
#include <stdatomic.h>
#include <time.h>

static void test_backend_cpu_makes_streams(void **state)
{
    (void)state;
    const struct backend *cpu = backend_cpu();
    assert_string_equal(cpu->name, "cpu");
    struct backend_stream *stream = NULL;
    const struct stream_options options = {.n_threads = 2};
    assert_status_ok(cpu->stream_new(&options, &stream));
    assert_int_equal(stream->n_threads, 2);
    assert_status_ok(cpu->stream_sync(stream));
    cpu->stream_free(stream);
    cpu->stream_free(NULL);
}

static void test_backend_cpu_refuses_bad_streams(void **state)
{
    (void)state;
    struct backend_stream *stream = NULL;
    struct stream_options options = {.n_threads = 0};
    assert_status_says(backend_cpu()->stream_new(&options, &stream), STATUS_INVALID_ARGUMENT,
                       "threads 0");
    options.n_threads = CPU_MAX_THREADS + 1;
    assert_status_code(backend_cpu()->stream_new(&options, &stream), STATUS_INVALID_ARGUMENT);
    assert_status_says(cpu_stream_new_isa(1, "mmx", &stream), STATUS_UNIMPLEMENTED, "mmx");
    assert_null(stream);
}

static void test_backend_cpu_has_every_op_that_a_cpu_can_have(void **state)
{
    (void)state;
    // All members from devices on are pointers: none but those of graphs, of tuning and of several devices may be missing.
    const struct backend *cpu = backend_cpu();
    void *entries[(sizeof *cpu - offsetof(struct backend, devices)) / sizeof(void *)];
    memcpy(entries, (const char *)cpu + offsetof(struct backend, devices), sizeof entries);
    int n_missing = 0;
    for (size_t i = 0; i < sizeof entries / sizeof entries[0]; i++) {
        n_missing += entries[i] == NULL;
    }
    assert_int_equal(n_missing, 7);
    assert_null(cpu->cuda_stream);
    assert_null(cpu->peers);
    assert_null(cpu->matmul_tune);
    assert_null(cpu->graph_begin);
    assert_null(cpu->graph_end);
    assert_null(cpu->graph_run);
    assert_null(cpu->graph_free);
}

static void test_backend_cpu_is_one_device(void **state)
{
    (void)state;
    struct device_info info[2] = {{.name = ""}, {.name = "?"}};
    int n = 0;
    assert_status_ok(backend_cpu()->devices(info, 2, &n));
    assert_int_equal(n, 1);
    assert_true(info[0].free_bytes > 0 && info[0].free_bytes <= info[0].memory_bytes);
    assert_true(info[0].n_processors >= 1);
    assert_string_equal(info[1].name, "?");
    assert_status_ok(backend_cpu()->devices(NULL, 0, &n));
    assert_int_equal(n, 1);
}

static void test_backend_cpu_copies_and_clears(void **state)
{
    (void)state;
    const struct backend *cpu = backend_cpu();
    int32_t a[3] = {1, 2, 3}, b[3] = {0};
    assert_status_ok(cpu->upload(NULL, b, a, sizeof a));
    assert_memory_equal(a, b, sizeof a);
    assert_status_ok(cpu->download(NULL, b, b, sizeof b)); // in place
    assert_status_ok(cpu->zero(NULL, b + 1, sizeof b[1]));
    assert_true(b[0] == 1 && b[1] == 0 && b[2] == 3);
    assert_status_ok(cpu->upload(NULL, NULL, NULL, 0));
}

static void test_backend_cpu_memory_is_aligned(void **state)
{
    (void)state;
    static const size_t sizes[] = {0, 1, 63, 64, 65, 4096, (4u << 20) + 1};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        void *ptr = NULL;
        assert_status_ok(backend_cpu()->mem_alloc(NULL, sizes[i], &ptr));
        assert_non_null(ptr);
        assert_int_equal((uintptr_t)ptr % 64, 0);
        memset(ptr, 1, sizes[i]);
        backend_cpu()->mem_free(NULL, ptr);
    }
    backend_cpu()->mem_free(NULL, NULL);
}

static void test_backend_cpu_memory_that_is_not_there_is_a_status(void **state)
{
    (void)state;
    void *ptr = NULL;
    assert_status_code(backend_cpu()->mem_alloc(NULL, SIZE_MAX / 4, &ptr),
                       STATUS_RESOURCE_EXHAUSTED);
    assert_null(ptr);
}

// ---- team ----

enum { TASKS = 1000, THREADS = 3 };

struct tally {
    _Atomic int runs[TASKS];
    _Atomic int busy[THREADS];
    _Atomic int clashes;
};

static void count_task(void *context, int64_t task, int thread)
{
    struct tally *tally = context;
    if (thread < 0 || thread >= THREADS || atomic_fetch_add(&tally->busy[thread], 1) != 0) {
        atomic_fetch_add(&tally->clashes, 1);
        return;
    }
    atomic_fetch_add(&tally->runs[task], 1);
    atomic_fetch_sub(&tally->busy[thread], 1);
}

static void test_team_runs_every_task_once(void **state)
{
    (void)state;
    static const int64_t counts[] = {0, 1, 2, THREADS, TASKS};
    for (int n_threads = 1; n_threads <= THREADS; n_threads++) {
        struct cpu_team *team = NULL;
        assert_status_ok(cpu_team_new(n_threads, NULL, &team));
        for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
            struct tally tally = {.clashes = 0};
            cpu_team_run(team, counts[i], count_task, &tally);
            for (int64_t task = 0; task < TASKS; task++) {
                assert_int_equal(tally.runs[task], task < counts[i]);
            }
            assert_int_equal(tally.clashes, 0);
        }
        cpu_team_free(team);
    }
    cpu_team_free(NULL);
}

/* A task that takes some others' time, so that members do come: it waits until another thread has been seen, or long enough. */
struct meeting {
    _Atomic uint32_t threads; /* bits */
    int32_t sum[64];          /* [n_tasks]: plain memory, which jobs hand from thread to thread */
};

static void meet(void *context, int64_t task, int thread)
{
    struct meeting *meeting = context;
    atomic_fetch_or(&meeting->threads, 1u << thread);
    for (int i = 0; i < 1000 && atomic_load(&meeting->threads) == 1u << thread; i++) {
        sched_yield();
    }
    meeting->sum[task]++;
}

/* Jobs at once and after pauses in which members fall asleep; what one job wrote the next reads. */
static void test_team_runs_many_jobs(void **state)
{
    enum { JOBS = 800 };

    (void)state;
    struct cpu_team *team = NULL;
    struct meeting meeting = {.threads = 0};
    uint32_t threads = 0;
    assert_status_ok(cpu_team_new(THREADS, NULL, &team));
    for (int i = 0; i < JOBS; i++) {
        atomic_store(&meeting.threads, 0);
        cpu_team_run(team, 2 + i % 63, meet, &meeting);
        threads |= atomic_load(&meeting.threads);
        if (test_random_below(50) == 0) {
            const struct timespec pause = {.tv_nsec = (long)test_random_below(2000000)};
            nanosleep(&pause, NULL);
        }
    }
    int32_t n_runs = 0;
    for (int i = 0; i < 64; i++) {
        n_runs += meeting.sum[i];
    }
    int32_t want = 0;
    for (int i = 0; i < JOBS; i++) {
        want += 2 + i % 63;
    }
    assert_int_equal(n_runs, want);
    assert_int_equal(threads, (1u << THREADS) - 1);
    cpu_team_free(team);
}

struct places {
    _Atomic int in_place, elsewhere;
    _Atomic int64_t arrived;
    int64_t n_tasks;
    const int32_t *cores;
};

/* Each thread takes one task and waits for the others. */
static void note_place(void *context, int64_t task, int thread)
{
    (void)task;
    struct places *places = context;
    cpu_set_t set;
    assert_int_equal(sched_getaffinity(0, sizeof set, &set), 0);
    const bool here = CPU_COUNT(&set) == 1 && CPU_ISSET((size_t)places->cores[thread], &set) &&
                      sched_getcpu() == places->cores[thread];
    atomic_fetch_add(here ? &places->in_place : &places->elsewhere, 1);
    atomic_fetch_add(&places->arrived, 1);
    while (atomic_load(&places->arrived) < places->n_tasks) {
        sched_yield();
    }
}

static void test_team_threads_stay_on_their_cores(void **state)
{
    (void)state;
    cpu_set_t before, after;
    int32_t cores[THREADS];
    int n = 0;
    assert_int_equal(sched_getaffinity(0, sizeof before, &before), 0);
    for (int32_t core = 0; core < CPU_SETSIZE && n < THREADS; core++) {
        if (CPU_ISSET((size_t)core, &before)) {
            cores[n++] = core;
        }
    }
    const struct stream_options options = {.n_threads = n, .cores = cores};
    struct backend_stream *stream = NULL;
    assert_status_ok(backend_cpu()->stream_new(&options, &stream));
    struct places places = {.n_tasks = n, .cores = cores};
    cpu_team_run(stream->team, n, note_place, &places);
    assert_int_equal(places.in_place, n);
    assert_int_equal(places.elsewhere, 0);
    backend_cpu()->stream_free(stream);
    assert_int_equal(sched_getaffinity(0, sizeof after, &after), 0);
    assert_true(CPU_EQUAL(&before, &after));
}

static void test_team_refuses_a_core_that_is_not_there(void **state)
{
    (void)state;
    static const int32_t none[] = {-1}, high[] = {CPU_SETSIZE - 1};
    struct cpu_team *team = NULL;
    assert_status_code(cpu_team_new(1, none, &team), STATUS_INVALID_ARGUMENT);
    assert_status_code(cpu_team_new(1, high, &team), STATUS_INVALID_ARGUMENT);
    assert_null(team);
}

static void test_team_tasks_are_worth_a_thread(void **state)
{
    (void)state;
    assert_int_equal(cpu_items_per_task(100, 1 << 20), 1);
    assert_int_equal(cpu_items_per_task(100, 1024), 8);
    assert_int_equal(cpu_items_per_task(3, 1), 3);
    assert_true(cpu_items_per_task(0, 1) >= 1);
    assert_true(cpu_items_per_task(5, 0) >= 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_backend_cpu_makes_streams),
        cmocka_unit_test(test_backend_cpu_refuses_bad_streams),
        cmocka_unit_test(test_backend_cpu_has_every_op_that_a_cpu_can_have),
        cmocka_unit_test(test_backend_cpu_is_one_device),
        cmocka_unit_test(test_backend_cpu_copies_and_clears),
        cmocka_unit_test(test_backend_cpu_memory_is_aligned),
        cmocka_unit_test(test_backend_cpu_memory_that_is_not_there_is_a_status),
        cmocka_unit_test(test_team_runs_every_task_once),
        cmocka_unit_test(test_team_runs_many_jobs),
        cmocka_unit_test(test_team_threads_stay_on_their_cores),
        cmocka_unit_test(test_team_refuses_a_core_that_is_not_there),
        cmocka_unit_test(test_team_tasks_are_worth_a_thread),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

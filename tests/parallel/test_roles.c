/*
 * One job of several programs, under mpirun. Rank 0 plays a program that does not know MPI: it starts this
 * file again as a bystander and serves until the workers are done. The other ranks are workers; the last
 * one has a role of its own.
 */
#include "tests/support/test.h"

#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "parallel/group.h"

static int env_int(const char *name)
{
    const char *text = getenv(name);
    return text != NULL ? (int)strtol(text, NULL, 10) : 0; // mpirun sets it
}

static void sleep_ms(long ms)
{
    const struct timespec pause = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};
    nanosleep(&pause, NULL);
}

// ---- the program without MPI ----

/* Starts the bystander; its input ends when *pipe_out is closed. */
static pid_t start_bystander(int *pipe_out)
{
    int ends[2];
    assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
    const pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        dup2(ends[0], STDIN_FILENO);
        execl("/proc/self/exe", "test_roles", "--bystander", (char *)NULL);
        _exit(127);
    }
    close(ends[0]);
    *pipe_out = ends[1];
    return pid;
}

static void test_bystander_fills_the_place_of_a_program_without_mpi(void **state)
{
    (void)state;
    int input;
    const pid_t pid = start_bystander(&input);
    sleep_ms(1500); // the workers are done by then, and wait in group_close
    kill(pid, SIGTERM);
    kill(pid, SIGINT); // it stays all the same
    sleep_ms(100);
    int how = 0;
    assert_int_equal(waitpid(pid, &how, WNOHANG), 0);
    close(input);
    struct rusage use;
    assert_int_equal(wait4(pid, &how, 0, &use), pid);
    assert_true(WIFEXITED(how));
    assert_int_equal(WEXITSTATUS(how), 0);
}

// ---- workers ----

static void test_group_holds_its_own_role_alone(void **state)
{
    struct group *group = *state;
    const int world_size = env_int("OMPI_COMM_WORLD_SIZE");
    const int world_rank = env_int("OMPI_COMM_WORLD_RANK");
    const bool last = world_rank == world_size - 1;
    assert_int_equal(group_size(group), last ? 1 : world_size - 2);
    assert_int_equal(group_rank(group), last ? 0 : world_rank - 1);

    float x[2] = {ldexpf(1, world_rank), 1};
    struct comm *comm = group_comm(group);
    assert_status_ok(comm->ops->all_reduce(comm, x, 2, DTYPE_F32));
    assert_true(x[1] == (float)group_size(group));
    // The workers are ranks 1 to n - 2 of the job: 2 + 4 + ...
    assert_true(x[0] == (last ? ldexpf(1, world_rank) : ldexpf(1, world_size - 1) - 2));
    assert_status_ok(group_agree(group, status_ok()));
}

static int set_up(void **state)
{
    struct group *group = NULL;
    const bool last = env_int("OMPI_COMM_WORLD_RANK") == env_int("OMPI_COMM_WORLD_SIZE") - 1;
    const status_t s = group_open(last ? "last" : "worker", &group);
    *state = group;
    return s.code == STATUS_OK ? 0 : -1;
}

static int tear_down(void **state)
{
    group_close(*state);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "--bystander") == 0) {
        const status_t s = group_bystander_run();
        return status_exit_code(&s);
    }
    const struct CMUnitTest bystander[] = {
        cmocka_unit_test(test_bystander_fills_the_place_of_a_program_without_mpi),
    };
    const struct CMUnitTest workers[] = {
        cmocka_unit_test(test_group_holds_its_own_role_alone),
    };
    return env_int("OMPI_COMM_WORLD_RANK") == 0
               ? cmocka_run_group_tests(bystander, NULL, NULL)
               : cmocka_run_group_tests(workers, set_up, tear_down);
}

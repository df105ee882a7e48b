#include "ops/bench_worker.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ops/cli.h"

#define MAX_ARGS       96
#define MAX_LINE_BYTES ((size_t)16 << 20)

struct arguments {
    const char *list[MAX_ARGS];
    size_t n;
};

static void add(struct arguments *args, const char *arg)
{
    assert(args->n + 1 < MAX_ARGS);
    args->list[args->n++] = arg;
}

static void add_flag(struct arguments *args, const char *name, const char *value)
{
    if (value != NULL) {
        add(args, name);
        add(args, value);
    }
}

void bench_worker_flag(struct bench_worker_run *run, const char *name, const char *value)
{
    if (value != NULL) {
        bench_worker_switch(run, name);
        run->flags[run->n_flags - 1].value = value;
    }
}

void bench_worker_switch(struct bench_worker_run *run, const char *name)
{
    assert(run->n_flags < BENCH_WORKER_MAX_FLAGS);
    run->flags[run->n_flags].name = name;
    run->flags[run->n_flags++].value = NULL;
}

/* As the supervisor starts ranks: see there for why. One rank needs no mpirun. */
static void make_args(const struct bench_worker_run *run, const char *worker, const char *ranks,
                      struct arguments *args)
{
    const struct bench_worker_options *o = run->options;
    if (o->tp > 1) {
        const char *const head[] = {o->mpirun, "-n",
                                    ranks,     "--bind-to",
                                    "none",    "--quiet",
                                    "--mca",   "odls_base_sigkill_timeout",
                                    "0",       "--oversubscribe"};
        for (size_t i = 0; i < sizeof head / sizeof head[0]; i++) {
            add(args, head[i]);
        }
    }
    add(args, worker);
    add(args, "--bench");
    add(args, run->part);
    add_flag(args, "--device", o->device);
    add_flag(args, "--kv-placement", o->kv_placement);
    add_flag(args, "--dtype", o->dtype);
    add_flag(args, "--quantization", o->quantization);
    add_flag(args, "--kv-cache-dtype", o->kv_cache_dtype);
    add_flag(args, "--max-num-batched-tokens", o->max_num_batched_tokens);
    add_flag(args, "--threads", o->threads);
    add_flag(args, "--pin-threads", o->pin_threads);
    add_flag(args, "--gpu-memory-utilization", o->gpu_memory_utilization);
    add_flag(args, "--cache-dir", o->cache_dir);
    add_flag(args, "--log-level", o->log_level);
    for (size_t i = 0; i < run->n_flags; i++) {
        add(args, run->flags[i].name);
        if (run->flags[i].value != NULL) {
            add(args, run->flags[i].value);
        }
    }
    add(args, "--");
    add(args, run->model);
}

/* In the child. What the user has set wins. */
_Noreturn static void become(const struct arguments *args, pid_t parent, int out)
{
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    signal(SIGPIPE, SIG_DFL);
    cli_allow_mpirun();
    if (getppid() == parent && dup2(out, STDOUT_FILENO) >= 0) {
        execvp(args->list[0],
               (char *const *)args->list); // execv changes nothing: its type is older
    }
    fprintf(stderr, "error: cannot run %s: %s\n", args->list[0], strerror(errno));
    _exit(69);
}

double bench_worker_number(const json_t *result, const char *key)
{
    return json_number_value(json_object_get(result, key));
}

static void take_line(const char *line, bench_worker_result_fn on_result, void *user)
{
    json_error_t error;
    json_t *result = line[0] == '{' ? json_loads(line, 0, &error) : NULL;
    if (result != NULL) {
        on_result(user, result);
    } else { // not ours: a library's, which its user may want to see
        fprintf(stderr, "%s\n", line);
    }
    json_decref(result);
}

static status_t read_lines(int in, bench_worker_result_fn on_result, void *user)
{
    FILE *file = fdopen(in, "r");
    if (file == NULL) {
        close(in);
        return status_errorf(STATUS_UNAVAILABLE, "cannot read a pipe: %s", strerror(errno));
    }
    char *line = NULL;
    size_t capacity = 0;
    ssize_t n;
    while ((n = getline(&line, &capacity, file)) > 0 && (size_t)n < MAX_LINE_BYTES) {
        if (line[n - 1] == '\n') {
            line[n - 1] = '\0';
        }
        take_line(line, on_result, user);
    }
    free(line);
    fclose(file);
    return status_ok();
}

static int reap(pid_t pid)
{
    int wait_status = 0;
    while (waitpid(pid, &wait_status, 0) < 0 && errno == EINTR) {
    }
    return WIFEXITED(wait_status) ? WEXITSTATUS(wait_status) : 70;
}

status_t bench_worker_start(const struct bench_worker_run *run, bench_worker_result_fn on_result,
                            void *user, int *exit_code_out)
{
    char worker[4096], ranks[16];
    struct arguments args = {.n = 0};
    int fds[2];
    *exit_code_out = 69;
    TRY(cli_sibling("kvasir-worker", worker, sizeof worker));
    snprintf(ranks, sizeof ranks, "%d", (int)run->options->tp);
    make_args(run, worker, ranks, &args);
    if (pipe2(fds, O_CLOEXEC) != 0) {
        return status_errorf(STATUS_UNAVAILABLE, "cannot make a pipe: %s", strerror(errno));
    }
    fflush(stdout);
    const pid_t parent = getpid(), pid = fork();
    if (pid == 0) {
        become(&args, parent, fds[1]);
    }
    close(fds[1]);
    if (pid < 0) {
        close(fds[0]);
        return status_errorf(STATUS_UNAVAILABLE, "cannot start %s: %s", worker, strerror(errno));
    }
    const status_t s = read_lines(fds[0], on_result, user);
    *exit_code_out = reap(pid);
    TRY(s);
    return *exit_code_out == 0
               ? status_ok()
               : status_errorf(STATUS_UNAVAILABLE, "the worker ended with %d", *exit_code_out);
}

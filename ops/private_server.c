#include "ops/private_server.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ops/cli.h"

#define MAX_ARGS 32

struct arguments {
    const char *list[MAX_ARGS];
    int n;
};

static void add(struct arguments *args, const char *flag, const char *value)
{
    if (value != NULL && args->n + 2 < MAX_ARGS) {
        args->list[args->n++] = flag;
        args->list[args->n++] = value;
    }
}

static void run_child(const char *program, const char *const *argv, int out)
{
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    setpgid(0, 0); // Ctrl-C is ours to handle: the child is stopped in order
    dup2(out, STDOUT_FILENO);
    execv(program, (char *const *)argv); // execv changes nothing: its type is older than const
    _exit(69);
}

static status_t spawn(struct private_server *server, const char *program, const char *const *argv)
{
    int pipe_fds[2];
    if (pipe2(pipe_fds, O_CLOEXEC) != 0) {
        return status_errorf(STATUS_UNAVAILABLE, "cannot make a pipe: %s", strerror(errno));
    }
    server->pid = fork();
    if (server->pid == 0) {
        run_child(program, argv, pipe_fds[1]);
    }
    close(pipe_fds[1]);
    server->out = pipe_fds[0];
    if (server->pid < 0) {
        close(server->out);
        return status_errorf(STATUS_UNAVAILABLE, "cannot start %s: %s", program, strerror(errno));
    }
    return status_ok();
}

/* Reads the child's lines until `ready:`; false when it ended before. */
static bool await_ready(struct private_server *server)
{
    char line[256];
    size_t n = 0;
    char c;
    for (;;) {
        const ssize_t got = read(server->out, &c, 1);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got <= 0) {
            return false;
        }
        if (c != '\n') {
            if (n < sizeof line - 1) {
                line[n++] = c;
            }
            continue;
        }
        line[n] = '\0';
        if (strncmp(line, "ready:", 6) == 0) {
            return true;
        }
        n = 0;
    }
}

static int reap(struct private_server *server)
{
    int wait_status = 0;
    while (waitpid(server->pid, &wait_status, 0) < 0 && errno == EINTR) {
    }
    server->pid = 0;
    return WIFEXITED(wait_status) ? WEXITSTATUS(wait_status) : 70;
}

status_t private_server_start(struct private_server *server,
                              const struct private_server_options *options, int *exit_code_out)
{
    char program[4096];
    memset(server, 0, sizeof *server);
    *exit_code_out = 69;
    TRY(cli_sibling("kvasir-coordinator", program, sizeof program));
    snprintf(server->dir, sizeof server->dir, "/tmp/kvasir-XXXXXX");
    if (mkdtemp(server->dir) == NULL) {
        return status_errorf(STATUS_UNAVAILABLE, "cannot make a directory in /tmp: %s",
                             strerror(errno));
    }
    snprintf(server->address, sizeof server->address, "unix:%s/socket", server->dir);
    struct arguments args = {.n = 0};
    args.list[args.n++] = program;
    args.list[args.n++] = options->model;
    add(&args, "--launcher", "mpirun");
    add(&args, "--listen", server->address);
    add(&args, "--tensor-parallel-size", options->tensor_parallel_size);
    add(&args, "--pipeline-parallel-size", options->pipeline_parallel_size);
    add(&args, "--kv-placement", options->kv_placement);
    add(&args, "--dtype", options->dtype);
    add(&args, "--quantization", options->quantization);
    add(&args, "--kv-cache-dtype", options->kv_cache_dtype);
    add(&args, "--max-model-len", options->max_model_len);
    add(&args, "--max-num-seqs", options->max_num_seqs);
    add(&args, "--max-num-batched-tokens", options->max_num_batched_tokens);
    add(&args, "--load-format", options->load_format);
    add(&args, "--threads", options->threads);
    add(&args, "--device", options->device);
    add(&args, "--log-level", options->log_level);
    status_t s = spawn(server, program, args.list);
    if (s.code != STATUS_OK) {
        rmdir(server->dir);
        return s;
    }
    if (!await_ready(server)) {
        close(server->out);
        *exit_code_out = reap(server);
        rmdir(server->dir);
        return status_errorf(STATUS_UNAVAILABLE, "the private server did not start");
    }
    *exit_code_out = 0;
    return status_ok();
}

void private_server_stop(struct private_server *server)
{
    if (server->pid > 0) {
        kill(server->pid, SIGTERM);
        (void)reap(server);
        close(server->out);
        unlink(server->address + strlen("unix:"));
        rmdir(server->dir);
    }
}

#include "coordinator/supervisor.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/bytes.h"

#define MAX_ARGS       128
#define MAX_VARIABLES  8
#define MAX_TEXT_BYTES ((size_t)64 * 1024)
#define N(array)       (sizeof(array) / sizeof(array)[0])

static int32_t usable_cores(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) != 0) {
        return 1;
    }
    return CPU_COUNT(&set);
}

void supervisor_init(struct supervisor *s, const struct supervisor_options *options)
{
    *s = (struct supervisor){.options = *options};
    if (s->options.n_cores <= 0) {
        s->options.n_cores = usable_cores();
    }
}

void supervisor_destroy(struct supervisor *s)
{
    for (int i = 0; i < SUPERVISOR_MAX_GROUPS; i++) {
        supervisor_signal(s, i, SIGKILL);
        if (s->children[i] > 0) {
            (void)waitpid(s->children[i], NULL, 0);
            s->children[i] = 0;
        }
    }
}

// ---- the command line and the environment of a group ----

/* Everything is made before the fork: after it a thread of another's may hold malloc's lock for ever. */
struct command {
    char *args[MAX_ARGS];
    size_t n_args;
    char *variables[MAX_VARIABLES]; /* "NAME=value" */
    size_t n_variables;
    char **environment;
    char *text; /* --mpirun-args, cut at its blanks */
};

static status_t add(struct command *c, const char *arg)
{
    if (c->n_args + 1 >= N(c->args)) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "--mpirun-args: more than %zu arguments",
                             N(c->args) - 1);
    }
    c->args[c->n_args] = strdup(arg);
    if (c->args[c->n_args] == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory for an argument");
    }
    c->n_args++;
    return status_ok();
}

static status_t add_all(struct command *c, const char *const *args, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        TRY(add(c, args[i]));
    }
    return status_ok();
}

static status_t add_words(struct command *c, const char *text)
{
    if (text == NULL) {
        return status_ok();
    }
    c->text = strdup(text);
    if (c->text == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory for --mpirun-args");
    }
    char *rest = NULL;
    for (char *word = strtok_r(c->text, " \t\n", &rest); word != NULL;
         word = strtok_r(NULL, " \t\n", &rest)) {
        TRY(add(c, word));
    }
    return status_ok();
}

static status_t add_variable(struct command *c, const char *name, const char *value)
{
    if (getenv(name) != NULL) {
        return status_ok(); // the user knows better
    }
    char *text = NULL;
    if (asprintf(&text, "%s=%s", name, value) < 0) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory for a variable");
    }
    c->variables[c->n_variables++] = text;
    return status_ok();
}

static bool is_crowded(const struct supervisor_options *o)
{
    return (int64_t)o->n_ranks * o->n_groups >= o->n_cores;
}

static status_t make_args(const struct supervisor_options *o, int group, uint32_t generation,
                          struct command *c)
{
    char ranks[16], group_text[16], generation_text[16];
    snprintf(ranks, sizeof ranks, "%d", o->n_ranks);
    snprintf(group_text, sizeof group_text, "%d", group);
    snprintf(generation_text, sizeof generation_text, "%u", generation);
    // Ranks have threads of their own: one core each, Open MPI's default, would be too little.
    // A failing worker tells us why; mpirun's own explanation on top is noise. Ranks that are left when one fails
    // have nothing to finish: without the timeout of 0 they are killed one or two seconds later.
    const char *const head[] = {o->mpirun, "-n",      ranks,   "--bind-to",
                                "none",    "--quiet", "--mca", "odls_base_sigkill_timeout",
                                "0"};
    TRY(add_all(c, head, N(head)));
    if (o->n_ranks > o->n_cores) {
        TRY(add(c, "--oversubscribe"));
    }
    TRY(add_words(c, o->mpirun_args));
    const char *const tail[] = {o->worker,  "--coordinator", o->address,      "--group",
                                group_text, "--generation",  generation_text, "--device",
                                o->device,  "--log-level",   o->log_level};
    TRY(add_all(c, tail, N(tail)));
    if (o->join_token_file != NULL) {
        const char *const token[] = {"--join-token-file", o->join_token_file};
        TRY(add_all(c, token, N(token)));
    }
    return status_ok();
}

static status_t make_variables(const struct supervisor_options *o, struct command *c)
{
    if (geteuid() == 0) {
        TRY(add_variable(c, "OMPI_ALLOW_RUN_AS_ROOT", "1"));
        TRY(add_variable(c, "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"));
    }
    if (is_crowded(o)) {
        TRY(add_variable(c, "OMPI_MCA_mpi_yield_when_idle", "1"));
    }
    // On this host alone mpirun needs no ssh, and must not fail because there is none.
    if (o->mpirun_args == NULL && getenv("SLURM_JOB_ID") == NULL && getenv("PBS_JOBID") == NULL &&
        getenv("OMPI_MCA_orte_default_hostfile") == NULL) {
        TRY(add_variable(c, "OMPI_MCA_plm", "isolated"));
    }
    return add_variable(c, "OMPI_MCA_opal_signal", ""); // crashes end in the kernel's core dump
}

/* Of another MPI job, the one this process is in: mpirun would take itself for a part of it. */
static bool is_job_variable(const char *entry)
{
    return strncmp(entry, "OMPI_COMM_WORLD_", 16) == 0 || strncmp(entry, "PMIX_", 5) == 0 ||
           strncmp(entry, "OMPI_MCA_ess", 12) == 0 || strncmp(entry, "OMPI_MCA_orte_ess", 17) == 0;
}

static status_t make_environment(struct command *c)
{
    size_t n = 0;
    while (environ[n] != NULL) {
        n++;
    }
    c->environment = calloc(n + MAX_VARIABLES + 1, sizeof *c->environment);
    if (c->environment == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory for the environment");
    }
    size_t at = 0;
    for (size_t i = 0; i < n; i++) {
        if (!is_job_variable(environ[i])) {
            c->environment[at++] = environ[i];
        }
    }
    for (size_t i = 0; i < c->n_variables; i++) {
        c->environment[at++] = c->variables[i];
    }
    return status_ok();
}

static void command_destroy(struct command *c)
{
    for (size_t i = 0; i < c->n_args; i++) {
        free(c->args[i]);
    }
    for (size_t i = 0; i < c->n_variables; i++) {
        free(c->variables[i]);
    }
    free(c->environment);
    free(c->text);
}

// ---- starting ----

/* In the child, between fork and exec: only calls that are safe there. Never returns. */
_Noreturn static void become(const struct command *c, pid_t parent, int error_fd)
{
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
    const int null_fd = open("/dev/null", O_RDWR);
    const bool orphan = getppid() != parent; // it died before the prctl
    if (!orphan && null_fd >= 0 && dup2(null_fd, 0) >= 0 && dup2(2, 1) >= 0) {
        execvpe(c->args[0], c->args, c->environment);
    }
    const int error = errno;
    (void)!write(error_fd, &error, sizeof error);
    _exit(127);
}

static status_t exec_error(const struct supervisor_options *o, int error)
{
    if (error == ENOENT) {
        return status_errorf(STATUS_FAILED_PRECONDITION,
                             "%s: no such program" STATUS_FIX
                             "install Open MPI (apt-get install openmpi-bin) or name it with "
                             "--mpirun",
                             o->mpirun);
    }
    return status_errorf(STATUS_FAILED_PRECONDITION, "%s: %s", o->mpirun, strerror(error));
}

static status_t spawn(const struct supervisor_options *o, const struct command *c, pid_t *pid_out)
{
    int fds[2];
    if (pipe2(fds, O_CLOEXEC) != 0) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "pipe: %s", strerror(errno));
    }
    const pid_t parent = getpid();
    const pid_t pid = fork();
    if (pid == 0) {
        become(c, parent, fds[1]);
    }
    close(fds[1]);
    if (pid < 0) {
        close(fds[0]);
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "fork: %s", strerror(errno));
    }
    // The pipe closes by itself when the exec worked; else the child says why not.
    int error = 0;
    ssize_t n;
    do {
        n = read(fds[0], &error, sizeof error);
    } while (n < 0 && errno == EINTR);
    close(fds[0]);
    if (n == (ssize_t)sizeof error) {
        (void)waitpid(pid, NULL, 0);
        return exec_error(o, error);
    }
    *pid_out = pid;
    return status_ok();
}

status_t supervisor_start(struct supervisor *s, int group, uint32_t generation)
{
    struct command command = {0};
    status_t status;
    TRY_GOTO(status, make_args(&s->options, group, generation, &command), done);
    TRY_GOTO(status, make_variables(&s->options, &command), done);
    TRY_GOTO(status, make_environment(&command), done);
    pid_t pid = 0;
    TRY_GOTO(status, spawn(&s->options, &command, &pid), done);
    s->children[group] = pid;
    log_write(&s->options.log, LOG_INFO, "group started", "group=%d generation=%u pid=%d", group,
              generation, (int)pid);
done:
    command_destroy(&command);
    return status;
}

bool supervisor_is_running(const struct supervisor *s, int group)
{
    return s->children[group] > 0;
}

void supervisor_signal(struct supervisor *s, int group, int signal)
{
    if (s->children[group] > 0) {
        // The child makes its process group itself, before it execs: until then only its pid is there.
        if (kill(-s->children[group], signal) != 0) {
            (void)kill(s->children[group], signal);
        }
    }
}

bool supervisor_reap(struct supervisor *s, int group, int *wait_status_out)
{
    if (s->children[group] <= 0) {
        return false;
    }
    int wait_status = 0;
    if (waitpid(s->children[group], &wait_status, WNOHANG) != s->children[group]) {
        return false;
    }
    s->children[group] = 0;
    *wait_status_out = wait_status;
    return true;
}

// ---- what an exit means ----

const char *supervisor_describe(int wait_status, char *buf, size_t buf_bytes)
{
    const int code = WIFEXITED(wait_status) ? WEXITSTATUS(wait_status) : -1;
    if (WIFSIGNALED(wait_status)) {
        snprintf(buf, buf_bytes, "mpirun was killed by signal %d", WTERMSIG(wait_status));
    } else if (code > 128 && code < 128 + NSIG) {
        snprintf(buf, buf_bytes, "a rank was killed by signal %d", code - 128);
    } else {
        snprintf(buf, buf_bytes, "mpirun exited with code %d", code);
    }
    return buf;
}

bool supervisor_is_permanent(int wait_status, int *code_out)
{
    switch (WIFEXITED(wait_status) ? WEXITSTATUS(wait_status) : -1) {
    case 64:
        *code_out = STATUS_INVALID_ARGUMENT;
        return true;
    case 65:
        *code_out = STATUS_DATA_LOSS;
        return true;
    case 77:
        *code_out = STATUS_PERMISSION_DENIED;
        return true;
    case 78:
        *code_out = STATUS_FAILED_PRECONDITION;
        return true;
    default:
        return false;
    }
}

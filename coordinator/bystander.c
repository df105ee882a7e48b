#include "coordinator/bystander.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/program.h"

#define MAX_REAP_MS 5000

status_t bystander_worker_path(char *buf, size_t buf_bytes)
{
    return program_path("kvasir-worker", buf, buf_bytes);
}

static bool is_job_variable(const char *entry)
{
    return strncmp(entry, "OMPI_", 5) == 0 || strncmp(entry, "PMIX_", 5) == 0 ||
           strncmp(entry, "PMI_", 4) == 0 || strncmp(entry, "ORTE_", 5) == 0;
}

/* The child took the place; whatever else we start must not. */
static void leave_job(void)
{
    size_t i = 0;
    while (environ[i] != NULL) {
        char name[128];
        const size_t size = strcspn(environ[i], "=");
        if (!is_job_variable(environ[i]) || size >= sizeof name) {
            i++;
            continue;
        }
        snprintf(name, sizeof name, "%.*s", (int)size, environ[i]);
        if (unsetenv(name) != 0) { // else the next entry is at i now
            i++;
        }
    }
}

static _Noreturn void become(const char *worker, const int fds[2], pid_t parent)
{
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() == parent && dup2(fds[0], 0) >= 0 && dup2(2, 1) >= 0) {
        close(fds[0]);
        close(fds[1]); // else the pipe never closes
        execl(worker, worker, "--bystander", (char *)NULL);
    }
    _exit(127);
}

status_t bystander_begin(const char *worker, struct bystander *out)
{
    *out = (struct bystander){.pipe_fd = -1};
    const char *size = getenv("OMPI_COMM_WORLD_SIZE");
    if (size == NULL || strtol(size, NULL, 10) <= 1) {
        return status_ok();
    }
    char beside[4096];
    if (worker == NULL) {
        TRY(bystander_worker_path(beside, sizeof beside));
        worker = beside;
    }
    if (access(worker, X_OK) != 0) {
        return status_errorf(STATUS_FAILED_PRECONDITION,
                             "%s: %s" STATUS_FIX "name it with --worker", worker, strerror(errno));
    }
    int fds[2];
    if (pipe2(fds, 0) != 0) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "pipe: %s", strerror(errno));
    }
    const pid_t parent = getpid();
    const pid_t pid = fork();
    if (pid == 0) {
        become(worker, fds, parent);
    }
    close(fds[0]);
    if (pid < 0) {
        close(fds[1]);
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "fork: %s", strerror(errno));
    }
    (void)fcntl(fds[1], F_SETFD, FD_CLOEXEC);
    leave_job();
    *out = (struct bystander){.pid = pid, .pipe_fd = fds[1]};
    return status_ok();
}

void bystander_end(struct bystander *b)
{
    if (b->pid <= 0) {
        return;
    }
    close(b->pipe_fd);
    for (int waited_ms = 0; waitpid(b->pid, NULL, WNOHANG) == 0; waited_ms += 20) {
        if (waited_ms >= MAX_REAP_MS) {
            (void)kill(b->pid, SIGKILL);
            (void)waitpid(b->pid, NULL, 0);
            break;
        }
        usleep(20000);
    }
    *b = (struct bystander){.pipe_fd = -1};
}

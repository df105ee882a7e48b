/*
 * main.c - kvasir-coordinator: takes requests, starts and watches worker groups
 *
 * Usually started by `kvasir serve`, which adds --launcher mpirun.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "base/version.h"
#include "coordinator/bystander.h"
#include "coordinator/config_table.h"
#include "coordinator/coordinator.h"
#include "coordinator/model.h"

/* `kvasir serve` becomes this program and says so in argv[0]. */
static void print_help(const char *program, const struct config_set *set)
{
    const char *slash = strrchr(program, '/');
    printf("usage: %s MODEL [options]\n\n", slash != NULL ? slash + 1 : program);
    printf(
        "Serves the model in the directory MODEL over gRPC. With --launcher mpirun it starts and\n"
        "restarts its worker groups; with --launcher none it waits for kvasir-worker to attach.\n"
        "Prints `ready: ADDRESS` when a request would be served. SIGTERM finishes what runs.\n\n");
    config_print_help(set, stdout);
    printf(
        "\nExit codes: 0 stopped, 64 usage, 65 bad model, 69 unavailable, 70 internal, 75 try again,\n"
        "77 permission, 78 configuration.\n");
}

static int report(const status_t *s)
{
    if (!status_is_ok(s)) {
        status_print(stderr, s);
    }
    return status_exit_code(s);
}

// ---- events of the coordinator, as bytes in a pipe: main waits for them and for signals ----

enum event { EVENT_READY = 'r', EVENT_STOPPED = 's', EVENT_SIGNAL = '!' };

static void tell(void *user, char event)
{
    const int *fd = user;
    ssize_t n;
    do {
        n = write(*fd, &event, 1);
    } while (n < 0 && errno == EINTR);
}

static void on_ready(void *user)
{
    tell(user, EVENT_READY);
}

static void on_stopped(void *user)
{
    tell(user, EVENT_STOPPED);
}

/* Every thread inherits the mask, so that signals come to the descriptor alone. */
static status_t catch_signals(int *fd_out)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    signal(SIGPIPE, SIG_IGN);
    if (pthread_sigmask(SIG_BLOCK, &set, NULL) != 0) {
        return status_errorf(STATUS_INTERNAL, "cannot block signals");
    }
    const int fd = signalfd(-1, &set, SFD_CLOEXEC);
    if (fd < 0) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "signalfd: %s", strerror(errno));
    }
    *fd_out = fd;
    return status_ok();
}

/* Waits for the next event; a signal is one too. */
static char next_event(int event_fd, int signal_fd)
{
    struct pollfd fds[2] = {{.fd = event_fd, .events = POLLIN},
                            {.fd = signal_fd, .events = POLLIN}};
    for (;;) {
        if (poll(fds, 2, -1) < 0) {
            continue; // EINTR: of a signal that is not ours
        }
        char event;
        if ((fds[0].revents & POLLIN) != 0 && read(event_fd, &event, 1) == 1) {
            return event;
        }
        struct signalfd_siginfo info;
        if ((fds[1].revents & POLLIN) != 0 && read(signal_fd, &info, sizeof info) == sizeof info) {
            return EVENT_SIGNAL;
        }
    }
}

static void say(const char *what, const char *text)
{
    printf("%s: %s\n", what, text);
    fflush(stdout);
}

/* Until the coordinator has stopped: the first signal drains, the second stops. */
static void serve(struct coordinator *c, int event_fd, int signal_fd)
{
    int n_signals = 0;
    for (;;) {
        switch (next_event(event_fd, signal_fd)) {
        case EVENT_READY:
            say("ready", coordinator_address(c));
            break;
        case EVENT_SIGNAL:
            if (n_signals++ == 0) {
                coordinator_drain(c);
            } else {
                coordinator_stop(c);
            }
            break;
        default:
            return;
        }
    }
}

static status_t run_model(const struct coordinator_config *config, const struct model *model,
                          log_t log, int signal_fd)
{
    int fds[2];
    if (pipe2(fds, O_CLOEXEC) != 0) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "pipe: %s", strerror(errno));
    }
    const struct coordinator_options options = {.config = config,
                                                .model = model,
                                                .log = log,
                                                .on_ready = on_ready,
                                                .on_stopped = on_stopped,
                                                .user = &fds[1]};
    struct coordinator *c = NULL;
    status_t s = coordinator_new(&options, &c);
    if (status_is_ok(&s)) {
        if (config->launcher == CONFIG_TABLE_LAUNCHER_NONE) {
            say("listening", coordinator_address(c));
        }
        if (coordinator_http_address(c) != NULL) {
            say("http", coordinator_http_address(c));
        }
        serve(c, fds[0], signal_fd);
        s = coordinator_result(c);
        coordinator_free(c);
    }
    close(fds[0]);
    close(fds[1]);
    return s;
}

static status_t run(struct config_set *set, struct coordinator_config *config)
{
    struct bystander bystander;
    int signal_fd = -1;
    TRY(config_table_check(set, config));
    // Other ranks of an MPI job wait for this process: before anything that takes time.
    TRY(bystander_begin(config->worker, &bystander));
    const log_t log = {.fd = 2, .level = config->log_level, .rank = -1, .module = "coordinator"};
    struct model model;
    status_t s;
    TRY_GOTO(s, catch_signals(&signal_fd), undo_bystander);
    config_log(set, &log);
    TRY_GOTO(s, model_load(config, &model), undo_signals);
    s = run_model(config, &model, log, signal_fd);
    model_destroy(&model);
undo_signals:
    close(signal_fd);
undo_bystander:
    bystander_end(&bystander);
    return s;
}

int main(int argc, char **argv)
{
    struct coordinator_config config = {0};
    struct config_set set;
    size_t n_rows;
    const struct config_row *rows = config_table_rows(&n_rows);
    status_t s = config_load(&set, rows, n_rows, &config, argc, argv);
    if (!status_is_ok(&s)) {
        return report(&s);
    }
    if (set.help_wanted) {
        print_help(argv[0], &set);
    } else if (set.version_wanted) {
        printf("kvasir-coordinator %s\n", version_string());
    } else {
        s = run(&set, &config);
    }
    config_destroy(&set);
    return report(&s);
}

#include "ops/plan_rates.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ops/cli.h"

enum { MAX_RATES_BYTES = 1 << 20, MAX_ARGS = 24 };

struct arguments {
    const char *list[MAX_ARGS];
    int n;
};

static void add(struct arguments *args, const char *arg)
{
    if (args->n + 1 < MAX_ARGS) {
        args->list[args->n++] = arg;
    }
}

static const char *choice_at(const char *choices, int index, char *buf, size_t size)
{
    for (; index > 0; index--) {
        choices = strchr(choices, '|') + 1;
    }
    snprintf(buf, size, "%.*s", (int)strcspn(choices, "|"), choices);
    return buf;
}

// ---- measuring ----

static status_t run(const struct arguments *args, struct bytes *out)
{
    int fds[2];
    if (pipe2(fds, O_CLOEXEC) != 0) {
        return status_errorf(STATUS_UNAVAILABLE, "cannot make a pipe: %s", strerror(errno));
    }
    const pid_t pid = fork();
    if (pid == 0) {
        cli_allow_mpirun();
        dup2(fds[1], STDOUT_FILENO);
        execvp(args->list[0], (char *const *)args->list); // execvp changes nothing: its type is old
        _exit(69);
    }
    close(fds[1]);
    status_t s = pid > 0 ? status_ok()
                         : status_errorf(STATUS_UNAVAILABLE, "cannot start %s: %s", args->list[0],
                                         strerror(errno));
    char chunk[4096];
    ssize_t n = 1;
    while (n > 0 && status_is_ok(&s)) {
        n = read(fds[0], chunk, sizeof chunk);
        if (n > 0) {
            s = bytes_append(out, chunk, (size_t)n);
        } else if (n < 0 && errno == EINTR) {
            n = 1;
        }
    }
    close(fds[0]);
    int wait_status = 0;
    while (pid > 0 && waitpid(pid, &wait_status, 0) < 0 && errno == EINTR) {
    }
    if (status_is_ok(&s) && (!WIFEXITED(wait_status) || WEXITSTATUS(wait_status) != 0)) {
        return status_errorf(STATUS_UNAVAILABLE,
                             "%s did not measure: see above" STATUS_FIX
                             "run it alone: kvasir-worker --measure MODEL",
                             args->list[0]);
    }
    return s;
}

static status_t measure(const struct plan_rates_options *options, const struct plan_options *plan,
                        const char *model, struct bytes *out)
{
    char worker[4096], ranks[16], device[16], dtype[16], kv_dtype[16];
    struct arguments args = {.n = 0};
    TRY(cli_sibling("kvasir-worker", worker, sizeof worker));
    snprintf(ranks, sizeof ranks, "%d", (int)plan->tp);
    if (plan->tp > 1) {
        static const char *const head[] = {"mpirun",  "--bind-to",       "none",
                                           "--quiet", "--oversubscribe", "-n"};
        for (size_t i = 0; i < sizeof head / sizeof head[0]; i++) {
            add(&args, head[i]);
        }
        add(&args, ranks);
    }
    add(&args, worker);
    add(&args, "--measure");
    add(&args, model);
    add(&args, "--device");
    add(&args, choice_at(PLAN_RATES_DEVICES, options->device, device, sizeof device));
    add(&args, "--dtype");
    add(&args, choice_at(DTYPE_CHOICES, plan->dtype, dtype, sizeof dtype));
    add(&args, "--kv-cache-dtype");
    add(&args, choice_at(KV_DTYPE_CHOICES, plan->kv_dtype, kv_dtype, sizeof kv_dtype));
    return run(&args, out);
}

// ---- all ----

bool plan_rates_wanted(const struct plan_rates_options *options)
{
    return options->gpu > 0 || options->measure || options->file != NULL;
}

static status_t check(const struct plan_rates_options *options)
{
    if (options->gpu > 0 && (options->measure || options->file != NULL)) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "--gpu and --measure or --rates: rates come from one place" STATUS_FIX
                             "leave out --gpu");
    }
    return status_ok();
}

status_t plan_rates_get(const struct plan_rates_options *options, const struct plan_options *plan,
                        const char *model, struct cost_rates *rates_out)
{
    struct bytes text;
    TRY(check(options));
    if (options->gpu > 0) {
        cost_rates_of_gpu(options->gpu - 1, options->all_reduce, rates_out);
        return status_ok();
    }
    bytes_init(&text, MAX_RATES_BYTES);
    status_t s = options->measure ? measure(options, plan, model, &text)
                                  : cli_read_text(options->file, &text);
    if (status_is_ok(&s)) {
        s = cost_rates_parse((const char *)text.data, text.size, rates_out);
    }
    if (status_is_ok(&s) && options->measure && options->file != NULL) {
        s = cli_write_file(options->file, &text);
    }
    bytes_destroy(&text);
    return s;
}

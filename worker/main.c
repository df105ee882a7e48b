/*
 * main.c - kvasir-worker: one rank of a worker group
 *
 * Started by mpirun or srun, usually by `kvasir serve`. Rank 0 leads, the others follow.
 */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "base/version.h"
#include "parallel/group.h"
#include "worker/bench.h"
#include "worker/device.h"
#include "worker/follower.h"
#include "worker/leader.h"
#include "worker/measure.h"
#include "worker/rank_cores.h"
#include "worker/worker_config.h"

static void print_help(const struct config_set *set)
{
    printf(
        "usage: mpirun -n N kvasir-worker [options]\n\n"
        "One rank of a worker group. Rank 0 dials the coordinator, which says which model to serve\n"
        "and how it is laid out over the N ranks. `kvasir-worker --bench PART --help`: measures, without\n"
        "a coordinator.\n\n");
    config_print_help(set, stdout);
    printf(
        "\nExit codes: 0 stopped, 64 usage, 65 bad model, 69 coordinator unavailable, 70 internal,\n"
        "75 try again, 78 configuration.\n");
}

/* Every thread inherits the mask: signals go to the one that waits for them. */
static void block_signals(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGUSR2);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
}

static int report(const status_t *s)
{
    if (s->code != STATUS_OK) {
        status_print(stderr, s);
    }
    return status_exit_code(s);
}

static status_t measure_model(struct group *group, const struct worker_config *config,
                              const struct device_choice *device, struct cost_rates *rates_out)
{
    struct model_spec spec = {0};
    struct plan plan = {0};
    const struct plan_request request = {.tp = group_size(group), .pp = 1, .placement = PLAN_SHARE};
    status_t s;
    TRY_GOTO(s, group_agree(group, spec_load(config->measure, &spec)), done);
    TRY_GOTO(s, group_agree(group, plan_make(&spec, &request, &plan)), done);
    const int dtype = dtype_resolve(config->measure_dtype, spec.dtype);
    struct host_cores cores;
    rank_cores_choose(group, (int32_t)config->threads, config->pin_threads, &cores);
    const struct measure_options options = {
        .backend = device->backend,
        .device = device->index,
        .dtype = dtype,
        .kv_dtype = dtype_resolve(config->measure_kv_dtype, dtype),
        .cores = &cores,
    };
    s = measure_run(group, &spec, &plan, &options, rates_out);
done:
    plan_destroy(&plan);
    spec_destroy(&spec);
    return s;
}

static status_t print_rates(const struct cost_rates *rates)
{
    struct bytes text;
    bytes_init(&text, 1 << 20);
    const status_t s = cost_rates_print(rates, &text);
    if (status_is_ok(&s)) {
        fwrite(text.data, 1, text.size, stdout);
        fputs("\n", stdout);
    }
    bytes_destroy(&text);
    return s;
}

/* Rank 0 prints; a failure is every rank's, and rank 0's to say. */
static int run_measure(const struct worker_config *config, log_t log)
{
    struct group *group = NULL;
    struct cost_rates rates;
    struct device_choice device;
    status_t s = group_open("worker", &group);
    if (s.code != STATUS_OK) {
        return report(&s);
    }
    log.rank = group_rank(group);
    s = device_choose(group, config->device, log, &device);
    if (s.code == STATUS_OK) {
        s = measure_model(group, config, &device, &rates);
    }
    const bool leads = group_rank(group) == 0;
    group_close(group);
    if (s.code == STATUS_OK && leads) {
        s = print_rates(&rates);
    }
    return leads ? report(&s) : 0;
}

static int run(const struct worker_config *config, log_t log)
{
    struct group *group = NULL;
    block_signals();
    status_t s = group_open("worker", &group);
    if (s.code != STATUS_OK) {
        return report(&s);
    }
    log.rank = group_rank(group);
    struct device_choice device;
    const status_t device_status = device_choose(group, config->device, log, &device);
    const struct member_options options = {
        .config = config, .device = &device, .device_status = &device_status, .log = log};
    struct leader_exit leader_exit = {0};
    if (log.rank == 0) {
        s = leader_run(group, &options, &leader_exit);
    } else {
        s = follower_run(group, &options, &leader_exit.broken);
    }
    const int code = status_exit_code(&s);
    // What the group agreed on is the leader's to say; what the coordinator was told is the coordinator's.
    const bool supervised = config->group >= 0 && leader_exit.told;
    if (s.code != STATUS_OK && !supervised && (log.rank == 0 || leader_exit.broken)) {
        (void)report(&s);
    }
    if (leader_exit.broken) {
        group_abort(group, code != 0 ? code : 70);
    }
    group_close(group);
    return log.rank == 0 ? code : 0;
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "--bench") == 0) {
        return bench_main(argc - 1, argv + 1, NULL);
    }
    struct worker_config config;
    struct config_set set;
    status_t s = config_load(&set, worker_config_rows, worker_config_n_rows, &config, argc, argv);
    if (s.code != STATUS_OK) {
        return report(&s);
    }
    log_t log = {.fd = 2, .level = LOG_WARN, .rank = -1, .module = "worker"};
    int code = 0;
    if (set.help_wanted) {
        print_help(&set);
    } else if (set.version_wanted) {
        printf("kvasir-worker %s\n", version_string());
    } else if (set.n_positional > 0) {
        s = status_errorf(STATUS_INVALID_ARGUMENT,
                          "unexpected argument '%s'" STATUS_FIX "see kvasir-worker --help",
                          set.positional[0]);
        code = report(&s);
    } else {
        s = log_level_parse(config.log_level, &log.level);
        if (s.code != STATUS_OK) {
            code = report(&s);
        } else if (config.bystander) {
            s = group_bystander_run();
            code = report(&s);
        } else if (config.measure != NULL) {
            code = run_measure(&config, log);
        } else {
            code = run(&config, log);
        }
    }
    config_destroy(&set);
    return code;
}

#include <assert.h>
#include <errno.h>
#include <grpc/support/log.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "proto/rpc/rpc_internal.h"

// ---- the library ----

/*
 * The library's log function has no argument of its own, so where its lines go is the one piece of state that
 * cannot hang off a host. The host that came last gives the log; with the last host it goes.
 */
static struct {
    pthread_mutex_t mutex;
    unsigned n_hosts;
    log_t log;
} library = {.mutex = PTHREAD_MUTEX_INITIALIZER, .log = {.fd = -1}};

static void library_log(gpr_log_func_args *args)
{
    pthread_mutex_lock(&library.mutex);
    const log_t log = library.log;
    pthread_mutex_unlock(&library.mutex);

    // Its errors are mostly a peer's doing: a port scan, a client that went away.
    const int level = args->severity == GPR_LOG_SEVERITY_ERROR  ? LOG_WARN
                      : args->severity == GPR_LOG_SEVERITY_INFO ? LOG_DEBUG
                                                                : LOG_TRACE;
    const char *file = strrchr(args->file, '/');
    char quoted[512];
    log_write(&log, level, "grpc", "file=%s line=%d text=%s", file != NULL ? file + 1 : args->file,
              args->line, log_quote(args->message, quoted, sizeof quoted));
}

static void library_acquire(const log_t *log)
{
    pthread_mutex_lock(&library.mutex);
    library.n_hosts++;
    library.log = *log;
    pthread_mutex_unlock(&library.mutex);
    gpr_set_log_function(library_log);
    grpc_init();
}

static void library_release(void)
{
    grpc_shutdown();
    pthread_mutex_lock(&library.mutex);
    library.n_hosts--;
    if (library.n_hosts == 0) {
        library.log.fd = -1;
    }
    pthread_mutex_unlock(&library.mutex);
}

// ---- pollers ----

static void *poll_queue(void *arg)
{
    struct rpc_host *host = arg;
    for (;;) {
        const grpc_event event =
            grpc_completion_queue_next(host->cq, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
        if (event.type == GRPC_QUEUE_SHUTDOWN) {
            return NULL;
        }
        if (event.type == GRPC_OP_COMPLETE) {
            rpc_op_complete(event.tag, event.success != 0);
        }
    }
}

static status_t start_pollers(struct rpc_host *host, int n_pollers)
{
    for (int i = 0; i < n_pollers; i++) {
        const int error = pthread_create(&host->pollers[i], NULL, poll_queue, host);
        if (error != 0) {
            return status_errorf(STATUS_RESOURCE_EXHAUSTED, "start poller thread: %s",
                                 strerror(error));
        }
        pthread_setname_np(host->pollers[i], "rpc-poller");
        host->n_pollers++;
    }
    return status_ok();
}

status_t rpc_host_init(struct rpc_host *host, const log_t *log, int n_pollers)
{
    assert(n_pollers > 0 && n_pollers <= RPC_MAX_POLLERS);
    host->log = *log;
    if (log->module == NULL) {
        host->log.fd = -1;
    }
    pthread_mutex_init(&host->mutex, NULL);
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&host->changed, &attributes);
    pthread_condattr_destroy(&attributes);

    // Signals are main's business: neither our threads nor the library's may take one.
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    library_acquire(&host->log);
    host->cq = grpc_completion_queue_create_for_next(NULL);
    const status_t s = start_pollers(host, n_pollers);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (!status_is_ok(&s)) {
        rpc_host_destroy(host);
    }
    return s;
}

void rpc_host_destroy(struct rpc_host *host)
{
    assert(host->n_calls == 0);
    grpc_completion_queue_shutdown(host->cq);
    for (int i = 0; i < host->n_pollers; i++) {
        pthread_join(host->pollers[i], NULL);
    }
    if (host->n_pollers == 0) {
        (void)poll_queue(host);
    }
    grpc_completion_queue_destroy(host->cq);
    library_release();
    pthread_cond_destroy(&host->changed);
    pthread_mutex_destroy(&host->mutex);
}

// ---- live calls ----

void rpc_host_add_call(struct rpc_host *host, struct rpc_call *call, bool is_app)
{
    pthread_mutex_lock(&host->mutex);
    call->is_app = is_app;
    call->next = host->calls;
    if (host->calls != NULL) {
        host->calls->prev = call;
    }
    host->calls = call;
    host->n_calls++;
    host->n_app_calls += is_app;
    pthread_mutex_unlock(&host->mutex);
}

void rpc_host_remove_call(struct rpc_host *host, struct rpc_call *call)
{
    pthread_mutex_lock(&host->mutex);
    if (call->prev != NULL) {
        call->prev->next = call->next;
    } else {
        host->calls = call->next;
    }
    if (call->next != NULL) {
        call->next->prev = call->prev;
    }
    call->prev = NULL;
    call->next = NULL;
    host->n_calls--;
    host->n_app_calls -= call->is_app;
    // Under the mutex: the waiter may free the host as soon as it has it.
    pthread_cond_broadcast(&host->changed);
    pthread_mutex_unlock(&host->mutex);
}

void rpc_host_cancel_calls(struct rpc_host *host)
{
    pthread_mutex_lock(&host->mutex);
    for (struct rpc_call *call = host->calls; call != NULL; call = call->next) {
        rpc_cancel(call);
    }
    pthread_mutex_unlock(&host->mutex);
}

void rpc_host_end_calls(struct rpc_host *host, const status_t *status)
{
    pthread_mutex_lock(&host->mutex);
    for (struct rpc_call *call = host->calls; call != NULL; call = call->next) {
        if (call->is_app) {
            rpc_cancel(call);
        } else {
            rpc_finish(call, status, NULL, 0);
        }
    }
    pthread_mutex_unlock(&host->mutex);
}

bool rpc_host_wait_zero(struct rpc_host *host, const size_t *count, uint64_t deadline_ns)
{
    const struct timespec until = {
        .tv_sec = (time_t)(deadline_ns / NS_PER_S),
        .tv_nsec = (long)(deadline_ns % NS_PER_S),
    };
    int error = 0;
    pthread_mutex_lock(&host->mutex);
    while (*count > 0 && error != ETIMEDOUT) {
        if (deadline_ns == UINT64_MAX) {
            pthread_cond_wait(&host->changed, &host->mutex);
        } else {
            error = pthread_cond_timedwait(&host->changed, &host->mutex, &until);
        }
    }
    const bool zero = *count == 0;
    pthread_mutex_unlock(&host->mutex);
    return zero;
}

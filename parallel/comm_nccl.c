/*
 * Communicators are non-blocking: a call that has to wait for other ranks says "in progress" and is asked again, so that nothing
 * here waits without a deadline. What the device waits for is the watchdog's.
 *
 * One lock guards the communicator: comm_nccl_end frees it, maybe while the owner is about to make a call. The owner never
 * holds it while it waits.
 */
#include "parallel/comm_nccl.h"

#include <assert.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "parallel/comm_nccl_library.h"

/* Bytes of other ranks' numbers at once; a longer sum goes in pieces of what fits. */
#define SCRATCH_BYTES ((int64_t)16 << 20)

/* Bytes that a rank receives in one exchange; above this two exchanges of fewer bytes are faster. (fitted to 12 us an exchange
 * and 300 GB/s) */
#define GATHER_BYTES ((int64_t)2 << 20)

/* How long the end of the process waits for the other ranks' ends. */
#define CLOSE_S 5.0

struct comm_nccl {
    struct comm base;
    struct comm_nccl_parts parts;
    struct comm_nccl_library library;
    void *scratch;   /* device, SCRATCH_BYTES */
    uint32_t *count; /* device: marks made */

    pthread_mutex_t lock; /* of the communicator */
    ncclComm_t nccl;      /* NULL: not made, or ended */
    bool ended;
};

static struct comm_nccl *self_of(struct comm *comm)
{
    return (struct comm_nccl *)comm;
}

// ---- calls ----

static status_t failed(const struct comm_nccl *c, const char *what, const char *why)
{
    char label[96];
    comm_label_text(comm_label_now(&c->base), label, sizeof label);
    return status_errorf(STATUS_UNAVAILABLE, "rank %d: %s: NCCL %s: %s", c->base.rank, label, what,
                         why);
}

static double seconds_since(uint64_t start_ns)
{
    return (double)(clock_now_ns(clock_system()) - start_ns) / NS_PER_S;
}

static void pause_briefly(uint32_t us)
{
    const struct timespec pause = {.tv_nsec = (long)us * 1000};
    (void)nanosleep(&pause, NULL);
}

/* The communicator, for calls until unlock; UNAVAILABLE where it was ended. */
static status_t lock(struct comm_nccl *c, const char *what)
{
    pthread_mutex_lock(&c->lock);
    if (c->ended) {
        pthread_mutex_unlock(&c->lock);
        return failed(c, what, "the communicator was ended");
    }
    return status_ok();
}

static void unlock(struct comm_nccl *c)
{
    pthread_mutex_unlock(&c->lock);
}

/* What a call said, put into words while the lock is held. */
static status_t said(const struct comm_nccl *c, ncclResult_t result, const char *what)
{
    if (result == ncclSuccess || result == ncclInProgress) {
        return status_ok();
    }
    const char *const more = c->library.get_last_error(c->nccl);
    char text[160];
    (void)snprintf(text, sizeof text, "%s (%.110s)", c->library.get_error_string(result),
                   more != NULL && more[0] != '\0' ? more : "no details");
    return failed(c, what, text);
}

/* Until the last call is no longer in progress. */
static status_t settle(struct comm_nccl *c, const char *what)
{
    const uint64_t start = clock_now_ns(clock_system());
    for (uint32_t n = 0;; n++) {
        ncclResult_t result = ncclInProgress;
        TRY(lock(c, what));
        status_t s = said(c, c->library.comm_get_async_error(c->nccl, &result), what);
        if (status_is_ok(&s)) {
            s = said(c, result, what);
        }
        unlock(c);
        if (!status_is_ok(&s) || result == ncclSuccess) {
            return s;
        }
        if (seconds_since(start) > c->parts.timeout_s) {
            comm_nccl_end(&c->base);
            char why[64];
            (void)snprintf(why, sizeof why, "no end within %.1f s", c->parts.timeout_s);
            return failed(c, what, why);
        }
        pause_briefly(n < 100 ? 10 : 500);
    }
}

/* Calls between begin and end are made together. */
static status_t begin(struct comm_nccl *c, const char *what)
{
    TRY(lock(c, what));
    const status_t s = said(c, c->library.group_start(), what);
    if (!status_is_ok(&s)) {
        unlock(c);
    }
    return s;
}

static status_t end(struct comm_nccl *c, status_t calls, const char *what)
{
    const status_t s = said(c, c->library.group_end(), what);
    unlock(c);
    TRY(calls);
    TRY(s);
    return settle(c, what);
}

// ---- exchanges ----

static struct CUstream_st *stream_of(const struct comm_nccl *c)
{
    return c->parts.backend->cuda_stream(c->parts.stream);
}

static status_t send_bytes(const struct comm_nccl *c, const void *from, int64_t n, int32_t to,
                           const char *what)
{
    return n == 0 ? status_ok()
                  : said(c, c->library.send(from, (size_t)n, ncclInt8, to, c->nccl, stream_of(c)),
                         what);
}

static status_t recv_bytes(const struct comm_nccl *c, void *to, int64_t n, int32_t from,
                           const char *what)
{
    return n == 0 ? status_ok()
                  : said(c, c->library.recv(to, (size_t)n, ncclInt8, from, c->nccl, stream_of(c)),
                         what);
}

/* What each rank sends to and receives from each other, in bytes from two addresses. */
struct exchange {
    const char *from;
    char *to;
    const int64_t *send_counts, *send_displs, *recv_counts, *recv_displs;
};

static status_t exchange_with(const struct comm_nccl *c, const struct exchange *x, int32_t rank,
                              const char *what)
{
    TRY(send_bytes(c, x->from + x->send_displs[rank], x->send_counts[rank], rank, what));
    return recv_bytes(c, x->to + x->recv_displs[rank], x->recv_counts[rank], rank, what);
}

static status_t exchange(struct comm_nccl *c, const struct exchange *x, const char *what)
{
    TRY(begin(c, what));
    status_t s = status_ok();
    for (int32_t r = 0; r < c->base.size && status_is_ok(&s); r++) {
        s = exchange_with(c, x, r, what);
    }
    return end(c, s, what);
}

// ---- all_reduce ----

/* n numbers of every rank lie one after the other in scratch. Also says on the device that the collective is done. */
static status_t sum_scratch(struct comm_nccl *c, void *out, int64_t n, int dtype)
{
    const struct ordered_sum_args args = {
        .parts = c->scratch,
        .stride = n,
        .n = n,
        .n_parts = c->base.size,
        .dtype = dtype,
        .out = out,
        .mark = &c->parts.words->mark,
        .count = c->count,
        .label = comm_label_now(&c->base) | COMM_NCCL_DONE,
    };
    return c->parts.backend->ordered_sum(c->parts.stream, &args);
}

/* Says on the device that the collective is done. */
static status_t mark(struct comm_nccl *c)
{
    return sum_scratch(c, NULL, 0, DTYPE_F32);
}

static status_t reduce_by_gather(struct comm_nccl *c, char *buf, int64_t n, int dtype)
{
    const size_t n_bytes = (size_t)n * dtype_bytes(dtype);
    TRY(begin(c, "all_reduce"));
    const ncclResult_t result =
        c->library.all_gather(buf, c->scratch, n_bytes, ncclInt8, c->nccl, stream_of(c));
    TRY(end(c, said(c, result, "all_reduce"), "all_reduce"));
    return sum_scratch(c, buf, n, dtype);
}

/* Where rank r's piece of n elements begins. */
static int64_t piece_begin(const struct comm_nccl *c, int64_t n, int32_t r)
{
    return n * r / c->base.size;
}

static status_t scatter_pieces(struct comm_nccl *c, const char *buf, int64_t n, int64_t element)
{
    const int32_t me = c->base.rank;
    const int64_t mine = (piece_begin(c, n, me + 1) - piece_begin(c, n, me)) * element;
    TRY(begin(c, "all_reduce"));
    status_t s = status_ok();
    for (int32_t r = 0; r < c->base.size && status_is_ok(&s); r++) {
        const int64_t at = piece_begin(c, n, r);
        const int64_t n_bytes = (piece_begin(c, n, r + 1) - at) * element;
        s = send_bytes(c, buf + at * element, n_bytes, r, "all_reduce");
        if (status_is_ok(&s)) {
            s = recv_bytes(c, (char *)c->scratch + r * mine, mine, r, "all_reduce");
        }
    }
    return end(c, s, "all_reduce");
}

static status_t gather_pieces(struct comm_nccl *c, char *buf, int64_t n, int64_t element)
{
    const int32_t me = c->base.rank;
    const int64_t begin_me = piece_begin(c, n, me) * element;
    const int64_t mine = piece_begin(c, n, me + 1) * element - begin_me;
    TRY(begin(c, "all_reduce"));
    status_t s = status_ok();
    for (int32_t r = 0; r < c->base.size && status_is_ok(&s); r++) {
        const int64_t at = piece_begin(c, n, r) * element;
        if (r != me) {
            s = send_bytes(c, buf + begin_me, mine, r, "all_reduce");
        }
        if (r != me && status_is_ok(&s)) {
            s = recv_bytes(c, buf + at, piece_begin(c, n, r + 1) * element - at, r, "all_reduce");
        }
    }
    return end(c, s, "all_reduce");
}

static status_t reduce_by_pieces(struct comm_nccl *c, char *buf, int64_t n, int dtype)
{
    const int64_t element = (int64_t)dtype_bytes(dtype);
    const int64_t begin_me = piece_begin(c, n, c->base.rank);
    const int64_t mine = piece_begin(c, n, c->base.rank + 1) - begin_me;
    TRY(scatter_pieces(c, buf, n, element));
    TRY(sum_scratch(c, buf + begin_me * element, mine, dtype));
    TRY(gather_pieces(c, buf, n, element));
    return mark(c);
}

static status_t reduce_fast(struct comm_nccl *c, void *buf, int64_t n, int dtype)
{
    const ncclDataType_t type = dtype == DTYPE_F32 ? ncclFloat32 : ncclBfloat16;
    TRY(begin(c, "all_reduce"));
    const ncclResult_t result =
        c->library.all_reduce(buf, buf, (size_t)n, type, ncclSum, c->nccl, stream_of(c));
    TRY(end(c, said(c, result, "all_reduce"), "all_reduce"));
    return mark(c);
}

static status_t reduce_ordered(struct comm_nccl *c, char *buf, int64_t n, int dtype)
{
    const int32_t size = c->base.size;
    const int64_t element = (int64_t)dtype_bytes(dtype);
    const bool gather = n * element * (size - 1) <= GATHER_BYTES;
    // Gathering needs size * n elements of scratch, pieces at most n + size.
    const int64_t room = SCRATCH_BYTES / element;
    const int64_t most = gather ? room / size : room - size;
    for (int64_t at = 0; at < n; at += most) {
        const int64_t now = n - at < most ? n - at : most;
        char *const piece = buf + at * element;
        TRY(gather ? reduce_by_gather(c, piece, now, dtype)
                   : reduce_by_pieces(c, piece, now, dtype));
    }
    return status_ok();
}

static status_t nccl_all_reduce(struct comm *comm, void *buf, int64_t n, int dtype)
{
    struct comm_nccl *c = self_of(comm);
    assert(n >= 0);
    if (dtype != DTYPE_F32 && dtype != DTYPE_BF16) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "all_reduce of %s: float32 or bfloat16",
                             dtype_name(dtype));
    }
    if (n == 0 || comm->size == 1) {
        return status_ok();
    }
    return c->parts.order == COMM_FAST ? reduce_fast(c, buf, n, dtype)
                                       : reduce_ordered(c, buf, n, dtype);
}

// ---- the others ----
// NOLINTBEGIN(readability-function-size): the parameters are those of comm.h.

static status_t check_counts(const struct comm *comm, const char *what, const int64_t *counts,
                             const int64_t *displs)
{
    for (int32_t r = 0; r < comm->size; r++) {
        if (counts[r] < 0 || displs[r] < 0) {
            return status_errorf(STATUS_INVALID_ARGUMENT, "%s: %lld bytes at %lld for rank %d",
                                 what, (long long)counts[r], (long long)displs[r], r);
        }
    }
    return status_ok();
}

static status_t nccl_gather_v(struct comm *comm, const void *send, int64_t n_send, void *recv,
                              const int64_t *counts, const int64_t *displs, int32_t root)
{
    struct comm_nccl *c = self_of(comm);
    if (n_send < 0) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "gather_v: %lld bytes", (long long)n_send);
    }
    if (comm->rank == root) {
        TRY(check_counts(comm, "gather_v", counts, displs));
    }
    TRY(begin(c, "gather_v"));
    status_t s = send_bytes(c, send, n_send, root, "gather_v");
    for (int32_t r = 0; comm->rank == root && r < comm->size && status_is_ok(&s); r++) {
        s = recv_bytes(c, (char *)recv + displs[r], counts[r], r, "gather_v");
    }
    TRY(end(c, s, "gather_v"));
    return mark(c);
}

static status_t nccl_all_to_all_v(struct comm *comm, const void *send, const int64_t *send_counts,
                                  const int64_t *send_displs, void *recv,
                                  const int64_t *recv_counts, const int64_t *recv_displs)
{
    struct comm_nccl *c = self_of(comm);
    const struct exchange x = {.from = send,
                               .to = recv,
                               .send_counts = send_counts,
                               .send_displs = send_displs,
                               .recv_counts = recv_counts,
                               .recv_displs = recv_displs};
    TRY(check_counts(comm, "all_to_all_v", send_counts, send_displs));
    TRY(check_counts(comm, "all_to_all_v", recv_counts, recv_displs));
    TRY(exchange(c, &x, "all_to_all_v"));
    return mark(c);
}

// NOLINTEND(readability-function-size)

static status_t nccl_broadcast_device(struct comm *comm, void *buf, int64_t n_bytes, int32_t root)
{
    struct comm_nccl *c = self_of(comm);
    if (n_bytes < 0 || root < 0 || root >= comm->size) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "broadcast_device: %lld bytes of rank %d",
                             (long long)n_bytes, root);
    }
    if (n_bytes == 0) {
        return status_ok();
    }
    TRY(begin(c, "broadcast_device"));
    const ncclResult_t result =
        c->library.broadcast(buf, buf, (size_t)n_bytes, ncclInt8, root, c->nccl, stream_of(c));
    TRY(end(c, said(c, result, "broadcast_device"), "broadcast_device"));
    return mark(c);
}

static status_t nccl_check(struct comm *comm)
{
    return comm_nccl_look(comm);
}

// ---- from the watchdog ----

status_t comm_nccl_look(struct comm *comm)
{
    struct comm_nccl *c = self_of(comm);
    ncclResult_t result = ncclSuccess;
    TRY(lock(c, "communicator"));
    status_t s = said(c, c->library.comm_get_async_error(c->nccl, &result), "communicator");
    if (status_is_ok(&s)) {
        s = said(c, result, "communicator");
    }
    unlock(c);
    return s;
}

void comm_nccl_end(struct comm *comm)
{
    struct comm_nccl *c = self_of(comm);
    // Where the owner is held up inside of a call the lock never comes; then that call is what has to be ended.
    struct timespec until;
    (void)clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 1;
    const bool locked = pthread_mutex_timedlock(&c->lock, &until) == 0;
    if (!c->ended) {
        c->ended = true;
        if (c->nccl != NULL) {
            (void)c->library.comm_abort(c->nccl); // there is nothing else left to do
        }
    }
    if (locked) {
        unlock(c);
    }
}

// ---- life ----

/* With the other ranks where they come in time, else alone. */
static void close_communicator(struct comm_nccl *c)
{
    if (c->nccl == NULL || c->ended) {
        return;
    }
    c->parts.timeout_s = CLOSE_S;
    status_t s = lock(c, "close");
    if (status_is_ok(&s)) {
        s = said(c, c->library.comm_finalize(c->nccl), "close");
        unlock(c);
    }
    if (status_is_ok(&s)) {
        s = settle(c, "close");
    }
    if (status_is_ok(&s)) {
        (void)c->library.comm_destroy(c->nccl);
    } else if (!c->ended) {
        (void)c->library.comm_abort(c->nccl);
    }
    c->nccl = NULL;
}

static void nccl_free(struct comm *comm)
{
    struct comm_nccl *c = self_of(comm);
    close_communicator(c);
    c->parts.backend->mem_free(c->parts.stream, c->scratch);
    c->parts.backend->mem_free(c->parts.stream, c->count);
    pthread_mutex_destroy(&c->lock);
    free(c);
}

/* Entries on device memory return at once, when the library has taken the work. */
static const struct comm_ops table = {
    .name = "nccl",
    .all_reduce = nccl_all_reduce,
    .gather_v = nccl_gather_v,
    .all_to_all_v = nccl_all_to_all_v,
    .broadcast_device = nccl_broadcast_device,
    .all_reduce_add_norm = comm_no_all_reduce_add_norm,
    .buffer = comm_no_buffer,
    .check = nccl_check,
    .broadcast = comm_host_broadcast,
    .barrier = comm_host_barrier,
    .send = comm_host_send,
    .recv = comm_host_recv,
    .free = nccl_free,
};

status_t comm_nccl_find(int *version_out)
{
    struct comm_nccl_library library;
    return comm_nccl_library_open(&library, version_out);
}

static status_t alloc(struct comm_nccl *c)
{
    const struct backend *backend = c->parts.backend;
    void *count = NULL;
    TRY(backend->mem_alloc(c->parts.stream, (size_t)SCRATCH_BYTES, &c->scratch));
    TRY(backend->mem_alloc(c->parts.stream, sizeof(uint32_t), &count));
    c->count = count;
    TRY(backend->zero(c->parts.stream, count, sizeof(uint32_t)));
    return backend->stream_sync(c->parts.stream);
}

/* What a rank can find out alone; rank 0 makes the name that the others come together under. */
static status_t prepare(struct comm_nccl *c, ncclUniqueId *id)
{
    int version = 0;
    if (c->parts.backend->cuda_stream == NULL) {
        return status_errorf(STATUS_UNIMPLEMENTED, "NCCL has no use for the device %s",
                             c->parts.backend->name);
    }
    TRY(comm_nccl_library_open(&c->library, &version));
    TRY(alloc(c));
    return c->base.rank == 0 ? said(c, c->library.get_unique_id(id), "unique id") : status_ok();
}

static status_t join(struct comm_nccl *c, const ncclUniqueId *id)
{
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    pthread_mutex_lock(&c->lock);
    const ncclResult_t result =
        c->library.comm_init_rank_config(&c->nccl, c->base.size, *id, c->base.rank, &config);
    const status_t s = said(c, result, "start of a communicator");
    unlock(c);
    TRY(s);
    return settle(c, "start of a communicator");
}

static status_t open_all(struct comm_nccl *c)
{
    struct comm *host = c->parts.host;
    ncclUniqueId id;
    memset(&id, 0, sizeof id);
    TRY(comm_agree(host, prepare(c, &id)));
    TRY(host->ops->broadcast(host, &id, sizeof id, 0));
    return comm_agree(host, join(c, &id));
}

status_t comm_nccl_new(const struct comm_nccl_parts *parts, struct comm **comm_out)
{
    struct comm_nccl *c = calloc(1, sizeof *c);
    const status_t room = c != NULL
                              ? status_ok()
                              : status_errorf(STATUS_RESOURCE_EXHAUSTED, "collectives: no memory");
    if (c == NULL) {
        return comm_agree(parts->host, room);
    }
    comm_init(&c->base, &table, parts->host);
    c->base.recordable = true;
    c->parts = *parts;
    pthread_mutex_init(&c->lock, NULL);
    status_t s = comm_agree(parts->host, room);
    if (status_is_ok(&s)) {
        s = open_all(c);
    }
    if (!status_is_ok(&s)) {
        nccl_free(&c->base);
        return s;
    }
    *comm_out = &c->base;
    return s;
}

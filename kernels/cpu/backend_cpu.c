/*
 * backend_cpu.c - the CPU's table, its streams and its memory
 */
#include "base/status.h"
#include "kernels/cpu/cpu.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

// ---- memory ----

enum { ALIGNMENT = 64, HUGE_PAGE = 2 << 20 };

/*
 * Large blocks ask for huge pages: weights are streamed through once a step, and pages of 4 KB would cost it a
 * third of the bandwidth in TLB misses.
 */
status_t cpu_mem_reserve(size_t size, void **ptr_out)
{
    const bool large = size >= HUGE_PAGE;
    void *ptr = NULL;
    if (posix_memalign(&ptr, large ? HUGE_PAGE : ALIGNMENT, size > 0 ? size : 1) != 0) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory: need %zu bytes", size);
    }
    if (large) {
        (void)madvise(ptr, size / HUGE_PAGE * HUGE_PAGE,
                      MADV_HUGEPAGE); // advice: all works without
    }
    *ptr_out = ptr;
    return status_ok();
}

/* A server that has its memory when it says that it is ready is not killed under load for want of it. */
status_t cpu_mem_alloc(size_t size, void **ptr_out)
{
    void *ptr;
    TRY(cpu_mem_reserve(size, &ptr));
    // To the last page, also behind the last huge one. Kernels before 5.14 know no such advice: the pages come with their first use.
    if (size >= HUGE_PAGE && madvise(ptr, size, MADV_POPULATE_WRITE) != 0 && errno == ENOMEM) {
        free(ptr);
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory: need %zu bytes", size);
    }
    *ptr_out = ptr;
    return status_ok();
}

void cpu_mem_free(void *ptr)
{
    free(ptr);
}

// ---- streams ----

static bool has_avx512(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

static bool has_avx512_vnni(void)
{
    return has_avx512() && __builtin_cpu_supports("avx512vnni");
}

static bool has_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

static bool always(void)
{
    return true;
}

/* Best first. */
struct isa_choice {
    const char *name;
    const struct cpu_isa *isa;
    const struct cpu_tile_kernel *tile_w8a8;
    bool (*present)(void);
};

static const struct isa_choice isas[] = {
    {.name = "avx512-vnni",
     .isa = &cpu_isa_avx512,
     .tile_w8a8 = cpu_isa_avx512_vnni_w8a8,
     .present = has_avx512_vnni},
    {.name = "avx512",
     .isa = &cpu_isa_avx512,
     .tile_w8a8 = cpu_isa_avx512.tile_w8a8,
     .present = has_avx512},
    {.name = "avx2",
     .isa = &cpu_isa_avx2,
     .tile_w8a8 = cpu_isa_avx2.tile_w8a8,
     .present = has_avx2},
    {.name = "portable",
     .isa = &cpu_isa_portable,
     .tile_w8a8 = cpu_isa_portable.tile_w8a8,
     .present = always},
};

static const struct isa_choice *find_isa(const char *name)
{
    for (size_t i = 0; i < sizeof isas / sizeof isas[0]; i++) {
        const bool wanted = strcmp(name, "auto") == 0 || strcmp(name, isas[i].name) == 0;
        if (wanted && isas[i].present()) {
            return &isas[i];
        }
    }
    return NULL;
}

static void stream_free(struct backend_stream *stream)
{
    if (stream != NULL) {
        cpu_team_free(stream->team);
        cpu_mem_free(stream->scratch);
        free(stream);
    }
}

static status_t open_stream(const struct stream_options *options, const char *isa,
                            struct backend_stream **stream_out)
{
    const int n_threads = options->n_threads;
    if (n_threads < 1 || n_threads > CPU_MAX_THREADS) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "threads %d, allowed 1 to %d", n_threads,
                             CPU_MAX_THREADS);
    }
    const struct isa_choice *found = find_isa(isa);
    if (found == NULL) {
        return status_errorf(STATUS_UNIMPLEMENTED, "this machine has no instruction set '%s'", isa);
    }
    struct backend_stream *stream = calloc(1, sizeof *stream);
    if (stream == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory for a stream");
    }
    stream->n_threads = n_threads;
    stream->isa = found->isa;
    stream->tile_w8a8 = found->tile_w8a8;
    void *scratch = NULL;
    status_t s = cpu_mem_reserve((size_t)n_threads * sizeof(struct cpu_scratch), &scratch);
    if (status_is_ok(&s)) {
        stream->scratch = scratch;
        s = cpu_team_new(n_threads, options->cores, &stream->team);
    }
    if (!status_is_ok(&s)) {
        stream_free(stream);
        return s;
    }
    *stream_out = stream;
    return status_ok();
}

static status_t stream_new(const struct stream_options *options, struct backend_stream **stream_out)
{
    return open_stream(options, "auto", stream_out);
}

status_t cpu_stream_new_isa(int n_threads, const char *isa, struct backend_stream **stream_out)
{
    const struct stream_options options = {.n_threads = n_threads};
    return open_stream(&options, isa, stream_out);
}

/* Ops here have finished when they return. */
static status_t stream_sync(struct backend_stream *stream)
{
    (void)stream;
    return status_ok();
}

/* Every op before a mark has finished when the mark is set: there is nothing to remember. */
static status_t mark_new(struct backend_stream *stream, struct backend_mark **mark_out)
{
    (void)stream;
    *mark_out = NULL;
    return status_ok();
}

static void mark_free(struct backend_mark *mark)
{
    (void)mark;
}

static status_t mark_set(struct backend_stream *stream, struct backend_mark *mark)
{
    (void)stream;
    (void)mark;
    return status_ok();
}

static bool mark_passed(const struct backend_mark *mark)
{
    (void)mark;
    return true;
}

static status_t mark_wait(struct backend_mark *mark)
{
    (void)mark;
    return status_ok();
}

static status_t mem_alloc(struct backend_stream *stream, size_t size, void **ptr_out)
{
    (void)stream;
    return cpu_mem_alloc(size, ptr_out);
}

static void mem_free(struct backend_stream *stream, void *ptr)
{
    (void)stream;
    cpu_mem_free(ptr);
}

/* Device memory is host memory: a copy, or nothing where it is in place already. */
static status_t copy(struct backend_stream *stream, void *to, const void *from, size_t size)
{
    (void)stream;
    if (to != from && size > 0) {
        memcpy(to, from, size);
    }
    return status_ok();
}

static status_t zero(struct backend_stream *stream, void *to, size_t size)
{
    (void)stream;
    if (size > 0) {
        memset(to, 0, size);
    }
    return status_ok();
}

static status_t matrix_new(struct backend_stream *stream, int format, int32_t n_out, int32_t n_in,
                           struct matrix **matrix_out)
{
    (void)stream;
    return cpu_matrix_new(format, n_out, n_in, matrix_out);
}

/* One device: this machine. */
static status_t devices(struct device_info *devices_out, int max_devices, int *n_out)
{
    if (max_devices > 0) {
        const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
        devices_out[0] = (struct device_info){
            .name = "CPU",
            .memory_bytes = (uint64_t)sysconf(_SC_PHYS_PAGES) * page,
            .free_bytes = (uint64_t)sysconf(_SC_AVPHYS_PAGES) * page,
            .n_processors = (int32_t)sysconf(_SC_NPROCESSORS_ONLN),
        };
    }
    *n_out = 1;
    return status_ok();
}

int64_t cpu_items_per_task(int64_t n_items, int64_t item_cost)
{
    const int64_t worth_a_wakeup = 8192;
    const int64_t per_task = worth_a_wakeup / (item_cost > 0 ? item_cost : 1);
    if (per_task < 1) {
        return 1;
    }
    return per_task < n_items || n_items < 1 ? per_task : n_items;
}

struct row_tasks {
    cpu_row_fn *fn;
    void *context;
    int64_t n_rows, rows_per_task;
};

static void run_rows(void *context, int64_t task, int thread)
{
    (void)thread;
    const struct row_tasks *t = context;
    const int64_t begin = task * t->rows_per_task;
    const int64_t left = t->n_rows - begin;
    const int64_t end = begin + (left < t->rows_per_task ? left : t->rows_per_task);
    for (int64_t row = begin; row < end; row++) {
        t->fn(t->context, row);
    }
}

void cpu_team_rows(const struct backend_stream *stream, int64_t n_rows, int64_t row_cost,
                   cpu_row_fn *fn, void *context)
{
    struct row_tasks tasks = {.fn = fn, .context = context, .n_rows = n_rows};
    tasks.rows_per_task = cpu_items_per_task(n_rows, row_cost);
    const int64_t n_tasks = (n_rows + tasks.rows_per_task - 1) / tasks.rows_per_task;
    cpu_team_run(stream->team, n_tasks, run_rows, &tasks);
}

// ---- the table ----

/* Every op blocks until it is done, allocates nothing, and reports only arguments it cannot take. */
static const struct backend table = {
    .name = "cpu",
    .activation = DTYPE_F32,
    .host_memory = true,
    .devices = devices,
    .stream_new = stream_new,
    .stream_free = stream_free,
    .stream_sync = stream_sync,
    .mark_new = mark_new,
    .mark_free = mark_free,
    .mark_set = mark_set,
    .mark_passed = mark_passed,
    .mark_wait = mark_wait,
    .mem_alloc = mem_alloc,
    .mem_free = mem_free,
    .host_alloc = mem_alloc,
    .host_free = mem_free,
    .upload = copy,
    .download = copy,
    .zero = zero,
    .copy_strips = cpu_copy_strips,
    .matrix_bytes = cpu_matrix_bytes,
    .matrix_new = matrix_new,
    .matrix_free = cpu_matrix_free,
    .matrix_write = cpu_matrix_write,
    .random = cpu_random,
    .attention_plan_new = cpu_attention_plan_new,
    .attention_plan_free = cpu_attention_plan_free,
    .attention_plan_set = cpu_attention_plan_set,
    .embedding = cpu_embedding,
    .matmul = cpu_matmul,
    .add_norm = cpu_add_norm,
    .rope_append = cpu_rope_append,
    .attention = cpu_attention,
    .attention_merge = cpu_attention_merge,
    .swiglu = cpu_swiglu,
    .ordered_sum = cpu_ordered_sum,
    .sample = cpu_sample,
};

const struct backend *backend_cpu(void)
{
    return &table;
}

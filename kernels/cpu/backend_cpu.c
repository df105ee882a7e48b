/*
 * backend_cpu.c - the CPU's table, its streams and its memory
 */
#include "base/status.h"
#include "kernels/cpu/cpu.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

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
    // Kernels before 5.14 know no such advice: the pages come with their first use.
    if (size >= HUGE_PAGE && madvise(ptr, size / HUGE_PAGE * HUGE_PAGE, MADV_POPULATE_WRITE) != 0 &&
        errno == ENOMEM) {
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

static bool has_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

static bool always(void)
{
    return true;
}

/* Best first. */
static const struct {
    const struct cpu_isa *isa;
    bool (*present)(void);
} isas[] = {
    {.isa = &cpu_isa_avx512, .present = has_avx512},
    {.isa = &cpu_isa_avx2, .present = has_avx2},
    {.isa = &cpu_isa_portable, .present = always},
};

static const struct cpu_isa *find_isa(const char *name)
{
    for (size_t i = 0; i < sizeof isas / sizeof isas[0]; i++) {
        const bool wanted = strcmp(name, "auto") == 0 || strcmp(name, isas[i].isa->name) == 0;
        if (wanted && isas[i].present()) {
            return isas[i].isa;
        }
    }
    return NULL;
}

status_t cpu_stream_new_isa(int n_threads, const char *isa, struct backend_stream **stream_out)
{
    if (n_threads < 1 || n_threads > CPU_MAX_THREADS) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "threads %d, allowed 1 to %d", n_threads,
                             CPU_MAX_THREADS);
    }
    const struct cpu_isa *found = find_isa(isa);
    if (found == NULL) {
        return status_errorf(STATUS_UNIMPLEMENTED, "this machine has no instruction set '%s'", isa);
    }
    void *scratch = NULL;
    TRY(cpu_mem_alloc((size_t)n_threads * sizeof(struct cpu_scratch), &scratch));

    struct backend_stream *stream = calloc(1, sizeof *stream);
    if (stream == NULL) {
        cpu_mem_free(scratch);
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory for a stream");
    }
    stream->n_threads = n_threads;
    stream->isa = found;
    stream->scratch = scratch;
    *stream_out = stream;
    return status_ok();
}

static status_t stream_new(int n_threads, struct backend_stream **stream_out)
{
    return cpu_stream_new_isa(n_threads, "auto", stream_out);
}

static void stream_free(struct backend_stream *stream)
{
    if (stream != NULL) {
        cpu_mem_free(stream->scratch);
        free(stream);
    }
}

/* Ops here have finished when they return. */
static status_t stream_sync(struct backend_stream *stream)
{
    (void)stream;
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

// ---- the table ----

/* Every op blocks until it is done, allocates nothing, and reports only arguments it cannot take. */
static const struct backend table = {
    .name = "cpu",
    .stream_new = stream_new,
    .stream_free = stream_free,
    .stream_sync = stream_sync,
    .mem_alloc = cpu_mem_alloc,
    .mem_free = cpu_mem_free,
    .matrix_bytes = cpu_matrix_bytes,
    .matrix_new = cpu_matrix_new,
    .matrix_free = cpu_matrix_free,
    .matrix_write = cpu_matrix_write,
    .random = cpu_random,
    .embedding = cpu_embedding,
    .matmul = cpu_matmul,
    .rmsnorm = cpu_rmsnorm,
    .layernorm = cpu_layernorm,
    .rope = cpu_rope,
    .kv_append = cpu_kv_append,
    .attention = cpu_attention,
    .swiglu = cpu_swiglu,
    .add = cpu_add,
    .sample = cpu_sample,
};

const struct backend *backend_cpu(void)
{
    return &table;
}

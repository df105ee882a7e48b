/*
 * cpu.h - what the files of the CPU backend share, and what its tests reach into
 *
 * What:      the stream (a thread count, an instruction set, scratch memory), the team that runs tasks on threads, the
 *            packed matrix, and the ops of the backend table.
 * Ownership: a stream owns its scratch; nothing is allocated after cpu_stream_new_isa.
 * Thread:    a stream is used by one thread at a time.
 */
#pragma once

#include "kernels/backend.h"
#include "kernels/cpu/isa.h"

/* ---- stream ------------------------------------------------------------------------------------ */

enum {
    CPU_MAX_THREADS = 1024,
    CPU_MAX_VOCAB = 1 << 20,
    CPU_SAMPLE_BLOCK = 64, /* ids sample looks at together */
};

/* One a thread; only the op that runs uses it. */
struct cpu_scratch {
    float k_tile[CPU_TILE_TOKENS *
                 CPU_MAX_HEAD_DIM]; /* attention: a tile of bfloat16 or int8 as float32 */
    float v_tile[CPU_TILE_TOKENS * CPU_MAX_HEAD_DIM];
    float panels[CPU_UNPACKED_PANELS * CPU_UNPACKED_K * CPU_PANEL]; /* matmul: int8 as float32 */
    float maxima[CPU_MAX_VOCAB / CPU_SAMPLE_BLOCK]; /* sample: of each block of logits */
    float adjusted[CPU_MAX_VOCAB];                  /* sample: a row that a request changes */
    double histogram[1 << 11];                      /* sample */
};

struct cpu_team;

struct backend_stream {
    int n_threads;
    struct cpu_team *team; /* of n_threads, the caller of an op included */
    const struct cpu_isa *isa;
    const struct cpu_tile_kernel *tile_w8a8; /* the instruction set's, or those over VNNI */
    struct cpu_scratch *scratch;             /* [n_threads] */
};

static inline bool cpu_has_kv_dtype(int dtype)
{
    return dtype == DTYPE_F32 || dtype == DTYPE_BF16 || dtype == DTYPE_I8;
}

/* A stream with the instruction set named, for tests: "avx512-vnni", "avx512", "avx2", "portable", or "auto". UNIMPLEMENTED
 * when this machine lacks it. */
MUST_USE status_t cpu_stream_new_isa(int n_threads, const char *isa,
                                     struct backend_stream **stream_out);

/* ---- team -------------------------------------------------------------------------------------- */

/* Runs one task; thread is in [0, n_threads) and no two tasks run on one at the same time. */
typedef void cpu_task_fn(void *context, int64_t task, int thread);

/* Starts n_threads - 1 threads; the caller of cpu_team_run is the other one, always the same at a time. cores: where each
 * thread stays, the caller first; NULL: anywhere. INVALID_ARGUMENT for a core that is not to be had. */
MUST_USE status_t cpu_team_new(int n_threads, const int32_t *cores, struct cpu_team **team_out);
void cpu_team_free(
    struct cpu_team
        *team); /* accepts NULL; by the caller of cpu_team_new, which is then as free as before */

/* Runs tasks [0, n_tasks), in any order, and returns when all are done. On the calling thread alone when there is one task,
 * or no team (NULL). */
void cpu_team_run(struct cpu_team *team, int64_t n_tasks, cpu_task_fn *fn, void *context);

/* How many of n_items to give to one task so that a task is worth waking a thread for; at least 1. `item_cost` is in
 * vector operations, roughly nanoseconds. */
int64_t cpu_items_per_task(int64_t n_items, int64_t item_cost);

/* Runs fn for rows [0, n_rows), several to a task as row_cost (see above) suggests. */
typedef void cpu_row_fn(void *context, int64_t row);
void cpu_team_rows(const struct backend_stream *stream, int64_t n_rows, int64_t row_cost,
                   cpu_row_fn *fn, void *context);

/* ---- matrix ------------------------------------------------------------------------------------ */

/*
 * Panels of 16 outputs, each [n_words][16] words of 32 bits, so that a panel is read front to back whatever the
 * number of rows of x. A word is one float32, two bfloat16 or four int8 of neighbouring k: the lowest bits are the first k. Missing
 * outputs of the last panel and missing last k are zeros.
 */
struct matrix {
    int dtype;  /* DTYPE_F32, DTYPE_BF16 or DTYPE_I8 */
    int format; /* enum matrix_format */
    int32_t n_out, n_in;
    int32_t n_panels;
    int32_t n_words;   /* of a row: n_in over the elements of a word, rounded up */
    size_t data_bytes; /* n_panels * n_words * 16 * 4 */
    uint32_t *data;    /* 64-byte aligned */
    float *scales;     /* int8: [n_panels * 16], behind the data; else NULL */
};

/* Elements of a word. */
static inline int32_t cpu_matrix_word(int dtype)
{
    return (int32_t)(sizeof(uint32_t) / dtype_bytes(dtype));
}

size_t cpu_matrix_bytes(int format, int32_t n_out, int32_t n_in);
MUST_USE status_t cpu_matrix_new(int format, int32_t n_out, int32_t n_in,
                                 struct matrix **matrix_out);
void cpu_matrix_free(struct matrix *matrix);
MUST_USE status_t cpu_matrix_write(struct backend_stream *stream,
                                   const struct matrix_write_args *a);
MUST_USE status_t cpu_random(struct backend_stream *stream, const struct random_args *a);

/* ---- memory ------------------------------------------------------------------------------------ */

/* mem_reserve leaves it to the first writer of a page to bring it into memory. */
MUST_USE status_t cpu_mem_reserve(size_t size, void **ptr_out);
MUST_USE status_t cpu_mem_alloc(size_t size, void **ptr_out);
void cpu_mem_free(void *ptr);

/* ---- ops: see kernels/backend.h ------------------------------------------------------------------ */

MUST_USE status_t cpu_embedding(struct backend_stream *stream, const struct embedding_args *a);
MUST_USE status_t cpu_matmul(struct backend_stream *stream, const struct matmul_args *a);
MUST_USE status_t cpu_add_norm(struct backend_stream *stream, const struct add_norm_args *a);
MUST_USE status_t cpu_rope_append(struct backend_stream *stream, const struct rope_append_args *a);
MUST_USE status_t cpu_attention_plan_new(struct backend_stream *stream,
                                         const struct attention_shape *shape,
                                         struct attention_plan **plan_out);
void cpu_attention_plan_free(struct attention_plan *plan);
MUST_USE status_t cpu_attention_plan_set(struct backend_stream *stream, struct attention_plan *plan,
                                         const struct attention_seq *seqs, int32_t n_seqs);
MUST_USE status_t cpu_attention(struct backend_stream *stream, struct attention_plan *plan,
                                const struct attention_args *a);
MUST_USE status_t cpu_attention_merge(struct backend_stream *stream,
                                      const struct attention_merge_args *a);
MUST_USE status_t cpu_swiglu(struct backend_stream *stream, const struct swiglu_args *a);
MUST_USE status_t cpu_ordered_sum(struct backend_stream *stream, const struct ordered_sum_args *a);
MUST_USE status_t cpu_copy_strips(struct backend_stream *stream, const struct strip *strips,
                                  int32_t n);
MUST_USE status_t cpu_sample(struct backend_stream *stream, const struct sample_args *a);

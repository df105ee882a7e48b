/*
 * bench_load.c - how fast a checkpoint becomes packed weights, beside what this machine can do
 *
 * What:  `bench_load [MB [threads]]` writes a random bfloat16 checkpoint of the shape of DeciCoder-1b (as many layers as make
 *        MB, default 2200), brings it into the page cache, and prints the speed of memcpy of as many bytes, of reading the
 *        file, of packing from memory, and of the whole load, with the ratios that matter, and the most memory that loading took
 *        beside what was there. Not a test: nothing fails.
 * Units: GB is 1e9 bytes of checkpoint. Memory is touched before it is timed, except by `load, new memory`.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "kernels/cpu/cpu.h"
#include "parallel/group.h"
#include "worker/host.h"
#include "worker/weights.h"

enum { HIDDEN = 2048, HEADS = 32, KV_HEADS = 4, FF = 5888, VOCAB = 49152, MAX_LAYERS = 200 };

#define PIECE_BYTES ((size_t)1 << 20)

struct bench {
    char dir[64], path[128];
    int threads;
    struct group *group;
    struct model_spec spec;
    struct plan plan;
    struct checkpoint *checkpoint;
    struct backend_stream *stream;
    uint64_t bytes;
};

static void require(status_t s)
{
    if (!status_is_ok(&s)) {
        status_print(stderr, &s);
        exit(status_exit_code(&s));
    }
}

static double say(const struct bench *b, const char *what, double elapsed)
{
    printf("  %-28s %7.3f s  %6.2f GB/s\n", what, elapsed, (double)b->bytes * 1e-9 / elapsed);
    return elapsed;
}

static void *must_alloc(size_t size)
{
    void *memory = NULL;
    require(cpu_mem_alloc(size, &memory));
    return memory;
}

// ---- the checkpoint ----

static void write_all(FILE *file, const void *data, size_t size)
{
    if (fwrite(data, 1, size, file) != size) {
        require(status_errorf(STATUS_RESOURCE_EXHAUSTED, "write: %s", strerror(errno)));
    }
}

static void write_config(const struct bench *b, int n_layers)
{
    char path[128];
    snprintf(path, sizeof path, "%s/config.json", b->dir);
    FILE *file = fopen(path, "we");
    if (file == NULL) {
        require(status_errorf(STATUS_RESOURCE_EXHAUSTED, "%s: %s", path, strerror(errno)));
        return;
    }
    fprintf(file,
            "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", "
            "\"hidden_size\": %d, \"num_attention_heads\": %d, \"num_key_value_heads\": %d, "
            "\"intermediate_size\": %d, \"vocab_size\": %d, \"num_hidden_layers\": %d, "
            "\"max_position_embeddings\": 2048, \"rms_norm_eps\": 1e-6, \"rope_theta\": 10000.0, "
            "\"tie_word_embeddings\": false, \"torch_dtype\": \"bfloat16\", \"bos_token_id\": 1, "
            "\"eos_token_id\": 2, \"hidden_act\": \"silu\"}\n",
            HIDDEN, HEADS, KV_HEADS, FF, VOCAB, n_layers);
    fclose(file);
}

/* Calls visit for each tensor of the model. */
static void each_tensor(struct bench *b, void (*visit)(void *user, const struct weight_wanted *w),
                        void *user)
{
    static const enum weight whole[] = {WEIGHT_EMBEDDING, WEIGHT_FINAL_NORM, WEIGHT_HEAD};

    static const enum weight of_layer[] = {WEIGHT_ATTENTION_NORM, WEIGHT_Q_PROJ,  WEIGHT_K_PROJ,
                                           WEIGHT_V_PROJ,         WEIGHT_O_PROJ,  WEIGHT_FFN_NORM,
                                           WEIGHT_GATE_PROJ,      WEIGHT_UP_PROJ, WEIGHT_DOWN_PROJ};

    for (size_t i = 0; i < sizeof whole / sizeof whole[0]; i++) {
        const struct weight_wanted w = weights_check_wanted(&b->spec, whole[i], 0);
        visit(user, &w);
    }
    for (int32_t layer = 0; layer < b->spec.n_layers; layer++) {
        for (size_t i = 0; i < sizeof of_layer / sizeof of_layer[0]; i++) {
            const struct weight_wanted w = weights_check_wanted(&b->spec, of_layer[i], layer);
            visit(user, &w);
        }
    }
}

struct header {
    struct bytes text;
    uint64_t offset;
};

static void add_to_header(void *user, const struct weight_wanted *w)
{
    struct header *h = user;
    const uint64_t columns = w->n_columns > 0 ? (uint64_t)w->n_columns : 1;
    const uint64_t size = (uint64_t)w->n_rows * columns * 2;
    const uint64_t end = h->offset + size;
    char shape[32];
    snprintf(shape, sizeof shape, w->n_columns > 0 ? "%d,%d" : "%d", w->n_rows, w->n_columns);
    require(bytes_printf(
        &h->text, "%s\"%s\":{\"dtype\":\"BF16\",\"shape\":[%s],\"data_offsets\":[%llu,%llu]}",
        h->offset == 0 ? "{" : ",", w->name, shape, (unsigned long long)h->offset,
        (unsigned long long)end));
    h->offset = end;
}

/* Values between 1 and 2: any upper byte of a bfloat16 that is no NaN will do. */
static void write_checkpoint(struct bench *b)
{
    struct header h = {.offset = 0};
    bytes_init(&h.text, (size_t)1 << 20);
    each_tensor(b, add_to_header, &h);
    require(bytes_printf(&h.text, "}"));
    b->bytes = h.offset;
    FILE *file = fopen(b->path, "we");
    if (file == NULL) {
        require(status_errorf(STATUS_RESOURCE_EXHAUSTED, "%s: %s", b->path, strerror(errno)));
        return;
    }
    const uint64_t header_bytes = h.text.size;
    write_all(file, &header_bytes, sizeof header_bytes);
    write_all(file, h.text.data, h.text.size);
    uint16_t *piece = must_alloc(PIECE_BYTES);
    for (size_t i = 0; i < PIECE_BYTES / 2; i++) {
        piece[i] = (uint16_t)(0x3F80u | (i * 2654435761u >> 20 & 0x7Fu));
    }
    for (uint64_t left = b->bytes; left > 0;) {
        const size_t n = left < PIECE_BYTES ? (size_t)left : PIECE_BYTES;
        write_all(file, piece, n);
        left -= n;
    }
    fclose(file);
    cpu_mem_free(piece);
    bytes_destroy(&h.text);
}

// ---- what the machine can do ----

struct copy {
    char *to;
    const char *from;
    uint64_t size;
};

static void copy_piece(void *context, int64_t task, int thread)
{
    (void)thread;
    const struct copy *c = context;
    const uint64_t at = (uint64_t)task * PIECE_BYTES;
    memcpy(c->to + at, c->from + at, c->size - at < PIECE_BYTES ? c->size - at : PIECE_BYTES);
}

static double time_memcpy(const struct bench *b)
{
    char *from = must_alloc(b->bytes);
    char *to = must_alloc(b->bytes);
    memset(from, 1, b->bytes);
    memset(to, 2, b->bytes);
    struct copy c = {to, from, b->bytes};
    double best = 1e30;
    for (int round = 0; round < 3; round++) {
        const double begin = clock_now_s(clock_system());
        cpu_team_run(b->stream->team, (int64_t)((b->bytes - 1) / PIECE_BYTES + 1), copy_piece, &c);
        const double elapsed = clock_now_s(clock_system()) - begin;
        best = elapsed < best ? elapsed : best;
    }
    cpu_mem_free(from);
    cpu_mem_free(to);
    return best;
}

static double time_read(const struct bench *b)
{
    char *piece = must_alloc(PIECE_BYTES);
    double best = 1e30;
    for (int round = 0; round < 3; round++) {
        const double begin = clock_now_s(clock_system());
        for (size_t i = 0; i < checkpoint_n_tensors(b->checkpoint); i++) {
            const checkpoint_tensor_t t = checkpoint_tensor_at(b->checkpoint, i);
            for (uint64_t at = 0; at < t.tensor->size_bytes; at += PIECE_BYTES) {
                const uint64_t left = t.tensor->size_bytes - at;
                require(checkpoint_read(b->checkpoint, t, at,
                                        left < PIECE_BYTES ? (size_t)left : PIECE_BYTES, piece));
            }
        }
        const double elapsed = clock_now_s(clock_system()) - begin;
        best = elapsed < best ? elapsed : best;
    }
    cpu_mem_free(piece);
    return best;
}

/* Packs a matrix of the feed-forward block over and over, as many bytes as the checkpoint has. */
static double time_pack(const struct bench *b)
{
    const size_t size = (size_t)FF * HIDDEN * 2;
    const int n = (int)(b->bytes / size);
    char *rows = must_alloc(size);
    memset(rows, 0x3F, size);
    struct matrix *matrices[2] = {NULL, NULL};
    double best = 1e30;
    for (int i = 0; i < 2; i++) {
        require(cpu_matrix_new(DTYPE_BF16, FF, HIDDEN, &matrices[i]));
    }
    for (int round = 0; round < 3; round++) {
        const double begin = clock_now_s(clock_system());
        for (int i = 0; i < n; i++) {
            const struct matrix_write_args args = {.matrix = matrices[i % 2],
                                                   .n_rows = FF,
                                                   .src = rows,
                                                   .src_dtype = DTYPE_BF16,
                                                   .ld_src = HIDDEN};
            require(cpu_matrix_write(b->stream, &args));
        }
        const double elapsed =
            (clock_now_s(clock_system()) - begin) * (double)b->bytes / ((double)size * n);
        best = elapsed < best ? elapsed : best;
    }
    cpu_matrix_free(matrices[0]);
    cpu_matrix_free(matrices[1]);
    cpu_mem_free(rows);
    return best;
}

// ---- loading ----

static void time_load(struct bench *b, struct weight_source *source, const char *first,
                      const char *again, double *again_out)
{
    const struct weights_request request = {.backend = backend_cpu(),
                                            .spec = &b->spec,
                                            .plan = &b->plan,
                                            .formats = {.dtype = DTYPE_BF16},
                                            .checkpoint_dtype = DTYPE_BF16};
    const struct weight_loader_parts parts = {.source = source,
                                              .comm = group_comm(b->group),
                                              .backend = backend_cpu(),
                                              .stream = b->stream};
    const struct weights_progress progress = {.bytes_total = b->bytes};
    struct weights weights;
    struct weight_loader loader;
    host_memory_peak_reset();
    const double before = (double)host_memory_resident();
    require(weights_alloc(&request, &weights));
    require(weight_loader_init(&parts, weights_max_row_bytes(&b->spec), &loader));
    double begin = clock_now_s(clock_system());
    require(weights_load(&weights, &loader, &progress));
    say(b, first, clock_now_s(clock_system()) - begin);
    printf("  peak memory %.3f of the weights (at most 1.15)\n",
           ((double)host_memory_peak() - before) / (double)weights.bytes);
    begin = clock_now_s(clock_system());
    require(weights_load(&weights, &loader, &progress));
    *again_out = say(b, again, clock_now_s(clock_system()) - begin);
    weight_loader_destroy(&loader);
    weights_free(&weights);
}

static void measure(struct bench *b)
{
    double load;
    double made_up;
    struct weight_source file = {.checkpoint = b->checkpoint};
    struct weight_source dummy = {
        .imitated_dtype = DTYPE_BF16, .backend = backend_cpu(), .stream = b->stream};
    printf("%.2f GB of bfloat16, %d %s\n", (double)b->bytes * 1e-9, b->threads,
           b->threads == 1 ? "thread" : "threads");
    const double copy = say(b, "memcpy", time_memcpy(b));
    (void)say(b, "read from the page cache", time_read(b));
    const double pack = say(b, "pack from memory", time_pack(b));
    time_load(b, &file, "load, new memory", "load", &load);
    time_load(b, &dummy, "made up, new memory", "made up", &made_up);
    printf(
        "  load / memcpy %.2f, (load - pack) / memcpy %.2f (at most 2), made up %.2f G values/s\n",
        load / copy, (load - pack) / copy, (double)b->bytes / 2 * 1e-9 / made_up);
}

static void open_all(struct bench *b, int megabytes)
{
    const uint64_t vocabulary = (uint64_t)2 * VOCAB * HIDDEN * 2;
    const uint64_t layer = (uint64_t)2 * HIDDEN * (2 * HIDDEN + 2 * 256 + 3 * FF);
    const uint64_t wanted = (uint64_t)megabytes * 1000000;
    int n_layers = wanted > vocabulary ? (int)((wanted - vocabulary) / layer) : 1;
    n_layers = n_layers < 1 ? 1 : n_layers > MAX_LAYERS ? MAX_LAYERS : n_layers;
    snprintf(b->dir, sizeof b->dir, "/tmp/kvasir-bench-XXXXXX");
    if (mkdtemp(b->dir) == NULL) {
        require(status_errorf(STATUS_RESOURCE_EXHAUSTED, "mkdtemp: %s", strerror(errno)));
    }
    snprintf(b->path, sizeof b->path, "%s/model.safetensors", b->dir);
    write_config(b, n_layers);
    require(spec_load(b->dir, &b->spec));
    const struct plan_request request = {.tp = 1, .pp = 1, .placement = PLAN_SHARE};
    require(plan_make(&b->spec, &request, &b->plan));
    write_checkpoint(b);
    require(checkpoint_open(b->dir, &b->checkpoint));
    const struct stream_options options = {.n_threads = b->threads};
    require(backend_cpu()->stream_new(&options, &b->stream));
    require(group_open("bench", &b->group));
}

static void close_all(struct bench *b)
{
    char path[128];
    snprintf(path, sizeof path, "%s/config.json", b->dir);
    checkpoint_close(b->checkpoint);
    backend_cpu()->stream_free(b->stream);
    plan_destroy(&b->plan);
    spec_destroy(&b->spec);
    unlink(path);
    unlink(b->path);
    rmdir(b->dir);
    group_close(b->group);
}

int main(int argc, char **argv)
{
    const int megabytes = argc > 1 ? (int)strtol(argv[1], NULL, 10) : 2200;
    const int threads = argc > 2 ? (int)strtol(argv[2], NULL, 10) : 2;
    struct bench bench = {.threads = threads > 0 ? threads : 1};
    open_all(&bench, megabytes);
    measure(&bench);
    close_all(&bench);
    return 0;
}

/*
 * engine_logits.c - greedy decoding by the engine alone, with every step's logits written to a file
 *
 * usage: mpirun -n T engine_logits [--dummy] MODEL DEVICE PLACEMENT DTYPE[+QUANTIZATION][/int8] N_PROMPT N_GENERATE CHUNK OUT ID...
 *
 * For comparisons with other programs: no scheduler, no gRPC. The first N_PROMPT ids are the prompt, and go in chunks of
 * CHUNK; those after it, where there are any, take the place of the engine's choices. Writes float32
 * [N_GENERATE, n_vocab] to OUT and prints the chosen ids. DTYPE is that of weights and cache; float32/int8 has a cache of
 * int8. --dummy: weights are made up, and MODEL needs no more than a config.json.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/reference/engine_backend.h"
#include "worker/engine.h"

struct run {
    struct group *group;
    struct model_spec spec;
    struct plan plan;
    struct engine *engine;
    struct step_plan step;
    int32_t *tokens;
    int32_t n_tokens, n_given, n_generate, chunk;
    FILE *out;     /* rank 0 */
    float *logits; /* of one position */
    int load;      /* enum engine_load */
};

/* "bfloat16", "bfloat16+int8", "float32/int8", "bfloat16+w8a8/int8": weights, how they are quantised, cache. */
static status_t parse_formats(const char *text, struct engine_options *options)
{
    char name[64];
    (void)snprintf(name, sizeof name, "%s", text);
    char *const slash = strchr(name, '/');
    if (slash != NULL && strcmp(slash, "/int8") != 0) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "a cache of '%s' is none of /int8", slash);
    }
    if (slash != NULL) {
        *slash = '\0';
    }
    char *const plus = strchr(name, '+');
    options->quantization = QUANTIZATION_NONE;
    for (int i = QUANTIZATION_INT8; plus != NULL && i <= QUANTIZATION_W8A8; i++) {
        options->quantization =
            strcmp(plus + 1, dtype_quantization_name(i)) == 0 ? i : options->quantization;
    }
    if (plus != NULL && options->quantization == QUANTIZATION_NONE) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "quantization '%s'", plus + 1);
    }
    if (plus != NULL) {
        *plus = '\0';
    }
    TRY(dtype_parse(name, &options->dtype));
    options->kv_dtype = slash != NULL ? DTYPE_I8 : options->dtype;
    return status_ok();
}

static status_t open_run(struct run *r, char **argv)
{
    const int placement = strcmp(argv[3], "share") == 0 ? PLAN_SHARE : PLAN_REPLICATE;
    const struct backend *backend;
    TRY(engine_backend(argv[2], &backend));
    TRY(spec_load(argv[1], &r->spec));
    const struct plan_request request = {
        .tp = group_size(r->group), .pp = 1, .placement = placement};
    TRY(plan_make(&r->spec, &request, &r->plan));
    struct engine_options options = {
        .model_dir = argv[1],
        .load = r->load,
        .weights_seed = 1,
        .backend = backend,
        .device_memory_share = 0.9,
        .tune = true,
        .max_num_seqs = 1,
        .max_num_batched_tokens = r->chunk,
        .max_model_len = r->spec.max_positions,
        .threads = 1,
        .log = {.fd = 2, .level = LOG_WARN, .rank = group_rank(r->group), .module = "engine"},
    };
    TRY(parse_formats(argv[4], &options));
    TRY(engine_new(r->group, &r->spec, &r->plan, &options, &r->engine));
    r->logits = calloc((size_t)r->spec.n_vocab, sizeof *r->logits);
    return r->logits == NULL ? status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory for logits")
                             : step_plan_init(&r->step, engine_limits(r->engine));
}

/* The next n tokens of the one sequence, in the last lane, whose blocks are taken in descending order. */
static status_t compute(struct run *r, int32_t n_computed, int32_t n, const float **logits_out)
{
    const struct step_limits *limits = engine_limits(r->engine);
    const int32_t n_blocks = (n_computed + n + PLAN_BLOCK_TOKENS - 1) / PLAN_BLOCK_TOKENS;
    int32_t *blocks = calloc((size_t)n_blocks, sizeof *blocks);
    for (int32_t i = 0; blocks != NULL && i < n_blocks; i++) {
        blocks[i] = (int32_t)limits->blocks_per_lane - 1 - i;
    }
    const struct step_seq seq = {.lane = limits->n_lanes - 1,
                                 .n_computed = n_computed,
                                 .n_tokens = n,
                                 .n_blocks = n_blocks,
                                 .n_logits = n_computed + n == r->n_tokens};
    step_plan_clear(&r->step);
    status_t s = step_plan_add(&r->step, &seq, r->tokens + n_computed, blocks);
    if (s.code == STATUS_OK) {
        s = engine_step(r->engine, &r->step, logits_out);
    }
    free(blocks);
    return s;
}

static int32_t argmax(const float *logits, int32_t n)
{
    int32_t best = 0;
    for (int32_t i = 1; i < n; i++) {
        best = logits[i] > logits[best] ? i : best;
    }
    return best;
}

static status_t generate(struct run *r)
{
    int32_t n_computed = 0;
    struct comm *comm = group_comm(r->group);
    for (int32_t step = 0; step < r->n_generate; step++) {
        const float *logits = NULL;
        while (n_computed < r->n_tokens) {
            const int32_t missing = r->n_tokens - n_computed;
            const int32_t n = missing < r->chunk ? missing : r->chunk;
            TRY(compute(r, n_computed, n, &logits));
            n_computed += n;
        }
        int32_t id = 0;
        if (r->out != NULL && logits != NULL) {
            TRY(engine_read_logits(r->engine, 1, r->logits));
            id = argmax(r->logits, r->spec.n_vocab);
            fwrite(r->logits, sizeof *r->logits, (size_t)r->spec.n_vocab, r->out);
            printf("%d ", id);
        }
        TRY(comm->ops->broadcast(comm, &id, sizeof id, 0));
        if (r->n_tokens >= r->n_given) {
            r->tokens[r->n_tokens] = id;
        }
        r->n_tokens++;
    }
    if (r->out != NULL) {
        printf("\n");
    }
    return status_ok();
}

int main(int argc, char **argv)
{
    struct run r;
    memset(&r, 0, sizeof r);
    if (argc > 1 && strcmp(argv[1], "--dummy") == 0) {
        r.load = ENGINE_LOAD_DUMMY;
        argc--;
        argv++;
    }
    if (argc < 10 || atoi(argv[5]) < 1 || atoi(argv[5]) > argc - 9) {
        fprintf(
            stderr,
            "usage: engine_logits [--dummy] MODEL DEVICE PLACEMENT DTYPE[+QUANTIZATION][/int8] N_PROMPT N_GENERATE CHUNK OUT "
            "ID...\n");
        return 64;
    }
    status_t s = group_open("test", &r.group);
    if (s.code == STATUS_OK) {
        r.n_tokens = atoi(argv[5]);
        r.n_generate = atoi(argv[6]);
        r.chunk = atoi(argv[7]);
        r.out = group_rank(r.group) == 0 ? fopen(argv[8], "wb") : NULL;
        r.tokens = calloc((size_t)argc + (size_t)r.n_generate, sizeof *r.tokens);
        for (int i = 9; i < argc; i++) {
            r.tokens[r.n_given++] = atoi(argv[i]);
        }
        s = open_run(&r, argv);
        if (s.code == STATUS_OK) {
            s = generate(&r);
        }
    }
    if (s.code != STATUS_OK) {
        status_print(stderr, &s);
    }
    if (r.out != NULL) {
        fclose(r.out);
    }
    step_plan_destroy(&r.step);
    engine_free(r.engine);
    plan_destroy(&r.plan);
    spec_destroy(&r.spec);
    free(r.tokens);
    free(r.logits);
    group_close(r.group);
    return status_exit_code(&s);
}

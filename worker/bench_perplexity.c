#include "worker/bench_perplexity.h"

#include <math.h>
#include <stdlib.h>

enum { MAX_ROWS = 256, DEFAULT_CONTEXT = 2048 };

struct bench {
    struct bench_session session;
    const int32_t *ids;
    int32_t rows; /* of a step */
    int32_t *blocks;
    float *logits;    /* [rows, n_vocab] */
    status_t scoring; /* rank 0's failure, which must not end its part in the steps */
    struct bench_perplexity_result result;
};

/* A window and what it scores: tokens [score, end) of the text. */
struct window {
    int64_t begin, score, end;
};

static double log_softmax(const float *logits, int32_t n, int32_t id)
{
    double most = -INFINITY, sum = 0;
    for (int32_t i = 0; i < n; i++) {
        most = (double)logits[i] > most ? (double)logits[i] : most;
    }
    for (int32_t i = 0; i < n; i++) {
        sum += exp((double)logits[i] - most);
    }
    return (double)logits[id] - most - log(sum);
}

// ---- a step ----

/* Token `at` of the text as a sequence of its own, behind those of its window. */
static status_t add_token(struct bench *b, const struct window *w, int64_t at)
{
    const int32_t position = (int32_t)(at - w->begin);
    const struct step_seq seq = {
        .seq_id = (uint64_t)at,
        .slot = b->session.step.n_seqs,
        .n_computed = position,
        .n_tokens = 1,
        .n_blocks = position / PLAN_BLOCK_TOKENS + 1,
        .n_logits = at + 1 >= w->score && at + 1 < w->end,
    };
    return step_plan_add(&b->session.step, &seq, &b->ids[at], b->blocks);
}

static status_t score(struct bench *b, const struct window *w, int64_t begin, int64_t end)
{
    const int32_t n_vocab = b->session.spec.n_vocab;
    const int32_t n_logits = b->session.step.n_logits;
    if (n_logits == 0 || group_rank(b->session.group) != 0) {
        return status_ok();
    }
    TRY(engine_read_logits(b->session.engine, n_logits, b->logits));
    const float *row = b->logits;
    for (int64_t at = begin; at < end; at++) {
        if (at + 1 < w->score || at + 1 >= w->end) {
            continue;
        }
        const double logprob = log_softmax(row, n_vocab, b->ids[at + 1]);
        if (!isfinite(logprob) && b->scoring.code == STATUS_OK) {
            b->scoring = status_errorf(STATUS_DATA_LOSS, "token %lld has no log probability: %g",
                                       (long long)at + 1, logprob);
        }
        b->result.nll -= logprob;
        b->result.n_scored++;
        row += n_vocab;
    }
    return status_ok();
}

static status_t run_window(struct bench *b, const struct window *w)
{
    // The last token is predicted, never seen.
    for (int64_t at = w->begin; at + 1 < w->end; at += b->rows) {
        const int64_t end = at + b->rows < w->end - 1 ? at + b->rows : w->end - 1;
        const float *logits = NULL;
        step_plan_clear(&b->session.step);
        for (int64_t i = at; i < end; i++) {
            TRY(add_token(b, w, i));
        }
        TRY(engine_step(b->session.engine, &b->session.step, &logits));
        TRY(score(b, w, at, end));
    }
    return status_ok();
}

static status_t run_windows(struct bench *b)
{
    const int64_t n = b->result.n_tokens;
    int64_t scored = 1; // of nothing there is no prediction
    for (int64_t begin = 0; scored < n; begin += b->result.stride) {
        struct window w = {.begin = begin, .end = begin + b->result.context};
        w.end = w.end < n ? w.end : n;
        w.score = scored > begin + 1 ? scored : begin + 1;
        TRY(run_window(b, &w));
        b->result.n_windows++;
        scored = w.end;
    }
    return status_ok();
}

// ---- the whole ----

static status_t check(const struct bench *b)
{
    const struct bench_perplexity_result *r = &b->result;
    if (r->context < 2 || r->context > b->session.spec.max_positions) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "--context %d: from 2 to the model's %d positions", r->context,
                             b->session.spec.max_positions);
    }
    if (r->stride > r->context) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "--stride %d is more than --context %d: tokens would be left out",
                             r->stride, r->context);
    }
    if (r->n_tokens < 2) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "%lld tokens: there is nothing to predict",
                             (long long)r->n_tokens);
    }
    for (int64_t i = 0; i < r->n_tokens; i++) {
        if (b->ids[i] < 0 || b->ids[i] >= b->session.spec.n_vocab) {
            return status_errorf(STATUS_INVALID_ARGUMENT, "token %lld is %d, the model has %d",
                                 (long long)i, b->ids[i], b->session.spec.n_vocab);
        }
    }
    return status_ok();
}

static status_t set_up(struct bench *b, const struct bench_session_request *request)
{
    const struct bench_config *config = request->config;
    TRY(bench_session_init(request, &b->session));
    const int32_t most = b->session.spec.max_positions;
    b->result.context = config->context > 0      ? (int32_t)config->context
                        : most < DEFAULT_CONTEXT ? most
                                                 : DEFAULT_CONTEXT;
    b->result.stride = config->stride > 0 ? (int32_t)config->stride : b->result.context;
    TRY(check(b));
    b->rows = b->result.context < MAX_ROWS ? b->result.context : MAX_ROWS;
    const struct plan *plan = &b->session.plan;
    const int32_t n_blocks = (int32_t)plan_blocks_for(b->result.context);
    const struct bench_session_limits limits = {
        .max_num_seqs = b->rows,
        .max_rows = b->rows,
        .max_model_len = b->result.context,
        .max_steps = 1,
        .kv_cache_bytes =
            (uint64_t)plan_kv_bytes(plan, group_rank(request->group), b->session.kv_dtype,
                                    plan_stripes_for(plan, n_blocks)),
    };
    TRY(bench_session_open_engine(&b->session, request->model_dir, &limits));
    b->blocks = calloc((size_t)n_blocks, sizeof *b->blocks);
    b->logits = calloc((size_t)b->rows * (size_t)b->session.spec.n_vocab, sizeof *b->logits);
    const bool made = b->blocks != NULL && b->logits != NULL;
    for (int32_t i = 0; made && i < n_blocks; i++) {
        b->blocks[i] = i;
    }
    return group_agree(request->group,
                       made ? status_ok()
                            : status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory for logits"));
}

status_t bench_perplexity_run(const struct bench_session_request *request, const int32_t *ids,
                              int64_t n, struct bench_perplexity_result *result_out)
{
    struct bench b = {.ids = ids, .scoring = status_ok(), .result = {.n_tokens = n}};
    status_t s = set_up(&b, request);
    if (s.code == STATUS_OK) {
        s = run_windows(&b);
        *request->broken = s.code != STATUS_OK;
    }
    if (s.code == STATUS_OK) {
        s = group_agree(request->group, b.scoring);
    }
    if (s.code == STATUS_OK) {
        *result_out = b.result;
    }
    free(b.blocks);
    free(b.logits);
    bench_session_destroy(&b.session);
    return s;
}

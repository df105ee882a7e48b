#include "coordinator/ingress.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/mailbox.h"
#include "coordinator/validate.h"

#define N_THREADS       2
#define MAX_JOBS        8192 /* per thread */
#define MAX_ARENA_BYTES ((size_t)64 * 1024 * 1024)

enum job_kind { JOB_REQUEST, JOB_TOKENIZE, JOB_DETOKENIZE };

struct job {
    int kind;                /* enum job_kind */
    struct request *request; /* JOB_REQUEST: the pipeline's reference */
    struct rpc_call *call;   /* else: a reference */
    uint8_t *data;           /* else: malloc */
    size_t size;
};

struct ingress {
    struct ingress_options options;
    struct validate_limits limits;
    struct mailbox jobs[N_THREADS];
    pthread_t threads[N_THREADS];
    int n_threads;
    atomic_uint turn;
};

struct worker_arg {
    struct ingress *ingress;
    struct mailbox *jobs;
};

static void free_job(struct ingress *ingress, struct job *job)
{
    gate_leave_bytes(ingress->options.gate, job->size);
    if (job->request != NULL) {
        request_release(job->request);
    }
    if (job->call != NULL) {
        rpc_call_release(job->call);
    }
    free(job->data);
    free(job);
}

// ---- requests ----

/* Fills what the request left open: an id, a seed. */
static status_t fill_in(struct request *request)
{
    struct wire_generate_request *wire = &request->wire;
    uint64_t random[3];
    if (getrandom(random, sizeof random, 0) != (ssize_t)sizeof random) {
        return status_errorf(STATUS_INTERNAL, "getrandom gave too little");
    }
    if (!wire->sampling.has_seed) {
        wire->sampling.seed = random[0];
    }
    if (wire->request_id[0] == '\0') {
        snprintf(request->made_up_id, sizeof request->made_up_id, "%016llx%016llx",
                 (unsigned long long)random[1], (unsigned long long)random[2]);
        wire->request_id = request->made_up_id;
    }
    return status_ok();
}

static status_t take_ids(const struct wire_token_ids *ids, struct token_list *out)
{
    out->ids = malloc(ids->n * sizeof *out->ids);
    if (out->ids == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory for %zu tokens", ids->n);
    }
    memcpy(out->ids, ids->ids, ids->n * sizeof *out->ids);
    out->n = out->capacity = ids->n;
    return status_ok();
}

/* A tokenizer may know tokens that the model was not made for. */
static status_t check_ids(const struct ingress *ingress, const struct token_list *list)
{
    const struct wire_token_ids ids = {.ids = (const uint32_t *)list->ids, .n = list->n};
    return validate_token_ids("prompt tokens", &ids, ingress->limits.n_vocab);
}

static status_t tokenize_text(const struct ingress *ingress, const char *text, size_t size,
                              struct token_list *out)
{
    TRY(tokenizer_encode(ingress->options.model->tokenizer, text, size, TOKENIZER_ADD_SPECIAL,
                         out));
    return check_ids(ingress, out);
}

static status_t tokenize_messages(const struct ingress *ingress, struct request *request)
{
    const struct wire_generate_request *wire = &request->wire;
    struct chat_message *messages =
        arena_calloc(&request->arena, wire->n_messages, sizeof *messages);
    if (messages == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory for %zu messages",
                             wire->n_messages);
    }
    for (size_t i = 0; i < wire->n_messages; i++) {
        messages[i] = (struct chat_message){.role = wire->messages[i].role,
                                            .content = wire->messages[i].content};
    }
    const struct model *model = ingress->options.model;
    TRY(chat_template_encode(&model->chat, model->tokenizer, messages, wire->n_messages,
                             &request->prompt));
    return check_ids(ingress, &request->prompt);
}

static status_t tokenize_prompt(const struct ingress *ingress, struct request *request)
{
    const struct wire_generate_request *wire = &request->wire;
    switch (wire->prompt_kind) {
    case WIRE_PROMPT_TOKENS:
        return take_ids(&wire->prompt_token_ids, &request->prompt);
    case WIRE_PROMPT_MESSAGES:
        return tokenize_messages(ingress, request);
    default:
        return tokenize_text(ingress, wire->prompt, wire->prompt_bytes, &request->prompt);
    }
}

static status_t make_samples(struct request *request)
{
    const uint32_t n = request->wire.sampling.n;
    request->samples = arena_calloc(&request->arena, n, sizeof *request->samples);
    if (request->samples == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory for %u samples", n);
    }
    for (uint32_t i = 0; i < n; i++) {
        request->samples[i].request = request;
    }
    request->n_unended = n;
    return status_ok();
}

static status_t prepare(const struct ingress *ingress, struct request *request)
{
    TRY(wire_generate_request_unpack(request->raw, request->raw_bytes, &request->arena,
                                     &request->wire));
    free(request->raw);
    request->raw = NULL;
    TRY(validate_request(&request->wire, &ingress->limits));
    TRY(fill_in(request));
    TRY(make_samples(request));
    TRY(tokenize_prompt(ingress, request));
    TRY(validate_length(request->prompt.n, request->wire.stopping.max_tokens, &ingress->limits));
    const struct wire_token_ids prompt = {.ids = (const uint32_t *)request->prompt.ids,
                                          .n = request->prompt.n};
    return answer_init(&request->answer, request->shape, &request->wire, &prompt,
                       ingress->options.model->tokenizer);
}

static void count_refusal(struct metrics *metrics, int code)
{
    metrics_reject(metrics, code == STATUS_RESOURCE_EXHAUSTED ? METRICS_REJECTED_OVERLOAD
                            : code == STATUS_INVALID_ARGUMENT ? METRICS_REJECTED_INVALID
                                                              : METRICS_REJECTED_OTHER);
}

/* Passes the request on, or answers it. */
static void do_request(struct ingress *ingress, struct job *job)
{
    struct request *request = job->request;
    status_t s = request_is_closed(request) ? status_errorf(STATUS_CANCELLED, "the call is over")
                                            : prepare(ingress, request);
    if (status_is_ok(&s)) {
        request->arrived = (struct core_message){.kind = CORE_REQUEST, .request = request};
        s = core_post(ingress->options.core, &request->arrived);
        if (status_is_ok(&s)) {
            job->request = NULL; // it is the core's now
            return;
        }
    }
    count_refusal(ingress->options.metrics, s.code);
    request_refuse(request, &s);
}

// ---- texts ----

static status_t tokenize(const struct ingress *ingress, const struct job *job, struct arena *arena,
                         struct bytes *reply)
{
    struct wire_tokenize_request request;
    TRY(wire_tokenize_request_unpack(job->data, job->size, arena, &request));
    TRY(validate_text("text", request.text_bytes, &ingress->limits));
    struct token_list list = {0};
    status_t s =
        tokenizer_encode(ingress->options.model->tokenizer, request.text, request.text_bytes,
                         request.add_special_tokens ? TOKENIZER_ADD_SPECIAL : 0, &list);
    if (status_is_ok(&s)) {
        const struct wire_token_ids ids = {.ids = (const uint32_t *)list.ids, .n = list.n};
        s = wire_tokenize_response_pack(&ids, reply);
    }
    token_list_destroy(&list);
    return s;
}

static status_t detokenize(const struct ingress *ingress, const struct job *job,
                           struct arena *arena, struct bytes *reply)
{
    const struct tokenizer *tokenizer = ingress->options.model->tokenizer;
    struct wire_detokenize_request request;
    TRY(wire_detokenize_request_unpack(job->data, job->size, arena, &request));
    TRY(validate_token_ids("token_ids", &request.token_ids,
                           (uint32_t)tokenizer_vocab_size(tokenizer)));
    struct bytes text;
    bytes_init(&text, MAX_ARENA_BYTES);
    status_t s =
        tokenizer_decode(tokenizer, (const int32_t *)request.token_ids.ids, request.token_ids.n,
                         request.skip_special_tokens ? TOKENIZER_SKIP_SPECIAL : 0, &text);
    if (status_is_ok(&s)) {
        s = bytes_append(&text, "", 1); // the NUL
    }
    if (status_is_ok(&s)) {
        s = wire_detokenize_response_pack((const char *)text.data, reply);
    }
    bytes_destroy(&text);
    return s;
}

static void do_text(struct ingress *ingress, const struct job *job)
{
    struct arena arena;
    struct bytes reply;
    arena_init(&arena, MAX_ARENA_BYTES);
    bytes_init(&reply, MAX_ARENA_BYTES);
    const status_t s = job->kind == JOB_TOKENIZE ? tokenize(ingress, job, &arena, &reply)
                                                 : detokenize(ingress, job, &arena, &reply);
    if (status_is_ok(&s)) {
        rpc_reply(job->call, &reply);
    } else {
        rpc_finish(job->call, &s, NULL, 0);
    }
    bytes_destroy(&reply);
    arena_destroy(&arena);
}

// ---- threads ----

static void *ingress_main(void *arg)
{
    struct worker_arg copy = *(struct worker_arg *)arg;
    free(arg);
    // NULL without a timeout means closed and empty.
    for (struct job *job; (job = mailbox_take(copy.jobs, UINT64_MAX)) != NULL;) {
        if (job->kind == JOB_REQUEST) {
            do_request(copy.ingress, job);
        } else {
            do_text(copy.ingress, job);
        }
        free_job(copy.ingress, job);
    }
    return NULL;
}

static status_t start_thread(struct ingress *ingress)
{
    const int i = ingress->n_threads;
    struct worker_arg *arg = malloc(sizeof *arg);
    if (arg == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory for a thread");
    }
    *arg = (struct worker_arg){.ingress = ingress, .jobs = &ingress->jobs[i]};
    if (pthread_create(&ingress->threads[i], NULL, ingress_main, arg) != 0) {
        free(arg);
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "cannot start an ingress thread");
    }
    ingress->n_threads++;
    return status_ok();
}

status_t ingress_new(const struct ingress_options *options, struct ingress **ingress_out)
{
    struct ingress *ingress = calloc(1, sizeof *ingress);
    if (ingress == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory for the ingress");
    }
    const struct model *model = options->model;
    ingress->options = *options;
    ingress->limits = (struct validate_limits){.model = model->name,
                                               .n_vocab = (uint32_t)model->spec.n_vocab,
                                               .context_tokens = model->context_tokens,
                                               .completion_tokens = options->max_completion_tokens,
                                               .prompt_bytes = model->prompt_bytes};
    status_t s;
    for (int i = 0; i < N_THREADS; i++) {
        TRY_GOTO(s, mailbox_init(&ingress->jobs[i], MAX_JOBS), undo);
    }
    for (int i = 0; i < N_THREADS; i++) {
        TRY_GOTO(s, start_thread(ingress), undo);
    }
    *ingress_out = ingress;
    return status_ok();

undo:
    ingress_free(ingress);
    return s;
}

void ingress_free(struct ingress *ingress)
{
    if (ingress == NULL) {
        return;
    }
    for (int i = 0; i < N_THREADS; i++) {
        if (ingress->jobs[i].items != NULL) {
            mailbox_close(&ingress->jobs[i]);
        }
    }
    for (int i = 0; i < ingress->n_threads; i++) {
        pthread_join(ingress->threads[i], NULL);
    }
    for (int i = 0; i < N_THREADS; i++) {
        if (ingress->jobs[i].items == NULL) {
            continue;
        }
        for (struct job *job; (job = mailbox_take(&ingress->jobs[i], 0)) != NULL;) {
            free_job(ingress, job);
        }
        mailbox_destroy(&ingress->jobs[i]);
    }
    free(ingress);
}

// ---- posting ----

/* Counts the bytes in and posts; on failure the job is as before. */
static status_t post(struct ingress *ingress, struct job *job)
{
    TRY(gate_enter_bytes(ingress->options.gate, job->size));
    const unsigned turn = atomic_fetch_add(&ingress->turn, 1);
    const status_t s = mailbox_post(&ingress->jobs[turn % N_THREADS], job);
    if (!status_is_ok(&s)) {
        gate_leave_bytes(ingress->options.gate, job->size);
    }
    return s;
}

status_t ingress_request(struct ingress *ingress, struct request *request)
{
    struct job *job = calloc(1, sizeof *job);
    if (job == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory for a request");
    }
    *job = (struct job){.kind = JOB_REQUEST, .request = request, .size = request->raw_bytes};
    const status_t s = post(ingress, job);
    if (!status_is_ok(&s)) {
        free(job);
    }
    return s;
}

status_t ingress_text(struct ingress *ingress, enum ingress_text what, struct rpc_call *call,
                      const uint8_t *data, size_t size)
{
    struct job *job = calloc(1, sizeof *job);
    uint8_t *copy = malloc(size > 0 ? size : 1);
    if (job == NULL || copy == NULL) {
        free(job);
        free(copy);
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory for a text");
    }
    if (size > 0) {
        memcpy(copy, data, size);
    }
    *job = (struct job){.kind = what == INGRESS_TOKENIZE ? JOB_TOKENIZE : JOB_DETOKENIZE,
                        .call = rpc_call_acquire(call),
                        .data = copy,
                        .size = size};
    const status_t s = post(ingress, job);
    if (!status_is_ok(&s)) {
        rpc_call_release(call);
        free(copy);
        free(job);
    }
    return s;
}

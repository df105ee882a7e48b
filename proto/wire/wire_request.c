#include <string.h>

#include "proto/wire/wire_internal.h"

void wire_generate_request_init(struct wire_generate_request *m)
{
    *m = (struct wire_generate_request){
        .request_id = "",
        .model = "",
        .prompt = "",
        .cache_salt = "",
        .sampling =
            {
                .temperature = 1.0f,
                .top_p = 1.0f,
                .repetition_penalty = 1.0f,
                .n = 1,
                .length_penalty = 1.0f,
            },
        .stopping = {.max_tokens = 16},
        .output = {.skip_special_tokens = true},
    };
}

// ---- pack ----

Kvasir__V1__LogitBias **wire_pack_logit_bias(struct wire_packer *p,
                                             const struct wire_logit_bias *from, size_t n)
{
    Kvasir__V1__LogitBias **bias = wire_pack_messages(p, &kvasir__v1__logit_bias__descriptor, n);
    for (size_t i = 0; bias != NULL && i < n; i++) {
        bias[i]->token_id = from[i].token_id;
        bias[i]->bias = from[i].bias;
    }
    return bias;
}

static void pack_sampling(struct wire_packer *p, const struct wire_sampling *from,
                          Kvasir__V1__SamplingParams *to)
{
    kvasir__v1__sampling_params__init(to);
    to->_temperature_case = KVASIR__V1__SAMPLING_PARAMS___TEMPERATURE_TEMPERATURE;
    to->temperature = from->temperature;
    to->_top_p_case = KVASIR__V1__SAMPLING_PARAMS___TOP_P_TOP_P;
    to->top_p = from->top_p;
    to->top_k = from->top_k;
    to->min_p = from->min_p;
    to->_repetition_penalty_case =
        KVASIR__V1__SAMPLING_PARAMS___REPETITION_PENALTY_REPETITION_PENALTY;
    to->repetition_penalty = from->repetition_penalty;
    to->presence_penalty = from->presence_penalty;
    to->frequency_penalty = from->frequency_penalty;
    if (from->has_seed) {
        to->_seed_case = KVASIR__V1__SAMPLING_PARAMS___SEED_SEED;
        to->seed = from->seed;
    }
    to->_n_case = KVASIR__V1__SAMPLING_PARAMS___N_N;
    to->n = from->n;
    to->beam_width = from->beam_width;
    to->_length_penalty_case = KVASIR__V1__SAMPLING_PARAMS___LENGTH_PENALTY_LENGTH_PENALTY;
    to->length_penalty = from->length_penalty;
    to->early_stopping = (Kvasir__V1__SamplingParams__EarlyStopping)from->early_stopping;
    to->n_logit_bias = from->n_logit_bias;
    to->logit_bias = wire_pack_logit_bias(p, from->logit_bias, from->n_logit_bias);
    to->n_allowed_token_ids = from->allowed_token_ids.n;
    to->allowed_token_ids = wire_pack_ids(from->allowed_token_ids.ids);
}

static void pack_stopping(struct wire_packer *p, const struct wire_stopping *from,
                          Kvasir__V1__StopParams *to)
{
    kvasir__v1__stop_params__init(to);
    to->_max_tokens_case = KVASIR__V1__STOP_PARAMS___MAX_TOKENS_MAX_TOKENS;
    to->max_tokens = from->max_tokens;
    to->min_tokens = from->min_tokens;
    to->n_stop = from->n_stop;
    to->stop = wire_pack_alloc(p, from->n_stop, sizeof *to->stop);
    for (size_t i = 0; to->stop != NULL && i < from->n_stop; i++) {
        to->stop[i] = wire_pack_text(from->stop[i]);
    }
    to->n_stop_token_ids = from->stop_token_ids.n;
    to->stop_token_ids = wire_pack_ids(from->stop_token_ids.ids);
    to->ignore_eos = from->ignore_eos;
    to->include_stop_str_in_output = from->include_stop_str_in_output;
}

static void pack_output(const struct wire_output_options *from, Kvasir__V1__OutputOptions *to)
{
    kvasir__v1__output_options__init(to);
    if (from->has_logprobs) {
        to->_logprobs_case = KVASIR__V1__OUTPUT_OPTIONS___LOGPROBS_LOGPROBS;
        to->logprobs = from->logprobs;
    }
    if (from->has_prompt_logprobs) {
        to->_prompt_logprobs_case = KVASIR__V1__OUTPUT_OPTIONS___PROMPT_LOGPROBS_PROMPT_LOGPROBS;
        to->prompt_logprobs = from->prompt_logprobs;
    }
    to->_skip_special_tokens_case =
        KVASIR__V1__OUTPUT_OPTIONS___SKIP_SPECIAL_TOKENS_SKIP_SPECIAL_TOKENS;
    to->skip_special_tokens = from->skip_special_tokens;
    to->echo = from->echo;
}

static Kvasir__V1__Chat *pack_chat(struct wire_packer *p, const struct wire_generate_request *from)
{
    Kvasir__V1__Chat *chat = wire_pack_alloc(p, 1, sizeof *chat);
    Kvasir__V1__ChatMessage **messages =
        wire_pack_messages(p, &kvasir__v1__chat_message__descriptor, from->n_messages);
    if (chat == NULL || messages == NULL) {
        return NULL;
    }
    for (size_t i = 0; i < from->n_messages; i++) {
        messages[i]->role = wire_pack_text(from->messages[i].role);
        messages[i]->content = wire_pack_text(from->messages[i].content);
    }
    kvasir__v1__chat__init(chat);
    chat->n_messages = from->n_messages;
    chat->messages = messages;
    return chat;
}

static void pack_input(struct wire_packer *p, const struct wire_generate_request *from,
                       Kvasir__V1__GenerateRequest *to)
{
    switch (from->prompt_kind) {
    case WIRE_PROMPT_TEXT:
        to->input_case = KVASIR__V1__GENERATE_REQUEST__INPUT_PROMPT;
        to->prompt = wire_pack_text_n(p, "prompt", from->prompt, from->prompt_bytes);
        break;
    case WIRE_PROMPT_TOKENS: {
        Kvasir__V1__TokenIds *ids = wire_pack_alloc(p, 1, sizeof *ids);
        if (ids != NULL) {
            kvasir__v1__token_ids__init(ids);
            ids->n_ids = from->prompt_token_ids.n;
            ids->ids = wire_pack_ids(from->prompt_token_ids.ids);
        }
        to->input_case = KVASIR__V1__GENERATE_REQUEST__INPUT_PROMPT_TOKEN_IDS;
        to->prompt_token_ids = ids;
        break;
    }
    case WIRE_PROMPT_MESSAGES:
        to->input_case = KVASIR__V1__GENERATE_REQUEST__INPUT_MESSAGES;
        to->messages = pack_chat(p, from);
        break;
    default:
        break;
    }
}

status_t wire_generate_request_pack(const struct wire_generate_request *m, struct bytes *out)
{
    struct wire_packer p;
    wire_pack_begin(&p);

    Kvasir__V1__SamplingParams sampling;
    Kvasir__V1__StopParams stopping;
    Kvasir__V1__OutputOptions output;
    pack_sampling(&p, &m->sampling, &sampling);
    pack_stopping(&p, &m->stopping, &stopping);
    pack_output(&m->output, &output);

    Kvasir__V1__GenerateRequest request = KVASIR__V1__GENERATE_REQUEST__INIT;
    request.request_id = wire_pack_text(m->request_id);
    request.model = wire_pack_text(m->model);
    pack_input(&p, m, &request);
    request.sampling = &sampling;
    request.stopping = &stopping;
    request.output = &output;
    request.priority = m->priority;
    if (m->has_resume_from) {
        request._resume_from_case = KVASIR__V1__GENERATE_REQUEST___RESUME_FROM_RESUME_FROM;
        request.resume_from = m->resume_from;
    }
    request.cache_salt = wire_pack_text(m->cache_salt);
    return wire_pack_finish(&p, &request.base, out);
}

// ---- unpack ----

status_t wire_unpack_logit_bias(struct arena *arena, Kvasir__V1__LogitBias *const *from, size_t n,
                                const struct wire_logit_bias **out)
{
    void *array;
    TRY(wire_unpack_array(arena, n, sizeof **out, &array));
    struct wire_logit_bias *bias = array;
    for (size_t i = 0; i < n; i++) {
        bias[i].token_id = from[i]->token_id;
        bias[i].bias = from[i]->bias;
    }
    *out = bias;
    return status_ok();
}

/* `to` holds the defaults. */
static status_t unpack_sampling(struct arena *arena, const Kvasir__V1__SamplingParams *from,
                                struct wire_sampling *to)
{
    if (from == NULL) {
        return status_ok();
    }
    if (from->_temperature_case != 0) {
        to->temperature = from->temperature;
    }
    if (from->_top_p_case != 0) {
        to->top_p = from->top_p;
    }
    to->top_k = from->top_k;
    to->min_p = from->min_p;
    if (from->_repetition_penalty_case != 0) {
        to->repetition_penalty = from->repetition_penalty;
    }
    to->presence_penalty = from->presence_penalty;
    to->frequency_penalty = from->frequency_penalty;
    if (from->_seed_case != 0) {
        to->has_seed = true;
        to->seed = from->seed;
    }
    if (from->_n_case != 0) {
        to->n = from->n;
    }
    to->beam_width = from->beam_width;
    if (from->_length_penalty_case != 0) {
        to->length_penalty = from->length_penalty;
    }
    to->early_stopping = (int)from->early_stopping;
    to->allowed_token_ids =
        wire_unpack_token_ids(from->allowed_token_ids, from->n_allowed_token_ids);
    to->n_logit_bias = from->n_logit_bias;
    return wire_unpack_logit_bias(arena, from->logit_bias, from->n_logit_bias, &to->logit_bias);
}

static void unpack_stopping(const Kvasir__V1__StopParams *from, struct wire_stopping *to)
{
    if (from == NULL) {
        return;
    }
    if (from->_max_tokens_case != 0) {
        to->max_tokens = from->max_tokens;
    }
    to->min_tokens = from->min_tokens;
    to->stop = (const char *const *)from->stop;
    to->n_stop = from->n_stop;
    to->stop_token_ids = wire_unpack_token_ids(from->stop_token_ids, from->n_stop_token_ids);
    to->ignore_eos = from->ignore_eos;
    to->include_stop_str_in_output = from->include_stop_str_in_output;
}

static void unpack_output(const Kvasir__V1__OutputOptions *from, struct wire_output_options *to)
{
    if (from == NULL) {
        return;
    }
    if (from->_logprobs_case != 0) {
        to->has_logprobs = true;
        to->logprobs = from->logprobs;
    }
    if (from->_prompt_logprobs_case != 0) {
        to->has_prompt_logprobs = true;
        to->prompt_logprobs = from->prompt_logprobs;
    }
    if (from->_skip_special_tokens_case != 0) {
        to->skip_special_tokens = from->skip_special_tokens;
    }
    to->echo = from->echo;
}

static status_t unpack_chat(struct arena *arena, const Kvasir__V1__Chat *from,
                            struct wire_generate_request *to)
{
    void *array;
    TRY(wire_unpack_array(arena, from->n_messages, sizeof *to->messages, &array));
    struct wire_chat_message *messages = array;
    for (size_t i = 0; i < from->n_messages; i++) {
        messages[i].role = from->messages[i]->role;
        messages[i].content = from->messages[i]->content;
    }
    to->messages = messages;
    to->n_messages = from->n_messages;
    return status_ok();
}

static status_t unpack_input(struct arena *arena, const Kvasir__V1__GenerateRequest *from,
                             struct wire_generate_request *to)
{
    switch (from->input_case) {
    case KVASIR__V1__GENERATE_REQUEST__INPUT_PROMPT:
        to->prompt_kind = WIRE_PROMPT_TEXT;
        to->prompt = from->prompt;
        to->prompt_bytes = strlen(from->prompt);
        return status_ok();
    case KVASIR__V1__GENERATE_REQUEST__INPUT_PROMPT_TOKEN_IDS:
        to->prompt_kind = WIRE_PROMPT_TOKENS;
        to->prompt_token_ids =
            wire_unpack_token_ids(from->prompt_token_ids->ids, from->prompt_token_ids->n_ids);
        return status_ok();
    case KVASIR__V1__GENERATE_REQUEST__INPUT_MESSAGES:
        to->prompt_kind = WIRE_PROMPT_MESSAGES;
        return unpack_chat(arena, from->messages, to);
    default:
        return status_ok();
    }
}

status_t wire_generate_request_unpack(const uint8_t *data, size_t size, struct arena *arena,
                                      struct wire_generate_request *out)
{
    const struct wire_input in = {data, size, arena, WIRE_AMPLIFICATION};
    ProtobufCMessage *message;
    TRY(wire_unpack(&in, &kvasir__v1__generate_request__descriptor, &message));
    const Kvasir__V1__GenerateRequest *from = (const Kvasir__V1__GenerateRequest *)message;

    struct wire_generate_request m;
    wire_generate_request_init(&m);
    m.request_id = from->request_id;
    m.model = from->model;
    TRY(unpack_input(arena, from, &m));
    TRY(unpack_sampling(arena, from->sampling, &m.sampling));
    unpack_stopping(from->stopping, &m.stopping);
    unpack_output(from->output, &m.output);
    m.priority = from->priority;
    if (from->_resume_from_case != 0) {
        m.has_resume_from = true;
        m.resume_from = from->resume_from;
    }
    m.cache_salt = from->cache_salt;
    *out = m;
    return status_ok();
}

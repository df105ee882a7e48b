#include "tests/proto/wire_samples.h"

#include <string.h>

#include "kvasir/v1/cluster.pb-c.h"
#include "kvasir/v1/inference.pb-c.h"
#include "kvasir/v1/worker_link.pb-c.h"

#include "base/utf8.h"
#include "tests/proto/wire_samples_random.h"

// ---- pieces ----

size_t random_count(void)
{
    return (size_t)test_random_below(6);
}

uint64_t random_u64(void)
{
    return test_random_u64() >> test_random_below(64);
}

uint32_t random_u32(void)
{
    return (uint32_t)(test_random_u64() >> (32 + test_random_below(32)));
}

float random_float(void)
{
    return (float)test_random_double(-1000.0, 1000.0);
}

bool random_bool(void)
{
    return test_random_below(2) == 1;
}

void *random_room(struct arena *arena, size_t n, size_t size)
{
    void *room = arena_calloc(arena, n, size);
    assert_non_null(room);
    return room;
}

const char *random_text(struct arena *arena)
{
    static const uint32_t ranges[][2] = {
        {1, 0x7f}, {0x80, 0x7ff}, {0x800, 0xd7ff}, {0xe000, 0xffff}, {0x10000, 0x10ffff}};
    const size_t n = random_count() * 3;
    char *text = random_room(arena, 4 * n + 1, 1);
    size_t at = 0;
    for (size_t i = 0; i < n; i++) {
        const uint32_t *range = ranges[test_random_below(5)];
        const uint32_t code_point =
            range[0] + (uint32_t)test_random_below((uint64_t)range[1] - range[0] + 1);
        at += utf8_encode(code_point, (uint8_t *)text + at);
    }
    return text;
}

struct wire_token_ids random_ids(struct arena *arena)
{
    struct wire_token_ids ids = {.n = random_count()};
    uint32_t *values = random_room(arena, ids.n, sizeof *values);
    for (size_t i = 0; i < ids.n; i++) {
        values[i] = random_u32();
    }
    ids.ids = values;
    return ids;
}

const struct wire_logit_bias *random_logit_bias(struct arena *arena, size_t n)
{
    struct wire_logit_bias *bias = random_room(arena, n, sizeof *bias);
    for (size_t i = 0; i < n; i++) {
        bias[i].token_id = random_u32();
        bias[i].bias = random_float();
    }
    return bias;
}

const struct wire_token_info *random_token_infos(struct arena *arena, size_t n)
{
    struct wire_token_info *infos = random_room(arena, n, sizeof *infos);
    for (size_t i = 0; i < n; i++) {
        infos[i].id = random_u32();
        infos[i].has_logprob = random_bool();
        infos[i].logprob = infos[i].has_logprob ? random_float() : 0.0f;
        infos[i].rank = random_u32();
        infos[i].n_top = random_count();
        struct wire_top_logprob *top = random_room(arena, infos[i].n_top, sizeof *top);
        for (size_t j = 0; j < infos[i].n_top; j++) {
            top[j].id = random_u32();
            top[j].logprob = random_float();
        }
        infos[i].top = top;
    }
    return infos;
}

status_t random_failure(void)
{
    return status_errorf(1 + (int)test_random_below(16), "failure %u of caf\xc3\xa9", random_u32());
}

void assert_text_equal(const char *got, const char *want)
{
    assert_string_equal(got != NULL ? got : "", want != NULL ? want : "");
}

void assert_ids_equal(struct wire_token_ids got, struct wire_token_ids want)
{
    assert_int_equal(got.n, want.n);
    if (want.n > 0) {
        assert_memory_equal(got.ids, want.ids, want.n * sizeof *want.ids);
    }
}

static void assert_float_equal_bits(float got, float want)
{
    assert_memory_equal(&got, &want, sizeof want);
}

void assert_logit_bias_equal(const struct wire_logit_bias *got, const struct wire_logit_bias *want,
                             size_t n)
{
    for (size_t i = 0; i < n; i++) {
        assert_int_equal(got[i].token_id, want[i].token_id);
        assert_float_equal_bits(got[i].bias, want[i].bias);
    }
}

void assert_token_infos_equal(const struct wire_token_info *got, const struct wire_token_info *want,
                              size_t n)
{
    for (size_t i = 0; i < n; i++) {
        assert_int_equal(got[i].id, want[i].id);
        assert_int_equal(got[i].has_logprob, want[i].has_logprob);
        assert_float_equal_bits(got[i].logprob, want[i].logprob);
        assert_int_equal(got[i].rank, want[i].rank);
        assert_int_equal(got[i].n_top, want[i].n_top);
        for (size_t j = 0; j < want[i].n_top; j++) {
            assert_int_equal(got[i].top[j].id, want[i].top[j].id);
            assert_float_equal_bits(got[i].top[j].logprob, want[i].top[j].logprob);
        }
    }
}

void assert_status_equal(const status_t *got, const status_t *want)
{
    assert_int_equal(got->code, want->code);
    assert_string_equal(got->msg, want->msg);
}

// ---- GenerateRequest ----

static void fill_sampling(struct arena *arena, struct wire_sampling *s)
{
    s->temperature = random_float();
    s->top_p = random_float();
    s->top_k = (int32_t)random_u32();
    s->min_p = random_float();
    s->repetition_penalty = random_float();
    s->presence_penalty = random_float();
    s->frequency_penalty = random_float();
    s->has_seed = random_bool();
    s->seed = s->has_seed ? random_u64() : 0;
    s->n = random_u32();
    s->beam_width = random_u32();
    s->length_penalty = random_float();
    s->early_stopping = (int)test_random_below(3);
    s->n_logit_bias = random_count();
    s->logit_bias = random_logit_bias(arena, s->n_logit_bias);
    s->allowed_token_ids = random_ids(arena);
}

static void assert_sampling_equal(const struct wire_sampling *got, const struct wire_sampling *want)
{
    assert_float_equal_bits(got->temperature, want->temperature);
    assert_float_equal_bits(got->top_p, want->top_p);
    assert_int_equal(got->top_k, want->top_k);
    assert_float_equal_bits(got->min_p, want->min_p);
    assert_float_equal_bits(got->repetition_penalty, want->repetition_penalty);
    assert_float_equal_bits(got->presence_penalty, want->presence_penalty);
    assert_float_equal_bits(got->frequency_penalty, want->frequency_penalty);
    assert_int_equal(got->has_seed, want->has_seed);
    assert_true(got->seed == want->seed);
    assert_int_equal(got->n, want->n);
    assert_int_equal(got->beam_width, want->beam_width);
    assert_float_equal_bits(got->length_penalty, want->length_penalty);
    assert_int_equal(got->early_stopping, want->early_stopping);
    assert_int_equal(got->n_logit_bias, want->n_logit_bias);
    assert_logit_bias_equal(got->logit_bias, want->logit_bias, want->n_logit_bias);
    assert_ids_equal(got->allowed_token_ids, want->allowed_token_ids);
}

static void fill_stopping(struct arena *arena, struct wire_stopping *s)
{
    s->max_tokens = random_u32();
    s->min_tokens = random_u32();
    s->n_stop = random_count();
    const char **stop = random_room(arena, s->n_stop, sizeof *stop);
    for (size_t i = 0; i < s->n_stop; i++) {
        stop[i] = random_text(arena);
    }
    s->stop = stop;
    s->stop_token_ids = random_ids(arena);
    s->ignore_eos = random_bool();
    s->include_stop_str_in_output = random_bool();
}

static void assert_stopping_equal(const struct wire_stopping *got, const struct wire_stopping *want)
{
    assert_int_equal(got->max_tokens, want->max_tokens);
    assert_int_equal(got->min_tokens, want->min_tokens);
    assert_int_equal(got->n_stop, want->n_stop);
    for (size_t i = 0; i < want->n_stop; i++) {
        assert_text_equal(got->stop[i], want->stop[i]);
    }
    assert_ids_equal(got->stop_token_ids, want->stop_token_ids);
    assert_int_equal(got->ignore_eos, want->ignore_eos);
    assert_int_equal(got->include_stop_str_in_output, want->include_stop_str_in_output);
}

static void fill_prompt(struct arena *arena, struct wire_generate_request *m)
{
    m->prompt_kind = (int)test_random_below(4);
    if (m->prompt_kind == WIRE_PROMPT_TEXT) {
        m->prompt = random_text(arena);
        m->prompt_bytes = strlen(m->prompt);
    } else if (m->prompt_kind == WIRE_PROMPT_TOKENS) {
        m->prompt_token_ids = random_ids(arena);
    } else if (m->prompt_kind == WIRE_PROMPT_MESSAGES) {
        m->n_messages = random_count();
        struct wire_chat_message *messages = random_room(arena, m->n_messages, sizeof *messages);
        for (size_t i = 0; i < m->n_messages; i++) {
            messages[i].role = random_text(arena);
            messages[i].content = random_text(arena);
        }
        m->messages = messages;
    }
}

static void generate_request_fill(struct arena *arena, union wire_any *any)
{
    struct wire_generate_request *m = &any->generate_request;
    wire_generate_request_init(m);
    m->request_id = random_text(arena);
    m->model = random_text(arena);
    fill_prompt(arena, m);
    fill_sampling(arena, &m->sampling);
    fill_stopping(arena, &m->stopping);
    m->output.has_logprobs = random_bool();
    m->output.logprobs = m->output.has_logprobs ? random_u32() : 0;
    m->output.has_prompt_logprobs = random_bool();
    m->output.prompt_logprobs = m->output.has_prompt_logprobs ? random_u32() : 0;
    m->output.skip_special_tokens = random_bool();
    m->output.echo = random_bool();
    m->priority = (int32_t)random_u32();
    m->has_resume_from = random_bool();
    m->resume_from = m->has_resume_from ? random_u32() : 0;
    m->cache_salt = random_text(arena);
}

static void generate_request_assert_equal(const union wire_any *got_any,
                                          const union wire_any *want_any)
{
    const struct wire_generate_request *got = &got_any->generate_request;
    const struct wire_generate_request *want = &want_any->generate_request;
    assert_text_equal(got->request_id, want->request_id);
    assert_text_equal(got->model, want->model);
    assert_int_equal(got->prompt_kind, want->prompt_kind);
    assert_text_equal(got->prompt, want->prompt);
    assert_int_equal(got->prompt_bytes, want->prompt_bytes);
    assert_ids_equal(got->prompt_token_ids, want->prompt_token_ids);
    assert_int_equal(got->n_messages, want->n_messages);
    for (size_t i = 0; i < want->n_messages; i++) {
        assert_text_equal(got->messages[i].role, want->messages[i].role);
        assert_text_equal(got->messages[i].content, want->messages[i].content);
    }
    assert_sampling_equal(&got->sampling, &want->sampling);
    assert_stopping_equal(&got->stopping, &want->stopping);
    assert_int_equal(got->output.has_logprobs, want->output.has_logprobs);
    assert_int_equal(got->output.logprobs, want->output.logprobs);
    assert_int_equal(got->output.has_prompt_logprobs, want->output.has_prompt_logprobs);
    assert_int_equal(got->output.prompt_logprobs, want->output.prompt_logprobs);
    assert_int_equal(got->output.skip_special_tokens, want->output.skip_special_tokens);
    assert_int_equal(got->output.echo, want->output.echo);
    assert_int_equal(got->priority, want->priority);
    assert_int_equal(got->has_resume_from, want->has_resume_from);
    assert_int_equal(got->resume_from, want->resume_from);
    assert_text_equal(got->cache_salt, want->cache_salt);
}

static status_t generate_request_pack(const union wire_any *m, struct bytes *out)
{
    return wire_generate_request_pack(&m->generate_request, out);
}

static status_t generate_request_unpack(const uint8_t *data, size_t size, struct arena *arena,
                                        union wire_any *m)
{
    return wire_generate_request_unpack(data, size, arena, &m->generate_request);
}

// ---- GenerateResponse, CompleteResponse ----

static struct wire_usage random_usage(void)
{
    return (struct wire_usage){random_u32(), random_u32(), random_u32()};
}

static void assert_usage_equal(struct wire_usage got, struct wire_usage want)
{
    assert_int_equal(got.prompt_tokens, want.prompt_tokens);
    assert_int_equal(got.completion_tokens, want.completion_tokens);
    assert_int_equal(got.cached_tokens, want.cached_tokens);
}

static struct wire_finished random_finished(struct arena *arena)
{
    struct wire_finished m = {.index = random_u32(), .text = random_text(arena)};
    m.reason = (int)test_random_below(6);
    m.has_cumulative_logprob = random_bool();
    m.cumulative_logprob = m.has_cumulative_logprob ? (double)random_float() / 3 : 0.0;
    switch (test_random_below(3)) {
    case 0:
        m.has_stop_token_id = true;
        m.stop_token_id = random_u32();
        break;
    case 1:
        m.stop_text = random_text(arena);
        break;
    default:
        break;
    }
    return m;
}

static void assert_finished_equal(const struct wire_finished *got, const struct wire_finished *want)
{
    assert_int_equal(got->index, want->index);
    assert_int_equal(got->reason, want->reason);
    assert_int_equal(got->has_stop_token_id, want->has_stop_token_id);
    assert_int_equal(got->stop_token_id, want->stop_token_id);
    assert_int_equal(got->stop_text == NULL, want->stop_text == NULL);
    assert_text_equal(got->stop_text, want->stop_text);
    assert_text_equal(got->text, want->text);
    assert_int_equal(got->has_cumulative_logprob, want->has_cumulative_logprob);
    assert_true(got->cumulative_logprob == want->cumulative_logprob);
}

static void generate_response_fill(struct arena *arena, union wire_any *any)
{
    struct wire_generate_response *m = &any->generate_response;
    *m = (struct wire_generate_response){.request_id = random_text(arena)};
    m->event = (int)test_random_below(4);
    if (m->event == WIRE_EVENT_PROMPT) {
        m->prompt.token_ids = random_ids(arena);
        m->prompt.cached_tokens = random_u32();
        m->prompt.n_logprobs = random_count();
        m->prompt.logprobs = random_token_infos(arena, m->prompt.n_logprobs);
    } else if (m->event == WIRE_EVENT_TOKEN) {
        m->token.index = random_u32();
        m->token.seq = random_u32();
        m->token.text = random_text(arena);
        m->token.n_tokens = random_count();
        m->token.tokens = random_token_infos(arena, m->token.n_tokens);
    } else if (m->event == WIRE_EVENT_FINISHED) {
        m->finished = random_finished(arena);
    }
    m->has_usage = random_bool();
    if (m->has_usage) {
        m->usage = random_usage();
    }
}

static void generate_response_assert_equal(const union wire_any *got_any,
                                           const union wire_any *want_any)
{
    const struct wire_generate_response *got = &got_any->generate_response;
    const struct wire_generate_response *want = &want_any->generate_response;
    assert_text_equal(got->request_id, want->request_id);
    assert_int_equal(got->event, want->event);
    assert_ids_equal(got->prompt.token_ids, want->prompt.token_ids);
    assert_int_equal(got->prompt.cached_tokens, want->prompt.cached_tokens);
    assert_int_equal(got->prompt.n_logprobs, want->prompt.n_logprobs);
    assert_token_infos_equal(got->prompt.logprobs, want->prompt.logprobs, want->prompt.n_logprobs);
    assert_int_equal(got->token.index, want->token.index);
    assert_int_equal(got->token.seq, want->token.seq);
    assert_text_equal(got->token.text, want->token.text);
    assert_int_equal(got->token.n_tokens, want->token.n_tokens);
    assert_token_infos_equal(got->token.tokens, want->token.tokens, want->token.n_tokens);
    assert_finished_equal(&got->finished, &want->finished);
    assert_int_equal(got->has_usage, want->has_usage);
    assert_usage_equal(got->usage, want->usage);
}

static status_t generate_response_pack(const union wire_any *m, struct bytes *out)
{
    return wire_generate_response_pack(&m->generate_response, out);
}

static status_t generate_response_unpack(const uint8_t *data, size_t size, struct arena *arena,
                                         union wire_any *m)
{
    return wire_generate_response_unpack(data, size, arena, &m->generate_response);
}

static void complete_response_fill(struct arena *arena, union wire_any *any)
{
    struct wire_complete_response *m = &any->complete_response;
    *m = (struct wire_complete_response){.request_id = random_text(arena)};
    m->prompt_token_ids = random_ids(arena);
    m->n_choices = random_count();
    struct wire_choice *choices = random_room(arena, m->n_choices, sizeof *choices);
    for (size_t i = 0; i < m->n_choices; i++) {
        choices[i].text = random_text(arena);
        choices[i].n_tokens = random_count();
        choices[i].tokens = random_token_infos(arena, choices[i].n_tokens);
        choices[i].finished = random_finished(arena);
        choices[i].finished.text = "";
    }
    m->choices = choices;
    m->usage = random_usage();
    m->n_prompt_logprobs = random_count();
    m->prompt_logprobs = random_token_infos(arena, m->n_prompt_logprobs);
}

static void complete_response_assert_equal(const union wire_any *got_any,
                                           const union wire_any *want_any)
{
    const struct wire_complete_response *got = &got_any->complete_response;
    const struct wire_complete_response *want = &want_any->complete_response;
    assert_text_equal(got->request_id, want->request_id);
    assert_ids_equal(got->prompt_token_ids, want->prompt_token_ids);
    assert_int_equal(got->n_choices, want->n_choices);
    for (size_t i = 0; i < want->n_choices; i++) {
        assert_text_equal(got->choices[i].text, want->choices[i].text);
        assert_int_equal(got->choices[i].n_tokens, want->choices[i].n_tokens);
        assert_token_infos_equal(got->choices[i].tokens, want->choices[i].tokens,
                                 want->choices[i].n_tokens);
        assert_finished_equal(&got->choices[i].finished, &want->choices[i].finished);
    }
    assert_usage_equal(got->usage, want->usage);
    assert_int_equal(got->n_prompt_logprobs, want->n_prompt_logprobs);
    assert_token_infos_equal(got->prompt_logprobs, want->prompt_logprobs, want->n_prompt_logprobs);
}

static status_t complete_response_pack(const union wire_any *m, struct bytes *out)
{
    return wire_complete_response_pack(&m->complete_response, out);
}

static status_t complete_response_unpack(const uint8_t *data, size_t size, struct arena *arena,
                                         union wire_any *m)
{
    return wire_complete_response_unpack(data, size, arena, &m->complete_response);
}

// ---- tokens and model ----

static void tokenize_request_fill(struct arena *arena, union wire_any *any)
{
    struct wire_tokenize_request *m = &any->tokenize_request;
    m->text = random_text(arena);
    m->text_bytes = strlen(m->text);
    m->add_special_tokens = random_bool();
}

static void tokenize_request_assert_equal(const union wire_any *got, const union wire_any *want)
{
    assert_text_equal(got->tokenize_request.text, want->tokenize_request.text);
    assert_int_equal(got->tokenize_request.text_bytes, want->tokenize_request.text_bytes);
    assert_int_equal(got->tokenize_request.add_special_tokens,
                     want->tokenize_request.add_special_tokens);
}

static status_t tokenize_request_pack(const union wire_any *m, struct bytes *out)
{
    return wire_tokenize_request_pack(&m->tokenize_request, out);
}

static status_t tokenize_request_unpack(const uint8_t *data, size_t size, struct arena *arena,
                                        union wire_any *m)
{
    return wire_tokenize_request_unpack(data, size, arena, &m->tokenize_request);
}

static void tokenize_response_fill(struct arena *arena, union wire_any *m)
{
    m->tokenize_response = random_ids(arena);
}

static void tokenize_response_assert_equal(const union wire_any *got, const union wire_any *want)
{
    assert_ids_equal(got->tokenize_response, want->tokenize_response);
}

static status_t tokenize_response_pack(const union wire_any *m, struct bytes *out)
{
    return wire_tokenize_response_pack(&m->tokenize_response, out);
}

static status_t tokenize_response_unpack(const uint8_t *data, size_t size, struct arena *arena,
                                         union wire_any *m)
{
    return wire_tokenize_response_unpack(data, size, arena, &m->tokenize_response);
}

static void detokenize_request_fill(struct arena *arena, union wire_any *m)
{
    m->detokenize_request.token_ids = random_ids(arena);
    m->detokenize_request.skip_special_tokens = random_bool();
}

static void detokenize_request_assert_equal(const union wire_any *got, const union wire_any *want)
{
    assert_ids_equal(got->detokenize_request.token_ids, want->detokenize_request.token_ids);
    assert_int_equal(got->detokenize_request.skip_special_tokens,
                     want->detokenize_request.skip_special_tokens);
}

static status_t detokenize_request_pack(const union wire_any *m, struct bytes *out)
{
    return wire_detokenize_request_pack(&m->detokenize_request, out);
}

static status_t detokenize_request_unpack(const uint8_t *data, size_t size, struct arena *arena,
                                          union wire_any *m)
{
    return wire_detokenize_request_unpack(data, size, arena, &m->detokenize_request);
}

static void text_fill(struct arena *arena, union wire_any *m)
{
    m->text = random_text(arena);
}

static void text_assert_equal(const union wire_any *got, const union wire_any *want)
{
    assert_text_equal(got->text, want->text);
}

static status_t detokenize_response_pack(const union wire_any *m, struct bytes *out)
{
    return wire_detokenize_response_pack(m->text, out);
}

static status_t detokenize_response_unpack(const uint8_t *data, size_t size, struct arena *arena,
                                           union wire_any *m)
{
    return wire_detokenize_response_unpack(data, size, arena, &m->text);
}

static status_t plan_response_pack(const union wire_any *m, struct bytes *out)
{
    return wire_plan_response_pack(m->text, out);
}

static status_t plan_response_unpack(const uint8_t *data, size_t size, struct arena *arena,
                                     union wire_any *m)
{
    return wire_plan_response_unpack(data, size, arena, &m->text);
}

static void model_info_fill(struct arena *arena, union wire_any *any)
{
    struct wire_model_info *m = &any->model_info;
    const struct wire_token_ids kv_heads = random_ids(arena);
    *m = (struct wire_model_info){
        .name = random_text(arena),
        .architecture = random_text(arena),
        .context_length = random_u32(),
        .vocab_size = random_u32(),
        .n_layers = random_u32(),
        .n_heads = random_u32(),
        .kv_heads = kv_heads.ids,
        .n_kv_heads = kv_heads.n,
        .eos_token_ids = random_ids(arena),
        .has_chat_template = random_bool(),
        .parameters = random_u64(),
        .quantization = random_text(arena),
    };
}

static void model_info_assert_equal(const union wire_any *got_any, const union wire_any *want_any)
{
    const struct wire_model_info *got = &got_any->model_info;
    const struct wire_model_info *want = &want_any->model_info;
    assert_text_equal(got->name, want->name);
    assert_text_equal(got->architecture, want->architecture);
    assert_int_equal(got->context_length, want->context_length);
    assert_int_equal(got->vocab_size, want->vocab_size);
    assert_int_equal(got->n_layers, want->n_layers);
    assert_int_equal(got->n_heads, want->n_heads);
    assert_ids_equal((struct wire_token_ids){got->kv_heads, got->n_kv_heads},
                     (struct wire_token_ids){want->kv_heads, want->n_kv_heads});
    assert_ids_equal(got->eos_token_ids, want->eos_token_ids);
    assert_int_equal(got->has_chat_template, want->has_chat_template);
    assert_true(got->parameters == want->parameters);
    assert_text_equal(got->quantization, want->quantization);
}

static status_t model_info_pack(const union wire_any *m, struct bytes *out)
{
    return wire_model_info_pack(&m->model_info, out);
}

static status_t model_info_unpack(const uint8_t *data, size_t size, struct arena *arena,
                                  union wire_any *m)
{
    return wire_model_info_unpack(data, size, arena, &m->model_info);
}

// ---- cluster ----

static void fill_group(struct arena *arena, struct wire_group_status *g)
{
    g->group_id = random_u32();
    g->state = (int)test_random_below(5);
    g->generation = random_u32();
    g->n_ranks = random_u32();
    g->host = random_text(arena);
    g->device = random_text(arena);
    g->running = random_u32();
    g->waiting = random_u32();
    g->kv_blocks_used = random_u64();
    g->kv_blocks_total = random_u64();
    g->tokens_per_second = test_random_double(-1.0, 1e6);
    g->restarts = random_u64();
    g->heartbeat_age_seconds = test_random_double(0.0, 1e6);
}

static void assert_group_equal(const struct wire_group_status *got,
                               const struct wire_group_status *want)
{
    assert_int_equal(got->group_id, want->group_id);
    assert_int_equal(got->state, want->state);
    assert_int_equal(got->generation, want->generation);
    assert_int_equal(got->n_ranks, want->n_ranks);
    assert_text_equal(got->host, want->host);
    assert_text_equal(got->device, want->device);
    assert_int_equal(got->running, want->running);
    assert_int_equal(got->waiting, want->waiting);
    assert_true(got->kv_blocks_used == want->kv_blocks_used);
    assert_true(got->kv_blocks_total == want->kv_blocks_total);
    assert_true(got->tokens_per_second == want->tokens_per_second);
    assert_true(got->restarts == want->restarts);
    assert_true(got->heartbeat_age_seconds == want->heartbeat_age_seconds);
}

static void cluster_status_fill(struct arena *arena, union wire_any *any)
{
    struct wire_cluster_status *m = &any->cluster_status;
    *m = (struct wire_cluster_status){
        .model = random_text(arena),
        .version = random_text(arena),
        .serving = random_bool(),
        .draining = random_bool(),
        .uptime_seconds = test_random_double(0.0, 1e9),
        .n_groups = random_count(),
        .requests_running = random_u32(),
        .requests_waiting = random_u32(),
        .requests_total = random_u64(),
        .prompt_tokens_total = random_u64(),
        .generation_tokens_total = random_u64(),
        .kv_replication_factor = test_random_double(1.0, 4.0),
        .kv_bytes_per_token = test_random_double(1.0, 1e6),
    };
    struct wire_group_status *groups = random_room(arena, m->n_groups, sizeof *groups);
    for (size_t i = 0; i < m->n_groups; i++) {
        fill_group(arena, &groups[i]);
    }
    m->groups = groups;
}

static void cluster_status_assert_equal(const union wire_any *got_any,
                                        const union wire_any *want_any)
{
    const struct wire_cluster_status *got = &got_any->cluster_status;
    const struct wire_cluster_status *want = &want_any->cluster_status;
    assert_text_equal(got->model, want->model);
    assert_text_equal(got->version, want->version);
    assert_int_equal(got->serving, want->serving);
    assert_int_equal(got->draining, want->draining);
    assert_true(got->uptime_seconds == want->uptime_seconds);
    assert_int_equal(got->n_groups, want->n_groups);
    for (size_t i = 0; i < want->n_groups; i++) {
        assert_group_equal(&got->groups[i], &want->groups[i]);
    }
    assert_int_equal(got->requests_running, want->requests_running);
    assert_int_equal(got->requests_waiting, want->requests_waiting);
    assert_true(got->requests_total == want->requests_total);
    assert_true(got->prompt_tokens_total == want->prompt_tokens_total);
    assert_true(got->generation_tokens_total == want->generation_tokens_total);
    assert_true(got->kv_replication_factor == want->kv_replication_factor);
    assert_true(got->kv_bytes_per_token == want->kv_bytes_per_token);
}

static status_t cluster_status_pack(const union wire_any *m, struct bytes *out)
{
    return wire_cluster_status_pack(&m->cluster_status, out);
}

static status_t cluster_status_unpack(const uint8_t *data, size_t size, struct arena *arena,
                                      union wire_any *m)
{
    return wire_cluster_status_unpack(data, size, arena, &m->cluster_status);
}

// ---- link ----

static status_t worker_message_pack(const union wire_any *m, struct bytes *out)
{
    return wire_worker_message_pack(&m->worker_message, out);
}

static status_t worker_message_unpack(const uint8_t *data, size_t size, struct arena *arena,
                                      union wire_any *m)
{
    return wire_worker_message_unpack(data, size, arena, &m->worker_message);
}

static status_t coordinator_message_pack(const union wire_any *m, struct bytes *out)
{
    return wire_coordinator_message_pack(&m->coordinator_message, out);
}

static status_t coordinator_message_unpack(const uint8_t *data, size_t size, struct arena *arena,
                                           union wire_any *m)
{
    return wire_coordinator_message_unpack(data, size, arena, &m->coordinator_message);
}

const struct wire_kind wire_kinds[N_WIRE_KINDS] = {
    {&kvasir__v1__generate_request__descriptor, generate_request_fill, generate_request_pack,
     generate_request_unpack, generate_request_assert_equal},
    {&kvasir__v1__generate_response__descriptor, generate_response_fill, generate_response_pack,
     generate_response_unpack, generate_response_assert_equal},
    {&kvasir__v1__complete_response__descriptor, complete_response_fill, complete_response_pack,
     complete_response_unpack, complete_response_assert_equal},
    {&kvasir__v1__tokenize_request__descriptor, tokenize_request_fill, tokenize_request_pack,
     tokenize_request_unpack, tokenize_request_assert_equal},
    {&kvasir__v1__tokenize_response__descriptor, tokenize_response_fill, tokenize_response_pack,
     tokenize_response_unpack, tokenize_response_assert_equal},
    {&kvasir__v1__detokenize_request__descriptor, detokenize_request_fill, detokenize_request_pack,
     detokenize_request_unpack, detokenize_request_assert_equal},
    {&kvasir__v1__detokenize_response__descriptor, text_fill, detokenize_response_pack,
     detokenize_response_unpack, text_assert_equal},
    {&kvasir__v1__get_model_info_response__descriptor, model_info_fill, model_info_pack,
     model_info_unpack, model_info_assert_equal},
    {&kvasir__v1__get_status_response__descriptor, cluster_status_fill, cluster_status_pack,
     cluster_status_unpack, cluster_status_assert_equal},
    {&kvasir__v1__get_plan_response__descriptor, text_fill, plan_response_pack,
     plan_response_unpack, text_assert_equal},
    {&kvasir__v1__worker_message__descriptor, worker_message_fill, worker_message_pack,
     worker_message_unpack, worker_message_assert_equal},
    {&kvasir__v1__coordinator_message__descriptor, coordinator_message_fill,
     coordinator_message_pack, coordinator_message_unpack, coordinator_message_assert_equal},
};

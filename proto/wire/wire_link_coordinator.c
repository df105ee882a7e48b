#include <string.h>

#include "base/dtype.h"
#include "proto/wire/link.h"
#include "proto/wire/wire_internal.h"

_Static_assert(DTYPE_F32 == (int)KVASIR__V1__ASSIGN__DATA_TYPE__FLOAT32 &&
                   DTYPE_F16 == (int)KVASIR__V1__ASSIGN__DATA_TYPE__FLOAT16 &&
                   DTYPE_BF16 == (int)KVASIR__V1__ASSIGN__DATA_TYPE__BFLOAT16,
               "types are copied as integers");

// ---- pack ----

/* The message of one kind; one of them is used. */
union parts {
    Kvasir__V1__Assign assign;
    Kvasir__V1__Submit submit;
    Kvasir__V1__Cancel cancel;
    Kvasir__V1__Shutdown shutdown;
};

static ProtobufCBinaryData borrow(const void *data, size_t size)
{
    return (ProtobufCBinaryData){.len = size, .data = (uint8_t *)data};
}

static void pack_assign(const struct wire_assign *from, Kvasir__V1__Assign *to)
{
    const char *model_dir = wire_pack_text(from->model_dir);
    kvasir__v1__assign__init(to);
    to->group_id = from->group_id;
    to->generation = from->generation;
    to->model_dir = borrow(model_dir, strlen(model_dir));
    to->dtype = (Kvasir__V1__Assign__DataType)from->dtype;
    to->kv_dtype = (Kvasir__V1__Assign__DataType)from->kv_dtype;
    to->max_model_len = from->max_model_len;
    to->max_num_seqs = from->max_num_seqs;
    to->max_num_batched_tokens = from->max_num_batched_tokens;
    to->kv_cache_bytes = from->kv_cache_bytes;
    to->swap_space_bytes = from->swap_space_bytes;
    to->threads = from->threads;
    to->plan = borrow(from->plan, from->plan_bytes);
    to->dummy_weights = from->dummy_weights;
    to->weights_seed = from->weights_seed;
    to->gpu_memory_utilization = from->gpu_memory_utilization;
    to->prefix_caching = from->prefix_caching;
    to->quantization = (Kvasir__V1__Assign__Quantization)from->quantization;
    to->determinism = (Kvasir__V1__Assign__Determinism)from->determinism;
    to->comm = (Kvasir__V1__Assign__Comm)from->comm;
    to->collective_timeout_s = from->collective_timeout_s;
}

static void pack_submit(struct wire_packer *p, const struct wire_submit *from,
                        Kvasir__V1__Submit *to)
{
    kvasir__v1__submit__init(to);
    to->seq_id = from->seq_id;
    to->n_tokens = from->tokens.n;
    to->tokens = wire_pack_ids(from->tokens.ids);
    to->n_generated = from->n_generated;
    to->temperature = from->temperature;
    to->top_p = from->top_p;
    to->min_p = from->min_p;
    to->top_k = from->top_k;
    to->seed = from->seed;
    to->sample = from->sample;
    to->max_tokens = from->max_tokens;
    to->min_tokens = from->min_tokens;
    to->n_stop_token_ids = from->stop_token_ids.n;
    to->stop_token_ids = wire_pack_ids(from->stop_token_ids.ids);
    to->n_top = from->n_top;
    to->priority = from->priority;
    to->repetition_penalty = from->repetition_penalty;
    to->presence_penalty = from->presence_penalty;
    to->frequency_penalty = from->frequency_penalty;
    to->n_logit_bias = from->n_logit_bias;
    to->logit_bias = wire_pack_logit_bias(p, from->logit_bias, from->n_logit_bias);
    to->n_allowed_token_ids = from->allowed_token_ids.n;
    to->allowed_token_ids = wire_pack_ids(from->allowed_token_ids.ids);
    to->n_held_token_ids = from->held_token_ids.n;
    to->held_token_ids = wire_pack_ids(from->held_token_ids.ids);
    to->n_prompt_top = from->n_prompt_top;
    to->cache_salt = wire_pack_text(from->cache_salt);
    to->time_left_ns = from->time_left_ns;
    to->beam_width = from->beam_width;
    to->n_best = from->n_best;
    to->length_penalty = from->length_penalty;
    to->early_stopping = (Kvasir__V1__SamplingParams__EarlyStopping)from->early_stopping;
}

status_t wire_coordinator_message_pack(const struct wire_coordinator_message *m, struct bytes *out)
{
    struct wire_packer p;
    wire_pack_begin(&p);
    Kvasir__V1__CoordinatorMessage message = KVASIR__V1__COORDINATOR_MESSAGE__INIT;
    union parts parts;
    switch (m->kind) {
    case WIRE_COORDINATOR_ASSIGN:
        pack_assign(&m->assign, &parts.assign);
        message.message_case = KVASIR__V1__COORDINATOR_MESSAGE__MESSAGE_ASSIGN;
        message.assign = &parts.assign;
        break;
    case WIRE_COORDINATOR_SUBMIT:
        pack_submit(&p, &m->submit, &parts.submit);
        message.message_case = KVASIR__V1__COORDINATOR_MESSAGE__MESSAGE_SUBMIT;
        message.submit = &parts.submit;
        break;
    case WIRE_COORDINATOR_CANCEL:
        kvasir__v1__cancel__init(&parts.cancel);
        parts.cancel.seq_id = m->cancel_seq_id;
        message.message_case = KVASIR__V1__COORDINATOR_MESSAGE__MESSAGE_CANCEL;
        message.cancel = &parts.cancel;
        break;
    case WIRE_COORDINATOR_SHUTDOWN:
        kvasir__v1__shutdown__init(&parts.shutdown);
        message.message_case = KVASIR__V1__COORDINATOR_MESSAGE__MESSAGE_SHUTDOWN;
        message.shutdown = &parts.shutdown;
        break;
    default:
        break;
    }
    return wire_pack_finish(&p, &message.base, out);
}

// ---- unpack ----

static status_t unpack_assign(struct arena *arena, const Kvasir__V1__Assign *from,
                              struct wire_assign *to)
{
    // bytes, because a path need not be UTF-8; so the NUL check is ours.
    const ProtobufCBinaryData *dir = &from->model_dir;
    if (dir->len > 0 && memchr(dir->data, 0, dir->len) != NULL) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "assign.model_dir: contains NUL");
    }
    const char *model_dir = arena_strndup(arena, dir->len > 0 ? (char *)dir->data : "", dir->len);
    if (model_dir == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "assign.model_dir: no memory");
    }
    *to = (struct wire_assign){
        .group_id = from->group_id,
        .generation = from->generation,
        .model_dir = model_dir,
        .dtype = (int)from->dtype,
        .kv_dtype = (int)from->kv_dtype,
        .max_model_len = from->max_model_len,
        .max_num_seqs = from->max_num_seqs,
        .max_num_batched_tokens = from->max_num_batched_tokens,
        .kv_cache_bytes = from->kv_cache_bytes,
        .swap_space_bytes = from->swap_space_bytes,
        .threads = from->threads,
        .plan = from->plan.data,
        .plan_bytes = from->plan.len,
        .dummy_weights = from->dummy_weights != 0,
        .weights_seed = from->weights_seed,
        .gpu_memory_utilization = from->gpu_memory_utilization,
        .prefix_caching = from->prefix_caching != 0,
        .quantization = (int)from->quantization,
        .determinism = (int)from->determinism,
        .comm = (int)from->comm,
        .collective_timeout_s = from->collective_timeout_s,
    };
    return status_ok();
}

static status_t unpack_submit(struct arena *arena, const Kvasir__V1__Submit *from,
                              struct wire_submit *to)
{
    *to = (struct wire_submit){
        .seq_id = from->seq_id,
        .tokens = wire_unpack_token_ids(from->tokens, from->n_tokens),
        .n_generated = from->n_generated,
        .temperature = from->temperature,
        .top_p = from->top_p,
        .min_p = from->min_p,
        .top_k = from->top_k,
        .seed = from->seed,
        .sample = from->sample,
        .max_tokens = from->max_tokens,
        .min_tokens = from->min_tokens,
        .stop_token_ids = wire_unpack_token_ids(from->stop_token_ids, from->n_stop_token_ids),
        .n_top = from->n_top,
        .priority = from->priority,
        .repetition_penalty = from->repetition_penalty,
        .presence_penalty = from->presence_penalty,
        .frequency_penalty = from->frequency_penalty,
        .n_logit_bias = from->n_logit_bias,
        .allowed_token_ids =
            wire_unpack_token_ids(from->allowed_token_ids, from->n_allowed_token_ids),
        .held_token_ids = wire_unpack_token_ids(from->held_token_ids, from->n_held_token_ids),
        .n_prompt_top = from->n_prompt_top,
        .cache_salt = from->cache_salt,
        .time_left_ns = from->time_left_ns,
        .beam_width = from->beam_width,
        .n_best = from->n_best,
        .length_penalty = from->length_penalty,
        .early_stopping = (int)from->early_stopping,
    };
    return wire_unpack_logit_bias(arena, from->logit_bias, from->n_logit_bias, &to->logit_bias);
}

status_t wire_coordinator_message_unpack(const uint8_t *data, size_t size, struct arena *arena,
                                         struct wire_coordinator_message *out)
{
    const struct wire_input in = {data, size, arena, WIRE_AMPLIFICATION_LINK};
    ProtobufCMessage *message;
    TRY(wire_unpack(&in, &kvasir__v1__coordinator_message__descriptor, &message));
    const Kvasir__V1__CoordinatorMessage *from = (const Kvasir__V1__CoordinatorMessage *)message;

    struct wire_coordinator_message m = {.kind = WIRE_COORDINATOR_NONE};
    switch (from->message_case) {
    case KVASIR__V1__COORDINATOR_MESSAGE__MESSAGE_ASSIGN:
        m.kind = WIRE_COORDINATOR_ASSIGN;
        TRY(unpack_assign(arena, from->assign, &m.assign));
        break;
    case KVASIR__V1__COORDINATOR_MESSAGE__MESSAGE_SUBMIT:
        m.kind = WIRE_COORDINATOR_SUBMIT;
        TRY(unpack_submit(arena, from->submit, &m.submit));
        break;
    case KVASIR__V1__COORDINATOR_MESSAGE__MESSAGE_CANCEL:
        m.kind = WIRE_COORDINATOR_CANCEL;
        m.cancel_seq_id = from->cancel->seq_id;
        break;
    case KVASIR__V1__COORDINATOR_MESSAGE__MESSAGE_SHUTDOWN:
        m.kind = WIRE_COORDINATOR_SHUTDOWN;
        break;
    default:
        break;
    }
    *out = m;
    return status_ok();
}

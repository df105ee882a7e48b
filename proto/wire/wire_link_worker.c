#include "proto/wire/link.h"
#include "proto/wire/wire_internal.h"

// ---- pack ----

/* The message of one kind; one of them is used. */
union parts {
    Kvasir__V1__Hello hello;
    Kvasir__V1__Loading loading;
    Kvasir__V1__Ready ready;
    Kvasir__V1__StepResult step_result;
    Kvasir__V1__Load heartbeat;
};

static void pack_hello(struct wire_packer *p, const struct wire_hello *from, Kvasir__V1__Hello *to)
{
    kvasir__v1__hello__init(to);
    to->link_version = from->link_version;
    to->version = wire_pack_text(from->version);
    to->join_token = wire_pack_text(from->join_token);
    if (from->has_group) {
        Kvasir__V1__GroupId *group = wire_pack_alloc(p, 1, sizeof *group);
        if (group != NULL) {
            kvasir__v1__group_id__init(group);
            group->group_id = from->group_id;
            group->generation = from->generation;
        }
        to->group = group;
    }
    to->world_size = from->world_size;
    to->host = wire_pack_text(from->host);
    to->device = wire_pack_text(from->device);
    to->pid = from->pid;
    to->n_cores = from->n_cores;
    to->memory_bytes = from->memory_bytes;
}

static void pack_loading(const struct wire_loading *from, Kvasir__V1__Loading *to)
{
    kvasir__v1__loading__init(to);
    to->bytes_done = from->bytes_done;
    to->bytes_total = from->bytes_total;
}

static void pack_ready(const struct wire_ready *from, Kvasir__V1__Ready *to)
{
    kvasir__v1__ready__init(to);
    to->n_lanes = from->n_lanes;
    to->kv_blocks_per_lane = from->kv_blocks_per_lane;
    to->weight_bytes = from->weight_bytes;
    to->kv_bytes = from->kv_bytes;
    to->n_rank_kv_bytes = from->n_rank_kv_bytes;
    to->rank_kv_bytes = (uint64_t *)from->rank_kv_bytes; // packing only reads it
    to->load_seconds = from->load_seconds;
}

static void pack_load(const struct wire_load *from, Kvasir__V1__Load *to)
{
    kvasir__v1__load__init(to);
    to->running = from->running;
    to->waiting = from->waiting;
    to->kv_blocks_used = from->kv_blocks_used;
    to->kv_blocks_total = from->kv_blocks_total;
    to->preemptions_total = from->preemptions_total;
    to->step_age_ns = from->step_age_ns;
    to->prefix_queries_total = from->prefix_queries_total;
    to->prefix_hits_total = from->prefix_hits_total;
    to->recompute_tokens_total = from->recompute_tokens_total;
    to->swapped_out_blocks_total = from->swapped_out_blocks_total;
    to->swapped_in_blocks_total = from->swapped_in_blocks_total;
    to->prompt_tokens_total = from->prompt_tokens_total;
    to->prompt_ns_total = from->prompt_ns_total;
}

static void pack_step_result(struct wire_packer *p, const struct wire_step_result *from,
                             Kvasir__V1__StepResult *to)
{
    kvasir__v1__step_result__init(to);
    to->step = from->step;
    to->step_ns = from->step_ns;
    Kvasir__V1__Load *load = wire_pack_alloc(p, 1, sizeof *load);
    if (load != NULL) {
        pack_load(&from->load, load);
    }
    to->load = load;

    Kvasir__V1__SequenceOutput **outputs =
        wire_pack_messages(p, &kvasir__v1__sequence_output__descriptor, from->n_outputs);
    for (size_t i = 0; outputs != NULL && i < from->n_outputs; i++) {
        const struct wire_seq_output *output = &from->outputs[i];
        outputs[i]->seq_id = output->seq_id;
        outputs[i]->n_tokens = output->n_tokens;
        outputs[i]->tokens = wire_pack_token_infos(p, output->tokens, output->n_tokens);
        outputs[i]->first_position = output->first_position;
        outputs[i]->finish = (Kvasir__V1__Finished__Reason)output->finish;
        if (output->has_stop_token_id) {
            outputs[i]->_stop_token_id_case =
                KVASIR__V1__SEQUENCE_OUTPUT___STOP_TOKEN_ID_STOP_TOKEN_ID;
            outputs[i]->stop_token_id = output->stop_token_id;
        }
        outputs[i]->error = wire_pack_status(p, &output->error);
        outputs[i]->n_prompt_logprobs = output->n_prompt_logprobs;
        outputs[i]->prompt_logprobs =
            wire_pack_token_infos(p, output->prompt_logprobs, output->n_prompt_logprobs);
        outputs[i]->first_prompt_position = output->first_prompt_position;
        outputs[i]->cached_tokens = output->cached_tokens;
        if (output->has_cumulative_logprob) {
            outputs[i]->_cumulative_logprob_case =
                KVASIR__V1__SEQUENCE_OUTPUT___CUMULATIVE_LOGPROB_CUMULATIVE_LOGPROB;
            outputs[i]->cumulative_logprob = output->cumulative_logprob;
        }
    }
    to->n_outputs = from->n_outputs;
    to->outputs = outputs;
}

static void pack_part(struct wire_packer *p, const struct wire_worker_message *from,
                      union parts *parts, Kvasir__V1__WorkerMessage *to)
{
    switch (from->kind) {
    case WIRE_WORKER_HELLO:
        pack_hello(p, &from->hello, &parts->hello);
        to->message_case = KVASIR__V1__WORKER_MESSAGE__MESSAGE_HELLO;
        to->hello = &parts->hello;
        break;
    case WIRE_WORKER_LOADING:
        pack_loading(&from->loading, &parts->loading);
        to->message_case = KVASIR__V1__WORKER_MESSAGE__MESSAGE_LOADING;
        to->loading = &parts->loading;
        break;
    case WIRE_WORKER_READY:
        pack_ready(&from->ready, &parts->ready);
        to->message_case = KVASIR__V1__WORKER_MESSAGE__MESSAGE_READY;
        to->ready = &parts->ready;
        break;
    case WIRE_WORKER_STEP_RESULT:
        pack_step_result(p, &from->step_result, &parts->step_result);
        to->message_case = KVASIR__V1__WORKER_MESSAGE__MESSAGE_STEP_RESULT;
        to->step_result = &parts->step_result;
        break;
    case WIRE_WORKER_HEARTBEAT:
        pack_load(&from->heartbeat, &parts->heartbeat);
        to->message_case = KVASIR__V1__WORKER_MESSAGE__MESSAGE_HEARTBEAT;
        to->heartbeat = &parts->heartbeat;
        break;
    case WIRE_WORKER_FAILED:
        to->message_case = KVASIR__V1__WORKER_MESSAGE__MESSAGE_FAILED;
        to->failed = wire_pack_status(p, &from->failed);
        break;
    default:
        break;
    }
}

status_t wire_worker_message_pack(const struct wire_worker_message *m, struct bytes *out)
{
    struct wire_packer p;
    wire_pack_begin(&p);
    Kvasir__V1__WorkerMessage message = KVASIR__V1__WORKER_MESSAGE__INIT;
    union parts parts;
    pack_part(&p, m, &parts, &message);
    return wire_pack_finish(&p, &message.base, out);
}

// ---- unpack ----

static struct wire_hello unpack_hello(const Kvasir__V1__Hello *from)
{
    const Kvasir__V1__GroupId *group = from->group;
    return (struct wire_hello){
        .link_version = from->link_version,
        .version = from->version,
        .join_token = from->join_token,
        .has_group = group != NULL,
        .group_id = group != NULL ? group->group_id : 0,
        .generation = group != NULL ? group->generation : 0,
        .world_size = from->world_size,
        .host = from->host,
        .device = from->device,
        .pid = from->pid,
        .n_cores = from->n_cores,
        .memory_bytes = from->memory_bytes,
    };
}

static struct wire_ready unpack_ready(const Kvasir__V1__Ready *from)
{
    return (struct wire_ready){
        .n_lanes = from->n_lanes,
        .kv_blocks_per_lane = from->kv_blocks_per_lane,
        .weight_bytes = from->weight_bytes,
        .kv_bytes = from->kv_bytes,
        .rank_kv_bytes = from->rank_kv_bytes,
        .n_rank_kv_bytes = from->n_rank_kv_bytes,
        .load_seconds = from->load_seconds,
    };
}

static struct wire_load unpack_load(const Kvasir__V1__Load *from)
{
    if (from == NULL) {
        return (struct wire_load){0};
    }
    return (struct wire_load){
        .running = from->running,
        .waiting = from->waiting,
        .kv_blocks_used = from->kv_blocks_used,
        .kv_blocks_total = from->kv_blocks_total,
        .preemptions_total = from->preemptions_total,
        .step_age_ns = from->step_age_ns,
        .prefix_queries_total = from->prefix_queries_total,
        .prefix_hits_total = from->prefix_hits_total,
        .recompute_tokens_total = from->recompute_tokens_total,
        .swapped_out_blocks_total = from->swapped_out_blocks_total,
        .swapped_in_blocks_total = from->swapped_in_blocks_total,
        .prompt_tokens_total = from->prompt_tokens_total,
        .prompt_ns_total = from->prompt_ns_total,
    };
}

static status_t unpack_output(struct arena *arena, const Kvasir__V1__SequenceOutput *from,
                              struct wire_seq_output *to)
{
    to->seq_id = from->seq_id;
    to->n_tokens = from->n_tokens;
    to->first_position = from->first_position;
    to->finish = (int)from->finish;
    to->has_stop_token_id = from->_stop_token_id_case != 0;
    to->stop_token_id = to->has_stop_token_id ? from->stop_token_id : 0;
    to->error = wire_unpack_status(from->error);
    to->n_prompt_logprobs = from->n_prompt_logprobs;
    to->first_prompt_position = from->first_prompt_position;
    to->cached_tokens = from->cached_tokens;
    to->has_cumulative_logprob = from->_cumulative_logprob_case != 0;
    to->cumulative_logprob = to->has_cumulative_logprob ? from->cumulative_logprob : 0.0;
    TRY(wire_unpack_token_infos(arena, from->prompt_logprobs, from->n_prompt_logprobs,
                                &to->prompt_logprobs));
    return wire_unpack_token_infos(arena, from->tokens, from->n_tokens, &to->tokens);
}

static status_t unpack_step_result(struct arena *arena, const Kvasir__V1__StepResult *from,
                                   struct wire_step_result *to)
{
    void *array;
    TRY(wire_unpack_array(arena, from->n_outputs, sizeof *to->outputs, &array));
    struct wire_seq_output *outputs = array;
    for (size_t i = 0; i < from->n_outputs; i++) {
        TRY(unpack_output(arena, from->outputs[i], &outputs[i]));
    }
    *to = (struct wire_step_result){
        .step = from->step,
        .step_ns = from->step_ns,
        .outputs = outputs,
        .n_outputs = from->n_outputs,
        .load = unpack_load(from->load),
    };
    return status_ok();
}

static status_t unpack_part(struct arena *arena, const Kvasir__V1__WorkerMessage *from,
                            struct wire_worker_message *to)
{
    switch (from->message_case) {
    case KVASIR__V1__WORKER_MESSAGE__MESSAGE_HELLO:
        to->kind = WIRE_WORKER_HELLO;
        to->hello = unpack_hello(from->hello);
        break;
    case KVASIR__V1__WORKER_MESSAGE__MESSAGE_LOADING:
        to->kind = WIRE_WORKER_LOADING;
        to->loading.bytes_done = from->loading->bytes_done;
        to->loading.bytes_total = from->loading->bytes_total;
        break;
    case KVASIR__V1__WORKER_MESSAGE__MESSAGE_READY:
        to->kind = WIRE_WORKER_READY;
        to->ready = unpack_ready(from->ready);
        break;
    case KVASIR__V1__WORKER_MESSAGE__MESSAGE_STEP_RESULT:
        to->kind = WIRE_WORKER_STEP_RESULT;
        return unpack_step_result(arena, from->step_result, &to->step_result);
    case KVASIR__V1__WORKER_MESSAGE__MESSAGE_HEARTBEAT:
        to->kind = WIRE_WORKER_HEARTBEAT;
        to->heartbeat = unpack_load(from->heartbeat);
        break;
    case KVASIR__V1__WORKER_MESSAGE__MESSAGE_FAILED:
        to->kind = WIRE_WORKER_FAILED;
        to->failed = wire_unpack_status(from->failed);
        break;
    default:
        to->kind = WIRE_WORKER_NONE;
        break;
    }
    return status_ok();
}

status_t wire_worker_message_unpack(const uint8_t *data, size_t size, struct arena *arena,
                                    struct wire_worker_message *out)
{
    const struct wire_input in = {data, size, arena, WIRE_AMPLIFICATION_LINK};
    ProtobufCMessage *message;
    TRY(wire_unpack(&in, &kvasir__v1__worker_message__descriptor, &message));

    struct wire_worker_message m = {.failed = status_ok()};
    TRY(unpack_part(arena, (const Kvasir__V1__WorkerMessage *)message, &m));
    *out = m;
    return status_ok();
}

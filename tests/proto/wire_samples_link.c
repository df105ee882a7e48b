#include <string.h>

#include "tests/proto/wire_samples_random.h"

// ---- WorkerMessage ----

static void fill_hello(struct arena *arena, struct wire_hello *m)
{
    m->link_version = random_u32();
    m->version = random_text(arena);
    m->join_token = random_text(arena);
    m->has_group = random_bool();
    if (m->has_group) {
        m->group_id = random_u32();
        m->generation = random_u32();
    }
    m->world_size = random_u32();
    m->host = random_text(arena);
    m->device = random_text(arena);
    m->pid = random_u32();
    m->n_cores = random_u32();
    m->memory_bytes = random_u64();
}

static void assert_hello_equal(const struct wire_hello *got, const struct wire_hello *want)
{
    assert_int_equal(got->link_version, want->link_version);
    assert_text_equal(got->version, want->version);
    assert_text_equal(got->join_token, want->join_token);
    assert_int_equal(got->has_group, want->has_group);
    assert_int_equal(got->group_id, want->group_id);
    assert_int_equal(got->generation, want->generation);
    assert_int_equal(got->world_size, want->world_size);
    assert_text_equal(got->host, want->host);
    assert_text_equal(got->device, want->device);
    assert_int_equal(got->pid, want->pid);
    assert_int_equal(got->n_cores, want->n_cores);
    assert_true(got->memory_bytes == want->memory_bytes);
}

static void fill_ready(struct arena *arena, struct wire_ready *m)
{
    m->n_lanes = random_u32();
    m->kv_blocks_per_lane = random_u64();
    m->weight_bytes = random_u64();
    m->kv_bytes = random_u64();
    m->n_rank_kv_bytes = random_count();
    uint64_t *ranks = random_room(arena, m->n_rank_kv_bytes, sizeof *ranks);
    for (size_t i = 0; i < m->n_rank_kv_bytes; i++) {
        ranks[i] = random_u64();
    }
    m->rank_kv_bytes = ranks;
    m->load_seconds = test_random_double(0.0, 1e5);
}

static void assert_ready_equal(const struct wire_ready *got, const struct wire_ready *want)
{
    assert_int_equal(got->n_lanes, want->n_lanes);
    assert_true(got->kv_blocks_per_lane == want->kv_blocks_per_lane);
    assert_true(got->weight_bytes == want->weight_bytes);
    assert_true(got->kv_bytes == want->kv_bytes);
    assert_int_equal(got->n_rank_kv_bytes, want->n_rank_kv_bytes);
    for (size_t i = 0; i < want->n_rank_kv_bytes; i++) {
        assert_true(got->rank_kv_bytes[i] == want->rank_kv_bytes[i]);
    }
    assert_true(got->load_seconds == want->load_seconds);
}

static struct wire_load random_load(void)
{
    return (struct wire_load){
        .running = random_u32(),
        .waiting = random_u32(),
        .kv_blocks_used = random_u64(),
        .kv_blocks_total = random_u64(),
        .preemptions_total = random_u64(),
        .step_age_ns = random_u64(),
        .prefix_queries_total = random_u64(),
        .prefix_hits_total = random_u64(),
        .recompute_tokens_total = random_u64(),
        .swapped_out_blocks_total = random_u64(),
        .swapped_in_blocks_total = random_u64(),
        .prompt_tokens_total = random_u64(),
        .prompt_ns_total = random_u64(),
    };
}

static void assert_load_equal(const struct wire_load *got, const struct wire_load *want)
{
    assert_int_equal(got->running, want->running);
    assert_int_equal(got->waiting, want->waiting);
    assert_true(got->kv_blocks_used == want->kv_blocks_used);
    assert_true(got->kv_blocks_total == want->kv_blocks_total);
    assert_true(got->preemptions_total == want->preemptions_total);
    assert_true(got->step_age_ns == want->step_age_ns);
    assert_true(got->prefix_queries_total == want->prefix_queries_total);
    assert_true(got->prefix_hits_total == want->prefix_hits_total);
    assert_true(got->recompute_tokens_total == want->recompute_tokens_total);
    assert_true(got->swapped_out_blocks_total == want->swapped_out_blocks_total);
    assert_true(got->swapped_in_blocks_total == want->swapped_in_blocks_total);
    assert_true(got->prompt_tokens_total == want->prompt_tokens_total);
    assert_true(got->prompt_ns_total == want->prompt_ns_total);
}

static void fill_step_result(struct arena *arena, struct wire_step_result *m)
{
    m->step = random_u64();
    m->step_ns = random_u64();
    m->load = random_load();
    m->n_outputs = random_count();
    struct wire_seq_output *outputs = random_room(arena, m->n_outputs, sizeof *outputs);
    for (size_t i = 0; i < m->n_outputs; i++) {
        outputs[i].seq_id = random_u64();
        outputs[i].n_tokens = random_count();
        outputs[i].tokens = random_token_infos(arena, outputs[i].n_tokens);
        outputs[i].first_position = random_u32();
        outputs[i].finish = (int)test_random_below(6);
        outputs[i].has_stop_token_id = random_bool();
        outputs[i].stop_token_id = outputs[i].has_stop_token_id ? random_u32() : 0;
        outputs[i].error = random_bool() ? random_failure() : status_ok();
        outputs[i].n_prompt_logprobs = random_count();
        outputs[i].prompt_logprobs = random_token_infos(arena, outputs[i].n_prompt_logprobs);
        outputs[i].first_prompt_position = random_u32();
        outputs[i].cached_tokens = random_u32();
        outputs[i].has_cumulative_logprob = random_bool();
        outputs[i].cumulative_logprob =
            outputs[i].has_cumulative_logprob ? (double)random_float() / 3 : 0.0;
    }
    m->outputs = outputs;
}

static void assert_step_result_equal(const struct wire_step_result *got,
                                     const struct wire_step_result *want)
{
    assert_true(got->step == want->step);
    assert_true(got->step_ns == want->step_ns);
    assert_load_equal(&got->load, &want->load);
    assert_int_equal(got->n_outputs, want->n_outputs);
    for (size_t i = 0; i < want->n_outputs; i++) {
        const struct wire_seq_output *a = &got->outputs[i], *b = &want->outputs[i];
        assert_true(a->seq_id == b->seq_id);
        assert_int_equal(a->n_tokens, b->n_tokens);
        assert_token_infos_equal(a->tokens, b->tokens, b->n_tokens);
        assert_int_equal(a->first_position, b->first_position);
        assert_int_equal(a->finish, b->finish);
        assert_int_equal(a->has_stop_token_id, b->has_stop_token_id);
        assert_int_equal(a->stop_token_id, b->stop_token_id);
        assert_status_equal(&a->error, &b->error);
        assert_int_equal(a->n_prompt_logprobs, b->n_prompt_logprobs);
        assert_token_infos_equal(a->prompt_logprobs, b->prompt_logprobs, b->n_prompt_logprobs);
        assert_int_equal(a->first_prompt_position, b->first_prompt_position);
        assert_int_equal(a->cached_tokens, b->cached_tokens);
        assert_int_equal(a->has_cumulative_logprob, b->has_cumulative_logprob);
        assert_true(a->cumulative_logprob == b->cumulative_logprob);
    }
}

void worker_message_fill(struct arena *arena, union wire_any *any)
{
    struct wire_worker_message *m = &any->worker_message;
    *m = (struct wire_worker_message){.kind = (int)test_random_below(7), .failed = status_ok()};
    switch (m->kind) {
    case WIRE_WORKER_HELLO:
        fill_hello(arena, &m->hello);
        break;
    case WIRE_WORKER_LOADING:
        m->loading.bytes_done = random_u64();
        m->loading.bytes_total = random_u64();
        break;
    case WIRE_WORKER_READY:
        fill_ready(arena, &m->ready);
        break;
    case WIRE_WORKER_STEP_RESULT:
        fill_step_result(arena, &m->step_result);
        break;
    case WIRE_WORKER_HEARTBEAT:
        m->heartbeat = random_load();
        break;
    case WIRE_WORKER_FAILED:
        m->failed = random_failure();
        break;
    default:
        break;
    }
}

void worker_message_assert_equal(const union wire_any *got_any, const union wire_any *want_any)
{
    const struct wire_worker_message *got = &got_any->worker_message;
    const struct wire_worker_message *want = &want_any->worker_message;
    assert_int_equal(got->kind, want->kind);
    assert_hello_equal(&got->hello, &want->hello);
    assert_true(got->loading.bytes_done == want->loading.bytes_done);
    assert_true(got->loading.bytes_total == want->loading.bytes_total);
    assert_ready_equal(&got->ready, &want->ready);
    assert_step_result_equal(&got->step_result, &want->step_result);
    assert_load_equal(&got->heartbeat, &want->heartbeat);
    assert_status_equal(&got->failed, &want->failed);
}

// ---- CoordinatorMessage ----

static void fill_assign(struct arena *arena, struct wire_assign *m)
{
    m->group_id = random_u32();
    m->generation = random_u32();
    m->model_dir = random_text(arena);
    m->dtype = (int)test_random_below(3);
    m->kv_dtype = (int)test_random_below(4);
    m->quantization = (int)test_random_below(3);
    m->prefix_caching = test_random_below(2) == 0;
    m->max_model_len = random_u32();
    m->max_num_seqs = random_u32();
    m->max_num_batched_tokens = random_u32();
    m->kv_cache_bytes = random_u64();
    m->swap_space_bytes = random_u64();
    m->dummy_weights = random_count() % 2 == 0;
    m->weights_seed = random_u64();
    m->gpu_memory_utilization = (double)random_float();
    m->determinism = (int)test_random_below(2);
    m->comm = (int)test_random_below(3);
    m->collective_timeout_s = (double)random_float();
    m->threads = random_u32();
    m->plan_bytes = random_count() * 7;
    uint8_t *plan = random_room(arena, m->plan_bytes, 1);
    for (size_t i = 0; i < m->plan_bytes; i++) {
        plan[i] = (uint8_t)test_random_u64();
    }
    m->plan = plan;
}

static void assert_assign_equal(const struct wire_assign *got, const struct wire_assign *want)
{
    assert_int_equal(got->group_id, want->group_id);
    assert_int_equal(got->generation, want->generation);
    assert_text_equal(got->model_dir, want->model_dir);
    assert_int_equal(got->dtype, want->dtype);
    assert_int_equal(got->kv_dtype, want->kv_dtype);
    assert_int_equal(got->quantization, want->quantization);
    assert_int_equal(got->max_model_len, want->max_model_len);
    assert_int_equal(got->max_num_seqs, want->max_num_seqs);
    assert_int_equal(got->max_num_batched_tokens, want->max_num_batched_tokens);
    assert_true(got->kv_cache_bytes == want->kv_cache_bytes);
    assert_true(got->swap_space_bytes == want->swap_space_bytes);
    assert_true(got->dummy_weights == want->dummy_weights);
    assert_true(got->weights_seed == want->weights_seed);
    assert_true(got->prefix_caching == want->prefix_caching);
    assert_true(got->gpu_memory_utilization == want->gpu_memory_utilization);
    assert_int_equal(got->determinism, want->determinism);
    assert_int_equal(got->comm, want->comm);
    assert_true(got->collective_timeout_s == want->collective_timeout_s);
    assert_int_equal(got->threads, want->threads);
    assert_int_equal(got->plan_bytes, want->plan_bytes);
    if (want->plan_bytes > 0) {
        assert_memory_equal(got->plan, want->plan, want->plan_bytes);
    }
}

static void fill_submit(struct arena *arena, struct wire_submit *m)
{
    m->seq_id = random_u64();
    m->tokens = random_ids(arena);
    m->n_generated = random_u32();
    m->temperature = random_float();
    m->top_p = random_float();
    m->min_p = random_float();
    m->top_k = (int32_t)random_u32();
    m->seed = random_u64();
    m->sample = random_u32();
    m->max_tokens = random_u32();
    m->min_tokens = random_u32();
    m->stop_token_ids = random_ids(arena);
    m->n_top = (int32_t)test_random_below(22) - 1;
    m->priority = (int32_t)random_u32();
    m->repetition_penalty = random_float();
    m->presence_penalty = random_float();
    m->frequency_penalty = random_float();
    m->n_logit_bias = random_count();
    m->logit_bias = random_logit_bias(arena, m->n_logit_bias);
    m->allowed_token_ids = random_ids(arena);
    m->held_token_ids = random_ids(arena);
    m->cache_salt = random_text(arena);
    m->time_left_ns = random_u64();
    m->n_prompt_top = (int32_t)test_random_below(22) - 1;
    m->beam_width = random_u32();
    m->n_best = random_u32();
    m->length_penalty = random_float();
    m->early_stopping = (int)test_random_below(3);
}

static void assert_submit_equal(const struct wire_submit *got, const struct wire_submit *want)
{
    assert_true(got->seq_id == want->seq_id);
    assert_ids_equal(got->tokens, want->tokens);
    assert_int_equal(got->n_generated, want->n_generated);
    assert_true(got->temperature == want->temperature);
    assert_true(got->top_p == want->top_p);
    assert_true(got->min_p == want->min_p);
    assert_int_equal(got->top_k, want->top_k);
    assert_true(got->seed == want->seed);
    assert_int_equal(got->sample, want->sample);
    assert_int_equal(got->max_tokens, want->max_tokens);
    assert_int_equal(got->min_tokens, want->min_tokens);
    assert_ids_equal(got->stop_token_ids, want->stop_token_ids);
    assert_int_equal(got->n_top, want->n_top);
    assert_int_equal(got->priority, want->priority);
    assert_true(got->repetition_penalty == want->repetition_penalty);
    assert_true(got->presence_penalty == want->presence_penalty);
    assert_true(got->frequency_penalty == want->frequency_penalty);
    assert_int_equal(got->n_logit_bias, want->n_logit_bias);
    assert_logit_bias_equal(got->logit_bias, want->logit_bias, want->n_logit_bias);
    assert_ids_equal(got->allowed_token_ids, want->allowed_token_ids);
    assert_ids_equal(got->held_token_ids, want->held_token_ids);
    assert_text_equal(got->cache_salt, want->cache_salt);
    assert_true(got->time_left_ns == want->time_left_ns);
    assert_int_equal(got->n_prompt_top, want->n_prompt_top);
    assert_int_equal(got->beam_width, want->beam_width);
    assert_int_equal(got->n_best, want->n_best);
    assert_true(got->length_penalty == want->length_penalty);
    assert_int_equal(got->early_stopping, want->early_stopping);
}

void coordinator_message_fill(struct arena *arena, union wire_any *any)
{
    struct wire_coordinator_message *m = &any->coordinator_message;
    *m = (struct wire_coordinator_message){.kind = (int)test_random_below(5)};
    if (m->kind == WIRE_COORDINATOR_ASSIGN) {
        fill_assign(arena, &m->assign);
    } else if (m->kind == WIRE_COORDINATOR_SUBMIT) {
        fill_submit(arena, &m->submit);
    } else if (m->kind == WIRE_COORDINATOR_CANCEL) {
        m->cancel_seq_id = random_u64();
    }
}

void coordinator_message_assert_equal(const union wire_any *got_any, const union wire_any *want_any)
{
    const struct wire_coordinator_message *got = &got_any->coordinator_message;
    const struct wire_coordinator_message *want = &want_any->coordinator_message;
    assert_int_equal(got->kind, want->kind);
    assert_assign_equal(&got->assign, &want->assign);
    assert_submit_equal(&got->submit, &want->submit);
    assert_true(got->cancel_seq_id == want->cancel_seq_id);
}

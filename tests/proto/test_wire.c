/* Every message of proto/wire: there and back, cut, damaged, absent, hostile. */
#include <stdlib.h>
#include <string.h>

#include "kvasir/v1/inference.pb-c.h"

#include "proto/wire/wire_reader.h"
#include "tests/proto/wire_samples.h"

#define MAX_BYTES (16u << 20)

// ---- there and back ----

/* Which fields of which messages were seen in packed bytes. */
struct seen {
    const ProtobufCFieldDescriptor *fields[512];
    size_t n;
};

static bool was_seen(const struct seen *seen, const ProtobufCFieldDescriptor *field)
{
    for (size_t i = 0; i < seen->n; i++) {
        if (seen->fields[i] == field) {
            return true;
        }
    }
    return false;
}

static void note_fields(struct seen *seen, const ProtobufCMessageDescriptor *descriptor,
                        const uint8_t *data, size_t size)
{
    struct wire_reader r = wire_reader_of(data, size);
    struct wire_field field;
    while (wire_reader_next(&r, &field)) {
        const ProtobufCFieldDescriptor *d =
            protobuf_c_message_descriptor_get_field(descriptor, field.id);
        assert_non_null(d);
        if (!was_seen(seen, d)) {
            assert_true(seen->n < 512);
            seen->fields[seen->n] = d;
            seen->n++;
        }
        if (d->type == PROTOBUF_C_TYPE_MESSAGE) {
            note_fields(seen, d->descriptor, field.data, field.size);
        }
    }
    assert_false(r.malformed);
}

static void assert_all_seen(const struct seen *seen, const ProtobufCMessageDescriptor *descriptor)
{
    for (unsigned i = 0; i < descriptor->n_fields; i++) {
        const ProtobufCFieldDescriptor *field = &descriptor->fields[i];
        if (!was_seen(seen, field)) {
            fail_msg("%s.%s is never packed", descriptor->name, field->name);
        }
        if (field->type == PROTOBUF_C_TYPE_MESSAGE) {
            assert_all_seen(seen, field->descriptor);
        }
    }
}

static void round_trip(const struct wire_kind *kind, struct seen *seen)
{
    struct arena made, parsed;
    struct bytes packed, again;
    union wire_any want, got;
    arena_init(&made, MAX_BYTES);
    arena_init(&parsed, MAX_BYTES);
    bytes_init(&packed, MAX_BYTES);
    bytes_init(&again, MAX_BYTES);
    memset(&want, 0, sizeof want);
    memset(&got, 0x5a, sizeof got);

    kind->fill(&made, &want);
    assert_status_ok(bytes_append_str(&packed, "before")); // pack appends
    assert_status_ok(kind->pack(&want, &packed));
    assert_memory_equal(packed.data, "before", 6);
    note_fields(seen, kind->descriptor, packed.data + 6, packed.size - 6);
    assert_status_ok(kind->unpack(packed.data + 6, packed.size - 6, &parsed, &got));
    kind->assert_equal(&got, &want);
    assert_status_ok(kind->pack(&got, &again));
    assert_int_equal(again.size, packed.size - 6);
    assert_memory_equal(again.data != NULL ? again.data : (uint8_t *)"", packed.data + 6,
                        again.size);

    bytes_destroy(&again);
    bytes_destroy(&packed);
    arena_destroy(&parsed);
    arena_destroy(&made);
}

static void test_wire_round_trips_every_field_of_every_message(void **state)
{
    (void)state;
    struct seen *seen = calloc(1, sizeof *seen);
    for (int i = 0; i < 300; i++) {
        for (size_t k = 0; k < N_WIRE_KINDS; k++) {
            round_trip(&wire_kinds[k], seen);
        }
    }
    for (size_t k = 0; k < N_WIRE_KINDS; k++) {
        assert_all_seen(seen, wire_kinds[k].descriptor);
    }
    free(seen);
}

// ---- damaged ----

static void unpack_any(const struct wire_kind *kind, const uint8_t *data, size_t size)
{
    // A copy of exactly this size: the address sanitizer sees one byte too far.
    uint8_t *copy = malloc(size > 0 ? size : 1);
    memcpy(copy, data, size);
    struct arena arena;
    arena_init(&arena, MAX_BYTES);
    union wire_any m;
    const status_t s = kind->unpack(copy, size, &arena, &m);
    if (status_is_ok(&s)) {
        // What was accepted can be sent on: no text in it is invalid.
        struct bytes out;
        bytes_init(&out, MAX_BYTES);
        assert_status_ok(kind->pack(&m, &out));
        bytes_destroy(&out);
    } else if (s.code != STATUS_INVALID_ARGUMENT && s.code != STATUS_RESOURCE_EXHAUSTED) {
        fail_msg("%s: %s", status_code_name(s.code), s.msg);
    }
    arena_destroy(&arena);
    free(copy);
}

static void make_sample(const struct wire_kind *kind, struct arena *arena, struct bytes *out)
{
    union wire_any m;
    memset(&m, 0, sizeof m);
    kind->fill(arena, &m);
    assert_status_ok(kind->pack(&m, out));
}

static void test_wire_survives_truncation_at_every_byte(void **state)
{
    (void)state;
    for (size_t k = 0; k < N_WIRE_KINDS; k++) {
        for (int i = 0; i < 6; i++) {
            struct arena arena;
            struct bytes packed;
            arena_init(&arena, MAX_BYTES);
            bytes_init(&packed, MAX_BYTES);
            make_sample(&wire_kinds[k], &arena, &packed);
            for (size_t size = 0; size <= packed.size; size++) {
                unpack_any(&wire_kinds[k], packed.data, size);
            }
            bytes_destroy(&packed);
            arena_destroy(&arena);
        }
    }
}

static void mutate(struct bytes *b)
{
    const size_t n = 1 + (size_t)test_random_below(4);
    for (size_t i = 0; i < n && b->size > 0; i++) {
        const size_t at = (size_t)test_random_below(b->size);
        switch (test_random_below(4)) {
        case 0:
            b->data[at] = (uint8_t)test_random_u64();
            break;
        case 1:
            b->data[at] ^= (uint8_t)(1u << test_random_below(8));
            break;
        case 2: // takes a byte out
            memmove(b->data + at, b->data + at + 1, b->size - at - 1);
            b->size--;
            break;
        default: // a huge varint
            memset(b->data + at, 0xff, b->size - at < 9 ? b->size - at : 9);
            break;
        }
    }
}

static void test_wire_survives_random_damage(void **state)
{
    (void)state;
    for (int i = 0; i < 12000; i++) {
        const struct wire_kind *kind = &wire_kinds[test_random_below(N_WIRE_KINDS)];
        struct arena arena;
        struct bytes packed;
        arena_init(&arena, MAX_BYTES);
        bytes_init(&packed, MAX_BYTES);
        make_sample(kind, &arena, &packed);
        mutate(&packed);
        // Also as if it were another message.
        unpack_any(i % 4 == 0 ? &wire_kinds[test_random_below(N_WIRE_KINDS)] : kind,
                   packed.data != NULL ? packed.data : (const uint8_t *)"", packed.size);
        bytes_destroy(&packed);
        arena_destroy(&arena);
    }
}

// ---- absent ----

static void test_wire_absent_fields_have_their_defaults(void **state)
{
    (void)state;
    struct arena arena;
    arena_init(&arena, MAX_BYTES);
    struct wire_generate_request r;
    memset(&r, 0x5a, sizeof r);
    assert_status_ok(wire_generate_request_unpack(NULL, 0, &arena, &r));
    assert_string_equal(r.request_id, "");
    assert_string_equal(r.model, "");
    assert_string_equal(r.cache_salt, "");
    assert_string_equal(r.prompt, "");
    assert_int_equal(r.prompt_kind, WIRE_PROMPT_NONE);
    assert_true(r.sampling.temperature == 1.0f);
    assert_true(r.sampling.top_p == 1.0f);
    assert_int_equal(r.sampling.top_k, 0);
    assert_true(r.sampling.min_p == 0.0f);
    assert_true(r.sampling.repetition_penalty == 1.0f);
    assert_true(r.sampling.presence_penalty == 0.0f);
    assert_true(r.sampling.frequency_penalty == 0.0f);
    assert_false(r.sampling.has_seed);
    assert_int_equal(r.sampling.n, 1);
    assert_int_equal(r.sampling.beam_width, 0);
    assert_true(r.sampling.length_penalty == 1.0f);
    assert_int_equal(r.stopping.max_tokens, 16);
    assert_int_equal(r.stopping.min_tokens, 0);
    assert_false(r.output.has_logprobs);
    assert_false(r.output.has_prompt_logprobs);
    assert_true(r.output.skip_special_tokens);
    assert_false(r.output.echo);
    assert_false(r.has_resume_from);

    // The same with the sub-messages there and empty: sampling = 6, stopping = 7, output = 8.
    struct wire_generate_request with_empty;
    static const uint8_t empty[] = {0x32, 0, 0x3a, 0, 0x42, 0};
    assert_status_ok(wire_generate_request_unpack(empty, sizeof empty, &arena, &with_empty));
    assert_true(with_empty.sampling.temperature == 1.0f);
    assert_int_equal(with_empty.stopping.max_tokens, 16);
    assert_true(with_empty.output.skip_special_tokens);

    // Zero, said aloud, is zero: temperature = 1 of sampling, fixed 32.
    static const uint8_t zero[] = {0x32, 5, 0x0d, 0, 0, 0, 0};
    assert_status_ok(wire_generate_request_unpack(zero, sizeof zero, &arena, &with_empty));
    assert_true(with_empty.sampling.temperature == 0.0f);

    struct wire_tokenize_request tokenize;
    assert_status_ok(wire_tokenize_request_unpack(NULL, 0, &arena, &tokenize));
    assert_true(tokenize.add_special_tokens);
    struct wire_detokenize_request detokenize;
    assert_status_ok(wire_detokenize_request_unpack(NULL, 0, &arena, &detokenize));
    assert_true(detokenize.skip_special_tokens);
    struct wire_worker_message worker;
    assert_status_ok(wire_worker_message_unpack(NULL, 0, &arena, &worker));
    assert_int_equal(worker.kind, WIRE_WORKER_NONE);
    struct wire_coordinator_message coordinator;
    assert_status_ok(wire_coordinator_message_unpack(NULL, 0, &arena, &coordinator));
    assert_int_equal(coordinator.kind, WIRE_COORDINATOR_NONE);
    struct wire_generate_response response;
    assert_status_ok(wire_generate_response_unpack(NULL, 0, &arena, &response));
    assert_int_equal(response.event, WIRE_EVENT_NONE);
    assert_false(response.has_usage);
    arena_destroy(&arena);
}

// ---- text and enums ----

static void assert_request_refused(const void *data, size_t size, const char *text)
{
    struct arena arena;
    arena_init(&arena, MAX_BYTES);
    struct wire_generate_request r;
    assert_status_says(wire_generate_request_unpack(data, size, &arena, &r),
                       STATUS_INVALID_ARGUMENT, text);
    arena_destroy(&arena);
}

static void test_wire_names_the_field_that_is_not_text(void **state)
{
    (void)state;
    // prompt = 3, messages = 5 {messages = 1 {role = 1, content = 2}}, stopping = 7 {stop = 3}
    assert_request_refused("\x1a\x03"
                           "ab\xff",
                           5, "prompt: not UTF-8 at byte 2");
    assert_request_refused("\x1a\x03"
                           "a\0b",
                           5, "prompt: NUL at byte 1");
    assert_request_refused("\x1a\x02\xc3\x28", 4, "prompt: not UTF-8 at byte 0");
    assert_request_refused("\x1a\x03\xed\xa0\x80", 5, "prompt: not UTF-8 at byte 0"); // surrogate
    assert_request_refused("\x2a\x09"
                           "\x0a\x02\x0a\x00"
                           "\x0a\x03\x12\x01\xfe",
                           11, "messages.messages[1].content: not UTF-8 at byte 0");
    assert_request_refused("\x3a\x0a"
                           "\x1a\x01"
                           "a"
                           "\x1a\x01"
                           "b"
                           "\x1a\x02\x80"
                           "c",
                           12, "stopping.stop[2]: not UTF-8 at byte 0");
    // Two halves of one sub-message: each is checked.
    assert_request_refused("\x3a\x00\x3a\x03\x1a\x01\xff", 7, "stopping.stop[0]: not UTF-8");
    assert_request_refused("\x1a\x05"
                           "abc",
                           5, "GenerateRequest: malformed protobuf");
    assert_request_refused("\x3a\x02\x1a\x05", 4, "stopping: malformed protobuf");
}

static void test_wire_refuses_unknown_enum_values(void **state)
{
    (void)state;
    struct arena arena;
    arena_init(&arena, MAX_BYTES);
    struct wire_generate_response r;
    // finished = 4 {reason = 2}
    assert_status_says(
        wire_generate_response_unpack((const uint8_t *)"\x22\x02\x10\x63", 4, &arena, &r),
        STATUS_INVALID_ARGUMENT, "finished.reason: 99 is no Reason");
    assert_status_ok(
        wire_generate_response_unpack((const uint8_t *)"\x22\x02\x10\x05", 4, &arena, &r));
    assert_int_equal(r.finished.reason, WIRE_FINISH_ERROR);
    struct wire_cluster_status status;
    // groups = 6 {state = 2}, -1
    assert_status_says(wire_cluster_status_unpack(
                           (const uint8_t *)"\x32\x0b\x10\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
                           13, &arena, &status),
                       STATUS_INVALID_ARGUMENT, "groups[0].state: -1 is no State");
    arena_destroy(&arena);

    assert_string_equal(wire_finish_reason_name(WIRE_FINISH_STOP), "stop");
    assert_string_equal(wire_finish_reason_name(WIRE_FINISH_ERROR), "error");
    assert_string_equal(wire_finish_reason_name(6), "unknown");
    assert_string_equal(wire_finish_reason_name(-1), "unknown");
    assert_string_equal(wire_group_state_name(WIRE_GROUP_LOST), "lost");
    assert_string_equal(wire_group_state_name(5), "unknown");
}

static void test_wire_pack_refuses_what_is_not_text(void **state)
{
    (void)state;
    struct bytes out;
    bytes_init(&out, 1024);
    assert_status_ok(bytes_append_str(&out, "keep"));
    struct wire_generate_request r;
    wire_generate_request_init(&r);
    r.prompt_kind = WIRE_PROMPT_TEXT;
    r.prompt = "a\0b";
    r.prompt_bytes = 3;
    assert_status_says(wire_generate_request_pack(&r, &out), STATUS_INVALID_ARGUMENT,
                       "prompt: NUL at byte 1");
    r.prompt = "caf\xe9 and more";
    r.prompt_bytes = 4;
    assert_status_says(wire_generate_request_pack(&r, &out), STATUS_INVALID_ARGUMENT,
                       "prompt: not UTF-8 at byte 3");
    r.prompt_bytes = 3; // not NUL-terminated there, and need not be
    assert_status_ok(wire_generate_request_pack(&r, &out));
    bytes_destroy(&out);

    bytes_init(&out, 20);
    assert_status_ok(bytes_append_str(&out, "keep"));
    assert_status_code(wire_detokenize_response_pack("longer than what is left", &out),
                       STATUS_RESOURCE_EXHAUSTED);
    assert_int_equal(out.size, 4);
    bytes_destroy(&out);
}

static void test_wire_status_messages_become_text(void **state)
{
    (void)state;
    struct wire_worker_message m = {.kind = WIRE_WORKER_FAILED, .failed = status_ok()}, got;
    m.failed = status_errorf(STATUS_DATA_LOSS, "no such file: /models/\xff\xfe/caf\xc3\xa9");
    struct bytes out;
    struct arena arena;
    bytes_init(&out, MAX_BYTES);
    arena_init(&arena, MAX_BYTES);
    assert_status_ok(wire_worker_message_pack(&m, &out));
    assert_status_ok(wire_worker_message_unpack(out.data, out.size, &arena, &got));
    assert_int_equal(got.failed.code, STATUS_DATA_LOSS);
    assert_string_equal(got.failed.msg, "no such file: /models/?\?/caf\xc3\xa9");

    // failed = 6 {code = 1: 77}: a code that is none
    assert_status_ok(
        wire_worker_message_unpack((const uint8_t *)"\x32\x02\x08\x4d", 4, &arena, &got));
    assert_int_equal(got.failed.code, STATUS_UNKNOWN);
    // model_dir is bytes: assign = 1 {model_dir = 3}
    struct wire_coordinator_message assign;
    assert_status_says(wire_coordinator_message_unpack((const uint8_t *)"\x0a\x05\x1a\x03/\0a", 7,
                                                       &arena, &assign),
                       STATUS_INVALID_ARGUMENT, "assign.model_dir");
    assert_status_ok(wire_coordinator_message_unpack((const uint8_t *)"\x0a\x05\x1a\x03/\xff/", 7,
                                                     &arena, &assign));
    assert_string_equal(assign.assign.model_dir, "/\xff/");
    bytes_destroy(&out);
    arena_destroy(&arena);
}

// ---- memory ----

/* `outer` { n times `inner` } */
static void put_many(struct bytes *out, uint8_t outer_tag, const char *inner, size_t inner_size,
                     size_t n)
{
    const size_t size = n * inner_size;
    const uint8_t head[] = {outer_tag, (uint8_t)(size | 0x80), (uint8_t)(size >> 7 | 0x80),
                            (uint8_t)(size >> 14 | 0x80), (uint8_t)(size >> 21)};
    assert_status_ok(bytes_append(out, head, sizeof head));
    for (size_t i = 0; i < n; i++) {
        assert_status_ok(bytes_append(out, inner, inner_size));
    }
}

static void test_wire_memory_is_bounded_by_the_message(void **state)
{
    (void)state;
    struct bytes out;
    struct arena arena;
    bytes_init(&out, MAX_BYTES);
    arena_init(&arena, 1u << 30);
    struct wire_generate_request r;

    // A million empty LogitBias: sampling = 6 {logit_bias = 12}
    put_many(&out, 0x32, "\x62\x00", 2, 1u << 20);
    assert_status_says(wire_generate_request_unpack(out.data, out.size, &arena, &r),
                       STATUS_RESOURCE_EXHAUSTED, "GenerateRequest: 2097157 bytes");
    assert_true(arena.used_bytes <= out.size * WIRE_AMPLIFICATION + WIRE_AMPLIFICATION_BASE);
    // A million unknown fields.
    arena_reset(&arena);
    bytes_clear(&out);
    put_many(&out, 0x32, "\xf8\x07\x01", 3, 1u << 20);
    assert_status_code(wire_generate_request_unpack(out.data, out.size, &arena, &r),
                       STATUS_RESOURCE_EXHAUSTED);
    assert_true(arena.used_bytes <= out.size * WIRE_AMPLIFICATION + WIRE_AMPLIFICATION_BASE);
    // The arena's own limit comes first when it is smaller.
    arena_destroy(&arena);
    arena_init(&arena, 1000);
    assert_status_code(wire_generate_request_unpack(out.data, out.size, &arena, &r),
                       STATUS_RESOURCE_EXHAUSTED);
    arena_destroy(&arena);
    bytes_destroy(&out);
}

static void test_wire_honest_large_messages_fit(void **state)
{
    (void)state;
    struct bytes out;
    struct arena arena;
    bytes_init(&out, MAX_BYTES);
    arena_init(&arena, 64u << 20);

    // A prompt of 128k small token ids and a long list of biases.
    struct wire_generate_request r, got;
    wire_generate_request_init(&r);
    uint32_t *ids = calloc(1u << 17, sizeof *ids);
    struct wire_logit_bias bias[2048];
    for (uint32_t i = 0; i < 1u << 17; i++) {
        ids[i] = i % 100;
    }
    for (uint32_t i = 0; i < 2048; i++) {
        bias[i] = (struct wire_logit_bias){.token_id = i * 15, .bias = -1.0f};
    }
    r.prompt_kind = WIRE_PROMPT_TOKENS;
    r.prompt_token_ids = (struct wire_token_ids){ids, 1u << 17};
    r.sampling.logit_bias = bias;
    r.sampling.n_logit_bias = 2048;
    assert_status_ok(wire_generate_request_pack(&r, &out));
    assert_status_ok(wire_generate_request_unpack(out.data, out.size, &arena, &got));
    assert_int_equal(got.prompt_token_ids.n, 1u << 17);
    assert_int_equal(got.sampling.n_logit_bias, 2048);
    bytes_clear(&out);
    r.prompt_kind = WIRE_PROMPT_NONE;
    assert_status_ok(wire_generate_request_pack(&r, &out));
    assert_status_ok(wire_generate_request_unpack(out.data, out.size, &arena, &got));
    free(ids);

    // A step of 4096 sequences with one token each.
    arena_reset(&arena);
    bytes_clear(&out);
    struct wire_seq_output *outputs = calloc(4096, sizeof *outputs);
    struct wire_token_info token = {.id = 7};
    for (uint32_t i = 0; i < 4096; i++) {
        outputs[i] = (struct wire_seq_output){
            .seq_id = i, .tokens = &token, .n_tokens = 1, .error = status_ok()};
    }
    struct wire_worker_message m = {.kind = WIRE_WORKER_STEP_RESULT, .failed = status_ok()}, seen;
    m.step_result.outputs = outputs;
    m.step_result.n_outputs = 4096;
    assert_status_ok(wire_worker_message_pack(&m, &out));
    assert_status_ok(wire_worker_message_unpack(out.data, out.size, &arena, &seen));
    assert_int_equal(seen.step_result.n_outputs, 4096);
    free(outputs);
    bytes_destroy(&out);
    arena_destroy(&arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_wire_round_trips_every_field_of_every_message),
        cmocka_unit_test(test_wire_survives_truncation_at_every_byte),
        cmocka_unit_test(test_wire_survives_random_damage),
        cmocka_unit_test(test_wire_absent_fields_have_their_defaults),
        cmocka_unit_test(test_wire_names_the_field_that_is_not_text),
        cmocka_unit_test(test_wire_refuses_unknown_enum_values),
        cmocka_unit_test(test_wire_pack_refuses_what_is_not_text),
        cmocka_unit_test(test_wire_status_messages_become_text),
        cmocka_unit_test(test_wire_memory_is_bounded_by_the_message),
        cmocka_unit_test(test_wire_honest_large_messages_fit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

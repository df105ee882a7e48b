#include "coordinator/answer.h"

#include <string.h>

#include "base/utf8.h"
#include "tests/coordinator/tiny_model.h"
#include "tests/support/test.h"

struct fixture {
    char dir[TEST_PATH_BYTES];
    struct tokenizer *tokenizer;
};

static int setup(void **state)
{
    static struct fixture f;
    test_tmpdir(f.dir);
    tiny_model_write(f.dir);
    assert_status_ok(tokenizer_load(f.dir, &f.tokenizer));
    *state = &f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    tokenizer_free(f->tokenizer);
    test_tmpdir_remove(f->dir);
    return 0;
}

/* What a stream has shown so far. */
struct shown {
    char text[1024];
    size_t n_text;
    uint32_t n_events;
};

static void show(struct shown *shown, struct bytes *message)
{
    struct arena arena;
    struct wire_generate_response m;
    arena_init(&arena, 1 << 20);
    assert_status_ok(wire_generate_response_unpack(message->data, message->size, &arena, &m));
    const char *text = m.event == WIRE_EVENT_TOKEN ? m.token.text : m.finished.text;
    if (m.event == WIRE_EVENT_TOKEN) {
        assert_int_equal(m.token.seq, shown->n_events);
        shown->n_events++;
    }
    const size_t size = strlen(text);
    assert_true(utf8_is_valid((const uint8_t *)text, size));
    memcpy(shown->text + shown->n_text, text, size + 1);
    shown->n_text += size;
    bytes_clear(message);
    arena_destroy(&arena);
}

static const uint32_t prompt_ids[] = {1, 2, 3};
static const struct wire_token_ids prompt = {prompt_ids, 3};

/* Speaks the text byte by byte; returns how many bytes were taken until a stop string was hit. */
static size_t speak(struct answer *a, const char *text, struct shown *shown, int *stop)
{
    struct bytes message;
    bytes_init(&message, 1 << 20);
    *stop = SESSION_NO_STOP;
    size_t i = 0;
    while (text[i] != '\0' && *stop == SESSION_NO_STOP) {
        const struct wire_token_info token = {.id = (uint8_t)text[i++]};
        assert_status_ok(answer_token(a, 0, &token, 0, &message, stop));
        show(shown, &message);
    }
    bytes_destroy(&message);
    return i;
}

static int finish(struct answer *a, int reason, int stop, struct shown *shown)
{
    struct bytes message;
    bytes_init(&message, 1 << 20);
    const struct wire_finished end = {.reason = reason};
    int told = WIRE_FINISH_NONE;
    assert_status_ok(answer_finish(a, &end, stop, &message, &told));
    show(shown, &message);
    bytes_destroy(&message);
    return told;
}

static void begin(struct answer *a, void **state, const char *const *stop, size_t n_stop,
                  uint32_t min_tokens, bool include)
{
    const struct fixture *f = *state;
    struct wire_generate_request request;
    wire_generate_request_init(&request);
    request.request_id = "r";
    request.stopping.stop = stop;
    request.stopping.n_stop = n_stop;
    request.stopping.min_tokens = min_tokens;
    request.stopping.include_stop_str_in_output = include;
    assert_status_ok(answer_init(a, ANSWER_STREAM, &request, &prompt, f->tokenizer));
}

static void test_answer_never_splits_a_character(void **state)
{
    struct answer a;
    struct shown shown = {0};
    int stop;
    begin(&a, state, NULL, 0, 0, false);
    const char *text = "a\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80z";
    speak(&a, text, &shown, &stop);
    assert_string_equal(shown.text, text);
    assert_int_equal(shown.n_events, strlen(text)); // one event per token, text or not
    assert_int_equal(finish(&a, WIRE_FINISH_LENGTH, SESSION_NO_STOP, &shown), WIRE_FINISH_LENGTH);
    assert_string_equal(shown.text, text);
    answer_destroy(&a);
}

static void test_answer_shows_half_a_character_at_the_end_as_a_replacement(void **state)
{
    struct answer a;
    struct shown shown = {0};
    int stop;
    begin(&a, state, NULL, 0, 0, false);
    speak(&a, "ok\xe2\x82", &shown, &stop);
    assert_string_equal(shown.text, "ok");
    finish(&a, WIRE_FINISH_LENGTH, SESSION_NO_STOP, &shown);
    assert_string_equal(shown.text, "ok\xef\xbf\xbd");
    answer_destroy(&a);
}

static void test_answer_stops_at_a_string_across_tokens(void **state)
{
    struct answer a;
    struct shown shown = {0};
    int stop;
    const char *const stops[] = {"zzz", "END"};
    begin(&a, state, stops, 2, 0, false);
    const size_t taken = speak(&a, "one ENENDtwo", &shown, &stop);
    assert_int_equal(stop, 1);
    assert_int_equal(taken, strlen("one ENEND"));
    assert_int_equal(finish(&a, WIRE_FINISH_LENGTH, stop, &shown), WIRE_FINISH_STOP);
    assert_string_equal(shown.text, "one EN");
    answer_destroy(&a);
}

static void test_answer_shows_the_stop_string_when_asked(void **state)
{
    struct answer a;
    struct shown shown = {0};
    int stop;
    const char *const stops[] = {"END"};
    begin(&a, state, stops, 1, 0, true);
    speak(&a, "one ENDtwo", &shown, &stop);
    finish(&a, WIRE_FINISH_LENGTH, stop, &shown);
    assert_string_equal(shown.text, "one END");
    answer_destroy(&a);
}

static void test_answer_shows_what_was_held_back_at_the_end(void **state)
{
    struct answer a;
    struct shown shown = {0};
    int stop;
    const char *const stops[] = {"END"};
    begin(&a, state, stops, 1, 0, false);
    speak(&a, "one EN", &shown, &stop);
    assert_string_equal(shown.text, "one ");
    assert_int_equal(finish(&a, WIRE_FINISH_LENGTH, stop, &shown), WIRE_FINISH_LENGTH);
    assert_string_equal(shown.text, "one EN");
    answer_destroy(&a);
}

static void test_answer_ignores_stop_strings_up_to_min_tokens(void **state)
{
    struct answer a;
    struct shown shown = {0};
    int stop;
    const char *const stops[] = {"x"};
    begin(&a, state, stops, 1, 4, false);
    assert_int_equal(speak(&a, "xxxxabx", &shown, &stop), 7);
    assert_int_equal(stop, 0);
    finish(&a, WIRE_FINISH_LENGTH, stop, &shown);
    assert_string_equal(shown.text, "xxxxab");
    answer_destroy(&a);
}

static void test_answer_hides_the_stop_token_and_counts_it(void **state)
{
    struct answer a;
    struct shown shown = {0};
    int stop;
    struct bytes message;
    begin(&a, state, NULL, 0, 0, false);
    speak(&a, "hi", &shown, &stop);
    bytes_init(&message, 1 << 20);
    const struct wire_token_info last = {.id = '!'};
    assert_status_ok(answer_token(&a, 0, &last, ANSWER_LAST, &message, &stop));
    show(&shown, &message);
    assert_int_equal(stop, SESSION_NO_STOP);
    finish(&a, WIRE_FINISH_STOP, stop, &shown);
    assert_string_equal(shown.text, "hi");
    assert_int_equal(a.choices[0].n_tokens, 3);
    bytes_destroy(&message);
    answer_destroy(&a);
}

static void test_answer_shows_nul_bytes_and_ids_without_text(void **state)
{
    struct answer a;
    struct shown shown = {0};
    int stop;
    struct bytes message;
    begin(&a, state, NULL, 0, 0, false);
    bytes_init(&message, 1 << 20);
    const uint32_t ids[] = {'a', 0, TINY_VOCAB - 1, TINY_EOS, 'b'};
    for (size_t i = 0; i < 5; i++) {
        const struct wire_token_info token = {.id = ids[i]};
        assert_status_ok(answer_token(&a, 0, &token, 0, &message, &stop));
        show(&shown, &message);
    }
    assert_string_equal(shown.text, "a\xef\xbf\xbd"
                                    "b");
    bytes_destroy(&message);
    answer_destroy(&a);
}

static void test_answer_whole_keeps_everything(void **state)
{
    const struct fixture *f = *state;
    struct wire_generate_request request;
    wire_generate_request_init(&request);
    request.request_id = "whole";
    request.output.has_logprobs = true;
    struct answer a;
    assert_status_ok(answer_init(&a, ANSWER_WHOLE, &request, &prompt, f->tokenizer));
    struct bytes message;
    bytes_init(&message, 1 << 20);
    int stop;
    for (uint32_t i = 0; i < 200; i++) {
        const struct wire_top_logprob top[] = {{i, -1}, {i + 1, -2}};
        const struct wire_token_info token = {.id = 'a' + i % 26,
                                              .has_logprob = true,
                                              .logprob = -(float)i,
                                              .rank = i,
                                              .top = top,
                                              .n_top = 2};
        assert_status_ok(answer_token(&a, 0, &token, 0, &message, &stop));
        assert_int_equal(message.size, 0);
    }
    const struct wire_finished end = {.reason = WIRE_FINISH_LENGTH};
    int told;
    assert_status_ok(answer_finish(&a, &end, SESSION_NO_STOP, &message, &told));
    struct arena arena;
    struct wire_complete_response m;
    arena_init(&arena, 1 << 22);
    assert_status_ok(wire_complete_response_unpack(message.data, message.size, &arena, &m));
    assert_string_equal(m.request_id, "whole");
    assert_int_equal(m.prompt_token_ids.n, 3);
    assert_int_equal(m.n_choices, 1);
    assert_int_equal(m.choices[0].n_tokens, 200);
    assert_int_equal(strlen(m.choices[0].text), 200);
    assert_int_equal(m.choices[0].tokens[150].top[1].id, 151);
    assert_true(m.choices[0].tokens[150].logprob == -150.0F);
    assert_int_equal(m.choices[0].finished.reason, WIRE_FINISH_LENGTH);
    assert_int_equal(m.usage.prompt_tokens, 3);
    assert_int_equal(m.usage.completion_tokens, 200);
    arena_destroy(&arena);
    bytes_destroy(&message);
    answer_destroy(&a);
}

static void test_answer_without_logprobs_shows_none(void **state)
{
    struct answer a;
    struct bytes message;
    int stop;
    begin(&a, state, NULL, 0, 0, false);
    bytes_init(&message, 1 << 20);
    const struct wire_token_info token = {.id = 'a', .has_logprob = true, .logprob = -1, .rank = 4};
    assert_status_ok(answer_token(&a, 0, &token, 0, &message, &stop));
    struct arena arena;
    struct wire_generate_response m;
    arena_init(&arena, 1 << 20);
    assert_status_ok(wire_generate_response_unpack(message.data, message.size, &arena, &m));
    assert_false(m.token.tokens[0].has_logprob);
    assert_int_equal(m.token.tokens[0].rank, 0);
    arena_destroy(&arena);
    bytes_destroy(&message);
    answer_destroy(&a);
}

/* The next message of a buffer that holds one. */
static struct wire_generate_response take(struct bytes *message, struct arena *arena)
{
    struct wire_generate_response m;
    assert_status_ok(wire_generate_response_unpack(message->data, message->size, arena, &m));
    bytes_clear(message);
    return m;
}

static void test_answer_streams_several_samples(void **state)
{
    const struct fixture *f = *state;
    struct wire_generate_request request;
    wire_generate_request_init(&request);
    request.sampling.n = 3;
    request.output.echo = true;
    struct answer a;
    struct arena arena;
    struct bytes message;
    arena_init(&arena, 1 << 20);
    bytes_init(&message, 1 << 20);
    const uint32_t said[] = {'H', 'i', 0xe2, 0x82}; // the prompt ends within a character
    const struct wire_token_ids asked = {said, 4};
    assert_status_ok(answer_init(&a, ANSWER_STREAM, &request, &asked, f->tokenizer));
    static const uint32_t order[] = {2, 0, 2, 1, 1, 0, 2};
    uint32_t seqs[3] = {0};
    int stop, told;
    for (size_t i = 0; i < sizeof order / sizeof order[0]; i++) {
        const uint32_t index = order[i];
        const struct wire_token_info token = {.id = seqs[index] == 0 ? 0xac : 'a' + index};
        assert_status_ok(answer_token(&a, index, &token, 0, &message, &stop));
        const struct wire_generate_response m = take(&message, &arena);
        assert_int_equal(m.token.index, index);
        assert_int_equal(m.token.seq, seqs[index]);
        const char each[2] = {(char)('a' + index), '\0'};
        assert_string_equal(m.token.text, seqs[index] == 0 ? "Hi\xe2\x82\xac" : each);
        seqs[index]++;
    }
    static const uint32_t ends[] = {1, 2, 0};
    for (size_t i = 0; i < 3; i++) {
        const struct wire_finished end = {.index = ends[i], .reason = WIRE_FINISH_LENGTH};
        assert_false(answer_is_finished(&a));
        assert_status_ok(answer_finish(&a, &end, SESSION_NO_STOP, &message, &told));
        const struct wire_generate_response m = take(&message, &arena);
        assert_int_equal(m.finished.index, ends[i]);
        assert_int_equal(m.has_usage, i == 2);
        assert_int_equal(m.usage.completion_tokens, i == 2 ? 7 : 0);
    }
    assert_true(answer_is_finished(&a));
    bytes_destroy(&message);
    arena_destroy(&arena);
    answer_destroy(&a);
}

static void test_answer_echoes_the_prompt_even_without_a_token_of_text(void **state)
{
    const struct fixture *f = *state;
    struct wire_generate_request request;
    wire_generate_request_init(&request);
    request.sampling.n = 2;
    request.output.echo = true;
    const char *const stops[] = {"Hi"}; // in the prompt it stops nothing
    request.stopping.stop = stops;
    request.stopping.n_stop = 1;
    struct answer a;
    struct arena arena;
    struct bytes message;
    arena_init(&arena, 1 << 20);
    bytes_init(&message, 1 << 20);
    const uint32_t said[] = {'H', 'i'};
    const struct wire_token_ids asked = {said, 2};
    assert_status_ok(answer_init(&a, ANSWER_WHOLE, &request, &asked, f->tokenizer));
    int stop, told;
    const struct wire_token_info last = {.id = TINY_EOS}, letter = {.id = '!'};
    assert_status_ok(answer_token(&a, 0, &last, ANSWER_LAST, &message, &stop));
    assert_status_ok(answer_token(&a, 1, &letter, 0, &message, &stop));
    assert_int_equal(stop, SESSION_NO_STOP);
    for (uint32_t i = 0; i < 2; i++) {
        assert_int_equal(message.size, 0);
        const struct wire_finished end = {.index = i, .reason = WIRE_FINISH_LENGTH};
        assert_status_ok(answer_finish(&a, &end, SESSION_NO_STOP, &message, &told));
    }
    struct wire_complete_response m;
    assert_status_ok(wire_complete_response_unpack(message.data, message.size, &arena, &m));
    assert_int_equal(m.n_choices, 2);
    assert_string_equal(m.choices[0].text, "Hi");
    assert_string_equal(m.choices[1].text, "Hi!");
    assert_int_equal(m.choices[1].finished.index, 1);
    assert_int_equal(m.usage.completion_tokens, 2);
    bytes_destroy(&message);
    arena_destroy(&arena);
    answer_destroy(&a);
}

static void test_answer_gathers_the_prompts_logprobs(void **state)
{
    const struct fixture *f = *state;
    struct wire_generate_request request;
    wire_generate_request_init(&request);
    request.output.has_prompt_logprobs = true;
    struct answer a;
    assert_status_ok(answer_init(&a, ANSWER_STREAM, &request, &prompt, f->tokenizer));
    assert_false(answer_knows_prompt(&a));
    const struct wire_top_logprob top = {.id = 9, .logprob = -0.25F};
    const struct wire_token_info infos[] = {
        {.id = 2, .has_logprob = true, .logprob = -1, .rank = 4, .top = &top, .n_top = 1},
        {.id = 3, .has_logprob = true, .logprob = -2, .rank = 5}};
    assert_status_code(answer_prompt_logprobs(&a, infos, 1, 2), STATUS_INTERNAL); // not the next
    assert_status_code(answer_prompt_logprobs(&a, infos + 1, 1, 1), STATUS_INTERNAL); // not the id
    assert_status_ok(answer_prompt_logprobs(&a, infos, 1, 1));
    assert_false(answer_knows_prompt(&a));
    assert_status_code(answer_prompt_logprobs(&a, infos, 2, 2), STATUS_INTERNAL); // too many
    assert_status_ok(answer_prompt_logprobs(&a, infos + 1, 1, 2));
    assert_true(answer_knows_prompt(&a));
    struct arena arena;
    struct bytes message;
    arena_init(&arena, 1 << 20);
    bytes_init(&message, 1 << 20);
    assert_status_ok(answer_prompt(&a, &message));
    const struct wire_generate_response m = take(&message, &arena);
    assert_int_equal(m.prompt.n_logprobs, 3);
    assert_int_equal(m.prompt.logprobs[0].id, 1);
    assert_false(m.prompt.logprobs[0].has_logprob);
    assert_int_equal(m.prompt.logprobs[1].rank, 4);
    assert_int_equal(m.prompt.logprobs[1].top[0].id, 9);
    assert_true(m.prompt.logprobs[2].logprob == -2.0F);
    bytes_destroy(&message);
    arena_destroy(&arena);
    answer_destroy(&a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_answer_never_splits_a_character),
        cmocka_unit_test(test_answer_shows_half_a_character_at_the_end_as_a_replacement),
        cmocka_unit_test(test_answer_stops_at_a_string_across_tokens),
        cmocka_unit_test(test_answer_shows_the_stop_string_when_asked),
        cmocka_unit_test(test_answer_shows_what_was_held_back_at_the_end),
        cmocka_unit_test(test_answer_ignores_stop_strings_up_to_min_tokens),
        cmocka_unit_test(test_answer_hides_the_stop_token_and_counts_it),
        cmocka_unit_test(test_answer_shows_nul_bytes_and_ids_without_text),
        cmocka_unit_test(test_answer_whole_keeps_everything),
        cmocka_unit_test(test_answer_without_logprobs_shows_none),
        cmocka_unit_test(test_answer_streams_several_samples),
        cmocka_unit_test(test_answer_echoes_the_prompt_even_without_a_token_of_text),
        cmocka_unit_test(test_answer_gathers_the_prompts_logprobs),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}

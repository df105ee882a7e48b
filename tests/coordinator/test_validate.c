#include "coordinator/validate.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "tests/support/test.h"

static const struct validate_limits limits = {.model = "demo",
                                              .n_vocab = 100,
                                              .context_tokens = 64,
                                              .completion_tokens = 1000,
                                              .prompt_bytes = 1000};

/* A request that keeps every rule. */
static struct wire_generate_request good(void)
{
    struct wire_generate_request m;
    wire_generate_request_init(&m);
    m.prompt_kind = WIRE_PROMPT_TEXT;
    m.prompt = "hello";
    m.prompt_bytes = 5;
    return m;
}

static void test_validate_accepts_the_defaults(void **state)
{
    (void)state;
    const struct wire_generate_request m = good();
    assert_status_ok(validate_request(&m, &limits));
}

/* ---- numbers: each bound, the value on it, the one just past it, and NaN ---- */

struct float_case {
    const char *field;
    size_t offset;
    float ok[2];  /* on the bounds */
    float bad[2]; /* just past them */
    const char *says[2];
};

#define F(member) offsetof(struct wire_generate_request, sampling.member)

static const struct float_case float_cases[] = {
    {"sampling.temperature",
     F(temperature),
     {0, 100},
     {-0.001F, 100.001F},
     {"sampling.temperature: -0.001 is not in [0, 100]", "100.001 is not in [0, 100]"}},
    {"sampling.top_p",
     F(top_p),
     {1e-6F, 1},
     {0, 1.0001F},
     {"sampling.top_p: 0 is not in (0, 1]", "1.0001 is not in (0, 1]"}},
    {"sampling.min_p",
     F(min_p),
     {0, 1},
     {-1e-6F, 1.5F},
     {"sampling.min_p: -1e-06 is not in [0, 1]", "1.5 is not in [0, 1]"}},
    {"sampling.repetition_penalty",
     F(repetition_penalty),
     {0.01F, 100},
     {0, 100.5F},
     {"sampling.repetition_penalty: 0 is not in (0, 100]", "100.5"}},
    {"sampling.presence_penalty",
     F(presence_penalty),
     {-2, 2},
     {-2.1F, 2.1F},
     {"sampling.presence_penalty: -2.1 is not in [-2, 2]", "2.1 is"}},
    {"sampling.frequency_penalty",
     F(frequency_penalty),
     {-2, 2},
     {-2.1F, 2.1F},
     {"sampling.frequency_penalty: -2.1 is not in [-2, 2]", "2.1 is"}},
};

static struct wire_generate_request with_float(size_t offset, float value)
{
    struct wire_generate_request m = good();
    memcpy((char *)&m + offset, &value, sizeof value);
    return m;
}

static void test_validate_floats_at_and_past_their_bounds(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof float_cases / sizeof float_cases[0]; i++) {
        const struct float_case *c = &float_cases[i];
        for (int side = 0; side < 2; side++) {
            struct wire_generate_request m = with_float(c->offset, c->ok[side]);
            assert_status_ok(validate_request(&m, &limits));
            m = with_float(c->offset, c->bad[side]);
            assert_status_says(validate_request(&m, &limits), STATUS_INVALID_ARGUMENT,
                               c->says[side]);
        }
        const float never[] = {NAN, INFINITY, -INFINITY};
        for (int k = 0; k < 3; k++) {
            const struct wire_generate_request m = with_float(c->offset, never[k]);
            const status_t s = validate_request(&m, &limits);
            assert_status_says(s, STATUS_INVALID_ARGUMENT, c->field);
        }
        const struct wire_generate_request m = with_float(c->offset, NAN);
        assert_status_says(validate_request(&m, &limits), STATUS_INVALID_ARGUMENT,
                           ": nan is not in");
    }
}

static void test_validate_says_a_value_just_past_a_bound_so_that_it_differs(void **state)
{
    (void)state;
    const struct wire_generate_request m = with_float(F(temperature), nextafterf(100.0F, INFINITY));
    assert_status_says(validate_request(&m, &limits), STATUS_INVALID_ARGUMENT,
                       "100.00001 is not in [0, 100]");
}

static void test_validate_integers_at_and_past_their_bounds(void **state)
{
    (void)state;
    struct wire_generate_request m = good();
    m.sampling.top_k = -1;
    assert_status_ok(validate_request(&m, &limits));
    m.sampling.top_k = INT32_MAX;
    assert_status_ok(validate_request(&m, &limits));
    m.sampling.top_k = -2;
    assert_status_says(validate_request(&m, &limits), STATUS_INVALID_ARGUMENT,
                       "sampling.top_k: -2 is not in [-1, 2147483647]");

    m = good();
    m.sampling.n = 0;
    assert_status_says(validate_request(&m, &limits), STATUS_INVALID_ARGUMENT,
                       "sampling.n: 0 is not in [1, 128]");
    m.sampling.n = 129;
    assert_status_says(validate_request(&m, &limits), STATUS_INVALID_ARGUMENT, "sampling.n: 129");

    m = good();
    m.stopping.max_tokens = 0;
    assert_status_says(validate_request(&m, &limits), STATUS_INVALID_ARGUMENT,
                       "stopping.max_tokens: 0 is not in [1, 4294967295]");
    m.stopping.max_tokens = 1;
    assert_status_ok(validate_request(&m, &limits));

    m = good();
    m.output.has_logprobs = true;
    m.output.logprobs = 20;
    assert_status_ok(validate_request(&m, &limits));
    m.output.logprobs = 21;
    assert_status_says(validate_request(&m, &limits), STATUS_INVALID_ARGUMENT,
                       "output.logprobs: 21 is not in [0, 20]");
}

static void test_validate_min_tokens_is_at_most_max_tokens(void **state)
{
    (void)state;
    struct wire_generate_request m = good();
    m.stopping.max_tokens = 7;
    m.stopping.min_tokens = 7;
    assert_status_ok(validate_request(&m, &limits));
    m.stopping.min_tokens = 8;
    assert_status_says(validate_request(&m, &limits), STATUS_INVALID_ARGUMENT,
                       "stopping.min_tokens: 8 is more than stopping.max_tokens 7");
}

/* ---- what is not built ---- */

static void test_validate_names_what_is_not_built(void **state)
{
    (void)state;
    struct wire_generate_request m = good();
    m.has_resume_from = true;
    assert_status_says(validate_request(&m, &limits), STATUS_UNIMPLEMENTED, "resume_from");
}

/* ---- beam search ---- */

static struct wire_generate_request good_beams(void)
{
    struct wire_generate_request m = good();
    m.sampling.temperature = 1.0f;
    m.sampling.top_p = 1.0f;
    m.sampling.top_k = 0;
    m.sampling.min_p = 0.0f;
    m.sampling.has_seed = false;
    m.sampling.n = 2;
    m.stopping.n_stop = 0;
    m.sampling.beam_width = 4;
    m.sampling.length_penalty = -0.5f;
    m.sampling.early_stopping = WIRE_EARLY_STOPPING_NEVER;
    return m;
}

static void refuse_beams(const struct wire_generate_request *m, const char *says)
{
    assert_status_says(validate_request(m, &limits), STATUS_INVALID_ARGUMENT, says);
}

static void test_validate_what_goes_with_beams(void **state)
{
    (void)state;
    static const char *const stop[] = {"x"};
    struct wire_generate_request m = good_beams();
    assert_status_ok(validate_request(&m, &limits));
    m.sampling.temperature = 0.0f;
    m.sampling.top_k = -1;
    m.sampling.repetition_penalty = 1.5f;
    m.sampling.n = 4;
    assert_status_ok(validate_request(&m, &limits));
    m.sampling.n = 5;
    refuse_beams(&m, "sampling.n: 5 is more than sampling.beam_width 4");
    struct wire_generate_request cases[6];
    static const char *const says[6] = {
        "sampling.temperature: with sampling.beam_width 4: a beam search draws nothing",
        "sampling.top_p: with",
        "sampling.top_k: with",
        "sampling.min_p: with",
        "sampling.seed: with",
        "stopping.stop: with sampling.beam_width 4: a beam search ends at",
    };
    for (int i = 0; i < 6; i++) {
        cases[i] = good_beams();
    }
    cases[0].sampling.temperature = 0.7f;
    cases[1].sampling.top_p = 0.9f;
    cases[2].sampling.top_k = 3;
    cases[3].sampling.min_p = 0.1f;
    cases[4].sampling.has_seed = true;
    cases[5].stopping.stop = stop;
    cases[5].stopping.n_stop = 1;
    for (int i = 0; i < 6; i++) {
        refuse_beams(&cases[i], says[i]);
    }
    m = good_beams();
    m.sampling.beam_width = 17;
    refuse_beams(&m, "sampling.beam_width: 17 is not in [0, 16]");
    m = good_beams();
    m.sampling.length_penalty = 10.5f;
    refuse_beams(&m, "sampling.length_penalty: 10.5 is not in [-10, 10]");
    m = good_beams();
    m.sampling.beam_width = 0;
    refuse_beams(&m, "sampling.length_penalty: with sampling.beam_width 0");
    m.sampling.length_penalty = 1.0f;
    refuse_beams(&m, "sampling.early_stopping: with sampling.beam_width 0");
}

static void test_validate_beams_count_as_samples(void **state)
{
    (void)state;
    struct wire_generate_request m = good_beams();
    struct validate_limits few = limits;
    few.completion_tokens = (uint64_t)m.stopping.max_tokens * 4;
    assert_status_ok(validate_request(&m, &few));
    few.completion_tokens--;
    assert_status_says(validate_request(&m, &few), STATUS_INVALID_ARGUMENT,
                       "sampling.beam_width: 4 beams of stopping.max_tokens");
}

static void test_validate_bounds_the_salt(void **state)
{
    (void)state;
    char salt[VALIDATE_MAX_CACHE_SALT + 2];
    memset(salt, 's', sizeof salt);
    salt[VALIDATE_MAX_CACHE_SALT] = '\0';
    struct wire_generate_request m = good();
    m.cache_salt = salt;
    assert_status_ok(validate_request(&m, &limits));
    salt[VALIDATE_MAX_CACHE_SALT] = 's';
    salt[VALIDATE_MAX_CACHE_SALT + 1] = '\0';
    assert_status_says(validate_request(&m, &limits), STATUS_INVALID_ARGUMENT,
                       "cache_salt: 128 bytes, at most 127");
}

static void test_validate_bounds_the_tokens_of_all_samples(void **state)
{
    (void)state;
    struct wire_generate_request m = good();
    m.stopping.max_tokens = 1001; // of one sample: the context says
    assert_status_ok(validate_request(&m, &limits));
    m.sampling.n = 10;
    m.stopping.max_tokens = 100;
    assert_status_ok(validate_request(&m, &limits));
    m.stopping.max_tokens = 101;
    assert_status_says(validate_request(&m, &limits), STATUS_INVALID_ARGUMENT,
                       "sampling.n: 10 samples of stopping.max_tokens 101 = 1010 tokens, at most "
                       "1000 (--max-completion-tokens)");
    m.sampling.n = 128;
    m.stopping.max_tokens = UINT32_MAX; // no overflow
    assert_status_says(validate_request(&m, &limits), STATUS_INVALID_ARGUMENT, "= 549755813760");
}

static void test_validate_allowed_tokens(void **state)
{
    (void)state;
    uint32_t ids[101] = {0, 99, 3};
    struct wire_generate_request m = good();
    m.sampling.allowed_token_ids = (struct wire_token_ids){ids, 3};
    assert_status_ok(validate_request(&m, &limits));
    ids[2] = 100;
    assert_status_says(validate_request(&m, &limits), STATUS_INVALID_ARGUMENT,
                       "sampling.allowed_token_ids[2]: 100 is not below 100");
    m.sampling.allowed_token_ids.n = 101;
    assert_status_says(validate_request(&m, &limits), STATUS_INVALID_ARGUMENT,
                       "sampling.allowed_token_ids: 101 entries, at most 100");
}

/* ---- lists and texts ---- */

static void test_validate_stop_strings(void **state)
{
    (void)state;
    char longest[VALIDATE_MAX_STOP_BYTES + 2];
    memset(longest, 'x', sizeof longest);
    longest[VALIDATE_MAX_STOP_BYTES] = '\0';
    const char *stop[VALIDATE_MAX_STOP_STRINGS + 1];
    for (size_t i = 0; i <= VALIDATE_MAX_STOP_STRINGS; i++) {
        stop[i] = longest;
    }
    struct wire_generate_request m = good();
    m.stopping.stop = stop;
    m.stopping.n_stop = VALIDATE_MAX_STOP_STRINGS;
    assert_status_ok(validate_request(&m, &limits));
    m.stopping.n_stop++;
    assert_status_says(validate_request(&m, &limits), STATUS_INVALID_ARGUMENT,
                       "stopping.stop: 17 entries, at most 16");
    m.stopping.n_stop = 2;
    stop[1] = "";
    assert_status_says(validate_request(&m, &limits), STATUS_INVALID_ARGUMENT,
                       "stopping.stop[1]: 0 bytes is not in [1, 256]");
    char too_long[VALIDATE_MAX_STOP_BYTES + 2];
    memset(too_long, 'x', sizeof too_long);
    too_long[VALIDATE_MAX_STOP_BYTES + 1] = '\0';
    stop[1] = too_long;
    assert_status_says(validate_request(&m, &limits), STATUS_INVALID_ARGUMENT,
                       "stopping.stop[1]: 257 bytes");
}

static void test_validate_token_ids_are_in_the_vocabulary(void **state)
{
    (void)state;
    const uint32_t ids[] = {0, 99, 100};
    struct wire_generate_request m = good();
    m.prompt_kind = WIRE_PROMPT_TOKENS;
    m.prompt_token_ids = (struct wire_token_ids){ids, 2};
    assert_status_ok(validate_request(&m, &limits));
    m.prompt_token_ids.n = 3;
    assert_status_says(validate_request(&m, &limits), STATUS_INVALID_ARGUMENT,
                       "prompt_token_ids[2]: 100 is not below 100");
    m = good();
    m.stopping.stop_token_ids = (struct wire_token_ids){ids, 3};
    assert_status_says(validate_request(&m, &limits), STATUS_INVALID_ARGUMENT,
                       "stopping.stop_token_ids[2]: 100");
    uint32_t many[VALIDATE_MAX_STOP_TOKENS + 1] = {0};
    m.stopping.stop_token_ids = (struct wire_token_ids){many, VALIDATE_MAX_STOP_TOKENS};
    assert_status_ok(validate_request(&m, &limits));
    m.stopping.stop_token_ids.n++;
    assert_status_says(validate_request(&m, &limits), STATUS_INVALID_ARGUMENT,
                       "stopping.stop_token_ids: 257 entries, at most 256");
}

static void test_validate_logit_bias_entries(void **state)
{
    (void)state;
    struct wire_logit_bias bias[VALIDATE_MAX_LOGIT_BIAS + 1] = {{.token_id = 100}};
    struct wire_generate_request m = good();
    m.sampling.logit_bias = bias;
    m.sampling.n_logit_bias = 1;
    assert_status_says(validate_request(&m, &limits), STATUS_INVALID_ARGUMENT,
                       "sampling.logit_bias[0].token_id: 100");
    bias[0] = (struct wire_logit_bias){.token_id = 1, .bias = NAN};
    assert_status_says(validate_request(&m, &limits), STATUS_INVALID_ARGUMENT,
                       "sampling.logit_bias[0].bias: nan is not in [-100, 100]");
    bias[0].bias = nextafterf(100.0F, 200.0F);
    assert_status_says(validate_request(&m, &limits), STATUS_INVALID_ARGUMENT,
                       "sampling.logit_bias[0].bias: 100.00001 is not in [-100, 100]");
    for (uint32_t i = 0; i < 4; i++) {
        bias[i] = (struct wire_logit_bias){.token_id = 10 + i, .bias = i % 2 == 0 ? 100 : -100};
    }
    m.sampling.n_logit_bias = 4;
    assert_status_ok(validate_request(&m, &limits));
    bias[3].token_id = 11;
    assert_status_says(validate_request(&m, &limits), STATUS_INVALID_ARGUMENT,
                       "sampling.logit_bias[3].token_id: 11 is also that of entry 1");
    m.sampling.n_logit_bias = VALIDATE_MAX_LOGIT_BIAS + 1;
    assert_status_says(validate_request(&m, &limits), STATUS_INVALID_ARGUMENT,
                       "sampling.logit_bias: 301 entries, at most 300");
}

static void test_validate_prompt_is_one_of_three_and_not_too_long(void **state)
{
    (void)state;
    struct wire_generate_request m = good();
    m.prompt_kind = WIRE_PROMPT_NONE;
    assert_status_says(validate_request(&m, &limits), STATUS_INVALID_ARGUMENT, "prompt: none of");
    m = good();
    m.prompt_bytes = 0;
    assert_status_says(validate_request(&m, &limits), STATUS_INVALID_ARGUMENT, "prompt: is empty");
    m.prompt_bytes = 1000;
    assert_status_ok(validate_request(&m, &limits));
    m.prompt_bytes = 1001;
    assert_status_says(validate_request(&m, &limits), STATUS_INVALID_ARGUMENT,
                       "prompt: 1001 bytes, at most 1000");
    m.prompt_kind = WIRE_PROMPT_TOKENS;
    assert_status_says(validate_request(&m, &limits), STATUS_INVALID_ARGUMENT,
                       "prompt_token_ids: is empty");
}

static void test_validate_messages(void **state)
{
    (void)state;
    struct wire_chat_message messages[] = {{"system", "be kind"}, {"user", "hi"}};
    struct wire_generate_request m = good();
    m.prompt_kind = WIRE_PROMPT_MESSAGES;
    m.messages = messages;
    m.n_messages = 2;
    assert_status_ok(validate_request(&m, &limits));
    messages[1].role = "wizard\n";
    assert_status_says(validate_request(&m, &limits), STATUS_INVALID_ARGUMENT,
                       "messages[1].role: \"wizard\\n\" is not");
    m.n_messages = 0;
    assert_status_says(validate_request(&m, &limits), STATUS_INVALID_ARGUMENT,
                       "messages: is empty");
}

static void test_validate_request_id(void **state)
{
    (void)state;
    char id[VALIDATE_MAX_REQUEST_ID + 2];
    memset(id, 'a', sizeof id);
    id[VALIDATE_MAX_REQUEST_ID] = '\0';
    struct wire_generate_request m = good();
    m.request_id = id;
    assert_status_ok(validate_request(&m, &limits));
    id[VALIDATE_MAX_REQUEST_ID] = 'a';
    id[VALIDATE_MAX_REQUEST_ID + 1] = '\0';
    assert_status_says(validate_request(&m, &limits), STATUS_INVALID_ARGUMENT,
                       "request_id: 129 bytes, at most 128");
    const char *bad[] = {"a b", "a\nlevel=error", "\x1b[2J", "\xc3\xa4", "a/b"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        m.request_id = bad[i];
        assert_status_says(validate_request(&m, &limits), STATUS_INVALID_ARGUMENT,
                           "request_id: byte 0x");
    }
    m.request_id = "Az09._-";
    assert_status_ok(validate_request(&m, &limits));
}

static void test_validate_model_name(void **state)
{
    (void)state;
    struct wire_generate_request m = good();
    m.model = "demo";
    assert_status_ok(validate_request(&m, &limits));
    m.model = "other";
    assert_status_says(validate_request(&m, &limits), STATUS_NOT_FOUND, "other");
    assert_status_says(validate_request(&m, &limits), STATUS_NOT_FOUND, "demo is");
}

static void test_validate_length_gives_the_three_numbers(void **state)
{
    (void)state;
    assert_status_ok(validate_length(48, 16, &limits));
    assert_status_says(validate_length(49, 16, &limits), STATUS_INVALID_ARGUMENT,
                       "prompt of 49 tokens + stopping.max_tokens 16 is over the context of 64");
    assert_status_code(validate_length(1, UINT32_MAX, &limits), STATUS_INVALID_ARGUMENT);
    assert_status_code(validate_length(0, 16, &limits), STATUS_INVALID_ARGUMENT);
}

static void test_validate_cluster_requests(void **state)
{
    (void)state;
    assert_status_ok(validate_interval(0));
    assert_status_ok(validate_interval(100));
    assert_status_ok(validate_interval(60000));
    assert_status_says(validate_interval(99), STATUS_INVALID_ARGUMENT,
                       "interval_ms: 99 is not in [100, 60000]");
    assert_status_code(validate_interval(60001), STATUS_INVALID_ARGUMENT);
    assert_status_ok(validate_grace(0));
    assert_status_ok(validate_grace(86400));
    assert_status_code(validate_grace(86401), STATUS_INVALID_ARGUMENT);
    assert_status_code(validate_grace(-1), STATUS_INVALID_ARGUMENT);
    assert_status_says(validate_grace(NAN), STATUS_INVALID_ARGUMENT, "grace_seconds: nan");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_validate_accepts_the_defaults),
        cmocka_unit_test(test_validate_floats_at_and_past_their_bounds),
        cmocka_unit_test(test_validate_says_a_value_just_past_a_bound_so_that_it_differs),
        cmocka_unit_test(test_validate_integers_at_and_past_their_bounds),
        cmocka_unit_test(test_validate_min_tokens_is_at_most_max_tokens),
        cmocka_unit_test(test_validate_names_what_is_not_built),
        cmocka_unit_test(test_validate_what_goes_with_beams),
        cmocka_unit_test(test_validate_beams_count_as_samples),
        cmocka_unit_test(test_validate_bounds_the_salt),
        cmocka_unit_test(test_validate_bounds_the_tokens_of_all_samples),
        cmocka_unit_test(test_validate_allowed_tokens),
        cmocka_unit_test(test_validate_stop_strings),
        cmocka_unit_test(test_validate_token_ids_are_in_the_vocabulary),
        cmocka_unit_test(test_validate_logit_bias_entries),
        cmocka_unit_test(test_validate_prompt_is_one_of_three_and_not_too_long),
        cmocka_unit_test(test_validate_messages),
        cmocka_unit_test(test_validate_request_id),
        cmocka_unit_test(test_validate_model_name),
        cmocka_unit_test(test_validate_length_gives_the_three_numbers),
        cmocka_unit_test(test_validate_cluster_requests),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

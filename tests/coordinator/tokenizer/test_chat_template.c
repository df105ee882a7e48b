#include "tests/support/test.h"

#include <string.h>

#include <jansson.h>

#include "coordinator/tokenizer/chat_template.h"

static void write_config(const char *dir, const char *name, const char *text)
{
    char path[TEST_PATH_BYTES + 64];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    test_write_file(path, text, strlen(text));
}

/* The published prompts; rows without a generation prompt are a prefix of ours. */
static void test_chat_template_renders_the_published_prompts(void **state)
{
    (void)state;
    char path[TEST_PATH_BYTES];
    struct chat_template chat;
    assert_status_ok(chat_template_load(test_data_path("tokenizers/decilm-7b", path), &chat));
    assert_int_equal(chat.kind, CHAT_TEMPLATE_DECILM_INSTRUCT);
    json_t *rows = json_load_file(test_data_path("chat/decilm-7b-instruct.json", path), 0, NULL);
    assert_true(json_array_size(rows) > 0);
    for (size_t i = 0; i < json_array_size(rows); i++) {
        const json_t *row = json_array_get(rows, i);
        const json_t *list = json_object_get(row, "messages");
        struct chat_message messages[16];
        assert_in_range(json_array_size(list), 1, 16);
        for (size_t k = 0; k < json_array_size(list); k++) {
            const json_t *message = json_array_get(list, k);
            messages[k].role = json_string_value(json_object_get(message, "role"));
            messages[k].content = json_string_value(json_object_get(message, "content"));
        }
        char want[4096];
        const bool generation = json_is_true(json_object_get(row, "add_generation_prompt"));
        snprintf(want, sizeof want, "%s%s", json_string_value(json_object_get(row, "text")),
                 generation ? "" : "### Assistant:\n");
        struct bytes out;
        bytes_init(&out, sizeof want);
        assert_status_ok(chat_template_render(&chat, messages, json_array_size(list), &out));
        assert_int_equal(out.size, strlen(want));
        assert_memory_equal(out.data, want, out.size);
        bytes_destroy(&out);
    }
    json_decref(rows);
}

static void test_chat_template_load_finds_where_it_is(void **state)
{
    (void)state;

    static const struct {
        const char *name;
        const char *text;
        int kind;
    } rows[] = {
        {"other.json", "{}", CHAT_TEMPLATE_NONE},
        {"tokenizer_config.json", "{}", CHAT_TEMPLATE_NONE},
        {"tokenizer_config.json",
         "{\"chat_template\": null, \"model_max_length\": 1000000000000000019884624838656}",
         CHAT_TEMPLATE_NONE},
        {"tokenizer_config.json", "{\"chat_template\": \"{{ messages }}\"}", CHAT_TEMPLATE_UNKNOWN},
        {"tokenizer_config.json", "{\"chat_template\": 5}", CHAT_TEMPLATE_UNKNOWN},
        {"tokenizer_config.json", "{\"chat_template\": []}", CHAT_TEMPLATE_UNKNOWN},
        {"chat_template.jinja", "{{ messages }}", CHAT_TEMPLATE_UNKNOWN},
    };

    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char dir[TEST_PATH_BYTES];
        struct chat_template chat = {.kind = -1};
        test_tmpdir(dir);
        write_config(dir, rows[i].name, rows[i].text);
        assert_status_ok(chat_template_load(dir, &chat));
        assert_int_equal(chat.kind, rows[i].kind);
        test_tmpdir_remove(dir);
    }
}

/* The published text is recognised wherever it stands, and not when a single character differs. */
static void test_chat_template_is_recognised_by_its_exact_text(void **state)
{
    (void)state;
    char path[TEST_PATH_BYTES];
    char dir[TEST_PATH_BYTES];
    json_t *config =
        json_load_file(test_data_path("tokenizers/decilm-7b/tokenizer_config.json", path),
                       JSON_DECODE_INT_AS_REAL, NULL);
    const char *text = json_string_value(json_object_get(config, "chat_template"));
    assert_non_null(text);
    test_tmpdir(dir);
    struct chat_template chat;
    write_config(dir, "chat_template.jinja", text);
    assert_status_ok(chat_template_load(dir, &chat));
    assert_int_equal(chat.kind, CHAT_TEMPLATE_DECILM_INSTRUCT);

    json_t *list = json_pack("{s:[{s:s, s:s}, {s:s, s:s}]}", "chat_template", "name", "rag",
                             "template", "x", "name", "default", "template", text);
    char *dumped = json_dumps(list, 0);
    write_config(dir, "tokenizer_config.json", dumped);
    assert_status_ok(chat_template_load(dir, &chat));
    assert_int_equal(chat.kind, CHAT_TEMPLATE_DECILM_INSTRUCT);

    char changed[4096];
    snprintf(changed, sizeof changed, "%s\n", text);
    json_t *one = json_pack("{s:s}", "chat_template", changed);
    free(dumped);
    dumped = json_dumps(one, 0);
    write_config(dir, "tokenizer_config.json", dumped);
    assert_status_ok(chat_template_load(dir, &chat));
    assert_int_equal(chat.kind, CHAT_TEMPLATE_UNKNOWN);
    free(dumped);
    json_decref(one);
    json_decref(list);
    json_decref(config);
    test_tmpdir_remove(dir);
}

static void test_chat_template_never_guesses(void **state)
{
    (void)state;
    const struct chat_message user = {.role = "user", .content = "hi"};
    const struct chat_message messages[] = {user, {.role = "tool", .content = "x"}};
    struct bytes out;
    bytes_init(&out, 100);
    const struct chat_template none = {.kind = CHAT_TEMPLATE_NONE};
    assert_status_says(chat_template_render(&none, &user, 1, &out), STATUS_FAILED_PRECONDITION,
                       "model has no chat template");
    const struct chat_template unknown = {.kind = CHAT_TEMPLATE_UNKNOWN};
    assert_status_says(chat_template_render(&unknown, &user, 1, &out), STATUS_UNIMPLEMENTED,
                       "not in the table");
    const struct chat_template decilm = {.kind = CHAT_TEMPLATE_DECILM_INSTRUCT};
    assert_status_says(chat_template_render(&decilm, messages, 2, &out), STATUS_INVALID_ARGUMENT,
                       "messages[1].role: \"tool\"");
    assert_status_says(chat_template_render(&decilm, messages, 0, &out), STATUS_INVALID_ARGUMENT,
                       "messages: empty");
    assert_int_equal(out.size, 0);
    bytes_destroy(&out);
}

static void test_chat_template_load_refuses_a_broken_config(void **state)
{
    (void)state;
    char dir[TEST_PATH_BYTES];
    struct chat_template chat;
    test_tmpdir(dir);
    write_config(dir, "tokenizer_config.json", "{\"chat_template\": ");
    assert_status_says(chat_template_load(dir, &chat), STATUS_DATA_LOSS,
                       "tokenizer_config.json: line 1");
    test_tmpdir_remove(dir);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_chat_template_renders_the_published_prompts),
        cmocka_unit_test(test_chat_template_load_finds_where_it_is),
        cmocka_unit_test(test_chat_template_is_recognised_by_its_exact_text),
        cmocka_unit_test(test_chat_template_never_guesses),
        cmocka_unit_test(test_chat_template_load_refuses_a_broken_config),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/*
 * test_plan_print.c - a plan as text and as JSON
 */
#include "tests/support/test.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "parallel/plan_print.h"
#include "tests/parallel/models.h"

/* Every kind of block. */
static struct spec_layer layers[] = {
    {.n_kv_heads = 2, .n_ff = 512},
    {.n_kv_heads = 2, .n_ff = 512},
    {.attention = SPEC_BLOCK_LINEAR, .n_ff = 256},
    {.attention = SPEC_BLOCK_NONE, .ffn = SPEC_BLOCK_LINEAR},
    {.n_kv_heads = 4, .ffn = SPEC_BLOCK_NONE},
};

static const struct model_spec spec = {.name = "blocks",
                                       .architecture = "DeciLMForCausalLM",
                                       .n_layers = 5,
                                       .n_hidden = 128,
                                       .n_heads = 4,
                                       .head_dim = 32,
                                       .n_vocab = 100,
                                       .layers = layers};

static void test_plan_print_text_names_the_blocks(void **state)
{
    (void)state;
    struct plan plan = models_plan(&spec, 2, PLAN_SHARE);
    const struct plan_print_args args = {
        .plan = &plan, .spec = &spec, .dtype = DTYPE_F32, .kv_dtype = DTYPE_F32};
    struct bytes text;
    bytes_init(&text, 1 << 16);
    assert_status_ok(plan_print_text(&args, &text));
    assert_status_ok(bytes_append(&text, "", 1));
    static const char *const lines[] = {
        "\n layers     kv    ffn rank 0    rank 1\n",  "\n    0-1      2    512 0-1|0     2-3|1\n",
        "\n      2 linear    256 0-63      64-127\n",  "\n      3   none linear -         -\n",
        "\n      4      4   none 0-1|0-1   2-3|2-3\n", "Where kv is linear: rows of its matrix.\n",
    };
    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++) {
        if (strstr((const char *)text.data, lines[i]) == NULL) {
            fail_msg("no line %s in\n%s", lines[i], (const char *)text.data);
        }
    }
    bytes_destroy(&text);
    plan_destroy(&plan);
}

/* Whatever the model and the number of ranks, no line is longer than a terminal's. */
static void test_plan_print_text_fits_a_terminal(void **state)
{
    (void)state;
    for (int i = 0; i < 200; i++) {
        struct model_spec model = models_random(false);
        snprintf(model.architecture, sizeof model.architecture, "RandomForCausalLM");
        const int32_t tp = models_between(1, model.n_heads < 16 ? model.n_heads : 16);
        struct plan plan = models_plan(&model, tp,
                                       i % 3 == 0   ? PLAN_SHARE
                                       : i % 3 == 1 ? PLAN_TOKEN
                                                    : PLAN_REPLICATE);
        const struct plan_print_args args = {
            .plan = &plan, .spec = &model, .dtype = DTYPE_BF16, .kv_dtype = DTYPE_BF16};
        struct bytes text;
        bytes_init(&text, 1 << 22);
        assert_status_ok(plan_print_text(&args, &text));
        size_t length = 0;
        for (size_t at = 0; at < text.size; at++) {
            length = text.data[at] == '\n' ? 0 : length + 1;
            assert_true(length <= 80);
        }
        bytes_destroy(&text);
        plan_destroy(&plan);
        spec_destroy(&model);
    }
}

static void test_plan_print_json_names_the_blocks(void **state)
{
    (void)state;
    struct plan plan = models_plan(&spec, 2, PLAN_SHARE);
    const struct plan_print_args args = {
        .plan = &plan, .spec = &spec, .dtype = DTYPE_F32, .kv_dtype = DTYPE_F32};
    struct bytes text;
    bytes_init(&text, 1 << 16);
    assert_status_ok(plan_print_json(&args, &text));
    json_t *json = json_loadb((const char *)text.data, text.size, 0, NULL);
    assert_non_null(json);
    json_t *list = json_object_get(json, "layers");
    assert_int_equal(json_array_size(list), 5);

    static const struct {
        const char *attention, *ffn;
        int q_heads, kv_heads, n_ff, attention_end, ffn_end; /* ends: of rank 0's rows */
        bool placed;
    } rows[] = {
        {"full", "full", 4, 2, 512, 0, 0, true},     {"full", "full", 4, 2, 512, 0, 0, true},
        {"linear", "full", 0, 0, 256, 64, 0, false}, {"none", "linear", 0, 0, 0, 0, 64, false},
        {"full", "none", 4, 4, 0, 0, 0, true},
    };

    for (size_t i = 0; i < 5; i++) {
        const char *attention, *ffn;
        json_t *placement;
        int q_heads, kv_heads, n_ff, begin, attention_end, ffn_end;
        assert_int_equal(json_unpack(json_array_get(list, i),
                                     "{s:s, s:s, s:i, s:i, s:i, s:o, s:[{s:[i,i], s:[i,i]}, {}]}",
                                     "attention_kind", &attention, "ffn_kind", &ffn, "q_heads",
                                     &q_heads, "kv_heads", &kv_heads, "ffn", &n_ff, "kv_placement",
                                     &placement, "ranks", "attention_rows", &begin, &attention_end,
                                     "ffn_rows", &begin, &ffn_end),
                         0);
        assert_string_equal(attention, rows[i].attention);
        assert_string_equal(ffn, rows[i].ffn);
        assert_int_equal(q_heads, rows[i].q_heads);
        assert_int_equal(kv_heads, rows[i].kv_heads);
        assert_int_equal(n_ff, rows[i].n_ff);
        assert_int_equal(attention_end, rows[i].attention_end);
        assert_int_equal(ffn_end, rows[i].ffn_end);
        assert_int_equal(json_is_string(placement), rows[i].placed);
    }
    json_decref(json);
    bytes_destroy(&text);
    plan_destroy(&plan);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plan_print_text_names_the_blocks),
        cmocka_unit_test(test_plan_print_text_fits_a_terminal),
        cmocka_unit_test(test_plan_print_json_names_the_blocks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

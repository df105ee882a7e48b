/*
 * test_plan_draw.c - the picture of a plan: its width, its lines, and what it says of a cell
 */
#include "tests/support/test.h"

#include <stdlib.h>
#include <string.h>

#include "parallel/plan_draw.h"
#include "tests/parallel/models.h"

static void draw(const struct model_spec *spec, const struct plan *plan, int charset,
                 struct bytes *text)
{
    const struct plan_draw_args args = {.plan = plan, .spec = spec, .charset = charset};
    bytes_init(text, 1 << 22);
    assert_status_ok(plan_draw_text(&args, text));
    assert_status_ok(bytes_append(text, "", 1));
}

/* Columns of a line: bytes of UTF-8 that go on with a character take none. */
static void check_width(const struct bytes *text)
{
    size_t columns = 0;
    for (size_t at = 0; at + 1 < text->size; at++) {
        const bool goes_on = (text->data[at] & 0xC0) == 0x80;
        columns = text->data[at] == '\n' ? 0 : columns + (goes_on ? 0 : 1);
        assert_true(columns <= 80);
    }
}

static void test_plan_draw_fits_a_terminal(void **state)
{
    (void)state;
    for (int i = 0; i < 200; i++) {
        struct model_spec spec = models_random(false);
        const int32_t tp = models_between(1, spec.n_heads < 16 ? spec.n_heads : 16);
        struct plan plan = models_plan(&spec, tp,
                                       i % 3 == 0   ? PLAN_SHARE
                                       : i % 3 == 1 ? PLAN_TOKEN
                                                    : PLAN_REPLICATE);
        for (int charset = PLAN_DRAW_ASCII; charset <= PLAN_DRAW_UTF8; charset++) {
            struct bytes text;
            draw(&spec, &plan, charset, &text);
            check_width(&text);
            for (size_t at = 0; charset == PLAN_DRAW_ASCII && at < text.size; at++) {
                assert_true(text.data[at] < 0x80);
            }
            bytes_destroy(&text);
        }
        plan_destroy(&plan);
        spec_destroy(&spec);
    }
}

static void expect_line(const struct bytes *text, const char *line)
{
    if (strstr((const char *)text->data, line) == NULL) {
        fail_msg("no line '%s' in\n%s", line, (const char *)text->data);
    }
}

/* DeciLM-7B on 8 ranks: halves, quarters and an eighth of a head, equal layers on one line. */
static void test_plan_draw_shows_who_owns_what(void **state)
{
    (void)state;
    struct model_spec spec = models_deci_7b();
    struct plan plan = models_plan(&spec, 8, PLAN_SHARE);
    struct bytes text;
    draw(&spec, &plan, PLAN_DRAW_UTF8, &text);
    expect_line(&text, "\n    0-4      4  14336 │▄0│▄0│▄1│▄1│▄2│▄2│▄3│▄3\n");
    expect_line(&text, "\n  11-19      2  14336 │▂0│▂0│▂0│▂0│▂1│▂1│▂1│▂1\n");
    expect_line(&text, "\n  20-30      1  14336 │▁0│▁0│▁0│▁0│▁0│▁0│▁0│▁0\n");
    bytes_destroy(&text);
    draw(&spec, &plan, PLAN_DRAW_ASCII, &text);
    expect_line(&text, "\n  11-19      2  14336 |-0|-0|-0|-0|-1|-1|-1|-1\n");
    bytes_destroy(&text);
    plan_destroy(&plan);
    plan = models_plan(&spec, 8, PLAN_TOKEN);
    draw(&spec, &plan, PLAN_DRAW_UTF8, &text);
    expect_line(&text, "\n  11-19     2t  14336 │▂0│▂0│▂0│▂0│▂1│▂1│▂1│▂1\n");
    expect_line(&text, "\nt  split by token: parts of a head are blocks of every sequence\n");
    bytes_destroy(&text);
    plan_destroy(&plan);
    // A head and a third: whole heads are told from parts.
    plan = models_plan(&spec, 3, PLAN_SHARE);
    draw(&spec, &plan, PLAN_DRAW_UTF8, &text);
    expect_line(&text, "\n    0-4      4  14336 │█0▃1│▆1▆2│▃2█3\n");
    bytes_destroy(&text);
    plan_destroy(&plan);
    spec_destroy(&spec);
}

/* 162 layers with long runs on 16 ranks: a line a run, all ranks side by side. */
static void test_plan_draw_folds_long_models(void **state)
{
    (void)state;
    struct model_spec spec = {
        .n_layers = 162, .n_hidden = 512, .n_heads = 64, .head_dim = 8, .n_vocab = 1000};
    spec.layers = calloc(162, sizeof *spec.layers);
    assert_non_null(spec.layers);
    for (int32_t i = 0; i < 162; i++) {
        const bool attends = i < 40 || i >= 150;
        spec.layers[i].attention = attends ? SPEC_BLOCK_FULL : SPEC_BLOCK_NONE;
        spec.layers[i].n_kv_heads = attends ? 8 : 0;
        spec.layers[i].n_ff = i == 90 ? 64 : 2048;
    }
    struct plan plan = models_plan(&spec, 16, PLAN_SHARE);
    struct bytes text;
    draw(&spec, &plan, PLAN_DRAW_ASCII, &text);
    check_width(&text);
    expect_line(&text,
                " 0  1  2  3  4  5  6  7  8  9  10 11 12 13 14 15\n   0-39      8   2048 |+0|+0|");
    expect_line(&text, "\n  40-89   none   2048 |. |. |");
    expect_line(&text, "\n     90   none     64 |. |. |");
    expect_line(&text, "\n150-161      8   2048 |+0|+0|");
    size_t n_lines = 0;
    for (size_t at = 0; at < text.size; at++) {
        n_lines += text.data[at] == '\n';
    }
    assert_int_equal(n_lines, 10); // 5 runs, two headings, two empty lines, what the signs mean
    bytes_destroy(&text);
    plan_destroy(&plan);
    spec_destroy(&spec);
}

/* What an XML parser makes of it is tested from outside; here: markup in a name stays text, and elements end. */
static void test_plan_draw_svg_escapes(void **state)
{
    (void)state;
    struct model_spec spec = models_deci_7b();
    struct plan plan = models_plan(&spec, 5, PLAN_SHARE);
    const struct plan_draw_args args = {.plan = &plan, .spec = &spec, .title = "a<b>&\"c"};
    struct bytes text;
    bytes_init(&text, 1 << 22);
    assert_status_ok(plan_draw_svg(&args, &text));
    assert_status_ok(bytes_append(&text, "", 1));
    const char *svg = (const char *)text.data;
    assert_non_null(strstr(svg, ">a&lt;b&gt;&amp;&quot;c</text>"));
    assert_non_null(strstr(svg, "</svg>\n"));
    assert_null(strstr(svg, "nan"));
    assert_null(strstr(svg, "\"-"));
    bytes_destroy(&text);
    plan_destroy(&plan);
    spec_destroy(&spec);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plan_draw_fits_a_terminal),
        cmocka_unit_test(test_plan_draw_shows_who_owns_what),
        cmocka_unit_test(test_plan_draw_folds_long_models),
        cmocka_unit_test(test_plan_draw_svg_escapes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

#include "coordinator/metrics.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "tests/support/test.h"

static char *render(const struct metrics *m, uint64_t now_ns, struct bytes *out)
{
    bytes_init(out, 1 << 20);
    assert_status_ok(metrics_render(m, now_ns, out));
    assert_status_ok(bytes_append(out, "", 1));
    return (char *)out->data;
}

/* Value of the sample whose line begins with `sample`, fails when it is not there. */
static double value_of(const char *page, const char *sample)
{
    const size_t size = strlen(sample);
    for (const char *line = page; line != NULL && *line != '\0';
         line = strchr(line, '\n'), line += line != NULL ? 1 : 0) {
        if (strncmp(line, sample, size) == 0 && line[size] == ' ') {
            return strtod(line + size, NULL);
        }
    }
    fail_msg("no sample %s", sample);
    return 0;
}

static void test_metrics_show_what_was_counted(void **state)
{
    (void)state;
    static struct metrics m;
    metrics_init(&m, "demo", "0.1.0");
    metrics_add(&m, METRICS_PROMPT_TOKENS, 7);
    metrics_add(&m, METRICS_PROMPT_TOKENS, 3);
    metrics_add(&m, METRICS_SWAPPED_OUT_BLOCKS, 6);
    metrics_add(&m, METRICS_SWAPPED_IN_BLOCKS, 4);
    metrics_set(&m, METRICS_KV_REPLICATION, 1.5);
    metrics_finish(&m, WIRE_FINISH_LENGTH);
    metrics_reject(&m, METRICS_REJECTED_OVERLOAD);
    struct bytes out;
    const char *page = render(&m, 0, &out);
    assert_true(value_of(page, "kvasir_prompt_tokens_total{model_name=\"demo\"}") == 10);
    assert_true(value_of(page, "kvasir_swapped_blocks_total{model_name=\"demo\",direction="
                               "\"out\"}") == 6);
    assert_true(value_of(page, "kvasir_swapped_blocks_total{model_name=\"demo\",direction="
                               "\"in\"}") == 4);
    assert_true(value_of(page, "kvasir_kv_replication_factor{model_name=\"demo\"}") == 1.5);
    assert_true(value_of(page, "kvasir_request_success_total{model_name=\"demo\",finished_reason="
                               "\"length\"}") == 1);
    assert_true(value_of(page, "kvasir_request_success_total{model_name=\"demo\",finished_reason="
                               "\"stop\"}") == 0);
    assert_true(value_of(page, "kvasir_requests_rejected_total{model_name=\"demo\",reason="
                               "\"overload\"}") == 1);
    assert_true(value_of(page, "kvasir_build_info{version=\"0.1.0\"}") == 1);
    bytes_destroy(&out);
}

static void test_metrics_histogram_buckets_are_cumulative(void **state)
{
    (void)state;
    static struct metrics m;
    metrics_init(&m, "d", "v");
    const uint64_t ms[] = {1, 5, 6, 300, 3000000}; // 1 ms is on a bound; 3,000 s is past the last
    for (size_t i = 0; i < 5; i++) {
        metrics_observe(&m, METRICS_TIME_TO_FIRST_TOKEN, ms[i] * NS_PER_MS);
    }
    struct bytes out;
    const char *page = render(&m, 0, &out);
    const char *name = "kvasir_time_to_first_token_seconds";

    const struct {
        const char *le;
        double count;
    } buckets[] = {{"0.001", 1}, {"0.005", 2}, {"0.01", 3}, {"0.25", 3},
                   {"0.5", 4},   {"2560", 4},  {"+Inf", 5}};

    char sample[200];
    for (size_t i = 0; i < sizeof buckets / sizeof buckets[0]; i++) {
        snprintf(sample, sizeof sample, "%s_bucket{model_name=\"d\",le=\"%s\"}", name,
                 buckets[i].le);
        assert_true(value_of(page, sample) == buckets[i].count);
    }
    snprintf(sample, sizeof sample, "%s_count{model_name=\"d\"}", name);
    assert_true(value_of(page, sample) == 5);
    snprintf(sample, sizeof sample, "%s_sum{model_name=\"d\"}", name);
    assert_close(value_of(page, sample), 3000.312, 1e-5, 0);
    bytes_destroy(&out);
}

static void test_metrics_show_only_groups_that_exist(void **state)
{
    (void)state;
    static struct metrics m;
    metrics_init(&m, "d", "v");
    atomic_store(&m.groups[2].present, true);
    atomic_store(&m.groups[2].generation, 3);
    atomic_store(&m.groups[2].kv_blocks_used, 1);
    atomic_store(&m.groups[2].kv_blocks_total, 4);
    atomic_store(&m.groups[2].heard_ns, 5 * NS_PER_S);
    atomic_store(&m.groups[2].restarts[METRICS_RESTART_HANG], 2);
    struct bytes out;
    const char *page = render(&m, 7 * NS_PER_S, &out);
    assert_true(value_of(page, "kvasir_group_generation{model_name=\"d\",group=\"2\"}") == 3);
    assert_true(value_of(page, "kvasir_kv_cache_usage_perc{model_name=\"d\",group=\"2\"}") == 0.25);
    assert_true(
        value_of(page, "kvasir_group_heartbeat_age_seconds{model_name=\"d\",group=\"2\"}") == 2);
    assert_true(value_of(page, "kvasir_group_restarts_total{model_name=\"d\",group=\"2\",reason="
                               "\"hang\"}") == 2);
    assert_null(strstr(page, "group=\"0\""));
    bytes_destroy(&out);
}

/* Every line is HELP, TYPE or a sample of the family that was announced last. */
static void test_metrics_page_is_well_formed(void **state)
{
    (void)state;
    static struct metrics m;
    metrics_init(&m, "a\\b\"c\nd", "v");
    struct bytes out;
    char *page = render(&m, 0, &out);
    assert_non_null(strstr(page, "model_name=\"a\\\\b\\\"c\\nd\""));
    char family[100] = "";
    int n_families = 0;
    char *rest = NULL;
    for (char *line = strtok_r(page, "\n", &rest); line != NULL;
         line = strtok_r(NULL, "\n", &rest)) {
        if (strncmp(line, "# HELP ", 7) == 0) {
            snprintf(family, sizeof family, "%.*s", (int)strcspn(line + 7, " "), line + 7);
            n_families++;
        } else if (strncmp(line, "# TYPE ", 7) == 0) {
            assert_memory_equal(line + 7, family, strlen(family));
        } else {
            assert_memory_equal(line, family, strlen(family));
            assert_non_null(strchr(line, '{'));
        }
    }
    assert_true(n_families > 20);
    bytes_destroy(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_metrics_show_what_was_counted),
        cmocka_unit_test(test_metrics_histogram_buckets_are_cumulative),
        cmocka_unit_test(test_metrics_show_only_groups_that_exist),
        cmocka_unit_test(test_metrics_page_is_well_formed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

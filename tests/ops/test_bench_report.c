/*
 * test_bench_report.c - the report of a record made by hand: every figure computed on paper
 */
#include "tests/support/test.h"

#include <string.h>

#include "ops/bench_report.h"

#define MS 1000000ull
#define S  (1000 * MS)

enum { N = 5 };

/*
 * Times in ms from the start, tokens, and what came of it:
 *   0: sent   0, first 100, last 400, end 400, 4 tokens   TTFT 100, TPOT 100, E2EL 400, 10 tok/s
 *   1: sent  50, first 250, last 650, end 690, 3 tokens   TTFT 200, TPOT 220, E2EL 640,  5 tok/s
 *   2: sent 100, first 150, end 160, 1 token              TTFT  50, no TPOT, E2EL 60
 *   3: refused; 4: broken off after 2 tokens
 */
static struct bench_record record_of(struct bench_request requests[N], double gaps_s[5],
                                     uint64_t second_tokens[2])
{
    static const struct bench_request made[N] = {
        {.due_ns = S,
         .start_ns = S,
         .first_ns = S + 100 * MS,
         .last_ns = S + 400 * MS,
         .end_ns = S + 400 * MS,
         .input_tokens = 10,
         .cached_tokens = 8,
         .output_tokens = 4},
        {.due_ns = S + 49 * MS,
         .start_ns = S + 50 * MS,
         .first_ns = S + 250 * MS,
         .last_ns = S + 650 * MS,
         .end_ns = S + 690 * MS,
         .input_tokens = 20,
         .output_tokens = 3},
        {.due_ns = S + 98 * MS,
         .start_ns = S + 100 * MS,
         .first_ns = S + 150 * MS,
         .last_ns = S + 150 * MS,
         .end_ns = S + 160 * MS,
         .input_tokens = 30,
         .output_tokens = 1},
        {.due_ns = S + 200 * MS,
         .start_ns = S + 200 * MS,
         .end_ns = S + 201 * MS,
         .status = {.code = STATUS_RESOURCE_EXHAUSTED, .msg = "full"}},
        {.due_ns = S + 200 * MS,
         .start_ns = S + 200 * MS,
         .first_ns = S + 300 * MS,
         .last_ns = S + 310 * MS,
         .end_ns = S + 900 * MS,
         .output_tokens = 2,
         .status = {.code = STATUS_UNAVAILABLE, .msg = "gone"}},
    };
    memcpy(requests, made, sizeof made);
    const double gaps[] = {0.1, 0.1, 0.1, 0.15, 0.25};
    memcpy(gaps_s, gaps, sizeof gaps);
    second_tokens[0] = 3;
    second_tokens[1] = 7;
    return (struct bench_record){
        .requests = requests,
        .n = N,
        .gaps_s = gaps_s,
        .n_gaps = 5,
        .second_tokens = second_tokens,
        .n_seconds = 2,
        .begin_ns = S,
        .end_ns = 3 * S,
        .max_concurrent = 4,
    };
}

static double number(const json_t *report, const char *key)
{
    const json_t *value = json_object_get(report, key);
    if (!json_is_number(value)) {
        fail_msg("no number %s", key);
    }
    return json_number_value(value);
}

static const struct bench_report_options options = {
    .model = "m",
    .request_rate = 20,
    .percentiles = {50, 99.9},
    .n_percentiles = 2,
    .goodput_ttft_ms = 150,
    .goodput_tpot_ms = 101,
};

static void test_bench_report_has_vllms_fields(void **state)
{
    (void)state;

    static const struct {
        const char *key;
        double want;
    } wants[] = {
        {"duration", 2},
        {"completed", 3},
        {"failed", 2},
        {"cancelled", 0},
        {"rejected", 1},
        {"rejected_without_retry_after", 1},
        {"mean_rejection_ms", 1},
        {"num_prompts", 5},
        {"total_input_tokens", 60},
        {"total_cached_tokens", 8},
        {"total_output_tokens", 8},
        {"request_throughput", 1.5},
        {"request_goodput", 1}, // the first and the third
        {"output_throughput", 4},
        {"total_token_throughput", 34},
        {"max_output_tokens_per_s", 7},
        {"max_concurrent_requests", 4},
        {"max_send_delay_ms", 2},
        {"mean_ttft_ms", 350.0 / 3},
        {"median_ttft_ms", 100},
        {"p50_ttft_ms", 100},
        {"p99.9_ttft_ms", 199.8},
        {"mean_tpot_ms", 160},
        {"std_tpot_ms", 60},
        {"mean_itl_ms", 140},
        {"median_itl_ms", 100},
        {"mean_e2el_ms", 1100.0 / 3},
        {"median_e2el_ms", 400},
        {"min_stream_tok_s", 5},
        {"max_stream_tok_s", 10},
        {"stream_rate_ratio", 2},
    };
    struct bench_request requests[N];
    double gaps_s[5];
    uint64_t second_tokens[2];
    const struct bench_record record = record_of(requests, gaps_s, second_tokens);
    json_t *report = bench_report_make(&options, &record);
    assert_non_null(report);
    for (size_t i = 0; i < sizeof wants / sizeof wants[0]; i++) {
        assert_close(number(report, wants[i].key), wants[i].want, 1e-9, 1e-9);
    }
    const json_t *errors = json_object_get(report, "errors_by_status");
    assert_close(number(errors, "RESOURCE_EXHAUSTED"), 1, 0, 0);
    assert_close(number(errors, "UNAVAILABLE"), 1, 0, 0);
    json_decref(report);
}

static void test_bench_report_prints_vllms_lines(void **state)
{
    (void)state;
    struct bench_request requests[N];
    double gaps_s[5];
    uint64_t second_tokens[2];
    char text[8192] = "";
    const struct bench_record record = record_of(requests, gaps_s, second_tokens);
    json_t *report = bench_report_make(&options, &record);
    FILE *out = fmemopen(text, sizeof text, "w");
    assert_non_null(out);
    bench_report_print(report, &options, out);
    fclose(out);
    static const char *const lines[] = {
        "============ Serving Benchmark Result ============\n",
        "Successful requests:                     3         \n",
        "Request goodput (req/s):                 1.00      \n",
        "Total token throughput (tok/s):          34.00     \n",
        "---------------Time to First Token----------------\n",
        "P99.9 TTFT (ms):                         199.80    \n",
        "-----Time per Output Token (excl. 1st token)------\n",
        "Mean ITL (ms):                           140.00    \n",
    };
    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++) {
        if (strstr(text, lines[i]) == NULL) {
            fail_msg("no line '%s' in:\n%s", lines[i], text);
        }
    }
    json_decref(report);
}

static void test_bench_report_refuses_to_call_a_run_good(void **state)
{
    (void)state;
    struct bench_request requests[N];
    double gaps_s[5];
    uint64_t second_tokens[2];
    char text[1024] = "";
    struct bench_record record = record_of(requests, gaps_s, second_tokens);
    FILE *out = fmemopen(text, sizeof text, "w");
    assert_non_null(out);
    requests[0].status = requests[3].status;
    assert_status_says(bench_report_verdict(&record, out), STATUS_RESOURCE_EXHAUSTED,
                       "3 of 5 requests failed");
    fclose(out);
    assert_non_null(strstr(text, "2 x RESOURCE_EXHAUSTED: full"));
    assert_non_null(strstr(text, "1 x UNAVAILABLE: gone"));
    record.requests = &requests[1];
    record.n = 2;
    assert_status_ok(bench_report_verdict(&record, stderr));
}

static void test_bench_report_compares(void **state)
{
    (void)state;
    char text[4096] = "";
    json_t *old = json_pack("{s:f s:i s:s}", "output_throughput", 2.0, "failed", 0, "date", "x");
    json_t *now = json_pack("{s:f s:i s:s}", "output_throughput", 5.0, "failed", 1, "date", "y");
    FILE *out = fmemopen(text, sizeof text, "w");
    assert_non_null(out);
    bench_report_compare(now, old, out);
    fclose(out);
    assert_non_null(strstr(text, "2.00           5.00     2.500"));
    assert_null(strstr(text, "date"));
    json_decref(old);
    json_decref(now);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bench_report_has_vllms_fields),
        cmocka_unit_test(test_bench_report_prints_vllms_lines),
        cmocka_unit_test(test_bench_report_refuses_to_call_a_run_good),
        cmocka_unit_test(test_bench_report_compares),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

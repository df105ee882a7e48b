/*
 * bench_tokenizer - how long the worst texts take
 *
 * What:   bench_tokenizer DIR...: for each tokenizer, text of one class of characters, 1 MB and 10 MB of it. A line per
 *         class: processor seconds of the larger text, how many times those of the smaller one (10 where time is linear), and
 *         tokens. Exit status 1 when a text takes more than 2 s.
 * Thread: main
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/utf8.h"
#include "coordinator/tokenizer/tokenizer.h"

#define TEXT_BYTES ((size_t)10 * 1000 * 1000)
#define LIMIT_S    2.0

struct text_class {
    const char *name;
    uint32_t first, n; /* random code points of this range; n == 1: always the same */
};

static const struct text_class classes[] = {
    {.name = "a", .first = 'a', .n = 1},
    {.name = "letters", .first = 'a', .n = 26},
    {.name = "a and b", .first = 'a', .n = 2},
    {.name = "spaces", .first = ' ', .n = 1},
    {.name = "tabs", .first = '\t', .n = 1},
    {.name = "newlines", .first = '\n', .n = 1},
    {.name = "zeros", .first = '0', .n = 1},
    {.name = "digits", .first = '0', .n = 10},
    {.name = "punctuation", .first = '!', .n = 15},
    {.name = "dashes", .first = '-', .n = 1},
    {.name = "U+2581", .first = 0x2581, .n = 1},
    {.name = "one CJK character", .first = 0x4E2D, .n = 1},
    {.name = "CJK", .first = 0x4E00, .n = 20000},
    {.name = "Hangul", .first = 0xAC00, .n = 11000},
    {.name = "combining acute", .first = 0x301, .n = 1},
    {.name = "combining marks", .first = 0x300, .n = 0x50},
    {.name = "emoji", .first = 0x1F600, .n = 0x40},
    {.name = "private use", .first = 0xF0000, .n = 0xFFF0},
};

/* Fills up to size bytes with whole characters; returns how many. */
static size_t fill(const struct text_class *class, char *text, size_t size)
{
    uint64_t random = 1;
    size_t at = 0;
    while (at + 4 <= size) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        const uint32_t offset = (uint32_t)((random >> 33) % class->n);
        at += utf8_encode(class->first + offset, (uint8_t *)text + at);
    }
    return at;
}

/* Processor time of this thread: others may use the machine. */
static double cpu_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static status_t time_encode(const struct tokenizer *tokenizer, const char *text, size_t size,
                            double *seconds_out, size_t *n_out)
{
    struct token_list list = {0};
    const double begin = cpu_seconds();
    TRY(tokenizer_encode(tokenizer, text, size, 0, &list));
    *seconds_out = cpu_seconds() - begin;
    *n_out = list.n;
    token_list_destroy(&list);
    return status_ok();
}

static status_t run_class(const struct tokenizer *tokenizer, const struct text_class *class,
                          char *text, double *worst)
{
    double small_s;
    double large_s;
    size_t n;
    TRY(time_encode(tokenizer, text, fill(class, text, TEXT_BYTES / 10), &small_s, &n));
    TRY(time_encode(tokenizer, text, fill(class, text, TEXT_BYTES), &large_s, &n));
    printf("  %-18s %6.3f s  %5.1f times  %9zu tokens\n", class->name, large_s, large_s / small_s,
           n);
    *worst = large_s > *worst ? large_s : *worst;
    return status_ok();
}

static status_t run(const char *dir, char *text, double *worst)
{
    struct tokenizer *tokenizer;
    TRY(tokenizer_load(dir, &tokenizer));
    printf("%s\n", dir);
    status_t s = status_ok();
    for (size_t i = 0; i < sizeof classes / sizeof classes[0] && status_is_ok(&s); i++) {
        s = run_class(tokenizer, &classes[i], text, worst);
    }
    tokenizer_free(tokenizer);
    return s;
}

int main(int argc, char **argv)
{
    char *text = malloc(TEXT_BYTES);
    double worst = 0;
    status_t s = text != NULL && argc > 1
                     ? status_ok()
                     : status_errorf(STATUS_INVALID_ARGUMENT, "usage: bench_tokenizer DIR...");
    for (int i = 1; i < argc && status_is_ok(&s); i++) {
        s = run(argv[i], text, &worst);
    }
    free(text);
    if (!status_is_ok(&s)) {
        status_print(stderr, &s);
        return status_exit_code(&s);
    }
    printf("the slowest: %.3f s, limit %.1f s\n", worst, LIMIT_S);
    return worst > LIMIT_S ? 1 : 0;
}

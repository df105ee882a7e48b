#include "ops/bench_progress.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"

enum { BAR = 40 };

#define REDRAW_NS (100 * NS_PER_MS)

void bench_progress_init(struct bench_progress *p, const char *title, size_t n_all)
{
    *p = (struct bench_progress){.title = title,
                                 .n_all = n_all,
                                 .begin_ns = clock_now_ns(clock_system()),
                                 .is_terminal = isatty(STDERR_FILENO) == 1};
}

static void print(const struct bench_progress *p, size_t n_done, uint64_t now_ns)
{
    const double seconds = (double)(now_ns - p->begin_ns) * 1e-9;
    const double rate = seconds > 0 ? (double)n_done / seconds : 0;
    fprintf(stderr, "%zu/%zu requests, %.1f s, %.1f req/s", n_done, p->n_all, seconds, rate);
    if (p->n_failed > 0) {
        fprintf(stderr, ", %zu FAILED", p->n_failed);
    }
}

static void draw_bar(struct bench_progress *p, size_t n_done, uint64_t now_ns)
{
    static const char full[BAR + 1] = "########################################";
    static const char empty[BAR + 1] = "........................................";
    const int n = p->n_all > 0 ? (int)(n_done * BAR / p->n_all) : BAR;
    fprintf(stderr, "\r%s [%.*s%.*s] ", p->title, n, full, BAR - n, empty);
    print(p, n_done, now_ns);
    fputs("\033[K", stderr);
    p->shown_ns = now_ns;
}

void bench_progress_show(struct bench_progress *p, size_t n_done, size_t n_failed)
{
    if (p->title == NULL) {
        return;
    }
    p->n_failed = n_failed;
    const uint64_t now_ns = clock_now_ns(clock_system());
    if (p->is_terminal) {
        if (now_ns - p->shown_ns >= REDRAW_NS) {
            draw_bar(p, n_done, now_ns);
        }
        return;
    }
    const size_t tenths = p->n_all > 0 ? n_done * 10 / p->n_all : 10;
    if (tenths > p->shown_tenths) {
        p->shown_tenths = tenths;
        fprintf(stderr, "%s %zu %%: ", p->title, tenths * 10);
        print(p, n_done, now_ns);
        fputc('\n', stderr);
    }
}

void bench_progress_end(struct bench_progress *p, size_t n_done)
{
    if (p->title != NULL && p->is_terminal) {
        draw_bar(p, n_done, clock_now_ns(clock_system()));
        fputc('\n', stderr);
    }
}

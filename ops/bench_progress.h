/*
 * bench_progress.h - how far a run is: a bar on a terminal, a line each 10 % elsewhere
 *
 * Thread: owner:main
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct bench_progress {
    const char *title; /* NULL: nothing is printed */
    size_t n_all, n_failed;
    uint64_t begin_ns, shown_ns;
    size_t shown_tenths;
    bool is_terminal;
};

void bench_progress_init(struct bench_progress *p, const char *title, size_t n_all);
void bench_progress_show(struct bench_progress *p, size_t n_done, size_t n_failed);
void bench_progress_end(struct bench_progress *p, size_t n_done);

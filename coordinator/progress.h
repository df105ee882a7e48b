/*
 * progress.h - how far loading is, for the person who waits
 *
 * What:      on a terminal one line that is rewritten; elsewhere a line for each 10 %, once loading has taken a
 *            second: what is quick needs no report.
 * Units:     bytes of the checkpoint over all ranks of the group, nanoseconds.
 * Thread:    one owner.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

struct progress {
    FILE *out; /* borrowed; NULL: silent */
    uint64_t began_ns;
    int n_tens;     /* of percent said */
    bool line_open; /* a line on the terminal waits for its end */
};

void progress_begin(struct progress *p, FILE *out, uint64_t now_ns);
void progress_show(struct progress *p, int group, uint64_t done, uint64_t total, uint64_t now_ns);
void progress_end(struct progress *p);

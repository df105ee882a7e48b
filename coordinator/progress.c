#include "coordinator/progress.h"

#include <unistd.h>

#include "base/clock.h"

void progress_begin(struct progress *p, FILE *out, uint64_t now_ns)
{
    *p = (struct progress){.out = out, .began_ns = now_ns};
}

void progress_show(struct progress *p, int group, uint64_t done, uint64_t total, uint64_t now_ns)
{
    if (p->out == NULL || total == 0) {
        return;
    }
    const double seconds = now_ns > p->began_ns ? (double)(now_ns - p->began_ns) * 1e-9 : 1e-9;
    const int percent = (int)((double)done / (double)total * 100);
    const bool terminal = isatty(fileno(p->out)) == 1;
    if (!terminal && (percent / 10 <= p->n_tens || seconds < 1)) {
        return;
    }
    p->n_tens = percent / 10;
    fprintf(p->out, "%sgroup %d: loading %3d %%, %.2f of %.2f GB, %.2f GB/s%s",
            terminal ? "\r" : "", group, percent, (double)done / 1e9, (double)total / 1e9,
            (double)done / 1e9 / seconds, terminal ? "" : "\n");
    fflush(p->out);
    p->line_open = terminal;
}

void progress_end(struct progress *p)
{
    if (p->line_open) {
        fputc('\n', p->out);
        p->line_open = false;
    }
}

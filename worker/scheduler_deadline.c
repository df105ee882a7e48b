#include "worker/scheduler_parts.h"

/* Removing takes from the list: from its end on, what is left to look at stays in place, or moves to the front. */
static int32_t expire(struct scheduler *s, struct sequence *const *list, const int32_t *n,
                      uint64_t now_ns, uint64_t *seq_ids, int32_t max)
{
    int32_t n_expired = 0;
    for (int32_t i = *n - 1; i >= 0 && n_expired < max; i--) {
        const struct scheduler_request *request = &list[i]->request;
        if (request->deadline_ns > 0 && request->deadline_ns <= now_ns) {
            seq_ids[n_expired++] = request->seq_id;
            (void)scheduler_cancel(s, request->seq_id);
            i = i < *n ? i : *n; // a beam takes its group with it
        }
    }
    return n_expired;
}

int32_t scheduler_expire(struct scheduler *s, uint64_t now_ns, uint64_t *seq_ids, int32_t max)
{
    const int32_t n = expire(s, s->waiting, &s->n_waiting, now_ns, seq_ids, max);
    return n + expire(s, s->running, &s->n_running, now_ns, seq_ids + n, max - n);
}

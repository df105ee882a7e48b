#include "coordinator/router.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

status_t router_init(struct router *r, uint32_t max_queued, uint64_t max_queued_tokens,
                     uint32_t max_in_flight)
{
    assert(max_in_flight > 0);
    *r = (struct router){.max_queued = max_queued,
                         .max_queued_tokens = max_queued_tokens,
                         .max_in_flight = max_in_flight};
    // One place more than the bound: for the item that goes out at once, or is put back.
    r->heap = calloc((size_t)max_queued + 1, sizeof(struct router_item *));
    if (r->heap == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory for a queue of %u requests",
                             max_queued);
    }
    return status_ok();
}

void router_destroy(struct router *r)
{
    free(r->heap);
    memset(r, 0, sizeof *r);
}

// ---- the queue: a binary heap whose items know their place ----

static bool goes_before(const struct router_item *a, const struct router_item *b)
{
    return a->priority != b->priority ? a->priority < b->priority : a->arrival < b->arrival;
}

static void put(struct router *r, size_t at, struct router_item *item)
{
    r->heap[at] = item;
    item->at = at;
}

static void sift_up(struct router *r, size_t at, struct router_item *item)
{
    while (at > 0 && goes_before(item, r->heap[(at - 1) / 2])) {
        put(r, at, r->heap[(at - 1) / 2]);
        at = (at - 1) / 2;
    }
    put(r, at, item);
}

static void sift_down(struct router *r, size_t at, struct router_item *item)
{
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= r->n_queued) {
            break;
        }
        if (child + 1 < r->n_queued && goes_before(r->heap[child + 1], r->heap[child])) {
            child++;
        }
        if (!goes_before(r->heap[child], item)) {
            break;
        }
        put(r, at, r->heap[child]);
        at = child;
    }
    put(r, at, item);
}

static void push(struct router *r, struct router_item *item)
{
    assert(r->n_queued <= r->max_queued);
    r->queued_tokens += item->n_tokens;
    sift_up(r, r->n_queued++, item);
}

void router_remove(struct router *r, struct router_item *item)
{
    if (item->at == ROUTER_NOT_QUEUED) {
        return;
    }
    const size_t at = item->at;
    assert(at < r->n_queued && r->heap[at] == item);
    struct router_item *last = r->heap[--r->n_queued];
    if (last != item) {
        // The last item belongs somewhere between the root and the leaves of this place.
        if (at > 0 && goes_before(last, r->heap[(at - 1) / 2])) {
            sift_up(r, at, last);
        } else {
            sift_down(r, at, last);
        }
    }
    r->queued_tokens -= item->n_tokens;
    item->at = ROUTER_NOT_QUEUED;
}

struct router_item *router_pop(struct router *r)
{
    if (r->n_queued == 0) {
        return NULL;
    }
    struct router_item *item = r->heap[0];
    router_remove(r, item);
    return item;
}

// ---- groups ----

/* The ready group with the least in flight; -1 when all are busy or none is ready. */
static int pick_group(const struct router *r)
{
    int best = -1;
    for (int i = 0; i < ROUTER_MAX_GROUPS; i++) {
        const struct router_group *group = &r->groups[i];
        if (group->ready && group->in_flight < r->max_in_flight &&
            (best < 0 || group->in_flight < r->groups[best].in_flight)) {
            best = i;
        }
    }
    return best;
}

status_t router_admit(struct router *r, struct router_item *item)
{
    item->at = ROUTER_NOT_QUEUED;
    const bool goes_at_once = r->n_queued == 0 && pick_group(r) >= 0;
    if (!goes_at_once && r->n_queued >= r->max_queued) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED,
                             "%zu requests are waiting, at most %u (--max-num-queued-reqs)",
                             r->n_queued, r->max_queued);
    }
    // A prompt over the bound must not wait for ever: alone it may.
    if (r->n_queued > 0 && r->queued_tokens + item->n_tokens > r->max_queued_tokens) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED,
                             "%llu prompt tokens are waiting, with these %u over %llu "
                             "(--max-num-queued-tokens)",
                             (unsigned long long)r->queued_tokens, item->n_tokens,
                             (unsigned long long)r->max_queued_tokens);
    }
    item->arrival = r->next_arrival++;
    push(r, item);
    return status_ok();
}

struct router_item *router_next(struct router *r, int *group_out)
{
    const int group = r->n_queued > 0 ? pick_group(r) : -1;
    if (group < 0) {
        return NULL;
    }
    struct router_item *item = router_pop(r);
    r->groups[group].in_flight += item->n_seqs;
    *group_out = group;
    return item;
}

void router_put_back(struct router *r, struct router_item *item, int group)
{
    router_done(r, group, item->n_seqs);
    push(r, item); // its arrival is unchanged, and so is its turn
}

bool router_return(struct router *r, struct router_item *item)
{
    if (r->n_queued >= r->max_queued) {
        return false; // the one place beyond is for what goes out and is put back
    }
    push(r, item);
    return true;
}

void router_done(struct router *r, int group, uint32_t n)
{
    assert(r->groups[group].in_flight >= n);
    r->groups[group].in_flight -= n;
}

void router_set_ready(struct router *r, int group, bool ready)
{
    r->groups[group] = (struct router_group){.ready = ready};
}

bool router_any_ready(const struct router *r)
{
    for (int i = 0; i < ROUTER_MAX_GROUPS; i++) {
        if (r->groups[i].ready) {
            return true;
        }
    }
    return false;
}

uint32_t router_in_flight(const struct router *r)
{
    uint32_t n = 0;
    for (int i = 0; i < ROUTER_MAX_GROUPS; i++) {
        n += r->groups[i].in_flight;
    }
    return n;
}

#include "parallel/plan_fit.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* A rank's memory without KV, with that of one sequence. */
struct need {
    int32_t rank;
    uint64_t fixed, kv;
};

static int64_t blocks_of_sequence(const struct plan_memory_request *r)
{
    const int64_t blocks = plan_blocks_for(r->max_model_len);
    return plan_stripes_for(r->plan, blocks);
}

/* Of the rank that needs most for one sequence. */
static struct need largest_need(const struct plan_memory_request *request)
{
    struct plan_memory_request one = *request;
    struct need most = {0};
    one.blocks_per_lane = blocks_of_sequence(request);
    for (int32_t rank = 0; rank < plan_n_ranks(request->plan); rank++) {
        struct plan_memory m;
        plan_memory_of(&one, rank, &m);
        if (m.total > most.fixed + most.kv) {
            most = (struct need){.rank = rank, .fixed = m.total - m.kv, .kv = m.kv};
        }
    }
    return most;
}

static bool fits(const struct plan_memory_request *request, uint64_t usable_bytes)
{
    const struct need need = largest_need(request);
    return need.fixed + need.kv <= usable_bytes;
}

// ---- what would fit ----

/* The longest context that fits, shorter than the request's; 0: none. */
static int32_t shorter_context(const struct plan_memory_request *request, uint64_t usable_bytes)
{
    int32_t lo = 0;
    int32_t hi = request->max_model_len; // does not fit
    while (hi - lo > 1) {
        struct plan_memory_request tried = *request;
        tried.max_model_len = lo + (hi - lo) / 2;
        if (fits(&tried, usable_bytes)) {
            lo = tried.max_model_len;
        } else {
            hi = tried.max_model_len;
        }
    }
    return lo;
}

static bool layout_fits(const struct plan_memory_request *request, uint64_t usable_bytes,
                        int32_t tp, int32_t pp)
{
    const struct plan *plan = request->plan;
    const struct plan_request layout = {
        .tp = tp,
        .pp = pp,
        .placement = plan->n_classes > 0 ? plan->classes[0].placement : PLAN_AUTO,
    };
    struct plan tried;
    const status_t s = plan_make(request->spec, &layout, &tried);
    if (!status_is_ok(&s)) {
        return false;
    }
    struct plan_memory_request other = *request;
    other.plan = &tried;
    other.max_steps = 0; // as many as those stages need
    const bool fit = fits(&other, usable_bytes);
    plan_destroy(&tried);
    return fit;
}

/* The fewest ranks or stages above the plan's that fit; 0: no number does. */
static int32_t more_ranks(const struct plan_memory_request *request, uint64_t usable_bytes)
{
    for (int32_t tp = request->plan->tp + 1; tp <= request->spec->n_heads; tp++) {
        if (layout_fits(request, usable_bytes, tp, request->plan->pp)) {
            return tp;
        }
    }
    return 0;
}

static int32_t more_stages(const struct plan_memory_request *request, uint64_t usable_bytes)
{
    for (int32_t pp = request->plan->pp + 1; pp <= request->spec->n_layers; pp++) {
        if (layout_fits(request, usable_bytes, request->plan->tp, pp)) {
            return pp;
        }
    }
    return 0;
}

/* The widest dtype of KV narrower than the request's that fits; NULL: none. */
static const char *narrower_kv(const struct plan_memory_request *request, uint64_t usable_bytes)
{
    static const int narrower[] = {DTYPE_BF16, DTYPE_I8};
    for (size_t i = 0; i < sizeof narrower / sizeof narrower[0]; i++) {
        struct plan_memory_request tried = *request;
        tried.kv_dtype = narrower[i];
        if (dtype_bytes(narrower[i]) < dtype_bytes(request->kv_dtype) &&
            fits(&tried, usable_bytes)) {
            return dtype_name(narrower[i]);
        }
    }
    return NULL;
}

/* Appends to what is there, with a comma between. */
static void add(char *buf, size_t buf_bytes, const char *format, ...)
{
    const size_t at = strlen(buf);
    const int comma = snprintf(buf + at, buf_bytes - at, "%s", at > 0 ? ", " : "");
    if (comma >= 0 && at + (size_t)comma < buf_bytes) {
        va_list values;
        va_start(values, format);
        (void)vsnprintf(buf + at + comma, buf_bytes - at - (size_t)comma, format, values);
        va_end(values);
    }
}

void plan_fit_layouts(const struct plan_memory_request *request, uint64_t usable_bytes, char *buf,
                      size_t buf_bytes)
{
    const int32_t tp = more_ranks(request, usable_bytes);
    const int32_t pp = more_stages(request, usable_bytes);
    const char *kv = narrower_kv(request, usable_bytes);
    buf[0] = '\0';
    if (tp > 0) {
        add(buf, buf_bytes, "-tp %d", tp);
    }
    if (pp > 0) {
        add(buf, buf_bytes, "-pp %d", pp);
    }
    if (kv != NULL) {
        add(buf, buf_bytes, "--kv-cache-dtype %s", kv);
    }
}

// ---- the plan itself ----

static status_t too_large(const struct plan_memory_request *request, uint64_t usable_bytes)
{
    const struct need need = largest_need(request);
    const int32_t context = shorter_context(request, usable_bytes);
    char layouts[96];
    char advice[160] = "";
    plan_fit_layouts(request, usable_bytes, layouts, sizeof layouts);
    if (context > 0) {
        add(advice, sizeof advice, "--max-model-len %d", context);
    }
    if (layouts[0] != '\0') {
        add(advice, sizeof advice, "%s", layouts);
    }
    return status_errorf(
        STATUS_FAILED_PRECONDITION,
        "rank %d needs %.3f GB and %.3f GB of KV for a sequence of %d tokens, a device has %.3f" STATUS_FIX
        "%s",
        need.rank, (double)need.fixed / 1e9, (double)need.kv / 1e9, request->max_model_len,
        (double)usable_bytes / 1e9,
        advice[0] != '\0' ? advice : "devices with more memory: no number of them is enough");
}

status_t plan_fit(struct plan_memory_request *request, uint64_t usable_bytes)
{
    if (!fits(request, usable_bytes)) {
        return too_large(request, usable_bytes);
    }
    int64_t blocks =
        plan_memory_blocks_wanted(request->plan, request->max_seqs, request->max_model_len);
    struct plan_memory_request empty = *request;
    empty.blocks_per_lane = 0;
    for (int32_t rank = 0; rank < plan_n_ranks(request->plan); rank++) {
        struct plan_memory m;
        plan_memory_of(&empty, rank, &m);
        const int64_t room =
            plan_kv_blocks_in(request->plan, rank, request->kv_dtype, usable_bytes - m.total);
        const bool keeps =
            plan_kv_bytes(request->plan, rank, request->kv_dtype, request->plan->stripe) > 0;
        blocks = keeps && room < blocks ? room : blocks;
    }
    request->blocks_per_lane = blocks;
    return status_ok();
}

#include <inttypes.h>

#include "parallel/plan_fit.h"
#include "worker/engine_parts.h"
#include "worker/host.h"

/* Of the host's available memory, for the KV pools of all its ranks, when nothing else is said. */
#define KV_MEMORY_SHARE 0.4

/* Block ids are int32. */
#define MAX_BLOCKS_PER_LANE ((int64_t)INT32_MAX)

static struct plan_memory_request memory_request(const struct engine *e, int64_t blocks_per_lane)
{
    const struct plan_device *device = NULL; // a backend that plans do not know counts as the CPU
    const status_t found = plan_device_find(e->options.backend->name, &device);
    return (struct plan_memory_request){
        .plan = e->plan,
        .spec = e->spec,
        .device = status_is_ok(&found) ? device : NULL,
        .embedding_dtype = e->weights.embedding_dtype,
        .dtype = e->options.dtype,
        .kv_dtype = e->options.kv_dtype,
        .quantization = e->options.quantization,
        .max_seqs = e->options.max_num_seqs,
        .max_rows = e->options.max_num_batched_tokens,
        .max_model_len = e->options.max_model_len,
        .max_steps = e->options.max_steps,
        .blocks_per_lane = blocks_per_lane,
        .host_blocks_per_lane = e->limits.host_blocks_per_lane,
    };
}

/* Memory that KV pools of this rank may take. */
struct kv_budget {
    uint64_t available; /* 0: not known */
    double share;       /* of that, when nothing else is said */
    const char *where;
};

/* What the share of the device leaves when weights are there and buffers are to come, cut in equal parts for the ranks that
 * use it. Rounded up: there is a device for each rank, or one more rank on some. */
static status_t device_budget(const struct engine *e, struct kv_budget *budget_out)
{
    enum { MAX_DEVICES = 64 };
    struct device_info devices[MAX_DEVICES];
    int n = 0;
    TRY(e->options.backend->devices(devices, MAX_DEVICES, &n));
    const struct device_info *device = &devices[e->options.device];
    const struct plan_memory_request request = memory_request(e, 0);
    struct plan_memory planned;
    plan_memory_of(&request, e->rank, &planned);
    const uint64_t n_ranks = ((uint64_t)group_host_size(e->group) + (uint64_t)n - 1) / (uint64_t)n;
    const double kept = (1.0 - e->options.device_memory_share) * (double)device->memory_bytes;
    const double left = ((double)device->free_bytes - kept) / (double)n_ranks;
    const double for_kv = left - (double)planned.buffers;
    *budget_out = (struct kv_budget){
        .available = for_kv > 1.0 ? (uint64_t)for_kv : 1,
        .share = 1.0,
        .where = device->name,
    };
    return status_ok();
}

static status_t find_budget(const struct engine *e, struct kv_budget *budget_out)
{
    if (!e->options.backend->host_memory) {
        return device_budget(e, budget_out);
    }
    *budget_out = (struct kv_budget){
        .available = host_memory_available() / (uint64_t)group_host_size(e->group),
        .share = KV_MEMORY_SHARE,
        .where = "this host",
    };
    return status_ok();
}

static int64_t blocks_in(const struct engine *e, uint64_t bytes)
{
    return plan_kv_blocks_in(e->plan, e->rank, e->options.kv_dtype, bytes);
}

static status_t affordable_blocks(const struct engine *e, int64_t *blocks_out)
{
    const uint64_t asked = e->options.kv_cache_bytes;
    struct kv_budget budget;
    TRY(find_budget(e, &budget));
    if (asked > 0 && budget.available > 0 && asked > budget.available) {
        return status_errorf(
            STATUS_FAILED_PRECONDITION,
            "--kv-cache-memory %" PRIu64 ": %" PRIu64
            " bytes are available for each rank of %.60s" STATUS_FIX "--kv-cache-memory %" PRIu64,
            asked, budget.available, budget.where, (uint64_t)((double)budget.available * 0.9));
    }
    int64_t blocks =
        plan_memory_blocks_wanted(e->plan, e->options.max_num_seqs, e->options.max_model_len);
    if (asked > 0) {
        blocks = blocks_in(e, asked);
    } else if (budget.available > 0) {
        const int64_t fit = blocks_in(e, (uint64_t)((double)budget.available * budget.share));
        blocks = fit < blocks ? fit : blocks;
    }
    *blocks_out =
        blocks < MAX_BLOCKS_PER_LANE ? blocks : plan_stripes_in(e->plan, MAX_BLOCKS_PER_LANE);
    return status_ok();
}

/* The smallest of every rank's number: block ids must be good on all of them. */
static status_t smallest(struct comm *comm, int64_t *value)
{
    int64_t least = *value;
    for (int32_t rank = 0; rank < comm->size; rank++) {
        int64_t theirs = *value;
        TRY(comm->ops->broadcast(comm, &theirs, sizeof theirs, rank));
        least = theirs < least ? theirs : least;
    }
    *value = least;
    return status_ok();
}

/* Ranks, stages or a dtype with which one sequence fits into what this rank has now. */
static void advise(const struct engine *e, int64_t blocks, char *buf, size_t buf_bytes)
{
    struct plan_memory_request request = memory_request(e, blocks);
    struct plan_memory planned;
    plan_memory_of(&request, e->rank, &planned);
    plan_fit_layouts(&request, planned.total, buf, buf_bytes);
}

static status_t check_blocks(const struct engine *e, int64_t blocks)
{
    if (blocks >= engine_blocks_per_seq(e)) {
        return status_ok();
    }
    const int64_t need = plan_kv_bytes(e->plan, e->rank, e->options.kv_dtype,
                                       plan_stripes_for(e->plan, engine_blocks_per_seq(e)));
    if (blocks == 0) {
        const int64_t least = plan_kv_bytes(e->plan, e->rank, e->options.kv_dtype, e->plan->stripe);
        return status_errorf(
            STATUS_FAILED_PRECONDITION,
            "no KV block fits: one of %d tokens takes %lld bytes on a rank" STATUS_FIX
            "--kv-cache-memory %lld",
            e->plan->stripe * PLAN_BLOCK_TOKENS, (long long)least, (long long)need);
    }
    char advice[128];
    advise(e, blocks, advice, sizeof advice);
    return status_errorf(
        STATUS_FAILED_PRECONDITION,
        "KV memory holds sequences of %lld tokens, --max-model-len is %d" STATUS_FIX
        "--max-model-len %lld, %s%s--kv-cache-memory %lld (bytes on each rank)",
        (long long)blocks * PLAN_BLOCK_TOKENS, e->options.max_model_len,
        (long long)blocks * PLAN_BLOCK_TOKENS, advice, advice[0] != '\0' ? " or " : "or ",
        (long long)need);
}

status_t engine_size_pool(const struct engine *e, int64_t *blocks_out)
{
    int64_t blocks = 0;
    TRY(group_agree(e->group, affordable_blocks(e, &blocks)));
    TRY(group_agree(e->group, smallest(group_comm(e->group), &blocks)));
    TRY(group_agree(e->group, check_blocks(e, blocks)));
    *blocks_out = blocks;
    return status_ok();
}

/* What the host has for slots of this rank, beside the KV pool where that is the host's too. */
static uint64_t host_room(const struct engine *e, int64_t blocks)
{
    const int64_t pool = plan_kv_bytes(e->plan, e->rank, e->options.kv_dtype, blocks);
    const uint64_t kept = e->options.backend->host_memory ? (uint64_t)pool : 0;
    const uint64_t available = host_memory_available();
    const uint64_t each = available / (uint64_t)group_host_size(e->group);
    if (available == 0) {
        return UINT64_MAX; // not known
    }
    return each > kept ? each - kept : 0;
}

status_t engine_size_slots(const struct engine *e, int64_t blocks, int64_t *slots_out)
{
    int64_t slots = 0;
    if (e->options.swap_bytes > 0) {
        const int64_t block = plan_kv_bytes(e->plan, e->rank, e->options.kv_dtype, 1);
        const status_t fits =
            kv_moves_fit(e->options.swap_bytes, host_room(e, blocks), block, &slots);
        TRY(group_agree(e->group, fits));
        TRY(group_agree(e->group, smallest(group_comm(e->group), &slots)));
    }
    *slots_out = slots < MAX_BLOCKS_PER_LANE ? slots : 0; // no rank keeps anything
    return status_ok();
}

void engine_log_memory(const struct engine *e, int64_t blocks_per_lane)
{
    const struct plan_memory_request request = memory_request(e, blocks_per_lane);
    struct plan_memory planned;
    plan_memory_of(&request, e->rank, &planned);
    log_write(&e->options.log, LOG_INFO, "memory",
              "planned=%" PRIu64 " resident=%" PRIu64 " weights=%" PRIu64 " kv=%" PRIu64
              " buffers=%" PRIu64 " swap=%" PRIu64,
              planned.total, host_memory_resident(), planned.weights, planned.kv, planned.buffers,
              planned.swap);
}

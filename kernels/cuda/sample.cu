/*
 * sample.cu - one token from each row of logits
 *
 * What:     what kernels/cpu/sample.c does, in its order: bias and penalties; temperature; min_p; top_k; top_p; a draw by
 *           Philox keyed by (seed, sample, position). Logprob, rank and alternatives are of the row as it came.
 * Shapes:   logits: rows of [V] float32 at any element; V up to 2^18, odd ones too.
 * Mapping:  one block a row: 1024 threads, 64 for small vocabularies. The row is copied to shared memory where it fits
 *           (V up to 37000 on sm_80, 21000 on sm_86, 52000 on sm_90), else passes read it from the second-level cache.
 *           Filters find their cut digit by digit from histograms: sample_select.cuh.
 * Numerics: weights are integers, sums of them exact: a row's result does not depend on the order of anything. It is the
 *           CPU's token, unless the draw or a filter's goal falls within the rounding of weights (10^-6 of the whole)
 *           of a boundary between two tokens.
 * Cost:     computed, not measured. Passes over the row: largest, sum of e^logit, draw, rank; top_k and top_p two or three
 *           each (those of top_p see only what top_k left); alternatives as top_k. From shared memory a pass of 32000 is at
 *           least 0.55 us (128 bytes a clock) and about 1 us with a dozen instructions a logit; loading it from memory
 *           about 4 us while all of 132 processors load. B = 256 on an H200 are two rounds of
 *           4 + 10 x 1 us with both filters: about 30 us. Greedy needs four passes. A row of 128256 is read once a pass,
 *           from memory when B rows are more than the second-level cache holds: 30 us a pass for B = 256.
 * Graphs:   everything that differs from step to step is read on the device: a recorded sample draws anew from what its
 *           arrays hold when it runs. n_tokens is recorded: the most that they will hold.
 * Source:   Holtzman et al. 2020, arXiv:1904.09751 (top-p); Nguyen et al. 2024, arXiv:2407.01082 (min-p);
 *           Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3" (Philox).
 */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/sample_select.cuh"

enum { MAX_VOCAB = 1 << 18, SMALL_VOCAB = 1024, SMALL_BLOCK = 64, BLOCK = 1024 };

/* All in device memory. */
struct sample_job {
    const float *logits;
    const struct sample_row *rows;
    const struct sample_token *tokens;
    float *adjusted; // [n_tokens]
    struct sample_result *results;
    int32_t *drawn; // [n_drawn]
    int32_t n_tokens, n_vocab, n_drawn;
};

// ---- device helpers ----

/* The first 24 bits of Philox4x32-10: the numerator of u, of base/philox.h. */
static __device__ uint32_t philox_numerator(const struct sample_row *row)
{
    uint32_t c0 = row->position, c1 = row->sample, c2 = 0, c3 = 0;
    uint32_t k0 = (uint32_t)row->seed, k1 = (uint32_t)(row->seed >> 32);
    for (int round = 0; round < 10; round++) {
        const uint64_t p0 = (uint64_t)0xD2511F53u * c0;
        const uint64_t p1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return c0 >> 8;
}

/* The key of the largest logit above, the complement of its lowest id below; all ones where the row has a NaN or +inf. */
static __device__ mass_t find_largest(struct sample_shared *shared, const struct sample_view *view)
{
    mass_t best = 0;
#pragma unroll 4
    for (int32_t id = (int32_t)threadIdx.x; id < view->n; id += (int32_t)blockDim.x) {
        const float logit = sample_logit(view, id);
        const mass_t here = (mass_t)sample_key(logit) << 32 | ~(uint32_t)id;
        best = max(best, logit < INFINITY ? here : ~0ull);
    }
    return sample_block_max(shared, best);
}

/* Something can be drawn from it: no NaN, no +inf, and not only -inf. */
static __device__ bool is_usable(mass_t largest)
{
    return largest != ~0ull && (uint32_t)(largest >> 32) > sample_key(-INFINITY);
}

static __device__ float logit_of(mass_t largest)
{
    return sample_of_key((uint32_t)(largest >> 32));
}

/* Rounded as the CPU rounds: no fused operations. */
static __device__ float adjust(const struct sample_row *row, const struct sample_token *token,
                               float logit)
{
    float x = logit + token->bias;
    if (token->in_prompt || token->n_generated > 0) {
        x = x > 0.0f ? x / row->repetition : __fmul_rn(x, row->repetition);
    }
    x = __fsub_rn(x, __fmul_rn(row->frequency, (float)token->n_generated));
    return token->n_generated > 0 ? x - row->presence : x;
}

/* The logit as the request changes it, or the log probability, which is then as far above the others as they are. */
static __device__ float adjust_row(const struct sample_shared *shared, const struct sample_row *row,
                                   const struct sample_token *token, float logit)
{
    if (!row->of_logprobs) {
        return adjust(row, token, logit);
    }
    const float logprob = (float)((double)logit - shared->log_sum);
    return (float)((double)adjust(row, token, logprob) + shared->log_sum);
}

/* The id that counts as generated once more; -1: none. */
static __device__ int32_t pending_id(const struct sample_job *job, const struct sample_row *row)
{
    const bool counts = row->repetition != 1.0f || row->presence != 0.0f || row->frequency != 0.0f;
    if (!counts || row->pending_slot < 0 || row->pending_slot >= job->n_drawn) {
        return -1;
    }
    const int32_t id = job->drawn[row->pending_slot];
    return id < job->n_vocab ? id : -1;
}

/* The pending id is changed with the tokens when they list it, alone when they do not. `changed` has the tokens' bits. */
static __device__ void change_pending(const struct sample_row *row, int32_t pending,
                                      const uint32_t *changed, struct sample_view *view)
{
    const bool listed = pending < 0 || (changed[pending / 32] >> (pending % 32) & 1u) != 0;
    if (!listed && !row->only_listed) {
        struct sample_token token = {};
        token.id = pending;
        token.n_generated = 1;
        view->alone = pending;
        view->alone_logit = adjust(row, &token, view->logits[pending]);
    }
}

/*
 * Fills in what the request changes of the row. Tokens past the array and ids past the vocabulary are left out: the launcher
 * refuses them, but a recorded graph may meet arrays that it never saw.
 */
static __device__ void change(struct sample_shared *shared, const struct sample_job *job,
                              const struct sample_row *row, int32_t pending, uint32_t *room,
                              struct sample_view *view)
{
    const int32_t n_groups = (view->n + SAMPLE_GROUP - 1) / SAMPLE_GROUP;
    const int32_t n_words = n_groups * (SAMPLE_GROUP / 32);
    uint32_t *const changed = room, *const before = room + n_words;
    const int32_t first = max(0, min(row->first_token, job->n_tokens));
    const int32_t n_tokens = max(0, min(row->n_tokens, job->n_tokens - first));
    const struct sample_token *const tokens = job->tokens + first;
    const uint32_t n_vocab = (uint32_t)view->n;

    for (int32_t i = (int32_t)threadIdx.x; i < n_words; i += (int32_t)blockDim.x) {
        changed[i] = 0;
    }
    __syncthreads();
    for (int32_t i = (int32_t)threadIdx.x; i < n_tokens; i += (int32_t)blockDim.x) {
        const uint32_t id = (uint32_t)tokens[i].id;
        if (id < n_vocab) {
            atomicOr(&changed[id / 32], 1u << (id % 32));
        }
    }
    __syncthreads();
    const int32_t each = (n_groups + (int32_t)blockDim.x - 1) / (int32_t)blockDim.x;
    const int32_t group = min((int32_t)threadIdx.x * each, n_groups);
    const int32_t group_end = min(group + each, n_groups);
    mass_t n_own = 0, total;
    for (int32_t i = group * (SAMPLE_GROUP / 32); i < group_end * (SAMPLE_GROUP / 32); i++) {
        n_own += (mass_t)__popc(changed[i]);
    }
    uint32_t slot = (uint32_t)sample_block_scan(shared, n_own, &total);
    for (int32_t g = group; g < group_end; g++) {
        before[g] = slot;
        for (int32_t i = 0; i < SAMPLE_GROUP / 32; i++) {
            slot += (uint32_t)__popc(changed[g * (SAMPLE_GROUP / 32) + i]);
        }
    }
    __syncthreads();
    view->changed = changed;
    view->before = before;
    view->adjusted = job->adjusted + first;
    view->only_changed = row->only_listed;
    change_pending(row, pending, changed, view);
    for (int32_t i = (int32_t)threadIdx.x; i < n_tokens; i += (int32_t)blockDim.x) {
        struct sample_token token = tokens[i];
        if ((uint32_t)token.id < n_vocab) {
            token.n_generated += token.id == pending;
            job->adjusted[first + (int32_t)sample_slot(view, token.id)] =
                adjust_row(shared, row, &token, view->logits[token.id]);
        }
    }
    __syncthreads();
}

/* The n_top most likely of the row, into the result; at most 20. */
static __device__ void find_top(struct sample_shared *shared, const struct sample_view *view,
                                struct sample_weights weights, int32_t n_top)
{
    struct sample_cut cut = {-INFINITY, INT32_MAX};
    sample_keep(shared, view, weights, SAMPLE_COUNT, (mass_t)n_top, &cut);
    // The histogram's room takes what is kept, in any order; each finds its place among them.
    uint32_t *const ids = shared->counts;
    if (threadIdx.x == 0) {
        shared->n_top = 0;
    }
    __syncthreads();
    for (int32_t id = (int32_t)threadIdx.x; id < view->n; id += (int32_t)blockDim.x) {
        if (sample_is_kept(cut, sample_logit(view, id), id)) {
            ids[atomicAdd(&shared->n_top, 1u)] = (uint32_t)id;
        }
    }
    __syncthreads();
    if (threadIdx.x < shared->n_top) {
        const int32_t id = (int32_t)ids[threadIdx.x];
        const float logit = sample_logit(view, id);
        int32_t place = 0;
        for (uint32_t i = 0; i < shared->n_top; i++) {
            const int32_t other = (int32_t)ids[i];
            const float its = sample_logit(view, other);
            place += its > logit || (its == logit && other < id);
        }
        shared->result.top_ids[place] = id;
        shared->result.top_logprobs[place] = (float)((double)logit - shared->log_sum);
    }
    __syncthreads();
}

/* The smallest float whose weight is at least min_p; by one thread, in double precision. */
static __device__ float limit_of_min_p(struct sample_shared *shared, const struct sample_row *row,
                                       float largest)
{
    if (threadIdx.x == 0) {
        const double limit = (double)largest + (double)row->temperature * log((double)row->min_p);
        const float nearest = (float)limit;
        shared->limit = (double)nearest < limit ? nextafterf(nearest, INFINITY) : nearest;
    }
    __syncthreads();
    return shared->limit;
}

static __device__ void keep_top_p(struct sample_shared *shared, const struct sample_view *view,
                                  const struct sample_row *row, struct sample_weights weights,
                                  struct sample_cut *cut)
{
    const mass_t whole = sample_total(shared, view, weights, *cut);
    // All ids of less than this weight cannot make up 1 - top_p together; a little less, for rounding.
    const float spare = 0.99f * (1.0f - row->top_p) * (float)whole * 0x1p-44f / (float)view->n;
    if (spare > 0.0f) {
        const float limit = weights.largest + row->temperature * logf(spare);
        sample_raise(cut, nextafterf(limit, -INFINITY));
    }
    const mass_t goal = (mass_t)ceil((double)row->top_p * (double)whole);
    sample_keep(shared, view, weights, SAMPLE_MASS, goal, cut);
}

static __device__ int32_t choose(struct sample_shared *shared, const struct sample_view *view,
                                 const struct sample_row *row, mass_t largest)
{
    if (row->temperature == 0.0f) {
        return (int32_t) ~(uint32_t)largest;
    }
    const struct sample_weights weights = {logit_of(largest),
                                           fminf(1.44269504f / row->temperature, FLT_MAX)};
    struct sample_cut cut = {-FLT_MAX, INT32_MAX}; // -inf weighs nothing
    if (row->min_p > 0.0f) {
        sample_raise(&cut, limit_of_min_p(shared, row, weights.largest));
    }
    if (row->top_k > 0) {
        sample_keep(shared, view, weights, SAMPLE_COUNT, (mass_t)row->top_k, &cut);
    }
    if (row->top_p < 1.0f) {
        keep_top_p(shared, view, row, weights, &cut);
    }
    return sample_search(shared, view, weights, cut, SAMPLE_MASS, philox_numerator(row));
}

/* 1 + how many come before id. */
static __device__ int32_t rank_of(struct sample_shared *shared, const struct sample_view *raw,
                                  int32_t id)
{
    const float mine = raw->logits[id];
    mass_t n_before = 0;
#pragma unroll 4
    for (int32_t i = (int32_t)threadIdx.x; i < raw->n; i += (int32_t)blockDim.x) {
        const float other = raw->logits[i];
        n_before += other > mine || (other == mine && i < id);
    }
    return 1 + (int32_t)sample_block_sum(shared, n_before);
}

static __device__ void copy_row(const float *from, int32_t n, float *to)
{
    enum { AT_ONCE = 8 };

    const int32_t step = (int32_t)blockDim.x;
    for (int32_t first = (int32_t)threadIdx.x; first < n; first += AT_ONCE * step) {
        float logits[AT_ONCE];
#pragma unroll
        for (int32_t i = 0; i < AT_ONCE; i++) {
            logits[i] = first + i * step < n ? from[first + i * step] : 0.0f;
        }
#pragma unroll
        for (int32_t i = 0; i < AT_ONCE; i++) {
            if (first + i * step < n) {
                to[first + i * step] = logits[i];
            }
        }
    }
    __syncthreads();
}

/* Everything but the token: zeros, and no token. */
static __device__ void clear_result(struct sample_shared *shared)
{
    uint32_t *const words = (uint32_t *)&shared->result;
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < sizeof shared->result / 4; i += blockDim.x) {
        words[i] = 0;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        shared->result.id = -1;
        shared->result.nan = 1;
    }
    __syncthreads();
}

/* The row's result into shared->result. */
static __device__ void sample_one(struct sample_shared *shared, const struct sample_job *job,
                                  const struct sample_row *row, uint32_t *room,
                                  const struct sample_view *raw)
{
    mass_t largest = find_largest(shared, raw);
    if (!is_usable(largest)) {
        return;
    }
    const struct sample_weights weights = {logit_of(largest), 1.44269504f};
    const struct sample_cut all = {-FLT_MAX, INT32_MAX};
    const mass_t sum = sample_total(shared, raw, weights, all);
    if (threadIdx.x == 0) {
        shared->log_sum = (double)weights.largest + log((double)sum * 0x1p-44);
    }
    __syncthreads();
    const int32_t n_top = min(row->n_top, SAMPLE_MAX_TOP);
    if (n_top > 0 && !row->of_logprobs) {
        find_top(shared, raw, weights, n_top);
    }
    int32_t id = row->forced_id;
    if (!row->forced) {
        struct sample_view view = *raw;
        const int32_t pending = pending_id(job, row);
        if (row->n_tokens > 0 || row->only_listed || pending >= 0) {
            change(shared, job, row, pending, room, &view);
            largest = find_largest(shared, &view);
            if (!is_usable(largest)) {
                clear_result(shared); // everything finite is out, or a bias of +inf
                return;
            }
        }
        if (n_top > 0 && row->of_logprobs) {
            const struct sample_weights changed = {logit_of(largest), weights.scale};
            find_top(shared, &view, changed, n_top);
        }
        id = choose(shared, &view, row, largest);
    } else if (id < 0 || id >= raw->n) {
        clear_result(shared); // of an array that the launcher never saw
        return;
    }
    const int32_t rank = rank_of(shared, raw, id);
    if (threadIdx.x == 0) {
        shared->result.id = id;
        shared->result.logprob = (float)((double)raw->logits[id] - shared->log_sum);
        shared->result.rank = rank;
        shared->result.nan = 0;
    }
}

// ---- kernel ----

template <int threads, bool resident>
__global__ void __launch_bounds__(threads, 1) sample_rows(struct sample_job job)
{
    __shared__ struct sample_shared shared;
    KVASIR_SHARED(room);
    const struct sample_row *const row = &job.rows[blockIdx.x];
    if (row->logits < 0) {
        return; // a row that only fills up a recording
    }
    const int32_t n_copied = resident ? job.n_vocab : 0;
    struct sample_view raw = {};
    raw.n = job.n_vocab;
    raw.alone = -1;
    raw.logits = job.logits + row->logits;
    if (resident) {
        copy_row(raw.logits, raw.n, (float *)room);
        raw.logits = (const float *)room;
    }
    clear_result(&shared);
    sample_one(&shared, &job, row, (uint32_t *)room + n_copied, &raw);
    __syncthreads();
    const uint32_t *const words = (const uint32_t *)&shared.result;
    uint32_t *const out = (uint32_t *)&job.results[blockIdx.x];
    for (uint32_t i = threadIdx.x; i < sizeof shared.result / 4; i += threads) {
        out[i] = words[i];
    }
    if (threadIdx.x == 0 && row->slot >= 0 && row->slot < job.n_drawn) {
        job.drawn[row->slot] = shared.result.id;
    }
}

// ---- launchers ----

/* Device memory of the stream's sample ops: adjusted logits. */
struct cuda_sampler {
    int device;
    size_t size;
    unsigned char *memory;
};

extern "C" void cuda_sample_free(struct cuda_sampler *sampler)
{
    if (sampler != NULL) {
        cudaFree(sampler->memory);
        free(sampler);
    }
}

/* Room for this many bytes; waits for the stream and allocates when a call is larger than all before it. */
static status_t grow(struct backend_stream *stream, size_t size)
{
    if (stream->sampler != NULL && stream->sampler->size >= size) {
        return status_ok();
    }
    if (stream->sampler == NULL) {
        stream->sampler = (struct cuda_sampler *)calloc(1, sizeof *stream->sampler);
        if (stream->sampler == NULL) {
            return status_errorf(STATUS_RESOURCE_EXHAUSTED, "sample: no memory");
        }
    }
    struct cuda_sampler *const sampler = stream->sampler;
    TRY(cuda_status(cudaSetDevice(stream->device), "set device", stream->device));
    TRY(cuda_status(cudaStreamSynchronize(stream->stream), "sample", stream->device));
    TRY(cuda_status(cudaFree(sampler->memory), "sample", stream->device));
    sampler->memory = NULL;
    sampler->size = 0;
    void *memory = NULL;
    TRY(cuda_status(cudaMalloc(&memory, size), "sample", stream->device));
    sampler->memory = (unsigned char *)memory;
    sampler->size = size;
    return status_ok();
}

template <int threads, bool resident>
static status_t launch(struct backend_stream *stream, const struct sample_job *job, int32_t n_rows,
                       size_t shared_bytes)
{
    const cudaError_t error =
        cudaFuncSetAttribute((const void *)(sample_rows<threads, resident>),
                             cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared_bytes);
    TRY(cuda_status(error, "sample", stream->device));
    KVASIR_LAUNCH((sample_rows<threads, resident>), (unsigned)n_rows, threads, shared_bytes,
                  stream->stream, *job);
    return cuda_launched(stream, "sample");
}

static status_t launch_rows(struct backend_stream *stream, const struct sample_job *job,
                            int32_t n_rows)
{
    const size_t n_groups = ((size_t)job->n_vocab + SAMPLE_GROUP - 1) / SAMPLE_GROUP;
    const size_t change_bytes = n_groups * (SAMPLE_GROUP / 8 + sizeof(uint32_t));
    const size_t row_bytes = (size_t)job->n_vocab * sizeof(float);
    if (job->n_vocab <= SMALL_VOCAB) {
        return launch<SMALL_BLOCK, true>(stream, job, n_rows, row_bytes + change_bytes);
    }
    if (row_bytes + change_bytes + sizeof(struct sample_shared) <= stream->shared_bytes) {
        return launch<BLOCK, true>(stream, job, n_rows, row_bytes + change_bytes);
    }
    return launch<BLOCK, false>(stream, job, n_rows, change_bytes);
}

/*
 * Device memory grows when a call has more tokens than all before it, and never while a graph is recorded: sample once with
 * the most before.
 */
extern "C" status_t cuda_sample(struct backend_stream *stream, const struct sample_args *a)
{
    if (a->n_rows < 0 || a->n_tokens < 0 || a->n_drawn < 0 || a->n_vocab < 1 ||
        a->n_vocab > MAX_VOCAB) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "sample: %d rows of %d ids, at most %d; %d tokens, %d slots",
                             a->n_rows, a->n_vocab, (int)MAX_VOCAB, a->n_tokens, a->n_drawn);
    }
    if (a->n_rows == 0) {
        return status_ok();
    }
    TRY(grow(stream, ((size_t)a->n_tokens + 1) * sizeof(float)));
    struct sample_job job = {};
    job.logits = a->logits;
    job.rows = a->rows;
    job.tokens = a->tokens;
    job.adjusted = (float *)stream->sampler->memory;
    job.results = a->results;
    job.drawn = a->drawn;
    job.n_tokens = a->n_tokens;
    job.n_vocab = a->n_vocab;
    job.n_drawn = a->n_drawn;
    return launch_rows(stream, &job, a->n_rows);
}

/*
 * attention_split.c - see attention_split.h
 *
 * What:   a kind's rows are listed as jobs; a job is cut into equal parts of at most `chunk` tiles. The chunk is the one of a
 *         few candidates around tiles / blocks for which an estimate of the time is least:
 *
 *           rounds * (longest part + overhead), at least all work / blocks, plus merge * parts of the most cut job
 *
 *         where rounds counts only parts of more than half a chunk: two smaller ones are no longer than one large one.
 * Source: the trade-off is that of FlashInfer's scheduler (Ye et al. 2025, arXiv:2501.01005, section 3.3).
 */
#include "kernels/cuda/attention_split.h"

#include <stdlib.h>
#include <string.h>

enum {
    TILE_COST = 8,
    MANY_ROUNDS = 8, /* of units: a last round that is not full is a small part of all */
};

/* Rows of one sequence, for each of its heads. */
struct job {
    int32_t seq, n_heads, row, n_rows;
    int32_t key_begin, key_end, n_tiles;
    int32_t n_splits;
};

struct cuda_attention_split {
    struct cuda_attention_split_options options;
    struct cuda_attention_split_maxima maxima;
    int32_t max_jobs, max_tiles;
    struct job *jobs;                  /* [max_jobs], of the kind at hand */
    struct cuda_attention_unit *units; /* [maxima.n_units], before they are sorted */
    int32_t *starts;                   /* [max_tiles + 2]: where units of a length begin */
    int32_t n_partial_rows, n_counters;
};

static int32_t ceil_div(int64_t a, int64_t b)
{
    return (int32_t)((a + b - 1) / b);
}

static int32_t min_of(int32_t a, int32_t b)
{
    return a < b ? a : b;
}

// ---- limits ----

static status_t check_options(const struct cuda_attention_split_options *o)
{
    const struct attention_shape *s = &o->shape;
    if (s->group < 1 || s->window < 0 || (s->partial && s->window > 0) || s->max_seqs < 1 ||
        s->max_rows < 1 || s->max_kv_heads < 1 || s->max_tokens < 1) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "attention: group %d, window %d, at most %d sequences, %d rows, %d KV "
                             "heads, %d tokens",
                             s->group, s->window, s->max_seqs, s->max_rows, s->max_kv_heads,
                             s->max_tokens);
    }
    const int64_t n_tiles = ceil_div((int64_t)s->max_rows * s->group, CUDA_ATTENTION_PREFILL_ROWS);
    const int64_t n_units = (n_tiles + 2 * (int64_t)s->max_seqs) * s->max_kv_heads;
    if (n_units > INT32_MAX / 4 || (int64_t)s->max_rows * s->group > INT32_MAX / 2) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "attention: %d rows of %d sequences with %d heads are too many",
                             s->max_rows, s->max_seqs, s->max_kv_heads);
    }
    return status_ok();
}

/* Every job gives a unit a head; parts of splits come on top. */
static void set_maxima(struct cuda_attention_split *split)
{
    const struct attention_shape *s = &split->options.shape;
    const int64_t n_rows = (int64_t)s->max_rows * s->group;
    split->max_jobs = s->max_seqs + ceil_div(n_rows, CUDA_ATTENTION_PREFILL_ROWS);
    split->max_tiles = ceil_div(s->max_tokens, CUDA_ATTENTION_TILE) + 1;
    struct cuda_attention_split_maxima *m = &split->maxima;
    m->n_units = split->max_jobs * s->max_kv_heads;
    for (int kind = 0; kind < CUDA_ATTENTION_KINDS; kind++) {
        const struct cuda_attention_kind_options *k = &split->options.kinds[kind];
        const int32_t n_split_units = s->batch_invariant ? 0 : k->max_split_units;
        const int32_t rows = n_rows < k->rows ? (int32_t)n_rows : k->rows;
        m->n_units += n_split_units;
        m->n_partial_rows += n_split_units * rows;
        m->n_counters += n_split_units;
    }
}

status_t cuda_attention_split_new(const struct cuda_attention_split_options *options,
                                  struct cuda_attention_split **split_out)
{
    TRY(check_options(options));
    struct cuda_attention_split *split = calloc(1, sizeof *split);
    if (split == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "attention: no memory for its plan");
    }
    split->options = *options;
    set_maxima(split);
    split->jobs = calloc((size_t)split->max_jobs, sizeof *split->jobs);
    split->units = calloc((size_t)split->maxima.n_units, sizeof *split->units);
    split->starts = calloc((size_t)split->max_tiles + 2, sizeof *split->starts);
    if (split->jobs == NULL || split->units == NULL || split->starts == NULL) {
        const int32_t n_units = split->maxima.n_units;
        cuda_attention_split_free(split);
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "attention: no memory for %d units",
                             n_units);
    }
    *split_out = split;
    return status_ok();
}

void cuda_attention_split_free(struct cuda_attention_split *split)
{
    if (split != NULL) {
        free(split->jobs);
        free(split->units);
        free(split->starts);
        free(split);
    }
}

struct cuda_attention_split_maxima
cuda_attention_split_maxima(const struct cuda_attention_split *split)
{
    return split->maxima;
}

// ---- jobs ----

/* What a row of a part sees grows from row to row. */
static status_t check_row_ends(const struct attention_seq *seq, int32_t index)
{
    for (int32_t i = 0; i < seq->n_queries; i++) {
        const int32_t end = seq->row_ends[i];
        if (end < (i > 0 ? seq->row_ends[i - 1] : 0) || end > seq->kv_tokens) {
            return status_errorf(STATUS_INVALID_ARGUMENT,
                                 "attention: sequence %d, row %d sees %d tokens of %d", index, i,
                                 end, seq->kv_tokens);
        }
    }
    return status_ok();
}

static status_t check_seqs(const struct attention_shape *s, const struct attention_seq *seqs,
                           int32_t n_seqs)
{
    if (n_seqs < 0 || n_seqs > s->max_seqs) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "attention: %d sequences, at most %d", n_seqs,
                             s->max_seqs);
    }
    int64_t n_rows = 0;
    for (int32_t i = 0; i < n_seqs; i++) {
        const struct attention_seq *seq = &seqs[i];
        const int32_t least = s->partial ? 0 : seq->n_queries;
        if (seq->n_queries < 0 || seq->kv_tokens < least || seq->n_kv_heads < 0 ||
            (seq->row_ends != NULL) != (s->partial != 0) || seq->n_kv_heads > s->max_kv_heads ||
            seq->kv_tokens > s->max_tokens) {
            return status_errorf(
                STATUS_INVALID_ARGUMENT,
                "attention: sequence %d: %d queries, %d tokens (at most %d), %d heads (at most %d)",
                i, seq->n_queries, seq->kv_tokens, s->max_tokens, seq->n_kv_heads, s->max_kv_heads);
        }
        if (s->partial) {
            TRY(check_row_ends(seq, i));
        }
        n_rows += seq->n_queries;
    }
    if (n_rows > s->max_rows) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "attention: %lld rows, at most %d",
                             (long long)n_rows, s->max_rows);
    }
    return status_ok();
}

static int kind_of(const struct cuda_attention_split *split, const struct attention_seq *seq)
{
    const int64_t n_rows = (int64_t)seq->n_queries * split->options.shape.group;
    return n_rows <= split->options.kinds[CUDA_ATTENTION_DECODE].rows ? CUDA_ATTENTION_DECODE
                                                                      : CUDA_ATTENTION_PREFILL;
}

/* Rows [row, row + n_rows) see keys from the first one's window to the last one's position. Rows of a part that see none have a
 * tile without keys: somebody must say so. */
static struct job job_of(const struct attention_shape *s, const struct attention_seq *seq,
                         int32_t row, int32_t n_rows)
{
    const int32_t before = seq->kv_tokens - seq->n_queries;
    const int32_t first = before + row / s->group;
    const int32_t last_row = (row + n_rows - 1) / s->group;
    const int32_t last = s->partial ? seq->row_ends[last_row] - 1 : before + last_row;
    const int32_t seen = s->window > 0 && first >= s->window ? first - s->window + 1 : 0;
    const int32_t begin = seen / CUDA_ATTENTION_PAGE * CUDA_ATTENTION_PAGE;
    return (struct job){
        .n_heads = seq->n_kv_heads,
        .row = row,
        .n_rows = n_rows,
        .key_begin = begin,
        .key_end = last + 1,
        .n_tiles = last < begin ? 1 : ceil_div(last + 1 - begin, CUDA_ATTENTION_TILE),
        .n_splits = 1,
    };
}

static int32_t list_jobs(struct cuda_attention_split *split, int kind,
                         const struct attention_seq *seqs, int32_t n_seqs)
{
    const struct attention_shape *s = &split->options.shape;
    const int32_t tile_rows = split->options.kinds[kind].rows;
    int32_t n = 0;
    for (int32_t i = 0; i < n_seqs; i++) {
        const int32_t n_rows = seqs[i].n_queries * s->group;
        if (seqs[i].n_kv_heads == 0 || n_rows == 0 || kind_of(split, &seqs[i]) != kind) {
            continue;
        }
        for (int32_t row = 0; row < n_rows; row += tile_rows) {
            split->jobs[n] = job_of(s, &seqs[i], row, min_of(tile_rows, n_rows - row));
            split->jobs[n].seq = i;
            n++;
        }
    }
    return n;
}

// ---- the chunk ----

/* The estimate for one chunk; INT64_MAX where there would be too many parts. */
static int64_t cost_of(const struct job *jobs, int32_t n_jobs, int32_t chunk,
                       const struct cuda_attention_kind_options *kind)
{
    int64_t work = 0, n_large = 0, n_split_units = 0;
    int32_t longest = 0, most = 1;
    for (int32_t i = 0; i < n_jobs; i++) {
        const int32_t n_splits = (jobs[i].n_tiles + chunk - 1) / chunk;
        const int32_t part = (jobs[i].n_tiles + n_splits - 1) / n_splits;
        const int64_t n_parts = (int64_t)n_splits * jobs[i].n_heads;
        work += (int64_t)TILE_COST * jobs[i].n_tiles * jobs[i].n_heads + n_parts * kind->overhead;
        n_large += 2 * part > chunk ? n_parts : 0;
        n_split_units += n_splits > 1 ? n_parts : 0;
        longest = part > longest ? part : longest;
        most = n_splits > most ? n_splits : most;
    }
    if (n_split_units > kind->max_split_units) {
        return INT64_MAX;
    }
    const int64_t rounds = (n_large + kind->grid - 1) / kind->grid;
    const int64_t in_rounds = rounds * (TILE_COST * longest + kind->overhead);
    const int64_t at_least = work / kind->grid;
    const int64_t merging = most > 1 ? (int64_t)kind->merge * most : 0;
    return (in_rounds > at_least ? in_rounds : at_least) + merging;
}

/*
 * Tiles a part has at most. Twice the even share never gives too many parts: a job longer than it has at most
 * 2 tiles / chunk of them, which is no more than the grid for all jobs together.
 */
static int32_t choose_chunk(const struct cuda_attention_split *split, int32_t n_jobs,
                            const struct cuda_attention_kind_options *kind)
{
    // In sixteenths of the even share. A little above it parts come out even; small ones save a last round that is not full.
    static const int32_t shares[] = {128, 64, 32, 24, 20, 19, 18, 17, 16, 12, 8, 6, 4};
    int64_t total = 0, n_units = 0;
    int32_t longest = 1;
    for (int32_t i = 0; i < n_jobs; i++) {
        total += (int64_t)split->jobs[i].n_tiles * split->jobs[i].n_heads;
        n_units += split->jobs[i].n_heads;
        longest = split->jobs[i].n_tiles > longest ? split->jobs[i].n_tiles : longest;
    }
    const int32_t even = ceil_div(total, kind->grid);
    const bool many = n_units >= MANY_ROUNDS * (int64_t)kind->grid && longest <= even;
    if (many || split->options.shape.batch_invariant) {
        return longest;
    }
    int32_t best = longest;
    int64_t best_cost = cost_of(split->jobs, n_jobs, longest, kind);
    for (size_t i = 0; i < sizeof shares / sizeof shares[0]; i++) {
        const int64_t chunk = ceil_div((int64_t)even * shares[i], 16);
        if (chunk >= longest) {
            continue;
        }
        const int64_t cost = cost_of(split->jobs, n_jobs, (int32_t)chunk, kind);
        if (cost < best_cost) {
            best_cost = cost;
            best = (int32_t)chunk;
        }
    }
    return best;
}

// ---- units ----

/* Parts differ by one tile at most; all but the last are whole tiles. */
static struct cuda_attention_unit part_of(const struct job *job, int32_t head, int32_t part)
{
    const int64_t n = job->n_tiles;
    const int32_t begin = (int32_t)(n * part / job->n_splits);
    const int32_t end = (int32_t)(n * (part + 1) / job->n_splits);
    return (struct cuda_attention_unit){
        .seq = job->seq,
        .head = head,
        .row = job->row,
        .n_rows = job->n_rows,
        .key_begin = job->key_begin + begin * CUDA_ATTENTION_TILE,
        .key_end = min_of(job->key_begin + end * CUDA_ATTENTION_TILE, job->key_end),
        .split = part,
        .n_splits = job->n_splits,
    };
}

static int32_t cut_jobs(struct cuda_attention_split *split, int32_t n_jobs, int32_t chunk)
{
    int32_t n = 0;
    for (int32_t i = 0; i < n_jobs; i++) {
        struct job *job = &split->jobs[i];
        job->n_splits = ceil_div(job->n_tiles, chunk);
        for (int32_t head = 0; head < job->n_heads; head++) {
            const int32_t partial = split->n_partial_rows, counter = split->n_counters;
            for (int32_t part = 0; part < job->n_splits; part++) {
                split->units[n] = part_of(job, head, part);
                split->units[n].partial = partial;
                split->units[n].counter = counter;
                n++;
            }
            split->n_partial_rows += job->n_splits > 1 ? job->n_splits * job->n_rows : 0;
            split->n_counters += job->n_splits > 1;
        }
    }
    return n;
}

static int32_t tiles_of(const struct cuda_attention_unit *unit)
{
    return ceil_div(unit->key_end - unit->key_begin, CUDA_ATTENTION_TILE);
}

/* The longest first, equal ones in their order: a counting sort. */
static void sort_units(struct cuda_attention_split *split, int32_t n,
                       struct cuda_attention_unit *sorted)
{
    int32_t *const starts = split->starts;
    const int32_t most = split->max_tiles;
    memset(starts, 0, ((size_t)most + 2) * sizeof *starts);
    for (int32_t i = 0; i < n; i++) {
        starts[most - tiles_of(&split->units[i]) + 1]++;
    }
    for (int32_t i = 1; i <= most + 1; i++) {
        starts[i] += starts[i - 1];
    }
    for (int32_t i = 0; i < n; i++) {
        sorted[starts[most - tiles_of(&split->units[i])]++] = split->units[i];
    }
}

status_t cuda_attention_split_run(struct cuda_attention_split *split,
                                  const struct attention_seq *seqs, int32_t n_seqs,
                                  struct cuda_attention_unit *units,
                                  struct cuda_attention_work *work_out)
{
    TRY(check_seqs(&split->options.shape, seqs, n_seqs));
    split->n_partial_rows = 0;
    split->n_counters = 0;
    int32_t n_units = 0;
    for (int kind = 0; kind < CUDA_ATTENTION_KINDS; kind++) {
        const int32_t n_jobs = list_jobs(split, kind, seqs, n_seqs);
        const int32_t chunk = choose_chunk(split, n_jobs, &split->options.kinds[kind]);
        const int32_t n = cut_jobs(split, n_jobs, chunk);
        sort_units(split, n, units + n_units);
        work_out->first_unit[kind] = n_units;
        work_out->n_units[kind] = n;
        n_units += n;
    }
    return status_ok();
}

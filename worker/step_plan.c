#include "worker/step_plan.h"

#include <stdlib.h>
#include <string.h>

#include "parallel/plan.h"

/*
 * On the wire, integers little endian:
 *   u64 step | u32 n_seqs | n_seqs times:
 *     u64 seq_id | u32 lane | u32 slot | u32 n_computed | u32 n_tokens | u32 n_blocks | u32 n_logits |
 *     u32 tokens[n_tokens] | u32 blocks[n_blocks]
 *   | u32 n_moves | n_moves times: u32 kind | u32 lane | u32 from | u32 to
 * Everything else is a sum of these and is made again by unpack.
 */

// ---- buffers ----

static void *new_array(int32_t n, size_t size)
{
    return calloc(n > 0 ? (size_t)n : 1, size);
}

status_t step_plan_init(struct step_plan *plan, const struct step_limits *limits)
{
    if (limits->max_seqs < 1 || limits->max_rows < 1 || limits->max_blocks < 1 ||
        limits->max_logits < 1 || limits->max_moves < 0) {
        return status_errorf(
            STATUS_INTERNAL,
            "step limits of %d sequences, %d rows, %d blocks, %d rows of logits, %d moves",
            limits->max_seqs, limits->max_rows, limits->max_blocks, limits->max_logits,
            limits->max_moves);
    }
    struct step_plan made = {
        .seqs = new_array(limits->max_seqs, sizeof *made.seqs),
        .tokens = new_array(limits->max_rows, sizeof *made.tokens),
        .positions = new_array(limits->max_rows, sizeof *made.positions),
        .blocks = new_array(limits->max_blocks, sizeof *made.blocks),
        .moves = new_array(limits->max_moves, sizeof *made.moves),
        .limits = *limits,
    };
    if (made.seqs == NULL || made.tokens == NULL || made.positions == NULL || made.blocks == NULL ||
        made.moves == NULL) {
        step_plan_destroy(&made);
        return status_errorf(STATUS_RESOURCE_EXHAUSTED,
                             "no memory for a step of %d sequences, %d rows, %d blocks",
                             limits->max_seqs, limits->max_rows, limits->max_blocks);
    }
    *plan = made;
    return status_ok();
}

void step_plan_destroy(struct step_plan *plan)
{
    free(plan->seqs);
    free(plan->tokens);
    free(plan->positions);
    free(plan->blocks);
    free(plan->moves);
    memset(plan, 0, sizeof *plan);
}

void step_plan_clear(struct step_plan *plan)
{
    plan->step = 0;
    plan->n_seqs = 0;
    plan->n_rows = 0;
    plan->n_blocks = 0;
    plan->n_logits = 0;
    plan->n_moves = 0;
}

// ---- checks ----

/* The numbers of a sequence, before its arrays are looked at. */
static status_t check_numbers(const struct step_plan *plan, const struct step_seq *seq)
{
    const struct step_limits *limits = &plan->limits;
    const int32_t last_lane = plan->n_seqs > 0 ? plan->seqs[plan->n_seqs - 1].lane : 0;
    if (seq->lane < last_lane || seq->lane >= limits->n_lanes) {
        return status_errorf(STATUS_INTERNAL, "lane %d after %d, of %d", seq->lane, last_lane,
                             limits->n_lanes);
    }
    if (plan->n_seqs >= limits->max_seqs) {
        return status_errorf(STATUS_INTERNAL, "more than %d sequences", limits->max_seqs);
    }
    if (seq->slot < 0 || seq->slot >= limits->max_seqs) {
        return status_errorf(STATUS_INTERNAL, "slot %d of %d", seq->slot, limits->max_seqs);
    }
    if (seq->n_computed < 0 || seq->n_tokens < 1 ||
        seq->n_tokens > limits->max_rows - plan->n_rows) {
        return status_errorf(STATUS_INTERNAL, "%d tokens after %d, in %d rows of %d", seq->n_tokens,
                             seq->n_computed, plan->n_rows, limits->max_rows);
    }
    const int64_t end = (int64_t)seq->n_computed + seq->n_tokens;
    const int64_t n_blocks = plan_blocks_for(end);
    if (seq->n_blocks != n_blocks || n_blocks > limits->max_blocks - plan->n_blocks) {
        return status_errorf(STATUS_INTERNAL, "%d KV blocks for %lld tokens, %d of %d in use",
                             seq->n_blocks, (long long)end, plan->n_blocks, limits->max_blocks);
    }
    if (seq->n_logits < 0 || seq->n_logits > seq->n_tokens ||
        seq->n_logits > limits->max_logits - plan->n_logits) {
        return status_errorf(STATUS_INTERNAL, "logits of %d rows of %d, %d of %d in use",
                             seq->n_logits, seq->n_tokens, plan->n_logits, limits->max_logits);
    }
    return status_ok();
}

static status_t check_arrays(const struct step_plan *plan, const struct step_seq *seq,
                             const int32_t *tokens, const int32_t *blocks)
{
    const int32_t lowest = step_placeholder(plan->limits.max_seqs - 1);
    for (int32_t i = 0; i < seq->n_tokens; i++) {
        if (tokens[i] < lowest || tokens[i] >= plan->limits.n_vocab) {
            return status_errorf(STATUS_INTERNAL,
                                 "token %d is %d, the vocabulary has %d and there are %d slots", i,
                                 tokens[i], plan->limits.n_vocab, plan->limits.max_seqs);
        }
    }
    for (int32_t i = 0; i < seq->n_blocks; i++) {
        if (blocks[i] < 0 || blocks[i] >= plan->limits.blocks_per_lane) {
            return status_errorf(STATUS_INTERNAL, "KV block %d is %d, a lane has %lld", i,
                                 blocks[i], (long long)plan->limits.blocks_per_lane);
        }
    }
    return status_ok();
}

static status_t check_move(const struct step_plan *plan, const struct step_move *move)
{
    const struct step_limits *limits = &plan->limits;
    if (plan->n_moves >= limits->max_moves) {
        return status_errorf(STATUS_INTERNAL, "more than %d moves", limits->max_moves);
    }
    if (move->kind < STEP_MOVE_COPY || move->kind > STEP_MOVE_IN || move->lane < 0 ||
        move->lane >= limits->n_lanes) {
        return status_errorf(STATUS_INTERNAL, "move %d of kind %d in lane %d of %d", plan->n_moves,
                             move->kind, move->lane, limits->n_lanes);
    }
    const int64_t n_from =
        move->kind == STEP_MOVE_IN ? limits->host_blocks_per_lane : limits->blocks_per_lane;
    const int64_t n_to =
        move->kind == STEP_MOVE_OUT ? limits->host_blocks_per_lane : limits->blocks_per_lane;
    const bool stays = move->kind == STEP_MOVE_COPY && move->from == move->to;
    if (move->from < 0 || move->from >= n_from || move->to < 0 || move->to >= n_to || stays) {
        return status_errorf(
            STATUS_INTERNAL, "move %d of kind %d from KV block %d of %lld to %d of %lld",
            plan->n_moves, move->kind, move->from, (long long)n_from, move->to, (long long)n_to);
    }
    return status_ok();
}

/* Takes the sequence in; its tokens and blocks stand behind those of the others already. */
static void commit(struct step_plan *plan, const struct step_seq *seq)
{
    struct step_seq *to = &plan->seqs[plan->n_seqs++];
    *to = *seq;
    to->first_row = plan->n_rows;
    to->first_block = plan->n_blocks;
    for (int32_t i = 0; i < seq->n_tokens; i++) {
        plan->positions[plan->n_rows + i] = seq->n_computed + i;
    }
    plan->n_rows += seq->n_tokens;
    plan->n_blocks += seq->n_blocks;
    plan->n_logits += seq->n_logits;
}

status_t step_plan_add(struct step_plan *plan, const struct step_seq *seq, const int32_t *tokens,
                       const int32_t *blocks)
{
    status_t s = check_numbers(plan, seq);
    if (status_is_ok(&s)) {
        s = check_arrays(plan, seq, tokens, blocks);
    }
    if (!status_is_ok(&s)) {
        return status_wrapf(s, "step plan, sequence %llu", (unsigned long long)seq->seq_id);
    }
    memcpy(plan->tokens + plan->n_rows, tokens, (size_t)seq->n_tokens * sizeof *tokens);
    memcpy(plan->blocks + plan->n_blocks, blocks, (size_t)seq->n_blocks * sizeof *blocks);
    commit(plan, seq);
    return status_ok();
}

status_t step_plan_add_move(struct step_plan *plan, const struct step_move *move)
{
    TRY(check_move(plan, move));
    plan->moves[plan->n_moves++] = *move;
    return status_ok();
}

// ---- the wire ----

static status_t pack_array(const int32_t *values, int32_t n, struct bytes *out)
{
    for (int32_t i = 0; i < n; i++) {
        TRY(bytes_append_u32(out, (uint32_t)values[i]));
    }
    return status_ok();
}

static status_t pack_seq(const struct step_plan *plan, const struct step_seq *seq,
                         struct bytes *out)
{
    TRY(bytes_append_u64(out, seq->seq_id));
    const int32_t numbers[] = {seq->lane,     seq->slot,     seq->n_computed,
                               seq->n_tokens, seq->n_blocks, seq->n_logits};
    TRY(pack_array(numbers, sizeof numbers / sizeof numbers[0], out));
    TRY(pack_array(plan->tokens + seq->first_row, seq->n_tokens, out));
    return pack_array(plan->blocks + seq->first_block, seq->n_blocks, out);
}

static status_t pack_moves(const struct step_plan *plan, struct bytes *out)
{
    TRY(bytes_append_u32(out, (uint32_t)plan->n_moves));
    for (int32_t i = 0; i < plan->n_moves; i++) {
        const struct step_move *move = &plan->moves[i];
        const int32_t numbers[] = {move->kind, move->lane, move->from, move->to};
        TRY(pack_array(numbers, sizeof numbers / sizeof numbers[0], out));
    }
    return status_ok();
}

status_t step_plan_pack(const struct step_plan *plan, struct bytes *out)
{
    TRY(bytes_append_u64(out, plan->step));
    TRY(bytes_append_u32(out, (uint32_t)plan->n_seqs));
    for (int32_t i = 0; i < plan->n_seqs; i++) {
        TRY(pack_seq(plan, &plan->seqs[i], out));
    }
    return pack_moves(plan, out);
}

static void unpack_array(struct bytes_reader *reader, int32_t *values, int32_t n)
{
    for (int32_t i = 0; i < n; i++) {
        values[i] = (int32_t)bytes_read_u32(reader);
    }
}

static status_t unpack_seq(struct step_plan *plan, struct bytes_reader *reader)
{
    struct step_seq seq = {.seq_id = bytes_read_u64(reader)};
    seq.lane = (int32_t)bytes_read_u32(reader);
    seq.slot = (int32_t)bytes_read_u32(reader);
    seq.n_computed = (int32_t)bytes_read_u32(reader);
    seq.n_tokens = (int32_t)bytes_read_u32(reader);
    seq.n_blocks = (int32_t)bytes_read_u32(reader);
    seq.n_logits = (int32_t)bytes_read_u32(reader);
    TRY(check_numbers(plan, &seq));
    int32_t *tokens = plan->tokens + plan->n_rows;
    int32_t *blocks = plan->blocks + plan->n_blocks;
    unpack_array(reader, tokens, seq.n_tokens);
    unpack_array(reader, blocks, seq.n_blocks);
    TRY(check_arrays(plan, &seq, tokens, blocks));
    commit(plan, &seq);
    return status_ok();
}

static status_t unpack_moves(struct step_plan *plan, struct bytes_reader *reader)
{
    const uint32_t n_moves = bytes_read_u32(reader);
    for (uint32_t i = 0; i < n_moves; i++) {
        struct step_move move;
        move.kind = (int32_t)bytes_read_u32(reader);
        move.lane = (int32_t)bytes_read_u32(reader);
        move.from = (int32_t)bytes_read_u32(reader);
        move.to = (int32_t)bytes_read_u32(reader);
        TRY(step_plan_add_move(plan, &move)); // also ends what is longer than the limit
    }
    return status_ok();
}

static status_t unpack_all(struct step_plan *plan, struct bytes_reader *reader)
{
    plan->step = bytes_read_u64(reader);
    const uint32_t n_seqs = bytes_read_u32(reader);
    if (n_seqs > (uint32_t)plan->limits.max_seqs) {
        return status_errorf(STATUS_INTERNAL, "%u sequences, limit %d", n_seqs,
                             plan->limits.max_seqs);
    }
    for (uint32_t i = 0; i < n_seqs; i++) {
        TRY(unpack_seq(plan, reader));
    }
    TRY(unpack_moves(plan, reader));
    return bytes_reader_end(reader, "step plan");
}

status_t step_plan_unpack(struct step_plan *plan, const void *data, size_t size)
{
    struct bytes_reader reader;
    bytes_reader_init(&reader, data, size);
    step_plan_clear(plan);
    status_t s = unpack_all(plan, &reader);
    if (!status_is_ok(&s)) {
        step_plan_clear(plan);
        // Only our own ranks talk here: whatever is wrong is a bug of ours.
        s.code = STATUS_INTERNAL;
        return status_wrapf(s, "step plan from the leader");
    }
    return status_ok();
}

// ---- what is drawn ----

status_t step_draw_init(struct step_draw *draw, const struct step_limits *limits)
{
    struct step_draw made = {
        .limits = *limits,
        .rows = calloc((size_t)limits->max_logits, sizeof *made.rows),
        .tokens = calloc((size_t)limits->max_sample_tokens, sizeof *made.tokens),
    };
    if (made.rows == NULL || made.tokens == NULL) {
        step_draw_destroy(&made);
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory to draw for %d sequences",
                             limits->max_seqs);
    }
    *draw = made;
    return status_ok();
}

void step_draw_destroy(struct step_draw *draw)
{
    free(draw->rows);
    free(draw->tokens);
    memset(draw, 0, sizeof *draw);
}

status_t step_draw_pack(const struct step_sampling *sampling, int32_t n_rows, struct bytes *out)
{
    const int32_t n_tokens = n_rows > 0 ? sampling->n_tokens : 0;
    TRY(bytes_append_u32(out, (uint32_t)n_rows));
    TRY(bytes_append_u32(out, (uint32_t)n_tokens));
    if (n_rows == 0) {
        return status_ok();
    }
    TRY(bytes_append(out, sampling->rows, (size_t)n_rows * sizeof *sampling->rows));
    return n_tokens == 0
               ? status_ok()
               : bytes_append(out, sampling->tokens, (size_t)n_tokens * sizeof *sampling->tokens);
}

status_t step_draw_unpack(struct step_draw *draw, struct bytes_reader *reader)
{
    const uint32_t n_rows = bytes_read_u32(reader);
    const uint32_t n_tokens = bytes_read_u32(reader);
    const size_t rows_bytes = (size_t)n_rows * sizeof *draw->rows;
    const size_t tokens_bytes = (size_t)n_tokens * sizeof *draw->tokens;
    const uint8_t *rows = bytes_read(reader, rows_bytes);
    const uint8_t *tokens = bytes_read(reader, tokens_bytes);
    if (reader->failed ||
        (draw->rows != NULL && (n_rows > (uint32_t)draw->limits.max_logits ||
                                n_tokens > (uint32_t)draw->limits.max_sample_tokens))) {
        return status_errorf(STATUS_INTERNAL, "draws from the leader: %u rows, %u tokens", n_rows,
                             n_tokens);
    }
    if (draw->rows == NULL) {
        return status_ok();
    }
    if (rows_bytes > 0) {
        memcpy(draw->rows, rows, rows_bytes);
    }
    if (tokens_bytes > 0) {
        memcpy(draw->tokens, tokens, tokens_bytes);
    }
    draw->n_rows = (int32_t)n_rows;
    draw->n_tokens = (int32_t)n_tokens;
    return status_ok();
}

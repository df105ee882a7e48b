#include <assert.h>

#include "worker/scheduler_parts.h"

static int32_t n_generated(const struct sequence *seq)
{
    return seq->n_tokens - seq->n_prompt;
}

/* How likely the prompt's next token was after each row. */
static void write_scored_rows(const struct planned_seq *planned, struct sample_row *rows)
{
    const struct sequence *seq = planned->seq;
    for (int32_t i = 0; i < planned->n_scored; i++) {
        rows[i] = (struct sample_row){
            .top_p = 1.0f,
            .repetition = 1.0f,
            .n_top = seq->request.n_prompt_top,
            .forced = 1,
            .forced_id = seq->tokens[planned->first_scored + i + 1],
            .slot = -1,
            .pending_slot = -1,
        };
    }
}

static int32_t write_drawn_row(const struct planned_seq *planned, struct sample_row *row,
                               struct sample_token *tokens)
{
    const struct sequence *seq = planned->seq;
    const struct scheduler_request *r = &seq->request;
    const enum sample_list_phase phase =
        planned->position < r->min_tokens ? SAMPLE_LIST_HELD : SAMPLE_LIST_FREE;
    const int32_t n = sample_list_write(&seq->list, phase, tokens);
    const bool is_beam = seq->group != NULL;
    *row = (struct sample_row){
        .temperature = r->temperature,
        .top_k = r->top_k,
        .top_p = r->top_p,
        .min_p = r->min_p,
        .seed = r->seed,
        .sample = r->sample,
        .position = (uint32_t)planned->position,
        .repetition = r->repetition,
        .presence = r->presence,
        .frequency = r->frequency,
        .n_tokens = n,
        .only_listed = seq->list.only_listed,
        .n_top = is_beam        ? seq->group->n_row_top
                 : r->n_top > 0 ? r->n_top
                                : 0,
        .of_logprobs = is_beam,
        .slot = is_beam ? -1 : seq->slot, // which token follows is known once all beams are
        .pending_slot = planned->has_pending ? seq->slot : -1,
    };
    return n;
}

/* The plan that was made last. */
static const struct planned_step *newest_planned(const struct scheduler *s)
{
    const int32_t n = s->config.max_steps;
    return &s->planned[(s->next_planned - 1 + n) % n];
}

int32_t scheduler_sample_rows(const struct scheduler *s, const struct step_plan *plan,
                              struct sample_row *rows, struct sample_token *tokens)
{
    const struct planned_step *step = newest_planned(s);
    int32_t at = 0;
    int32_t n_tokens = 0;
    assert(s->n_planned > 0 && plan->step == step->step);
    for (int32_t i = 0; i < step->n_seqs; i++) {
        const struct planned_seq *planned = &step->seqs[i];
        write_scored_rows(planned, rows + at);
        at += planned->n_scored;
        if (planned->draws) {
            const int32_t n = write_drawn_row(planned, &rows[at], tokens + n_tokens);
            rows[at++].first_token = n_tokens;
            n_tokens += n;
        }
    }
    assert(at == plan->n_logits && n_tokens <= s->config.max_sample_tokens);
    for (int32_t i = 0; i < at; i++) {
        rows[i].logits = (int64_t)i * s->config.n_vocab;
    }
    return n_tokens;
}

static int finish_of(const struct scheduler *s, const struct sequence *seq,
                     const struct sample_result *result)
{
    for (int32_t i = 0; i < seq->request.n_stop_ids; i++) {
        if (result->id == seq->stop_ids[i]) {
            return SCHEDULER_STOP;
        }
    }
    if (n_generated(seq) >= seq->request.max_tokens || seq->n_tokens >= s->config.max_model_len) {
        return SCHEDULER_LENGTH;
    }
    return SCHEDULER_GOES_ON;
}

/* What the plan's rows of the sequence gave. */
static struct scheduler_output take_results(struct scheduler *s, const struct planned_seq *planned,
                                            const struct sample_result *results)
{
    struct sequence *seq = planned->seq;
    const struct sample_result *drawn = planned->draws ? &results[planned->n_scored] : NULL;
    struct scheduler_output out = {
        .seq_id = seq->request.seq_id,
        .position = n_generated(seq),
        .n_top = seq->request.n_top,
        .n_cached = seq->n_cached,
        .finish = SCHEDULER_GOES_ON,
        .result = drawn,
        .scored = results,
        .n_scored = planned->n_scored,
        .first_scored = planned->first_scored + 1,
        .n_prompt_top = seq->request.n_prompt_top,
    };
    seq->n_pending -= planned->draws ? 1 : 0;
    if (has_nan(planned, results)) {
        out.finish = SCHEDULER_ERROR;
        out.result = NULL;
        out.n_scored = 0;
    } else if (drawn != NULL) {
        seq->tokens[seq->n_tokens++] = drawn->id;
        sample_list_add(&seq->list, drawn->id);
        out.finish = finish_of(s, seq, drawn);
    }
    if (out.finish != SCHEDULER_GOES_ON) {
        (void)scheduler_remove(s, seq->request.seq_id);
    }
    return out;
}

int32_t scheduler_apply(struct scheduler *s, const struct step_plan *plan,
                        const struct sample_result *results, struct scheduler_output *outputs)
{
    const struct planned_step *step = scheduler_oldest_planned(s);
    int32_t n_outputs = 0;
    scheduler_beam_forget_lent(s);
    assert(s->n_planned > 0 && plan->step == step->step);
    for (int32_t i = 0; i < step->n_seqs; i++) {
        const struct planned_seq *planned = &step->seqs[i];
        const int32_t n = planned->n_scored + (planned->draws ? 1 : 0);
        if (n > 0 && !planned->seq->gone && planned->seq->group == NULL) {
            outputs[n_outputs++] = take_results(s, planned, results);
        } else if (n > 0 && !planned->seq->gone) {
            n_outputs += scheduler_beam_take(s, planned, results, &outputs[n_outputs]);
        }
        results += n;
    }
    scheduler_drop_planned(s);
    return n_outputs;
}

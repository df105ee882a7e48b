#include "worker/leader_beams.h"

#include <stdlib.h>

/* Of a message: with the most alternatives some 100 KB. */
#define MAX_TOKENS 512

/* Room for the tokens of one sequence, and of one message as it goes out. */
struct room {
    struct beam_token *tokens; /* [max_tokens of the search] */
    struct wire_token_info *infos;
    struct wire_top_logprob *tops; /* [MAX_TOKENS][SAMPLE_MAX_TOP] */
};

static bool room_init(struct room *room, const struct beam_search *search)
{
    *room = (struct room){
        .tokens = calloc((size_t)search->params.max_tokens, sizeof *room->tokens),
        .infos = calloc(MAX_TOKENS, sizeof *room->infos),
        .tops = calloc((size_t)MAX_TOKENS * SAMPLE_MAX_TOP, sizeof *room->tops),
    };
    return room->tokens != NULL && room->infos != NULL && room->tops != NULL;
}

static void room_destroy(struct room *room)
{
    free(room->tokens);
    free(room->infos);
    free(room->tops);
}

static status_t say(struct leader_link *link, const struct wire_seq_output *output,
                    const struct wire_load *load)
{
    const struct wire_worker_message m = {
        .kind = WIRE_WORKER_STEP_RESULT,
        .step_result = {.outputs = output, .n_outputs = 1, .load = *load}};
    return leader_link_send(link, &m);
}

static void describe(const struct beam_token *token, int32_t n_top, struct wire_token_info *info,
                     struct wire_top_logprob *tops)
{
    *info = (struct wire_token_info){.id = (uint32_t)token->id,
                                     .has_logprob = n_top >= 0,
                                     .logprob = token->logprob,
                                     .rank = (uint32_t)token->rank,
                                     .top = tops,
                                     .n_top = n_top > 0 ? (size_t)n_top : 0};
    for (int32_t i = 0; i < n_top; i++) {
        tops[i] = (struct wire_top_logprob){.id = (uint32_t)token->top[i].id,
                                            .logprob = token->top[i].logprob};
    }
}

static status_t say_one(struct leader_link *link, const struct scheduler_output *output,
                        int32_t index, const struct room *room, const struct wire_load *load)
{
    const struct beam_search *search = output->beams;
    const struct beam_ended *ended = &search->ended[index];
    beam_search_read(search, index, room->tokens);
    for (int32_t first = 0; first < ended->length; first += MAX_TOKENS) {
        const int32_t left = ended->length - first;
        const int32_t n = left < MAX_TOKENS ? left : MAX_TOKENS;
        for (int32_t i = 0; i < n; i++) {
            describe(&room->tokens[first + i], output->n_top, &room->infos[i],
                     room->tops + (ptrdiff_t)i * SAMPLE_MAX_TOP);
        }
        struct wire_seq_output out = {
            .seq_id = output->seq_id + (uint64_t)index,
            .tokens = room->infos,
            .n_tokens = (size_t)n,
            .first_position = (uint32_t)first,
            .cached_tokens = output->n_cached > 0 ? (uint32_t)output->n_cached : 0,
        };
        if (n == left) {
            out.finish = ended->by_stop_id ? WIRE_FINISH_STOP : WIRE_FINISH_LENGTH;
            out.has_stop_token_id = ended->by_stop_id;
            out.stop_token_id = ended->by_stop_id ? room->infos[n - 1].id : 0;
            out.has_cumulative_logprob = true;
            out.cumulative_logprob = ended->sum;
        }
        TRY(say(link, &out, load));
    }
    return status_ok();
}

static status_t say_all(struct leader_link *link, const struct scheduler_output *output,
                        const struct room *room, const struct wire_load *load)
{
    for (int32_t i = 0; i < output->n_best; i++) {
        TRY(say_one(link, output, i, room, load));
    }
    return status_ok();
}

static status_t say_failed(struct leader_link *link, const struct scheduler_output *output,
                           status_t error, const struct wire_load *load)
{
    const struct wire_seq_output out = {
        .seq_id = output->seq_id, .finish = WIRE_FINISH_ERROR, .error = error};
    return say(link, &out, load);
}

status_t leader_beams_say(struct leader_link *link, const struct scheduler_output *output,
                          const struct wire_load *load)
{
    const struct beam_search *search = output->beams;
    if (search->n_ended < output->n_best) {
        return say_failed(link, output,
                          status_errorf(STATUS_FAILED_PRECONDITION,
                                        "beam search: %d sequences are all that the request "
                                        "allows, n is %d" STATUS_FIX
                                        "lower n, or allow more tokens",
                                        search->n_ended, output->n_best),
                          load);
    }
    struct room room;
    const bool has_room = room_init(&room, search);
    const status_t s = has_room ? say_all(link, output, &room, load)
                                : say_failed(link, output,
                                             status_errorf(STATUS_RESOURCE_EXHAUSTED,
                                                           "beam search: no memory for %d tokens",
                                                           search->params.max_tokens),
                                             load);
    room_destroy(&room);
    return s;
}

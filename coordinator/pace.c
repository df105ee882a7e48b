#include "coordinator/pace.h"

#define FADING (1.0 / 16)

static bool is_fresh(const struct pace_rate *rate, uint64_t now_ns)
{
    return rate->at_ns > 0 && now_ns - rate->at_ns <= PACE_MAX_AGE_NS;
}

static void measure(struct pace_rate *rate, uint64_t ns, uint64_t n, uint64_t now_ns)
{
    if (!is_fresh(rate, now_ns)) {
        *rate = (struct pace_rate){0};
    } else if (rate->at_ns != now_ns) {
        rate->ns -= FADING * rate->ns;
        rate->n -= FADING * rate->n;
    }
    rate->ns += (double)ns;
    rate->n += (double)n;
    rate->at_ns = now_ns;
}

static int batch_index(uint32_t batch)
{
    int index = 0;
    while (index + 1 < PACE_N_BATCHES && (UINT32_C(1) << index) < batch) {
        index++;
    }
    return index;
}

void pace_prompt(struct pace *p, uint64_t n_tokens, uint64_t ns, uint64_t now_ns)
{
    if (n_tokens > 0 && ns > 0) {
        measure(&p->prompt_token, ns, n_tokens, now_ns);
    }
}

void pace_step(struct pace *p, uint32_t batch, uint64_t ns, uint64_t now_ns)
{
    measure(&p->step[batch_index(batch)], ns, 1, now_ns);
}

void pace_stay(struct pace *p, uint64_t ns, uint64_t now_ns)
{
    measure(&p->stay, ns, 1, now_ns);
}

static uint64_t times(const struct pace_rate *rate, uint64_t n, uint64_t now_ns)
{
    return is_fresh(rate, now_ns) ? (uint64_t)(rate->ns / rate->n * (double)n) : 0;
}

/* With as many sequences side by side, or the next fewer with which it was measured: never more than is known. */
static const struct pace_rate *step_of(const struct pace *p, uint32_t batch, uint64_t now_ns)
{
    int index = batch_index(batch);
    while (index > 0 && !is_fresh(&p->step[index], now_ns)) {
        index--;
    }
    return &p->step[index];
}

struct pace_estimate pace_estimate(const struct pace *p, const struct pace_work *work,
                                   uint64_t now_ns)
{
    const uint64_t prompts_ns = times(&p->prompt_token, work->tokens_ahead, now_ns);
    const uint64_t stays_ns = times(&p->stay, work->without_place, now_ns);
    const uint64_t places_ns = work->places > 0 ? stays_ns / work->places : 0;
    const uint64_t n_steps = work->tokens > 0 ? work->tokens - 1 : 0; // the prompt gives the first
    return (struct pace_estimate){
        .wait_ns = prompts_ns > places_ns ? prompts_ns : places_ns,
        .prefill_ns = times(&p->prompt_token, work->prompt_tokens, now_ns),
        .decode_ns = times(step_of(p, work->batch, now_ns), n_steps, now_ns),
    };
}

/*
 * fiber_ucontext.c - contexts of the C library, for processors other than x86-64
 *
 * Layout:    a context's state is a ucontext_t, from malloc and kept to the end of the process: a program has as many as
 *            the largest block it ran had threads.
 */
#include "tests/kernels/cuda_sim/fiber.h"

#include <stdlib.h>
#include <ucontext.h>

static ucontext_t *new_state(void)
{
    ucontext_t *const state = calloc(1, sizeof *state);
    if (state == NULL || getcontext(state) != 0) {
        abort();
    }
    return state;
}

void fiber_context_init(struct fiber_context *context, void *stack, size_t stack_bytes,
                        void (*entry)(void))
{
    ucontext_t *const state = new_state();
    state->uc_stack.ss_sp = stack;
    state->uc_stack.ss_size = stack_bytes;
    state->uc_link = NULL;
    makecontext(state, entry, 0);
    context->state = state;
}

void fiber_switch(struct fiber_context *from, const struct fiber_context *to)
{
    if (from->state == NULL) {
        from->state = new_state();
    }
    (void)swapcontext(from->state, to->state);
}

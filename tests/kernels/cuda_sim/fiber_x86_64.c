/*
 * fiber_x86_64.c - a switch is six pushes, an exchange of stacks and six pops
 *
 * Layout:    a context's state is the stack pointer below what the System V ABI lets a callee keep:
 *            r15 r14 r13 r12 rbx rbp, then where to go on. Floating point modes are never changed.
 */
#include "tests/kernels/cuda_sim/fiber.h"

#include <stdint.h>

/* void fiber_exchange(void **from_stack, void *to_stack) */
__asm__(".text\n"
        ".type fiber_exchange, @function\n"
        "fiber_exchange:\n"
        "    pushq %rbp\n"
        "    pushq %rbx\n"
        "    pushq %r12\n"
        "    pushq %r13\n"
        "    pushq %r14\n"
        "    pushq %r15\n"
        "    movq %rsp, (%rdi)\n"
        "    movq %rsi, %rsp\n"
        "    popq %r15\n"
        "    popq %r14\n"
        "    popq %r13\n"
        "    popq %r12\n"
        "    popq %rbx\n"
        "    popq %rbp\n"
        "    ret\n"
        ".size fiber_exchange, .-fiber_exchange\n");

void fiber_exchange(void **from_stack, void *to_stack);

void fiber_context_init(struct fiber_context *context, void *stack, size_t stack_bytes,
                        void (*entry)(void))
{
    // entry is reached by a return: at that moment the stack must look as after a call, 8 short of a multiple of 16.
    enum { SAVED = 6, WORDS = SAVED + 2 };

    uint64_t *const top = (uint64_t *)((char *)stack + stack_bytes / 16 * 16) - WORDS;
    for (int i = 0; i < WORDS; i++) {
        top[i] = 0;
    }
    top[SAVED] = (uint64_t)(uintptr_t)entry;
    context->state = top;
}

void fiber_switch(struct fiber_context *from, const struct fiber_context *to)
{
    fiber_exchange(&from->state, to->state);
}

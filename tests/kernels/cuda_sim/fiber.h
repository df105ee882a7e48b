/*
 * fiber.h - several threads of execution that take turns on one
 *
 * What:      a context is where a fiber stopped. fiber_x86_64.c is a few instructions; fiber_ucontext.c is for other
 *            processors. CMake chooses.
 * Ownership: the stack is the caller's and must outlive the context.
 * Thread:    contexts are entered on the thread that made them.
 */
#pragma once

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

struct fiber_context {
    void *state; /* NULL: the thread's own stack, before it was first left */
};

/* The first switch to the context calls entry, on the stack; entry never returns. */
void fiber_context_init(struct fiber_context *context, void *stack, size_t stack_bytes,
                        void (*entry)(void));

/* Goes on at `to`; returns when something switches back to `from`. */
void fiber_switch(struct fiber_context *from, const struct fiber_context *to);

#ifdef __cplusplus
}
#endif

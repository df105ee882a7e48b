/*
 * clock.h - the clock as a seam: code under test is handed a clock it can turn
 *
 * Units:     nanoseconds. Monotonic time is for durations and deadlines, wall time for timestamps only.
 * Thread:    any, for clock_system; a test clock is its owner's.
 */
#pragma once

#include <stdint.h>

struct clock {
    uint64_t (*monotonic_ns)(void *self);
    uint64_t (*wall_ns)(void *self); /* since 1970-01-01 UTC */
    void *self;
};

#define NS_PER_MS 1000000ull
#define NS_PER_S  1000000000ull

/* CLOCK_MONOTONIC and CLOCK_REALTIME. Static, never freed. */
const struct clock *clock_system(void);

static inline uint64_t clock_now_ns(const struct clock *clock)
{
    return clock->monotonic_ns(clock->self);
}

static inline double clock_now_s(const struct clock *clock)
{
    return (double)clock_now_ns(clock) * 1e-9;
}

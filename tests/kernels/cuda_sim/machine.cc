/*
 * machine.cc - blocks, fibers, barriers
 *
 * What:      one machine for the process. A block's threads are fibers on stacks of their own, made once and used again.
 * Layout:    which fibers are ready is a mask a warp; which warps have ready fibers is a mask over ranks, a rank being a
 *            warp's place in the block's random order. A block is scheduled in one of two ways, drawn by lot: any ready
 *            warp next, which interleaves closely, or the ready warp of the lowest rank, which lets one run as far
 *            ahead as barriers allow.
 */
#include "tests/kernels/cuda_sim/machine.h"

#include <link.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <mutex>
#include <vector>

#include "tests/kernels/cuda_sim/fiber.h"

// Present under the address sanitizer only: it has to know which stack is in use.
extern "C" {
void __sanitizer_start_switch_fiber(void **fake_stack, const void *bottom, size_t size)
    __attribute__((weak));
void __sanitizer_finish_switch_fiber(void *fake_stack, const void **bottom, size_t *size)
    __attribute__((weak));
}

enum {
    LANES = 32,
    MAX_WARPS = 32,
    MAX_THREADS = LANES * MAX_WARPS,
    STACK_BYTES = 256 << 10,
    GUARD_BYTES = 4096, /* of a stack: not accessible; of shared memory: checked */
    MAX_SHARED_BYTES = 256 << 10,
    POISON = 0xff, /* bytes of it are NaN in every format */
    GUARD = 0xa5,
};

// ---- state ----

struct async_copy {
    void *shared;
    const void *global;
    uint32_t n_bytes, n_wanted;
};

enum fiber_state { FIBER_READY, FIBER_IN_WARP, FIBER_AT_BARRIER, FIBER_DONE };

struct stack {
    struct fiber_context context;
    char *bottom; /* NULL: not made yet */
    size_t size;
    void *fake_stack;
};

struct fiber {
    struct stack stack;
    struct sim_place place;
    enum fiber_state state;
    const char *barrier_file;
    int barrier_line;
    struct sim_collective *call;
    std::vector<struct async_copy> copies;
    std::vector<size_t> groups; /* ends of the closed groups in copies */
};

static struct {
    std::mutex lock;
    uint64_t seed, random;
    struct fiber fibers[MAX_THREADS];
    struct stack main;
    struct fiber *current;
    const struct sim_launch *launch;
    const std::function<void()> *run;
    int n_warps, n_threads, n_done, n_at_barrier, n_true, barrier_result;
    bool closely;         /* the way of this block */
    uint32_t ready_ranks; /* ranks whose warps have ready fibers */
    int warp_of_rank[MAX_WARPS], rank_of_warp[MAX_WARPS];
    uint32_t ready[MAX_WARPS], in_warp[MAX_WARPS],
        done[MAX_WARPS];   /* lanes, by their fibers' states */
    unsigned char *shared; /* behind a guard */
} machine;

const struct sim_place *sim_place;
uint3 sim_block;
dim3 sim_block_size, sim_grid_size;

// ---- random order ----

static uint32_t random_u32(void)
{
    machine.random ^= machine.random << 13; // xorshift, Marsaglia 2003
    machine.random ^= machine.random >> 7;
    machine.random ^= machine.random << 17;
    return (uint32_t)(machine.random >> 32);
}

static int random_below(int n)
{
    return (int)(((uint64_t)random_u32() * (uint64_t)n) >> 32);
}

/* A bit of the mask, which has one: the first from a random place on. */
static int random_bit(uint32_t mask)
{
    const int turn = (int)(random_u32() & 31u);
    const uint32_t turned = (mask >> turn) | (mask << ((32 - turn) & 31));
    return (__builtin_ctz(turned) + turn) & 31;
}

static void start_random(void)
{
    const char *const text = getenv("KVASIR_SIM_SEED");
    machine.seed = text != nullptr ? strtoull(text, nullptr, 0) : 1;
    machine.random = (machine.seed + 1) * 0x9e3779b97f4a7c15u;
    machine.random += machine.random == 0;
}

// ---- failures ----

static void print_waiting(void)
{
    for (int warp = 0; warp < machine.n_warps; warp++) {
        uint32_t barrier = 0, done = 0, in_warp = 0;
        const struct fiber *at_barrier = nullptr, *in_call = nullptr;
        for (int lane = 0; lane < LANES; lane++) {
            const struct fiber *const fiber = &machine.fibers[warp * LANES + lane];
            barrier |= (uint32_t)(fiber->state == FIBER_AT_BARRIER) << lane;
            done |= (uint32_t)(fiber->state == FIBER_DONE) << lane;
            in_warp |= (uint32_t)(fiber->state == FIBER_IN_WARP) << lane;
            at_barrier = fiber->state == FIBER_AT_BARRIER ? fiber : at_barrier;
            in_call = fiber->state == FIBER_IN_WARP ? fiber : in_call;
        }
        fprintf(stderr, "  warp %d: done %08x", warp, done);
        if (at_barrier != nullptr) {
            fprintf(stderr, ", at the barrier of line %d %08x", at_barrier->barrier_line, barrier);
        }
        if (in_call != nullptr) {
            fprintf(stderr, ", in %s (mask %08x) %08x", in_call->call->name, in_call->call->mask,
                    in_warp);
        }
        fputc('\n', stderr);
    }
}

void sim_fail(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fputs("cuda_sim: ", stderr);
    vfprintf(stderr, format, args);
    va_end(args);
    if (machine.launch != nullptr) {
        fprintf(stderr, "\n  kernel %s, block (%u, %u, %u) of (%u, %u, %u), KVASIR_SIM_SEED=%llu\n",
                machine.launch->name, sim_block.x, sim_block.y, sim_block.z, sim_grid_size.x,
                sim_grid_size.y, sim_grid_size.z, (unsigned long long)machine.seed);
        if (machine.current != nullptr) {
            fprintf(stderr, "  thread (%u, %u, %u), warp %u, lane %u\n", sim_place->thread.x,
                    sim_place->thread.y, sim_place->thread.z, sim_place->warp, sim_place->lane);
        }
        print_waiting();
    }
    fputc('\n', stderr);
    fflush(stderr);
    abort();
}

// ---- switching ----

static void switch_stack(struct stack *from, struct stack *to)
{
    if (__sanitizer_start_switch_fiber != nullptr) {
        __sanitizer_start_switch_fiber(&from->fake_stack, to->bottom, to->size);
    }
    fiber_switch(&from->context, &to->context);
    if (__sanitizer_finish_switch_fiber != nullptr) {
        __sanitizer_finish_switch_fiber(from->fake_stack, nullptr, nullptr);
    }
}

static void set_ready(struct fiber *fiber)
{
    const uint32_t warp = fiber->place.warp;
    fiber->state = FIBER_READY;
    machine.ready[warp] |= 1u << fiber->place.lane;
    machine.ready_ranks |= 1u << machine.rank_of_warp[warp];
}

/* The next fiber to run, taken out of the masks; NULL when none is ready. */
static struct fiber *take_ready(void)
{
    if (machine.ready_ranks == 0) {
        return nullptr;
    }
    const int rank =
        machine.closely ? random_bit(machine.ready_ranks) : __builtin_ctz(machine.ready_ranks);
    const int warp = machine.warp_of_rank[rank];
    const int lane = random_bit(machine.ready[warp]);
    machine.ready[warp] &= ~(1u << lane);
    if (machine.ready[warp] == 0) {
        machine.ready_ranks &= ~(1u << rank);
    }
    return &machine.fibers[warp * LANES + lane];
}

/* Leaves the running fiber, whose state says why; returns when it runs again. */
static void run_others(void)
{
    struct fiber *const self = machine.current, *const next = take_ready();
    if (next == self) {
        return;
    }
    if (next == nullptr) {
        if (machine.n_done != machine.n_threads) {
            sim_fail("no thread can go on: some wait for threads that never come");
        }
        machine.current = nullptr;
        switch_stack(&self->stack, &machine.main);
        return;
    }
    machine.current = next;
    sim_place = &next->place;
    switch_stack(&self->stack, &next->stack);
}

/* The operation that the fiber waits in can still come to pass. */
static void check_none_ended(const struct fiber *fiber)
{
    const uint32_t ended = machine.done[fiber->place.warp] & fiber->call->mask;
    if (ended != 0) {
        sim_fail("%s: lanes %08x of the mask %08x have ended", fiber->call->name, ended,
                 fiber->call->mask);
    }
}

/* Nobody waits for the thread that ends. */
static void check_nobody_waits(const struct fiber *self)
{
    if (machine.n_at_barrier > 0) {
        sim_fail("a thread ends while others wait at a barrier");
    }
    const uint32_t waiting = machine.in_warp[self->place.warp];
    for (int lane = 0; waiting != 0 && lane < LANES; lane++) {
        if ((waiting >> lane & 1u) != 0) {
            check_none_ended(self - self->place.lane + lane);
        }
    }
}

/* A fiber runs one thread of every block that is large enough to have it. */
static void fiber_main(void)
{
    if (__sanitizer_finish_switch_fiber != nullptr) {
        __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
    }
    for (;;) {
        (*machine.run)();
        struct fiber *const self = machine.current;
        self->state = FIBER_DONE;
        machine.done[self->place.warp] |= 1u << self->place.lane;
        machine.n_done++;
        check_nobody_waits(self);
        run_others();
    }
}

static void make_fiber(int index)
{
    struct fiber *const fiber = &machine.fibers[index];
    void *const memory = mmap(nullptr, STACK_BYTES + GUARD_BYTES, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, GUARD_BYTES, PROT_NONE) != 0) {
        sim_fail("no memory for the stack of a thread");
    }
    fiber->stack.bottom = static_cast<char *>(memory) + GUARD_BYTES;
    fiber->stack.size = STACK_BYTES;
    fiber_context_init(&fiber->stack.context, fiber->stack.bottom, STACK_BYTES, fiber_main);
    fiber->place.warp = (uint32_t)(index / LANES);
    fiber->place.lane = (uint32_t)(index % LANES);
}

// ---- rendezvous ----

int sim_barrier(const char *file, int line, int predicate)
{
    struct fiber *const self = machine.current;
    self->state = FIBER_AT_BARRIER;
    self->barrier_file = file;
    self->barrier_line = line;
    machine.n_true += predicate != 0;
    if (machine.n_done > 0) {
        sim_fail("%s:%d: a barrier that some threads ended before", file, line);
    }
    if (++machine.n_at_barrier == machine.n_threads) {
        machine.barrier_result = machine.n_true;
        machine.n_at_barrier = machine.n_true = 0;
        for (int i = 0; i < machine.n_threads; i++) {
            struct fiber *const fiber = &machine.fibers[i];
            if (fiber->barrier_line != line || strcmp(fiber->barrier_file, file) != 0) {
                sim_fail("threads meet at different barriers: %s:%d and %s:%d", file, line,
                         fiber->barrier_file, fiber->barrier_line);
            }
            set_ready(fiber);
        }
    }
    run_others();
    return machine.barrier_result;
}

static void check_same(const struct sim_collective *call, const struct sim_collective *other,
                       int lane)
{
    const bool same_name = other->name == call->name || strcmp(other->name, call->name) == 0;
    if (other->mask != call->mask || !same_name) {
        sim_fail("%s (mask %08x) meets %s (mask %08x) of lane %d", call->name, call->mask,
                 other->name, other->mask, lane);
    }
}

void sim_warp(struct sim_collective *call)
{
    struct fiber *const self = machine.current;
    struct fiber *const warp = self - self->place.lane;
    if ((call->mask >> self->place.lane & 1u) == 0) {
        sim_fail("%s: the lane is not in its own mask %08x", call->name, call->mask);
    }
    self->state = FIBER_IN_WARP;
    self->call = call;
    machine.in_warp[self->place.warp] |= 1u << self->place.lane;
    check_none_ended(self);
    if ((machine.in_warp[self->place.warp] & call->mask) != call->mask) {
        run_others(); // the last one to come does the work
        return;
    }
    machine.in_warp[self->place.warp] &= ~call->mask;
    struct sim_collective *lanes[LANES] = {};
    for (int lane = 0; lane < LANES; lane++) {
        if ((call->mask >> lane & 1u) != 0) {
            lanes[lane] = warp[lane].call;
            check_same(call, lanes[lane], lane);
        }
    }
    call->run(lanes);
    for (int lane = 0; lane < LANES; lane++) {
        if (lanes[lane] != nullptr) {
            set_ready(warp + lane);
        }
    }
    run_others();
}

// ---- shared memory ----

struct range {
    unsigned char *begin;
    size_t size;
};

/* Static shared variables are thread-local ones of the program (see device.cuh): its block of them. */
static int find_tls(struct dl_phdr_info *info, size_t size, void *range_out)
{
    (void)size;
    struct range *const range = static_cast<struct range *>(range_out);
    for (int i = 0; i < info->dlpi_phnum; i++) {
        if (info->dlpi_phdr[i].p_type == PT_TLS && info->dlpi_tls_data != nullptr) {
            range->begin = static_cast<unsigned char *>(info->dlpi_tls_data);
            range->size = info->dlpi_phdr[i].p_memsz;
        }
    }
    return 1; // the program comes first; libraries have no kernels
}

static struct range static_shared(void)
{
    struct range range = {};
    (void)dl_iterate_phdr(find_tls, &range);
    return range;
}

void *sim_shared(void)
{
    return machine.shared;
}

void sim_check_aligned(const void *p, uint32_t n_bytes, const char *what)
{
    if ((uintptr_t)p % n_bytes != 0) {
        sim_fail("%s: address %p is not aligned to %u bytes", what, p, n_bytes);
    }
}

static bool is_within(const void *p, size_t n, const unsigned char *begin, size_t size)
{
    const unsigned char *const at = static_cast<const unsigned char *>(p);
    return at >= begin && at + n <= begin + size;
}

void sim_check_shared(const void *p, uint32_t n_bytes, const char *what)
{
    sim_check_aligned(p, n_bytes, what);
    if (!is_within(p, n_bytes, machine.shared, machine.launch->shared_bytes)) {
        const struct range range = static_shared();
        if (!is_within(p, n_bytes, range.begin, range.size)) {
            sim_fail("%s: address %p is not in the block's shared memory [%p, +%zu)", what, p,
                     static_cast<void *>(machine.shared), machine.launch->shared_bytes);
        }
    }
}

/* Until it is waited for, the destination is undefined: poison shows who reads or refills it too early. */
void sim_async_copy(void *shared, const void *global, uint32_t n_bytes, uint32_t n_wanted)
{
    sim_check_shared(shared, n_bytes, "asynchronous copy");
    if (n_wanted > n_bytes) {
        sim_fail("asynchronous copy of %u bytes, %u wanted", n_bytes, n_wanted);
    }
    if (n_wanted > 0) {
        sim_check_aligned(global, n_bytes, "asynchronous copy from");
    }
    memset(shared, POISON, n_bytes);
    machine.current->copies.push_back({shared, global, n_bytes, n_wanted});
}

void sim_async_commit(void)
{
    machine.current->groups.push_back(machine.current->copies.size());
}

void sim_async_wait(int pending)
{
    struct fiber *const self = machine.current;
    if ((int)self->groups.size() <= pending) {
        return;
    }
    const size_t n_groups = self->groups.size() - (size_t)pending;
    const size_t n_copies = self->groups[n_groups - 1];
    for (size_t i = 0; i < n_copies; i++) {
        const struct async_copy *const copy = &self->copies[i];
        memset(copy->shared, 0, copy->n_bytes);
        if (copy->n_wanted > 0) {
            memcpy(copy->shared, copy->global, copy->n_wanted);
        }
    }
    self->copies.erase(self->copies.begin(), self->copies.begin() + (ptrdiff_t)n_copies);
    self->groups.erase(self->groups.begin(), self->groups.begin() + (ptrdiff_t)n_groups);
    for (size_t &end : self->groups) {
        end -= n_copies;
    }
}

static void make_shared(void)
{
    if (machine.shared == nullptr) {
        void *memory = nullptr;
        if (posix_memalign(&memory, GUARD_BYTES, MAX_SHARED_BYTES + 2 * GUARD_BYTES) != 0) {
            sim_fail("no memory for shared memory");
        }
        machine.shared = static_cast<unsigned char *>(memory) + GUARD_BYTES;
    }
    memset(machine.shared - GUARD_BYTES, GUARD, GUARD_BYTES);
    memset(machine.shared, POISON, machine.launch->shared_bytes);
    memset(machine.shared + machine.launch->shared_bytes, GUARD, GUARD_BYTES);
    const struct range range = static_shared();
    memset(range.begin, POISON, range.size);
}

static void check_shared_guards(void)
{
    const unsigned char *const after = machine.shared + machine.launch->shared_bytes;
    for (size_t i = 0; i < GUARD_BYTES; i++) {
        if (after[i] != GUARD) {
            sim_fail("shared memory written %zu bytes after its %zu", i,
                     machine.launch->shared_bytes);
        }
        if (machine.shared[-1 - (ptrdiff_t)i] != GUARD) {
            sim_fail("shared memory written %zu bytes before its first", i + 1);
        }
    }
}

// ---- blocks ----

static void shuffle(int *values, int n)
{
    for (int i = 0; i < n; i++) {
        const int j = random_below(i + 1);
        values[i] = values[j];
        values[j] = i;
    }
}

static void start_block(uint32_t index)
{
    const dim3 grid = sim_grid_size, block = sim_block_size;
    sim_block = {index % grid.x, index / grid.x % grid.y, index / grid.x / grid.y};
    machine.n_done = machine.n_at_barrier = machine.n_true = 0;
    machine.ready_ranks = 0;
    machine.closely = (random_u32() & 1u) != 0;
    shuffle(machine.warp_of_rank, machine.n_warps);
    for (int rank = 0; rank < machine.n_warps; rank++) {
        machine.rank_of_warp[machine.warp_of_rank[rank]] = rank;
        machine.in_warp[rank] = machine.done[rank] = 0;
    }
    for (int i = 0; i < machine.n_threads; i++) {
        struct fiber *const fiber = &machine.fibers[i];
        const uint32_t t = (uint32_t)i;
        fiber->place.thread = {t % block.x, t / block.x % block.y, t / block.x / block.y};
        fiber->copies.clear();
        fiber->groups.clear();
        set_ready(fiber);
    }
}

static void run_block(uint32_t index)
{
    make_shared();
    start_block(index);
    struct fiber *const first = take_ready();
    machine.current = first;
    sim_place = &first->place;
    switch_stack(&machine.main, &first->stack);
    check_shared_guards();
}

/* The stack of the calling thread, for the address sanitizer. */
static void find_main_stack(void)
{
    pthread_attr_t attributes;
    void *bottom = nullptr;
    if (pthread_getattr_np(pthread_self(), &attributes) == 0) {
        (void)pthread_attr_getstack(&attributes, &bottom, &machine.main.size);
        (void)pthread_attr_destroy(&attributes);
    }
    machine.main.bottom = static_cast<char *>(bottom);
}

void sim_run_kernel(const struct sim_launch *launch, const std::function<void()> &run)
{
    const std::lock_guard<std::mutex> guard(machine.lock);
    if (machine.random == 0) {
        start_random();
    }
    find_main_stack();
    machine.launch = launch;
    machine.run = &run;
    sim_block_size = launch->block;
    sim_grid_size = launch->grid;
    machine.n_threads = (int)(launch->block.x * launch->block.y * launch->block.z);
    machine.n_warps = machine.n_threads / LANES;
    if (machine.n_threads % LANES != 0) {
        sim_fail("a block of %d threads is not a number of whole warps", machine.n_threads);
    }
    for (int i = 0; i < machine.n_threads; i++) {
        if (machine.fibers[i].stack.bottom == nullptr) {
            make_fiber(i);
        }
    }
    const uint32_t n_blocks = launch->grid.x * launch->grid.y * launch->grid.z;
    std::vector<int> order(n_blocks);
    shuffle(order.data(), (int)n_blocks);
    for (const int index : order) {
        run_block((uint32_t)index);
    }
    machine.launch = nullptr;
}

static const struct sim_device devices[] = {
    {"a100", "simulated A100", 80, 108, 163 << 10, 164 << 10},
    {"a10", "simulated A10", 86, 72, 99 << 10, 100 << 10},
    {"h100", "simulated H100", 90, 132, 227 << 10, 228 << 10},
};

const struct sim_device *sim_device(void)
{
    const char *const key = getenv("KVASIR_SIM_DEVICE");
    for (const struct sim_device &device : devices) {
        if (key == nullptr || strcmp(key, device.key) == 0) {
            return &device;
        }
    }
    sim_fail("KVASIR_SIM_DEVICE=%s is none of a100, a10, h100", key);
}

/*
 * An Aho-Corasick automaton over the bytes of the strings. Its state after some text is the longest suffix of the
 * text that begins a string: exactly what must be held back. The depth of the state says how long that is.
 */
#include "coordinator/tokenizer/stop_matcher.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define MAX_TOTAL_BYTES ((size_t)16 * 1024 * 1024)

struct stop_node {
    uint32_t child, sibling; /* 0: none (node 0 is the root) */
    uint32_t fail;           /* the longest proper suffix that is a node too */
    uint32_t depth;
    int32_t hit;         /* longest string that ends here, also as a suffix; -1: none */
    uint32_t hit_length; /* its bytes */
    uint8_t byte;
};

struct stop_matcher {
    struct stop_node *nodes;
    size_t n_nodes;
    uint32_t state;
    uint8_t *held; /* [longest string]: the text that leads to `state` */
    bool stopped;  /* a string was found; nothing more is taken */
};

// ---- building ----

static uint32_t find_child(const struct stop_matcher *m, uint32_t node, uint8_t byte)
{
    uint32_t child = m->nodes[node].child;
    while (child != 0 && m->nodes[child].byte != byte) {
        child = m->nodes[child].sibling;
    }
    return child;
}

/* The state after one more byte. Amortised: every step along `fail` undoes an earlier step down. */
static uint32_t step(const struct stop_matcher *m, uint32_t state, uint8_t byte)
{
    for (;;) {
        const uint32_t child = find_child(m, state, byte);
        if (child != 0 || state == 0) {
            return child;
        }
        state = m->nodes[state].fail;
    }
}

static void insert(struct stop_matcher *m, const char *string, int32_t index)
{
    uint32_t node = 0;
    for (const char *c = string; *c != '\0'; c++) {
        uint32_t child = find_child(m, node, (uint8_t)*c);
        if (child == 0) {
            child = (uint32_t)m->n_nodes++;
            m->nodes[child] = (struct stop_node){.sibling = m->nodes[node].child,
                                                 .depth = m->nodes[node].depth + 1,
                                                 .hit = -1,
                                                 .byte = (uint8_t)*c};
            m->nodes[node].child = child;
        }
        node = child;
    }
    if (m->nodes[node].hit < 0) {
        m->nodes[node].hit = index;
        m->nodes[node].hit_length = m->nodes[node].depth;
    }
}

/* Fills in fail and inherited hits, level by level; `queue` has room for all nodes. */
static void link_suffixes(struct stop_matcher *m, uint32_t *queue)
{
    size_t head = 0;
    size_t tail = 0;
    queue[tail++] = 0;
    while (head < tail) {
        const uint32_t node = queue[head++];
        for (uint32_t child = m->nodes[node].child; child != 0; child = m->nodes[child].sibling) {
            struct stop_node *c = &m->nodes[child];
            c->fail = node == 0 ? 0 : step(m, m->nodes[node].fail, c->byte);
            if (c->hit < 0) { // its own string would be longer
                c->hit = m->nodes[c->fail].hit;
                c->hit_length = m->nodes[c->fail].hit_length;
            }
            queue[tail++] = child;
        }
    }
}

static status_t measure(const char *const *strings, size_t n, size_t *total_out,
                        size_t *longest_out)
{
    *total_out = 0;
    *longest_out = 0;
    for (size_t i = 0; i < n; i++) {
        const size_t length = strlen(strings[i]);
        if (length == 0) {
            return status_errorf(STATUS_INVALID_ARGUMENT, "stop string %zu is empty", i);
        }
        if (length > MAX_TOTAL_BYTES - *total_out) {
            return status_errorf(STATUS_INVALID_ARGUMENT,
                                 "stop strings of more than %zu bytes in all", MAX_TOTAL_BYTES);
        }
        *total_out += length;
        *longest_out = length > *longest_out ? length : *longest_out;
    }
    return status_ok();
}

status_t stop_matcher_new(const char *const *strings, size_t n, struct stop_matcher **out)
{
    size_t total;
    size_t longest;
    TRY(measure(strings, n, &total, &longest));
    struct stop_matcher *m = calloc(1, sizeof *m);
    uint32_t *queue = calloc(total + 1, sizeof *queue);
    if (m != NULL) {
        m->nodes = calloc(total + 1, sizeof *m->nodes);
        m->held = calloc(longest + 1, 1);
    }
    if (m == NULL || queue == NULL || m->nodes == NULL || m->held == NULL) {
        stop_matcher_free(m);
        free(queue);
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory for stop strings");
    }
    m->n_nodes = 1;
    m->nodes[0].hit = -1;
    for (size_t i = 0; i < n; i++) {
        insert(m, strings[i], (int32_t)i);
    }
    link_suffixes(m, queue);
    free(queue);
    *out = m;
    return status_ok();
}

void stop_matcher_free(struct stop_matcher *m)
{
    if (m == NULL) {
        return;
    }
    free(m->nodes);
    free(m->held);
    free(m);
}

// ---- matching ----

/* Appends the first n bytes of: what is held, then text. */
static status_t release(const struct stop_matcher *m, size_t n_held, const char *text, size_t n,
                        struct bytes *out)
{
    const size_t from_held = n < n_held ? n : n_held;
    TRY(bytes_append(out, m->held, from_held));
    return bytes_append(out, text, n - from_held);
}

/* Keeps the last `keep` bytes of: what is held, then text. */
static void hold(struct stop_matcher *m, size_t n_held, const char *text, size_t size, size_t keep)
{
    const size_t from_text = keep < size ? keep : size;
    const size_t from_held = keep - from_text;
    memmove(m->held, m->held + n_held - from_held, from_held);
    memcpy(m->held + from_held, text + size - from_text, from_text);
}

status_t stop_matcher_push(struct stop_matcher *m, const char *text, size_t size, bool include,
                           struct bytes *out, int *hit_out)
{
    if (m->stopped) {
        return status_errorf(STATUS_FAILED_PRECONDITION, "text after a stop string");
    }
    const size_t n_held = m->nodes[m->state].depth;
    uint32_t state = m->state;
    for (size_t i = 0; i < size; i++) {
        state = step(m, state, (uint8_t)text[i]);
        const struct stop_node *node = &m->nodes[state];
        if (node->hit >= 0) {
            const size_t end = n_held + i + 1;
            TRY(release(m, n_held, text, include ? end : end - node->hit_length, out));
            m->stopped = true;
            m->state = 0;
            *hit_out = node->hit;
            return status_ok();
        }
    }
    const size_t keep = m->nodes[state].depth;
    TRY(release(m, n_held, text, n_held + size - keep, out));
    if (size > 0) {
        hold(m, n_held, text, size, keep);
    }
    m->state = state;
    *hit_out = -1;
    return status_ok();
}

status_t stop_matcher_finish(struct stop_matcher *m, struct bytes *out)
{
    const size_t n_held = m->nodes[m->state].depth;
    m->state = 0;
    return bytes_append(out, m->held, n_held);
}

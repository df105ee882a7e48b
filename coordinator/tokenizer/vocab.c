#include "coordinator/tokenizer/vocab.h"

#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/clock.h"

uint64_t vocab_random_seed(void)
{
    uint64_t seed;
    if (getrandom(&seed, sizeof seed, GRND_NONBLOCK) != (ssize_t)sizeof seed) {
        seed = clock_now_ns(clock_system()); // early in boot; the seed need not be secret
    }
    return seed;
}

static uint64_t mix(uint64_t h)
{
    h ^= h >> 32;
    h *= 0x9e3779b97f4a7c15u;
    return h ^ h >> 29;
}

static uint64_t hash_text(const uint8_t *text, size_t size, uint64_t seed)
{
    uint64_t h = seed ^ size;
    for (; size >= 8; size -= 8, text += 8) {
        uint64_t word;
        memcpy(&word, text, 8);
        h = mix(h ^ word);
    }
    uint64_t word = 0;
    for (size_t i = 0; i < size; i++) {
        word = word << 8 | text[i];
    }
    return mix(mix(h ^ word));
}

int32_t vocab_find(const struct vocab *vocab, const void *text, size_t size)
{
    const size_t mask = vocab->n_slots - 1;
    size_t at = hash_text(text, size, vocab->seed) & mask;
    while (vocab->slots[at] != 0) {
        const uint32_t id = vocab->slots[at] - 1;
        const struct text_view found = vocab_text(vocab, id);
        if (found.size == size && memcmp(found.data, text, size) == 0) {
            return (int32_t)id;
        }
        at = (at + 1) & mask;
    }
    return -1;
}

static void insert(struct vocab *vocab, size_t id)
{
    const struct text_view token = vocab_text(vocab, id);
    if (vocab_find(vocab, token.data, token.size) >= 0) {
        return;
    }
    const size_t mask = vocab->n_slots - 1;
    size_t at = hash_text(token.data, token.size, vocab->seed) & mask;
    while (vocab->slots[at] != 0) {
        at = (at + 1) & mask;
    }
    vocab->slots[at] = (uint32_t)id + 1;
}

static status_t allocate(struct vocab *vocab, size_t n_bytes, size_t n)
{
    vocab->n_slots = 16;
    while (vocab->n_slots < 2 * n) {
        vocab->n_slots *= 2;
    }
    vocab->text = malloc(n_bytes > 0 ? n_bytes : 1);
    vocab->begin = malloc((n + 1) * sizeof *vocab->begin);
    vocab->slots = calloc(vocab->n_slots, sizeof *vocab->slots);
    if (vocab->text == NULL || vocab->begin == NULL || vocab->slots == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory for %zu tokens", n);
    }
    return status_ok();
}

status_t vocab_init(struct vocab *vocab, const struct text_view *texts, size_t n)
{
    *vocab = (struct vocab){.n = n, .seed = vocab_random_seed()};
    size_t n_bytes = 0;
    for (size_t i = 0; i < n; i++) {
        n_bytes += texts[i].size;
    }
    if (n_bytes > UINT32_MAX || n >= INT32_MAX) {
        return status_errorf(STATUS_DATA_LOSS, "%zu tokens of %zu bytes in all, limit %u", n,
                             n_bytes, UINT32_MAX);
    }
    status_t s = allocate(vocab, n_bytes, n);
    if (!status_is_ok(&s)) {
        vocab_destroy(vocab);
        return s;
    }
    uint32_t end = 0;
    for (size_t i = 0; i < n; i++) {
        vocab->begin[i] = end;
        if (texts[i].size > 0) {
            memcpy(vocab->text + end, texts[i].data, texts[i].size);
        }
        end += (uint32_t)texts[i].size;
        vocab->max_token_bytes =
            texts[i].size > vocab->max_token_bytes ? texts[i].size : vocab->max_token_bytes;
    }
    vocab->begin[n] = end;
    for (size_t i = 0; i < n; i++) {
        if (texts[i].size > 0) {
            insert(vocab, i);
        }
    }
    return status_ok();
}

void vocab_destroy(struct vocab *vocab)
{
    free(vocab->text);
    free(vocab->begin);
    free(vocab->slots);
    *vocab = (struct vocab){0};
}

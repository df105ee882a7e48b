/*
 * wire_samples_random.h - pieces of random messages, for the files wire_samples*.c
 */
#pragma once

#include "tests/proto/wire_samples.h"

size_t random_count(void); /* 0 to 5 */
uint32_t random_u32(void); /* of any number of bits */
uint64_t random_u64(void); /* likewise */
float random_float(void);  /* finite, seldom 0 */
bool random_bool(void);
const char *random_text(struct arena *arena); /* UTF-8 of 1 to 4 bytes a character, or empty */
void *random_room(struct arena *arena, size_t n, size_t size);
struct wire_token_ids random_ids(struct arena *arena);
const struct wire_logit_bias *random_logit_bias(struct arena *arena, size_t n);
const struct wire_token_info *random_token_infos(struct arena *arena, size_t n);
status_t random_failure(void);

/* NULL and "" are the same text. */
void assert_text_equal(const char *got, const char *want);
void assert_ids_equal(struct wire_token_ids got, struct wire_token_ids want);
void assert_logit_bias_equal(const struct wire_logit_bias *got, const struct wire_logit_bias *want,
                             size_t n);
void assert_token_infos_equal(const struct wire_token_info *got, const struct wire_token_info *want,
                              size_t n);
void assert_status_equal(const status_t *got, const status_t *want);

/* In wire_samples_link.c. */
void worker_message_fill(struct arena *arena, union wire_any *any);
void worker_message_assert_equal(const union wire_any *got_any, const union wire_any *want_any);
void coordinator_message_fill(struct arena *arena, union wire_any *any);
void coordinator_message_assert_equal(const union wire_any *got_any,
                                      const union wire_any *want_any);

/*
 * tokenizer.h - text to token ids and back, as the model's tokenizer files say
 *
 * What:      byte-level BPE and SentencePiece-style BPE with byte fallback; added and special tokens; the
 *            template that puts BOS in front. No regular expression engine runs on user text: the known split
 *            patterns are recognised by their exact text and matched by hand-written scanners, in linear time.
 * Ownership: the tokenizer is immutable after load and shared by threads; free it last.
 * Thread:    any, after load.
 * Errors:    DATA_LOSS naming the file and the field for a file that cannot be served exactly; a construct this
 *            reader does not know is an error, never skipped.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/status.h"

struct tokenizer;

/*
 * Reads DIR/tokenizer.json, else tokenizer.model (SentencePiece BPE or tiktoken), else vocab.json and merges.txt; and
 * tokenizer_config.json when present. NOT_FOUND names the accepted forms.
 */
MUST_USE status_t tokenizer_load(const char *dir, struct tokenizer **tokenizer_out);
void tokenizer_free(struct tokenizer *tokenizer); /* accepts NULL */

int32_t tokenizer_vocab_size(const struct tokenizer *tokenizer); /* largest id + 1 */
bool tokenizer_is_special(const struct tokenizer *tokenizer, int32_t id);

/* The id of the special token with this text, -1 when there is none. */
int32_t tokenizer_special_id(const struct tokenizer *tokenizer, const char *text);

struct token_list {
    int32_t *ids;
    size_t n;
    size_t capacity;
    size_t max; /* RESOURCE_EXHAUSTED beyond; 0: no bound */
};

void token_list_destroy(struct token_list *list); /* accepts a zeroed list */

enum tokenizer_flags {
    TOKENIZER_ADD_SPECIAL = 1, /* BOS as the template says */
    TOKENIZER_PARSE_SPECIAL =
        2, /* special tokens written out in the text become their ids; else plain text */
    TOKENIZER_SKIP_SPECIAL = 4, /* decode: leave special tokens out */
};

/* Appends the ids of text (valid UTF-8, else INVALID_ARGUMENT with the byte offset) to *out. */
MUST_USE status_t tokenizer_encode(const struct tokenizer *tokenizer, const char *text, size_t size,
                                   int flags, struct token_list *out);

/* Appends the text of all ids. Bytes that are not valid UTF-8 become U+FFFD, as in Hugging Face tokenizers but for one
 * case that a stream cannot wait for: complete characters of <0xNN> tokens stay when later ones of the same run break
 * it. An id outside the vocabulary is INVALID_ARGUMENT. */
MUST_USE status_t tokenizer_decode(const struct tokenizer *tokenizer, const int32_t *ids, size_t n,
                                   int flags, struct bytes *out);

/*
 * Incremental decoding: the concatenation of what push and finish append is tokenizer_decode of all ids.
 * push never appends a part of a character; finish gives what was held back.
 */
struct detokenizer {
    const struct tokenizer *tokenizer;
    int flags;
    bool started;     /* until then a leading space may have to be removed */
    bool pushed;      /* a token has been pushed; the first one may have to lose its spaces */
    bool broken_run;  /* <0xNN> tokens: this run of them is not UTF-8 */
    uint8_t held[64]; /* bytes of an unfinished character */
    size_t n_held;
};

void detokenizer_init(struct detokenizer *d, const struct tokenizer *tokenizer, int flags);
MUST_USE status_t detokenizer_push(struct detokenizer *d, int32_t id, struct bytes *out);
MUST_USE status_t detokenizer_finish(struct detokenizer *d, struct bytes *out);

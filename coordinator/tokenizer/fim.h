/*
 * fim.h - the prompt that lets a code model fill in what is missing between two texts
 *
 * What:   <fim_prefix> prefix <fim_suffix> suffix <fim_middle>, as StarCoder and CodeGen-2.5 were trained with
 *         (DeciCoder-1b, DeciCoder-6B). The three tokens are put in by their ids and the texts are encoded as plain
 *         text, so neither can contain a special token.
 * Thread: any
 */
#pragma once

#include <stddef.h>

#include "base/status.h"
#include "coordinator/tokenizer/tokenizer.h"

struct fim_text {
    const char *data;
    size_t size;
};

/* Appends the ids. INVALID_ARGUMENT when the tokenizer lacks one of the tokens, or a text is not UTF-8. */
MUST_USE status_t fim_encode(const struct tokenizer *tokenizer, struct fim_text prefix,
                             struct fim_text suffix, struct token_list *out);

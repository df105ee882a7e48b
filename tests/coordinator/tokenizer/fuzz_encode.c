#include "tests/coordinator/tokenizer/fuzz_encode.h"

#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"

void fuzz_encode_require(bool holds)
{
    if (!holds) {
        abort();
    }
}

static void check_decode(const struct tokenizer *tokenizer, const struct token_list *list)
{
    struct bytes whole;
    struct bytes pieces;
    struct detokenizer d;
    bytes_init(&whole, SIZE_MAX);
    bytes_init(&pieces, SIZE_MAX);
    detokenizer_init(&d, tokenizer, 0);
    status_t s = tokenizer_decode(tokenizer, list->ids, list->n, 0, &whole);
    fuzz_encode_require(status_is_ok(&s));
    for (size_t i = 0; i < list->n; i++) {
        s = detokenizer_push(&d, list->ids[i], &pieces);
        fuzz_encode_require(status_is_ok(&s) && utf8_is_valid(pieces.data, pieces.size));
    }
    s = detokenizer_finish(&d, &pieces);
    fuzz_encode_require(status_is_ok(&s) && pieces.size == whole.size);
    fuzz_encode_require(whole.size == 0 || memcmp(pieces.data, whole.data, whole.size) == 0);
    bytes_destroy(&whole);
    bytes_destroy(&pieces);
}

static void check_text(const struct tokenizer *tokenizer, const uint8_t *text, size_t size,
                       int flags)
{
    struct token_list list = {0};
    const status_t s = tokenizer_encode(tokenizer, (const char *)text, size, flags, &list);
    fuzz_encode_require(status_is_ok(&s) == utf8_is_valid(text, size));
    check_decode(tokenizer, &list);
    token_list_destroy(&list);
}

void fuzz_encode_check(const struct tokenizer *tokenizer, const uint8_t *text, size_t size)
{
    for (int flags = 0; flags < 4; flags++) {
        check_text(tokenizer, text, size, flags);
    }
}

/*
 * fuzz_tokenizer - tokenizer.json and encode, fed with anything
 *
 * What:   input = a tokenizer.json, a zero byte, a text. The file must load or be refused; what loads must encode every
 *         valid text, and decode its ids in pieces as in one go.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "coordinator/tokenizer/tokenizer.h"
#include "coordinator/tokenizer/tokenizer_json.h"
#include "tests/fuzz/fuzz_driver.h"

static void require(bool holds)
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
    require(status_is_ok(&s));
    for (size_t i = 0; i < list->n; i++) {
        s = detokenizer_push(&d, list->ids[i], &pieces);
        require(status_is_ok(&s) && utf8_is_valid(pieces.data, pieces.size));
    }
    s = detokenizer_finish(&d, &pieces);
    require(status_is_ok(&s) && pieces.size == whole.size);
    require(whole.size == 0 || memcmp(pieces.data, whole.data, whole.size) == 0);
    bytes_destroy(&whole);
    bytes_destroy(&pieces);
}

static void check_text(const struct tokenizer *tokenizer, const uint8_t *text, size_t size,
                       int flags)
{
    struct token_list list = {0};
    const status_t s = tokenizer_encode(tokenizer, (const char *)text, size, flags, &list);
    require(status_is_ok(&s) == utf8_is_valid(text, size));
    check_decode(tokenizer, &list);
    token_list_destroy(&list);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t *zero = size > 0 ? memchr(data, 0, size) : NULL;
    const size_t json_size = zero != NULL ? (size_t)(zero - data) : size;
    const size_t text_size = zero != NULL ? size - json_size - 1 : 0;
    struct tokenizer *tokenizer = NULL;
    const status_t s = tokenizer_json_parse(data, json_size, &tokenizer);
    if (!status_is_ok(&s)) {
        require(tokenizer == NULL && s.msg[0] != '\0');
        return 0;
    }
    for (int flags = 0; flags < 4; flags++) {
        check_text(tokenizer, data + size - text_size, text_size, flags);
    }
    tokenizer_free(tokenizer);
    return 0;
}

/*
 * fuzz_tokenizer - tokenizer.json and encode, fed with anything
 *
 * What:   input = a tokenizer.json, a zero byte, a text. The file must load or be refused; what loads must encode every
 *         valid text, and decode its ids in pieces as in one go.
 */
#include <stdint.h>
#include <string.h>

#include "coordinator/tokenizer/tokenizer_json.h"
#include "tests/coordinator/tokenizer/fuzz_encode.h"
#include "tests/fuzz/fuzz_driver.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t *zero = size > 0 ? memchr(data, 0, size) : NULL;
    const size_t json_size = zero != NULL ? (size_t)(zero - data) : size;
    const size_t text_size = zero != NULL ? size - json_size - 1 : 0;
    struct tokenizer *tokenizer = NULL;
    const status_t s = tokenizer_json_parse(data, json_size, &tokenizer);
    if (!status_is_ok(&s)) {
        fuzz_encode_require(tokenizer == NULL && s.msg[0] != '\0');
        return 0;
    }
    fuzz_encode_check(tokenizer, data + size - text_size, text_size);
    tokenizer_free(tokenizer);
    return 0;
}

/*
 * fuzz_tokenizer_model - tokenizer.model in both forms, fed with anything
 *
 * What:   input = the size of a text (a byte), the text, a tokenizer.model. The file must load or be refused; what
 *         loads must encode every valid text, and decode its ids in pieces as in one go.
 */
#include <stdint.h>

#include "coordinator/tokenizer/ranks.h"
#include "coordinator/tokenizer/sentencepiece.h"
#include "coordinator/tokenizer/tokenizer_config.h"
#include "tests/coordinator/tokenizer/fuzz_encode.h"
#include "tests/fuzz/fuzz_driver.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct tokenizer_config config;
    if (size == 0 || data[0] >= size) {
        return 0;
    }
    const size_t text_size = data[0];
    const uint8_t *file = data + 1 + text_size;
    const size_t file_size = size - 1 - text_size;
    struct tokenizer *tokenizer = NULL;
    const status_t s = ranks_is_tiktoken(file, file_size)
                           ? ranks_parse_tiktoken(file, file_size, &config, &tokenizer)
                           : sentencepiece_parse(file, file_size, &config, &tokenizer);
    if (!status_is_ok(&s)) {
        fuzz_encode_require(tokenizer == NULL && s.code == STATUS_DATA_LOSS && s.msg[0] != '\0');
        return 0;
    }
    fuzz_encode_check(tokenizer, data + 1, text_size);
    tokenizer_free(tokenizer);
    return 0;
}

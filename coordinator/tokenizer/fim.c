#include "coordinator/tokenizer/fim.h"

#include "coordinator/tokenizer/token_list.h"

static status_t find_tokens(const struct tokenizer *tokenizer, int32_t ids_out[3])
{
    static const char *const names[] = {"<fim_prefix>", "<fim_suffix>", "<fim_middle>"};
    for (int i = 0; i < 3; i++) {
        ids_out[i] = tokenizer_special_id(tokenizer, names[i]);
        if (ids_out[i] < 0) {
            return status_errorf(STATUS_INVALID_ARGUMENT,
                                 "suffix: the model was not made to fill in text, its tokenizer "
                                 "has no special token %s",
                                 names[i]);
        }
    }
    return status_ok();
}

static status_t encode(const struct tokenizer *tokenizer, struct fim_text prefix,
                       struct fim_text suffix, struct token_list *out)
{
    int32_t ids[3];
    TRY(find_tokens(tokenizer, ids));
    TRY(token_list_push(out, ids[0]));
    TRY(status_wrapf(tokenizer_encode(tokenizer, prefix.data, prefix.size, 0, out), "prompt"));
    TRY(token_list_push(out, ids[1]));
    TRY(status_wrapf(tokenizer_encode(tokenizer, suffix.data, suffix.size, 0, out), "suffix"));
    return token_list_push(out, ids[2]);
}

status_t fim_encode(const struct tokenizer *tokenizer, struct fim_text prefix,
                    struct fim_text suffix, struct token_list *out)
{
    const size_t n_before = out->n;
    const status_t s = encode(tokenizer, prefix, suffix, out);
    if (!status_is_ok(&s)) {
        out->n = n_before;
    }
    return s;
}

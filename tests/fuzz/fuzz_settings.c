/*
 * fuzz_settings.c - any generation_config.json, tokenizer_config.json or chat_template.jinja in a good directory
 *
 * What:   the first byte of the input chooses the file, the others are what it holds.
 */
#include <stdlib.h>
#include <string.h>

#include "coordinator/tokenizer/chat_template.h"
#include "coordinator/tokenizer/tokenizer.h"
#include "parallel/spec.h"
#include "tests/fuzz/fuzz_directory.h"
#include "tests/fuzz/fuzz_driver.h"

static void require(bool holds)
{
    if (!holds) {
        abort();
    }
}

/* A refusal names the file. */
static void check_refusal(const status_t *s, const char *name)
{
    require(s->code == STATUS_DATA_LOSS && strstr(s->msg, name) != NULL);
}

static void try_generation_config(const char *dir, const char *name)
{
    struct model_spec spec;
    const status_t s = spec_load(dir, &spec);
    if (!status_is_ok(&s)) {
        check_refusal(&s, name);
        return;
    }
    for (int32_t i = 0; i < spec.n_eos; i++) {
        require(spec.eos_ids[i] >= 0 && spec.eos_ids[i] < spec.n_vocab);
    }
    spec_destroy(&spec);
}

static void try_tokenizer(const char *dir, const char *name)
{
    struct tokenizer *tokenizer = NULL;
    status_t s = tokenizer_load(dir, &tokenizer);
    if (status_is_ok(&s)) {
        tokenizer_free(tokenizer);
    } else {
        check_refusal(&s, name);
    }
    struct chat_template chat;
    s = chat_template_load(dir, &chat);
    if (!status_is_ok(&s)) {
        check_refusal(&s, name);
    }
}

static const struct {
    const char *name;
    void (*try)(const char *dir, const char *name);
} files[] = {
    {"generation_config.json", try_generation_config},
    {"tokenizer_config.json", try_tokenizer},
    {"chat_template.jinja", try_tokenizer},
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0) {
        return 0;
    }
    const size_t choice = data[0] % (sizeof files / sizeof files[0]);
    fuzz_directory_write(files[choice].name, data + 1, size - 1);
    files[choice].try(fuzz_directory(), files[choice].name);
    fuzz_directory_remove(files[choice].name);
    return 0;
}

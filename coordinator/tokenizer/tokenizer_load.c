/*
 * Which of a directory's files the tokenizer is made from. The first that is there decides; one that is there and wrong
 * is an error, never passed over:
 *   tokenizer.json               whatever made it
 *   tokenizer.model              tiktoken or SentencePiece, told by its first byte
 *   vocab.json                   alone, for the classes that extend GPT-2's ranks
 *   vocab.json and merges.txt    GPT-2
 */
#include "base/file.h"
#include "coordinator/tokenizer/gpt2_files.h"
#include "coordinator/tokenizer/ranks.h"
#include "coordinator/tokenizer/sentencepiece.h"
#include "coordinator/tokenizer/tokenizer_config.h"
#include "coordinator/tokenizer/tokenizer_json.h"
#include "coordinator/tokenizer/tokenizer_parts.h"

#define MAX_JSON_BYTES   ((size_t)32 * 1024 * 1024)
#define MAX_MODEL_BYTES  ((size_t)16 * 1024 * 1024)
#define MAX_CONFIG_BYTES ((size_t)8 * 1024 * 1024)
#define PATH_BYTES       4096

/* A file of the directory. */
struct part {
    char path[PATH_BYTES];
    struct bytes data;
    bool found;
};

static status_t part_read(const char *dir, const char *name, size_t max_bytes, struct part *out)
{
    bytes_init(&out->data, max_bytes + 1);
    out->found = false;
    TRY(file_join(out->path, sizeof out->path, dir, name));
    const status_t s = file_read(out->path, max_bytes, &out->data);
    out->found = s.code == STATUS_OK;
    return s.code == STATUS_NOT_FOUND ? status_ok() : s;
}

/* GPT-2's own tokenizer.json beside a class that extends it would give wrong ids without a word. */
static status_t check_extended(const struct tokenizer_config *config, struct tokenizer **tokenizer)
{
    const int32_t n_ids = tokenizer_vocab_size(*tokenizer);
    if (config->class_kind != TOKENIZER_CLASS_CODEGEN25 || n_ids == RANKS_CODEGEN25_IDS) {
        return status_ok();
    }
    tokenizer_free(*tokenizer);
    *tokenizer = NULL;
    return status_errorf(STATUS_DATA_LOSS,
                         "has %d ids, the class %s has %d" STATUS_FIX
                         "put GPT-2's vocab.json in its place",
                         n_ids, tokenizer_config_class_name(config), RANKS_CODEGEN25_IDS);
}

static status_t load_json(const char *dir, const struct tokenizer_config *config,
                          struct tokenizer **tokenizer_out)
{
    struct part file;
    status_t s = part_read(dir, "tokenizer.json", MAX_JSON_BYTES, &file);
    if (file.found) {
        s = tokenizer_json_parse(file.data.data, file.data.size, tokenizer_out);
        if (status_is_ok(&s)) {
            s = check_extended(config, tokenizer_out);
        }
        s = status_wrapf(s, "%s", file.path);
    }
    bytes_destroy(&file.data);
    return s;
}

static status_t load_model(const char *dir, const struct tokenizer_config *config,
                           struct tokenizer **tokenizer_out)
{
    struct part file;
    status_t s = part_read(dir, "tokenizer.model", MAX_MODEL_BYTES, &file);
    if (file.found) {
        const struct bytes *data = &file.data;
        s = ranks_is_tiktoken(data->data, data->size)
                ? ranks_parse_tiktoken(data->data, data->size, config, tokenizer_out)
                : sentencepiece_parse(data->data, data->size, config, tokenizer_out);
        s = status_wrapf(s, "%s", file.path);
    }
    bytes_destroy(&file.data);
    return s;
}

static status_t parse_vocab(const char *dir, const struct part *vocab,
                            const struct tokenizer_config *config, struct tokenizer **tokenizer_out)
{
    if (config->class_kind == TOKENIZER_CLASS_CODEGEN25) {
        const status_t s =
            ranks_parse_vocab_json(vocab->data.data, vocab->data.size, config, tokenizer_out);
        return status_wrapf(s, "%s", vocab->path);
    }
    struct part merges;
    status_t s = part_read(dir, "merges.txt", MAX_JSON_BYTES, &merges);
    if (merges.found) {
        s = status_wrapf(gpt2_files_parse(&vocab->data, &merges.data, config, tokenizer_out), "%s",
                         dir);
    }
    bytes_destroy(&merges.data);
    return s;
}

static status_t load_vocab(const char *dir, const struct tokenizer_config *config,
                           struct tokenizer **tokenizer_out)
{
    struct part vocab;
    status_t s = part_read(dir, "vocab.json", MAX_JSON_BYTES, &vocab);
    if (vocab.found) {
        s = parse_vocab(dir, &vocab, config, tokenizer_out);
    }
    bytes_destroy(&vocab.data);
    return s;
}

static status_t nothing_found(const char *dir, const struct tokenizer_config *config)
{
    if (config->class_kind == TOKENIZER_CLASS_CODEGEN25) {
        return status_errorf(
            STATUS_NOT_FOUND,
            "%s: the class %s extends GPT-2's vocabulary, which is not there" STATUS_FIX
            "put GPT-2's vocab.json into the directory",
            dir, tokenizer_config_class_name(config));
    }
    return status_errorf(
        STATUS_NOT_FOUND,
        "%s: no tokenizer: none of tokenizer.json, tokenizer.model (SentencePiece BPE, or "
        "tiktoken), vocab.json with merges.txt" STATUS_FIX
        "download them from the model's repository, or save the tokenizer with transformers",
        dir);
}

static status_t load_config(const char *dir, struct tokenizer_config *out)
{
    *out = (struct tokenizer_config){0};
    struct part file;
    status_t s = part_read(dir, "tokenizer_config.json", MAX_CONFIG_BYTES, &file);
    if (file.found) {
        s = status_wrapf(tokenizer_config_parse(file.data.data, file.data.size, out), "%s",
                         file.path);
    }
    bytes_destroy(&file.data);
    return s;
}

static status_t load_any(const char *dir, const struct tokenizer_config *config,
                         struct tokenizer **tokenizer_out)
{
    static status_t (*const loaders[])(const char *dir, const struct tokenizer_config *config,
                                       struct tokenizer **tokenizer_out) = {load_json, load_model,
                                                                            load_vocab};
    struct tokenizer *tokenizer = NULL;
    for (size_t i = 0; i < sizeof loaders / sizeof loaders[0] && tokenizer == NULL; i++) {
        TRY(loaders[i](dir, config, &tokenizer));
    }
    if (tokenizer == NULL) {
        return nothing_found(dir, config);
    }
    const status_t s = tokenizer_config_apply(config, tokenizer);
    if (!status_is_ok(&s)) {
        tokenizer_free(tokenizer);
        return status_wrapf(s, "%s/tokenizer_config.json", dir);
    }
    *tokenizer_out = tokenizer;
    return status_ok();
}

status_t tokenizer_load(const char *dir, struct tokenizer **tokenizer_out)
{
    struct tokenizer_config config;
    TRY(load_config(dir, &config));
    const status_t s = load_any(dir, &config, tokenizer_out);
    tokenizer_config_destroy(&config);
    return s;
}

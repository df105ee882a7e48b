#include "coordinator/tokenizer/ranks.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "coordinator/tokenizer/json_field.h"
#include "coordinator/tokenizer/merge_list.h"
#include "coordinator/tokenizer/rank_tokens.h"
#include "coordinator/tokenizer/split.h"
#include "coordinator/tokenizer/tokenizer_config.h"

#define LLAMA3_RANKS   128000
#define LLAMA3_SPECIAL 256
#define GPT2_RANKS     50256

#define MAX_LINE_BYTES  1024 /* of which base64 makes three quarters bytes */
#define MAX_RANKS       ((size_t)512 * 1024)
#define CODEGEN_LAST_ID (RANKS_CODEGEN25_IDS - 1)
#define CODEGEN_SPACES  31
#define CODEGEN_TABS    9
#define END_OF_TEXT     "<|endoftext|>"

// ---- special tokens and runs ----

static status_t add_special(struct rank_tokens *tokens, const char *text, int64_t id)
{
    const struct text_view view = {.data = text, .size = strlen(text)};
    return rank_tokens_add_text(tokens, view, id, RANK_TOKEN_SPECIAL);
}

/* "<mask_7>" and the like; returns buf. */
static const char *numbered(char buf[48], const char *before, int64_t number, const char *after)
{
    snprintf(buf, 48, "%s%lld%s", before, (long long)number, after);
    return buf;
}

static status_t add_llama3_special(struct rank_tokens *tokens)
{
    static const char *const names[] = {
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|reserved_special_token_0|>",
        "<|reserved_special_token_1|>",
        "<|finetune_right_pad_id|>",
        "<|reserved_special_token_2|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eom_id|>",
        "<|eot_id|>",
        "<|python_tag|>",
    };
    const int64_t n_names = sizeof names / sizeof names[0];

    for (int64_t i = 0; i < LLAMA3_SPECIAL; i++) {
        char buf[48];
        const char *name =
            i < n_names ? names[i] : numbered(buf, "<|reserved_special_token_", i - 8, "|>");
        TRY(add_special(tokens, name, LLAMA3_RANKS + i));
    }
    return status_ok();
}

/* Runs of one character, from the longest down to two. */
static status_t add_runs(struct rank_tokens *tokens, char character, size_t longest, int64_t *id)
{
    uint8_t run[64];
    memset(run, character, sizeof run);
    for (size_t length = longest; length >= 2; length--) {
        TRY(rank_tokens_add_bytes(tokens, run, length, (*id)++));
    }
    return status_ok();
}

static status_t add_codegen25(struct rank_tokens *tokens)
{
    static const char *const names[] = {
        "<fim_prefix>",     "<fim_middle>",    "<fim_suffix>",    "<fim_pad>",
        "<filename>",       "<gh_stars>",      "<issue_start>",   "<issue_comment>",
        "<issue_closed>",   "<jupyter_start>", "<jupyter_text>",  "<jupyter_code>",
        "<jupyter_output>", "<empty_output>",  "<commit_before>", "<commit_msg>",
        "<commit_after>",   "<reponame>",      "<dummy_0>",       "<dummy_1>",
        "<dummy_2>",        "<dummy_3>",       "<sep>",           "<eom>",
    };

    int64_t id = GPT2_RANKS + 1; // behind <|endoftext|>
    TRY(add_runs(tokens, ' ', CODEGEN_SPACES, &id));
    TRY(add_runs(tokens, '\t', CODEGEN_TABS, &id));
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        TRY(add_special(tokens, names[i], id++));
    }
    for (; id <= CODEGEN_LAST_ID; id++) {
        char buf[48];
        TRY(add_special(tokens, numbered(buf, "<mask_", CODEGEN_LAST_ID + 1 - id, ">"), id));
    }
    return status_ok();
}

/* What the file's ranks are followed by. */
static status_t add_layout(struct rank_tokens *tokens, const struct tokenizer_config *config)
{
    switch (tokens->n) {
    case LLAMA3_RANKS:
        return tokenizer_config_n_added(config) == 0 ? add_llama3_special(tokens) : status_ok();
    case GPT2_RANKS:
        TRY(add_special(tokens, END_OF_TEXT, GPT2_RANKS));
        return config->class_kind == TOKENIZER_CLASS_CODEGEN25 ? add_codegen25(tokens)
                                                               : status_ok();
    default:
        return status_errorf(STATUS_DATA_LOSS,
                             "%zu ranks: a layout that is not known (known: %d, Llama 3; %d, "
                             "GPT-2)",
                             tokens->n, LLAMA3_RANKS, GPT2_RANKS);
    }
}

// ---- the tokenizer ----

static void set_pipeline(size_t n_ranks, struct tokenizer *tokenizer)
{
    struct pretokenizer *pre = &tokenizer->pretokenizer;
    pre->steps[pre->n_steps++] = (struct pretokenizer_step){
        .kind = PRETOKENIZER_SPLIT,
        .pattern = n_ranks == LLAMA3_RANKS ? SPLIT_LLAMA3 : SPLIT_GPT2,
    };
    pre->byte_level = true;
    tokenizer->decoder.byte_level = true;
}

static status_t add_special_tokens(const struct rank_tokens *tokens,
                                   const struct token_texts *texts, struct tokenizer *tokenizer)
{
    for (size_t i = 0; i < tokens->n; i++) {
        if (tokens->all[i].kind == RANK_TOKEN_SPECIAL) {
            const struct added_token token = {.id = (int32_t)tokens->all[i].id,
                                              .flags = ADDED_TOKEN_SPECIAL};
            TRY(token_texts_add(texts, token, tokenizer));
        }
    }
    return status_ok();
}

static status_t build_bpe(struct tokenizer *tokenizer)
{
    const struct bpe_options options = {.byte_level = true, .ignore_merges = true, .unk_id = -1};
    const struct vocab *vocab = &tokenizer->pieces;
    struct bpe_merge *merges = NULL;
    size_t n_merges = 0;
    uint32_t *ranks = malloc((vocab->n + 1) * sizeof *ranks);
    if (ranks == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory for %zu tokens", vocab->n);
    }
    for (size_t id = 0; id < vocab->n; id++) {
        ranks[id] = (uint32_t)id;
    }
    status_t s = merge_list_make(vocab, ranks, &merges, &n_merges);
    if (status_is_ok(&s)) {
        s = bpe_init(&tokenizer->bpe, &options, vocab, merges, n_merges);
    }
    free(merges);
    free(ranks);
    for (int byte = 0; byte < 256 && status_is_ok(&s); byte++) {
        if (tokenizer->bpe.byte_symbol[byte] < 0) {
            s = status_errorf(STATUS_DATA_LOSS, "no token for the byte 0x%02X", (unsigned)byte);
        }
    }
    return s;
}

static status_t fill(const struct rank_tokens *tokens, const struct tokenizer_config *config,
                     struct tokenizer *tokenizer)
{
    struct token_texts texts;
    TRY(token_texts_init(&texts, tokens->n + tokenizer_config_n_added(config)));
    status_t s;
    TRY_GOTO(s, rank_tokens_note(tokens, &texts), done);
    TRY_GOTO(s, tokenizer_config_note_added(config, &texts), done);
    TRY_GOTO(s, token_texts_fill(&texts, tokenizer), done);
    TRY_GOTO(s, tokenizer_config_add(config, &texts, tokenizer), done);
    TRY_GOTO(s, add_special_tokens(tokens, &texts, tokenizer), done);
    s = build_bpe(tokenizer);
done:
    token_texts_destroy(&texts);
    return s;
}

/* From the file's ranks alone. */
static status_t build(struct rank_tokens *tokens, const struct tokenizer_config *config,
                      struct tokenizer **tokenizer_out)
{
    const size_t n_ranks = tokens->n;
    TRY(add_layout(tokens, config));
    struct tokenizer *tokenizer = calloc(1, sizeof *tokenizer);
    if (tokenizer == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory");
    }
    set_pipeline(n_ranks, tokenizer);
    const status_t s = fill(tokens, config, tokenizer);
    if (!status_is_ok(&s)) {
        tokenizer_free(tokenizer);
        return s;
    }
    if (n_ranks == LLAMA3_RANKS && tokenizer->decoded.n > LLAMA3_RANKS) {
        tokenizer->template_ids = (struct template_ids){.before = {LLAMA3_RANKS}, .n_before = 1};
    }
    *tokenizer_out = tokenizer;
    return status_ok();
}

// ---- tiktoken files ----

static int base64_value(uint8_t c)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const char *found = c != '\0' ? strchr(digits, c) : NULL;
    return found != NULL ? (int)(found - digits) : -1;
}

bool ranks_is_tiktoken(const void *data, size_t size)
{
    return size > 0 && base64_value(((const uint8_t *)data)[0]) >= 0;
}

/* Groups of four digits, the last one filled up with '='. out has room for 3/4 of size. */
static bool decode_base64(const uint8_t *text, size_t size, uint8_t *out, size_t *size_out)
{
    size_t padding = 0;
    while (padding < 2 && padding < size && text[size - 1 - padding] == '=') {
        padding++;
    }
    if (size == 0 || size % 4 != 0) {
        return false;
    }
    uint32_t bits = 0;
    size_t n = 0;
    for (size_t i = 0; i < size; i++) {
        const int value = i < size - padding ? base64_value(text[i]) : 0;
        if (value < 0) {
            return false;
        }
        bits = bits << 6 | (uint32_t)value;
        if (i % 4 == 3) {
            out[n++] = (uint8_t)(bits >> 16);
            out[n++] = (uint8_t)(bits >> 8);
            out[n++] = (uint8_t)bits;
        }
    }
    *size_out = n - padding;
    return true;
}

static bool parse_number(const uint8_t *text, size_t size, int64_t *out)
{
    int64_t number = 0;
    if (size == 0 || size > 9) {
        return false;
    }
    for (size_t i = 0; i < size; i++) {
        if (text[i] < '0' || text[i] > '9') {
            return false;
        }
        number = 10 * number + (text[i] - '0');
    }
    *out = number;
    return true;
}

/* "base64 id", without the newline. */
static status_t read_line(const uint8_t *line, size_t size, struct rank_tokens *tokens)
{
    uint8_t bytes[MAX_LINE_BYTES];
    const uint8_t *space = size > 0 ? memchr(line, ' ', size) : NULL;
    size_t n_bytes;
    int64_t id;
    if (size > MAX_LINE_BYTES || space == NULL ||
        !decode_base64(line, (size_t)(space - line), bytes, &n_bytes) ||
        !parse_number(space + 1, size - (size_t)(space - line) - 1, &id)) {
        return status_errorf(STATUS_DATA_LOSS, "is not a token in base64, a space and its id");
    }
    if (tokens->n == MAX_RANKS) {
        return status_errorf(STATUS_DATA_LOSS, "more than %zu tokens", MAX_RANKS);
    }
    return rank_tokens_add_bytes(tokens, bytes, n_bytes, id);
}

/* The ids are those of the ranks: what follows them must not fill a gap. */
static status_t check_ids(const struct rank_tokens *tokens)
{
    for (size_t i = 0; i < tokens->n; i++) {
        if (tokens->all[i].id < 0 || tokens->all[i].id >= (int64_t)tokens->n) {
            return status_errorf(STATUS_DATA_LOSS, "id %lld, but there are %zu ranks",
                                 (long long)tokens->all[i].id, tokens->n);
        }
    }
    return status_ok();
}

static status_t read_lines(const uint8_t *data, size_t size, struct rank_tokens *tokens)
{
    for (size_t at = 0, n = 1; at < size; n++) {
        const uint8_t *newline = memchr(data + at, '\n', size - at);
        const size_t length = newline != NULL ? (size_t)(newline - data) - at : size - at;
        TRY(status_wrapf(read_line(data + at, length, tokens), "line %zu", n));
        at += length + 1;
    }
    return check_ids(tokens);
}

status_t ranks_parse_tiktoken(const void *data, size_t size, const struct tokenizer_config *config,
                              struct tokenizer **tokenizer_out)
{
    struct rank_tokens tokens;
    rank_tokens_init(&tokens);
    status_t s = read_lines(data, size, &tokens);
    if (status_is_ok(&s)) {
        s = build(&tokens, config, tokenizer_out);
    }
    rank_tokens_destroy(&tokens);
    return s;
}

// ---- vocab.json ----

static status_t read_vocab(json_t *vocab, struct rank_tokens *tokens)
{
    const char *text;
    json_t *id;
    json_object_foreach(vocab, text, id)
    {
        if (!json_is_integer(id)) {
            return status_errorf(STATUS_DATA_LOSS, "an id is %s, not an integer",
                                 json_field_kind(id));
        }
        if (strcmp(text, END_OF_TEXT) == 0) {
            continue; // the layout puts it behind the ranks
        }
        const struct text_view view = {.data = text, .size = strlen(text)};
        TRY(rank_tokens_add_text(tokens, view, json_integer_value(id), RANK_TOKEN_MERGED));
    }
    return check_ids(tokens);
}

status_t ranks_parse_vocab_json(const void *json, size_t size,
                                const struct tokenizer_config *config,
                                struct tokenizer **tokenizer_out)
{
    static const struct json_limits limits = {
        .max_depth = 1, .max_containers = 1, .max_values = 2 * MAX_RANKS};
    json_t *root;
    TRY(json_field_parse(json, size, JSON_REJECT_DUPLICATES, &limits, &root));
    struct rank_tokens tokens;
    rank_tokens_init(&tokens);
    status_t s = json_is_object(root) ? read_vocab(root, &tokens)
                                      : status_errorf(STATUS_DATA_LOSS, "is %s, not an object",
                                                      json_field_kind(root));
    if (status_is_ok(&s)) {
        s = build(&tokens, config, tokenizer_out);
    }
    rank_tokens_destroy(&tokens);
    json_decref(root);
    return s;
}

#include "coordinator/tokenizer/sentencepiece.h"

#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "coordinator/tokenizer/merge_list.h"
#include "coordinator/tokenizer/sentencepiece_file.h"
#include "coordinator/tokenizer/token_texts.h"
#include "coordinator/tokenizer/tokenizer_config.h"

// ---- what is supported ----

static status_t check_model(const struct sentencepiece_file *file)
{
    if (file->model_type != SENTENCEPIECE_BPE) {
        return status_errorf(
            STATUS_DATA_LOSS, "trainer_spec.model_type: %d is not supported (known: 2, BPE)%s",
            file->model_type, file->model_type == SENTENCEPIECE_UNIGRAM ? "; 1 is unigram" : "");
    }
    if (file->whitespace_as_suffix) {
        return status_errorf(STATUS_DATA_LOSS,
                             "trainer_spec.treat_whitespace_as_suffix is not supported");
    }
    if (file->n_charsmap_bytes > 0) {
        return status_errorf(STATUS_DATA_LOSS,
                             "normalizer_spec.precompiled_charsmap: %zu bytes of rules, only the "
                             "identity is supported",
                             file->n_charsmap_bytes);
    }
    if (file->remove_extra_whitespaces || !file->escape_whitespaces) {
        return status_errorf(
            STATUS_DATA_LOSS,
            "normalizer_spec: remove_extra_whitespaces %d, escape_whitespaces %d; supported: 0, 1",
            file->remove_extra_whitespaces, file->escape_whitespaces);
    }
    return status_ok();
}

static void set_pipeline(const struct sentencepiece_file *file, struct tokenizer *tokenizer)
{
    struct normalizer *normalizer = &tokenizer->normalizer;
    if (file->add_dummy_prefix) {
        normalizer->steps[normalizer->n_steps++] =
            (struct normalize_step){.kind = NORMALIZE_PREPEND, .content = META_SPACE};
    }
    normalizer->steps[normalizer->n_steps++] =
        (struct normalize_step){.kind = NORMALIZE_REPLACE, .pattern = " ", .content = META_SPACE};
    tokenizer->decoder = (struct decoder){.byte_fallback = file->byte_fallback,
                                          .strip_space = file->add_dummy_prefix,
                                          .pattern = META_SPACE,
                                          .content = " "};
}

// ---- pieces ----

/* Control and user-defined pieces never come about by merging, so they are no part of the model. */
static int place_of(const struct sentencepiece_piece *piece)
{
    return piece->type == SENTENCEPIECE_CONTROL || piece->type == SENTENCEPIECE_USER_DEFINED
               ? TOKEN_ADDED
               : TOKEN_IN_MODEL;
}

static status_t fill_texts(const struct sentencepiece_file *file,
                           const struct tokenizer_config *config, struct token_texts *texts)
{
    for (size_t id = 0; id < file->n; id++) {
        const struct sentencepiece_piece *piece = &file->pieces[id];
        const status_t s = token_texts_set(texts, (int64_t)id, piece->text, place_of(piece));
        TRY(status_wrapf(s, "pieces"));
    }
    if (texts->n == 0) {
        return status_errorf(STATUS_DATA_LOSS, "has no pieces");
    }
    return tokenizer_config_note_added(config, texts);
}

static status_t add_pieces(const struct sentencepiece_file *file, const struct token_texts *texts,
                           struct tokenizer *tokenizer)
{
    for (size_t id = 0; id < file->n; id++) {
        const struct sentencepiece_piece *piece = &file->pieces[id];
        if (piece->type == SENTENCEPIECE_CONTROL || piece->type == SENTENCEPIECE_UNKNOWN) {
            const struct added_token token = {.id = (int32_t)id, .flags = ADDED_TOKEN_SPECIAL};
            TRY(token_texts_add(texts, token, tokenizer));
        } else if (piece->type == SENTENCEPIECE_USER_DEFINED) {
            // Its text is what normalized text contains; it is not normalized once more.
            TRY(added_tokens_insert(&tokenizer->normalized_added, piece->text.data,
                                    piece->text.size, (int32_t)id, 0));
        }
    }
    return status_ok();
}

// ---- merges ----

struct scored {
    float score;
    uint32_t id;
};

static int compare_scores(const void *a, const void *b)
{
    const float x = ((const struct scored *)a)->score;
    const float y = ((const struct scored *)b)->score;
    return (x < y) - (x > y);
}

/* The highest score has rank 0, and equal scores have equal ranks. */
static status_t rank_pieces(const struct sentencepiece_file *file, uint32_t *ranks)
{
    struct scored *order = calloc(file->n + 1, sizeof *order);
    if (order == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory for %zu pieces", file->n);
    }
    size_t n = 0;
    for (size_t id = 0; id < file->n; id++) {
        if (file->pieces[id].type == SENTENCEPIECE_NORMAL) {
            order[n++] = (struct scored){.score = file->pieces[id].score, .id = (uint32_t)id};
        }
    }
    qsort(order, n, sizeof *order, compare_scores);
    uint32_t rank = 0;
    for (size_t i = 0; i < n; i++) {
        rank += i > 0 && order[i].score < order[i - 1].score;
        ranks[order[i].id] = rank;
    }
    free(order);
    return status_ok();
}

/* SentencePiece merges characters whether they are pieces or not; here a symbol is always a piece. */
static status_t check_characters(const struct sentencepiece_file *file, const struct vocab *vocab)
{
    for (size_t id = 0; id < file->n; id++) {
        const struct text_view *text = &file->pieces[id].text;
        const uint8_t *bytes = text->data;
        if (file->pieces[id].type != SENTENCEPIECE_NORMAL) {
            continue;
        }
        for (size_t at = 0, length; at < text->size; at += length) {
            (void)utf8_decode(bytes + at, &length);
            if (vocab_find(vocab, bytes + at, length) < 0) {
                return status_errorf(STATUS_DATA_LOSS,
                                     "pieces[%zu]: its character at byte %zu is no piece", id, at);
            }
        }
    }
    return status_ok();
}

static int32_t find_unknown(const struct sentencepiece_file *file)
{
    for (size_t id = 0; id < file->n; id++) {
        if (file->pieces[id].type == SENTENCEPIECE_UNKNOWN) {
            return (int32_t)id;
        }
    }
    return -1;
}

static status_t build_bpe(const struct sentencepiece_file *file, struct tokenizer *tokenizer)
{
    const struct bpe_options options = {
        .byte_fallback = file->byte_fallback, .fuse_unk = true, .unk_id = find_unknown(file)};
    const struct vocab *vocab = &tokenizer->pieces;
    struct bpe_merge *merges = NULL;
    size_t n_merges = 0;
    uint32_t *ranks = malloc((vocab->n + 1) * sizeof *ranks);
    if (ranks == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory for %zu tokens", vocab->n);
    }
    memset(ranks, 0xFF, vocab->n * sizeof *ranks); // BPE_NONE
    status_t s;
    TRY_GOTO(s, check_characters(file, vocab), done);
    TRY_GOTO(s, rank_pieces(file, ranks), done);
    TRY_GOTO(s, merge_list_make(vocab, ranks, &merges, &n_merges), done);
    s = bpe_init(&tokenizer->bpe, &options, vocab, merges, n_merges);
done:
    free(merges);
    free(ranks);
    return s;
}

// ---- the whole ----

static void set_bos(const struct sentencepiece_file *file, struct tokenizer *tokenizer)
{
    static const struct text_view usual = {.data = "<s>", .size = 3};
    const struct text_view *bos = file->bos_piece.size > 0 ? &file->bos_piece : &usual;
    for (size_t id = 0; id < file->n; id++) {
        const struct sentencepiece_piece *piece = &file->pieces[id];
        if (piece->type == SENTENCEPIECE_CONTROL && piece->text.size == bos->size &&
            memcmp(piece->text.data, bos->data, bos->size) == 0) {
            tokenizer->template_ids = (struct template_ids){.before = {(int32_t)id}, .n_before = 1};
        }
    }
}

static status_t build(const struct sentencepiece_file *file, const struct tokenizer_config *config,
                      struct tokenizer *tokenizer)
{
    TRY(check_model(file));
    set_pipeline(file, tokenizer);
    struct token_texts texts;
    TRY(token_texts_init(&texts, file->n + tokenizer_config_n_added(config)));
    status_t s;
    TRY_GOTO(s, fill_texts(file, config, &texts), done);
    TRY_GOTO(s, token_texts_fill(&texts, tokenizer), done);
    TRY_GOTO(s, tokenizer_config_add(config, &texts, tokenizer), done);
    TRY_GOTO(s, add_pieces(file, &texts, tokenizer), done);
    set_bos(file, tokenizer);
    s = build_bpe(file, tokenizer);
done:
    token_texts_destroy(&texts);
    return s;
}

status_t sentencepiece_parse(const void *data, size_t size, const struct tokenizer_config *config,
                             struct tokenizer **tokenizer_out)
{
    struct sentencepiece_file file;
    TRY(sentencepiece_file_parse(data, size, &file));
    status_t s;
    struct tokenizer *tokenizer = calloc(1, sizeof *tokenizer);
    if (tokenizer == NULL) {
        s = status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory");
        goto undo;
    }
    TRY_GOTO(s, build(&file, config, tokenizer), undo);
    sentencepiece_file_destroy(&file);
    *tokenizer_out = tokenizer;
    return status_ok();

undo:
    tokenizer_free(tokenizer);
    sentencepiece_file_destroy(&file);
    return s;
}

/*
 * bench_cards.h - the models and the rows of the published model cards, and what is left of them at a scale
 *
 * What:      the cards say tokens a second of one GPU at a batch size and a prompt and completion length. A scale of F
 *            computes ceil(F n) of the n layers, taken at even distances so that the mix of KV heads stays, ceil(F B) of
 *            B sequences and ceil(F P), ceil(F G) of P and G tokens. Width, heads and vocabulary stay.
 * Thread:    any
 * Source:    Hugging Face model cards of Deci/DeciLM-7B, Deci/DeciLM-6b and Deci/DeciCoder-1b; config.json of each.
 */
#pragma once

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

struct bench_card_model {
    const char *name, *architecture;
    int32_t n_hidden, n_heads, n_ff, n_vocab, max_positions, n_layers;
    const char *kv_heads; /* a digit a layer */
};

struct bench_card {
    const struct bench_card_model *model;
    const char *gpu, *engine; /* of the published figure */
    double published_tok_s;
    int32_t prompt, generate;
    int32_t batch;
    int32_t lengths_assumed; /* 1: the card does not say them */
};

const struct bench_card *bench_cards(size_t *n_out);

/* What is computed of a row. */
struct bench_card_scaled {
    int32_t n_layers, batch, prompt, generate;
};

void bench_cards_scale(const struct bench_card *card, double scale,
                       struct bench_card_scaled *scaled_out);

/* config.json with the layers of the scale. NULL for memory. */
json_t *bench_cards_config(const struct bench_card_model *model, int32_t n_layers);

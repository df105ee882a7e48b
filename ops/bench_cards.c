#include "ops/bench_cards.h"

#include <math.h>
#include <string.h>

static const struct bench_card_model decilm_7b = {
    .name = "DeciLM-7B",
    .architecture = "DeciLMForCausalLM",
    .n_hidden = 4096,
    .n_heads = 32,
    .n_ff = 14336,
    .n_vocab = 32000,
    .max_positions = 8192,
    .n_layers = 32,
    .kv_heads = "44444222224222222222111111111114",
};

static const struct bench_card_model decilm_6b = {
    .name = "DeciLM-6B",
    .architecture = "DeciLMForCausalLM",
    .n_hidden = 4096,
    .n_heads = 32,
    .n_ff = 11008,
    .n_vocab = 32000,
    .max_positions = 4096,
    .n_layers = 32,
    .kv_heads = "42222222221111111111111111111144",
};

static const struct bench_card_model decicoder_1b = {
    .name = "DeciCoder-1B",
    .architecture = "DeciLMForCausalLM", // the same blocks
    .n_hidden = 2048,
    .n_heads = 32,
    .n_ff = 5888,
    .n_vocab = 49152,
    .max_positions = 2048,
    .n_layers = 20,
    .kv_heads = "44444444444444444444",
};

#define CARD(model_, gpu_, engine_, length_, batch_, tok_s_, assumed_)              \
    {                                                                               \
        .model = (model_), .gpu = (gpu_), .engine = (engine_), .prompt = (length_), \
        .generate = (length_), .batch = (batch_), .published_tok_s = (tok_s_),      \
        .lengths_assumed = (assumed_)                                               \
    }

static const struct bench_card cards[] = {
    CARD(&decilm_7b, "A100", "HF", 512, 352, 1174, 0),
    CARD(&decilm_7b, "A100", "HF", 2048, 72, 328, 0),
    CARD(&decilm_7b, "A100", "Infery", 512, 1024, 4559, 0),
    CARD(&decilm_7b, "A100", "Infery", 2048, 512, 3997, 0),
    CARD(&decilm_7b, "A10", "Infery", 512, 128, 1345, 0),
    CARD(&decilm_7b, "A10", "Infery", 2048, 32, 599, 0),
    CARD(&decilm_6b, "A10", "HF", 512, 64, 652, 1),
    CARD(&decilm_6b, "A10", "Infery", 512, 128, 2030, 1),
    CARD(&decicoder_1b, "A10", "HF", 512, 128, 1364, 1),
    CARD(&decicoder_1b, "A10", "Infery", 512, 128, 3889, 1),
    CARD(&decicoder_1b, "A100", "HF", 512, 512, 3244, 1),
    CARD(&decicoder_1b, "A100", "Infery", 512, 512, 11677, 1),
};

const struct bench_card *bench_cards(size_t *n_out)
{
    *n_out = sizeof cards / sizeof cards[0];
    return cards;
}

static int32_t part(int32_t n, double scale)
{
    const int32_t scaled = (int32_t)ceil((double)n * scale - 1e-9);
    return scaled < 1 ? 1 : scaled;
}

void bench_cards_scale(const struct bench_card *card, double scale,
                       struct bench_card_scaled *scaled_out)
{
    *scaled_out = (struct bench_card_scaled){
        .n_layers = part(card->model->n_layers, scale),
        .batch = part(card->batch, scale),
        .prompt = part(card->prompt, scale),
        .generate = part(card->generate, scale),
    };
}

json_t *bench_cards_config(const struct bench_card_model *model, int32_t n_layers)
{
    json_t *kv_heads = json_array();
    for (int32_t i = 0; i < n_layers; i++) {
        const int32_t layer = (int32_t)((int64_t)i * model->n_layers / n_layers);
        json_array_append_new(kv_heads, json_integer(model->kv_heads[layer] - '0'));
    }
    return json_pack("{s[s] ss si si so si si si si sf sf ss sb ss si si}", "architectures",
                     model->architecture, "model_type", "deci", "hidden_size", (int)model->n_hidden,
                     "num_attention_heads", (int)model->n_heads, "num_key_value_heads_per_layer",
                     kv_heads, "num_hidden_layers", (int)n_layers, "intermediate_size",
                     (int)model->n_ff, "vocab_size", (int)model->n_vocab, "max_position_embeddings",
                     (int)model->max_positions, "rms_norm_eps", 1e-5, "rope_theta", 10000.0,
                     "hidden_act", "silu", "tie_word_embeddings", 0, "torch_dtype", "bfloat16",
                     "bos_token_id", 1, "eos_token_id", 2);
}

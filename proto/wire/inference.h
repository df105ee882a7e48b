/*
 * inference.h - messages of kvasir.v1.Inference as plain structs
 *
 * What:      checked conversion between protobuf and C. Unpack resolves defaults (an absent temperature is 1.0),
 *            checks UTF-8 and NUL in every string, refuses unknown enum values, and bounds memory; ranges are
 *            the coordinator's to check.
 * Ownership: unpack puts everything into the arena; structs borrow from it. Pack borrows and appends to bytes.
 * Thread:    any
 * Errors:    unpack: INVALID_ARGUMENT naming the field ("prompt: not UTF-8 at byte 17"); RESOURCE_EXHAUSTED when
 *            the message would take more memory than its size allows (WIRE_AMPLIFICATION), or than the arena has.
 *            pack: INVALID_ARGUMENT when a string given to it is not text (a NUL in prompt, bytes that are not
 *            UTF-8), RESOURCE_EXHAUSTED for memory; out is then unchanged.
 */
#pragma once

#include "base/arena.h"
#include "base/bytes.h"

/*
 * Parsing may take this many bytes for each byte received, and a constant on top: a packed token id of one byte
 * becomes four, a small sub-message 10 to 20 times its size. Without a bound, 4 MiB of empty sub-messages become
 * 218 MB. Messages of the link are mostly small sub-messages, hence their own factor; the arena bounds both.
 */
#define WIRE_AMPLIFICATION      16
#define WIRE_AMPLIFICATION_LINK 64
#define WIRE_AMPLIFICATION_BASE ((size_t)64 * 1024)

struct wire_token_ids {
    const uint32_t *ids;
    size_t n;
};

struct wire_chat_message {
    const char *role, *content;
};

enum wire_prompt_kind {
    WIRE_PROMPT_NONE,
    WIRE_PROMPT_TEXT,
    WIRE_PROMPT_TOKENS,
    WIRE_PROMPT_MESSAGES
};

struct wire_logit_bias {
    uint32_t token_id;
    float bias;
};

enum wire_early_stopping {
    WIRE_EARLY_STOPPING_HEURISTIC,
    WIRE_EARLY_STOPPING_FIRST,
    WIRE_EARLY_STOPPING_NEVER,
};

struct wire_sampling {
    float temperature;        /* 1 */
    float top_p;              /* 1 */
    int32_t top_k;            /* 0: off */
    float min_p;              /* 0 */
    float repetition_penalty; /* 1 */
    float presence_penalty, frequency_penalty;
    bool has_seed;
    uint64_t seed;
    uint32_t n;           /* 1 */
    uint32_t beam_width;  /* 0: no beam search */
    float length_penalty; /* 1 */
    int early_stopping;   /* enum wire_early_stopping */
    const struct wire_logit_bias *logit_bias;
    size_t n_logit_bias;
    struct wire_token_ids allowed_token_ids;
};

struct wire_stopping {
    uint32_t max_tokens; /* 16 */
    uint32_t min_tokens; /* 0 */
    const char *const *stop;
    size_t n_stop;
    struct wire_token_ids stop_token_ids;
    bool ignore_eos;
    bool include_stop_str_in_output;
};

struct wire_output_options {
    bool has_logprobs; /* logprobs = 0 asks for the sampled token's alone */
    uint32_t logprobs;
    bool has_prompt_logprobs;
    uint32_t prompt_logprobs;
    bool skip_special_tokens; /* true */
    bool echo;
};

struct wire_generate_request {
    const char *request_id; /* "" when absent, as all strings */
    const char *model;
    int prompt_kind; /* enum wire_prompt_kind */
    const char *prompt;
    size_t prompt_bytes;
    struct wire_token_ids prompt_token_ids;
    const struct wire_chat_message *messages;
    size_t n_messages;
    struct wire_sampling sampling;
    struct wire_stopping stopping;
    struct wire_output_options output;
    int32_t priority;
    bool has_resume_from;
    uint32_t resume_from;
    const char *cache_salt;
};

/* Every field at its default, prompt_kind NONE. */
void wire_generate_request_init(struct wire_generate_request *m);
MUST_USE status_t wire_generate_request_pack(const struct wire_generate_request *m,
                                             struct bytes *out);
MUST_USE status_t wire_generate_request_unpack(const uint8_t *data, size_t size,
                                               struct arena *arena,
                                               struct wire_generate_request *out);

struct wire_top_logprob {
    uint32_t id;
    float logprob;
};

struct wire_token_info {
    uint32_t id;
    bool has_logprob;
    float logprob;
    uint32_t rank;
    const struct wire_top_logprob *top;
    size_t n_top;
};

struct wire_usage {
    uint32_t prompt_tokens, completion_tokens, cached_tokens;
};

enum wire_finish_reason {
    WIRE_FINISH_NONE,
    WIRE_FINISH_STOP,
    WIRE_FINISH_LENGTH,
    WIRE_FINISH_CANCELLED,
    WIRE_FINISH_DEADLINE,
    WIRE_FINISH_ERROR,
};

const char *wire_finish_reason_name(int reason); /* "stop", "length", ... */

struct wire_finished {
    uint32_t index;
    int reason; /* enum wire_finish_reason */
    bool has_stop_token_id;
    uint32_t stop_token_id;
    const char *stop_text; /* NULL: not stopped by a string */
    const char *text;      /* what was held back, to be shown before the end */
    bool has_cumulative_logprob;
    double cumulative_logprob; /* of a beam search */
};

enum wire_event { WIRE_EVENT_NONE, WIRE_EVENT_PROMPT, WIRE_EVENT_TOKEN, WIRE_EVENT_FINISHED };

struct wire_generate_response {
    const char *request_id;
    int event; /* enum wire_event: which of the three below */

    struct {
        struct wire_token_ids token_ids;
        uint32_t cached_tokens;
        const struct wire_token_info *logprobs; /* one a prompt token when asked for, else none */
        size_t n_logprobs;
    } prompt;

    struct {
        uint32_t index, seq;
        const char *text; /* delta, valid UTF-8 */
        const struct wire_token_info *tokens;
        size_t n_tokens;
    } token;
    struct wire_finished finished;
    bool has_usage; /* on the last message */
    struct wire_usage usage;
};

MUST_USE status_t wire_generate_response_pack(const struct wire_generate_response *m,
                                              struct bytes *out);
MUST_USE status_t wire_generate_response_unpack(const uint8_t *data, size_t size,
                                                struct arena *arena,
                                                struct wire_generate_response *out);

struct wire_choice {
    const char *text;
    const struct wire_token_info *tokens;
    size_t n_tokens;
    struct wire_finished finished; /* its text is not used: it is part of text above */
};

struct wire_complete_response {
    const char *request_id;
    struct wire_token_ids prompt_token_ids;
    const struct wire_choice *choices;
    size_t n_choices;
    struct wire_usage usage;
    const struct wire_token_info *prompt_logprobs; /* as in wire_generate_response */
    size_t n_prompt_logprobs;
};

MUST_USE status_t wire_complete_response_pack(const struct wire_complete_response *m,
                                              struct bytes *out);
MUST_USE status_t wire_complete_response_unpack(const uint8_t *data, size_t size,
                                                struct arena *arena,
                                                struct wire_complete_response *out);

struct wire_tokenize_request {
    const char *text;
    size_t text_bytes;
    bool add_special_tokens; /* true */
};

MUST_USE status_t wire_tokenize_request_pack(const struct wire_tokenize_request *m,
                                             struct bytes *out);
MUST_USE status_t wire_tokenize_request_unpack(const uint8_t *data, size_t size,
                                               struct arena *arena,
                                               struct wire_tokenize_request *out);

/* TokenizeResponse and DetokenizeRequest both are token ids. */
MUST_USE status_t wire_tokenize_response_pack(const struct wire_token_ids *m, struct bytes *out);
MUST_USE status_t wire_tokenize_response_unpack(const uint8_t *data, size_t size,
                                                struct arena *arena, struct wire_token_ids *out);

struct wire_detokenize_request {
    struct wire_token_ids token_ids;
    bool skip_special_tokens; /* true */
};

MUST_USE status_t wire_detokenize_request_pack(const struct wire_detokenize_request *m,
                                               struct bytes *out);
MUST_USE status_t wire_detokenize_request_unpack(const uint8_t *data, size_t size,
                                                 struct arena *arena,
                                                 struct wire_detokenize_request *out);
MUST_USE status_t wire_detokenize_response_pack(const char *text, struct bytes *out);
MUST_USE status_t wire_detokenize_response_unpack(const uint8_t *data, size_t size,
                                                  struct arena *arena, const char **text_out);

struct wire_model_info {
    const char *name, *architecture;
    uint32_t context_length, vocab_size, n_layers, n_heads;
    const uint32_t *kv_heads; /* per layer */
    size_t n_kv_heads;
    struct wire_token_ids eos_token_ids;
    bool has_chat_template;
    uint64_t parameters;
    const char *quantization; /* "none", "int8", "w8a8" */
};

/* The request (GetModelInfoRequest) is empty. */
MUST_USE status_t wire_model_info_pack(const struct wire_model_info *m, struct bytes *out);
MUST_USE status_t wire_model_info_unpack(const uint8_t *data, size_t size, struct arena *arena,
                                         struct wire_model_info *out);

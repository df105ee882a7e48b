#include <string.h>

#include "proto/wire/wire_internal.h"

// ---- TokenizeRequest ----

status_t wire_tokenize_request_pack(const struct wire_tokenize_request *m, struct bytes *out)
{
    struct wire_packer p;
    wire_pack_begin(&p);
    Kvasir__V1__TokenizeRequest request = KVASIR__V1__TOKENIZE_REQUEST__INIT;
    request.text = wire_pack_text_n(&p, "text", m->text, m->text_bytes);
    request._add_special_tokens_case =
        KVASIR__V1__TOKENIZE_REQUEST___ADD_SPECIAL_TOKENS_ADD_SPECIAL_TOKENS;
    request.add_special_tokens = m->add_special_tokens;
    return wire_pack_finish(&p, &request.base, out);
}

status_t wire_tokenize_request_unpack(const uint8_t *data, size_t size, struct arena *arena,
                                      struct wire_tokenize_request *out)
{
    const struct wire_input in = {data, size, arena, WIRE_AMPLIFICATION};
    ProtobufCMessage *message;
    TRY(wire_unpack(&in, &kvasir__v1__tokenize_request__descriptor, &message));
    const Kvasir__V1__TokenizeRequest *from = (const Kvasir__V1__TokenizeRequest *)message;
    *out = (struct wire_tokenize_request){
        .text = from->text,
        .text_bytes = strlen(from->text),
        .add_special_tokens = from->_add_special_tokens_case == 0 || from->add_special_tokens,
    };
    return status_ok();
}

// ---- TokenizeResponse ----

status_t wire_tokenize_response_pack(const struct wire_token_ids *m, struct bytes *out)
{
    struct wire_packer p;
    wire_pack_begin(&p);
    Kvasir__V1__TokenizeResponse response = KVASIR__V1__TOKENIZE_RESPONSE__INIT;
    response.n_token_ids = m->n;
    response.token_ids = wire_pack_ids(m->ids);
    return wire_pack_finish(&p, &response.base, out);
}

status_t wire_tokenize_response_unpack(const uint8_t *data, size_t size, struct arena *arena,
                                       struct wire_token_ids *out)
{
    const struct wire_input in = {data, size, arena, WIRE_AMPLIFICATION};
    ProtobufCMessage *message;
    TRY(wire_unpack(&in, &kvasir__v1__tokenize_response__descriptor, &message));
    const Kvasir__V1__TokenizeResponse *from = (const Kvasir__V1__TokenizeResponse *)message;
    *out = wire_unpack_token_ids(from->token_ids, from->n_token_ids);
    return status_ok();
}

// ---- DetokenizeRequest ----

status_t wire_detokenize_request_pack(const struct wire_detokenize_request *m, struct bytes *out)
{
    struct wire_packer p;
    wire_pack_begin(&p);
    Kvasir__V1__DetokenizeRequest request = KVASIR__V1__DETOKENIZE_REQUEST__INIT;
    request.n_token_ids = m->token_ids.n;
    request.token_ids = wire_pack_ids(m->token_ids.ids);
    request._skip_special_tokens_case =
        KVASIR__V1__DETOKENIZE_REQUEST___SKIP_SPECIAL_TOKENS_SKIP_SPECIAL_TOKENS;
    request.skip_special_tokens = m->skip_special_tokens;
    return wire_pack_finish(&p, &request.base, out);
}

status_t wire_detokenize_request_unpack(const uint8_t *data, size_t size, struct arena *arena,
                                        struct wire_detokenize_request *out)
{
    const struct wire_input in = {data, size, arena, WIRE_AMPLIFICATION};
    ProtobufCMessage *message;
    TRY(wire_unpack(&in, &kvasir__v1__detokenize_request__descriptor, &message));
    const Kvasir__V1__DetokenizeRequest *from = (const Kvasir__V1__DetokenizeRequest *)message;
    *out = (struct wire_detokenize_request){
        .token_ids = wire_unpack_token_ids(from->token_ids, from->n_token_ids),
        .skip_special_tokens = from->_skip_special_tokens_case == 0 || from->skip_special_tokens,
    };
    return status_ok();
}

// ---- DetokenizeResponse ----

status_t wire_detokenize_response_pack(const char *text, struct bytes *out)
{
    struct wire_packer p;
    wire_pack_begin(&p);
    Kvasir__V1__DetokenizeResponse response = KVASIR__V1__DETOKENIZE_RESPONSE__INIT;
    response.text = wire_pack_text(text);
    return wire_pack_finish(&p, &response.base, out);
}

status_t wire_detokenize_response_unpack(const uint8_t *data, size_t size, struct arena *arena,
                                         const char **text_out)
{
    const struct wire_input in = {data, size, arena, WIRE_AMPLIFICATION};
    ProtobufCMessage *message;
    TRY(wire_unpack(&in, &kvasir__v1__detokenize_response__descriptor, &message));
    *text_out = ((const Kvasir__V1__DetokenizeResponse *)message)->text;
    return status_ok();
}

// ---- GetModelInfoResponse ----

status_t wire_model_info_pack(const struct wire_model_info *m, struct bytes *out)
{
    struct wire_packer p;
    wire_pack_begin(&p);
    Kvasir__V1__GetModelInfoResponse info = KVASIR__V1__GET_MODEL_INFO_RESPONSE__INIT;
    info.name = wire_pack_text(m->name);
    info.architecture = wire_pack_text(m->architecture);
    info.context_length = m->context_length;
    info.vocab_size = m->vocab_size;
    info.n_layers = m->n_layers;
    info.n_heads = m->n_heads;
    info.n_kv_heads = m->n_kv_heads;
    info.kv_heads = wire_pack_ids(m->kv_heads);
    info.n_eos_token_ids = m->eos_token_ids.n;
    info.eos_token_ids = wire_pack_ids(m->eos_token_ids.ids);
    info.has_chat_template = m->has_chat_template;
    info.parameters = m->parameters;
    info.quantization = wire_pack_text(m->quantization);
    return wire_pack_finish(&p, &info.base, out);
}

status_t wire_model_info_unpack(const uint8_t *data, size_t size, struct arena *arena,
                                struct wire_model_info *out)
{
    const struct wire_input in = {data, size, arena, WIRE_AMPLIFICATION};
    ProtobufCMessage *message;
    TRY(wire_unpack(&in, &kvasir__v1__get_model_info_response__descriptor, &message));
    const Kvasir__V1__GetModelInfoResponse *from =
        (const Kvasir__V1__GetModelInfoResponse *)message;
    *out = (struct wire_model_info){
        .name = from->name,
        .architecture = from->architecture,
        .context_length = from->context_length,
        .vocab_size = from->vocab_size,
        .n_layers = from->n_layers,
        .n_heads = from->n_heads,
        .kv_heads = from->kv_heads,
        .n_kv_heads = from->n_kv_heads,
        .eos_token_ids = wire_unpack_token_ids(from->eos_token_ids, from->n_eos_token_ids),
        .has_chat_template = from->has_chat_template,
        .parameters = from->parameters,
        .quantization = from->quantization,
    };
    return status_ok();
}

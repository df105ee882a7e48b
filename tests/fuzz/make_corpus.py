#!/usr/bin/env python3
"""Writes the starting inputs of the fuzz targets, tests/fuzz/corpus/TARGET/*: small, valid, each with something of its own.

usage: make_corpus.py [DIRECTORY]

What a search finds and should be remembered is added beside them by hand.
"""
import base64
import json
import os
import struct
import sys

HERE = os.path.dirname(os.path.abspath(__file__))


def tensor(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def header(n_data, entries):
    return n_data.to_bytes(2, "little") + json.dumps(entries).encode()


SAFETENSORS = {
    "one": header(12, {"a": tensor("F32", [1, 3], 0, 12)}),
    "three": header(22, {"__metadata__": {"format": "pt"}, "a": tensor("F32", [1, 3], 0, 12),
                         "b": tensor("F16", [2], 12, 16), "c": tensor("I8", [1, 2, 3], 16, 22)}),
    "empty-tensors": header(2, {"a": tensor("BF16", [0, 5], 0, 0), "b": tensor("BF16", [1], 0, 2),
                                "c": tensor("U64", [0], 2, 2)}),
    "scalar": header(8, {"s": tensor("F64", [], 0, 8)}),
    "half-bytes": header(3, {"f": tensor("F4", [6], 0, 3)}),
    "none": header(0, {}),
    "padded": header(2, {"a": tensor("BF16", [1], 0, 2)}) + b"   ",
    "many-dims": header(1, {"a": tensor("BOOL", [1] * 8, 0, 1)}),
}

LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 16, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 24, "hidden_act": "silu",
         "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "max_position_embeddings": 64, "vocab_size": 24,
         "bos_token_id": 0, "eos_token_id": 0, "tie_word_embeddings": False, "torch_dtype": "bfloat16"}
LLAMA3_ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 32}


def attention(**fields):
    return {"n_heads_in_group": None, "no_op": False, "num_sink_tokens": None, "replace_with_linear": False,
            "sparsify": None, "unshifted_sink": False, "use_prefill_window_in_sink_attention": False,
            "window_length": None, **fields}


def ffn(**fields):
    return {"ffn_mult": None, "no_op": False, "replace_with_linear": False, "sparsify": None, **fields}


NEMOTRON = {**LLAMA, "architectures": ["DeciLMForCausalLM"], "model_type": "nemotron-nas", "intermediate_size": None,
            "num_key_value_heads": None, "num_hidden_layers": 3, "rope_scaling": LLAMA3_ROPE,
            "block_configs": [
                {"attention": attention(n_heads_in_group=2), "ffn": ffn(ffn_mult=2.0)},
                {"attention": attention(no_op=True), "ffn": ffn(replace_with_linear=True)},
                {"attention": attention(replace_with_linear=True), "ffn": ffn(no_op=True)}]}

CONFIG = {
    "llama": LLAMA,
    "llama3": {**LLAMA, "rope_scaling": LLAMA3_ROPE, "eos_token_id": [1, 2, 3], "head_dim": 8},
    "mistral": {**LLAMA, "architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 8},
    "decilm": {**LLAMA, "architectures": ["DeciLMForCausalLM"], "model_type": "deci",
               "num_key_value_heads_per_layer": [4, 1], "rope_scaling": {"type": "dynamic", "factor": 2.0}},
    "decicoder": {**LLAMA, "architectures": ["DeciCoderForCausalLM"], "model_type": "decicoder"},
    "stablelm": {**{k: v for k, v in LLAMA.items() if k not in ("rms_norm_eps", "num_key_value_heads")},
                 "architectures": ["StableLMEpochForCausalLM"], "model_type": "stablelm_epoch", "norm_eps": 1e-5,
                 "rope_pct": 0.5, "num_heads": 4},
    "nemotron": NEMOTRON,
    "new-spelling": {**{k: v for k, v in LLAMA.items() if k != "rope_theta"}, "dtype": "float16",
                     "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
}

INDEX = {
    "both": {"metadata": {"total_size": 4}, "weight_map": {"a": "a.safetensors", "b": "b.safetensors"}},
    "without-total": {"weight_map": {"b": "b.safetensors"}},
    "traversal": {"weight_map": {"a": "../a.safetensors"}},
}

SETTINGS = {
    "generation": b"\0" + json.dumps({"bos_token_id": 0, "eos_token_id": [1, 2], "do_sample": True}).encode(),
    "llama": b"\1" + json.dumps({"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token":
                                 {"content": "<s>", "lstrip": False}, "add_bos_token": True, "add_eos_token": False,
                                 "model_max_length": 10**30}).encode(),
    "fast": b"\1" + json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "chat_template":
                                [{"name": "default", "template": "{{ messages }}"}]}).encode(),
    "template": b"\2{% for message in messages %}{{ message['content'] }}{% endfor %}",
}

BYTE_LEVEL = {
    "version": "1.0",
    "added_tokens": [{"id": 6, "content": "<s>", "special": True, "rstrip": True},
                     {"id": 7, "content": "  ", "special": False, "normalized": True, "lstrip": True}],
    "normalizer": {"type": "NFC"},
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
        {"type": "Digits", "individual_digits": True},
        {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}]},
    "post_processor": {"type": "TemplateProcessing",
                       "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                       "special_tokens": {"<s>": {"id": "<s>", "ids": [6], "tokens": ["<s>"]}}},
    "decoder": {"type": "ByteLevel"},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2, "ab": 3, "abc": 4, "\u0120": 5},
              "merges": ["a b", "ab c"]},
}
SENTENCEPIECE = {
    "version": "1.0",
    "added_tokens": [{"id": 8, "content": "</s>", "special": True}],
    "normalizer": {"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "\u2581"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]},
    "decoder": {"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"},
        {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
    "model": {"type": "BPE", "unk_token": "?", "fuse_unk": True, "byte_fallback": True, "ignore_merges": True,
              "vocab": {"?": 0, "a": 1, "b": 2, "\u2581": 3, "ab": 4, "\u2581ab": 5, "abab": 6, "<0x41>": 7},
              "merges": [["\u2581", "ab"], ["a", "b"], ["ab", "ab"]]},
}
TEXTS = ["abcd  ab'ab 12\n\n", "a\u0301b\u2581 \u00e9<s>ab</s>x", "\U0001f600abababab", " " * 26 + "ab",
         "<0x41>\t\u3000ab"]


def tokenizers():
    for name, file in (("byte-level", BYTE_LEVEL), ("sentencepiece", SENTENCEPIECE)):
        for i, text in enumerate(TEXTS):
            yield f"{name}-{i}", json.dumps(file, ensure_ascii=i % 2 == 0).encode() + b"\0" + text.encode()
        yield f"{name}-no-text", json.dumps(file).encode() + b"\0\xff\xfe"


def field(number, value):
    """Of a protobuf message; sizes stay below 128."""
    if isinstance(value, int):
        return bytes([number << 3, value]) if number < 16 else bytes([0x80 | number << 3 & 0x7F, number >> 4, value])
    if isinstance(value, float):
        return bytes([number << 3 | 5]) + struct.pack("<f", value)
    return bytes([number << 3 | 2, len(value)]) + value


def piece(text, score=0.0, kind=1):
    return field(1, field(1, text.encode()) + field(2, score) + field(3, kind))


PIECES = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), ("\u2581", -3.0), ("a", -4.0), ("b", -5.0),
          ("ab", -1.0), ("\u2581ab", -2.0), ("\u2581\u2581", -1e9), ("\u2581\u2581\u2581", -1e9), ("bb", -1.0),
          ("abb", 0.0, 4)]
BYTE_PIECES = [(f"<0x{b:02X}>", 0.0, 6) for b in range(256)]


def tokenizer_models():
    bpe = field(2, field(3, 2) + field(35, 0))
    with_bytes = field(2, field(3, 2) + field(35, 1))
    identity = field(3, field(1, b"identity") + field(3, 1) + field(4, 0) + field(5, 1))
    files = {
        "plain": b"".join(piece(*p) for p in PIECES) + bpe + identity,
        "bytes": b"".join(piece(*p) for p in PIECES + BYTE_PIECES) + with_bytes + identity,
        "no-prefix": b"".join(piece(*p) for p in PIECES) + bpe + field(3, field(3, 0) + field(4, 0)),
        "unigram": piece("a") + identity,
        "tiktoken": b"".join(base64.b64encode(bytes([i])) + b" %d\n" % i for i in range(64)),
    }
    for name, file in files.items():
        for i, text in enumerate(TEXTS[:3] + ["<s>  abb   ab"]):
            yield f"{name}-{i}", bytes([len(text.encode())]) + text.encode() + file


WORDS = {
    "config": ["\"block_configs\"", "\"attention\"", "\"ffn\"", "\"no_op\"", "\"replace_with_linear\"",
               "\"ffn_mult\"", "\"n_heads_in_group\"", "\"head_dim\"", "\"rope_scaling\"", "\"rope_parameters\"",
               "\"partial_rotary_factor\"", "\"quantization_config\"", "\"num_key_value_heads_per_layer\"",
               "\"LlamaForCausalLM\"", "\"DeciLMForCausalLM\"", "\"nemotron-nas\"", "\"linear\"", "\"yarn\""],
    "safetensors": ["\"dtype\"", "\"shape\"", "\"data_offsets\"", "\"__metadata__\"", "\"F32\"", "\"BF16\"", "\"F4\"",
                    "\"F8_E4M3\"", "[0,0]", "4611686018427387904"],
    "index": ["\"weight_map\"", "\"metadata\"", "\"total_size\"", "\"a.safetensors\"", "\"b.safetensors\"", "\"..\"",
              "/etc/passwd", "config.json"],
    "settings": ["\"eos_token_id\"", "\"bos_token\"", "\"chat_template\"", "\"default\"", "\"content\"", "\"<s>\""],
    "tokenizer": ["\"ab\"", "\"a b\"", "[\"a\", \"b\"]", "\"NFC\"", "\"Digits\"", "\"ByteLevel\"", "\"Sequence\"",
                  "\"type\"", "\"special\"", "\"normalized\"", "\"ignore_merges\": true,", "\"Split\"", "\"Isolated\"",
                  "\"TemplateProcessing\"", "\\u2581"],
    "tokenizer_model": ["<0x41>", "\u2581", "ab", "<s>", "IQ== 0", "\x18\x02", "\x18\x03", "\x18\x04", "\x20\x00"],
}


def main():
    root = sys.argv[1] if len(sys.argv) > 1 else os.path.join(HERE, "corpus")
    corpora = {"safetensors": SAFETENSORS, "config": CONFIG, "index": INDEX, "settings": SETTINGS,
               "tokenizer": dict(tokenizers()), "tokenizer_model": dict(tokenizer_models())}
    for target, inputs in corpora.items():
        directory = os.path.join(root, target)
        os.makedirs(directory, exist_ok=True)
        for name, content in {**inputs, "words.txt": ("\n".join(WORDS[target]) + "\n").encode()}.items():
            if not isinstance(content, bytes):
                content = json.dumps(content).encode()
            with open(os.path.join(directory, name), "wb") as file:
                file.write(content)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Makes model directories that are wrong, each in one way, and says what a reader must answer.

usage: make.py DIRECTORY [NAME...]

Each case starts from a small model that is right, breaks one rule of the formats, and names the words that the one
line about it must have: the file, the tensor or field, and the rule. The cases themselves stand in cases_*.py.
"""
import copy
import json
import os
import struct
import sys

# ---- a model that is right -----------------------------------------------------------------------------------------

VOCAB = 24
HIDDEN = 16
N_FF = 24
N_LAYERS = 2
N_HEADS = 4
N_KV_HEADS = 2

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": N_HEADS,
    "num_key_value_heads": N_KV_HEADS,
    "intermediate_size": N_FF,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "max_position_embeddings": 64,
    "vocab_size": VOCAB,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}

TOKENIZER = {
    "version": "1.0",
    "added_tokens": [{"id": 0, "content": "<s>", "single_word": False, "lstrip": False, "rstrip": False,
                      "normalized": False, "special": True}],
    "normalizer": None,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    "post_processor": None,
    "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    "model": {"type": "BPE", "vocab": {"<s>": 0, "a": 1, "b": 2, "c": 3, "ab": 4, "abc": 5},
              "merges": ["a b", "ab c"]},
}

TOKENIZER_CONFIG = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "<s>"}


def shapes():
    head = HIDDEN // N_HEADS
    yield "model.embed_tokens.weight", [VOCAB, HIDDEN]
    for layer in range(N_LAYERS):
        prefix = f"model.layers.{layer}."
        yield prefix + "input_layernorm.weight", [HIDDEN]
        yield prefix + "self_attn.q_proj.weight", [HIDDEN, HIDDEN]
        yield prefix + "self_attn.k_proj.weight", [N_KV_HEADS * head, HIDDEN]
        yield prefix + "self_attn.v_proj.weight", [N_KV_HEADS * head, HIDDEN]
        yield prefix + "self_attn.o_proj.weight", [HIDDEN, HIDDEN]
        yield prefix + "post_attention_layernorm.weight", [HIDDEN]
        yield prefix + "mlp.gate_proj.weight", [N_FF, HIDDEN]
        yield prefix + "mlp.up_proj.weight", [N_FF, HIDDEN]
        yield prefix + "mlp.down_proj.weight", [HIDDEN, N_FF]
    yield "model.norm.weight", [HIDDEN]
    yield "lm_head.weight", [VOCAB, HIDDEN]


def n_bytes(shape):
    size = 2
    for dim in shape:
        size *= dim
    return size


class Weights:
    """A safetensors file: the header as data, unless its text or its length are given."""

    def __init__(self, tensors):
        self.header, at = {}, 0
        for name, shape in tensors:
            size = n_bytes(shape)
            self.header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
            at += size
        self.data = b"\x00\x3c" * (at // 2)  # 0.0078125 each
        self.text = None  # bytes: the header's text
        self.length = None  # what the first eight bytes say
        self.raw = None  # bytes: the whole file

    def last(self):
        """The entry whose data lie last."""
        return max(self.header.values(), key=lambda entry: entry["data_offsets"][1])

    def append(self, name, shape, dtype="BF16", size=None):
        """One more tensor behind the others."""
        end = self.last()["data_offsets"][1]
        size = n_bytes(shape) if size is None else size
        self.header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        self.data += bytes(size)

    def bytes(self):
        if self.raw is not None:
            return self.raw
        text = self.text if self.text is not None else json.dumps(self.header).encode()
        length = self.length if self.length is not None else len(text)
        return struct.pack("<Q", length) + text + self.data


class Model:
    """What the files of a directory will hold; None leaves a file out, bytes are taken as they are."""

    def __init__(self):
        self.config = copy.deepcopy(CONFIG)
        self.generation = {"bos_token_id": 0, "eos_token_id": 0}
        self.tokenizer = copy.deepcopy(TOKENIZER)
        self.tokenizer_config = copy.deepcopy(TOKENIZER_CONFIG)
        self.weights = Weights(shapes())
        self.index = None
        self.files = {}  # further files: name to bytes, or to Weights
        self.special = []  # called with the directory at the end

    def shard(self):
        """Two shards and their index instead of one file."""
        tensors = list(shapes())
        half = len(tensors) // 2
        names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
        parts = [tensors[:half], tensors[half:]]
        self.weights = None
        self.files.update({name: Weights(part) for name, part in zip(names, parts)})
        self.index = {"metadata": {"total_size": sum(n_bytes(shape) for _, shape in tensors)},
                      "weight_map": {name: file for file, part in zip(names, parts) for name, _ in part}}
        return self.index["weight_map"]

    def write(self, directory):
        os.mkdir(directory)
        files = {"config.json": self.config, "generation_config.json": self.generation,
                 "tokenizer.json": self.tokenizer, "tokenizer_config.json": self.tokenizer_config,
                 "model.safetensors": self.weights, "model.safetensors.index.json": self.index, **self.files}
        for name, content in files.items():
            if content is None:
                continue
            if isinstance(content, Weights):
                content = content.bytes()
            elif not isinstance(content, bytes):
                content = json.dumps(content).encode()
            with open(os.path.join(directory, name), "wb") as file:
                file.write(content)
        for change in self.special:
            change(directory)


# ---- the cases -----------------------------------------------------------------------------------------------------

CASES = {}  # name to Case


class Case:
    def __init__(self, name, words, change, good=False, served=False):
        self.name, self.words, self.change = name, words, change
        self.good = good  # nothing is wrong with it, however strange it looks
        self.served = served  # also tried through `kvasir serve`

    def write(self, parent):
        model = Model()
        self.change(model)
        path = os.path.join(parent, self.name)
        model.write(path)
        return path


def case(name, *words, **options):
    """Registers a function that breaks a model; words must all be in what is said of it."""
    def register(change):
        assert name not in CASES, name
        CASES[name] = Case(name, words, change, **options)
        return change
    return register


def good(name, *words):
    return case(name, *words, good=True)


def load_cases():
    import cases_config  # noqa: F401
    import cases_safetensors  # noqa: F401
    import cases_shards  # noqa: F401
    import cases_tokenizer  # noqa: F401
    return CASES


def main():
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    os.makedirs(sys.argv[1], exist_ok=True)
    cases = sys.modules["make"].load_cases()
    for name in sys.argv[2:] or cases:
        print(cases[name].write(sys.argv[1]))


if __name__ == "__main__":
    sys.modules["make"] = sys.modules[__name__]
    main()

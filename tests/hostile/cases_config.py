"""config.json and generation_config.json."""
import json
import os

from make import CONFIG, case, good

FILE = "config.json"


def config_case(name, change, *words, **options):
    """change is what config.json gets more, or a function that gives what is written instead."""
    @case(name, FILE, *words, **options)
    def _(m):
        if callable(change):
            m.config = change(m.config)
        else:
            m.config.update(change)


# ---- the file ----

config_case("config-empty", lambda c: b"", "not valid JSON")
config_case("config-not-json", lambda c: b"{'hidden_size': 16}", "not valid JSON")
config_case("config-cut", lambda c: json.dumps(c).encode()[:-10], "not valid JSON")
config_case("config-a-list", lambda c: [c], "not an object")
config_case("config-with-nan", lambda c: json.dumps({**c, "rms_norm_eps": float("nan")}).encode(), "not valid JSON")
config_case("config-with-infinity", lambda c: json.dumps({**c, "rope_theta": float("inf")}).encode(), "not valid JSON")
config_case("config-with-1e999", lambda c: json.dumps(c).replace("10000.0", "1e999").encode(), "not valid JSON")
config_case("config-not-utf-8", lambda c: json.dumps(c).encode().replace(b"llama", b"ll\xffma"), "not valid JSON")
config_case("config-key-twice", lambda c: json.dumps(c).encode()[:-1] + b', "hidden_size": 32}', "not valid JSON")
config_case("config-nested", lambda c: b'{"a":' * 100000, "nested deeper")
config_case("config-of-empty-lists", lambda c: b'{"a":[' + b"[]," * 1000000 + b"[]]}", "objects and arrays")
config_case("config-of-5-megabytes", lambda c: json.dumps(c).encode() + b" " * 5000000, "limit")


config_case("config-at-its-limits",
            lambda c: json.dumps({**c, "hidden_act": "gelu", "more": [{"a": i} for i in range(49000)],
                                  "texts": [f"{i:020}" for i in range(100000)]}).encode(), "gelu")


@case("config-missing", "no config.json", "fix", served=True)
def _(m):
    m.config = None


for name, make, words in (("fifo", os.mkfifo, ["not a file"]), ("directory", os.mkdir, ["not a file"])):
    @case(f"config-a-{name}", FILE, *words)
    def _(m, make=make):
        m.config = None
        m.special.append(lambda d: make(os.path.join(d, FILE)))


# ---- sizes ----

for field, low, high in (("num_hidden_layers", 0, 10**9), ("hidden_size", 0, 2**31), ("num_attention_heads", 0, 2**20),
                         ("vocab_size", 0, 2**31), ("max_position_embeddings", 0, 2**40),
                         ("intermediate_size", 0, 2**40)):
    short = field.replace("_", "-")
    values = {"zero": low, "negative": -16, "huge": high, "float": 16.5, "text": "16", "list": [16], "boolean": True}
    if field != "max_position_embeddings":
        values["top"] = 2**63 - 1
    for kind, value in values.items():
        config_case(f"{short}-{kind}", {field: value}, field)
    config_case(f"{short}-missing", lambda c, f=field: {k: v for k, v in c.items() if k != f}, field)

config_case("hidden-size-not-of-heads", {"num_attention_heads": 3, "num_key_value_heads": 3}, "hidden_size",
            "num_attention_heads 3")
config_case("kv-heads-zero", {"num_key_value_heads": 0}, "num_key_value_heads is 0")
config_case("kv-heads-not-dividing", {"num_key_value_heads": 3}, "key/value heads", "divisor of num_attention_heads 4",
            served=True)
config_case("kv-heads-more-than-heads", {"num_key_value_heads": 8}, "num_key_value_heads is 8")
config_case("kv-heads-a-text", {"num_key_value_heads": "2"}, "num_key_value_heads")
config_case("head-dim-odd", {"head_dim": 3}, "head_dim")
config_case("head-dim-huge", {"head_dim": 2**20}, "head_dim")
config_case("head-dim-zero", {"head_dim": 0}, "head_dim")

DECILM = {"architectures": ["DeciLMForCausalLM"], "model_type": "deci"}
LIST = "num_key_value_heads_per_layer"
for name, value in (("missing", None), ("too-short", [2]), ("too-long", [2, 2, 2]), ("with-zero", [2, 0]),
                    ("not-dividing", [2, 3]), ("with-a-text", [2, "2"]), ("a-number", 2), ("nested", [[2], [2]])):
    config_case(f"kv-list-{name}", {**DECILM, LIST: value}, "layer", served=name == "with-zero")

# ---- numbers ----

for field in ("rms_norm_eps", "rope_theta"):
    for kind, value in (("zero", 0), ("negative", -1.0), ("text", "nan"), ("list", [])):
        config_case(f"{field.replace('_', '-')}-{kind}", {field: value}, field)

# ---- what the model is ----

config_case("architecture-unknown", {"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM", "not supported", "fix",
            served=True)
config_case("architecture-a-number", {"architectures": [5]}, "architectures")
config_case("architecture-a-text", {"architectures": "LlamaForCausalLM"}, "architectures")
config_case("architecture-none", {"architectures": []}, "architectures")
config_case("architecture-with-escapes", {"architectures": ["\x1b[2J\nerror: none"]}, "not supported")
config_case("architecture-missing", lambda c: {k: v for k, v in c.items() if k not in ("architectures", "model_type")},
            "architectures", "model_type")
config_case("model-type-a-number", {"model_type": 7}, "model_type")
config_case("model-type-unknown", lambda c: {**{k: v for k, v in c.items() if k != "architectures"},
                                             "model_type": "mamba"}, "mamba", "not supported")
config_case("activation-unknown", {"hidden_act": "gelu"}, "hidden_act", "gelu")
config_case("activation-a-number", {"hidden_act": 1}, "hidden_act")
config_case("attention-bias", {"attention_bias": True}, "attention_bias", "not supported")
config_case("attention-bias-a-text", {"attention_bias": "no"}, "attention_bias")
config_case("mlp-bias", {"mlp_bias": True}, "mlp_bias", "not supported")
config_case("tied-a-number", {"tie_word_embeddings": 1}, "tie_word_embeddings")
config_case("dtype-int8", {"torch_dtype": "int8"}, "torch_dtype")
config_case("dtype-an-object", {"torch_dtype": {}}, "torch_dtype")

for method in ("gptq", "awq", "bitsandbytes", "fp8"):
    config_case(f"quantised-{method}", {"quantization_config": {"quant_method": method, "bits": 4}},
                "quantization_config", "not supported", served=method == "gptq")

# ---- rotary embedding ----

for name, value, words in (
        ("a-text", "linear", ["rope_scaling"]),
        ("without-type", {"factor": 2.0}, ["rope_type"]),
        ("linear", {"type": "linear", "factor": 2.0}, ["linear", "not supported"]),
        ("yarn", {"rope_type": "yarn", "factor": 4.0}, ["yarn", "not supported"]),
        ("llama3-without-factor", {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                   "original_max_position_embeddings": 64}, ["factor"]),
        ("llama3-of-negative-factor", {"rope_type": "llama3", "factor": -8.0, "low_freq_factor": 1.0,
                                       "high_freq_factor": 4.0, "original_max_position_embeddings": 64}, ["factor"]),
        ("llama3-reversed", {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0,
                             "original_max_position_embeddings": 64}, ["high_freq_factor"]),
        ("llama3-without-positions", {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                                      "high_freq_factor": 4.0}, ["original_max_position_embeddings"])):
    config_case(f"rope-scaling-{name}", {"rope_scaling": value}, *words)

config_case("sliding-window-zero", {"architectures": ["MistralForCausalLM"], "sliding_window": 0}, "sliding_window")
config_case("rotary-factor-zero", {"partial_rotary_factor": 0}, "partial_rotary_factor")
config_case("rotary-factor-two", {"partial_rotary_factor": 2.0}, "partial_rotary_factor")

# ---- layers of their own (Nemotron-NAS) ----

ATTENTION = {"n_heads_in_group": 2, "no_op": False, "replace_with_linear": False}
FFN = {"ffn_mult": 2.0, "no_op": False, "replace_with_linear": False}
NEMOTRON = {"architectures": ["DeciLMForCausalLM"], "model_type": "nemotron-nas"}
BLOCK = {"attention": ATTENTION, "ffn": FFN}


def block_case(name, block):
    """The second layer of two is `block`."""
    config_case(f"blocks-{name}", {**NEMOTRON, "block_configs": [BLOCK, block]}, "block_configs")


for name, blocks in (("a-number", 2), ("an-object", {}), ("none", []), ("too-few", [BLOCK]), ("too-many", [BLOCK] * 3)):
    config_case(f"blocks-{name}", {**NEMOTRON, "block_configs": blocks}, "block_configs")
for name, block in (("of-texts", "full"), ("without-attention", {"ffn": FFN}),
                    ("without-ffn", {"attention": ATTENTION}),
                    ("attention-a-list", {**BLOCK, "attention": []}), ("ffn-null", {**BLOCK, "ffn": None})):
    block_case(name, block)
for name, change in (("group-zero", {"n_heads_in_group": 0}), ("group-negative", {"n_heads_in_group": -2}),
                     ("group-not-dividing", {"n_heads_in_group": 3}), ("group-a-text", {"n_heads_in_group": "2"}),
                     ("group-missing", {"n_heads_in_group": None}), ("group-too-large", {"n_heads_in_group": 8}),
                     ("attention-twice", {"no_op": True, "replace_with_linear": True}),
                     ("attention-no-op-a-text", {"no_op": "yes"}), ("attention-of-a-window", {"window_length": 8192}),
                     ("attention-sparse", {"sparsify": [1]})):
    block_case(name, {**BLOCK, "attention": {**ATTENTION, **change}})
for name, change in (("mult-zero", {"ffn_mult": 0}), ("mult-negative", {"ffn_mult": -1.0}),
                     ("mult-huge", {"ffn_mult": 1e300}),
                     ("mult-missing", {"ffn_mult": None}), ("mult-a-text", {"ffn_mult": "2"}),
                     ("ffn-twice", {"no_op": True, "replace_with_linear": True})):
    block_case(name, {**BLOCK, "ffn": {**FFN, **change}})


# ---- tokens ----

for name, value in (("beyond-the-vocabulary", CONFIG["vocab_size"]), ("negative", -1), ("a-text", "</s>"),
                    ("a-float", 1.5), ("of-texts", ["a"]), ("too-many", list(range(20))), ("huge", 2**63 - 1)):
    config_case(f"eos-{name}", {"eos_token_id": value}, "eos_token_id")
config_case("bos-beyond-the-vocabulary", {"bos_token_id": 1000}, "bos_token_id")
config_case("bos-a-list", {"bos_token_id": [0]}, "bos_token_id")


def generation_case(name, value, *words):
    @case(name, "generation_config.json", *words)
    def _(m):
        m.generation = value


generation_case("generation-not-json", b"{", "not valid JSON")
generation_case("generation-a-list", [], "not an object")
generation_case("generation-eos-beyond", {"eos_token_id": 24}, "eos_token_id")
generation_case("generation-eos-of-texts", {"eos_token_id": ["</s>"]}, "eos_token_id")
generation_case("generation-nested", b"[" * 100000, "nested deeper")
generation_case("generation-of-5-megabytes", b"{}" + b" " * 5000000, "limit")


@good("generation-missing")
def _(m):
    m.generation = None


# ---- code ----

@good("code-of-its-own", "never run")
def _(m):
    m.config["auto_map"] = {"AutoConfig": "configuration_x.XConfig", "AutoModelForCausalLM": "modeling_x.X"}
    code = b"open('executed', 'w').close()\n"
    m.files.update({"modeling_x.py": code, "configuration_x.py": code, "__init__.py": code})

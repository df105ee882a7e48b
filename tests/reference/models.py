"""Small models of the served families with random weights, in Hugging Face layout, and transformers as the reference.

Variable GQA and Nemotron-NAS are not in transformers: their reference is transformers' own Llama layers, each made with
its layer's number of KV heads and FFN width, or the parts of such layers.
"""
import copy
import json
import os

import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, MistralConfig, StableLmConfig
from transformers.models.llama import modeling_llama as llama
from transformers.models.mistral import modeling_mistral as mistral
from transformers.models.stablelm import modeling_stablelm as stablelm


def llama_config(**sizes):
    return LlamaConfig(**sizes, attn_implementation="eager")


class NasLayer(torch.nn.Module):
    """Nemotron-NAS: either half of a Llama layer as it is, or one matrix in its place, or nothing, and no norm then."""

    def __init__(self, config, index, attention, ffn):
        super().__init__()
        d = config.hidden_size
        norm = lambda: llama.LlamaRMSNorm(d, eps=config.rms_norm_eps)
        self.attention, self.ffn = attention, ffn
        if attention == "linear":
            self.input_layernorm, self.self_attn = norm(), torch.nn.Module()
            self.self_attn.linear_attn = torch.nn.Linear(d, d, bias=False)
        elif attention is not None:
            config = copy.deepcopy(config)
            config.num_key_value_heads = attention
            self.input_layernorm, self.self_attn = norm(), llama.LlamaAttention(config, index)
        if ffn == "linear":
            self.post_attention_layernorm, self.mlp = norm(), torch.nn.Module()
            self.mlp.linear_mlp = torch.nn.Linear(d, d, bias=False)
        elif ffn is not None:
            config = copy.deepcopy(config)
            config.intermediate_size = nas_width(ffn, d)
            self.post_attention_layernorm, self.mlp = norm(), llama.LlamaMLP(config)

    def forward(self, x, **context):
        if self.attention == "linear":
            x = x + self.self_attn.linear_attn(self.input_layernorm(x))
        elif self.attention is not None:
            x = x + self.self_attn(self.input_layernorm(x), **context)[0]
        if self.ffn == "linear":
            x = x + self.mlp.linear_mlp(self.post_attention_layernorm(x))
        elif self.ffn is not None:
            x = x + self.mlp(self.post_attention_layernorm(x))
        return x


def nas_width(mult, hidden):
    n = int(2 * mult * hidden / 3)
    return n if n % 256 == 0 else n + 256 - n % 256


def with_kv_heads(config, n_kv):
    config = copy.deepcopy(config)
    config.num_key_value_heads = n_kv
    return config


class Stack(torch.nn.Module):
    """Embedding, the given layers, norm and head. Forward without a cache: logits of every position."""

    def __init__(self, config, layers):
        super().__init__()
        self.model = torch.nn.Module()
        self.model.embed_tokens = torch.nn.Embedding(config.vocab_size, config.hidden_size)
        self.model.layers = torch.nn.ModuleList(layers)
        self.model.norm = llama.LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.lm_head = torch.nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        self.rotary = llama.LlamaRotaryEmbedding(config)

    def forward(self, ids):
        n = ids.shape[1]
        x = self.model.embed_tokens(ids)
        positions = torch.arange(n)[None]
        rotary = self.rotary(x, positions)
        mask = torch.full((n, n), float("-inf"), dtype=x.dtype).triu(1)[None, None]
        for layer in self.model.layers:
            out = layer(x, attention_mask=mask, position_ids=positions, position_embeddings=rotary)
            x = out[0] if isinstance(out, tuple) else out
        return self.lm_head(self.model.norm(x))


def variable_gqa(config, kv_heads):
    """DeciLM: Llama whose layers differ in KV heads."""
    return Stack(config, [llama.LlamaDecoderLayer(with_kv_heads(config, n), i) for i, n in enumerate(kv_heads)])


class Whole(torch.nn.Module):
    """A transformers model with the same forward."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, ids):
        return self.inner(input_ids=ids, use_cache=False).logits


def write(directory, config, tensors, shards=1):
    os.makedirs(directory, exist_ok=True)
    with open(os.path.join(directory, "config.json"), "w") as f:
        json.dump(config, f, indent=1)
    tensors = {k: v.contiguous().clone() for k, v in tensors.items()}
    if shards == 1:
        save_file(tensors, os.path.join(directory, "model.safetensors"), metadata={"format": "pt"})
        return
    names = sorted(tensors)
    index = {}
    for i in range(shards):
        part = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        chosen = names[i::shards]
        save_file({n: tensors[n] for n in chosen}, os.path.join(directory, part))
        index.update({n: part for n in chosen})
    with open(os.path.join(directory, "model.safetensors.index.json"), "w") as f:
        json.dump({"metadata": {}, "weight_map": index}, f)


def randomise(module, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if name.endswith(".bias"):
                p.copy_(0.2 * noise)
            else:
                p.copy_(1 + 0.1 * noise if p.ndim == 1 else noise * (1.5 / p.shape[-1] ** 0.5))


def tied(module):
    inner = getattr(module, "inner", module)
    return inner.lm_head.weight is inner.model.embed_tokens.weight


def stored(module, dtype):
    """State as it is in a checkpoint: a tied head is left out."""
    state = {}
    for name, value in module.state_dict().items():
        name = name.removeprefix("inner.")
        if name == "rotary.inv_freq" or name == "lm_head.weight" and tied(module):
            continue
        state[name] = value.to(dtype)
    return state


def leftovers(n_layers, dtype):
    """What old re-saves carry beside the weights, here with values that would be noticed."""
    names = ("inv_freq", "cos_cached", "sin_cached")
    return {f"model.layers.{i}.self_attn.rotary_emb.{name}": torch.full((8,), 7.0, dtype=dtype)
            for i in range(n_layers) for name in names}


def finish(model, directory, config, seed, dtype=torch.float32, shards=1, resaved=False):
    """Random weights, the directory, and the model with the weights as the files have them."""
    randomise(model, seed)
    tensors = stored(model, dtype)
    extra = leftovers(config["num_hidden_layers"], dtype) if resaved else {}
    write(directory, dict(config, torch_dtype=str(dtype).split(".")[1], hidden_act="silu", bos_token_id=1,
                          eos_token_id=2), {**tensors, **extra}, shards)
    inner = getattr(model, "inner", model)
    inner.load_state_dict({k: v.float() for k, v in tensors.items()}, strict=False)
    return model.eval()


def as_bfloat16(model):
    """The model as transformers runs it in bfloat16: all but the frequencies of rotary embeddings."""
    half = copy.deepcopy(model).bfloat16()
    for part, whole in zip(half.modules(), model.modules()):
        if hasattr(whole, "inv_freq"):
            part.inv_freq = whole.inv_freq.clone()
    return half


def deci(directory, seed, *, kv, hidden, heads, ffn, vocab, tie=False, theta=10000.0, **files):
    sizes = dict(hidden_size=hidden, num_attention_heads=heads, num_hidden_layers=len(kv),
                 intermediate_size=ffn, vocab_size=vocab, max_position_embeddings=256, rms_norm_eps=1e-5,
                 tie_word_embeddings=tie, rope_theta=theta)
    config = dict(sizes, architectures=["DeciLMForCausalLM"], model_type="deci", num_key_value_heads_per_layer=kv,
                  rope_scaling={"type": "dynamic", "factor": 2.0}, attention_bias=False)
    return finish(variable_gqa(llama_config(**sizes), kv), directory, config, seed, **files)


def nas(directory, seed, *, blocks, hidden, heads, vocab, scaling=None, **files):
    """blocks: (attention, ffn) a layer; a number of KV heads or an ffn_mult, "linear", or None for nothing."""
    sizes = dict(hidden_size=hidden, num_attention_heads=heads, num_hidden_layers=len(blocks), vocab_size=vocab,
                 max_position_embeddings=256, rms_norm_eps=1e-5, rope_theta=500000.0, tie_word_embeddings=False)
    made = llama_config(**sizes, **({"rope_scaling": scaling} if scaling else {}))
    model = Stack(made, [NasLayer(made, i, *block) for i, block in enumerate(blocks)])

    def entry(kind, field, value):
        numeric = kind is not None and kind != "linear"
        return {field: value(kind) if numeric else None, "no_op": kind is None,
                "replace_with_linear": kind == "linear", "sparsify": None}

    config = dict(sizes, architectures=["DeciLMForCausalLM"], model_type="nemotron-nas", rope_scaling=scaling,
                  intermediate_size=None, num_key_value_heads=None,
                  block_configs=[{"attention": entry(attention, "n_heads_in_group", lambda n: heads // n),
                                  "ffn": entry(ffn, "ffn_mult", lambda m: m)} for attention, ffn in blocks])
    return finish(model, directory, config, seed, **files)


def native(directory, seed, *, family, hidden, heads, kv, ffn, vocab, layers, window=None, scaling=None, tie=False,
           **files):
    sizes = dict(hidden_size=hidden, num_attention_heads=heads, num_key_value_heads=kv, num_hidden_layers=layers,
                 intermediate_size=ffn, vocab_size=vocab, max_position_embeddings=256, rms_norm_eps=1e-5,
                 tie_word_embeddings=tie)
    if family in ("llama", "decicoder"):
        inner = llama.LlamaForCausalLM(llama_config(**sizes, **({"rope_scaling": scaling} if scaling else {})))
        name = {"llama": "LlamaForCausalLM", "decicoder": "DeciCoderForCausalLM"}[family]
        extra = dict(architectures=[name], model_type=family, rope_scaling=scaling)
    elif family in ("stablelm", "stablelm_epoch"):
        sizes["layer_norm_eps"] = sizes.pop("rms_norm_eps")
        sizes["partial_rotary_factor"] = 0.25
        inner = stablelm.StableLmForCausalLM(StableLmConfig(**sizes, attn_implementation="eager"))
        assert all(m.bias is not None for m in inner.modules() if isinstance(m, torch.nn.LayerNorm))
        extra = dict(architectures=["StableLmForCausalLM"], model_type="stablelm", use_qkv_bias=False)
        if family == "stablelm_epoch":
            sizes.update(norm_eps=sizes.pop("layer_norm_eps"), rope_pct=sizes.pop("partial_rotary_factor"),
                         num_heads=heads)
            extra = dict(architectures=["StableLMEpochForCausalLM"], model_type="stablelm_epoch",
                         rotary_scaling_factor=1.0)
    else:
        inner = mistral.MistralForCausalLM(
            MistralConfig(**sizes, sliding_window=window, attn_implementation="eager"))
        extra = dict(architectures=["MistralForCausalLM"], model_type="mistral", sliding_window=window)
    config = dict(sizes, **extra, rope_theta=10000.0)
    return finish(Whole(inner), directory, config, seed, **files)


def load_deci(directory):
    """The reference for a DeciLM directory that is already there, in float32."""
    with open(os.path.join(directory, "config.json")) as f:
        c = json.load(f)
    config = llama_config(
        hidden_size=c["hidden_size"], num_attention_heads=c["num_attention_heads"],
        num_hidden_layers=c["num_hidden_layers"], intermediate_size=c["intermediate_size"],
        vocab_size=c["vocab_size"], max_position_embeddings=c["max_position_embeddings"],
        rms_norm_eps=c["rms_norm_eps"], tie_word_embeddings=c.get("tie_word_embeddings", False),
        rope_theta=c.get("rope_theta", 10000.0))
    model = variable_gqa(config, c["num_key_value_heads_per_layer"])
    tensors = {k: v.float() for k, v in load_file(os.path.join(directory, "model.safetensors")).items()}
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert not unexpected and all("inv_freq" in m or "lm_head" in m for m in missing), (missing, unexpected)
    return model.eval()

"""Small models of the served families with random weights, in Hugging Face layout, and transformers as the reference.

Variable GQA is not in transformers: its reference is transformers' own Llama layers, each made with its layer's
number of KV heads.
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


class VariableGqa(torch.nn.Module):
    """DeciLM: Llama whose layers differ in KV heads. Forward without a cache: logits of every position."""

    def __init__(self, config, kv_heads):
        super().__init__()
        self.model = torch.nn.Module()
        self.model.embed_tokens = torch.nn.Embedding(config.vocab_size, config.hidden_size)
        self.model.layers = torch.nn.ModuleList()
        for index, n_kv in enumerate(kv_heads):
            layer_config = copy.deepcopy(config)
            layer_config.num_key_value_heads = n_kv
            self.model.layers.append(llama.LlamaDecoderLayer(layer_config, index))
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


def stored(module, dtype, prefix=""):
    """State as it is in a checkpoint: a tied head is left out."""
    state = {}
    for name, value in module.state_dict().items():
        name = name.removeprefix(prefix)
        if name.endswith("lm_head.weight") and tied(module):
            continue
        state[name] = value.to(dtype)
    return state


def tied(module):
    inner = getattr(module, "inner", module)
    return inner.lm_head.weight is inner.model.embed_tokens.weight


def deci(directory, kv_heads, seed, *, hidden, heads, ffn, vocab, tie=False, dtype=torch.float32, shards=1,
         theta=10000.0):
    sizes = dict(hidden_size=hidden, num_attention_heads=heads, num_hidden_layers=len(kv_heads),
                 intermediate_size=ffn, vocab_size=vocab, max_position_embeddings=256, rms_norm_eps=1e-5,
                 tie_word_embeddings=tie, rope_theta=theta)
    model = VariableGqa(llama_config(**sizes), kv_heads)
    randomise(model, seed)
    config = dict(sizes, architectures=["DeciLMForCausalLM"], model_type="deci", hidden_act="silu",
                  num_key_value_heads_per_layer=kv_heads, torch_dtype=str(dtype).split(".")[1],
                  rope_scaling={"type": "dynamic", "factor": 2.0}, bos_token_id=1, eos_token_id=2,
                  attention_bias=False)
    tensors = stored(model, dtype)
    tensors.pop("rotary.inv_freq", None)
    write(directory, config, tensors, shards)
    if dtype != torch.float32:
        model.load_state_dict({k: v.float() for k, v in tensors.items()}, strict=False)
    return model.eval()


def native(directory, family, seed, *, hidden, heads, kv, ffn, vocab, layers, window=None, scaling=None,
           shards=1):
    sizes = dict(hidden_size=hidden, num_attention_heads=heads, num_key_value_heads=kv, num_hidden_layers=layers,
                 intermediate_size=ffn, vocab_size=vocab, max_position_embeddings=256, rms_norm_eps=1e-5)
    if family == "llama":
        inner = llama.LlamaForCausalLM(llama_config(**sizes, **({"rope_scaling": scaling} if scaling else {})))
        extra = dict(architectures=["LlamaForCausalLM"], model_type="llama", rope_scaling=scaling)
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
    model = Whole(inner)
    randomise(model, seed)
    config = dict(sizes, **extra, hidden_act="silu", torch_dtype="float32", rope_theta=10000.0,
                  tie_word_embeddings=False, bos_token_id=1, eos_token_id=2)
    write(directory, config, stored(model, torch.float32, "inner."), shards)
    return model.eval()


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
    model = VariableGqa(config, c["num_key_value_heads_per_layer"])
    tensors = {k: v.float() for k, v in load_file(os.path.join(directory, "model.safetensors")).items()}
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert not unexpected and all("inv_freq" in m or "lm_head" in m for m in missing), (missing, unexpected)
    return model.eval()

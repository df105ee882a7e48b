"""Writes a GGUF file of random weights with the shapes of a config.json, for llama.cpp's benchmarks.

Of GGUF, version 3, what such a file needs, little-endian:

    "GGUF"  u32 version  u64 tensors  u64 keys
    keys     string name, u32 type, value           a string is u64 bytes and the bytes
    tensors  string name, u32 dimensions, u64 each (the fastest first), u32 type, u64 offset in the data
    data     from the next multiple of 32 on, each tensor on a multiple of 32

There is no vocabulary: the benchmarks draw ids. Values do not decide speed as long as they are ordinary numbers, so one random
block is repeated.
"""
import random
import struct

ALIGNMENT = 32
BLOCK = 1 << 20
U32, I32, F32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
TENSOR_F32, TENSOR_Q8_0, TENSOR_BF16 = 0, 8, 30
WEIGHTS = {"bf16": (TENSOR_BF16, 32), "q8_0": (TENSOR_Q8_0, 7)}  # the tensors' type, the file's
BYTES_OF_32 = {TENSOR_F32: 128, TENSOR_Q8_0: 34, TENSOR_BF16: 64}


def text(value):
    return struct.pack("<Q", len(value.encode())) + value.encode()


def key(name, kind, value):
    head = text(name) + struct.pack("<I", kind)
    if kind == STRING:
        return head + text(value)
    if kind == ARRAY:
        return head + struct.pack(f"<IQ{len(value)}i", I32, len(value), *value)
    return head + struct.pack({U32: "<I", F32: "<f", BOOL: "<?"}[kind], value)


def keys_of(arch, config, file_type):
    heads, layers = config["num_attention_heads"], config["num_hidden_layers"]
    head_dim = config["hidden_size"] // heads
    keys = [
        key("general.architecture", STRING, arch),
        key("general.name", STRING, "random weights"),
        key("general.file_type", U32, file_type),
        key("tokenizer.ggml.model", STRING, "no_vocab"),
        key(f"{arch}.vocab_size", U32, config["vocab_size"]),
        key(f"{arch}.context_length", U32, config["max_position_embeddings"]),
        key(f"{arch}.embedding_length", U32, config["hidden_size"]),
        key(f"{arch}.block_count", U32, layers),
        key(f"{arch}.rope.freq_base", F32, config.get("rope_theta", 10000.0)),
        key(f"{arch}.rope.dimension_count", U32, int(head_dim * config.get("partial_rotary_factor", 1.0))),
    ]
    if arch == "stablelm":
        keys += [key("stablelm.use_parallel_residual", BOOL, False),
                 key("stablelm.attention.layer_norm_epsilon", F32, config["layer_norm_eps"])]
    else:
        keys.append(key(f"{arch}.attention.layer_norm_rms_epsilon", F32, config["rms_norm_eps"]))
    if arch == "deci":
        return keys + [key("deci.feed_forward_length", ARRAY, [config["intermediate_size"]] * layers),
                       key("deci.attention.head_count", ARRAY, [heads] * layers),
                       key("deci.attention.head_count_kv", ARRAY, kv_heads(config))]
    return keys + [key(f"{arch}.feed_forward_length", U32, config["intermediate_size"]),
                   key(f"{arch}.attention.head_count", U32, heads),
                   key(f"{arch}.attention.head_count_kv", U32, kv_heads(config)[0])]


def kv_heads(config):
    """Of each layer."""
    each = config.get("num_key_value_heads_per_layer")
    return each or [config["num_key_value_heads"]] * config["num_hidden_layers"]


def arch_of(config):
    if config["architectures"][0].startswith("StableL"):
        return "stablelm"
    return "deci" if "num_key_value_heads_per_layer" in config else "llama"


def tensors_of(arch, config):
    """(name, dimensions): one dimension is a norm's."""
    hidden, ffn, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    head_dim = hidden // config["num_attention_heads"]
    norms = ("weight", "bias") if arch == "stablelm" else ("weight",)
    yield "token_embd.weight", (hidden, vocab)
    yield "output.weight", (hidden, vocab)
    for part in norms:
        yield f"output_norm.{part}", (hidden,)
    for layer, n_kv in enumerate(kv_heads(config)):
        name = f"blk.{layer}."
        for part in norms:
            yield f"{name}attn_norm.{part}", (hidden,)
            yield f"{name}ffn_norm.{part}", (hidden,)
        yield f"{name}attn_q.weight", (hidden, hidden)
        yield f"{name}attn_k.weight", (hidden, n_kv * head_dim)
        yield f"{name}attn_v.weight", (hidden, n_kv * head_dim)
        yield f"{name}attn_output.weight", (hidden, hidden)
        yield f"{name}ffn_gate.weight", (hidden, ffn)
        yield f"{name}ffn_up.weight", (hidden, ffn)
        yield f"{name}ffn_down.weight", (ffn, hidden)


def block_of(tensor_type, rng):
    """Random numbers of a magnitude of about 0.01, whole elements."""
    if tensor_type == TENSOR_F32:
        return struct.pack("<f", 1.0) * (BLOCK // 4)
    if tensor_type == TENSOR_BF16:
        block = bytearray(rng.randbytes(BLOCK))
        signs = bytes(0x3C | (byte & 0x80) for byte in range(256))  # 2^-7 or 2^-6, by the bit below
        block[1::2] = block[1::2].translate(signs)
        return bytes(block)
    scale = struct.pack("<e", 2.0 ** -13)
    return b"".join(scale + rng.randbytes(32) for _ in range(BLOCK // 32))


def write_data(file, size, block):
    for done in range(0, size, len(block)):
        file.write(block[:min(len(block), size - done)])


def write(path, config, weights, seed=0):
    """weights: "bf16" or "q8_0" for all matrices; norms are float32."""
    arch = arch_of(config)
    matrix_type, file_type = WEIGHTS[weights]
    rng = random.Random(seed)
    blocks = {kind: block_of(kind, rng) for kind in (matrix_type, TENSOR_F32)}
    infos, sizes, offset = [], [], 0
    for name, dimensions in tensors_of(arch, config):
        kind = matrix_type if len(dimensions) > 1 else TENSOR_F32
        n = dimensions[0] * (dimensions[1] if len(dimensions) > 1 else 1)
        size = n // 32 * BYTES_OF_32[kind]
        infos.append(text(name) + struct.pack(f"<I{len(dimensions)}QIQ", len(dimensions), *dimensions, kind, offset))
        sizes.append((size, kind))
        offset += -(-size // ALIGNMENT) * ALIGNMENT
    keys = keys_of(arch, config, file_type)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(infos), len(keys)) + b"".join(keys) + b"".join(infos)
    with open(path, "wb") as file:
        write_data(file, -(-len(head) // ALIGNMENT) * ALIGNMENT, head + bytes(ALIGNMENT))
        for size, kind in sizes:
            write_data(file, size, blocks[kind])
            write_data(file, -size % ALIGNMENT, bytes(ALIGNMENT))

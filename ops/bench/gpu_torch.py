"""PyTorch on the cases of tests/kernels/bench_ops.c, and Hugging Face transformers on those of `kvasir-worker --bench engine`.

usage: gpu_torch.py ops < LINES               prints each line with "torch_seconds" added, and "torch_way": what was called
       gpu_torch.py engine CONFIG < LINES     prints a line for each batch; CONFIG is a config.json
       --device cpu                           computes on the CPU (to try the script itself)

Weights are random, data is random, both normal with deviation 0.02 as in the programs compared with. Times are the median
of five rounds of back-to-back calls, recorded in a CUDA graph where the other side records one.
"""
import json
import math
import statistics
import sys
import time

import torch
import torch.nn.functional as F

ROUNDS = 5
CACHE_BYTES = 256 << 20
WHOLE_ROUND_S = 0.02
MAX_CALLS = 256


class Device:
    def __init__(self, name):
        self.name = name
        self.is_cuda = name == "cuda"

    def random(self, *shape, dtype=torch.bfloat16):
        return (torch.randn(*shape, device=self.name, dtype=torch.float32) * 0.02).to(dtype)

    def sync(self):
        if self.is_cuda:
            torch.cuda.synchronize()

    def _seconds(self, run, n):
        self.sync()
        begin = time.perf_counter()
        run()
        self.sync()
        return (time.perf_counter() - begin) / n

    def time(self, op, recorded=True):
        """Seconds of op(i), i counting calls."""
        for i in range(3):
            op(i)
        once = self._seconds(lambda: [op(i) for i in range(3)], 3)
        n = max(3, min(MAX_CALLS, int(WHOLE_ROUND_S / once)))
        run = lambda: [op(i) for i in range(n)]
        if recorded and self.is_cuda:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                run()
            run = graph.replay
            run()
        return statistics.median(self._seconds(run, n) for _ in range(ROUNDS))


def copy(device, case):
    n = int(case["bytes"] / 2 / 2)
    a, b = device.random(n), torch.empty(n, device=device.name, dtype=torch.bfloat16)
    return device.time(lambda i: b.copy_(a)), "copy_"


def matmul(device, case):
    m, n, k = case["m"], case["n"], case["k"]
    copies = max(1, min(64, math.ceil(CACHE_BYTES / (2 * n * k)))) if device.is_cuda else 1
    weights = [device.random(n, k).t() for _ in range(copies)]
    x, out = device.random(m, k), torch.empty(m, n, device=device.name, dtype=torch.bfloat16)
    return device.time(lambda i: torch.matmul(x, weights[i % copies], out=out)), "matmul"


def attention(device, queries, tokens, batch, case):
    kv_heads, group, head_dim = case["kv_heads"], case["group"], case["head_dim"]
    q = device.random(batch, kv_heads * group, queries, head_dim)
    k, v = (device.random(batch, kv_heads, tokens, head_dim) for _ in range(2))
    if queries in (1, tokens):
        mask = {"is_causal": queries > 1}
    else:
        from torch.nn.attention.bias import causal_lower_right
        mask = {"attn_mask": causal_lower_right(queries, tokens)}
        k, v = (t.repeat_interleave(group, dim=1) for t in (k, v))
    gqa = {"enable_gqa": True} if k.shape[1] != q.shape[1] else {}
    return device.time(lambda i: F.scaled_dot_product_attention(q, k, v, **mask, **gqa)), "sdpa"


def decode(device, case):
    if case["lengths"] != "uniform":
        return None, "no ragged batches"
    return attention(device, 1, case["prompt"], case["batch"], case)


def prefill(device, case):
    return attention(device, case["queries"], case["tokens"], 1, case)


def add_norm(x, delta, weight):
    x += delta
    return F.rms_norm(x, x.shape[-1:], weight, 1e-5).to(delta.dtype)


def swiglu(gate_up):
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def rope_append(qkv, cos, sin, slots, k_cache, v_cache):
    """32 query heads, 4 KV heads of 128; slots are rows of the caches."""
    turned, v = qkv[:, :36], qkv[:, 36:]
    a, b = turned.chunk(2, dim=-1)
    turned = torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
    k_cache.index_copy_(0, slots, turned[:, 32:])
    v_cache.index_copy_(0, slots, v)
    return turned[:, :32]


def elementwise(device, case):
    m = case["m"]
    if case["op"] == "add_norm":
        args = (device.random(m, 4096, dtype=torch.float32), device.random(m, 4096),
                device.random(4096, dtype=torch.float32))
        function = add_norm
    elif case["op"] == "swiglu":
        args, function = (device.random(m, 2 * 14336),), swiglu
    else:
        args = (device.random(m, 40, 128), device.random(m, 1, 64), device.random(m, 1, 64),
                torch.arange(m, device=device.name) * 16, device.random(16 * m, 4, 128), device.random(16 * m, 4, 128))
        function = rope_append
    way = "eager"
    if device.is_cuda:
        function, way = torch.compile(function, dynamic=False), "compile"
    return device.time(lambda i: function(*args)), way


def sample(logits, case):
    if case["filter"] == "greedy":
        return logits.argmax(-1)
    if case["filter"] == "top_k":
        values, ids = logits.topk(50)
    else:
        values, ids = logits.sort(descending=True)
        if "top_k" in case["filter"]:
            values, ids = values[:, :50], ids[:, :50]
        before = values.softmax(-1).cumsum(-1) - values.softmax(-1)
        values = values.masked_fill(before >= 0.95, -math.inf)
    return ids.gather(-1, torch.multinomial(values.softmax(-1), 1))


def sampling(device, case):
    logits = device.random(case["batch"], case["vocab"], dtype=torch.float32) * 100
    return device.time(lambda i: sample(logits, case), recorded=False), "sort"


WAYS = {"gemm": matmul, "decode": decode, "prefill": prefill, "elementwise": elementwise, "sampling": sampling}


def run_ops(device):
    for line in sys.stdin:
        case = json.loads(line)
        if case["suite"] == "base":
            seconds, way = (copy if "what" in case else matmul)(device, case)
        elif case["suite"] in WAYS:
            try:
                seconds, way = WAYS[case["suite"]](device, case)
            except (RuntimeError, torch.cuda.OutOfMemoryError) as error:
                seconds, way = None, str(error).splitlines()[0][:80]
        else:
            continue
        print(json.dumps({**case, "torch_seconds": seconds, "torch_way": way}), flush=True)


def model_of(path, device):
    """transformers' Llama with each layer's own number of KV heads, at random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.models.llama.modeling_llama import LlamaAttention
    with open(path, encoding="utf-8") as file:
        source = json.load(file)
    names = ("hidden_size", "intermediate_size", "vocab_size", "num_hidden_layers", "num_attention_heads",
             "max_position_embeddings", "rms_norm_eps")
    config = LlamaConfig(**{name: source[name] for name in names}, attn_implementation="sdpa")
    per_layer = source["num_key_value_heads_per_layer"]
    config.num_key_value_heads = max(per_layer)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device.name):
        model = LlamaForCausalLM(config)
        for index, kv_heads in enumerate(per_layer):
            own = LlamaConfig(**{name: source[name] for name in names}, num_key_value_heads=kv_heads,
                              attn_implementation="sdpa")
            model.model.layers[index].self_attn = LlamaAttention(own, index)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.02)
    return model.eval()


@torch.inference_mode()
def time_batch(device, model, batch, context, steps):
    from transformers import DynamicCache
    ids = torch.randint(0, model.config.vocab_size, (batch, context), device=device.name)
    cache = DynamicCache()
    chunk = max(1, min(context, (16384 + batch - 1) // batch))
    device.sync()
    begin = time.perf_counter()
    for at in range(0, context, chunk):
        logits = model(ids[:, at:at + chunk], past_key_values=cache, use_cache=True, logits_to_keep=1).logits
    token = logits[:, -1].argmax(-1, keepdim=True)
    device.sync()
    prompts_s, times = time.perf_counter() - begin, []
    for _ in range(steps):
        begin = time.perf_counter()
        token = model(token, past_key_values=cache, use_cache=True).logits[:, -1].argmax(-1, keepdim=True)
        device.sync()
        times.append(time.perf_counter() - begin)
    return {"prefill_tok_s": batch * context / prompts_s, "decode_tok_s": batch * steps / sum(times),
            "median_step_s": statistics.median(times)}


def run_engine(device, path):
    model = model_of(path, device)
    cases = [json.loads(line) for line in sys.stdin]
    for number, case in enumerate([cases[0], *cases]):
        steps = min(case["generate"], 16)
        measured = time_batch(device, model, case["batch"], case["prompt"], steps)
        if number > 0:  # the first brings in code
            print(json.dumps({"suite": "engine", "device": f"transformers on {device.name}", "ranks": 1,
                              "batch": case["batch"], "prompt": case["prompt"], "generate": steps, **measured}), flush=True)


def main():
    args = sys.argv[1:]
    device = Device("cpu" if "--device" in args else "cuda")
    if "--device" in args:
        at = args.index("--device")
        device = Device(args[at + 1])
        del args[at:at + 2]
    torch.manual_seed(1)
    if args == ["ops"]:
        run_ops(device)
    elif len(args) == 2 and args[0] == "engine":
        run_engine(device, args[1])
    else:
        print(__doc__, file=sys.stderr)
        sys.exit(64)


if __name__ == "__main__":
    main()

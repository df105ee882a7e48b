#!/usr/bin/env python3
"""Logits and greedy tokens of the engine against Hugging Face transformers, for every number of ranks.

In float32 the logits must agree and the tokens be equal. In bfloat16 both programs round, so the question is another one:
how far each is from the same weights in float32, and the engine may be at most 1.2 times as far as transformers. With keys and
values in int8 and the rest in float32, the logits may be INT8_ERROR away from transformers' in the mean square, and at least
INT8_AGREEMENT of the likeliest tokens are the same ones.

usage: logits_vs_transformers.py --build DIR --demo-model DIR
"""
import argparse
import os
import random
import subprocess
import sys
import tempfile

import numpy as np
import torch

import models

LIMIT = 1e-4  # max |difference| / max |logit|, in float32
BF16_RATIO = 1.2  # our root mean square error / that of transformers in bfloat16
INT8_ERROR = 0.05  # root mean square error / root mean square of the logits
INT8_AGREEMENT = 0.9  # of the positions of a case
N_GENERATE = 24


def mpirun(n):
    env = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
               OMPI_MCA_plm="isolated", OMPI_MCA_mpi_yield_when_idle="1", OMP_NUM_THREADS="1")
    return ["mpirun", "--oversubscribe", "--bind-to", "none", "-n", str(n)], env


def engine(build, directory, layout, prompt, chunk, dtype="float32", follow=(), simulated=False):
    """Ids and logits of N_GENERATE steps after the prompt; `follow` are tokens that stand for the engine's choices."""
    ranks, placement = layout
    command, env = mpirun(ranks)
    with tempfile.NamedTemporaryFile() as out:
        program, device = ("engine_logits_sim", "cuda") if simulated else ("engine_logits", "cpu")
        command += [os.path.join(build, "tests", program), directory, device, placement, dtype, str(len(prompt)),
                    str(N_GENERATE), str(chunk), out.name] + [str(i) for i in [*prompt, *follow]]
        result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
        if result.returncode != 0:
            raise SystemExit(f"engine_logits failed ({result.returncode}): {result.stderr}")
        ids = [int(i) for i in result.stdout.split()]
        logits = np.fromfile(out.name, dtype=np.float32).reshape(N_GENERATE, -1)
    return ids, logits


@torch.no_grad()
def reference(model, prompt):
    ids, rows = list(prompt), []
    for _ in range(N_GENERATE):
        logits = model(torch.tensor([ids]))[0, -1]
        rows.append(logits.numpy())
        ids.append(int(logits.argmax()))
    return ids[len(prompt):], np.stack(rows)


@torch.no_grad()
def rows_of(model, prompt, follow):
    """Logits after the prompt and after each followed token, in one forward."""
    return model(torch.tensor([[*prompt, *follow]]))[0, len(prompt) - 1:].float().numpy()


def report(bad, name, layout, prompt, chunk, text):
    print(f"{'FAILED' if bad else 'ok':6} {name:34} T={layout[0]} {layout[1]:9} prompt {len(prompt):2} chunk {chunk:2}  {text}",
          flush=True)
    return bool(bad)


def random_prompt(rng, vocab):
    return [rng.randrange(3, vocab) for _ in range(rng.randrange(1, 70))]


def compare(build, name, model, directory, layouts):
    rng = random.Random(name)
    failures = 0
    for layout in layouts:
        prompt = random_prompt(rng, vocab_of(model))
        chunk = rng.choice([1, 7, 16, 64])
        want_ids, want = reference(model, prompt)
        got_ids, got = engine(build, directory, layout, prompt, chunk)
        error = float(np.abs(got - want).max() / np.abs(want).max())
        bad = got_ids != want_ids or not error < LIMIT
        failures += report(bad, name, layout, prompt, chunk, f"max relative error {error:.1e}  "
                           f"tokens {'equal' if got_ids == want_ids else 'DIFFER'}")
    return failures, len(layouts)


def compare_bf16(build, name, model, directory, layouts, simulated=False):
    """The directory holds bfloat16 weights, and `model` the same ones in float32."""
    rng = random.Random(name)
    failures = 0
    half = models.as_bfloat16(model)
    rms = lambda x: float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))
    for layout in layouts:
        prompt = random_prompt(rng, vocab_of(model))
        follow = [rng.randrange(3, vocab_of(model)) for _ in range(N_GENERATE - 1)]
        chunk = rng.choice([1, 7, 16, 64])
        want = rows_of(model, prompt, follow)
        theirs = rms(rows_of(half, prompt, follow) - want)
        ours = rms(engine(build, directory, layout, prompt, chunk, "bfloat16", follow, simulated)[1] - want)
        failures += report(not ours <= BF16_RATIO * theirs, name, layout, prompt, chunk,
                           f"rms error {ours:.2e}, transformers {theirs:.2e}, ratio {ours / theirs:.2f}")
    return failures, len(layouts)


def compare_int8(build, name, model, directory, layouts):
    """Keys and values in int8: the prompt goes in chunks, the tokens after it are given, so that each position is compared."""
    rng = random.Random(name)
    failures, agreed = 0, 0
    rms = lambda x: float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))
    for layout in layouts:
        prompt = random_prompt(rng, vocab_of(model))
        follow = reference(model, prompt)[0][:-1]
        chunk = rng.choice([1, 7, 16, 64])
        want = rows_of(model, prompt, follow)
        got = engine(build, directory, layout, prompt, chunk, "float32/int8", follow)[1]
        error = rms(got - want) / rms(want)
        same = int(np.sum(got.argmax(axis=1) == want.argmax(axis=1)))
        agreed += same
        failures += report(not error <= INT8_ERROR, name, layout, prompt, chunk,
                           f"rms relative error {error:.1e}  likeliest {same} of {N_GENERATE} the same")
    if agreed < INT8_AGREEMENT * N_GENERATE * len(layouts):
        failures += report(True, name, layouts[-1], prompt, chunk, f"only {agreed} of {N_GENERATE * len(layouts)} the same")
    return failures, len(layouts)


def compare_cuda(build, name, model, directory, layouts):
    """As in bfloat16, by CUDA's kernels, which also keep activations in bfloat16."""
    return compare_bf16(build, name, model, directory, layouts, simulated=True)


def compare_bits(build, name, model, directory, layouts):
    """Where every sum over ranks adds zeros, the logits must be the same bits for any number of ranks."""
    prompt = random_prompt(random.Random(name), vocab_of(model))
    want, failures = None, 0
    for layout in layouts:
        got = engine(build, directory, layout, prompt, 16)[1].view(np.uint32)
        want = got if want is None else want
        same = np.array_equal(got, want)
        failures += report(not same, name, layout, prompt, 16, f"bits {'equal' if same else 'DIFFER'}")
    return failures, len(layouts)


def vocab_of(model):
    return getattr(model, "inner", model).lm_head.weight.shape[0]


ALL = [(t, p) for t in (1, 2, 3, 4) for p in ("share", "replicate")]
SOME = [(1, "share"), (2, "share"), (3, "share"), (3, "replicate"), (4, "share")]
FEW = [(1, "share"), (3, "share")]
RANKS = [(t, "share") for t in (1, 2, 3, 4)]

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}

# Every kind of attention with every kind of feed-forward, KV heads that do and do not divide by the ranks.
NAS_BLOCKS = [(4, 1.5), (2, 3.0), ("linear", 1.0), (None, 4.0), (4, "linear"), (8, None), (None, None), ("linear", None),
              (None, "linear"), ("linear", "linear"), (1, 2.0)]

F16, BF16 = torch.float16, torch.bfloat16

# name, maker, its arguments, layouts
FLOAT32 = [
    ("DeciLM kv 4,2,1,8", models.deci, dict(kv=[4, 2, 1, 8], hidden=64, heads=8, ffn=200, vocab=301), ALL),
    ("DeciLM kv 1,4,2 bf16 sharded", models.deci,
     dict(kv=[1, 4, 2], hidden=96, heads=12, ffn=130, vocab=97, dtype=BF16, shards=3), SOME),
    ("DeciLM kv 1,5 tied", models.deci, dict(kv=[1, 5], hidden=80, heads=5, ffn=64, vocab=50, tie=True), SOME),
    ("DeciLM kv 2,1,4 f16, re-saved", models.deci,
     dict(kv=[2, 1, 4], hidden=64, heads=8, ffn=100, vocab=77, dtype=F16, resaved=True), FEW),
    ("DeciCoder GQA", models.native,
     dict(family="decicoder", hidden=64, heads=8, kv=4, ffn=160, vocab=151, layers=2), SOME),
    ("DeciCoder f16", models.native,
     dict(family="decicoder", hidden=64, heads=8, kv=4, ffn=100, vocab=99, layers=2, dtype=F16), FEW),
    ("Llama MHA", models.native, dict(family="llama", hidden=48, heads=6, kv=6, ffn=100, vocab=151, layers=3), SOME),
    ("Llama GQA sharded", models.native,
     dict(family="llama", hidden=64, heads=8, kv=2, ffn=176, vocab=260, layers=2, shards=2), SOME),
    ("Llama GQA f16 tied, sharded, re-saved", models.native,
     dict(family="llama", hidden=64, heads=8, kv=2, ffn=120, vocab=83, layers=3, tie=True, dtype=F16, shards=3,
          resaved=True), SOME),
    ("Llama 3 scaling", models.native,
     dict(family="llama", hidden=64, heads=4, kv=2, ffn=96, vocab=120, layers=2, scaling=LLAMA3), SOME),
    ("Mistral window 24", models.native,
     dict(family="mistral", hidden=64, heads=8, kv=4, ffn=192, vocab=200, layers=3, window=24), SOME),
    ("Mistral window 16 f16", models.native,
     dict(family="mistral", hidden=64, heads=8, kv=4, ffn=192, vocab=111, layers=2, window=16, dtype=F16), FEW),
    ("StableLM rotary 4 of 16", models.native,
     dict(family="stablelm", hidden=64, heads=4, kv=4, ffn=150, vocab=211, layers=3), ALL),
    ("StableLM rotary 20 of 80", models.native,
     dict(family="stablelm_epoch", hidden=320, heads=4, kv=4, ffn=133, vocab=90, layers=2), SOME),
    ("StableLM f16 sharded", models.native,
     dict(family="stablelm", hidden=64, heads=4, kv=4, ffn=70, vocab=101, layers=2, dtype=F16, shards=2), FEW),
    ("Nemotron-NAS, all blocks", models.nas, dict(blocks=NAS_BLOCKS, hidden=144, heads=8, vocab=203), ALL),
    ("Nemotron-NAS f16 sharded, llama3", models.nas,
     dict(blocks=NAS_BLOCKS[::-1], hidden=208, heads=8, vocab=90, scaling=LLAMA3, dtype=F16, shards=3), SOME),
    ("Nemotron-NAS without attention", models.nas,
     dict(blocks=[("linear", 1.0), (None, 0.5), ("linear", "linear")], hidden=72, heads=4, vocab=57), FEW),
]

BFLOAT16 = [
    ("DeciLM bf16", models.deci, dict(kv=[4, 2, 1, 8], hidden=128, heads=8, ffn=300, vocab=301), FEW),
    ("DeciCoder bf16", models.native,
     dict(family="decicoder", hidden=128, heads=8, kv=4, ffn=320, vocab=151, layers=3), FEW),
    ("Llama bf16", models.native, dict(family="llama", hidden=128, heads=8, kv=8, ffn=300, vocab=251, layers=4), FEW),
    ("Mistral bf16", models.native,
     dict(family="mistral", hidden=128, heads=8, kv=4, ffn=300, vocab=200, layers=4, window=24), FEW),
    ("StableLM bf16", models.native,
     dict(family="stablelm", hidden=128, heads=4, kv=4, ffn=300, vocab=211, layers=4), FEW),
    ("Nemotron-NAS bf16", models.nas,
     dict(blocks=NAS_BLOCKS, hidden=128, heads=8, vocab=203, scaling=LLAMA3), FEW),
]


BITS = [
    ("Nemotron-NAS linear blocks alone", models.nas,
     dict(blocks=[("linear", "linear"), (None, "linear"), ("linear", None)], hidden=440, heads=4, vocab=301), RANKS),
]

# Each family once, with what the cache makes a difference to: windows, partial rotation, one KV head, blocks without any.
INT8 = [
    ("DeciLM, int8 cache", models.deci, dict(kv=[4, 2, 1, 8], hidden=256, heads=8, ffn=400, vocab=301), SOME),
    ("DeciCoder, int8 cache", models.native,
     dict(family="decicoder", hidden=256, heads=8, kv=4, ffn=320, vocab=151, layers=3), FEW),
    ("Llama, int8 cache", models.native,
     dict(family="llama", hidden=256, heads=8, kv=8, ffn=300, vocab=251, layers=4), FEW),
    ("Mistral, int8 cache", models.native,
     dict(family="mistral", hidden=256, heads=8, kv=4, ffn=300, vocab=200, layers=4, window=24), FEW),
    ("StableLM, int8 cache", models.native,
     dict(family="stablelm", hidden=320, heads=4, kv=4, ffn=300, vocab=211, layers=4), FEW),
    ("Nemotron-NAS, int8 cache", models.nas,
     dict(blocks=NAS_BLOCKS, hidden=256, heads=8, vocab=203, scaling=LLAMA3), FEW),
]

TWO = [(1, "share"), (2, "share")]

# Head sizes that the kernels have: 64, 80, 128.
CUDA = [
    ("DeciLM, CUDA kernels", models.deci, dict(kv=[4, 1, 2], hidden=256, heads=4, ffn=384, vocab=151), TWO),
    ("Mistral, CUDA kernels", models.native,
     dict(family="mistral", hidden=256, heads=2, kv=1, ffn=320, vocab=97, layers=2, window=24), TWO),
    ("StableLM, CUDA kernels", models.native,
     dict(family="stablelm", hidden=320, heads=4, kv=4, ffn=256, vocab=90, layers=2), TWO),
    ("Nemotron-NAS, CUDA kernels", models.nas,
     dict(blocks=[(2, 1.5), ("linear", 1.0), (None, 2.0), (1, None)], hidden=256, heads=4, vocab=120), [(3, "share")]),
]

# comparison, cases, what is added to their arguments
CASES = [(compare, FLOAT32, {}), (compare_bf16, BFLOAT16, dict(dtype=BF16)), (compare_bits, BITS, {}),
         (compare_int8, INT8, {}),
         (compare_cuda, CUDA, dict(dtype=BF16))]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", required=True)
    parser.add_argument("--demo-model", required=True)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(2)
    results = []
    if args.only in "demo model":
        results.append(compare(args.build, "demo model", models.load_deci(args.demo_model), args.demo_model, ALL))
        results.append(compare_int8(args.build, "demo model, int8 cache", models.load_deci(args.demo_model),
                                    args.demo_model, SOME))
    with tempfile.TemporaryDirectory() as tmp:
        rows = [(test, *case, more) for test, cases, more in CASES for case in cases]
        for seed, (test, name, make, sizes, layouts, more) in enumerate(rows, 1):
            if args.only not in name:
                continue
            if test is compare_cuda and not os.path.exists(os.path.join(args.build, "tests", "engine_logits_sim")):
                print(f"skipped: {name}: built without the simulator", flush=True)
                continue
            directory = os.path.join(tmp, str(seed))
            model = make(directory, seed, **sizes, **more)
            results.append(test(args.build, name, model, directory, layouts))
    failed, total = sum(f for f, _ in results), sum(n for _, n in results)
    print(f"logits_vs_transformers: {total - failed} passed, {failed} failed")
    return 1 if failed or total == 0 else 0


if __name__ == "__main__":
    sys.exit(main())

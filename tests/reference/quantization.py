#!/usr/bin/env python3
"""What int8 weights cost in quality: logits and perplexity of the engine beside its own in float32.

The demo model reads held-out stories of its own grammar (ops/demo-model/train.py, another seed than training's); small random
models, whose weights are made up, read random tokens. Of each format: perplexity, the root mean square error of the logits over
that of the logits themselves, and how often the likeliest token is float32's. The bounds are some three times what was measured.

usage: quantization.py --build DIR --demo-model DIR
"""
import argparse
import json
import os
import random
import subprocess
import sys
import tempfile

import numpy as np
from tokenizers import Tokenizer

N_STORIES = 6
SEED = 2000003  # far from the seeds of training

# format: perplexity over float32's, relative error of the logits, share of equal greedy tokens
DEMO_BOUNDS = {
    "bfloat16": (1.01, 0.02, 0.98),
    "float32+int8": (1.01, 0.03, 0.98),
    "bfloat16+int8": (1.01, 0.03, 0.98),
    "float32+w8a8": (1.03, 0.08, 0.96),
    "bfloat16+w8a8": (1.03, 0.08, 0.96),
}
RANDOM_BOUNDS = {"float32+int8": 0.04, "float32+w8a8": 0.12}

RANDOM_MODELS = [
    dict(hidden_size=128, num_attention_heads=8, num_key_value_heads_per_layer=[4, 1, 8, 2], intermediate_size=320),
    dict(hidden_size=320, num_attention_heads=4, num_key_value_heads_per_layer=[4, 2, 1], intermediate_size=700),
]


def engine(build, directory, ranks, layout, ids, dummy=False):
    """Logits after each of ids but the last."""
    env = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1", OMPI_MCA_plm="isolated",
               OMPI_MCA_mpi_yield_when_idle="1", OMP_NUM_THREADS="1")
    with tempfile.NamedTemporaryFile() as out:
        command = ["mpirun", "--oversubscribe", "--bind-to", "none", "-n", str(ranks),
                   os.path.join(build, "tests", "engine_logits"), *(["--dummy"] if dummy else []), directory, "cpu", "share",
                   layout, "1", str(len(ids) - 1), "1", out.name, *map(str, ids[:-1])]
        result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
        if result.returncode != 0:
            raise SystemExit(f"engine_logits failed ({result.returncode}): {result.stderr}")
        return np.fromfile(out.name, dtype=np.float32).reshape(len(ids) - 1, -1).astype(np.float64)


def surprise(logits, ids):
    """Nats of each of ids[1:]."""
    top = logits.max(1)
    log_sum = top + np.log(np.exp(logits - top[:, None]).sum(1))
    return log_sum - logits[np.arange(len(ids) - 1), ids[1:]]


def relative_error(got, want):
    return float(np.sqrt(np.mean((got - want) ** 2) / np.mean(want ** 2)))


def report(bad, name, text):
    print(f"{'FAILED' if bad else 'ok':6} {name:44} {text}", flush=True)
    return int(bad)


def demo_texts(directory):
    sys.path.insert(0, directory)
    import train  # the grammar alone: no torch

    tokenizer = Tokenizer.from_file(os.path.join(directory, "tokenizer.json"))
    dice = train.Dice(SEED)
    return [[train.END_ID] + tokenizer.encode(train.make_story(dice)).ids + [train.END_ID] for _ in range(N_STORIES)]


def compare_demo(build, directory):
    texts = demo_texts(directory)
    want = [engine(build, directory, 1, "float32", ids) for ids in texts]
    nats = np.concatenate([surprise(w, ids) for w, ids in zip(want, texts)])
    base = float(np.exp(nats.mean()))
    report(False, "demo model float32 T=1", f"perplexity {base:.4f} over {len(nats)} held-out tokens")
    failures = n = 0
    for layout, (most, error_bound, agree_bound) in DEMO_BOUNDS.items():
        for ranks in (1, 3) if layout.startswith("bfloat16+") else (1,):
            got = [engine(build, directory, ranks, layout, ids) for ids in texts]
            perplexity = float(np.exp(np.concatenate([surprise(g, ids) for g, ids in zip(got, texts)]).mean()))
            all_got, all_want = np.concatenate(got), np.concatenate(want)
            error = relative_error(all_got, all_want)
            agree = float((all_got.argmax(1) == all_want.argmax(1)).mean())
            bad = not (perplexity <= base * most and error <= error_bound and agree >= agree_bound)
            failures += report(bad, f"demo model {layout} T={ranks}", f"perplexity {perplexity:.4f} "
                               f"({100 * (perplexity / base - 1):+.2f} %)  error {error:.4f}  greedy equal {100 * agree:.2f} %")
            n += 1
    return failures, n


def compare_random(build):
    failures = n = 0
    rng = random.Random(7)
    for sizes in RANDOM_MODELS:
        config = dict(architectures=["DeciLMForCausalLM"], model_type="deci", hidden_act="silu", rms_norm_eps=1e-5,
                      rope_theta=10000.0, max_position_embeddings=256, vocab_size=301, bos_token_id=0, eos_token_id=0,
                      tie_word_embeddings=False, attention_bias=False, torch_dtype="float32",
                      num_hidden_layers=len(sizes["num_key_value_heads_per_layer"]), **sizes)
        ids = [rng.randrange(301) for _ in range(120)]
        with tempfile.TemporaryDirectory() as directory:
            with open(os.path.join(directory, "config.json"), "w", encoding="utf-8") as file:
                json.dump(config, file)
            want = engine(build, directory, 1, "float32", ids, dummy=True)
            for layout, bound in RANDOM_BOUNDS.items():
                one = None
                for ranks in (1, 2, 3):
                    got = engine(build, directory, ranks, layout, ids, dummy=True)
                    one = got if one is None else one
                    error, over_ranks = relative_error(got, want), relative_error(got, one)
                    # int8: the same weights at any number of ranks. w8a8: each rank has scales for its own columns of rows.
                    bad = not (error <= bound and over_ranks <= (1e-5 if layout.endswith("int8") else bound))
                    failures += report(bad, f"random, hidden {sizes['hidden_size']}, {layout} T={ranks}",
                                       f"error {error:.4f}  against one rank {over_ranks:.1e}  "
                                       f"greedy equal {100 * float((got.argmax(1) == want.argmax(1)).mean()):.1f} %")
                    n += 1
    return failures, n


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", required=True)
    parser.add_argument("--demo-model", required=True)
    args = parser.parse_args()
    results = [compare_demo(args.build, args.demo_model), compare_random(args.build)]
    failed, total = sum(f for f, _ in results), sum(n for _, n in results)
    print(f"quantization: {total - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

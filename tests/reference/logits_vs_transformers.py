#!/usr/bin/env python3
"""Logits and greedy tokens of the engine against Hugging Face transformers in float32, for every number of ranks.

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

LIMIT = 1e-4  # max |difference| / max |logit|
N_GENERATE = 24


def mpirun(n):
    env = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
               OMPI_MCA_plm="isolated", OMPI_MCA_mpi_yield_when_idle="1", OMP_NUM_THREADS="1")
    return ["mpirun", "--oversubscribe", "--bind-to", "none", "-n", str(n)], env


def engine(build, directory, ranks, placement, prompt, chunk):
    command, env = mpirun(ranks)
    with tempfile.NamedTemporaryFile() as out:
        command += [os.path.join(build, "tests", "engine_logits"), directory, placement, "float32", str(N_GENERATE),
                    str(chunk), out.name] + [str(i) for i in prompt]
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


def compare(name, model, directory, vocab, build, layouts):
    rng = random.Random(name)
    failures = 0
    for ranks, placement in layouts:
        prompt = [rng.randrange(3, vocab) for _ in range(rng.randrange(1, 70))]
        chunk = rng.choice([1, 7, 16, 64])
        want_ids, want = reference(model, prompt)
        got_ids, got = engine(build, directory, ranks, placement, prompt, chunk)
        error = float(np.abs(got - want).max() / np.abs(want).max())
        bad = got_ids != want_ids or not error < LIMIT
        failures += bad
        print(f"{'FAILED' if bad else 'ok':6} {name:28} T={ranks} {placement:9} prompt {len(prompt):2} chunk {chunk:2}"
              f"  max relative error {error:.1e}  tokens {'equal' if got_ids == want_ids else 'DIFFER'}", flush=True)
    return failures, len(layouts)


ALL = [(t, p) for t in (1, 2, 3, 4) for p in ("share", "replicate")]
SOME = [(1, "share"), (2, "share"), (3, "share"), (3, "replicate"), (4, "share")]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", required=True)
    parser.add_argument("--demo-model", required=True)
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(2)
    failed = total = 0
    with tempfile.TemporaryDirectory() as tmp:
        cases = [
            ("demo model", models.load_deci(args.demo_model), args.demo_model, ALL),
        ]
        d = os.path.join(tmp, "deci")
        cases.append(("DeciLM kv 4,2,1,8", models.deci(d, [4, 2, 1, 8], 1, hidden=64, heads=8, ffn=200, vocab=301), d, ALL))
        d = os.path.join(tmp, "deci-bf16")
        cases.append(("DeciLM kv 1,4,2 bf16 sharded", models.deci(d, [1, 4, 2], 2, hidden=96, heads=12, ffn=130, vocab=97,
                                                               dtype=torch.bfloat16, shards=3), d, SOME))
        d = os.path.join(tmp, "deci-tied")
        cases.append(("DeciLM kv 1,5 tied", models.deci(d, [1, 5], 3, hidden=80, heads=5, ffn=64, vocab=50, tie=True), d, SOME))
        d = os.path.join(tmp, "llama")
        cases.append(("Llama MHA", models.native(d, "llama", 4, hidden=48, heads=6, kv=6, ffn=100, vocab=151, layers=3), d, SOME))
        d = os.path.join(tmp, "llama-gqa")
        cases.append(("Llama GQA sharded", models.native(d, "llama", 5, hidden=64, heads=8, kv=2, ffn=176, vocab=260, layers=2,
                                                         shards=2), d, SOME))
        d = os.path.join(tmp, "llama3")
        scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                   "original_max_position_embeddings": 64}
        cases.append(("Llama 3 scaling", models.native(d, "llama", 9, hidden=64, heads=4, kv=2, ffn=96, vocab=120, layers=2,
                                                       scaling=scaling), d, SOME))
        d = os.path.join(tmp, "mistral")
        cases.append(("Mistral window 24", models.native(d, "mistral", 6, hidden=64, heads=8, kv=4, ffn=192, vocab=200, layers=3,
                                                         window=24), d, SOME))
        d = os.path.join(tmp, "stablelm")
        cases.append(("StableLM rotary 4 of 16", models.native(d, "stablelm", 7, hidden=64, heads=4, kv=4, ffn=150, vocab=211,
                                                               layers=3), d, ALL))
        d = os.path.join(tmp, "stablelm-epoch")
        cases.append(("StableLM rotary 20 of 80", models.native(d, "stablelm_epoch", 8, hidden=320, heads=4, kv=4, ffn=133,
                                                                vocab=90, layers=2), d, SOME))
        for name, model, directory, layouts in cases:
            vocab = (model.inner if hasattr(model, "inner") else model).lm_head.weight.shape[0]
            f, n = compare(name, model, directory, vocab, args.build, layouts)
            failed, total = failed + f, total + n
    print(f"logits_vs_transformers: {total - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

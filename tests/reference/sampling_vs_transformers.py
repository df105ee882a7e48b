#!/usr/bin/env python3
"""What sampling parameters do, over the whole way of a request, against Hugging Face transformers' logits processors.

`kvasir serve` answers for the demo model in float32; the reference is the same weights in transformers. Along the tokens
that came, each step is made again: raw logits, the processors in vLLM's order (allowed tokens, logit bias, min_tokens;
repetition, frequency, presence; temperature; min_p; top_k; top_p), and the draw at Philox's u for (seed, sample,
position). The token must be the one that is drawn so, unless u or a filter lies within float32's error of a boundary;
its log probability, rank and alternatives must be those of the raw logits.

usage: sampling_vs_transformers.py --build DIR --demo-model DIR
"""
import argparse
import json
import math
import os
import random
import subprocess
import sys

import torch
from transformers import (LogitsProcessorList, MinNewTokensLengthLogitsProcessor, MinPLogitsWarper,
                          RepetitionPenaltyLogitsProcessor, SequenceBiasLogitsProcessor, TemperatureLogitsWarper,
                          TopKLogitsWarper, TopPLogitsWarper)

import models

LOGPROB = 2e-4  # largest difference of a log probability
EDGE = 1e-4     # this near to a boundary float32 may decide otherwise
EOS = 0


def philox_uniform(seed, sample, position):
    """Philox4x32-10 of counter (position, sample, 0, 0) and key seed: its first word as a float in [0, 1)."""
    c, k = [position, sample, 0, 0], [seed & 0xffffffff, seed >> 32]
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [p1 >> 32 ^ c[1] ^ k[0], p1 & 0xffffffff, p0 >> 32 ^ c[3] ^ k[1], p0 & 0xffffffff]
        k = [(k[0] + 0x9E3779B9) & 0xffffffff, (k[1] + 0xBB67AE85) & 0xffffffff]
    return (c[0] >> 8) / 2 ** 24


class Server:
    def __init__(self, build, model, *args):
        self.kvasir = os.path.join(build, "bin", "kvasir")
        env = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
                   OMPI_MCA_plm="isolated", OMPI_MCA_mpi_yield_when_idle="1")
        self.child = subprocess.Popen([self.kvasir, "serve", model, "--listen", "127.0.0.1:0", *args],
                                      stdout=subprocess.PIPE, text=True, env=env)
        line = self.child.stdout.readline()
        if not line.startswith("ready: "):
            raise SystemExit(f"kvasir serve: {line!r}")
        self.address = line.split()[1]

    def generate(self, ids, **flags):
        command = [self.kvasir, "generate", "--address", self.address, "--json", "--prompt-token-ids",
                   ",".join(map(str, ids))]
        for name, value in flags.items():
            name = "--" + name.replace("_", "-")
            command += [name] if value is True else [name, str(value)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120)
        if result.returncode != 0:
            raise SystemExit(f"{' '.join(command)}: {result.stderr}")
        return json.loads(result.stdout)

    def stop(self):
        self.child.terminate()
        self.child.wait(30)


def processed(raw, prompt, output, settings):
    """The logits that are drawn from, before temperature and filters."""
    ids, scores = torch.tensor([prompt + output]), raw[None].clone()
    if "allowed" in settings:
        mask = torch.full_like(scores, -math.inf)
        mask[0, settings["allowed"]] = 0
        scores = scores + mask
    if "bias" in settings:
        scores = SequenceBiasLogitsProcessor({(i,): float(b) for i, b in settings["bias"].items()})(ids, scores)
    if "min_tokens" in settings:
        scores = MinNewTokensLengthLogitsProcessor(len(prompt), settings["min_tokens"], EOS, device="cpu")(ids, scores)
    if "repetition_penalty" in settings:
        scores = RepetitionPenaltyLogitsProcessor(settings["repetition_penalty"])(ids, scores)
    counts = torch.bincount(torch.tensor(output, dtype=torch.long), minlength=raw.numel())
    scores = scores - settings.get("frequency_penalty", 0.0) * counts  # OpenAI's formula, which transformers has not
    return scores - settings.get("presence_penalty", 0.0) * (counts > 0)


def filtered(scores, settings):
    """Temperature and what is kept, as log probabilities, -inf where out."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(settings["temperature"])])
    if settings.get("min_p", 0) > 0:
        warpers.append(MinPLogitsWarper(settings["min_p"]))
    if settings.get("top_k", 0) > 0:
        warpers.append(TopKLogitsWarper(settings["top_k"]))
    if settings.get("top_p", 1) < 1:
        warpers.append(TopPLogitsWarper(settings["top_p"]))
    return torch.log_softmax(warpers(None, scores.double())[0], -1)


def draw(logprobs, u):
    """The id at which the sum of ascending ids' probabilities passes u, and how far u is from where another would be."""
    sums = torch.cumsum(logprobs.exp(), 0)
    at = int((sums > u).nonzero()[0])
    below = float(sums[at - 1]) if at > 0 else -1.0
    return at, min(float(sums[at]) - u, u - below)


def near_edge(scores, settings, u):
    """Whether a slightly different filter would draw another token."""
    tokens = set()
    for shift in (-EDGE, 0.0, EDGE):
        moved = dict(settings)
        if settings.get("top_p", 1) < 1:
            moved["top_p"] = min(max(settings["top_p"] + shift, 1e-6), 1 - 1e-9)
        if settings.get("min_p", 0) > 0:
            moved["min_p"] = min(max(settings["min_p"] * (1 + 10 * shift), 1e-9), 1.0)
        at, distance = draw(filtered(scores, moved), u)
        tokens.add(at)
        if distance < EDGE:
            return True
    return len(tokens) > 1


class Check:
    def __init__(self, model):
        self.model, self.compared, self.skipped, self.failures = model, 0, 0, []

    @torch.no_grad()
    def logits(self, ids):
        return self.model(torch.tensor([ids]))[0]

    def expect(self, holds, what):
        if not holds:
            self.failures.append(what)

    def logprobs_of(self, raw, token, logprob, rank, top, where):
        want = torch.log_softmax(raw, -1)
        self.expect(abs(float(want[token]) - logprob) < LOGPROB, f"{where}: logprob {logprob}, want {float(want[token])}")
        if rank is not None:
            above = int((want > want[token] + LOGPROB).sum())
            near = int((want > want[token] - LOGPROB).sum())
            self.expect(above + 1 <= rank <= max(near, 1), f"{where}: rank {rank}, want {above + 1}")
        best = torch.topk(want, len(top)).values if top else []
        for entry, value in zip(top, best):
            self.expect(abs(entry["logprob"] - float(value)) < LOGPROB and
                        abs(entry["logprob"] - float(want[entry["id"]])) < LOGPROB, f"{where}: alternative {entry}")

    def completion(self, prompt, answer, settings, sample, where):
        ids, output = answer["token_ids"], []
        rows = self.logits(prompt + ids)[len(prompt) - 1:]
        for position, token in enumerate(ids):
            at = f"{where}, token {position}"
            raw = rows[position]
            self.logprobs_of(raw, token, answer["logprobs"][position], None, answer["top_logprobs"][position], at)
            scores = processed(raw, prompt, output, settings)
            if settings["temperature"] == 0:
                gap = float(scores[0].max() - scores[0, token])
                self.expect(gap < LOGPROB, f"{at}: {token} is {gap} below the largest")
                self.compared += 1
            else:
                u = philox_uniform(settings["seed"], sample, position)
                if near_edge(scores, settings, u):
                    self.skipped += 1
                    self.expect(float(processed(raw, prompt, output, settings)[0, token]) > -math.inf, f"{at}: {token} is out")
                else:
                    want, _ = draw(filtered(scores, settings), u)
                    self.expect(token == want, f"{at}: {token}, drawn is {want}")
                    self.compared += 1
            output.append(token)

    def prompt(self, prompt, scored, where):
        rows = self.logits(prompt)
        self.expect(len(scored) == len(prompt) and scored[0]["logprob"] is None, f"{where}: {len(scored)} of {len(prompt)}")
        for i in range(1, len(prompt)):
            entry = scored[i]
            self.expect(entry["id"] == prompt[i], f"{where}: id {i}")
            self.logprobs_of(rows[i - 1], prompt[i], entry["logprob"], entry["rank"], entry["top"], f"{where}, prompt token {i}")
            self.compared += 1


def random_settings(rng, prompt, vocab):
    s = {"temperature": rng.choice([0, 0.7, 1.0, 1.5]), "seed": rng.getrandbits(63), "max_tokens": 24}
    near = prompt + [rng.randrange(vocab) for _ in range(20)]
    if rng.random() < 0.5:
        s["repetition_penalty"] = rng.choice([0.8, 1.1, 1.3, 2.0])
    if rng.random() < 0.5:
        s["presence_penalty"] = round(rng.uniform(-2, 2), 2)
    if rng.random() < 0.5:
        s["frequency_penalty"] = round(rng.uniform(-1, 2), 2)
    if rng.random() < 0.4:
        s["bias"] = {i: round(rng.uniform(-8, 8), 1) for i in rng.sample(sorted(set(near)), 8)}
    if rng.random() < 0.3:
        s["allowed"] = sorted(rng.sample(range(vocab), 300))
    if rng.random() < 0.3:
        s["min_tokens"] = rng.randrange(1, 24)
        s.setdefault("bias", {})[EOS] = 9.0  # else it would hardly ever be drawn
    if s["temperature"] > 0:
        if rng.random() < 0.5:
            s["top_k"] = rng.choice([1, 5, 40])
        if rng.random() < 0.5:
            s["top_p"] = round(rng.uniform(0.1, 0.99), 2)
        if rng.random() < 0.4:
            s["min_p"] = round(rng.uniform(0.01, 0.3), 3)
    return s


def flags_of(settings):
    flags = {k: v for k, v in settings.items() if k not in ("bias", "allowed")}
    if "bias" in settings:
        flags["logit_bias"] = ",".join(f"{i}:{b}" for i, b in settings["bias"].items())
    if "allowed" in settings:
        flags["allowed_token_ids"] = ",".join(map(str, settings["allowed"]))
    return flags


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", required=True)
    parser.add_argument("--demo-model", required=True)
    parser.add_argument("--cases", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(2)
    rng = random.Random(args.seed)
    check = Check(models.load_deci(args.demo_model))
    vocab = check.model.lm_head.weight.shape[0]
    server = Server(args.build, args.demo_model, "--dtype", "float32", "--kv-cache-dtype", "float32",
                    "--max-num-batched-tokens", "100", "--max-num-seqs", "8")
    try:
        for case in range(args.cases):
            prompt = [rng.randrange(3, vocab) for _ in range(rng.randrange(1, 160))]
            settings = random_settings(rng, prompt, vocab)
            n = rng.choice([1, 1, 3])
            answer = server.generate(prompt, n=n, logprobs=5, prompt_logprobs=rng.choice([0, 3]), **flags_of(settings))
            before = len(check.failures)
            for sample, choice in enumerate(answer["choices"] if n > 1 else [answer]):
                check.completion(prompt, choice, settings, sample, f"case {case}, sample {sample}")
            check.prompt(prompt, answer["prompt_logprobs"], f"case {case}")
            bad = check.failures[before:]
            print(f"{'FAILED' if bad else 'ok':6} case {case:2}  prompt {len(prompt):3}  n {n}  "
                  + " ".join(f"{k}={v}" for k, v in settings.items() if k not in ("bias", "allowed", "seed"))
                  + ("  bias" if "bias" in settings else "") + ("  allowed" if "allowed" in settings else ""), flush=True)
            for line in bad[:5]:
                print("       " + line, flush=True)
    finally:
        server.stop()
    print(f"sampling_vs_transformers: {check.compared} tokens compared, {check.skipped} too near a boundary, "
          f"{len(check.failures)} failures")
    return 1 if check.failures or check.compared < 20 * args.cases else 0


if __name__ == "__main__":
    sys.exit(main())

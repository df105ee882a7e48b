#!/usr/bin/env python3
"""Beam search over the whole way of a request against Hugging Face transformers' generate(num_beams=...).

Models of random weights and the demo model, in float32 on both sides; random prompts, widths, length penalties, rules of
stopping, end tokens, penalties and biases. Tokens must be equal, sums of log probabilities nearly. Where tokens differ the
search is made again in float64 from transformers' logits: if some decision of it was nearer than float32's error, it
counts as a tie, and else as a failure.

usage: beam_vs_transformers.py --build DIR --demo-model DIR
"""
import argparse
import math
import os
import random
import shutil
import sys
import tempfile

import torch
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

import models
from sampling_vs_transformers import Server

VOCAB = 2048     # of the demo model, whose tokenizer all of them get
SUM = 1e-3       # largest difference of a sum of log probabilities
TIE = 1e-3       # decisions nearer than this may be made otherwise in float32


class Generating(PreTrainedModel, GenerationMixin):
    """A model without a cache, given to transformers' generate."""
    main_input_name = "input_ids"
    _is_stateful = False

    def __init__(self, config, stack):
        super().__init__(config)
        self.stack = stack

    def prepare_inputs_for_generation(self, input_ids, **kwargs):  # transformers looks at the names
        return {"input_ids": input_ids}

    def forward(self, input_ids, attention_mask=None, return_dict=None):
        return CausalLMOutput(logits=self.stack(input_ids))


def make_models(directory, demo):
    """Pairs of a directory and the reference for it."""
    families = [dict(family="llama", kv=2), dict(family="mistral", kv=1, window=12), dict(family="stablelm", kv=4)]
    for i, sizes in enumerate(families):
        path = os.path.join(directory, sizes["family"])
        whole = models.native(path, 7 + i, hidden=64, heads=4, ffn=96, vocab=VOCAB, layers=3, **sizes)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(os.path.join(demo, name), path)
        yield path, whole, whole.inner
    stack = models.load_deci(demo)
    config = models.llama_config(vocab_size=VOCAB, hidden_size=256, num_hidden_layers=6, num_attention_heads=8)
    yield demo, stack, Generating(config, stack).eval()


def random_settings(rng, eos, width):
    s = {"width": width, "n": rng.randrange(1, width + 1), "max_tokens": rng.choice([1, 8, 12, 16, 16]),
         "length_penalty": rng.choice([-1.0, 0.0, 0.6, 1.0, 2.0]), "early_stopping": rng.choice([False, True, "never"]),
         "eos": [eos], "bias": {eos: rng.choice([0.0, 2.0, 4.0, 6.0])}}
    if rng.random() < 0.4:
        s["eos"] += rng.sample(range(3, VOCAB), rng.randrange(1, 4))
        s["bias"].update({i: 4.0 for i in s["eos"][1:]})
    if rng.random() < 0.4:
        s["repetition_penalty"] = rng.choice([0.8, 1.2, 1.5])
    if rng.random() < 0.3:
        s["bias"].update({i: round(rng.uniform(-8, 8), 1) for i in rng.sample(range(3, VOCAB), 6) if i not in s["eos"]})
    if rng.random() < 0.3:
        s["min_tokens"] = rng.randrange(1, s["max_tokens"] + 1)
    return s


def ask_transformers(model, prompt, s):
    config = GenerationConfig(
        num_beams=s["width"], num_return_sequences=s["n"], max_new_tokens=s["max_tokens"], do_sample=False,
        length_penalty=s["length_penalty"], early_stopping=s["early_stopping"], eos_token_id=s["eos"],
        pad_token_id=s["eos"][0], bos_token_id=1, use_cache=not isinstance(model, Generating), return_dict_in_generate=True, output_scores=True,
        repetition_penalty=s.get("repetition_penalty", 1.0), min_new_tokens=s.get("min_tokens"),
        sequence_bias=[[[i], float(b)] for i, b in s["bias"].items()])
    out = model.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                         generation_config=config)
    answers = []
    for ids, score in zip(out.sequences.tolist(), out.sequences_scores.tolist()):
        ids = ids[len(prompt):]
        ends = [i for i, t in enumerate(ids) if t in s["eos"]]
        ids = ids[:ends[0] + 1] if ends else ids
        answers.append((ids, score * len(ids) ** s["length_penalty"]))
    return answers


def ask_kvasir(server, prompt, s, eos):
    flags = dict(beam_width=s["width"], n=s["n"], max_tokens=s["max_tokens"], length_penalty=s["length_penalty"],
                 early_stopping=str(s["early_stopping"]).lower(), logprobs=3,
                 logit_bias=",".join(f"{i}:{b}" for i, b in s["bias"].items()))
    if len(s["eos"]) > 1:
        flags["stop_token_ids"] = ",".join(map(str, s["eos"][1:]))
    for name in ("repetition_penalty", "min_tokens"):
        if name in s:
            flags[name] = s[name]
    answer = server.generate(prompt, **flags)
    choices = answer["choices"] if s["n"] > 1 else [answer]
    for c in choices:
        if abs(sum(c["logprobs"]) - c["cumulative_logprob"]) > SUM:
            raise SystemExit(f"log probabilities {c['logprobs']} add up to {c['cumulative_logprob']}")
        if (c["finish_reason"] == "stop") != (c["token_ids"][-1] in s["eos"]):
            raise SystemExit(f"{c['finish_reason']} behind {c['token_ids']}")
        for token, logprob, tops in zip(c["token_ids"], c["logprobs"], c["top_logprobs"]):
            if len(tops) != 3 or any(t["id"] == token and t["logprob"] != logprob for t in tops):
                raise SystemExit(f"alternatives {tops} of {token}, {logprob}")
    return [(c["token_ids"], c["cumulative_logprob"]) for c in choices]


@torch.no_grad()
def scores_of(stack, prompt, output, s):
    """log softmax of the logits behind prompt + output, with what the request changes of it, in float64."""
    x = torch.log_softmax(stack(torch.tensor([prompt + output]))[0, -1].double(), -1)
    for i, b in s["bias"].items():
        x[i] += b
    seen = sorted(set(prompt + output))
    penalty = s.get("repetition_penalty", 1.0)
    x[seen] = torch.where(x[seen] < 0, x[seen] * penalty, x[seen] / penalty)
    if len(output) < s.get("min_tokens", 0):
        x[s["eos"]] = -math.inf
    return x


def nearest_decision(stack, prompt, s):
    """The search again; how near the nearest of its decisions was."""
    width, near = s["width"], math.inf
    gap = lambda values, at: abs(values[at - 1] - values[at]) if len(values) > at else math.inf
    running, ended = [([], 0.0)], []
    for length in range(1, s["max_tokens"] + 1):
        candidates = []
        for ids, total in running:
            top = torch.topk(scores_of(stack, prompt, ids, s), 2 * width + len(s["eos"]))
            candidates += [(ids + [int(i)], total + float(v)) for v, i in zip(top.values, top.indices)]
        candidates.sort(key=lambda c: -c[1])
        ends = [length == s["max_tokens"] or c[0][-1] in s["eos"] for c in candidates]
        open_ = [c for c, e in zip(candidates, ends) if not e]
        near = min([near, gap([c[1] for c in candidates], width), gap([c[1] for c in open_], width)])
        ended += [(ids, v / length ** s["length_penalty"]) for (ids, v), e in
                  zip(candidates[:width], ends[:width]) if e]
        ended.sort(key=lambda c: -c[1])
        near = min([near] + [gap([c[1] for c in ended], i) for i in range(1, width + 1)])
        ended, running = ended[:width], open_[:width]
        if not running:
            break
        if len(ended) == width:
            if s["early_stopping"] is True:
                break
            longest = s["early_stopping"] == "never" and s["length_penalty"] > 0
            hope = running[0][1] / (s["max_tokens"] if longest else length) ** s["length_penalty"]
            near = min(near, abs(hope - ended[-1][1]))
            if hope <= ended[-1][1]:
                break
    return near


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", required=True)
    parser.add_argument("--demo-model", required=True)
    parser.add_argument("--prompts", type=int, default=14, help="of each of the four models; nearly all with four beams")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(2)
    rng = random.Random(args.seed)
    n_equal = n_ties = n_failed = n_stopped = 0
    with tempfile.TemporaryDirectory() as directory:
        for path, stack, model in make_models(directory, args.demo_model):
            eos = 0 if path == args.demo_model else 2
            server = Server(args.build, path, "--dtype", "float32", "--kv-cache-dtype", "float32",
                            "--max-num-batched-tokens", "40", "--max-num-seqs", "8")
            try:
                for i in range(args.prompts):
                    prompt = [rng.randrange(3, VOCAB) for _ in range(rng.randrange(1, 40))]
                    s = random_settings(rng, eos, 4 if i % 14 < 13 else rng.choice([2, 3, 8]))
                    want, got = ask_transformers(model, prompt, s), ask_kvasir(server, prompt, s, eos)
                    n_stopped += sum(ids[-1] in s["eos"] for ids, _ in want)
                    same = [w[0] for w in want] == [g[0] for g in got]
                    near = all(abs(w[1] - g[1]) < SUM for w, g in zip(want, got))
                    tie = not same and nearest_decision(stack, prompt, s) < TIE
                    n_equal, n_ties, n_failed = n_equal + (same and near), n_ties + tie, n_failed + (not (same and near) and not tie)
                    print(f"{'ok' if same and near else 'tie' if tie else 'FAILED':6} {os.path.basename(path):10} "
                          f"prompt {len(prompt):2}  " + " ".join(f"{k}={v}" for k, v in s.items() if k != "bias"), flush=True)
                    if not (same and near) and not tie:
                        print(f"       want {want}\n       got  {got}", flush=True)
            finally:
                server.stop()
    n = 4 * args.prompts
    print(f"beam_vs_transformers: {n} prompts, {n_equal} equal ({n_stopped} sequences ended by an end token), "
          f"{n_ties} ties within rounding, {n_failed} failures")
    return 1 if n_failed or n_equal < 0.8 * n or n_stopped < n // 4 else 0


if __name__ == "__main__":
    sys.exit(main())

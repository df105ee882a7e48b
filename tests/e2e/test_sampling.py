"""Every sampling parameter as a client reaches it, and what must not change its answers: company, chunks, preemption."""
import collections
import json
import threading
import unittest

from harness import Server, free_address, generate, grpc, inference_pb2, metrics_of, request, run

PROMPT = "Once upon a time there was a little fox who lived in the garden"
EOS = 0


def complete(server, prompt, **fields):
    bias = fields.pop("logit_bias", {})
    message = request(prompt, **fields)
    for token_id, value in bias.items():
        message.sampling.logit_bias.add(token_id=token_id, bias=value)
    return server.inference.Complete(message, timeout=60)


def ids_of(choice):
    return [t.id for t in choice.tokens]


def all_of(response):
    """Whatever a whole answer says of tokens, to be compared to the bit."""
    def told(token):
        return (token.id, token.logprob, token.rank, [(t.id, t.logprob) for t in token.top])
    return ([(c.text, c.finished.reason, [told(t) for t in c.tokens], c.finished.cumulative_logprob) for c in response.choices],
            [told(t) for t in response.prompt_logprobs])


# Everything at once, different for each request; every eighth is a beam search.
def everything(i):
    fields = sampled(i)
    if i % 8 == 3:
        for name in ("temperature", "top_p", "top_k", "min_p", "seed"):
            del fields[name]
        fields.update(beam_width=2 + i % 3, n=1 + i % 2, length_penalty=0.5 * (i % 5), early_stopping=i % 3)
    return fields


def sampled(i):
    return dict(temperature=0.7 + 0.1 * (i % 5), top_p=0.95, top_k=60, min_p=0.01, seed=100 + i, n=1 + i % 3, max_tokens=20,
                min_tokens=i % 7, repetition_penalty=1.1 + 0.05 * (i % 4), presence_penalty=0.3 * (i % 3),
                frequency_penalty=0.2 * (i % 4), logit_bias={EOS: 4.0, 282: -3.0, 400 + i: 2.5}, logprobs=3,
                prompt_logprobs=i % 4, echo=i % 2 == 0, **({"allowed_token_ids": range(0, 900 + i)} if i % 5 == 4 else {}))


def prompt_of(i):
    return " ".join([PROMPT] * (1 + i % 3)) + " and" * (i % 6)


def ask_together(server, n):
    answers = [None] * n

    def ask(i):
        answers[i] = all_of(complete(server, prompt_of(i), **everything(i)))
    threads = [threading.Thread(target=ask, args=(i,)) for i in range(n)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return answers


class TestParameters(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server("-tp", "1")

    @classmethod
    def tearDownClass(cls):
        cls.server.close()

    def draw(self, **fields):
        response = complete(self.server, PROMPT, **{"temperature": 1.0, "seed": 5, "max_tokens": 32, **fields})
        return ids_of(response.choices[0])

    def test_samples_are_the_same_whatever_n_is(self):
        five = complete(self.server, PROMPT, temperature=1.0, seed=9, n=5, max_tokens=24, logprobs=2)
        two = complete(self.server, PROMPT, temperature=1.0, seed=9, n=2, max_tokens=24, logprobs=2)
        one = complete(self.server, PROMPT, temperature=1.0, seed=9, max_tokens=24, logprobs=2)
        self.assertEqual(all_of(five)[0][:2], all_of(two)[0])
        self.assertEqual(all_of(five)[0][:1], all_of(one)[0])
        self.assertEqual(len({c.text for c in five.choices}), 5)
        self.assertEqual([c.finished.index for c in five.choices], [0, 1, 2, 3, 4])
        self.assertEqual(five.usage.completion_tokens, sum(len(c.tokens) for c in five.choices))
        self.assertEqual(five.usage.prompt_tokens, len(five.prompt_token_ids))

    def test_streamed_samples_are_the_whole_ones(self):
        fields = dict(temperature=1.0, seed=4, n=4, max_tokens=24, echo=True, prompt_logprobs=2, logprobs=1)
        whole = complete(self.server, PROMPT, **fields)
        texts, ids, ends = collections.defaultdict(str), collections.defaultdict(list), []
        first = None
        for response in self.server.inference.Generate(request(PROMPT, **fields), timeout=60):
            event = response.WhichOneof("event")
            if event == "prompt":
                self.assertIsNone(first)
                first = response.prompt
            elif event == "token":
                self.assertIsNotNone(first)
                self.assertEqual(response.token.seq, len(ids[response.token.index]))
                texts[response.token.index] += response.token.text
                ids[response.token.index] += [t.id for t in response.token.tokens]
            else:
                ends.append(response.finished.index)
                texts[response.finished.index] += response.finished.text
                self.assertEqual(response.HasField("usage"), len(ends) == 4)
        self.assertEqual(sorted(ends), [0, 1, 2, 3])
        self.assertEqual(list(first.logprobs), list(whole.prompt_logprobs))
        for i, choice in enumerate(whole.choices):
            self.assertEqual((texts[i], ids[i]), (choice.text, ids_of(choice)))
            self.assertTrue(choice.text.startswith(PROMPT))

    def test_cancelling_ends_every_sample(self):
        call = self.server.inference.Generate(request(PROMPT, n=8, max_tokens=400, ignore_eos=True), timeout=60)
        seen = set()
        for response in call:
            if response.WhichOneof("event") == "token":
                seen.add(response.token.index)
            if len(seen) == 8:
                break
        call.cancel()
        self.assertEqual(len(self.draw()), 32)  # goes on serving
        for _ in range(100):
            if self.server.status().requests_running == 0:
                return
        self.fail("the request still runs")

    def test_penalties(self):
        plain = self.draw(temperature=0, max_tokens=100, ignore_eos=True)
        for fields in (dict(repetition_penalty=1.8), dict(presence_penalty=2), dict(frequency_penalty=1.5)):
            less = self.draw(temperature=0, max_tokens=100, ignore_eos=True, **fields)
            self.assertGreater(len(set(less)), len(set(plain)), fields)
        more = self.draw(temperature=0, max_tokens=100, ignore_eos=True, frequency_penalty=-2, presence_penalty=-2)
        self.assertLess(len(set(more)), len(set(plain)))

    def test_bias_and_allowed_tokens(self):
        self.assertEqual(set(self.draw(logit_bias={333: 100})), {333})
        self.assertNotIn(282, self.draw(temperature=0, logit_bias={282: -100}))
        allowed = [300, 301, 468]
        self.assertLessEqual(set(self.draw(allowed_token_ids=allowed)), set(allowed))
        # Bias among the allowed ones, and of one that is not.
        self.assertEqual(set(self.draw(allowed_token_ids=allowed, logit_bias={301: 100, 333: 100})), {301})

    def test_min_p_of_one_keeps_the_likeliest(self):
        self.assertEqual(self.draw(min_p=1.0), self.draw(temperature=0))

    def test_min_tokens_holds_ends_back(self):
        wants_eos = {EOS: 100}
        self.assertEqual(self.draw(logit_bias=wants_eos), [EOS])
        held = self.draw(logit_bias=wants_eos, min_tokens=7)
        self.assertEqual((len(held), held.index(EOS)), (8, 7))
        # An end token that is ignored is held back as well, as in vLLM, and then goes on.
        ignored = self.draw(logit_bias=wants_eos, min_tokens=7, ignore_eos=True)
        self.assertEqual((len(ignored), ignored.index(EOS)), (32, 7))
        self.assertEqual(self.draw(logit_bias=wants_eos, ignore_eos=True, max_tokens=3), [EOS] * 3)
        stopped = self.draw(logit_bias={333: 100}, stop_token_ids=[333], min_tokens=4)
        self.assertEqual((len(stopped), stopped[-1]), (5, 333))

    def test_the_text_of_what_stopped_it_is_shown_when_asked(self):
        whole = generate(self.server, PROMPT, temperature=0, max_tokens=20, ignore_eos=True)
        for include in (False, True):
            result = generate(self.server, PROMPT, temperature=0, max_tokens=20, ignore_eos=True,
                              stop_token_ids=[whole.ids[6]], include_stop_str_in_output=include)
            n = whole.ids.index(whole.ids[6])
            self.assertEqual(result.ids, whole.ids[:n + 1])
            decoded = self.server.inference.Detokenize(
                inference_pb2.DetokenizeRequest(token_ids=whole.ids[:n + (1 if include else 0)]))
            self.assertEqual(result.text, decoded.text)

    def test_prompt_logprobs_are_those_of_generating_it(self):
        """A completion as a prompt is scored with the very bits it was drawn with."""
        drawn = complete(self.server, PROMPT, temperature=0.8, seed=3, max_tokens=40, ignore_eos=True, logprobs=4)
        n = len(drawn.prompt_token_ids)
        both = list(drawn.prompt_token_ids) + ids_of(drawn.choices[0])
        scored = complete(self.server, both, max_tokens=1, prompt_logprobs=4)
        self.assertEqual([t.id for t in scored.prompt_logprobs], both)
        self.assertFalse(scored.prompt_logprobs[0].HasField("logprob"))
        for got, want in zip(scored.prompt_logprobs[n:], drawn.choices[0].tokens):
            self.assertEqual((got.logprob, got.rank, list(got.top)), (want.logprob, want.rank, list(want.top)))
        alone = complete(self.server, both[:1], max_tokens=1, prompt_logprobs=0)  # nothing to score
        self.assertEqual(len(alone.prompt_logprobs), 1)

    def test_echo_is_the_prompt_of_any_kind(self):
        for prompt in (PROMPT, "Grüße, 日本! 🦊 \n  two"):
            ids = list(self.server.inference.Tokenize(inference_pb2.TokenizeRequest(text=prompt)).token_ids)
            for given in (prompt, ids):
                echoed = generate(self.server, given, temperature=0, max_tokens=8, echo=True)
                plain = generate(self.server, given, temperature=0, max_tokens=8)
                self.assertEqual(echoed.text, prompt + plain.text)
                self.assertEqual((echoed.ids, echoed.prompt_ids), (plain.ids, ids))

    def test_beams_are_the_best_in_order_and_come_at_the_end(self):
        fields = dict(beam_width=4, n=3, max_tokens=24, logprobs=4, logit_bias={EOS: 6.0})
        whole = complete(self.server, PROMPT, **fields)
        self.assertEqual([c.finished.index for c in whole.choices], [0, 1, 2])
        scores = [c.finished.cumulative_logprob / len(c.tokens) for c in whole.choices]
        self.assertEqual(scores, sorted(scores, reverse=True))
        self.assertEqual(len({tuple(ids_of(c)) for c in whole.choices}), 3)
        for c in whole.choices:
            self.assertAlmostEqual(sum(t.logprob for t in c.tokens), c.finished.cumulative_logprob, 3)
            for t in c.tokens:  # a token is where the alternatives have it
                self.assertTrue(t.rank > 4 or (t.top[t.rank - 1].id, t.top[t.rank - 1].logprob) == (t.id, t.logprob))
        message = request(PROMPT, **{k: v for k, v in fields.items() if k != "logit_bias"})
        message.sampling.logit_bias.add(token_id=EOS, bias=6.0)
        texts, events = [""] * 3, []
        for response in self.server.inference.Generate(message, timeout=60):
            events.append(response.WhichOneof("event"))
            if events[-1] == "token":
                texts[response.token.index] += response.token.text
            elif events[-1] == "finished":
                texts[response.finished.index] += response.finished.text
        self.assertEqual(texts, [c.text for c in whole.choices])
        self.assertEqual(events, ["prompt"] + ["token", "finished"] * 3)

    def test_one_beam_is_greedy(self):
        greedy = complete(self.server, PROMPT, temperature=0, max_tokens=40, ignore_eos=True, logprobs=0)
        beam = complete(self.server, PROMPT, beam_width=1, max_tokens=40, ignore_eos=True, logprobs=0)
        self.assertEqual(all_of(beam)[0][0][:3], all_of(greedy)[0][0][:3])

    def test_beams_that_cannot_be(self):
        for code, says, fields in (
                (grpc.StatusCode.INVALID_ARGUMENT, "16 with 5 stop ids", dict(beam_width=16, stop_token_ids=[1, 2, 3, 4])),
                (grpc.StatusCode.FAILED_PRECONDITION, "1 sequences are all", dict(beam_width=3, n=2, allowed_token_ids=[7]))):
            with self.assertRaises(grpc.RpcError) as raised:
                complete(self.server, PROMPT, max_tokens=5, **fields)
            self.assertEqual(raised.exception.code(), code)
            self.assertIn(says, raised.exception.details())

    def test_refusals_name_field_value_and_limit(self):
        for fields, says in ((dict(n=129), "sampling.n: 129 is not in [1, 128]"),
                             (dict(n=128, max_tokens=100000), "--max-completion-tokens"),
                             (dict(beam_width=4, n=5), "sampling.n: 5 is more than sampling.beam_width 4"),
                             (dict(frequency_penalty=2.5), "sampling.frequency_penalty: 2.5 is not in [-2, 2]"),
                             (dict(allowed_token_ids=[2048]), "sampling.allowed_token_ids[0]: 2048 is not below 2048"),
                             (dict(prompt_logprobs=21), "output.prompt_logprobs: 21 is not in [0, 20]"),
                             (dict(logit_bias={1: 101}), "sampling.logit_bias[0].bias: 101 is not in")):
            with self.assertRaises(grpc.RpcError) as raised:
                complete(self.server, PROMPT, **fields)
            self.assertEqual(raised.exception.code(), grpc.StatusCode.INVALID_ARGUMENT)
            self.assertIn(says, raised.exception.details())
        with self.assertRaises(grpc.RpcError) as raised:  # a request that leaves nothing to draw fails alone
            complete(self.server, PROMPT, allowed_token_ids=[EOS], min_tokens=2, max_tokens=3)
        self.assertEqual(raised.exception.code(), grpc.StatusCode.DATA_LOSS)
        self.assertEqual(len(self.draw()), 32)

    def test_the_command_line_reaches_them_all(self):
        flags = ["--temperature", "0.9", "--top-p", "0.9", "--top-k", "50", "--min-p", "0.02", "--seed", "77", "--n", "2",
                 "--max-tokens", "24", "--min-tokens", "5", "--repetition-penalty", "1.2", "--presence-penalty", "0.5",
                 "--frequency-penalty", "0.25", "--logit-bias", "0:3,282:-2.5", "--stop-list", '["zebra", " fox"]',
                 "--stop-token-ids", "7,9", "--include-stop-str-in-output", "--logprobs", "2", "--prompt-logprobs", "1",
                 "--allowed-token-ids", ",".join(map(str, range(1500))), "--priority", "3", "--echo"]
        result = run("generate", "--address", self.server.address, "--json", *flags, PROMPT)
        self.assertEqual(result.returncode, 0, result.stderr)
        got = json.loads(result.stdout)
        want = complete(self.server, PROMPT, temperature=0.9, top_p=0.9, top_k=50, min_p=0.02, seed=77, n=2, max_tokens=24,
                        min_tokens=5, repetition_penalty=1.2, presence_penalty=0.5, frequency_penalty=0.25,
                        logit_bias={0: 3, 282: -2.5}, stop=["zebra", " fox"], stop_token_ids=[7, 9],
                        include_stop_str_in_output=True, logprobs=2, prompt_logprobs=1, allowed_token_ids=range(1500),
                        priority=3, echo=True)
        for choice, wanted in zip(got["choices"], want.choices):
            self.assertEqual((choice["text"], choice["token_ids"]), (wanted.text, ids_of(wanted)))
            for p, t in zip(choice["logprobs"], wanted.tokens):
                self.assertAlmostEqual(p, t.logprob, 6)
        self.assertEqual([t["rank"] for t in got["prompt_logprobs"]], [t.rank for t in want.prompt_logprobs])
        ids = ",".join(map(str, want.prompt_token_ids))
        again = run("generate", "--address", self.server.address, "--json", *flags, "--prompt-token-ids", ids)
        self.assertEqual(json.loads(again.stdout)["choices"], got["choices"])
        texts = run("generate", "--address", self.server.address, *flags, PROMPT).stdout
        self.assertEqual(texts, "".join(f"--- {i}\n{c.text}\n" for i, c in enumerate(want.choices)))
        beams = ["--beam-width", "4", "--length-penalty", "0.5", "--early-stopping", "never", "--n", "2", "--max-tokens", "12"]
        got = json.loads(run("generate", "--address", self.server.address, "--json", *beams, PROMPT).stdout)
        want = complete(self.server, PROMPT, beam_width=4, length_penalty=0.5, early_stopping=2, n=2, max_tokens=12)
        self.assertEqual([c["token_ids"] for c in got["choices"]], [ids_of(c) for c in want.choices])
        for choice, wanted in zip(got["choices"], want.choices):
            self.assertAlmostEqual(choice["cumulative_logprob"], wanted.finished.cumulative_logprob, 6)
        for bad in (["--early-stopping", "no"], ["--logit-bias", "5"], ["--allowed-token-ids", "1,,2"], ["--stop-list", "[1]"], ["--n", "0"]):
            self.assertEqual(run("generate", *bad, PROMPT).returncode, 64, bad)


class TestCompany(unittest.TestCase):
    """Tokens, log probabilities and ranks to the bit, with everything on."""

    def check_metrics(self, http, swaps):
        counted = metrics_of(http)
        out = counted['swapped_blocks_total,direction="out"']
        self.assertGreater(counted["num_preemptions_total"], 0)
        self.assertEqual(out > 0, swaps)
        self.assertLessEqual(counted['swapped_blocks_total,direction="in"'], out)
        if not swaps:
            self.assertGreater(counted["recompute_tokens_total"], 0)

    def test_alone_together_preempted_and_in_pieces(self):
        n = 16
        with Server("-tp", "1", "--max-num-seqs", "48") as server:
            alone = [all_of(complete(server, prompt_of(i), **everything(i))) for i in range(n)]
            self.assertEqual(ask_together(server, n), alone)
        # KV memory for little more than one sequence: they preempt each other, and are computed again or swapped.
        for swap_space in ("0", "4M"):
            http = free_address()
            with Server("-tp", "1", "--max-model-len", "128", "--kv-cache-memory", "600K", "--max-num-seqs", "12",
                        "--swap-space", swap_space, "--http", http) as server:
                counter = "recompute_tokens_total" if swap_space == "0" else 'swapped_blocks_total,direction="out"'
                for _ in range(6):  # whether they meet is a matter of time
                    self.assertEqual(ask_together(server, n), alone)
                    if metrics_of(http)[counter] > 0:
                        break
                self.check_metrics(http, swap_space != "0")
        # One token of a prompt at a time where log probabilities are wanted, and chunks of 9 elsewhere.
        with Server("-tp", "1", "--max-num-seqs", "9", "--max-num-batched-tokens", "9") as server:
            self.assertEqual(ask_together(server, n), alone)

    def test_ranks_agree(self):
        with Server("-tp", "1") as server:
            want = [all_of(complete(server, prompt_of(i), **everything(i))) for i in range(4)]
        with Server("-tp", "2") as server:
            for i, wanted in enumerate(want):
                got = all_of(complete(server, prompt_of(i), **everything(i)))
                self.assertEqual([(c[0], [t[0] for t in c[2]]) for c in got[0]],
                                 [(c[0], [t[0] for t in c[2]]) for c in wanted[0]])
                for mine, theirs in zip(got[1], wanted[1]):
                    self.assertEqual(mine[0], theirs[0])
                    self.assertAlmostEqual(mine[1], theirs[1], 3)


if __name__ == "__main__":
    unittest.main(verbosity=2)

"""What a client gets from a served model: streams, answers, equality over ranks, batches and chunks."""
import json
import os
import threading
import unittest
import unittest.mock

from harness import (DEMO, SANITIZED, Result, Server, cluster_pb2, free_address, generate, health_pb2, inference_pb2,
                     metrics_of, request, run)

PROMPTS = ["Once upon a time", "The little fox", "One rainy morning, Mia", "\n", "A", "In the garden there was a"]


def greedy(server, prompt, **fields):
    return generate(server, prompt, temperature=0, logprobs=5, **{"max_tokens": 48, **fields})


class TestServed(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server("-tp", "2")

    @classmethod
    def tearDownClass(cls):
        cls.server.close()

    def test_stream_has_prompt_tokens_finish_and_usage(self):
        result = greedy(self.server, PROMPTS[0])
        tokenized = self.server.inference.Tokenize(inference_pb2.TokenizeRequest(text=PROMPTS[0]))
        self.assertEqual(result.prompt_ids, list(tokenized.token_ids))
        self.assertEqual(result.usage.prompt_tokens, len(result.prompt_ids))
        self.assertEqual(result.usage.completion_tokens, len(result.ids))
        self.assertEqual(result.reason, "LENGTH" if len(result.ids) == 48 else "STOP")
        self.assertTrue(all(p <= 0 for p in result.logprobs))
        self.assertTrue(all(len(t) == 5 and t[0][1] == p for t, p in zip(result.tops, result.logprobs)))

    def test_complete_is_the_stream_in_one(self):
        streamed = greedy(self.server, PROMPTS[1])
        whole = self.server.inference.Complete(request(PROMPTS[1], temperature=0, max_tokens=48, logprobs=5))
        self.assertEqual(len(whole.choices), 1)
        self.assertEqual(whole.choices[0].text, streamed.text)
        self.assertEqual([t.id for t in whole.choices[0].tokens], streamed.ids)
        self.assertEqual([t.logprob for t in whole.choices[0].tokens], streamed.logprobs)
        self.assertEqual(list(whole.prompt_token_ids), streamed.prompt_ids)
        self.assertEqual(whole.usage.completion_tokens, len(streamed.ids))

    def test_text_is_the_ids_decoded(self):
        result = generate(self.server, PROMPTS[2], temperature=1.3, seed=5, max_tokens=64)
        decoded = self.server.inference.Detokenize(inference_pb2.DetokenizeRequest(token_ids=result.ids))
        self.assertEqual(result.text, decoded.text)

    def test_token_ids_as_prompt(self):
        as_text = greedy(self.server, PROMPTS[0])
        as_ids = greedy(self.server, as_text.prompt_ids)
        self.assertEqual((as_ids.text, as_ids.ids, as_ids.logprobs), (as_text.text, as_text.ids, as_text.logprobs))

    def test_seed_decides(self):
        def draw(seed):
            return generate(self.server, PROMPTS[0], temperature=1.0, top_p=0.95, top_k=50, seed=seed, max_tokens=40).ids
        self.assertEqual(draw(1), draw(1))
        self.assertNotEqual(draw(1), draw(2))

    def test_continuation_is_the_same_text(self):
        """Prompt plus the first half as a new prompt gives the second half: nothing but tokens is state."""
        whole = greedy(self.server, PROMPTS[0], max_tokens=30, ignore_eos=True)
        rest = greedy(self.server, whole.prompt_ids + whole.ids[:15], max_tokens=15, ignore_eos=True)
        self.assertEqual(rest.ids, whole.ids[15:])
        self.assertEqual(rest.logprobs, whole.logprobs[15:])

    def test_stop_string_across_tokens(self):
        whole = greedy(self.server, PROMPTS[0], max_tokens=60, ignore_eos=True).text
        stop = whole[21:29]  # no token boundary in particular
        at = whole.index(stop)
        result = greedy(self.server, PROMPTS[0], max_tokens=60, ignore_eos=True, stop=[stop, "never seen"])
        self.assertEqual(result.text, whole[:at])
        self.assertEqual((result.reason, result.finished.stop_text), ("STOP", stop))
        kept = greedy(self.server, PROMPTS[0], max_tokens=60, ignore_eos=True, stop=[stop],
                      include_stop_str_in_output=True)
        self.assertEqual(kept.text, whole[:at] + stop)

    def test_stop_token_and_min_tokens(self):
        whole = greedy(self.server, PROMPTS[0], max_tokens=40, ignore_eos=True)
        stop = whole.ids[6]
        result = greedy(self.server, PROMPTS[0], max_tokens=40, ignore_eos=True, stop_token_ids=[stop])
        self.assertEqual((result.reason, result.finished.stop_token_id), ("STOP", stop))
        self.assertEqual(result.ids[:whole.ids.index(stop)], whole.ids[:whole.ids.index(stop)])
        later = greedy(self.server, PROMPTS[0], max_tokens=40, ignore_eos=True, stop_token_ids=[stop], min_tokens=10)
        self.assertGreaterEqual(len(later.ids), 10)
        self.assertNotIn(stop, later.ids[:10])

    def test_alone_and_among_sixteen_are_bit_equal(self):
        alone = [greedy(self.server, p) for p in PROMPTS]
        sampled = generate(self.server, PROMPTS[0], temperature=0.9, seed=3, max_tokens=40, logprobs=0)
        results = {}

        def ask(i):
            results[i] = greedy(self.server, PROMPTS[i % len(PROMPTS)])
        threads = [threading.Thread(target=ask, args=(i,)) for i in range(16)]
        for t in threads:
            t.start()
        again = generate(self.server, PROMPTS[0], temperature=0.9, seed=3, max_tokens=40, logprobs=0)
        for t in threads:
            t.join()
        self.assertEqual((again.ids, again.logprobs), (sampled.ids, sampled.logprobs))
        for i in range(16):
            want = alone[i % len(PROMPTS)]
            self.assertEqual((results[i].ids, results[i].logprobs, results[i].tops), (want.ids, want.logprobs, want.tops))

    def test_model_info_and_plan(self):
        info = self.server.inference.GetModelInfo(inference_pb2.GetModelInfoRequest())
        with open(f"{DEMO}/config.json") as f:
            config = json.load(f)
        self.assertEqual(list(info.kv_heads), config["num_key_value_heads_per_layer"])
        self.assertEqual(info.vocab_size, config["vocab_size"])
        self.assertGreater(len(set(info.kv_heads)), 1)  # the demo model shows variable GQA
        served = json.loads(self.server.cluster.GetPlan(cluster_pb2.GetPlanRequest()).json)
        printed = json.loads(run("plan", DEMO, "-tp", "2", "--json").stdout)
        self.assertEqual(served, printed)
        self.assertEqual(served["kv_replication_factor"], 1.0)

    def test_health(self):
        def check(service):
            return self.server.health.Check(health_pb2.HealthCheckRequest(service=service)).status
        serving = health_pb2.HealthCheckResponse.SERVING
        self.assertEqual(check(""), serving)
        self.assertEqual(check("kvasir.v1.Inference"), serving)


class TestLayouts(unittest.TestCase):
    """The same tokens whatever the layout, and the same bits whatever the chunks."""
    OPTIONS = ()
    RANKS = ("3",) if SANITIZED else ("2", "3", "4")
    CHUNKS = ("7",) if SANITIZED else ("1", "7", "33")
    SCARCE = 344  # KB of KV memory on all ranks: 12 blocks, of which four sequences want 16

    @classmethod
    def setUpClass(cls):
        with Server("-tp", "1", *cls.OPTIONS) as server:
            cls.want = [greedy(server, p) for p in PROMPTS]
            long_prompt = " ".join(PROMPTS) * 6
            cls.long_ids = list(server.inference.Tokenize(inference_pb2.TokenizeRequest(text=long_prompt)).token_ids)[:200]
            cls.want_long = greedy(server, cls.long_ids)

    def check(self, *args, bits):
        with Server(*args, *self.OPTIONS) as server:
            for prompt, want in zip(PROMPTS, self.want):
                got = greedy(server, prompt)
                self.assertEqual(got.ids, want.ids, args)
                if bits:
                    self.assertEqual(got.logprobs, want.logprobs)
            got = greedy(server, self.long_ids)
            self.assertEqual(got.ids, self.want_long.ids, args)
            if bits:
                self.assertEqual(got.logprobs, self.want_long.logprobs)
            if "replicate" not in args:
                self.assertEqual(server.status().kv_replication_factor, 1.0)

    def test_ranks_share(self):
        for ranks in self.RANKS:
            self.check("-tp", ranks, "--kv-placement", "share", bits=False)

    def test_ranks_replicate(self):
        for ranks in self.RANKS:
            self.check("-tp", ranks, "--kv-placement", "replicate", bits=False)

    def test_ranks_token(self):
        if type(self) is TestLayouts:
            self.check("-tp", self.RANKS[-1], "--kv-placement", "token", bits=False)

    def test_chunks(self):
        for chunk in self.CHUNKS:
            self.check("-tp", "1", "--max-num-seqs", "1", "--max-num-batched-tokens", chunk, bits=True)

    def test_steps_that_wait_for_the_last_ones_tokens(self):
        with unittest.mock.patch.dict(os.environ, KVASIR_STEPS_AHEAD="0"):
            self.check("-tp", "1", bits=True)

    def test_quantized(self):
        """int8: the same weights, and so the same tokens, on any ranks; not the plain model's numbers. w8a8 serves too."""
        got = {}
        for quantization, ranks in (("int8", "1"), ("int8", "3"), ("w8a8", "2")):
            with Server("-tp", ranks, "--quantization", quantization) as server:
                info = server.inference.GetModelInfo(inference_pb2.GetModelInfoRequest())
                self.assertEqual(info.quantization, quantization)
                served = json.loads(server.cluster.GetPlan(cluster_pb2.GetPlanRequest()).json)
                self.assertEqual(served["quantization"], quantization)
                got[quantization, ranks] = [greedy(server, p) for p in PROMPTS]
        for one, three, want in zip(got["int8", "1"], got["int8", "3"], self.want):
            self.assertEqual(one.ids, three.ids)
            self.assertNotEqual(one.logprobs, want.logprobs)
            for a, b in zip(one.logprobs, want.logprobs):
                if one.ids == want.ids:
                    self.assertAlmostEqual(a, b, delta=0.5)
        self.assertTrue(all(len(r.ids) > 0 for r in got["w8a8", "2"]))

    def test_preemption(self):
        self.assertGreater(self.preempt(1)["num_preemptions_total"], 0)

    def test_preemption_and_swapping_on_two_ranks(self):
        counted = self.preempt(2, "--swap-space", "1M")
        self.assertGreater(counted['swapped_blocks_total,direction="out"'], 0)

    def preempt(self, ranks, *options):
        """Four at once preempt each other and still say the same. Returns what the server counted."""
        http = free_address()
        with Server("-tp", str(ranks), "--http", http, "--max-model-len", "96", "--max-num-seqs", "4",
                    "--kv-cache-memory", f"{self.SCARCE // ranks}K", *options, *self.OPTIONS) as server:
            wanted = self.want if ranks == 1 else [greedy(server, p) for p in PROMPTS]
            results = {}

            def ask(i):
                results[i] = Result(server.inference.Generate(
                    request(PROMPTS[i], temperature=0, logprobs=5, max_tokens=48), timeout=60))
            threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(PROMPTS))]
            for t in threads:
                t.start()
            for t in threads:
                t.join()
            for i, want in enumerate(wanted):
                self.assertEqual((results[i].ids, results[i].logprobs), (want.ids, want.logprobs))
                self.assertEqual(want.ids, self.want[i].ids)
            return metrics_of(http)


class TestLayoutsInt8(TestLayouts):
    """Keys and values in int8: a chunk attends to its own keys as they are stored, so that this changes nothing of the above."""
    OPTIONS = ("--kv-cache-dtype", "int8")
    RANKS = ("2", "3")
    CHUNKS = ("7",)
    SCARCE = 184

    def test_plan_counts_values_and_scales(self):
        with Server("-tp", "2", *self.OPTIONS) as server:
            served = json.loads(server.cluster.GetPlan(cluster_pb2.GetPlanRequest()).json)
        self.assertEqual(served, json.loads(run("plan", DEMO, "-tp", "2", *self.OPTIONS, "--json").stdout))
        with open(f"{DEMO}/config.json") as f:
            config = json.load(f)
        heads = sum(config["num_key_value_heads_per_layer"])
        head_dim = config["hidden_size"] // config["num_attention_heads"]
        self.assertEqual(served["kv_dtype"], "int8")
        self.assertEqual(sum(rank["kv_bytes_per_token"] for rank in served["ranks"]), heads * 2 * (head_dim + 2))


if __name__ == "__main__":
    unittest.main(verbosity=2)

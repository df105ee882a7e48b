"""A group in pipeline stages: what one rank says, a rank of a later stage killed, and memory as planned."""
import json
import os
import signal
import threading
import time
import unittest

import grpc
from harness import DEMO, Result, Server, generate, inference_pb2, request, run

PROMPTS = ["Once upon a time", "The little dog", "One day, Lily", "There was", "In the garden", "A boy named Tom"]


def drawn(i, prompt):
    """Greedy and drawn ones, of several lengths, so that sequences come and go."""
    return request(prompt, temperature=0 if i % 2 == 0 else 0.8, seed=7 + i, max_tokens=12 + 9 * i, logprobs=2,
                   ignore_eos=True)


def ask_at_once(server, prompts):
    results = {}

    def ask(i):
        results[i] = Result(server.inference.Generate(drawn(i, prompts[i]), timeout=60))
    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(prompts))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return [results[i] for i in range(len(prompts))]


class TestStages(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        with Server("-tp", "1") as server:
            text = " ".join(PROMPTS) * 4
            ids = server.inference.Tokenize(inference_pb2.TokenizeRequest(text=text)).token_ids
            cls.prompts = [*PROMPTS, list(ids)[:150]]
            cls.want = ask_at_once(server, cls.prompts)

    def check(self, *args, bits):
        with Server(*args) as server:
            for _ in range(2):
                got = ask_at_once(server, self.prompts)
                self.assertEqual([g.ids for g in got], [w.ids for w in self.want], args)
                if bits:
                    self.assertEqual([g.logprobs for g in got], [w.logprobs for w in self.want])
            self.assertEqual(server.status().kv_replication_factor, 1.0)

    def test_stages_of_one_rank_give_the_same_bits(self):
        self.check("-pp", "2", bits=True)
        self.check("-pp", "3", "--max-num-seqs", "4", "--max-num-batched-tokens", "24", bits=True)

    def test_stages_of_several_ranks_say_the_same(self):
        self.check("-tp", "2", "-pp", "2", bits=False)

    def test_generate_starts_stages_of_its_own(self):
        result = run("generate", "--model", DEMO, "-tp", "2", "-pp", "2", "--temperature", "0", "--max-tokens", "12",
                     "--json", PROMPTS[0])
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(json.loads(result.stdout)["token_ids"], self.want[0].ids)

    def test_killed_rank_of_the_last_stage_comes_back(self):
        with Server("-tp", "2", "-pp", "2") as server:
            pids = server.worker_pids()
            self.assertEqual(len(pids), 4)
            threading.Timer(0.3, os.kill, (pids[-1], signal.SIGKILL)).start()
            with self.assertRaises(grpc.RpcError) as caught:
                for _ in range(200):
                    list(server.inference.Generate(request("Once", max_tokens=480, ignore_eos=True), timeout=60))
            self.assertEqual(caught.exception.code(), grpc.StatusCode.UNAVAILABLE)
            end = time.monotonic() + 20
            ids = None
            while ids is None and time.monotonic() < end:
                try:
                    ids = generate(server, PROMPTS[0], temperature=0, max_tokens=12, ignore_eos=True).ids
                except grpc.RpcError as error:
                    self.assertEqual(error.code(), grpc.StatusCode.UNAVAILABLE)
                    time.sleep(0.1)
            self.assertEqual(ids, self.want[0].ids, server.process.stderr())
            self.assertEqual(server.status().groups[0].restarts, 1)


if __name__ == "__main__":
    unittest.main(verbosity=2)

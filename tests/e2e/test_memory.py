"""Made-up weights: a model served from its config.json alone, and a rank's memory against what `kvasir plan` says."""
import json
import os
import shutil
import tempfile
import unittest

from harness import DEMO, SANITIZED, Server, generate, run

# 400 MB of bfloat16: large beside the programs, small beside the machine.
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 1024,
    "num_attention_heads": 16, "num_key_value_heads": 4, "intermediate_size": 2816, "num_hidden_layers": 12,
    "vocab_size": 32000, "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2,
}
TOLERANCE = 0.03


def number(pid, name):
    with open(f"/proc/{pid}/status") as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith(name))


def resident(pid):
    return number(pid, "VmRSS")


def mapped(pid):
    """For itself, touched or not."""
    return number(pid, "VmData")


def planned(model, *args):
    """Bytes of each rank."""
    plan = json.loads(run("plan", model, "--json", *args).stdout)
    return [rank["memory_bytes"]["total"] for rank in plan["ranks"]]


class TestMemory(unittest.TestCase):
    def setUp(self):
        self.model = tempfile.mkdtemp(prefix="kvasir-memory-")
        self.addCleanup(shutil.rmtree, self.model)
        with open(os.path.join(self.model, "config.json"), "w") as f:
            json.dump(CONFIG, f)

    def add_tokenizer(self):
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(os.path.join(DEMO, name), self.model)

    def check(self, ranks, stages=1):
        args = ("-tp", str(ranks // stages), "-pp", str(stages), "--kv-cache-memory", "96M", "--max-num-seqs", "8",
                *(("--max-num-batched-tokens", "48") if stages > 1 else ()))  # no more than a short prompt touches
        want = planned(self.model, *args)
        self.assertEqual(len(want), ranks)
        with Server(*args, "--load-format", "dummy", "--seed", "3", model=self.model, timeout=120) as server:
            result = generate(server, [5, 6, 7], temperature=0, max_tokens=4, ignore_eos=True)
            self.assertEqual(len(result.ids), 4)
            got = [resident(pid) for pid in server.worker_pids()]
            if ranks == 2:
                self.soak(server)
        self.assertEqual(len(got), ranks)
        if not SANITIZED:
            for g, w in zip(sorted(got), sorted(want)):
                self.assertLess(abs(g - w) / w, TOLERANCE, f"{ranks} ranks: resident {got}, planned {want}")
        return result.ids

    def soak(self, server):
        """Nothing of size is allocated once a server is ready."""
        before = [mapped(pid) for pid in server.worker_pids()]
        result = run("bench", "serve", "--address", server.address, "--num-prompts", 16, "--concurrency", 8, "--input-len", 8,
                     "--output-len", 4, "--ignore-eos", "--num-warmups", 0, "--no-progress", "--json", timeout=120)
        self.assertEqual(result.returncode, 0, result.stderr)
        for b, a in zip(before, [mapped(pid) for pid in server.worker_pids()]):
            self.assertTrue(SANITIZED or a - b < 4 * 2**20, f"{b} bytes mapped, then {a}")

    def test_ranks_need_what_the_plan_says(self):
        self.add_tokenizer()
        alone = self.check(1)
        self.assertEqual(self.check(2), alone)
        self.assertEqual(self.check(3, stages=3), alone)

    def test_kv_takes_what_it_is_given(self):
        small = planned(self.model, "--kv-cache-memory", "96M")[0]
        large = planned(self.model, "--kv-cache-memory", "1096M")[0]
        self.assertAlmostEqual(large - small, 1000 * 2**20, delta=2**22)

    def test_without_a_tokenizer_it_says_what_is_missing(self):
        result = run("serve", self.model, "--load-format", "dummy", "--listen", "127.0.0.1:0")
        self.assertEqual(result.returncode, 65, result.stderr)
        self.assertIn("tokenizer.json", result.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=2)

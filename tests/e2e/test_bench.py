"""kvasir bench: what it says against what the server counted, and that it calls no bad run good."""
import json
import os
import shutil
import signal
import tempfile
import threading
import time
import unittest

from harness import DEMO, MPI_ENV, SANITIZED, Server, run

VLLM_KEYS = {"duration", "completed", "failed", "total_input_tokens", "total_output_tokens", "request_throughput",
             "request_goodput", "output_throughput", "total_token_throughput", "max_output_tokens_per_s",
             "max_concurrent_requests", "num_prompts", "request_rate", "max_concurrency", "model_id", "date"}
VLLM_KEYS |= {f"{part}_{metric}_ms" for part in ("mean", "median", "std", "p99")
              for metric in ("ttft", "tpot", "itl", "e2el")}


class TestServe(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server("--max-num-seqs", "8")
        cls.dir = tempfile.mkdtemp()

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.dir)
        cls.server.close()

    def bench(self, *args, code=0):
        result = run("bench", "serve", "--address", self.server.address, "--json", *args, timeout=120)
        self.assertEqual(result.returncode, code, result.stderr)
        return json.loads(result.stdout), result.stderr

    def totals(self):
        status = self.server.status()
        return status.requests_total, status.prompt_tokens_total, status.generation_tokens_total

    def test_counts_are_the_servers(self):
        before = self.totals()
        report, said = self.bench("--num-prompts", 30, "--input-len", 20, "--output-len", 9, "--concurrency", 6,
                                  "--ignore-eos", "--num-warmups", 0, "--goodput", "ttft:60000,tpot:60000")
        self.assertEqual(VLLM_KEYS - set(report), set())
        self.assertEqual([report[key] for key in ("completed", "failed", "rejected")], [30, 0, 0])
        self.assertEqual([report["total_input_tokens"], report["total_output_tokens"]], [600, 270])
        self.assertEqual([b - a for a, b in zip(before, self.totals())], [30, 600, 270])
        self.assertEqual(report["max_concurrent_requests"], 6)
        self.assertEqual(report["request_goodput"], report["request_throughput"])
        self.assertAlmostEqual(report["output_throughput"] * report["duration"], 270, places=3)
        self.assertLessEqual(report["median_ttft_ms"], report["p99_ttft_ms"])
        self.assertLess(report["mean_ttft_ms"], report["mean_e2el_ms"])
        # TPOT and E2EL end with the call, a moment after its last token.
        self.assertAlmostEqual(report["mean_ttft_ms"] + 8 * report["mean_tpot_ms"], report["mean_e2el_ms"], places=3)
        self.assertLessEqual(report["min_stream_tok_s"], report["max_stream_tok_s"])
        tenths = [line for line in said.splitlines() if line.startswith("bench serve ")]
        self.assertLessEqual(len(tenths), 10, said)  # two that pass at once are one line
        self.assertRegex(tenths[-1], r"^bench serve 100 %: 30/30 requests")

    def test_same_seed_same_load(self):
        args = ("--num-prompts", 12, "--input-len", 24, "--output-len", 6, "--length-distribution", "lognormal",
                "--request-rate", 200, "--seed", 3, "--ignore-eos")
        first, second = self.bench(*args)[0], self.bench(*args)[0]
        for key in ("total_input_tokens", "total_output_tokens"):
            self.assertEqual(first[key], second[key])
        self.assertNotEqual(self.bench(*args, "--seed", 4)[0]["total_input_tokens"], first["total_input_tokens"])
        self.assertGreater(first["duration"], 0.01)
        self.assertIn("max_send_delay_ms", first)

    def test_a_shared_prefix_is_on_top(self):
        before = self.totals()
        report, _ = self.bench("--num-prompts", 6, "--input-len", 10, "--output-len", 4, "--ignore-eos",
                               "--shared-prefix-len", 64, "--num-warmups", 0)
        self.assertEqual(report["total_input_tokens"], 6 * 74)
        self.assertEqual(self.totals()[1] - before[1], 6 * 74)

    def test_a_file_of_prompts(self):
        path, saved = os.path.join(self.dir, "prompts.jsonl"), os.path.join(self.dir, "result.json")
        with open(path, "w", encoding="utf-8") as file:
            file.write('{"prompt": "Once upon a time", "output_len": 5}\n{"prompt": [5, 6, 7], "output_len": 3}\n')
        report, _ = self.bench("--dataset", path, "--num-prompts", 0, "--ignore-eos", "--save-result", saved,
                               "--shared-prefix-len", 4, "--metric-percentiles", "50,99.9", "--num-warmups", 1,
                               "--seed", 5, "--input-len", 8)
        self.assertEqual([report["completed"], report["total_output_tokens"]], [2, 8])
        self.assertIn("p99.9_itl_ms", report)
        with open(saved, encoding="utf-8") as file:
            self.assertEqual(json.load(file), report)
        compared = run("bench", "serve", "--address", self.server.address, "--dataset", path, "--num-prompts", 1,
                       "--compare", saved)
        self.assertEqual(compared.returncode, 0, compared.stderr)
        self.assertIn("============ Serving Benchmark Result ============", compared.stdout)
        self.assertRegex(compared.stdout, r"completed +2\.00 +1\.00 +0\.500")

    def test_failures_are_no_good_run(self):
        report, said = self.bench("--num-prompts", 3, "--served-model-name", "other", "--num-warmups", 0, code=65)
        self.assertEqual([report["completed"], report["failed"]], [0, 3])
        self.assertEqual(report["errors_by_status"], {"NOT_FOUND": 3})
        self.assertIn("3 x NOT_FOUND", said)
        self.assertIn("error: 3 of 3 requests failed", said)
        late, _ = self.bench("--num-prompts", 8, "--output-len", 300, "--ignore-eos", "--timeout", 0.02,
                             "--num-warmups", 0, code=75)
        self.assertEqual(late["errors_by_status"], {"DEADLINE_EXCEEDED": late["failed"]})
        self.assertGreater(late["failed"], 0)

    def test_mistakes(self):
        for args, words in ((["--request-rate", "0"], "--request-rate 0"),
                            (["--request-rate", "fast"], "--request-rate fast"),
                            (["--goodput", "ttft:1,speed:2"], "--goodput"),
                            (["--metric-percentiles", "101"], "--metric-percentiles"),
                            (["--input-len", "100000"], "the model's context is"),
                            (["--num-prompts", "0"], "--num-prompts 0"),
                            (["extra"], "unexpected argument")):
            result = run("bench", "serve", "--address", self.server.address, *args)
            self.assertEqual(result.returncode, 64, (args, result.stderr))
            self.assertIn(words, result.stderr)
        self.assertEqual(run("bench", "serve", "--dataset", "/nowhere", "--address", self.server.address).returncode, 65)
        self.assertEqual(run("bench", "serve", "--compare", "/nowhere").returncode, 65)
        self.assertEqual(run("bench", "serve", "--address", "127.0.0.1:1").returncode, 69)


class TestFullServer(unittest.TestCase):
    """One request at a time and one in the queue: the others are told when to come again."""

    def test_rejections(self):
        with Server("--max-num-seqs", "1", "--max-num-queued-reqs", "1") as server:
            args = ["bench", "serve", "--address", server.address, "--json", "--num-prompts", "12", "--input-len", "8",
                    "--output-len", "100", "--ignore-eos", "--num-warmups", "0"]
            result = run(*args, timeout=120)
            report = json.loads(result.stdout)
            self.assertEqual(result.returncode, 75, result.stderr)
            self.assertGreater(report["rejected"], 0)
            self.assertEqual(report["completed"] + report["rejected"], 12)
            self.assertEqual(report["errors_by_status"], {"RESOURCE_EXHAUSTED": report["rejected"]})
            self.assertEqual(report["rejected_without_retry_after"], 0)
            self.assertGreater(report["median_rejection_ms"], 0)
            self.assertEqual(report["total_output_tokens"], 100 * report["completed"])
            again = run(*args, "--retry", timeout=120)
            report = json.loads(again.stdout)
            self.assertEqual(again.returncode, 0, again.stderr)
            self.assertEqual([report["completed"], report["rejected"]], [12, 0])
            self.assertGreater(report["retries"], 0)

    def test_a_server_that_goes_away(self):
        server = Server("--max-num-seqs", "4")

        def kill_when_busy():
            while server.status().requests_running < 4:
                time.sleep(0.01)
            server.process.stop(signal.SIGKILL)
        killer = threading.Thread(target=kill_when_busy)
        killer.start()
        result = run("bench", "serve", "--address", server.address, "--json", "--num-prompts", "200", "--concurrency",
                     "8", "--input-len", "200", "--output-len", "250", "--ignore-eos", "--num-warmups", "0", timeout=120)
        killer.join()
        server.channel.close()
        report = json.loads(result.stdout)
        self.assertEqual(result.returncode, 69, result.stderr)
        self.assertEqual(report["completed"] + report["failed"], 200)
        self.assertIn("UNAVAILABLE", report["errors_by_status"])


class TestEngine(unittest.TestCase):
    @staticmethod
    def bench(*args):
        return run("bench", *args, timeout=120, env={"ASAN_OPTIONS": MPI_ENV["ASAN_OPTIONS"]})

    def test_ranks(self):
        for ranks in (1, 2):
            result = self.bench("engine", DEMO, "-tp", ranks, "--device", "cpu", "--batch", "1,4", "--prompt", 32,
                                "--generate", 8, "--json")
            self.assertEqual(result.returncode, 0, result.stderr)
            lines = [json.loads(line) for line in result.stdout.splitlines()]
            self.assertEqual([line["batch"] for line in lines], [1, 4])
            for line in lines:
                self.assertEqual([line["ranks"], line["prompt"], line["generate"]], [ranks, 32, 8])
                self.assertAlmostEqual(line["decode_tok_s"] * line["decode_s"] / (line["batch"] * 8), 1, places=3)
                self.assertGreater(line["prefill_tok_s"], 0)
                self.assertGreater(line["peak_bytes"], line["weight_bytes"])

    @unittest.skipIf(SANITIZED, "measures the machine for long; test_bench runs the same under the sanitizers")
    def test_trace(self):
        result = self.bench("engine", DEMO, "--device", "cpu", "--batch", 2, "--prompt", 16, "--generate", 4, "--trace")
        self.assertEqual(result.returncode, 0, result.stderr)
        for word in ("attention", "matmul", "add_norm", "swiglu", "% floor", "host"):
            self.assertIn(word, result.stdout)

    def test_mistakes(self):
        for code, args in ((64, []), (64, [DEMO, "--batch", "0"]), (64, [DEMO, "--batch", "0", "-tp", 2]),
                           (65, ["/nowhere"]), (64, [DEMO, "--prompt", 100000])):
            result = self.bench("engine", *args)
            self.assertEqual(result.returncode, code, (args, result.stderr))
            self.assertEqual(len([line for line in result.stderr.splitlines() if line.startswith("error:")]), 1, result.stderr)
        self.assertEqual(run("bench").returncode, 64)
        self.assertEqual(run("bench", "nothing").returncode, 64)

    def test_perplexity(self):
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
            file.write("Once upon a time there was a little fox. " * 12)
            file.flush()
            reports = []
            for ranks in (1, 2):
                result = self.bench("perplexity", DEMO, "--file", file.name, "--device", "cpu", "-tp", ranks, "--json")
                self.assertEqual(result.returncode, 0, result.stderr)
                reports.append(json.loads(result.stdout))
        ids = json.loads(run("tokenize", "--model", DEMO, "--json", "Once upon a time there was a little fox. " * 12).stdout)
        self.assertEqual(reports[0]["tokens"], len(ids["token_ids"]))
        self.assertEqual(reports[0]["scored"], reports[0]["tokens"] - 1)
        self.assertAlmostEqual(reports[0]["nll"] / reports[1]["nll"], 1, places=4)
        # The model was trained on such stories: it is far better than chance over 1024 tokens.
        self.assertLess(reports[0]["perplexity"], 300)

    @unittest.skipIf(SANITIZED, "measures the machine for long")
    def test_table(self):
        result = self.bench("table", "--device", "cpu", "--only", "DeciCoder-1B A10 ", "--scale", 0.01, "--json")
        self.assertEqual(result.returncode, 0, result.stderr)
        rows = [json.loads(line) for line in result.stdout.splitlines()]
        self.assertEqual([row["card_tok_s"] for row in rows], [1364, 3889])
        self.assertEqual([[row["layers"], row["batch"], row["prompt"], row["generate"]] for row in rows], [[1, 2, 6, 6]] * 2)
        for row in rows:
            self.assertGreater(row["output_throughput"], 0)
            self.assertGreater(row["bound_tok_s"], 0)


if __name__ == "__main__":
    unittest.main(verbosity=2)

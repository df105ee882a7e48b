"""The command line: results, and every classic mistake with its exit code, one line of cause, and a fix."""
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
import unittest
import xml.dom.minidom

from harness import DEMO, MPI_ENV, Server, program, run


class TestCommands(unittest.TestCase):
    def test_generate_with_private_server(self):
        result = run("generate", "--model", DEMO, "-tp", "2", "--temperature", "0", "--max-tokens", "20", "--json",
                     "The little fox")
        self.assertEqual(result.returncode, 0, result.stderr)
        answer = json.loads(result.stdout)
        self.assertEqual(len(answer["token_ids"]), answer["usage"]["completion_tokens"])
        self.assertIn(answer["finish_reason"], ("stop", "length"))
        text = run("detokenize", "--model", DEMO, "--skip-special-tokens", *answer["token_ids"])
        self.assertEqual(text.stdout.rstrip("\n"), answer["text"].rstrip("\n"))

    def test_tokenize_round_trip(self):
        text = "The fox said: \"Hello, Grüße, 日本!\"\n  two spaces"
        ids = json.loads(run("tokenize", "--model", DEMO, "--json", "--", text).stdout)["token_ids"]
        again = json.loads(run("detokenize", "--model", DEMO, "--json", "--skip-special-tokens", *ids).stdout)["text"]
        self.assertEqual(again, text)
        from_stdin = json.loads(run("tokenize", "--model", DEMO, "--json", "--file", "-", stdin=text).stdout)
        self.assertEqual(from_stdin["token_ids"], ids)

    def test_plan(self):
        plan = json.loads(run("plan", DEMO, "-tp", "3", "--json").stdout)
        self.assertEqual(plan["kv_replication_factor"], 1.0)
        for layer in plan["layers"]:
            owned = [0] * (layer["kv_heads"] * plan["lanes"])
            heads = []
            for rank in layer["ranks"]:
                heads += range(*rank["q_heads"])
                for kv in rank["kv_heads"]:
                    for lane in kv["lanes"]:
                        owned[kv["head"] * plan["lanes"] + lane] += 1
            self.assertEqual(owned, [1] * len(owned))
            self.assertEqual(heads, list(range(layer["q_heads"])))
        split = json.loads(run("plan", DEMO, "-tp", "3", "--kv-placement", "token", "--json").stdout)
        self.assertEqual((split["kv_replication_factor"], split["lanes"], split["stripe_blocks"]), (1.0, 1, 3))
        for layer in (l for l in split["layers"] if l["kv_placement"] == "token"):
            owned = sorted((kv["head"], b) for rank in layer["ranks"] for kv in rank["kv_heads"] for b in kv["blocks"])
            self.assertEqual(owned, [(h, b) for h in range(layer["kv_heads"]) for b in range(3)])
        copied = json.loads(run("plan", DEMO, "-tp", "4", "--kv-placement", "replicate", "--json").stdout)
        self.assertGreater(copied["kv_replication_factor"], 1.2)
        text = run("plan", DEMO, "-tp", "4").stdout
        self.assertLessEqual(max(len(line) for line in text.splitlines()), 80)

    def test_plan_draws(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "plan.svg")
            result = run("plan", DEMO, "-tp", "3", "--svg", path)
            self.assertEqual(result.returncode, 0, result.stderr)
            self.assertIn("KV heads by rank", result.stdout)
            svg = xml.dom.minidom.parse(path).documentElement
            self.assertEqual(svg.tagName, "svg")
            texts = [t.firstChild.data for t in svg.getElementsByTagName("text")]
            for rank in range(3):
                self.assertIn(f"rank {rank}", texts)
            self.assertGreater(len(svg.getElementsByTagName("rect")), 20)
            missing = run("plan", DEMO, "--svg", os.path.join(folder, "none", "plan.svg"))
            self.assertEqual(missing.returncode, 69)
        table = run("plan", DEMO, "-tp", "4", "--table").stdout
        self.assertIn("query heads|KV heads", table)
        self.assertLessEqual(max(len(line) for line in table.splitlines()), 80)

    def test_plan_predicts(self):
        args = ("plan", DEMO, "-tp", "2", "--gpu", "h100", "--workload", "64/64", "--concurrency", "8")
        text = run(*args).stdout
        self.assertIn("prediction for h100", text)
        self.assertIn("expected reaches, of bandwidth: matmul 0.87", text)
        self.assertLessEqual(max(len(line) for line in text.splitlines()), 80)
        plan = json.loads(run(*args, "--json").stdout)
        prediction = plan["prediction"]
        for way in ("bound", "expected"):
            step = prediction[way]["decode_step_s"]
            self.assertAlmostEqual(sum(s for op, s in step.items() if op != "total"), step["total"], delta=1e-9)
            self.assertAlmostEqual(prediction[way]["decode_tokens_per_s"] * step["total"], 8, delta=1e-3)
        self.assertLess(prediction["expected"]["tokens_per_s"], prediction["bound"]["tokens_per_s"])
        self.assertEqual(len(prediction["layers"]), len(plan["layers"]))
        self.assertTrue(all(layer["collective_bytes"] > 0 for layer in prediction["layers"]))

    def test_plan_ranks_layouts(self):
        text = run("plan", DEMO, "--auto", "--gpu", "a100-80g", "--gpus", "4").stdout
        self.assertIn("best: -tp 1 -pp 1 --replicas 4", text)
        self.assertLessEqual(max(len(line) for line in text.splitlines()), 80)
        found = json.loads(run("plan", DEMO, "--auto", "--gpu", "a100-80g", "--gpus", "4", "--objective", "latency",
                               "--json").stdout)["candidates"]
        times = [c["inter_token_s"] for c in found if c["fits"]]
        self.assertEqual(times, sorted(times))
        small = run("plan", DEMO, "--auto", "--gpu", "a10", "--gpus", "2", "--gpu-memory-utilization", "0.01",
                    "--workload", "4096/1000000")
        self.assertEqual(small.returncode, 78, small.stdout)
        self.assertRegex(small.stderr, r"needs [\d.]+ GB of a rank")
        self.assertEqual(run("plan", DEMO, "--auto").returncode, 64)
        self.assertEqual(run("plan", DEMO, "--gpu", "h100", "--workload", "512").returncode, 64)

    def test_plan_measures(self):
        with tempfile.TemporaryDirectory() as folder:
            rates = os.path.join(folder, "rates.json")
            for args in ((), ("-tp", "2")):
                # One thread a rank: teams of threads wait for each other on a busy machine.
                result = run("plan", DEMO, "--measure", "--device", "cpu", "--rates", rates, "--json", *args,
                             env={"KVASIR_THREADS": "1", "ASAN_OPTIONS": MPI_ENV["ASAN_OPTIONS"]}, timeout=240)
                self.assertEqual(result.returncode, 0, result.stderr)
                measured = json.loads(result.stdout)["prediction"]
                self.assertEqual(measured["rates"], "measured")
                self.assertGreater(measured["expected"]["tokens_per_s"], 0)
                again = json.loads(run("plan", DEMO, "--rates", rates, "--json", *args).stdout)["prediction"]
                self.assertEqual(again["expected"], measured["expected"])
            with open(rates, "w", encoding="utf-8") as file:
                file.write("{}")
            broken = run("plan", DEMO, "--rates", rates)
            self.assertEqual(broken.returncode, 65)
            self.assertIn("rates: name", broken.stderr)

    def test_chat_continues(self):
        result = run("chat", "--model", DEMO, "--temperature", "0", "--max-tokens", "12", stdin="Once upon a time\n/quit\n")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertGreater(len(result.stdout.strip()), 10)

    def test_doctor(self):
        result = run("doctor", DEMO, "--listen", "127.0.0.1:50762", "--json")
        findings = {f["check"]: f for f in json.loads(result.stdout)}
        self.assertEqual(findings["model"]["verdict"], "OK", findings)
        self.assertEqual(findings["ranks"]["verdict"], "OK", findings)

    def test_help_and_version(self):
        self.assertEqual(run("--help").returncode, 0)
        self.assertRegex(run("--version").stdout, r"^kvasir \d+\.\d+\.\d+")
        for command in ("serve", "generate", "chat", "plan", "tokenize", "detokenize", "doctor", "status", "bench"):
            result = run(command, "--help")
            self.assertEqual(result.returncode, 0, command)
            self.assertIn("usage: kvasir", result.stdout)
        for part in ("serve", "engine", "table", "perplexity"):
            result = run("bench", part, "--help")
            self.assertEqual(result.returncode, 0, part)
            self.assertIn(f"usage: kvasir bench {part}", result.stdout)
        self.assertEqual(subprocess.run([program("kvasir-worker"), "--help"], capture_output=True).returncode, 0)


class TestMistakes(unittest.TestCase):
    """Exit code, one `error:` line that says the cause, a `fix:` where one is known, in under 2 s."""

    def setUp(self):
        self.dir = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.dir)

    def model(self, **changes):
        path = os.path.join(self.dir, "model")
        shutil.copytree(DEMO, path, ignore=shutil.ignore_patterns("*.py", "*.md"))
        if changes:
            name = os.path.join(path, "config.json")
            with open(name) as f:
                config = json.load(f)
            config.update(changes)
            with open(name, "w") as f:
                json.dump(config, f)
        return path

    def mistake(self, code, words, *args, fix=True):
        started = time.monotonic()
        result = run(*args, timeout=20)
        took = time.monotonic() - started
        errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
        self.assertEqual(result.returncode, code, result.stderr)
        self.assertEqual(len(errors), 1, result.stderr)
        for word in words:
            self.assertIn(word, errors[0])
        if fix:
            self.assertIn("  fix: ", result.stderr)
        self.assertLess(took, 4)  # 2 s on an idle machine
        left = subprocess.run(["pgrep", "-f", self.dir], capture_output=True, text=True).stdout
        self.assertEqual(left, "", "left running")

    def serve(self, code, words, model, *args, **options):
        self.mistake(code, words, "serve", model, "--listen", "127.0.0.1:0", *args, **options)

    def test_wrong_path(self):
        self.serve(65, ["/no/such/model"], "/no/such/model")

    def test_directory_without_config(self):
        self.serve(65, ["config.json"], self.dir)

    def test_truncated_shard(self):
        path = self.model()
        weights = os.path.join(path, "model.safetensors")
        os.truncate(weights, os.path.getsize(weights) - 1000)
        self.serve(65, ["model.safetensors"], path, fix=False)

    def test_header_that_lies(self):
        path = self.model()
        with open(os.path.join(path, "model.safetensors"), "r+b") as f:
            f.write((2**62).to_bytes(8, "little"))
        self.serve(65, ["model.safetensors"], path, fix=False)

    def test_missing_weights(self):
        path = self.model()
        os.remove(os.path.join(path, "model.safetensors"))
        self.serve(65, ["safetensors"], path)

    def test_wrong_shape(self):
        self.serve(65, ["mlp.gate_proj.weight", "[64, "], self.model(intermediate_size=64), fix=False)

    def test_unknown_architecture(self):
        self.serve(65, ["MambaForCausalLM"], self.model(architectures=["MambaForCausalLM"], model_type="mamba"))

    def test_more_ranks_than_heads(self):
        self.serve(78, ["99"], DEMO, "-tp", "99")

    def test_port_in_use(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            self.mistake(69, [f"127.0.0.1:{port}", "in use"], "serve", DEMO, "--listen", f"127.0.0.1:{port}")

    def test_unknown_flag(self):
        self.serve(64, ["--tensor-paralel-size"], DEMO, "--tensor-paralel-size", "2")

    def test_bad_value(self):
        self.serve(64, ["max-num-seqs", "0"], DEMO, "--max-num-seqs", "0", fix=False)

    def test_more_stages_than_layers(self):
        self.serve(78, ["pipeline-parallel-size 99", "6 layers"], DEMO, "-pp", "99")

    def test_plan_that_does_not_fit(self):
        self.mistake(78, ["GB of KV for a sequence of 512 tokens"], "plan", DEMO, "--memory-bytes", "39M", "--max-num-seqs", "4",
                     "--gpu-memory-utilization", "0.85")

    @unittest.skipIf(os.path.exists("/dev/nvidiactl"), "there is an NVIDIA driver here")
    def test_cuda_where_there_is_none(self):
        self.serve(78, ["--device cuda"], DEMO, "--device", "cuda")

    def test_no_server(self):
        self.mistake(69, ["127.0.0.1:1"], "generate", "--address", "127.0.0.1:1", "Once")

    def test_unknown_command(self):
        self.mistake(64, ["serv"], "serv", DEMO)

    def test_not_built_commands(self):
        for command in ("batch", "top"):
            self.mistake(69, [command], command, fix=False)

    def test_context_too_long(self):
        self.serve(64, ["max-model-len", "100000"], DEMO, "--max-model-len", "100000", fix=False)

    def test_kv_cache_too_small(self):
        self.serve(78, ["KV"], DEMO, "--kv-cache-memory", "1000")


if __name__ == "__main__":
    unittest.main(verbosity=2)

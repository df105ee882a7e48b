"""256 streams at once: every one complete, none mixed up, nothing kept afterwards; nor of requests that are cancelled."""
import json
import threading
import time
import unittest

from harness import SANITIZED, Result, Server, generate, request, run

N_STREAMS = 256


def resident_kb(pid):
    with open(f"/proc/{pid}/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("VmRSS"))


class TestLoad(unittest.TestCase):
    def test_256_streams(self):
        with Server("-tp", "2") as server:
            alone = {i: Result(server.inference.Generate(self.message(i))).ids for i in range(8)}
            sizes = []
            for _ in range(1 if SANITIZED else 3):
                self.wave(server, alone)
                sizes.append(resident_kb(server.process.child.pid))
                status = server.status()
                self.assertEqual(sum(g.kv_blocks_used + g.running + g.waiting for g in status.groups), 0)
                self.assertEqual(status.requests_running + status.requests_waiting, 0)
            if not SANITIZED:
                self.assertLess(sizes[2], sizes[1] * 1.05 + 1024)  # the first wave warms up allocators

    def test_created_and_cancelled(self):
        """At every age, from before they are read to a few tokens old: no block, place or byte stays with them."""
        with Server("-tp", "2", "--max-num-seqs", "16") as server:
            before = generate(server, "Once upon a time", temperature=0, max_tokens=32).ids
            sizes = []
            for _ in range(1 if SANITIZED else 2):
                self.storm(server, 100 if SANITIZED else 1000)
                sizes.append(sum(map(resident_kb, [server.process.child.pid, *server.worker_pids()])))
            self.assertEqual(generate(server, "Once upon a time", temperature=0, max_tokens=32).ids, before)
            if not SANITIZED:
                self.assertLess(sizes[1], sizes[0] * 1.05)

    def storm(self, server, n):
        result = run("bench", "serve", "--address", server.address, "--num-prompts", n, "--concurrency", 64, "--input-len", 20,
                     "--output-len", 8, "--cancel-after", 3, "--num-warmups", 0, "--retry", "--no-progress", "--json", timeout=120)
        self.assertEqual(result.returncode, 0, result.stderr)
        report = json.loads(result.stdout)
        self.assertEqual([report["completed"] + report["cancelled"], report["failed"]], [n, 0])
        self.assertGreater(report["cancelled"], 0.9 * n)
        end = time.monotonic() + 10
        while self.kept(server) > 0 and time.monotonic() < end:
            time.sleep(0.02)  # what is cancelled leaves within a step
        self.assertEqual(self.kept(server), 0)

    @staticmethod
    def kept(server):
        status = server.status()
        return sum(g.kv_blocks_used + g.running + g.waiting for g in status.groups) + status.requests_running

    @staticmethod
    def message(i):
        return request("Once upon a time", temperature=1, seed=i % 8, max_tokens=24, ignore_eos=True)

    def wave(self, server, alone):
        results, errors = {}, []

        def ask(i):
            try:
                results[i] = Result(server.inference.Generate(self.message(i), timeout=120))
            except Exception as error:  # noqa: BLE001 - every failure is reported
                errors.append(error)
        threads = [threading.Thread(target=ask, args=(i,)) for i in range(N_STREAMS)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        self.assertEqual(errors, [])
        for i in range(N_STREAMS):
            self.assertEqual(results[i].ids, alone[i % 8])
            self.assertEqual(results[i].reason, "LENGTH")


if __name__ == "__main__":
    unittest.main(verbosity=2)

"""Deadlines: refused when they cannot be met, and the end of the work when they pass, whoever notices."""
import os
import re
import shutil
import signal
import socket
import time
import unittest
import urllib.request

import grpc
from harness import Server, cpu_seconds, generate, inference_pb2, made_up_model, request

PROMPT = "Once upon a time"


class TestDeadline(unittest.TestCase):
    def failure(self, server, timeout, **fields):
        with self.assertRaises(grpc.RpcError) as caught:
            list(server.inference.Generate(request(PROMPT, temperature=0, ignore_eos=True, **fields), timeout=timeout))
        self.assertEqual(caught.exception.code(), grpc.StatusCode.DEADLINE_EXCEEDED)
        return caught.exception

    def wait_idle(self, server):
        end = time.monotonic() + 5
        while time.monotonic() < end:
            status = server.status()
            if sum(g.running + g.waiting + g.kv_blocks_used for g in status.groups) == 0:
                return
            time.sleep(0.02)
        self.fail(f"still at work: {status}")

    def test_deadline(self):
        with socket.create_server(("127.0.0.1", 0)) as free:
            http = "%s:%d" % free.getsockname()
        model = made_up_model()  # slower than the demo model: a second is some hundred tokens
        self.addCleanup(shutil.rmtree, model)
        with Server("-tp", "2", "--threads", "1", "--load-format", "dummy", "--http", http, model=model) as server:
            info = server.inference.GetModelInfo(inference_pb2.GetModelInfoRequest(), timeout=10)
            most = info.context_length - 16
            self.failure(server, 0.5, max_tokens=most)  # nothing is known: it is tried
            self.wait_idle(server)
            generate(server, PROMPT, temperature=0, max_tokens=64, ignore_eos=True)
            error = self.failure(server, 1, max_tokens=most)  # a small part of what it needs
            self.assertIn("estimated", error.details())
            self.left_alone(server, info.eos_token_ids, most)
            self.wait_idle(server)
            with urllib.request.urlopen(f"http://{http}/metrics", timeout=10) as page:
                text = page.read().decode()
            rejected = re.search(r'^kvasir_requests_rejected_total\{.*reason="deadline".*\} (\S+)$', text, re.M)
            self.assertEqual(float(rejected.group(1)), 1)
            late = re.search(r'^kvasir_request_success_total\{.*finished_reason="deadline".*\} (\S+)$', text, re.M)
            self.assertEqual(float(late.group(1)), 2)

    def left_alone(self, server, eos_ids, most):
        """While the coordinator stands still, the worker's own clock ends the work."""
        long = request(PROMPT, temperature=0, max_tokens=most)  # might end any time, as far as anybody knows
        for eos in eos_ids:
            long.sampling.logit_bias.add(token_id=eos, bias=-100)
        events = server.inference.Generate(long, timeout=0.7)
        next(events)
        coordinator = server.process.child.pid
        ranks = server.worker_pids()
        os.kill(coordinator, signal.SIGSTOP)
        try:
            time.sleep(1)
            before = cpu_seconds(ranks)
            time.sleep(0.6)
            self.assertLess(cpu_seconds(ranks) - before, 0.3 * len(ranks))
        finally:
            os.kill(coordinator, signal.SIGCONT)
        with self.assertRaises(grpc.RpcError):
            list(events)


if __name__ == "__main__":
    unittest.main(verbosity=2)

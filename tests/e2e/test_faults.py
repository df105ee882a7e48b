"""Cancellation, deadlines, bad fields, a killed rank, drain: what is refused, how it ends, what is left behind."""
import os
import signal
import subprocess
import threading
import time
import unittest

import grpc
from harness import DEMO, MPI_ENV, Process, Server, generate, inference_pb2, program, request, run


def eventually(condition, timeout=10):
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


def busy(status):
    return sum(g.kv_blocks_used + g.running + g.waiting for g in status.groups)


class TestRequests(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server("-tp", "2")

    @classmethod
    def tearDownClass(cls):
        cls.server.close()

    def refused(self, code, *words, **fields):
        prompt = fields.pop("prompt_value", "Once")
        with self.assertRaises(grpc.RpcError) as caught:
            list(self.server.inference.Generate(request(prompt, **fields), timeout=20))
        self.assertEqual(caught.exception.code(), code, caught.exception.details())
        for word in words:
            self.assertIn(word, caught.exception.details())
        return caught.exception

    def test_cancel_mid_stream_frees_kv(self):
        call = self.server.inference.Generate(request("Once", max_tokens=400, n=8, ignore_eos=True, temperature=1))
        for _, response in zip(range(8), call):
            pass
        self.assertGreater(busy(self.server.status()), 0)
        call.cancel()
        self.assertTrue(eventually(lambda: busy(self.server.status()) == 0), self.server.status())
        self.assertTrue(generate(self.server, "Once", max_tokens=4, ignore_eos=True).ids)

    def test_deadline(self):
        started = time.monotonic()
        with self.assertRaises(grpc.RpcError) as caught:
            # Many at once, so that none is done within the deadline.
            calls = [self.server.inference.Generate(
                request("Once", max_tokens=480, ignore_eos=True), timeout=0.15) for _ in range(32)]
            for call in calls:
                list(call)
        self.assertEqual(caught.exception.code(), grpc.StatusCode.DEADLINE_EXCEEDED)
        self.assertLess(time.monotonic() - started, 3)
        self.assertTrue(eventually(lambda: busy(self.server.status()) == 0))

    def test_bad_fields_name_field_value_and_limit(self):
        invalid = grpc.StatusCode.INVALID_ARGUMENT
        self.refused(invalid, "temperature", "-1", temperature=-1)
        self.refused(invalid, "temperature", "nan", temperature=float("nan"))
        self.refused(invalid, "temperature", "100", temperature=float("inf"))
        self.refused(invalid, "top_p", "1.5", top_p=1.5)
        self.refused(invalid, "top_p", top_p=0.0)
        self.refused(invalid, "min_p", min_p=-0.5)
        self.refused(invalid, "max_tokens", "0", max_tokens=0)
        self.refused(invalid, "logprobs", "21", "20", logprobs=21)
        self.refused(invalid, "stop", stop=[""])
        self.refused(invalid, "stop_token_ids", "99999", stop_token_ids=[99999])
        self.refused(invalid, "prompt", prompt_value="")
        self.refused(invalid, "prompt_token_ids", "70000", prompt_value=[5, 70000])

    def test_context_overflow_gives_the_three_numbers(self):
        length = self.server.inference.GetModelInfo(
            inference_pb2.GetModelInfoRequest()).context_length
        self.refused(grpc.StatusCode.INVALID_ARGUMENT, "prompt of 4 tokens", str(length - 3), str(length),
                     prompt_value=[5, 6, 7, 8], max_tokens=length - 3)
        self.assertEqual(len(generate(self.server, [5, 6, 7, 8], max_tokens=length - 4, ignore_eos=True).ids), length - 4)

    def test_not_built_is_said(self):
        self.refused(grpc.StatusCode.UNIMPLEMENTED, "resume_from", resume_from=3)

    def test_unknown_model(self):
        self.refused(grpc.StatusCode.NOT_FOUND, "no-such", model="no-such")

    def test_duplicate_live_request_id(self):
        call = self.server.inference.Generate(
            request("Once", max_tokens=480, n=16, ignore_eos=True, request_id="same"))
        next(call)
        self.refused(grpc.StatusCode.ALREADY_EXISTS, "same", request_id="same")
        call.cancel()
        self.assertTrue(eventually(lambda: busy(self.server.status()) == 0))
        self.assertTrue(generate(self.server, "Once", request_id="same").ids)

    def test_unsupported_services_say_so(self):
        method = self.server.channel.unary_unary("/kvasir.v1.Batch/GetBatch")
        with self.assertRaises(grpc.RpcError) as caught:
            method(b"", timeout=5)
        self.assertEqual(caught.exception.code(), grpc.StatusCode.UNIMPLEMENTED)

    def test_idle_ranks_do_not_burn_a_core(self):
        generate(self.server, "Once", max_tokens=4)
        time.sleep(5)
        ticks = os.sysconf("SC_CLK_TCK")

        def cpu(pid):
            with open(f"/proc/{pid}/stat") as f:
                fields = f.read().rsplit(")", 1)[1].split()
            return (int(fields[11]) + int(fields[12])) / ticks
        pids = self.server.worker_pids()
        self.assertEqual(len(pids), 2)
        before = {pid: cpu(pid) for pid in pids}
        time.sleep(5)
        for pid in pids:
            self.assertLess((cpu(pid) - before[pid]) / 5, 0.02)


class TestLife(unittest.TestCase):
    def test_killed_rank_comes_back(self):
        with Server("-tp", "2") as server:
            generation = server.status().groups[0].generation
            failure = []

            def ask():
                try:
                    for _ in range(200):
                        list(server.inference.Generate(request("Once", max_tokens=480, ignore_eos=True), timeout=60))
                except grpc.RpcError as error:
                    failure.append(error)

            def search():
                answer = server.inference.Complete(request("Once", beam_width=8, n=2, max_tokens=450), timeout=60)
                return [[t.id for t in c.tokens] for c in answer.choices]
            found = []
            beams = threading.Thread(target=lambda: found.append(search()))
            thread = threading.Thread(target=ask)
            beams.start()
            thread.start()
            time.sleep(0.3)
            os.kill(server.worker_pids()[-1], signal.SIGKILL)
            killed = time.monotonic()
            thread.join()
            self.assertEqual(failure[0].code(), grpc.StatusCode.UNAVAILABLE)
            self.assertIn("lost", failure[0].details())

            def served():
                try:
                    return len(generate(server, "Once", max_tokens=4, ignore_eos=True).ids) == 4
                except grpc.RpcError as error:
                    self.assertEqual(error.code(), grpc.StatusCode.UNAVAILABLE)
                    return False
            self.assertTrue(eventually(served, 10), server.process.stderr())
            self.assertLess(time.monotonic() - killed, 10)
            group = server.status().groups[0]
            self.assertEqual((group.generation, group.restarts), (generation + 1, 1))
            beams.join()  # of it nothing had been said: it starts again
            self.assertEqual(found, [search()])

    def test_sigterm_drains(self):
        server = Server("-tp", "2")
        pids = server.worker_pids()
        call = server.inference.Generate(request("Once", max_tokens=300, ignore_eos=True), timeout=60)
        next(call)
        server.process.child.send_signal(signal.SIGTERM)
        tokens = sum(len(r.token.tokens) for r in call)
        self.assertEqual(tokens, 300)  # what was accepted is finished
        self.assertEqual(server.process.stop(), 0)
        self.assertTrue(eventually(lambda: not any(os.path.exists(f"/proc/{p}") for p in pids)))
        server.channel.close()

    def test_second_sigterm_is_now(self):
        server = Server("-tp", "2")
        pids = server.worker_pids()
        call = server.inference.Generate(request("Once", max_tokens=480, ignore_eos=True))
        next(call)
        started = time.monotonic()
        server.process.child.send_signal(signal.SIGSTOP)  # both signals wait for it, so that both come
        server.process.child.send_signal(signal.SIGTERM)
        server.process.child.send_signal(signal.SIGCONT)
        time.sleep(0.05)
        server.process.child.send_signal(signal.SIGTERM)
        server.process.wait(10)
        self.assertLess(time.monotonic() - started, 6)
        self.assertTrue(eventually(lambda: not any(os.path.exists(f"/proc/{p}") for p in pids)))
        server.channel.close()

    def test_coordinator_killed_leaves_nothing(self):
        server = Server("-tp", "2")
        pids = server.worker_pids()
        server.process.child.kill()
        server.process.wait()
        self.assertTrue(eventually(lambda: not any(os.path.exists(f"/proc/{p}") for p in pids)), pids)
        server.channel.close()

    def test_worker_by_hand_joins(self):
        coordinator = Process([program("kvasir-coordinator"), DEMO, "-tp", "2", "--launcher", "none",
                               "--listen", "127.0.0.1:0"])
        address = coordinator.wait_line("listening:", 20)
        worker = Process(["mpirun", "--oversubscribe", "--bind-to", "none", "-n", "2", program("kvasir-worker"),
                          "--coordinator", address], env=MPI_ENV)
        coordinator.wait_line("ready:", 30)
        result = run("generate", "--address", address, "--max-tokens", "5", "--json", "Once")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(coordinator.stop(), 0)
        self.assertEqual(worker.wait(), 0, worker.stderr())

    def test_wrong_number_of_ranks_is_refused(self):
        coordinator = Process([program("kvasir-coordinator"), DEMO, "-tp", "2", "--listen", "127.0.0.1:0"])
        address = coordinator.wait_line("listening:", 20)
        worker = Process(["mpirun", "--oversubscribe", "--bind-to", "none", "-n", "1", program("kvasir-worker"),
                          "--coordinator", address], env=MPI_ENV)
        self.assertEqual(worker.wait(), 78)
        self.assertIn("fix:", worker.stderr())
        self.assertEqual(coordinator.stop(), 0)

    def test_one_mpirun_for_everything(self):
        job = Process(["mpirun", "--oversubscribe", "--bind-to", "none", "-n", "1", program("kvasir-coordinator"), DEMO,
                       "-tp", "2", "--listen", "127.0.0.1:50761", ":", "-n", "2", program("kvasir-worker"),
                       "--coordinator", "127.0.0.1:50761"], env=MPI_ENV)
        job.wait_line("ready:", 40)
        result = run("generate", "--address", "127.0.0.1:50761", "--max-tokens", "5", "--json", "Once")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn(job.stop(), (0, 1, 143))  # mpirun itself was told to stop
        self.assertTrue(eventually(lambda: subprocess.run(["pgrep", "-f", "127.0.0.1:50761"],
                                                          capture_output=True).returncode != 0))


if __name__ == "__main__":
    unittest.main(verbosity=2)

"""256 streams at once: every one complete, none mixed up, nothing kept afterwards."""
import threading
import unittest

from harness import SANITIZED, Result, Server, request

N_STREAMS = 256


def resident_kb(pid):
    with open(f"/proc/{pid}/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("VmRSS"))


class TestLoad(unittest.TestCase):
    def test_256_streams(self):
        with Server("-tp", "2") as server:
            alone = {i: Result(server.inference.Generate(self.message(i))).ids for i in range(8)}
            sizes = []
            for _ in range(3):
                self.wave(server, alone)
                sizes.append(resident_kb(server.process.child.pid))
                status = server.status()
                self.assertEqual(sum(g.kv_blocks_used + g.running + g.waiting for g in status.groups), 0)
                self.assertEqual(status.requests_running + status.requests_waiting, 0)
            if not SANITIZED:
                self.assertLess(sizes[2], sizes[1] * 1.05 + 1024)  # the first wave warms up allocators

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

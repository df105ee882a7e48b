"""Every hostile model directory of make.py, given to the real program.

Each must end with 65 (data), one finding, and that one names the file, the tensor or field and the rule; in under a
second and 64 MiB, without a crash and without running anything of the directory. Directories that only look strange
must pass. Some go through `kvasir serve` as well.
"""
import json
import os
import subprocess
import sys
import tempfile
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
sys.modules.setdefault("make", __import__("make"))
import make  # noqa: E402

PROGRAM = os.path.join(os.environ["KVASIR_BIN"], "kvasir")
SANITIZED = bool(os.environ.get("KVASIR_SANITIZE"))  # sizes and times mean little then
MAX_BYTES = 64 << 20
MAX_SECONDS = 20 if SANITIZED else 1  # of processor time: other programs may be running
NOBODY = 65534


class Answer:
    """What a run of the program said, and what it took."""

    def __init__(self, *args, cwd, user=None, timeout=60):
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            child = subprocess.Popen([PROGRAM, *args], stdout=out, stderr=err, cwd=cwd, user=user,
                                     start_new_session=True)
            started = time.monotonic()
            while True:
                pid, status, usage = os.wait4(child.pid, os.WNOHANG)
                if pid != 0:
                    break
                if time.monotonic() - started > timeout:
                    child.kill()
                time.sleep(0.002)
            child.returncode = os.waitstatus_to_exitcode(status)
            out.seek(0)
            err.seek(0)
            self.out = out.read().decode()
            self.err = err.read().decode()
        self.code = child.returncode
        self.bytes = usage.ru_maxrss * 1024
        self.seconds = usage.ru_utime + usage.ru_stime


class TestHostile(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        # The one link out that is followed is ../../blobs, so models lie two levels down.
        cls.home = tempfile.TemporaryDirectory()
        cls.models = os.path.join(cls.home.name, "cache", "snapshots")
        os.makedirs(cls.models)
        cls.cases = make.load_cases()
        cls.paths = {name: os.path.join(cls.models, name) for name in cls.cases}
        # By another process: what this one has grown to would be counted as its children's peak.
        subprocess.run([sys.executable, make.__file__, cls.models], check=True, stdout=subprocess.DEVNULL)

    @classmethod
    def tearDownClass(cls):
        cls.home.cleanup()

    def check_cost(self, answer):
        self.assertLess(answer.seconds, MAX_SECONDS)
        if not SANITIZED:
            self.assertLess(answer.bytes, MAX_BYTES)

    def check_nothing_ran(self):
        for path in (self.home.name, *self.paths.values()):
            self.assertFalse(os.path.exists(os.path.join(path, "executed")), path)

    def refused(self, case, answer):
        self.assertEqual(answer.code, 65, answer.out + answer.err)
        found = [line for line in answer.out.split("\n") if line.startswith("FAIL")]
        self.assertEqual(len(found), 1, answer.out)
        said = answer.out[answer.out.index(found[0]):].split("\nOK")[0]  # the fix stands on the next line
        for word in case.words:
            self.assertIn(word, said)
        self.assertEqual(answer.err, "")

    def test_doctor_names_what_is_wrong(self):
        n_bad = 0
        for name, case in self.cases.items():
            with self.subTest(name):
                answer = Answer("doctor", self.paths[name], "--check", "model", cwd=self.home.name)
                if case.good:
                    self.assertEqual(answer.code, 0, answer.out + answer.err)
                    for word in case.words:
                        self.assertIn(word, answer.out)
                else:
                    self.refused(case, answer)
                    n_bad += 1
                self.check_cost(answer)
        self.check_nothing_ran()
        self.assertGreaterEqual(n_bad, 80)
        print(f"{n_bad} hostile directories refused", file=sys.stderr)

    def test_serve_refuses_the_same(self):
        for name, case in self.cases.items():
            if not case.served:
                continue
            with self.subTest(name):
                answer = Answer("serve", self.paths[name], "--listen", "127.0.0.1:0", cwd=self.home.name)
                self.assertEqual(answer.code, 65, answer.err)
                errors = [line for line in answer.err.splitlines() if line.startswith("error:")]
                self.assertEqual(len(errors), 1, answer.err)
                said = answer.err[answer.err.index(errors[0]):]
                for word in case.words:
                    self.assertIn(word, said)
        self.check_nothing_ran()

    def test_doctor_says_all_at_once(self):
        model = make.Model()
        model.config["hidden_act"] = "gelu"
        model.weights.header["model.norm.weight"]["dtype"] = "BF17"
        model.tokenizer = b"{"
        path = os.path.join(self.models, "all-at-once")
        model.write(path)
        answer = Answer("doctor", path, "--check", "model", "--json", cwd=self.home.name)
        self.assertEqual(answer.code, 65)
        found = {f["check"]: f for f in json.loads(answer.out)}
        for check, words in (("model", "hidden_act gelu"), ("weights", "tensor model.norm.weight: dtype"),
                             ("tokenizer", "tokenizer.json")):
            self.assertEqual(found[check]["verdict"], "FAIL")
            self.assertIn(words, found[check]["fact"])

    def test_doctor_counts_every_tensor_that_does_not_fit(self):
        model = make.Model()
        model.config["intermediate_size"] = make.N_FF + 2
        path = os.path.join(self.models, "another-width")
        model.write(path)
        answer = Answer("doctor", path, "--check", "model", cwd=self.home.name)
        self.assertEqual(answer.code, 65)
        n_wrong = 3 * make.N_LAYERS
        self.assertRegex(answer.out, rf"FAIL +tensors .*model.layers.0.mlp.gate_proj.weight is \[24, 16\], config.json "
                                     rf"needs \[26, 16\] \(and {n_wrong - 1} more of 21 tensors\)")

    def test_what_is_no_directory(self):
        file = os.path.join(self.paths["control"], "config.json")
        for path, words in (("/no/such/model", ["/no/such/model"]), ("Deci/DeciLM-7B", ["nothing is downloaded"]),
                            (file, ["config.json", "not a model directory"]), ("", ["no model directory"])):
            with self.subTest(path):
                answer = Answer("doctor", path, "--check", "model", cwd=self.home.name)
                self.assertEqual(answer.code, 65, answer.out + answer.err)
                self.assertEqual(answer.out.count("FAIL"), 1, answer.out)
                for word in words:
                    self.assertIn(word, answer.out)

    def test_files_that_may_not_be_read(self):
        user = None
        if os.geteuid() == 0:
            user = NOBODY
            os.chmod(self.home.name, 0o755)
            probe = subprocess.run([PROGRAM, "--version"], user=user, capture_output=True) \
                if all_may_enter(PROGRAM) else None
            if probe is None or probe.returncode != 0:
                self.skipTest("started as root, and nobody else may run the program where it lies")
        for file in ("config.json", "model.safetensors", "tokenizer.json"):
            with self.subTest(file):
                model = make.Model()
                path = os.path.join(self.models, "closed-" + file)
                model.write(path)
                os.chmod(os.path.join(path, file), 0)
                answer = Answer("doctor", path, "--check", "model", cwd="/", user=user)
                self.assertEqual(answer.code, 65, answer.out + answer.err)
                self.assertEqual(answer.out.count("FAIL"), 1, answer.out)
                self.assertIn(f"{file}: Permission denied", answer.out)

    def test_scan_finds_what_is_no_number(self):
        answer = Answer("doctor", self.paths["weights-of-nan"], "--check", "model", "--scan-weights",
                        cwd=self.home.name)
        self.assertEqual(answer.code, 0, answer.out + answer.err)
        self.assertRegex(answer.out, r"WARN +values +(\d+) of \1 weights are NaN or infinite")


def all_may_enter(path):
    """Whether a program can be reached by users without rights of their own."""
    while path != "/":
        if not os.stat(path).st_mode & 0o001:
            return False
        path = os.path.dirname(path)
    return True


if __name__ == "__main__":
    unittest.main()

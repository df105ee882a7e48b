"""A running server for a test, and stubs of the public API made from the .proto files with Debian's tools."""
import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BIN = os.environ["KVASIR_BIN"]  # <build>/bin
DEMO = os.path.join(ROOT, "ops", "demo-model")
SANITIZED = bool(os.environ.get("KVASIR_SANITIZE"))  # memory sizes mean nothing then

sys.path.insert(0, os.path.join(ROOT, "ops", "bench", "lib"))
from serving import LLAMA, cpu_seconds, make_model, ranks_of  # noqa: E402,F401

_generated = tempfile.mkdtemp(prefix="kvasir-stubs-")


def _make_stubs():
    protos = os.path.join(ROOT, "proto")
    files = [os.path.join("kvasir", "v1", f) for f in ("inference.proto", "batch.proto", "cluster.proto")]
    health = os.path.join("grpc", "health", "v1", "health.proto")
    plugin = shutil.which("grpc_python_plugin")
    subprocess.run(["protoc", f"-I{protos}", "-I/usr/share/grpc-proto", f"--python_out={_generated}",
                    f"--grpc_out={_generated}", f"--plugin=protoc-gen-grpc={plugin}"] + files + [health], check=True)
    sys.path.insert(0, _generated)
    import grpc
    grpc.__path__.append(os.path.join(_generated, "grpc"))  # grpc/health beside grpcio's own package


_make_stubs()
import grpc  # noqa: E402
from grpc.health.v1 import health_pb2, health_pb2_grpc  # noqa: E402,F401
from kvasir.v1 import cluster_pb2, cluster_pb2_grpc, inference_pb2, inference_pb2_grpc  # noqa: E402

MPI_ENV = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_plm": "isolated",
    "OMPI_MCA_mpi_yield_when_idle": "1",
    "ASAN_OPTIONS": "detect_leaks=0",  # MPI's own, in ranks that are started by hand
}


def program(name):
    return os.path.join(BIN, name)


def run(*args, timeout=60, env=None, text=True, stdin=None):
    return subprocess.run([program("kvasir"), *map(str, args)], capture_output=True, text=text, timeout=timeout,
                          env={**os.environ, **(env or {})}, input=stdin)


class Process:
    """A child whose stdout lines can be waited for; stderr is kept."""

    def __init__(self, args, env=None):
        self.err = tempfile.TemporaryFile()
        self.child = subprocess.Popen([str(a) for a in args], stdout=subprocess.PIPE, stderr=self.err, text=True,
                                      env={**os.environ, **(env or {})}, start_new_session=True)
        self.lines = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.child.stdout:
            self.lines.put(line.rstrip("\n"))
        self.lines.put(None)

    def wait_line(self, prefix, timeout=60):
        end = time.monotonic() + timeout
        while True:
            try:
                line = self.lines.get(timeout=max(0.01, end - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no line '{prefix}' within {timeout} s; stderr: {self.stderr()}") from None
            if line is None:
                raise AssertionError(f"ended ({self.child.wait()}) before '{prefix}'; stderr: {self.stderr()}")
            if line.startswith(prefix):
                return line[len(prefix):].strip()

    def stderr(self):
        if not self.err.closed:
            self.err.seek(0)
            self.said = self.err.read().decode(errors="replace")
        return self.said

    def stop(self, number=signal.SIGTERM, timeout=40):
        if self.child.poll() is None:
            self.child.send_signal(number)
        return self.wait(timeout)

    def wait(self, timeout=20):
        try:
            code = self.child.wait(timeout)
        except subprocess.TimeoutExpired:
            os.killpg(self.child.pid, signal.SIGKILL)
            raise AssertionError(f"did not stop within {timeout} s; stderr: {self.stderr()}") from None
        self.stderr()
        self.err.close()
        self.child.stdout.close()
        return code


class Server:
    """kvasir serve on a free port, ready."""

    def __init__(self, *args, model=DEMO, timeout=60):
        self.process = Process([program("kvasir"), "serve", model, "--listen", "127.0.0.1:0", *args])
        try:
            self.address = self.process.wait_line("ready:", timeout)
        except AssertionError:
            self.process.stop()
            raise
        self.channel = grpc.insecure_channel(self.address, options=[("grpc.max_receive_message_length", -1)])
        self.inference = inference_pb2_grpc.InferenceStub(self.channel)
        self.cluster = cluster_pb2_grpc.ClusterStub(self.channel)
        self.health = health_pb2_grpc.HealthStub(self.channel)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.channel.close()
        code = self.process.stop()
        assert code == 0, f"exit code {code}; stderr: {self.process.stderr()}"

    def status(self):
        return self.cluster.GetStatus(cluster_pb2.GetStatusRequest(), timeout=10)

    def worker_pids(self):
        """Ranks of the supervised group."""
        return ranks_of(self.address)


def free_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return "%s:%d" % free.getsockname()


def metrics_of(http):
    """What is counted, by name with labels but the model's: {'requests_total': 3.0, 'swapped_blocks_total,direction="in"': 0.0}"""
    with urllib.request.urlopen(f"http://{http}/metrics", timeout=10) as page:
        found = re.findall(r'^kvasir_(\w+){model_name="[^"]*"(.*)} (\S+)$', page.read().decode(), re.M)
    return {name + labels: float(value) for name, labels, value in found}


def made_up_model(**fields):
    """A directory for --load-format dummy: LLAMA with these fields."""
    return make_model(tempfile.mkdtemp(prefix="kvasir-model-"), {**LLAMA, **fields})


def request(prompt, **fields):
    """GenerateRequest from flat names: sampling, stopping and output fields are put where they belong."""
    message = inference_pb2.GenerateRequest()
    if isinstance(prompt, str):
        message.prompt = prompt
    else:
        message.prompt_token_ids.ids.extend(prompt)
    for name, value in fields.items():
        for part in (message, message.sampling, message.stopping, message.output):
            if name in part.DESCRIPTOR.fields_by_name:
                field = part.DESCRIPTOR.fields_by_name[name]
                if field.label == field.LABEL_REPEATED:
                    getattr(part, name).extend(value)
                else:
                    setattr(part, name, value)
                break
        else:
            raise KeyError(name)
    return message


class Result:
    """A completion collected from a stream, with its order checked."""

    def __init__(self, responses):
        self.text, self.ids, self.logprobs, self.tops = "", [], [], []
        self.prompt_ids = self.finished = self.usage = None
        seq = 0
        for response in responses:
            event = response.WhichOneof("event")
            assert self.finished is None, "a message after finished"
            if event == "prompt":
                self.prompt_ids = list(response.prompt.token_ids)
            elif event == "token":
                assert response.token.seq == seq, (response.token.seq, seq)
                seq += 1
                self.text += response.token.text
                for token in response.token.tokens:
                    self.ids.append(token.id)
                    self.logprobs.append(token.logprob)
                    self.tops.append([(t.id, t.logprob) for t in token.top])
            elif event == "finished":
                self.finished = response.finished
                self.text += response.finished.text
            if response.HasField("usage"):
                self.usage = response.usage

    @property
    def reason(self):
        return inference_pb2.Finished.Reason.Name(self.finished.reason)


def generate(server, prompt, timeout=60, **fields):
    return Result(server.inference.Generate(request(prompt, **fields), timeout=timeout))

"""A server under measurement, for the scripts of ops/bench: its model, starting it, its processes, their memory."""
import argparse
import json
import os
import shutil
import signal
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
PAGE = os.sysconf("SC_PAGE_SIZE")


LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 512,
    "num_attention_heads": 8, "num_key_value_heads": 2, "intermediate_size": 1408, "num_hidden_layers": 8,
    "vocab_size": 4096, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2,
}


def make_model(folder, config):
    """For --load-format dummy: this config.json, and the demo model's tokenizer."""
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as file:
        json.dump(config, file)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(os.path.join(ROOT, "ops", "demo-model", name), folder)
    return folder


def parser(description):
    """With the options that all of the scripts have."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--bin", default=os.path.join(ROOT, "build", "release", "bin"))
    made.add_argument("-o", "--output")
    return made


def resident_bytes(pid):
    """0 when it is gone."""
    try:
        with open(f"/proc/{pid}/statm", encoding="utf-8") as file:
            return int(file.read().split()[1]) * PAGE
    except OSError:
        return 0


def ranks_of(address):
    """Process ids of the worker ranks that dial this address, in order."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                words = file.read().split(b"\0")
        except OSError:
            continue
        if words[0].endswith(b"kvasir-worker") and any(address.encode() in w for w in words):
            found.append(int(pid))
    return sorted(found)


def cpu_seconds(pids):
    total = 0
    for pid in pids:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


class Server:
    """kvasir serve on a free port, ready; `with` stops it and insists that it ended well."""

    def __init__(self, folder, model, *args):
        self.program = os.path.join(folder, "kvasir")
        env = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        self.child = subprocess.Popen([self.program, "serve", model, "--listen", "127.0.0.1:0", *map(str, args)],
                                      stdout=subprocess.PIPE, text=True, env=env)
        line = self.child.stdout.readline()
        if not line.startswith("ready: "):
            raise RuntimeError(f"kvasir serve {model} {' '.join(map(str, args))}: ended with {self.child.wait()}")
        self.address = line.split()[1]

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        self.child.send_signal(signal.SIGTERM)
        code = self.child.wait(60)
        if code != 0 and kind is None:
            raise RuntimeError(f"kvasir serve ended with {code}")

    def ranks(self):
        return ranks_of(self.address)

    def pids(self):
        return [self.child.pid, *self.ranks()]

    def status(self):
        """What is under way, over all groups."""
        said = subprocess.run([self.program, "status", "--address", self.address, "--json"], check=True,
                              capture_output=True, text=True).stdout
        groups = json.loads(said)["groups"]
        return {key: sum(group[key] for group in groups) for key in ("running", "waiting", "kv_blocks_used")}


def bench_serve(server, *args):
    """What `kvasir bench serve` found, or the end of the script."""
    command = [server.program, "bench", "serve", "--address", server.address, "--json", "--no-progress", *map(str, args)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False)
    if not done.stdout.startswith("{"):
        sys.exit(f"error: {' '.join(command)}: {done.stderr}")
    return json.loads(done.stdout)

"""A server under measurement, for the scripts of ops/bench: starting it, its processes, their memory."""
import datetime
import json
import os
import signal
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
PAGE = os.sysconf("SC_PAGE_SIZE")


def cpu_name():
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        return next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), "unknown CPU")


def head(suite, folder):
    """The first line of a results file: what ran where, and whether it was alone."""
    program = os.path.join(folder, "kvasir")
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    notes = ["measured on a CPU: says nothing about any GPU"]
    if load > 0.25 * cores:
        notes.append("the machine was shared with other programs at work: times are larger than on an idle one")
    return {"suite": suite, "program": version, "cpu": cpu_name(), "cores": cores, "load_before": load, "notes": notes,
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")}


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

"""The first line of a results file: the programs, the machine and the date."""
import datetime
import json
import os
import subprocess

from serving import cpu_name

RESULTS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "results")


def gpu_names():
    try:
        done = subprocess.run(["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"],
                              capture_output=True, text=True, check=False)
        return done.stdout.splitlines() if done.returncode == 0 else []
    except FileNotFoundError:
        return []


def head(program, name):
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    gpus, cores, load = gpu_names(), len(os.sched_getaffinity(0)), os.getloadavg()[0]
    notes = [] if gpus else ["measured on a CPU: says nothing about any GPU"]
    if load > 0.25 * cores:
        notes.append("other programs were at work: times are larger than on an idle machine")
    return {"suite": "run", "part": name, "program": version, "cpu": cpu_name(), "cores": cores, "gpus": gpus, "notes": notes,
            "load_before": load,
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")}


def write(name, lines):
    """ops/bench/results/NAME.jsonl; returns its path."""
    os.makedirs(RESULTS, exist_ok=True)
    path = os.path.join(RESULTS, f"{name}.jsonl")
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    return path

"""Files of results: their first line, with the programs, the machine and the date, and writing them."""
import datetime
import json
import os
import subprocess

RESULTS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "results")


def gpu_names():
    try:
        done = subprocess.run(["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"],
                              capture_output=True, text=True, check=False)
        return done.stdout.splitlines() if done.returncode == 0 else []
    except FileNotFoundError:
        return []


def cpu_name():
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        return next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), "unknown CPU")


def head(folder, **names):
    """names: what ran, e.g. suite="soak". With the programs in folder; and whether the machine was theirs alone."""
    program = os.path.join(folder, "kvasir")
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    gpus, cores, load = gpu_names(), len(os.sched_getaffinity(0)), os.getloadavg()[0]
    notes = [] if gpus else ["measured on a CPU: says nothing about any GPU"]
    if load > 0.25 * cores:
        notes.append("other programs were at work: times are larger than on an idle machine")
    return {**names, "program": version, "cpu": cpu_name(), "cores": cores, "gpus": gpus, "notes": notes, "load_before": load,
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")}


def save(path, lines):
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def show(lines, path):
    """Prints them, and saves them where a path is given."""
    for line in lines:
        print(json.dumps(line))
    if path:
        save(path, lines)


def write(name, lines):
    """ops/bench/results/NAME.jsonl; returns its path."""
    os.makedirs(RESULTS, exist_ok=True)
    path = os.path.join(RESULTS, f"{name}.jsonl")
    save(path, lines)
    return path

"""ops/gpu-check without a GPU: every program it needs is in the bundle and starts, and its results can be read."""
import json
import os
import subprocess
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.environ["KVASIR_BUILD"]


def gpu_check(*args):
    return subprocess.run([os.path.join(ROOT, "ops", "gpu-check"), *args], capture_output=True, text=True, timeout=200,
                          check=False)


def test_usage():
    assert gpu_check("nothing").returncode == 64
    done = gpu_check("--dry-run", "--bundle", "/nowhere.tar.gz")
    assert done.returncode == 66 and "ops/bundle --with-tests" in done.stderr, done.stderr


def test_no_driver_is_one_line():
    if os.path.exists("/proc/driver/nvidia/version"):
        return
    done = gpu_check("--bundle", "/nowhere.tar.gz")
    assert done.returncode == 69 and len(done.stderr.splitlines()) == 1, done


def read(folder, part):
    with open(os.path.join(folder, f"{part}-dry-run.jsonl"), encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    assert lines[0]["suite"] == "run" and lines[0]["program"].startswith("kvasir "), lines[0]
    return lines[1:]


def test_dry_run(folder):
    bundle = os.path.join(folder, "bundle.tar.gz")
    subprocess.run([os.path.join(ROOT, "ops", "bundle"), "--build", BUILD, "--with-tests", "-o", bundle], check=True)
    # /bin/false is a Python without PyTorch.
    done = gpu_check("--dry-run", "--bundle", bundle, "--out", folder, "--python", "/bin/false")
    print(done.stdout, done.stderr)
    assert done.returncode == 0, done.returncode
    assert all(line["passed"] for line in read(folder, "kernels"))
    ranks = read(folder, "ranks")
    assert len(ranks) in (5, 6) and all(line["passed"] for line in ranks), ranks
    suites = {line["suite"] for line in read(folder, "bench")}
    assert suites == {"device", "base", "gemm", "decode", "prefill", "elementwise", "sampling"}, suites
    engine = [line for line in read(folder, "engine") if line["suite"] == "engine"]
    assert [line["batch"] for line in engine] == [1, 3], engine
    assert all(line["decode_tok_s"] > 0 and line["decode_bound_tok_s"] > 0 for line in engine), engine


def main():
    test_usage()
    test_no_driver_is_one_line()
    with tempfile.TemporaryDirectory(prefix="kvasir-gpu-check-test-") as folder:
        test_dry_run(folder)


if __name__ == "__main__":
    main()

"""The relocatable bundle in a root file system that holds nothing else but /proc, /dev and /tmp."""
import os
import shutil
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.environ["KVASIR_BUILD"]
SKIPPED = 77

# Mounts are those of a new mount namespace and end with it.
ENTER = """
set -e
mount --rbind /proc "$ROOT/proc"
mount --rbind /dev "$ROOT/dev"
chroot=$(command -v chroot || echo /usr/sbin/chroot)
exec "$chroot" "$ROOT" "$@"
"""


def unshare(*command, root):
    """As root in a mount namespace of its own; as anyone else in a user namespace, where the kernel permits it."""
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    return subprocess.run(["unshare", *user, "--mount", "/bin/sh", "-c", ENTER, "sh", *command], text=True, timeout=120,
                          capture_output=True, env={"ROOT": root}, check=False)


class Machine:
    """A root file system with the unpacked bundle in /opt/kvasir."""

    def __init__(self, folder):
        self.root = os.path.join(folder, "root")
        for name in ("proc", "dev", "tmp", "opt"):
            os.makedirs(os.path.join(self.root, name))
        file = os.path.join(folder, "bundle.tar.gz")
        subprocess.run([os.path.join(ROOT, "ops", "bundle"), "--build", BUILD, "-o", file], check=True)
        subprocess.run(["tar", "-xzf", file, "-C", folder], check=True)
        tree = [name for name in os.listdir(folder) if name.startswith("kvasir-")]
        assert len(tree) == 1, tree
        os.rename(os.path.join(folder, tree[0]), os.path.join(self.root, "opt", "kvasir"))
        shutil.copytree(os.path.join(ROOT, "ops", "demo-model"), os.path.join(self.root, "model"))

    def is_permitted(self):
        no_such_program = 127
        return unshare("/nothing", root=self.root).returncode == no_such_program

    def run(self, *args):
        done = unshare("/opt/kvasir/bin/kvasir", *args, root=self.root)
        print(f"kvasir {' '.join(args)}: {done.returncode}")
        return done

    def succeed(self, *args):
        done = self.run(*args)
        assert done.returncode == 0, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout


def test_programs(machine):
    here = subprocess.run([os.path.join(BUILD, "bin", "kvasir"), "--version"], capture_output=True, text=True, check=True)
    assert machine.succeed("--version") == here.stdout
    assert "rank 1" in machine.succeed("plan", "/model", "-tp", "2", "--table")
    findings = machine.run("doctor", "/model").stdout
    assert "FAIL" not in findings and "mpirun starts two ranks" in findings, findings


def test_generate_on_two_ranks(machine):
    story = ["generate", "--temperature", "0", "--max-tokens", "12", "Once upon a time"]
    alone = machine.succeed(*story[:1], "--model", "/model", "-tp", "1", *story[1:])
    assert len(alone) > 10, alone
    assert machine.succeed(*story[:1], "--model", "/model", "-tp", "2", *story[1:]) == alone


def test_failures_are_explained(machine):
    """The texts of Open MPI are there."""
    done = unshare("/opt/kvasir/bin/mpirun", "--allow-run-as-root", "--mca", "plm", "isolated", "/nothing",
                   root=machine.root)
    assert done.returncode != 0 and "Executable: /nothing" in done.stderr, done.stderr


def test_licences(machine):
    doc = os.path.join(machine.root, "opt", "kvasir", "share", "doc")
    names = os.listdir(doc)
    for name in ("kvasir", "libc6", "libopenmpi3", "openmpi-bin", "openmpi-common"):
        assert name in names, (name, names)


def main():
    with tempfile.TemporaryDirectory(prefix="kvasir-bundle-") as folder:
        machine = Machine(folder)
        test_licences(machine)
        if not machine.is_permitted():
            print("skipped after the licences: neither root nor user namespaces to enter an empty root file system")
            sys.exit(SKIPPED)
        test_programs(machine)
        test_generate_on_two_ranks(machine)
        test_failures_are_explained(machine)


if __name__ == "__main__":
    main()

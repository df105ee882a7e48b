#!/usr/bin/env python3
"""Checks the source tree against the rules of the house style that text and symbols can show.

usage: ops/check_source.py BUILD_DIRECTORY

Prints one `file:line: what` for each finding and exits with 1 when there is any. Findings that are
wanted stand in ops/check_allow.txt, each with its reason.
"""

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile

ALLOW_FILE = "ops/check_allow.txt"

# Who may include whom, the most specific folder first. `parallel/plan` allows plan.h and plan_*.h alone.
DESCRIPTION = ["parallel/plan", "parallel/spec", "parallel/cost"]
LAYERS = {
    "base": ["base"],
    "proto": ["base", "proto"],
    "kernels": ["base", "kernels"],
    "parallel": ["base", "kernels", "parallel"],
    "worker": ["base", "proto", "kernels", "parallel", "worker"],
    "coordinator/tokenizer": ["base", "coordinator/tokenizer"],
    "coordinator": ["base", "proto", "coordinator", *DESCRIPTION],
    "ops": ["base", "proto", "ops", "coordinator/tokenizer", "worker/checkpoint", "worker/host",
            "worker/weights_check", *DESCRIPTION],
}

# Vendor headers, and the path prefixes of the files that may include them.
FENCES = [
    (r"grpc/.*|grpc\+\+.*", ["proto/rpc/"]),
    (r"protobuf-c/.*|.*\.pb-c\.h", ["proto/", "tests/proto/"]),
    (r"mpi\.h", ["parallel/", "tests/parallel/"]),
    (r"nccl\.h", ["parallel/comm_nccl", "tests/parallel/nccl_sim"]),
    (r"cuda.*|cublas.*", ["kernels/cuda/", "tests/kernels/cuda", "parallel/comm_nccl", "tests/parallel/nccl_sim"]),
    (r"jansson\.h", ["parallel/spec", "parallel/plan_json", "parallel/cost_json", "worker/safetensors", "worker/checkpoint",
                     "coordinator/tokenizer/", "ops/", "tests/"]),
    (r"microhttpd\.h", ["coordinator/"]),
    (r"hwloc\.h", ["worker/host_cores"]),
    (r"utf8proc\.h", ["coordinator/tokenizer/"]),
    (r"omp\.h|.*intrin\.h", ["kernels/cpu/"]),
    (r"cmocka\.h", ["tests/support/"]),
]

# Calls that belong in one place: the settings' table, and the end of the process.
CALLS = [
    (r"\b(?:secure_)?getenv\s*\(", ["base/config", "tests/"], "settings come from the config table"),
    (r"(?<![_\w])(?:exit|abort|quick_exit)\s*\(", ["tests/"], "only main.c may end the process"),
    (r"\b(?:strcpy|strcat|sprintf|vsprintf|gets|strtok|atoi|atof|alloca)\s*\(", ["tests/"],
     "unbounded or unchecked by design"),
]

MAX_LINES = [("tests/", 1000), (".cu", 600), (".cuh", 400), (".h", 400), (".c", 800)]
# Backends have a file an op, of the same name as the CPU's; so have their tests.
MIRRORS = ("kernels/cuda/", "tests/kernels/cuda/")

MAX_DEPTH = 5  # a function's own braces and four levels in them


class Findings:
    """Collects findings, less those the allow file names."""

    def __init__(self):
        self.lines = []
        self.allowed = {}
        self.used = set()
        if os.path.exists(ALLOW_FILE):
            with open(ALLOW_FILE, encoding="utf-8") as file:
                self.read_allowed(file)

    def read_allowed(self, file):
        for number, line in enumerate(file, 1):
            words = line.split("#")[0].split()
            reason = line.partition("#")[2].strip()
            if not words:
                continue
            if len(words) != 3 or not reason:
                self.lines.append(f"{ALLOW_FILE}:{number}: is not `rule path name # reason`")
                continue
            self.allowed[tuple(words)] = number

    def add(self, rule, path, line, name, what):
        """`name` is what an exception would name: the included file, the call, the symbol, or `-`."""
        key = (rule, path, name)
        if key in self.allowed:
            self.used.add(key)
            return
        self.lines.append(f"{path}:{line}: {what} [{rule} {name}]")

    def finish(self):
        for key, number in self.allowed.items():
            if key not in self.used:
                self.lines.append(f"{ALLOW_FILE}:{number}: nothing needs `{' '.join(key)}` any more")
        return self.lines


def tracked_files():
    names = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
                           check=True, stdout=subprocess.PIPE).stdout.decode().split("\0")
    return sorted(name for name in names if name and os.path.isfile(name))


def read_text(path):
    """The file as text; None for what is not text."""
    with open(path, "rb") as file:
        data = file.read()
    if b"\0" in data:
        return None
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return None


def blank(match):
    """Replaces text by as many newlines, so that line numbers stay."""
    return "\n" * match.group().count("\n")


def strip_comments(text):
    """C without comments and without what stands between quotes."""
    pattern = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', re.S)
    return pattern.sub(lambda m: '""' if m.group()[0] == '"' else "' '" if m.group()[0] == "'"
                       else blank(m), text)


def line_of(text, position):
    return text.count("\n", 0, position) + 1


# ---- files ---------------------------------------------------------------------------------------


def check_size(found, path, text):
    for part, limit in MAX_LINES:
        if path.startswith(part) or path.endswith(part):
            n_lines = text.count("\n")
            if n_lines > limit:
                found.add("size", path, limit, "-", f"{n_lines} lines, limit {limit}")
            return


def check_words(found, path, text):
    words = "|".join(["TO" + "DO", "FIX" + "ME", "XX" + "X"])
    for match in re.finditer(rf"\b(?:{words})\b", text):
        found.add("word", path, line_of(text, match.start()), match.group(),
                  "unfinished work belongs in an issue")


def check_layout(found, path, text):
    if path.endswith(".h") and "\n#pragma once\n" not in "\n" + text:
        found.add("pragma", path, 1, "-", "has no #pragma once")
    if text and not text.endswith("\n"):
        found.add("newline", path, text.count("\n") + 1, "-", "does not end with a newline")


def check_calls(found, path, text):
    code = strip_comments(text)
    for pattern, places, why in CALLS:
        if path.startswith(tuple(places)) or path.endswith("main.c"):
            continue
        for match in re.finditer(pattern, code):
            name = match.group().split("(")[0].strip()
            found.add("call", path, line_of(code, match.start()), name, f"calls {name}: {why}")


def check_braces(found, path, text):
    """No #if inside a function (a feature is a file), and no deep nesting."""
    depth = 0
    for number, line in enumerate(strip_comments(text).split("\n"), 1):
        stripped = line.lstrip()
        if stripped.startswith("#"):
            directive = stripped[1:].lstrip()
            if depth > 0 and re.match(r"(?:if|ifdef|ifndef|elif|else)\b", directive):
                found.add("conditional", path, number, "-", "preprocessor conditional inside braces")
            continue
        if stripped.startswith("extern"):
            continue
        for brace in re.findall(r"[{}]", line):
            depth = max(0, depth + (1 if brace == "{" else -1))
            if brace == "{" and depth == MAX_DEPTH + 1:
                found.add("nesting", path, number, "-", f"nested deeper than {MAX_DEPTH - 1} levels")


def check_names(found, paths):
    """A file is a module, so its name is used once; backends mirror each other and mains are mains."""
    seen = {}
    for path in paths:
        name = os.path.basename(path)
        if not path.endswith((".c", ".cu")) or name == "main.c" or path.startswith(MIRRORS):
            continue
        if name in seen:
            found.add("name", path, 1, name, f"is also the name of {seen[name]}")
        seen[name] = path


# ---- includes ------------------------------------------------------------------------------------


def layer_of(path):
    for folder in sorted(LAYERS, key=len, reverse=True):
        if path.startswith(folder + "/"):
            return folder
    return None


def may_include(layer, header):
    for allowed in LAYERS[layer]:
        if header.startswith(allowed + "/"):
            # coordinator/ does not give coordinator/tokenizer away to others, but may use it itself.
            return True
        if "/" in allowed and re.match(rf"{allowed}(?:_\w+)?\.h$", header):
            return True
    return False


def check_project_include(found, path, line, header):
    layer = layer_of(path)
    if layer is None or header.startswith("tests/"):
        if not path.startswith("tests/") and header.startswith("tests/"):
            found.add("layer", path, line, header, f"includes {header}: tests are no library")
        return
    if not may_include(layer, header):
        found.add("layer", path, line, header, f"{layer} may not include {header}")


def check_includes(found, path, text):
    for match in re.finditer(r'^[ \t]*#[ \t]*include[ \t]*(["<])([^">]+)[">]', text, re.M):
        line = line_of(text, match.start())
        quote, header = match.groups()
        if quote == '"' and layer_of(header) is None and not header.startswith("tests/") \
                and not header.endswith(".pb-c.h"):
            found.add("root", path, line, header, f'"{header}" is not named from the root')
        elif quote == '"' and not header.endswith(".pb-c.h"):
            check_project_include(found, path, line, header)
        for pattern, places in FENCES:
            if re.fullmatch(pattern, header) and not path.startswith(tuple(places)):
                found.add("fence", path, line, header,
                          f"{header} may be included by {', '.join(places)} only")


# ---- messages ------------------------------------------------------------------------------------


def message_graph(protos):
    from google.protobuf import descriptor_pb2

    with tempfile.NamedTemporaryFile() as out:
        subprocess.run(["protoc", "-I", "proto", "-I", "/usr/share/grpc-proto",
                        f"--descriptor_set_out={out.name}", *protos], check=True)
        files = descriptor_pb2.FileDescriptorSet.FromString(out.read())
    graph = {}

    def visit(prefix, message, path):
        name = f"{prefix}.{message.name}"
        graph[name] = (path, [field.type_name for field in message.field if field.type in (10, 11)])
        for nested in message.nested_type:
            visit(name, nested, path)

    for file in files.file:
        for message in file.message_type:
            visit(f".{file.package}", message, file.name)
    return graph


def check_messages(found, paths):
    """protobuf-c unpacks recursively without a limit: no message may contain itself."""
    protos = [path[len("proto/"):] for path in paths if re.fullmatch(r"proto/.*\.proto", path)]
    if not protos:
        return
    graph = message_graph(protos)
    for start, (path, _) in graph.items():
        reached, open_names = set(), [start]
        while open_names:
            for name in graph.get(open_names.pop(), ("", []))[1]:
                if name not in reached:
                    reached.add(name)
                    open_names.append(name)
        if start in reached:
            found.add("recursion", f"proto/{path}", 1, start[1:], f"message {start[1:]} contains itself")


# ---- symbols -------------------------------------------------------------------------------------


def prefixes(path):
    """R1: what the exported names of a file may begin with.

    config_args.c -> config_args, config; kernels/cpu/rmsnorm.c also cpu_rmsnorm; and the file that
    gathers a backend's table, kernels/cpu/backend_cpu.c, speaks for its folder: cpu.
    """
    folders, stem = os.path.split(os.path.splitext(path)[0])
    parts = stem.split("_")
    stems = ["_".join(parts[:n]) for n in range(1, len(parts) + 1)]
    folder = os.path.basename(folders)
    own = [folder] if stem == f"backend_{folder}" else []
    return own + stems + [f"{folder}_{name}" for name in stems]


def object_files(build):
    with open(os.path.join(build, "compile_commands.json"), encoding="utf-8") as file:
        entries = json.load(file)
    root = os.getcwd() + os.sep
    for entry in entries:
        path = entry["file"]
        words = shlex.split(entry["command"])
        output = os.path.join(entry["directory"], words[words.index("-o") + 1])
        if path.startswith(root) and os.path.isfile(output):
            path = path[len(root):]
            if not path.startswith(("build", "tests/")):
                yield path, output


def exported_symbols(output):
    """Name and section of each symbol that other files can see."""
    table = subprocess.run(["nm", "-g", "--defined-only", "-f", "sysv", output], check=True,
                           stdout=subprocess.PIPE).stdout.decode()
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        # What C++ compilers name themselves (kernels, templates) cannot clash with a name of C.
        made_up = cells[0].startswith(("_Z", "DW.ref."))
        if len(cells) == 7 and cells[0] != "Name" and not made_up:
            yield cells[0], cells[6]


def is_mutable(section):
    """R15: no mutable globals. A const table of pointers is in .data.rel.ro: written by the loader alone."""
    return section.startswith((".bss", ".data", "*COM*")) and not section.startswith(".data.rel.ro")


def check_symbols(found, build):
    n_objects = 0
    for path, output in sorted(object_files(build)):
        n_objects += 1
        allowed = prefixes(path)
        for name, section in exported_symbols(output):
            if is_mutable(section):
                found.add("global", path, 1, name, f"{name} is a mutable global")
            known = name == "main" and path.endswith("main.c")
            if not known and not any(name == p or name.startswith(p + "_") for p in allowed):
                found.add("symbol", path, 1, name, f"exports {name}, not {allowed[-1]}_* or the like")
    if n_objects == 0:
        found.lines.append(f"{build}: nothing is built there, symbols cannot be checked")


def check_listed(found, paths, build):
    """A C file that no target lists is dead; its twin for another build is named in the allow file."""
    with open(os.path.join(build, "compile_commands.json"), encoding="utf-8") as file:
        compiled = {os.path.relpath(entry["file"]) for entry in json.load(file)}
    for path in paths:
        if path.endswith(".c") and path not in compiled:
            found.add("listed", path, 1, "-", "is in no target")


def check_tree(build):
    """The findings in the tree of the working directory, as lines of text."""
    found = Findings()
    paths = tracked_files()
    for path in paths:
        text = read_text(path)
        if text is None or path == "LICENSE":
            continue
        check_words(found, path, text)
        if path.endswith((".c", ".cc", ".h", ".cu", ".cuh")):
            check_size(found, path, text)
            check_layout(found, path, text)
            check_includes(found, path, text)
            check_calls(found, path, text)
            check_braces(found, path, text)
    check_names(found, paths)
    check_messages(found, paths)
    check_listed(found, paths, build)
    check_symbols(found, build)
    return found.finish()


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    lines = check_tree(sys.argv[1])
    print("\n".join(lines), end="\n" if lines else "")
    sys.exit(1 if lines else 0)


if __name__ == "__main__":
    main()

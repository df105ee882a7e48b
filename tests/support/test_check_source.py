#!/usr/bin/env python3
"""Plants one violation of each rule of ops/check_source.py and expects it to be found, and no other."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(ROOT, "ops"))

import check_source  # noqa: E402 # the path to it is made above

CLEAN = {"base/good.c": '#include "base/good.h"\n\nint good_value(void)\n{\n    return 1;\n}\n',
         "base/good.h": "#pragma once\n\nint good_value(void);\n"}


def nested(depth):
    return "void good_deep(void)\n" + "{" * depth + "}" * depth + "\n"


class CheckSource(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.TemporaryDirectory()
        self.addCleanup(self.dir.cleanup)
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(self.dir.name)
        subprocess.run(["git", "init", "-q"], check=True)
        subprocess.run(["cc", "-x", "c", "-o", ".git/empty.o", "-c", "/dev/null"], check=True)

    def run_check(self, files, allow=""):
        files = {**CLEAN, **files}
        if allow:
            files["ops/check_allow.txt"] = allow
        for name in os.listdir("."):
            if name != ".git":
                shutil.rmtree(name)
        entries = []
        for path, text in files.items():
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
            if path.endswith(".c"):
                entries.append(self.compile_entry(path, text))
        with open(".git/compile_commands.json", "w", encoding="utf-8") as file:
            json.dump(entries, file)
        return check_source.check_tree(".git")

    def compile_entry(self, path, text):
        """What includes headers that are not there has an object that exports nothing."""
        output = ".git/empty.o"
        if "#include" not in text and text.strip():
            output = ".git/" + path.replace("/", "_") + ".o"
            subprocess.run(["cc", "-w", "-fPIE", "-o", output, "-c", path], check=True)
        return {"directory": os.getcwd(), "command": f"cc -o {output} -c {path}",
                "file": os.path.join(os.getcwd(), path)}

    def expect(self, rule, files):
        lines = self.run_check(files)
        self.assertEqual(len(lines), 1, lines)
        self.assertIn(f"[{rule} ", lines[0])

    def test_clean_tree_passes(self):
        self.assertEqual(self.run_check({}), [])

    def test_layers(self):
        self.expect("layer", {"base/good.c": '#include "worker/engine.h"\n'})
        self.expect("layer", {"base/good.c": "", "coordinator/a.c": '#include "parallel/group.h"\n'})
        self.expect("layer", {"coordinator/a.c": "", "ops/b.c": '#include "coordinator/router.h"\n'})

    def test_layers_that_are_allowed(self):
        self.assertEqual(self.run_check({
            "coordinator/a.c": '#include "parallel/plan_print.h"\n#include "parallel/spec.h"\n',
            "ops/b.c": '#include "coordinator/tokenizer/tokenizer.h"\n#include "proto/rpc/rpc.h"\n',
            "worker/c.c": '#include "parallel/group.h"\n#include "kernels/backend.h"\n'}), [])

    def test_fences(self):
        for header in ("grpc/grpc.h", "mpi.h", "jansson.h", "microhttpd.h", "protobuf-c/protobuf-c.h",
                       "cuda_runtime.h", "kvasir/v1/cluster.pb-c.h", "immintrin.h", "nccl.h"):
            with self.subTest(header=header):
                self.expect("fence", {"worker/leader.c": f"#include <{header}>\n"})

    def test_includes_are_rooted(self):
        self.expect("root", {"base/good.c": '#include "good.h"\n'})

    def test_calls(self):
        self.expect("call", {"base/good.c": 'char *good_x(void)\n{\n    return getenv("X");\n}\n'})
        self.expect("call", {"base/good.c": "void good_x(void)\n{\n    exit(1);\n}\n"})
        self.expect("call", {"base/good.c": "void good_x(char *a)\n{\n    sprintf(a, a);\n}\n"})

    def test_calls_in_comments_and_strings_do_not_count(self):
        text = '// exit(1)\n/* abort() */\nconst char *good_x(void)\n{\n    return "getenv(1)";\n}\n'
        self.assertEqual(self.run_check({"base/good.c": text}), [])

    def test_words(self):
        self.expect("word", {"ops/notes.md": "a " + "TO" + "DO here\n"})
        self.assertEqual(self.run_check({"ops/notes.md": "/tmp/x-XXXXXX\n"}), [])

    def test_sizes(self):
        self.expect("size", {"base/good.h": "#pragma once\n" + "\n" * 400})
        self.expect("size", {"base/good.h": "#pragma once\n", "base/good.c": "\n" * 801})

    def test_headers_are_included_once(self):
        self.expect("pragma", {"base/good.h": "int good_value(void);\n"})

    def test_files_end_with_a_newline(self):
        self.expect("newline", {"base/good.c": "int good_value(void);"})

    def test_braces(self):
        self.expect("conditional", {"base/good.c": "int good_x(void)\n{\n#ifdef A\n#endif\n"
                                                   "    return 1;\n}\n"})
        self.expect("nesting", {"base/good.c": nested(6)})
        self.assertEqual(self.run_check({"base/good.c": "#ifdef A\n#endif\n" + nested(5)}), [])

    def test_file_names(self):
        self.expect("name", {"worker/good.c": ""})

    def test_symbols(self):
        self.expect("symbol", {"base/good.c": "int bad_value(void)\n{\n    return 1;\n}\n"})
        self.assertEqual(self.run_check({
            "base/good.c": "", "base/pair_args.c": "void pair_x(void)\n{\n}\n",
            "kernels/cpu/rope.c": "void cpu_rope(void)\n{\n}\n",
            "kernels/cpu/backend_cpu.c": "void cpu_mem_free(void)\n{\n}\n"}), [])

    def test_mutable_globals(self):
        self.expect("global", {"base/good.c": "int good_count = 1;\n"})
        self.expect("global", {"base/good.c": "int good_count;\n"})
        table = "extern const char *const good_names[];\nconst char *const good_names[] = {\"a\"};\n"
        self.assertEqual(self.run_check({"base/good.c": "const int good_count = 1;\n"}), [])
        self.assertEqual(self.run_check({"base/good.c": table}), [])

    def test_recursive_messages(self):
        head = 'syntax = "proto3";\npackage kvasir.v1;\n'
        self.expect("recursion", {"proto/kvasir/v1/a.proto": head + "message A { repeated A a = 1; }\n"})
        lines = self.run_check({"proto/kvasir/v1/a.proto":
                                head + "message A { B b = 1; }\nmessage B { oneof x { A a = 1; } }\n"})
        self.assertEqual(len(lines), 2, lines)
        self.assertEqual(self.run_check({"proto/kvasir/v1/a.proto":
                                         head + "message A { B b = 1; B c = 2; }\nmessage B {}\n"}), [])

    def test_exceptions(self):
        files = {"base/good.c": "int bad_value(void)\n{\n    return 1;\n}\n"}
        self.assertEqual(self.run_check(files, "symbol base/good.c bad_value # a reason\n"), [])
        self.assertEqual(len(self.run_check(files, "symbol base/good.c bad_value\n")), 2)

    def test_exceptions_must_be_needed(self):
        lines = self.run_check({}, "symbol base/good.c bad_value # a reason\n")
        self.assertEqual(len(lines), 1, lines)
        self.assertIn("any more", lines[0])


if __name__ == "__main__":
    unittest.main()

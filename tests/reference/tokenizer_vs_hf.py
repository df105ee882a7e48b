#!/usr/bin/env python3
"""Compare our tokenizer with Hugging Face's `tokenizers` on the same files, and with `sentencepiece` and `tiktoken`.

What:    for each tokenizer: the published vectors, texts with special tokens, and random Unicode strings are encoded by
         both; ids must be equal. What they encode to, and random ids, are decoded by both; texts must be equal, but for
         the one documented difference (below).
         A tokenizer.model beside a tokenizer.json is read alone by ours, and compared with what `tokenizers` makes of
         the tokenizer.json and with the library of its own form, `sentencepiece` or `tiktoken`. DeciLM-7B's is
         compared in the Metaspace forms that newer tokenizer.json files have. GPT-2's vocabulary is
         compared as vocab.json and merges.txt, and extended as DeciCoder-6B's, which its script makes with `tiktoken`.
Needs:   pip install tokenizers sentencepiece tiktoken, and the built program <build>/tests/tokenizer_tool.
Use:     tokenizer_vs_hf.py --build build/release [--data DATA] [--count 2000] [--seed 1] [--model DIR] [NAME ...]
         DATA holds tokenizers/NAME/tokenizer.json, vectors/NAME.json, special/NAME.json; it is KVASIR_TEST_DATA, or what
         the build was configured with. --model DIR adds any other directory with a tokenizer.json; the demo model's
         is always compared when it is there. Exit status 1 after a difference.
Differs: a run of <0xNN> tokens that is not UTF-8: `tokenizers` turns the whole run into U+FFFD, ours keeps the complete
         characters in front of the break, since a stream has shown them already. Such texts are counted, not compared.
         Tables of different ages: characters that Python's does not know are left out, and a text is not compared when
         `tokenizers` normalizes it otherwise than Python (its normalizer knows no marks newer than Unicode 10 or so).
"""

import argparse
import base64
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import unicodedata

NAMES = ["decilm-7b", "decilm-6b", "decicoder-1b", "stablelm-3b", "llama-3", "gpt-2"]

# Where random characters come from: scripts, numbers, marks, spaces, symbols, rare planes.
RANGES = [
    (0x20, 0x7E), (0x20, 0x7E), (0x20, 0x7E), (0xA0, 0x17F), (0x180, 0x24F), (0x300, 0x36F), (0x370, 0x52F),
    (0x590, 0x6FF), (0x900, 0xDFF), (0xE00, 0xEFF), (0x1100, 0x11FF), (0x1E00, 0x1FFF), (0x2000, 0x206F),
    (0x2070, 0x218F), (0x2190, 0x23FF), (0x2460, 0x24FF), (0x2500, 0x27BF), (0x3000, 0x30FF), (0x3300, 0x33FF),
    (0x4E00, 0x9FFF), (0xA000, 0xABFF), (0xAC00, 0xD7A3), (0xF900, 0xFAFF), (0xFB00, 0xFDFF), (0xFE00, 0xFFFD),
    (0x10000, 0x103FF), (0x1D100, 0x1D7FF), (0x1F300, 0x1FAFF), (0x20000, 0x2A6DF), (0x2F800, 0x2FA1D),
    (0xE0000, 0xE01EF), (0xF0000, 0xF00FF),
]
FRAGMENTS = [
    " ", "  ", "   ", "\n", "\r\n", "\n\n", "\t", "\u00a0", "\u3000", "\u2028", "\u0085", "\u200b", "\ufeff", "\u1680",
    "'s", "'S", "'\u017f", "'t", "'re", "'RE", "'ll", "'d", "'", "\u2019s", "don't", " we've", "I'M",
    "0", "1", "42", "007", "1234567", "\u0663", "\u00bd", "\u2167", "\u4e94", "\u0966\u0967",
    "the", " the", "The", " and", "hello", " world", "def ", "return", "{", "}", "();", "!=", "...", "--", "\u2014",
    "\u2581", "\u2581\u2581", " \u2581", "<0x41>", "<s", "</s", "<|", "|>", "<unk", "\u0120", "\u010a",
    "e\u0301", "\u00e9", "\u1112\u1161\u11ab", "\ud55c", "\u0958", "\u212b", "\u0344", "a\u0323\u0307", "a\u0307\u0323",
    "\U0001f600", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\u0e01\u0e33", "\u0931\u094d\u200d", "\u0000", "\u007f",
]


def random_char(rng):
    while True:
        low, high = rng.choice(RANGES)
        c = chr(rng.randint(low, high))
        if unicodedata.category(c) not in ("Cn", "Cs"):
            return c


def random_text(rng):
    parts = []
    for _ in range(rng.randint(0, 30)):
        kind = rng.random()
        if kind < 0.45:
            parts.append(rng.choice(FRAGMENTS))
        elif kind < 0.75:
            parts.append(random_char(rng))
        elif kind < 0.9:
            parts.append("".join(rng.choice("etaoinshr lu") for _ in range(rng.randint(1, 12))))
        elif kind < 0.97:
            parts.append(rng.choice(FRAGMENTS + [random_char(rng)]) * rng.randint(2, 70))
        else:
            low, high = rng.choice(RANGES)
            parts.append("".join(random_char(rng) for _ in range(rng.randint(5, 40))))
    return "".join(parts)


class Ours:
    def __init__(self, tool, folder):
        self.process = subprocess.Popen([tool, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                        encoding="utf-8")

    def ask(self, **request):
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"tokenizer_tool ended after {json.dumps(request)[:200]}")
        return json.loads(line)

    def encode(self, text, special):
        reply = self.ask(text=text, add_special=special, parse_special=special)
        return reply.get("ids", reply)

    def decode(self, ids, skip):
        reply = self.ask(ids=ids, skip_special=skip)
        return reply.get("text", reply)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


class Comparison:
    """With `tokenizers`, which reads folder/tokenizer.json; ours reads what is in ours_folder."""

    def __init__(self, name, folder, tool, ours_folder=None):
        from tokenizers import Tokenizer
        self.name = name
        self.theirs = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
        self.theirs.no_truncation()
        self.theirs.no_padding()
        with open(os.path.join(folder, "tokenizer.json"), encoding="utf-8") as file:
            self.json = json.load(file)
        decoder = json.dumps(self.json.get("decoder"))
        self.byte_ids = {i for t, i in self.json["model"]["vocab"].items()
                         if "ByteFallback" in decoder and len(t) == 6 and t.startswith("<0x")}
        self.bytes = {i: int(t[3:5], 16) for t, i in self.json["model"]["vocab"].items() if i in self.byte_ids}
        self.ours = Ours(tool, ours_folder or folder)
        self.counts = {"encoded": 0, "decoded": 0, "broken runs": 0, "older tables": 0, "different": 0}

    def report(self, what, given, theirs, ours):
        self.counts["different"] += 1
        if self.counts["different"] <= 10:
            print(f"{self.name}: {what} {given!r}\n  theirs {theirs!r}\n  ours   {ours!r}")

    def encode(self, text, special):
        self.theirs.encode_special_tokens = not special
        theirs = self.theirs.encode(text, add_special_tokens=special).ids
        ours = self.ours.encode(text, special)
        self.counts["encoded"] += 1
        if theirs != ours:
            if self.normalizes_otherwise(text):
                self.counts["older tables"] += 1
            else:
                self.report("encode", text, theirs, ours)
        return theirs

    def normalizes_otherwise(self, text):
        if (self.json.get("normalizer") or {}).get("type") != "NFC":
            return False
        return self.theirs.normalizer.normalize_str(text) != unicodedata.normalize("NFC", text)

    def has_broken_run(self, ids):
        run = b""
        for i in ids + [-1]:
            if i in self.byte_ids:
                run += bytes([self.bytes[i]])
                continue
            try:
                run.decode("utf-8")
            except UnicodeDecodeError as error:
                if error.start > 0:
                    return True
            run = b""
        return False

    def decode(self, ids, skip):
        if self.has_broken_run([i for i in ids if not (skip and i in self.special_ids())]):
            self.counts["broken runs"] += 1
            return
        theirs = self.theirs.decode(ids, skip_special_tokens=skip)
        ours = self.ours.decode(ids, skip)
        self.counts["decoded"] += 1
        if theirs != ours:
            self.report("decode", ids, theirs, ours)

    def special_ids(self):
        return {t["id"] for t in self.json.get("added_tokens", []) if t["special"]}

    def added_texts(self):
        return [t["content"] for t in self.json.get("added_tokens", [])]

    def run(self, rng, texts, count):
        for text in texts:
            for special in (False, True):
                self.decode(self.encode(text, special), skip=False)
        added = self.added_texts()
        n_ids = self.theirs.get_vocab_size()
        for i in range(count):
            text = random_text(rng)
            if added and i % 4 == 0:
                at = rng.randint(0, len(text))
                text = text[:at] + rng.choice(added) + text[at:]
            ids = self.encode(text, special=i % 2 == 0)
            self.decode(ids, skip=i % 3 == 0)
            random_ids = [rng.randrange(n_ids) for _ in range(rng.randint(0, 20))]
            if self.byte_ids and i % 2 == 0:
                random_ids += [rng.choice(sorted(self.byte_ids)) for _ in range(rng.randint(1, 3))]
            self.decode(random_ids, skip=i % 2 == 0)
        self.ours.close()
        print(f"{self.name}: " + ", ".join(f"{v} {k}" for k, v in self.counts.items()))
        return self.counts["different"]


class LibraryComparison:
    """Plain text with another library: ids, and the text back from them."""

    def __init__(self, name, encode, decode, tool, ours_folder):
        self.name = name
        self.theirs_encode = encode
        self.theirs_decode = decode
        self.ours = Ours(tool, ours_folder)
        self.counts = {"encoded": 0, "decoded": 0, "different": 0}

    def check(self, what, given, theirs, ours):
        self.counts[what] += 1
        if theirs != ours:
            self.counts["different"] += 1
            if self.counts["different"] <= 10:
                print(f"{self.name}: {what} {given!r}\n  theirs {theirs!r}\n  ours   {ours!r}")

    def run(self, rng, texts, count):
        for text in texts + [random_text(rng) for _ in range(count)]:
            ids = self.theirs_encode(text)
            self.check("encoded", text, ids, self.ours.encode(text, special=False))
            self.check("decoded", ids, self.theirs_decode(ids), self.ours.decode(ids, skip=False))
        self.ours.close()
        print(f"{self.name}: " + ", ".join(f"{v} {k}" for k, v in self.counts.items()))
        return self.counts["different"]


LLAMA3_PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
                  r"|\s*[\r\n]+|\s+(?!\S)|\s+")
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def tiktoken_comparison(name, pattern, ranks, tool, folder):
    import tiktoken
    encoding = tiktoken.Encoding(name="file", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    return LibraryComparison(name, encoding.encode_ordinary, encoding.decode, tool, folder)


def sentencepiece_comparison(name, path, tool, folder):
    import sentencepiece
    processor = sentencepiece.SentencePieceProcessor(model_file=path)
    return LibraryComparison(name, processor.encode, processor.decode, tool, folder)


def read_ranks(path):
    with open(path, "rb") as file:
        rows = [line.split() for line in file]
    return {base64.b64decode(token): int(rank) for token, rank in rows}


def copy_files(folder, names, to):
    os.makedirs(to)
    for name in names:
        if os.path.exists(os.path.join(folder, name)):
            shutil.copyfile(os.path.join(folder, name), os.path.join(to, name))
    return to


def model_comparisons(name, folder, tool, scratch):
    """tokenizer.model without the tokenizer.json beside it."""
    path = os.path.join(folder, "tokenizer.model")
    alone = copy_files(folder, ["tokenizer.model", "tokenizer_config.json"], os.path.join(scratch, name))
    yield Comparison(name + " tokenizer.model, tokenizers", folder, tool, alone)
    with open(path, "rb") as file:
        is_sentencepiece = file.read(1) == b"\n"
    if is_sentencepiece:
        yield sentencepiece_comparison(name + " tokenizer.model, sentencepiece", path, tool, alone)
    else:
        yield tiktoken_comparison(name + " tokenizer.model, tiktoken", LLAMA3_PATTERN, read_ranks(path), tool, alone)


def metaspace_comparisons(folder, tool, scratch):
    """The form that newer files of the same tokenizers have: Metaspace instead of a normalizer."""
    with open(os.path.join(folder, "tokenizer.json"), encoding="utf-8") as file:
        root = json.load(file)
    root["normalizer"] = None
    for scheme, split, alone in (("first", False, False), ("always", True, True), ("never", False, True)):
        step = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme, "split": split}
        root["pre_tokenizer"] = step
        if alone:
            root["decoder"] = step
        to = copy_files(folder, [], os.path.join(scratch, "metaspace-" + scheme))
        with open(os.path.join(to, "tokenizer.json"), "w", encoding="utf-8") as file:
            json.dump(root, file)
        yield Comparison(f"decilm-7b, Metaspace {scheme}", to, tool)


def byte_of_character():
    """GPT-2's spelling of bytes: printable Latin-1 as itself, the others from U+0100 on."""
    printable = [b for b in range(256) if 0x21 <= b <= 0x7E or 0xA1 <= b <= 0xAC or 0xAE <= b]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


def gpt2_comparisons(folder, tool, scratch):
    """GPT-2's vocabulary in its other forms."""
    with open(os.path.join(folder, "tokenizer.json"), encoding="utf-8") as file:
        model = json.load(file)["model"]
    pair = os.path.join(scratch, "pair")
    codegen = os.path.join(scratch, "codegen")
    for to in (pair, codegen):
        os.makedirs(to)
        with open(os.path.join(to, "vocab.json"), "w", encoding="utf-8") as file:
            json.dump(model["vocab"], file)
    with open(os.path.join(pair, "merges.txt"), "w", encoding="utf-8") as file:
        file.write("#version: 0.2\n" + "".join(m + "\n" for m in model["merges"]))
    with open(os.path.join(codegen, "tokenizer_config.json"), "w", encoding="utf-8") as file:
        json.dump({"tokenizer_class": "DeciCoderTokenizer"}, file)
    yield Comparison("gpt-2 vocab.json, tokenizers", folder, tool, pair)
    spelled = byte_of_character()
    ranks = {bytes(spelled[c] for c in t): i for t, i in model["vocab"].items() if t != "<|endoftext|>"}
    for run in [" " * n for n in range(31, 1, -1)] + ["\t" * n for n in range(9, 1, -1)]:
        ranks[run.encode()] = len(ranks) + 1
    yield tiktoken_comparison("decicoder-6b vocab.json, tiktoken", GPT2_PATTERN, ranks, tool, codegen)


def known_texts(data, name):
    texts = []
    for kind in ("vectors", "special"):
        path = os.path.join(data, kind, name + ".json")
        if os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                texts += [row["text"] for row in json.load(file)]
    return texts


def configured_data(build):
    """KVASIR_TEST_DATA, from the environment or as the build was configured; None when there is no such folder."""
    path = os.environ.get("KVASIR_TEST_DATA")
    cache = os.path.join(build, "CMakeCache.txt")
    if path is None and os.path.exists(cache):
        with open(cache, encoding="utf-8") as file:
            for line in file:
                if line.startswith("KVASIR_TEST_DATA:"):
                    path = line.split("=", 1)[1].strip()
    return path if path and os.path.isdir(path) else None


def comparisons(name, folder, tool, scratch):
    yield Comparison(name, folder, tool)
    if os.path.exists(os.path.join(folder, "tokenizer.model")):
        yield from model_comparisons(os.path.basename(name), folder, tool, scratch)
    if name == "decilm-7b":
        yield from metaspace_comparisons(folder, tool, scratch)
    if name == "gpt-2":
        yield from gpt2_comparisons(folder, tool, scratch)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", required=True)
    parser.add_argument("--data")
    parser.add_argument("--model", action="append", default=[])
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("names", nargs="*", metavar="NAME")
    args = parser.parse_args()
    tool = os.path.join(args.build, "tests", "tokenizer_tool")
    data = args.data or configured_data(args.build)
    folders = [(m, m) for m in args.model]
    demo = os.path.join(os.path.dirname(__file__), "..", "..", "ops", "demo-model")
    if os.path.exists(os.path.join(demo, "tokenizer.json")):
        folders.append(("demo-model", demo))
    if data:
        folders += [(n, os.path.join(data, "tokenizers", n)) for n in args.names or NAMES]
    else:
        print("no published tokenizers on this machine (--data, KVASIR_TEST_DATA)")
    different = 0
    for name, folder in folders:
        texts = known_texts(data, name) if data else []
        with tempfile.TemporaryDirectory() as scratch:
            for comparison in comparisons(name, folder, tool, scratch):
                different += comparison.run(random.Random(args.seed), texts, args.count)
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())

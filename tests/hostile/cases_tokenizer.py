"""tokenizer.json, tokenizer_config.json and the chat template."""
import json
import os
import struct

from make import VOCAB, case, good

FILE = "tokenizer.json"


def tokenizer_case(name, change, *words, **options):
    """change(tokenizer) alters it, or gives what is written instead."""
    @case(name, FILE, *words, **options)
    def _(m):
        other = change(m.tokenizer)
        m.tokenizer = other if other is not None else m.tokenizer


def put(*path_and_value):
    """Sets tokenizer[a][b]... = value."""
    *path, last, value = path_and_value

    def change(tokenizer):
        for key in path:
            tokenizer = tokenizer[key]
        tokenizer[last] = value
    return change


# ---- the file ----

tokenizer_case("tokenizer-empty", lambda t: b"", "line 1")
tokenizer_case("tokenizer-not-json", lambda t: b"{,}", "line 1")
tokenizer_case("tokenizer-cut", lambda t: json.dumps(t).encode()[:-30], "line 1")
tokenizer_case("tokenizer-a-list", lambda t: [t], "not an object")
tokenizer_case("tokenizer-nested", lambda t: b'{"a":' * 100000, "nested deeper")
tokenizer_case("tokenizer-of-empty-lists", lambda t: b'{"a":[' + b"[]," * 2000000 + b"[]]}", "objects and arrays")
tokenizer_case("tokenizer-of-numbers", lambda t: b'{"a":[' + b"1," * 5000000 + b"1]}", "values")
tokenizer_case("tokenizer-not-utf-8", lambda t: json.dumps(t).encode().replace(b'"a"', b'"\xc3\x28"'), "line 1")
tokenizer_case("tokenizer-key-twice", lambda t: json.dumps(t).encode().replace(b'"abc"', b'"ab"'), "duplicate")
tokenizer_case("tokenizer-zero-in-token", put("model", "vocab", "a\0b", 6), "line 1")


@case("tokenizer-missing", FILE, served=True)
def _(m):
    m.tokenizer = None


@case("tokenizer-of-a-gigabyte", FILE, "1000000000 bytes", "limit")
def _(m):
    m.special.append(lambda d: os.truncate(os.path.join(d, FILE), 10**9))


for name, make in (("fifo", os.mkfifo), ("directory", os.mkdir)):
    @case(f"tokenizer-a-{name}", FILE, "not a file")
    def _(m, make=make):
        m.tokenizer = None
        m.special.append(lambda d: make(os.path.join(d, FILE)))


# ---- vocabulary ----

tokenizer_case("vocabulary-missing", lambda t: t["model"].pop("vocab") and None, "vocab")
tokenizer_case("vocabulary-a-list", put("model", "vocab", ["a", "b"]), "vocab")
tokenizer_case("vocabulary-empty", lambda t: t.update(added_tokens=[], model={"vocab": {}, "merges": []}), "vocab",
               "empty")
tokenizer_case("id-beyond", put("model", "vocab", "d", 100), "id 100")
tokenizer_case("id-2-31", put("model", "vocab", "d", 2**31), "id 2147483648")
tokenizer_case("id-negative", put("model", "vocab", "d", -1), "id -1")
tokenizer_case("id-a-text", put("model", "vocab", "d", "6"), "not an integer")
tokenizer_case("id-a-float", put("model", "vocab", "d", 6.0), "not an integer")
tokenizer_case("id-twice", put("model", "vocab", "d", 5), "same id 5")
tokenizer_case("id-gap", put("model", "vocab", "abc", 6), "no token has id 5")
tokenizer_case("token-empty", put("model", "vocab", "", 6), "empty")
tokenizer_case("token-of-a-million-bytes", put("model", "vocab", "x" * 1000000, 6), "1000000 bytes", "limit")

@case("vocabulary-larger-than-the-model", f"the tokenizer has {VOCAB + 6} ids", f"vocab_size is {VOCAB}", served=True)
def _(m):
    m.tokenizer["model"]["vocab"].update({chr(0x100 + i): 6 + i for i in range(VOCAB)})


# ---- merges ----

tokenizer_case("merges-missing", lambda t: t["model"].pop("merges") and None, "merges")
tokenizer_case("merges-a-text", put("model", "merges", "a b"), "merges")
tokenizer_case("merge-of-unknown", put("model", "merges", ["a z"]), "merges[0]", "z")
tokenizer_case("merge-to-unknown", put("model", "merges", ["a b", "b c"]), "merges[1]", "bc")
tokenizer_case("merge-of-one", put("model", "merges", ["ab"]), "merges[0]")
tokenizer_case("merge-of-three", put("model", "merges", [["a", "b", "c"]]), "merges[0]")
tokenizer_case("merge-of-nothing", put("model", "merges", [["", ""]]), "merges[0]")
tokenizer_case("merge-a-number", put("model", "merges", [5]), "merges[0]")
tokenizer_case("merge-of-numbers", put("model", "merges", [[1, 2]]), "merges[0]")

# ---- added tokens ----


def added(**fields):
    return lambda t: t["added_tokens"].append({"id": 6, "content": "<x>", "special": True, **fields})


tokenizer_case("added-an-object", put("added_tokens", {}), "added_tokens")
tokenizer_case("added-a-text", put("added_tokens", ["<s>"]), "added_tokens", "[0]")
tokenizer_case("added-beyond", added(id=1000), "added_tokens", "[1]", "id 1000")
tokenizer_case("added-negative", added(id=-1), "added_tokens", "[1]", "-1")
tokenizer_case("added-id-taken", added(id=1), "added_tokens", "[1]", "same id 1")
tokenizer_case("added-text-taken", added(content="a"), "ids")
tokenizer_case("added-empty", added(content=""), "added_tokens", "[1]", "empty")
tokenizer_case("added-without-text", added(content=None), "added_tokens", "[1]", "content")
tokenizer_case("added-single-word", added(single_word=True), "added_tokens", "[1]", "single_word")
tokenizer_case("added-special-a-text", added(special="yes"), "added_tokens", "[1]", "special")

# ---- kinds that are not known ----

tokenizer_case("version-2", put("version", "2.0"), "version")
for kind in ("Unigram", "WordPiece", "WordLevel"):
    tokenizer_case(f"model-{kind.lower()}", put("model", "type", kind), kind, "not supported")
tokenizer_case("model-a-list", put("model", []), "model")
tokenizer_case("model-dropout", put("model", "dropout", 0.1), "dropout")
tokenizer_case("model-suffix", put("model", "end_of_word_suffix", "</w>"), "end_of_word_suffix")
tokenizer_case("model-unknown-token", put("model", "unk_token", "<unk>"), "<unk>")
tokenizer_case("model-byte-fallback", put("model", "byte_fallback", True), "byte_fallback")
tokenizer_case("normalizer-unknown", put("normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
               "normalizer", "Precompiled")
tokenizer_case("normalizer-regex",
               put("normalizer", {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "b"}), "normalizer",
               "Regex")
tokenizer_case("normalizer-a-text", put("normalizer", "NFC"), "normalizer")
tokenizer_case("pre-tokenizer-unknown", put("pre_tokenizer", {"type": "BertPreTokenizer"}), "pre_tokenizer",
               "BertPreTokenizer")
tokenizer_case("pre-tokenizer-without-type", put("pre_tokenizer", {}), "pre_tokenizer", "type")
tokenizer_case("pre-tokenizer-regex",
               put("pre_tokenizer", {"type": "Split", "pattern": {"Regex": "(a*)*b"}, "behavior": "Isolated",
                                     "invert": False}), "pre_tokenizer", "Split")
tokenizer_case("pre-tokenizer-nested",
               put("pre_tokenizer", {"type": "Sequence", "pretokenizers": [{"type": "Digits"}] * 1000}),
               "pre_tokenizer")
tokenizer_case("decoder-unknown", put("decoder", {"type": "WordPiece"}), "decoder", "WordPiece")
tokenizer_case("post-processor-unknown", put("post_processor", {"type": "BertProcessing"}), "post_processor",
               "BertProcessing")
tokenizer_case("template-of-unknown-token",
               put("post_processor", {"type": "TemplateProcessing",
                                      "single": [{"SpecialToken": {"id": "<x>", "type_id": 0}},
                                                 {"Sequence": {"id": "A", "type_id": 0}}],
                                      "pair": [], "special_tokens": {}}), "post_processor", "<x>")
tokenizer_case("template-of-id-beyond",
               put("post_processor", {"type": "TemplateProcessing",
                                      "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                                                 {"Sequence": {"id": "A", "type_id": 0}}],
                                      "pair": [], "special_tokens": {"<s>": {"id": "<s>", "ids": [99],
                                                                              "tokens": ["<s>"]}}}),
               "post_processor", "<s>", "not in the vocabulary")


# ---- other forms: tokenizer.model, vocab.json and merges.txt ----

MODEL = "tokenizer.model"


def other_case(name, files, *words):
    """files() gives them: some are large, and not made before they are written."""
    @case(name, *words)
    def _(m):
        m.tokenizer = None
        m.files.update(files())
        if "vocab.json" in m.files:
            m.tokenizer_config["tokenizer_class"] = "GPT2Tokenizer"


def piece(text, score=0.0, kind=1):
    """A SentencePiece model's field 1: text, score and type."""
    body = b"\x0a" + bytes([len(text)]) + text + b"\x15" + struct.pack("<f", score) + b"\x18" + bytes([kind])
    return b"\x0a" + bytes([len(body)]) + body


other_case("model-file-empty", lambda: {MODEL: b""}, MODEL)
other_case("model-file-of-zeros", lambda: {MODEL: bytes(1000)}, MODEL)
other_case("model-file-cut", lambda: {MODEL: piece(b"a")[:-3]}, MODEL, "cut off")
other_case("model-file-of-a-lying-length", lambda: {MODEL: b"\x0a\xff\xff\xff\xff\x7f" + bytes(64)}, MODEL)
other_case("model-file-of-an-endless-number", lambda: {MODEL: b"\x0a" + b"\xff" * 64}, MODEL)
other_case("model-file-of-noise", lambda: {MODEL: bytes(range(255, 0, -1)) * 10}, MODEL)
other_case("model-file-of-empty-pieces", lambda: {MODEL: b"\x0a\x00" * 4000000}, MODEL)
other_case("model-file-of-one-piece", lambda: {MODEL: piece(b"a", float("nan"))}, MODEL)
other_case("model-file-of-17-megabytes", lambda: {MODEL: b"\x0a\x00" * 8500000}, MODEL, "limit")
other_case("ranks-not-base64", lambda: {MODEL: b"IQ== 0\nI?== 1\n"}, MODEL)
other_case("ranks-without-id", lambda: {MODEL: b"IQ== 0\nIg==\n"}, MODEL)
other_case("ranks-of-two", lambda: {MODEL: b"IQ== 0\nIg== 1\n"}, MODEL)
other_case("vocab-not-json", lambda: {"vocab.json": b"{", "merges.txt": b"#version: 0.2\na b\n"}, "vocab.json")
other_case("vocab-nested", lambda: {"vocab.json": b'{"a":' * 100000, "merges.txt": b"a b\n"}, "vocab.json",
           "nested deeper")
other_case("vocab-of-empty-lists", lambda: {"vocab.json": b"[" + b"[]," * 2000000 + b"[]]", "merges.txt": b"a b\n"},
           "vocab.json")
other_case("merges-file-of-unknown", lambda: {"vocab.json": b'{"a": 0, "b": 1}', "merges.txt": b"#version: 0.2\na b\n"},
           "merges")


# ---- tokenizer_config.json ----

def settings_case(name, change, *words):
    @case(name, "tokenizer_config.json", *words)
    def _(m):
        m.tokenizer_config = change(m.tokenizer_config)


settings_case("settings-not-json", lambda c: b"[", "line 1")
settings_case("settings-nested", lambda c: b"[" * 100000, "nested deeper")
settings_case("settings-of-9-megabytes", lambda c: json.dumps(c).encode() + b" " * 9000000, "limit")
settings_case("settings-at-its-limits",
              lambda c: {"tokenizer_class": "LlamaTokenizer", "bos_token": "<bos>",
                         "more": [{"a": f"{i:020}"} for i in range(49000)],
                         "texts": [f"{i:040}" for i in range(100000)]},
              "bos_token")
settings_case("settings-bos-unknown", lambda c: {"tokenizer_class": "LlamaTokenizer", "bos_token": "<bos>"},
              "bos_token", "<bos>")
settings_case("settings-add-bos-a-text",
              lambda c: {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "add_bos_token": "yes"},
              "add_bos_token")


@good("settings-missing")
def _(m):
    m.tokenizer_config = None


@good("chat-template-that-would-run", "not one of the known ones")
def _(m):
    m.tokenizer_config["chat_template"] = ("{{ ''.__class__.__mro__[1].__subclasses__() }}"
                                           "{% for i in range(1000000000) %}x{% endfor %}")

"""One file model.safetensors that breaks a rule of its format."""
import json
import os
import socket
import stat
import struct

from make import HIDDEN, case, good

FILE = "model.safetensors"
NORM = "model.norm.weight"


@good("control")
def _(m):
    pass


# ---- the eight bytes in front, and the size of the file ----

for size in (0, 1, 7):
    @case(f"file-of-{size}-bytes", FILE, f"{size} bytes", "at least 10")
    def _(m, size=size):
        m.weights.raw = bytes(size)

for length in (0, 1, 7):
    @case(f"header-length-{length}", FILE, "header")
    def _(m, length=length):
        m.weights.length = length

for name, length, words in (("one-more-than-the-file", None, ["truncated"]), ("2-31", 2**31, ["limit"]),
                            ("2-63", 2**63, ["limit"]), ("2-64-less-1", 2**64 - 1, ["limit"])):
    @case(f"header-length-{name}", FILE, "header of", *words, served=length == 2**63)
    def _(m, length=length):
        m.weights.length = length if length is not None else len(m.weights.bytes()) - 8 + 1


@case("header-of-100-megabytes-of-nothing", FILE, "header of 100000000 bytes", "limit")
def _(m):
    m.weights.length = 100 * 1000 * 1000
    m.special.append(lambda d: os.truncate(os.path.join(d, FILE), 101 * 1000 * 1000))


@good("header-padded-with-spaces")
def _(m):
    m.weights.text = json.dumps(m.weights.header).encode() + b" " * 1000


@case("half-a-download", FILE, "truncated", served=True)
def _(m):
    m.weights.data = m.weights.data[:len(m.weights.data) // 2]


@case("trailing-bytes", FILE, "trailing bytes")
def _(m):
    m.weights.data += b"\0\0"


@case("sparse-terabyte", FILE, "trailing bytes")
def _(m):
    m.special.append(lambda d: os.truncate(os.path.join(d, FILE), 2**40))


@case("git-lfs-pointer", FILE, "git-lfs", "git lfs pull", served=True)
def _(m):
    m.weights.raw = (b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d7a" * 16 +
                     b"\nsize 4976698672\n")


for name, start in (("html-page", b"<!DOCTYPE html><html><head><title>404"), ("pickle", b"PK\x03\x04\0\0\x08\x08" * 4),
                    ("gguf-renamed", b"GGUF\3\0\0\0" + b"\x23\1\0\0" * 8)):
    @case(name, FILE, "header of", "not a safetensors file")
    def _(m, start=start):
        m.weights.raw = start + bytes(200)


# ---- the header's text ----

def text_case(name, change, *words):
    @case(name, FILE, *words)
    def _(m):
        m.weights.text = change(json.dumps(m.weights.header).encode())


text_case("header-a-list", lambda t: b"[" + t + b"]", "begin with '{'")
text_case("header-after-a-space", lambda t: b" " + t, "begin with '{'")
text_case("header-after-a-mark", lambda t: b"\xef\xbb\xbf" + t, "begin with '{'")
text_case("header-of-noise", lambda t: b"{" + bytes(range(256)), "not the JSON")
text_case("header-cut", lambda t: t[:-20], "not the JSON")
text_case("header-with-a-tail", lambda t: t + b"x", "not the JSON")
text_case("header-padded-with-zeros", lambda t: t + bytes(8), "not the JSON")
text_case("header-not-utf-8", lambda t: t.replace(b"model.norm", b"model.n\xff\xfem"), "not the JSON")
text_case("header-half-a-surrogate", lambda t: t.replace(b"model.norm", b"\\ud800.norm"), "not the JSON")
text_case("header-nested", lambda t: b"{\"a\":" + b"[" * 100000 + b"]" * 100000 + b"}", "nested deeper")
text_case("header-of-empty-lists", lambda t: b"{\"a\":[" + b"[]," * 1000000 + b"[]]}", "objects and arrays")
text_case("header-empty", lambda t: b"{}", "trailing bytes")


def twice(text, key):
    """The first member of an object once more."""
    start = text.index(key)
    end = text.index(b"]}", start) + 2 if key.startswith(b'"model') else text.index(b",", start)
    return text[:start] + text[start:end] + b"," + text[start:]


text_case("tensor-twice", lambda t: twice(t, b'"model.norm.weight"'), "duplicate")
text_case("key-twice", lambda t: twice(t, b'"dtype"'), "duplicate")


def many(n):
    entries = (f'"t{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for i in range(n))
    return ("{" + ",".join(entries) + "}").encode()


text_case("tensors-100000", lambda t: many(100000), "more than")
text_case("tensors-1000000", lambda t: many(1000000), "header of", "limit")
# As much as the limits let through, and a fault at the end: what a reader takes is bounded.
text_case("header-at-its-limits",
          lambda t: b"{" + b",".join(b'"%0400d":{"dtype":"U8","shape":[0,1,1,1],"data_offsets":[0,0]}' % i
                                     for i in range(16383)) + b',"a":{}}', "must have dtype")
text_case("metadata-at-its-limits",
          lambda t: b'{"__metadata__":{' + b",".join(b'"%020d":"vvvvvvvv"' % i for i in range(190000)) + b'},"a":{}}',
          "must have dtype")
text_case("metadata-a-number", lambda t: b'{"__metadata__":1,' + t[1:], "__metadata__")
text_case("metadata-of-numbers", lambda t: b'{"__metadata__":{"format":1},' + t[1:], "__metadata__", "strings")
text_case("metadata-of-100000-texts",
          lambda t: b'{"__metadata__":{' + b",".join(b'"k%d":"v"' % i for i in range(250000)) + b"}," + t[1:], "values")


# ---- names ----

def name_case(name, tensor, *words):
    @case(name, FILE, *words)
    def _(m):
        m.weights.header[tensor] = m.weights.header.pop(NORM)


name_case("name-empty", "", "tensor name")
name_case("name-of-a-megabyte", "n" * 1000000, "tensor name", "1024")
name_case("name-of-10-megabytes", "n" * 10000000, "header of", "limit")
name_case("name-with-newline", "model\nnorm", "control characters")
name_case("name-with-escapes", "\x1b[31mmodel", "control characters")
name_case("name-with-delete", "model\x7f", "control characters")
name_case("name-with-zero", "model\0norm", "not the JSON")


@good("name-like-a-path")
def _(m):
    m.weights.append("../../etc/passwd", [1])


# ---- dtype, shape, data_offsets ----

def field_case(name, field, value, *words):
    @case(name, FILE, NORM, *words)
    def _(m):
        m.weights.header[NORM][field] = value


field_case("dtype-unknown", "dtype", "BF17", "dtype is not one the format knows")
field_case("dtype-lower-case", "dtype", "bf16", "dtype is not one the format knows")
field_case("dtype-a-number", "dtype", 16, "dtype must be a string")
field_case("dtype-null", "dtype", None, "dtype must be a string")
field_case("dtype-of-half-a-byte", "dtype", "F4", "data_offsets hold 32 bytes", "need 8")
field_case("field-unknown", "strides", [1], "nothing else")
field_case("shape-a-number", "shape", HIDDEN, "shape must be an array")
field_case("shape-null", "shape", None, "shape must be an array")
field_case("shape-negative", "shape", [-HIDDEN], "none negative")
field_case("shape-twice-negative", "shape", [-1, -HIDDEN], "none negative")
field_case("shape-a-float", "shape", [16.0], "integers")
field_case("shape-a-text", "shape", ["16"], "integers")
field_case("shape-of-65-dimensions", "shape", [1] * 64 + [HIDDEN], "65 dimensions", "limit")
field_case("shape-too-large", "shape", [2**62, 2**62], "larger than 64 bits")
field_case("shape-wraps-around", "shape", [2**32, 2**32, 2**32 + 1], "larger than 64 bits")
field_case("shape-of-another-size", "shape", [HIDDEN + 1], "data_offsets hold 32 bytes", "need 34")
field_case("shape-with-zero", "shape", [HIDDEN, 0], "data_offsets hold 32 bytes", "need 0")
field_case("offsets-a-number", "data_offsets", 0, "two integers")
field_case("offsets-of-three", "data_offsets", [0, 16, 32], "two integers")
field_case("offsets-of-one", "data_offsets", [0], "two integers")
field_case("offsets-texts", "data_offsets", ["0", "32"], "two integers")
field_case("offsets-floats", "data_offsets", [0.0, 32.0], "two integers")
field_case("offsets-negative", "data_offsets", [-32, 0], "negative or reversed")
field_case("offsets-reversed", "data_offsets", [32, 0], "negative or reversed")
field_case("offsets-empty-span", "data_offsets", [64, 64], "data_offsets hold 0 bytes")
field_case("offsets-past-the-end", "data_offsets", [2**40, 2**40 + 32], "truncated")
field_case("offsets-at-the-top", "data_offsets", [2**63 - 33, 2**63 - 1], "truncated")


@case("offset-of-2-64", FILE, "not the JSON")
def _(m):
    m.weights.header[NORM]["data_offsets"] = [0, 2**64]


@case("shape-of-2-64", FILE, "not the JSON")
def _(m):
    m.weights.header[NORM]["shape"] = [2**64]


@case("shape-1e3", FILE, "layernorm.weight", "integers")
def _(m):
    m.weights.text = json.dumps(m.weights.header).replace("[16]", "[1e3]").encode()


@case("field-missing", FILE, NORM, "dtype, shape and data_offsets")
def _(m):
    del m.weights.header[NORM]["shape"]


@case("tensor-a-list", FILE, NORM, "must be an object")
def _(m):
    m.weights.header[NORM] = ["BF16", [16]]


@case("hole-in-the-data", FILE, "lm_head.weight", "a hole or an overlap")
def _(m):
    entry = m.weights.last()
    entry["data_offsets"] = [offset + 64 for offset in entry["data_offsets"]]
    m.weights.data += bytes(64)


@case("tensors-overlap", FILE, "model.embed_tokens.weight", "begins at data byte 0", "overlap")
def _(m):
    m.weights.header[NORM]["data_offsets"] = [0, 32]


@case("data-begin-late", FILE, "begins at data byte 2", "hole")
def _(m):
    for entry in m.weights.header.values():
        entry["data_offsets"] = [offset + 2 for offset in entry["data_offsets"]]
    m.weights.data += bytes(2)


# ---- tensors that do not fit config.json ----

@case("tensor-missing", "weights do not fit config.json", NORM, served=True)
def _(m):
    m.weights.header["model.norm.other"] = m.weights.header.pop(NORM)


@case("tensor-of-other-shape", FILE, "lm_head.weight", "[24, 16]", "[16, 24]")
def _(m):
    m.weights.header["lm_head.weight"]["shape"].reverse()


for dtype, size in (("I16", 2), ("U16", 2)):
    @case(f"tensor-of-{dtype.lower()}", FILE, "lm_head.weight", f"is {dtype}", "F32, F16 and BF16")
    def _(m, dtype=dtype):
        m.weights.header["lm_head.weight"]["dtype"] = dtype


@case("tensor-quantised", FILE, "lm_head.weight", "is F8_E4M3", "unquantised")
def _(m):
    entry = m.weights.header.pop("lm_head.weight")
    begin = entry["data_offsets"][0]
    m.weights.header["lm_head.weight"] = {"dtype": "F8_E4M3", "shape": entry["shape"],
                                          "data_offsets": [begin, begin + n_half(entry)]}
    m.weights.data = m.weights.data[:begin + n_half(entry)]


def n_half(entry):
    return entry["shape"][0] * entry["shape"][1]


@case("bias-of-another-architecture", FILE, "q_proj.bias", "built without it")
def _(m):
    m.weights.append("model.layers.0.self_attn.q_proj.bias", [HIDDEN])


@good("tensor-that-nobody-needs", "rotary_emb.inv_freq")
def _(m):
    m.weights.append("model.layers.0.self_attn.rotary_emb.inv_freq", [2], "F32", 8)


@good("weights-of-nan")
def _(m):
    m.weights.data = b"\xc0\x7f" * (len(m.weights.data) // 2)


# ---- what is no regular file ----

def special_case(name, make, *words):
    @case(name, FILE, *words)
    def _(m):
        m.weights = None
        m.special.append(lambda d: make(os.path.join(d, FILE)))


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as s:
        os.chdir(os.path.dirname(path))  # the whole path may be longer than an address
        s.bind(os.path.basename(path))


special_case("weights-a-fifo", os.mkfifo, "not a regular file")
special_case("weights-a-directory", os.mkdir, "not a regular file")
special_case("weights-a-socket", make_socket, FILE)
special_case("weights-a-link-to-a-device", lambda path: os.symlink("/dev/zero", path), "symbolic link that leads out")
special_case("weights-a-link-out", lambda path: os.symlink("/etc/passwd", path), "symbolic link that leads out")
special_case("weights-a-link-up", lambda path: os.symlink("../control/model.safetensors", path),
             "symbolic link that leads out")
special_case("weights-a-link-to-itself", lambda path: os.symlink(FILE, path), FILE)
special_case("weights-a-link-to-nothing", lambda path: os.symlink("nothing", path), "No such file")

if os.geteuid() == 0:
    special_case("weights-a-device", lambda path: os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 5)),
                 FILE)


# ---- other formats ----

for kind in (".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".onnx", ".msgpack"):
    @case(f"only{kind.replace('.', '-')}", kind, "no model.safetensors", "fix", served=kind == ".bin")
    def _(m, kind=kind):
        m.weights = None
        m.files["pytorch_model" + kind] = b"\x80\x02cos\nsystem\n(S'touch executed'\ntR."


@case("no-weights", "neither model.safetensors nor model.safetensors.index.json")
def _(m):
    m.weights = None

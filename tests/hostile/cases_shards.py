"""model.safetensors.index.json and the files it names."""
import json
import os

from make import case, good

INDEX = "model.safetensors.index.json"
FIRST = "model-00001-of-00002.safetensors"
SECOND = "model-00002-of-00002.safetensors"
NORM = "model.norm.weight"


@good("shards")
def _(m):
    m.shard()


def index_case(name, change, *words, **options):
    """change(index) gives what is written instead, bytes or an object."""
    @case(name, *words, **options)
    def _(m):
        m.shard()
        m.index = change(m.index)


def mapped(value):
    """The index with another file for one tensor."""
    def change(index):
        index["weight_map"][NORM] = value
        return index
    return change


index_case("index-empty", lambda index: b"", INDEX, "not the JSON")
index_case("index-not-json", lambda index: b"{]", INDEX, "not the JSON")
index_case("index-a-list", lambda index: [index], INDEX, "weight_map")
index_case("index-nested", lambda index: b"[" * 100000, INDEX, "nested deeper")
index_case("index-cut", lambda index: json.dumps(index).encode()[:-40], INDEX, "not the JSON")
index_case("index-without-map", lambda index: {"metadata": {}}, INDEX, "weight_map")
index_case("index-map-empty", lambda index: {"weight_map": {}}, INDEX, "weight_map")
index_case("index-map-a-list", lambda index: {"weight_map": list(index["weight_map"])}, INDEX, "weight_map")
index_case("index-key-twice",
           lambda index: json.dumps(index).replace('"model.norm.weight"', '"lm_head.weight"').encode(),
           INDEX, "not the JSON")
index_case("index-tensor-without-name", lambda index: {"weight_map": {"": FIRST}}, INDEX, "weight_map")
index_case("index-of-9-megabytes", lambda index: json.dumps(index).encode() + b" " * 9000000, INDEX, "limit")
index_case("index-of-100000-shards", lambda index: {"weight_map": {f"t{i}": f"s{i}" for i in range(100000)}}, INDEX,
           "more than")
index_case("index-at-its-limits", lambda index: {"weight_map": {f"{i:080}": FIRST for i in range(65500)}}, FIRST,
           "the file lacks it")
index_case("index-of-2000-shards", lambda index: {"weight_map": {f"t{i}": f"s{i:04}" for i in range(2000)}},
           "s0000", "No such file")
index_case("shard-a-number", mapped(2), INDEX, "weight_map")
index_case("shard-null", mapped(None), INDEX, "weight_map")
index_case("shard-without-name", mapped(""), "file name", "empty")
index_case("shard-above", mapped("../control/model.safetensors"), "../control", "leads out of the model directory",
           served=True)
index_case("shard-absolute", mapped("/etc/passwd"), "/etc/passwd", "leads out of the model directory")
index_case("shard-the-directory", mapped("."), "leads out of the model directory")
index_case("shard-the-parent", mapped(".."), "leads out of the model directory")
index_case("shard-with-backslash", mapped("..\\model.safetensors"), "leads out of the model directory")
index_case("shard-with-zero", mapped(SECOND + "\0"), INDEX, "not the JSON")
index_case("shard-with-newline", mapped("a\nb"), "control characters")
index_case("shard-of-a-long-name", mapped("s" * 300), "longer than 255")
index_case("shard-not-there", mapped("model-00003-of-00003.safetensors"), "model-00003", "No such file", served=True)
index_case("shard-lacks-the-tensor", mapped(FIRST), FIRST, NORM, "the file lacks it")


def total(value):
    def change(index):
        index["metadata"]["total_size"] = value
        return index
    return change


index_case("total-too-large", total(10**12), INDEX, "total_size")
index_case("total-negative", total(-1), INDEX, "total_size")
index_case("total-a-text", total("many"), INDEX, "total_size")


@case("tensor-in-two-shards", FIRST, NORM, SECOND)
def _(m):
    m.shard()
    m.files[FIRST].append(NORM, [16])
    m.index["metadata"]["total_size"] += 32


@good("shard-with-more-than-the-index-says")
def _(m):
    m.shard()
    m.files[FIRST].append("nobody.asks", [16])


def special_shard(name, make, *words):
    @case(name, SECOND, *words)
    def _(m):
        m.shard()
        content = m.files.pop(SECOND).bytes()

        def replace(directory):
            make(os.path.join(directory, SECOND), content)
        m.special.append(replace)


special_shard("shard-a-link-out", lambda path, content: os.symlink("/etc/passwd", path), "symbolic link")
special_shard("shard-a-fifo", lambda path, content: os.mkfifo(path), "not a regular file")
special_shard("shard-a-directory", lambda path, content: os.mkdir(path), "not a regular file")


def write_part(path, content):
    with open(path, "wb") as file:
        file.write(content)


special_shard("shard-half", lambda path, content: write_part(path, content[:len(content) // 2]), "truncated")
special_shard("shard-a-pointer",
              lambda path, content: write_part(path, b"version https://git-lfs.github.com/spec/v1\n" + b"x" * 80),
              "git-lfs")
special_shard("shard-a-link-to-itself", lambda path, content: os.symlink(SECOND, path), "symbolic link")


@case("index-a-fifo", INDEX, "not a file")
def _(m):
    m.weights = None
    m.special.append(lambda d: os.mkfifo(os.path.join(d, INDEX)))


@case("index-a-directory", INDEX, "not a file")
def _(m):
    m.weights = None
    m.special.append(lambda d: os.mkdir(os.path.join(d, INDEX)))


@good("hugging-face-cache")
def _(m):
    """snapshots/<commit>/x is a link to ../../blobs/<hash>: the one way out that is taken."""
    weights = m.weights.bytes()
    m.weights = None
    blob = "0123456789abcdef" * 4

    def link(directory):
        blobs = os.path.join(os.path.dirname(os.path.dirname(directory)), "blobs")
        os.makedirs(blobs, exist_ok=True)
        with open(os.path.join(blobs, blob), "wb") as file:
            file.write(weights)
        os.symlink("../../blobs/" + blob, os.path.join(directory, "model.safetensors"))
    m.special.append(link)

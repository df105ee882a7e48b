"""Damaged safetensors files, read by ours and by the library safetensors (PyPI): who takes what?

What both take must hold the same tensors. What the library refuses, ours must refuse. What ours alone refuses is
counted under the rule that makes it stricter; a refusal that no rule of STRICTER explains is a failure.
"""
import argparse
import collections
import copy
import json
import os
import random
import re
import struct
import subprocess
import sys
import tempfile

import safetensors

DTYPES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}

# Where ours is stricter than the library, and why.
STRICTER = [
    (r"control characters", "names go into messages and logs: 1 to 1024 bytes without control characters"),
    (r"nothing else", "a field beside dtype, shape and data_offsets is not one of the format"),
    (r"dimensions, limit 8", "no weight has more than eight dimensions"),
    (r"nested deeper", "a header has three levels; the parser must not recurse as a file wishes"),
    (r"more than \d+ (values|objects)|header of \d+ bytes, limit", "memory in proportion to the model"),
    (r"not the JSON.*\\u0000", "no NUL in a name: it would end there"),
    (r"not the JSON.*duplicate", "two members of one name: which is meant would be a guess"),
    (r"not the JSON.*(too big integer|real number overflow)", "a number that no member of the format holds"),
    (r"must begin with", "the format says that the header begins with '{'; the library lets white space pass"),
    (r"must be an object|must have dtype", "a tensor is an object of three named members"),
]


def fnv(data):
    value = 0xCBF29CE484222325
    for byte in data:
        value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return value


# ---- files ---------------------------------------------------------------------------------------------------------


def good_header(rng):
    header, at = {}, 0
    for i in range(rng.randint(0, 4)):
        dtype = rng.choice(list(DTYPES))
        shape = [rng.randint(0, 3) for _ in range(rng.randint(0, 3))]
        size = DTYPES[dtype]
        for dim in shape:
            size *= dim
        header[f"{rng.choice('abcde')}.{i}"] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    if rng.random() < 0.3:
        header["__metadata__"] = {"format": "pt"}
    return header, at


VALUES = [0, 1, -1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 1.0, 0.5, 1e30, True, False, None, "", "1", "F32",
          "BF17", [], [0], [0, 0], [0, 0, 0], [1.0], ["1"], [None], {}, {"dtype": "F32"}, [[1]]]
NAMES = ["", "a", "__metadata__", "a\nb", "\x7f", "é", "\u0000", "x" * 1025, "../../a", "__metadata__ "]


def change_entry(rng, header):
    """One member of one tensor becomes another thing."""
    name = rng.choice(list(header))
    if not isinstance(header[name], dict):
        return
    what = rng.random()
    if what < 0.5:
        header[name][rng.choice(["dtype", "shape", "data_offsets", "other"])] = copy.deepcopy(rng.choice(VALUES))
    elif what < 0.7 and header[name]:
        header[name].pop(rng.choice(list(header[name])))
    elif what < 0.9 and isinstance(header[name].get("data_offsets"), list):
        header[name]["data_offsets"] = [o + rng.choice([-2, -1, 0, 1, 2]) if isinstance(o, int) else o
                                        for o in header[name]["data_offsets"]]
    else:
        header[rng.choice(NAMES)] = header.pop(name)


def change_header(rng, header):
    for _ in range(rng.randint(0, 2)):
        if header and rng.random() < 0.8:
            change_entry(rng, header)
        else:
            header[rng.choice(NAMES)] = copy.deepcopy(rng.choice(VALUES))


def change_text(rng, text):
    text = bytearray(text)
    for _ in range(rng.choice([0, 0, 0, 1, 1, 2, 4])):
        if not text:
            break
        at = rng.randrange(len(text))
        what = rng.random()
        if what < 0.4:
            text[at] = rng.randrange(256)
        elif what < 0.6:
            text[at] = rng.choice(b'{}[]",:0123456789 \\')
        elif what < 0.75:
            del text[at:at + rng.randint(1, 4)]
        elif what < 0.9:
            text[at:at] = rng.choice([b" ", b"\n", b"\t", b"0", b"-", b"\"", b"\\u0000", b"\\ud800", b"\xff", b"1e5",
                                      b"{}", b"[]", b",", b"\xef\xbb\xbf"])
        else:
            begin = rng.randrange(len(text))
            text[at:at] = text[begin:begin + rng.randint(1, 40)]
    return bytes(text)


def make_file(rng):
    header, n_data = good_header(rng)
    if rng.random() < 0.6:
        change_header(rng, header)
    text = json.dumps(header, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    if rng.random() < 0.5:
        text = change_text(rng, text)
    text += b" " * rng.choice([0, 0, 1, 7])
    length = len(text) + (rng.choice([-1, 1, 2**31, 2**63]) if rng.random() < 0.05 else 0)
    data = rng.randbytes(max(0, n_data + (rng.choice([-1, 1, 8]) if rng.random() < 0.1 else 0)))
    content = struct.pack("<Q", length % 2**64) + text + data
    return content[:rng.randrange(len(content))] if rng.random() < 0.03 else content


# ---- answers -------------------------------------------------------------------------------------------------------


def by_library(content):
    """Lines of tensors, or None and the reason of the refusal."""
    try:
        tensors = safetensors.deserialize(content)
    except Exception as error:  # whatever it raises is a refusal
        return None, str(error)
    answer = sorted((name.encode(), t["dtype"], json.dumps(list(t["shape"])), f"{fnv(bytes(t['data'])):016x}")
                    for name, t in tensors)
    return answer, ""


def by_ours(tool, paths):
    answer = subprocess.run([tool], input="".join(path + "\n" for path in paths).encode(), stdout=subprocess.PIPE,
                            check=True).stdout
    lines = answer.split(b"\n")
    assert len(lines) == len(paths) + 1, (len(lines), len(paths))
    return lines[:-1]


def parse_ours(line):
    if line.startswith(b"refused "):
        return None, line[len(b"refused "):].decode("utf-8", "replace")
    words = line.split(b"\t")[1:]
    return sorted((words[i], words[i + 1].decode(), words[i + 2].decode(), words[i + 3].decode())
                  for i in range(0, len(words), 4)), ""


class Comparison:
    def __init__(self):
        self.both_read = self.both_refused = 0
        self.stricter = collections.Counter()
        self.failures = []

    def add(self, content, ours, library):
        (our_tensors, our_reason), (tensors, reason) = ours, library
        if tensors is None and our_tensors is None:
            self.both_refused += 1
        elif tensors is None:
            self.failures.append((content, f"the library refuses ({reason}), ours does not"))
        elif our_tensors is None:
            rules = [why for pattern, why in STRICTER if re.search(pattern, our_reason)]
            if rules:
                self.stricter[rules[0]] += 1
            else:
                self.failures.append((content, f"ours alone refuses: {our_reason}"))
        elif our_tensors != tensors:
            self.failures.append((content, f"ours reads {our_tensors}, the library {tensors}"))
        else:
            self.both_read += 1


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", required=True)
    parser.add_argument("--files", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    contents = [make_file(rng) for _ in range(arguments.files)]
    comparison = Comparison()
    with tempfile.TemporaryDirectory() as directory:
        paths = [os.path.join(directory, f"{i}.safetensors") for i in range(len(contents))]
        for path, content in zip(paths, contents):
            with open(path, "wb") as file:
                file.write(content)
        ours = by_ours(os.path.join(arguments.build, "tests", "safetensors_tool"), paths)
    for content, line in zip(contents, ours):
        comparison.add(content, parse_ours(line), by_library(content))

    print(f"safetensors {safetensors.__version__}, {len(contents)} damaged files, seed {arguments.seed}: "
          f"{comparison.both_read} read alike, {comparison.both_refused} refused by both, "
          f"{sum(comparison.stricter.values())} by ours alone:")
    for why, n in comparison.stricter.most_common():
        print(f"  {n:5} {why}")
    for content, what in comparison.failures[:10]:
        print(f"FAILED: {what}\n  {content!r}")
    ends = 1 if comparison.failures or comparison.both_read == 0 else 0
    print(f"safetensors: {len(comparison.failures)} differences")
    sys.exit(ends)


if __name__ == "__main__":
    main()

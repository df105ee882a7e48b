"""ops/bench/vs-llamacpp beside programs that stand in for llama.cpp's: its table, its GGUF files, its refusals."""
import json
import os
import struct
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BIN = os.environ["KVASIR_BIN"]
sys.path.insert(0, os.path.join(ROOT, "ops", "bench", "lib"))
import random_gguf

DECI = {"architectures": ["DeciLMForCausalLM"], "model_type": "deci", "hidden_size": 64, "intermediate_size": 96,
        "num_attention_heads": 4, "num_key_value_heads_per_layer": [4, 1], "num_hidden_layers": 2, "vocab_size": 320,
        "max_position_embeddings": 256, "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16", "bos_token_id": 0, "eos_token_id": 0}
# As llama-bench and llama-batched-bench print; the last line of a run may be missing.
STAND_IN = {
    "llama-bench": """echo '{"avg_ts": 2.0, "build_commit": "abc"}'""",
    "llama-batched-bench": """echo '{"pl": 1, "speed_tg": 3.0}'; echo '{"pl": 8, "speed_tg": 4.0}'""",
}


def run(*args):
    return subprocess.run([os.path.join(ROOT, "ops", "bench", "vs-llamacpp"), "--bin", BIN, *args], capture_output=True, text=True,
                          timeout=200, check=False)


class Reader:
    """Reads what GGUF's description says, by itself."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, fmt):
        values = struct.unpack_from("<" + fmt, self.data, self.at)
        self.at += struct.calcsize("<" + fmt)
        return values[0] if len(values) == 1 else values

    def text(self):
        n = self.take("Q")
        self.at += n
        return self.data[self.at - n:self.at].decode()

    def value(self, kind):
        if kind == 8:
            return self.text()
        if kind == 9:
            inner, n = self.take("IQ")
            return [self.value(inner) for _ in range(n)]
        return self.take({4: "I", 5: "i", 6: "f", 7: "?"}[kind])


def test_gguf(folder):
    for weights, bytes_of_32, kind in (("bf16", 64, 30), ("q8_0", 34, 8)):
        path = os.path.join(folder, weights)
        random_gguf.write(path, DECI, weights)
        with open(path, "rb") as file:
            reader = Reader(file.read())
        assert reader.take("4s") == b"GGUF"
        version, n_tensors, n_keys = reader.take("IQQ")
        keys = {}
        for _ in range(n_keys):
            name = reader.text()
            keys[name] = reader.value(reader.take("I"))
        assert version == 3 and keys["general.architecture"] == "deci", keys
        assert keys["deci.attention.head_count_kv"] == [4, 1] and keys["deci.attention.head_count"] == [4, 4], keys
        tensors, end = {}, 0
        for _ in range(n_tensors):
            name, n_dimensions = reader.text(), reader.take("I")
            shape = [reader.take("Q") for _ in range(n_dimensions)]
            tensor_kind, offset = reader.take("IQ")
            assert offset == end and offset % 32 == 0, (name, offset, end)
            assert tensor_kind == (kind if n_dimensions == 2 else 0), name
            n = shape[0] * (shape[1] if n_dimensions == 2 else 1)
            end += -(-(n // 32 * bytes_of_32 if n_dimensions == 2 else n * 4) // 32) * 32
            tensors[name] = shape
        data = -(-reader.at // 32) * 32
        assert len(reader.data) == data + end, (len(reader.data), data, end)
        assert tensors["blk.0.attn_k.weight"] == [64, 64] and tensors["blk.1.attn_v.weight"] == [64, 16], tensors
        assert tensors["blk.1.ffn_down.weight"] == [96, 64] and len(tensors) == 3 + 2 * 9, tensors
        if weights == "bf16":
            values = struct.unpack_from("<1024H", reader.data, data)
            magnitudes = [struct.unpack("<f", struct.pack("<I", (v & 0x7FFF) << 16))[0] for v in values]
            assert 0.007 < min(magnitudes) and max(magnitudes) < 0.04 and len(set(values)) > 200


def test_table(folder):
    model, programs = os.path.join(folder, "small"), os.path.join(folder, "programs")
    os.mkdir(model)
    os.mkdir(programs)
    with open(os.path.join(model, "config.json"), "w", encoding="utf-8") as file:
        json.dump(DECI, file)
    assert run("--model", model, programs).returncode == 66  # nothing is there
    for name, text in STAND_IN.items():
        with open(os.path.join(programs, name), "w", encoding="utf-8") as file:
            file.write(f"#!/bin/sh\n{text}\n")
        os.chmod(file.name, 0o755)
    assert run("--model", "nothing", programs).returncode == 66
    done = run("--model", model, "--weights", "bf16", "--rounds", "1", "--prefill", "16", "--prompt", "4", "--generate", "2", programs)
    assert done.returncode == 0, done.stderr
    rows = {tuple(line.split()[3:5]): line.split() for line in done.stdout.splitlines()[1:]}
    assert set(rows) == {("prefill", "16"), ("decode", "1"), ("decode", "8")}, done.stdout
    for row, theirs in ((("prefill", "16"), 2), (("decode", "1"), 3), (("decode", "8"), 4)):
        ours, peer, ratio = map(float, rows[row][5:8])
        assert peer == theirs and ours > 0 and abs(ratio - ours / peer) < 0.1 + 0.01 * ratio, rows[row]


def main():
    with tempfile.TemporaryDirectory(prefix="kvasir-vs-llamacpp-test-") as folder:
        test_gguf(folder)
        test_table(folder)


if __name__ == "__main__":
    main()

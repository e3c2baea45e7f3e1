"""llama.cpp's decode steps, one thread; started by bench/compute.py with the Python of llama.cpp's own environment.

That environment holds ``gguf`` and ``llama-cpp-python``. Speaks JSON lines: the first says what to make, each further one
``{"steps": n}`` is answered with the seconds, and the processor's seconds, of each step. Nothing of ours is imported.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np

ARCHITECTURE = "llama"


def write_model(path: Path, shape: dict[str, int]) -> None:
    """A Llama of ``shape`` with random bfloat16 weights and float32 norms; no tokenizer."""
    random = np.random.default_rng(0)
    d, heads, kv_heads, e = shape["hidden"], shape["heads"], shape["kv_heads"], shape["head"]
    writer = gguf.GGUFWriter(path, ARCHITECTURE)
    writer.add_vocab_size(shape["vocabulary"])
    writer.add_tokenizer_model("no_vocab")
    writer.add_context_length(8192)
    writer.add_embedding_length(d)
    writer.add_block_count(shape["layers"])
    writer.add_feed_forward_length(shape["mlp"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(e)
    writer.add_value_length(e)
    writer.add_rope_dimension_count(e)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)

    def add(name: str, *dims: int) -> None:
        if len(dims) == 1:
            writer.add_tensor(name, np.ones(dims, np.float32))
            return
        bits = (random.standard_normal(dims, np.float32) * np.float32(0.02)).view(np.uint32)
        writer.add_tensor(name, (bits >> 16).astype(np.uint16).view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)

    add("token_embd.weight", shape["vocabulary"], d)
    add("output_norm.weight", d)
    add("output.weight", shape["vocabulary"], d)
    for layer in range(shape["layers"]):
        at = f"blk.{layer}."
        add(at + "attn_norm.weight", d)
        add(at + "attn_q.weight", heads * e, d)
        add(at + "attn_k.weight", kv_heads * e, d)
        add(at + "attn_v.weight", kv_heads * e, d)
        add(at + "attn_output.weight", d, heads * e)
        add(at + "ffn_norm.weight", d)
        add(at + "ffn_gate.weight", shape["mlp"], d)
        add(at + "ffn_up.weight", shape["mlp"], d)
        add(at + "ffn_down.weight", d, shape["mlp"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Decoder:
    """``batch`` sequences of ``context`` tokens each, and one more token of each a step."""

    def __init__(self, path: Path, batch: int, context: int, vocabulary: int, threads: int) -> None:
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = batch * (context + 512)
        options.n_batch = options.n_ubatch = 512
        options.n_seq_max = batch
        options.n_threads = options.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, options)
        self.rows = llama_cpp.llama_batch_init(512, 0, 1)
        self.start, self.vocabulary = context, vocabulary
        self.tokens = [1] * batch
        random = np.random.default_rng(1)
        for sequence in range(batch):
            prompt = random.integers(0, vocabulary, context).tolist()
            for first in range(0, context, 512):
                chunk = prompt[first : first + 512]
                self._decode([(token, first + i, sequence, False) for i, token in enumerate(chunk)])

    def steps(self, count: int) -> list[tuple[float, float]]:
        """(seconds, processor seconds) of each; all start at the same context again."""
        memory = llama_cpp.llama_get_memory(self.context)
        for sequence in range(len(self.tokens)):
            llama_cpp.llama_memory_seq_rm(memory, sequence, self.start, -1)
        times = []
        for position in range(self.start, self.start + count):
            wall, cpu = time.perf_counter(), time.process_time()
            self._decode([(token, position, sequence, True) for sequence, token in enumerate(self.tokens)])
            self.tokens = [self._best(row) for row in range(len(self.tokens))]
            times.append((time.perf_counter() - wall, time.process_time() - cpu))
        return times

    def _decode(self, rows: list[tuple[int, int, int, bool]]) -> None:
        self.rows.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            self.rows.token[i], self.rows.pos[i] = token, position
            self.rows.n_seq_id[i], self.rows.seq_id[i][0], self.rows.logits[i] = 1, sequence, wanted
        if llama_cpp.llama_decode(self.context, self.rows):
            raise RuntimeError("llama_decode failed")

    def _best(self, row: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(self.context, row)
        array = np.ctypeslib.as_array(ctypes.cast(logits, ctypes.POINTER(ctypes.c_float)), shape=(self.vocabulary,))
        return int(array.argmax())


def main() -> None:
    # llama.cpp prints its own log to both; answers go to what stdout was.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    wish: dict[str, Any] = json.loads(sys.stdin.readline())
    path = Path(wish["file"])
    if not path.exists():
        write_model(path.with_suffix(".part"), wish["shape"])
        path.with_suffix(".part").rename(path)
    llama_cpp.llama_backend_init()
    made = {b: Decoder(path, b, wish["context"], wish["shape"]["vocabulary"], wish["threads"]) for b in wish["batches"]}
    print(json.dumps({"version": llama_cpp.__version__}), file=answers)
    for line in sys.stdin:
        ask = json.loads(line)
        print(json.dumps(made[ask["batch"]].steps(ask["steps"])), file=answers)


if __name__ == "__main__":
    main()

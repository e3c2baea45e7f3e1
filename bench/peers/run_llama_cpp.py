"""llama.cpp with its RPC backend, in llama.cpp's own environment (``llama-cpp-python``, ``gguf``); protocol.py has the protocol.

Machine 0 is the main process: embedding, the first layers, output layer and sampling. Each other machine is an RPC server
with one thread. Where a layer's device changes, activations come back to the main process and go on from there.
"""

from __future__ import annotations

import ctypes
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[2])

import gguf  # noqa: E402
import llama_cpp  # noqa: E402
import numpy as np  # noqa: E402

from bench.peers.protocol import Server, ends_its_group, wait_for  # noqa: E402

CHUNK = 512
ALIGNMENT = 64
"""Bytes: a cache line. At 32, the default, every load of a wide vector may cross two, and a step take a quarter longer."""
CPU_DEVICE = 0
NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
TYPES = {
    "BF16": (np.uint16, gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "F16": (np.float16, gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "F32": (np.float32, gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
}


class Library:
    """Functions of ggml that llama-cpp-python ships and does not wrap."""

    def __init__(self) -> None:
        folder = Path(llama_cpp.__file__).parent / "lib"
        base, ggml, rpc = (ctypes.CDLL(str(folder / f"lib{name}.so")) for name in ("ggml-base", "ggml", "ggml-rpc"))
        pointer = ctypes.c_void_p
        self.start_server = rpc.ggml_backend_rpc_start_server
        self.start_server.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t, pointer]
        self.start_server.restype = None
        self.add_server = self._typed(rpc.ggml_backend_rpc_add_server, ctypes.c_char_p)
        self.device_of = self._typed(base.ggml_backend_reg_dev_get, pointer, ctypes.c_size_t)
        self.device_by_type = self._typed(ggml.ggml_backend_dev_by_type, ctypes.c_int)
        self.cpu_buffers = self._typed(base.ggml_backend_cpu_buffer_type)
        self.register = ggml.ggml_backend_register
        self.register.argtypes, self.register.restype = [pointer], None

    @staticmethod
    def _typed(function: Any, *arguments: Any) -> Any:
        function.argtypes, function.restype = list(arguments), ctypes.c_void_p
        return function


class Override(ctypes.Structure):
    """Tensors whose name matches stay in these buffers."""

    _fields_ = (("pattern", ctypes.c_char_p), ("buffers", ctypes.c_void_p))


def serve_layers(endpoint: str) -> None:
    """An RPC server with one thread on this machine's processor; does not return."""
    library = Library()
    devices = (ctypes.c_void_p * 1)(library.device_by_type(CPU_DEVICE))
    library.start_server(endpoint.encode(), None, 1, 1, devices)


def read_tensors(file: Path) -> dict[str, tuple[str, Any]]:
    """(type, array) of each tensor of a safetensors file; bfloat16 as its bits."""
    with file.open("rb") as opened:
        header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
        start = opened.tell()
    header.pop("__metadata__", None)
    return {
        name: (
            facts["dtype"],
            np.memmap(file, TYPES[facts["dtype"]][0], "r", start + facts["data_offsets"][0], tuple(facts["shape"])),
        )
        for name, facts in header.items()
    }


def write_model(directory: Path, path: Path) -> None:
    """The plain Llama checkpoint in ``directory`` as GGUF without a tokenizer; norms as float32."""
    config = json.loads((directory / "config.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    tensors = read_tensors(directory / "model.safetensors")
    kind = tensors["lm_head.weight"][0]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(ALIGNMENT)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_file_type(TYPES[kind][2])
    for name, (_, array) in tensors.items():
        layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.weight", name)
        short = NAMES[layer[2] if layer else name.removesuffix(".weight")]
        target = f"blk.{layer[1]}.{short}.weight" if layer else f"{short}.weight"
        if array.ndim == 1:
            wide = (array.astype(np.uint32) << 16).view(np.float32) if kind == "BF16" else array.astype(np.float32)
            writer.add_tensor(target, wide)
            continue
        if short in ("attn_q", "attn_k"):
            array = _in_pairs(array, heads if short == "attn_q" else kv_heads)
        array = np.ascontiguousarray(array)
        if kind == "BF16":
            writer.add_tensor(target, array.view(np.uint8), raw_dtype=TYPES[kind][1])
        else:
            writer.add_tensor(target, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _in_pairs(rows: Any, heads: int) -> Any:
    """Rows of each head from halves to neighbours: GGUF's Llama rotates (0, 1), (2, 3), ..., the checkpoint (0, e/2), ..."""
    return rows.reshape(heads, 2, -1, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


class Greedy:
    """All sequences in one llama_batch a step."""

    def __init__(self, path: Path, layers: list[int], endpoints: list[str]) -> None:
        self.version = f"llama-cpp-python {llama_cpp.__version__}"
        llama_cpp.llama_backend_init()
        options = llama_cpp.llama_model_default_params()
        options.n_gpu_layers = 0
        if endpoints:
            library = Library()
            registered = [library.add_server(endpoint.encode()) for endpoint in endpoints]
            for one in registered:
                library.register(one)
            self._devices = (ctypes.c_void_p * (len(endpoints) + 1))(*(library.device_of(one, 0) for one in registered), None)
            # Logits would cross a link where activations can: the output layer stays with the main process.
            self._overrides = (Override * 2)(Override(rb"^output\.weight$", library.cpu_buffers()), Override(None, None))
            # The output layer counts as one more of the last machine.
            shares = [float(count) for count in layers[1:-1]] + [layers[-1] + 1.0]
            self._split = (ctypes.c_float * llama_cpp.llama_max_devices())(*shares)
            options.devices = ctypes.cast(self._devices, ctypes.c_void_p)
            options.tensor_buft_overrides = ctypes.cast(self._overrides, ctypes.c_void_p)
            options.tensor_split = self._split
            options.split_mode = llama_cpp.LLAMA_SPLIT_MODE_LAYER
            options.n_gpu_layers = sum(layers[1:]) + 1
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), options)
        if not self._model:
            raise RuntimeError("llama.cpp cannot load the model")
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._rows = llama_cpp.llama_batch_init(CHUNK, 0, 1)
        self._context: Any = None
        self._asked = (0, 0)
        self._position = self._prompt = 0

    def prepare(self, batch: int, length: int) -> None:
        """A context with room for ``batch`` sequences of ``length`` tokens, warmed up and empty."""
        if self._asked != (batch, length):
            if self._context:
                llama_cpp.llama_free(self._context)
            options = llama_cpp.llama_context_default_params()
            options.n_ctx = batch * (-(-length // 256) * 256)
            options.n_batch = options.n_ubatch = CHUNK
            options.n_seq_max = batch
            options.n_threads = options.n_threads_batch = 1
            self._context = llama_cpp.llama_init_from_model(self._model, options)
            if not self._context:
                raise RuntimeError("llama.cpp cannot make a context")
            self._asked = (batch, length)
            self._decode([(1, 0, sequence, True) for sequence in range(batch)])
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)

    def prefill(self, prompts: list[list[int]]) -> list[int]:
        self._position = self._prompt = len(prompts[0])
        rows = [(token, i, s, i == self._prompt - 1) for s, prompt in enumerate(prompts) for i, token in enumerate(prompt)]
        picked = []
        for first in range(0, len(rows), CHUNK):
            picked += self._decode(rows[first : first + CHUNK])
        return picked

    def step(self, tokens: list[int]) -> list[int]:
        picked = self._decode([(token, self._position, sequence, True) for sequence, token in enumerate(tokens)])
        self._position += 1
        return picked

    def rewind(self) -> None:
        memory = llama_cpp.llama_get_memory(self._context)
        for sequence in range(self._asked[0]):
            llama_cpp.llama_memory_seq_rm(memory, sequence, self._prompt, -1)
        self._position = self._prompt

    def _decode(self, rows: list[tuple[int, int, int, bool]]) -> list[int]:
        """The best token of each row that is wanted."""
        self._rows.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            self._rows.token[i], self._rows.pos[i] = token, position
            self._rows.n_seq_id[i], self._rows.seq_id[i][0], self._rows.logits[i] = 1, sequence, wanted
        if llama_cpp.llama_decode(self._context, self._rows):
            raise RuntimeError("llama_decode failed")
        return [self._best(i) for i, row in enumerate(rows) if row[3]]

    def _best(self, row: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(self._context, row)
        array = np.ctypeslib.as_array(ctypes.cast(logits, ctypes.POINTER(ctypes.c_float)), shape=(self._vocabulary,))
        return int(array.argmax())


def main() -> None:
    server = Server()
    asked = server.configuration()
    path = Path(asked["folder"]) / "model.gguf"
    write_model(Path(asked["directory"]), path)
    for port in asked["ports"][1:]:
        subprocess.Popen([sys.executable, __file__, f"127.0.0.1:{port}"], stdin=subprocess.DEVNULL)
        wait_for(port)
    server.serve(Greedy(path, asked["layers"], asked["relays"][1:]))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        serve_layers(sys.argv[1])
    with ends_its_group():
        main()

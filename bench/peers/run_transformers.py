"""transformers in one process, one thread: the project's own environment. The protocol is that of protocol.py."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch  # noqa: E402
import transformers  # noqa: E402

from bench.exact import load  # noqa: E402
from bench.peers.protocol import Server, ends_its_group  # noqa: E402
from bloombee.types import Dtype  # noqa: E402


class Greedy:
    """The model's own forward and cache."""

    def __init__(self, model: str, dtype: str) -> None:
        self.version = f"transformers {transformers.__version__}, torch {torch.__version__}"
        self._model = load(model, Dtype(dtype))
        self._cache: Any = None

    def prepare(self, batch: int, length: int) -> None:
        self._cache = None

    def prefill(self, prompts: list[list[int]]) -> list[int]:
        return self._forward(prompts)

    def step(self, tokens: list[int]) -> list[int]:
        return self._forward([[token] for token in tokens])

    def _forward(self, rows: list[list[int]]) -> list[int]:
        with torch.inference_mode():
            out = self._model(torch.tensor(rows), past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self._cache = out.past_key_values
        picked: list[int] = out.logits[:, -1].argmax(dim=-1).tolist()
        return picked


if __name__ == "__main__":
    with ends_its_group():
        torch.set_num_threads(1)
        server = Server()
        asked = server.configuration()
        server.serve(Greedy(asked["model"], asked["dtype"]))

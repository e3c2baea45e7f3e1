"""Whether the tokens of a run are those of one process: re-scored teacher-forced by transformers, in a process of its own.

Each emitted token is compared with what one process's logits at its position say. In fp32 every token must be the best
one, which is to say the text is what one process would have generated. In narrower types kernels for one and for many rows
round differently: a token must be within 2^-6 of the largest magnitude of its logits' best; those that differ are ``flips``.
A stand-in's tokens are known beforehand.

    python -m bench.exact MODEL DTYPE       one JSON line per sequence on standard input, one answer per line on standard output

A line with ``sampling`` asks how sure one process is of the token that follows: see :meth:`Reference.margin`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from bench.arguments import Parser
from bench.program import program
from bloombee.models.standin import is_standin, standin_token
from bloombee.roles.child import start_child
from bloombee.types import Dtype
from bloombee.wire.messages import Sampling

TOLERANCE = 2.0**-6


@dataclass(frozen=True, slots=True)
class Verdict:
    """``flips``: tokens that one process would not have chosen; ``exact``: none of them matters (see above)."""

    exact: bool
    flips: int
    worst: float = 0.0
    """The furthest that an emitted token's logit lies below the best, in parts of the largest magnitude of its position."""


@dataclass(frozen=True, slots=True)
class _Judged:
    """The tokens of one sequence, and for each: another than the best, and wrong (see above)."""

    tokens: tuple[int, ...]
    flips: list[bool]
    wrong: list[bool]
    below: list[float]


class Reference:
    """One process that judges runs; started when first asked. Not thread-safe."""

    def __init__(self, model: str, dtype: Dtype) -> None:
        self._model = model
        self._dtype = dtype
        self._process: subprocess.Popen[str] | None = None
        self._known: dict[tuple[int, ...], _Judged] = {}

    def judge(self, prompts: Sequence[Sequence[int]], tokens: Sequence[Sequence[int]]) -> Verdict:
        """Of sequences with request seeds 0, 1, ..., all greedy. Blocks while the reference computes.

        Raises:
            RuntimeError: the reference process ended.
        """
        if is_standin(self._model):
            return judge_standin(prompts, tokens)
        judged = [self._one(tuple(prompt), tuple(emitted)) for prompt, emitted in zip(prompts, tokens, strict=True)]
        flips = sum(sum(one.flips) for one in judged)
        wrong = sum(sum(one.wrong) for one in judged)
        worst = max((value for one in judged for value in one.below), default=0.0)
        return Verdict((flips if self._dtype is Dtype.FLOAT32 else wrong) == 0, flips, worst)

    def margin(self, prompt: Sequence[int], tokens: Sequence[int], sampling: Sampling) -> float:
        """By how much one process prefers the best token after ``prompt`` and ``tokens`` to the second best.

        Of logit + temperature x noise, after penalties and filters, in parts of the row's largest |logit|; infinite where the
        filters leave one token. The checkpoint's own rules for logits are left out. Blocks while the reference computes.
        """
        fields = {name: getattr(sampling, name) for name in sampling.__struct_fields__}
        answer = json.loads(self._ask(json.dumps({"prompt": list(prompt), "tokens": list(tokens), "sampling": fields})))
        return float(answer["margin"])

    def _one(self, prompt: tuple[int, ...], emitted: tuple[int, ...]) -> _Judged:
        """Runs of one prompt mostly emit the same tokens: what was judged before is not judged again."""
        known = self._known.get(prompt)
        if known is None or known.tokens[: len(emitted)] != emitted:
            answer = json.loads(self._ask(json.dumps({"prompt": prompt, "tokens": emitted})))
            known = self._known[prompt] = _Judged(emitted, answer["flips"], answer["wrong"], answer["below"])
        count = len(emitted)
        return _Judged(emitted, known.flips[:count], known.wrong[:count], known.below[:count])

    def _ask(self, line: str) -> str:
        if self._process is None:
            words = (self._model, str(self._dtype))
            self._process = start_child("bench.exact", *words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the reference process for {self._model} ended with status {self._process.wait()}")
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait()


def judge_standin(prompts: Sequence[Sequence[int]], tokens: Sequence[Sequence[int]]) -> Verdict:
    """Request ``seed`` of a stand-in has the tokens that its seed and their positions say, all others are wrong."""
    wrong = sum(
        token != standin_token(seed, len(prompt) + index)
        for seed, (prompt, emitted) in enumerate(zip(prompts, tokens, strict=True))
        for index, token in enumerate(emitted)
    )
    return Verdict(wrong == 0, wrong)


def load(model: str, dtype: Dtype) -> Any:
    """The whole model by transformers, in this process."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    from bloombee.engine.buffers import TORCH_DTYPES
    from bloombee.engine.checkpoint import resolve
    from bloombee.engine.synthetic import fill_random

    disable_progress_bar()
    checkpoint = resolve(model)
    if checkpoint.directory is not None:
        loaded = AutoModelForCausalLM.from_pretrained(checkpoint.directory, dtype=TORCH_DTYPES[dtype])
    else:
        loaded = AutoModelForCausalLM.from_config(checkpoint.new_config(), dtype=TORCH_DTYPES[dtype])
        with torch.no_grad():
            fill_random(dict(loaded.named_parameters()))
    return loaded.eval()


def _judge(model: Any, prompt: list[int], emitted: list[int]) -> dict[str, list[Any]]:
    """For each token: is it another than the best, is it further below than rounding explains, and by how much is it."""
    import torch

    with torch.inference_mode():
        logits = model(torch.tensor([prompt + emitted[:-1]])).logits[0, len(prompt) - 1 :].float()
    ids = torch.tensor(emitted)
    below = (logits.max(dim=1).values - logits.gather(1, ids[:, None])[:, 0]) / logits.abs().max(dim=1).values
    return {
        "flips": (logits.argmax(dim=1) != ids).tolist(),
        "wrong": (below > TOLERANCE).tolist(),
        "below": below.tolist(),
    }


def _margin(model: Any, prompt: list[int], tokens: list[int], fields: dict[str, Any]) -> float:
    """As :meth:`Reference.margin`."""
    import numpy as np
    import torch

    from bloombee.engine.sampler import SamplerRow, penalised
    from bloombee.engine.sampler_reference import score_row

    sampling = Sampling(**fields)
    history = np.array(prompt + tokens, "<u4")
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + tokens])).logits[0, -1].float().numpy()
    row = penalised(logits, SamplerRow(sampling, len(history), history, len(prompt)))
    filters = {name: getattr(sampling, name) for name in ("temperature", "top_k", "top_p", "min_p", "seed")}
    _, scores = score_row(row, position=len(history), **filters)
    if len(scores) < 2:
        return float("inf")
    second, best = np.partition(scores, -2)[-2:]
    return float((best - second) * (sampling.temperature or 1.0) / np.abs(logits).max())


@program("exact")
def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("dtype", choices=[dtype.value for dtype in Dtype])
    options = parser.parse_args()
    model = load(options.model, Dtype(options.dtype))
    for line in sys.stdin:
        run = json.loads(line)
        asked = run["prompt"], run["tokens"]
        answer = {"margin": _margin(model, *asked, run["sampling"])} if "sampling" in run else _judge(model, *asked)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    sys.exit(main())

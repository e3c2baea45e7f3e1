"""What a decode step costs one processor: python -m bench.compute [--batches 1,8] [--peers --peer-env llama.cpp=DIR]

Every row is the same shape with random weights: the engine as a worker runs it (one stage of all layers), transformers' own
generate loop, and with ``--peers`` llama.cpp out of an environment of its own. They take turns, round by round,
and the ratio is that of each round, so that what else the machine does falls on all alike. ``cpu`` columns count the thread's
own seconds, from which time lost to others is absent.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, DynamicCache, StoppingCriteria, StoppingCriteriaList

import bloombee.engine.attention as attention
from bloombee.engine.buffers import TORCH_DTYPES
from bloombee.engine.checkpoint import Checkpoint, resolve
from bloombee.engine.model import SpanModel, set_threads
from bloombee.pipeline.work import Pages, Segment, Work
from bloombee.types import Dtype, PageGroup, Phase, Span
from bloombee.wire.messages import Sampling

PAGE = 16
GREEDY = Sampling(0, 0, 1, 0, 1, 0, 0, 0, -1)
PEER = Path(__file__).with_name("peer_llama_cpp.py")

Times = list[tuple[float, float]]
"""(seconds, processor seconds) of each step."""


class Row(Protocol):
    """Something that decodes: each call starts at the same context again."""

    def __call__(self, batch: int, steps: int) -> Times: ...


# -- ours --------------------------------------------------------------------------------------


class Engine:
    """One stage of all layers; its sequences lie in the pool as they would after prompts that came one after the other."""

    def __init__(self, checkpoint: Checkpoint, dtype: Dtype, batches: list[int], context: int, steps: int, device: str) -> None:
        layers = checkpoint.new_config().num_hidden_layers
        self.context = context
        self.pages = -(-(context + steps) // PAGE)
        self.model = SpanModel.load(
            checkpoint,
            Span(0, layers),
            dtype=dtype,
            device=device,
            groups=[PageGroup(0, max(batches) * self.pages)],
            page_size=PAGE,
        )
        generator = torch.Generator().manual_seed(0)
        for layer in range(layers):
            for held in self.model.kv.rows(layer):
                held.copy_(torch.randn(held.shape, generator=generator))

    def __call__(self, batch: int, steps: int) -> Times:
        tokens = [1] * batch
        times = []
        for number in range(steps):
            wall, cpu = time.perf_counter(), time.thread_time()
            tokens = self.step(tokens, self.context + number)
            times.append((time.perf_counter() - wall, time.thread_time() - cpu))
        return times

    def step(self, tokens: list[int], position: int) -> list[int]:
        count = position // PAGE + 1
        segments = tuple(
            Segment(
                i,
                0,
                position,
                np.uint32(token).tobytes(),
                1,
                (Pages(tuple(range(i * self.pages, i * self.pages + count))),),
                GREEDY,
                1,
            )
            for i, token in enumerate(tokens)
        )
        picks = self.model.run(Work(0, 0, 0, 0, Phase.DECODE, segments), None)
        assert isinstance(picks, list)
        return [pick.token for pick in picks]

    @property
    def bytes_read(self) -> int:
        """Of weights in a step: all but the embedding, of which a row a token is read."""
        embedding: torch.Tensor = self.model._skeleton.model.get_input_embeddings().weight
        return self.model.weight_bytes - int(embedding.nbytes)


@dataclass
class Shares:
    """Thread seconds inside modules and functions of each kind, innermost first."""

    spent: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("linears", "attention", "norms"), 0.0))

    def counting(self, kind: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            start = time.thread_time()
            try:
                return call(*args, **kwargs)
            finally:
                self.spent[kind] += time.thread_time() - start

        return counted


@contextmanager
def counted(model: SpanModel) -> Iterator[Shares]:
    """Count where a step's time goes, for the length of the block; counting costs a microsecond a call."""
    shares = Shares()
    changed = []
    for module in model._skeleton.model.modules():
        name = type(module).__name__
        kind = "linears" if name.endswith("Linear") or name.startswith("Packed") else "norms" if name.endswith("Norm") else None
        if kind is not None:
            module.forward = shares.counting(kind, module.forward)
            changed.append(module)
    registry = transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS
    registry.register(attention.ATTENTION, shares.counting("attention", attention.dispatch))
    try:
        yield shares
    finally:
        registry.register(attention.ATTENTION, attention.dispatch)
        for module in changed:
            del module.forward


def print_shares(engine: Engine, batch: int, steps: int) -> None:
    with counted(engine.model) as shares:
        total = sum(cpu for _, cpu in engine(batch, steps))
    spent = {**shares.spent, "other": total - sum(shares.spent.values())}
    parts = ", ".join(f"{kind} {seconds / steps * 1e3:.2f} ms ({seconds / total:.0%})" for kind, seconds in spent.items())
    rate = engine.bytes_read * steps / spent["linears"] / 1e9
    print(f"  B = {batch}: a step's processor time: {parts}; weights at {rate:.1f} GB/s while in linears")


# -- the others --------------------------------------------------------------------------------


class Generate:
    """transformers' generate loop on its own model and cache, filled with random keys and values."""

    def __init__(self, checkpoint: Checkpoint, dtype: Dtype, batches: list[int], context: int) -> None:
        config = checkpoint.new_config()
        self.model = AutoModelForCausalLM.from_config(config, dtype=TORCH_DTYPES[dtype]).eval()
        self.context = context
        shape = (config.num_key_value_heads, context, config.head_dim)
        self.caches = {batch: DynamicCache(config=config) for batch in batches}
        for batch, cache in self.caches.items():
            for layer in range(config.num_hidden_layers):
                cache.update(*torch.randn(2, batch, *shape, dtype=TORCH_DTYPES[dtype]).unbind(), layer)

    def __call__(self, batch: int, steps: int) -> Times:
        cache = self.caches[batch]
        if excess := cache.get_seq_length() - self.context:
            cache.crop(-excess)
        marks: Times = []

        class Mark(StoppingCriteria):  # type: ignore[misc]
            def __call__(self, input_ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
                marks.append((time.perf_counter(), time.thread_time()))
                return torch.zeros(len(input_ids), dtype=torch.bool)

        ids = torch.ones(batch, self.context + 1, dtype=torch.long)
        self.model.generate(
            ids, attention_mask=torch.ones_like(ids), past_key_values=cache, max_new_tokens=steps + 1, do_sample=False,
            stopping_criteria=StoppingCriteriaList([Mark()]), pad_token_id=0,
        )  # fmt: skip
        return [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(marks)]


class LlamaCpp:
    """llama.cpp in a process of its own, same shape, bfloat16 weights; its keys and values are float16, as it has them."""

    def __init__(self, environment: str, checkpoint: Checkpoint, batches: list[int], context: int, threads: int) -> None:
        config = checkpoint.new_config()
        shape = {
            "hidden": config.hidden_size, "layers": config.num_hidden_layers, "heads": config.num_attention_heads,
            "kv_heads": config.num_key_value_heads, "head": config.head_dim, "mlp": config.intermediate_size,
            "vocabulary": config.vocab_size,
        }  # fmt: skip
        self._directory = tempfile.TemporaryDirectory()
        self._log = open(Path(self._directory.name) / "log", "w+")  # noqa: SIM115 - as long as the process
        self._process = subprocess.Popen(
            [Path(environment) / "bin" / "python", PEER],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
        )  # fmt: skip
        file = str(Path(self._directory.name) / "model.gguf")
        made = self._ask({"file": file, "shape": shape, "context": context, "batches": batches, "threads": threads})
        self.version: str = made["version"]

    def __call__(self, batch: int, steps: int) -> Times:
        return [(wall, cpu) for wall, cpu in self._ask({"batch": batch, "steps": steps})]

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._log.close()
        self._directory.cleanup()

    def _ask(self, question: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            self._log.seek(0)
            raise SystemExit("llama.cpp ended:\n" + self._log.read()[-2000:])
        return json.loads(answer)


# -- taking turns ------------------------------------------------------------------------------


@dataclass
class Rounds:
    """Per round, the median step: (seconds, processor seconds)."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def add(self, times: Times) -> None:
        self.wall.append(statistics.median(wall for wall, _ in times))
        self.cpu.append(statistics.median(cpu for _, cpu in times))


def measure(rows: dict[str, Row], batch: int, rounds: int, steps: int) -> dict[str, Rounds]:
    results = {name: Rounds() for name in rows}
    for row in rows.values():
        row(batch, 2)
    for number in range(rounds):
        order = list(rows) if number % 2 == 0 else list(rows)[::-1]
        for name in order:
            results[name].add(rows[name](batch, steps))
    return results


def report(batch: int, results: dict[str, Rounds], bytes_read: int) -> dict[str, Any]:
    head = "".join(f"{text:>10}" for text in ("tokens/s", "cpu tok/s", "ms/step", "cpu ms", "GB/s"))
    print(f"\nB = {batch:<8}{head}   engine / this, wall and cpu")
    ours = results["engine"]
    record = {}
    for name, got in results.items():
        wall, cpu = statistics.median(got.wall), statistics.median(got.cpu)
        ratios = [
            statistics.median(b / a for a, b in zip(mine, theirs, strict=True))
            for mine, theirs in ((ours.wall, got.wall), (ours.cpu, got.cpu))
        ]
        print(
            f"{name:<12}"
            + "".join(f"{x:>10.1f}" for x in (batch / wall, batch / cpu, wall * 1e3, cpu * 1e3, bytes_read / cpu / 1e9))
            + "   "
            + ("" if name == "engine" else f"{ratios[0]:.2f}x  {ratios[1]:.2f}x")
        )
        record[name] = {"wall_s": got.wall, "cpu_s": got.cpu, "engine_is": ratios}
    return record


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.compute", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="llama:1024x16")
    parser.add_argument("--context", type=int, default=512, help="tokens that each sequence holds")
    parser.add_argument("--batches", default="1,8", help="rows of a step, comma-separated")
    parser.add_argument("--dtype", default="bfloat16", choices=[d.value for d in Dtype])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=16, help="of a turn")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--device", default="cpu", help="of the engine: cpu (default), cuda or cuda:N; beyond the CPU with --only"
    )
    parser.add_argument("--only", action="store_true", help="the engine alone")
    parser.add_argument("--peers", action="store_true", help="llama.cpp too (bfloat16 only)")
    parser.add_argument("--peer-env", action="append", default=[], metavar="NAME=DIR", help="virtual environment of a peer")
    parser.add_argument("--json", type=Path, help="write every round here")
    return parser.parse_args()


def main() -> None:
    args = parse()
    batches = [int(text) for text in args.batches.split(",")]
    environments = dict(text.split("=", 1) for text in args.peer_env)
    if args.peers and ("llama.cpp" not in environments or args.dtype != "bfloat16"):
        raise SystemExit("--peers needs --peer-env llama.cpp=DIR and bfloat16")
    if args.device != "cpu" and not (args.only and torch.cuda.is_available()):
        raise SystemExit(f"--device {args.device} needs --only and a CUDA device that torch sees: the other rows run on the CPU")
    set_threads(args.threads)
    checkpoint, dtype = resolve(args.model), Dtype(args.dtype)
    engine = Engine(checkpoint, dtype, batches, args.context, args.steps, args.device)
    rows: dict[str, Row] = {"engine": engine}
    llama = None
    if not args.only:
        rows["transformers"] = Generate(checkpoint, dtype, batches, args.context)
    if args.peers:
        rows["llama.cpp"] = llama = LlamaCpp(environments["llama.cpp"], checkpoint, batches, args.context, args.threads)
    print(
        f"{args.model} {args.dtype}, context {args.context}, threads {args.threads}, {args.rounds} rounds of {args.steps} steps;"
        f" {engine.bytes_read / 1e6:.0f} MB of weights a step; torch {torch.__version__}, transformers {transformers.__version__}"
        + (f", llama-cpp-python {llama.version}" if llama else "")
        + f"; {platform.processor() or platform.machine()}, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    )
    record = {}
    for batch in batches:
        record[batch] = report(batch, measure(rows, batch, args.rounds, args.steps), engine.bytes_read)
        print_shares(engine, batch, args.steps)
    if llama is not None:
        llama.close()
    if args.json:
        args.json.write_text(json.dumps({"arguments": {k: str(v) for k, v in vars(args).items()}, "batches": record}, indent=1))


if __name__ == "__main__":
    main()

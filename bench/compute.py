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
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, DynamicCache, StoppingCriteria, StoppingCriteriaList

import bloombee.engine.attention as attention
from bench.arguments import OptionError, Parser, whole, wholes, writable
from bench.peers.checkpoint import write_checkpoint
from bench.peers.kinds import KINDS, PeerEnv, parse_envs
from bench.peers.peer import Peer
from bench.peers.star import Star
from bench.profiles import load_profile
from bench.program import headline, program
from bloombee.config import WorkerConfig
from bloombee.engine.buffers import TORCH_DTYPES
from bloombee.engine.checkpoint import Checkpoint, resolve
from bloombee.engine.model import SpanModel, pick_device, set_threads
from bloombee.pipeline.work import Pages, Segment, Work
from bloombee.types import Dtype, PageGroup, Phase, Span
from bloombee.wire.messages import Sampling

PAGE = 16
GREEDY = Sampling(0, 0, 1, 0, 1, 0, 0, 0, -1)

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
        self.model.settle()
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
        embedding: torch.Tensor = self.model.module.get_input_embeddings().weight
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
    for module in model.module.modules():
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
    """llama.cpp in a process of its own, same weights, one thread; its keys and values are float16, as it has them."""

    def __init__(self, peer: Peer, vocabulary: int, context: int, room: int) -> None:
        self._peer, self._vocabulary, self._context, self._room = peer, vocabulary, context, room
        self._batch = 0

    def __call__(self, batch: int, steps: int) -> Times:
        if batch != self._batch:
            random = np.random.default_rng(1)
            self._peer.prefill(random.integers(0, self._vocabulary, (batch, self._context)).tolist(), room=self._room)
            self._batch = batch
        answer = self._peer.decode(steps, again=True)
        return list(zip(answer["steps_s"], answer["cpu_s"], strict=True))


@contextmanager
def llama_cpp(env: PeerEnv, model: str, dtype: Dtype, num_layers: int) -> Iterator[Peer]:
    """llama.cpp with ``model``, for the length of the block."""
    with tempfile.TemporaryDirectory() as folder, Star(1, load_profile("lan")) as star:
        write_checkpoint(model, dtype, Path(folder))
        with Peer(env, star, model=model, directory=Path(folder), dtype=str(dtype), layers=[num_layers]) as peer:
            yield peer


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


def parse() -> tuple[argparse.Namespace, PeerEnv | None]:
    """The options, and llama.cpp's environment if it is to run too."""
    parser = Parser(prog="python -m bench.compute", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="llama:1024x16")
    parser.add_argument("--context", type=whole(1, 1 << 20), default=512, help="tokens that each sequence holds")
    parser.add_argument("--batches", type=wholes(1, 1024), default="1,8", help="rows of a step, comma-separated")
    parser.add_argument("--dtype", default="bfloat16", choices=[d.value for d in Dtype])
    parser.add_argument("--threads", type=whole(1, 1024), default=1)
    parser.add_argument("--steps", type=whole(2, 4096), default=16, help="of a turn")
    parser.add_argument("--rounds", type=whole(1, 1000), default=7)
    parser.add_argument(
        "--device", default="cpu", help="of the engine: cpu (default), cuda or cuda:N; beyond the CPU with --only"
    )
    parser.add_argument("--only", action="store_true", help="the engine alone")
    parser.add_argument("--peers", action="store_true", help="llama.cpp too, on one thread; --model llama:HIDDENxLAYERS")
    parser.add_argument("--peer-env", action="append", default=[], metavar="NAME=DIR", help="virtual environment of a peer")
    parser.add_argument("--json", type=writable, help="write every round here")
    options = parser.parse_args()
    WorkerConfig(device=options.device)  # refuses what no worker could be given
    if options.device != "cpu" and not options.only:
        raise OptionError(f"--device {options.device} needs --only: the other rows run on the CPU")
    if not options.peers:
        return options, None
    if options.threads != 1 or not options.model.startswith("llama:"):
        raise OptionError("--peers: llama.cpp runs llama:HIDDENxLAYERS shapes on one thread")
    envs = [env for env in parse_envs(options.peer_env) if env.technique == KINDS["llama.cpp"].technique]
    if not envs:
        raise OptionError("--peers needs --peer-env llama.cpp=DIR")
    return options, envs[0]


@program("compute")
def main() -> None:
    args, env = parse()
    device = pick_device(args.device)
    set_threads(args.threads)
    checkpoint, dtype = resolve(args.model), Dtype(args.dtype)
    engine = Engine(checkpoint, dtype, list(args.batches), args.context, args.steps, device)
    rows: dict[str, Row] = {"engine": engine}
    if not args.only:
        rows["transformers"] = Generate(checkpoint, dtype, list(args.batches), args.context)
    with ExitStack() as stack:
        config = checkpoint.new_config()
        peer = stack.enter_context(llama_cpp(env, args.model, dtype, config.num_hidden_layers)) if env else None
        if peer is not None:
            rows["llama.cpp"] = LlamaCpp(peer, config.vocab_size, args.context, args.steps)
        print(
            f"{args.model} {args.dtype}, context {args.context}, threads {args.threads}, {args.rounds} rounds of {args.steps}"
            f" steps, {engine.bytes_read / 1e6:.0f} MB of weights a step\ntorch {torch.__version__}, transformers"
            f" {transformers.__version__}{f', {peer.version}' if peer else ''}; {headline()}"
        )
        record = {}
        for batch in args.batches:
            record[batch] = report(batch, measure(rows, batch, args.rounds, args.steps), engine.bytes_read)
            print_shares(engine, batch, args.steps)
            if args.json:
                words = {name: str(value) for name, value in vars(args).items()}
                args.json.write_text(json.dumps({"arguments": words, "batches": record}, indent=1))


if __name__ == "__main__":
    sys.exit(main())

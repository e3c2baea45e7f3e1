"""What a worker claims of itself before it loads anything, beside what it then does: python -m bench.claims [--models demo]

Of each model layers of its shape are measured as a worker measures them that is asked (``engine/profiling/layers.py``). Then a
real span of it is loaded, and passes of other sizes than those that were measured are held against what the profile predicts: an
inner span of half of the layers, and the last layer with norm, LM head and sampler. Shapes go by turns, and the mean of the
quicker half counts, as in a profile. Goals: the median error of a model's passes, and that the answer takes no longer than it
may.

``gemma2`` is a model of layers of two kinds, with and without a window.

Examples:
  python -m bench.claims
  python -m bench.claims --models llama:1024x16 --dtype bfloat16 --threads 2
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from transformers import Gemma2Config

from bench.arguments import Parser, names, whole, writable
from bench.program import headline, machine, program
from bloombee.engine.checkpoint import Checkpoint, resolve
from bloombee.engine.memory import free_bytes
from bloombee.engine.model import SpanModel, pick_device, set_threads
from bloombee.engine.profiling import full
from bloombee.engine.profiling.hardware import hardware
from bloombee.engine.profiling.layers import PAGE_SIZE, Kinds, quicker
from bloombee.engine.profiling.passes import hidden_rows, make_work, num_slots, pass_s
from bloombee.plan.cost import seen_tokens
from bloombee.plan.profile import Profile
from bloombee.types import Dtype, Phase, Span

MODELS = ("demo", "llama:1024x12", "gemma2")
SHAPES = (
    (Phase.DECODE, 1, 64), (Phase.DECODE, 2, 256), (Phase.DECODE, 6, 32), (Phase.DECODE, 12, 200), (Phase.DECODE, 24, 16),
    (Phase.PREFILL, 16, 0), (Phase.PREFILL, 48, 0), (Phase.PREFILL, 96, 128), (Phase.PREFILL, 192, 0),
)  # fmt: skip
"""(phase, rows, context)"""
PICKS = ((Phase.DECODE, 1, 64), (Phase.DECODE, 4, 64))
ROUNDS, BURST = 5, 4
"""Passes of a shape go one after the other, as in a stage, and the first of each burst does not count."""
MOST_ERROR = 0.10
"""That the median of a model's passes may be off by."""
MOST_S = 10.0
"""That an answer may take."""


@dataclass(frozen=True, slots=True)
class Row:
    """A pass: predicted, measured."""

    model: str
    span: str
    phase: str
    rows: int
    context: int
    predicted_s: float
    measured_s: float

    @property
    def error(self) -> float:
        return self.predicted_s / self.measured_s - 1


def find(name: str) -> Checkpoint:
    """Raises ConfigError: there is no such model."""
    if name != "gemma2":
        return resolve(name)
    config = Gemma2Config(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, num_key_value_heads=4, head_dim=64,
        vocab_size=64_000, sliding_window=128, dtype="bfloat16", pad_token_id=None, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return Checkpoint(name, config, config.to_dict())


def predict(profile: Profile, kinds: Kinds, span: Span, phase: Phase, rows: int, context: int) -> float:
    """Seconds of a pass of a span, its output included if it is a last one and the phase is decode."""
    times = [kind.time for kind in profile.kinds] or [profile.fit.layer]
    is_prefill = phase is Phase.PREFILL
    total = profile.fit.stage.prefill_s(rows) if is_prefill else profile.fit.stage.decode_s(rows)
    for kind in kinds.in_span(span):
        seen = seen_tokens(kinds.kinds[kind].window, context)
        total += times[kind].prefill_s(rows, seen) if is_prefill else times[kind].decode_s(rows, seen)
    return total + (profile.output.decode_s(rows) if span.stop == len(kinds.of) else 0.0)


def measure(
    checkpoint: Checkpoint, span: Span, kinds: Kinds, shapes: Sequence[tuple[Phase, int, int]], device: str, dtype: Dtype
) -> list[float]:
    """Seconds of passes of a real span, its output included if it is a last one."""
    slots = max(num_slots(PAGE_SIZE, *shape) for shape in shapes)
    model = SpanModel.load(checkpoint, span, dtype=dtype, device=device, groups=kinds.groups(span, slots), page_size=PAGE_SIZE)
    model.settle()
    model.kv.clear(slots)
    works = [make_work(model, *shape, picks=shape[1] if model.is_last else 0) for shape in shapes]
    inputs = [hidden_rows(model, rows) for _, rows, _ in shapes]
    seconds: list[list[float]] = [[] for _ in shapes]
    for _ in range(ROUNDS):
        for work, hidden, found in zip(works, inputs, seconds, strict=True):
            found += [pass_s(model, work, hidden) for _ in range(BURST)][1:]
    model.close()
    return [quicker(found) for found in seconds]


def hold(checkpoint: Checkpoint, options: argparse.Namespace) -> Iterator[Row]:
    name = checkpoint.ref
    device, dtype = pick_device(options.device), Dtype(options.dtype)
    kinds = Kinds.find(checkpoint, dtype)
    begun = time.perf_counter()
    profile = full.find(checkpoint, device, dtype, hardware(device, memory_bytes=free_bytes(device)), fresh=True)
    spent_s = time.perf_counter() - begun
    fit = f"fit off by {profile.fit.median_error:.1%}, {profile.fit.worst_error:.1%} at worst"
    print(f"{name}: {len(kinds.kinds)} kind(s) of layers, answered after {spent_s:.1f} s; {fit}", flush=True)
    if spent_s > MOST_S:
        print(f"{name}: MISSED: an answer may take {MOST_S:g} s")
    total = len(kinds.of)
    for span, shapes in ((Span(1, max(2, total // 2 + 1)), SHAPES), (Span(total - 1, total), PICKS)):
        measured = measure(checkpoint, span, kinds, shapes, device, dtype)
        for shape, seconds in zip(shapes, measured, strict=True):
            phase, rows, context = shape
            yield Row(name, str(span), phase.name.lower(), rows, context, predict(profile, kinds, span, *shape), seconds)


def show(row: Row) -> str:
    times = f"{1e3 * row.predicted_s:>10.2f} {1e3 * row.measured_s:>10.2f} {row.error:>+8.1%}"
    return f"{row.span:>9} {row.phase:<8}{row.rows:>5}{row.context:>9} {times}"


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = Parser(prog="claims", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=names(), default=MODELS, help="with commas")
    parser.add_argument("--dtype", choices=list(Dtype), default=Dtype.FLOAT32)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=whole(1, 256), default=1, help="of torch")
    parser.add_argument("--json", type=writable, help="a line a pass")
    return parser.parse_args(words)


@program("claims")
def main(words: list[str] | None = None) -> int:
    options = parse(words)
    checkpoints = [find(name) for name in options.models]
    set_threads(options.threads)
    print(f"{headline()}; {options.dtype}, {options.threads} thread(s)")
    print(f"{'span':>9} {'phase':<8}{'rows':>5}{'context':>9} {'claimed':>10} {'done, ms':>10} {'off by':>8}")
    rows: list[Row] = []
    is_met = True
    for checkpoint in checkpoints:
        name, of_model = checkpoint.ref, []
        for row in hold(checkpoint, options):
            print(show(row), flush=True)
            of_model.append(row)
        errors = sorted(abs(row.error) for row in of_model)
        median, p90 = statistics.median(errors), errors[math.ceil(0.9 * len(errors)) - 1]
        is_met &= median <= MOST_ERROR
        print(f"{name}: off by {median:.1%} in the median (goal {MOST_ERROR:.0%}), p90 {p90:.1%}, worst {errors[-1]:.1%}")
        rows += of_model
    if options.json:
        options.json.write_text("".join(json.dumps({**asdict(row), "error": row.error, **machine()}) + "\n" for row in rows))
    return 0 if is_met else 1


if __name__ == "__main__":
    sys.exit(main())

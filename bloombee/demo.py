"""``bloombee demo``: the packaged model over three worker processes, in one command and without a download."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bloombee.config import RuntimeConfig
from bloombee.terminal import open_runtime, stream, write, write_dim, write_json
from bloombee.types import SamplingParams

if TYPE_CHECKING:
    from bloombee.plan.plan import Plan

PROMPT = "def decode_bytes(data, encoding='utf-8'):"
PARAMS = SamplingParams(max_new_tokens=96)
"""Greedy, so the text is what transformers alone gives in float32; the model ends it by itself after 84 tokens."""
DEFAULTS = RuntimeConfig(model="demo", workers=3, dtype="float32")


async def run(config: RuntimeConfig, *, json: bool) -> None:
    """Complete :data:`PROMPT` and say who did what. Cancelled or failing, it leaves no worker behind."""
    async with open_runtime(config) as runtime:
        if json:
            write_json(await runtime.generate(PROMPT, PARAMS), runtime.plan.summary())
            return
        write(introduction(runtime.plan))
        write_dim(PROMPT)
        tally = await stream(runtime.stream(PROMPT, PARAMS))
        write(f"\n{describe(runtime.plan)}\n{tally}\n")


def introduction(plan: Plan) -> str:
    """What the reader is about to see."""
    num = len(plan.stages)
    return (
        f"A small Llama, trained on Python's own library, cut over {num} worker {'processes' if num > 1 else 'process'}"
        "\nthat pass activations on in a ring. It completes the first line:\n\n"
    )


def describe(plan: Plan) -> str:
    """One line a stage: which worker has which layers."""
    lines = []
    for stage in plan.stages:
        ends = ["embedding"] * (stage.index == 0) + [f"layers {stage.span.start}-{stage.span.stop - 1}"]
        ends += ["norm, LM head, sampler"] * (stage.index == len(plan.stages) - 1)
        lines.append(f"stage {stage.index} on {stage.name}: {', '.join(ends)} ({stage.weight_bytes / 1e6:.1f} MB)")
    return "\n".join(lines)

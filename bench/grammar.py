"""What grammars cost, and whether answers obey them: ``python -m bench.grammar [masks|picks|answers|pace ...]``. Exit 1: a bound
is broken.

- masks: of JSON schemas with a synthetic byte-level vocabulary of 128k tokens, after tokens drawn evenly from those that are
  allowed. Bounds: median 0.1 ms, p99 1 ms.
- picks: of the sampler's kernel with a mask and without, 128k tokens.
- answers: of 200 random bounded schemas by the demo model over two workers, T = 1. Bounds: 95 % end by themselves, and all that
  do are JSON that the schema allows.
- pace: tokens/s of the demo model, a request with a grammar that allows any text by turns with one that has none.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jsonschema_rs
import numpy as np
from llguidance import LLMatcher

import bloombee
from bench.schemas import random_schema
from bench.vocabularies import byte_level
from bloombee import FinishReason, Grammar, _native
from bloombee.engine.grammar import GrammarState, Mask, vocabulary
from bloombee.grammar import source

VOCAB_SIZE = 128256
NUM_SCHEMAS = 200
MOST_TOKENS = 100
MEDIAN_MS, P99_MS = 0.1, 1.0
PROMPT = "def f(x):\n    return "
LEAST_ENDED = 0.95


def masks() -> bool:
    """Whether masks keep their bounds."""
    began = time.perf_counter()
    text = byte_level(VOCAB_SIZE)
    made = time.perf_counter()
    words = vocabulary(text, VOCAB_SIZE, [0])
    print(f"vocabulary of {VOCAB_SIZE}: made in {made - began:.2f} s, read for grammars in {time.perf_counter() - made:.2f} s")
    spent_ms: list[float] = []
    compiled_ms: list[float] = []
    for seed in range(NUM_SCHEMAS):
        draw = random.Random(seed)
        grammar = source(Grammar.json_schema(random_schema(draw)).to_wire())
        began = time.perf_counter()
        matcher = LLMatcher(words, grammar, log_level=0)
        compiled_ms.append(1e3 * (time.perf_counter() - began))
        spent_ms += _walk(GrammarState(matcher, VOCAB_SIZE), draw)
    median, p99 = np.percentile(spent_ms, (50, 99))
    print(
        f"{len(spent_ms)} masks of {NUM_SCHEMAS} schemas: median {median:.4f} ms (at most {MEDIAN_MS}), p99 {p99:.3f} (at most"
        f" {P99_MS}), most {max(spent_ms):.2f}; compiled in {statistics.median(compiled_ms):.2f} ms, most {max(compiled_ms):.1f}"
    )
    return bool(median <= MEDIAN_MS and p99 <= P99_MS)


def _walk(state: GrammarState, draw: random.Random) -> list[float]:
    """Milliseconds of each mask on the way, the token before it included."""
    spent_ms: list[float] = []
    output = b""
    for _ in range(MOST_TOKENS):
        allowed = _allowed(state.mask(output))
        token = int(allowed[draw.randrange(len(allowed))])
        if token == 0:
            break
        output += token.to_bytes(4, "little")
        began = time.perf_counter()
        state.mask(output)
        spent_ms.append(1e3 * (time.perf_counter() - began))
    return spent_ms


def _allowed(mask: Mask) -> Any:
    return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))


def picks() -> bool:
    """No bound: what a mask costs a pick."""
    draw = np.random.default_rng(1)
    logits = draw.normal(0, 3, (1, VOCAB_SIZE)).astype(np.float32)
    shares = {"no mask": None, "all allowed": 1.0, "half allowed": 0.5, "one in a hundred": 0.01, "ten tokens": 10 / VOCAB_SIZE}
    for temperature in (0.0, 1.0):
        for what, share in shares.items():
            took = statistics.median(_pick_us(logits, share, temperature, draw) for _ in range(200))
            print(f"a pick at temperature {temperature}, {what}: {took:.0f} us")
    return True


def _pick_us(logits: Any, share: float | None, temperature: float, draw: Any) -> float:
    out = np.empty(1, np.uint32)
    columns: dict[str, Any] = {
        "temperature": np.array([temperature]),
        "top_k": np.zeros(1, np.uint32),
        "top_p": np.ones(1),
        "min_p": np.zeros(1),
        "seed": draw.integers(0, 2**63, 1).astype(np.uint64),
        "position": np.zeros(1, np.uint64),
    }
    if share is not None:
        columns["masks"] = np.packbits(draw.random(VOCAB_SIZE) < share, bitorder="little").view(np.uint64)[None]
    began = time.perf_counter()
    _native.sample_rows(logits, out, **columns)
    return 1e6 * (time.perf_counter() - began)


def answers() -> bool:
    """Whether answers obey their schemas, and end."""
    return asyncio.run(_answers())


async def _answers() -> bool:
    schemas = [random_schema(random.Random(seed)) for seed in range(NUM_SCHEMAS)]
    async with bloombee.Runtime("demo", workers=2, dtype="float32", kv_tokens=1 << 16) as runtime:

        async def ask(seed: int) -> bloombee.Generation:
            grammar = Grammar.json_schema(schemas[seed])
            return await runtime.generate(PROMPT, grammar=grammar, temperature=1.0, seed=seed, max_new_tokens=1000)

        got = await asyncio.gather(*map(ask, range(NUM_SCHEMAS)))
    ended = [(schema, one.text) for schema, one in zip(schemas, got, strict=True) if one.finish_reason is FinishReason.STOP]
    wrong = [(schema, text) for schema, text in ended if not _obeys(schema, text)]
    lengths = [len(one.token_ids) for one in got]
    print(
        f"{len(ended)} of {len(got)} answers ended by themselves (at least {LEAST_ENDED:.0%}), {len(wrong)} of them are not what"
        f" they must be (none); {statistics.median(lengths):.0f} tokens each, most {max(lengths)}"
    )
    for schema, text in wrong[:5]:
        print(json.dumps(schema), repr(text))
    return len(ended) >= LEAST_ENDED * len(got) and not wrong


def _obeys(schema: Any, text: str) -> bool:
    try:
        return bool(jsonschema_rs.is_valid(schema, json.loads(text)))
    except ValueError:
        return False


def pace() -> bool:
    """No bound: what grammars cost a swarm."""
    return asyncio.run(_pace())


async def _pace() -> bool:
    grammars = {"no grammar": None, "any text": Grammar.regex("(?s:.*)"), "letters": Grammar.regex("[a-z ]*")}
    async with bloombee.Runtime("demo", workers=2, dtype="float32") as runtime:
        for streams in (1, 16):
            speeds: dict[str, list[float]] = {what: [] for what in grammars}
            for _ in range(6):
                for what, grammar in grammars.items():
                    speeds[what].append(await _speed(runtime, grammar, streams))
            for what, found in speeds.items():
                each = [round(one) for one in found[1:]]
                print(f"{streams} streams, {what}: {statistics.median(found[1:]):.1f} tokens/s of {each}")
    return True


async def _speed(runtime: bloombee.Runtime, grammar: Grammar | None, streams: int) -> float:
    bias = {0: -1e4}  # no end: all have one length
    began = time.perf_counter()
    got = await asyncio.gather(
        *(
            runtime.generate(PROMPT, grammar=grammar, logit_bias=bias, temperature=1.0, seed=seed, max_new_tokens=64)
            for seed in range(streams)
        )
    )
    return sum(len(one.token_ids) for one in got) / (time.perf_counter() - began)


PARTS: dict[str, Callable[[], bool]] = {"masks": masks, "picks": picks, "answers": answers, "pace": pace}


def main(arguments: list[str]) -> int:
    """0, or 1 where a bound is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"{', '.join(PARTS)}; by default all")
    parts = parser.parse_args(arguments).parts or list(PARTS)
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"{unknown[0]!r}: must be one of {', '.join(PARTS)}")
    outcomes = [PARTS[part]() for part in parts]
    return 0 if all(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

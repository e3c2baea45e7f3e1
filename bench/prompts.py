"""What long prompts and chat templates cost others: gaps of a stream beside them, and a conversation beside a text.

    python bench/prompts.py                    all of it, some two minutes
    python bench/prompts.py --rounds 20        more of each

A stream decodes without pause. Beside it, by turns, nothing happens, for as long, or a prompt comes: a text of 20 MB that is too
long whatever its tokens, or one of 2 MB to a model of 2^20 positions, which must be tokenized to know that it does not fit. Of a
round counts the largest gap between tokens, of all rounds the median of what it is more. Then 16 requests of one token each come
at once, by turns as text and as chat, to a vocabulary of 128,000, until the last has its answer.

Exits 1 if a gap is more than GAP_S over that without a prompt, or a conversation costs more than CHAT_S over a text.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, decoders, models

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import bloombee
from bench.arguments import Parser, whole
from bench.program import headline, program
from bloombee.errors import ConfigError, Infeasible

GAP_S = 0.050
CHAT_S = 0.005
NUM_CHATS = 16
POSITIONS = 1 << 20
VOCABULARY = 128_000
HUGE = "a b " * 5_000_000
LARGE = "a b " * 500_000
TEMPLATE = "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"


def make_checkpoint(directory: Path, vocabulary: int, positions: int) -> None:
    """A tiny Llama of random weights; a tokenizer of bytes with ``vocabulary`` tokens, none of them long; a chat template."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    config = LlamaConfig(
        vocab_size=vocabulary, max_position_embeddings=positions, bos_token_id=None, eos_token_id=None, pad_token_id=None, **sizes
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "a", "b", " "]
    tokens += [f"token{i}" for i in range(vocabulary - len(tokens))]
    model = models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[], unk_token="<unk>", byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE, "bos_token": "a"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


class Watched:
    """A stream that goes on, and its gaps."""

    def __init__(self, runtime: bloombee.Runtime) -> None:
        self._runtime = runtime
        self._tokens: list[float] = []
        self._task = asyncio.ensure_future(self._go_on())

    async def _go_on(self) -> None:
        while True:
            async for _ in self._runtime.stream([5], max_new_tokens=400, ignore_eos=True):
                self._tokens.append(time.perf_counter())

    async def largest_gap_s(self, during: Awaitable[None], at_least_s: float) -> tuple[float, float]:
        """(gap, how long it took) while ``during`` is awaited and for ``at_least_s``."""
        begun = time.perf_counter()
        first = len(self._tokens) - 1
        await during
        await asyncio.sleep(max(0.0, begun + at_least_s - time.perf_counter()))
        took = time.perf_counter() - begun
        end = len(self._tokens)
        while len(self._tokens) <= end:  # a gap that is still open counts  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        times = self._tokens[max(0, first) :]
        return max(b - a for a, b in itertools.pairwise(times)), took

    async def end(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def refused(runtime: bloombee.Runtime, prompt: str) -> float:
    """Seconds until it is."""
    begun = time.perf_counter()
    try:
        await runtime.generate(prompt, max_new_tokens=4)
    except (ConfigError, Infeasible):
        return time.perf_counter() - begun
    raise AssertionError("the prompt was served; it was to be too long")


async def _noted(work: Awaitable[float], found: list[float]) -> None:
    found.append(await work)


async def gaps(model: str, prompt: str, rounds: int, **fields: Any) -> tuple[list[float], list[float], float]:
    """Largest gaps without and with ``prompt`` beside a stream, round by round, and the median time until it is refused."""
    async with bloombee.Runtime(model, workers=1, dtype="float32", threads=1, **fields) as runtime:
        watched = Watched(runtime)
        await watched.largest_gap_s(asyncio.sleep(1), 1)
        without, beside, times = [], [], list[float]()
        for _ in range(rounds):
            gap, took = await watched.largest_gap_s(_noted(refused(runtime, prompt), times), 0.5)
            beside.append(gap)
            without.append((await watched.largest_gap_s(asyncio.sleep(took), took))[0])
        await watched.end()
    return without, beside, statistics.median(times)


async def chats(model: str, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of NUM_CHATS requests at once, as text and as chat, round by round."""
    text = "a<user>ab<assistant>"
    kinds: dict[str, Any] = {"text": text, "chat": [{"role": "user", "content": "ab"}]}
    took: dict[str, list[float]] = {name: [] for name in kinds}
    async with bloombee.Runtime(model, workers=1, dtype="float32", threads=1) as runtime:
        for turn in range(rounds + 1):
            for name, prompt in kinds.items():
                begun = time.perf_counter()
                await asyncio.gather(*(runtime.generate(prompt, max_new_tokens=1) for _ in range(NUM_CHATS)))
                if turn:  # the first warms up
                    took[name].append(time.perf_counter() - begun)
    return took["text"], took["chat"]


def ms(values: Sequence[float]) -> str:
    return f"{1e3 * statistics.median(values):.1f} ({1e3 * min(values):.1f} to {1e3 * max(values):.1f})"


@program("prompts")
def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=whole(1, 1000), default=9, help="of each measurement (default 9)")
    rounds = parser.parse_args().rounds
    table = Table(title=headline())
    for column in ("what", "without, ms", "with, ms", "over, ms", "bound, ms"):
        table.add_column(column, justify="left" if column == "what" else "right")
    missed = False

    def row(what: str, without: Sequence[float], beside: Sequence[float], bound_s: float, num: int = 1) -> None:
        nonlocal missed
        over = statistics.median(b - a for a, b in zip(without, beside, strict=True)) / num
        missed |= over > bound_s
        table.add_row(what, ms(without), ms(beside), f"{1e3 * over:.1f}", f"{1e3 * bound_s:.0f}")

    with tempfile.TemporaryDirectory() as name:
        long, wide = Path(name) / "long", Path(name) / "wide"
        make_checkpoint(long, 320, POSITIONS)
        make_checkpoint(wide, VOCABULARY, 2048)
        without, beside, took = asyncio.run(gaps("demo", HUGE, rounds))
        row(f"largest gap beside 20 MB, refused after {took:.1f} s", without, beside, GAP_S)
        without, beside, took = asyncio.run(gaps(str(long), LARGE, rounds, kv_tokens=POSITIONS // 2))
        row(f"largest gap beside 2 MB, tokenized, {took:.1f} s", without, beside, GAP_S)
        texts, talks = asyncio.run(chats(str(wide), 3 * rounds))
        row(f"{NUM_CHATS} requests as chat, beside as text; over: of one", texts, talks, CHAT_S, NUM_CHATS)
    Console().print(table)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Train a small target and draft Llama on the Python standard library's sources: the demo pair.

The target learns the text. The draft learns the target's distribution (KL divergence), so that its greedy tokens agree
with the target's as often as its size allows. Matrices inside the layers are optimised by Muon, embeddings and norms by
AdamW; three quarters of the time go to short sequences and the last quarter to long ones. Times are budgets: a faster
machine trains further in them.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

END = "<|end|>"
HELD_OUT_EVERY, HELD_OUT_AT = 40, 7
SKIPPED_FOLDERS = frozenset({"site-packages", "dist-packages", "lib2to3", "idlelib"})
MAX_POSITIONS = 2048
EXAMPLES = """examples:
  tools/train_demo_model.py --out pair --target-seconds 3900 --draft-seconds 700    as the packaged pair was made
  tools/train_demo_model.py --out pair --quick                                      a tiny one in seconds, to see that it works
"""

Tokens = np.ndarray[Any, np.dtype[np.int32]]


@dataclass(frozen=True)
class Shape:
    """Size of one Llama."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    mlp: int


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what comes out, but for the machine's speed."""

    target: Shape
    draft: Shape
    vocab: int
    target_seconds: float
    draft_seconds: float
    short: tuple[int, int]
    """(sequences, tokens) of a step in the first three quarters of the time."""
    long: tuple[int, int]
    max_files: int | None
    compile: bool
    min_steps: int
    """At least so many, however slow the machine; the schedule follows whichever of time and steps is behind."""


FULL = Recipe(
    target=Shape(layers=8, hidden=256, heads=4, kv_heads=2, mlp=704),
    draft=Shape(layers=2, hidden=128, heads=2, kv_heads=1, mlp=352),
    vocab=4096,
    target_seconds=3900,
    draft_seconds=700,
    short=(24, 256),
    long=(8, 768),
    max_files=None,
    compile=True,
    min_steps=30,
)
QUICK = Recipe(
    target=Shape(layers=2, hidden=64, heads=2, kv_heads=1, mlp=128),
    draft=Shape(layers=1, hidden=32, heads=1, kv_heads=1, mlp=64),
    vocab=512,
    target_seconds=0.1,
    draft_seconds=0.1,
    short=(8, 64),
    long=(4, 128),
    max_files=80,
    compile=False,
    min_steps=150,
)


@dataclass(frozen=True)
class Corpus:
    """Token streams: an end token before each file. ``tests`` may be empty (some systems ship none)."""

    library: Tokens
    tests: Tokens
    held_out: Tokens


@dataclass(frozen=True)
class Result:
    """What one model's training came to; losses are of held-out text, nats a token."""

    parameters: int
    steps: int
    tokens: int
    loss_before: float
    loss_after: float


def read_sources(root: Path, max_files: int | None) -> list[tuple[Path, str]]:
    """(path, text) of the Python files under ``root`` in the order of their paths; too small and too large ones left out."""
    found = []
    for path in sorted(root.rglob("*.py")):
        if SKIPPED_FOLDERS & set(path.relative_to(root).parts):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue  # some of the library's tests are not UTF-8 on purpose
        if 200 < len(text) < 400_000:
            found.append((path.relative_to(root), text))
        if max_files is not None and len(found) == max_files:
            break
    return found


def make_tokenizer(texts: Iterator[str], vocab: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer; ``<|end|>`` is token 0 and begin, end and pad."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=vocab, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=END, eos_token=END, pad_token=END)


def make_corpus(sources: list[tuple[Path, str]], tokenizer: PreTrainedTokenizerFast) -> Corpus:
    """Tokens of training library, training tests and held-out files."""

    def tokens(texts: list[str]) -> Tokens:
        encoded = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        return np.array([token for ids in encoded for token in (0, *ids)], dtype=np.int32)

    held = [text for i, (_, text) in enumerate(sources) if is_held_out(i)]
    train = [(path, text) for i, (path, text) in enumerate(sources) if not is_held_out(i)]
    is_test = [bool({"test", "tests"} & set(path.parts)) for path, _ in train]
    return Corpus(
        library=tokens([text for (_, text), test in zip(train, is_test, strict=True) if not test]),
        tests=tokens([text for (_, text), test in zip(train, is_test, strict=True) if test]),
        held_out=tokens(held),
    )


def is_held_out(index: int) -> bool:
    """Whether the source file with this place in the sorted list is kept from training."""
    return index % HELD_OUT_EVERY == HELD_OUT_AT


def draw(stream: Tokens, shape: tuple[int, int], rng: np.random.Generator) -> torch.Tensor:
    """[sequences, tokens + 1] int64: random windows of ``stream``."""
    sequences, length = shape
    length = min(length, len(stream) - 2)
    starts = rng.integers(0, len(stream) - length - 1, sequences)
    return torch.from_numpy(np.stack([stream[s : s + length + 1] for s in starts]).astype(np.int64))


def make_model(shape: Shape, vocab: int) -> LlamaForCausalLM:
    """Random weights; what writes into the residual stream starts smaller the deeper the model is."""
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab,
            hidden_size=shape.hidden,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            intermediate_size=shape.mlp,
            max_position_embeddings=MAX_POSITIONS,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
        )
    )
    with torch.no_grad():
        for layer in model.model.layers:
            for matrix in (layer.self_attn.o_proj, layer.mlp.down_proj):
                matrix.weight.div_(math.sqrt(2 * shape.layers))
    return model


def make_optimisers(model: LlamaForCausalLM) -> list[tuple[Any, float]]:
    """(optimiser, peak learning rate): Muon for the layers' matrices, AdamW for the rest."""
    matrices = [p for layer in model.model.layers for p in layer.parameters() if p.ndim == 2]
    inside = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in inside]
    return [
        (torch.optim.Muon(matrices, lr=0.02, momentum=0.95, weight_decay=0.01, adjust_lr_fn="original"), 0.02),
        (torch.optim.AdamW(rest, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0), 3e-3),
    ]


def learning_rate_scale(step: int, done: float) -> float:
    """Share of the peak rate: 50 steps of warm-up, flat for 40 % of the time, then down to 2 % in a straight line."""
    return min(1.0, (step + 1) / 50) * (1.0 if done < 0.4 else max(0.02, (1 - done) / 0.6))


def held_out_loss(model: LlamaForCausalLM, corpus: Corpus, recipe: Recipe, batches: int = 6) -> float:
    """Mean over the same few batches each time, nats a token."""
    model.eval()
    rng = np.random.default_rng(1)
    losses = []
    for _ in range(batches):
        batch = draw(corpus.held_out, recipe.short, rng)
        with torch.no_grad():
            logits = model(batch[:, :-1]).logits.flatten(0, 1).float()
        losses.append(float(F.cross_entropy(logits, batch[:, 1:].flatten())))
    model.train()
    return sum(losses) / batches


def agreement(target: LlamaForCausalLM, draft: LlamaForCausalLM, corpus: Corpus, recipe: Recipe) -> float:
    """Share of held-out positions at which the two models' most likely tokens are the same."""
    batch = draw(corpus.held_out, recipe.short, np.random.default_rng(2))[:, :-1]
    with torch.no_grad():
        same = target(batch).logits.argmax(-1) == draft(batch).logits.argmax(-1)
    return float(same.float().mean())


def train(
    name: str,
    model: LlamaForCausalLM,
    seconds: float,
    corpus: Corpus,
    recipe: Recipe,
    loss_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> Result:
    """Train until the time is up and the least number of steps is done.

    Args:
        loss_of: (logits [rows, v], batch [b, t + 1]) -> scalar.
    """
    rng = np.random.default_rng(0)
    run = torch.compile(model, dynamic=False) if recipe.compile else model
    optimisers = make_optimisers(model)
    before = held_out_loss(model, corpus, recipe)
    start = told = time.monotonic()
    step = seen = 0
    while (done := min((time.monotonic() - start) / seconds, step / recipe.min_steps)) < 1:
        scale = learning_rate_scale(step, done)
        for optimiser, peak in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = peak * scale
        stream = corpus.library if rng.random() < 0.75 or not len(corpus.tests) else corpus.tests
        batch = draw(stream, recipe.short if done < 0.75 else recipe.long, rng)
        with torch.autocast("cpu", torch.bfloat16):
            logits = run(batch[:, :-1]).logits.flatten(0, 1)
        loss = loss_of(logits.float(), batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser, _ in optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        step, seen = step + 1, seen + batch.numel()
        if time.monotonic() - told > (30 if seconds > 60 else 1):
            told = time.monotonic()
            say(f"{name}: {done:4.0%}, step {step}, {seen / (told - start):,.0f} tokens/s, loss {loss.item():.3f}")
    after = held_out_loss(model, corpus, recipe)
    say(f"{name}: done after {step} steps, {seen:,} tokens; held-out loss {before:.3f} -> {after:.3f}")
    return Result(sum(p.numel() for p in model.parameters()), step, seen, before, after)


def make_pair(recipe: Recipe, sources: list[tuple[Path, str]], out: Path) -> dict[str, Any]:
    """Train both models, write ``out/target``, ``out/draft`` and ``out/report.json``; returns the report."""
    torch.manual_seed(0)
    say(f"{len(sources)} source files; making a tokenizer of {recipe.vocab} tokens")
    tokenizer = make_tokenizer((text for i, (_, text) in enumerate(sources) if not is_held_out(i)), recipe.vocab)
    corpus = make_corpus(sources, tokenizer)
    say(f"tokens: library {len(corpus.library):,}, its tests {len(corpus.tests):,}, held out {len(corpus.held_out):,}")

    def text_loss(logits: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits, batch[:, 1:].flatten())

    def teacher_loss(logits: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            wanted = target(batch[:, :-1]).logits.flatten(0, 1).float().log_softmax(-1)
        return F.kl_div(logits.log_softmax(-1), wanted, log_target=True, reduction="batchmean")

    target = make_model(recipe.target, recipe.vocab)
    target_result = train("target", target, recipe.target_seconds, corpus, recipe, text_loss)
    save(target, tokenizer, out / "target")
    target.eval()
    draft = make_model(recipe.draft, recipe.vocab)
    draft_result = train("draft", draft, recipe.draft_seconds, corpus, recipe, teacher_loss)
    save(draft, tokenizer, out / "draft")
    report = {
        "recipe": asdict(recipe),
        "files": len(sources),
        "target": asdict(target_result),
        "draft": asdict(draft_result),
        "greedy_agreement": agreement(target, draft.eval(), corpus, recipe),
    }
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write ``model`` in bfloat16 with the tokenizer; ``model`` itself stays as it is."""
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in model.state_dict().items()}
    copy = LlamaForCausalLM(model.config).to(torch.bfloat16)
    copy.load_state_dict(weights)
    copy.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def say(text: str) -> None:
    print(text, flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write target/, draft/ and report.json to")
    parser.add_argument("--target-seconds", type=float, help=f"training time of the target (default {FULL.target_seconds})")
    parser.add_argument("--draft-seconds", type=float, help=f"training time of the draft (default {FULL.draft_seconds})")
    parser.add_argument("--sources", type=Path, help="folder of Python files (default: this Python's standard library)")
    parser.add_argument("--threads", type=int, help="compute threads (default: one a core)")
    parser.add_argument("--quick", action="store_true", help="a tiny pair in a few seconds, the same each time")
    options = parser.parse_args(arguments)
    for name in ("target_seconds", "draft_seconds", "threads"):
        value = getattr(options, name)
        if value is not None and value <= 0:
            parser.error(f"--{name.replace('_', '-')} {value:g}: must be > 0")
    recipe = QUICK if options.quick else FULL
    given = {name: getattr(options, name) for name in ("target_seconds", "draft_seconds") if getattr(options, name)}
    recipe = replace(recipe, **given)
    sources = read_sources(options.sources or Path(sysconfig.get_path("stdlib")), recipe.max_files)
    if len(sources) <= HELD_OUT_AT:
        parser.error(f"only {len(sources)} Python files found: need more than {HELD_OUT_AT}")
    transformers_logging.disable_progress_bar()
    if options.threads:
        torch.set_num_threads(options.threads)
    report = make_pair(recipe, sources, options.out)
    say(f"wrote {options.out}/target and {options.out}/draft; they agree on {report['greedy_agreement']:.0%} of held-out tokens")
    return 0


if __name__ == "__main__":
    sys.exit(main())

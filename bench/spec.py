"""What drafting is worth: tokens per second with it and without, by turns, on rings behind emulated links.

    python bench/spec.py                                   all cases, within 20 minutes
    python bench/spec.py --cases a80,demo --every          these, with every chain and tree of 1 to 16 tokens times 1 to 4
    python bench/spec.py --acceptance FILE                 a drafter that is right as often as FILE says, by rank: 0.8,0.08,0.04
    python bench/spec.py --texts DIR                       the demo pair, on prompts from the files in DIR

Two rings run side by side, of which one never drafts: rows are measured by turns on one or the other, those of ``hopeless`` on
both at once. A row is how trees are chosen: none; a chain or a tree of always the same shape, N tokens deep with W choices
each; ``adaptive``, as the runtime does it. Each run is as long as it is asked for; what counts is whole rounds, and of several
sequences the time while all of them decode. The cost of a round is the control core's own figure, measured live.

``a80`` to ``a97-near`` have a stand-in for LLaMA-30B and a drafter that takes a millisecond a level and is right as often as
it is told (synthetic_drafter.py), or in ``hopeless`` sure of itself and never right; ``ngrams`` and ``demo`` to ``demo-t08`` the
packaged models, their texts and, but for ``ngrams``, their draft model.

A case that fails costs no other its rows. Exits 1 if one did, if a ratio to ``none`` is below its bound, if the adaptive trees
are behind the best fixed shape by more than FIXED, or behind what whoever knows the acceptance could have by more than ORACLE.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.arguments import OptionError, Parser, names, out_file, seconds, whole
from bench.profiles import load_profile
from bench.program import headline, machine, program
from bench.ring import Ring, RingSpec
from bench.rounds import best_rate
from bench.spread import interval
from bench.texts import prompts
from bloombee.errors import BloomBeeError
from bloombee.pipeline.scheduler import SchedulerCore
from bloombee.spec.controller import Shape
from bloombee.spec.ngram import NgramDrafter
from bloombee.spec.speculator import Speculator

NONE, ADAPTIVE = "none", "adaptive"
LEVEL_S = 0.001
WARM_S = 10.0
PROMPT_TOKENS = 64
MOST_TOKENS = 1900
FIXED, ORACLE = 0.97, 0.9
STANDIN = "standin:llama-30b"
SHAPES = (Shape(8), Shape(16), Shape(4, 2), Shape(8, 2), Shape(16, 2), Shape(8, 4))
EVERY = tuple(Shape(depth, width) for width in range(1, 5) for depth in range(1, 17))


@dataclass(frozen=True, slots=True)
class Case:
    """A ring, its drafter, and what the ratio to ``none`` must be.

    Args:
        acceptance: of the drafter, by rank; empty: ``draft`` says what drafts.
        shapes: fixed ones to compare with.
    """

    name: str
    least: float
    acceptance: tuple[float, ...] = ()
    draft: str = ""
    model: str = STANDIN
    workers: int = 4
    profile: str = "100M-250ms"
    pace: str | None = "4,0.05,0.1"
    batch: int = 1
    temperature: float = 0.0
    beside: bool = False
    """Both rings run at once, so that whatever else the machine does is in both; for rings that hardly compute."""
    shapes: tuple[Shape, ...] = ()

    @property
    def drafter(self) -> str:
        if self.draft:
            return self.draft
        return f"module:bench.synthetic_drafter:standin:{','.join(map(str, self.acceptance))}:{LEVEL_S}"

    def spec(self, draft: str) -> RingSpec:
        return RingSpec(
            model=self.model,
            dtype="float32" if self.model == "demo" else "auto",
            workers=self.workers,
            microbatches=None,
            codec="auto",
            pace=self.pace,
            kv_tokens=self.batch * (PROMPT_TOKENS + MOST_TOKENS + 16),
            profile=load_profile(self.profile),
            draft=draft,
        )


A80 = (0.80, 0.08, 0.04, 0.02)
CASES = (
    Case("a80", 5.5, A80, shapes=SHAPES),
    Case("a74", 4.2, (0.74, 0.09, 0.04, 0.02)),
    Case("a97", 20.0, (0.97, 0.01), shapes=(Shape(16),)),
    Case("a80-10M", 2.5, A80, profile="10M-250ms", shapes=(Shape(4), Shape(8), Shape(8, 2))),
    Case("hopeless", 0.98, draft=f"module:bench.synthetic_drafter:nothing:0.8,0.08,0.04:{LEVEL_S}", beside=True),
    Case("b4", 2.2, A80, batch=4, profile="20M-100ms", pace="13,0.05,0.5"),
    Case("b8", 1.35, A80, batch=8, profile="20M-100ms", pace="13,0.05,0.5"),
    Case("b32", 0.98, A80, batch=32, profile="20M-100ms", pace="13,0.05,0.5"),
    Case("full", 0.98, A80, batch=32, profile="5M-100ms", pace="13,0.05,0.5"),
    Case("a97-near", 6.0, (0.97, 0.01), workers=2, profile="1G-22ms", pace="1,0.05,0.1"),
    Case("ngrams", 3.0, draft="ngrams", model="demo", pace=None),
    Case("demo", 5.0, draft="auto", model="demo", pace=None, shapes=(Shape(8), Shape(8, 2))),
    Case("demo-near", 4.0, draft="auto", model="demo", pace=None, profile="100M-50ms"),
    Case("demo-t08", 0.98, draft="auto", model="demo", pace=None, temperature=0.8),
)


@dataclass(frozen=True, slots=True)
class Count:
    """Tokens of a row's runs: all, drafted, and those of the drafted that were right."""

    tokens: int = 0
    drafted: int = 0
    right: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(self.tokens + other.tokens, self.drafted + other.drafted, self.right + other.right)


@dataclass(slots=True)
class Outcome:
    """Of a case: tokens per second of each run, by row."""

    case: Case
    rates: dict[str, list[float]] = field(default_factory=dict)
    oracle: float | None = None
    """Tokens per second for whoever knows the acceptance, by the live cost of a round; None where nobody does."""
    seen: dict[tuple[int, int, int], tuple[float, float]] = field(default_factory=dict)
    sent: dict[str, Count] = field(default_factory=dict)

    def add(self, row: str, rate: float, count: Count) -> None:
        """Of a run."""
        self.rates.setdefault(row, []).append(rate)
        self.sent[row] = self.sent.get(row, Count()) + count

    def median(self, row: str) -> float:
        return statistics.median(self.rates[row])

    def ratio(self, row: str) -> tuple[float, float, float]:
        """(median, and the 90 % interval) to ``none``, run by run."""
        pairs = [[rate / plain] for rate, plain in zip(self.rates[row], self.rates[NONE], strict=True)]
        return (statistics.median(pair[0] for pair in pairs), *interval(pairs))

    def faults(self) -> list[str]:
        found = []
        if self.ratio(ADAPTIVE)[0] < self.case.least:
            found.append(f"{self.case.name}: {self.ratio(ADAPTIVE)[0]:.2f}x of none, at least {self.case.least}x is asked for")
        fixed = {row: self.median(row) for row in self.rates if row not in (NONE, ADAPTIVE)}
        if fixed and self.median(ADAPTIVE) < FIXED * max(fixed.values()):
            best = max(fixed, key=fixed.__getitem__)
            found.append(f"{self.case.name}: {self.median(ADAPTIVE) / fixed[best]:.2f} of the best fixed shape, {best}")
        if self.oracle is not None and self.median(ADAPTIVE) < ORACLE * self.oracle:
            found.append(f"{self.case.name}: {self.median(ADAPTIVE) / self.oracle:.2f} of what is possible at this acceptance")
        return found


def row_of(shape: Shape) -> str:
    return f"{shape.depth}x{shape.width}"


def speculator_of(ring: Ring) -> Speculator:
    """Whose trees the ring verifies."""
    scheduler = ring.runtime._head.dispatch.scheduler
    assert isinstance(scheduler, SchedulerCore)
    assert scheduler._rounds.speculator is not None
    return scheduler._rounds.speculator


async def measure_case(case: Case, texts: Sequence[list[int]], run_s: float, repeats: int) -> Outcome:
    """All rows of a case, by turns."""
    outcome = Outcome(case)
    async with Ring(case.spec("off")) as plain, Ring(case.spec(case.drafter)) as drafting:
        speculator = speculator_of(drafting)
        await _drafter_is_up(case, speculator)
        await _run(drafting, case, texts, WARM_S, 0)
        await _run(plain, case, texts, WARM_S / 4, 0)
        rows: dict[str, Shape | None] = {ADAPTIVE: None, **{row_of(shape): shape for shape in case.shapes}}
        for repeat in range(repeats if case.beside else 0):
            both = await asyncio.gather(*(_run(ring, case, texts, run_s, 1 + repeat) for ring in (plain, drafting)))
            for row, (rate, count) in zip((NONE, ADAPTIVE), both, strict=True):
                outcome.add(row, rate, count)
        for repeat in range(0 if case.beside else repeats):
            for row in [NONE, *rows] if repeat % 2 == 0 else [*reversed(rows), NONE]:
                speculator.shape = rows.get(row)
                speculator.drafters = (NgramDrafter(),)  # who has heard the same text before knows it by heart
                rate, count = await _run(plain if row == NONE else drafting, case, texts, run_s, 1 + repeat)
                outcome.add(row, rate, count)
        outcome.seen = speculator.calibration.seen()
        if case.acceptance and case.batch == 1:
            load = drafting.runtime._head.dispatch.scheduler._rounds.load  # type: ignore[union-attr]
            outcome.oracle = best_rate(load, case.acceptance, LEVEL_S)[1]
    return outcome


async def _drafter_is_up(case: Case, speculator: Speculator) -> None:
    async with asyncio.timeout(120):
        while case.draft != "ngrams" and not speculator.other_is_there:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


@dataclass(slots=True)
class _Heard:
    """Of one sequence: when its tokens came, and what of them had been drafted."""

    times: list[float] = field(default_factory=list)
    drafted: int = 0
    right: int = 0


async def _run(ring: Ring, case: Case, texts: Sequence[list[int]], run_s: float, number: int) -> tuple[float, Count]:
    """(tokens per second of all sequences, what was drafted), from when the last of them has its first token."""
    heard = [_Heard() for _ in range(case.batch)]

    def is_enough(now: float) -> bool:
        return all(one.times for one in heard) and now > max(one.times[0] for one in heard) + run_s

    async def hear(one: _Heard, place: int) -> None:
        stream = ring.runtime.stream(
            texts[(number * case.batch + place) % len(texts)],
            max_new_tokens=MOST_TOKENS,
            ignore_eos=True,
            seed=1000 * number + place,
            temperature=case.temperature,
        )
        async with aclosing(stream) as tokens:
            async for token in tokens:
                one.times.append(time.monotonic())
                one.drafted, one.right = one.drafted + token.drafted, one.right + token.was_drafted
                if is_enough(one.times[-1]):
                    break

    await asyncio.gather(*(hear(one, place) for place, one in enumerate(heard)))
    await ring.until_idle()
    count = Count(sum(len(one.times) for one in heard), sum(one.drafted for one in heard), sum(one.right for one in heard))
    pause_s = 0.25 * sum(link.forward.delay_s for link in ring.links())
    times = [one.times for one in heard]
    return (by_rounds(times[0], pause_s) if case.batch == 1 else by_window(times)), count


def by_rounds(times: Sequence[float], pause_s: float) -> float:
    """Tokens per second of one sequence over whole rounds, which are ``pause_s`` apart: from the first token to the last that
    begins one."""
    begins = [0, *(at for at in range(1, len(times)) if times[at] - times[at - 1] > pause_s)]
    return begins[-1] / (times[begins[-1]] - times[0])


def by_window(times: Sequence[Sequence[float]]) -> float:
    """Tokens per second of all sequences while all of them decode."""
    start, stop = max(one[0] for one in times), min(one[-1] for one in times)
    return sum(start < moment <= stop for one in times for moment in one) / (stop - start)


def show(outcome: Outcome, console: Console) -> None:
    case = outcome.case
    title = f"{case.name}: {case.model}, {case.workers} workers, {case.profile}, B = {case.batch}, {case.drafter}"
    table = Table("trees", "tokens/s", "of none", "90 %", "drafted a token", "right", title=title, title_justify="left")
    for row, rates in outcome.rates.items():
        sent = outcome.sent[row]
        median, low, high = outcome.ratio(row)
        right = f"{sent.right / sent.drafted:.2f}" if sent.drafted else ""
        per_token = f"{sent.drafted / sent.tokens:.2f}" if sent.drafted else ""
        table.add_row(row, f"{statistics.median(rates):.2f}", f"{median:.2f}", f"{low:.2f} to {high:.2f}", per_token, right)
    console.print(table)
    if outcome.oracle is not None:
        share = outcome.median(ADAPTIVE) / outcome.oracle
        console.print(f"whoever knows the acceptance: {outcome.oracle:.2f} tokens/s; adaptive {share:.2f} of it")
    depths = ("1", "2", "3-4", "5-8", "9-")
    seen = Table(
        "drafters", "rank", *(f"depth {depth}" for depth in depths), title="accepted, given the parent", title_justify="left"
    )
    for source, rank in sorted({key[:2] for key in outcome.seen}):
        cells = [outcome.seen.get((source, rank, depth), (0.0, 0.0)) for depth in range(len(depths))]
        seen.add_row(str(source), str(rank), *(f"{hits / tries:.3f} ({tries:.0f})" if tries else "" for tries, hits in cells))
    console.print(seen)


def texts_for(case: Case, folder: Path | None) -> list[list[int]]:
    """Prompts of real text: the standard library's, or the beginnings of the files in ``folder``."""
    if case.model != "demo":
        return prompts(64, PROMPT_TOKENS, None)
    path = Path(__file__).resolve().parents[1] / "bloombee" / "demo_model" / "target" / "tokenizer.json"
    if folder is None:
        return prompts(64, PROMPT_TOKENS, path.read_text("utf-8"))
    tokenizer = Tokenizer.from_file(str(path))
    files = sorted(one for one in folder.iterdir() if one.is_file()) if folder.is_dir() else []
    found = [tokenizer.encode(one.read_text("utf-8", errors="replace")[:20_000], add_special_tokens=False).ids for one in files]
    long_enough = [ids[:PROMPT_TOKENS] for ids in found if len(ids) >= PROMPT_TOKENS]
    if not long_enough:
        raise OptionError(f"{folder} holds no file of {PROMPT_TOKENS} tokens")
    return long_enough


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="spec", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=names(*(case.name for case in CASES)), default=tuple(case.name for case in CASES))
    parser.add_argument("--every", action="store_true", help="every chain and tree of 1 to 16 tokens times 1 to 4")
    parser.add_argument(
        "--acceptance", type=Path, help="a file with the acceptance of the first case's drafter by rank, with commas"
    )
    parser.add_argument("--texts", type=Path, help="a folder of texts for the demo pair's prompts")
    parser.add_argument("--seconds", type=seconds(1, 600), default=8.0, help="of a run")
    parser.add_argument("--repeats", type=whole(1, 100), default=2)
    parser.add_argument("--json", type=out_file, help="where lines of JSON go")
    return parser.parse_args(arguments)


def _acceptance(path: Path) -> tuple[float, ...]:
    try:
        found = tuple(map(float, path.read_text("utf-8").strip().split(",")))
    except (OSError, ValueError) as error:
        raise OptionError(f"--acceptance {path}: {error}") from error
    if not found or min(found) < 0 or sum(found) > 1:
        raise OptionError(f"--acceptance {path}: numbers from 0 on, together at most 1, are needed")
    return found


def cases_of(options: argparse.Namespace) -> list[Case]:
    chosen = [case for case in CASES if case.name in options.cases]
    if options.acceptance is not None:
        chosen = [
            replace(chosen[0], name=options.acceptance.stem, acceptance=_acceptance(options.acceptance), draft="", least=0.98)
        ]
    return [replace(case, shapes=EVERY) for case in chosen] if options.every else chosen


def _line(outcome: Outcome) -> dict[str, Any]:
    return {
        "case": outcome.case.name,
        "rates": outcome.rates,
        "ratios": {row: outcome.ratio(row) for row in outcome.rates},
        "oracle": outcome.oracle,
        "seen": [[*key, *value] for key, value in sorted(outcome.seen.items())],
        **machine(),
    }


@program("spec")
def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    cases = cases_of(options)
    texts = [texts_for(case, options.texts) for case in cases]
    console, faults, lines = Console(), list[str](), list[dict[str, Any]]()
    console.print(headline())
    for case, prompts_of_it in zip(cases, texts, strict=True):
        try:
            outcome = asyncio.run(measure_case(case, prompts_of_it, options.seconds, options.repeats))
        except (BloomBeeError, OSError, TimeoutError) as error:
            faults.append(f"{case.name}: {type(error).__name__}: {error}")
            continue
        show(outcome, console)
        faults += outcome.faults()
        lines.append(_line(outcome))
        if options.json is not None:
            options.json.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    for fault in faults:
        print(f"spec: {fault}", file=sys.stderr)
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())

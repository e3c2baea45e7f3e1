"""What drafts in parts come to: one sequence over slow links, on a virtual clock, with a drafter of a known acceptance.

    python -m bench.parts --acceptance 0.8,0.08,0.04,0.02 --mbit 100 --one-way-ms 125

The scheduler's and the stages' cores are the real ones, links and devices are simulated: no draft at all, the best of several
fixed numbers of nodes in one frame, what the controller chooses in one frame, and what it chooses in parts. Every run has the
same tokens.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from bench.synthetic_drafter import Synthetic
from bloombee.pace import Pace
from bloombee.pipeline.scheduler import SchedulerCore
from bloombee.sim.cluster import SimCluster
from bloombee.sim.device import VOCAB, oracle
from bloombee.sim.network import LinkShape
from bloombee.spec import controller
from bloombee.spec.controller import Line, Load, worth_sending
from bloombee.spec.speculator import MOST_NODES, Speculator
from bloombee.spec.tree import Draft

STAGES, PROMPT = 4, [1, 2, 3]
PACE = Pace(fixed_s=0.004, decode_row_s=0.00005, prefill_row_s=0.0001)
FIXED = (4, 8, 16, 24, 32, 48, 64)
WHOLE = "one frame"


class _Text:
    """Of the request: what a drafter may know."""

    num_tokens = VOCAB

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = tokens

    def after(self, tokens: Sequence[int], _: int, depth: int) -> int | None:
        place = len(tokens) + depth
        return self._tokens[place] if place < len(self._tokens) else None


class _Knowing(Speculator):
    """As many nodes as pay, or always ``size``."""

    def __init__(self, synthetic: Synthetic, size: int | None, most: int) -> None:
        super().__init__([])
        self._synthetic, self._size, self._most, self._told = synthetic, size, most, 0

    def draft(self, sequence: int, tokens: Sequence[int], load: Load) -> Draft | None:
        new, self._told = list(tokens[self._told :]), len(tokens)
        ask = {"sequence": sequence, "tokens": new, "budget": self._most, "seed": 1, "least": 0.0}
        draft = self._synthetic.draft(ask)
        return (worth_sending(draft, load) if self._size is None else draft.best(self._size)) or None


@dataclass(frozen=True, slots=True)
class Setting:
    acceptance: tuple[float, ...]
    bytes_per_s: float
    one_way_s: float
    row_bytes: int
    tokens: int
    most: int

    @property
    def load(self) -> Load:
        """What the control core makes of such links and devices."""
        fixed_s, row_s, wire_s = PACE.fixed_s, PACE.decode_row_s, self.row_bytes / self.bytes_per_s
        loop = Line(STAGES * (self.one_way_s + fixed_s), STAGES * row_s + (STAGES - 1) * wire_s)
        return Load(loop, (Line(fixed_s, row_s),) * STAGES + (Line(0.0, wire_s),) * (STAGES - 1))


@contextmanager
def _whole(is_whole: bool) -> Iterator[None]:
    """Meanwhile a draft is one frame."""
    found = controller.IDLE
    try:
        if is_whole:
            controller.IDLE = 0.0
        yield
    finally:
        controller.IDLE = found


def seconds_per_token(setting: Setting, *, drafts: bool, size: int | None = None, is_whole: bool = False) -> float:
    """Of one request; the scheduler is beside the first stage as far as links go."""
    text = [*PROMPT, *oracle(PROMPT, 0, STAGES, setting.tokens)]
    synthetic = Synthetic(_Text(text), setting.acceptance, 0.0)  # type: ignore[arg-type]
    here = LinkShape(latency_s=0.00005)

    class Swarm(SimCluster):
        make_speculator = staticmethod(lambda: _Knowing(synthetic, size, setting.most) if drafts else None)

    swarm = Swarm(
        seed=1, num_stages=STAGES, num_pages=4096, page_size=16, max_rows=512, num_microbatches=64, pace=PACE,
        shape=LinkShape(latency_s=setting.one_way_s, bandwidth_bytes_per_s=setting.bytes_per_s), row_bytes=setting.row_bytes,
        shapes={("scheduler", "stage0"): here, ("stage0", "scheduler"): here}, resend_after_s=5.0,
    )  # fmt: skip
    assert isinstance(swarm.scheduler, SchedulerCore)
    swarm.scheduler._rounds.load = setting.load
    swarm.submit(PROMPT, max_new_tokens=setting.tokens)
    with _whole(is_whole):
        assert swarm.run()
    request = swarm.requests[0]
    assert request.tokens == text[len(PROMPT) :]
    return (request.token_times[-1] - request.token_times[0]) / (len(request.token_times) - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--acceptance", default="0.8,0.08,0.04,0.02", help="by rank")
    parser.add_argument("--mbit", type=float, default=100.0, help="of each link")
    parser.add_argument("--one-way-ms", type=float, default=125.0, help="of each hop, and of the way back")
    parser.add_argument("--row-bytes", type=int, default=13312, help="of a token between stages")
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--nodes", type=int, default=MOST_NODES, help="of a draft, at most")
    given = parser.parse_args()
    acceptance = tuple(map(float, given.acceptance.split(",")))
    setting = Setting(acceptance, given.mbit * 1e6 / 8, given.one_way_ms / 1e3, given.row_bytes, given.tokens, given.nodes)
    plain = seconds_per_token(setting, drafts=False)
    fixed = {size: seconds_per_token(setting, drafts=True, size=size, is_whole=True) for size in FIXED}
    best = min(fixed, key=fixed.__getitem__)
    rows = {
        "no drafts": plain,
        f"{best} nodes, {WHOLE}": fixed[best],
        f"chosen, {WHOLE}": seconds_per_token(setting, drafts=True, is_whole=True),
        "chosen, in parts": seconds_per_token(setting, drafts=True),
    }
    for name, seconds in rows.items():
        print(
            f"{name:24s} {1e3 * seconds:7.1f} ms a token  {plain / seconds:6.2f}x  {fixed[best] / seconds:6.3f} of the best fixed"
        )


if __name__ == "__main__":
    main()

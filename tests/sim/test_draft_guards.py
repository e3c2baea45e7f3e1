"""Drafting is never much worse than not to draft: whole swarms that decide for themselves, in virtual time."""

from __future__ import annotations

import statistics

import pytest

from bench.window import find_window
from bloombee.pace import Pace
from bloombee.plan.topology import Cores
from bloombee.sim.cluster import SimRequest
from tests.guard_kit import Foresight, Guarded, Process, gaps, time_per_token

LEAST = 0.98
MET, FIRST_TRIES_S = 20, 0.25
"""Tokens after which a drafter has been met, and what that may cost once."""
HEAVY = Pace(fixed_s=0.013, decode_row_s=0.00005, prefill_row_s=0.0005)
NEAR, FAR = 0.002, 0.125
SHARED = Cores(2, 0.0002, 0.0002)


def _never() -> Foresight:
    return Foresight(lambda _: False)


def _alone(
    process: Process | None, tokens: int, *, one_way_s: float = FAR, cores: Cores | None = None
) -> tuple[Guarded, SimRequest]:
    swarm = Guarded(process, one_way_s=one_way_s, cores=cores)
    request = swarm.ask(1, tokens)
    swarm.finish()
    return swarm, request


@pytest.mark.parametrize(
    ("one_way_s", "ask_s", "cores"),
    [(FAR, 0.0, None), (FAR, 0.3, None), (FAR, 5.0, None), (NEAR, 0.0, None), (NEAR, 0.3, None), (NEAR, 0.02, SHARED)],
)
def test_a_drafter_that_is_sure_and_never_right_costs_next_to_nothing(
    one_way_s: float, ask_s: float, cores: Cores | None
) -> None:
    tokens = 160
    _, plain = _alone(None, tokens, one_way_s=one_way_s, cores=cores)
    swarm, request = _alone(Process(_never(), ask_s=ask_s), tokens, one_way_s=one_way_s, cores=cores)
    assert time_per_token(plain, MET) >= LEAST * time_per_token(request, MET)
    assert request.token_times[MET] - plain.token_times[MET] <= FIRST_TRIES_S
    assert sum(drafted > 0 for _, _, drafted in swarm.sent) <= 0.01 * tokens


def test_what_becomes_hopeless_is_hardly_sent_and_what_is_good_again_is_sent_again() -> None:
    tokens, knows = 330, range(70)
    swarm, request = _alone(Process(Foresight(lambda place: place in knows or place >= 250)), tokens)
    _, plain = _alone(None, 40)
    middle = request.token_times[knows.stop + 2 : 250]
    assert time_per_token(plain) >= LEAST * (middle[-1] - middle[0]) / (len(middle) - 1)
    inside = [drafted > 0 for at, firsts, drafted in swarm.sent if firsts and middle[20] < at < middle[-1]]
    assert sum(inside) <= 0.03 * len(inside)
    after = request.token_times[-60:]
    assert after[-1] - after[0] < 0.5 * 60 * time_per_token(plain)


def _speed(process: Process | None, batch: int, *, mbit: float) -> float:
    """Tokens a second once all decode."""
    swarm = Guarded(process, one_way_s=0.05, mbit=mbit, pace=HEAVY)
    requests = [swarm.ask(number, 60, prompt=4) for number in range(batch)]
    swarm.finish()
    times = [request.token_times for request in requests]
    window = find_window(times, 20, max(one[10] for one in times))
    assert window is not None
    return window.tokens_per_s


@pytest.mark.parametrize("knows", [True, False])
def test_a_saturated_link_carries_as_many_tokens_as_without(*, knows: bool) -> None:
    process = Process(Foresight(lambda _: knows))
    assert _speed(process, 32, mbit=5) >= LEAST * _speed(None, 32, mbit=5)


@pytest.mark.parametrize("mbit", [100.0, 10.0])
def test_the_first_token_of_others_is_not_held_up(mbit: float) -> None:
    means = []
    for process in (None, Process(Foresight())):
        swarm = Guarded(process, mbit=mbit)
        swarm.ask(0, 400 if process is not None else 80, prompt=64)
        others = [swarm.ask(1 + number, 2, at=12.3 + 1.77 * number, prompt=64) for number in range(12)]
        swarm.finish()
        means.append(statistics.mean(one.token_times[0] - one.submitted_at for one in others))
    assert means[1] <= 1.02 * means[0]


def test_others_do_not_wait_for_drafts_that_are_not_theirs() -> None:
    means = []
    for process in (None, Process(Foresight())):
        swarm = Guarded(process)
        if process is not None:
            known = process.foresight.after
            process.foresight.after = lambda tokens, seed, depth, known=known: (  # type: ignore[method-assign, misc]
                known(tokens, seed, depth) if tokens[0] == 1000 else None
            )
        swarm.ask(0, 400 if process is not None else 90, prompt=64)
        others = [swarm.ask(1 + number, 40, at=12.3 + 0.17 * number, prompt=64) for number in range(3)]
        swarm.finish()
        means.append(statistics.mean(gap for one in others for gap in gaps(one)[2:]))
    assert means[1] <= 1.05 * means[0]


def test_it_settles_within_three_rounds_of_a_crowd_that_comes_and_goes() -> None:
    process = Process(Foresight())
    swarm = Guarded(process, one_way_s=0.025, mbit=20.0, pace=HEAVY)
    loop_s = 4 * (0.025 + HEAVY.fixed_s)
    first = swarm.ask(0, 1200, prompt=4)
    crowd = [swarm.ask(1 + number, 24, at=10.0, prompt=4) for number in range(31)]
    swarm.finish()
    came, went = max(one.token_times[0] for one in crowd), max(one.token_times[-1] for one in crowd)
    assert went < first.token_times[-1]

    def per_row(since: float, until: float) -> float:
        frames = [(firsts, drafted) for at, firsts, drafted in swarm.sent if since <= at < until]
        return sum(drafted for _, drafted in frames) / sum(firsts for firsts, _ in frames)

    before, within, after = per_row(5.0, 10.0), per_row(came + 3 * loop_s, went), per_row(went + 3 * loop_s, went + 8 * loop_s)
    assert within < 0.5 * before
    assert after > 0.7 * before

"""Real models in a simulated swarm that drafts: every token is the one that comes without drafts, with its log-probability."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from draft_kit import Crashing, Drawn, Eager
from engine_kit import PAGE, VOCABULARY, ModelDevice, make_checkpoint

from bloombee.engine.describe import describe
from bloombee.pipeline.work import Outcome, Work
from bloombee.sim.cluster import SimCluster
from bloombee.spec.drafter import Drafter
from bloombee.spec.ngram import NgramDrafter
from bloombee.wire.messages import Load, Sampling

ROWS, NEW_TOKENS, LENGTHS = 32, 40, (30, 3, 17, 9)
GREEDY = Sampling(0.0, 0, 1.0, 0.0, 1.0, 0.0, 0.0, 7, -1)
SAMPLINGS = {
    "greedy": GREEDY,
    "warm": Sampling(0.7, 0, 1.0, 0.0, 1.0, 0.0, 0.0, 7, 2),
    "top-p": Sampling(1.0, 0, 0.9, 0.0, 1.0, 0.0, 0.0, 7, -1),
    "penalties": Sampling(0.3, 0, 1.0, 0.0, 1.3, 0.5, 0.4, 7, 3),
}
FAMILIES = ["llama", "gemma2", "gpt_oss", "mistral", "deepseek_v3", "gpt_neox"]
"""Masks beside caps, sinks and windows, keys computed from latents, one query head a KV head."""


pytestmark = pytest.mark.usefixtures("one_thread")


class _Device(ModelDevice):
    """Takes note of rows that were nodes or moved."""

    def __init__(self, directory: Path, load: Load) -> None:
        super().__init__(directory, load)
        self.num_nodes = self.num_moved = 0

    def run(self, work: Work) -> Outcome:
        self.num_nodes += sum(segment.num_rows for segment in work.segments if segment.tree is not None)
        self.num_moved += sum(len(pages.moves) for segment in work.segments for pages in segment.pages)
        return super().run(work)


class _Run:
    """Prompts through a swarm of two stages."""

    def __init__(self, directory: Path, prompts: Sequence[list[int]], sampling: Sampling, drafter: Drafter | None = None) -> None:
        self.devices: list[_Device] = []

        def make_device(load: Load) -> _Device:
            self.devices.append(_Device(directory, load))
            return self.devices[-1]

        class Swarm(SimCluster):
            make_speculator = staticmethod(lambda: None if drafter is None else Eager(drafter))

        cluster = Swarm(
            seed=1, num_stages=2, card=describe(str(directory)), make_device=make_device, num_pages=128, page_size=PAGE,
            max_rows=ROWS, num_microbatches=2,
        )  # fmt: skip
        for prompt in prompts:
            cluster.submit(prompt, max_new_tokens=NEW_TOKENS, sampling=sampling)
        assert cluster.run()
        assert all(request.error is None for request in cluster.requests.values())
        self.tokens = [request.tokens for request in cluster.requests.values()]
        self.logprobs = [request.logprobs for request in cluster.requests.values()]


def _prompts() -> list[list[int]]:
    rng = random.Random(4)
    return [[rng.randrange(VOCABULARY) for _ in range(length)] for length in LENGTHS]


def _drafter(kind: str, prompts: Sequence[list[int]], answers: Sequence[list[int]]) -> Drafter:
    texts = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]

    def future(tokens: Sequence[int]) -> list[int]:
        known = list(tokens)
        return next(text[len(known) :] for text in texts if text[: len(known)] == known)

    skill = {"right": 1.0, "mixed": 0.7, "crashing": 0.7}.get(kind, 0.0)
    drawn = Drawn(random.Random(kind), future, skill, most=20, vocabulary=VOCABULARY)
    return {"ngram": NgramDrafter(), "crashing": Crashing(drawn, 8)}.get(kind, drawn)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_kind_of_attention_masks_what_a_node_does_not_see(family: str, tmp_path: Path) -> None:
    make_checkpoint(family, tmp_path)
    prompts = _prompts()
    plain = _Run(tmp_path, prompts, SAMPLINGS["warm"])
    drafted = _Run(tmp_path, prompts, SAMPLINGS["warm"], _drafter("mixed", prompts, plain.tokens))
    assert drafted.tokens == plain.tokens
    for one, other in zip(drafted.logprobs, plain.logprobs, strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    assert all(device.num_nodes > 100 for device in drafted.devices)
    assert all(device.num_moved > 0 for device in drafted.devices)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_no_sampling_depends_on_what_was_drafted(sampling: str, tmp_path: Path) -> None:
    make_checkpoint("llama", tmp_path)
    prompts = _prompts()
    plain = _Run(tmp_path, prompts, SAMPLINGS[sampling])
    for kind in ("right", "mixed", "wrong", "ngram", "crashing"):
        drafted = _Run(tmp_path, prompts, SAMPLINGS[sampling], _drafter(kind, prompts, plain.tokens))
        assert drafted.tokens == plain.tokens
        if SAMPLINGS[sampling].logprobs >= 0:
            for one, other in zip(drafted.logprobs, plain.logprobs, strict=True):
                assert one == pytest.approx(other, abs=1e-5)


def test_an_accepted_first_path_is_not_moved(tmp_path: Path) -> None:
    """A chain, of which every node comes true, lies where its rows belong."""
    make_checkpoint("llama", tmp_path)
    prompts = _prompts()
    plain = _Run(tmp_path, prompts, GREEDY)
    drafted = _Run(tmp_path, prompts, GREEDY, _drafter("right", prompts, plain.tokens))
    assert drafted.tokens == plain.tokens
    assert all(device.num_moved == 0 for device in drafted.devices)

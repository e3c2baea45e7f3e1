"""Whether runs of the same requests gave the same tokens, where kernels may round differently.

In float32 every sequence equals the undisturbed run's. Where one leaves it, the first position at which they differ is judged
alone: the margin there, of one undisturbed process, says by how much the best token was better than the second (logit +
noise, after penalties and filters). A margin above 2^-18 of the row's largest |logit| is no rounding: the sequence is wrong.
Below it is a flip, of which one in 100,000 compared tokens is allowed; fewer compared tokens prove nothing of flips.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.exact import Reference
from bloombee.wire.messages import Sampling

MARGIN = 2.0**-18
"""Of the row's largest |logit|."""
TOKENS_A_FLIP = 100_000


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt and how it is sampled."""

    prompt: list[int]
    sampling: Sampling

    @property
    def fields(self) -> dict[str, Any]:
        """Of ``SamplingParams``: nothing is left to the checkpoint's defaults."""
        fields = {name: getattr(self.sampling, name) for name in self.sampling.__struct_fields__}
        del fields["logprobs"]
        return fields


@dataclass(slots=True)
class Comparison:
    """What came of comparing answers. ``num_tokens``: those compared, up to where an answer left the undisturbed one."""

    num_tokens: int = 0
    num_wrong: int = 0
    num_flips: int = 0

    @property
    def is_same(self) -> bool:
        """As far as was compared."""
        return not self.num_wrong and self.num_flips <= max(1, self.num_tokens // TOKENS_A_FLIP)

    @property
    def is_claim(self) -> bool:
        """Enough was compared to say so."""
        return self.num_tokens >= TOKENS_A_FLIP

    def add(self, other: Comparison) -> None:
        self.num_tokens += other.num_tokens
        self.num_wrong += other.num_wrong
        self.num_flips += other.num_flips


def compare(reference: Reference, request: Request, expected: Sequence[int], answer: Sequence[int]) -> Comparison:
    """One answer beside the undisturbed run's. Blocks while the reference computes, if they differ.

    Raises:
        RuntimeError: the reference process ended.
    """
    at = first_difference(expected, answer)
    if at is None:
        return Comparison(len(expected))
    is_cut = at == min(len(expected), len(answer))  # a token is missing, or there is one too many
    if is_cut or reference.margin(request.prompt, expected[:at], request.sampling) > MARGIN:
        return Comparison(at + 1, num_wrong=1)
    return Comparison(at + 1, num_flips=1)


def first_difference(expected: Sequence[int], answer: Sequence[int]) -> int | None:
    """None: they are equal. Of one that is the beginning of the other, the length."""
    for index, (one, other) in enumerate(zip(expected, answer, strict=False)):
        if one != other:
            return index
    return None if len(expected) == len(answer) else min(len(expected), len(answer))

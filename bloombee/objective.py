"""What a plan is to be best at. Pure data."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

from bloombee.errors import ConfigError
from bloombee.quote import quoted

RULE = "latency, throughput, balance or target:SECONDS"


class Goal(enum.StrEnum):
    LATENCY = "latency"
    """The least time per token of one sequence alone (B = 1)."""
    THROUGHPUT = "throughput"
    """The most tokens per second of all sequences together."""
    TARGET = "target"
    """The most tokens per second with no more than so many seconds between the tokens of a sequence."""
    BALANCE = "balance"
    """Of the plans within 3 % of the most tokens per second, the one with the least time per token at B = 1."""


@dataclass(frozen=True, slots=True)
class Objective:
    """A goal, and for a target its seconds.

    Raises:
        ConfigError: a target without a time > 0, or a time without a target.
    """

    goal: Goal = Goal.BALANCE
    target_s: float | None = None

    def __post_init__(self) -> None:
        wants = self.goal is Goal.TARGET
        if wants != (self.target_s is not None) or (self.target_s is not None and not 0 < self.target_s < math.inf):
            raise ConfigError(
                f"objective {self.goal} with {self.target_s} s: a target, and nothing else, has a time > 0", field="objective"
            )

    @classmethod
    def parse(cls, text: str) -> Objective:
        """``latency``, ``throughput``, ``balance``, ``target:SECONDS``. Raises ConfigError: anything else."""
        name, _, seconds = text.partition(":")
        try:
            return cls(Goal(name), float(seconds) if seconds else None)
        except (ValueError, ConfigError):
            said = f"objective = {quoted(text)}: must be {RULE}"
            raise ConfigError(said, field="objective", value=quoted(text), allowed=RULE) from None

    def __str__(self) -> str:
        return str(self.goal) if self.target_s is None else f"{self.goal}:{self.target_s:g}"

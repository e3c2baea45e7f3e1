"""How long requests may be: what the model has positions for and the stages have memory for."""

from __future__ import annotations

from dataclasses import dataclass

from bloombee.errors import ConfigError, Infeasible
from bloombee.kv.pool import most_pages
from bloombee.models.card import ModelCard
from bloombee.plan.plan import Plan
from bloombee.roles.asked import Asked, ask
from bloombee.types import SamplingParams


@dataclass(slots=True)
class Lengths:
    """Of one model.

    Args:
        max_rows: most rows of a microbatch.
        answer_tokens: of an answer whose length nobody says, where there is room for so many.
        plan: what runs; None: nothing yet.
    """

    card: ModelCard
    max_rows: int
    answer_tokens: int
    plan: Plan | None = None

    def check(self, params: SamplingParams, num_tokens: int, at_least: bool) -> None:
        """Raises if a prompt of ``num_tokens``, or of that many at least, cannot be served. Callable from any thread."""
        if not num_tokens:
            raise ConfigError("the prompt is empty: give text, token ids or chat messages", field="prompt")
        card, plan = self.card, self.plan
        max_new_tokens = self.ask(params, num_tokens).max_new_tokens
        total = num_tokens + max_new_tokens
        least = "at least " * at_least
        if card.max_positions and total > card.max_positions:
            raise ConfigError(
                f"the prompt has {least}{num_tokens} tokens and max_new_tokens = {max_new_tokens}:"
                f" {least}{total} positions, but the model has {card.max_positions}; shorten one of them",
                field="max_new_tokens" if num_tokens < card.max_positions else "prompt",
                prompt_tokens=num_tokens,
                max_positions=card.max_positions,
            )
        if not at_least and num_tokens <= card.restart_at < total - 1:
            raise ConfigError(
                f"the prompt has {num_tokens} tokens and max_new_tokens = {max_new_tokens}: this model's rotary embeddings"
                f" (longrope) change after {card.restart_at} positions, which a sequence cannot do on its way; shorten one of"
                " them, or give a longer prompt",
                field="max_new_tokens",
                prompt_tokens=num_tokens,
                max_positions=card.restart_at,
            )
        if plan is not None and not self._has_pages(plan, total - 1):
            raise Infeasible(
                f"prompt and max_new_tokens need {least}{total} KV tokens, a stage has {plan.num_tokens}: raise kv_tokens or"
                " use more workers",
                constraint="kv_tokens",
                wanted=total,
                allowed=plan.num_tokens,
            )

    def ask(self, params: SamplingParams, num_tokens: int) -> Asked:
        """As :func:`ask`; a default length goes no further than the KV memory."""
        room = self.answer_tokens if self.plan is None else self.plan.num_tokens - num_tokens + 1
        return ask(params, self.card, num_tokens, max(1, min(self.answer_tokens, room)))

    def _has_pages(self, plan: Plan, num_tokens: int) -> bool:
        rows = self.max_rows
        return all(most_pages(num_tokens, plan.page_size, window=g.window, rows=rows) <= g.num_pages for g in plan.groups)

"""Who gets on with nothing while others wait. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from bloombee.errors import DeadlineExceeded


def stuck(names: Iterable[str], limit_s: float) -> DeadlineExceeded | None:
    """What is told of workers that make no progress with loading; None: there are none."""
    text = ", ".join(names)
    if not text:
        return None
    return DeadlineExceeded(
        f"no progress with loading for load_deadline_s = {limit_s:g} s on {text}: look at its log, its disk and its"
        " network, or allow more",
        workers=text,
    )

"""Commands of a core, acted on one by one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

log = logging.getLogger(__name__)
T = TypeVar("T")


def each(act: Callable[[T], None], commands: Sequence[T]) -> None:
    """Act on every command, whatever one of them raises; raises that of the first in the end."""
    errors: list[Exception] = []
    for command in commands:
        try:
            act(command)
        except Exception as error:
            errors.append(error)
    for another in errors[1:]:
        log.error("another command failed as well: %s", another, exc_info=another)
    if errors:
        raise errors[0]

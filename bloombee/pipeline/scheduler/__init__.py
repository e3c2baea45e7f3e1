"""The scheduler core: what enters the next step. ``core.py`` is the door, the files beside it one matter each."""

from bloombee.pipeline.scheduler.batching import BESIDE_DECODE, MOST_ITEMS
from bloombee.pipeline.scheduler.core import Event, SchedulerCore

__all__ = ["BESIDE_DECODE", "MOST_ITEMS", "Event", "SchedulerCore"]

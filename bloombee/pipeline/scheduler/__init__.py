"""The scheduler core: what enters the next step. ``core.py`` is the door, the files beside it one matter each; ``service.py`` and
``proxy.py`` are the two ends of one that is not with the head."""

from bloombee.pipeline.scheduler.batching import BESIDE_DECODE, MOST_ITEMS
from bloombee.pipeline.scheduler.core import Event, SchedulerCore
from bloombee.pipeline.scheduler.proxy import SchedulerProxy
from bloombee.pipeline.scheduler.service import SchedulerService, ring_of

__all__ = ["BESIDE_DECODE", "MOST_ITEMS", "Event", "SchedulerCore", "SchedulerProxy", "SchedulerService", "ring_of"]

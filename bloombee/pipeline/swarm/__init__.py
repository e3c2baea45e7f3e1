"""The swarm core: who is here, what each has loaded, which epoch is wired. ``core.py`` is the door."""

from bloombee.pipeline.swarm.core import RETURN_S, Event, SwarmCore, SwarmLimits, is_loading, may_be_silent, surveyed
from bloombee.pipeline.swarm.drains import Drains
from bloombee.pipeline.swarm.figures import Figure, Figures
from bloombee.pipeline.swarm.orders import REPEAT_S, rules_message
from bloombee.pipeline.swarm.planning import FirstPlan, Machine, PlanRequest

__all__ = [
    "REPEAT_S",
    "RETURN_S",
    "Drains",
    "Event",
    "Figure",
    "Figures",
    "FirstPlan",
    "Machine",
    "PlanRequest",
    "SwarmCore",
    "SwarmLimits",
    "is_loading",
    "may_be_silent",
    "rules_message",
    "surveyed",
]

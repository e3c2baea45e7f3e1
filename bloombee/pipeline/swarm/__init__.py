"""The swarm core: who is here, what each has loaded, which epoch is wired. ``core.py`` is the door."""

from bloombee.pipeline.swarm.core import REPEAT_S, RETURN_S, Event, SwarmCore, SwarmLimits
from bloombee.pipeline.swarm.figures import Figure, Figures
from bloombee.pipeline.swarm.orders import rules_message
from bloombee.pipeline.swarm.planning import Machine, PlanRequest

__all__ = [
    "REPEAT_S",
    "RETURN_S",
    "Event",
    "Figure",
    "Figures",
    "Machine",
    "PlanRequest",
    "SwarmCore",
    "SwarmLimits",
    "rules_message",
]

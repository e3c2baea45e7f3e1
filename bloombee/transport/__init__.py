"""ZeroMQ endpoints: the only part that knows sockets."""

from bloombee.transport.endpoint import Endpoint
from bloombee.transport.keys import KeyPair
from bloombee.transport.link_events import Counters, LinkEvent, LinkEventKind

__all__ = ["Counters", "Endpoint", "KeyPair", "LinkEvent", "LinkEventKind"]

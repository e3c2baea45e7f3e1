"""ZeroMQ endpoints: the only part that knows sockets."""

from bloombee.transport.endpoint import Endpoint
from bloombee.transport.events import Counters, LinkEvent, LinkEventKind
from bloombee.transport.keys import KeyPair

__all__ = ["Counters", "Endpoint", "KeyPair", "LinkEvent", "LinkEventKind"]

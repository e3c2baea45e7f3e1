"""Free ports to listen on, outside the range that the kernel hands to outgoing connections.

A port taken from the kernel (``bind`` to 0) and let go again may be some other program's outgoing connection a moment later;
one that lies below that range may not.
"""

from __future__ import annotations

import random
import socket

HOST = "127.0.0.1"
LOWEST = 10_000
_RANGE = "/proc/sys/net/ipv4/ip_local_port_range"


def free_ports(count: int) -> list[int]:
    """``count`` different ports of :data:`HOST` at which nobody listens.

    Raises:
        OSError: there are not that many.
    """
    candidates = list(range(LOWEST, _lowest_outgoing()))
    random.SystemRandom().shuffle(candidates)
    ports: list[int] = []
    for port in candidates:
        if len(ports) == count:
            break
        try:
            socket.create_server((HOST, port)).close()
        except OSError:
            continue
        ports.append(port)
    if len(ports) < count:
        raise OSError(f"only {len(ports)} of {count} ports are free between {LOWEST} and {_lowest_outgoing()} on {HOST}")
    return ports


def _lowest_outgoing() -> int:
    try:
        with open(_RANGE) as file:
            lowest = int(file.read().split()[0])
    except OSError:
        return 32_768
    return lowest if lowest > LOWEST else 65_536

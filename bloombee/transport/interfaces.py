"""What this machine's network stack knows: its own addresses, and what a name stands for."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import threading
from collections.abc import Callable
from typing import Any

import psutil

from bloombee.address import Address, alternate, read_dialled

_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_FAR = (read_dialled("tcp://192.0.2.1:9"), read_dialled("tcp://[2001:db8::1]:9"))
"""Nobody's, for documentation (RFC 5737, RFC 3849): the way to them is the default route."""


def own_addresses() -> list[str]:
    """This machine's addresses that others may dial, IPv4 and IPv6: those on its default routes first.

    Left out are loopback and link-local ones, and those of interfaces that are down.
    """
    up = {name for name, state in psutil.net_if_stats().items() if state.isup}
    found = [entry.address for name, entries in psutil.net_if_addrs().items() if name in up for entry in entries if _told(entry)]
    leaving = [address for far in _FAR if (address := own_address_towards(far)) is not None]
    return [address for address in dict.fromkeys([*leaving, *found]) if address in found]


def _told(entry: Any) -> bool:
    """Of psutil's addresses of an interface."""
    if entry.family not in _FAMILIES.values():
        return False
    ip = ipaddress.ip_address(entry.address)
    return not (ip.is_loopback or ip.is_link_local)


def own_address_towards(peer: Address) -> str | None:
    """The address of this machine from which it reaches ``peer``, an IP address; None where there is no way to it."""
    assert peer.family is not None
    with contextlib.suppress(OSError), socket.socket(_FAMILIES[peer.family], socket.SOCK_DGRAM) as probe:
        probe.connect((peer.host, peer.port))
        return str(probe.getsockname()[0])
    return None


def look_up(loop: asyncio.AbstractEventLoop, name: Address, found: Callable[[list[Address]], None]) -> None:
    """Ask what ``name`` stands for; ``found`` is called on ``loop`` with its addresses, none if there are none.

    In a daemon thread: a name server that does not answer holds up neither the loop, nor ZeroMQ's, nor the process's end.
    """

    def ask() -> None:
        addresses = resolve(name)
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(found, addresses)

    threading.Thread(target=ask, name="bloombee-look-up", daemon=True).start()


def resolve(name: Address) -> list[Address]:
    """What ``name`` stands for, in the order to try. Blocks."""
    try:
        answers = socket.getaddrinfo(name.host, name.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return alternate([name.at(str(answer[4][0])) for answer in answers if answer[0] in _FAMILIES.values()])

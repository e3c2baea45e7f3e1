"""Endpoints, ``tcp://HOST:PORT``: how one is written, what it may be used for, which one to tell others. Pure.

HOST is an IPv4 address, an IPv6 address in brackets, a name, or ``*``. The same text may be good for one use and not for
another: one listens on ``tcp://*:0``, but nobody can dial it. So there is a reader for each use:

    read_listen      to bind: wildcards, port 0 and interface names (``tcp://eth0:7700``) are allowed
    read_dialled     to dial from this machine: what is left without those
    read_told        to be dialled from another machine: without addresses that mean something on one machine only

``[::]`` and ``*`` listen on IPv6 and IPv4, ``0.0.0.0`` on IPv4 alone. Every reader raises ValueError with what is
wrong and, where it can be told, what was meant; the caller says of which field.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

LISTEN_RULE = "tcp://HOST:PORT (port 0: any free one)"
TOLD_RULE = "tcp://HOST:PORT, as others dial it"
MAX_CHARS = 300
"""A name has at most 253."""
_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_SCOPE = re.compile(r"[A-Za-z0-9_.@-]{1,15}")
_PORT = re.compile(r"[0-9]{1,5}")
_Ip = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Address:
    """One endpoint, in its shortest form.

    Args:
        host: an address without brackets, a name, or ``*``.
        port: 0 to 65535.
        ip: the address that ``host`` is, if it is one.
    """

    host: str
    port: int
    ip: _Ip | None = None

    def __str__(self) -> str:
        return f"tcp://{f'[{self.host}]' if self.family == 6 else self.host}:{self.port}"

    @property
    def family(self) -> int | None:
        """4 or 6; None for names and ``*``, which may be both."""
        return None if self.ip is None else self.ip.version

    @property
    def families(self) -> tuple[int, ...]:
        """Where a socket that is bound here is reached."""
        return (4,) if self.family == 4 else (6,) if self.family == 6 and not self.is_wildcard else (4, 6)

    @property
    def is_wildcard(self) -> bool:
        return self.host == "*" or (self.ip is not None and self.ip.is_unspecified)

    @property
    def is_loopback(self) -> bool:
        """Known to be reachable from its own machine only."""
        return self.ip.is_loopback if self.ip is not None else self.host == "localhost" or self.host.endswith(".localhost")

    def at(self, host: str) -> Address:
        """The same port of the address ``host``."""
        return _of_ip(host, self.port)


def read_listen(text: str) -> Address:
    """What ``text`` says to listen on.

    Raises:
        ValueError: it is none; see the module.
    """
    address = _read(text)
    if address.ip is not None and (address.ip.is_multicast or address.host == "255.255.255.255"):
        raise ValueError(f"{address.host} is no address of one machine")
    return address


def read_dialled(text: str) -> Address:
    """Whom ``text`` says to dial from this machine.

    Raises:
        ValueError: as :func:`read_listen`; or a wildcard, or port 0.
    """
    address = read_listen(text)
    if address.is_wildcard:
        raise ValueError(f"{address.host} means every address of the machine that listens there, and can be dialled by none")
    if address.port == 0:
        raise ValueError("port 0 can be listened on, and dialled by none: the port must be 1 to 65535")
    return address


def read_told(text: str) -> Address:
    """Where ``text`` says that another machine reaches a process.

    Raises:
        ValueError: as :func:`read_dialled`; or an IPv6 link-local address.
    """
    address = read_dialled(text)
    if address.family == 6 and ("%" in address.host or address.ip.is_link_local):  # type: ignore[union-attr]
        raise ValueError(f"{address.host} is of one link, for which every machine has its own name: give another address")
    return address


def reachable_at(bound: Address, own: Iterable[str]) -> tuple[Address, ...]:
    """Where a process that is bound to ``bound`` can be dialled.

    Args:
        own: this machine's addresses, best first, loopback left out.

    Returns:
        ``bound`` itself; for a wildcard the own addresses of its families in their order, loopback if there is none.
    """
    if not bound.is_wildcard:
        return (bound,)
    addresses = (bound.at(host) for host in own)
    return tuple(address for address in addresses if address.family in bound.families) or (loopback_of(bound),)


def loopback_of(bound: Address) -> Address:
    """Where this machine's own processes dial ``bound``."""
    return bound if not bound.is_wildcard else bound.at("127.0.0.1" if 4 in bound.families else "::1")


def default_listen(head: Address) -> Address:
    """Where a worker listens that reached its head at ``head``, an IP address: loopback if the head is there, else everywhere."""
    return Address("*", 0) if not head.is_loopback else Address(head.host, 0, head.ip)


def alternate(addresses: Sequence[Address]) -> list[Address]:
    """The families by turns, each in its order. Source: RFC 8305 section 4: one that is cut off costs one attempt, not all."""
    first = [address for address in addresses if address.family == addresses[0].family]
    second = [address for address in addresses if address.family != addresses[0].family]
    pairs = [pair for both in zip(first, second, strict=False) for pair in both]
    return pairs + first[len(second) :] + second[len(first) :]


def _read(text: str) -> Address:
    if len(text) > MAX_CHARS:
        raise ValueError(f"it has {len(text)} characters, at most {MAX_CHARS} are allowed")
    if not text.startswith("tcp://"):
        raise ValueError(f"it must start with tcp://{_hint(text.rpartition('://')[2])}")
    host, port = _split(text.removeprefix("tcp://"))
    if not _PORT.fullmatch(port) or int(port) > 65535:
        raise ValueError(f"the port {port!r} is no number from 0 to 65535")
    return Address("*", int(port)) if host == "*" else _of_host(host, int(port))


def _hint(rest: str) -> str:
    """What somebody meant who left ``tcp://`` out, and perhaps the port."""
    for meant in (f"tcp://{rest}", f"tcp://{rest}:7700", f"tcp://[{rest}]:7700"):
        try:
            return f", as {_read(meant)}"
        except ValueError:
            pass
    return ""


def _split(rest: str) -> tuple[str, str]:
    """Host and port, brackets kept."""
    if not rest.startswith("[") and rest.count(":") > 1:
        raise ValueError(f"an IPv6 address stands in brackets, as tcp://{_guess(rest)}")
    host, colon, port = rest.rpartition(":")
    if not colon or port.endswith("]"):
        raise ValueError(f"the port is missing, as in tcp://{rest}:7700")
    return host, port


def _guess(rest: str) -> str:
    """Host and port of an IPv6 address without brackets; four digits behind the last colon are rather a port."""
    host, _, port = rest.rpartition(":")
    if _ip(host) is not None and len(port) >= 4 and _PORT.fullmatch(port):
        return f"[{host}]:{port}"
    return f"[{rest}]:7700" if _ip(rest) is not None else "[ADDRESS]:7700"


def _of_host(host: str, port: int) -> Address:
    if host.startswith("[") or host.endswith("]"):
        inner = host.removeprefix("[").removesuffix("]")
        ip = _ip(inner) if host == f"[{inner}]" else None
        if ip is None or ip.version != 6:
            raise ValueError(f"{host} is no IPv6 address in brackets")
        return _of_ip(inner, port)
    if _ip(host) is not None:
        return _of_ip(host, port)
    labels = host.removesuffix(".").split(".")
    if all(label.isdigit() for label in labels):
        raise ValueError(f"{host} is neither an IPv4 address nor a name")
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise ValueError(f"{host!r} is no host: an IPv4 address, an IPv6 address in brackets, or a name of letters, digits and -")
    return Address(host.lower(), port)


def _of_ip(text: str, port: int) -> Address:
    """IPv4 in IPv6 clothes is IPv4."""
    ip = _ip(text)
    if ip is None:
        raise ValueError(f"{text} is no address")
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    ip = mapped or ip
    return Address(str(ip), port, ip)


def _ip(text: str) -> _Ip | None:
    """An address, IPv6 with or without a scope (``fe80::1%eth0``)."""
    plain, percent, scope = text.partition("%")
    if percent and not _SCOPE.fullmatch(scope):
        return None
    try:
        return ipaddress.ip_address(text) if plain.isascii() else None
    except ValueError:
        return None

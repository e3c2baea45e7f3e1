"""Sockets to be reached at, bound before anything that takes long."""

from __future__ import annotations

import errno
import socket

from bloombee.address import Address
from bloombee.errors import AddressInUse, ConfigError


def listen(address: Address) -> list[socket.socket]:
    """Bound at every address that ``address`` stands for, not listening yet; at one port, if any is free.

    Raises:
        AddressInUse: somebody else has the port. ConfigError: no address of this machine.
    """
    bound: list[socket.socket] = []
    try:
        for family, host in _hosts(address):
            port = bound[0].getsockname()[1] if bound else address.port
            if (one := _bind(family, host, port)) is not None:
                bound.append(one)
    except BaseException:
        for one in bound:
            one.close()
        raise
    if not bound:
        raise ConfigError(f"http: {address.host} is no address of this machine", field="http")
    return bound


def url(bound: socket.socket, address: Address) -> str:
    """Where a program of this machine finds it."""
    host = "127.0.0.1" if address.is_wildcard else f"[{address.host}]" if address.family == 6 else address.host
    return f"http://{host}:{bound.getsockname()[1]}"


def _hosts(address: Address) -> list[tuple[socket.AddressFamily, str]]:
    if address.is_wildcard:
        wildcards = {4: (socket.AF_INET, "0.0.0.0"), 6: (socket.AF_INET6, "::")}
        return [wildcards[family] for family in address.families]
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigError(f"http: nothing is known of {address.host}: {error.strerror}", field="http") from error
    return [(family, str(where[0])) for family, _, _, _, where in found]


def _bind(family: socket.AddressFamily, host: str, port: int) -> socket.socket | None:
    """None: this machine lacks that address, or addresses of that kind."""
    try:
        one = socket.socket(family, socket.SOCK_STREAM)
    except OSError:
        return None
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind((host, port))
    except OSError as error:
        one.close()
        if error.errno == errno.EADDRNOTAVAIL:
            return None
        if error.errno == errno.EADDRINUSE:
            raise AddressInUse(f"http: port {port} of {host} is in use: give another with --http", port=port) from error
        raise ConfigError(f"http: cannot listen on {host}, port {port}: {error.strerror}", field="http") from error
    return one

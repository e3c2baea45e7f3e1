"""Join tokens: what they say of where the head is, and issuing them."""

from __future__ import annotations

import secrets
from functools import partial

from bloombee.address import Address, loopback_of, reachable_at, read_listen, read_told
from bloombee.config import RuntimeConfig
from bloombee.errors import ConfigError, RuntimeClosed
from bloombee.roles.head_state import HeadState
from bloombee.transport.interfaces import own_addresses
from bloombee.wire.join import Door
from bloombee.wire.token import MAX_ENDPOINTS, JoinToken, encode_token

SECRET_BYTES = 24


class FrontDoor:
    """Of one head, once it listens.

    Args:
        door: which lets those in who know a secret.
        state: the head's key, and secrets of tokens that heads before it have issued: those are issued again first.
        bound: what the head listens on.

    Raises:
        ConfigError: at an address of one link, for which other machines have other names.
    """

    def __init__(self, door: Door, config: RuntimeConfig, state: HeadState, *, bound: str) -> None:
        self._door = door
        self._key = state.keys.public if config.curve else bytes(32)
        self._secrets = state.secrets(partial(secrets.token_bytes, SECRET_BYTES))
        self._endpoints = told(config, read_listen(bound))

    def issue(self, own_endpoint: str | None = None) -> str:
        """A token that lets one worker in; again, should that be lost.

        Args:
            own_endpoint: how this worker reaches the head, if not at the head's own addresses.

        Raises:
            RuntimeClosed: the swarm has ended, and lets nobody in.
        """
        if self._door.is_shut:
            raise RuntimeClosed("the swarm has ended and lets nobody in: start its head again")
        secret = next(self._secrets)
        self._door.issue(secret)
        endpoints = self._endpoints if own_endpoint is None else (own_endpoint,)
        return encode_token(JoinToken(key=self._key, secret=secret, endpoints=endpoints))


def told(config: RuntimeConfig, bound: Address) -> tuple[str, ...]:
    """Where workers dial a head that listens on ``bound``; best first.

    Raises:
        ConfigError: at an address of one link, for which other machines have other names.
    """
    if config.advertise is not None:
        return (config.advertise,)
    if not config.remote_workers:
        return (str(loopback_of(bound)),)
    endpoints = tuple(str(address) for address in reachable_at(bound, own_addresses()))[:MAX_ENDPOINTS]
    try:
        return tuple(str(read_told(endpoint)) for endpoint in endpoints)
    except ValueError as error:
        raise ConfigError(f"listen = {config.listen!r}: {error}, with --advertise", field="listen") from None

"""Who reaches whom: listening and dialling over IPv4, IPv6 and names, and a worker that looks for its head."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from transport_kit import Side, sides

from bloombee.address import read_dialled, read_listen
from bloombee.errors import AddressInUse, AuthenticationError, ConfigError, DeadlineExceeded, LinkDown
from bloombee.roles.head_search import Found, HeadSearch
from bloombee.transport import LinkEventKind
from bloombee.transport.interfaces import own_address_towards, own_addresses
from bloombee.types import Lane
from bloombee.wire.messages import Heartbeat
from bloombee.wire.token import JoinToken


def _has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        return True
    return False


needs_ipv6 = pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6 loopback")
Names = dict[str, list[str]]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    """Name -> addresses, in place of the machine's resolver; may be changed while a test runs."""
    known: Names = {}
    ask = socket.getaddrinfo

    def answer(host: str, port: int, *args: Any, **options: Any) -> list[Any]:
        if host not in known:
            return ask(host, port, *args, **options)
        if not known[host]:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [entry for address in known[host] for entry in ask(address, port, *args, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    return known


async def _dial(dialler: Side, listener: Side, host: str, port: int) -> bytes:
    """A link whose two lanes are up."""
    link = os.urandom(16)
    listener.endpoint.allow(link, dialler.keys.public, 1)
    dialler.endpoint.dial(link, f"tcp://{host}:{port}", listener.keys.public)
    await dialler.until(lambda: dialler.kinds(link).count(LinkEventKind.CONNECTED) == len(Lane), "both lanes come up")
    return link


@pytest.mark.parametrize(
    ("listen", "hosts"),
    [
        ("127.0.0.1", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]"]),
        ("0.0.0.0", ["127.0.0.1", "localhost"]),
        ("localhost", ["127.0.0.1", "localhost"]),
        ("lo", ["127.0.0.1"]),
        pytest.param("[::1]", ["[::1]", "localhost"], marks=needs_ipv6),
        pytest.param("[::]", ["[::1]", "127.0.0.1", "localhost"], marks=needs_ipv6),
        pytest.param("*", ["[::1]", "127.0.0.1", "localhost"], marks=needs_ipv6),
    ],
)
def test_what_is_listened_on_can_be_dialled(listen: str, hosts: list[str], names: Names) -> None:
    names["localhost"] = ["::1", "127.0.0.1"]

    async def main() -> None:
        async with sides({}, {}) as (a, b):
            bound = read_listen(await a.endpoint.bind(f"tcp://{listen}:0"))
            for host in hosts:
                link = await _dial(b, a, host, bound.port)
                b.endpoint.send(link, Lane.BULK, Heartbeat(1))
                await a.until(lambda link=link: any(message[0] == link for message in a.messages), f"{host} is heard")

    asyncio.run(main())


def test_a_port_that_is_taken_is_told_apart_from_an_address_of_somebody_else() -> None:
    async def main() -> None:
        async with sides({"bind": True}, {}) as (a, b):
            for host in ("127.0.0.1", "*", "0.0.0.0"):
                with pytest.raises(AddressInUse):
                    await b.endpoint.bind(f"tcp://{host}:{read_dialled(a.address).port}")
            for host in ("192.0.2.77", "[2001:db8::77]", "no-such-interface"):
                with pytest.raises(ConfigError, match=r"tcp://\*:PORT"):
                    await b.endpoint.bind(f"tcp://{host}:0")

    asyncio.run(main())


def test_a_name_is_dialled_at_whichever_of_its_addresses_answers(names: Names) -> None:
    async def main() -> None:
        async with sides({"bind": True}, {}) as (a, b):
            names["head.example"] = ["127.0.0.3", "127.0.0.2", "127.0.0.1"]
            link = await _dial(b, a, "head.example", read_dialled(a.address).port)
            assert str(b.endpoint.address(link)) == a.address

    asyncio.run(main())


def test_a_name_that_is_not_known_is_told_and_asked_for_again(names: Names) -> None:
    async def main() -> None:
        async with sides({"bind": True}, {}) as (a, b):
            names["head.example"] = []
            link = os.urandom(16)
            a.endpoint.allow(link, b.keys.public, 1)
            b.endpoint.dial(link, f"tcp://head.example:{read_dialled(a.address).port}", a.keys.public)
            await b.until(lambda: b.event(LinkEventKind.UNREACHABLE), "it is told")
            told = b.event(LinkEventKind.UNREACHABLE)
            assert told is not None
            assert isinstance(told.error, LinkDown)
            assert "cannot be resolved here" in told.error.message
            names["head.example"] = ["127.0.0.1"]
            await b.until(lambda: b.event(LinkEventKind.CONNECTED), "it comes up once the name is known")

    asyncio.run(main())


def test_a_name_is_looked_up_again_when_its_machine_has_moved(names: Names) -> None:
    async def main() -> None:
        async with sides({}, {}) as (a, b):
            names["head.example"] = ["127.0.0.2"]
            port = read_listen(await a.endpoint.bind("tcp://127.0.0.2:0")).port
            link = await _dial(b, a, "head.example", port)
            await a.endpoint.close(0)
            moved = Side(keys=a.keys)
            try:
                names["head.example"] = ["127.0.0.3"]
                await moved.endpoint.bind(f"tcp://127.0.0.3:{port}")
                moved.endpoint.allow(link, b.keys.public, 1)
                await b.until(lambda: b.kinds(link).count(LinkEventKind.CONNECTED) == 2 * len(Lane), "it is found again")
            finally:
                await moved.endpoint.close(0)

    asyncio.run(main())


def test_what_can_be_dialled_by_nobody_is_refused_before_anything_is_opened() -> None:
    async def main() -> None:
        async with sides({}) as (a,):
            for endpoint in ("tcp://x", "tcp://a:99999", "inproc://x", "tcp://0.0.0.0:5", "tcp://a\0:5"):
                with pytest.raises(ConfigError, match="cannot dial"):
                    a.endpoint.dial(os.urandom(16), endpoint, bytes(32))

    asyncio.run(main())


# -- a worker that looks for its head ------------------------------------------------------------


class Worker(Side):
    """A side whose events go to a search."""

    search: HeadSearch | None = None

    def _on_event(self, event: Any) -> None:
        super()._on_event(event)
        if self.search is not None:
            self.search.event(event)

    async def find(self, head: Side, endpoints: list[str], deadline_s: float = 20.0) -> Found:
        self.search = HeadSearch(self.endpoint, JoinToken(head.keys.public, bytes(16), tuple(endpoints)))
        return await self.search.run(deadline_s)


def _with_head(use: Callable[[Side, Worker], Any]) -> None:
    async def main() -> None:
        async with sides({"bind": True, "head": True}) as (head,):
            worker = Worker()
            try:
                await use(head, worker)
            finally:
                await worker.endpoint.close(0)

    asyncio.run(main())


@pytest.fixture
def closed() -> Iterator[str]:
    """An endpoint at which nobody listens."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield f"tcp://127.0.0.1:{reserved.getsockname()[1]}"


def test_a_token_with_several_endpoints_finds_the_head_at_whichever_answers(closed: str, names: Names) -> None:
    names["gone.example"] = []

    async def use(head: Side, worker: Worker) -> None:
        async with sides({"bind": True, "head": True}) as (impostor,):
            tried = [closed, "tcp://gone.example:7700", impostor.address, head.address]
            found = await worker.find(head, tried)
            assert (found.endpoint, str(found.address)) == (head.address, head.address)
            worker.endpoint.send(found.link, Lane.CONTROL, Heartbeat(1))
            assert worker.endpoint.address(found.link) is not None

    _with_head(use)


def test_of_two_endpoints_that_answer_the_one_that_the_head_prefers_is_taken(names: Names) -> None:
    async def use(head: Side, worker: Worker) -> None:
        names["head.example"] = ["127.0.0.1"]  # a look-up takes longer than no look-up
        first = f"tcp://head.example:{read_dialled(head.address).port}"
        found = await worker.find(head, [first, head.address])
        assert found.endpoint == first

    _with_head(use)


def test_a_head_that_is_nowhere_is_named_with_all_that_was_tried(closed: str, names: Names) -> None:
    names["gone.example"] = []

    async def use(head: Side, worker: Worker) -> None:
        with pytest.raises(DeadlineExceeded) as caught:
            await worker.find(head, [closed, "tcp://gone.example:7700"], deadline_s=1.0)
        assert closed in caught.value.message
        assert "gone.example:7700 cannot be resolved here" in caught.value.message

    _with_head(use)


def test_an_impostor_alone_is_an_authentication_error_at_once() -> None:
    async def use(head: Side, worker: Worker) -> None:
        async with sides({"bind": True, "head": True}) as (impostor,):
            with pytest.raises(AuthenticationError):
                await worker.find(head, [impostor.address])

    _with_head(use)


def test_a_name_that_is_not_known_is_told_at_once(names: Names) -> None:
    names["gone.example"] = []

    async def use(head: Side, worker: Worker) -> None:
        with pytest.raises(LinkDown, match="cannot be resolved here"):
            await worker.find(head, ["tcp://gone.example:7700"])

    _with_head(use)


def test_own_addresses_are_no_loopback_and_can_be_listened_on() -> None:
    for host in own_addresses():
        address = read_listen("tcp://*:0").at(host)
        assert not address.is_loopback
        with socket.create_server((host, 0), family=socket.AF_INET6 if address.family == 6 else socket.AF_INET):
            pass
    assert own_address_towards(read_dialled("tcp://127.0.0.1:9")) == "127.0.0.1"

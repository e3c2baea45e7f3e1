from __future__ import annotations

import pytest

from bloombee.errors import BloomBeeError, LinkDown, LocalProtocolError
from bloombee.pipeline.commands import Deliver
from bloombee.roles.requests import Requests, typed
from bloombee.roles.text import TextCodec, TextStream
from bloombee.types import FinishReason, Token
from bloombee.wire.messages import Pick


class Panic(BaseException):
    """As a library in Rust raises it."""


class FailingText(TextStream):
    def __init__(self, error: BaseException) -> None:
        super().__init__(None, (), None)
        self._error = error

    def push(self, token_id: int) -> str:
        raise self._error


class Collected:
    """A sink. Args: raises: at each token and at the end."""

    def __init__(self, raises: Exception | None = None) -> None:
        self.tokens: list[int] = []
        self.ends: list[BloomBeeError | None] = []
        self._raises = raises

    def token(self, token: Token) -> None:
        self.tokens.append(token.token_id)
        if self._raises:
            raise self._raises

    def end(self, error: BloomBeeError | None) -> None:
        self.ends.append(error)
        if self._raises:
            raise self._raises


def _pick(token: int) -> Pick:
    return Pick(1, 0, 2, token, None, ())


@pytest.fixture
def freed() -> list[int]:
    return []


@pytest.fixture
def requests(freed: list[int]) -> Requests:
    return Requests(lambda number, is_finished: freed.append(number))


NO_TEXT = TextCodec(None)


@pytest.mark.parametrize("error", [ValueError("odd bytes"), Panic("odd bytes")])
def test_a_text_that_fails_ends_its_own_request_with_a_typed_error(
    requests: Requests, freed: list[int], error: BaseException
) -> None:
    odd, other = Collected(), Collected()
    requests.add(1, odd, FailingText(error))
    requests.add(2, other, NO_TEXT.stream())
    for number in (1, 2, 1):
        requests.deliver(Deliver(number, _pick(5), None))
    (end,) = odd.ends
    assert isinstance(end, LocalProtocolError)
    assert "odd bytes" in str(end)
    assert (odd.tokens, other.tokens, other.ends) == ([], [5], [])
    assert freed == [1]
    assert len(requests) == 1


def test_a_sink_that_raises_ends_its_own_request(requests: Requests, freed: list[int]) -> None:
    odd, other = Collected(RuntimeError("full")), Collected()
    requests.add(1, odd, NO_TEXT.stream())
    requests.add(2, other, NO_TEXT.stream())
    for number in (1, 2, 1, 2):
        requests.deliver(Deliver(number, _pick(5), None))
    assert (odd.tokens, len(odd.ends)) == ([5], 1)
    assert (other.tokens, other.ends) == ([5, 5], [])
    assert freed == [1]


def test_everybody_is_told_of_an_end_though_one_sink_raises_and_freeing_fails() -> None:
    def free(number: int, is_finished: bool) -> None:
        raise RuntimeError("the core is broken")

    requests = Requests(free)
    sinks = [Collected(), Collected(RuntimeError("full")), Collected()]
    for number, sink in enumerate(sinks):
        requests.add(number, sink, NO_TEXT.stream())
    lost = LinkDown("x")
    requests.end_all(lost)
    assert [sink.ends for sink in sinks] == [[lost]] * 3
    assert len(requests) == 0


def test_the_last_token_ends_a_request_once(requests: Requests, freed: list[int]) -> None:
    sink = Collected()
    requests.add(1, sink, NO_TEXT.stream())
    requests.deliver(Deliver(1, _pick(5), FinishReason.LENGTH))
    requests.deliver(Deliver(1, _pick(6), None))
    requests.end(1, LinkDown("x"))
    assert (sink.tokens, sink.ends, freed) == ([5], [None], [1])


def test_only_a_text_that_is_whole_is_freed_as_one() -> None:
    """Its length tells how long answers are, also where a stop string has ended it."""
    whole: dict[int, bool] = {}
    requests = Requests(whole.__setitem__)
    for number in range(5):
        requests.add(number, Collected(), NO_TEXT.stream())
    stopped = NO_TEXT.stream()
    stopped.stopped = True
    requests.add(5, Collected(), stopped)
    requests.deliver(Deliver(0, _pick(5), FinishReason.LENGTH))
    requests.deliver(Deliver(5, _pick(5), None))
    requests.cancel(1)
    requests.end(2, None)
    requests.end(3, LinkDown("x"))
    requests.end_all(LinkDown("x"))
    assert whole == {0: True, 1: False, 2: False, 3: False, 4: False, 5: True}


def test_nothing_goes_to_the_sink_of_a_cancelled_request(requests: Requests, freed: list[int]) -> None:
    sink = Collected()
    requests.add(1, sink, NO_TEXT.stream())
    requests.cancel(1)
    requests.cancel(1)
    requests.deliver(Deliver(1, _pick(5), None))
    assert (sink.tokens, sink.ends, freed) == ([], [], [1])


def test_typed_errors_stay_what_they_are() -> None:
    with pytest.raises(LinkDown), typed():
        raise LinkDown("x")
    with pytest.raises(KeyboardInterrupt), typed():
        raise KeyboardInterrupt
    with pytest.raises(LocalProtocolError, match="OverflowError"), typed():
        (1 << 40).to_bytes(4, "little")

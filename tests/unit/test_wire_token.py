import base64

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bloombee.errors import ConfigError
from bloombee.wire.token import JoinToken, decode_token, encode_token

TOKEN = JoinToken(bytes(range(32)), b"s" * 24, ("tcp://10.0.0.1:4100", "tcp://[::1]:4100"))


def test_round_trip_and_format() -> None:
    text = encode_token(TOKEN)
    assert text.startswith("bb1-")
    assert "=" not in text
    assert decode_token(f"  {text}\n") == TOKEN
    raw = msgpack.unpackb(base64.urlsafe_b64decode(text[4:] + "=="))
    assert raw == [TOKEN.key, TOKEN.secret, list(TOKEN.endpoints)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not a join token"),
        ("hello", "not a join token"),
        ("bb2-abcd", "version bb2"),
        ("bb1-", "damaged"),
        ("bb1-!!!!", "damaged"),
        ("bb1-" + "A" * 5000, "characters"),
        (encode_token(TOKEN)[:-3], "damaged"),
        (encode_token(TOKEN) + "AAAA", "damaged"),
    ],
)
def test_garbage_says_what_is_wrong(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        decode_token(text)


@pytest.mark.parametrize(
    "endpoint",
    [
        "ipc:///tmp/x",
        "tcp://h",
        "tcp://h:0",
        "tcp://h:99999",
        "tcp://:5",
        "tcp://h:٣",
        "tcp://0.0.0.0:7",
        "tcp://*:7",
        "tcp://::1:7",
    ],
)
def test_endpoints_are_checked_on_both_ways(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="tcp://host:port"):
        encode_token(JoinToken(TOKEN.key, TOKEN.secret, (endpoint,)))


def test_wrong_lengths_are_not_encoded() -> None:
    for token in (JoinToken(b"k", TOKEN.secret, TOKEN.endpoints), JoinToken(TOKEN.key, b"s", TOKEN.endpoints)):
        with pytest.raises(ConfigError):
            encode_token(token)


def test_repr_hides_the_secret() -> None:
    assert "ssss" not in repr(TOKEN)


@given(st.text(max_size=60))
def test_any_text_is_a_token_or_a_config_error(text: str) -> None:
    for candidate in (text, "bb1-" + text):
        with pytest.raises(ConfigError):
            decode_token(candidate)

from __future__ import annotations

import json
from pathlib import Path

import pytest
from engine_kit import make_checkpoint
from text_kit import KINDS, byte_fallback, word_pieces
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer

from bloombee.engine.describe import describe
from bloombee.errors import ConfigError
from bloombee.roles.detokenizer import UNDECODABLE, Decoder
from bloombee.roles.text import TextCodec

HALF = UNDECODABLE


def _ids(tokenizer: Tokenizer, *pieces: str | int) -> list[int]:
    """Of tokens by name; whole numbers are bytes of a tokenizer with a token for each."""
    names = [f"<0x{piece:02X}>" if isinstance(piece, int) else piece for piece in pieces]
    found = [tokenizer.token_to_id(name) for name in names]
    assert None not in found, names
    return found


def _pieces(codec: TextCodec, prompt: list[int], answer: list[int], *stop: str) -> list[str]:
    stream = codec.stream(stop, prompt)
    given = [stream.push(token) for token in answer]
    return [*given, stream.finish()]


FALLBACK = byte_fallback()
CODEC = TextCodec(FALLBACK.to_str())


@pytest.mark.parametrize(
    ("answer", "pieces"),
    [
        (("a", 0x0A, "b"), ["a", "", "\nb", ""]),
        (("a", 0x0A, 0xF0, "b"), ["a", "", "", HALF + HALF + "b", ""]),
        (("a", 0xE4, 0xBD, 0xA0, "b"), ["a", "", "", "", "你b", ""]),
        (("a", 0xE4, 0xBD, 0xA0), ["a", "", "", "", "你"]),
        (("a", 0xE4, 0xBD), ["a", "", "", HALF + HALF]),
        (("a", 0x41, 0xFF, 0x41, 0xFF, "b"), ["a", "", HALF + HALF, HALF, HALF, "b", ""]),
        (("a", 0xE4, "</s>", 0xBD, "</s>", 0xA0, "<s>"), ["a", "", "", "", "", "", "", "你"]),
        (("\ufffd", "a", "▁world"), [HALF, "a", " world", ""]),
        (("<added>", "▁Hello"), ["<added>", " Hello", ""]),
    ],
)
def test_bytes_that_are_no_text_end_nothing_and_text_is_given_once_it_is_certain(
    answer: tuple[str | int, ...], pieces: list[str]
) -> None:
    ids = _ids(FALLBACK, *answer)
    assert _pieces(CODEC, _ids(FALLBACK, "b"), ids) == pieces
    assert "".join(pieces) == CODEC.decode(ids)


def test_ids_that_the_tokenizer_does_not_have_show_nothing() -> None:
    assert _pieces(CODEC, [257], [100_000, 257, 99_999]) == ["", " Hello", "", ""]


def test_the_space_before_the_first_generated_word_is_kept() -> None:
    hello, world = _ids(FALLBACK, "▁Hello", "▁world")
    assert _pieces(CODEC, [hello], [world, world]) == [" world", " world", ""]
    for prompt in ([], _ids(FALLBACK, "<s>")):
        assert _pieces(CODEC, prompt, [hello, world]) == ["Hello", " world", ""], "the first word of all has none"
    words = word_pieces()
    assert _pieces(TextCodec(words.to_str()), _ids(words, "[CLS]", "hello"), _ids(words, "world", "##s")) == [" world", "s", ""]


@pytest.mark.parametrize(
    ("prompt", "answer", "text"),
    [
        ((0xE4, 0xBD), (0xA0, "a"), "你a"),
        ((0xE4,), (0xBD, 0xA0), "你"),
        ((0xE4,), ("a",), "a"),
        ((0xE4,), (), ""),
        ((0xE4,), (0xBD, "a"), HALF + "a"),
        ((0xE4, 0xBD, 0xA0), (0x41,), "A"),
        ((0xE4, 0xBD, 0xA0, 0xE4), ("a",), "a"),
        ((0x41, 0x42), (0x43, 0xFF, "a"), HALF + HALF + "a"),
        ((0xFF,), (0x41, "a"), HALF + "a"),
        ((0xFF, "a"), (0x41, "a"), "Aa"),
    ],
)
def test_of_a_character_that_the_prompt_begins_the_answer_has_what_it_completes(
    prompt: tuple[str | int, ...], answer: tuple[str | int, ...], text: str
) -> None:
    assert "".join(_pieces(CODEC, _ids(FALLBACK, "a", *prompt), _ids(FALLBACK, *answer))) == text


@pytest.mark.parametrize(
    ("prompt", "answer", "text"),
    [
        (b"a\xe4", b"\xbd\xa0b", "你b"),
        (b"a\xe4\xbd", b"\xa0", "你"),
        (b"a\xe4", b"b", "b"),
        (b"a\xe4", b"\xbdb", "b"),
        (b"a\xe4", b"", ""),
        (b"a\xff", b"\xff", HALF),
        (b"a\xed\xa0", b"b", "b"),
        (b"a\xe4", b"\xf0\x9f", HALF),
        (b"\xf0\x9f\x98", b"\x80!", "\N{GRINNING FACE}!"),
    ],
)
def test_also_byte_by_byte(prompt: bytes, answer: bytes, text: str) -> None:
    tokenizer = KINDS["byte level"]()
    codec = TextCodec(tokenizer.to_str())
    by_byte = {codec._decoder.bytes_of(token): token for token in range(256)}
    ids = [[by_byte[bytes((byte,))] for byte in part] for part in (prompt, answer)]
    assert "".join(_pieces(codec, *ids)) == text


@pytest.mark.parametrize("odd", [(0xFF,), (0x41,), (0xE4,), (0xE4, 0xBD, 0xA0), ("▁",), ("a",), ("</s>",)])
def test_a_token_costs_a_few_however_long_the_text_or_a_run_of_bytes_is(odd: tuple[str | int, ...]) -> None:
    class Counting(Decoder):
        num_decoded = 0

        def decode(self, token_ids: object) -> str:
            Counting.num_decoded += len(token_ids)  # type: ignore[arg-type]
            return super().decode(token_ids)  # type: ignore[arg-type]

    counting, ids = Counting(FALLBACK), _ids(FALLBACK, *odd) * (6000 // len(odd))
    text = counting.stream([257])
    given = "".join([text.push(token) for token in ids]) + text.finish()
    assert Counting.num_decoded < 15 * len(ids)
    assert CODEC.decode([257]) + given == CODEC.decode([257, *ids])


# -- stop strings --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "stop", "num_tokens", "text"),
    [
        (("a", 0x0A, "b"), "\n", 2, "a"),
        (("a", "▁Hello", "▁world", "b"), "lo w", 3, "a Hel"),
        (("a", "▁Hello", "▁world", "b"), "Hello", 2, "a "),
        (("▁Hello", "▁world"), "ab He", 1, ""),
        (("c", "</s>", "b"), "</s>", 2, "c"),
        (("c", "</s>", "b"), "cb", None, "cb"),
        (("c", 0xE4, 0xBD, 0xA0, "b"), "你", 4, "c"),
        (("c", 0xFF, "b"), HALF, None, "c" + HALF + "b"),
        (("c", "\ufffd", "b"), HALF, 2, "c"),
        (("a", "a", "a", "b"), "aab", 4, "a"),
        (("c", 0xE4, "b"), "b", 3, "c" + HALF),
        (("a", 0xFF, 0x0A), "\n", 3, "a" + HALF),
        (("c",) * 9, "c" * 10_000, None, "c" * 9),
    ],
)
def test_a_stop_string_ends_the_text_before_itself(
    answer: tuple[str | int, ...], stop: str, num_tokens: int | None, text: str
) -> None:
    stream = CODEC.stream((stop, "never met"), _ids(FALLBACK, "a", "b"))
    given, ended = [], None
    for at, token in enumerate(_ids(FALLBACK, *answer), 1):
        given.append(stream.push(token))
        if stream.stopped:
            ended = at
            break
    assert ended == num_tokens
    assert "".join([*given, stream.finish()]) == text
    assert not stream.stopped or stream.push(257) == ""


def test_what_may_begin_a_stop_string_is_held_back_until_it_is_known() -> None:
    assert _pieces(CODEC, [257], _ids(FALLBACK, "a", "b", "c", "a", "b"), "ab!") == ["", "", "abc", "", "", "ab"]


def test_stop_strings_that_can_never_be_met_are_refused() -> None:
    words = TextCodec(word_pieces().to_str())
    with pytest.raises(ConfigError, match="the end of none"):
        words.stream(("\n", "x"))
    words.stream(("\n", "hello"))
    mute = Tokenizer(models.WordLevel({"x": 0}, unk_token="x"))
    with pytest.raises(ConfigError, match="cannot write 'abcdef'"):
        TextCodec(mute.to_str()).stream(("x",))
    with pytest.raises(ConfigError, match="need a tokenizer"):
        TextCodec(None).stream(("x",))


# -- prompts -------------------------------------------------------------------------------


def _checkpoint(directory: Path, tokenizer: Tokenizer, **settings: object) -> str:
    make_checkpoint("llama", directory, sizes={"vocab_size": 1024})
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **settings}))
    return str(directory)


def _full() -> Tokenizer:
    """With a normaliser, a template, and added tokens that take their spaces with them."""
    tokenizer = word_pieces()
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    cls, sep = _ids(tokenizer, "[CLS]", "[SEP]")
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", cls), ("[SEP]", sep)])
    taking = [AddedToken("<left>", lstrip=True), AddedToken("<right>", rstrip=True), AddedToken("<one>", single_word=True)]
    tokenizer.add_tokens([*taking, AddedToken("<As Is>", normalized=False)])
    return tokenizer


def _truncating() -> Tokenizer:
    tokenizer = _full()
    tokenizer.enable_truncation(4)
    return tokenizer


def _padding() -> Tokenizer:
    tokenizer = _full()
    tokenizer.enable_padding(length=16, pad_id=0, pad_token="[UNK]")
    return tokenizer


@pytest.mark.parametrize(
    ("make", "settings"),
    [(_full, {}), (_truncating, {}), (_padding, {}), (_full, {"split_special_tokens": True}), (byte_fallback, {})],
)
def test_prompts_become_the_ids_that_transformers_gives(make: object, settings: dict[str, object], tmp_path: Path) -> None:
    name = _checkpoint(tmp_path, make(), **settings)  # type: ignore[operator]
    reference, card = AutoTokenizer.from_pretrained(name), describe(name)
    codec = TextCodec(card.tokenizer_json, cleans_up=card.cleans_up, splits_special=card.splits_special)
    for text in (
        "hello " * 30,
        "a",
        "Héllo [SEP] a  <left>  b <right>  c",
        "<one>a <one> <As Is> <as is>",
        "ab\n\tｈello é 你",
        " </s> a",
    ):
        for special in (True, False):
            assert codec.encode(text, add_special_tokens=special) == reference(text, add_special_tokens=special).input_ids, text


@pytest.mark.parametrize("cleans_up", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_text_is_cleaned_up_where_transformers_does(kind: str, cleans_up: bool, tmp_path: Path) -> None:
    tokenizer = KINDS[kind]()
    if kind == "word pieces":
        tokenizer.decoder = decoders.WordPiece("##", cleanup=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    name = _checkpoint(tmp_path, tokenizer, clean_up_tokenization_spaces=cleans_up)
    reference, card = AutoTokenizer.from_pretrained(name), describe(name)
    codec = TextCodec(card.tokenizer_json, cleans_up=card.cleans_up)
    ids = list(range(tokenizer.get_vocab_size())) * 2
    assert "".join(_pieces(codec, [], ids)) == reference.decode(ids, skip_special_tokens=True)
    assert card.cleans_up == (cleans_up and kind == "word pieces")

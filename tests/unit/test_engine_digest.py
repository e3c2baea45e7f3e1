"""A worker's copy that is another model under the same config is refused by name; the same model in other files is not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from engine_kit import LAYERS, make_checkpoint
from safetensors.torch import load_file, save_file

from bloombee.engine import digest
from bloombee.engine.checkpoint import SINGLE_FILE, Checkpoint, resolve
from bloombee.engine.describe import describe
from bloombee.engine.hub import Repo
from bloombee.engine.model import SpanModel
from bloombee.engine.reader import ShardReader
from bloombee.engine.skeleton import build
from bloombee.errors import ConfigError
from bloombee.types import PageGroup, Span

UP = "model.layers.2.mlp.up_proj.weight"


def digests(place: Path | Checkpoint) -> tuple[bytes, ...]:
    checkpoint = place if isinstance(place, Checkpoint) else resolve(str(place))
    return digest.weight_digests(checkpoint, build(checkpoint, checkpoint.dtype))


def load(place: Path, span: Span, known: Path) -> SpanModel:
    """The stage of ``span`` from ``place``, told what the head has in ``known``."""
    expected = describe(str(known)).span_digests(span)
    return SpanModel.load(resolve(str(place)), span, groups=[PageGroup(0, 1)], page_size=4, weight_digests=expected)


def changed(source: Path, target: Path, **tensors: torch.Tensor) -> Path:
    """A copy of a checkpoint in one file with other ``tensors``."""
    shutil.copytree(source, target)
    save_file({**load_file(source / SINGLE_FILE), **tensors}, target / SINGLE_FILE)
    return target


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("digest") / "model"
    make_checkpoint("llama", directory)
    return directory


def test_another_fine_tune_is_refused_by_tensor_and_directory(model: Path, tmp_path: Path) -> None:
    weights = load_file(model / SINGLE_FILE)
    other = changed(model, tmp_path / "other", **{UP: weights[UP] + 0.01})
    with pytest.raises(ConfigError, match=UP) as caught:
        load(other, Span(1, 3), known=model)
    assert str(other) in caught.value.message
    assert (caught.value.fields["path"], caught.value.fields["tensor"]) == (str(other), UP)
    assert "--model" in caught.value.message


def test_a_layer_that_is_the_same_is_served_whatever_the_others_are(model: Path, tmp_path: Path) -> None:
    weights = load_file(model / SINGLE_FILE)
    other = changed(model, tmp_path / "other", **{UP: weights[UP] + 0.01})
    assert load(other, Span(3, 4), known=model).is_last
    assert [home for home, (a, b) in enumerate(zip(digests(model), digests(other), strict=True)) if a != b] == [3]


def test_one_file_and_shards_of_any_size_are_the_same_model(model: Path, tmp_path: Path) -> None:
    for size in ("20KB", "60KB"):
        make_checkpoint("llama", tmp_path / size, max_shard_size=size)
        assert digests(tmp_path / size) == digests(model)
        assert resolve(str(tmp_path / size)).config_digest == resolve(str(model)).config_digest
        assert load(tmp_path / size, Span(0, LAYERS), known=model).weight_bytes


@pytest.mark.parametrize("family", ["mixtral", "gpt_neox", "sarvam_moe", "gpt_oss"])
def test_every_tensor_of_every_layer_counts(family: str, tmp_path: Path) -> None:
    """Also those that a conversion joins, and those of other names on disk than in the model."""
    make_checkpoint(family, tmp_path / "model")
    known = digests(tmp_path / "model")
    assert len(known) == LAYERS + 2
    for name, tensor in load_file(tmp_path / "model" / SINGLE_FILE).items():
        if not tensor.is_floating_point():
            continue
        other = changed(tmp_path / "model", tmp_path / "other", **{name: tensor + 1})
        assert digests(other) != known, name
        shutil.rmtree(other)


def test_layers_in_another_order_are_another_model(model: Path, tmp_path: Path) -> None:
    weights = load_file(model / SINGLE_FILE)
    first, second = "model.layers.1.mlp.up_proj.weight", UP
    other = changed(model, tmp_path / "other", **{first: weights[second], second: weights[first]})
    with pytest.raises(ConfigError, match=r"layers\.1\.mlp.* and 1 more"):
        load(other, Span(0, LAYERS), known=model)


def test_a_copy_in_another_element_type_is_another_model(model: Path, tmp_path: Path) -> None:
    weights = load_file(model / SINGLE_FILE)
    other = changed(model, tmp_path / "other", **{UP: weights[UP].half()})
    with pytest.raises(ConfigError, match=UP):
        load(other, Span(2, 3), known=model)


@pytest.mark.parametrize("known_has_both", [True, False])
def test_a_tied_head_may_be_stored_once_or_twice(tmp_path: Path, known_has_both: bool) -> None:
    make_checkpoint("llama", tmp_path / "once", sizes={"tie_word_embeddings": True})
    embedding = load_file(tmp_path / "once" / SINGLE_FILE)["model.embed_tokens.weight"]
    twice = changed(tmp_path / "once", tmp_path / "twice", **{"lm_head.weight": embedding.clone()})
    known, own = (twice, tmp_path / "once") if known_has_both else (tmp_path / "once", twice)
    for span in (Span(0, LAYERS), Span(3, 4)):
        assert load(own, span, known=known).is_last
    other = changed(tmp_path / "once", tmp_path / "other", **{"model.embed_tokens.weight": embedding + 1})
    with pytest.raises(ConfigError, match="embed_tokens"):
        load(other, Span(3, 4), known=known)


def test_a_head_without_the_shards_of_a_layer_says_nothing_of_it_and_fetches_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(_: Repo, name: str) -> Path:
        raise AssertionError(f"fetched {name}")

    monkeypatch.setattr(Repo, "fetch", fetch)
    make_checkpoint("llama", tmp_path, max_shard_size="20KB")
    checkpoint = resolve(str(tmp_path))
    whole = digests(checkpoint)
    (tmp_path / checkpoint.files[UP]).unlink()
    part = digests(
        Checkpoint("someone/model", checkpoint.config, checkpoint.raw_config, tmp_path, Repo("someone/model", tmp_path))
    )
    assert part[3] == b""
    assert set(part) <= {b"", *whole}
    assert part[0] == whole[0]


def test_a_head_with_a_config_and_no_weights_knows_nothing(model: Path, tmp_path: Path) -> None:
    shutil.copy(model / "config.json", tmp_path)
    read = resolve(str(model))
    assert digests(Checkpoint("someone/model", read.config, read.raw_config, tmp_path, Repo("someone/model", tmp_path))) == ()


def test_random_weights_have_nothing_to_compare() -> None:
    card = describe("llama:64x2")
    assert card.weight_digests == ()
    assert card.span_digests(Span(0, 2)) == ()


def test_few_bytes_are_read_whatever_the_size_of_a_tensor(tmp_path: Path) -> None:
    make_checkpoint("llama", tmp_path, sizes={"intermediate_size": 4096})
    checkpoint, read = resolve(str(tmp_path)), []
    close = ShardReader.close

    def note(reader: ShardReader) -> None:
        read.append(reader.requested_bytes)
        close(reader)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShardReader, "close", note)
        digests(checkpoint)
    header = 8 + int.from_bytes((tmp_path / SINGLE_FILE).read_bytes()[:8], "little")
    assert sum(read) <= 2 * header + len(checkpoint.files) * digest.BLOCKS * digest.BLOCK_BYTES


def test_blocks_lie_within_the_tensor_and_apart() -> None:
    for size in (0, 1, 255, 256, 767, 768, 769, 5000, 10**9):
        starts = list(digest._places(size, bytes(range(200, 232))))
        ends = [min(start + digest.BLOCK_BYTES, size) for start in starts]
        assert all(0 <= start < end for start, end in zip(starts, ends, strict=True))
        assert all(end <= start for end, start in zip(ends[:-1], starts[1:], strict=True))
        assert sum(end - start for start, end in zip(starts, ends, strict=True)) == min(size, 768)

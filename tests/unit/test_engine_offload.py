"""Layers that stream: the same bits as layers that stay, whatever comes and goes; and what happens when a disk fails."""

from __future__ import annotations

import errno
import json
import os
import random
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_kit import LAYERS, PAGE, VOCABULARY, generate, make_checkpoint, ragged_prompts
from msgspec.structs import replace
from test_engine_model import rows, work

from bloombee.cli import main
from bloombee.engine.checkpoint import resolve
from bloombee.engine.layer_files import SUFFIX, LayerFiles
from bloombee.engine.leaves import Area
from bloombee.engine.model import SpanModel
from bloombee.engine.offload import pack_layers
from bloombee.engine.spans import SpanStore
from bloombee.engine.waves import together
from bloombee.errors import ConfigError, DeviceError, Infeasible, RemoteProtocolError, WeightsUnavailable
from bloombee.kv.pool import PagePool, PageTable
from bloombee.pipeline.work import Pages, Work
from bloombee.plan.placement import spread
from bloombee.types import Dtype, PageGroup, Span

WHOLE = Span(0, LAYERS)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    make_checkpoint("llama", directory)
    return directory


def load(
    model: Path | str, disk: Path | None, streamed: Sequence[int], *, span: Span = WHOLE, dtype: Dtype = Dtype.FLOAT32,
    store: SpanStore | None = None,
) -> SpanModel:  # fmt: skip
    files = None if disk is None else LayerFiles(disk)
    groups = [PageGroup(0, 600)]
    return SpanModel.load(
        resolve(str(model)), span, dtype=dtype, groups=groups, page_size=PAGE, streamed=streamed, files=files, store=store
    )


def logits(model: SpanModel, asked: Work) -> torch.Tensor:
    """[rows, v] by the very forward that serves; what the rows store is stored."""
    with torch.inference_mode():
        steps = model.steps
        return steps.forward.logits(steps._inputs(asked.segments, None), torch.arange(asked.num_rows))


def prefill_and_decode(model: SpanModel, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of ``count`` prompts together, then of a token more for each, twice."""
    prompts = [ragged_prompts()[number % 8] for number in range(count)]
    first = logits(model, work(*(rows(prompt, sequence=number) for number, prompt in enumerate(prompts))))
    steps = []
    for step in range(2):
        segments = (rows([step + 1], len(prompt) + step, sequence=number) for number, prompt in enumerate(prompts))
        steps.append(logits(model, work(*segments)))
    return first, torch.stack(steps)


@pytest.mark.parametrize("dtype", [Dtype.FLOAT32, Dtype.BFLOAT16])
@pytest.mark.parametrize("count", [1, 8, 32])
def test_logits_are_the_same_bit_for_bit_however_many_layers_stream(count: int, dtype: Dtype, tmp_path: Path) -> None:
    model, span = "llama:256x4", Span(0, 4)
    resident = load(model, None, (), dtype=dtype)
    expected = prefill_and_decode(resident, count)
    for part in (1, 2, 4):
        streamed = load(model, tmp_path, spread(span, part), dtype=dtype)
        for found, wanted in zip(prefill_and_decode(streamed, count), expected, strict=True):
            assert torch.equal(found, wanted)
        assert streamed.stream is not None
        assert streamed.stream.traffic.read_bytes >= 3 * part * resident.layer_bytes
        streamed.close()


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt_neox", "mixtral", "gpt_oss", "starcoder2"])
def test_families_stream(family: str, tmp_path: Path) -> None:
    """Biases, experts side by side, norms and sinks come with their layers."""
    make_checkpoint(family, tmp_path)
    windows = {"gemma3_text": (0, 6), "gpt_oss": (0, 6), "starcoder2": (7,)}.get(family, (0,))

    def tokens(streamed: Sequence[int]) -> list[list[int]]:
        model = SpanModel.load(
            resolve(str(tmp_path)), Span(0, LAYERS), groups=[PageGroup(window, 200) for window in windows], page_size=PAGE,
            streamed=streamed, files=LayerFiles(tmp_path / "layers"),
        )  # fmt: skip
        return [feed(model, windows, prompt) for prompt in ragged_prompts(4)]

    assert tokens(range(LAYERS)) == tokens(())


def feed(model: SpanModel, windows: Sequence[int], prompt: list[int]) -> list[int]:
    """Four greedy tokens."""
    tables = [PageTable(PagePool(200, PAGE), window) for window in windows]
    tokens, at = list(prompt), 0
    while len(tokens) < len(prompt) + 4:
        sources = [table.place(at, len(tokens)) for table in tables]
        pages = tuple(Pages(table.pages, table.start, source) for table, source in zip(tables, sources, strict=True))
        (pick,) = model.run(work(replace(rows(tokens[at:], at), pages=pages)), None)
        at = len(tokens)
        tokens.append(pick.token)
    return tokens[len(prompt) :]


def test_stages_in_the_middle_stream_their_first_layer_too(tiny: Path, tmp_path: Path) -> None:
    prompts = ragged_prompts(4)
    stages = [load(tiny, tmp_path, range(a, b), span=Span(a, b)) for a, b in ((0, 2), (2, 4))]
    assert generate(stages, prompts, 5) == generate([load(tiny, None, ())], prompts, 5)


def test_what_was_written_is_read_by_the_next(tiny: Path, tmp_path: Path) -> None:
    first = load(tiny, tmp_path, (0, 1, 2, 3))
    expected = generate([first], ragged_prompts(4), 5)
    written = {path: path.stat().st_ino for path in tmp_path.glob(f"*{SUFFIX}")}
    again = load(tiny, tmp_path, (0, 1, 2, 3))
    assert again.disk_bytes < first.disk_bytes, "nothing of the layers is read from the checkpoint"
    assert {path: path.stat().st_ino for path in tmp_path.glob(f"*{SUFFIX}")} == written
    assert generate([again], ragged_prompts(4), 5) == expected


def test_what_one_span_wrote_any_other_reads(tiny: Path, tmp_path: Path) -> None:
    load(tiny, tmp_path, (0, 1, 2, 3))
    written = {path: path.stat().st_ino for path in tmp_path.glob(f"*{SUFFIX}")}
    prompts = ragged_prompts(4)
    stages = [load(tiny, tmp_path, range(a, b), span=Span(a, b)) for a, b in ((0, 1), (1, 4))]
    assert {path: path.stat().st_ino for path in tmp_path.glob(f"*{SUFFIX}")} == written
    assert generate(stages, prompts, 3) == generate([load(tiny, None, ())], prompts, 3)


def test_other_weights_of_the_same_name_are_other_files(tmp_path: Path) -> None:
    make_checkpoint("llama", tmp_path / "model")
    before = generate([load(tmp_path / "model", tmp_path, range(4))], ragged_prompts(2), 5)
    make_checkpoint("llama", tmp_path / "model", sizes={"initializer_range": 0.4})
    after = generate([load(tmp_path / "model", tmp_path, range(4))], ragged_prompts(2), 5)
    assert after != before
    assert after == generate([load(tmp_path / "model", None, ())], ragged_prompts(2), 5)


def test_a_budget_below_the_slots_is_refused_with_what_is_missing(tmp_path: Path) -> None:
    whole = load("llama:256x4", None, ())
    with pytest.raises(Infeasible) as caught:
        load("llama:256x4", tmp_path, range(4), store=SpanStore(whole.kv_bytes + whole.layer_bytes))
    assert caught.value.fields["constraint"] == "memory"
    short = int(caught.value.fields["short_bytes"])
    enough = whole.kv_bytes + whole.layer_bytes + short
    assert load("llama:256x4", tmp_path, range(4), store=SpanStore(enough)).weight_bytes <= enough


def test_files_that_are_not_used_make_room_and_those_that_are_stay(tiny: Path, tmp_path: Path) -> None:
    def load_with(budget: int, streamed: Sequence[int], files: LayerFiles | None = None) -> None:
        SpanModel.load(
            resolve(str(tiny)), Span(0, LAYERS), groups=[PageGroup(0, 60)], page_size=PAGE, streamed=streamed,
            files=files or LayerFiles(tmp_path, budget),
        )  # fmt: skip

    load_with(1 << 30, (0, 1))
    old = set(tmp_path.glob(f"*{SUFFIX}"))
    budget = sum(path.stat().st_size for path in old) + (64 << 10)
    load_with(budget, (2,))
    assert len(old & set(tmp_path.glob(f"*{SUFFIX}"))) == 1
    with pytest.raises(Infeasible, match="--disk") as caught:
        load_with(budget, (0, 1, 2, 3))
    assert caught.value.fields["constraint"] == "disk"


def damaged(disk: Path) -> list[Path]:
    """Every layer's file with a byte of its weights changed, in place."""
    paths = list(disk.glob(f"*{SUFFIX}"))
    for path in paths:
        with path.open("r+b") as file:
            file.seek(-4000, os.SEEK_END)
            byte = file.read(1)
            file.seek(-4000, os.SEEK_END)
            file.write(bytes([byte[0] ^ 1]))
    return paths


def test_a_file_that_changes_under_way_ends_what_needs_it_and_nothing_else(tmp_path: Path) -> None:
    """Of four layers, two slots hold two: a pass needs all from disk."""
    model = load("llama:256x4", tmp_path, range(4))
    expected = generate([model], ragged_prompts(4), 5)
    contents = {path: path.read_bytes() for path in damaged(tmp_path)}
    with pytest.raises(DeviceError, match="checksum"):
        generate([model], ragged_prompts(4), 5)
    for path in contents:
        os.truncate(path, 8192)
    with pytest.raises(DeviceError, match="ends at byte"):
        generate([model], ragged_prompts(4), 5)
    for path, data in contents.items():
        with path.open("r+b") as file:
            file.write(data)
    damaged(tmp_path)  # back as it was
    assert generate([model], ragged_prompts(4), 5) == expected


def test_layers_may_run_in_any_order_and_again(tmp_path: Path) -> None:
    """As they do where passes are measured: what was read ahead is given up, and the right layer is read."""
    rng = random.Random(4)
    resident, model = load("llama:256x4", None, ()), load("llama:256x4", tmp_path, (0, 1, 3))
    asked = work(rows(ragged_prompts()[3]))
    for _ in range(12):
        places = [rng.randrange(4) for _ in range(rng.randint(1, 6))]
        with resident.of_layers(places), model.of_layers(places):
            assert torch.equal(logits(model, asked), logits(resident, asked)), places


def test_a_forward_waits_for_a_slow_disk_and_computes_the_same(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(tiny, tmp_path, range(4))
    expected = generate([model], ragged_prompts(2), 3)
    goes_on, is_asked, read = threading.Event(), threading.Event(), os.preadv

    def slow(*arguments: Any) -> int:
        is_asked.set()
        goes_on.wait()
        return read(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr("bloombee.engine.layer_file.os.preadv", slow)
        found: list[list[list[int]]] = []
        thread = threading.Thread(target=lambda: found.append(generate([model], ragged_prompts(2), 3)))
        thread.start()
        assert is_asked.wait(60)
        assert not found
        goes_on.set()
        thread.join()
    assert found == [expected]


def test_a_disk_that_fails_is_a_device_error_and_the_next_pass_reads_again(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(tiny, tmp_path, range(4))
    expected = generate([model], ragged_prompts(2), 3)

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr("bloombee.engine.layer_file.os.preadv", fail)
        for _ in range(2):
            with pytest.raises(DeviceError, match="Input/output error"):
                generate([model], ragged_prompts(2), 3)
    assert generate([model], ragged_prompts(2), 3) == expected


def test_a_full_disk_is_told_and_leaves_nothing(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("bloombee.engine.layer_file.os.pwrite", full)
    with pytest.raises(DeviceError, match="no room is left"):
        load(tiny, tmp_path, range(4))
    assert not list(tmp_path.iterdir())


def test_what_a_process_that_was_ended_had_begun_to_write_is_removed(tmp_path: Path) -> None:
    left, under_way, other = (tmp_path / name for name in (f"{'a' * 32}.7", f"{'b' * 32}.7", "notes.1"))
    for path in (left, under_way, other):
        path.write_bytes(bytes(1000))
    for path in (left, other):
        os.utime(path, (1e9, 1e9))
    weights = torch.zeros(1000)
    LayerFiles(tmp_path).write("a layer", [Area(weights.data_ptr(), weights.nbytes, weights)]).close()
    assert not left.exists()
    assert under_way.exists()
    assert other.exists()


def test_whatever_ends_the_writing_of_a_file_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("bloombee.engine.layer_file.os.pwrite", stopped)
    weights = torch.zeros(1000)
    with pytest.raises(KeyboardInterrupt):
        LayerFiles(tmp_path).write("a layer", [Area(weights.data_ptr(), weights.nbytes, weights)])
    assert not list(tmp_path.iterdir())


def test_layers_that_differ_cannot_share_slots(tmp_path: Path) -> None:
    make_checkpoint("qwen3_moe", tmp_path)  # its second layer has no experts
    with pytest.raises(ConfigError, match="layers 0 and 1 differ"):
        load(tmp_path, tmp_path, (0, 1, 2))
    assert generate([load(tmp_path, tmp_path, (0, 2, 3))], ragged_prompts(2), 3) == generate(
        [load(tmp_path, None, ())], ragged_prompts(2), 3
    )


@pytest.mark.parametrize("dtype", [Dtype.FLOAT32, Dtype.BFLOAT16])
def test_microbatches_side_by_side_read_each_layer_once_and_give_the_same(dtype: Dtype, tmp_path: Path) -> None:
    """A prompt in two chunks is among them: the second sees at each layer what the first one wrote there."""
    long = list(range(1, 30))
    works = [work(rows(prompt, sequence=number)) for number, prompt in enumerate(ragged_prompts(6))]
    works += [work(rows(long[:20], picks=0, sequence=6)), work(rows(long[20:], 20, sequence=6))]
    resident = load("llama:256x4", None, (), dtype=dtype)
    expected = [resident.run(one, None) for one in works]
    model = load("llama:256x4", tmp_path, (0, 1, 3), dtype=dtype)
    assert model.stream is not None
    for _ in range(2):
        before = model.stream.traffic.layers
        assert model.run_together([(one, None) for one in works]) == expected
        assert model.stream.traffic.layers - before <= 3 + 2, "no more than one pass, and what comes ahead"


def test_a_microbatch_that_fails_costs_the_others_nothing(tiny: Path, tmp_path: Path) -> None:
    works = [work(rows(prompt, sequence=number)) for number, prompt in enumerate(ragged_prompts(4))]
    resident = load(tiny, None, ())
    expected = [resident.run(one, None) for one in works]
    model = load(tiny, tmp_path, range(4))
    for place in range(4):
        asked = [*works[:place], work(rows([VOCABULARY], sequence=5)), *works[place:]]
        found = model.run_together([(one, None) for one in asked])
        failed = found.pop(place)
        assert isinstance(failed, RemoteProtocolError)
        assert found == expected
    assert not torch.is_inference_mode_enabled()


def test_pages_are_copied_and_rows_moved_once_those_before_are_through() -> None:
    plain = work(rows([1]))
    copies = work(replace(rows([1]), pages=(Pages((1, 2), 0, 3),)))
    moves = work(replace(rows([1]), pages=(Pages((1, 2), 0, None, ((5, 4),)),)))
    assert [together([plain] * count) for count in (1, 3, 40)] == [1, 3, 16]
    for other in (copies, moves):
        assert [together(works) for works in ([plain, other, plain], [other, plain])] == [1, 2]


@pytest.mark.parametrize("dtype", [Dtype.FLOAT32, Dtype.BFLOAT16])
def test_compressed_layers_are_fewer_bytes_and_the_same_bits(
    dtype: Dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether they come quicker depends on the disk; here they are taken to."""
    checkpoint = resolve("llama:256x4")
    num_bytes, stored_bytes = pack_layers(checkpoint, dtype, LayerFiles(tmp_path))
    resident = load("llama:256x4", None, (), dtype=dtype)
    assert num_bytes == 4 * resident.layer_bytes
    assert num_bytes > {Dtype.FLOAT32: 1.15, Dtype.BFLOAT16: 1.4}[dtype] * stored_bytes
    expected = prefill_and_decode(resident, 8)
    monkeypatch.setattr("bloombee.engine.layer_files.is_quicker", lambda _: True)
    streamed = load("llama:256x4", tmp_path, (0, 1, 3), dtype=dtype)
    assert streamed.disk_bytes == load("llama:256x4", tmp_path, range(4), dtype=dtype).disk_bytes + resident.layer_bytes
    for found, wanted in zip(prefill_and_decode(streamed, 8), expected, strict=True):
        assert torch.equal(found, wanted)
    assert streamed.stream is not None
    assert 3 * stored_bytes == 4 * streamed.stream.pass_bytes
    damaged(tmp_path)
    with pytest.raises(WeightsUnavailable, match="checksum"):
        prefill_and_decode(streamed, 8)


def test_pack_says_what_it_saves_and_where(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pack", "--model", str(tiny), "--disk", f"{tmp_path}:1GiB", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["directory"] == str(tmp_path / "layers")
    assert said["dtype"] == "float32"
    files = list((tmp_path / "layers").glob(f"*{SUFFIX}"))
    assert len(files) == LAYERS
    assert said["stored_bytes"] < sum(path.stat().st_size for path in files)
    assert main(["pack", "--model", str(tiny), "--disk", f"{tmp_path}:1KiB"]) == 1
    assert "--disk" in capsys.readouterr().err


def test_compressed_layers_are_left_alone_where_decoding_is_slower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack_layers(resolve("llama:256x4"), Dtype.BFLOAT16, LayerFiles(tmp_path))
    monkeypatch.setattr("bloombee.engine.layer_files.is_quicker", lambda _: False)
    streamed = load("llama:256x4", tmp_path, (0, 1, 3), dtype=Dtype.BFLOAT16)
    assert streamed.stream is not None
    assert streamed.stream.pass_bytes > 3 * load("llama:256x4", None, (), dtype=Dtype.BFLOAT16).layer_bytes


def test_a_span_that_is_let_go_reads_no_more(tiny: Path, tmp_path: Path) -> None:
    model = load(tiny, tmp_path, range(4))
    generate([model], ragged_prompts(2), 2)
    model.close()
    assert model.stream is not None
    assert not any(reader.is_alive() for reader in model.stream._readers)

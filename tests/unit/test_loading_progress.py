"""What counts as progress while a span is loaded: bytes fetched, bytes read, layers packed."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from torch import nn

from bloombee.engine.hub import Repo
from bloombee.engine.packed import can_pack, pack_linears
from bloombee.engine.synthetic import STD, TILE, fill_random
from bloombee.roles import loading
from bloombee.roles.loading import LoadedSpan, Loader
from bloombee.types import Dtype, Span
from bloombee.wire.messages import Group, Load


def test_a_shard_that_comes_from_the_hub_is_progress_while_it_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "tqdm_class" in inspect.signature(huggingface_hub.hf_hub_download).parameters
    told: list[int] = []

    def download(repo: str, name: str, *, revision: str, tqdm_class: Any) -> str:
        with tqdm_class(total=300, disable=True) as bar:
            for _ in range(3):
                bar.update(100)
        assert len(told) == 3
        return str(tmp_path / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert Repo("owner/name", tmp_path, lambda: told.append(1)).fetch("model.safetensors") == tmp_path / "model.safetensors"


@pytest.mark.skipif(not can_pack(torch.float32), reason="this torch packs no float32 weights on this CPU")
def test_every_layer_that_is_packed_is_progress() -> None:
    told: list[int] = []
    pack_linears(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)), on_packed=lambda: told.append(1))
    assert len(told) == 2


def test_a_large_tensor_of_random_weights_is_progress_while_it_is_made() -> None:
    told: list[tuple[int, int]] = []
    fill_random({"embedding": torch.empty(3 << 10, 1 << 10), "norm": torch.empty(8)}, lambda *parts: told.append(parts))
    tile, whole = 4 * TILE, 12 << 20
    assert told == [(done, whole + 32) for done in (tile, 2 * tile, 3 * tile, whole, whole + 32)]


def test_random_weights_are_ones_or_normal_and_no_two_rows_are_alike() -> None:
    memory = {"norm": torch.empty(8), "a": torch.empty(2048, 1024), "b": torch.empty(3, 7, dtype=torch.bfloat16)}
    assert fill_random(memory) == 4 * 8 + 4 * 2048 * 1024 + 2 * 21
    assert torch.equal(memory["norm"], torch.ones(8))
    assert memory["a"].std().item() == pytest.approx(STD, rel=0.01)
    assert len(torch.unique(memory["a"], dim=0)) == 2048
    again = {"a": torch.empty(2048, 1024)}
    fill_random(again)
    assert torch.equal(again["a"], memory["a"])


def test_progress_is_told_now_and_then_and_when_all_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(loading, "time", SimpleNamespace(monotonic=lambda: now[0]))
    told: list[tuple[int, int]] = []
    progress = Loader()._paced(lambda loaded, total: told.append((loaded, total)), threading.Event())
    for loaded in (1, 2, 3, 4, 4, 4):
        progress(loaded, 4)
    now[0] += 1
    progress(4, 4)
    assert told == [(1, 4), (4, 4), (4, 4)]


def test_a_span_is_told_as_loaded_before_its_memory_is_made_faster_and_a_stop_ends_that() -> None:
    happened: list[str] = []
    stopped, over = threading.Event(), threading.Event()

    class Model:
        span = Span(0, 1)

        def settle(self, on_part: Callable[[], None]) -> None:
            on_part()
            happened.append("a part")
            stopped.set()
            try:
                on_part()
            finally:
                over.set()

    class Ready(Loader):
        def _build(self, *_: object) -> LoadedSpan:
            return LoadedSpan(Model(), Dtype.FLOAT32, None)

    load = Load(
        number=1, pipeline=1, start=0, stop=1, num_layers=1, model="any", config_digest=bytes(16), weight_digests=(),
        dtype="float32", groups=(Group(0, 1),), page_size=16, codec=0, rules=None, placement=(), budgets=(),
    )  # fmt: skip
    Ready().load(
        load,
        stopped=stopped,
        on_progress=lambda *_: None,
        on_done=lambda _: happened.append("loaded"),
        on_error=lambda error: happened.append(str(error)),
    )
    assert over.wait(10)
    assert happened == ["loaded", "a part"]

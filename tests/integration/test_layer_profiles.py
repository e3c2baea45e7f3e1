"""Layers of a model's shape are measured without its weights, kind by kind, and the head and its workers mean the same kinds."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from engine_kit import FAMILIES, make_checkpoint
from host_kit import ring
from msgspec.structs import replace

from bloombee.engine.checkpoint import resolve
from bloombee.engine.describe import describe
from bloombee.engine.profiling import full, hardware, layers
from bloombee.engine.reader import ShardReader
from bloombee.models.shape import LayerKind
from bloombee.models.standin import default_pace, standin_card
from bloombee.pipeline.profiles import from_message
from bloombee.plan.profile import Hardware
from bloombee.types import Dtype, Phase, Span
from bloombee.wire.messages import Profile, Profiled, Refused


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each point is measured once; nothing here is about how long it took."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(layers, "LAYERS_S", 0.0)
    monkeypatch.setattr(layers, "OUTPUT_S", 0.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_kind_of_layer_of_a_family_is_measured_and_no_weight_is_read(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_checkpoint(family, tmp_path / "model")
    shape = describe(str(tmp_path / "model")).shape(Dtype.FLOAT32)
    checkpoint = resolve(str(tmp_path / "model"))
    monkeypatch.setattr(ShardReader, "__init__", lambda *_: pytest.fail("weights are read"))
    found = layers.measure(checkpoint, device="cpu", dtype=Dtype.FLOAT32)
    sizes = [(kind.layer_bytes, kind.kv_token_bytes) for kind in shape.kinds]
    assert [(kind.layer_bytes, kind.kv_token_bytes) for kind in found.kinds or (found,)] == sizes
    assert [shape.kind_of[kind.layer] for kind in found.kinds] == (list(range(len(sizes))) if len(sizes) > 1 else [])
    measured = {(point.kind, point.phase, point.layers > 1) for point in found.points if not point.picks}
    assert measured == {(kind, phase, many) for kind in range(len(shape.kinds)) for phase in Phase for many in (False, True)}
    assert [point.picks for point in found.points if point.picks] == list(layers.PICKS)
    assert len(found.as_device("box", shape=shape).kinds) == (len(sizes) if len(sizes) > 1 else 0)


def test_windows_cost_no_more_than_they_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "LAYERS_S", float("inf"))
    monkeypatch.setattr(layers, "REPEATS", 1)
    make_checkpoint("gemma2", tmp_path / "model")
    found = layers.measure(resolve(str(tmp_path / "model")), device="cpu", dtype=Dtype.FLOAT32)
    most = [max(point.context for point in found.points if point.kind == kind and not point.picks) for kind in (0, 1)]
    assert most == [6, 512]


def test_of_layers_too_large_to_be_held_together_each_kind_is_measured_by_itself() -> None:
    small, other, large = LayerKind(100), LayerKind(300), LayerKind(layers.SMALL_BYTES)
    kinds = layers.Kinds((0, 0, 1, 0, 1, 0), (small, other))  # of small ones three, as far as there are so many
    assert kinds.spans(900) == [Span(0, 5)]
    assert kinds.spans(899) == [Span(0, 1), Span(2, 3)]
    assert layers.Kinds((0, 0, 1, 0, 1), (small, large)).spans(1 << 40) == [Span(1, 3)]
    assert layers.Kinds((0,), (small,)).spans(400) == [Span(0, 1)]


def test_a_large_vocabulary_is_measured_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = resolve("llama:64x2")
    cut: list[int] = []
    plain = layers._cut
    monkeypatch.setattr(layers, "_cut", lambda found, count: cut.append(count) or plain(found, count))
    monkeypatch.setattr(layers, "free_bytes", lambda _: int(2 * 32000 * 64 * 4 / layers.SHARE) - 1)
    layers.measure(checkpoint, device="cpu", dtype=Dtype.FLOAT32)
    assert cut == [layers.SHORT_VOCABULARY, 16000]


def test_a_file_is_read_past_the_cache_or_nothing_is_said_of_its_disk(tmp_path: Path) -> None:
    small, large = tmp_path / "small.safetensors", tmp_path / "model.safetensors"
    small.write_bytes(bytes(hardware.LEAST_READ_BYTES - 1))
    large.write_bytes(bytes(hardware.CHUNK_BYTES + 5))
    assert hardware.read_speed(small) is None
    assert hardware.read_speed(tmp_path / "missing") is None
    speed = hardware.read_speed(large)
    assert speed is None or speed > 0
    assert hardware.disk_speed(resolve("llama:64x2")) is None


def test_what_the_machine_offers_is_less_what_the_log_takes(tmp_path: Path) -> None:
    plain = hardware.hardware("cpu", memory_bytes=5, log_dir=str(tmp_path))
    assert (plain.memory_bytes, plain.host_bytes) == (5, 0)
    assert plain.cores >= 1
    assert hardware.hardware("cpu", memory_bytes=5, log_disk_bytes=1 << 60, log_dir=str(tmp_path)).disk_bytes == 0
    assert hardware.hardware("cpu", memory_bytes=5, log_dir=str(tmp_path / "missing")).disk_bytes == 0
    assert hardware.frames_per_s() > 0


# -- a worker that is asked ----------------------------------------------------------------------


def a_question(model: str = "demo", digest: str | None = None) -> Profile:
    return Profile(model, bytes.fromhex(digest or resolve(model).config_digest.hex()), "float32")


def answers(workers: Any) -> list[Any]:
    return [said for _, said in workers.said if isinstance(said, Profiled | Refused)]


def test_a_worker_answers_before_it_loads_anything_and_measures_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def use() -> None:
        async with ring(2) as workers:
            for _ in range(3):
                workers.stages[1].profile(a_question())
            await workers.until(lambda: answers(workers))
            workers.stages[1].profile(a_question())
            await workers.until(lambda: len(answers(workers)) > 1)
            first, again = answers(workers)
            assert first == again
            assert first.hardware.memory_bytes[0] == 1 << 30
            assert from_message(first).fit.layer.prefill_s(32) > 0
            monkeypatch.setattr(full, "measure", lambda *_, **__: pytest.fail("measured again"))
            workers.stages[2].profile(a_question())
            await workers.until(lambda: len(answers(workers)) > 2)
            assert answers(workers)[2] == replace(first, hardware=answers(workers)[2].hardware)
            # The disk that layers stream from is each worker's own, and told as it is then; the rest is one machine's.
            assert answers(workers)[2].hardware.frames_per_s == first.hardware.frames_per_s

    asyncio.run(use())


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        (a_question(digest="00" * 16), "ConfigError"),
        (Profile("/nowhere", bytes(16), "float32"), "ConfigError"),
        (Profile("standin:64x4", bytes(16), "float32"), "ConfigError"),
    ],
    ids=["another model", "no model", "another stand-in"],
)
def test_what_cannot_be_measured_is_refused_with_its_reason(asked: Profile, code: str) -> None:
    async def use() -> None:
        async with ring(1) as workers:
            for count in (1, 2):
                workers.stages[1].profile(asked)
                await workers.until(lambda count=count: len(answers(workers)) == count)  # type: ignore[misc]
            assert {(said.code, said.fields["refused"]) for said in answers(workers)} == {(code, "Profile")}

    asyncio.run(use())


def test_a_bug_while_measuring_is_told_and_the_worker_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = full.measure

    def broken(*_: Any, **__: Any) -> None:
        monkeypatch.setattr(full, "measure", plain)
        raise ZeroDivisionError("once")

    monkeypatch.setattr(full, "measure", broken)

    async def use() -> None:
        async with ring(1) as workers:
            for kind in (Refused, Profiled):
                workers.stages[1].profile(a_question())
                await workers.until(lambda kind=kind: isinstance((answers(workers) or [None])[-1], kind))  # type: ignore[misc]
            assert "ZeroDivisionError: once" in answers(workers)[0].fields["message"]

    asyncio.run(use())


def test_an_emulated_device_is_known_exactly_and_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(full, "find", lambda *_, **__: pytest.fail("measured"))

    async def ask(asked: Profile, **config: Any) -> Any:
        async with ring(1, **config) as workers:
            workers.stages[1].profile(asked)
            await workers.until(lambda: answers(workers))
            return answers(workers)[0]

    card = standin_card("standin:64x4")
    stand_in = a_question("standin:64x4", card.config_digest)
    found = from_message(asyncio.run(ask(a_question(), pace="4,1,0.5/2", load_bytes_per_s=1e8)))
    assert (found.fit.layer.fixed_s, found.fit.layer.decode_row_s, found.fit.layer.prefill_row_s) == (0.002, 0.0005, 0.00025)
    assert found.hardware == Hardware(1 << 30, disk_bytes_per_s=1e8)
    found = from_message(asyncio.run(ask(stand_in, pace="4,1,0.5")))
    assert (found.fit.stage.fixed_s, found.fit.layer.fixed_s) == (0.004, 0.0)
    found = from_message(asyncio.run(ask(stand_in)))
    for rows in (1, 9):
        inner, last = default_pace(card, Span(1, 3)), default_pace(card, Span(2, 4))
        layers_s = 2 * found.fit.layer.decode_s(rows)
        assert layers_s == pytest.approx(inner.seconds(Phase.DECODE, rows, 2))
        assert layers_s + found.output.decode_s(rows) == pytest.approx(last.seconds(Phase.DECODE, rows, 2))


def test_an_order_to_load_ends_measuring_and_what_serves_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, plain = threading.Semaphore(0), full.measure

    def endless(*_: Any, alive: Any, **__: Any) -> None:
        begun.release()
        while True:
            alive()

    async def use() -> None:
        async with ring(1) as workers:
            worker = workers.stages[1]
            monkeypatch.setattr(full, "measure", endless)
            worker.profile(a_question())
            await asyncio.to_thread(begun.acquire)
            worker.profile(a_question("demo:draft"))  # what is asked last counts
            await asyncio.to_thread(begun.acquire)
            await workers.load(1, 0, 2)
            worker.profile(a_question())
            worker.profile(a_question("standin:64x4", standin_card("standin:64x4").config_digest))  # this needs no measuring
            await workers.until(lambda: answers(workers))
            assert [said.device.partition(" ")[0] for said in answers(workers)] == ["paced"]
            assert not begun.acquire(blocking=False)
            worker.unload(1)
            monkeypatch.setattr(full, "measure", plain)
            worker.profile(a_question())
            await workers.until(lambda: len(answers(workers)) > 1)

    asyncio.run(use())

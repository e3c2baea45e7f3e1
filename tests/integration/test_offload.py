"""A model larger than a worker's memory: the same tokens, within that memory."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from engine_kit import make_checkpoint
from swarm_kit import Swarm

import bloombee
from bloombee.errors import Infeasible, SequenceLost

SIZES = {"hidden_size": 256, "intermediate_size": 704, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 64}
LAYERS, BUDGET = 45, 36 << 20
PROMPTS = [[1, 2, 3], [9, 8, 7, 6, 5, 4, 3, 2], [100]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Of 121 MB in layers, and of a single one."""
    whole, single = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("single")
    make_checkpoint("llama", whole, sizes={**SIZES, "num_hidden_layers": LAYERS})
    make_checkpoint("llama", single, sizes={**SIZES, "num_hidden_layers": 1})
    return whole, single


def run(model: Path, num_tokens: int, **fields: object) -> tuple[list[tuple[int, ...]], int, tuple[int, ...]]:
    """Tokens of all prompts; the most memory that the worker ever had; its layers that stream."""
    swarm = Swarm(model=str(model), workers=1, dtype="float32", kv_tokens=256, max_microbatch_rows=32, threads=1, **fields)
    try:
        told = [swarm.generate(prompt, max_new_tokens=num_tokens).token_ids for prompt in PROMPTS]
        (stage,) = swarm.runtime.plan.stages
        return told, most_memory(swarm.runtime.worker_pids[stage.worker]), stage.streamed
    finally:
        swarm.close()


def most_memory(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc here")
def test_a_model_of_three_times_the_memory_serves_within_it(models: tuple[Path, Path], tmp_path: Path) -> None:
    whole, single = models
    expected, _, streamed = run(whole, 30)
    assert streamed == ()
    _, base, _ = run(single, 30)
    found, peak, streamed = run(whole, 30, device_memory=BUDGET, disk=f"{tmp_path}:1GiB")
    assert found == expected
    assert len(streamed) > LAYERS // 2
    weights = sum(path.stat().st_size for path in tmp_path.rglob("*.layer")) * LAYERS // len(streamed)
    assert weights > 2.8 * BUDGET
    assert peak <= base + 1.05 * BUDGET


def test_two_stages_stream_and_what_is_below_one_layer_and_its_staging_is_refused(
    models: tuple[Path, Path], tmp_path: Path
) -> None:
    whole, _ = models
    fields = {"dtype": "float32", "kv_tokens": 256, "max_microbatch_rows": 32, "disk": str(tmp_path)}
    with bloombee.Runtime.sync(str(whole), workers=2, device_memory="36MiB", **fields) as runtime:
        assert all(stage.streamed for stage in runtime.plan.stages)
        found = [runtime.generate(prompt, max_new_tokens=20).token_ids for prompt in PROMPTS]
    assert [tokens[:20] for tokens in run(whole, 20)[0]] == found
    with pytest.raises(Infeasible) as caught, bloombee.Runtime.sync(str(whole), workers=2, device_memory="8MiB", **fields):
        pass
    assert int(str(caught.value.fields["short_bytes"])) > 0


def test_requests_that_need_what_the_disk_lost_end_and_later_ones_go_on(models: tuple[Path, Path], tmp_path: Path) -> None:
    whole, _ = models
    with bloombee.Runtime.sync(
        str(whole), workers=1, dtype="float32", kv_tokens=256, max_microbatch_rows=32, device_memory=BUDGET, disk=str(tmp_path)
    ) as runtime:
        expected = runtime.generate(PROMPTS[0], max_new_tokens=8).token_ids
        files = {path: path.read_bytes() for path in tmp_path.rglob("*.layer")}
        for path in files:
            with path.open("r+b") as file:
                file.truncate(8192)
        with pytest.raises(SequenceLost, match="could not compute"):
            runtime.generate(PROMPTS[1], max_new_tokens=8)
        for path, data in files.items():
            with path.open("r+b") as file:
                file.write(data)
        assert runtime.generate(PROMPTS[0], max_new_tokens=8).token_ids == expected

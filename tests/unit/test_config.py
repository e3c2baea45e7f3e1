"""Settings: what is refused and how it says so, and what overrides what."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import numpy as np
import pytest

from bloombee.config import (
    Config,
    Environment,
    LocalWorker,
    RuntimeConfig,
    WorkerConfig,
    load_config,
    merge,
    parse_size,
    parse_split,
    size_text,
)
from bloombee.errors import ConfigError
from bloombee.runtime import Runtime
from bloombee.types import SamplingParams


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", " "),
        ("workers", 0),
        ("workers", True),
        ("workers", 1.5),
        ("dtype", "int8"),
        ("objective", "speed"),
        ("objective", "target"),
        ("objective", "target:soon"),
        ("objective", "target:-1"),
        ("objective", "latency:1"),
        ("objective", 1),
        ("device", "tpu"),
        ("listen", "127.0.0.1:5000"),
        ("listen", "tcp://host:99999"),
        ("listen", None),
        ("listen", 7700),
        ("listen", "tcp://fd00::2:7700"),
        ("advertise", "tcp://host"),
        ("advertise", "tcp://host:0"),
        ("advertise", "tcp://0.0.0.0:7700"),
        ("advertise", "tcp://*:7700"),
        ("advertise", "tcp://[fe80::1%eth0]:7700"),
        ("remote_workers", -1),
        ("microbatches", 0),
        ("max_microbatch_rows", 0),
        ("page_size", 0),
        ("kv_tokens", 15),
        ("max_waiting", 0),
        ("heartbeat_s", float("nan")),
        ("silence_s", 0.19),
        ("step_deadline_s", float("inf")),
        ("load_deadline_s", "60"),
        ("curve", 1),
        ("control_socket", "yes"),
        ("threads", 0),
        ("trace", ""),
        ("split", (3, 3)),
        ("split", (3, 3, 0)),
    ],
)
def test_a_bad_value_names_the_field_the_value_and_the_rule(field: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        dataclasses.replace(RuntimeConfig(), **{field: value})
    assert caught.value.fields["field"] == field
    assert caught.value.message.startswith(f"{field} = {value!r}: must be ")
    assert caught.value.fields["allowed"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("listen", "udp://h:1"),
        ("advertise", "tcp://[::]:7701"),
        ("device", ""),
        ("memory_bytes", 10),
        ("threads", 0),
        ("log_level", "loud"),
        ("name", "n" * 257),
        ("key", ""),
    ],
)
def test_a_bad_worker_value_is_refused(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"^{field} = "):
        dataclasses.replace(WorkerConfig(), **{field: value})


class _Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


ODD_VALUES = (
    float("nan"),
    -float("inf"),
    10**5000,
    -(10**5000),
    b"x",
    "x" * 10**6,
    [[1], [2]],
    {"a": 1},
    object(),
    _Unprintable(),
)
"""None of them is good for any field."""


@pytest.mark.parametrize("value", ODD_VALUES, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize(
    ("kind", "error"),
    [(RuntimeConfig, ConfigError), (WorkerConfig, ConfigError), (LocalWorker, ConfigError), (SamplingParams, ValueError)],
)
def test_whatever_the_value_its_refusal_is_typed_and_short(kind: type, error: type, value: object) -> None:
    of_any_length = {"model", "trace", "decisions", "state", "key", "join", "log_dir", "disk", "stop"}
    for field in dataclasses.fields(kind):
        if isinstance(value, str) and field.name in of_any_length:
            continue
        with pytest.raises(error, match=f"^{field.name} = ") as caught:
            kind(**{field.name: value})
        assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("names", [np.array(["auto", "info"]), ("auto",), {"auto"}])
def test_one_of_several_names_is_a_text(names: object) -> None:
    for kind, field in ((RuntimeConfig, "dtype"), (RuntimeConfig, "codec"), (WorkerConfig, "log_level"), (WorkerConfig, "name")):
        with pytest.raises(ConfigError, match=f"^{field} = "):
            kind(**{field: names})


@pytest.mark.parametrize(
    ("field", "value"), [("client", None), ("client", b"me"), ("client", "\ud800"), ("priority", 10**30), ("priority", True)]
)
def test_a_bad_client_or_priority_is_the_one_that_is_named(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"^{field} ") as caught:
        asyncio.run(Runtime().generate("x", **{field: value}))
    assert caught.value.fields["field"] == field


def test_endpoints_may_be_names_addresses_and_ipv6() -> None:
    for endpoint in ("tcp://127.0.0.1:0", "tcp://*:5000", "tcp://gpu-1.lan:65535", "tcp://[::1]:5000"):
        assert RuntimeConfig(listen=endpoint).listen == endpoint


def test_configs_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        RuntimeConfig().workers = 2  # type: ignore[misc]


def test_split_alone_says_how_many_workers() -> None:
    assert merge(RuntimeConfig(), {"split": [4, 4]}).workers == 2
    assert merge(RuntimeConfig(remote_workers=3), {"split": (4, 4)}).num_stages == 2
    with pytest.raises(ConfigError, match="3 whole numbers"):
        merge(RuntimeConfig(), {"split": (4, 4), "workers": 3})


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean workers"):
        merge(RuntimeConfig(), {"worker": 3})


def test_a_file_lies_under_the_callers_values(tmp_path: Path) -> None:
    path = tmp_path / "bloombee.toml"
    path.write_text('[runtime]\nworkers = 2\ndtype = "float32"\n[worker]\nmemory_bytes = "2GiB"\n')
    config = load_config(path)
    assert config.runtime == RuntimeConfig(workers=2, dtype="float32")
    assert config.worker.memory_bytes == 2 << 30
    assert merge(config.runtime, {"workers": 4}) == RuntimeConfig(workers=4, dtype="float32")
    assert load_config(None) == Config()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("workers = 2", "tables"),
        ("[runtime]\nworkerz = 2", "did you mean workers"),
        ("[runtime]\nworkers = 0", "workers = 0"),
        ("[runtime", "not a TOML file"),
        ('[worker]\nmemory_bytes = "lots"', "memory_bytes = .lots.: must be a size"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=says) as caught:
        load_config(path)
    assert caught.value.message.startswith(str(path))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: cannot read"):
        load_config(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("text", "size"), [("1048576", 1 << 20), ("512MB", 512 * 10**6), ("8GiB", 8 << 30), ("1.5 gib", 3 << 29), ("2k", 2000)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text, "memory_bytes") == size


@pytest.mark.parametrize("text", ["", "GiB", "-1", "8 apples", "1e9", "9" * 5000])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ConfigError, match="log_disk_bytes"):
        parse_size(text, "log_disk_bytes")


@pytest.mark.parametrize(("size", "text"), [(0, "0"), (1000, "1000"), (1 << 10, "1KiB"), (1 << 30, "1GiB"), (3 << 29, "1536MiB")])
def test_sizes_are_shown_as_they_are_written(size: int, text: str) -> None:
    assert size_text(size) == text
    assert parse_size(text, "memory_bytes") == size


def test_split_text() -> None:
    assert parse_split("3, 3,2") == (3, 3, 2)
    for text in ("3,,2", "a", "", "-1,2", "9" * 5000):
        with pytest.raises(ConfigError, match="split"):
            parse_split(text)


def test_environment_reads_three_names() -> None:
    assert Environment.read({}) == Environment()
    everything = {"BLOOMBEE_CONFIG": "c.toml", "BLOOMBEE_JOIN": "token", "BLOOMBEE_DEBUG": "1", "BLOOMBEE_WORKERS": "9"}
    assert Environment.read(everything) == Environment("c.toml", "token", True)
    with pytest.raises(ConfigError, match="BLOOMBEE_DEBUG"):
        Environment.read({"BLOOMBEE_DEBUG": "yes"})


@pytest.mark.parametrize("places", [["tcp://127.0.0.1:1"], [LocalWorker(), None], 3, "ab"])
def test_local_workers_of_another_type_are_refused_before_anything_starts(places: object) -> None:
    with pytest.raises(ConfigError, match=r"local_workers = .*: must be a list of LocalWorker") as caught:
        Runtime("demo", workers=2, local_workers=places)  # type: ignore[arg-type]
    assert caught.value.fields["field"] == "local_workers"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("listen", "127.0.0.1:1"),
        ("source", "localhost"),
        ("source", "127.0.0.1:5"),
        ("source", 7),
        ("source", ""),
        ("pace", "fast"),
        ("memory_bytes", 1000),
        ("memory_bytes", 1e9),
        ("load_bytes_per_s", 0),
        ("load_bytes_per_s", float("nan")),
        ("load_bytes_per_s", "1GB"),
    ],
)
def test_a_bad_value_of_one_local_worker_is_refused(field: str, value: object) -> None:
    for make in (LocalWorker, WorkerConfig):
        with pytest.raises(ConfigError, match=rf"^{field} = .*: must be ") as caught:
            make(**{field: value})
        assert caught.value.fields["field"] == field


def test_a_local_worker_may_be_slow_small_and_far() -> None:
    worker = LocalWorker(source="127.77.0.1", pace="13,0.05,0.5/20", memory_bytes=8 * 2**30, load_bytes_per_s=1e9)
    assert WorkerConfig(
        source=worker.source, pace=worker.pace, memory_bytes=worker.memory_bytes, load_bytes_per_s=worker.load_bytes_per_s
    )
    assert LocalWorker(source="::1").source == "::1"


@pytest.mark.parametrize(
    ("fields", "goal", "kept_s"),
    [
        ({}, "None", None),
        ({"workers": 2, "split": (3, 3)}, "None", None),
        ({"remote_workers": 2}, "balance", None),
        ({"remote_workers": 2, "target_s": 0.5}, "balance", 0.5),
        ({"remote_workers": 2, "split": (3, 3)}, "None", None),
        ({"objective": "latency"}, "latency", None),
        ({"remote_workers": 2, "objective": "throughput", "target_s": 0.5}, "throughput", 0.5),
        ({"objective": "target:0.25"}, "target:0.25", 0.25),
    ],
)
def test_a_planner_decides_where_it_is_asked_or_workers_come_from_elsewhere(
    fields: dict[str, object], goal: str, kept_s: float | None
) -> None:
    config = RuntimeConfig(**fields)  # type: ignore[arg-type]
    assert (str(config.goal), config.kept_s) == (goal, kept_s)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"workers": 2, "split": (3, 3)}, "split = 3,3: a split says who runs what"),
        ({"target_s": 0.5}, "target_s = 0.5: two times to keep"),
    ],
)
def test_an_objective_with_what_leaves_nothing_to_plan_is_refused(fields: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=f"{says}.*leave out one") as caught:
        RuntimeConfig(objective="target:0.25", **fields)  # type: ignore[arg-type]
    assert caught.value.fields["field"] == "objective"

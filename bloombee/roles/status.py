"""What a head tells of its swarm to people (``bloombee status``), as JSON has it. A newer program may add fields and never
changes what one means; with that it would raise :data:`VERSION`."""

from __future__ import annotations

import msgspec

VERSION = 1


class WorkerStatus(msgspec.Struct, frozen=True):
    """A worker that is in.

    Args:
        address: where other workers dial it; empty: they cannot.
        state: ``away`` (its connection broke and may come back), ``joined`` (there is no plan yet), ``spare``, ``draining``,
            ``loading``, ``wiring``, ``serving``.
        stage, layers: of one with a stage, the layers [first, beyond the last].
        memory_bytes: that it offers. used_bytes: of them, for its stage.
        layer_s: that one layer takes for one row, as it says; None: it has not said.
        silent_s: since its last word.
        reason: why it has no stage.
    """

    id: int
    name: str
    address: str
    state: str
    stage: int | None
    layers: tuple[int, int] | None
    memory_bytes: int
    used_bytes: int
    layer_s: float | None
    silent_s: float
    reason: str


class LinkStatus(msgspec.Struct, frozen=True):
    """A directed link of the ring, by its own frames; None: they have not shown that yet.

    Args:
        source, target: names of workers, or ``head``.
        codec: whether one row's activations are compressed now, and why; empty: none go there.
        ratio: sent over raw bytes of all activations so far.
    """

    source: str
    target: str
    rtt_s: float | None
    bandwidth_bytes_per_s: float | None
    codec: str
    ratio: float | None


class Figures(msgspec.Struct, frozen=True):
    """How a plan runs, as it was expected to or as it was seen to.

    Args:
        microbatches: M. sequences: b, in each. tokens_per_s: of all together; None: nothing has run of late.
    """

    microbatches: int
    sequences: int
    tokens_per_s: float | None


class PlanStatus(msgspec.Struct, frozen=True):
    """Who runs what.

    Args:
        objective: None: layers were cut as asked for. scheduler: the name of whose process has it.
        predicted: of a plan that was chosen, and that no loss has changed.
    """

    epoch: int
    objective: str | None
    scheduler: str
    predicted: Figures | None
    measured: Figures


class RequestStatus(msgspec.Struct, frozen=True):
    """A request that has not ended.

    Args:
        phase: ``waiting`` (for KV memory, or for a pipeline), ``prefill``, ``decode``.
        tokens_per_s: since its first token, of those that this head has given; None: there are not two of them.
        age_s: since it was made.
    """

    id: int
    client: str
    phase: str
    prompt_tokens: int
    tokens: int
    max_new_tokens: int
    tokens_per_s: float | None
    age_s: float


class SwarmStatus(msgspec.Struct, frozen=True):
    """All of it.

    Args:
        state: ``waiting`` (for ``missing`` workers), ``loading``, ``up``, ``recovering``, ``down``; ``reason``: why it is down.
    """

    version: int
    process: int
    model: str
    state: str
    reason: str
    missing: int
    plan: PlanStatus | None
    workers: tuple[WorkerStatus, ...]
    links: tuple[LinkStatus, ...]
    requests: tuple[RequestStatus, ...]

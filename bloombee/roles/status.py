"""What a head tells of its swarm to people (``bloombee status``), as JSON has it. A newer program may add fields and never
changes what one means; with that it would raise :data:`VERSION`."""

from __future__ import annotations

import msgspec

VERSION = 1


class Forwards(msgspec.Struct, frozen=True):
    """Of one phase: how many there were, of how many rows, and how long they took, the pace of an emulated device included."""

    works: int = 0
    rows: int = 0
    busy_s: float = 0.0


class StageStatus(msgspec.Struct, frozen=True):
    """What a stage has done since it was loaded, as it said last.

    Args:
        bubble_s: of the time in which this head had requests, since it first heard of the stage in this plan, without a forward.
        pages_free: KV pages of all its groups; pages: all there are.
    """

    decode: Forwards
    prefill: Forwards
    bubble_s: float
    pages_free: int
    pages: int


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
        figures: None: it has said nothing of a stage yet.
        follows: stages that a spare follows in case they are lost; of each, how many rows of open requests it lacks yet, or None
            while it loads.
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
    figures: StageStatus | None = None
    follows: tuple[tuple[int, int | None], ...] = ()


class LinkStatus(msgspec.Struct, frozen=True):
    """A directed link of the ring, by its own frames; None: they have not shown that yet.

    Args:
        source, target: names of workers, or ``head``; source_id, target_id: their numbers, 0 for the head.
        codec: whether one row's activations are compressed now, and why; empty: none go there.
        ratio: sent over raw bytes of all activations so far, which are sent_bytes and raw_bytes.
        num_bytes: of all frames that have been acknowledged so far.
    """

    source: str
    target: str
    rtt_s: float | None
    bandwidth_bytes_per_s: float | None
    codec: str
    ratio: float | None
    num_bytes: int = 0
    raw_bytes: int = 0
    sent_bytes: int = 0
    source_id: int = 0
    target_id: int = 0


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
        predicted: of a plan that was chosen, and that no loss has changed; reason: why it was, for people.
    """

    epoch: int
    objective: str | None
    scheduler: str
    predicted: Figures | None
    measured: Figures
    reason: str = ""


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


class Times(msgspec.Struct, frozen=True):
    """How long something took each time: a histogram.

    Args:
        counts: [len(UPTO_S) + 1] of those that took no longer than each of :data:`UPTO_S`, and longer than the one before; then
            of all others. sum_s: of all.
    """

    counts: tuple[int, ...]
    sum_s: float


UPTO_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0)


class Served(msgspec.Struct, frozen=True):
    """What this head has served so far.

    Args:
        ended: by how they did, a finish reason or the name of an error, how many requests.
        prompt_tokens: of requests that were begun here. tokens: that were given out.
        first_token: from when a request was made to its first token. between_tokens: from each token of a request to its next.
        active_s: in which there was a request.
        cached_tokens: of prompts whose first token came, computed by other requests before.
        drafted: tokens that were sent to be verified; accepted: of those that were given out, how many had been drafted.
    """

    ended: dict[str, int]
    prompt_tokens: int
    tokens: int
    first_token: Times
    between_tokens: Times
    active_s: float
    cached_tokens: int = 0
    drafted: int = 0
    accepted: int = 0


class SwarmStatus(msgspec.Struct, frozen=True):
    """All of it.

    Args:
        state: ``waiting`` (for ``missing`` workers), ``loading``, ``up``, ``recovering``, ``down``; ``reason``: why it is down.
        recoveries: how often a plan has come up again after it had lost a stage.
        now_s: when this was, on a clock of the head's that never goes back; for rates from two of these.
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
    served: Served | None = None
    recoveries: int = 0
    now_s: float = 0.0

"""``/metrics``: what a head counts, for Prometheus (docs/serving.md lists it).

Nothing is counted here: each family is a field of the swarm's status (``roles/status.py``), so that a figure means the same
for ``bloombee status``, on the page and on a board. What is not known has no sample.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Metric, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    StateSetMetricFamily,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from bloombee.roles.status import (
    UPTO_S,
    LinkStatus,
    PlanStatus,
    RequestStatus,
    Served,
    StageStatus,
    SwarmStatus,
    Times,
    WorkerStatus,
)
from bloombee.runtime import Runtime
from bloombee.serve.watch import Watch
from bloombee.types import VERSION

STATES = ("waiting", "loading", "up", "recovering", "down")
PHASES = ("waiting", "prefill", "decode")
STAGE = ("stage", "worker")
LINK = ("link", "source", "target")
"""``link``: the numbers of its ends, since workers may have one name."""


def routes(runtime: Runtime) -> list[BaseRoute]:
    """Raises at a request RuntimeClosed: the Runtime is closed, or still looks at its model."""
    watch, figures = Watch(runtime), SwarmFigures()
    registry = CollectorRegistry()
    registry.register(figures)
    ProcessCollector(registry=registry)

    async def metrics(request: Request) -> Response:
        encode, kind = choose_encoder(request.headers.get("accept", ""))
        figures.status = await watch.look()
        return Response(encode(registry), headers={"Content-Type": kind, "Cache-Control": "no-store"})

    return [Route("/metrics", metrics, methods=["GET"])]


class SwarmFigures(Collector):
    """A status as families of samples."""

    status: SwarmStatus | None = None

    def collect(self) -> Iterator[Metric]:
        status = self.status
        if status is None:  # a registry asks for names when something is registered
            return
        yield InfoMetricFamily("bloombee", "What serves what.", {"version": VERSION, "model": status.model})
        state = {one: one == status.state for one in STATES}
        yield StateSetMetricFamily("bloombee_state", "Whether the pipeline runs.", state)
        yield _counter("bloombee_recoveries", "Losses of a stage after which the pipeline has come up again.", status.recoveries)
        if status.served is not None:
            yield from _served(status.served)
        yield _open_requests(status.requests)
        if status.plan is not None:
            yield from _plan(status.plan)
        yield from _workers(status.workers)
        yield from _stages(status.workers)
        yield from _links(status.links)


def _served(served: Served) -> Iterator[Metric]:
    ended = CounterMetricFamily("bloombee_requests", "Requests that have ended, by finish reason or error.", labels=("outcome",))
    for outcome, count in sorted(served.ended.items()):
        ended.add_metric((outcome,), count)
    yield ended
    yield _counter("bloombee_prompt_tokens", "Tokens of prompts that were taken.", served.prompt_tokens)
    about = "Tokens of prompts that other requests had computed."
    yield _counter("bloombee_cached_prompt_tokens", about, served.cached_tokens)
    yield _counter("bloombee_generated_tokens", "Tokens that were given out.", served.tokens)
    yield _counter("bloombee_drafted_tokens", "Drafted tokens that were sent to be verified.", served.drafted)
    yield _counter("bloombee_accepted_tokens", "Tokens that were given out and had been drafted.", served.accepted)
    yield _counter("bloombee_active_seconds", "Time in which there was a request.", served.active_s)
    about = "From a request to its first token."
    yield _histogram("bloombee_time_to_first_token_seconds", about, served.first_token)
    about = "From a token of a request to its next."
    yield _histogram("bloombee_time_per_token_seconds", about, served.between_tokens)


def _open_requests(requests: Iterable[RequestStatus]) -> Metric:
    family = GaugeMetricFamily("bloombee_open_requests", "Requests that have not ended.", labels=("phase",))
    count = Counter(request.phase for request in requests)
    for phase in PHASES:
        family.add_metric((phase,), count[phase])
    return family


def _plan(plan: PlanStatus) -> Iterator[Metric]:
    yield GaugeMetricFamily("bloombee_plan_epoch", "Number of the plan that runs.", plan.epoch)
    yield GaugeMetricFamily("bloombee_plan_microbatches", "Under way at once, as chosen last.", plan.measured.microbatches)
    if plan.predicted is not None and plan.predicted.tokens_per_s is not None:
        about = "What the plan was expected to make."
        yield GaugeMetricFamily("bloombee_plan_predicted_tokens_per_second", about, plan.predicted.tokens_per_s)


def _workers(workers: tuple[WorkerStatus, ...]) -> Iterator[Metric]:
    states = GaugeMetricFamily("bloombee_workers", "Workers that are in.", labels=("state",))
    for state, count in sorted(Counter(worker.state for worker in workers).items()):
        states.add_metric((state,), count)
    yield states
    labels = ("id", "worker")
    offered = GaugeMetricFamily("bloombee_worker_memory_bytes", "Memory that a worker offers.", labels=labels)
    used = GaugeMetricFamily("bloombee_worker_used_bytes", "Of it, for its stage.", labels=labels)
    for worker in workers:
        offered.add_metric((str(worker.id), worker.name), worker.memory_bytes)
        used.add_metric((str(worker.id), worker.name), worker.used_bytes)
    yield from (offered, used)


def _stages(workers: tuple[WorkerStatus, ...]) -> Iterator[Metric]:
    """Counted since the stage was loaded."""
    by_phase = (*STAGE, "phase")
    busy = CounterMetricFamily("bloombee_stage_busy_seconds", "Of a stage's device, in forwards.", labels=by_phase)
    forwards = CounterMetricFamily("bloombee_stage_forwards", "Forwards.", labels=by_phase)
    rows = CounterMetricFamily("bloombee_stage_rows", "Rows of all forwards.", labels=by_phase)
    about = "With a request somewhere and no forward here, in this plan."
    bubble = CounterMetricFamily("bloombee_stage_bubble_seconds", about, labels=STAGE)
    free = GaugeMetricFamily("bloombee_stage_kv_pages_free", "KV pages that no sequence holds.", labels=STAGE)
    pages = GaugeMetricFamily("bloombee_stage_kv_pages", "KV pages in all.", labels=STAGE)
    for labels, stage in _with_figures(workers):
        for phase, use in (("decode", stage.decode), ("prefill", stage.prefill)):
            busy.add_metric((*labels, phase), use.busy_s)
            forwards.add_metric((*labels, phase), use.works)
            rows.add_metric((*labels, phase), use.rows)
        bubble.add_metric(labels, stage.bubble_s)
        free.add_metric(labels, stage.pages_free)
        pages.add_metric(labels, stage.pages)
    yield from (busy, forwards, rows, bubble, free, pages)


def _with_figures(workers: Iterable[WorkerStatus]) -> Iterator[tuple[tuple[str, str], StageStatus]]:
    for worker in workers:
        if worker.figures is not None:
            yield (str(worker.stage), worker.name), worker.figures


def _links(links: Iterable[LinkStatus]) -> Iterator[Metric]:
    trip = GaugeMetricFamily("bloombee_link_round_trip_seconds", "Of small frames on an idle link.", labels=LINK)
    about = "While a queue stood; without a sample none ever did."
    bandwidth = GaugeMetricFamily("bloombee_link_bandwidth_bytes_per_second", about, labels=LINK)
    carried = CounterMetricFamily("bloombee_link_bytes", "Of frames that were acknowledged.", labels=LINK)
    about = "Of activations, before the codec (raw) and after it (sent)."
    activations = CounterMetricFamily("bloombee_link_activation_bytes", about, labels=(*LINK, "form"))
    ratio = GaugeMetricFamily("bloombee_link_codec_ratio", "Sent over raw bytes of all activations.", labels=LINK)
    for link in links:
        labels = (f"{link.source_id}-{link.target_id}", link.source, link.target)
        carried.add_metric(labels, link.num_bytes)
        for family, value in ((trip, link.rtt_s), (bandwidth, link.bandwidth_bytes_per_s), (ratio, link.ratio)):
            if value is not None:
                family.add_metric(labels, value)
        if link.raw_bytes:
            activations.add_metric((*labels, "raw"), link.raw_bytes)
            activations.add_metric((*labels, "sent"), link.sent_bytes)
    yield from (trip, bandwidth, carried, activations, ratio)


def _counter(name: str, about: str, value: float) -> Metric:
    return CounterMetricFamily(name, about, value)


def _histogram(name: str, about: str, times: Times) -> Metric:
    upto = (*map(floatToGoString, UPTO_S), "+Inf")
    buckets = list(zip(upto, itertools.accumulate(times.counts), strict=True))
    return HistogramMetricFamily(name, about, buckets=buckets, sum_value=times.sum_s)

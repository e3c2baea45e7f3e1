"""Telling the application how the start gets on, and whoever listens to events the same."""

from __future__ import annotations

import logging
from collections.abc import Callable

from bloombee.pipeline.commands import ReportLeft, ReportMeasured, ReportProgress, StageLoaded
from bloombee.plan.plan import Plan
from bloombee.roles.bulletin import Bulletin
from bloombee.types import LoadProgress, SwarmEventKind, WorkerId
from bloombee.wire.join import Admitted

log = logging.getLogger(__name__)


class Progress:
    """The application's callback; one that raises is not called again, and costs nothing else."""

    def __init__(self, tell: Callable[[LoadProgress], None] | None, bulletin: Bulletin) -> None:
        self._tell = tell
        self._bulletin = bulletin
        self._measuring: set[WorkerId] = set()

    def tell(self, progress: LoadProgress) -> None:
        if self._tell is None:
            return
        try:
            self._tell(progress)
        except Exception:
            log.exception("on_progress raised; it is not called any more")
            self._tell = None

    def joined(self, admitted: Admitted, num_missing: int) -> None:
        self.tell(LoadProgress(admitted.worker, admitted.join.name, -1, 0, 0, "joined", num_missing))
        self._bulletin.tell(SwarmEventKind.JOINED, worker=admitted.worker, name=admitted.join.name)

    def told(
        self, report: ReportLeft | ReportMeasured | ReportProgress | StageLoaded, name_of: Callable[[WorkerId], str]
    ) -> None:
        """By the swarm's core."""
        match report:
            case ReportLeft():
                self.left(report)
            case ReportMeasured(worker=worker):
                self.measuring(report, name_of(worker))
            case ReportProgress(worker=worker):
                self.loading(report, name_of(worker))
            case StageLoaded(worker=worker, stage=stage):
                self._bulletin.tell(SwarmEventKind.LOADED, worker=worker, name=name_of(worker), stage=stage)

    def left(self, report: ReportLeft) -> None:
        self.tell(LoadProgress(report.worker, report.name, -1, 0, 0, "left", report.num_missing))

    def measuring(self, report: ReportMeasured, name: str) -> None:
        """Of which there are two events: when it begins and when all is known."""
        kind = SwarmEventKind.MEASURED if report.is_all else SwarmEventKind.MEASURING
        known, links = report.num_known, report.num_links
        self.tell(LoadProgress(report.worker, name, -1, 0, 0, str(kind), num_known_links=known, num_links=links))
        if report.is_all or report.worker not in self._measuring:
            self._bulletin.tell(kind, worker=report.worker, name=name, reason=f"{known} of {links} links known")
        (self._measuring.discard if report.is_all else self._measuring.add)(report.worker)

    def loading(self, report: ReportProgress, name: str) -> None:
        self.tell(LoadProgress(report.worker, name, report.stage, report.loaded_bytes, report.total_bytes, "loading"))

    def ready(self, plan: Plan) -> None:
        """Every stage has loaded."""
        for stage in plan.stages:
            size = stage.weight_bytes
            self.tell(LoadProgress(stage.worker, stage.name, stage.index, size, size, "ready"))

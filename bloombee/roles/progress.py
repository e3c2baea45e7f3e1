"""Telling the application how the start gets on."""

from __future__ import annotations

import logging
from collections.abc import Callable

from bloombee.pipeline.commands import ReportLeft, ReportProgress
from bloombee.plan.plan import Plan
from bloombee.types import LoadProgress
from bloombee.wire.join import Admitted

log = logging.getLogger(__name__)


class Progress:
    """The application's callback; one that raises is not called again, and costs nothing else."""

    def __init__(self, tell: Callable[[LoadProgress], None] | None) -> None:
        self._tell = tell

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

    def left(self, report: ReportLeft) -> None:
        self.tell(LoadProgress(report.worker, report.name, -1, 0, 0, "left", report.num_missing))

    def loading(self, report: ReportProgress, name: str) -> None:
        self.tell(LoadProgress(report.worker, name, report.stage, report.loaded_bytes, report.total_bytes, "loading"))

    def ready(self, plan: Plan) -> None:
        """Every stage has loaded."""
        for stage in plan.stages:
            size = stage.weight_bytes
            self.tell(LoadProgress(stage.worker, stage.name, stage.index, size, size, "ready"))

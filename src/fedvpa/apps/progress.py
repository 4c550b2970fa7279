"""How a training shows that it is alive: a live bar on a terminal, a line every tenth of the rounds elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fedvpa.federation.rounds import RoundReport
from fedvpa.reporting.tables import seconds

LINES = 10


class RoundProgress:
    """Shows round, loss, validation accuracy, seconds per round and the time left, on stderr.

    Args:
        total: rounds; done: of them, rounds before a resumption.
    """

    def __init__(self, console: Console, label: str, total: int, done: int = 0) -> None:
        self.console, self.label, self.total, self.done = console, label, total, done
        self.spent, self.accuracy = 0.0, ""
        self.live = console.is_terminal
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=console, disable=not self.live)
        self._task = self._progress.add_task(label, total=total, completed=done, state="")

    def __enter__(self) -> RoundProgress:
        self._progress.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._progress.stop()

    def update(self, report: RoundReport, values: Mapping[str, Any] | None) -> None:
        """After a round; values: the validation users' accuracies, where they were measured."""
        self.spent += report.seconds
        each = self.spent / (report.round - self.done)
        if values is not None:
            self.accuracy = f"  validation {values['accuracy']:.3f}"
        loss = report.metrics.get("loss")
        shown = "" if loss is None else f"loss {loss:.3f}"
        spent = "" if report.epsilon is None else f"  epsilon {report.epsilon:.3g}"
        state = f"{shown}{self.accuracy}{spent}  {seconds(each)} s/round"
        self._progress.update(self._task, completed=report.round, state=state)
        step = -(-self.total // LINES)
        if not self.live and (report.round % step == 0 or report.round == self.total):
            left = seconds(each * (self.total - report.round))
            line = f"{self.label}: round {report.round}/{self.total}  {state}  {left} s left"
            self.console.print(line, highlight=False, soft_wrap=True)

"""Runs cells side by side, where there are cores for it: what `compare` and `study` share."""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fedvpa.apps import cells
from fedvpa.apps.cells import Cell, run_cell, start_worker
from fedvpa.apps.stopping import Interrupted, StopSignals
from fedvpa.errors import UserError
from fedvpa.evaluation.result_files import write_text


@dataclass(frozen=True)
class Task:
    """A cell to be run.

    Attributes:
        label: what the user is shown.
        config_json: the configuration, as text that a worker process can be sent.
        cell: method and seed; path: the JSON that it leaves.
        lean, selector: as for `cells.run_cell`.
        seconds: how long it will take, where that can be told.
    """

    label: str
    config_json: str
    cell: Cell
    path: Path
    lean: bool = False
    seconds: float | None = None
    selector: Path | None = None


def default_jobs() -> int:
    """One cell per core."""
    return len(os.sched_getaffinity(0))


def run_tasks(
    tasks: Sequence[Task], console: Console, remedy: str, jobs: int | None = None, threads: int = 1
) -> dict[Task, BaseException]:
    """Runs cells in the order given, showing each that ends; returns what those that failed raised.

    Args:
        remedy: what the user is told after an interruption.
        jobs: cells at a time; by default one per core.
        threads: threads of each cell.

    Raises:
        Interrupted: SIGINT or SIGTERM; finished cells are kept.
    """
    failures: dict[Task, BaseException] = {}
    if not tasks:
        return failures
    jobs = min(jobs or default_jobs(), len(tasks))
    left = _TimeLeft(tasks, jobs)
    columns = (
        TextColumn("cells"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    with (
        StopSignals(remedy) as signals,
        Progress(*columns, console=console, disable=not console.is_terminal) as progress,
        _executor(jobs, threads) as executor,
    ):
        bar = progress.add_task("cells", total=len(tasks), left=left.text())
        waiting: dict[Future[float | None], Task] = {
            executor.submit(run_cell, t.config_json, t.cell, t.path, t.lean, t.selector): t for t in tasks
        }
        while waiting:
            done, _ = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
            signals.check()
            for future in done:
                task = waiting.pop(future)
                left.ended(task)
                progress.update(bar, advance=1, left=left.text())
                count = f"({len(tasks) - len(waiting)}/{len(tasks)})"
                error = future.exception()
                if error is not None:
                    failures[task] = error
                    console.print(f"{task.label}: failed {count}", highlight=False, soft_wrap=True)
                else:
                    shown = "" if (value := future.result()) is None else f": {value:.3f}"
                    rest = "" if console.is_terminal else f"  {left.text()}".rstrip()
                    console.print(f"{task.label}{shown} {count}{rest}", highlight=False, soft_wrap=True)
    return failures


class _TimeLeft:
    """The time left, from the cells' estimates and from how they have done so far."""

    def __init__(self, tasks: Sequence[Task], jobs: int) -> None:
        known = [t.seconds for t in tasks if t.seconds is not None]
        self.known, self.jobs = len(known) == len(tasks), jobs
        self.waiting, self.done, self.began = sum(known), 0.0, time.monotonic()

    def ended(self, task: Task) -> None:
        self.waiting -= task.seconds or 0.0
        self.done += task.seconds or 0.0

    def text(self) -> str:
        """``12 min left``, empty where nothing can be told."""
        if not self.known:
            return ""
        pace = (time.monotonic() - self.began) * self.jobs / self.done if self.done else 1.0
        return f"{duration(self.waiting * pace / self.jobs)} left"


def duration(seconds: float) -> str:
    """``40 s``, ``12 min`` or ``3 h 20 min``."""
    if seconds < 90:
        return f"{max(0.0, seconds):.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


@contextmanager
def _executor(jobs: int, threads: int) -> Iterator[Executor]:
    """`jobs` processes, or for one job a thread here; on an interruption the cells that run are given up."""
    executor: Executor
    if jobs == 1:
        cells.limit_threads(threads)
        cells.environment()  # as in a worker: see `cells.start_worker`
        cells.stop.clear()
        executor = ThreadPoolExecutor(1)
    else:
        spawn = multiprocessing.get_context("spawn")
        executor = ProcessPoolExecutor(jobs, spawn, start_worker, (threads, os.getpid()))
    try:
        yield executor
    except Interrupted:
        cells.stop.set()
        executor.shutdown(wait=False, cancel_futures=True)
        for child in multiprocessing.active_children():
            child.terminate()
        raise
    executor.shutdown()


def log_failures(path: Path, failures: Mapping[Task, BaseException]) -> None:
    """Tracebacks of the failures that are not the user's; no file where there are none."""
    unexpected = {task: e for task, e in failures.items() if not isinstance(e, UserError)}
    path.unlink(missing_ok=True)
    if unexpected:
        text = "\n".join(f"{t.label}\n{''.join(traceback.format_exception(e))}" for t, e in unexpected.items())
        write_text(path, text)


def explain(error: BaseException) -> str:
    """A failure in one line; what is no mistake of the user's is in ``failures.log`` with its traceback."""
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else ""
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"

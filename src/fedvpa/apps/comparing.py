"""`fedvpa compare`: methods times seeds, side by side where there are cores for it."""

from __future__ import annotations

import difflib
import json
import multiprocessing
import os
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fedvpa.apps import cells as work
from fedvpa.apps import runs
from fedvpa.apps.cells import Cell, Finished, read_cell, run_cell, start_worker
from fedvpa.apps.runs import RunFolder
from fedvpa.apps.stopping import Interrupted, StopSignals
from fedvpa.config import METHODS, ExperimentConfig
from fedvpa.errors import UserError
from fedvpa.evaluation.experiment import encode
from fedvpa.evaluation.result_files import read_results, write_text
from fedvpa.preferences.sources import load_preferences


@dataclass(frozen=True)
class Outcome:
    """Results as ``results.json`` holds them, and per failed cell what went wrong."""

    results: dict[str, Any]
    failures: dict[Cell, BaseException]


def parse_methods(text: str) -> tuple[str, ...]:
    """The methods in ``a,b,c``, each once.

    Raises:
        UserError: an unknown method (with the nearest valid one), or none at all.
    """
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names:
        if name not in METHODS:
            near = difflib.get_close_matches(name, METHODS, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UserError(f"unknown method {name!r}", f"{hint}choose from {', '.join(METHODS)}", field="--methods")
    if not names:
        raise UserError("no method given", f"choose from {', '.join(METHODS)}", field="--methods")
    return names


def default_jobs() -> int:
    """One cell per core."""
    return len(os.sched_getaffinity(0))


def compare(
    config: ExperimentConfig,
    methods: Sequence[str],
    seeds: int,
    run: RunFolder,
    console: Console,
    jobs: int | None = None,
    threads: int = 1,
) -> Outcome:
    """Runs every method with every seed (`config.seed` and the following ones) and reports.

    Features are computed once, before. Each cell computes on `threads` threads, however many run at a time, so that
    the rows do not depend on `jobs`: sums of floats depend on the number of threads.

    Raises:
        UserError: bad data, or no cell succeeded for such a reason.
        Interrupted: SIGINT or SIGTERM; finished cells are kept.
    """
    cells = [Cell(method, seed) for seed in range(config.seed, config.seed + seeds) for method in methods]
    if run.finished and all(read_cell(cell.file(run.path / runs.CELLS)) for cell in cells):
        console.print(f"{run.path}: this run is finished; nothing to do", highlight=False, soft_wrap=True)
        return Outcome(read_results(run.path / runs.RESULTS), {})
    data = load_preferences(config)
    notes = encode(config, data).report.notes
    with runs.opened(run, config, "compare") as folder:
        known = {c: f for c in cells if (f := read_cell(c.file(folder / runs.CELLS))) is not None}
        if known:
            console.print(f"{len(known)} of {len(cells)} cells are there already", highlight=False)
        todo = [c for c in cells if c not in known]
        failures = _run_all(config, todo, folder, console, jobs or default_jobs(), threads)
        _log(folder / runs.FAILURES, failures)
        known |= {c: f for c in todo if (f := read_cell(c.file(folder / runs.CELLS))) is not None}
        if not known:
            raise next(iter(failures.values()))
        ordered = {c: known[c] for m in methods for c in cells if c.method == m and c in known}
        results, metrics = _combine(config, data, notes, ordered)
        write_text(folder / runs.METRICS, "".join(json.dumps(r, allow_nan=False) + "\n" for r in metrics))
        return Outcome(runs.finish(folder, results, metrics, config), failures)


def _run_all(
    config: ExperimentConfig, todo: Sequence[Cell], folder: Path, console: Console, jobs: int, threads: int
) -> dict[Cell, BaseException]:
    """Runs cells, showing each that ends; returns what those that failed raised."""
    failures: dict[Cell, BaseException] = {}
    jobs = min(jobs, len(todo))
    if not todo:
        return failures
    columns = (TextColumn("cells"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        StopSignals(f"finished cells are kept; go on with `--out {folder} --resume`") as signals,
        Progress(*columns, console=console, disable=not console.is_terminal) as progress,
        _executor(jobs, threads) as executor,
    ):
        bar = progress.add_task("cells", total=len(todo))
        text = work.config_json(config)
        waiting: dict[Future[float | None], Cell] = {
            executor.submit(run_cell, text, cell, folder / runs.CELLS): cell for cell in todo
        }
        while waiting:
            done, _ = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
            signals.check()
            for future in done:
                cell = waiting.pop(future)
                progress.advance(bar)
                count = f"({len(todo) - len(waiting)}/{len(todo)})"
                error = future.exception()
                if error is not None:
                    failures[cell] = error
                    console.print(f"{cell}: failed {count}", highlight=False, soft_wrap=True)
                else:
                    shown = "" if (value := future.result()) is None else f": {value:.3f}"
                    console.print(f"{cell}{shown} {count}", highlight=False, soft_wrap=True)
    return failures


@contextmanager
def _executor(jobs: int, threads: int) -> Iterator[Executor]:
    """`jobs` processes, or for one job a thread here; on an interruption the cells that run are given up."""
    executor: Executor
    if jobs == 1:
        work.limit_threads(threads)
        work.stop.clear()
        executor = ThreadPoolExecutor(1)
    else:
        spawn = multiprocessing.get_context("spawn")
        executor = ProcessPoolExecutor(jobs, spawn, start_worker, (threads, os.getpid()))
    try:
        yield executor
    except Interrupted:
        work.stop.set()
        executor.shutdown(wait=False, cancel_futures=True)
        for child in multiprocessing.active_children():
            child.terminate()
        raise
    executor.shutdown()


def _log(path: Path, failures: dict[Cell, BaseException]) -> None:
    """Tracebacks of the failures that are not the user's; no file where there are none."""
    unexpected = {cell: e for cell, e in failures.items() if not isinstance(e, UserError)}
    path.unlink(missing_ok=True)
    if unexpected:
        write_text(
            path, "\n".join(f"{cell}\n{''.join(traceback.format_exception(e))}" for cell, e in unexpected.items())
        )


def _combine(
    config: ExperimentConfig, data: Any, notes: Sequence[str], cells: dict[Cell, Finished]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """``results.json`` and the lines of ``metrics.jsonl`` from finished cells."""
    figures: dict[str, Any] = {}
    for cell, finished in cells.items():
        if finished.figures:
            figures.setdefault(cell.method, finished.figures)
    rows = [row for f in cells.values() for row in f.rows]
    comparable = len({f.pool for f in cells.values()}) == 1  # else a pair's number means another pair in another cell
    scores = [score if comparable else None for f in cells.values() for score in f.scores]
    switching = [row for f in cells.values() for row in f.switching]
    metrics = [record for f in cells.values() for record in f.metrics]
    return runs.combine(config, data, notes, rows, scores, switching, figures), metrics


def explain(error: BaseException) -> str:
    """A failure in one line; what is no mistake of the user's is in ``failures.log`` with its traceback."""
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else ""
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"

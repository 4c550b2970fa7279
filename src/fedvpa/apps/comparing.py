"""`fedvpa compare`: methods times seeds, side by side where there are cores for it."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from fedvpa.apps import fingerprints, runs
from fedvpa.apps.cells import Cell, Finished, read_cell
from fedvpa.apps.executor import Task, log_failures, run_tasks
from fedvpa.apps.runs import RunFolder
from fedvpa.config import ExperimentConfig, known_methods
from fedvpa.errors import UserError
from fedvpa.evaluation.encoding import readable
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
    known = known_methods()
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UserError(f"unknown method {name!r}", f"{hint}choose from {', '.join(known)}", field="--methods")
    if not names:
        raise UserError("no method given", f"choose from {', '.join(known)}", field="--methods")
    return names


def compare(
    config: ExperimentConfig,
    methods: Sequence[str],
    seeds: int,
    run: RunFolder,
    console: Console,
    jobs: int | None = None,
    threads: int = 1,
    keep: Sequence[str] = (),
) -> Outcome:
    """Runs every method with every seed (`config.seed` and the following ones) and reports.

    Features are computed once, before. Each cell computes on `threads` threads, however many run at a time, so that
    the rows do not depend on `jobs`: sums of floats depend on the number of threads.

    Args:
        keep: methods whose trained selectors are kept, in the folders `selector_folder`.

    Raises:
        UserError: bad data, no cell succeeded for such a reason, or the run to be resumed had other data or features.
        Interrupted: SIGINT or SIGTERM; finished cells are kept.
    """
    cells = [Cell(method, seed) for seed in range(config.seed, config.seed + seeds) for method in methods]
    data = load_preferences(config)
    fingerprint = fingerprints.fingerprint(config, data)
    if run.mode == "resume":
        runs.check_known(run, fingerprint)
    if run.finished and all(read_cell(cell.file(run.path / runs.CELLS)) for cell in cells):
        console.print(f"{run.path}: this run is finished; nothing to do", highlight=False, soft_wrap=True)
        return Outcome(read_results(run.path / runs.RESULTS), {})
    data, features = readable(config, data)
    notes = features.report.notes
    for note in notes:
        console.print(note, highlight=False, soft_wrap=True, markup=False)
    with runs.opened(run, config, "compare", fingerprint) as folder:
        known = {c: f for c in cells if (f := read_cell(c.file(folder / runs.CELLS))) is not None}
        if known:
            console.print(f"{len(known)} of {len(cells)} cells are there already", highlight=False)
        todo = [c for c in cells if c not in known]
        text = config.model_dump_json()
        kept = {c: selector_folder(folder, c) for c in todo if c.method in keep}
        tasks = [Task(str(c), text, c, c.file(folder / runs.CELLS), selector=kept.get(c)) for c in todo]
        remedy = f"finished cells are kept; go on with `--out {folder} --resume`"
        errors = run_tasks(tasks, console, remedy, jobs, threads)
        failures = {task.cell: error for task, error in errors.items()}
        log_failures(folder / runs.FAILURES, errors)
        known |= {c: f for c in todo if (f := read_cell(c.file(folder / runs.CELLS))) is not None}
        if not known:
            raise next(iter(failures.values()))
        ordered = {c: known[c] for m in methods for c in cells if c.method == m and c in known}
        results, metrics = _combine(config, data, notes, ordered)
        write_text(folder / runs.METRICS, "".join(json.dumps(r, allow_nan=False) + "\n" for r in metrics))
        return Outcome(runs.finish(folder, results, metrics, config), failures)


def selector_folder(run: Path, cell: Cell) -> Path:
    """Where in a run folder a cell's selector is kept."""
    return cell.file(run / runs.CELLS).with_suffix("")


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

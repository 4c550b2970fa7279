"""`fedvpa study`: plan, run what is not finished, and write the tidy table, the summary and the figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from rich.console import Console

from fedvpa.apps.cells import Finished, read_cell
from fedvpa.apps.executor import Task, default_jobs, log_failures, run_tasks
from fedvpa.apps.fingerprints import check, of_files
from fedvpa.apps.runs import FAILURES, LOCK, locked
from fedvpa.apps.study_grid import StudyCell, expand
from fedvpa.apps.study_plan import Estimator, describe, print_plan
from fedvpa.config import PEOPLE_SOURCES, ExperimentConfig
from fedvpa.errors import UserError
from fedvpa.evaluation import tidy
from fedvpa.evaluation.encoding import warm
from fedvpa.evaluation.result_files import plain, write_bytes, write_text
from fedvpa.evaluation.study_schema import Study, load_study
from fedvpa.evaluation.study_summary import summarise_study
from fedvpa.preferences.sources import load_preferences
from fedvpa.reporting.study_plots import study_figure

STUDY, TABLE, ROWS, SUMMARY = "study.yaml", "results.parquet", "results.json", "summary.json"


@dataclass(frozen=True)
class Plan:
    """What a study will do.

    Attributes:
        study: as it is run (reduced, where quick); source: its file.
        cells: every cell; todo: address -> estimated seconds of those that are not finished.
        folder: where cells are kept; jobs: cells at a time.
        options: what was asked for beyond the study's file, as the user typed it.
    """

    study: Study
    source: Path
    quick: bool
    cells: list[StudyCell]
    todo: dict[str, float]
    folder: Path
    jobs: int
    options: str = ""


def plan(
    source: Path,
    overrides: Sequence[str],
    folder: Path,
    quick: bool = False,
    seeds: int | None = None,
    jobs: int | None = None,
) -> Plan:
    """Expands a study and looks up which of its cells are finished; writes nothing.

    Raises:
        UserError: a malformed study, an unknown method or key, a value out of range.
    """
    study = load_study(source)
    study = study.reduced() if quick else study
    cells = expand(study, source, overrides, seeds)
    if not cells:
        raise UserError("has no cell", "leave more of it in `quick`", file=source)
    finished = {}
    for path in sorted(folder.glob("*.json")):  # those of other studies tell how long a cell takes
        if (found := read_cell(path)) is not None:
            finished[path.stem] = found.config, found.seconds
    estimator = Estimator(finished.values())
    todo = {c.address: estimator.seconds(c) for c in cells if c.address not in finished}
    options = "".join(f" {o}" for o in [*overrides, *([f"--seeds {seeds}"] if seeds else [])])
    return Plan(study, source, quick, cells, todo, folder, jobs or default_jobs(), options)


def announce(work: Plan, console: Console, every_cell: bool = False) -> None:
    """Prints the estimate, and with `every_cell` what it consists of."""
    if every_cell:
        print_plan(work.cells, work.todo, console)
    text = describe(work.study.name, work.cells, work.todo, work.jobs)
    console.print(text, highlight=False, soft_wrap=True)


def check_out(out: Path, work: Plan) -> None:
    """Refuses a folder that holds something else; touches nothing.

    Raises:
        UserError: a file, a folder of something else, of another study, or a full study where a quick one would go.
    """
    if out.exists() and not out.is_dir():
        raise UserError("is a file", "name a folder with --out", file=out)
    if not out.exists() or not any(p.name != LOCK for p in out.iterdir()):
        return
    if not (out / STUDY).is_file():
        raise UserError(f"holds files but no study (no {STUDY})", "choose another --out", file=out)
    try:
        there = yaml.safe_load((out / STUDY).read_text(encoding="utf-8"))
        name, quick = there["name"], there["ran_quick"]
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError):
        raise UserError("is not a study's", "choose another --out", file=out / STUDY) from None
    if name != work.study.name:
        raise UserError(f"holds the study {name!r}", "choose another --out", file=out)
    if work.quick and not quick:
        raise UserError("holds the full study", "choose another --out for --quick", file=out)


def study(
    work: Plan, out: Path, console: Console, threads: int = 1
) -> tuple[dict[str, Any], dict[Task, BaseException]]:
    """Runs what is not finished and writes the study's folder; returns the summary and what failed cells raised.

    Raises:
        UserError: no cell succeeded, a folder that cannot be used, or a cell that was made from other files.
        Interrupted: SIGINT or SIGTERM; finished cells are kept.
    """
    check_out(out, work)
    with locked(out):
        work.folder.mkdir(parents=True, exist_ok=True)
        body = {**work.study.model_dump(mode="json"), "ran_quick": work.quick}
        write_text(out / STUDY, yaml.safe_dump(body, sort_keys=False, allow_unicode=True))
        _check_sources(work, _finished(work))
        failures = _run(work, out, console, threads)
        log_failures(out / FAILURES, failures)
        known = _finished(work)
        if not known:
            raise next(iter(failures.values()))
        return _write(work, out, known, failures), failures


def _finished(work: Plan) -> dict[str, Finished]:
    """The study's finished cells, by address."""
    addresses = {c.address: c.file(work.folder) for c in work.cells}
    return {a: f for a, path in addresses.items() if (f := read_cell(path)) is not None}


def _check_sources(work: Plan, known: Mapping[str, Finished]) -> None:
    """Raises `UserError` where a finished cell was made from files with another content."""
    now: dict[str, dict[str, str]] = {}
    for cell in work.cells:
        if (found := known.get(cell.address)) is not None and found.sources:
            key = cell.config.model_dump_json(include={"data", "backbone", "output"})
            if key not in now:
                now[key] = of_files(cell.config)
            check(found.sources, now[key], cell.file(work.folder))


def _run(work: Plan, out: Path, console: Console, threads: int) -> dict[Task, BaseException]:
    """Computes features, then runs the cells; features that cannot be had fail their cells."""
    todo = list({c.address: c for c in work.cells if c.address in work.todo}.values())
    errors = _encode(todo)
    tasks, failures = [], {}
    for cell in todo:
        seconds, text = work.todo[cell.address], cell.config.model_dump_json()
        task = Task(str(cell), text, cell.cell, cell.file(work.folder), True, seconds)
        if (error := errors.get(_features_key(cell))) is None:
            tasks.append(task)
        else:
            failures[task] = error
    remedy = f"finished cells are kept in {work.folder}; run the same command again"
    return failures | run_tasks(tasks, console, remedy, work.jobs, threads)


def _encode(cells: Sequence[StudyCell]) -> dict[tuple[str, str], UserError]:
    """Caches the cells' features, in one pass per data and model; returns what went wrong, by `_features_key`."""
    passes: dict[str, dict[tuple[str, str], ExperimentConfig]] = {}
    for cell in cells:
        key = _features_key(cell)
        passes.setdefault(key[0], {}).setdefault(key, cell.config)
    errors: dict[tuple[str, str], UserError] = {}
    for configs in passes.values():
        try:
            errors |= warm(configs, load_preferences(next(iter(configs.values()))))
        except UserError as e:
            errors |= dict.fromkeys(configs, e)
    return errors


def _features_key(cell: StudyCell) -> tuple[str, str]:
    """What decides which pairs are encoded, by which model and where; and which of its layers is pooled how."""
    config = cell.config.model_dump(mode="json")
    backbone = config["backbone"]
    view = [backbone.pop(k) for k in ("layer", "pooling")]
    data = {k: config["data"][k] for k in ("name", "path", "subsets", "groups")}
    users = config["federation"] if data["name"] in PEOPLE_SOURCES else None
    return json.dumps([data, backbone, config["federation"]["device"], users]), json.dumps(view)


def _write(
    work: Plan, out: Path, known: Mapping[str, Finished], failures: Mapping[Task, BaseException]
) -> dict[str, Any]:
    """The tidy table, the summary and the figures; the summary last."""
    found, used = [], []
    for cell in work.cells:
        if (finished := known.get(cell.address)) is not None:
            size = cell.config.federation.context_pairs
            found += tidy.records(cell.settings, finished.rows, finished.scores, finished.pool, size)
            used.append(finished)
    resamples = work.cells[0].config.evaluation.bootstrap
    try:
        shown = summarise_study(work.study, found, resamples)
    except ValueError as e:
        raise UserError(str(e), "say which in where, rows, columns or each", file=work.source) from None
    settings = list(work.cells[0].settings)
    rows = [plain(r.row) for r in found]
    _write_parquet(out / TABLE, [tidy.flat(r) for r in rows], settings)
    provenance = _provenance(work, used)
    body = {"provenance": provenance, "rows": rows, "summary": tidy.summaries(found, settings, resamples)}
    write_text(out / ROWS, json.dumps(plain(body), allow_nan=False) + "\n")
    figures = [f for f in shown["figures"] if f["points"]]
    for figure in figures:
        write_text(out / f"{figure['name']}.svg", study_figure(figure, work.study.names, work.study.name))
    summary = {
        "study": work.study.model_dump(mode="json", include={"name", "title", "claim", "names"}),
        "quick": work.quick,
        "cells": {
            "planned": len({c.address for c in work.cells}),
            "finished": len(known),
            "failed": [task.label for task in failures],
        },
        "provenance": provenance,
        "notes": list(dict.fromkeys(n for f in used for n in f.notes)),
        **shown,
    }
    text = json.dumps(_rounded(plain(summary)), indent=1, ensure_ascii=False, allow_nan=False)
    write_text(out / SUMMARY, text + "\n")
    return summary


def _write_parquet(path: Path, rows: Sequence[Mapping[str, Any]], settings: Sequence[str]) -> None:
    """One column per key of any row; a setting whose values are of several kinds becomes text."""
    columns: dict[str, list[Any]] = {}
    for key in dict.fromkeys(k for r in rows for k in r):
        values = [r.get(key) for r in rows]
        mixed = key in settings and len({type(v) for v in values if v is not None}) > 1
        columns[key] = [None if v is None else str(v) for v in values] if mixed else values
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    write_bytes(path, sink.getvalue().to_pybytes())


def _provenance(work: Plan, used: Sequence[Finished]) -> dict[str, Any]:
    """Command, seeds, and of the cells: commits, hardware, versions and dates."""

    def several(key: str) -> list[str]:
        return sorted({str(f.environment[key]) for f in used})

    versions = ("fedvpa", "python", "torch", "transformers")
    quick = " --quick" if work.quick else ""
    return {
        "command": f"fedvpa study {work.source}{work.options}{quick} --out DIR",
        "seeds": sorted({c.cell.seed for c in work.cells}),
        "commits": several("commit"),
        "hardware": several("processor"),
        "cores": several("cores"),
        "platform": several("platform"),
        "dates": several("date"),
        "features": sorted({str(f.environment.get("features", "unknown")) for f in used}),
        "versions": {name: several(name) for name in versions},
        "core_seconds": round(sum(f.seconds for f in used)),
    }


def _rounded(value: Any) -> Any:
    """Numbers with six decimals: what is below is noise, and files in a repository are read."""
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    return round(value, 6) if isinstance(value, float) else value

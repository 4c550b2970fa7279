"""`fedvpa demo`: methods on real people, known and new items, in one table with its verdict and one pair that flips."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from fedvpa.apps import comparing, runs, training
from fedvpa.apps.cells import Cell, Finished, read_cell
from fedvpa.apps.runs import RunFolder, check_folder
from fedvpa.config import ExperimentConfig
from fedvpa.errors import UserError
from fedvpa.evaluation.compare import Floats, PairScores, people_difference
from fedvpa.evaluation.flips import find_flips
from fedvpa.selector import Selector

OURS, COMMON = "fedvpa-laplace", "fedbt"
SIZES = (0, 2, 8, 32)
"""Answers of an unseen person that are shown."""
QUERIES = ("known-items", "new-items")


def demo(
    config: ExperimentConfig,
    out: Path,
    console: Console,
    methods: Sequence[str],
    overwrite: bool = False,
    jobs: int | None = None,
) -> dict[str, Any]:
    """Compares methods on unseen people, twice; what is finished in the folder is not run again.

    Args:
        config: of people's data; its context sizes and `evaluation.queries` are replaced.
        out: gets a run folder per way to ask.
        methods: compared, in the order of the table; `OURS` and `COMMON` always are.

    Returns:
        ``sizes``; ``asked``, per way to ask: ``queries``, ``people``, ``pairs``, ``accuracy`` (method to one per size),
        and ``paired`` (`OURS` against the best other method and against `COMMON`, at the largest size); ``flips``, see
        `find_flips`; ``notes`` of the data; ``selector``, the folder of the one that the flips are of; ``reports``,
        paths.

    Raises:
        UserError: bad data, or a folder with other runs.
        Interrupted: SIGINT or SIGTERM; what is finished is kept.
    """
    methods = tuple(dict.fromkeys((COMMON, *methods, OURS)))
    asked = {q: _asking(config, q) for q in QUERIES}
    folders = {q: _folder(out / q, c, overwrite) for q, c in asked.items()}
    results = {}
    for q, settings in asked.items():
        console.print(f"{q}: {', '.join(methods)}", highlight=False)
        outcome = comparing.compare(settings, methods, 1, folders[q], console, jobs, keep=(OURS,))
        if outcome.failures:
            raise next(iter(outcome.failures.values()))
        results[q] = outcome.results
    selector = comparing.selector_folder(folders[QUERIES[0]].path, Cell(OURS, config.seed))
    found = {q: _cells(folders[q].path, methods, config.seed) for q in QUERIES}
    return {
        "sizes": SIZES,
        "asked": [_measured(q, cells, config) for q, cells in found.items()],
        "flips": _flips(asked[QUERIES[0]].for_method(OURS), selector),
        "notes": results[QUERIES[0]]["notes"],
        "selector": str(selector),
        "reports": [str(f.path / runs.REPORT) for f in folders.values()],
    }


def _asking(config: ExperimentConfig, queries: str) -> ExperimentConfig:
    """With fewer context sizes and, while training, fewer looks at the validation people; training is the same."""
    every = max(config.evaluation.every, config.federation.rounds // 5)
    tree, evaluation = config.model_dump(mode="json"), {"queries": queries, "context_sizes": SIZES, "every": every}
    return ExperimentConfig.model_validate({**tree, "evaluation": {**tree["evaluation"], **evaluation}})


def _folder(path: Path, config: ExperimentConfig, overwrite: bool) -> RunFolder:
    there = (path / runs.CONFIG).is_file()
    return check_folder(path, config, "compare", overwrite, resume=there and not overwrite)


def _cells(folder: Path, methods: Sequence[str], seed: int) -> dict[str, Finished]:
    found = {m: read_cell(Cell(m, seed).file(folder / runs.CELLS)) for m in methods}
    return {m: cell for m, cell in found.items() if cell is not None}


def _measured(queries: str, cells: dict[str, Finished], config: ExperimentConfig) -> dict[str, Any]:
    """The numbers of one way to ask, of unseen people under each method's default inference."""
    accuracy = {m: [float(c.rows[_place(c, size)]["accuracy"]) for size in SIZES] for m, c in cells.items()}
    last = {m: c.scores[_place(c, SIZES[-1])] for m, c in cells.items()}
    best = max((m for m in cells if m != OURS), key=lambda m: accuracy[m][-1])
    ours = _people(last[OURS])
    paired = [
        {"method": m, **people_difference(ours, _people(last[m]), config.evaluation.bootstrap, config.seed)}
        for m in dict.fromkeys((best, COMMON))
    ]
    return {
        "queries": queries,
        "people": len(ours),
        "pairs": int((last[OURS].weight > 0).sum()),
        "accuracy": accuracy,
        "paired": paired,
    }


def _place(cell: Finished, size: int) -> int:
    """Which row of a cell is that of unseen people at a context size; without a context one row serves for all."""
    for i, row in enumerate(cell.rows):
        if row["population"] == "unseen" and row["default"] and row["context_size"] in (size, None):
            return i
    remedy = "give 20 people or more, each with agreements and disagreements"
    raise UserError("nobody is held out whose answers could be predicted", remedy, field="data")


def _people(scores: PairScores) -> Floats:
    if scores.people is None:
        raise UserError("its cells are of an older version", "run again with --overwrite", field="--out")
    return scores.people


def _flips(config: ExperimentConfig, folder: Path) -> dict[str, Any]:
    prepared, _ = training.load(config)
    selector = Selector.from_pretrained(folder, cache=True)
    predictor, how = selector.predictor(prepared.pool), selector.inference_for(SIZES[-1])
    return find_flips(predictor, prepared.panels["unseen"], prepared.data.pairs, SIZES[-1], how)

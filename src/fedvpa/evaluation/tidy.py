"""A study's rows in one table: settings as columns, and what is said of any part of it, always with an interval.

Means and differences of accuracies come from `compare.summarise`, which resamples seeds and test pairs; other metrics
have one value per seed, and Student's interval and test (`compare.seed_interval`, `compare.seed_p`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedvpa.evaluation.compare import PairScores, seed_interval, seed_p, summarise
from fedvpa.evaluation.results import METRICS
from fedvpa.evaluation.study_schema import DEFAULT, Where

Row = Mapping[str, Any]
MAIN = "main"
"""As a context size: the setting's own, or none where the method uses none."""
SHOWN: Where = {"population": "unseen", "context_size": MAIN, "inference": DEFAULT}
"""What a table, a figure or a check is about where it does not say otherwise."""


@dataclass(frozen=True)
class Record:
    """A row of the tidy table.

    Attributes:
        row: the settings and a row of ``results.json``; ``main`` is true at the setting's own context size.
        score: what each test pair adds to its accuracy; pool: digest of the pairs that it refers to.
    """

    row: dict[str, Any]
    score: PairScores | None
    pool: str


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds, or a paired difference, with its 95 % interval (None where nothing varies).

    Attributes:
        p: of no difference; None for a mean.
    """

    mean: float
    low: float | None
    high: float | None
    seeds: int
    p: float | None = None


def records(
    settings: Mapping[str, Any], rows: Sequence[Row], scores: Sequence[PairScores], pool: str, context_pairs: int
) -> list[Record]:
    """The tidy rows of one finished cell.

    Args:
        context_pairs: the setting's own context size; the largest evaluated one that does not exceed it is ``main``.
    """
    sizes = [r["context_size"] for r in rows if r["context_size"] is not None and r["context_size"] <= context_pairs]
    main = max(sizes, default=None)
    return [
        Record({**settings, **r, "main": r["context_size"] in (main, None)}, s, pool)
        for r, s in zip(rows, scores, strict=True)
    ]


def value(row: Row, metric: str) -> float | None:
    """A metric of a row; ``group_accuracy/NAME`` is a group's."""
    name, _, group = metric.partition("/")
    found = row.get(name)
    return (found or {}).get(group) if group else found


def select(found: Iterable[Record], where: Where) -> list[Record]:
    """The records whose row has the wanted values; see `SHOWN` for the special ones.

    A method that uses no context, or infers nothing, is there for every context size and inference.
    """
    return [r for r in found if all(_fits(r.row, k, v) for k, v in where.items())]


def _fits(row: Row, dimension: str, wanted: Any) -> bool:
    if isinstance(wanted, (list, tuple)):
        return any(_fits(row, dimension, w) for w in wanted)
    if dimension == "context_size":
        return bool(row["main"]) if wanted == MAIN else row["context_size"] in (wanted, None)
    if dimension == "inference":
        return bool(row["default"]) if wanted == DEFAULT else row["inference"] in (wanted, "none")
    return bool(row.get(dimension) == wanted)


def shown(where: Where, dimensions: Iterable[str]) -> Where:
    """`where` with `SHOWN` for what neither it nor `dimensions` mention."""
    named = {*where, *dimensions}
    return {**{k: v for k, v in SHOWN.items() if k not in named}, **where}


def combinations(found: Iterable[Record], dimensions: Sequence[str]) -> list[dict[str, Any]]:
    """The values of the dimensions that occur together, in the order of the records."""
    keys = [tuple(r.row.get(d) for d in dimensions) for r in found]
    return [dict(zip(dimensions, key, strict=True)) for key in dict.fromkeys(keys)]


def estimate(found: Sequence[Record], metric: str, resamples: int) -> Estimate | None:
    """The mean over seeds of a metric; None without a value.

    Raises:
        ValueError: several rows of one seed, so that the selection leaves open which one is meant.
    """
    found = _by_seed(found, metric)
    if not found:
        return None
    if metric == "accuracy":
        (entry,) = summarise([_alias(r, "it") for r in found], _scores(found), resamples=resamples)
        return Estimate(entry["mean"], entry["ci_low"], entry["ci_high"], entry["seeds"])
    values = np.array([value(r.row, metric) for r in found], dtype=float)
    return Estimate(float(values.mean()), *seed_interval(values), len(values))


def contrast(left: Sequence[Record], right: Sequence[Record], metric: str, resamples: int) -> Estimate | None:
    """The mean over their common seeds of left minus right; None without a common seed.

    Raises:
        ValueError: see `estimate`.
    """
    sides = [{r.row["seed"]: r for r in _by_seed(side, metric)} for side in (left, right)]
    seeds = sorted(sides[0].keys() & sides[1].keys())
    if not seeds:
        return None
    couples = [[side[s] for s in seeds] for side in sides]
    if metric == "accuracy":
        both = [*couples[0], *couples[1]]
        rows = [_alias(r, name) for name, side in zip(("left", "right"), couples, strict=True) for r in side]
        entries = summarise(rows, _scores(both), reference="right", resamples=resamples)
        for found in entries[0]["paired"]:
            return Estimate(found["difference"], found["ci_low"], found["ci_high"], found["seeds"], found["p"])
    a, b = (np.array([value(r.row, metric) for r in side], dtype=float) for side in couples)
    return Estimate(float((a - b).mean()), *seed_interval(a - b), len(seeds), seed_p(a - b))


def flat(row: Row) -> dict[str, Any]:
    """A tidy row with a column per group, as the Parquet file has it."""
    groups = {f"group_accuracy/{g}": v for g, v in (row.get("group_accuracy") or {}).items()}
    return {k: v for k, v in row.items() if k != "group_accuracy"} | groups


def summaries(found: Sequence[Record], settings: Sequence[str], resamples: int) -> list[dict[str, Any]]:
    """`summarise` of each setting, with its settings: every method, population, inference and context size."""
    out = []
    for setting in combinations(found, settings):
        mine = select(found, setting)
        entries = summarise([r.row for r in mine], _scores(mine), resamples=resamples)
        out += [{**setting, **entry} for entry in entries]
    return out


def _by_seed(found: Sequence[Record], metric: str) -> list[Record]:
    found = sorted((r for r in found if value(r.row, metric) is not None), key=lambda r: r.row["seed"])
    for a, b in itertools.pairwise(found):
        if a.row["seed"] == b.row["seed"]:
            measured = {"accuracy", "group_accuracy", "default", "main", *METRICS}
            differ = [k for k in a.row if k not in measured and a.row[k] != b.row.get(k)]
            raise ValueError(f"several rows of seed {a.row['seed']}; they differ in {', '.join(differ)}")
    return found


def _scores(found: Sequence[Record]) -> list[PairScores | None]:
    """The pair scores, where all records are of the same pool: else a pair's number means different pairs."""
    same = len({r.pool for r in found}) == 1
    return [r.score if same else None for r in found]


def _alias(record: Record, method: str) -> dict[str, Any]:
    """A row under another name, so that `summarise` compares whatever is to be compared."""
    return {**record.row, "method": method, "inference": "none", "default": True, "context_size": None}

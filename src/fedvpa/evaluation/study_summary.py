"""What is shown of a study, as plain data: the points of its tables and figures, and its checks.

Tables, figures and the benchmark page are drawn from this alone, so each number that they show is in the summary file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fedvpa.evaluation.claims import enough_draws, examine
from fedvpa.evaluation.compare import holm
from fedvpa.evaluation.study_schema import Figure, Study, Table
from fedvpa.evaluation.tidy import Estimate, Record, combinations, contrast, estimate, select, shown


def summarise_study(study: Study, found: Sequence[Record], resamples: int) -> dict[str, Any]:
    """Tables, figures and checks of a study.

    Raises:
        ValueError: a table, a figure or a check leaves open which row is meant.
    """
    return {
        "tables": [_item(t, t.metrics, found, resamples) for t in study.tables],
        "figures": [_item(f, f.shown_metrics, found, resamples) for f in study.figures],
        "checks": [examine(c, found, resamples) for c in study.checks],
    }


def _item(item: Table | Figure, metrics: Sequence[str], found: Sequence[Record], resamples: int) -> dict[str, Any]:
    points = [p for metric in metrics for p in _points(item, metric, found, resamples)]
    return {**item.model_dump(mode="json"), "points": points}


def _points(item: Table | Figure, metric: str, found: Sequence[Record], resamples: int) -> list[dict[str, Any]]:
    """The values (or differences, Holm-corrected over all of them) at every combination of the dimensions."""
    where = shown(item.where, item.dimensions())
    settings = combinations(select(found, where), item.dimensions())
    if item.difference:
        settings = [s for s in settings if any(s.get(k) != v for k, v in item.difference.items())]
        resamples = enough_draws(resamples, len(settings))
    points: list[tuple[dict[str, Any], Estimate]] = []
    for setting in settings:
        own = select(found, {**where, **setting})
        if item.difference:
            other = select(found, {**where, **setting, **item.difference})
            result = contrast(own, other, metric, resamples)
        else:
            result = estimate(own, metric, resamples)
        if result is not None:
            points.append((setting, result))
    adjusted = iter(holm([e.p for _, e in points if e.p is not None]))
    points = [(s, e if e.p is None else replace(e, p=next(adjusted))) for s, e in points]
    return [
        {"at": s, "metric": metric, "mean": e.mean, "ci_low": e.low, "ci_high": e.high, "seeds": e.seeds, "p_holm": e.p}
        for s, e in points
    ]

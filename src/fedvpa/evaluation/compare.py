"""Statistics of a comparison: bootstrap intervals over seeds and test pairs, paired differences, Holm's correction.

Two things vary when an experiment is repeated: the seed (data partition, initialisation, client sampling) and the test
pairs. Each resample therefore draws both with replacement. All methods share the resamples, so that a difference
between two methods is paired: the same seeds and the same pairs on both sides.

Of metrics other than accuracy there is one value per seed and nothing else to resample. Three to five values
resampled give intervals that are far too narrow, so theirs are Student's (`seed_interval`, `seed_p`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from fedvpa.evaluation.results import METRICS

Floats = NDArray[np.float64]
LEVEL = 0.95
_CHUNK_CELLS = 4_000_000  # resamples x pairs held at a time, 32 MB


@dataclass(frozen=True)
class PairScores:
    """How much each pair of the test pool adds to one row's accuracy.

    Attributes:
        weight: (P,) sum over clients i of 1 / (Q_i N), Q_i the client's query pairs and N the clients.
        correct: (P,) sum over clients of correct_ip / (Q_i N). Row p means the same pair in every seed and method.
        people: (N,) accuracy of each client; None where it was not kept. Client i is the same in every method.
    """

    weight: Floats
    correct: Floats
    people: Floats | None = None

    @property
    def accuracy(self) -> float:
        """Mean over clients of their share of correct predictions."""
        return float(self.correct.sum() / self.weight.sum())


def summarise(
    rows: Sequence[Mapping[str, Any]],
    pair_scores: Sequence[PairScores | None],
    *,
    reference: str | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """The summary of a comparison, as ``results.json`` holds it.

    Args:
        rows: rows as `fedvpa.evaluation.results.Row` describes them.
        pair_scores: one per row; None where there are none, then only seeds are resampled.
        reference: the method that others are compared with; by default ``fedvpa-gp``, or the first method.
        resamples: bootstrap resamples B.
        seed: seeds the resampling.

    Returns:
        Entries as `fedvpa.evaluation.results.Summary` describes them, in the order of the rows.
    """
    if len(rows) != len(pair_scores):
        raise ValueError(f"{len(rows)} rows with {len(pair_scores)} pair scores")
    if not rows:
        return []
    bootstrap = _Bootstrap(rows, pair_scores, resamples, seed)
    entries = [_entry(rows, members, inference, default, bootstrap) for members, inference, default in _groups(rows)]
    _add_paired(entries, rows, bootstrap, reference)
    return entries


def resample_accuracy(scores: Sequence[PairScores], resamples: int, rng: np.random.Generator) -> Floats:
    """Accuracies under resampled test pairs.

    Args:
        scores: n scores over the same pool of P pairs; pairs without weight in any of them are not resampled.
        resamples: B.
        rng: source of randomness; one draw of pairs serves all scores.

    Returns:
        (B, n) accuracies; NaN where a resample holds none of a row's pairs.
    """
    used = np.any([s.weight > 0 for s in scores], axis=0)
    pairs = int(used.sum())
    correct = np.stack([s.correct[used] for s in scores])
    distinct: dict[bytes, int] = {}
    column = [distinct.setdefault(s.weight[used].tobytes(), len(distinct)) for s in scores]
    weight = np.stack([np.frombuffer(w) for w in distinct])
    out = np.empty((resamples, len(scores)))
    step = max(1, _CHUNK_CELLS // pairs)
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        cells = rng.integers(0, pairs, (size, pairs)) + pairs * np.arange(size)[:, None]
        counts = np.bincount(cells.ravel(), minlength=size * pairs).reshape(size, pairs).astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            out[start : start + size] = (counts @ correct.T) / (counts @ weight.T)[:, column]
    return np.round(out, 12)  # equal hits are equal draws, whatever order BLAS sums in


def people_difference(left: Floats, right: Floats, resamples: int, seed: int) -> dict[str, float]:
    """The difference of two methods' mean accuracy, with people resampled, as one person's queries hang together.

    Args:
        left, right: (N,) accuracy of each person under either method.
        resamples: bootstrap resamples B; seed: of the resampling.

    Returns:
        difference, ci_low and ci_high (95 %, percentiles), and p (two-sided, see `bootstrap_p`).
    """
    d = left - right
    drawn = np.random.default_rng(seed).integers(0, len(d), (resamples, len(d)))
    draws = d[drawn].mean(1)
    low, high = percentile_interval(draws)
    return {"difference": float(d.mean()), "ci_low": low, "ci_high": high, "p": bootstrap_p(np.round(draws, 12))}


def percentile_interval(draws: Floats, level: float = LEVEL) -> tuple[float, float]:
    """The percentile bootstrap interval of (B,) resampled statistics."""
    low, high = np.nanquantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def seed_interval(values: Floats, level: float = LEVEL) -> tuple[float | None, float | None]:
    """Student's interval for the mean of (S,) values, one per seed; None for fewer than two."""
    if len(values) < 2:
        return None, None
    half = float(stats.t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return float(values.mean()) - half, float(values.mean()) + half


def seed_p(differences: Floats) -> float | None:
    """Two-sided p-value of Student's paired test of "no difference" from (S,) differences, one per seed.

    None for fewer than two; 1 where all are zero.
    """
    if len(differences) < 2:
        return None
    if not differences.std():
        return 1.0 if not differences.any() else 0.0
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def bootstrap_p(differences: Floats) -> float:
    """Two-sided bootstrap p-value of "no difference", never below 2 / (B + 1).

    Args:
        differences: (B,) resampled differences. Ties with zero count for both sides.
    """
    d = differences[~np.isnan(differences)]
    smaller = min(int((d <= 0).sum()), int((d >= 0).sum()))
    return min(1.0, 2 * (smaller + 1) / (len(d) + 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given (Holm 1979)."""
    order = np.argsort(p_values, kind="stable")
    n, running = len(p_values), 0.0
    adjusted = [0.0] * n
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (n - rank) * p_values[i]))
        adjusted[i] = running
    return adjusted


class _Bootstrap:
    """The resamples that all rows share.

    Attributes:
        accuracy: row index -> (B,) accuracies under resampled pairs.
        pairs: row index -> number of resampled pairs, or None where the row has no pair scores.
    """

    def __init__(
        self, rows: Sequence[Mapping[str, Any]], scores: Sequence[PairScores | None], resamples: int, seed: int
    ) -> None:
        self.resamples, self.seed = resamples, seed
        self.accuracy: dict[int, Floats] = {}
        self.pairs: dict[int, int | None] = {}
        self._seed_shares: dict[tuple[int, ...], Floats] = {}
        for number, population in enumerate(sorted({r["population"] for r in rows})):
            members = [i for i, r in enumerate(rows) if r["population"] == population]
            scored = [(i, s) for i in members if (s := scores[i]) is not None]
            for i in members:
                self.accuracy[i], self.pairs[i] = np.full(resamples, float(rows[i]["accuracy"])), None
            if scored:
                draws = resample_accuracy([s for _, s in scored], resamples, np.random.default_rng([seed, 0, number]))
                for column, (i, s) in enumerate(scored):
                    self.accuracy[i], self.pairs[i] = draws[:, column], int((s.weight > 0).sum())

    def seed_shares(self, seeds: tuple[int, ...]) -> Floats:
        """(B, S) share of each seed in each resample; the same whenever the same seeds are asked for."""
        if seeds not in self._seed_shares:
            rng = np.random.default_rng([self.seed, 1, *seeds])
            even = np.full(len(seeds), 1 / len(seeds))
            self._seed_shares[seeds] = rng.multinomial(len(seeds), even, self.resamples) / len(seeds)
        return self._seed_shares[seeds]


def _groups(rows: Sequence[Mapping[str, Any]]) -> list[tuple[list[int], str, bool]]:
    """Row indices of each summary entry, with its inference and whether it is the default."""
    cells: dict[tuple[Any, ...], dict[str, list[int]]] = {}
    for i, r in enumerate(rows):
        cell = cells.setdefault((r["method"], r["population"], r["context_size"]), {})
        cell.setdefault(r["inference"], []).append(i)
    out = []
    for cell in cells.values():
        chosen = sorted(
            (i for members in cell.values() for i in members if rows[i]["default"]), key=lambda i: rows[i]["seed"]
        )
        kinds = {rows[i]["inference"] for i in chosen}
        for inference, members in cell.items():
            out.append((sorted(members, key=lambda i: rows[i]["seed"]), inference, kinds == {inference}))
        if len(kinds) > 1:
            out.append((chosen, "varies", True))
    return out


def _entry(
    rows: Sequence[Mapping[str, Any]], members: list[int], inference: str, default: bool, bootstrap: _Bootstrap
) -> dict[str, Any]:
    first, seeds = rows[members[0]], tuple(rows[i]["seed"] for i in members)
    pairs = [p for i in members if (p := bootstrap.pairs[i]) is not None]
    low: float | None = None
    high: float | None = None
    if len(seeds) > 1 or pairs:
        accuracies = np.stack([bootstrap.accuracy[i] for i in members], axis=1)
        low, high = percentile_interval((accuracies * bootstrap.seed_shares(seeds)).sum(1))
    return {
        "method": first["method"],
        "population": first["population"],
        "inference": inference,
        "default": default,
        "context_size": first["context_size"],
        "seeds": len(seeds),
        "pairs": max(pairs) if pairs else None,
        "mean": float(np.mean([rows[i]["accuracy"] for i in members])),
        "ci_low": low,
        "ci_high": high,
        "metrics": _metrics([rows[i] for i in members]),
        "paired": [],
    }


def _metrics(rows: list[Mapping[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Mean and seed interval of every metric other than accuracy that has a value in some seed."""
    values: dict[str, list[float]] = {}
    for r in rows:
        groups = {f"group_accuracy/{g}": v for g, v in (r.get("group_accuracy") or {}).items()}
        for name, value in ({k: r.get(k) for k in METRICS} | groups).items():
            if value is not None and np.isfinite(value):
                values.setdefault(name, []).append(float(value))
    out: dict[str, dict[str, float | None]] = {}
    for name, found in values.items():
        x = np.array(found)
        interval = seed_interval(x)
        out[name] = {"mean": float(x.mean()), "ci_low": interval[0], "ci_high": interval[1]}
    return out


def _add_paired(
    entries: list[dict[str, Any]], rows: Sequence[Mapping[str, Any]], bootstrap: _Bootstrap, reference: str | None
) -> None:
    """Adds to each default entry its differences to the reference, Holm-corrected per population and context size."""
    chosen: dict[tuple[Any, ...], dict[int, int]] = {}  # (method, population, context size) -> seed -> row
    for i, r in enumerate(rows):
        if r["default"]:
            chosen.setdefault((r["method"], r["population"], r["context_size"]), {})[r["seed"]] = i
    methods = list(dict.fromkeys(r["method"] for r in rows))
    if reference is None:
        reference = "fedvpa-gp" if "fedvpa-gp" in methods else methods[0]
    families: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for entry in entries:
        if not entry["default"] or entry["method"] == reference:
            continue
        population, own_size = entry["population"], entry["context_size"]
        reference_sizes = [size for m, p, size in chosen if m == reference and p == population]
        for size in reference_sizes:
            if own_size is not None and size is not None and size != own_size:
                continue
            left = chosen[entry["method"], population, own_size]
            right = chosen[reference, population, size]
            common = tuple(sorted(left.keys() & right.keys()))
            scored = all(bootstrap.pairs[i] is not None for s in common for i in (left[s], right[s]))
            if len(common) > 1 or (common and scored):  # else nothing varies, and there is no interval
                label = own_size if size is None else size
                difference = _difference(rows, [(left[s], right[s]) for s in common], common, bootstrap)
                paired = {"reference": reference, "context_size": label, **difference, "seeds": len(common)}
                entry["paired"].append(paired)
                families.setdefault((population, label), []).append(paired)
    for family in families.values():
        for paired, p in zip(family, holm([f["p"] for f in family]), strict=True):
            paired["p_holm"] = p


def _difference(
    rows: Sequence[Mapping[str, Any]], couples: list[tuple[int, int]], seeds: tuple[int, ...], bootstrap: _Bootstrap
) -> dict[str, float]:
    draws = np.stack([bootstrap.accuracy[a] - bootstrap.accuracy[b] for a, b in couples], axis=1)  # (B, S)
    draws = (draws * bootstrap.seed_shares(seeds)).sum(1)
    low, high = percentile_interval(draws)
    mean = float(np.mean([rows[a]["accuracy"] - rows[b]["accuracy"] for a, b in couples]))
    return {"difference": mean, "ci_low": low, "ci_high": high, "p": bootstrap_p(draws), "p_holm": 1.0}

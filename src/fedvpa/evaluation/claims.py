"""Whether a claim holds, by rule: every word of a verdict comes from intervals, none is typed.

A check names a quantity (a mean, or a paired difference) and the range in which it must lie. Each of its tests passes
if the whole 95 % interval lies in the range, fails if the whole interval lies outside, and is open otherwise. To show a
difference from zero, or to fail, a difference must also be significant after Holm's correction over the check's tests.
Where a claim says that something is *not* so ("nowhere worse"), an open test counts for it (``burden: not refuted``).
The claim *holds* if every test passes, holds *partly* if some do, and does *not* hold if none passes and
some fail; if all are open it is neither shown nor refuted. One that passes only since nothing speaks against it is *not
refuted*.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from fedvpa.evaluation.compare import LEVEL, holm
from fedvpa.evaluation.study_schema import Check, Where
from fedvpa.evaluation.tidy import Estimate, Record, combinations, contrast, estimate, select, shown

Verdict = Literal["holds", "unrefuted", "partly", "not", "open", "untested"]
Outcome = Literal["pass", "fail", "open"]
DRAWS = 20_000
"""Resamples of a difference, at least."""


def examine(check: Check, found: Sequence[Record], resamples: int) -> dict[str, Any]:
    """Runs a check's tests; returns what the summary file holds of it.

    A test for which a side is missing (a cell that failed or was not run) is left out and counted in ``missing``.
    """
    where = shown(check.where, check.each)
    sides = [(c, r) for c in combinations(select(found, where), check.each) for r in _subtracted(check.minus)]
    draws = enough_draws(resamples, len(sides))
    tests = []
    for setting, minus in sides:
        left = select(found, {**where, **setting})
        if minus is None:
            result = estimate(left, check.metric, draws)
        else:
            result = contrast(left, select(found, {**where, **setting, **minus}), check.metric, draws)
        if result is not None:
            tests.append((setting, minus, result))
    adjusted = iter(holm([e.p for *_, e in tests if e.p is not None]))
    out = []
    for setting, minus, e in tests:
        p = None if e.p is None else next(adjusted)
        test = {"setting": setting, "minus": minus, "mean": e.mean, "ci_low": e.low, "ci_high": e.high}
        out.append({**test, "seeds": e.seeds, "p_holm": p, "outcome": outcome(check, e, p)})
    examined = {**check.model_dump(mode="json"), "tests": out, "missing": len(sides) - len(tests)}
    return {**examined, "verdict": verdict(examined)}


def enough_draws(resamples: int, tests: int) -> int:
    """Resamples with which a p-value near 0.05 / `tests` rests on more than a dozen of them."""
    return max(resamples, DRAWS, 1000 * tests)


def _subtracted(minus: Where) -> list[Where | None]:
    """The right-hand sides: every combination of the values in lists; None where nothing is subtracted."""
    if not minus:
        return [None]
    values = [v if isinstance(v, list) else [v] for v in minus.values()]
    return [dict(zip(minus, combo, strict=True)) for combo in itertools.product(*values)]


def outcome(check: Check, e: Estimate, p_holm: float | None) -> Outcome:
    """Pass, fail or open, from the interval (and, for differences, from Holm's adjusted p)."""
    undecided: Outcome = "pass" if check.burden == "not refuted" else "open"
    if e.low is None or e.high is None:
        return "open"
    low, high = _range(check.at_least, check.at_most)
    significant = not check.minus or (p_holm is not None and p_holm <= 1 - LEVEL)
    if low <= e.low and e.high <= high and (significant or 0 not in (low, high)):
        return "pass"
    return "fail" if significant and (e.high < low or e.low > high) else undecided


def verdict(found: Mapping[str, Any]) -> Verdict:
    """What the tests say together.

    Args:
        found: a check with its ``tests``, as `examine` makes it and a summary file holds it.
    """
    outcomes = [t["outcome"] for t in found["tests"]]
    if not outcomes:
        return "untested"
    passed = outcomes.count("pass")
    if passed < len(outcomes):
        return "partly" if passed else "not" if "fail" in outcomes else "open"
    low, high = _range(found["at_least"], found["at_most"])
    inside = (t["ci_low"] is not None and low <= t["ci_low"] and t["ci_high"] <= high for t in found["tests"])
    return "holds" if found["burden"] == "shown" or all(inside) else "unrefuted"


def _range(at_least: float | None, at_most: float | None) -> tuple[float, float]:
    return float("-inf") if at_least is None else at_least, float("inf") if at_most is None else at_most

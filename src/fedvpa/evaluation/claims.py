"""Whether a claim holds, by rule: every word of a verdict comes from intervals, none is typed.

A check names a quantity (a mean, or a paired difference) and the range in which it must lie. Each of its tests passes
if the whole 95 % interval lies in the range, fails if the whole interval lies outside, and is open otherwise. To show a
difference from zero, or to fail, a difference must also be significant after Holm's correction over the check's tests.
Where a claim says that something is *not* so ("nowhere worse"), an open test counts for it (``burden: not refuted``).
The claim *holds* if every test passes, holds *partly* if some do, and does *not* hold if none passes and
some fail; if all are open it is neither shown nor refuted.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal

from fedvpa.evaluation.compare import LEVEL, holm
from fedvpa.evaluation.study_schema import Check, Where
from fedvpa.evaluation.tidy import Estimate, Record, combinations, contrast, estimate, select, shown

Verdict = Literal["holds", "partly", "not", "open", "untested"]
Outcome = Literal["pass", "fail", "open"]


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
    out, outcomes = [], []
    for setting, minus, e in tests:
        p = None if e.p is None else next(adjusted)
        outcomes.append(outcome(check, e, p))
        test = {"setting": setting, "minus": minus, "mean": e.mean, "ci_low": e.low, "ci_high": e.high}
        out.append({**test, "seeds": e.seeds, "p_holm": p, "outcome": outcomes[-1]})
    body = check.model_dump(mode="json")
    missing = len(sides) - len(tests)
    return {**body, "tests": out, "missing": missing, "verdict": verdict(outcomes)}


def enough_draws(resamples: int, tests: int) -> int:
    """Resamples with which the smallest bootstrap p-value, 2 / (B + 1), stays well below 0.05 after Holm's factor."""
    return max(resamples, 100 * tests)


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
    low = float("-inf") if check.at_least is None else check.at_least
    high = float("inf") if check.at_most is None else check.at_most
    significant = not check.minus or (p_holm is not None and p_holm <= 1 - LEVEL)
    if low <= e.low and e.high <= high and (significant or 0 not in (low, high)):
        return "pass"
    return "fail" if significant and (e.high < low or e.low > high) else undecided


def verdict(outcomes: Sequence[str]) -> Verdict:
    """What the tests say together."""
    if not outcomes:
        return "untested"
    passed = outcomes.count("pass")
    if passed:
        return "holds" if passed == len(outcomes) else "partly"
    return "not" if "fail" in outcomes else "open"

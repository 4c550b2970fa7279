"""Verdicts by rule, on synthetic rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedvpa.evaluation.claims import examine, outcome, verdict
from fedvpa.evaluation.compare import PairScores
from fedvpa.evaluation.study_schema import Check
from fedvpa.evaluation.tidy import Estimate, Record


def make(method: str, benchmark: str, rate: float, seeds: int = 5, pairs: int = 300, **values: Any) -> list[Record]:
    """Records of a method whose predictions are right with probability `rate`."""
    found = []
    for seed in range(seeds):
        hit = np.random.default_rng([seed, sum(map(ord, method)), len(benchmark)]).random(pairs) < rate
        score = PairScores(np.full(pairs, 1 / pairs), hit / pairs)
        row = {"benchmark": benchmark, "method": method, "seed": seed, "population": "unseen", "inference": "none"}
        row |= {"default": True, "context_size": None, "main": True, "accuracy": score.accuracy, **values}
        found.append(Record(row, score, benchmark))
    return found


def check(**changes: Any) -> Check:
    tree = {"says": "it is so", "where": {"method": "new"}, "minus": {"method": "old"}, "each": ["benchmark"]}
    return Check.model_validate({**tree, "at_least": 0, **changes})


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ({"easy": (0.9, 0.7), "hard": (0.7, 0.5)}, "holds"),
        ({"easy": (0.9, 0.7), "hard": (0.6, 0.6)}, "partly"),
        ({"easy": (0.7, 0.9), "hard": (0.6, 0.6)}, "not"),
    ],
)
def test_a_claim_over_benchmarks(rates: dict[str, tuple[float, float]], expected: str) -> None:
    found = [r for b, (new, old) in rates.items() for r in (*make("new", b, new), *make("old", b, old))]
    result = examine(check(), found, 500)
    assert result["verdict"] == expected
    assert [t["setting"]["benchmark"] for t in result["tests"]] == list(rates)
    for test, (new, old) in zip(result["tests"], rates.values(), strict=True):
        assert test["mean"] == pytest.approx(new - old, abs=0.05)
        assert test["ci_low"] < test["mean"] < test["ci_high"]


def test_a_side_that_is_missing_is_counted_and_nothing_at_all_is_untested() -> None:
    found = [*make("new", "easy", 0.9), *make("old", "easy", 0.7), *make("new", "hard", 0.9)]
    result = examine(check(), found, 300)
    assert (result["verdict"], result["missing"], len(result["tests"])) == ("holds", 1, 1)
    assert examine(check(), make("new", "easy", 0.9), 300)["verdict"] == "untested"


def test_many_tests_keep_enough_resamples_for_holm() -> None:
    found = [r for i in range(40) for r in make("new", "b" * i, 0.95, pairs=60)]
    found += [r for i in range(40) for r in make("old", "b" * i, 0.5, pairs=60)]
    result = examine(check(), found, 100)
    assert result["verdict"] == "holds"
    assert max(t["p_holm"] for t in result["tests"]) <= 0.05


def test_a_list_makes_one_test_each() -> None:
    found = [*make("new", "b", 0.9), *make("old", "b", 0.7), *make("older", "b", 0.6)]
    result = examine(check(minus={"method": ["old", "older"]}), found, 300)
    assert [t["minus"] for t in result["tests"]] == [{"method": "old"}, {"method": "older"}]


def test_a_level_needs_no_second_side_and_works_on_other_metrics() -> None:
    found = [r for s in range(3) for r in make("new", "b", 0.9, seeds=3, active_units=0.02)[s : s + 1]]
    level = check(minus={}, metric="active_units", at_least=None, at_most=0.1)
    result = examine(level, found, 300)
    assert result["verdict"] == "holds"
    assert result["tests"][0]["mean"] == pytest.approx(0.02)
    assert examine(level.model_copy(update={"at_most": 0.01}), found, 300)["verdict"] == "not"


@pytest.mark.parametrize(
    ("low", "high", "p", "changes", "expected"),
    [
        (0.01, 0.05, 0.01, {}, "pass"),
        (0.01, 0.05, 0.2, {}, "open"),  # not after Holm
        (-0.01, 0.05, 0.2, {}, "open"),
        (-0.05, -0.01, 0.01, {}, "fail"),
        (-0.05, -0.01, 0.2, {}, "open"),
        (-0.005, 0.05, 0.9, {"at_least": -0.01}, "pass"),  # not worse by more than 0.01, shown
        (-0.05, 0.05, 0.9, {"at_least": -0.01}, "open"),
        (-0.05, 0.05, 0.9, {"at_least": -0.01, "burden": "not refuted"}, "pass"),
        (-0.05, -0.02, 0.01, {"at_least": -0.01, "burden": "not refuted"}, "fail"),
        (None, None, None, {"burden": "not refuted"}, "open"),
        (0.46, 0.54, None, {"minus": {}, "at_least": 0.45, "at_most": 0.55}, "pass"),
        (0.4, 0.54, None, {"minus": {}, "at_least": 0.45, "at_most": 0.55}, "open"),
        (0.6, 0.7, None, {"minus": {}, "at_least": 0.45, "at_most": 0.55}, "fail"),
    ],
)
def test_outcomes(low: float, high: float, p: float, changes: dict[str, Any], expected: str) -> None:
    assert outcome(check(**changes), Estimate(0.0, low, high, 5, p), p) == expected


def examined(*outcomes: str, low: float = 0.1, **changes: Any) -> dict[str, Any]:
    tests = [{"outcome": o, "ci_low": low, "ci_high": 0.2} for o in outcomes]
    return {"tests": tests, **check(**changes).model_dump(mode="json")}


def test_verdicts() -> None:
    assert verdict(examined()) == "untested"
    assert verdict(examined("pass", "pass")) == "holds"
    assert verdict(examined("pass", "open")) == verdict(examined("pass", "fail")) == "partly"
    assert verdict(examined("open", "fail")) == verdict(examined("fail")) == "not"
    assert verdict(examined("open", "open")) == "open"


def test_what_nothing_speaks_against_is_not_shown() -> None:
    assert verdict(examined("pass", burden="not refuted")) == "holds"
    assert verdict(examined("pass", low=-0.1, burden="not refuted")) == "unrefuted"
    assert verdict(examined("pass", "fail", low=-0.1, burden="not refuted")) == "partly"

"""What `make demo-synthetic` claims: the synthetic benchmark is not a toy, and the method does on it what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from fedvpa.config import load_config
from fedvpa.evaluation.experiment import Prepared, prepare, run_method

CONFIG = Path(__file__).parents[2] / "configs" / "synthetic.yaml"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return prepare(load_config(CONFIG))


@pytest.fixture(scope="module")
def rows(prepared: Prepared) -> list[dict[str, Any]]:
    """Default rows at the configuration's context size."""
    size = prepared.config.federation.context_pairs
    found = [r for name in ("oracle", "local", "fedbt", "fedvpa-gp") for r in run_method(prepared, name).rows]
    return [r for r in found if r["default"] and r["context_size"] in (size, None)]


def value(rows: list[dict[str, Any]], method: str, population: str, key: str = "accuracy") -> float:
    (row,) = (r for r in rows if (r["method"], r["population"]) == (method, population))
    return row[key]


def test_the_oracle_is_good_but_not_perfect(rows: list[dict[str, Any]]) -> None:
    assert 0.88 <= value(rows, "oracle", "unseen") <= 0.97


def test_one_user_alone_is_not_enough(rows: list[dict[str, Any]]) -> None:
    for population in ("seen", "unseen"):
        assert value(rows, "local", population) <= value(rows, "oracle", population) - 0.08


def test_words_alone_do_not_decide(prepared: Prepared, rows: list[dict[str, Any]]) -> None:
    """Logistic regression on differences of word counts, its strength chosen on validation, per group."""
    data = prepared.data
    split = np.array(data.split)
    train, validation, test = (split == s for s in ("train", "validation", "test"))
    words = CountVectorizer(token_pattern=r"[\w']+|[^\w\s]")
    words.fit([t for p, use in zip(data.pairs, train, strict=True) if use for t in (p.a, p.b)])
    x = (words.transform([p.a for p in data.pairs]) - words.transform([p.b for p in data.pairs])).astype(float)
    accuracy = []
    for y in data.group_labels.numpy():
        fits = [
            LogisticRegression(C=c, fit_intercept=False, max_iter=1000).fit(x[train], y[train]) for c in (0.03, 0.3, 3)
        ]
        best = max(fits, key=lambda m: m.score(x[validation], y[validation]))
        accuracy.append(best.score(x[test], y[test]))
    assert np.mean(accuracy) <= value(rows, "oracle", "unseen") - 0.03


def test_one_selector_for_all_is_at_chance_where_groups_disagree(rows: list[dict[str, Any]]) -> None:
    for population in ("seen", "unseen"):
        assert abs(value(rows, "fedbt", population, "conflict_accuracy") - 0.5) <= 0.02


def test_the_method_is_close_to_the_oracle(rows: list[dict[str, Any]]) -> None:
    for population in ("seen", "unseen"):
        assert value(rows, "fedvpa-gp", population) >= value(rows, "oracle", population) - 0.04

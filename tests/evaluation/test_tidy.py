"""Selections, means and differences of a study's rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedvpa.evaluation.compare import PairScores
from fedvpa.evaluation.tidy import combinations, contrast, estimate, flat, records, select, shown, value


def rows(method: str, seed: int, accuracy: float, sizes: tuple[int | None, ...] = (0, 4, 8)) -> list[dict[str, Any]]:
    latent = sizes != (None,)
    return [
        {
            "method": method,
            "seed": seed,
            "population": "unseen",
            "inference": how,
            "default": how in ("mixture", "none"),
            "context_size": size,
            "accuracy": accuracy + 0.01 * (size or 0),
            "group_accuracy": {"long": 0.9, "short": 0.1 * seed},
            "kl": 2.0 + seed if latent else None,
        }
        for size in sizes
        for how in (("amortised", "mixture") if latent else ("none",))
    ]


def cell(method: str, seed: int, accuracy: float, pool: str = "p", **settings: Any) -> list[Any]:
    own = rows(method, seed, accuracy, (None,) if method == "fedbt" else (0, 4, 8))
    hits = [np.full(10, r["accuracy"] / 10) for r in own]
    return records(settings, own, [PairScores(np.full(10, 0.1), h) for h in hits], pool, 5)


FOUND = [r for s in (0, 1) for m, a in (("fedvpl", 0.7), ("fedbt", 0.5)) for r in cell(m, s, a + 0.1 * s, beta=0.1)]


def test_defaults_of_a_selection() -> None:
    where = shown({"method": "fedvpl"}, ())
    picked = select(FOUND, where)
    assert [(r.row["seed"], r.row["context_size"], r.row["inference"]) for r in picked] == [
        (s, 4, "mixture") for s in (0, 1)
    ]
    assert "context_size" not in shown({}, ("context_size",))
    assert len(select(FOUND, {**where, "context_size": [0, 8], "inference": ["amortised", "mixture"]})) == 8


def test_a_method_without_a_context_is_there_for_every_size_and_inference() -> None:
    assert len(select(FOUND, shown({"method": "fedbt", "context_size": 8, "inference": "refined"}, ()))) == 2


def test_estimates_by_hand() -> None:
    mine = select(FOUND, shown({"method": "fedvpl"}, ()))
    found = estimate(mine, "accuracy", 200)
    assert found is not None
    assert found.mean == pytest.approx((0.74 + 0.84) / 2)
    assert found.low == pytest.approx(0.74)
    assert found.high == pytest.approx(0.84)
    kl = estimate(mine, "kl", 500)
    assert kl is not None
    assert kl.mean == 2.5
    assert (kl.low, kl.high) == pytest.approx((2.5 - 12.706 * 0.5, 2.5 + 12.706 * 0.5), abs=1e-3)  # t of one degree
    short = estimate(mine, "group_accuracy/short", 200)
    assert short is not None
    assert short.mean == pytest.approx(0.05)
    assert estimate(select(FOUND, {"method": "fedbt"}), "kl", 100) is None
    alone = estimate(mine[:1], "kl", 100)
    assert alone is not None
    assert (alone.low, alone.seeds) == (None, 1)


def test_differences_are_paired_by_seed() -> None:
    left, right = (select(FOUND, shown({"method": m}, ())) for m in ("fedvpl", "fedbt"))
    found = contrast(left, right, "accuracy", 200)
    assert found is not None
    assert found.mean == found.low == found.high == pytest.approx(0.24)
    assert found.p is not None
    half = contrast(left, right[:1], "accuracy", 200)
    assert half is not None
    assert half.seeds == 1
    assert contrast(left, [], "accuracy", 200) is None


def test_what_is_left_open_is_an_error() -> None:
    with pytest.raises(ValueError, match="several rows of seed 0; they differ in context_size"):
        estimate(select(FOUND, {"method": "fedvpl", "inference": "default"}), "accuracy", 100)


def test_rows_of_several_pools_are_not_paired_by_pair() -> None:
    left, right = cell("fedbt", 0, 0.6), cell("fedbt", 0, 0.5, pool="q")
    found = contrast(left, right, "accuracy", 100)
    assert found is not None
    assert (found.mean, found.low, found.p) == (pytest.approx(0.1), None, None)


def test_combinations_and_flat_rows() -> None:
    assert combinations(FOUND, ["method", "beta"]) == [
        {"method": "fedvpl", "beta": 0.1},
        {"method": "fedbt", "beta": 0.1},
    ]
    assert combinations(FOUND, []) == [{}]
    row = FOUND[0].row
    assert flat(row)["group_accuracy/long"] == value(row, "group_accuracy/long") == 0.9
    assert "group_accuracy" not in flat(row)

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedvpa.evaluation.compare import (
    PairScores,
    bootstrap_p,
    holm,
    people_difference,
    percentile_interval,
    resample_accuracy,
    seed_interval,
    seed_p,
    summarise,
)

REQUIRED = ("worst_group_accuracy", "log_loss", "ece", "switch_gap", "flip_rate", "active_units", "cluster_purity")


def row(method: str, seed: int, accuracy: float, **other: Any) -> dict[str, Any]:
    base = {"method": method, "seed": seed, "population": "unseen", "inference": "none", "default": True}
    return {**base, "context_size": None, "accuracy": accuracy, **dict.fromkeys(REQUIRED), **other}


def scores(hits: np.ndarray) -> PairScores:
    return PairScores(np.full(len(hits), 1 / len(hits)), hits / len(hits))


def summary_of(hits: dict[str, list[np.ndarray]], **options: Any) -> dict[str, dict[str, Any]]:
    """Summary by method of (seeds) lists of (P,) hits."""
    cells = [(m, s, scores(h)) for m, seeds in hits.items() for s, h in enumerate(seeds)]
    rows = [row(m, s, p.accuracy) for m, s, p in cells]
    return {e["method"]: e for e in summarise(rows, [p for _, _, p in cells], **options)}


def test_pair_scores_are_the_mean_over_clients():
    # client 1 answers pairs 0 and 1 (one right), client 2 answers pair 1 only (right): mean of 1/2 and 1
    found = PairScores(np.array([0.25, 0.25 + 0.5, 0.0]), np.array([0.0, 0.25 + 0.5, 0.0]))
    assert found.accuracy == pytest.approx(0.75)


def test_interval_agrees_with_scipy():
    hits = (np.random.default_rng(0).random(300) < 0.8).astype(float)
    ours = summary_of({"fedbt": [hits]}, resamples=20_000)["fedbt"]
    theirs = stats.bootstrap((hits,), np.mean, n_resamples=20_000, method="percentile", rng=1).confidence_interval
    assert (ours["ci_low"], ours["ci_high"]) == pytest.approx((theirs.low, theirs.high), abs=0.004)
    assert ours["mean"] == pytest.approx(hits.mean())
    assert (ours["seeds"], ours["pairs"]) == (1, 300)


def test_unequal_weights_agree_with_a_plain_loop():
    rng = np.random.default_rng(3)
    weight, hit = rng.random(40) * (rng.random(40) < 0.8), rng.random(40) < 0.7
    draws = resample_accuracy([PairScores(weight, weight * hit)], 4000, np.random.default_rng(0))[:, 0]
    used = np.flatnonzero(weight > 0)
    loop = [np.average(hit[i], weights=weight[i]) for i in (rng.choice(used, len(used)) for _ in range(4000))]
    assert draws.mean() == pytest.approx(np.mean(loop), abs=0.006)
    assert draws.std() == pytest.approx(np.std(loop), rel=0.06)


def test_chunks_do_not_change_the_draws(monkeypatch: pytest.MonkeyPatch):
    found = scores((np.random.default_rng(0).random(50) < 0.6).astype(float))
    whole = resample_accuracy([found], 64, np.random.default_rng(5))
    monkeypatch.setattr("fedvpa.evaluation.compare._CHUNK_CELLS", 50 * 7)
    np.testing.assert_array_equal(resample_accuracy([found], 64, np.random.default_rng(5)), whole)


def test_interval_covers_the_truth_when_pairs_vary():
    covered = 0
    for trial in range(200):
        hits = (np.random.default_rng(trial).random(200) < 0.75).astype(float)
        entry = summary_of({"fedbt": [hits]}, resamples=400, seed=trial)["fedbt"]
        covered += entry["ci_low"] <= 0.75 <= entry["ci_high"]
    assert 0.90 <= covered / 200 <= 0.99


def test_interval_covers_the_truth_when_seeds_vary_too():
    covered = 0
    for trial in range(150):
        rng = np.random.default_rng(trial)
        levels = np.clip(0.7 + 0.05 * rng.normal(size=10), 0, 1)
        hits = [(rng.random(300) < p).astype(float) for p in levels]
        entry = summary_of({"fedbt": hits}, resamples=300, seed=trial)["fedbt"]
        covered += entry["ci_low"] <= 0.7 <= entry["ci_high"]
    assert covered / 150 >= 0.88


def test_interval_shrinks_with_pairs_and_with_seeds():
    rng = np.random.default_rng(0)

    def width(pairs: int, seeds: int) -> float:
        hits = [(rng.random(pairs) < 0.7 + 0.04 * rng.normal()).astype(float) for _ in range(seeds)]
        entry = summary_of({"fedbt": hits})["fedbt"]
        return entry["ci_high"] - entry["ci_low"]

    assert width(2000, 1) < 0.5 * width(100, 1)
    assert width(4000, 40) < 0.6 * width(4000, 5)


def test_identical_methods_do_not_differ():
    hits = [(np.random.default_rng(s).random(120) < 0.7).astype(float) for s in range(4)]
    found = summary_of({"fedvpa-gp": hits, "fedvpl": hits})
    [paired] = found["fedvpl"]["paired"]
    assert (paired["difference"], paired["ci_low"], paired["ci_high"], paired["p"]) == (0, 0, 0, 1)
    assert found["fedvpa-gp"]["paired"] == []


def test_pairing_removes_what_both_methods_share():
    rng = np.random.default_rng(0)
    left, right = [], []
    for _ in range(5):
        hits = rng.random(400) < 0.6 + 0.1 * rng.normal()
        right.append(hits.astype(float))
        left.append(np.where(rng.random(400) < 0.03, 1.0, hits))
    found = summary_of({"fedvpa-gp": right, "fedvpl": left})
    [paired] = found["fedvpl"]["paired"]
    own = found["fedvpl"]["ci_high"] - found["fedvpl"]["ci_low"]
    assert paired["ci_high"] - paired["ci_low"] < 0.4 * own
    assert paired["ci_low"] > 0
    assert paired["difference"] == pytest.approx(found["fedvpl"]["mean"] - found["fedvpa-gp"]["mean"])


def test_p_values_are_uniform_without_a_difference():
    p = []
    for trial in range(150):
        rng = np.random.default_rng(trial)
        hits = {m: [(rng.random(200) < 0.7).astype(float)] for m in ("fedvpa-gp", "fedvpl")}
        p.append(summary_of(hits, resamples=300, seed=trial)["fedvpl"]["paired"][0]["p"])
    assert 0.01 <= np.mean(np.array(p) < 0.05) <= 0.11
    assert 0.4 <= np.mean(p) <= 0.65


def test_bootstrap_p_counts_both_sides():
    assert bootstrap_p(np.array([1.0] * 98 + [-1.0])) == pytest.approx(2 * 2 / 100)
    assert bootstrap_p(np.full(99, -0.1)) == pytest.approx(2 / 100)
    assert bootstrap_p(np.zeros(10)) == 1


def test_holm_by_hand():
    # sorted 0.01, 0.02, 0.03, 0.5 -> 4 x, 3 x, 2 x, 1 x, then made monotone
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([]) == []
    assert holm([0.7, 0.9]) == [1.0, 1.0]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_p_and_bonferroni(p: list[float]):
    adjusted = holm(p)
    assert all(a >= x and a <= min(1.0, len(p) * x) + 1e-12 for a, x in zip(adjusted, p, strict=True))
    ranks = np.argsort(p, kind="stable")
    assert all(np.diff(np.array(adjusted)[ranks]) >= 0)


def test_holm_runs_over_the_methods_of_one_table():
    rng = np.random.default_rng(1)
    hits = {m: [(rng.random(200) < p).astype(float) for _ in range(3)] for m, p in
            (("fedvpa-gp", 0.8), ("fedvpl", 0.78), ("fedbt", 0.5))}  # fmt: skip
    found = summary_of(hits)
    p = [found[m]["paired"][0]["p"] for m in ("fedvpl", "fedbt")]
    assert [found[m]["paired"][0]["p_holm"] for m in ("fedvpl", "fedbt")] == pytest.approx(holm(p))


def test_same_seed_same_summary_and_order_of_rows_does_not_matter():
    hits = {
        m: [(np.random.default_rng(s).random(80) < 0.7).astype(float) for s in range(3)] for m in ("fedbt", "local")
    }
    cells = [(m, s, scores(h)) for m, seeds in hits.items() for s, h in enumerate(seeds)]
    forward = summarise([row(m, s, p.accuracy) for m, s, p in cells], [p for *_, p in cells])
    cells = cells[2::-1] + cells[:2:-1]
    backward = summarise([row(m, s, p.accuracy) for m, s, p in cells], [p for *_, p in cells])
    assert forward == backward


def test_a_method_without_context_is_compared_at_every_size():
    rows = [row("fedvpa-gp", s, 0.8, inference="mixture", context_size=c) for s in range(2) for c in (0, 8)]
    rows += [row("fedbt", s, 0.5) for s in range(2)]
    rows += [row("fedvpl", s, 0.7, inference="mixture", context_size=8) for s in range(2)]
    found = summarise(rows, [None] * len(rows))
    by_method = {(e["method"], e["context_size"]): e for e in found}
    assert [p["context_size"] for p in by_method["fedbt", None]["paired"]] == [0, 8]
    assert [p["context_size"] for p in by_method["fedvpl", 8]["paired"]] == [8]
    other = summarise(rows, [None] * len(rows), reference="fedbt")
    assert [p["reference"] for e in other if e["method"] == "fedvpa-gp" for p in e["paired"]] == ["fedbt", "fedbt"]


def test_default_that_varies_between_seeds_gets_its_own_entry():
    rows = [
        row("fedvpl", s, 0.6 + 0.1 * (i == s), inference=kind, context_size=8, default=i == s)
        for s in (0, 1)
        for i, kind in enumerate(("amortised", "mixture"))
    ]
    found = {e["inference"]: e for e in summarise(rows, [None] * 4)}
    assert found["varies"]["default"]
    assert found["varies"]["mean"] == pytest.approx(0.7)
    assert not found["amortised"]["default"]
    assert not found["mixture"]["default"]


def test_metrics_have_means_and_seed_intervals():
    rows = [
        row("fedvpl", s, 0.7, switch_gap=gap, group_accuracy={"a": 0.6 + s / 10, "b": None})
        for s, gap in enumerate((0.2, None, 0.4))
    ]
    [entry] = summarise(rows, [None] * 3)
    gap = entry["metrics"]["switch_gap"]
    assert gap["mean"] == pytest.approx(0.3)
    # Student's interval by scipy: two seeds leave almost everything open
    expected = stats.t.interval(0.95, 1, loc=0.3, scale=stats.sem([0.2, 0.4]))
    assert (gap["ci_low"], gap["ci_high"]) == pytest.approx(expected)
    assert entry["metrics"]["group_accuracy/a"]["mean"] == pytest.approx(0.7)
    assert "group_accuracy/b" not in entry["metrics"]
    assert "kl" not in entry["metrics"]


@pytest.mark.parametrize("seeds", [3, 5])
def test_few_seeds_keep_their_level(seeds: int) -> None:
    """Where nothing differs, one test of twenty says that it does, and 95 % of the intervals hold the truth."""
    draws = np.random.default_rng(0).normal(size=(4000, seeds))
    wrong = np.mean([seed_p(d) <= 0.05 for d in draws])
    inside = np.mean([low <= 0 <= high for low, high in map(seed_interval, draws)])
    assert 0.04 < wrong < 0.06
    assert 0.94 < inside < 0.96


def test_seeds_that_agree_exactly() -> None:
    assert seed_p(np.zeros(5)) == 1.0
    assert seed_p(np.full(5, 0.1)) == 0.0
    assert seed_p(np.array([0.1])) is None
    assert seed_interval(np.full(3, 0.2)) == pytest.approx((0.2, 0.2))
    assert seed_interval(np.array([0.2])) == (None, None)


def test_one_seed_without_pairs_has_no_interval_and_no_comparison():
    found = summarise([row("fedvpa-gp", 0, 0.8, ece=0.1), row("fedbt", 0, 0.5)], [None, None])
    assert [(e["ci_low"], e["ci_high"], e["seeds"], e["paired"]) for e in found] == [(None, None, 1, [])] * 2
    assert found[0]["metrics"]["ece"] == {"mean": 0.1, "ci_low": None, "ci_high": None}


def test_methods_are_compared_on_the_seeds_they_share():
    rows = [row("fedvpa-gp", s, 0.8) for s in range(4)] + [row("fedbt", s, 0.5) for s in (1, 3, 7)]
    found = {e["method"]: e for e in summarise(rows, [None] * 7)}
    assert found["fedbt"]["paired"][0]["seeds"] == 2
    assert found["fedbt"]["paired"][0]["difference"] == pytest.approx(-0.3)


def test_nothing_to_summarise():
    assert summarise([], []) == []
    with pytest.raises(ValueError, match="1 rows with 0 pair scores"):
        summarise([row("fedbt", 0, 0.5)], [])


def test_resamples_without_any_pair_of_a_row_are_left_out():
    weight = np.zeros(30)
    weight[0] = 1.0
    draws = resample_accuracy(
        [PairScores(weight, weight), PairScores(np.ones(30), np.ones(30))], 200, np.random.default_rng(0)
    )
    assert np.isnan(draws[:, 0]).any()
    assert percentile_interval(draws[:, 0]) == (1.0, 1.0)


def test_differences_over_people_agree_with_scipy():
    rng = np.random.default_rng(0)
    left = rng.random(200)
    right = left - 0.02 + 0.1 * rng.standard_normal(200)
    ours = people_difference(left, right, 20_000, 0)
    theirs = stats.bootstrap((left - right,), np.mean, n_resamples=20_000, method="percentile", rng=1)
    assert ours["difference"] == pytest.approx((left - right).mean())
    assert (ours["ci_low"], ours["ci_high"]) == pytest.approx(tuple(theirs.confidence_interval), abs=5e-4)
    assert ours["p"] == pytest.approx(stats.ttest_rel(left, right).pvalue, abs=0.01)
    assert people_difference(left, left, 200, 0)["p"] == 1.0

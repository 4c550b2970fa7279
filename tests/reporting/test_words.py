from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from results_factory import make_results

from fedvpa.reporting import words
from fedvpa.reporting.plots import label, term_shares
from fedvpa.reporting.plots_latent import principal_plane, sort_by_group
from fedvpa.reporting.tables import main_rows


def text_of(results: dict[str, Any]) -> str:
    return " ".join(words.headline(results, 8))


def test_a_difference_within_chance_is_called_so():
    results = make_results(("fedvpa-gp", "fedvpl"))
    for e in results["summary"]:
        for p in e["paired"]:
            p |= {"difference": -0.003, "ci_low": -0.02, "ci_high": 0.014, "p_holm": 0.7}
    assert "the difference to fedvpl, 0.003, is within what chance explains (p = 0.700" in text_of(results)


def test_the_leader_is_compared_with_the_reference():
    results = make_results(("fedvpl+ortho", "fedvpl", "fedbt"))
    assert text_of(results).startswith("fedvpl leads")
    assert "the lead over fedvpl+ortho is 0.2" in text_of(results)


def test_a_lower_reference_is_never_a_lead():
    results = make_results(("oracle", "fedvpl", "fedbt"))
    assert "the gap to oracle is 0.1" in text_of(results)


def test_collapse():
    row = {"inference": "mixture", "active_units": 0.4, "switch_gap": 0.3}
    assert words.collapsed(row) is False
    assert words.collapsed({**row, "switch_gap": 0.01}) is True
    assert words.collapsed({**row, "active_units": 0.01, "switch_gap": None}) is True
    assert words.collapsed({**row, "inference": "none"}) is None
    assert words.collapsed({**row, "active_units": None, "switch_gap": None}) is None
    assert "The latent has collapsed in fedvpl+ortho" in text_of(make_results(("fedvpl+ortho",)))
    no_groups = make_results(("fedvpl",), 2)
    for e in no_groups["summary"]:
        e["metrics"].pop("switch_gap")
    assert "in use in fedvpl (active units 0.48)" in text_of(no_groups)


def test_captions_quote_the_numbers():
    results = make_results()
    rows = {r["method"]: r for r in main_rows(results, 8)}
    assert f"fedvpa-gp, is at {rows['fedvpa-gp']['unseen']:.3f}" in words.comparison_caption(results, 8)
    assert "16 pairs are enough" in words.curve_caption(results, "unseen")
    share, even = words.same_group_share(results["diagnostics"]["fedvpa-gp"])  # type: ignore[misc]
    assert (share, even) == pytest.approx((4 * 5 / (4 * 5 + 18), 5 / 23))
    assert f"{share:.0%} of the weight" in words.prior_caption({"fedvpa-gp": results["diagnostics"]["fedvpa-gp"]})


def test_no_cost_no_caption():
    results = make_results(("oracle",))
    assert words.cost_caption(results, main_rows(results, None), []) == ""


def test_small_words():
    assert words.enumerate_words(["a"]) == "a"
    assert words.enumerate_words(["a", "b", "c"]) == "a, b and c"
    assert [words.size_text(b) for b in (256, 2048, 3_500_000)] == ["256 B", "2.0 KB", "3.50 MB"]
    assert words.score_text(0.5, None, None) == "0.500"
    assert label("a\nb" + "c" * 40, 6) == "a bcc…"
    assert words.headline({"rows": [], "summary": []}, None) == []


def test_term_shares():
    records = [
        {"round": 1, "reconstruction": 0.5, "kl": 50.0, "ortho": None, "mixture": 0.0},
        {"round": 2, "reconstruction": 0.2, "kl": 0.0, "ortho": 0.6, "mixture": 0.0},
    ]
    weights = {"reconstruction": 1.0, "kl": 0.01, "ortho": 0.5, "mixture": 1.0}
    rounds, shares = term_shares(records, weights)
    assert rounds == [1, 2]
    np.testing.assert_allclose(shares, [[0.5, 0.4], [0.5, 0], [0, 0.6], [0, 0]])


def test_principal_plane_finds_the_plane():
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(6, 6)))[0][:2]
    flat = rng.normal(size=(50, 2)) * [5, 2]
    points, axes, shares = principal_plane(flat @ basis)
    assert shares.sum() == pytest.approx(1)
    assert shares[0] > shares[1]
    np.testing.assert_allclose(points @ axes + (flat @ basis).mean(0), flat @ basis, atol=1e-9)
    for degenerate in (np.zeros((4, 3)), np.ones((1, 3)), np.arange(4.0)[:, None]):
        points, axes, shares = principal_plane(degenerate)
        assert points.shape == (len(degenerate), 2)
        assert np.isfinite(points).all()
        assert axes.shape == (2, degenerate.shape[1])


def test_sort_by_group():
    assert sort_by_group([1, None, 0, 1]) == ([2, 0, 3, 1], [1, 3])
    assert sort_by_group([None, None]) == ([0, 1], [])


def test_switching_test_is_averaged_over_seeds():
    tests = [
        {"method": "fedvpl", "seed": s, "inference": kind, "pairs": 40, "accuracy": a, "group_accuracy": {"x": a}}
        for s, (kind, a) in enumerate((("mixture", 0.6), ("amortised", 0.7)))
    ]
    tests.append({"method": "fedbt", "seed": 0, "inference": "none", "pairs": 40, "accuracy": 0.5})
    rows = words.switching_rows({"switching": tests})
    shown = {"inference": "mixture, amortised", "pairs": "40", "accuracy": "0.650", "group_accuracy": "x 0.650"}
    assert rows[0] == {"method": "fedvpl", **shown}
    assert rows[1]["group_accuracy"] == "–"
    assert words.switching_rows({"switching": []}) == []

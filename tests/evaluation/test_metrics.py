"""Metrics against scikit-learn and by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, log_loss
from sklearn.metrics.cluster import contingency_matrix

from fedvpa.evaluation import metrics


def predictions(seed: int, n: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    p = torch.rand(n, generator=g, dtype=torch.float64)
    return p, torch.where(torch.rand(n, generator=g) < p, 1.0, -1.0).double()


@given(st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_log_loss_and_accuracy_are_scikit_learns(seed: int) -> None:
    p, y = predictions(seed)
    truth = (y > 0).numpy()
    expected = log_loss(truth, torch.stack([1 - p, p], -1).numpy(), labels=[False, True])
    assert float(metrics.log_loss(p, y).mean()) == pytest.approx(expected)
    assert float(metrics.correct(p, y).mean()) == pytest.approx(accuracy_score(truth, (p > 0.5).numpy()))


def test_an_undecided_prediction_is_half_right_and_a_certain_error_stays_finite() -> None:
    half = torch.tensor([0.5, 0.5])
    assert metrics.correct(half, torch.tensor([1.0, -1.0])).tolist() == [0.5, 0.5]
    assert float(metrics.log_loss(torch.tensor(0.0), torch.tensor(1.0))) == pytest.approx(-math.log(1e-7))


def test_calibration_error_by_hand() -> None:
    # Confidences 0.9 (two, one right) and 0.6 (two, both right): (|1 - 1.8| + |2 - 1.2|) / 4.
    p = torch.tensor([0.9, 0.1, 0.6, 0.4])
    y = torch.tensor([1.0, 1.0, 1.0, -1.0])
    assert metrics.expected_calibration_error(p, y, torch.ones(4), bins=5) == pytest.approx(0.4, abs=1e-6)
    # Weight zero leaves a prediction out; weights need not be normalised.
    weight = torch.tensor([7.0, 0.0, 7.0, 0.0])
    assert metrics.expected_calibration_error(p, y, weight, bins=5) == pytest.approx(0.25, abs=1e-6)


@given(st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_calibration_error_is_a_loop_over_bins(seed: int) -> None:
    p, y = predictions(seed)
    confidence, hit = torch.maximum(p, 1 - p), metrics.correct(p, y)
    expected = 0.0
    for k in range(15):
        low, high = 0.5 + k / 30, 0.5 + (k + 1) / 30
        inside = (confidence >= low) & (confidence < high)
        if inside.any():
            expected += float(inside.double().mean() * (hit[inside].mean() - confidence[inside].mean()).abs())
    assert metrics.expected_calibration_error(p, y, torch.ones(40)) == pytest.approx(expected, abs=1e-9)


def test_certain_and_right_is_calibrated() -> None:
    y = torch.tensor([1.0, -1.0, 1.0])
    assert metrics.expected_calibration_error((y + 1) / 2, y, torch.ones(3)) == 0


def test_per_user_means_use_the_mask() -> None:
    values = torch.tensor([[1.0, 0.0, 5.0], [1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    found = metrics.per_user(values, mask)
    assert found[:2].tolist() == pytest.approx([0.5, 2 / 3])
    assert found[2].isnan()


def test_group_means_leave_out_the_unknown() -> None:
    values, groups = torch.tensor([1.0, 0.0, 0.5, 9.0]), torch.tensor([0, 0, 2, -1])
    assert metrics.group_means(values, groups, 3) == [0.5, None, 0.5]


def test_active_units_count_the_dimensions_that_vary_over_users() -> None:
    means = torch.tensor([[0.0, 1.0, 0.05], [0.0, -1.0, -0.05], [0.0, 0.0, 0.05]])
    # Variances 0, 1 and 0.0033.
    assert metrics.active_units(means) == pytest.approx(1 / 3)
    assert metrics.active_units(means, threshold=0.003) == pytest.approx(2 / 3)


def test_purity_by_hand() -> None:
    labels, groups = torch.tensor([0, 0, 0, 1, 1, -1]), torch.tensor([1, 1, 0, 0, 0, 1])
    assert metrics.purity(labels, groups) == pytest.approx(4 / 5)
    assert metrics.purity(labels, torch.full((6,), -1)) is None
    assert metrics.purity(torch.full((6,), -1), groups) is None


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
@settings(max_examples=30, deadline=None)
def test_purity_is_the_contingency_tables(rows: list[tuple[int, int]]) -> None:
    labels, groups = torch.tensor(rows).T
    table = contingency_matrix(labels.numpy(), groups.numpy())
    assert metrics.purity(labels, groups) == pytest.approx(table.max(1).sum() / len(rows))

"""Prototypes and both forms of the orthogonal loss (Eq. 9), by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedvpa.variational import prototypes


@given(st.integers(1, 9), st.integers(1, 6), st.floats(0.5, 8), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_qr_prototypes_have_norm_kappa_and_are_orthogonal(count: int, dim: int, kappa: float, seed: int) -> None:
    p = prototypes.qr_prototypes(count, dim, kappa, torch.Generator().manual_seed(seed))
    assert p.shape == (count, dim)
    torch.testing.assert_close(p.norm(dim=-1), torch.full((count,), kappa), rtol=1e-4, atol=1e-4)
    for start in range(0, count, dim):
        block = p[start : start + dim]
        expected = kappa**2 * torch.eye(len(block))
        torch.testing.assert_close(block @ block.T, expected, atol=1e-3 * kappa**2, rtol=0)


def test_centroids_keep_their_direction_and_get_norm_kappa() -> None:
    p = prototypes.prototypes_from_centroids(torch.tensor([[3.0, 4.0], [0.0, -0.1]]), 5.0)
    torch.testing.assert_close(p, torch.tensor([[3.0, 4.0], [0.0, -5.0]]))


P = torch.tensor([[2.0, 0.0], [1.0, 1.0], [-2.0, 0.0]])


def test_separation_by_hand() -> None:
    # P P^T = [[4, 2, -4], [2, 2, -2], [-4, -2, 4]]
    paper = (3**2 + 1 + 3**2) + 2 * (2**2 + 4**2 + 2**2)
    assert float(prototypes.separation(P, 2.0, "paper")) == paper
    # Over kappa^2 = 4: diagonal 1, 1/2, 1; only the positive overlap 2/4 counts, once per order.
    assert float(prototypes.separation(P, 2.0, "ours")) == pytest.approx(0.25 + 2 * 0.25)
    stacked = prototypes.separation(torch.stack([P, 2 * P]), 2.0, "ours")
    assert stacked.shape == (2,)
    assert float(stacked[0]) == pytest.approx(0.75)


def test_four_users_u_and_v_with_their_opposites_cost_nothing_in_our_form_only() -> None:
    four = 5 * torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    assert float(prototypes.separation(four, 5.0, "ours")) == 0
    assert float(prototypes.separation(four, 5.0, "paper")) > 100
    assert float(prototypes.separation(torch.eye(3), 1.0, "paper")) == 0


def test_pull_by_hand() -> None:
    mean = torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    samples = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 1.0], [1.0, 3.0]]])
    label = torch.tensor([0, 1])
    ours = prototypes.pull(mean, samples, P, label, 2.0, "ours")
    torch.testing.assert_close(ours, torch.tensor([4.0, 1.0]) / 4)
    paper = prototypes.pull(mean, samples, P, label, 2.0, "paper")
    torch.testing.assert_close(paper, torch.tensor([(1 + 5) / 2, (0 + 4) / 2]))
    # The same with one set of prototypes per client.
    for form, expected in (("ours", ours), ("paper", paper)):
        stacked = prototypes.pull(mean, samples, P.expand(2, 3, 2), label, 2.0, form)
        torch.testing.assert_close(stacked, expected)


def test_our_pull_does_not_touch_the_width() -> None:
    samples = torch.randn(1, 3, 2, requires_grad=True)
    mean = torch.zeros(1, 2, requires_grad=True)
    prototypes.pull(mean, samples, P, torch.tensor([0]), 2.0, "ours").sum().backward()
    assert samples.grad is None
    assert mean.grad.abs().sum() > 0

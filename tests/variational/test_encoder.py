"""From labelled pairs to a posterior: the product of experts, the swap property, empty contexts."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedvpa.variational import encoder
from fedvpa.variational.encoder import Experts
from fedvpa.variational.selector import Sizes, Theta, init_theta

POOLINGS = ("poe", "mean", "attention")
HIDDEN, DIM = 7, 3


def model(seed: int, pooling: str = "poe", clients: int = 0) -> Theta:
    g = torch.Generator().manual_seed(seed)
    theta = init_theta(Sizes(5, HIDDEN, DIM, 6, attention=pooling == "attention"), g)
    lead = (clients,) if clients else ()
    # Biases start at 0; the properties must hold for any.
    return {k: torch.randn((*lead, *v.shape), generator=g, dtype=torch.float64) for k, v in theta.items()}


def context(seed: int, *lead: int, pairs: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    e = torch.randn(*lead, pairs, HIDDEN, generator=g, dtype=torch.float64)
    return e, torch.rand(*lead, pairs, generator=g) < 0.6


@pytest.mark.parametrize("pooling", POOLINGS)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_exchanging_every_label_mirrors_the_mean(pooling: str, seed: int) -> None:
    theta = model(seed, pooling)
    e, mask = context(seed)
    q = encoder.pool(encoder.experts(theta, e), mask, pooling)
    mirrored = encoder.pool(encoder.experts(theta, -e), mask, pooling)
    torch.testing.assert_close(mirrored.mean, -q.mean, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(mirrored.log_var, q.log_var, rtol=1e-10, atol=1e-12)


def test_the_plain_network_does_not_mirror() -> None:
    theta, (e, mask) = model(0), context(0)
    q = encoder.pool(encoder.experts(theta, e, odd=False), mask)
    mirrored = encoder.pool(encoder.experts(theta, -e, odd=False), mask)
    assert (mirrored.mean + q.mean).abs().max() > 1e-3


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("odd", [True, False])
def test_an_empty_context_gives_the_standard_normal(pooling: str, odd: bool) -> None:
    theta, (e, _) = model(1, pooling), context(1, 2)
    q = encoder.pool(encoder.experts(theta, e, odd), torch.zeros(2, 6, dtype=torch.bool), pooling)
    assert (q.mean == 0).all()
    assert (q.log_var == 0).all()
    none = encoder.pool(encoder.experts(theta, e[:, :0], odd), torch.zeros(2, 0, dtype=torch.bool), pooling)
    assert (none.mean == 0).all()
    assert (none.log_var == 0).all()


@pytest.mark.parametrize("pooling", POOLINGS)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_order_of_the_context_and_pairs_outside_it_do_not_matter(pooling: str, seed: int) -> None:
    theta, (e, mask) = model(seed, pooling), context(seed)
    q = encoder.pool(encoder.experts(theta, e), mask, pooling)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    shuffled = encoder.pool(encoder.experts(theta, e[order]), mask[order], pooling)
    torch.testing.assert_close(shuffled.mean, q.mean)
    torch.testing.assert_close(shuffled.log_var, q.log_var)
    hidden = torch.where(mask.unsqueeze(-1), e, 100.0)
    other = encoder.pool(encoder.experts(theta, hidden), mask, pooling)
    torch.testing.assert_close(other.mean, q.mean)
    torch.testing.assert_close(other.log_var, q.log_var)


@given(st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_product_of_experts_is_the_normalised_product_of_densities(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    mean = torch.randn(4, 1, generator=g, dtype=torch.float64)
    log_precision = torch.randn(4, 1, generator=g, dtype=torch.float64)
    mask = torch.tensor([True, True, False, True])
    q = encoder.pool(Experts(mean, log_precision, torch.zeros(4)), mask)

    z = torch.linspace(-12, 12, 20_001, dtype=torch.float64)
    log_density = torch.distributions.Normal(0.0, 1.0).log_prob(z)
    for j in (0, 1, 3):
        log_density += torch.distributions.Normal(mean[j], (-0.5 * log_precision[j]).exp()).log_prob(z)
    p = (log_density - log_density.max()).exp()
    p /= p.sum()
    centre = (p * z).sum()
    torch.testing.assert_close(q.mean[0], centre, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(q.var[0], (p * (z - centre) ** 2).sum(), rtol=1e-5, atol=1e-7)


def test_more_pairs_give_a_narrower_posterior() -> None:
    theta, (e, _) = model(2), context(2)
    x = encoder.experts(theta, e)
    widths = [encoder.pool(x, torch.arange(6) < n).log_var for n in range(7)]
    assert all((b < a).all() for a, b in itertools.pairwise(widths))


def test_mean_and_attention_pooling_by_hand() -> None:
    theta, (e, _) = model(3, "attention"), context(3)
    mask = torch.tensor([True, False, True, True, False, False])
    x = encoder.experts(theta, e)
    q = encoder.pool(x, mask, "mean", max_log_var=10.0)
    torch.testing.assert_close(q.mean, x.mean[mask].mean(0))
    torch.testing.assert_close(q.log_var, -x.log_precision[mask].mean(0))
    q = encoder.pool(x, mask, "attention", max_log_var=10.0)
    a = x.score[mask].softmax(0).unsqueeze(-1)
    assert (x.score[mask] != x.score[mask][0]).any()
    torch.testing.assert_close(q.mean, (a * x.mean[mask]).sum(0))
    torch.testing.assert_close(q.log_var, -(a * x.log_precision[mask]).sum(0))


def test_log_variance_is_capped_and_log_precision_clamped() -> None:
    theta, (e, _) = model(4), context(4)
    theta = {k: 50 * v for k, v in theta.items()}
    x = encoder.experts(theta, e)
    assert x.log_precision.abs().max() == encoder.LOG_PRECISION_LIMIT
    some = torch.ones(6, dtype=torch.bool)
    assert (encoder.pool(x._replace(log_precision=x.log_precision - 9), some, "mean", 0.5).log_var == 0.5).all()
    assert (encoder.pool(x, ~some, "poe", -1.0).log_var == -1.0).all()


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_stack_of_clients_is_each_client_alone(pooling: str) -> None:
    theta, (e, mask) = model(5, pooling, clients=3), context(5, 3)
    stacked = encoder.pool(encoder.experts(theta, e), mask, pooling)
    for i in range(3):
        alone = encoder.pool(encoder.experts({k: v[i] for k, v in theta.items()}, e[i]), mask[i], pooling)
        torch.testing.assert_close(stacked.mean[i], alone.mean)
        torch.testing.assert_close(stacked.log_var[i], alone.log_var)

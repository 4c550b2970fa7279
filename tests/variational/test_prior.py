"""The mixture prior: Gumbel-Softmax weights (Eq. 8), floor and anchor, and the three KL estimators (Eq. 7)."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal, kl_divergence

from fedvpa.variational import gaussian, prior
from fedvpa.variational.gaussian import Gaussian
from fedvpa.variational.prior import Mixture

DIM = 3


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mixture(seed: int, peers: int, floor: float = 0.0, defensive: float = 0.0) -> Mixture:
    w = draw(seed, peers).log_softmax(-1)
    return prior.with_standard(w, draw(seed + 1, peers, DIM), draw(seed + 2, peers, DIM).exp(), floor, defensive)


def reference(p: Mixture) -> MixtureSameFamily:
    parts = Independent(Normal(p.means, p.variances.sqrt()), 1)
    return MixtureSameFamily(Categorical(probs=p.log_weights.exp()), parts)


def monte_carlo(q: Gaussian, p: Mixture, samples: int = 65_536, seed: int = 0) -> tuple[float, float]:
    """The `mc` estimate and its standard error, from 64 blocks."""
    blocks = Gaussian(q.mean.expand(64, -1), q.log_var.expand(64, -1))
    z = gaussian.sample(blocks, draw(seed, 64, samples // 64, DIM))
    each = prior.kl_to_mixture(blocks, z, p)
    return float(each.mean()), float(each.std() / 8)


@pytest.mark.parametrize("seed", range(6))
def test_one_component_without_anchor_and_floor_is_the_closed_form(seed: int) -> None:
    q, p = Gaussian(draw(seed, DIM), draw(seed + 50, DIM)), mixture(seed, 1)
    exact = gaussian.kl(q, Gaussian(p.means[0], p.variances[0].log()))
    estimate, error = monte_carlo(q, p)
    assert 0 < error < 0.1
    assert abs(estimate - float(exact)) < 4 * error
    # The other two estimators are exact here.
    for how in ("bound", "moment"):
        torch.testing.assert_close(prior.kl_to_mixture(q, q.mean.unsqueeze(0), p, how), exact)


@pytest.mark.parametrize("seed", range(6))
def test_bound_is_an_upper_bound_of_the_estimate(seed: int) -> None:
    q, p = Gaussian(draw(seed, DIM), draw(seed + 50, DIM)), mixture(seed, 4, 0.1, 0.05)
    estimate, error = monte_carlo(q, p)
    bound = float(prior.kl_to_mixture(q, q.mean.unsqueeze(0), p, "bound"))
    assert bound >= estimate - 4 * error
    assert bound > estimate  # by a wide margin for components this far apart


@given(st.integers(0, 10_000), st.integers(1, 5))
@settings(max_examples=20, deadline=None)
def test_density_is_that_of_torch_distributions(seed: int, peers: int) -> None:
    p, z = mixture(seed, peers, 0.2, 0.05), draw(seed, 7, DIM)
    torch.testing.assert_close(prior.log_density(z, p), reference(p).log_prob(z))


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_moment_estimator_against_an_independent_computation(seed: int) -> None:
    q, p = Gaussian(draw(seed, DIM), draw(seed + 9, DIM)), mixture(seed, 4, 0.3, 0.1)
    mix = reference(p)
    one = Independent(Normal(mix.mean, mix.variance.sqrt()), 1)
    expected = kl_divergence(Independent(Normal(q.mean, q.var.sqrt()), 1), one)
    torch.testing.assert_close(prior.kl_to_mixture(q, q.mean.unsqueeze(0), p, "moment"), expected)


def test_floor_anchor_and_a_client_without_peers() -> None:
    weights = torch.tensor([[0.25, 0.75], [0.0, 0.0]], dtype=torch.float64).log()
    p = prior.with_standard(weights, draw(0, 2, DIM), draw(1, 2, DIM).exp(), floor=0.5, defensive=0.05)
    torch.testing.assert_close(p.variances[:2], draw(1, 2, DIM).exp() + 0.5)
    assert (p.means[2] == 0).all()
    assert (p.variances[2] == 1).all()
    expected = torch.tensor([[0.95 * 0.25, 0.95 * 0.75, 0.05], [0, 0, 1]], dtype=torch.float64)
    torch.testing.assert_close(p.log_weights.exp(), expected)
    q = Gaussian(draw(3, 2, DIM), draw(4, 2, DIM))
    for how in ("bound", "moment"):
        alone = prior.kl_to_mixture(q, q.mean.unsqueeze(1), p, how)[1]
        torch.testing.assert_close(alone, gaussian.kl(q, gaussian.standard(q.mean))[1])


def test_no_gradient_reaches_the_peers_and_the_weights_do_get_one() -> None:
    means, variances = draw(0, 3, DIM).requires_grad_(True), draw(1, 3, DIM).exp().requires_grad_(True)
    log_pi = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    w = prior.log_weights(log_pi, torch.zeros(3).double(), torch.ones(1, 3, dtype=torch.bool), tau=1.0)
    p = prior.with_standard(w, means, variances, 0.5, 0.05)
    q = Gaussian(draw(2, 1, DIM), draw(3, 1, DIM))
    prior.kl_to_mixture(q, gaussian.sample(q, draw(4, 1, 8, DIM)), p).sum().backward()
    assert means.grad is None
    assert variances.grad is None
    assert log_pi.grad.abs().min() > 0


PI = torch.tensor([0.0, 0.7, -0.4, 0.2], dtype=torch.float64)
COUNTS = torch.tensor([10.0, 20.0, 5.0, 40.0], dtype=torch.float64)
ALL = torch.ones(4, dtype=torch.bool)


@pytest.mark.parametrize("tau", [0.5, 1.0, 3.0])
def test_without_noise_the_weights_are_the_tempered_product(tau: float) -> None:
    w = prior.log_weights(PI, COUNTS.log(), ALL, tau).exp()
    expected = (PI.exp() * COUNTS) ** (1 / tau)
    torch.testing.assert_close(w, expected / expected.sum())


def test_at_low_temperature_the_weights_draw_a_peer_with_probability_pi_n() -> None:
    draws = 40_000
    u = torch.rand(draws, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    w = prior.log_weights(PI.expand(draws, 4), COUNTS.log(), ALL, 1e-3, -(-u.log()).log()).exp()
    assert (w.max(-1).values > 0.99).double().mean() > 0.98
    share = w.argmax(-1).bincount(minlength=4) / draws
    expected = PI.exp() * COUNTS / (PI.exp() * COUNTS).sum()
    assert ((share - expected).abs() < 4 * (expected * (1 - expected) / draws).sqrt()).all()


def test_at_high_temperature_the_weights_are_even() -> None:
    w = prior.log_weights(PI, COUNTS.log(), ALL, 1e6, draw(0, 4)).exp()
    torch.testing.assert_close(w, torch.full((4,), 0.25, dtype=torch.float64), atol=1e-5, rtol=0)


def test_uniform_and_sample_weights_ignore_what_was_learned() -> None:
    present = torch.tensor([True, True, False, True])
    uniform = prior.log_weights(PI, COUNTS.log(), present, 0.1, draw(0, 4), "uniform").exp()
    torch.testing.assert_close(uniform, present.double() / 3)
    samples = prior.log_weights(PI, COUNTS.log(), present, 0.1, draw(0, 4), "samples").exp()
    torch.testing.assert_close(samples, COUNTS * present / 70)


@given(st.lists(st.booleans(), min_size=4, max_size=4), st.floats(0.2, 5))
@settings(max_examples=30, deadline=None)
def test_absent_peers_weigh_nothing_and_rows_sum_to_one(present: list[bool], tau: float) -> None:
    mask = torch.tensor(present)
    pi = PI.clone().requires_grad_(True)
    w = prior.log_weights(pi, COUNTS.log(), mask, tau, draw(1, 4))
    assert (w.exp()[~mask] == 0).all()
    assert math.isclose(float(w.detach().exp().sum()), float(mask.any()), abs_tol=1e-12)
    # Also for a client without peers, whose prior is N(0, I), a step must not produce a NaN.
    p = prior.with_standard(w.unsqueeze(0), draw(2, 4, DIM), draw(3, 4, DIM).exp(), 0.5, 0.05)
    prior.log_density(draw(4, 1, 2, DIM), p).sum().backward()
    assert pi.grad.isfinite().all()


@pytest.mark.parametrize("seed", range(4))
def test_the_gradient_of_the_log_density_is_autograds(seed: int) -> None:
    p, z = mixture(seed, 4, 0.1, 0.05), draw(seed + 9, 5, DIM).requires_grad_(True)
    (expected,) = torch.autograd.grad(prior.log_density(z, p).sum(), z)
    torch.testing.assert_close(prior.log_density_gradient(z.detach(), p), expected)

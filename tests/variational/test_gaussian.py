"""Diagonal Gaussians against torch.distributions and direct sampling."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from fedvpa.variational import gaussian
from fedvpa.variational.gaussian import Gaussian

seeds = st.integers(0, 10_000)


def random_gaussian(seed: int, *shape: int) -> Gaussian:
    g = torch.Generator().manual_seed(seed)
    mean, log_var = torch.randn(2, *shape, generator=g, dtype=torch.float64)
    return Gaussian(2 * mean, log_var)


def reference(q: Gaussian) -> Independent:
    return Independent(Normal(q.mean, (0.5 * q.log_var).exp()), 1)


@given(seeds, st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_kl_and_log_prob_are_those_of_torch_distributions(seed: int, dim: int) -> None:
    q, p = random_gaussian(seed, 3, dim), random_gaussian(seed + 1, 3, dim)
    torch.testing.assert_close(gaussian.kl(q, p), kl_divergence(reference(q), reference(p)))
    z = torch.randn(5, 3, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(gaussian.log_prob(z, p), reference(p).log_prob(z))


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_kl_is_zero_for_equals_and_positive_otherwise(seed: int) -> None:
    q, p = random_gaussian(seed, 4), random_gaussian(seed + 1, 4)
    assert abs(float(gaussian.kl(q, q))) < 1e-12
    assert float(gaussian.kl(q, p)) > 0


def test_standard_has_the_shape_and_type_of_its_argument() -> None:
    p = gaussian.standard(torch.full((2, 3), 7.0, dtype=torch.float64))
    assert p.mean.shape == (2, 3)
    assert p.mean.dtype == torch.float64
    assert not p.mean.any()
    assert (p.var == 1).all()


def test_samples_are_reparameterised() -> None:
    mean, log_var = torch.tensor([1.0, -2.0]), torch.tensor([0.0, 2.0])
    mean.requires_grad_(True)
    log_var.requires_grad_(True)
    noise = torch.randn(50_000, 2, generator=torch.Generator().manual_seed(0))
    z = gaussian.sample(Gaussian(mean, log_var), noise)
    torch.testing.assert_close(z.mean(0), mean, atol=0.06, rtol=0)
    torch.testing.assert_close(z.var(0), log_var.exp(), atol=0.02, rtol=0.03)
    z[0].sum().backward()
    torch.testing.assert_close(mean.grad, torch.ones(2))
    torch.testing.assert_close(log_var.grad, 0.5 * (0.5 * log_var.detach()).exp() * noise[0])


def test_total_variance_is_that_of_samples_of_the_equal_mixture() -> None:
    each = random_gaussian(3, 8, 2)
    mean, variance = gaussian.total_variance(each)
    noise = torch.randn(8, 50_000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = gaussian.sample(each, noise).flatten(0, 1)
    error = (variance / len(drawn)).sqrt()
    assert ((drawn.mean(0) - mean).abs() < 4 * error).all()
    torch.testing.assert_close(drawn.var(0), variance, rtol=0.03, atol=0)


def test_total_variance_of_one_posterior_is_that_posterior() -> None:
    q = random_gaussian(1, 1, 3)
    mean, variance = gaussian.total_variance(q)
    torch.testing.assert_close(mean, q.mean[0])
    torch.testing.assert_close(variance, q.var[0])


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_moment_matching_is_the_raw_moments_formula(seed: int) -> None:
    parts = random_gaussian(seed, 4, 3)
    w = torch.rand(2, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    w = w / w.sum(-1, keepdim=True)
    found = gaussian.moment_match(w, parts.mean, parts.var)
    mean = torch.einsum("kc,cd->kd", w, parts.mean)
    second = torch.einsum("kc,cd->kd", w, parts.var + parts.mean**2)
    torch.testing.assert_close(found.mean, mean)
    torch.testing.assert_close(found.var, second - mean**2)


def test_log_prob_agrees_with_the_multivariate_normal() -> None:
    q = random_gaussian(9, 3)
    z = torch.zeros(3, dtype=torch.float64)
    torch.testing.assert_close(gaussian.log_prob(z, q), MultivariateNormal(q.mean, torch.diag(q.var)).log_prob(z))

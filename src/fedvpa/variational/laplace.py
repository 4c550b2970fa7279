"""Bayesian logistic regression of a person's latent under a Gaussian mixture prior, by Laplace's approximation.

The second method's mathematics (laplace.md). Every judgement is an observation that is linear in the latent,
s = <u, z> + o: a choice or a vote y = +-1 with p(y | z) = e + (1 - 2 e) sigmoid(y s), e the error rate; or a rating
y ~ N(s, noise). Per component k of the prior the posterior is N(z_k, H_k^-1) at the mode z_k (Bishop 2006, sections
4.4 and 4.5); the components are weighted by their evidence. All people and components are solved as one batch.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fedvpa.variational.gaussian import LOG_2PI, Gaussian, moment_match

STEPS = 8
"""Newton steps from a component's mean to the mode."""
CONVERGED = 1e-3
"""Newton's error is quadratic: after a step that moved no score by more, the mode is exact to about 1e-6."""
LARGEST_MOVE = 3.0
"""A step is scaled so that no choice's or vote's score moves by more; undamped steps diverged in some runs."""


class Prior(NamedTuple):
    """The population: a mixture of diagonal Gaussians that every person downloads.

    Attributes:
        log_weights: (K,) log pi_k; means, variances: (K, dim).
    """

    log_weights: Tensor
    means: Tensor
    variances: Tensor


class Observations(NamedTuple):
    """What people judged, as linear functions of their latents, padded.

    Attributes:
        slope: (..., n, dim) u; offset: (..., n) o.
        y: (..., n) +1 or -1, or a rating.
        gaussian: (..., n) bool, True where y is a rating.
        weight: (..., n) how often an observation counts; 0 in the padding.
    """

    slope: Tensor
    offset: Tensor
    y: Tensor
    gaussian: Tensor
    weight: Tensor


class Noise(NamedTuple):
    """How far judgements follow the scores.

    Attributes:
        error: () e, the probability that a choice or a vote is given the wrong way round, in [0, 0.5).
        rating: () variance of a rating around its score.
    """

    error: Tensor
    rating: Tensor


class Posterior(NamedTuple):
    """q(z | judgements) as a mixture of Gaussians.

    Attributes:
        log_weights: (..., K) log r_k, normalised.
        means: (..., K, dim) the modes z_k.
        root: (..., K, dim, dim) lower Cholesky factors of the precisions H_k.
        evidence: (..., K) e_k = log p(judgements | component k), approximately.
    """

    log_weights: Tensor
    means: Tensor
    root: Tensor
    evidence: Tensor

    @property
    def mean(self) -> Tensor:
        """(..., dim)"""
        return (self.log_weights.exp().unsqueeze(-1) * self.means).sum(-2)

    def variances(self) -> Tensor:
        """(..., K, dim) diagonals of H_k^-1."""
        return torch.cholesky_inverse(self.root).diagonal(dim1=-2, dim2=-1)


def log_likelihood(score: Tensor, seen: Observations, noise: Noise) -> Tensor:
    """log p(y | s) of each observation, times its weight.

    Args:
        score: (..., K, n) under K latents each; `seen` has (..., n).

    Returns:
        (..., K, n)
    """
    y, e = seen.y.unsqueeze(-2), noise.error
    # log(e + (1 - 2 e) sigmoid(y s)) without under- or overflow, also for e = 0.
    choice = torch.logaddexp(F.logsigmoid(y * score) + torch.log1p(-e), F.logsigmoid(-y * score) + torch.log(e))
    rating = -0.5 * ((y - score) ** 2 / noise.rating + torch.log(noise.rating) + LOG_2PI)
    return torch.where(seen.gaussian.unsqueeze(-2), rating, choice) * seen.weight.unsqueeze(-2)


def _derivatives(score: Tensor, seen: Observations, noise: Noise) -> tuple[Tensor, Tensor]:
    """d log p / ds and the expected -d2 log p / ds2 (Fisher's information, which is never negative), (..., K, n)."""
    y, weight, e = seen.y.unsqueeze(-2), seen.weight.unsqueeze(-2), noise.error

    def meant(x: Tensor) -> Tensor:
        """(1 - 2 e) sigmoid(x) / (e + (1 - 2 e) sigmoid(x)), also where the sigmoid is 0 in floating point."""
        return (1 - 2 * e) / (1 - e + e * (-x).clamp(max=80).exp())

    x = y * score
    right, wrong = torch.sigmoid(x), torch.sigmoid(-x)
    gaussian = seen.gaussian.unsqueeze(-2)
    first = torch.where(gaussian, (y - score) / noise.rating, y * meant(x) * wrong)
    second = torch.where(gaussian, 1 / noise.rating, meant(x) * meant(-x) * right * wrong)
    return first * weight, second * weight


def as_posterior(prior: Prior, people: int) -> Posterior:
    """What is believed of people before they judged anything: r = pi, z_k = m_k, H_k = diag(1 / v_k)."""
    root = torch.diag_embed(prior.variances.rsqrt())
    each = (prior.log_weights, prior.means, root, torch.zeros_like(prior.log_weights))
    return Posterior(*(t.expand(people, *t.shape) for t in each))


def infer(seen: Observations, prior: Prior, noise: Noise, steps: int = STEPS) -> Posterior:
    """The posterior of each person from all of its judgements; see `update`. seen: (people, n)"""
    return update(as_posterior(prior, len(seen.y)), seen, noise, steps)


def update(before: Posterior, seen: Observations, noise: Noise, steps: int = STEPS) -> Posterior:
    """The posterior after further judgements, from the one before them, which stands in for the older ones.

    With N(m_k, P_k^-1) for the components before:

    1. z_k = argmax of the log likelihood + log N(z; m_k, P_k^-1), by damped Newton steps from m_k.
    2. H_k = P_k + sum_i curvature_i u_i u_i^T at z_k.
    3. e_k = log likelihood(z_k) - 1/2 (z_k - m_k)^T P_k (z_k - m_k) + 1/2 log det P_k - 1/2 log det H_k;
       r_k is proportional to the weight before times exp(e_k).

    Args:
        before: (people, K); seen: (people, n) padded. Without observations nothing changes.
        steps: Newton steps at most; a person's end when none of its scores moves by more than `CONVERGED`.
    """
    if not seen.y.shape[-1]:
        return before
    precision = before.root @ before.root.mT
    z, root = before.means, before.root
    score = seen.offset.unsqueeze(-2) + z @ seen.slope.mT
    # A person's steps must not depend on who else is in the batch: padding moves nothing, and who is done stays.
    real = (seen.weight > 0).unsqueeze(-2)
    damped = real & ~seen.gaussian.unsqueeze(-2)  # ratings are quadratic: a full step is exact
    going = torch.ones_like(z[..., :1])
    for step in range(steps + 1):
        first, second = _derivatives(score, seen, noise)
        root = torch.linalg.cholesky(
            (second.unsqueeze(-1) * seen.slope.unsqueeze(-3)).mT @ seen.slope.unsqueeze(-3) + precision
        )
        if step == steps or not bool(going.any()):
            break
        gradient = first @ seen.slope - _times(precision, z - before.means)
        move = torch.cholesky_solve(gradient.unsqueeze(-1), root).squeeze(-1)
        moved = move @ seen.slope.mT
        scale = LARGEST_MOVE / (moved.abs() * damped).amax(-1, keepdim=True).clamp(min=LARGEST_MOVE) * going
        moved = scale * moved
        z, score = z + scale * move, score + moved
        going = going * ((moved.abs() * real).amax(-1, keepdim=True) >= CONVERGED)
    away = z - before.means
    distance = (away * _times(precision, away)).sum(-1)
    evidence = log_likelihood(score, seen, noise).sum(-1) - 0.5 * distance + _log_root(before.root) - _log_root(root)
    return Posterior((before.log_weights + evidence).log_softmax(-1), z, root, before.evidence + evidence)


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    """(..., dim, dim) times (..., dim)."""
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def _log_root(root: Tensor) -> Tensor:
    """1/2 log det of the precision with the Cholesky factor (..., dim, dim)."""
    return root.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def predict(posterior: Posterior, slope: Tensor, offset: Tensor) -> Tensor:
    """p(a > b) = sum_k r_k sigmoid(m_k / sqrt(1 + pi/8 u^T H_k^-1 u)), m_k = <u, z_k> + o (MacKay 1992).

    Args:
        slope: (..., q, dim), offset: (..., q) of the questions.

    Returns:
        (..., q)
    """
    mean, variance = score_moments(posterior, slope, offset)
    p = torch.sigmoid(mean / torch.sqrt(1 + math.pi / 8 * variance))
    return (posterior.log_weights.exp().unsqueeze(-1) * p).sum(-2)


def score_moments(posterior: Posterior, slope: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of s under each component, (..., K, q); see `predict` for the arguments."""
    mean = posterior.means @ slope.mT + offset.unsqueeze(-2)
    half = torch.linalg.solve_triangular(posterior.root, slope.mT.unsqueeze(-3), upper=False)
    return mean, (half**2).sum(-2)


def sample(posterior: Posterior, uniform: Tensor, normal: Tensor) -> Tensor:
    """Samples of z: a component by r_k, then N(z_k, H_k^-1).

    Args:
        uniform: (..., samples) in [0, 1); normal: (..., samples, dim).

    Returns:
        (..., samples, dim)
    """
    edges = posterior.log_weights.exp().cumsum(-1)
    k = (uniform.unsqueeze(-1) >= edges[..., None, :-1]).sum(-1)
    dim = normal.shape[-1]
    means = posterior.means.gather(-2, k.unsqueeze(-1).expand(*k.shape, dim))
    # One solve per component for all samples, then each sample takes its component's.
    each = torch.linalg.solve_triangular(posterior.root.mT, normal.mT.unsqueeze(-3), upper=True).mT
    chosen = each.gather(-3, k[..., None, :, None].expand(*each.shape[:-3], 1, *each.shape[-2:])).squeeze(-3)
    return means + chosen


class Sums(NamedTuple):
    """What one person adds to an exact step of EM on the prior; only the sums over people are needed.

    Attributes:
        count: (..., K) r_k; first: (..., K, dim) r_k z_k; second: (..., K, dim) r_k (diag H_k^-1 + z_k^2).
    """

    count: Tensor  # type: ignore[assignment]  # shadows tuple.count, which is not used here
    first: Tensor
    second: Tensor


def sums(posterior: Posterior) -> Sums:
    """n_k, a_k, b_k of each person."""
    r = posterior.log_weights.exp()
    z, weight = posterior.means, r.unsqueeze(-1)
    return Sums(r, weight * z, weight * (posterior.variances() + z**2))


def maximise(total: Sums, floor: float, shrink: float = 0.0) -> Prior:
    """The M step: pi_k = n_k / N, m_k = a_k / n_k, v_k = b_k / n_k - m_k^2, floored.

    Args:
        total: sums over people.
        floor: least variance.
        shrink: people's worth of N(0, 1) that is added to every component (MAP); 0 is maximum likelihood.
    """
    count = total.count.unsqueeze(-1).clamp(min=1e-6)
    means = total.first / (count + shrink)
    second = (total.second + shrink) / (count + shrink)
    weights = (total.count + shrink) / (total.count + shrink).sum()
    return Prior(weights.clamp(min=1e-12).log(), means, (second - means**2).clamp(min=floor))


def split(prior: Prior, components: int, generator: torch.Generator) -> Prior:
    """K components in the place of one Gaussian: means drawn from it, half its variances each, equal weights."""
    mean, variance = prior.means[0], prior.variances[0]
    noise = torch.randn(components, len(mean), generator=generator).to(mean)
    weights = torch.full((components,), -math.log(components), dtype=mean.dtype)
    return Prior(weights, mean + variance.sqrt() * noise, (variance / 2).expand(components, -1).clone())


def moment_matched(prior: Prior) -> Prior:
    """The one diagonal Gaussian with the mixture's mean and variances."""
    matched = moment_match(prior.log_weights.exp(), prior.means, prior.variances)
    return Prior(torch.zeros_like(prior.log_weights[:1]), matched.mean.unsqueeze(0), matched.var.unsqueeze(0))


def moments(posterior: Posterior) -> Gaussian:
    """The diagonal Gaussian (..., dim) with a mixture posterior's mean and variances."""
    return moment_match(posterior.log_weights.exp(), posterior.means, posterior.variances())

"""Bayesian logistic regression of a person's latent under a Gaussian mixture prior, by Laplace's approximation.

The second method's mathematics (laplace.md). Every judgement is an observation that is linear in the latent,
s = <u, z> + o: a choice or a vote y = +-1 with p(y | z) = e + (1 - 2 e) sigmoid(y s), e the error rate; or a rating
y ~ N(s, noise). Per component k of the prior the posterior is N(z_k, H_k^-1) at the mode z_k (Bishop 2006, sections
4.4 and 4.5); the components are weighted by their evidence. All people and components are solved as one batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fedvpa.variational.blocks import each
from fedvpa.variational.gaussian import LOG_2PI, Gaussian, moment_match

STEPS = 8
"""Newton steps from a component's mean to the mode."""
CONVERGED = 1e-3
"""Newton's error is quadratic: after a step that moved no score by more, the mode is exact to about 1e-6."""
AT_ONCE = 512
"""Components that are solved together: few enough for the cache."""
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
        one = torch.eye(self.root.shape[-1], dtype=self.root.dtype)
        return (torch.linalg.solve_triangular(self.root, one, upper=False) ** 2).sum(-2)


def log_likelihood(score: Tensor, seen: Observations, noise: Noise) -> Tensor:
    """log p(y | s) of each observation, times its weight.

    Args:
        score: (..., K, n) under K latents each; `seen` has (..., n).

    Returns:
        (..., K, n)
    """
    return _log_likelihood(score, _answers(seen, score), noise)


class Answers(NamedTuple):
    """`Observations` without their slopes and offsets, in the shape of the scores; `gaussian` None without ratings."""

    y: Tensor
    gaussian: Tensor | None
    weight: Tensor

    def map(self, change: Callable[[Tensor], Tensor]) -> Answers:
        return Answers(*(None if t is None else change(t) for t in self))  # type: ignore[arg-type]


def _answers(seen: Observations, score: Tensor) -> Answers:
    """seen (..., n) for scores (..., K, n)"""
    rated = seen.gaussian if bool(seen.gaussian.any()) else None
    return Answers(seen.y, rated, seen.weight).map(lambda t: t.unsqueeze(-2).expand_as(score))


def _log_likelihood(score: Tensor, given: Answers, noise: Noise) -> Tensor:
    y, e = given.y, noise.error
    right = F.logsigmoid(y * score)
    if e > 0:  # log(e + (1 - 2 e) sigmoid(y s)) without under- or overflow
        right = torch.logaddexp(right + torch.log1p(-e), F.logsigmoid(-y * score) + torch.log(e))
    if given.gaussian is not None:
        rating = -0.5 * ((y - score) ** 2 / noise.rating + torch.log(noise.rating) + LOG_2PI)
        right = torch.where(given.gaussian, rating, right)
    return right * given.weight


def _derivatives(score: Tensor, given: Answers, noise: Noise) -> tuple[Tensor, Tensor]:
    """d log p / ds and the expected -d2 log p / ds2 (Fisher's information, which is never negative)."""
    y, e = given.y, noise.error
    x = y * score
    right, wrong = torch.sigmoid(x), torch.sigmoid(-x)
    first, second = y * wrong, right * wrong
    if e > 0:
        first, second = first * _meant(x, e), second * _meant(x, e) * _meant(-x, e)
    if given.gaussian is not None:
        first = torch.where(given.gaussian, (y - score) / noise.rating, first)
        second = torch.where(given.gaussian, 1 / noise.rating, second)
    return first * given.weight, second * given.weight


def _meant(x: Tensor, e: Tensor) -> Tensor:
    """(1 - 2 e) sigmoid(x) / (e + (1 - 2 e) sigmoid(x)), also where the sigmoid is 0 in floating point."""
    return (1 - 2 * e) / (1 - e + e * (-x).clamp(max=80).exp())


def as_posterior(prior: Prior, people: int) -> Posterior:
    """What is believed of people before they judged anything: r = pi, z_k = m_k, H_k = diag(1 / v_k)."""
    root = torch.diag_embed(prior.variances.rsqrt())
    each = (prior.log_weights, prior.means, root, torch.zeros_like(prior.log_weights))
    return Posterior(*(t.expand(people, *t.shape) for t in each))


def infer(seen: Observations, prior: Prior, noise: Noise, steps: int = STEPS) -> Posterior:
    """The posterior of each person from all of its judgements; see `update`. seen: (people, n)"""
    return _in_blocks(as_posterior(prior, len(seen.y)), seen, noise, steps, diagonal=True)


def update(before: Posterior, seen: Observations, noise: Noise, steps: int = STEPS) -> Posterior:
    """The posterior after further judgements, from the one before them, which stands in for the older ones.

    With N(m_k, P_k^-1) for the components before:

    1. z_k = argmax of the log likelihood + log N(z; m_k, P_k^-1), by damped Newton steps from m_k.
    2. H_k = P_k + sum_i curvature_i u_i u_i^T at z_k.
    3. e_k = log likelihood(z_k) - 1/2 (z_k - m_k)^T P_k (z_k - m_k) + 1/2 log det P_k - 1/2 log det H_k;
       r_k is proportional to the weight before times exp(e_k).

    Args:
        before: (people, K); seen: (people, n) padded. Without observations nothing changes.
        steps: Newton steps at most; a component's end when no score moves by more than `CONVERGED`.
    """
    return _in_blocks(before, seen, noise, steps, diagonal=False)


def _in_blocks(before: Posterior, seen: Observations, noise: Noise, steps: int, diagonal: bool) -> Posterior:
    """`_update`, some people at a time."""
    if not seen.y.shape[-1]:
        return before
    blocks = -(-before.log_weights.numel() // AT_ONCE)
    parts = list(zip(*(zip(*(t.tensor_split(blocks) for t in ts), strict=True) for ts in (before, seen)), strict=True))
    found = each(lambda p: _update(Posterior(*p[0]), Observations(*p[1]), noise, steps, diagonal), parts)
    return found[0] if len(found) == 1 else Posterior(*(torch.cat(t) for t in zip(*found, strict=True)))


def _update(before: Posterior, seen: Observations, noise: Noise, steps: int, diagonal: bool) -> Posterior:
    """See `update`. diagonal: whether the precisions before are.

    With P_k = R R^T and x = R^T (z - m_k) the prior of x is N(0, I), and a score is linear in it: s = s_0 + <a, x>,
    a = R^-1 u. So H_k = R (I + sum_i curvature_i a_i a_i^T) R^T.
    """
    root = before.root
    scale = root.diagonal(dim1=-2, dim2=-1)
    u = seen.slope.unsqueeze(-3)
    a = u / scale.unsqueeze(-2) if diagonal else torch.linalg.solve_triangular(root, u.mT, upper=False).mT
    start = seen.offset.unsqueeze(-2) + before.means @ seen.slope.mT
    given = _answers(seen, start)
    x, score = _mode(a, start, given, noise, steps)
    inner = torch.linalg.cholesky(_inner(a, _derivatives(score, given, noise)[1]))
    away = x / scale if diagonal else torch.linalg.solve_triangular(root.mT, x.unsqueeze(-1), upper=True).squeeze(-1)
    evidence = _log_likelihood(score, given, noise).sum(-1) - 0.5 * (x**2).sum(-1) - _log_root(inner)
    return Posterior(
        (before.log_weights + evidence).log_softmax(-1),
        before.means + away,
        scale.unsqueeze(-1) * inner if diagonal else root @ inner,
        before.evidence + evidence,
    )


def _mode(a: Tensor, start: Tensor, given: Answers, noise: Noise, steps: int) -> tuple[Tensor, Tensor]:
    """argmax over x of sum_i log p(y_i | s_i) - |x|^2 / 2 with s = start + a x, by damped Newton steps from 0.

    With fewer observations than dimensions the steps are taken in the dual: x = a^T alpha, s = start + a a^T alpha
    (Rasmussen and Williams 2006, algorithm 3.1). A component leaves when it has converged.

    Args:
        a: (people, K, n, dim); start: (people, K, n).

    Returns:
        x (people, K, dim) and its scores (people, K, n).
    """
    dual = a.shape[-2] < a.shape[-1]
    newton, design = (_dual_move, (a @ a.mT).flatten(0, 1)) if dual else (_move, a.flatten(0, 1))
    given, score = given.map(lambda t: t.flatten(0, 1)), start.flatten(0, 1)
    # A component's steps do not depend on padding, and ratings, which are quadratic, need no damping.
    real = (given.weight > 0).to(score)
    damped = real if given.gaussian is None else real * ~given.gaussian
    place = score.new_zeros(len(score), design.shape[-1])
    left, places, scores = torch.arange(len(score)), place.clone(), score.clone()
    for _ in range(steps):
        move = newton(design, place, *_derivatives(score, given, noise))
        moved = _times(design, move)
        size = moved.abs()
        largest = (size * real).amax(-1, keepdim=True)
        restless = largest if damped is real else (size * damped).amax(-1, keepdim=True)
        damping = LARGEST_MOVE / restless.clamp(min=LARGEST_MOVE)
        place, score = place + damping * move, score + damping * moved
        going = (largest.squeeze(-1) >= CONVERGED).nonzero().squeeze(-1)
        if len(going) == len(left):
            continue
        places, scores = places.index_copy(0, left, place), scores.index_copy(0, left, score)
        if not len(going):
            break
        alike = damped is real
        left, place, score, design, real = (t[going] for t in (left, place, score, design, real))
        damped = real if alike else damped[going]
        given = given.map(lambda t, going=going: t[going])  # type: ignore[misc]
    places, scores = places.index_copy(0, left, place), scores.index_copy(0, left, score)
    places = places.view(*start.shape[:-1], -1)
    return _times(a.mT, places) if dual else places, scores.view_as(start)


def _inner(a: Tensor, curvature: Tensor) -> Tensor:
    """I + sum_i curvature_i a_i a_i^T"""
    product = (curvature.unsqueeze(-1) * a).mT @ a
    product.diagonal(dim1=-2, dim2=-1).add_(1.0)
    return product


def _move(a: Tensor, x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Newton's step of x: (I + a^T W a)^-1 (a^T first - x), with W = diag(second)."""
    gradient = _times(a.mT, first) - x
    return torch.cholesky_solve(gradient.unsqueeze(-1), torch.linalg.cholesky(_inner(a, second))).squeeze(-1)


def _dual_move(gram: Tensor, alpha: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """The same of alpha: (I + W G)^-1 (first - alpha) with G = a a^T, by way of B = I + W^1/2 G W^1/2."""
    gradient, half = first - alpha, second.sqrt()
    b = half.unsqueeze(-1) * gram * half.unsqueeze(-2)
    b.diagonal(dim1=-2, dim2=-1).add_(1.0)
    right = half * _times(gram, gradient)
    return gradient - half * torch.cholesky_solve(right.unsqueeze(-1), torch.linalg.cholesky(b)).squeeze(-1)


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    """(..., dim, dim) times (..., dim)."""
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def _log_root(root: Tensor) -> Tensor:
    """1/2 log det of the precision with the Cholesky factor (..., dim, dim)."""
    return root.diagonal(dim1=-2, dim2=-1).log().sum(-1)


class Calibration(NamedTuple):
    """How far predictions of people who never trained can be trusted; 1 and 1 leave them as the model says.

    Attributes:
        scale: () factor of scores; below 1 where scores of new texts are too large.
        doubt: () factor of the posterior's variances.
    """

    scale: Tensor
    doubt: Tensor


def predict(posterior: Posterior, slope: Tensor, offset: Tensor, calibration: Calibration | None = None) -> Tensor:
    """p(a > b) = sum_k r_k sigmoid(m_k / sqrt(1 + pi/8 u^T H_k^-1 u)), m_k = <u, z_k> + o (MacKay 1992).

    Args:
        slope: (..., q, dim), offset: (..., q) of the questions.
        calibration: None for 1 and 1.

    Returns:
        (..., q)
    """
    return predictive(posterior.log_weights, *score_moments(posterior, slope, offset), calibration)


def predictive(log_weights: Tensor, mean: Tensor, variance: Tensor, calibration: Calibration | None = None) -> Tensor:
    """`predict` from the scores' moments. log_weights: (..., K); mean, variance: (..., K, q)"""
    if calibration is not None:
        mean, variance = calibration.scale * mean, calibration.scale**2 * calibration.doubt * variance
    p = torch.sigmoid(mean / torch.sqrt(1 + math.pi / 8 * variance))
    return (log_weights.exp().unsqueeze(-1) * p).sum(-2)


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


def without_unused(prior: Prior, least: float) -> Prior:
    """The components whose weight is at least ``least``, or the heaviest one; inference costs as much as there are."""
    kept = prior.log_weights >= min(math.log(least), float(prior.log_weights.max()))
    return Prior(prior.log_weights[kept].log_softmax(-1), prior.means[kept], prior.variances[kept])


def moment_matched(prior: Prior) -> Prior:
    """The one diagonal Gaussian with the mixture's mean and variances."""
    matched = moment_match(prior.log_weights.exp(), prior.means, prior.variances)
    return Prior(torch.zeros_like(prior.log_weights[:1]), matched.mean.unsqueeze(0), matched.var.unsqueeze(0))


def moments(posterior: Posterior) -> Gaussian:
    """The diagonal Gaussian (..., dim) with a mixture posterior's mean and variances."""
    return moment_match(posterior.log_weights.exp(), posterior.means, posterior.variances())

"""Diagonal Gaussians: the posteriors q(z|C) and the components of the prior."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

LOG_2PI = math.log(2 * math.pi)


class Gaussian(NamedTuple):
    """N(mean, diag exp(log_var)).

    Attributes:
        mean: (..., dim)
        log_var: (..., dim)
    """

    mean: Tensor
    log_var: Tensor

    @property
    def var(self) -> Tensor:
        """(..., dim)"""
        return self.log_var.exp()


def standard(like: Tensor) -> Gaussian:
    """N(0, I) with the shape, type and device of `like` (..., dim)."""
    return Gaussian(torch.zeros_like(like), torch.zeros_like(like))


def sample(q: Gaussian, noise: Tensor) -> Tensor:
    """Reparameterised samples z = mu + sigma * noise.

    Args:
        q: (..., dim)
        noise: (..., samples, dim) standard normal

    Returns:
        (..., samples, dim)
    """
    return q.mean.unsqueeze(-2) + (0.5 * q.log_var).exp().unsqueeze(-2) * noise


def log_prob(z: Tensor, p: Gaussian) -> Tensor:
    """log N(z; p), summed over the dimensions.

    Args:
        z: (..., dim), broadcast against `p`.

    Returns:
        (...)
    """
    return -0.5 * ((z - p.mean) ** 2 * (-p.log_var).exp() + p.log_var + LOG_2PI).sum(-1)


def kl(q: Gaussian, p: Gaussian) -> Tensor:
    """KL(q || p) in closed form, in nats, summed over the dimensions.

    Returns:
        (...) after broadcasting `q` against `p`.
    """
    ratio = (q.log_var - p.log_var).exp()
    distance = (q.mean - p.mean) ** 2 * (-p.log_var).exp()
    return 0.5 * (ratio + distance - 1 - q.log_var + p.log_var).sum(-1)


def total_variance(posteriors: Gaussian) -> tuple[Tensor, Tensor]:
    """Mean and variance of an equal mixture of posteriors (law of total variance).

    The statistics that a client uploads: over R random contexts, mubar = mean mu_r and
    sbar^2 = mean sigma_r^2 + variance of the mu_r (method.md, section 6).

    Args:
        posteriors: (..., R, dim)

    Returns:
        mubar (..., dim) and sbar^2 (..., dim).
    """
    mean = posteriors.mean.mean(-2)
    return mean, posteriors.var.mean(-2) + ((posteriors.mean - mean.unsqueeze(-2)) ** 2).mean(-2)


def moment_match(weights: Tensor, means: Tensor, variances: Tensor) -> Gaussian:
    """The Gaussian with the mean and variance of a mixture: mean = sum w mu, var = sum w (s^2 + mu^2) - mean^2.

    Args:
        weights: (..., components), summing to 1.
        means, variances: (components, dim) or (..., components, dim)
    """
    w = weights.unsqueeze(-1)
    mean = (w * means).sum(-2)
    second = (w * (variances + (means - mean.unsqueeze(-2)) ** 2)).sum(-2)
    return Gaussian(mean, second.log())

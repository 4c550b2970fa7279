"""The federated mixture prior with Gumbel-Softmax weights (Eqs. 6 to 8; method.md, section 5)."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fedvpa.variational import gaussian
from fedvpa.variational.gaussian import LOG_2PI, Gaussian

Weights = Literal["gumbel", "uniform", "samples"]
Estimator = Literal["mc", "bound", "moment"]


class Mixture(NamedTuple):
    """A Gaussian mixture per client, over components that all clients share or over its own.

    Attributes:
        log_weights: (..., components) normalised; -inf where a component is absent (a client's own posterior).
        means: (components, dim), or (..., components, dim)
        variances: the same, the floor included.
    """

    log_weights: Tensor
    means: Tensor
    variances: Tensor


def log_weights(
    log_pi: Tensor,
    log_counts: Tensor,
    present: Tensor,
    tau: float,
    gumbel: Tensor | None = None,
    how: Weights = "gumbel",
) -> Tensor:
    """log w_i of Eq. 8: w_i = softmax((log pi_i + log n_j + g) / tau).

    Args:
        log_pi: (..., peers) the client's learned logits.
        log_counts: (peers,) log n_j, the peers' numbers of examples.
        present: (..., peers) False for peers that have no posterior yet and for the client itself.
        gumbel: (..., peers) Gumbel(0, 1) noise in training, None otherwise.
        how: ``uniform`` over the peers and ``samples`` (w_j proportional to n_j) ignore log pi, noise and tau.

    Returns:
        (..., peers). A client without any peer gets -inf everywhere.
    """
    if how == "uniform":
        logits = torch.zeros_like(log_pi)
    elif how == "samples":
        logits = torch.zeros_like(log_pi) + log_counts
    else:
        logits = (log_pi + log_counts + (0 if gumbel is None else gumbel)) / tau
    none = ~present.any(-1, keepdim=True)
    logits = logits.masked_fill(~present & ~none, float("-inf"))
    return logits.log_softmax(-1).masked_fill(~present, float("-inf"))


def with_standard(weights: Tensor, means: Tensor, variances: Tensor, floor: float, defensive: float) -> Mixture:
    """Adds the variance floor tau0^2 and the defensive N(0, I) component (ours).

    A client without any peer gets N(0, I) alone.

    Args:
        weights: (..., peers) from `log_weights`.
        means, variances: (peers, dim) the peers' uploaded mubar and sbar^2, or (..., peers, dim); detached, no gradient
            reaches a peer.
        floor: tau0^2, added to each peer's variance.
        defensive: weight of the N(0, I) component.
    """
    means, variances = means.detach(), variances.detach() + floor
    alone = torch.isneginf(weights).all(-1, keepdim=True)
    rest = math.log(defensive) if defensive > 0 else float("-inf")
    last = torch.where(alone, 0.0, rest).to(weights.dtype)
    keep = weights + math.log1p(-defensive)
    one = torch.ones_like(means[..., :1, :])
    return Mixture(torch.cat([keep, last], -1), torch.cat([means, 0 * one], -2), torch.cat([variances, one], -2))


def log_density(z: Tensor, p: Mixture) -> Tensor:
    """log p_mix(z) by log-sum-exp, with the quadratic form expanded into matrix products.

    Args:
        z: (..., samples, dim)

    Returns:
        (..., samples)
    """
    return torch.logsumexp(_log_joint(z, p), -1)


def log_density_gradient(z: Tensor, p: Mixture) -> Tensor:
    """d log p_mix(z) / dz = sum_j r_j (m_j - z) / v_j, r_j the probability of component j given z.

    Args:
        z: (..., samples, dim)

    Returns:
        (..., samples, dim)
    """
    r = _log_joint(z, p).softmax(-1)
    precision = 1 / p.variances
    return r @ (p.means * precision) - (r @ precision) * z


def _log_joint(z: Tensor, p: Mixture) -> Tensor:
    """log w_j + log N(z; m_j, v_j), (..., samples, components)."""
    precision = 1 / p.variances
    offset = (p.means**2 * precision + p.variances.log() + LOG_2PI).sum(-1)
    quadratic = (z**2) @ precision.mT - 2 * z @ (p.means * precision).mT + offset.unsqueeze(-2)
    return p.log_weights.unsqueeze(-2) - 0.5 * quadratic


def kl_to_mixture(q: Gaussian, samples: Tensor, p: Mixture, how: Estimator = "mc") -> Tensor:
    """KL(q || p_mix) of Eq. 7, in nats, summed over the latent's dimensions.

    ``mc``: Monte Carlo with reparameterised samples. ``bound``: sum_j w_j KL(q || N_j), an upper bound by convexity.
    ``moment``: KL to the one Gaussian with the mixture's mean and variance (VMTL).

    Args:
        q: (..., dim)
        samples: (..., samples, dim) drawn from q by reparameterisation.
        p: log_weights (..., components)

    Returns:
        (...)
    """
    if how == "mc":
        entropy_part = gaussian.log_prob(samples, Gaussian(q.mean.unsqueeze(-2), q.log_var.unsqueeze(-2)))
        return (entropy_part - log_density(samples, p)).mean(-1)
    if how == "bound":
        each = gaussian.kl(Gaussian(*(t.unsqueeze(-2) for t in q)), Gaussian(p.means, p.variances.log()))
        return (p.log_weights.exp() * each).sum(-1)
    return gaussian.kl(q, gaussian.moment_match(p.log_weights.exp(), p.means, p.variances))

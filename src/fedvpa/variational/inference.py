"""Inference for a user from a few labelled pairs, without training (method.md, section 7).

Every inference yields *particles*: latents with weights. A prediction is the weighted mean of the selector's
probabilities under the particles, so amortised, mixture and refined inference share one predictive.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fedvpa.variational.encoder import Experts
from fedvpa.variational.objective import responsibilities
from fedvpa.variational.prior import Mixture, log_density, log_density_gradient
from fedvpa.variational.selector import linear_in_latent, score

Inference = Literal["amortised", "mixture", "refined"]
INFERENCES: tuple[Inference, ...] = ("amortised", "mixture", "refined")


class Particles(NamedTuple):
    """A user's latent as weighted points.

    Attributes:
        z: (..., particles, dim)
        log_weights: (..., particles), normalised.
    """

    z: Tensor
    log_weights: Tensor

    @staticmethod
    def point(z: Tensor) -> Particles:
        """One particle of weight 1. z: (..., dim)"""
        return Particles(z.unsqueeze(-2), z.new_zeros((*z.shape[:-1], 1)))

    @property
    def mean(self) -> Tensor:
        """(..., dim)"""
        return (self.log_weights.exp().unsqueeze(-1) * self.z).sum(-2)


def predictive(theta: Mapping[str, Tensor], particles: Particles, d: Tensor, base_logit: Tensor | None) -> Tensor:
    """p(a > b | x, C) = sum_k r_k sigmoid(s(x, a, b; z_k)).

    Args:
        particles: (..., particles, dim)
        d: (..., pairs, h), or (pairs, h) for the same pairs under every user's particles.
        base_logit: (..., pairs) or (pairs,), or None.

    Returns:
        (..., pairs)
    """
    z = particles.z
    if d.dim() == 2:  # one product for all users
        logits = score(theta, d, z.flatten(0, -2), base_logit).unflatten(0, z.shape[:-1])
    else:
        logits = score(theta, d, z, base_logit)
    p = torch.sigmoid(logits)
    return (particles.log_weights.exp().unsqueeze(-1) * p).sum(-2)


def mixture_particles(
    theta: Mapping[str, Tensor],
    centres: Tensor,
    log_shares: Tensor,
    d: Tensor,
    base_logit: Tensor | None,
    y: Tensor,
    context: Tensor,
    evidence: Tensor | None = None,
) -> Particles:
    """Mixture inference (ours): the M centres, weighted by their responsibility for the context.

    Args:
        centres: (M, dim) prototypes, or centroids of posteriors.
        log_shares: (M,) log w_k.
        d: (..., pairs, h); base_logit, y: (..., pairs); context: (..., pairs) True for context pairs.
        evidence: (..., M) further log evidence for each centre, such as `expert_evidence`.

    Returns:
        Particles (..., M, dim).
    """
    z = centres.expand(*d.shape[:-2], *centres.shape)
    log_r = responsibilities(score(theta, d, z, base_logit), y, context, log_shares)
    return Particles(z, log_r if evidence is None else (log_r + evidence).log_softmax(-1))


def expert_evidence(x: Experts, centres: Tensor, context: Tensor) -> Tensor:
    """What the encoder says of each centre: sum over context pairs of log N(p_k; m_j, 1/t_j), up to a constant (ours).

    The decoder's likelihood asks "would this user give these labels?"; the experts also see *which* pairs a user
    compares. The two err differently, so that together they tell users apart better than either.

    Args:
        x: experts (..., pairs, dim); centres: (M, dim) or (..., M, dim); context: (..., pairs) True for context pairs.

    Returns:
        (..., M)
    """
    t = x.log_precision.exp() * context.unsqueeze(-1)
    # sum_j t_j (p - m_j)^2 without the term that does not depend on p.
    linear, square = (t * x.mean).sum(-2, keepdim=True), t.sum(-2, keepdim=True)
    return (linear @ centres.mT - 0.5 * square @ (centres**2).mT).squeeze(-2)


def refine(
    theta: Mapping[str, Tensor],
    starts: Tensor,
    prior: Mixture,
    d: Tensor,
    base_logit: Tensor | None,
    y: Tensor,
    context: Tensor,
    steps: int = 50,
    learning_rate: float = 0.1,
) -> Tensor:
    """Refined inference (ours): gradient steps on log p(C | z) + log p_mix(z) from the best of several starts.

    Args:
        starts: (users, starts, dim); the start with the highest objective is taken per user.
        prior: log_weights (1, components) over shared components.
        d: (users, pairs, h); base_logit, y, context: (users, pairs).

    Returns:
        (users, dim), the point that the steps reach.
    """

    slope, offset = linear_in_latent(theta, d, base_logit)

    def margin(z: Tensor) -> Tensor:
        return y.unsqueeze(-2) * (z @ slope.mT + offset.unsqueeze(-2))

    likelihood = (F.logsigmoid(margin(starts)) * context.unsqueeze(-2)).sum(-1)
    best = (likelihood + log_density(starts, prior)).argmax(-1)
    z = starts[torch.arange(len(starts), device=starts.device), best].unsqueeze(1).clone()
    optimizer = torch.optim.Adam([z], lr=learning_rate)
    signed = (y * context).unsqueeze(-1) * slope
    for _ in range(steps):
        # d log p(C | z) / dz = sum_j sigmoid(-y_j s_j) y_j slope_j, written out: autograd costs ten times the sums.
        z.grad = -(torch.sigmoid(-margin(z)) @ signed + log_density_gradient(z, prior))
        optimizer.step()
    return z.squeeze(1)

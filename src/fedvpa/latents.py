"""Users as tensors: from what a predictor infers to a `User`, and from users to what a predictor predicts with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fedvpa.user import MixturePosterior, User
from fedvpa.variational.gaussian import Gaussian
from fedvpa.variational.inference import Particles
from fedvpa.variational.laplace import Posterior, moments

NEGLIGIBLE = 1e-4
"""A component of smaller weight is left out of a user's file."""


def stored_posterior(q: Posterior) -> MixturePosterior:
    """One person's posterior (1, K, ...), without components of negligible weight."""
    weights = q.log_weights[0].double().exp()
    kept = weights >= NEGLIGIBLE
    row, column = torch.tril_indices(*q.root.shape[-2:])
    return MixturePosterior(
        weights=(weights[kept] / weights[kept].sum()).tolist(),
        means=q.means[0, kept].tolist(),
        roots=q.root[0, kept][:, row, column].tolist(),
    )


def posterior_of(stored: MixturePosterior, dtype: torch.dtype) -> Posterior:
    """The posterior (1, K, ...) of one person."""
    means = torch.tensor([stored.means], dtype=dtype)
    dim = means.shape[-1]
    root = torch.zeros(*means.shape, dim, dtype=dtype)
    row, column = torch.tril_indices(dim, dim)
    root[..., row, column] = torch.tensor([stored.roots], dtype=dtype)
    log_weights = torch.tensor([stored.weights], dtype=dtype).log()
    return Posterior(log_weights, means, root, torch.zeros_like(log_weights))


def as_user(found: Any, posterior: Gaussian | None, pairs: int, inference: str, model_hash: str) -> User:
    """A `User` from what a predictor inferred for one user.

    Args:
        found: particles (1, particles, d); anything for a model without a latent.
        posterior: q(z | C) (1, d), or None for a model without a latent.
    """
    if posterior is None:
        return User(mean=[], log_var=[], pairs=pairs, model_hash=model_hash, inference=inference)
    return User(
        mean=posterior.mean[0].tolist(),
        log_var=posterior.log_var[0].tolist(),
        pairs=pairs,
        model_hash=model_hash,
        inference=inference,
        particles=found.z[0].tolist(),
        weights=found.log_weights[0].exp().tolist(),
    )


def judged_user(q: Posterior, judgements: int, inference: str, model_hash: str) -> User:
    """A `User` with the whole posterior (1, K, ...)."""
    posterior = stored_posterior(q)
    one = moments(Posterior(*(t.double() for t in q)))
    return User(
        mean=one.mean[0].tolist(),
        log_var=one.log_var[0].tolist(),
        pairs=judgements,
        model_hash=model_hash,
        inference=inference,
        posterior=posterior,
    )


def gaussian_posterior(mean: list[float], log_var: list[float]) -> MixturePosterior:
    """N(mean, exp(log_var)) as a posterior of one component."""
    roots = [
        math.exp(-0.5 * log_var[row]) if row == column else 0.0 for row in range(len(mean)) for column in range(row + 1)
    ]
    return MixturePosterior(weights=[1.0], means=[mean], roots=[roots])


Latent = Particles | Posterior | Tensor
"""What a predictor predicts with: one or more users' particles or posteriors; (users, 0) for a model without z."""


def latent_of(user: User, dtype: torch.dtype) -> Latent:
    """A user's latent: its posterior (1, K), its particles (1, particles, d), or (1, 0) for a model without one."""
    if user.posterior is not None:
        return posterior_of(user.posterior, dtype)
    if not user.mean:
        return torch.zeros(1, 0, dtype=dtype)
    if user.particles is None or user.weights is None:
        return Particles.point(torch.tensor([user.mean], dtype=dtype))
    z, weights = torch.tensor([user.particles], dtype=dtype), torch.tensor([user.weights], dtype=dtype)
    return Particles(z, weights.log())


def stack_users(users: Sequence[User], dtype: torch.dtype) -> Latent:
    """Several users of one model, as `latent_of`; who has fewer particles or components gets some of weight 0."""
    latents = [latent_of(user, dtype) for user in users]
    mixtures = [q for q in latents if isinstance(q, Posterior)]
    points = [p for p in latents if isinstance(p, Particles)]
    if mixtures:
        return Posterior(
            _padded([q.log_weights for q in mixtures], -torch.inf),
            _padded([q.means for q in mixtures], 0.0),
            _padded_roots([q.root for q in mixtures]),
            _padded([q.evidence for q in mixtures], 0.0),
        )
    if points:
        return Particles(_padded([p.z for p in points], 0.0), _padded([p.log_weights for p in points], -torch.inf))
    return torch.zeros(len(users), 0, dtype=dtype)


def _padded(rows: Sequence[Tensor], value: float) -> Tensor:
    """Rows (1, n, ...) of different n as one tensor."""
    return torch.nn.utils.rnn.pad_sequence([row[0] for row in rows], batch_first=True, padding_value=value)


def _padded_roots(rows: Sequence[Tensor]) -> Tensor:
    """As `_padded`, with the identity in the padding: a root must have an inverse."""
    found = _padded(rows, 0.0)
    for i, row in enumerate(rows):
        found[i, row.shape[1] :] = torch.eye(row.shape[-1], dtype=row.dtype)
    return found

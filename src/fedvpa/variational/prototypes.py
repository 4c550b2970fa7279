"""Preference prototypes P in R^{M x d} and the orthogonal loss (Eq. 9; method.md, section 5)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Form = Literal["ours", "paper"]


def qr_prototypes(count: int, dim: int, kappa: float, generator: torch.Generator) -> Tensor:
    """(count, dim) prototypes of norm kappa, orthogonal as far as count <= dim allows (the paper's QR start)."""
    blocks = []
    for start in range(0, count, dim):
        q, _ = torch.linalg.qr(torch.randn(dim, dim, generator=generator))
        blocks.append(q[: count - start])
    return kappa * torch.cat(blocks)


def prototypes_from_centroids(centroids: Tensor, kappa: float) -> Tensor:
    """(M, dim) cluster centroids scaled to norm kappa (ours: the start at the end of the warm-up)."""
    return kappa * torch.nn.functional.normalize(centroids, dim=-1)


def pull(mean: Tensor, samples: Tensor, prototypes: Tensor, label: Tensor, kappa: float, form: Form) -> Tensor:
    """Distance of a user's latent to the prototype of the user's cluster.

    ``ours``: ||mu - p_c||^2 / kappa^2, on the mean, so that the pull does not fight the posterior's width.
    ``paper``: the mean over samples of ||z - p_c||^2.

    Args:
        mean: (..., dim)
        samples: (..., samples, dim)
        prototypes: (..., M, dim), with the same leading dimensions or none.
        label: (...) int64, the cluster c(i).

    Returns:
        (...)
    """
    if prototypes.dim() == 2:
        own = prototypes[label]
    else:
        own = prototypes.gather(-2, label[..., None, None].expand(*label.shape, 1, prototypes.shape[-1])).squeeze(-2)
    if form == "ours":
        return ((mean - own) ** 2).sum(-1) / kappa**2
    return ((samples - own.unsqueeze(-2)) ** 2).sum(-1).mean(-1)


def separation(prototypes: Tensor, kappa: float, form: Form) -> Tensor:
    """How far the prototypes are from norm kappa and from one another's direction.

    ``ours`` is one-sided: ||diag(P P^T)/kappa^2 - 1||^2 + sum_{j != k} max(0, p_j . p_k / kappa^2)^2, since four
    users {u, -u, v, -v} cannot be four orthogonal prototypes. ``paper``: ||P P^T - I||^2 as written.

    Args:
        prototypes: (..., M, dim)

    Returns:
        (...)
    """
    gram = prototypes @ prototypes.mT
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    if form == "paper":
        return ((gram - eye) ** 2).sum((-1, -2))
    gram = gram / kappa**2
    diagonal = ((gram.diagonal(dim1=-2, dim2=-1) - 1) ** 2).sum(-1)
    return diagonal + ((gram * (1 - eye)).clamp(min=0) ** 2).sum((-1, -2))

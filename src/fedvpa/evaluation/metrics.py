"""Metrics of predictions, as pure functions (method.md, section 10)."""

from __future__ import annotations

import torch
from torch import Tensor


def per_user(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over each user's queries. values, mask: (users, queries); returns (users,), NaN for a user without any."""
    return (values * mask).sum(-1) / mask.sum(-1)


def correct(p: Tensor, y: Tensor) -> Tensor:
    """1 where the predicted side is the label's, 1/2 where p is exactly 1/2, else 0.

    Args:
        p: (...) p(a > b); y: (...) labels +1/-1.
    """
    return torch.where(p == 0.5, 0.5, ((p > 0.5) == (y > 0)).double())


def log_loss(p: Tensor, y: Tensor) -> Tensor:
    """-log p(y) in nats, elementwise; p is kept 1e-7 away from 0 and 1."""
    q = torch.where(y > 0, p, 1 - p).double()
    return -q.clamp(1e-7, 1 - 1e-7).log()


def expected_calibration_error(p: Tensor, y: Tensor, weight: Tensor, bins: int = 15) -> float:
    """ECE of the predicted side's confidence in [1/2, 1], equal-width bins.

    Args:
        p, y: (n,); weight: (n,) weight of each prediction.
    """
    confidence = torch.maximum(p, 1 - p).double()
    bucket = ((confidence - 0.5) * 2 * bins).long().clamp(max=bins - 1)
    weight = weight.double() / weight.sum()

    def total(v: Tensor) -> Tensor:
        return torch.zeros(bins, dtype=torch.float64).index_add(0, bucket, v)

    return float((total(weight * correct(p, y)) - total(weight * confidence)).abs().sum())


def group_means(values: Tensor, groups: Tensor, count: int) -> list[float | None]:
    """Mean per group of (users,) values, None for a group without users; groups -1 are unknown."""
    return [float(values[groups == g].mean()) if (groups == g).any() else None for g in range(count)]


def active_units(means: Tensor, threshold: float = 0.005) -> float:
    """Share of latent dimensions whose posterior mean varies over users. means: (users, dim), at least two users."""
    spread = means.var(0) if len(means) > 1 else torch.zeros(means.shape[1])  # one user varies in nothing
    return float((spread > threshold).double().mean())


def purity(labels: Tensor, groups: Tensor) -> float | None:
    """Share of users whose cluster's majority group is their own; users with label or group -1 are left out."""
    known = (labels >= 0) & (groups >= 0)
    if not known.any():
        return None
    labels, groups = labels[known], groups[known]
    hits = sum(int(groups[labels == k].bincount().max()) for k in labels.unique())
    return hits / len(labels)

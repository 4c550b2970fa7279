"""Aggregation and acceptance that withstand some clients that lie. Pure functions over a round's uploads.

Median, trimmed mean and Krum are Flower's rules up to rounding (a test compares them), and not Flower's code: that
takes one reply per client, where a node here may answer for thousands, and the vectorised engine works without Flower.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from fedvpa.variational.selector import Theta

Aggregation = Literal["mean", "median", "trimmed-mean", "krum"]

FEWEST = 3
"""Rows below which nothing can be called an outlier."""

SPREAD_FLOOR = 0.1
"""Smallest deviation of a posterior's coordinate, in units of N(0, I), so that accidental agreement rejects nobody."""


def liars(clients: int, share: float) -> int:
    """f, how many of a round's clients may lie; fewer than half of them."""
    return min(int(share * clients), (clients - 1) // 2)


def median(changes: Theta) -> Theta:
    """Coordinate-wise median over the clients (Yin et al. 2018, 1803.01498); the mean of the middle two of an even
    number. changes: (K, ...) each."""
    return {k: _middle(v) for k, v in changes.items()}


def trimmed_mean(changes: Theta, share: float) -> Theta:
    """Coordinate-wise mean without the f smallest and the f largest (Yin et al. 2018). changes: (K, ...) each."""
    clients = len(next(iter(changes.values())))
    f = liars(clients, share)
    return {k: v.sort(0).values[f : clients - f].mean(0) for k, v in changes.items()}


def krum(changes: Theta, weights: Tensor, share: float) -> Theta:
    """Multi-Krum (Blanchard et al. 2017, 1703.02757): the weighted mean of the K - f changes with the smallest sums of
    squared distances to their K - f - 2 nearest. changes: (K, ...) each; weights: (K,)."""
    flat = torch.cat([v.double().flatten(1) for v in changes.values()], 1)
    clients = len(flat)
    f = liars(clients, share)
    # From the differences themselves: the expanded square loses digits where one change is huge.
    distance = torch.stack([(flat - row).square().sum(1) for row in flat])
    nearest = max(1, min(clients - f - 2, clients - 1))
    scores = distance.sort(1).values[:, 1 : 1 + nearest].sum(1)
    keep = scores.argsort(stable=True)[: clients - f].sort().values
    weight = weights[keep] / weights[keep].sum()
    return {k: torch.tensordot(weight, v[keep], dims=1) for k, v in changes.items()}


def large_updates(norms: Tensor, factor: float) -> Tensor:
    """(K,) bool: changes whose norm is more than `factor` times the median of the round's. norms: (K,)"""
    return norms > factor * norms.median() if len(norms) >= FEWEST else torch.zeros_like(norms, dtype=torch.bool)


def far_posteriors(means: Tensor, others: Tensor, bound: float) -> Tensor:
    """(K,) bool: posteriors whose distance to the coordinate-wise median exceeds `bound`.

    The distance is the root mean square over the coordinates of |mu - median| / (1.4826 MAD); a user of a rare kind
    lies some units from the median, a forged posterior tens of them.

    Args:
        means: (K, dim) of the round; others: (stored, dim) that were accepted before.
    """
    both = torch.cat([means, others])
    if len(both) < FEWEST:
        return torch.zeros(len(means), dtype=torch.bool)
    centre = _middle(both)
    spread = (1.4826 * _middle((both - centre).abs())).clamp(min=SPREAD_FLOOR)
    return ((means - centre) / spread).square().mean(1).sqrt() > bound


def _middle(rows: Tensor) -> Tensor:
    ordered, n = rows.sort(0).values, len(rows)
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2

"""Responses in order: the mean probability to be preferred to another response."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def couples(n: int) -> list[tuple[int, int]]:
    """All pairs (i, j) of n responses with i < j."""
    return [(i, j) for i in range(n) for j in range(i + 1, n)]


def mean_preferences(n: int, p: Tensor) -> Tensor:
    """Each response's mean probability to be preferred to another, (..., n); alone, a response has 0.5.

    Args:
        n: responses.
        p: (..., couples) p(i > j) of each of `couples(n)`.
    """
    total = torch.zeros(*p.shape[:-1], n, dtype=torch.float64)
    if n < 2:
        return total + 0.5
    first, second = torch.tensor(couples(n)).T
    p = p.double()
    return total.index_add(-1, first, p).index_add(-1, second, 1 - p) / (n - 1)


def ranking(scores: Tensor | Sequence[float]) -> list[tuple[int, float]]:
    """The responses' numbers with their scores, best first; equal scores in the given order."""
    scores = torch.as_tensor(scores, dtype=torch.float64)
    return [(i, float(scores[i])) for i in scores.argsort(descending=True, stable=True).tolist()]

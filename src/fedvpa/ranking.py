"""Responses in order: the mean probability to be preferred to another response."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def couples(n: int) -> list[tuple[int, int]]:
    """All pairs (i, j) of n responses with i < j."""
    return [(i, j) for i in range(n) for j in range(i + 1, n)]


def ranking(n: int, p: Tensor | Sequence[float]) -> list[tuple[int, float]]:
    """The responses' numbers with their scores, best first; equal scores in the given order.

    Args:
        n: responses.
        p: p(i > j) of each of `couples(n)`.
    """
    total = torch.zeros(n, dtype=torch.float64)
    if n > 1:
        first, second = torch.tensor(couples(n)).T
        p = torch.as_tensor(p, dtype=torch.float64)
        total = total.index_add(0, first, p).index_add(0, second, 1 - p)
    scores = total / (n - 1) if n > 1 else total + 0.5
    return [(i, float(scores[i])) for i in scores.argsort(descending=True, stable=True).tolist()]

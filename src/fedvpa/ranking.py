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


def tied(scores: Tensor, responses: Sequence[str]) -> Tensor:
    """Scores (..., n) in which equal responses have the score of the first of them: sums differ by their rounding."""
    first = {text: i for i, text in reversed(list(enumerate(responses)))}
    return scores[..., [first[text] for text in responses]]


def ranking(scores: Tensor | Sequence[float]) -> list[tuple[int, float]]:
    """The responses' numbers with their scores, best first; equal scores (to 9 decimals) in the given order."""
    scores = torch.as_tensor(scores, dtype=torch.float64)
    order = scores.round(decimals=9).argsort(descending=True, stable=True)
    return [(i, float(scores[i])) for i in order.tolist()]

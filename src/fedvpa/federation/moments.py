"""Federated moments: features and ratings are standardised by sums that each training client sends once, in round 0."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fedvpa.errors import UserError
from fedvpa.preferences.schema import NO_RATINGS, NOTHING_RATED, RatingSums

EQUAL = 1e-13
"""Ratings whose variance is below this share of their squared mean are equal, but for rounding."""
_NONE = torch.zeros((), dtype=torch.float64)


class Moments(NamedTuple):
    """A client's declared message of round 0 (method.md, section 2).

    Attributes:
        count: () number of responses; total, squares: (D,) sums of the features and of their squares, float64.
        ratings, rating_total, rating_squares: () number, sum and sum of squares of the client's ratings
            (`Client.ratings`), float64.
    """

    count: Tensor  # type: ignore[assignment]  # shadows tuple.count, which nobody needs here
    total: Tensor
    squares: Tensor
    ratings: Tensor = _NONE
    rating_total: Tensor = _NONE
    rating_squares: Tensor = _NONE

    @property
    def rating_sums(self) -> RatingSums:
        return RatingSums(float(self.ratings), float(self.rating_total), float(self.rating_squares))

    def bytes(self) -> int:
        """Bytes that one client sends."""
        return sum(t.numel() * t.element_size() for t in self)


class Standardizer(NamedTuple):
    """mean and scale (D,) by which every client standardises its features."""

    mean: Tensor
    scale: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Standardised features, (..., D)."""
        return (x - self.mean.to(x.dtype)) / self.scale.to(x.dtype)


def client_moments(x: Tensor, ratings: RatingSums = NOTHING_RATED) -> Moments:
    """The message of a client whose responses have the features x (responses, D)."""
    x = x.double()
    rated = (torch.tensor(v, dtype=torch.float64) for v in ratings)
    return Moments(torch.tensor(float(len(x)), dtype=torch.float64), x.sum(0), (x**2).sum(0), *rated)


def combine(messages: Iterable[Moments], floor: float = 1e-6) -> Standardizer:
    """The server's part: mean and standard deviation over all clients; a constant feature keeps scale 1."""
    parts: Sequence[Moments] = list(messages)
    count = torch.stack([m.count for m in parts]).sum()
    mean = torch.stack([m.total for m in parts]).sum(0) / count
    variance = (torch.stack([m.squares for m in parts]).sum(0) / count - mean**2).clamp(min=0)
    scale = torch.where(variance > floor, variance.sqrt(), torch.ones_like(variance))
    return Standardizer(mean.float(), scale.float())


def rating_scale(sums: Iterable[RatingSums]) -> tuple[float, float]:
    """The server's part: mean and standard deviation of all clients' ratings; `NO_RATINGS` where nobody rated.

    Raises:
        UserError: all ratings are equal.
    """
    parts = list(sums)
    number, total, squares = (math.fsum(part[i] for part in parts) for i in range(3))
    if not number:
        return NO_RATINGS
    mean = total / number
    variance = squares / number - mean**2
    if variance <= EQUAL * mean**2:
        problem = f"all {number:.0f} ratings of the training people are {mean:g}"
        raise UserError(problem, "give ratings that differ, or leave the ratings out", field="rating")
    return mean, math.sqrt(variance)

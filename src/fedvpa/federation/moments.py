"""Federated moments: features are standardised by sums that each training client sends once, in round 0."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Moments(NamedTuple):
    """A client's declared message of round 0 (method.md, section 2).

    Attributes:
        count: () number of responses; total, squares: (D,) sums of the features and of their squares, float64.
    """

    count: Tensor  # type: ignore[assignment]  # shadows tuple.count, which nobody needs here
    total: Tensor
    squares: Tensor

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


def client_moments(x: Tensor) -> Moments:
    """The message of a client whose responses have the features x (responses, D)."""
    x = x.double()
    return Moments(torch.tensor(float(len(x)), dtype=torch.float64), x.sum(0), (x**2).sum(0))


def combine(messages: Iterable[Moments], floor: float = 1e-6) -> Standardizer:
    """The server's part: mean and standard deviation over all clients; a constant feature keeps scale 1."""
    parts: Sequence[Moments] = list(messages)
    count = torch.stack([m.count for m in parts]).sum()
    mean = torch.stack([m.total for m in parts]).sum(0) / count
    variance = (torch.stack([m.squares for m in parts]).sum(0) / count - mean**2).clamp(min=0)
    scale = torch.where(variance > floor, variance.sqrt(), torch.ones_like(variance))
    return Standardizer(mean.float(), scale.float())

"""Calibration of a trained model's predictions on people who never trained (ours)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fedvpa.variational.laplace import Calibration, predictive

EFFECTIVE = 10.0
"""One person's answers count as so many independent ones when the calibration is chosen."""


class Answered(NamedTuple):
    """Questions to people whose answers are known.

    Attributes:
        log_weights: (people, K); mean, variance: (people, K, q) of the scores.
        y: (people, q) +1 or -1; mask: (people, q) True where real.
    """

    log_weights: Tensor
    mean: Tensor
    variance: Tensor
    y: Tensor
    mask: Tensor

    def log_loss(self, calibration: Calibration) -> Tensor:
        """Sum over people of the mean of -log p(y), in nats, times `EFFECTIVE`."""
        p = predictive(self.log_weights, self.mean, self.variance, calibration)
        right = torch.where(self.y > 0, p, 1 - p).clamp(min=1e-6).log() * self.mask
        return -EFFECTIVE * (right.sum(-1) / self.mask.sum(-1).clamp(min=1)).sum()


def calibrate(answers: Sequence[Answered], doubt_prior: float = 0.5) -> Calibration:
    """The calibration under which people's answers are likeliest (a form of temperature scaling, Guo et al. 2017).

    The logarithms of the two factors have N(0, `doubt_prior`^2) priors, so that few people change little.

    Args:
        answers: of people who never trained, for contexts of several sizes.
    """
    start = answers[0].mean.new_zeros(2).double()
    values = start.clone().requires_grad_(True)
    optimizer = torch.optim.LBFGS([values], lr=0.5, max_iter=50, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        factors = Calibration(*values.exp())
        each = [a.log_loss(factors) for a in answers]
        total = torch.stack(each).sum() / len(each) + (values**2).sum() / (2 * doubt_prior**2)
        total.backward()
        return total

    optimizer.step(loss)
    return Calibration(*values.detach().exp())

"""Calibration of a trained model's predictions on people who never trained (ours)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fedvpa.variational.laplace import Calibration, predictive

EFFECTIVE = 10.0
"""One person's answers count as so many independent ones when the calibration is chosen, at most."""
SPREAD = (0.25, 0.5)
"""Standard deviations of the logarithms of scale and doubt, about the usual ones."""


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
        """Mean over people of the mean of -log p(y), in nats."""
        p = predictive(self.log_weights, self.mean, self.variance, calibration)
        right = torch.where(self.y > 0, p, 1 - p).clamp(min=1e-6).log() * self.mask
        return -(right.sum(-1) / self.mask.sum(-1).clamp(min=1)).mean()


def calibrate(answers: Sequence[Answered], usual: Calibration, items: float = math.inf) -> Calibration:
    """The calibration under which people's answers are likeliest (a form of temperature scaling, Guo et al. 2017).

    The logarithms of the two factors are normal about the usual ones, with the deviations `SPREAD`, so that little
    changes where there is little to fit: answers about few new texts, however many they are, say little about others.

    Args:
        answers: of people who never trained, for contexts of several sizes.
        usual: what holds without answers.
        items: so many independent answers at most, where they are about texts that nobody judged: their number.
    """
    centre = torch.stack([t.double() for t in usual]).log()
    values, spread = centre.clone().requires_grad_(True), centre.new_tensor(SPREAD)
    optimizer = torch.optim.LBFGS([values], lr=0.5, max_iter=50, line_search_fn="strong_wolfe")
    number = min(items, EFFECTIVE * len(answers[0].y))

    def loss() -> Tensor:
        optimizer.zero_grad()
        factors = Calibration(*values.exp())
        each = [a.log_loss(factors) for a in answers]
        total = number * torch.stack(each).mean() + (((values - centre) / spread) ** 2).sum() / 2
        total.backward()
        return total

    optimizer.step(loss)
    return Calibration(*values.detach().exp())

"""Methods whose score is linear in a vector of the person, fitted anew to the person's judgements: a common frame.

A person's score of an item is s(x) = <u(x), z> + o(x), and p(first over second) = sigmoid(s(first) - s(second)). A vote
or a rating of one item also has the person's threshold, the last entry of z: p(yes) = sigmoid(s(x) + c). A rating is
N(s(x) + c, 1). What z may be and how it is fitted makes the method (`lore`, `mrm`, `pal`, `item_factors`).

In a round each client fits z to its own judgements under the theta that it received, and sends one gradient step of
theta; z is fitted anew in each round, never kept and never sent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fedvpa.methods.base import Context, Judged, JudgementBatch, Pool, ServerState, kept_features
from fedvpa.methods.fedvpa_laplace import observations
from fedvpa.methods.one_step import OneStep
from fedvpa.variational import laplace
from fedvpa.variational.laplace import Noise, Observations
from fedvpa.variational.selector import Theta

THRESHOLD_VARIANCE = 4.0
"""Variance of people's thresholds; wide, since votes need not be a random sample of a person's opinions."""


def log_likelihood(z: Tensor, seen: Observations) -> Tensor:
    """(people, n) log p(y) of each judgement, times its weight; z: (people, dim)."""
    score = seen.offset + (seen.slope @ z.unsqueeze(-1)).squeeze(-1)
    one = score.new_ones(())
    return laplace.log_likelihood(score.unsqueeze(-2), seen, Noise(0 * one, one)).squeeze(-2)


def gradient(z: Tensor, seen: Observations) -> Tensor:
    """(people, dim) d log p / dz, the sum over a person's judgements, itself differentiable."""
    score = seen.offset + (seen.slope @ z.unsqueeze(-1)).squeeze(-1)
    up = torch.where(seen.gaussian, seen.y - score, seen.y * torch.sigmoid(-seen.y * score)) * seen.weight
    return (seen.slope.mT @ up.unsqueeze(-1)).squeeze(-1)


def ridge(seen: Observations, strength: float) -> Tensor:
    """argmax over z (people, dim) of log likelihood - strength / 2 |z|^2, with a wide threshold, by Newton's steps."""
    one = seen.slope.new_ones(())
    variances = torch.full((1, seen.slope.shape[-1]), 1 / strength, dtype=one.dtype)
    variances[:, -1] = THRESHOLD_VARIANCE
    prior = laplace.Prior(variances.new_zeros(1), torch.zeros_like(variances), variances)
    return laplace.infer(seen, prior, Noise(0 * one, one)).means.squeeze(-2)


class Vectors(OneStep):
    """Rounds of such a method; a subclass says `initial`, `project` and `person`, and its own loss if it has one."""

    def project(self, theta: Theta, items: Tensor) -> tuple[Tensor, Tensor]:
        """Slopes u (items, dim) without the threshold and offsets o (items,) of items with features (items, D)."""
        raise NotImplementedError

    def person(self, theta: Theta, seen: Observations) -> Tensor:
        """z (people, dim + 1) from people's judgements; what was fitted to them is without gradient, except where a
        method differentiates through the fit."""
        raise NotImplementedError

    def loss(
        self, theta: Theta, seen: Observations, dropped: Observations, batch: JudgementBatch, round: int
    ) -> Tensor:
        """(K,) what each client descends on: the mean -log p of its judgements under the z that is fitted to them.

        Dropout is for the scores alone (`dropped`): people are fitted to all features, as they will be.
        """
        return -log_likelihood(self.person(theta, seen), dropped).sum(-1) / batch.counts

    def losses(self, theta: Theta, batch: JudgementBatch, round: int) -> Tensor:
        kept, judged = kept_features(self.config, round, self.dropout, batch.items), Judged(*batch[2:7])
        seen, dropped = (observations(*self.project(theta, x), judged) for x in (batch.items, batch.items * kept))
        return self.loss(theta, seen, dropped, batch, round)

    @torch.no_grad()
    def predictor(self, state: ServerState, pool: Pool) -> VectorPredictor:
        slope, offset = self.project(state.theta, pool.items)
        return VectorPredictor(pool, slope, offset, lambda seen: self.person(state.theta, seen))


class VectorPredictor:
    """A user is z (dim + 1), fitted to judgements.

    Args:
        slope: (items, dim) and offset (items,) of the pool's items; fit: from judgements to z.
    """

    inferences: tuple[str, ...] = ("none",)

    def __init__(self, pool: Pool, slope: Tensor, offset: Tensor, fit: Callable[[Observations], Tensor]) -> None:
        self.pool, self.slope, self.offset, self.fit = pool, slope, offset, fit

    def choices(self, context: Context) -> Judged:
        return self.pool.choices(context)

    def infer(self, context: Any, how: str = "none", groups: Tensor | None = None) -> Any:  # of `Judged`
        with torch.no_grad():
            return self.fit(observations(self.slope, self.offset, context))

    def predict(self, users: Any, index: Tensor) -> Tensor:
        a, b = self.pool.pairs[index].unbind(-1)
        own = ((self.slope[a] - self.slope[b]) @ users[:, :-1].unsqueeze(-1)).squeeze(-1)
        return torch.sigmoid(own + self.offset[a] - self.offset[b])

    def rows(self, users: Any, order: Tensor) -> Any:
        return users[order]

"""Ditto (Li et al. 2021, arXiv 2012.04221) at head level: everybody's selector, and a head of one's own near it.

The selector is trained as in `fedbt`. Each client adds a private difference v_i to its head w0, held small by
lambda / 2 |v_i|^2 (`method.lambda_`), and never uploads it. A new user's difference is fitted to a few labelled pairs.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedvpa.methods.base import ClientBatch, Context, Download, LocalNoise, Pool, Private, ServerState, Upload, by_row
from fedvpa.methods.fedbt import FedBT
from fedvpa.variational.objective import bradley_terry
from fedvpa.variational.selector import Theta, difference, embed, score

HEAD, OWN = "selector.common", "own"
STEPS, RATE = 50, 1.0


def fit(theta: Theta, own: Tensor, d: Tensor, y: Tensor, mask: Tensor, weight: float) -> Tensor:
    """Own differences (users, h) after gradient steps on the users' pairs d (users, pairs, h) with labels y."""
    for _ in range(STEPS):
        own = own.detach().requires_grad_(True)
        loss = bradley_terry({**theta, HEAD: theta[HEAD] + own}, d, None, y, mask)
        loss = loss + weight / 2 * own.square().sum(-1)
        own = own - RATE * torch.autograd.grad(loss.sum(), own)[0]  # no two users share a parameter
    return own.detach()


class Ditto(FedBT):
    """One selector for everybody, and a private difference for each user; inference `none`."""

    name: ClassVar[str] = "ditto"
    portable: ClassVar[bool] = False  # what is private has no place in one saved selector
    contextual: ClassVar[bool] = True  # a context says something about a user, although there is no latent

    def init_client(self, count: int) -> Private:
        return {OWN: torch.zeros(count, self.sizes.hidden, dtype=self.setup.dtype)}

    def client_update(
        self, download: Download, private: Private, batch: ClientBatch, noise: LocalNoise
    ) -> tuple[Upload, Private]:
        upload, _ = super().client_update(download, {}, batch, noise)
        with torch.no_grad():
            d = difference(download.theta, batch.x)
        own = fit(download.theta, private[OWN], d, batch.y, batch.mask, self.config.method.lambda_)
        return upload, {OWN: own}

    def predictor(self, state: ServerState, pool: Pool) -> DittoPredictor:
        return DittoPredictor(state.theta, pool, self.config.method.lambda_)


class DittoPredictor:
    """A user is a difference (h,) to the common head, fitted to the context."""

    inferences: tuple[str, ...] = ("none",)

    @torch.no_grad()
    def __init__(self, theta: Theta, pool: Pool, weight: float) -> None:
        self.theta, self.weight = theta, weight
        self.d = pool.differences(partial(embed, theta))

    def infer(self, context: Context, how: str = "none", groups: Tensor | None = None) -> Any:
        nobody = self.d.new_zeros(len(context.y), self.d.shape[-1])
        return fit(self.theta, nobody, self.d[context.index], context.y, context.mask, self.weight)

    def own(self, private: Private, ids: Tensor) -> TrainedDitto:
        return TrainedDitto(self, private[OWN][ids])

    @torch.no_grad()
    def predict(self, users: Any, index: Tensor) -> Tensor:
        def p(some: slice, rows: Tensor) -> Tensor:
            return torch.sigmoid(score({**self.theta, HEAD: self.theta[HEAD] + users[some]}, self.d[rows], None))

        return by_row(index, p)

    def rows(self, users: Any, order: Tensor) -> Any:
        return users[order]


class TrainedDitto:
    """Training clients, with the differences that they trained; a context tells nothing more about them."""

    inferences: tuple[str, ...] = ("none",)

    def __init__(self, predictor: DittoPredictor, own: Tensor) -> None:
        self.predict, self.rows, self.trained = predictor.predict, predictor.rows, own

    def infer(self, context: Context, how: str = "none", groups: Tensor | None = None) -> Any:
        return self.trained

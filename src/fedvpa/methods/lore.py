"""Reward bases and user weights: LoRe (Bose et al. 2025, arXiv 2504.14439) and PReF (Shenfeld et al. 2025, 2503.06358).

A person's reward is a weighted sum of k basis rewards that everybody shares, each linear in the features. The average
person's reward is written apart: s(x) = <v0, h(x)> + sum_k w_ik <v_k, h(x)>. A new person's weights come from a convex
fit, logistic regression with a ridge (PReF; LoRe holds weights in a simplex instead), which without judgements leaves
the average person.

Federated as FedRep (Collins et al. 2021, 2102.07078): the basis is shared, weights are private. Since their fit is
convex, a client solves it anew in each round instead of keeping them, and sends one gradient step of the basis.

Takes choices as in the papers, and votes and ratings as they are, with the person's own threshold.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from fedvpa.methods.base import JudgementBatch
from fedvpa.methods.vectors import Vectors, ridge
from fedvpa.variational.laplace import Observations
from fedvpa.variational.selector import Theta

BASIS, COMMON = "basis.weight", "basis.common"
DECAY = 0.03
"""Ridge of the basis, without which it grows until the ridge of the weights means nothing (validation people)."""


class LoRe(Vectors):
    """Inference `none`; judgements fit a person's weights of the k bases (`method.bases`)."""

    name: ClassVar[str] = "lore"

    def initial(self, generator: torch.Generator) -> Theta:
        """A random basis (k, D), of rewards with about unit variance, and no common reward."""
        k, d = self.config.method.bases, self.setup.features
        return {BASIS: torch.randn(k, d, generator=generator) / d**0.5, COMMON: torch.zeros(d)}

    def project(self, theta: Theta, items: Tensor) -> tuple[Tensor, Tensor]:
        return items @ theta[BASIS].T, items @ theta[COMMON]

    @torch.no_grad()
    def person(self, theta: Theta, seen: Observations) -> Tensor:
        return ridge(seen, self.config.method.ridge)

    def loss(
        self, theta: Theta, seen: Observations, dropped: Observations, batch: JudgementBatch, round: int
    ) -> Tensor:
        size = sum((theta[k] ** 2).sum() for k in (BASIS, COMMON))
        return super().loss(theta, seen, dropped, batch, round) + DECAY / 2 * size

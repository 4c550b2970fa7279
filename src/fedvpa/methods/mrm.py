"""Meta reward modelling (Cai et al. 2026, arXiv 2601.18731): a start from which a few gradient steps lead to a person.

A person's reward is a weighted sum of base reward functions, s(x) = <phi(x), w>, on a layer that everybody shares. The
start w0 is learnt as in MAML (Finn et al. 2017, 1703.03400), through the gradient steps, with all second derivatives: a
client takes `method.inner_steps` steps of w and of its threshold on a random part of its judgements, and the loss is on
the rest. Federated as Per-FedAvg (Fallah et al. 2020, 2002.07948): each client sends one gradient step of phi and w0. A
new person's weights come from the same gradient steps on all its judgements; without any they are w0.

The paper's reweighting of people who are hard to learn is left out: it compares people's losses, which stay at home.
Takes choices as in the paper, and votes and ratings as they are, with the person's own threshold.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from fedvpa.methods.base import JudgementBatch
from fedvpa.methods.vectors import Vectors, gradient, log_likelihood
from fedvpa.preferences.seeding import generator as derived
from fedvpa.variational.laplace import Observations
from fedvpa.variational.selector import Sizes, Theta, embed, init_theta

BASES, START = "bases.weight", "start"


class MRM(Vectors):
    """Inference `none`; a person is some gradient steps away from the start."""

    name: ClassVar[str] = "mrm"

    def initial(self, generator: torch.Generator) -> Theta:
        """The layer (h, D), k base rewards on it with about unit variance, and the start w0 = 0."""
        h, k = self.sizes.hidden, self.config.method.bases
        theta = init_theta(Sizes(self.setup.features, h, 0, 0), generator)
        layer = {n: v for n, v in theta.items() if n.startswith("features.")}
        return {**layer, BASES: torch.randn(k, h, generator=generator), START: torch.zeros(k)}

    def project(self, theta: Theta, items: Tensor) -> tuple[Tensor, Tensor]:
        base = embed(theta, items) @ theta[BASES].T / self.sizes.hidden**0.5
        return base, torch.zeros_like(base[:, 0])

    def person(self, theta: Theta, seen: Observations) -> Tensor:
        """`inner_steps` gradient steps on the mean -log p from (w0, 0), which can be differentiated."""
        m = self.config.method
        z = torch.cat([theta[START], theta[START].new_zeros(1)]).expand(len(seen.y), -1)
        count = seen.weight.sum(-1, keepdim=True).clamp(min=1)
        for _ in range(m.inner_steps):
            z = z + m.inner_rate * gradient(z, seen) / count
        return z

    def loss(
        self, theta: Theta, seen: Observations, dropped: Observations, batch: JudgementBatch, round: int
    ) -> Tensor:
        """(K,) mean -log p of the judgements outside a random part, after the gradient steps on that part."""
        part = torch.zeros_like(seen.weight)
        for row, client, n in zip(part, batch.ids.tolist(), batch.counts.tolist(), strict=True):
            keys = torch.rand(n + 1, generator=derived(self.config.seed, "support", round, client))
            row[:n] = (keys[:n] < keys[n]).to(row)
        z = self.person(theta, dropped._replace(weight=seen.weight * part))
        asked = dropped._replace(weight=seen.weight * (1 - part))
        return -log_likelihood(z, asked).sum(-1) / asked.weight.sum(-1).clamp(min=1)

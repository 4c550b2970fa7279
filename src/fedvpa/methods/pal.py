"""Ideal points over K prototypes: PAL (Chen et al. 2024, arXiv 2406.08469, its model A), federated.

Items and people are points of one space (Coombs 1950), and a person prefers what is nearer to the own ideal point a_i:
s(x) = -|f(x) - a_i|^2. f is a layer and a linear map on the features; a_i = sum_k w_ik p_k is a convex combination of K
prototypes that everybody shares. f and the prototypes are averaged over rounds. A person's weights
w_i = softmax(t + t_i) are private, and fitted to the person's judgements with f and the prototypes as they are, by
gradient steps (Adam) with a ridge on t_i. t is shared: without judgements a person is the average one.

Takes choices as in the paper. A vote is a yes if the item is near enough, p(yes) = sigmoid(s(x) + c_i) with the
person's own threshold, the usual unfolding model of votes; c_i also takes up |a_i|^2, which differences do not have.
So the score is linear in (w_i, c_i).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from fedvpa.methods.vectors import THRESHOLD_VARIANCE, Vectors, gradient
from fedvpa.variational.laplace import Observations
from fedvpa.variational.selector import Sizes, Theta, embed, init_theta

POINTS, MAP, SHARES = "prototypes", "map.weight", "shares"
DIM = 16
"""Dimensions of the space of items and people."""
RIDGE = 0.3
"""Of a person's t_i; chosen on validation people."""
STEPS, RATE = 40, 0.3
"""Adam's steps from the average person to a person's weights."""


class PAL(Vectors):
    """Inference `none`; judgements fit a person's weights of the K prototypes (`method.ideal_points`)."""

    name: ClassVar[str] = "pal"

    def initial(self, generator: torch.Generator) -> Theta:
        """The layer (h, D), the map (dim, h), prototypes (K, dim) on the scale of the items, equal shares (K,)."""
        h, k = self.sizes.hidden, self.config.method.ideal_points
        theta = init_theta(Sizes(self.setup.features, h, 0, 0), generator)
        layer = {n: v for n, v in theta.items() if n.startswith("features.")}
        linear = torch.randn(DIM, h, generator=generator)
        points = torch.randn(k, DIM, generator=generator) / DIM**0.5
        return {**layer, MAP: linear, POINTS: points, SHARES: torch.zeros(k)}

    def project(self, theta: Theta, items: Tensor) -> tuple[Tensor, Tensor]:
        """-|f - a|^2 = 2 <f, a> - |f|^2, up to what is the same for all items; a = sum_k w_k p_k."""
        f = embed(theta, items) @ theta[MAP].T / (self.sizes.hidden * DIM) ** 0.5
        return 2 * f @ theta[POINTS].T, -(f**2).sum(-1)

    def person(self, theta: Theta, seen: Observations) -> Tensor:
        with torch.no_grad():
            own = fitted(theta[SHARES], seen)
        return weighted(theta[SHARES], own)


def fitted(common: Tensor, seen: Observations) -> Tensor:
    """(people, K + 1) t_i and c_i, by Adam's steps from 0 on -log p + RIDGE / 2 |t_i|^2 + c_i^2 / (2 variance)."""
    own = common.new_zeros(len(seen.y), len(common) + 1)
    decay = torch.full_like(own[0], RIDGE)
    decay[-1] = 1 / THRESHOLD_VARIANCE
    optimizer = torch.optim.Adam([own], lr=RATE)
    for _ in range(STEPS if seen.y.shape[-1] else 0):
        z = weighted(common, own)
        slope = gradient(z, seen)
        w, along = z[:, :-1], slope[:, :-1]
        along = w * (along - (w * along).sum(-1, keepdim=True))
        own.grad = decay * own - torch.cat([along, slope[:, -1:]], -1)
        optimizer.step()
    return own


def weighted(common: Tensor, own: Tensor) -> Tensor:
    """(people, K + 1) weights in the simplex, and thresholds. common: (K,) t; own: (people, K + 1) t_i and c_i"""
    return torch.cat([(common + own[:, :-1]).softmax(-1), own[:, -1:]], -1)

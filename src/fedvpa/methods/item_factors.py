"""Logistic factors of items by their ids, without texts.

Probabilistic matrix factorisation (Salakhutdinov and Mnih 2007), with a logistic likelihood (Johnson 2014).

p(yes) = sigmoid(<f_i, w_u> + b_i + c_u), a choice is the difference of two items, a rating is N(score, 1). Factors,
popularities b and everybody's w and c are fitted together, as the likeliest under Gaussian priors. A new person's w and
c are the same convex fit with the items as they are. An item that no training client judged has f = 0 and b = 0, so of
two such items either is as likely: the method is a reference for known items, and a coin on new ones.

The server sees who judged what how, so this is no federated method. Takes all judgements as they are.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from fedvpa.methods.base import Pool, Setup, judgements_of, padded_judgements
from fedvpa.methods.fedvpa_laplace import observations
from fedvpa.methods.vectors import THRESHOLD_VARIANCE, VectorPredictor, log_likelihood, ridge
from fedvpa.preferences.schema import FederatedPreferences
from fedvpa.preferences.seeding import generator

STEPS, RATE = 200, 0.05
"""Steps of Adam on all judgements at once."""
SCALE = 0.1
"""Deviation of the factors at the start."""
POPULARITY = 0.1
"""Ridge of popularities."""


class ItemFactors:
    """Inference `none`; `method.factors` dimensions, `method.factor_ridge` the ridge of w and of f."""

    name: ClassVar[str] = "item-factors"
    federated: ClassVar[bool] = False
    latent: ClassVar[bool] = False
    contextual: ClassVar[bool] = True

    def __init__(self, setup: Setup) -> None:
        self.setup, self.config = setup, setup.config

    def fit(self, data: FederatedPreferences, pool: Pool) -> VectorPredictor:
        """Fits items and training people by gradient steps on the sum of -log p and the ridges."""
        given = [judgements_of(c, pool.pairs) for c in data.clients["seen"]]
        judged = padded_judgements(given, pool.items.dtype, pool.rating_scale)
        m, g = self.config.method, generator(self.config.seed, self.name)

        def start(*shape: int) -> Tensor:
            return (SCALE * torch.randn(*shape, generator=g)).to(pool.items.dtype).requires_grad_(True)

        factors, popularity = start(len(pool.items), m.factors), start(len(pool.items))
        people = start(len(judged.y), m.factors + 1)
        decay = torch.full((m.factors + 1,), m.factor_ridge, dtype=pool.items.dtype)
        decay[-1] = 1 / THRESHOLD_VARIANCE
        optimizer = torch.optim.Adam([factors, popularity, people], lr=RATE)
        for _ in range(STEPS):
            fit = log_likelihood(people, observations(factors, popularity, judged)).sum()
            away = (decay * people**2).sum() + m.factor_ridge * (factors**2).sum() + POPULARITY * (popularity**2).sum()
            optimizer.zero_grad()
            (away / 2 - fit).backward()
            optimizer.step()
        known = torch.zeros(len(pool.items), dtype=torch.bool)
        real = judged.weight > 0
        known[judged.first[real]] = True
        known[judged.second[real & (judged.second >= 0)]] = True
        items = factors.detach() * known.unsqueeze(-1), popularity.detach() * known
        return VectorPredictor(pool, *items, partial(ridge, strength=m.factor_ridge))

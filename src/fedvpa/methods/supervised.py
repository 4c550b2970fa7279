"""Selectors without z that are fitted directly: linear Bradley-Terry models and the federated selector's network.

The building blocks of the reference methods `local`, `oracle` and `oracle-clients`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedvpa.methods.base import Pool
from fedvpa.variational.objective import bradley_terry
from fedvpa.variational.selector import Sizes, difference, init_theta, score

INVERSE_DECAYS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""C of the linear model; chosen on validation."""


class Labelled(NamedTuple):
    """Rows of the pool (n,) and labels +1/-1 (n,)."""

    index: Tensor  # type: ignore[assignment]  # shadows tuple.index, which nobody needs here
    y: Tensor


def linear_bradley_terry(pool: Pool, data: Labelled, inverse_decay: float) -> Tensor:
    """w (D,) of p(a > b) = sigmoid(<w, h(x, a) - h(x, b)>), L2-regularised logistic regression.

    Each pair enters in both orders, so that the model is antisymmetric and both classes are there.
    """
    from sklearn.linear_model import LogisticRegression  # takes two seconds, which no federated client needs to wait

    a, b = pool.items[pool.pairs[data.index]].unbind(1)
    x = (a - b).double().cpu().numpy()
    y = data.y.cpu().numpy()
    model = LogisticRegression(C=inverse_decay, fit_intercept=False, max_iter=300, tol=1e-4)
    model.fit(np.concatenate([x, -x]), np.concatenate([y, -y]))
    return torch.from_numpy(model.coef_[0]).to(pool.items.dtype)


def linear_scores(pool: Pool, w: Tensor) -> Tensor:
    """(..., pairs) scores of the whole pool under w (..., D)."""
    return w @ pool.differences(lambda x: x).T


def accuracy(scores: Tensor, data: Labelled) -> float:
    """Share of `data` on the right side of 0; scores: (pairs,) of the whole pool."""
    return float(((scores[data.index] > 0) == (data.y > 0)).double().mean())


class NetworkSettings(NamedTuple):
    """How the network is fitted; epochs (the best of them on validation) and decays are tuned."""

    hidden: int
    decays: Sequence[float] = (0.1, 1.0, 3.0)
    epochs: int = 20
    batch: int = 64
    learning_rate: float = 1e-3


def network_bradley_terry(
    pool: Pool, train: Labelled, validation: Labelled, settings: NetworkSettings, generator: torch.Generator
) -> tuple[Tensor, float]:
    """The selector without z, trained on `train` with the decay and the epoch that are best on `validation`.

    Models for all decays train as one stack.

    Returns:
        (pairs,) scores of the whole pool, and the validation accuracy.
    """
    sizes = Sizes(pool.features, settings.hidden, 0, 0)
    start = init_theta(sizes, generator)
    count = len(settings.decays)
    theta = {k: v.to(pool.items.dtype).expand(count, *v.shape).clone().requires_grad_(True) for k, v in start.items()}
    optimizer = torch.optim.AdamW(theta.values(), lr=settings.learning_rate, weight_decay=0.0, fused=True)
    decay = torch.tensor(settings.decays, dtype=pool.items.dtype)
    best, best_scores = -1.0, torch.zeros(len(pool.pairs))
    for _ in range(settings.epochs):
        order = torch.randperm(len(train.index), generator=generator)
        for rows in order.split(settings.batch):
            x, base = pool.rows(train.index[rows])
            stacked = x.expand(count, *x.shape)
            y = train.y[rows].to(pool.items.dtype)
            loss = bradley_terry(theta, difference(theta, stacked), base, y, torch.ones_like(y, dtype=torch.bool))
            optimizer.zero_grad()
            loss.sum().backward()
            optimizer.step()
            with torch.no_grad():
                for name, p in theta.items():
                    if name.endswith("weight"):
                        p.mul_((1 - settings.learning_rate * decay).reshape(-1, 1, 1))
        held = _pool_scores(theta, pool, validation.index)
        for k in range(count):
            hit = float(((held[k] > 0) == (validation.y > 0)).double().mean())
            if hit > best:
                single = {n: p[k : k + 1].detach() for n, p in theta.items()}
                best, best_scores = hit, _pool_scores(single, pool, torch.arange(len(pool.pairs)))[0]
    return best_scores, best


@torch.no_grad()
def _pool_scores(theta: dict[str, Tensor], pool: Pool, index: Tensor) -> Tensor:
    """(models, n) scores of the pairs `index` (n,)."""
    x, base = pool.rows(index)
    models = theta["selector.common"].shape[0]
    return score(theta, difference(theta, x.expand(models, *x.shape)), None, base)

"""Each user alone: a linear Bradley-Terry model on the user's own pairs, nothing shared.

A training client is fitted on all of its training pairs, an unseen user on the context pairs. The decay is chosen on
validation clients, per context size.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from fedvpa.methods.base import Context, Pool, Setup, by_row
from fedvpa.methods.supervised import INVERSE_DECAYS, Labelled, accuracy, linear_bradley_terry
from fedvpa.preferences.schema import Client, FederatedPreferences
from fedvpa.preferences.seeding import generator


class Local:
    """No federation at all."""

    name: ClassVar[str] = "local"
    federated: ClassVar[bool] = False
    latent: ClassVar[bool] = False
    contextual: ClassVar[bool] = True

    def __init__(self, setup: Setup) -> None:
        self.setup, self.config = setup, setup.config

    def fit(self, data: FederatedPreferences, pool: Pool) -> LocalPredictor:
        """Chooses the decay for each number of pairs; users are fitted when they are inferred."""
        return LocalPredictor(pool, data.clients["validation"], self.config.seed)


class LocalPredictor:
    """A user is a weight vector (D,); `nobody` is that of a user without pairs."""

    inferences: tuple[str, ...] = ("none",)

    def __init__(self, pool: Pool, validation: tuple[Client, ...], seed: int) -> None:
        self.pool, self.validation, self.seed = pool, validation, seed
        self.difference = pool.differences(lambda x: x)
        self.chosen: dict[int, float] = {}
        self.nobody = pool.items.new_zeros(pool.features)

    def decay(self, size: int) -> float:
        """C for users with `size` pairs: the best mean accuracy over the validation clients."""
        if size not in self.chosen:
            self.chosen[size] = max(INVERSE_DECAYS, key=lambda c: self._validation_accuracy(size, c))
        return self.chosen[size]

    def _validation_accuracy(self, size: int, c: float) -> float:
        hits = []
        for client in self.validation:
            order = torch.randperm(len(client.train), generator=generator(self.seed, "local", client.client_id))[:size]
            w = linear_bradley_terry(self.pool, Labelled(client.train.index[order], client.train.y[order]), c)
            hits.append(accuracy(self.difference @ w, Labelled(client.test.index, client.test.y)))
        return sum(hits) / max(len(hits), 1)

    def infer(self, context: Context, how: str = "none", groups: Tensor | None = None) -> Any:
        heads = []
        for index, y, mask in zip(*context, strict=True):
            size = int(mask.sum())
            if size == 0:
                heads.append(self.nobody)
                continue
            heads.append(linear_bradley_terry(self.pool, Labelled(index[mask], y[mask]), self.decay(size)))
        return torch.stack(heads)

    def predict(self, users: Any, index: Tensor) -> Tensor:
        return torch.sigmoid(by_row(index, lambda some, rows: users[some] @ self.difference[rows].T))

    def rows(self, users: Any, order: Tensor) -> Any:
        return users[order]

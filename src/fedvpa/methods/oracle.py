"""The ceilings: per *true* group, the better on validation of a linear model and the selector without z.

`oracle` trains on every pair of the training pool, labelled by the group's rule; `oracle-clients` on the pairs and
labels that the group's training clients hold. An oracle knows a user's group, also an unseen user's.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from fedvpa.errors import UserError
from fedvpa.methods.base import Context, Pool, Setup
from fedvpa.methods.supervised import (
    INVERSE_DECAYS,
    Labelled,
    NetworkSettings,
    accuracy,
    linear_bradley_terry,
    linear_scores,
    network_bradley_terry,
)
from fedvpa.preferences.schema import FederatedPreferences
from fedvpa.preferences.seeding import generator


class Oracle:
    """Trained on the whole training pool."""

    name: ClassVar[str] = "oracle"
    federated: ClassVar[bool] = False
    latent: ClassVar[bool] = False

    def __init__(self, setup: Setup) -> None:
        self.setup, self.config = setup, setup.config

    def training_pairs(self, data: FederatedPreferences, group: int) -> Labelled:
        return split_pairs(data, group, "train")

    def fit(self, data: FederatedPreferences, pool: Pool) -> GroupPredictor:
        """Fits every group.

        Raises:
            UserError: the data do not tell who belongs to which group.
        """
        if not data.groups:
            raise needs_groups(self.name)
        return GroupPredictor(torch.stack([self._fit_group(data, pool, g) for g in range(len(data.groups))]))

    def _fit_group(self, data: FederatedPreferences, pool: Pool, group: int) -> Tensor:
        train, validation = self.training_pairs(data, group), split_pairs(data, group, "validation")
        scores, best = network_bradley_terry(
            pool,
            train,
            validation,
            NetworkSettings(self.config.model.hidden_dim),
            generator(self.config.seed, self.name, group),
        )
        for c in INVERSE_DECAYS:
            candidate = linear_scores(pool, linear_bradley_terry(pool, train, c))
            hit = accuracy(candidate, validation)
            if hit > best:
                scores, best = candidate, hit
        return torch.sigmoid(scores)


def needs_groups(method: str) -> UserError:
    """What to say where a method needs to know who belongs to which group."""
    problem = "this method needs true groups, which this data does not have"
    return UserError(problem, "leave it out", field=f"method.name={method}")


class OracleClients(Oracle):
    """Trained on the pairs of the group's training clients only."""

    name: ClassVar[str] = "oracle-clients"

    def training_pairs(self, data: FederatedPreferences, group: int) -> Labelled:
        held = [c.train for c in data.clients["seen"] if c.group == group]
        return Labelled(torch.cat([t.index for t in held]), torch.cat([t.y for t in held]))


def split_pairs(data: FederatedPreferences, group: int, split: str) -> Labelled:
    """Every pair of a split that the group labels, with the group's own label."""
    y = data.group_labels[group]
    index = torch.tensor([i for i, s in enumerate(data.split) if s == split and y[i] != 0], dtype=torch.int64)
    return Labelled(index, y[index])


class GroupPredictor:
    """One prediction per group; a user is the index of its true group.

    Args:
        p: (groups, pairs) p(a > b).
    """

    inferences: tuple[str, ...] = ("none",)

    def __init__(self, p: Tensor) -> None:
        self.p = p

    def infer(self, context: Context, how: str, groups: Tensor) -> Any:
        return groups

    def predict(self, users: Any, index: Tensor) -> Tensor:
        return self.p[users.unsqueeze(-1), index]

    def rows(self, users: Any, order: Tensor) -> Any:
        return users[order]

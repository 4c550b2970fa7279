"""The users of one node, one or many, and what a method needs to train them here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from fedvpa.backbone.encode import Features
from fedvpa.backbone.pairs import PairTexts
from fedvpa.config import ExperimentConfig
from fedvpa.errors import UserError
from fedvpa.federation.moments import Moments, Standardizer
from fedvpa.federation.privacy import moments_of
from fedvpa.federation.rounds import ClientData
from fedvpa.methods.base import Method, Pool, Setup, torch_dtype
from fedvpa.methods.registry import CLASSES
from fedvpa.preferences.fingerprint import client_fingerprint
from fedvpa.preferences.schema import Client, FederatedPreferences, LabelledPairs

NO_SELECTOR = "people's vectors are fitted anew each time, so there is no selector to deploy"
REFUSED = {
    "fedbiscuit": "it asks every client before some rounds",
    "fedpdpo": "its heads stay at the clients, so there is no selector to deploy",
    **dict.fromkeys(("lore", "mrm", "pal"), NO_SELECTOR),
    "pluralllm": "a user is the context itself, so there is no selector to deploy",
    "votes-mean": "it is there for comparison and leaves no selector",
    "central-vpl": "it has all data in one place",
    "fedvpa-gp+labels": "it knows the true groups",
}
"""Methods that take rounds, but not over a network, and why."""


NETWORKED = tuple(name for name, c in CLASSES.items() if name not in REFUSED and hasattr(c, "client_update"))


def check_method(config: ExperimentConfig) -> None:
    """Raises `UserError` where `method.name` does not train over a network, or what is asked for is not there."""
    if config.network.secure_aggregation:
        problem = "SecAgg+ of Flower 1.41 works with its legacy strategies only, and masks with 32-bit seeds"
        raise UserError(problem, "leave it false; docs/deploy.md says more", field="network.secure_aggregation")
    name = config.method.name
    reason = REFUSED.get(name)
    if name not in CLASSES:
        reason = "it comes from another package, and nobody has checked what would leave a client"
    elif reason is None and not hasattr(CLASSES[name], "client_update"):
        reason = "it takes no rounds"
    if reason is not None:
        problem = f"{name} does not train over a network: {reason}"
        raise UserError(problem, f"choose one of {', '.join(NETWORKED)}", field="method")


@dataclass(frozen=True)
class Node:
    """What a node holds.

    Attributes:
        config: the experiment; both ends have the same.
        names: pseudonyms of the users, in the order of `clients`.
        clients: the users with their pairs, rows of `features`.
        data: the preferences that they come from; features: of all its pairs.
        state_dir: where private state is kept.
        texts: all pairs as tokens, where the method needs them.
        known_by: what the features are known by (`apps.fingerprints.shared_features`); empty: they are not compared.
    """

    config: ExperimentConfig
    names: tuple[str, ...]
    clients: tuple[Client, ...]
    data: FederatedPreferences
    features: Features
    state_dir: Path
    texts: PairTexts | None = None
    known_by: str = ""

    @property
    def dim(self) -> int:
        """D, the length of a feature."""
        return self.features.items.shape[-1]

    def client(self, name: str) -> Client | None:
        return dict(zip(self.names, self.clients, strict=True)).get(name)

    def fingerprints(self, users: Sequence[str]) -> dict[str, str]:
        """Per user that is here what its data are known by."""
        found = {user: self.client(user) for user in users}
        return {user: client_fingerprint(client, self.data) for user, client in found.items() if client is not None}

    def moments(self) -> list[Moments]:
        """Per user the message of round 0."""
        return [moments_of(self.features.of_client(c), self.config, c.ratings) for c in self.clients]

    def method(self, kind: type, clients: int, clusters: int) -> Method:
        """The configured method, with the sizes that the server says."""
        method: Method = kind(Setup(self.config, self.dim, clients, clusters, torch_dtype(self.config)))
        return method

    def training_data(
        self, clients: Sequence[Client], ids: Tensor, standardizer: Standardizer, rating_scale: tuple[float, float]
    ) -> ClientData:
        """The training pairs of some users (with their ids in the federation), and of nobody else."""
        rows = torch.cat([c.train.index for c in clients]).unique()
        moved = [
            replace(c, group=None, train=LabelledPairs(torch.searchsorted(rows, c.train.index), c.train.y))
            for c in clients
        ]
        return ClientData(self.pool(standardizer, rating_scale, rows), moved, ids)

    def pool(self, standardizer: Standardizer, rating_scale: tuple[float, float], rows: Tensor | None = None) -> Pool:
        """Standardised features of all items, and the pairs `rows` of them; None: all."""
        rows = torch.arange(len(self.features.pairs)) if rows is None else rows
        dtype, base = torch_dtype(self.config), self.features.base_logit
        texts = None if self.texts is None else self.texts.take(rows)
        items = standardizer(self.features.items).to(dtype)
        base = None if base is None else base[rows].to(dtype)
        return Pool(items, self.features.pairs[rows], base, texts, rating_scale)
